"""What a load will take, in bytes and in seconds: guessed at first, then learned from what was measured.

Bytes, the best source first:

    measured    by this very version in the same setup, right after its last load, if workers start as they did then:
                forked, or with libraries of their own
    declared    by the owner of the version; also the least that is ever charged
    predicted   the weights by the headers of their files, else the size of all files; plus what the engine takes

That is what a load leaves behind, the same each time. What requests add to it is another matter, for it goes with the
workload: the allowance, which is reserved beside it. It is mostly activations, so it goes with the largest batch: when
the engine takes larger batches than were seen, the growth is extrapolated per token, but never beyond
`batch_growth_limit` times what was seen: an allocator that keeps 20 MB after its first batch of ten tokens does not
need 30 GB for a full one. And it fades from load to load: what one long text once took is not reserved for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

from modelmora_lifecycle.domain import HOST, MIB, EngineLimits, StartMode, VersionFacts
from modelmora_lifecycle.ledger import Vector, largest, plus, positive

LOADS_KEPT = 5
GROWTH_KEPT = 0.9
"""So much of the growth in use is remembered at the next load."""
OVERDUE_SECONDS = 1.0
"""The least that a load is said to take still when it is overdue."""
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
    base: Vector = field(default_factory=dict)
    """Right after the last load and its warm-up; empty before the first one."""
    growth: Vector = field(default_factory=dict)
    """Highest beyond that in use, of late."""
    batch_tokens: int = 0
    """Of the largest batch behind `growth`; 0: unknown."""
    start_mode: StartMode | None = None
    load_seconds: tuple[float, ...] = ()
    """Of the last loads in `start_mode`, oldest first."""

    def after_load(self, memory: Vector, seconds: float, limits: EngineLimits, mode: StartMode | None) -> Measured:
        """With one more load that took `seconds` and left `memory`."""
        before = self.started(mode) if limits == self.limits else Measured(self.version, self.setup, limits)
        earlier = self.load_seconds if mode is self.start_mode else ()
        return replace(
            before,
            base=dict(memory),
            growth={device: int(b * GROWTH_KEPT) for device, b in before.growth.items()},
            start_mode=mode,
            load_seconds=(*earlier, seconds)[-LOADS_KEPT:],
        )

    def in_use(self, growth: Vector, batch_tokens: int) -> Measured:
        """With so much more than right after its load seen, after batches of at most `batch_tokens`."""
        growth = largest(self.growth, positive(growth))
        return replace(self, growth=growth, batch_tokens=max(self.batch_tokens, batch_tokens))

    @property
    def peak(self) -> dict[str, int]:
        """The most that it takes in use, as far as was seen."""
        return plus(self.base, self.growth)

    def while_loading(self, memory: Vector, mode: StartMode | None = None) -> Measured:
        before = self.started(mode)
        return replace(before, loading=largest(before.loading, memory), start_mode=mode or before.start_mode)

    def started(self, mode: StartMode | None) -> Measured:
        """What of it holds for a worker that is started in this way: libraries are its own, or its fork server's."""
        if mode is None or self.start_mode in (None, mode):
            return self
        return Measured(self.version, self.setup, self.limits, growth=self.growth, batch_tokens=self.batch_tokens)

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
    fork_overhead_bytes: int = 64 * MIB
    """The same of a fork: the libraries are charged to its fork server."""
    bare_overhead_bytes: int = 32 * MIB
    """A worker whose engine needs no files."""
    server_start_seconds: float = 5.0
    """Of a fork server that imports what reads files; 4.3 s were measured for torch on an idle machine."""
    bare_server_start_seconds: float = 0.5
    growth_factor: float = 1.1
    """Room above what was measured."""
    batch_growth_limit: float = 2.0
    """The most that growth in use is extrapolated to larger batches."""

    def source(self, facts: VersionFacts, measured: Measured | None) -> Source:
        if measured is not None and measured.base:
            return "measured"
        return "declared" if facts.declared.get(HOST, 0) > 0 else "predicted"

    def expected(self, facts: VersionFacts, measured: Measured | None, forked: bool = False) -> dict[str, int]:
        """Bytes by device that a worker is expected to have right after its load. `forked`: from a fork server."""
        if measured is not None and measured.base:
            return dict(measured.base)
        overhead_bytes = self.fork_overhead_bytes if forked else self.engine_overhead_bytes
        if facts.declared.get(HOST, 0) > 0:
            return dict(facts.declared)
        if facts.weight_bytes > 0:
            host = int(facts.weight_bytes * self.weight_factor) + overhead_bytes
        elif facts.artifact_bytes > 0:
            host = int(facts.artifact_bytes * self.artifact_factor) + overhead_bytes
        else:
            host = self.bare_overhead_bytes
        return {**facts.declared, HOST: host}

    def server(self, facts: VersionFacts) -> dict[str, int]:
        """Bytes by device that a fork server never seen is expected to take."""
        return {HOST: self.engine_overhead_bytes if facts.artifact_bytes > 0 else self.bare_overhead_bytes}

    def server_seconds(self, facts: VersionFacts) -> float:
        """How long the start of a fork server never seen is expected to take."""
        return self.server_start_seconds if facts.artifact_bytes > 0 else self.bare_server_start_seconds

    def before_load(self, facts: VersionFacts, measured: Measured | None, forked: bool = False) -> dict[str, int]:
        """Bytes by device to reserve for a load: never less than this very version took before, loading or loaded, nor
        than its owner declared."""
        if measured is None:
            return self.expected(facts, None, forked)
        if not measured.base:
            return largest(self.expected(facts, None, forked), measured.loading)
        return largest(self.after_load(facts, measured), measured.loading)

    def usual(self, facts: VersionFacts, measured: Measured | None, forked: bool = False) -> dict[str, int]:
        """The same without room above what was seen."""
        if measured is None or not measured.base:
            return self.before_load(facts, measured, forked)
        return largest(facts.declared, measured.peak, measured.loading)

    def at_least(self, facts: VersionFacts, measured: Measured | None, forked: bool = False) -> dict[str, int]:
        """The same without what requests add: with less no load can end."""
        return self.usual(facts, replace(measured, growth={}) if measured is not None else None, forked)

    def after_load(self, facts: VersionFacts, measured: Measured) -> dict[str, int]:
        """Bytes by device to charge once something was measured: with what requests add, and room above unless it is
        within what was declared."""
        taken = plus(self.expected(facts, measured), self.allowance(facts, measured))
        said = facts.declared
        above = {device: int(b * self.growth_factor) for device, b in taken.items() if b > said.get(device, 0)}
        return largest(said, above)

    def allowance(self, facts: VersionFacts, measured: Measured) -> dict[str, int]:
        """Bytes by device for what requests add: the growth that was seen, by the token, times the tokens that a batch
        may have. Who declares what it takes has said that of its largest batch too: then what was seen."""
        seen, largest_batch = measured.batch_tokens, measured.limits.max_batch_tokens
        factor = min(largest_batch / seen, self.batch_growth_limit) if 0 < seen < largest_batch else 1.0
        growth = measured.growth.items()
        return {device: int(b * (1.0 if facts.declared.get(device, 0) > 0 else factor)) for device, b in growth}


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

    def left(self, since: float, now: float, least: float = 0.0) -> float | None:
        """Seconds that something begun at `since` will still take. When it is overdue: as long again as it has been so,
        no less than a tenth of what it took so far, nor than `least`. What is late is later than one thinks, and a
        guess that shrank to nothing would have callers ask again all the time."""
        if self.seconds is None:
            return None
        passed = now - since
        late = passed - self.seconds
        return -late if late < 0 else max(late, passed / 10, least)


def sum_of_seconds(parts: Sequence[float | None]) -> float | None:
    """The sum, or None when one of them is unknown."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
