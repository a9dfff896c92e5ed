"""What a batch of grpc.aio has is freed, however the batch ends and whoever has gone meanwhile."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from modelmora_runtime import grpc_batches
from modelmora_runtime.grpc_batches import free_batches

MIB = 1024 * 1024


class Batch:
    """One batch, as grpc.aio executes it: what comes after its end frees what it had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.future: asyncio.Future[None] | None = None
        self.freed: list[str] = []
        monkeypatch.setattr(cygrpc, "execute_batch", cygrpc.execute_batch)
        monkeypatch.setattr(grpc_batches, "_execute", self._execute)
        free_batches()

    async def _execute(self, call: Any, operations: tuple[Any, ...], loop: asyncio.AbstractEventLoop) -> None:
        self.future = loop.create_future()
        await self.future
        self.freed.append("all")

    async def begun(self) -> asyncio.Task[None]:
        task = asyncio.create_task(cygrpc.execute_batch(None, (), asyncio.get_running_loop()))
        await asyncio.sleep(0)
        assert self.future is not None
        return task

    def end(self, error: Exception | None = None) -> None:
        assert self.future is not None
        assert not self.future.cancelled(), "gRPC would not say how it ended"
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> Batch:
    return Batch(monkeypatch)


async def test_one_that_ends_well_is_freed(batch: Batch) -> None:
    task = await batch.begun()
    assert not batch.freed
    batch.end()
    await task
    assert batch.freed == ["all"]


async def test_one_that_fails_is_freed_and_fails(batch: Batch) -> None:
    task = await batch.begun()
    batch.end(cygrpc.ExecuteBatchError("the call is over"))
    with pytest.raises(cygrpc.ExecuteBatchError, match="the call is over"):
        await task
    assert batch.freed == ["all"]


@pytest.mark.parametrize("error", [None, cygrpc.ExecuteBatchError("the call is over")])
async def test_one_that_nobody_waits_for_any_more_is_freed_once_it_has_ended(
    batch: Batch, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    task = await batch.begun()
    task.cancel("gone")
    with pytest.raises(asyncio.CancelledError, match="gone"):
        await task
    assert not batch.freed  # gRPC still writes to it
    batch.end(error)
    await asyncio.sleep(0)
    assert batch.freed == ["all"]
    del batch.future
    gc.collect()
    assert caplog.messages == []


async def test_one_that_has_ended_when_its_task_is_cancelled_is_freed(batch: Batch) -> None:
    task = await batch.begun()
    batch.end()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert batch.freed == ["all"]


async def test_a_task_that_is_cancelled_before_it_waits_waits_for_nothing(batch: Batch) -> None:
    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await cygrpc.execute_batch(None, (), asyncio.get_running_loop())

    task = asyncio.create_task(cancelled())
    with pytest.raises(asyncio.CancelledError):
        await task
    batch.end()
    await asyncio.sleep(0)
    assert batch.freed == ["all"]


async def test_a_task_that_is_cancelled_twice_is_woken_once(batch: Batch, caplog: pytest.LogCaptureFixture) -> None:
    """What it waits for afterwards was interrupted by the second one, or the loop complained of a task that is done."""
    waited = []

    async def tidy_up() -> None:
        try:
            await cygrpc.execute_batch(None, (), asyncio.get_running_loop())
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            waited.append("on")

    for awaited in (tidy_up(), cygrpc.execute_batch(None, (), asyncio.get_running_loop())):
        task = asyncio.create_task(awaited)
        await asyncio.sleep(0)
        task.cancel()
        task.cancel()
        await asyncio.wait([task])
        batch.end()
        await asyncio.sleep(0.01)
    assert waited == ["on"]
    assert batch.freed == ["all", "all"]
    assert caplog.messages == []


class _Malloc(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


@pytest.fixture
def freeing() -> Iterator[None]:
    before = cygrpc.execute_batch
    free_batches()
    yield
    cygrpc.execute_batch = before


async def test_an_answer_whose_call_is_over_leaves_nothing(freeing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each took its length for ever."""
    # who sends an answer may hear that the call is over before it is cancelled for that: pytest would keep the log's
    # record of it, and the record keeps the answer
    monkeypatch.setattr(logging.getLogger("grpc._cython.cygrpc"), "disabled", True)
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("this C library does not say how much is allocated")
    library.mallinfo2.restype = _Malloc

    def allocated() -> int:
        gc.collect()
        told = library.mallinfo2()
        return int(told.uordblks + told.hblkhd)

    asked = asyncio.Event()

    async def answer(request: bytes, context: Any) -> bytes:
        asked.set()
        return bytes(4 * MIB)

    handler: Any = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Answer": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(60):
        ask: Any = channel.unary_unary("/test/Answer")

        async def ask_in_vain() -> None:
            asked.clear()
            call = ask(b"")
            await asked.wait()  # the answer is being sent
            call.cancel()

        await ask_in_vain()
        before = allocated()
        for _ in range(150):
            await ask_in_vain()
        while allocated() > before + 20 * MIB:  # noqa: ASYNC110 - the last ones are just being ended
            await asyncio.sleep(0.01)
    await server.stop(None)
