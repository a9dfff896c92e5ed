"""What becomes of calls when workers die, leases are taken back, loads fail, and the platform stops."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.inference_rig import Rig, rig, version_of
from modelmora import errors
from modelmora.inference.v1 import inference_pb2
from third_party import install


@pytest.fixture
async def echo(data_dir: Path) -> AsyncIterator[Rig]:
    async with rig(data_dir) as made:
        yield made


# Workers that die.


async def test_every_call_is_answered_though_the_worker_is_killed_under_load(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"delay_seconds": 0.02}}, max_batch_entries=8) as made:
        answered = 0

        async def client(number: int) -> None:
            nonlocal answered
            for call in range(8):
                await made.right(*(f"client {number} call {call} text {text}" for text in range(3)))
                answered += 1

        clients = [asyncio.create_task(client(number)) for number in range(16)]
        for kill in range(3):
            lease = await made.lessor.lease(kill)
            await made.running()
            before = answered
            await made.until(lambda queue, before=before: answered > before or not queue.in_flight)  # type: ignore[misc]
            made.worker.kill()
            await lease.closed.wait()
        await asyncio.gather(*clients)
        assert answered == 16 * 8
        assert made.lessor.launches == 4


async def test_a_text_that_kills_its_worker_is_condemned_and_its_neighbours_are_answered(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"crash_on_text": "poison"}}) as made:
        good = [asyncio.create_task(made.right(f"good {i}")) for i in range(4)]
        bad = asyncio.create_task(made.embed("good too", "poison"))
        more = [asyncio.create_task(made.right(f"more {i}")) for i in range(4)]
        with pytest.raises(errors.RequestCrashedWorker) as caught:
            await bad
        assert [violation.field for violation in caught.value.fields] == ["texts[1]"]
        assert "texts[1]: computed alone it ended its worker twice, the last time so: the test wants it; it is not" in (
            caught.value.message
        )
        await asyncio.gather(*good, *more)
        await made.right("and life goes on")
        assert made.lessor.launches <= 4


async def test_a_worker_that_was_ended_on_purpose_makes_nobody_suspect(data_dir: Path) -> None:
    # It is never done with what it runs, until it is killed.
    models: dict[str, dict[str, object]] = {"acme/echo": {"hang_after_batches": 0}}
    async with rig(data_dir, models) as made:
        call = asyncio.create_task(made.right("patient"))
        for number in range(4):
            await made.until(lambda _, number=number: len(made.lessor.leases) > number or call.done())  # type: ignore[misc]
            assert not call.done(), "leases that were taken back condemn no text"
            lease = made.lessor.leases[number]
            await made.running()
            lease.revoke()
            await lease.closed.wait()
        await made.lessor.lease(4)
        assert made.lessor.launches == 1
        await made.running()
        models["acme/echo"].clear()
        made.worker.kill()
        await call


async def test_a_worker_that_dies_with_lifecycle_makes_nobody_suspect(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"hang_after_batches": 0}}) as made:
        call = asyncio.create_task(made.embed("patient"))
        for number in range(3):
            lease = await made.lessor.lease(number)
            await made.running()
            lease.dies_too = True
            made.worker.kill()
            await lease.closed.wait()
        await made.lessor.lease(3)
        await made.running()
        assert not call.done(), "two deaths of a worker that no text explains condemn no text"
        made.worker.kill()
        call.cancel()


async def test_one_bad_text_fails_alone(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"fail_on_text": "bad", "max_input_tokens": 3}}) as made:
        calls = [
            made.right("fine"),
            made.embed("fine too", "a bad one"),
            made.right("also fine"),
            made.embed("short", "one two three four", truncate=False),
            made.embed("one two three four"),
        ]
        first, bad, third, too_long, cut = await asyncio.gather(*calls, return_exceptions=True)
        assert not isinstance(first, BaseException)
        assert not isinstance(third, BaseException)
        assert isinstance(bad, errors.InvalidArgument)
        assert [violation.field for violation in bad.fields] == ["texts[1]"]
        assert isinstance(too_long, errors.TextTooLong)
        assert [violation.field for violation in too_long.fields] == ["texts[1]"]
        assert not isinstance(cut, BaseException)
        assert [embedding.truncated for embedding in cut.embeddings] == [True]


ENGINE = """
from math import nan
from modelmora_worker.engines import base, echo

ROW = base.EngineRow('theirs', 'their_engine:Engine', frozenset({'txt2embed'}), needs_files=False, options={})

class Engine(echo.EchoEngine):
    def _vector(self, text):
        if text == 'breaks':
            raise ValueError('what is this?')
        return [nan] * 8 if text == 'nonsense' else super()._vector(text)
"""


async def test_a_text_of_which_an_engine_makes_nonsense_is_named(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "their_engine", ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    async with rig(data_dir) as made:
        made.lessor.engine = "theirs"
        for text, said in (
            ("nonsense", "texts[2]: the engine answered with nonsense: 8 numbers, of which not all are finite"),
            ("breaks", "texts[2]: ValueError: what is this?"),
        ):
            with pytest.raises(errors.InternalError) as caught:
                await made.embed("a", "b", text)
            assert caught.value.message == said
            assert [violation.field for violation in caught.value.fields] == ["texts[2]"]
        await made.right("a", "b")


# Leases.


async def test_asked_to_yield_it_starts_no_batch_finishes_and_comes_back_for_the_rest(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"delay_seconds": 0.3}}, max_batch_entries=1, max_batches=2) as made:
        await made.right("warm up")
        lease = await made.lessor.lease(0)
        async with made.lessor.grants_wait():
            with made.held():
                calls = [asyncio.create_task(made.right(f"text {i}")) for i in range(5)]
                await made.until(lambda queue: queue.in_flight == 2)
                await made.waiting(3)
                lease.ask_to_yield()
                await made.heard(lease)
            await asyncio.wait_for(lease.closed.wait(), 60)
            assert (await made.worker.seen()).entries == 3, "only what ran was finished"
        await asyncio.gather(*calls)
        assert len(made.lessor.leases) == 2


async def test_it_may_go_on_until_the_time_it_was_asked_to_yield_by(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {}}, max_batch_entries=1, max_batches=1) as made:
        await made.right("warm up")
        lease = await made.lessor.lease(0)
        with made.held():
            calls = [asyncio.create_task(made.right(f"text {i}")) for i in range(12)]
            await made.waiting(11)
            lease.ask_to_yield(in_seconds=3600)
            await made.heard(lease)
        await asyncio.gather(*calls)
        await asyncio.wait_for(lease.closed.wait(), 60)
        assert len(made.lessor.leases) == 1, "there was time for all of them"


async def test_it_goes_on_no_longer_than_until_the_time_it_was_asked_to_yield_by(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"delay_seconds": 0.1}}, max_batch_entries=1, max_batches=1) as made:
        await made.right("warm up")
        lease = await made.lessor.lease(0)
        async with made.lessor.grants_wait():
            with made.held():
                calls = [asyncio.create_task(made.right(f"text {i}")) for i in range(12)]
                await made.waiting(11)
                lease.ask_to_yield(in_seconds=0.3)
                await made.heard(lease)
            await asyncio.wait_for(lease.closed.wait(), 60)
            # The first, what ran, and one for each tenth of a second until then: none of them is shorter.
            assert 2 <= (await made.worker.seen()).entries <= 6
        await asyncio.gather(*calls)
        assert len(made.lessor.leases) == 2


async def test_an_idle_lease_asked_to_yield_is_closed_at_once(echo: Rig) -> None:
    await echo.right("one")
    lease = await echo.lessor.lease(0)
    lease.ask_to_yield(in_seconds=3600)
    await asyncio.wait_for(lease.closed.wait(), 60)
    await echo.right("two")


async def test_a_lease_that_was_taken_while_idle_is_asked_for_again(echo: Rig) -> None:
    for number in range(5):
        await echo.right(f"text {number}")
        lease = await echo.lessor.lease(number)
        lease.revoke()
        if number % 2:
            await lease.closed.wait()
    await echo.right("last")


async def test_lifecycle_hears_when_work_begins_and_when_the_lease_is_idle(echo: Rig) -> None:
    for i in range(20):
        await echo.right(f"text {i}")
    lease = await echo.lessor.lease(0)
    async with echo.lessor.changed, asyncio.timeout(20):
        await echo.lessor.changed.wait_for(lambda: lease.in_use and lease.in_use[-1] == 0)
    assert lease.in_use[0] > 0
    # Calls that follow one another are one stretch of work, unless something stands still between two of them.
    assert len(lease.in_use) < 20
    assert [count > 0 for count in lease.in_use[:2]] == [True, False]


async def test_a_lease_without_work_is_closed_after_a_while(data_dir: Path) -> None:
    async with rig(data_dir, idle_keep_seconds=0.3) as made:
        await made.right("one")
        lease = await made.lessor.lease(0)
        await asyncio.wait_for(lease.closed.wait(), 20)
        await made.right("two")
        assert len(made.lessor.leases) == 2


async def test_a_want_carries_the_most_urgent_priority_and_a_deadline(echo: Rig) -> None:
    await echo.right("one", priority=30)
    (want,) = echo.lessor.wants
    assert want.model_version == version_of("acme/echo")
    assert want.priority == 30
    assert want.deadline.ToNanoseconds() > time.time_ns()


@pytest.mark.parametrize(
    "error",
    [
        errors.NeverFits("needs 9, has 3"),
        errors.MemoryBusy(retry_after_seconds=2.0),
        errors.EngineUnavailable("no torch"),
        errors.InvalidModelFiles("no config"),
        errors.VersionNotFound("gone"),
        errors.EngineNotFound("no such engine"),
    ],
    ids=lambda error: error.reason,
)
async def test_a_lease_that_cannot_be_granted_answers_all_who_wait(echo: Rig, error: errors.ModelMoraError) -> None:
    echo.lessor.refuse_with = [error] * 5  # each is asked for alone, should they come one after another
    calls = [echo.embed(f"text {i}") for i in range(5)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        assert type(answer) is type(error)
        assert isinstance(answer, errors.ModelMoraError)
        assert answer.retry_after_seconds == error.retry_after_seconds
        assert (answer.message, answer.fields) == (error.message, ()), "no text is to blame"
    echo.lessor.refuse_with = []
    await echo.right("and now")


async def test_a_load_that_fails_once_is_tried_again(echo: Rig) -> None:
    echo.lessor.refuse_with = [errors.LoadFailed("a bad day"), errors.Unavailable()]
    await echo.right("patient")
    assert len(echo.lessor.wants) == 3


async def test_a_load_that_keeps_failing_answers_all_who_wait(echo: Rig) -> None:
    echo.lessor.refuse_with = [errors.LoadFailed("a bad week")] * 3
    with pytest.raises(errors.LoadFailed) as caught:
        await echo.embed("unlucky")
    assert caught.value.retry_after_seconds is not None
    assert len(echo.lessor.wants) == 3


async def test_a_deadline_that_passes_after_a_failed_load_says_why_it_failed(echo: Rig) -> None:
    echo.lessor.refuse_with = [errors.LoadFailed("a bad hour")]
    async with echo.lessor.grants_wait():
        patient = asyncio.create_task(echo.right("patient"))
        await echo.lessor.end_of(1)  # Who asks again has heard that it failed.
        with pytest.raises(errors.DeadlineExceeded, match="for the model to be loaded, which failed: a bad hour"):
            await echo.embed("hasty", within=0.3)
    await patient


async def test_a_deadline_that_passes_while_a_load_waits_says_what_for(echo: Rig) -> None:
    echo.lessor.reason = "waiting for memory: other programs use it"
    async with echo.lessor.loads_wait(version_of("acme/echo")):
        patient = asyncio.create_task(echo.right("patient"))
        await echo.waiting(1)
        with pytest.raises(errors.ModelLoading):  # what lifecycle says has been heard
            await echo.embed("hasty", cold_policy=inference_pb2.COLD_POLICY_FAIL_FAST)
        with pytest.raises(errors.DeadlineExceeded, match=r"loaded \(waiting for memory: other programs use it\)"):
            await echo.embed("late", within=0.3)
    await patient


async def test_a_deadline_that_passes_before_anything_is_begun_says_so(echo: Rig) -> None:
    await echo.right("warm")
    with pytest.raises(errors.DeadlineExceeded, match="within less than a millisecond; that was over before it began"):
        await echo.embed("none at all", within=1e-9)


async def test_a_deadline_that_passes_before_lifecycle_has_said_anything_blames_no_load(echo: Rig) -> None:
    await echo.queue()  # the registry has said which version this is
    async with echo.lessor.grants_wait():
        with pytest.raises(errors.DeadlineExceeded, match=r"^no answer within 0\.300 s; .* waited to hear"):
            await echo.embed("hasty", within=0.3)


async def test_a_deadline_that_passes_while_the_model_loads_says_so(data_dir: Path) -> None:
    async with rig(data_dir) as made:
        await made.queue()  # The registry has said which version this is: that costs nothing of the 0.3 s.
        async with made.lessor.loads_wait(version_of("acme/echo")):
            for seconds in (0.3, 1, 3, 10, 30):  # lifecycle says so within a few milliseconds, if the machine lets it
                with pytest.raises(errors.DeadlineExceeded) as caught:
                    await made.embed("hasty", within=seconds)
                if "to hear whether the model is in memory" not in caught.value.message:
                    break
            assert "for the model to be loaded; `modelmora explain acme/echo@1` says more" in caught.value.message
            ended = await made.lessor.end_of(0)
            with pytest.raises(TimeoutError):  # it looks four times in a second whether anybody waits
                await asyncio.wait_for(ended.wait(), 1)
        await made.lessor.lease(0)
        await made.right("patient")
        assert made.lessor.launches == 1, "the load went on for whoever came next"
        assert len(made.lessor.wants) == 1


# Versions and the registry.


async def test_a_version_that_is_gone_is_looked_up_anew(echo: Rig) -> None:
    echo.resolver.cache_ttl_seconds = 3600.0
    await echo.right("one")
    lookups = echo.resolver.lookups
    (await echo.lessor.lease(0)).revoke()
    await echo.until(lambda queue: not queue.replicas)
    echo.lessor.refuse_with = [errors.VersionNotFound("deleted")] * 2
    with pytest.raises(errors.VersionNotFound):
        await echo.embed("two")
    assert echo.resolver.lookups == lookups + 1
    echo.lessor.refuse_with = []
    await echo.right("three")


async def test_a_model_that_does_something_else_is_refused(echo: Rig) -> None:
    echo.resolver.task_type = 3
    with pytest.raises(errors.TaskNotSupported, match="not txt2embed; Classify is the call for it"):
        await echo.embed("one")
    assert echo.lessor.wants == []


async def test_a_loaded_model_answers_while_the_registry_is_away(echo: Rig) -> None:
    echo.resolver.cache_ttl_seconds = 0.01
    await echo.right("one")
    echo.resolver.fail_with = errors.DatabaseUnavailable()
    for i in range(20):
        await echo.right(f"text {i}")
    with pytest.raises(errors.DatabaseUnavailable):
        await echo.embed("x", model="acme/never-seen")


# Stopping.


async def test_calls_that_wait_longer_than_the_grace_hear_that_the_platform_stops(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"load_seconds": 20.0}}) as made:
        made.host.settings = made.host.settings.model_copy(update={"grace_seconds": 0.2})
        call = asyncio.create_task(made.embed("too late"))
        await made.waiting(1)
    with pytest.raises(errors.Unavailable):
        await call
