"""The files of versions on disk: planned, fetched, verified, kept by their digest, swept.

    <data_dir>/artifacts/
      staging/<uid>/          an import at work: `part` is the file being written, `files/` are complete and verified
      snapshots/<uid>/        the files of one version under their own names, 0444, hard links into blobs
      blobs/sha256/<2>/<64>   one copy of every content; several versions may share it

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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from modelmora.errors import (
    Cancelled,
    ChecksumMismatch,
    FieldViolation,
    InvalidArgument,
    InvalidModelFiles,
    ModelMoraError,
    SourceNotFound,
    SourceUnavailable,
    StorageFull,
    UnsafeFile,
)

from modelmora_registry import metadata
from modelmora_registry.domain import (
    DEFAULT_HUB_REVISION,
    Artifact,
    ArtifactFile,
    HubSource,
    ImportProgress,
    LocalSource,
    ModelSource,
    file_path_problem,
)
from modelmora_registry.hub import Hub

T = TypeVar("T")
ErrorT = TypeVar("ErrorT", bound=ModelMoraError)

CHUNK_BYTES = 4 * 2**20
CANCEL_TIMEOUT_SECONDS = 5.0
MAX_FILES = 10_000
MAX_CONFIG_BYTES = 4 * 2**20
HEADROOM_BYTES = 64 * 2**20
"""Left free on the disk, so that an import does not starve the database beside it."""
_FICLONE = 0x40049409
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SKIPPED_FOLDERS = frozenset({".git", ".cache", "__pycache__"})


@dataclass(frozen=True)
class PlannedFile:
    """A file that an import will take, with what its source promises about it."""

    path: str
    size_bytes: int
    origin: str = ""
    """Resolved path of a local file."""
    sha256: str | None = None
    blob_id: str | None = None


@dataclass(frozen=True)
class Plan:
    """What an import will take; `source` is resolved, a Hub's to a commit."""

    source: ModelSource
    files: tuple[PlannedFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(file.path for file in self.files)


@dataclass(frozen=True)
class Fetched:
    artifact: Artifact
    configs: Mapping[str, Any]
    """Parsed JSON by path, as `metadata.config_paths` asks for it."""


@dataclass
class Progress:
    """Written by the import's thread, read by the loop."""

    total_bytes: int = 0
    done_bytes: int = 0
    current_file: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)
    abort: Callable[[], None] | None = None

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

    def __init__(
        self,
        root: Path,
        *,
        model_roots: Sequence[Path] = (),
        hub: Hub | None = None,
        allow_pickle: bool = False,
        concurrency: int = 2,
    ) -> None:
        self._root = root
        self._model_roots = tuple(model_roots)
        self._hub = hub or Hub()
        self._allow_pickle = allow_pickle
        # Plans have threads of their own: a caller must not wait behind somebody's download.
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="registry-import")
        self._plan_threads = ThreadPoolExecutor(2, thread_name_prefix="registry-plan")
        self._reserved_bytes = 0
        for name in ("staging", "snapshots", "blobs/sha256"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._plan_threads.shutdown(wait=False, cancel_futures=True)

    async def plan(self, source: ModelSource, *, at: str = "source") -> Plan:
        """Looks at the source without taking a byte of the files.

        Raises InvalidArgument at `<at>.local.path` or `<at>.hub`, SourceNotFound, SourceUnavailable, UnsafeFile.
        """
        if source.local is not None:
            return await self._in(self._plan_threads, self._plan_local, source.local, f"{at}.local.path")
        if source.hub is not None:
            return await self._in(self._plan_threads, self._plan_hub, source.hub, f"{at}.hub")
        return Plan(source, ())

    async def check_space(self, need_bytes: int) -> None:
        """Raises StorageFull when `need_bytes` more would not leave the headroom free."""
        await self._in(self._plan_threads, self._check_space, need_bytes)

    async def fetch(self, uid: str, plan: Plan, checksums: Mapping[str, str], progress: Progress) -> Fetched:
        """Takes the files into the snapshot `uid`, each verified against `checksums` and what its source promised.

        Goes on where an earlier attempt stopped. Raises ChecksumMismatch, StorageFull, UnsafeFile, SourceNotFound,
        SourceUnavailable. When it raises or is cancelled, the snapshot does not exist; `discard` removes the rest.
        """
        await self._in(self._plan_threads, self._check_space_of, uid, plan)
        self._reserved_bytes += plan.total_bytes
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
            self._reserved_bytes -= plan.total_bytes

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

    # Planning.

    def _plan_local(self, source: LocalSource, at: str) -> Plan:
        real = os.path.realpath(source.path)
        if not self._is_below_a_root(real):
            raise InvalidArgument.at(at, "lies outside the configured model roots (registry.model_roots)")
        if not os.path.isdir(real):
            raise _at(SourceNotFound, at, f"there is no folder {source.path}")
        try:
            files = tuple(sorted(self._scan(real, "", at), key=lambda file: file.path))
        except OSError as error:
            raise _at(SourceNotFound, at, f"{source.path} cannot be read: {error.strerror}") from None
        if not files:
            raise _at(SourceNotFound, at, f"the folder {source.path} has no files")
        return Plan(ModelSource(local=source), files)

    def _scan(self, folder: str, prefix: str, at: str) -> Iterator[PlannedFile]:
        count = 0
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_symlink() and entry.is_dir():
                    raise _at(UnsafeFile, at, f"{path!r} is a link to a folder")
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in _SKIPPED_FOLDERS:
                        if prefix.count("/") > 30:
                            raise _at(UnsafeFile, at, f"{path!r} is nested too deep")
                        for file in self._scan(entry.path, f"{path}/", at):
                            yield file
                            count += 1
                    continue
                yield self._scan_file(entry.path, path, at)
                count += 1
                if count > MAX_FILES:
                    raise _at(UnsafeFile, at, f"more than {MAX_FILES} files")

    def _scan_file(self, full: str, path: str, at: str) -> PlannedFile:
        self._check_name(path, at)
        real = os.path.realpath(full)
        if not self._is_below_a_root(real):
            raise _at(UnsafeFile, at, f"{path!r} is a link that leaves the model roots")
        found = os.stat(real)
        if not stat.S_ISREG(found.st_mode):
            raise _at(UnsafeFile, at, f"{path!r} is no ordinary file")
        return PlannedFile(path, found.st_size, origin=real)

    def _plan_hub(self, source: HubSource, at: str) -> Plan:
        snapshot = self._hub.snapshot(source.repo_id, source.commit or source.revision or DEFAULT_HUB_REVISION)
        if source.commit and snapshot.commit != source.commit:
            raise SourceUnavailable(f"the Hub answered with commit {snapshot.commit} for {source.commit}")
        by_path = {file.path: file for file in snapshot.files}
        for path in by_path:
            if problem := file_path_problem(path):
                raise _at(UnsafeFile, at, f"{path!r} {problem}")
        wanted = metadata.wanted_of(by_path)
        if not wanted:
            raise _at(SourceNotFound, at, f"{source.repo_id} has no files to take")
        if len(wanted) > MAX_FILES:
            raise _at(UnsafeFile, at, f"more than {MAX_FILES} files")
        for path in wanted:
            self._check_name(path, at)
        return Plan(
            ModelSource(hub=source.model_copy(update={"commit": snapshot.commit})),
            tuple(
                PlannedFile(path, found.size_bytes, sha256=found.sha256, blob_id=found.blob_id)
                for path in wanted
                if (found := by_path[path])
            ),
        )

    def _check_name(self, path: str, at: str) -> None:
        if problem := file_path_problem(path):
            raise _at(UnsafeFile, at, f"{path!r} {problem}")
        if not self._allow_pickle and (problem := metadata.pickle_problem(path)):
            raise _at(UnsafeFile, at, f"{path!r}: {problem}")

    def _is_below_a_root(self, real: str) -> bool:
        roots = [os.path.realpath(root) for root in self._model_roots]
        return any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots)

    def _check_space(self, need_bytes: int) -> None:
        found = os.statvfs(self._root)
        free_bytes = max(0, found.f_bavail * found.f_frsize - self._reserved_bytes - HEADROOM_BYTES)
        if need_bytes > free_bytes:
            raise StorageFull(
                f"the import needs {need_bytes} bytes and {free_bytes} are free for it",
                need_bytes=need_bytes,
                free_bytes=free_bytes,
            )

    def _check_space_of(self, uid: str, plan: Plan) -> None:
        have = [file for folder in ("staging", "snapshots") for file in _files_below(self._root / folder / uid)]
        self._check_space(max(0, plan.total_bytes - sum(file.stat().st_size for file in have)))

    # Fetching.

    def _fetch(self, uid: str, plan: Plan, checksums: Mapping[str, str], progress: Progress) -> Fetched:
        staging, snapshot = self._root / "staging" / uid, self.snapshot_path(uid)
        progress.total_bytes, progress.done_bytes = plan.total_bytes, 0
        with _storage_errors():
            staging.mkdir(exist_ok=True)
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
            configs = self._read_configs(staging / "files", plan.paths)
            _sync_folders(staging / "files")
            progress.check()
            os.rename(staging / "files", snapshot)
            _sync_folder(snapshot.parent)
            shutil.rmtree(staging, ignore_errors=True)
        return Fetched(Artifact.of(str(snapshot), files), configs)

    def _fetch_file(
        self, staging: Path, plan: Plan, planned: PlannedFile, checksum: str | None, progress: Progress
    ) -> ArtifactFile:
        target, part = staging / "files" / planned.path, staging / "part"
        target.parent.mkdir(parents=True, exist_ok=True)
        # An earlier attempt left it, or its content came with another version: believed after one more look.
        if target.exists() or (planned.sha256 and self._link_blob(planned.sha256, planned.size_bytes, target)):
            digests = _Digests(planned)
            _hash_file(target, digests, progress)
            if digests.problem(checksum) is None:
                return digests.file()
            target.unlink()
        if plan.source.hub is None:
            part.unlink(missing_ok=True)
            digests = self._copy(planned, part, progress)
            problem = digests.problem(checksum)
        else:
            went_on = part.exists()
            digests = self._download(plan.source.hub, planned, part, progress)
            problem = digests.problem(checksum)
            if problem and went_on:  # What a crash left may be torn.
                part.unlink()
                digests = self._download(plan.source.hub, planned, part, progress)
                problem = digests.problem(checksum)
        if problem:
            part.unlink()
            raise ChecksumMismatch(
                f"{planned.path}: {problem}", fields=[FieldViolation(planned.path, problem)], file=planned.path
            )
        os.chmod(part, 0o444)
        os.rename(part, target)
        self._keep_blob(target, digests.file(), staging / "link")
        return digests.file()

    def _copy(self, planned: PlannedFile, part: Path, progress: Progress) -> _Digests:
        digests = _Digests(planned)
        try:
            source = os.open(planned.origin, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise SourceNotFound(f"{planned.path} cannot be read: {error.strerror}", file=planned.path) from None
        try:
            # What was looked at may have been swapped for a link since.
            if not stat.S_ISREG(os.fstat(source).st_mode) or not self._is_below_a_root(
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

    def _download(self, source: HubSource, planned: PlannedFile, part: Path, progress: Progress) -> _Digests:
        """Downloads into `part`, or goes on where it ends: what is there is hashed again, the rest asked for."""
        digests, before = _Digests(planned), progress.done_bytes
        if part.exists():
            _hash_file(part, digests, progress)
        if digests.size_bytes >= planned.size_bytes:
            digests, progress.done_bytes = _Digests(planned), before
        with self._hub.download(source.repo_id, source.commit, planned.path, offset=digests.size_bytes) as download:
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
        if not self._allow_pickle and not digests.size_bytes and metadata.looks_like_pickle(planned.path, chunk[:8]):
            raise UnsafeFile(f"{planned.path!r} is a pickle or a zip, whatever its name says", file=planned.path)
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

    def _read_configs(self, folder: Path, paths: Collection[str]) -> Mapping[str, Any]:
        configs: dict[str, Any] = {}
        for path in metadata.config_paths(paths):
            file = folder / path
            if file.stat().st_size > MAX_CONFIG_BYTES:
                continue
            try:
                configs[path] = json.loads(file.read_bytes())
            except (ValueError, RecursionError):
                if path == metadata.MODULES_FILE:
                    raise InvalidModelFiles(f"{path} is not JSON", file=path) from None
        if not self._allow_pickle:
            metadata.check_modules(configs.get(metadata.MODULES_FILE))
        metadata.check_weights(configs, paths)
        return configs

    # Blobs and snapshots.

    def _blob(self, sha256: str) -> Path:
        digest = sha256.removeprefix("sha256:")
        return self._root / "blobs" / "sha256" / digest[:2] / digest

    def _link_blob(self, sha256: str, size_bytes: int, target: Path) -> bool:
        blob = self._blob(sha256)
        try:
            if blob.stat().st_size != size_bytes:
                return False
            os.link(blob, target)
        except OSError:
            return False
        return True

    def _keep_blob(self, target: Path, file: ArtifactFile, spare: Path) -> None:
        """Makes `target` the blob of its content, or replaces it by a link to the blob that is there.

        A blob is looked at before it is shared: one that rotted on the disk makes way for the fresh copy.
        """
        blob = self._blob(file.sha256)
        spare.unlink(missing_ok=True)
        try:
            blob.parent.mkdir(exist_ok=True)
            try:
                os.link(target, blob)
            except FileExistsError:
                if self._link_blob(file.sha256, file.size_bytes, spare) and _sha256_of(spare) == file.sha256:
                    os.rename(spare, target)
                    return
                spare.unlink(missing_ok=True)
                os.link(target, spare)
                os.rename(spare, blob)
        except OSError:
            return  # A file system without hard links: the snapshot keeps the only copy.

    def _discard(self, uid: str, digests: Collection[str] | None) -> None:
        shutil.rmtree(self._root / "staging" / uid, ignore_errors=True)
        shutil.rmtree(self.snapshot_path(uid), ignore_errors=True)
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


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


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


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)


def _sync_folders(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def _storage_errors() -> Iterator[None]:
    """A full disk, a used up quota and a limit on file sizes are the same news to a caller."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageFull(f"the artifact store is full: {error.strerror}") from error
        raise


def _at(cls: type[ErrorT], field: str, problem: str) -> ErrorT:
    return cls(problem, fields=[FieldViolation(field, problem)])
