"""`modelmora serve NAME`: each context started alone serves, and holds no other context in its process.

And no part of the platform imports anything from the folder that it happens to be started in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from architecture import walls
from e2e.rig import no_process_left
from grpc_health.v1 import health_pb2, health_pb2_grpc
from modelmora.inference.v1 import inference_pb2

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


DECOYS = (
    "json",
    "asyncio",
    "socket",
    "grpc",
    "torch",
    "modelmora",
    "modelmora_worker",
    "modelmora_registry",
    "sitecustomize",
)


def test_decoy_packages_in_the_working_directory_harm_nobody(tmp_path: Path) -> None:
    cwd = tmp_path / "cwd"
    for name in DECOYS:
        (cwd / name).mkdir(parents=True)
        (cwd / name / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r} + chr(10))")
    program = Path(sys.executable).with_name("modelmora")
    up = Up(tmp_path / "data", command=(str(program), "up"), cwd=cwd)
    with up:
        up.add_model("decoy/one", engine="echo")
        answer = up.inference.Embed(inference_pb2.EmbedRequest(model="decoy/one", texts=["a"]), timeout=30)
        assert len(answer.embeddings) == 1
    assert not (tmp_path / "imported").exists(), (tmp_path / "imported").read_text()
    no_process_left(up.data_dir)
