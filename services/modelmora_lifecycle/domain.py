"""The words of lifecycle: what a replica is, the states it may be in, and what is known of the version it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from modelmora.errors import IllegalTransition, InvalidArgument

HOST = "host"
"""Name of main memory among the devices."""

MIB = 1024 * 1024


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


class StartMode(Enum):
    """How a worker process came to be: as a new program, or as a fork of its family's fork server."""

    SPAWNED = "spawned"
    FORKED = "forked"


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
    """What a load took: measured bytes by device, and the seconds from launch to LOADED without the start of a fork
    server, which the loads that follow do not wait for."""

    memory: Mapping[str, int]
    load_seconds: float


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What lifecycle knows of an immutable version; enough to load it again while the registry is away."""

    name: str
    """A candidate of a tuning has `#backend/precision` after it: for lifecycle it is a version of its own."""
    engine: str
    artifact_path: str = ""
    artifact_bytes: int = 0
    artifact_digest: str = ""
    weight_bytes: int = 0
    """Of the weights by the headers of their files; 0 where nobody has read them."""
    task_type: int = 0
    takes_images: bool = False
    """Image files instead of texts."""
    cpu_threads: int = 0
    """0: as many as the engine likes. What `Effects.start` is given has the number that was decided."""
    declared: Mapping[str, int] = field(default_factory=dict)
    """Bytes by device that the owner of the version asks for; a charge never falls below them."""
    profile: EngineProfile = EngineProfile()
    options: bytes = b""
    """Serialised `google.protobuf.Struct`; only the engine understands it."""


@dataclass(frozen=True, slots=True)
class Residency:
    """How a version is kept in memory; a version nobody has said anything of has the defaults."""

    pinned: bool = False
    """Never evicted; loaded as soon as there is room."""
    keep_alive_seconds: float | None = None
    """Unloaded after so long without use; None: the rule of the node."""
    min_replicas: int = 0
    """Loaded as soon as there is room, and neither evicted nor unloaded below this number."""
    max_replicas: int = 1
    preload: bool = False
    """Loaded once, when lifecycle starts, and tried until it was; may be evicted like any other."""

    def __post_init__(self) -> None:
        if not (0 <= self.min_replicas <= self.max_replicas and 1 <= self.max_replicas <= MAX_REPLICAS):
            raise InvalidArgument.at("max_replicas", f"0 <= min_replicas <= max_replicas <= {MAX_REPLICAS}")
        if self.keep_alive_seconds is not None and not self.keep_alive_seconds >= 0:
            raise InvalidArgument.at("keep_alive", "must not be negative")

    @property
    def kept_replicas(self) -> int:
        """How many are to be in memory although nobody asks."""
        return max(self.min_replicas, int(self.pinned))


MAX_REPLICAS = 64


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
    start_mode: StartMode | None = None
    """None until it is launched."""
    cpu_threads: int = 0
    """0: as many as the engine likes."""
    predicted: Mapping[str, int] = field(default_factory=dict)
    """Bytes that it was expected to have right after its load."""
    need_source: str = ""
    """Where that came from: `measured`, `declared` or `predicted`."""
    granted: Mapping[str, int] = field(default_factory=dict)
    """Bytes that were reserved for its load."""
    footprint: Mapping[str, int] = field(default_factory=dict)
    """Bytes that it had right after its load."""
    peak: Mapping[str, int] = field(default_factory=dict)
    health: Health = Health()
    pinned: bool = False
    claimed_by: str = ""
    """Uid of the replica whose victim this one is; empty when no victim set has claimed it."""
    last_used_time: float = 0.0
    uses: int = 0
    """How often it went from idle to busy."""
    clock: float = 0.0
    """The ageing clock of the eviction policy when it was last used."""
    start_time: float = 0.0
    """When its load began."""
    loaded_time: float = 0.0
    load_seconds: float = 0.0
    out_of_memory: bool = False
    """It ended, or was ended, for lack of memory."""
    revision: int = 1

    @property
    def name(self) -> str:
        return f"replicas/{self.uid}"

    @property
    def idle_since(self) -> float:
        """Its last use; of one that was never loaded the beginning of its load: it is no older than that."""
        return self.last_used_time or self.start_time

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
