"""Where the files of a locked version are taken from: contents that are here, a mirror, the source named in the lock.

Whatever it is, the lock says what each file must be, so a mirror needs no trust. It is a folder below a model root or a
URL, and holds a version in one of these ways, looked for in this order:

    <64 digits of the artifact's digest>/<path>          a folder for each artifact
    models--<org>--<repo>/snapshots/<commit>/<path>      a cache of the Hub (a folder only)
    <org>/<repo>/resolve/<commit>/<path>                 the Hub's routes (a URL only)
    blobs/sha256/<2 digits>/<64 digits>                  an artifact store of ModelMora (a folder only)
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace

from modelmora.errors import InvalidArgument, SourceNotFound
from modelmora_runtime import protomap

from modelmora_registry.domain import ArtifactFile, EmptySource, LocalSource, ModelSource, UrlSource
from modelmora_registry.locks import LockedModel
from modelmora_registry.sources import Plan, PlannedFile, Sources


def check(mirror: str) -> None:
    """Raises InvalidArgument at `mirror`."""
    if "://" in mirror:
        protomap.parse({"url": mirror}, UrlSource, at="mirror")
    elif mirror and not mirror.startswith("/"):
        raise InvalidArgument.at("mirror", "must be an absolute path below a model root, or a URL")


def plan(sources: Sources, is_here: Callable[[ArtifactFile], bool], locked: LockedModel, mirror: str) -> Plan:
    """Exactly the files of the lock. Blocks. Raises SourceNotFound, naming a file, and what the source raises."""
    if all(map(is_here, locked.files)):
        return Plan(locked.source or ModelSource(empty=EmptySource()), tuple(map(_planned, locked.files)))
    if not mirror:
        if locked.source is None:
            raise SourceNotFound("the lock names no source; name a mirror")
        return _as_locked(sources.plan(locked.source, "source"), locked)
    if "://" in mirror:
        return _plan_url(sources, locked, mirror.rstrip("/"))
    return _plan_folder(sources, locked, mirror)


def _plan_folder(sources: Sources, locked: LockedModel, mirror: str) -> Plan:
    real = os.path.realpath(mirror)
    if not sources.is_below_a_root(real):
        raise InvalidArgument.at("mirror", "lies outside the configured model roots (registry.model_roots)")
    planned = []
    for file in locked.files:
        origin = next(
            (found for path in _candidates(locked, file) if (found := _file(sources, f"{real}/{path}"))), None
        )
        if origin is None:
            raise SourceNotFound(f"the mirror has no {file.path}", file=file.path)
        planned.append(_planned(file, origin=origin))
    return Plan(ModelSource(local=LocalSource(path=real)), tuple(planned))


def _candidates(locked: LockedModel, file: ArtifactFile) -> Iterator[str]:
    yield f"{_digits(locked.digest)}/{file.path}"
    if locked.source is not None and (hub := locked.source.hub) is not None:
        yield f"models--{hub.repo_id.replace('/', '--')}/snapshots/{hub.commit}/{file.path}"
    digits = _digits(file.sha256)
    yield f"blobs/sha256/{digits[:2]}/{digits}"


def _file(sources: Sources, path: str) -> str | None:
    """The resolved path of an ordinary file that lies below a model root."""
    real = os.path.realpath(path)
    try:
        found = os.stat(real)
    except OSError:
        return None
    return real if stat.S_ISREG(found.st_mode) and sources.is_below_a_root(real) else None


def _plan_url(sources: Sources, locked: LockedModel, mirror: str) -> Plan:
    paths = tuple(file.path for file in locked.files)
    urls = [f"{mirror}/{_digits(locked.digest)}"]
    if locked.source is not None and (hub := locked.source.hub) is not None and not mirror.startswith("s3:"):
        urls.append(f"{mirror}/{hub.repo_id}/resolve/{hub.commit}")
    missing: SourceNotFound | None = None
    for url in urls:
        try:
            return _as_locked(sources.plan(ModelSource(url=UrlSource(url=url, files=paths)), "mirror"), locked)
        except SourceNotFound as error:
            missing = missing or error
    assert missing is not None
    raise missing


def _as_locked(found: Plan, locked: LockedModel) -> Plan:
    """The files of the lock, each as the source has it now. Sizes and digests are the lock's."""
    by_path = {file.path: file for file in found.files}
    for file in locked.files:
        if file.path not in by_path:
            raise SourceNotFound(f"the source has no {file.path}", file=file.path)
    files = [
        replace(there, size_bytes=file.size_bytes, sha256=file.sha256, blob_id=None)
        for file in locked.files
        if (there := by_path[file.path])
    ]
    return Plan(found.source, tuple(files))


def _planned(file: ArtifactFile, *, origin: str = "") -> PlannedFile:
    return PlannedFile(file.path, file.size_bytes, origin=origin, sha256=file.sha256)


def _digits(digest: str) -> str:
    return digest.removeprefix("sha256:")
