import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from modelmora.common.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Operation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_UNSPECIFIED: _ClassVar[Operation]
    OPERATION_TOKENIZE: _ClassVar[Operation]
    OPERATION_DETOKENIZE: _ClassVar[Operation]
    OPERATION_TOKEN_VECTORS: _ClassVar[Operation]
OPERATION_UNSPECIFIED: Operation
OPERATION_TOKENIZE: Operation
OPERATION_DETOKENIZE: Operation
OPERATION_TOKEN_VECTORS: Operation

class WorkerRequest(_message.Message):
    __slots__ = ("hello", "load", "infer", "stream", "drain", "watch", "key", "cancel")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    INFER_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    WATCH_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    load: LoadRequest
    infer: InferRequest
    stream: StreamRequest
    drain: DrainRequest
    watch: WatchRequest
    key: KeyRequest
    cancel: CancelRequest
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., load: _Optional[_Union[LoadRequest, _Mapping]] = ..., infer: _Optional[_Union[InferRequest, _Mapping]] = ..., stream: _Optional[_Union[StreamRequest, _Mapping]] = ..., drain: _Optional[_Union[DrainRequest, _Mapping]] = ..., watch: _Optional[_Union[WatchRequest, _Mapping]] = ..., key: _Optional[_Union[KeyRequest, _Mapping]] = ..., cancel: _Optional[_Union[CancelRequest, _Mapping]] = ...) -> None: ...

class WorkerReply(_message.Message):
    __slots__ = ("hello", "load_progress", "load", "infer", "stream", "drain", "watch", "key", "error")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    LOAD_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    INFER_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    WATCH_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    hello: HelloReply
    load_progress: LoadProgress
    load: LoadReply
    infer: InferReply
    stream: StreamReply
    drain: DrainReply
    watch: WatchReply
    key: KeyReply
    error: ErrorReply
    def __init__(self, hello: _Optional[_Union[HelloReply, _Mapping]] = ..., load_progress: _Optional[_Union[LoadProgress, _Mapping]] = ..., load: _Optional[_Union[LoadReply, _Mapping]] = ..., infer: _Optional[_Union[InferReply, _Mapping]] = ..., stream: _Optional[_Union[StreamReply, _Mapping]] = ..., drain: _Optional[_Union[DrainReply, _Mapping]] = ..., watch: _Optional[_Union[WatchReply, _Mapping]] = ..., key: _Optional[_Union[KeyReply, _Mapping]] = ..., error: _Optional[_Union[ErrorReply, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("key", "wire_version")
    KEY_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    wire_version: int
    def __init__(self, key: _Optional[bytes] = ..., wire_version: _Optional[int] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("wire_version", "pid")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    pid: int
    def __init__(self, wire_version: _Optional[int] = ..., pid: _Optional[int] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("engine", "artifact_path", "model_version", "devices", "dtype", "options", "task_type", "cpu_threads", "engine_profile", "cache_path")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_PATH_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    CPU_THREADS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    CACHE_PATH_FIELD_NUMBER: _ClassVar[int]
    engine: str
    artifact_path: str
    model_version: str
    devices: _containers.RepeatedCompositeFieldContainer[_common_pb2.DeviceMemory]
    dtype: str
    options: _struct_pb2.Struct
    task_type: _common_pb2.TaskType
    cpu_threads: int
    engine_profile: _common_pb2.EngineProfile
    cache_path: str
    def __init__(self, engine: _Optional[str] = ..., artifact_path: _Optional[str] = ..., model_version: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[_common_pb2.DeviceMemory, _Mapping]]] = ..., dtype: _Optional[str] = ..., options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., task_type: _Optional[_Union[_common_pb2.TaskType, str]] = ..., cpu_threads: _Optional[int] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., cache_path: _Optional[str] = ...) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("done_bytes", "total_bytes", "stage")
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    done_bytes: int
    total_bytes: int
    stage: str
    def __init__(self, done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., stage: _Optional[str] = ...) -> None: ...

class LoadReply(_message.Message):
    __slots__ = ("footprint", "engine_profile", "max_input_tokens", "embedding_dimensions", "max_batch_tokens", "max_batch_entries", "tasks")
    FOOTPRINT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    footprint: _containers.RepeatedCompositeFieldContainer[_common_pb2.DeviceMemory]
    engine_profile: _common_pb2.EngineProfile
    max_input_tokens: int
    embedding_dimensions: int
    max_batch_tokens: int
    max_batch_entries: int
    tasks: _containers.RepeatedScalarFieldContainer[_common_pb2.TaskType]
    def __init__(self, footprint: _Optional[_Iterable[_Union[_common_pb2.DeviceMemory, _Mapping]]] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., max_input_tokens: _Optional[int] = ..., embedding_dimensions: _Optional[int] = ..., max_batch_tokens: _Optional[int] = ..., max_batch_entries: _Optional[int] = ..., tasks: _Optional[_Iterable[_Union[_common_pb2.TaskType, str]]] = ...) -> None: ...

class InferRequest(_message.Message):
    __slots__ = ("task_type", "texts", "exact", "rank", "describe", "operation")
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    task_type: _common_pb2.TaskType
    texts: _containers.RepeatedCompositeFieldContainer[TextEntry]
    exact: bool
    rank: int
    describe: bool
    operation: Operation
    def __init__(self, task_type: _Optional[_Union[_common_pb2.TaskType, str]] = ..., texts: _Optional[_Iterable[_Union[TextEntry, _Mapping]]] = ..., exact: bool = ..., rank: _Optional[int] = ..., describe: bool = ..., operation: _Optional[_Union[Operation, str]] = ...) -> None: ...

class TextEntry(_message.Message):
    __slots__ = ("text", "truncate", "normalize", "dimensions", "timeout", "pair", "raw_scores", "max_answers", "max_answer_tokens", "plain", "data", "token_ids", "prompt", "max_row_bytes")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    RAW_SCORES_FIELD_NUMBER: _ClassVar[int]
    MAX_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    MAX_ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PLAIN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MAX_ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    text: str
    truncate: bool
    normalize: bool
    dimensions: int
    timeout: _duration_pb2.Duration
    pair: str
    raw_scores: bool
    max_answers: int
    max_answer_tokens: int
    plain: bool
    data: bytes
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt: str
    max_row_bytes: int
    def __init__(self, text: _Optional[str] = ..., truncate: bool = ..., normalize: bool = ..., dimensions: _Optional[int] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., pair: _Optional[str] = ..., raw_scores: bool = ..., max_answers: _Optional[int] = ..., max_answer_tokens: _Optional[int] = ..., plain: bool = ..., data: _Optional[bytes] = ..., token_ids: _Optional[_Iterable[int]] = ..., prompt: _Optional[str] = ..., max_row_bytes: _Optional[int] = ...) -> None: ...

class InferReply(_message.Message):
    __slots__ = ("positions", "rows", "row_dimensions", "input_tokens", "truncated", "errors", "tokenise", "compute", "done", "engine_profile", "description")
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROW_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    TOKENISE_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    rows: bytes
    row_dimensions: _containers.RepeatedScalarFieldContainer[int]
    input_tokens: _containers.RepeatedScalarFieldContainer[int]
    truncated: _containers.RepeatedScalarFieldContainer[bool]
    errors: _containers.RepeatedCompositeFieldContainer[EntryError]
    tokenise: _duration_pb2.Duration
    compute: _duration_pb2.Duration
    done: bool
    engine_profile: _common_pb2.EngineProfile
    description: EngineDescription
    def __init__(self, positions: _Optional[_Iterable[int]] = ..., rows: _Optional[bytes] = ..., row_dimensions: _Optional[_Iterable[int]] = ..., input_tokens: _Optional[_Iterable[int]] = ..., truncated: _Optional[_Iterable[bool]] = ..., errors: _Optional[_Iterable[_Union[EntryError, _Mapping]]] = ..., tokenise: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., compute: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., done: bool = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., description: _Optional[_Union[EngineDescription, _Mapping]] = ...) -> None: ...

class EngineDescription(_message.Message):
    __slots__ = ("labels", "prompts", "default_prompt", "max_image_bytes", "max_image_pixels", "max_resized_pixels")
    class PromptsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_PROMPT_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_RESIZED_PIXELS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedScalarFieldContainer[str]
    prompts: _containers.ScalarMap[str, str]
    default_prompt: str
    max_image_bytes: int
    max_image_pixels: int
    max_resized_pixels: int
    def __init__(self, labels: _Optional[_Iterable[str]] = ..., prompts: _Optional[_Mapping[str, str]] = ..., default_prompt: _Optional[str] = ..., max_image_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_resized_pixels: _Optional[int] = ...) -> None: ...

class EntryError(_message.Message):
    __slots__ = ("position", "reason", "message")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    position: int
    reason: str
    message: str
    def __init__(self, position: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("task_type", "input")
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    task_type: _common_pb2.TaskType
    input: _struct_pb2.Struct
    def __init__(self, task_type: _Optional[_Union[_common_pb2.TaskType, str]] = ..., input: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class StreamReply(_message.Message):
    __slots__ = ("output", "done")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    output: _struct_pb2.Struct
    done: bool
    def __init__(self, output: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., done: bool = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("interval",)
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    interval: _duration_pb2.Duration
    def __init__(self, interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("state", "reason", "private_bytes", "in_flight", "batches", "entries", "compute", "batch_tokens", "looked_at")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FIELD_NUMBER: _ClassVar[int]
    BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOOKED_AT_FIELD_NUMBER: _ClassVar[int]
    state: _common_pb2.HealthState
    reason: str
    private_bytes: int
    in_flight: int
    batches: int
    entries: int
    compute: _duration_pb2.Duration
    batch_tokens: int
    looked_at: int
    def __init__(self, state: _Optional[_Union[_common_pb2.HealthState, str]] = ..., reason: _Optional[str] = ..., private_bytes: _Optional[int] = ..., in_flight: _Optional[int] = ..., batches: _Optional[int] = ..., entries: _Optional[int] = ..., compute: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., batch_tokens: _Optional[int] = ..., looked_at: _Optional[int] = ...) -> None: ...

class KeyRequest(_message.Message):
    __slots__ = ("key", "withdraw")
    KEY_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    withdraw: bool
    def __init__(self, key: _Optional[bytes] = ..., withdraw: bool = ...) -> None: ...

class KeyReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, positions: _Optional[_Iterable[int]] = ...) -> None: ...

class ErrorReply(_message.Message):
    __slots__ = ("reason", "message", "metadata", "status", "fields")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    status: str
    fields: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., status: _Optional[str] = ..., fields: _Optional[_Mapping[str, str]] = ...) -> None: ...
