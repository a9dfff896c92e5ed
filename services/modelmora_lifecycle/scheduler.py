"""Who gets memory when: the pure heart of lifecycle.

Three roles. The **Scheduler** decides; it is told events (a holder wants, a worker has loaded, a process is gone) with
`now`, changes its state at once and names what is to be done. **eviction.plan** answers one question: who has to go for
this need. **Effects** are what can be done; they run outside, take their time, and come back as events.

Every event ends in `_step`, which repeats until nothing changes:

    1. expire    waiters past their deadline are refused, holders past their grace are cut off, sick workers replaced
    2. forget    what nobody waits for any more: loads are cancelled, victims that are not yet stopped are revived
    3. grant     waiters of a LOADED replica get it: a loaded model is never behind one that loads
    4. place     versions wanted but not in memory, by aged priority, then arrival:
                 start if it fits now; else claim a whole victim set; else wait, and let the rest of memory be used
    5. relieve   workers took more than was predicted, or were idle too long: idle ones go
    6. wind down draining replicas: idle leases are taken, busy ones have been asked to yield, then the process is ended

Two things look simpler than they are.

*Promises.* A victim's bytes are free only when its process is reaped, and several loads may wait for several victims at
once. A load with a plan is promised its need; it starts as soon as its need is free, whoever's victims came home first.
This is safe because claims keep `free + coming >= promised`, and a start takes the same amount from both sides. Should
reality break it (a worker grew meanwhile), the latest promises are withdrawn and planned again.

*Revival.* A victim whose load is no longer wanted goes back to LOADED, unless its process was told to end. The lesson
is Ollama's: a victim revived while a load still counted on its memory left that load waiting for ever. Here a claim
names its load, a claimed replica cannot be revived (`Replica.to`), and a withdrawn load gives up its claims in the same
step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from modelmora.errors import (
    DeadlineExceeded,
    LoadFailed,
    MemoryBusy,
    ModelMoraError,
    NeverFits,
    ReplicaNotFound,
    ResourceExhausted,
    ShuttingDown,
    Unavailable,
    VersionInUse,
)

from modelmora_lifecycle.domain import (
    EngineLimits,
    EngineProfile,
    Footprint,
    Health,
    HealthState,
    Prediction,
    Replica,
    ReplicaState,
    VersionFacts,
)
from modelmora_lifecycle.eviction import Candidate, Impossible, Need, Plan, Policy, Wait, plan, relief
from modelmora_lifecycle.ledger import Ledger, Vector, covers, largest, least, minus, plus, positive

INFINITE = float("inf")
VERSIONS_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class Rules:
    """The figures the scheduler goes by; settings become these."""

    minimum_residency_seconds: float = 2.0
    holder_grace_seconds: float = 20.0
    drain_grace_seconds: float = 5.0
    unhealthy_grace_seconds: float = 10.0
    idle_ttl_seconds: float = 0.0
    crash_window_seconds: float = 10.0
    """A crash this soon after the load counts as one of a loop."""
    backoff_limit_seconds: float = 30.0
    policy: Policy = field(default_factory=Policy)
    prediction: Prediction = field(default_factory=Prediction)


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer of the eviction policy with what it was decided from."""

    version: str
    need: Need
    candidates: Sequence[Candidate]
    outcome: Plan | Wait | Impossible
    policy: Policy
    time: float


class Effects(Protocol):
    """What can be done. None of these waits, fails or calls back at once; results come as events."""

    def start(self, replica: Replica, facts: VersionFacts, need: Vector) -> None:
        """Launch and load. Ends in `loaded` or `load_failed`; `exited` comes in any case, once, when it is reaped."""

    def stop(self, replica: Replica, grace_seconds: float) -> None:
        """Drain, SIGTERM after the grace, SIGKILL: ends in `exited`. Also during a load, which it cancels."""

    def granted(self, lease: str, replica: Replica) -> None: ...

    def loading(self, lease: str, estimate_seconds: float | None, reason: str) -> None: ...

    def yielding(self, lease: str, by: float, reason: str) -> None: ...

    def revoked(self, lease: str, reason: str, crashed: bool) -> None:
        """The lease is over; whoever held it can no longer reach the worker. `crashed`: by what it ran, maybe."""

    def refused(self, lease: str, error: ModelMoraError) -> None: ...

    def changed(self, replica: Replica, previous: ReplicaState) -> None: ...

    def decided(self, decision: Decision) -> None: ...


@dataclass(slots=True)
class _Lease:
    uid: str
    version: str
    priority: int
    deadline: float
    arrival: float
    pin: bool
    visit: bool
    """Wants the version to be loaded, not to use it: over as soon as it is granted."""
    replica: str = ""
    in_flight: int = 0
    grace_until: float | None = None
    """Set once it was asked to yield."""
    told: tuple[float | None, str] | None = None


@dataclass(slots=True)
class _Known:
    """What the scheduler remembers of a version."""

    facts: VersionFacts
    measured: Vector = field(default_factory=dict)
    load_seconds: float | None = None
    failures: int = 0
    retry_at: float = 0.0
    error: ModelMoraError | None = None
    """Of the last load, when it failed: wants before `retry_at` get it at once. After a crash they wait instead."""
    note: str = ""


class Scheduler:
    """State and decisions of one node. Not thread-safe, never blocks; `now` is monotonic and never goes back."""

    def __init__(self, ledger: Ledger, rules: Rules, effects: Effects, new_uid: Callable[[], str]) -> None:
        self.ledger = ledger
        self.rules = rules
        self.next_wake: float | None = None
        """When `tick` has to be called if no event comes before."""
        self._effects = effects
        self._new_uid = new_uid
        self._replicas: dict[str, Replica] = {}
        self._leases: dict[str, _Lease] = {}
        self._known: dict[str, _Known] = {}
        self._remembered: dict[str, Footprint] = {}
        self._promised: dict[str, Vector] = {}
        """Needs of the replicas that have a plan, by uid, in the order of their planning."""
        self._leaving: set[str] = set()
        """Draining on their own account: unloaded by name, idle too long, or in the way of an overdraft."""
        self._ending: set[str] = set()
        """Their process was told to end; nothing but `exited` follows."""
        self._sick_since: dict[str, float] = {}
        self._decided: dict[str, tuple[object, ...]] = {}
        self._closing = False
        self._wakes: list[float] = []
        self._changes = 0

    # What others may see.

    def replicas(self) -> list[Replica]:
        """Every replica, oldest first, those waiting for memory (UNLOADED) included."""
        return list(self._replicas.values())

    def replica(self, uid: str) -> Replica | None:
        return self._replicas.get(uid)

    def facts(self, version: str) -> VersionFacts | None:
        known = self._known.get(version)
        return known.facts if known else None

    def leases(self, uid: str) -> tuple[int, int]:
        """How many leases a replica has, and how many of them are busy."""
        held = self._held(uid)
        return len(held), sum(lease.in_flight > 0 for lease in held)

    def unstable(self, now: float) -> dict[str, int]:
        """Versions that keep failing, with how often in a row; not those that nobody tries any more."""
        return {
            name: known.failures
            for name, known in self._known.items()
            if known.failures >= 3 and now < known.retry_at + self.rules.backoff_limit_seconds
        }

    # Events from callers.

    def want(
        self,
        lease: str,
        facts: VersionFacts,
        *,
        priority: int,
        deadline: float,
        now: float,
        pin: bool = False,
        visit: bool = False,
    ) -> str:
        """A caller wants a version until `deadline`. The answer is the uid of the replica it waits for or got; empty
        when it was refused. `visit`: only to have it loaded."""
        if lease in self._leases:
            raise ValueError(f"lease {lease} exists")
        known = self._known.get(facts.name)
        if known is None:
            before = self._remembered.pop(facts.name, None)
            known = _Known(facts, before.memory, before.load_seconds) if before else _Known(facts)
            self._known[facts.name] = known
            self._forget_unused()
        if self._closing:
            self._effects.refused(lease, ShuttingDown())
            return ""
        if known.error is not None and now < known.retry_at:
            self._effects.refused(lease, _again(known.error, known.retry_at - now))
            return ""
        if deadline <= now:
            self._effects.refused(lease, DeadlineExceeded("the deadline had passed before the lease was asked for"))
            return ""
        self._leases[lease] = _Lease(lease, facts.name, priority, deadline, now, pin, visit)
        self._step(now)
        return next((r.uid for r in self._of(facts.name, _COUNTED)), "")

    def in_use(self, lease: str, in_flight: int, now: float) -> None:
        """A holder has so many requests in flight. Nothing happens when the lease is over."""
        held = self._leases.get(lease)
        if held is None or not held.replica:
            return
        was_busy, held.in_flight = held.in_flight > 0, max(0, in_flight)
        if was_busy == (held.in_flight > 0):
            return
        self._touch(held.replica, now)
        # The most frequent event of all. Unless someone waits for memory or this replica is to go, nothing can follow.
        if self._replicas[held.replica].state is not ReplicaState.LOADED or self._waiters() or self._idle_counts():
            self._step(now)

    def release(self, lease: str, now: float) -> None:
        """A holder or waiter has gone. Nothing happens when the lease is over."""
        gone = self._leases.pop(lease, None)
        if gone is not None:
            if gone.replica:
                self._touch(gone.replica, now)
            self._step(now)

    def unload(self, version: str, *, force: bool, now: float) -> list[str]:
        """Drains every replica of a version; the answer is their uids. ReplicaNotFound; VersionInUse when it is busy,
        pinned or waited for and `force` is false."""
        there = [r for r in self._of(version, set(ReplicaState)) if r.state is not ReplicaState.FAILED]
        if not there:
            raise ReplicaNotFound(f"{version} is not in memory", model_version=version)
        waiters = self._waiters(version)
        busy = sum(self.leases(r.uid)[1] for r in there)
        if not force and (busy or waiters or any(r.pinned for r in there)):
            raise VersionInUse(
                f"{version} is {'busy' if busy or waiters else 'pinned'}; use force",
                model_version=version,
                busy_leases=busy,
                waiters=len(waiters),
            )
        for replica in there:
            if replica.state is ReplicaState.LOADING:
                self._fail(replica, "cancelled: unloaded by name", now)
            elif replica.state in (ReplicaState.LOADED, ReplicaState.UNHEALTHY):
                self._drain(replica, "unloaded by name", now, grace=self.rules.drain_grace_seconds)
                self._leaving.add(replica.uid)
            elif replica.state is ReplicaState.DRAINING:
                self._leaving.add(replica.uid)
        for lease in waiters:
            self._refuse(lease, LoadFailed(f"{version} was unloaded by name", retry_after_seconds=1.0))
        self._step(now)
        return [replica.uid for replica in there]

    def close(self, now: float, grace_seconds: float) -> None:
        """The node stops: waiters are refused, holders cut off, every process ended."""
        self._closing = True
        for lease in list(self._leases.values()):
            if lease.replica:
                self._revoke(lease, "the node stops")
            else:
                self._refuse(lease, ShuttingDown())
        self._step(now)
        for replica in self.replicas():
            if replica.state in (ReplicaState.LOADED, ReplicaState.UNHEALTHY):
                replica = self._drain(replica, "the node stops", now, grace=0.0)
            if replica.state is ReplicaState.DRAINING:
                self._end(replica, grace_seconds)
            elif replica.state is ReplicaState.LOADING:
                self._fail(replica, "cancelled: the node stops", now)
        self._step(now)

    # Events from workers.

    def launched(self, uid: str, pid: int, now: float) -> None:
        replica = self._replicas.get(uid)
        if replica is not None:
            self._replicas[uid] = replica.changed(now, pid=pid)

    def loaded(
        self,
        uid: str,
        footprint: Footprint,
        now: float,
        profile: EngineProfile | None = None,
        limits: EngineLimits | None = None,
    ) -> None:
        """A worker is ready; its measured bytes replace the prediction."""
        replica = self._replicas.get(uid)
        if replica is None or replica.state is not ReplicaState.LOADING:
            return  # cancelled meanwhile
        known = self._known[replica.version]
        known.measured = largest(known.measured, footprint.memory)
        known.load_seconds = footprint.load_seconds
        known.error, known.note = None, ""
        self.ledger = self.ledger.settle(uid, self.rules.prediction.after_load(known.facts, footprint.memory))
        self._set(
            replica.to(
                ReplicaState.LOADED,
                "loaded",
                now,
                profile=profile or known.facts.profile,
                limits=limits or EngineLimits(),
                peak=dict(footprint.memory),
                health=Health(HealthState.HEALTHY, "", now),
                loaded_time=now,
                load_seconds=footprint.load_seconds,
                last_used_time=now,
            )
        )
        self._step(now)

    def load_failed(self, uid: str, error: ModelMoraError, now: float) -> None:
        """A load ended without a model; its process is ending. Everyone who waits for it is told why."""
        replica = self._replicas.get(uid)
        if replica is None or replica.state is not ReplicaState.LOADING:
            return
        known = self._known[replica.version]
        known.failures += 1
        known.retry_at = now + min(self.rules.backoff_limit_seconds, 2.0 ** (known.failures - 1))
        known.error = error
        for lease in self._waiters(replica.version):
            self._refuse(lease, _again(error, known.retry_at - now))
        self._fail(replica, f"load failed: {error.message}", now)
        self._step(now)

    def exited(self, uid: str, reason: str, now: float) -> None:
        """A process is gone and reaped: its memory is back. Unasked for, this is a crash."""
        replica = self._replicas.get(uid)
        if replica is None:
            return
        asked = uid in self._ending
        self._ending.add(uid)  # there is nothing left to stop
        if replica.state is ReplicaState.LOADING:
            self.load_failed(uid, LoadFailed(f"the worker ended while loading: {reason}"), now)
        elif replica.state in (ReplicaState.LOADED, ReplicaState.UNHEALTHY) or (
            replica.state is ReplicaState.DRAINING and not asked
        ):
            self._crashed(replica, f"crashed: {reason}", now)
        replica = self._replicas[uid]
        self.ledger = self.ledger.release(uid)
        if replica.state in (ReplicaState.FAILED, ReplicaState.DRAINING):
            self._set(replica.to(ReplicaState.UNLOADED, replica.reason, now, pid=0, claimed_by=""))
        self._remove(uid)
        self._step(now)

    def measured(self, uid: str, memory: Vector, now: float) -> None:
        """A worker's private bytes by device. The charge follows the highest seen."""
        replica = self._replicas.get(uid)
        if replica is None or not replica.loaded_time:
            return
        if covers(replica.peak, memory):
            return
        known = self._known[replica.version]
        peak = largest(replica.peak, memory)
        known.measured = largest(known.measured, peak)
        self._replicas[uid] = replica.changed(now, peak=peak)
        self.ledger = self.ledger.settle(uid, self.rules.prediction.after_load(known.facts, peak))
        self._step(now)

    def health(self, uid: str, health: Health, now: float) -> None:
        """What a worker says of itself, or that it says nothing."""
        replica = self._replicas.get(uid)
        if replica is None:
            return
        sick = health.state is HealthState.UNHEALTHY
        if replica.state is ReplicaState.LOADED and sick:
            self._sick_since[uid] = now
            self._set(replica.to(ReplicaState.UNHEALTHY, health.reason, now, health=health))
        elif replica.state is ReplicaState.UNHEALTHY and not sick:
            self._sick_since.pop(uid, None)
            self._set(replica.to(ReplicaState.LOADED, "recovered", now, health=health))
        else:
            self._replicas[uid] = replace(replica, health=health)
            if replica.loaded_time and now - replica.loaded_time >= self.rules.crash_window_seconds:
                self._known[replica.version].failures = 0
            return
        self._step(now)

    def observed(self, foreign: Vector, now: float) -> None:
        """Other programs use so many bytes by device."""
        if foreign != self.ledger.foreign:
            self.ledger = self.ledger.observe(foreign)
            self._step(now)

    def remember(self, version: str, memory: Vector, load_seconds: float) -> None:
        """What was measured before this process started; changes nothing that is known better by now."""
        if version not in self._known:
            self._remembered[version] = Footprint(dict(memory), load_seconds)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._step(now)

    # The step.

    def _step(self, now: float) -> None:
        for _ in range(1000):
            self._wakes, before = [], self._changes
            self._expire(now)
            self._forget_unwanted(now)
            self._grant(now)
            self._place(now)
            self._relieve(now)
            self._wind_down(now)
            if self._changes == before:
                break
        else:
            raise AssertionError("the scheduler does not come to rest")
        self._tell(now)
        # Never before now: a wake that rounding puts a hair too early must not be lost, nor asked for in a circle.
        self.next_wake = min((max(wake, now + 0.001) for wake in self._wakes), default=None)

    def _expire(self, now: float) -> None:  # 1
        for lease in list(self._leases.values()):
            if lease.replica:
                continue
            if lease.deadline > now:
                self._wakes.append(lease.deadline)
            elif self._of(lease.version, {ReplicaState.LOADING}) or now < self._known[lease.version].retry_at:
                self._refuse(lease, DeadlineExceeded("the model was not loaded before the deadline"))
            else:
                seconds = self._estimate(lease.version)
                self._refuse(lease, MemoryBusy(retry_after_seconds=seconds or 1.0, model_version=lease.version))
        for uid, since in list(self._sick_since.items()):
            replica = self._replicas[uid]
            if replica.state is not ReplicaState.UNHEALTHY:
                self._sick_since.pop(uid)
            elif since + self.rules.unhealthy_grace_seconds <= now:
                self._crashed(replica, f"replaced: {replica.reason}", now)
            else:
                self._wakes.append(since + self.rules.unhealthy_grace_seconds)

    def _forget_unwanted(self, now: float) -> None:  # 2
        for replica in self.replicas():
            if replica.state in (ReplicaState.UNLOADED, ReplicaState.LOADING) and not self._waiters(replica.version):
                if replica.state is ReplicaState.LOADING:
                    self._fail(replica, "cancelled: nobody waits for it", now)
                else:
                    self._remove(replica.uid)
                self._give_up_claims(replica.uid, now)

    def _grant(self, now: float) -> None:  # 3
        for lease in self._waiters():
            replica = self._serving(lease.version)
            if replica is None:
                continue
            changes: dict[str, object] = {"last_used_time": now}
            if lease.pin:
                changes["pinned"] = True
            pinned = lease.pin and not replica.pinned
            self._replicas[replica.uid] = replica = replica.changed(now, **changes)
            if pinned:
                self._effects.changed(replica, replica.state)
            if lease.visit:
                del self._leases[lease.uid]
            else:
                lease.replica = replica.uid
            self._changes += 1
            self._effects.granted(lease.uid, replica)

    def _place(self, now: float) -> None:  # 4
        # What is free or on its way and promised to nobody.
        room = plus(self.ledger.free, self.ledger.sum_of(r.uid for r in self.replicas() if self._goes(r)))
        for uid, promised in list(self._promised.items()):
            room = minus(room, promised)
            if any(room.get(device, 0) < 0 for device in positive(promised)):
                self._give_up_claims(uid, now)  # reality broke the promise: plan again
                return self._place(now)
        # The same less what those who wait before will get, plus their victims to come: what the others may use. Both
        # bounds hold for a newcomer: victims to come are no memory yet, and what is kept for others is not his.
        rest, kept = dict(room), set[str]()
        for version in self._wanted():
            known = self._known[version]
            if now < known.retry_at:
                self._wakes.append(known.retry_at)
                known.note = "its worker keeps crashing" if known.failures > 1 else "its worker crashed"
                continue
            replica = next(iter(self._of(version, {ReplicaState.UNLOADED})), None) or self._new(version, now)
            if replica.uid in self._promised:
                if covers(self.ledger.free, self._promised[replica.uid]):
                    self._start(replica, self._promised[replica.uid], now)
                continue
            need = self.rules.prediction.before_load(known.facts, known.measured)
            available = least(room, rest)
            if covers(available, need) and covers(self.ledger.free, need):
                room, rest = minus(room, need), minus(rest, need)
                self._start(replica, need, now)
                continue
            outcome = self._plan(version, need, available, kept, now)
            if isinstance(outcome, Impossible):
                self._refuse_all(version, _never_fits(version, outcome))
                self._remove(replica.uid)
                continue
            change = minus(self.ledger.sum_of(outcome.victims), need)
            if isinstance(outcome, Plan):
                known.note = "waiting for memory that is being freed"
                self._promised[replica.uid] = need
                self._changes += 1
                for uid in outcome.victims:
                    self._claim(self._replicas[uid], replica.uid, version, now)
                room, rest = plus(room, change), plus(rest, change)
                continue
            known.note = f"waiting for memory: {outcome.reason}"
            if outcome.until is not None:
                self._wakes.append(outcome.until)
            if outcome.attainable:
                kept.update(outcome.victims)
                rest = plus(rest, change)

    def _relieve(self, now: float) -> None:  # 5
        going = self.ledger.sum_of(r.uid for r in self.replicas() if self._goes(r))
        short = positive(minus(self.ledger.overdraft, going))
        if short:
            for uid in relief(short, self._candidates(set()), self.rules.policy, now):
                self._drain(self._replicas[uid], "memory is overdrawn", now, grace=0.0)
                self._leaving.add(uid)
        if self.rules.idle_ttl_seconds > 0:
            for replica in self.replicas():
                if replica.state is not ReplicaState.LOADED or replica.pinned or self.leases(replica.uid)[1]:
                    continue
                end = replica.last_used_time + self.rules.idle_ttl_seconds
                if end > now:
                    self._wakes.append(end)
                else:
                    self._drain(replica, "idle for longer than its time to live", now, grace=0.0)
                    self._leaving.add(replica.uid)

    def _wind_down(self, now: float) -> None:  # 6
        for replica in self.replicas():
            if replica.state is not ReplicaState.DRAINING or replica.uid in self._ending:
                continue
            for lease in self._held(replica.uid):
                grace_until = lease.grace_until if lease.grace_until is not None else now
                if lease.in_flight == 0:
                    self._revoke(lease, replica.reason)
                elif grace_until <= now:
                    self._revoke(lease, f"{replica.reason}; the holder did not yield in time")
                else:
                    self._wakes.append(grace_until)
            if not self._held(replica.uid):
                self._end(replica, self.rules.drain_grace_seconds)

    def _tell(self, now: float) -> None:
        for lease in self._waiters():
            estimate = self._estimate(lease.version)
            loading = next(iter(self._of(lease.version, {ReplicaState.LOADING})), None)
            told = (estimate, "loading" if loading else self._known[lease.version].note)
            if lease.told != told:
                lease.told = told
                self._effects.loading(lease.uid, *told)

    # Changes of state.

    def _new(self, version: str, now: float) -> Replica:
        facts = self._known[version].facts
        uid = self._new_uid()
        self._replicas[uid] = Replica(uid, version, facts.engine, now, now, profile=facts.profile)
        return self._replicas[uid]

    def _start(self, replica: Replica, need: Vector, now: float) -> None:
        self.ledger = self.ledger.reserve(replica.uid, need)
        self._promised.pop(replica.uid, None)
        known = self._known[replica.version]
        self._set(replica.to(ReplicaState.LOADING, "loading", now))
        self._effects.start(self._replicas[replica.uid], known.facts, need)
        self._give_up_claims(replica.uid, now)

    def _claim(self, victim: Replica, by: str, version: str, now: float) -> None:
        self._replicas[victim.uid] = victim.changed(now, claimed_by=by)
        self._drain(self._replicas[victim.uid], f"makes room for {version}", now, self.rules.holder_grace_seconds)

    def _give_up_claims(self, by: str, now: float) -> None:
        self._promised.pop(by, None)
        for victim in self.replicas():
            if victim.claimed_by != by:
                continue
            if victim.uid in self._ending or victim.uid in self._leaving or victim.state is not ReplicaState.DRAINING:
                self._replicas[victim.uid] = victim.changed(now, claimed_by="")
                continue
            for lease in self._held(victim.uid):
                lease.grace_until = None
            self._set(victim.to(ReplicaState.LOADED, "its memory is no longer needed", now, claimed_by=""))

    def _drain(self, replica: Replica, reason: str, now: float, grace: float) -> Replica:
        self._set(replica.to(ReplicaState.DRAINING, reason, now, pinned=False))
        for lease in self._held(replica.uid):
            if lease.in_flight > 0 and lease.grace_until is None:
                lease.grace_until = now + grace
                self._effects.yielding(lease.uid, now, reason)
        return self._replicas[replica.uid]

    def _end(self, replica: Replica, grace_seconds: float) -> None:
        if replica.uid not in self._ending:
            self._ending.add(replica.uid)
            self._changes += 1
            self._effects.stop(replica, grace_seconds)

    def _fail(self, replica: Replica, reason: str, now: float, crashed: bool = False) -> None:
        self._set(replica.to(ReplicaState.FAILED, reason, now))
        for lease in self._held(replica.uid):
            self._revoke(lease, reason, crashed)
        self._end(self._replicas[replica.uid], 0.0)

    def _crashed(self, replica: Replica, reason: str, now: float) -> None:
        known = self._known[replica.version]
        looping = now - replica.loaded_time < self.rules.crash_window_seconds
        known.failures = known.failures + 1 if looping else 1
        delay = 0.0 if known.failures == 1 else 0.25 * 2.0 ** (known.failures - 2)
        known.retry_at = now + min(self.rules.backoff_limit_seconds, delay)
        known.error = None
        self._fail(replica, reason, now, crashed=True)

    def _remove(self, uid: str) -> None:
        del self._replicas[uid]
        self._changes += 1
        self._promised.pop(uid, None)
        self._leaving.discard(uid)
        self._ending.discard(uid)
        self._sick_since.pop(uid, None)

    def _set(self, replica: Replica) -> None:
        previous = self._replicas[replica.uid].state
        self._replicas[replica.uid] = replica
        self._changes += 1
        self._effects.changed(replica, previous)

    def _touch(self, uid: str, now: float) -> None:
        if uid in self._replicas:
            self._replicas[uid] = replace(self._replicas[uid], last_used_time=now)

    def _revoke(self, lease: _Lease, reason: str, crashed: bool = False) -> None:
        del self._leases[lease.uid]
        self._changes += 1
        self._effects.revoked(lease.uid, reason, crashed)

    def _refuse(self, lease: _Lease, error: ModelMoraError) -> None:
        del self._leases[lease.uid]
        self._changes += 1
        self._effects.refused(lease.uid, error)

    def _refuse_all(self, version: str, error: ModelMoraError) -> None:
        for lease in self._waiters(version):
            self._refuse(lease, error)

    def _forget_unused(self) -> None:
        """Keeps what is known of versions bounded."""
        if len(self._known) > VERSIONS_KNOWN:
            used = {r.version for r in self._replicas.values()} | {lease.version for lease in self._leases.values()}
            for name in list(self._known)[: VERSIONS_KNOWN // 10]:
                if name not in used:
                    del self._known[name]

    # Derived facts.

    def _plan(
        self, version: str, need: Vector, available: Vector, kept: set[str], now: float
    ) -> Plan | Wait | Impossible:
        priority = max(self.rules.policy.aged(lease.priority, now - lease.arrival) for lease in self._waiters(version))
        asked = Need(need, available, self.ledger.ceiling, self.ledger.budget, priority)
        candidates = self._candidates(kept)
        outcome = plan(asked, candidates, self.rules.policy, now)
        # A wait is told once, not at every look.
        told = (type(outcome), outcome.victims if not isinstance(outcome, Impossible) else ())
        if not isinstance(outcome, Wait) or self._decided.get(version) != told:
            self._effects.decided(Decision(version, asked, candidates, outcome, self.rules.policy, now))
        if isinstance(outcome, Wait):
            self._decided[version] = told
        else:
            self._decided.pop(version, None)
        return outcome

    def _candidates(self, kept: set[str]) -> list[Candidate]:
        """Replicas in memory as eviction sees them; those of `kept` are spoken for."""
        found = []
        for replica in self._replicas.values():
            if replica.uid not in self.ledger.charges:
                continue
            busy = [lease.priority for lease in self._held(replica.uid) if lease.in_flight > 0]
            found.append(
                Candidate(
                    uid=replica.uid,
                    charge=self.ledger.charge_of(replica.uid),
                    evictable=replica.state is ReplicaState.LOADED and replica.uid not in kept,
                    pinned=replica.pinned or self._to_be_pinned(replica),
                    busy=bool(busy),
                    busy_priority=max(busy, default=0),
                    last_used_time=replica.last_used_time,
                    resident_until=replica.loaded_time
                    + max(self.rules.minimum_residency_seconds, replica.load_seconds),
                )
            )
        return found

    def _to_be_pinned(self, replica: Replica) -> bool:
        return replica.state is ReplicaState.LOADING and any(lease.pin for lease in self._waiters(replica.version))

    def _wanted(self) -> list[str]:
        """Versions that have waiters and nothing that serves or loads, the most urgent first."""
        rank: dict[str, tuple[float, float]] = {}
        for lease in self._waiters():
            # Everyone ages at the same rate, so the order of two waiters never changes: no clock needed.
            mine = (lease.arrival - lease.priority * self.rules.policy.aging_seconds_per_point, lease.arrival)
            rank[lease.version] = min(mine, rank.get(lease.version, (INFINITE, INFINITE)))
        absent = [version for version in rank if not self._of(version, _IN_MEMORY)]
        return sorted(absent, key=lambda version: (rank[version], version))

    def _waiters(self, version: str | None = None) -> list[_Lease]:
        return [
            lease
            for lease in self._leases.values()
            if not lease.replica and (version is None or lease.version == version)
        ]

    def _held(self, uid: str) -> list[_Lease]:
        return [lease for lease in self._leases.values() if lease.replica == uid]

    def _of(self, version: str, states: Iterable[ReplicaState]) -> list[Replica]:
        states = set(states)
        return [r for r in self._replicas.values() if r.version == version and r.state in states]

    def _serving(self, version: str) -> Replica | None:
        """The replica with the fewest leases that takes new ones."""
        there = self._of(version, {ReplicaState.LOADED})
        return min(there, key=lambda replica: (len(self._held(replica.uid)), replica.uid), default=None)

    def _goes(self, replica: Replica) -> bool:
        """Its memory is on its way back."""
        return replica.state in (ReplicaState.DRAINING, ReplicaState.FAILED)

    def _idle_counts(self) -> bool:
        return self.rules.idle_ttl_seconds > 0 or bool(self.ledger.overdraft)

    def _estimate(self, version: str) -> float | None:
        return self._known[version].load_seconds


_IN_MEMORY = frozenset({ReplicaState.LOADING, ReplicaState.LOADED, ReplicaState.UNHEALTHY})
_COUNTED = _IN_MEMORY | {ReplicaState.UNLOADED}


def _again(error: ModelMoraError, seconds: float) -> ModelMoraError:
    """The error for one more waiter. When to try again is said where waiting can help: files that no engine reads stay
    as they are."""
    return error.copy(retry_after_seconds=seconds if isinstance(error, ResourceExhausted | Unavailable) else None)


def _never_fits(version: str, outcome: Impossible) -> NeverFits:
    return NeverFits(
        f"{version} needs {outcome.need_bytes} bytes on {outcome.device}; the budget is {outcome.budget_bytes}, of "
        f"which {outcome.pinned_bytes} are pinned and {outcome.evictable_bytes} could be freed at most",
        model_version=version,
        device=outcome.device,
        need_bytes=outcome.need_bytes,
        budget_bytes=outcome.budget_bytes,
        evictable_bytes=outcome.evictable_bytes,
        pinned_bytes=outcome.pinned_bytes,
    )
