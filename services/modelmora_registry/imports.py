"""Imports at work. An import is a durable resource, a version in CREATING: whoever finds one without a worker does it.

1. A slot: so many at a time in this process.
2. The advisory lock of this version: so that of several registries one does it. It goes with its connection, so an
   import whose process was killed is free at once.
3. Plan, fetch, verify; progress is recorded while it goes on. A source that is away is asked again a few times.
4. READY with everything, or FAILED with a reason and nothing left on disk. While the database is away neither can be
   written down, so the import stays in CREATING and is found again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from modelmora.errors import (
    Conflict,
    DatabaseUnavailable,
    IllegalTransition,
    InvalidArgument,
    ModelMoraError,
    SourceUnavailable,
    StorageFull,
    VersionNotFound,
)
from modelmora_runtime import ids
from modelmora_runtime.db import Database
from prometheus_client import Counter, Histogram

from modelmora_registry.artifacts import Artifacts, Fetched, Progress
from modelmora_registry.domain import Artifact, Failure, ImportProgress, ModelVersion
from modelmora_registry.sources import Plan
from modelmora_registry.store import Store

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5
RATE_SECONDS = 5.0
"""The rate of an import is that of its last seconds."""
SEARCH_SECONDS = 5.0
RETRY_DELAYS_SECONDS = (1.0, 4.0, 15.0, 60.0)
LONGEST_RETRY_SECONDS = 300.0
GAIN_BYTES = 2**20
"""A source that gave as much before it broke off is at work: the count of its failures begins anew."""

IMPORTS = Counter("modelmora_registry_imports_total", "Imports that ended, by outcome", ["outcome"])
IMPORT_BYTES = Counter("modelmora_registry_import_bytes_total", "Bytes of artifacts that became READY")
IMPORT_SECONDS = Histogram(
    "modelmora_registry_import_seconds",
    "Time from the first byte to READY",
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200),
)


class Imports:
    """Does imports in the background of one registry process."""

    def __init__(
        self,
        store: Store,
        artifacts: Artifacts,
        database: Database,
        *,
        concurrency: int,
        on_fetched: Callable[[Artifact], Awaitable[None]] | None = None,
        retry_delays_seconds: Sequence[float] = RETRY_DELAYS_SECONDS,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._database = database
        self._on_fetched = on_fetched
        self._retry_delays_seconds = retry_delays_seconds
        self._slots = asyncio.Semaphore(concurrency)
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Sweeps what a crash left, then looks for imports that nobody works on, without end."""
        swept = False
        while True:
            try:
                if not swept:
                    await self._sweep()
                    swept = True
                for uid in await self._store.creating():
                    self.start(uid)
            except DatabaseUnavailable:
                pass
            except ModelMoraError as error:  # the database's disk is full, say: imports go on when there is room
                log.warning("imports could not be looked for: %s", error.message)
            await asyncio.sleep(SEARCH_SECONDS)

    def start(self, uid: str, plan: Plan | None = None) -> None:
        """Begins or continues an import; nothing happens when it is at work here already."""
        if uid not in self._running:
            task = asyncio.create_task(self._attend(uid, plan), name=f"import {uid}")
            self._running[uid] = task
            task.add_done_callback(lambda _: self._running.pop(uid, None))

    async def cancel(self, uid: str) -> None:
        """Ends the work of this process on a version and waits until it has let go of the files."""
        if (task := self._running.get(uid)) is not None:
            task.cancel()
            await asyncio.wait([task])
            IMPORTS.labels("cancelled").inc()

    async def close(self) -> None:
        """Lets go of everything; the versions stay in CREATING for the next start."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def _sweep(self) -> None:
        """Removes files whose versions are not there: deleted or failed by a process that died before it cleaned up."""
        present = await self._artifacts.present()  # First, so that what comes later is not taken for a leftover.
        known = await self._store.existing([uid for uid in present if _is_uid(uid)])
        for uid in present - known:
            log.info("removing the files of %s, which no version needs", uid)
            await self._artifacts.discard(uid, ())
        await self._artifacts.drop_unused_blobs()

    async def _attend(self, uid: str, plan: Plan | None) -> None:
        """Sees an import through to its end, whatever it is."""
        async with self._slots:
            try:
                lock = await self._database.try_lock(f"import {uid}")
                if lock is not None:
                    async with lock:
                        await self._attend_locked(uid, plan, lock.lost)
            except ModelMoraError as error:  # it could not be written down; the version is found again in CREATING
                log.warning("import %s waits for the database: %s", uid, error.message)

    async def _attend_locked(self, uid: str, plan: Plan | None, lock_lost: asyncio.Event) -> None:
        work = asyncio.create_task(self._work(uid, plan))
        lost = asyncio.create_task(lock_lost.wait())
        try:
            await asyncio.wait((work, lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait([work])
        if not work.cancelled() and (error := work.exception()) is not None:
            await self._end(uid, error)

    async def _work(self, uid: str, plan: Plan | None) -> None:
        version = await self._store.get_version_by_uid(uid)
        if version is None or version.is_final:
            return
        started = time.monotonic()
        checksums = await self._store.expected_checksums(uid)
        fetched = await self._fetch_patiently(version, plan, checksums)
        if self._on_fetched is not None:
            await self._on_fetched(fetched.artifact)
        ready = await self._store.record_ready(uid, fetched.artifact, fetched.facts)
        IMPORTS.labels("ready").inc()
        IMPORT_BYTES.inc(fetched.artifact.size_bytes)
        IMPORT_SECONDS.observe(time.monotonic() - started)
        log.info("%s is READY: %d bytes, %s", ready.name, fetched.artifact.size_bytes, fetched.artifact.digest)

    async def _fetch_patiently(self, version: ModelVersion, plan: Plan | None, checksums: Mapping[str, str]) -> Fetched:
        failures = 0
        while True:
            progress = Progress()
            try:
                if plan is None:
                    assert version.source is not None
                    plan = await self._artifacts.planned(version.uid) or await self._artifacts.plan(version.source)
                return await self._fetch(version, plan, checksums, progress)
            except SourceUnavailable as error:
                failures = 0 if progress.written_bytes >= GAIN_BYTES else failures
                if failures == len(self._retry_delays_seconds):
                    raise
                wait = max(self._retry_delays_seconds[failures], error.retry_after_seconds or 0)
                if wait > LONGEST_RETRY_SECONDS:
                    raise SourceUnavailable(f"{error.message}; it asks to wait {wait:.0f} s") from None
                failures += 1
                log.info("the source of %s is away (%s); asked again in %g s", version.name, error.message, wait)
                await asyncio.sleep(wait)

    async def _fetch(
        self, version: ModelVersion, plan: Plan, checksums: Mapping[str, str], progress: Progress
    ) -> Fetched:
        recorded = ImportProgress(total_bytes=plan.total_bytes)
        lately: deque[tuple[float, int]] = deque(maxlen=round(RATE_SECONDS / PROGRESS_SECONDS))
        fetching = asyncio.create_task(self._artifacts.fetch(version.uid, plan, checksums, progress))
        try:
            while True:
                done, _ = await asyncio.wait([fetching], timeout=PROGRESS_SECONDS)
                if done:
                    return fetching.result()
                if not progress.total_bytes:
                    continue
                now, seen = time.monotonic(), progress.seen()
                paced = seen.paced(lately, now)
                lately.append((now, seen.done_bytes))
                if paced != recorded:
                    try:
                        await self._store.record_progress(version.uid, paced)
                        recorded = paced
                    except (DatabaseUnavailable, StorageFull, Conflict):
                        pass  # Progress is news, not truth.
        finally:
            if not fetching.done():
                fetching.cancel()
                await asyncio.wait([fetching])

    async def _end(self, uid: str, error: BaseException) -> None:
        if isinstance(error, DatabaseUnavailable):
            raise error
        if isinstance(error, VersionNotFound | IllegalTransition):
            # Deleted, cancelled or ended by someone else while it was at work.
            if await self._store.existing([uid]) == set():
                await self._artifacts.discard(uid)
            return
        if isinstance(error, ModelMoraError):
            failure = Failure(reason=error.reason, message=error.message)
        else:
            incident = secrets.token_hex(6)
            log.error("import %s failed, incident %s", uid, incident, exc_info=error)
            failure = Failure(reason="InternalError", message=f"something went wrong inside; incident {incident}")
        IMPORTS.labels("failed").inc()
        log.warning("import %s failed: %s: %s", uid, failure.reason, failure.message)
        await self._artifacts.discard(uid)
        try:
            await self._store.record_failure(uid, failure)
        except (VersionNotFound, IllegalTransition):
            pass  # Deleted while it failed.


def _is_uid(name: str) -> bool:
    try:
        return bool(ids.parse(name))
    except InvalidArgument:
        return False  # Not one of ours, so no version needs it.
