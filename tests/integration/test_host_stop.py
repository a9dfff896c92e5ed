"""The stop: its order in one process, its time and its signals in a real one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from integration.tiny_platform import LIFECYCLE, Tiny, tiny_host
from leftovers import wait_for_none
from modelmora import errors
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora.lifecycle.v1 import lifecycle_pb2_grpc
from modelmora.status import error_from_rpc
from modelmora_runtime.host import Host

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def running(data_dir: Path, tiny: Tiny, **given: Any) -> AsyncIterator[tuple[Host, Any, grpc.aio.Channel]]:
    host = tiny_host(data_dir, tiny, **given)
    await host.__aenter__()
    async with grpc.aio.insecure_channel(host.target) as channel:
        yield host, lifecycle_pb2_grpc.LifecycleServiceStub(channel), channel


async def error_of(call: Any) -> errors.ModelMoraError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return error_from_rpc(raised.value)


async def test_the_stop_goes_in_its_order(data_dir: Path) -> None:
    tiny = Tiny()
    async with running(data_dir, tiny, grace_seconds=60) as (host, lifecycle, channel):
        endpoint = data_dir / "run" / "endpoint.json"
        assert json.loads(endpoint.read_text()) == {
            "target": host.target,
            "metrics": f"http://127.0.0.1:{host.metrics_port}/metrics",
            "pid": os.getpid(),
            "contexts": ["tiny", "front"],
        }
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=LIFECYCLE))
        assert (await watched.read()).status == SERVING
        stream = lifecycle.WatchReplicas(pb.WatchReplicasRequest())
        await stream.read()
        running_call = lifecycle.GetReplica(pb.GetReplicaRequest(name="wait"))
        await asyncio.wait_for(tiny.entered.wait(), 30)

        stopping = asyncio.ensure_future(host.__aexit__(None, None, None))
        # Health says so first, and its stream ends.
        assert (await asyncio.wait_for(watched.read(), 30)).status == NOT_SERVING
        assert await watched.read() == grpc.aio.EOF
        assert not endpoint.exists()
        # The long stream is ended by its owner, with its cursor.
        error = await error_of(stream.read())
        assert (type(error), error.metadata) == (errors.ShuttingDown, {"cursor": "7"})
        # New calls are refused while one is still in flight, and that one is answered.
        refused = await error_of(lifecycle.GetReplica(pb.GetReplicaRequest(name="caller")))
        assert type(refused) is errors.ShuttingDown
        assert refused.retry_after_seconds
        assert not stopping.done()
        tiny.go_on.set()
        await running_call
        await asyncio.wait_for(stopping, 30)
    assert tiny.story == [
        "tiny opened",
        "front opened",
        "watch told",
        "call answered",
        "front left, still peer default service True",
        "tiny left",
    ]


async def test_a_call_that_outlasts_the_grace_is_cut_with_a_named_error(data_dir: Path) -> None:
    tiny = Tiny()
    async with running(data_dir, tiny, grace_seconds=0.3) as (host, lifecycle, _):
        call = lifecycle.GetReplica(pb.GetReplicaRequest(name="wait"))
        await asyncio.wait_for(tiny.entered.wait(), 30)
        began = time.monotonic()
        await asyncio.wait_for(host.__aexit__(None, None, None), 30)
        assert time.monotonic() - began > 0.25
        assert type(await error_of(call)) is errors.ShuttingDown


async def test_a_watch_that_does_not_listen_is_cut_without_waiting_for_the_grace(data_dir: Path) -> None:
    async with running(data_dir, Tiny(), grace_seconds=600) as (host, lifecycle, _):
        stream = lifecycle.WatchReplicas(pb.WatchReplicasRequest(cursor="deaf"))
        await stream.read()
        await asyncio.wait_for(host.__aexit__(None, None, None), 30)
        assert type(await error_of(stream.read())) is errors.ShuttingDown


async def test_a_caller_that_goes_away_frees_its_call(data_dir: Path) -> None:
    tiny = Tiny()
    async with running(data_dir, tiny, grace_seconds=600) as (host, lifecycle, _):
        call = lifecycle.GetReplica(pb.GetReplicaRequest(name="wait"))
        await asyncio.wait_for(tiny.entered.wait(), 30)
        call.cancel()
        await asyncio.wait_for(host.__aexit__(None, None, None), 30)  # nobody waits for the grace


# In a process of its own.


class Process:
    """A tiny platform of its own, and what it said."""

    def __init__(self, data_dir: Path, port: int = 0, *more: str) -> None:
        script = Path(__file__).with_name("tiny_platform.py")
        environment = {**os.environ, "PYTHONPATH": os.fspath(script.parents[1])}
        self._began = time.monotonic()
        self.start_seconds = 0.0
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(data_dir), str(port), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def target(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ModelMora serves"):
                self.start_seconds = time.monotonic() - self._began
                return line.split(" on ")[1].split()[0]
        raise AssertionError(f"it did not start: {self.process.communicate()}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Seconds until it was gone after the signal."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(30)
        return time.monotonic() - began


@contextmanager
def started(data_dir: Path) -> Iterator[Process]:
    made = Process(data_dir)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.process.communicate()


@pytest.fixture
def process(data_dir: Path) -> Iterator[Process]:
    with started(data_dir) as made:
        yield made


def one_is_as_quick(data_dir: Path, stop: Callable[[Process], float], promised: Callable[[float], float]) -> None:
    """Asserts that a platform can be stopped in the time that is promised, given how long it took to start: who is too
    slow is so each time, and a machine that stands still for a part of a second is not."""
    took: list[tuple[float, float]] = []
    while not took or (took[-1][0] >= took[-1][1] and len(took) < 4):
        with started(data_dir) as process:
            seconds = stop(process)
            took.append((seconds, promised(process.start_seconds)))
    assert any(seconds < most for seconds, most in took), took


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_idle_platform_with_watchers_and_leases_stops_in_two_seconds(data_dir: Path, number: signal.Signals) -> None:
    def stop(process: Process) -> float:
        with grpc.insecure_channel(process.target()) as channel:
            lifecycle: Any = lifecycle_pb2_grpc.LifecycleServiceStub(channel)
            leases: Any = lifecycle_pb2_grpc.LifecycleLeaseServiceStub(channel)
            watches = [lifecycle.WatchReplicas(pb.WatchReplicasRequest()) for _ in range(5)]
            forever = iter(lambda: pb.AcquireRequest(), None)
            held = [leases.Acquire(_first(forever)) for _ in range(3)]
            for stream in (*watches, *held):
                next(stream)
            seconds = process.stop(number)
            for stream in watches:
                with pytest.raises(grpc.RpcError) as raised:
                    next(stream)
                assert isinstance(error_from_rpc(raised.value), errors.ShuttingDown)
        assert process.process.returncode == 0
        assert list((data_dir / "run").iterdir()) == []
        return seconds

    # It has far more to do when it starts, on a machine of any speed.
    one_is_as_quick(data_dir, stop, lambda start_seconds: max(2, 2 * start_seconds))


def _first(endless: Iterator[pb.AcquireRequest]) -> Iterator[pb.AcquireRequest]:
    """One request, then silence until the call ends."""
    yield next(endless)
    threading.Event().wait(60)


def test_a_call_in_flight_is_answered_before_the_platform_stops(data_dir: Path) -> None:
    def stop(process: Process) -> float:
        with grpc.insecure_channel(process.target()) as channel:
            lifecycle: Any = lifecycle_pb2_grpc.LifecycleServiceStub(channel)
            call = lifecycle.GetReplica.future(pb.GetReplicaRequest(name="work:1.5"))
            lifecycle.GetReplica(pb.GetReplicaRequest(name="entered"))
            seconds = process.stop()
            assert call.result(timeout=20).replica.name == "work:1.5"
        assert process.process.returncode == 0
        return seconds

    one_is_as_quick(data_dir, stop, lambda start_seconds: 1.5 + max(2, 2 * start_seconds))


def test_a_second_signal_ends_it_at_once(data_dir: Path) -> None:
    def stop(process: Process) -> float:
        with grpc.insecure_channel(process.target()) as channel:
            lifecycle: Any = lifecycle_pb2_grpc.LifecycleServiceStub(channel)
            call = lifecycle.GetReplica.future(pb.GetReplicaRequest(name="work:25"))
            lifecycle.GetReplica(pb.GetReplicaRequest(name="entered"))
            process.process.send_signal(signal.SIGINT)
            assert process.process.stdout is not None
            assert "SIGINT" in process.process.stdout.readline()
            seconds = process.stop(signal.SIGINT)
            assert process.process.returncode == 1
            assert call.exception(timeout=20) is not None
            return seconds

    one_is_as_quick(data_dir, stop, lambda start_seconds: max(1, start_seconds))


def test_a_port_in_use_ends_the_start_with_one_line_that_names_the_holder(process: Process, data_dir: Path) -> None:
    port = process.target().rpartition(":")[2]
    second = Process(data_dir.with_name("second"), int(port))
    out, wrong = second.process.communicate(timeout=100)
    assert second.process.returncode == 1
    assert f"(pid {process.process.pid})" in wrong
    assert "tiny_platform.py" in wrong
    assert wrong.count("\n") == 1, wrong
    assert "serves" not in out


def test_a_signal_while_starting_ends_the_start_in_order(data_dir: Path) -> None:
    process = Process(data_dir, 0, "used")  # the first start makes a database, which takes a while
    try:
        assert process.process.stdout is not None
        assert "no tokens" in process.process.stdout.readline()
        assert process.stop() < 25
        assert process.process.returncode == 0
    finally:
        process.process.kill()
        process.process.communicate()
    wait_for_none(data_dir)
