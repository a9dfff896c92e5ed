"""What operators say of the node and its versions: taken at once, kept over a restart, refused where it is nonsense."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration
from integration.lifecycle_rig import MIB, WAIT_SECONDS, Rig, eventually, refused, rig
from modelmora.common.v1 import common_pb2
from modelmora.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    ModelMoraError,
    ModelNotFound,
    NeverFits,
    NodeCordoned,
    ResourceExhausted,
    VersionNotFound,
)
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora.registry.v1 import registry_pb2


@pytest.fixture
async def node(database_url: str, data_dir: Path) -> AsyncIterator[Rig]:
    async with rig(database_url, data_dir) as running:
        yield running


async def residency(node: Rig, model: str, *, revision: int = 0, **changes: object) -> pb.Residency:
    request = pb.UpdateResidencyRequest(residency=pb.Residency(model_version=model, revision=revision, **changes))  # type: ignore[arg-type]
    request.update_mask.paths.extend(changes)
    return (await node.lifecycle.UpdateResidency(request, timeout=WAIT_SECONDS)).residency


async def settings(node: Rig, *paths: str, **changes: object) -> pb.UpdateNodeResponse:
    request = pb.UpdateNodeRequest(node=pb.Node(**changes))  # type: ignore[arg-type]
    request.update_mask.paths.extend(paths or changes)
    return await node.lifecycle.UpdateNode(request, timeout=WAIT_SECONDS)


async def triggered(node: Rig, trigger: str) -> list[pb.EvictionDecision]:
    """What it made necessary, once it is written down."""

    async def listed() -> list[pb.EvictionDecision]:
        request = pb.ListEvictionDecisionsRequest(filter=f'trigger = "{trigger}"')
        return list((await node.lifecycle.ListEvictionDecisions(request)).decisions)

    found = await eventually(listed, bool)
    assert {d.trigger for d in found} == {pb.EvictionTrigger.Value(f"EVICTION_TRIGGER_{trigger.upper()}")}
    return found


async def now(node: Rig) -> pb.Node:
    return (await node.lifecycle.GetNode(pb.GetNodeRequest(), timeout=WAIT_SECONDS)).node


async def test_what_was_said_of_versions_is_there_after_a_restart_and_loads_by_itself(
    database_url: str, data_dir: Path
) -> None:
    async with rig(database_url, data_dir, node="here") as node:
        names = [await node.echo(f"acme/{name}", memory_bytes=40 * MIB) for name in ("pin", "kept", "early", "plain")]
        assert (await residency(node, "acme/pin", pinned=True)).model_version == names[0]
        assert (await node.state_of(names[0], "LOADED")).pinned
        await residency(node, "acme/kept@1.0.0", min_replicas=1, max_replicas=2, keep_alive=Duration(seconds=5))
        await residency(node, "acme/early", preload=True)
        for name in names[:3]:
            await node.state_of(name, "LOADED")
        listed: list[str] = []
        token = ""
        while True:
            request = pb.ListResidenciesRequest(page_size=2, page_token=token)
            page = await node.lifecycle.ListResidencies(request)
            listed += [item.model_version for item in page.residencies]
            token = page.next_page_token
            if not token:
                break
        assert listed == sorted(names[:3])
    async with rig(database_url, data_dir, node="here") as node:
        for name in names[:3]:
            replica = await node.state_of(name, "LOADED")
            assert replica.pinned == (name == names[0])
        kept = (await node.lifecycle.GetResidency(pb.GetResidencyRequest(model="acme/kept"))).residency
        assert (kept.min_replicas, kept.max_replicas, kept.keep_alive.seconds, kept.revision) == (1, 2, 5, 1)
        plain = (await node.lifecycle.GetResidency(pb.GetResidencyRequest(model="acme/plain"))).residency
        assert plain == pb.Residency(model_version=names[3], max_replicas=1)
        assert len(await node.replicas()) == 3
        assert not (await residency(node, names[0], pinned=False)).pinned
        await node.unload(names[0])
    async with rig(database_url, data_dir, node="there") as node:  # another node has orders of its own
        assert not (await node.lifecycle.ListResidencies(pb.ListResidenciesRequest())).residencies


async def test_no_pin_takes_back_the_pin_of_a_load(node: Rig) -> None:
    version = await node.echo("acme/one")
    assert (await node.load(version, pin=True)).pinned
    await residency(node, version, keep_alive=Duration(seconds=500))
    assert (await node.state_of(version, "LOADED")).pinned
    assert not (await residency(node, version, pinned=False)).pinned
    await node.lifecycle.GetMemory(pb.GetMemoryRequest(), timeout=WAIT_SECONDS)
    assert not (await node.state_of(version, "LOADED")).pinned


async def test_a_residency_that_cannot_be_meant_is_refused_at_its_field(node: Rig) -> None:
    version = await node.echo("acme/one")
    for field, changes in (
        ("residency.max_replicas", {"max_replicas": 0}),
        ("residency.max_replicas", {"max_replicas": 65}),
        ("residency.min_replicas", {"min_replicas": -1}),
        ("residency.min_replicas", {"min_replicas": 2}),
        ("residency.keep_alive", {"keep_alive": Duration(seconds=-1)}),
        ("residency.keep_alive", {"keep_alive": Duration(seconds=10**10)}),
        ("update_mask", {"revision": 0}),
        ("update_mask", {}),
    ):
        error = await refused(residency(node, version, **changes), InvalidArgument)  # type: ignore[arg-type]
        assert [violation.field for violation in error.fields] == [field], changes
    await refused(residency(node, "acme/none", pinned=True), ModelNotFound)
    await refused(residency(node, "acme/one@none", pinned=True), VersionNotFound)
    empty = await refused(residency(node, "", pinned=True), InvalidArgument)
    assert empty.fields[0].field == "residency.model_version"
    first = await residency(node, version, preload=True)
    await residency(node, version, revision=first.revision, preload=False)
    await refused(residency(node, version, revision=first.revision, preload=True), Conflict)


async def test_a_residency_goes_with_its_version(node: Rig) -> None:
    version = await node.echo("acme/one")
    await residency(node, version, keep_alive=Duration(seconds=1))
    await node.registry.DeleteModelVersion(registry_pb2.DeleteModelVersionRequest(name=version, force=True))
    await refused(residency(node, version, pinned=True), VersionNotFound)


async def test_budgets_and_policy_change_at_once_and_outlive_a_restart(database_url: str, data_dir: Path) -> None:
    async with rig(database_url, data_dir, node="here") as node:
        before = await now(node)
        assert (before.name, before.state, before.policy) == ("here", pb.NODE_STATE_ACTIVE, "lru")
        assert [(b.device, b.memory_bytes) for b in before.budgets] == [("host", 400 * MIB)]
        names = [await node.echo(f"acme/m{number}", memory_bytes=100 * MIB) for number in range(4)]
        for name in names:
            await node.load(name)

        spare = await node.echo("acme/spare")

        async def resident() -> int:
            """How many may not go yet: a minimum residency lasts as long as the load took."""
            request = pb.ExplainPlacementRequest(model=spare)
            candidates = (await node.lifecycle.ExplainPlacement(request)).placement.candidates
            assert {candidate.model_version for candidate in candidates} == set(names)
            return sum(candidate.HasField("resident_for") for candidate in candidates)

        # One whose load was slow stays longer than those that came after it, and then another goes in its place.
        await eventually(resident, lambda count: count == 0)
        answer = await settings(node, budgets=[pb.DeviceBudget(device="host", memory_bytes=250 * MIB)], policy="gdsf")
        assert not answer.warnings
        # Idle ones go until the smaller budget is kept.
        await eventually(node.charged, lambda charged: charged <= 250 * MIB)
        assert {replica.model_version for replica in await node.replicas()} == set(names[2:])
        for name in names[2:]:
            pin = pb.UpdateResidencyRequest(residency=pb.Residency(model_version=name, pinned=True))
            pin.update_mask.paths.append("pinned")
            await node.lifecycle.UpdateResidency(pin)
        over = await settings(node, budgets=[pb.DeviceBudget(device="host", memory_bytes=MIB)])
        assert any("more on host than the budget" in warning for warning in over.warnings), over.warnings
        await settings(node, budgets=[pb.DeviceBudget(device="host", memory_bytes=250 * MIB)])
        for name in names[2:]:
            pin = pb.UpdateResidencyRequest(residency=pb.Residency(model_version=name))
            pin.update_mask.paths.append("pinned")
            await node.lifecycle.UpdateResidency(pin)
    async with rig(database_url, data_dir, node="here") as node:
        kept = await now(node)
        assert (kept.policy, kept.revision) == ("gdsf", 3)
        memory = (await node.lifecycle.GetMemory(pb.GetMemoryRequest())).devices[0]
        assert memory.budget_bytes <= 250 * MIB
        assert memory.limited_by in ("machine", "cgroup")
        await settings(node, "budgets", "policy")  # unset: as the settings say
        assert [(b.device, b.memory_bytes) for b in (await now(node)).budgets] == [("host", 400 * MIB)]
        shared = await settings(node, budgets=[pb.DeviceBudget(device="host", share=0.5)])
        assert shared.node.budgets[0].share == 0.5
        # The answer has what is in force from now on, not what was before: more than the 400 MiB of the settings.
        assert shared.node.budgets[0].effective_bytes > 400 * MIB
        assert not shared.warnings
        tiny = await settings(node, budgets=[pb.DeviceBudget(device="host", share=0.001)])
        assert tiny.node.budgets[0].effective_bytes == 0, "other programs have more than the rest"
        assert list(tiny.warnings) == ["of the budget of host nothing is in force: other programs use the memory"]
        total = (await node.lifecycle.GetMemory(pb.GetMemoryRequest())).devices[0].total_bytes
        huge = await settings(node, budgets=[pb.DeviceBudget(device="host", memory_bytes=2 * total)])
        assert len(huge.warnings) == 1
        assert "host" in huge.warnings[0]
        (budget,) = huge.node.budgets
        assert (budget.memory_bytes, budget.effective_bytes <= total) == (2 * total, True)

        async def ledger() -> pb.DeviceLedger:
            return (await node.lifecycle.GetMemory(pb.GetMemoryRequest())).devices[0]

        memory = await eventually(ledger, lambda found: found.configured_bytes == 2 * total)
        assert 0 < memory.budget_bytes <= total - memory.foreign_bytes
        too_much = await node.echo("acme/too-much", memory_bytes=total + MIB)
        await refused(node.load(too_much), NeverFits)
        triggers = await triggered(node, "budget")
        assert {c.model_version for d in triggers for c in d.candidates if c.victim} == set(names[:2])


async def test_settings_of_the_node_that_cannot_be_meant_are_refused_at_their_field(node: Rig) -> None:
    def budget(**fields: object) -> dict[str, object]:
        return {"budgets": [pb.DeviceBudget(device="host", share=0.5), pb.DeviceBudget(**fields)]}  # type: ignore[arg-type]

    for field, changes in (
        ("node.budgets[0].memory_bytes", {"budgets": [pb.DeviceBudget(device="host")]}),
        ("node.budgets[0].memory_bytes", {"budgets": [pb.DeviceBudget(device="host", memory_bytes=-1)]}),
        ("node.budgets[0].share", {"budgets": [pb.DeviceBudget(device="host", share=1.01)]}),
        ("node.budgets[0].share", {"budgets": [pb.DeviceBudget(device="host", share=float("nan"))]}),
        ("node.budgets[0]", {"budgets": [pb.DeviceBudget(device="host", share=0.5, memory_bytes=1)]}),
        ("node.budgets[1].device", budget(device="host", share=0.5)),
        ("node.budgets[1].device", budget(device="cuda:77", share=0.5)),
        ("node.policy", {"policy": "fifo"}),
        ("node.load_concurrency", {"load_concurrency": 0}),
        ("node.idle_ttl", {"idle_ttl": Duration(seconds=-1)}),
        ("update_mask", {"name": "x"}),
        ("update_mask", {}),
    ):
        error = await refused(settings(node, **changes), InvalidArgument)  # type: ignore[arg-type]
        assert [violation.field for violation in error.fields] == [field], changes
    assert (await now(node)).revision == 0


async def test_a_cordoned_node_empties_says_so_and_stays_so_over_a_restart(database_url: str, data_dir: Path) -> None:
    async with rig(database_url, data_dir, node="here", holder_grace_seconds=600.0) as node:
        pinned, busy = [await node.echo(f"acme/{name}", memory_bytes=40 * MIB) for name in ("pinned", "busy")]
        await residency(node, pinned, pinned=True)
        await node.state_of(pinned, "LOADED")
        holder = await (await node.acquire(busy)).ready()
        await holder.in_use(1)
        draining = asyncio.ensure_future(
            node.lifecycle.DrainNode(pb.DrainNodeRequest(wait=True, reason="a new disk"), timeout=WAIT_SECONDS)
        )
        await holder.hear("yield")
        error = await refused(node.load(busy), NodeCordoned)
        assert "a new disk" in error.message
        await holder.embed()  # what runs may finish
        assert not draining.done()
        await holder.in_use(0)
        await holder.hear("revoked")
        answer = await draining
        assert answer.node.state == pb.NODE_STATE_CORDONED
        assert list(answer.replicas) == []
        assert await node.replicas() == []
        health = node.host.board.get("lifecycle")
        assert health is not None
        assert (health.state, "a new disk" in health.reason) == ("degraded", True)
        assert node.host.board.serves("lifecycle")
        await holder.close()
    async with rig(database_url, data_dir, node="here") as node:
        await refused(node.load(busy), NodeCordoned)
        assert (await now(node)).reason == "a new disk"
        assert await node.replicas() == []
        await node.lifecycle.UncordonNode(pb.UncordonNodeRequest())
        assert (await node.state_of(pinned, "LOADED")).pinned
        assert (await now(node)).state == pb.NODE_STATE_ACTIVE
        # It is told at the next look at what is in memory.
        await eventually(
            lambda: asyncio.sleep(0, node.host.board.get("lifecycle")),
            lambda health: health is not None and health.state == "healthy",
        )


async def test_orders_need_the_database_and_what_is_in_force_does_not(node: Rig, database_url: str) -> None:
    version = await node.echo("acme/one")
    await residency(node, version, preload=True)
    await node.state_of(version, "LOADED")
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    try:
        await connection.execute("ALTER SCHEMA lifecycle RENAME TO away")  # every statement fails; registry's do not
        for _ in range(2):
            with pytest.raises(ModelMoraError):
                await residency(node, version, pinned=True)
        assert (await node.lifecycle.GetResidency(pb.GetResidencyRequest(model=version))).residency.preload
        assert (await node.load(version)).state == pb.REPLICA_STATE_LOADED
        await connection.execute("ALTER SCHEMA away RENAME TO lifecycle")
    finally:
        await connection.close()
    assert (await residency(node, version, pinned=True)).revision == 2


async def test_what_would_happen_is_told_and_nothing_changes(node: Rig) -> None:
    one, two, big, small = [
        await node.echo(f"acme/{name}", memory_bytes=size * MIB)
        for name, size in (("one", 300), ("two", 200), ("big", 500), ("small", 60))
    ]

    async def explain(model: str) -> pb.Placement:
        request = pb.ExplainPlacementRequest(model=model)
        return (await node.lifecycle.ExplainPlacement(request, timeout=WAIT_SECONDS)).placement

    fits = await explain("acme/one")
    assert (fits.model_version, fits.outcome) == (one, pb.PLACEMENT_OUTCOME_FITS)
    assert (fits.devices[0].need_bytes, fits.need_source) == (300 * MIB, "declared")
    assert await node.replicas() == []
    await node.load(one)
    assert (await explain(one)).outcome == pb.PLACEMENT_OUTCOME_LOADED
    assert (await explain(small)).outcome == pb.PLACEMENT_OUTCOME_FITS
    # Once its minimum residency is over.
    after = await eventually(
        lambda: explain(two), lambda told: told.outcome == pb.PLACEMENT_OUTCOME_FITS_AFTER_EVICTION
    )
    assert [victim.model_version for victim in after.victims] == [one]
    assert after.victims[0].charged[0].memory_bytes >= 300 * MIB
    never = await explain(big)
    assert never.outcome == pb.PLACEMENT_OUTCOME_NEVER_FITS
    assert not never.HasField("ready_in")
    assert [replica.model_version for replica in await node.replicas()] == [one]
    await refused(explain("acme/none"), ModelNotFound)
    holder = await (await node.acquire(one)).ready()
    await holder.in_use(1)
    # Not by the same call: which of the two is heard first nobody promises.
    busy = await eventually(lambda: explain(two), lambda told: any(c.busy for c in told.candidates))
    assert [(candidate.busy, candidate.victim) for candidate in busy.candidates] == [(True, True)]
    await holder.close()


async def test_decisions_are_listed_page_by_page_with_what_they_were_made_from(node: Rig) -> None:
    names = [await node.echo(f"acme/m{number}", memory_bytes=300 * MIB) for number in range(3)]
    for name in names:
        await node.load(name)

    async def listed() -> list[pb.EvictionDecision]:
        request = pb.ListEvictionDecisionsRequest(filter='outcome = "plan"')
        return list((await node.lifecycle.ListEvictionDecisions(request)).decisions)

    plans = await eventually(listed, lambda found: len(found) == 2)  # they are written down a moment later
    assert [plan.model_version for plan in plans] == [names[2], names[1]]
    (candidate,) = plans[0].candidates
    assert (candidate.model_version, candidate.victim, candidate.evictable) == (names[1], True, True)
    assert (plans[0].policy, plans[0].devices[0].need_bytes) == ("lru", 300 * MIB)
    assert plans[0].reason == f"makes room for {names[2]}"
    first = await node.lifecycle.ListEvictionDecisions(pb.ListEvictionDecisionsRequest(page_size=1))
    second = await node.lifecycle.ListEvictionDecisions(
        pb.ListEvictionDecisionsRequest(page_size=1, page_token=first.next_page_token)
    )
    assert first.decisions[0].uid > second.decisions[0].uid
    mine = await node.lifecycle.ListEvictionDecisions(
        pb.ListEvictionDecisionsRequest(filter=f'model_version = "{names[1]}"')
    )
    assert {decision.model_version for decision in mine.decisions} == {names[1]}
    for wrong in ({"filter": 'outcome = "maybe"'}, {"filter": "policy = lru"}, {"page_token": "bm8="}):
        await refused(node.lifecycle.ListEvictionDecisions(pb.ListEvictionDecisionsRequest(**wrong)), InvalidArgument)  # type: ignore[arg-type]


async def test_use_is_recorded_and_replayed_under_every_policy(node: Rig) -> None:
    one, two = [await node.echo(f"acme/{name}", memory_bytes=60 * MIB) for name in ("one", "two")]
    for version in (one, two, one):
        holder = await (await node.acquire(version, priority=30)).ready()
        for _ in range(2):
            await holder.in_use(1)
            await holder.embed()
            await holder.in_use(0)
        await holder.finish()

    async def exported() -> list[pb.AcquireEvent]:
        return [event async for page in node.lifecycle.ExportTrace(pb.ExportTraceRequest()) for event in page.events]

    # One for each time of use; they are written down a moment later.
    events = await eventually(exported, lambda found: len(found) == 6)
    assert [event.model_version for event in events] == [one] * 2 + [two] * 2 + [one] * 2
    assert events[0].at_seconds == 0.0
    assert all(before.at_seconds <= after.at_seconds for before, after in itertools.pairwise(events))
    assert all(event.priority == 30 and event.use_seconds > 0 and event.load_seconds > 0 for event in events)
    assert all(event.memory[0].memory_bytes == 60 * MIB for event in events)  # declared, though it takes less
    for number, event in enumerate(events):  # what was measured varies; what is replayed should not
        event.at_seconds, event.use_seconds, event.load_seconds = 10.0 * number, 1.0, 0.5
    budget = [common_pb2.DeviceMemory(device="host", memory_bytes=100 * MIB)]
    request = pb.SimulatePlacementRequest(events=events, budget=budget)
    results = (await node.lifecycle.SimulatePlacement(request, timeout=WAIT_SECONDS)).results
    assert [result.policy for result in results] == ["lru", "gdsf", "ttl"]
    assert all((result.acquires, result.misses, result.evictions) == (6, 3, 2) for result in results)
    roomy = pb.SimulatePlacementRequest(events=events, policies=["lru"])
    (result,) = (await node.lifecycle.SimulatePlacement(roomy, timeout=WAIT_SECONDS)).results
    assert (result.misses, result.evictions, result.never_fit) == (2, 0, 0)
    for field, wrong in (
        ("policies[0]", {"policies": ["fifo"]}),
        ("events[1].at_seconds", {"events": [events[-1], events[0]]}),
        ("budget[0].memory_bytes", {"budget": [common_pb2.DeviceMemory(device="host")]}),
    ):
        bad = pb.SimulatePlacementRequest(**{"events": events, **wrong})  # type: ignore[arg-type]
        error = await refused(node.lifecycle.SimulatePlacement(bad, timeout=WAIT_SECONDS), InvalidArgument)
        assert error.fields[0].field == field
    # Who gives up takes the simulation along: the next one does not wait for it.
    crowd = [
        pb.AcquireEvent(at_seconds=number / 1000, model_version=f"m{number % 300}", use_seconds=0.01, load_seconds=0.5)
        for number in range(20_000)
    ]
    for event in crowd:
        event.memory.add(device="host", memory_bytes=100 * MIB)
    long = pb.SimulatePlacementRequest(
        events=crowd, budget=[common_pb2.DeviceMemory(device="host", memory_bytes=2**30)]
    )
    await refused(node.lifecycle.SimulatePlacement(long, timeout=1.0), DeadlineExceeded)

    async def next_one() -> bool:
        try:
            await node.lifecycle.SimulatePlacement(roomy, timeout=WAIT_SECONDS)
        except ResourceExhausted:
            return False
        return True

    assert await eventually(next_one, bool)
