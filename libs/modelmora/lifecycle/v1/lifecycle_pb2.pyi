import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from modelmora.common.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_UNLOADED: _ClassVar[ReplicaState]
    REPLICA_STATE_LOADING: _ClassVar[ReplicaState]
    REPLICA_STATE_LOADED: _ClassVar[ReplicaState]
    REPLICA_STATE_UNHEALTHY: _ClassVar[ReplicaState]
    REPLICA_STATE_DRAINING: _ClassVar[ReplicaState]
    REPLICA_STATE_FAILED: _ClassVar[ReplicaState]
    REPLICA_STATE_SLEEPING: _ClassVar[ReplicaState]

class StartMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    START_MODE_UNSPECIFIED: _ClassVar[StartMode]
    START_MODE_SPAWNED: _ClassVar[StartMode]
    START_MODE_FORKED: _ClassVar[StartMode]

class PlacementOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLACEMENT_OUTCOME_UNSPECIFIED: _ClassVar[PlacementOutcome]
    PLACEMENT_OUTCOME_LOADED: _ClassVar[PlacementOutcome]
    PLACEMENT_OUTCOME_FITS: _ClassVar[PlacementOutcome]
    PLACEMENT_OUTCOME_FITS_AFTER_EVICTION: _ClassVar[PlacementOutcome]
    PLACEMENT_OUTCOME_WAITS: _ClassVar[PlacementOutcome]
    PLACEMENT_OUTCOME_NEVER_FITS: _ClassVar[PlacementOutcome]
    PLACEMENT_OUTCOME_REFUSED: _ClassVar[PlacementOutcome]

class EvictionTrigger(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVICTION_TRIGGER_UNSPECIFIED: _ClassVar[EvictionTrigger]
    EVICTION_TRIGGER_PLACEMENT: _ClassVar[EvictionTrigger]
    EVICTION_TRIGGER_OVERDRAFT: _ClassVar[EvictionTrigger]
    EVICTION_TRIGGER_FOREIGN: _ClassVar[EvictionTrigger]
    EVICTION_TRIGGER_BUDGET: _ClassVar[EvictionTrigger]
    EVICTION_TRIGGER_IDLE: _ClassVar[EvictionTrigger]
    EVICTION_TRIGGER_KEEP_ALIVE: _ClassVar[EvictionTrigger]
    EVICTION_TRIGGER_SCALE_DOWN: _ClassVar[EvictionTrigger]
    EVICTION_TRIGGER_DRAIN: _ClassVar[EvictionTrigger]
    EVICTION_TRIGGER_PROFILE: _ClassVar[EvictionTrigger]

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STATE_ACTIVE: _ClassVar[NodeState]
    NODE_STATE_CORDONED: _ClassVar[NodeState]
    NODE_STATE_STANDBY: _ClassVar[NodeState]

class TuningState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TUNING_STATE_UNSPECIFIED: _ClassVar[TuningState]
    TUNING_STATE_RUNNING: _ClassVar[TuningState]
    TUNING_STATE_SUCCEEDED: _ClassVar[TuningState]
    TUNING_STATE_FAILED: _ClassVar[TuningState]
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_UNLOADED: ReplicaState
REPLICA_STATE_LOADING: ReplicaState
REPLICA_STATE_LOADED: ReplicaState
REPLICA_STATE_UNHEALTHY: ReplicaState
REPLICA_STATE_DRAINING: ReplicaState
REPLICA_STATE_FAILED: ReplicaState
REPLICA_STATE_SLEEPING: ReplicaState
START_MODE_UNSPECIFIED: StartMode
START_MODE_SPAWNED: StartMode
START_MODE_FORKED: StartMode
PLACEMENT_OUTCOME_UNSPECIFIED: PlacementOutcome
PLACEMENT_OUTCOME_LOADED: PlacementOutcome
PLACEMENT_OUTCOME_FITS: PlacementOutcome
PLACEMENT_OUTCOME_FITS_AFTER_EVICTION: PlacementOutcome
PLACEMENT_OUTCOME_WAITS: PlacementOutcome
PLACEMENT_OUTCOME_NEVER_FITS: PlacementOutcome
PLACEMENT_OUTCOME_REFUSED: PlacementOutcome
EVICTION_TRIGGER_UNSPECIFIED: EvictionTrigger
EVICTION_TRIGGER_PLACEMENT: EvictionTrigger
EVICTION_TRIGGER_OVERDRAFT: EvictionTrigger
EVICTION_TRIGGER_FOREIGN: EvictionTrigger
EVICTION_TRIGGER_BUDGET: EvictionTrigger
EVICTION_TRIGGER_IDLE: EvictionTrigger
EVICTION_TRIGGER_KEEP_ALIVE: EvictionTrigger
EVICTION_TRIGGER_SCALE_DOWN: EvictionTrigger
EVICTION_TRIGGER_DRAIN: EvictionTrigger
EVICTION_TRIGGER_PROFILE: EvictionTrigger
NODE_STATE_UNSPECIFIED: NodeState
NODE_STATE_ACTIVE: NodeState
NODE_STATE_CORDONED: NodeState
NODE_STATE_STANDBY: NodeState
TUNING_STATE_UNSPECIFIED: TuningState
TUNING_STATE_RUNNING: TuningState
TUNING_STATE_SUCCEEDED: TuningState
TUNING_STATE_FAILED: TuningState

class Replica(_message.Message):
    __slots__ = ("name", "uid", "model_version", "state", "reason", "engine", "engine_profile", "pid", "charged", "peak", "health", "pinned", "leases", "busy_leases", "create_time", "update_time", "last_used_time", "load_duration", "revision", "start_mode", "predicted", "ready_in", "footprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CHARGED_FIELD_NUMBER: _ClassVar[int]
    PEAK_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    BUSY_LEASES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_TIME_FIELD_NUMBER: _ClassVar[int]
    LOAD_DURATION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    START_MODE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_FIELD_NUMBER: _ClassVar[int]
    READY_IN_FIELD_NUMBER: _ClassVar[int]
    FOOTPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    model_version: str
    state: ReplicaState
    reason: str
    engine: str
    engine_profile: _common_pb2.EngineProfile
    pid: int
    charged: _containers.RepeatedCompositeFieldContainer[_common_pb2.DeviceMemory]
    peak: _containers.RepeatedCompositeFieldContainer[_common_pb2.DeviceMemory]
    health: _common_pb2.Health
    pinned: bool
    leases: int
    busy_leases: int
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    last_used_time: _timestamp_pb2.Timestamp
    load_duration: _duration_pb2.Duration
    revision: int
    start_mode: StartMode
    predicted: _containers.RepeatedCompositeFieldContainer[_common_pb2.DeviceMemory]
    ready_in: _duration_pb2.Duration
    footprint: _containers.RepeatedCompositeFieldContainer[_common_pb2.DeviceMemory]
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., model_version: _Optional[str] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., reason: _Optional[str] = ..., engine: _Optional[str] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., pid: _Optional[int] = ..., charged: _Optional[_Iterable[_Union[_common_pb2.DeviceMemory, _Mapping]]] = ..., peak: _Optional[_Iterable[_Union[_common_pb2.DeviceMemory, _Mapping]]] = ..., health: _Optional[_Union[_common_pb2.Health, _Mapping]] = ..., pinned: bool = ..., leases: _Optional[int] = ..., busy_leases: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_used_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., load_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., revision: _Optional[int] = ..., start_mode: _Optional[_Union[StartMode, str]] = ..., predicted: _Optional[_Iterable[_Union[_common_pb2.DeviceMemory, _Mapping]]] = ..., ready_in: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., footprint: _Optional[_Iterable[_Union[_common_pb2.DeviceMemory, _Mapping]]] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model", "wait", "pin")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    model: str
    wait: bool
    pin: bool
    def __init__(self, model: _Optional[str] = ..., wait: bool = ..., pin: bool = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("replica",)
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    replica: Replica
    def __init__(self, replica: _Optional[_Union[Replica, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model", "force", "wait")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    model: str
    force: bool
    wait: bool
    def __init__(self, model: _Optional[str] = ..., force: bool = ..., wait: bool = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("replicas",)
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    def __init__(self, replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ...) -> None: ...

class GetReplicaRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetReplicaResponse(_message.Message):
    __slots__ = ("replica",)
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    replica: Replica
    def __init__(self, replica: _Optional[_Union[Replica, _Mapping]] = ...) -> None: ...

class ListReplicasRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "filter")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    filter: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ...) -> None: ...

class ListReplicasResponse(_message.Message):
    __slots__ = ("replicas", "next_page_token")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    next_page_token: str
    def __init__(self, replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchReplicasRequest(_message.Message):
    __slots__ = ("cursor",)
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    cursor: str
    def __init__(self, cursor: _Optional[str] = ...) -> None: ...

class WatchReplicasResponse(_message.Message):
    __slots__ = ("reset", "replica", "previous_state", "cursor")
    RESET_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_STATE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    reset: bool
    replica: Replica
    previous_state: ReplicaState
    cursor: str
    def __init__(self, reset: bool = ..., replica: _Optional[_Union[Replica, _Mapping]] = ..., previous_state: _Optional[_Union[ReplicaState, str]] = ..., cursor: _Optional[str] = ...) -> None: ...

class GetMemoryRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetMemoryResponse(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[DeviceLedger]
    def __init__(self, devices: _Optional[_Iterable[_Union[DeviceLedger, _Mapping]]] = ...) -> None: ...

class DeviceLedger(_message.Message):
    __slots__ = ("device", "total_bytes", "budget_bytes", "charged_bytes", "foreign_bytes", "charges", "limited_by", "configured_bytes")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHARGED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHARGES_FIELD_NUMBER: _ClassVar[int]
    LIMITED_BY_FIELD_NUMBER: _ClassVar[int]
    CONFIGURED_BYTES_FIELD_NUMBER: _ClassVar[int]
    device: str
    total_bytes: int
    budget_bytes: int
    charged_bytes: int
    foreign_bytes: int
    charges: _containers.RepeatedCompositeFieldContainer[MemoryCharge]
    limited_by: str
    configured_bytes: int
    def __init__(self, device: _Optional[str] = ..., total_bytes: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., charged_bytes: _Optional[int] = ..., foreign_bytes: _Optional[int] = ..., charges: _Optional[_Iterable[_Union[MemoryCharge, _Mapping]]] = ..., limited_by: _Optional[str] = ..., configured_bytes: _Optional[int] = ...) -> None: ...

class MemoryCharge(_message.Message):
    __slots__ = ("owner", "memory_bytes", "measured_bytes")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEASURED_BYTES_FIELD_NUMBER: _ClassVar[int]
    owner: str
    memory_bytes: int
    measured_bytes: int
    def __init__(self, owner: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., measured_bytes: _Optional[int] = ...) -> None: ...

class ExplainPlacementRequest(_message.Message):
    __slots__ = ("model", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    priority: _common_pb2.Priority
    def __init__(self, model: _Optional[str] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ...) -> None: ...

class ExplainPlacementResponse(_message.Message):
    __slots__ = ("placement",)
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    placement: Placement
    def __init__(self, placement: _Optional[_Union[Placement, _Mapping]] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("model_version", "outcome", "reason", "ready_in", "devices", "need_source", "victims", "candidates")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    READY_IN_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    NEED_SOURCE_FIELD_NUMBER: _ClassVar[int]
    VICTIMS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    outcome: PlacementOutcome
    reason: str
    ready_in: _duration_pb2.Duration
    devices: _containers.RepeatedCompositeFieldContainer[DeviceNeed]
    need_source: str
    victims: _containers.RepeatedCompositeFieldContainer[EvictionCandidate]
    candidates: _containers.RepeatedCompositeFieldContainer[EvictionCandidate]
    def __init__(self, model_version: _Optional[str] = ..., outcome: _Optional[_Union[PlacementOutcome, str]] = ..., reason: _Optional[str] = ..., ready_in: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., devices: _Optional[_Iterable[_Union[DeviceNeed, _Mapping]]] = ..., need_source: _Optional[str] = ..., victims: _Optional[_Iterable[_Union[EvictionCandidate, _Mapping]]] = ..., candidates: _Optional[_Iterable[_Union[EvictionCandidate, _Mapping]]] = ...) -> None: ...

class DeviceNeed(_message.Message):
    __slots__ = ("device", "need_bytes", "free_bytes", "budget_bytes", "evictable_bytes")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NEED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICTABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    device: str
    need_bytes: int
    free_bytes: int
    budget_bytes: int
    evictable_bytes: int
    def __init__(self, device: _Optional[str] = ..., need_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., evictable_bytes: _Optional[int] = ...) -> None: ...

class EvictionCandidate(_message.Message):
    __slots__ = ("replica", "model_version", "victim", "evictable", "pinned", "busy", "score", "idle", "resident_for", "charged", "reason")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    VICTIM_FIELD_NUMBER: _ClassVar[int]
    EVICTABLE_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FOR_FIELD_NUMBER: _ClassVar[int]
    CHARGED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    replica: str
    model_version: str
    victim: bool
    evictable: bool
    pinned: bool
    busy: bool
    score: float
    idle: _duration_pb2.Duration
    resident_for: _duration_pb2.Duration
    charged: _containers.RepeatedCompositeFieldContainer[_common_pb2.DeviceMemory]
    reason: str
    def __init__(self, replica: _Optional[str] = ..., model_version: _Optional[str] = ..., victim: bool = ..., evictable: bool = ..., pinned: bool = ..., busy: bool = ..., score: _Optional[float] = ..., idle: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., resident_for: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., charged: _Optional[_Iterable[_Union[_common_pb2.DeviceMemory, _Mapping]]] = ..., reason: _Optional[str] = ...) -> None: ...

class ListEvictionDecisionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "filter")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    filter: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ...) -> None: ...

class ListEvictionDecisionsResponse(_message.Message):
    __slots__ = ("decisions", "next_page_token")
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[EvictionDecision]
    next_page_token: str
    def __init__(self, decisions: _Optional[_Iterable[_Union[EvictionDecision, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class EvictionDecision(_message.Message):
    __slots__ = ("uid", "create_time", "model_version", "outcome", "policy", "reason", "devices", "candidates", "trigger")
    UID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    uid: str
    create_time: _timestamp_pb2.Timestamp
    model_version: str
    outcome: str
    policy: str
    reason: str
    devices: _containers.RepeatedCompositeFieldContainer[DeviceNeed]
    candidates: _containers.RepeatedCompositeFieldContainer[EvictionCandidate]
    trigger: EvictionTrigger
    def __init__(self, uid: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model_version: _Optional[str] = ..., outcome: _Optional[str] = ..., policy: _Optional[str] = ..., reason: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[DeviceNeed, _Mapping]]] = ..., candidates: _Optional[_Iterable[_Union[EvictionCandidate, _Mapping]]] = ..., trigger: _Optional[_Union[EvictionTrigger, str]] = ...) -> None: ...

class ExportTraceRequest(_message.Message):
    __slots__ = ("start_time",)
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    def __init__(self, start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ExportTraceResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[AcquireEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[AcquireEvent, _Mapping]]] = ...) -> None: ...

class AcquireEvent(_message.Message):
    __slots__ = ("at_seconds", "model_version", "priority", "use_seconds", "memory", "load_seconds")
    AT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    USE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    at_seconds: float
    model_version: str
    priority: _common_pb2.Priority
    use_seconds: float
    memory: _containers.RepeatedCompositeFieldContainer[_common_pb2.DeviceMemory]
    load_seconds: float
    def __init__(self, at_seconds: _Optional[float] = ..., model_version: _Optional[str] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., use_seconds: _Optional[float] = ..., memory: _Optional[_Iterable[_Union[_common_pb2.DeviceMemory, _Mapping]]] = ..., load_seconds: _Optional[float] = ...) -> None: ...

class SimulatePlacementRequest(_message.Message):
    __slots__ = ("events", "policies", "budget")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[AcquireEvent]
    policies: _containers.RepeatedScalarFieldContainer[str]
    budget: _containers.RepeatedCompositeFieldContainer[_common_pb2.DeviceMemory]
    def __init__(self, events: _Optional[_Iterable[_Union[AcquireEvent, _Mapping]]] = ..., policies: _Optional[_Iterable[str]] = ..., budget: _Optional[_Iterable[_Union[_common_pb2.DeviceMemory, _Mapping]]] = ...) -> None: ...

class SimulatePlacementResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[SimulationResult]
    def __init__(self, results: _Optional[_Iterable[_Union[SimulationResult, _Mapping]]] = ...) -> None: ...

class SimulationResult(_message.Message):
    __slots__ = ("policy", "acquires", "misses", "evictions", "never_fit", "waited_seconds", "waited_p99_seconds", "loaded_bytes")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ACQUIRES_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    NEVER_FIT_FIELD_NUMBER: _ClassVar[int]
    WAITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAITED_P99_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    policy: str
    acquires: int
    misses: int
    evictions: int
    never_fit: int
    waited_seconds: float
    waited_p99_seconds: float
    loaded_bytes: int
    def __init__(self, policy: _Optional[str] = ..., acquires: _Optional[int] = ..., misses: _Optional[int] = ..., evictions: _Optional[int] = ..., never_fit: _Optional[int] = ..., waited_seconds: _Optional[float] = ..., waited_p99_seconds: _Optional[float] = ..., loaded_bytes: _Optional[int] = ...) -> None: ...

class Residency(_message.Message):
    __slots__ = ("model_version", "pinned", "keep_alive", "min_replicas", "max_replicas", "preload", "revision", "update_time")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_FIELD_NUMBER: _ClassVar[int]
    MIN_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    PRELOAD_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    pinned: bool
    keep_alive: _duration_pb2.Duration
    min_replicas: int
    max_replicas: int
    preload: bool
    revision: int
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, model_version: _Optional[str] = ..., pinned: bool = ..., keep_alive: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., min_replicas: _Optional[int] = ..., max_replicas: _Optional[int] = ..., preload: bool = ..., revision: _Optional[int] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetResidencyRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetResidencyResponse(_message.Message):
    __slots__ = ("residency",)
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    residency: Residency
    def __init__(self, residency: _Optional[_Union[Residency, _Mapping]] = ...) -> None: ...

class UpdateResidencyRequest(_message.Message):
    __slots__ = ("residency", "update_mask")
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    residency: Residency
    update_mask: _field_mask_pb2.FieldMask
    def __init__(self, residency: _Optional[_Union[Residency, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class UpdateResidencyResponse(_message.Message):
    __slots__ = ("residency",)
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    residency: Residency
    def __init__(self, residency: _Optional[_Union[Residency, _Mapping]] = ...) -> None: ...

class ListResidenciesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListResidenciesResponse(_message.Message):
    __slots__ = ("residencies", "next_page_token")
    RESIDENCIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    residencies: _containers.RepeatedCompositeFieldContainer[Residency]
    next_page_token: str
    def __init__(self, residencies: _Optional[_Iterable[_Union[Residency, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("name", "state", "reason", "budgets", "policy", "idle_ttl", "load_concurrency", "revision", "update_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    IDLE_TTL_FIELD_NUMBER: _ClassVar[int]
    LOAD_CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: NodeState
    reason: str
    budgets: _containers.RepeatedCompositeFieldContainer[DeviceBudget]
    policy: str
    idle_ttl: _duration_pb2.Duration
    load_concurrency: int
    revision: int
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[NodeState, str]] = ..., reason: _Optional[str] = ..., budgets: _Optional[_Iterable[_Union[DeviceBudget, _Mapping]]] = ..., policy: _Optional[str] = ..., idle_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., load_concurrency: _Optional[int] = ..., revision: _Optional[int] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class DeviceBudget(_message.Message):
    __slots__ = ("device", "memory_bytes", "share", "effective_bytes")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    device: str
    memory_bytes: int
    share: float
    effective_bytes: int
    def __init__(self, device: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., share: _Optional[float] = ..., effective_bytes: _Optional[int] = ...) -> None: ...

class GetNodeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetNodeResponse(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: Node
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ...) -> None: ...

class UpdateNodeRequest(_message.Message):
    __slots__ = ("node", "update_mask")
    NODE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    node: Node
    update_mask: _field_mask_pb2.FieldMask
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class UpdateNodeResponse(_message.Message):
    __slots__ = ("node", "warnings")
    NODE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    node: Node
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("wait", "reason")
    WAIT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    wait: bool
    reason: str
    def __init__(self, wait: bool = ..., reason: _Optional[str] = ...) -> None: ...

class DrainNodeResponse(_message.Message):
    __slots__ = ("node", "replicas")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    node: Node
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ...) -> None: ...

class UncordonNodeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UncordonNodeResponse(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: Node
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ...) -> None: ...

class TuneModelVersionRequest(_message.Message):
    __slots__ = ("model", "candidates", "apply", "accuracy_gate")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    APPLY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_GATE_FIELD_NUMBER: _ClassVar[int]
    model: str
    candidates: _containers.RepeatedScalarFieldContainer[str]
    apply: bool
    accuracy_gate: float
    def __init__(self, model: _Optional[str] = ..., candidates: _Optional[_Iterable[str]] = ..., apply: bool = ..., accuracy_gate: _Optional[float] = ...) -> None: ...

class TuneModelVersionResponse(_message.Message):
    __slots__ = ("tuning",)
    TUNING_FIELD_NUMBER: _ClassVar[int]
    tuning: Tuning
    def __init__(self, tuning: _Optional[_Union[Tuning, _Mapping]] = ...) -> None: ...

class Tuning(_message.Message):
    __slots__ = ("name", "model_version", "state", "reason", "candidates", "proposal", "applied", "accuracy_gate", "create_time", "end_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_GATE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    model_version: str
    state: TuningState
    reason: str
    candidates: _containers.RepeatedCompositeFieldContainer[TuningCandidate]
    proposal: _common_pb2.EngineProfile
    applied: bool
    accuracy_gate: float
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., model_version: _Optional[str] = ..., state: _Optional[_Union[TuningState, str]] = ..., reason: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[TuningCandidate, _Mapping]]] = ..., proposal: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., applied: bool = ..., accuracy_gate: _Optional[float] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class TuningCandidate(_message.Message):
    __slots__ = ("engine_profile", "entries_per_second", "single_seconds", "accuracy", "batch_consistency", "load_seconds", "memory", "within_gate", "error")
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SINGLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    BATCH_CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    WITHIN_GATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    engine_profile: _common_pb2.EngineProfile
    entries_per_second: float
    single_seconds: float
    accuracy: float
    batch_consistency: float
    load_seconds: float
    memory: _containers.RepeatedCompositeFieldContainer[_common_pb2.DeviceMemory]
    within_gate: bool
    error: str
    def __init__(self, engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., entries_per_second: _Optional[float] = ..., single_seconds: _Optional[float] = ..., accuracy: _Optional[float] = ..., batch_consistency: _Optional[float] = ..., load_seconds: _Optional[float] = ..., memory: _Optional[_Iterable[_Union[_common_pb2.DeviceMemory, _Mapping]]] = ..., within_gate: bool = ..., error: _Optional[str] = ...) -> None: ...

class GetTuningRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetTuningResponse(_message.Message):
    __slots__ = ("tuning",)
    TUNING_FIELD_NUMBER: _ClassVar[int]
    tuning: Tuning
    def __init__(self, tuning: _Optional[_Union[Tuning, _Mapping]] = ...) -> None: ...

class ListTuningsRequest(_message.Message):
    __slots__ = ("model", "page_size", "page_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: str
    page_size: int
    page_token: str
    def __init__(self, model: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTuningsResponse(_message.Message):
    __slots__ = ("tunings", "next_page_token")
    TUNINGS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tunings: _containers.RepeatedCompositeFieldContainer[Tuning]
    next_page_token: str
    def __init__(self, tunings: _Optional[_Iterable[_Union[Tuning, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchTuningRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WatchTuningResponse(_message.Message):
    __slots__ = ("tuning",)
    TUNING_FIELD_NUMBER: _ClassVar[int]
    tuning: Tuning
    def __init__(self, tuning: _Optional[_Union[Tuning, _Mapping]] = ...) -> None: ...

class AcquireRequest(_message.Message):
    __slots__ = ("want", "in_use")
    WANT_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    want: Want
    in_use: InUse
    def __init__(self, want: _Optional[_Union[Want, _Mapping]] = ..., in_use: _Optional[_Union[InUse, _Mapping]] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("model_version", "priority", "deadline", "holder", "if_loaded", "load_nothing")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    IF_LOADED_FIELD_NUMBER: _ClassVar[int]
    LOAD_NOTHING_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    priority: _common_pb2.Priority
    deadline: _timestamp_pb2.Timestamp
    holder: str
    if_loaded: bool
    load_nothing: bool
    def __init__(self, model_version: _Optional[str] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., holder: _Optional[str] = ..., if_loaded: bool = ..., load_nothing: bool = ...) -> None: ...

class InUse(_message.Message):
    __slots__ = ("in_flight", "waiting_entries", "oldest_wait", "priority")
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    WAITING_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_WAIT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    in_flight: int
    waiting_entries: int
    oldest_wait: _duration_pb2.Duration
    priority: _common_pb2.Priority
    def __init__(self, in_flight: _Optional[int] = ..., waiting_entries: _Optional[int] = ..., oldest_wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ...) -> None: ...

class AcquireResponse(_message.Message):
    __slots__ = ("loading", "loaded", "revoked", "invite")
    LOADING_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    YIELD_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    INVITE_FIELD_NUMBER: _ClassVar[int]
    loading: Loading
    loaded: Loaded
    revoked: Revoked
    invite: Invite
    def __init__(self, loading: _Optional[_Union[Loading, _Mapping]] = ..., loaded: _Optional[_Union[Loaded, _Mapping]] = ..., revoked: _Optional[_Union[Revoked, _Mapping]] = ..., invite: _Optional[_Union[Invite, _Mapping]] = ..., **kwargs) -> None: ...

class Loading(_message.Message):
    __slots__ = ("estimate", "reason")
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    estimate: _duration_pb2.Duration
    reason: str
    def __init__(self, estimate: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Loaded(_message.Message):
    __slots__ = ("endpoint", "key", "replica", "engine_profile", "max_in_flight_batches", "limits")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_BATCHES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    key: bytes
    replica: str
    engine_profile: _common_pb2.EngineProfile
    max_in_flight_batches: int
    limits: EngineLimits
    def __init__(self, endpoint: _Optional[str] = ..., key: _Optional[bytes] = ..., replica: _Optional[str] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., max_in_flight_batches: _Optional[int] = ..., limits: _Optional[_Union[EngineLimits, _Mapping]] = ...) -> None: ...

class EngineLimits(_message.Message):
    __slots__ = ("max_input_tokens", "embedding_dimensions", "max_batch_tokens", "max_batch_entries")
    MAX_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    max_input_tokens: int
    embedding_dimensions: int
    max_batch_tokens: int
    max_batch_entries: int
    def __init__(self, max_input_tokens: _Optional[int] = ..., embedding_dimensions: _Optional[int] = ..., max_batch_tokens: _Optional[int] = ..., max_batch_entries: _Optional[int] = ...) -> None: ...

class Invite(_message.Message):
    __slots__ = ("replica",)
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    replica: str
    def __init__(self, replica: _Optional[str] = ...) -> None: ...

class Yield(_message.Message):
    __slots__ = ("by", "reason", "cordoned")
    BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CORDONED_FIELD_NUMBER: _ClassVar[int]
    by: _timestamp_pb2.Timestamp
    reason: str
    cordoned: bool
    def __init__(self, by: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., cordoned: bool = ...) -> None: ...

class Revoked(_message.Message):
    __slots__ = ("reason", "crashed", "out_of_memory")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CRASHED_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_MEMORY_FIELD_NUMBER: _ClassVar[int]
    reason: str
    crashed: bool
    out_of_memory: bool
    def __init__(self, reason: _Optional[str] = ..., crashed: bool = ..., out_of_memory: bool = ...) -> None: ...
