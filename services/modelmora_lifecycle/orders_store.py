"""What operators said of this node and its versions, in the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa
from modelmora.errors import Conflict
from modelmora_runtime.db import Database
from sqlalchemy.dialects.postgresql import JSONB, insert

from modelmora_lifecycle.domain import Residency
from modelmora_lifecycle.ledger import Budget

_metadata = sa.MetaData()
_residency = sa.Table(
    "residency",
    _metadata,
    sa.Column("node", sa.String(255), primary_key=True),
    sa.Column("model_version", sa.Text, primary_key=True),
    sa.Column("pinned", sa.Boolean),
    sa.Column("keep_alive_seconds", sa.Float),
    sa.Column("min_replicas", sa.Integer),
    sa.Column("max_replicas", sa.Integer),
    sa.Column("preload", sa.Boolean),
    sa.Column("revision", sa.BigInteger),
    sa.Column("update_time", sa.TIMESTAMP(timezone=True)),
)
_node = sa.Table(
    "node_setting",
    _metadata,
    sa.Column("node", sa.String(255), primary_key=True),
    sa.Column("budgets", JSONB),
    sa.Column("policy", sa.Text),
    sa.Column("idle_ttl_seconds", sa.Float),
    sa.Column("load_concurrency", sa.Integer),
    sa.Column("cordoned", sa.Boolean),
    sa.Column("cordon_reason", sa.Text),
    sa.Column("revision", sa.BigInteger),
    sa.Column("update_time", sa.TIMESTAMP(timezone=True)),
)


@dataclass(frozen=True)
class NodeOrders:
    """Of the node. None, and a device that is not named: as the settings say."""

    budgets: Mapping[str, Budget] = field(default_factory=dict)
    policy: str | None = None
    idle_ttl_seconds: float | None = None
    load_concurrency: int | None = None
    cordoned: bool = False
    cordon_reason: str = ""
    revision: int = 0
    update_time: datetime | None = None


@dataclass(frozen=True)
class ResidencyOrder:
    """Of one version. Revision 0: nobody has said anything."""

    residency: Residency = field(default_factory=Residency)
    revision: int = 0
    update_time: datetime | None = None


class OrdersStore:
    """Tables of one node. Every method may raise DatabaseUnavailable."""

    def __init__(self, database: Database, node: str) -> None:
        self._database = database
        self._name = node

    async def read(self) -> tuple[NodeOrders, dict[str, ResidencyOrder]]:
        async with self._database.read() as connection:
            row = (await connection.execute(sa.select(_node).where(_node.c.node == self._name))).mappings().first()
            query = sa.select(_residency).where(_residency.c.node == self._name).order_by(_residency.c.model_version)
            rows = (await connection.execute(query)).mappings().all()
        return _node_of(row) if row is not None else NodeOrders(), {r["model_version"]: _residency_of(r) for r in rows}

    async def save_residency(self, version: str, residency: Residency, revision: int) -> ResidencyOrder:
        """The next revision after `revision` (0: there was none). Conflict when another one is there."""
        values = {
            "pinned": residency.pinned,
            "keep_alive_seconds": residency.keep_alive_seconds,
            "min_replicas": residency.min_replicas,
            "max_replicas": residency.max_replicas,
            "preload": residency.preload,
        }
        time = await self._save(_residency, {"node": self._name, "model_version": version}, values, revision)
        return ResidencyOrder(residency, revision + 1, time)

    async def save_node(self, orders: NodeOrders) -> NodeOrders:
        """The revision after that of `orders`. Conflict when another one is there."""
        values = {
            "budgets": {
                device: {"memory_bytes": budget.memory_bytes} if budget.memory_bytes else {"share": budget.share}
                for device, budget in orders.budgets.items()
            },
            "policy": orders.policy,
            "idle_ttl_seconds": orders.idle_ttl_seconds,
            "load_concurrency": orders.load_concurrency,
            "cordoned": orders.cordoned,
            "cordon_reason": orders.cordon_reason,
        }
        time = await self._save(_node, {"node": self._name}, values, orders.revision)
        known = {name: getattr(orders, name) for name in values}
        return NodeOrders(**known, revision=orders.revision + 1, update_time=time)

    async def forget_residency(self, version: str) -> None:
        async with self._database.begin() as connection:
            await connection.execute(
                sa.delete(_residency).where(_residency.c.node == self._name, _residency.c.model_version == version)
            )

    async def _save(
        self, table: sa.Table, key: Mapping[str, object], values: Mapping[str, object], revision: int
    ) -> datetime:
        row = {**values, "revision": revision + 1, "update_time": sa.func.now()}
        statement = insert(table).values(**key, **row)
        upsert = statement.on_conflict_do_update(
            index_elements=list(key), set_=row, where=table.c.revision == revision
        ).returning(table.c.update_time)
        async with self._database.begin() as connection:
            time: datetime | None = await connection.scalar(upsert)
        if time is None:
            raise Conflict
        return time


def _node_of(row: sa.RowMapping) -> NodeOrders:
    return NodeOrders(
        budgets={device: Budget(**budget) for device, budget in row["budgets"].items()},
        **{name: row[name] for name in ("policy", "idle_ttl_seconds", "load_concurrency", "cordoned", "cordon_reason")},
        revision=row["revision"],
        update_time=row["update_time"],
    )


def _residency_of(row: sa.RowMapping) -> ResidencyOrder:
    names = ("pinned", "keep_alive_seconds", "min_replicas", "max_replicas", "preload")
    return ResidencyOrder(Residency(**{name: row[name] for name in names}), row["revision"], row["update_time"])
