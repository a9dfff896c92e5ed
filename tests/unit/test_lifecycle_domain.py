"""The state table of replicas, the ledger's arithmetic and the guess before a load, pair by pair."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora.errors import IllegalTransition, MemoryBusy
from modelmora_lifecycle.domain import HOST, MIB, Replica, ReplicaState, VersionFacts
from modelmora_lifecycle.ledger import Ledger, covers, plus
from modelmora_lifecycle.prediction import Measured, Prediction, setup_of

S = ReplicaState
ALLOWED = {
    (S.UNLOADED, S.LOADING),
    (S.LOADING, S.LOADED),
    (S.LOADING, S.FAILED),
    (S.LOADED, S.UNHEALTHY),
    (S.LOADED, S.DRAINING),
    (S.LOADED, S.SLEEPING),
    (S.LOADED, S.FAILED),
    (S.UNHEALTHY, S.LOADED),
    (S.UNHEALTHY, S.DRAINING),
    (S.UNHEALTHY, S.FAILED),
    (S.DRAINING, S.UNLOADED),
    (S.DRAINING, S.LOADED),
    (S.DRAINING, S.FAILED),
    (S.FAILED, S.UNLOADED),
    (S.SLEEPING, S.LOADED),
}


def replica(state: ReplicaState, claimed_by: str = "") -> Replica:
    return Replica("r1", "models/a/b/versions/1", "echo", 0.0, 0.0, state=state, claimed_by=claimed_by)


@pytest.mark.parametrize("wanted", list(S))
@pytest.mark.parametrize("state", list(S))
def test_the_table_of_transitions_holds_for_every_pair(state: ReplicaState, wanted: ReplicaState) -> None:
    before = replica(state)
    if (state, wanted) in ALLOWED:
        after = before.to(wanted, "why", 5.0)
        assert (after.state, after.reason, after.update_time, after.revision) == (wanted, "why", 5.0, 2)
        assert before.state is state
    else:
        with pytest.raises(IllegalTransition):
            before.to(wanted, "why", 5.0)


def test_a_claimed_replica_is_not_revived_until_its_claim_is_given_up() -> None:
    claimed = replica(S.DRAINING, claimed_by="r2")
    with pytest.raises(IllegalTransition):
        claimed.to(S.LOADED, "why", 5.0)
    assert claimed.to(S.LOADED, "why", 5.0, claimed_by="").state is S.LOADED
    assert claimed.to(S.UNLOADED, "why", 5.0).state is S.UNLOADED


def test_a_reservation_is_granted_whole_or_not_at_all() -> None:
    ledger = Ledger(ceiling={HOST: 100, "cuda:0": 50})
    with pytest.raises(MemoryBusy):
        ledger.reserve("a", {HOST: 10, "cuda:0": 51})
    with pytest.raises(MemoryBusy):
        ledger.reserve("a", {HOST: 10, "cuda:1": 1})
    held = ledger.reserve("a", {HOST: 10, "cuda:0": 50})
    assert held.free == {HOST: 90, "cuda:0": 0}
    assert ledger.free == {HOST: 100, "cuda:0": 50}


def test_a_prediction_becomes_what_was_measured_and_an_overdraft_shows() -> None:
    ledger = Ledger(ceiling={HOST: 100}).reserve("a", {HOST: 60}).reserve("b", {HOST: 40})
    assert ledger.settle("a", {HOST: 30}).free == {HOST: 30}
    grown = ledger.settle("a", {HOST: 75})
    assert grown.overdraft == {HOST: 15}
    assert grown.release("b").overdraft == {}


def test_foreign_memory_shrinks_the_budget() -> None:
    ledger = Ledger(ceiling={HOST: 100}).reserve("a", {HOST: 60}).observe({HOST: 30})
    assert ledger.budget == {HOST: 70}
    assert ledger.free == {HOST: 10}
    assert ledger.observe({HOST: 130}).budget == {HOST: 0}


@pytest.mark.parametrize("need", [{HOST: -1}, {HOST: 5, "cuda:0": -5}])
def test_a_negative_reservation_is_refused(need: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        Ledger(ceiling={HOST: 100, "cuda:0": 100}).reserve("a", need)


def test_one_owner_has_one_reservation() -> None:
    ledger = Ledger(ceiling={HOST: 100}).reserve("a", {HOST: 1})
    with pytest.raises(ValueError):
        ledger.reserve("a", {HOST: 1})
    with pytest.raises(ValueError):
        ledger.settle("b", {HOST: 1})
    assert ledger.release("b") == ledger


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcde"),
            st.sampled_from(["reserve", "release"]),
            st.dictionaries(st.sampled_from([HOST, "cuda:0", "cuda:1"]), st.integers(0, 80)),
        ),
        max_size=40,
    )
)
def test_reservations_never_exceed_the_budget_on_any_device(
    steps: list[tuple[str, str, dict[str, int]]],
) -> None:
    ledger = Ledger(ceiling={HOST: 100, "cuda:0": 100})
    for owner, verb, need in steps:
        if verb == "release":
            ledger = ledger.release(owner)
        elif owner not in ledger.charges:
            try:
                ledger = ledger.reserve(owner, need)
            except MemoryBusy:
                assert not covers(ledger.free, need)
        assert ledger.overdraft == {}
        assert plus(ledger.charged, ledger.free) == plus(ledger.ceiling, dict.fromkeys(ledger.charged, 0))


def facts(artifact_bytes: int = 0, **declared: int) -> VersionFacts:
    return VersionFacts("models/a/b/versions/1", "echo", artifact_bytes=artifact_bytes, declared=declared)


@pytest.mark.parametrize(
    ("known", "measured", "before"),
    [
        (facts(), {}, {HOST: 32 * MIB}),
        (facts(100 * MIB), {}, {HOST: 120 * MIB + 350 * MIB}),
        (facts(100 * MIB, host=200 * MIB), {}, {HOST: 200 * MIB}),
        (facts(100 * MIB), {HOST: 100}, {HOST: 110}),
        (facts(100 * MIB, host=200), {HOST: 100}, {HOST: 200}),
        (facts(100 * MIB, host=200), {HOST: 1000}, {HOST: 1100}),
    ],
)
def test_a_load_is_predicted_from_what_is_known(
    known: VersionFacts, measured: dict[str, int], before: dict[str, int]
) -> None:
    taken = Measured(known.name, setup_of(known), base=measured) if measured else None
    assert Prediction().before_load(known, taken) == before
