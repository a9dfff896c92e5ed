"""The registry as a context: its settings and how its parts are put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

from modelmora.errors import DatabaseUnavailable, FailedPrecondition, ModelMoraError
from modelmora.registry.v1.registry_pb2_grpc import (
    add_RegistryHoldServiceServicer_to_server,
    add_RegistryServiceServicer_to_server,
)
from modelmora_runtime.db import Database
from modelmora_runtime.health import tell_if_broken
from modelmora_runtime.host import Mounted, Platform, Service
from modelmora_runtime.settings import AbsolutePath, Section
from prometheus_client import Gauge
from pydantic import Field

from modelmora_registry.artifacts import Artifacts
from modelmora_registry.holds import Holds
from modelmora_registry.hub import Hub
from modelmora_registry.imports import Imports
from modelmora_registry.service import ACCESS, HOLD_ACCESS, RegistryHoldServicer, RegistryServicer
from modelmora_registry.store import Store
from modelmora_registry.watching import Watching

NAME = "registry"
COUNT_SECONDS = 60.0
MIGRATE_RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)

VERSIONS = Gauge("modelmora_registry_model_versions", "Model versions by registration state", ["state"])
WATCHES = Gauge("modelmora_registry_watches", "Open WatchModelVersion streams of this process")


class Settings(Section):
    model_roots: tuple[AbsolutePath, ...] = ()
    """Folders below which local models may be imported from. None: no local imports."""
    hub_endpoint: str | None = None
    """Default: HF_ENDPOINT, else the Hugging Face Hub."""
    hub_token_file: AbsolutePath | None = None
    """File with a token for gated and private repositories."""
    offline: bool = False
    """Ask no Hub."""
    import_concurrency: Annotated[int, Field(ge=1, le=32)] = 2
    allow_pickle: bool = False
    """Take weights that can run code when they are read."""


@asynccontextmanager
async def open(settings: Settings, platform: Platform) -> AsyncIterator[Mounted]:
    """Serves at once; while the database is away RPCs answer DatabaseUnavailable and the context is unhealthy."""
    if platform.database_url is None:
        raise FailedPrecondition("the registry needs a database; set platform.database_url")
    database = Database(platform.database_url, NAME)
    artifacts = Artifacts(
        platform.settings.data_dir / "artifacts",
        model_roots=settings.model_roots,
        hub=Hub(endpoint=settings.hub_endpoint, token_file=settings.hub_token_file, offline=settings.offline),
        allow_pickle=settings.allow_pickle,
        concurrency=settings.import_concurrency,
    )
    store = Store(database, lambda uid: str(artifacts.snapshot_path(uid)))
    imports = Imports(store, artifacts, database, concurrency=settings.import_concurrency)
    holds, watching = Holds(store), Watching()
    WATCHES.set_function(lambda: watching.count)
    await _migrate(store, platform)
    tasks = [
        asyncio.create_task(work, name=f"registry {name}")
        for name, work in (
            ("migration", _migrate_and_count(store, platform)),
            ("imports", imports.run()),
            ("holds", holds.run()),
            ("changes", watching.run(store.changes())),
        )
    ]
    for task in tasks:
        tell_if_broken(task, partial(platform.health.set, NAME, "degraded"))
    try:
        yield Mounted(
            [
                Service(
                    "modelmora.registry.v1.RegistryService",
                    add_RegistryServiceServicer_to_server,
                    RegistryServicer(store, artifacts, imports, holds, watching, platform.engines, platform.stopping),
                    ACCESS,
                ),
                Service(
                    "modelmora.registry.v1.RegistryHoldService",
                    add_RegistryHoldServiceServicer_to_server,
                    RegistryHoldServicer(holds),
                    HOLD_ACCESS,
                ),
            ]
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await imports.close()
        await holds.close()
        artifacts.close()
        await database.close()


async def _migrate(store: Store, platform: Platform) -> bool:
    try:
        await store.migrate()
    except DatabaseUnavailable as error:
        platform.health.set(NAME, "unhealthy", f"database: {error.message}")
        return False
    platform.health.set(NAME, "healthy")
    return True


async def _migrate_and_count(store: Store, platform: Platform) -> None:
    while True:
        if not store.migrated and not await _migrate(store, platform):
            await asyncio.sleep(MIGRATE_RETRY_SECONDS)
            continue
        try:
            for state, count in (await store.count_by_state()).items():
                VERSIONS.labels(state).set(count)
        except ModelMoraError:
            pass  # counted again in a minute
        await asyncio.sleep(COUNT_SECONDS)
