"""What is known of versions: their facts, what they took, how they failed, what their queues ask for. Pure.

It outlives their replicas, and is bounded: versions that nobody uses are forgotten, the oldest first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace

from modelmora.errors import ModelMoraError

from modelmora_lifecycle.domain import HOST, StartMode, VersionFacts
from modelmora_lifecycle.ledger import Ledger, Vector, covers, largest, least, minus, plus
from modelmora_lifecycle.prediction import Measured, Pace, Prediction, Setup, Source, setup_of
from modelmora_lifecycle.scaling import NO_PRESSURE, Pressure

VERSIONS_KEPT = 10_000


@dataclass(slots=True)
class Known:
    """One version. Mutable: the scheduler writes into it as it learns."""

    facts: VersionFacts
    setup: Setup
    measurements: dict[Setup, Measured] = field(default_factory=dict)
    shared: dict[str, Vector] = field(default_factory=dict)
    """What its replicas were seen to share: charged beside their own bytes while nobody else has it charged."""
    outgrown: Vector = field(default_factory=dict)
    """What the next load is given at least, after one that outgrew what it was given."""
    load_seconds: float | None = None
    """The median of its last loads in this setup."""
    failures: int = 0
    crashed: bool = False
    """The last failure was a crash, not a load that failed."""
    retry_at: float = 0.0
    error: ModelMoraError | None = None
    """Of the last load, when it failed: wants before `retry_at` get it at once. After a crash they wait instead."""
    note: str = ""
    """Why it is not in memory, for people."""
    wait_until: float | None = None
    """When a wait for memory is expected to be over."""
    dismissed: bool = False
    """Unloaded by name, or not to be loaded at all: its residency rests until someone wants it again."""
    short_since: float | None = None
    """Since when it has had fewer replicas than are kept."""
    scale: int = 0
    """Replicas that its queue asks for; 0 when one will do."""
    pressure: Pressure = NO_PRESSURE
    scale_time: float = float("-inf")

    @property
    def measured(self) -> Measured | None:
        """In the present setup."""
        return self.measurements.get(self.setup)

    def measured_so(self, forked: bool) -> Measured | None:
        """What holds for a worker from a fork server, or not from one."""
        measured = self.measured
        return measured.started(StartMode.FORKED if forked else StartMode.SPAWNED) if measured is not None else None

    def trouble(self, now: float) -> str:
        """Why it is to be tried again, for people; empty when it is not."""
        if self.error is not None:
            return f"its last load failed: {self.error.message}"
        if now < self.retry_at or (self.crashed and self.failures > 1):
            return "its worker keeps crashing" if self.failures > 1 else "its worker crashed"
        return ""

    def measure(self, measured: Measured) -> None:
        self.measurements[measured.setup] = measured
        self.load_seconds = self.measured.typical_load_seconds if self.measured else None

    def measuring(self) -> Measured:
        """What was measured in the present setup, to be added to."""
        return self.measured or Measured(self.facts.name, self.setup)

    def see(self, facts: VersionFacts) -> None:
        """Facts as they are now: the profile of a version may change, and what its owner declares."""
        if facts != self.facts:
            self.facts, self.setup = facts, setup_of(facts)
            self.load_seconds = self.measured.typical_load_seconds if self.measured else None

    def need(
        self,
        prediction: Prediction,
        ledger: Ledger,
        server: Vector | None = None,
        forked: bool = False,
        room: Vector | None = None,
        available: Vector | None = None,
    ) -> dict[str, int]:
        """Bytes to reserve for one more replica: its own, what it shares with nobody yet, and the `server` that it is
        the first to need. `forked`: from a fork server, that one or another. `room`: all that could be had for it, if
        others went; what requests added before may take up no more than that leaves. `available`: without anybody's
        going; room above what was ever seen is taken from that alone."""
        shared = (memory for owner, memory in self.shared.items() if owner not in ledger.charges)
        own, beside = self.own(prediction, forked), plus(*shared, server or {})
        if room is not None:
            measured = self.measured_so(forked)
            least_own = largest(prediction.at_least(self.facts, measured, forked), self.outgrown)
            usual = least(prediction.usual(self.facts, measured, forked), minus(room, beside))
            own = largest(least_own, usual, least(own, minus(available or {}, beside)))
        return plus(own, beside)

    def own(self, prediction: Prediction, forked: bool) -> dict[str, int]:
        """The part of `need` that is its own."""
        return largest(prediction.before_load(self.facts, self.measured_so(forked), forked), self.outgrown)

    def source(self, prediction: Prediction, own: Vector, forked: bool) -> Source:
        """Where `own` bytes come from. What a load took that failed for it was measured, whatever was declared; what
        was declared stands where less was measured."""
        if self.facts.declared.get(HOST, 0) > 0 and covers(self.facts.declared, own):
            return "declared"
        guessed = prediction.expected(self.facts, None, forked)
        return prediction.source(self.facts, self.measured_so(forked)) if covers(guessed, own) else "measured"

    def failed(self, now: float, delay_seconds: float, error: ModelMoraError | None) -> None:
        self.retry_at, self.error = now + delay_seconds, error


class KnownVersions:
    """All of them by name, and what was remembered from before."""

    def __init__(self) -> None:
        self._by_name: dict[str, Known] = {}
        self._remembered: dict[str, dict[Setup, Measured]] = {}
        self._engine_pace: dict[str, Pace] = {}
        """Load seconds by engine: the guess for a version that was never loaded."""

    def __getitem__(self, name: str) -> Known:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[tuple[str, Known]]:
        return iter(self._by_name.items())

    def get(self, name: str) -> Known | None:
        return self._by_name.get(name)

    def see(self, facts: VersionFacts, used: Callable[[], Collection[str]]) -> Known:
        """The version with these facts. When it is one too many, some that are not `used` are forgotten."""
        known = self._by_name.get(facts.name)
        if known is not None:
            known.see(facts)
            return known
        known = self._by_name[facts.name] = Known(facts, setup_of(facts))
        for measured in self._remembered.pop(facts.name, {}).values():
            known.measure(measured)
        if len(self._by_name) > VERSIONS_KEPT:
            needed = used()
            for name in list(self._by_name)[: VERSIONS_KEPT // 10]:
                if name not in needed:
                    del self._by_name[name]
        return known

    def remember(self, measured: Measured) -> None:
        known = self._by_name.get(measured.version)
        if known is None:
            self._remembered.setdefault(measured.version, {})[measured.setup] = measured
        elif measured.setup not in known.measurements:
            known.measure(measured)

    def took(self, engine: str, load_seconds: float) -> None:
        self._engine_pace[engine] = self._engine_pace.get(engine, Pace()).after(load_seconds)

    def load_seconds(self, known: Known) -> float | None:
        """How long a load of it takes: learned of itself, else of others with its engine."""
        if known.load_seconds is not None:
            return known.load_seconds
        return self._engine_pace.get(known.facts.engine, Pace()).seconds

    def __copy__(self) -> KnownVersions:
        """Records of its own."""
        other = KnownVersions()
        other._by_name = {
            name: replace(known, measurements=dict(known.measurements), shared=dict(known.shared))
            for name, known in self._by_name.items()
        }
        other._remembered = dict(self._remembered)
        other._engine_pace = dict(self._engine_pace)
        return other
