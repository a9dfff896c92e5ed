"""Versions copied to another registry, and what the other side has of them.

A folder gets the files of a version and SHA256SUMS, all at once: they are written beside it, read back, and then take
its place in one step. A folder with anything in it that no export put there is left alone, and so is a Hub repository;
else that gets one commit, which also takes away what an earlier export put there. What would be replaced or taken away
and is not as an export left it is named and stays, unless the caller asks to overwrite it. Everything blocks and runs
in a thread of its own; one export at a time.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from modelmora.errors import ChecksumMismatch, FailedPrecondition, InvalidArgument, SourceNotFound

from modelmora_registry import metadata
from modelmora_registry.artifacts import fsync_folders, sha256_of, storage_errors
from modelmora_registry.domain import DEFAULT_HUB_REVISION, ArtifactFile, ModelVersion
from modelmora_registry.links import ExternalLink, LinkDraft, RegistryType, differences, named
from modelmora_registry.sources import SUMS_FILE, Sources, parse_sums, render_sums

T = TypeVar("T")

CHUNK_BYTES = 4 * 2**20
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_OVERWRITES = "`overwrite` replaces such files"
_GIT_BYTES = 16 * 2**20
"""Larger files no Hub keeps in git itself."""
_OUTSIDE = "the folder lies outside registry.model_roots and registry.export_roots"


@dataclass(frozen=True)
class Look:
    """What the other side has: how it differs from what is here (empty: it does not), and what it tells of itself."""

    differences: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What an export to a Hub repository will do there; of a folder only `files`."""

    files: tuple[str, ...]
    overwrite: bool = False
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of those files: what the Hub may tell of each, with spaces between."""
    deleted: tuple[str, ...] = ()
    """Files of earlier exports that this version does not have."""
    commit: str = ""
    """What all this was planned for; empty: there is no repository yet."""


class Exports:
    def __init__(self, sources: Sources, export_roots: Sequence[Path]) -> None:
        self._sources = sources
        self._export_roots = tuple(export_roots)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry-export")
        self._looks = ThreadPoolExecutor(2, thread_name_prefix="registry-look")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._looks.shutdown(wait=False, cancel_futures=True)

    async def check_place(self, link: LinkDraft, at: str) -> None:
        """Raises InvalidArgument at `at` for a folder that lies outside the roots."""
        if link.registry_type is RegistryType.FOLDER:
            real = await _in(self._looks, os.path.realpath, link.external_id)
            if not (self._may_write(real) or self._sources.is_below_a_root(real)):
                raise InvalidArgument.at(at, _OUTSIDE)

    async def look(self, link: ExternalLink, version: ModelVersion) -> Look:
        """Compares a version with the other side. SourceUnavailable when that does not answer."""
        return await _in(self._looks, self._look, link, version)

    async def plan(self, link: ExternalLink, version: ModelVersion, *, overwrite: bool) -> Plan:
        """Writes nothing. FailedPrecondition where the version would not be the only one there, or what no export put
        there would be lost; SourceUnavailable."""
        return await _in(self._looks, self._plan, link, version, overwrite)

    async def export(self, link: ExternalLink, version: ModelVersion, plan: Plan) -> None:
        """Copies a version there and reads back what was written. FailedPrecondition, ChecksumMismatch, StorageFull,
        SourceUnavailable."""
        await _in(self._thread, self._export, link, version, plan)

    async def url(self, link: ExternalLink) -> str:
        """Where people see it."""
        if link.registry_type is RegistryType.FOLDER:
            return Path(link.external_id).as_uri()
        return await _in(self._looks, self._sources.hub.page, link.external_id)

    def _look(self, link: ExternalLink, version: ModelVersion) -> Look:
        assert version.artifact is not None
        here = {file.path: file for file in version.artifact.files}
        if link.registry_type is RegistryType.FOLDER:
            folder = os.path.realpath(link.external_id)
            if not (self._may_write(folder) or self._sources.is_below_a_root(folder)):
                raise FailedPrecondition(_OUTSIDE)
            return _look_at_folder(Path(folder), here)
        try:
            snapshot = self._sources.hub.snapshot(link.external_id, DEFAULT_HUB_REVISION)
        except SourceNotFound as error:
            return Look(error.message)
        there = {file.path: file for file in snapshot.files}
        root = Path(version.artifact.path)
        changed = [
            path
            for path, file in here.items()
            if (found := there.get(path))
            and (found.sha256 or found.blob_id) != (file.sha256 if found.sha256 else _blob_id(root / path))
        ]
        missing = [path for path in here if path not in there]
        extra = [path for path in metadata.wanted_of(there) if path not in here]
        return Look(differences(changed, missing, extra), {**snapshot.metadata, "commit": snapshot.commit})

    def _plan(self, link: ExternalLink, version: ModelVersion, overwrite: bool) -> Plan:
        if version.artifact is None or not version.artifact.files:
            raise FailedPrecondition(f"{version.name} has no files to export", version=version.name)
        here = tuple(file.path for file in version.artifact.files)
        if link.registry_type is RegistryType.FOLDER:
            return Plan(here, overwrite)
        self._sources.hub.check_writable()
        root = Path(version.artifact.path)
        digests = {file.path: _digests(root, file) for file in version.artifact.files}
        try:
            snapshot = self._sources.hub.snapshot(link.external_id, DEFAULT_HUB_REVISION)
        except SourceNotFound:
            return Plan(here, overwrite, digests)
        there = {file.path: file.sha256 or file.blob_id or "" for file in snapshot.files}
        deleted = superseded(link.external_id, there.keys(), here, link.exported_files)
        if not overwrite:
            check_known(link.external_id, there, digests, link.exported_files, link.exported_digests)
        return Plan(here, overwrite, digests, deleted, snapshot.commit)

    def _export(self, link: ExternalLink, version: ModelVersion, plan: Plan) -> None:
        artifact = version.artifact
        assert artifact is not None
        if link.registry_type is RegistryType.FOLDER:
            self._export_folder(Path(link.external_id), Path(artifact.path), artifact.files, plan.overwrite)
            return
        self._sources.hub.upload(
            link.external_id,
            Path(artifact.path),
            plan.files,
            deleted=plan.deleted,
            parent=plan.commit,
            message=f"{version.version} from ModelMora",
        )
        if found := self._look(link, version).differences:
            raise ChecksumMismatch(f"the Hub has something else than what was sent: {found}")

    def _export_folder(self, target: Path, snapshot: Path, files: Sequence[ArtifactFile], overwrite: bool) -> None:
        parent = os.path.realpath(target.parent)
        target = Path(parent, target.name)
        if target.is_symlink() or not target.name or not self._may_write(str(target)):
            raise FailedPrecondition(f"{target} lies outside the configured export roots (registry.export_roots)")
        check_replaceable(target, overwrite)
        spare = target.with_name(f".{target.name}.modelmora")
        shutil.rmtree(spare, ignore_errors=True)  # Of an export that was killed; there is one at a time.
        try:
            with storage_errors():
                spare.mkdir(parents=True)
                for file in files:
                    _copy_verified(snapshot / file.path, spare / file.path, file)
                sums = render_sums((file.path, file.sha256) for file in files)
                (spare / SUMS_FILE).write_text(sums, encoding="utf-8")
                fsync_folders(spare)
                _take_the_place(spare, target)
        except OSError as error:
            raise FailedPrecondition(f"{target} cannot be written: {error.strerror}") from error
        finally:
            shutil.rmtree(spare, ignore_errors=True)

    def _may_write(self, real: str) -> bool:
        roots = [os.path.realpath(root).rstrip("/") + "/" for root in self._export_roots]
        return any(real.startswith(root) for root in roots)


async def _in(threads: ThreadPoolExecutor, function: Callable[..., T], *arguments: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)


def _look_at_folder(folder: Path, here: Mapping[str, ArtifactFile]) -> Look:
    if not folder.is_dir():
        return Look(f"there is no folder {folder}")
    there = {
        os.path.relpath(os.path.join(parent, name), folder) for parent, _, names in os.walk(folder) for name in names
    } - {SUMS_FILE}
    changed = [
        path
        for path in here.keys() & there
        if (folder / path).stat().st_size != here[path].size_bytes or sha256_of(folder / path) != here[path].sha256
    ]
    return Look(differences(changed, list(here.keys() - there), list(there - here.keys())))


def superseded(repo_id: str, there: Set[str], here: Collection[str], exported: Collection[str]) -> tuple[str, ...]:
    """Which files of a repository go when those that are here come. Raises FailedPrecondition when others would stay
    that no export has put there and that an import would take for the version's."""
    gone = (set(exported) & there) - set(here)
    after = (there - gone) | set(here)
    if strangers := [path for path in metadata.wanted_of(after) if path not in here]:
        raise FailedPrecondition(
            f"{repo_id} holds what no export has put there: {named(strangers)}; nothing was written"
        )
    return tuple(sorted(gone))


def check_known(
    repo_id: str,
    there: Mapping[str, str],
    here: Mapping[str, str],
    exported: Collection[str],
    exported_digests: Mapping[str, str],
) -> None:
    """Raises FailedPrecondition when an export would replace or delete a file that is not as an export left it.
    `there`: what the Hub tells of each file; `here` and `exported_digests`: what it may tell of ours."""
    strangers, changed = [], []
    for path, digest in there.items():
        if digest in here.get(path, "").split():
            continue  # It stays as it is.
        if path not in exported:
            strangers += [path] if path in here else []
        elif path in exported_digests and digest not in exported_digests[path].split():
            changed.append(path)
    found = [
        f"{named(paths)} {what}"
        for paths, what in ((strangers, "came from no export"), (changed, "was changed there since its export"))
        if paths
    ]
    if found:
        raise FailedPrecondition(f"{repo_id}: {'; '.join(found)}; nothing was written, {_OVERWRITES}")


def check_replaceable(target: Path, overwrite: bool = False) -> None:
    """Raises FailedPrecondition when there is anything in the way that no export has put there, or, unless `overwrite`,
    that is not as it was put there."""
    if not target.exists():
        return
    if not target.is_dir():
        raise FailedPrecondition(f"{target} is no folder")
    there = {
        os.path.relpath(os.path.join(parent, name), target) for parent, _, names in os.walk(target) for name in names
    }
    try:
        sums = parse_sums((target / SUMS_FILE).read_bytes()) if there else {}
    except OSError:
        sums = {}
    ours = sums.keys() | {SUMS_FILE} if sums else set()
    if strangers := sorted(there - ours):
        raise FailedPrecondition(f"{target} holds {strangers[0]}, which no export has put there; name another folder")
    changed = [path for path in there & sums.keys() if sha256_of(target / path) != sums[path]]
    if changed and not overwrite:
        wrong = f"{named(changed)} was changed there since its export"
        raise FailedPrecondition(f"{target}: {wrong}; nothing was written, {_OVERWRITES}")


def _copy_verified(source: Path, target: Path, file: ArtifactFile) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb", buffering=0) as reading, open(target, "xb", buffering=0) as writing:
        while chunk := reading.read(CHUNK_BYTES):
            view = memoryview(chunk)
            while view:
                view = view[writing.write(view) :]
        os.fsync(writing.fileno())
    if target.stat().st_size != file.size_bytes or sha256_of(target) != file.sha256:
        raise ChecksumMismatch(f"{file.path} is not what was verified at its import", file=file.path)


def _take_the_place(spare: Path, target: Path) -> None:
    """`spare` becomes `target` in one step; what was there is in `spare` afterwards."""
    if not target.exists():
        os.rename(spare, target)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(spare), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return
    if (number := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OSError(number, os.strerror(number))
    # A file system that cannot exchange: there is a moment without either.
    old = spare.with_name(f"{spare.name}.old")
    os.rename(target, old)
    os.rename(spare, target)
    os.rename(old, spare)


def _digests(root: Path, file: ArtifactFile) -> str:
    """What a Hub may tell of a file, which keeps it as it chooses."""
    return f"{file.sha256} {_blob_id(root / file.path)}" if file.size_bytes <= _GIT_BYTES else file.sha256


def _blob_id(file: Path) -> str:
    """Git's name of a file's content."""
    content = file.read_bytes()  # Only of files that a Hub keeps in git itself, which are small.
    return hashlib.sha1(b"blob %d\x00" % len(content) + content, usedforsecurity=False).hexdigest()
