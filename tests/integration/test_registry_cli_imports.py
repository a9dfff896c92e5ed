"""`modelmora models import`, `links` and `lock create` against a serving registry; sources are real servers."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from integration.hub_server import FakeHub, hub
from integration.registry_rig import Rig, registry, sentence_model
from modelmora.common.v1 import common_pb2
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora_app.cli import cli
from modelmora_app.cli.models import _progress

WEIGHTS = "model.safetensors"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeHub]:
    folder = sentence_model(tmp_path / "roots" / "mini")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with hub(files) as fake:
        yield fake


@pytest.fixture
async def rig(database_url: str, data_dir: Path, fake: FakeHub, tmp_path: Path) -> AsyncIterator[Rig]:
    roots, out = tmp_path / "roots", tmp_path / "out"
    settings: dict[str, Any] = {"model_roots": (roots,), "export_roots": (out,), "hub_endpoint": fake.url}
    async with registry(database_url, data_dir, **settings) as rig:
        yield rig


async def run(rig: Rig, *arguments: str) -> Result:
    runner = CliRunner()
    return await asyncio.to_thread(runner.invoke, cli, ["--target", rig.host.target, *arguments])


async def test_models_come_from_a_url_a_path_and_the_hub_and_go_to_a_folder(
    rig: Rig, fake: FakeHub, tmp_path: Path
) -> None:
    named = [part for path in fake.files for part in ("--file", path)]
    ways = [
        ("models", "import", "--from", f"{fake.url}/files", *named, "--name", "a/http", "--version", "1"),
        ("import", f"{tmp_path}/roots/mini", "--name", "a/path", "--version", "1"),
        ("models", "import", "hub:org/repo"),
    ]
    for way in ways:
        done = await run(rig, *way, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.output)["state"] == "ready"
    shown = await run(rig, "models", "show", "a/http@1")
    assert f"url {fake.url}/files" in shown.output
    wrong = await run(rig, "models", "import", "/a", "--from", "/b")
    assert wrong.exit_code == 2
    assert (await run(rig, "models", "import", "--from", "https://u:p@h/a", "--name", "a/b")).exit_code == 2

    made = json.loads((await run(rig, "links", "create", "a/path", "--folder", f"{tmp_path}/out/m", "--json")).output)
    assert (await run(rig, "links", "check", made["name"])).exit_code == 1
    exported = await run(rig, "links", "export", "a/path@1", made["name"])
    assert exported.exit_code == 0, exported.output
    assert "synced" in exported.output
    assert (await run(rig, "links", "check", made["name"])).exit_code == 0
    assert made["name"] in (await run(rig, "links", "list", "a/path")).output
    assert (await run(rig, "links", "get", made["name"])).exit_code == 0
    assert (await run(rig, "links", "create", "a/path")).exit_code == 2
    assert (await run(rig, "links", "delete", made["name"])).exit_code == 0
    assert (await run(rig, "links", "get", made["name"])).exit_code == 3


async def test_an_import_is_cancelled_by_its_name(rig: Rig, fake: FakeHub) -> None:
    fake.hold[WEIGHTS] = threading.Event()
    begun = await run(rig, "models", "import", "hub:org/repo", "--version", "1", "--no-wait")
    assert begun.exit_code == 0, begun.output
    assert (await asyncio.to_thread(fake.half_sent.wait, 20)) is True
    ended = await run(rig, "models", "import", "--cancel", "org/repo@1")
    assert ended.exit_code == 0, ended.output
    assert rig.files() == []
    assert (await run(rig, "models", "import", "--cancel", "org/repo@1")).exit_code == 4
    assert (await run(rig, "models", "import", "/x", "--cancel", "org/repo@1")).exit_code == 2


def test_progress_is_told_with_its_rate_and_what_is_left() -> None:
    progress = pb.ImportProgress(done_bytes=2**20, total_bytes=2**21, current_file="a", bytes_per_second=2**10)
    progress.remaining.FromTimedelta(timedelta(seconds=65))
    told = _progress(progress)
    assert told.endswith("left  a")
    assert "/s, 1:05 left" in told
    assert "/s" not in _progress(pb.ImportProgress(done_bytes=1, total_bytes=2))


async def test_a_lock_without_fingerprints_says_so(rig: Rig, tmp_path: Path) -> None:
    assert (await run(rig, "import", f"{tmp_path}/roots/mini", "--name", "a/one", "--version", "1")).exit_code == 0
    made = await run(rig, "lock", "create", "a/one")
    assert made.exit_code == 0
    assert "warning: no fingerprint of a/one@1: " in made.stderr
    assert made.stdout.startswith("# A model lock")
    assert "warning" not in made.stdout
    told = json.loads((await run(rig, "lock", "create", "a/one", "--json")).stdout)
    assert told["without_fingerprint"] == ["models/a/one/versions/1"]
    outputs = common_pb2.Tensor(
        data_type=common_pb2.DATA_TYPE_FP32, shape=(4, 2), data=struct.pack("<8f", *range(1, 9))
    )
    profile = common_pb2.EngineProfile(backend="torch", precision="fp32", batch_rule="padded")
    golden = pb.Fingerprint(golden="txt2embed/1", outputs=outputs, engine_profile=profile)
    await rig.call(
        rig.holds.RecordFingerprint, pb.RecordFingerprintRequest(name="models/a/one/versions/1", fingerprint=golden)
    )
    made = await run(rig, "lock", "create", "a/one")
    assert (made.exit_code, made.stderr) == (0, "")
    assert json.loads((await run(rig, "lock", "create", "a/one", "--json")).stdout)["without_fingerprint"] == []
    await rig.echo("a/echo")  # It has no files: no load will ever take one.
    made = await run(rig, "lock", "create", "a/echo")
    assert (made.exit_code, made.stderr) == (0, "")
