"""Leases against real workers: granted, shared, yielded, revoked, lost, and who else then gets the memory."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from integration.lifecycle_rig import MIB, Holder, Rig, alive, eventually, refused, rig, workers_of
from modelmora.common.v1 import common_pb2
from modelmora.errors import (
    DeadlineExceeded,
    InvalidArgument,
    LoadFailed,
    MemoryBusy,
    ModelMoraError,
    NeverFits,
    VersionInUse,
    VersionNotFound,
    WorkerUnavailable,
)
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora_runtime.telemetry import current_span
from modelmora_runtime.worker_channel import WorkerChannel

GRACE = 600.0
"""Longer than any test lasts, on a machine of any speed: what is yielded was yielded, and not taken."""


@pytest.fixture
async def node(database_url: str, data_dir: Path) -> AsyncIterator[Rig]:
    """A place for one: two models of 250 MiB each in 400 MiB. Who is asked to yield is waited for."""
    async with rig(database_url, data_dir, holder_grace_seconds=GRACE, drain_grace_seconds=GRACE) as running:
        yield running


async def two(node: Rig) -> tuple[str, str]:
    return await node.echo("acme/one", memory_bytes=250 * MIB), await node.echo("acme/two", memory_bytes=250 * MIB)


async def test_a_lease_tells_where_the_worker_is_and_lets_its_holder_in(node: Rig) -> None:
    version = await node.echo("acme/one", dimensions=4, max_batch_entries=7)
    holder = await (await node.acquire(version)).ready()
    assert holder.told[-1] == "loaded"
    assert set(holder.told[:-1]) == {"loading"}
    assert holder.loaded.endpoint.startswith("unix:/")
    assert len(holder.loaded.key) == 32
    assert holder.loaded.max_in_flight_batches == 2
    assert holder.loaded.limits.embedding_dimensions == 4
    assert holder.loaded.limits.max_batch_entries == 7
    assert holder.loaded.engine_profile.backend == "echo"
    assert len((await holder.embed()).rows) == 16
    await holder.in_use(1)
    other = await (await node.acquire(version)).ready()
    assert other.loaded.replica == holder.loaded.replica
    assert other.loaded.key != holder.loaded.key
    await other.embed()
    # What is said on one lease and asked by another call nobody puts in order.
    await eventually(node.replicas, lambda found: (found[0].leases, found[0].busy_leases) == (2, 1))
    await other.close()
    await holder.close()


async def test_closing_a_lease_voids_its_key(node: Rig) -> None:
    version = await node.echo("acme/one")
    holder = await (await node.acquire(version)).ready()
    channel = holder.channel
    assert channel is not None
    holder.call.cancel()
    async with asyncio.timeout(20):
        await channel.closed.wait()
    await refused(holder.embed(), WorkerUnavailable)
    with pytest.raises(ModelMoraError):
        await WorkerChannel.connect(holder.loaded.endpoint, holder.loaded.key)
    assert (await node.replicas())[0].leases == 0


async def test_an_idle_lease_makes_room_at_once_and_its_connection_is_closed(node: Rig) -> None:
    one, two_ = await two(node)
    holder = await (await node.acquire(one)).ready()
    await holder.embed()
    other = await (await node.acquire(two_)).ready()
    revoked = await holder.hear("revoked")
    assert two_ in revoked.reason
    assert not revoked.crashed
    assert "yield" not in holder.told
    assert holder.channel is not None
    async with asyncio.timeout(20):
        await holder.channel.closed.wait()
    assert await holder.call.read() is grpc.aio.EOF
    await other.embed()
    assert [replica.model_version for replica in await node.replicas()] == [two_]
    await other.close()


async def test_a_busy_holder_yields_and_gets_the_place_back(node: Rig) -> None:
    one, two_ = await two(node)
    holder = await (await node.acquire(one)).ready()
    await holder.in_use(1)
    other = await node.acquire(two_)
    asked = (await holder.hear("yield")).by
    assert abs(asked.ToNanoseconds() / 1e9 - time.time()) < 30  # no new batch from now on
    assert (await node.replicas('state = "draining"'))[0].model_version == one
    await holder.embed()  # what runs may finish
    await holder.close()
    await other.ready()
    await other.in_use(1)
    again = await node.acquire(one)
    await other.hear("yield")
    await other.in_use(0)
    assert await other.hear("revoked")
    await again.ready()
    await again.close()


async def test_a_holder_that_does_not_yield_loses_its_lease_and_its_connection(
    database_url: str, data_dir: Path
) -> None:
    async with rig(database_url, data_dir, holder_grace_seconds=0.5) as node:
        one, two_ = await two(node)
        holder = await (await node.acquire(one)).ready()
        await holder.in_use(1)
        other = await node.acquire(two_)
        await holder.hear("yield")
        revoked = await holder.hear("revoked")
        assert "did not yield" in revoked.reason
        await refused(holder.embed(), WorkerUnavailable)
        await (await other.ready()).embed()
        await other.close()


async def test_two_models_in_a_place_for_one_take_turns(database_url: str, data_dir: Path) -> None:
    # An idle lease is free once the residency is over: whoever got it says that it is at work long before that.
    async with rig(database_url, data_dir, minimum_residency_seconds=1.5) as node:
        versions = await two(node)
        turns: list[str] = []
        until = time.monotonic() + 60.0

        def over() -> bool:
            return len(turns) >= 5 or time.monotonic() > until

        async def saturate(version: str) -> int:
            served = 0
            while not over():
                holder = await (await node.acquire(version)).ready()
                await holder.in_use(1)
                turns.append(version)
                asked = asyncio.ensure_future(holder.hear("yield"))
                while not asked.done() and not over():
                    await holder.embed()
                    served += 1
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
                await holder.close()
            return served

        served = await asyncio.gather(*(saturate(version) for version in versions))
        assert all(served)
        assert len(turns) >= 4
        assert all(first != second for first, second in itertools.pairwise(turns[:-1])), turns


async def test_a_worker_killed_under_its_lease_is_told_and_the_next_lease_works(node: Rig) -> None:
    version = await node.echo("acme/one")
    for _ in range(3):
        holder = await (await node.acquire(version)).ready()
        await holder.in_use(1)
        replica = (await node.replicas())[0]
        os.kill(replica.pid, signal.SIGKILL)
        revoked = await holder.hear("revoked")
        assert (revoked.crashed, revoked.out_of_memory) == (True, False)
        assert "SIGKILL" in revoked.reason
        await refused(holder.embed(), WorkerUnavailable)
        await holder.close()
    again = await (await node.acquire(version)).ready()
    await again.embed()
    await again.close()


async def test_a_waiter_that_goes_away_loads_nothing_and_the_holder_keeps_its_model(node: Rig) -> None:
    one, two_ = await two(node)
    holder = await (await node.acquire(one)).ready()
    await holder.in_use(1)
    other = await node.acquire(two_)
    await holder.hear("yield")
    other.call.cancel()
    replica = await node.state_of(one, "LOADED")
    assert replica.reason == "its memory is no longer needed"
    await holder.embed()
    third = await (await node.acquire(one)).ready()
    await third.embed()
    assert [r.model_version for r in await node.replicas()] == [one]
    await third.close()
    await holder.close()


async def test_a_cancelled_acquire_leaves_no_process(node: Rig, data_dir: Path) -> None:
    version = await node.echo("acme/slow", load_seconds=60)
    holder = await node.acquire(version)
    await node.state_of(version, "LOADING")
    holder.call.cancel()
    await node.until_empty()
    assert workers_of(data_dir) == []
    assert await node.charged() == 0


async def test_errors_end_the_stream(node: Rig) -> None:
    big = await node.echo("acme/big", memory_bytes=500 * MIB)
    error = await refused((await node.acquire(big)).hear("loaded"), NeverFits)
    assert error.metadata["need_bytes"] == str(500 * MIB)
    bad = await node.echo("acme/bad", fail_load="no")
    await refused((await node.acquire(bad)).hear("loaded"), LoadFailed)
    await refused((await node.acquire("models/acme/big/versions/none")).hear("loaded"), VersionNotFound)
    await refused((await node.acquire("acme/big")).hear("loaded"), InvalidArgument)
    one, two_ = await two(node)
    holder = await (await node.acquire(one)).ready()
    await holder.in_use(1)
    pinned = await node.load(one, pin=True)
    assert pinned.pinned
    await refused((await node.acquire(two_)).hear("loaded"), NeverFits)
    await node.unload(one, force=True, wait=False)
    await holder.close()
    third = await (await node.acquire(two_, priority=30)).ready()
    await third.in_use(1)

    async def told() -> type[Exception]:
        with pytest.raises((MemoryBusy, DeadlineExceeded)) as caught:
            await (await node.acquire(one, priority=10, seconds=3.0)).hear("loaded")
        return type(caught.value)

    # Where the machine stands still, it may be over before it is heard of: that is another error.
    await eventually(told, lambda error: error is MemoryBusy)
    await third.close()
    silent = node.leases.Acquire()
    await silent.write(pb.AcquireRequest(in_use=pb.InUse(in_flight=1)))
    await refused(silent.read(), InvalidArgument)


async def test_who_waits_for_a_load_that_is_lost_hears_of_which_version(node: Rig) -> None:
    killed, unloaded = [await node.echo(f"acme/{name}", load_seconds=600) for name in ("killed", "unloaded")]
    for version in (killed, unloaded):
        holder = await node.acquire(version)
        await holder.hear("loading")
        if version == unloaded:
            await node.unload(version, force=True)
        else:
            (replica,) = await eventually(node.replicas, lambda found: found[0].pid > 0)
            os.kill(replica.pid, signal.SIGKILL)
        error = await refused(holder.hear("loaded"), LoadFailed)
        assert error.metadata["model_version"] == version
        assert error.retry_after_seconds
        await holder.close()


async def test_wants_that_cannot_be_meant_are_refused_at_the_field(node: Rig) -> None:
    version = await node.echo("acme/one")
    for field, wrong in (
        ("want.deadline", {"deadline": Timestamp(seconds=2**63 - 1)}),
        ("want.deadline", {"deadline": Timestamp(seconds=-(2**63))}),
        ("want.deadline", {"deadline": Timestamp(seconds=1, nanos=-5)}),
        ("want.deadline", {"deadline": Timestamp(seconds=1, nanos=2**31 - 1)}),
        ("want.priority", {"priority": 77}),
    ):
        call = node.leases.Acquire()
        await call.write(pb.AcquireRequest(want=pb.Want(model_version=version, **wrong)))  # type: ignore[arg-type]
        error = await refused(call.read(), InvalidArgument)
        assert [violation.field for violation in error.fields] == [field]
    holder = await (await node.acquire(version)).ready()
    await refused((await node.acquire(version, seconds=-60)).hear("loaded"), DeadlineExceeded)
    await holder.close()
    for field, again in (
        ("want.model_version", pb.AcquireRequest(want=pb.Want(model_version="models/acme/other/versions/1"))),
        ("want.priority", pb.AcquireRequest(want=pb.Want(model_version=version, priority=77))),  # type: ignore[arg-type]
        ("in_use.priority", pb.AcquireRequest(in_use=pb.InUse(priority=77))),  # type: ignore[arg-type]
        ("message", pb.AcquireRequest()),
    ):
        holder = await (await node.acquire(version)).ready()
        await holder.call.write(again)
        error = await refused(holder.hear("revoked"), InvalidArgument)
        assert [violation.field for violation in error.fields] == [field]
        await holder.close()
    both = pb.Want(model_version=version, load_nothing=True)
    call = node.leases.Acquire()
    await call.write(pb.AcquireRequest(want=both))
    error = await refused(call.read(), InvalidArgument)
    assert [violation.field for violation in error.fields] == ["want.load_nothing"]


async def test_a_want_that_is_said_again_is_as_urgent_as_the_last_one(node: Rig) -> None:
    one, other = await two(node)
    busy = await (await node.acquire(one, priority=30)).ready()
    await busy.in_use(1)
    waiting = await node.acquire(other, priority=10, seconds=15.0)  # after 20 s LOW is as urgent as HIGH by itself
    await waiting.hear("loading")
    await waiting.call.write(pb.AcquireRequest(want=pb.Want(model_version=other, priority=common_pb2.PRIORITY_HIGH)))
    await busy.hear("yield")
    await busy.close()
    await waiting.ready()
    await waiting.close()


async def test_leases_that_end_unasked_leave_no_task(node: Rig, caplog: pytest.LogCaptureFixture) -> None:
    gc.collect()
    caplog.clear()  # what other tests have left is not ours
    version = await node.echo("acme/one")
    for _ in range(5):
        holder = await (await node.acquire(version)).ready()
        await holder.close()
    async with asyncio.timeout(20):
        while (await node.replicas())[0].leases:
            pass
    gc.collect()
    assert "was destroyed" not in caplog.text


async def test_unloading_a_busy_model_needs_force_and_then_lets_its_holder_finish(node: Rig) -> None:
    version = await node.echo("acme/one")
    holder = await (await node.acquire(version)).ready()
    await holder.in_use(1)
    replica = (await node.replicas())[0]
    await refused(node.unload(version), VersionInUse)
    assert (await node.replicas())[0].state == pb.REPLICA_STATE_LOADED
    unloading = asyncio.ensure_future(node.unload(version, force=True))
    await holder.hear("yield")
    await holder.embed()
    assert not unloading.done()
    await holder.in_use(0)
    await holder.hear("revoked")
    await unloading
    assert not alive(replica.pid)


async def test_a_platform_with_idle_leases_stops_at_once(database_url: str, data_dir: Path) -> None:
    holders: list[Holder] = []
    patient = {"holder_grace_seconds": GRACE, "drain_grace_seconds": GRACE}
    # No grace is waited for, or this would not end; how long it takes is measured end to end.
    async with rig(database_url, data_dir, grace_seconds=GRACE, **patient) as node:
        for number in range(3):
            version = await node.echo(f"acme/m{number}", memory_bytes=40 * MIB)
            holders.append(await (await node.acquire(version)).ready())
        pids = workers_of(data_dir)
        assert len(pids) >= 3
    assert not any(alive(pid) for pid in pids)


async def test_what_comes_of_itself_is_no_part_of_the_call_that_came_last(
    node: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = await two(node)
    traces: list[tuple[str, int]] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            here = current_span()
            traces.append((record.getMessage(), here.trace_id if here is not None else 0))

    def of(words: str) -> set[int]:
        return {trace for message, trace in traces if words in message}

    caplog.set_level(logging.INFO, "modelmora_lifecycle.actor")
    ear, log = Ear(), logging.getLogger("modelmora_lifecycle.actor")
    log.addHandler(ear)
    try:
        await node.load(one)
        await node.load(other)
    finally:
        log.removeHandler(ear)
    (call,) = of(f"of {one}: LOADING -> LOADED")
    assert call, "a load is part of its call"
    assert of(f"of {one}: UNLOADED -> LOADING") == {call}
    assert call not in of(f"of {one}: LOADED -> DRAINING") | of(f"of {one}: DRAINING -> UNLOADED") | of(f"of {other}:")
