"""The files of versions on disk: fetched, verified, kept by their digest, swept.

    <data_dir>/artifacts/
      staging/<uid>/          an import at work: `part` is the file being written, `files/` are complete and verified,
                              `plan.json` is what a remote source had when the import began
      snapshots/<uid>/        the files of one version under their own names, 0444, hard links into blobs
      blobs/sha256/<2>/<64>   one copy of every content; several versions may share it
      notes/<2>/<64>/<uid>    where a content lies that has no blob: the file system knows no hard links, or a file has
                              as many as it can. The next version that wants it clones it (reflink), else copies it

An import always owns a link of its own before it relies on a blob, and a blob is dropped only while nothing else links
to it, so that dropping can never race an import. Files of users are copied (reflinked where the file system can), never
linked. Blocking work runs in named threads; cancelling waits until the thread has let go.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from modelmora.errors import (
    Cancelled,
    ChecksumMismatch,
    FieldViolation,
    InvalidModelFiles,
    SourceNotFound,
    SourceUnavailable,
    StorageFull,
    UnsafeFile,
)

from modelmora_registry import contents, metadata, mirrors
from modelmora_registry.domain import Artifact, ArtifactFile, ImportProgress, ModelSource
from modelmora_registry.facts import read_facts
from modelmora_registry.locks import LockedModel
from modelmora_registry.metadata import Facts
from modelmora_registry.sources import Plan, PlannedFile, Sources

T = TypeVar("T")

CHUNK_BYTES = 4 * 2**20
CANCEL_TIMEOUT_SECONDS = 5.0
TURN_SECONDS = 0.2
"""So often a thread that waits for another's download looks whether its own import was cancelled."""
MAX_CONFIG_BYTES = 4 * 2**20
HEADROOM_BYTES = 64 * 2**20
"""Left free on the disk, so that an import does not starve the database beside it."""
_FICLONE = 0x40049409
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system says that has no hard links, not from here to there, or no more of this file."""


@dataclass(frozen=True)
class Fetched:
    artifact: Artifact
    facts: Facts


@dataclass
class Progress:
    """Written by the import's thread, read by the loop."""

    total_bytes: int = 0
    done_bytes: int = 0
    current_file: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)
    abort: Callable[[], None] | None = None
    written_bytes: int = 0
    """New ones on the disk; `done_bytes` counts what was there too."""

    def seen(self) -> ImportProgress:
        return ImportProgress(
            done_bytes=min(self.done_bytes, self.total_bytes),
            total_bytes=self.total_bytes,
            current_file=self.current_file,
        )

    def cancel(self) -> None:
        self.cancelled.set()
        if abort := self.abort:
            abort()

    def check(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled("the import was cancelled")


class Artifacts:
    """The store below `root` and the sources it takes files from."""

    def __init__(self, root: Path, sources: Sources, *, quota_bytes: int = 0, concurrency: int = 2) -> None:
        self._root = root
        self._sources = sources
        self._quota_bytes = quota_bytes
        # Plans have threads of their own: a caller must not wait behind somebody's download.
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="registry-import")
        self._plan_threads = ThreadPoolExecutor(2, thread_name_prefix="registry-plan")
        self._reserved: dict[str, tuple[int, Progress]] = {}
        """By uid what an import still wants to write, counted from when its progress began."""
        self._turns = _Turns()
        for name in ("staging", "snapshots", "blobs/sha256", "notes"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._plan_threads.shutdown(wait=False, cancel_futures=True)
        self._sources.close()

    async def plan(self, source: ModelSource, *, at: str = "source") -> Plan:
        """Looks at the source without taking a byte of the files.

        Raises InvalidArgument at `<at>.local.path`, `<at>.hub` or `<at>.url`, SourceNotFound, SourceUnavailable,
        UnsafeFile.
        """
        return await self._in(self._plan_threads, self._sources.plan, source, at)

    async def plan_locked(self, locked: LockedModel, mirror: str) -> Plan:
        """Where the files of a locked version can be had. Raises what `plan` raises, and SourceNotFound."""
        return await self._in(self._plan_threads, mirrors.plan, self._sources, self._is_here, locked, mirror)

    async def planned(self, uid: str) -> Plan | None:
        """The plan with which an import of a remote source began, so that it goes on with the same files."""
        return await self._in(self._plan_threads, self._read_plan, uid)

    async def check_room(self, plan: Plan, checksums: Mapping[str, str] | None = None) -> Plan:
        """The plan, with digests of local files where there is room only because their contents are here already.

        Raises StorageFull when what is not here yet of a plan goes beyond the quota, or would not leave the headroom
        free."""
        return (await self._in(self._plan_threads, self._check_room, "", plan, checksums or {}))[0]

    async def used_bytes(self) -> int:
        """On disk, what several versions share counted once."""
        return await self._in(self._plan_threads, self._used_bytes)

    async def fetch(self, uid: str, plan: Plan, checksums: Mapping[str, str], progress: Progress) -> Fetched:
        """Takes the files into the snapshot `uid`, each verified against `checksums` and what its source promised.

        Goes on where an earlier attempt stopped. Raises ChecksumMismatch, StorageFull, UnsafeFile, SourceNotFound,
        SourceUnavailable. When it raises or is cancelled, the snapshot does not exist; `discard` removes the rest.
        """
        plan, need_bytes = await self._in(self._plan_threads, self._check_room, uid, plan, checksums)
        self._reserved[uid] = (need_bytes, progress)
        try:
            future = asyncio.get_running_loop().run_in_executor(
                self._threads, self._fetch, uid, plan, checksums, progress
            )
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                progress.cancel()
                # It writes nothing from here on; only a silent server can keep it longer.
                done, _ = await asyncio.wait([future], timeout=CANCEL_TIMEOUT_SECONDS)
                for ended in done:
                    ended.exception()
                raise
        finally:
            self._reserved.pop(uid, None)

    async def discard(self, uid: str, digests: Collection[str] | None = None) -> None:
        """Removes whatever is there of a version, and those of its blobs (None: of all) that nothing else uses."""
        await self._in(self._plan_threads, self._discard, uid, digests)

    async def present(self) -> set[str]:
        """The uids of which there is anything on disk."""
        return await self._in(self._plan_threads, self._present)

    async def drop_unused_blobs(self) -> int:
        """Removes blobs that no snapshot links to; returns how many."""
        return await self._in(self._plan_threads, self._drop_unused_blobs)

    def snapshot_path(self, uid: str) -> Path:
        return self._root / "snapshots" / uid

    async def _in(self, threads: ThreadPoolExecutor, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)

    def _is_here(self, file: ArtifactFile) -> bool:
        """Whether its content is, for a version to come, without a source."""
        return _size_of(self._blob(file.sha256)) == file.size_bytes or any(
            _size_of(lies) == file.size_bytes for lies in self._noted(file.sha256)
        )

    # Room.

    def _check_room(self, uid: str, plan: Plan, checksums: Mapping[str, str]) -> tuple[Plan, int]:
        """The plan and what the import `uid` has still to write. Raises StorageFull."""
        try:
            return plan, self._check_need(uid, plan, checksums)
        except StorageFull:
            if (hashed := self._hashed(plan)) == plan:
                raise
            return hashed, self._check_need(uid, hashed, checksums)

    def _hashed(self, plan: Plan) -> Plan:
        """With the digests of those local files that are as long as something that is here."""
        if plan.is_remote or not any(file.origin and file.sha256 is None for file in plan.files):
            return plan
        sizes = {_size_of(blob) for blob in _files_below(self._root / "blobs")}
        return replace(
            plan,
            files=tuple(
                replace(file, sha256=_sha256_if_readable(Path(file.origin)))
                if file.origin and file.sha256 is None and file.size_bytes in sizes
                else file
                for file in plan.files
            ),
        )

    def _check_need(self, uid: str, plan: Plan, checksums: Mapping[str, str]) -> int:
        need_bytes = self._need_bytes(uid, plan, checksums)
        promised_bytes = sum(
            max(0, wanted - progress.written_bytes)
            for other, (wanted, progress) in list(self._reserved.items())
            if other != uid
        )
        if self._quota_bytes:
            used_bytes = self._used_bytes() + promised_bytes
            if used_bytes + need_bytes > self._quota_bytes:
                raise StorageFull(
                    f"the import needs {need_bytes} bytes; of the quota of {self._quota_bytes} "
                    f"(registry.storage_quota_bytes) {used_bytes} are used",
                    need_bytes=need_bytes,
                    quota_bytes=self._quota_bytes,
                    used_bytes=used_bytes,
                )
        found = os.statvfs(self._root)
        free_bytes = max(0, found.f_bavail * found.f_frsize - promised_bytes - HEADROOM_BYTES)
        if need_bytes > free_bytes:
            raise StorageFull(
                f"the import needs {need_bytes} bytes and {free_bytes} are free for it",
                need_bytes=need_bytes,
                free_bytes=free_bytes,
            )
        return need_bytes

    def _need_bytes(self, uid: str, plan: Plan, checksums: Mapping[str, str]) -> int:
        need_bytes, seen = 0, set()
        staging, snapshot = self._root / "staging" / uid, self.snapshot_path(uid)
        for file in plan.files:
            digest = file.sha256 or checksums.get(file.path)
            if digest is not None and (digest in seen or _size_of(self._blob(digest)) == file.size_bytes):
                continue
            seen.add(digest)
            if uid and file.size_bytes in (_size_of(staging / "files" / file.path), _size_of(snapshot / file.path)):
                continue
            need_bytes += file.size_bytes
        return max(0, need_bytes - (_size_of(staging / "part") or 0 if uid else 0))

    def _used_bytes(self) -> int:
        folders = ["blobs", "staging"]
        if any((self._root / "notes").iterdir()):
            folders.append("snapshots")  # Not all of their files are blobs too.
        seen, used_bytes = set(), 0
        for folder in folders:
            for file in _files_below(self._root / folder):
                try:
                    found = file.stat()
                except FileNotFoundError:
                    continue
                if (identity := (found.st_dev, found.st_ino)) not in seen:
                    seen.add(identity)
                    used_bytes += found.st_size
        return used_bytes

    # Fetching.

    def _fetch(self, uid: str, plan: Plan, checksums: Mapping[str, str], progress: Progress) -> Fetched:
        staging, snapshot = self._root / "staging" / uid, self.snapshot_path(uid)
        progress.total_bytes, progress.done_bytes, progress.written_bytes = plan.total_bytes, 0, 0
        with storage_errors():
            staging.mkdir(exist_ok=True)
            if plan.is_remote:
                _write_whole(staging / "plan.json", _plan_text(plan))
            if snapshot.exists():
                # It got this far and was not recorded: look at every file again.
                os.rename(snapshot, staging / "files")
            (staging / "files").mkdir(exist_ok=True)
            files = []
            for planned in plan.files:
                progress.check()
                progress.current_file = planned.path
                before = progress.done_bytes
                files.append(self._fetch_file(staging, plan, planned, checksums.get(planned.path), progress))
                progress.done_bytes = before + planned.size_bytes
            progress.current_file = ""
            for planned in plan.files:
                contents.check(staging / "files" / planned.path, planned.path, allow_pickle=self._sources.allow_pickle)
            configs = self._read_configs(staging / "files", plan.paths)
            facts = read_facts(staging / "files", files, configs)
            fsync_folders(staging / "files")
            progress.check()
            os.rename(staging / "files", snapshot)
            _sync_folder(snapshot.parent)
            shutil.rmtree(staging, ignore_errors=True)
        return Fetched(Artifact.of(str(snapshot), files), facts)

    def _fetch_file(
        self, staging: Path, plan: Plan, planned: PlannedFile, checksum: str | None, progress: Progress
    ) -> ArtifactFile:
        digest = planned.sha256 or checksum
        # Whoever wants the same content waits for the first and then links what it has brought.
        with self._turns.of(digest, progress):
            return self._fetch_one(staging, plan, planned, checksum, digest, progress)

    def _fetch_one(
        self,
        staging: Path,
        plan: Plan,
        planned: PlannedFile,
        checksum: str | None,
        digest: str | None,
        progress: Progress,
    ) -> ArtifactFile:
        target, part = staging / "files" / planned.path, staging / "part"
        target.parent.mkdir(parents=True, exist_ok=True)
        # An earlier attempt left it, or its content came with another version: believed after one more look.
        before = progress.done_bytes
        if target.exists() or (digest and self._take_known(digest, planned.size_bytes, target, staging, progress)):
            digests = _Digests(planned)
            _hash_file(target, digests, progress)
            if digests.problem(checksum) is None:
                self._keep_blob(target, digests.file(), staging, is_new=False)
                return digests.file()
            target.unlink()
            progress.done_bytes = before
        if plan.is_remote:
            went_on = part.exists()
            digests = self._download(plan.source, planned, part, progress)
            problem = digests.problem(checksum)
            if problem and went_on:  # What a crash left may be torn.
                part.unlink()
                progress.done_bytes = before
                digests = self._download(plan.source, planned, part, progress)
                problem = digests.problem(checksum)
        else:
            part.unlink(missing_ok=True)
            digests = self._copy(planned, part, progress)
            problem = digests.problem(checksum)
        if problem:
            part.unlink()
            raise ChecksumMismatch(
                f"{planned.path}: {problem}", fields=[FieldViolation(planned.path, problem)], file=planned.path
            )
        os.chmod(part, 0o444)
        os.rename(part, target)
        self._keep_blob(target, digests.file(), staging, is_new=True)
        return digests.file()

    def _copy(self, planned: PlannedFile, part: Path, progress: Progress) -> _Digests:
        digests = _Digests(planned)
        try:
            source = os.open(planned.origin, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise SourceNotFound(f"{planned.path} cannot be read: {error.strerror}", file=planned.path) from None
        try:
            # What was looked at may have been swapped for a link since.
            if not stat.S_ISREG(os.fstat(source).st_mode) or not self._sources.is_below_a_root(
                os.path.realpath(f"/proc/self/fd/{source}")
            ):
                raise UnsafeFile(f"{planned.path} was replaced while it was imported", file=planned.path)
            with open(part, "x+b", buffering=0) as written:
                cloned = _clone(source, written.fileno())
                while chunk := _read(written.fileno() if cloned else source, planned.path):
                    progress.check()
                    self._take(chunk, None if cloned else written, planned, digests, progress)
                os.fsync(written.fileno())
        finally:
            os.close(source)
        return digests

    def _download(self, source: ModelSource, planned: PlannedFile, part: Path, progress: Progress) -> _Digests:
        """Downloads into `part`, or goes on where it ends: what is there is hashed again, the rest asked for."""
        digests, before = _Digests(planned), progress.done_bytes
        if not (planned.pin or planned.sha256 or planned.blob_id):
            part.unlink(missing_ok=True)  # Nothing would tell whether the rest belongs to it.
        if part.exists():
            _hash_file(part, digests, progress)
        if digests.size_bytes >= planned.size_bytes:
            digests, progress.done_bytes = _Digests(planned), before
        with self._sources.download(source, planned, offset=digests.size_bytes) as download:
            progress.abort = download.abort
            try:
                progress.check()  # A cancel before this line found nothing to abort.
                if download.offset != digests.size_bytes:
                    digests, progress.done_bytes = _Digests(planned), before
                with open(part, "ab" if digests.size_bytes else "wb", buffering=0) as written:
                    for chunk in download.chunks():
                        progress.check()
                        self._take(chunk, written, planned, digests, progress)
                    os.fsync(written.fileno())
            finally:
                progress.abort = None
                progress.check()  # An aborted read looks like a broken source.
        if digests.size_bytes < planned.size_bytes:
            raise SourceUnavailable(
                f"{planned.path} broke off after {digests.size_bytes} of {planned.size_bytes} bytes", file=planned.path
            )
        return digests

    def _take(self, chunk: bytes, written: Any, planned: PlannedFile, digests: _Digests, progress: Progress) -> None:
        digests.update(chunk)
        if digests.size_bytes > planned.size_bytes:
            raise ChecksumMismatch(
                f"{planned.path} has more than the {planned.size_bytes} bytes that were announced", file=planned.path
            )
        if written is not None:
            view = memoryview(chunk)
            while view:
                view = view[written.write(view) :]
        progress.done_bytes += len(chunk)
        progress.written_bytes += len(chunk)

    def _read_configs(self, folder: Path, paths: Collection[str]) -> Mapping[str, Any]:
        configs: dict[str, Any] = {}
        for path in metadata.config_paths(paths):
            file = folder / path
            if file.stat().st_size > MAX_CONFIG_BYTES:
                continue
            try:
                configs[path] = json.loads(file.read_bytes())
            except (ValueError, RecursionError):
                raise InvalidModelFiles(f"{path} is not JSON", file=path) from None
        if not self._sources.allow_pickle:
            metadata.check_modules(configs.get(metadata.MODULES_FILE))
        metadata.check_weights(configs, paths)
        return configs

    # Blobs and snapshots.

    def _blob(self, sha256: str) -> Path:
        digest = sha256.removeprefix("sha256:")
        return self._root / "blobs" / "sha256" / digest[:2] / digest

    def _notes(self, sha256: str) -> Path:
        digest = sha256.removeprefix("sha256:")
        return self._root / "notes" / digest[:2] / digest

    def _take_known(self, sha256: str, size_bytes: int, target: Path, staging: Path, progress: Progress) -> bool:
        """Makes `target` of content that is here: a link to its blob, else a clone or a copy of where a note says."""
        if self._link_blob(sha256, size_bytes, target):
            return True
        for lies in self._noted(sha256):
            if _size_of(lies) == size_bytes and self._duplicate(lies, target, staging / "spare", progress):
                return True
        return False

    def _link_blob(self, sha256: str, size_bytes: int, target: Path) -> bool:
        blob = self._blob(sha256)
        try:
            if blob.stat().st_size != size_bytes:
                return False
            os.link(blob, target)
        except OSError:
            return False
        return True

    def _noted(self, sha256: str) -> Iterator[Path]:
        try:
            notes = list(self._notes(sha256).iterdir())
        except OSError:
            return
        for note in notes:
            try:
                path = note.read_text()
            except OSError:
                continue
            yield self.snapshot_path(note.name) / path
            yield self._root / "staging" / note.name / "files" / path

    def _duplicate(self, lies: Path, target: Path, spare: Path, progress: Progress) -> bool:
        """A file of its own with the same bytes; False when `lies` went away meanwhile."""
        spare.unlink(missing_ok=True)
        try:
            with open(lies, "rb", buffering=0) as source, open(spare, "x+b", buffering=0) as written:
                if not _clone(source.fileno(), written.fileno()):
                    while os.copy_file_range(source.fileno(), written.fileno(), CHUNK_BYTES):
                        progress.check()
                os.fsync(written.fileno())
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise
            return False
        os.chmod(spare, 0o444)
        os.rename(spare, target)
        return True

    def _keep_blob(self, target: Path, file: ArtifactFile, staging: Path, *, is_new: bool) -> None:
        """Makes `target` the blob of its content, or replaces it by a link to the blob that is there.

        A blob is looked at before it is shared: one that rotted on the disk makes way for the fresh copy.
        """
        blob, spare = self._blob(file.sha256), staging / "spare"
        spare.unlink(missing_ok=True)
        try:
            blob.parent.mkdir(exist_ok=True)
            try:
                os.link(target, blob)
            except FileExistsError:
                if not is_new:
                    return  # A link to it, most likely; if not, an earlier attempt was verified all the same.
                if self._link_blob(file.sha256, file.size_bytes, spare) and sha256_of(spare) == file.sha256:
                    os.rename(spare, target)
                    return
                spare.unlink(missing_ok=True)
                os.link(target, spare)
                os.rename(spare, blob)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            notes = self._notes(file.sha256)
            notes.mkdir(parents=True, exist_ok=True)
            _write_whole(notes / staging.name, file.path)

    def _discard(self, uid: str, digests: Collection[str] | None) -> None:
        shutil.rmtree(self._root / "staging" / uid, ignore_errors=True)
        shutil.rmtree(self.snapshot_path(uid), ignore_errors=True)
        for note in (self._root / "notes").glob(f"*/*/{uid}"):
            note.unlink(missing_ok=True)
            _drop_empty(note.parent)
        if digests is None:
            self._drop_unused_blobs()
        else:
            for digest in digests:
                _drop_if_unused(self._blob(digest))

    def _drop_unused_blobs(self) -> int:
        blobs = [blob for folder in (self._root / "blobs" / "sha256").iterdir() for blob in folder.iterdir()]
        return sum(_drop_if_unused(blob) for blob in blobs)

    def _present(self) -> set[str]:
        return {entry.name for name in ("staging", "snapshots") for entry in (self._root / name).iterdir()}

    def _read_plan(self, uid: str) -> Plan | None:
        try:
            return _plan_from((self._root / "staging" / uid / "plan.json").read_text())
        except (OSError, ValueError, TypeError, KeyError):
            return None


class _Turns:
    """One thread at a time for each key."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: set[str] = set()

    @contextmanager
    def of(self, key: str | None, progress: Progress) -> Iterator[None]:
        """Waits for the turn. Raises Cancelled when the import is cancelled meanwhile."""
        if key is None:
            yield
            return
        with self._changed:
            while key in self._taken:
                progress.check()
                self._changed.wait(TURN_SECONDS)
            self._taken.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._taken.discard(key)
                self._changed.notify_all()


class _Digests:
    """The running digests of one file: sha256 for us, git's blob id where the source speaks of that."""

    def __init__(self, planned: PlannedFile) -> None:
        self.size_bytes = 0
        self._planned = planned
        self._sha256 = hashlib.sha256()
        self._blob_id = None
        if planned.blob_id is not None:
            self._blob_id = hashlib.sha1(b"blob %d\x00" % planned.size_bytes, usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        self._sha256.update(chunk)
        if self._blob_id is not None:
            self._blob_id.update(chunk)

    def file(self) -> ArtifactFile:
        return ArtifactFile(
            path=self._planned.path, size_bytes=self.size_bytes, sha256=f"sha256:{self._sha256.hexdigest()}"
        )

    def problem(self, checksum: str | None) -> str | None:
        """What differs from `checksum` or from what the source promised; None when all is as it should be."""
        planned, found = self._planned, f"sha256:{self._sha256.hexdigest()}"
        if self.size_bytes != planned.size_bytes:
            return f"has {self.size_bytes} bytes instead of {planned.size_bytes}"
        for expected, who in ((checksum, "expected"), (planned.sha256, "the source says")):
            if expected is not None and found != expected:
                return f"is {found}, {who} {expected}"
        if self._blob_id is not None and self._blob_id.hexdigest() != planned.blob_id:
            return f"is the blob {self._blob_id.hexdigest()}, the source says {planned.blob_id}"
        return None


def _hash_file(path: Path, digests: _Digests, progress: Progress) -> None:
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            progress.check()
            digests.update(chunk)
            progress.done_bytes += len(chunk)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _sha256_if_readable(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None  # The import will say why.


def _read(source: int, path: str) -> bytes:
    try:
        return os.read(source, CHUNK_BYTES)
    except OSError as error:
        raise SourceUnavailable(f"{path} cannot be read: {error.strerror}", file=path) from None


def _clone(source: int, target: int) -> bool:
    """Shares the source's blocks where the file system can (btrfs, XFS); a later write to either copies them."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _drop_if_unused(blob: Path) -> bool:
    try:
        if blob.stat().st_nlink > 1:
            return False
        blob.unlink()
    except FileNotFoundError:
        return False
    return True


def _drop_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # Somebody's note is in it.


def _size_of(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _write_whole(file: Path, text: str) -> None:
    """There with all of `text`, or as it was."""
    spare = file.with_name(f".{file.name}.new")
    spare.write_text(text, encoding="utf-8")
    os.rename(spare, file)


def _plan_text(plan: Plan) -> str:
    return json.dumps(
        {
            "source": plan.source.model_dump(mode="json", exclude_none=True),
            "files": [asdict(file) for file in plan.files],
        }
    )


def _plan_from(text: str) -> Plan:
    content = json.loads(text)
    return Plan(ModelSource.model_validate(content["source"]), tuple(PlannedFile(**file) for file in content["files"]))


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)


def fsync_folders(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def storage_errors() -> Iterator[None]:
    """A full disk, a used up quota and a limit on file sizes are the same news to a caller."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageFull(f"the artifact store is full: {error.strerror}") from error
        raise
