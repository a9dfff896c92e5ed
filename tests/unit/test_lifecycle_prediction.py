"""What a load is expected to take, and how that is learned; the bounds of budgets; what is shared."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora.errors import InvalidArgument
from modelmora_lifecycle.domain import HOST, MIB, EngineLimits, EngineProfile, StartMode, VersionFacts
from modelmora_lifecycle.known import VERSIONS_KEPT, KnownVersions
from modelmora_lifecycle.ledger import Budget, Device, Ledger, bounds
from modelmora_lifecycle.prediction import Measured, Pace, Prediction, Setup, nonsense, setup_of, sum_of_seconds

FACTS = VersionFacts("models/a/b/versions/1", "torch", artifact_bytes=100 * MIB)
LIMITS = EngineLimits(max_batch_tokens=1000)
FORKED, SPAWNED = StartMode.FORKED, StartMode.SPAWNED


def measured(**figures: object) -> Measured:
    return Measured(FACTS.name, setup_of(FACTS), **figures)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "learned", "source", "expected"),
    [
        (FACTS, None, "predicted", 470 * MIB),
        (replace(FACTS, weight_bytes=80 * MIB), None, "predicted", 434 * MIB),
        (replace(FACTS, weight_bytes=80 * MIB, declared={HOST: 7}), None, "declared", 7),
        (replace(FACTS, declared={HOST: 7}), measured(base={HOST: 90}, growth={HOST: 10}), "measured", 90),
        (replace(FACTS, declared={HOST: 7}), measured(loading={HOST: 90}), "declared", 7),
        (VersionFacts("e", "echo"), None, "predicted", 32 * MIB),
    ],
)
def test_the_best_source_is_taken(facts: VersionFacts, learned: Measured | None, source: str, expected: int) -> None:
    prediction = Prediction()
    assert prediction.source(facts, learned) == source
    assert prediction.expected(facts, learned) == {HOST: expected}


def test_a_load_reserves_its_peak_while_loading_and_keeps_what_it_needs() -> None:
    learned = measured(loading={HOST: 300}, base={HOST: 100})
    assert Prediction().before_load(FACTS, learned) == {HOST: 300}
    assert Prediction().after_load(FACTS, learned) == {HOST: 110}


@pytest.mark.parametrize(
    ("seen", "largest", "expected"),
    [(0, 1000, 132), (1000, 1000, 132), (800, 1000, 137), (500, 1000, 154), (10, 1000, 154), (500, 0, 132)],
)
def test_growth_in_use_is_extrapolated_to_larger_batches_within_a_limit(seen: int, largest: int, expected: int) -> None:
    learned = measured(
        limits=EngineLimits(max_batch_tokens=largest), base={HOST: 100}, growth={HOST: 20}, batch_tokens=seen
    )
    assert Prediction().after_load(FACTS, learned) == {HOST: expected}


def test_a_load_is_predicted_as_the_last_one_was_whatever_requests_added() -> None:
    learned = measured().after_load({HOST: 500}, 1.0, LIMITS, FORKED).in_use({HOST: 300}, 1000)
    assert Prediction().expected(FACTS, learned) == {HOST: 500}
    assert learned.peak == {HOST: 800}
    assert Prediction().before_load(FACTS, learned) == {HOST: 880}
    assert learned.after_load({HOST: 480}, 1.0, LIMITS, FORKED).base == {HOST: 480}, "not the highest ever"


def test_what_requests_once_took_fades_and_comes_back_when_they_do() -> None:
    learned = measured().after_load({HOST: 500}, 1.0, LIMITS, FORKED).in_use({HOST: 100}, 1000)
    for _ in range(10):
        learned = learned.after_load({HOST: 500}, 1.0, LIMITS, FORKED)
    assert 30 <= learned.growth[HOST] <= 40
    assert learned.in_use({HOST: 100}, 50).growth == {HOST: 100}
    assert learned.in_use({HOST: -20}, 50).growth == learned.growth


def test_a_fork_brings_no_libraries_of_its_own() -> None:
    facts = replace(FACTS, weight_bytes=80 * MIB)
    assert Prediction().before_load(facts, None, forked=True) == {HOST: (84 + 64) * MIB}
    assert Prediction().server(facts) == {HOST: 350 * MIB}


def test_other_limits_are_measured_anew_and_load_times_by_start_mode() -> None:
    first = measured().after_load({HOST: 100}, 4.0, LIMITS, SPAWNED).in_use({HOST: 200}, 10)
    again = first.after_load({HOST: 90}, 6.0, LIMITS, SPAWNED)
    assert again.peak == {HOST: 270}
    assert again.typical_load_seconds == 5.0
    forked = again.after_load({HOST: 90}, 0.2, LIMITS, FORKED)
    assert forked.typical_load_seconds == 0.2
    assert again.after_load({HOST: 90}, 6.0, EngineLimits(max_batch_tokens=5), SPAWNED).peak == {HOST: 90}


def test_one_slow_load_does_not_count_for_five() -> None:
    learned = measured()
    for seconds in (1.0, 1.1, 60.0, 0.9, 1.0):
        learned = learned.after_load({HOST: 1}, seconds, LIMITS, FORKED)
    assert learned.typical_load_seconds == 1.0


def test_a_setup_is_engine_profile_and_devices() -> None:
    assert setup_of(FACTS) == Setup("torch", "", "host")
    tuned = replace(FACTS, profile=EngineProfile("torch", "bf16"), declared={HOST: 1, "cuda:0": 5, "cuda:1": 0})
    assert setup_of(tuned) == Setup("torch", "torch/bf16", "cuda:0+host")


@pytest.mark.parametrize(
    ("memory", "wrong"),
    [
        ({HOST: 0}, ""),
        ({HOST: 100}, ""),
        ({HOST: 101}, "which has 100"),
        ({HOST: -1}, "-1 bytes"),
        ({"gpu": 1}, "exist"),
    ],
)
def test_figures_that_cannot_be_are_named(memory: dict[str, int], wrong: str) -> None:
    said = nonsense(memory, {HOST: 100})
    assert wrong in said
    assert bool(said) == bool(wrong)


def test_what_is_late_is_later_than_one_thinks() -> None:
    pace = Pace().after(4.0)
    assert pace.left(10.0, 11.0) == 3.0
    assert pace.left(10.0, 14.0) == pytest.approx(0.4), "a tenth of what it took so far"
    assert pace.left(10.0, 14.0, 1.0) == 1.0
    assert pace.left(10.0, 20.0, 1.0) == 6.0, "as long again as it is late"
    assert pace.after(8.0).seconds == 5.0
    assert Pace().left(0.0, 1.0) is None
    assert sum_of_seconds((1.0, 2.0)) == 3.0
    assert sum_of_seconds((1.0, None)) is None


def test_what_is_known_of_versions_is_bounded_and_the_used_stay() -> None:
    known = KnownVersions()
    for number in range(VERSIONS_KEPT + 1):
        known.see(VersionFacts(f"v{number}", "echo"), lambda: {"v3"})
    assert "v3" in known
    assert "v4" not in known
    assert f"v{VERSIONS_KEPT}" in known


def test_a_version_never_loaded_is_guessed_by_its_engine() -> None:
    known = KnownVersions()
    other = known.see(FACTS, set)
    assert known.load_seconds(other) is None
    known.took("torch", 4.0)
    assert known.load_seconds(other) == 4.0
    other.measure(other.measuring().after_load({HOST: 1}, 9.0, LIMITS, FORKED))
    assert known.load_seconds(other) == 9.0


# Budgets.


def test_a_budget_is_bytes_or_a_share() -> None:
    devices = {HOST: Device(1000, "cgroup"), "cuda:0": Device(500, "device"), "cuda:1": Device(500, "device")}
    found = bounds(devices, {HOST: Budget(memory_bytes=300), "cuda:0": Budget(share=0.5)}, 0.8)
    assert found.ceiling == {HOST: 300, "cuda:0": 250, "cuda:1": 400}
    assert found.spare == {HOST: 500, "cuda:0": 0, "cuda:1": 0}
    assert found.limited_by == {HOST: "cgroup", "cuda:0": "device", "cuda:1": "device"}
    assert found.warnings == ()
    ledger = Ledger({}).bounded(found).observe({HOST: 600, "cuda:1": 100})
    assert ledger.budget == {HOST: 200, "cuda:0": 250, "cuda:1": 300}
    assert ledger.observe({HOST: 500}).budget[HOST] == 300


def test_a_budget_larger_than_the_machine_is_taken_with_a_warning() -> None:
    found = bounds({HOST: Device(1000)}, {HOST: Budget(memory_bytes=2000)}, 0.8)
    assert found.warnings == ("the budget of host is 2000 bytes; there are 1000, and only they count",)
    ledger = Ledger({}).bounded(found)
    assert ledger.budget == {HOST: 1000}
    assert ledger.observe({HOST: 300}).budget == {HOST: 700}


@given(st.integers(1, 5000), st.integers(1, 2000), st.floats(0.01, 1), st.integers(0, 3000))
def test_what_is_in_force_is_never_more_than_the_budget_nor_than_others_leave(
    memory_bytes: int, total: int, share: float, foreign: int
) -> None:
    found = bounds({HOST: Device(total)}, {HOST: Budget(memory_bytes)}, share)
    budget = Ledger({}).bounded(found).observe({HOST: foreign}).budget[HOST]
    assert 0 <= budget <= min(memory_bytes, max(0, total - foreign))
    if foreign == 0:
        assert budget == min(memory_bytes, total)


@pytest.mark.parametrize(
    "budgets",
    [
        {HOST: Budget()},
        {HOST: Budget(share=1.5)},
        {HOST: Budget(memory_bytes=-5)},
        {HOST: Budget(memory_bytes=5, share=0.5)},
        {"tpu": Budget(share=0.5)},
    ],
)
def test_a_budget_that_cannot_be_is_refused_at_its_field(budgets: dict[str, Budget]) -> None:
    with pytest.raises(InvalidArgument) as raised:
        bounds({HOST: Device(1000)}, budgets, 0.8)
    assert raised.value.fields[0].field == f"budgets.{next(iter(budgets))}"


# What is shared.


def test_a_shared_charge_has_users_or_stays() -> None:
    ledger = Ledger({HOST: 100}).reserve("a", {HOST: 10}).reserve("b", {HOST: 10})
    ledger = ledger.share("artifacts/x", {HOST: 30}, ["a", "b", "gone"]).share("fork-servers/t", {HOST: 5})
    assert ledger.charged == {HOST: 55}
    assert ledger.freed_by(["a"]) == {HOST: 10}
    assert ledger.freed_by(["a", "b"]) == {HOST: 50}
    assert ledger.release("a").charged == {HOST: 45}
    assert ledger.release("a").release("b").charged == {HOST: 5}
    assert ledger.share("fork-servers/t", {}).charged == {HOST: 50}
    assert ledger.share("artifacts/y", {HOST: 9}, ["gone"]) == ledger
    with pytest.raises(ValueError):
        ledger.share("a", {HOST: 1})


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(["reserve", "release", "share", "settle"]),
            st.integers(0, 60),
            st.sets(st.sampled_from("abc")),
        ),
        max_size=30,
    )
)
def test_nothing_is_charged_twice_and_nothing_is_left(steps: list[tuple[str, str, int, set[str]]]) -> None:
    ledger = Ledger({HOST: 1000})
    for owner, verb, memory_bytes, users in steps:
        if verb == "release":
            ledger = ledger.release(owner)
        elif verb == "share" and users:
            ledger = ledger.share(f"artifacts/{owner}", {HOST: memory_bytes}, users)
        elif verb == "reserve" and owner not in ledger.charges:
            ledger = ledger.reserve(owner, {HOST: memory_bytes})
        elif verb == "settle" and owner in ledger.charges:
            ledger = ledger.settle(owner, {HOST: memory_bytes})
        own = [name for name in ledger.charges if "/" not in name]
        assert set(ledger.users) == {name for name in ledger.charges if "/" in name}
        assert ledger.freed_by(own) == ({HOST: ledger.charged[HOST]} if ledger.charged else {})
    for owner in "abc":
        ledger = ledger.release(owner)
    assert ledger.charges == {}
    assert ledger.users == {}


def test_growth_is_reckoned_by_the_token_unless_the_owner_has_said_what_the_model_takes() -> None:
    prediction, limits = Prediction(growth_factor=1.0), EngineLimits(max_batch_tokens=1000)
    facts = VersionFacts("a", "echo", weight_bytes=1)
    measured = Measured("a", setup_of(facts), limits, base={HOST: 100}, growth={HOST: 30, "cuda:0": 7}, batch_tokens=10)
    assert prediction.after_load(facts, measured) == {HOST: 160, "cuda:0": 14}
    declared = replace(facts, declared={HOST: 110})
    assert prediction.after_load(declared, measured) == {HOST: 130, "cuda:0": 14}
    assert prediction.at_least(facts, measured) == {HOST: 100}
    assert prediction.at_least(declared, measured) == {HOST: 110}


def test_who_keeps_to_what_was_declared_is_charged_that_and_no_more() -> None:
    prediction = Prediction()
    facts = VersionFacts("a", "echo", declared={HOST: 320})
    within = Measured("a", setup_of(facts), base={HOST: 290}, growth={HOST: 7})
    assert prediction.after_load(facts, within) == {HOST: 320}
    assert prediction.after_load(facts, replace(within, growth={HOST: 40})) == {HOST: 363}
