"""The whole platform in a container's memory: the cgroup's limit is what exists, and a model that takes more than is
left is stopped before the kernel has to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from e2e.conftest import StartUp
from modelmora.client import error_from_rpc
from modelmora.errors import OutOfMemory
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2

MIB = 1024 * 1024
LIMIT_BYTES = 700 * MIB
JOIN = """
import os, sys
with open(sys.argv[1], "w") as group:
    group.write(str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-P", "-m", "modelmora_app", *sys.argv[2:]])
"""
"""It is in the group before it is what it is: all its children are born there."""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup with a memory limit below our own, for a child of ours. Skipped where we may not make one."""
    folder = None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            folder, name = Path("/sys/fs/cgroup" + path), "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = Path("/sys/fs/cgroup/memory" + path), "memory.limit_in_bytes"
    try:
        assert folder is not None
        group = folder / f"modelmora-test-{os.getpid()}"
        group.mkdir()
    except (AssertionError, OSError) as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        try:
            (group / name).write_text(str(LIMIT_BYTES))
        except OSError as error:
            pytest.skip(f"memory cannot be limited here: {error}")
        yield group
    finally:
        with suppress(OSError):
            group.rmdir()


def kernel_kills(group: Path) -> int:
    for name in ("memory.events", "memory.oom_control"):
        with suppress(OSError):
            figures = dict(line.split() for line in (group / name).read_text().splitlines())
            return int(figures["oom_kill"])
    raise AssertionError("the cgroup does not count")


def test_a_model_that_takes_more_than_the_container_has_is_stopped_before_the_kernel_does(
    cgroup: Path, start_up: StartUp
) -> None:
    up = start_up(command=("-c", JOIN, str(cgroup / "cgroup.procs"), "up"))
    up.add_model("acme/neighbour", engine="echo")
    question = inference_pb2.EmbedRequest(model="acme/neighbour", texts=["still there?"])
    assert up.inference.Embed(question, timeout=30).vectors
    (host,) = up.lifecycle.GetMemory(lifecycle_pb2.GetMemoryRequest(), timeout=10).devices
    assert host.total_bytes == LIMIT_BYTES
    assert host.limited_by == "cgroup"
    for name, options in {"slow": {"memory_step_seconds": 0.02}, "fast": {}}.items():
        options |= {"memory_bytes": 2048 * MIB, "memory_step_bytes": 8 * MIB}
        version = up.add_model(f"acme/{name}", engine="echo", options=options)
        load = lifecycle_pb2.LoadModelRequest(model=version, wait=True)
        with pytest.raises(grpc.RpcError) as caught:
            up.lifecycle.LoadModel(load, timeout=60)
        error = error_from_rpc(caught.value)
        assert isinstance(error, OutOfMemory), error
        assert "declared nothing" in error.message
        assert up.inference.Embed(question, timeout=30).vectors
    assert kernel_kills(cgroup) == 0
    assert up.stop() == 0
