"""UUID version 7: ordered, unique, and what other readers of the RFC expect."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora.errors import InvalidArgument
from modelmora_runtime.ids import compose, parse, successor, uuid7

COUNTERS = st.integers(0, 2**42 - 1)


@given(
    start=st.tuples(st.integers(0, 2**47), COUNTERS),
    steps=st.lists(st.tuples(st.integers(0, 2**47), st.integers(0, 2**48 - 1)), min_size=1, max_size=50),
)
def test_each_id_is_greater_than_the_one_before_whatever_the_clock_does(
    start: tuple[int, int], steps: list[tuple[int, int]]
) -> None:
    last = start
    for now, seed in steps:
        following = successor(last, now, seed)
        # The random tail must not decide: all zeros after all ones.
        assert compose(*following, 0) > compose(*last, 2**32 - 1)
        assert following[1] < 2**42
        last = following


@given(milliseconds=st.integers(0, 2**48 - 1), counter=COUNTERS, tail=st.integers(0, 2**32 - 1))
def test_the_bits_are_where_the_rfc_puts_them(milliseconds: int, counter: int, tail: int) -> None:
    value = compose(milliseconds, counter, tail)
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert value.int >> 80 == milliseconds
    assert (value.int >> 64 & 0xFFF) << 30 | value.int >> 32 & 0x3FFF_FFFF == counter
    assert value.int & 0xFFFF_FFFF == tail


def test_a_full_counter_borrows_the_next_millisecond() -> None:
    assert successor((1000, 2**42 - 1), 1000, 5) == (1001, 5)


def test_ids_of_many_threads_are_distinct_and_each_thread_sees_its_own_in_order() -> None:
    made: list[list[uuid.UUID]] = [[] for _ in range(4)]

    def make(mine: list[uuid.UUID]) -> None:
        mine.extend(uuid7() for _ in range(2000))

    threads = [threading.Thread(target=make, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in made)
    assert len({value for mine in made for value in mine}) == 8000


def test_an_id_begins_with_when_it_was_made() -> None:
    before = time.time_ns() // 10**6
    made = uuid7().int >> 80
    assert before <= made <= time.time_ns() // 10**6 + 1


def test_parsing_takes_the_canonical_form_only() -> None:
    value = uuid7()
    assert parse(str(value)) == parse(str(value).upper()) == value
    for text in ("", "x", value.hex, f"{{{value}}}", f"urn:uuid:{value}", str(value) + " ", "0" * 36):
        with pytest.raises(InvalidArgument) as caught:
            parse(text, "job.uid")
        assert caught.value.fields[0].field == "job.uid"
