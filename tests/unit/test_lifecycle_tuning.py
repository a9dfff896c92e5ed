"""Which profile is proposed: the accuracy gate, the margin, and the sample that decides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora.errors import InvalidArgument, TaskNotSupported
from modelmora_lifecycle.domain import EngineProfile, VersionFacts
from modelmora_lifecycle.tuning import (
    DEFAULT_GATE,
    MARGIN,
    SLOWEST_ALONE,
    Candidate,
    Offer,
    Tuning,
    candidate_facts,
    choose,
    judged,
    sample_texts,
    shuffled,
    similarity,
    to_measure,
)

OFFERED = ("torch/fp32", "torch/bf16", "openvino/bf16")
OFFER = Offer(OFFERED)


def candidate(name: str, speed: float, **figures: object) -> Candidate:
    backend, precision = name.split("/")
    figures = {"single_seconds": 0.03, "accuracy": 0.9999, "batch_consistency": 1.0, **figures}
    return judged(Candidate(EngineProfile(backend, precision), speed, **figures), DEFAULT_GATE)  # type: ignore[arg-type]


EXACT = candidate("torch/fp32", 30.0, accuracy=1.0)


def test_the_fastest_within_the_gate_is_proposed():
    choice = choose(EXACT, [candidate("torch/bf16", 60.0), candidate("openvino/bf16", 90.0)])
    assert choice.proposal is not None
    assert choice.proposal.backend == "openvino"
    assert choice.reason == "openvino/bf16 is 3.00 times as fast as torch/fp32"


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        ({"accuracy": 0.9994}, "gate"),
        ({"accuracy": math.nan}, "gate"),
        ({"batch_consistency": 0.9998}, "gate"),
        ({"error": "LoadFailed: no memory"}, "gate"),
        ({"single_seconds": 0.03 * SLOWEST_ALONE * 1.01}, "lone call"),
    ],
)
def test_a_faster_one_is_not_proposed_when(figures, word):
    choice = choose(EXACT, [candidate("torch/bf16", 600.0, **figures)])
    assert choice.proposal is None
    assert choice.reason.startswith("torch/fp32 stays")
    assert word in choice.reason


def test_a_gain_within_the_noise_changes_nothing():
    assert choose(EXACT, [candidate("torch/bf16", 30.0 * MARGIN * 0.999)]).proposal is None
    assert choose(EXACT, [candidate("torch/bf16", 30.0 * MARGIN * 1.001)]).proposal is not None


def test_nothing_else_to_choose_from_leaves_the_exact_one():
    assert choose(EXACT, []).proposal is None


names = st.sampled_from(["torch/bf16", "openvino/fp32", "openvino/bf16"])
figure = st.floats(0, 2)


@given(st.lists(st.tuples(names, st.floats(0, 1000), figure, st.floats(0.99, 1), st.floats(0.9998, 1)), max_size=6))
def test_whatever_is_proposed_is_accurate_consistent_and_faster(found):
    others = [
        candidate(name, speed, single_seconds=alone, accuracy=accuracy, batch_consistency=consistency)
        for name, speed, alone, accuracy, consistency in found
    ]
    choice = choose(EXACT, others)
    able = [c for c in others if c.within_gate and c.single_seconds <= EXACT.single_seconds * SLOWEST_ALONE]
    if choice.proposal is None:
        assert all(c.entries_per_second < 30.0 * MARGIN for c in able)
        return
    best = max(able, key=lambda c: c.entries_per_second)
    assert choice.proposal == best.profile
    assert best.accuracy >= DEFAULT_GATE
    assert best.batch_consistency >= 0.9999
    assert best.entries_per_second >= 30.0 * MARGIN


def test_the_exact_profile_is_always_measured_and_first():
    assert [c.name for c in to_measure(OFFER, [], "e")] == list(OFFERED)
    assert [c.name for c in to_measure(OFFER, ["openvino/bf16"], "e")] == ["torch/fp32", "openvino/bf16"]
    assert [c.name for c in to_measure(OFFER, ["torch/fp32"], "e")] == ["torch/fp32"]


def test_a_profile_whose_libraries_are_missing_is_told_with_what_to_install_and_never_chosen():
    offer = Offer(OFFERED, {"openvino/bf16": "openvino is not installed"})
    exact, other, missing = to_measure(offer, [], "e")
    assert (exact.error, other.error, missing.error) == ("", "", "openvino is not installed")
    assert not judged(replace(missing, accuracy=1.0, batch_consistency=1.0), DEFAULT_GATE).within_gate


def test_what_the_engine_does_not_have_is_refused_at_its_place():
    with pytest.raises(InvalidArgument) as caught:
        to_measure(OFFER, ["torch/bf16", "torch/int8"], "e")
    assert [violation.field for violation in caught.value.fields] == ["candidates[1]"]
    for offered in ((), ("echo/fp32",)):
        with pytest.raises(TaskNotSupported):
            to_measure(Offer(offered), [], "e")


def test_a_candidate_is_a_version_of_its_own_for_memory_and_leases():
    facts = VersionFacts("models/a/b/versions/1", "e", artifact_bytes=7)
    own = candidate_facts(facts, EngineProfile("torch", "bf16"))
    assert own.name == "models/a/b/versions/1#torch/bf16"
    assert own.profile.precision == "bf16"
    assert replace(own, name=facts.name, profile=facts.profile) == facts


def test_what_was_found_of_one_candidate_changes_no_other():
    tuning = Tuning("uid", "models/a/b/versions/1", DEFAULT_GATE, 0.0, candidates=to_measure(OFFER, [], "e"))
    found = tuning.measured(candidate("torch/bf16", 60.0))
    assert [c.entries_per_second for c in found.candidates] == [0, 60, 0]


def test_similarity_is_the_least_of_all_rows():
    rows = [(1.0, 0.0), (0.0, 1.0)]
    assert similarity(rows, rows) == 1
    assert similarity(rows, [(1.0, 0.0), (1.0, 1.0)]) == pytest.approx(math.sqrt(0.5))
    assert similarity(rows, [(2.0, 0.0), (0.0, 0.5)]) == pytest.approx(1)


@pytest.mark.parametrize(
    "others", [[], [(1.0, 0.0)], [(1.0, 0.0), (0.0,)], [(1.0, 0.0), (0.0, math.nan)], [(0.0, 0.0)] * 2]
)
def test_rows_that_cannot_be_compared_are_not_similar(others):
    assert similarity([(1.0, 0.0), (0.0, 1.0)], others) == 0


def test_the_sample_is_always_the_same_distinct_and_of_mixed_length():
    texts = sample_texts()
    assert texts == sample_texts()
    assert texts != sample_texts(seed=2)
    assert len(set(texts)) == len(texts) == 64
    words = sorted(len(text.split()) for text in texts)
    assert words[0] <= 25
    assert 60 <= words[32] <= 120
    assert 150 <= words[-1] <= 222


@given(st.integers(0, 200), st.integers(0, 9))
def test_a_shuffle_has_every_number_once(count, seed):
    order = shuffled(count, seed)
    assert sorted(order) == list(range(count))
    assert order == shuffled(count, seed)
