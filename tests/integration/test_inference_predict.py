"""Predict: the same answers as the calls of the single tasks, as tensors, in batches with them; bad tensors by their
fields."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from integration.inference_rig import DIGEST, Rig, rig, version_of
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.registry.v1 import registry_pb2
from modelmora_inference.dispatcher import UNKNOWN_IMAGE_TOKENS
from modelmora_inference.predict import packed
from modelmora_worker.engines.echo import vector

MODELS = {
    "acme/echo": {"fail_on_text": "spoilt", "max_input_tokens": 50},
    "acme/ranker": {"max_input_tokens": 50},
    "acme/sorter": {"labels": 4},
    "acme/reader": {},
    "acme/talker": {},
    "acme/seer": {"labels": 2, "max_batch_entries": 2},
}
RANKER, SORTER, READER, TALKER, SEER = (f"acme/{name}" for name in ("ranker", "sorter", "reader", "talker", "seer"))


@pytest.fixture
async def tasks(data_dir: Path) -> AsyncIterator[Rig]:
    async with rig(data_dir, MODELS) as made:
        made.resolver.task_types[version_of(RANKER)] = common_pb2.TASK_TYPE_RERANKING
        made.resolver.task_types[version_of(SORTER)] = common_pb2.TASK_TYPE_CLASSIFICATION
        made.resolver.task_types[version_of(READER)] = common_pb2.TASK_TYPE_QUESTION_ANSWERING
        made.resolver.task_types[version_of(TALKER)] = common_pb2.TASK_TYPE_TXT2TXT
        made.resolver.task_types[version_of(SEER)] = common_pb2.TASK_TYPE_CLASSIFICATION
        made.resolver.metadata[version_of(SEER)] = registry_pb2.ModelMetadata(modality="image", labels=["cat", "dog"])
        yield made


def texts_of(name: str, *texts: str) -> pb.NamedTensor:
    data = packed([text.encode() for text in texts])
    tensor = common_pb2.Tensor(data_type=common_pb2.DATA_TYPE_BYTES, shape=[len(texts)], data=data)
    return pb.NamedTensor(name=name, tensor=tensor)


async def predict(tasks: Rig, model: str, *inputs: pb.NamedTensor, **fields: Any) -> pb.PredictResponse:
    parameters = fields.pop("parameters", {})
    request = pb.PredictRequest(model=model, **{"inputs": inputs, **fields})
    request.parameters.update(parameters)
    answer: pb.PredictResponse = await tasks.stub.Predict(request, timeout=20)
    return answer


def floats(tensor: common_pb2.Tensor) -> list[float]:
    return list(struct.unpack(f"<{len(tensor.data) // 4}f", tensor.data))


def named(answer: pb.PredictResponse) -> dict[str, common_pb2.Tensor]:
    return {output.name: output.tensor for output in answer.outputs}


async def described(tasks: Rig, model: str) -> Sequence[pb.TensorDescription]:
    told: pb.DescribeModelResponse = await tasks.stub.DescribeModel(pb.DescribeModelRequest(model=model), timeout=30)
    return told.outputs


async def test_vectors_are_those_of_embed(tasks: Rig) -> None:
    texts = ["one", "another", "one more 東京"]
    embedded = await tasks.stub.Embed(
        pb.EmbedRequest(model="acme/echo", texts=texts, encoding=pb.VECTOR_ENCODING_BYTES), timeout=20
    )
    answer = await predict(tasks, "acme/echo", texts_of("texts", *texts))
    assert named(answer) == {"vectors": embedded.vectors}
    assert (answer.model_version, answer.digest) == (version_of("acme/echo"), DIGEST)
    assert answer.usage == embedded.usage
    assert answer.engine_profile == embedded.engine_profile
    assert answer.timings.total.ToNanoseconds() >= answer.timings.queue.ToNanoseconds() > 0
    short = named(
        await predict(tasks, "acme/echo", texts_of("texts", "x"), parameters={"dimensions": 3, "normalize": False})
    )
    assert list(short["vectors"].shape) == [1, 3]


async def test_calls_of_both_kinds_share_batches(tasks: Rig) -> None:
    async with tasks.lessor.loads_wait(version_of("acme/echo")):
        calls = [asyncio.ensure_future(tasks.right(f"e{n}")) for n in range(60)]
        calls += [asyncio.ensure_future(predict(tasks, "acme/echo", texts_of("texts", f"p{n}"))) for n in range(60)]
        await tasks.waiting(120)
    await asyncio.gather(*calls)
    assert (await tasks.worker.seen()).batches < 10


async def test_every_task_answers_with_the_tensors_that_describe_names(tasks: Rig) -> None:
    ranked = await predict(
        tasks, RANKER, texts_of("texts", "b", "a"), texts_of("query", "q"), parameters={"raw_scores": True}
    )
    scores = [vector(0, f"q\0 {text}", 2)[0] for text in "ba"]
    assert floats(named(ranked)["scores"]) == pytest.approx(scores, abs=1e-6)
    assert list(named(ranked)["scores"].shape) == [2]

    sorted_ = await predict(tasks, SORTER, texts_of("texts", "one", "two"), parameters={"raw_scores": True})
    wanted = [value for text in ("one", "two") for value in vector(0, text, 5)[:4]]
    assert floats(named(sorted_)["scores"]) == pytest.approx(wanted, abs=1e-6)
    assert list(named(sorted_)["scores"].shape) == [2, 4]
    assert list(sorted_.labels) == [f"label-{n}" for n in range(4)]

    asked = [texts_of("question", "who"), texts_of("context", "  🙂 daß it")]
    found = await predict(tasks, READER, *asked, parameters={"top_n": 2})
    assert [output.name for output in found.outputs] == ["answers", "scores", "starts", "ends"]
    outputs = named(found)
    assert outputs["answers"].data == packed(["🙂".encode(), "daß".encode()])
    assert struct.unpack("<2i", outputs["starts"].data) == (2, 4)
    assert struct.unpack("<2i", outputs["ends"].data) == (3, 7)
    assert floats(outputs["scores"]) == [1.0, 0.5]

    for model, answer in (("acme/echo", None), (RANKER, ranked), (SORTER, sorted_), (READER, found)):
        told = answer or await predict(tasks, model, texts_of("texts", "x"))
        for output, wants in zip(told.outputs, await described(tasks, model), strict=True):
            assert output.name == wants.name
            assert common_pb2.DataType.Name(output.tensor.data_type) == f"DATA_TYPE_{wants.datatype}"
            for size, want in zip(output.tensor.shape, wants.shape, strict=True):
                assert want in (-1, size)


async def test_only_the_outputs_that_are_asked_for_come_and_in_the_models_order(tasks: Rig) -> None:
    asked = [texts_of("question", "who"), texts_of("context", "Ada wrote it")]
    answer = await predict(tasks, READER, *asked, outputs=["scores", "answers"])
    assert [output.name for output in answer.outputs] == ["answers", "scores"]


async def test_a_task_that_nobody_here_does_is_refused_without_a_load(tasks: Rig) -> None:
    with pytest.raises(errors.TaskNotSupported):
        await predict(tasks, TALKER, texts_of("texts", "hello"))
    with pytest.raises(errors.ModelNotFound):
        await predict(tasks, "acme/nothing", texts_of("texts", "hello"))
    assert not tasks.lessor.launches


async def test_an_engines_error_names_the_element_of_the_tensor(tasks: Rig) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        await predict(tasks, "acme/echo", texts_of("texts", "fine", "spoilt"))
    assert [violation.field for violation in caught.value.fields] == ["inputs[0].tensor.data[1]"]
    with pytest.raises(errors.TextTooLong) as long:
        await predict(
            tasks, RANKER, texts_of("query", "q"), texts_of("texts", "x " * 60), parameters={"truncate": False}
        )
    assert [violation.field for violation in long.value.fields] == ["inputs[1].tensor.data[0]"]
    with pytest.raises(errors.InvalidArgument) as wide:
        await predict(tasks, "acme/echo", texts_of("texts", "x"), parameters={"dimensions": 9})
    assert [violation.field for violation in wide.value.fields] == ["parameters.dimensions"]


async def test_a_model_of_images_is_described_without_a_load_and_takes_nothing_else(tasks: Rig) -> None:
    told = await tasks.stub.DescribeModel(pb.DescribeModelRequest(model=SEER), timeout=30)
    assert [(one.name, one.datatype, list(one.shape)) for one in told.inputs] == [("images", "BYTES", [-1])]
    assert [(one.name, one.datatype, list(one.shape)) for one in told.outputs] == [("scores", "FP32", [-1, 2])]
    assert list(told.labels) == ["cat", "dog"]
    for call in (
        tasks.stub.Classify(pb.ClassifyRequest(model=SEER, texts=["a text"]), timeout=20),
        tasks.stub.Tokenize(pb.TokenizeRequest(model=SEER, texts=["a text"]), timeout=20),
    ):
        with pytest.raises(errors.TaskNotSupported, match="images"):
            await call
    with pytest.raises(errors.InvalidArgument) as caught:
        await predict(tasks, SEER, texts_of("texts", "a text"))
    assert [violation.field for violation in caught.value.fields] == ["inputs[0].name", "inputs"]
    assert not tasks.lessor.launches


async def test_an_image_counts_what_a_model_sees_of_it_and_not_what_its_file_weighs(tasks: Rig) -> None:
    images = texts_of("images", *("x" * size for size in (100_000, 10, 200_000)))
    async with tasks.lessor.loads_wait(version_of(SEER)):
        call = asyncio.ensure_future(predict(tasks, SEER, images))
        async with asyncio.timeout(20):
            while not (levels := (await tasks.stub.GetQueue(pb.GetQueueRequest(model=SEER))).queues[0].levels):
                pass
        (level,) = [level for level in levels if level.entries]
        assert (level.entries, level.tokens) == (3, 3 * UNKNOWN_IMAGE_TOKENS)
        assert level.bytes > 300_000
    answer = await call
    assert list(named(answer)["scores"].shape) == [3, 2]


CALLS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("no model", {"model": ""}, ["model"]),
    ("model of the wrong form", {"model": "x" * 401}, ["model"]),
    ("negative priority", {"priority": -1}, ["priority"]),
    ("unknown priority", {"priority": 15}, ["priority"]),
    ("unknown precision", {"precision": "int8"}, ["precision"]),
    ("unknown policy", {"cold_policy": 9}, ["cold_policy"]),
    ("long request id", {"request_id": "x" * 201}, ["request_id"]),
    ("no timeout", {"timeout": Duration()}, ["timeout"]),
    ("long timeout", {"timeout": Duration(seconds=601)}, ["timeout"]),
    ("fallback of the wrong form", {"fallback_model": "x" * 401}, ["fallback_model"]),
    ("outputs of another task", {"outputs": ["scores"]}, ["outputs[0]"]),
    ("parameters of another task", {"parameters": {"raw_scores": True}}, ["parameters.raw_scores"]),
]


async def test_bad_calls_are_refused_at_the_field_and_nothing_is_loaded(tasks: Rig) -> None:
    for name, fields, paths in CALLS:
        with pytest.raises(errors.InvalidArgument) as caught:
            await predict(tasks, **{"model": "acme/echo", **fields}, inputs=[texts_of("texts", "a")])
        assert [violation.field for violation in caught.value.fields] == paths, name
    torn = texts_of("texts", "a", "b")
    torn.tensor.data = torn.tensor.data[:-1]
    with pytest.raises(errors.InvalidArgument) as caught:
        await predict(tasks, "acme/echo", torn)
    assert [violation.field for violation in caught.value.fields] == ["inputs[0].tensor.data"]
    assert not tasks.lessor.launches
