"""The database away (stopped, killed): health says so, loaded models still answer, and all recovers by itself."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import grpc
import pytest
from e2e.conftest import StartUp
from e2e.rig import eventually, postgres_pids, send
from e2e.test_e2e_kill import told
from grpc_health.v1 import health_pb2, health_pb2_grpc
from modelmora.errors import DatabaseUnavailable
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.observability.v1 import observability_pb2
from modelmora.registry.v1 import registry_pb2
from modelmora.status import error_from_rpc

from bench.up import Up

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
REGISTRY = "modelmora.registry.v1.RegistryService"


class HealthWatch:
    """A grpc.health.v1 Watch of one service, with the moment of each word it said."""

    def __init__(self, up: Up, service: str) -> None:
        self.said: list[tuple[float, int]] = []
        self._news = threading.Condition()
        self._call = health_pb2_grpc.HealthStub(up.channel).Watch(health_pb2.HealthCheckRequest(service=service))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            for word in self._call:
                with self._news:
                    self.said.append((time.monotonic(), word.status))
                    self._news.notify_all()
        except grpc.RpcError:
            pass

    def wait_for(self, status: int, *, after: float, seconds: float) -> float:
        """Seconds from `after` until it says `status`. AssertionError when it does not within `seconds`."""

        def found() -> list[float]:
            return [moment for moment, word in self.said if word == status and moment >= after]

        with self._news:
            self._news.wait_for(found, timeout=max(0.0, after + seconds - time.monotonic()))
            assert found(), f"not said within {seconds} s: {status}; said: {self.said}"
            return found()[0] - after

    def close(self) -> None:
        self._call.cancel()
        self._thread.join(5)


def component(up: Up, name: str) -> tuple[int, str]:
    health = up.observability.GetHealth(observability_pb2.GetHealthRequest(), timeout=10).components[name]
    return health.state, health.reason


def _stop_all(up: Up) -> Callable[[], None]:
    stopped: set[int] = set()
    while begun := set(postgres_pids(up.data_dir)) - stopped:  # one may just be forking another
        send(begun, signal.SIGSTOP)
        stopped |= begun
    return lambda: send(stopped, signal.SIGCONT)


def _kill(up: Up) -> Callable[[], None]:
    send(postgres_pids(up.data_dir), signal.SIGKILL)
    return lambda: None


def _answered(up: Up, job: str) -> int:
    """Inputs of a job that are answered; -1 while nobody can say."""
    try:
        get = inference_pb2.GetInferenceJobRequest(name=job)
        return int(up.inference.GetInferenceJob(get, timeout=10).job.progress.succeeded)
    except grpc.RpcError:
        return -1


@pytest.mark.parametrize("away", [_stop_all, _kill], ids=["stopped", "killed"])
def test_a_database_away_is_told_and_survived(start_up: StartUp, away: Callable[[Up], Callable[[], None]]) -> None:
    up = start_up()
    up.add_model("drill/one", engine="echo")
    up.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model="drill/one", wait=True), timeout=30)
    embed = inference_pb2.EmbedRequest(model="drill/one", texts=["a b"])
    up.inference.Embed(embed, timeout=30)
    create = inference_pb2.CreateInferenceJobRequest(
        model="drill/one", embed=inference_pb2.EmbedTask(texts=["a"] * 500)
    )
    job = up.inference.CreateInferenceJob(create, timeout=10).job
    asked = time.monotonic()
    watch = HealthWatch(up, REGISTRY)
    watch.wait_for(SERVING, after=asked, seconds=60)
    eventually(lambda: component(up, "database")[0] == 1, 30, "database healthy")

    took: list[float] = []
    while True:
        blow = time.monotonic()
        come_back = away(up)
        took.append(watch.wait_for(NOT_SERVING, after=blow, seconds=60))
        if took[-1] < 5 or len(took) == 4:  # the machine may stand still again and again
            break
        come_back()
        watch.wait_for(SERVING, after=blow + took[-1], seconds=60)
    assert took[-1] < 5, took
    try:
        # Past the time for which inference may use what the registry said last.
        until = time.monotonic() + (8 if away is _stop_all else 1)
        answers = 0
        while time.monotonic() < until or answers <= 10:
            up.inference.Embed(embed, timeout=60)
            answers += 1
        if away is _stop_all:
            state, reason = component(up, "database")
            assert state == 3, (state, reason)
            assert reason
            with pytest.raises(grpc.RpcError) as caught:
                up.registry.GetModel(registry_pb2.GetModelRequest(name="drill/one"), timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.RpcError) as caught:
                up.inference.CreateInferenceJob(create, timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert isinstance(error_from_rpc(caught.value), DatabaseUnavailable)
    finally:
        back = time.monotonic()
        come_back()
    watch.wait_for(SERVING, after=back if away is _stop_all else blow, seconds=60)
    eventually(lambda: component(up, "database")[0] == 1, 30, "database healthy again")
    get = registry_pb2.GetModelRequest(name="drill/one")
    eventually(lambda: told(lambda: up.registry.GetModel(get, timeout=30)), 60, "the registry answers")
    up.inference.Embed(embed, timeout=60)
    eventually(lambda: _answered(up, job.name) == 500, 60, "the job's end")
    watch.close()
    assert up.stop() == 0
