"""The whole scheduler under random days: holders, operators, crashes, growth and other programs, on a simulated node.

`World` keeps the contract of leases (or breaks it on purpose) and checks after every event what must hold always; the
tests check what must hold in the end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from fakes import FakeClock, FakeEffects, FakeWorker
from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora.errors import (
    DeadlineExceeded,
    LoadFailed,
    MemoryBusy,
    ModelLoading,
    ModelMoraError,
    NeverFits,
    NodeCordoned,
    OutOfMemory,
    ReplicaNotFound,
    VersionInUse,
)
from modelmora_lifecycle.domain import (
    HOST,
    EngineProfile,
    Health,
    HealthState,
    Replica,
    ReplicaState,
    Residency,
    VersionFacts,
)
from modelmora_lifecycle.eviction import POLICIES, Decision, Plan, Policy, Trigger
from modelmora_lifecycle.ledger import covers, largest, minus, plus, positive
from modelmora_lifecycle.placement import PlacementOutcome
from modelmora_lifecycle.prediction import Prediction
from modelmora_lifecycle.scaling import Scaling
from modelmora_lifecycle.scheduler import Rules
from modelmora_lifecycle.servers import PREFIX

FOREVER = float("inf")
BUDGET = {HOST: 100, "cuda:0": 50}
S = ReplicaState
IN_MEMORY = (S.LOADING, S.LOADED, S.UNHEALTHY)
LONG_DAYS, LONG_SEED, LONG_ACTIONS = 30_000, 1_000_000, 120


@dataclass
class Held:
    """One lease as its holder sees it."""

    lease: str
    model: str
    holder: str
    replica: str = ""
    busy: bool = False
    yielded_at: float | None = None
    over: bool = False


@dataclass(frozen=True)
class Case:
    """One random day."""

    sizes: list[dict[str, int]]
    workers: list[FakeWorker]
    actions: list[tuple[Any, ...]]
    rules: Rules
    engines: list[str]
    server_bytes: int
    """Of a fork server, when it has imported all it needs."""
    saturating: bool
    stubborn: bool


class World(FakeEffects):
    """A node, its holders, and the checks that hold after every event."""

    def play(self, case: Case) -> None:
        self.case = case
        self.holders: dict[str, Held] = {}
        self.excused: set[str] = set()
        """Replicas that may go without a word: killed, or sick for too long."""
        self.quiet = False
        self.count = 0
        self.starts: list[float] = []
        self.removing = False
        """An operator or an overdraft makes versions go that are otherwise kept."""
        self.workers = {f"m{index}": worker for index, worker in enumerate(case.workers)}
        self.models = [
            VersionFacts(f"m{index}", case.engines[index], declared=size) for index, size in enumerate(case.sizes)
        ]
        self.servers: dict[str, int] = {}
        """Fork servers that run, with their bytes."""
        self.ending: set[str] = set()
        self.on_event = self.check
        for action in case.actions:
            getattr(self, f"do_{action[0]}")(*action[1:])
            self.check()

    def end_of_day(self, seconds: float = 900.0) -> None:
        """Everybody finishes what he does, nothing new happens, and nobody stands in the way."""
        self.quiet = True
        self.removing = True  # what was begun may still end
        self.scheduler.uncordon(self.clock.now)
        self.scheduler.observed({}, self.clock.now)
        self.scheduler.configure(self.rules, BUDGET, self.clock.now)
        for held in self.open_leases():
            if held.busy and held.yielded_at is None and not self.case.stubborn:
                self.later(0.5, lambda held=held: self.finish(held))  # type: ignore[misc]
        self.run_for(seconds)

    def facts(self, index: int) -> VersionFacts:
        return self.models[index % len(self.models)]

    def open_leases(self) -> list[Held]:
        return [held for held in self.holders.values() if not held.over]

    def pick(self, index: int) -> Replica | None:
        uids = sorted(self.alive)
        return self.scheduler.replica(uids[index % len(uids)]) if uids else None

    # What may happen.

    def do_urge(self, index: int, priority: int, seconds: float) -> None:
        there = self.open_leases()
        if there:
            held, now = there[index % len(there)], self.clock.now
            self.scheduler.urge(held.lease, priority, now + seconds, now)
            if held.busy and held.yielded_at is None:
                self.scheduler.in_use(held.lease, 1, 0, 0.0, now, priority=priority)

    def do_ask(
        self, index: int, priority: int, seconds: float, holder: int, if_loaded: bool, load_nothing: bool
    ) -> None:
        if index < 0:
            self.ask(self.facts(index), priority, seconds, "", if_loaded, load_nothing)
        else:
            self.ask(self.facts(index), priority, seconds, f"h{holder}", if_loaded, load_nothing)

    def ask(
        self,
        facts: VersionFacts,
        priority: int,
        seconds: float,
        holder: str,
        if_loaded: bool = False,
        load_nothing: bool = False,
    ) -> None:
        self.count += 1
        lease = f"{facts.name}#{self.count}"
        self.holders[lease] = Held(lease, facts.name, holder)
        now, said = self.clock.now, len(self.log)
        self.scheduler.want(
            lease,
            facts,
            priority=priority,
            deadline=now + seconds,
            now=now,
            holder=holder,
            if_loaded=if_loaded,
            load_nothing=load_nothing,
        )
        assert not if_loaded or self.holders[lease].over or self.holders[lease].replica, "who would not wait waits"
        if load_nothing and not self.holders[lease].replica:
            assert [call[0] for call in self.log[said:]] == ["refused"], "something moved for who wants nothing loaded"

    def do_pass(self, seconds: float) -> None:
        self.run_for(seconds)

    def do_go(self, index: int) -> None:
        there = self.open_leases()
        if there:
            gone = there[index % len(there)]
            gone.over = True
            self.scheduler.release(gone.lease, self.clock.now)

    def do_report(self, index: int, waiting: int, seconds: float) -> None:
        busy = [held for held in self.open_leases() if held.busy]
        if busy:
            held = busy[index % len(busy)]
            for _ in range(4):
                if held.busy and not held.over:
                    self.scheduler.in_use(held.lease, 1, waiting, seconds, self.clock.now)
                    self.run_for(1.0)

    def do_kill(self, index: int) -> None:
        replica = self.pick(index)
        if replica is not None:
            self.excused.add(replica.uid)
            self.crash(replica.uid)

    def do_sick(self, index: int, sick: bool) -> None:
        replica = self.pick(index)
        if replica is not None:
            if sick:
                self.excused.add(replica.uid)
            state = HealthState.UNHEALTHY if sick else HealthState.HEALTHY
            self.scheduler.health(replica.uid, Health(state, "asked", self.clock.now), self.clock.now)

    def do_grow(self, index: int, factor: float, tokens: int) -> None:
        replica = self.pick(index)
        if replica is not None:
            self.removing = True
            self.excused.add(replica.uid)  # who takes far more than it said is stopped
            memory = {device: int(b * factor) for device, b in self.alive[replica.uid].items()}
            before = self.scheduler.ledger.charge_of(replica.uid)
            self.scheduler.measured(replica.uid, memory, self.clock.now, tokens)
            if replica.state in (S.DRAINING, S.FAILED):
                charge = self.scheduler.ledger.charge_of(replica.uid)
                assert covers(largest(before, memory), charge), "who goes is charged a guess"

    def do_share(self, index: int, memory_bytes: int) -> None:
        self.removing = True
        replica = self.pick(index)
        if replica is None or index % 4 == 0:
            for owner in list(self.servers)[:1]:
                self.server_has(owner, memory_bytes // 4)
        else:
            users = [r.uid for r in self.scheduler.replicas() if r.version == replica.version and r.uid in self.alive]
            self.scheduler.charge_shared(f"artifacts/{replica.version}", {HOST: memory_bytes}, self.clock.now, users)

    def do_renew(self, index: int, precision: str) -> None:
        """The registry has another profile for a version."""
        facts = replace(self.facts(index), profile=EngineProfile("torch", precision))
        self.models[index % len(self.models)] = facts
        self.removing = True
        self.scheduler.renew(facts, self.clock.now)

    def do_unload(self, index: int, force: bool) -> None:
        self.removing = True
        try:
            self.scheduler.unload(self.facts(index).name, force=force, now=self.clock.now)
        except (ReplicaNotFound, VersionInUse):
            pass
        self.removing = False

    def do_residency(self, index: int, pinned: bool, keep: float | None, least: int, most: int, preload: bool) -> None:
        facts = self.facts(index)
        residency = Residency(pinned, keep, min(least, most), most, preload)
        self.removing = True
        self.scheduler.set_residency(facts.name, residency, facts, self.clock.now)
        self.removing = False

    def do_cordon(self, seconds: float) -> None:
        self.removing = True
        self.scheduler.cordon("maintenance", self.clock.now)
        starts = len(self.starts)
        self.ask(self.facts(int(seconds)), 30, FOREVER, "")
        assert isinstance(self.log[-1][2], NodeCordoned)
        self.run_for(seconds)
        assert len(self.starts) == starts, "a cordoned node loads"
        if seconds > self.rules.holder_grace_seconds + 2.0:
            assert self.scheduler.replicas() == [], "a cordoned node is not empty after the grace"
        self.scheduler.uncordon(self.clock.now)
        self.removing = False

    def do_budget(self, host: int) -> None:
        self.removing = True
        self.scheduler.configure(self.rules, {**BUDGET, HOST: host}, self.clock.now)
        self.run_for(1.0)

    def do_foreign(self, host: int) -> None:
        self.removing = True
        self.scheduler.observed({HOST: host}, self.clock.now)
        self.run_for(1.0)

    def do_explain(self, index: int, priority: int) -> None:
        """Explaining changes nothing and says what then happens."""
        facts, now = self.facts(index), self.clock.now
        before, there = self.snapshot(), any(r.version == facts.name for r in self.scheduler.replicas())
        several = self.scheduler.residency(facts.name).max_replicas > 1
        placement = self.scheduler.explain(facts, priority, now)
        assert self.snapshot() == before, "explaining has changed something"
        log = len(self.log)
        victims = {verdict.candidate.uid for verdict in placement.verdicts if verdict.victim}
        self.ask(facts, priority, FOREVER, "")
        happened = self.log[log:]
        lease = next(reversed(self.holders))
        replicas = [
            r for r in self.scheduler.replicas() if r.version == facts.name and r.state in (*IN_MEMORY, S.UNLOADED)
        ]
        match placement.outcome:
            case PlacementOutcome.LOADED:
                assert self.holders[lease].replica
                assert placement.ready_in_seconds == 0
            case PlacementOutcome.FITS:
                loading = [r for r in self.scheduler.replicas() if r.state is S.LOADING]
                assert any(r.state is S.LOADING for r in replicas) or len(loading) >= self.rules.load_concurrency
                assert there or several or covers(placement.free, placement.need), "it fits in memory that is not free"
            case PlacementOutcome.FITS_AFTER_EVICTION:
                claimed = {r.uid for r in self.scheduler.replicas() if r.claimed_by in {x.uid for x in replicas}}
                assert claimed == victims, "others go than was explained"
            case PlacementOutcome.WAITS:
                assert not self.holders[lease].over
                assert not self.holders[lease].replica
                assert placement.reason
            case PlacementOutcome.NEVER_FITS:
                assert any(call[0] == "refused" and isinstance(call[2], NeverFits) for call in happened)
            case PlacementOutcome.REFUSED:
                assert any(call[0] == "refused" for call in happened)

    def snapshot(self) -> str:
        state = {name: value for name, value in vars(self.scheduler).items() if name not in ("_effects", "_new_uid")}
        books = {name: vars(value) for name, value in state.items() if name in ("_leases", "_known")}
        return repr({**state, **books})

    # Effects.

    def start(self, replica: Replica, facts: VersionFacts, need: Mapping[str, int]) -> None:
        free = self.scheduler.ledger.free
        assert all(free.get(device, 0) >= 0 for device in positive(need)), "a load is granted memory that is not there"
        loading = [
            r for r in self.scheduler.replicas() if r.state is S.LOADING and r.uid in self.scheduler.ledger.charges
        ]
        assert len(loading) <= self.rules.load_concurrency
        there = [r for r in self.scheduler.replicas() if r.version == facts.name and r.state in IN_MEMORY]
        assert len(there) <= self.scheduler.residency(facts.name).max_replicas
        self.starts.append(self.clock.now)
        if owner := self.server_of(replica):
            assert owner not in self.ending, "a load from a fork server that ends"
            self.servers.setdefault(owner, self.case.server_bytes)
        super().start(replica, facts, need)

    def server_of(self, replica: Replica) -> str:
        return f"{PREFIX}{replica.engine}" if replica.engine in self.rules.families else ""

    def server_has(self, owner: str, memory_bytes: int) -> None:
        """What is measured of it; nothing: it is gone."""
        if owner in self.servers and memory_bytes:
            self.servers[owner] = memory_bytes
        elif owner in self.servers:
            del self.servers[owner]
            self.ending.discard(owner)
        self.scheduler.charge_shared(owner, {HOST: memory_bytes} if memory_bytes else {}, self.clock.now)

    def end_server(self, owner: str) -> None:
        assert owner in self.servers
        assert owner not in self.ending, "told twice"
        there = [r for r in self.scheduler.replicas() if r.uid in self.alive and self.server_of(r) == owner]
        assert there == [], "the end of a fork server that has workers"
        self.ending.add(owner)
        self.log.append(("end_server", owner))
        self.later(0.3, lambda: self.server_has(owner, 0))

    def never_fits(self, model: str, error: NeverFits) -> None:
        """Who is told so would not fit beside what may never go, even if all the rest went."""
        scheduler = self.scheduler
        stay = [
            r
            for r in scheduler.replicas()
            if r.uid in self.alive and (r.pinned or scheduler.residency(r.version).min_replicas)
        ]
        servers = {self.server_of(r) for r in stay} | {f"{PREFIX}{self.models[int(model[1:])].engine}"}
        owners = [r.uid for r in stay] + [f"artifacts/{r.version}" for r in stay] + sorted(servers)
        owners = list(dict.fromkeys(owners))
        device, need_bytes = error.metadata["device"], int(error.metadata["need_bytes"])
        held = sum(scheduler.ledger.charge_of(owner).get(device, 0) for owner in owners)
        assert need_bytes + held > scheduler.ledger.ceiling[device], "it would fit"

    def granted(self, lease: str, replica: Replica) -> None:
        held = self.holders[lease]
        assert not held.over
        assert not held.replica
        assert replica.state is S.LOADED
        if held.holder:
            others = [h for h in self.open_leases() if h.holder == held.holder and h.replica == replica.uid]
            assert others == [], "two leases of one holder on one replica"
        held.replica = replica.uid
        self.later(0.0, lambda: self.work(held))

    def work(self, held: Held) -> None:
        if held.over or self.quiet:
            return
        held.busy = True
        self.scheduler.in_use(held.lease, 1, 0, 0.0, self.clock.now)
        if not self.case.saturating:
            self.later(0.7, lambda: self.finish(held))

    def finish(self, held: Held) -> None:
        if held.over or not held.busy:
            return
        if held.yielded_at is not None:
            held.over = True
            self.scheduler.release(held.lease, self.clock.now)
        else:
            held.busy = False
            self.scheduler.in_use(held.lease, 0, 0, 0.0, self.clock.now)

    def yielding(self, lease: str, by: float, reason: str) -> None:
        held = self.holders[lease]
        assert held.busy
        if held.yielded_at is None:
            held.yielded_at = self.clock.now
        if not self.case.stubborn:
            self.later(0.4, lambda: self.finish(held))

    def revoked(self, lease: str, reason: str, crashed: bool) -> None:
        held = self.holders[lease]
        assert held.replica
        assert not crashed or held.replica in self.excused, reason
        if held.busy and held.replica not in self.excused:
            assert held.yielded_at is not None, f"a busy replica was stopped without a yield: {reason}"
            assert self.clock.now >= held.yielded_at + self.rules.drain_grace_seconds, reason
        held.over = True

    def refused(self, lease: str, error: ModelMoraError) -> None:
        assert not self.holders[lease].replica
        self.holders[lease].over = True
        known = NeverFits | MemoryBusy | OutOfMemory | DeadlineExceeded | LoadFailed | NodeCordoned | ModelLoading
        assert isinstance(error, known), error
        if isinstance(error, NeverFits):
            self.never_fits(self.holders[lease].model, error)
        super().refused(lease, error)

    def invite(self, lease: str, replica: Replica) -> None:
        held = self.holders[lease]
        assert not held.over
        assert all(h.replica != replica.uid for h in self.open_leases() if h.holder == held.holder)
        if not self.quiet:
            self.later(0.0, lambda: self.ask(self.models[int(held.model[1:])], 20, 30.0, held.holder))

    def decided(self, decision: Decision) -> None:
        """Nobody goes, nor is told that he never fits, for bytes that nobody has ever had."""
        super().decided(decision)
        if decision.trigger not in (Trigger.PLACEMENT, Trigger.OVERDRAFT, Trigger.FOREIGN, Trigger.BUDGET):
            return
        if decision.trigger is not Trigger.PLACEMENT and isinstance(decision.outcome, Plan):
            self.nobody_in_vain(decision.outcome.victims)
        short = positive(minus(decision.need.memory, decision.need.available))
        for replica in self.scheduler.replicas():
            if replica.state in (S.LOADED, S.UNHEALTHY):
                assert not self.guess(replica).keys() & short, "a guess makes somebody go"

    def guess(self, replica: Replica) -> dict[str, int]:
        """What is charged to it beyond what it ever had or declared."""
        measured, facts = self.scheduler.measurement(replica.version), self.scheduler.facts(replica.version)
        assert facts is not None
        had = largest(replica.peak, facts.declared, measured.peak if measured is not None else {})
        return positive(minus(self.scheduler.ledger.charge_of(replica.uid), had))

    def nobody_in_vain(self, victims: tuple[str, ...]) -> None:
        """Without any one of them, and the fork server that ends with it, an overdraft would last."""
        scheduler, ledger = self.scheduler, self.scheduler.ledger
        going = {r.uid for r in scheduler.replicas() if r.state in (S.DRAINING, S.FAILED)} | set(victims)
        for uid in victims:
            replica = scheduler.replica(uid)
            assert replica is not None
            servers = (ledger.charge_of(o) for o in scheduler._servers.leaving if o != self.server_of(replica))
            less = plus(ledger.freed_by(going - {uid}), *servers)
            assert not covers(less, ledger.overdraft), "somebody goes in vain"

    def stop(self, replica: Replica, grace_seconds: float) -> None:
        assert self.scheduler.leases(replica.uid)[0] == 0, "stopped under a lease"
        super().stop(replica, grace_seconds)

    def changed(self, replica: Replica, previous: ReplicaState) -> None:
        super().changed(replica, previous)
        if replica.state is S.LOADED and (owner := self.server_of(replica)):
            self.later(0.2, lambda: owner in self.servers and self.server_has(owner, self.servers[owner]))  # type: ignore[func-returns-value]
        if previous is S.DRAINING and replica.state is S.LOADED:
            assert not replica.claimed_by
        assert replica.state is not S.DRAINING or not self.guess(replica), "who goes is charged a guess"
        if replica.state is S.DRAINING and not self.removing and not replica.reason.startswith("replaced"):
            least = self.scheduler.residency(replica.version).min_replicas
            there = [r for r in self.scheduler.replicas() if r.version == replica.version and r.state in IN_MEMORY]
            assert len(there) >= least, f"fewer than the minimum: {replica.reason}"

    def check(self) -> None:
        scheduler = self.scheduler
        charges, users = scheduler.ledger.charges, scheduler.ledger.users
        assert {owner for owner in charges if "/" not in owner} == set(self.alive), "a charge without a process"
        assert all(who and who <= set(self.alive) for who in users.values()), "what nobody uses is charged"
        standing = {owner for owner in charges if owner.startswith(PREFIX) and owner not in users}
        assert standing <= set(self.servers), "a server that is gone"
        for held in self.holders.values():
            if not held.over and not held.replica:
                mine = {h.replica for h in self.open_leases() if held.holder and h.holder == held.holder}
                free = [r for r in scheduler.replicas() if r.version == held.model and r.state is S.LOADED]
                assert {r.uid for r in free} <= mine, "a loaded replica is there and a want waits"
        for replica in scheduler.replicas():
            if replica.claimed_by:
                assert scheduler.replica(replica.claimed_by) is not None, "a victim of nobody"
            if replica.state in (S.LOADED, S.UNHEALTHY):
                assert not self.guess(replica).keys() & scheduler.ledger.overdraft, "a guess exceeds the budget"


def rules_of(random: Random) -> Rules:
    return Rules(
        minimum_residency_seconds=random.choice([0.0, 2.0]),
        idle_ttl_seconds=random.choice([0.0, 0.0, 20.0]),
        load_concurrency=random.choice([1, 2, 4]),
        policy=Policy(random.choice(POLICIES)),
        scaling=Scaling(up_after_seconds=1.0, pause_seconds=3.0, idle_seconds=10.0),
        prediction=Prediction(bare_overhead_bytes=random.choice([0, 4, 15])),
        families={name: name for name in random.choice([(), ("echo",), ("echo", "other")])},
    )


def random_case(random: Random, length: int = 40) -> Case:
    def action() -> tuple[Any, ...]:
        name = random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        index = random.randint(0, 99)
        match name:
            case "ask":
                model = random.randint(-2, 4)
                return (
                    name,
                    model,
                    random.choice([10, 20, 30]),
                    random.choice([3.0, 60.0, FOREVER]),
                    index % 3,
                    index < 15,
                    index < 6,
                )
            case "pass":
                return name, random.choice([0.05, 0.3, 1.0, 2.0, random.random() * 6])
            case "urge":
                return name, index, random.choice([10, 20, 30]), random.choice([3.0, 60.0, FOREVER])
            case "report":
                return name, index, random.randint(0, 5), random.choice([0.0, 2.0, 5.0])
            case "sick" | "unload":
                return name, index, random.random() < 0.5
            case "grow":
                return name, index, random.choice([1.05, 1.3, 2.0, 4.0]), random.choice([0, 100])
            case "residency":
                keep = random.choice([None, None, 0.0, 5.0])
                most = random.choice([1, 1, 2, 3])
                return name, index, random.random() < 0.2, keep, random.randint(0, 2), most, random.random() < 0.3
            case "cordon":
                return name, random.choice([1.0, 30.0])
            case "renew":
                return name, index, random.choice(["fp32", "bf16"])
            case "share":
                return name, index, random.choice([0, 8, 20])
            case "budget" | "foreign":
                return name, random.choice([30, 60, 100] if name == "budget" else [0, 20, 70])
            case "explain":
                return name, index, random.choice([10, 20, 30])
        return name, index

    sizes = [
        {HOST: random.randint(5, 100), **({"cuda:0": random.randint(0, 50)} if random.random() < 0.3 else {})}
        for _ in range(random.randint(2, 5))
    ]
    workers = [
        FakeWorker(random.choice([0.05, 1.0, 5.0]), random.choice([0.01, 0.1, 1.0]), random.random() < 0.05)
        for _ in range(5)
    ]
    actions = [action() for _ in range(random.randint(5, length))]
    rules, engines = rules_of(random), [random.choice(["echo", "other"]) for _ in sizes]
    server_bytes = random.choice([1, 5, 20])
    return Case(sizes, workers, actions, rules, engines, server_bytes, random.random() < 0.4, random.random() < 0.2)


WEIGHTS = {
    "ask": 9.0,
    "pass": 8.0,
    "go": 2.0,
    "report": 1.0,
    "urge": 2.0,
    "kill": 1.5,
    "sick": 0.7,
    "grow": 0.5,
    "unload": 0.7,
    "residency": 1.5,
    "cordon": 0.3,
    "budget": 0.3,
    "foreign": 0.4,
    "share": 0.5,
    "renew": 0.4,
    "explain": 1.5,
}


def a_day(case: Case) -> World:
    """Plays a case to its end and checks what must hold then."""
    world = World(FakeClock(), BUDGET, case.rules)
    world.play(case)
    waiting = [held for held in world.open_leases() if not held.replica]
    starts = len(world.starts)
    world.end_of_day()
    scheduler = world.scheduler
    for held in waiting:
        if held.over or held.replica:
            continue
        # Only who has every replica of the version already may still wait for one more.
        mine = {h.replica for h in world.open_leases() if h.holder == held.holder and h.model == held.model}
        there = {r.uid for r in scheduler.replicas() if r.version == held.model and r.state is S.LOADED}
        assert held.holder, "a want was forgotten"
        assert there, "a want was forgotten"
        assert there <= mine, "a want was forgotten"
    assert len(world.starts) - starts <= 150, "the node does not come to rest"
    assert scheduler.ledger.overdraft == {} or all_kept(world)
    for version, reason in scheduler.unkept().items():
        assert world.workers[version].fails or "needs" in reason or "cancelled" in reason, (version, reason)
    for replica in scheduler.replicas():
        assert replica.state is S.LOADED or world.workers[replica.version].fails, replica
    return world


def all_kept(world: World) -> bool:
    """Whether nothing is there that may go to end an overdraft."""
    scheduler = world.scheduler
    in_the_way = [
        r
        for r in scheduler.replicas()
        if positive(scheduler.ledger.charge_of(r.uid)).keys() & scheduler.ledger.overdraft
    ]
    return all(r.pinned or scheduler.residency(r.version).min_replicas > 0 for r in in_the_way)


@pytest.mark.parametrize("block", range(5))
def test_random_days_keep_every_promise(block: int) -> None:
    for number in range(400):
        seed = block * 1000 + number
        try:
            a_day(random_case(Random(seed)))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_random_days_keep_every_promise_for_long() -> None:
    from bench.evidence import page, provenance, write

    seen: Counter[str] = Counter()
    origin, began = provenance(), time.monotonic()
    for number in range(LONG_DAYS):
        seed = LONG_SEED + number
        case = random_case(Random(seed), LONG_ACTIONS)
        try:
            world = a_day(case)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        seen.update(f"effect: {call[0]}" for call in world.log)
        seen.update(f"event: {action[0]}" for action in case.actions)
        seen[f"days with policy {case.rules.policy.name}"] += 1
    rows: dict[str, object] = {
        **origin,
        "days": LONG_DAYS,
        "seeds": f"{LONG_SEED} to {LONG_SEED + LONG_DAYS - 1}",
        "events of a day, beside time that passes": f"5 to {LONG_ACTIONS}",
        "duration": f"{time.monotonic() - began:.0f} s",
        **dict(sorted(seen.items())),
        "verdict": "passed",
    }
    about = (
        "By `pytest -m long -k every_promise_for_long tests/unit/test_lifecycle_properties.py`: random days of the "
        "whole scheduler on a simulated node; the file says what is checked after every event and in the end."
    )
    write("days", page("Random days of the scheduler", about, rows))


@settings(max_examples=250, deadline=None)
@given(st.randoms(use_true_random=False))
def test_no_day_that_hypothesis_finds_breaks_a_promise(random: Random) -> None:
    a_day(random_case(random, 25))


def test_the_same_day_gives_the_same_decisions() -> None:
    for seed in range(60):
        first, second = a_day(random_case(Random(seed))), a_day(random_case(Random(seed)))
        assert [str(call) for call in first.log] == [str(call) for call in second.log]
