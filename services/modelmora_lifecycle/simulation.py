"""Replays recorded acquires through the scheduler, without a process: what would another policy or budget have cost?

It is the very `Scheduler` that serves, with effects that take as long as the trace says. A simulated holder keeps to
the contract of leases: it uses its replica without pause; asked to yield it finishes the batch at hand, lets go, wants
the rest of its time again. So the figures differ from those of the recorded day only where the trace is silent: callers
do not hurry or give up because an answer comes sooner or later.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from modelmora.errors import InvalidArgument, ModelMoraError, NeverFits

from modelmora_lifecycle.domain import Footprint, Replica, ReplicaState, VersionFacts
from modelmora_lifecycle.eviction import Decision, Plan, Policy, Trigger
from modelmora_lifecycle.ledger import Ledger, Vector, positive
from modelmora_lifecycle.scheduler import Rules, Scheduler

EVENTS_LIMIT = 100_000
BATCH_SECONDS = 0.1
"""What runs when a holder is asked to yield takes so long at most."""
STOP_SECONDS = 0.1
"""From the end of the last batch until the process is reaped."""


@dataclass(frozen=True, slots=True)
class AcquireEvent:
    """A version was wanted, used for a while and let go."""

    at_seconds: float
    """Since the first event of the trace; ascending."""
    model_version: str
    priority: int
    use_seconds: float
    memory: Mapping[str, int]
    load_seconds: float
    """0: nobody knew yet. The first that the trace tells of this version counts then."""


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What a trace costs under one policy."""

    policy: str
    acquires: int = 0
    misses: int = 0
    """Acquires that had to wait for a load."""
    evictions: int = 0
    never_fit: int = 0
    """Acquires that can never fit the budget."""
    waited_seconds: float = 0.0
    waited_p99_seconds: float = 0.0
    loaded_bytes: int = 0


def simulate(events: Sequence[AcquireEvent], policy: Policy, budget: Vector, rules: Rules) -> SimulationResult:
    """What the trace costs with this policy, budget and these rules; the same arguments give the same answer.
    InvalidArgument, with the index, for events out of order, of no model, of negative or endless time, or more than
    100,000."""
    if len(events) > EVENTS_LIMIT:
        raise InvalidArgument.at("events", f"{len(events)} are too many; at most {EVENTS_LIMIT}")
    last = 0.0
    for index, event in enumerate(events):
        if not last <= event.at_seconds < float("inf"):
            raise InvalidArgument.at(f"events[{index}].at_seconds", "must be finite, and not before the last one or 0")
        if not event.model_version:
            raise InvalidArgument.at(f"events[{index}].model_version", "is needed")
        for name, seconds in (("use_seconds", event.use_seconds), ("load_seconds", event.load_seconds)):
            if not 0 <= seconds < float("inf"):
                raise InvalidArgument.at(f"events[{index}].{name}", "must be finite and not negative")
        if any(memory_bytes < 0 for memory_bytes in event.memory.values()):
            raise InvalidArgument.at(f"events[{index}].memory", "must not be negative")
        last = event.at_seconds
    # The trace tells what a load reserves: nothing is to be added to it.
    prediction = replace(rules.prediction, growth_factor=1.0, bare_overhead_bytes=0)
    return _World(replace(rules, policy=policy, prediction=prediction), budget).play(_with_loads(events))


def _with_loads(events: Sequence[AcquireEvent]) -> list[AcquireEvent]:
    """The same, each with the seconds of a load: those who asked before the first one had ended were written down
    without, and their wait was not counted."""
    first: dict[str, float] = {}
    for event in events:
        if event.load_seconds > 0:
            first.setdefault(event.model_version, event.load_seconds)
    return [replace(e, load_seconds=e.load_seconds or first.get(e.model_version, 0.0)) for e in events]


@dataclass(slots=True)
class _Use:
    """One acquire: how much of its use is left, and since when it waits or runs."""

    event: AcquireEvent
    left_seconds: float
    since: float
    waited_seconds: float = 0.0
    missed: bool = False
    granted: bool = False


class _World:
    """Holders and workers, and the effects between them and the scheduler."""

    def __init__(self, rules: Rules, budget: Vector) -> None:
        self._now = 0.0
        self._count = 0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._uses: dict[str, _Use] = {}
        self._latest: dict[str, AcquireEvent] = {}
        self._waits: list[float] = []
        self._result = SimulationResult(rules.policy.name)
        self._scheduler = Scheduler(Ledger(ceiling=dict(budget)), rules, self, self._uid)
        self._scheduler.tells = False

    def play(self, events: Sequence[AcquireEvent]) -> SimulationResult:
        upcoming = 0
        while upcoming < len(events) or self._uses:
            moments = [self._due[0][0]] if self._due else []
            if upcoming < len(events):
                moments.append(events[upcoming].at_seconds)
            if self._scheduler.next_wake is not None:
                moments.append(self._scheduler.next_wake)
            self._now = max(self._now, min(moments))
            # What ends at a moment ends before what begins at it.
            if self._due and self._due[0][0] <= self._now:
                heapq.heappop(self._due)[2]()
            elif upcoming < len(events) and events[upcoming].at_seconds <= self._now:
                self._begin(events[upcoming])
                upcoming += 1
            else:
                self._scheduler.tick(self._now)
        waits = sorted(self._waits)
        return replace(
            self._result,
            acquires=len(events),
            waited_seconds=sum(waits),
            waited_p99_seconds=waits[ceil(0.99 * len(waits)) - 1] if waits else 0.0,
        )

    def _uid(self) -> str:
        self._count += 1
        return f"{self._count:09}"

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (self._now + seconds, self._count, action))

    def _add(self, **figures: int) -> None:
        self._result = replace(
            self._result, **{name: getattr(self._result, name) + figure for name, figure in figures.items()}
        )

    # Holders.

    def _begin(self, event: AcquireEvent) -> None:
        self._latest[event.model_version] = event
        self._want(self._uid(), _Use(event, event.use_seconds, self._now))

    def _want(self, lease: str, use: _Use) -> None:
        self._uses[lease] = use
        use.since, use.granted = self._now, False
        event = use.event
        facts = VersionFacts(event.model_version, "simulated", declared=positive(event.memory))
        self._scheduler.want(lease, facts, priority=event.priority, deadline=float("inf"), now=self._now)
        if lease in self._uses and not use.granted and not use.missed:
            use.missed = True
            self._add(misses=1)

    def _run(self, lease: str) -> None:
        if (use := self._uses.get(lease)) is not None:
            use.since = self._now
            self._scheduler.in_use(lease, 1, 0, 0.0, self._now)
            self._later(use.left_seconds, lambda: self._let_go(lease))

    def _let_go(self, lease: str) -> None:
        """The use is over, or its holder has yielded and wants the rest."""
        use = self._uses.pop(lease, None)
        if use is not None:
            use.left_seconds -= self._now - use.since
            self._scheduler.release(lease, self._now)
            self._go_on(use)

    def _go_on(self, use: _Use) -> None:
        if use.left_seconds > 1e-9:
            self._want(self._uid(), use)
        else:
            self._waits.append(use.waited_seconds)

    # Effects.

    def start(self, replica: Replica, facts: VersionFacts, need: Vector) -> None:
        event = self._latest[replica.version]

        def ready() -> None:
            if self._scheduler.replica(replica.uid) is not None:
                self._add(loaded_bytes=sum(event.memory.values()))
                self._scheduler.loaded(replica.uid, Footprint(dict(event.memory), event.load_seconds), self._now)

        self._later(event.load_seconds, ready)

    def stop(self, replica: Replica, grace_seconds: float) -> None:
        self._later(STOP_SECONDS, lambda: self._scheduler.exited(replica.uid, "ended", self._now))

    def granted(self, lease: str, replica: Replica) -> None:
        use = self._uses[lease]
        use.waited_seconds += self._now - use.since
        use.since, use.granted = self._now, True
        self._later(0.0, lambda: self._run(lease))

    def yielding(self, lease: str, by: float, reason: str) -> None:
        use = self._uses[lease]
        self._later(min(BATCH_SECONDS, use.left_seconds), lambda: self._let_go(lease))

    def revoked(self, lease: str, reason: str, crashed: bool) -> None:
        use = self._uses.pop(lease)
        self._later(0.0, lambda: self._go_on(use))

    def refused(self, lease: str, error: ModelMoraError) -> None:
        assert isinstance(error, NeverFits), error
        del self._uses[lease]
        self._add(never_fit=1)

    def loading(self, lease: str, estimate_seconds: float | None, reason: str) -> None: ...

    def invite(self, lease: str, replica: Replica) -> None: ...

    def changed(self, replica: Replica, previous: ReplicaState) -> None: ...

    def decided(self, decision: Decision) -> None:
        if isinstance(decision.outcome, Plan) and decision.trigger is Trigger.PLACEMENT:
            self._add(evictions=len(decision.outcome.victims))

    def end_server(self, owner: str) -> None: ...
