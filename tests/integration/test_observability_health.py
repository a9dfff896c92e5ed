"""Health over the wire, with a real database that is stopped, killed and back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from integration.tiny_platform import INFERENCE, LIFECYCLE, Front, Settings, Tiny, platform_settings
from modelmora.common.v1 import common_pb2
from modelmora.observability.v1 import observability_pb2 as pb
from modelmora.observability.v1 import observability_pb2_grpc
from modelmora_observability import main as observability
from modelmora_observability.domain import Health, State
from modelmora_observability.health import HealthCheck
from modelmora_runtime import auth
from modelmora_runtime.health import HEALTH_KEY
from modelmora_runtime.host import Context, Host
from modelmora_runtime.postgres import EmbeddedPostgres

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
HEALTHY, UNHEALTHY = common_pb2.HEALTH_STATE_HEALTHY, common_pb2.HEALTH_STATE_UNHEALTHY


@asynccontextmanager
async def platform(data_dir: Path, database: Any = "unused", **given: Any) -> AsyncIterator[tuple[Host, Any, Any]]:
    """Tiny contexts under the real names, with the real observability beside them."""
    tiny = Tiny()
    contexts = [
        Context("tiny", Settings(), tiny.open, database),
        Context("inference", Settings(), Front(tiny).open),
        Context("observability", observability.Settings(), observability.open),
    ]
    host = Host(platform_settings(data_dir, **given), contexts, announce=lambda line: None)
    async with host, grpc.aio.insecure_channel(host.target) as channel:
        yield (
            host,
            health_pb2_grpc.HealthStub(channel),
            observability_pb2_grpc.ObservabilityServiceStub(channel),
        )


async def test_check_watch_and_list_answer_without_a_token_but_tell_no_reason(data_dir: Path) -> None:
    token = auth.create_token(data_dir / "tokens.json", role="client")
    async with platform(data_dir) as (host, health, _):
        for name in ("", "tiny", LIFECYCLE, INFERENCE, "observability"):
            call = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert (await call).status == SERVING
            assert HEALTH_KEY not in dict(await call.trailing_metadata() or ())
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await health.Check(health_pb2.HealthCheckRequest(service="nothing"))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        listed = await health.List(health_pb2.HealthListRequest())
        assert listed.statuses[LIFECYCLE].status == SERVING
        host.board.set("tiny", "unhealthy", "secret reason")
        call = health.Check(
            health_pb2.HealthCheckRequest(service="tiny"), metadata=(("authorization", f"Bearer {token}"),)
        )
        assert (await call).status == NOT_SERVING
        detail = common_pb2.Health.FromString(dict(await call.trailing_metadata())[HEALTH_KEY])
        assert (detail.state, detail.reason) == (UNHEALTHY, "secret reason")


async def test_watch_follows_every_change_and_an_unknown_name_may_come_later(data_dir: Path) -> None:
    async with platform(data_dir) as (host, health, _):
        watch = health.Watch(health_pb2.HealthCheckRequest(service="later"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        for state, status in (("healthy", SERVING), ("unhealthy", NOT_SERVING), ("degraded", SERVING)):
            host.board.set("later", state)  # type: ignore[arg-type]
            assert (await asyncio.wait_for(watch.read(), 30)).status == status
        watch.cancel()


async def test_get_health_says_what_each_component_says_and_why(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HealthCheck.__init__.__kwdefaults__, "ask_seconds", 30.0)  # who stands still is not silent
    async with platform(data_dir) as (host, _, stub):
        host.board.set("inference", "degraded", "one worker is slow")
        before = int(time.time())
        answer = await stub.GetHealth(pb.GetHealthRequest(), timeout=20)
        assert set(answer.components) == {
            "registry",
            "lifecycle",
            "inference",
            "observability",
            "database",
            "devices",
            "models",
            "storage",
        }
        inference = answer.components["inference"]
        assert (inference.state, inference.reason) == (common_pb2.HEALTH_STATE_DEGRADED, "one worker is slow")
        assert before <= inference.last_check_time.ToSeconds() <= time.time()
        assert answer.components["observability"].state == HEALTHY
        assert answer.components["storage"].state in (HEALTHY, common_pb2.HEALTH_STATE_DEGRADED)
        assert answer.components["registry"].state == common_pb2.HEALTH_STATE_UNKNOWN
        assert "platform.peers" in answer.components["registry"].reason
        assert answer.overall.state == common_pb2.HEALTH_STATE_UNKNOWN, "there is no lifecycle here"
        assert answer.version


async def test_a_silent_peer_is_unknown_and_nobody_waits_longer(data_dir: Path) -> None:
    async def hear_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    silent = await asyncio.start_server(hear_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with platform(data_dir, peers={"lifecycle": f"127.0.0.1:{port}"}) as (_, __, stub):
        took: list[float] = []
        while not took or (took[-1] >= 2 and len(took) < 5):  # the machine may stand still for a part of a second
            began = time.monotonic()
            answer = await stub.GetHealth(pb.GetHealthRequest(), timeout=20)
            took.append(time.monotonic() - began)
            assert answer.components["lifecycle"].state == common_pb2.HEALTH_STATE_UNKNOWN
            assert answer.components["lifecycle"].reason
        assert min(took) < 2
        assert answer.components["inference"].state == HEALTHY
    silent.close()


async def test_a_silent_component_is_unknown_with_what_it_said_last() -> None:
    answers: list[Health] = [Health(State.DEGRADED, "tired", next_moment())]

    async def ask() -> Health:
        return answers.pop() if answers else await asyncio.Event().wait()  # type: ignore[return-value]

    async def fail() -> Health:
        raise OSError("no such disk")

    check = HealthCheck({"it": ask, "disk": fail}, ask_seconds=0.1)
    assert (await check.look())["it"].state is State.DEGRADED
    first, second = await asyncio.gather(check.look(), check.look())
    assert first is second, "callers share a look that is on its way"
    assert first["it"].state is State.UNKNOWN
    assert "before that degraded" in first["it"].reason
    assert (first["disk"].state, "no such disk" in first["disk"].reason) == (State.UNKNOWN, True)
    await check.close()


def next_moment() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_database_that_goes_away_shows_within_five_seconds_and_comes_back_by_itself(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    states: list[EmbeddedPostgres] = []
    entered = EmbeddedPostgres.__aenter__

    async def remember(self: EmbeddedPostgres) -> EmbeddedPostgres:
        states.append(self)
        return await entered(self)

    monkeypatch.setattr(EmbeddedPostgres, "__aenter__", remember)  # only to learn its pid
    async with platform(data_dir, database="required") as (_, health, stub):
        watches = {name: health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in (LIFECYCLE, "database")}
        other = health.Watch(health_pb2.HealthCheckRequest(service=INFERENCE))
        for watch in (*watches.values(), other):
            assert (await asyncio.wait_for(watch.read(), 30)).status == SERVING
        took: list[float] = []
        while not took or (took[-1] >= 5 and len(took) < 4):  # the machine may stand still again and again
            pid = states[0].state.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
            began = time.monotonic()
            for watch in watches.values():
                assert (await asyncio.wait_for(watch.read(), 30)).status == NOT_SERVING
            took.append(time.monotonic() - began)
            if how == "stopped":
                answer = await stub.GetHealth(pb.GetHealthRequest(), timeout=20)
                assert answer.components["database"].state == UNHEALTHY
                assert answer.components["inference"].state == HEALTHY
                os.kill(pid, signal.SIGCONT)
            for watch in watches.values():
                assert (await asyncio.wait_for(watch.read(), 30)).status == SERVING
        assert min(took) < 5
        assert (await health.Check(health_pb2.HealthCheckRequest(service=INFERENCE))).status == SERVING
        other.cancel()
        for watch in watches.values():
            watch.cancel()


async def test_devices_storage_and_system_are_those_of_this_machine(data_dir: Path) -> None:
    async with platform(data_dir) as (_, __, stub):
        devices = (await stub.ListDevices(pb.ListDevicesRequest())).devices
        host = devices[0]
        assert (host.id, host.kind) == ("host", pb.DEVICE_KIND_HOST)
        assert 0 < host.free_bytes < host.total_bytes
        assert host.used_bytes == host.total_bytes - host.free_bytes
        storage = (await stub.GetStorageInfo(pb.GetStorageInfoRequest())).storage
        assert storage.path == str(data_dir)
        assert 0 < storage.free_bytes <= storage.total_bytes
        assert not storage.HasField("model_count"), "there is no registry here"
        system = await stub.GetSystemInfo(pb.GetSystemInfoRequest())
        assert system.cpu_count == len(os.sched_getaffinity(0))
        assert system.memory_bytes == host.total_bytes
        assert system.dependencies["grpcio"] == grpc.__version__
        assert 0 <= system.uptime.ToSeconds() < 60
        assert [device.id for device in system.devices] == [device.id for device in devices]
