"""Deadlines of many calls on one timer."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

from modelmora_inference.deadlines import Deadlines
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

    deadlines = Deadlines(expire)
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
    deadlines = Deadlines[str](lambda name: expired.set())
    deadlines.add(time.monotonic() + 3600, "late")
    deadlines.add(time.monotonic() - 1, "over")
    async with asyncio.timeout(30):
        await expired.wait()
    assert len(deadlines) == 1
    deadlines.close()


async def test_nothing_of_what_was_taken_back_stays() -> None:
    deadlines = Deadlines[Waiting](lambda waiting: None)
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
    deadlines = Deadlines[Call](lambda call: None)
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
