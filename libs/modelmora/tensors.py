"""Tensors of `predict` as Python values and back: arrays of numpy where that is there, else lists and bytes. Pure."""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2

if TYPE_CHECKING:
    import numpy
    import numpy.typing

    TensorLike: TypeAlias = (
        str | bytes | Sequence[str | bytes] | numpy.typing.NDArray[numpy.generic] | common_pb2.Tensor
    )
    """What may be given for a tensor: one text or file, several, an array of numpy, or the message itself."""

_NUMPY = {
    common_pb2.DATA_TYPE_BOOL: "?",
    common_pb2.DATA_TYPE_UINT8: "u1",
    common_pb2.DATA_TYPE_INT8: "i1",
    common_pb2.DATA_TYPE_INT32: "<i4",
    common_pb2.DATA_TYPE_INT64: "<i8",
    common_pb2.DATA_TYPE_FP16: "<f2",
    common_pb2.DATA_TYPE_FP32: "<f4",
    common_pb2.DATA_TYPE_FP64: "<f8",
}
"""What numpy calls them. It has no BF16: those come as float32."""
_ARRAYS = {
    common_pb2.DATA_TYPE_BOOL: "b",
    common_pb2.DATA_TYPE_UINT8: "B",
    common_pb2.DATA_TYPE_INT8: "b",
    common_pb2.DATA_TYPE_INT32: "i",
    common_pb2.DATA_TYPE_INT64: "q",
    common_pb2.DATA_TYPE_FP32: "f",
    common_pb2.DATA_TYPE_FP64: "d",
}
_BYTES = common_pb2.DATA_TYPE_BYTES


@dataclass(frozen=True)
class Prediction:
    """The answer to `predict`: the outputs by name, with what they cost and what made them."""

    message: inference_pb2.PredictResponse

    @cached_property
    def outputs(self) -> dict[str, Any]:
        """Arrays of numpy; BYTES as an array of `bytes` objects. Where numpy is absent lists, nested like the shape."""
        return {output.name: value_of(output.tensor) for output in self.message.outputs}

    def __getitem__(self, name: str) -> Any:
        return self.outputs[name]

    @property
    def labels(self) -> Sequence[str]:
        """Of a classifier, in the order of its scores."""
        return tuple(self.message.labels)

    @property
    def usage(self) -> common_pb2.TokenUsage:
        return self.message.usage

    @property
    def timings(self) -> common_pb2.Timings:
        return self.message.timings

    @property
    def model_version(self) -> str:
        """Resource name of the version that answered."""
        return self.message.model_version

    @property
    def engine_profile(self) -> common_pb2.EngineProfile:
        return self.message.engine_profile


def named_tensors(inputs: Mapping[str, TensorLike]) -> list[inference_pb2.NamedTensor]:
    """InvalidArgument at `inputs.<name>` for what is no tensor."""
    return [inference_pb2.NamedTensor(name=name, tensor=tensor_of(value, name)) for name, value in inputs.items()]


def tensor_of(value: Any, name: str = "") -> common_pb2.Tensor:
    """A text, a file's bytes, a list of them, or an array of numpy. InvalidArgument at `inputs.<name>` for another."""
    at = f"inputs.{name}"
    if isinstance(value, common_pb2.Tensor):
        return value
    if isinstance(value, str | bytes):
        return _bytes_of([value], [1], at)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return _of_array(value, at)
    if isinstance(value, list | tuple) and all(isinstance(one, str | bytes) for one in value):
        return _bytes_of(value, [len(value)], at)
    raise errors.InvalidArgument.at(
        at, f"is a text, bytes, a list of them, an array of numpy or a Tensor, not {type(value).__name__}"
    )


def value_of(tensor: common_pb2.Tensor) -> Any:
    """An array of numpy, which may be written to; where numpy is absent lists, nested like the shape. InternalError
    when the tensor contradicts itself."""
    shape, kind = tuple(tensor.shape), tensor.data_type
    try:
        if kind == _BYTES:
            flat: Any = _elements(tensor.data)
        elif kind == common_pb2.DATA_TYPE_BF16:
            flat = array("f", b"".join(b"\0\0" + tensor.data[at : at + 2] for at in range(0, len(tensor.data), 2)))
            if sys.byteorder == "big":
                flat.byteswap()
        else:
            flat = None
        try:
            import numpy
        except ImportError:
            return _nested(_plain(tensor) if flat is None else flat, shape)
        if flat is None:
            return numpy.frombuffer(tensor.data, dtype=_NUMPY[kind]).reshape(shape).astype(_NUMPY[kind].strip("<"))
        found = numpy.empty(len(flat), dtype=object if kind == _BYTES else "f4")
        found[:] = flat
        return found.reshape(shape)
    except (ValueError, KeyError, struct.error) as error:
        raise errors.InternalError(
            f"the server answered with a tensor of type {kind}, shape {shape} and {len(tensor.data)} bytes: {error}"
        ) from error


def _of_array(value: Any, at: str) -> common_pb2.Tensor:
    if value.dtype.kind in "OUS":
        return _bytes_of(value.ravel().tolist(), value.shape, at)
    # numpy's own word without the order of bytes: `f4`, `i8`, `b1`.
    plain = value.dtype.newbyteorder("<")
    for kind, word in _NUMPY.items():
        if plain.str.lstrip("<|=") == {"?": "b1"}.get(word, word.lstrip("<")):
            return common_pb2.Tensor(data_type=kind, shape=value.shape, data=value.astype(plain).tobytes())
    raise errors.InvalidArgument.at(at, f"there are no tensors of {value.dtype}")


def _bytes_of(elements: Sequence[Any], shape: Sequence[int], at: str) -> common_pb2.Tensor:
    parts = []
    for index, one in enumerate(elements):
        if not isinstance(one, str | bytes):
            raise errors.InvalidArgument.at(f"{at}[{index}]", f"is a text or bytes, not {type(one).__name__}")
        try:
            data = one.encode() if isinstance(one, str) else one
        except UnicodeEncodeError as error:
            raise errors.InvalidArgument.at(f"{at}[{index}]", str(error)) from None
        parts += [struct.pack("<I", len(data)), data]
    return common_pb2.Tensor(data_type=_BYTES, shape=shape, data=b"".join(parts))


def _elements(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at += 4 + size
        if at > len(data):
            raise ValueError("an element is cut off")
        found.append(data[at - size : at])
    return found


def _plain(tensor: common_pb2.Tensor) -> list[Any]:
    if tensor.data_type == common_pb2.DATA_TYPE_FP16:
        return [value for (value,) in struct.iter_unpack("<e", tensor.data)]
    values: array[Any] = array(_ARRAYS[tensor.data_type], tensor.data)
    if sys.byteorder == "big":
        values.byteswap()
    return [bool(value) for value in values] if tensor.data_type == common_pb2.DATA_TYPE_BOOL else values.tolist()


def _nested(flat: Any, shape: Sequence[int]) -> Any:
    flat = list(flat)
    if math.prod(shape) != len(flat):
        raise ValueError(f"{len(flat)} elements")
    for size in reversed(shape[1:]):
        flat = [flat[at : at + size] for at in range(0, len(flat), size)] if size else []
    return flat if shape else flat[0]
