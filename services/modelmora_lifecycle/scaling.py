"""How many replicas of a version there should be, and on how many threads each computes. Pure.

A further replica pays when requests wait although every replica is at work. Holders tell what waits with them
(`InUse`); from that alone it is judged:

    up      reports of an oldest that has waited for `up_wait_seconds` or longer have come for `up_after_seconds`, never
            more than `report_seconds` apart, and the last change is `pause_seconds` ago. One at a time: each load
            changes what the next report says.
    down    a replica beyond the first and beyond the minimum was idle for `idle_seconds`.

A batch that begins takes all that waits, and what comes then has not waited for long: between two long batches a report
of a short wait is no sign of ease. (With batches of 3 s the second replica took 20 s when one such report was enough to
start over.)

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
    """Pressure is over when no report has told of it for so long: holders repeat theirs every second while something
    waits."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one holder has queued beyond what is in flight."""

    waiting_entries: int = 0
    oldest_wait_seconds: float = 0.0
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Pressure:
    """When reports of a wait that is too long began, and when the last one came; `NO_PRESSURE`: there is none."""

    since: float = float("-inf")
    last: float = float("-inf")

    def after(self, reports: Iterable[Report], rules: Scaling, now: float) -> Pressure:
        """With what holders have told by now."""
        last = max(
            (r.time for r in reports if r.waiting_entries > 0 and r.oldest_wait_seconds >= rules.up_wait_seconds),
            default=NO_PRESSURE.last,
        )
        if now - max(last, self.last) > rules.report_seconds:
            return NO_PRESSURE
        goes_on = last - self.last <= rules.report_seconds
        return Pressure(self.since if goes_on else last, max(last, self.last))


NO_PRESSURE = Pressure()


def one_more(pressure: Pressure, last_change: float, rules: Scaling, now: float) -> bool:
    """Whether it is time for a further replica."""
    return (
        pressure != NO_PRESSURE
        and pressure.last - pressure.since >= rules.up_after_seconds
        and now - last_change >= rules.pause_seconds
    )


def threads(cpu_cores: int, replicas: int, declared: int, limited: bool = False) -> int:
    """Threads of one replica of a version that may have `replicas` of them on `cpu_cores`: a fair share, so that all of
    them at work do not take more than there is. What the owner `declared` wins. 0: as many as the engine likes, because
    it is alone on a machine that is ours whole, or the number of cores is unknown (0). `limited`: the machine has more
    cores than we may use, and an engine that counts for itself would count those.

    The share goes by how many there may be, not by how many there are: a process cannot change its threads later, and
    replicas with unlike numbers of threads would round unlike, so that an answer depended on which one gave it.
    """
    if declared > 0:
        return declared
    return max(1, cpu_cores // replicas) if cpu_cores > 0 and (replicas > 1 or limited) else 0
