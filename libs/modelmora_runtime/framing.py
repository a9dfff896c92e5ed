"""The worker's wire: messages in frames on one duplex byte stream. Standard library only.

A frame is a header of 16 bytes (payload length u32, magic u16, kind u8, zero u8, request id u64; little-endian) and at
most 256 KiB of payload. The rules:

1. A message travels under a request id. Up to 256 KiB it is one WHOLE frame; a longer one is FIRST (with the total
   length) and then MOREs. Frames of different request ids take turns: a short message never waits for a long one.
2. CONTROL messages (hello, cancel, drain, keys) are one frame each, need no credit and overtake all data not yet handed
   to the socket. So do credit, ping and pong.
3. A message may start while its sender has credit left for at least one message and one byte. Credit is granted by the
   receiver when it is done with earlier messages. A message may overdraw the bytes, so what a receiver holds is bounded
   by its window plus one message, and no pair of settings can stall. A sender that starts without credit is cut off.
4. A message that has not left whole may be taken back (DROP); its receiver never hears of it.
5. Whatever is wrong with the peer ends the connection with a named reason (`FramingError.reason`), which the other side
   reads in a CLOSE frame where it still reads.

`Wire` is one end of a connection without sockets, threads or clocks. `FrameServer` is the worker's side: one thread for
all connections, callable from any. The caller's side on asyncio is worker_channel.py.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

MAX_FRAME_BYTES: Final = 256 * 1024
MAX_CONTROL_BYTES: Final = 64 * 1024
MAX_REASON_BYTES: Final = 512
CONNECTION: Final = 0
"""Request id of what concerns the whole connection."""

MESSAGE: Final = 1
"""Event: a data message has arrived whole."""
CONTROL: Final = 2
"""Event: a control message."""
PONG: Final = 3
"""Event: the answer to a ping."""
CLOSED: Final = 4
"""Event: the peer closes and says why."""

Event = tuple[int, int, bytes]
"""(MESSAGE | CONTROL | PONG | CLOSED, request id, payload)."""

_HEADER = struct.Struct("<IHBBQ")
_TOTAL = struct.Struct("<I")
_CREDIT_PAYLOAD = struct.Struct("<IQ")
_MAGIC = 0x4D4D
_WHOLE, _FIRST, _MORE, _DROP, _CONTROL, _CREDIT, _PING, _PONG, _CLOSE = range(1, 10)
_MAX_CREDIT = 1 << 40
ACCEPT_PAUSE_SECONDS: Final = 0.5
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class FramingError(Exception):
    """The peer broke a rule of the wire, or does not read. `reason` is one word that names which."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one end grants and holds. The two ends need not agree."""

    max_message_bytes: int = 72 * 1024 * 1024
    window_messages: int = 256
    window_bytes: int = 32 * 1024 * 1024
    max_control_queue: int = 4096
    """Control frames waiting to be written; more means that the peer does not read."""
    max_queued_bytes: int = 256 * 1024 * 1024
    """Data waiting to be written; more means that the peer does not read or gives no credit."""


@dataclass(slots=True)
class _Incoming:
    total_bytes: int
    # Not a list of parts: a peer that sends one byte a frame would make that forty times as large.
    received: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class _Outgoing:
    request_id: int
    message: memoryview
    sent_bytes: int = 0


class Wire:
    """One end of a connection, without IO: bytes in → events, messages in → bytes out. Not thread safe."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._buffer = bytearray()
        self._incoming: dict[int, _Incoming] = {}
        # What the peer may still start, by our count; what it has started and we have not granted back.
        self._owed_messages = 0
        self._owed_bytes = 0
        self._peer_messages = 0
        self._peer_bytes = 0
        # What we may start.
        self._credit_messages = 0
        self._credit_bytes = 0
        self._control: deque[bytes] = deque()
        self._queues: dict[int, deque[bytes]] = {}
        self._waiting: deque[int] = deque()
        self._ring: deque[_Outgoing] = deque()
        self.queued_bytes = 0
        """Data that waits to be written."""

    def open_window(self) -> None:
        """Grants the peer its first credit: until then it may send control only."""
        self._grant_now(self.limits.window_messages, self.limits.window_bytes)

    # Sending.

    def send(self, request_id: int, message: bytes) -> None:
        """Queues a data message. Raises FramingError (message-too-large, peer-does-not-read)."""
        if len(message) > self.limits.max_message_bytes:
            raise FramingError("message-too-large", f"{len(message)} bytes, limit {self.limits.max_message_bytes}")
        if self.queued_bytes + len(message) > self.limits.max_queued_bytes:
            raise FramingError("peer-does-not-read", f"{self.queued_bytes} bytes wait for it")
        self.queued_bytes += len(message)
        queue = self._queues.get(request_id)
        if queue is not None:
            queue.append(message)
        else:
            self._queues[request_id] = deque((message,))
            self._waiting.append(request_id)

    def send_control(self, request_id: int, message: bytes) -> None:
        """Queues a control message, which overtakes data. Raises FramingError (message-too-large, …)."""
        if len(message) > MAX_CONTROL_BYTES:
            raise FramingError("message-too-large", f"{len(message)} bytes of control, limit {MAX_CONTROL_BYTES}")
        self._push_control(_CONTROL, request_id, message)

    def ping(self, payload: bytes = b"") -> None:
        """Asks for a PONG event with the same payload (at most 64 bytes)."""
        self._push_control(_PING, CONNECTION, payload[:64])

    def close(self, reason: str) -> None:
        """Queues the reason why this end closes."""
        self._control.append(_frame(_CLOSE, CONNECTION, reason.encode()[:MAX_REASON_BYTES]))

    def withdraw(self, request_id: int) -> bool:
        """Takes back what of this request has not left. True: the peer never gets to see the request."""
        for index, outgoing in enumerate(self._ring):
            if outgoing.request_id == request_id:
                del self._ring[index]
                self.queued_bytes -= len(outgoing.message) - outgoing.sent_bytes
                self._forget_queue(request_id)
                self._push_control(_DROP, request_id, b"")
                return True
        if request_id in self._queues:
            self._waiting.remove(request_id)
            self._forget_queue(request_id)
            return True
        return False

    def take(self, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
        """The next bytes to write: whole frames until `max_bytes` is reached, at least one if there is any."""
        if len(self._control) == 1 and not self._ring and not self._waiting:
            return self._with_grants(self._control.popleft())
        chunks: list[bytes | memoryview] = []
        taken = 0
        while taken < max_bytes:
            if self._control:
                chunk = self._control.popleft()
                chunks.append(chunk)
                taken += len(chunk)
                continue
            while self._waiting and self._may_start():
                self._start(self._waiting.popleft())
            if not self._ring:
                break
            taken += self._next_data_frame(chunks)
        return self._with_grants(b"".join(chunks)) if chunks else b""

    def grant(self, messages: int, message_bytes: int) -> None:
        """Gives credit back: this end is done with so many messages of so many bytes.

        Small grants wait for the next write or for a quarter of the window, whichever is first.
        """
        self._owed_messages += messages
        self._owed_bytes += message_bytes
        limits = self.limits
        if self._owed_messages * 4 >= limits.window_messages or self._owed_bytes * 4 >= limits.window_bytes:
            self._grant_now(0, 0)

    # Receiving.

    def receive(self, data: bytes | memoryview) -> list[Event]:
        """The events in these bytes and those before. Raises FramingError; the connection is over then."""
        buffer: bytes | memoryview | bytearray = data
        if self._buffer:
            self._buffer += data
            buffer = self._buffer
        events: list[Event] = []
        offset = 0
        size = len(buffer)
        while size - offset >= 16:
            length, magic, kind, zero, request_id = _HEADER.unpack_from(buffer, offset)
            if magic != _MAGIC or zero:
                raise FramingError("not-a-frame")
            if length > MAX_FRAME_BYTES:
                raise FramingError("frame-too-large", f"{length} bytes, limit {MAX_FRAME_BYTES}")
            end = offset + 16 + length
            if end > size:
                break
            self._frame_in(kind, request_id, bytes(buffer[offset + 16 : end]), events)
            offset = end
        if buffer is self._buffer:
            del self._buffer[:offset]
        elif offset < size:
            self._buffer += buffer[offset:]
        return events

    def _frame_in(self, kind: int, request_id: int, payload: bytes, events: list[Event]) -> None:
        if kind == _WHOLE:
            self._begin_in(request_id, len(payload))
            events.append((MESSAGE, request_id, payload))
        elif kind == _CONTROL:
            if len(payload) > MAX_CONTROL_BYTES:
                raise FramingError("control-too-large", f"{len(payload)} bytes, limit {MAX_CONTROL_BYTES}")
            events.append((CONTROL, request_id, payload))
        elif kind == _CREDIT:
            self._credit_in(payload)
        elif kind == _FIRST:
            if len(payload) <= _TOTAL.size:
                raise FramingError("empty-frame")
            (total,) = _TOTAL.unpack_from(payload)
            self._begin_in(request_id, total)
            self._incoming[request_id] = incoming = _Incoming(total)
            self._part_in(request_id, incoming, payload[_TOTAL.size :], events)
        elif kind == _MORE:
            more = self._incoming.get(request_id)
            if more is None:
                raise FramingError("no-such-message", f"request {request_id}")
            if not payload:
                raise FramingError("empty-frame")
            self._part_in(request_id, more, payload, events)
        elif kind == _DROP:
            dropped = self._incoming.pop(request_id, None)
            if dropped is None:
                raise FramingError("no-such-message", f"request {request_id}")
            self.grant(1, dropped.total_bytes)
        elif kind == _PING:
            if len(payload) > 64:
                raise FramingError("control-too-large", "ping")
            self._push_control(_PONG, CONNECTION, payload)
        elif kind == _PONG:
            events.append((PONG, request_id, payload[:64]))
        elif kind == _CLOSE:
            events.append((CLOSED, request_id, payload[:MAX_REASON_BYTES]))
        else:
            raise FramingError("unknown-kind", str(kind))

    def _begin_in(self, request_id: int, total_bytes: int) -> None:
        if total_bytes > self.limits.max_message_bytes:
            raise FramingError("message-too-large", f"{total_bytes} bytes, limit {self.limits.max_message_bytes}")
        if request_id in self._incoming:
            raise FramingError("message-overlaps", f"request {request_id}")
        if self._peer_messages < 1 or self._peer_bytes < 1:
            raise FramingError("credit-exceeded")
        self._peer_messages -= 1
        self._peer_bytes -= total_bytes

    def _part_in(self, request_id: int, incoming: _Incoming, part: bytes, events: list[Event]) -> None:
        if len(incoming.received) + len(part) > incoming.total_bytes:
            raise FramingError("message-overrun")
        incoming.received += part
        if len(incoming.received) == incoming.total_bytes:
            del self._incoming[request_id]
            events.append((MESSAGE, request_id, bytes(incoming.received)))

    def _credit_in(self, payload: bytes) -> None:
        if len(payload) != _CREDIT_PAYLOAD.size:
            raise FramingError("not-a-frame", "credit")
        messages, message_bytes = _CREDIT_PAYLOAD.unpack(payload)
        self._credit_messages += messages
        self._credit_bytes += message_bytes
        if self._credit_messages > _MAX_CREDIT or self._credit_bytes > _MAX_CREDIT:
            raise FramingError("credit-overflow")

    # Helpers of sending.

    def _may_start(self) -> bool:
        return self._credit_messages > 0 and self._credit_bytes > 0

    def _start(self, request_id: int) -> None:
        message = self._queues[request_id].popleft()
        self._credit_messages -= 1
        self._credit_bytes -= len(message)
        self._ring.append(_Outgoing(request_id, memoryview(message)))

    def _next_data_frame(self, chunks: list[bytes | memoryview]) -> int:
        outgoing = self._ring.popleft()
        message, sent = outgoing.message, outgoing.sent_bytes
        size = len(message)
        if sent == 0 and size <= MAX_FRAME_BYTES:
            head = _HEADER.pack(size, _MAGIC, _WHOLE, 0, outgoing.request_id)
            part = message
        elif sent == 0:
            part = message[: MAX_FRAME_BYTES - _TOTAL.size]
            head = _HEADER.pack(len(part) + _TOTAL.size, _MAGIC, _FIRST, 0, outgoing.request_id) + _TOTAL.pack(size)
        else:
            part = message[sent : sent + MAX_FRAME_BYTES]
            head = _HEADER.pack(len(part), _MAGIC, _MORE, 0, outgoing.request_id)
        chunks.append(head)
        chunks.append(part)
        outgoing.sent_bytes += len(part)
        self.queued_bytes -= len(part)
        if outgoing.sent_bytes < size:
            self._ring.append(outgoing)
        elif self._queues[outgoing.request_id]:
            self._waiting.append(outgoing.request_id)
        else:
            del self._queues[outgoing.request_id]
        return len(head) + len(part)

    def _forget_queue(self, request_id: int) -> None:
        self.queued_bytes -= sum(map(len, self._queues.pop(request_id, ())))

    def _push_control(self, kind: int, request_id: int, payload: bytes) -> None:
        if len(self._control) >= self.limits.max_control_queue:
            raise FramingError("peer-does-not-read", f"{len(self._control)} control frames wait for it")
        self._control.append(_frame(kind, request_id, payload))

    def _with_grants(self, output: bytes) -> bytes:
        if not self._owed_messages and not self._owed_bytes:
            return output
        return output + self._credit_frame()

    def _grant_now(self, messages: int, message_bytes: int) -> None:
        self._owed_messages += messages
        self._owed_bytes += message_bytes
        self._control.append(self._credit_frame())

    def _credit_frame(self) -> bytes:
        messages, message_bytes = self._owed_messages, self._owed_bytes
        self._owed_messages = self._owed_bytes = 0
        self._peer_messages += messages
        self._peer_bytes += message_bytes
        return _frame(_CREDIT, CONNECTION, _CREDIT_PAYLOAD.pack(messages, message_bytes))


def _frame(kind: int, request_id: int, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), _MAGIC, kind, 0, request_id) + payload


class Receiver(Protocol):
    """What a FrameServer tells. Called in the server's thread; must not block."""

    def on_accepted(self, connection: Connection) -> None:
        """A new connection. It can send control only, until `connection.admit()`."""

    def on_message(self, connection: Connection, request_id: int, message: bytes) -> None:
        """A data message. Whoever is done with it calls `connection.grant(len(message))`."""

    def on_control(self, connection: Connection, request_id: int, message: bytes) -> None: ...

    def on_closed(self, connection: Connection, reason: str) -> None: ...


class Connection:
    """One accepted connection. `send`, `send_control`, `grant` and `close` may be called from any thread."""

    def __init__(self, server: FrameServer, sock: socket.socket, limits: Limits) -> None:
        self._server = server
        self._socket = sock
        self._wire = Wire(limits)
        self._lock = threading.Lock()
        self._unsent = b""
        self._stalled_since: float | None = None
        self.closed = False
        self.data: object = None
        """Whatever the receiver wants to remember of it."""

    def send(self, request_id: int, message: bytes, *, granted_bytes: int | None = None) -> None:
        """Sends a data message; with `granted_bytes` also gives back the credit of one message, in the same write."""
        with self._lock:
            if self.closed:
                return
            try:
                if granted_bytes is not None:
                    self._wire.grant(1, granted_bytes)
                self._wire.send(request_id, message)
                self._flush()
                return
            except FramingError as error:
                reason = str(error)
        self.close(reason)

    def send_control(self, request_id: int, message: bytes) -> None:
        """Sends a control message, which overtakes data."""
        with self._lock:
            if self.closed:
                return
            try:
                self._wire.send_control(request_id, message)
                self._flush()
                return
            except FramingError as error:
                reason = str(error)
        self.close(reason)

    def admit(self) -> None:
        """Lets the peer send data; before, it may send control only."""
        with self._lock:
            if not self.closed:
                self._wire.open_window()
                self._flush()

    def grant(self, message_bytes: int) -> None:
        """Gives back the credit of one message."""
        with self._lock:
            if not self.closed:
                self._wire.grant(1, message_bytes)
                self._flush()

    @property
    def unsent_bytes(self) -> int:
        """What the socket has not taken yet."""
        return len(self._unsent) + self._wire.queued_bytes

    def close(self, reason: str) -> None:
        """Closes, telling the peer why if it still reads."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self._wire.close(reason)
            if not self._unsent:
                # One try: what the socket does not take now, a peer that does not read will not get.
                try:
                    self._socket.send(self._wire.take())
                except OSError:
                    pass
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._server._call_soon(lambda: self._server._gone(self, reason))

    def _flush(self) -> None:
        """Writes what the socket takes; the rest is left to the server's thread. Needs the lock."""
        if self._unsent:
            return
        while True:
            output = self._wire.take()
            if not output:
                return
            try:
                sent = self._socket.send(output)
            except BlockingIOError:
                sent = 0
            except OSError:
                # The reader sees the end of the connection too and closes it.
                return
            if sent < len(output):
                self._unsent = output[sent:]
                self._stalled_since = self._server.clock()
                self._server._call_soon(lambda: self._server._watch_writes(self))
                return

    def _write_ready(self) -> bool:
        """Goes on writing after a stall; True while there is more."""
        with self._lock:
            if self.closed:
                return False
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return True
            except OSError:
                self._unsent = b""
                return False
            if sent:
                self._stalled_since = self._server.clock()
            self._unsent = self._unsent[sent:]
            if not self._unsent:
                self._stalled_since = None
                self._flush()
            return bool(self._unsent)


class FrameServer:
    """Serves framed connections on a listening socket with the thread that calls `run`."""

    max_connections = 256

    def __init__(
        self,
        listener: socket.socket,
        receiver: Receiver,
        *,
        limits: Limits | None = None,
        write_timeout_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._listener = listener
        self._listener.setblocking(False)
        self._receiver = receiver
        self._limits = limits or Limits()
        self._write_timeout_seconds = write_timeout_seconds
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._soon: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_ids = itertools.count()
        self._connections: set[Connection] = set()
        self._scratch = bytearray(MAX_FRAME_BYTES)
        self._stopping = False
        self._thread = 0

    @property
    def connections(self) -> frozenset[Connection]:
        """The open ones. In the server's thread only."""
        return frozenset(self._connections)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Calls back in the server's thread after so many seconds. From any thread."""
        due = self.clock() + seconds
        self._call_soon(lambda: heapq.heappush(self._timers, (due, next(self._timer_ids), callback)))

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Calls back in the server's thread. From any thread and from signal handlers."""
        self._call_soon(callback)
        self._wake()

    def stop(self, flush_seconds: float = 2.0) -> None:
        """Ends `run` once what was sent is written, at the latest after `flush_seconds`. From any thread."""
        latest = self.clock() + flush_seconds

        def stop() -> None:
            if self.clock() < latest and any(connection.unsent_bytes for connection in self._connections):
                self.call_later(0.005, stop)
            else:
                self._stopping = True

        self._call_soon(stop)

    def run(self) -> None:
        """Serves until `stop`, then closes everything."""
        self._thread = threading.get_ident()
        self.call_later(self._write_timeout_seconds / 4, self._close_stalled)
        try:
            while not self._stopping:
                timeout = None
                if self._soon:
                    timeout = 0.0
                elif self._timers:
                    timeout = max(0.0, self._timers[0][0] - self.clock())
                for key, events in self._selector.select(timeout):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data is None:
                        os.read(self._wake_read, 4096)
                    else:
                        if events & selectors.EVENT_WRITE and not key.data._write_ready():
                            self._watch_writes(key.data, watch=False)
                        if events & selectors.EVENT_READ:
                            self._read(key.data)
                while self._soon:
                    self._soon.popleft()()
                now = self.clock()
                while self._timers and self._timers[0][0] <= now:
                    heapq.heappop(self._timers)[2]()
        finally:
            for connection in list(self._connections):
                connection.close("shutting-down")
            while self._soon:
                self._soon.popleft()()
            self._selector.close()
            self._listener.close()

    def _call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)
        if threading.get_ident() != self._thread:
            self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            pass  # Full: it will wake anyway.

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                # Who waits stays in the backlog, so the listener stays ready: without a pause this would spin.
                self._selector.unregister(self._listener)
                self.call_later(ACCEPT_PAUSE_SECONDS, self._listen_again)
            return
        if len(self._connections) >= self.max_connections:
            sock.close()
            return
        sock.setblocking(False)
        connection = Connection(self, sock, self._limits)
        self._connections.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, connection)
        self._receiver.on_accepted(connection)

    def _listen_again(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def _read(self, connection: Connection) -> None:
        try:
            count = connection._socket.recv_into(self._scratch)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            connection.close("peer-gone")
            return
        try:
            with connection._lock:
                if connection.closed:
                    return
                events = connection._wire.receive(memoryview(self._scratch)[:count])
                connection._flush()
        except FramingError as error:
            connection.close(str(error))
            return
        for kind, request_id, payload in events:
            if connection.closed:
                return
            if kind == MESSAGE:
                self._receiver.on_message(connection, request_id, payload)
            elif kind == CONTROL:
                self._receiver.on_control(connection, request_id, payload)
            elif kind == CLOSED:
                connection.close("peer-closed: " + payload.decode(errors="replace"))

    def _watch_writes(self, connection: Connection, watch: bool = True) -> None:
        if connection in self._connections:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if watch and connection._unsent else 0)
            self._selector.modify(connection._socket, events, connection)

    def _close_stalled(self) -> None:
        latest = self.clock() - self._write_timeout_seconds
        for connection in list(self._connections):
            since = connection._stalled_since
            if since is not None and since <= latest:
                connection.close("peer-does-not-read")
        self.call_later(self._write_timeout_seconds / 4, self._close_stalled)

    def _gone(self, connection: Connection, reason: str) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self._selector.unregister(connection._socket)
            connection._socket.close()
            self._receiver.on_closed(connection, reason)
