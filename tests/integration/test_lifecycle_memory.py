"""Drills: models that take twice the memory they declared, tell nonsense or lie are stopped; neighbours go on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from integration.lifecycle_rig import MIB, WAIT_SECONDS, Holder, Rig, eventually, refused, rig
from modelmora.errors import LoadFailed, NonsenseFootprint, OutOfMemory, WorkerUnavailable
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora_lifecycle import actor

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


async def next_in(watch: Any, version: str, state: str) -> pb.Replica:
    """The next replica of a version that a watch tells of in this state."""
    wanted = pb.ReplicaState.Value(f"REPLICA_STATE_{state}")
    async with asyncio.timeout(2 * WAIT_SECONDS):
        while True:
            replica = (await watch.read()).replica
            if (replica.model_version, replica.state) == (version, wanted):
                return replica  # type: ignore[no-any-return]


async def forever(holder: Holder) -> None:
    while True:
        await holder.embed()


GROWTH = {
    "slower-than-the-measuring": {"memory_step_bytes": 4 * MIB, "memory_step_seconds": 0.02, "takes_bytes": 240 * MIB},
    "faster": {"memory_step_bytes": 4 * MIB, "takes_bytes": 240 * MIB},
    "at-once": {"takes_bytes": 2048 * MIB},
}


async def test_models_that_take_twice_what_they_declared_are_stopped_and_their_neighbour_goes_on(
    database_url: str, data_dir: Path
) -> None:
    async with rig(database_url, data_dir, growth_factor=1.1) as node, neighbour(node):
        for name, growth in GROWTH.items():
            version = await node.echo(f"acme/{name}", memory_bytes=120 * MIB, **growth)
            error = await refused(node.load(version), OutOfMemory)
            arithmetic = ARITHMETIC.format(declared=120 * MIB, limit=int(120 * MIB * 1.1) + 32 * MIB)
            assert re.search(arithmetic, error.message), error.message
            assert error.metadata["model_version"] == version

        version = await node.echo("acme/leak", memory_bytes=64 * MIB, leak_bytes_per_batch=16 * MIB)
        holder = await (await node.acquire(version)).ready()
        watch = node.lifecycle.WatchReplicas(pb.WatchReplicasRequest())
        await watch.read()
        with pytest.raises((WorkerUnavailable, AssertionError)):
            await asyncio.wait_for(forever(holder), 30)
        revoked = await holder.hear("revoked")
        assert (revoked.crashed, revoked.out_of_memory) == (True, True)
        reason = (await next_in(watch, version, "FAILED")).reason
        watch.cancel()
        assert re.search("more memory than it may|ran out of memory", reason)
        assert re.search(ARITHMETIC.format(declared=64 * MIB, limit=int(64 * MIB * 1.1) + 32 * MIB), reason), reason
        await holder.close()


async def test_who_declares_nothing_may_take_what_is_free_at_once(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor, "SAMPLE_SECONDS", 60.0)  # from the launch on, not from the first measuring on
    async with rig(database_url, data_dir, watch_interval_seconds=60.0) as node:
        version = await node.echo("acme/unknown", takes_bytes=280 * MIB)
        holder = await (await node.acquire(version)).ready()
        assert (await holder.embed()).rows
        await holder.close()


async def test_who_declared_nothing_keeps_what_it_took_when_others_take_the_rest(
    database_url: str, data_dir: Path
) -> None:
    async with rig(database_url, data_dir) as node:
        holders = []
        for name, size in (("first", 110 * MIB), ("second", 200 * MIB)):
            version = await node.echo(f"acme/{name}", takes_bytes=size)
            holders.append(await (await node.acquire(version)).ready())
        for _ in range(20):
            for holder in holders:
                assert (await holder.embed()).rows
            await asyncio.sleep(0.1)
        assert len({replica.pid for replica in await node.replicas()}) == 2
        for holder in holders:
            await holder.close()


async def test_nonsense_fails_a_load_silence_ends_it_and_progress_is_waited_for(
    database_url: str, data_dir: Path
) -> None:
    async with rig(database_url, data_dir) as node:
        for name, claimed, declared in (("less", -1, 0), ("more", 2**50, 0), ("declared", 2**50, 64 * MIB)):
            version = await node.echo(f"acme/{name}", claimed_bytes=claimed, memory_bytes=declared)
            error = await refused(node.load(version), NonsenseFootprint)
            assert str(claimed) in error.message
            assert error.metadata["model_version"] == version
    async with rig(database_url, data_dir, load_timeout_seconds=2.5) as node:
        version = await node.echo("acme/slow", takes_bytes=4 * MIB, memory_step_bytes=MIB, memory_step_seconds=0.7)

        async def milliseconds() -> int:
            try:
                return (await node.load(version)).load_duration.ToMilliseconds()
            except LoadFailed:  # that the worker has stood still in between is silence, too
                return 0

        assert await eventually(milliseconds, bool) > 2500
        error = await refused(node.load(await node.echo("acme/hangs", load_seconds=600)), LoadFailed)
        assert "within 2.5 s" in error.message


async def test_workers_that_call_themselves_well_and_do_not_answer_are_replaced(
    database_url: str, data_dir: Path
) -> None:
    lies = {
        "fails": ({"fail_after_batches": 0}, "fails real requests: .*told to fail"),
        # A right answer of another task is no nonsense. Two of them, for what is wrong is asked for again; no more, for
        # after a slow answer the next one is asked for twenty times as late.
        "ranks": ({"fail_after_batches": 2, "task": "reranking"}, "fails real requests: .*told to fail"),
        "reads": ({"fail_after_batches": 2, "task": "question_answering"}, "fails real requests: .*told to fail"),
        "sorts": ({"fail_after_batches": 2, "task": "classification"}, "fails real requests: .*told to fail"),
    }
    hangs = {"hangs": ({"hang_after_batches": 0}, "has not answered a real request")}
    # An answer is waited for that comes, however late, and one that does not come is not.
    for seconds, told in ((60.0, lies), (0.3, hangs)):
        settings = {"probe_interval_seconds": 0.1, "probe_timeout_seconds": seconds, "unhealthy_grace_seconds": 0.2}
        async with rig(database_url, data_dir, **settings) as node:
            for name, (lie, reason) in told.items():
                version = await node.echo(f"acme/{name}", **lie)
                watch = node.lifecycle.WatchReplicas(pb.WatchReplicasRequest())
                assert (await watch.read()).reset
                await node.load(version)
                sick = await next_in(watch, version, "UNHEALTHY")
                assert re.search(reason, sick.reason), sick.reason
                assert (await next_in(watch, version, "FAILED")).uid == sick.uid
                watch.cancel()
