"""Predict: what the tensors of a call mean to the task of a version, and the rows of the answer as tensors. Pure.

`tensors_of` says what goes in and comes out; `read` holds a request against it, down to the last byte, and makes of it
what the workers are asked; `written` makes tensors of what they answered.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import struct_pb2
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.errors import FieldViolation
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.worker.v1 import worker_pb2

from modelmora_inference.checks import (
    DEFAULT_ANSWER_TOKENS,
    MAX_ANSWER_TOKENS,
    MAX_ANSWERS,
    MAX_PROMPT_NAME_CHARACTERS,
    MAX_VIOLATIONS,
    invalid,
    wrong_call,
    wrong_text,
)
from modelmora_inference.domain import MAX_TEXTS, VersionFacts
from modelmora_inference.tasks import floats

MAX_TENSORS = 64
"""Inputs or outputs of one call that are looked at, whatever the task."""
MAX_PARAMETERS = 64
DATA_TYPES = {
    number: name.removeprefix("DATA_TYPE_")
    for name, number in common_pb2.DataType.items()
    if not name.endswith("_UNSPECIFIED")
}
"""The words of tensor descriptions, by the number in tensors."""
_NUMBERS = {name: number for number, name in DATA_TYPES.items()}
ELEMENT_BYTES = {
    **dict.fromkeys(("BOOL", "UINT8", "INT8"), 1),
    **dict.fromkeys(("FP16", "BF16"), 2),
    **dict.fromkeys(("INT32", "FP32"), 4),
    **dict.fromkeys(("INT64", "FP64"), 8),
}
"""Of each element; BYTES has no fixed size."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a Predict call asks of a worker."""

    inputs: Sequence[str] | Sequence[worker_pb2.TextEntry]
    """Texts to embed, or the entries of another task."""
    element: str
    """Field of the request that an entry comes from; `[]`: one of several."""
    normalize: bool = True
    truncate: bool = True
    dimensions: int = 0
    prompt: str = ""
    contexts: Sequence[str] = ()
    """Where answers are looked for, of questions."""


def tensors_of(facts: VersionFacts, labels: int) -> tuple[list[pb.TensorDescription], list[pb.TensorDescription]]:
    """What one call of a version's task takes and gives; nothing for tasks that nobody here does."""

    def tensor(name: str, datatype: str, *shape: int) -> pb.TensorDescription:
        return pb.TensorDescription(name=name, datatype=datatype, shape=shape)

    texts = tensor("texts", "BYTES", -1)
    if facts.task_type == common_pb2.TASK_TYPE_TXT2EMBED:
        return [texts], [tensor("vectors", "FP32", -1, facts.embedding_dimensions or -1)]
    if facts.task_type == common_pb2.TASK_TYPE_RERANKING:
        return [tensor("query", "BYTES", 1), texts], [tensor("scores", "FP32", -1)]
    if facts.task_type == common_pb2.TASK_TYPE_CLASSIFICATION:
        scores = tensor("scores", "FP32", -1, labels or -1)
        if facts.takes_images:
            return [tensor("images", "BYTES", -1)], [scores]
        pairs = tensor("pairs", "BYTES", -1)
        pairs.optional = True
        return [texts, pairs], [scores]
    if facts.task_type == common_pb2.TASK_TYPE_QUESTION_ANSWERING:
        outputs = [("answers", "BYTES"), ("scores", "FP32"), ("starts", "INT32"), ("ends", "INT32")]
        return [tensor("question", "BYTES", 1), tensor("context", "BYTES", 1)], [tensor(*out, -1) for out in outputs]
    return [], []


def wrong_predict(request: pb.PredictRequest) -> list[FieldViolation]:
    """What is wrong with a request whatever the model does."""
    found = [] if request.model else [FieldViolation("model", "is required")]
    for field, most in (("inputs", MAX_TENSORS), ("outputs", MAX_TENSORS)):
        if len(getattr(request, field)) > most:
            found.append(FieldViolation(field, f"at most {most}, not {len(getattr(request, field))}"))
    return found + wrong_call(request)


def read(request: pb.PredictRequest, facts: VersionFacts, max_call_bytes: int, dimensions: int = 0) -> Asked:
    """What a call asks of the workers of this version, whose vectors have so many `dimensions` (0: nobody knows).

    Raises InvalidArgument with the path of each field that is wrong, TaskNotSupported where nobody does the task.
    """
    inputs, outputs = tensors_of(facts, 0)
    if not inputs:
        task = common_pb2.TaskType.Name(facts.task_type).removeprefix("TASK_TYPE_").lower()
        raise errors.TaskNotSupported(f"nothing here does {task}, the task of {facts.name}", model_version=facts.name)
    found = _wrong_outputs(request.outputs, [output.name for output in outputs])
    parameters = _Parameters(request.parameters, found)
    values, at = _elements(request.inputs, inputs, max_call_bytes, found)
    if facts.task_type == common_pb2.TASK_TYPE_TXT2EMBED:
        normalize, truncate = parameters.flag("normalize", True), parameters.flag("truncate", True)
        kept = parameters.count("dimensions", 0, dimensions or 2**31 - 1)
        prompt = parameters.word("prompt_name", MAX_PROMPT_NAME_CHARACTERS)
        texts = _texts(values, at, "texts", found)
        asked = Asked(texts, _path(at, "texts"), normalize, truncate, kept, prompt)
    elif facts.task_type == common_pb2.TASK_TYPE_QUESTION_ANSWERING:
        top_n = parameters.count("top_n", 1, MAX_ANSWERS)
        most = parameters.count("max_answer_tokens", DEFAULT_ANSWER_TOKENS, MAX_ANSWER_TOKENS)
        question, contexts = _texts(values, at, "question", found), _texts(values, at, "context", found)
        entries = [
            worker_pb2.TextEntry(text=one, pair=other, truncate=True, max_answers=top_n, max_answer_tokens=most)
            for one, other in zip(question, contexts, strict=False)
        ]
        asked = Asked(entries, _path(at, "question"), contexts=contexts)
    else:
        raw = parameters.flag("raw_scores", False)
        if facts.takes_images:
            entries = [worker_pb2.TextEntry(data=image, raw_scores=raw) for image in _images(values, at, found)]
            asked = Asked(entries, _path(at, "images"))
        else:
            truncate = parameters.flag("truncate", True)
            texts = _texts(values, at, "texts", found)
            if facts.task_type == common_pb2.TASK_TYPE_RERANKING:
                query = (_texts(values, at, "query", found) or [""])[0]
                if (size := _size(texts) + len(query.encode()) * len(texts)) > max_call_bytes:
                    wrong = f"{size} bytes, the query counted for each text; at most {max_call_bytes}"
                    found.append(FieldViolation(_path(at, "texts").removesuffix("[]"), wrong))
                entries = [
                    worker_pb2.TextEntry(text=query, pair=text, truncate=truncate, raw_scores=raw) for text in texts
                ]
            else:
                pairs = _texts(values, at, "pairs", found)
                if "pairs" in values and len(values["pairs"]) != len(values.get("texts", ())):
                    wrong = f"as many as texts, {len(values.get('texts', ()))}, not {len(values['pairs'])}"
                    found.append(FieldViolation(f"inputs[{at['pairs']}].tensor.shape[0]", wrong))
                entries = [
                    worker_pb2.TextEntry(text=text, pair=pair, truncate=truncate, raw_scores=raw)
                    for text, pair in zip(texts, pairs or [""] * len(texts), strict=False)
                ]
            asked = Asked(entries, _path(at, "texts"), truncate=truncate)
    parameters.refuse_others()
    if found:
        raise invalid(found[:MAX_VIOLATIONS])
    return asked


def written(
    asked: Asked, facts: VersionFacts, rows: Sequence[bytes], labels: Sequence[str], wanted: Sequence[str]
) -> list[pb.NamedTensor]:
    """The outputs, in the order of `tensors_of`; only the wanted ones, if any are named. Raises InternalError for rows
    that are not what the task gives."""
    widths = {len(row) // 4 for row in rows}
    outputs: dict[str, common_pb2.Tensor]
    if facts.task_type == common_pb2.TASK_TYPE_QUESTION_ANSWERING:
        outputs = _answers(rows[0], asked.contexts[0])
    else:
        if len(widths) != 1:
            raise errors.InternalError("the worker answered with rows of different lengths")
        width = widths.pop()
        shape = [len(rows), width]
        if facts.task_type == common_pb2.TASK_TYPE_RERANKING:
            shape.pop()
            if width != 1:
                raise errors.InternalError("the worker answered with more or less than one score for a text")
        elif facts.task_type == common_pb2.TASK_TYPE_CLASSIFICATION and width != len(labels):
            raise errors.InternalError(f"the worker answered with {width} scores for {len(labels)} labels")
        name = "vectors" if facts.task_type == common_pb2.TASK_TYPE_TXT2EMBED else "scores"
        outputs = {name: tensor_of("FP32", shape, b"".join(rows))}
    return [
        pb.NamedTensor(name=name, tensor=tensor) for name, tensor in outputs.items() if not wanted or name in wanted
    ]


def tensor_of(datatype: str, shape: Sequence[int], data: bytes) -> common_pb2.Tensor:
    return common_pb2.Tensor(data_type=_NUMBERS[datatype], shape=shape, data=data)  # type: ignore[arg-type]


def packed(elements: Sequence[bytes]) -> bytes:
    """Elements of a BYTES tensor as its data: each its length (4 bytes, little-endian) and itself."""
    return b"".join(part for one in elements for part in (struct.pack("<I", len(one)), one))


def unpacked(data: bytes, count: int) -> list[bytes]:
    """The elements of a BYTES tensor of so many. Raises ValueError, in words for people, where `data` holds others."""
    found: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        if len(found) == count:
            raise ValueError(f"{end - at} bytes after the last of {count} elements")
        if at + 4 > end:
            raise ValueError(f"element {len(found)} is cut off in its length")
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if size > end - at:
            raise ValueError(f"element {len(found)} is said to have {size} bytes, {end - at} are there")
        found.append(data[at : at + size])
        at += size
    if len(found) < count:
        raise ValueError(f"{len(found)} elements, the shape says {count}")
    return found


def wrong_tensor(tensor: common_pb2.Tensor, want: pb.TensorDescription, path: str) -> list[FieldViolation]:
    """Whether type, shape and size of a tensor agree with its description and with each other. Elements of BYTES are
    not looked at."""
    datatype = DATA_TYPES.get(tensor.data_type)
    if datatype != want.datatype:
        told = datatype or (f"type {tensor.data_type}" if tensor.data_type else "none")
        return [FieldViolation(f"{path}.data_type", f"must be {want.datatype}, not {told}")]
    shape = list(tensor.shape)
    if len(shape) != len(want.shape):
        word = "dimension" if len(want.shape) == 1 else "dimensions"
        return [FieldViolation(f"{path}.shape", f"must have {len(want.shape)} {word}, not {len(shape)}")]
    for index, (size, wanted) in enumerate(zip(shape, want.shape, strict=True)):
        if size < 0 or (wanted >= 0 and size != wanted):
            must = f"must be {wanted}" if wanted >= 0 else "must not be negative"
            return [FieldViolation(f"{path}.shape[{index}]", f"{must}, not {size}")]
    if datatype in ELEMENT_BYTES:
        size = math.prod(shape) * ELEMENT_BYTES[datatype]
        if size != len(tensor.data):
            wrong = f"{len(tensor.data)} bytes, {shape} of {datatype} have {size}"
            return [FieldViolation(f"{path}.data", wrong)]
    return []


class _Parameters:
    """The options of a call, each asked for by the task that takes it; what is wrong goes to a common list."""

    def __init__(self, given: struct_pb2.Struct, found: list[FieldViolation]) -> None:
        self._given = dict(given.fields)  # a map of messages would make what it is asked for
        self._found = found
        self._taken: list[str] = []

    def flag(self, name: str, default: bool) -> bool:
        value = self._take(name)
        if value is None or value.WhichOneof("kind") == "bool_value":
            return default if value is None else value.bool_value
        self._wrong(name, "true or false")
        return default

    def count(self, name: str, default: int, most: int) -> int:
        value = self._take(name)
        if value is None:
            return default
        number = value.number_value if value.WhichOneof("kind") == "number_value" else math.nan
        if 1 <= number <= most and number == int(number):
            return int(number)
        self._wrong(name, f"a whole number, 1 to {most}" if most < 2**31 - 1 else "a whole number, at least 1")
        return default

    def word(self, name: str, most: int) -> str:
        value = self._take(name)
        if value is None:
            return ""
        if value.WhichOneof("kind") == "string_value" and len(value.string_value) <= most:
            return str(value.string_value)
        self._wrong(name, f"a text of at most {most} characters")
        return ""

    def refuse_others(self) -> None:
        others = sorted(set(self._given) - set(self._taken))
        takes = f"the task takes {', '.join(self._taken)}"
        self._found += [FieldViolation(f"parameters.{name[:100]}", takes) for name in others[:MAX_VIOLATIONS]]

    def _take(self, name: str) -> Any:
        self._taken.append(name)
        return self._given.get(name)

    def _wrong(self, name: str, must: str) -> None:
        self._found.append(FieldViolation(f"parameters.{name}", must))


def _wrong_outputs(asked: Sequence[str], names: Sequence[str]) -> list[FieldViolation]:
    found = []
    for index, name in enumerate(asked):
        if name not in names:
            found.append(FieldViolation(f"outputs[{index}]", f"the task gives {', '.join(names)}, not {name[:100]!r}"))
        elif name in asked[:index]:
            found.append(FieldViolation(f"outputs[{index}]", f"{name} is asked for twice"))
    return found


def _elements(
    given: Sequence[pb.NamedTensor],
    wanted: Sequence[pb.TensorDescription],
    max_call_bytes: int,
    found: list[FieldViolation],
) -> tuple[Mapping[str, list[bytes]], Mapping[str, int]]:
    """The elements of each input by name, and where in the request it stands. All inputs are BYTES so far."""
    values: dict[str, list[bytes]] = {}
    at: dict[str, int] = {}
    by_name = {want.name: want for want in wanted}
    if (size := sum(len(named.tensor.data) for named in given)) > max_call_bytes:
        found.append(FieldViolation("inputs", f"{size} bytes in one call, at most {max_call_bytes}"))
        return values, at
    for index, named in enumerate(given):
        path = f"inputs[{index}]"
        want = by_name.get(named.name)
        if want is None:
            takes = ", ".join(by_name)
            found.append(FieldViolation(f"{path}.name", f"the task takes {takes}, not {named.name[:100]!r}"))
            continue
        if named.name in at:
            found.append(FieldViolation(f"{path}.name", f"{named.name} is there twice"))
            continue
        at[named.name] = index
        if wrong := wrong_tensor(named.tensor, want, f"{path}.tensor"):
            found += wrong
            continue
        count = math.prod(named.tensor.shape)
        if not 1 <= count <= MAX_TEXTS:
            found.append(FieldViolation(f"{path}.tensor.shape[0]", f"1 to {MAX_TEXTS} elements, not {count}"))
            continue
        try:
            values[named.name] = unpacked(named.tensor.data, count)
        except ValueError as error:
            found.append(FieldViolation(f"{path}.tensor.data", str(error)))
    if missing := [name for name, want in by_name.items() if name not in at and not want.optional]:
        found.append(FieldViolation("inputs", f"{' and '.join(missing)} missing"))
    return values, at


def _texts(
    values: Mapping[str, list[bytes]], at: Mapping[str, int], name: str, found: list[FieldViolation]
) -> list[str]:
    """The elements of one input as texts; what is wrong with them goes to `found`."""
    texts = []
    for path, element in _each(values, at, name):
        try:
            text = element.decode()
        except UnicodeDecodeError as error:
            wrong = [FieldViolation(path, f"is not UTF-8: {error.reason} at byte {error.start}")]
        else:
            wrong = wrong_text(path, text)
            texts.append(text)
        if wrong:
            found += wrong
            if len(found) >= MAX_VIOLATIONS:
                break
    return texts


def _images(values: Mapping[str, list[bytes]], at: Mapping[str, int], found: list[FieldViolation]) -> list[bytes]:
    """Image files; only the worker can look into them."""
    images = list(_each(values, at, "images"))
    found += [FieldViolation(path, "is empty") for path, image in images if not image][:MAX_VIOLATIONS]
    return [image for _, image in images]


def _each(values: Mapping[str, list[bytes]], at: Mapping[str, int], name: str) -> Iterator[tuple[str, bytes]]:
    path = _path(at, name)
    for index, element in enumerate(values.get(name, ())):
        yield path.replace("[]", f"[{index}]"), element


def _path(at: Mapping[str, int], name: str) -> str:
    """Of one element of an input."""
    return f"inputs[{at.get(name, 0)}].tensor.data[]"


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _answers(row: bytes, context: str) -> dict[str, common_pb2.Tensor]:
    values = floats(row)
    if len(values) % 3:
        raise errors.InternalError("the worker answered with half an answer")
    scores, starts, ends = values[0::3], [int(one) for one in values[1::3]], [int(one) for one in values[2::3]]
    count = len(scores)
    texts = [context[start:end].encode() for start, end in zip(starts, ends, strict=True)]
    whole: Callable[[Sequence[int]], bytes] = lambda numbers: struct.pack(f"<{count}i", *numbers)  # noqa: E731
    return {
        "answers": tensor_of("BYTES", [count], packed(texts)),
        "scores": tensor_of("FP32", [count], struct.pack(f"<{count}f", *scores)),
        "starts": tensor_of("INT32", [count], whole(starts)),
        "ends": tensor_of("INT32", [count], whole(ends)),
    }
