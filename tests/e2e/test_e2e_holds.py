"""A lifecycle process that is frozen for longer than any connection lives keeps what it has in memory from deletion."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import grpc
import pytest
from e2e.rig import eventually, free_port, no_process_left
from e2e.test_e2e_restart import replica_of
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.registry.v1 import registry_pb2

from bench.up import Up

FROZEN_SECONDS = 45.0
"""Longer than keepalive and its timeout together, on both ends."""


def deleted(registry: Up, version: str) -> grpc.StatusCode:
    try:
        registry.registry.DeleteModelVersion(
            registry_pb2.DeleteModelVersionRequest(name=version, force=True), timeout=10
        )
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_frozen_lifecycle_keeps_its_versions_and_a_dead_one_does_not(tmp_path: Path, postgres_url: str) -> None:
    ports = {name: free_port() for name in ("registry", "lifecycle")}
    peers = json.dumps({name: f"127.0.0.1:{port}" for name, port in ports.items()})

    def part(name: str, **settings: str) -> Up:
        common = {"DATABASE_URL": postgres_url, "PORT": str(ports[name]), "PEERS": peers}
        return Up(tmp_path / name, command=("-m", "modelmora_app", "serve", name), settings=common | settings)

    registry, lifecycle = part("registry"), part("lifecycle", LIFECYCLE_NODE="frozen")
    try:
        registry.start()
        lifecycle.start()
        version = registry.add_model("frozen/one", engine="echo", options={})
        lifecycle.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model=version, wait=True), timeout=60)
        lifecycle.signal(signal.SIGSTOP)
        thawed = threading.Event()
        threading.Timer(FROZEN_SECONDS, thawed.set).start()
        while not thawed.wait(0.5):
            assert deleted(registry, version) is grpc.StatusCode.FAILED_PRECONDITION
        lifecycle.signal(signal.SIGCONT)
        eventually(lambda: replica_of(lifecycle, version), 30, "it is still loaded")
        assert deleted(registry, version) is grpc.StatusCode.FAILED_PRECONDITION
        lifecycle.signal(signal.SIGKILL)
        lifecycle.wait(10)
        eventually(lambda: deleted(registry, version) is grpc.StatusCode.OK, 15, "what the dead held is let go")
    finally:
        lifecycle.stop()
        registry.stop()
    no_process_left(registry.data_dir)
    no_process_left(lifecycle.data_dir)
