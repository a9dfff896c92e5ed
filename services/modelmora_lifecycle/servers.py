"""Fork servers as the scheduler knows them: what they take, how long their start takes, and which of them run. Pure.

The first load of a family starts its server, which imports its libraries then: seconds, on a loaded machine minutes,
that no later load sees. So they are learned apart from loads, and are told beside them only while they are still ahead.
A server is measured like a version whose name is its owner in the ledger: what was learned is kept with the rest.

A server may be there and fork nothing: a library is missing, or an accelerator is open in it. Then workers are spawned
after all, with all the libraries for their own; the first one of the family shows it, and it is expected of the next.
Every launch asks the server first and starts it where none runs, so each load counts it. A worker that was spawned
because its server died shows nothing: what was reserved for both is what it takes.

A server whose memory is needed is leaving: it ends once no worker of its is left, and until it is gone none is started.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from modelmora_lifecycle.domain import StartMode
from modelmora_lifecycle.ledger import Vector, largest
from modelmora_lifecycle.prediction import LOADS_KEPT, OVERDUE_SECONDS, Measured, Pace, Setup

PREFIX = "fork-servers/"


class ForkServers:
    """All of them by owner, `fork-servers/<family>`."""

    def __init__(self) -> None:
        self._measured: dict[str, Measured] = {}
        self._since: dict[str, float] = {}
        self._open: dict[str, float] = {}
        """Since when they take orders."""
        self._barren: set[str] = set()
        self.leaving: dict[str, bool] = {}
        """By owner: whose memory is needed, and whether they were told to end."""

    def measurement(self, owner: str) -> Measured | None:
        return self._measured.get(owner)

    def remember(self, measured: Measured) -> None:
        """Of before this process started; changes nothing that is known better by now."""
        self._measured.setdefault(measured.version, measured)

    def memory(self, owner: str) -> Vector:
        """Bytes by device to reserve for it: the most that it had, importing or later, when it was there last; empty:
        it never was."""
        measured = self._measured.get(owner)
        return largest(measured.base, measured.loading) if measured is not None and measured.base else {}

    def took(self, owner: str, memory: Vector, *, importing: bool) -> None:
        measured = self._measuring(owner).while_loading(memory)
        self._measured[owner] = measured if importing else replace(measured, base=dict(memory))

    def starting(self, owner: str, now: float) -> None:
        """A load has it started."""
        self._measured[owner] = replace(self._measuring(owner), loading={})
        self._open.pop(owner, None)
        self._since[owner] = now

    def opened(self, owner: str, seconds: float, now: float) -> bool:
        """It takes orders, after `seconds`. Whether that is news."""
        if owner in self._open:
            return False
        self._open[owner] = now
        before = self._measuring(owner)
        self._measured[owner] = replace(before, load_seconds=(*before.load_seconds, seconds)[-LOADS_KEPT:])
        return True

    def ended(self, owner: str) -> None:
        self._since.pop(owner, None)
        self._open.pop(owner, None)
        self.leaving.pop(owner, None)

    def launched(self, owner: str, mode: StartMode, refused: bool) -> None:
        """A worker of its family was started in this way; `refused`: because the server forks nothing."""
        if mode is StartMode.FORKED:
            self._barren.discard(owner)
        elif refused:
            self._barren.add(owner)

    def forks(self, owner: str) -> bool:
        """Whether the next worker is expected to come from it: it did not refuse the last one."""
        return owner not in self._barren

    def open_since(self, owner: str) -> float | None:
        """Since when it takes orders; None while it does not."""
        return self._open.get(owner)

    def start_seconds(self, owner: str, default: float) -> float:
        """How long its start takes."""
        measured = self._measured.get(owner)
        return (measured.typical_load_seconds if measured is not None else None) or default

    def ready_in(self, owner: str, default: float, now: float) -> float:
        """Seconds until one that starts or runs takes orders."""
        if owner in self._open:
            return 0.0
        seconds = self.start_seconds(owner, default)
        return Pace(seconds).left(self._since.get(owner, now), now, OVERDUE_SECONDS) or 0.0

    def _measuring(self, owner: str) -> Measured:
        return self._measured.get(owner) or Measured(owner, Setup(owner.removeprefix(PREFIX)))

    def __copy__(self) -> ForkServers:
        other = ForkServers()
        other._measured, other._since, other._open = copy(self._measured), copy(self._since), copy(self._open)
        other._barren, other.leaving = copy(self._barren), copy(self.leaving)
        return other
