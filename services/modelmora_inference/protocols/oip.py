"""The Open Inference Protocol in our words and back: a ModelInfer request as a PredictRequest, its answer as theirs.

Tensors come raw (`raw_input_contents`, one for each input) or typed (`contents` of each), never mixed, and go back the
way they came: raw when asked raw. What a model takes is judged by Predict, so only what belongs to the protocol is
judged here. A call changes nothing, so a client may send it again as often as it likes: `id` is echoed, not remembered.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb

from modelmora_inference.domain import MAX_TEXTS
from modelmora_inference.predict import MAX_PARAMETERS, MAX_TENSORS, packed, unpacked
from modelmora_inference.protocols import oip_pb2 as oip
from modelmora_inference.protocols.common import by_first_part, priority_of, set_timeout

PLATFORM = "modelmora"
FINAL = "triton_final_response"
MAX_TYPED_ELEMENTS = 1_000_000
"""Numbers in `contents` of one input; more go raw. Each is an object of its own here."""

_TYPED = {
    "BOOL": ("bool_contents", "b"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
}
"""Field of `contents` and the array code of its elements as they lie in raw contents; FP16 and BF16 are raw only."""
DATATYPES = frozenset({*_TYPED, "FP16", "BF16", "BYTES"})
_OURS_OF = {
    word: number
    for name, number in common_pb2.DataType.items()
    if (word := name.removeprefix("DATA_TYPE_")) in DATATYPES
}
_CONFIG_TYPES = {name: getattr(oip, "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}") for name in sorted(DATATYPES)}

_IGNORED = ("sequence_id", "sequence_start", "sequence_end", "triton_enable_empty_final_response")
"""Parameters that change nothing here: models have no state between calls, and every request has one answer."""
_COLD_POLICIES = {
    "wait": pb.COLD_POLICY_WAIT,
    "fail_fast": pb.COLD_POLICY_FAIL_FAST,
}
_INTEGERS = frozenset({"int64_param", "uint64_param"})


def reference(name: str, version: str, fields: tuple[str, str] = ("name", "version")) -> str:
    """The registry's reference: `org/repo`, or with a version or alias `org/repo@version`. Raises InvalidArgument."""
    if not name:
        raise errors.InvalidArgument.at(fields[0], "is required")
    if not version:
        return name
    if "@" in name or name.count("/") > 2:
        raise errors.InvalidArgument.at(fields[1], f"{name[:200]} names a version already")
    return f"{name}@{version}"


def version_of(resource_name: str) -> str:
    """The version in `models/{org}/{repo}/versions/{version}`, which may hold slashes itself."""
    return resource_name.partition("/versions/")[2]


def _model_of(name: str) -> str:
    """The `{org}/{repo}` in it."""
    return name.removeprefix("models/").partition("/versions/")[0]


def predict_request(request: oip.ModelInferRequest, context: Any) -> pb.PredictRequest:
    """What a ModelInfer call asks, as a native one. Raises InvalidArgument with the path of the foreign request."""
    asked = pb.PredictRequest(
        model=reference(request.model_name, request.model_version, ("model_name", "model_version")),
        request_id=request.id,
    )
    # What is looked at one by one is counted first: a message holds millions.
    for field, most in (("inputs", MAX_TENSORS), ("outputs", MAX_TENSORS), ("parameters", MAX_PARAMETERS)):
        if (count := len(getattr(request, field))) > most:
            raise errors.InvalidArgument.at(field, f"at most {most}, not {count}")
    _read_parameters(request.parameters, asked, context)
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise errors.InvalidArgument.at(
            "raw_input_contents", f"one for each of {len(request.inputs)} inputs, not {len(raw)}"
        )
    for index, tensor in enumerate(request.inputs):
        path = f"inputs[{index}]"
        for name in tensor.parameters:
            raise errors.InvalidArgument.at(f"{path}.parameters.{name[:100]}", _no_parameter(name))
        if tensor.datatype not in DATATYPES:
            raise errors.InvalidArgument.at(f"{path}.datatype", f"there is no datatype {tensor.datatype[:40]!r}")
        typed = tensor.contents.ByteSize() > 0
        if raw and typed:
            raise errors.InvalidArgument.at(f"{path}.contents", "not together with raw_input_contents in one message")
        asked.inputs.add(name=tensor.name, tensor=_tensor(tensor, raw[index] if raw else None, path))
    asked.outputs.extend(output.name for output in request.outputs)
    _classes(request)
    return asked


def infer_response(request: oip.ModelInferRequest, answer: pb.PredictResponse) -> oip.ModelInferResponse:
    """The answer of a Predict call, as asked: raw when its inputs were, with classes where those were asked for."""
    name, version = _model_of(answer.model_version), version_of(answer.model_version)
    if _model_of(request.model_name).partition("@")[0] == name or "fallback_model" not in request.parameters:
        name = request.model_name  # as it was asked for; else another model has answered in its place
    response = oip.ModelInferResponse(model_name=name, model_version=version, id=request.id)
    told = response.parameters
    told["digest"].string_param = answer.digest
    told["engine_profile"].string_param = f"{answer.engine_profile.backend}/{answer.engine_profile.precision}"
    told["input_tokens"].int64_param = answer.usage.input_tokens
    for name in ("queue", "tokenise", "compute", "total"):
        told[f"{name}_ns"].int64_param = getattr(answer.timings, name).ToNanoseconds()
    classes = _classes(request)
    raw = len(request.raw_input_contents) > 0
    # Clients look for outputs in the order in which they asked.
    order = {output.name: index for index, output in enumerate(request.outputs)}
    for output in sorted(answer.outputs, key=lambda one: order.get(one.name, 0)):
        tensor, datatype = output.tensor, common_pb2.DataType.Name(output.tensor.data_type).removeprefix("DATA_TYPE_")
        data, shape = tensor.data, list(tensor.shape)
        if output.name in classes:
            data, shape = _classified(data, shape, datatype, classes[output.name], answer.labels, output.name)
            datatype = "BYTES"
        added = response.outputs.add(name=output.name, datatype=datatype, shape=shape)
        if raw:
            response.raw_output_contents.append(data)
        elif datatype == "BYTES":
            added.contents.bytes_contents.extend(unpacked(data, _count(shape)))
        else:
            field, code = _TYPED[datatype]
            getattr(added.contents, field).extend(_numbers(code, data))
    return response


def path_in(request: oip.ModelInferRequest) -> Callable[[str], str]:
    """From the path of a field in Predict to that in this request."""
    data = "raw_input_contents[{}]" if request.raw_input_contents else "inputs[{}].contents"
    named = by_first_part(
        {"model": "model_name", "request_id": "id"}
        | {name: f"parameters.{name}" for name in ("priority", "timeout", *_OURS)}
    )

    def name_of(path: str) -> str:
        found = re.fullmatch(r"inputs\[(\d+)\]\.tensor\.(\w+)(.*)", path)
        if found is None:
            return named(path)
        index, field, rest = found.groups()
        names = {"data_type": f"inputs[{index}].datatype", "data": data.format(index)}
        return names.get(field, f"inputs[{index}].{field}") + rest

    return name_of


def metadata(name: str, described: pb.DescribeModelResponse) -> oip.ModelMetadataResponse:
    def told(tensors: Sequence[pb.TensorDescription]) -> list[oip.ModelMetadataResponse.TensorMetadata]:
        return [
            oip.ModelMetadataResponse.TensorMetadata(name=one.name, datatype=one.datatype, shape=one.shape)
            for one in tensors
        ]

    return oip.ModelMetadataResponse(
        name=name,
        versions=[version_of(described.model_version)],
        platform=PLATFORM,
        inputs=told(described.inputs),
        outputs=told(described.outputs),
    )


def config(name: str, described: pb.DescribeModelResponse) -> oip.ModelConfig:
    """As Triton's configuration. Batches are made of what is queued, whatever the shapes of calls are: `max_batch_size`
    is 0 and `dims` are whole shapes."""
    made = oip.ModelConfig(
        name=name,
        platform=PLATFORM,
        backend=PLATFORM,
        input=[
            oip.ModelInput(name=one.name, data_type=_CONFIG_TYPES[one.datatype], dims=one.shape, optional=one.optional)
            for one in described.inputs
        ],
        output=[
            oip.ModelOutput(name=one.name, data_type=_CONFIG_TYPES[one.datatype], dims=one.shape)
            for one in described.outputs
        ],
        model_transaction_policy=oip.ModelTransactionPolicy(decoupled=False),
    )
    batching = made.dynamic_batching
    batching.priority_levels, batching.default_priority_level = 3, 2
    batching.default_queue_policy.allow_timeout_override = True
    facts = {
        "task_type": common_pb2.TaskType.Name(described.task_type).removeprefix("TASK_TYPE_").lower(),
        "version": version_of(described.model_version),
        "digest": described.digest,
        "max_texts": described.max_texts,
        "max_text_characters": described.max_text_characters,
        "max_call_bytes": described.max_call_bytes,
        "max_input_tokens": described.max_input_tokens,
        "embedding_dimensions": described.embedding_dimensions,
        "labels": "\n".join(described.labels),
    }
    for key, value in facts.items():
        if value:
            made.parameters[key].string_value = str(value)
    return made


# Parameters.

_OURS = ("precision", "cold_policy", "fallback_model")


def _read_parameters(parameters: Mapping[str, oip.InferParameter], asked: pb.PredictRequest, context: Any) -> None:
    """Triton's own, those that every native call has, and the rest as options of the task."""
    options: dict[str, bool | float | str] = {}
    microseconds = 0
    for name, parameter in parameters.items():
        kind, path = parameter.WhichOneof("parameter_choice"), f"parameters.{name[:100]}"
        if kind is None:
            raise errors.InvalidArgument.at(path, "has no value")
        value = getattr(parameter, kind)
        if name in ("priority", "timeout"):
            if kind not in _INTEGERS:
                raise errors.InvalidArgument.at(path, "must be an integer")
            if name == "priority":
                asked.priority = priority_of(value, path)
            else:
                microseconds = value
        elif name in _OURS:
            if kind != "string_param":
                raise errors.InvalidArgument.at(path, "must be a string")
            if name != "cold_policy":
                setattr(asked, name, value)
            elif value in _COLD_POLICIES:
                asked.cold_policy = _COLD_POLICIES[value]
            else:
                raise errors.InvalidArgument.at(path, f"{' or '.join(_COLD_POLICIES)}, not {value[:40]!r}")
        elif name not in _IGNORED:
            options[name] = value
    set_timeout(asked, context, microseconds, "parameters.timeout")
    if options:
        asked.parameters.update(options)


def _no_parameter(name: str) -> str:
    if name.startswith("shared_memory"):
        return "shared memory is not offered: send the tensor in the message"
    return "there is no such parameter of a tensor"


def _classes(request: oip.ModelInferRequest) -> dict[str, int]:
    """How many classes of which output are wanted. Raises InvalidArgument for parameters that outputs do not have."""
    wanted = {}
    for index, output in enumerate(request.outputs):
        for name, parameter in output.parameters.items():
            path, kind = f"outputs[{index}].parameters.{name[:100]}", parameter.WhichOneof("parameter_choice")
            if name != "classification":
                raise errors.InvalidArgument.at(path, _no_parameter(name))
            value = getattr(parameter, kind) if kind in _INTEGERS else 0
            if not 1 <= value <= 2**31 - 1:
                raise errors.InvalidArgument.at(path, "a number of classes, 1 to 2147483647")
            wanted[output.name] = value
    return wanted


# Tensors.


def _tensor(tensor: Any, raw: bytes | None, path: str) -> common_pb2.Tensor:
    """An input as ours. A column of BYTES, [n, 1], is a row of them, [n]."""
    shape = list(tensor.shape)
    if tensor.datatype == "BYTES" and len(shape) == 2 and shape[1] == 1:
        shape.pop()
    data = raw if raw is not None else _typed(tensor, path)
    number: Any = _OURS_OF.get(tensor.datatype)
    if number is None:
        raise errors.InvalidArgument.at(f"{path}.datatype", f"no model here takes {tensor.datatype}")
    return common_pb2.Tensor(data_type=number, shape=shape, data=data)


def _typed(tensor: Any, path: str) -> bytes:
    """The elements of `contents` as they would lie in raw contents."""
    field, code = _TYPED.get(tensor.datatype, ("bytes_contents", ""))
    if not code and tensor.datatype != "BYTES":
        raise errors.InvalidArgument.at(f"{path}.datatype", f"{tensor.datatype} goes as raw_input_contents only")
    for other, values in tensor.contents.ListFields():
        if other.name != field and len(values):
            wrong = f"elements of {tensor.datatype} stand in {field}"
            raise errors.InvalidArgument.at(f"{path}.contents.{other.name}", wrong)
    elements = getattr(tensor.contents, field)
    if len(elements) > (most := MAX_TYPED_ELEMENTS if code else MAX_TEXTS):
        raise errors.InvalidArgument.at(f"{path}.contents.{field}", f"at most {most} elements, not {len(elements)}")
    if not code:
        return packed(elements)
    try:
        values = array(code, elements)
    except OverflowError:
        wrong = f"an element does not fit into {tensor.datatype}"
        raise errors.InvalidArgument.at(f"{path}.contents.{field}", wrong) from None
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _numbers(code: str, data: bytes) -> list[Any]:
    values = array(code, data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _classified(
    data: bytes, shape: Sequence[int], datatype: str, most: int, labels: Sequence[str], name: str
) -> tuple[bytes, list[int]]:
    """Triton's classification: of each row the best elements as `score:index:label`, without a label where there is
    none."""
    if datatype != "FP32" or not shape:
        raise errors.InvalidArgument.at("outputs", f"{name} is {datatype}: it has no classes")
    width = shape[-1]
    scores = _numbers("f", data)
    elements = []
    for start in range(0, len(scores), width or 1):
        row = scores[start : start + width]
        best = sorted(range(width), key=lambda index: (-row[index], index))[:most]
        for index in best:
            label = f":{labels[index]}" if len(labels) == width else ""
            elements.append(f"{row[index]:f}:{index}{label}".encode())
    return packed(elements), [*shape[:-1], min(most, width)]
