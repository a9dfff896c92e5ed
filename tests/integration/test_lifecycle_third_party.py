"""Engines of third parties whose answers cannot be, and the operator who wants no forks."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from integration.lifecycle_rig import Rig, refused, rig
from integration.registry_rig import sentence_model
from modelmora.common.v1 import common_pb2
from modelmora.errors import NonsenseFootprint
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora.registry.v1 import registry_pb2
from third_party import install

ENGINE = """
import dataclasses
from modelmora_worker.engines import base, echo

ROW = base.EngineRow(
    "theirs", "lying_engine:Engine", frozenset({"txt2embed"}), needs_files=False, profiles=("echo/fp32",),
    family="cheap", options={"lie": base.Option(str, "what about", default="")},
)

class Engine(echo.EchoEngine):
    def load(self, spec, progress):
        self.lie = spec.options.get("lie")
        told = super().load(dataclasses.replace(spec, options={}), progress)
        return dataclasses.replace(told, memory_bytes={"host": 2**70}) if self.lie == "memory" else told

    def infer(self, batch):
        rows = super().infer(batch)
        if self.lie == "rows":
            rows.data = bytes.fromhex("0000c07f") * (len(rows.data) // 4)
        return rows
"""


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "lying_engine", ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(tmp_path))


async def theirs(node: Rig, lie: str = "", folder: Path | None = None) -> str:
    """A READY version of it; `folder`: with these files."""
    request = registry_pb2.ImportModelRequest(model_id=f"acme/theirs{lie}", version="1", engine="theirs")
    request.task_type = common_pb2.TASK_TYPE_TXT2EMBED
    request.source.empty.SetInParent()
    if folder is not None:
        request.source.local.path = str(folder)
    ParseDict({"lie": lie}, request.engine_options)
    version = (await node.registry.ImportModel(request)).model_version
    while version.state != registry_pb2.MODEL_VERSION_STATE_READY:
        assert version.state != registry_pb2.MODEL_VERSION_STATE_FAILED, version.state_reason
        await asyncio.sleep(0.05)
        answer = await node.registry.GetModelVersion(registry_pb2.GetModelVersionRequest(name=version.name))
        version = answer.model_version
    return str(version.name)


async def test_a_lie_of_the_load_fails_it_and_one_of_its_answers_shows_at_once(
    database_url: str, data_dir: Path, tmp_path: Path
) -> None:
    folder = sentence_model(tmp_path / "model")
    async with rig(database_url, data_dir, model_roots=[tmp_path], probe_interval_seconds=3600) as node:
        version = await theirs(node, "memory")
        error = await refused(node.load(version), NonsenseFootprint)
        assert f"tells of {2**70} bytes on host; mend the engine" in error.message
        assert error.metadata["model_version"] == version

        version = await theirs(node, "rows", folder)
        assert (await node.load(version)).state == pb.REPLICA_STATE_LOADED
        sick = await node.state_of(version, "UNHEALTHY")
        assert "the engine answered with nonsense: 8 numbers, of which not all are finite" in sick.reason


@pytest.mark.parametrize("fork_servers", [True, False])
async def test_an_operator_may_have_no_fork_servers(database_url: str, data_dir: Path, fork_servers: bool) -> None:
    async with rig(database_url, data_dir, fork_servers=fork_servers) as node:
        replica = await node.load(await theirs(node))
        assert replica.start_mode == (pb.START_MODE_FORKED if fork_servers else pb.START_MODE_SPAWNED)
