"""What lifecycle keeps: eviction decisions with their inputs, and measured footprints and load times by version.

Nothing here is on the way of a load. Writes go through a bounded queue to one task; what does not fit, or finds the
database away, is dropped and counted: a decision is worth explaining, not worth waiting for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from modelmora.errors import ModelMoraError
from modelmora_runtime.db import Database
from modelmora_runtime.ids import uuid7
from prometheus_client import Counter
from sqlalchemy.dialects.postgresql import JSONB, insert

from modelmora_lifecycle.domain import VersionFacts
from modelmora_lifecycle.eviction import Impossible, Plan
from modelmora_lifecycle.scheduler import Decision

log = logging.getLogger(__name__)

QUEUE_ROWS = 1000
PRUNE_EVERY = 100
MEASUREMENTS_KEPT = 10_000
DROPPED = Counter("modelmora_lifecycle_rows_dropped", "Decisions and measurements that could not be kept.")

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
_measurement = sa.Table(
    "measurement",
    _metadata,
    sa.Column("node", sa.String(255), primary_key=True),
    sa.Column("model_version", sa.Text, primary_key=True),
    sa.Column("engine", sa.Text),
    sa.Column("memory", JSONB),
    sa.Column("load_seconds", sa.Float),
    sa.Column("update_time", sa.TIMESTAMP(timezone=True)),
)


@dataclass(frozen=True)
class Measurement:
    """What a version took on this node: highest bytes by device, seconds of its last load."""

    model_version: str
    engine: str
    memory: Mapping[str, int]
    load_seconds: float


class LifecycleStore:
    """Tables of one node. Every method may raise DatabaseUnavailable."""

    def __init__(self, database: Database, node: str, decisions_kept: int) -> None:
        self._database = database
        self._node = node
        self._decisions_kept = decisions_kept

    async def add_decision(self, row: Mapping[str, Any]) -> None:
        async with self._database.begin() as connection:
            await connection.execute(insert(_decision).values(uid=uuid7(), node=self._node, **row))

    async def prune(self) -> None:
        """Leaves the newest rows of this node. The ids of decisions are in the order of time."""
        newest = (
            sa.select(_decision.c.uid)
            .where(_decision.c.node == self._node)
            .order_by(_decision.c.uid.desc())
            .offset(self._decisions_kept)
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
        async with self._database.begin() as connection:
            await connection.execute(
                sa.delete(_decision).where(_decision.c.node == self._node, _decision.c.uid <= newest)
            )
            await connection.execute(
                sa.delete(_measurement).where(
                    _measurement.c.node == self._node, _measurement.c.update_time <= oldest_measured
                )
            )

    async def decisions(self, limit: int = 100) -> list[Mapping[str, Any]]:
        """The newest of this node, newest first."""
        query = sa.select(_decision).where(_decision.c.node == self._node).order_by(_decision.c.uid.desc()).limit(limit)
        async with self._database.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    async def save_measurement(self, measured: Measurement) -> None:
        values = {
            "engine": measured.engine,
            "memory": dict(measured.memory),
            "load_seconds": measured.load_seconds,
            "update_time": sa.func.now(),
        }
        statement = insert(_measurement).values(node=self._node, model_version=measured.model_version, **values)
        async with self._database.begin() as connection:
            await connection.execute(
                statement.on_conflict_do_update(index_elements=["node", "model_version"], set_=values)
            )

    async def measurements(self) -> list[Measurement]:
        """Of this node, those changed last first."""
        query = (
            sa.select(_measurement)
            .where(_measurement.c.node == self._node)
            .order_by(_measurement.c.update_time.desc())
            .limit(MEASUREMENTS_KEPT)
        )
        async with self._database.read() as connection:
            return [
                Measurement(row["model_version"], row["engine"], row["memory"], row["load_seconds"])
                for row in (await connection.execute(query)).mappings()
            ]


class StoreJournal:
    """The bounded queue in front of the store, and the one task that empties it."""

    def __init__(self, store: LifecycleStore) -> None:
        self._store = store
        self._rows: asyncio.Queue[Mapping[str, Any] | Measurement] = asyncio.Queue(QUEUE_ROWS)

    def decided(self, decision: Decision) -> None:
        self._put(decision_row(decision))

    def measured(self, version: str, facts: VersionFacts, memory: Mapping[str, int], load_seconds: float) -> None:
        self._put(Measurement(version, facts.engine, dict(memory), load_seconds))

    async def run(self) -> None:
        """Writes for ever."""
        written = 0
        while True:
            row = await self._rows.get()
            try:
                await self._write(row)
                written += 1
                if written % PRUNE_EVERY == 0:
                    await self._store.prune()
            except (ModelMoraError, sa.exc.SQLAlchemyError) as error:
                DROPPED.inc()
                log.warning("a row of lifecycle was not kept: %s", error)
            finally:
                self._rows.task_done()

    async def flush(self, seconds: float) -> None:
        """Waits until all is written, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._rows.join()
        except TimeoutError:
            log.warning("%d rows of lifecycle were not kept", self._rows.qsize())

    def _put(self, row: Mapping[str, Any] | Measurement) -> None:
        try:
            self._rows.put_nowait(row)
        except asyncio.QueueFull:
            DROPPED.inc()

    async def _write(self, row: Mapping[str, Any] | Measurement) -> None:
        if isinstance(row, Measurement):
            await self._store.save_measurement(row)
        else:
            await self._store.add_decision(row)


def decision_row(decision: Decision) -> dict[str, Any]:
    """A decision with everything it was made from, as plain JSON values."""
    outcome = decision.outcome
    return {
        "model_version": decision.version,
        "outcome": type(outcome).__name__.lower(),
        "victims": list(outcome.victims) if not isinstance(outcome, Impossible) else [],
        "inputs": {
            "need": asdict(decision.need),
            "candidates": [asdict(candidate) for candidate in decision.candidates],
            "policy": asdict(decision.policy),
            "time": decision.time,
            "yields": list(outcome.yields) if isinstance(outcome, Plan) else [],
            "answer": asdict(outcome),
        },
    }
