"""Who has to go: the policy as a table, and its promises as properties."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora_lifecycle.eviction import (
    POLICIES,
    Candidate,
    Impossible,
    Need,
    Plan,
    Policy,
    PolicyName,
    Wait,
    plan,
    relief,
    verdicts,
)
from modelmora_lifecycle.ledger import covers, minus, plus

NOW = 100.0
POLICY = Policy()


def candidate(
    uid: str,
    host: int = 10,
    *,
    used: float = 0.0,
    busy: float = 0,
    pinned: bool = False,
    until: float = 0.0,
    evictable: bool = True,
    cuda: int = 0,
) -> Candidate:
    charge = {"host": host} if not cuda else {"host": host, "cuda:0": cuda}
    return Candidate(uid, charge, evictable, pinned, busy > 0, busy, used, until)


def need(host: int, *, available: int = 0, ceiling: int = 100, budget: int | None = None, priority: float = 20) -> Need:
    return Need(
        {"host": host},
        {"host": available},
        {"host": ceiling},
        {"host": ceiling if budget is None else budget},
        priority,
    )


def test_eviction_prefers_the_idle_replica() -> None:
    replicas = [candidate("busy", used=1.0, busy=20), candidate("idle", used=50.0)]
    assert plan(need(10), replicas, POLICY, NOW) == Plan(("idle",))


def test_eviction_takes_the_least_recently_used_first() -> None:
    replicas = [candidate("b", used=3.0), candidate("a", used=2.0), candidate("c", used=1.0)]
    assert plan(need(20), replicas, POLICY, NOW) == Plan(("c", "a"))


def test_eviction_takes_the_shortest_prefix() -> None:
    replicas = [candidate("a", 10, used=1.0), candidate("b", 10, used=2.0), candidate("c", 10, used=3.0)]
    assert plan(need(25, available=10), replicas, POLICY, NOW) == Plan(("a", "b"))


def test_who_is_not_needed_beside_a_larger_victim_stays() -> None:
    replicas = [*(candidate(f"small-{n}", 1, used=n) for n in range(5)), candidate("large", 50, used=9.0)]
    assert plan(need(30), replicas, POLICY, NOW) == Plan(("large",))
    assert plan(need(52), replicas, POLICY, NOW) == Plan(("small-0", "small-1", "large"))
    assert relief({"host": 30}, replicas, POLICY, NOW) == ("large",)
    waits = plan(need(30), [replace(replica, resident_until=NOW + 1) for replica in replicas], POLICY, NOW)
    assert isinstance(waits, Wait)
    assert waits.victims == ("large",)


def test_of_those_that_are_not_all_needed_the_one_used_last_stays() -> None:
    replicas = [candidate("a", 10, used=1.0), candidate("b", 10, used=2.0), candidate("c", 15, used=3.0)]
    assert plan(need(25), replicas, POLICY, NOW) == Plan(("a", "c"))
    busy = [candidate("idle", 10, used=9.0), candidate("busy", 10, used=1.0, busy=10), candidate("last", 15, busy=20)]
    assert plan(need(25), busy, POLICY, NOW) == Plan(("idle", "last"), yields=("last",))


def test_eviction_leaves_the_pinned() -> None:
    outcome = plan(need(10), [candidate("a", pinned=True)], POLICY, NOW)
    assert isinstance(outcome, Wait)
    assert outcome.victims == ()


def test_eviction_asks_the_busy_to_yield() -> None:
    replicas = [candidate("busy", used=1.0, busy=20), candidate("idle", used=50.0)]
    assert plan(need(20), replicas, POLICY, NOW) == Plan(("idle", "busy"), yields=("busy",))


def test_eviction_waits_for_the_minimum_residency() -> None:
    outcome = plan(need(10), [candidate("a", until=NOW + 1.5), candidate("b", until=NOW + 4)], POLICY, NOW)
    assert isinstance(outcome, Wait)
    assert outcome.until == NOW + 1.5
    assert outcome.victims == ("a",)


def test_a_busy_replica_of_higher_priority_is_taken_only_by_one_who_has_waited() -> None:
    high = [candidate("high", busy=30)]
    outcome = plan(need(10, priority=12), high, POLICY, NOW)
    assert isinstance(outcome, Wait)
    assert outcome.until == NOW + 18
    assert plan(need(10, priority=30), high, POLICY, NOW) == Plan(("high",), yields=("high",))


def test_what_never_fits_is_said_with_the_arithmetic() -> None:
    replicas = [candidate("a", 30, pinned=True), candidate("b", 40, busy=20)]
    assert plan(need(71, ceiling=100), replicas, POLICY, NOW) == Impossible("host", 71, 100, 70, 30)
    assert not isinstance(plan(need(70, ceiling=100), replicas, POLICY, NOW), Impossible)


def test_a_device_that_does_not_exist_never_fits() -> None:
    wanted = Need({"cuda:0": 1}, {"host": 100}, {"host": 100}, {"host": 100})
    assert plan(wanted, [], POLICY, NOW) == Impossible("cuda:0", 1, 0, 0, 0)


def test_memory_used_by_other_programs_is_waited_for_and_not_kept() -> None:
    outcome = plan(need(60, ceiling=100, budget=50), [candidate("a", 20)], POLICY, NOW)
    assert isinstance(outcome, Wait)
    assert not outcome.attainable
    assert outcome.victims == ()


def test_a_victim_frees_something_that_is_short() -> None:
    wanted = Need({"cuda:0": 5}, {"host": -50, "cuda:0": 0}, {"host": 9, "cuda:0": 9}, {"host": 9, "cuda:0": 9})
    replicas = [candidate("host-only", 10, used=1.0), candidate("device", 1, cuda=5, used=2.0)]
    assert plan(wanted, replicas, POLICY, NOW) == Plan(("device",))


def test_relief_takes_idle_replicas_only() -> None:
    replicas = [
        candidate("a", busy=10),
        candidate("b", used=2.0),
        candidate("c", used=1.0),
        candidate("d", pinned=True),
    ]
    assert relief({"host": 5}, replicas, POLICY, NOW) == ("c",)
    assert relief({"host": 500}, replicas, POLICY, NOW) == ("c", "b")


SHARES = st.dictionaries(st.sampled_from(["artifacts/x", "artifacts/y"]), st.just({"host": 25}), max_size=2)
CANDIDATES = st.builds(
    Candidate,
    uid=st.uuids().map(str),
    charge=st.dictionaries(st.sampled_from(["host", "cuda:0"]), st.integers(0, 60)),
    evictable=st.booleans(),
    pinned=st.booleans(),
    busy=st.booleans(),
    busy_priority=st.sampled_from([10, 20, 30]),
    last_used_time=st.floats(0, 200),
    resident_until=st.floats(0, 200),
    shares=SHARES,
)


def freed(replicas: Iterable[Candidate], gone: Collection[str]) -> dict[str, int]:
    """What comes back when these are gone, reckoned anew."""
    there = list(replicas)
    kept = {owner for replica in there if replica.uid not in gone for owner in replica.shares}
    shared = {owner: share for replica in there for owner, share in replica.shares.items() if owner not in kept}
    return plus(*(replica.charge for replica in there if replica.uid in gone), *shared.values())


@given(
    st.lists(CANDIDATES, max_size=8),
    st.dictionaries(st.sampled_from(["host", "cuda:0"]), st.integers(0, 150), min_size=1),
    st.integers(-20, 60),
    st.sampled_from([10.0, 20.0, 30.0]),
)
def test_a_plan_keeps_every_promise_of_the_policy(
    replicas: list[Candidate], memory: dict[str, int], available: int, priority: float
) -> None:
    room = {"host": available, "cuda:0": available}
    full = {"host": 200, "cuda:0": 200}
    wanted = Need(memory, room, full, full, priority)
    outcome = plan(wanted, replicas, POLICY, NOW)
    assert outcome == plan(wanted, list(reversed(replicas)), POLICY, NOW)
    if not isinstance(outcome, Plan):
        return
    by_uid = {replica.uid: replica for replica in replicas}
    victims = [by_uid[uid] for uid in outcome.victims]
    assert len(set(outcome.victims)) == len(victims)
    for victim in victims:
        assert victim.evictable
        assert not victim.pinned
        assert victim.resident_until <= NOW
        assert not victim.busy or victim.busy_priority <= priority
        assert victim.busy == (victim.uid in outcome.yields)
    assert victims == sorted(victims, key=POLICY.key)
    chosen = set(outcome.victims)
    assert covers(plus(room, freed(replicas, chosen)), memory)
    for uid in chosen:
        assert not covers(plus(room, freed(replicas, chosen - {uid})), memory), "a victim that is not needed"
    # Who was taken in place of somebody before him in the order was needed: all before him together are not enough.
    ready = sorted(
        (
            replica
            for replica in replicas
            if replica.evictable
            and not replica.pinned
            and replica.resident_until <= NOW
            and not (replica.busy and replica.busy_priority > priority)
        ),
        key=POLICY.key,
    )
    if victims:
        before = {replica.uid for replica in ready[: ready.index(victims[-1])]}
        assert not covers(plus(room, freed(replicas, before)), memory)


@pytest.mark.parametrize("available", [10, 25])
def test_nothing_goes_when_there_is_room(available: int) -> None:
    assert plan(need(10, available=available), [candidate("a")], POLICY, NOW) == Plan(())
    assert minus({"host": available}, {"host": 10})["host"] >= 0


def test_shared_memory_is_freed_with_the_last_of_its_users() -> None:
    shares = {"artifacts/x": {"host": 50}}
    a, b = (replace(candidate(uid, 10, used=used), shares=shares) for uid, used in (("a", 1.0), ("b", 2.0)))
    other = candidate("c", 30, used=3.0)
    assert plan(need(30), [a, b, other], POLICY, NOW) == Plan(("a", "b"))
    assert plan(need(60), [a, other], POLICY, NOW) == Plan(("a",))
    kept = replace(b, pinned=True)
    assert plan(need(40), [a, kept, other], POLICY, NOW) == Plan(("a", "c"))
    assert plan(need(30), [a, kept, other], POLICY, NOW) == Plan(("c",))
    assert plan(need(45), [a, kept, other], POLICY, NOW) == Impossible("host", 45, 100, 40, 60)


def test_gdsf_weighs_use_and_load_time_against_size() -> None:
    gib = 2**30
    policy = Policy("gdsf")
    small = replace(candidate("small", gib), uses=2, load_seconds=3.0)
    assert policy.score(small) == 6.0
    assert policy.score(replace(small, charge={"host": 4 * gib})) == 1.5
    assert policy.score(replace(small, clock=10.0)) == 16.0
    assert policy.score(replace(small, charge={"host": gib, "cuda:0": gib})) == 3.0


def test_ttl_goes_by_the_end_of_the_keep_alive() -> None:
    policy = Policy("ttl")
    a, b, c = candidate("a", used=50.0), candidate("b", used=60.0), replace(candidate("c", used=70.0), keep_until=9e6)
    assert policy.score(c) == 9e6
    assert sorted((b, a, c), key=policy.key) == [c, a, b]  # who has none goes last
    assert all(math.isfinite(policy.score(each)) for each in (a, b, c))  # as JSON and databases want it


@pytest.mark.parametrize(
    ("replica", "reason"),
    [
        (candidate("a"), ""),
        (candidate("a", pinned=True), "it is pinned, or one of the minimum number of replicas"),
        (candidate("a", evictable=False), "it is not loaded, or its memory is kept for another load"),
        (candidate("a", 0), "it has nothing on the devices that are needed"),
        (candidate("a", until=NOW + 3), "its minimum residency is not over: 3.0 s left"),
        (candidate("a", busy=30), "it serves requests of higher priority"),
        (candidate("a", busy=10), ""),
    ],
)
def test_a_verdict_says_why_a_replica_may_not_go(replica: Candidate, reason: str) -> None:
    wanted = need(5)
    (verdict,) = verdicts(wanted, [replica], plan(wanted, [replica], POLICY, NOW), POLICY, NOW)
    assert verdict.reason == reason
    assert verdict.victim == (reason == "")


def test_relief_takes_those_at_work_only_when_it_must_and_the_least_urgent_first() -> None:
    replicas = [candidate("high", busy=30, used=1.0), candidate("low", busy=10, used=9.0), candidate("idle", used=50.0)]
    assert relief({"host": 15}, replicas, POLICY, NOW) == ("idle",)
    assert relief({"host": 15}, replicas, POLICY, NOW, busy=True) == ("idle", "low")


@pytest.mark.parametrize("name", POLICIES)
@given(st.lists(CANDIDATES, max_size=8), st.randoms(use_true_random=False), st.integers(0, 150))
def test_every_policy_is_deterministic(name: PolicyName, replicas: list[Candidate], random: Random, host: int) -> None:
    shuffled = list(replicas)
    random.shuffle(shuffled)
    wanted = Need({"host": host}, {}, {"host": 200}, {"host": 200}, 20)
    assert plan(wanted, replicas, Policy(name), NOW) == plan(wanted, shuffled, Policy(name), NOW)
