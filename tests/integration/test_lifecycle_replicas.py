"""Loading, unloading and losing models: real workers, the real registry, a real database."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest
from integration.lifecycle_rig import MIB, WAIT_SECONDS, Rig, alive, eventually, refused, rig, workers_of
from modelmora.errors import (
    InvalidArgument,
    LoadFailed,
    ModelNotFound,
    NeverFits,
    ReplicaNotFound,
    ShuttingDown,
    Unavailable,
    VersionInUse,
    VersionNotFound,
)
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora.registry.v1 import registry_pb2
from modelmora_runtime.db import Database


@pytest.fixture
async def node(database_url: str, data_dir: Path) -> AsyncIterator[Rig]:
    async with rig(database_url, data_dir) as running:
        yield running


async def test_a_model_is_loaded_into_a_process_of_its_own_and_unloading_ends_it(node: Rig) -> None:
    version = await node.echo("acme/one", dimensions=4)
    replica = await node.load("acme/one")
    assert replica.model_version == version
    assert replica.state == pb.REPLICA_STATE_LOADED
    assert replica.engine == "echo"
    assert replica.engine_profile.backend == "echo"
    assert alive(replica.pid)
    assert replica.load_duration.ToNanoseconds() > 0
    assert [item.device for item in replica.charged] == ["host"]
    charged = await node.charged()
    (now,) = await node.replicas()
    # It is measured all the time, and charged with the most that was seen.
    assert 0 < replica.charged[0].memory_bytes <= charged <= now.charged[0].memory_bytes
    again = await node.load(version)
    assert again.uid == replica.uid
    gone = await node.unload("acme/one")
    assert [item.state for item in gone] == [pb.REPLICA_STATE_UNLOADED]
    assert not alive(replica.pid)
    assert await node.charged() == 0
    assert await node.replicas() == []
    await refused(node.unload(version), ReplicaNotFound)


async def test_loads_of_one_version_join(node: Rig) -> None:
    version = await node.echo("acme/one", load_seconds=0.3)
    replicas = await asyncio.gather(*(node.load(version) for _ in range(5)))
    assert len({replica.uid for replica in replicas}) == 1
    answered = await node.load(version, wait=False)
    assert answered.uid == replicas[0].uid


async def test_without_wait_the_answer_comes_at_once_and_the_watch_tells_the_rest(node: Rig) -> None:
    version = await node.echo("acme/one", load_seconds=0.3)
    replica = await node.load(version, wait=False)
    assert replica.state == pb.REPLICA_STATE_LOADING
    loaded = await node.state_of(version, "LOADED")
    assert loaded.uid == replica.uid
    got = await node.lifecycle.GetReplica(pb.GetReplicaRequest(name=replica.name))
    assert got.replica.state == pb.REPLICA_STATE_LOADED


async def test_what_is_unknown_is_refused(node: Rig) -> None:
    version = await node.echo("acme/one")
    await refused(node.load("acme/none"), ModelNotFound)
    await refused(node.load("acme/one@none"), VersionNotFound)
    await refused(node.load("no reference"), InvalidArgument)
    await refused(node.load(" "), InvalidArgument)
    await refused(node.unload(version), ReplicaNotFound)
    await refused(node.lifecycle.GetReplica(pb.GetReplicaRequest(name="replicas/x")), ReplicaNotFound)
    await refused(node.lifecycle.GetReplica(pb.GetReplicaRequest(name="x")), InvalidArgument)
    for wrong in ('state = "gone"', "colour = red", "state =", 'state = "loaded" OR state = "failed"'):
        error = await refused(node.replicas(wrong), InvalidArgument)
        assert error.fields[0].field == "filter"
    await refused(node.lifecycle.ListReplicas(pb.ListReplicasRequest(page_size=-1)), InvalidArgument)
    await refused(node.lifecycle.ListReplicas(pb.ListReplicasRequest(page_token="§")), InvalidArgument)  # noqa: S106
    assert await node.replicas() == []


async def test_a_failed_load_says_why_and_leaves_nothing(node: Rig, data_dir: Path) -> None:
    version = await node.echo("acme/one", fail_load="the moon is in the wrong place")
    error = await refused(node.load(version), LoadFailed)
    assert "the moon" in error.message
    assert error.metadata["model_version"] == version
    assert error.retry_after_seconds
    await node.until_empty()
    assert await node.charged() == 0
    assert workers_of(data_dir) == []


async def test_what_never_fits_is_refused_with_the_arithmetic_and_starts_nothing(node: Rig, data_dir: Path) -> None:
    version = await node.echo("acme/big", memory_bytes=500 * MIB)
    error = await refused(node.load(version), NeverFits)
    assert error.metadata["need_bytes"] == str(500 * MIB)
    assert error.metadata["budget_bytes"] == str(400 * MIB)
    assert workers_of(data_dir) == []
    assert await node.replicas() == []


async def test_the_pinned_stays_and_the_least_recently_used_goes(node: Rig) -> None:
    names = [await node.echo(f"acme/{name}", memory_bytes=150 * MIB) for name in ("pinned", "old", "new")]
    await node.load(names[0], pin=True)
    await node.load(names[1])
    await node.load(names[2])
    there = {replica.model_version: replica for replica in await node.replicas('state = "loaded"')}
    assert set(there) == {names[0], names[2]}
    assert there[names[0]].pinned
    await refused(node.unload(names[0]), VersionInUse)
    too_big = await node.echo("acme/big", memory_bytes=300 * MIB)
    error = await refused(node.load(too_big), NeverFits)
    assert error.metadata["evictable_bytes"] == str(250 * MIB)
    await node.unload(names[0], force=True)
    assert (await node.load(too_big)).state == pb.REPLICA_STATE_LOADED


async def test_a_caller_that_goes_away_cancels_its_load_and_no_process_is_left(node: Rig, data_dir: Path) -> None:
    version = await node.echo("acme/slow", load_seconds=60)
    call = node.lifecycle.LoadModel(pb.LoadModelRequest(model=version, wait=True), timeout=30)
    loading = await node.state_of(version, "LOADING")
    call.cancel()
    await node.until_empty()
    assert workers_of(data_dir) == []
    assert await node.charged() == 0
    ended = (await node.lifecycle.GetReplica(pb.GetReplicaRequest(name=loading.name))).replica
    assert ended.state == pb.REPLICA_STATE_UNLOADED
    assert ended.reason.startswith("cancelled")


async def test_a_watch_resumes_where_it_ended_and_starts_over_when_it_cannot(node: Rig) -> None:
    one = await node.echo("acme/one")
    first = node.lifecycle.WatchReplicas(pb.WatchReplicasRequest())
    opening = await first.read()
    assert opening.reset
    assert not opening.HasField("replica")
    await node.load(one)
    states = []
    while states[-1:] != [pb.REPLICA_STATE_LOADED]:
        event = await first.read()
        states.append(event.replica.state)
    assert states == [pb.REPLICA_STATE_LOADING, pb.REPLICA_STATE_LOADED]
    assert event.previous_state == pb.REPLICA_STATE_LOADING
    first.cancel()
    await node.unload(one)
    second = node.lifecycle.WatchReplicas(pb.WatchReplicasRequest(cursor=event.cursor))
    states = [(await second.read()).replica.state for _ in range(2)]
    assert states == [pb.REPLICA_STATE_DRAINING, pb.REPLICA_STATE_UNLOADED]
    second.cancel()
    await node.load(one)
    for unknown in ("nonsense", "00000000-1", "-"):
        third = node.lifecycle.WatchReplicas(pb.WatchReplicasRequest(cursor=unknown))
        event = await third.read()
        assert event.reset
        assert event.replica.state == pb.REPLICA_STATE_LOADED
        third.cancel()


async def test_a_watch_ends_with_its_cursor_when_the_platform_stops(database_url: str, data_dir: Path) -> None:
    async with rig(database_url, data_dir) as node:
        await node.load(await node.echo("acme/one"))
        watch = node.lifecycle.WatchReplicas(pb.WatchReplicasRequest())
        event = await watch.read()
        node.host.stopping.set()
        error = await refused(watch.read(), ShuttingDown)
        assert error.metadata["cursor"] == event.cursor


async def test_lists_go_page_by_page(node: Rig) -> None:
    names = [await node.echo(f"acme/m{number}", memory_bytes=40 * MIB) for number in range(5)]
    await asyncio.gather(*(node.load(name) for name in names))
    seen: list[str] = []
    token = ""
    while True:
        page = await node.lifecycle.ListReplicas(pb.ListReplicasRequest(page_size=2, page_token=token))
        seen += [replica.model_version for replica in page.replicas]
        token = page.next_page_token
        if not token:
            break
    assert sorted(seen) == sorted(names)
    assert len(await node.replicas(f'model_version = "{names[0]}" AND state = "loaded"')) == 1


async def test_a_worker_that_is_killed_is_reported_with_its_signal_and_loaded_again(node: Rig) -> None:
    version = await node.echo("acme/one")
    replica = await node.load(version)
    watch = node.lifecycle.WatchReplicas(pb.WatchReplicasRequest())
    await watch.read()
    os.kill(replica.pid, signal.SIGKILL)
    failed = await watch.read()
    assert failed.replica.state == pb.REPLICA_STATE_FAILED
    assert "SIGKILL" in failed.replica.reason
    ended = await watch.read()
    assert ended.replica.state == pb.REPLICA_STATE_UNLOADED
    assert await node.charged() == 0
    watch.cancel()
    again = await node.load(version)
    assert again.uid != replica.uid
    assert again.pid != replica.pid


async def test_a_version_in_memory_is_held_and_may_go_once_it_is_unloaded(node: Rig) -> None:
    version = await node.echo("acme/one")
    await node.load(version)
    delete = registry_pb2.DeleteModelVersionRequest(name=version, force=True)
    await refused(node.registry.DeleteModelVersion(delete), VersionInUse)
    await node.unload(version)
    async with asyncio.timeout(20):
        while True:
            try:
                await node.registry.DeleteModelVersion(delete)
                break
            except VersionInUse:
                await asyncio.sleep(0.02)
    await refused(node.load(version), VersionNotFound)


async def test_a_worker_that_hangs_is_replaced(database_url: str, data_dir: Path) -> None:
    # First it answers again before the grace is over, whatever else goes on; then it has no time for that.
    async with rig(database_url, data_dir, unresponsive_seconds=0.5, unhealthy_grace_seconds=600.0) as node:
        version = await node.echo("acme/one")
        replica = await node.load(version)
        os.kill(replica.pid, signal.SIGSTOP)
        sick = await node.state_of(version, "UNHEALTHY")
        assert "has not answered" in sick.reason
        os.kill(replica.pid, signal.SIGCONT)
        await node.state_of(version, "LOADED")
        assert alive(replica.pid)
    async with rig(database_url, data_dir, unresponsive_seconds=2.0, unhealthy_grace_seconds=0.2) as node:
        replica = await node.load(version)
        with suppress(ProcessLookupError):  # it has hung of itself, where the machine stands still
            os.kill(replica.pid, signal.SIGSTOP)
        await node.until_empty()
        assert not alive(replica.pid)
        assert (await node.load(version)).state == pb.REPLICA_STATE_LOADED


async def test_decisions_and_measurements_are_kept(database_url: str, data_dir: Path) -> None:
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    try:
        async with rig(database_url, data_dir) as node:
            for name in ("one", "two"):
                await node.load(await node.echo(f"acme/{name}", memory_bytes=300 * MIB))
            # They are written down a moment later, and at the end half a second is waited for that.
            count = "SELECT count(DISTINCT model_version) FROM lifecycle.measurement"
            await eventually(lambda: connection.fetchval(count), lambda found: found >= 2)
        rows = await connection.fetch("SELECT * FROM lifecycle.eviction_decision ORDER BY uid")
        outcomes = [row["outcome"] for row in rows]
        assert outcomes[-1] == "plan"
        assert len(rows[-1]["victims"]) > 10
        assert '"verdicts"' in rows[-1]["inputs"]
        measured = await connection.fetch("SELECT model_version, load_seconds FROM lifecycle.measurement")
        assert {row["model_version"] for row in measured} == {
            "models/acme/one/versions/1.0.0",
            "models/acme/two/versions/1.0.0",
        }
    finally:
        await connection.close()


async def test_a_second_lifecycle_on_the_node_stands_by_and_takes_over(database_url: str, data_dir: Path) -> None:
    database = Database(database_url, "lifecycle", connect_seconds=30.0, statement_seconds=60.0)
    other = await database.try_lock("node here")
    assert other is not None
    async with rig(database_url, data_dir, node="here") as node:
        version = await node.echo("acme/one")
        async with asyncio.timeout(WAIT_SECONDS):  # before that it says that nobody knows yet
            while (health := node.host.board.get("lifecycle")) is None or health.state != "unhealthy":
                await node.host.board.change.wait()
        error = await refused(node.load(version), Unavailable)
        assert "standby" in error.message
        await other.release()
        async with asyncio.timeout(WAIT_SECONDS):
            while (health := node.host.board.get("lifecycle")) is None or health.state != "healthy":
                await node.host.board.change.wait()
        assert (await node.load(version)).state == pb.REPLICA_STATE_LOADED
    await database.close()
