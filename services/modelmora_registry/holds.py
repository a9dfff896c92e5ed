"""Holds of versions: kept in the database for every registry to see, renewed while their streams live.

A hold that is not renewed runs out after LIFETIME, so those of a process that died free their versions by themselves.
Who could not be given one, because the database was away, goes on without and asks again; until then it counts as if it
had one, for what is in memory is not deleted behind its holder's back.
All writing is done by one task; releasing marks and wakes it, so that a stream can end while the database is away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

from modelmora.errors import DatabaseUnavailable, ModelMoraError, NotFound
from prometheus_client import Gauge

from modelmora_registry.domain import ModelVersion, Reference
from modelmora_registry.store import Store

log = logging.getLogger(__name__)

LIFETIME = timedelta(seconds=30)
RENEW_SECONDS = 5.0
RETRY_SECONDS = 0.5
WANTED_SECONDS = 15.0
"""So long one that failed is waited for: holders ask again within seconds, and each try may wait for the database."""
LEAVE_SECONDS = 0.3

HOLDS = Gauge("modelmora_registry_holds", "Holds that are in force in this process")


class Hold:
    """One hold in force. `lost` is set when it is found gone from the database."""

    def __init__(self, uid: str, version: ModelVersion, holder: str) -> None:
        self.uid = uid
        self.version = version
        self.holder = holder
        self.lost = asyncio.Event()


class Holds:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, Hold] = {}
        self._wanted: dict[str, tuple[str, float]] = {}
        """Holder by name of the version that it could not hold, and until when that counts."""
        self._ended: set[str] = set()
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    @asynccontextmanager
    async def hold(self, reference: Reference, holder: str) -> AsyncIterator[Hold]:
        """In force inside the block. Raises ModelNotFound, VersionNotFound, DatabaseUnavailable."""
        wanted = reference.model_id.version_name(reference.selector or "")
        try:
            uid, version = await self._store.acquire_hold(reference, holder, LIFETIME)
        except NotFound:
            self._wanted.pop(wanted, None)
            raise
        except ModelMoraError:
            self._want(wanted, holder)
            raise
        made = self._held[uid] = Hold(uid, version, holder)
        self._wanted.pop(wanted, None)
        HOLDS.inc()
        try:
            yield made
        finally:
            HOLDS.dec()
            del self._held[uid]
            if made.lost.is_set():
                self._want(version.name, holder)
            self._ended.add(uid)
            self._settled.clear()
            self._wake.set()

    def held(self) -> Mapping[str, str]:
        """Holder by uid of the held version, and by name of those that are to be held as soon as it can be."""
        now = time.monotonic()
        wanted = {name: holder for name, (holder, until) in self._wanted.items() if until > now}
        return wanted | {hold.version.uid: hold.holder for hold in self._held.values()}

    def _want(self, name: str, holder: str) -> None:
        now = time.monotonic()
        self._wanted = {other: found for other, found in self._wanted.items() if found[1] > now}
        self._wanted[name] = (holder, now + WANTED_SECONDS)

    async def settle(self, timeout_seconds: float = 1.0) -> None:
        """Waits until the holds that were released are gone from the database, at most this long."""
        try:
            await asyncio.wait_for(self._settled.wait(), timeout_seconds)
        except TimeoutError:
            pass

    async def run(self) -> None:
        """Releases and renews, without end."""
        pause = RENEW_SECONDS
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.write()
                pause = RENEW_SECONDS
            except DatabaseUnavailable:
                pause = RETRY_SECONDS
            except ModelMoraError as error:  # its disk is full, or another transaction was in the way
                log.warning("holds could not be renewed: %s", error.message)
                pause = RETRY_SECONDS

    async def close(self) -> None:
        """A last round. Who still holds lives elsewhere and comes back to whoever serves next; until then it lasts."""
        if self._held:
            await asyncio.sleep(LEAVE_SECONDS)  # those that live in this process have just let go
        try:
            await self.write()
        except ModelMoraError:
            pass  # They run out.

    async def write(self) -> None:
        """One round of releasing and renewing."""
        for uid in list(self._ended):
            await self._store.release_hold(uid)
            self._ended.discard(uid)
        if not self._ended:
            self._settled.set()
        if uids := list(self._held):
            renewed = await self._store.renew_holds(uids, LIFETIME)
            for uid in uids:
                if uid not in renewed and uid in self._held:
                    log.error("the hold of %s is gone from the database", self._held[uid].version.name)
                    self._held[uid].lost.set()
