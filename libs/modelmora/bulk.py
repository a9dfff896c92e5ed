"""Many calls of Embed over one stream: what `stream_embed` of both clients is made of.

`Pipeline` is pure and knows every input from the moment it is taken until its answer is handed out; `run` and
`run_async` move messages between it and the wire. A stream that breaks is opened again, and what was not answered is
sent again. The first answer settles the version for all inputs: an alias may move meanwhile, and vectors of two
versions do not compare.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from modelmora import errors, requests
from modelmora.inference.v1 import inference_pb2
from modelmora.requests import Embeddings
from modelmora.status import WRITE_FAILED, error_from_call, error_from_rpc

OPEN_CALLS = 64
"""Sent and not answered at a time: what a server takes before it stops reading."""
OPEN_TEXTS = 2048
"""The same in texts, unless one input alone has more."""
KEPT = 4
"""So many times OPEN_CALLS inputs may be answered, or on their way, behind the one that is to be handed out next."""
LONGEST_SECONDS = 600.0
"""The longest time that a server gives to one call."""
CONNECTED_SECONDS = 5.0
"""A stream that lasted longer was connected, even if there was nothing to tell."""

Result = Embeddings | errors.ModelMoraError
Delay = Callable[[errors.ModelMoraError, int, float], float | None]
"""After this error, in this attempt, with so many seconds left: how long to wait; None: give up."""


@dataclass(slots=True, eq=False)
class _Input:
    index: int
    single: bool
    request: inference_pb2.EmbedRequest
    deadline: float
    attempt: int = 0
    due: float = 0.0
    sent: bool = False


class Pipeline:
    """Inputs on their way to answers. `now` is on the monotonic clock, in seconds."""

    def __init__(self, model: str, *, in_order: bool, seconds: float, delay: Delay, **options: Any) -> None:
        """`seconds` is what one input may take, retries included."""
        if not 0 < seconds <= LONGEST_SECONDS:
            raise errors.InvalidArgument.at("timeout", f"above 0 and at most {LONGEST_SECONDS:g} s for one input")
        self._model = model
        self._options = options
        self._in_order = in_order
        self._seconds = seconds
        self._delay = delay
        self._waiting: dict[int, _Input] = {}
        """Not answered, in the order of the inputs."""
        self._unsent: deque[_Input] = deque()
        self._open_texts = 0
        self._answers: dict[int, Result] = {}
        """Answered and not handed out."""
        self._taken = self._handed_out = 0
        self._version = ""
        self._soonest_deadline = float("inf")
        self.ended = False
        """There is no further input."""

    @property
    def has_room(self) -> bool:
        """For another input."""
        return (
            len(self._waiting) < OPEN_CALLS
            and self._open_texts < OPEN_TEXTS
            and self._taken - self._handed_out < KEPT * OPEN_CALLS
        )

    @property
    def done(self) -> bool:
        return self.ended and not self._waiting and not self._answers

    @property
    def unanswered(self) -> int:
        return len(self._waiting)

    def add(self, texts: str | Sequence[str], now: float) -> None:
        """Takes the next input: a text, or several that are one call. One that is no such thing is answered so."""
        index, single = self._taken, isinstance(texts, str)
        self._taken += 1
        try:
            made = list(requests.embed_requests(self._model, requests.texts_of(texts), **self._options))
            if len(made) != 1:
                raise errors.InvalidArgument.at("texts", f"an input has at most {requests.MAX_TEXTS} texts")
        except errors.ModelMoraError as error:
            self._answers[index] = error
            return
        except TypeError as error:
            self._answers[index] = errors.InvalidArgument.at("texts", str(error))
            return
        item = self._waiting[index] = _Input(index, single, made[0], now + self._seconds)
        self._soonest_deadline = min(self._soonest_deadline, item.deadline)
        self._open_texts += len(item.request.texts)
        self._unsent.append(item)

    def to_send(self, now: float) -> inference_pb2.StreamEmbedRequest | None:
        """What is to be sent next, if anything is by now."""
        if not self._version and len(self._waiting) > len(self._unsent):
            return None  # the first answer says which version it is
        for _ in range(len(self._unsent)):
            item = self._unsent[0]
            if item.due > now:
                self._unsent.rotate(-1)
                continue
            self._unsent.popleft()
            if item.index not in self._waiting:
                continue
            item.sent = True
            if self._version:
                item.request.model, item.request.fallback_model = self._version, ""
            item.request.timeout.FromNanoseconds(max(1_000_000, int((item.deadline - now) * 1e9)))
            return inference_pb2.StreamEmbedRequest(id=str(item.index), request=item.request)
        return None

    def heard(self, answer: inference_pb2.StreamEmbedResponse, now: float) -> None:
        """An answer came. One to something that is not waited for any more is dropped."""
        item = self._waiting.get(int(answer.id)) if answer.id.isdecimal() else None
        if item is None or not item.sent:
            return
        result: Result
        if answer.WhichOneof("outcome") == "response":
            try:
                result = requests.embeddings_of([answer.response], single=item.single)
            except errors.ModelMoraError as error:
                result = error
            else:
                self._version = self._version or answer.response.model_version
        else:
            result = error_from_call(answer.error)
            item.attempt += 1
            delay = self._delay(result, item.attempt, item.deadline - now)
            if delay is not None:
                item.sent, item.due = False, now + delay
                self._unsent.append(item)
                return
        self._answer(item, result)

    def broke(self) -> None:
        """The stream is gone: what was not answered is to be sent again, in its order."""
        for item in self._waiting.values():
            item.sent = False
        self._unsent = deque(self._waiting.values())

    def expire(self, now: float) -> bool:
        """Answers what has waited for too long, a server that does not answer at all; whether there was any."""
        if now < self._soonest_deadline:
            return False
        late = [item for item in self._waiting.values() if item.deadline <= now]
        for item in late:
            self._answer(item, errors.DeadlineExceeded(f"no answer within {self._seconds:g} s"))
        self._soonest_deadline = min((item.deadline for item in self._waiting.values()), default=float("inf"))
        return bool(late)

    def seconds_to_wait(self, now: float) -> float:
        """Until time itself changes something."""
        soonest = min([item.due for item in self._unsent if item.due > now], default=self._soonest_deadline)
        return min(max(0.0, min(soonest, self._soonest_deadline) - now), 60.0)

    def take(self) -> tuple[int, Result] | None:
        """The next answer to hand out, with the position of its input."""
        index = self._handed_out if self._in_order else next(iter(self._answers), -1)
        if index not in self._answers:
            return None
        self._handed_out += 1
        return index, self._answers.pop(index)

    def _answer(self, item: _Input, result: Result) -> None:
        del self._waiting[item.index]
        self._open_texts -= len(item.request.texts)
        self._answers[item.index] = result


def checked(inputs: Any) -> Any:
    """What is to be iterated: a plain text is one by mistake."""
    if isinstance(inputs, str):
        raise errors.InvalidArgument.at("inputs", "is a text; give several")
    return inputs


Open = Callable[..., Any]
"""Opens a stream: with an iterator of messages, or (asyncio) without."""
Pause = Callable[[errors.ModelMoraError, int, float], float]
"""After this error, so many attempts without an answer, which was heard last then: how long to wait before another
stream. Raises the error when there is to be none."""


def run(
    open_stream: Open, pause: Pause, pipeline: Pipeline, inputs: Iterable[str | Sequence[str]]
) -> Iterator[tuple[int, Result]]:
    """The answers. `inputs` is iterated in a thread of its own: one that is slow holds up nothing that is answered."""
    session = _Session(open_stream, pause, pipeline)
    try:
        threading.Thread(target=session.feed, args=(iter(inputs),), name="modelmora inputs", daemon=True).start()
        yield from session.answers()
    finally:
        session.close()


class _Session:
    """The threads around one pipeline, which all of them change under one lock."""

    def __init__(self, open_stream: Open, pause: Pause, pipeline: Pipeline) -> None:
        self._open_stream = open_stream
        self._pause = pause
        self._pipeline = pipeline
        self._changed = threading.Condition()
        self._closed = False
        self._stream = 0
        """Number of the stream in use."""
        self._call: Any = None
        """That stream; None while there is none."""
        self._lost: errors.ModelMoraError | None = None
        """Why the last one ended."""
        self._attempt = 0
        self._opened_time = self._heard_time = time.monotonic()
        self._failure: BaseException | None = None
        """Of the inputs."""

    def feed(self, inputs: Iterator[str | Sequence[str]]) -> None:
        failure: BaseException | None = None
        while True:
            try:
                texts = next(inputs)
            except StopIteration:
                break
            except BaseException as error:  # it is the caller's, and raised where he waits
                failure = error
                break
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._pipeline.has_room)
                if self._closed:
                    return
                self._pipeline.add(texts, time.monotonic())
                self._changed.notify_all()
        with self._changed:
            self._failure, self._pipeline.ended = failure, True
            self._changed.notify_all()

    def answers(self) -> Iterator[tuple[int, Result]]:
        pipeline = self._pipeline
        while True:
            with self._changed:
                found = pipeline.take()
                if found is not None:
                    self._changed.notify_all()  # there is room for one more
                elif pipeline.done:
                    if self._failure is not None:
                        raise self._failure
                    return
                else:
                    self._advance()
            if found is not None:
                yield found

    def _advance(self) -> None:
        """Waits for something to happen; opens a stream when there is a use for one."""
        now, pipeline = time.monotonic(), self._pipeline
        if self._lost is not None:
            error, self._lost = self._lost, None
            pipeline.broke()
            if now - self._opened_time > CONNECTED_SECONDS:
                self._attempt, self._heard_time = 0, now
            if pipeline.unanswered:
                self._attempt += 1
                seconds = self._pause(error, self._attempt, self._heard_time)
                self._changed.wait_for(lambda: self._closed, seconds)
            return
        if self._call is None and pipeline.unanswered:
            self._stream += 1
            self._opened_time = now
            call = self._call = self._open_stream(self._to_send(self._stream))
            threading.Thread(target=self._read, args=(call,), name="modelmora answers", daemon=True).start()
        if not pipeline.expire(now):
            self._changed.wait(pipeline.seconds_to_wait(now) or 0.001)

    def _to_send(self, stream: int) -> Iterator[inference_pb2.StreamEmbedRequest]:
        """The messages of one stream, for as long as it is the one in use."""
        pipeline = self._pipeline
        while True:
            with self._changed:
                while True:
                    if self._closed or self._stream != stream or self._call is None or pipeline.done:
                        return
                    now = time.monotonic()
                    message = pipeline.to_send(now)
                    if message is not None:
                        break
                    self._changed.wait(pipeline.seconds_to_wait(now) or 0.001)
            yield message

    def _read(self, call: Any) -> None:
        error: errors.ModelMoraError
        try:
            for answer in call:
                with self._changed:
                    self._attempt, self._heard_time = 0, time.monotonic()
                    self._pipeline.heard(answer, self._heard_time)
                    self._changed.notify_all()
            error = errors.Unavailable("the stream ended")
        except grpc.RpcError as failure:
            error = error_from_rpc(failure)
        with self._changed:
            if self._call is call:
                self._call, self._lost = None, error
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the threads; a stream that has nothing to answer any more ends by itself."""
        with self._changed:
            self._closed, call, self._call = True, self._call, None
            self._changed.notify_all()
        if call is not None and not self._pipeline.done:
            call.cancel()


async def run_async(
    open_stream: Open,
    pause: Pause,
    pipeline: Pipeline,
    inputs: Iterable[str | Sequence[str]] | AsyncIterable[str | Sequence[str]],
) -> AsyncGenerator[tuple[int, Result], None]:
    """The answers; `inputs` are taken by a task of their own."""
    session = _AsyncSession(open_stream, pause, pipeline)
    feeding = asyncio.create_task(session.feed(inputs))
    streaming = asyncio.create_task(session.stream())
    try:
        while True:
            found = pipeline.take()
            if found is not None:
                session.kick()
                yield found
            elif pipeline.done:
                feeding.result()
                return
            elif streaming.done():
                streaming.result()
                raise AssertionError("the stream ends with an error, or when all is answered")
            else:
                now = time.monotonic()
                if not pipeline.expire(now):
                    await session.changed(pipeline.seconds_to_wait(now))
    finally:
        if pipeline.done:
            await asyncio.wait([streaming], timeout=1.0)  # its last word, so that the server sees no cancellation
        for task in (feeding, streaming):
            task.cancel()
        await asyncio.wait((feeding, streaming))


class _AsyncSession:
    """The tasks around one pipeline."""

    def __init__(self, open_stream: Open, pause: Pause, pipeline: Pipeline) -> None:
        self._open_stream = open_stream
        self._pause = pause
        self._pipeline = pipeline
        self._waiters: set[asyncio.Future[None]] = set()

    def kick(self) -> None:
        """Something changed: everybody who waits looks again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self, seconds: float | None = None) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=seconds)
        finally:
            self._waiters.discard(waiter)

    async def feed(self, inputs: Iterable[str | Sequence[str]] | AsyncIterable[str | Sequence[str]]) -> None:
        try:
            async for texts in _each(inputs):
                while not self._pipeline.has_room:
                    await self.changed()
                self._pipeline.add(texts, time.monotonic())
                self.kick()
        finally:
            self._pipeline.ended = True
            self.kick()

    async def stream(self) -> None:
        """Streams, one after another, for as long as there is something to send."""
        pipeline, attempt, heard = self._pipeline, 0, time.monotonic()
        try:
            while not pipeline.done:
                if not pipeline.unanswered:
                    await self.changed()
                    continue
                opened = time.monotonic()
                call = self._open_stream()
                sending = asyncio.create_task(self._send(call))
                error: errors.ModelMoraError = errors.Unavailable("the stream ended")
                try:
                    while (answer := await call.read()) is not grpc.aio.EOF:
                        attempt, heard = 0, time.monotonic()
                        pipeline.heard(answer, heard)
                        self.kick()
                except grpc.aio.AioRpcError as failure:
                    # A message that was on its way when the server ended the stream hides, in grpc.aio, why it did.
                    if failure.details() != WRITE_FAILED:
                        error = error_from_rpc(failure)
                finally:
                    call.cancel()
                    sending.cancel()
                    await asyncio.wait([sending])
                pipeline.broke()
                if time.monotonic() - opened > CONNECTED_SECONDS:
                    attempt, heard = 0, time.monotonic()
                if pipeline.unanswered:
                    attempt += 1
                    await asyncio.sleep(self._pause(error, attempt, heard))
        finally:
            self.kick()

    async def _send(self, call: Any) -> None:
        pipeline = self._pipeline
        try:
            while not pipeline.done:
                now = time.monotonic()
                message = pipeline.to_send(now)
                if message is None:
                    await self.changed(pipeline.seconds_to_wait(now))
                else:
                    await call.write(message)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # whoever reads hears why


async def _each(
    inputs: Iterable[str | Sequence[str]] | AsyncIterable[str | Sequence[str]],
) -> AsyncIterator[str | Sequence[str]]:
    if isinstance(inputs, AsyncIterable):
        async for texts in inputs:
            yield texts
    else:
        for texts in inputs:
            yield texts
