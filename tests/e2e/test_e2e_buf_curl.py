"""A foreign client without proto files: `buf curl` lists the services by reflection and calls Embed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from e2e.test_readme import commands

from bench.up import Up

ROOT = Path(__file__).resolve().parents[2]
BUF = ROOT / "node_modules" / ".bin" / "buf"


def buf_curl(folder: Path, *arguments: str) -> str:
    return _run(folder, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments)


def _run(folder: Path, *arguments: str) -> str:
    if not BUF.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("buf is not installed: run make check first")
        pytest.skip("buf is not installed (make check installs it, with node)")
    done = subprocess.run([BUF, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_buf_curl_lists_the_services_without_proto_files(platform: Up, tmp_path: Path) -> None:
    listed = buf_curl(tmp_path, "--list-services", f"http://{platform.target}").split()
    contexts = ("registry", "lifecycle", "inference", "observability")
    assert {f"modelmora.{name}.v1.{name.capitalize()}Service" for name in contexts} <= set(listed)
    assert "grpc.health.v1.Health" in listed


@pytest.mark.parametrize("protocol", ["grpc-v1", "grpc-v1alpha"])
def test_buf_curl_calls_embed_without_proto_files(platform: Up, tmp_path: Path, protocol: str) -> None:
    request = {"model": "sentence-transformers/all-MiniLM-L6-v2", "texts": ["one text", "another"]}
    answer = json.loads(
        buf_curl(
            tmp_path, "--reflect-protocol", protocol, "-d", json.dumps(request),
            f"http://{platform.target}/modelmora.inference.v1.InferenceService/Embed",
        )
    )  # fmt: skip
    assert [len(row["values"]) for row in answer["embeddings"]] == [384, 384]
    assert answer["engineProfile"]["precision"] == "fp32"


def test_the_line_of_the_readme_answers(platform: Up, tmp_path: Path) -> None:
    (line,) = [shlex.split(command) for command in commands() if command.startswith("buf curl ")]
    answer = json.loads(_run(tmp_path, *(word.replace("127.0.0.1:50051", platform.target) for word in line[1:])))
    assert [len(row["values"]) for row in answer["embeddings"]] == [384]
