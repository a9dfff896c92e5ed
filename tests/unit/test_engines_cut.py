"""Cutting sorted rows into passes, and dropping dead rows from one."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st
from modelmora_worker.engines.base import MicroBatch
from modelmora_worker.engines.sentence_transformers import cut, fill
from modelmora_worker.pipeline import drop_dead

lengths = st.lists(st.integers(1, 300), max_size=9).map(sorted)


def cost(rows: list[int], ends: tuple[int, ...], pass_tokens: int) -> int:
    return sum((end - start) * rows[end - 1] + pass_tokens for start, end in pairwise((0, *ends)))


def allowed(rows: list[int], ends: tuple[int, ...], budget: int) -> bool:
    return all(end - start == 1 or (end - start) * rows[end - 1] <= budget for start, end in pairwise((0, *ends)))


@given(lengths, st.integers(16, 1000), st.integers(0, 100))
def test_a_cut_is_the_cheapest_of_all_within_the_budget(rows, budget, pass_tokens):
    ends = tuple(cut(rows, budget, pass_tokens))
    if not rows:
        assert ends == ()
        return
    assert ends[-1] == len(rows)
    assert allowed(rows, ends, budget)
    every = ((*inner, len(rows)) for count in range(len(rows)) for inner in combinations(range(1, len(rows)), count))
    best = min(cost(rows, one, pass_tokens) for one in every if allowed(rows, one, budget))
    assert cost(rows, ends, pass_tokens) == best


def test_equal_rows_go_together_and_unequal_ones_apart():
    assert cut([10] * 8, 512, 28) == [8]
    assert cut([8, 8, 250, 250], 512, 28) == [2, 4]
    assert cut([300, 300, 300], 512, 28) == [1, 2, 3]


@given(st.lists(st.integers(1, 300), max_size=20), st.integers(16, 600))
def test_passes_without_padding_keep_order_and_budget(rows, budget):
    ends = fill(rows, budget)
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == len(rows)
    passes = [rows[start:end] for start, end in pairwise((0, *ends))]
    assert all(len(one) == 1 or sum(one) <= budget for one in passes)
    # None could have taken the first of the next.
    assert all(sum(one) + after[0] > budget for one, after in pairwise(passes))


def batch(*positions: int) -> MicroBatch:
    return MicroBatch(
        list(positions), [10 + p for p in positions], [p % 2 == 0 for p in positions], [f"r{p}" for p in positions]
    )


def test_expired_and_withdrawn_rows_are_dropped_with_their_reasons():
    rows = batch(3, 1, 0, 2)
    failed = drop_dead(rows, deadlines=[5.0, 9.0, float("inf"), 9.0], dropped={3}, now=5.0)
    assert [(f.position, f.error.reason) for f in failed] == [(3, "Cancelled"), (0, "DeadlineExceeded")]
    assert rows == batch(1, 2)


def test_without_deadlines_nothing_is_dropped():
    rows = batch(0, 1)
    assert drop_dead(rows, deadlines=(), dropped=set(), now=1e9) == []
    assert rows == batch(0, 1)


@given(st.sets(st.integers(0, 20)), st.lists(st.floats(0, 10), min_size=21, max_size=21), st.floats(0, 10))
def test_every_row_is_either_kept_whole_or_failed_once(dropped, deadlines, now):
    rows = batch(*range(21))
    failed = drop_dead(rows, deadlines, dropped, now)
    assert sorted([f.position for f in failed] + rows.positions) == list(range(21))
    assert rows == batch(*rows.positions)
    assert all(p not in dropped and deadlines[p] > now for p in rows.positions)
