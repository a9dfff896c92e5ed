"""What is done about grpc.aio's ways of waking the event loop, and whose calls are begun when many wait."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from grpc._cython import cygrpc
from modelmora_runtime import grpc_server
from modelmora_runtime.grpc_server import Server, Turns, _WakeUps, wake_once


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


def test_who_has_something_gives_one_in_turn() -> None:
    turns = Turns[str]()
    for item in ("a1", "a2", "b1", "a3", "c1"):
        turns.put(item[0], item)
    assert [turns.next(), turns.next()] == ["a1", "b1"]
    turns.put("b", "b2")
    assert len(turns) == 4
    assert [turns.next() for _ in range(4)] == ["c1", "a2", "b2", "a3"]
    assert not turns


class Calls:
    """A server's core to which calls come from here: a call is its connection and a number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def begin(call: Any, *_: object) -> None:
            self.begun.append(call)

        self.begun: list[tuple[str, int]] = []
        self.coming: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.core: Any = Server({}, ())._server
        monkeypatch.setattr(grpc_server, "_peer", lambda call, _: call[0])
        monkeypatch.setattr(cygrpc, "_schedule_rpc_coro", begin)
        monkeypatch.setattr(self.core, "_answer", lambda _, call: call, raising=False)
        monkeypatch.setattr(self.core, "_next_call", self.next, raising=False)
        monkeypatch.setattr(self.core, "is_running", lambda: True, raising=False)

    async def next(self, _: bytes) -> tuple[str, int]:
        await asyncio.sleep(0)  # a call comes in a later turn of the loop than it is asked for
        return await self.coming.get()

    async def until_begun(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.begun) < count:  # noqa: ASYNC110 - turns of the loop are what is looked at
                await asyncio.sleep(0)

    async def end(self) -> None:
        for task in self.core._tasks:
            task.cancel()
        await asyncio.wait(self.core._tasks)


async def test_a_call_does_not_wait_for_all_that_another_connection_has_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    for number in range(200):
        calls.core._take_in("/a", None, ("storm", number))
    calls.core._take_in("/a", None, ("calm", 0))
    calls.core._take_in("/b", None, ("storm", 1000))
    await calls.until_begun(202)
    assert {("calm", 0), ("storm", 1000)} <= set(calls.begun[:11])
    assert [number for who, number in calls.begun if who == "storm" and number < 1000] == list(range(200))
    await calls.end()


async def test_in_a_crowd_calls_are_taken_in_faster_than_they_are_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    for number in range(400):
        calls.coming.put_nowait(("storm", number))
    calls.coming.put_nowait(("calm", 0))
    calls.core._keep(calls.core._accept("/a", None, 7))
    await calls.until_begun(401)
    # Eight come in a turn, and one is begun: so the last is there when a seventh of the others has been.
    assert calls.begun.index(("calm", 0)) < 200
    assert [number for who, number in calls.begun if who == "storm"] == list(range(400))
    await calls.end()


async def test_beyond_the_most_that_may_wait_one_is_begun_for_each_that_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "_MOST_WAITING", 10)
    calls = Calls(monkeypatch)
    for number in range(100):
        calls.core._take_in("/a", None, ("storm", number))
        assert len(calls.core._waiting) <= 10
    await calls.until_begun(100)
    assert [number for _, number in calls.begun] == list(range(100))
    await calls.end()
