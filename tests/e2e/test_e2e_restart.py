"""The platform in parts, each a process of its own: one is killed and comes back, and the others go on."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import grpc
import pytest
from e2e.rig import eventually, free_port, no_process_left
from grpc_health.v1 import health_pb2, health_pb2_grpc
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.observability.v1 import observability_pb2
from modelmora.registry.v1 import registry_pb2

from bench.small_models import small_models
from bench.up import Up

CLIENTS = 6
CALLS = 40


@dataclass
class Parts:
    """Registry, inference and one lifecycle, started; a second lifecycle of the same node, not started."""

    registry: Up
    inference: Up
    first: Up
    second: Up
    database_url: str

    def all(self) -> list[Up]:
        return [self.second, self.first, self.inference, self.registry]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Parts]:
    folder = tmp_path_factory.mktemp("parts")
    ports = {name: free_port() for name in ("registry", "inference", "first", "second")}
    peers = json.dumps({name: f"127.0.0.1:{ports['first' if name == 'lifecycle' else name]}" for name in
                        ("registry", "lifecycle", "inference")})  # fmt: skip

    def part(name: str, *contexts: str, **settings: str) -> Up:
        common = {"DATABASE_URL": postgres_url, "PORT": str(ports[name]), "PEERS": peers}
        return Up(folder / name, command=("-m", "modelmora_app", "serve", *contexts), settings=common | settings)

    roots = json.dumps([str(small_models(1, seed=11)[0].parent)])
    made = Parts(
        part("registry", "registry", REGISTRY_MODEL_ROOTS=roots),
        # By default calls hear after ten seconds that lifecycle is away, and a start may take as long.
        part("inference", "inference", "observability", INFERENCE_PATIENCE_SECONDS="60"),
        part("first", "lifecycle", LIFECYCLE_NODE="here"),
        part("second", "lifecycle", LIFECYCLE_NODE="here"),
        postgres_url,
    )
    try:
        for up in (made.registry, made.inference, made.first):
            up.start()
        yield made
    finally:
        for up in made.all():
            up.stop()
    for up in made.all():
        no_process_left(up.data_dir)


def node_of(up: Up) -> lifecycle_pb2.Node:
    return up.lifecycle.GetNode(lifecycle_pb2.GetNodeRequest(), timeout=10).node


def replica_of(up: Up, version: str, state: int = lifecycle_pb2.REPLICA_STATE_LOADED) -> lifecycle_pb2.Replica | None:
    try:
        replicas = up.lifecycle.ListReplicas(lifecycle_pb2.ListReplicasRequest(), timeout=10).replicas
    except grpc.RpcError:
        return None
    return next((r for r in replicas if r.model_version == version and r.state == state), None)


def health_of(up: Up, component: str) -> observability_pb2.GetHealthResponse:
    return up.observability.GetHealth(observability_pb2.GetHealthRequest(), timeout=10).components[component]


def query(url: str, statement: str, *arguments: Any) -> list[Any]:
    async def run() -> list[Any]:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=10)
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    return asyncio.run(run())


@pytest.mark.timeout(300)
def test_a_killed_lifecycle_leaves_no_worker_and_costs_no_answer(parts: Parts) -> None:
    options = {"delay_seconds": 0.03, "load_seconds": 0.1, "max_batch_entries": 4}
    parts.registry.add_model("parts/slow", engine="echo", options=options)
    texts = [f"text {number} of client {client}" for client in range(CLIENTS) for number in range(CALLS)]
    answers: dict[str, tuple[float, ...]] = {}
    counted = threading.Lock()

    def embed(text: str) -> tuple[float, ...]:
        request = inference_pb2.EmbedRequest(model="parts/slow", texts=[text])
        return tuple(parts.inference.inference.Embed(request, timeout=60).embeddings[0].values)

    def client(number: int) -> None:
        for text in texts[number::CLIENTS]:
            vector = embed(text)
            with counted:
                answers[text] = vector

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(client, number) for number in range(CLIENTS)]
        for goal in (20, 100):
            eventually(lambda: len(answers) >= goal, 60, f"{goal} answers")  # noqa: B023
            parts.first.signal(signal.SIGKILL)
            parts.first.wait(10)
            no_process_left(parts.first.data_dir)
            parts.first.close_channel()
            parts.first.start()
        for future in running:
            future.result(60)
    assert len(answers) == len(texts)
    sample = random.Random(6).sample(texts, 20)
    assert [text for text in sample if answers[text] != pytest.approx(embed(text), abs=1e-6)] == []


@pytest.mark.timeout(300)
def test_a_registry_that_comes_back_still_respects_what_is_in_memory(parts: Parts) -> None:
    version = parts.registry.add_model("parts/held", engine="echo")
    parts.first.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model=version, wait=True), timeout=30)
    mine = (
        "SELECT h.uid FROM registry.hold h JOIN registry.model_version v ON v.uid = h.model_version_id "
        "JOIN registry.model m ON m.uid = v.model_id WHERE m.name = 'parts/held' AND h.expire_time > now() + $1"
    )

    def lasting(seconds: int) -> list[Any]:
        return [row["uid"] for row in query(parts.database_url, mine, timedelta(seconds=seconds))]

    (hold,) = lasting(0)
    parts.registry.signal(signal.SIGKILL)
    parts.registry.wait(10)
    # What is in memory answers meanwhile, and is there to be loaded and unloaded by its name in full.
    answer = parts.first.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model=version, wait=True), timeout=30)
    assert answer.replica.state == lifecycle_pb2.REPLICA_STATE_LOADED
    parts.registry.close_channel()
    parts.registry.start()
    delete = registry_pb2.DeleteModelVersionRequest(name=version, force=True)

    def refused_as_held() -> bool:
        refusal = eventually(refusal_of_deletion, 60, "the registry answers")
        return "VersionInUse" in str(refusal.trailing_metadata()) or "in use" in str(refusal.details())

    def refusal_of_deletion() -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            parts.registry.registry.DeleteModelVersion(delete, timeout=10)
        # A database that is slow to answer is no answer.
        return caught.value if caught.value.code() is not grpc.StatusCode.UNAVAILABLE else None

    assert refused_as_held(), "the hold outlasts the registry"
    # Lifecycle goes on with it by itself; that alone protects the version from then on.
    cut = "UPDATE registry.hold SET expire_time = now() + interval '1 second' WHERE uid = $1"
    query(parts.database_url, cut, hold)
    eventually(lambda: lasting(5) == [hold], 30, "the hold goes on")
    assert refused_as_held()
    parts.first.lifecycle.UnloadModel(lifecycle_pb2.UnloadModelRequest(model=version, wait=True), timeout=30)

    def deleted() -> bool:
        try:
            parts.registry.registry.DeleteModelVersion(delete, timeout=10)
        except grpc.RpcError:
            return False
        return True

    assert eventually(deleted, 60, "the version may go once it is unloaded")


@pytest.mark.timeout(300)
def test_a_version_is_asked_for_its_fingerprint_and_another_answer_is_told(parts: Parts) -> None:
    version = parts.registry.add_model("parts/real", engine="sentence_transformers", folder=small_models(1, seed=11)[0])
    load = lifecycle_pb2.LoadModelRequest(model=version, wait=True)
    parts.first.lifecycle.LoadModel(load, timeout=200)
    rows = eventually(lambda: query(parts.database_url, "SELECT golden, kept FROM registry.fingerprint"), 60, "a row")
    assert rows[0]["golden"].startswith("txt2embed/")
    kept = json.loads(rows[0]["kept"])
    assert kept["engine_profile"]["library_versions"]["torch"]
    assert eventually(
        lambda: health_of(parts.inference, "models").state == common_pb2.HEALTH_STATE_HEALTHY, 60, "health"
    )
    # The same weights cannot answer otherwise, so what was kept is changed: as if it had been another library's answer.
    outputs = kept["outputs"]
    query(parts.database_url, "UPDATE registry.fingerprint SET kept = jsonb_set(kept, '{outputs,data}', $1::jsonb)",
          json.dumps(_turned(outputs["data"])))  # fmt: skip
    parts.first.lifecycle.UnloadModel(lifecycle_pb2.UnloadModelRequest(model=version, wait=True), timeout=30)
    parts.first.lifecycle.LoadModel(load, timeout=200)
    told = eventually(
        lambda: "answers otherwise" in (found := health_of(parts.inference, "models")).reason and found,
        60,
        "health tells of the other answer",
    )
    assert told.state == common_pb2.HEALTH_STATE_DEGRADED
    assert "parts/real" in told.reason
    parts.first.lifecycle.UnloadModel(lifecycle_pb2.UnloadModelRequest(model=version, wait=True), timeout=30)


def _turned(data: str) -> str:
    """Base64 of vectors whose halves are swapped."""
    import base64

    raw = base64.b64decode(data)
    return base64.b64encode(raw[len(raw) // 8 * 4 :] + raw[: len(raw) // 8 * 4]).decode()


@pytest.mark.timeout(300)
def test_a_second_lifecycle_stands_by_says_so_and_takes_over(parts: Parts) -> None:
    version = parts.registry.add_model("parts/pinned", engine="echo", version="v2.0.0")
    residency = lifecycle_pb2.Residency(model_version=version, pinned=True)
    update = lifecycle_pb2.UpdateResidencyRequest(residency=residency)
    update.update_mask.paths.append("pinned")
    parts.first.lifecycle.UpdateResidency(update, timeout=10)
    eventually(lambda: replica_of(parts.first, version), 60, "the pinned model is loaded")
    parts.second.start()
    waiting = eventually(
        lambda: (found := node_of(parts.second)).state == lifecycle_pb2.NODE_STATE_STANDBY and found, 60, "standby"
    )
    assert "another process serves node here" in waiting.reason
    assert node_of(parts.first).state == lifecycle_pb2.NODE_STATE_ACTIVE
    eventually(lambda: "standby" in parts.second.log.read_text(), 60, "the log tells it")
    check = health_pb2.HealthCheckRequest(service="modelmora.lifecycle.v1.LifecycleService")
    answer = health_pb2_grpc.HealthStub(parts.second.channel).Check(check, timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError) as caught:
        parts.second.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model=version), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "standby" in str(caught.value.details())
    with pytest.raises(grpc.RpcError):
        parts.second.lifecycle.UpdateResidency(update, timeout=10)

    parts.first.signal(signal.SIGKILL)
    parts.first.wait(10)
    no_process_left(parts.first.data_dir)
    eventually(lambda: node_of(parts.second).state == lifecycle_pb2.NODE_STATE_ACTIVE, 60, "the second has taken over")
    pinned = eventually(lambda: replica_of(parts.second, version), 60, "what is pinned is loaded there")
    assert pinned.pinned
    parts.first.close_channel()
    parts.first.start()
    eventually(lambda: node_of(parts.first).state == lifecycle_pb2.NODE_STATE_STANDBY, 60, "the first stands by now")
    assert parts.second.stop() == 0
    eventually(lambda: node_of(parts.first).state == lifecycle_pb2.NODE_STATE_ACTIVE, 60, "and is back on duty")
    assert replica_of(parts.first, version) or eventually(lambda: replica_of(parts.first, version), 60, "loaded again")
