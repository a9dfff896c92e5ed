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
    MOST_DIFFERENCE,
    SLOWEST_ALONE,
    Candidate,
    Offer,
    Tuning,
    agreement,
    candidate_facts,
    choose,
    judged,
    sample_pairs,
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


LABELS = [(0.7, 0.2, 0.1), (0.2, 0.5, 0.3), (0.1, 0.1, 0.8), (0.34, 0.33, 0.33)]


def moved(rows, by):
    return [tuple(number + (by if at == 0 else -by) for at, number in enumerate(row)) for row in rows]


def test_a_classifier_is_judged_by_the_share_of_equal_labels():
    assert agreement(LABELS, LABELS) == 1
    assert agreement(moved(LABELS, 0.001), LABELS) == 1
    assert agreement(moved(LABELS, -0.01), LABELS) == 0.75, "one of four has another label"
    assert agreement([(0.51,), (0.2,)], [(0.495,), (0.2,)]) == 0.5, "of one label, whether it is likely"


def test_probabilities_that_differ_much_agree_in_nothing():
    for by, found in ((MOST_DIFFERENCE * 0.99, 1.0), (MOST_DIFFERENCE * 1.01, 0.0)):
        assert agreement(moved(LABELS[:3], by), LABELS[:3]) == found


def test_a_reranker_is_judged_by_the_order_of_texts_that_are_apart():
    scores = [(float(n),) for n in (-8, -4, -3.99, 2, 5)]
    assert agreement(scores, scores, ranks=True) == 1
    close = [(-8.0,), (-3.99,), (-4.0,), (2.0,), (5.0,)]
    assert agreement(close, scores, ranks=True) == 1, "which of two alike is first is nobody's loss"
    wrong = [(-8.0,), (-8.5,), (-3.99,), (2.0,), (5.0,)]
    assert agreement(wrong, scores, ranks=True) == pytest.approx(8 / 9), "one pair of ten is too close to tell"
    assert agreement([(score + 0.3,) for (score,) in scores], scores, ranks=True) == 0, "0.3 are 3 % at a score of 2"


def test_a_reader_is_judged_by_where_its_answers_are():
    answers = [(0.9, 4, 9), (0.4, 0, 3)]
    assert agreement([(0.905, 4, 9), (0.39, 0, 3)], answers, spans=True) == 1
    assert agreement([(0.9, 4, 9), (0.4, 1, 3)], answers, spans=True) == 0.5
    assert agreement([(0.8, 4, 9), (0.4, 0, 3)], answers, spans=True) == 0


@pytest.mark.parametrize("others", [[], LABELS[:2], [*LABELS[:3], (0.5, 0.5)], [*LABELS[:3], (math.nan, 0.3, 0.3)]])
def test_scores_that_cannot_be_compared_agree_in_nothing(others):
    assert agreement(LABELS, others) == 0
    assert agreement(others, LABELS) == 0


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9), st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9))
def test_an_agreement_is_a_share(scores, others):
    rows, other = [(score,) for score in scores], [(score,) for score in others]
    assert agreement(rows, rows, ranks=True) == agreement(rows, rows) == 1
    assert 0 <= agreement(rows, other, ranks=True) <= 1


def test_pairs_ask_for_their_own_text_and_for_another():
    texts = sample_texts()
    pairs = sample_pairs(texts)
    assert [text for _, text in pairs] == texts
    own = [set(query.split()) <= set(text.split()) for query, text in pairs]
    assert all(own[1::2])
    assert sum(own[::2]) <= 4
    assert all(query for query, _ in pairs)
