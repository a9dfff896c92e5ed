import datetime

from google.protobuf import duration_pb2 as _duration_pb2
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

class VectorEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VECTOR_ENCODING_UNSPECIFIED: _ClassVar[VectorEncoding]
    VECTOR_ENCODING_FLOATS: _ClassVar[VectorEncoding]
    VECTOR_ENCODING_BYTES: _ClassVar[VectorEncoding]

class ColdPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COLD_POLICY_UNSPECIFIED: _ClassVar[ColdPolicy]
    COLD_POLICY_WAIT: _ClassVar[ColdPolicy]
    COLD_POLICY_FAIL_FAST: _ClassVar[ColdPolicy]

class RequestPlace(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REQUEST_PLACE_UNSPECIFIED: _ClassVar[RequestPlace]
    REQUEST_PLACE_LOADING: _ClassVar[RequestPlace]
    REQUEST_PLACE_WAITING: _ClassVar[RequestPlace]
    REQUEST_PLACE_RUNNING: _ClassVar[RequestPlace]
VECTOR_ENCODING_UNSPECIFIED: VectorEncoding
VECTOR_ENCODING_FLOATS: VectorEncoding
VECTOR_ENCODING_BYTES: VectorEncoding
COLD_POLICY_UNSPECIFIED: ColdPolicy
COLD_POLICY_WAIT: ColdPolicy
COLD_POLICY_FAIL_FAST: ColdPolicy
REQUEST_PLACE_UNSPECIFIED: RequestPlace
REQUEST_PLACE_LOADING: RequestPlace
REQUEST_PLACE_WAITING: RequestPlace
REQUEST_PLACE_RUNNING: RequestPlace

class EmbedRequest(_message.Message):
    __slots__ = ("model", "texts", "normalize", "truncate", "dimensions", "priority", "timeout", "encoding", "precision", "cold_policy", "fallback_model", "request_id", "prompt_name")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    COLD_POLICY_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    model: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    normalize: bool
    truncate: bool
    dimensions: int
    priority: _common_pb2.Priority
    timeout: _duration_pb2.Duration
    encoding: VectorEncoding
    precision: str
    cold_policy: ColdPolicy
    fallback_model: str
    request_id: str
    prompt_name: str
    def __init__(self, model: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., normalize: bool = ..., truncate: bool = ..., dimensions: _Optional[int] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., encoding: _Optional[_Union[VectorEncoding, str]] = ..., precision: _Optional[str] = ..., cold_policy: _Optional[_Union[ColdPolicy, str]] = ..., fallback_model: _Optional[str] = ..., request_id: _Optional[str] = ..., prompt_name: _Optional[str] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("embeddings", "vectors", "usage", "timings", "model_version", "digest", "engine_profile", "energy")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    embeddings: _containers.RepeatedCompositeFieldContainer[Embedding]
    vectors: _common_pb2.Tensor
    usage: _common_pb2.TokenUsage
    timings: _common_pb2.Timings
    model_version: str
    digest: str
    engine_profile: _common_pb2.EngineProfile
    energy: _common_pb2.EnergyEstimate
    def __init__(self, embeddings: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ..., vectors: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., model_version: _Optional[str] = ..., digest: _Optional[str] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., energy: _Optional[_Union[_common_pb2.EnergyEstimate, _Mapping]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values", "input_tokens", "truncated")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    input_tokens: int
    truncated: bool
    def __init__(self, values: _Optional[_Iterable[float]] = ..., input_tokens: _Optional[int] = ..., truncated: bool = ...) -> None: ...

class RerankRequest(_message.Message):
    __slots__ = ("model", "query", "texts", "truncate", "raw_scores", "return_texts", "top_n", "priority", "timeout", "precision", "cold_policy", "fallback_model", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    RAW_SCORES_FIELD_NUMBER: _ClassVar[int]
    RETURN_TEXTS_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    COLD_POLICY_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    query: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    truncate: bool
    raw_scores: bool
    return_texts: bool
    top_n: int
    priority: _common_pb2.Priority
    timeout: _duration_pb2.Duration
    precision: str
    cold_policy: ColdPolicy
    fallback_model: str
    request_id: str
    def __init__(self, model: _Optional[str] = ..., query: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., truncate: bool = ..., raw_scores: bool = ..., return_texts: bool = ..., top_n: _Optional[int] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., precision: _Optional[str] = ..., cold_policy: _Optional[_Union[ColdPolicy, str]] = ..., fallback_model: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class RerankResponse(_message.Message):
    __slots__ = ("ranked", "usage", "timings", "model_version", "digest", "engine_profile", "energy")
    RANKED_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    ranked: _containers.RepeatedCompositeFieldContainer[RankedText]
    usage: _common_pb2.TokenUsage
    timings: _common_pb2.Timings
    model_version: str
    digest: str
    engine_profile: _common_pb2.EngineProfile
    energy: _common_pb2.EnergyEstimate
    def __init__(self, ranked: _Optional[_Iterable[_Union[RankedText, _Mapping]]] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., model_version: _Optional[str] = ..., digest: _Optional[str] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., energy: _Optional[_Union[_common_pb2.EnergyEstimate, _Mapping]] = ...) -> None: ...

class RankedText(_message.Message):
    __slots__ = ("index", "score", "text", "input_tokens", "truncated")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    index: int
    score: float
    text: str
    input_tokens: int
    truncated: bool
    def __init__(self, index: _Optional[int] = ..., score: _Optional[float] = ..., text: _Optional[str] = ..., input_tokens: _Optional[int] = ..., truncated: bool = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("model", "texts", "pairs", "truncate", "raw_scores", "top_n", "priority", "timeout", "precision", "cold_policy", "fallback_model", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    RAW_SCORES_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    COLD_POLICY_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    pairs: _containers.RepeatedScalarFieldContainer[str]
    truncate: bool
    raw_scores: bool
    top_n: int
    priority: _common_pb2.Priority
    timeout: _duration_pb2.Duration
    precision: str
    cold_policy: ColdPolicy
    fallback_model: str
    request_id: str
    def __init__(self, model: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., pairs: _Optional[_Iterable[str]] = ..., truncate: bool = ..., raw_scores: bool = ..., top_n: _Optional[int] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., precision: _Optional[str] = ..., cold_policy: _Optional[_Union[ColdPolicy, str]] = ..., fallback_model: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("classifications", "usage", "timings", "model_version", "digest", "engine_profile", "energy")
    CLASSIFICATIONS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    classifications: _containers.RepeatedCompositeFieldContainer[Classification]
    usage: _common_pb2.TokenUsage
    timings: _common_pb2.Timings
    model_version: str
    digest: str
    engine_profile: _common_pb2.EngineProfile
    energy: _common_pb2.EnergyEstimate
    def __init__(self, classifications: _Optional[_Iterable[_Union[Classification, _Mapping]]] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., model_version: _Optional[str] = ..., digest: _Optional[str] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., energy: _Optional[_Union[_common_pb2.EnergyEstimate, _Mapping]] = ...) -> None: ...

class Classification(_message.Message):
    __slots__ = ("labels", "input_tokens", "truncated")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[LabelScore]
    input_tokens: int
    truncated: bool
    def __init__(self, labels: _Optional[_Iterable[_Union[LabelScore, _Mapping]]] = ..., input_tokens: _Optional[int] = ..., truncated: bool = ...) -> None: ...

class LabelScore(_message.Message):
    __slots__ = ("label", "score", "index")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    label: str
    score: float
    index: int
    def __init__(self, label: _Optional[str] = ..., score: _Optional[float] = ..., index: _Optional[int] = ...) -> None: ...

class AnswerQuestionRequest(_message.Message):
    __slots__ = ("model", "question", "context", "top_n", "max_answer_tokens", "priority", "timeout", "precision", "cold_policy", "fallback_model", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    MAX_ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    COLD_POLICY_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    question: str
    context: str
    top_n: int
    max_answer_tokens: int
    priority: _common_pb2.Priority
    timeout: _duration_pb2.Duration
    precision: str
    cold_policy: ColdPolicy
    fallback_model: str
    request_id: str
    def __init__(self, model: _Optional[str] = ..., question: _Optional[str] = ..., context: _Optional[str] = ..., top_n: _Optional[int] = ..., max_answer_tokens: _Optional[int] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., precision: _Optional[str] = ..., cold_policy: _Optional[_Union[ColdPolicy, str]] = ..., fallback_model: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class AnswerQuestionResponse(_message.Message):
    __slots__ = ("answers", "usage", "timings", "model_version", "digest", "engine_profile", "energy")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[Answer]
    usage: _common_pb2.TokenUsage
    timings: _common_pb2.Timings
    model_version: str
    digest: str
    engine_profile: _common_pb2.EngineProfile
    energy: _common_pb2.EnergyEstimate
    def __init__(self, answers: _Optional[_Iterable[_Union[Answer, _Mapping]]] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., model_version: _Optional[str] = ..., digest: _Optional[str] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., energy: _Optional[_Union[_common_pb2.EnergyEstimate, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("text", "score", "start", "end")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    text: str
    score: float
    start: int
    end: int
    def __init__(self, text: _Optional[str] = ..., score: _Optional[float] = ..., start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("model", "inputs", "parameters", "outputs", "priority", "timeout", "precision", "cold_policy", "fallback_model", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    COLD_POLICY_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    inputs: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    parameters: _struct_pb2.Struct
    outputs: _containers.RepeatedScalarFieldContainer[str]
    priority: _common_pb2.Priority
    timeout: _duration_pb2.Duration
    precision: str
    cold_policy: ColdPolicy
    fallback_model: str
    request_id: str
    def __init__(self, model: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., parameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., outputs: _Optional[_Iterable[str]] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., precision: _Optional[str] = ..., cold_policy: _Optional[_Union[ColdPolicy, str]] = ..., fallback_model: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class NamedTensor(_message.Message):
    __slots__ = ("name", "tensor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    tensor: _common_pb2.Tensor
    def __init__(self, name: _Optional[str] = ..., tensor: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("outputs", "usage", "timings", "model_version", "digest", "engine_profile", "energy", "labels")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    usage: _common_pb2.TokenUsage
    timings: _common_pb2.Timings
    model_version: str
    digest: str
    engine_profile: _common_pb2.EngineProfile
    energy: _common_pb2.EnergyEstimate
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, outputs: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., model_version: _Optional[str] = ..., digest: _Optional[str] = ..., engine_profile: _Optional[_Union[_common_pb2.EngineProfile, _Mapping]] = ..., energy: _Optional[_Union[_common_pb2.EnergyEstimate, _Mapping]] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamEmbedRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: EmbedRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[EmbedRequest, _Mapping]] = ...) -> None: ...

class StreamEmbedResponse(_message.Message):
    __slots__ = ("id", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: EmbedResponse
    error: CallError
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[EmbedResponse, _Mapping]] = ..., error: _Optional[_Union[CallError, _Mapping]] = ...) -> None: ...

class CallError(_message.Message):
    __slots__ = ("status", "reason", "message", "metadata", "fields", "retry_after")
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
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    status: str
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    fields: _containers.ScalarMap[str, str]
    retry_after: _duration_pb2.Duration
    def __init__(self, status: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., fields: _Optional[_Mapping[str, str]] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("model", "texts", "add_special_tokens", "priority", "timeout", "cold_policy", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    COLD_POLICY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    add_special_tokens: bool
    priority: _common_pb2.Priority
    timeout: _duration_pb2.Duration
    cold_policy: ColdPolicy
    request_id: str
    def __init__(self, model: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., add_special_tokens: bool = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cold_policy: _Optional[_Union[ColdPolicy, str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("texts", "usage", "timings", "model_version", "digest")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedCompositeFieldContainer[TokenizedText]
    usage: _common_pb2.TokenUsage
    timings: _common_pb2.Timings
    model_version: str
    digest: str
    def __init__(self, texts: _Optional[_Iterable[_Union[TokenizedText, _Mapping]]] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., model_version: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class TokenizedText(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "start", "end", "special")
    ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_FIELD_NUMBER: _ClassVar[int]
    id: int
    start: int
    end: int
    special: bool
    def __init__(self, id: _Optional[int] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., special: bool = ...) -> None: ...

class DescribeModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class DescribeModelResponse(_message.Message):
    __slots__ = ("model_version", "digest", "task_type", "inputs", "outputs", "labels", "max_input_tokens", "embedding_dimensions", "max_texts", "max_text_characters", "max_call_bytes", "replicas", "prompts", "default_prompt_name", "max_image_bytes", "max_image_pixels", "max_resized_pixels")
    class PromptsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_CALL_BYTES_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_RESIZED_PIXELS_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    digest: str
    task_type: _common_pb2.TaskType
    inputs: _containers.RepeatedCompositeFieldContainer[TensorDescription]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorDescription]
    labels: _containers.RepeatedScalarFieldContainer[str]
    max_input_tokens: int
    embedding_dimensions: int
    max_texts: int
    max_text_characters: int
    max_call_bytes: int
    replicas: int
    prompts: _containers.ScalarMap[str, str]
    default_prompt_name: str
    max_image_bytes: int
    max_image_pixels: int
    max_resized_pixels: int
    def __init__(self, model_version: _Optional[str] = ..., digest: _Optional[str] = ..., task_type: _Optional[_Union[_common_pb2.TaskType, str]] = ..., inputs: _Optional[_Iterable[_Union[TensorDescription, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorDescription, _Mapping]]] = ..., labels: _Optional[_Iterable[str]] = ..., max_input_tokens: _Optional[int] = ..., embedding_dimensions: _Optional[int] = ..., max_texts: _Optional[int] = ..., max_text_characters: _Optional[int] = ..., max_call_bytes: _Optional[int] = ..., replicas: _Optional[int] = ..., prompts: _Optional[_Mapping[str, str]] = ..., default_prompt_name: _Optional[str] = ..., max_image_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_resized_pixels: _Optional[int] = ...) -> None: ...

class TensorDescription(_message.Message):
    __slots__ = ("name", "datatype", "shape", "optional")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    optional: bool
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., optional: bool = ...) -> None: ...

class GetQueueRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetQueueResponse(_message.Message):
    __slots__ = ("queues",)
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    queues: _containers.RepeatedCompositeFieldContainer[Queue]
    def __init__(self, queues: _Optional[_Iterable[_Union[Queue, _Mapping]]] = ...) -> None: ...

class Queue(_message.Message):
    __slots__ = ("model_version", "levels", "in_flight", "drain_rate", "replicas", "ready_in", "abandoned")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    DRAIN_RATE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    READY_IN_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    levels: _containers.RepeatedCompositeFieldContainer[QueueLevel]
    in_flight: int
    drain_rate: float
    replicas: int
    ready_in: _duration_pb2.Duration
    abandoned: int
    def __init__(self, model_version: _Optional[str] = ..., levels: _Optional[_Iterable[_Union[QueueLevel, _Mapping]]] = ..., in_flight: _Optional[int] = ..., drain_rate: _Optional[float] = ..., replicas: _Optional[int] = ..., ready_in: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., abandoned: _Optional[int] = ...) -> None: ...

class QueueLevel(_message.Message):
    __slots__ = ("priority", "entries", "tokens", "bytes", "oldest_age", "tenants")
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_AGE_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    priority: _common_pb2.Priority
    entries: int
    tokens: int
    bytes: int
    oldest_age: _duration_pb2.Duration
    tenants: _containers.RepeatedCompositeFieldContainer[QueueTenant]
    def __init__(self, priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., entries: _Optional[int] = ..., tokens: _Optional[int] = ..., bytes: _Optional[int] = ..., oldest_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., tenants: _Optional[_Iterable[_Union[QueueTenant, _Mapping]]] = ...) -> None: ...

class QueueTenant(_message.Message):
    __slots__ = ("tenant", "weight", "entries", "tokens", "bytes", "oldest_age")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_AGE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    weight: float
    entries: int
    tokens: int
    bytes: int
    oldest_age: _duration_pb2.Duration
    def __init__(self, tenant: _Optional[str] = ..., weight: _Optional[float] = ..., entries: _Optional[int] = ..., tokens: _Optional[int] = ..., bytes: _Optional[int] = ..., oldest_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ExplainRequestRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ExplainRequestResponse(_message.Message):
    __slots__ = ("model_version", "place", "reason", "priority", "tenant", "waiting_entries", "running_entries", "answered_entries", "entries_ahead", "tokens_ahead", "age", "time_left", "starts_in")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WAITING_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_AHEAD_FIELD_NUMBER: _ClassVar[int]
    TOKENS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_FIELD_NUMBER: _ClassVar[int]
    STARTS_IN_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    place: RequestPlace
    reason: str
    priority: _common_pb2.Priority
    tenant: str
    waiting_entries: int
    running_entries: int
    answered_entries: int
    entries_ahead: int
    tokens_ahead: int
    age: _duration_pb2.Duration
    time_left: _duration_pb2.Duration
    starts_in: _duration_pb2.Duration
    def __init__(self, model_version: _Optional[str] = ..., place: _Optional[_Union[RequestPlace, str]] = ..., reason: _Optional[str] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., tenant: _Optional[str] = ..., waiting_entries: _Optional[int] = ..., running_entries: _Optional[int] = ..., answered_entries: _Optional[int] = ..., entries_ahead: _Optional[int] = ..., tokens_ahead: _Optional[int] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., time_left: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., starts_in: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SetTenantWeightRequest(_message.Message):
    __slots__ = ("tenant", "weight")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    weight: float
    def __init__(self, tenant: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class SetTenantWeightResponse(_message.Message):
    __slots__ = ("tenant", "weight")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    weight: float
    def __init__(self, tenant: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class ListTenantWeightsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTenantWeightsResponse(_message.Message):
    __slots__ = ("weights",)
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    weights: _containers.RepeatedCompositeFieldContainer[TenantWeight]
    def __init__(self, weights: _Optional[_Iterable[_Union[TenantWeight, _Mapping]]] = ...) -> None: ...

class TenantWeight(_message.Message):
    __slots__ = ("tenant", "weight", "changed")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    weight: float
    changed: bool
    def __init__(self, tenant: _Optional[str] = ..., weight: _Optional[float] = ..., changed: bool = ...) -> None: ...

class InferenceJob(_message.Message):
    __slots__ = ("name", "uid", "model", "model_version", "digest", "task_type", "state", "attempt", "progress", "priority", "tenant", "subject", "request_id", "error", "reason", "create_time", "update_time", "start_time", "end_time", "deadline", "result_expire_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    RESULT_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    model: str
    model_version: str
    digest: str
    task_type: _common_pb2.TaskType
    state: _common_pb2.JobState
    attempt: int
    progress: JobProgress
    priority: _common_pb2.Priority
    tenant: str
    subject: str
    request_id: str
    error: JobError
    reason: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    deadline: _timestamp_pb2.Timestamp
    result_expire_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., model: _Optional[str] = ..., model_version: _Optional[str] = ..., digest: _Optional[str] = ..., task_type: _Optional[_Union[_common_pb2.TaskType, str]] = ..., state: _Optional[_Union[_common_pb2.JobState, str]] = ..., attempt: _Optional[int] = ..., progress: _Optional[_Union[JobProgress, _Mapping]] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., tenant: _Optional[str] = ..., subject: _Optional[str] = ..., request_id: _Optional[str] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., reason: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., result_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class JobProgress(_message.Message):
    __slots__ = ("inputs", "succeeded", "failed", "input_tokens", "compute")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FIELD_NUMBER: _ClassVar[int]
    inputs: int
    succeeded: int
    failed: int
    input_tokens: int
    compute: _duration_pb2.Duration
    def __init__(self, inputs: _Optional[int] = ..., succeeded: _Optional[int] = ..., failed: _Optional[int] = ..., input_tokens: _Optional[int] = ..., compute: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class JobError(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class EmbedTask(_message.Message):
    __slots__ = ("texts", "normalize", "truncate", "dimensions", "precision", "prompt_name")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    normalize: bool
    truncate: bool
    dimensions: int
    precision: str
    prompt_name: str
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., normalize: bool = ..., truncate: bool = ..., dimensions: _Optional[int] = ..., precision: _Optional[str] = ..., prompt_name: _Optional[str] = ...) -> None: ...

class ClassifyTask(_message.Message):
    __slots__ = ("texts", "pairs", "truncate", "raw_scores", "top_n", "precision")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    RAW_SCORES_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    pairs: _containers.RepeatedScalarFieldContainer[str]
    truncate: bool
    raw_scores: bool
    top_n: int
    precision: str
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., pairs: _Optional[_Iterable[str]] = ..., truncate: bool = ..., raw_scores: bool = ..., top_n: _Optional[int] = ..., precision: _Optional[str] = ...) -> None: ...

class RerankTask(_message.Message):
    __slots__ = ("inputs", "truncate", "raw_scores", "top_n", "precision")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    RAW_SCORES_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[RerankInput]
    truncate: bool
    raw_scores: bool
    top_n: int
    precision: str
    def __init__(self, inputs: _Optional[_Iterable[_Union[RerankInput, _Mapping]]] = ..., truncate: bool = ..., raw_scores: bool = ..., top_n: _Optional[int] = ..., precision: _Optional[str] = ...) -> None: ...

class RerankInput(_message.Message):
    __slots__ = ("query", "texts")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    query: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, query: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ...) -> None: ...

class AnswerQuestionTask(_message.Message):
    __slots__ = ("inputs", "top_n", "max_answer_tokens", "precision")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    MAX_ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[QuestionInput]
    top_n: int
    max_answer_tokens: int
    precision: str
    def __init__(self, inputs: _Optional[_Iterable[_Union[QuestionInput, _Mapping]]] = ..., top_n: _Optional[int] = ..., max_answer_tokens: _Optional[int] = ..., precision: _Optional[str] = ...) -> None: ...

class QuestionInput(_message.Message):
    __slots__ = ("question", "context")
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    question: str
    context: str
    def __init__(self, question: _Optional[str] = ..., context: _Optional[str] = ...) -> None: ...

class PredictTask(_message.Message):
    __slots__ = ("inputs", "parameters", "outputs", "precision")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[PredictInput]
    parameters: _struct_pb2.Struct
    outputs: _containers.RepeatedScalarFieldContainer[str]
    precision: str
    def __init__(self, inputs: _Optional[_Iterable[_Union[PredictInput, _Mapping]]] = ..., parameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., outputs: _Optional[_Iterable[str]] = ..., precision: _Optional[str] = ...) -> None: ...

class PredictInput(_message.Message):
    __slots__ = ("inputs",)
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    def __init__(self, inputs: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ...) -> None: ...

class CreateInferenceJobRequest(_message.Message):
    __slots__ = ("model", "embed", "classify", "rerank", "answer_question", "predict", "priority", "timeout", "result_ttl", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    CLASSIFY_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    ANSWER_QUESTION_FIELD_NUMBER: _ClassVar[int]
    PREDICT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    RESULT_TTL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    embed: EmbedTask
    classify: ClassifyTask
    rerank: RerankTask
    answer_question: AnswerQuestionTask
    predict: PredictTask
    priority: _common_pb2.Priority
    timeout: _duration_pb2.Duration
    result_ttl: _duration_pb2.Duration
    request_id: str
    def __init__(self, model: _Optional[str] = ..., embed: _Optional[_Union[EmbedTask, _Mapping]] = ..., classify: _Optional[_Union[ClassifyTask, _Mapping]] = ..., rerank: _Optional[_Union[RerankTask, _Mapping]] = ..., answer_question: _Optional[_Union[AnswerQuestionTask, _Mapping]] = ..., predict: _Optional[_Union[PredictTask, _Mapping]] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., result_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreateInferenceJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: InferenceJob
    def __init__(self, job: _Optional[_Union[InferenceJob, _Mapping]] = ...) -> None: ...

class GetInferenceJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetInferenceJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: InferenceJob
    def __init__(self, job: _Optional[_Union[InferenceJob, _Mapping]] = ...) -> None: ...

class ListInferenceJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "states", "model", "tenant")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[_common_pb2.JobState]
    model: str
    tenant: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_common_pb2.JobState, str]]] = ..., model: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class ListInferenceJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[InferenceJob]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[InferenceJob, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelInferenceJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelInferenceJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: InferenceJob
    def __init__(self, job: _Optional[_Union[InferenceJob, _Mapping]] = ...) -> None: ...

class WatchInferenceJobRequest(_message.Message):
    __slots__ = ("name", "cursor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    cursor: str
    def __init__(self, name: _Optional[str] = ..., cursor: _Optional[str] = ...) -> None: ...

class WatchInferenceJobResponse(_message.Message):
    __slots__ = ("job", "cursor")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    job: InferenceJob
    cursor: str
    def __init__(self, job: _Optional[_Union[InferenceJob, _Mapping]] = ..., cursor: _Optional[str] = ...) -> None: ...

class GetInferenceResultRequest(_message.Message):
    __slots__ = ("name", "partial", "encoding", "page_size", "page_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    partial: bool
    encoding: VectorEncoding
    page_size: int
    page_token: str
    def __init__(self, name: _Optional[str] = ..., partial: bool = ..., encoding: _Optional[_Union[VectorEncoding, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class GetInferenceResultResponse(_message.Message):
    __slots__ = ("job", "results", "next_page_token")
    JOB_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    job: InferenceJob
    results: _containers.RepeatedCompositeFieldContainer[InferenceResult]
    next_page_token: str
    def __init__(self, job: _Optional[_Union[InferenceJob, _Mapping]] = ..., results: _Optional[_Iterable[_Union[InferenceResult, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class InferenceResult(_message.Message):
    __slots__ = ("index", "embed", "error", "classify", "rerank", "answer_question", "predict", "usage", "timings")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CLASSIFY_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    ANSWER_QUESTION_FIELD_NUMBER: _ClassVar[int]
    PREDICT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    index: int
    embed: EmbedResult
    error: JobError
    classify: Classification
    rerank: RerankResult
    answer_question: AnswerQuestionResult
    predict: PredictResult
    usage: _common_pb2.TokenUsage
    timings: _common_pb2.Timings
    def __init__(self, index: _Optional[int] = ..., embed: _Optional[_Union[EmbedResult, _Mapping]] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., classify: _Optional[_Union[Classification, _Mapping]] = ..., rerank: _Optional[_Union[RerankResult, _Mapping]] = ..., answer_question: _Optional[_Union[AnswerQuestionResult, _Mapping]] = ..., predict: _Optional[_Union[PredictResult, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ...) -> None: ...

class RerankResult(_message.Message):
    __slots__ = ("ranked",)
    RANKED_FIELD_NUMBER: _ClassVar[int]
    ranked: _containers.RepeatedCompositeFieldContainer[RankedText]
    def __init__(self, ranked: _Optional[_Iterable[_Union[RankedText, _Mapping]]] = ...) -> None: ...

class AnswerQuestionResult(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[Answer]
    def __init__(self, answers: _Optional[_Iterable[_Union[Answer, _Mapping]]] = ...) -> None: ...

class PredictResult(_message.Message):
    __slots__ = ("outputs", "labels")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, outputs: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class EmbedResult(_message.Message):
    __slots__ = ("values", "vector", "input_tokens", "truncated")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    vector: bytes
    input_tokens: int
    truncated: bool
    def __init__(self, values: _Optional[_Iterable[float]] = ..., vector: _Optional[bytes] = ..., input_tokens: _Optional[int] = ..., truncated: bool = ...) -> None: ...
