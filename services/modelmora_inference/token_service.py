"""What foreign protocols ask of a model's tokens beyond our own calls: a mixin for the servicer of inference.

The work goes the way of every other: through the queue, in batches, with the caller's priority and deadline.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.errors import FieldViolation
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.worker.v1 import worker_pb2

from modelmora_inference.checks import invalid, wrong_call, wrong_texts
from modelmora_inference.dispatcher import Dispatchers
from modelmora_inference.domain import MAX_TEXT_CHARACTERS, VersionFacts
from modelmora_inference.stream_service import StreamRules
from modelmora_inference.task_service import call_for, tell_making

FIGURES_BYTES = 64
"""What an answer has beside its vectors, at most."""


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """The vector of each token of one text, special ones included, and what the answer says of its making."""

    vectors: list[array[float]]
    made: pb.EmbedResponse


class TokenWork:
    """Work on tokens that no RPC of ours offers."""

    _max_call_bytes: int
    _stream_rules: StreamRules
    _dispatchers: Dispatchers

    async def _answer(self, request: Any, context: Any, arrival: float, ask: Any) -> Any:
        raise NotImplementedError

    async def _run(self, asked: Any, facts: VersionFacts, call: Any, inputs: Sequence[worker_pb2.TextEntry]) -> None:
        raise NotImplementedError

    async def text_of(self, request: pb.TokenizeRequest, ids: Sequence[int], plain: bool, context: Any) -> str:
        """The text of `ids` by the model of a request without texts; `plain`: without special tokens. Raises
        InvalidArgument at `ids`, TaskNotSupported."""
        arrival = time.monotonic()
        found = [] if request.model else [FieldViolation("model", "is required")]
        if not 1 <= len(ids) <= MAX_TEXT_CHARACTERS:
            found.append(FieldViolation("ids", f"1 to {MAX_TEXT_CHARACTERS}, not {len(ids)}"))
        if found := found + wrong_call(request):
            raise invalid(found)

        async def ask(asked: Any, facts: VersionFacts, if_loaded: bool) -> str:
            call = call_for(asked, facts, facts.task_type, if_loaded)  # type: ignore[arg-type]
            call.operation, call.input_field = worker_pb2.OPERATION_DETOKENIZE, "ids"
            await self._run(asked, facts, call, [worker_pb2.TextEntry(token_ids=ids, plain=plain)])
            return call.rows[0].decode("utf-32-le")

        text: str = await self._answer(request, context, arrival, ask)
        return text

    async def token_vectors(
        self, request: pb.EmbedRequest, context: Any, vector_bytes: Callable[[int], int]
    ) -> TokenVectors:
        """Vectors of the tokens of the request's one text. `vector_bytes`: what a vector of so many numbers takes in
        the answer. Raises as Embed does."""
        arrival = time.monotonic()
        found = [] if request.model else [FieldViolation("model", "is required")]
        if found := found + wrong_texts("texts", request.texts, self._max_call_bytes) + wrong_call(request):
            raise invalid(found)

        async def ask(asked: Any, facts: VersionFacts, if_loaded: bool) -> TokenVectors:
            call = call_for(asked, facts, common_pb2.TASK_TYPE_TXT2EMBED, if_loaded)
            call.operation, call.prompt = worker_pb2.OPERATION_TOKEN_VECTORS, request.prompt_name
            most_bytes, dispatcher = self._stream_rules.max_message_bytes, self._dispatchers.get(facts.name)
            if width := facts.embedding_dimensions or (dispatcher.embedding_dimensions if dispatcher else 0):
                most_bytes = max(1, (most_bytes - FIGURES_BYTES) // vector_bytes(width) * 4 * width)
            await self._run(
                asked,
                facts,
                call,
                [
                    worker_pb2.TextEntry(
                        text=request.texts[0],
                        truncate=request.truncate,
                        prompt=request.prompt_name,
                        max_row_bytes=most_bytes,
                    )
                ],
            )
            values, tokens = array("f", call.rows[0]), call.input_tokens[0]
            if sys.byteorder == "big":
                values.byteswap()
            if not tokens or len(values) % tokens:
                raise errors.InternalError(f"the worker answered with {len(values)} values for {tokens} tokens")
            width = len(values) // tokens
            made = pb.EmbedResponse()
            tell_making(made, call, facts)
            return TokenVectors([values[at : at + width] for at in range(0, len(values), width)], made)

        answer: TokenVectors = await self._answer(request, context, arrival, ask)
        return answer
