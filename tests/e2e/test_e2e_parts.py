"""`modelmora serve NAME`: each context started alone serves, and holds no other context in its process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from architecture import walls
from e2e.rig import no_process_left
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.up import Up

DRIVER = """
import atexit, json, sys
where, context = sys.argv[1:]
atexit.register(lambda: open(where, "w").write(json.dumps(sorted(sys.modules))))
from modelmora_app.__main__ import main
sys.argv = ["modelmora", "serve", context]
sys.exit(main())
"""


@pytest.mark.parametrize("context", walls.CONTEXTS)
def test_a_context_started_alone_holds_no_other(tmp_path: Path, context: str) -> None:
    modules_file = tmp_path / "modules.json"
    up = Up(tmp_path / "data", command=("-c", DRIVER, str(modules_file), context))
    with up:
        name = f"modelmora.{context}.v1.{context.capitalize()}Service"
        health = health_pb2_grpc.HealthStub(up.channel)
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status in (health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING)
    no_process_left(up.data_dir)
    loaded = set(json.loads(modules_file.read_text()))
    own = f"modelmora_{context}"
    assert f"{own}.main" in loaded
    assert {name.split(".")[0] for name in loaded} & (walls.CONTEXT_PACKAGES - {own}) == set()
    assert not loaded & set(walls.HEAVY)
