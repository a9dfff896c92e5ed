"""The errors of ModelMora: one base per gRPC status, one named class per fact a caller can act on.

A class name travels as `ErrorInfo.reason`, the docstring's first line is the default message, ids travel as metadata.
The client raises the class that left the server; a reason it does not know becomes a subclass of the status's base made
on the spot, so an older client still catches by status.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """What is wrong with one field. `field` is its path as in the request: `model_version.engine_options.delay`."""

    field: str
    description: str


class ModelMoraError(Exception):
    """Something went wrong inside ModelMora."""

    status: ClassVar[str] = "INTERNAL"
    """Name of the gRPC status code."""

    def __init__(
        self,
        message: str | None = None,
        *,
        fields: Sequence[FieldViolation] = (),
        retry_after_seconds: float | None = None,
        **metadata: object,
    ) -> None:
        self.message = message or (type(self).__doc__ or type(self).__name__).strip().splitlines()[0]
        self.fields = tuple(fields)
        self.retry_after_seconds = retry_after_seconds
        self.metadata: Mapping[str, str] = {key: str(value) for key, value in metadata.items()}
        super().__init__(self.message)

    @property
    def reason(self) -> str:
        return type(self).__name__

    def copy(self, *, retry_after_seconds: float | None = None) -> Self:
        """The same error for one more caller: one exception raised in two tasks gathers the tracebacks of both."""
        delay = self.retry_after_seconds if retry_after_seconds is None else retry_after_seconds
        made = type(self)(self.message, fields=self.fields, retry_after_seconds=delay)
        made.metadata = self.metadata
        return made

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.fields, self.retry_after_seconds, dict(self.metadata)))


def _rebuild(
    cls: type[ModelMoraError],
    message: str,
    fields: tuple[FieldViolation, ...],
    retry_after_seconds: float | None,
    metadata: dict[str, str],
) -> ModelMoraError:
    made = cls(message, fields=fields, retry_after_seconds=retry_after_seconds)
    made.metadata = metadata
    return made


# One base per status.


class InternalError(ModelMoraError):
    """Something went wrong inside ModelMora; the incident id finds it in the log."""

    status = "INTERNAL"


class InvalidArgument(ModelMoraError):
    """The request is not valid; the fields say where."""

    status = "INVALID_ARGUMENT"

    @classmethod
    def at(cls, field: str, description: str) -> InvalidArgument:
        """The error for one field."""
        return cls(f"{field}: {description}", fields=[FieldViolation(field, description)])


class NotFound(ModelMoraError):
    """There is no such thing."""

    status = "NOT_FOUND"


class AlreadyExists(ModelMoraError):
    """It exists already."""

    status = "ALREADY_EXISTS"


class FailedPrecondition(ModelMoraError):
    """The system is not in a state that allows this; change something first."""

    status = "FAILED_PRECONDITION"


class Aborted(ModelMoraError):
    """Someone else was faster; read again and retry."""

    status = "ABORTED"


class ResourceExhausted(ModelMoraError):
    """There is no room for this now; retry after the delay."""

    status = "RESOURCE_EXHAUSTED"


class Unavailable(ModelMoraError):
    """It is not available at the moment; retry after the delay."""

    status = "UNAVAILABLE"


class DeadlineExceeded(ModelMoraError):
    """The deadline passed before the answer was ready."""

    status = "DEADLINE_EXCEEDED"


class QueryTooSlow(DeadlineExceeded):
    """The database gave up looking for this; ask for less, the fields say where."""


class Cancelled(ModelMoraError):
    """The caller withdrew the request."""

    status = "CANCELLED"


class Unauthenticated(ModelMoraError):
    """No valid token came with the call."""

    status = "UNAUTHENTICATED"


class PermissionDenied(ModelMoraError):
    """The caller's role does not allow this call."""

    status = "PERMISSION_DENIED"


class Unimplemented(ModelMoraError):
    """This server does not offer that."""

    status = "UNIMPLEMENTED"


class OutOfRange(ModelMoraError):
    """A cursor or position lies outside what is there."""

    status = "OUT_OF_RANGE"


# Client.


class ClientClosed(FailedPrecondition):
    """This client was closed; make another one."""


# Registry.


class ModelNotFound(NotFound):
    """No model has this name."""


class VersionNotFound(NotFound):
    """The model has no version or alias of this name."""


class ModelExists(AlreadyExists):
    """A model of this name exists."""


class VersionExists(AlreadyExists):
    """A version of this name exists or existed; version strings are never used twice."""


class RequestIdReused(AlreadyExists):
    """This request_id was used with other content."""


class VersionIsCurrent(FailedPrecondition):
    """The version is current or has an alias; move the alias first, or use force."""


class VersionInUse(FailedPrecondition):
    """The version is in use; unload it first."""


class VersionNotReady(FailedPrecondition):
    """The version is not READY; watch it until it is."""


class VersionArchived(FailedPrecondition):
    """The version is archived; bring it back first."""


class ChecksumMismatch(FailedPrecondition):
    """A file's digest differs from the one expected."""


class SourceNotFound(NotFound):
    """The source of the model has no such folder, repository, revision or file."""


class SourceUnavailable(Unavailable):
    """The source of the model did not answer."""


class VersionDrifted(FailedPrecondition):
    """The version's files, libraries or answers differ from what was recorded; verify it to see where."""


class LockNotFound(NotFound):
    """No model lock has this name."""


class LockExists(AlreadyExists):
    """A model lock of this name exists."""


class LinkNotFound(NotFound):
    """The model has no external link of this name."""


class LinkExists(AlreadyExists):
    """The model has a link to this counterpart."""


class UnsafeFile(FailedPrecondition):
    """A file of the source could run code or leave its folder; it is refused."""


class StorageFull(ResourceExhausted):
    """There is not enough disk space; free some or move the data folder."""


class Conflict(Aborted):
    """The resource changed since it was read; read again and retry."""


class DatabaseUnavailable(Unavailable):
    """The database is not reachable at the moment."""


# Host and data folder.


class DataFolderInUse(FailedPrecondition):
    """Another process works on this data folder; stop it or name another folder in MODELMORA_DATA_DIR."""


class DataFolderUnusable(FailedPrecondition):
    """The data folder cannot be used as it is; the message says what to change."""


class DatabaseFailed(FailedPrecondition):
    """The database does not start; its last lines say why."""


# Lifecycle.


class ReplicaNotFound(NotFound):
    """No replica has this name or serves this version."""


class IllegalTransition(FailedPrecondition):
    """The replica's state does not allow this."""


class ModelLoading(Unavailable):
    """The model is not in memory yet and the caller did not want to wait; retry after the delay."""


class NodeCordoned(Unavailable):
    """The node is being emptied for maintenance and loads nothing; ask another node or uncordon it."""


class RequestNotFound(NotFound):
    """No call with this request id is waiting or running here; an answered one is not kept."""


class TuningNotFound(NotFound):
    """No tuning has this name; they are kept for a bounded time."""


class NeverFits(FailedPrecondition):
    """The model needs more memory than could ever be freed for it."""


class MemoryBusy(ResourceExhausted):
    """All memory is in use by models that may not be evicted yet."""


class LoadFailed(Unavailable):
    """The worker did not come up with this model."""


class OutOfMemory(FailedPrecondition):
    """The model took more memory than it may; declare what it needs (memory_bytes), or make room for it."""


class NonsenseFootprint(FailedPrecondition):
    """The engine tells figures of memory or time that cannot be; the load was ended."""


class EngineNotFound(InvalidArgument):
    """No engine has this name."""


class EngineUnavailable(FailedPrecondition):
    """The engine's libraries are not installed; install the extra that is named."""


class InvalidModelFiles(FailedPrecondition):
    """The engine cannot read the model's files."""


# Inference.


class TaskNotSupported(FailedPrecondition):
    """The model does not do this task."""


class ProfileNotSupported(FailedPrecondition):
    """The engine cannot compute this model with this profile."""


class TextTooLong(InvalidArgument):
    """A text has more tokens than the model takes and truncate is false."""


class StreamNotRead(Unavailable):
    """The client has not taken the answers in its stream for too long; open another and read it."""


class QueueFull(ResourceExhausted):
    """The queue of this model is full; retry after the delay."""


class QuotaExceeded(ResourceExhausted):
    """The caller's quota is used up."""


class WorkerUnavailable(Unavailable):
    """The model's worker went away before it answered."""


class RequestCrashedWorker(FailedPrecondition):
    """This request, computed alone, twice ended its worker: by a crash, or by hanging. It will not be tried again."""


class JobNotFound(NotFound):
    """There is no such job; ended ones are kept for some days."""


class ResultExpired(NotFound):
    """The job's results were kept until their time was over, and are gone."""


class ResultNotReady(FailedPrecondition):
    """The job has no result to give; watch it until it has succeeded, or ask for what is there with `partial`."""


class ClaimLost(Aborted):
    """The job belongs to somebody else by now, or takes no more results."""


class JobGivenUp(FailedPrecondition):
    """The job was taken up too often without getting any further."""


class ShuttingDown(Unavailable):
    """The server is stopping; retry elsewhere or later."""


class MessageTooLarge(ResourceExhausted):
    """A message is larger than the limit that is named."""


BASES: Mapping[str, type[ModelMoraError]] = {
    cls.status: cls
    for cls in (
        InternalError,
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Aborted,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        Unauthenticated,
        PermissionDenied,
        Unimplemented,
        OutOfRange,
    )
}
"""The base class of each status."""

_made: dict[tuple[str, str], type[ModelMoraError]] = {}


def class_for(status: str, reason: str) -> type[ModelMoraError]:
    """The class named `reason` if its status is `status`, else one made below that status's base."""
    base = BASES.get(status, InternalError)
    found = next((cls for cls in _below(base) if cls.__name__ == reason), None)
    if found is not None:
        return found
    if not reason.isidentifier() or len(reason) > 100:
        return base
    if (status, reason) not in _made:
        if len(_made) > 1000:
            return base
        _made[status, reason] = type(reason, (base,), {"__doc__": base.__doc__, "__module__": __name__})
    return _made[status, reason]


def class_named(reason: str) -> type[ModelMoraError] | None:
    """The class of this name, whatever its status; None when nobody has defined one."""
    made = set(_made.values())
    return next((cls for cls in _below(ModelMoraError) if cls.__name__ == reason and cls not in made), None)


def _below(base: type[ModelMoraError]) -> Iterator[type[ModelMoraError]]:
    yield base
    for cls in base.__subclasses__():
        yield from _below(cls)
