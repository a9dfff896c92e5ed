"""buf judges the protos: lint, format, compatibility with the last release; and a breaking change is seen."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def buf() -> Path:
    """The buf that `make check` installs. Without node it cannot be there; CI must have it."""
    path = ROOT / "node_modules" / ".bin" / "buf"
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("buf is not installed: run make check first")
        pytest.skip("buf is not installed (make check installs it, with node)")
    return path


def run(buf: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([buf, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "arguments", [["lint"], ["format", "--diff", "--exit-code"], ["breaking", "--against", "baseline.binpb"]], ids=str
)
def test_the_protos_pass(buf: Path, arguments: list[str]) -> None:
    done = run(buf, ROOT / "protos", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_breaking_change_is_seen(buf: Path, tmp_path: Path) -> None:
    protos = tmp_path / "protos"
    shutil.copytree(ROOT / "protos", protos)
    target = protos / "modelmora" / "inference" / "v1" / "inference.proto"
    text = target.read_text()
    assert "repeated string texts = 2;" in text
    target.write_text(text.replace("repeated string texts = 2;", "repeated string texts = 200;"))
    done = run(buf, protos, "breaking", "--against", "baseline.binpb")
    assert done.returncode != 0
    assert '"texts"' in done.stdout
