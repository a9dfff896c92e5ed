"""What would happen to a version if it were wanted now: the answer of `Scheduler.explain`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from modelmora.errors import ModelMoraError

from modelmora_lifecycle.domain import Replica, ReplicaState, VersionFacts
from modelmora_lifecycle.eviction import Decision, Verdict
from modelmora_lifecycle.ledger import Vector
from modelmora_lifecycle.prediction import Source


class PlacementOutcome(Enum):
    """The values are the words of JSON."""

    LOADED = "loaded"
    FITS = "fits"
    FITS_AFTER_EVICTION = "fits_after_eviction"
    WAITS = "waits"
    NEVER_FITS = "never_fits"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Placement:
    """What the scheduler would do for a version, with the arithmetic. All vectors are bytes by device."""

    version: str
    outcome: PlacementOutcome
    reason: str
    """For people, one sentence."""
    ready_in_seconds: float | None
    """0 when it is LOADED; None when never or unknown."""
    need: Vector
    need_source: Source
    free: Vector
    budget: Vector
    evictable: Vector
    """What those that may go, or are going for it, hold, fork servers included: with `free`, the room that can be made
    now."""
    verdicts: Sequence[Verdict] = ()
    """Every replica that was looked at, in the order in which it would go; `victim` says who does."""


@dataclass(slots=True)
class Notes:
    """Effects that only take notes: what an imagined scheduler would have done."""

    decisions: list[Decision] = field(default_factory=list)
    grants: dict[str, Replica] = field(default_factory=dict)
    refusals: dict[str, ModelMoraError] = field(default_factory=dict)

    def start(self, replica: Replica, facts: VersionFacts, need: Vector) -> None: ...

    def stop(self, replica: Replica, grace_seconds: float) -> None: ...

    def granted(self, lease: str, replica: Replica) -> None:
        self.grants[lease] = replica

    def loading(self, lease: str, estimate_seconds: float | None, reason: str) -> None: ...

    def yielding(self, lease: str, by: float, reason: str) -> None: ...

    def revoked(self, lease: str, reason: str, crashed: bool) -> None: ...

    def refused(self, lease: str, error: ModelMoraError) -> None:
        self.refusals[lease] = error

    def invite(self, lease: str, replica: Replica) -> None: ...

    def changed(self, replica: Replica, previous: ReplicaState) -> None: ...

    def decided(self, decision: Decision) -> None:
        self.decisions.append(decision)

    def end_server(self, owner: str) -> None: ...
