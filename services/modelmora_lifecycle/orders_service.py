"""RPCs about what operators want of the node and its versions: residency, settings that change at run time, cordon."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
from modelmora.errors import InvalidArgument
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora_runtime import protomap

from modelmora_lifecycle.domain import MAX_REPLICAS, Residency
from modelmora_lifecycle.duty import Servicer
from modelmora_lifecycle.eviction import POLICIES
from modelmora_lifecycle.ledger import Budget
from modelmora_lifecycle.messages import page_size, read_token, replica_message, write_token
from modelmora_lifecycle.orders import Orders
from modelmora_lifecycle.orders_store import ResidencyOrder

Context = grpc.aio.ServicerContext[Any, Any]

MOST_LOADS = 64
LONGEST_SECONDS = 366 * 86400.0

_RESIDENCY_FIELDS = ("pinned", "keep_alive", "min_replicas", "max_replicas", "preload")
_NODE_FIELDS = ("budgets", "policy", "idle_ttl", "load_concurrency")


class OrdersServicer(Servicer):
    """See orders.py."""

    _orders: Orders
    _node_name: str

    async def GetResidency(self, request: pb.GetResidencyRequest, context: Context) -> pb.GetResidencyResponse:
        await self._duty.settle()
        version = (
            request.model if request.model in self._orders.residencies else (await self._resolve(request.model)).name
        )
        return pb.GetResidencyResponse(residency=residency_message(version, self._orders.residency(version)))

    async def UpdateResidency(self, request: pb.UpdateResidencyRequest, context: Context) -> pb.UpdateResidencyResponse:
        await self._duty.check()
        changes = read_residency(request.residency, _mask(request, _RESIDENCY_FIELDS))
        facts = await self._resolve(request.residency.model_version, "residency.model_version")

        def change(before: Residency) -> Residency:
            least = changes.get("min_replicas", before.min_replicas)
            most = changes.get("max_replicas", before.max_replicas)
            if least > most:
                field = "min_replicas" if "min_replicas" in changes else "max_replicas"
                raise InvalidArgument.at(f"residency.{field}", f"min_replicas {least} is above max_replicas {most}")
            return replace(before, **changes)

        repin = "pinned" in changes
        order = await self._orders.change_residency(facts, change, request.residency.revision, repin=repin)
        return pb.UpdateResidencyResponse(residency=residency_message(facts.name, order))

    async def ListResidencies(self, request: pb.ListResidenciesRequest, context: Context) -> pb.ListResidenciesResponse:
        await self._duty.settle()
        size, after = page_size(request.page_size), read_token(request.page_token)
        names = sorted(name for name in self._orders.residencies if name > after)
        return pb.ListResidenciesResponse(
            residencies=[residency_message(name, self._orders.residency(name)) for name in names[:size]],
            next_page_token=write_token(names[size - 1]) if len(names) > size else "",
        )

    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> pb.GetNodeResponse:
        await self._duty.settle()
        return pb.GetNodeResponse(node=self._node_message())

    async def UpdateNode(self, request: pb.UpdateNodeRequest, context: Context) -> pb.UpdateNodeResponse:
        await self._duty.check()
        changes = read_node(request.node, _mask(request, _NODE_FIELDS), self._node.devices())
        await self._orders.change_node(lambda before: replace(before, **changes), request.node.revision)
        await self._node.settled()
        node, there = self._node_message(), self._node.devices()
        nothing = [
            f"of the budget of {budget.device} nothing is in force: other programs use the memory"
            for budget in node.budgets
            if budget.device in there and not budget.effective_bytes
        ]
        over = [
            f"models have {over_bytes} bytes more on {device} than the budget: loads in progress and work are let "
            "finish, and go then; what is pinned stays"
            for device, over_bytes in sorted(self._node.scheduler.overdrawn.items())
        ]
        return pb.UpdateNodeResponse(node=node, warnings=[*self._orders.warnings, *nothing, *over])

    async def DrainNode(self, request: pb.DrainNodeRequest, context: Context) -> pb.DrainNodeResponse:
        await self._duty.check()
        reason = request.reason.strip() or "for maintenance"
        if len(reason) > 1000:
            raise InvalidArgument.at("reason", "is longer than 1000 characters")
        await self._orders.change_node(lambda before: replace(before, cordoned=True, cordon_reason=reason))
        if request.wait:
            await self._node.empty()
        there = [replica_message(replica, self._node) for replica in self._node.scheduler.replicas()]
        return pb.DrainNodeResponse(node=self._node_message(), replicas=there)

    async def UncordonNode(self, request: pb.UncordonNodeRequest, context: Context) -> pb.UncordonNodeResponse:
        await self._duty.check()
        await self._orders.change_node(lambda before: replace(before, cordoned=False, cordon_reason=""))
        return pb.UncordonNodeResponse(node=self._node_message())

    def _node_message(self) -> pb.Node:
        orders, terms = self._orders.node, self._orders.terms
        in_force = self._node.scheduler.ledger.budget
        message = pb.Node(
            name=self._node_name,
            budgets=[
                pb.DeviceBudget(
                    device=device,
                    memory_bytes=budget.memory_bytes,
                    share=budget.share,
                    effective_bytes=in_force.get(device, 0),
                )
                for device in sorted({*terms.budgets, *self._node.devices()})
                for budget in (terms.budget(device),)
            ],
            policy=terms.policy,
            load_concurrency=terms.load_concurrency,
            revision=orders.revision,
        )
        message.idle_ttl.FromTimedelta(timedelta(seconds=terms.idle_ttl_seconds))
        if orders.update_time is not None:
            message.update_time.FromDatetime(orders.update_time)
        if self._duty.standby:
            message.state, message.reason = pb.NODE_STATE_STANDBY, self._duty.reason
        elif not self._duty.on_duty:
            message.reason = self._duty.reason
        elif orders.cordoned:
            message.state, message.reason = pb.NODE_STATE_CORDONED, orders.cordon_reason
        else:
            message.state = pb.NODE_STATE_ACTIVE
        return message


def read_residency(message: pb.Residency, mask: tuple[str, ...]) -> dict[str, Any]:
    """The changes that the mask names. Raises InvalidArgument at the field."""
    plain = protomap.to_plain(message, at="residency")
    changes: dict[str, Any] = {name: plain[name] for name in mask if name != "keep_alive"}
    if "keep_alive" in mask:
        changes["keep_alive_seconds"] = _seconds(plain["keep_alive"], "residency.keep_alive")
    if "min_replicas" in mask and not 0 <= changes["min_replicas"] <= MAX_REPLICAS:
        raise InvalidArgument.at("residency.min_replicas", f"must be 0 to {MAX_REPLICAS}")
    if "max_replicas" in mask:
        changes["max_replicas"] = 1 if changes["max_replicas"] is None else changes["max_replicas"]
        if not 1 <= changes["max_replicas"] <= MAX_REPLICAS:
            raise InvalidArgument.at("residency.max_replicas", f"must be 1 to {MAX_REPLICAS}")
    return changes


def read_node(message: pb.Node, mask: tuple[str, ...], devices: Collection[str]) -> dict[str, Any]:
    """The same for the node. What is unset becomes None: as the settings say."""
    plain = protomap.to_plain(message, at="node")
    changes: dict[str, Any] = {}
    if "budgets" in mask:
        budgets: dict[str, Budget] = {}
        for index, budget in enumerate(message.budgets):
            at = f"node.budgets[{index}]"
            if budget.device not in devices:
                raise InvalidArgument.at(f"{at}.device", f"{budget.device!r} is none of {', '.join(sorted(devices))}")
            if budget.device in budgets:
                raise InvalidArgument.at(f"{at}.device", f"{budget.device} is named twice")
            budgets[budget.device] = _budget(budget, at)
        changes["budgets"] = budgets
    if "policy" in mask:
        if message.policy and message.policy not in POLICIES:
            raise InvalidArgument.at("node.policy", f"{message.policy!r} is none of {', '.join(POLICIES)}")
        changes["policy"] = message.policy or None
    if "idle_ttl" in mask:
        changes["idle_ttl_seconds"] = _seconds(plain["idle_ttl"], "node.idle_ttl")
    if "load_concurrency" in mask:
        changes["load_concurrency"] = plain["load_concurrency"]
        if plain["load_concurrency"] is not None and not 1 <= plain["load_concurrency"] <= MOST_LOADS:
            raise InvalidArgument.at("node.load_concurrency", f"must be 1 to {MOST_LOADS}")
    return changes


def residency_message(version: str, order: ResidencyOrder) -> pb.Residency:
    residency = order.residency
    message = pb.Residency(
        model_version=version,
        pinned=residency.pinned,
        min_replicas=residency.min_replicas,
        max_replicas=residency.max_replicas,
        preload=residency.preload,
        revision=order.revision,
    )
    if residency.keep_alive_seconds is not None:
        message.keep_alive.FromTimedelta(timedelta(seconds=residency.keep_alive_seconds))
    if order.update_time is not None:
        message.update_time.FromDatetime(order.update_time)
    return message


def _budget(budget: pb.DeviceBudget, at: str) -> Budget:
    if budget.memory_bytes and budget.share:
        raise InvalidArgument.at(at, "has both memory_bytes and share; give one")
    if budget.share:
        if not 0 < budget.share <= 1:  # also what is no number
            raise InvalidArgument.at(f"{at}.share", "must be above 0 and at most 1")
        return Budget(share=budget.share)
    if budget.memory_bytes <= 0:
        raise InvalidArgument.at(
            f"{at}.memory_bytes", "must be above 0: nothing could ever be loaded; to empty the node, drain it"
        )
    return Budget(memory_bytes=budget.memory_bytes)


def _seconds(duration: timedelta | None, at: str) -> float | None:
    if duration is None:
        return None
    if not 0 <= duration.total_seconds() <= LONGEST_SECONDS:
        raise InvalidArgument.at(at, "must be 0 s to 366 days")
    return duration.total_seconds()


def _mask(request: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    paths = tuple(request.update_mask.paths)
    if not paths:
        raise InvalidArgument.at("update_mask", f"must name at least one of {', '.join(known)}")
    for path in paths:
        if path not in known:
            raise InvalidArgument.at("update_mask", f"{path!r} cannot be changed; {', '.join(known)} can")
    return paths
