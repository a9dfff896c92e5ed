"""Table and queries of external links, one named method each; a method is one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from modelmora.errors import Conflict, DatabaseUnavailable, LinkExists, LinkNotFound, ModelNotFound
from modelmora_runtime.db import Database
from modelmora_runtime.ids import uuid7
from modelmora_runtime.protomap import plain_copy
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from modelmora_registry.domain import ModelId, ModelVersion, ModelVersionState
from modelmora_registry.links import ExternalLink, LinkDraft, import_of, link_name
from modelmora_registry.list_store import page_of
from modelmora_registry.listing import Page
from modelmora_registry.tables_store import model, model_version

external_link = sa.Table(
    "external_link",
    sa.MetaData(),
    sa.Column("uid", sa.Uuid(as_uuid=False), primary_key=True),
    sa.Column("model_id", sa.Uuid(as_uuid=False)),
    sa.Column("registry_type", sa.Text),
    sa.Column("external_id", sa.Text),
    sa.Column("version", sa.Text),
    sa.Column("imported", sa.Boolean),
    sa.Column("import_time", sa.TIMESTAMP(timezone=True)),
    sa.Column("export_time", sa.TIMESTAMP(timezone=True)),
    sa.Column("sync_state", sa.Text),
    sa.Column("sync_reason", sa.Text),
    sa.Column("check_time", sa.TIMESTAMP(timezone=True)),
    sa.Column("metadata", JSONB(none_as_null=True)),
    sa.Column("exported_files", JSONB(none_as_null=True)),
    sa.Column("exported_digests", JSONB(none_as_null=True)),
    sa.Column("revision", sa.BigInteger),
    sa.Column("create_time", sa.TIMESTAMP(timezone=True)),
)
_STORED = (
    *("registry_type", "external_id", "version", "imported", "import_time", "export_time"),
    *("sync_state", "sync_reason", "check_time", "metadata", "exported_files", "exported_digests"),
    "revision",
)


class LinkStore:
    def __init__(self, database: Database, is_migrated: Callable[[], bool]) -> None:
        self._database = database
        self._is_migrated = is_migrated

    async def create(self, model_id: ModelId, draft: LinkDraft) -> ExternalLink:
        """With the version that was imported from there last, if one was. Raises ModelNotFound, LinkExists."""
        async with self._begin() as (connection, now):
            # An import that ends meanwhile holds the row: either it sees the link, or the link sees its version.
            model_uid = await self._model_uid(connection, model_id, lock=True)
            uid = str(uuid7())
            new = ExternalLink(
                name=link_name(model_id, uid),
                uid=uid,
                registry_type=draft.registry_type,
                external_id=draft.external_id,
                revision=1,
            )
            source = {"hub": "repo_id", "local": "path"}
            kind = "hub" if draft.registry_type == "huggingface" else "local"
            came = (
                sa.select(model_version.c.version, model_version.c.update_time)
                .where(
                    model_version.c.model_id == model_uid,
                    model_version.c.state == ModelVersionState.READY.value,
                    model_version.c.source[kind][source[kind]].astext == draft.external_id,
                )
                .order_by(model_version.c.create_time.desc())
                .limit(1)
            )
            if (row := (await connection.execute(came)).first()) is not None:
                new = new.with_import(row.version, now=row.update_time)
            made = await connection.scalar(
                insert(external_link)
                .values(uid=uid, model_id=model_uid, create_time=now, **_values(new))
                .on_conflict_do_nothing()
                .returning(external_link.c.uid)
            )
            if made is None:
                raise LinkExists(
                    f"{model_id} has a link to {draft.external_id} already", model=model_id, external=draft.external_id
                )
            return new

    async def get(self, model_id: ModelId, uid: str) -> ExternalLink:
        """Raises LinkNotFound."""
        async with self._begin() as (connection, _):
            return await self._link(connection, model_id, uid)

    async def list(self, model_id: ModelId, page: Page) -> tuple[Sequence[ExternalLink], str]:
        """One page and the token of the next. Raises ModelNotFound."""
        async with self._begin() as (connection, _):
            model_uid = await self._model_uid(connection, model_id)
            query = sa.select(external_link).where(external_link.c.model_id == model_uid)
            keys = {"create_time": external_link.c.create_time}
            rows, token, _ = await page_of(connection, query, external_link.c.uid, keys, {}, page)
            return [_link(row, model_id) for row in rows], token

    async def delete(self, model_id: ModelId, uid: str, etag: str) -> None:
        """Raises LinkNotFound, Conflict."""
        async with self._begin() as (connection, _):
            (await self._link(connection, model_id, uid, lock=True)).check_etag(etag)
            await connection.execute(sa.delete(external_link).where(external_link.c.uid == uid))

    async def change(
        self, model_id: ModelId, uid: str, change: Callable[[ExternalLink, datetime], ExternalLink]
    ) -> ExternalLink:
        """Raises LinkNotFound, Conflict."""
        async with self._begin() as (connection, now):
            old = await self._link(connection, model_id, uid, lock=True)
            return await _save(connection, change(old, now))

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[tuple[AsyncConnection, datetime]]:
        if not self._is_migrated():
            raise DatabaseUnavailable("the registry's tables are not there yet", retry_after_seconds=1.0)
        async with self._database.begin() as connection:
            yield connection, (await connection.execute(sa.select(sa.func.now()))).scalar_one()

    async def _model_uid(self, connection: AsyncConnection, model_id: ModelId, *, lock: bool = False) -> str:
        query = sa.select(model.c.uid).where(model.c.name == str(model_id))
        found = await connection.scalar(query.with_for_update(read=True) if lock else query)
        if found is None:
            raise ModelNotFound(f"there is no model {model_id}", model=model_id)
        return str(found)

    async def _link(
        self, connection: AsyncConnection, model_id: ModelId, uid: str, *, lock: bool = False
    ) -> ExternalLink:
        query = (
            sa.select(external_link)
            .join(model, model.c.uid == external_link.c.model_id)
            .where(external_link.c.uid == uid, model.c.name == str(model_id))
        )
        row = (await connection.execute(query.with_for_update(of=external_link) if lock else query)).first()
        if row is None:
            raise LinkNotFound(f"{model_id} has no link {uid}", model=model_id, link=uid)
        return _link(row, model_id)


async def note_import(connection: AsyncConnection, version: ModelVersion, now: datetime) -> None:
    """Where there is a link to where the version came from; in the transaction that makes it READY."""
    if (came := import_of(version)) is None:
        return
    registry_type, external_id = came
    query = (
        sa.select(external_link)
        .join(model, model.c.uid == external_link.c.model_id)
        .where(
            model.c.name == str(version.model_id),
            external_link.c.registry_type == registry_type,
            external_link.c.external_id == external_id,
        )
        .with_for_update(of=external_link)
    )
    if (row := (await connection.execute(query)).first()) is not None:
        await _save(connection, _link(row, version.model_id).with_import(version.version, now=now))


async def _save(connection: AsyncConnection, new: ExternalLink) -> ExternalLink:
    statement = sa.update(external_link).where(
        external_link.c.uid == new.uid, external_link.c.revision == new.revision - 1
    )
    if (await connection.execute(statement.values(**_values(new)))).rowcount != 1:
        raise Conflict(link=new.name)
    return new


def _values(link: ExternalLink) -> dict[str, Any]:
    return {name: plain_copy(getattr(link, name)) for name in _STORED}


def _link(row: Any, model_id: ModelId) -> ExternalLink:
    return ExternalLink(
        name=link_name(model_id, row.uid), uid=row.uid, **{name: getattr(row, name) for name in _STORED}
    )
