"""Tunings in the database, the newest of a node."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from modelmora_runtime.db import Database
from sqlalchemy.dialects.postgresql import JSONB, insert

from modelmora_lifecycle.domain import EngineProfile
from modelmora_lifecycle.tuning import Candidate, Tuning, TuningState

TUNINGS_KEPT = 1000

_metadata = sa.MetaData()
_tuning = sa.Table(
    "tuning",
    _metadata,
    sa.Column("uid", sa.Uuid, primary_key=True),
    sa.Column("node", sa.String(255)),
    sa.Column("model_version", sa.Text),
    sa.Column("state", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("candidates", JSONB(none_as_null=True)),
    sa.Column("proposal", JSONB(none_as_null=True)),
    sa.Column("applied", sa.Boolean),
    sa.Column("gate", sa.Float),
    sa.Column("create_time", sa.TIMESTAMP(timezone=True)),
    sa.Column("end_time", sa.TIMESTAMP(timezone=True)),
)


class TuningStore:
    """The table of one node. Every method may raise DatabaseUnavailable."""

    def __init__(self, database: Database, node: str) -> None:
        self._database = database
        self._node = node

    async def save(self, tuning: Tuning) -> None:
        """As it is now; of those that have ended the oldest go beyond TUNINGS_KEPT."""
        values = _row(tuning)
        statement = insert(_tuning).values(uid=uuid.UUID(tuning.uid), node=self._node, **values)
        newest = (
            sa.select(_tuning.c.uid)
            .where(_tuning.c.node == self._node)
            .order_by(_tuning.c.uid.desc())
            .offset(TUNINGS_KEPT)
            .limit(1)
            .scalar_subquery()
        )
        async with self._database.begin() as connection:
            await connection.execute(statement.on_conflict_do_update(index_elements=["uid"], set_=values))
            if tuning.state is not TuningState.RUNNING:
                await connection.execute(
                    sa.delete(_tuning).where(_tuning.c.node == self._node, _tuning.c.uid <= newest)
                )

    async def get(self, uid: str) -> Tuning | None:
        query = sa.select(_tuning).where(_tuning.c.node == self._node, _tuning.c.uid == uuid.UUID(uid))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        return _tuning_of(row) if row is not None else None

    async def recent(self, version: str, before_uid: str, limit: int) -> list[Tuning]:
        """Newest first; `version` empty: of all; `before_uid` empty: from the newest on."""
        query = sa.select(_tuning).where(_tuning.c.node == self._node).order_by(_tuning.c.uid.desc()).limit(limit)
        if version:
            query = query.where(_tuning.c.model_version == version)
        if before_uid:
            query = query.where(_tuning.c.uid < uuid.UUID(before_uid))
        async with self._database.read() as connection:
            return [_tuning_of(row) for row in (await connection.execute(query)).mappings()]

    async def end_running(self, reason: str, but: Collection[str]) -> None:
        """Those that a process left behind have failed; `but`: uids of our own."""
        statement = (
            sa.update(_tuning)
            .where(_tuning.c.node == self._node, _tuning.c.state == TuningState.RUNNING.value)
            .where(_tuning.c.uid.not_in([uuid.UUID(uid) for uid in but]))
            .values(state=TuningState.FAILED.value, reason=reason, end_time=sa.func.now())
        )
        async with self._database.begin() as connection:
            await connection.execute(statement)


def _row(tuning: Tuning) -> dict[str, Any]:
    return {
        "model_version": tuning.version,
        "state": tuning.state.value,
        "reason": tuning.reason,
        "candidates": [asdict(candidate) for candidate in tuning.candidates],
        "proposal": asdict(tuning.proposal) if tuning.proposal is not None else None,
        "applied": tuning.applied,
        "gate": tuning.gate,
        "create_time": datetime.fromtimestamp(tuning.create_time, UTC),
        "end_time": datetime.fromtimestamp(tuning.end_time, UTC) if tuning.end_time else None,
    }


def _tuning_of(row: Mapping[Any, Any]) -> Tuning:
    return Tuning(
        uid=str(row["uid"]),
        version=row["model_version"],
        gate=row["gate"],
        create_time=row["create_time"].timestamp(),
        state=TuningState(row["state"]),
        reason=row["reason"],
        candidates=tuple(Candidate(**{**c, "profile": EngineProfile(**c["profile"])}) for c in row["candidates"]),
        proposal=EngineProfile(**row["proposal"]) if row["proposal"] is not None else None,
        applied=row["applied"],
        end_time=row["end_time"].timestamp() if row["end_time"] is not None else 0.0,
    )
