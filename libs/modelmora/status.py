"""From a gRPC status back to the error that left the server.

The server packs a named error as `google.rpc.Status` with ErrorInfo (class name and ids), BadRequest (field paths) and
RetryInfo into the trailing metadata; this is the way back. Nothing here imports grpc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from modelmora.errors import (
    DeadlineExceeded,
    FieldViolation,
    MessageTooLarge,
    ModelMoraError,
    Unavailable,
    class_for,
)

if TYPE_CHECKING:
    import grpc

    from modelmora.inference.v1 import inference_pb2

DETAILS_KEY = "grpc-status-details-bin"
WRITE_FAILED = "Internal error from Core"
"""What grpc.aio says of a stream that the server ended while it was written to, whatever the server said."""
_REMOVED = "Stream removed ("


def error_from_rpc(error: grpc.RpcError) -> ModelMoraError:
    """The named error of a failed call."""
    trailing: Any = error.trailing_metadata() or ()  # pairs, whatever the stubs say
    details = next((value for key, value in trailing if key == DETAILS_KEY), None)
    return error_from_status(error.code().name, error.details() or "", details)


def error_from_call(error: inference_pb2.CallError) -> ModelMoraError:
    """The named error of one call in a stream."""
    retry_after = error.retry_after.ToNanoseconds() / 1e9 if error.HasField("retry_after") else None
    fields = [FieldViolation(path, description) for path, description in sorted(error.fields.items())]
    found = class_for(error.status, error.reason)(error.message or None, fields=fields, retry_after_seconds=retry_after)
    found.metadata = dict(error.metadata)
    return found


def error_from_status(code_name: str, message: str, details_bin: bytes | None) -> ModelMoraError:
    """The named error of a status: `code_name` as in grpc.StatusCode, `details_bin` a serialised google.rpc.Status."""
    reason, metadata, fields, retry_after = "", {}, [], None
    try:
        for detail in status_pb2.Status.FromString(details_bin or b"").details:
            info, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad):
                fields = [FieldViolation(violation.field, violation.description) for violation in bad.field_violations]
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    except DecodeError:
        pass  # somebody between us wrote something else there; code and message still hold
    if not reason and message.startswith(_REMOVED) and message.endswith(")"):
        message = message[len(_REMOVED) : -1]  # gRPC's core wraps its words so, now and then
    if not reason and (code_name, message) == ("DEADLINE_EXCEEDED", "Deadline Exceeded"):
        return DeadlineExceeded("the time given was over before the server answered")  # this side's own clock
    if not reason and code_name == "RESOURCE_EXHAUSTED" and "larger than max" in message:
        return MessageTooLarge(message)  # gRPC's own check, on either side
    if not reason and code_name == message == "CANCELLED":
        # So gRPC's core ends a call that it took in and nobody began, when its server breaks or is too busy. What is
        # withdrawn on this side has another message.
        return Unavailable("the server let go of the call before it began")
    error = class_for(code_name, reason)(message or None, fields=fields, retry_after_seconds=retry_after)
    error.metadata = metadata
    return error
