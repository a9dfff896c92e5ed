"""The RPCs of lifecycle: they translate, ask the node, and wait."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

import grpc
from modelmora.common.v1 import common_pb2
from modelmora.errors import InvalidArgument, ReplicaNotFound
from modelmora.lifecycle.v1 import lifecycle_pb2, lifecycle_pb2_grpc
from modelmora_runtime import protomap
from modelmora_runtime.interceptors import deadline_seconds

from modelmora_lifecycle.actor import Granted, Invited, LeaseEnd, Loading, Message, Node, Revoked, Yielding
from modelmora_lifecycle.domain import Replica, ReplicaState
from modelmora_lifecycle.duty import Duty, Servicer, Versions
from modelmora_lifecycle.messages import (
    STATES,
    VERSION_NAME,
    moment,
    page_size,
    profile_message,
    read_filter,
    read_token,
    replica_message,
    write_token,
)
from modelmora_lifecycle.orders import Orders
from modelmora_lifecycle.orders_service import OrdersServicer
from modelmora_lifecycle.placement_service import PlacementServicer
from modelmora_lifecycle.store import LifecycleStore
from modelmora_lifecycle.tuner import Tuner
from modelmora_lifecycle.tuning_service import TuningServicer

FIRST_MESSAGE_SECONDS = 10.0
MAX_IN_FLIGHT_BATCHES = 2
MOST_WAIT_SECONDS = 600.0


class LifecycleServicer(PlacementServicer, OrdersServicer, TuningServicer, lifecycle_pb2_grpc.LifecycleServiceServicer):
    """The public service."""

    def __init__(
        self,
        node: Node,
        versions: Versions,
        duty: Duty,
        orders: Orders,
        tuner: Tuner,
        store: LifecycleStore | None,
        node_name: str,
        stopping: asyncio.Event,
    ) -> None:
        super().__init__(node, versions, duty)
        self._orders = orders
        self._tuner = tuner
        self._store = store
        self._node_name = node_name
        self._stopping = stopping

    async def close(self) -> None:
        """No simulation is left."""
        if self._simulation is not None:
            self._simulation.cancel()
            await asyncio.wait((self._simulation,))

    async def LoadModel(
        self, request: lifecycle_pb2.LoadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> lifecycle_pb2.LoadModelResponse:
        await self._duty.check()
        known = VERSION_NAME.fullmatch(request.model) and self._node.serves(request.model)
        facts = await self._facts(request.model) if known else await self._resolve(request.model)
        # A little before the call's own end, so that the caller hears why. Who does not wait asks on behalf of no one.
        remaining = min(deadline_seconds(context) * 0.95, MOST_WAIT_SECONDS)
        deadline = time.monotonic() + (remaining if request.wait else MOST_WAIT_SECONDS)
        replica = await self._node.load(facts, pin=request.pin, deadline=deadline, wait=request.wait)
        return lifecycle_pb2.LoadModelResponse(replica=self._message(replica))

    async def UnloadModel(
        self, request: lifecycle_pb2.UnloadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> lifecycle_pb2.UnloadModelResponse:
        await self._duty.check()
        version = request.model
        # What is in memory can be unloaded also while the registry is away, if it is named in full.
        if not VERSION_NAME.fullmatch(version):
            version = (await self._resolve(version)).name
        uids = await self._node.unload(version, force=request.force)
        if request.wait:
            await self._node.gone(uids)
        replicas = [self._node.replica(uid) for uid in uids]
        return lifecycle_pb2.UnloadModelResponse(replicas=[self._message(r) for r in replicas if r is not None])

    async def GetReplica(
        self, request: lifecycle_pb2.GetReplicaRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> lifecycle_pb2.GetReplicaResponse:
        await self._duty.check()
        prefix, _, uid = request.name.partition("/")
        if prefix != "replicas" or not uid:
            raise InvalidArgument.at("name", "is not a replica's name like replicas/01890a5d-…")
        replica = self._node.replica(uid)
        if replica is None:
            raise ReplicaNotFound(f"there is no {request.name}", replica=request.name)
        return lifecycle_pb2.GetReplicaResponse(replica=self._message(replica))

    async def ListReplicas(
        self, request: lifecycle_pb2.ListReplicasRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> lifecycle_pb2.ListReplicasResponse:
        await self._duty.check()  # who stands by knows nothing of what is in memory on the node
        size, after = page_size(request.page_size), read_token(request.page_token)
        terms = read_filter(request.filter, {"state": {state.value for state in ReplicaState}, "model_version": ()})

        def wanted(replica: Replica) -> bool:
            facts = {"state": replica.state.value, "model_version": replica.version}
            return all(facts[name] == value for name, value in terms.items())

        # Uids are in the order of time, so a page that follows another never repeats or skips what stays.
        found = sorted((r for r in self._node.scheduler.replicas() if wanted(r) and r.uid > after), key=lambda r: r.uid)
        page = found[:size]
        token = write_token(page[-1].uid) if len(found) > size else ""
        return lifecycle_pb2.ListReplicasResponse(replicas=[self._message(r) for r in page], next_page_token=token)

    async def WatchReplicas(
        self, request: lifecycle_pb2.WatchReplicasRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[lifecycle_pb2.WatchReplicasResponse]:
        await self._duty.check()
        async for sight in self._node.watch(request.cursor, self._stopping):
            yield lifecycle_pb2.WatchReplicasResponse(
                reset=sight.reset,
                replica=self._message(sight.replica, sight.leases) if sight.replica is not None else None,
                previous_state=STATES[sight.previous] if sight.previous is not None else None,
                cursor=sight.cursor,
            )

    async def GetMemory(
        self, request: lifecycle_pb2.GetMemoryRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> lifecycle_pb2.GetMemoryResponse:
        await self._duty.check()
        await self._node.settled()
        ledger, existing = self._node.scheduler.ledger, self._node.devices()
        devices = []
        for device in sorted(ledger.budget):
            charges = [
                lifecycle_pb2.MemoryCharge(
                    owner=owner if "/" in owner else f"replicas/{owner}",
                    memory_bytes=charge[device],
                    measured_bytes=self._node.measured_of(owner).get(device, 0),
                )
                for owner, charge in sorted(ledger.charges.items())
                if charge.get(device, 0) > 0
            ]
            devices.append(
                lifecycle_pb2.DeviceLedger(
                    device=device,
                    total_bytes=existing[device].total_bytes if device in existing else 0,
                    budget_bytes=ledger.budget.get(device, 0),
                    charged_bytes=ledger.charged.get(device, 0),
                    foreign_bytes=ledger.foreign.get(device, 0),
                    charges=charges,
                    limited_by=existing[device].limited_by if device in existing else "",
                    configured_bytes=self._orders.terms.budget(device).of(existing[device].total_bytes)
                    if device in existing
                    else 0,
                )
            )
        return lifecycle_pb2.GetMemoryResponse(devices=devices)

    def _message(self, replica: Replica, leases: tuple[int, int] | None = None) -> lifecycle_pb2.Replica:
        return replica_message(replica, self._node, leases)


class LifecycleLeaseServicer(Servicer, lifecycle_pb2_grpc.LifecycleLeaseServiceServicer):
    """Leases, for inference."""

    async def Acquire(
        self,
        request_iterator: AsyncIterator[lifecycle_pb2.AcquireRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[lifecycle_pb2.AcquireResponse]:
        await self._duty.check()
        want = await self._first_want(request_iterator)
        deadline = _deadline(want)
        facts = await self._facts(want.model_version)
        if len(want.holder) > 200:
            raise InvalidArgument.at("want.holder", "is longer than 200 characters")
        priority = want.priority or common_pb2.PRIORITY_MEDIUM
        if want.load_nothing and not want.if_loaded:
            raise InvalidArgument.at("want.load_nothing", "only with if_loaded")
        end = self._node.open_lease(
            facts,
            priority,
            deadline,
            holder=want.holder,
            if_loaded=want.if_loaded,
            load_nothing=want.load_nothing,
        )
        ear = asyncio.create_task(self._hear(request_iterator, end, want.model_version), name="ear of a lease")
        told = None
        try:
            while True:
                told = asyncio.create_task(end.next(), name="word to a holder")
                await asyncio.wait((told, ear), return_when=asyncio.FIRST_COMPLETED)
                if not told.done():
                    ear.result()  # an error, if the holder broke the contract
                    return
                message = told.result()
                yield self._message(message)
                if isinstance(message, Revoked):
                    return
        finally:
            self._node.close_lease(end)
            ended = [task for task in (ear, told) if task is not None]
            for task in ended:
                task.cancel()
            await asyncio.gather(*ended, return_exceptions=True)

    async def _first_want(self, requests: AsyncIterator[lifecycle_pb2.AcquireRequest]) -> lifecycle_pb2.Want:
        try:
            async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
                first = await anext(requests)
        except (TimeoutError, StopAsyncIteration):
            raise InvalidArgument.at("want", "has to come first, at once") from None
        if first.WhichOneof("message") != "want":
            raise InvalidArgument.at("want", "has to come first")
        if not VERSION_NAME.fullmatch(first.want.model_version):
            raise InvalidArgument.at("want.model_version", "is not a version's name like models/org/repo/versions/1")
        _check_priority(first.want.priority, "want.priority")
        return first.want

    async def _hear(
        self, requests: AsyncIterator[lifecycle_pb2.AcquireRequest], end: LeaseEnd, model_version: str
    ) -> None:
        """Until the holder closes its side."""
        async for request in requests:
            if request.HasField("want"):
                want = request.want
                if want.model_version != model_version:
                    raise InvalidArgument.at("want.model_version", f"is that of the first want, {model_version}")
                _check_priority(want.priority, "want.priority")
                self._node.urge(end, want.priority or common_pb2.PRIORITY_MEDIUM, _deadline(want))
                continue
            if not request.HasField("in_use"):
                raise InvalidArgument.at("message", "is want or in_use")
            use = request.in_use
            _check_priority(use.priority, "in_use.priority")
            oldest_wait: timedelta | None = protomap.to_plain(use, at="in_use")["oldest_wait"]
            oldest_wait_seconds = oldest_wait.total_seconds() if oldest_wait is not None else 0.0
            self._node.in_use(end, use.in_flight, use.waiting_entries, oldest_wait_seconds, priority=use.priority)

    def _message(self, message: Message) -> lifecycle_pb2.AcquireResponse:
        response = lifecycle_pb2.AcquireResponse()
        match message:
            case Loading(estimate_seconds, reason):
                response.loading.reason = reason
                if estimate_seconds is not None:
                    response.loading.estimate.FromTimedelta(timedelta(seconds=estimate_seconds))
            case Granted(replica, endpoint, key):
                response.loaded.CopyFrom(
                    lifecycle_pb2.Loaded(
                        endpoint=endpoint,
                        key=key,
                        replica=replica.name,
                        engine_profile=profile_message(replica.profile),
                        max_in_flight_batches=MAX_IN_FLIGHT_BATCHES,
                        limits=lifecycle_pb2.EngineLimits(
                            **{item.name: getattr(replica.limits, item.name) for item in fields(replica.limits)}
                        ),
                    )
                )
            case Yielding(by, reason, cordoned):
                # `yield` is a word of the language.
                notice = getattr(response, "yield")
                notice.by.FromDatetime(moment(self._node, by))
                notice.reason, notice.cordoned = reason, cordoned
            case Revoked(reason, crashed, out_of_memory):
                response.revoked.reason, response.revoked.crashed = reason, crashed
                response.revoked.out_of_memory = out_of_memory
            case Invited(replica):
                response.invite.replica = replica.name
        return response


def _check_priority(priority: int, at: str) -> None:
    if priority not in common_pb2.Priority.values():
        raise InvalidArgument.at(at, f"there is no priority {priority}")


def _deadline(want: lifecycle_pb2.Want) -> float:
    """On the monotonic clock; without one a holder waits as long as its stream lives."""
    if not want.HasField("deadline"):
        return math.inf
    deadline: datetime = protomap.to_plain(want, at="want")["deadline"]
    return time.monotonic() + deadline.timestamp() - time.time()
