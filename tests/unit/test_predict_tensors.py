"""What Predict makes of tensors: the bad ones are refused at their fields, whatever bytes they hold."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora_inference.domain import VersionFacts
from modelmora_inference.predict import packed, read, tensors_of, unpacked, written, wrong_predict

BYTES, FP32, INT8 = common_pb2.DATA_TYPE_BYTES, common_pb2.DATA_TYPE_FP32, common_pb2.DATA_TYPE_INT8
MOST_BYTES = 20_000


def facts(task: str, **fields: Any) -> VersionFacts:
    return VersionFacts("models/a/b/versions/1", "sha256:0", common_pb2.TaskType.Value(f"TASK_TYPE_{task}"), **fields)


EMBEDS = facts("TXT2EMBED", embedding_dimensions=8)
RANKS = facts("RERANKING")
SORTS = facts("CLASSIFICATION")
SEES = facts("CLASSIFICATION", takes_images=True)
READS = facts("QUESTION_ANSWERING")
ALL = (EMBEDS, RANKS, SORTS, SEES, READS)


def named(name: str, *elements: bytes, shape: list[int] | None = None, **fields: Any) -> pb.NamedTensor:
    tensor = {"data_type": BYTES, "shape": [len(elements)] if shape is None else shape, "data": packed(elements)}
    return pb.NamedTensor(name=name, tensor=common_pb2.Tensor(**{**tensor, **fields}))


def request(*inputs: pb.NamedTensor, outputs: list[str] | None = None, **parameters: Any) -> pb.PredictRequest:
    made = pb.PredictRequest(model="m", inputs=inputs, outputs=outputs or ())
    made.parameters.update(parameters)
    return made


def fields_of(request: pb.PredictRequest, version: VersionFacts) -> list[str]:
    with pytest.raises(errors.InvalidArgument) as caught:
        read(request, version, MOST_BYTES, version.embedding_dimensions)
    return [violation.field for violation in caught.value.fields]


def element(tensor: int, index: int) -> str:
    return f"inputs[{tensor}].tensor.data[{index}]"


T = named("texts", b"a", b"b")
BAD: list[tuple[str, VersionFacts, pb.PredictRequest, list[str]]] = [
    ("nothing", EMBEDS, request(), ["inputs"]),
    ("a name that is not the task's", EMBEDS, request(named("text", b"a")), ["inputs[0].name", "inputs"]),
    ("another one beside it", EMBEDS, request(T, named("query", b"a")), ["inputs[1].name"]),
    ("no name", EMBEDS, request(named("", b"a")), ["inputs[0].name", "inputs"]),
    ("twice", EMBEDS, request(T, T), ["inputs[1].name"]),
    ("one of two", RANKS, request(T), ["inputs"]),
    ("no type", EMBEDS, request(named("texts", data_type=0)), ["inputs[0].tensor.data_type"]),
    ("a type from the future", EMBEDS, request(named("texts", data_type=77)), ["inputs[0].tensor.data_type"]),
    (
        "numbers",
        EMBEDS,
        request(named("texts", data_type=FP32, shape=[1], data=bytes(4))),
        ["inputs[0].tensor.data_type"],
    ),
    (
        "not even numbers",
        EMBEDS,
        request(named("texts", data_type=FP32, shape=[1], data=struct.pack("<f", math.nan))),
        ["inputs[0].tensor.data_type"],
    ),
    ("no tensor", EMBEDS, request(pb.NamedTensor(name="texts")), ["inputs[0].tensor.data_type"]),
    ("no shape", EMBEDS, request(named("texts", b"a", shape=[])), ["inputs[0].tensor.shape"]),
    ("a matrix", EMBEDS, request(named("texts", b"a", b"b", shape=[2, 1])), ["inputs[0].tensor.shape"]),
    ("a shape of thousands", EMBEDS, request(named("texts", b"a", shape=[1] * 5000)), ["inputs[0].tensor.shape"]),
    ("less than none", EMBEDS, request(named("texts", b"a", shape=[-1])), ["inputs[0].tensor.shape[0]"]),
    ("far less than none", EMBEDS, request(named("texts", shape=[-(2**63)])), ["inputs[0].tensor.shape[0]"]),
    ("none", EMBEDS, request(named("texts", shape=[0])), ["inputs[0].tensor.shape[0]"]),
    ("too many", EMBEDS, request(named("texts", *[b"a"] * 2049)), ["inputs[0].tensor.shape[0]"]),
    ("absurdly many", EMBEDS, request(named("texts", b"a", shape=[2**63 - 1])), ["inputs[0].tensor.shape[0]"]),
    ("fewer than told", EMBEDS, request(named("texts", b"a", shape=[2])), ["inputs[0].tensor.data"]),
    ("more than told", EMBEDS, request(named("texts", b"a", b"b", shape=[1])), ["inputs[0].tensor.data"]),
    ("cut off in a length", EMBEDS, request(named("texts", data=b"\1\0", shape=[1])), ["inputs[0].tensor.data"]),
    (
        "cut off in an element",
        EMBEDS,
        request(named("texts", data=b"\5\0\0\0ab", shape=[1])),
        ["inputs[0].tensor.data"],
    ),
    ("an absurd length", EMBEDS, request(named("texts", data=b"\xff" * 8, shape=[1])), ["inputs[0].tensor.data"]),
    ("no UTF-8", EMBEDS, request(named("texts", b"a", b"\xff\xfe")), [element(0, 1)]),
    ("half a character", EMBEDS, request(named("texts", "ü".encode()[:1])), [element(0, 0)]),
    ("a surrogate", EMBEDS, request(named("texts", b"\xed\xa0\x80")), [element(0, 0)]),
    ("empty texts", EMBEDS, request(named("texts", b"", b"a", b" \n")), [element(0, 0), element(0, 2)]),
    ("too much", EMBEDS, request(named("texts", b"x" * MOST_BYTES)), ["inputs"]),
    (
        "too much with the query",
        RANKS,
        request(named("texts", *[b"a"] * 600), named("query", b"x" * 40)),
        ["inputs[0].tensor.data"],
    ),
    ("two queries", RANKS, request(T, named("query", b"a", b"b")), ["inputs[1].tensor.shape[0]"]),
    ("an empty query", RANKS, request(T, named("query", b"")), [element(1, 0)]),
    ("fewer pairs", SORTS, request(T, named("pairs", b"c")), ["inputs[1].tensor.shape[0]"]),
    ("an empty pair", SORTS, request(named("pairs", b"c", b""), T), [element(0, 1)]),
    ("pairs alone", SORTS, request(named("pairs", b"c")), ["inputs", "inputs[0].tensor.shape[0]"]),
    ("texts for images", SEES, request(T), ["inputs[0].name", "inputs"]),
    ("empty images", SEES, request(named("images", b"", b"x", b"")), [element(0, 0), element(0, 2)]),
    ("images for texts", SORTS, request(named("images", b"x")), ["inputs[0].name", "inputs"]),
    (
        "two contexts",
        READS,
        request(named("question", b"a"), named("context", b"a", b"b")),
        ["inputs[1].tensor.shape[0]"],
    ),
    ("no context", READS, request(named("question", b"a")), ["inputs"]),
    ("a blank context", READS, request(named("question", b"a"), named("context", b"\t")), [element(1, 0)]),
    ("a prompt that is no name", EMBEDS, request(T, prompt_name=3), ["parameters.prompt_name"]),
    ("a prompt without end", EMBEDS, request(T, prompt_name="x" * 201), ["parameters.prompt_name"]),
    ("an option of no task", EMBEDS, request(T, colour="red"), ["parameters.colour"]),
    ("an option of another task", EMBEDS, request(T, raw_scores=True), ["parameters.raw_scores"]),
    ("an option for cutting images", SEES, request(named("images", b"x"), truncate=False), ["parameters.truncate"]),
    ("a text for a flag", EMBEDS, request(T, normalize="yes"), ["parameters.normalize"]),
    ("a number for a flag", EMBEDS, request(T, truncate=1), ["parameters.truncate"]),
    ("nothing for a flag", EMBEDS, request(T, truncate=None), ["parameters.truncate"]),
    ("no dimensions", EMBEDS, request(T, dimensions=0), ["parameters.dimensions"]),
    ("half a dimension", EMBEDS, request(T, dimensions=1.5), ["parameters.dimensions"]),
    ("negative dimensions", EMBEDS, request(T, dimensions=-3), ["parameters.dimensions"]),
    ("too many dimensions", EMBEDS, request(T, dimensions=9), ["parameters.dimensions"]),
    ("absurd dimensions", EMBEDS, request(T, dimensions=1e308), ["parameters.dimensions"]),
    ("no number", EMBEDS, request(T, dimensions=math.nan), ["parameters.dimensions"]),
    ("endless", EMBEDS, request(T, dimensions=math.inf), ["parameters.dimensions"]),
    ("a flag for a number", EMBEDS, request(T, dimensions=True), ["parameters.dimensions"]),
    (
        "too many answers",
        READS,
        request(named("question", b"a"), named("context", b"b"), top_n=21),
        ["parameters.top_n"],
    ),
    ("an output that is not the task's", EMBEDS, request(T, outputs=["scores"]), ["outputs[0]"]),
    ("an output twice", EMBEDS, request(T, outputs=["vectors", "vectors"]), ["outputs[1]"]),
    (
        "several",
        RANKS,
        request(named("texts", b""), outputs=["x"], y=1),
        ["outputs[0]", "inputs", element(0, 0), "parameters.y"],
    ),
]


@pytest.mark.parametrize(("version", "asked", "fields"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_tensors_are_refused_at_their_field(version: VersionFacts, asked: pb.PredictRequest, fields: list[str]):
    assert fields_of(asked, version) == fields


def test_what_no_task_takes_is_refused_before_the_model_is_known():
    many = pb.PredictRequest(
        inputs=[T] * 65, outputs=["x"] * 65, priority=-1, precision="int8", request_id="x" * 201, cold_policy=9
    )  # type: ignore[arg-type]
    assert [violation.field for violation in wrong_predict(many)] == [
        *("model", "inputs", "outputs", "priority", "cold_policy", "request_id", "precision")
    ]
    assert wrong_predict(request(T)) == []


def test_good_tensors_become_what_the_worker_is_asked():
    asked = read(request(T, normalize=False, truncate=False, dimensions=3, prompt_name="query"), EMBEDS, MOST_BYTES, 8)
    assert (list(asked.inputs), asked.normalize, asked.truncate, asked.dimensions) == (["a", "b"], False, False, 3)
    assert asked.prompt == "query"
    asked = read(request(named("query", b"q"), T, raw_scores=True, truncate=False), RANKS, MOST_BYTES)
    assert [(one.text, one.pair, one.raw_scores, one.truncate) for one in asked.inputs] == [
        ("q", "a", True, False),
        ("q", "b", True, False),
    ]
    asked = read(request(named("pairs", b"c", b"d"), T), SORTS, MOST_BYTES)
    assert [(one.text, one.pair) for one in asked.inputs] == [("a", "c"), ("b", "d")]
    asked = read(request(named("images", b"\xff\0", b"x")), SEES, MOST_BYTES)
    assert [(one.data, one.text) for one in asked.inputs] == [(b"\xff\0", ""), (b"x", "")]
    asked = read(request(named("question", b"q"), named("context", b"c"), top_n=4), READS, MOST_BYTES)
    assert [(one.text, one.pair, one.max_answers, one.max_answer_tokens) for one in asked.inputs] == [("q", "c", 4, 30)]


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_elements_come_back_as_they_went(elements: list[bytes]):
    assert unpacked(packed(elements), len(elements)) == elements


@given(st.binary(max_size=60), st.integers(0, 5))
def test_any_bytes_are_elements_or_refused(data: bytes, count: int):
    try:
        found = unpacked(data, count)
    except ValueError:
        return
    assert len(found) == count
    assert packed(found) == data


_tensors = st.builds(
    pb.NamedTensor,
    name=st.sampled_from(["texts", "query", "pairs", "images", "question", "context", "x"]),
    tensor=st.builds(
        common_pb2.Tensor,
        data_type=st.sampled_from([0, BYTES, BYTES, BYTES, INT8, 99]),
        shape=st.one_of(st.just([1]), st.just([2]), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)),
        data=st.one_of(
            st.lists(st.one_of(st.text().map(str.encode), st.binary()), max_size=3).map(packed), st.binary()
        ),
    ),
)


@given(st.sampled_from(ALL), st.lists(_tensors, max_size=4), st.dictionaries(st.text(max_size=9), st.booleans()))
def test_whatever_comes_is_read_or_refused_by_name(version, tensors, parameters):
    asked = request(*tensors, **parameters) if all(name != "outputs" for name in parameters) else request(*tensors)
    try:
        told = read(asked, version, MOST_BYTES, version.embedding_dimensions)
    except errors.InvalidArgument as error:
        refused = error
    else:
        assert told.inputs
        return
    assert refused.fields


def test_a_task_that_nobody_does_has_no_tensors():
    talks = facts("TXT2TXT")
    assert tensors_of(talks, 0) == ([], [])
    with pytest.raises(errors.TaskNotSupported):
        read(request(T), talks, MOST_BYTES)


@pytest.mark.parametrize(
    ("version", "rows", "labels"),
    [
        (EMBEDS, [bytes(8), bytes(4)], ()),
        (RANKS, [bytes(8), bytes(8)], ()),
        (SORTS, [bytes(8), bytes(8)], ("one",)),
        (READS, [bytes(8)], ()),
    ],
)
def test_rows_that_are_not_the_tasks_are_our_own_fault(version, rows, labels):
    inputs: dict[int, Callable[[], pb.PredictRequest]] = {
        READS.task_type: lambda: request(named("question", b"q"), named("context", b"c")),
        RANKS.task_type: lambda: request(T, named("query", b"q")),
    }
    asked = read(inputs.get(version.task_type, lambda: request(T))(), version, MOST_BYTES)
    with pytest.raises(errors.InternalError):
        written(asked, version, rows, labels, ())
