"""What lifecycle writes down: eviction decisions with their inputs, acquire events, and what loads took.

Nothing here is on the way of a load or a request. Writes go through a bounded queue to one task, many rows at a time;
what does not fit, or finds the database away, is dropped and counted: a decision is worth explaining, not worth waiting
for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from modelmora.errors import InvalidArgument, ModelMoraError
from modelmora_runtime.db import Database
from modelmora_runtime.ids import uuid7
from prometheus_client import Counter
from sqlalchemy.dialects.postgresql import JSONB, insert

from modelmora_lifecycle.domain import EngineLimits, StartMode
from modelmora_lifecycle.eviction import Decision, Impossible, Trigger
from modelmora_lifecycle.ledger import minus, positive
from modelmora_lifecycle.prediction import Measured, Setup

log = logging.getLogger(__name__)

QUEUE_ROWS = 10_000
ROWS_AT_ONCE = 500
PRUNE_EVERY = 1000
MEASUREMENTS_KEPT = 10_000
EVENTS_AT_ONCE = 200
"""Of a trace: each caller who reads one makes the host hold so many."""
DROPPED = Counter("modelmora_lifecycle_rows_dropped", "Decisions, events and measurements that could not be kept.")

_metadata = sa.MetaData()
_decision = sa.Table(
    "eviction_decision",
    _metadata,
    sa.Column("uid", sa.Uuid, primary_key=True),
    sa.Column("node", sa.String(255)),
    sa.Column("model_version", sa.Text),
    sa.Column("outcome", sa.Text),
    sa.Column("victims", JSONB),
    sa.Column("inputs", JSONB),
    sa.Column("create_time", sa.TIMESTAMP(timezone=True)),
)
_TRIGGER = sa.func.coalesce(_decision.c.inputs["trigger"].astext, Trigger.PLACEMENT.value)
"""Rows of before there were others have none."""
_measurement = sa.Table(
    "measurement",
    _metadata,
    sa.Column("node", sa.String(255), primary_key=True),
    sa.Column("model_version", sa.Text, primary_key=True),
    sa.Column("engine", sa.Text, primary_key=True),
    sa.Column("profile", sa.Text, primary_key=True),
    sa.Column("limits", sa.Text, primary_key=True),
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("memory", JSONB),
    sa.Column("learned", JSONB),
    sa.Column("load_seconds", sa.Float),
    sa.Column("update_time", sa.TIMESTAMP(timezone=True)),
)
_MEASURED_WITH = ("model_version", "engine", "profile", "limits", "device")
_event = sa.Table(
    "acquire_event",
    _metadata,
    sa.Column("uid", sa.Uuid, primary_key=True),
    sa.Column("node", sa.String(255)),
    sa.Column("model_version", sa.Text),
    sa.Column("priority", sa.Integer),
    sa.Column("start_time", sa.TIMESTAMP(timezone=True)),
    sa.Column("use_seconds", sa.Float),
    sa.Column("memory", JSONB),
    sa.Column("load_seconds", sa.Float),
)


@dataclass(frozen=True)
class Acquired:
    """A version was wanted, used for a while and let go."""

    model_version: str
    priority: int
    start_time: datetime
    use_seconds: float
    memory: Mapping[str, int]
    load_seconds: float


@dataclass(frozen=True)
class Kept:
    """How much is kept: the newest rows of each kind, acquire events also by age."""

    decisions: int = 10_000
    events: int = 100_000
    event_age: timedelta = timedelta(days=7)


class LifecycleStore:
    """Tables of one node. Every method may raise DatabaseUnavailable."""

    def __init__(self, database: Database, node: str, kept: Kept) -> None:
        self._database = database
        self._node = node
        self._kept = kept

    async def add(self, rows: Sequence[Row]) -> None:
        """All of them or none; rows may be of any kind."""
        events = [{"uid": uuid7(), "node": self._node, **asdict(row)} for row in rows if isinstance(row, Acquired)]
        decisions = [
            {"uid": uuid7(), "node": self._node, **decision_row(row)} for row in rows if isinstance(row, Decision)
        ]
        # In one order always: two transactions that change the same rows must not wait for each other.
        measured = sorted((measured_row(row) for row in rows if isinstance(row, Measured)), key=_measured_key)
        async with self._database.begin() as connection:
            if decisions:
                await connection.execute(insert(_decision), decisions)
            if events:
                await connection.execute(insert(_event), events)
            for row in measured:
                values = {name: row[name] for name in ("memory", "learned", "load_seconds")} | {
                    "update_time": sa.func.now()
                }
                statement = insert(_measurement).values(node=self._node, **row, update_time=sa.func.now())
                await connection.execute(
                    statement.on_conflict_do_update(index_elements=["node", *_MEASURED_WITH], set_=values)
                )

    async def prune(self) -> None:
        """Leaves the newest rows of this node. The ids of decisions are in the order of time."""
        newest = (
            sa.select(_decision.c.uid)
            .where(_decision.c.node == self._node)
            .order_by(_decision.c.uid.desc())
            .offset(self._kept.decisions)
            .limit(1)
            .scalar_subquery()
        )
        oldest_measured = (
            sa.select(_measurement.c.update_time)
            .where(_measurement.c.node == self._node)
            .order_by(_measurement.c.update_time.desc())
            .offset(MEASUREMENTS_KEPT)
            .limit(1)
            .scalar_subquery()
        )
        oldest_event = (
            sa.select(_event.c.start_time)
            .where(_event.c.node == self._node)
            .order_by(_event.c.start_time.desc())
            .offset(self._kept.events)
            .limit(1)
            .scalar_subquery()
        )
        aged = sa.func.now() - self._kept.event_age
        async with self._database.begin() as connection:
            await connection.execute(
                sa.delete(_event).where(
                    _event.c.node == self._node,
                    sa.or_(_event.c.start_time <= oldest_event, _event.c.start_time < aged),
                )
            )
            await connection.execute(
                sa.delete(_decision).where(_decision.c.node == self._node, _decision.c.uid <= newest)
            )
            await connection.execute(
                sa.delete(_measurement).where(
                    _measurement.c.node == self._node, _measurement.c.update_time <= oldest_measured
                )
            )

    async def decisions(
        self, terms: Mapping[str, str] | None = None, before: UUID | None = None, limit: int = 100
    ) -> list[Mapping[str, Any]]:
        """Of this node, newest first, those older than `before`; `terms`: columns, or `trigger`, and the value that
        they must have."""
        query = sa.select(_decision).where(_decision.c.node == self._node)
        for name, value in (terms or {}).items():
            query = query.where((_TRIGGER if name == "trigger" else _decision.c[name]) == value)
        if before is not None:
            query = query.where(_decision.c.uid < before)
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(_decision.c.uid.desc()).limit(limit))
            return [dict(row) for row in rows.mappings()]

    async def events(self, since: datetime | None, page: int = EVENTS_AT_ONCE) -> AsyncIterator[list[Acquired]]:
        """Acquire events of this node, oldest first, page by page."""
        last: tuple[datetime, UUID] | None = None
        while True:
            query = sa.select(_event).where(_event.c.node == self._node)
            if since is not None:
                query = query.where(_event.c.start_time >= since)
            if last is not None:
                query = query.where(sa.tuple_(_event.c.start_time, _event.c.uid) > sa.tuple_(*last))
            async with self._database.read() as connection:
                ordered = query.order_by(_event.c.start_time, _event.c.uid).limit(page)
                rows = (await connection.execute(ordered)).mappings().all()
            if not rows:
                return
            last = (rows[-1]["start_time"], rows[-1]["uid"])
            names = [column.name for column in _event.c if column.name not in ("uid", "node")]
            found = [Acquired(**{name: row[name] for name in names}) for row in rows]
            del rows  # who reads slowly holds a page once
            yield found

    async def measurements(self) -> list[Measured]:
        """Of this node, those changed last first."""
        query = (
            sa.select(_measurement)
            .where(_measurement.c.node == self._node)
            .order_by(_measurement.c.update_time.desc())
            .limit(MEASUREMENTS_KEPT)
        )
        async with self._database.read() as connection:
            return [_measured_of(row) for row in (await connection.execute(query)).mappings()]


Row = Decision | Measured | Acquired


class StoreJournal:
    """The bounded queue in front of the store, and the one task that empties it."""

    def __init__(self, store: LifecycleStore) -> None:
        self._store = store
        self._rows: asyncio.Queue[Row] = asyncio.Queue(QUEUE_ROWS)

    def decided(self, decision: Decision) -> None:
        self._put(decision)

    def measured(self, measured: Measured) -> None:
        self._put(measured)

    def acquired(self, event: Acquired) -> None:
        self._put(event)

    async def run(self) -> None:
        """Writes for ever."""
        written = 0
        while True:
            rows = [await self._rows.get()]
            while len(rows) < ROWS_AT_ONCE and not self._rows.empty():
                rows.append(self._rows.get_nowait())
            try:
                await self._write(rows)
                before, written = written, written + len(rows)
                if before // PRUNE_EVERY != written // PRUNE_EVERY:
                    await self._store.prune()
            except ModelMoraError as error:
                self._dropped(len(rows), error)
            finally:
                for _ in rows:
                    self._rows.task_done()

    async def _write(self, rows: Sequence[Row]) -> None:
        try:
            await self._store.add(rows)
        except (sa.exc.SQLAlchemyError, InvalidArgument) as error:
            for row in rows if len(rows) > 1 else ():  # one that the database does not take must not cost the others
                await self._write([row])
            if len(rows) == 1:
                self._dropped(1, error)

    async def flush(self, seconds: float) -> None:
        """Waits until all is written, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._rows.join()
        except TimeoutError:
            log.warning("%d rows of lifecycle were not kept", self._rows.qsize())

    def _dropped(self, rows: int, error: Exception) -> None:
        DROPPED.inc(rows)
        log.warning("%d rows of lifecycle were not kept: %s", rows, error)

    def _put(self, row: Row) -> None:
        try:
            self._rows.put_nowait(row)
        except asyncio.QueueFull:
            DROPPED.inc()


def measured_row(measured: Measured) -> dict[str, Any]:
    """A measurement as columns. Of all it was measured with, the limits are known only after a load."""
    limits = asdict(measured.limits)
    return {
        "model_version": measured.version,
        "engine": measured.setup.engine,
        "profile": measured.setup.profile,
        "limits": ",".join(f"{name}={value}" for name, value in limits.items() if value),
        "device": measured.setup.devices,
        "memory": dict(measured.peak),
        "learned": {
            "loading": dict(measured.loading),
            "base": dict(measured.base),
            "growth": dict(measured.growth),
            "batch_tokens": measured.batch_tokens,
            "limits": limits,
            "start_mode": measured.start_mode.value if measured.start_mode else None,
            "load_seconds": list(measured.load_seconds),
        },
        "load_seconds": measured.typical_load_seconds or 0.0,
    }


def _measured_of(row: sa.RowMapping) -> Measured:
    learned = row["learned"]
    # Of before growth was told apart: `memory` was the highest ever, `steady` the highest right after a load.
    base = learned.get("base", learned.get("steady", row["memory"]))
    return Measured(
        version=row["model_version"],
        setup=Setup(row["engine"], row["profile"], row["device"]),
        limits=EngineLimits(**learned.get("limits", {})),
        loading=learned.get("loading", {}),
        base=base,
        growth=learned.get("growth", positive(minus(row["memory"], base))),
        batch_tokens=learned.get("batch_tokens", 0),
        start_mode=StartMode(learned["start_mode"]) if learned.get("start_mode") else None,
        load_seconds=tuple(learned.get("load_seconds", (row["load_seconds"],))),
    )


def _measured_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in _MEASURED_WITH)


def decision_row(decision: Decision) -> dict[str, Any]:
    """A decision with everything it was made from, as plain JSON values: enough to tell it, and to make it again."""
    outcome = decision.outcome
    return {
        "model_version": decision.version,
        "outcome": type(outcome).__name__.lower(),
        "victims": list(outcome.victims) if not isinstance(outcome, Impossible) else [],
        "inputs": {
            "need": asdict(decision.need),
            "verdicts": [asdict(verdict) for verdict in decision.verdicts()],
            "policy": asdict(decision.policy),
            "time": decision.time,
            "answer": asdict(outcome),
            "trigger": decision.trigger.value,
            "reason": decision.reason,
        },
    }
