"""The RPCs of lifecycle: they translate, ask the node, and wait."""

from __future__ import annotations

import asyncio
import base64
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import grpc
from modelmora.common.v1 import common_pb2
from modelmora.errors import InvalidArgument, LoadFailed, ReplicaNotFound, Unavailable
from modelmora.lifecycle.v1 import lifecycle_pb2, lifecycle_pb2_grpc
from modelmora_runtime import protomap
from modelmora_runtime.interceptors import deadline_seconds

from modelmora_lifecycle.actor import Granted, LeaseEnd, Loading, Message, Node, Revoked, Yielding
from modelmora_lifecycle.domain import HOST, Replica, ReplicaState, VersionFacts

FIRST_MESSAGE_SECONDS = 10.0
DECIDING_SECONDS = 5.0
MAX_IN_FLIGHT_BATCHES = 2
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 100, 1000
MOST_WAIT_SECONDS = 600.0

_VERSION_NAME = re.compile(r"models/[^/]+/[^/]+/versions/.+")
_TERM = re.compile(r'\s*(state|model_version)\s*=\s*(?:"([^"]*)"|(\S+))\s*')


class Versions(Protocol):
    """What lifecycle asks the registry."""

    async def resolve(self, reference: str) -> VersionFacts:
        """Raises ModelNotFound, VersionNotFound, VersionNotReady, InvalidArgument, Unavailable."""

    async def facts(self, name: str) -> VersionFacts:
        """Of a version named in full. The same errors."""


@dataclass
class Duty:
    """Whether this process is the one that serves the node."""

    decided: asyncio.Event
    on_duty: bool = False
    reason: str = "the database has not yet said whether another process serves this node"

    async def check(self) -> None:
        """Unavailable when another process serves this node, or while that is not known."""
        if not self.decided.is_set():
            try:
                async with asyncio.timeout(DECIDING_SECONDS):
                    await self.decided.wait()
            except TimeoutError:
                pass
        if not self.on_duty:
            raise Unavailable(self.reason, retry_after_seconds=1.0)


class LifecycleServicer(lifecycle_pb2_grpc.LifecycleServiceServicer):
    """The public service."""

    def __init__(self, node: Node, versions: Versions, duty: Duty, stopping: asyncio.Event) -> None:
        self._node = node
        self._versions = versions
        self._duty = duty
        self._stopping = stopping

    async def LoadModel(
        self, request: lifecycle_pb2.LoadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> lifecycle_pb2.LoadModelResponse:
        await self._duty.check()
        facts = await self._facts(request.model)
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
        if not _VERSION_NAME.fullmatch(version):
            version = (await self._resolve(version)).name
        uids = await self._node.unload(version, force=request.force)
        if request.wait:
            await self._node.gone(uids)
        replicas = [self._node.replica(uid) for uid in uids]
        return lifecycle_pb2.UnloadModelResponse(replicas=[self._message(r) for r in replicas if r is not None])

    async def GetReplica(
        self, request: lifecycle_pb2.GetReplicaRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> lifecycle_pb2.GetReplicaResponse:
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
        if not 0 <= request.page_size <= MAX_PAGE_SIZE:
            raise InvalidArgument.at("page_size", f"must be 0 to {MAX_PAGE_SIZE}")
        size = request.page_size or DEFAULT_PAGE_SIZE
        wanted = parse_filter(request.filter)
        after = _read_token(request.page_token)
        # Uids are in the order of time, so a page that follows another never repeats or skips what stays.
        found = sorted((r for r in self._node.scheduler.replicas() if wanted(r) and r.uid > after), key=lambda r: r.uid)
        page = found[:size]
        token = _write_token(page[-1].uid) if len(found) > size else ""
        return lifecycle_pb2.ListReplicasResponse(replicas=[self._message(r) for r in page], next_page_token=token)

    async def WatchReplicas(
        self, request: lifecycle_pb2.WatchReplicasRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[lifecycle_pb2.WatchReplicasResponse]:
        async for sight in self._node.watch(request.cursor, self._stopping):
            yield lifecycle_pb2.WatchReplicasResponse(
                reset=sight.reset,
                replica=self._message(sight.replica, sight.leases) if sight.replica is not None else None,
                previous_state=_STATES[sight.previous] if sight.previous is not None else None,
                cursor=sight.cursor,
            )

    async def GetMemory(
        self, request: lifecycle_pb2.GetMemoryRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> lifecycle_pb2.GetMemoryResponse:
        ledger = self._node.scheduler.ledger
        devices = []
        for device, budget_bytes in sorted(ledger.budget.items()):
            charges = [
                lifecycle_pb2.MemoryCharge(owner=f"replicas/{uid}", memory_bytes=charge[device])
                for uid, charge in sorted(ledger.charges.items())
                if charge.get(device, 0) > 0
            ]
            devices.append(
                lifecycle_pb2.DeviceLedger(
                    device=device,
                    total_bytes=self._node.total_bytes(device),
                    budget_bytes=budget_bytes,
                    charged_bytes=ledger.charged.get(device, 0),
                    foreign_bytes=self._node.foreign_bytes if device == HOST else ledger.foreign.get(device, 0),
                    charges=charges,
                )
            )
        return lifecycle_pb2.GetMemoryResponse(devices=devices)

    async def _facts(self, reference: str) -> VersionFacts:
        known = self._node.scheduler.facts(reference)
        if known is not None and self._node.serves(reference):
            return known
        return await self._resolve(reference)

    async def _resolve(self, reference: str) -> VersionFacts:
        if not reference.strip():
            raise InvalidArgument.at("model", "is empty")
        try:
            return await self._versions.resolve(reference)
        except InvalidArgument as error:  # the registry names the field of its own request
            raise InvalidArgument.at("model", error.fields[0].description if error.fields else error.message) from error

    def _message(self, replica: Replica, leases: tuple[int, int] | None = None) -> lifecycle_pb2.Replica:
        return replica_message(replica, self._node, leases)


class LifecycleLeaseServicer(lifecycle_pb2_grpc.LifecycleLeaseServiceServicer):
    """Leases, for inference."""

    def __init__(self, node: Node, versions: Versions, duty: Duty) -> None:
        self._node = node
        self._versions = versions
        self._duty = duty

    async def Acquire(
        self,
        request_iterator: AsyncIterator[lifecycle_pb2.AcquireRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[lifecycle_pb2.AcquireResponse]:
        await self._duty.check()
        want = await self._want(request_iterator)
        deadline = _deadline(want)
        facts = await self._facts(want.model_version)
        end = self._node.open_lease(facts, want.priority or common_pb2.PRIORITY_MEDIUM, deadline)
        ear = asyncio.create_task(self._hear(request_iterator, end), name="ear of a lease")
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

    async def _want(self, requests: AsyncIterator[lifecycle_pb2.AcquireRequest]) -> lifecycle_pb2.Want:
        try:
            async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
                first = await anext(requests)
        except (TimeoutError, StopAsyncIteration):
            raise InvalidArgument.at("want", "has to come first, at once") from None
        if first.WhichOneof("message") != "want":
            raise InvalidArgument.at("want", "has to come first")
        if not _VERSION_NAME.fullmatch(first.want.model_version):
            raise InvalidArgument.at("want.model_version", "is not a version's name like models/org/repo/versions/1")
        if first.want.priority not in common_pb2.Priority.values():
            raise InvalidArgument.at("want.priority", f"there is no priority {first.want.priority}")
        return first.want

    async def _facts(self, name: str) -> VersionFacts:
        # What is in memory, or loads, is known: no other service has to answer for it.
        known = self._node.scheduler.facts(name)
        if known is not None and self._node.serves(name):
            return known
        return await self._versions.facts(name)

    async def _hear(self, requests: AsyncIterator[lifecycle_pb2.AcquireRequest], end: LeaseEnd) -> None:
        """Until the holder closes its side."""
        async for request in requests:
            if request.WhichOneof("message") != "in_use":
                raise InvalidArgument.at("want", "comes once, first")
            self._node.in_use(end, request.in_use.in_flight)

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
                        engine_profile=_profile(replica),
                        max_in_flight_batches=MAX_IN_FLIGHT_BATCHES,
                        limits=lifecycle_pb2.EngineLimits(
                            **{item.name: getattr(replica.limits, item.name) for item in fields(replica.limits)}
                        ),
                    )
                )
            case Yielding(by, reason):
                # `yield` is a word of the language.
                notice = getattr(response, "yield")
                notice.by.FromDatetime(_moment(self._node, by))
                notice.reason = reason
            case Revoked(reason, crashed):
                response.revoked.reason, response.revoked.crashed = reason, crashed
            case _:
                raise LoadFailed(f"no such message: {message}")
        return response


def replica_message(replica: Replica, node: Node, leases: tuple[int, int] | None = None) -> lifecycle_pb2.Replica:
    """A replica as the wire has it. `leases`: how many, and how many busy, when it was so; now by default."""
    held, busy = leases if leases is not None else node.scheduler.leases(replica.uid)
    message = lifecycle_pb2.Replica(
        name=replica.name,
        uid=replica.uid,
        model_version=replica.version,
        state=_STATES[replica.state],
        reason=replica.reason,
        engine=replica.engine,
        engine_profile=_profile(replica),
        pid=replica.pid,
        charged=_memory(node.scheduler.ledger.charge_of(replica.uid)),
        peak=_memory(replica.peak),
        health=common_pb2.Health(
            state=f"HEALTH_STATE_{replica.health.state.name}",
            reason=replica.health.reason,
        ),
        pinned=replica.pinned,
        leases=held,
        busy_leases=busy,
        revision=replica.revision,
    )
    for field_name, moment in (
        ("create_time", replica.create_time),
        ("update_time", replica.update_time),
        ("last_used_time", replica.last_used_time),
    ):
        if moment:
            getattr(message, field_name).FromDatetime(_moment(node, moment))
    if replica.health.check_time:
        message.health.last_check_time.FromDatetime(_moment(node, replica.health.check_time))
    if replica.load_seconds:
        message.load_duration.FromTimedelta(timedelta(seconds=replica.load_seconds))
    return message


def parse_filter(text: str) -> Callable[[Replica], bool]:
    """`state = "loaded" AND model_version = "models/…"`. Raises InvalidArgument at `filter`."""
    terms: list[tuple[str, str]] = []
    for part in re.split(r"\s+AND\s+", text.strip()) if text.strip() else []:
        found = _TERM.fullmatch(part)
        if found is None:
            raise InvalidArgument.at("filter", f'cannot read {part!r}; known: state = "loaded", model_version = "…"')
        field_name, value = found[1], found[2] if found[2] is not None else found[3]
        if field_name == "state" and value not in {state.value for state in ReplicaState}:
            raise InvalidArgument.at("filter", f"there is no state {value!r}")
        terms.append((field_name, value))

    def wanted(replica: Replica) -> bool:
        facts = {"state": replica.state.value, "model_version": replica.version}
        return all(facts[field_name] == value for field_name, value in terms)

    return wanted


_STATES = {state: f"REPLICA_STATE_{state.name}" for state in ReplicaState}


def _profile(replica: Replica) -> common_pb2.EngineProfile:
    profile = replica.profile
    return common_pb2.EngineProfile(
        backend=profile.backend,
        precision=profile.precision,
        library_versions=profile.library_versions,
        batch_rule=profile.batch_rule,
    )


def _memory(vector: Any) -> list[common_pb2.DeviceMemory]:
    return [common_pb2.DeviceMemory(device=name, memory_bytes=size) for name, size in sorted(vector.items())]


def _moment(node: Node, monotonic: float) -> datetime:
    return datetime.fromtimestamp(node.wall_time(monotonic), UTC)


def _deadline(want: lifecycle_pb2.Want) -> float:
    """On the monotonic clock; without one a holder waits as long as its stream lives."""
    if not want.HasField("deadline"):
        return math.inf
    moment: datetime = protomap.to_plain(want, at="want")["deadline"]
    return time.monotonic() + moment.timestamp() - time.time()


def _write_token(uid: str) -> str:
    return base64.urlsafe_b64encode(uid.encode()).decode()


def _read_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise InvalidArgument.at("page_token", "is not a token of this list") from None
