"""The RPCs of inference."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.errors import FieldViolation
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc
from modelmora.worker.v1 import worker_pb2
from modelmora_runtime.auth import OPERATORS, SLUG_RULE, Caller, current_caller, may_be_tenant
from modelmora_runtime.interceptors import deadline_seconds, metadata_value
from modelmora_runtime.telemetry import current_span

from modelmora_inference.cache import ResponseCache
from modelmora_inference.catalog import Catalog
from modelmora_inference.checks import (
    MAX_PROMPT_NAME_CHARACTERS,
    MAX_REQUEST_ID_CHARACTERS,
    PRIORITIES,
    invalid,
    task_word,
    wrong_call,
    wrong_task,
    wrong_texts,
)
from modelmora_inference.deadlines import early_seconds
from modelmora_inference.dispatcher import Call, Dispatcher, Dispatchers
from modelmora_inference.domain import (
    MAX_TIMEOUT_SECONDS,
    Place,
    Priority,
    VersionFacts,
)
from modelmora_inference.job_service import JobNews, JobRpcs
from modelmora_inference.reuse import Flight, Reuse, identity, part_of
from modelmora_inference.store import JobStore
from modelmora_inference.stream_service import StreamRpcs, StreamRules
from modelmora_inference.task_service import TaskRpcs
from modelmora_inference.token_service import TokenWork
from modelmora_inference.weight_store import TenantWeights

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
READY_IN_KEY = "modelmora-ready-in"
"""Trailing metadata of a call that met a cold model: the estimate in seconds."""
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0

_BYTES = inference_pb2.VECTOR_ENCODING_BYTES
_ENCODINGS = frozenset(inference_pb2.VectorEncoding.values())
_FAIL_FAST = inference_pb2.COLD_POLICY_FAIL_FAST


@dataclass(slots=True)
class _Asked:
    """One call of a task as it came in. Times are on the monotonic clock, in seconds."""

    request: Any
    """EmbedRequest, or that of another task: they share the fields of every call."""
    context: Any
    ask: Callable[[_Asked, VersionFacts, bool], Awaitable[Any]]
    """Asks a version; the answer."""
    fallback_model: str
    priority: Priority
    arrival: float
    deadline: float
    request_id: str
    """Empty: nobody will ask."""
    loads_nothing: bool = False
    """Nothing is loaded for it: the fallback is asked, or may be."""


class InferenceService(StreamRpcs, TaskRpcs, TokenWork, JobRpcs, inference_pb2_grpc.InferenceServiceServicer):
    """Embed: catalog → queue → dispatcher → worker. See dispatcher.py for the life of a call in between."""

    def __init__(
        self,
        catalog: Catalog,
        dispatchers: Dispatchers,
        *,
        is_loaded: Callable[[str], Awaitable[bool]],
        max_call_bytes: int,
        stopping: asyncio.Event,
        jobs: JobStore | None = None,
        job_news: JobNews | None = None,
        stream_rules: StreamRules | None = None,
        cache: ResponseCache | None = None,
        weights: TenantWeights | None = None,
    ) -> None:
        """`is_loaded` asks lifecycle whether a version is in memory, without loading it; `jobs`: None without a
        database."""
        self._catalog = catalog
        self._dispatchers = dispatchers
        self._is_loaded = is_loaded
        self._max_call_bytes = max_call_bytes
        self._stopping = stopping
        self._jobs = jobs
        self._job_news = job_news or JobNews()
        self._stream_rules = stream_rules or StreamRules()
        self._streams = {}
        self._cache = cache
        self._flights: dict[bytes, Flight] = {}
        """With a cache: what is computed now, by what is asked."""
        self._weights = weights or TenantWeights(dispatchers.rules.weights, dispatchers.weights, None)

    async def Embed(self, request: inference_pb2.EmbedRequest, context: Any) -> inference_pb2.EmbedResponse:
        arrival = time.monotonic()
        violations = _violations(request, self._max_call_bytes)
        if violations:
            raise invalid(violations)
        response: inference_pb2.EmbedResponse = await self._answer(request, context, arrival, self._embed)
        return response

    async def _answer(
        self, request: Any, context: Any, arrival: float, ask: Callable[[_Asked, VersionFacts, bool], Awaitable[Any]]
    ) -> Any:
        """The answer of the version that a call means, or of its fallback."""
        seconds = deadline_seconds(context)
        seconds -= early_seconds(seconds, self._dispatchers.lateness.seconds(arrival))
        if request.HasField("timeout"):
            seconds = min(seconds, request.timeout.seconds + request.timeout.nanos / 1e9)
        deadline = arrival + min(seconds, MAX_TIMEOUT_SECONDS)
        priority = PRIORITIES[request.priority]
        fallback = "" if isinstance(request, inference_pb2.TokenizeRequest) else request.fallback_model
        asked = _Asked(request, context, ask, fallback, priority, arrival, deadline, _request_id(request, context))
        status = "CANCELLED"
        try:
            if asked.fallback_model:
                response = await self._ask_or_fall_back(asked)
            else:
                response = await self._ask_resolved(asked, request.cold_policy == _FAIL_FAST)
            status = "OK"
        except errors.ModelMoraError as error:
            status = error.status
            raise
        finally:
            self._dispatchers.counts.ended(priority, status)
        return response

    async def GetQueue(self, request: inference_pb2.GetQueueRequest, context: Any) -> inference_pb2.GetQueueResponse:
        caller = current_caller()
        if request.model:
            facts = await self._find(request.model, time.monotonic() + min(deadline_seconds(context), 5.0))
            one = self._dispatchers.get(facts.name)
            if one is None:
                return inference_pb2.GetQueueResponse(queues=[inference_pb2.Queue(model_version=facts.name)])
            return inference_pb2.GetQueueResponse(queues=[_queue(one, caller)])
        return inference_pb2.GetQueueResponse(queues=[_queue(dispatcher, caller) for dispatcher in self._dispatchers])

    async def ExplainRequest(
        self, request: inference_pb2.ExplainRequestRequest, context: Any
    ) -> inference_pb2.ExplainRequestResponse:
        if not 1 <= len(request.request_id) <= MAX_REQUEST_ID_CHARACTERS:
            raise errors.InvalidArgument.at("request_id", f"1 to {MAX_REQUEST_ID_CHARACTERS} characters")
        caller = current_caller()
        asked = self._dispatchers.asked
        found = asked.get((caller.tenant, request.request_id))
        if found is None and _runs_it(caller):
            found = next((entry for (_, name), entry in asked.items() if name == request.request_id), None)
        if found is None:
            raise errors.RequestNotFound(request_id=request.request_id)
        return _explained(*found)

    async def SetTenantWeight(
        self, request: inference_pb2.SetTenantWeightRequest, context: Any
    ) -> inference_pb2.SetTenantWeightResponse:
        weight = request.weight if request.HasField("weight") else 1.0
        violations = []
        if not request.tenant:
            violations.append(FieldViolation("tenant", "is required"))
        elif not may_be_tenant(request.tenant):
            violations.append(FieldViolation("tenant", f"{SLUG_RULE}; of a part of a tenant, two such with / between"))
        if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
            violations.append(FieldViolation("weight", f"{MIN_WEIGHT:g} to {MAX_WEIGHT:g}"))
        if violations:
            raise invalid(violations)
        await self._weights.set(request.tenant, weight)
        log.info("tenant %s has weight %g from now on", request.tenant, weight)
        return inference_pb2.SetTenantWeightResponse(tenant=request.tenant, weight=weight)

    async def ListTenantWeights(
        self, request: inference_pb2.ListTenantWeightsRequest, context: Any
    ) -> inference_pb2.ListTenantWeightsResponse:
        return inference_pb2.ListTenantWeightsResponse(
            weights=[
                inference_pb2.TenantWeight(tenant=tenant, weight=weight, changed=changed)
                for tenant, weight, changed in self._weights.listed()
            ]
        )

    async def _ask_or_fall_back(self, asked: _Asked) -> Any:
        """While the model is cold its fallback answers, if that is in memory. The model is loaded for later calls once
        that is done: who goes away before has loaded nothing."""
        request = asked.request
        main = self._catalog.known(request.model) or await self._find(request.model, asked.deadline)
        other = await self._find(asked.fallback_model, asked.deadline, "fallback_model")
        if other.task_type != main.task_type:
            tasks = f"{task_word(other.task_type)}, not {task_word(main.task_type)}"
            raise errors.TaskNotSupported(f"fallback_model: {other.name} does {tasks}", model_version=other.name)
        careful = replace(asked, loads_nothing=True)
        try:
            return await self._ask_resolved(careful, True)
        except errors.ModelLoading as loading:
            if other.name != main.name and await self._serves(other.name):
                _tell_ready_in(asked.context, loading.retry_after_seconds)
                try:
                    answer = await asked.ask(careful, other, True)
                except errors.ModelLoading:
                    pass  # it has just been evicted
                except errors.ModelMoraError:
                    self._dispatchers.load_later(main.name)
                    raise
                else:
                    self._dispatchers.load_later(main.name)
                    return answer
        return await self._ask_resolved(asked, request.cold_policy == _FAIL_FAST)

    async def _serves(self, version: str) -> bool:
        dispatcher = self._dispatchers.get(version)
        return (dispatcher is not None and dispatcher.replicas > 0) or await self._is_loaded(version)

    async def _ask_resolved(self, asked: _Asked, if_loaded: bool) -> Any:
        reference = asked.request.model
        facts = self._catalog.known(reference) or await self._find(reference, asked.deadline)
        try:
            return await asked.ask(asked, facts, if_loaded)
        except errors.NotFound:
            # The version is gone; by now the reference may mean another one.
            self._catalog.forget(reference)
            again = await self._find(reference, asked.deadline)
            if again.name == facts.name:
                raise
        return await asked.ask(asked, again, if_loaded)

    async def _embed(self, asked: _Asked, facts: VersionFacts, if_loaded: bool) -> inference_pb2.EmbedResponse:
        request = asked.request
        if facts.task_type != common_pb2.TASK_TYPE_TXT2EMBED:
            raise wrong_task(facts, common_pb2.TASK_TYPE_TXT2EMBED)
        dispatcher = self._dispatchers.get(facts.name)
        widest = facts.embedding_dimensions or (dispatcher.embedding_dimensions if dispatcher else 0)
        if widest and request.dimensions > widest:
            raise errors.InvalidArgument.at("dimensions", f"at most {widest}, the model's own number")
        call = Call(
            priority=asked.priority,
            tenant=current_caller().tenant,
            arrival=asked.arrival,
            deadline=asked.deadline,
            normalize=request.normalize if request.HasField("normalize") else True,
            truncate=request.truncate if request.HasField("truncate") else True,
            dimensions=request.dimensions,
            prompt=request.prompt_name,
            exact=request.precision == "exact",
            done=asyncio.get_running_loop().create_future(),
            if_loaded=if_loaded,
            loads_nothing=asked.loads_nothing,
        )
        await self._run(asked, facts, call, request.texts)
        return _response(call, facts, request.encoding == _BYTES)

    async def _run(
        self,
        asked: _Asked,
        facts: VersionFacts,
        call: Call,
        inputs: Sequence[str] | Sequence[worker_pb2.TextEntry],
    ) -> None:
        """Has a call answered, what was computed before from the cache; its entries leave the queue when the caller
        hangs up."""
        if self._cache is None:
            await self._compute(asked, facts, call, inputs)
            return
        began = time.monotonic()
        reuse = self._known(self._cache, facts, call, inputs)
        if not reuse.missing:
            self._answer_known(facts, call, reuse, began)
            return
        asks = identity(facts, call, inputs)
        alone = False
        while not alone and (same := self._flights.get(asks)) is not None and same.serves(call):
            alone = not await self._wait_for(same, asked, call)
            began = time.monotonic()
            reuse = self._known(self._cache, facts, call, inputs)
            if not reuse.missing:
                self._answer_known(facts, call, reuse, began)
                return
        counts = self._dispatchers.counts
        looked_seconds, kept_seconds = time.monotonic() - began, 0.0
        computed = call
        if reuse.found:
            computed = part_of(call, reuse.missing, asyncio.get_running_loop().create_future())
        flight = self._flights[asks] = Flight(computed)
        try:
            some: Any = inputs if computed is call else [inputs[index] for index in reuse.missing]
            await self._compute(asked, facts, computed, some)
            ended = time.monotonic()
            reuse.keep(computed, reuse.missing)
            kept_seconds = time.monotonic() - ended
        except (asyncio.CancelledError, errors.DeadlineExceeded):
            flight.left = True
            raise
        finally:
            flight.over.set()
            if self._flights.get(asks) is flight:
                del self._flights[asks]
        counts.of(facts.name).missed(looked_seconds + kept_seconds)
        if computed is call:
            counts.missed_inputs += len(inputs)
        elif reuse.is_of_the_same_maker(computed):
            reuse.fill(call, computed)
            counts.cached_inputs += reuse.found
            counts.missed_inputs += len(reuse.missing)
        else:
            await self._compute(asked, facts, call, inputs)
            counts.missed_inputs += len(inputs)
            reuse.keep(call, range(len(inputs)))

    def _known(
        self,
        cache: ResponseCache,
        facts: VersionFacts,
        call: Call,
        inputs: Sequence[str] | Sequence[worker_pb2.TextEntry],
    ) -> Reuse:
        dispatcher = self._dispatchers.get(facts.name)
        return Reuse(cache, facts, call, inputs, dispatcher.profiles if dispatcher is not None else ())

    def _answer_known(self, facts: VersionFacts, call: Call, reuse: Reuse, began: float) -> None:
        """A call of which everything was found."""
        counts = self._dispatchers.counts
        reuse.fill(call, None)
        counts.cached_inputs += reuse.found
        now = time.monotonic()
        counts.of(facts.name).cached(now - call.arrival, call.started - call.arrival, now - began, time.time())

    async def _wait_for(self, same: Flight, asked: _Asked, call: Call) -> bool:
        """Waits for another call that asks the same; who explains this one explains the other meanwhile. Whether that
        one only left: then one of those who waited for it goes on for all."""
        told, name, owner = self._dispatchers.asked, (call.tenant, asked.request_id), same.call.owner
        found = (owner, same.call) if owner is not None and asked.request_id else None
        if found is not None:
            told.setdefault(name, found)
        try:
            left = await same.wait(call)
        finally:
            if told.get(name) is found:
                told.pop(name, None)
        _tell_ready_in(asked.context, same.call.ready_in_seconds)
        return left

    async def _compute(
        self,
        asked: _Asked,
        facts: VersionFacts,
        call: Call,
        inputs: Sequence[str] | Sequence[worker_pb2.TextEntry],
    ) -> None:
        """Has a call answered by a worker."""
        dispatchers = self._dispatchers
        try:
            dispatcher = dispatchers.submit(facts.name, call, inputs)
        except errors.ModelLoading:
            _tell_ready_in(asked.context, call.ready_in_seconds)
            raise
        found, name = (dispatcher, call), (call.tenant, asked.request_id)
        if asked.request_id:
            dispatchers.asked[name] = found
        try:
            await call.done
        except asyncio.CancelledError:
            dispatcher.withdraw(call)
            dispatchers.counts.wasted_compute_seconds += call.spent_seconds
            raise
        except errors.DeadlineExceeded:
            dispatchers.counts.wasted_compute_seconds += call.spent_seconds
            raise
        finally:
            if asked.request_id and dispatchers.asked.get(name) is found:
                del dispatchers.asked[name]
            if call.ready_in_seconds is not None:
                _tell_ready_in(asked.context, call.ready_in_seconds)
        span = current_span()
        if span is not None and span.sampled:
            span.attributes |= {
                "modelmora.model_version": facts.name,
                "modelmora.texts": len(inputs),
                "modelmora.queue_seconds": call.started - call.arrival,
                "modelmora.compute_seconds": call.compute_seconds,
            }

    def _wrong_embed(self, request: inference_pb2.EmbedRequest) -> list[FieldViolation]:
        return _violations(request, self._max_call_bytes)

    async def _find(self, reference: str, deadline: float, field: str = "model") -> VersionFacts:
        try:
            return await self._catalog.find(reference, deadline - time.monotonic())
        except errors.InvalidArgument as error:
            description = error.fields[0].description if error.fields else error.message
            raise errors.InvalidArgument.at(field, description) from error
        except errors.NotFound as error:
            if field != "model":
                error.message = f"{field}: {error.message}"
            raise


def _request_id(request: Any, context: Any) -> str:
    return request.request_id or metadata_value(context, REQUEST_ID_KEY)[:MAX_REQUEST_ID_CHARACTERS]


def _tell_ready_in(context: Any, seconds: float | None) -> None:
    if seconds is not None:
        context.set_trailing_metadata(((READY_IN_KEY, f"{seconds:.3f}"),))


def _runs_it(caller: Caller) -> bool:
    """Whether the caller may see what other tenants do."""
    return not caller.roles.isdisjoint(OPERATORS)


def _violations(request: inference_pb2.EmbedRequest, max_call_bytes: int) -> list[FieldViolation]:
    found = [] if request.model else [FieldViolation("model", "is required")]
    found += wrong_texts("texts", request.texts, max_call_bytes)
    if request.HasField("dimensions") and request.dimensions < 1:
        found.append(FieldViolation("dimensions", "at least 1"))
    if len(request.prompt_name) > MAX_PROMPT_NAME_CHARACTERS:
        found.append(FieldViolation("prompt_name", f"at most {MAX_PROMPT_NAME_CHARACTERS} characters"))
    if request.encoding not in _ENCODINGS:
        found.append(FieldViolation("encoding", f"there is no encoding {request.encoding}"))
    return found + wrong_call(request)


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
    response.usage.cached_inputs = call.cached
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


def _queue(dispatcher: Dispatcher, caller: Caller) -> inference_pb2.Queue:
    queue, now = dispatcher.queue, time.monotonic()
    described = inference_pb2.Queue(
        model_version=dispatcher.version,
        in_flight=queue.in_flight,
        abandoned=queue.abandoned,
        drain_rate=queue.drain_rate,
        replicas=dispatcher.replicas,
    )
    ready_in = dispatcher.ready_in(now)
    if ready_in is not None:
        _set(described.ready_in, ready_in)
    sees_all = _runs_it(caller)
    for level in queue.levels(now):
        added = described.levels.add(
            priority=level.priority.value,
            entries=level.entries,
            tokens=level.tokens,
            bytes=level.size_bytes,
        )
        _set(added.oldest_age, level.oldest_age_seconds)
        for one in level.tenants:
            if sees_all or one.tenant == caller.tenant:
                tenant = added.tenants.add(
                    tenant=one.tenant,
                    weight=one.weight,
                    entries=one.entries,
                    tokens=one.tokens,
                    bytes=one.size_bytes,
                )
                _set(tenant.oldest_age, one.oldest_age_seconds)
    return described


def _explained(dispatcher: Dispatcher, call: Call) -> inference_pb2.ExplainRequestResponse:
    queue, now = dispatcher.queue, time.monotonic()
    waiting = [entry for entry in call.entries if entry.place is Place.WAITING]
    running = sum(entry.place is Place.RUNNING for entry in call.entries)
    described = inference_pb2.ExplainRequestResponse(
        model_version=dispatcher.version,
        priority=common_pb2.Priority.Name(call.priority.value),
        tenant=call.tenant,
        waiting_entries=len(waiting),
        running_entries=running,
        answered_entries=len(call.entries) - len(waiting) - running,
    )
    _set(described.age, now - call.arrival)
    _set(described.time_left, max(0.0, call.deadline - now))
    if not waiting:
        described.place = inference_pb2.REQUEST_PLACE_RUNNING
        described.reason = "it is on a worker"
        return described
    ahead = queue.ahead(waiting[0], now)
    described.entries_ahead, described.tokens_ahead = ahead.entries, ahead.tokens
    if not dispatcher.replicas:
        described.place = inference_pb2.REQUEST_PLACE_LOADING
        described.reason = "it waits for the model to be loaded"
        ready_in = dispatcher.ready_in(now)
        if ready_in is not None:
            described.reason += f", about {ready_in:.1f} s more"
            _set(described.starts_in, ready_in)
        return described
    described.place = inference_pb2.REQUEST_PLACE_WAITING
    if waiting[0].suspect:
        described.reason = "a worker failed while it ran: it waits for one that is empty, to be tried alone"
    elif ahead.entries:
        described.reason = f"it waits for its turn: {ahead.entries} texts with {ahead.tokens} tokens go before it"
    else:
        described.reason = "it is next: it waits for a place on a worker"
    if queue.pace:
        _set(described.starts_in, queue.ahead(waiting[-1], now).entries / queue.pace)
    return described
