"""StreamEmbed: many calls in one stream, answered out of order, bounded, and ended by whoever ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from integration.inference_rig import Rig, assert_right, rig
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.status import error_from_rpc
from prometheus_client import REGISTRY

HIGH = common_pb2.PRIORITY_HIGH


@pytest.fixture
async def echo(data_dir: Path) -> AsyncIterator[Rig]:
    async with rig(data_dir) as made:
        yield made


@pytest.fixture
async def stuck(data_dir: Path) -> AsyncIterator[Rig]:
    """Answers one batch, and then never again; one text a batch, one batch on the worker; four calls a stream."""
    options = {"acme/echo": {"hang_after_batches": 1}}
    settings = {"max_batch_entries": 1, "max_batches": 1, "stream_calls": 4, "max_queue_entries": 2048}
    async with rig(data_dir, options, **settings) as made:
        await made.embed("warm up")
        yield made


class Open:
    """One stream as a client sees it."""

    def __init__(self, made: Rig, **options: Any) -> None:
        self.call = made.stub.StreamEmbed(**options)
        self.asked: dict[str, tuple[str, ...]] = {}

    async def send(self, name: str, *texts: str, **fields: Any) -> None:
        self.asked[name] = texts
        request = pb.EmbedRequest(**{"model": "acme/echo", "texts": texts} | fields)
        await self.call.write(pb.StreamEmbedRequest(id=name, request=request))

    async def read(self) -> pb.StreamEmbedResponse:
        async with asyncio.timeout(100):
            answer = await self.call.read()
        assert answer is not grpc.aio.EOF
        return answer  # type: ignore[no-any-return]

    async def right(self) -> str:
        """The next answer, checked; its id."""
        answer = await self.read()
        assert answer.WhichOneof("outcome") == "response", answer
        assert_right(answer.response, self.asked[answer.id])
        return answer.id

    async def wrong(self) -> tuple[str, pb.CallError]:
        """The next answer, which is an error: its id, and the error."""
        answer = await self.read()
        assert answer.WhichOneof("outcome") == "error", answer
        return answer.id, answer.error

    async def end(self) -> None:
        """Closes our side; nothing comes any more."""
        await self.call.done_writing()
        async with asyncio.timeout(100):
            assert await self.call.read() is grpc.aio.EOF
        assert await self.call.code() is grpc.StatusCode.OK

    async def _rest(self) -> None:
        while await self.call.read() is not grpc.aio.EOF:
            pass

    async def ended_with(self) -> errors.ModelMoraError:
        async with asyncio.timeout(100):
            with pytest.raises((grpc.aio.AioRpcError, errors.ModelMoraError)) as raised:
                await self._rest()
        error = raised.value
        return error_from_rpc(error) if isinstance(error, grpc.aio.AioRpcError) else error  # type: ignore[return-value]


async def until(made: Rig, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(100):
        while not condition():
            await made.queue()  # a round trip to the server


def open_streams() -> float:
    """As the server counts them."""
    labels = {"method": "modelmora.inference.v1.InferenceService/StreamEmbed"}
    return REGISTRY.get_sample_value("modelmora_requests_in_flight", labels) or 0.0


def bytes_in_flight() -> float:
    return REGISTRY.get_sample_value("modelmora_bytes_in_flight") or 0.0


async def test_every_call_of_a_stream_is_answered_under_its_id(echo: Rig) -> None:
    stream = Open(echo)

    async def send() -> None:
        for number in range(300):
            await stream.send(f"call {number}", *(f"text {number} {i}" for i in range(1 + number % 3)))

    sending = asyncio.create_task(send())
    assert {await stream.right() for _ in range(300)} == set(stream.asked)
    await sending
    await stream.end()
    seen = await echo.worker.seen()
    assert seen.entries == 600
    assert seen.batches < 300, "calls of one stream share batches"


async def test_calls_are_answered_as_they_are_done_and_not_in_order(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"delay_seconds": 0.05}}, max_batch_entries=1, max_batches=1) as made:
        await made.embed("warm up")
        stream = Open(made)
        await stream.send("long", *(f"text {number}" for number in range(150)))
        await made.running()
        await stream.send("urgent", "urgent", priority=HIGH)
        assert await stream.right() == "urgent"
        stream.call.cancel()


BAD: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"model": ""}, "InvalidArgument", ["model"]),
    ({"model": "acme/none"}, "ModelNotFound", []),
    ({"texts": []}, "InvalidArgument", ["texts"]),
    ({"texts": ["fine", " "]}, "InvalidArgument", ["texts[1]"]),
    ({"texts": ["x" * 100_001]}, "InvalidArgument", ["texts[0]"]),
    ({"dimensions": 0}, "InvalidArgument", ["dimensions"]),
    ({"dimensions": 9000}, "InvalidArgument", ["dimensions"]),
    ({"timeout": {"seconds": -1}}, "InvalidArgument", ["timeout"]),
    ({"timeout": {"seconds": 601}}, "InvalidArgument", ["timeout"]),
    ({"timeout": {"nanos": -1}}, "InvalidArgument", ["timeout"]),
    ({"precision": "about"}, "InvalidArgument", ["precision"]),
    ({"priority": 99}, "InvalidArgument", ["priority"]),
    ({"encoding": 99}, "InvalidArgument", ["encoding"]),
    ({"cold_policy": 99}, "InvalidArgument", ["cold_policy"]),
    ({"request_id": "x" * 201}, "InvalidArgument", ["request_id"]),
    ({"fallback_model": "acme/none"}, "ModelNotFound", []),
]


async def test_what_is_wrong_with_a_call_is_answered_in_its_place_and_the_stream_goes_on(echo: Rig) -> None:
    await echo.embed("warm up")
    stream = Open(echo)
    for fields, reason, paths in BAD:
        await stream.send("bad", **{"texts": ["a text"], **fields})
        name, error = await stream.wrong()
        assert (name, error.reason, sorted(error.fields)) == ("bad", reason, paths), fields
        assert error.message
    await stream.call.write(pb.StreamEmbedRequest())
    assert (await stream.wrong())[1].reason == "InvalidArgument"
    await stream.send("good", "a text")
    assert await stream.right() == "good"
    await stream.end()


async def test_an_id_that_is_still_open_or_too_long_is_refused(stuck: Rig) -> None:
    stream = Open(stuck)
    await stream.send("same", "first")
    await stuck.running()
    request = pb.EmbedRequest(model="acme/echo", texts=["second"])
    for name in ("same", "x" * 201):
        await stream.call.write(pb.StreamEmbedRequest(id=name, request=request))
        answered, error = await stream.wrong()
        assert (answered, error.reason, list(error.fields)) == (name[:200], "InvalidArgument", ["id"])
    stream.call.cancel()


async def test_an_id_that_is_answered_may_be_used_again(echo: Rig) -> None:
    stream = Open(echo)
    for number in range(3):
        await stream.send("same", f"text {number}")
        assert await stream.right() == "same"
    await stream.end()


async def test_a_full_queue_is_told_with_the_time_to_come_back(stuck: Rig) -> None:
    stream = Open(stuck)
    await stream.send("fills", *(f"t{i}" for i in range(2040)))
    await stuck.running()
    other = Open(stuck)
    await other.send("refused", *(f"t{i}" for i in range(100)))
    name, error = await other.wrong()
    assert (name, error.status, error.reason) == ("refused", "RESOURCE_EXHAUSTED", "QueueFull")
    assert error.retry_after.ToNanoseconds() > 0
    stream.call.cancel()
    other.call.cancel()


async def test_each_call_has_its_own_clock(stuck: Rig) -> None:
    stream = Open(stuck)
    await stream.send("patient", "patient")
    await stuck.running()
    for _ in range(12):  # a little before the client's clock runs out, if the machine lets it
        await stream.send("late", "late", timeout={"nanos": 200_000_000})
        name, error = await stream.wrong()
        assert (name, error.status) == ("late", "DEADLINE_EXCEEDED")
        assert "1 of 1 texts still waited" in error.message
        if "no answer within 0.1" in error.message:
            break
    else:
        pytest.fail(error.message)
    assert (await stuck.queue()).in_flight == 1, "the other goes on"
    stream.call.cancel()


async def test_beyond_its_open_calls_a_stream_is_not_read(stuck: Rig) -> None:
    stream = Open(stuck)
    for number in range(9):
        await stream.send(str(number), f"text {number}")
    other = Open(stuck)
    await other.send("other", "other")
    await stuck.until(lambda queue: sum(level.entries for level in queue.levels) + queue.in_flight >= 5)
    for _ in range(20):  # who reads on does so between any two of these
        held = await stuck.queue()
        assert sum(level.entries for level in held.levels) + held.in_flight == 5, "four of one stream, one of the other"
    stream.call.cancel()
    other.call.cancel()


async def test_a_stream_leaves_room_in_the_queue_for_others_of_its_tenant(stuck: Rig) -> None:
    stream = Open(stuck)
    for number in range(4):
        await stream.send(str(number), *(f"{number} {i}" for i in range(300)))
    await stuck.until(lambda queue: sum(level.entries for level in queue.levels) + queue.in_flight >= 600)
    other = asyncio.create_task(stuck.embed("another call"))
    await stuck.until(lambda queue: sum(level.entries for level in queue.levels) + queue.in_flight > 600)
    for _ in range(20):  # who reads on does so between any two of these
        held = await stuck.queue()
        assert sum(level.entries for level in held.levels) + held.in_flight == 601, "two calls of it, and the other"
    other.cancel()
    stream.call.cancel()


async def test_the_open_calls_are_answered_after_the_client_closed_its_side(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"delay_seconds": 0.2}}, max_batch_entries=1) as made:
        stream = Open(made)
        for number in range(3):
            await stream.send(str(number), f"text {number}")
        await stream.call.done_writing()
        assert sorted([await stream.right() for _ in range(3)]) == ["0", "1", "2"]
        assert await stream.call.read() is grpc.aio.EOF


async def test_a_cancelled_stream_withdraws_all_of_it_at_once(stuck: Rig) -> None:
    running = asyncio.create_task(stuck.embed("running"))
    await stuck.running()
    stream = Open(stuck)
    for number in range(4):
        await stream.send(str(number), f"text {number}", f"more {number}")
    await stuck.waiting(8)
    stream.call.cancel()
    await stuck.waiting(0)
    assert (await stuck.queue()).in_flight == 1
    assert not running.done()
    running.cancel()
    await until(stuck, lambda: open_streams() == 0)
    await until(stuck, lambda: bytes_in_flight() == 0)


async def test_a_message_that_cannot_be_read_ends_the_stream_after_what_is_open(echo: Rig) -> None:
    await echo.embed("warm up")
    raw = grpc.aio.insecure_channel(echo.host.target)
    call = raw.stream_stream("/modelmora.inference.v1.InferenceService/StreamEmbed")()
    request = pb.EmbedRequest(model="acme/echo", texts=["fine"])
    await call.write(pb.StreamEmbedRequest(id="fine", request=request).SerializeToString())
    await call.write(b"\x0a\xff\xff\xff")
    answer = pb.StreamEmbedResponse.FromString(await call.read())
    assert (answer.id, answer.WhichOneof("outcome")) == ("fine", "response")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await raw.close()


async def test_a_stream_that_idles_is_ended_and_one_that_waits_for_its_answer_is_not(data_dir: Path) -> None:
    options = {"acme/echo": {"delay_seconds": 1.0}}
    async with rig(data_dir, options, stream_idle_seconds=0.3) as made:
        answered = None
        while answered is None:
            stream = Open(made)
            try:
                await stream.send("takes its time", "a text")
                answered = await stream.right()
            except (grpc.aio.AioRpcError, errors.ModelMoraError, AssertionError):
                pass  # it idled before the call was there: this machine is busy
        assert answered == "takes its time"
        error = await stream.ended_with()
        assert isinstance(error, errors.Unavailable)
        assert "idle" in error.message
        assert error.retry_after_seconds


async def test_a_client_that_never_reads_is_held_to_its_bounds_and_given_up(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "modelmora_inference")
    async with rig(data_dir, {"acme/echo": {"dimensions": 4096}}, stream_idle_seconds=1.0, stream_calls=8) as made:
        await made.embed("warm up")
        most, sent = 0.0, False
        while not sent:
            caplog.clear()
            stream = Open(made)
            try:
                for number in range(40):  # few enough that none of them is still being sent at the end
                    await stream.send(str(number), *(f"{number} {i}" for i in range(64)))
                sent = True
            except (grpc.aio.AioRpcError, errors.ModelMoraError, asyncio.InvalidStateError):
                stream.call.cancel()  # it was given up before all was sent: this machine stands still
        answer_bytes = 64 * (4 * 4096 + 16)
        async with asyncio.timeout(100):
            while "is given up" not in caplog.text:
                most = max(most, bytes_in_flight())
                await made.queue()
        assert most < 12 * answer_bytes, "eight calls, and what is on its way"
        await until(made, lambda: bytes_in_flight() < 1.2 * answer_bytes)  # what the transport has
        await made.embed("the others go on")
        assert isinstance(await stream.ended_with(), errors.StreamNotRead), "should it read after all"
        await until(made, lambda: open_streams() == 0 and bytes_in_flight() == 0)


async def test_a_stop_answers_what_is_open_and_ends_idle_streams_at_once(data_dir: Path) -> None:
    async with rig(data_dir) as made:
        made.host.settings = made.host.settings.model_copy(update={"grace_seconds": 60})
        await made.embed("warm up")
        busy, idle = Open(made), Open(made)
        await until(made, lambda: open_streams() == 2)
        order: list[str] = []

        async def of_busy() -> errors.ModelMoraError:
            assert await busy.right() == "at the stop"
            order.append("busy answered")
            return await busy.ended_with()

        async def of_idle() -> errors.ModelMoraError:
            error = await idle.ended_with()
            order.append("idle ended")
            return error

        with made.held():
            await busy.send("at the stop", "a text")
            await made.running()
            waiting = asyncio.create_task(of_busy())
            stopping = asyncio.create_task(made.host.__aexit__(None, None, None))
            ended = [await of_idle()]
        ended.append(await waiting)
        for error in ended:
            assert isinstance(error, errors.ShuttingDown)
            assert error.retry_after_seconds
        assert order == ["idle ended", "busy answered"], "it is not held until the grace is over"
        await stopping


async def hold(made: Rig, count: int) -> None:
    """Opens so many streams, asks on some of them while all are open, and ends them."""
    streams: list[Open] = []
    while len(streams) < count:
        more = [Open(made) for _ in range(500)]
        await asyncio.gather(*(stream.send("first", "a text") for stream in more))
        assert {await stream.right() for stream in more} == {"first"}
        streams += more
    assert open_streams() == count
    await made.right("a unary call beside them")
    for stream in streams[:: max(1, count // 50)]:
        await stream.send("again", "another text")
        assert await stream.right() == "again"
    for stream in streams:
        stream.call.cancel()
    await until(made, lambda: open_streams() == 0 and bytes_in_flight() == 0)


async def test_hundreds_of_open_streams_do_no_harm(echo: Rig) -> None:
    await hold(echo, 500)


@pytest.mark.long
async def test_ten_thousand_open_streams_do_no_harm(echo: Rig) -> None:
    await hold(echo, 10_000)
