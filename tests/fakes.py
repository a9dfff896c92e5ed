"""Fakes for pure tests: a clock that is moved by hand, effects that are written down, workers that take their time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from modelmora.errors import LoadFailed, ModelMoraError
from modelmora_lifecycle.domain import Footprint, Replica, ReplicaState, VersionFacts
from modelmora_lifecycle.eviction import Decision
from modelmora_lifecycle.ledger import Ledger
from modelmora_lifecycle.scheduler import Rules, Scheduler


@dataclass
class FakeClock:
    """Time in seconds; it passes only by `advance`."""

    now: float = 1000.0

    def advance(self, seconds: float) -> float:
        assert seconds >= 0
        self.now += seconds
        return self.now


@dataclass(frozen=True)
class FakeWorker:
    """How long a worker takes, and what it does instead of loading."""

    load_seconds: float = 1.0
    stop_seconds: float = 0.1
    fails: bool = False
    hangs: bool = False
    memory: Mapping[str, int] | None = None
    """Measured after the load; None: exactly what was reserved."""


@dataclass
class FakeEffects:
    """A node without processes: effects are written down, and their results come as events when the clock reaches them.

    `log` holds every call as a tuple, its name first. `run_until(t)` lets events and wake-ups happen in order.
    """

    clock: FakeClock
    budget: Mapping[str, int]
    rules: Rules = field(default_factory=Rules)
    workers: dict[str, FakeWorker] = field(default_factory=dict)
    log: list[tuple[object, ...]] = field(default_factory=list)
    on_event: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._count = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self.alive: dict[str, Mapping[str, int]] = {}
        self.scheduler = Scheduler(Ledger(ceiling=self.budget), self.rules, self, self._uid)

    def _uid(self) -> str:
        self._count += 1
        return f"r{self._count}"

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.clock.now + seconds, self._count, event))

    def run_until(self, end: float) -> None:
        """Lets time pass up to `end`, event by event."""
        while True:
            wake = self.scheduler.next_wake
            due = min((t for t in (wake, self._heap[0][0] if self._heap else None) if t is not None), default=None)
            if due is None or due > end:
                break
            self.clock.now = max(self.clock.now, due)
            if self._heap and self._heap[0][0] <= self.clock.now:
                heapq.heappop(self._heap)[2]()
            else:
                self.scheduler.tick(self.clock.now)
            self.on_event()
        self.clock.now = max(self.clock.now, end)

    def run_for(self, seconds: float) -> None:
        self.run_until(self.clock.now + seconds)

    def crash(self, uid: str, reason: str = "signal 9 (SIGKILL)") -> None:
        """A process dies by itself."""
        if uid in self.alive:
            del self.alive[uid]
            self.scheduler.exited(uid, reason, self.clock.now)
            self.on_event()

    def of(self, name: str) -> list[tuple[object, ...]]:
        """The calls of one name."""
        return [call for call in self.log if call[0] == name]

    # Effects.

    def start(self, replica: Replica, facts: VersionFacts, need: Mapping[str, int]) -> None:
        worker = self.workers.get(facts.name, FakeWorker())
        self.log.append(("start", replica.uid, facts.name))
        self.alive[replica.uid] = dict(need)

        def finish() -> None:
            if replica.uid not in self.alive:
                return
            if worker.fails:
                self.scheduler.load_failed(replica.uid, LoadFailed("no such luck"), self.clock.now)
            else:
                memory = worker.memory if worker.memory is not None else {d: int(b / 1.1) for d, b in need.items()}
                self.scheduler.loaded(replica.uid, Footprint(memory, worker.load_seconds), self.clock.now)

        if not worker.hangs:
            self.later(worker.load_seconds, finish)

    def stop(self, replica: Replica, grace_seconds: float) -> None:
        self.log.append(("stop", replica.uid, replica.version, grace_seconds))
        worker = self.workers.get(replica.version, FakeWorker())

        def gone() -> None:
            if self.alive.pop(replica.uid, None) is not None:
                self.scheduler.exited(replica.uid, "status 0", self.clock.now)

        self.later(worker.stop_seconds, gone)

    def granted(self, lease: str, replica: Replica) -> None:
        self.log.append(("granted", lease, replica.uid))

    def loading(self, lease: str, estimate_seconds: float | None, reason: str) -> None:
        self.log.append(("loading", lease, estimate_seconds, reason))

    def yielding(self, lease: str, by: float, reason: str) -> None:
        self.log.append(("yielding", lease, by, reason))

    def revoked(self, lease: str, reason: str, crashed: bool) -> None:
        self.log.append(("revoked", lease, reason, crashed))

    def refused(self, lease: str, error: ModelMoraError) -> None:
        self.log.append(("refused", lease, error))

    def invite(self, lease: str, replica: Replica) -> None:
        self.log.append(("invite", lease, replica.uid))

    def changed(self, replica: Replica, previous: ReplicaState) -> None:
        self.log.append(("changed", replica.uid, previous, replica.state, replica.reason))

    def decided(self, decision: Decision) -> None:
        self.log.append(("decided", decision))

    def end_server(self, owner: str) -> None:
        self.log.append(("end_server", owner))
        self.later(0.1, lambda: self.scheduler.charge_shared(owner, {}, self.clock.now))
