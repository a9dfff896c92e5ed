"""The node: one actor in the event loop that owns the scheduler, carries out its effects and tells who watches.

Every change comes in through `_post` and runs alone, one after another; an effect starts a task or puts a message into
a lease's inbox and returns at once. So no edge ever acts on a state that it read before, and no lock is needed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, TypeVar

from modelmora.errors import InternalError, LoadFailed, ModelMoraError, ReplicaNotFound, ShuttingDown, VersionInUse
from modelmora.worker.v1 import worker_pb2
from modelmora_runtime import machine
from modelmora_runtime.health import tell_if_broken
from modelmora_runtime.ids import uuid7
from prometheus_client import Counter, Gauge, Histogram

from modelmora_lifecycle.domain import (
    HOST,
    MIB,
    EngineLimits,
    EngineProfile,
    Footprint,
    Health,
    HealthState,
    Replica,
    ReplicaState,
    Residency,
    StartMode,
    VersionFacts,
)
from modelmora_lifecycle.eviction import Decision, Plan, Trigger
from modelmora_lifecycle.launcher import Launcher
from modelmora_lifecycle.ledger import Budget, Device, Ledger, Vector, bounds
from modelmora_lifecycle.memory import Meter, Sample, Shared, gone
from modelmora_lifecycle.placement import Placement
from modelmora_lifecycle.prediction import Measured
from modelmora_lifecycle.scheduler import Rules, Scheduler
from modelmora_lifecycle.servers import PREFIX
from modelmora_lifecycle.store import Acquired
from modelmora_lifecycle.workers import Hold, Worker, WorkerRules

log = logging.getLogger(__name__)
T = TypeVar("T")

HISTORY_EVENTS = 1000
ENDED_REPLICAS = 100
SETTLE_SECONDS = 0.5
"""A holder says that it is idle up to 0.1 s after its last answer. Who unloads right after an answer shall not be told
that the model is busy, so a busy one is looked at for so long."""
SAMPLE_SECONDS = 0.25
"""Memory is measured so often, or as often as workers tell how they are."""
_FOREIGN_STEP_BYTES = 64 * MIB
_COMING = "it is loading"
"""Of what is to be kept: nothing is wrong."""
_SHARED_STEP_BYTES = 16 * MIB

LOADS = Counter("modelmora_lifecycle_loads", "Loads by how they ended.", ["outcome"])
LOAD_SECONDS = Histogram(
    "modelmora_lifecycle_load_seconds", "From launch to LOADED.", buckets=(0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
)
EVICTIONS = Counter("modelmora_lifecycle_evictions", "Replicas that had to go, by what made it necessary.", ["trigger"])
CRASHES = Counter("modelmora_lifecycle_worker_crashes", "Workers that ended unasked or had to be replaced.")
REVOKED = Counter("modelmora_lifecycle_leases_revoked", "Leases that were taken from their holder.")
REPLICAS = Gauge("modelmora_lifecycle_replicas", "Replicas now.", ["state"])
CHARGED = Gauge("modelmora_lifecycle_memory_charged_bytes", "Bytes charged in the ledger.", ["device"])
BUDGET = Gauge("modelmora_lifecycle_memory_budget_bytes", "Bytes that models may take.", ["device"])


@dataclass(frozen=True)
class Loading:
    """It is not there yet."""

    estimate_seconds: float | None
    reason: str


@dataclass(frozen=True)
class Granted:
    """The replica may be used, at `endpoint` with `key`."""

    replica: Replica
    endpoint: str
    key: bytes


@dataclass(frozen=True)
class Yielding:
    """No new batch after `by` (monotonic). `cordoned`: nor on another replica, for the node takes no wants."""

    by: float
    reason: str
    cordoned: bool = False


@dataclass(frozen=True)
class Revoked:
    """The lease is over. `crashed`: the worker ended unasked."""

    reason: str
    crashed: bool = False
    out_of_memory: bool = False


@dataclass(frozen=True)
class Invited:
    """Another replica of the version is there: one more lease may be opened."""

    replica: Replica


Message = Loading | Granted | Yielding | Revoked | Invited


@dataclass(eq=False)
class LeaseEnd:
    """The node's side of one lease: what its holder is to be told, and the key it was given."""

    uid: str
    version: str
    priority: int
    want_time: float
    """When it was asked for; the times of a lease are on the monotonic clock."""
    unread: deque[Message | ModelMoraError] = field(default_factory=deque)
    """Bounded by the conversation: a few messages. Loading may come for hours; only the last word of it is kept."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    visit: bool = False
    """Only wants to know when it is loaded."""
    worker: Worker | None = None
    key: bytes = b""
    admission: asyncio.Task[None] | None = None
    replica: Replica | None = None
    """Once granted."""
    use_since: float | None = None
    """Since when it is in use; None while idle."""
    used: bool = False
    """Its first use was written down."""

    def tell(self, message: Message | ModelMoraError) -> None:
        if self.unread and isinstance(self.unread[-1], Loading) and isinstance(message, Loading):
            self.unread.pop()
        self.unread.append(message)
        self.news.set()

    async def next(self) -> Message:
        """The next message; raises the error that refuses the lease."""
        while not self.unread:
            self.news.clear()
            await self.news.wait()
        message = self.unread.popleft()
        if isinstance(message, ModelMoraError):
            raise message
        return message


@dataclass(frozen=True)
class Event:
    """One transition, as watchers see it."""

    number: int
    replica: Replica
    previous: ReplicaState
    leases: tuple[int, int]


@dataclass(frozen=True)
class Sight:
    """What a watcher is sent: a replica as it is, or one transition."""

    cursor: str
    reset: bool
    replica: Replica | None
    previous: ReplicaState | None
    leases: tuple[int, int]


class Journal(Protocol):
    """Where decisions, measurements and acquire events are kept; never waits, may drop."""

    def decided(self, decision: Decision) -> None: ...

    def measured(self, measured: Measured) -> None: ...

    def acquired(self, event: Acquired) -> None: ...


class Node:
    """All that is in memory on this node. Belongs to the event loop it is made in."""

    def __init__(
        self,
        *,
        rules: Rules,
        worker_rules: WorkerRules,
        launcher: Launcher,
        hold: Callable[[str], Hold],
        journal: Journal | None = None,
        on_health: Callable[[str, str], None] = lambda state, reason: None,
    ) -> None:
        """Nothing fits before `configure` has said what the budgets are."""
        self._loop = asyncio.get_running_loop()
        self.scheduler = Scheduler(Ledger(ceiling={}), rules, self, lambda: str(uuid7()))
        self._worker_rules = worker_rules
        self._launcher = launcher
        self._hold = hold
        self._journal = journal
        self._on_health = on_health
        self._ends: dict[str, LeaseEnd] = {}
        self._workers: dict[str, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._events: deque[Event] = deque(maxlen=HISTORY_EVENTS)
        self._event_count = 0
        self._boot = secrets.token_hex(4)
        self._ended: dict[str, Replica] = {}
        self._servers_kept: dict[str, Measured] = {}
        """By owner: what the journal was told last of a fork server."""
        self._drifted: dict[str, str] = {}
        """Versions whose answers are not those of their fingerprint, and how much they differ."""
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._sampler: asyncio.Task[None] | None = None
        self._meter = Meter()
        self._meter_thread = ThreadPoolExecutor(1, thread_name_prefix="memory")
        self.sample = Sample()
        """What was measured last."""
        self._budgets: Mapping[str, Budget] = {}
        self._share = 0.0
        """0: not configured yet."""
        self._wall_offset = time.time() - time.monotonic()

    # What edges ask for.

    def open_lease(
        self,
        facts: VersionFacts,
        priority: int,
        deadline: float,
        *,
        holder: str = "",
        if_loaded: bool = False,
        load_nothing: bool = False,
    ) -> LeaseEnd:
        """A lease that waits for `facts` until `deadline` (monotonic). Close it in any case."""
        end = self._new_end(facts.name, priority)
        end.used = load_nothing  # for the trace it counts once it is at work
        self._post(
            lambda now: self.scheduler.want(
                end.uid,
                facts,
                priority=priority,
                deadline=deadline,
                now=now,
                holder=holder,
                if_loaded=if_loaded,
                load_nothing=load_nothing,
            )
        )
        return end

    def urge(self, end: LeaseEnd, priority: int, deadline: float) -> None:
        """What waits behind a lease is so urgent by now, and of use until `deadline` (monotonic)."""
        self._post(lambda now: self.scheduler.urge(end.uid, priority, deadline, now))

    def in_use(
        self,
        end: LeaseEnd,
        in_flight: int,
        waiting_entries: int = 0,
        oldest_wait_seconds: float = 0.0,
        *,
        priority: int = 0,
    ) -> None:
        if in_flight and end.use_since is None:
            end.use_since = time.monotonic()
        elif not in_flight and end.use_since is not None:
            self._write_down(end)
        self._post(
            lambda now: self.scheduler.in_use(
                end.uid, in_flight, waiting_entries, oldest_wait_seconds, now, priority=priority
            )
        )

    def close_lease(self, end: LeaseEnd) -> None:
        """The holder is gone: the lease is free and its key void."""
        if self._ends.pop(end.uid, None) is not None:
            self._post(lambda now: self.scheduler.release(end.uid, now))
            self._shut_out(end)
        if end.use_since is not None or not end.used:
            self._write_down(end)

    def _new_end(self, version: str, priority: int, *, visit: bool = False) -> LeaseEnd:
        end = LeaseEnd(str(uuid7()), version, priority, time.monotonic(), visit=visit)
        self._ends[end.uid] = end
        return end

    def _write_down(self, end: LeaseEnd) -> None:
        """One use of a version has ended, for the trace. The first one of a lease began when it was asked for."""
        use_since, end.use_since = end.use_since, None
        begin = end.want_time if not end.used or use_since is None else use_since
        end.used = True
        tried = "#" in end.version  # a candidate of a tuning: no caller has asked for it
        facts = self.scheduler.facts(end.version)
        if self._journal is None or tried or facts is None:
            return
        now = time.monotonic()
        replica = end.replica and (self.replica(end.replica.uid) or end.replica)
        measured = self.scheduler.measurement(end.version)
        self._journal.acquired(
            Acquired(
                end.version,
                end.priority,
                datetime.fromtimestamp(self.wall_time(begin), UTC),
                now - use_since if use_since is not None else 0.0,
                # What a load reserves: a simulation adds nothing to it.
                self.scheduler.rules.prediction.before_load(facts, measured),
                (measured.typical_load_seconds if measured else None) or (replica.load_seconds if replica else 0.0),
            )
        )

    async def load(self, facts: VersionFacts, *, pin: bool, deadline: float, wait: bool) -> Replica:
        """A version in memory: LOADED with `wait`, else as it is right after the ask. Raises what refuses the load.

        Who waits and goes away cancels; who does not wait has asked for it until `deadline`.
        """
        end = self._new_end(facts.name, 20, visit=True)
        try:
            uid = await self._ask(
                lambda now: self.scheduler.want(
                    end.uid, facts, priority=20, deadline=deadline, now=now, pin=pin, visit=True
                )
            )
            while wait or not uid:
                message = await end.next()
                if isinstance(message, Granted):
                    return message.replica
            replica = self.replica(uid)
            if replica is None:
                raise LoadFailed(f"{facts.name} was cancelled", model_version=facts.name)
            return replica
        finally:
            if wait:
                self.close_lease(end)
            else:
                self._ends.pop(end.uid, None)

    def set_residency(
        self, version: str, residency: Residency, facts: VersionFacts | None, *, repin: bool = False
    ) -> None:
        """How a version is kept from now on; see `Scheduler.set_residency`."""
        self._post(lambda now: self.scheduler.set_residency(version, residency, facts, now, repin=repin))

    def configure(self, rules: Rules, budgets: Mapping[str, Budget], share: float) -> tuple[str, ...]:
        """Other rules and budgets from now on; the answer is what looks wrong, for people. InvalidArgument."""
        found = bounds(self.devices(), budgets, share)
        self._budgets, self._share = budgets, share
        self._post(lambda now: self.scheduler.configure(rules, found, now))
        return found.warnings

    async def settled(self) -> None:
        """Returns when what was asked of it before is in force."""
        await self._ask(lambda now: None)

    def _rebound(self) -> None:
        """What exists has changed: a container's limit, say."""
        devices = self.devices()
        found = bounds(devices, {name: b for name, b in self._budgets.items() if name in devices}, self._share)
        self._post(lambda now: self.scheduler.configure(self.scheduler.rules, found, now))

    def cordon(self, reason: str | None) -> None:
        """Empties the node, or with None lets it load again; nothing happens when it is so already."""

        def change(now: float) -> None:
            if reason is None:
                self.scheduler.uncordon(now)
            elif self.scheduler.cordoned != reason:
                self.scheduler.cordon(reason, now)
            self._tell_health()

        self._post(change)

    async def explain(self, facts: VersionFacts, priority: int) -> Placement:
        return await self._ask(lambda now: self.scheduler.explain(facts, priority, now))

    async def empty(self) -> None:
        """Returns when nothing is in memory."""
        while self.scheduler.replicas():
            await self._news.wait()

    async def unload(self, version: str, *, force: bool) -> list[str]:
        """Uids of the replicas that are drained now. Raises ReplicaNotFound, VersionInUse."""
        patience_end = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                return await self._ask(lambda now: self.scheduler.unload(version, force=force, now=now))
            except VersionInUse as error:
                if error.metadata.get("busy_leases", "0") == "0" or time.monotonic() >= patience_end:
                    raise
            await asyncio.sleep(0.05)

    async def gone(self, uids: Sequence[str]) -> None:
        """Returns when none of these replicas is in memory."""
        while any(self.scheduler.replica(uid) is not None for uid in uids):
            await self._news.wait()

    def replica(self, uid: str) -> Replica | None:
        """A replica that is, or was lately."""
        return self.scheduler.replica(uid) or self._ended.get(uid)

    def serves(self, version: str) -> bool:
        """Whether a version is in memory or on its way."""
        return any(
            replica.version == version and replica.state is not ReplicaState.FAILED
            for replica in self.scheduler.replicas()
        )

    def devices(self) -> dict[str, Device]:
        """What exists, as last measured."""
        limit = machine.limit()
        return {
            HOST: Device(limit.total_bytes, limit.limited_by),
            **{name: Device(b, self.sample.limited_by.get(name, "device")) for name, b in self.sample.total.items()},
        }

    def measured_of(self, owner: str) -> Vector:
        """What an owner of the ledger had when it was last measured; nothing before that."""
        shared = self.sample.shared.get(owner)
        return shared.memory if shared is not None else self.sample.private.get(owner, {})

    def renew(self, facts: VersionFacts) -> None:
        """What the registry says of a version now; see `Scheduler.renew`."""
        self._post(lambda now: self.scheduler.renew(facts, now))

    async def dismiss(self, version: str) -> None:
        """Unloads a version and returns when it is gone; nothing happens when it is not there."""
        try:
            uids = await self.unload(version, force=True)
        except ReplicaNotFound:
            return
        await self.gone(uids)

    def learned(self, candidate: str, version: str) -> None:
        """What a tuning's candidate took is what the version will take with that profile."""
        measured = self.scheduler.measurement(candidate)
        if measured is not None:
            measured = replace(measured, version=version)
            self.scheduler.remember(measured)
            if self._journal is not None:
                self._journal.measured(measured)

    def deleted(self, version: str) -> None:
        """The registry knows this version no more: it goes from memory too."""
        self._drifted.pop(version, None)
        self._spawn(asyncio.create_task(self._forget(version)))

    async def _forget(self, version: str) -> None:
        try:
            await self.unload(version, force=True)
        except ReplicaNotFound:
            pass

    def wall_time(self, monotonic: float) -> float:
        """Seconds since the epoch; the same moment always gives the same answer."""
        return monotonic + self._wall_offset

    async def watch(self, cursor: str, stopping: asyncio.Event) -> AsyncIterator[Sight]:
        """Transitions after `cursor`, or everything as it is and then transitions. ShuttingDown with the cursor when
        `stopping` is set."""
        boot, _, number = cursor.partition("-")
        seen = int(number) if boot == self._boot and number.isdigit() else -1
        while True:
            if not self._remembers(seen):
                seen = self._event_count
                now_there = [(replica, self.scheduler.leases(replica.uid)) for replica in self.scheduler.replicas()]
                for index, (replica, leases) in enumerate(now_there):
                    # Only the last one carries a cursor: a stream that breaks before has not seen everything.
                    last = index == len(now_there) - 1
                    yield Sight(self._cursor(seen) if last else "", index == 0, replica, None, leases)
                if not now_there:
                    yield Sight(self._cursor(seen), True, None, None, (0, 0))
            for event in [event for event in self._events if event.number > seen]:
                seen = event.number
                yield Sight(self._cursor(seen), False, event.replica, event.previous, event.leases)
            if stopping.is_set():
                raise ShuttingDown(retry_after_seconds=1.0, cursor=self._cursor(seen))
            if self._event_count == seen:
                news = asyncio.create_task(self._news.wait())
                stop = asyncio.create_task(stopping.wait())
                try:
                    await asyncio.wait((news, stop), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
                    stop.cancel()

    def _remembers(self, seen: int) -> bool:
        """Whether every event after number `seen` is still there."""
        return self._event_count - len(self._events) <= seen <= self._event_count

    async def begin(self) -> None:
        """Measures what exists, and from then on again and again."""
        await self._measure()
        self._sampler = asyncio.create_task(self._sample(), name="memory sampler")
        tell_if_broken(self._sampler, partial(self._on_health, "degraded"))

    async def give_up(self) -> None:
        """Unloads everything: another process has taken this node."""
        for version in {replica.version for replica in self.scheduler.replicas()}:
            await self._forget(version)

    async def close(self, grace_seconds: float) -> None:
        """Ends every worker; returns when all are reaped."""
        if self._sampler is not None:
            self._sampler.cancel()
        await self._ask(lambda now: self.scheduler.close(now, grace_seconds))
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))
        self._meter_thread.shutdown(wait=False)
        if self._timer is not None:
            self._timer.cancel()

    # The actor.

    def _post(self, event: Callable[[float], object]) -> None:
        self._loop.call_soon(self._run, event)

    async def _ask(self, event: Callable[[float], T]) -> T:
        answer: asyncio.Future[T] = self._loop.create_future()

        def run(now: float) -> None:
            try:
                result = event(now)
            except ModelMoraError as error:
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(result)
            finally:
                if not answer.done():
                    answer.set_exception(InternalError())

        self._post(run)
        return await answer

    def _run(self, event: Callable[[float], object]) -> None:
        try:
            event(time.monotonic())
        finally:  # an event that breaks is in the log; the clock must go on all the same
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            wake = self.scheduler.next_wake
            if wake is not None:
                delay = max(0.0, wake - time.monotonic())
                self._timer = self._loop.call_later(delay, self._run, self.scheduler.tick)
            news, self._news = self._news, asyncio.Event()
            news.set()

    def _spawn(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _sample(self) -> None:
        interval = min(SAMPLE_SECONDS, self._worker_rules.watch_interval_seconds)
        while True:
            await self._measure()
            ledger = self.scheduler.ledger
            for state in ReplicaState:
                REPLICAS.labels(state.value).set(sum(r.state is state for r in self.scheduler.replicas()))
            for device, memory_bytes in ledger.budget.items():
                BUDGET.labels(device).set(memory_bytes)
                CHARGED.labels(device).set(ledger.charged.get(device, 0))
            self._tell_health()
            await asyncio.sleep(interval)

    async def _measure(self) -> Sample:
        workers = [found for worker in self._workers.values() if (found := worker.described()) is not None]
        launcher = self._launcher
        sample = await self._loop.run_in_executor(
            self._meter_thread,
            self._meter.measure,
            workers,
            launcher.fork_servers(),
            launcher.spares(),
            launcher.started(),
        )
        self._post(partial(self._measured, sample, self._launcher.server_starts()))
        return sample

    def _measured(self, sample: Sample, server_starts: Mapping[str, float], now: float) -> None:
        """What processes have taken, and what is left for them."""
        before, self.sample = self.sample, sample
        if self._share and before.total != sample.total:
            self._rebound()
        free_bytes = self.scheduler.ledger.free.get(HOST, 0)
        for uid, taken in sample.private.items():
            worker = self._workers.get(uid)
            charged_bytes = self.scheduler.ledger.charge_of(uid).get(HOST, 0)
            if worker is not None and worker.took(taken[HOST], charged_bytes, free_bytes):
                self.scheduler.measured(uid, sample.peak[uid], now, worker.batch_tokens)
        ended = dict.fromkeys(before.shared.keys() - sample.shared.keys(), Shared({}))
        for owner, shared in {**ended, **sample.shared}.items():
            self.scheduler.charge_shared(owner, _in_steps(shared.memory, _SHARED_STEP_BYTES), now, shared.users)
        for family, seconds in server_starts.items():
            self._server_runs(f"{PREFIX}{family}", seconds, now)
        self.scheduler.observed(_in_steps(sample.foreign, _FOREIGN_STEP_BYTES), now)

    def _server_runs(self, owner: str, start_seconds: float, now: float) -> None:
        self.scheduler.server_opened(owner, start_seconds, now)
        measured = self.scheduler.measurement(owner)
        if measured is not None and measured.base and measured != self._servers_kept.get(owner):
            self._servers_kept[owner] = measured
            if self._journal is not None:
                self._journal.measured(measured)

    def _tell_health(self) -> None:
        """UNHEALTHY: a model cannot be had though nothing forbids it. DEGRADED: someone should know."""
        wrong = []
        unstable = self.scheduler.unstable(time.monotonic())
        if unstable:
            names = ", ".join(f"{n} ({count} times in a row: {why})" for n, (count, why) in sorted(unstable.items()))
            wrong.append(f"keeps failing: {names}; `modelmora explain MODEL` says why")
        if self.scheduler.cordoned is not None:
            wrong.append(f"cordoned: {self.scheduler.cordoned}")
        else:
            unkept = {name: note for name, note in self.scheduler.unkept().items() if name not in unstable}
            wrong += [f"{name} is to be in memory: {note}" for name, note in unkept.items() if note != _COMING]
        overdraft = self.scheduler.ledger.overdraft
        if overdraft:
            too_many = ", ".join(f"{over} bytes on {device}" for device, over in sorted(overdraft.items()))
            wrong.append(f"models hold more memory than the budget allows: {too_many} too many")
        wrong += [f"{name} {reason}" for name, reason in sorted(self._drifted.items()) if self.serves(name)]
        self._on_health("unhealthy" if unstable else "degraded" if wrong else "healthy", "; ".join(wrong))

    def _cursor(self, number: int) -> str:
        return f"{self._boot}-{number}"

    # Effects.

    def start(self, replica: Replica, facts: VersionFacts, need: Vector) -> None:
        hold = self._hold(facts.name.partition("#")[0])
        worker = Worker(replica.uid, facts, need, self._launcher, hold, self._worker_rules, self)
        self._workers[replica.uid] = worker
        self._spawn(worker.begin(self.scheduler.ledger.free.get(HOST, 0)))

    def stop(self, replica: Replica, grace_seconds: float) -> None:
        self._workers[replica.uid].stop(grace_seconds)

    def granted(self, lease: str, replica: Replica) -> None:
        end = self._ends.get(lease)
        if end is None:
            return
        if end.visit:
            del self._ends[lease]
            self._write_down(end)
            end.tell(Granted(replica, "", b""))
            return
        end.replica = replica
        end.worker = self._workers[replica.uid]
        end.key = secrets.token_bytes(32)
        end.admission = self._spawn(asyncio.create_task(self._admit(end, replica)))

    async def _admit(self, end: LeaseEnd, replica: Replica) -> None:
        assert end.worker is not None
        try:
            await end.worker.allow(end.key)
        except (ModelMoraError, TimeoutError) as error:
            end.tell(Revoked(f"the worker did not let the holder in: {str(error) or 'timeout'}"))
            self._post(lambda now: self.scheduler.release(end.uid, now))
        else:
            end.tell(Granted(replica, end.worker.endpoint, end.key))

    def loading(self, lease: str, estimate_seconds: float | None, reason: str) -> None:
        self._send(lease, Loading(estimate_seconds, reason))

    def yielding(self, lease: str, by: float, reason: str) -> None:
        self._send(lease, Yielding(by, reason, self.scheduler.cordoned is not None))

    def invite(self, lease: str, replica: Replica) -> None:
        self._send(lease, Invited(replica))

    def revoked(self, lease: str, reason: str, crashed: bool) -> None:
        REVOKED.inc()
        end = self._ends.pop(lease, None)
        if end is not None:
            self._shut_out(end)
            replica = self.scheduler.replica(end.replica.uid) if end.replica is not None else None
            end.tell(Revoked(reason, crashed, replica is not None and replica.out_of_memory))

    def refused(self, lease: str, error: ModelMoraError) -> None:
        end = self._ends.pop(lease, None)
        if end is not None:
            end.tell(error)

    def changed(self, replica: Replica, previous: ReplicaState) -> None:
        self._event_count += 1
        leases = self.scheduler.leases(replica.uid)
        self._events.append(Event(self._event_count, replica, previous, leases))
        log.info(
            "%s of %s: %s -> %s: %s", replica.name, replica.version, previous.name, replica.state.name, replica.reason
        )
        if replica.state is ReplicaState.FAILED:
            if previous is ReplicaState.LOADING:
                LOADS.labels("cancelled" if replica.reason.startswith("cancelled") else "failed").inc()
            else:
                CRASHES.inc()
        elif replica.state is ReplicaState.LOADED and previous is ReplicaState.LOADING:
            LOADS.labels("loaded").inc()
            LOAD_SECONDS.observe(replica.loaded_time - replica.start_time)
            self._keep(replica)
        elif replica.state is ReplicaState.UNLOADED:
            if replica.peak:
                self._keep(replica)
            self._ended[replica.uid] = replica
            if len(self._ended) > ENDED_REPLICAS:
                del self._ended[next(iter(self._ended))]

    def decided(self, decision: Decision) -> None:
        if isinstance(decision.outcome, Plan):
            EVICTIONS.labels(decision.trigger.value).inc(len(decision.outcome.victims))
        if decision.trigger is Trigger.PLACEMENT:
            told = f"{decision.reason}: {decision.outcome}" if decision.reason else decision.outcome
            log.info("to place %s: %s", decision.version, told)
        else:
            log.info("%s (%s): %s", decision.reason, decision.trigger.value, decision.outcome)
        if self._journal is not None:
            self._journal.decided(decision)

    def end_server(self, owner: str) -> None:
        async def end() -> None:
            await self._launcher.cool(owner.removeprefix(PREFIX))
            await self._measure()

        self._spawn(asyncio.create_task(end(), name=f"end of {owner}"))

    def _keep(self, replica: Replica) -> None:
        measured = self.scheduler.measurement(replica.version)
        if self._journal is not None and measured is not None:
            self._journal.measured(measured)

    def _send(self, lease: str, message: Message) -> None:
        end = self._ends.get(lease)
        if end is not None:
            end.tell(message)

    def _shut_out(self, end: LeaseEnd) -> None:
        if end.worker is not None:
            self._spawn(asyncio.create_task(self._withdraw(end)))

    async def _withdraw(self, end: LeaseEnd) -> None:
        assert end.worker is not None
        if end.admission is not None:
            await asyncio.wait((end.admission,))
        await end.worker.withdraw(end.key)

    # Reports of workers.

    def launched(self, uid: str, pid: int, start_mode: StartMode, refused: bool) -> None:
        self._post(lambda now: self.scheduler.launched(uid, pid, now, start_mode, refused))

    def loaded(self, uid: str, reply: worker_pb2.LoadReply, seconds: float) -> None:
        memory = {item.device: item.memory_bytes for item in reply.footprint if item.memory_bytes}
        profile = EngineProfile(
            reply.engine_profile.backend,
            reply.engine_profile.precision,
            dict(reply.engine_profile.library_versions),
            reply.engine_profile.batch_rule,
        )
        limits = EngineLimits(
            reply.max_input_tokens, reply.embedding_dimensions, reply.max_batch_tokens, reply.max_batch_entries
        )

        def report(memory: Vector) -> None:
            self._post(lambda now: self.scheduler.loaded(uid, Footprint(memory, seconds), now, profile, limits))

        async def look() -> None:
            sample = await self._measure()
            report({**memory, **sample.private.get(uid, {})})

        process = worker.described() if (worker := self._workers.get(uid)) is not None else None
        if process is not None and process.lender and gone(process.lender):
            # All that it had from its fork server seems its own to it; what is measured from outside knows better.
            self._spawn(asyncio.create_task(look()))
        else:
            report(memory)

    def load_failed(self, uid: str, error: ModelMoraError) -> None:
        log.warning("a load failed: %s", error.message)
        self._post(lambda now: self.scheduler.load_failed(uid, error, now))

    def watched(self, uid: str, health: Health) -> None:
        if health.state is not HealthState.UNKNOWN:
            self._post(lambda now: self.scheduler.health(uid, health, now))

    def recognised(self, uid: str, difference: str) -> None:
        replica = self.scheduler.replica(uid)
        if replica is None:
            return
        if difference:
            log.error("%s %s", replica.version, difference)
            self._drifted[replica.version] = difference
        else:
            self._drifted.pop(replica.version, None)
        self._tell_health()

    def exited(self, uid: str, reason: str, out_of_memory: bool) -> None:
        def report(now: float) -> None:
            self._workers.pop(uid, None)
            self.scheduler.exited(uid, reason, now, out_of_memory)

        self._post(report)


def _in_steps(memory: Vector, step_bytes: int) -> dict[str, int]:
    """Rounded up: the last megabyte decides nothing and changes all the time."""
    return {device: -(-size // step_bytes) * step_bytes for device, size in memory.items()}
