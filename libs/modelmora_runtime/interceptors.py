"""What every call goes through: span, caller and role, stop, deadline, bytes in flight, metrics, named errors.

The stack is put around each method once, when its service is mounted, and not as grpc.aio interceptors, which are asked
again for every call. In order:

1. Who calls (Unauthenticated), and may they (PermissionDenied)?
2. Is the platform stopping? Then only its own contexts may still call (ShuttingDown).
3. Is there time left (DeadlineExceeded)? A call without a deadline gets the default one; streams of answers do not.
4. Do the request's bytes fit into the process-wide budget (ResourceExhausted)? Is it a valid message (InvalidArgument)?
5. The servicer answers. A ModelMoraError becomes its status; any other exception INTERNAL with an incident id.
6. Is it for the record (`audit`)? Then it is written down before the caller hears the answer.

Streams are not counted against the byte budget: HTTP/2 flow control holds each to a window and one message. One that
takes more in before it answers counts that itself (`take_bytes`, `add_bytes`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import secrets
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from modelmora.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    MessageTooLarge,
    ModelMoraError,
    ShuttingDown,
    Unimplemented,
)

from modelmora_runtime import audit, auth, status, telemetry
from modelmora_runtime.auth import ANYONE, Authenticator
from modelmora_runtime.calls import LATENCY_SECONDS, ByteBudget, Call, Gate, Method

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from modelmora_runtime.host import Service

log = logging.getLogger(__name__)

_call: ContextVar[Call | None] = ContextVar("modelmora_call", default=None)


def deadline_seconds(context: Any) -> float:
    """Seconds until the caller stops waiting, or a little before, the default applied; infinite for a stream that
    nobody limited."""
    call = _call.get()
    # A task that a call started inherits its variables and may outlive it, hence the comparison.
    if call is not None and call.context is context:
        return max(0.0, call.deadline - monotonic())
    remaining = context.time_remaining()
    return math.inf if remaining is None else float(remaining)


def rounded_up_seconds(told: float) -> float:
    """By how much a caller's own clock may run out before the time it told, in seconds: gRPC's C core, and with it all
    of Python's clients, tells three digits and rounds up, 12.01 s to 12.1 s (its `timeout_encoding.cc`)."""
    return 10.0 ** (math.floor(math.log10(told)) - 2)


def metadata_value(context: Any, key: str) -> str:
    """What came with the call under this key; empty when nothing did, or outside of the stack."""
    call = _call.get()
    value = call.metadata.get(key, "") if call is not None and call.context is context else ""
    return value if isinstance(value, str) else ""


def take_bytes(context: Any, count: int) -> None:
    """Counts bytes that a stream takes in until it says otherwise, or ends. Raises BytesInFlight."""
    call = _call.get()
    if call is not None and call.context is context and call.budget is not None:
        call.budget.take(call, count)


def add_bytes(context: Any, count: int) -> None:
    """Counts bytes that a stream holds more, or (below 0) no longer."""
    call = _call.get()
    if call is not None and call.context is context and call.budget is not None:
        call.budget.add(call, count)


def left_undone(context: Any, why: ModelMoraError) -> None:
    """For a call that tells its caller in its answer what it could not do: the record has it as this failure."""
    call = _call.get()
    if call is not None and call.context is context:
        call.undone = why


class Interceptors:
    """The stack for one server."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        budget: ByteBudget,
        gate: Gate,
        default_deadline_seconds: float,
        max_deadline_seconds: float,
        max_message_bytes: int,
    ) -> None:
        self.gate = gate
        self.budget = budget
        self._authenticator = authenticator
        self._default_deadline_seconds = min(default_deadline_seconds, max_deadline_seconds)
        self._max_deadline_seconds = max_deadline_seconds
        self._max_message_bytes = max_message_bytes
        self._methods: list[Method] = []

    def mount(self, service: Service) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The service's methods by path with the stack around them.

        Raises FailedPrecondition when a method declares no role, or a declaration names no method.
        """
        collected = _Collected()
        service.add(service.servicer, collected)
        found = collected.methods.get(service.full_name)
        if found is None:
            raise FailedPrecondition(f"{service.full_name} is not what its add function adds")
        undeclared, unknown = found.keys() - service.access.keys(), service.access.keys() - found.keys()
        if undeclared or unknown:
            raise FailedPrecondition(
                f"{service.full_name}: "
                + "; ".join(
                    [f"{name} declares no role" for name in sorted(undeclared)]
                    + [f"there is no method {name}" for name in sorted(unknown)]
                )
            )
        mounted = {}
        for name, handler in found.items():
            method = Method(f"/{service.full_name}/{name}", service.access[name], handler)
            if audit.is_audited(method.access, name):
                method.audit = service.audit
            mounted[method.path] = self._around(method)
            self._methods.append(method)
        return mounted

    def _around(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        handler, behaviour = method.handler, method.behaviour
        stream_in, stream_out = handler.request_streaming, handler.response_streaming
        deserializer, write = handler.request_deserializer, handler.response_serializer
        if getattr(behaviour, "__module__", "").endswith("_pb2_grpc"):
            behaviour = _not_offered(method.path)
        elif not (inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)):
            raise FailedPrecondition(f"{method.path} is not async")
        serializer = None if stream_out else write
        run = _streamed(behaviour) if stream_out else behaviour

        async def serve(argument: Any, context: Any) -> Any:
            return await self._serve(method, run, deserializer, serializer, argument, context)

        # Requests and single answers are (de)serialised in the stack: bytes can be counted there, faults named.
        if stream_in and stream_out:
            return grpc.stream_stream_rpc_method_handler(serve, None, write)
        if stream_in:
            return grpc.stream_unary_rpc_method_handler(serve, None, None)
        if stream_out:
            return grpc.unary_stream_rpc_method_handler(serve, None, write)
        return grpc.unary_unary_rpc_method_handler(serve, None, None)

    async def _serve(
        self,
        method: Method,
        run: Callable[[Any, Any], Awaitable[Any]],
        deserializer: Callable[[bytes], Any],
        serializer: Callable[[Any], bytes] | None,
        argument: Any,
        context: Any,
    ) -> Any:
        began = monotonic()
        task = asyncio.current_task()
        assert task is not None
        call = Call(method, context, task)
        call.budget = self.budget
        call.metadata = metadata = dict(context.invocation_metadata() or ())
        span = telemetry.start_span(method.path, parent=metadata.get(telemetry.TRACEPARENT), kind="server")
        telemetry.enter_span(span)
        _call.set(call)
        method.in_flight += 1
        failure: ModelMoraError | None = None
        code = "OK"
        try:
            limit_seconds = self._admit(call, metadata, context, began)
            if method.handler.request_streaming:
                argument = _ParsedStream(deserializer, argument)
            else:
                self.budget.take(call, len(argument))
                argument = _parsed(deserializer, argument)
            if limit_seconds is None:
                answer = await run(argument, context)
            else:
                async with asyncio.timeout(limit_seconds):
                    answer = await run(argument, context)
            if call.audit is not None:
                undone = call.undone
                await self._record(call, argument, answer, undone.status if undone is not None else code, undone)
            if serializer is not None:
                answer = self._serialised(call, serializer, answer)
            return answer
        except ModelMoraError as error:
            # A copy: on the error hang the frames of the call, this one among them. See `_without_frames`.
            failure = error.copy()
            _let_go(error)
        except (grpc.aio.AbortError, grpc.aio.InternalError):
            code = "ABORTED_BY_SERVICER" if context.code() is None else context.code().name
            raise
        except asyncio.CancelledError as error:
            if call.cut:
                task.uncancel()
            if task.cancelling():  # the caller went away or its deadline passed
                code = "CANCELLED"
                self._record_soon(call, argument, code)
                _let_go(error)
                raise
            failure = ShuttingDown(retry_after_seconds=1.0) if call.cut else self._incident(call, error)
        except Exception as error:
            if isinstance(error, TimeoutError) and monotonic() >= call.deadline:
                failure = DeadlineExceeded(f"no answer within {call.deadline - began:g} s")
                _let_go(error)
            else:
                failure = self._incident(call, error)
        finally:
            method.in_flight -= 1
            self.gate.leave(call)
            if call.bytes:
                # Until the answer's bytes have left; this callback runs when the call is over. (Those of gRPC's context
                # keep that in a circle, for the collector to find.)
                task.add_done_callback(lambda _: self.budget.release(call))
            code = failure.status if failure is not None else code
            method.count(code, monotonic() - began)
            if span.sampled:
                span.attributes["rpc.grpc.status_code"] = code
            telemetry.finish_span(span, None if code == "OK" else code)
            if failure is None:
                call.end()
        try:
            if call.audit is not None:
                await self._record(call, audit.parsed_request(argument, deserializer), None, code, failure)
        finally:  # the caller may go away while it is written down
            call.end()
        try:
            await status.abort(context, failure)
        except grpc.aio.AbortError as aborted:
            task.add_done_callback(partial(_without_frames, aborted))
            raise

    async def _record(self, call: Call, request: Any, answer: Any, code: str, failure: ModelMoraError | None) -> None:
        """Step 6, once for each call."""
        record, call.audit = call.audit, None
        if record is not None and (entry := _entry(call, request, answer, code, failure)) is not None:
            await record.record(entry)

    def _record_soon(self, call: Call, request: Any, code: str) -> None:
        record, call.audit = call.audit, None
        if record is not None and (entry := _entry(call, request, None, code, None)) is not None:
            record.record_soon(entry)

    def _admit(self, call: Call, metadata: Mapping[str, Any], context: Any, now: float) -> float | None:
        """Steps 1 to 3; returns after how many seconds we must end the call ourselves, None if gRPC will."""
        access = call.method.access
        if access is not ANYONE:
            call.caller = self._authenticator.authenticate(metadata)
            call.caller.require(access)
        auth.set_caller(call.caller)
        self.gate.enter(call)
        remaining = context.time_remaining()
        if remaining is not None:
            if remaining <= 0:
                raise DeadlineExceeded("the deadline had passed before the call arrived")
            remaining -= rounded_up_seconds(remaining)
        if call.method.handler.response_streaming:
            call.deadline = math.inf if remaining is None else now + remaining
            return None
        if remaining is not None and remaining <= self._max_deadline_seconds:
            call.deadline = now + remaining
            return None
        limit = self._default_deadline_seconds if remaining is None else self._max_deadline_seconds
        call.deadline = now + limit
        return limit

    def _serialised(self, call: Call, serializer: Callable[[Any], bytes], answer: Any) -> bytes:
        raw = serializer(answer)
        if len(raw) > self._max_message_bytes:
            raise MessageTooLarge(
                f"the answer has {len(raw)} bytes; the limit is {self._max_message_bytes} (setting "
                "platform.max_message_bytes)",
                limit_bytes=self._max_message_bytes,
            )
        self.budget.add(call, len(raw))
        return raw

    def _incident(self, call: Call, error: BaseException) -> InternalError:
        incident = secrets.token_hex(6)
        log.error(
            "%s failed, incident %s",
            call.method.path,
            incident,
            exc_info=error,
            extra=telemetry.fields(incident=incident, method=call.method.path),
        )
        return InternalError(f"something went wrong inside ModelMora, incident {incident}", incident=incident)

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: two hosts in one process (tests) share the registry."""
        return []

    def collect(self) -> Iterable[Metric]:
        """For the Prometheus registry."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        calls = CounterMetricFamily("modelmora_requests", "Calls answered.", labels=["method", "code"])
        inside = GaugeMetricFamily("modelmora_requests_in_flight", "Calls running.", labels=["method"])
        seconds = HistogramMetricFamily("modelmora_request_seconds", "Time from arrival to answer.", labels=["method"])
        for method in self._methods:
            name = method.path[1:]
            inside.add_metric([name], method.in_flight)
            for code, count in method.codes.items():
                calls.add_metric([name, code], count)
            total, buckets = 0, []
            for bound, count in zip((*map(str, LATENCY_SECONDS), "+Inf"), method.buckets, strict=True):
                total += count
                buckets.append((bound, total))
            if total:
                seconds.add_metric([name], buckets, method.seconds)
        used = GaugeMetricFamily("modelmora_bytes_in_flight", "Bytes of requests and answers in flight.")
        used.add_metric([], self.budget.used_bytes)
        limit = GaugeMetricFamily("modelmora_bytes_in_flight_limit", "Their budget.")
        limit.add_metric([], self.budget.limit_bytes)
        return [calls, inside, seconds, used, limit]


def _without_frames(error: BaseException, _: object) -> None:
    """gRPC keeps the error that ended a call beside the call, which stands in its frames: a circle with all that the
    call had, for the collector to find. It looks seldom (`process`), what it once has missed stays for long, and a
    circle with pydantic's findings in it, which it cannot look into, stayed for ever."""
    error.__traceback__ = None


def _let_go(error: BaseException | None) -> None:
    """On an error hang the frames that it came through, and one of them may have kept it: SQLAlchemy's do when a
    statement is cancelled, and whoever has waited for a task has the task, which has the error. That is a circle with
    all that the call had, its connection to the database too, and calls that fail come by the thousand."""
    while error is not None and error.__traceback__ is not None:
        error.with_traceback(None)
        error = error.__cause__ or error.__context__


def _entry(call: Call, request: Any, answer: Any, code: str, failure: ModelMoraError | None) -> audit.Entry | None:
    return audit.entry_of(call.method.path[1:], call.caller, request, answer, code, failure, call.context.peer() or "")


def _not_offered(path: str) -> Callable[[Any, Any], Awaitable[Any]]:
    """Answers for a method that the servicer inherits from the generated code: declared, and not offered here yet."""

    async def refuse(request: Any, context: Any) -> Any:
        raise Unimplemented(f"this server does not offer {path[1:]}")

    return refuse


def _parsed(deserializer: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return deserializer(raw)
    except DecodeError as error:
        raise InvalidArgument(f"the request is not a valid message: {error}") from error


class _ParsedStream:
    """The messages of a stream of requests."""

    def __init__(self, deserializer: Callable[[bytes], Any], raw: AsyncIterable[bytes]) -> None:
        self._deserializer = deserializer
        self._raw = aiter(raw)

    def __aiter__(self) -> _ParsedStream:
        return self

    async def __anext__(self) -> Any:
        return _parsed(self._deserializer, await anext(self._raw))


def _streamed(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Awaitable[None]]:
    """Runs a method with a stream of answers, whether it yields them or writes them itself."""

    async def run(request: Any, context: Any) -> None:
        answers = behaviour(request, context)
        if inspect.isawaitable(answers):
            await answers
            return
        async with aclosing(answers):
            async for answer in answers:
                await context.write(answer)

    return run


class _Collected:
    """Takes a service's handlers out of its generated add function."""

    def __init__(self) -> None:
        self.methods: dict[str, Mapping[str, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        pass

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.methods[service] = handlers
