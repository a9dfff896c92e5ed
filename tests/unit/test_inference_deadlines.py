"""Deadlines of many calls on one timer."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import pytest
from modelmora_inference.deadlines import Deadlines, Lateness, early_seconds
from modelmora_inference.dispatcher import Call
from modelmora_inference.domain import Priority


class Waiting:
    """Something with a deadline."""


async def test_what_is_not_taken_back_expires_in_the_order_of_the_deadlines() -> None:
    expired: list[str] = []
    last = asyncio.Event()

    def expire(name: str) -> None:
        expired.append(name)
        if name == "third":
            last.set()

    deadlines = Deadlines(expire, Lateness())
    now = time.monotonic()
    deadlines.add(now + 0.03, "third")
    deadlines.add(now + 0.02, "taken back").clear()
    deadlines.add(now + 0.01, "first")
    deadlines.add(now + 0.02, "second")
    async with asyncio.timeout(30):
        await last.wait()
    assert expired == ["first", "second", "third"]
    assert time.monotonic() >= now + 0.03


async def test_an_early_deadline_does_not_wait_for_a_late_one_that_came_before() -> None:
    expired = asyncio.Event()
    deadlines = Deadlines[str](lambda name: expired.set(), Lateness())
    deadlines.add(time.monotonic() + 3600, "late")
    deadlines.add(time.monotonic() - 1, "over")
    async with asyncio.timeout(30):
        await expired.wait()
    assert len(deadlines) == 1
    deadlines.close()


async def test_nothing_of_what_was_taken_back_stays() -> None:
    deadlines = Deadlines[Waiting](lambda waiting: None, Lateness())
    waiting = Waiting()
    seen = weakref.ref(waiting)
    held = deadlines.add(time.monotonic() + 3600, waiting)
    del waiting
    gc.collect()
    assert seen() is not None
    held.clear()
    assert seen() is None
    for _ in range(10_000):
        deadlines.add(time.monotonic() + 3600, Waiting()).clear()
    assert len(deadlines) < 100
    alive = [deadlines.add(time.monotonic() + 3600, Waiting()) for _ in range(1_000)]
    for _ in range(10_000):
        deadlines.add(time.monotonic() + 3600, Waiting()).clear()
    assert 1_000 <= len(deadlines) <= 2_100
    assert all(alive)
    deadlines.close()
    assert not len(deadlines)


async def test_an_answered_call_is_not_kept_for_its_deadline() -> None:
    deadlines = Deadlines[Call](lambda call: None, Lateness())
    now = time.monotonic()
    call = Call(
        priority=Priority.MEDIUM,
        tenant="default",
        arrival=now,
        deadline=now + 3600,
        normalize=True,
        truncate=True,
        dimensions=0,
        exact=False,
        done=asyncio.get_running_loop().create_future(),
    )
    held = call.held = deadlines.add(call.deadline, call)
    call.end()
    assert not held
    deadlines.close()


@pytest.mark.parametrize(
    ("call_seconds", "late_seconds", "early"),
    [
        (60, 0.0, 0.02),
        (60, 0.05, 0.12),  # the answer will be as late on its way
        (60, 3.0, 0.27),  # no more than that for a machine that stood still
        (1, 3.0, 0.1),  # and a tenth of its time
        (0.1, 0.0, 0.01),
    ],
)
def test_a_call_is_answered_the_earlier_the_later_its_answer_would_be(
    call_seconds: float, late_seconds: float, early: float
) -> None:
    assert early_seconds(call_seconds, late_seconds) == pytest.approx(early)


def test_what_was_late_counts_for_some_seconds() -> None:
    late = Lateness()
    assert late.seconds(100.0) == 0.0
    late.saw(0.4, 100.0)
    late.saw(0.1, 101.0)
    assert 0.35 < late.seconds(101.0) < 0.4
    late.saw(0.5, 101.0)
    assert late.seconds(101.0) == 0.5
    assert late.seconds(160.0) < 0.01


async def test_how_late_it_rings_is_heard() -> None:
    rang: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    late = Lateness()
    deadlines = Deadlines[str](lambda name: rang.set_result(late.seconds(time.monotonic())), late)
    deadlines.add(time.monotonic() + 0.001, "late")
    held_until = time.monotonic() + 0.2
    while time.monotonic() < held_until:  # nobody else has a turn
        pass
    async with asyncio.timeout(30):
        assert await rang > 0.1
    deadlines.close()
