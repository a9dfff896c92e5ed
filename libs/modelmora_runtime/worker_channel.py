"""The caller's end of the worker's wire (worker/v1 over framing.py) on asyncio, for any event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

from google.protobuf.message import DecodeError
from modelmora import errors
from modelmora.worker.v1 import worker_pb2

from modelmora_runtime import framing

WIRE_VERSION = 1
_CLOSE_SECONDS = 1.0
"""So long a worker may take to read what was sent before the connection is cut."""


def error_from_reply(reply: worker_pb2.ErrorReply) -> errors.ModelMoraError:
    """The error the worker raised, as the class of that name."""
    return _error(reply.reason, reply.message, dict(reply.metadata), reply.status, dict(reply.fields))


def error_from_entry(entry: worker_pb2.EntryError) -> errors.ModelMoraError:
    """The error of one row, as the class of that name."""
    return _error(entry.reason, entry.message, {}, "", {})


def _error(
    reason: str, message: str, metadata: dict[str, str], status: str, fields: dict[str, str]
) -> errors.ModelMoraError:
    cls = errors.class_named(reason) or (errors.class_for(status, reason) if status else errors.InternalError)
    error = cls(message, fields=[errors.FieldViolation(*pair) for pair in sorted(fields.items())])
    error.metadata = metadata
    return error


Heard = Callable[[worker_pb2.InferReply | None, errors.ModelMoraError | None], None]
"""Hears each reply of a batch, or the error it ended with."""


class _Call:
    """Replies to one request, in order, and their end."""

    def __init__(self, channel: WorkerChannel, request_id: int, heard: Heard | None = None) -> None:
        self.request_id = request_id
        self._channel = channel
        self._heard = heard
        self._replies: deque[tuple[worker_pb2.WorkerReply, int]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: errors.ModelMoraError | None = None

    async def next(self) -> worker_pb2.WorkerReply | None:
        """The next reply; None after the last. Raises the error the request ended with."""
        while not self._replies:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._waiter = self._channel._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        reply, size = self._replies.popleft()
        if not self._ended:
            self._channel._grant(size)
        return reply

    def _add(self, reply: worker_pb2.WorkerReply, size: int, last: bool) -> None:
        if self._heard is not None:
            self._ended = last
            self._channel._grant(size)
            self._heard(reply.infer, None)
            return
        self._replies.append((reply, size))
        if last:
            self._end(None)
        else:
            self._wake()

    def _end(self, error: errors.ModelMoraError | None) -> None:
        if not self._ended:
            self._ended = True
            self._error = error
            # From here on the replies are the caller's, not the connection's: an abandoned call holds back no credit.
            for _, size in self._replies:
                self._channel._grant(size)
            self._wake()
            if self._heard is not None and error is not None:
                # Not at once: whoever asked may not have its call in hand yet.
                self._channel._loop.call_soon(self._heard, None, error)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class InferCall:
    """One batch in the worker. `async for reply in call`; the last reply has `done`.

    The iteration raises the error the batch ended with (Cancelled after `cancel()`, WorkerUnavailable when the worker
    is gone). One consumer only.
    """

    def __init__(self, channel: WorkerChannel, call: _Call) -> None:
        self._channel = channel
        self._call = call

    def __aiter__(self) -> InferCall:
        return self

    async def __anext__(self) -> worker_pb2.InferReply:
        reply = await self._call.next()
        if reply is None:
            raise StopAsyncIteration
        return reply.infer

    def cancel(self, positions: Sequence[int] = ()) -> None:
        """Withdraws the batch, or only the rows at these positions. Never blocks; may come too late."""
        self._channel._cancel(self._call, positions)


class WorkerChannel(asyncio.Protocol):
    """One connection to one worker. All methods in the event loop that connected it."""

    def __init__(self, endpoint: str, write_timeout_seconds: float = 30.0) -> None:
        self.endpoint = endpoint
        self.closed = asyncio.Event()
        """Set when the connection is gone."""
        self.close_reason = ""
        self.worker_pid = 0
        self._loop = asyncio.get_running_loop()
        self._wire = framing.Wire()
        self._wire.open_window()
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._write_timeout_seconds = write_timeout_seconds
        self._write_timer: asyncio.TimerHandle | None = None
        self._request_ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._pings: dict[bytes, asyncio.Future[None]] = {}

    @classmethod
    async def connect(cls, endpoint: str, key: bytes, *, timeout_seconds: float = 5.0) -> WorkerChannel:
        """Connects to `unix:<path>` and says hello. Raises WorkerUnavailable, Unauthenticated."""
        if not endpoint.startswith("unix:"):
            raise errors.WorkerUnavailable(f"not an endpoint this version can reach: {endpoint}")
        channel = cls(endpoint)
        try:
            async with asyncio.timeout(timeout_seconds):
                try:
                    await channel._loop.create_unix_connection(lambda: channel, endpoint.removeprefix("unix:"))
                except BaseException:
                    channel._transport = None  # the loop ends what it has made by then, and nothing can be sent on it
                    raise
                hello = worker_pb2.Hello(key=key, wire_version=WIRE_VERSION)
                reply = await channel._control(worker_pb2.WorkerRequest(hello=hello))
                channel.worker_pid = reply.hello.pid
        except (OSError, TimeoutError) as error:
            await channel.close()
            # asyncio's timeout has no words of its own.
            why = str(error) or f"not within {timeout_seconds:g} s"
            raise errors.WorkerUnavailable(f"no worker answers at {endpoint}: {why}") from error
        except BaseException:
            await channel.close()
            raise
        return channel

    async def load(
        self,
        request: worker_pb2.LoadRequest,
        *,
        timeout_seconds: float,
        progress_seconds: float = 0.0,
        on_progress: Callable[[worker_pb2.LoadProgress], None] | None = None,
    ) -> worker_pb2.LoadReply:
        """Loads the model; once per worker. Raises the engine's named error, LoadFailed on timeout.

        Each progress in bytes extends the time to at least `progress_seconds` from then on, to ten times in all.
        """
        call = self._send(worker_pb2.WorkerRequest(load=request))
        start, done_bytes = self._loop.time(), 0
        end = start + timeout_seconds
        try:
            async with asyncio.timeout_at(end) as clock:
                while (reply := await call.next()) is not None:
                    if reply.WhichOneof("message") == "load":
                        return reply.load
                    if reply.load_progress.done_bytes > done_bytes:
                        done_bytes = reply.load_progress.done_bytes
                        end = max(end, min(self._loop.time() + progress_seconds, start + 10 * timeout_seconds))
                        clock.reschedule(end)
                    if on_progress is not None:
                        on_progress(reply.load_progress)
        except TimeoutError:
            raise errors.LoadFailed(f"the worker did not load the model within {end - start:.3g} s") from None
        finally:
            self._cancel(call)
        raise errors.LoadFailed("the worker ended the load without an answer")

    def infer(
        self, request: worker_pb2.InferRequest | worker_pb2.WorkerRequest, heard: Heard | None = None
    ) -> InferCall:
        """Sends one batch. Never blocks; a gone worker or a request over the limit shows in the iteration.

        Whoever makes it inside the message that it travels in spares a copy of all its texts.

        `heard` is for whoever has many batches and no task for each: it is called with every reply as it comes, or with
        the error, and there is nothing left to iterate.
        """
        if isinstance(request, worker_pb2.InferRequest):
            request = worker_pb2.WorkerRequest(infer=request)
        return InferCall(self, self._send(request, heard))

    async def drain(self, *, timeout_seconds: float) -> None:
        """Lets the worker finish what runs and exit with status 0. Raises TimeoutError, WorkerUnavailable."""
        async with asyncio.timeout(timeout_seconds):
            await self._control(worker_pb2.WorkerRequest(drain=worker_pb2.DrainRequest()))

    async def watch(self, interval_seconds: float) -> AsyncIterator[worker_pb2.WatchReply]:
        """What the worker says of itself, at once and then every so often; ends when the worker does."""
        request = worker_pb2.WorkerRequest(watch=worker_pb2.WatchRequest())
        request.watch.interval.FromNanoseconds(round(interval_seconds * 1e9))
        call = self._send_control(request)
        try:
            while (reply := await call.next()) is not None:
                yield reply.watch
        except (errors.WorkerUnavailable, errors.Cancelled):
            return
        finally:
            self._cancel(call)

    async def allow(self, key: bytes) -> None:
        """Lets connections with this lease key in."""
        await self._control(worker_pb2.WorkerRequest(key=worker_pb2.KeyRequest(key=key)))

    async def withdraw(self, key: bytes) -> None:
        """Forgets this lease key and closes the connections that use it."""
        await self._control(worker_pb2.WorkerRequest(key=worker_pb2.KeyRequest(key=key, withdraw=True)))

    async def ping(self, *, timeout_seconds: float) -> None:
        """Returns when the worker's wire has answered. Raises TimeoutError, WorkerUnavailable."""
        payload = next(self._request_ids).to_bytes(8, "little")
        answer = self._pings[payload] = self._loop.create_future()
        try:
            self._check_open()
            self._wire.ping(payload)
            self._flush()
            async with asyncio.timeout(timeout_seconds):
                await answer
        finally:
            self._pings.pop(payload, None)

    async def close(self) -> None:
        """Closes the connection. What is pending raises WorkerUnavailable."""
        if self._transport is not None and not self.closed.is_set():
            self._close("closed")
            # A worker that is stopped (SIGSTOP) never reads the rest, and the transport would wait for it.
            cut = self._loop.call_later(_CLOSE_SECONDS, self._transport.abort)
            try:
                await self.closed.wait()
            finally:
                if self.closed.is_set():
                    cut.cancel()

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        # What is handed to the transport can no longer be overtaken: hand it little.
        self._transport.set_write_buffer_limits(high=framing.MAX_FRAME_BYTES)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            for kind, request_id, payload in self._wire.receive(data):
                if kind in (framing.MESSAGE, framing.CONTROL):
                    self._reply(request_id, payload, 0 if kind == framing.CONTROL else len(payload))
                elif kind == framing.PONG:
                    answer = self._pings.get(payload)
                    if answer is not None and not answer.done():
                        answer.set_result(None)
                elif kind == framing.CLOSED:
                    self._close("closed by the worker: " + payload.decode(errors="replace"))
            self._flush()
        except (framing.FramingError, DecodeError) as error:
            self._close(str(error))

    def pause_writing(self) -> None:
        self._paused = True
        self._write_timer = self._loop.call_later(self._write_timeout_seconds, self._close, "peer-does-not-read")

    def resume_writing(self) -> None:
        self._paused = False
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.close_reason = self.close_reason or (str(exc) if exc else "the worker is gone")
        if self._write_timer is not None:
            self._write_timer.cancel()
        self.closed.set()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call._end(self._gone())
        for answer in self._pings.values():
            if not answer.done():
                answer.set_exception(self._gone())

    # Helpers.

    def _reply(self, request_id: int, payload: bytes, size: int) -> None:
        call = self._calls.get(request_id)
        reply = worker_pb2.WorkerReply.FromString(payload)
        kind = reply.WhichOneof("message")
        if call is None:
            # Of a call that has ended or was given up.
            self._grant(size)
        elif kind == "error":
            del self._calls[request_id]
            self._grant(size)
            call._end(error_from_reply(reply.error))
        elif kind in ("load_progress", "watch") or (
            kind in ("infer", "stream") and not (reply.infer.done if kind == "infer" else reply.stream.done)
        ):
            call._add(reply, size, last=False)
        else:
            del self._calls[request_id]
            call._add(reply, size, last=True)

    def _send(self, request: worker_pb2.WorkerRequest, heard: Heard | None = None) -> _Call:
        call = _Call(self, next(self._request_ids), heard)
        if self.closed.is_set() or self._transport is None:
            call._end(self._gone())
            return call
        try:
            self._wire.send(call.request_id, request.SerializeToString())
        except framing.FramingError as error:
            call._end(_too_large(error))
            return call
        self._calls[call.request_id] = call
        self._flush()
        return call

    def _send_control(self, request: worker_pb2.WorkerRequest) -> _Call:
        self._check_open()
        call = _Call(self, next(self._request_ids))
        self._calls[call.request_id] = call
        self._wire.send_control(call.request_id, request.SerializeToString())
        self._flush()
        return call

    async def _control(self, request: worker_pb2.WorkerRequest) -> worker_pb2.WorkerReply:
        reply = await self._send_control(request).next()
        if reply is None:
            raise errors.InternalError("the worker ended a request without an answer")
        return reply

    def _cancel(self, call: _Call, positions: Sequence[int] = ()) -> None:
        if call._ended or self.closed.is_set():
            return
        if not positions and self._wire.withdraw(call.request_id):
            self._calls.pop(call.request_id, None)
            call._end(errors.Cancelled())
        else:
            cancel = worker_pb2.CancelRequest(positions=positions)
            message = worker_pb2.WorkerRequest(cancel=cancel).SerializeToString()
            try:
                self._wire.send_control(call.request_id, message)
            except framing.FramingError as error:
                self._close(str(error))
        self._flush()

    def _grant(self, size: int) -> None:
        if size and not self.closed.is_set():
            self._wire.grant(1, size)
            self._flush()

    def _flush(self) -> None:
        transport = self._transport
        while not self._paused and transport is not None and not transport.is_closing():
            output = self._wire.take()
            if not output:
                return
            transport.write(output)

    def _close(self, reason: str) -> None:
        self.close_reason = self.close_reason or reason
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._paused:
            transport.abort()
            return
        self._wire.close(reason)
        transport.write(self._wire.take())
        transport.close()

    def _check_open(self) -> None:
        if self.closed.is_set() or self._transport is None:
            raise self._gone()

    def _gone(self) -> errors.WorkerUnavailable:
        return errors.WorkerUnavailable(f"the connection to the worker is gone: {self.close_reason or 'closed'}")


def _too_large(error: framing.FramingError) -> errors.ModelMoraError:
    if error.reason == "message-too-large":
        return errors.MessageTooLarge(f"the batch is too large for the worker's wire: {error.detail}")
    return errors.WorkerUnavailable(f"the worker does not read: {error.detail}")
