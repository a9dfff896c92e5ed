"""tei.v1 on the echo engine: the answers of the native calls, in batches with them, and what is wrong by its field."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from integration.inference_rig import Rig, rig, version_of
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.status import error_from_rpc
from modelmora_inference.protocols import tei_pb2 as tei
from modelmora_inference.protocols import tei_pb2_grpc
from modelmora_worker.engines.echo import vector

ECHO, RANKER, SORTER, READER = "acme/echo", "acme/ranker", "acme/sorter", "acme/reader"
MODELS = {
    ECHO: {"max_input_tokens": 20, "fail_on_text": "spoilt"},
    RANKER: {"max_input_tokens": 50},
    SORTER: {"labels": 3, "max_input_tokens": 50},
    READER: {},
}
LEFT = tei.TRUNCATION_DIRECTION_LEFT


@pytest.fixture
async def made(data_dir: Path) -> AsyncIterator[Rig]:
    async with rig(data_dir, MODELS, tei_model=ECHO) as made:
        made.resolver.task_types[version_of(RANKER)] = common_pb2.TASK_TYPE_RERANKING
        made.resolver.task_types[version_of(SORTER)] = common_pb2.TASK_TYPE_CLASSIFICATION
        made.resolver.task_types[version_of(READER)] = common_pb2.TASK_TYPE_QUESTION_ANSWERING
        yield made


class Client:
    """Stubs of all services, as anybody's; every call names `model`."""

    def __init__(self, channel: grpc.aio.Channel, model: str = "") -> None:
        self.info: Any = tei_pb2_grpc.InfoStub(channel)  # type: ignore[no-untyped-call]
        self.embed: Any = tei_pb2_grpc.EmbedStub(channel)  # type: ignore[no-untyped-call]
        self.predict: Any = tei_pb2_grpc.PredictStub(channel)  # type: ignore[no-untyped-call]
        self.rerank: Any = tei_pb2_grpc.RerankStub(channel)  # type: ignore[no-untyped-call]
        self.tokenize: Any = tei_pb2_grpc.TokenizeStub(channel)  # type: ignore[no-untyped-call]
        self._options = {"timeout": 20, "metadata": (("x-model-id", model),) if model else ()}

    async def call(self, method: Any, request: Any) -> Any:
        """The answer, or the named error."""
        try:
            return await method(request, **self._options)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None

    async def stream(self, method: Any, requests: Iterator[Any]) -> list[Any]:
        """Every answer of a stream that is closed after its last request."""
        try:
            return [answer async for answer in method(requests, **self._options)]
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None


@pytest.fixture
async def channel(made: Rig) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(made.host.target) as channel:
        yield channel


def near(found: Any, wanted: Any) -> bool:
    return len(found) == len(wanted) and all(abs(a - b) < 1e-6 for a, b in zip(found, wanted, strict=True))


async def test_a_text_is_embedded_as_the_native_call_does(made: Rig, channel: grpc.aio.Channel) -> None:
    client = Client(channel)
    native = (await made.right("some words here")).embeddings[0].values
    found = await client.call(client.embed.Embed, tei.EmbedRequest(inputs="some words here", normalize=True))
    assert near(found.embeddings, native)
    told = found.metadata
    assert (told.compute_chars, told.compute_tokens) == (15, 3)
    assert 0 < told.inference_time_ns + told.queue_time_ns < told.total_time_ns < 20e9
    short = await client.call(client.embed.Embed, tei.EmbedRequest(inputs="some words here", dimensions=3))
    assert near(short.embeddings, native[:3])


async def test_a_stream_answers_in_the_order_of_its_requests_and_shares_batches_with_others(
    made: Rig, channel: grpc.aio.Channel
) -> None:
    client = Client(channel, ECHO)
    await made.right("warm up")
    before = (await made.worker.seen()).batches
    texts = [f"text number {n}" for n in range(40)]
    os.kill(made.worker.process.pid, signal.SIGSTOP)
    try:
        asked = asyncio.gather(
            client.stream(client.embed.EmbedStream, (tei.EmbedRequest(inputs=text) for text in texts)),
            *(made.right(f"native {n}") for n in range(40)),
        )
        await made.until(lambda queue: queue.in_flight + sum(level.entries for level in queue.levels) == 80)
    finally:
        os.kill(made.worker.process.pid, signal.SIGCONT)
    found, *_ = await asked
    assert all(near(one.embeddings, vector(0, text, 8)) for one, text in zip(found, texts, strict=True))
    # Two were on the worker before the others came.
    assert (await made.worker.seen()).batches - before <= 4


async def test_labels_and_ranks_are_those_of_the_native_calls(made: Rig, channel: grpc.aio.Channel) -> None:
    sorter, ranker = Client(channel, SORTER), Client(channel, RANKER)
    native = await made.stub.Classify(pb.ClassifyRequest(model=SORTER, texts=["a b"], raw_scores=True), timeout=20)
    (wanted,) = native.classifications
    alone = tei.PredictRequest(inputs="a b", raw_scores=True)
    pair = tei.PredictPairRequest(inputs=["a b"], raw_scores=True)
    for method, request in ((sorter.predict.Predict, alone), (sorter.predict.PredictPair, pair)):
        found = await sorter.call(method, request)
        assert [one.label for one in found.predictions] == [one.label for one in wanted.labels]
        assert near([one.score for one in found.predictions], [one.score for one in wanted.labels])
    both = tei.PredictPairRequest(inputs=["a b", "c"], raw_scores=True)
    native = await made.stub.Classify(
        pb.ClassifyRequest(model=SORTER, texts=["a b"], pairs=["c"], raw_scores=True), timeout=20
    )
    for found in await sorter.stream(sorter.predict.PredictPairStream, iter([both, both])):
        assert [one.score for one in found.predictions] == pytest.approx(
            [one.score for one in native.classifications[0].labels]
        )

    texts = [f"text number {n}" for n in range(20)]
    ranked = await made.stub.Rerank(pb.RerankRequest(model=RANKER, query="which", texts=texts), timeout=20)
    found = await ranker.call(ranker.rerank.Rerank, tei.RerankRequest(query="which", texts=texts, return_text=True))
    assert [one.index for one in found.ranks] == [one.index for one in ranked.ranked]
    assert [one.text for one in found.ranks] == [texts[one.index] for one in ranked.ranked]
    assert found.metadata.compute_chars == 20 * len("which") + sum(map(len, texts))
    streamed = await ranker.call(
        ranker.rerank.RerankStream,
        (tei.RerankStreamRequest(query="which", text=text, return_text=n == 0) for n, text in enumerate(texts)),
    )
    assert [(one.index, one.text) for one in streamed.ranks] == [(one.index, one.text) for one in found.ranks]
    assert near([one.score for one in streamed.ranks], [one.score for one in ranked.ranked])
    assert streamed.metadata.compute_tokens == found.metadata.compute_tokens


async def test_tokens_are_those_of_the_native_call(made: Rig, channel: grpc.aio.Channel) -> None:
    client = Client(channel)
    native = await made.stub.Tokenize(pb.TokenizeRequest(model=ECHO, texts=["héllo you there"]), timeout=20)
    found = await client.call(client.tokenize.Tokenize, tei.EncodeRequest(inputs="héllo you there"))
    assert [(one.id, one.start, one.stop) for one in found.tokens] == [
        (one.id, one.start, one.end) for one in native.texts[0].tokens
    ]
    assert [one.text for one in found.tokens] == ["héllo", "you", "there"]


async def test_every_token_has_its_vector(made: Rig, channel: grpc.aio.Channel) -> None:
    client = Client(channel)
    found = await client.call(client.embed.EmbedAll, tei.EmbedAllRequest(inputs="one two three"))
    wanted = [vector(0, word, 8) for word in ("one", "two", "three")]
    assert all(near(one.embeddings, row) for one, row in zip(found.token_embeddings, wanted, strict=True))
    assert found.metadata.compute_tokens == 3
    streamed = await client.stream(
        client.embed.EmbedAllStream, (tei.EmbedAllRequest(inputs=f"a{n} b") for n in range(30))
    )
    for n, one in enumerate(streamed):
        assert near(one.token_embeddings[0].embeddings, vector(0, f"a{n}", 8))
    cut = await client.call(client.embed.EmbedAll, tei.EmbedAllRequest(inputs="a " * 30, truncate=True))
    assert len(cut.token_embeddings) == 20


async def test_vectors_that_no_answer_holds_are_refused_before_they_are_computed(data_dir: Path) -> None:
    """They were computed first: minutes for nothing, and on a busy machine the worker was taken for hung."""
    models = {ECHO: {"dimensions": 350, "crash_on_text": "never"}}
    async with rig(data_dir, models, tei_model=ECHO) as made, grpc.aio.insecure_channel(made.host.target) as channel:
        client = Client(channel)
        text = "never" + " a" * 47_990  # 67.2 MB: one message of the worker's wire holds it, the answer does not
        with pytest.raises(errors.MessageTooLarge, match=f"the vectors of 47991 tokens .* at most {64 << 20} "):
            await client.call(client.embed.EmbedAll, tei.EmbedAllRequest(inputs=text))
        assert (await made.worker.seen()).batches == 1
        # The numbers alone would just fit.
        text = "never" + " a" * ((64 << 20) // 1400 - 1)
        with pytest.raises(errors.MessageTooLarge, match="the vectors of 47934 tokens have 67107600 bytes"):
            await client.call(client.embed.EmbedAll, tei.EmbedAllRequest(inputs=text))
        assert (await made.worker.seen()).batches == 2


async def test_tokens_become_a_text_again(made: Rig, channel: grpc.aio.Channel) -> None:
    for model in MODELS:
        client = Client(channel, model)
        found = await client.call(client.tokenize.Decode, tei.DecodeRequest(ids=[7, 2**32 - 1]))
        assert found.text == f"7 {2**32 - 1}"
    streamed = await client.stream(client.tokenize.DecodeStream, (tei.DecodeRequest(ids=[n]) for n in range(20)))
    assert [one.text for one in streamed] == [str(n) for n in range(20)]


async def test_info_tells_the_model_and_the_limits(made: Rig, channel: grpc.aio.Channel) -> None:
    await made.right("load it")
    info = await Client(channel).call(Client(channel).info.Info, tei.InfoRequest())
    assert (info.model_id, info.model_sha, info.model_type) == (ECHO, "1", tei.MODEL_TYPE_EMBEDDING)
    assert (info.model_dtype, info.max_input_length, info.max_client_batch_size) == ("float32", 20, 2048)
    for model, kind in ((SORTER, tei.MODEL_TYPE_CLASSIFIER), (RANKER, tei.MODEL_TYPE_RERANKER)):
        client = Client(channel, model)
        assert (await client.call(client.info.Info, tei.InfoRequest())).model_type == kind
    reader = Client(channel, READER)
    with pytest.raises(errors.TaskNotSupported):
        await reader.call(reader.info.Info, tei.InfoRequest())


@pytest.mark.parametrize("key", ["x-model-id", "mm-model-id", "mm-vmodel-id"])
async def test_metadata_names_the_model(made: Rig, channel: grpc.aio.Channel, key: str) -> None:
    stub: Any = tei_pb2_grpc.RerankStub(channel)  # type: ignore[no-untyped-call]
    answer = await stub.Rerank(tei.RerankRequest(query="a", texts=["b"]), metadata=((key, RANKER),), timeout=20)
    assert len(answer.ranks) == 1


BAD: list[tuple[str, Any, str, type[errors.ModelMoraError], str]] = [
    ("embed.Embed", tei.EmbedRequest(), "", errors.InvalidArgument, "inputs"),
    ("embed.Embed", tei.EmbedRequest(inputs=" \n"), "", errors.InvalidArgument, "inputs"),
    ("embed.Embed", tei.EmbedRequest(inputs="x" * 100_001), "", errors.InvalidArgument, "inputs"),
    ("embed.Embed", tei.EmbedRequest(inputs="a", dimensions=0), "", errors.InvalidArgument, "dimensions"),
    ("embed.Embed", tei.EmbedRequest(inputs="a", dimensions=9), "", errors.InvalidArgument, "dimensions"),
    ("embed.Embed", tei.EmbedRequest(inputs="a", dimensions=2**32 - 1), "", errors.InvalidArgument, "dimensions"),
    ("embed.Embed", tei.EmbedRequest(inputs="a " * 30), "", errors.TextTooLong, "inputs"),
    (
        "embed.Embed",
        tei.EmbedRequest(inputs="a " * 30, truncate=True, truncation_direction=LEFT),
        "",
        errors.Unimplemented,
        "",
    ),
    (
        "embed.Embed",
        tei.EmbedRequest(inputs="a", truncation_direction=7),  # type: ignore[arg-type]
        "",
        errors.InvalidArgument,
        "truncation_direction",
    ),
    ("embed.Embed", tei.EmbedRequest(inputs="a", prompt_name="query"), "", errors.InvalidArgument, "prompt_name"),
    ("embed.Embed", tei.EmbedRequest(inputs="a", prompt_name="x" * 201), "", errors.InvalidArgument, "prompt_name"),
    ("embed.EmbedAll", tei.EmbedAllRequest(inputs="a", prompt_name="query"), "", errors.InvalidArgument, "prompt_name"),
    (
        "embed.EmbedAll",
        tei.EmbedAllRequest(inputs="a " * 30, truncate=True, truncation_direction=LEFT),
        "",
        errors.Unimplemented,
        "",
    ),
    ("tokenize.Tokenize", tei.EncodeRequest(inputs="a", prompt_name="query"), "", errors.Unimplemented, ""),
    (
        "predict.Predict",
        tei.PredictRequest(inputs="a " * 60, truncate=True, truncation_direction=LEFT),
        SORTER,
        errors.Unimplemented,
        "",
    ),
    (
        "predict.PredictPair",
        tei.PredictPairRequest(inputs=["a", "b"], truncation_direction=-1),  # type: ignore[arg-type]
        SORTER,
        errors.InvalidArgument,
        "truncation_direction",
    ),
    (
        "rerank.Rerank",
        tei.RerankRequest(query="q", texts=["a", "b " * 60], truncate=True, truncation_direction=LEFT),
        RANKER,
        errors.Unimplemented,
        "",
    ),
    (
        "rerank.Rerank",
        tei.RerankRequest(query="q", texts=["a"], truncation_direction=2**31 - 1),  # type: ignore[arg-type]
        RANKER,
        errors.InvalidArgument,
        "truncation_direction",
    ),
    ("predict.Predict", tei.PredictRequest(inputs="a"), "acme/nothing", errors.ModelNotFound, ""),
    ("rerank.Rerank", tei.RerankRequest(query="q", texts=["a"]), ECHO, errors.TaskNotSupported, ""),
    ("rerank.Rerank", tei.RerankRequest(query="q", texts=["a"]), "acme/nothing", errors.ModelNotFound, ""),
    ("tokenize.Decode", tei.DecodeRequest(ids=[1]), "acme/nothing", errors.ModelNotFound, ""),
    ("info.Info", tei.InfoRequest(), "acme/nothing", errors.ModelNotFound, ""),
    ("embed.Embed", tei.EmbedRequest(inputs="a"), "acme/nothing", errors.ModelNotFound, ""),
    ("embed.Embed", tei.EmbedRequest(inputs="a"), RANKER, errors.TaskNotSupported, ""),
    ("embed.Embed", tei.EmbedRequest(inputs="spoilt"), "", errors.InvalidArgument, "inputs"),
    ("embed.EmbedSparse", tei.EmbedSparseRequest(inputs="a"), "", errors.TaskNotSupported, ""),
    ("predict.Predict", tei.PredictRequest(), SORTER, errors.InvalidArgument, "inputs"),
    ("predict.Predict", tei.PredictRequest(inputs="a"), ECHO, errors.TaskNotSupported, ""),
    ("predict.PredictPair", tei.PredictPairRequest(), SORTER, errors.InvalidArgument, "inputs"),
    ("predict.PredictPair", tei.PredictPairRequest(inputs="abc"), SORTER, errors.InvalidArgument, "inputs"),
    ("predict.PredictPair", tei.PredictPairRequest(inputs=["a", ""]), SORTER, errors.InvalidArgument, "inputs[1]"),
    ("rerank.Rerank", tei.RerankRequest(texts=["a"]), RANKER, errors.InvalidArgument, "query"),
    ("rerank.Rerank", tei.RerankRequest(query="a"), RANKER, errors.InvalidArgument, "texts"),
    ("rerank.Rerank", tei.RerankRequest(query="a", texts=["b", ""]), RANKER, errors.InvalidArgument, "texts[1]"),
    ("rerank.Rerank", tei.RerankRequest(query="a", texts=["b"] * 2049), RANKER, errors.InvalidArgument, "texts"),
    ("tokenize.Tokenize", tei.EncodeRequest(), "", errors.InvalidArgument, "inputs"),
    ("tokenize.Tokenize", tei.EncodeRequest(inputs="a"), "acme/nothing", errors.ModelNotFound, ""),
    ("tokenize.Decode", tei.DecodeRequest(), "", errors.InvalidArgument, "ids"),
    ("tokenize.Decode", tei.DecodeRequest(ids=[1] * 100_001), "", errors.InvalidArgument, "ids"),
    ("embed.EmbedAll", tei.EmbedAllRequest(), "", errors.InvalidArgument, "inputs"),
    ("embed.EmbedAll", tei.EmbedAllRequest(inputs="a"), SORTER, errors.TaskNotSupported, ""),
    ("embed.EmbedAll", tei.EmbedAllRequest(inputs="a " * 30), "", errors.TextTooLong, "inputs"),
]


async def test_what_is_wrong_is_named_by_its_field(made: Rig, channel: grpc.aio.Channel) -> None:
    for path, request, model, wanted, field in BAD:
        client = Client(channel, model)
        service, _, method = path.partition(".")
        with pytest.raises(wanted) as caught:
            await client.call(getattr(getattr(client, service), method), request)
        assert [violation.field for violation in caught.value.fields] == ([field] if field else []), (path, request)
    stub: Any = tei_pb2_grpc.EmbedStub(channel)  # type: ignore[no-untyped-call]
    with pytest.raises(grpc.aio.AioRpcError) as inexact:
        await stub.Embed(tei.EmbedRequest(inputs="a"), timeout=20, metadata=(("x-precision", "int8"),))
    assert [one.field for one in error_from_rpc(inexact.value).fields] == ["x-precision"]
    await made.right("it lives on")


async def test_a_call_that_names_no_model_is_refused_where_no_setting_does(data_dir: Path) -> None:
    async with rig(data_dir) as made, grpc.aio.insecure_channel(made.host.target) as channel:
        client = Client(channel)
        with pytest.raises(errors.InvalidArgument) as caught:
            await client.call(client.embed.Embed, tei.EmbedRequest(inputs="a"))
        assert [violation.field for violation in caught.value.fields] == ["x-model-id"]


async def test_a_text_that_fits_is_answered_whichever_end_might_go(made: Rig, channel: grpc.aio.Channel) -> None:
    client = Client(channel)
    request = tei.EmbedRequest(inputs="short", truncate=True, truncation_direction=LEFT)
    assert near((await client.call(client.embed.Embed, request)).embeddings, vector(0, "short", 8))
    cut = await client.call(client.embed.Embed, tei.EmbedRequest(inputs="a " * 30, truncate=True))
    assert near(cut.embeddings, vector(0, " ".join(["a"] * 20), 8))


async def test_the_first_error_ends_a_stream_after_the_answers_before_it(made: Rig, channel: grpc.aio.Channel) -> None:
    stub: Any = tei_pb2_grpc.EmbedStub(channel)  # type: ignore[no-untyped-call]
    texts = ["one", "two", "", "three"]
    call = stub.EmbedStream(iter([tei.EmbedRequest(inputs=text) for text in texts]), timeout=20)
    for text in texts[:2]:
        assert near((await call.read()).embeddings, vector(0, text, 8))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_streams_that_are_left_leave_nothing_behind(made: Rig, channel: grpc.aio.Channel) -> None:
    await made.right("warm up")
    stub: Any = tei_pb2_grpc.EmbedStub(channel)  # type: ignore[no-untyped-call]
    closed = [stub.EmbedStream(timeout=20) for _ in range(5)]
    for call in closed:
        await call.done_writing()
    assert [await call.read() for call in closed] == [grpc.aio.EOF] * 5
    left = [stub.EmbedStream(timeout=20) for _ in range(5)]
    for call in left:
        for n in range(20):
            await call.write(tei.EmbedRequest(inputs=f"text {n}"))
        call.cancel()
    await made.until(lambda queue: queue.in_flight == 0 and not any(level.entries for level in queue.levels))
    ranker = Client(channel, RANKER)
    with pytest.raises(errors.InvalidArgument):
        await ranker.call(ranker.rerank.RerankStream, iter([]))


async def test_a_stream_to_rank_says_which_of_its_texts_is_wrong(made: Rig, channel: grpc.aio.Channel) -> None:
    ranker = Client(channel, RANKER)
    asked = (tei.RerankStreamRequest(query="which", text=text) for text in ("one", "two", "three", "", "five"))
    with pytest.raises(errors.InvalidArgument) as caught:
        await ranker.call(ranker.rerank.RerankStream, asked)
    assert [violation.field for violation in caught.value.fields] == ["text[3]"]
