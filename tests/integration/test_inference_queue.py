"""What overtakes what on a real worker, what cancelled work costs, and what can be asked about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from integration.inference_rig import Rig, rig, version_of
from integration.stepwise import OPTIONS, Steps
from integration.test_inference_embed import _metrics, _value
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2
from modelmora_inference.dispatcher import Call, Dispatcher, Dispatchers, Rules
from modelmora_inference.domain import Priority
from modelmora_runtime.auth import SUBTENANT_KEY

LOW, HIGH = common_pb2.PRIORITY_LOW, common_pb2.PRIORITY_HIGH


@pytest.fixture
async def stepping(data_dir: Path) -> AsyncIterator[Rig]:
    """A twentieth of a second for each text, twenty texts a batch."""
    options = {"delay_seconds": 0.05, "micro_batch_entries": 1}
    async with rig(data_dir, {"acme/echo": options}, max_batch_entries=20) as made:
        await made.right("warm up")
        yield made


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(tmp_path, monkeypatch)


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def _left(queue: inference_pb2.Queue) -> int:
    """Entries that are not answered yet."""
    return queue.in_flight + sum(level.entries for level in queue.levels)


async def test_high_waits_for_one_micro_batch_of_low_and_not_for_its_batches(data_dir: Path, steps: Steps) -> None:
    async with rig(data_dir, {"acme/echo": OPTIONS}, max_batch_entries=20) as made:
        made.lessor.engine = "theirs"
        steps.allow(3)
        await made.right("warm up")
        low = asyncio.create_task(made.right(*texts(60), priority=LOW))
        await steps.begun(4)
        urgent = asyncio.create_task(made.right("urgent", priority=HIGH))
        await made.until(lambda queue: queue.in_flight == 39 and _left(queue) == 59)
        await steps.heard(made)
        steps.allow(100)
        await asyncio.gather(low, urgent)
        # What ran, and none of the others: there were nearly forty on the worker.
        assert steps.texts().index("urgent") == 4


async def test_what_was_overtaken_goes_on_and_nothing_is_computed_twice(stepping: Rig) -> None:
    low = asyncio.create_task(stepping.right(*texts(20), priority=LOW))
    await stepping.computed(3)
    await stepping.right("urgent", priority=HIGH)
    await low
    assert (await stepping.worker.seen()).entries == 22


async def test_the_next_batch_is_on_the_worker_before_the_running_one_ends(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"hang_after_batches": 1}}) as made:
        await made.right("warm up")
        running = asyncio.create_task(made.embed("one"))
        await made.running()
        following = asyncio.create_task(made.embed("another"))
        await made.until(lambda queue: queue.in_flight == 2)
        for call in (running, following):
            call.cancel()
        await asyncio.gather(running, following, return_exceptions=True)


async def wasted(made: Rig) -> float:
    page = await asyncio.to_thread(_metrics, made.host.metrics_port)
    return _value(page, "modelmora_inference_wasted_compute_seconds_total")


async def test_what_is_computed_for_nobody_is_counted(data_dir: Path, steps: Steps) -> None:
    async with rig(data_dir, {"acme/echo": OPTIONS}, max_batch_entries=20) as made:
        made.lessor.engine = "theirs"
        steps.allow(3)
        await made.right("warm up")
        leaving = asyncio.create_task(made.embed(*texts(40)))
        await steps.begun(4)
        await made.until(lambda queue: queue.in_flight == 38)
        leaving.cancel()
        await made.until(lambda queue: queue.abandoned > 0)  # the batch that it has not begun is soon given back
        # A worker that stands still counts that too; but no text takes less than its twentieth of a second.
        assert await wasted(made) >= 0.05 * 2 - 1e-6, "the two that it had, before the third is there"
        await steps.heard(made)
        steps.allow(100)
        await made.right("the next")
        seen = await made.worker.seen()
        assert seen.entries == 1 + 2 + 1 + 1, "of what is left the text that was running, and no more"
        assert 0.05 * 3 - 1e-6 <= await wasted(made) <= seen.compute.ToNanoseconds() / 1e9 - 0.05 * 2 + 1e-6


async def test_what_was_computed_for_a_call_that_ran_out_of_time_is_counted(stepping: Rig) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        await stepping.embed(*texts(40), within=1.0)
    await stepping.right("the next")
    seen = await stepping.worker.seen()
    # All but the first and the last text, each of which takes its twentieth of a second at least.
    assert (
        0.05 * (seen.entries - 2) - 1e-6
        <= await wasted(stepping)
        <= seen.compute.ToNanoseconds() / 1e9 - 0.05 * 2 + 1e-6
    )


async def test_a_call_can_be_asked_where_it_is(stepping: Rig) -> None:
    async def explain(request_id: str) -> inference_pb2.ExplainRequestResponse:
        request = inference_pb2.ExplainRequestRequest(request_id=request_id)
        return await stepping.stub.ExplainRequest(request, timeout=30)  # type: ignore[no-any-return]

    with stepping.held():
        first = asyncio.create_task(stepping.right(*texts(60), request_id="first"))
        await stepping.until(lambda queue: queue.in_flight == 40)
        second = asyncio.ensure_future(
            stepping.stub.Embed(
                inference_pb2.EmbedRequest(model="acme/echo", texts=["mine", "too"], priority=LOW),
                timeout=20,
                metadata=(("x-request-id", "second"),),
            )
        )
        await stepping.until(lambda queue: queue.levels[2].entries == 2)
        running, waiting = await explain("first"), await explain("second")
        (level,) = (await stepping.queue()).levels[2].tenants
    assert running.model_version == waiting.model_version == version_of("acme/echo")
    assert running.running_entries + running.answered_entries >= 20
    assert running.waiting_entries + running.running_entries + running.answered_entries == 60
    assert waiting.place == inference_pb2.REQUEST_PLACE_WAITING
    assert (waiting.waiting_entries, waiting.priority) == (2, LOW)
    assert waiting.entries_ahead > 0
    assert f"{waiting.entries_ahead} texts" in waiting.reason
    assert 0 < waiting.time_left.ToNanoseconds() < 21e9
    assert (level.tenant, level.entries, level.weight) == ("default", 2, 1.0)
    await asyncio.gather(first, second)
    with pytest.raises(errors.RequestNotFound):
        await explain("second")
    with pytest.raises(errors.InvalidArgument):
        await explain("")


async def test_when_a_call_starts_is_not_told_by_calls_that_came_alone(stepping: Rig) -> None:
    for number in range(3):
        await stepping.embed(f"alone {number}")
    with stepping.held():
        many = asyncio.create_task(stepping.embed(*(f"text {i}" for i in range(60))))
        await stepping.until(lambda queue: queue.in_flight > 0)
        last = asyncio.create_task(stepping.embed("last", request_id="last"))
        request = inference_pb2.ExplainRequestRequest(request_id="last")
        await stepping.unanswered(61)
        explained = await stepping.stub.ExplainRequest(request, timeout=30)
    assert explained.place == inference_pb2.REQUEST_PLACE_WAITING
    assert explained.entries_ahead > 0
    assert not explained.HasField("starts_in")
    await asyncio.gather(many, last)


async def test_a_call_that_waits_for_a_load_says_so(data_dir: Path) -> None:
    async with rig(data_dir) as made:
        made.lessor.estimate_seconds = 700.0
        async with made.lessor.loads_wait(version_of("acme/echo")):
            call = asyncio.create_task(made.right("patient", request_id="mine"))
            await made.until(lambda queue: queue.HasField("ready_in"))
            request = inference_pb2.ExplainRequestRequest(request_id="mine")
            explained = await made.stub.ExplainRequest(request, timeout=30)
        assert explained.place == inference_pb2.REQUEST_PLACE_LOADING
        assert 600 < explained.starts_in.ToNanoseconds() / 1e9 <= 700
        await call


async def test_a_weight_is_set_within_bounds(stepping: Rig) -> None:
    async def weigh(**fields: object) -> float:
        answer = await stepping.stub.SetTenantWeight(inference_pb2.SetTenantWeightRequest(**fields), timeout=30)
        return answer.weight  # type: ignore[no-any-return]

    assert await weigh(tenant="acme", weight=3.0) == 3
    assert await weigh(tenant="acme") == 1
    for fields, path in (({"weight": 2.0}, "tenant"), ({"tenant": "a", "weight": 0.0}, "weight")):
        with pytest.raises(errors.InvalidArgument) as caught:
            await weigh(**fields)
        assert [violation.field for violation in caught.value.fields] == [path]
    with pytest.raises(errors.InvalidArgument):
        await weigh(tenant="a", weight=float("nan"))


async def shares(made: Rig, total: int) -> dict[str, int]:
    """Of so many words, what two tenants got of a model that is never idle: one with 10 words a text, one with 250."""
    spent = {"short": 0, "long": 0}

    async def client(tenant: str, words: int, number: int) -> None:
        turn = 0
        while sum(spent.values()) < total:
            turn += 1
            request = inference_pb2.EmbedRequest(
                model="acme/echo", texts=[" ".join(["word"] * (words - 2) + [str(number), str(turn)])]
            )
            await made.stub.Embed(request, timeout=60, metadata=((SUBTENANT_KEY, tenant),))
            if sum(spent.values()) < total:
                spent[tenant] += words

    await asyncio.gather(
        *(client("short", 10, number) for number in range(64)), *(client("long", 250, number) for number in range(8))
    )
    return spent


@pytest.mark.parametrize("total", [13_000, pytest.param(200_000, marks=pytest.mark.long)])
async def test_two_tenants_get_compute_time_by_weight_whatever_their_texts(
    data_dir: Path, total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"delay_per_token_seconds": 0.0003, "micro_batch_entries": 8}
    deliver = Dispatcher._deliver

    def without_standstills(self: Dispatcher, lease: Any, batch: Any, reply: Any) -> None:
        # Who happens to be on the worker pays for a time in which this machine stands still.
        reply.compute.FromMicroseconds(300 * sum(reply.input_tokens))
        deliver(self, lease, batch, reply)

    monkeypatch.setattr(Dispatcher, "_deliver", without_standstills)
    settings = {"max_batch_tokens": 500, "tenant_weights": {"default/short": 1.0, "default/long": 3.0}}
    async with rig(data_dir, {"acme/echo": options}, **settings) as made:
        await made.right("warm up")
        spent = await shares(made, total)
        assert spent["long"] / spent["short"] == pytest.approx(3.0, rel=0.3 if total < 100_000 else 0.1), spent


async def test_a_tenant_that_fills_the_queue_makes_room_for_others(data_dir: Path) -> None:
    options = {"acme/echo": {"hang_after_batches": 1}}
    async with rig(data_dir, options, max_batch_entries=1, max_batches=1, max_queue_entries=2048) as made:
        await made.right("warm up")

        def ask(tenant: str, count: int) -> asyncio.Future[inference_pb2.EmbedResponse]:
            request = inference_pb2.EmbedRequest(model="acme/echo", texts=texts(count))
            call = made.stub.Embed(request, timeout=60, metadata=((SUBTENANT_KEY, tenant),))
            return asyncio.ensure_future(call)

        older = ask("greedy", 1000)
        await made.running()
        await made.waiting(999)
        newer = ask("greedy", 1040)
        await made.waiting(2039)
        with pytest.raises(errors.QueueFull):
            await ask("greedy", 20)
        with pytest.raises(errors.QueueFull):
            await ask("modest", 1100)
        modest = ask("modest", 20)
        with pytest.raises(errors.QueueFull) as caught:
            await newer
        assert caught.value.retry_after_seconds
        await made.until(lambda queue: any(one.tenant.endswith("modest") for one in queue.levels[1].tenants))
        assert not older.done()
        assert not modest.done()
        older.cancel()
        modest.cancel()
        page = await asyncio.to_thread(_metrics, made.host.metrics_port)
        assert _value(page, "modelmora_inference_displaced_requests_total") == 1


async def test_a_bulk_that_fills_the_queue_makes_room_for_what_is_urgent_of_its_own_tenant(data_dir: Path) -> None:
    options = {"acme/echo": {"hang_after_batches": 1}}
    async with rig(data_dir, options, max_batch_entries=1, max_batches=1, max_queue_entries=2048) as made:
        await made.right("warm up")
        older = asyncio.create_task(made.embed(*texts(1948), priority=LOW))
        await made.waiting(1947)
        newer = asyncio.create_task(made.embed(*texts(100), priority=LOW))
        await made.waiting(2047)
        with pytest.raises(errors.QueueFull):
            await made.embed("as urgent", priority=LOW)
        urgent = asyncio.create_task(made.embed("urgent", priority=HIGH))
        with pytest.raises(errors.QueueFull) as caught:
            await newer
        assert caught.value.retry_after_seconds
        # It went to the worker at once, beside the bulk; what was left of the other call has left too.
        await made.until(lambda queue: queue.in_flight == 2 and queue.levels[2].entries == 1947)
        assert not older.done()
        older.cancel()
        urgent.cancel()


class Silent:
    """A lease that is never granted."""

    async def write(self, message: object) -> None:
        await asyncio.Event().wait()

    def cancel(self) -> None: ...


def a_call() -> Call:
    return Call(
        priority=Priority.MEDIUM,
        tenant="default",
        arrival=time.monotonic(),
        deadline=time.monotonic() + 60,
        normalize=True,
        truncate=True,
        dimensions=0,
        exact=False,
        done=asyncio.get_running_loop().create_future(),
    )


async def test_who_is_refused_leaves_no_queue_behind() -> None:
    dispatchers = Dispatchers(Silent, Rules(max_total_bytes=10))
    with pytest.raises(errors.QueueFull):
        dispatchers.submit("v", a_call(), ["more than ten bytes"])
    assert not list(dispatchers)
    call = a_call()
    dispatchers.submit("v", call, ["ten bytes"])
    assert [one.version for one in dispatchers] == ["v"]
    await dispatchers.close()
    with pytest.raises(errors.ShuttingDown):
        await call.done


async def test_texts_of_one_call_go_by_their_length_so_that_batches_are_alike() -> None:
    dispatchers = Dispatchers(Silent, Rules())
    call = a_call()
    words = [40, 3, 90, 3, 1, 60]
    dispatcher = dispatchers.submit("v", call, ["word " * count for count in words])
    queued = sorted(dispatcher.queue.waiting(), key=lambda entry: entry.sequence)
    assert [words[entry.index] for entry in queued] == sorted(words)
    assert [entry.index for entry in queued] == [4, 1, 3, 0, 5, 2]
    assert call.entries == queued
    await dispatchers.close()
    with pytest.raises(errors.ShuttingDown):
        await call.done
