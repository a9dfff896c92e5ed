"""RPCs that explain: what would happen to a version, what was decided, and what other policies would have done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import grpc
from modelmora.common.v1 import common_pb2
from modelmora.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora_runtime import ids, protomap
from modelmora_runtime.interceptors import deadline_seconds

from modelmora_lifecycle import simulator
from modelmora_lifecycle.duty import Servicer
from modelmora_lifecycle.eviction import POLICIES, Trigger
from modelmora_lifecycle.ledger import Vector, plus, positive
from modelmora_lifecycle.messages import memory_messages, page_size, read_filter, read_token, write_token
from modelmora_lifecycle.placement import Placement
from modelmora_lifecycle.simulation import EVENTS_LIMIT
from modelmora_lifecycle.store import Acquired, LifecycleStore

Context = grpc.aio.ServicerContext[Any, Any]

OUTCOMES = ("plan", "wait", "impossible")
TRIGGERS = tuple(trigger.value for trigger in Trigger)


class PlacementServicer(Servicer):
    """Decides nothing itself: it asks the scheduler, the store, and simulation.py."""

    _store: LifecycleStore | None
    _simulation: asyncio.Task[pb.SimulatePlacementResponse] | None = None
    """The one that runs, or ran last."""

    async def ExplainPlacement(
        self, request: pb.ExplainPlacementRequest, context: Context
    ) -> pb.ExplainPlacementResponse:
        await self._duty.check()
        if request.priority not in common_pb2.Priority.values():
            raise InvalidArgument.at("priority", f"there is no priority {request.priority}")
        facts = await self._resolve(request.model)
        placement = await self._node.explain(facts, request.priority or common_pb2.PRIORITY_MEDIUM)
        return pb.ExplainPlacementResponse(placement=placement_message(placement))

    async def ListEvictionDecisions(
        self, request: pb.ListEvictionDecisionsRequest, context: Context
    ) -> pb.ListEvictionDecisionsResponse:
        size = page_size(request.page_size)
        terms = read_filter(request.filter, {"model_version": (), "outcome": OUTCOMES, "trigger": TRIGGERS})
        token = read_token(request.page_token)
        before: UUID | None = ids.parse(token, "page_token") if token else None
        rows = await self._kept().decisions(terms, before, size + 1)
        return pb.ListEvictionDecisionsResponse(
            decisions=[decision_message(row) for row in rows[:size]],
            next_page_token=write_token(str(rows[size - 1]["uid"])) if len(rows) > size else "",
        )

    async def ExportTrace(
        self, request: pb.ExportTraceRequest, context: Context
    ) -> AsyncIterator[pb.ExportTraceResponse]:
        since = protomap.to_plain(request)["start_time"]
        first: datetime | None = None
        async for page in self._kept().events(since):
            first = first or page[0].start_time
            yield pb.ExportTraceResponse(events=[event_message(event, first) for event in page])

    async def SimulatePlacement(
        self, request: pb.SimulatePlacementRequest, context: Context
    ) -> pb.SimulatePlacementResponse:
        for index, name in enumerate(request.policies):
            if name not in POLICIES:
                raise InvalidArgument.at(f"policies[{index}]", f"{name!r} is none of {', '.join(POLICIES)}")
        names = [name for name in POLICIES if name in request.policies or not request.policies]
        if len(request.events) > EVENTS_LIMIT:
            raise InvalidArgument.at("events", f"{len(request.events)} are too many; at most {EVENTS_LIMIT}")
        if self._simulation is not None and not self._simulation.done():
            raise ResourceExhausted("another simulation runs", retry_after_seconds=1.0)
        budget = read_budget(request.budget) or dict(self._node.scheduler.ledger.ceiling)
        rules = self._node.scheduler.rules

        self._simulation = asyncio.create_task(simulator.run(request, names, budget, rules), name="simulation")
        try:
            # A little before the call's own end, so that the caller hears why.
            async with asyncio.timeout(deadline_seconds(context) * 0.95):
                return await self._simulation
        except TimeoutError:
            raise DeadlineExceeded(
                "the simulation takes longer than the call: give fewer events or more time"
            ) from None

    def _kept(self) -> LifecycleStore:
        if self._store is None:
            raise Unavailable("lifecycle runs without a database and keeps nothing")
        return self._store


def placement_message(placement: Placement) -> pb.Placement:
    message = pb.Placement(
        model_version=placement.version,
        outcome=f"PLACEMENT_OUTCOME_{placement.outcome.name}",
        reason=placement.reason,
        devices=needs(placement.need, placement.free, placement.budget, placement.evictable),
        need_source=placement.need_source,
    )
    if placement.ready_in_seconds is not None:
        message.ready_in.FromTimedelta(timedelta(seconds=placement.ready_in_seconds))
    for verdict in placement.verdicts:
        candidate = candidate_message(asdict(verdict))
        message.candidates.append(candidate)
        if verdict.victim:
            message.victims.append(candidate)
    return message


def candidate_message(verdict: Mapping[str, Any]) -> pb.EvictionCandidate:
    """Of an eviction.Verdict as a mapping, as it is kept."""
    candidate = verdict["candidate"]
    message = pb.EvictionCandidate(
        replica=f"replicas/{candidate['uid']}",
        model_version=candidate["version"],
        victim=verdict["victim"],
        evictable=not verdict["reason"],
        pinned=candidate["pinned"],
        busy=candidate["busy"],
        score=verdict["score"],
        charged=memory_messages(candidate["charge"]),
        reason=verdict["reason"],
    )
    message.idle.FromTimedelta(timedelta(seconds=verdict["idle_seconds"]))
    if verdict["resident_for_seconds"] > 0:
        message.resident_for.FromTimedelta(timedelta(seconds=verdict["resident_for_seconds"]))
    return message


def decision_message(row: Mapping[str, Any]) -> pb.EvictionDecision:
    """Of a row as store.decision_row made it."""
    inputs = row["inputs"]
    need, answer = inputs["need"], inputs["answer"]
    verdicts = inputs.get("verdicts", ())
    may_go = [verdict["candidate"] for verdict in verdicts if not verdict["reason"]]
    stay = {owner for verdict in verdicts if verdict["reason"] for owner in verdict["candidate"].get("shares", ())}
    shares = {owner: share for item in may_go for owner, share in item.get("shares", {}).items() if owner not in stay}
    could_go = [*(item["charge"] for item in may_go), *shares.values()]
    reason = inputs.get("reason") or answer.get("reason", "")
    if row["outcome"] == "impossible":
        reason = (
            f"it needs {answer['need_bytes']} bytes on {answer['device']}; evictions can make room for "
            f"{answer['evictable_bytes']} at most"
        )
    elif row["outcome"] == "plan" and not reason:
        reason = f"makes room for {row['model_version']}"
    message = pb.EvictionDecision(
        uid=str(row["uid"]),
        model_version=row["model_version"],
        outcome=row["outcome"],
        policy=inputs["policy"]["name"],
        reason=reason,
        devices=needs(need["memory"], need["available"], need["budget"], plus(*could_go)),
        candidates=[candidate_message(verdict) for verdict in verdicts],
        trigger=f"EVICTION_TRIGGER_{inputs.get('trigger', 'placement').upper()}",
    )
    message.create_time.FromDatetime(row["create_time"])
    return message


def needs(need: Vector, free: Vector, budget: Vector, evictable: Vector) -> list[pb.DeviceNeed]:
    """The arithmetic of every device that is needed."""
    return [
        pb.DeviceNeed(
            device=device,
            need_bytes=need_bytes,
            free_bytes=free.get(device, 0),
            budget_bytes=budget.get(device, 0),
            evictable_bytes=evictable.get(device, 0),
        )
        for device, need_bytes in sorted(positive(need).items())
    ]


def event_message(event: Acquired, first: datetime) -> pb.AcquireEvent:
    return pb.AcquireEvent(
        at_seconds=(event.start_time - first).total_seconds(),
        model_version=event.model_version,
        priority=event.priority,  # type: ignore[arg-type]
        use_seconds=event.use_seconds,
        memory=memory_messages(event.memory),
        load_seconds=event.load_seconds,
    )


def read_budget(items: Iterable[common_pb2.DeviceMemory]) -> dict[str, int]:
    """Raises InvalidArgument at `budget[i]`."""
    budget: dict[str, int] = {}
    for index, item in enumerate(items):
        if not item.device or item.device in budget:
            raise InvalidArgument.at(f"budget[{index}].device", "is empty or was named before")
        if item.memory_bytes <= 0:
            raise InvalidArgument.at(f"budget[{index}].memory_bytes", "must be above 0")
        budget[item.device] = item.memory_bytes
    return budget
