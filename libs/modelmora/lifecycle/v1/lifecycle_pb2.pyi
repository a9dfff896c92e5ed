import datetime

from google.protobuf import duration_pb2 as _duration_pb2
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
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_UNLOADED: ReplicaState
REPLICA_STATE_LOADING: ReplicaState
REPLICA_STATE_LOADED: ReplicaState
REPLICA_STATE_UNHEALTHY: ReplicaState
REPLICA_STATE_DRAINING: ReplicaState
REPLICA_STATE_FAILED: ReplicaState
REPLICA_STATE_SLEEPING: ReplicaState

class Replica(_message.Message):
    __slots__ = ("name", "uid", "model_version", "state", "reason", "engine", "engine_profile", "pid", "charged", "peak", "health", "pinned", "leases", "busy_leases", "create_time", "update_time", "last_used_time", "load_duration", "revision")
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
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., model_version: _Optional[str] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., reason: _Optional[str] = ..., engine: _Optional[str] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., pid: _Optional[int] = ..., charged: _Optional[_Iterable[_Union[_common_pb2.DeviceMemory, _Mapping]]] = ..., peak: _Optional[_Iterable[_Union[_common_pb2.DeviceMemory, _Mapping]]] = ..., health: _Optional[_Union[_common_pb2.Health, _Mapping]] = ..., pinned: bool = ..., leases: _Optional[int] = ..., busy_leases: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_used_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., load_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., revision: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("device", "total_bytes", "budget_bytes", "charged_bytes", "foreign_bytes", "charges")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHARGED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHARGES_FIELD_NUMBER: _ClassVar[int]
    device: str
    total_bytes: int
    budget_bytes: int
    charged_bytes: int
    foreign_bytes: int
    charges: _containers.RepeatedCompositeFieldContainer[MemoryCharge]
    def __init__(self, device: _Optional[str] = ..., total_bytes: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., charged_bytes: _Optional[int] = ..., foreign_bytes: _Optional[int] = ..., charges: _Optional[_Iterable[_Union[MemoryCharge, _Mapping]]] = ...) -> None: ...

class MemoryCharge(_message.Message):
    __slots__ = ("owner", "memory_bytes")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    owner: str
    memory_bytes: int
    def __init__(self, owner: _Optional[str] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class AcquireRequest(_message.Message):
    __slots__ = ("want", "in_use")
    WANT_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    want: Want
    in_use: InUse
    def __init__(self, want: _Optional[_Union[Want, _Mapping]] = ..., in_use: _Optional[_Union[InUse, _Mapping]] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("model_version", "priority", "deadline")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    priority: _common_pb2.Priority
    deadline: _timestamp_pb2.Timestamp
    def __init__(self, model_version: _Optional[str] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class InUse(_message.Message):
    __slots__ = ("in_flight",)
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    in_flight: int
    def __init__(self, in_flight: _Optional[int] = ...) -> None: ...

class AcquireResponse(_message.Message):
    __slots__ = ("loading", "loaded", "revoked")
    LOADING_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    YIELD_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    loading: Loading
    loaded: Loaded
    revoked: Revoked
    def __init__(self, loading: _Optional[_Union[Loading, _Mapping]] = ..., loaded: _Optional[_Union[Loaded, _Mapping]] = ..., revoked: _Optional[_Union[Revoked, _Mapping]] = ..., **kwargs) -> None: ...

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

class Yield(_message.Message):
    __slots__ = ("by", "reason")
    BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    by: _timestamp_pb2.Timestamp
    reason: str
    def __init__(self, by: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Revoked(_message.Message):
    __slots__ = ("reason", "crashed")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CRASHED_FIELD_NUMBER: _ClassVar[int]
    reason: str
    crashed: bool
    def __init__(self, reason: _Optional[str] = ..., crashed: bool = ...) -> None: ...
