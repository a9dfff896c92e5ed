"""Drills: models that take twice the memory they declared, tell nonsense or lie are stopped; neighbours go on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from integration.lifecycle_rig import MIB, Holder, Rig, refused, rig
from modelmora.errors import LoadFailed, ModelMoraError, NonsenseFootprint, OutOfMemory, WorkerUnavailable
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb

ARITHMETIC = r"declared {declared}, granted \d+, last measured \d+, limit {limit} bytes"


@asynccontextmanager
async def neighbour(node: Rig) -> AsyncIterator[Holder]:
    """A loaded model that is asked all the while, and answers every time."""
    holder = await (await node.acquire(await node.echo("acme/neighbour"))).ready()
    stop = asyncio.Event()

    async def ask() -> int:
        count = 0
        while not stop.is_set():
            assert (await holder.embed()).rows
            count += 1
        return count

    asking = asyncio.create_task(ask())
    try:
        yield holder
    finally:
        stop.set()
        assert await asking > 3
        await holder.close()


@pytest.mark.parametrize(
    "growth",
    [
        {"takes_bytes": 240 * MIB, "memory_step_bytes": 4 * MIB, "memory_step_seconds": 0.02},
        {"takes_bytes": 240 * MIB, "memory_step_bytes": 4 * MIB},
        {"takes_bytes": 2048 * MIB},
    ],
    ids=["slower-than-the-measuring", "faster", "at-once"],
)
async def test_a_load_that_takes_more_than_declared_is_stopped(
    database_url: str, data_dir: Path, growth: dict[str, int]
) -> None:
    async with rig(database_url, data_dir, growth_factor=1.1) as node, neighbour(node):
        version = await node.echo("acme/glutton", memory_bytes=120 * MIB, **growth)
        error = await refused(node.load(version), OutOfMemory)
        limit = int(120 * MIB * 1.1) + 32 * MIB
        assert re.search(ARITHMETIC.format(declared=120 * MIB, limit=limit), error.message), error.message
        ended = await node.lifecycle.ListReplicas(pb.ListReplicasRequest())
        assert [r.model_version for r in ended.replicas if r.state == pb.REPLICA_STATE_LOADED] != [version]


async def test_a_model_that_grows_in_use_is_stopped_with_the_arithmetic(database_url: str, data_dir: Path) -> None:
    async with rig(database_url, data_dir) as node, neighbour(node):
        version = await node.echo("acme/leak", memory_bytes=64 * MIB, leak_bytes_per_batch=16 * MIB)
        holder = await (await node.acquire(version)).ready()
        failed = asyncio.create_task(node.state_of(version, "FAILED"))
        with pytest.raises((WorkerUnavailable, AssertionError)):
            for _ in range(100):
                await holder.embed()
        revoked = await holder.hear("revoked")
        assert revoked.crashed
        reason = (await failed).reason
        assert re.search("more memory than it may|ran out of memory", reason)
        assert re.search(ARITHMETIC.format(declared=64 * MIB, limit=112 * MIB), reason), reason
        await holder.close()


@pytest.mark.parametrize("claimed", [-1, 2**50])
async def test_an_engine_that_tells_nonsense_fails_its_load(database_url: str, data_dir: Path, claimed: int) -> None:
    async with rig(database_url, data_dir) as node:
        error = await refused(node.load(await node.echo("acme/liar", claimed_bytes=claimed)), NonsenseFootprint)
        assert str(claimed) in error.message


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"fail_after_batches": 0}, "fails real requests: .*told to fail"),
        ({"hang_after_batches": 0}, "has not answered"),
    ],
    ids=["fails", "hangs"],
)
async def test_a_worker_that_calls_itself_well_and_does_not_answer_is_replaced(
    database_url: str, data_dir: Path, lie: dict[str, int], reason: str
) -> None:
    settings = {"probe_interval_seconds": 0.1, "probe_timeout_seconds": 0.3, "unhealthy_grace_seconds": 0.2}
    async with rig(database_url, data_dir, **settings) as node:
        version = await node.echo("acme/liar", **lie)
        await node.load(version)
        sick = await node.state_of(version, "UNHEALTHY")
        assert re.search(reason, sick.reason), sick.reason
        gone = await node.state_of(version, "FAILED")
        assert gone.uid == sick.uid


async def test_a_load_that_never_ends_is_given_up_and_one_that_goes_on_is_waited_for(
    database_url: str, data_dir: Path
) -> None:
    async with rig(database_url, data_dir, load_timeout_seconds=0.6) as node:
        slow = await node.echo("acme/slow", takes_bytes=40 * MIB, memory_step_bytes=4 * MIB, memory_step_seconds=0.15)
        await node.load(slow)
        hangs = await node.echo("acme/hangs", load_seconds=600)
        error = await refused(node.load(hangs), LoadFailed)
        assert "within" in error.message
        assert isinstance(error, ModelMoraError)
