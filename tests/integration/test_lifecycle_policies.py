"""Who comes and who goes, on real workers: by queue and idleness, side by side, by policy, and in a crash loop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from integration.lifecycle_rig import MIB, WAIT_SECONDS, Rig, eventually, rig
from modelmora.errors import DeadlineExceeded, MemoryBusy
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora_lifecycle.main import MODELS


async def keep(node: Rig, version: str, **how: object) -> None:
    request = pb.UpdateResidencyRequest(residency=pb.Residency(model_version=version, **how))  # type: ignore[arg-type]
    request.update_mask.paths.extend(how)
    await node.lifecycle.UpdateResidency(request, timeout=WAIT_SECONDS)


async def decided(node: Rig, trigger: str, count: int = 1) -> list[pb.EvictionDecision]:
    """The plans it made necessary, oldest first, once there are so many."""

    async def listed() -> list[pb.EvictionDecision]:
        request = pb.ListEvictionDecisionsRequest(filter=f'trigger = "{trigger}" AND outcome = "plan"')
        return list((await node.lifecycle.ListEvictionDecisions(request)).decisions)

    return list(reversed(await eventually(listed, lambda found: len(found) >= count)))


def victims(decision: pb.EvictionDecision) -> set[str]:
    return {candidate.model_version for candidate in decision.candidates if candidate.victim}


async def loaded(node: Rig, version: str) -> list[pb.Replica]:
    return await node.replicas(f'model_version = "{version}" AND state = "loaded"')


async def all_may_go(node: Rig, spare: str) -> None:
    """Returns when the minimum residency of each one in memory is over, for a load of `spare`: it lasts as long as the
    load took, and whose load was slow stays longer than those that came after it."""

    async def resident() -> int:
        request = pb.ExplainPlacementRequest(model=spare)
        placement = (await node.lifecycle.ExplainPlacement(request, timeout=WAIT_SECONDS)).placement
        return sum(candidate.HasField("resident_for") for candidate in placement.candidates)

    await eventually(resident, lambda count: count == 0)


async def loaded_ever(node: Rig, version: str, count: int) -> None:
    """Returns when so many replicas of a version have been LOADED, those too that have gone again."""
    seen: set[str] = set()
    call = node.lifecycle.WatchReplicas(pb.WatchReplicasRequest())
    async for event in call:
        if event.replica.model_version == version and event.replica.state == pb.REPLICA_STATE_LOADED:
            seen.add(event.replica.uid)
        if len(seen) == count:
            break
    call.cancel()


async def test_a_replica_comes_with_the_queue_and_goes_with_idleness(database_url: str, data_dir: Path) -> None:
    async with rig(database_url, data_dir, scale_down_idle_seconds=0.5) as node:
        version = await node.echo("acme/busy")
        await keep(node, version, max_replicas=2)
        holder = await (await node.acquire(version)).ready()
        young = True
        second = asyncio.create_task(loaded_ever(node, version, 2))
        async with asyncio.timeout(WAIT_SECONDS):
            while not second.done():
                # Between two batches what waits is young: that is no reason to start over.
                young = not young
                await holder.in_use(1, 4, 0.1 if young else 3.0)
                await asyncio.wait((second,), timeout=0.2)
            await second
        await holder.in_use(0)
        await eventually(lambda: node.replicas(f'model_version = "{version}"'), lambda found: len(found) == 1)
        (decision,) = await decided(node, "scale_down")
        assert (decision.model_version, victims(decision)) == (version, {version})
        assert decision.candidates[0].idle.ToNanoseconds() >= 0.5e9
        assert (await holder.embed()).rows, "the one that is held stays"
        await holder.close()


async def test_swaps_go_side_by_side_and_loads_no_more_at_a_time_than_the_device_takes(
    database_url: str, data_dir: Path
) -> None:
    async with rig(database_url, data_dir, load_concurrency=1) as node:
        old = [await node.echo(f"acme/old{n}", memory_bytes=180 * MIB) for n in range(2)]
        new = [await node.echo(f"acme/new{n}", memory_bytes=180 * MIB, load_seconds=1.5) for n in range(2)]
        await asyncio.gather(*map(node.load, old))
        await all_may_go(node, new[0])
        seen: list[tuple[str, int]] = []

        async def follow() -> None:
            async for event in node.lifecycle.WatchReplicas(pb.WatchReplicasRequest()):
                seen.append((event.replica.model_version, event.replica.state))

        following = asyncio.create_task(follow())
        await eventually(lambda: asyncio.sleep(0, seen), lambda found: len(found) >= 2)
        await asyncio.gather(*map(node.load, new))
        await eventually(
            lambda: asyncio.sleep(0, seen), lambda found: all((v, pb.REPLICA_STATE_LOADED) in found for v in new)
        )
        following.cancel()
        draining = [seen.index((version, pb.REPLICA_STATE_DRAINING)) for version in old]
        there = [seen.index((version, pb.REPLICA_STATE_LOADED)) for version in new]
        loading = [seen.index((version, pb.REPLICA_STATE_LOADING)) for version in new]
        assert max(draining) < min(there), "both places are made at once"
        assert max(loading) > min(there), "one load at a time"
        plans = await decided(node, "placement", 2)
        assert [len(victims(plan)) for plan in plans] == [1, 1]
        assert victims(plans[0]) | victims(plans[1]) == set(old)


async def test_each_policy_chooses_whom_it_says(database_url: str, data_dir: Path) -> None:
    async with rig(database_url, data_dir, eviction_policy="gdsf", minimum_residency_seconds=0.0) as node:
        # Room for three. The first one is the least recently used, and dear to have again.
        dear = await node.echo("acme/dear", memory_bytes=120 * MIB, load_seconds=0.5)
        cheap = [await node.echo(f"acme/cheap{n}", memory_bytes=120 * MIB) for n in range(2)]
        last = [await node.echo(f"acme/last{n}", memory_bytes=120 * MIB) for n in range(2)]
        # Used so often that a cheap one is not dearer whatever its load is kept waiting for.
        for version, uses in ((dear, 100), (cheap[0], 1), (cheap[1], 1)):
            holder = await (await node.acquire(version)).ready()
            for _ in range(uses):
                await holder.in_use(1)
                await holder.in_use(0)
            await holder.finish()
        await all_may_go(node, last[0])
        await node.load(last[0])
        (plan,) = await decided(node, "placement")
        (gone,) = victims(plan)
        assert (plan.policy, gone in cheap) == ("gdsf", True)
        scores = {candidate.model_version: candidate.score for candidate in plan.candidates}
        may_go = {candidate.model_version for candidate in plan.candidates if candidate.evictable}
        assert scores[gone] == min(scores[version] for version in may_go)
        assert scores[dear] == max(scores.values())
        # The one used last would be the last to go; but its keep-alive ends first.
        request = pb.UpdateNodeRequest(node=pb.Node(policy="ttl"))
        request.update_mask.paths.append("policy")
        await node.lifecycle.UpdateNode(request, timeout=WAIT_SECONDS)
        await keep(node, last[0], keep_alive=Duration(seconds=60))
        await node.load(last[0])

        async def explained() -> list[str]:
            request = pb.ExplainPlacementRequest(model=last[1])
            placement = (await node.lifecycle.ExplainPlacement(request, timeout=WAIT_SECONDS)).placement
            return [victim.model_version for victim in placement.victims]

        # Once it has been there for as long as its load took.
        await eventually(explained, lambda found: found == [last[0]])
        await node.load(last[1])
        plan = (await decided(node, "placement", 2))[1]
        assert (plan.policy, victims(plan)) == ("ttl", {last[0]})


async def test_a_crash_loop_turns_health_red_and_recovery_green(database_url: str, data_dir: Path) -> None:
    async with rig(database_url, data_dir, crash_window_seconds=3.0, probe_interval_seconds=0) as node:
        version = await node.echo("acme/loop")
        await keep(node, version, pinned=True)

        def health() -> str:
            return str(node.host.board.components()[MODELS].state)

        async with asyncio.timeout(2 * WAIT_SECONDS):
            while health() != "unhealthy":
                for replica in await loaded(node, version):
                    with suppress(ProcessLookupError):  # it is not told yet that the last one has ended
                        os.kill(replica.pid, signal.SIGKILL)
                await asyncio.sleep(0.02)
        assert "`modelmora explain MODEL` says why" in node.host.board.components()[MODELS].reason
        assert "keeps failing" in node.host.board.components()[MODELS].reason
        await eventually(lambda: asyncio.sleep(0, health()), lambda state: state == "healthy")
        assert len(await loaded(node, version)) == 1


async def test_a_budget_that_is_overdrawn_is_told_in_words(database_url: str, data_dir: Path) -> None:
    async with rig(database_url, data_dir, node="here") as node:
        await node.load(await node.echo("acme/pinned", memory_bytes=100 * MIB), pin=True)
        budget = pb.UpdateNodeRequest(node=pb.Node(budgets=[pb.DeviceBudget(device="host", memory_bytes=40 * MIB)]))
        budget.update_mask.paths.append("budgets")
        await node.lifecycle.UpdateNode(budget)

        def told() -> str:
            return node.host.board.components()[MODELS].reason

        reason = await eventually(lambda: asyncio.sleep(0, told()), bool)
        assert reason == f"models hold more memory than the budget allows: {60 * MIB} bytes on host too many"


async def test_models_make_way_when_another_program_takes_the_memory(database_url: str, data_dir: Path) -> None:
    program = "import sys; held = [(b'x' * (256 << 20), print(flush=True)) for line in sys.stdin]"
    async with rig(database_url, data_dir, memory_budget_bytes=0, node="here") as node:

        async def devices() -> list[pb.DeviceLedger]:
            return list((await node.lifecycle.GetMemory(pb.GetMemoryRequest())).devices)

        async def made_way() -> list[pb.EvictionDecision]:
            request = pb.ListEvictionDecisionsRequest(filter='trigger = "foreign" AND outcome = "plan"')
            return list((await node.lifecycle.ListEvictionDecisions(request)).decisions)

        async def make_room() -> None:
            """2 GiB beside what the machine uses now, of which two models have 1.5 by their declarations alone."""
            device = (await eventually(devices, lambda found: found != []))[0]
            share = (device.foreign_bytes + 2048 * MIB) / device.total_bytes
            budget = pb.UpdateNodeRequest(node=pb.Node(budgets=[pb.DeviceBudget(device="host", share=share)]))
            budget.update_mask.paths.append("budgets")
            await node.lifecycle.UpdateNode(budget)

        pinned, idle = [await node.echo(f"acme/{name}", memory_bytes=768 * MIB) for name in ("pinned", "idle")]
        async with asyncio.timeout(2 * WAIT_SECONDS):
            while True:  # others on this machine take memory too, and may have it first
                await make_room()
                try:
                    await node.load(pinned, pin=True, within=15.0)
                    await node.load(idle, within=15.0)
                    break
                except (MemoryBusy, DeadlineExceeded):
                    pass
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            # Others use memory too, and give it back: it takes more until it is too much, at most 4 GiB.
            for _ in range(16):
                seen = (await devices())[0].foreign_bytes
                other.stdin.write(b"more\n")
                await other.stdout.readline()
                await eventually(devices, lambda found, seen=seen: found[0].foreign_bytes != seen)
                if await made_way():
                    break
            decision = (await decided(node, "foreign"))[0]
            assert victims(decision) == {idle}
            assert "other programs" in decision.reason
            await eventually(node.replicas, lambda found: [replica.model_version for replica in found] == [pinned])
        finally:
            other.kill()
            await other.wait()
