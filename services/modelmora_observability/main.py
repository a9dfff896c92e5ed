"""Observability as the host opens it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modelmora.observability.v1 import observability_pb2_grpc
from modelmora_runtime.auth import OPERATORS, READERS
from modelmora_runtime.host import Mounted, Platform, Service
from modelmora_runtime.settings import Section

from modelmora_observability.service import ObservabilityService

NAME = "observability"

ACCESS = {
    "GetHealth": READERS,
    "ListDevices": READERS,
    "GetSystemInfo": OPERATORS,
    "GetStorageInfo": OPERATORS,
}


class Settings(Section):
    """Observability has no settings of its own yet."""


@asynccontextmanager
async def open(settings: Settings, platform: Platform) -> AsyncIterator[Mounted]:
    service = ObservabilityService(platform.peers, platform.health, platform.settings.data_dir)
    try:
        yield Mounted(
            [
                Service(
                    "modelmora.observability.v1.ObservabilityService",
                    observability_pb2_grpc.add_ObservabilityServiceServicer_to_server,
                    service,
                    ACCESS,
                )
            ]
        )
    finally:
        await service.close()
