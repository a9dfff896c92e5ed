"""The audit record: entries written once, listed newest first, kept for a bounded time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from modelmora.errors import DatabaseUnavailable, InvalidArgument
from modelmora_runtime.audit import Entry
from modelmora_runtime.db import Database
from sqlalchemy.dialects.postgresql import insert

from modelmora_registry.domain import AuditEntry, parse_model_name, parse_reference
from modelmora_registry.list_store import Condition, asked_of, page_of
from modelmora_registry.listing import Page
from modelmora_registry.store import Found

MAX_TEXT = 1000
DELETED_AT_ONCE = 10_000

_text = sa.Text()
audit_entry = sa.Table(
    "audit_entry",
    sa.MetaData(),
    sa.Column("position", sa.BigInteger, primary_key=True),
    sa.Column("uid", sa.Uuid(as_uuid=False)),
    sa.Column("create_time", sa.TIMESTAMP(timezone=True)),
    *(sa.Column(name, _text) for name in ("subject", "tenant", "method", "resource", "status", "reason", "peer")),
)
FIELDS: Mapping[str, Condition] = {
    name: asked_of(audit_entry.c[name])
    for name in ("subject", "tenant", "method", "resource", "status", "reason", "peer", "create_time")
}


class AuditStore:
    """`migrated` says whether the tables are there yet."""

    def __init__(self, database: Database, migrated: Callable[[], bool]) -> None:
        self._database = database
        self._migrated = migrated

    async def write(self, entries: Sequence[Entry]) -> None:
        """Each uid once, however often it is written. Raises DatabaseUnavailable, StorageFull."""
        rows = [
            {
                "uid": entry.uid,
                "create_time": entry.time,
                "resource": resource_name(_stored(entry.resource)),
                **{
                    name: _stored(getattr(entry, name))
                    for name in ("subject", "tenant", "method", "status", "reason", "peer")
                },
            }
            for entry in entries
        ]
        self._check_migrated()
        async with self._database.begin() as connection:
            await connection.execute(insert(audit_entry).values(rows).on_conflict_do_nothing())

    async def list(self, page: Page) -> Found:
        self._check_migrated()
        async with self._database.read() as connection:
            keys = dict(audit_entry.c)
            rows, token, _ = await page_of(connection, sa.select(audit_entry), audit_entry.c.uid, keys, FIELDS, page)
            return Found([_entry(row) for row in rows], token, None)

    async def drop_older(self, than: timedelta) -> int:
        """Removes entries that have been kept long enough, so many at a time; returns how many."""
        self._check_migrated()
        async with self._database.begin() as connection:
            # The one way past the guard of the table.
            await connection.execute(sa.text("SET LOCAL modelmora.retention = 'on'"))
            old = (
                sa.select(audit_entry.c.position)
                .where(audit_entry.c.create_time < sa.func.now() - than)
                .order_by(audit_entry.c.create_time)
                .limit(DELETED_AT_ONCE)
            )
            found = await connection.execute(sa.delete(audit_entry).where(audit_entry.c.position.in_(old)))
            return int(found.rowcount)

    def _check_migrated(self) -> None:
        if not self._migrated():
            raise DatabaseUnavailable("the registry's tables are not there yet", retry_after_seconds=1.0)


_NO_MODEL = re.compile(r"modelLocks/[^/]+|(jobs|replicas|tunings)/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Names of what is no model, though they look like `org/repo`."""


def resource_name(text: str) -> str:
    """As a resource name, so that one filter finds all that happened to it, however callers wrote it."""
    if _NO_MODEL.fullmatch(text):
        return text
    try:
        if "@" in text or "/versions/" in text:
            reference = parse_reference(text)
            return reference.model_id.version_name(reference.selector or "")
        return parse_model_name(text).name
    except InvalidArgument:
        return text


def _stored(text: str) -> str:
    """What a text column can hold of it."""
    return text.replace("\x00", "").encode(errors="replace").decode()[:MAX_TEXT]


def _entry(row: Any) -> AuditEntry:
    return AuditEntry(**{name: getattr(row, name) for name in AuditEntry.model_fields})
