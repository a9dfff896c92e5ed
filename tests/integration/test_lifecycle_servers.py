"""A fork server that takes its time and memory: what is learned of it is told, and kept over a restart."""

from __future__ import annotations

import json
import os
from pathlib import Path

import asyncpg
import pytest
from integration.lifecycle_rig import MIB, Rig, eventually, rig
from modelmora.common.v1 import common_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora.registry.v1 import registry_pb2
from third_party import install

ENGINE = """
from modelmora_worker.engines import base, echo
ROW = base.EngineRow(
    "theirs", "slow_engine:Engine", frozenset({"txt2embed"}), needs_files=False, profiles=("echo/fp32",),
    family="cheap", preload=("slow_library",),
)
class Engine(echo.EchoEngine): pass
"""
LIBRARY = "import time; time.sleep(1); held = b'x' * (64 << 20)"
START_SECONDS = 1.0
SERVER = "fork-servers/cheap"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that a third party has installed, whose library takes a second to import and keeps 64 MiB."""
    install(tmp_path, "slow_engine", ENGINE)
    (tmp_path / "slow_library.py").write_text(LIBRARY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(tmp_path))


async def theirs(node: Rig) -> str:
    request = registry_pb2.ImportModelRequest(model_id="acme/theirs", version="1", engine="theirs")
    request.task_type = common_pb2.TASK_TYPE_TXT2EMBED
    request.source.empty.SetInParent()
    return str((await node.registry.ImportModel(request)).model_version.name)


async def explain(node: Rig, version: str) -> pb.Placement:
    return (await node.lifecycle.ExplainPlacement(pb.ExplainPlacementRequest(model=version))).placement


@pytest.mark.usefixtures("engine")
async def test_the_start_and_the_size_of_a_fork_server_are_learned_told_and_kept(
    database_url: str, data_dir: Path
) -> None:
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))

    async def kept() -> dict[str, tuple[int, list[float]]]:
        """Bytes and seconds by who was measured."""
        rows = await connection.fetch("SELECT model_version, learned FROM lifecycle.measurement")
        learned = {row["model_version"]: json.loads(row["learned"]) for row in rows}
        return {
            name: (max(found[when].get("host", 0) for when in ("base", "loading")), found["load_seconds"])
            for name, found in learned.items()
        }

    try:
        async with rig(database_url, data_dir, node="here") as node:
            version = await theirs(node)
            replica = await node.load(version)
            assert replica.start_mode == pb.START_MODE_FORKED
            found = await eventually(kept, lambda found: found.get(SERVER, (0, []))[0] > 64 * MIB and version in found)
            ((start_seconds,), (load_seconds,)) = found[SERVER][1], found[version][1]
            assert start_seconds >= START_SECONDS
            assert replica.load_duration.ToNanoseconds() / 1e9 == pytest.approx(load_seconds, abs=1e-3)
            await node.unload(version)
            warm = await explain(node, version)
            assert warm.ready_in.ToNanoseconds() / 1e9 == pytest.approx(max(0.05, load_seconds), abs=1e-3)
        found = await kept()
        async with rig(database_url, data_dir, node="here") as node:
            cold = await explain(node, version)
            assert cold.ready_in.ToNanoseconds() / 1e9 == pytest.approx(start_seconds + load_seconds, abs=1e-3)
            need, without = [placement.devices[0].need_bytes for placement in (cold, warm)]
            assert need - without == found[SERVER][0]
    finally:
        await connection.close()


@pytest.mark.usefixtures("engine")
async def test_a_model_that_fits_without_the_fork_server_of_others_gets_its_memory(
    database_url: str, data_dir: Path
) -> None:
    async with rig(database_url, data_dir) as node:
        version, big = await theirs(node), await node.echo("acme/big", memory_bytes=300 * MIB)

        async def told() -> str:
            return (await explain(node, big)).reason

        await node.load(version)
        await eventually(told, lambda reason: reason == "it fits once others and the fork server of cheap are gone")
        await node.load(big)
        (kept,) = await node.replicas()
        assert kept.model_version == big
        assert await node.charged() < 340 * MIB
        await node.unload(big)
        await node.load(version)
        await eventually(told, lambda reason: "the fork server of cheap" in reason)
        await node.unload(version)
        assert await told() == "it fits once the fork server of cheap is gone"
        await node.load(big)
        assert await node.charged() < 340 * MIB
