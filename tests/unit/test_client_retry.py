"""Which failures a client repeats, how long it waits, and when it stops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora import errors
from modelmora.retry import RetryBudget, RetryPolicy, is_retryable


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.Unavailable("connection refused"), True),
        (errors.DatabaseUnavailable(), True),
        (errors.ShuttingDown(), True),
        (errors.WorkerUnavailable(), True),
        (errors.LoadFailed(retry_after_seconds=1.0), True),
        (errors.ModelLoading(retry_after_seconds=1.0), False),  # who would not wait is not made to
        (errors.LoadFailed(), False),  # the same load would fail again
        (errors.QueueFull(retry_after_seconds=0.2), True),
        (errors.MemoryBusy(retry_after_seconds=0.0), True),
        (errors.MessageTooLarge(), False),
        (errors.InvalidArgument(), False),
        (errors.NotFound(), False),
        (errors.Conflict(), False),
        (errors.NeverFits(), False),
        (errors.DeadlineExceeded(), False),
        (errors.InternalError(), False),
        (errors.Unauthenticated(), False),
    ],
)
def test_only_what_may_pass_by_itself_is_retried(error: errors.ModelMoraError, expected: bool) -> None:
    assert is_retryable(error) is expected


@given(
    attempt=st.integers(1, 40),
    remaining=st.floats(0, 1000),
    chance=st.floats(0, 1, exclude_max=True),
    asked=st.none() | st.floats(0.001, 100),
)
def test_a_delay_keeps_the_bounds(attempt: int, remaining: float, chance: float, asked: float | None) -> None:
    policy = RetryPolicy(attempts=41, first_delay_seconds=0.1, max_delay_seconds=5.0)
    error = errors.Unavailable(retry_after_seconds=asked)
    delay = policy.delay_seconds(error, attempt=attempt, remaining_seconds=remaining, chance=chance)
    if delay is None:
        return
    assert delay < remaining, "nothing is retried past the deadline"
    if asked is not None:
        assert asked <= delay <= asked * 1.25, "the server's delay is kept"
    else:
        assert 0.05 <= delay <= 5.0


def test_attempts_end() -> None:
    policy = RetryPolicy(attempts=3)
    delays = [
        policy.delay_seconds(errors.Unavailable(), attempt=n, remaining_seconds=60, chance=0.99) for n in (1, 2, 3)
    ]
    assert delays[0] is not None
    assert delays[1] is not None
    assert delays[1] > delays[0]
    assert delays[2] is None


def test_the_budget_stops_retries_and_comes_back_with_successes() -> None:
    budget = RetryBudget(capacity=3, refill=0.5)
    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]
    budget.succeeded()
    assert not budget.take()
    budget.succeeded()
    assert budget.take()


def test_the_budget_never_exceeds_its_capacity() -> None:
    budget = RetryBudget(capacity=2, refill=1)
    for _ in range(100):
        budget.succeeded()
    assert [budget.take() for _ in range(3)] == [True, True, False]


def test_what_a_client_takes_is_exported_beside_it() -> None:
    import modelmora

    assert {name: getattr(modelmora, name).__name__ for name in modelmora.__all__ if name != "__version__"} == {
        name: name for name in ("AsyncClient", "Client", "ModelMoraError", "RetryPolicy")
    }
