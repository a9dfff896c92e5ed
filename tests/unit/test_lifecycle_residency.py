"""What operators say of versions and of the node: pins, minimums, replicas, keep-alive, cordon, explain."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import FakeClock, FakeEffects, FakeWorker
from modelmora.errors import (
    InvalidArgument,
    InvalidModelFiles,
    LoadFailed,
    ModelLoading,
    ModelMoraError,
    NeverFits,
    NodeCordoned,
    NonsenseFootprint,
    OutOfMemory,
)
from modelmora_lifecycle.domain import (
    HOST,
    EngineLimits,
    EngineProfile,
    Footprint,
    Health,
    HealthState,
    ReplicaState,
    Residency,
    VersionFacts,
)
from modelmora_lifecycle.eviction import Policy, PolicyName
from modelmora_lifecycle.ledger import Bounds
from modelmora_lifecycle.placement import PlacementOutcome
from modelmora_lifecycle.prediction import Measured, Prediction, setup_of
from modelmora_lifecycle.scaling import NO_PRESSURE, Pressure, Report, Scaling, one_more, threads
from modelmora_lifecycle.scheduler import Rules

FOREVER = float("inf")
S = ReplicaState


def version(name: str, host: int = 30, **other: int) -> VersionFacts:
    return VersionFacts(name, "echo", declared={HOST: host, **other})


class Node(FakeEffects):
    """A node whose leases are looked up by name."""

    def want(
        self,
        lease: str,
        facts: VersionFacts,
        *,
        priority: int = 20,
        holder: str = "",
        if_loaded: bool = False,
        load_nothing: bool = False,
        deadline: float = FOREVER,
    ) -> str:
        return self.scheduler.want(
            lease,
            facts,
            priority=priority,
            deadline=deadline,
            now=self.clock.now,
            holder=holder,
            if_loaded=if_loaded,
            load_nothing=load_nothing,
        )

    def use(self, lease: str, in_flight: int = 1, waiting: int = 0, oldest: float = 0.0) -> None:
        self.scheduler.in_use(lease, in_flight, waiting, oldest, self.clock.now)

    def keep(self, facts: VersionFacts, **how: object) -> None:
        self.scheduler.set_residency(facts.name, Residency(**how), facts, self.clock.now)  # type: ignore[arg-type]

    def press(self, lease: str, seconds: float = 5.0, oldest: float = 3.0) -> None:
        """Something waits behind a busy lease for so long."""
        for _ in range(int(seconds)):
            self.use(lease, 1, 4, oldest)
            self.run_for(1.0)

    def granted_to(self, lease: str) -> str:
        return next((str(call[2]) for call in reversed(self.of("granted")) if call[1] == lease), "")

    def error_of(self, lease: str) -> ModelMoraError | None:
        return next((call[2] for call in self.of("refused") if call[1] == lease), None)  # type: ignore[misc]

    def states(self, model: str) -> list[ReplicaState]:
        return [replica.state for replica in self.scheduler.replicas() if replica.version == model]

    def starts(self, model: str) -> int:
        return sum(call[2] == model for call in self.of("start"))


@pytest.fixture
def node() -> Node:
    return Node(FakeClock(), {HOST: 100})


# Kept in memory.


def test_a_pinned_version_is_loaded_and_never_evicted(node: Node) -> None:
    node.keep(version("p", 60), pinned=True)
    node.run_for(10.0)
    assert node.states("p") == [S.LOADED]
    node.want("x", version("a", 50))
    node.run_for(10.0)
    assert node.states("p") == [S.LOADED]
    assert isinstance(node.error_of("x"), NeverFits)
    node.keep(version("p", 60))
    node.want("y", version("a", 50))
    node.run_for(2.0)
    assert node.granted_to("y")


def test_a_pin_that_is_taken_back_is_gone_wherever_it_came_from(node: Node) -> None:
    facts = version("a", 60)

    def load(lease: str) -> None:
        node.scheduler.want(lease, facts, priority=20, deadline=FOREVER, now=node.clock.now, pin=True, visit=True)

    def pinned() -> list[bool]:
        return [replica.pinned for replica in node.scheduler.replicas() if replica.version == "a"]

    load("x")
    node.run_for(5.0)
    assert pinned() == [True]
    node.keep(facts, keep_alive_seconds=500.0)
    assert pinned() == [True], "nothing was said of its pin"
    node.scheduler.set_residency("a", Residency(), facts, node.clock.now, repin=True)
    assert pinned() == [False]
    assert node.of("changed")[-1][1:4] == (node.scheduler.replicas()[0].uid, S.LOADED, S.LOADED), "watchers hear it"
    node.want("y", version("b", 60))
    node.run_for(5.0)
    node.use("y")
    load("z")
    node.keep(facts, pinned=True)
    assert (node.states("a"), pinned()) == ([S.UNLOADED], [True])
    node.scheduler.set_residency("a", Residency(), facts, node.clock.now, repin=True)
    node.scheduler.release("y", node.clock.now)
    node.run_for(5.0)
    assert (node.states("a"), pinned()) == ([S.LOADED], [False]), "also who waited for its memory"


def test_the_minimum_of_replicas_is_reached_and_kept(node: Node) -> None:
    node.keep(version("a", 20), min_replicas=2, max_replicas=3)
    assert node.states("a") == [S.LOADING, S.LOADING]
    node.run_for(5.0)
    node.want("x", version("b", 60))
    node.run_for(2.0)
    assert node.granted_to("x")
    node.want("y", version("c", 50))
    node.run_for(5.0)
    assert node.states("a") == [S.LOADED, S.LOADED]
    assert node.states("b") == []
    node.crash(next(r.uid for r in node.scheduler.replicas() if r.version == "a"))
    node.run_for(3.0)
    assert node.states("a") == [S.LOADED, S.LOADED]


def test_a_minimum_takes_the_place_of_the_idle_and_in_time_of_the_busy(node: Node) -> None:
    node.want("x", version("a", 80), priority=30)
    node.run_for(5.0)
    node.use("x")
    node.keep(version("m", 50), min_replicas=1)
    node.run_for(15.0)
    assert not node.of("yielding")
    node.run_for(10.0)
    assert node.of("yielding")
    node.scheduler.release("x", node.clock.now)
    node.run_for(2.0)
    assert node.states("m") == [S.LOADED]


def test_a_minimum_that_does_not_fit_is_said_and_does_no_harm(node: Node) -> None:
    node.keep(version("p", 60), pinned=True)
    node.run_for(2.0)
    node.keep(version("m", 50), min_replicas=1)
    node.run_for(5.0)
    assert node.states("m") == []
    assert "needs 50 bytes" in node.scheduler.unkept()["m"]
    node.keep(version("p", 60))
    node.run_for(5.0)
    assert node.states("m") == [S.LOADED]
    assert node.scheduler.unkept() == {}


def test_a_preload_happens_once(node: Node) -> None:
    node.keep(version("a", 60), preload=True)
    node.run_for(5.0)
    assert node.states("a") == [S.LOADED]
    node.want("x", version("b", 60))
    node.run_for(5.0)
    assert node.granted_to("x")
    node.scheduler.release("x", node.clock.now)
    node.run_for(50.0)
    node.keep(version("a", 60), preload=True, keep_alive_seconds=500.0)
    node.run_for(50.0)
    assert node.states("a") == []
    assert node.starts("a") == 1


def test_a_preload_is_tried_again_until_it_was_loaded(node: Node) -> None:
    node.workers["a"] = FakeWorker(load_seconds=0.1, fails=True)
    node.keep(version("a"), preload=True)
    begin = node.clock.now
    node.run_for(20.0)
    # The backoff of what is pinned: 1, 2, 4 and 8 s, up to a limit.
    assert node.starts("a") == 5
    assert "no such luck" in node.scheduler.unkept()["a"]
    assert node.scheduler.unstable(node.clock.now) == {"a": (5, "no such luck")}
    node.run_until(begin + 400.0)
    assert 15 <= node.starts("a") <= 18
    node.workers["a"] = FakeWorker()
    node.run_for(32.0)
    assert node.states("a") == [S.LOADED]
    assert node.scheduler.unkept() == {}
    starts = node.starts("a")
    node.want("x", version("b", 90))
    node.run_for(200.0)
    assert node.granted_to("x")
    assert node.states("a") == []
    assert node.starts("a") == starts, "it was loaded once, and that was all"


def test_a_preload_that_fails_ends_when_the_operator_takes_it_back(node: Node) -> None:
    node.workers["a"] = FakeWorker(load_seconds=0.1, fails=True)
    node.keep(version("a"), preload=True)
    node.run_for(5.0)
    node.keep(version("a"))
    starts = node.starts("a")
    node.run_for(200.0)
    assert node.starts("a") == starts
    node.keep(version("a"), preload=True, keep_alive_seconds=5.0)
    node.keep(version("a"), keep_alive_seconds=5.0)
    node.run_for(200.0)
    assert node.starts("a") <= starts + 1


def test_a_preload_that_does_not_fit_beside_a_pin_is_loaded_when_the_pin_goes(node: Node) -> None:
    node.keep(version("p", 60), pinned=True)
    node.run_for(2.0)
    node.keep(version("a", 50), preload=True)
    node.run_for(50.0)
    assert "needs 50 bytes" in node.scheduler.unkept()["a"]
    node.keep(version("p", 60))
    node.run_for(5.0)
    assert node.states("a") == [S.LOADED]


def test_a_preload_is_done_when_a_replica_that_was_going_comes_back(node: Node) -> None:
    node.want("x", version("a", 60))
    node.run_for(5.0)
    node.use("x")
    node.want("y", version("b", 60), priority=30)
    assert node.states("a") == [S.DRAINING]
    node.keep(version("a", 60), preload=True)
    node.scheduler.release("y", node.clock.now)
    assert node.states("a") == [S.LOADED]
    node.scheduler.release("x", node.clock.now)
    node.want("z", version("c", 60))
    node.run_for(60.0)
    assert node.granted_to("z")
    node.scheduler.release("z", node.clock.now)
    node.run_for(60.0)
    assert node.starts("a") == 1


def test_what_is_unloaded_by_name_stays_away_until_it_is_wanted(node: Node) -> None:
    node.keep(version("a"), min_replicas=1)
    node.run_for(2.0)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(20.0)
    assert node.states("a") == []
    node.want("x", version("a"))
    node.run_for(2.0)
    node.scheduler.release("x", node.clock.now)
    node.run_for(20.0)
    assert node.states("a") == [S.LOADED]


def test_a_version_whose_files_nobody_reads_is_not_loaded_again_and_again(node: Node) -> None:
    node.workers["a"] = FakeWorker(hangs=True)
    node.keep(version("a"), min_replicas=1)
    (replica,) = node.scheduler.replicas()
    node.scheduler.load_failed(replica.uid, InvalidModelFiles("no weights"), node.clock.now)
    node.run_for(500.0)
    assert node.starts("a") == 1


def test_keep_alive_is_a_matter_of_the_version() -> None:
    node = Node(FakeClock(), {HOST: 100}, Rules(idle_ttl_seconds=30))
    node.keep(version("short"), keep_alive_seconds=5.0)
    node.keep(version("long"), keep_alive_seconds=100.0)
    node.keep(version("none"), keep_alive_seconds=0.0)
    for name in ("short", "long", "none", "other"):
        node.want(name, version(name, 20))
    node.run_for(2.5)
    assert node.states("none") == [S.LOADED], "who had it loaded must get to use it"
    node.run_for(0.8)
    assert node.states("none") == []
    node.run_for(3.0)
    assert node.states("short") == []
    assert node.states("other") == [S.LOADED]
    node.run_for(26.0)
    assert node.states("other") == []
    assert node.states("long") == [S.LOADED]


def test_without_facts_a_residency_waits_for_the_first_want(node: Node) -> None:
    node.scheduler.set_residency("a", Residency(min_replicas=2, max_replicas=2), None, node.clock.now)
    assert node.states("a") == []
    node.want("x", version("a"))
    node.run_for(2.0)
    assert node.states("a") == [S.LOADED, S.LOADED]


@pytest.mark.parametrize(
    "wrong", [{"max_replicas": 0}, {"min_replicas": 3}, {"max_replicas": 65}, {"keep_alive_seconds": -1}]
)
def test_a_residency_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        Residency(**wrong)  # type: ignore[arg-type]


# Replicas.


def scaled(**rules: object) -> Node:
    node = Node(FakeClock(), {HOST: 100}, Rules(**rules))  # type: ignore[arg-type]
    node.keep(version("a"), max_replicas=3)
    node.want("x", version("a"), holder="h")
    node.run_for(2.0)
    return node


def test_a_queue_that_waits_gets_another_replica_and_its_holder_is_invited() -> None:
    node = scaled()
    node.press("x", 2.0)
    assert node.starts("a") == 1
    node.press("x", 1.0)
    assert node.states("a") == [S.LOADED, S.LOADED]
    (invitation,) = node.of("invite")
    assert invitation[1] == "x"
    node.want("y", version("a"), holder="h")
    assert node.granted_to("y") == invitation[2] != node.granted_to("x")


def test_an_invitation_that_was_lost_with_its_lease_is_told_again_to_who_has_work() -> None:
    node = scaled()
    node.press("x", 3.0)
    assert [invitation[1] for invitation in node.of("invite")] == ["x"]
    node.scheduler.release("x", node.clock.now)
    node.want("y", version("a"), holder="h")
    node.run_for(5.0)
    assert len(node.of("invite")) == 1
    node.press("y", 1.0)
    last = node.of("invite")[-1]
    assert last[1] == "y"
    assert last[2] != node.granted_to("y")


def test_who_gives_an_idle_lease_back_is_not_invited_to_take_it_again() -> None:
    node = scaled()
    node.press("x", 3.0)
    node.want("y", version("a"), holder="h")
    node.press("x", 1.0)
    node.use("x", 0)
    told = len(node.of("invite"))
    node.scheduler.release("y", node.clock.now)
    node.run_for(2.0)
    assert len(node.of("invite")) == told
    node.press("x", 1.0)
    assert len(node.of("invite")) == told + 1


def test_leases_of_one_holder_go_to_different_replicas() -> None:
    node = scaled()
    node.want("y", version("a"), holder="h")
    assert node.granted_to("y") == ""
    node.run_for(30.0)
    assert node.states("a") == [S.LOADED], "a holder that wants more is no reason for another replica"
    node.want("z", version("a"), holder="other")
    assert node.granted_to("z") == node.granted_to("x")
    node.scheduler.release("x", node.clock.now)
    assert node.granted_to("y")


def test_a_replica_more_is_not_bought_with_a_busy_or_lately_used_version() -> None:
    node = scaled()
    node.want("b", version("b", 60))
    node.run_for(5.0)
    node.press("x", 20.0)
    assert node.starts("a") == 1
    node.use("b")
    node.press("x", 80.0)
    assert node.starts("a") == 1
    node.use("b", 0)
    node.press("x", 50.0)
    assert node.starts("a") == 1
    node.press("x", 30.0)
    assert node.starts("a") == 2, "what was idle for a minute makes room"


def test_replicas_come_one_by_one_and_go_by_idleness() -> None:
    node = scaled()
    node.press("x", 4.0)
    assert node.starts("a") == 2
    node.press("x", 20.0)
    assert node.starts("a") == 2, "one of them is idle"
    node.want("y", version("a"), holder="h")
    node.use("y")
    node.press("x", 1.0)
    assert node.starts("a") == 3
    node.want("z", version("a"), holder="h")
    node.use("z")
    node.press("x", 50.0)
    assert node.starts("a") == 3, "no more than the maximum"
    node.use("y", 0)
    node.use("z", 0)
    node.run_for(59.0)
    assert len(node.states("a")) == 3
    node.run_for(2.0)
    assert node.states("a") == [S.LOADED]


def test_the_next_replica_waits_for_what_the_last_one_changes() -> None:
    node = scaled()
    node.press("x", 4.0)
    node.want("y", version("a"), holder="h")
    node.use("y")
    node.press("x", 7.0)
    assert node.starts("a") == 2, "the last change was a moment ago"
    node.press("x", 3.0)
    assert node.starts("a") == 3


def test_a_short_wait_is_no_reason() -> None:
    node = scaled()
    for _ in range(10):
        node.press("x", 2.0)
        node.use("x", 1, 0, 0.0)
        node.run_for(4.0)
    node.press("x", 20.0, oldest=0.5)
    assert node.starts("a") == 1


@pytest.mark.parametrize("batch_seconds", [1.5, 3.0, 10.0])
def test_a_queue_that_waits_scales_within_seconds_however_long_a_batch_is(batch_seconds: float) -> None:
    node = scaled()
    start = node.clock.now
    while node.starts("a") == 1:
        assert node.clock.now - start <= 6.0
        # Who takes a batch takes all that waits; a moment later the oldest that has come since is young.
        waited = (node.clock.now - start) % batch_seconds
        node.use("x", 1, 4 if waited else 0, waited)
        node.run_for(0.5)


def test_batches_of_a_second_that_wait_for_each_other_scale() -> None:
    node = scaled()
    node.press("x", 4.0, oldest=1.0)
    assert node.starts("a") == 2, "who is answered waits for one whole batch before his own"


def test_who_failed_to_load_tries_one_replica_at_a_time(node: Node) -> None:
    # Day 15,641 of the long run: the second one asked a neighbour to yield, again and again, in vain.
    node.want("busy", version("a", 53))
    node.run_for(5.0)
    node.use("busy")
    node.workers["bad"] = FakeWorker(fails=True)
    node.keep(version("bad", 31), min_replicas=2, max_replicas=2)
    node.run_for(3.0)
    node.log.clear()
    node.run_for(200.0)
    assert node.starts("bad") >= 3
    assert node.of("yielding") == []
    node.workers["bad"] = FakeWorker()
    node.run_for(60.0)
    assert S.LOADED in node.states("bad")


def test_what_pinned_models_come_to_share_is_told_to_who_waits(node: Node) -> None:
    # Day 23,021 of the long run: a want that could never be met was forgotten.
    node.keep(version("p", 80), pinned=True)
    node.run_for(5.0)
    node.workers["q"] = FakeWorker(hangs=True)
    node.want("q", version("q", 20))
    node.want("x", version("x", 20))
    assert not node.of("refused"), "q may go some day"
    (pinned,) = [replica.uid for replica in node.scheduler.replicas() if replica.version == "p"]
    node.scheduler.charge_shared("artifacts/p", {HOST: 10}, node.clock.now, [pinned])
    told = {call[1]: type(call[2]) for call in node.of("refused")}
    assert told["x"] is NeverFits


def test_replicas_beyond_a_smaller_maximum_go(node: Node) -> None:
    node.keep(version("a", 20), min_replicas=3, max_replicas=3)
    node.run_for(5.0)
    node.keep(version("a", 20), min_replicas=0, max_replicas=1)
    node.run_for(5.0)
    assert node.states("a") == [S.LOADED]


@pytest.mark.parametrize(
    ("reports", "waits"),
    [
        ([], False),
        ([Report(0, 9.0, 100.0)], False),
        ([Report(5, 0.9, 100.0)], False),
        ([Report(5, 1.0, 100.0)], True),
        ([Report(5, 9.0, 96.0)], False),
        ([Report(0, 0.0, 100.0), Report(1, 2.0, 99.0)], True),
    ],
)
def test_pressure_is_a_fresh_report_of_a_long_wait(reports: list[Report], waits: bool) -> None:
    assert (NO_PRESSURE.after(reports, Scaling(), 100.0) != NO_PRESSURE) is waits


def test_pressure_outlives_a_report_of_a_short_wait_but_not_silence() -> None:
    pressure = NO_PRESSURE.after([Report(5, 1.0, 100.0)], Scaling(), 100.0)
    pressure = pressure.after([Report(5, 0.1, 101.0)], Scaling(), 101.0)
    pressure = pressure.after([Report(5, 1.5, 102.0)], Scaling(), 102.0)
    assert pressure == Pressure(100.0, 102.0)
    assert pressure.after([], Scaling(), 105.0) == pressure
    assert pressure.after([], Scaling(), 105.1) == NO_PRESSURE


def test_one_more_needs_time_and_a_pause() -> None:
    assert not one_more(NO_PRESSURE, -FOREVER, Scaling(), 100.0)
    assert not one_more(Pressure(98.5, 100.0), -FOREVER, Scaling(), 100.0)
    assert not one_more(Pressure(90.0, 91.5), -FOREVER, Scaling(), 100.0)
    assert one_more(Pressure(98.0, 100.0), -FOREVER, Scaling(), 100.0)
    assert not one_more(Pressure(98.0, 100.0), 91.0, Scaling(), 100.0)


@pytest.mark.parametrize(
    ("cores", "replicas", "declared", "expected"),
    [(8, 1, 0, 0), (8, 2, 0, 4), (8, 3, 0, 2), (2, 4, 0, 1), (0, 4, 0, 0), (8, 4, 6, 6)],
)
def test_threads_of_all_replicas_together_are_no_more_than_the_cores(
    cores: int, replicas: int, declared: int, expected: int
) -> None:
    assert threads(cores, replicas, declared) == expected
    if not declared and cores >= replicas:
        assert threads(cores, replicas, 0) * replicas <= cores
    assert threads(cores, 1, declared, limited=True) == (declared or cores), "the engine would count cores we have not"


def test_a_replica_is_started_with_its_threads() -> None:
    node = Node(FakeClock(), {HOST: 100}, Rules(cpu_cores=8))
    node.keep(version("a"), max_replicas=4)
    node.want("x", version("a"))
    node.want("y", replace(version("b"), cpu_threads=5))
    assert [replica.cpu_threads for replica in node.scheduler.replicas()] == [2, 5]


# One load after another.


def test_no_more_loads_at_a_time_than_the_device_takes() -> None:
    node = Node(FakeClock(), {HOST: 100}, Rules(load_concurrency=2))
    for name in ("a", "b", "c"):
        node.want(name, version(name, 20))
    assert [node.states(name)[0] for name in ("a", "b", "c")] == [S.LOADING, S.LOADING, S.UNLOADED]
    node.want("d", version("d", 45))
    node.run_for(1.0)
    assert node.states("c") == [S.LOADING]
    assert node.states("d") == [S.UNLOADED], "the memory of a load that waits for its place is not given away"


def test_memory_that_is_spoken_for_is_not_given_to_a_newcomer_in_a_place() -> None:
    node = Node(FakeClock(), {HOST: 100, "cuda:0": 100}, Rules(load_concurrency=1))
    node.want("a", version("a", 10, **{"cuda:0": 60}))
    node.want("b", version("b", 10, **{"cuda:0": 40}))
    assert node.scheduler.ready_in("b", node.clock.now) is None
    node.run_for(0.5)
    assert node.states("b") == [S.UNLOADED]
    node.run_for(0.6)
    assert node.states("b") == [S.LOADING]


def test_a_version_that_backs_off_keeps_no_memory_from_others() -> None:
    node = Node(FakeClock(), {HOST: 100}, Rules(load_concurrency=1))
    node.workers["bad"] = FakeWorker(fails=True)
    node.keep(version("bad", 20), min_replicas=2, max_replicas=2)
    node.keep(version("good", 90), min_replicas=1)
    node.run_for(2.5)  # the second replica had a promise when the load of the first failed
    assert node.states("good") == [S.LOADED]
    assert node.starts("bad") == 1


# Cordon.


def test_a_cordoned_node_empties_and_loads_nothing(node: Node) -> None:
    node.want("x", version("a"))
    node.want("idle", version("b"))
    node.run_for(2.0)
    node.use("x")
    node.workers["c"] = FakeWorker(load_seconds=50)
    node.want("z", version("c"))
    node.scheduler.cordon("new memory", node.clock.now)
    assert isinstance(node.error_of("z"), NodeCordoned)
    node.want("w", version("a"))
    error = node.error_of("w")
    assert isinstance(error, NodeCordoned)
    assert "new memory" in error.message
    assert node.of("yielding")
    node.run_for(0.5)
    assert node.states("b") == node.states("c") == []
    assert node.states("a") == [S.DRAINING]
    node.use("x", 0)
    node.run_for(0.5)
    assert node.scheduler.replicas() == []
    assert node.scheduler.cordoned == "new memory"


def test_taking_the_cordon_back_loads_what_is_kept(node: Node) -> None:
    node.keep(version("m"), min_replicas=1)
    node.keep(version("p"), preload=True)
    node.run_for(2.0)
    node.scheduler.cordon("", node.clock.now)
    node.run_for(50.0)
    assert node.scheduler.replicas() == []
    node.scheduler.uncordon(node.clock.now)
    node.run_for(2.0)
    assert node.states("m") == node.states("p") == [S.LOADED]


def test_a_cordoned_node_does_not_finish_what_its_queues_asked_for() -> None:
    node = scaled()
    node.workers["a"] = FakeWorker(load_seconds=50)
    node.press("x", 3.0)
    assert node.states("a") == [S.LOADED, S.LOADING]
    node.scheduler.cordon("", node.clock.now)
    starts = node.starts("a")
    node.run_for(60.0)
    assert node.starts("a") == starts
    assert node.scheduler.replicas() == []


def test_a_victim_that_was_not_needed_serves_who_waits_for_it(node: Node) -> None:
    node.scheduler.observed({HOST: 40}, node.clock.now)
    for lease, facts in (("x", version("a", 20)), ("y", version("b", 40))):
        node.want(lease, facts)
        node.run_for(5.0)
        node.use(lease)
    node.want("new", version("new", 55), priority=30)
    assert node.states("a") == [S.DRAINING]
    node.want("again", version("a", 20))
    node.crash(node.granted_to("y"))
    assert S.LOADED not in node.states("a")
    node.scheduler.observed({}, node.clock.now)
    assert node.states("new") == [S.LOADING]
    assert node.granted_to("again") == node.granted_to("x")
    assert node.starts("a") == 1


# Budgets and overdrafts.


def test_a_smaller_budget_makes_the_idle_go_and_in_time_the_busy(node: Node) -> None:
    node.want("x", version("a", 40))
    node.want("y", version("b", 40))
    node.run_for(5.0)
    node.use("x")
    node.scheduler.configure(node.rules, {HOST: 50}, node.clock.now)
    assert node.states("b") == [S.DRAINING]
    assert node.states("a") == [S.LOADED]
    node.scheduler.configure(node.rules, {HOST: 30}, node.clock.now)
    node.run_for(4.0)
    assert not node.of("yielding")
    node.run_for(2.0)
    assert node.of("yielding"), "a machine without memory ends it without asking"


def test_who_takes_twice_what_it_declared_is_stopped_and_its_neighbours_stay(node: Node) -> None:
    node.want("x", version("leak", 40))
    node.want("y", version("b", 45))
    node.run_for(5.0)
    node.use("x")
    node.scheduler.measured(node.granted_to("x"), {HOST: 54}, node.clock.now)
    assert node.states("b") == [S.LOADED]
    assert node.scheduler.ledger.charged == {HOST: 100}, "with as much room above as there is"
    node.scheduler.measured(node.granted_to("x"), {HOST: 58}, node.clock.now)
    assert node.states("leak") == [S.LOADED]
    assert node.states("b") == [S.DRAINING], "a little more is not its fault"
    node.want("z", version("c", 20))
    node.run_for(5.0)
    node.scheduler.measured(node.granted_to("x"), {HOST: 81}, node.clock.now)
    assert node.states("leak") == [S.FAILED]
    assert node.states("c") == [S.LOADED]
    assert node.of("revoked")[-1][3] is True
    assert "instead of 40" in str(node.of("revoked")[-1][2])


def test_who_takes_twice_what_it_declared_while_loading_is_stopped(node: Node) -> None:
    node.want("y", version("b", 40))
    node.run_for(5.0)
    node.workers["leak"] = FakeWorker(load_seconds=50)
    node.want("x", version("leak", 40))
    uid = next(r.uid for r in node.scheduler.replicas() if r.version == "leak")
    node.scheduler.measured(uid, {HOST: 58}, node.clock.now)
    assert node.states("leak") == [S.LOADING]
    assert node.scheduler.ledger.charge_of(uid) == {HOST: 58}
    node.scheduler.measured(uid, {HOST: 81}, node.clock.now)
    assert isinstance(node.error_of("x"), LoadFailed)
    assert node.states("b") == [S.LOADED]
    node.run_for(5.0)
    node.want("z", version("leak", 40))
    assert node.scheduler.explain(version("leak", 40), 20, node.clock.now).need == {HOST: 81}


def test_what_requests_once_took_does_not_keep_a_model_out_for_ever(node: Node) -> None:
    learned = Measured("a", setup_of(version("a")), base={HOST: 30}, growth={HOST: 500}, load_seconds=(1.0,))
    node.scheduler.remember(learned)
    node.scheduler.observed({HOST: 15}, node.clock.now)
    node.keep(version("p", 20), pinned=True)
    node.run_for(2.0)
    assert node.scheduler.explain(version("a"), 20, node.clock.now).need == {HOST: 65}, "all but the pinned and others'"
    node.want("x", version("a"))
    assert node.scheduler.ledger.charged == {HOST: 85}
    node.run_for(2.0)
    assert node.granted_to("x")
    node.want("y", version("b", 84))
    assert isinstance(node.error_of("y"), NeverFits)
    node.scheduler.remember(replace(learned, version="c", setup=setup_of(version("c")), base={HOST: 81}))
    node.want("z", version("c"))
    assert isinstance(node.error_of("z"), NeverFits), "right after its load it takes more than there is"


def test_a_model_that_fitted_once_fits_again(node: Node) -> None:
    node.workers["a"] = FakeWorker(memory={HOST: 96})
    node.want("x", version("a", 95))
    node.run_for(2.0)
    assert node.granted_to("x")
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    node.want("y", version("a", 95))
    assert node.scheduler.ledger.charged == {HOST: 100}, "all there is, and no 10 % more than it ever took"
    node.run_for(2.0)
    assert node.granted_to("y")


def test_nobody_goes_for_memory_that_was_never_taken(node: Node) -> None:
    node.want("y", version("b", 55))
    node.run_for(5.0)
    limits, facts = EngineLimits(max_batch_tokens=1000), VersionFacts("a", "echo")
    seen = Measured("a", setup_of(facts), limits, base={HOST: 30}, growth={HOST: 10}, batch_tokens=10)
    node.scheduler.remember(seen)
    node.want("x", facts)
    assert node.states("b") == [S.LOADED]
    assert node.scheduler.ledger.charged == {HOST: 100}, "as much of what it may come to take as there is"
    node.run_for(5.0)
    node.scheduler.remember(replace(seen, version="c", setup=setup_of(replace(facts, name="c"))))
    node.want("z", replace(facts, name="c"))
    assert node.states("b") == [S.DRAINING], "what it did take it is given"


def grown(node: Node, *sizes: tuple[str, int]) -> None:
    """Models in memory, of which `a` has taken 41 of the 40 bytes that it declared, and is charged 45."""
    for name, size in sizes:
        node.want(name, version(name, size))
        node.run_for(5.0)
    node.scheduler.measured(node.granted_to("a"), {HOST: 41}, node.clock.now)
    assert node.scheduler.ledger.charge_of(node.granted_to("a")) == {HOST: 45}


def test_nobody_goes_for_room_above_what_was_ever_taken(node: Node) -> None:
    grown(node, ("a", 40), ("c", 30))
    node.want("x", version("b", 27))
    assert node.states("a") == node.states("c") == [S.LOADED]
    assert node.scheduler.ledger.charges[node.granted_to("a")] == {HOST: 43}, "as much of it as is short"
    node.run_for(5.0)
    node.want("y", version("d", 3))
    node.run_for(5.0)
    assert node.granted_to("x")
    assert node.states("c") == [] or node.states("a") == [], "what it has taken stays charged"


def test_nobody_goes_for_such_room_when_others_take_memory_or_the_budget_shrinks(node: Node) -> None:
    grown(node, ("a", 40), ("c", 30))
    node.scheduler.observed({HOST: 27}, node.clock.now)
    node.scheduler.configure(node.rules, {HOST: 98}, node.clock.now)
    node.run_for(60.0)
    assert node.scheduler.ledger.charges == {node.granted_to("a"): {HOST: 41}, node.granted_to("c"): {HOST: 30}}
    assert node.states("a") == node.states("c") == [S.LOADED]


def test_who_goes_is_charged_what_it_took_and_nobody_waits_for_more(node: Node) -> None:
    grown(node, ("a", 40), ("c", 30))
    node.use("a")
    node.scheduler.unload("a", force=True, now=node.clock.now)
    going = node.granted_to("a") or ""
    assert node.scheduler.ledger.charge_of(going) == {HOST: 41}
    node.want("x", version("b", 28))
    assert node.states("b") == [S.LOADING], "what the other might have come to take is free"
    node.run_for(1.5)
    node.scheduler.release("x", node.clock.now)
    node.scheduler.unload("b", force=True, now=node.clock.now)
    node.run_for(1.0)
    node.scheduler.measured(going, {HOST: 44}, node.clock.now)
    assert (node.states("a"), node.scheduler.ledger.charge_of(going)) == ([S.DRAINING], {HOST: 44})


def test_such_room_does_not_exceed_the_budget_while_others_go(node: Node) -> None:
    for name, size in (("a", 40), ("b", 57)):
        node.want(name, version(name, size))
        node.run_for(5.0)
    node.use("b")
    node.scheduler.unload("b", force=True, now=node.clock.now)
    node.scheduler.measured(node.granted_to("a"), {HOST: 41}, node.clock.now)
    assert node.scheduler.ledger.charges == {node.granted_to("a"): {HOST: 43}, node.granted_to("b"): {HOST: 57}}


def test_nobody_waits_for_who_goes_while_such_room_would_do(node: Node) -> None:
    grown(node, ("a", 40), ("c", 50))
    node.use("c")
    node.scheduler.unload("c", force=True, now=node.clock.now)
    node.want("x", version("b", 10))
    assert (node.states("b"), node.states("c")) == ([S.UNLOADED], [S.DRAINING])
    assert node.scheduler.ledger.charge_of(node.granted_to("a")) == {HOST: 45}, "it would not do: it stays"
    node.want("y", version("d", 9))
    assert (node.states("d"), node.states("c")) == ([S.LOADING], [S.DRAINING])
    assert node.scheduler.ledger.charge_of(node.granted_to("a")) == {HOST: 41}


def test_explaining_counts_such_room_as_free(node: Node) -> None:
    grown(node, ("a", 40), ("c", 30))
    placement = node.scheduler.explain(version("b", 27), 20, node.clock.now)
    assert (placement.outcome, placement.free, placement.evictable) == (PlacementOutcome.FITS, {HOST: 27}, {HOST: 73})


def test_such_room_of_a_pinned_model_makes_nothing_too_large(node: Node) -> None:
    grown(node, ("a", 40))
    node.keep(version("a", 40), pinned=True)
    node.want("x", version("b", 59))
    node.run_for(5.0)
    assert node.granted_to("x")
    node.want("y", version("c", 60))
    assert isinstance(node.error_of("y"), NeverFits)


def test_nobody_goes_for_the_room_that_a_load_is_given_beyond_what_it_took(node: Node) -> None:
    learned = Measured("a", setup_of(version("a")), base={HOST: 40}, loading={HOST: 42})
    node.scheduler.remember(learned)
    node.want("c", version("c", 30))
    node.run_for(5.0)
    node.workers["a"] = FakeWorker(load_seconds=50.0)
    node.want("x", version("a"))
    (loading,) = [replica for replica in node.scheduler.replicas() if replica.version == "a"]
    assert node.scheduler.ledger.charge_of(loading.uid) == {HOST: 44}
    node.want("y", version("b", 28))
    assert (node.states("b"), node.states("c")) == ([S.LOADING], [S.LOADED])
    assert node.scheduler.ledger.charge_of(loading.uid) == {HOST: 42}
    node.want("z", version("d", 1))
    assert node.states("c") == [S.DRAINING]
    assert node.scheduler.ledger.charge_of(loading.uid) == {HOST: 42}, "so much it took while it was loaded before"


def test_what_is_promised_is_not_withdrawn_for_room_above_what_was_taken(node: Node) -> None:
    for name, size in (("a", 40), ("v", 30)):
        node.want(name, version(name, size))
        node.run_for(5.0)
        node.use(name)
    node.keep(version("a", 40), pinned=True)
    node.want("x", version("b", 59))
    assert node.states("v") == [S.DRAINING]
    node.scheduler.measured(node.granted_to("a"), {HOST: 41}, node.clock.now)
    assert node.scheduler.ledger.charge_of(node.granted_to("a")) == {HOST: 41}
    assert len(node.of("yielding")) == 1, "its victim was not let go and taken again"
    node.use("v", 0)
    node.run_for(10.0)
    assert node.granted_to("x")


def test_a_load_that_was_guessed_too_small_is_planned_again(node: Node) -> None:
    node.scheduler.configure(replace(node.rules, prediction=Prediction(bare_overhead_bytes=20)), {HOST: 100}, 1000.0)
    node.want("y", version("b", 70))
    node.run_for(5.0)
    node.use("y")
    node.workers["a"] = FakeWorker(load_seconds=50)
    node.want("x", VersionFacts("a", "echo"))
    uid = next(r.uid for r in node.scheduler.replicas() if r.version == "a")
    node.scheduler.measured(uid, {HOST: 60}, node.clock.now)
    assert node.states("a")[0] is S.FAILED
    assert node.error_of("x") is None
    node.scheduler.release("y", node.clock.now)
    node.run_for(0.5)
    replica = next(r for r in node.scheduler.replicas() if r.version == "a")
    assert replica.state is S.LOADING
    assert replica.granted == {HOST: 75}, "with room to grow"


@pytest.mark.parametrize("memory", [{HOST: -1}, {HOST: 1001}, {"cuda:7": 5}])
def test_nonsense_of_an_engine_fails_the_load_by_name(memory: dict[str, int]) -> None:
    node = Node(FakeClock(), {HOST: 100})
    node.scheduler.configure(node.rules, Bounds({HOST: 100}, total={HOST: 1000}), node.clock.now)
    node.workers["a"] = FakeWorker(hangs=True)
    node.want("x", version("a"))
    (replica,) = node.scheduler.replicas()
    node.scheduler.loaded(replica.uid, Footprint(memory, 1.0), node.clock.now)
    error = node.error_of("x")
    assert isinstance(error, NonsenseFootprint)
    assert error.retry_after_seconds is None
    node.run_for(1.0)
    assert node.scheduler.ledger.charged == {}


def test_what_is_shared_is_charged_once_and_goes_with_its_last_user(node: Node) -> None:
    node.keep(version("a", 20), min_replicas=2, max_replicas=2)
    node.run_for(2.0)
    users = [replica.uid for replica in node.scheduler.replicas()]
    node.scheduler.charge_shared("artifacts/a", {HOST: 30}, node.clock.now, users)
    assert node.scheduler.ledger.charged == {HOST: 70}
    node.keep(version("a", 20))
    node.want("x", version("b", 90))
    node.run_for(5.0)
    assert node.granted_to("x"), "both go, and what they shared"
    assert node.scheduler.ledger.charged == {HOST: 90}


@pytest.mark.parametrize("short", ["an overdraft", "a load"])
def test_what_is_shared_with_who_goes_already_comes_back_with_its_last_user(node: Node, short: str) -> None:
    node.keep(version("a", 5), min_replicas=2, max_replicas=2)
    node.run_for(2.0)
    users = [replica.uid for replica in node.scheduler.replicas()]
    node.scheduler.charge_shared("artifacts/a", {HOST: 20}, node.clock.now, users)
    node.want("c", version("c", 10))
    node.run_for(1.5)
    node.want("busy", version("busy", 60))
    node.run_for(5.0)
    node.use("busy")
    node.workers["a"] = FakeWorker(stop_seconds=50.0)
    node.keep(version("a", 5))
    assert node.states("a") == [S.DRAINING, S.LOADED]
    assert node.scheduler.ledger.free == {HOST: 0}
    if short == "a load":
        node.want("x", version("x", 20))
    else:
        node.scheduler.measured(node.granted_to("busy") or "", {HOST: 80}, node.clock.now)
    assert node.states("a") == [S.DRAINING, S.DRAINING], "5 of each, and the 20 that they share"
    assert node.states("c") == [S.LOADED]


def test_a_second_load_reserves_what_it_will_share_with_nobody(node: Node) -> None:
    node.workers["a"] = FakeWorker(memory={HOST: 18})
    node.want("x", version("a", 20))
    node.run_for(2.0)
    uid = node.granted_to("x")
    node.scheduler.charge_shared("artifacts/a", {HOST: 30}, node.clock.now, [uid])
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    assert node.scheduler.ledger.charged == {}
    node.want("y", version("a", 20))
    assert node.scheduler.ledger.charged == {HOST: 50}
    node.run_for(1.0)
    assert node.scheduler.ledger.charges == {node.granted_to("y"): {HOST: 20}, "artifacts/a": {HOST: 30}}


def test_what_a_dead_fork_server_left_is_not_asked_for_again(node: Node) -> None:
    node.workers["a"] = FakeWorker(memory={HOST: 18})
    node.want("x", version("a", 20))
    node.run_for(2.0)
    node.scheduler.charge_shared("fork-servers/4711", {HOST: 70}, node.clock.now, [node.granted_to("x")])
    assert node.scheduler.ledger.charged == {HOST: 90}
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    assert node.scheduler.ledger.charged == {}
    node.want("y", version("a", 20))
    assert node.scheduler.ledger.charged == {HOST: 20}


# Who does not wait, and what is told.


def test_who_would_not_wait_is_told_when_and_the_version_is_loaded_for_later(node: Node) -> None:
    node.scheduler.remember(Measured("a", setup_of(version("a")), base={HOST: 30}, load_seconds=(4.0, 40.0, 6.0)))
    node.want("x", version("a"), if_loaded=True, deadline=node.clock.now + 0.5)
    error = node.error_of("x")
    assert isinstance(error, ModelLoading)
    assert error.retry_after_seconds == 6.0
    node.run_for(5.0)
    assert node.states("a") == [S.LOADED]
    node.want("y", version("a"), if_loaded=True)
    assert node.granted_to("y")


def test_who_would_have_nothing_loaded_is_told_the_same_and_nothing_moves(node: Node) -> None:
    node.scheduler.remember(Measured("a", setup_of(version("a")), base={HOST: 30}, load_seconds=(4.0, 40.0, 6.0)))
    node.want("other", version("b", 90))
    node.run_for(5.0)
    node.scheduler.release("other", node.clock.now)
    said = len(node.log)
    node.want("x", version("a"), if_loaded=True, load_nothing=True)
    error = node.error_of("x")
    assert isinstance(error, ModelLoading)
    assert error.retry_after_seconds is not None
    assert error.retry_after_seconds >= 6.0
    node.run_for(200.0)
    assert [call for call in node.log[said:] if call[0] != "refused"] == []
    assert (node.states("a"), node.states("b")) == ([], [S.LOADED])
    node.want("y", version("a", 101), if_loaded=True, load_nothing=True)
    assert isinstance(node.error_of("y"), NeverFits)
    node.want("z", version("b", 90), if_loaded=True, load_nothing=True)
    assert node.granted_to("z")


def test_who_would_not_wait_hears_also_that_it_never_fits(node: Node) -> None:
    node.want("x", version("a", 101), if_loaded=True)
    assert isinstance(node.error_of("x"), NeverFits)
    node.run_for(10.0)
    assert node.scheduler.replicas() == []


def test_who_would_not_wait_hears_what_the_last_try_came_to(node: Node) -> None:
    def told(lease: str) -> tuple[type[ModelMoraError], str, float | None]:
        node.want(lease, version("a"), if_loaded=True)
        error = node.error_of(lease)
        assert error is not None
        return type(error), error.message, error.retry_after_seconds

    node.workers["a"] = FakeWorker(fails=True)
    assert "failed" not in told("first")[1]
    node.run_for(1.5)
    assert told("while nobody tries") == (LoadFailed, "no such luck", 0.5)
    node.run_for(0.6)
    assert node.scheduler.explain(version("a"), 20, node.clock.now).reason == (
        "it fits in the memory that is free; its last load failed: no such luck"
    )
    again = "the model is not in memory: its last load failed: no such luck; retry after the delay"
    assert told("as it is tried again") == (ModelLoading, again, 1.0)
    assert node.states("a") == [S.LOADING]
    assert node.scheduler.explain(version("a"), 20, node.clock.now).reason == (
        "it is being loaded; its last load failed: no such luck"
    )
    node.workers["a"] = FakeWorker()
    node.run_for(5.0)
    node.want("late", version("a"), if_loaded=True)
    node.run_for(3.0)
    assert node.granted_to("late") or node.states("a") == [S.LOADED]
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    assert "failed" not in told("when it was mended")[1]
    assert "crash" not in told("the same")[1]
    node.run_for(3.0)
    for number in range(4):
        for uid in list(node.alive):
            node.crash(uid)
        crashed = told(f"crash {number}")
        node.run_for(4.0)
    assert crashed[1] == "the model is not in memory: its worker keeps crashing; retry after the delay"


def test_the_time_to_ready_counts_what_is_ahead(node: Node) -> None:
    now = node.clock.now
    assert node.scheduler.ready_in("a", now) is None
    node.workers["a"] = FakeWorker(load_seconds=8.0, stop_seconds=2.0)
    node.workers["b"] = FakeWorker(load_seconds=4.0)
    for name in ("a", "b"):
        node.want(name, version(name, 80))
        node.run_for(20.0)
        node.scheduler.release(name, node.clock.now)
    node.want("x", version("a", 80))
    assert node.states("b") == [S.DRAINING]
    assert node.scheduler.ready_in("a", node.clock.now) == pytest.approx(10.0, abs=0.2)
    node.run_for(4.1)
    assert node.scheduler.ready_in("a", node.clock.now) == pytest.approx(4.0, abs=0.2)
    node.run_for(5.0)
    assert node.scheduler.ready_in("a", node.clock.now) == 0.0


def test_waiters_hear_of_news_only(node: Node) -> None:
    node.workers["a"] = FakeWorker(load_seconds=20.0)
    node.scheduler.remember(Measured("a", setup_of(version("a")), base={HOST: 30}, load_seconds=(20.0,)))
    node.want("x", version("a"))
    for number in range(50):
        node.want(f"y{number}", version("b", 10))
        node.run_for(0.1)
    assert [call for call in node.of("loading") if call[1] == "x"] == [("loading", "x", 20.0, "loading")]


def test_a_load_that_is_late_is_told_to_take_longer_the_later_it_is(node: Node) -> None:
    node.workers["fast"] = FakeWorker(load_seconds=0.25)
    node.workers["slow"] = FakeWorker(load_seconds=64.0)
    node.want("w", version("fast"))
    node.run_for(1.0)
    begun = node.clock.now
    node.want("x", version("slow"))
    told: list[tuple[float, float]] = []
    while node.states("slow") == [S.LOADING]:
        told += [(node.clock.now - begun, call[2]) for call in node.of("loading")[len(told) :]]  # type: ignore[misc]
        asked = node.scheduler.ready_in("slow", node.clock.now)
        assert asked is not None
        passed = node.clock.now - begun
        assert asked == (0.25 - passed if passed < 0.25 else max(1.0, passed - 0.25)), passed
        # Who was told counts down; before that has come far they hear again.
        moment, seconds = told[-1]
        assert passed < 0.25 or moment + seconds - passed >= max(0.7, 0.5 * asked), passed
        node.run_for(0.125)
    assert node.granted_to("x")
    assert len(told) <= 40, "seldom, once it is very late"


def test_who_would_not_wait_for_a_load_that_is_late_is_not_told_to_ask_all_the_time(node: Node) -> None:
    for seconds, retry_seconds in ((0.001, 0.1), (0.25, 0.25)):
        name = f"after {seconds} s"
        node.scheduler.remember(Measured(name, setup_of(version(name)), base={HOST: 30}, load_seconds=(seconds,)))
        node.workers[name] = FakeWorker(load_seconds=64.0)
        node.want(name, version(name), if_loaded=True)
        error = node.error_of(name)
        assert error is not None
        assert error.retry_after_seconds == retry_seconds
    node.run_for(0.5)
    node.want("late", version("after 0.25 s"), if_loaded=True)
    node.run_for(32.0)
    node.want("very late", version("after 0.25 s"), if_loaded=True)
    late, very_late = node.error_of("late"), node.error_of("very late")
    assert late is not None
    assert very_late is not None
    assert late.retry_after_seconds == 1.0
    assert very_late.retry_after_seconds == 32.25


# Explain.


def test_explaining_says_what_would_happen_and_why() -> None:
    node = Node(FakeClock(), {HOST: 100})
    node.want("x", version("a", 60))
    node.run_for(5.0)
    now = node.clock.now
    assert node.scheduler.explain(version("a", 60), 20, now).outcome is PlacementOutcome.LOADED
    assert node.scheduler.explain(version("s", 40), 20, now).outcome is PlacementOutcome.FITS
    swap = node.scheduler.explain(version("b", 70), 20, now)
    assert swap.outcome is PlacementOutcome.FITS_AFTER_EVICTION
    assert [verdict.candidate.version for verdict in swap.verdicts if verdict.victim] == ["a"]
    assert (swap.need, swap.free, swap.budget, swap.evictable) == ({HOST: 70}, {HOST: 40}, {HOST: 100}, {HOST: 60})
    assert swap.need_source == "declared"
    never = node.scheduler.explain(version("n", 101), 20, now)
    assert never.outcome is PlacementOutcome.NEVER_FITS
    assert "101" in never.reason
    node.use("x")
    node.scheduler.set_residency("a", Residency(pinned=True), version("a", 60), now)
    pinned = node.scheduler.explain(version("b", 70), 20, now)
    assert pinned.outcome is PlacementOutcome.NEVER_FITS
    node.scheduler.set_residency("a", Residency(), version("a", 60), now)
    waits = node.scheduler.explain(version("b", 70), 10, now)
    assert waits.outcome is PlacementOutcome.WAITS
    assert waits.verdicts[0].reason == "it serves requests of higher priority"
    node.scheduler.cordon("closed", now)
    assert node.scheduler.explain(version("s", 10), 20, now).outcome is PlacementOutcome.REFUSED
    assert node.starts("b") == node.starts("s") == 0


def test_explaining_a_failed_load_says_that_it_failed_and_why() -> None:
    node = Node(FakeClock(), {HOST: 100})
    node.workers["a"] = FakeWorker(fails=True)
    node.want("x", version("a", 60))
    node.run_for(1.2)
    told = node.scheduler.explain(version("a", 60), 20, node.clock.now)
    assert (told.outcome, told.reason) == (PlacementOutcome.REFUSED, "its load failed: no such luck")


def test_who_is_as_urgent_is_not_said_to_be_more_so() -> None:
    node = Node(FakeClock(), {HOST: 100})
    for lease, facts in (("x", version("a", 60)), ("y", version("c", 30))):
        node.want(lease, facts)
        node.run_for(5.0)
    node.use("y")

    def reason(priority: int) -> str:
        (verdict,) = node.scheduler.explain(version("a", 60), priority, node.clock.now).verdicts
        return verdict.reason

    assert reason(10) == "it serves requests of higher priority"
    assert reason(20) == reason(30) == ""


def test_what_is_waited_for_is_said_by_its_name() -> None:
    node = Node(FakeClock(), {HOST: 100}, Rules(load_concurrency=1))
    node.want("x", version("a", 60))
    node.workers["b"] = node.workers["d"] = FakeWorker(load_seconds=50.0, stop_seconds=3.0)
    node.run_for(5.0)
    node.want("y", version("b", 30))

    def told(name: str, memory: int) -> tuple[PlacementOutcome, str]:
        placement = node.scheduler.explain(version(name, memory), 20, node.clock.now)
        return placement.outcome, placement.reason

    expected = "it is expected to fit in the memory that is free, once other loads are over"
    assert told("c", 10) == (PlacementOutcome.FITS, expected)
    assert told("c", 60) == (PlacementOutcome.FITS_AFTER_EVICTION, "it fits once others are gone")
    node.scheduler.release("y", node.clock.now)
    assert told("c", 40) == (PlacementOutcome.FITS_AFTER_EVICTION, "it fits once what ends already is gone")


def test_what_evictions_can_free_is_what_those_hold_that_may_go() -> None:
    node = Node(FakeClock(), {HOST: 100})
    for lease, size in (("old", 40), ("busy", 30), ("young", 10)):
        node.want(lease, version(lease, size), priority=30)
        node.run_for(1.0 if lease == "young" else 5.0)
        if lease == "busy":
            node.use(lease)
    placement = node.scheduler.explain(version("b", 90), 20, node.clock.now)
    barred = {verdict.candidate.version: bool(verdict.reason) for verdict in placement.verdicts}
    assert barred == {"old": False, "busy": True, "young": True}
    assert (placement.free, placement.evictable) == ({HOST: 20}, {HOST: 40})
    never = node.scheduler.explain(version("n", 101), 20, node.clock.now)
    assert "evictions make room for 100 at most" in never.reason


@pytest.mark.parametrize(("declared", "told"), [({HOST: 30}, "declared"), ({}, "predicted")])
def test_what_a_failed_load_has_taken_was_measured_whatever_was_declared(declared: dict[str, int], told: str) -> None:
    mebibyte = 1024 * 1024
    node = Node(FakeClock(), {HOST: 1000 * mebibyte})
    facts = VersionFacts("a", "echo", declared={device: size * mebibyte for device, size in declared.items()})

    def source() -> tuple[str, int]:
        placement = node.scheduler.explain(facts, 20, node.clock.now)
        return placement.need_source, placement.need[HOST] // mebibyte

    guessed = source()
    assert guessed[0] == told
    node.workers["a"] = FakeWorker(hangs=True)
    uid = node.want("x", facts)
    assert source() == guessed
    node.scheduler.measured(uid, {HOST: 77 * mebibyte}, node.clock.now)
    assert source() == ("measured", 77), "as it loads"
    node.scheduler.load_failed(uid, OutOfMemory("it took more memory than it may"), node.clock.now)
    node.run_for(60.0)
    assert node.scheduler.replicas() == []
    assert source() == ("measured", 77)


def test_what_was_declared_stands_where_less_was_measured(node: Node) -> None:
    node.workers["a"] = FakeWorker(memory={HOST: 10})
    node.want("x", version("a", 30))
    node.run_for(5.0)
    loaded = node.scheduler.explain(version("a", 30), 20, node.clock.now)
    assert (loaded.need, loaded.need_source) == ({HOST: 30}, "declared")
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(5.0)
    gone = node.scheduler.explain(version("a", 30), 20, node.clock.now)
    assert (gone.need, gone.need_source) == ({HOST: 30}, "declared")
    more = node.scheduler.explain(version("a", 5), 20, node.clock.now)
    assert (more.need, more.need_source) == ({HOST: 11}, "measured")


def test_explaining_what_is_being_loaded_says_so() -> None:
    node = Node(FakeClock(), {HOST: 100})
    assert "free" in node.scheduler.explain(version("a", 60), 20, node.clock.now).reason
    node.want("x", version("a", 60))
    assert node.states("a") == [S.LOADING]
    loading = node.scheduler.explain(version("a", 60), 20, node.clock.now)
    assert (loading.outcome, loading.reason) == (PlacementOutcome.FITS, "it is being loaded")
    node.want("y", version("b", 30))
    node.scheduler.configure(node.rules, {HOST: 80}, node.clock.now)
    smaller = node.scheduler.explain(version("a", 60), 20, node.clock.now)
    assert smaller.reason == "it is being loaded; memory is overdrawn, and it may have to go soon after"
    node.scheduler.configure(node.rules, {HOST: 100}, node.clock.now)
    node.run_for(5.0)
    assert node.scheduler.explain(version("a", 60), 20, node.clock.now).reason == "it is loaded"


@pytest.mark.parametrize(("policy", "later"), [("lru", 0.0), ("ttl", 366 * 86400.0)])
def test_what_is_being_loaded_is_idle_since_its_load_began(policy: PolicyName, later: float) -> None:
    node = Node(FakeClock(), {HOST: 100}, Rules(policy=Policy(policy)))
    begun = node.clock.now
    node.want("x", version("a", 60))
    node.run_for(0.5)
    (verdict,) = node.scheduler.explain(version("b", 60), 20, node.clock.now).verdicts
    assert verdict.candidate.version == "a"
    assert (verdict.idle_seconds, verdict.score) == (0.5, begun + later)


def test_a_load_that_a_smaller_budget_never_has_room_for_ends_at_once(node: Node) -> None:
    node.want("x", version("a", 60))
    node.want("y", version("b", 30))
    node.scheduler.configure(node.rules, {HOST: 50}, node.clock.now)
    assert node.states("a") == [S.FAILED]
    assert isinstance(node.error_of("x"), NeverFits)
    assert node.states("b") == [S.LOADING]  # it fits once the other is gone
    node.run_for(5.0)
    assert (node.states("a"), node.states("b")) == ([], [S.LOADED])


def test_explaining_has_no_effects(node: Node) -> None:
    node.want("x", version("a", 60))
    node.run_for(5.0)
    log = list(node.log)
    node.scheduler.explain(version("b", 70), 30, node.clock.now)
    assert node.log == log
    node.run_for(100.0)
    assert node.states("a") == [S.LOADED]


# Policies.


def test_gdsf_keeps_what_is_small_and_dear_and_lru_does_not() -> None:
    for name, gone in (("lru", "small"), ("gdsf", "large")):
        node = Node(FakeClock(), {HOST: 10 * 2**30}, Rules(policy=Policy(name)))  # type: ignore[arg-type]
        node.workers["small"] = FakeWorker(load_seconds=10)
        for model, gib in (("small", 1), ("large", 6)):
            node.want(model, version(model, gib * 2**30))
            node.run_for(20.0)
            node.use(model)
            node.use(model, 0)
        node.want("new", version("new", 4 * 2**30 if name == "gdsf" else 3 * 2**30 + 1))
        assert node.states(gone) == [S.DRAINING], name


def test_the_clock_of_gdsf_lets_what_was_popular_once_go() -> None:
    node = Node(FakeClock(), {HOST: 2 * 2**30}, Rules(policy=Policy("gdsf"), minimum_residency_seconds=0))
    facts = {name: version(name, 2**30) for name in ("star", "a", "b")}
    node.want("star", facts["star"])
    node.run_for(5.0)
    for _ in range(6):
        node.use("star")
        node.use("star", 0)
    turns = 0
    while node.states("star") == [S.LOADED] and turns < 50:
        turns += 1
        name = "ab"[turns % 2]
        node.want(f"{name}{turns}", facts[name])
        node.run_for(5.0)
        node.use(f"{name}{turns}")
        node.scheduler.release(f"{name}{turns}", node.clock.now)
    assert 3 < turns < 20


def test_gdsf_after_lru_begins_with_a_clock_of_its_own() -> None:
    node = Node(FakeClock(), {HOST: 3 * 2**30}, Rules(policy=Policy("lru"), minimum_residency_seconds=0))
    node.workers["dear"] = FakeWorker(load_seconds=10)
    facts = {name: version(name, 2**30) for name in ("old", "dear", "a", "b", "new")}

    def used(name: str, turn: int) -> None:
        node.want(f"{name}{turn}", facts[name])
        node.run_for(15.0)
        node.use(f"{name}{turn}")
        node.scheduler.release(f"{name}{turn}", node.clock.now)

    node.run_for(20_000.0)
    for name in ("old", "dear", "a", "b"):  # the last one evicts the first, by its time
        used(name, 1)
    assert node.states("old") == [S.UNLOADED] or not node.states("old")
    node.scheduler.configure(
        Rules(policy=Policy("gdsf"), minimum_residency_seconds=0), {HOST: 3 * 2**30}, node.clock.now
    )
    for name in ("a", "b"):
        used(name, 2)
    node.want("new", facts["new"])
    assert node.states("dear") == [S.LOADED]


def test_ttl_takes_what_would_go_first_anyway() -> None:
    node = Node(FakeClock(), {HOST: 100}, Rules(policy=Policy("ttl"), idle_ttl_seconds=60))
    node.keep(version("a", 40), keep_alive_seconds=500.0)
    for name in ("a", "b"):
        node.want(name, version(name, 40))
        node.run_for(5.0)
    node.want("c", version("c", 40))
    assert node.states("b") == [S.DRAINING]
    node.run_for(70.0)
    assert node.states("c") == []
    assert node.states("a") == [S.LOADED]


def test_policy_ttl_is_an_order_and_unloads_nobody_before_room_is_needed() -> None:
    node = Node(FakeClock(), {HOST: 100}, Rules(policy=Policy("ttl")))
    node.keep(version("b", 40), keep_alive_seconds=50_000.0)
    for name in ("a", "b"):
        node.want(name, version(name, 40))
        node.run_for(5.0)
        node.scheduler.release(name, node.clock.now)
    node.run_for(20_000.0)
    assert [node.states("a"), node.states("b")] == [[S.LOADED], [S.LOADED]]
    node.want("c", version("c", 40))
    assert node.states("b") == [S.DRAINING]
    assert node.states("a") == [S.LOADED]


# What is learned.


def test_another_profile_is_predicted_anew() -> None:
    node = Node(FakeClock(), {HOST: 1000})
    node.workers["a"] = FakeWorker(memory={HOST: 200})
    node.want("x", version("a", 100))
    node.run_for(2.0)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(2.0)
    tuned = replace(version("a", 100), profile=EngineProfile("torch", "bf16"))
    assert node.scheduler.explain(version("a", 100), 20, node.clock.now).need == {HOST: 220}
    assert node.scheduler.explain(tuned, 20, node.clock.now).need == {HOST: 100}


def test_a_sick_replica_counts_and_is_replaced_when_it_stays_sick(node: Node) -> None:
    node.keep(version("a"), min_replicas=1)
    node.run_for(2.0)
    (before,) = node.scheduler.replicas()
    node.scheduler.health(before.uid, Health(HealthState.UNHEALTHY, "silent"), node.clock.now)
    node.run_for(5.0)
    assert node.states("a") == [S.UNHEALTHY]
    node.run_for(8.0)
    (after,) = node.scheduler.replicas()
    assert after.uid != before.uid
    assert after.state is S.LOADED
