"""What health means: states, how they add up, and when a disk is ill."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

GIB = 1024**3
MIB = 1024**2


class State(enum.IntEnum):
    """Ordered from well to ill; the numbers are not those of the proto."""

    HEALTHY = 0
    DEGRADED = 1
    UNKNOWN = 2
    UNHEALTHY = 3


@dataclass(frozen=True, slots=True)
class Health:
    """One state, why it is not HEALTHY, and when it was last looked at (UTC)."""

    state: State
    reason: str
    check_time: datetime


NECESSARY = frozenset({"inference", "lifecycle"})
"""What no answer comes without. A model in memory answers while registry and database are away."""


def roll_up(components: Mapping[str, Health], now: datetime) -> Health:
    """1. The worst of the necessary components, if one of them is ill. 2. Else DEGRADED if another is. 3. HEALTHY.

    A necessary component that is not there counts as UNKNOWN. The reason names what is ill, the worst first.
    """
    seen = {name: Health(State.UNKNOWN, "not asked", now) for name in NECESSARY} | dict(components)
    ill = sorted((name for name in seen if seen[name].state), key=lambda name: (-seen[name].state, name))
    reason = "; ".join(f"{name}: {seen[name].reason or seen[name].state.name.lower()}" for name in ill)
    worst = max((seen[name].state for name in NECESSARY), default=State.HEALTHY)
    if worst:
        return Health(worst, reason, now)
    return Health(State.DEGRADED if ill else State.HEALTHY, reason, now)


def disk_health(total_bytes: int, free_bytes: int, now: datetime) -> Health:
    """UNHEALTHY below 256 MiB: the database could not write. DEGRADED below 1 GiB or 2 %: the next import may fail."""
    free = f"{free_bytes / GIB:.1f} GiB of {total_bytes / GIB:.1f} GiB free"
    if free_bytes < 256 * MIB:
        return Health(State.UNHEALTHY, f"the disk is full: {free}", now)
    if free_bytes < GIB or free_bytes * 50 < total_bytes:
        return Health(State.DEGRADED, f"the disk is nearly full: {free}", now)
    return Health(State.HEALTHY, "", now)
