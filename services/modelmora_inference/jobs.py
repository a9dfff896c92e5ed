"""The rules of inference jobs: states, claims, what an error means for a job, how inputs are cut into chunks. Pure.

A job is written down before its caller hears of it, and every change of it is one transaction: the row is locked, one
of the methods below says what it becomes, and the new value is written. Three rules carry the promise that an accepted
job ends exactly once:

  1. Who works on a job has a claim: a token and an expiry. Every change by a worker names the token, and a token that
     is not the job's own changes nothing (`ClaimLost`). An expired claim counts until another one has replaced it.
  2. A chunk of inputs is taken out of the job in the transaction that adds its results, so it is answered once.
  3. Nothing leaves a final state. The last chunk and the end of the job are one transaction.

What is lost with a process is time only: somebody takes up the job when the claim has expired, and computes the chunks
that are still there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from modelmora.errors import (
    Aborted,
    Cancelled,
    ClaimLost,
    DeadlineExceeded,
    IllegalTransition,
    InternalError,
    InvalidArgument,
    JobGivenUp,
    LoadFailed,
    ModelMoraError,
    OutOfRange,
    RequestCrashedWorker,
    ResourceExhausted,
    Unavailable,
)

MAX_TIMEOUT = timedelta(days=7)
MAX_RESULT_TTL = timedelta(days=30)
DEFAULT_TIMEOUT = timedelta(hours=24)
DEFAULT_RESULT_TTL = timedelta(hours=24)
CHUNK_ENTRIES = 64
"""What so many entries in the queue come to is read, computed and written down together; a single input may be more."""
CHUNK_BYTES = 1024 * 1024
"""The same in bytes of text; a single input may be larger."""
MAX_FAILURES = 10
"""Claims in a row that may end without a chunk answered, by a crash or a failed load."""
_LONGEST_PAUSE_SECONDS = 60.0
_SHORT_PAUSE_SECONDS = 2.0


class JobState(StrEnum):
    """The words of the messages' JobState."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_S = JobState
FINAL = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED})
_WORKED_ON = frozenset({_S.QUEUED, _S.RUNNING})
NEXT = {
    _S.PENDING: frozenset({_S.QUEUED, _S.CANCELLED, _S.FAILED}),
    _S.QUEUED: frozenset({_S.PENDING, _S.RUNNING, _S.CANCELLING, _S.CANCELLED, _S.SUCCEEDED, _S.FAILED}),
    _S.RUNNING: frozenset({_S.PENDING, _S.QUEUED, _S.CANCELLING, _S.CANCELLED, _S.SUCCEEDED, _S.FAILED}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    _S.SUCCEEDED: frozenset[JobState](),
    _S.FAILED: frozenset[JobState](),
    _S.CANCELLED: frozenset[JobState](),
}
"""What may follow a state."""


@dataclass(frozen=True, slots=True)
class JobFailure:
    """A named error as it is kept."""

    reason: str
    message: str

    @classmethod
    def of(cls, error: ModelMoraError) -> JobFailure:
        return cls(error.reason, error.message)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job."""

    token: str
    expire_time: datetime

    def holds(self, now: datetime) -> bool:
        """Nobody else may take the job yet."""
        return now < self.expire_time


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it is kept; a change is a new value with `revision` one higher. Times are the database's."""

    uid: str
    tenant: str
    subject: str
    model: str
    model_version: str
    digest: str
    task_type: int
    """Number of the task type in the messages."""
    options: bytes
    """The task without its inputs, serialised."""
    priority: int
    inputs: int
    stored_bytes: int
    """Of inputs that wait and of results, as they are kept."""
    create_time: datetime
    update_time: datetime
    deadline: datetime
    result_ttl: timedelta
    not_before: datetime
    """Not taken up before."""
    task: str = "embed"
    """Which one of the request's tasks; see job_tasks.py."""
    request_id: str = ""
    state: JobState = JobState.PENDING
    attempt: int = 0
    failures: int = 0
    """Claims in a row that ended badly without a chunk answered."""
    claim: Claim | None = None
    succeeded: int = 0
    failed: int = 0
    input_tokens: int = 0
    compute_nanos: int = 0
    """Of the micro-batches that its calls were part of."""
    reason: str = ""
    error: JobFailure | None = None
    first_error: JobFailure | None = None
    """Of an input."""
    start_time: datetime | None = None
    end_time: datetime | None = None
    result_expire_time: datetime | None = None
    revision: int = 1

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    @property
    def answered(self) -> int:
        return self.succeeded + self.failed

    def is_expired(self, now: datetime) -> bool:
        """Its results are kept no longer."""
        return self.result_expire_time is not None and now >= self.result_expire_time

    def claimed(self, token: str, now: datetime, lasts: timedelta) -> Job:
        """Taken up by whoever made `token`. Raises ClaimLost while another claim holds, IllegalTransition at the end.

        A claim that is replaced ended badly: its holder would have given it back.
        """
        if self.is_final:
            raise IllegalTransition(f"the job has {self.state}", job=self.uid)
        if self.claim is not None and self.claim.holds(now):
            raise ClaimLost(job=self.uid)
        return replace(
            self._at(now),
            state=self.state if self.state is _S.CANCELLING else _S.QUEUED,
            claim=Claim(token, now + lasts),
            attempt=self.attempt + 1,
            failures=self.failures + (self.claim is not None),
            start_time=self.start_time or now,
            reason="",
        )

    def verdict(self, now: datetime) -> ModelMoraError | None:
        """Why it must end rather than be worked on: Cancelled, DeadlineExceeded, JobGivenUp; None: it goes on."""
        if self.state is _S.CANCELLING:
            return Cancelled()
        if now >= self.deadline:
            return DeadlineExceeded(f"{self.answered} of {self.inputs} inputs were answered before the job's deadline")
        if self.failures > MAX_FAILURES:
            return JobGivenUp(f"it was taken up {self.attempt} times, the last {self.failures} without an answer")
        return None

    def started(self, token: str, now: datetime) -> Job:
        """Some of it is on a worker. Raises ClaimLost."""
        self._check(token)
        return self if self.state is _S.RUNNING else replace(self._at(now), state=_S.RUNNING)

    def with_results(
        self,
        token: str,
        now: datetime,
        *,
        succeeded: int,
        failures: Sequence[JobFailure],
        input_tokens: int,
        more_bytes: int,
        compute_nanos: int = 0,
    ) -> Job:
        """With the results of one more chunk, and ended with the last. Raises ClaimLost.

        `more_bytes`: of the results, less those of the chunk's inputs.
        """
        self._check(token)
        job = replace(
            self._at(now),
            state=_S.RUNNING,
            failures=0,
            succeeded=self.succeeded + succeeded,
            failed=self.failed + len(failures),
            input_tokens=self.input_tokens + input_tokens,
            compute_nanos=self.compute_nanos + compute_nanos,
            stored_bytes=self.stored_bytes + more_bytes,
            first_error=self.first_error or (failures[0] if failures else None),
        )
        if job.answered < job.inputs:
            return job
        return job._ended(now, None if job.succeeded else job.first_error)

    def ended(self, token: str, now: datetime, error: ModelMoraError) -> Job:
        """FAILED, or CANCELLED when it was CANCELLING, without further results. Raises ClaimLost."""
        self._check(token, cancelling=True)
        if self.state is _S.CANCELLING:
            return self._cancelled(now)
        return self._at(now)._ended(now, JobFailure.of(error))

    def given_back(self, token: str, now: datetime, error: ModelMoraError | None) -> Job:
        """Free for the next one, at once when its holder stops (`error` is None), else after a pause; CANCELLED when it
        was CANCELLING. Raises ClaimLost."""
        self._check(token, cancelling=True)
        if self.state is _S.CANCELLING:
            return self._cancelled(now)
        failures = self.failures + (error is not None and is_failure(error))
        pause = pause_seconds(error, failures) if error is not None else 0.0
        return replace(
            self._at(now),
            state=_S.PENDING,
            claim=None,
            failures=failures,
            not_before=now + timedelta(seconds=pause),
            reason=f"{error.reason}: {error.message}" if error is not None else "",
        )

    def cancelled(self, now: datetime) -> Job:
        """Whoever owns it wants it no more: itself where that was said before (it may have ended since), CANCELLING
        while somebody works on it, else CANCELLED. Raises IllegalTransition when it has ended otherwise."""
        if self.state in (_S.CANCELLING, _S.CANCELLED):
            return self
        if self.is_final:
            raise IllegalTransition(f"the job has {self.state} already", job=self.uid, state=self.state.value)
        if self.claim is not None and self.claim.holds(now):
            return replace(self._at(now), state=_S.CANCELLING)
        return self._cancelled(now)

    def _cancelled(self, now: datetime) -> Job:
        return replace(self._at(now)._ended(now, None), state=_S.CANCELLED)

    def _ended(self, now: datetime, error: JobFailure | None) -> Job:
        return replace(
            self,
            state=_S.FAILED if error is not None else _S.SUCCEEDED,
            claim=None,
            error=error,
            reason="",
            end_time=now,
            result_expire_time=now + self.result_ttl,
        )

    def _at(self, now: datetime) -> Job:
        return replace(self, update_time=now, revision=self.revision + 1)

    def _check(self, token: str, *, cancelling: bool = False) -> None:
        wanted = _WORKED_ON | {_S.CANCELLING} if cancelling else _WORKED_ON
        if self.claim is None or self.claim.token != token or self.state not in wanted:
            raise ClaimLost(job=self.uid)


def is_of_input(error: ModelMoraError) -> bool:
    """Whether an error is the input's own fault, so that the job goes on without it."""
    return isinstance(error, InvalidArgument | OutOfRange | RequestCrashedWorker | InternalError)


def may_pass(error: ModelMoraError) -> bool:
    """Whether a job is worth another try later, in its time."""
    return isinstance(error, Unavailable | ResourceExhausted | Aborted | DeadlineExceeded | Cancelled)


def is_failure(error: ModelMoraError) -> bool:
    """Whether it counts against the job: a node in maintenance or a full memory may last for hours, a model that does
    not load will not load."""
    return isinstance(error, LoadFailed)


def pause_seconds(error: ModelMoraError, failures: int) -> float:
    """How long to leave a job alone after an error that may pass: as asked for, else longer each time it failed."""
    pause = float(2 ** min(failures, 10)) if failures else _SHORT_PAUSE_SECONDS
    return min(max(pause, error.retry_after_seconds or 0.0), _LONGEST_PAUSE_SECONDS)


def chunks(sizes_bytes: Sequence[int], entries: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Inputs of these sizes and numbers of entries as ranges [start, end), in order, each within CHUNK_ENTRIES and
    CHUNK_BYTES."""
    start = held = taken = 0
    for end, (size_bytes, count) in enumerate(zip(sizes_bytes, entries, strict=True)):
        if end > start and (taken + count > CHUNK_ENTRIES or held + size_bytes > CHUNK_BYTES):
            yield start, end
            start, held, taken = end, 0, 0
        held += size_bytes
        taken += count
    if start < len(sizes_bytes):
        yield start, len(sizes_bytes)
