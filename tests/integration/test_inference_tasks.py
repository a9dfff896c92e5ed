"""Rerank and Classify: right answers, bad requests by their fields, and no trace afterwards."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from integration.inference_rig import DIGEST, Rig, rig, version_of
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora_worker.engines.echo import vector

MODELS = {
    "acme/echo": {},
    "acme/ranker": {"micro_batch_entries": 4, "fail_on_text": "spoilt", "max_input_tokens": 50},
    "acme/sorter": {"labels": 4, "max_input_tokens": 50},
    "acme/reader": {},
}
RANKER, SORTER, READER = "acme/ranker", "acme/sorter", "acme/reader"


@pytest.fixture
async def tasks(data_dir: Path) -> AsyncIterator[Rig]:
    async with rig(data_dir, MODELS) as made:
        made.resolver.task_types[version_of(RANKER)] = common_pb2.TASK_TYPE_RERANKING
        made.resolver.task_types[version_of(SORTER)] = common_pb2.TASK_TYPE_CLASSIFICATION
        made.resolver.task_types[version_of(READER)] = common_pb2.TASK_TYPE_QUESTION_ANSWERING
        yield made


async def rerank(tasks: Rig, query: str, *texts: str, within: float = 60.0, **fields: Any) -> pb.RerankResponse:
    request = pb.RerankRequest(**{"model": RANKER, "query": query, "texts": texts, **fields})
    answer: pb.RerankResponse = await tasks.stub.Rerank(request, timeout=within)
    return answer


async def classify(tasks: Rig, *texts: str, **fields: Any) -> pb.ClassifyResponse:
    request = pb.ClassifyRequest(**{"model": SORTER, "texts": texts, **fields})
    answer: pb.ClassifyResponse = await tasks.stub.Classify(request, timeout=20)
    return answer


def score(query: str, text: str) -> float:
    return vector(0, f"{query}\0 {text}", 2)[0]


async def test_what_an_engine_said_of_a_model_is_known_when_its_lease_is_given_back(data_dir: Path) -> None:
    async with rig(data_dir, {SORTER: {"labels": 4, "max_input_tokens": 50}}, idle_keep_seconds=0.1) as made:
        made.resolver.task_types[version_of(SORTER)] = common_pb2.TASK_TYPE_CLASSIFICATION
        await classify(made, "text")
        lease = await made.lessor.lease(0)
        await asyncio.wait_for(lease.closed.wait(), 60)
        async with asyncio.timeout(60):
            while True:
                told = await made.stub.DescribeModel(pb.DescribeModelRequest(model=SORTER), timeout=30)
                if not told.replicas:
                    break
        assert (told.max_input_tokens, len(told.labels)) == (50, 4)


async def test_texts_come_back_best_first_with_the_score_of_their_own_pair(tasks: Rig) -> None:
    texts = [f"text number {n}" for n in range(300)]
    answer = await rerank(tasks, "which one", *texts, raw_scores=True)
    assert sorted(rank.index for rank in answer.ranked) == list(range(300))
    found = [rank.score for rank in answer.ranked]
    assert found == sorted(found, reverse=True)
    for rank in answer.ranked:
        assert rank.score == pytest.approx(score("which one", texts[rank.index]), abs=1e-6)
        assert rank.input_tokens == 5
        assert not rank.HasField("text")
    assert (answer.model_version, answer.digest) == (version_of(RANKER), DIGEST)
    assert answer.engine_profile.backend == "echo"
    assert answer.usage.input_tokens == 300 * 5
    assert answer.timings.total.ToNanoseconds() >= answer.timings.queue.ToNanoseconds() > 0


async def test_scores_are_between_0_and_1_unless_asked_for_raw_and_only_the_best_come(tasks: Rig) -> None:
    texts = [f"text number {n}" for n in range(20)]
    raw = await rerank(tasks, "q", *texts, raw_scores=True, return_texts=True)
    best = await rerank(tasks, "q", *texts, top_n=3, return_texts=True)
    assert [rank.index for rank in best.ranked] == [rank.index for rank in raw.ranked][:3]
    for rank, other in zip(best.ranked, raw.ranked, strict=False):
        assert rank.score == pytest.approx(1 / (1 + math.exp(-other.score)), abs=1e-6)
        assert rank.text == texts[rank.index]


async def test_equal_scores_keep_the_order_of_the_texts(tasks: Rig) -> None:
    answer = await rerank(tasks, "q", *["the same"] * 30)
    assert [rank.index for rank in answer.ranked] == list(range(30))


async def test_each_text_gets_the_labels_of_the_model(tasks: Rig) -> None:
    answer = await classify(tasks, "one", "another one", raw_scores=True)
    for text, found in zip(("one", "another one"), answer.classifications, strict=True):
        want = vector(0, text, 5)[:4]
        assert {label.index: label.label for label in found.labels} == {n: f"label-{n}" for n in range(4)}
        assert [label.index for label in found.labels] == sorted(range(4), key=lambda n: -want[n])
        assert [label.score for label in found.labels] == pytest.approx(sorted(want, reverse=True), abs=1e-6)
    paired = await classify(tasks, "one", pairs=["other"], top_n=1, raw_scores=True)
    assert paired.classifications[0].labels[0].score == pytest.approx(max(vector(0, "one\0 other", 5)[:4]), abs=1e-6)
    assert len(paired.classifications[0].labels) == 1


async def test_calls_of_many_callers_share_batches(tasks: Rig) -> None:
    await rerank(tasks, "q", "warm")
    answers = await asyncio.gather(*(rerank(tasks, f"q{n}", f"a{n}", f"b{n}", raw_scores=True) for n in range(100)))
    for n, answer in enumerate(answers):
        for rank in answer.ranked:
            assert rank.score == pytest.approx(score(f"q{n}", f"{'ab'[rank.index]}{n}"), abs=1e-6)
    watched = [reply async for reply in _watch(tasks, RANKER)]
    assert watched[0].batches < 150, "201 pairs in 101 calls"


async def _watch(tasks: Rig, model: str) -> AsyncIterator[Any]:
    async for reply in tasks.lessor.loaded[version_of(model)].control.watch(1.0):
        yield reply
        return


async def test_an_engines_error_names_the_text_and_fails_this_call_alone(tasks: Rig) -> None:
    bad, good = await asyncio.gather(
        rerank(tasks, "q", "fine", "spoilt", "fine too"), rerank(tasks, "q", "good"), return_exceptions=True
    )
    assert isinstance(bad, errors.InvalidArgument)
    assert [violation.field for violation in bad.fields] == ["texts[1]"]
    assert isinstance(good, pb.RerankResponse)
    with pytest.raises(errors.TextTooLong) as caught:
        await rerank(tasks, "q", "fine", "long " * 60, truncate=False)
    assert [violation.field for violation in caught.value.fields] == ["texts[1]"]
    answer = await rerank(tasks, "q", "long " * 60)
    assert (answer.ranked[0].truncated, answer.ranked[0].input_tokens) == (True, 50)


async def test_a_model_of_another_task_is_refused_by_name(tasks: Rig) -> None:
    for call in (
        rerank(tasks, "q", "text", model="acme/echo"),
        rerank(tasks, "q", "text", model=SORTER),
        classify(tasks, "text", model=RANKER),
        tasks.embed("text", model=RANKER),
        rerank(tasks, "q", "text", fallback_model="acme/echo"),
    ):
        with pytest.raises(errors.TaskNotSupported):
            await call
    with pytest.raises(errors.ModelNotFound):
        await rerank(tasks, "q", "text", model="acme/nothing")


async def answer(tasks: Rig, **fields: Any) -> pb.AnswerQuestionResponse:
    request = pb.AnswerQuestionRequest(**{"model": READER, "question": "who", "context": "Ada wrote it", **fields})
    found: pb.AnswerQuestionResponse = await tasks.stub.AnswerQuestion(request, timeout=20)
    return found


async def tokenize(tasks: Rig, *texts: str, **fields: Any) -> pb.TokenizeResponse:
    request = pb.TokenizeRequest(**{"model": "acme/echo", "texts": texts, **fields})
    found: pb.TokenizeResponse = await tasks.stub.Tokenize(request, timeout=20)
    return found


async def test_answers_come_with_their_place_in_the_context(tasks: Rig) -> None:
    told = await answer(tasks, context="  🙂 daß it", top_n=2)
    assert [(one.text, one.start, one.end, one.score) for one in told.answers] == [
        ("🙂", 2, 3, 1.0),
        ("daß", 4, 7, 0.5),
    ]
    assert len((await answer(tasks)).answers) == 1
    assert told.usage.input_tokens == 4


async def test_every_model_tokenises_whatever_it_does(tasks: Rig) -> None:
    for model in ("acme/echo", RANKER, SORTER):
        told = await tokenize(tasks, "daß 東京  it", "b", model=model)
        assert [[(one.start, one.end, one.special) for one in text.tokens] for text in told.texts] == [
            [(0, 3, False), (4, 6, False), (8, 10, False)],
            [(0, 1, False)],
        ]
        assert told.usage.input_tokens == 4
        assert told.model_version == version_of(model)
    await asyncio.gather(tasks.right("embedded beside it"), tokenize(tasks, "one"), tasks.right("and another"))


async def test_a_model_is_described_without_loading_it_and_with_its_labels_once_it_has_answered(tasks: Rig) -> None:
    async def describe(model: str) -> pb.DescribeModelResponse:
        told: pb.DescribeModelResponse = await tasks.stub.DescribeModel(
            pb.DescribeModelRequest(model=model), timeout=30
        )
        return told

    cold = await describe(SORTER)
    assert (cold.task_type, cold.replicas, list(cold.labels)) == (common_pb2.TASK_TYPE_CLASSIFICATION, 0, [])
    assert [list(one.shape) for one in cold.outputs] == [[-1, -1]]
    assert not tasks.lessor.launches
    await classify(tasks, "text")
    told = await describe(SORTER)
    assert list(told.labels) == [f"label-{n}" for n in range(4)]
    assert [list(one.shape) for one in told.outputs] == [[-1, 4]]
    assert (told.max_input_tokens, told.replicas) == (50, 1)
    assert [(one.name, one.datatype) for one in (await describe(READER)).inputs] == [
        ("question", "BYTES"),
        ("context", "BYTES"),
    ]
    with pytest.raises(errors.ModelNotFound):
        await describe("acme/nothing")
    with pytest.raises(errors.InvalidArgument) as caught:
        await describe("")
    assert [violation.field for violation in caught.value.fields] == ["model"]


BAD: list[tuple[str, dict[str, Any], list[str]]] = [
    ("no model", {"model": ""}, ["model"]),
    ("model of the wrong form", {"model": "x" * 401}, ["model"]),
    ("no texts", {"texts": []}, ["texts"]),
    ("too many texts", {"texts": ["x"] * 2049}, ["texts"]),
    ("empty text", {"texts": ["a", "b", ""]}, ["texts[2]"]),
    ("white space", {"texts": [" \t\n"]}, ["texts[0]"]),
    ("too long", {"texts": ["a", "x" * 100_001]}, ["texts[1]"]),
    ("too much in all", {"texts": ["ж" * 100_000] * 200}, ["texts"]),
    ("no best", {"top_n": 0}, ["top_n"]),
    ("negative best", {"top_n": -1}, ["top_n"]),
    ("several", {"texts": ["", "a", ""], "top_n": 0, "priority": -1}, ["texts[0]", "texts[2]", "top_n", "priority"]),
    ("unknown priority", {"priority": 15}, ["priority"]),
    ("unknown precision", {"precision": "int8"}, ["precision"]),
    ("unknown policy", {"cold_policy": 9}, ["cold_policy"]),
    ("long request id", {"request_id": "x" * 201}, ["request_id"]),
    ("no timeout", {"timeout": Duration()}, ["timeout"]),
    ("long timeout", {"timeout": Duration(seconds=600, nanos=1)}, ["timeout"]),
]
BAD_RERANK: list[tuple[str, dict[str, Any], list[str]]] = [
    ("no query", {"query": ""}, ["query"]),
    ("blank query", {"query": " \u2003"}, ["query"]),
    ("long query", {"query": "x" * 100_001}, ["query"]),
    ("the query for each text", {"query": "x" * 100_000, "texts": ["a"] * 2048}, ["texts"]),
]
BAD_CLASSIFY: list[tuple[str, dict[str, Any], list[str]]] = [
    ("too few pairs", {"texts": ["a", "b"], "pairs": ["c"]}, ["pairs"]),
    ("too many pairs", {"pairs": ["c", "d"]}, ["pairs"]),
    ("an empty pair", {"texts": ["a", "b"], "pairs": ["c", ""]}, ["pairs[1]"]),
]


BAD_QUESTIONS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("no question", {"question": ""}, ["question"]),
    ("no context", {"context": " \n"}, ["context"]),
    ("long context", {"context": "x" * 100_001}, ["context"]),
    ("no answers", {"top_n": 0}, ["top_n"]),
    ("too many answers", {"top_n": 21}, ["top_n"]),
    ("empty answers", {"max_answer_tokens": 0}, ["max_answer_tokens"]),
    ("endless answers", {"max_answer_tokens": 2**31 - 1}, ["max_answer_tokens"]),
]


async def test_bad_requests_are_refused_at_the_field(tasks: Rig) -> None:
    for name, fields, paths in BAD + BAD_RERANK:
        with pytest.raises(errors.InvalidArgument) as caught:
            await rerank(tasks, **{"query": "a query", "texts": ["a text"], **fields})
        assert [violation.field for violation in caught.value.fields] == paths, f"rerank, {name}"
    for name, fields, paths in BAD + BAD_CLASSIFY:
        with pytest.raises(errors.InvalidArgument) as caught:
            await classify(tasks, **{"texts": ["a text"], **fields})
        assert [violation.field for violation in caught.value.fields] == paths, f"classify, {name}"
    for name, fields, paths in [
        *BAD_QUESTIONS,
        *(row for row in BAD if "texts" not in row[1] and "top_n" not in row[1]),
    ]:
        with pytest.raises(errors.InvalidArgument) as caught:
            await answer(tasks, **fields)
        assert [violation.field for violation in caught.value.fields] == paths, f"answer, {name}"
    for name, fields, paths in BAD:
        if not fields.keys() & {"top_n", "precision"}:
            with pytest.raises(errors.InvalidArgument) as caught:
                await tokenize(tasks, **{"texts": ["a text"], **fields})
            assert [violation.field for violation in caught.value.fields] == paths, f"tokenize, {name}"
    assert not tasks.lessor.launches
    queues = (await tasks.stub.GetQueue(pb.GetQueueRequest())).queues
    assert all(not level.entries for queue in queues for level in queue.levels)


async def test_a_call_that_hangs_up_leaves_nothing_in_the_queue(data_dir: Path) -> None:
    async with rig(data_dir, {RANKER: {"delay_seconds": 0.3, "micro_batch_entries": 1}}) as slow:
        slow.resolver.task_types[version_of(RANKER)] = common_pb2.TASK_TYPE_RERANKING
        calls = [asyncio.ensure_future(rerank(slow, "q", *[f"t{n}" for n in range(20)])) for _ in range(3)]
        request = pb.GetQueueRequest(model=RANKER)
        async with asyncio.timeout(60):
            while not (await slow.stub.GetQueue(request)).queues[0].in_flight:
                pass
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            while (queue := (await slow.stub.GetQueue(request)).queues[0]).in_flight or any(
                level.entries for level in queue.levels
            ):
                pass
        with pytest.raises(errors.DeadlineExceeded):
            await rerank(slow, "q", *[f"t{n}" for n in range(20)], within=0.2)
