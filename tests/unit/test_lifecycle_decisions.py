"""Why models leave memory: every cause is told, with what was judged and who was looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import FakeClock, FakeEffects, FakeWorker
from modelmora.errors import MemoryBusy, OutOfMemory
from modelmora_lifecycle.domain import HOST, MIB, EngineProfile, ReplicaState, Residency, VersionFacts
from modelmora_lifecycle.eviction import Decision, Plan, Policy, Trigger, Wait
from modelmora_lifecycle.placement import PlacementOutcome
from modelmora_lifecycle.scheduler import Rules

FOREVER = float("inf")
S = ReplicaState


def version(name: str, host: int = 30, precision: str = "") -> VersionFacts:
    return VersionFacts(
        name, "echo", declared={HOST: host}, profile=EngineProfile("echo" if precision else "", precision)
    )


class Node(FakeEffects):
    def load(self, facts: VersionFacts, *, busy: bool = False) -> str:
        """Loaded and, unless busy, idle again; the answer is its uid."""
        uid = self.scheduler.want(
            f"lease of {facts.name}", facts, priority=20, deadline=FOREVER, now=self.clock.now, holder=facts.name
        )
        self.run_for(1.0)
        self.use(facts.name, 1)
        if not busy:
            self.use(facts.name, 0)
        self.run_for(2.5)
        return uid

    def use(self, name: str, in_flight: int, waiting: int = 0, oldest: float = 0.0) -> None:
        self.scheduler.in_use(f"lease of {name}", in_flight, waiting, oldest, self.clock.now)

    def told(self) -> list[Decision]:
        return [call[1] for call in self.of("decided")]  # type: ignore[misc]

    def state(self, uid: str) -> ReplicaState | None:
        replica = self.scheduler.replica(uid)
        return replica.state if replica is not None else None


@pytest.fixture
def node() -> Node:
    return Node(FakeClock(), {HOST: 100})


@pytest.mark.parametrize(
    ("rules", "residency", "trigger"),
    [
        (Rules(idle_ttl_seconds=20.0), Residency(), Trigger.IDLE),
        (Rules(policy=Policy("ttl"), idle_ttl_seconds=20.0), Residency(), Trigger.IDLE),
        (Rules(), Residency(keep_alive_seconds=20.0), Trigger.KEEP_ALIVE),
    ],
)
def test_who_is_idle_for_too_long_goes_with_what_it_was_judged_by(
    rules: Rules, residency: Residency, trigger: Trigger
) -> None:
    node = Node(FakeClock(), {HOST: 100}, rules)
    facts = version("a")
    node.scheduler.set_residency("a", residency, facts, node.clock.now)
    uid = node.load(facts)
    node.run_for(30.0)
    (decision,) = node.told()
    assert (decision.trigger, decision.version, decision.outcome) == (trigger, "a", Plan((uid,)))
    (verdict,) = decision.verdicts()
    assert (verdict.victim, verdict.reason, verdict.candidate.charge) == (True, "", {HOST: 30})
    assert verdict.idle_seconds == pytest.approx(20.0, abs=0.1)
    assert verdict.score == rules.policy.score(verdict.candidate)
    assert "idle for longer" in decision.reason


def test_one_replica_fewer_is_told(node: Node) -> None:
    facts = version("a", 20)
    node.scheduler.set_residency("a", Residency(min_replicas=2, max_replicas=2), facts, node.clock.now)
    node.run_for(5.0)
    node.scheduler.set_residency("a", Residency(min_replicas=1, max_replicas=2), facts, node.clock.now)
    node.run_for(70.0)
    (decision,) = node.told()
    assert (decision.trigger, decision.reason) == (Trigger.SCALE_DOWN, "one replica fewer will do")
    node.scheduler.set_residency("a", Residency(), facts, node.clock.now)
    assert len(node.told()) == 1


@pytest.mark.parametrize("trigger", [Trigger.OVERDRAFT, Trigger.FOREIGN, Trigger.BUDGET])
def test_an_overdraft_names_its_cause_and_everyone_who_was_looked_at(node: Node, trigger: Trigger) -> None:
    first, second = node.load(version("a")), node.load(version("b"))
    now = node.clock.now
    if trigger is Trigger.OVERDRAFT:
        node.use("b", 1)
        node.scheduler.measured(second, {HOST: 44}, now)
        node.scheduler.charge_shared("artifacts/b", {HOST: 30}, now, [second])
    elif trigger is Trigger.FOREIGN:
        node.scheduler.observed({HOST: 45}, now)
    else:
        node.scheduler.configure(node.rules, {HOST: 55}, now)
    (decision,) = node.told()
    assert (decision.trigger, decision.version) == (trigger, "a")
    assert decision.outcome == Plan((first,))
    assert decision.need.memory == {HOST: node.scheduler.ledger.charged[HOST] - node.scheduler.ledger.budget[HOST]}
    assert [v.candidate.version for v in decision.verdicts()] == ["a", "b"]
    assert [v.victim for v in decision.verdicts()] == [True, False]
    assert decision.reason


def test_the_same_wait_is_told_once_whoever_would_go_for_it(node: Node) -> None:
    for name in ("a", "b", "c"):
        node.load(version(name, 30), busy=True)
    node.scheduler.want("x", version("big", 95), priority=10, deadline=FOREVER, now=node.clock.now)
    for _ in range(20):
        for name in ("a", "b", "c"):
            node.use(name, 0)
            node.run_for(0.01)
            node.use(name, 1)
    assert [type(decision.outcome) for decision in node.told()] == [Wait]


def test_who_goes_is_told_what_was_predicted_measured_and_allowed_and_what_to_do(node: Node) -> None:
    facts = VersionFacts("grown", "echo")
    node.scheduler.configure(Rules(prediction=node.rules.prediction), {HOST: 400 * MIB}, node.clock.now)
    node.workers["grown"] = FakeWorker(memory={HOST: 200 * MIB})
    uid = node.load(facts)
    node.scheduler.configure(node.scheduler.rules, {HOST: 100 * MIB}, node.clock.now)
    reason = next(str(call[4]) for call in node.of("changed") if call[3] is ReplicaState.DRAINING)
    assert reason == (
        f"memory is overdrawn, for the budget is smaller now: {100 * MIB} bytes too many on host for the budget of "
        f"{100 * MIB}; it was predicted to take {32 * MIB}, has had at most {200 * MIB}, and {200 * MIB} are charged "
        "to it; declare the memory that it takes, or raise the budget"
    )
    assert node.scheduler.replica(uid) is not None


def test_those_at_work_are_named_when_an_overdraft_lasts(node: Node) -> None:
    uid = node.load(version("a", 60), busy=True)
    node.scheduler.observed({HOST: 60}, node.clock.now)
    assert node.told() == []
    node.run_for(5.0)
    (decision,) = node.told()
    assert (decision.trigger, decision.outcome) == (Trigger.FOREIGN, Plan((uid,), (uid,)))


def test_a_runaway_is_told(node: Node) -> None:
    uid = node.load(version("a", 40))
    node.scheduler.measured(uid, {HOST: 90}, node.clock.now)
    node.scheduler.observed({HOST: 20}, node.clock.now)
    (decision,) = node.told()
    assert (decision.trigger, decision.outcome) == (Trigger.OVERDRAFT, Plan((uid,)))
    assert "90 bytes on host instead of 40" in decision.reason


def test_a_load_that_grows_beyond_its_guess_is_told(node: Node) -> None:
    facts = VersionFacts("guessed", "echo", weight_bytes=10)
    node.scheduler.configure(Rules(prediction=node.rules.prediction), {HOST: 460 * 2**20}, node.clock.now)
    node.load(version("at work", 60 * 2**20), busy=True)
    uid = node.scheduler.want("x", facts, priority=20, deadline=FOREVER, now=node.clock.now)
    node.scheduler.measured(uid, {HOST: 401 * 2**20}, node.clock.now)
    (decision,) = [d for d in node.told() if d.trigger is Trigger.OVERDRAFT]
    assert "planned again" in decision.reason
    assert decision.outcome == Plan((uid,))
    # With room to grow, or it would come back for a little more each time.
    node.run_for(1.0)
    again = [d for d in node.told() if d.trigger is Trigger.PLACEMENT][-1]
    assert again.need.memory[HOST] == 460 * 2**20, "a quarter more than it took, but no more than there can be"
    node.scheduler.configure(Rules(prediction=node.rules.prediction), {HOST: 900 * 2**20}, node.clock.now)
    node.run_for(5.0)
    (grown,) = [r for r in node.scheduler.replicas() if r.version == "guessed"]
    assert grown.granted[HOST] == 460 * 2**20


@pytest.mark.parametrize(("declared", "taken", "said"), [(0, 447, "declared nothing"), (400, 447, "declared less")])
def test_a_load_that_outgrows_all_room_there_is_fails_at_once_and_says_why(
    node: Node, declared: int, taken: int, said: str
) -> None:
    # The ceiling would do, what other programs have left does not.
    node.scheduler.configure(node.rules, {HOST: 600 * MIB}, node.clock.now)
    node.scheduler.observed({HOST: 150 * MIB}, node.clock.now)
    node.scheduler.configure(replace(node.rules, families={"echo": "echo"}), {HOST: 600 * MIB}, node.clock.now)
    node.scheduler.charge_shared("fork-servers/echo", {HOST: 5 * MIB}, node.clock.now)
    facts = VersionFacts("guessed", "echo", declared={HOST: declared * MIB} if declared else {})
    uid = node.scheduler.want("x", facts, priority=20, deadline=FOREVER, now=node.clock.now)
    node.scheduler.measured(uid, {HOST: taken * MIB}, node.clock.now)
    ((_, lease, error),) = node.of("refused")
    assert (lease, type(error)) == ("x", OutOfMemory)
    figures = (said, f"{taken * MIB} bytes on host so far", f"room for {445 * MIB}")
    assert all(words in error.message for words in figures), error  # type: ignore[attr-defined]
    assert node.state(uid) in (S.FAILED, None)
    (decision,) = [d for d in node.told() if d.trigger is Trigger.OVERDRAFT]
    assert decision.reason in error.message  # type: ignore[attr-defined]
    # Who wants it now waits for the others' memory: with that it fits.
    node.scheduler.want("y", facts, priority=20, deadline=node.clock.now + 5, now=node.clock.now)
    node.run_for(6.0)
    (busy,) = [call[2] for call in node.of("refused") if call[1] == "y"]
    assert isinstance(busy, MemoryBusy)
    assert "other programs use the memory" in busy.message
    node.scheduler.want("z", facts, priority=20, deadline=FOREVER, now=node.clock.now)
    node.scheduler.observed({HOST: 0}, node.clock.now)
    node.run_for(2.0)
    assert [call[1] for call in node.of("granted")] == ["z"]


def test_a_cordon_tells_who_goes_and_who_is_asked_to_yield(node: Node) -> None:
    idle, busy = node.load(version("a")), node.load(version("b"), busy=True)
    node.scheduler.cordon("for maintenance", node.clock.now)
    (decision,) = node.told()
    assert (decision.trigger, decision.outcome) == (Trigger.DRAIN, Plan((idle, busy), (busy,)))
    assert decision.reason == "the node is cordoned: for maintenance"
    node.run_for(60.0)
    node.scheduler.cordon("again", node.clock.now)
    assert len(node.told()) == 1, "nobody goes who is not there"


def test_a_replica_that_is_never_idle_yields_to_its_new_profile_after_a_grace(node: Node) -> None:
    old, new = version("a", precision="fp32"), version("a", precision="bf16")
    uid = node.load(old, busy=True)
    node.scheduler.renew(new, node.clock.now)
    node.run_for(59.0)
    assert node.state(uid) is S.LOADED
    assert node.told() == []
    node.run_for(2.0)
    assert node.state(uid) is S.DRAINING
    assert [call[1] for call in node.of("yielding")] == ["lease of a"]
    (decision,) = node.told()
    assert (decision.trigger, decision.outcome) == (Trigger.PROFILE, Plan((uid,), (uid,)))
    assert decision.reason == "replaced: its profile is echo/bf16 now"
    node.use("a", 0)
    node.run_for(1.0)
    assert node.state(uid) is None


def test_what_is_unloaded_by_name_or_crashes_is_no_decision(node: Node) -> None:
    uid = node.load(version("a"))
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    node.crash(node.load(version("b")))
    assert node.state(uid) is None
    assert node.told() == []


def test_what_is_explained_what_is_told_and_who_goes_are_the_same_set(node: Node) -> None:
    small = [node.load(version(f"small-{n}", 5)) for n in range(4)]
    large = node.load(version("large", 70))
    wanted = version("wanted", 60)
    placement = node.scheduler.explain(wanted, 20, node.clock.now)
    node.scheduler.want("x", wanted, priority=20, deadline=FOREVER, now=node.clock.now)
    (decision,) = node.told()
    assert [verdict.candidate.uid for verdict in placement.verdicts if verdict.victim] == [large]
    assert [verdict.candidate.uid for verdict in decision.verdicts() if verdict.victim] == [large]
    assert decision.outcome == Plan((large,))
    assert node.state(large) is S.DRAINING
    assert [node.state(uid) for uid in small] == [S.LOADED] * 4
    assert [verdict.reason for verdict in decision.verdicts()] == [""] * 5, "nothing forbids the small ones to go"


def test_explaining_says_what_is_on_its_way() -> None:
    node = Node(FakeClock(), {HOST: 100})
    node.workers["v"] = FakeWorker(stop_seconds=3.0)
    node.load(version("v", 80))
    node.scheduler.in_use("lease of v", 1, 0, 0.0, node.clock.now)

    def told(name: str, size: int) -> tuple[PlacementOutcome, str, int, int, dict[str, tuple[bool, str]]]:
        placement = node.scheduler.explain(version(name, size), 20, node.clock.now)
        judged = {verdict.candidate.version: (verdict.victim, verdict.reason) for verdict in placement.verdicts}
        return placement.outcome, placement.reason, placement.free[HOST], placement.evictable.get(HOST, 0), judged

    after = PlacementOutcome.FITS_AFTER_EVICTION
    assert told("a", 60) == (after, "it fits once others are gone", 20, 80, {"v": (True, "")})
    node.scheduler.want("x", version("a", 60), priority=20, deadline=FOREVER, now=node.clock.now)
    begun = (after, "it fits once others are gone, and that is on its way", 20, 80, {"v": (True, "")})
    assert told("a", 60) == begun
    waits = told("c", 50)
    assert (waits[0], *waits[2:]) == (PlacementOutcome.WAITS, 20, 20, {"v": (False, "it goes already")})
    assert told("d", 40) == (after, "it fits once what ends already is gone", 20, 20, {"v": (False, "it goes already")})
    node.scheduler.in_use("lease of v", 0, 0, 0.0, node.clock.now)
    node.run_for(1.0)
    assert told("a", 60) == begun
    node.run_for(2.5)
    assert told("a", 60)[1:4] == ("it is being loaded", 40, 0)
