"""Proto messages to frozen domain values and back: one generic pair for the control plane, driven by descriptors.

| proto | plain value |
|---|---|
| field without presence | its value, zero included |
| field with presence (`optional`, messages, oneofs) | the value, or None when unset |
| enum | the lower-case word after the prefix; None for `_UNSPECIFIED` without presence; the number when it is unknown |
| repeated, map | tuple, read-only mapping |
| Timestamp, Duration | aware datetime in UTC, timedelta; both to the microsecond, finer digits are cut off |
| Struct, ListValue, Value | read-only mapping, tuple, value; whole numbers become int |
| FieldMask | tuple of paths |

The JSON mapping of protobuf is not used: it drops explicit zeros, turns bytes into base64 and fails on durations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any, TypeVar, cast

from google.protobuf.message import Message
from modelmora.errors import InvalidArgument
from pydantic import BaseModel, ValidationError

from modelmora_runtime.status import invalid_argument

ValueT = TypeVar("ValueT", bound=BaseModel)
MessageT = TypeVar("MessageT", bound=Message)

Descriptor = Any
"""A field or enum descriptor: protobuf's C and Python classes share no base."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXACT_INTEGERS = 2**53
"""Doubles hold every whole number up to here; beyond, a whole number says nothing about intent."""


def read(message: Message, cls: type[ValueT], *, at: str = "") -> ValueT:
    """The value of `cls` that `message` holds. Raises InvalidArgument with field paths, which begin with `at`."""
    return parse(to_plain(message, at=at), cls, at=at)


def parse(plain: Mapping[str, Any], cls: type[ValueT], *, at: str = "") -> ValueT:
    """The value of `cls` made of plain fields. Raises InvalidArgument with field paths, which begin with `at`."""
    try:
        return cls.model_validate(plain)
    except ValidationError as error:
        raise invalid_argument(error, at) from None


def write(value: BaseModel | Mapping[str, Any], cls: type[MessageT]) -> MessageT:
    """A message of `cls` filled from the attributes (or keys) of `value` that carry its fields' names.

    None and what `value` does not have stay unset. Raises ValueError or TypeError for what does not fit the field: a
    fault of the program, not of a caller.
    """
    message = cls()
    _fill(message, value)
    return message


def to_plain(message: Message, *, at: str = "") -> Mapping[str, Any]:
    """The message as a read-only mapping with all its fields. Raises InvalidArgument for times that cannot be."""
    plain: dict[str, Any] = {}
    for field in _fields(message):
        value = getattr(message, field.name)
        path = _join(at, field.name)
        if is_map(field):
            inner = field.message_type.fields_by_name["value"]
            plain[field.name] = MappingProxyType(
                {key: _read_one(inner, value[key], _join(path, key)) for key in sorted(value)}
            )
        elif field.is_repeated:
            plain[field.name] = tuple(_read_one(field, item, f"{path}[{i}]") for i, item in enumerate(value))
        elif _is_absent(message, field, value):
            plain[field.name] = None
        else:
            plain[field.name] = _read_one(field, value, path)
    return MappingProxyType(plain)


def enum_word(enum: Descriptor, number: int) -> str | int:
    """`txt2embed` for TASK_TYPE_TXT2EMBED; the number itself when this side does not know it."""
    known = enum.values_by_number.get(number)
    return number if known is None else known.name.removeprefix(enum_prefix(enum)).lower()


def enum_number(enum: Descriptor, word: str | int) -> int:
    """The other way round. Raises ValueError for an unknown word."""
    if isinstance(word, int):
        return word
    name = enum_prefix(enum) + str(word.value if isinstance(word, Enum) else word).upper()
    known = enum.values_by_name.get(name)
    if known is None:
        raise ValueError(f"{enum.full_name} has no value {name}")
    return int(known.number)


def enum_prefix(enum: Descriptor) -> str:
    """`TASK_TYPE_`: what stands before UNSPECIFIED in the name of the zero value."""
    return str(enum.values_by_number[0].name).removesuffix("UNSPECIFIED")


def is_map(field: Descriptor) -> bool:
    return bool(field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry)


def _fields(message: Message) -> Iterable[Descriptor]:
    return message.DESCRIPTOR.fields


# Reading.


def _is_absent(message: Message, field: Descriptor, value: Any) -> bool:
    if field.has_presence:
        return not message.HasField(field.name)
    return field.enum_type is not None and value == 0


def _read_one(field: Descriptor, value: Any, path: str) -> Any:
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    if field.message_type is None:
        return value
    reader = _READERS.get(field.message_type.full_name)
    return to_plain(value, at=path) if reader is None else reader(value, path)


def _read_timestamp(value: Any, path: str) -> datetime:
    if not 0 <= value.nanos < 10**9:
        raise InvalidArgument.at(path, "nanos must be 0 to 999,999,999")
    try:
        return _EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    except OverflowError:
        raise InvalidArgument.at(path, "must lie in the years 1 to 9999") from None


def _read_duration(value: Any, path: str) -> timedelta:
    if not abs(value.nanos) < 10**9 or value.seconds * value.nanos < 0:
        raise InvalidArgument.at(path, "nanos must be below a second and have the sign of seconds")
    try:
        micros = abs(value.nanos) // 1000
        return timedelta(seconds=value.seconds, microseconds=micros if value.nanos >= 0 else -micros)
    except OverflowError:
        raise InvalidArgument.at(path, "is too long") from None


def _read_struct(value: Any, path: str) -> Mapping[str, Any]:
    return MappingProxyType({key: _read_value(value.fields[key], _join(path, key)) for key in sorted(value.fields)})


def _read_list(value: Any, path: str) -> tuple[Any, ...]:
    return tuple(_read_value(item, f"{path}[{i}]") for i, item in enumerate(value.values))


def _read_value(value: Any, path: str) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _read_struct(value.struct_value, path)
    if kind == "list_value":
        return _read_list(value.list_value, path)
    if kind == "number_value":
        number: float = value.number_value
        whole = number.is_integer() and abs(number) <= _EXACT_INTEGERS and str(number) != "-0.0"
        return int(number) if whole else number
    return None if kind in (None, "null_value") else getattr(value, kind)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "google.protobuf.Timestamp": _read_timestamp,
    "google.protobuf.Duration": _read_duration,
    "google.protobuf.Struct": _read_struct,
    "google.protobuf.ListValue": _read_list,
    "google.protobuf.Value": _read_value,
    "google.protobuf.FieldMask": lambda value, path: tuple(value.paths),
}


# Writing.


def _fill(message: Message, value: BaseModel | Mapping[str, Any]) -> None:
    for field in _fields(message):
        item = value.get(field.name) if isinstance(value, Mapping) else getattr(value, field.name, None)
        if item is None:
            continue
        if is_map(field):
            _fill_map(getattr(message, field.name), field.message_type.fields_by_name["value"], item)
        elif field.is_repeated:
            target = getattr(message, field.name)
            for element in item:
                if field.message_type is None:
                    target.append(_scalar(field, element))
                else:
                    _write_message(target.add(), element)
        elif field.message_type is not None:
            target = getattr(message, field.name)
            target.SetInParent()
            _write_message(target, item)
        else:
            setattr(message, field.name, _scalar(field, item))


def _fill_map(target: Any, field: Descriptor, items: Mapping[Any, Any]) -> None:
    for key, item in items.items():
        if field.message_type is None:
            target[key] = _scalar(field, item)
        else:
            _write_message(target[key], item)


def _scalar(field: Descriptor, value: Any) -> Any:
    if field.enum_type is not None:
        return enum_number(field.enum_type, value)
    return value.value if isinstance(value, Enum) else value


def _write_message(message: Any, value: Any) -> None:
    writer = _WRITERS.get(message.DESCRIPTOR.full_name)
    if writer is None:
        _fill(message, value)
    else:
        writer(message, value)


def _write_timestamp(message: Any, value: datetime) -> None:
    if value.tzinfo is None:
        raise ValueError("a datetime without a time zone has no place in a Timestamp")
    micros = (value - _EPOCH) // timedelta(microseconds=1)
    message.seconds, message.nanos = micros // 10**6, micros % 10**6 * 1000


def _write_duration(message: Any, value: timedelta) -> None:
    micros = value // timedelta(microseconds=1)
    sign = -1 if micros < 0 else 1
    message.seconds, message.nanos = sign * (abs(micros) // 10**6), sign * (abs(micros) % 10**6 * 1000)


def _write_struct(message: Any, value: Mapping[str, Any]) -> None:
    for key, item in value.items():
        _write_value(message.fields[key], item)


def _write_list(message: Any, value: Sequence[Any]) -> None:
    for item in value:
        _write_value(message.values.add(), item)


def _write_value(message: Any, value: Any) -> None:
    if value is None:
        message.null_value = 0
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int | float):
        message.number_value = float(value)
    elif isinstance(value, str):
        message.string_value = value
    elif isinstance(value, Mapping):
        message.struct_value.SetInParent()
        _write_struct(message.struct_value, value)
    elif isinstance(value, Sequence):
        message.list_value.SetInParent()
        _write_list(message.list_value, value)
    else:
        raise TypeError(f"a {type(value).__name__} has no place in a Struct")


_WRITERS: dict[str, Callable[[Any, Any], None]] = {
    "google.protobuf.Timestamp": _write_timestamp,
    "google.protobuf.Duration": _write_duration,
    "google.protobuf.Struct": _write_struct,
    "google.protobuf.ListValue": _write_list,
    "google.protobuf.Value": _write_value,
    "google.protobuf.FieldMask": lambda message, paths: message.paths.extend(paths),
}


def _join(at: str, *parts: str | int) -> str:
    path = at
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path = f"{path}.{part}" if path else str(part)
    return path


def plain_copy(value: Any) -> Any:
    """Read-only mappings and tuples as dict and list, for JSON columns and YAML."""
    if isinstance(value, Mapping):
        return {key: plain_copy(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain_copy(item) for item in value]
    return cast(Any, value.value) if isinstance(value, Enum) else value
