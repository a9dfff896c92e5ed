"""Holds of versions: kept in the database for every registry to see, renewed while their streams live.

A stream that breaks says nothing about its holder: it may be dead, frozen, or cut off while what it holds is in memory.
So a hold that came with an id outlasts its stream, and ends when

    its holder says so    ReleaseHold
    its process is gone   seen by a registry that sees the same processes
    LIFETIME is over      since the stream broke; nobody was seen and nobody came back

One without an id ends with its stream, and runs out when the registry dies with it.

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

from modelmora.errors import DatabaseUnavailable, InvalidArgument, ModelMoraError, NotFound
from modelmora_runtime import pids
from modelmora_runtime.ids import uuid7
from prometheus_client import Gauge

from modelmora_registry.domain import ModelVersion, Reference
from modelmora_registry.store import Store

log = logging.getLogger(__name__)

LIFETIME = timedelta(minutes=5)
"""Longer than anything that freezes a process by accident; short enough for a machine that died to be waited for."""
RENEW_SECONDS = 5.0
RETRY_SECONDS = 0.5
WANTED_SECONDS = 15.0
"""So long one that failed is waited for: holders ask again within seconds, and each try may wait for the database."""
RELEASED_SECONDS = 60.0
"""So long a release is remembered, for the acquisition that it overtook."""

HOLDS = Gauge("modelmora_registry_holds", "Holds that are in force in this process")


class Hold:
    """One hold in force. `over` is set when it was released, or is found gone from the database."""

    def __init__(self, uid: str, version: ModelVersion, holder: str, process: str) -> None:
        self.uid = uid
        self.version = version
        self.holder = holder
        self.process = process
        self.over = asyncio.Event()
        self.released = False


class Holds:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, Hold] = {}
        self._wanted: dict[str, tuple[str, float]] = {}
        """Holder by name of the version that it could not hold, and until when that counts."""
        self._released: dict[str, float] = {}
        """Until when it is remembered, by uid."""
        self._ended: set[str] = set()
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    @asynccontextmanager
    async def hold(self, reference: Reference, holder: str, *, uid: str = "", process: str = "") -> AsyncIterator[Hold]:
        """In force inside the block; with a `uid` of the holder's also after it was cancelled, see above.

        Raises ModelNotFound, VersionNotFound, InvalidArgument at `hold_id`, DatabaseUnavailable.
        """
        outlasts, uid = bool(uid), uid or str(uuid7())
        wanted = reference.model_id.version_name(reference.selector or "")
        try:
            version = await self._store.acquire_hold(reference, uid, holder, process, LIFETIME)
        except asyncio.CancelledError:
            self._leave(uid, outlasts)  # It may be there all the same.
            raise
        except (NotFound, InvalidArgument):
            self._wanted.pop(wanted, None)
            raise
        except ModelMoraError:
            self._want(wanted, holder)
            raise
        made = self._held[uid] = Hold(uid, version, holder, process)
        self._wanted.pop(wanted, None)
        HOLDS.inc()
        try:
            yield made
        except ModelMoraError:
            outlasts = made.over.is_set()  # Refused: nothing will be in memory.
            raise
        finally:
            HOLDS.dec()
            if self._held.get(uid) is made:  # Not when its holder is back already, with another stream.
                del self._held[uid]
            if made.over.is_set() and not made.released:
                self._want(version.name, holder)
            self._leave(uid, outlasts)

    async def release(self, uid: str) -> None:
        """Ends a hold and its stream. What cannot be written now is written when the database is back."""
        now = time.monotonic()
        self._released = {other: until for other, until in self._released.items() if until > now}
        self._released[uid] = now + RELEASED_SECONDS
        if made := self._held.pop(uid, None):
            made.released = True
            made.over.set()
        self._end(uid)
        await self._settle()

    def held(self) -> Mapping[str, str]:
        """Holder by uid of the held version, and by name of those that are to be held as soon as it can be."""
        now = time.monotonic()
        wanted = {name: holder for name, (holder, until) in self._wanted.items() if until > now}
        return wanted | {hold.version.uid: hold.holder for hold in self._held.values()}

    def _want(self, name: str, holder: str) -> None:
        now = time.monotonic()
        self._wanted = {other: found for other, found in self._wanted.items() if found[1] > now}
        self._wanted[name] = (holder, now + WANTED_SECONDS)

    def _leave(self, uid: str, outlasts: bool) -> None:
        if not outlasts or uid in self._released:
            self._end(uid)

    def _end(self, uid: str) -> None:
        self._ended.add(uid)
        self._settled.clear()
        self._wake.set()

    async def settle(self) -> None:
        """Lets go of what was released, and of what the dead held, for who asks whether a version is held."""
        await self._settle()
        await self._forget_the_dead()

    async def _settle(self, timeout_seconds: float = 1.0) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._settled.wait()
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
        """A last round. Who held from this process ends with it; who lives elsewhere comes back to whoever serves next,
        and until then it lasts."""
        try:
            await self.write()
            await self._store.release_holds_of({pids.this_process()})
        except ModelMoraError:
            pass  # They run out.

    async def write(self) -> None:
        """One round of releasing and renewing."""
        for uid in list(self._ended):
            if uid not in self._held:
                await self._store.release_hold(uid)
            self._ended.discard(uid)
        if not self._ended:
            self._settled.set()
        if uids := list(self._held):
            renewed = await self._store.renew_holds(uids, LIFETIME)
            for uid in uids:
                if uid not in renewed and uid in self._held:
                    log.error("the hold of %s is gone from the database", self._held[uid].version.name)
                    self._held[uid].over.set()
        await self._forget_the_dead()

    async def _forget_the_dead(self) -> None:
        """Not those whose stream is open: it breaks in a moment."""
        known = {hold.process for hold in self._held.values()}
        holding = await self._store.holding_processes(pids.seen_from_here())
        if gone := {process for process in holding - known if pids.is_gone(process)}:
            await self._store.release_holds_of(gone)
