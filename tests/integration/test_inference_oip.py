"""The Open Inference Protocol in a real host: bad input, streams and who ends them, health of models by name."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from integration.inference_rig import Rig, rig
from modelmora import errors
from modelmora_inference.protocols import oip_pb2 as oip
from modelmora_inference.protocols import oip_pb2_grpc
from modelmora_worker.engines.echo import vector
from prometheus_client import REGISTRY

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
async def echo(data_dir: Path) -> AsyncIterator[Rig]:
    async with rig(data_dir) as made:
        yield made


@pytest.fixture
async def slow(data_dir: Path) -> AsyncIterator[Rig]:
    """A fifth of a second for each batch, one text a batch, one batch on the worker; four calls a stream."""
    options = {"acme/echo": {"delay_seconds": 0.2}}
    async with rig(data_dir, options, max_batch_entries=1, max_batches=1, stream_calls=4) as made:
        yield made


def stub(made: Rig) -> Any:
    return oip_pb2_grpc.GRPCInferenceServiceStub(made.channel)


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def raw(*elements: bytes, **fields: Any) -> oip.ModelInferRequest:
    """A good request as tritonclient sends it, with these fields put over it."""
    tensor = {"name": "texts", "datatype": "BYTES", "shape": [len(elements)]}
    told = {"model_name": "acme/echo", "inputs": [tensor], "raw_input_contents": [packed(*elements)]}
    return oip.ModelInferRequest(**{**told, **fields})


def assert_right(answer: oip.ModelInferResponse, *texts: str) -> None:
    (data,) = answer.raw_output_contents
    found = struct.unpack(f"<{8 * len(texts)}f", data)
    for row, text in enumerate(texts):
        assert found[8 * row : 8 * row + 8] == pytest.approx(vector(0, text, 8), abs=1e-6), text


def tensor(**fields: Any) -> list[dict[str, Any]]:
    return [{"name": "texts", "datatype": "BYTES", "shape": [1], **fields}]


def parameter(name: str, **value: Any) -> dict[str, Any]:
    return {"parameters": {name: oip.InferParameter(**value)}}


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no inputs", {"inputs": [], "raw_input_contents": []}, "inputs"),
    ("another input", {"inputs": tensor(name="images")}, "inputs[0].name"),
    ("no shape", {"inputs": tensor(shape=[])}, "inputs[0].shape"),
    ("a cube", {"inputs": tensor(shape=[1, 1, 1])}, "inputs[0].shape"),
    ("two columns", {"inputs": tensor(shape=[1, 2])}, "inputs[0].shape"),
    ("negative shape", {"inputs": tensor(shape=[-1])}, "inputs[0].shape[0]"),
    ("empty", {"inputs": tensor(shape=[0]), "raw_input_contents": [b""]}, "inputs[0].shape[0]"),
    ("absurd shape", {"inputs": tensor(shape=[2**62])}, "inputs[0].shape[0]"),
    ("absurd column", {"inputs": tensor(shape=[2**63 - 1, 1])}, "inputs[0].shape[0]"),
    ("numbers", {"inputs": tensor(datatype="FP32"), "raw_input_contents": [b"\0\0\xc0\x7f"]}, "inputs[0].datatype"),
    (
        "numbers, one of them NaN",
        {"inputs": tensor(datatype="FP32", contents={"fp32_contents": [float("nan")]}), "raw_input_contents": []},
        "inputs[0].datatype",
    ),
    ("fewer elements", {"inputs": tensor(shape=[3])}, "raw_input_contents[0]"),
    ("more elements", {"raw_input_contents": [packed(b"a", b"b")]}, "raw_input_contents[0]"),
    ("cut in its length", {"raw_input_contents": [b"\1\0"]}, "raw_input_contents[0]"),
    ("cut in its text", {"raw_input_contents": [b"\5\0\0\0abc"]}, "raw_input_contents[0]"),
    ("absurd length", {"raw_input_contents": [b"\xff\xff\xff\xffabc"]}, "raw_input_contents[0]"),
    ("no UTF-8", {"raw_input_contents": [packed(b"\xff\xfe")]}, "raw_input_contents[0][0]"),
    (
        "no UTF-8, typed",
        {"inputs": tensor(contents={"bytes_contents": [b"\xc3"]}), "raw_input_contents": []},
        "inputs[0].contents[0]",
    ),
    ("an empty text", {"raw_input_contents": [packed(b"")]}, "raw_input_contents[0][0]"),
    ("raw and typed", {"inputs": tensor(contents={"bytes_contents": [b"a"]})}, "inputs[0].contents"),
    ("too many raw", {"raw_input_contents": [packed(b"a"), packed(b"b")]}, "raw_input_contents"),
    ("twice", {"inputs": tensor() * 2, "raw_input_contents": [packed(b"a")] * 2}, "inputs[1].name"),
    ("another output", {"outputs": [{"name": "scores"}]}, "outputs[0]"),
    ("an output twice", {"outputs": [{"name": "vectors"}] * 2}, "outputs[1]"),
    ("negative priority", parameter("priority", int64_param=-1), "parameters.priority"),
    ("no dimensions", parameter("dimensions", int64_param=0), "parameters.dimensions"),
    ("absurd dimensions", parameter("dimensions", int64_param=2**62), "parameters.dimensions"),
    ("more dimensions than there are", parameter("dimensions", int64_param=9), "parameters.dimensions"),
    ("dimensions that are no number", parameter("dimensions", double_param=float("nan")), "parameters.dimensions"),
    ("endless dimensions", parameter("dimensions", double_param=float("inf")), "parameters.dimensions"),
    ("a truth that is none", parameter("normalize", string_param="yes"), "parameters.normalize"),
    ("unknown parameter", parameter("temperature", double_param=0.1), "parameters.temperature"),
    ("unknown precision", parameter("precision", string_param="int8"), "parameters.precision"),
    ("a long id", {"id": "x" * 201}, "id"),
    ("a long name", {"model_name": "x" * 401}, "model_name"),
    ("no model", {"model_name": ""}, "model_name"),
    ("a name with a version, and a version", {"model_name": "acme/echo@1", "model_version": "1"}, "model_version"),
]


async def test_bad_requests_are_refused_at_the_field_and_the_next_one_is_answered(echo: Rig) -> None:
    assert_right(await stub(echo).ModelInfer(raw(b"a text"), timeout=30), "a text")
    for name, fields, path in BAD:
        with pytest.raises(errors.InvalidArgument) as caught:
            await stub(echo).ModelInfer(raw(b"a", **fields), timeout=30)
        assert caught.value.fields[0].field == path, name
    assert_right(await stub(echo).ModelInfer(raw(b"a", "ж".encode()), timeout=30), "a", "ж")
    for fields in ({"model_name": "acme/nothing"}, {"model_version": "9"}):
        with pytest.raises(errors.NotFound):
            await stub(echo).ModelInfer(raw(b"a", **fields), timeout=30)
    levels = (await echo.queue()).levels
    assert not any(level.entries for level in levels)
    # What clients that retry rely on: a call changes nothing, so an id is no key.
    again = [await stub(echo).ModelInfer(raw(b"a", id="one"), timeout=30) for _ in range(2)]
    assert [answer.id for answer in again] == ["one", "one"]
    for answer in again:
        assert_right(answer, "a")


class Open:
    """One stream as a client sees it."""

    def __init__(self, made: Rig, **options: Any) -> None:
        self.call = stub(made).ModelStreamInfer(**options)

    async def send(self, text: str, **fields: Any) -> None:
        await self.call.write(raw(text.encode(), id=text, **fields))

    async def read(self) -> oip.ModelStreamInferResponse:
        async with asyncio.timeout(20):
            answer = await self.call.read()
        assert answer is not grpc.aio.EOF
        return answer  # type: ignore[no-any-return]

    async def right(self) -> str:
        """The id of the next answer, which is that of its own text and the last one to it."""
        answer = await self.read()
        assert not answer.error_message
        assert_right(answer.infer_response, answer.infer_response.id)
        assert answer.infer_response.parameters["triton_final_response"].bool_param
        return answer.infer_response.id

    async def end(self) -> None:
        await self.call.done_writing()
        async with asyncio.timeout(20):
            assert await self.call.read() is grpc.aio.EOF

    async def ended_with(self) -> errors.ModelMoraError:
        async with asyncio.timeout(20):
            try:
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            except errors.ModelMoraError as error:
                return error
        raise AssertionError("it ended well")


async def test_a_stream_answers_in_its_order_whatever_is_done_first(slow: Rig) -> None:
    stream = Open(slow)
    await stream.send("late", **parameter("priority", int64_param=3))
    await stream.send("later", **parameter("priority", int64_param=3))
    await stream.send("urgent", **parameter("priority", int64_param=1))
    assert [await stream.right() for _ in range(3)] == ["late", "later", "urgent"]
    await stream.end()


async def test_an_error_is_answered_in_its_place_and_the_stream_goes_on(echo: Rig) -> None:
    stream = Open(echo)
    await stream.send("a")
    await stream.send("wrong", model_name="acme/nothing")
    await stream.send("b")
    assert await stream.right() == "a"
    answer = await stream.read()
    assert answer.error_message.startswith("ModelNotFound: ")
    assert answer.infer_response.id == "wrong"
    assert answer.infer_response.parameters["triton_final_response"].bool_param
    assert await stream.right() == "b"
    await stream.end()
    # A client may want it to end the stream instead.
    stream = Open(echo, metadata=(("triton_grpc_error", "true"),))
    await stream.send("a")
    await stream.send("wrong", model_name="acme/nothing")
    await stream.send("b")
    assert await stream.right() == "a"
    assert isinstance(await stream.ended_with(), errors.ModelNotFound)


async def test_a_stream_is_read_no_further_than_it_is_answered(slow: Rig) -> None:
    stream = Open(slow)
    texts = [f"t{number}" for number in range(9)]

    async def send() -> None:
        for text in texts:
            await stream.send(text)

    def taken(queue: Any) -> int:
        return int(queue.in_flight) + sum(level.entries for level in queue.levels)

    await slow.right("warm up")
    with slow.held():
        await send()
        await slow.until(lambda queue: taken(queue) >= 4)
        for _ in range(20):  # all of it has come: who reads on does so between any two of these
            assert taken(await slow.queue()) == 4
    found = []
    for _ in texts:
        assert taken(await slow.queue()) <= 4
        found.append(await stream.right())
    assert sorted(found) == texts
    await stream.end()


async def test_statistics_count_a_cancelled_call_as_failed(slow: Rig) -> None:
    await slow.right("warm up")
    with slow.held():
        asked = stub(slow).ModelInfer(raw(*[b"a"] * 20), timeout=60)
        await slow.running()
        asked.cancel()
        await slow.until(lambda queue: queue.abandoned > 0)
    await slow.until(lambda queue: not queue.in_flight and not any(level.entries for level in queue.levels))
    answer = await stub(slow).ModelStatistics(oip.ModelStatisticsRequest(name="acme/echo"), timeout=30)
    (told,) = answer.model_stats
    assert (told.inference_stats.success.count, told.inference_stats.fail.count) == (1, 1)
    assert told.inference_stats.fail.ns > 0
    assert all(one.compute_infer.count for one in told.batch_stats)


async def test_a_cancelled_stream_leaves_nothing_behind(slow: Rig) -> None:
    await slow.right("warm up")
    with slow.held():
        stream = Open(slow)
        for number in range(4):
            await stream.send(f"t{number}")
        await slow.unanswered(4)
        stream.call.cancel()
        method = {"method": "inference.GRPCInferenceService/ModelStreamInfer"}
        await slow.until(lambda _: not sample("modelmora_requests_in_flight", method))
    await slow.unanswered(0)
    ended = {"priority": "medium", "status": "CANCELLED"}
    assert sample("modelmora_inference_requests_total", ended) == 4


async def test_an_idle_stream_is_ended(data_dir: Path) -> None:
    async with rig(data_dir, stream_idle_seconds=0.3) as made:
        await made.right("warm up")
        answered = None
        while answered is None:
            stream = Open(made)
            try:
                await stream.send("a")
                answered = await stream.right()
            except (errors.Unavailable, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass  # it idled before the call was there: this machine is busy
        assert answered == "a"
        assert isinstance(await stream.ended_with(), errors.Unavailable)


async def test_a_client_that_never_reads_is_held_to_its_bounds_and_given_up(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "modelmora_inference")
    async with rig(data_dir, {"acme/echo": {"dimensions": 4096}}, stream_idle_seconds=2, stream_calls=4) as made:
        answer_bytes = 64 * 4 * 4096
        asked = raw(*(b"x%d" % number for number in range(64)))
        most, sent = 0.0, False
        while not sent:
            caplog.clear()
            stream = Open(made)
            try:
                for _ in range(40):  # few enough that none of them is still being sent at the end
                    await stream.call.write(asked)
                sent = True
            except (grpc.aio.AioRpcError, errors.ModelMoraError, asyncio.InvalidStateError):
                stream.call.cancel()  # it was given up before all was sent: this machine stands still
        method = {"method": "inference.GRPCInferenceService/ModelStreamInfer"}
        async with asyncio.timeout(100):
            while "is given up" not in caplog.text:
                most = max(most, sample("modelmora_bytes_in_flight"))
                await made.queue()
            assert most < 8 * answer_bytes, "four calls, and what is on its way"
            while sample("modelmora_bytes_in_flight") >= 1.2 * answer_bytes:  # what the transport has
                await made.queue()
            assert isinstance(await stream.ended_with(), errors.StreamNotRead), "should it read after all"
            while sample("modelmora_bytes_in_flight") or sample("modelmora_requests_in_flight", method):
                await made.queue()


def sample(name: str, labels: dict[str, str] | None = None) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_when_the_platform_stops_what_is_open_is_answered_first(slow: Rig) -> None:
    await slow.right("warm up")
    with slow.held():
        stream = Open(slow)
        await stream.send("a")
        await stream.send("b")
        await slow.unanswered(2)
        slow.host.stopping.set()
    assert [await stream.right(), await stream.right()] == ["a", "b"]
    assert isinstance(await stream.ended_with(), errors.ShuttingDown)


async def test_a_model_serves_once_somebody_would_answer_for_it(echo: Rig) -> None:
    """The lifecycle of this rig does not say what it would do, so only a model in memory serves."""
    health = health_pb2_grpc.HealthStub(echo.channel)

    async def check(name: str) -> Any:
        return (await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)).status

    watch = health.Watch(health_pb2.HealthCheckRequest(service="acme/echo"))
    unknown = health.Watch(health_pb2.HealthCheckRequest(service="acme/nothing"))
    async with asyncio.timeout(20):
        assert (await watch.read()).status == NOT_SERVING
        assert (await unknown.read()).status == SERVICE_UNKNOWN
        assert await check("acme/echo") == NOT_SERVING
        await echo.right("a text")
        assert await check("acme/echo") == SERVING
        assert (await watch.read()).status == SERVING
        assert (await stub(echo).ModelReady(oip.ModelReadyRequest(name="acme/echo"))).ready
        for name in ("acme/nothing", "nothing", "acme/echo@", "x" * 500, "/", "acme/\0"):
            with pytest.raises(errors.NotFound):
                await check(name)
        echo.host.stopping.set()
        echo.host.board.stop()
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
