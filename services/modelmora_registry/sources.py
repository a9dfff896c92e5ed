"""Where files come from: what a source has, pinned to what it has now, and the bytes of one file of it.

A local folder lies below a model root; a Hub repository is pinned by its commit, an object by its VersionId where the
bucket keeps versions and by its ETag, a file of an HTTP server by its ETag or the time of its last change. `SHA256SUMS`
in a folder is a promise about the files beside it and no file of the model. Everything here blocks and runs in the
registry's file threads.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote

from modelmora.errors import (
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    InvalidModelFiles,
    ModelMoraError,
    SourceNotFound,
    SourceUnavailable,
    UnsafeFile,
)

from modelmora_registry import metadata
from modelmora_registry.domain import (
    DEFAULT_HUB_REVISION,
    MAX_SOURCE_FILES,
    HubSource,
    LocalSource,
    ModelSource,
    UrlSource,
    file_path_problem,
    file_paths_problem,
)
from modelmora_registry.hub import Hub
from modelmora_registry.s3 import S3
from modelmora_registry.web import Asked, Download, Web

ErrorT = TypeVar("ErrorT", bound=ModelMoraError)
T = TypeVar("T")

SUMS_FILE = "SHA256SUMS"
MAX_SUMS_BYTES = 4 * 2**20
MAX_CONFIG_BYTES = 4 * 2**20
HEADS_AT_ONCE = 8
HTTP_HINT = "a server that wants a token needs it in registry.http_token_files"
_SKIPPED_FOLDERS = frozenset({".git", ".cache", "__pycache__"})
_SUM = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")


@dataclass(frozen=True)
class PlannedFile:
    """A file that an import will take, with what its source promises about it."""

    path: str
    size_bytes: int
    origin: str = ""
    """Resolved path of a local file."""
    sha256: str | None = None
    blob_id: str | None = None
    pin: str = ""
    """ETag or time of the last change at the source."""
    version: str = ""
    """VersionId of an object, where its bucket keeps versions."""


@dataclass(frozen=True)
class Plan:
    """What an import will take; `source` is resolved, a Hub's to a commit."""

    source: ModelSource
    files: tuple[PlannedFile, ...]
    left_out: tuple[str, ...] = ()
    """What the source has beside them, see `metadata.wanted_of`."""

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(file.path for file in self.files)

    @property
    def is_remote(self) -> bool:
        return self.source.hub is not None or self.source.url is not None


def local_config(plan: Plan) -> Any:
    """The parsed `config.json` of a folder on this machine; None for other sources, and where there is none to read."""
    file = next((file for file in plan.files if file.path == metadata.CONFIG_FILE), None)
    if file is None or not file.origin or plan.is_remote or file.size_bytes > MAX_CONFIG_BYTES:
        return None
    try:
        return json.loads(Path(file.origin).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None  # the import will say what is wrong with it


class Sources:
    """The sources as the settings allow them. `allow_pickle`: also weights that can run code when they are read."""

    def __init__(
        self,
        *,
        model_roots: Sequence[Path] = (),
        hub: Hub | None = None,
        web: Web | None = None,
        s3: S3 | None = None,
        allow_pickle: bool = False,
    ) -> None:
        self.web = web or Web()
        self.hub = hub or Hub(self.web)
        self.allow_pickle = allow_pickle
        self._s3 = s3 or S3(self.web)
        self._model_roots = tuple(model_roots)

    def close(self) -> None:
        self.web.close()

    def plan(self, source: ModelSource, at: str) -> Plan:
        """Looks at the source without taking a byte of the files.

        Raises InvalidArgument at `<at>.local.path` or `<at>.hub`, SourceNotFound, SourceUnavailable, UnsafeFile.
        """
        if source.local is not None:
            return self._plan_local(source.local, f"{at}.local.path")
        if source.hub is not None:
            return self._plan_hub(source.hub, f"{at}.hub")
        if source.url is not None:
            return self._plan_url(source.url, f"{at}.url.url")
        return Plan(source, ())

    def download(self, source: ModelSource, file: PlannedFile, *, offset: int) -> AbstractContextManager[Download]:
        """The bytes of one file of a plan, from `offset` on if the source can."""
        if source.hub is not None:
            return self.hub.download(source.hub.repo_id, source.hub.commit, file.path, offset=offset)
        assert source.url is not None
        if source.url.is_s3:
            key = f"{source.url.path}/{file.path}" if source.url.path else file.path
            return self._s3.open(source.url.host, key, offset=offset, etag=file.pin, version=file.version)
        return self.web.open(_url_of(source.url, file.path), _asked(source.url, file.path), offset=offset, pin=file.pin)

    def is_below_a_root(self, real: str) -> bool:
        roots = [os.path.realpath(root) for root in self._model_roots]
        return any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots)

    # Local folders.

    def _plan_local(self, source: LocalSource, at: str) -> Plan:
        real = os.path.realpath(source.path)
        if not self.is_below_a_root(real):
            raise InvalidArgument.at(at, "lies outside the configured model roots (registry.model_roots)")
        if not os.path.isdir(real):
            raise error_at(SourceNotFound, at, f"there is no folder {source.path}")
        try:
            there = dict(self._scan(real, "", at))
            files = [self._scan_file(there[path], path, at) for path in metadata.wanted_of(there)]
            sums = _local_sums(files)
        except OSError as error:
            raise error_at(SourceNotFound, at, f"{source.path} cannot be read: {error.strerror}") from None
        return self._planned(ModelSource(local=source), files, sums, at, there=there)

    def _scan(self, folder: str, prefix: str, at: str) -> Iterator[tuple[str, str]]:
        """Relative and absolute path of whatever is no folder."""
        count = 0
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_symlink() and entry.is_dir():
                    raise error_at(UnsafeFile, at, f"{path!r} is a link to a folder")
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in _SKIPPED_FOLDERS:
                        if prefix.count("/") > 30:
                            raise error_at(UnsafeFile, at, f"{path!r} is nested too deep")
                        for file in self._scan(entry.path, f"{path}/", at):
                            yield file
                            count += 1
                    continue
                yield path, entry.path
                count += 1
                if count > MAX_SOURCE_FILES:
                    raise error_at(UnsafeFile, at, f"more than {MAX_SOURCE_FILES} files")

    def _scan_file(self, full: str, path: str, at: str) -> PlannedFile:
        self._check_name(path, at)
        real = os.path.realpath(full)
        if not self.is_below_a_root(real):
            raise error_at(UnsafeFile, at, f"{path!r} is a link that leaves the model roots")
        found = os.stat(real)
        if not stat.S_ISREG(found.st_mode):
            raise error_at(UnsafeFile, at, f"{path!r} is no ordinary file")
        return PlannedFile(path, found.st_size, origin=real)

    # The Hub.

    def _plan_hub(self, source: HubSource, at: str) -> Plan:
        snapshot = self.hub.snapshot(source.repo_id, source.commit or source.revision or DEFAULT_HUB_REVISION)
        if source.commit and snapshot.commit != source.commit:
            raise SourceUnavailable(f"the Hub answered with commit {snapshot.commit} for {source.commit}")
        if problem := file_paths_problem([file.path for file in snapshot.files]):
            raise error_at(UnsafeFile, at, problem)
        by_path = {file.path: file for file in snapshot.files}
        files = [
            PlannedFile(path, found.size_bytes, sha256=found.sha256, blob_id=found.blob_id)
            for path in metadata.wanted_of(by_path)
            if (found := by_path[path])
        ]
        resolved = ModelSource(hub=source.model_copy(update={"commit": snapshot.commit}))
        return self._planned(resolved, files, {}, at, there=by_path)

    # Folders of S3-compatible stores and HTTP servers.

    def _plan_url(self, source: UrlSource, at: str) -> Plan:
        if source.is_s3:
            files, sums, there = self._list_s3(source, at)
        else:
            try:
                self.web.check_host(source.url)
            except FailedPrecondition as error:
                raise InvalidArgument.at(at, error.message) from None
            files, sums, there = self._list_http(source)
        versions = {file.path: file.version for file in files if file.version}
        resolved = source.model_copy(update={"object_versions": MappingProxyType(versions)})
        return self._planned(ModelSource(url=resolved), files, sums, at, there=there)

    def _list_s3(self, source: UrlSource, at: str) -> tuple[list[PlannedFile], Mapping[str, str], Collection[str]]:
        there: Collection[str] = source.files
        if not there:
            there = self._s3.list(source.host, source.path, limit=MAX_SOURCE_FILES)
            if problem := file_paths_problem(list(there)):
                raise error_at(UnsafeFile, at, problem)
        # What was pinned is there by its VersionId, also when it was deleted since, or other weights put beside it.
        paths = source.files or sorted({*metadata.wanted_of(there), *source.object_versions})
        if len(paths) > MAX_SOURCE_FILES:
            raise error_at(UnsafeFile, at, f"more than {MAX_SOURCE_FILES} files")

        def tell(path: str) -> PlannedFile:
            key = f"{source.path}/{path}" if source.path else path
            told = self._s3.tell(source.host, key, version=source.object_versions.get(path, ""))
            return PlannedFile(path, told.size_bytes, pin=told.etag, version=told.version)

        files = _at_once(tell, paths)
        if source.files:
            return files, {}, there
        sums: Mapping[str, str] = {}
        for file in files:
            if file.path == SUMS_FILE and file.size_bytes <= MAX_SUMS_BYTES:
                with self.download(ModelSource(url=source), file, offset=0) as download:
                    sums = parse_sums(b"".join(download.chunks()))
        return files, sums, there

    def _list_http(self, source: UrlSource) -> tuple[list[PlannedFile], Mapping[str, str], Collection[str]]:
        sums: Mapping[str, str] = {}
        paths: Sequence[str] = source.files
        if not paths:
            asked = _asked(source, SUMS_FILE)
            sums = parse_sums(self.web.read(_url_of(source, SUMS_FILE), asked, max_bytes=MAX_SUMS_BYTES))
            paths = metadata.wanted_of(list(sums))
        told = _at_once(lambda path: self.web.tell(_url_of(source, path), _asked(source, path)), paths)
        files = [PlannedFile(path, each.size_bytes, pin=each.pin) for path, each in zip(paths, told, strict=True)]
        return files, sums, sums or paths

    # All of them.

    def _planned(
        self,
        source: ModelSource,
        files: Sequence[PlannedFile],
        sums: Mapping[str, str],
        at: str,
        *,
        there: Collection[str],
    ) -> Plan:
        """Of all that is `there` these files, with what `sums` promises of them.

        Raises SourceNotFound, UnsafeFile, InvalidModelFiles.
        """
        taken = [file for file in files if file.path != SUMS_FILE]
        if not taken:
            raise error_at(SourceNotFound, at, "there are no files to take")
        if len(taken) > MAX_SOURCE_FILES:
            raise error_at(UnsafeFile, at, f"more than {MAX_SOURCE_FILES} files")
        for file in taken:
            self._check_name(file.path, at)
        return Plan(
            source,
            tuple(replace(file, sha256=file.sha256 or sums.get(file.path)) for file in taken),
            left_out=tuple(sorted(set(there) - {file.path for file in files})),
        )

    def _check_name(self, path: str, at: str) -> None:
        if problem := file_path_problem(path):
            raise error_at(UnsafeFile, at, f"{path!r} {problem}")
        if not self.allow_pickle and (problem := metadata.pickle_problem(path)):
            raise error_at(UnsafeFile, at, f"{path!r}: {problem}")


def parse_sums(content: bytes) -> Mapping[str, str]:
    """Path to `sha256:…` from what `sha256sum` writes. Raises InvalidModelFiles with the line, UnsafeFile."""
    sums: dict[str, str] = {}
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise InvalidModelFiles(f"{SUMS_FILE} is not text", file=SUMS_FILE) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = _SUM.fullmatch(line)
        if found is None or found[2] in sums:
            raise InvalidModelFiles(f"line {number} of {SUMS_FILE} is none, or names a file again", file=SUMS_FILE)
        sums[found[2]] = f"sha256:{found[1].lower()}"
    if problem := file_paths_problem(list(sums)):
        raise UnsafeFile(f"{SUMS_FILE}: {problem}", file=SUMS_FILE)
    return sums


def render_sums(sums: Iterable[tuple[str, str]]) -> str:
    """The other way round, of (path, `sha256:…`)."""
    return "".join(f"{digest.removeprefix('sha256:')}  {path}\n" for path, digest in sums)


def error_at(cls: type[ErrorT], field: str, problem: str) -> ErrorT:
    return cls(problem, fields=[FieldViolation(field, problem)])


def _local_sums(files: Sequence[PlannedFile]) -> Mapping[str, str]:
    for file in files:
        if file.path == SUMS_FILE and file.size_bytes <= MAX_SUMS_BYTES:
            return parse_sums(Path(file.origin).read_bytes())
    return {}


def _at_once(ask: Callable[[str], T], things: Sequence[str]) -> list[T]:
    with ThreadPoolExecutor(HEADS_AT_ONCE, thread_name_prefix="registry-heads") as threads:
        return list(threads.map(ask, things))


def _url_of(source: UrlSource, path: str) -> str:
    return f"{source.url.rstrip('/')}/{quote(path)}"


def _asked(source: UrlSource, path: str) -> Asked:
    return Asked(source.host, f"file {path}", HTTP_HINT, {"host": source.host, "file": path})
