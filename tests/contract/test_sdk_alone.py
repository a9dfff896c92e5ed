"""The SDK by itself: the wheel with its base dependencies only, the lowest declared and the newest pinned ones, embeds
a text on a real platform; nothing of the server is needed, or there.

The environments hold the dependencies; the wheel is built from this tree and unpacked beside them in each run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from environments import environment

from bench.up import Up

ROOT = Path(__file__).resolve().parents[2]

CALLER = """
import json, sys
import modelmora
assert "grpc" not in sys.modules, "import modelmora is lazy"
from modelmora import errors
with modelmora.Client(sys.argv[1], timeout=30) as client:
    vectors = client.embed("demo/echo", ["one text", "another"])
    detailed = client.embed_detailed("demo/echo", "one text")
    models = [model.name for model in client.list_models()]
    try:
        client.embed("demo/nothing", "a")
    except errors.ModelNotFound as error:
        reason = error.reason

import asyncio
async def again():
    async with modelmora.AsyncClient(sys.argv[1], timeout=30) as client:
        return await client.embed("demo/echo", ["one text", "another"])

import grpc, google.protobuf
server = ("modelmora_", "pydantic", "sqlalchemy", "asyncpg", "click", "rich", "yaml", "uvloop", "numpy")
print(json.dumps({
    "vectors": [list(row) for row in vectors],
    "again": [list(row) for row in asyncio.run(again())],
    "single": list(detailed.vectors),
    "tokens": detailed.usage.input_tokens,
    "kind": type(vectors[0]).__name__,
    "models": models,
    "reason": reason,
    "versions": [grpc.__version__, google.protobuf.__version__],
    "home": modelmora.__file__,
    "server": [name for name in sys.modules if name.startswith(server)],
}))
"""


def _declared() -> list[str]:
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])


def _lowest() -> list[str]:
    """Each dependency at the version that it may have at least."""
    return [requirement.split(",")[0].replace(">=", "==") for requirement in _declared()]


def _newest() -> list[str]:
    """Each dependency as constraints.txt pins it: the newest there was when it was resolved."""
    names = {requirement.split(">=")[0] for requirement in _declared()}
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.split("==")[0] in names]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, built from this tree without network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps"]
    subprocess.run([*build, "--no-build-isolation", "-w", str(folder), str(ROOT)], check=True, timeout=300)
    (made,) = folder.glob("modelmora-*.whl")
    return made


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real platform with an echo model."""
    with Up(tmp_path_factory.mktemp("up") / "data") as up:
        up.add_model("demo/echo", engine="echo", options={"dimensions": 4, "seed": 7})
        yield up.target


def test_the_base_dependencies_are_few(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode().splitlines()
        assert "modelmora/py.typed" in archive.namelist()
        assert "modelmora/inference/v1/inference_pb2.pyi" in archive.namelist()
    base = [line for line in metadata if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert sorted(re.split(r"[<>=]", line.split()[1])[0] for line in base) == [
        "googleapis-common-protos",
        "grpcio",
        "protobuf",
    ]


@pytest.mark.timeout(900)  # an empty cache fetches two environments
@pytest.mark.parametrize("pins", [_lowest(), _newest()], ids=["lowest", "newest"])
def test_the_sdk_alone_embeds_a_text(pins: list[str], wheel: Path, target: str, tmp_path: Path) -> None:
    python = environment("sdk", pins)
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for package in site.glob("modelmora_*"):
        if not package.name.endswith(".dist-info"):
            shutil.rmtree(package)
    environ = {"PYTHONPATH": str(site), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    run = subprocess.run(
        [str(python), "-c", CALLER, target], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    pinned = {pin.split("==")[0]: pin.split("==")[1] for pin in pins}
    assert told["versions"] == [pinned["grpcio"], pinned["protobuf"]]
    assert Path(told["home"]).is_relative_to(site)
    assert told["server"] == []
    assert told["kind"] == "array"
    assert told["models"] == ["models/demo/echo"]
    assert told["reason"] == "ModelNotFound"
    assert told["tokens"] == 2
    first, second = told["vectors"]
    assert told["again"] == [first, second]
    assert told["single"] == first != second
    assert len(first) == 4
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-5)
