"""Standing orders: what operators said of this node and its versions. Kept in the database, put into force on the node.

Changed by one process at a time, the one on duty, and one change after another. While the database is away nothing can
be changed, and what was in force stays so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from modelmora.errors import Conflict, ModelMoraError, NotFound

from modelmora_lifecycle.actor import Node
from modelmora_lifecycle.domain import Residency, VersionFacts
from modelmora_lifecycle.duty import Versions
from modelmora_lifecycle.eviction import PolicyName
from modelmora_lifecycle.ledger import Budget
from modelmora_lifecycle.orders_store import NodeOrders, OrdersStore, ResidencyOrder
from modelmora_lifecycle.scheduler import Rules

log = logging.getLogger(__name__)

_RETRY_SECONDS = (0.1, 10.0)


@dataclass(frozen=True)
class Terms:
    """Everything an order may say of the node, said: an order, and the settings where it is silent."""

    budgets: Mapping[str, Budget]
    share: float
    """Of a device that no budget names."""
    policy: PolicyName
    idle_ttl_seconds: float
    load_concurrency: int

    def budget(self, device: str) -> Budget:
        """As it was set; `share` where nobody has said anything."""
        return self.budgets.get(device, Budget(share=self.share))

    def under(self, orders: NodeOrders) -> Terms:
        """These, where `orders` does not say otherwise."""
        given = {
            name: value
            for name in ("policy", "idle_ttl_seconds", "load_concurrency")
            if (value := getattr(orders, name)) is not None
        }
        return replace(self, budgets={**self.budgets, **orders.budgets}, **given)


class Orders:
    """The orders in force. Belongs to the event loop."""

    def __init__(
        self, node: Node, versions: Versions, store: OrdersStore | None, settings: Terms, rules: Rules
    ) -> None:
        """Without a `store` they last as long as this process. `rules`: the figures that no order changes."""
        self.node = NodeOrders()
        self.residencies: dict[str, ResidencyOrder] = {}
        self._node = node
        self._versions = versions
        self._store = store
        self._settings = settings
        self._rules = rules
        self.warnings: tuple[str, ...] = ()
        """What of the budgets in force looks wrong, for people."""
        self._turn = asyncio.Lock()
        self._to_fulfil: set[str] = set()
        self._news = asyncio.Event()

    @property
    def terms(self) -> Terms:
        return self._settings.under(self.node)

    def residency(self, version: str) -> ResidencyOrder:
        return self.residencies.get(version, ResidencyOrder())

    async def restore(self) -> None:
        """Reads all orders and puts those into force that are not. Raises DatabaseUnavailable."""
        if self._store is None:
            self._enforce_node()
            return
        async with self._turn:
            self.node, found = await self._store.read()
            self._enforce_node()
            for version in {*found, *self.residencies}:
                before, now = self.residency(version), found.get(version, ResidencyOrder())
                if before != now:
                    self._enforce(version, now.residency, None)
            self.residencies = found

    async def fulfil(self) -> None:
        """For ever: brings what has to be in memory to the scheduler, once the registry has told what it is."""
        pause = _RETRY_SECONDS[0]
        while True:
            if not self._to_fulfil:
                self._news.clear()
                await self._news.wait()
                pause = _RETRY_SECONDS[0]
            for version in sorted(self._to_fulfil):
                await self._fulfil(version)
            if self._to_fulfil:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _RETRY_SECONDS[1])

    async def change_node(self, change: Callable[[NodeOrders], NodeOrders], revision: int = 0) -> NodeOrders:
        """`revision`: of the orders that the caller has read; 0: whichever. Conflict, DatabaseUnavailable."""
        async with self._turn:
            before = self.node
            if revision not in (0, before.revision):
                raise Conflict
            after = change(before)
            self.node = await self._store.save_node(after) if self._store else _next(after)
            self._enforce_node()
            return self.node

    async def change_residency(
        self, facts: VersionFacts, change: Callable[[Residency], Residency], revision: int = 0, *, repin: bool = False
    ) -> ResidencyOrder:
        """The same for one version. `repin`: its pin is said, be it as before."""
        async with self._turn:
            before = self.residency(facts.name)
            if revision not in (0, before.revision):
                raise Conflict
            after = change(before.residency)
            if self._store is not None:
                order = await self._store.save_residency(facts.name, after, before.revision)
            else:
                order = _next(ResidencyOrder(after, before.revision))
            self.residencies[facts.name] = order
            self._enforce(facts.name, after, facts, repin=repin)
            return order

    def deleted(self, version: str) -> None:
        """The same, to be done in a moment."""
        if version in self.residencies:
            self._to_fulfil.add(version)  # who looks for it finds that it is gone
            self._news.set()

    async def forget(self, version: str) -> None:
        """The registry knows this version no more."""
        async with self._turn:
            if self.residencies.pop(version, None) is not None:
                self._to_fulfil.discard(version)
                self._node.set_residency(version, Residency(), None)
                if self._store is not None:
                    await self._store.forget_residency(version)

    def _enforce_node(self) -> None:
        terms = self.terms
        rules = replace(
            self._rules,
            policy=replace(self._rules.policy, name=terms.policy),
            idle_ttl_seconds=terms.idle_ttl_seconds,
            load_concurrency=terms.load_concurrency,
        )
        there = self._node.devices()
        for device in terms.budgets.keys() - there.keys():
            log.warning("there is no device %s any more; its budget is kept for when there is", device)
        known = {device: budget for device, budget in terms.budgets.items() if device in there}
        self.warnings = self._node.configure(rules, known, terms.share)
        for warning in self.warnings:
            log.warning("%s", warning)
        self._node.cordon(self.node.cordon_reason if self.node.cordoned else None)

    def _enforce(self, version: str, residency: Residency, facts: VersionFacts | None, *, repin: bool = False) -> None:
        wanted = residency.pinned or residency.preload or residency.min_replicas > 0
        if wanted and facts is None:
            # A preload happens once, when it is known what is to be loaded.
            self._node.set_residency(version, replace(residency, preload=False), None)
            self._to_fulfil.add(version)
            self._news.set()
        else:
            self._node.set_residency(version, residency, facts, repin=repin)
            self._to_fulfil.discard(version)

    async def _fulfil(self, version: str) -> None:
        try:
            facts = await self._versions.facts(version)
        except NotFound:
            log.warning("%s has a residency and is not registered any more; it is forgotten", version)
            try:
                await self.forget(version)
            except ModelMoraError as error:
                log.warning("the residency of %s cannot be forgotten: %s", version, error.message)
        except ModelMoraError as error:
            log.warning("%s is to be in memory and the registry does not tell what it is: %s", version, error.message)
        else:
            if version in self._to_fulfil:
                self._enforce(version, self.residency(version).residency, facts)


def _next(order: Any) -> Any:
    return replace(order, revision=order.revision + 1, update_time=datetime.now(UTC))
