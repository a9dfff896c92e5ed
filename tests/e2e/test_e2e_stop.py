"""Stopping: an idle platform with open streams is gone in 2 s; a request in flight is answered first."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import grpc
import pytest
from e2e.conftest import StartUp
from e2e.rig import eventually, no_process_left
from e2e.test_e2e_holders import Holder, replica_of
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.registry.v1 import registry_pb2

from bench.up import Up


@pytest.mark.timeout(400)
def test_an_idle_platform_with_watch_streams_and_leases_stops_in_two_seconds(start_up: StartUp) -> None:
    took: list[tuple[float, float]] = []
    # On a machine that is busy the best of three tells, and how long a start takes there, in which is more to do.
    while not took or (took[-1][0] >= took[-1][1] and len(took) < 3):
        began = time.monotonic()
        up = start_up(name=f"data-{len(took)}")
        promised = max(2.0, time.monotonic() - began)
        took.append((stopped(up), promised))
    assert took[-1][0] < took[-1][1], took


def stopped(up: Up) -> float:
    """Seconds that it took to stop, with streams and leases that are idle."""
    versions = [up.add_model(f"idle/{name}", engine="echo") for name in ("one", "two", "three")]
    creating = up.registry.CreateModel(
        registry_pb2.CreateModelRequest(model_id="idle/four", model={"task_type": 1}), timeout=10
    )
    assert creating.model.name == "models/idle/four"
    heard: list[tuple[str, grpc.StatusCode, str]] = []

    def listen(name: str, call: grpc.Call) -> None:
        cursor = ""
        try:
            for event in call:  # type: ignore[attr-defined]
                cursor = event.cursor
        except grpc.RpcError as error:
            heard.append((name, error.code(), cursor))

    threads = []
    for number in range(5):
        call = up.lifecycle.WatchReplicas(lifecycle_pb2.WatchReplicasRequest())
        threads.append(threading.Thread(target=listen, args=(f"watch {number}", call), daemon=True))
        threads[-1].start()
    # Three leases: inference's own, idle after one answer each, and one of a process outside that is idle too.
    for version in versions:
        up.inference.Embed(inference_pb2.EmbedRequest(model=version, texts=["a"]), timeout=30)
    holders = [Holder(up, version) for version in versions]
    try:
        eventually(lambda: all(replica_of(up, version).leases >= 1 for version in versions), 30, "three leases")
        start = time.monotonic()
        up.signal(signal.SIGTERM)
        assert up.wait(30) == 0
        took = time.monotonic() - start
    finally:
        for holder in holders:
            holder.end()
    for thread in threads:
        thread.join(30)
    assert [(code, bool(cursor)) for _, code, cursor in heard] == [(grpc.StatusCode.UNAVAILABLE, True)] * 5
    no_process_left(up.data_dir)
    return took


def in_flight(up: Up, version: str) -> Any:
    """A request that is on the worker. Who stood still while it was there asks another."""
    while True:
        pending = up.inference.Embed.future(inference_pb2.EmbedRequest(model=version, texts=["a b"]), timeout=100)
        seen = eventually(
            lambda: "there" if replica_of(up, version).busy_leases else pending.done(),  # noqa: B023
            60,
            "the request is on the worker",
        )
        if seen == "there":
            return pending


def test_a_request_in_flight_is_answered_before_the_platform_stops(start_up: StartUp) -> None:
    up = start_up()
    version = up.add_model("busy/one", engine="echo", options={"delay_seconds": 3})
    up.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model=version, wait=True), timeout=30)
    pending = in_flight(up, version)
    up.signal(signal.SIGTERM)
    assert len(pending.result(timeout=20).embeddings) == 1
    assert up.wait(30) == 0
    no_process_left(up.data_dir)


def test_a_new_call_while_stopping_is_refused_with_a_reason(start_up: StartUp) -> None:
    up = start_up()
    version = up.add_model("busy/one", engine="echo", options={"delay_seconds": 3})
    up.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model=version, wait=True), timeout=30)
    pending = in_flight(up, version)
    up.signal(signal.SIGTERM)

    def refused() -> bool:
        try:
            up.registry.GetModel(registry_pb2.GetModelRequest(name="busy/one"), timeout=5)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAVAILABLE)
        return False

    eventually(refused, 30, "new calls are refused")
    assert len(pending.result(timeout=20).embeddings) == 1
    assert up.wait(30) == 0


def test_a_second_interrupt_skips_to_the_kill(start_up: StartUp) -> None:
    up = start_up({"GRACE_SECONDS": "90"})
    version = up.add_model("busy/one", engine="echo", options={"delay_seconds": 90})
    up.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model=version, wait=True), timeout=30)
    pending = in_flight(up, version)
    os.kill(up.pid, signal.SIGINT)
    eventually(lambda: not _serving(up.target), 30, "it stops taking calls")
    # The call would go on for a minute yet.
    os.kill(up.pid, signal.SIGINT)
    up.wait(40)
    assert pending.exception(timeout=30) is not None
    no_process_left(up.data_dir)


def _serving(target: str) -> bool:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
