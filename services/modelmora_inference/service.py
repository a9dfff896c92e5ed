"""The RPCs of inference."""

from __future__ import annotations

import asyncio
import sys
import time
from array import array
from typing import Any

from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.errors import FieldViolation
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc
from modelmora_runtime.auth import current_caller
from modelmora_runtime.interceptors import deadline_seconds
from modelmora_runtime.telemetry import current_span

from modelmora_inference.catalog import Catalog
from modelmora_inference.dispatcher import Call, Dispatcher, Dispatchers
from modelmora_inference.domain import (
    MAX_TEXT_CHARACTERS,
    MAX_TEXTS,
    MAX_TIMEOUT_SECONDS,
    Priority,
    VersionFacts,
)

MAX_REFERENCE_CHARACTERS = 400
MAX_VIOLATIONS = 10
"""More than so many wrong fields are not named one by one."""
ANSWER_BEFORE_SECONDS = 0.02
"""An expired call is answered so long before the caller's clock runs out (or a tenth of its time, if that is less): the
answer should still find somebody who reads it."""

_PRIORITIES = {
    common_pb2.PRIORITY_UNSPECIFIED: Priority.MEDIUM,
    common_pb2.PRIORITY_LOW: Priority.LOW,
    common_pb2.PRIORITY_MEDIUM: Priority.MEDIUM,
    common_pb2.PRIORITY_HIGH: Priority.HIGH,
}
_BYTES = inference_pb2.VECTOR_ENCODING_BYTES
_ENCODINGS = frozenset(inference_pb2.VectorEncoding.values())


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Embed: catalog → queue → dispatcher → worker. See dispatcher.py for the life of a call in between."""

    def __init__(self, catalog: Catalog, dispatchers: Dispatchers, *, max_call_bytes: int) -> None:
        self._catalog = catalog
        self._dispatchers = dispatchers
        self._max_call_bytes = max_call_bytes

    async def Embed(self, request: inference_pb2.EmbedRequest, context: Any) -> inference_pb2.EmbedResponse:
        arrival = time.monotonic()
        violations = _violations(request, self._max_call_bytes)
        if violations:
            raise errors.InvalidArgument(
                "; ".join(f"{violation.field}: {violation.description}" for violation in violations), fields=violations
            )
        seconds = deadline_seconds(context)
        seconds -= min(ANSWER_BEFORE_SECONDS, seconds / 10)
        if request.HasField("timeout"):
            seconds = min(seconds, request.timeout.seconds + request.timeout.nanos / 1e9)
        deadline = arrival + min(seconds, MAX_TIMEOUT_SECONDS)
        priority = _PRIORITIES[request.priority]
        status = "CANCELLED"
        try:
            response = await self._embed_resolved(request, priority, arrival, deadline)
            status = "OK"
        except errors.ModelMoraError as error:
            status = error.status
            raise
        finally:
            self._dispatchers.counts.ended(priority, status)
        return response

    async def GetQueue(self, request: inference_pb2.GetQueueRequest, context: Any) -> inference_pb2.GetQueueResponse:
        if request.model:
            facts = await self._find(request.model, time.monotonic() + min(deadline_seconds(context), 5.0))
            one = self._dispatchers.get(facts.name)
            if one is None:
                return inference_pb2.GetQueueResponse(queues=[inference_pb2.Queue(model_version=facts.name)])
            return inference_pb2.GetQueueResponse(queues=[_queue(one)])
        return inference_pb2.GetQueueResponse(queues=[_queue(dispatcher) for dispatcher in self._dispatchers])

    async def ExplainRequest(
        self, request: inference_pb2.ExplainRequestRequest, context: Any
    ) -> inference_pb2.ExplainRequestResponse:
        raise errors.RequestNotFound(request_id=request.request_id)

    async def SetTenantWeight(
        self, request: inference_pb2.SetTenantWeightRequest, context: Any
    ) -> inference_pb2.SetTenantWeightResponse:
        raise errors.RequestNotFound(request_id=request.tenant)

    async def _embed_resolved(
        self, request: inference_pb2.EmbedRequest, priority: Priority, arrival: float, deadline: float
    ) -> inference_pb2.EmbedResponse:
        facts = self._catalog.known(request.model) or await self._find(request.model, deadline)
        try:
            return await self._embed(request, facts, priority, arrival, deadline)
        except errors.NotFound:
            # The version is gone; by now the reference may mean another one.
            self._catalog.forget(request.model)
            again = await self._find(request.model, deadline)
            if again.name == facts.name:
                raise
        return await self._embed(request, again, priority, arrival, deadline)

    async def _embed(
        self,
        request: inference_pb2.EmbedRequest,
        facts: VersionFacts,
        priority: Priority,
        arrival: float,
        deadline: float,
    ) -> inference_pb2.EmbedResponse:
        if facts.task_type != common_pb2.TASK_TYPE_TXT2EMBED:
            task = common_pb2.TaskType.Name(facts.task_type).removeprefix("TASK_TYPE_").lower()
            raise errors.TaskNotSupported(f"{facts.name} does {task}, not txt2embed", model_version=facts.name)
        dispatcher = self._dispatchers.get(facts.name)
        widest = facts.embedding_dimensions or (dispatcher.embedding_dimensions if dispatcher else 0)
        if widest and request.dimensions > widest:
            raise errors.InvalidArgument.at("dimensions", f"at most {widest}, the model's own number")
        call = Call(
            priority=priority,
            tenant=current_caller().tenant,
            arrival=arrival,
            deadline=deadline,
            normalize=request.normalize if request.HasField("normalize") else True,
            truncate=request.truncate if request.HasField("truncate") else True,
            dimensions=request.dimensions,
            exact=request.precision == "exact",
            done=asyncio.get_running_loop().create_future(),
        )
        dispatcher = self._dispatchers.submit(facts.name, call, request.texts)
        try:
            await call.done
        except asyncio.CancelledError:
            dispatcher.withdraw(call)
            raise
        span = current_span()
        if span is not None and span.sampled:
            span.attributes |= {
                "modelmora.model_version": facts.name,
                "modelmora.texts": len(request.texts),
                "modelmora.queue_seconds": call.started - call.arrival,
                "modelmora.compute_seconds": call.compute_seconds,
            }
        return _response(call, facts, request.encoding == _BYTES)

    async def _find(self, reference: str, deadline: float) -> VersionFacts:
        if len(reference) > MAX_REFERENCE_CHARACTERS:
            raise errors.InvalidArgument.at("model", f"at most {MAX_REFERENCE_CHARACTERS} characters")
        try:
            return await self._catalog.find(reference, deadline - time.monotonic())
        except errors.InvalidArgument as error:
            description = error.fields[0].description if error.fields else error.message
            raise errors.InvalidArgument.at("model", description) from error


def _violations(request: inference_pb2.EmbedRequest, max_call_bytes: int) -> list[FieldViolation]:
    found: list[FieldViolation] = []
    if not request.model:
        found.append(FieldViolation("model", "is required"))
    texts = request.texts
    if not 1 <= len(texts) <= MAX_TEXTS:
        found.append(FieldViolation("texts", f"1 to {MAX_TEXTS} texts, not {len(texts)}"))
    else:
        size = 0
        for index, text in enumerate(texts):
            size += len(text)
            if not text or text.isspace():
                found.append(FieldViolation(f"texts[{index}]", "is empty or only white space"))
            elif len(text) > MAX_TEXT_CHARACTERS:
                found.append(
                    FieldViolation(f"texts[{index}]", f"has {len(text)} characters, at most {MAX_TEXT_CHARACTERS}")
                )
            if len(found) >= MAX_VIOLATIONS:
                break
        if size > max_call_bytes // 4 and (size := sum(len(text.encode()) for text in texts)) > max_call_bytes:
            found.append(FieldViolation("texts", f"{size} bytes in one call, at most {max_call_bytes}"))
    if request.HasField("dimensions") and request.dimensions < 1:
        found.append(FieldViolation("dimensions", "at least 1"))
    if request.priority not in _PRIORITIES:
        found.append(FieldViolation("priority", f"there is no priority {request.priority}"))
    if request.encoding not in _ENCODINGS:
        found.append(FieldViolation("encoding", f"there is no encoding {request.encoding}"))
    if request.precision not in ("", "exact"):
        found.append(FieldViolation("precision", "exact, or nothing"))
    if request.HasField("timeout"):
        seconds = request.timeout.seconds + request.timeout.nanos / 1e9
        if not 0 <= request.timeout.nanos < 10**9:
            found.append(FieldViolation("timeout", "nanos must be 0 to 999,999,999"))
        elif not 0 < seconds <= MAX_TIMEOUT_SECONDS:
            found.append(FieldViolation("timeout", f"above 0 and at most {MAX_TIMEOUT_SECONDS:g} s"))
    return found


def _response(call: Call, facts: VersionFacts, as_bytes: bool) -> inference_pb2.EmbedResponse:
    now = time.monotonic()
    rows = call.rows
    width = len(rows[0])
    if any(len(row) != width for row in rows):
        raise errors.InternalError("the worker answered with rows of different lengths")
    response = inference_pb2.EmbedResponse(model_version=facts.name, digest=facts.digest, engine_profile=call.profile)
    embeddings = response.embeddings
    if as_bytes:
        for tokens, truncated in zip(call.input_tokens, call.truncated, strict=True):
            embeddings.add(input_tokens=tokens, truncated=truncated)
        response.vectors.data_type = common_pb2.DATA_TYPE_FP32
        response.vectors.shape.extend((len(rows), width // 4))
        response.vectors.data = rows[0] if len(rows) == 1 else b"".join(rows)
    else:
        for row, tokens, truncated in zip(rows, call.input_tokens, call.truncated, strict=True):
            values = array("f", row)
            if sys.byteorder == "big":
                values.byteswap()
            embeddings.add(input_tokens=tokens, truncated=truncated).values.extend(values.tolist())
    response.usage.input_tokens = sum(call.input_tokens)
    timings = response.timings
    _set(timings.queue, call.started - call.arrival)
    _set(timings.tokenise, call.tokenise_seconds)
    _set(timings.compute, call.compute_seconds)
    _set(timings.total, now - call.arrival)
    return response


def _set(duration: Any, seconds: float) -> None:
    whole = int(seconds)
    duration.seconds = whole
    duration.nanos = int((seconds - whole) * 1e9)


def _queue(dispatcher: Dispatcher) -> inference_pb2.Queue:
    queue = dispatcher.queue
    described = inference_pb2.Queue(
        model_version=dispatcher.version, in_flight=queue.in_flight, drain_rate=queue.drain_rate
    )
    for level in queue.levels(time.monotonic()):
        added = described.levels.add(
            priority=level.priority.value,
            entries=level.entries,
            tokens=level.tokens,
            bytes=level.size_bytes,
        )
        _set(added.oldest_age, level.oldest_age_seconds)
    return described
