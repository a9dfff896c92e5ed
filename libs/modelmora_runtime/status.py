"""Named errors on the server's side: to a gRPC status with google.rpc details, and from pydantic's findings.

The way back is `modelmora.status`. gRPC clients refuse a header block above 8 KiB, so messages and details are cut to
what always arrives; the whole text stays in the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from modelmora.errors import FieldViolation, InvalidArgument, ModelMoraError
from modelmora.status import DETAILS_KEY

if TYPE_CHECKING:
    from pydantic import ValidationError

DOMAIN = "modelmora"
_MESSAGE_BYTES = 1000
_DETAILS_BYTES = 3000


def code(error: ModelMoraError) -> grpc.StatusCode:
    return grpc.StatusCode[error.status]


def message(error: ModelMoraError) -> str:
    """The error's message, cut to a length that fits a header."""
    return _cut(error.message, _MESSAGE_BYTES)


def details(error: ModelMoraError) -> bytes:
    """The serialised google.rpc.Status: ErrorInfo, BadRequest, RetryInfo, and RequestInfo for an incident.

    What is too long is cut: each value first, then values and fields from the end.
    """
    room = _DETAILS_BYTES
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        value = _cut(value, 500)
        room -= len(key) + len(value.encode()) + 8
        if room < 0:
            break
        info.metadata[key] = value
    packed: list[Any] = [info]
    if error.fields:
        bad = error_details_pb2.BadRequest()
        for violation in error.fields:
            field, description = _cut(violation.field, 200), _cut(violation.description, 300)
            room -= len(field.encode()) + len(description.encode()) + 8
            if room < 0 and bad.field_violations:
                break
            bad.field_violations.add(field=field, description=description)
        packed.append(bad)
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(max(0.0, error.retry_after_seconds) * 1e9))
        packed.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if "incident" in error.metadata:
        packed.append(error_details_pb2.RequestInfo(request_id=error.metadata["incident"]))
    status = status_pb2.Status(code=code(error).value[0], message=message(error))
    for detail in packed:
        wrapped = any_pb2.Any()
        wrapped.Pack(detail)
        status.details.append(wrapped)
    serialised: bytes = status.SerializeToString()
    return serialised


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: ModelMoraError) -> NoReturn:
    """Ends the call with `error`."""
    # abort() puts its own trailing metadata over what a servicer set before, so that is handed on.
    trailing = (*(context.trailing_metadata() or ()), (DETAILS_KEY, details(error)))
    await context.abort(code(error), message(error), trailing)
    raise AssertionError("abort returned")


def violations(error: ValidationError, prefix: str = "") -> list[FieldViolation]:
    """What pydantic found, with the paths of the request: `version.files[2].sha256`. Input values are left out."""
    return [
        FieldViolation(field_path([prefix] if prefix else [], finding["loc"]), _description(finding))
        for finding in error.errors(include_url=False, include_input=False)
    ]


def invalid_argument(error: ValidationError, prefix: str = "") -> InvalidArgument:
    """The named error for what pydantic found below the request field `prefix`."""
    found = violations(error, prefix)
    return InvalidArgument("; ".join(f"{each.field}: {each.description}" for each in found), fields=found)


def field_path(prefix: Iterable[str], location: Iterable[str | int]) -> str:
    path = ".".join(prefix)
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _description(finding: Any) -> str:
    if finding["type"] == "extra_forbidden":
        return "there is no such setting or field"
    text = str(finding["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return text[:1].lower() + text[1:] if text.startswith(("Input ", "Field ", "String ", "Value ")) else text


def _cut(text: str, limit_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode("utf-8")
    return encoded[: limit_bytes - 3].decode("utf-8", "ignore") + "…"
