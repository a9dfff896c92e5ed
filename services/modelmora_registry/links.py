"""Links between a model and its counterpart in another registry, and how the two come to agree. Pure.

    never_synced ── imported, exported or found equal ──► synced ⇄ out_of_sync

A counterpart that was never equal is not out of sync: it stays never_synced, and the reason says what differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from modelmora.errors import Conflict, InvalidArgument
from pydantic import ConfigDict, Field, field_validator, model_validator

from modelmora_registry.domain import HubSource, ModelId, ModelVersion, ReadOnly, Text, Value, etag_of

SHOWN_FILES = 5
_NAME = re.compile(r"models/([^/]+/[^/]+)/links/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


class SyncState(StrEnum):
    NEVER_SYNCED = "never_synced"
    SYNCED = "synced"
    OUT_OF_SYNC = "out_of_sync"


class RegistryType(StrEnum):
    HUGGINGFACE = "huggingface"
    FOLDER = "folder"


class LinkDraft(Value):
    """The fields of a link that a caller may set."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    registry_type: RegistryType
    external_id: Text

    @field_validator("registry_type", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        if value not in RegistryType.__members__.values():
            raise ValueError(f"must be one of {', '.join(RegistryType)}")
        return value

    @model_validator(mode="after")
    def _suits(self) -> LinkDraft:
        if self.registry_type is RegistryType.HUGGINGFACE:
            try:
                HubSource(repo_id=self.external_id)
            except ValueError:
                raise ValueError("external_id must be org/repo") from None
        elif not self.external_id.startswith("/") or len(self.external_id) > 4096:
            raise ValueError("external_id must be an absolute path")
        return self


class ExternalLink(Value):
    """A model's counterpart in another registry. `version` was imported from there or exported to it last."""

    name: str
    uid: str = ""
    registry_type: RegistryType
    external_id: str
    url: str = ""
    version: str = ""
    imported: bool = False
    import_time: datetime | None = None
    export_time: datetime | None = None
    sync_state: SyncState = SyncState.NEVER_SYNCED
    sync_reason: str = ""
    check_time: datetime | None = None
    metadata: ReadOnly[str] = Field(default_factory=lambda: MappingProxyType({}))
    exported_files: tuple[str, ...] = ()
    """Paths in a Hub repository that are there because of an export."""
    exported_digests: ReadOnly[str] = Field(default_factory=lambda: MappingProxyType({}))
    """Of those: what a Hub may tell of each as an export put it there, sha256 or git's blob id, spaces between."""
    revision: int = 0

    @property
    def etag(self) -> str:
        return etag_of(self.uid, self.revision) if self.uid else ""

    def check_etag(self, etag: str) -> None:
        """Raises Conflict when `etag` is not empty and names another state."""
        if etag and etag != self.etag:
            raise Conflict(link=self.name, revision=self.revision, etag=self.etag)

    def with_import(self, version: str, *, now: datetime) -> ExternalLink:
        """What is here came from there."""
        return self._changed(
            version=version, imported=True, import_time=now, sync_state=SyncState.SYNCED, sync_reason=""
        )

    def exporting(self, digests: Mapping[str, str]) -> ExternalLink:
        """Before a commit: files with these contents are an export's if they are there afterwards, also where it does
        not live to say so."""
        known = self.exported_digests
        both = {path: " ".join(sorted({*known.get(path, "").split(), *new.split()})) for path, new in digests.items()}
        return self._changed(
            exported_files=tuple(sorted({*self.exported_files, *digests})),
            exported_digests=MappingProxyType({**known, **both}),
        )

    def with_export(
        self, version: str, files: Iterable[str], digests: Mapping[str, str], *, now: datetime
    ) -> ExternalLink:
        """What is there came from here, and was read back."""
        return self._changed(
            version=version,
            exported_files=tuple(sorted(files)),
            exported_digests=MappingProxyType(dict(digests)),
            export_time=now,
            check_time=now,
            sync_state=SyncState.SYNCED,
            sync_reason="",
        )

    def checked(self, differences: str, metadata: Mapping[str, str], *, now: datetime) -> ExternalLink:
        """After a look at the other side; `differences` empty: it has what is here."""
        state = SyncState.SYNCED
        if differences:
            was = self.sync_state
            state = SyncState.NEVER_SYNCED if was is SyncState.NEVER_SYNCED else SyncState.OUT_OF_SYNC
        return self._changed(
            sync_state=state, sync_reason=differences, check_time=now, metadata=MappingProxyType(dict(metadata))
        )

    def _changed(self, **fields: object) -> ExternalLink:
        return self.model_copy(update={**fields, "revision": self.revision + 1})


def differences(changed: Sequence[str], missing: Sequence[str], extra: Sequence[str]) -> str:
    """What differs, for people; empty when nothing does. `missing` are files that the other side lacks."""
    parts = [
        f"{named(paths)} {what}"
        for paths, what in ((changed, "differs there"), (missing, "is missing there"), (extra, "is there only"))
        if paths
    ]
    return "; ".join(parts)


def named(paths: Sequence[str]) -> str:
    """The first few, and how many more."""
    ordered = sorted(paths)
    more = f" and {len(ordered) - SHOWN_FILES} more" if len(ordered) > SHOWN_FILES else ""
    return ", ".join(ordered[:SHOWN_FILES]) + more


def link_name(model_id: ModelId, uid: str) -> str:
    return f"{model_id.name}/links/{uid}"


def parse_link_name(text: str, *, at: str = "name") -> tuple[ModelId, str]:
    """The model and the uid of `models/{org}/{repo}/links/{uid}`."""
    found = _NAME.fullmatch(text)
    if found is None:
        raise InvalidArgument.at(at, "is no link; it is models/{org}/{repo}/links/{uid}")
    return ModelId.parse(found[1], at=at), found[2]


def import_of(version: ModelVersion) -> tuple[RegistryType, str] | None:
    """The other registry that a version came from; None when it came from none that links know."""
    source = version.source
    if source is not None and source.hub is not None:
        return RegistryType.HUGGINGFACE, source.hub.repo_id
    if source is not None and source.local is not None:
        return RegistryType.FOLDER, source.local.path
    return None
