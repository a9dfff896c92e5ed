"""The words of lifecycle: what a replica is, the states it may be in, and what is known of the version it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from modelmora.errors import IllegalTransition

HOST = "host"
"""Name of main memory among the devices."""


class ReplicaState(Enum):
    """States of a replica; the values are the words of filters and JSON."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    FAILED = "failed"
    SLEEPING = "sleeping"


_S = ReplicaState
TRANSITIONS: Mapping[ReplicaState, frozenset[ReplicaState]] = {
    _S.UNLOADED: frozenset({_S.LOADING}),
    _S.LOADING: frozenset({_S.LOADED, _S.FAILED}),
    _S.LOADED: frozenset({_S.UNHEALTHY, _S.DRAINING, _S.SLEEPING, _S.FAILED}),
    _S.UNHEALTHY: frozenset({_S.LOADED, _S.DRAINING, _S.FAILED}),
    _S.DRAINING: frozenset({_S.UNLOADED, _S.LOADED, _S.FAILED}),
    _S.FAILED: frozenset({_S.UNLOADED}),
    _S.SLEEPING: frozenset({_S.LOADED}),
}
"""The one table of transitions. DRAINING → LOADED holds only while the replica is not claimed (see `Replica.to`)."""


class HealthState(Enum):
    """How well a replica is, as last told by its worker. DEGRADED still serves."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Health:
    """One measured state of health; `check_time` is on the monotonic clock, 0 when there was no check yet."""

    state: HealthState = HealthState.UNKNOWN
    reason: str = ""
    check_time: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """What decides how an engine computes; see the message of the same name."""

    backend: str = ""
    precision: str = ""
    library_versions: Mapping[str, str] = field(default_factory=dict)
    batch_rule: str = ""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds that the engine told after its load; 0 where it has none."""

    max_input_tokens: int = 0
    embedding_dimensions: int = 0
    max_batch_tokens: int = 0
    max_batch_entries: int = 0


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a load took: measured bytes by device and the seconds from launch to LOADED."""

    memory: Mapping[str, int]
    load_seconds: float


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What lifecycle knows of an immutable version; enough to load it again while the registry is away."""

    name: str
    engine: str
    artifact_path: str = ""
    artifact_bytes: int = 0
    task_type: int = 0
    cpu_threads: int = 0
    declared: Mapping[str, int] = field(default_factory=dict)
    """Bytes by device that the owner of the version asks for; a charge never falls below them."""
    profile: EngineProfile = EngineProfile()
    options: bytes = b""
    """Serialised `google.protobuf.Struct`; only the engine understands it."""


MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Prediction:
    """How the bytes of a load are guessed before it was ever measured."""

    artifact_factor: float = 1.2
    engine_overhead_bytes: int = 350 * MIB
    """Libraries and buffers of an engine that reads files."""
    bare_overhead_bytes: int = 32 * MIB
    """A worker whose engine needs no files."""
    growth_factor: float = 1.1
    """Room above what was measured."""

    def before_load(self, facts: VersionFacts, measured: Mapping[str, int]) -> dict[str, int]:
        """Bytes by device to reserve: what the owner declared, and never less than this very version took before; the
        size of its files as a guess when nothing is known."""
        if measured:
            return self.after_load(facts, measured)
        if facts.declared.get(HOST, 0) > 0:
            return dict(facts.declared)
        overhead = self.engine_overhead_bytes if facts.artifact_bytes > 0 else self.bare_overhead_bytes
        return {**facts.declared, HOST: int(facts.artifact_bytes * self.artifact_factor) + overhead}

    def after_load(self, facts: VersionFacts, measured: Mapping[str, int]) -> dict[str, int]:
        """Bytes by device to charge once `measured` (the highest so far) is known."""
        return {
            device: max(facts.declared.get(device, 0), int(measured.get(device, 0) * self.growth_factor))
            for device in {**facts.declared, **measured}
        }


@dataclass(frozen=True, slots=True)
class Replica:
    """One version in memory, in one worker process. Times are seconds on the monotonic clock."""

    uid: str
    version: str
    engine: str
    create_time: float
    update_time: float
    state: ReplicaState = ReplicaState.UNLOADED
    reason: str = ""
    pid: int = 0
    profile: EngineProfile = EngineProfile()
    limits: EngineLimits = EngineLimits()
    peak: Mapping[str, int] = field(default_factory=dict)
    health: Health = Health()
    pinned: bool = False
    claimed_by: str = ""
    """Uid of the replica whose victim this one is; empty when no victim set has claimed it."""
    last_used_time: float = 0.0
    loaded_time: float = 0.0
    load_seconds: float = 0.0
    revision: int = 1

    @property
    def name(self) -> str:
        return f"replicas/{self.uid}"

    def to(self, state: ReplicaState, reason: str, now: float, **changes: object) -> Replica:
        """This replica in `state`. IllegalTransition when the table does not allow it, or when a replica that a victim
        set has claimed is to be revived: the load it makes room for counts on its memory."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(
                f"{self.name} cannot go from {self.state.name} to {state.name}",
                replica=self.name,
                state=self.state.name,
                wanted=state.name,
            )
        revived = self.state is ReplicaState.DRAINING and state is ReplicaState.LOADED
        if revived and (self.claimed_by and changes.get("claimed_by", self.claimed_by)):
            raise IllegalTransition(f"{self.name} makes room for replicas/{self.claimed_by}", replica=self.name)
        return self.changed(now, state=state, reason=reason, **changes)

    def changed(self, now: float, **changes: object) -> Replica:
        """This replica with other facts, one revision later."""
        return replace(self, update_time=now, revision=self.revision + 1, **changes)  # type: ignore[arg-type]
