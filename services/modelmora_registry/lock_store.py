"""Tables and queries of locks, fingerprints and verification, one named method each; a method is one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from modelmora.errors import DatabaseUnavailable, LockExists, LockNotFound, RequestIdReused
from modelmora_runtime.db import Database
from modelmora_runtime.ids import uuid7
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from modelmora_registry.domain import ModelVersionState
from modelmora_registry.locks import FileVerdict, Fingerprint, plain, similarity_of
from modelmora_registry.store import RequestKey
from modelmora_registry.tables_store import alias, artifact_file, model, model_version

_metadata = sa.MetaData()
_uid = sa.Uuid(as_uuid=False)
_text = sa.Text()
_time = sa.TIMESTAMP(timezone=True)
_json = JSONB(none_as_null=True)

model_lock = sa.Table(
    "model_lock",
    _metadata,
    sa.Column("uid", _uid, primary_key=True),
    sa.Column("lock_id", _text),
    sa.Column("digest", _text),
    sa.Column("yaml", _text),
    sa.Column("request_id", _uid),
    sa.Column("request_digest", _text),
    sa.Column("create_time", _time),
)
fingerprint = sa.Table(
    "fingerprint",
    _metadata,
    sa.Column("model_version_id", _uid, primary_key=True),
    sa.Column("profile", _text, primary_key=True),
    sa.Column("golden", _text, primary_key=True),
    sa.Column("kept", _json),
    sa.Column("last", _json),
    sa.Column("similarity", sa.Double),
    sa.Column("matches", sa.Boolean),
    sa.Column("create_time", _time),
    sa.Column("last_time", _time),
)
file_state = sa.Table(
    "file_state",
    _metadata,
    sa.Column("sha256", _text, primary_key=True),
    sa.Column("inode", sa.BigInteger, primary_key=True),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("mtime_ns", sa.BigInteger),
    sa.Column("ctime_ns", sa.BigInteger),
    sa.Column("found_sha256", _text),
    sa.Column("hash_time", _time),
)
file_drift = sa.Table(
    "file_drift",
    _metadata,
    sa.Column("model_version_id", _uid, primary_key=True),
    sa.Column("path", _text, primary_key=True),
    sa.Column("verdict", _text),
    sa.Column("found_sha256", _text),
    sa.Column("find_time", _time),
)
_READY = ModelVersionState.READY.value


@dataclass(frozen=True)
class FileState:
    """What the file system says of a file. While none of it changes, the content is taken for unchanged."""

    inode: int
    """As a signed number of 64 bits, as the table has it."""
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True)
class Hashed:
    """That a file was hashed: what it should be, what it was, and what the file system said of it then."""

    sha256: str
    found_sha256: str
    state: FileState


@dataclass(frozen=True)
class Place:
    """A file of a READY version."""

    uid: str
    name: str
    path: str


@dataclass(frozen=True)
class Behaviour:
    """What is known of a version's answers under one profile: the fingerprint that is kept, and the last one here."""

    kept: Fingerprint
    last: Fingerprint | None
    """None: nobody has loaded it here; the one that is kept came with a lock."""
    similarity: float
    matches: bool
    news: bool = False
    """Whether it matches is otherwise than before."""


@dataclass(frozen=True)
class LockRow:
    uid: str
    lock_id: str
    digest: str
    create_time: datetime
    yaml: str = ""


class LockStore:
    def __init__(self, database: Database, is_migrated: Any) -> None:
        self._database = database
        self._is_migrated = is_migrated

    # Locks.

    async def create_lock(self, lock_id: str, digest: str, text: str, request: RequestKey | None) -> LockRow:
        """The same text under the same id is the same lock. Raises LockExists, RequestIdReused."""
        async with self._begin() as connection:
            values = {
                "uid": str(uuid7()),
                "lock_id": lock_id,
                "digest": digest,
                "yaml": text,
                "request_id": request.request_id if request else None,
                "request_digest": request.digest if request else None,
                "create_time": sa.func.now(),
            }
            # Of two at once the second waits here for the first.
            await connection.execute(insert(model_lock).values(values).on_conflict_do_nothing())
            row = (await connection.execute(sa.select(model_lock).where(model_lock.c.lock_id == lock_id))).first()
            if row is None:  # The request's id was spent under another id.
                raise RequestIdReused(request_id=request.request_id if request else "")
            if row.digest != digest:
                raise LockExists(f"there is another model lock {lock_id}", lock=lock_id)
            return _lock_row(row)

    async def earlier_lock(self, request: RequestKey) -> LockRow | None:
        """What an earlier call with this request id made. Raises RequestIdReused."""
        async with self._read() as connection:
            query = sa.select(model_lock).where(model_lock.c.request_id == request.request_id)
            row = (await connection.execute(query)).first()
        if row is not None and row.request_digest != request.digest:
            raise RequestIdReused(request_id=request.request_id)
        return None if row is None else _lock_row(row)

    async def get_lock(self, lock_id: str) -> LockRow:
        """Raises LockNotFound."""
        async with self._read() as connection:
            row = (await connection.execute(sa.select(model_lock).where(model_lock.c.lock_id == lock_id))).first()
        if row is None:
            raise LockNotFound(f"there is no model lock {lock_id}", lock=lock_id)
        return _lock_row(row)

    async def list_locks(self, after: str, limit: int) -> list[LockRow]:
        """By id, those after `after`, without their text."""
        columns = (model_lock.c.uid, model_lock.c.lock_id, model_lock.c.digest, model_lock.c.create_time)
        async with self._read() as connection:
            query = sa.select(*columns).where(model_lock.c.lock_id > after).order_by(model_lock.c.lock_id).limit(limit)
            return [LockRow(**row) for row in (await connection.execute(query)).mappings()]

    async def delete_lock(self, lock_id: str) -> None:
        """Raises LockNotFound."""
        async with self._begin() as connection:
            gone = await connection.execute(sa.delete(model_lock).where(model_lock.c.lock_id == lock_id))
            if not gone.rowcount:
                raise LockNotFound(f"there is no model lock {lock_id}", lock=lock_id)

    async def current_models(self, limit: int) -> list[str]:
        """The models that have a current version, by name."""
        query = (
            sa.select(model.c.name)
            .where(sa.exists().where(alias.c.model_id == model.c.uid, alias.c.alias.in_(("production", "latest"))))
            .order_by(model.c.name)
            .limit(limit)
        )
        async with self._read() as connection:
            return list(await connection.scalars(query))

    # Fingerprints.

    async def behaviours(self, uid: str) -> list[Behaviour]:
        """Of every profile, the one that answered last first."""
        query = sa.select(fingerprint).where(fingerprint.c.model_version_id == uid)
        async with self._read() as connection:
            rows = await connection.execute(query.order_by(fingerprint.c.last_time.desc().nulls_last()))
            return [_behaviour(row) for row in rows]

    async def keep_fingerprint(self, uid: str, made: Fingerprint) -> None:
        """As the one to compare with, from a lock; unless there is one of its profile and golden set."""
        async with self._begin() as connection:
            await self._keep(connection, uid, made)

    async def record_fingerprint(self, uid: str, made: Fingerprint) -> Behaviour:
        """Keeps the first of its profile and golden set, and compares a later one with it."""
        key = (
            fingerprint.c.model_version_id == uid,
            fingerprint.c.profile == profile_key(made),
            fingerprint.c.golden == made.golden,
        )
        async with self._begin() as connection:
            await self._keep(connection, uid, made)
            row = (await connection.execute(sa.select(fingerprint).where(*key).with_for_update())).one()
            kept = Fingerprint.model_validate(row.kept)
            similarity = similarity_of(made.golden, kept.outputs, made.outputs)
            matches = similarity >= kept.tolerance
            last = {"last": plain(made), "similarity": similarity, "matches": matches, "last_time": sa.func.now()}
            await connection.execute(sa.update(fingerprint).where(*key).values(last))
            return Behaviour(kept, made, similarity, matches, news=matches != row.matches)

    async def forget_fingerprints(self, uid: str) -> None:
        """The next load of the version is the first again."""
        async with self._begin() as connection:
            await connection.execute(sa.delete(fingerprint).where(fingerprint.c.model_version_id == uid))

    async def _keep(self, connection: AsyncConnection, uid: str, made: Fingerprint) -> None:
        statement = insert(fingerprint).values(
            model_version_id=uid,
            profile=profile_key(made),
            golden=made.golden,
            kept=plain(made),
            similarity=1.0,
            matches=True,
            create_time=sa.func.now(),
        )
        await connection.execute(statement.on_conflict_do_nothing())

    # Verification.

    async def file_states(self, digests: Collection[str]) -> Mapping[tuple[str, FileState], str]:
        """What the content of a file was found to be, by what it should be and its state then."""
        async with self._read() as connection:
            rows = await connection.execute(sa.select(file_state).where(file_state.c.sha256.in_(set(digests))))
            return {(row.sha256, _state(row)): row.found_sha256 for row in rows}

    async def record_hashed(self, hashed: Sequence[Hashed]) -> None:
        if hashed:
            async with self._begin() as connection:
                await insert_hashed(connection, hashed)

    async def record_verdicts(self, verdicts: Mapping[str, Sequence[FileVerdict]], verified: Collection[str]) -> bool:
        """By version uid: what was found of its files. Answers whether anything is drifted that was not, or the other
        way round. Those in `verified` were looked at whole."""
        changed = False
        async with self._begin() as connection:
            for uid in sorted({*verdicts, *verified}):
                there = sa.select(model_version.c.uid).where(model_version.c.uid == uid).with_for_update(key_share=True)
                if await connection.scalar(there) is None:
                    continue  # Deleted meanwhile.
                found = verdicts.get(uid, ())
                bad = {verdict.path: verdict for verdict in found if verdict.verdict != "intact"}
                gone = sa.delete(file_drift).where(file_drift.c.model_version_id == uid)
                if uid in verified:
                    gone = gone.where(file_drift.c.path.not_in(list(bad)))
                else:
                    gone = gone.where(file_drift.c.path.in_([v.path for v in found if v.path not in bad]))
                changed |= bool((await connection.execute(gone)).rowcount)
                for path, verdict in bad.items():
                    statement = insert(file_drift).values(
                        model_version_id=uid,
                        path=path,
                        verdict=verdict.verdict,
                        found_sha256=verdict.found_sha256,
                        find_time=sa.func.now(),
                    )
                    made = await connection.execute(statement.on_conflict_do_nothing())
                    changed |= bool(made.rowcount)
                if uid in verified:
                    # No new revision: nothing of the version has changed.
                    when = sa.update(model_version).where(model_version.c.uid == uid)
                    await connection.execute(when.values(verify_time=sa.func.now()))
        return changed

    async def places_of(self, sha256: str, limit: int = 1000) -> list[Place]:
        """Where READY versions have a file of this content."""
        query = (
            sa.select(model_version.c.uid, model.c.name, model_version.c.version, artifact_file.c.path)
            .select_from(artifact_file)
            .join(model_version, model_version.c.uid == artifact_file.c.model_version_id)
            .join(model, model.c.uid == model_version.c.model_id)
            .where(artifact_file.c.sha256 == sha256, model_version.c.state == _READY)
            .order_by(model_version.c.uid, artifact_file.c.path)
            .limit(limit)
        )
        async with self._read() as connection:
            rows = await connection.execute(query)
            return [Place(row.uid, f"models/{row.name}/versions/{row.version}", row.path) for row in rows]

    async def next_to_scrub(self, interval: timedelta) -> tuple[str | None, float]:
        """The content that was hashed longest ago, if that is `interval` ago, and the seconds until the next is due."""
        oldest = sa.select(
            file_state.c.sha256,
            sa.func.extract("epoch", file_state.c.hash_time + interval - sa.func.now()).label("due"),
        )
        async with self._read() as connection:
            row = (await connection.execute(oldest.order_by(file_state.c.hash_time).limit(1))).first()
        if row is None:
            return None, interval.total_seconds()
        due = float(row.due)
        return (row.sha256, 0.0) if due <= 0 else (None, due)

    async def forget_states(self, sha256: str, keep: Collection[int] = ()) -> None:
        """Of inodes that are gone."""
        async with self._begin() as connection:
            gone = sa.delete(file_state).where(file_state.c.sha256 == sha256, file_state.c.inode.not_in(list(keep)))
            await connection.execute(gone)

    async def drifted(self, limit: int = 5) -> tuple[list[str], int]:
        """Some of what is drifted, in words, and of how many versions there is something to say."""
        name = sa.func.concat(model.c.name, "@", model_version.c.version)
        odd = sa.select(fingerprint.c.model_version_id).where(~fingerprint.c.matches)
        both = sa.union(sa.select(file_drift.c.model_version_id), odd).subquery()
        files = sa.func.concat(name, ": ", file_drift.c.path, " is ", file_drift.c.verdict)
        answers = sa.func.concat(name, ": its answers have changed, similarity ", fingerprint.c.similarity)
        async with self._read() as connection:
            count = await connection.scalar(sa.select(sa.func.count()).select_from(both)) or 0
            if not count:
                return [], 0
            words: list[str] = []
            for table, text, where in ((file_drift, files, sa.true()), (fingerprint, answers, ~fingerprint.c.matches)):
                query = (
                    sa.select(text)
                    .select_from(table)
                    .join(model_version, model_version.c.uid == table.c.model_version_id)
                    .join(model, model.c.uid == model_version.c.model_id)
                )
                words += await connection.scalars(query.where(where).order_by(*table.primary_key).limit(limit))
            return words[:limit], int(count)

    # Pieces of transactions.

    def _begin(self) -> AbstractAsyncContextManager[AsyncConnection]:
        self._check_migrated()
        return self._database.begin()

    def _read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        self._check_migrated()
        return self._database.read()

    def _check_migrated(self) -> None:
        if not self._is_migrated():
            raise DatabaseUnavailable("the registry's tables are not there yet", retry_after_seconds=1.0)


async def insert_hashed(connection: AsyncConnection, hashed: Sequence[Hashed]) -> None:
    """Inside a transaction: what was hashed just now. Also takes the place of what was never looked at (inode 0)."""
    by_key = {(each.sha256, each.state.inode): each for each in hashed}
    statement = insert(file_state).values(
        [
            {
                "sha256": each.sha256,
                "found_sha256": each.found_sha256,
                "inode": each.state.inode,
                "size_bytes": each.state.size_bytes,
                "mtime_ns": each.state.mtime_ns,
                "ctime_ns": each.state.ctime_ns,
                "hash_time": sa.func.now(),
            }
            for _, each in sorted(by_key.items(), key=lambda item: item[0])
        ]
    )
    columns = ("size_bytes", "mtime_ns", "ctime_ns", "found_sha256", "hash_time")
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[file_state.c.sha256, file_state.c.inode],
            set_={column: statement.excluded[column] for column in columns},
        )
    )
    never = sa.delete(file_state).where(
        file_state.c.inode == 0, file_state.c.sha256.in_({each.sha256 for each in hashed})
    )
    await connection.execute(never)


def profile_key(made: Fingerprint) -> str:
    """What must be the same for two fingerprints to be compared; libraries may differ, that is what is asked."""
    profile = made.engine_profile
    return f"{profile.backend}/{profile.precision}/{profile.batch_rule}"


def _behaviour(row: Any) -> Behaviour:
    last = None if row.last is None else Fingerprint.model_validate(row.last)
    return Behaviour(Fingerprint.model_validate(row.kept), last, row.similarity, row.matches)


def _state(row: Any) -> FileState:
    return FileState(row.inode, row.size_bytes, row.mtime_ns, row.ctime_ns)


def _lock_row(row: Any) -> LockRow:
    return LockRow(row.uid, row.lock_id, row.digest, row.create_time, row.yaml)
