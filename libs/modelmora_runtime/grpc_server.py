"""The gRPC server of the host: grpc.aio's, and another one in its place when a call has broken that.

A path that is not UTF-8 ends the loop in which grpc.aio (1.85) takes calls: the ports are closed, the process lives on,
and nobody is told. Anybody who reaches the port can send one. So the end of the loop is noticed here: the broken server
closes its ports and sends its clients away (GOAWAY: gRPC connects anew by itself), calls that run go on to their end,
and the next server takes the ports over, some milliseconds later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

TAKE_OVER_SECONDS = 30.0
_LONGEST_CALL_SECONDS = 86_400.0
"""So long calls of a broken server may go on; the stop of the host ends them before."""
_PAUSE_SECONDS = 0.005
_UNIX = "unix:"


class Server:
    """Serves from `start` to `stop` on the ports that were added."""

    def __init__(self, handlers: Sequence[grpc.GenericRpcHandler], options: Sequence[tuple[str, Any]]) -> None:
        self._handlers, self._options = list(handlers), tuple(options)
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
        await asyncio.gather(*(server.shutdown(grace_seconds) for server in (self._server, *self._broken)))

    def _made(self) -> Any:
        loop = asyncio.get_running_loop()
        return _Core(loop, None, self._handlers, None, self._options, None).told(self._on_break)

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
        return self

    async def _server_main_loop(self, started: asyncio.Future[bool]) -> None:
        try:
            await super()._server_main_loop(started)
        except UnicodeDecodeError:
            self._on_break()
