"""What the protocols of others share: their priorities and times as ours, our errors in their words, streams in order.

A foreign call becomes a native request, which the native servicer answers in this process: queue, batches, quotas,
deadlines, cancellation, traces and counts are those of every other call.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.errors import FieldViolation
from modelmora_runtime.interceptors import add_bytes, deadline_seconds, take_bytes

from modelmora_inference.domain import MAX_TIMEOUT_SECONDS
from modelmora_inference.stream_service import (
    LONGEST_SECONDS,
    STOP_SECONDS,
    STREAM_BYTES,
    STREAM_INPUTS,
    StreamRules,
    is_behind,
)

log = logging.getLogger(__name__)

DEFAULT_CALL_SECONDS = 60.0
"""So long a call may take for which nobody named a time: streams have no deadline of their own."""

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def priority_of(number: int, field: str) -> common_pb2.Priority:
    """Triton's numbers: 1 is the most urgent, 0 the default; ours are three. Raises InvalidArgument below 0."""
    if number < 0:
        raise errors.InvalidArgument.at(field, f"0 (default), 1 (highest) or more, not {number}")
    levels = {0: common_pb2.PRIORITY_MEDIUM, 1: common_pb2.PRIORITY_HIGH, 2: common_pb2.PRIORITY_MEDIUM}
    return levels.get(number, common_pb2.PRIORITY_LOW)


def set_timeout(request: Any, context: Any, microseconds: int, field: str) -> None:
    """Sets `timeout` of a native request; 0: none was named. Raises InvalidArgument."""
    if not 0 <= microseconds <= MAX_TIMEOUT_SECONDS * 1e6:
        most = int(MAX_TIMEOUT_SECONDS * 1e6)
        raise errors.InvalidArgument.at(field, f"microseconds, 1 to {most}, or 0 for none; not {microseconds}")
    if microseconds:
        request.timeout.FromMicroseconds(microseconds)
    elif deadline_seconds(context) > MAX_TIMEOUT_SECONDS:
        request.timeout.FromMicroseconds(int(DEFAULT_CALL_SECONDS * 1e6))


@contextmanager
def fields_named(name_of: Callable[[str], str]) -> Iterator[None]:
    """Errors of the native call with the paths of the foreign request: `name_of` gives the foreign path of a native
    one."""
    try:
        yield
    except errors.ModelMoraError as error:
        if not error.fields:
            raise
        raise with_fields(error, name_of) from error


def with_fields(error: errors.ModelMoraError, name_of: Callable[[str], str]) -> errors.ModelMoraError:
    """A copy of an error that calls its fields by their foreign names, also where its text tells them."""
    fields, message = [], error.message
    for violation in error.fields:
        name = name_of(violation.field)
        message = message.replace(f"{violation.field}: ", f"{name}: ")
        fields.append(FieldViolation(name, violation.description))
    made = type(error)(message, fields=fields, retry_after_seconds=error.retry_after_seconds)
    made.metadata = error.metadata
    return made


def by_first_part(names: Mapping[str, str]) -> Callable[[str], str]:
    """For fields_named: the first part of a path by another name, the rest as it is."""

    def name_of(path: str) -> str:
        first = re.split(r"[.\[]", path, maxsplit=1)[0]
        return names.get(first, first) + path[len(first) :]

    return name_of


async def in_order(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    *,
    stopping: asyncio.Event,
    context: Any = None,
    rules: StreamRules | None = None,
    inputs_of: Callable[[Request], int] = lambda request: 1,
) -> AsyncIterator[Answer]:
    """Answers the requests of a stream at the same time, as many as `rules` allow; yields the answers in their order.

    It ends like StreamEmbed (see stream_service.py): after the client has closed its side and all is answered; at once,
    with everything withdrawn, when the client cancels; with StreamNotRead when it does not read; with ShuttingDown or
    Unavailable, what is open answered first, when the platform stops, nothing comes, or it has lasted long. The first
    exception of `answer` or of reading ends it too, in its place. With a `context` its bytes count against the budget
    of the process. `inputs_of` says how many places in the queue a request takes.
    """
    calls = _OpenCalls(answer, context, rules or StreamRules(), inputs_of)
    stop = asyncio.ensure_future(stopping.wait())

    def stopped(stop: asyncio.Future[Any]) -> None:
        if not stop.cancelled():
            calls.end(errors.ShuttingDown(retry_after_seconds=1.0))

    stop.add_done_callback(stopped)
    try:
        async for found in calls.serve(requests):
            yield found
    finally:
        stop.cancel()
        await calls.close()


@dataclass(slots=True, eq=False)
class _Call(Generic[Answer]):
    task: asyncio.Future[Answer]
    weight_bytes: int


class _OpenCalls(Generic[Request, Answer]):
    """The calls of one stream. Times are on the loop's clock."""

    def __init__(
        self,
        answer: Callable[[Request], Awaitable[Answer]],
        context: Any,
        rules: StreamRules,
        inputs_of: Callable[[Request], int],
    ) -> None:
        self._answer = answer
        self._context = context
        self._rules = rules
        self._inputs_of = inputs_of
        self._calls: deque[_Call[Answer]] = deque()
        self._withdrawn: list[asyncio.Future[Answer]] = []
        self._unread = False
        """Given up: nothing more is written."""
        self._held_bytes = 0
        self._inputs = 0
        """Of calls that are not computed."""
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._began = self._last_time = self._loop.time()
        self._writing_since: float | None = None
        self._why: errors.ModelMoraError | None = None
        self._reading: asyncio.Future[None] | None = None
        self._task = asyncio.current_task()
        self._timer = self._loop.call_later(rules.idle_seconds, self._look)

    def end(self, why: errors.ModelMoraError) -> None:
        """Reads nothing more; what is open is answered, then this raised."""
        if self._why is None:
            self._why = why
            if self._reading is not None:
                self._reading.cancel()
        if isinstance(why, errors.ShuttingDown):
            self._loop.call_later(STOP_SECONDS, self._leave_if_stuck, self._writing_since)

    def _leave_if_stuck(self, since: float | None) -> None:
        """At a stop: the connection ends anyway."""
        if since is not None and self._writing_since == since and self._task is not None:
            self._task.cancel()

    def _give_up(self) -> None:
        """Withdraws what is open and forgets what is answered, but for the one answer that the transport has."""
        self._unread = True
        self.end(errors.StreamNotRead(retry_after_seconds=1.0))
        while len(self._calls) > 1:
            call = self._calls.pop()
            call.task.cancel()
            self._withdrawn.append(call.task)
            self._weigh(-call.weight_bytes)

    async def serve(self, requests: AsyncIterator[Request]) -> AsyncIterator[Answer]:
        self._reading = reading = asyncio.ensure_future(self._read(requests))
        reading.add_done_callback(lambda _: self._wake.set())
        reading.add_done_callback(_read_or_not)
        while True:
            if self._calls:
                call = self._calls[0]
                found = await call.task
                self._writing_since = self._loop.time()
                yield found
                self._last_time, self._writing_since = self._loop.time(), None
                self._calls.popleft()
                self._weigh(-call.weight_bytes)
                self._room.set()
                if self._unread and self._why is not None:
                    raise self._why
            elif reading.done():
                if self._why is not None:
                    raise self._why
                reading.result()
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    async def close(self) -> None:
        """Withdraws what is open."""
        self._timer.cancel()
        left: list[asyncio.Future[Any]] = [*self._withdrawn, *(call.task for call in self._calls)]
        if self._reading is not None:
            left.append(self._reading)
        running = [task for task in left if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        # How a task ended has its frames, and those have this object: a circle with all that the stream had.
        self._reading = None

    async def _read(self, requests: AsyncIterator[Request]) -> None:
        async for request in requests:
            weight = _size(request)
            if self._context is not None:
                take_bytes(self._context, weight)
            self._held_bytes += weight
            self._last_time = self._loop.time()
            call: _Call[Answer] = _Call(asyncio.get_running_loop().create_future(), weight)
            inputs = self._inputs_of(request)
            self._inputs += inputs
            call.task = asyncio.ensure_future(self._answered(request, call, inputs))
            call.task.add_done_callback(_read_or_not)
            self._calls.append(call)
            self._wake.set()
            while (
                len(self._calls) >= self._rules.calls
                or self._held_bytes >= STREAM_BYTES
                or self._inputs >= STREAM_INPUTS
                or is_behind(self._writing_since, self._loop.time())
            ):
                self._room.clear()
                await self._room.wait()

    async def _answered(self, request: Request, call: _Call[Answer], inputs: int) -> Answer:
        try:
            found = await self._answer(request)
        finally:
            self._inputs -= inputs
            self._room.set()
        size = _size(found)
        self._weigh(size - call.weight_bytes)
        call.weight_bytes = size
        return found

    def _weigh(self, count: int) -> None:
        self._held_bytes += count
        if self._context is not None:
            add_bytes(self._context, count)

    def _look(self) -> None:
        """Whether time itself ends the stream."""
        now, idle = self._loop.time(), self._rules.idle_seconds
        if self._writing_since is not None and now - self._writing_since >= idle:
            log.info("a stream is given up: its client has not read for %g s", idle)
            self._give_up()
            return
        since = now if self._calls else self._last_time
        if now - since >= idle:
            self.end(errors.Unavailable(f"the stream was idle for {idle:g} s", retry_after_seconds=0.1))
        elif now - self._began >= LONGEST_SECONDS:
            self.end(errors.Unavailable("the stream has lasted long enough; open another", retry_after_seconds=0.1))
        soonest = min(self._writing_since or now, since) + idle - now
        self._timer = self._loop.call_later(max(soonest, idle / 10), self._look)


def _read_or_not(task: asyncio.Future[Any]) -> None:
    """Nobody reads what comes behind the error that ended a stream, and asyncio would log it, with its traceback. Not
    at the end of the stream: who waits there for calls that are withdrawn may be cancelled."""
    if not task.cancelled():
        task.exception()


def _size(message: object) -> int:
    return message.ByteSize() if isinstance(message, Message) else 0
