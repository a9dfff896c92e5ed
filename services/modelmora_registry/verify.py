"""Whether the files of a version are still those that were registered: at load, when asked, and in the background.

    look     size, inode, mtime and ctime of every file, against what they were when it was last hashed
    hash     a file of which any of these differs, or every file with `full`
    record   what it was found to be; a file that differs marks every version that has this very file

Reading gigabytes at every load would cost more than loading them, and nothing changes a file without touching its ctime
but a broken disk. For that there is the scrub: it hashes whatever was not hashed for so long, slowly, the oldest first.
Where it stands is in the database, so a restart or another registry goes on with the next file.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from modelmora.errors import Cancelled, DatabaseUnavailable, ModelMoraError, VersionDrifted
from modelmora_runtime.db import Database
from prometheus_client import Counter, Gauge

from modelmora_registry.domain import Artifact, ModelVersion
from modelmora_registry.lock_store import FileState, Hashed, LockStore, Place
from modelmora_registry.locks import FileVerdict, Verdict

log = logging.getLogger(__name__)
T = TypeVar("T")

CHUNK_BYTES = 2**20
IDLE_SECONDS = 600.0
"""So long the scrub rests at most before it looks whether something is due."""
RETRY_SECONDS = 30.0
PROGRESS_SECONDS = 0.5

HASHED = Counter("modelmora_registry_verified_bytes", "Bytes of artifacts that were hashed again", ["why"])
DRIFTED = Gauge("modelmora_registry_drifted_versions", "Versions whose files or answers differ from the record")


@dataclass(frozen=True)
class Looked:
    """`done_bytes` of `total_bytes` are behind, and a file was looked at; None: one is being hashed."""

    verdict: FileVerdict | None
    done_bytes: int
    total_bytes: int


@dataclass
class Reading:
    """A file that a thread reads: how far it is, and that nobody waits for it any more."""

    done_bytes: int = 0
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class ScrubRules:
    interval: timedelta = timedelta(days=7)
    """Every file is hashed once in so long; zero: never."""
    bytes_per_second: int = 20_000_000


class Verifier:
    """`say` is told some of what is drifted, in words, and how many versions it concerns."""

    def __init__(
        self,
        locks: LockStore,
        database: Database,
        snapshot_path: Callable[[str], Path],
        say: Callable[[Sequence[str], int], None],
        rules: ScrubRules | None = None,
    ) -> None:
        self._locks = locks
        self._database = database
        self._snapshot_path = snapshot_path
        self._say = say
        self._rules = rules or ScrubRules()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="registry-verify")
        self._scrub_thread = ThreadPoolExecutor(1, thread_name_prefix="registry-scrub")
        self._closed = threading.Event()
        self._drifted = 0

    def close(self) -> None:
        self._closed.set()
        for threads in (self._threads, self._scrub_thread):
            threads.shutdown(wait=False, cancel_futures=True)

    async def taken(self, artifact: Artifact) -> None:
        """These files were hashed as they came: what the file system says of them is what it will be held against."""
        states, _ = await self._in(_look, Path(artifact.path), [file.path for file in artifact.files])
        pairs = zip(artifact.files, states, strict=True)
        await self._locks.record_hashed([Hashed(file.sha256, file.sha256, state) for file, state in pairs if state])

    async def check_load(self, version: ModelVersion) -> None:
        """Raises VersionDrifted, naming the file, unless the version's files are what they were."""
        bad = await self.differing(version, why="load")
        if not bad:
            return
        others = f" and {len(bad) - 1} more files" if len(bad) > 1 else ""
        raise VersionDrifted(
            f"{version.name} is not loaded: its file {bad[0].path} is {bad[0].verdict}{others}",
            version=version.name,
            file=bad[0].path,
            verdict=bad[0].verdict,
            expected_sha256=bad[0].expected_sha256,
            found_sha256=bad[0].found_sha256,
        )

    async def differing(self, version: ModelVersion, *, full: bool = False, why: str = "asked") -> list[FileVerdict]:
        """The files that are not as they were registered."""
        seen = [looked.verdict async for looked in self.verify(version, full=full, why=why)]
        return [verdict for verdict in seen if verdict is not None and verdict.verdict != "intact"]

    async def verify(self, version: ModelVersion, *, full: bool = False, why: str = "asked") -> AsyncIterator[Looked]:
        """Every file of a READY version, then those that do not belong to it. What was found is recorded at the end."""
        if version.artifact is None or not version.artifact.path:
            return
        files, folder = version.artifact.files, Path(version.artifact.path)
        known = {} if full else await self._locks.file_states({file.sha256 for file in files})
        states, extra = await self._in(_look, folder, [file.path for file in files])
        done, total = 0, version.artifact.size_bytes
        verdicts: list[FileVerdict] = []
        hashed: list[Hashed] = []
        inodes: dict[str, int] = {}
        for file, state in zip(files, states, strict=True):
            found = "" if state is None else known.get((file.sha256, state), "")
            if state is not None and not found and state.size_bytes == file.size_bytes:
                read = None
                async for step in self._hash(folder / file.path, file.sha256, why):
                    if isinstance(step, int):
                        yield Looked(None, done + min(step, file.size_bytes), total)
                    else:
                        read = step
                if read is not None:
                    hashed.append(read)
                    found = read.found_sha256
            word: Verdict = "missing" if state is None else "intact" if found == file.sha256 else "changed"
            verdicts.append(FileVerdict(path=file.path, verdict=word, expected_sha256=file.sha256, found_sha256=found))
            if state is not None:
                inodes[file.path] = state.inode
            done += file.size_bytes
            yield Looked(verdicts[-1], done, total)
        for path in extra:
            verdicts.append(FileVerdict(path=path, verdict="extra"))
            yield Looked(verdicts[-1], done, total)
        await self._locks.record_hashed(hashed)
        if why != "load" or hashed or self._drifted or any(verdict.verdict != "intact" for verdict in verdicts):
            await self._record(version, verdicts, inodes)

    async def forgotten(self) -> None:
        """Versions or fingerprints are gone, and what was wrong with them is gone too."""
        if self._drifted:
            try:
                await self.report()
            except ModelMoraError:
                pass  # Told at the next change.

    async def report(self) -> None:
        """Tells how many versions are drifted."""
        words, self._drifted = await self._locks.drifted()
        DRIFTED.set(self._drifted)
        self._say(words, self._drifted)

    async def _record(self, version: ModelVersion, verdicts: list[FileVerdict], inodes: dict[str, int]) -> None:
        """Also for the versions that have the same file: a blob that changed has changed for all of them."""
        by_uid = {version.uid: verdicts}
        for verdict in verdicts:
            if verdict.path in inodes and (verdict.verdict == "changed" or self._drifted):
                places = [
                    place for place in await self._locks.places_of(verdict.expected_sha256) if place.uid != version.uid
                ]
                for place, state in await self._states_of(places):
                    if state is not None and state.inode == inodes[verdict.path]:
                        by_uid.setdefault(place.uid, []).append(verdict.model_copy(update={"path": place.path}))
                        if verdict.verdict == "changed":
                            log.error("%s: %s is the same file, and changed too", place.name, place.path)
        for verdict in verdicts:
            if verdict.verdict != "intact":
                log.error("%s: %s is %s %s", version.name, verdict.path, verdict.verdict, verdict.found_sha256)
        if await self._locks.record_verdicts(by_uid, {version.uid}):
            await self.report()

    async def _states_of(self, places: Iterable[Place]) -> list[tuple[Place, FileState | None]]:
        places = list(places)
        states = await self._in(lambda: [_state_of(self._snapshot_path(place.uid) / place.path) for place in places])
        return list(zip(places, states, strict=True))

    async def _hash(self, path: Path, sha256: str, why: str) -> AsyncIterator[int | Hashed | None]:
        """How many bytes were read, now and then, and at last what they were: None when the file is gone. Ends soon
        when it is cancelled."""
        reading = Reading()
        hashing = asyncio.ensure_future(self._in(self._hash_now, path, sha256, why, reading))
        try:
            while not hashing.done():
                await asyncio.wait([hashing], timeout=PROGRESS_SECONDS)
                yield reading.done_bytes
            yield hashing.result()
        finally:
            reading.ended.set()
            hashing.cancel()

    def _hash_now(
        self, path: Path, sha256: str, why: str, reading: Reading, bytes_per_second: int | None = None
    ) -> Hashed | None:
        """In a thread. The state is that of the file that was read, from before the first byte."""
        try:
            opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            state, digest = _as_state(os.fstat(opened)), hashlib.sha256()
            began = time.monotonic()
            try:
                while chunk := os.read(opened, CHUNK_BYTES):
                    if reading.ended.is_set() or self._closed.is_set():
                        raise Cancelled
                    digest.update(chunk)
                    reading.done_bytes += len(chunk)
                    HASHED.labels(why).inc(len(chunk))
                    if bytes_per_second is not None:
                        reading.ended.wait(began + reading.done_bytes / bytes_per_second - time.monotonic())
            except OSError as error:
                log.error("%s cannot be read: %s", path, error)  # A rotten sector is as bad as a wrong byte.
                return Hashed(sha256, f"unreadable: {error.strerror}", state)
            return Hashed(sha256, f"sha256:{digest.hexdigest()}", state)
        finally:
            os.close(opened)

    async def _in(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    # The scrub.

    async def run(self) -> None:
        """Tells what is drifted, then scrubs, without end; of several registries one."""
        told = False
        while True:
            pause = RETRY_SECONDS
            try:
                if not told:
                    await self.report()
                    told = True
                if self._rules.interval:
                    lock = await self._database.try_lock("scrub")
                    if lock is not None:
                        async with lock:
                            pause = await self._scrub(lock.lost)
            except DatabaseUnavailable:
                pass
            except ModelMoraError as error:  # the database's disk is full, say
                log.warning("the scrub waits: %s", error.message)
            await asyncio.sleep(pause)

    async def _scrub(self, lost: asyncio.Event) -> float:
        """Until nothing is due. The seconds until something is."""
        while not lost.is_set():
            sha256, due_seconds = await self._locks.next_to_scrub(self._rules.interval)
            if sha256 is None:
                return min(due_seconds, IDLE_SECONDS)
            await self.scrub(sha256)
        return RETRY_SECONDS

    async def scrub(self, sha256: str) -> None:
        """Hashes every file of this content, at the pace that is set, and records what it found."""
        found: dict[int, Hashed] = {}
        verdicts: dict[str, list[FileVerdict]] = {}
        for place, state in await self._states_of(await self._locks.places_of(sha256)):
            read = None
            if state is not None and (read := found.get(state.inode)) is None:
                read = await self._hash_slowly(self._snapshot_path(place.uid) / place.path, sha256)
            if read is not None:
                found[read.state.inode] = read
            word: Verdict = "missing" if read is None else "intact" if read.found_sha256 == sha256 else "changed"
            if word != "intact":
                log.error("scrub: %s: %s is %s", place.name, place.path, word)
            verdict = FileVerdict(
                path=place.path,
                verdict=word,
                expected_sha256=sha256,
                found_sha256=read.found_sha256 if read is not None else "",
            )
            verdicts.setdefault(place.uid, []).append(verdict)
        await self._locks.record_hashed(list(found.values()))
        await self._locks.forget_states(sha256, keep=found)
        if await self._locks.record_verdicts(verdicts, ()):
            await self.report()

    async def _hash_slowly(self, path: Path, sha256: str) -> Hashed | None:
        reading, loop = Reading(), asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._scrub_thread, self._hash_now, path, sha256, "scrub", reading, self._rules.bytes_per_second
            )
        finally:
            reading.ended.set()


def _look(folder: Path, paths: Sequence[str]) -> tuple[list[FileState | None], list[str]]:
    """The state of each of these files, None where there is no ordinary file, and the paths of all others there are."""
    states = [_state_of(folder / path) for path in paths]
    known = set(paths)
    extra = []
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        below = Path(parent).relative_to(folder)
        extra += [path for name in [*names, *links] if (path := (below / name).as_posix()) not in known]
    return states, sorted(extra)


def _state_of(path: Path) -> FileState | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return _as_state(found) if stat.S_ISREG(found.st_mode) else None


def _as_state(found: os.stat_result) -> FileState:
    inode = found.st_ino - 2**64 if found.st_ino >= 2**63 else found.st_ino
    return FileState(inode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
