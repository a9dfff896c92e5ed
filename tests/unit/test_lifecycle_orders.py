"""Standing orders: read at their field, enforced in order, one revision after another; and what a trace writes down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from modelmora.errors import Conflict, InvalidArgument, Unavailable, VersionNotFound
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora_lifecycle.domain import Residency, VersionFacts
from modelmora_lifecycle.ledger import Budget, Device
from modelmora_lifecycle.messages import read_filter, read_token, write_token
from modelmora_lifecycle.orders import Orders, Terms
from modelmora_lifecycle.orders_service import read_node, read_residency
from modelmora_lifecycle.orders_store import NodeOrders, ResidencyOrder
from modelmora_lifecycle.scheduler import Rules

TERMS = Terms({"host": Budget(1000)}, 0.8, "lru", 0.0, 4)


class Told:
    """A node that writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def devices(self) -> dict[str, Device]:
        return {"host": Device(4000)}

    def configure(self, rules: Rules, budgets: Mapping[str, Budget], share: float) -> tuple[str, ...]:
        self.calls.append(
            ("configure", rules.policy.name, rules.idle_ttl_seconds, rules.load_concurrency, dict(budgets))
        )
        return ()

    def cordon(self, reason: str | None) -> None:
        self.calls.append(("cordon", reason))

    def set_residency(
        self, version: str, residency: Residency, facts: VersionFacts | None, *, repin: bool = False
    ) -> None:
        self.calls.append(("residency", version, residency, facts is not None))


class Known:
    """A registry that knows one version, is away, or has forgotten it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def resolve(self, reference: str) -> VersionFacts:
        return await self.facts(reference)

    async def facts(self, name: str) -> VersionFacts:
        if self.error is not None:
            raise self.error
        return VersionFacts(name, "echo")


class Kept:
    """A store of what was kept before."""

    def __init__(self, node: NodeOrders, residencies: dict[str, ResidencyOrder]) -> None:
        self.node, self.residencies = node, residencies
        self.forgotten: list[str] = []

    async def read(self) -> tuple[NodeOrders, dict[str, ResidencyOrder]]:
        return self.node, dict(self.residencies)

    async def forget_residency(self, version: str) -> None:
        self.forgotten.append(version)


def orders(node: Told, registry: Known | None = None, kept: Kept | None = None) -> Orders:
    return Orders(node, registry or Known(), kept, TERMS, Rules())  # type: ignore[arg-type]


async def test_what_was_kept_is_in_force_before_anything_may_load() -> None:
    node = Told()
    kept = Kept(
        NodeOrders({"host": Budget(share=0.5), "cuda:0": Budget(7)}, "gdsf", 9.0, None, True, "a new disk", 3),
        {"a": ResidencyOrder(Residency(preload=True), 1), "b": ResidencyOrder(Residency(keep_alive_seconds=5.0), 1)},
    )
    made = orders(node, kept=kept)
    await made.restore()
    # A budget for a device that is not there is kept for later; a cordon comes before what is to be loaded.
    assert node.calls[:2] == [("configure", "gdsf", 9.0, 4, {"host": Budget(share=0.5)}), ("cordon", "a new disk")]
    # What has to be loaded waits for its facts: a preload that is asked for without them would be lost.
    assert ("residency", "a", Residency(), False) in node.calls
    assert ("residency", "b", Residency(keep_alive_seconds=5.0), False) in node.calls
    node.calls.clear()
    await made._fulfil("a")
    assert node.calls == [("residency", "a", Residency(preload=True), True)]
    node.calls.clear()
    await made.restore()  # the lock was lost and taken again, and nobody has changed anything meanwhile
    assert [call[0] for call in node.calls] == ["configure", "cordon"]


async def test_a_registry_that_is_away_is_asked_again_and_a_version_that_is_gone_is_forgotten() -> None:
    node, registry = Told(), Known(Unavailable("away"))
    kept = Kept(NodeOrders(), {"a": ResidencyOrder(Residency(pinned=True), 1)})
    made = orders(node, registry, kept)
    await made.restore()
    await made._fulfil("a")
    assert made._to_fulfil == {"a"}
    registry.error = VersionNotFound("gone")
    await made._fulfil("a")
    assert made._to_fulfil == set()
    assert kept.forgotten == ["a"]
    assert node.calls[-1] == ("residency", "a", Residency(), False)


async def test_a_stale_revision_is_refused_and_every_change_is_one_more() -> None:
    node = Told()
    made = orders(node)
    facts = VersionFacts("a", "echo")
    first = await made.change_residency(facts, lambda _: Residency(pinned=True))
    second = await made.change_residency(facts, lambda _: Residency(pinned=False), first.revision)
    assert (first.revision, second.revision) == (1, 2)
    with pytest.raises(Conflict):
        await made.change_residency(facts, lambda _: Residency(pinned=True), first.revision)
    assert made.residency("a").residency == Residency()
    changed = await made.change_node(lambda before: NodeOrders(policy="ttl", revision=before.revision))
    with pytest.raises(Conflict):
        await made.change_node(lambda before: before, changed.revision + 1)
    assert made.terms.policy == "ttl"
    assert made.terms.budgets == {"host": Budget(1000)}


def field(message: pb.Node | pb.Residency, *mask: str) -> str:
    with pytest.raises(InvalidArgument) as caught:
        read_node(message, mask, {"host"}) if isinstance(message, pb.Node) else read_residency(message, mask)
    return caught.value.fields[0].field


def test_a_limit_of_zero_is_refused_at_its_field() -> None:
    assert field(pb.Residency(max_replicas=0), "max_replicas") == "residency.max_replicas"
    assert field(pb.Node(load_concurrency=0), "load_concurrency") == "node.load_concurrency"
    nothing = pb.Node(budgets=[pb.DeviceBudget(device="host")])
    assert field(nothing, "budgets") == "node.budgets[0].memory_bytes"


def test_what_the_mask_names_and_is_unset_goes_back_to_the_settings() -> None:
    mask = ("budgets", "policy", "idle_ttl", "load_concurrency")
    unset = {"budgets": {}, "policy": None, "idle_ttl_seconds": None, "load_concurrency": None}
    assert read_node(pb.Node(), mask, {"host"}) == unset
    assert read_residency(pb.Residency(), ("keep_alive", "max_replicas")) == {
        "keep_alive_seconds": None,
        "max_replicas": 1,
    }


def test_filters_and_page_tokens_say_what_is_wrong_with_them() -> None:
    assert read_filter('state = "loaded" AND model_version = x', {"state": {"loaded"}, "model_version": ()}) == {
        "state": "loaded",
        "model_version": "x",
    }
    for wrong in ("state", "colour = red", 'state = "gone"', "state = loaded AND state = x", "state = loaded OR a = b"):
        with pytest.raises(InvalidArgument):
            read_filter(wrong, {"state": {"loaded"}, "model_version": ()})
    assert read_token(write_token("models/a/b")) == "models/a/b"
    assert read_token("") == ""
    with pytest.raises(InvalidArgument):
        read_token("§")
