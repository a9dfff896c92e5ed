"""Who gets memory when: the pure heart of lifecycle.

Three roles. The **Scheduler** decides; it is told events (a holder wants, a worker has loaded, a process is gone) with
`now`, changes its state at once and names what is to be done. **eviction.plan** answers one question: who has to go for
this need. **Effects** are what can be done; they run outside, take their time, and come back as events.

Every event ends in `_step`, which repeats until nothing changes:

    1. expire    waiters past their deadline are refused, holders past their grace are cut off, sick workers replaced
    2. forget    what nobody waits for any more: loads are cancelled, victims that are not yet stopped are revived
    3. grant     waiters of a LOADED replica get it: a loaded model is never behind one that loads
    4. place     versions that are short of replicas, by aged priority, then arrival:
                 start if it fits now; else claim a whole victim set, and with it fork servers that then have no worker,
                 where models alone cannot make the room; else wait, and let the rest of memory be used
    5. relieve   workers took more than was predicted, or were idle too long: unused fork servers go, then idle ones
    6. wind down draining replicas: idle leases are taken, busy ones have been asked to yield, then the process ends,
                 and so does a fork server that is to go, once its last worker is reaped

A version is short of replicas for one of three reasons, and has the rights that go with it (`_Shortage`):

    asked        callers wait and nothing of it is in memory. Full rights, at their priority.
    kept         it is pinned, has a minimum, or is to be preloaded and was not LOADED yet. The same at LOW, ageing from
                 when it became short.
    scaled       requests wait although it is in memory (scaling.py). Free memory, or that of what was idle as long as
                 would make a further replica go itself; never waits.

Three things look simpler than they are.

*Promises.* A victim's bytes are free only when its process is reaped, and several loads may wait for several victims at
once. A load with a plan is promised its need; it starts as soon as its need is free, whoever's victims came home first.
This is safe because claims keep `free + coming >= promised`, and a start takes the same amount from both sides. Should
reality break it (a worker grew meanwhile), the latest promises are withdrawn and planned again. A load that has its
memory but no place among the loads of its device is promised too, so that nobody takes the memory meanwhile.

*Revival.* A victim whose load is no longer wanted goes back to LOADED, unless its process was told to end. The lesson
is Ollama's: a victim revived while a load still counted on its memory left that load waiting for ever. Here a claim
names its load, a claimed replica cannot be revived (`Replica.to`), and a withdrawn load gives up its claims in the same
step.

*Quiet wants.* A caller who would not wait (`if_loaded`) wants a load that nobody hears of. It is a want like any other,
in the same order, with nobody to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

from modelmora.errors import (
    DeadlineExceeded,
    LoadFailed,
    MemoryBusy,
    ModelLoading,
    ModelMoraError,
    NeverFits,
    NodeCordoned,
    NonsenseFootprint,
    OutOfMemory,
    ReplicaNotFound,
    ResourceExhausted,
    ShuttingDown,
    Unavailable,
    VersionInUse,
)

from modelmora_lifecycle.domain import (
    HOST,
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
from modelmora_lifecycle.eviction import (
    Candidate,
    Decision,
    Impossible,
    Need,
    Plan,
    Policy,
    Trigger,
    Wait,
    pinned_bytes,
    plan,
    relief,
    verdicts,
)
from modelmora_lifecycle.known import Known, KnownVersions
from modelmora_lifecycle.leases import ENDLESS, LAST, Lease, Leases
from modelmora_lifecycle.ledger import Bounds, Ledger, Vector, covers, largest, least, minus, plus, positive
from modelmora_lifecycle.placement import Notes, Placement, PlacementOutcome
from modelmora_lifecycle.prediction import OVERDUE_SECONDS, Measured, Pace, Prediction, nonsense, sum_of_seconds
from modelmora_lifecycle.scaling import NO_PRESSURE, Report, Scaling, one_more, threads
from modelmora_lifecycle.servers import PREFIX, ForkServers

LOW_PRIORITY = 10
RETRY_SECONDS = 0.1
"""Nobody is told to ask again sooner."""
UNKNOWN_SECONDS = 1.0
"""When to ask again where nobody knows how long it takes."""
RECKON_SECONDS = 0.25
"""How long an overdue load still takes is not reckoned more often than this, unless something happens."""
_NOTHING: Vector = {}


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
    load_concurrency: int = 4
    """Loads at a time on one device."""
    overdraft_grace_seconds: float = 5.0
    """So long the memory may be overdrawn before those at work are asked to yield."""
    regrant_factor: float = 1.25
    """A load that outgrew what it was given is given so many times what it had taken, the next time."""
    runaway_factor: float = 1.5
    """Who takes so many times what it declared or took before is stopped when memory is overdrawn, before others go."""
    outdated_grace_seconds: float = 60.0
    """So long a replica with an engine profile of before may stay at work; then it is asked to yield."""
    later_seconds: float = 120.0
    """So long a load that nobody waits for is wanted."""
    cpu_cores: int = 0
    """That we may use; 0: unknown."""
    cpu_limited: bool = False
    """The machine has more."""
    families: Mapping[str, str] = field(default_factory=dict)
    """Engine to the family of its fork server; who is not named is spawned."""
    policy: Policy = field(default_factory=Policy)
    prediction: Prediction = field(default_factory=Prediction)
    scaling: Scaling = field(default_factory=Scaling)


class Effects(Protocol):
    """What can be done. None of these waits, fails or calls back at once; results come as events."""

    def start(self, replica: Replica, facts: VersionFacts, need: Vector) -> None:
        """Launch and load, with the `cpu_threads` that these facts say. Ends in `loaded` or `load_failed`; `exited`
        comes in any case, once, when it is reaped."""

    def stop(self, replica: Replica, grace_seconds: float) -> None:
        """Drain, SIGTERM after the grace, SIGKILL: ends in `exited`. Also during a load, which it cancels."""

    def granted(self, lease: str, replica: Replica) -> None: ...

    def loading(self, lease: str, estimate_seconds: float | None, reason: str) -> None: ...

    def yielding(self, lease: str, by: float, reason: str) -> None: ...

    def revoked(self, lease: str, reason: str, crashed: bool) -> None:
        """The lease is over; whoever held it can no longer reach the worker. `crashed`: by what it ran, maybe."""

    def refused(self, lease: str, error: ModelMoraError) -> None: ...

    def invite(self, lease: str, replica: Replica) -> None:
        """Another replica of the version is LOADED: the holder of `lease` may open one more. Told once a holder."""

    def changed(self, replica: Replica, previous: ReplicaState) -> None: ...

    def decided(self, decision: Decision) -> None: ...

    def end_server(self, owner: str) -> None:
        """Ends a fork server that no worker in memory came from: ends in `charge_shared` with nothing."""


class _Shortage(NamedTuple):
    """Sorts as it is served: further replicas last."""

    further: bool
    rank: tuple[float, float]
    version: str
    kind: Literal["asked", "kept", "scaled"]


@dataclass(slots=True)
class _Going:
    """A replica on its way out: since when, whether it was at work then, and since when its process ends."""

    since: float
    busy: bool
    end_time: float | None = None


class Scheduler:
    """State and decisions of one node. Not thread-safe, never blocks; `now` is monotonic and never goes back."""

    def __init__(self, ledger: Ledger, rules: Rules, effects: Effects, new_uid: Callable[[], str]) -> None:
        self.ledger = ledger
        self.rules = rules
        self.next_wake: float | None = None
        """When `tick` has to be called if no event comes before."""
        self.tells = True
        """Whether those who wait are to hear how long they will."""
        self._effects = effects
        self._new_uid = new_uid
        self._replicas: dict[str, Replica] = {}
        self._versions: dict[str, dict[str, None]] = {}
        """Uids of replicas by version, oldest first."""
        self._leases = Leases()
        self._known = KnownVersions()
        self._residencies: dict[str, Residency] = {}
        self._preloads: set[str] = set()
        """Of these, versions that are to be preloaded and have not been LOADED since."""
        self._promised: dict[str, Vector] = {}
        """Needs of the replicas that have a plan, by uid, in the order of their planning."""
        self._leaving: set[str] = set()
        """Draining on their own account: unloaded by name, idle too long, or in the way of an overdraft."""
        self._ending: set[str] = set()
        """Their process was told to end; nothing but `exited` follows."""
        self._going: dict[str, _Going] = {}
        self._outdated: dict[str, float] = {}
        """Loaded with a profile that is no longer that of their version, and since when."""
        self._sick_since: dict[str, float] = {}
        self._invited: set[tuple[str, str]] = set()
        """Holder and replica."""
        self._decided: dict[str, object] = {}
        self._waiting_on: set[str] = set()
        """Versions that need main memory and were found to have to wait for it, within the bounds of `_waits_within`;
        each has a replica that is UNLOADED and has no plan."""
        self._waits_within: object = None
        self._told: dict[str, tuple[float | None, str]] = {}
        """By version: when its waiters were told that it will be ready, and why it is not."""
        self._untold: list[Lease] = []
        self._servers = ForkServers()
        self._clock = 0.0
        """The ageing clock of gdsf: the highest score ever evicted."""
        self._overdrawn_since: float | None = None
        self._squeeze = self._overdraft_trigger = Trigger.OVERDRAFT
        """What has made memory shorter last, and what has caused the overdraft that there is."""
        self._yield_pace = Pace()
        self._stop_pace = Pace()
        self._cordon: str | None = None
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

    def residency(self, version: str) -> Residency:
        """As it was set; the defaults when nobody has said anything."""
        return self._residencies.get(version, _DEFAULTS)

    def measurement(self, version: str) -> Measured | None:
        """What the version took in its present setup, or the fork server of that owner; None before the first load. To
        be stored, and given back with `remember`."""
        if version.startswith(PREFIX):
            return self._servers.measurement(version)
        known = self._known.get(version)
        return known.measured if known else None

    @property
    def cordoned(self) -> str | None:
        """Why the node is cordoned; None when it is not."""
        return self._cordon

    def leases(self, uid: str) -> tuple[int, int]:
        """How many leases a replica has, and how many of them are busy."""
        return self._leases.count_held(uid), self._leases.count_busy(uid)

    def unstable(self, now: float) -> dict[str, tuple[int, str]]:
        """Versions that keep failing, with how often in a row and why; not those that nobody tries any more."""
        return {
            name: (known.failures, known.error.message if known.error is not None else "its worker keeps crashing")
            for name, known in self._known
            if known.failures >= 3 and now < known.retry_at + self.rules.backoff_limit_seconds
        }

    def unkept(self) -> dict[str, str]:
        """Versions that have fewer replicas than are kept, with why."""
        return {
            name: self._known[name].note or "it is loading"
            for name in self._residencies
            if name in self._known and len(self._of(name, (ReplicaState.LOADED,))) < self._kept(name)
        }

    def ready_in(self, version: str, now: float) -> float | None:
        """Best guess of the seconds until a version is LOADED, as things stand: 0 when it is, None while unknown."""
        if self._of(version, (ReplicaState.LOADED,)):
            return 0.0
        known = self._known.get(version)
        if known is None:
            return None
        load = self._known.load_seconds(known)
        server, server_seconds = self._server_ready_in(known, now)
        since = self._loading_since(version, server)
        if since is not None and load is not None:
            left = server_seconds + load if server_seconds else Pace(load).left(since, now, OVERDUE_SECONDS) or 0.0
            return max(0.05, left)
        if since is not None:
            return None
        load = sum_of_seconds((server_seconds, load))
        ahead = max(0.0, known.retry_at - now)
        promised = next((r for r in self._of(version, (ReplicaState.UNLOADED,)) if r.uid in self._promised), None)
        if promised is not None:
            going = [
                self._gone_in(r.uid, now)
                for r in self._replicas.values()
                if self._goes(r)
                and (r.claimed_by == promised.uid or not covers(self.ledger.free, self._promised[promised.uid]))
            ]
            wait = None if None in going else max((seconds for seconds in going if seconds is not None), default=0.0)
            return sum_of_seconds((max(ahead, wait) if wait is not None else None, load))
        if self._of(version, (ReplicaState.UNLOADED,)):
            if known.wait_until is None:
                return None
            return sum_of_seconds((max(ahead, known.wait_until - now, 0.0), self._stop_pace.seconds or 0.0, load))
        return sum_of_seconds((ahead, load))

    @property
    def overdrawn(self) -> dict[str, int]:
        """Bytes by device that models have above the budget, and that are not on their way back."""
        return positive(minus(self.ledger.overdraft, self._coming()))

    def explain(self, facts: VersionFacts, priority: int, now: float) -> Placement:
        """What would happen if `facts` were wanted now with `priority`, changing nothing. It is asked for in a copy of
        this scheduler whose effects only take notes, so that no second set of rules can say something else."""
        twin, notes = self._imagine()
        twin._decided.pop(facts.name, None)
        lease = "explained"
        need = twin._need(twin._known.see(facts, twin._in_use_versions), self.ledger.free)
        twin.want(lease, facts, priority=priority, deadline=ENDLESS, now=now)
        placement = twin._placement(facts, lease, notes, now, need, self, priority)
        reason = placement.reason
        if placement.outcome is PlacementOutcome.FITS and self._of(facts.name, (ReplicaState.LOADING,)):
            reason = "it is being loaded"
            if positive(placement.need).keys() & self.overdrawn.keys():
                reason += "; memory is overdrawn, and it may have to go soon after"
        elif placement.outcome is PlacementOutcome.FITS_AFTER_EVICTION:
            begun = any(replica.uid in self._promised for replica in self._of(facts.name, (ReplicaState.UNLOADED,)))
            reason += ", and that is on its way" if begun else ""
        fits = placement.outcome in (PlacementOutcome.FITS, PlacementOutcome.FITS_AFTER_EVICTION)
        trouble = twin._known[facts.name].trouble(now) if fits else ""
        return replace(placement, reason=f"{reason}; {trouble}" if trouble else reason)

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
        holder: str = "",
        if_loaded: bool = False,
        load_nothing: bool = False,
    ) -> str:
        """A caller wants a version until `deadline`. The answer is the uid of the replica it waits for or got; empty
        when it was refused.

        `visit`: only to have it loaded. `holder`: leases of one holder go to different replicas; one that has every
        replica already waits for a further one. `if_loaded`: ModelLoading instead of waiting; the version is loaded all
        the same, for who comes later, but with `load_nothing` all is left as it is."""
        if lease in self._leases:
            raise ValueError(f"lease {lease} exists")
        known = self._see(facts)
        if self._closing:
            self._effects.refused(lease, ShuttingDown())
            return ""
        if self._cordon is not None:
            self._effects.refused(lease, self._cordoned_error())
            return ""
        if known.error is not None and now < known.retry_at and not self._of(facts.name, _IN_MEMORY):
            self._effects.refused(lease, _again(known.error, known.retry_at - now))
            return ""
        if deadline <= now:
            self._effects.refused(lease, DeadlineExceeded("the deadline had passed before the lease was asked for"))
            return ""
        asked = Lease(lease, facts.name, priority, deadline, now, pin, visit, holder)
        if if_loaded and self._serving(asked) is None:
            heir, refusal = self, None
            if not load_nothing or not self._leases.is_wanted(facts.name):  # else its time to ready is known already
                heir = self._imagine()[0] if load_nothing else self
                heir._known[facts.name].dismissed = False
                later = heir._want_later(facts.name, priority, now + self.rules.later_seconds, now)
                heir._step(now)
                refusal = later.refusal
            if load_nothing or self._serving(asked) is None:
                seconds = _retry_after(heir.ready_in(facts.name, now))
                trouble = known.trouble(now)
                words = f"the model is not in memory: {trouble}; retry after the delay" if trouble else None
                loading = ModelLoading(words, retry_after_seconds=seconds, model_version=facts.name)
                self._effects.refused(lease, refusal or loading)
                return ""
        known.dismissed = False
        joins = self._only_joins(asked)
        self._wait(asked)
        if joins:
            self._untold.remove(asked)
            if self.tells:
                self._tell_one(asked, now)
            if deadline < ENDLESS:
                self.next_wake = min(deadline, ENDLESS if self.next_wake is None else self.next_wake)
        else:
            self._step(now)
        return next((r.uid for r in self._of(facts.name, _COUNTED)), "")

    def _only_joins(self, lease: Lease) -> bool:
        """Whether it only makes a queue longer: others wait for the same version, one of them as urgent and before it,
        and they have been told how things are. Then it changes nothing for anybody."""
        return (
            (lease.version in self._told or not self.tells)
            and not lease.pin
            and not self._untold
            and any(other.priority >= lease.priority for other in self._leases.foremost(lease.version))
            and not self._of(lease.version, (ReplicaState.LOADED,))
        )

    def urge(self, lease: str, priority: int, deadline: float, now: float) -> None:
        """What waits behind a lease is so urgent by now, more or less than before, and of use until `deadline`. Nothing
        happens when it does not wait any more, or is to keep its place."""
        waiting = self._leases.get(lease)
        if waiting is None or waiting.replica:
            return
        if deadline > waiting.deadline:
            self._leases.expire_at(waiting, deadline)
        eased = priority < waiting.priority
        if self._leases.urge(waiting, priority, now, self.rules.policy.aging_seconds_per_point):
            if eased:  # what was planned at its old priority, and has not begun to load, is planned again
                for replica in self._of(waiting.version, (ReplicaState.UNLOADED,)):
                    self._remove(replica.uid)
                    self._give_up_claims(replica.uid, now)
            self._step(now)

    def in_use(
        self,
        lease: str,
        in_flight: int,
        waiting_entries: int,
        oldest_wait_seconds: float,
        now: float,
        *,
        priority: int = 0,
    ) -> None:
        """A holder has so many requests in flight, the most urgent of this priority (0: that of its lease), and so many
        waiting beyond them, the oldest for so long. Nothing happens when the lease is over."""
        held = self._leases.get(lease)
        if held is None or not held.replica:
            return
        was_busy, before = held.in_flight > 0, self._leases.busy_priority(held.replica)
        self._leases.work(held, max(0, in_flight), priority)
        after = self._leases.busy_priority(held.replica)
        held.report = Report(max(0, waiting_entries), oldest_wait_seconds, now)
        if waiting_entries > 0 and any(holder == held.holder for holder, _ in self._invited):
            # An invitation is lost with the lease that it was told on, and a further lease without work ends.
            self._invited = {(holder, replica) for holder, replica in self._invited if holder != held.holder}
            self._invite()
        scales = self._scales(held.version) and (
            waiting_entries > 0 or self._known[held.version].pressure != NO_PRESSURE
        )
        if was_busy == (held.in_flight > 0) and before <= after and not scales:
            return
        self._touch(held.replica, now, used=not was_busy and held.in_flight > 0)
        # The most frequent event of all. Who begins to work makes nobody's way free, nor does who ends while others of
        # its replica are at work and as urgent; else nothing can follow unless someone waits for memory or this replica
        # is to go.
        state = self._replicas[held.replica].state
        as_busy = after > 0 and before <= after
        if as_busy and not scales and state is ReplicaState.LOADED:
            return
        if scales or state is not ReplicaState.LOADED or self._leases.wanted() or self._promised or self._time_counts():
            self._step(now)

    def release(self, lease: str, now: float) -> None:
        """A holder or waiter has gone. Nothing happens when the lease is over."""
        gone = self._leases.get(lease)
        if gone is None:
            return
        priority = self._leases.busy_priority(gone.replica)
        was_busy = gone.in_flight > 0
        self._drop(gone)
        if gone.replica:
            if was_busy:  # an idle lease is kept for a while: its end is no use
                self._touch(gone.replica, now)
            elif gone.holder and self._has_another(gone):  # it is not invited at once to take it again
                self._invited.add((gone.holder, gone.replica))
            # As above; and a holder that waits for one more lease may get this one.
            if (
                self._replicas[gone.replica].state is ReplicaState.LOADED
                and 0 < priority <= self._leases.busy_priority(gone.replica)
                and not self._leases.is_wanted(gone.version)
            ):
                return
        self._step(now)

    def _has_another(self, gone: Lease) -> bool:
        """Whether the holder of a lease that is over has one of another replica."""
        others = (lease for r in self._of(gone.version, _IN_MEMORY) for lease in self._leases.held(r.uid))
        return any(lease.holder == gone.holder for lease in others)

    def unload(self, version: str, *, force: bool, now: float) -> list[str]:
        """Drains every replica of a version; the answer is their uids. What keeps it in memory (a pin, a minimum) rests
        until it is wanted or its residency is set again. ReplicaNotFound; VersionInUse when it is busy, pinned or
        waited for and `force` is false."""
        there = [r for r in self._of(version, tuple(ReplicaState)) if r.state is not ReplicaState.FAILED]
        if not there:
            raise ReplicaNotFound(f"{version} is not in memory", model_version=version)
        waiters = self._leases.waiters(version)
        busy = sum(self.leases(r.uid)[1] for r in there)
        if not force and (busy or waiters or any(r.pinned for r in there)):
            raise VersionInUse(
                f"{version} is {'busy' if busy or waiters else 'pinned'}; use force",
                model_version=version,
                busy_leases=busy,
                waiters=len(waiters),
            )
        self._known[version].dismissed = True
        for replica in there:
            self._send_away(replica, "unloaded by name", now, self.rules.drain_grace_seconds)
        for lease in waiters:
            error = LoadFailed(f"{version} was unloaded by name", retry_after_seconds=1.0, model_version=version)
            self._refuse(lease, error)
        self._step(now)
        return [replica.uid for replica in there]

    def close(self, now: float, grace_seconds: float) -> None:
        """The node stops: waiters are refused, holders cut off, every process ended."""
        self._closing = True
        for lease in self._leases:
            if lease.replica:
                self._revoke(lease, "the node stops")
            else:
                self._refuse(lease, ShuttingDown())
        self._step(now)
        for replica in self.replicas():
            if replica.state in (ReplicaState.LOADED, ReplicaState.UNHEALTHY):
                replica = self._drain(replica, "the node stops", now, grace=0.0)
            if replica.state is ReplicaState.DRAINING:
                self._end(replica, grace_seconds, now)
            elif replica.state is ReplicaState.LOADING:
                self._fail(replica, "cancelled: the node stops", now)
        self._step(now)

    # Events from operators.

    def set_residency(
        self, version: str, residency: Residency, facts: VersionFacts | None, now: float, *, repin: bool = False
    ) -> None:
        """How a version is kept in memory from now on. Without `facts` (the registry is away) it is kept once somebody
        has wanted it, or this is told again with them. `repin`: its pin was said anew, and takes the place of one that
        came with a load."""
        before = self.residency(version)
        if residency == Residency():
            self._residencies.pop(version, None)
        else:
            self._residencies[version] = residency
        if not residency.preload:
            self._preloads.discard(version)
        elif not before.preload:
            self._preload(version)
        known = self._see(facts) if facts is not None else self._known.get(version)
        if known is not None:
            known.dismissed = False
            known.scale = min(known.scale, residency.max_replicas)
            if repin or before.pinned != residency.pinned:
                self._repin(version, residency.pinned, now)
        self._step(now)

    def renew(self, facts: VersionFacts, now: float) -> None:
        """A version as the registry has it now. Replicas that were loaded with another engine profile than its present
        one go as soon as they are idle, and after a grace also at work: they are asked to yield, as in a swap. The next
        load has the new profile. Nothing happens for a version unknown here."""
        known = self._known.get(facts.name)
        if known is None:
            return
        self._see(facts)
        for replica in self._of(facts.name, _IN_MEMORY):
            if _other_profile(replica.profile, facts.profile):
                self._outdated.setdefault(replica.uid, now)
            else:
                self._outdated.pop(replica.uid, None)
        self._step(now)

    def configure(self, rules: Rules, bounds: Bounds | Vector, now: float) -> None:
        """Other rules, and other bounds of memory (`ledger.bounds`; a bare vector is a ceiling). Who is beyond a
        smaller one goes as soon as it is idle; a load that can never fit it ends at once."""
        self.rules = rules
        self.ledger = self.ledger.bounded(bounds if isinstance(bounds, Bounds) else Bounds(ceiling=bounds))
        self._squeeze = Trigger.BUDGET
        self._give_back(self.ledger.overdraft)
        for replica in self.replicas():
            if replica.state is ReplicaState.LOADING:
                self._end_too_large(replica, now)
        self._step(now)

    def _end_too_large(self, replica: Replica, now: float) -> None:
        """A load that no eviction can make room for any more would only be thrown away once it is done. That it never
        fits its callers hear when it is placed again. The fork server that it comes from is not counted: where that
        alone makes it too large, it goes on."""
        charge = self.ledger.charge_of(replica.uid)
        short = {device: over for device, over in self.overdrawn.items() if device in charge}
        if not short:
            return
        known = self._known[replica.version]
        fixed = self._fixed(self._server(known)[0])
        need = Need(
            self._need(known, {}), {}, minus(self.ledger.ceiling, fixed), minus(self.ledger.budget, fixed), ENDLESS
        )
        others = [c for c in self._candidates(set()) if c.uid != replica.uid]
        if isinstance(plan(need, others, self.rules.policy, now), Impossible):
            reason = f"cancelled: {_SQUEEZES[Trigger.BUDGET]}, and never has room for it"
            self._tell_why(Trigger.BUDGET, [replica.uid], reason, now, short)
            self._fail(replica, reason, now)

    def cordon(self, reason: str, now: float) -> None:
        """Empties the node: nothing is loaded, idle replicas go, busy ones yield within the grace of holders and go.
        Wants are refused with NodeCordoned until `uncordon`. Who yields already, to another version, is told once more:
        what waits behind its work would hope in vain."""
        anew, self._cordon = self._cordon is None, reason
        for lease in self._leases:
            if not lease.replica:
                self._refuse(lease, self._cordoned_error())
        told = f"the node is cordoned: {reason}" if reason else "the node is cordoned"
        going = [r.uid for r in self._replicas.values() if r.state in _IN_MEMORY]
        if going:
            self._tell_why(Trigger.DRAIN, going, told, now)
        for replica in self.replicas():
            yields = [lease.uid for lease in self._leases.held(replica.uid) if lease.grace_until is not None]
            for uid in yields if anew else ():
                self._effects.yielding(uid, now, told)
            self._send_away(replica, told, now)
        self._step(now)

    def uncordon(self, now: float) -> None:
        """Takes the cordon back: what is pinned, preloaded or kept at a minimum loads again."""
        if self._cordon is None:
            return
        self._cordon = None
        for version, residency in self._residencies.items():
            if version in self._known:
                self._known[version].dismissed = False
                if residency.preload:
                    self._preload(version)
        self._step(now)

    # Events from workers.

    def launched(
        self, uid: str, pid: int, now: float, start_mode: StartMode | None = None, refused: bool = False
    ) -> None:
        """`refused`: the fork server of its family runs and forks nothing."""
        replica = self._replicas.get(uid)
        if replica is not None:
            self._replicas[uid] = replica = replica.changed(now, pid=pid, start_mode=start_mode)
            if start_mode is not None and (family := self.rules.families.get(replica.engine)):
                self._servers.launched(f"{PREFIX}{family}", start_mode, refused)
            if start_mode is StartMode.SPAWNED and not refused and (libraries := self._forget_server(replica)):
                # Its server died: what was reserved for that is for the libraries that it has itself.
                self.ledger = self.ledger.settle(uid, plus(self.ledger.charge_of(uid), libraries))
                predicted, granted = plus(replica.predicted, libraries), plus(replica.granted, libraries)
                self._replicas[uid] = replica.changed(now, predicted=predicted, granted=granted)

    def loaded(
        self,
        uid: str,
        footprint: Footprint,
        now: float,
        profile: EngineProfile | None = None,
        limits: EngineLimits | None = None,
    ) -> None:
        """A worker is ready; its measured bytes replace the prediction. Figures that cannot be fail the load:
        NonsenseFootprint."""
        replica = self._replicas.get(uid)
        if replica is None or replica.state is not ReplicaState.LOADING:
            return  # cancelled meanwhile
        known = self._known[replica.version]
        wrong = nonsense(footprint.memory, self.ledger.exists)
        if wrong or not footprint.load_seconds >= 0:
            told = wrong or f"{footprint.load_seconds} s to load"
            self.load_failed(uid, NonsenseFootprint(f"the engine tells of {told}", model_version=replica.version), now)
            return
        limits = limits or EngineLimits()
        taken = known.measuring().after_load(footprint.memory, footprint.load_seconds, limits, replica.start_mode)
        if not self._stray(replica):
            known.measure(taken)
        self._known.took(replica.engine, footprint.load_seconds)
        known.error, known.note, known.outgrown = None, "", {}
        expected = self.rules.prediction.after_load(known.facts, taken)
        self.ledger = self.ledger.settle(uid, largest(footprint.memory, expected))
        for owner, memory in known.shared.items():
            self.ledger = self.ledger.share(owner, memory, {uid, *self.ledger.users.get(owner, ())})
        if replica.start_mode is StartMode.SPAWNED:
            self._forget_server(replica)
        self._set(
            replica.to(
                ReplicaState.LOADED,
                "loaded",
                now,
                profile=profile or known.facts.profile,
                limits=limits,
                footprint=dict(footprint.memory),
                peak=dict(footprint.memory),
                health=Health(HealthState.HEALTHY, "", now),
                loaded_time=now,
                load_seconds=footprint.load_seconds,
                last_used_time=now,
                clock=self._clock,
            )
        )
        self._step(now)

    def load_failed(self, uid: str, error: ModelMoraError, now: float) -> None:
        """A load ended without a model; its process is ending. Everyone who waits for it is told why, unless another
        replica of the version is there or coming."""
        replica = self._replicas.get(uid)
        if replica is None or replica.state is not ReplicaState.LOADING:
            return
        known = self._known[replica.version]
        known.failures += 1
        known.retry_at = now + min(self.rules.backoff_limit_seconds, 2.0 ** (known.failures - 1))
        known.error, known.crashed = error, False
        known.note = f"its load failed: {error.message}"
        known.scale = 0
        if not _may_pass(error):
            known.dismissed = True
        self._fail(replica, f"load failed: {error.message}", now)
        if not self._of(replica.version, _IN_MEMORY):
            for lease in self._leases.waiters(replica.version):
                self._refuse(lease, _again(error, known.retry_at - now))
        self._step(now)

    def exited(self, uid: str, reason: str, now: float, out_of_memory: bool = False) -> None:
        """A process is gone and reaped: its memory is back. Unasked for, this is a crash; `out_of_memory`: for lack of
        memory."""
        replica = self._replicas.get(uid)
        if replica is None:
            return
        asked = uid in self._ending
        self._ending.add(uid)  # there is nothing left to stop
        if replica.state is ReplicaState.LOADING:
            error = LoadFailed(f"the worker ended while loading: {reason}", model_version=replica.version)
            self.load_failed(uid, error, now)
        elif replica.state in (ReplicaState.LOADED, ReplicaState.UNHEALTHY) or (
            replica.state is ReplicaState.DRAINING and not asked
        ):
            self._crashed(replica.changed(now, out_of_memory=out_of_memory), f"crashed: {reason}", now)
        elif (going := self._going.get(uid)) is not None and going.end_time is not None:
            self._stop_pace = self._stop_pace.after(now - going.end_time)
        replica = self._replicas[uid]
        self.ledger = self.ledger.release(uid)
        if replica.state in (ReplicaState.FAILED, ReplicaState.DRAINING):
            self._set(replica.to(ReplicaState.UNLOADED, replica.reason, now, pid=0, claimed_by=""))
        self._remove(uid)
        self._step(now)

    def measured(self, uid: str, memory: Vector, now: float, batch_tokens: int = 0) -> None:
        """A worker's private bytes by device, and the tokens of its largest batch so far (0: unknown). The charge
        follows the highest seen, also while it loads. Figures that cannot be are passed over."""
        replica = self._replicas.get(uid)
        if replica is None or uid not in self.ledger.charges or nonsense(memory, self.ledger.exists):
            return
        known = self._known[replica.version]
        if replica.state is ReplicaState.LOADING:
            if not self._stray(replica):
                known.measure(known.measuring().while_loading(memory, replica.start_mode))
            charge = self.ledger.charge_of(uid)
            if not covers(charge, memory):
                self._replicas[uid] = replica.changed(now, peak=largest(replica.peak, memory))
                self.ledger = self.ledger.settle(uid, largest(charge, memory))
                self._squeeze = Trigger.OVERDRAFT
                self._step(now)
            return
        if not replica.loaded_time or (covers(replica.peak, memory) and batch_tokens <= known.measuring().batch_tokens):
            return
        known.measure(known.measuring().in_use(minus(memory, replica.footprint), batch_tokens))
        self._replicas[uid] = replica.changed(now, peak=largest(replica.peak, memory))
        expected = self.rules.prediction.after_load(known.facts, replace(known.measuring(), base=replica.footprint))
        wished = {} if self._goes(replica) else expected
        self.ledger = self.ledger.settle(uid, largest(self.ledger.charge_of(uid), memory, wished))
        self._squeeze = Trigger.OVERDRAFT
        self._step(now)

    def charge_shared(self, owner: str, memory: Vector, now: float, users: Iterable[str] = ()) -> None:
        """What several workers share, bytes by device, charged once to `fork-servers/<family>` or `artifacts/<digest>`.
        `users`: uids of the replicas that share it; with the last of them the charge goes. Without users it stays until
        it is charged nothing, and no eviction is expected to free it."""
        users = list(users)
        before = self.ledger
        if not users and owner.startswith(PREFIX):
            users, memory = self._server_seen(owner, memory)
        self.ledger = self.ledger.share(owner, memory, users)
        for uid in users:
            # What a dead fork server left to its workers goes with them: the next load does not bring it back.
            replica = self._replicas.get(uid)
            if replica is not None and owner.startswith("artifacts/") and not self._stray(replica):
                self._known[replica.version].shared[owner] = positive(memory)
        if self.ledger != before:
            self._squeeze = Trigger.OVERDRAFT
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
            self._squeeze = Trigger.FOREIGN
            self._step(now)

    def server_opened(self, owner: str, seconds: float, now: float) -> None:
        """A fork server takes orders, `seconds` after its start began. May be told again and again while it runs."""
        if self._servers.opened(owner, seconds, now):
            self._step(now)

    def remember(self, measured: Measured) -> None:
        """What was measured before this process started; changes nothing that is known better by now."""
        if measured.version.startswith(PREFIX):
            self._servers.remember(measured)
        else:
            self._known.remember(measured)

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
            self._scale(now)
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
        while (lease := self._leases.next_to_expire()) is not None:
            if lease.deadline > now:
                self._wakes.append(lease.deadline)
                break
            if self._of(lease.version, _IN_MEMORY) or now < self._known[lease.version].retry_at:
                self._refuse(lease, DeadlineExceeded("the model was not loaded before the deadline"))
            else:
                seconds = _retry_after(self.ready_in(lease.version, now))
                note = self._known[lease.version].note or "models in use may not be evicted yet"
                error = MemoryBusy(f"not loaded before the deadline, {note}", model_version=lease.version)
                self._refuse(lease, error.copy(retry_after_seconds=seconds))
        for uid, since in list(self._sick_since.items()):
            replica = self._replicas[uid]
            if replica.state is not ReplicaState.UNHEALTHY:
                self._sick_since.pop(uid)
            elif since + self.rules.unhealthy_grace_seconds <= now:
                self._crashed(replica, f"ended: {replica.reason}", now)
            else:
                self._wakes.append(since + self.rules.unhealthy_grace_seconds)

    def _forget_unwanted(self, now: float) -> None:  # 2
        # Hundreds may wait, each for its only replica: whom somebody waits for is not looked at.
        resting = self._resting()
        waits = set[str]() if resting else self._waiting_on & self._leases.wanted().keys()
        coming = [
            r
            for r in reversed(self._replicas.values())
            if r.state in (ReplicaState.UNLOADED, ReplicaState.LOADING)
            and (r.version not in waits or len(self._versions[r.version]) > 1)
        ]
        # Those without memory go before those that load, the newest first.
        for replica in sorted(coming, key=lambda r: r.state is ReplicaState.LOADING):
            one = len(self._versions[replica.version]) == 1 and self._leases.is_wanted(replica.version)
            if (one and not resting) or len(self._of(replica.version, _COUNTED)) <= self._goal(replica.version):
                continue
            if replica.state is ReplicaState.LOADING:
                self._fail(replica, "cancelled: nobody waits for it", now)
            else:
                self._remove(replica.uid)
            self._give_up_claims(replica.uid, now)

    def _grant(self, now: float) -> None:  # 3
        charged = (self._replicas[uid] for uid in self.ledger.charges if uid in self._replicas)
        loaded = {replica.version for replica in charged if replica.state is ReplicaState.LOADED}
        for version in list(self._leases.wanted()) if loaded else ():
            if version not in loaded:
                continue
            for lease in self._leases.waiters(version):
                replica = self._serving(lease)
                if replica is None:
                    continue
                if lease.visit:
                    self._leases.end(lease)
                else:
                    self._leases.grant(lease, replica.uid)
                self._changes += 1
                pinned = lease.pin and not replica.pinned
                replica = replica.changed(now, last_used_time=now, pinned=replica.pinned or lease.pin)
                self._replicas[replica.uid] = replica
                if pinned:
                    self._effects.changed(replica, replica.state)
                if not lease.quiet:
                    self._effects.granted(lease.uid, replica)
        self._invite()

    def _invite(self) -> None:
        """Holders of a version with several replicas hear of those that they have no lease of: once, and again while
        work waits with them."""
        for version in self._residencies:
            there = self._of(version, (ReplicaState.LOADED,))
            if len(there) < 2:
                continue
            leases = [
                lease for r in self._of(version, _IN_MEMORY) for lease in self._leases.held(r.uid) if lease.holder
            ]
            waiting = {lease.holder for lease in self._leases.waiters(version)}
            for replica in there:
                has_one = {lease.holder for lease in self._leases.held(replica.uid)} | waiting
                for lease in leases:
                    if lease.holder not in has_one and (lease.holder, replica.uid) not in self._invited:
                        self._invited.add((lease.holder, replica.uid))
                        self._effects.invite(lease.uid, replica)

    def _scale(self, now: float) -> None:
        for version in self._residencies:
            known = self._known.get(version)
            if known is None or not self._scales(version):
                continue
            there = self._of(version, _COUNTED)
            if not there:
                known.scale, known.pressure = 0, NO_PRESSURE
                continue
            reports = [lease.report for replica in there for lease in self._leases.held(replica.uid)]
            known.pressure = known.pressure.after(reports, self.rules.scaling, now)
            if (
                all(replica.state is ReplicaState.LOADED and self.leases(replica.uid)[1] for replica in there)
                and len(there) < self.residency(version).max_replicas
                and one_more(known.pressure, known.scale_time, self.rules.scaling, now)
            ):
                known.scale, known.scale_time = len(there) + 1, now
                self._changes += 1

    def _place(self, now: float) -> None:  # 4
        shortages = self._shortages(now)
        servers = self._servers_in_memory()
        self._keep_servers(servers)
        if not shortages and not self._promised:
            return
        # What is free or on its way and promised to nobody.
        room = plus(self.ledger.free, self._coming())
        for uid, promised in list(self._promised.items()):
            room = minus(room, promised)
            lacking = positive({device: -room.get(device, 0) for device in positive(promised)})
            if self._give_back(lacking):
                return
            # Reality broke the promise, or it keeps memory for a version that may not be tried yet: plan again.
            if lacking or now < self._known[self._replicas[uid].version].retry_at:
                self._give_up_claims(uid, now)
                return self._place(now)
        # The same less what those who wait before will get, plus their victims to come: what the others may use. Both
        # bounds hold for a newcomer: victims to come are no memory yet, and what is kept for others is not his.
        rest, kept = dict(room), set[str]()
        # Fork servers: those that are counted on by who comes before, and those whose end he waits for.
        counted_on = {self._server(self._known[self._replicas[uid].version])[0] for uid in self._promised}
        awaited = set[str]()
        candidates: list[Candidate] | None = None
        firm = set[str]()  # devices on which nothing is charged above what was taken
        spoken_for = False
        for short in shortages:
            version = short.version
            known = self._known[version]
            known.wait_until = None
            if now < known.retry_at:
                self._wakes.append(known.retry_at)
                if known.error is None:
                    known.note = known.trouble(now)
                continue
            # Hundreds may wait. When all that could go is spoken for, who has been told to wait waits on.
            if spoken_for and version in self._waiting_on:
                continue
            there = next(iter(self._of(version, (ReplicaState.UNLOADED,))), None)
            if there is not None and there.uid in self._promised:
                need = least(self._promised[there.uid], self._need(known, self._promised[there.uid]))
                if self._may_start(known, need) and self._start(there, need, now):
                    return
                continue
            server = self._server(known)[0]
            available = least(room, minus(rest, self.ledger.charge_of(server)) if server in awaited else rest)
            need = self._need(known, available)
            if covers(available, need):
                room, rest = minus(room, need), minus(rest, need)
                self._waiting_on.discard(version)
                replica = there or self._new(version, now)
                if self._may_start(known, need):
                    if self._start(replica, need, now):
                        return
                else:
                    known.note = "waiting for memory that is being freed, or for other loads"
                    self._promised[replica.uid] = need
                    counted_on.add(server)
                    self._changes += 1
                continue
            missing = positive(minus(need, available))
            if not missing.keys() <= firm and self._give_back(missing):
                return
            firm |= missing.keys()
            if candidates is None:
                candidates = self._candidates(kept)
                charges = {owner: self.ledger.charges[owner] for owner in servers}
                bounds = (self.ledger.ceiling, charges, pinned_bytes(candidates))
                if bounds != self._waits_within:
                    self._waits_within = bounds
                    self._waiting_on.clear()
            spoken_for = (
                rest.get(HOST, 0) <= 0
                and not any(c.evictable and not c.pinned for c in candidates)
                and all(servers[owner] or owner in self._servers.leaving for owner in servers)
            )
            if spoken_for and version in self._waiting_on:
                continue
            self._waiting_on.discard(version)
            stay = {server, *counted_on, *awaited, *self._servers.leaving}
            may_end = {owner: users for owner, users in servers.items() if owner not in stay}
            outcome, ends = self._plan(short, need, available, candidates, may_end, now)
            if isinstance(outcome, Impossible) or (isinstance(outcome, Wait) and short.kind == "scaled"):
                self._hinder(short, there, outcome)
                continue
            replica = there or self._new(version, now)
            counted_on.add(server)
            freed = plus(self._freed_by(outcome.victims), *(self.ledger.charges[owner] for owner in ends))
            change = minus(freed, need)
            if isinstance(outcome, Plan):
                known.note = "waiting for memory that is being freed"
                self._promised[replica.uid] = need
                self._changes += 1
                self._servers.leaving |= dict.fromkeys(ends, False)
                for uid in outcome.victims:
                    self._claim(self._replicas[uid], replica.uid, version, now)
                candidates, spoken_for = None, False
                room, rest = plus(room, change), plus(rest, change)
                continue
            known.note = f"waiting for memory: {outcome.reason}"
            if need.get(HOST, 0) > 0:
                self._waiting_on.add(version)
            if outcome.until is not None:
                self._wakes.append(outcome.until)
                known.wait_until = outcome.until
            # Where all that may go would not do, for others are promised the rest, none of it is of use as things are.
            if outcome.attainable and covers(plus(available, freed), need):
                kept.update(outcome.victims)
                awaited.update(ends)
                candidates = [
                    replace(c, evictable=False, loading=False) if c.uid in outcome.victims else c for c in candidates
                ]
                rest = plus(rest, change)
                spoken_for = spoken_for and rest.get(HOST, 0) <= 0

    def _hinder(self, short: _Shortage, there: Replica | None, outcome: Wait | Impossible) -> None:
        """It will not be placed: callers are told, a further replica is not wanted any more, and what is kept waits for
        another day."""
        version, known = short.version, self._known[short.version]
        if isinstance(outcome, Impossible):
            error = _never_fits(version, outcome, bool(self._fixed(self._server(known)[0])))
            known.note = error.message
            if short.kind == "asked":
                for lease in self._leases.waiters(version):
                    self._refuse(lease, error.copy())
        if short.kind == "scaled":
            known.scale = 0
        if there is not None:
            self._remove(there.uid)

    def _relieve(self, now: float) -> None:  # 5
        overdraft = self.ledger.overdraft
        if self._give_back(overdraft):
            return
        if overdraft:
            overdraft = positive(minus(overdraft, self._coming()))
        if not overdraft:
            self._overdrawn_since = None
        else:
            if self._overdrawn_since is None:
                self._overdrawn_since, self._overdraft_trigger = now, self._squeeze
            self._make_good(overdraft, now)
        for uid, since in sorted(self._outdated.items()):
            replica, end = self._replicas[uid], since + self.rules.outdated_grace_seconds
            if replica.state not in (ReplicaState.LOADED, ReplicaState.UNHEALTHY):
                continue
            if self.leases(uid)[1] and now < end:
                self._wakes.append(end)
                continue
            profile = self._known[replica.version].facts.profile
            reason = f"replaced: its profile is {profile.backend}/{profile.precision} now"
            self._tell_why(Trigger.PROFILE, [uid], reason, now)
            self._send_away(replica, reason, now)
        if self._time_counts():
            for replica in self.replicas():
                if replica.state is not ReplicaState.LOADED or replica.pinned or self.leases(replica.uid)[1]:
                    continue
                if replica.uid in self._protected(replica.version):
                    continue
                end, trigger, reason = self._stay_until(replica)
                if end > now:
                    self._wakes.append(end)
                else:
                    self._tell_why(trigger, [replica.uid], reason, now)
                    self._drain(replica, reason, now, grace=0.0)
                    self._leaving.add(replica.uid)

    def _make_good(self, short: Vector, now: float) -> None:
        """An overdraft ends: first goes who takes far more than it said or took before, and not its neighbours; then
        idle ones; then loads that turned out larger, which are planned again; at last, after a grace, those at work."""
        for replica in self.replicas():
            if replica.state in _IN_MEMORY and self._runs_away(replica, short):
                self._stop_runaway(replica, short, now)
                return
        short = self._end_unused_servers(short, now)
        if not short:
            return
        servers = {o: users for o, users in self._servers_in_memory().items() if o not in self._needed_servers()}
        candidates = self._with_servers(self._candidates(set()), servers)
        idle = relief(short, candidates, self.rules.policy, now)
        ends = self._servers_for(positive(minus(short, self._freed_by(idle))), servers, set(idle))
        enough = covers(plus(self._freed_by(idle), *(self.ledger.charges[owner] for owner in ends)), short)
        if not enough:
            for replica in reversed(self.replicas()):
                grown = positive(minus(self.ledger.charge_of(replica.uid), replica.granted))
                if replica.state is ReplicaState.LOADING and any(device in short for device in grown):
                    self._stop_grown(replica, short, candidates, now)
                    return
        assert self._overdrawn_since is not None
        yield_time = self._overdrawn_since + self.rules.overdraft_grace_seconds
        if enough or now < yield_time:
            going: Sequence[str] = idle
            if not enough:
                of_age = (c.resident_until for c in candidates if c.evictable and c.resident_until > now)
                self._wakes.append(min((yield_time, *of_age)))
        else:
            going = relief(short, candidates, self.rules.policy, now, busy=True)
            ends = self._servers_for(positive(minus(short, self._freed_by(going))), servers, set(going))
        self._servers.leaving |= dict.fromkeys(ends, False)
        if going:
            reason = _SQUEEZES[self._overdraft_trigger]
            if ends:
                reason += f"; the fork server of {_families(ends)} goes too"
            self._tell_why(self._overdraft_trigger, going, reason, now, short, candidates)
        for uid in going:
            reason = self._overdrawn(self._replicas[uid], short)
            self._drain(self._replicas[uid], reason, now, grace=self.rules.holder_grace_seconds)
            self._leaving.add(uid)

    def _end_unused_servers(self, short: Vector, now: float) -> dict[str, int]:
        """Fork servers that nobody uses go before any model does. What is short all the same."""
        kept = self._needed_servers()
        unused = {owner: users for owner, users in self._servers_in_memory().items() if not users and owner not in kept}
        ends = self._servers_for(short, unused, set())
        if ends:
            trigger = self._overdraft_trigger
            reason = (
                f"{_SQUEEZES[trigger]}: the fork server of {_families(ends)} ends, from which nothing in memory came"
            )
            freed = plus(*(self.ledger.charges[owner] for owner in ends))
            self._tell_why(trigger, (), reason, now, short, available=freed)
            self._servers.leaving |= dict.fromkeys(ends, False)
            self._changes += 1
            return positive(minus(short, freed))
        return dict(short)

    def _needed_servers(self) -> set[str]:
        """Fork servers that promised loads come from, and those that leave already."""
        promised = (self._known[self._replicas[uid].version] for uid in self._promised)
        return {*self._servers.leaving, *(self._server(known)[0] for known in promised)}

    def _stop_grown(self, replica: Replica, short: Vector, candidates: Sequence[Candidate], now: float) -> None:
        """A load that turned out larger is planned again. Where no eviction can make the room that it needs, its
        callers hear that at once: they would only learn that memory is busy, and it is their model that is too large
        for what there is."""
        version = replica.version
        known = self._known[version]
        room = self._most(known, candidates)
        fits = covers(room, self._need(known, {}))
        if fits:
            # Nobody knows how much more it wants: by what it has had alone it would come back for a little each time.
            more = {device: int(self.rules.regrant_factor * taken) for device, taken in replica.peak.items()}
            known.outgrown = least(more, room)
        reason = "cancelled: it needs more than was predicted and is planned again"
        if not fits:
            said = {"predicted": "it declared nothing", "declared": "it declared less"}.get(replica.need_source)
            figures = ", ".join(
                f"{replica.peak[device]} bytes on {device} so far instead of {replica.granted.get(device, 0)}, and "
                f"evictions can make room for {max(0, room.get(device, 0))}"
                for device in sorted(short)
                if device in replica.peak
            )
            reason = f"stopped while loading: {said or 'it took less before'}, and took {figures}"
        self._tell_why(self._overdraft_trigger, [replica.uid], reason, now, short)
        self._fail(replica, reason, now)
        if not fits and not self._of(version, _IN_MEMORY):
            for lease in self._leases.waiters(version):
                self._refuse(lease, OutOfMemory(reason, model_version=version))

    def _overdrawn(self, replica: Replica, short: Vector) -> str:
        """Why it goes, with what was predicted, measured and allowed, and what can be done about it."""
        charge, trigger = self.ledger.charge_of(replica.uid), self._overdraft_trigger
        figures = ", ".join(
            f"{over} bytes too many on {device} for the budget of {self.ledger.budget.get(device, 0)}; it was "
            f"{replica.need_source or 'predicted'} to take {replica.granted.get(device, 0)}, has had at most "
            f"{replica.peak.get(device, 0)}, and {charge.get(device, 0)} are charged to it"
            for device, over in sorted(short.items())
        )
        grown = any(replica.peak.get(device, 0) > replica.granted.get(device, 0) for device in short)
        remedy = "declare the memory that it takes, or raise the budget" if grown else _REMEDIES[trigger]
        return f"memory is overdrawn, for {_SQUEEZES[trigger]}: {figures}; {remedy}"

    def _stop_runaway(self, replica: Replica, short: Vector, now: float) -> None:
        figures = ", ".join(
            f"{replica.peak[device]} bytes on {device} instead of {replica.granted.get(device, 0)}"
            for device in sorted(short)
            if device in replica.peak
        )
        reason = f"it took {figures}, and memory is overdrawn"
        self._tell_why(Trigger.OVERDRAFT, [replica.uid], reason, now, short)
        if replica.state is ReplicaState.LOADING:
            self.load_failed(replica.uid, LoadFailed(f"stopped: {reason}", model_version=replica.version), now)
        else:
            self._crashed(replica.changed(now, out_of_memory=True), f"stopped: {reason}", now)

    def _wind_down(self, now: float) -> None:  # 6
        for replica in self.replicas():
            if replica.state is not ReplicaState.DRAINING or replica.uid in self._ending:
                continue
            drain_seconds = self.rules.drain_grace_seconds
            for lease in self._leases.held(replica.uid):
                grace_until = lease.grace_until if lease.grace_until is not None else now
                if lease.in_flight == 0:
                    self._revoke(lease, replica.reason)
                elif grace_until <= now:
                    self._revoke(lease, f"{replica.reason}; the holder did not yield in time")
                    drain_seconds = 0.0  # what runs has had its grace, and nobody hears its answer any more
                else:
                    self._wakes.append(grace_until)
            if not self._leases.held(replica.uid):
                self._end(replica, drain_seconds, now)
        for owner, told in self._servers.leaving.items():
            there = (self._replicas[uid] for uid in self.ledger.charges if uid in self._replicas)
            if not told and all(self._came_from(replica) != owner for replica in there):
                self._servers.leaving[owner] = True
                self._changes += 1
                self._effects.end_server(owner)

    def _tell(self, now: float) -> None:
        """Waiters hear why they wait and how long they still will; again only when that has changed."""
        if not self.tells:
            self._untold.clear()
            return
        for version in self._told.keys() - self._leases.wanted().keys():
            del self._told[version]
        fresh, self._untold = self._untold, []
        told_anew = set[str]()
        for version in list(self._leases.wanted()):
            known = self._known[version]
            if self._told.get(version) == (None, known.note) and known.wait_until is None and self._only_waits(version):
                continue  # one of hundreds that wait and know it
            seconds = self.ready_in(version, now)
            moment = None if seconds is None else now + seconds
            loading = self._of(version, (ReplicaState.LOADING,))
            reason = "loading" if loading else known.note
            late = bool(loading) and self._overdue(version, now)
            if loading and seconds is not None:
                # Who was told a moment counts down to it. When it is late, they hear of another before that has come.
                self._wakes.append(now + (max(RECKON_SECONDS, seconds / 4) if late else seconds))
            if self._of(version, (ReplicaState.LOADED,)):
                reason, moment = "its holder has every replica", None
            if version in self._told and _tells_the_same(
                self._told[version], (moment, reason), now, 0.0 if late else 0.5
            ):
                continue
            self._told[version] = (moment, reason)
            told_anew.add(version)
            for lease in self._leases.waiters(version):
                self._tell_one(lease, now)
        for lease in fresh:
            if lease.version not in told_anew and lease.uid in self._leases and not lease.replica:
                self._tell_one(lease, now)

    def _tell_one(self, lease: Lease, now: float) -> None:
        moment, reason = self._told[lease.version]
        if not lease.quiet:
            self._effects.loading(lease.uid, None if moment is None else max(0.0, moment - now), reason)

    # Changes of state.

    def _wait(self, lease: Lease) -> None:
        self._leases.wait(lease)
        self._untold.append(lease)

    def _drop(self, lease: Lease) -> None:
        self._leases.end(lease)
        self._changes += 1

    def _want_later(self, version: str, priority: int, deadline: float, now: float) -> Lease:
        """A want that nobody hears of; one a version, the most urgent and lasting of those asked for."""
        uid = f"quiet/{version}"
        lease = self._leases.get(uid)
        if lease is None:
            lease = Lease(uid, version, priority, deadline, now, visit=True, quiet=True)
            self._wait(lease)
            return lease
        self._leases.urge(lease, max(priority, lease.priority), now, self.rules.policy.aging_seconds_per_point)
        if deadline > lease.deadline:
            self._leases.expire_at(lease, deadline)
        return lease

    def _repin(self, version: str, pinned: bool, now: float) -> None:
        """Also what waits for memory, and what a load is still to pin."""
        for lease in self._leases.waiters(version):
            lease.pin = lease.pin and pinned
        for replica in self._of(version, _COUNTED):
            if replica.pinned != pinned:
                self._replicas[replica.uid] = changed = replica.changed(now, pinned=pinned)
                if replica.state in _IN_MEMORY:
                    self._effects.changed(changed, replica.state)

    def _preload(self, version: str) -> None:
        """Once more it is to be loaded, if it is not."""
        if not self._of(version, (ReplicaState.LOADED,)):
            self._preloads.add(version)

    def _new(self, version: str, now: float) -> Replica:
        facts = self._known[version].facts
        uid = self._new_uid()
        pinned = self.residency(version).pinned and not self._known[version].dismissed
        self._replicas[uid] = Replica(uid, version, facts.engine, now, now, profile=facts.profile, pinned=pinned)
        self._versions.setdefault(version, {})[uid] = None
        return self._replicas[uid]

    def _start(self, replica: Replica, need: Vector, now: float) -> bool:
        """Whether a victim came back that was not needed: who is short of replicas has to be asked again then, or one
        of its version is loaded beside it."""
        known = self._known[replica.version]
        (owner, server), forked = self._server(known), self._forked(known)
        # Who was promised its place when there was a fork server has nothing for a new one.
        least_own = known.need(self.rules.prediction, self.ledger, forked=forked, room={})
        if not covers(need, plus(least_own, server)):
            server = {}
        own = minus(need, server)
        if owner and owner not in self.ledger.charges:
            self._servers.starting(owner, now)
        self.ledger = self.ledger.reserve(replica.uid, own)
        if server:
            self.ledger = self.ledger.share(owner, server, {replica.uid})
        elif owner in self.ledger.users:
            self.ledger = self.ledger.share(owner, self.ledger.charges[owner], {replica.uid, *self.ledger.users[owner]})
        self._promised.pop(replica.uid, None)
        residency = self.residency(replica.version)
        cores, limited = self.rules.cpu_cores, self.rules.cpu_limited
        cpu_threads = threads(cores, residency.max_replicas, known.facts.cpu_threads, limited)
        self._set(
            replica.to(
                ReplicaState.LOADING,
                "loading",
                now,
                start_time=now,
                cpu_threads=cpu_threads,
                predicted=self.rules.prediction.expected(known.facts, known.measured_so(forked), forked),
                need_source=self.rules.prediction.source(known.facts, known.measured_so(forked)),
                granted=own,
            )
        )
        facts = replace(known.facts, cpu_threads=cpu_threads)
        self._effects.start(self._replicas[replica.uid], facts, own)
        return self._give_up_claims(replica.uid, now)

    def _server(self, known: Known) -> tuple[str, dict[str, int]]:
        """The owner of the fork server that its next worker is asked of, empty when its engine has none; and the bytes
        of that server where nobody has started it yet: the launch starts it, also to hear that it forks nothing."""
        family = self.rules.families.get(known.facts.engine, "")
        owner = f"{PREFIX}{family}"
        if not family:
            return "", {}
        if owner in self.ledger.charges and owner not in self._servers.leaving:
            return owner, {}
        return owner, dict(self._servers.memory(owner) or self.rules.prediction.server(known.facts))

    def _forked(self, known: Known) -> bool:
        """Whether its next worker is expected to share the libraries of a fork server."""
        owner, _ = self._server(known)
        return bool(owner) and self._servers.forks(owner)

    def _stray(self, replica: Replica) -> bool:
        """Whether it was spawned because its fork server died: what it takes says nothing of the next load."""
        return replica.start_mode is StartMode.SPAWNED and self._forked(self._known[replica.version])

    def _server_ready_in(self, known: Known, now: float) -> tuple[str, float]:
        """The owner of the fork server that its next worker comes from, and the seconds until that takes orders; one
        that nobody has charged has not been started."""
        owner, _ = self._server(known)
        loading = self._of(known.facts.name, (ReplicaState.LOADING,))
        if not self._forked(known) or any(replica.start_mode is StartMode.SPAWNED for replica in loading):
            return "", 0.0
        default = self.rules.prediction.server_seconds(known.facts)
        if owner not in self.ledger.charges or owner in self._servers.leaving:
            return owner, self._servers.start_seconds(owner, default)
        return owner, self._servers.ready_in(owner, default, now)

    def _need(self, known: Known, available: Vector) -> dict[str, int]:
        """Bytes by device to reserve for one more replica, and for the fork server that it would start. `available`:
        what there is without anybody's going."""
        (_, server), forked = self._server(known), self._forked(known)
        need = known.need(self.rules.prediction, self.ledger, server, forked)
        if covers(available, need):
            return need
        room = self._most(known, self._candidates(set()))
        return known.need(self.rules.prediction, self.ledger, server, forked, room, available)

    def _most(self, known: Known, candidates: Sequence[Candidate]) -> dict[str, int]:
        """The room for a load if all went that may; others' memory stays theirs."""
        servers, own = self._servers_in_memory(), self._server(known)[0]
        servers.pop(own, None)
        return minus(minus(self.ledger.budget, self._fixed(own)), pinned_bytes(self._with_servers(candidates, servers)))

    def _give_back(self, short: Vector) -> bool:
        """For what nobody has yet nobody has to go: of the bytes that are short, those that are charged above what was
        ever taken go first. Whether there were any; then all is looked at anew."""
        before = self.ledger
        for uid in before.charges if short else ():
            replica = self._replicas.get(uid)
            if replica is None or replica.state not in _IN_MEMORY:
                continue
            given = positive(least(self._untaken(replica), short))
            if given:
                self.ledger = self.ledger.settle(uid, minus(before.charges[uid], given))
                short = positive(minus(short, given))
                self._changes += 1
        return self.ledger is not before

    def _untaken(self, replica: Replica) -> dict[str, int]:
        """What is charged to it above what was ever taken."""
        return positive(minus(self.ledger.charge_of(replica.uid), self._taken(replica)))

    def _taken(self, replica: Replica) -> dict[str, int]:
        """What it was declared, or was seen to take: now, or when it was loaded before."""
        known, prediction = self._known[replica.version], self.rules.prediction
        seen = [replica.peak, known.facts.declared, known.measuring().started(replica.start_mode).peak]
        if replica.state is ReplicaState.LOADING:
            forked = self._forked(known)
            usual = prediction.usual(known.facts, known.measured_so(forked), forked)
            seen += [usual, known.outgrown, replica.predicted]
            return plus(largest(*seen), *known.shared.values())
        return largest(*seen)

    def _server_seen(self, owner: str, memory: Vector) -> tuple[list[str], Vector]:
        """Whom to charge how much for a fork server: what was reserved for it stands while the first load from it goes
        on, for it has not imported everything yet; then it stands for itself."""
        loading = [uid for uid in self.ledger.users.get(owner, ()) if self._replicas[uid].state is ReplicaState.LOADING]
        if memory:
            self._servers.took(owner, memory, importing=bool(loading))
        if loading:
            return loading, largest(memory, self.ledger.charges[owner])
        if not memory:
            self._servers.ended(owner)
        return [], memory

    def _forget_server(self, replica: Replica) -> Vector:
        """It was spawned after all. What was reserved for a fork server, and is for nobody else."""
        owner = f"{PREFIX}{self.rules.families.get(replica.engine, '')}"
        users, server = self.ledger.users.get(owner, frozenset()), self.ledger.charge_of(owner)
        if replica.uid not in users:
            return {}
        others = users - {replica.uid}
        self.ledger = self.ledger.share(owner, server if others else {}, others)
        return {} if others else server

    def _claim(self, victim: Replica, by: str, version: str, now: float) -> None:
        policy = self.rules.policy
        if policy.name == "gdsf":  # scores of the others are times, beside which its own would be nothing
            self._clock = max(self._clock, policy.score(self._candidate(victim, set())))
        self._replicas[victim.uid] = victim.changed(now, claimed_by=by)
        self._drain(self._replicas[victim.uid], f"makes room for {version}", now, self.rules.holder_grace_seconds)

    def _give_up_claims(self, by: str, now: float) -> bool:
        """Whether a victim came back."""
        revived = False
        self._promised.pop(by, None)
        for victim in self.replicas():
            if victim.claimed_by != by:
                continue
            if victim.uid in self._ending or victim.uid in self._leaving or victim.state is not ReplicaState.DRAINING:
                self._replicas[victim.uid] = victim.changed(now, claimed_by="")
                continue
            for lease in self._leases.held(victim.uid):
                lease.grace_until = None
            self._going.pop(victim.uid, None)
            revived = True
            pinned = self.residency(victim.version).pinned
            self._set(
                victim.to(ReplicaState.LOADED, "its memory is no longer needed", now, claimed_by="", pinned=pinned)
            )
        return revived

    def _send_away(self, replica: Replica, reason: str, now: float, grace: float | None = None) -> None:
        """Whatever it is doing, it goes, and nothing but its own end revives or keeps it."""
        if replica.state is ReplicaState.LOADING:
            self._fail(replica, f"cancelled: {reason}", now)
        elif replica.state in (ReplicaState.LOADED, ReplicaState.UNHEALTHY):
            self._drain(replica, reason, now, self.rules.holder_grace_seconds if grace is None else grace)
            self._leaving.add(replica.uid)
        elif replica.state is ReplicaState.DRAINING:
            self._leaving.add(replica.uid)

    def _drain(self, replica: Replica, reason: str, now: float, grace: float) -> Replica:
        # Who goes is charged what it took: what it might have come to take is there for others at once.
        charge = minus(self.ledger.charge_of(replica.uid), self._untaken(replica))
        self.ledger = self.ledger.settle(replica.uid, charge)
        self._set(replica.to(ReplicaState.DRAINING, reason, now, pinned=False))
        self._forget_invitations(replica.uid)
        known = self._known[replica.version]
        known.scale = min(known.scale, len(self._of(replica.version, _IN_MEMORY)))
        self._going[replica.uid] = _Going(now, bool(self.leases(replica.uid)[1]))
        for lease in self._leases.held(replica.uid):
            if lease.in_flight > 0 and lease.grace_until is None:
                lease.grace_until = now + grace
                self._effects.yielding(lease.uid, now, reason)
        return self._replicas[replica.uid]

    def _end(self, replica: Replica, grace_seconds: float, now: float) -> None:
        if replica.uid not in self._ending:
            self._ending.add(replica.uid)
            self._changes += 1
            going = self._going.setdefault(replica.uid, _Going(now, False))
            going.end_time = now
            if going.busy:
                self._yield_pace = self._yield_pace.after(now - going.since)
            self._effects.stop(replica, grace_seconds)

    def _fail(self, replica: Replica, reason: str, now: float, crashed: bool = False) -> None:
        self._set(replica.to(ReplicaState.FAILED, reason, now))
        self._forget_invitations(replica.uid)
        for lease in self._leases.held(replica.uid):
            self._revoke(lease, reason, crashed)
        self._end(self._replicas[replica.uid], 0.0, now)

    def _crashed(self, replica: Replica, reason: str, now: float) -> None:
        known = self._known[replica.version]
        looping = now - replica.loaded_time < self.rules.crash_window_seconds
        known.failures = known.failures + 1 if looping else 1
        delay = 0.0 if known.failures == 1 else 0.25 * 2.0 ** (known.failures - 2)
        known.retry_at = now + min(self.rules.backoff_limit_seconds, delay)
        known.error, known.crashed = None, True
        self._fail(replica, reason, now, crashed=True)

    def _remove(self, uid: str) -> None:
        version = self._replicas.pop(uid).version
        self._waiting_on.discard(version)
        del self._versions[version][uid]
        if not self._versions[version]:
            del self._versions[version]
        self._changes += 1
        self._promised.pop(uid, None)
        self._leaving.discard(uid)
        self._ending.discard(uid)
        self._going.pop(uid, None)
        self._sick_since.pop(uid, None)
        self._outdated.pop(uid, None)

    def _forget_invitations(self, uid: str) -> None:
        self._invited = {(holder, replica) for holder, replica in self._invited if replica != uid}

    def _set(self, replica: Replica) -> None:
        previous = self._replicas[replica.uid].state
        self._replicas[replica.uid] = replica
        if replica.state is ReplicaState.LOADED:
            self._preloads.discard(replica.version)
        self._changes += 1
        self._effects.changed(replica, previous)

    def _touch(self, uid: str, now: float, *, used: bool = False) -> None:
        replica = self._replicas.get(uid)
        if replica is not None:
            uses = replica.uses + used
            self._replicas[uid] = replace(replica, last_used_time=now, uses=uses, clock=self._clock)

    def _revoke(self, lease: Lease, reason: str, crashed: bool = False) -> None:
        self._drop(lease)
        self._effects.revoked(lease.uid, reason, crashed)

    def _refuse(self, lease: Lease, error: ModelMoraError) -> None:
        self._drop(lease)
        if lease.quiet:
            lease.refusal = error
        else:
            self._effects.refused(lease.uid, error)

    def _see(self, facts: VersionFacts) -> Known:
        known = self._known.get(facts.name)
        if known is not None and known.facts != facts:
            self._waiting_on.discard(facts.name)  # it may need less now
        return self._known.see(facts, self._in_use_versions)

    def _in_use_versions(self) -> set[str]:
        return {*self._versions, *self._leases.wanted(), *self._residencies}

    # Derived facts.

    def _kept(self, version: str) -> int:
        """How many replicas of a known version are to be in memory although nobody asks."""
        if self._known[version].dismissed:
            return 0
        return max(self.residency(version).kept_replicas, int(version in self._preloads))

    def _goal(self, version: str) -> int:
        """How many replicas there is a reason for."""
        if self._resting():
            return 0
        known, residency = self._known[version], self.residency(version)
        return max(self._kept(version), min(known.scale, residency.max_replicas), int(self._leases.is_wanted(version)))

    def _shortages(self, now: float) -> list[_Shortage]:
        """Versions that have fewer replicas than they should, the most urgent first, further replicas last."""
        found: list[_Shortage] = []
        if self._resting():
            return found
        aging = self.rules.policy.aging_seconds_per_point
        for version in dict.fromkeys((*self._leases.wanted(), *self._residencies)):
            if version in self._waiting_on and len(self._versions[version]) == 1 and version not in self._residencies:
                found.append(_Shortage(False, self._leases.rank(version, aging), version, "asked"))
                continue
            known = self._known.get(version)
            if known is None:
                continue
            states = [self._replicas[uid].state for uid in self._versions.get(version, ())]
            there = sum(state in _IN_MEMORY for state in states)
            residency = self._residencies.get(version, _DEFAULTS)
            if there >= self._kept(version):
                known.short_since = None
            elif known.short_since is None:
                known.short_since = now
            rank = self._leases.rank(version, aging) if not there else LAST
            asked = rank is not LAST
            if known.short_since is not None:
                rank = min(rank, (known.short_since - LOW_PRIORITY * aging, known.short_since))
            if rank is LAST and there >= min(known.scale, residency.max_replicas):
                continue
            if known.failures and ReplicaState.LOADING in states:
                continue  # its last load failed: what makes room for a second one may do so in vain
            kind: Literal["asked", "kept", "scaled"] = "asked" if asked else "scaled" if rank is LAST else "kept"
            found.append(_Shortage(kind == "scaled", rank, version, kind))
        return sorted(found)

    def _priority(self, short: _Shortage, now: float) -> float:
        """Aged."""
        if short.kind == "scaled":
            return 0.0
        waits = [(lease.arrival, lease.priority) for lease in self._leases.foremost(short.version)]
        since = self._known[short.version].short_since
        waits = (waits if short.kind == "asked" else []) + ([(since, LOW_PRIORITY)] if since is not None else [])
        return max(self.rules.policy.aged(wanted, now - arrival) for arrival, wanted in waits)

    def _may_load(self, need: Vector) -> bool:
        """Whether every device that is needed has a place for one more load."""
        loading = [
            self.ledger.charge_of(replica.uid)
            for replica in self._replicas.values()
            if replica.state is ReplicaState.LOADING
        ]
        return all(
            sum(charge.get(device, 0) > 0 for charge in loading) < self.rules.load_concurrency
            for device in positive(need)
        )

    def _may_start(self, known: Known, need: Vector) -> bool:
        """Whether its memory is there and a load may begin; not from a fork server that is about to end. Nobody waits
        for who goes where what others have not taken yet would do."""
        if not self._may_load(need) or self._server(known)[0] in self._servers.leaving:
            return False
        if lacking := positive(minus(need, self.ledger.free)):
            there = (replica for replica in self._replicas.values() if replica.state in _IN_MEMORY)
            if covers(plus(*(self._untaken(replica) for replica in there)), lacking):
                self._give_back(lacking)
        return covers(self.ledger.free, need)

    def _plan(
        self,
        short: _Shortage,
        need: Vector,
        available: Vector,
        candidates: list[Candidate],
        servers: Mapping[str, set[str]],
        now: float,
    ) -> tuple[Plan | Wait | Impossible, list[str]]:
        """What is to be done, and which of the fork servers end for it. They do only where models alone cannot make the
        room: the next load of their family waits for its libraries again."""
        version = short.version
        fixed = self._fixed(self._server(self._known[version])[0])
        ceiling, budget = minus(self.ledger.ceiling, fixed), minus(self.ledger.budget, fixed)
        asked = Need(need, available, ceiling, budget, self._priority(short, now))
        if short.kind == "scaled":
            idle = now - self.rules.scaling.idle_seconds
            candidates = [
                replace(c, evictable=c.evictable and not c.busy and c.last_used_time <= idle and c.version != version)
                for c in candidates
            ]
        outcome, ends = plan(asked, candidates, self.rules.policy, now), list[str]()
        if servers and short.kind != "scaled" and not isinstance(outcome, Plan):
            unused = [self.ledger.charges[owner] for owner, users in servers.items() if not users]
            candidates = self._with_servers(candidates, servers)
            asked = replace(asked, available=plus(available, *unused))
            outcome = plan(asked, candidates, self.rules.policy, now)
            if not isinstance(outcome, Impossible):
                missing = positive(minus(minus(need, available), self._freed_by(outcome.victims)))
                ends = self._servers_for(missing, servers, set(outcome.victims))
        reason = ""
        if ends and isinstance(outcome, Plan):
            reason = f"makes room for {version}, as does the end of the fork server of {_families(ends)}"
        # What stays the same is told once, not at every look.
        told = outcome.reason if isinstance(outcome, Wait) else outcome
        if self._decided.get(version) != told or isinstance(outcome, Plan):
            policy = self.rules.policy
            self._effects.decided(Decision(version, asked, candidates, outcome, policy, now, reason=reason))
        self._decided[version] = told
        return outcome, ends

    def _with_servers(self, candidates: Iterable[Candidate], servers: Mapping[str, set[str]]) -> list[Candidate]:
        """The candidates with the fork servers that they came from, each of which goes with its last worker."""
        return [
            replace(
                c, shares={**c.shares, **{o: self.ledger.charges[o] for o, users in servers.items() if c.uid in users}}
            )
            for c in candidates
        ]

    def _servers_for(self, missing: Vector, servers: Mapping[str, set[str]], victims: set[str]) -> list[str]:
        """Fork servers without any other worker than these, as many as it takes to find what is missing."""
        ends = list[str]()
        for owner, users in servers.items():
            if users <= victims and missing.keys() & self.ledger.charges[owner].keys():
                ends.append(owner)
                missing = positive(minus(missing, self.ledger.charges[owner]))
        return ends

    def _tell_why(
        self,
        trigger: Trigger,
        going: Sequence[str],
        reason: str,
        now: float,
        short: Vector = _NOTHING,
        candidates: Sequence[Candidate] | None = None,
        available: Vector = _NOTHING,
    ) -> None:
        """Tells that these go though nothing is to be placed, as things are before they do. `short`: the bytes that
        they have to free; empty where memory is not the reason, and nobody else is looked at then. `candidates`: who is
        looked at, if not all as they are. `available`: what comes back beside them."""
        alone = self._replicas[going[0]] if len(going) == 1 else None
        looked_at = [self._candidate(alone, set())] if alone is not None and not short else candidates
        looked_at = self._candidates(set()) if looked_at is None else looked_at
        busy = tuple(candidate.uid for candidate in looked_at if candidate.busy and candidate.uid in going)
        need = Need(short, available, self.ledger.ceiling, self.ledger.budget)
        version = alone.version if alone is not None else ""
        outcome = Plan(tuple(going), busy)
        self._effects.decided(Decision(version, need, looked_at, outcome, self.rules.policy, now, trigger, reason))

    def _candidates(self, kept: set[str]) -> list[Candidate]:
        """Replicas in memory as eviction sees them; those of `kept` are spoken for."""
        return [self._candidate(self._replicas[uid], kept) for uid in self.ledger.charges if uid in self._replicas]

    def _candidate(self, replica: Replica, kept: set[str]) -> Candidate:
        end, _, _ = self._stay_until(replica)
        goes = self._goes(replica)  # then it keeps nothing that others share or need
        return Candidate(
            uid=replica.uid,
            charge=self.ledger.charge_of(replica.uid),
            evictable=replica.state is ReplicaState.LOADED and replica.uid not in kept,
            loading=replica.state is ReplicaState.LOADING and replica.uid not in kept,
            pinned=not goes
            and (replica.pinned or self._to_be_pinned(replica) or replica.uid in self._protected(replica.version)),
            busy=self._leases.count_busy(replica.uid) > 0,
            busy_priority=self._leases.busy_priority(replica.uid),
            last_used_time=replica.idle_since,
            resident_until=replica.loaded_time + max(self.rules.minimum_residency_seconds, replica.load_seconds),
            version=replica.version,
            uses=replica.uses,
            load_seconds=self._known.load_seconds(self._known[replica.version]) or 0.0,
            clock=replica.clock,
            keep_until=end if end < ENDLESS else None,
            shares=self.ledger.shared_by(replica.uid) if self.ledger.users and not goes else {},
        )

    def _protected(self, version: str) -> set[str]:
        """The replicas that make up the minimum of a version: those used last."""
        residency = self._residencies.get(version)
        if residency is None or not residency.min_replicas or self._resting() or self._known[version].dismissed:
            return set()
        there = self._of(version, (ReplicaState.LOADING, ReplicaState.LOADED, ReplicaState.UNHEALTHY))
        there.sort(key=lambda r: (r.state is ReplicaState.LOADED, r.last_used_time, r.uid), reverse=True)
        return {replica.uid for replica in there[: residency.min_replicas]}

    def _to_be_pinned(self, replica: Replica) -> bool:
        return replica.state is ReplicaState.LOADING and any(
            lease.pin for lease in self._leases.waiters(replica.version)
        )

    def _stay_until(self, replica: Replica) -> tuple[float, Trigger, str]:
        """Until when it stays if nobody uses it, and why it goes then. A keep-alive of nothing still leaves the minimum
        residency: who had it loaded must get to use it."""
        residency, rules = self.residency(replica.version), self.rules
        stay, trigger, reason = ENDLESS, Trigger.IDLE, "idle for longer than its time to live"
        if residency.keep_alive_seconds is not None:
            stay, trigger = residency.keep_alive_seconds, Trigger.KEEP_ALIVE
            reason = "idle for longer than its keep-alive"
        elif rules.idle_ttl_seconds > 0:
            stay = rules.idle_ttl_seconds
        others = len(self._of(replica.version, (ReplicaState.LOADED,))) - 1
        if others >= 1 and self._scales(replica.version) and rules.scaling.idle_seconds < stay:
            stay, trigger = rules.scaling.idle_seconds, Trigger.SCALE_DOWN
            reason = "one replica fewer will do"
        if others >= residency.max_replicas:
            stay, trigger, reason = 0.0, Trigger.SCALE_DOWN, f"there may be {residency.max_replicas} replicas"
        resident_until = replica.loaded_time + rules.minimum_residency_seconds
        return max(replica.idle_since + stay, resident_until), trigger, reason

    def _runs_away(self, replica: Replica, short: Vector) -> bool:
        """Whether it takes far more on a device that is short than it declared or took before."""
        return replica.need_source != "predicted" and any(
            replica.peak.get(device, 0) > self.rules.runaway_factor * granted
            for device, granted in positive(replica.granted).items()
            if device in short
        )

    def _loading_since(self, version: str, server: str) -> float | None:
        """Since when the first of its loads goes on: its own begins when its fork server takes orders."""
        begun = [r.start_time for r in self._of(version, (ReplicaState.LOADING,)) if r.uid not in self._ending]
        return max(min(begun), self._servers.open_since(server) or 0.0) if begun else None

    def _overdue(self, version: str, now: float) -> bool:
        """Whether a load of it takes longer than was learned."""
        known = self._known[version]
        since, load = self._loading_since(version, self._server(known)[0]), self._known.load_seconds(known)
        return since is not None and load is not None and now >= since + load

    def _gone_in(self, uid: str, now: float) -> float | None:
        """Seconds until a replica that is on its way out is reaped."""
        going = self._going.get(uid)
        if going is None:
            return None
        stop = self._stop_pace.seconds or 0.0
        if going.end_time is not None:
            return self._stop_pace.left(going.end_time, now) or 0.0
        graces = [lease.grace_until - now for lease in self._leases.held(uid) if lease.grace_until is not None]
        learned = self._yield_pace.left(going.since, now)
        longest = max(graces, default=0.0)
        return stop + (longest if learned is None else min(longest, learned))

    def _of(self, version: str, states: tuple[ReplicaState, ...]) -> list[Replica]:
        there = (self._replicas[uid] for uid in self._versions.get(version, ()))
        return [replica for replica in there if replica.state in states]

    def _serving(self, lease: Lease) -> Replica | None:
        """The replica with the fewest leases that takes this one."""
        there = self._of(lease.version, (ReplicaState.LOADED,))
        if lease.holder and not lease.visit:
            there = [r for r in there if all(other.holder != lease.holder for other in self._leases.held(r.uid))]
        return min(there, key=lambda replica: (self._leases.count_held(replica.uid), replica.uid), default=None)

    def _scales(self, version: str) -> bool:
        """Whether a version may have more replicas than are kept."""
        residency = self._residencies.get(version)
        return residency is not None and residency.max_replicas > 1

    def _only_waits(self, version: str) -> bool:
        """Whether it has nothing but one replica that waits for memory and has no plan."""
        return version in self._waiting_on and len(self._versions[version]) == 1

    def _resting(self) -> bool:
        """Nothing is to be loaded."""
        return self._closing or self._cordon is not None

    def _goes(self, replica: Replica) -> bool:
        """Its memory is on its way back."""
        return replica.state in (ReplicaState.DRAINING, ReplicaState.FAILED)

    def _coming(self) -> dict[str, int]:
        """Bytes by device that are on their way back."""
        leaving = (self.ledger.charge_of(owner) for owner in self._servers.leaving)
        return plus(self.ledger.freed_by(self._going_in_memory()), *leaving)

    def _going_in_memory(self) -> set[str]:
        charged = (self._replicas[uid] for uid in self.ledger.charges if uid in self._replicas)
        return {replica.uid for replica in charged if self._goes(replica)}

    def _freed_by(self, uids: Iterable[str]) -> dict[str, int]:
        """Bytes by device that come back beside those when these go as well, also what they share with who goes."""
        going = self._going_in_memory()
        return minus(self.ledger.freed_by({*going, *uids}), self.ledger.freed_by(going))

    def _servers_in_memory(self) -> dict[str, set[str]]:
        """By owner: fork servers that are charged for themselves, with the workers in memory that came from each and
        stay, by uid."""
        charges, users = self.ledger.charges, self.ledger.users
        found = {owner: set[str]() for owner in charges if owner.startswith(PREFIX) and owner not in users}
        for uid in charges if found else ():
            replica = self._replicas.get(uid)
            if replica is not None and not self._goes(replica) and (owner := self._came_from(replica)) in found:
                found[owner].add(uid)
        return found

    def _came_from(self, replica: Replica) -> str:
        """The owner of the fork server of its family; empty when it was spawned."""
        family = self.rules.families.get(replica.engine, "")
        return f"{PREFIX}{family}" if family and replica.start_mode is not StartMode.SPAWNED else ""

    def _fixed(self, own: str) -> Vector:
        """The charge of the fork server that a load comes from, which does not end for it."""
        return {} if own in self.ledger.users or own in self._servers.leaving else self.ledger.charge_of(own)

    def _keep_servers(self, servers: Mapping[str, set[str]]) -> None:
        """Fork servers stay whose end nobody waits for any more, or that a worker that stays came from."""
        for owner, told in list(self._servers.leaving.items()):
            if not told and (servers.get(owner) or not (self._promised or self.ledger.overdraft)):
                del self._servers.leaving[owner]

    def _time_counts(self) -> bool:
        """Whether something may happen because a replica is idle."""
        return (
            self.rules.idle_ttl_seconds > 0
            or bool(self._residencies)
            or len(self._versions) < len(self._replicas)
            or bool(self.ledger.overdraft)
            or bool(self._outdated)
        )

    def _cordoned_error(self) -> NodeCordoned:
        return NodeCordoned(f"the node is cordoned: {self._cordon}" if self._cordon else None)

    # What would be.

    def _imagine(self) -> tuple[Scheduler, Notes]:
        """A copy of this scheduler that shares nothing it could change, and what it notes instead of acting."""
        notes, twin, count = Notes(), copy(self), iter(range(1_000_000))
        twin._effects = notes
        twin._new_uid = lambda: f"imagined-{next(count)}"
        twin._leases, twin._known = copy(self._leases), copy(self._known)
        twin._untold = []
        twin._versions = {version: dict(uids) for version, uids in self._versions.items()}
        twin._going = {uid: copy(going) for uid, going in self._going.items()}
        twin._replicas, twin._residencies = dict(self._replicas), dict(self._residencies)
        twin._preloads = set(self._preloads)
        twin._promised, twin._decided, twin._told = dict(self._promised), dict(self._decided), dict(self._told)
        twin._leaving, twin._ending, twin._invited = set(self._leaving), set(self._ending), set(self._invited)
        twin._servers, twin._waiting_on = copy(self._servers), set(self._waiting_on)
        twin._sick_since, twin._outdated, twin._wakes = dict(self._sick_since), dict(self._outdated), []
        return twin, notes

    def _placement(
        self,
        facts: VersionFacts,
        lease: str,
        notes: Notes,
        now: float,
        need: Vector,
        before: Scheduler,
        priority: float,
    ) -> Placement:
        """What became of `lease`, for people. `need`, `before`: of a load of it, and all else, as things are."""
        known = self._known[facts.name]
        replica = notes.grants.get(lease) or next(iter(self._of(facts.name, _COUNTED)), None)
        decision = next(
            (d for d in reversed(notes.decisions) if d.version == facts.name and d.trigger is Trigger.PLACEMENT), None
        )
        forked = self._forked(known)
        own: Vector = known.own(self.rules.prediction, forked)
        if replica is not None and replica.uid in before.ledger.charges:
            need = own = before.ledger.charge_of(replica.uid)
        outcome, reason, ready_in = self._fate(facts.name, replica, lease, notes, now)
        if decision is not None:
            judged = decision.verdicts()
        else:
            asked = Need(need, before.ledger.free, self.ledger.ceiling, self.ledger.budget, priority)
            judged = verdicts(asked, self._candidates(set()), Plan(()), self.rules.policy, now)
        judged = tuple(v for v in judged if replica is None or v.candidate.uid != replica.uid)
        evictable = self._evictable({v.candidate.uid for v in judged if not v.reason}, before, self._server(known)[0])
        charges = before.ledger.charges.items()
        given = {uid: positive(minus(charge, self.ledger.charge_of(uid))) for uid, charge in charges}
        available = plus(before._room_for(facts.name), *given.values())
        if decision is not None:  # where others wait before it, it may count on less
            available = least(available, decision.need.available)
        stay = given.keys() - self._going_in_memory()
        free = least(available, plus(before.ledger.free, *(given[uid] for uid in stay)))
        if replica is not None:
            claimed = {r.uid for r in self._replicas.values() if r.claimed_by == replica.uid}
            judged = tuple(replace(v, victim=True, reason="") if v.candidate.uid in claimed else v for v in judged)
        going = {r.uid for r in before._replicas.values() if before._goes(r)}
        judged = tuple(
            replace(v, reason=v.reason and "it goes already") if v.candidate.uid in going else v for v in judged
        )
        return Placement(
            facts.name,
            outcome,
            reason,
            ready_in,
            need,
            known.source(self.rules.prediction, own, forked),
            free,
            self.ledger.budget,
            plus(evictable, positive(minus(available, free))),
            judged,
        )

    def _evictable(self, may_go: set[str], before: Scheduler, own: str) -> dict[str, int]:
        """What comes back when these go, and the fork servers that then have no worker, except for its own and what was
        on its way back `before`."""
        servers = self._servers_in_memory().items()
        stay = {own, *before._servers.leaving}
        ends = (self.ledger.charges[owner] for owner, users in servers if owner not in stay and users <= may_go)
        return plus(self.ledger.freed_by(may_go), *ends)

    def _room_for(self, version: str) -> dict[str, int]:
        """What is free or on its way back, and promised to nobody else."""
        others = (promised for uid, promised in self._promised.items() if self._replicas[uid].version != version)
        return minus(plus(self.ledger.free, self._coming()), plus(*others))

    def _fate(
        self, version: str, replica: Replica | None, lease: str, notes: Notes, now: float
    ) -> tuple[PlacementOutcome, str, float | None]:
        ready_in = self.ready_in(version, now)
        error = notes.refusals.get(lease)
        if isinstance(error, NeverFits):
            return PlacementOutcome.NEVER_FITS, error.message, None
        if error is not None:
            failed = self._known[version]
            reason = failed.note if failed.error is not None else error.message
            return PlacementOutcome.REFUSED, reason, error.retry_after_seconds
        if lease in notes.grants:
            return PlacementOutcome.LOADED, "it is loaded", 0.0
        if replica is not None and replica.state is ReplicaState.LOADING:
            return PlacementOutcome.FITS, "it fits in the memory that is free", ready_in
        if replica is not None and replica.uid in self._promised:
            claimed = any(other.claimed_by == replica.uid for other in self._replicas.values())
            going = any(self._goes(other) for other in self._replicas.values())
            who = ["others"] if claimed else ["what ends already"] if going else []
            if self._servers.leaving:
                who.append(f"the fork server of {_families(self._servers.leaving)}")
            reason = "it is expected to fit in the memory that is free, once other loads are over"
            if not who:
                return PlacementOutcome.FITS, reason, ready_in
            reason = f"it fits once {' and '.join(who)} {'are' if claimed or len(who) > 1 else 'is'} gone"
            return PlacementOutcome.FITS_AFTER_EVICTION, reason, ready_in
        return PlacementOutcome.WAITS, self._known[version].note or "it waits", ready_in


# Tuples: the hash of an enum member costs more than three comparisons.
_IN_MEMORY = (ReplicaState.LOADING, ReplicaState.LOADED, ReplicaState.UNHEALTHY)
_COUNTED = (*_IN_MEMORY, ReplicaState.UNLOADED)
_DEFAULTS = Residency()
_SQUEEZES = {
    Trigger.OVERDRAFT: "workers have more memory than was reserved for them",
    Trigger.FOREIGN: "other programs have taken memory",
    Trigger.BUDGET: "the budget is smaller now",
}
_REMEDIES = {
    Trigger.OVERDRAFT: "declare the memory that models take, or raise the budget",
    Trigger.FOREIGN: "end what else runs, or keep fewer models",
    Trigger.BUDGET: "raise the budget, or keep fewer models",
}


def _may_pass(error: ModelMoraError) -> bool:
    """Whether waiting can help: files that no engine reads stay as they are."""
    return isinstance(error, ResourceExhausted | Unavailable)


def _other_profile(loaded: EngineProfile, current: EngineProfile) -> bool:
    """Whether a worker with the profile `loaded` is not what `current` asks for; what that leaves open does not
    count."""
    asked = ((loaded.backend, current.backend), (loaded.precision, current.precision))
    return any(has != wanted for has, wanted in asked if wanted)


def _retry_after(seconds: float | None) -> float:
    """When to ask again for what is ready in `seconds`, as far as anybody knows."""
    return UNKNOWN_SECONDS if seconds is None else max(RETRY_SECONDS, seconds)


def _again(error: ModelMoraError, seconds: float) -> ModelMoraError:
    """The error for one more waiter, with when to try again where waiting can help."""
    return error.copy(retry_after_seconds=seconds if _may_pass(error) else None)


def _tells_the_same(
    before: tuple[float | None, str], after: tuple[float | None, str], now: float, slack_seconds: float
) -> bool:
    """Whether a waiter would learn nothing: the same reason, and a moment that has hardly moved."""
    if before[1] != after[1] or before[0] is None or after[0] is None:
        return before == after
    return abs(before[0] - after[0]) <= max(slack_seconds, 0.2 * (after[0] - now))


def _families(owners: Iterable[str]) -> str:
    return " and ".join(owner.removeprefix(PREFIX) for owner in owners)


def _never_fits(version: str, outcome: Impossible, beside_server: bool) -> NeverFits:
    budget = f"{outcome.budget_bytes}{' that its fork server leaves' if beside_server else ''}"
    pinned = f", of which {outcome.pinned_bytes} are pinned or a minimum of replicas" if outcome.pinned_bytes else ""
    return NeverFits(
        f"{version} needs {outcome.need_bytes} bytes on {outcome.device}, and evictions make room for "
        f"{outcome.evictable_bytes} at most, even if no other program uses any: the budget is {budget}{pinned}",
        model_version=version,
        device=outcome.device,
        need_bytes=outcome.need_bytes,
        budget_bytes=outcome.budget_bytes,
        evictable_bytes=outcome.evictable_bytes,
        pinned_bytes=outcome.pinned_bytes,
    )
