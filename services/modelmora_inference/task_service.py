"""The RPCs of tasks other than embedding: a mixin for the servicer of inference.

Each turns its request into messages of the worker's wire, one for each unit of work, and its rows back into an answer;
what happens between is the same for all tasks (`_answer`, `_run`).
"""

from __future__ import annotations

import asyncio
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.errors import FieldViolation
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.worker.v1 import worker_pb2
from modelmora_runtime.auth import current_caller
from modelmora_runtime.interceptors import deadline_seconds

from modelmora_inference import tasks
from modelmora_inference.checks import invalid, wrong_call, wrong_task, wrong_texts
from modelmora_inference.dispatcher import Call, Dispatchers
from modelmora_inference.domain import MAX_TEXT_CHARACTERS, MAX_TEXTS, VersionFacts
from modelmora_inference.predict import read, tensors_of, written, wrong_predict
from modelmora_inference.stream_service import StreamRules

_LONG_ROW_BYTES: Final = 16 * 1024
"""Of tokens: 1 ms of making an answer."""

Ask = Callable[[Any, VersionFacts, bool], Awaitable[Any]]
"""Asks one version what a call wants: (the call as it came in, the version, whether only if it is in memory)."""


class TaskRpcs:
    """RPCs of InferenceService that answer with a model's output, embedding aside."""

    _max_call_bytes: int
    _stream_rules: StreamRules
    _dispatchers: Dispatchers

    async def _find(self, reference: str, deadline: float, field: str = "model") -> VersionFacts:
        raise NotImplementedError

    async def _answer(self, request: Any, context: Any, arrival: float, ask: Ask) -> Any:
        raise NotImplementedError

    async def _run(
        self, asked: Any, facts: VersionFacts, call: Call, inputs: Sequence[str] | Sequence[worker_pb2.TextEntry]
    ) -> None:
        raise NotImplementedError

    async def Rerank(self, request: pb.RerankRequest, context: Any) -> pb.RerankResponse:
        arrival = time.monotonic()
        if violations := tasks.wrong_rerank(request, self._max_call_bytes):
            raise invalid(violations)

        async def ask(asked: Any, facts: VersionFacts, if_loaded: bool) -> pb.RerankResponse:
            call = call_for(asked, facts, common_pb2.TASK_TYPE_RERANKING, if_loaded)
            await self._run(asked, facts, call, tasks.rerank_entries(request))
            answer = tasks.ranked(request, call)
            tell_making(answer, call, facts)
            return answer

        response: pb.RerankResponse = await self._answer(request, context, arrival, ask)
        return response

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
        arrival = time.monotonic()
        if violations := tasks.wrong_classify(request, self._max_call_bytes):
            raise invalid(violations)

        async def ask(asked: Any, facts: VersionFacts, if_loaded: bool) -> pb.ClassifyResponse:
            call = call_for(asked, facts, common_pb2.TASK_TYPE_CLASSIFICATION, if_loaded)
            _check_takes_texts(facts)
            await self._run(asked, facts, call, tasks.classify_entries(request))
            answer = tasks.classified(request, call, call.labels)
            tell_making(answer, call, facts)
            return answer

        response: pb.ClassifyResponse = await self._answer(request, context, arrival, ask)
        return response

    async def AnswerQuestion(self, request: pb.AnswerQuestionRequest, context: Any) -> pb.AnswerQuestionResponse:
        arrival = time.monotonic()
        if violations := tasks.wrong_question(request, self._max_call_bytes):
            raise invalid(violations)

        async def ask(asked: Any, facts: VersionFacts, if_loaded: bool) -> pb.AnswerQuestionResponse:
            call = call_for(asked, facts, common_pb2.TASK_TYPE_QUESTION_ANSWERING, if_loaded)
            call.input_field = "question"
            await self._run(asked, facts, call, tasks.question_entries(request))
            answer = tasks.answers(request, call)
            tell_making(answer, call, facts)
            return answer

        response: pb.AnswerQuestionResponse = await self._answer(request, context, arrival, ask)
        return response

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        arrival = time.monotonic()
        if violations := wrong_predict(request):
            raise invalid(violations)

        async def ask(asked: Any, facts: VersionFacts, if_loaded: bool) -> pb.PredictResponse:
            dispatcher = self._dispatchers.get(facts.name)
            widest = facts.embedding_dimensions or (dispatcher.embedding_dimensions if dispatcher is not None else 0)
            wanted = read(request, facts, self._max_call_bytes, widest)
            call = call_for(asked, facts, facts.task_type, if_loaded)  # type: ignore[arg-type]
            call.normalize, call.truncate, call.dimensions = wanted.normalize, wanted.truncate, wanted.dimensions
            call.prompt, call.input_field, call.options_at = wanted.prompt, wanted.element, "parameters."
            await self._run(asked, facts, call, wanted.inputs)
            outputs = written(wanted, facts, call.rows, call.labels, request.outputs)
            response = pb.PredictResponse(outputs=outputs, labels=call.labels)
            tell_making(response, call, facts)
            return response

        response: pb.PredictResponse = await self._answer(request, context, arrival, ask)
        return response

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        arrival = time.monotonic()
        if violations := wrong_tokenize(request, self._max_call_bytes):
            raise invalid(violations)

        async def ask(asked: Any, facts: VersionFacts, if_loaded: bool) -> pb.TokenizeResponse:
            call = call_for(asked, facts, facts.task_type, if_loaded)  # type: ignore[arg-type]
            _check_takes_texts(facts)
            call.operation = worker_pb2.OPERATION_TOKENIZE
            plain = request.HasField("add_special_tokens") and not request.add_special_tokens
            await self._run(
                asked, facts, call, [worker_pb2.TextEntry(text=text, plain=plain) for text in request.texts]
            )
            return await _tokenized(call, facts, self._stream_rules.max_message_bytes)

        response: pb.TokenizeResponse = await self._answer(request, context, arrival, ask)
        return response

    async def DescribeModel(self, request: pb.DescribeModelRequest, context: Any) -> pb.DescribeModelResponse:
        if not request.model:
            raise errors.InvalidArgument.at("model", "is required")
        facts = await self._find(request.model, time.monotonic() + min(deadline_seconds(context), 5.0))
        dispatcher = self._dispatchers.get(facts.name)
        learned = self._dispatchers.learned(facts.name)
        known = learned.description
        labels = tuple(known.labels if known is not None else ()) or facts.labels
        inputs, outputs = tensors_of(facts, len(labels))
        return pb.DescribeModelResponse(
            model_version=facts.name,
            digest=facts.digest,
            task_type=common_pb2.TaskType.Name(facts.task_type),
            inputs=inputs,
            outputs=outputs,
            labels=labels,
            max_input_tokens=learned.max_input_tokens or facts.max_input_tokens,
            embedding_dimensions=facts.embedding_dimensions or learned.embedding_dimensions,
            max_texts=MAX_TEXTS,
            max_text_characters=MAX_TEXT_CHARACTERS,
            max_call_bytes=self._max_call_bytes,
            replicas=dispatcher.replicas if dispatcher is not None else 0,
            prompts=known.prompts if known is not None else {},
            default_prompt_name=known.default_prompt if known is not None else "",
            max_image_bytes=known.max_image_bytes if known is not None else 0,
            max_image_pixels=known.max_image_pixels if known is not None else 0,
            max_resized_pixels=known.max_resized_pixels if known is not None else 0,
        )


def wrong_tokenize(request: pb.TokenizeRequest, max_call_bytes: int) -> list[FieldViolation]:
    found = [] if request.model else [FieldViolation("model", "is required")]
    return found + wrong_texts("texts", request.texts, max_call_bytes) + wrong_call(request)


def call_for(asked: Any, facts: VersionFacts, task_type: common_pb2.TaskType, if_loaded: bool) -> Call:
    """A call for a version, which must do the task. Raises TaskNotSupported."""
    if facts.task_type != task_type:
        raise wrong_task(facts, task_type)
    request = asked.request
    return Call(
        priority=asked.priority,
        tenant=current_caller().tenant,
        arrival=asked.arrival,
        deadline=asked.deadline,
        normalize=False,
        truncate=request.truncate
        if isinstance(request, pb.RerankRequest | pb.ClassifyRequest) and request.HasField("truncate")
        else True,
        dimensions=0,
        exact=not isinstance(request, pb.TokenizeRequest) and request.precision == "exact",
        done=asyncio.get_running_loop().create_future(),
        task_type=task_type,
        if_loaded=if_loaded,
        loads_nothing=asked.loads_nothing,
    )


def _check_takes_texts(facts: VersionFacts) -> None:
    """Raises TaskNotSupported."""
    if facts.takes_images:
        raise errors.TaskNotSupported(f"{facts.name} takes images; Predict does that", model_version=facts.name)


async def _tokenized(call: Call, facts: VersionFacts, max_bytes: int) -> pb.TokenizeResponse:
    """Text by text: 100,000 tokens take 0.1 s, and others wait for this thread too. Raises MessageTooLarge."""
    response, size = pb.TokenizeResponse(), 0
    for row in call.rows:
        if len(row) > _LONG_ROW_BYTES:
            await asyncio.sleep(0)
        numbers = array("i", row)
        if sys.byteorder == "big":
            numbers.byteswap()
        tokens = response.texts.add().tokens
        for at in range(0, len(numbers), 4):
            number, start, end, special = numbers[at : at + 4]
            tokens.add(id=number, start=start, end=end, special=bool(special))
        if (size := size + response.texts[-1].ByteSize()) > max_bytes:
            raise errors.MessageTooLarge(
                f"the tokens of the first {len(response.texts)} texts have {size} bytes; the limit of an answer is "
                f"{max_bytes} (setting platform.max_message_bytes)",
                limit_bytes=max_bytes,
            )
    tell_making(response, call, facts)
    return response


def tell_making(response: Any, call: Call, facts: VersionFacts) -> None:
    """What every answer says of its making."""
    response.model_version, response.digest = facts.name, facts.digest
    if call.profile is not None and not call.operation:
        response.engine_profile.CopyFrom(call.profile)
    response.usage.input_tokens = sum(call.input_tokens)
    response.usage.cached_inputs = call.cached
    timings = response.timings
    for duration, seconds in (
        (timings.queue, call.started - call.arrival),
        (timings.tokenise, call.tokenise_seconds),
        (timings.compute, call.compute_seconds),
        (timings.total, time.monotonic() - call.arrival),
    ):
        duration.FromNanoseconds(int(seconds * 1e9))
