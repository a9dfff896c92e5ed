"""The Open Inference Protocol against the real tritonclient, in processes of its own: two files that define the same
symbols clash in one descriptor pool, and the server's are not the client's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy
import pytest
from e2e.rig import MINILM, eventually
from environments import environment
from grpc_health.v1 import health_pb2, health_pb2_grpc
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.registry.v1 import registry_pb2
from modelmora_inference.protocols import oip_pb2
from modelmora_inference.protocols.oip_service import EXTENSIONS

from bench.up import Up

ROOT = Path(__file__).resolve().parents[2]
PINS = [
    "tritonclient[grpc]==2.73.0",
    "grpcio==1.85.1",
    "protobuf==6.33.5",
    "numpy==2.4.6",
    "googleapis-common-protos==1.76.0",
]
CLOSE = 1e-5
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def program() -> Run:
    """Runs a part of triton_program.py; what it printed."""
    return run_program(environment("triton", PINS))


def run_program(python: Path) -> Run:
    def run(part: str, target: str, *arguments: str) -> Any:
        environ = {"PYTHONPATH": str(ROOT / "libs"), "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
        command = [str(python), str(Path(__file__).with_name("triton_program.py")), part, target, *arguments]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def up(platform: Up) -> Up:
    platform.add_model("triton/echo", engine="echo", options={"dimensions": 8, "seed": 3})
    options = {"dimensions": 8, "seed": 3, "delay_per_token_seconds": 0.01, "micro_batch_entries": 1}
    platform.add_model("triton/busy", engine="echo", options=options)
    platform.add_model("triton/too-large", engine="echo", memory_bytes=1 << 50)
    request = registry_pb2.ImportModelRequest(model_id="triton/classes", version="v1.0.0", engine="echo")
    request.source.empty.SetInParent()
    request.task_type = common_pb2.TASK_TYPE_CLASSIFICATION
    platform.registry.ImportModel(request, timeout=30)
    return platform


def health(up: Up, name: str) -> Any:
    return health_pb2_grpc.HealthStub(up.channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status


@pytest.mark.timeout(900)  # an empty cache fetches the environment
def test_the_synchronous_client(up: Up, program: Run) -> None:
    told = program("basics", up.target)
    names = ("live", "ready", "model ready", "version ready", "alias ready")
    assert {name: told[name] for name in names} == dict.fromkeys(names, True)
    names = ("unknown ready", "unknown version ready", "too large ready")
    assert {name: told[name] for name in names} == dict.fromkeys(names, False)
    assert told["server"]["name"] == "modelmora"
    assert told["server"]["extensions"] == list(EXTENSIONS)
    assert not [name for name in EXTENSIONS if "memory" in name or name in ("trace", "logging")]
    metadata = told["metadata"]
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("triton/echo", ["v1.0.0"], "modelmora")
    assert metadata["inputs"] == [{"name": "texts", "datatype": "BYTES", "shape": ["-1"]}]
    assert [(one["name"], one["datatype"]) for one in metadata["outputs"]] == [("vectors", "FP32")]
    config = told["config"]
    assert config["input"] == [{"name": "texts", "data_type": "TYPE_STRING", "dims": ["-1"]}]
    assert config["dynamic_batching"]["priority_levels"] == "3"
    assert config["parameters"]["task_type"]["string_value"] == "txt2embed"
    answer = told["answer"]
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("the id", "triton/echo", "v1.0.0")
    assert answer["outputs"] == [{"name": "vectors", "datatype": "FP32", "shape": ["3", "8"]}]
    assert answer["parameters"]["input_tokens"] == {"int64_param": "6"}
    assert answer["parameters"]["engine_profile"] == {"string_param": "echo/fp32"}
    assert told["largest difference"] <= CLOSE
    assert told["typed"] == {"raw": 0, "id": "typed"}
    assert told["classes"] == told["native classes"]
    assert all(re.fullmatch(r"0\.\d{6}:\d:label-\d", cell) for row in told["classes"] for cell in row)
    loaded, unloaded = lifecycle_pb2.REPLICA_STATE_LOADED, lifecycle_pb2.REPLICA_STATE_UNLOADED
    assert set(told["after unload"]) <= {unloaded}
    assert loaded in told["after load"]
    index = {one["name"]: (one["version"], one["state"]) for one in told["index"]}
    assert index["triton/echo"] == index["triton/busy"] == index["triton/classes"] == ("v1.0.0", "READY")
    (stats,) = told["statistics"]
    assert (stats["name"], stats["version"]) == ("triton/echo", "v1.0.0")
    assert int(stats["inference_stats"]["success"]["count"]) == 6  # four of Triton's client, two of ours
    assert int(stats["inference_count"]) == 18 >= int(stats["execution_count"]) > 0
    errors = told["errors"]
    assert {name: status.removeprefix("StatusCode.") for name, (status, _) in errors.items()} == {
        "unknown model": "NOT_FOUND",
        "unknown version": "NOT_FOUND",
        "nothing to embed": "INVALID_ARGUMENT",
        "wrong task": "INVALID_ARGUMENT",
        "load unknown": "NOT_FOUND",
        "load with a configuration": "INVALID_ARGUMENT",
        "unload unknown": "NOT_FOUND",
        "trace": "UNIMPLEMENTED",
        "log": "UNIMPLEMENTED",
        "shared memory": "UNIMPLEMENTED",
        "cuda shared memory": "UNIMPLEMENTED",
        "too late": "DEADLINE_EXCEEDED",
        "client timeout": "DEADLINE_EXCEEDED",
    }
    assert errors["wrong task"][1].startswith("parameters.dimensions: ")
    assert errors["nothing to embed"][1].startswith("inputs[0].shape[0]: ")
    # Names of models are names of services to probes; nothing was loaded for that.
    assert health(up, "triton/busy") == health(up, "triton/echo") == health(up, "triton/echo@v1.0.0") == SERVING
    assert health(up, "triton/too-large") == NOT_SERVING
    for unknown in ("triton/unknown", "triton/echo@v9", "nothing", "a/b/c"):
        with pytest.raises(grpc.RpcError) as refused:
            health(up, unknown)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND, unknown


def test_a_stream_answers_in_order_and_goes_on_after_an_error(up: Up, program: Run) -> None:
    told = program("stream", up.target)
    assert told["ids"] == [*map(str, range(50)), "after"]
    assert told["final"]
    assert told["largest difference"] <= CLOSE
    ((status, message),) = told["error"]
    assert status == "None"
    assert "triton/unknown" in message
    nothing, status, message = told["as status"]
    assert (nothing, status) == (True, "StatusCode.NOT_FOUND")
    assert "triton/unknown" in message


def test_what_is_cancelled_leaves_the_worker_and_is_counted(up: Up, program: Run) -> None:
    name = 'modelmora_inference_requests_total{priority="medium",status="CANCELLED"}'
    before = up.scrape().get(name, 0)
    told = program("cancel", up.target)
    assert [told[way][0] for way in ("context", "stream", "task", "iterator")] == [
        "StatusCode.CANCELLED",
        "StatusCode.CANCELLED",
        "cancelled",
        "cancelled",
    ]
    # Each would have taken 30 s; a micro-batch takes 0.3. A call is counted when it ends, after its entries have gone.
    eventually(lambda: up.scrape().get(name, 0) - before >= 6, 60, "six calls are counted as cancelled")


def test_calls_of_both_protocols_go_in_one_batch(up: Up, program: Run) -> None:
    told = program("together", up.target)
    # Eight calls each: a batch of nine has some of both.
    assert any(int(size) >= 9 and int(count) for size, count in told["batches"].items()), told
    assert told["largest difference"] <= CLOSE


def test_the_vectors_of_a_real_model_are_those_of_our_own_client(platform: Up, program: Run) -> None:
    told = program("vectors", platform.target, MINILM)
    request = inference_pb2.EmbedRequest(model=MINILM, texts=told["texts"], precision="exact")
    answer = platform.inference.Embed(request, timeout=30)
    native = numpy.array([embedding.values for embedding in answer.embeddings])
    assert native.shape == (3, 384)
    for found in (told["theirs"], told["ours"]):
        assert numpy.abs(numpy.array(found) - native).max() <= CLOSE


def test_our_messages_are_those_of_triton(program: Run) -> None:
    theirs = program("wire", "nowhere")
    ours: dict[str, Any] = {}

    def look(message: Any) -> None:
        for field in message.fields:
            kind = field.message_type or field.enum_type
            of = kind.full_name if kind else ""
            ours[f"{message.full_name}.{field.name}"] = [field.number, field.type, field.is_repeated, of]
        for nested in message.nested_types:
            look(nested)

    for message in oip_pb2.DESCRIPTOR.message_types_by_name.values():
        look(message)
    for enum in oip_pb2.DESCRIPTOR.enum_types_by_name.values():
        ours |= {f"{enum.full_name}.{value.name}": [value.number] for value in enum.values}
    for method in oip_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        ours[method.full_name] = [
            method.client_streaming,
            method.server_streaming,
            method.input_type.full_name,
            method.output_type.full_name,
        ]
    assert len(ours) > 150
    assert {name: told for name, told in ours.items() if theirs.get(name) != told} == {}
    rpcs = {name for name in theirs if name.startswith("inference.GRPCInferenceService.")}
    assert rpcs <= ours.keys()
