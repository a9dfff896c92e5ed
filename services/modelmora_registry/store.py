"""The registry's tables and queries, one named method each.

A method is one transaction. Whoever changes a model or its versions locks the model's row first and the version's row
second, so that two changes never wait for each other in a circle. A row is written only over the revision it was read
at. Times are the database's. Every change of a version is announced on CHANNEL with its uid.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from modelmora.errors import (
    Conflict,
    DatabaseUnavailable,
    InvalidArgument,
    ModelExists,
    ModelNotFound,
    RequestIdReused,
    VersionArchived,
    VersionExists,
    VersionInUse,
    VersionIsCurrent,
    VersionNotFound,
    VersionNotReady,
)
from modelmora_runtime.db import Database
from modelmora_runtime.ids import uuid7
from modelmora_runtime.protomap import plain_copy
from pydantic import BaseModel
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR, aggregate_order_by, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from modelmora_registry.domain import (
    MANAGED_ALIAS,
    PRODUCTION_ALIAS,
    AliasChange,
    Artifact,
    ArtifactFile,
    Failure,
    ImportProgress,
    Model,
    ModelDraft,
    ModelId,
    ModelLimits,
    ModelVersion,
    ModelVersionState,
    Reference,
    StorageUse,
    VersionDraft,
    bare_name,
    current_version_of,
)
from modelmora_registry.link_store import note_import
from modelmora_registry.list_store import MODEL_FIELDS, VERSION_FIELDS, best_of, keys_of, page_of, rank_of, words_of
from modelmora_registry.listing import RANK, Page
from modelmora_registry.metadata import Facts
from modelmora_registry.selection import Candidate
from modelmora_registry.tables_store import (
    BRIEF_VERSION,
    alias,
    alias_history,
    artifact_file,
    create_request,
    hold,
    model,
    model_version,
    used_version,
)

CHANNEL = "modelmora_registry_version"
REQUEST_RETENTION = timedelta(days=1)
HOLD_RETENTION = timedelta(days=1)
"""So long after its end a hold may still be renewed, by a process whose database was away."""
SYSTEM = "system"
"""Who moves `latest`."""
_READY, _CREATING, _FAILED = ModelVersionState.READY, ModelVersionState.CREATING, ModelVersionState.FAILED


@dataclass(frozen=True)
class RequestKey:
    """Makes a create idempotent: the same id with the same digest of its content is the same call."""

    request_id: str
    digest: str


@dataclass(frozen=True)
class Created:
    model: Model
    version: ModelVersion
    is_new: bool


@dataclass(frozen=True)
class Gone:
    """A deleted version and the digests of its files (None: an import was at work), so that the files can follow."""

    uid: str
    digests: frozenset[str] | None


@dataclass(frozen=True)
class Found:
    """One page of a list."""

    items: Sequence[Any]
    next_page_token: str
    total_size: int | None


class Store:
    """`snapshot_path` tells where the files of a version lie: paths are not stored, data folders move."""

    def __init__(self, database: Database, snapshot_path: Callable[[str], str]) -> None:
        self._database = database
        self._snapshot_path = snapshot_path
        self.migrated = False

    async def migrate(self) -> None:
        await self._database.migrate("modelmora_registry")
        self.migrated = True

    def changes(self) -> AsyncIterator[str]:
        """Uids of versions that changed, here or in another process; the empty string: look at all of them."""
        return self._database.listen(CHANNEL)

    # Models.

    async def create_model(
        self, model_id: ModelId, draft: ModelDraft, request: RequestKey | None, *, validate_only: bool
    ) -> Model:
        """Raises ModelExists, RequestIdReused. With `validate_only` it leaves nothing."""
        async with self._begin() as (connection, now):
            uid = str(uuid7())
            if earlier := await self._claim(connection, request, uid, now):
                return await self._model_of(connection, model.c.uid == earlier, model_id)
            new = Model.register(model_id, draft, uid=uid, now=now)
            if not await self._insert_model(connection, new):
                raise ModelExists(f"there is a model {model_id}", model=model_id)
            if validate_only:
                await connection.rollback()
                return new.model_copy(update={"uid": ""})
            return new

    async def get_model(self, model_id: ModelId) -> Model:
        """Raises ModelNotFound."""
        async with self._read() as connection:
            return await self._model(connection, model_id)

    async def list_models(self, page: Page, *, with_total: bool) -> Found:
        async with self._read() as connection:
            query, keys, narrow = sa.select(model), keys_of(model), None
            if page.query:
                words, found_in = words_of(page.query), sa.literal_column("model.search", TSVECTOR)
                query = query.where(found_in.op("@@")(words))
                if page.order.field == RANK:
                    narrow = partial(best_of, words=words, found_in=found_in)
                else:
                    query = query.add_columns(rank_of(found_in, words).label(RANK))
            rows, token, total = await page_of(
                connection, query, model.c.uid, keys, MODEL_FIELDS, page, with_total=with_total, narrow=narrow
            )
            aliases = await self._aliases(connection, [row.uid for row in rows])
            return Found([_model(row, aliases.get(row.uid, {})) for row in rows], token, total)

    async def update_model(self, model_id: ModelId, draft: ModelDraft, mask: Sequence[str], etag: str) -> Model:
        """Raises ModelNotFound, Conflict, InvalidArgument; at `model.task_type` when versions do another task."""
        async with self._begin() as (connection, now):
            old = await self._model(connection, model_id, lock=True)
            old.check_etag(etag)
            new = old.updated(draft, mask, now=now)
            if "task_type" in mask and new.task_type is not None:
                other = sa.select(model_version.c.version).where(
                    model_version.c.model_id == old.uid, model_version.c.task_type != new.task_type.value
                )
                if (version := await connection.scalar(other.limit(1))) is not None:
                    raise InvalidArgument.at("model.task_type", f"version {version} does another task")
            given = {"given_family": draft.family or None} if "family" in mask else {}
            await self._save_model(connection, new, **given)
            return await self._model(connection, model_id)

    async def delete_model(
        self, model_id: ModelId, etag: str, *, force: bool, subject: str, held: Mapping[str, str]
    ) -> list[Gone]:
        """Raises ModelNotFound, Conflict, VersionInUse. `held`: holds that this process knows of, see `Holds.held`."""
        async with self._begin() as (connection, now):
            found = await self._model(connection, model_id, lock=True)
            found.check_etag(etag)
            versions = (
                await connection.execute(
                    sa.select(model_version.c.uid, model_version.c.version, model_version.c.state)
                    .where(model_version.c.model_id == found.uid)
                    .with_for_update()
                )
            ).all()
            if versions and not force:
                raise VersionInUse(
                    f"{model_id} still has versions ({len(versions)}); delete them first, or use force", model=model_id
                )
            for row in versions:
                await self._check_not_held(connection, row.uid, model_id.version_name(row.version), held)
            gone = [Gone(row.uid, await self._digests(connection, row.uid, row.state)) for row in versions]
            for name, version in found.aliases.items():
                await self._write_history(connection, model_id, name, version, None, subject, now)
            await connection.execute(sa.delete(alias).where(alias.c.model_id == found.uid))
            for row in versions:
                await self._drop_version(connection, row.uid, now)
            await connection.execute(sa.delete(model).where(model.c.uid == found.uid))
            return gone

    # Versions.

    async def create_version(
        self,
        model_id: ModelId,
        draft: ModelVersion,
        *,
        checksums: Mapping[str, str],
        request: RequestKey | None,
        new_model: ModelDraft | None,
        reuse: bool,
        validate_only: bool,
        at: str,
        restores: str | None = None,
    ) -> Created:
        """Registers `draft` in CREATING, or READY when it has no files.

        `new_model`: registers the model where it is missing. `reuse`: the same commit of the same repository is
        answered with the version that exists. A version that FAILED never was anything and is replaced. `at` is the
        path of the version's fields in the request. `validate_only` checks all of this and leaves nothing. `restores`:
        the digest that it is going to have; a version of just this digest that was deleted may come back.

        Raises ModelNotFound, VersionExists, RequestIdReused, InvalidArgument.
        """
        async with self._begin() as (connection, now):
            uid = str(uuid7())
            if earlier := await self._claim(connection, request, uid, now):
                version = await self._version_of(connection, model_version.c.uid == earlier, draft.name)
                return Created(await self._model(connection, version.model_id), version, False)
            found = await self._model_for_version(connection, model_id, new_model, now)
            _check_task(found, draft, at)
            if existing := await self._existing(connection, found, draft, reuse=reuse, at=at, restores=restores):
                if request is not None:
                    statement = sa.update(create_request).where(create_request.c.request_id == request.request_id)
                    await connection.execute(statement.values(resource_id=existing.uid))
                return Created(found, existing, False)
            new = draft.model_copy(update={"uid": uid, "revision": 1, "create_time": now, "update_time": now})
            await connection.execute(
                sa.insert(model_version).values(
                    uid=uid, model_id=found.uid, expected_checksums=dict(checksums), **_version_values(new)
                )
            )
            if found.task_type is None and new.task_type is not None:
                found = found.changed(now=now, task_type=new.task_type)
                await self._save_model(connection, found)
            if new.source is not None and not new.source.has_files:
                new = new.ready(Artifact.of("", ()), limits=ModelLimits(), now=now)
                await self._save_version(connection, new)
                found = await self._publish(connection, found, new, now)
            await _announce(connection, uid)
            if validate_only:
                await connection.rollback()
                new = new.model_copy(update={"uid": ""})
            return Created(found, new, True)

    async def earlier(self, request: RequestKey) -> Created | None:
        """What an earlier call with this request id made. Raises RequestIdReused, VersionNotFound when it is gone."""
        async with self._read() as connection:
            query = sa.select(create_request).where(create_request.c.request_id == request.request_id)
            row = (await connection.execute(query)).first()
            if row is None:
                return None
            if row.digest != request.digest:
                raise RequestIdReused(request_id=request.request_id)
            version = await self._version_of(connection, model_version.c.uid == row.resource_id, "the version")
            return Created(await self._model(connection, version.model_id), version, False)

    async def get_version(self, reference: Reference) -> ModelVersion:
        """The version that a version string or an alias names, with its model card. Raises ModelNotFound,
        VersionNotFound."""
        async with self._read() as connection:
            found = await self._version(connection, await self._model(connection, reference.model_id), reference)
            card = await connection.scalar(
                sa.select(model_version.c.model_card).where(model_version.c.uid == found.uid)
            )
            if card is None or found.metadata is None:
                return found
            return found.model_copy(update={"metadata": found.metadata.model_copy(update={"model_card": card})})

    async def get_version_by_uid(self, uid: str) -> ModelVersion | None:
        async with self._read() as connection:
            return await self._version_by_uid(connection, uid)

    async def list_versions(self, model_id: ModelId | None, page: Page, *, with_total: bool) -> Found:
        """Of one model or of all; without the files of the artifacts: a page would not fit into a message. Raises
        ModelNotFound."""
        async with self._read() as connection:
            query = sa.select(*BRIEF_VERSION)
            if model_id is None:
                query = query.add_columns(model.c.name.label("model_name")).join(
                    model, model.c.uid == model_version.c.model_id
                )
            else:
                found = await self._model(connection, model_id)
                query = query.where(model_version.c.model_id == found.uid)
            uid, keys = model_version.c.uid, keys_of(model_version)
            rows, token, total = await page_of(
                connection, query, uid, keys, VERSION_FIELDS, page, with_total=with_total
            )
            versions = [self._version_from(row, model_id or ModelId.parse(row.model_name), ()) for row in rows]
            return Found(versions, token, total)

    async def change_version(
        self, reference: Reference, change: Callable[[ModelVersion, datetime], ModelVersion], *, etag: str
    ) -> ModelVersion:
        """Raises ModelNotFound, VersionNotFound, Conflict, and what `change` raises."""
        async with self._begin() as (connection, now):
            found = await self._model(connection, reference.model_id, lock=True)
            old = await self._version(connection, found, reference, lock=True)
            old.check_etag(etag)
            new = change(old, now)
            await self._save_version(connection, new)
            await _announce(connection, new.uid)
            return new

    async def update_version(
        self, reference: Reference, draft: VersionDraft, mask: Sequence[str], *, archived: bool, etag: str
    ) -> ModelVersion:
        """Raises ModelNotFound, VersionNotFound, Conflict, InvalidArgument, IllegalTransition; VersionIsCurrent for
        archiving what an alias other than `latest` points at."""
        async with self._begin() as (connection, now):
            found = await self._model(connection, reference.model_id, lock=True)
            old = await self._version(connection, found, reference, lock=True)
            old.check_etag(etag)
            new = old.updated(draft, mask, archived=archived, now=now)
            names = sorted(
                name for name, string in found.aliases.items() if string == old.version and name != MANAGED_ALIAS
            )
            if new.archive_time and not old.archive_time and names:
                raise VersionIsCurrent(
                    f"{old.name} is {' and '.join(names)}; move the alias first", version=old.name,
                    aliases=", ".join(names),
                )  # fmt: skip
            await self._save_version(connection, new)
            if "archive_time" in mask:
                await self._settle_latest(connection, found, now)
            await _announce(connection, new.uid)
            return new

    async def candidates(self, model_id: ModelId, limit: int) -> tuple[Model, list[Candidate]]:
        """The newest versions of a model, at most `limit`, as a choice among them needs. Raises ModelNotFound."""
        async with self._read() as connection:
            found = await self._model(connection, model_id)
            query = (
                sa.select(
                    *(model_version.c[name] for name in ("version", "state", "create_time", "size_bytes", "metrics")),
                    model_version.c.archive_time.is_not(None).label("archived"),
                )
                .where(model_version.c.model_id == found.uid)
                .order_by(model_version.c.create_time.desc(), model_version.c.uid.desc())
                .limit(limit)
            )
            return found, [Candidate(**row) for row in (await connection.execute(query)).mappings()]

    async def resolve(self, reference: Reference) -> tuple[Model, ModelVersion]:
        """The READY version a reference means. Raises ModelNotFound, VersionNotFound, VersionNotReady."""
        self._check_migrated()
        async with self._database.look() as connection:
            query = _resolving(reference.selector is not None, reference.version_only)
            names = {"model_name": str(reference.model_id), "selector": reference.selector}
            row = (await connection.execute(query, names)).first()
        if row is None:
            raise _no_model(reference.model_id)
        found = _model(_columns_of(row, model.c), dict(sorted((row.aliases or {}).items())))
        columns = _columns_of(row, BRIEF_VERSION)
        if columns.uid is None:
            if reference.selector is None:
                raise VersionNotReady(f"{reference.model_id} has no READY version yet", model=reference.model_id)
            raise _no_version(reference)
        files = tuple(ArtifactFile(**file) for file in row.files or ())
        version = self._version_from(columns, reference.model_id, files)
        if version.state is not _READY:
            reason = f": {version.failure.message}" if version.failure else ""
            raise VersionNotReady(f"{version.name} is {version.state}{reason}", version=version.name)
        return found, version

    async def delete_version(
        self, reference: Reference, etag: str, *, force: bool, subject: str, held: Mapping[str, str]
    ) -> Gone:
        """Raises ModelNotFound, VersionNotFound, Conflict, VersionInUse, VersionIsCurrent.

        `held`: holders of this process by uid or name of the version, in force even if the database was away for longer
        than they live.
        """
        async with self._begin() as (connection, now):
            found = await self._model(connection, reference.model_id, lock=True)
            version = await self._version(connection, found, reference, lock=True)
            version.check_etag(etag)
            await self._check_not_held(connection, version.uid, version.name, held)
            names = sorted(name for name, string in found.aliases.items() if string == version.version)
            if names and not force:
                raise VersionIsCurrent(version=version.name, aliases=", ".join(names))
            gone = Gone(version.uid, await self._digests(connection, version.uid, version.state))
            for name in names:
                if name != MANAGED_ALIAS:
                    await self._move_alias(connection, found, name, None, subject, now)
            moved = await self._settle_latest(connection, found, now, without=version.uid)
            await self._drop_version(connection, version.uid, now)
            if names and not moved:
                await self._save_model(connection, found.changed(now=now))
            return gone

    async def set_alias(self, model_id: ModelId, name: str, version: str, etag: str, *, subject: str) -> Model:
        """Moves, sets or (empty `version`) removes an alias. Raises ModelNotFound, VersionNotFound, VersionNotReady."""
        async with self._begin() as (connection, now):
            found = await self._model(connection, model_id, lock=True)
            found.check_etag(etag)
            if found.aliases.get(name, "") == version:
                if not version:
                    raise VersionNotFound(f"{model_id} has no alias {name}", model=model_id, alias=name)
                return found
            target = None
            if version:
                reference = Reference(model_id=model_id, selector=version, version_only=True)
                chosen = await self._version(connection, found, reference, lock=True)
                if chosen.state is not _READY:
                    raise VersionNotReady(f"{chosen.name} is {chosen.state}", version=chosen.name)
                if chosen.archive_time is not None:
                    raise VersionArchived(f"{chosen.name} is archived; bring it back first", version=chosen.name)
                if await self._is_version_string(connection, found, name):
                    raise InvalidArgument.at("alias", f"{name!r} is or was a version of this model")
                target = chosen
            await self._move_alias(connection, found, name, target, subject, now)
            await self._save_model(connection, found.changed(now=now))
            return await self._model(connection, model_id)

    async def alias_changes(self, model_id: ModelId, name: str, page: Page) -> Found:
        """Moves of one alias or, with an empty `name`, of all. Raises ModelNotFound when there never was such a
        model."""
        async with self._read() as connection:
            query = sa.select(alias_history).where(alias_history.c.model_name == str(model_id))
            if name:
                query = query.where(alias_history.c.alias == name)
            rows, token, _ = await page_of(connection, query, alias_history.c.uid, keys_of(alias_history), {}, page)
            if not rows:
                await self._check_known(connection, model_id)
            return Found([_alias_change(row) for row in rows], token, None)

    async def storage_use(self) -> StorageUse:
        """All in one query; the same files in two versions count once."""
        async with self._read() as connection:
            sizes = (
                sa.select(sa.func.max(model_version.c.size_bytes).label("size_bytes"))
                .where(model_version.c.digest.is_not(None))  # of READY ones, and the index has all of it
                .group_by(model_version.c.digest)
                .subquery()
            )
            total = sa.select(sa.func.coalesce(sa.func.sum(sizes.c.size_bytes), 0)).scalar_subquery()
            models = sa.select(sa.func.count()).select_from(model).scalar_subquery()
            versions = sa.select(sa.func.count()).select_from(model_version).scalar_subquery()
            row = (await connection.execute(sa.select(models, versions, total))).one()
            return StorageUse(model_count=row[0], version_count=row[1], artifact_bytes=int(row[2]))

    # Imports.

    async def creating(self) -> list[str]:
        """Uids of the versions in CREATING, oldest first."""
        async with self._read() as connection:
            query = sa.select(model_version.c.uid).where(model_version.c.state == _CREATING.value)
            return list(await connection.scalars(query.order_by(model_version.c.uid)))

    async def expected_checksums(self, uid: str) -> Mapping[str, str]:
        async with self._read() as connection:
            query = sa.select(model_version.c.expected_checksums).where(model_version.c.uid == uid)
            return await connection.scalar(query) or {}

    async def existing(self, uids: Collection[str]) -> set[str]:
        """Those of `uids` that are versions, CREATING and READY ones."""
        async with self._read() as connection:
            query = sa.select(model_version.c.uid).where(
                model_version.c.uid.in_(list(uids)), model_version.c.state != _FAILED.value
            )
            return set(await connection.scalars(query))

    async def record_progress(self, uid: str, progress: ImportProgress) -> None:
        """Raises VersionNotFound when it was deleted meanwhile, IllegalTransition when it is final."""
        async with self._begin() as (connection, now):
            old = await self._locked_version(connection, uid)
            await self._save_version(connection, old.progressed(progress, now=now))
            await _announce(connection, uid)

    async def record_failure(self, uid: str, failure: Failure) -> ModelVersion:
        """Raises VersionNotFound, IllegalTransition."""
        async with self._begin() as (connection, now):
            old = await self._locked_version(connection, uid)
            new = old.failed(failure, now=now)
            await self._save_version(connection, new)
            await _announce(connection, uid)
            return new

    async def record_ready(self, uid: str, artifact: Artifact, facts: Facts) -> ModelVersion:
        """READY, with its files, as `latest` if it is the newest. Raises VersionNotFound, IllegalTransition."""
        async with self._begin() as (connection, now):
            seen = await self._version_by_uid(connection, uid)
            if seen is None:
                raise VersionNotFound(uid=uid)
            found = await self._model(connection, seen.model_id, lock=True)
            old = await self._locked_version(connection, uid)
            new = old.ready(artifact, limits=facts.limits, metadata=facts.metadata, now=now)
            await self._save_version(connection, new, model_card=facts.metadata.model_card)
            if artifact.files:
                rows = [{"model_version_id": uid, **file.model_dump()} for file in artifact.files]
                await connection.execute(sa.insert(artifact_file), rows)
            if facts.base_model and not found.base_model:
                found = found.changed(now=now, base_model=facts.base_model)
                await self._save_model(connection, found)
            await self._publish(connection, found, new, now)
            await note_import(connection, new, now)
            await _announce(connection, uid)
            return new

    # Holds.

    async def acquire_hold(
        self, reference: Reference, uid: str, holder: str, process: str, lifetime: timedelta
    ) -> ModelVersion:
        """The version that the hold `uid` holds, which goes on if it is there.

        Raises ModelNotFound, VersionNotFound; InvalidArgument at `hold_id` when that is a hold of another version.
        """
        async with self._begin() as (connection, now):
            found = await self._model(connection, reference.model_id)
            version = await self._version(connection, found, reference, lock=True)
            # Those of processes that died: run out long ago, and nobody will renew them.
            await connection.execute(sa.delete(hold).where(hold.c.expire_time < now - HOLD_RETENTION))
            new = insert(hold).values(
                uid=uid,
                model_version_id=version.uid,
                holder=holder,
                create_time=now,
                expire_time=now + lifetime,
                process=process,
            )
            kept = new.on_conflict_do_update(
                index_elements=["uid"],
                set_={"expire_time": now + lifetime, "holder": holder, "process": process},
                where=hold.c.model_version_id == version.uid,
            )
            if await connection.scalar(kept.returning(hold.c.uid)) is None:
                raise InvalidArgument.at("hold_id", "is the hold of another version")
            return version

    async def renew_holds(self, uids: Collection[str], lifetime: timedelta) -> set[str]:
        """Those holds that are still there, renewed."""
        async with self._begin() as (connection, now):
            statement = sa.update(hold).where(hold.c.uid.in_(list(uids))).values(expire_time=now + lifetime)
            return set(await connection.scalars(statement.returning(hold.c.uid)))

    async def release_hold(self, uid: str) -> None:
        async with self._begin() as (connection, _):
            await connection.execute(sa.delete(hold).where(hold.c.uid == uid))

    async def holding_processes(self, seen: str) -> set[str]:
        """Of those whose names begin with `seen`, the ones that hold anything."""
        async with self._begin() as (connection, _):
            query = sa.select(hold.c.process).where(hold.c.process.startswith(seen, autoescape=True)).distinct()
            return set(await connection.scalars(query))

    async def release_holds_of(self, processes: Collection[str]) -> None:
        async with self._begin() as (connection, _):
            await connection.execute(sa.delete(hold).where(hold.c.process.in_(list(processes))))

    async def count_by_state(self) -> Mapping[str, int]:
        async with self._read() as connection:
            query = sa.select(model_version.c.state, sa.func.count()).group_by(model_version.c.state)
            counted = {row[0]: int(row[1]) for row in await connection.execute(query)}
            return {state.value: counted.get(state.value, 0) for state in ModelVersionState}

    # Pieces of transactions.

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[tuple[AsyncConnection, datetime]]:
        """A transaction with its time."""
        self._check_migrated()
        async with self._database.begin() as connection:
            now = (await connection.execute(sa.select(sa.func.now()))).scalar_one()
            yield connection, now

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        self._check_migrated()
        async with self._database.read() as connection:
            yield connection

    def _check_migrated(self) -> None:
        if not self.migrated:
            raise DatabaseUnavailable("the registry's tables are not there yet", retry_after_seconds=1.0)

    async def _claim(
        self, connection: AsyncConnection, request: RequestKey | None, uid: str, now: datetime
    ) -> str | None:
        """The resource that an earlier call with this request id made; None when this is the first."""
        if request is None:
            return None
        await connection.execute(
            sa.delete(create_request).where(create_request.c.create_time < now - REQUEST_RETENTION)
        )
        # A second call with the same id waits here until the first one is through.
        claimed = await connection.scalar(
            insert(create_request)
            .values(request_id=request.request_id, digest=request.digest, resource_id=uid, create_time=now)
            .on_conflict_do_nothing()
            .returning(create_request.c.resource_id)
        )
        if claimed is not None:
            return None
        row = (
            await connection.execute(sa.select(create_request).where(create_request.c.request_id == request.request_id))
        ).one()
        if row.digest != request.digest:
            raise RequestIdReused(request_id=request.request_id)
        return str(row.resource_id)

    async def _insert_model(self, connection: AsyncConnection, new: Model) -> bool:
        inserted = await connection.scalar(
            insert(model)
            .values(
                uid=new.uid,
                name=str(new.model_id),
                given_family=new.family or None,
                create_time=new.create_time,
                **_model_values(new),
            )
            .on_conflict_do_nothing(index_elements=[model.c.name])
            .returning(model.c.uid)
        )
        return inserted is not None

    async def _save_model(self, connection: AsyncConnection, new: Model, **more: Any) -> None:
        """`more`: columns that are no fields of a model."""
        statement = sa.update(model).where(model.c.uid == new.uid, model.c.revision == new.revision - 1)
        if (await connection.execute(statement.values(**_model_values(new), **more))).rowcount != 1:
            raise Conflict(model=new.name)

    async def _check_known(self, connection: AsyncConnection, model_id: ModelId) -> None:
        """Raises ModelNotFound unless it is or was one."""
        name = str(model_id)
        here = sa.exists().where(model.c.name == name)
        was = sa.exists().where(alias_history.c.model_name == name)
        if not await connection.scalar(sa.select(sa.or_(here, was))):
            raise _no_model(model_id)

    async def _model(self, connection: AsyncConnection, model_id: ModelId, *, lock: bool = False) -> Model:
        return await self._model_of(connection, model.c.name == str(model_id), model_id, lock=lock)

    async def _model_of(
        self, connection: AsyncConnection, where: sa.ColumnElement[bool], model_id: ModelId, *, lock: bool = False
    ) -> Model:
        query = sa.select(model).where(where)
        row = (await connection.execute(query.with_for_update() if lock else query)).first()
        if row is None:
            raise _no_model(model_id)
        return _model(row, (await self._aliases(connection, [row.uid])).get(row.uid, {}))

    async def _model_for_version(
        self, connection: AsyncConnection, model_id: ModelId, draft: ModelDraft | None, now: datetime
    ) -> Model:
        if draft is not None:
            await self._insert_model(connection, Model.register(model_id, draft, uid=str(uuid7()), now=now))
        return await self._model(connection, model_id, lock=True)

    async def _aliases(self, connection: AsyncConnection, uids: Sequence[str]) -> dict[str, dict[str, str]]:
        query = (
            sa.select(alias.c.model_id, alias.c.alias, model_version.c.version)
            .join(model_version, model_version.c.uid == alias.c.model_version_id)
            .where(alias.c.model_id.in_(uids))
            .order_by(alias.c.alias)
        )
        found: dict[str, dict[str, str]] = {}
        for model_uid, name, version in await connection.execute(query):
            found.setdefault(model_uid, {})[name] = version
        return found

    async def _version(
        self, connection: AsyncConnection, found: Model, reference: Reference, *, lock: bool = False
    ) -> ModelVersion:
        """By version string first, then, unless only a version is meant, by alias."""
        selector = reference.selector or ""
        where = sa.and_(model_version.c.model_id == found.uid, model_version.c.version == selector)
        query = sa.select(*BRIEF_VERSION).where(where)
        row = (await connection.execute(query.with_for_update() if lock else query)).first()
        if row is None and not reference.version_only and selector in found.aliases:
            reference = Reference(model_id=reference.model_id, selector=found.aliases[selector], version_only=True)
            return await self._version(connection, found, reference, lock=lock)
        if row is None:
            raise _no_version(reference)
        return self._version_from(row, found.model_id, await self._files(connection, row))

    async def _version_of(
        self, connection: AsyncConnection, where: sa.ColumnElement[bool], name: str, *, lock: bool = False
    ) -> ModelVersion:
        query = (
            sa.select(*BRIEF_VERSION, model.c.name.label("model_name"))
            .join(model, model.c.uid == model_version.c.model_id)
            .where(where)
        )
        row = (await connection.execute(query.with_for_update(of=model_version) if lock else query)).first()
        if row is None:
            raise VersionNotFound(f"{name} is gone", version=name)
        return self._version_from(row, ModelId.parse(row.model_name), await self._files(connection, row))

    async def _version_by_uid(self, connection: AsyncConnection, uid: str) -> ModelVersion | None:
        try:
            return await self._version_of(connection, model_version.c.uid == uid, uid)
        except VersionNotFound:
            return None

    async def _locked_version(self, connection: AsyncConnection, uid: str) -> ModelVersion:
        return await self._version_of(connection, model_version.c.uid == uid, uid, lock=True)

    async def _files(self, connection: AsyncConnection, row: Any) -> tuple[ArtifactFile, ...]:
        if row.digest is None:
            return ()
        query = sa.select(artifact_file.c.path, artifact_file.c.size_bytes, artifact_file.c.sha256)
        query = query.where(artifact_file.c.model_version_id == row.uid).order_by(artifact_file.c.path)
        return tuple(ArtifactFile(**file) for file in (await connection.execute(query)).mappings())

    def _version_from(self, row: Any, model_id: ModelId, files: tuple[ArtifactFile, ...]) -> ModelVersion:
        artifact = None
        if row.digest is not None:
            path = self._snapshot_path(row.uid) if (row.source or {}).get("empty") is None else ""
            artifact = Artifact(path=path, digest=row.digest, size_bytes=row.size_bytes, files=files)
        return ModelVersion(
            uid=row.uid,
            name=model_id.version_name(row.version),
            artifact=artifact,
            training_job=row.training_job or "",
            **{column: getattr(row, column) for column in _SAME_COLUMNS},
        )

    async def _save_version(self, connection: AsyncConnection, new: ModelVersion, **more: Any) -> None:
        """`more`: columns that are not read with every version."""
        statement = sa.update(model_version).where(
            model_version.c.uid == new.uid, model_version.c.revision == new.revision - 1
        )
        if (await connection.execute(statement.values(**_version_values(new), **more))).rowcount != 1:
            raise Conflict(version=new.name)

    async def _existing(
        self,
        connection: AsyncConnection,
        found: Model,
        draft: ModelVersion,
        *,
        reuse: bool,
        at: str,
        restores: str | None,
    ) -> ModelVersion | None:
        """The version that answers this import already; None when there is room for it. A FAILED one makes room."""
        hub = draft.source.hub if draft.source is not None else None
        taken = sa.select(*BRIEF_VERSION).where(
            model_version.c.model_id == found.uid, model_version.c.version == draft.version
        )
        row = (await connection.execute(taken.with_for_update())).first()
        if row is not None and row.state == _FAILED.value:
            await self._drop_version(connection, row.uid, None)
            await _announce(connection, row.uid)
            row = None
        if row is not None:
            version = self._version_from(row, found.model_id, await self._files(connection, row))
            theirs = version.source.hub if version.source is not None else None
            if reuse and hub and theirs and (hub.repo_id, hub.commit) == (theirs.repo_id, theirs.commit):
                return version
            raise VersionExists(f"{version.name} exists", version=version.name)
        if draft.version in found.aliases:
            raise InvalidArgument.at(f"{at}version", f"{draft.version!r} is an alias of this model")
        if restores is not None and await self._spent_on(connection, found, draft.version) in (None, restores):
            return None
        if await self._is_version_string(connection, found, draft.version):
            raise VersionExists(
                f"{draft.name} existed and was deleted; version strings are never used twice", version=draft.name
            )
        return None

    async def _is_version_string(self, connection: AsyncConnection, found: Model, text: str) -> bool:
        """Whether it is or was one; strings of deleted versions keep their meaning."""
        name = str(found.model_id)
        used = sa.exists().where(used_version.c.model_name == name, used_version.c.version == text)
        here = sa.exists().where(model_version.c.model_id == found.uid, model_version.c.version == text)
        return bool(await connection.scalar(sa.select(sa.or_(used, here))))

    async def _spent_on(self, connection: AsyncConnection, found: Model, version: str) -> str | None:
        """The digest of the version that a string was spent on."""
        spent: str | None = await connection.scalar(
            sa.select(used_version.c.digest).where(
                used_version.c.model_name == str(found.model_id), used_version.c.version == version
            )
        )
        return spent

    async def _publish(self, connection: AsyncConnection, found: Model, new: ModelVersion, now: datetime) -> Model:
        """A version has become READY: its string is spent, and `latest` moves to it unless a newer one is there."""
        assert new.artifact is not None
        await connection.execute(
            insert(used_version)
            .values(
                model_name=str(found.model_id),
                version=new.version,
                model_version_id=new.uid,
                digest=new.artifact.digest,
                create_time=now,
            )
            # It was deleted, and a lock brought it back.
            .on_conflict_do_update(
                index_elements=[used_version.c.model_name, used_version.c.version],
                set_={"model_version_id": new.uid, "delete_time": None},
                where=used_version.c.digest == new.artifact.digest,
            )
        )
        if not await self._settle_latest(connection, found, now):
            return found
        return await self._model(connection, found.model_id)

    async def _settle_latest(
        self, connection: AsyncConnection, found: Model, now: datetime, *, without: str | None = None
    ) -> bool:
        """Moves `latest` to the newest READY version that is not archived, or away when there is none; the family that
        files tell is that version's. `without`: the uid of one that is about to go. Whether it moved."""
        query = (
            sa.select(
                model_version.c.uid, model_version.c.version, model_version.c.metadata["family"].astext.label("family")
            )
            .where(
                model_version.c.model_id == found.uid,
                model_version.c.state == _READY.value,
                model_version.c.archive_time.is_(None),
                *([model_version.c.uid != without] if without else []),
            )
            .order_by(model_version.c.create_time.desc(), model_version.c.uid.desc())
            .limit(1)
        )
        newest = (await connection.execute(query)).first()
        if found.aliases.get(MANAGED_ALIAS) == (newest.version if newest is not None else None):
            return False
        await self._move_alias(connection, found, MANAGED_ALIAS, newest, SYSTEM, now)
        family = newest.family if newest is not None else None
        await self._save_model(connection, found.changed(now=now), read_family=family)
        return True

    async def _move_alias(
        self, connection: AsyncConnection, found: Model, name: str, target: Any, subject: str, now: datetime
    ) -> None:
        """To a version (anything with `uid` and `version`), or away with it. Written down either way."""
        if target is None:
            await connection.execute(sa.delete(alias).where(alias.c.model_id == found.uid, alias.c.alias == name))
        else:
            statement = insert(alias).values(
                model_id=found.uid, alias=name, model_version_id=target.uid, update_time=now
            )
            await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[alias.c.model_id, alias.c.alias],
                    set_={"model_version_id": target.uid, "update_time": now},
                )
            )
        before, after = found.aliases.get(name), target.version if target is not None else None
        await self._write_history(connection, found.model_id, name, before, after, subject, now)

    async def _write_history(
        self,
        connection: AsyncConnection,
        model_id: ModelId,
        name: str,
        before: str | None,
        after: str | None,
        subject: str,
        now: datetime,
    ) -> None:
        await connection.execute(
            sa.insert(alias_history).values(
                uid=str(uuid7()),
                model_name=str(model_id),
                alias=name,
                from_version=before,
                to_version=after,
                subject=subject,
                create_time=now,
            )
        )

    async def _check_not_held(self, connection: AsyncConnection, uid: str, name: str, held: Mapping[str, str]) -> None:
        query = sa.select(hold.c.holder, sa.func.max(hold.c.expire_time).label("until")).group_by(hold.c.holder)
        rows = await connection.execute(
            query.where(hold.c.model_version_id == uid, hold.c.expire_time > sa.func.now()).limit(5)
        )
        # Who is not connected here may be silent for good; then it is good to know how long that counts.
        holders = {row.holder: f"{row.holder} (until {row.until:%H:%M:%S} UTC unless it is back)" for row in rows}
        holders |= {held[key]: held[key] for key in (uid, name) if key in held}
        if holders:
            words = ", ".join(holders[holder] for holder in sorted(holders))
            raise VersionInUse(f"{name} is held by {words}; unload it first", version=name)

    async def _digests(self, connection: AsyncConnection, uid: str, state: str) -> frozenset[str] | None:
        if state == _CREATING.value:
            return None
        query = sa.select(artifact_file.c.sha256).where(artifact_file.c.model_version_id == uid)
        return frozenset(await connection.scalars(query))

    async def _drop_version(self, connection: AsyncConnection, uid: str, now: datetime | None) -> None:
        """Its row, its files' rows and holds that have run out; what is spent of its string stays."""
        if now is not None:
            statement = sa.update(used_version).where(used_version.c.model_version_id == uid)
            await connection.execute(statement.values(delete_time=now))
        await connection.execute(sa.delete(hold).where(hold.c.model_version_id == uid))
        await connection.execute(sa.delete(model_version).where(model_version.c.uid == uid))
        await _announce(connection, uid)


_SAME_COLUMNS = (
    *("version", "state", "task_type", "engine", "engine_options", "source", "resource_requirements"),
    *("engine_profile", "limits", "progress", "failure", "revision", "create_time", "update_time"),
    *("metadata", "metrics", "labels", "archive_time", "verify_time"),
)


@cache  # putting it together costs as much as asking it
def _resolving(selected: bool, version_only: bool) -> sa.Select[Any]:
    """The one query of ResolveModel, which every first call of a model waits for: the columns and `aliases` of the
    model `model_name`, those of the version that is meant (NULL when there is none) and its `files`."""
    named = model_version.alias()
    meant: sa.ColumnElement[Any]
    alias_target = sa.select(alias.c.model_version_id).where(alias.c.model_id == model.c.uid)
    if not selected:
        # What `current_version_of` says of the aliases.
        meant = (
            alias_target.where(alias.c.alias.in_((PRODUCTION_ALIAS, MANAGED_ALIAS)))
            .order_by((alias.c.alias == PRODUCTION_ALIAS).desc())
            .limit(1)
            .scalar_subquery()
        )
    else:
        of_version = sa.select(named.c.uid).where(
            named.c.model_id == model.c.uid, named.c.version == sa.bindparam("selector")
        )
        meant = of_version.scalar_subquery()
        if not version_only:
            of_alias = alias_target.where(alias.c.alias == sa.bindparam("selector"))
            meant = sa.func.coalesce(meant, of_alias.scalar_subquery())
    aliases = (
        sa.select(sa.func.jsonb_object_agg(alias.c.alias, named.c.version, type_=JSONB()))
        .join(named, named.c.uid == alias.c.model_version_id)
        .where(alias.c.model_id == model.c.uid)
        .scalar_subquery()
    )
    file = sa.func.jsonb_build_object(
        *(part for column in ("path", "size_bytes", "sha256") for part in (column, artifact_file.c[column]))
    )
    files = (
        sa.select(sa.func.jsonb_agg(aggregate_order_by(file, artifact_file.c.path), type_=JSONB()))
        .where(artifact_file.c.model_version_id == model_version.c.uid)
        .scalar_subquery()
    )
    return (
        sa.select(model, *BRIEF_VERSION, aliases.label("aliases"), files.label("files"))
        .outerjoin_from(model, model_version, model_version.c.uid == meant)
        .where(model.c.name == sa.bindparam("model_name"))
    )


def _columns_of(row: sa.Row[Any], columns: Iterable[sa.ColumnElement[Any]]) -> SimpleNamespace:
    """The part of a joined row that belongs to one table."""
    return SimpleNamespace(**{str(column.key): row._mapping[column] for column in columns})


def _no_model(model_id: ModelId) -> ModelNotFound:
    return ModelNotFound(f"there is no model {model_id}", model=model_id)


def _no_version(reference: Reference) -> VersionNotFound:
    return VersionNotFound(
        f"{reference.model_id} has no version{'' if reference.version_only else ' or alias'} {reference.selector}",
        model=reference.model_id,
        version=reference.selector,
    )


def _check_task(found: Model, draft: ModelVersion, at: str) -> None:
    if found.task_type is not None and draft.task_type not in (None, found.task_type):
        raise InvalidArgument.at(f"{at}task_type", f"{found.name} does {found.task_type}, not {draft.task_type}")


def _model_values(value: Model) -> dict[str, Any]:
    return {
        "display_name": value.display_name,
        "description": value.description,
        "task_type": value.task_type.value if value.task_type else None,
        "labels": dict(value.labels),
        "base_model": bare_name(value.base_model) or None,
        "trainable": value.trainable,
        "revision": value.revision,
        "update_time": value.update_time,
    }


def _version_values(value: ModelVersion) -> dict[str, Any]:
    return {
        "version": value.version,
        "state": value.state.value,
        "task_type": value.task_type.value if value.task_type else None,
        "engine": value.engine,
        "engine_options": plain_copy(value.engine_options),
        "source": _plain(value.source),
        "digest": value.artifact.digest if value.artifact else None,
        "size_bytes": value.artifact.size_bytes if value.artifact else None,
        "resource_requirements": _plain(value.resource_requirements),
        "engine_profile": _plain(value.engine_profile),
        "limits": _plain(value.limits),
        "progress": _plain(value.progress),
        "failure": _plain(value.failure),
        "metadata": _plain(value.metadata, without=("model_card",)),
        "metrics": dict(value.metrics),
        "labels": dict(value.labels),
        "archive_time": value.archive_time,
        "training_job": value.training_job or None,
        "verify_time": value.verify_time,
        "revision": value.revision,
        "create_time": value.create_time,
        "update_time": value.update_time,
    }


def _plain(value: BaseModel | None, *, without: Collection[str] = ()) -> Any:
    """For a JSON column: what is None is left out."""
    if value is None:
        return None
    fields = {name: getattr(value, name) for name in type(value).model_fields if name not in without}
    return {
        name: _plain(field)
        if isinstance(field, BaseModel)
        else field.total_seconds()
        if isinstance(field, timedelta)
        else plain_copy(field)
        for name, field in fields.items()
        if field is not None
    }


def _model(row: Any, aliases: Mapping[str, str]) -> Model:
    model_id = ModelId.parse(row.name)
    current = current_version_of(aliases)
    return Model(
        uid=row.uid,
        name=model_id.name,
        display_name=row.display_name,
        description=row.description,
        task_type=row.task_type,
        labels=row.labels,
        family=row.family or "",
        base_model=ModelId.parse(row.base_model).name if row.base_model else "",
        trainable=row.trainable,
        rank=getattr(row, RANK, 0),
        current_version=model_id.version_name(current) if current else "",
        aliases=aliases,
        revision=row.revision,
        create_time=row.create_time,
        update_time=row.update_time,
    )


async def _announce(connection: AsyncConnection, uid: str) -> None:
    await connection.execute(sa.select(sa.func.pg_notify(CHANNEL, uid)))


def _alias_change(row: Any) -> AliasChange:
    return AliasChange(
        alias=row.alias,
        from_version=row.from_version or "",
        to_version=row.to_version or "",
        subject=row.subject,
        create_time=row.create_time,
    )
