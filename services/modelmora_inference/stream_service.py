"""StreamEmbed, many calls of Embed in one stream: a mixin for the servicer of inference.

Two coroutines serve a stream. The reader takes the next call as soon as there is room for it and starts it as a task;
the writer, which is the RPC itself, hands the answers to the transport as they come. A call is open until the transport
has taken its answer, so a client that does not read is soon not read either: what a stream holds is bounded by the
number of its open calls and by STREAM_BYTES, and counts against the byte budget of the process. Of one tenant and
priority the first to come is the first to be computed, so a stream has no more in the queue than keeps the worker busy
(STREAM_INPUTS): other calls of its own tenant would wait behind all of it. (Three streams have delayed one by 21 s.)

How a stream ends, numbered as in the code:
  1. The client closes its side: what is open is answered, then OK. The same after a message that cannot be read, which
     has no id to be answered under; the stream ends with its error.
  2. The client cancels, or its connection is gone: all of it is withdrawn at once.
  3. The platform stops: nothing more is read, what is open is answered, then ShuttingDown. A client that opens another
     stream sends there what was not answered here.
  4. Nothing was open and nothing came for the idle time, or the stream is older than LONGEST_SECONDS, over which a
     caller's rights may have changed: as with 3, but Unavailable.
  5. The client has not taken an answer for the idle time: all that it waits for is withdrawn and forgotten, but for the
     one answer that the transport has, which nobody can take back. When that is read after all, StreamNotRead follows.
     (It was cut off without a word: gRPC then tells the client nothing, ever, and keeps the answer uncounted.)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from modelmora import errors
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora_runtime.interceptors import add_bytes, deadline_seconds, take_bytes

log = logging.getLogger(__name__)

MAX_ID_CHARACTERS = 200
STREAM_BYTES = 32 * 1024 * 1024
"""Of requests and answers that one stream holds before it is not read any more; a call alone may be larger."""
STREAM_INPUTS = 512
"""Inputs that one stream has in the queue and on workers before it is not read any more: two batches for the worker and
two that wait. A call alone may have more."""
ANSWER_BYTES = 4096
"""What the answer to a text is taken for until it is there: a vector of a thousand dimensions."""
BEHIND_SECONDS = 1.0
"""When a client has not taken an answer for so long, nothing more is computed for it than was read."""
LONGEST_SECONDS = 3600.0
STOP_SECONDS = 5.0
"""A stop waits so long for a client that does not read."""

Embed = Callable[[pb.EmbedRequest, Any], Awaitable[pb.EmbedResponse]]


@dataclass(frozen=True, slots=True)
class StreamRules:
    """The figures of streams; settings become these."""

    calls: int = 64
    """Open at once in one stream."""
    idle_seconds: float = 300.0
    call_seconds: float = 60.0
    """For a call that names no timeout."""
    max_message_bytes: int = 64 * 1024 * 1024
    """Of an answer."""


class StreamRpcs:
    """The RPC of InferenceService that streams both ways."""

    _stopping: asyncio.Event
    _stream_rules: StreamRules
    _streams: dict[_Stream, None]
    _stream_end: asyncio.Task[None] | None = None

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        raise NotImplementedError

    async def StreamEmbed(self, requests: AsyncIterator[pb.StreamEmbedRequest], context: Any) -> None:
        if self._stream_end is None:
            self._stream_end = asyncio.create_task(self._end_streams(), name="end of streams")
        stream = _Stream(self.Embed, context, self._stream_rules)
        self._streams[stream] = None
        try:
            await stream.serve(requests)
        finally:
            del self._streams[stream]

    async def _end_streams(self) -> None:
        """One task for all streams: ten thousand that wait for the same event are no use."""
        await self._stopping.wait()
        for stream in self._streams:
            stream.end(errors.ShuttingDown(retry_after_seconds=1.0))  # 3


class _Stream:
    """One stream from its beginning to its end. Times are on the loop's clock."""

    def __init__(self, embed: Embed, context: Any, rules: StreamRules) -> None:
        self._embed = embed
        self._context = context
        self._rules = rules
        self._loop = asyncio.get_running_loop()
        self._deadline = time.monotonic() + deadline_seconds(context)
        self._open: dict[str, asyncio.Task[None]] = {}
        self._answers: deque[tuple[pb.StreamEmbedResponse, int, bool]] = deque()
        """Ready to be written: the answer, what it weighs, and whether its id is open."""
        self._unanswered = 0
        """Calls that were read and whose answers are not written, refused ones too."""
        self._held_bytes = 0
        self._inputs = 0
        """Of calls that are not computed."""
        self._wake = asyncio.Event()
        """For the writer."""
        self._room = asyncio.Event()
        """For the reader."""
        self._began = self._last_time = self._loop.time()
        self._writing_since: float | None = None
        self._why: errors.ModelMoraError | None = None
        self._unread = False
        """Given up: nothing more is written."""
        self._broken: BaseException | None = None

    async def serve(self, requests: AsyncIterator[pb.StreamEmbedRequest]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._reading = self._loop.create_task(self._read(requests))
        self._reading.add_done_callback(lambda _: self._wake.set())
        self._timer = self._loop.call_later(self._rules.idle_seconds, self._look)
        try:
            await self._write()
        finally:
            self._timer.cancel()
            left = [self._reading, *self._open.values()]
            for one in left:
                one.cancel()  # 2
            await asyncio.wait(left)
        if self._why is not None:
            raise self._why
        self._reading.result()  # 1

    def end(self, why: errors.ModelMoraError) -> None:
        """Reads nothing more, answers what is open, then ends with this."""
        if self._why is None:
            self._why = why
            self._reading.cancel()
        if isinstance(why, errors.ShuttingDown):
            self._loop.call_later(STOP_SECONDS, self._leave_if_stuck, self._writing_since)

    def _leave_if_stuck(self, since: float | None) -> None:
        """At a stop: the connection ends anyway."""
        if since is not None and self._writing_since == since:
            self._task.cancel()

    def _give_up(self) -> None:
        """Withdraws what is open, forgets what is answered, and takes nothing more."""
        self._unread = True
        self.end(errors.StreamNotRead(retry_after_seconds=1.0))
        for task in self._open.values():
            task.cancel()
        for _, weight, _ in self._answers:
            self._weigh(-weight)
        self._answers.clear()

    async def _read(self, requests: AsyncIterator[pb.StreamEmbedRequest]) -> None:
        rules = self._rules
        async for message in requests:
            self._begin(message)
            while (
                self._unanswered >= rules.calls
                or self._held_bytes >= STREAM_BYTES
                or self._inputs >= STREAM_INPUTS
                or is_behind(self._writing_since, self._loop.time())
            ):
                self._room.clear()
                await self._room.wait()

    def _begin(self, message: pb.StreamEmbedRequest) -> None:
        self._unanswered += 1
        self._last_time = self._loop.time()
        name, request = message.id, message.request
        if len(name) > MAX_ID_CHARACTERS:
            wrong = errors.InvalidArgument.at("id", f"at most {MAX_ID_CHARACTERS} characters")
            self._refuse(name[:MAX_ID_CHARACTERS], wrong)
            return
        if name in self._open:
            self._refuse(name, errors.InvalidArgument.at("id", "is that of a call that is still open"))
            return
        weight = message.ByteSize() + ANSWER_BYTES * len(request.texts)
        try:
            take_bytes(self._context, weight)
        except errors.ResourceExhausted as error:
            self._refuse(name, error)
            return
        self._held_bytes += weight
        self._inputs += len(request.texts)
        task = self._open[name] = self._loop.create_task(self._call(name, request, weight))
        task.add_done_callback(self._ended)

    async def _call(self, name: str, request: pb.EmbedRequest, weight: int) -> None:
        try:
            answer = await self._embed(request, _OneCall(self._seconds(request)))
            response = pb.StreamEmbedResponse(id=name, response=answer)
            size = response.ByteSize()
            if size > self._rules.max_message_bytes:
                raise errors.MessageTooLarge(
                    f"the answer has {size} bytes; the limit is {self._rules.max_message_bytes} (setting "
                    "platform.max_message_bytes)",
                    limit_bytes=self._rules.max_message_bytes,
                )
        except errors.ModelMoraError as error:
            response = pb.StreamEmbedResponse(id=name, error=call_error(error))
            size = response.ByteSize()
        except asyncio.CancelledError:
            self._weigh(-weight)
            raise
        finally:
            self._inputs -= len(request.texts)
            self._room.set()
        self._weigh(size - weight)
        self._answers.append((response, size, True))
        self._wake.set()

    def _weigh(self, count: int) -> None:
        self._held_bytes += count
        add_bytes(self._context, count)

    def _seconds(self, request: pb.EmbedRequest) -> float:
        """How long a call may take: a timeout of its own, else the default, and never longer than the stream."""
        seconds = self._rules.call_seconds
        if request.HasField("timeout"):
            seconds = request.timeout.seconds + request.timeout.nanos / 1e9
        return min(seconds, self._deadline - time.monotonic())

    def _refuse(self, name: str, error: errors.ModelMoraError) -> None:
        self._answers.append((pb.StreamEmbedResponse(id=name, error=call_error(error)), 0, False))
        self._wake.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A call ended; by an error that has no name, then so does the stream."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = error
            self._wake.set()

    async def _write(self) -> None:
        answers, context = self._answers, self._context
        while True:
            while answers:
                response, weight, is_open = answers.popleft()
                if is_open:  # before who asked can know that he may use it again
                    del self._open[response.id]
                self._writing_since = self._loop.time()
                await context.write(response)
                self._last_time, self._writing_since = self._loop.time(), None
                self._unanswered -= 1
                if is_open:
                    self._weigh(-weight)
                self._room.set()
            if self._unread:
                return
            if self._broken is not None:
                raise self._broken
            if self._reading.done() and not self._open:
                return
            self._wake.clear()
            await self._wake.wait()

    def _look(self) -> None:
        """Whether time itself ends the stream."""
        now, idle = self._loop.time(), self._rules.idle_seconds
        if self._writing_since is not None and now - self._writing_since >= idle:  # 5
            log.info("a stream is given up: its client has not read for %g s", idle)
            self._give_up()
            return
        since = now if self._unanswered else self._last_time
        if now - since >= idle:  # 4
            self.end(errors.Unavailable(f"the stream was idle for {idle:g} s", retry_after_seconds=0.1))
        elif now - self._began >= LONGEST_SECONDS:
            self.end(errors.Unavailable("the stream has lasted long enough; open another", retry_after_seconds=0.1))
        soonest = min(self._writing_since or now, since) + idle - now
        self._timer = self._loop.call_later(max(soonest, idle / 10), self._look)


def is_behind(writing_since: float | None, now: float) -> bool:
    """Whether an answer has not been taken for long."""
    return writing_since is not None and now - writing_since >= BEHIND_SECONDS


class _OneCall:
    """The context of one call in a stream: its own clock, and nothing to send beside the answer."""

    __slots__ = ("_seconds",)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def time_remaining(self) -> float:
        return self._seconds

    def set_trailing_metadata(self, _: object) -> None:
        """Trailing metadata is the stream's; a call in it has none."""


def call_error(error: errors.ModelMoraError) -> pb.CallError:
    """A named error as the answer to one call."""
    found = pb.CallError(status=error.status, reason=error.reason, message=error.message, metadata=error.metadata)
    for violation in error.fields:
        found.fields[violation.field] = violation.description
    if error.retry_after_seconds is not None:
        found.retry_after.FromNanoseconds(round(max(0.0, error.retry_after_seconds) * 1e9))
    return found
