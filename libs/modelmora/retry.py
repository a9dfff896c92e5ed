"""When a failed call is worth another attempt: a pure decision, and the budget that keeps retries from piling up."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from modelmora.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    ModelLoading,
    ModelMoraError,
    ResourceExhausted,
    ShuttingDown,
    Unavailable,
    WorkerUnavailable,
)

_ALWAYS_PASSING = (DatabaseUnavailable, ShuttingDown, WorkerUnavailable)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long apart. `RetryPolicy(attempts=1)` never retries."""

    attempts: int = 5
    first_delay_seconds: float = 0.1
    max_delay_seconds: float = 5.0

    def delay_seconds(
        self, error: ModelMoraError, *, attempt: int, remaining_seconds: float, chance: float
    ) -> float | None:
        """How long to wait before the next attempt; None: give up and raise `error`.

        `attempt` counts from 1, `chance` is uniform in [0, 1). A delay that the server asked for is kept and stretched
        by up to a quarter; without one the delay doubles, with full jitter above its half. Nothing is retried that
        could not answer before the deadline.
        """
        if attempt >= self.attempts or not is_retryable(error):
            return None
        if error.retry_after_seconds:
            delay = error.retry_after_seconds * (1 + chance / 4)
        else:
            longest = min(self.first_delay_seconds * 2 ** (attempt - 1), self.max_delay_seconds)
            delay = longest * (0.5 + chance / 2)
        return delay if delay < remaining_seconds else None


def is_retryable(error: ModelMoraError) -> bool:
    """Whether the same call may succeed later without anybody changing anything.

    RESOURCE_EXHAUSTED counts only with a delay from the server (a message over the limit stays over it), UNAVAILABLE
    only with a delay, from the transport itself, or for a cause that is known to pass. Who did not want to wait for a
    model (ModelLoading) is not made to.
    """
    if isinstance(error, ModelLoading):
        return False
    if isinstance(error, ResourceExhausted):
        return error.retry_after_seconds is not None
    if isinstance(error, Unavailable):
        return error.retry_after_seconds is not None or type(error) is Unavailable or isinstance(error, _ALWAYS_PASSING)
    return False


def of_all_attempts(error: ModelMoraError, *, attempts: int, seconds: float, before: ModelMoraError) -> ModelMoraError:
    """The error of the last attempt as that of the call, which was given `seconds`. The server knows the last attempt
    only: of one that began late it says how little time that had, and nothing of what failed `before`."""
    if not isinstance(error, DeadlineExceeded):
        return error
    words = f"no answer within {seconds:.3f} s; attempt {attempts - 1} failed: {before.message} ({before.reason}); "
    made = type(error)(words + f"attempt {attempts}: {error.message}", fields=error.fields)
    made.metadata = error.metadata
    return made


class RetryBudget:
    """A token bucket shared by all calls of a client: a retry costs one, a success pays back a tenth.

    When most calls fail, retries stop after `capacity` and every caller learns at once (gRPC's retry throttling, gRFC
    A6). Thread-safe.
    """

    def __init__(self, capacity: float = 10.0, refill: float = 0.1) -> None:
        self._capacity = capacity
        self._refill = refill
        self._tokens = capacity
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Pays for one retry; False when the budget is used up."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._tokens = min(self._capacity, self._tokens + self._refill)
