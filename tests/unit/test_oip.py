"""The Open Inference Protocol in our words and back: what is asked, what is refused and where, how answers look."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora_inference.predict import packed
from modelmora_inference.protocols import oip
from modelmora_inference.protocols import oip_pb2 as foreign
from modelmora_inference.protocols.common import priority_of


class Endless:
    """The context of a call in a stream, which has no deadline."""

    def time_remaining(self) -> float | None:
        return None


class Unary:
    def time_remaining(self) -> float:
        return 30.0


def request(**fields: Any) -> foreign.ModelInferRequest:
    """A good one, with these fields of its JSON form put over it."""
    told = {
        "model_name": "acme/echo",
        "id": "one",
        "inputs": [
            {"name": "texts", "datatype": "BYTES", "shape": [2], "contents": {"bytes_contents": ["YQ==", "Yg=="]}}
        ],
    }
    return json_format.ParseDict({**told, **fields}, foreign.ModelInferRequest())


def one_input(**fields: Any) -> dict[str, Any]:
    told = {"name": "texts", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": ["YQ=="]}}
    return {"inputs": [{**told, **fields}]}


def test_a_request_becomes_one_of_ours() -> None:
    parameters = {
        "priority": {"uint64_param": 1},
        "timeout": {"int64_param": 1_500_000},
        "sequence_id": {"string_param": "s"},
        "sequence_start": {"bool_param": True},
        "triton_enable_empty_final_response": {"bool_param": True},
        "precision": {"string_param": "exact"},
        "cold_policy": {"string_param": "fail_fast"},
        "fallback_model": {"string_param": "acme/other"},
        "normalize": {"bool_param": False},
        "dimensions": {"int64_param": 3},
    }
    asked = oip.predict_request(
        request(model_version="v1", parameters=parameters, outputs=[{"name": "vectors"}]), Unary()
    )
    assert asked == pb.PredictRequest(
        model="acme/echo@v1",
        request_id="one",
        priority=common_pb2.PRIORITY_HIGH,
        timeout={"seconds": 1, "nanos": 500_000_000},
        precision="exact",
        cold_policy=pb.COLD_POLICY_FAIL_FAST,
        fallback_model="acme/other",
        outputs=["vectors"],
        parameters={"normalize": False, "dimensions": 3},
        inputs=[
            {
                "name": "texts",
                "tensor": {"data_type": common_pb2.DATA_TYPE_BYTES, "shape": [2], "data": packed([b"a", b"b"])},
            }
        ],
    )


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_raw_and_typed_contents_say_the_same(shape: list[int]) -> None:
    typed = oip.predict_request(
        request(inputs=[one_input()["inputs"][0] | {"shape": shape, "contents": {"bytes_contents": ["YQ==", "Yg=="]}}]),
        Unary(),
    )
    raw = request(inputs=[{"name": "texts", "datatype": "BYTES", "shape": shape}])
    raw.raw_input_contents.append(packed([b"a", b"b"]))
    assert oip.predict_request(raw, Unary()).inputs == typed.inputs
    assert list(typed.inputs[0].tensor.shape) == [2]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no model", {"model_name": ""}, "model_name"),
    ("two versions", {"model_name": "a/b@c", "model_version": "d"}, "model_version"),
    ("resource name and version", {"model_name": "models/a/b/versions/c", "model_version": "d"}, "model_version"),
    ("negative priority", {"parameters": {"priority": {"int64_param": -1}}}, "parameters.priority"),
    ("priority as text", {"parameters": {"priority": {"string_param": "1"}}}, "parameters.priority"),
    ("priority as a truth", {"parameters": {"priority": {"bool_param": True}}}, "parameters.priority"),
    ("negative timeout", {"parameters": {"timeout": {"int64_param": -1}}}, "parameters.timeout"),
    ("long timeout", {"parameters": {"timeout": {"int64_param": 600_000_001}}}, "parameters.timeout"),
    ("endless timeout", {"parameters": {"timeout": {"uint64_param": 2**64 - 1}}}, "parameters.timeout"),
    ("timeout in fractions", {"parameters": {"timeout": {"double_param": 1.5}}}, "parameters.timeout"),
    ("no value", {"parameters": {"normalize": {}}}, "parameters.normalize"),
    ("precision as a number", {"parameters": {"precision": {"int64_param": 1}}}, "parameters.precision"),
    ("unknown policy", {"parameters": {"cold_policy": {"string_param": "x"}}}, "parameters.cold_policy"),
    ("raw and typed", {"raw_input_contents": ["AQAAAGE="]}, "inputs[0].contents"),
    ("too many raw", {"raw_input_contents": ["", ""]}, "raw_input_contents"),
    ("raw without inputs", {"inputs": [], "raw_input_contents": [""]}, "raw_input_contents"),
    ("unknown datatype", one_input(datatype="STRING"), "inputs[0].datatype"),
    ("no datatype", one_input(datatype=""), "inputs[0].datatype"),
    (
        "a datatype that nothing takes",
        one_input(datatype="UINT16", contents={"uint_contents": [1]}),
        "inputs[0].datatype",
    ),
    ("halves typed", one_input(datatype="FP16", contents={"fp32_contents": [1]}), "inputs[0].datatype"),
    ("contents of another type", one_input(contents={"fp32_contents": [1]}), "inputs[0].contents.fp32_contents"),
    (
        "too large for its type",
        one_input(datatype="INT8", contents={"int_contents": [300]}),
        "inputs[0].contents.int_contents",
    ),
    (
        "shared memory",
        one_input(parameters={"shared_memory_region": {"string_param": "x"}}),
        "inputs[0].parameters.shared_memory_region",
    ),
    ("unknown parameter of a tensor", one_input(parameters={"x": {"bool_param": True}}), "inputs[0].parameters.x"),
    (
        "output into shared memory",
        {"outputs": [{"name": "vectors", "parameters": {"shared_memory_region": {"string_param": "x"}}}]},
        "outputs[0].parameters.shared_memory_region",
    ),
    (
        "no classes",
        {"outputs": [{"name": "scores", "parameters": {"classification": {"int64_param": 0}}}]},
        "outputs[0].parameters.classification",
    ),
    ("too many inputs", {"inputs": [{"name": str(n)} for n in range(65)]}, "inputs"),
    ("too many parameters", {"parameters": {str(n): {"bool_param": True} for n in range(65)}}, "parameters"),
    ("too many texts", one_input(contents={"bytes_contents": ["YQ=="] * 2049}), "inputs[0].contents.bytes_contents"),
    ("too many outputs", {"outputs": [{"name": str(n)} for n in range(65)]}, "outputs"),
]


@pytest.mark.parametrize(("fields", "path"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_is_wrong_is_named_where_it_is(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        oip.predict_request(request(**fields), Unary())
    assert [violation.field for violation in caught.value.fields] == [path]


def test_a_call_in_a_stream_has_a_time_of_its_own() -> None:
    assert oip.predict_request(request(), Endless()).timeout.seconds == 60
    assert not oip.predict_request(request(), Unary()).HasField("timeout")


def test_priorities_are_three() -> None:
    low, medium, high = common_pb2.PRIORITY_LOW, common_pb2.PRIORITY_MEDIUM, common_pb2.PRIORITY_HIGH
    found = [priority_of(number, "priority") for number in (0, 1, 2, 3, 4, 2**64 - 1)]
    assert found == [medium, high, medium, low, low, low]


@pytest.mark.parametrize(
    ("native", "raw", "typed"),
    [
        ("model", "model_name", "model_name"),
        ("request_id", "id", "id"),
        ("timeout", "parameters.timeout", "parameters.timeout"),
        ("precision", "parameters.precision", "parameters.precision"),
        ("parameters.dimensions", "parameters.dimensions", "parameters.dimensions"),
        ("outputs[1]", "outputs[1]", "outputs[1]"),
        ("inputs", "inputs", "inputs"),
        ("inputs[1].name", "inputs[1].name", "inputs[1].name"),
        ("inputs[1].tensor.data_type", "inputs[1].datatype", "inputs[1].datatype"),
        ("inputs[1].tensor.shape[0]", "inputs[1].shape[0]", "inputs[1].shape[0]"),
        ("inputs[1].tensor.data", "raw_input_contents[1]", "inputs[1].contents"),
        ("inputs[1].tensor.data[3]", "raw_input_contents[1][3]", "inputs[1].contents[3]"),
    ],
)
def test_errors_of_predict_name_the_fields_of_the_protocol(native: str, raw: str, typed: str) -> None:
    asked = foreign.ModelInferRequest()
    assert oip.path_in(asked)(native) == typed
    asked.raw_input_contents.append(b"")
    assert oip.path_in(asked)(native) == raw


def answer() -> pb.PredictResponse:
    made = pb.PredictResponse(
        model_version="models/acme/echo/versions/feature/x", digest="sha256:0", labels=["cat", "dog", "cow"]
    )
    scores = struct.pack("<6f", 0.25, 0.5, 0.25, 1, 3, 2)
    made.outputs.add(name="scores", tensor=common_pb2.Tensor(data_type="DATA_TYPE_FP32", shape=[2, 3], data=scores))
    made.outputs.add(
        name="starts", tensor=common_pb2.Tensor(data_type="DATA_TYPE_INT32", shape=[2], data=struct.pack("<2i", -1, 7))
    )
    made.outputs.add(
        name="answers", tensor=common_pb2.Tensor(data_type="DATA_TYPE_BYTES", shape=[1], data=packed([b"\xd0\xb6"]))
    )
    return made


def test_an_answer_goes_back_typed_when_asked_typed() -> None:
    found = oip.infer_response(request(), answer())
    assert (found.model_name, found.model_version, found.id) == ("acme/echo", "feature/x", "one")
    assert not found.raw_output_contents
    scores, starts, answers = found.outputs
    assert (scores.datatype, list(scores.shape)) == ("FP32", [2, 3])
    assert list(scores.contents.fp32_contents) == [0.25, 0.5, 0.25, 1, 3, 2]
    assert list(starts.contents.int_contents) == [-1, 7]
    assert list(answers.contents.bytes_contents) == ["ж".encode()]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("acme/other", "acme/echo"),
        ("acme/echo", "acme/echo"),
        ("acme/echo@live", "acme/echo@live"),
        ("models/acme/echo/versions/feature/x", "models/acme/echo/versions/feature/x"),
    ],
)
def test_an_answer_in_the_place_of_another_model_says_whose_it_is(asked: str, told: str) -> None:
    fallback = {"fallback_model": {"stringParam": "acme/echo"}}
    found = oip.infer_response(request(model_name=asked, parameters=fallback), answer())
    assert (found.model_name, found.model_version) == (told, "feature/x")


def test_an_answer_goes_back_raw_when_asked_raw_in_the_order_asked_for() -> None:
    asked = request(inputs=[{"name": "texts", "datatype": "BYTES", "shape": [1]}])
    asked.raw_input_contents.append(packed([b"a"]))
    asked.outputs.add(name="answers")
    asked.outputs.add(name="starts")
    asked.outputs.add(name="scores")
    found = oip.infer_response(asked, answer())
    assert [output.name for output in found.outputs] == ["answers", "starts", "scores"]
    assert not any(output.HasField("contents") for output in found.outputs)
    by_name = {output.name: output.tensor.data for output in answer().outputs}
    assert list(found.raw_output_contents) == [by_name["answers"], by_name["starts"], by_name["scores"]]


def test_classes_are_the_best_first() -> None:
    asked = request()
    asked.outputs.add(name="scores").parameters["classification"].int64_param = 2
    scores = next(output for output in oip.infer_response(asked, answer()).outputs if output.name == "scores")
    assert (scores.datatype, list(scores.shape)) == ("BYTES", [2, 2])
    assert [one.decode() for one in scores.contents.bytes_contents] == [
        "0.500000:1:dog",
        "0.250000:0:cat",
        "3.000000:1:dog",
        "2.000000:2:cow",
    ]
    asked.outputs[0].parameters["classification"].int64_param = 9
    assert list(oip.infer_response(asked, answer()).outputs[0].shape) == [2, 3]


def test_classes_of_texts_are_refused() -> None:
    asked = request()
    asked.outputs.add(name="answers").parameters["classification"].int64_param = 2
    with pytest.raises(errors.InvalidArgument):
        oip.infer_response(asked, answer())


_CODES = {"BOOL": "?", "UINT8": "B", "INT8": "b", "INT32": "i", "INT64": "q", "FP32": "f", "FP64": "d"}


@settings(max_examples=60)
@given(st.data(), st.sampled_from(sorted(_CODES)))
def test_typed_numbers_lie_as_raw_ones_do(data: Any, datatype: str) -> None:
    field, _ = oip._TYPED[datatype]
    elements = {
        "BOOL": st.booleans(),
        "UINT8": st.integers(0, 255),
        "INT8": st.integers(-128, 127),
        "INT32": st.integers(-(2**31), 2**31 - 1),
        "INT64": st.integers(-(2**63), 2**63 - 1),
        "FP32": st.floats(width=32),
        "FP64": st.floats(),
    }
    values = data.draw(st.lists(elements[datatype], max_size=20))
    tensor = foreign.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=[len(values)])
    getattr(tensor.contents, field).extend(values)
    assert oip._typed(tensor, "x") == struct.pack(f"<{len(values)}{_CODES[datatype]}", *values)
    _, code = oip._TYPED[datatype]
    assert oip._typed(tensor, "x") == struct.pack(
        f"<{len(values)}{_CODES[datatype]}", *oip._numbers(code, oip._typed(tensor, "x"))
    )
