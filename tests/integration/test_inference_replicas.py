"""Several replicas of one version: how work is shared between them, and what the end of one means for the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.inference_rig import Loaded, Rig, held, rig, version_of
from modelmora import errors
from modelmora.common.v1 import common_pb2

VERSION = version_of("acme/echo")


@pytest.fixture
async def slow(data_dir: Path) -> AsyncIterator[Rig]:
    """A twentieth of a second for each batch of one text."""
    async with rig(data_dir, {"acme/echo": {"delay_seconds": 0.05}}, max_batch_entries=1) as made:
        yield made


async def load(made: Rig, calls: int) -> list[asyncio.Task[None]]:
    async def call(number: int) -> None:
        await made.right(f"text {number}")

    return [asyncio.create_task(call(number)) for number in range(calls)]


async def scaled_up(made: Rig) -> Loaded:
    """One more replica, in use."""
    one = await made.lessor.scale_up(VERSION)
    await made.until(lambda queue: queue.replicas == 2)
    return one


async def entries(worker: Loaded) -> int:
    return (await worker.seen()).entries


async def test_invited_to_a_second_replica_it_shares_the_work_between_both(slow: Rig) -> None:
    await slow.right("warm up")
    with slow.held():
        calls = await load(slow, 80)
        second = await slow.lessor.scale_up(VERSION)
        lease = await slow.lessor.lease(1)
        assert lease.worker is second
        first_want, second_want = slow.lessor.wants
        assert first_want.holder == second_want.holder != ""
        assert second_want.if_loaded
        await slow.until(lambda queue: queue.replicas == 2)
        with held(second.process.pid):
            await slow.until(lambda queue: queue.in_flight == 4)  # two batches on each
    await asyncio.gather(*calls)
    shares = sorted([await entries(slow.worker), await entries(second)])
    assert sum(shares) == 81
    # As many as the other does, but for what one of them stands still while the other does not.
    assert shares[0] >= 2


async def test_lifecycle_hears_what_waits(slow: Rig) -> None:
    async with slow.lessor.loads_wait(VERSION):
        calls = await load(slow, 400)  # work for twenty seconds
        await slow.waiting(400)
    lease = await slow.lessor.lease(0)
    async with slow.lessor.changed, asyncio.timeout(60):
        await slow.lessor.changed.wait_for(lambda: len(lease.waiting) >= 2)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    (entries_first, _), (entries_then, oldest) = lease.waiting[:2]
    assert entries_first > entries_then > 0
    assert oldest >= 0.9, "not more often than once a second"


async def test_the_end_of_one_lease_does_not_disturb_the_other(slow: Rig) -> None:
    await slow.right("warm up")
    second = await scaled_up(slow)
    lease = await slow.lessor.lease(1)
    calls = await load(slow, 20)
    await slow.running()
    lease.ask_to_yield()
    await asyncio.wait_for(lease.closed.wait(), 30)
    first = await slow.lessor.lease(0)
    assert not first.closed.is_set()
    await asyncio.gather(*calls)
    assert len(slow.lessor.leases) == 2, "no lease is asked for while another serves"
    assert not second.process.exited.done()


async def test_the_first_lease_may_end_while_a_further_one_goes_on(slow: Rig) -> None:
    await slow.right("warm up")
    await scaled_up(slow)
    calls = await load(slow, 20)
    await slow.running()
    (await slow.lessor.lease(0)).revoke()
    await asyncio.gather(*calls)
    assert len(slow.lessor.leases) == 2
    await slow.until(lambda queue: queue.replicas == 1)
    await slow.right("and later")


async def test_what_a_dead_replica_had_goes_to_the_other_one(slow: Rig) -> None:
    await slow.right("warm up")
    second = await scaled_up(slow)
    lease = await slow.lessor.lease(1)
    calls = await load(slow, 20)
    await slow.running()
    second.kill()
    await lease.closed.wait()
    await asyncio.gather(*calls)
    assert slow.lessor.launches == 2


async def test_a_poisonous_text_is_condemned_alone_whichever_replica_it_kills(data_dir: Path) -> None:
    options = {"crash_on_text": "poison", "delay_seconds": 0.02}
    async with rig(data_dir, {"acme/echo": options}, max_batch_entries=4) as made:
        await made.right("warm up")
        await scaled_up(made)
        good = await load(made, 20)
        with pytest.raises(errors.RequestCrashedWorker):
            await made.embed("poison", priority=common_pb2.PRIORITY_HIGH)
        await asyncio.gather(*good)
