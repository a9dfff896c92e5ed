"""The gRPC server of the host: grpc.aio's, and another one in its place when a call has broken that.

A path that is not UTF-8 ends the loop in which grpc.aio (1.85) takes calls: the ports are closed, the process lives on,
and nobody is told. Anybody who reaches the port can send one. So the end of the loop is noticed here: the broken server
closes its ports and sends its clients away (GOAWAY: gRPC connects anew by itself), calls that run go on to their end,
and the next server takes the ports over, some milliseconds later.

Two more things are done in another way than grpc.aio does them, because every call pays for them. Methods are
registered, and acceptors of ours wait for their calls: grpc.aio takes in one call a turn of its loop, through three
tasks. And the bytes that wake the event loop, one for each of the four events of a call, are read all at once.

Taking a call in costs a tenth of answering it, and gRPC has one line for all calls of a method: who sent ten thousand
at once was ahead of everybody else until all of them were answered. So calls are taken in faster than they are begun,
and those that wait are begun in turn: one of each connection and method. (Beside five clients that cancelled what they
asked, on a busy machine, an urgent call of a sixth waited in gRPC's line for 15 s.)

And two ends of calls are ours: a client that closes its side before its message is told so, and an answer that meets
the end of its call is no error of anybody.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

Item = TypeVar("Item")

TAKE_OVER_SECONDS = 30.0
_LONGEST_CALL_SECONDS = 86_400.0
"""So long calls of a broken server may go on; the stop of the host ends them before."""
_PAUSE_SECONDS = 0.005
_END_SECONDS = 5.0
_UNIX = "unix:"
_ACCEPTORS = 8
"""So many calls of a method can come in before the loop turns to them."""
_BEGUN = 6
"""So many calls are begun in a turn of the loop."""
_CROWD = 32
"""When more wait to be begun, one is begun in a turn, and up to all acceptors' calls come in."""
_MOST_WAITING = 50_000
"""So many calls wait to be begun. Beyond that another is begun for each that comes in, and the line is gRPC's again,
which bounds it."""
_WAKE_BYTES = 4096
_HANDLE = {
    (False, False): cygrpc._handle_unary_unary_rpc,
    (False, True): cygrpc._handle_unary_stream_rpc,
    (True, False): cygrpc._handle_stream_unary_rpc,
    (True, True): cygrpc._handle_stream_stream_rpc,
}
"""By whether a stream comes in and a stream goes out."""
_asked: set[Any] = set()
"""Requests for calls that gRPC has not answered: it writes to them, even when whoever waited has been cancelled."""


class Server:
    """Serves from `start` to `stop` on the ports that were added."""

    def __init__(
        self, methods: Mapping[str, grpc.RpcMethodHandler[Any, Any]], options: Sequence[tuple[str, Any]]
    ) -> None:
        """`methods` by path."""
        self._methods, self._options = dict(methods), tuple(options)
        self._addresses: list[str] = []
        self._server = self._made()
        self._broken: list[Any] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def add_insecure_port(self, address: str) -> int:
        """`host:port` or `unix:path`; the port. Raises RuntimeError when it cannot be listened on."""
        port = int(self._server.add_insecure_port(address.encode()))
        self._addresses.append(address if address.startswith(_UNIX) else f"{address.rpartition(':')[0]}:{port}")
        return port

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace_seconds: float) -> None:
        """Takes no new calls; those that run have the grace, then they are cancelled."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        servers = [self._server, *self._broken]
        await asyncio.gather(*(server.shutdown(grace_seconds) for server in servers))
        await asyncio.gather(*(server.ended() for server in servers))

    def _made(self) -> Any:
        loop = asyncio.get_running_loop()
        core = _Core(loop, None, (), None, self._options, None).told(self._on_break)
        core.add_registered_method_handlers(self._methods)
        return core

    def _on_break(self) -> None:
        if not self._stopping:
            task = asyncio.get_running_loop().create_task(self._take_over(), name="next gRPC server")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _take_over(self) -> None:
        broken = self._server
        self._broken.append(broken)
        ending = asyncio.create_task(broken.shutdown(_LONGEST_CALL_SECONDS), name="broken gRPC server")
        self._tasks.add(ending)
        ending.add_done_callback(lambda _: self._forget(broken, ending))
        until = time.monotonic() + TAKE_OVER_SECONDS
        while (following := self._bound()) is None:
            if time.monotonic() > until:
                log.critical("a call broke the gRPC server and its ports are not free after %g s", TAKE_OVER_SECONDS)
                return
            await asyncio.sleep(_PAUSE_SECONDS)
        self._server = following
        await following.start()
        log.warning("a call with an impossible path broke the gRPC server; another has taken its place")

    def _bound(self) -> Any:
        """The next server with all the ports; None while one of them is still taken."""
        # gRPC removes a socket's file when it closes that: not the one of the next server, then.
        if any(os.path.exists(one.removeprefix(_UNIX)) for one in self._addresses if one.startswith(_UNIX)):
            return None
        server = self._made()
        try:
            for address in self._addresses:
                server.add_insecure_port(address.encode())
        except RuntimeError:
            return None
        return server

    def _forget(self, broken: Any, ending: asyncio.Task[None]) -> None:
        self._tasks.discard(ending)
        if not self._stopping:
            self._broken.remove(broken)


class _Core(cygrpc.AioServer):  # type: ignore[misc]
    """grpc.aio's server without its Python face, which makes its own."""

    def told(self, on_break: Callable[[], None]) -> _Core:
        """`on_break` hears when it has stopped to take calls, though nobody has asked for that."""
        self._on_break = on_break
        self._registered: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: Turns[tuple[str, Any, Any]] = Turns()
        """Path, handler and state of calls that are not begun, by connection and path."""
        self._begun = 0
        """Calls, in this turn of the loop."""
        self._running_on = asyncio.get_running_loop()
        self._nothing: asyncio.Future[None] = self._running_on.create_future()
        return self

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        super().add_registered_method_handlers(handlers)
        self._registered |= handlers

    async def start(self) -> None:
        await super().start()
        for path, handler in self._registered.items():
            self._keep(self._accept(path, handler, _ACCEPTORS - 1))

    async def _accept(self, path: str, handler: Any, others: int) -> None:
        """Takes in the calls of a method. With the first come the other acceptors: most methods are seldom called."""
        key = path.encode()
        while self.is_running():
            try:
                state = await self._next_call(key)
            except cygrpc._RequestCallError:
                continue  # the server stops, or this one call was over before it began
            for _ in range(others):
                self._keep(self._accept(path, handler, 0))
            others = 0
            self._take_in(path, handler, state)
            del state  # the next call may be long in coming

    def _take_in(self, path: str, handler: Any, state: Any) -> None:
        """Has a call begun now or, when others wait or enough were begun in this turn of the loop, when it is due."""
        if not self._waiting and self._begun < _BEGUN:
            self._begin(path, handler, state)
            return
        self._waiting.put((_peer(state, self._running_on), path), (path, handler, state))
        if len(self._waiting) > _MOST_WAITING:
            self._begin(*self._waiting.next())

    def _begin(self, path: str, handler: Any, state: Any) -> None:
        if not self._begun:
            self._running_on.call_soon(self._next_turn)
        self._begun += 1
        self._keep(cygrpc._schedule_rpc_coro(self._answer(handler, state), state, self._running_on, path))

    def _next_turn(self) -> None:
        self._begun = 0
        while self._waiting and self._begun < (1 if len(self._waiting) > _CROWD else _BEGUN):
            self._begin(*self._waiting.next())

    async def _answer(self, handler: Any, state: Any) -> None:
        handle = _HANDLE[handler.request_streaming, handler.response_streaming]
        try:
            await handle(handler, state, self._running_on)
            context = cygrpc._ServicerContext(state, None, None, self._running_on)
            if not context.done():  # the client closed its side before a whole message: grpc.aio would say nothing
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request message")
        except cygrpc.ExecuteBatchError:
            # What was sent met the end of the call. When the event of that end comes second, grpc.aio logs a traceback.
            raise asyncio.CancelledError from None

    async def ended(self) -> None:
        """Once it is shut down: what waited for calls has heard so. Else it would hear it when the loop is closed."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_END_SECONDS)

    async def _next_call(self, key: bytes) -> Any:
        request = self._request_registered_call(key)
        asked = request.send(None)
        asked._asyncio_future_blocking = False  # as a task would, which takes it from here
        _asked.add(request)
        try:
            await asked
        finally:
            if not asked.cancelled():
                _asked.discard(request)
        try:
            request.send(None)
        except StopIteration as ended:
            return ended.value

    def _keep(self, work: Any) -> None:
        """Runs it; the loop alone would forget it."""
        task = self._running_on.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _make_request_call_future(self, method: bytes | None) -> Any:
        """What the loop of grpc.aio waits for: calls of methods that there are not."""
        return self._nothing if method is not None else super()._make_request_call_future(None)

    async def _server_main_loop(self, started: asyncio.Future[bool]) -> None:
        try:
            await super()._server_main_loop(started)
        except UnicodeDecodeError:
            self._on_break()


def _peer(state: Any, loop: asyncio.AbstractEventLoop) -> str:
    """The connection that a call came on; one name for all on a Unix socket."""
    peer: str = cygrpc._ServicerContext(state, None, None, loop).peer()
    return peer


class Turns(Generic[Item]):
    """What waits, by whose it is: who has something gives one in turn, the first of its own."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[Item]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, whose: Hashable, item: Item) -> None:
        line = self._lines.get(whose)
        if line is None:
            line = self._lines[whose] = deque()
        line.append(item)
        self._count += 1

    def next(self) -> Item:
        whose = next(iter(self._lines))
        line = self._lines.pop(whose)
        item = line.popleft()
        self._count -= 1
        if line:
            self._lines[whose] = line  # behind the others
        return item


def wake_once() -> None:
    """From now on the running loop is woken by gRPC once for many events. Before anything else of grpc.aio is made."""
    loop: Any = asyncio.get_running_loop()
    add_reader, sockets = loop.add_reader, []

    def note(file: Any, take: Callable[..., None], *given: Any) -> None:
        def taken() -> None:
            global _read_at_once
            _read_at_once = _WAKE_BYTES
            try:
                while _strands(take, *given):
                    pass
            finally:
                _read_at_once = 1

        sockets.append(file)
        add_reader(file, taken)

    loop.add_reader = note
    try:
        cygrpc.init_grpc_aio()
    finally:
        del loop.add_reader
    for found in sockets:
        if type(found) is socket.socket:
            found.__class__ = _WakeUps


def _strands(take: Callable[..., None], *given: Any) -> bool:
    """Takes events in turn. True: one was of a loop that is closed, and nobody's; others may lie behind it, for which
    nothing wakes the loop any more."""
    try:
        take(*given)
    except RuntimeError as error:
        if str(error) != "Event loop is closed":
            raise
        return True
    return False


_read_at_once = 1
"""So many bytes are read by the loop that has the turn: other loops of this process share the socket."""


class _WakeUps(socket.socket):
    """The poller's thread writes a byte for each event, and grpc.aio (1.85) takes all events at the first and reads one
    byte: the others would wake the loop for nothing, each for a system call or two."""

    __slots__ = ()

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        try:
            return super().recv(max(size, _read_at_once), flags)
        except BlockingIOError:
            return b""
