"""What is done about grpc.aio's ways of waking the event loop."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from modelmora_runtime.grpc_server import _WakeUps, wake_once


class Loop(asyncio.SelectorEventLoop):
    """Knows what it was asked to read."""

    def __init__(self) -> None:
        self.files: list[Any] = []
        super().__init__()

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        self.files.append(fd)
        super().add_reader(fd, callback, *args)


def test_all_that_wakes_the_loop_is_read_at_once() -> None:
    async def begin() -> list[Any]:
        wake_once()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        assert "add_reader" not in vars(loop)
        return loop.files

    with asyncio.Runner(loop_factory=Loop) as runner:
        files = runner.run(begin())
    assert [type(file) for file in files if isinstance(file, socket.socket)] == [_WakeUps]
    reads, writes = socket.socketpair()
    with reads, writes:
        for _ in range(20):
            writes.send(b"1")
        reads.__class__ = _WakeUps
        assert reads.recv(1) == b"1" * 20
