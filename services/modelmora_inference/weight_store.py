"""Weights of tenants that were set while the platform ran: kept in the database, in force in every inference process.

A row stands for a weight that is not what the settings say. Whoever changes one announces WORD on the channel of jobs,
which every process listens to already; who hears it, or has just connected, reads all of them again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import sqlalchemy as sa
from modelmora.errors import DatabaseUnavailable, QuotaExceeded
from modelmora_runtime.db import Database
from sqlalchemy.dialects.postgresql import insert

from modelmora_inference.store import CHANNEL, JobStore

log = logging.getLogger(__name__)

WORD = "weights"
MAX_WEIGHTS = 10_000
READ_RETRY_SECONDS = 1.0

_weight = sa.Table(
    "tenant_weight",
    sa.MetaData(),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("weight", sa.Double),
    sa.Column("update_time", sa.TIMESTAMP(timezone=True)),
)


class WeightStore:
    """The rows."""

    def __init__(self, database: Database, jobs: JobStore) -> None:
        """`jobs` has the same migrations."""
        self._database = database
        self._jobs = jobs

    async def all(self) -> dict[str, float]:
        self._check_migrated()
        async with self._database.read() as connection:
            return {row.tenant: row.weight for row in await connection.execute(sa.select(_weight))}

    async def save(self, tenant: str, weight: float | None) -> None:
        """None: as the settings say. Raises QuotaExceeded, DatabaseUnavailable."""
        self._check_migrated()
        async with self._database.begin() as connection:
            if weight is None:
                await connection.execute(sa.delete(_weight).where(_weight.c.tenant == tenant))
            else:
                count = sa.select(sa.func.count()).where(_weight.c.tenant != tenant)
                if (await connection.scalar(count) or 0) >= MAX_WEIGHTS:
                    raise QuotaExceeded(f"{MAX_WEIGHTS} tenants have weights of their own")
                values = {"weight": weight, "update_time": sa.func.now()}
                row = insert(_weight).values(tenant=tenant, **values)
                await connection.execute(row.on_conflict_do_update(index_elements=["tenant"], set_=values))
            await connection.execute(sa.select(sa.func.pg_notify(CHANNEL, WORD)))

    def _check_migrated(self) -> None:
        if not self._jobs.migrated:
            raise DatabaseUnavailable("the table of weights is not there yet", retry_after_seconds=1.0)


class TenantWeights:
    """What is in force: the settings, and over them what was set. Without a store it lasts as long as the process."""

    def __init__(self, fixed: Mapping[str, float], in_force: dict[str, float], store: WeightStore | None) -> None:
        """`in_force` is changed in place: the queues read it."""
        self._fixed = fixed
        self._in_force = in_force
        self._store = store
        self._stale = asyncio.Event()

    def listed(self) -> list[tuple[str, float, bool]]:
        """Tenant, weight, and whether it was set while running."""
        return [
            (tenant, weight, weight != self._fixed.get(tenant, 1.0))
            for tenant, weight in sorted(self._in_force.items())
        ]

    def hear(self, word: str) -> None:
        """A word of the channel; the empty string: anything may have changed."""
        if word in ("", WORD):
            self._stale.set()

    async def set(self, tenant: str, weight: float) -> None:
        """Raises QuotaExceeded, DatabaseUnavailable; nothing changed then."""
        usual = weight == self._fixed.get(tenant, 1.0)
        if self._store is not None:
            await self._store.save(tenant, None if usual else weight)
        if usual and tenant not in self._fixed:
            self._in_force.pop(tenant, None)
        else:
            self._in_force[tenant] = weight

    async def follow(self) -> None:
        """Reads again what changed, without end."""
        assert self._store is not None
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                stored = await self._store.all()
            except DatabaseUnavailable:
                await asyncio.sleep(READ_RETRY_SECONDS)
                self._stale.set()
                continue
            self._in_force.clear()
            self._in_force.update(self._fixed)
            self._in_force.update(stored)
