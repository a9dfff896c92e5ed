import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from modelmora.common.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelVersionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_VERSION_STATE_UNSPECIFIED: _ClassVar[ModelVersionState]
    MODEL_VERSION_STATE_CREATING: _ClassVar[ModelVersionState]
    MODEL_VERSION_STATE_READY: _ClassVar[ModelVersionState]
    MODEL_VERSION_STATE_FAILED: _ClassVar[ModelVersionState]

class SyncState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SYNC_STATE_UNSPECIFIED: _ClassVar[SyncState]
    SYNC_STATE_NEVER_SYNCED: _ClassVar[SyncState]
    SYNC_STATE_SYNCED: _ClassVar[SyncState]
    SYNC_STATE_OUT_OF_SYNC: _ClassVar[SyncState]
MODEL_VERSION_STATE_UNSPECIFIED: ModelVersionState
MODEL_VERSION_STATE_CREATING: ModelVersionState
MODEL_VERSION_STATE_READY: ModelVersionState
MODEL_VERSION_STATE_FAILED: ModelVersionState
SYNC_STATE_UNSPECIFIED: SyncState
SYNC_STATE_NEVER_SYNCED: SyncState
SYNC_STATE_SYNCED: SyncState
SYNC_STATE_OUT_OF_SYNC: SyncState

class Model(_message.Message):
    __slots__ = ("name", "uid", "display_name", "description", "task_type", "labels", "current_version", "aliases", "revision", "etag", "create_time", "update_time", "family", "modality", "base_model", "trainable", "servable", "rank")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class AliasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_FIELD_NUMBER: _ClassVar[int]
    SERVABLE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    display_name: str
    description: str
    task_type: _common_pb2.TaskType
    labels: _containers.ScalarMap[str, str]
    current_version: str
    aliases: _containers.ScalarMap[str, str]
    revision: int
    etag: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    family: str
    modality: str
    base_model: str
    trainable: bool
    servable: bool
    rank: float
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., display_name: _Optional[str] = ..., description: _Optional[str] = ..., task_type: _Optional[_Union[_common_pb2.TaskType, str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., current_version: _Optional[str] = ..., aliases: _Optional[_Mapping[str, str]] = ..., revision: _Optional[int] = ..., etag: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., family: _Optional[str] = ..., modality: _Optional[str] = ..., base_model: _Optional[str] = ..., trainable: bool = ..., servable: bool = ..., rank: _Optional[float] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("name", "uid", "version", "state", "task_type", "engine", "engine_options", "source", "artifact", "resource_requirements", "engine_profile", "limits", "progress", "failure", "revision", "etag", "create_time", "update_time", "metadata", "metrics", "archive_time", "labels", "training_job", "verify_time")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    ARCHIVE_TIME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_JOB_FIELD_NUMBER: _ClassVar[int]
    VERIFY_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    version: str
    state: ModelVersionState
    task_type: _common_pb2.TaskType
    engine: str
    engine_options: _struct_pb2.Struct
    source: ModelSource
    artifact: Artifact
    resource_requirements: ResourceRequirements
    engine_profile: _common_pb2.EngineProfile
    limits: ModelLimits
    progress: ImportProgress
    failure: Failure
    revision: int
    etag: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    metadata: ModelMetadata
    metrics: _containers.ScalarMap[str, float]
    archive_time: _timestamp_pb2.Timestamp
    labels: _containers.ScalarMap[str, str]
    training_job: str
    verify_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[_Union[ModelVersionState, str]] = ..., task_type: _Optional[_Union[_common_pb2.TaskType, str]] = ..., engine: _Optional[str] = ..., engine_options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., source: _Optional[_Union[ModelSource, _Mapping]] = ..., artifact: _Optional[_Union[Artifact, _Mapping]] = ..., resource_requirements: _Optional[_Union[ResourceRequirements, _Mapping]] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., limits: _Optional[_Union[ModelLimits, _Mapping]] = ..., progress: _Optional[_Union[ImportProgress, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., revision: _Optional[int] = ..., etag: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., metadata: _Optional[_Union[ModelMetadata, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., archive_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., training_job: _Optional[str] = ..., verify_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ModelMetadata(_message.Message):
    __slots__ = ("architecture", "family", "parameter_count", "dtype", "context_length", "hidden_size", "num_layers", "num_heads", "vocabulary_size", "quantization", "license", "model_card", "tokenizer_digest", "chat_template_digest", "weight_bytes", "tags", "modality", "labels")
    class WeightBytesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_HEADS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    LICENSE_FIELD_NUMBER: _ClassVar[int]
    MODEL_CARD_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    architecture: str
    family: str
    parameter_count: int
    dtype: str
    context_length: int
    hidden_size: int
    num_layers: int
    num_heads: int
    vocabulary_size: int
    quantization: str
    license: str
    model_card: str
    tokenizer_digest: str
    chat_template_digest: str
    weight_bytes: _containers.ScalarMap[str, int]
    tags: _containers.RepeatedScalarFieldContainer[str]
    modality: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, architecture: _Optional[str] = ..., family: _Optional[str] = ..., parameter_count: _Optional[int] = ..., dtype: _Optional[str] = ..., context_length: _Optional[int] = ..., hidden_size: _Optional[int] = ..., num_layers: _Optional[int] = ..., num_heads: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., quantization: _Optional[str] = ..., license: _Optional[str] = ..., model_card: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., chat_template_digest: _Optional[str] = ..., weight_bytes: _Optional[_Mapping[str, int]] = ..., tags: _Optional[_Iterable[str]] = ..., modality: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class ModelSource(_message.Message):
    __slots__ = ("local", "hub", "empty", "url")
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    HUB_FIELD_NUMBER: _ClassVar[int]
    EMPTY_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    local: LocalSource
    hub: HubSource
    empty: EmptySource
    url: UrlSource
    def __init__(self, local: _Optional[_Union[LocalSource, _Mapping]] = ..., hub: _Optional[_Union[HubSource, _Mapping]] = ..., empty: _Optional[_Union[EmptySource, _Mapping]] = ..., url: _Optional[_Union[UrlSource, _Mapping]] = ...) -> None: ...

class UrlSource(_message.Message):
    __slots__ = ("url", "files", "object_versions")
    class ObjectVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    URL_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    OBJECT_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    url: str
    files: _containers.RepeatedScalarFieldContainer[str]
    object_versions: _containers.ScalarMap[str, str]
    def __init__(self, url: _Optional[str] = ..., files: _Optional[_Iterable[str]] = ..., object_versions: _Optional[_Mapping[str, str]] = ...) -> None: ...

class LocalSource(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class HubSource(_message.Message):
    __slots__ = ("repo_id", "revision", "commit")
    REPO_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    repo_id: str
    revision: str
    commit: str
    def __init__(self, repo_id: _Optional[str] = ..., revision: _Optional[str] = ..., commit: _Optional[str] = ...) -> None: ...

class EmptySource(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("path", "digest", "size_bytes", "files")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    path: str
    digest: str
    size_bytes: int
    files: _containers.RepeatedCompositeFieldContainer[ArtifactFile]
    def __init__(self, path: _Optional[str] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., files: _Optional[_Iterable[_Union[ArtifactFile, _Mapping]]] = ...) -> None: ...

class ArtifactFile(_message.Message):
    __slots__ = ("path", "size_bytes", "sha256")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    path: str
    size_bytes: int
    sha256: str
    def __init__(self, path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class ResourceRequirements(_message.Message):
    __slots__ = ("memory_bytes", "accelerator_memory_bytes", "cpu_threads")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_THREADS_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    accelerator_memory_bytes: int
    cpu_threads: int
    def __init__(self, memory_bytes: _Optional[int] = ..., accelerator_memory_bytes: _Optional[int] = ..., cpu_threads: _Optional[int] = ...) -> None: ...

class ModelLimits(_message.Message):
    __slots__ = ("max_input_tokens", "embedding_dimensions")
    MAX_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    max_input_tokens: int
    embedding_dimensions: int
    def __init__(self, max_input_tokens: _Optional[int] = ..., embedding_dimensions: _Optional[int] = ...) -> None: ...

class ImportProgress(_message.Message):
    __slots__ = ("done_bytes", "total_bytes", "current_file", "bytes_per_second", "remaining")
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FILE_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    done_bytes: int
    total_bytes: int
    current_file: str
    bytes_per_second: float
    remaining: _duration_pb2.Duration
    def __init__(self, done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., current_file: _Optional[str] = ..., bytes_per_second: _Optional[float] = ..., remaining: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class CreateModelRequest(_message.Message):
    __slots__ = ("model_id", "model", "request_id", "validate_only")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    model: Model
    request_id: str
    validate_only: bool
    def __init__(self, model_id: _Optional[str] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., request_id: _Optional[str] = ..., validate_only: bool = ...) -> None: ...

class CreateModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "filter", "order_by", "include_total_size", "query")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    filter: str
    order_by: str
    include_total_size: bool
    query: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ..., order_by: _Optional[str] = ..., include_total_size: bool = ..., query: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token", "total_size")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    total_size: int
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ...) -> None: ...

class UpdateModelRequest(_message.Message):
    __slots__ = ("model", "update_mask", "etag")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    model: Model
    update_mask: _field_mask_pb2.FieldMask
    etag: str
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., etag: _Optional[str] = ...) -> None: ...

class UpdateModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class DeleteModelRequest(_message.Message):
    __slots__ = ("name", "etag", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    force: bool
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., force: bool = ...) -> None: ...

class DeleteModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CreateModelVersionRequest(_message.Message):
    __slots__ = ("parent", "model_version", "expected_checksums", "request_id", "validate_only")
    class ExpectedChecksumsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PARENT_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    parent: str
    model_version: ModelVersion
    expected_checksums: _containers.ScalarMap[str, str]
    request_id: str
    validate_only: bool
    def __init__(self, parent: _Optional[str] = ..., model_version: _Optional[_Union[ModelVersion, _Mapping]] = ..., expected_checksums: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[str] = ..., validate_only: bool = ...) -> None: ...

class CreateModelVersionResponse(_message.Message):
    __slots__ = ("model_version",)
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_version: ModelVersion
    def __init__(self, model_version: _Optional[_Union[ModelVersion, _Mapping]] = ...) -> None: ...

class GetModelVersionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelVersionResponse(_message.Message):
    __slots__ = ("model_version",)
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_version: ModelVersion
    def __init__(self, model_version: _Optional[_Union[ModelVersion, _Mapping]] = ...) -> None: ...

class ListModelVersionsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "filter", "order_by", "include_total_size")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    filter: str
    order_by: str
    include_total_size: bool
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ..., order_by: _Optional[str] = ..., include_total_size: bool = ...) -> None: ...

class ListModelVersionsResponse(_message.Message):
    __slots__ = ("model_versions", "next_page_token", "total_size")
    MODEL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    model_versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    next_page_token: str
    total_size: int
    def __init__(self, model_versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ...) -> None: ...

class WatchModelVersionRequest(_message.Message):
    __slots__ = ("name", "cursor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    cursor: str
    def __init__(self, name: _Optional[str] = ..., cursor: _Optional[str] = ...) -> None: ...

class WatchModelVersionResponse(_message.Message):
    __slots__ = ("model_version", "cursor", "deleted")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    model_version: ModelVersion
    cursor: str
    deleted: bool
    def __init__(self, model_version: _Optional[_Union[ModelVersion, _Mapping]] = ..., cursor: _Optional[str] = ..., deleted: bool = ...) -> None: ...

class ListAliasChangesRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "alias")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    alias: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., alias: _Optional[str] = ...) -> None: ...

class ListAliasChangesResponse(_message.Message):
    __slots__ = ("changes", "next_page_token")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[AliasChange]
    next_page_token: str
    def __init__(self, changes: _Optional[_Iterable[_Union[AliasChange, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class AliasChange(_message.Message):
    __slots__ = ("alias", "from_version", "to_version", "subject", "create_time")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    FROM_VERSION_FIELD_NUMBER: _ClassVar[int]
    TO_VERSION_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    alias: str
    from_version: str
    to_version: str
    subject: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, alias: _Optional[str] = ..., from_version: _Optional[str] = ..., to_version: _Optional[str] = ..., subject: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CancelImportRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelImportResponse(_message.Message):
    __slots__ = ("model_version",)
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_version: ModelVersion
    def __init__(self, model_version: _Optional[_Union[ModelVersion, _Mapping]] = ...) -> None: ...

class UpdateModelVersionRequest(_message.Message):
    __slots__ = ("model_version", "update_mask", "etag", "archived")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    ARCHIVED_FIELD_NUMBER: _ClassVar[int]
    model_version: ModelVersion
    update_mask: _field_mask_pb2.FieldMask
    etag: str
    archived: bool
    def __init__(self, model_version: _Optional[_Union[ModelVersion, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., etag: _Optional[str] = ..., archived: bool = ...) -> None: ...

class UpdateModelVersionResponse(_message.Message):
    __slots__ = ("model_version",)
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_version: ModelVersion
    def __init__(self, model_version: _Optional[_Union[ModelVersion, _Mapping]] = ...) -> None: ...

class SetEngineProfileRequest(_message.Message):
    __slots__ = ("name", "engine_profile", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    engine_profile: _common_pb2.EngineProfile
    etag: str
    def __init__(self, name: _Optional[str] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., etag: _Optional[str] = ...) -> None: ...

class SetEngineProfileResponse(_message.Message):
    __slots__ = ("model_version",)
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_version: ModelVersion
    def __init__(self, model_version: _Optional[_Union[ModelVersion, _Mapping]] = ...) -> None: ...

class VerifyModelVersionRequest(_message.Message):
    __slots__ = ("name", "full")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    name: str
    full: bool
    def __init__(self, name: _Optional[str] = ..., full: bool = ...) -> None: ...

class VerifyModelVersionResponse(_message.Message):
    __slots__ = ("file", "done_bytes", "total_bytes", "done", "intact")
    FILE_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    INTACT_FIELD_NUMBER: _ClassVar[int]
    file: FileVerdict
    done_bytes: int
    total_bytes: int
    done: bool
    intact: bool
    def __init__(self, file: _Optional[_Union[FileVerdict, _Mapping]] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., done: bool = ..., intact: bool = ...) -> None: ...

class FileVerdict(_message.Message):
    __slots__ = ("path", "verdict", "expected_sha256", "found_sha256")
    PATH_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SHA256_FIELD_NUMBER: _ClassVar[int]
    FOUND_SHA256_FIELD_NUMBER: _ClassVar[int]
    path: str
    verdict: str
    expected_sha256: str
    found_sha256: str
    def __init__(self, path: _Optional[str] = ..., verdict: _Optional[str] = ..., expected_sha256: _Optional[str] = ..., found_sha256: _Optional[str] = ...) -> None: ...

class SelectModelVersionRequest(_message.Message):
    __slots__ = ("name", "primary_metric", "metric_threshold", "secondary_metrics", "max_size_bytes", "prefer_latest", "lower_is_better")
    class SecondaryMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_METRIC_FIELD_NUMBER: _ClassVar[int]
    METRIC_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    SECONDARY_METRICS_FIELD_NUMBER: _ClassVar[int]
    MAX_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREFER_LATEST_FIELD_NUMBER: _ClassVar[int]
    LOWER_IS_BETTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    primary_metric: str
    metric_threshold: float
    secondary_metrics: _containers.ScalarMap[str, float]
    max_size_bytes: int
    prefer_latest: bool
    lower_is_better: bool
    def __init__(self, name: _Optional[str] = ..., primary_metric: _Optional[str] = ..., metric_threshold: _Optional[float] = ..., secondary_metrics: _Optional[_Mapping[str, float]] = ..., max_size_bytes: _Optional[int] = ..., prefer_latest: bool = ..., lower_is_better: bool = ...) -> None: ...

class SelectModelVersionResponse(_message.Message):
    __slots__ = ("model_version", "rejected", "reason")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    model_version: ModelVersion
    rejected: _containers.RepeatedCompositeFieldContainer[RejectedVersion]
    reason: str
    def __init__(self, model_version: _Optional[_Union[ModelVersion, _Mapping]] = ..., rejected: _Optional[_Iterable[_Union[RejectedVersion, _Mapping]]] = ..., reason: _Optional[str] = ...) -> None: ...

class RejectedVersion(_message.Message):
    __slots__ = ("version", "reason")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    version: str
    reason: str
    def __init__(self, version: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ModelLock(_message.Message):
    __slots__ = ("name", "uid", "models", "digest", "create_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    models: _containers.RepeatedCompositeFieldContainer[LockedModel]
    digest: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., models: _Optional[_Iterable[_Union[LockedModel, _Mapping]]] = ..., digest: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class LockedModel(_message.Message):
    __slots__ = ("model_version", "source", "digest", "files", "tokenizer_digest", "chat_template_digest", "engine", "engine_options", "task_type", "dtype", "engine_profile", "resource_requirements", "fingerprint")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    source: ModelSource
    digest: str
    files: _containers.RepeatedCompositeFieldContainer[ArtifactFile]
    tokenizer_digest: str
    chat_template_digest: str
    engine: str
    engine_options: _struct_pb2.Struct
    task_type: _common_pb2.TaskType
    dtype: str
    engine_profile: _common_pb2.EngineProfile
    resource_requirements: ResourceRequirements
    fingerprint: Fingerprint
    def __init__(self, model_version: _Optional[str] = ..., source: _Optional[_Union[ModelSource, _Mapping]] = ..., digest: _Optional[str] = ..., files: _Optional[_Iterable[_Union[ArtifactFile, _Mapping]]] = ..., tokenizer_digest: _Optional[str] = ..., chat_template_digest: _Optional[str] = ..., engine: _Optional[str] = ..., engine_options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., task_type: _Optional[_Union[_common_pb2.TaskType, str]] = ..., dtype: _Optional[str] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., resource_requirements: _Optional[_Union[ResourceRequirements, _Mapping]] = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ...) -> None: ...

class Fingerprint(_message.Message):
    __slots__ = ("golden", "outputs", "tolerance", "engine_profile", "create_time")
    GOLDEN_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    golden: str
    outputs: _common_pb2.Tensor
    tolerance: float
    engine_profile: _common_pb2.EngineProfile
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, golden: _Optional[str] = ..., outputs: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., tolerance: _Optional[float] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateModelLockRequest(_message.Message):
    __slots__ = ("lock_id", "models", "yaml", "request_id")
    LOCK_ID_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    YAML_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    lock_id: str
    models: _containers.RepeatedScalarFieldContainer[str]
    yaml: str
    request_id: str
    def __init__(self, lock_id: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., yaml: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreateModelLockResponse(_message.Message):
    __slots__ = ("model_lock", "yaml")
    MODEL_LOCK_FIELD_NUMBER: _ClassVar[int]
    YAML_FIELD_NUMBER: _ClassVar[int]
    model_lock: ModelLock
    yaml: str
    def __init__(self, model_lock: _Optional[_Union[ModelLock, _Mapping]] = ..., yaml: _Optional[str] = ...) -> None: ...

class GetModelLockRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelLockResponse(_message.Message):
    __slots__ = ("model_lock",)
    MODEL_LOCK_FIELD_NUMBER: _ClassVar[int]
    model_lock: ModelLock
    def __init__(self, model_lock: _Optional[_Union[ModelLock, _Mapping]] = ...) -> None: ...

class ListModelLocksRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelLocksResponse(_message.Message):
    __slots__ = ("model_locks", "next_page_token")
    MODEL_LOCKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model_locks: _containers.RepeatedCompositeFieldContainer[ModelLock]
    next_page_token: str
    def __init__(self, model_locks: _Optional[_Iterable[_Union[ModelLock, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteModelLockRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteModelLockResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenderModelLockRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RenderModelLockResponse(_message.Message):
    __slots__ = ("yaml",)
    YAML_FIELD_NUMBER: _ClassVar[int]
    yaml: str
    def __init__(self, yaml: _Optional[str] = ...) -> None: ...

class VerifyModelLockRequest(_message.Message):
    __slots__ = ("name", "yaml", "full")
    NAME_FIELD_NUMBER: _ClassVar[int]
    YAML_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    name: str
    yaml: str
    full: bool
    def __init__(self, name: _Optional[str] = ..., yaml: _Optional[str] = ..., full: bool = ...) -> None: ...

class VerifyModelLockResponse(_message.Message):
    __slots__ = ("model_version", "drifts", "done", "intact")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DRIFTS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    INTACT_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    drifts: _containers.RepeatedCompositeFieldContainer[Drift]
    done: bool
    intact: bool
    def __init__(self, model_version: _Optional[str] = ..., drifts: _Optional[_Iterable[_Union[Drift, _Mapping]]] = ..., done: bool = ..., intact: bool = ...) -> None: ...

class Drift(_message.Message):
    __slots__ = ("field", "locked", "found")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    LOCKED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    field: str
    locked: str
    found: str
    def __init__(self, field: _Optional[str] = ..., locked: _Optional[str] = ..., found: _Optional[str] = ...) -> None: ...

class DiffModelLocksRequest(_message.Message):
    __slots__ = ("left_name", "left_yaml", "right_name", "right_yaml")
    LEFT_NAME_FIELD_NUMBER: _ClassVar[int]
    LEFT_YAML_FIELD_NUMBER: _ClassVar[int]
    RIGHT_NAME_FIELD_NUMBER: _ClassVar[int]
    RIGHT_YAML_FIELD_NUMBER: _ClassVar[int]
    left_name: str
    left_yaml: str
    right_name: str
    right_yaml: str
    def __init__(self, left_name: _Optional[str] = ..., left_yaml: _Optional[str] = ..., right_name: _Optional[str] = ..., right_yaml: _Optional[str] = ...) -> None: ...

class DiffModelLocksResponse(_message.Message):
    __slots__ = ("drifts",)
    DRIFTS_FIELD_NUMBER: _ClassVar[int]
    drifts: _containers.RepeatedCompositeFieldContainer[Drift]
    def __init__(self, drifts: _Optional[_Iterable[_Union[Drift, _Mapping]]] = ...) -> None: ...

class ApplyModelLockRequest(_message.Message):
    __slots__ = ("name", "yaml", "mirror", "promote")
    NAME_FIELD_NUMBER: _ClassVar[int]
    YAML_FIELD_NUMBER: _ClassVar[int]
    MIRROR_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_FIELD_NUMBER: _ClassVar[int]
    name: str
    yaml: str
    mirror: str
    promote: bool
    def __init__(self, name: _Optional[str] = ..., yaml: _Optional[str] = ..., mirror: _Optional[str] = ..., promote: bool = ...) -> None: ...

class ApplyModelLockResponse(_message.Message):
    __slots__ = ("model_version", "outcome", "reason", "done_bytes", "total_bytes", "done", "converged")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    CONVERGED_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    outcome: str
    reason: str
    done_bytes: int
    total_bytes: int
    done: bool
    converged: bool
    def __init__(self, model_version: _Optional[str] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., done: bool = ..., converged: bool = ...) -> None: ...

class ExternalLink(_message.Message):
    __slots__ = ("name", "uid", "registry_type", "external_id", "url", "version", "imported", "import_time", "export_time", "sync_state", "sync_reason", "check_time", "metadata", "revision", "etag", "exported_files", "exported_digests")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ExportedDigestsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_TYPE_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_ID_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMPORTED_FIELD_NUMBER: _ClassVar[int]
    IMPORT_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPORT_TIME_FIELD_NUMBER: _ClassVar[int]
    SYNC_STATE_FIELD_NUMBER: _ClassVar[int]
    SYNC_REASON_FIELD_NUMBER: _ClassVar[int]
    CHECK_TIME_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    EXPORTED_FILES_FIELD_NUMBER: _ClassVar[int]
    EXPORTED_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    registry_type: str
    external_id: str
    url: str
    version: str
    imported: bool
    import_time: _timestamp_pb2.Timestamp
    export_time: _timestamp_pb2.Timestamp
    sync_state: SyncState
    sync_reason: str
    check_time: _timestamp_pb2.Timestamp
    metadata: _containers.ScalarMap[str, str]
    revision: int
    etag: str
    exported_files: _containers.RepeatedScalarFieldContainer[str]
    exported_digests: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., registry_type: _Optional[str] = ..., external_id: _Optional[str] = ..., url: _Optional[str] = ..., version: _Optional[str] = ..., imported: bool = ..., import_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., export_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., sync_state: _Optional[_Union[SyncState, str]] = ..., sync_reason: _Optional[str] = ..., check_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., revision: _Optional[int] = ..., etag: _Optional[str] = ..., exported_files: _Optional[_Iterable[str]] = ..., exported_digests: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CreateExternalLinkRequest(_message.Message):
    __slots__ = ("parent", "external_link")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_LINK_FIELD_NUMBER: _ClassVar[int]
    parent: str
    external_link: ExternalLink
    def __init__(self, parent: _Optional[str] = ..., external_link: _Optional[_Union[ExternalLink, _Mapping]] = ...) -> None: ...

class CreateExternalLinkResponse(_message.Message):
    __slots__ = ("external_link",)
    EXTERNAL_LINK_FIELD_NUMBER: _ClassVar[int]
    external_link: ExternalLink
    def __init__(self, external_link: _Optional[_Union[ExternalLink, _Mapping]] = ...) -> None: ...

class GetExternalLinkRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetExternalLinkResponse(_message.Message):
    __slots__ = ("external_link",)
    EXTERNAL_LINK_FIELD_NUMBER: _ClassVar[int]
    external_link: ExternalLink
    def __init__(self, external_link: _Optional[_Union[ExternalLink, _Mapping]] = ...) -> None: ...

class ListExternalLinksRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListExternalLinksResponse(_message.Message):
    __slots__ = ("external_links", "next_page_token")
    EXTERNAL_LINKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    external_links: _containers.RepeatedCompositeFieldContainer[ExternalLink]
    next_page_token: str
    def __init__(self, external_links: _Optional[_Iterable[_Union[ExternalLink, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteExternalLinkRequest(_message.Message):
    __slots__ = ("name", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class DeleteExternalLinkResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckExternalLinkRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CheckExternalLinkResponse(_message.Message):
    __slots__ = ("external_link",)
    EXTERNAL_LINK_FIELD_NUMBER: _ClassVar[int]
    external_link: ExternalLink
    def __init__(self, external_link: _Optional[_Union[ExternalLink, _Mapping]] = ...) -> None: ...

class ExportModelVersionRequest(_message.Message):
    __slots__ = ("name", "external_link", "overwrite")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_LINK_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    name: str
    external_link: str
    overwrite: bool
    def __init__(self, name: _Optional[str] = ..., external_link: _Optional[str] = ..., overwrite: bool = ...) -> None: ...

class ExportModelVersionResponse(_message.Message):
    __slots__ = ("external_link",)
    EXTERNAL_LINK_FIELD_NUMBER: _ClassVar[int]
    external_link: ExternalLink
    def __init__(self, external_link: _Optional[_Union[ExternalLink, _Mapping]] = ...) -> None: ...

class GetStorageUseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStorageUseResponse(_message.Message):
    __slots__ = ("model_count", "version_count", "artifact_bytes")
    MODEL_COUNT_FIELD_NUMBER: _ClassVar[int]
    VERSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    model_count: int
    version_count: int
    artifact_bytes: int
    def __init__(self, model_count: _Optional[int] = ..., version_count: _Optional[int] = ..., artifact_bytes: _Optional[int] = ...) -> None: ...

class ListAuditEntriesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "filter")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    filter: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ...) -> None: ...

class ListAuditEntriesResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RecordAuditEntriesRequest(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ...) -> None: ...

class RecordAuditEntriesResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("uid", "create_time", "subject", "tenant", "method", "resource", "status", "reason", "peer")
    UID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    uid: str
    create_time: _timestamp_pb2.Timestamp
    subject: str
    tenant: str
    method: str
    resource: str
    status: str
    reason: str
    peer: str
    def __init__(self, uid: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., subject: _Optional[str] = ..., tenant: _Optional[str] = ..., method: _Optional[str] = ..., resource: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., peer: _Optional[str] = ...) -> None: ...

class DeleteModelVersionRequest(_message.Message):
    __slots__ = ("name", "etag", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    force: bool
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., force: bool = ...) -> None: ...

class DeleteModelVersionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetAliasRequest(_message.Message):
    __slots__ = ("name", "alias", "version", "etag", "require_verified")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_VERIFIED_FIELD_NUMBER: _ClassVar[int]
    name: str
    alias: str
    version: str
    etag: str
    require_verified: bool
    def __init__(self, name: _Optional[str] = ..., alias: _Optional[str] = ..., version: _Optional[str] = ..., etag: _Optional[str] = ..., require_verified: bool = ...) -> None: ...

class SetAliasResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class ImportModelRequest(_message.Message):
    __slots__ = ("model_id", "source", "version", "task_type", "engine", "engine_options", "resource_requirements", "expected_checksums", "request_id", "validate_only")
    class ExpectedChecksumsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    source: ModelSource
    version: str
    task_type: _common_pb2.TaskType
    engine: str
    engine_options: _struct_pb2.Struct
    resource_requirements: ResourceRequirements
    expected_checksums: _containers.ScalarMap[str, str]
    request_id: str
    validate_only: bool
    def __init__(self, model_id: _Optional[str] = ..., source: _Optional[_Union[ModelSource, _Mapping]] = ..., version: _Optional[str] = ..., task_type: _Optional[_Union[_common_pb2.TaskType, str]] = ..., engine: _Optional[str] = ..., engine_options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., resource_requirements: _Optional[_Union[ResourceRequirements, _Mapping]] = ..., expected_checksums: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[str] = ..., validate_only: bool = ...) -> None: ...

class ImportModelResponse(_message.Message):
    __slots__ = ("model", "model_version", "left_out_files")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FILES_FIELD_NUMBER: _ClassVar[int]
    model: Model
    model_version: ModelVersion
    left_out_files: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., model_version: _Optional[_Union[ModelVersion, _Mapping]] = ..., left_out_files: _Optional[_Iterable[str]] = ...) -> None: ...

class ResolveModelRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class ResolveModelResponse(_message.Message):
    __slots__ = ("model", "model_version", "cache_ttl")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CACHE_TTL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    model_version: ModelVersion
    cache_ttl: _duration_pb2.Duration
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., model_version: _Optional[_Union[ModelVersion, _Mapping]] = ..., cache_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class AcquireHoldRequest(_message.Message):
    __slots__ = ("name", "holder", "hold_id", "process", "in_memory")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    HOLD_ID_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    IN_MEMORY_FIELD_NUMBER: _ClassVar[int]
    name: str
    holder: str
    hold_id: str
    process: str
    in_memory: bool
    def __init__(self, name: _Optional[str] = ..., holder: _Optional[str] = ..., hold_id: _Optional[str] = ..., process: _Optional[str] = ..., in_memory: bool = ...) -> None: ...

class ReleaseHoldRequest(_message.Message):
    __slots__ = ("hold_id",)
    HOLD_ID_FIELD_NUMBER: _ClassVar[int]
    hold_id: str
    def __init__(self, hold_id: _Optional[str] = ...) -> None: ...

class ReleaseHoldResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AcquireHoldResponse(_message.Message):
    __slots__ = ("model_version", "golden")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_FIELD_NUMBER: _ClassVar[int]
    model_version: ModelVersion
    golden: GoldenInputs
    def __init__(self, model_version: _Optional[_Union[ModelVersion, _Mapping]] = ..., golden: _Optional[_Union[GoldenInputs, _Mapping]] = ...) -> None: ...

class GoldenInputs(_message.Message):
    __slots__ = ("golden", "texts", "pairs")
    GOLDEN_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    golden: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    pairs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, golden: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., pairs: _Optional[_Iterable[str]] = ...) -> None: ...

class RecordFingerprintRequest(_message.Message):
    __slots__ = ("name", "fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: Fingerprint
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ...) -> None: ...

class RecordFingerprintResponse(_message.Message):
    __slots__ = ("matches", "similarity")
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    matches: bool
    similarity: float
    def __init__(self, matches: bool = ..., similarity: _Optional[float] = ...) -> None: ...
