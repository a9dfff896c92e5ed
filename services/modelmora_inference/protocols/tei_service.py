"""`tei.v1`: the gRPC protocol of text-embeddings-inference, on the native calls.

Its messages name no model: metadata does, or a setting. Its defaults are proto3's own, which differ from ours:
`truncate` and `normalize` are false when nothing is said.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import modelmora
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora_runtime.auth import READERS
from modelmora_runtime.interceptors import metadata_value

from modelmora_inference.domain import MAX_TEXTS
from modelmora_inference.protocols import tei_pb2 as tei
from modelmora_inference.protocols import tei_pb2_grpc
from modelmora_inference.protocols.common import fields_named, in_order, set_timeout
from modelmora_inference.stream_service import StreamRules

MODEL_KEYS = ("x-model-id", "mm-model-id", "mm-vmodel-id")
PRECISION_KEY = "x-precision"
"""Metadata `exact` demands the engine's exact profile, as `precision` of our own calls does."""
MAX_SPECIALS = 10_000
"""Special tokens whose writing is remembered; a model has five or so."""
SERVICES: Mapping[str, Callable[[Any, Any], None]] = {
    "tei.v1.Info": tei_pb2_grpc.add_InfoServicer_to_server,
    "tei.v1.Embed": tei_pb2_grpc.add_EmbedServicer_to_server,
    "tei.v1.Predict": tei_pb2_grpc.add_PredictServicer_to_server,
    "tei.v1.Rerank": tei_pb2_grpc.add_RerankServicer_to_server,
    "tei.v1.Tokenize": tei_pb2_grpc.add_TokenizeServicer_to_server,
}
_MODEL_TYPES = {
    common_pb2.TASK_TYPE_TXT2EMBED: tei.MODEL_TYPE_EMBEDDING,
    common_pb2.TASK_TYPE_CLASSIFICATION: tei.MODEL_TYPE_CLASSIFIER,
    common_pb2.TASK_TYPE_RERANKING: tei.MODEL_TYPE_RERANKER,
}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def access(service: str) -> dict[str, Any]:
    """The roles of each method of a service."""
    methods = tei.DESCRIPTOR.services_by_name[service.rpartition(".")[2]].methods
    return dict.fromkeys((method.name for method in methods), READERS)


@dataclass(frozen=True, slots=True)
class Limits:
    """What Info tells of this server."""

    max_queue_entries: int
    max_batch_tokens: int
    max_batch_entries: int


class TeiService:
    """All services of tei.v1: no two of them have a method of the same name."""

    def __init__(
        self,
        native: Any,
        *,
        default_model: str,
        limits: Limits,
        precision_of: Callable[[str], str],
        rules: StreamRules,
        stopping: asyncio.Event,
    ) -> None:
        """`native`: the servicer of InferenceService. `default_model`: for calls that name none; may be empty.
        `precision_of`: that a version is served with, empty while nothing serves it."""
        self._native = native
        self._precision_of = precision_of
        self._rules = rules
        self._default_model = default_model
        self._limits = limits
        self._stopping = stopping
        self._specials: dict[tuple[str, int], str] = {}
        """How special tokens are written, by digest of the version and id."""

    # Info.

    async def Info(self, request: tei.InfoRequest, context: Any) -> tei.InfoResponse:
        with _named():
            found = await self._native.DescribeModel(pb.DescribeModelRequest(model=self._model(context)), context)
        kind = _MODEL_TYPES.get(found.task_type)
        if kind is None:
            task = common_pb2.TaskType.Name(found.task_type).removeprefix("TASK_TYPE_").lower()
            raise errors.TaskNotSupported(f"{found.model_version} does {task}, for which this protocol has no calls")
        _, org, repo, _, version = found.model_version.split("/")
        precision = self._precision_of(found.model_version)
        return tei.InfoResponse(
            version=modelmora.__version__,
            model_id=f"{org}/{repo}",
            model_sha=version,
            model_dtype=_DTYPES.get(precision, precision),
            model_type=kind,
            max_concurrent_requests=self._limits.max_queue_entries,
            max_input_length=found.max_input_tokens,
            max_batch_tokens=self._limits.max_batch_tokens,
            max_batch_requests=self._limits.max_batch_entries,
            max_client_batch_size=MAX_TEXTS,
            tokenization_workers=1,
        )

    # Embed.

    async def Embed(self, request: tei.EmbedRequest, context: Any) -> tei.EmbedResponse:
        native = pb.EmbedRequest(
            model=self._model(context),
            texts=[request.inputs],
            normalize=request.normalize,
            prompt_name=request.prompt_name,
            encoding=pb.VECTOR_ENCODING_FLOATS,
        )
        if request.HasField("dimensions"):
            native.dimensions = min(request.dimensions, 2**31 - 1)
        found = await self._cut(self._native.Embed, native, request, context, _named(texts="inputs"))
        return tei.EmbedResponse(embeddings=found.embeddings[0].values, metadata=_metadata(found, len(request.inputs)))

    async def EmbedStream(
        self, requests: AsyncIterator[tei.EmbedRequest], context: Any
    ) -> AsyncIterator[tei.EmbedResponse]:
        async for answer in self._in_order(self.Embed, requests, context):
            yield answer

    async def EmbedSparse(self, request: tei.EmbedSparseRequest, context: Any) -> tei.EmbedSparseResponse:
        with _named():
            found = await self._native.DescribeModel(pb.DescribeModelRequest(model=self._model(context)), context)
        raise errors.TaskNotSupported(
            f"{found.model_version} makes no sparse vectors", model_version=found.model_version
        )

    async def EmbedSparseStream(
        self, requests: AsyncIterator[tei.EmbedSparseRequest], context: Any
    ) -> AsyncIterator[tei.EmbedSparseResponse]:
        async for answer in self._in_order(self.EmbedSparse, requests, context):
            yield answer

    async def EmbedAll(self, request: tei.EmbedAllRequest, context: Any) -> tei.EmbedAllResponse:
        native = pb.EmbedRequest(model=self._model(context), texts=[request.inputs], prompt_name=request.prompt_name)
        ask = partial(self._native.token_vectors, vector_bytes=_vector_bytes)
        found = await self._cut(ask, native, request, context, _named(texts="inputs"))
        answer = tei.EmbedAllResponse(metadata=_metadata(found.made, len(request.inputs)))
        for vector in found.vectors:
            answer.token_embeddings.add().embeddings.extend(vector)
        return answer

    async def EmbedAllStream(
        self, requests: AsyncIterator[tei.EmbedAllRequest], context: Any
    ) -> AsyncIterator[tei.EmbedAllResponse]:
        async for answer in self._in_order(self.EmbedAll, requests, context):
            yield answer

    # Predict.

    async def Predict(self, request: tei.PredictRequest, context: Any) -> tei.PredictResponse:
        return await self._predict([request.inputs], request, context, _named(texts="inputs"))

    async def PredictPair(self, request: tei.PredictPairRequest, context: Any) -> tei.PredictResponse:
        if not 1 <= len(request.inputs) <= 2:
            raise errors.InvalidArgument.at("inputs", f"one text or two, not {len(request.inputs)}")
        return await self._predict(request.inputs, request, context, _named(texts="inputs[0]", pairs="inputs[1]"))

    async def PredictStream(
        self, requests: AsyncIterator[tei.PredictRequest], context: Any
    ) -> AsyncIterator[tei.PredictResponse]:
        async for answer in self._in_order(self.Predict, requests, context):
            yield answer

    async def PredictPairStream(
        self, requests: AsyncIterator[tei.PredictPairRequest], context: Any
    ) -> AsyncIterator[tei.PredictResponse]:
        async for answer in self._in_order(self.PredictPair, requests, context):
            yield answer

    async def _predict(
        self, inputs: Sequence[str], request: Any, context: Any, named: AbstractContextManager[None]
    ) -> tei.PredictResponse:
        native = pb.ClassifyRequest(
            model=self._model(context), texts=inputs[:1], pairs=inputs[1:], raw_scores=request.raw_scores
        )
        found = await self._cut(self._native.Classify, native, request, context, named)
        answer = tei.PredictResponse(metadata=_metadata(found, sum(map(len, inputs))))
        for one in found.classifications[0].labels:
            answer.predictions.add(score=one.score, label=one.label)
        return answer

    # Rerank.

    async def Rerank(self, request: tei.RerankRequest, context: Any) -> tei.RerankResponse:
        native = pb.RerankRequest(
            model=self._model(context),
            query=request.query,
            texts=request.texts,
            raw_scores=request.raw_scores,
            return_texts=request.return_text,
        )
        found = await self._cut(self._native.Rerank, native, request, context, _named())
        characters = len(request.query) * len(request.texts) + sum(map(len, request.texts))
        answer = tei.RerankResponse(metadata=_metadata(found, characters))
        for one in found.ranked:
            answer.ranks.add(index=one.index, score=one.score, text=one.text if one.HasField("text") else None)
        return answer

    async def RerankStream(self, requests: AsyncIterator[tei.RerankStreamRequest], context: Any) -> tei.RerankResponse:
        began = time.monotonic()
        first: list[tei.RerankStreamRequest] = []
        texts: list[str] = []

        async def score(request: tei.RerankStreamRequest) -> tei.RerankResponse:
            first.append(request)
            if len(first) > MAX_TEXTS:
                raise errors.InvalidArgument.at("text", f"at most {MAX_TEXTS} in one stream")
            texts.append(request.text)
            one = tei.RerankRequest(
                query=request.query,
                texts=[request.text],
                truncate=request.truncate,
                truncation_direction=request.truncation_direction,
                raw_scores=first[0].raw_scores,
            )
            named = f"text[{len(first) - 1}]"  # one answer for all: its error says which message is to blame
            with fields_named(lambda path: named if path == "texts[0]" else path):
                return await self.Rerank(one, context)

        answer = tei.RerankResponse()
        told = answer.metadata
        scores: list[float] = []
        async for found in in_order(requests, score, stopping=self._stopping, context=context, rules=self._rules):
            scores.append(found.ranks[0].score)
            for name in (
                "compute_chars",
                "compute_tokens",
                "tokenization_time_ns",
                "queue_time_ns",
                "inference_time_ns",
            ):
                setattr(told, name, getattr(told, name) + getattr(found.metadata, name))
        if not scores:
            raise errors.InvalidArgument.at("text", "there is none")
        for name in ("tokenization_time_ns", "queue_time_ns", "inference_time_ns"):
            setattr(told, name, getattr(told, name) // len(scores))
        told.total_time_ns = int((time.monotonic() - began) * 1e9)
        for index in sorted(range(len(scores)), key=lambda index: (-scores[index], index)):
            text = texts[index] if first[0].return_text else None
            answer.ranks.add(index=index, score=scores[index], text=text)
        return answer

    # Tokenize.

    async def Tokenize(self, request: tei.EncodeRequest, context: Any) -> tei.EncodeResponse:
        if request.prompt_name:
            raise errors.Unimplemented("tokens are those of the text alone, without a prompt before it")
        native = pb.TokenizeRequest(
            model=self._model(context), texts=[request.inputs], add_special_tokens=request.add_special_tokens
        )
        set_timeout(native, context, 0, "timeout")
        with _named(texts="inputs"):
            found = await self._native.Tokenize(native, context)
        answer = tei.EncodeResponse()
        for token in found.texts[0].tokens:
            if token.special:
                answer.tokens.add(id=token.id, text=await self._special(token.id, found, context), special=True)
            else:
                text = request.inputs[token.start : token.end]
                answer.tokens.add(id=token.id, text=text, start=token.start, stop=token.end)
        return answer

    async def TokenizeStream(
        self, requests: AsyncIterator[tei.EncodeRequest], context: Any
    ) -> AsyncIterator[tei.EncodeResponse]:
        async for answer in self._in_order(self.Tokenize, requests, context):
            yield answer

    async def Decode(self, request: tei.DecodeRequest, context: Any) -> tei.DecodeResponse:
        return tei.DecodeResponse(
            text=await self._text_of(self._model(context), request.ids, request.skip_special_tokens, context)
        )

    async def DecodeStream(
        self, requests: AsyncIterator[tei.DecodeRequest], context: Any
    ) -> AsyncIterator[tei.DecodeResponse]:
        async for answer in self._in_order(self.Decode, requests, context):
            yield answer

    # Helpers.

    async def _text_of(self, model: str, ids: Sequence[int], plain: bool, context: Any) -> str:
        native = pb.TokenizeRequest(model=model)
        set_timeout(native, context, 0, "timeout")
        with _named():
            text: str = await self._native.text_of(native, ids, plain, context)
        return text

    async def _special(self, number: int, found: pb.TokenizeResponse, context: Any) -> str:
        """How a special token is written: asked once for each version. Empty where the engine cannot say."""
        key = found.digest, number
        if key not in self._specials:
            try:
                text = await self._text_of(found.model_version, [number], False, context)
            except errors.TaskNotSupported:
                text = ""
            if len(self._specials) >= MAX_SPECIALS:
                self._specials.clear()
            self._specials[key] = text
        return self._specials[key]

    def _model(self, context: Any) -> str:
        """Which model a call means. Raises InvalidArgument when nothing says so."""
        for key in MODEL_KEYS:
            if found := metadata_value(context, key):
                return found
        if not self._default_model:
            keys = " or ".join(MODEL_KEYS)
            raise errors.InvalidArgument.at(
                MODEL_KEYS[0],
                f"is required: the messages name no model, so metadata {keys} does (or inference.tei_model)",
            )
        return self._default_model

    async def _cut(
        self,
        call: Callable[[Any, Any], Any],
        native: Any,
        request: Any,
        context: Any,
        named: AbstractContextManager[None],
    ) -> Any:
        """The answer of a native call, which cuts a text at its end or not at all. Of a text that may be cut at its
        beginning only, it is asked without: raises Unimplemented if that had been needed."""
        from_left = request.truncation_direction == tei.TRUNCATION_DIRECTION_LEFT
        if request.truncation_direction not in tei.TruncationDirection.values():
            number = request.truncation_direction
            raise errors.InvalidArgument.at("truncation_direction", f"there is no direction {number}")
        native.truncate = request.truncate and not from_left
        native.precision = metadata_value(context, PRECISION_KEY)
        set_timeout(native, context, 0, "timeout")
        try:
            with named:
                return await call(native, context)
        except errors.TextTooLong as error:
            if request.truncate and from_left:
                raise errors.Unimplemented(f"{error.message}; it is cut at its end or not at all here") from error
            raise

    async def _in_order(
        self, answer: Callable[[Any, Any], Any], requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        async for found in in_order(
            requests,
            lambda request: answer(request, context),
            stopping=self._stopping,
            context=context,
            rules=self._rules,
        ):
            yield found


def _named(**names: str) -> AbstractContextManager[None]:
    """Errors with the paths of the foreign request: there is one text, so nobody counts them."""
    told = {"model": MODEL_KEYS[0], "precision": PRECISION_KEY, **names}

    def name_of(path: str) -> str:
        first = path.partition("[")[0]
        return told[first] if first in names else told.get(path, path)

    return fields_named(name_of)


def _vector_bytes(width: int) -> int:
    """What the vector of a token takes in an answer."""
    one = tei.TokenEmbedding(embeddings=[0.0] * width)
    return tei.EmbedAllResponse(token_embeddings=[one]).ByteSize()


def _metadata(found: Any, characters: int) -> tei.Metadata:
    timings = found.timings
    return tei.Metadata(
        compute_chars=characters,
        compute_tokens=found.usage.input_tokens,
        total_time_ns=timings.total.ToNanoseconds(),
        tokenization_time_ns=timings.tokenise.ToNanoseconds(),
        queue_time_ns=max(0, timings.queue.ToNanoseconds()),
        inference_time_ns=timings.compute.ToNanoseconds(),
    )
