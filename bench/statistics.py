"""Pure figures: percentiles, ratios of interleaved pairs, and their bootstrap interval."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval. The claim is `low` where more is better, `high` where less is."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} [{self.low:.2f}, {self.high:.2f}]"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all values do not exceed; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(percent / 100 * len(ordered)) - 1))]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones; NaN of nothing."""
    if not values:
        return math.nan
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def bootstrap(values: Sequence[float], *, seed: int = 1, rounds: int = 4000) -> Interval:
    """The median of `values` and its bootstrap 95 % interval (percentile method)."""
    chance = random.Random(seed)
    medians = sorted(median(chance.choices(values, k=len(values))) for _ in range(rounds))
    return Interval(median(values), medians[int(0.025 * rounds)], medians[int(0.975 * rounds) - 1])
