"""protomap on every message of every public package: random messages there and back, nothing lost, nothing made up."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import pytest
from google.protobuf import duration_pb2, field_mask_pb2, struct_pb2, timestamp_pb2
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora.common.v1 import common_pb2
from modelmora.errors import InvalidArgument
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.observability.v1 import observability_pb2
from modelmora.registry.v1 import registry_pb2
from modelmora_runtime.protomap import enum_number, enum_word, is_map, plain_copy, read, to_plain, write
from pydantic import BaseModel, ConfigDict, create_model

FILES = (common_pb2, registry_pb2, lifecycle_pb2, inference_pb2, observability_pb2)
CLASSES: dict[str, type[Message]] = {
    f"{file.DESCRIPTOR.package}.{name}": getattr(file, name)
    for file in FILES
    for name in file.DESCRIPTOR.message_types_by_name
}

# Doubles in a Struct cannot tell 1 from 1.0; everything else must come back bit by bit.
SCALARS = {
    "CPPTYPE_INT32": st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, -(2**31), 2**31 - 1]),
    "CPPTYPE_INT64": st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -(2**63), 2**63 - 1]),
    "CPPTYPE_UINT32": st.integers(0, 2**32 - 1),
    "CPPTYPE_UINT64": st.integers(0, 2**64 - 1) | st.just(2**64 - 1),
    "CPPTYPE_DOUBLE": st.floats() | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324]),
    "CPPTYPE_FLOAT": st.floats(width=32),
    "CPPTYPE_BOOL": st.booleans(),
    "CPPTYPE_STRING": st.text(max_size=8),
}
TYPES = {
    getattr(registry_pb2.Model.DESCRIPTOR.fields[0], name): strategy
    for name, strategy in SCALARS.items()
    if name != "CPPTYPE_STRING"
}
STRING = registry_pb2.Model.DESCRIPTOR.fields[0].CPPTYPE_STRING
TYPE_BYTES = registry_pb2.Model.DESCRIPTOR.fields[0].TYPE_BYTES

timestamps = st.builds(
    lambda micros: timestamp_pb2.Timestamp(seconds=micros // 10**6, nanos=micros % 10**6 * 1000),
    st.integers(-62_135_596_800 * 10**6, 253_402_300_799 * 10**6 + 999_999) | st.sampled_from([0, 1, -1]),
)
durations = st.builds(
    lambda micros: duration_pb2.Duration(
        seconds=int(math.copysign(abs(micros) // 10**6, micros)),
        nanos=int(math.copysign(abs(micros) % 10**6 * 1000, micros)),
    ),
    st.integers(-315_576_000_000 * 10**6, 315_576_000_000 * 10**6) | st.sampled_from([0, 1, -1, -999_999]),
)


def _value(kind: Any) -> struct_pb2.Value:
    value = struct_pb2.Value()
    if kind is None:
        value.null_value = 0  # type: ignore[assignment]
    elif isinstance(kind, bool):
        value.bool_value = kind
    elif isinstance(kind, float):
        value.number_value = kind
    elif isinstance(kind, str):
        value.string_value = kind
    elif isinstance(kind, dict):
        value.struct_value.CopyFrom(_struct(kind))
    else:
        value.list_value.SetInParent()
        value.list_value.values.extend(_value(item) for item in kind)
    return value


def _struct(fields: dict[str, Any]) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    for key, item in fields.items():
        struct.fields[key].CopyFrom(_value(item))
    return struct


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
structs = st.dictionaries(st.text(max_size=4), json_values, max_size=3).map(_struct)
SPECIAL = {
    "google.protobuf.Timestamp": timestamps,
    "google.protobuf.Duration": durations,
    "google.protobuf.Struct": structs,
    "google.protobuf.FieldMask": st.lists(st.text("abc_.", min_size=1, max_size=5), max_size=3).map(
        lambda paths: field_mask_pb2.FieldMask(paths=paths)
    ),
}


def _one(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        known = [value.number for value in field.enum_type.values]
        return st.sampled_from(known) | st.sampled_from([99, 2**31 - 1, -1])
    if field.message_type is not None:
        return messages(field.message_type)
    if field.cpp_type == STRING:
        return st.binary(max_size=8) if field.type == TYPE_BYTES else SCALARS["CPPTYPE_STRING"]
    return TYPES[field.cpp_type]


def messages(descriptor: Any) -> st.SearchStrategy[Any]:
    """Random messages with any of their fields set, to the bottom."""
    if descriptor.full_name in SPECIAL:
        return SPECIAL[descriptor.full_name]
    return st.deferred(lambda: _built(descriptor))


@st.composite
def _built(draw: Any, descriptor: Any) -> Message:
    message = CLASSES[descriptor.full_name]()
    for field in descriptor.fields:
        if not draw(st.booleans()):
            continue
        if is_map(field):
            inner = field.message_type.fields_by_name
            for key, item in draw(st.dictionaries(_one(inner["key"]), _one(inner["value"]), max_size=3)).items():
                target = getattr(message, field.name)
                if inner["value"].message_type is None:
                    target[key] = item
                else:
                    target[key].CopyFrom(item)
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(_one(field), max_size=3)))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(_one(field)))
        else:
            setattr(message, field.name, draw(_one(field)))
    return message


def same(one: Message, other: Message) -> bool:
    """Equal bytes; NaN is equal to itself."""
    return one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", sorted(CLASSES))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_random_message_comes_back_as_it_was(name: str, data: st.DataObject) -> None:
    cls = CLASSES[name]
    message = data.draw(messages(cls.DESCRIPTOR))
    assert same(write(to_plain(message), cls), message)


def tolerant(descriptor: Any) -> type[BaseModel]:
    """A frozen pydantic model with the fields of a message and no rules."""
    fields: dict[str, Any] = {field.name: (Any, None) for field in descriptor.fields}
    config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    return create_model(descriptor.name, __config__=config, **fields)


@settings(max_examples=60, deadline=None)
@given(message=messages(registry_pb2.ModelVersion.DESCRIPTOR))
def test_a_message_comes_back_through_a_frozen_value(message: registry_pb2.ModelVersion) -> None:
    value = read(message, tolerant(message.DESCRIPTOR))
    assert same(write(value, registry_pb2.ModelVersion), message)


def _leaves(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, MappingProxyType) else value if isinstance(value, tuple) else ():
        yield from _leaves(inner)


@settings(max_examples=60, deadline=None)
@given(message=messages(registry_pb2.ModelVersion.DESCRIPTOR))
def test_plain_values_can_be_changed_by_nobody(message: registry_pb2.ModelVersion) -> None:
    kinds = {type(leaf) for leaf in _leaves(to_plain(message))}
    assert kinds <= {MappingProxyType, tuple, str, int, float, bool, bytes, type(None), datetime, timedelta}


def test_presence_decides_not_the_value() -> None:
    unset, zero = registry_pb2.ModelLimits(), registry_pb2.ModelLimits(max_input_tokens=0)
    assert to_plain(unset)["max_input_tokens"] is None
    assert to_plain(zero)["max_input_tokens"] == 0
    assert write(to_plain(zero), registry_pb2.ModelLimits).HasField("max_input_tokens")
    assert not write(to_plain(unset), registry_pb2.ModelLimits).HasField("max_input_tokens")
    assert to_plain(registry_pb2.ImportProgress())["done_bytes"] == 0
    source = registry_pb2.ModelSource(empty=registry_pb2.EmptySource())
    assert dict(to_plain(source)) == {"local": None, "hub": None, "empty": {}, "url": None}
    assert write(to_plain(source), registry_pb2.ModelSource).WhichOneof("source") == "empty"


def test_enums_are_words_without_their_prefix() -> None:
    task = common_pb2.TaskType.DESCRIPTOR
    assert enum_word(task, common_pb2.TASK_TYPE_TXT2EMBED) == "txt2embed"
    assert enum_word(task, 99) == 99
    assert enum_number(task, "txt2embed") == common_pb2.TASK_TYPE_TXT2EMBED
    assert enum_number(task, 99) == 99
    assert to_plain(registry_pb2.Model())["task_type"] is None
    assert to_plain(registry_pb2.Model(task_type=99))["task_type"] == 99  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="TASK_TYPE_NONE"):
        enum_number(task, "none")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.DESCRIPTOR.package)
def test_every_enum_begins_with_its_prefix_and_unspecified(file: Any) -> None:
    messages_of = file.DESCRIPTOR.message_types_by_name.values()
    for enum in [*file.DESCRIPTOR.enum_types_by_name.values(), *(e for m in messages_of for e in m.enum_types)]:
        zero = enum.values_by_number[0].name
        assert zero.endswith("_UNSPECIFIED")
        assert all(value.name.startswith(zero.removesuffix("UNSPECIFIED")) for value in enum.values)


@pytest.mark.parametrize(
    ("moment", "seconds", "nanos"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0, 0),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1, 999_999_000),
        (datetime(1, 1, 1, tzinfo=UTC), -62_135_596_800, 0),
        (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), 253_402_300_799, 999_999_000),
    ],
)
def test_timestamps_are_aware_times(moment: datetime, seconds: int, nanos: int) -> None:
    message = registry_pb2.Model(create_time=timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos))
    assert to_plain(message)["create_time"] == moment
    assert write({"create_time": moment}, registry_pb2.Model) == message


def test_finer_digits_than_microseconds_are_cut_off() -> None:
    message = registry_pb2.Model(create_time=timestamp_pb2.Timestamp(nanos=1999))
    assert to_plain(message)["create_time"].microsecond == 1
    reply = registry_pb2.ResolveModelResponse(cache_ttl=duration_pb2.Duration(seconds=-1, nanos=-1999))
    assert to_plain(reply)["cache_ttl"] == timedelta(seconds=-1, microseconds=-1)


@pytest.mark.parametrize(
    "message",
    [
        registry_pb2.Model(create_time=timestamp_pb2.Timestamp(seconds=253_402_300_800)),
        registry_pb2.Model(create_time=timestamp_pb2.Timestamp(seconds=-(2**63))),
        registry_pb2.Model(create_time=timestamp_pb2.Timestamp(nanos=-1)),
        registry_pb2.Model(create_time=timestamp_pb2.Timestamp(nanos=10**9)),
    ],
)
def test_times_that_cannot_be_are_refused_with_their_path(message: registry_pb2.Model) -> None:
    with pytest.raises(InvalidArgument) as raised:
        to_plain(registry_pb2.CreateModelRequest(model=message), at="request")
    assert [violation.field for violation in raised.value.fields] == ["request.model.create_time"]


@pytest.mark.parametrize(("seconds", "nanos"), [(2**63 - 1, 0), (1, -1), (-1, 1), (0, 10**9)])
def test_durations_that_cannot_be_are_refused_with_their_path(seconds: int, nanos: int) -> None:
    reply = registry_pb2.ResolveModelResponse(cache_ttl=duration_pb2.Duration(seconds=seconds, nanos=nanos))
    with pytest.raises(InvalidArgument) as raised:
        to_plain(reply)
    assert [violation.field for violation in raised.value.fields] == ["cache_ttl"]


def test_a_time_without_zone_has_no_place_in_a_message() -> None:
    with pytest.raises(ValueError, match="time zone"):
        write({"create_time": datetime(2026, 1, 1)}, registry_pb2.Model)


def test_whole_numbers_in_options_become_integers() -> None:
    request = registry_pb2.ImportModelRequest()
    request.engine_options.update({"a": 8, "b": 0.5, "c": [1, {"d": None}], "e": True})
    request.engine_options["big"] = 1e300
    request.engine_options["minus"] = -0.0
    options = to_plain(request)["engine_options"]
    assert (options["a"], type(options["a"])) == (8, int)
    assert plain_copy(options) == {"a": 8, "b": 0.5, "big": 1e300, "c": [1, {"d": None}], "e": True, "minus": -0.0}
    assert type(options["big"]) is float
    assert math.copysign(1, options["minus"]) == -1


def test_violations_carry_the_path_of_the_request() -> None:
    class Inner(BaseModel):
        model_config = ConfigDict(extra="ignore")
        path: str
        size_bytes: int

    class Outer(BaseModel):
        model_config = ConfigDict(extra="ignore")
        files: tuple[Inner, ...]

    from typing import Annotated

    from pydantic import Field

    class Strict(Inner):
        size_bytes: Annotated[int, Field(gt=0)]

    class Files(BaseModel):
        model_config = ConfigDict(extra="ignore")
        files: tuple[Strict, ...]

    message = registry_pb2.Artifact(files=[{"path": "a", "size_bytes": 1}, {"path": "b", "size_bytes": 0}])  # type: ignore[list-item]
    assert len(read(message, Outer).files) == 2
    with pytest.raises(InvalidArgument) as raised:
        read(message, Files, at="version.artifact")
    assert [violation.field for violation in raised.value.fields] == ["version.artifact.files[1].size_bytes"]


def test_what_does_not_fit_a_field_is_the_programs_fault() -> None:
    with pytest.raises(TypeError):
        write({"engine_options": {"x": object()}}, registry_pb2.ModelVersion)
    with pytest.raises(ValueError, match="MODEL_VERSION_STATE_GONE"):
        write({"state": "gone"}, registry_pb2.ModelVersion)
