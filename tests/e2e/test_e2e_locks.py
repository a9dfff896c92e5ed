"""A lock is carried to a machine without a network, and the machine comes to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from e2e.rig import MINILM, eventually
from modelmora.client import Client
from modelmora_app.cli import cli
from modelmora_registry import lock_yaml, locks

from bench.up import Up

DRIVER = Path(__file__).with_name("offline_machine.py")
TEXT = "A lock is carried to a machine without a network."


@pytest.mark.timeout(400)
def test_a_machine_without_a_network_comes_to_a_lock(platform: Up, data_dir: Path) -> None:
    with Client(platform.target) as client:
        text = eventually(
            lambda: (
                made.yaml if (made := client.create_lock(MINILM)).model_lock.models[0].HasField("fingerprint") else ""
            ),
            60,
            "the worker has answered the golden inputs",
        )
    told = CliRunner().invoke(cli, ["embed", MINILM, TEXT, "--json"], env={"MODELMORA_TARGET": platform.target})
    data_dir.mkdir()
    job = {
        "data_dir": str(data_dir / "there"),
        "mirror": str(platform.data_dir / "artifacts"),
        "lock": text,
        "model": MINILM,
        "text": TEXT,
        "vector": json.loads(told.stdout)["embeddings"][0],
    }
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MODELMORA_")}
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-P", str(DRIVER)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=300,
        env=environ,
    )
    if "unshare:" in result.stderr and not os.environ.get("CI"):
        pytest.skip(f"no namespaces here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr[-6000:]
    assert result.stdout.splitlines()[-1] == "done"
    assert locks.render(lock_yaml.read(text)) == text
