"""The rules of inference jobs: who may change what, and what nobody can."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.worker.v1 import worker_pb2
from modelmora_inference import job_tasks, jobs
from modelmora_inference.domain import VersionFacts
from modelmora_inference.jobs import FINAL, NEXT, Job, JobFailure, JobState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LASTS = timedelta(seconds=15)
SECOND = timedelta(seconds=1)
S = JobState


def job(inputs: int = 2, **fields: object) -> Job:
    made = Job(
        uid="u",
        tenant="t",
        subject="s",
        model="m",
        model_version="v",
        digest="d",
        task_type=1,
        options=b"",
        priority=10,
        inputs=inputs,
        stored_bytes=100,
        create_time=NOW,
        update_time=NOW,
        deadline=NOW + timedelta(hours=24),
        result_ttl=timedelta(hours=1),
        not_before=NOW,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def answered(one: Job, token: str, now: datetime, good: int = 1, bad: int = 0) -> Job:
    failures = [JobFailure("TextTooLong", f"number {n}") for n in range(bad)]
    return one.with_results(token, now, succeeded=good, failures=failures, input_tokens=3, more_bytes=10)


def test_a_job_is_claimed_by_one_at_a_time() -> None:
    mine = job().claimed("a", NOW, LASTS)
    assert (mine.state, mine.attempt, mine.start_time) == (S.QUEUED, 1, NOW)
    with pytest.raises(errors.ClaimLost):
        mine.claimed("b", NOW + LASTS - SECOND, LASTS)
    theirs = mine.claimed("b", NOW + LASTS, LASTS)
    assert (theirs.attempt, theirs.failures, theirs.start_time) == (2, 1, NOW)


def test_who_has_lost_the_claim_changes_nothing() -> None:
    theirs = job().claimed("a", NOW, LASTS).claimed("b", NOW + LASTS, LASTS)
    for change in (
        lambda: answered(theirs, "a", NOW),
        lambda: theirs.started("a", NOW),
        lambda: theirs.ended("a", NOW, errors.LoadFailed()),
        lambda: theirs.given_back("a", NOW, None),
    ):
        with pytest.raises(errors.ClaimLost):
            change()


def test_an_expired_claim_that_nobody_has_replaced_still_counts() -> None:
    late = answered(job().claimed("a", NOW, LASTS), "a", NOW + 10 * LASTS)
    assert (late.state, late.succeeded) == (S.RUNNING, 1)


def test_the_last_results_end_the_job() -> None:
    mine = answered(job(inputs=3).claimed("a", NOW, LASTS), "a", NOW + SECOND, good=2)
    assert (mine.state, mine.stored_bytes, mine.input_tokens) == (S.RUNNING, 110, 3)
    ended = answered(mine, "a", NOW + 2 * SECOND, good=0, bad=1)
    assert (ended.state, ended.claim, ended.error) == (S.SUCCEEDED, None, None)
    assert ended.end_time == NOW + 2 * SECOND
    assert ended.result_expire_time == NOW + 2 * SECOND + timedelta(hours=1)
    assert not ended.is_expired(NOW + timedelta(hours=1))
    assert ended.is_expired(NOW + 2 * SECOND + timedelta(hours=1))


def test_a_job_without_a_single_good_input_has_failed_with_the_first_error() -> None:
    mine = answered(job(inputs=3).claimed("a", NOW, LASTS), "a", NOW, good=0, bad=2)
    ended = answered(mine, "a", NOW, good=0, bad=1)
    assert (ended.state, ended.error) == (S.FAILED, JobFailure("TextTooLong", "number 0"))


def test_a_job_that_is_to_end_takes_no_more_results() -> None:
    ending = job().claimed("a", NOW, LASTS).cancelled(NOW + SECOND)
    assert ending.state is S.CANCELLING
    assert ending.cancelled(NOW + 2 * SECOND) is ending
    with pytest.raises(errors.ClaimLost):
        answered(ending, "a", NOW + SECOND)
    for ended in (
        ending.given_back("a", NOW + SECOND, None),
        ending.given_back("a", NOW + SECOND, errors.LoadFailed()),
        ending.ended("a", NOW + SECOND, errors.DeadlineExceeded()),
    ):
        assert (ended.state, ended.claim, ended.error) == (S.CANCELLED, None, None)
        assert ended.end_time == NOW + SECOND


def test_a_job_that_nobody_works_on_is_cancelled_at_once() -> None:
    assert job().cancelled(NOW).state is S.CANCELLED
    left = job().claimed("a", NOW, LASTS)
    assert left.cancelled(NOW + LASTS).state is S.CANCELLED


def test_to_cancel_again_changes_nothing_whether_the_job_has_ended_meanwhile_or_not() -> None:
    ending = job().claimed("a", NOW, LASTS).cancelled(NOW)
    assert ending.cancelled(NOW + SECOND) is ending
    ended = ending.given_back("a", NOW + SECOND, None)
    assert ended.state is S.CANCELLED
    assert ended.cancelled(NOW + 2 * SECOND) is ended
    failed = job().claimed("a", NOW, LASTS).ended("a", NOW, errors.NeverFits())
    succeeded = answered(job().claimed("a", NOW, LASTS), "a", NOW, good=2)
    for one, state in ((failed, S.FAILED), (succeeded, S.SUCCEEDED)):
        assert one.state is state
        with pytest.raises(errors.IllegalTransition):
            one.cancelled(NOW + SECOND)


def test_what_was_given_back_on_a_stop_is_free_at_once_and_costs_nothing() -> None:
    back = job().claimed("a", NOW, LASTS).given_back("a", NOW + SECOND, None)
    assert (back.state, back.claim, back.failures) == (S.PENDING, None, 0)
    assert back.not_before == NOW + SECOND
    again = back.claimed("b", NOW + SECOND, LASTS)
    assert (again.state, again.attempt, again.failures) == (S.QUEUED, 2, 0)


def test_a_model_that_does_not_load_is_tried_at_growing_distances_and_then_given_up() -> None:
    now, one, pauses = NOW, job(), []
    while (verdict := (one := one.claimed("a", now, LASTS)).verdict(now)) is None:
        one = one.given_back("a", now, errors.LoadFailed("no"))
        pauses.append((one.not_before - now).total_seconds())
        now = one.not_before
    assert isinstance(verdict, errors.JobGivenUp)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]
    assert one.ended("a", now, verdict).state is S.FAILED


def test_what_passes_by_itself_is_waited_for_until_the_deadline() -> None:
    now, one = NOW, job()
    for _ in range(100):
        one = one.claimed("a", now, LASTS).given_back("a", now, errors.NodeCordoned(retry_after_seconds=5))
        assert (one.not_before - now).total_seconds() == 5
        assert one.reason.startswith("NodeCordoned: ")
        now = one.not_before
    assert one.failures == 0
    assert one.claimed("a", now, LASTS).verdict(now) is None
    assert isinstance(one.claimed("a", one.deadline, LASTS).verdict(one.deadline), errors.DeadlineExceeded)


def test_answers_forgive_earlier_failures() -> None:
    one = job(inputs=3)
    for number in range(jobs.MAX_FAILURES):
        one = one.claimed(f"a{number}", NOW + number * LASTS, LASTS)
    assert one.failures == jobs.MAX_FAILURES - 1
    assert answered(one, f"a{jobs.MAX_FAILURES - 1}", NOW).failures == 0


@pytest.mark.parametrize(
    ("error", "of_input", "passes"),
    [
        (errors.TextTooLong(), True, False),
        (errors.RequestCrashedWorker(), True, False),
        (errors.InternalError(), True, False),
        (errors.NeverFits(), False, False),
        (errors.VersionDrifted(), False, False),
        (errors.VersionNotFound(), False, False),
        (errors.LoadFailed(), False, True),
        (errors.WorkerUnavailable(), False, True),
        (errors.NodeCordoned(), False, True),
        (errors.MemoryBusy(), False, True),
        (errors.ShuttingDown(), False, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_an_error_is_of_its_input_or_passes_or_ends_the_job(
    error: errors.ModelMoraError, of_input: bool, passes: bool
) -> None:
    assert (jobs.is_of_input(error), jobs.may_pass(error)) == (of_input, passes)


_weights = st.tuples(st.integers(1, 2 * jobs.CHUNK_BYTES), st.sampled_from([1, 1, 1, 5, 2048]))


@given(st.lists(_weights, max_size=300))
@settings(max_examples=50, deadline=None, database=None)
def test_chunks_hold_every_input_once_in_order_and_within_their_bounds(weights: list[tuple[int, int]]) -> None:
    sizes, entries = [size for size, _ in weights], [count for _, count in weights]
    ranges = list(jobs.chunks(sizes, entries))
    assert [at for start, end in ranges for at in range(start, end)] == list(range(len(sizes)))
    for start, end in ranges:
        assert end > start
        assert end - start == 1 or sum(entries[start:end]) <= jobs.CHUNK_ENTRIES
        assert end - start == 1 or sum(sizes[start:end]) <= jobs.CHUNK_BYTES


OPS = st.tuples(
    st.sampled_from(["claim", "publish", "publish", "give back", "fail", "end", "cancel", "start"]),
    st.integers(0, 2),
    st.integers(0, 20),
)


@given(st.lists(OPS, max_size=60))
@settings(max_examples=150, deadline=None, database=None)
def test_a_job_ends_once_and_only_its_last_claim_changes_it(ops: list[tuple[str, int, int]]) -> None:
    """Three runners that know nothing of each other, some of them late, and an owner who cancels."""
    one, now, count = job(inputs=4), NOW, 0
    tokens = ["none", "none", "none"]
    last = "none"
    for op, runner, seconds in ops:
        now += timedelta(seconds=seconds)
        before = one
        token = tokens[runner]
        try:
            if op == "claim":
                count += 1
                one = one.claimed(f"token {count}", now, LASTS)
                tokens[runner] = last = f"token {count}"
                assert before.claim is None or not before.claim.holds(now)
            elif op == "publish":
                one = answered(one, token, now)
            elif op == "give back":
                one = one.given_back(token, now, None)
            elif op == "fail":
                one = one.given_back(token, now, errors.LoadFailed())
            elif op == "end":
                one = one.ended(token, now, errors.NeverFits())
            elif op == "start":
                one = one.started(token, now)
            else:
                one = one.cancelled(now)
        except (errors.ClaimLost, errors.IllegalTransition):
            assert one is before
            continue
        if one is before and op == "cancel":
            assert before.state in (S.CANCELLING, S.CANCELLED)
            continue
        assert before.state not in FINAL
        assert one.state is before.state or one.state in NEXT[before.state]
        assert one is before or one.revision == before.revision + 1
        if op not in ("claim", "cancel"):
            assert token == last
            assert before.claim is not None
        assert (one.end_time is not None) == (one.state in FINAL)
        assert one.claim is None or one.state not in FINAL
        assert one.answered <= one.inputs
        if before.state is S.CANCELLING:
            assert one.answered == before.answered
            assert one.state in (S.CANCELLING, S.CANCELLED)


@pytest.mark.parametrize(
    ("kind", "at"), [("embed", "embed.prompt_name"), ("predict", "predict.parameters.prompt_name")]
)
def test_a_prompt_that_the_model_does_not_have_is_refused_where_it_is_known_which_it_has(kind: str, at: str) -> None:
    facts = VersionFacts("v", "d", common_pb2.TASK_TYPE_TXT2EMBED)
    description = worker_pb2.EngineDescription(prompts={"query": "query: "})

    def check(name: str, known: worker_pb2.EngineDescription | None = description) -> None:
        task = pb.EmbedTask(prompt_name=name) if kind == "embed" else pb.PredictTask()
        if isinstance(task, pb.PredictTask):
            task.parameters.update({"prompt_name": name})
        job_tasks.check_prompt(kind, task, facts, known)

    for name in ("", "query"):
        check(name)
    check("passage", None)
    with pytest.raises(errors.InvalidArgument) as caught:
        check("passage")
    assert [violation.field for violation in caught.value.fields] == [at]
    assert "there are query" in caught.value.message
