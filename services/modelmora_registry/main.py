"""The registry as a context: its settings and how its parts are put together."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Annotated

from modelmora.errors import DatabaseUnavailable, FailedPrecondition, ModelMoraError
from modelmora.registry.v1.registry_pb2_grpc import (
    add_RegistryHoldServiceServicer_to_server,
    add_RegistryServiceServicer_to_server,
)
from modelmora_runtime.audit import Audit
from modelmora_runtime.db import Database
from modelmora_runtime.health import tell_if_broken
from modelmora_runtime.host import Mounted, Platform, Service
from modelmora_runtime.settings import AbsolutePath, Section
from prometheus_client import Gauge
from pydantic import ByteSize, Field, SecretStr

from modelmora_registry.artifacts import Artifacts
from modelmora_registry.audit_store import DELETED_AT_ONCE, AuditStore
from modelmora_registry.exports import Exports
from modelmora_registry.holds import Holds
from modelmora_registry.hosts import EVERY, Hosts, entry_of
from modelmora_registry.hub import Hub
from modelmora_registry.imports import Imports
from modelmora_registry.link_store import LinkStore
from modelmora_registry.lock_store import LockStore
from modelmora_registry.s3 import S3
from modelmora_registry.service import ACCESS, HOLD_ACCESS, RegistryHoldServicer, RegistryServicer
from modelmora_registry.sources import Sources
from modelmora_registry.store import Store
from modelmora_registry.verify import ScrubRules, Verifier
from modelmora_registry.watching import Watching
from modelmora_registry.web import Web

NAME = "registry"
COUNT_SECONDS = 60.0
FORGET_SECONDS = 3600.0
MIGRATE_RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)

VERSIONS = Gauge("modelmora_registry_model_versions", "Model versions by registration state", ["state"])
WATCHES = Gauge("modelmora_registry_watches", "Open WatchModelVersion streams of this process")


_TALKATIVE = ("httpx2", "httpcore2", "huggingface_hub", "botocore", "urllib3")
"""Libraries whose logs below WARNING hold URLs with signatures and headers with tokens."""


class Settings(Section):
    model_roots: tuple[AbsolutePath, ...] = ()
    """Folders below which local models may be imported from. None: no local imports."""
    hub_endpoint: str | None = None
    """Default: HF_ENDPOINT, else the Hugging Face Hub."""
    hub_token_file: AbsolutePath | None = None
    """File with a token for gated and private repositories."""
    s3_endpoint: str | None = None
    """URL of an S3-compatible store. Default: Amazon's."""
    s3_region: str | None = None
    s3_credentials_file: AbsolutePath | None = None
    """Keys for S3 in the shape of ~/.aws/credentials. None: requests are not signed."""
    s3_profile: str = "default"
    """Which section of that file."""
    s3_ambient_credentials: bool = False
    """Look for keys where Amazon's tools look: environment, home, role of the machine."""
    http_token_files: Mapping[str, AbsolutePath] = Field(default_factory=dict)
    """Files with bearer tokens for HTTP(S) sources: {files.example.org: /run/secrets/files}. Sent over https only."""
    proxy: SecretStr | None = None
    """URL of a proxy for all sources. Default: HTTPS_PROXY, HTTP_PROXY and NO_PROXY of the environment."""
    ca_file: AbsolutePath | None = None
    """Bundle of certificate authorities to trust in place of the system's."""
    source_hosts: tuple[str, ...] = (EVERY,)
    """Hosts that imports may ask: names, `*.example.org`, addresses, each on every port or with `:port`; `*`: all with
    public addresses. Only what is named may be inside (loopback, private, link-local); hub_endpoint and s3_endpoint
    are, with their ports. Holds for redirects too."""
    offline: bool = False
    """Ask no source beyond this machine."""
    export_roots: tuple[AbsolutePath, ...] = ()
    """Folders below which versions may be exported. None: no exports to folders."""
    storage_quota_bytes: ByteSize = Field(ByteSize(0), ge=0)
    """Most that the files of all versions may take on disk; 0: as much as there is."""
    audit_retention_days: Annotated[int, Field(ge=1, le=36500)] = 400
    """So long are entries of the audit record kept."""
    import_concurrency: Annotated[int, Field(ge=1, le=32)] = 2
    scrub_interval_seconds: Annotated[float, Field(ge=0, le=10 * 365 * 86400)] = 7 * 86400
    """Every file is hashed once in so long, to find disks that forget; 0: never."""
    scrub_bytes_per_second: ByteSize = Field(ByteSize(20_000_000), ge=1)
    """How fast that is done at most."""
    allow_pickle: bool = False
    """Take weights that can run code when they are read."""


@asynccontextmanager
async def open(settings: Settings, platform: Platform) -> AsyncIterator[Mounted]:
    """Serves at once; while the database is away RPCs answer DatabaseUnavailable and the context is unhealthy."""
    if platform.database_url is None:
        raise FailedPrecondition("the registry needs a database; set platform.database_url")
    database = Database(platform.database_url, NAME)
    sources = sources_of(settings)
    artifacts = Artifacts(
        platform.settings.data_dir / "artifacts",
        sources,
        quota_bytes=settings.storage_quota_bytes,
        concurrency=settings.import_concurrency,
    )
    store = Store(database, lambda uid: str(artifacts.snapshot_path(uid)))
    links, exports = LinkStore(database, lambda: store.migrated), Exports(sources, settings.export_roots)
    locks = LockStore(database, lambda: store.migrated)
    entries = AuditStore(database, lambda: store.migrated)
    audit = Audit(entries.write)
    scrub = ScrubRules(timedelta(seconds=settings.scrub_interval_seconds), int(settings.scrub_bytes_per_second))
    verifier = Verifier(locks, database, artifacts.snapshot_path, _Drifted(platform).say, scrub)
    imports = Imports(
        store,
        artifacts,
        database,
        concurrency=settings.import_concurrency,
        on_fetched=verifier.taken,
    )
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
            ("scrub", verifier.run()),
            ("audit", audit.run()),
            ("audit retention", _forget(entries, timedelta(days=settings.audit_retention_days))),
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
                    RegistryServicer(
                        store,
                        artifacts,
                        imports,
                        holds,
                        watching,
                        platform.engines,
                        platform.stopping,
                        links,
                        exports,
                        locks,
                        verifier,
                        entries,
                    ),
                    ACCESS,
                    audit,
                ),
                Service(
                    "modelmora.registry.v1.RegistryHoldService",
                    add_RegistryHoldServiceServicer_to_server,
                    RegistryHoldServicer(holds, store, locks, verifier, watching, entries),
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
        await audit.close()
        exports.close()
        verifier.close()
        artifacts.close()
        await database.close()


class _Drifted:
    """Puts what is drifted into the registry's health, and takes back only what it has put there."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._told = False

    def say(self, words: Sequence[str], count: int) -> None:
        if count:
            more = f"; {count} versions in all" if count > 1 else ""
            reason = f"drifted: {'; '.join(words)}{more}"
            self._platform.health.set(NAME, "degraded", reason)
        elif self._told:
            self._platform.health.set(NAME, "healthy")
        self._told = count > 0


async def _forget(entries: AuditStore, than: timedelta) -> None:
    """Lets go of audit entries that have been kept long enough, without end."""
    while True:
        try:
            while await entries.drop_older(than) == DELETED_AT_ONCE:
                pass
        except ModelMoraError as error:
            log.info("audit entries could not be looked through: %s", error.message)
        await asyncio.sleep(FORGET_SECONDS)


def sources_of(settings: Settings) -> Sources:
    """The sources that the settings open."""
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.WARNING)
    endpoints = (settings.hub_endpoint or os.environ.get("HF_ENDPOINT"), settings.s3_endpoint)
    web = Web(
        proxy=settings.proxy.get_secret_value() if settings.proxy else None,
        ca_file=settings.ca_file,
        offline=settings.offline,
        token_files=settings.http_token_files,
        hosts=Hosts([*settings.source_hosts, *(entry_of(endpoint) for endpoint in endpoints if endpoint)]),
    )
    return Sources(
        model_roots=settings.model_roots,
        hub=Hub(web, endpoint=settings.hub_endpoint, token_file=settings.hub_token_file),
        web=web,
        s3=S3(
            web,
            endpoint=settings.s3_endpoint,
            region=settings.s3_region,
            credentials_file=settings.s3_credentials_file,
            profile=settings.s3_profile,
            ambient=settings.s3_ambient_credentials,
        ),
        allow_pickle=settings.allow_pickle,
    )


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
