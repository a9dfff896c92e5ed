"""What a load will take, in bytes and in seconds: guessed at first, then learned from what was measured.

Bytes, the best source first:

    measured    by this very version in the same setup: bytes right after its loads, plus the growth in use
    declared    by the owner of the version; also the least that is ever charged
    predicted   the weights by the headers of their files, else the size of all files; plus what the engine takes

Growth in use is mostly activations, so it goes with the largest batch. When the engine takes larger batches than were
seen, the growth is extrapolated per token, but never beyond `batch_growth_limit` times what was seen: an allocator that
keeps 20 MB after its first batch of ten tokens does not need 30 GB for a full one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

from modelmora_lifecycle.domain import HOST, MIB, EngineLimits, StartMode, VersionFacts
from modelmora_lifecycle.ledger import Vector, largest, minus, plus, positive

LOADS_KEPT = 5
Source = Literal["measured", "declared", "predicted"]


@dataclass(frozen=True, slots=True)
class Setup:
    """What a measurement holds for, beside the version: the same weights in bf16, or on a device, take other bytes."""

    engine: str
    profile: str = ""
    """`backend/precision` as asked for; empty for the engine's own choice."""
    devices: str = HOST
    """Names joined by `+`, in order."""


def setup_of(facts: VersionFacts) -> Setup:
    """The setup in which `facts` would be loaded now."""
    profile = facts.profile
    devices = sorted({HOST, *positive(facts.declared)})
    named = f"{profile.backend}/{profile.precision}" if profile.backend or profile.precision else ""
    return Setup(facts.engine, named, "+".join(devices))


@dataclass(frozen=True, slots=True)
class Measured:
    """What a version took on this node in one setup. A value to be stored and given back with `Scheduler.remember`."""

    version: str
    setup: Setup
    limits: EngineLimits = field(default_factory=EngineLimits)
    """As the engine told; with other limits everything is measured anew."""
    loading: Vector = field(default_factory=dict)
    """Highest while loading, bytes by device."""
    steady: Vector = field(default_factory=dict)
    """Highest right after a load."""
    peak: Vector = field(default_factory=dict)
    """Highest ever after a load."""
    batch_tokens: int = 0
    """Of the largest batch behind `peak`; 0: unknown."""
    start_mode: StartMode | None = None
    load_seconds: tuple[float, ...] = ()
    """Of the last loads in `start_mode`, oldest first."""

    def after_load(self, memory: Vector, seconds: float, limits: EngineLimits, mode: StartMode | None) -> Measured:
        """With one more load that took `seconds` and left `memory`."""
        before = self if limits == self.limits else Measured(self.version, self.setup, limits)
        earlier = self.load_seconds if mode is self.start_mode else ()
        return replace(
            before,
            steady=largest(before.steady, memory),
            peak=largest(before.peak, memory),
            start_mode=mode,
            load_seconds=(*earlier, seconds)[-LOADS_KEPT:],
        )

    def in_use(self, memory: Vector, batch_tokens: int) -> Measured:
        """With `memory` seen after batches of at most `batch_tokens`."""
        return replace(self, peak=largest(self.peak, memory), batch_tokens=max(self.batch_tokens, batch_tokens))

    def while_loading(self, memory: Vector) -> Measured:
        return replace(self, loading=largest(self.loading, memory))

    @property
    def typical_load_seconds(self) -> float | None:
        """The median of the last loads; one that met a cold disk does not count for five."""
        return median(self.load_seconds) if self.load_seconds else None


@dataclass(frozen=True, slots=True)
class Prediction:
    """How the bytes of a load are guessed."""

    artifact_factor: float = 1.2
    weight_factor: float = 1.05
    engine_overhead_bytes: int = 350 * MIB
    """Libraries and buffers of an engine that reads files."""
    bare_overhead_bytes: int = 32 * MIB
    """A worker whose engine needs no files."""
    growth_factor: float = 1.1
    """Room above what was measured."""
    batch_growth_limit: float = 2.0
    """The most that growth in use is extrapolated to larger batches."""

    def source(self, facts: VersionFacts, measured: Measured | None) -> Source:
        if measured is not None and measured.peak:
            return "measured"
        return "declared" if facts.declared.get(HOST, 0) > 0 else "predicted"

    def expected(self, facts: VersionFacts, measured: Measured | None) -> dict[str, int]:
        """Bytes by device that a loaded worker is expected to take at most, without room above."""
        if measured is not None and measured.peak:
            return plus(measured.peak, self._further_growth(measured))
        if facts.declared.get(HOST, 0) > 0:
            return dict(facts.declared)
        if facts.weight_bytes > 0:
            host = int(facts.weight_bytes * self.weight_factor) + self.engine_overhead_bytes
        elif facts.artifact_bytes > 0:
            host = int(facts.artifact_bytes * self.artifact_factor) + self.engine_overhead_bytes
        else:
            host = self.bare_overhead_bytes
        return {**facts.declared, HOST: host}

    def before_load(self, facts: VersionFacts, measured: Measured | None) -> dict[str, int]:
        """Bytes by device to reserve for a load: never less than this very version took before, loading or loaded, nor
        than its owner declared."""
        if measured is None:
            return self.expected(facts, None)
        if not measured.peak:
            return largest(self.expected(facts, None), measured.loading)
        return largest(self.after_load(facts, measured), measured.loading)

    def after_load(self, facts: VersionFacts, measured: Measured) -> dict[str, int]:
        """Bytes by device to charge once something was measured."""
        taken = self.expected(facts, measured)
        return {
            device: max(facts.declared.get(device, 0), int(taken.get(device, 0) * self.growth_factor))
            for device in {**facts.declared, **taken}
        }

    def _further_growth(self, measured: Measured) -> dict[str, int]:
        """The activation allowance: what batches larger than those seen may take beyond the peak."""
        seen, largest_batch = measured.batch_tokens, measured.limits.max_batch_tokens
        if seen <= 0 or largest_batch <= seen:
            return {}
        factor = min(largest_batch / seen, self.batch_growth_limit) - 1.0
        return {device: int(b * factor) for device, b in positive(minus(measured.peak, measured.steady)).items()}


def nonsense(memory: Mapping[str, int], exists: Vector) -> str:
    """Why these figures of an engine cannot be; empty when they can. `exists`: bytes of each device."""
    for device, memory_bytes in sorted(memory.items()):
        if memory_bytes < 0:
            return f"{memory_bytes} bytes on {device}"
        if device in exists and memory_bytes > exists[device]:
            return f"{memory_bytes} bytes on {device}, which has {exists[device]}"
        if device not in exists and memory_bytes > 0:
            return f"{memory_bytes} bytes on {device}, which does not exist"
    return ""


@dataclass(frozen=True, slots=True)
class Pace:
    """A time that is learned as an exponentially weighted mean: the newest counts a quarter."""

    seconds: float | None = None

    def after(self, seconds: float) -> Pace:
        return Pace(seconds if self.seconds is None else self.seconds + (seconds - self.seconds) / 4)

    def left(self, since: float, now: float) -> float | None:
        """Seconds that something begun at `since` will still take; when it is overdue, a tenth of what it took so far:
        what is late is later than one thinks."""
        if self.seconds is None:
            return None
        passed = now - since
        return self.seconds - passed if passed < self.seconds else passed / 10


def sum_of_seconds(parts: Sequence[float | None]) -> float | None:
    """The sum, or None when one of them is unknown."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
