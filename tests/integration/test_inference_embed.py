"""Embed from call to answer: order, batches, priorities, deadlines, cancellation, bounds."""

from __future__ import annotations

import asyncio
import urllib.request
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from integration.inference_rig import DIGEST, Rig, assert_right, rig, version_of
from integration.stepwise import OPTIONS, Steps
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2
from modelmora_inference.deadlines import Lateness
from modelmora_inference.dispatcher import Call, Dispatcher, Dispatchers
from modelmora_worker.engines.echo import vector

LOW, HIGH = common_pb2.PRIORITY_LOW, common_pb2.PRIORITY_HIGH


@pytest.fixture
async def echo(data_dir: Path) -> AsyncIterator[Rig]:
    async with rig(data_dir) as made:
        yield made


@pytest.fixture
async def slow(data_dir: Path) -> AsyncIterator[Rig]:
    """One text a batch, one batch on the worker; each takes a moment."""
    async with rig(data_dir, {"acme/echo": {"delay_seconds": 0.1}}, max_batch_entries=1, max_batches=1) as made:
        yield made


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(tmp_path, monkeypatch)


async def test_each_text_gets_its_own_vector_in_order(echo: Rig) -> None:
    texts = [f"text number {i}" for i in range(100)]
    answer = await echo.right(*texts)
    assert answer.model_version == version_of("acme/echo")
    assert answer.digest == DIGEST
    assert answer.engine_profile.backend == "echo"
    assert answer.usage.input_tokens == 300
    assert [embedding.input_tokens for embedding in answer.embeddings] == [3] * 100
    assert answer.timings.total.ToNanoseconds() >= answer.timings.compute.ToNanoseconds() > 0
    assert not answer.vectors.data


async def test_bytes_are_the_same_vectors_as_floats(echo: Rig) -> None:
    texts = ["one", "two", "three"]
    answer = await echo.embed(*texts, encoding=inference_pb2.VECTOR_ENCODING_BYTES)
    assert list(answer.vectors.shape) == [3, 8]
    assert answer.vectors.data_type == common_pb2.DATA_TYPE_FP32
    flat = array("f", answer.vectors.data)
    expected = [value for text in texts for value in vector(0, text, 8)]
    assert list(flat) == pytest.approx(expected, abs=1e-6)
    assert [(e.input_tokens, len(e.values)) for e in answer.embeddings] == [(1, 0)] * 3


async def test_a_burst_is_judged_by_our_own_bounds_and_all_of_it_answered(echo: Rig) -> None:
    # gRPC's own limit begins to cancel at 1,000 calls that nobody has looked at yet.
    answers = await asyncio.gather(*(echo.embed(f"text {i}", timeout=150) for i in range(3000)))
    assert len(answers) == 3000


async def test_dimensions_are_cut_to_what_was_asked(echo: Rig) -> None:
    answer = await echo.embed("a text", dimensions=3)
    assert len(answer.embeddings[0].values) == 3
    with pytest.raises(errors.InvalidArgument) as caught:
        await echo.embed("a text", dimensions=9)
    assert [violation.field for violation in caught.value.fields] == ["dimensions"]


async def test_calls_of_many_clients_share_batches_and_the_metric_agrees_with_the_worker(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"delay_seconds": 0.03}}) as made:
        async with made.lessor.loads_wait(version_of("acme/echo")):  # until all are there, however slow the machine is
            texts = [f"client {client} call {call}" for client in range(32) for call in range(4)]
            calls = [asyncio.create_task(made.right(text)) for text in texts]
            await made.waiting(128)
        await asyncio.gather(*calls)
        seen = await made.worker.seen()
        assert seen.entries == 128
        assert seen.entries / seen.batches >= 4
        text = await asyncio.to_thread(_metrics, made.host.metrics_port)
        assert _value(text, "modelmora_inference_batches_total") == seen.batches
        assert _value(text, "modelmora_inference_batch_entries_sum") == seen.entries
        assert _value(text, "modelmora_inference_batch_entries_count") == seen.batches
        assert _value(text, 'modelmora_inference_requests_total{priority="medium",status="OK"}') == 128
        assert _value(text, "modelmora_inference_input_tokens_total") == 128 * 4


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        return page.read().decode()  # type: ignore[no-any-return]


def _value(page: str, name: str) -> float:
    (line,) = [line for line in page.splitlines() if line.startswith(name + " ")]
    return float(line.rsplit(" ", 1)[1])


async def test_the_texts_of_one_call_may_go_to_several_batches(data_dir: Path) -> None:
    async with rig(data_dir, max_batch_entries=7) as made:
        await made.right(*(f"text {i}" for i in range(50)))
        seen = await made.worker.seen()
        assert (seen.entries, seen.batches) == (50, 8)


async def test_the_more_urgent_call_is_answered_first(slow: Rig) -> None:
    await slow.embed("warm up")
    order: list[str] = []

    async def call(name: str, priority: common_pb2.Priority) -> None:
        await slow.right(name, priority=priority)
        order.append(name)

    with slow.held():
        running = asyncio.create_task(call("running", LOW))
        await slow.running()
        low = [asyncio.create_task(call(f"low {i}", LOW)) for i in range(3)]
        await slow.waiting(3)
        high = asyncio.create_task(call("high", HIGH))
        await slow.until(lambda queue: queue.levels[0].entries + queue.levels[2].entries == 4 or queue.in_flight > 1)
    await asyncio.gather(running, high, *low)
    order.remove("running")  # HIGH overtakes it too when the worker has not begun with it
    assert order == ["high", "low 0", "low 1", "low 2"]


async def test_an_expired_call_is_answered_before_its_client_gives_up_and_costs_nothing(slow: Rig) -> None:
    await slow.embed("warm up")
    with slow.held():
        running = asyncio.create_task(slow.right("running"))
        await slow.running()
        for _ in range(12):  # the service is some hundredths of a second ahead of the client, if the machine lets it
            with pytest.raises(errors.DeadlineExceeded) as caught:
                await slow.embed("late", timeout=0.5)
            # The service's words: a client whose own clock ran out never hears them.
            if "1 of 1 texts still waited" in caught.value.message:
                break
        else:
            pytest.fail(f"the client never heard why: {caught.value.message}")
        assert "queue_seconds" in caught.value.metadata
    await running
    assert (await slow.queue()).in_flight == 0
    assert (await slow.worker.seen()).entries == 2


async def test_a_call_is_given_less_time_while_timers_are_late(echo: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    submit = Dispatchers.submit

    def note(self: Dispatchers, version: str, call: Call, inputs: Any) -> Dispatcher:
        given.append(call.deadline - call.arrival)
        return submit(self, version, call, inputs)

    monkeypatch.setattr(Dispatchers, "submit", note)
    monkeypatch.setattr(Lateness, "seconds", lambda self, now: 1.0)
    for _ in range(5):  # one of them at least arrives with nearly all of its time
        await echo.right("a text", timeout=20)
    assert max(given) < 19.8


async def test_the_timeout_of_a_request_counts_when_it_is_earlier(slow: Rig) -> None:
    await slow.embed("warm up")
    with slow.held():
        running = asyncio.create_task(slow.right("running"))
        await slow.running()
        with pytest.raises(errors.DeadlineExceeded):
            await slow.embed("late", within=0.1)
    await running


async def test_a_call_that_expires_on_the_worker_is_answered_too(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"hang_after_batches": 1}}) as made:
        await made.right("the first works")
        for seconds in (1, 3, 10, 30):  # it is on the worker in a few milliseconds, if the machine lets it
            with pytest.raises(errors.DeadlineExceeded) as caught:
                await made.embed("the second hangs", within=seconds)
            if "still waited" not in caught.value.message:
                break
        assert "on the worker" in caught.value.message


async def test_a_cancelled_call_leaves_the_queue_at_once(slow: Rig) -> None:
    await slow.embed("warm up")
    with slow.held():
        running = asyncio.create_task(slow.right("running"))
        await slow.running()
        waiting = asyncio.create_task(slow.embed(*(f"text {i}" for i in range(5))))
        await slow.waiting(5)
        waiting.cancel()
        await slow.waiting(0)
    await running
    assert (await slow.worker.seen()).entries == 2


async def test_a_batch_that_nobody_wants_any_more_is_taken_back_from_the_worker(data_dir: Path, steps: Steps) -> None:
    async with rig(data_dir, {"acme/echo": OPTIONS}) as made:
        made.lessor.engine = "theirs"
        steps.allow(3)
        await made.embed("warm up")
        call = asyncio.create_task(made.embed(*(f"text {i}" for i in range(100))))
        await steps.begun(4)
        call.cancel()
        await made.until(lambda queue: queue.abandoned > 0)
        await steps.heard(made)
        steps.allow(200)
        await made.right("the next")
        assert len(steps.texts()) == 4 + 1, "what it had begun with, and the next"


async def test_rows_that_nobody_wants_any_more_are_dropped_from_a_batch_of_others(data_dir: Path, steps: Steps) -> None:
    async with rig(data_dir, {"acme/echo": OPTIONS}, max_batches=1) as made:
        made.lessor.engine = "theirs"
        steps.allow(1)
        await made.embed("warm up")
        running = asyncio.create_task(made.embed("running"))
        await steps.begun(2)
        leaving = asyncio.create_task(made.embed(*(f"text {i}" for i in range(100))))
        staying = asyncio.create_task(made.right("stays"))
        await made.waiting(101)
        steps.allow(3)
        await running
        await steps.begun(5)  # both are on the worker
        leaving.cancel()
        await made.until(lambda queue: queue.abandoned > 0)
        await steps.heard(made)
        steps.allow(200)
        await staying
        await made.right("the next")
        assert set(steps.texts()[5:]) <= {"stays", "the next"}


async def test_a_full_queue_says_when_to_come_back(data_dir: Path) -> None:
    async with rig(data_dir, max_queue_entries=2048) as made:
        await made.embed("warm up")
        texts = [f"t{i}" for i in range(2040)]
        with made.held():
            filling = asyncio.create_task(made.right(*texts))
            await made.unanswered(2040)
            with pytest.raises(errors.QueueFull) as caught:
                await made.embed(*texts[:100])
            assert caught.value.retry_after_seconds is not None
            assert 0 < caught.value.retry_after_seconds <= 30
            one_more = asyncio.create_task(made.right("one still fits"))
            await made.unanswered(2041)
        await asyncio.gather(one_more, filling)


async def test_exact_and_default_calls_are_answered_apart(echo: Rig) -> None:
    answers = await asyncio.gather(*(echo.embed(f"text {i}", precision="exact" if i % 2 else "") for i in range(20)))
    for i, answer in enumerate(answers):
        assert_right(answer, (f"text {i}",))


async def test_the_queue_can_be_seen(slow: Rig) -> None:
    assert (await slow.stub.GetQueue(inference_pb2.GetQueueRequest())).queues == []
    await slow.embed("warm up")
    with slow.held():
        running = asyncio.create_task(slow.embed("a", priority=HIGH))
        await slow.running()
        waiting = asyncio.create_task(slow.embed("b", "c", priority=HIGH))
        await slow.waiting(2)
        (queue,) = (await slow.stub.GetQueue(inference_pb2.GetQueueRequest())).queues
    assert queue.model_version == version_of("acme/echo")
    assert queue.in_flight == 1
    assert queue.drain_rate > 0
    assert [(level.priority, level.entries) for level in queue.levels] == [
        (common_pb2.PRIORITY_HIGH, 2),
        (common_pb2.PRIORITY_MEDIUM, 0),
        (common_pb2.PRIORITY_LOW, 0),
    ]
    await asyncio.gather(running, waiting)
