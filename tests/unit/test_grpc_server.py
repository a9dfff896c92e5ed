"""What is done about grpc.aio's ways of waking the event loop."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from grpc._cython import cygrpc
from modelmora_runtime import grpc_server
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


def test_of_another_loop_one_byte_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = socket.socketpair()
    with reads, writes:
        reads.setblocking(False)
        writes.send(b"1" * 20)
        reads.__class__ = _WakeUps
        assert reads.recv(1) == b"1"
        monkeypatch.setattr(grpc_server, "_read_at_once", 4096)
        assert reads.recv(1) == b"1" * 19
        assert reads.recv(1) == b""


async def test_an_event_of_a_closed_loop_leaves_none_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """All bytes are read by then: nothing else would wake the loop for what came after it."""
    loop = asyncio.get_running_loop()
    reads, writes = socket.socketpair()
    events, taken, over = ["first", "closed", "closed", "last"], [], asyncio.Event()

    def take() -> None:
        reads.recv(1)
        while events:
            event = events.pop(0)
            if event == "closed":
                raise RuntimeError("Event loop is closed")
            taken.append(event)
        over.set()

    with reads, writes:
        reads.setblocking(False)
        monkeypatch.setattr(cygrpc, "init_grpc_aio", lambda: loop.add_reader(reads, take))
        wake_once()
        writes.send(b"1" * len(events))
        async with asyncio.timeout(30):
            await over.wait()
        loop.remove_reader(reads)
    assert taken == ["first", "last"]
