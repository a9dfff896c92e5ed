"""The deadlines of calls that wait: one timer of the event loop for all, as nearly every call ends before its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

_COMPACT_AT = 64
_SOONEST_SECONDS = 0.001
"""Timers of the event loop count in milliseconds and may be a little early."""


class Deadlines(Generic[T]):
    """Calls `expire` with everything that is still there when its time comes."""

    def __init__(self, expire: Callable[[T], None]) -> None:
        self._expire = expire
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
        self._rings = deadline
        self._timer = self._loop.call_later(max(_SOONEST_SECONDS, deadline - now), self._ring)

    def _ring(self) -> None:
        self._timer, self._rings = None, float("inf")
        now = time.monotonic()
        while self._heap and (not self._heap[0][2] or self._heap[0][0] <= now):
            for item in heappop(self._heap)[2]:
                self._expire(item)
        if self._heap and self._heap[0][0] < self._rings:
            self._ring_at(self._heap[0][0], now)
