"""Tuning: engine profiles measured in real workers, judged, made current, and taken up by what is in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from integration.lifecycle_rig import WAIT_SECONDS, Rig, eventually, refused, rig
from modelmora.common.v1 import common_pb2
from modelmora.errors import Conflict, InvalidArgument, ModelNotFound, TuningNotFound
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora.registry.v1 import registry_pb2
from modelmora.worker.v1 import worker_pb2

SLOW = {"dimensions": 8, "delay_seconds": 0.06}
"""With echo/bf16 it takes half of that."""


@pytest.fixture
async def node(database_url: str, data_dir: Path) -> AsyncIterator[Rig]:
    async with rig(database_url, data_dir) as running:
        yield running


async def tuned(node: Rig, model: str, *candidates: str, apply: bool = False) -> tuple[pb.Tuning, list[str]]:
    """A tuning that has ended, and the reasons it gave on its way."""
    request = pb.TuneModelVersionRequest(model=model, candidates=candidates, apply=apply)
    name = (await node.lifecycle.TuneModelVersion(request, timeout=WAIT_SECONDS)).tuning.name
    told: list[pb.Tuning] = []
    async for response in node.lifecycle.WatchTuning(pb.WatchTuningRequest(name=name), timeout=2 * WAIT_SECONDS):
        told.append(response.tuning)
    return told[-1], [tuning.reason for tuning in told]


async def profile_of(node: Rig, version: str) -> str:
    found = await node.registry.GetModelVersion(registry_pb2.GetModelVersionRequest(name=version))
    return str(found.model_version.engine_profile.precision)


async def test_the_fastest_accurate_profile_is_proposed_applied_and_taken_up(node: Rig) -> None:
    version = await node.echo("acme/quick", **SLOW)
    first = await node.load("acme/quick")
    tuning, reasons = await tuned(node, "acme/quick", apply=True)

    exact, fast = tuning.candidates
    assert [c.engine_profile.precision for c in tuning.candidates] == ["fp32", "bf16"]
    assert exact.accuracy == 1
    assert 0.9995 < fast.accuracy < 1
    assert fast.batch_consistency == pytest.approx(1)
    assert fast.entries_per_second > exact.entries_per_second > 0
    assert fast.single_seconds < exact.single_seconds
    assert all(c.within_gate and c.load_seconds > 0 and c.memory[0].memory_bytes > 0 for c in tuning.candidates)
    assert tuning.state == pb.TUNING_STATE_SUCCEEDED
    assert tuning.applied
    assert tuning.proposal.precision == "bf16"
    assert "times as fast as echo/fp32" in tuning.reason
    assert "measuring echo/bf16" in reasons
    assert await profile_of(node, version) == "bf16"

    # The idle replica goes, for that reason, and whoever asks next gets the new profile.
    await node.until_empty()
    gone = (await node.lifecycle.GetReplica(pb.GetReplicaRequest(name=first.name))).replica
    assert gone.state == pb.REPLICA_STATE_UNLOADED
    assert gone.engine_profile.precision == "fp32"
    holder = await (await node.acquire(version)).ready()
    assert holder.loaded.engine_profile.precision == "bf16"
    assert holder.channel is not None
    request = worker_pb2.InferRequest(
        task_type=common_pb2.TASK_TYPE_TXT2EMBED, texts=[worker_pb2.TextEntry(text="a b c")], exact=True
    )
    replies = [reply async for reply in holder.channel.infer(request)]
    assert replies[0].engine_profile.precision == "fp32"
    assert replies[0].rows != (await holder.embed("a b c")).rows
    await holder.close()
    kept = (await node.lifecycle.ListTunings(pb.ListTuningsRequest(model="acme/quick"))).tunings
    assert list(kept) == [tuning]

    async def traced() -> list[str]:
        pages = [page async for page in node.lifecycle.ExportTrace(pb.ExportTraceRequest())]
        return [event.model_version for page in pages for event in page.events]

    # Its candidates are no events of callers: the trace has the load and the holder.
    assert await eventually(traced, lambda names: len(names) >= 2) == [version, version]


async def test_a_candidate_that_crashes_or_answers_otherwise_is_out_and_says_why(node: Rig) -> None:
    crashing = await node.echo("acme/crash", fast_crash=True, **SLOW)
    await node.echo("acme/wrong", fast_error=0.2, **SLOW)
    (crashed, _), (wrong, _) = await asyncio.gather(
        tuned(node, "acme/crash", apply=True), tuned(node, "acme/wrong", apply=True)
    )
    for tuning in (crashed, wrong):
        assert tuning.state == pb.TUNING_STATE_SUCCEEDED
        assert not tuning.applied
        assert not tuning.HasField("proposal")
        assert tuning.candidates[0].entries_per_second > 0
    assert "LoadFailed" in crashed.candidates[1].error
    assert crashed.candidates[1].entries_per_second == 0
    assert not wrong.candidates[1].error
    assert wrong.candidates[1].accuracy < 0.9995
    assert not wrong.candidates[1].within_gate
    assert await profile_of(node, crashing) == "fp32"
    await node.until_empty()


async def test_a_model_that_does_not_load_ends_its_tuning_with_the_reason(node: Rig) -> None:
    await node.echo("acme/broken", fail_load="no such weights")
    tuning, _ = await tuned(node, "acme/broken")
    assert tuning.state == pb.TUNING_STATE_FAILED
    assert "no such weights" in tuning.reason


async def test_bad_requests_are_named(node: Rig) -> None:
    await node.echo("acme/one", **SLOW)
    error = await refused(
        node.lifecycle.TuneModelVersion(pb.TuneModelVersionRequest(model="acme/one", candidates=["torch/int3"])),
        InvalidArgument,
    )
    assert [violation.field for violation in error.fields] == ["candidates[0]"]
    error = await refused(
        node.lifecycle.TuneModelVersion(pb.TuneModelVersionRequest(model="acme/one", accuracy_gate=float("nan"))),
        InvalidArgument,
    )
    assert [violation.field for violation in error.fields] == ["accuracy_gate"]
    await refused(node.lifecycle.TuneModelVersion(pb.TuneModelVersionRequest(model="acme/none")), ModelNotFound)
    await refused(node.lifecycle.GetTuning(pb.GetTuningRequest(name=f"tunings/{uuid4()}")), TuningNotFound)
    await refused(node.lifecycle.GetTuning(pb.GetTuningRequest(name="tunings/7")), InvalidArgument)


async def test_one_tuning_of_a_version_runs_at_a_time_and_ends_with_lifecycle(node: Rig) -> None:
    await node.echo("acme/long", load_seconds=60)
    request = pb.TuneModelVersionRequest(model="acme/long")
    first = (await node.lifecycle.TuneModelVersion(request)).tuning
    second = (await node.lifecycle.TuneModelVersion(request)).tuning
    assert first.name == second.name
    assert second.state == pb.TUNING_STATE_RUNNING
    # The rig sees that no worker is left when it ends.


async def test_a_profile_set_in_the_registry_replaces_what_is_idle_and_leaves_what_works(node: Rig) -> None:
    version = await node.echo("acme/set", dimensions=4)
    holder = await (await node.acquire(version)).ready()
    await holder.in_use(1)
    profile = common_pb2.EngineProfile(backend="echo", precision="bf16")
    request = registry_pb2.SetEngineProfileRequest(name="acme/set", engine_profile=profile)
    changed = (await node.registry.SetEngineProfile(request)).model_version
    assert changed.engine_profile.precision == "bf16"
    assert (await node.load("acme/set")).engine_profile.precision == "fp32"
    assert (await holder.embed("a b c")).rows
    await holder.in_use(0)
    assert "echo/bf16" in (await holder.hear("revoked")).reason
    await node.until_empty()
    assert (await node.load("acme/set")).engine_profile.precision == "bf16"

    back = registry_pb2.SetEngineProfileRequest(name=version, etag=changed.etag)
    assert (await node.registry.SetEngineProfile(back)).model_version.engine_profile.precision == "fp32"
    await refused(node.registry.SetEngineProfile(back), Conflict)
    wrong = registry_pb2.SetEngineProfileRequest(name=version)
    wrong.engine_profile.backend = "abacus"
    error = await refused(node.registry.SetEngineProfile(wrong), InvalidArgument)
    assert [violation.field for violation in error.fields] == ["engine_profile"]


async def test_auto_tune_makes_the_best_profile_current_once(database_url: str, data_dir: Path) -> None:
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    async with rig(database_url, data_dir, auto_tune=True) as node:
        version = await node.echo("acme/auto", **SLOW)
        await node.load("acme/auto")
        await eventually(lambda: profile_of(node, version), lambda precision: precision == "bf16")
        # That it was applied is written down after it was.
        await eventually(lambda: connection.fetchval("SELECT bool_or(applied) FROM lifecycle.tuning"), bool)
        # What was said by a call stands, also at the next start.
        await node.registry.SetEngineProfile(registry_pb2.SetEngineProfileRequest(name=version))
    await connection.close()
    async with rig(database_url, data_dir, auto_tune=True) as node:
        await node.load(version)
        tunings = (await node.lifecycle.ListTunings(pb.ListTuningsRequest(model="acme/auto"))).tunings
        assert [tuning.applied for tuning in tunings] == [True]
        assert await profile_of(node, version) == "fp32"


async def test_profiles_of_other_tasks_are_measured_and_judged_by_what_is_decided(node: Rig) -> None:
    models = {task: f"acme/{task.replace('_', '-')}" for task in ("reranking", "classification", "question_answering")}
    for task, model in models.items():
        await node.echo(model, task=task)
    for tuning, _ in await asyncio.gather(*(tuned(node, model) for model in models.values())):
        assert tuning.state == pb.TUNING_STATE_SUCCEEDED, tuning.reason
        exact, fast = tuning.candidates
        assert (exact.accuracy, exact.batch_consistency, fast.batch_consistency) == (1, 1, 1)
        assert fast.accuracy >= 0.98
        assert fast.entries_per_second > 0
