"""The words of inference: priorities, entries, batches, and the bounds they live in."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

MAX_TEXTS = 2048
"""Most texts in one call."""
MAX_TEXT_CHARACTERS = 100_000
"""Longest text."""
MAX_TIMEOUT_SECONDS = 600.0
"""Longest `timeout` of a request; nothing waits longer in a queue, so nobody is told to come back later than that."""
RETRY_SECONDS = 0.1
"""Who finds a model that is not in memory is not told to ask again sooner."""
OVERDUE_SECONDS = 1.0
"""The least that a model is said to take still when it is overdue, or when nobody knows."""


def seconds_left(due: float, now: float) -> float:
    """Seconds until a model is ready that should be so at `due`. Lifecycle tells of another moment when a load is late;
    until it has: as long again as it is late, and never nothing."""
    return due - now if now < due else max(OVERDUE_SECONDS, now - due)


def retry_after(seconds: float | None) -> float:
    """When to ask again for a model that should be ready in `seconds`; None: nobody knows."""
    return OVERDUE_SECONDS if seconds is None else max(RETRY_SECONDS, seconds)


def in_words(seconds: float) -> str:
    """How long somebody had; less than a millisecond is no 0.000 s."""
    return f"{seconds:.3f} s" if seconds >= 0.001 else "less than a millisecond"


class Priority(IntEnum):
    """How urgent; the numbers are those of the message."""

    LOW = 10
    MEDIUM = 20
    HIGH = 30


class Place(Enum):
    """Where an entry is. WAITING ⇄ RUNNING → ENDED, WAITING → ENDED; nothing leaves ENDED."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that one queue holds, waiting and on a worker together, all above 0."""

    max_entries: int = 16_384
    max_tokens: int = 16_000_000
    max_bytes: int = 256 * 1024 * 1024


@dataclass(slots=True, eq=False)
class ByteBudget:
    """Bytes of text that all queues of this process hold together."""

    limit_bytes: int = 1024 * 1024 * 1024
    held_bytes: int = 0
    by_tenant: dict[str, int] = field(default_factory=dict)
    queues: dict[Any, None] = field(default_factory=dict)
    """Those that hold something."""


@dataclass(frozen=True, slots=True)
class Aging:
    """For how long a request lets others pass: a priority by its offset, a tenant for the sake of fairness.

    The bound: a request is overtaken only by requests that arrive within max(offset of its priority, fairness) after
    it, however many come. queue.py says why.
    """

    medium_seconds: float = 30.0
    low_seconds: float = 90.0
    fairness_seconds: float = 60.0
    """Longer, and the shares of tenants hold in deeper overload; shorter, and a request is sooner safe from others."""

    def offset(self, priority: Priority) -> float:
        """Seconds that a request of this priority lets more urgent ones pass. HIGH has none."""
        if priority is Priority.HIGH:
            return 0.0
        return self.medium_seconds if priority is Priority.MEDIUM else self.low_seconds


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one replica takes."""

    max_entries: int = 256
    """Most entries in one batch."""
    max_tokens: int = 8192
    """Most tokens in one batch, as estimated; a single entry may be longer."""
    max_batches: int = 2
    """Batches on the worker at a time: one computes, the next is tokenised."""
    split_tokens: int = 256
    """A batch of at most so many tokens is not split to give the second place something to do."""
    max_bytes: int = 16 * 1024 * 1024
    """Most bytes in one batch; a single entry may be larger. Images weigh more than their tokens tell, and a worker's
    wire takes 72 MiB at a time."""


@dataclass(slots=True, eq=False)
class Entry:
    """One unit of work in a queue: its payload, whom to answer, and its clock.

    Times are on the monotonic clock, in seconds. The fields below the line belong to the queue.
    """

    payload: object
    call: object
    """Whom to answer; the queue never looks."""
    index: int
    """Position in its call."""
    priority: Priority
    tenant: str
    arrival: float
    deadline: float
    tokens: int
    """Estimated, at least 1; the worker counts."""
    size_bytes: int
    lane: Hashable = None
    """Entries of one lane may share a batch."""

    place: Place = Place.ENDED
    sequence: int = 0
    batch: Batch | None = None
    position: int = 0
    """In its batch."""
    suspect: bool = False
    """A worker died, or failed, while its batch was running: it runs alone from now on."""
    lone_deaths: int = 0
    """How often a worker died while this was the only entry on it."""


@dataclass(slots=True, eq=False)
class Batch:
    """Entries of one priority on their way through a worker, answered by position."""

    entries: list[Entry]
    tokens: int
    worker: Worker
    key: float
    """Where its oldest entry stood in the order: arrival + offset."""
    priority: Priority
    rank: int = 0
    """The worker computes higher ranks first, from its next micro-batch on."""
    alone: bool = False
    """Nothing else may be on the worker beside it."""
    answered: int = 0
    """Positions that the worker has answered, whether anybody still wanted them or not."""
    wanted: int = 0
    """Entries that somebody still waits for."""
    unanswered_tokens: int = 0
    had_more: bool = False
    """When it went something waited, or ran on its worker: how fast it is answered says how fast a queue drains."""
    queue_was_full: bool = False
    """By half at least, when it went: how fast it is answered says how fast a full queue drains."""


@dataclass(slots=True, eq=False)
class Worker:
    """One worker as the queue sees it: what it takes and what is on it."""

    limits: BatchLimits = field(default_factory=BatchLimits)
    running: list[Batch] = field(default_factory=list)
    """Oldest first."""


@dataclass(frozen=True, slots=True)
class TenantLevel:
    """What one tenant has waiting in one priority."""

    tenant: str
    weight: float
    entries: int
    tokens: int
    size_bytes: int
    oldest_age_seconds: float


@dataclass(frozen=True, slots=True)
class Level:
    """What waits in one priority."""

    priority: Priority
    entries: int
    tokens: int
    size_bytes: int
    oldest_age_seconds: float
    tenants: tuple[TenantLevel, ...] = ()
    """Those that wait, the longest wait first."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """What goes before an entry as things are now."""

    entries: int
    tokens: int


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What inference needs to know of a version; 0 where the registry does not know."""

    name: str
    """Resource name, `models/{org}/{repo}/versions/{version}`."""
    digest: str
    task_type: int
    """Number of the task type in the messages."""
    max_input_tokens: int = 0
    embedding_dimensions: int = 0
    takes_images: bool = False
    """Image files instead of texts."""
    labels: tuple[str, ...] = ()
    """Of a classifier, in the order of its scores; empty: only its engine knows."""
    fingerprint: str = ""
    """Of what the registry says about how it computes: engine, its options, the profile."""
