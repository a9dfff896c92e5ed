"""How many replicas of a version there should be, and on how many threads each computes. Pure.

A further replica pays when requests wait although every replica is at work. Holders tell what waits with them
(`InUse`); from that alone it is judged:

    up      the oldest has waited for `up_wait_seconds` or longer, in every report of the last `up_after_seconds`, and
            the last change is `pause_seconds` ago. One at a time: each load changes what the next report says.
    down    a replica beyond the first and beyond the minimum was idle for `idle_seconds`.

The gap between the two is the hysteresis: it takes seconds of waiting to come and a minute of idleness to go. A further
replica never displaces what is more useful than itself: it takes free memory, or that of what was idle as long as would
make it go itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scaling:
    """The figures of it."""

    up_wait_seconds: float = 1.0
    up_after_seconds: float = 2.0
    pause_seconds: float = 10.0
    idle_seconds: float = 60.0
    report_seconds: float = 3.0
    """A report older than this says nothing: holders repeat theirs every second while something waits."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one holder has queued beyond what is in flight."""

    waiting_entries: int = 0
    oldest_wait_seconds: float = 0.0
    time: float = 0.0


def pressed(reports: Iterable[Report], rules: Scaling, now: float) -> bool:
    """Whether someone waits longer than is fine."""
    return any(
        report.waiting_entries > 0
        and report.oldest_wait_seconds >= rules.up_wait_seconds
        and now - report.time <= rules.report_seconds
        for report in reports
    )


def one_more(pressed_since: float | None, last_change: float, rules: Scaling, now: float) -> bool:
    """Whether it is time for a further replica; `pressed_since` None: nobody waits too long."""
    return (
        pressed_since is not None
        and now - pressed_since >= rules.up_after_seconds
        and now - last_change >= rules.pause_seconds
    )


def threads(cpu_cores: int, replicas: int, declared: int) -> int:
    """Threads of one replica of a version that may have `replicas` of them on `cpu_cores`: a fair share, so that all of
    them at work do not take more than there is. What the owner `declared` wins. 0: as many as the engine likes, because
    it is alone or the number of cores is unknown (0).

    The share goes by how many there may be, not by how many there are: a process cannot change its threads later, and
    replicas with unlike numbers of threads would round unlike, so that an answer depended on which one gave it.
    """
    if declared > 0:
        return declared
    return max(1, cpu_cores // replicas) if cpu_cores > 0 and replicas > 1 else 0
