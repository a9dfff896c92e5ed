"""Tensors of the SDK: values there and back, with numpy and without."""

from __future__ import annotations

import sys
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.tensors import named_tensors, tensor_of, value_of

PLAIN = ["?", "u1", "i1", "<i4", "<i8", "<f2", "<f4", "<f8", ">f4", ">i8"]


@given(st.sampled_from(PLAIN), arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), st.data())
def test_arrays_come_back_as_they_went(word: str, shape: tuple[int, ...], data: st.DataObject) -> None:
    value = data.draw(arrays.arrays(word, shape))
    tensor = tensor_of(value)
    back = value_of(tensor)
    assert back.dtype == value.dtype.newbyteorder("=")
    assert back.shape == value.shape
    numpy.testing.assert_array_equal(back, value)


@given(st.lists(st.one_of(st.text(), st.binary()), max_size=6))
def test_texts_and_bytes_come_back_as_bytes(values: list[Any]) -> None:
    wanted = [value.encode() if isinstance(value, str) else value for value in values]
    tensor = tensor_of(values)
    assert (tensor.data_type, list(tensor.shape)) == (common_pb2.DATA_TYPE_BYTES, [len(values)])
    assert value_of(tensor).tolist() == wanted


@given(st.sampled_from([word for word in PLAIN if word[0] != ">"]), st.data())
def test_without_numpy_lists_come_nested_like_the_shape(word: str, data: st.DataObject) -> None:
    value = data.draw(
        arrays.arrays(
            word, arrays.array_shapes(max_dims=3, max_side=3), elements={"allow_nan": False} if "f" in word else None
        )
    )
    tensor = tensor_of(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "numpy", None)
        assert value_of(tensor) == value.tolist()


def test_one_text_or_file_is_a_tensor_of_one() -> None:
    assert list(tensor_of("ü").shape) == [1]
    assert tensor_of("ü").data == b"\2\0\0\0\xc3\xbc"
    assert tensor_of(b"\xff").data == b"\1\0\0\0\xff"
    (named,) = named_tensors({"texts": numpy.array([["a"], ["bc"]])})
    assert (named.name, list(named.tensor.shape)) == ("texts", [2, 1])
    made = common_pb2.Tensor(data_type=common_pb2.DATA_TYPE_INT8, shape=[1], data=b"\1")
    assert tensor_of(made) is made


def test_bfloat16_comes_as_float32() -> None:
    tensor = common_pb2.Tensor(data_type=common_pb2.DATA_TYPE_BF16, shape=[2], data=b"\x80\x3f\x00\xc0")
    assert value_of(tensor).tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (1.5, "inputs.x"),
        ([1, 2], "inputs.x"),
        (None, "inputs.x"),
        (["a", 1], "inputs.x"),
        ("\ud800", "inputs.x[0]"),
        (numpy.array(["a", 1], dtype=object), "inputs.x[1]"),
        (numpy.array([1j]), "inputs.x"),
    ],
)
def test_what_is_no_tensor_is_refused_at_its_name(value: Any, path: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        named_tensors({"x": value})
    assert [violation.field for violation in caught.value.fields] == [path]


@pytest.mark.parametrize(
    "tensor",
    [
        common_pb2.Tensor(data_type=common_pb2.DATA_TYPE_FP32, shape=[2], data=bytes(4)),
        common_pb2.Tensor(data_type=common_pb2.DATA_TYPE_FP32, shape=[1], data=bytes(5)),
        common_pb2.Tensor(data_type=common_pb2.DATA_TYPE_BYTES, shape=[1], data=b"\5\0\0\0ab"),
        common_pb2.Tensor(data_type=common_pb2.DATA_TYPE_BYTES, shape=[2], data=b"\1\0\0\0a"),
        common_pb2.Tensor(data_type=common_pb2.DATA_TYPE_BYTES, shape=[1], data=b"\5\0"),
        common_pb2.Tensor(data_type=99, shape=[1], data=b"\5\0"),
    ],
)
@pytest.mark.parametrize("with_numpy", [True, False])
def test_a_tensor_that_contradicts_itself_is_refused(
    tensor: common_pb2.Tensor, with_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_numpy:
        monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(errors.InternalError):
        value_of(tensor)
