"""The deadlines of calls that wait: one timer of the event loop for all, as nearly every call ends before its own. And
how long before the caller's clock runs out that is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from math import exp
from typing import Generic, TypeVar

T = TypeVar("T")

ANSWER_BEFORE_SECONDS = 0.02
"""An expired call is answered so long before the caller's clock runs out, where timers are in time: the answer should
still find somebody who reads it."""
MOST_LATE_SECONDS = 0.25
"""Of a machine that stands still for longer no call pays more."""
_COMPACT_AT = 64
_SOONEST_SECONDS = 0.001
"""Timers of the event loop count in milliseconds and may be a little early."""


@dataclass(slots=True)
class Lateness:
    """How late this process has its turns: the latest timer of about the last ten seconds."""

    _seconds: float = 0.0
    _seen_time: float = 0.0

    def saw(self, seconds: float, now: float) -> None:
        self._seconds, self._seen_time = max(seconds, self.seconds(now)), now

    def seconds(self, now: float) -> float:
        return self._seconds * exp((self._seen_time - now) / 10.0)


def early_seconds(call_seconds: float, late_seconds: float) -> float:
    """How long before the end of its time a call is answered at the latest: longer when timers are late, since then so
    is the answer on its way (up to half of the expired calls heard from their own clock only); at most a tenth of it.
    """
    return min(ANSWER_BEFORE_SECONDS + min(2 * late_seconds, MOST_LATE_SECONDS), call_seconds / 10)


class Deadlines(Generic[T]):
    """Calls `expire` with everything that is still there when its time comes."""

    def __init__(self, expire: Callable[[T], None], lateness: Lateness) -> None:
        """`lateness` hears how late it rings."""
        self._expire = expire
        self._lateness = lateness
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int, list[T]]] = []
        self._compact_at = _COMPACT_AT
        self._sequence = count()
        self._timer: asyncio.TimerHandle | None = None
        self._rings = float("inf")

    def __len__(self) -> int:
        """What lies here, taken back or not."""
        return len(self._heap)

    def add(self, deadline: float, item: T) -> list[T]:
        """`deadline` is on the monotonic clock, in seconds. Whoever empties what is returned has taken it back."""
        held = [item]
        if len(self._heap) >= self._compact_at:
            self._heap = [one for one in self._heap if one[2]]
            heapify(self._heap)
            self._compact_at = max(_COMPACT_AT, 2 * len(self._heap))
        heappush(self._heap, (deadline, next(self._sequence), held))
        if deadline < self._rings:
            self._ring_at(deadline, time.monotonic())
        return held

    def close(self) -> None:
        """Nothing expires any more."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings = None, float("inf")

    def _ring_at(self, deadline: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings = max(deadline, now + _SOONEST_SECONDS)
        self._timer = self._loop.call_later(self._rings - now, self._ring)

    def _ring(self) -> None:
        now = time.monotonic()
        self._lateness.saw(now - self._rings, now)
        self._timer, self._rings = None, float("inf")
        while self._heap and (not self._heap[0][2] or self._heap[0][0] <= now):
            for item in heappop(self._heap)[2]:
                self._expire(item)
        if self._heap and self._heap[0][0] < self._rings:
            self._ring_at(self._heap[0][0], now)
