"""What a call does when its model is not in memory: wait, fail at once, or be answered by another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from integration.inference_rig import Rig, assert_right, held, rig, version_of
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2
from modelmora_inference.dispatcher import Dispatcher

LOW, HIGH = common_pb2.PRIORITY_LOW, common_pb2.PRIORITY_HIGH
FAIL_FAST = inference_pb2.COLD_POLICY_FAIL_FAST
READY_IN = "modelmora-ready-in"


@pytest.fixture
async def two(data_dir: Path) -> AsyncIterator[Rig]:
    async with rig(data_dir, {"acme/echo": {"load_seconds": 0.3}, "acme/small": {}}) as made:
        made.lessor.estimate_seconds = 2.5
        yield made


async def ready_in(made: Rig, *texts: str, **fields: Any) -> tuple[inference_pb2.EmbedResponse, float | None]:
    """The answer and what its trailing metadata say."""
    call = made.stub.Embed(inference_pb2.EmbedRequest(model="acme/echo", texts=texts, **fields), timeout=20)
    answer = await call
    told = dict(await call.trailing_metadata()).get(READY_IN)
    return answer, None if told is None else float(told)


async def is_loaded(made: Rig) -> None:
    """Returns once the model is in memory."""
    version = version_of("acme/echo")
    await made.until(lambda _: version in made.lessor.loaded and made.lessor.loaded[version].alive)


async def ran_out(made: Rig) -> float:
    """Returns once a call that waited for the load has run out of time: when it had that at least, monotonic."""
    for seconds in (0.3, 1, 3, 10, 30):  # it waits for the load within a few milliseconds, if the machine lets it
        ends = time.monotonic() + seconds
        with pytest.raises(errors.DeadlineExceeded) as caught:
            await made.embed("x", within=seconds)
        if "for the model to be loaded" in caught.value.message:
            return ends
    raise AssertionError(caught.value.message)


async def test_a_call_that_would_not_wait_fails_at_once_and_the_load_goes_on(two: Rig) -> None:
    with pytest.raises(errors.ModelLoading) as caught:
        await two.embed("hasty", cold_policy=FAIL_FAST)
    assert caught.value.retry_after_seconds == 2.5
    assert two.lessor.wants[0].if_loaded
    await is_loaded(two)
    await two.right("hasty again", cold_policy=FAIL_FAST)
    assert two.lessor.launches == 1
    await two.right("and once more", cold_policy=FAIL_FAST)


async def test_a_call_that_would_not_wait_for_a_load_does_not_wait_for_another_try_of_one(two: Rig) -> None:
    await two.right("there", model="acme/small")
    two.lessor.refuse_with = [errors.LoadFailed("boom", retry_after_seconds=3.0)]
    with pytest.raises(errors.ModelLoading, match="boom") as caught:
        await two.embed("hasty", cold_policy=FAIL_FAST)
    assert (caught.value.retry_after_seconds or 0) >= 3
    answer = await two.right("in its place", fallback_model="acme/small")
    assert answer.model_version == version_of("acme/small")


async def test_a_call_that_would_not_wait_fails_while_another_waits_for_the_load(two: Rig) -> None:
    async with two.lessor.loads_wait(version_of("acme/echo")):
        patient = asyncio.create_task(two.right("patient"))
        await two.waiting(1)
        with pytest.raises(errors.ModelLoading) as caught:
            await two.embed("hasty", cold_policy=FAIL_FAST)
        assert 0 < (caught.value.retry_after_seconds or 0) <= 2.5
        assert not patient.done()
    await patient
    assert two.lessor.launches == 1


async def test_a_load_that_is_late_is_never_told_to_be_there_at_once(two: Rig) -> None:
    two.lessor.estimate_seconds = 0.0
    async with two.lessor.loads_wait(version_of("acme/echo")):
        patient = asyncio.create_task(two.right("patient"))
        await two.waiting(1)
        with pytest.raises(errors.ModelLoading) as first:
            await two.embed("hasty", cold_policy=FAIL_FAST)
        assert (first.value.retry_after_seconds or 0) >= 0.1
        # By now it is overdue here too.
        request = inference_pb2.EmbedRequest(model="acme/echo", texts=["x"], cold_policy=FAIL_FAST)
        call = two.stub.Embed(request, timeout=60)
        with pytest.raises(errors.ModelLoading) as second:
            await call
        assert (second.value.retry_after_seconds or 0) >= 1.0
        assert float(dict(await call.trailing_metadata())[READY_IN]) >= 1.0
    await patient


async def test_a_call_that_waits_is_not_failed_by_one_that_would_not(two: Rig) -> None:
    async with two.lessor.grants_wait():
        hasty = asyncio.create_task(two.embed("hasty", cold_policy=FAIL_FAST))
        await two.lessor.end_of(0)
        patient = asyncio.create_task(two.right("patient"))
        await two.waiting(2)
    with pytest.raises(errors.ModelLoading):
        await hasty
    await patient


async def test_a_call_that_met_a_cold_model_is_told_how_long_it_should_take(two: Rig) -> None:
    answer, seconds = await ready_in(two, "cold")
    assert_right(answer, ("cold",))
    assert seconds == 2.5
    answer, seconds = await ready_in(two, "warm")
    assert seconds is None


async def test_a_call_that_fails_fast_tells_it_too(two: Rig) -> None:
    request = inference_pb2.EmbedRequest(model="acme/echo", texts=["x"], cold_policy=FAIL_FAST)
    call = two.stub.Embed(request, timeout=20)
    with pytest.raises(errors.ModelLoading):
        await call
    assert dict(await call.trailing_metadata())[READY_IN] == "2.500"


async def test_the_fallback_answers_while_the_model_is_cold(two: Rig) -> None:
    await two.right("warm", model="acme/small")
    answer, seconds = await ready_in(two, "in its place", fallback_model="acme/small")
    assert_right(answer, ("in its place",))
    assert answer.model_version == version_of("acme/small")
    assert seconds == 2.5
    await is_loaded(two)
    answer, seconds = await ready_in(two, "itself", fallback_model="acme/small")
    assert (answer.model_version, seconds) == (version_of("acme/echo"), None)


async def test_a_call_in_the_place_of_another_model_brings_nothing_back_into_memory(two: Rig) -> None:
    await two.right("warm")
    lease = await two.lessor.lease(0)
    with two.held():
        busy = asyncio.create_task(two.right("busy"))
        await two.running()
        lease.ask_to_yield()
        await two.heard(lease)
        asked = asyncio.create_task(two.right("in its place", model="acme/small", fallback_model="acme/echo"))
        await two.waiting(1)
        evicted = two.lessor.loaded.pop(version_of("acme/echo"))
        wants = len(two.lessor.wants)
    await busy
    answer = await asked
    await evicted.control.close()
    assert answer.model_version == version_of("acme/small")
    real = [want for want in two.lessor.wants[wants:] if not want.load_nothing]
    assert {want.model_version for want in real} <= {version_of("acme/small")}
    assert version_of("acme/echo") not in two.lessor.loaded


async def test_who_goes_away_while_the_model_loads_loads_nothing(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {}}, idle_keep_seconds=3600) as made:
        async with made.lessor.loads_wait(version_of("acme/echo")):
            first = made.stub.Embed(inference_pb2.EmbedRequest(model="acme/echo", texts=["x"]), timeout=600)
            await made.waiting(1)
            second = made.stub.Embed(inference_pb2.EmbedRequest(model="acme/echo", texts=["y"]), timeout=600)
            await made.waiting(2)
            ended = await made.lessor.end_of(0)
            first.cancel()
            await made.waiting(1)
            assert not ended.is_set(), "somebody else waits"
            second.cancel()
            await asyncio.wait_for(ended.wait(), 60)
        await made.right("z")
        assert len(made.lessor.ends) == 2


async def test_who_goes_away_before_the_fallback_has_answered_loads_nothing(two: Rig) -> None:
    await two.right("warm", model="acme/small")
    with held(two.lessor.loaded[version_of("acme/small")].process.pid):
        fields = {"model": "acme/echo", "fallback_model": "acme/small", "request_id": "mine"}
        asked = two.stub.Embed(inference_pb2.EmbedRequest(texts=["x"], **fields), timeout=60)
        small = inference_pb2.GetQueueRequest(model="acme/small")
        async with asyncio.timeout(60):
            while not (await two.stub.GetQueue(small, timeout=30)).queues[0].in_flight:
                pass
            asked.cancel()
            while await two.knows("mine"):
                pass
    await two.right("still there", model="acme/small")
    assert [want.model_version for want in two.lessor.wants if not want.load_nothing] == [version_of("acme/small")]
    assert two.lessor.launches == 1


async def test_who_would_have_it_loaded_for_later_has_it_also_beside_one_who_names_a_fallback(two: Rig) -> None:
    await two.right("warm", model="acme/small")
    request = inference_pb2.EmbedRequest(model="acme/echo", texts=["x"], fallback_model="acme/small")
    with held(two.lessor.loaded[version_of("acme/small")].process.pid):
        async with two.lessor.grants_wait():
            goes_away = two.stub.Embed(request, timeout=60)
            await two.lessor.end_of(1)
            hasty = asyncio.create_task(two.embed("hasty", cold_policy=FAIL_FAST))
            await two.waiting(2)
        with pytest.raises(errors.ModelLoading):
            await hasty
        goes_away.cancel()
        await is_loaded(two)


async def test_a_model_is_loaded_for_later_also_where_nobody_has_patience_with_lifecycle(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {}, "acme/small": {}}, patience_seconds=0) as made:
        await made.right("warm", model="acme/small")
        await made.right("in its place", fallback_model="acme/small")
        await is_loaded(made)


async def test_what_is_loaded_for_later_is_urgent_for_nobody(two: Rig) -> None:
    await two.right("warm", model="acme/small")
    await two.right("in its place", fallback_model="acme/small", priority=HIGH)
    await is_loaded(two)
    later = [want for want in two.lessor.wants if want.if_loaded and not want.load_nothing]
    assert [want.priority for want in later] == [LOW]


async def test_a_model_is_loaded_for_later_also_when_its_fallback_fails(two: Rig) -> None:
    await two.right("warm", model="acme/small")
    with pytest.raises(errors.InvalidArgument):
        await two.embed("x", "y", dimensions=99_999, fallback_model="acme/small")
    await is_loaded(two)


async def test_who_ran_out_of_time_keeps_his_turn_for_a_while(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {}}, idle_keep_seconds=3600, asks_again_seconds=0.5) as made:
        made.lessor.reason = "waiting for memory"
        async with made.lessor.loads_wait(version_of("acme/echo")):
            out_of_time = await ran_out(made)
            *_, ended = made.lessor.ends
            assert not ended.is_set() or time.monotonic() - out_of_time >= 0.5
            await asyncio.wait_for(ended.wait(), 60)
            wants = len(made.lessor.ends)
        await made.right("z")
        assert len(made.lessor.ends) == wants + 1


async def test_who_goes_away_takes_nobody_elses_turn(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {}}, idle_keep_seconds=3600, asks_again_seconds=3600) as made:
        made.lessor.reason = "waiting for memory"
        async with made.lessor.loads_wait(version_of("acme/echo")):
            await ran_out(made)
            hasty = made.stub.Embed(
                inference_pb2.EmbedRequest(model="acme/echo", texts=["y"], request_id="mine"), timeout=60
            )
            await made.waiting(1)
            hasty.cancel()
            while await made.knows("mine"):
                pass
            await asyncio.sleep(0.5)
        await made.right("z")
        assert len(made.lessor.ends) == 1


async def test_a_want_is_of_use_for_longer_than_those_who_wait(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {}}, idle_keep_seconds=3600) as made:
        await made.right("x", timeout=600)
        left_seconds = made.lessor.wants[0].deadline.ToNanoseconds() / 1e9 - time.time()
        assert 3600 + 500 < left_seconds < 3600 + 600


async def test_a_load_that_has_begun_goes_on_for_who_asks_again(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {}}, idle_keep_seconds=3600, asks_again_seconds=0.01) as made:
        async with made.lessor.loads_wait(version_of("acme/echo")):
            await ran_out(made)
            await asyncio.sleep(1.0)
        await made.right("z")
        assert len(made.lessor.ends) == 1


async def test_who_waits_behind_less_urgent_calls_makes_them_urgent(two: Rig) -> None:
    async with two.lessor.loads_wait(version_of("acme/echo")):
        patient = asyncio.create_task(two.right("patient", priority=LOW, timeout=30))
        await two.waiting(1)
        urgent = asyncio.create_task(two.right("urgent", priority=HIGH, timeout=60))
        async with two.lessor.changed, asyncio.timeout(60):
            await two.lessor.changed.wait_for(lambda: two.lessor.urged)
    await asyncio.gather(patient, urgent)
    (want,), (again, *_) = two.lessor.wants, two.lessor.urged
    assert (want.priority, again.priority) == (LOW, HIGH)
    assert again.model_version == want.model_version
    assert again.deadline.ToNanoseconds() > want.deadline.ToNanoseconds()


async def test_who_was_urgent_and_cancels_leaves_the_others_as_urgent_as_they_are(two: Rig) -> None:
    async with two.lessor.loads_wait(version_of("acme/echo")):
        patient = asyncio.create_task(two.right("patient", priority=LOW, timeout=60))
        await two.waiting(1)
        request = inference_pb2.EmbedRequest(model="acme/echo", texts=["urgent"], priority=HIGH)
        urgent = two.stub.Embed(request, timeout=60)
        await said_again(two, 1)
        urgent.cancel()
        await said_again(two, 2)
    await patient
    assert [want.priority for want in two.lessor.urged] == [HIGH, LOW]


async def test_who_was_urgent_and_ran_out_of_time_keeps_his_turn_among_the_others(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {}}, asks_again_seconds=3600) as made:
        made.lessor.reason = "waiting for memory"
        async with made.lessor.loads_wait(version_of("acme/echo")):
            patient = asyncio.create_task(made.right("patient", priority=LOW, timeout=60))
            await made.waiting(1)
            for seconds in (0.5, 2, 8, 32):  # it is said within a quarter of a second, if the machine lets it
                with pytest.raises(errors.DeadlineExceeded):
                    await made.embed("urgent", priority=HIGH, within=seconds)
                if made.lessor.urged:
                    break
            await said_again(made, 1)
            longer = asyncio.create_task(made.right("longer", priority=LOW, timeout=120))
            await said_again(made, 2)
        await asyncio.gather(patient, longer)
        assert [want.priority for want in made.lessor.urged] == [HIGH, HIGH]


async def said_again(made: Rig, times: int) -> None:
    """Returns once wants were said again so many times."""
    async with made.lessor.changed, asyncio.timeout(60):
        await made.lessor.changed.wait_for(lambda: len(made.lessor.urged) >= times)


async def test_lifecycle_hears_of_work_that_is_done_before_it_can_be_told(
    two: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = Dispatcher._tell

    async def late(self: Dispatcher, lease: Any, stream: Any, now: float) -> None:
        while lease.worker.running:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await tell(self, lease, stream, now)

    monkeypatch.setattr(Dispatcher, "_tell", late)
    await two.right("short", priority=LOW)
    lease = await two.lessor.lease(0)
    async with two.lessor.changed, asyncio.timeout(20):
        await two.lessor.changed.wait_for(lambda: [bool(told) for told in lease.in_use] == [True, False])
    assert lease.priorities == [LOW]


async def test_lifecycle_hears_how_urgent_the_work_on_a_worker_is(two: Rig) -> None:
    await two.right("warm", priority=HIGH)
    lease = await two.lessor.lease(0)
    with two.held():
        low = asyncio.create_task(two.right("low", priority=LOW))
        async with two.lessor.changed, asyncio.timeout(60):
            await two.lessor.changed.wait_for(lambda: lease.priorities[-1:] == [LOW])
        high = asyncio.create_task(two.right("high", priority=HIGH))
        async with two.lessor.changed, asyncio.timeout(60):
            await two.lessor.changed.wait_for(lambda: lease.priorities[-1:] == [HIGH])
    await asyncio.gather(low, high)


async def test_a_fallback_that_was_let_go_but_is_in_memory_still_answers(data_dir: Path) -> None:
    models = {"acme/echo": {"load_seconds": 0.3}, "acme/small": {}}
    async with rig(data_dir, models, idle_keep_seconds=0.1) as made:
        await made.right("warm", model="acme/small")
        lease = await made.lessor.lease(0)
        await asyncio.wait_for(lease.closed.wait(), 60)
        answer = await made.right("in its place", fallback_model="acme/small")
        assert answer.model_version == version_of("acme/small")


async def test_a_cold_fallback_is_not_loaded_and_the_policy_decides(two: Rig) -> None:
    with pytest.raises(errors.ModelLoading):
        await two.embed("x", fallback_model="acme/small", cold_policy=FAIL_FAST)
    answer = await two.right("y", fallback_model="acme/small")
    assert answer.model_version == version_of("acme/echo")
    assert version_of("acme/small") not in two.lessor.loaded


@pytest.mark.parametrize("fallback", ["acme/small", "acme/echo"])
async def test_what_is_not_waited_for_is_loaded_for_later_also_when_its_fallback_is_cold(
    two: Rig, fallback: str
) -> None:
    with pytest.raises(errors.ModelLoading):
        await two.embed("x", fallback_model=fallback, cold_policy=FAIL_FAST)
    await is_loaded(two)


async def test_a_bad_fallback_is_refused_though_the_model_is_there(two: Rig) -> None:
    await two.right("warm")
    with pytest.raises(errors.ModelNotFound) as missing:
        await two.embed("x", fallback_model="acme/nothing")
    assert missing.value.metadata["name"] == "acme/nothing"
    assert missing.value.message.startswith("fallback_model: ")
    two.resolver.task_types[version_of("acme/small")] = common_pb2.TaskType.Value("TASK_TYPE_CLASSIFICATION")
    with pytest.raises(errors.TaskNotSupported) as other:
        await two.embed("x", fallback_model="acme/small")
    assert "fallback_model" in other.value.message
    with pytest.raises(errors.InvalidArgument) as long:
        await two.embed("x", fallback_model="x" * 500)
    assert [violation.field for violation in long.value.fields] == ["fallback_model"]
    with pytest.raises(errors.InvalidArgument) as unknown:
        await two.embed("x", cold_policy=7)
    assert [violation.field for violation in unknown.value.fields] == ["cold_policy"]
