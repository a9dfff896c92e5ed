"""Requests and answers of the SDK as values: what `Client` and `AsyncClient` send and what they make of the answer.

Everything here is pure; the two clients differ only in how they wait.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar

from google.protobuf.message import Message

from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.registry.v1 import registry_pb2

if TYPE_CHECKING:
    import numpy
    import numpy.typing

    FloatArray: TypeAlias = numpy.typing.NDArray[numpy.float32]
    """float32, [texts, dimensions] or [dimensions]; where numpy is absent a list of `array('f')`, or one."""

MessageT = TypeVar("MessageT", bound=Message)

DEFAULT_TARGET = "127.0.0.1:50051"
MAX_TIMEOUT_SECONDS = 366 * 24 * 3600.0
"""gRPC's clock does not reach much further."""
MAX_TEXTS = 2048
"""Texts in one Embed call; more are sent in several."""
_MAX_CALL_BYTES = 16 * 1024 * 1024
"""Text bytes in one Embed call: far below every message limit, so that a corpus goes through as it is."""


@dataclass(frozen=True)
class Embeddings:
    """The answer to `embed_detailed`: vectors with what they cost and what made them."""

    data: bytes
    """Little-endian float32, row after row."""
    shape: tuple[int, int]
    """(texts, dimensions)"""
    single: bool
    """One text was asked for, as a plain string: `vectors` has one dimension less."""
    input_tokens: tuple[int, ...]
    """For each text."""
    truncated: tuple[bool, ...]
    """For each text: whether its end was cut off."""
    usage: common_pb2.TokenUsage
    timings: common_pb2.Timings
    """Summed when the texts went in several calls."""
    model_version: str
    """Resource name of the version that answered."""
    digest: str
    engine_profile: common_pb2.EngineProfile
    energy: common_pb2.EnergyEstimate | None

    @cached_property
    def vectors(self) -> FloatArray:
        """float32 [texts, dimensions], or [dimensions] for a single text; see `FloatArray`."""
        try:
            import numpy
        except ImportError:
            rows: Any = self.rows()
            return rows[0] if self.single else rows  # type: ignore[no-any-return]
        matrix = numpy.frombuffer(self.data, dtype="<f4").astype(numpy.float32).reshape(self.shape)
        return matrix[0] if self.single else matrix

    def rows(self) -> list[array[float]]:
        """One `array('f')` for each text; needs no numpy."""
        flat: array[float] = array("f")
        flat.frombytes(self.data)
        if sys.byteorder == "big":
            flat.byteswap()
        width = self.shape[1]
        return [flat[row * width : (row + 1) * width] for row in range(self.shape[0])]


def build(cls: type[MessageT], /, *, _at: str = "", **fields: Any) -> MessageT:
    """A message of these fields; None leaves a field unset. InvalidArgument, below `_at`, for what does not fit one."""
    try:
        return cls(**fields)
    except (ValueError, TypeError) as error:
        raise errors.InvalidArgument.at(_join(_at, _culprit(cls, fields)), str(error)) from None


def _culprit(cls: type[Message], fields: Mapping[str, Any]) -> str:
    for name, value in fields.items():
        try:
            cls(**{name: value})
        except (ValueError, TypeError):
            for index, item in enumerate(value) if isinstance(value, list | tuple) else ():
                try:
                    cls(**{name: [item]})
                except (ValueError, TypeError):
                    return f"{name}[{index}]"
            return name
    raise AssertionError("each field fits alone")


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def check_timeout(timeout: float) -> float:
    """Seconds. InvalidArgument for what is no time to wait: zero, less, not a number, more than a year."""
    if not 0 < timeout <= MAX_TIMEOUT_SECONDS:
        raise errors.InvalidArgument.at("timeout", f"must be above 0 and at most {MAX_TIMEOUT_SECONDS:g} seconds")
    return timeout


class EmbedOptions(TypedDict, total=False):
    """How to embed; what is absent or None is left to the server."""

    normalize: bool | None
    """Scale to length 1. Default true."""
    truncate: bool | None
    """Cut texts over the model's limit, else TextTooLong. Default true."""
    dimensions: int | None
    """Keep the first n. Default: all."""
    priority: str | int | None
    """low, medium or high."""
    precision: str | None
    """`exact` demands the engine's exact profile."""
    cold: str | int | None
    """When the model is not in memory: `wait` (default) until it is, or `fail_fast` with ModelLoading."""
    fallback: str | None
    """A model that answers while the one asked for is not in memory; the answer names the version that served."""
    request_id: str | None
    """Names the call for `explain_request` while it lasts."""
    prompt: str | None
    """Name of one of the model's prompts (`query`, `document`, …; see `describe_model`), to go before each text."""


def embed_requests(
    model: str,
    texts: Sequence[str],
    *,
    normalize: bool | None = None,
    truncate: bool | None = None,
    dimensions: int | None = None,
    priority: str | int | None = None,
    precision: str | None = None,
    cold: str | int | None = None,
    fallback: str | None = None,
    request_id: str | None = None,
    prompt: str | None = None,
) -> Iterator[inference_pb2.EmbedRequest]:
    """One request for every group of texts that fits into a call; no texts still make one request, for its error."""
    for group in _groups(texts):
        # What is None stays unset.
        yield build(
            inference_pb2.EmbedRequest,
            model=model,
            texts=group,
            normalize=normalize,
            truncate=truncate,
            dimensions=dimensions,
            priority=priority_value(priority),
            encoding=inference_pb2.VECTOR_ENCODING_BYTES,
            precision=precision or "",
            cold_policy=cold_policy_value(cold),
            fallback_model=fallback,
            request_id=request_id,
            prompt_name=prompt,
        )


class TaskOptions(TypedDict, total=False):
    """How to rerank or classify; what is absent or None is left to the server."""

    truncate: bool | None
    """Cut what is over the model's limit, else TextTooLong. Default true."""
    raw_scores: bool | None
    """Scores as the model gives them, not made into 0 to 1."""
    top_n: int | None
    """Only the best n. Default: all."""
    priority: str | int | None
    """low, medium or high."""
    precision: str | None
    """`exact` demands the engine's exact profile."""
    cold: str | int | None
    """When the model is not in memory: `wait` (default) until it is, or `fail_fast` with ModelLoading."""
    fallback: str | None
    """A model of the same task that answers while the one asked for is not in memory."""
    request_id: str | None
    """Names the call for `explain_request` while it lasts."""


def task_request(cls: type[MessageT], **fields: Any) -> MessageT:
    """A request of a task other than embedding, from its own fields and TaskOptions."""
    cold, fallback = fields.pop("cold", None), fields.pop("fallback", None)
    priority = priority_value(fields.pop("priority", None))
    return build(cls, priority=priority, cold_policy=cold_policy_value(cold), fallback_model=fallback, **fields)


def texts_of(texts: str | Sequence[str]) -> Sequence[str]:
    """One text or several, as several."""
    return [texts] if isinstance(texts, str) else texts


def follow(request: inference_pb2.EmbedRequest, first: inference_pb2.EmbedResponse) -> None:
    """All groups of one call go to the version that answered the first: an alias may move between, a model may load."""
    request.model = first.model_version
    request.fallback_model = ""


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = size = 0
    for end, text in enumerate(texts):
        if not isinstance(text, str):
            raise errors.InvalidArgument.at(f"texts[{end}]", f"is no string but a {type(text).__name__}")
        # A character is at most 4 bytes of UTF-8, and encoding every text only to count it would double the work.
        text_bytes = 4 * len(text)
        if end > start and (end - start == MAX_TEXTS or size + text_bytes > _MAX_CALL_BYTES):
            yield texts[start:end]
            start, size = end, 0
        size += text_bytes
    yield texts[start:]


def embeddings_of(answers: Sequence[inference_pb2.EmbedResponse], *, single: bool) -> Embeddings:
    """Puts the answers of one `embed` together, in order. InternalError when a tensor is not what was asked for."""
    usage, timings = common_pb2.TokenUsage(), common_pb2.Timings()
    parts: list[bytes] = []
    count, width = 0, None
    for answer in answers:
        shape, tensor = tuple(answer.vectors.shape), answer.vectors
        if (
            tensor.data_type != common_pb2.DATA_TYPE_FP32
            or len(shape) != 2
            or len(tensor.data) != 4 * shape[0] * shape[1]
        ):
            raise errors.InternalError(
                f"the server answered with a tensor of shape {shape} and {len(tensor.data)} bytes"
            )
        if width not in (None, shape[1]):
            raise errors.InternalError(f"the server answered with vectors of {width} and of {shape[1]} dimensions")
        count, width = count + shape[0], shape[1]
        parts.append(tensor.data)
        usage.input_tokens += answer.usage.input_tokens
        usage.output_tokens += answer.usage.output_tokens
        for part in ("queue", "tokenise", "compute", "total"):
            if answer.timings.HasField(part):
                duration = getattr(timings, part)
                duration.FromNanoseconds(duration.ToNanoseconds() + getattr(answer.timings, part).ToNanoseconds())
    first = answers[0]
    energy = [answer.energy for answer in answers if answer.HasField("energy")]
    return Embeddings(
        data=parts[0] if len(parts) == 1 else b"".join(parts),
        shape=(count, width or 0),
        single=single,
        input_tokens=tuple(entry.input_tokens for answer in answers for entry in answer.embeddings),
        truncated=tuple(entry.truncated for answer in answers for entry in answer.embeddings),
        usage=usage,
        timings=timings,
        model_version=first.model_version,
        digest=first.digest,
        engine_profile=first.engine_profile,
        energy=common_pb2.EnergyEstimate(
            energy_wh=sum(estimate.energy_wh for estimate in energy),
            emissions_gco2e=sum(estimate.emissions_gco2e for estimate in energy),
            method=energy[0].method,
        )
        if energy
        else None,
    )


def priority_value(priority: str | int | None) -> common_pb2.Priority:
    """`low`, `medium`, `high`, or the enum's number."""
    return _enum_value(common_pb2.Priority, "PRIORITY_", "priority", priority)  # type: ignore[no-any-return]


def cold_policy_value(cold: str | int | None) -> inference_pb2.ColdPolicy:
    """`wait`, `fail_fast`, or the enum's number."""
    return _enum_value(inference_pb2.ColdPolicy, "COLD_POLICY_", "cold_policy", cold)  # type: ignore[no-any-return]


def job_state_value(state: str | int) -> common_pb2.JobState:
    """The word as in `running`, or the enum's number."""
    return _enum_value(common_pb2.JobState, "JOB_STATE_", "states", state)  # type: ignore[no-any-return]


def task_type_value(task_type: str | int | None) -> common_pb2.TaskType:
    """The word as in `txt2embed`, or the enum's number."""
    return _enum_value(common_pb2.TaskType, "TASK_TYPE_", "task_type", task_type)  # type: ignore[no-any-return]


def _enum_value(enum: Any, prefix: str, field: str, value: str | int | None) -> Any:
    if value is None or isinstance(value, int):
        return value or 0
    name = prefix + value.upper().replace("-", "_")
    if name not in enum.keys():  # noqa: SIM118  an enum wrapper is no mapping
        words = ", ".join(word(key, prefix) for key in enum.keys() if not key.endswith("_UNSPECIFIED"))  # noqa: SIM118
        raise errors.InvalidArgument.at(field, f"{value!r} is none of {words}")
    return enum.Value(name)


def word(name: str, prefix: str) -> str:
    """The lower-case word of an enum name: `TASK_TYPE_TXT2EMBED` is `txt2embed`."""
    return name.removeprefix(prefix).lower()


def source_of(
    *,
    path: str | None,
    hub: str | None,
    revision: str | None,
    empty: bool,
    url: str | None = None,
    files: Sequence[str] = (),
) -> registry_pb2.ModelSource:
    """Exactly one of a folder on the registry's machine, a Hub repository, a folder at a URL, or no files."""
    if sum((path is not None, hub is not None, url is not None, empty)) != 1:
        raise errors.InvalidArgument.at("source", "give exactly one of path, hub, url and empty")
    if files and url is None:
        raise errors.InvalidArgument.at("source.url.files", "only a URL has a list of files")
    if revision is not None and hub is None:
        raise errors.InvalidArgument.at("source.hub.revision", "only a Hub source has a revision")
    if path is not None:
        return registry_pb2.ModelSource(local=build(registry_pb2.LocalSource, _at="source.local", path=path))
    if hub is not None:
        return registry_pb2.ModelSource(
            hub=build(registry_pb2.HubSource, _at="source.hub", repo_id=hub, revision=revision)
        )
    if url is not None:
        return registry_pb2.ModelSource(url=build(registry_pb2.UrlSource, _at="source.url", url=url, files=files))
    return registry_pb2.ModelSource(empty=registry_pb2.EmptySource())


def requirements_of(
    memory_bytes: int | None, accelerator_memory_bytes: int | None, cpu_threads: int | None
) -> registry_pb2.ResourceRequirements | None:
    if memory_bytes is None and accelerator_memory_bytes is None and cpu_threads is None:
        return None
    return build(
        registry_pb2.ResourceRequirements,
        _at="resource_requirements",
        memory_bytes=memory_bytes or 0,
        accelerator_memory_bytes=accelerator_memory_bytes or 0,
        cpu_threads=cpu_threads,
    )


def device_memory(memory: Mapping[str, int]) -> list[common_pb2.DeviceMemory]:
    """Bytes by device."""
    return [
        build(common_pb2.DeviceMemory, _at=f"budget[{device!r}]", device=device, memory_bytes=memory_bytes)
        for device, memory_bytes in memory.items()
    ]


def residency_update(
    model: str, *, keep_alive: float | Literal["default"] | None, revision: int, **changes: Any
) -> lifecycle_pb2.UpdateResidencyRequest:
    """Only what is not None is changed."""
    mask = [name for name, value in changes.items() if value is not None]
    residency = build(lifecycle_pb2.Residency, _at="residency", model_version=model, revision=revision, **changes)
    if keep_alive is not None:
        mask.append("keep_alive")
        _set_seconds(residency, "keep_alive", keep_alive)
    return build(lifecycle_pb2.UpdateResidencyRequest, residency=residency, update_mask={"paths": mask})


def node_update(
    *,
    budgets: Mapping[str, int | float] | None,
    policy: str | None,
    idle_ttl: float | Literal["default"] | None,
    load_concurrency: int | None,
    revision: int,
) -> lifecycle_pb2.UpdateNodeRequest:
    """Only what is not None is changed. A budget that is an int is bytes, a float is a share."""
    given = {"budgets": budgets, "policy": policy, "idle_ttl": idle_ttl, "load_concurrency": load_concurrency}
    node = build(
        lifecycle_pb2.Node,
        _at="node",
        budgets=[
            build(
                lifecycle_pb2.DeviceBudget,
                _at=f"node.budgets[{index}]",
                device=device,
                **{"memory_bytes" if isinstance(budget, int) else "share": budget},
            )
            for index, (device, budget) in enumerate((budgets or {}).items())
        ],
        policy=policy or "",
        load_concurrency=load_concurrency,
        revision=revision,
    )
    if idle_ttl is not None:
        _set_seconds(node, "idle_ttl", idle_ttl)
    mask = [name for name, value in given.items() if value is not None]
    return build(lifecycle_pb2.UpdateNodeRequest, node=node, update_mask={"paths": mask})


def _set_seconds(message: Any, field: str, seconds: float | Literal["default"]) -> None:
    if seconds == "default":
        return  # named in the mask and unset
    try:
        getattr(message, field).FromNanoseconds(round(seconds * 1e9))
    except (ValueError, TypeError, OverflowError) as error:
        raise errors.InvalidArgument.at(field, f"{seconds!r} is no number of seconds: {error}") from None


def options_of(engine_options: Mapping[str, Any] | None, at: str = "engine_options") -> Any:
    """A `google.protobuf.Struct`, or None where nothing was given."""
    from google.protobuf import struct_pb2

    if engine_options is None:
        return None
    options = struct_pb2.Struct()
    for name, value in engine_options.items():
        try:
            options[name] = value
        except (ValueError, TypeError) as error:
            raise errors.InvalidArgument.at(f"{at}.{name!s}", str(error)) from None
    return options


def error_from_failure(failure: registry_pb2.Failure | inference_pb2.JobError) -> errors.ModelMoraError:
    """The named error of a version or a job that ended FAILED."""
    found = errors.class_named(failure.reason)
    if found is None:
        return errors.FailedPrecondition(f"{failure.reason}: {failure.message}")
    return found(failure.message or None)


def health_check(service: str) -> bytes:
    """A grpc.health.v1.HealthCheckRequest, written by hand: one string field is no reason for one more dependency."""
    if not service.isascii() or len(service) > 127:
        raise errors.InvalidArgument.at("service", "is a full service name, at most 127 characters")
    name = service.encode()
    return b"\x0a" + bytes([len(name)]) + name if name else b""


def is_serving(answer: bytes) -> bool:
    """Whether a grpc.health.v1.HealthCheckResponse says SERVING (field 1, value 1)."""
    return answer == b"\x08\x01"


def lock_fields(lock: str, name: str, yaml: str) -> dict[str, str]:
    """The request's field for a lock that is given by its name or by its text, which has more than one line."""
    return {yaml if "\n" in lock else name: lock}
