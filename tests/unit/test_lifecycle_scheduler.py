"""Decisions of the scheduler, event by event, on a clock that is moved by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from fakes import FakeClock, FakeEffects, FakeWorker
from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InvalidModelFiles,
    LoadFailed,
    MemoryBusy,
    NeverFits,
    ReplicaNotFound,
    ShuttingDown,
    StorageFull,
    VersionInUse,
)
from modelmora_lifecycle.domain import HOST, EngineProfile, Health, HealthState, ReplicaState, VersionFacts
from modelmora_lifecycle.scheduler import Rules

FOREVER = float("inf")
S = ReplicaState


def version(name: str, host: int = 60, **other: int) -> VersionFacts:
    return VersionFacts(name, "echo", declared={HOST: host, **other})


class Node(FakeEffects):
    """A node for one test: wants are given names, answers are looked up by name."""

    def want(
        self, lease: str, facts: VersionFacts, *, priority: int = 20, deadline: float = FOREVER, pin: bool = False
    ) -> str:
        return self.scheduler.want(
            lease, facts, priority=priority, deadline=deadline, now=self.clock.now, pin=pin, visit=pin
        )

    def use(self, lease: str, in_flight: int = 1) -> None:
        self.scheduler.in_use(lease, in_flight, 0, 0.0, self.clock.now)

    def release(self, lease: str) -> None:
        self.scheduler.release(lease, self.clock.now)

    def granted_to(self, lease: str) -> str | None:
        return next((str(call[2]) for call in reversed(self.of("granted")) if call[1] == lease), None)

    def error_of(self, lease: str) -> object:
        return next((call[2] for call in self.of("refused") if call[1] == lease), None)

    def told(self, name: str, lease: str) -> bool:
        return any(call[1] == lease for call in self.of(name))

    def states(self, model: str) -> list[ReplicaState]:
        return [replica.state for replica in self.scheduler.replicas() if replica.version == model]

    def started(self) -> list[object]:
        return [call[2] for call in self.of("start")]


@pytest.fixture
def node() -> Node:
    return Node(FakeClock(), {HOST: 100})


def test_a_want_loads_and_is_granted(node: Node) -> None:
    uid = node.want("x", version("a"))
    assert node.states("a") == [S.LOADING]
    assert node.told("loading", "x")
    node.run_for(1.0)
    assert node.granted_to("x") == uid
    assert node.states("a") == [S.LOADED]


def test_wants_of_one_version_join_one_load(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(0.5)
    node.want("y", version("a"))
    node.run_for(0.5)
    assert node.granted_to("x") == node.granted_to("y") is not None
    assert node.started() == ["a"]


def test_a_loaded_model_is_never_behind_one_that_loads(node: Node) -> None:
    node.want("x", version("a", 30))
    node.run_for(1.0)
    node.workers["b"] = FakeWorker(load_seconds=500)
    node.want("y", version("b", 30))
    node.want("z", version("a", 30))
    assert node.granted_to("z")


def test_what_never_fits_is_refused_at_once_with_the_arithmetic(node: Node) -> None:
    node.want("pin", version("p", 30), pin=True)
    node.run_for(1.0)
    node.want("x", version("a", 71))
    error = node.error_of("x")
    assert isinstance(error, NeverFits)
    assert error.metadata["need_bytes"] == "71"
    assert error.metadata["budget_bytes"] == "100"
    assert error.metadata["evictable_bytes"] == "70"
    assert node.states("a") == []
    assert node.scheduler.ledger.charged == {HOST: 30}


def test_a_pinned_model_that_is_being_stopped_keeps_nothing_from_others(node: Node) -> None:
    node.workers["p"] = FakeWorker(stop_seconds=5.0)
    uid = node.want("pin", version("p", 60), pin=True)
    node.run_for(1.0)
    node.want("y", version("y", 30))
    node.run_for(5.0)
    node.scheduler.health(uid, Health(HealthState.UNHEALTHY, "silent", node.clock.now), node.clock.now)
    node.run_for(node.rules.unhealthy_grace_seconds)
    assert node.states("p") == [S.FAILED]
    node.want("x", version("x", 80))
    assert node.error_of("x") is None
    node.run_for(10.0)
    assert node.granted_to("x")


def test_a_vector_is_placed_whole_or_not_at_all() -> None:
    node = Node(FakeClock(), {HOST: 100, "cuda:0": 10})
    node.want("x", version("a", 10, **{"cuda:0": 8}))
    node.run_for(1.0)
    node.want("y", version("b", 10, **{"cuda:0": 8}))
    assert node.states("b") == [S.UNLOADED]
    assert node.scheduler.ledger.charged == {HOST: 10, "cuda:0": 8}


def test_the_idle_and_least_recently_used_goes_and_only_when_it_is_reaped_the_load_starts(node: Node) -> None:
    for name in ("a", "b"):
        node.want(name, version(name, 40))
        node.run_for(5.0)
    node.want("c", version("c", 40))
    assert node.states("a") == [S.DRAINING]
    assert node.told("revoked", "a")
    assert node.started() == ["a", "b"]
    node.run_for(0.1)
    assert node.started() == ["a", "b", "c"]
    assert node.states("a") == []
    node.run_for(1.0)
    assert node.granted_to("c")
    assert node.states("b") == [S.LOADED]


def test_a_busy_replica_is_asked_to_yield_and_stopped_when_it_has(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(1.0)
    node.use("x")
    node.want("y", version("b"))
    assert not node.told("yielding", "x")
    node.run_for(2.0)
    assert node.told("yielding", "x")
    assert node.of("stop") == []
    node.run_for(10.0)
    assert node.of("stop") == []
    node.release("x")
    node.run_for(1.2)
    assert node.granted_to("y")


def test_a_holder_that_reports_idle_after_the_yield_is_revoked(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(5.0)
    node.use("x")
    node.want("y", version("b"))
    assert node.told("yielding", "x")
    node.use("x", 0)
    assert node.told("revoked", "x")
    node.run_for(1.2)
    assert node.granted_to("y")


def test_a_holder_that_does_not_yield_is_cut_off_after_the_grace(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(5.0)
    node.use("x")
    node.want("y", version("b"))
    node.run_for(19.9)
    assert not node.told("revoked", "x")
    node.run_for(0.2)
    assert node.told("revoked", "x")
    node.run_for(1.2)
    assert node.granted_to("y")


@pytest.mark.parametrize(("yields", "grace_seconds"), [(True, 5.0), (False, 0.0)])
def test_who_has_had_the_grace_of_its_lease_gets_no_second_one_to_drain(
    node: Node, yields: bool, grace_seconds: float
) -> None:
    node.want("x", version("a"))
    node.run_for(5.0)
    node.use("x")
    node.want("y", version("b"))
    if yields:
        node.use("x", 0)
    node.run_for(20.5)
    assert [call[2:] for call in node.of("stop")] == [("a", grace_seconds)]


def test_two_models_in_a_place_for_one_alternate(node: Node) -> None:
    turns: list[str] = []
    for turn in range(10):
        for name in ("a", "b"):
            if turn == 0:
                node.want(f"{name}0", version(name))
        running = "a" if turn % 2 == 0 else "b"
        node.run_for(1.5)
        assert node.states(running) == [S.LOADED]
        node.use(f"{running}{turn // 2}")
        node.run_for(1.6)
        assert node.told("yielding", f"{running}{turn // 2}"), turn
        turns.append(running)
        node.release(f"{running}{turn // 2}")
        node.want(f"{running}{turn // 2 + 1}", version(running))
    assert turns == ["a", "b"] * 5


def test_residency_lasts_as_long_as_the_load_took(node: Node) -> None:
    node.workers["a"] = FakeWorker(load_seconds=30)
    node.want("x", version("a"))
    node.run_for(30)
    node.want("y", version("b"))
    node.run_for(29.5)
    assert node.states("a") == [S.LOADED]
    node.run_for(1.0)
    assert node.states("a") == []


def test_a_load_nobody_waits_for_is_cancelled_and_its_process_ended(node: Node) -> None:
    node.workers["a"] = FakeWorker(load_seconds=100)
    node.want("x", version("a"))
    node.release("x")
    assert node.states("a") == [S.FAILED]
    assert len(node.of("stop")) == 1
    assert node.scheduler.ledger.charged == {HOST: 60}
    node.run_for(1.0)
    assert node.scheduler.replicas() == []
    assert node.scheduler.ledger.charged == {}


def test_a_caller_that_went_away_loads_nothing_and_its_victim_lives_on(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(5.0)
    node.use("x")
    node.want("y", version("b"))
    assert node.states("a") == [S.DRAINING]
    node.release("y")
    assert node.states("a") == [S.LOADED]
    assert node.states("b") == []
    node.run_for(100)
    assert not node.told("revoked", "x")
    node.want("z", version("a"))
    assert node.granted_to("z")


def test_the_victim_of_one_load_is_not_revived_by_a_want(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(5.0)
    node.use("x")
    node.want("y", version("b"))
    node.want("z", version("a"))
    assert node.granted_to("z") is None
    node.release("x")
    node.run_for(1.2)
    assert node.granted_to("y")
    node.run_for(5.0)
    assert node.granted_to("z")


def test_swaps_with_disjoint_victims_run_at_the_same_time() -> None:
    node = Node(FakeClock(), {HOST: 100})
    for name in ("a", "b"):
        node.want(name, version(name, 50))
    node.run_for(5.0)
    for name in ("c", "d"):
        node.want(name, version(name, 50))
    assert node.states("a") == node.states("b") == [S.DRAINING]
    node.run_for(0.1)
    assert node.states("c") == node.states("d") == [S.LOADING]


def test_who_waits_for_a_load_in_progress_keeps_nothing_that_it_will_free(node: Node) -> None:
    node.workers["slow"] = FakeWorker(load_seconds=50.0)
    node.want("slow", version("slow", 70))
    node.want("big", version("big", 80))
    node.want("small", version("small", 10))
    assert (node.states("big"), node.states("small")) == ([S.UNLOADED], [S.LOADING])
    node.want("other", version("other", 11))
    assert node.states("other") == [S.UNLOADED], "big has to fit once slow has gone"
    node.run_for(51.0)
    node.release("slow")
    node.run_for(60.0)
    assert node.granted_to("big")


def test_who_waits_for_what_is_promised_to_another_keeps_nothing_yet(node: Node) -> None:
    node.workers["victim"] = FakeWorker(stop_seconds=30.0)
    node.want("victim", version("victim", 80))
    node.run_for(5.0)
    node.release("victim")
    node.want("big", version("big", 80))
    assert node.states("victim") == [S.DRAINING]
    node.want("back", version("victim", 80))
    node.run_for(1.0)
    node.want("small", version("small", 15))
    assert node.states("small") == [S.LOADING]
    node.run_for(40.0)
    node.release("big")
    node.run_for(40.0)
    assert node.granted_to("back")


def test_who_cannot_be_placed_by_all_that_may_go_keeps_none_of_it(node: Node) -> None:
    node.want("one", version("one", 20))
    node.run_for(5.0)
    node.release("one")
    node.workers["slow"] = FakeWorker(load_seconds=50.0)
    for lease, size in (("slow", 75), ("big", 75), ("too", 75), ("two", 20)):
        node.want(lease, version(lease, size))
        node.run_for(1.0)
    node.run_for(1.0)
    assert node.granted_to("two")
    assert (node.states("big"), node.states("too")) == ([S.UNLOADED], [S.UNLOADED])
    for lease in ("slow", "big", "too"):
        node.run_for(60.0)
        assert node.granted_to(lease)
        node.release(lease)


def test_a_load_that_waits_keeps_only_what_it_needs(node: Node) -> None:
    """`big` waits for the residency of `a`; `small` fits beside what `big` will get and does not wait for it."""
    node.want("a", version("a", 60))
    node.run_for(1.0)
    node.want("big", version("big", 90))
    node.want("small", version("small", 10))
    assert node.states("big") == [S.UNLOADED]
    assert node.states("small") == [S.LOADING]
    node.want("other", version("other", 20))
    assert node.states("other") == [S.UNLOADED]
    node.run_for(2.2)
    assert node.states("big") == [S.LOADING]


def test_waiters_are_served_by_priority_then_arrival_and_age(node: Node) -> None:
    node.workers["a"] = FakeWorker(load_seconds=50)
    node.want("a", version("a"))
    node.want("low", version("low"), priority=10)
    node.run_for(5.0)
    node.want("medium", version("medium"), priority=20)
    node.run_for(20.0)
    node.want("high", version("high"), priority=30)
    node.run_for(400.0)
    assert node.started() == ["a", "medium", "low", "high"]


def test_an_urgent_want_makes_its_version_urgent(node: Node) -> None:
    node.want("p", version("p"), priority=30)
    node.run_for(3.0)
    node.use("p")
    node.want("a", version("a"), priority=10)
    node.want("b", version("b"), priority=20)
    assert node.states("p") == [S.LOADED]
    node.want("late", version("a"), priority=30)
    assert node.states("p") == [S.DRAINING], "at once"
    node.release("p")
    node.run_for(1.2)
    assert node.granted_to("late") == node.granted_to("a") is not None
    assert not node.granted_to("b")


def test_who_waits_becomes_as_urgent_as_what_waits_behind_it(node: Node) -> None:
    node.want("p", version("p"), priority=30)
    node.run_for(3.0)
    node.use("p")
    node.want("a", version("a"), priority=10, deadline=node.clock.now + 5.0)
    node.want("b", version("b"), priority=20)
    node.scheduler.urge("a", 20, node.clock.now + 60.0, node.clock.now)
    assert node.states("p") == [S.LOADED]
    node.scheduler.urge("a", 30, node.clock.now + 2.0, node.clock.now)
    assert node.states("p") == [S.DRAINING], "at once"
    node.run_for(6.0)
    assert node.error_of("a") is None, "the later deadline counts"
    node.release("p")
    node.run_for(1.2)
    assert node.granted_to("a")
    node.scheduler.urge("a", 10, 0.0, node.clock.now)
    node.scheduler.urge("nobody", 10, 0.0, node.clock.now)


def test_who_becomes_urgent_passes_nobody_who_was_so_before(node: Node) -> None:
    node.want("p", version("p"), priority=1000)
    node.run_for(3.0)
    node.use("p")
    node.want("low", version("low", 80), priority=10)
    node.want("old", version("old", 80), priority=10)
    node.run_for(7.0)
    node.want("mid", version("mid", 80), priority=10)
    node.run_for(8.0)
    node.want("high", version("high", 80), priority=30)
    node.run_for(2.0)
    node.scheduler.urge("low", 30, FOREVER, node.clock.now)
    node.run_for(4.0)
    node.scheduler.urge("old", 20, FOREVER, node.clock.now)
    for lease in ("p", "high", "low", "old"):
        node.release(lease)
        node.run_for(60.0)
    assert node.started() == ["p", "high", "low", "old", "mid"]


def test_what_nobody_urgent_waits_for_any_more_has_the_place_that_it_came_for(node: Node) -> None:
    node.want("p", version("p"), priority=1000)
    node.run_for(3.0)
    node.use("p")
    node.want("low", version("low", 80), priority=10)
    node.run_for(2.0)
    node.want("other", version("other", 80), priority=10)
    node.scheduler.urge("low", 30, FOREVER, node.clock.now)
    node.run_for(1.0)
    node.want("beside", version("low", 80), priority=10)
    node.want("mid", version("mid", 80), priority=20)
    node.scheduler.urge("low", 10, FOREVER, node.clock.now)
    for lease in ("p", "mid", "low", "other"):
        node.release(lease)
        node.run_for(60.0)
    assert node.started() == ["p", "mid", "low", "other"]


def test_nobody_gives_way_any_more_to_who_was_urgent_and_has_gone(node: Node) -> None:
    node.want("h", version("h", 80), priority=30)
    node.run_for(9.0)
    node.use("h")
    node.want("low", version("low", 80), priority=10)
    node.scheduler.urge("low", 1000, FOREVER, node.clock.now)
    assert node.states("h") == [ReplicaState.DRAINING]
    node.want("mid", version("mid", 80), priority=20)
    node.scheduler.urge("low", 10, FOREVER, node.clock.now)
    assert node.states("h") == [ReplicaState.LOADED]
    for lease in ("h", "mid"):
        node.release(lease)
        node.run_for(60.0)
    assert node.started() == ["h", "mid", "low"]


def test_a_load_for_later_is_as_urgent_as_the_most_urgent_who_asked(node: Node) -> None:
    node.want("p", version("p"), priority=1000)
    node.run_for(3.0)
    node.use("p")
    now = node.clock.now
    node.scheduler.want("a", version("a", 80), priority=30, deadline=FOREVER, now=now, if_loaded=True)
    node.want("mid", version("mid", 80), priority=20)
    node.scheduler.want("b", version("a", 80), priority=10, deadline=FOREVER, now=now, if_loaded=True)
    node.release("p")
    node.run_for(60.0)
    assert node.started() == ["p", "a", "mid"]


def test_work_is_as_urgent_as_its_holder_says(node: Node) -> None:
    node.want("x", version("a"), priority=10)
    node.run_for(5.0)
    node.scheduler.in_use("x", 1, 0, 0.0, node.clock.now, priority=30)
    node.want("y", version("b"), priority=20)
    node.run_for(5.0)
    assert not node.told("yielding", "x")
    node.scheduler.in_use("x", 2, 0, 0.0, node.clock.now, priority=20)
    assert node.told("yielding", "x"), "at once"
    node.scheduler.in_use("x", 0, 0, 0.0, node.clock.now)
    node.run_for(1.2)
    assert node.granted_to("y")


def test_the_end_of_an_idle_lease_is_no_use(node: Node) -> None:
    for lease, name in (("x", "a"), ("y", "b")):
        node.want(lease, version(name, 40))
        node.run_for(5.0)
        node.use(lease)
        node.run_for(1.0)
        node.use(lease, 0)
    node.run_for(20.0)
    node.release("x")
    node.want("z", version("c", 40))
    assert (node.states("a"), node.states("b")) == ([S.DRAINING], [S.LOADED])


def test_the_end_of_a_lease_at_work_is_that_of_its_use(node: Node) -> None:
    for lease, name in (("x", "a"), ("y", "b")):
        node.want(lease, version(name, 40))
        node.run_for(5.0)
        node.use(lease)
    node.use("y", 0)
    node.run_for(20.0)
    node.release("x")
    node.want("z", version("c", 40))
    assert (node.states("a"), node.states("b")) == ([S.LOADED], [S.DRAINING])


@pytest.mark.parametrize("end", ["use", "release"])
def test_who_waits_behind_work_more_urgent_goes_on_when_the_last_of_it_ends(node: Node, end: str) -> None:
    for lease in ("p", "q"):
        node.want(lease, version("p"), priority=30)
        node.run_for(3.0)
        node.use(lease)
    for lease in ("a", "behind"):
        node.want(lease, version("a"), priority=10)
    ends = {"use": lambda lease: node.use(lease, 0), "release": node.release}
    ends[end]("p")
    assert node.states("a") == [S.UNLOADED]
    assert node.states("p") == [S.LOADED]
    ends[end]("q")
    assert node.states("p") == [S.DRAINING]
    node.run_for(1.2)
    assert node.granted_to("a") == node.granted_to("behind") is not None


def test_low_priority_does_not_displace_busy_high_priority_until_it_has_waited(node: Node) -> None:
    node.want("x", version("a"), priority=30)
    node.run_for(5.0)
    node.use("x")
    node.want("y", version("b"), priority=10)
    node.run_for(19.0)
    assert not node.told("yielding", "x")
    node.run_for(1.1)
    assert node.told("yielding", "x")


def test_a_waiter_past_its_deadline_is_refused(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(5.0)
    node.use("x")
    node.want("y", version("b"), deadline=node.clock.now + 3)
    node.run_for(3.0)
    error = node.error_of("y")
    assert isinstance(error, MemoryBusy)
    assert error.retry_after_seconds
    assert node.states("a") == [S.LOADED]
    node.workers["c"] = FakeWorker(load_seconds=50)
    node.want("z", version("c", 10), deadline=node.clock.now + 3)
    node.run_for(3.0)
    assert isinstance(node.error_of("z"), DeadlineExceeded)
    node.run_for(1.0)
    assert node.states("c") == []


def test_a_failed_load_is_told_to_everyone_who_waits_and_remembered(node: Node) -> None:
    node.workers["a"] = FakeWorker(fails=True)
    node.want("x", version("a"))
    node.want("y", version("a"))
    node.run_for(1.0)
    assert isinstance(node.error_of("x"), LoadFailed)
    assert isinstance(node.error_of("y"), LoadFailed)
    assert node.states("a") == [S.FAILED]
    node.run_for(0.5)
    assert node.scheduler.ledger.charged == {}
    node.want("z", version("a"))
    error = node.error_of("z")
    assert isinstance(error, LoadFailed)
    assert error.retry_after_seconds == pytest.approx(0.5)
    node.run_for(1.0)
    node.workers["a"] = FakeWorker()
    node.want("w", version("a"))
    node.run_for(1.0)
    assert node.granted_to("w")


def test_a_version_that_nobody_tries_any_more_is_not_called_unstable(node: Node) -> None:
    node.workers["a"] = FakeWorker(fails=True)
    for number in range(3):
        node.want(f"w{number}", version("a"))
        node.run_for(10.0)
    assert node.scheduler.unstable(node.clock.now) == {"a": (3, "no such luck")}
    node.run_for(node.rules.backoff_limit_seconds)
    assert node.scheduler.unstable(node.clock.now) == {}


def test_nobody_is_told_to_wait_for_what_waiting_does_not_change(node: Node) -> None:
    for name, cause, delay in (
        ("a", InvalidModelFiles("no weights"), None),
        ("b", EngineUnavailable("torch is not there"), None),
        ("c", LoadFailed("killed"), 1.0),
        ("d", StorageFull("no room for a log"), 1.0),
    ):
        node.workers[name] = FakeWorker(hangs=True)
        node.want(name, version(name, 10))
        (replica,) = (r for r in node.scheduler.replicas() if r.version == name)
        node.scheduler.load_failed(replica.uid, cause, node.clock.now)
        node.want(f"again {name}", version(name, 10))
        for waiter in (name, f"again {name}"):
            error = node.error_of(waiter)
            assert type(error) is type(cause)
            assert error.retry_after_seconds == delay


def test_a_want_whose_deadline_has_passed_is_refused_also_when_it_is_loaded(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(5.0)
    for late in (0.0, 1.0):
        node.want(f"y{late}", version("a"), deadline=node.clock.now - late)
        assert isinstance(node.error_of(f"y{late}"), DeadlineExceeded)
    node.want("z", version("other"), deadline=node.clock.now)
    assert isinstance(node.error_of("z"), DeadlineExceeded)
    assert node.scheduler.leases(node.granted_to("x"))[0] == 1


def test_a_crash_revokes_and_the_next_want_loads_again(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(1.0)
    node.use("x")
    node.crash(node.granted_to("x") or "")
    revoked = node.of("revoked")
    assert revoked == [("revoked", "x", "crashed: signal 9 (SIGKILL)", True)]
    changes = [(call[2], call[3]) for call in node.of("changed")][-2:]
    assert changes == [(S.LOADED, S.FAILED), (S.FAILED, S.UNLOADED)]
    assert node.scheduler.ledger.charged == {}
    node.want("y", version("a"))
    assert node.states("a") == [S.LOADING]


def test_explain_tells_of_crashes_also_when_the_model_may_be_tried_again(node: Node) -> None:
    def explained() -> str:
        return node.scheduler.explain(version("a"), 20, node.clock.now).reason

    for turn in range(3):
        node.want(f"x{turn}", version("a"))
        while node.granted_to(f"x{turn}") is None:
            node.run_for(0.125)
        node.crash(node.granted_to(f"x{turn}") or "")
    node.run_for(60.0)
    assert explained() == "it fits in the memory that is free; its worker keeps crashing"
    node.want("y", version("a"))
    node.run_for(20.0)
    uid = node.granted_to("y") or ""
    node.scheduler.health(uid, Health(HealthState.HEALTHY, "", node.clock.now), node.clock.now)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(20.0)
    assert explained() == "it fits in the memory that is free"


def test_a_crash_loop_backs_off_and_the_waiter_is_still_served(node: Node) -> None:
    delays = []
    for turn in range(6):
        asked = node.clock.now
        node.want(f"x{turn}", version("a"))
        while node.granted_to(f"x{turn}") is None:
            node.run_for(0.125)
        delays.append(node.clock.now - asked - 1.0)
        node.crash(node.granted_to(f"x{turn}") or "")
    assert delays == [0.0, 0.0, 0.25, 0.5, 1.0, 2.0]
    assert node.scheduler.unstable(node.clock.now) == {"a": (6, "its worker keeps crashing")}
    node.want("y", version("a"))
    node.run_for(6.0)
    uid = node.granted_to("y") or ""
    node.run_for(10.0)
    node.scheduler.health(uid, Health(HealthState.HEALTHY, "", node.clock.now), node.clock.now)
    assert node.scheduler.unstable(node.clock.now) == {}


def test_an_unhealthy_replica_takes_no_new_lease_and_recovers_or_is_replaced(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(1.0)
    uid = node.granted_to("x") or ""
    node.scheduler.health(uid, Health(HealthState.UNHEALTHY, "does not answer", node.clock.now), node.clock.now)
    assert node.states("a") == [S.UNHEALTHY]
    node.want("y", version("a"))
    assert node.granted_to("y") is None
    node.scheduler.health(uid, Health(HealthState.HEALTHY, "", node.clock.now), node.clock.now)
    assert node.granted_to("y") == uid
    node.scheduler.health(uid, Health(HealthState.UNHEALTHY, "does not answer", node.clock.now), node.clock.now)
    node.want("z", version("a"))
    node.run_for(9.9)
    assert not node.told("revoked", "x")
    node.run_for(2.0)
    assert node.told("revoked", "x")
    assert node.granted_to("z") not in (None, uid)


def test_an_unhealthy_replica_that_nobody_wants_is_not_said_to_be_replaced(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(1.0)
    uid = node.granted_to("x") or ""
    node.scheduler.release("x", node.clock.now)
    node.scheduler.health(uid, Health(HealthState.UNHEALTHY, "does not answer", node.clock.now), node.clock.now)
    node.run_for(12.0)
    assert [reason for _, version, _, _, reason in node.of("changed")][-1] == "ended: does not answer"
    assert node.states("a") == []


def test_a_pinned_replica_stays_until_it_is_unloaded_by_force(node: Node) -> None:
    node.want("pin", version("a"), pin=True)
    node.run_for(50)
    node.want("y", version("b", 40))
    node.run_for(1.0)
    node.want("z", version("c", 40))
    node.run_for(5.0)
    assert node.states("a") == [S.LOADED]
    with pytest.raises(VersionInUse):
        node.scheduler.unload("a", force=False, now=node.clock.now)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    assert node.states("a") == []


def test_unloading_what_is_busy_needs_force_and_lets_running_work_finish(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(1.0)
    node.use("x")
    with pytest.raises(VersionInUse):
        node.scheduler.unload("a", force=False, now=node.clock.now)
    assert node.states("a") == [S.LOADED]
    node.scheduler.unload("a", force=True, now=node.clock.now)
    assert node.told("yielding", "x")
    assert node.of("stop") == []
    node.run_for(4.9)
    assert node.of("stop") == []
    node.run_for(0.3)
    assert node.states("a") == []
    with pytest.raises(ReplicaNotFound):
        node.scheduler.unload("a", force=True, now=node.clock.now)


def test_an_idle_lease_does_not_keep_a_model_from_being_unloaded(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(1.0)
    node.scheduler.unload("a", force=False, now=node.clock.now)
    assert node.told("revoked", "x")
    node.run_for(0.2)
    assert node.scheduler.ledger.charged == {}


def test_unloading_during_the_load_cancels_it(node: Node) -> None:
    node.want("x", version("a"))
    with pytest.raises(VersionInUse):
        node.scheduler.unload("a", force=False, now=node.clock.now)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    error = node.error_of("x")
    assert isinstance(error, LoadFailed)
    assert error.metadata["model_version"] == "a"
    node.run_for(1.0)
    assert node.scheduler.replicas() == []


def test_who_waits_for_a_worker_that_ends_while_loading_hears_of_which_version(node: Node) -> None:
    node.want("x", version("a"))
    node.crash(next(iter(node.alive)))
    error = node.error_of("x")
    assert isinstance(error, LoadFailed)
    assert error.metadata["model_version"] == "a"


def test_a_worker_that_took_more_than_it_declared_makes_idle_ones_go(node: Node) -> None:
    node.want("x", version("a", 50))
    node.run_for(5.0)
    node.release("x")
    node.want("y", version("b", 50))
    node.run_for(1.0)
    node.use("y")
    node.scheduler.measured(node.granted_to("y") or "", {HOST: 70}, node.clock.now)
    assert node.scheduler.ledger.overdraft == {HOST: 20}, "what it has, not what it may come to take"
    assert node.states("a") == [S.DRAINING]
    node.run_for(1.0)
    assert node.scheduler.ledger.overdraft == {}
    assert node.states("b") == [S.LOADED]
    replica = node.scheduler.replica(node.granted_to("y") or "")
    assert replica is not None
    assert replica.peak == {HOST: 70}


def test_what_was_measured_is_the_next_prediction(node: Node) -> None:
    node.workers["a"] = FakeWorker(memory={HOST: 80})
    node.want("x", VersionFacts("a", "echo", declared={HOST: 10}))
    node.run_for(5.0)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    node.want("y", VersionFacts("a", "echo", declared={HOST: 10}))
    assert node.scheduler.ledger.charged == {HOST: 88}


def test_idle_models_go_after_their_time_to_live() -> None:
    node = Node(FakeClock(), {HOST: 100}, Rules(idle_ttl_seconds=30))
    node.want("x", version("a", 10))
    node.want("y", version("b", 10))
    node.run_for(1.0)
    node.use("y")
    node.run_for(29.0)
    assert node.states("a") == [S.LOADED]
    node.run_for(2.0)
    assert node.states("a") == []
    assert node.states("b") == [S.LOADED]


def test_a_new_profile_replaces_what_is_idle_and_lets_work_end(node: Node) -> None:
    exact, fast = (
        replace(version("a", 10), profile=EngineProfile("torch", name), declared={HOST: 10})
        for name in ("fp32", "bf16")
    )
    node.want("x", exact)
    node.run_for(1.0)
    node.use("x")
    node.scheduler.renew(exact, node.clock.now)
    node.scheduler.renew(fast, node.clock.now)
    node.run_for(1.0)
    assert node.states("a") == [S.LOADED]
    node.use("x", 0)
    node.run_for(1.0)
    assert node.states("a") == []
    assert "torch/bf16" in next(str(call[2]) for call in node.of("revoked") if call[1] == "x")
    node.want("y", exact)  # who asks with facts of before gets what is current once it is renewed
    node.scheduler.renew(fast, node.clock.now)
    node.run_for(5.0)
    node.want("z", fast)
    node.run_for(5.0)
    assert node.states("a") == [S.LOADED]
    assert {r.profile.precision for r in node.scheduler.replicas()} == {"bf16"}
    node.scheduler.renew(fast, node.clock.now)
    node.run_for(5.0)
    assert node.states("a") == [S.LOADED]


def test_memory_that_other_programs_give_back_is_used(node: Node) -> None:
    node.scheduler.observed({HOST: 70}, node.clock.now)
    node.want("x", version("a", 60))
    node.run_for(5)
    assert node.states("a") == [S.UNLOADED]
    node.want("y", version("b", 20))
    assert node.states("b") == [S.LOADING]
    node.scheduler.observed({HOST: 10}, node.clock.now)
    assert node.states("a") == [S.LOADING]


def test_a_node_that_stops_refuses_revokes_and_ends_everything(node: Node) -> None:
    node.want("x", version("a"))
    node.run_for(5)
    node.use("x")
    node.workers["c"] = FakeWorker(load_seconds=50)
    node.want("z", version("c", 10))
    node.want("y", version("b"))
    node.scheduler.close(node.clock.now, 1.0)
    assert isinstance(node.error_of("y"), ShuttingDown)
    assert isinstance(node.error_of("z"), ShuttingDown)
    assert node.told("revoked", "x")
    node.run_for(0.2)
    assert node.scheduler.replicas() == []
    assert node.scheduler.ledger.charged == {}
    node.want("w", version("a"))
    assert isinstance(node.error_of("w"), ShuttingDown)


# Properties: random traffic on a simulated node.


@dataclass
class Holder:
    """What one caller did and was told."""

    lease: str
    model: str
    asked: float
    deadline: float
    replica: str = ""
    busy: bool = False
    yielded_at: float | None = None
    over: bool = False


class Traffic(Node):
    """Holders that keep to the contract (or not), and the checks that hold after every event."""

    stubborn: bool = False
    saturating: bool = True
    batch_seconds: float = 0.3

    def begin(self) -> None:
        self.holders: dict[str, Holder] = {}
        self.served: dict[str, float] = {}
        self.waits: list[float] = []
        self.crashed: set[str] = set()
        self.quiet = False
        self.count = 0
        self.on_event = self.check

    def ask(self, facts: VersionFacts, priority: int = 20, seconds: float = FOREVER) -> str:
        self.count += 1
        lease = f"{facts.name}#{self.count}"
        self.holders[lease] = Holder(lease, facts.name, self.clock.now, self.clock.now + seconds)
        self.scheduler.want(lease, facts, priority=priority, deadline=self.clock.now + seconds, now=self.clock.now)
        self.check()
        return lease

    def pin(self, facts: VersionFacts) -> None:
        self.count += 1
        lease = f"pin#{self.count}"
        self.holders[lease] = Holder(lease, facts.name, self.clock.now, self.clock.now + 30)
        self.scheduler.want(
            lease, facts, priority=20, deadline=self.clock.now + 30, now=self.clock.now, pin=True, visit=True
        )

    def granted(self, lease: str, replica: object) -> None:
        holder = self.holders[lease]
        assert not holder.over
        if lease.startswith("pin"):
            holder.over = True
            return
        assert not holder.replica
        holder.replica = replica.uid  # type: ignore[attr-defined]
        self.waits.append(self.clock.now - holder.asked)
        self.served[holder.model] = self.served.get(holder.model, 0) + 1
        self.later(0.0, lambda: self.work(holder))

    def work(self, holder: Holder) -> None:
        if holder.over:
            return
        holder.busy = True
        self.scheduler.in_use(holder.lease, 1, 0, 0.0, self.clock.now)
        self.later(self.batch_seconds, lambda: self.finish(holder))

    def finish(self, holder: Holder) -> None:
        if holder.over:
            return
        if holder.yielded_at is not None and not self.stubborn:
            holder.over = True
            facts = self.scheduler.facts(holder.model)
            self.scheduler.release(holder.lease, self.clock.now)
            if self.saturating and not self.quiet and facts is not None:
                self.ask(facts)
        elif (self.saturating and not self.quiet) or self.stubborn:
            self.later(self.batch_seconds, lambda: self.finish(holder))
        else:
            holder.busy = False
            self.scheduler.in_use(holder.lease, 0, 0, 0.0, self.clock.now)

    def yielding(self, lease: str, by: float, reason: str) -> None:
        holder = self.holders[lease]
        assert holder.busy
        if holder.yielded_at is None:
            holder.yielded_at = self.clock.now

    def revoked(self, lease: str, reason: str, crashed: bool) -> None:
        holder = self.holders[lease]
        assert holder.replica
        assert crashed <= (holder.replica in self.crashed)
        if holder.busy and holder.replica not in self.crashed:
            # A busy replica is never stopped without a yield and its grace.
            assert holder.yielded_at is not None, reason
            assert self.clock.now >= holder.yielded_at + self.rules.drain_grace_seconds, reason
        holder.over = True
        facts = self.scheduler.facts(holder.model)
        if self.saturating and not self.quiet and facts is not None:
            self.later(0.0, lambda: self.ask(facts))

    def refused(self, lease: str, error: object) -> None:
        assert not self.holders[lease].replica
        self.holders[lease].over = True
        super().refused(lease, error)  # type: ignore[arg-type]

    def stop(self, replica: object, grace_seconds: float) -> None:
        assert self.scheduler.leases(replica.uid)[0] == 0, "stopped under a lease"  # type: ignore[attr-defined]
        super().stop(replica, grace_seconds)  # type: ignore[arg-type]

    def kill(self, index: int) -> None:
        if self.alive:
            uid = sorted(self.alive)[index % len(self.alive)]
            self.crashed.add(uid)
            self.crash(uid)

    def check(self) -> None:
        ledger = self.scheduler.ledger
        assert ledger.overdraft == {}, "the ledger is exceeded"
        assert set(ledger.charges) == set(self.alive), "a charge without a process, or a process without a charge"
        used: dict[str, int] = {}
        for memory in self.alive.values():
            for device, memory_bytes in memory.items():
                used[device] = used.get(device, 0) + memory_bytes
        assert all(used[device] <= self.budget.get(device, 0) for device in used)

    def waiting(self) -> list[Holder]:
        return [holder for holder in self.holders.values() if not holder.over and not holder.replica]


SIZES = st.fixed_dictionaries({HOST: st.integers(1, 110)}, optional={"cuda:0": st.integers(0, 60)})
ACTIONS = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 4), st.sampled_from([10, 20, 30]), st.sampled_from([3.0, 60.0, FOREVER])),
    st.tuples(st.just("pass"), st.floats(0.0, 6.0)),
    st.tuples(st.just("go"), st.integers(0, 100)),
    st.tuples(st.just("kill"), st.integers(0, 100)),
    st.tuples(st.just("unload"), st.integers(0, 4), st.booleans()),
    st.tuples(st.just("pin"), st.integers(0, 4)),
    st.tuples(st.just("sick"), st.integers(0, 100), st.booleans()),
)


def drive(traffic: Traffic, sizes: list[dict[str, int]], actions: list[tuple[object, ...]]) -> list[VersionFacts]:
    models = [VersionFacts(f"m{i}", "echo", declared=size) for i, size in enumerate(sizes)]
    traffic.begin()
    for action in actions:
        match action:
            case ("ask", int(index), int(priority), float(seconds)):
                traffic.ask(models[index % len(models)], priority, seconds)
            case ("pass", float(seconds)):
                traffic.run_for(seconds)
            case ("go", int(index)):
                there = [holder for holder in traffic.holders.values() if not holder.over]
                if there:
                    gone = there[index % len(there)]
                    gone.over = True
                    traffic.scheduler.release(gone.lease, traffic.clock.now)
            case ("kill", int(index)):
                traffic.kill(index)
            case ("unload", int(index), bool(force)):
                try:
                    traffic.scheduler.unload(models[index % len(models)].name, force=force, now=traffic.clock.now)
                except (ReplicaNotFound, VersionInUse):
                    pass
            case ("pin", int(index)):
                traffic.pin(models[index % len(models)])
            case ("sick", int(index), bool(sick)):
                if traffic.alive:
                    uid = sorted(traffic.alive)[index % len(traffic.alive)]
                    state = HealthState.UNHEALTHY if sick else HealthState.HEALTHY
                    if sick:
                        traffic.crashed.add(uid)
                    traffic.scheduler.health(uid, Health(state, "asked", traffic.clock.now), traffic.clock.now)
        traffic.check()
    return models


WORKERS = st.builds(
    FakeWorker,
    load_seconds=st.sampled_from([0.05, 1.0, 5.0]),
    stop_seconds=st.sampled_from([0.01, 0.1, 1.0]),
    fails=st.sampled_from([False] * 9 + [True]),
)


def everyone_is_answered(
    sizes: list[dict[str, int]],
    workers: list[FakeWorker],
    actions: list[tuple[object, ...]],
    saturating: bool,
    stubborn: bool,
    residency: float,
) -> None:
    rules = Rules(minimum_residency_seconds=residency)
    traffic = Traffic(FakeClock(), {HOST: 100, "cuda:0": 50}, rules)
    traffic.saturating, traffic.stubborn = saturating, stubborn
    traffic.workers = {f"m{index}": worker for index, worker in enumerate(workers)}
    drive(traffic, sizes, actions)
    traffic.quiet = True
    before = traffic.waiting()
    traffic.run_for(600.0)
    assert [holder for holder in before if not holder.over and not holder.replica] == [], "a want was forgotten"
    for call in traffic.of("refused"):
        assert isinstance(call[2], NeverFits | MemoryBusy | DeadlineExceeded | LoadFailed), call


CASES = st.tuples(
    st.lists(SIZES, min_size=1, max_size=5),
    st.lists(WORKERS, min_size=5, max_size=5),
    st.lists(ACTIONS, min_size=5, max_size=40),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 2.0]),
)


@settings(max_examples=120, deadline=None)
@given(CASES)
def test_the_ledger_holds_nobody_is_stopped_at_work_and_everyone_is_answered(case: tuple[Any, ...]) -> None:
    everyone_is_answered(*case)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=5000, deadline=None)
@given(CASES)
def test_thousands_of_cases_hold_too(case: tuple[Any, ...]) -> None:
    everyone_is_answered(*case)


def random_case(random: Random) -> tuple[Any, ...]:
    """Like CASES, with more wants and more time passing: hypothesis likes short and empty things."""

    def action() -> tuple[object, ...]:
        match random.choices(["ask", "pass", "go", "kill", "unload", "pin", "sick"], [8, 8, 2, 2, 1, 0.3, 1])[0]:
            case "ask":
                return (
                    "ask",
                    random.randint(0, 4),
                    random.choice([10, 20, 30]),
                    random.choice([3.0, 60.0, FOREVER]),
                )
            case "pass":
                return ("pass", random.choice([0.05, 0.1, 0.3, 1.0, 2.0, random.random() * 6]))
            case "unload" | "sick" as name:
                return (name, random.randint(0, 100), random.random() < 0.5)
            case name:
                return (name, random.randint(0, 100))

    sizes = [
        {HOST: random.randint(5, 100), **({"cuda:0": random.randint(0, 50)} if random.random() < 0.3 else {})}
        for _ in range(random.randint(2, 5))
    ]
    workers = [
        FakeWorker(random.choice([0.05, 1, 5]), random.choice([0.01, 0.1, 1]), random.random() < 0.05) for _ in range(5)
    ]
    actions = [action() for _ in range(random.randint(5, 60))]
    return sizes, workers, actions, random.random() < 0.5, random.random() < 0.3, random.choice([0.0, 2.0])


@pytest.mark.parametrize("seed", range(8))
def test_busy_random_traffic_keeps_every_promise(seed: int) -> None:
    for number in range(25):
        everyone_is_answered(*random_case(Random(seed * 1000 + number)))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_busy_random_traffic_keeps_every_promise_for_long() -> None:
    for number in range(20_000):
        everyone_is_answered(*random_case(Random(number)))


@pytest.mark.parametrize("start", [1000.0, 1015.4051536423282, 1e6 / 3, 0.1 + 0.2])
def test_aging_by_rounded_figures_is_not_waited_for_for_ever(start: float) -> None:
    node = Node(FakeClock(start), {HOST: 100})
    node.want("x", version("a"), priority=30)
    node.run_for(5.0)
    node.use("x")
    node.run_for(0.2051536423)
    node.want("y", version("b"), priority=20)
    node.run_for(10.1)
    assert node.told("yielding", "x")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(51, 100), min_size=2, max_size=4), st.floats(0.1, 1.5), st.floats(0.1, 3.0))
def test_saturating_models_in_a_place_for_one_share_it_and_nobody_waits_beyond_the_bound(
    sizes: list[int], batch_seconds: float, load_seconds: float
) -> None:
    traffic = Traffic(FakeClock(), {HOST: 100})
    traffic.batch_seconds = batch_seconds
    traffic.begin()
    names = [f"m{i}" for i in range(len(sizes))]
    traffic.workers = {name: FakeWorker(load_seconds=load_seconds, stop_seconds=0.1) for name in names}
    for name, size in zip(names, sizes, strict=True):
        traffic.ask(version(name, size))
    traffic.run_for(100.0)
    turn = max(2.0, load_seconds) + load_seconds + batch_seconds + 0.2
    assert max(traffic.waits) <= turn * len(sizes) + 0.01
    assert max(traffic.served.values()) - min(traffic.served.values()) <= 1
    assert min(traffic.served.values()) >= 100 / (turn * len(sizes)) - 2


def test_what_a_victim_to_come_leaves_over_is_nobodys_before_it_was_asked_to_go(node: Node) -> None:
    node.want("x", version("large", 90))
    node.run_for(1.0)
    node.release("x")
    node.want("a", version("a", 20))
    node.want("b", version("b", 50))
    assert node.states("large") == [S.LOADED], "its minimum residency is not over"
    assert node.states("a") == node.states("b") == [S.UNLOADED]
    assert "being freed" not in str(node.of("loading")[-1])
    node.run_for(5.0)
    assert node.granted_to("a")
    assert node.granted_to("b")


def test_the_same_traffic_gives_the_same_decisions() -> None:
    def play() -> list[str]:
        traffic = Traffic(FakeClock(), {HOST: 100, "cuda:0": 50})
        actions: list[tuple[object, ...]] = []
        for turn in range(12):
            actions += [("ask", turn % 5, 10 + 10 * (turn % 3), 60.0), ("pass", 1.0 + turn % 3), ("kill", turn)]
        drive(traffic, [{HOST: 40}, {HOST: 50, "cuda:0": 30}, {HOST: 60}, {HOST: 90}, {HOST: 20}], actions)
        traffic.run_for(60)
        return [str(call) for call in traffic.log]

    first = play()
    assert len(first) > 50
    assert first == play()


def test_what_never_fits_is_decided_once_as_long_as_the_figures_stay(node: Node) -> None:
    for lease in ("x", "y", "z"):
        node.want(lease, version("a", 101))
        assert isinstance(node.error_of(lease), NeverFits)
    assert len(node.of("decided")) == 1
    node.scheduler.configure(node.rules, {HOST: 90}, node.clock.now)
    node.want("w", version("a", 101))
    assert len(node.of("decided")) == 2


def test_leases_of_a_single_replica_leave_nothing_behind(node: Node) -> None:
    for number in range(3):
        node.scheduler.want(
            f"x{number}", version("a"), priority=20, deadline=FOREVER, now=node.clock.now, holder=f"h{number}"
        )
        node.run_for(3.0)
        node.release(f"x{number}")
    assert not node.scheduler._invited


def test_an_overdraft_ends_when_the_first_idle_model_is_of_age(node: Node) -> None:
    node.want("busy", version("busy", 50))
    node.run_for(3.0)
    node.use("busy")
    node.want("idle", version("idle", 40))
    node.run_for(1.1)
    uid = node.granted_to("idle")
    assert uid
    node.release("idle")
    node.scheduler.measured(uid, {HOST: 60}, node.clock.now, 0)
    assert node.states("idle") == [S.LOADED], "within its minimum residency"
    node.run_for(2.1)
    assert node.states("idle") == []
    assert node.states("busy") == [S.LOADED]
