"""What `stream_embed` makes of many inputs: order, windows, retries; then both clients against a small server."""

from __future__ import annotations

import asyncio
import random
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora import AsyncClient, Client, errors
from modelmora.bulk import KEPT, OPEN_CALLS, OPEN_TEXTS, Pipeline
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.inference.v1 import inference_pb2_grpc
from modelmora.requests import Embeddings
from modelmora.retry import RetryPolicy
from modelmora.status import error_from_call

FAST = RetryPolicy(attempts=4, first_delay_seconds=0.001, max_delay_seconds=0.002)


def answer(message: pb.StreamEmbedRequest, version: str = "models/a/b/versions/1") -> pb.StreamEmbedResponse:
    """Each text becomes the vector [its length, 1]."""
    values = [number for text in message.request.texts for number in (float(len(text)), 1.0)]
    vectors = common_pb2.Tensor(
        data_type=common_pb2.DATA_TYPE_FP32,
        shape=[len(message.request.texts), 2],
        data=struct.pack(f"<{len(values)}f", *values),
    )
    response = pb.EmbedResponse(
        vectors=vectors, embeddings=[pb.Embedding(input_tokens=1) for _ in message.request.texts], model_version=version
    )
    return pb.StreamEmbedResponse(id=message.id, response=response)


def refusal(message: pb.StreamEmbedRequest, reason: str = "QueueFull") -> pb.StreamEmbedResponse:
    status = "INVALID_ARGUMENT" if reason == "InvalidArgument" else "RESOURCE_EXHAUSTED"
    error = pb.CallError(status=status, reason=reason, message="said so", fields={"texts[0]": "is bad"})
    if reason == "QueueFull":
        error.retry_after.FromMilliseconds(1)
    return pb.StreamEmbedResponse(id=message.id, error=error)


def pipeline(*, in_order: bool = True, delay: float | None = None, seconds: float = 60.0) -> Pipeline:
    return Pipeline("a/b", in_order=in_order, seconds=seconds, delay=lambda error, attempt, left: delay)


def test_a_named_error_of_one_call_is_what_the_call_alone_would_raise() -> None:
    error = error_from_call(refusal(pb.StreamEmbedRequest(id="0")).error)
    assert isinstance(error, errors.QueueFull)
    assert (error.message, error.retry_after_seconds) == ("said so", 0.001)
    assert [violation.field for violation in error.fields] == ["texts[0]"]


def test_the_first_answer_settles_the_version_before_anything_else_is_sent() -> None:
    made = Pipeline("a/b", in_order=True, seconds=60, delay=lambda *_: None, fallback="a/c")
    for number in range(3):
        made.add(f"text {number}", 0.0)
    first = made.to_send(0.0)
    assert first is not None
    assert (first.request.model, first.request.fallback_model) == ("a/b", "a/c")
    assert made.to_send(0.0) is None
    made.heard(answer(first, "models/a/c/versions/7"), 0.0)
    for _ in range(2):
        later = made.to_send(0.0)
        assert later is not None
        assert (later.request.model, later.request.fallback_model) == ("models/a/c/versions/7", "")


def test_windows_bound_what_is_open_and_what_is_kept() -> None:
    made = pipeline()
    while made.has_room:
        made.add("x", 0.0)
    assert made.unanswered == OPEN_CALLS
    big = pipeline()
    while big.has_room:
        big.add(["x"] * 1000, 0.0)
    assert big.unanswered == -(-OPEN_TEXTS // 1000)
    held_up = pipeline()
    held_up.add("slow", 0.0)
    held_up._version = "v"
    slow = held_up.to_send(0.0)
    assert slow is not None
    while held_up.has_room:
        held_up.add("x", 0.0)
        message = held_up.to_send(0.0)
        assert message is not None
        held_up.heard(answer(message), 0.0)
    assert len(held_up._answers) == KEPT * OPEN_CALLS - 1
    assert held_up.take() is None
    held_up.heard(answer(slow), 0.0)
    assert [found[0] for found in iter(held_up.take, None)] == list(range(KEPT * OPEN_CALLS))


def test_an_input_without_an_answer_ends_with_its_deadline() -> None:
    made = pipeline(seconds=5)
    made.add("text", 100.0)
    assert made.to_send(100.0) is not None
    assert 4.9 < made.seconds_to_wait(100.0) <= 5
    made.expire(104.9)
    assert made.take() is None
    made.expire(105.0)
    found = made.take()
    assert found is not None
    assert isinstance(found[1], errors.DeadlineExceeded)


def test_what_is_no_input_is_answered_in_its_place() -> None:
    made = pipeline()
    for wrong in (["x"] * 2049, [1], 7):
        made.add(wrong, 0.0)  # type: ignore[arg-type]
    made.add("fine", 0.0)
    made.ended = True
    message = made.to_send(0.0)
    assert message is not None
    assert message.id == "3"
    made.heard(answer(message), 0.0)
    results = [found[1] for found in iter(made.take, None)]
    assert [type(result) for result in results] == [errors.InvalidArgument] * 3 + [Embeddings]
    assert made.done


@settings(max_examples=100, deadline=None, database=None)
@given(st.randoms(use_true_random=True), st.booleans(), st.integers(1, 150))
def test_every_input_is_answered_once_whatever_breaks(chance: random.Random, in_order: bool, count: int) -> None:
    made = pipeline(in_order=in_order, delay=0.5)
    now, added, sent, out = 0.0, 0, [], []
    for _ in range(5000):
        if made.done:
            break
        if added < count:
            for _ in range(chance.randint(0, 30)):
                if added < count and made.has_room:
                    made.add("x" * (added + 1), now)
                    added += 1
            made.ended = added == count
        while (message := made.to_send(now)) is not None:
            sent.append(message)
        assert len(sent) <= OPEN_CALLS
        match chance.choice(["answers", "answers", "refuses", "breaks", "time"]):
            case "answers":
                for _ in range(chance.randint(1, 40)):
                    if sent:
                        made.heard(answer(sent.pop(chance.randrange(len(sent)))), now)
            case "refuses":
                if sent:
                    made.heard(refusal(sent.pop()), now)
            case "breaks":
                stale = sent[:1]
                sent.clear()
                made.broke()
                for late in stale:
                    made.heard(answer(late), now)  # of a stream that is gone: dropped
            case "time":
                now += made.seconds_to_wait(now) if made.seconds_to_wait(now) < 1 else 0.0
        out += list(iter(made.take, None))
    assert made.done, "some input is never answered"
    assert sorted(index for index, _ in out) == list(range(count))
    if in_order:
        assert [index for index, _ in out] == list(range(count))
    for index, result in out:
        assert isinstance(result, Embeddings)
        assert result.vectors.tolist() == [float(index + 1), 1.0]


# Both clients.


class Server(inference_pb2_grpc.InferenceServiceServicer):
    """Answers as the test says."""

    def __init__(self) -> None:
        self.script: Callable[[Iterator[pb.StreamEmbedRequest], grpc.ServicerContext], Iterator[Any]] = echo
        self.streams = 0

    def StreamEmbed(self, requests: Iterator[pb.StreamEmbedRequest], context: Any) -> Iterator[Any]:
        self.streams += 1
        yield from self.script(requests, context)


def echo(requests: Iterator[pb.StreamEmbedRequest], context: grpc.ServicerContext) -> Iterator[Any]:
    for message in requests:
        yield answer(message)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Server]]:
    servicer = Server()
    server = grpc.server(futures.ThreadPoolExecutor(16))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait()


@pytest.fixture
def server(served: tuple[str, Server]) -> Server:
    served[1].script, served[1].streams = echo, 0
    return served[1]


Ask = Callable[..., list[Any]]


@pytest.fixture(params=["Client", "AsyncClient"])
def ask(request: pytest.FixtureRequest, served: tuple[str, Server]) -> Ask:
    """All that one of the two clients yields; `detailed`: from stream_embed_detailed."""

    def sync(inputs: Any, *, detailed: bool = False, **options: Any) -> list[Any]:
        with Client(served[0], retry=FAST) as client:
            call = client.stream_embed_detailed if detailed else client.stream_embed
            return list(call("a/b", inputs, **options))  # type: ignore[operator]

    def with_asyncio(inputs: Any, *, detailed: bool = False, **options: Any) -> list[Any]:
        async def all_of_them() -> list[Any]:
            async with AsyncClient(served[0], retry=FAST) as client:
                call = client.stream_embed_detailed if detailed else client.stream_embed
                return [one async for one in call("a/b", inputs, **options)]  # type: ignore[operator]

        return asyncio.run(asyncio.wait_for(all_of_them(), 150))

    return sync if request.param == "Client" else with_asyncio


def test_vectors_come_in_the_order_of_texts_and_batches(server: Server, ask: Ask) -> None:
    inputs = [["x" * n] * (n % 3) if n % 3 else "x" * n for n in range(1, 501)]
    found = ask(iter(inputs))
    assert server.streams == 1
    for n, vectors in enumerate(found, 1):
        assert isinstance(vectors, numpy.ndarray)
        assert vectors.tolist() == ([[n, 1.0]] * (n % 3) if n % 3 else [n, 1.0])
    assert len(found) == 500
    assert ask([]) == []


def test_answers_out_of_order_are_put_into_order_or_not_as_asked(server: Server, ask: Ask) -> None:
    def in_pairs(requests: Iterator[pb.StreamEmbedRequest], context: Any) -> Iterator[Any]:
        yield answer(next(requests))
        for message in requests:
            yield answer(next(requests))
            yield answer(message)

    server.script = in_pairs
    inputs = ["x" * n for n in range(1, 102)]
    assert [vectors[0] for vectors in ask(inputs)] == list(range(1, 102))
    order = [index for index, _ in ask(inputs, detailed=True, as_completed=True)]
    assert sorted(order) == list(range(101))
    assert order[:5] == [0, 2, 1, 4, 3]


def test_a_stream_that_breaks_is_opened_again_and_only_what_is_missing_is_sent_again(server: Server, ask: Ask) -> None:
    answered: list[int] = []

    def breaks(requests: Iterator[pb.StreamEmbedRequest], context: grpc.ServicerContext) -> Iterator[Any]:
        for number, message in enumerate(requests, 1):
            answered.append(len(message.request.texts[0]))
            yield answer(message)
            if number == 10 and server.streams < 4:
                context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    server.script = breaks
    assert [vectors[0] for vectors in ask(["x" * n for n in range(1, 101)])] == list(range(1, 101))
    assert server.streams == 4
    assert set(answered) == set(range(1, 101))
    # grpc.aio drops what it has not read when a message that it sends meets a stream that has ended.
    assert len(answered) <= 100 + 3 * 10, "what was answered is asked for again"


def test_a_server_that_ends_the_stream_in_peace_is_asked_again_too(server: Server, ask: Ask) -> None:
    def ends(requests: Iterator[pb.StreamEmbedRequest], context: Any) -> Iterator[Any]:
        for _ in range(7):
            message = next(requests, None)
            if message is None:
                return
            yield answer(message)

    server.script = ends
    assert [vectors[0] for vectors in ask(["x" * n for n in range(1, 31)])] == list(range(1, 31))
    assert server.streams >= 5


def test_a_full_queue_is_waited_for_and_other_errors_are_raised_or_returned(server: Server, ask: Ask) -> None:
    seen: dict[str, int] = {}

    def refuses(requests: Iterator[pb.StreamEmbedRequest], context: Any) -> Iterator[Any]:
        for message in requests:
            seen[message.id] = seen.get(message.id, 0) + 1
            if message.request.texts[0] == "bad":
                yield refusal(message, "InvalidArgument")
            else:
                yield answer(message) if seen[message.id] > 6 else refusal(message)

    server.script = refuses
    found = ask(["x", "bad", "xxx"], detailed=True, return_errors=True)
    assert [index for index, _ in found] == [0, 1, 2]
    assert isinstance(found[1][1], errors.InvalidArgument)
    assert [found[at][1].vectors[0] for at in (0, 2)] == [1, 3]
    with pytest.raises(errors.InvalidArgument):
        ask(["x", "bad", "xxx"])


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED])
def test_what_no_other_attempt_would_change_is_raised(server: Server, ask: Ask, code: grpc.StatusCode) -> None:
    def refuses(requests: Iterator[pb.StreamEmbedRequest], context: grpc.ServicerContext) -> Iterator[Any]:
        next(requests)  # grpc.aio calls it INTERNAL when the end of a stream meets a message that is on its way
        context.abort(code, "no")
        yield

    server.script = refuses
    with pytest.raises(errors.ModelMoraError) as raised:
        ask(["x"])
    assert raised.value.status == code.name
    assert server.streams == 1


def test_a_server_that_never_answers_costs_no_more_than_the_timeout(server: Server, ask: Ask) -> None:
    gone = threading.Event()

    def silent(requests: Iterator[pb.StreamEmbedRequest], context: grpc.ServicerContext) -> Iterator[Any]:
        if not context.add_callback(gone.set):
            gone.set()  # it went before it was heard
        gone.wait(100)
        yield from ()

    server.script = silent
    with pytest.raises(errors.DeadlineExceeded):
        ask(["x", "xx"], timeout=0.3)
    # On a machine that stands still the time may be over before the stream has come to the server, or ever does.
    assert not server.streams or gone.wait(60), "the stream is left open"


def test_what_the_inputs_raise_is_raised_after_what_came_before(server: Server, ask: Ask) -> None:
    def broken() -> Iterator[str]:
        yield "x"
        raise KeyError("of the caller")

    with pytest.raises(KeyError):
        ask(broken())
    with pytest.raises(errors.InvalidArgument):
        ask("a plain text")
    with pytest.raises(errors.InvalidArgument):
        ask(["x"], timeout=601)


def test_who_stops_listening_ends_the_stream(served: tuple[str, Server], server: Server) -> None:
    gone = threading.Event()

    def watched(requests: Iterator[pb.StreamEmbedRequest], context: grpc.ServicerContext) -> Iterator[Any]:
        context.add_callback(gone.set)
        yield from echo(requests, context)

    def for_ever() -> Iterator[str]:
        while True:
            yield "x"

    server.script = watched
    with Client(served[0]) as client:
        for vectors in client.stream_embed("a/b", for_ever()):
            assert vectors[0] == 1
            break
        assert gone.wait(60)
    gone.clear()

    async def leaves() -> None:
        async def for_ever_too() -> AsyncIterator[str]:
            while True:
                yield "x"

        async with AsyncClient(served[0]) as client:
            stream = client.stream_embed("a/b", for_ever_too())
            assert (await anext(stream))[0] == 1
            await stream.aclose()  # type: ignore[attr-defined]
            assert await asyncio.to_thread(gone.wait, 60)

    asyncio.run(leaves())


def test_a_slow_source_of_inputs_holds_up_no_answer(served: tuple[str, Server], server: Server) -> None:
    first_is_there = threading.Event()

    def slow() -> Iterator[str]:
        yield "x"
        assert first_is_there.wait(60), "the first answer waits for the second input"
        yield "xx"

    with Client(served[0]) as client:
        found = []
        for vectors in client.stream_embed("a/b", slow()):
            found.append(vectors[0])
            first_is_there.set()
        assert found == [1, 2]
