"""What a job has done with each of its inputs: one task of CreateInferenceJobRequest, cut into the calls that the
inputs would be by themselves, and their answers as results. Pure.

A job keeps its task in parts, each a message of the task's own kind: the options without inputs, and chunks that are
inputs alone. `JobTask` is options and one chunk put together again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.errors import FieldViolation
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.worker.v1 import worker_pb2

from modelmora_inference import predict, tasks
from modelmora_inference.checks import MAX_VIOLATIONS, wrong_task
from modelmora_inference.domain import VersionFacts

T = TypeVar("T", bound=Message)

MAX_INPUTS = 100
"""Of tasks whose inputs are more than a text."""
KINDS: dict[str, Any] = {
    "embed": pb.EmbedTask,
    "classify": pb.ClassifyTask,
    "rerank": pb.RerankTask,
    "answer_question": pb.AnswerQuestionTask,
    "predict": pb.PredictTask,
}
"""Fields of the oneof `task`, and their messages."""
_TASK_TYPES = {
    "embed": common_pb2.TASK_TYPE_TXT2EMBED,
    "classify": common_pb2.TASK_TYPE_CLASSIFICATION,
    "rerank": common_pb2.TASK_TYPE_RERANKING,
    "answer_question": common_pb2.TASK_TYPE_QUESTION_ANSWERING,
}


@dataclass(frozen=True, slots=True)
class Part:
    """What came back for the entries of one input."""

    rows: Sequence[bytes]
    input_tokens: Sequence[int]
    truncated: Sequence[int]


@dataclass(frozen=True, slots=True)
class JobInput:
    """One input, as what a worker is asked."""

    index: int
    """In the job."""
    entries: Sequence[str] | Sequence[worker_pb2.TextEntry]
    element: str
    """Where in the input an entry comes from, for its error; empty: it is the input."""
    result: Callable[[Part, Sequence[str]], pb.InferenceResult]
    """The outcome, of what came back and the labels of the model."""
    exact: bool = False
    truncate: bool = True
    normalize: bool = True
    dimensions: int = 0
    prompt: str = ""


def kind_of(request: pb.CreateInferenceJobRequest) -> str:
    """Empty: none is set."""
    return request.WhichOneof("task") or ""


def inputs_of(kind: str, task: Any) -> Any:
    """What stands for the inputs: one element each."""
    return task.texts if kind in ("embed", "classify") else task.inputs


def options_of(kind: str, task: Any) -> Any:
    """The task without its inputs."""
    options = KINDS[kind]()
    options.CopyFrom(task)
    for field in ("texts", "pairs") if kind == "classify" else ("texts",) if kind == "embed" else ("inputs",):
        options.ClearField(field)
    return options


def chunk_of(kind: str, task: Any, start: int, end: int) -> Any:
    """The inputs [start, end) alone."""
    if kind == "embed":
        return pb.EmbedTask(texts=task.texts[start:end])
    if kind == "classify":
        return pb.ClassifyTask(texts=task.texts[start:end], pairs=task.pairs[start:end])
    return KINDS[kind](inputs=task.inputs[start:end])


def weights_of(kind: str, task: Any) -> tuple[list[int], list[int]]:
    """Of each input: bytes, and about how many entries it is."""
    if kind == "embed":
        return [len(text.encode()) for text in task.texts], [1] * len(task.texts)
    if kind == "classify":
        pairs = task.pairs or [""] * len(task.texts)
        sizes = [len(text.encode()) + len(pair.encode()) for text, pair in zip(task.texts, pairs, strict=True)]
        return sizes, [1] * len(sizes)
    sizes = [one.ByteSize() for one in task.inputs]
    if kind == "rerank":
        return sizes, [len(one.texts) for one in task.inputs]
    if kind == "predict":
        # Of several tensors the largest has one element for each entry.
        return sizes, [max((max([*one.tensor.shape, 1]) for one in each.inputs), default=1) for each in task.inputs]
    return sizes, [1] * len(sizes)


def check_task(kind: str, facts: VersionFacts) -> None:
    """Raises TaskNotSupported where a version does something else."""
    wanted = _TASK_TYPES.get(kind)
    if wanted is not None and facts.task_type != wanted:
        raise wrong_task(facts, wanted)
    if kind == "classify" and facts.takes_images:
        raise errors.TaskNotSupported(f"{facts.name} takes images; a job that predicts does that")


def check_prompt(kind: str, task: Any, facts: VersionFacts, description: worker_pb2.EngineDescription | None) -> None:
    """Raises InvalidArgument for a prompt that the model does not have, where it is known which it has."""
    if description is None or facts.task_type != common_pb2.TASK_TYPE_TXT2EMBED:
        return
    name, path = task.prompt_name if kind == "embed" else "", "embed.prompt_name"
    if kind == "predict" and "prompt_name" in task.parameters:
        name, path = task.parameters["prompt_name"], "predict.parameters.prompt_name"
    if name and name not in description.prompts:
        there = ", ".join(sorted(description.prompts)) or "none"
        raise errors.InvalidArgument.at(path, f"there is no prompt {name!r}; there are {there}"[:500])


def wrong_inputs(kind: str, task: Any, model: str, max_call_bytes: int) -> list[FieldViolation]:
    """What is wrong with a task other than `embed`, whatever the model; what `predict` holds is looked at by
    `wrong_tensors` once it is known."""
    if kind == "classify":
        return _below(kind, tasks.wrong_classify(_classify(task, model), max_call_bytes))
    count = len(task.inputs)
    if not 1 <= count <= MAX_INPUTS:
        return [FieldViolation(f"{kind}.inputs", f"1 to {MAX_INPUTS} inputs, not {count}")]
    found: list[FieldViolation] = []
    size_bytes = 0
    for index, one in enumerate(task.inputs):
        size_bytes += one.ByteSize()
        if kind == "rerank":
            size_bytes += len(one.query.encode()) * max(0, len(one.texts) - 1)
            wrong = tasks.wrong_rerank(_rerank(task, one, model), max_call_bytes)
            found += _below(kind, wrong, index, ("query", "texts"))
        elif kind == "answer_question":
            wrong = tasks.wrong_question(_question(task, one, model), max_call_bytes)
            found += _below(kind, wrong, index, ("question", "context"))
        else:
            wrong = predict.wrong_predict(_predict(task, one, model))
            found += _below(kind, wrong, index, ("inputs",))
        if len(found) >= MAX_VIOLATIONS:
            break
    if size_bytes > max_call_bytes:
        found.append(FieldViolation(f"{kind}.inputs", f"{size_bytes} bytes in one job, at most {max_call_bytes}"))
    return _once(found)


def wrong_tensors(
    task: pb.PredictTask, facts: VersionFacts, max_call_bytes: int, dimensions: int
) -> list[FieldViolation]:
    """What is wrong with the tensors for this version, whose vectors have so many `dimensions` (0: nobody knows).
    Raises TaskNotSupported."""
    found: list[FieldViolation] = []
    for index, one in enumerate(task.inputs):
        try:
            predict.read(_predict(task, one, facts.name), facts, max_call_bytes, dimensions)
        except errors.InvalidArgument as error:
            found += _below("predict", error.fields, index, ("inputs",))
        if len(found) >= MAX_VIOLATIONS:
            break
    return _once(found)


def read(kind: str, options: bytes, payload: bytes, first: int, facts: VersionFacts) -> list[JobInput]:
    """The inputs of one chunk, which begins with the input `first`. They were checked when the job was made."""
    task = KINDS[kind].FromString(options)
    task.MergeFromString(payload)
    exact = task.precision == "exact"
    if kind == "embed":
        return [
            JobInput(
                first + n,
                [text],
                "",
                _embedded,
                exact,
                truncate=_flag(task, "truncate"),
                normalize=_flag(task, "normalize"),
                dimensions=task.dimensions,
                prompt=task.prompt_name,
            )
            for n, text in enumerate(task.texts)
        ]
    if kind == "classify":
        whole = _classify(task, "")
        return [
            JobInput(first + n, [entry], "", lambda part, labels: _classification(whole, part, labels), exact)
            for n, entry in enumerate(tasks.classify_entries(whole))
        ]
    found: list[JobInput] = []
    for index, one in enumerate(task.inputs, first):
        if kind == "rerank":
            found.append(_ranking(index, _rerank(task, one, ""), exact))
        elif kind == "answer_question":
            found.append(_questioning(index, _question(task, one, ""), exact))
        else:
            found.append(_predicting(index, _predict(task, one, facts.name), facts, exact))
    return found


def sees(kind: str, payload: bytes) -> bool:
    """Whether the inputs of a chunk are images."""
    chunk = pb.PredictTask.FromString(payload) if kind == "predict" else pb.PredictTask()
    return any(named.name == "images" for one in chunk.inputs for named in one.inputs)


# Inputs as the requests that they would be, and the answers as results.


def _embedded(part: Part, labels: Sequence[str]) -> pb.InferenceResult:
    embed = pb.EmbedResult(vector=part.rows[0], input_tokens=part.input_tokens[0], truncated=bool(part.truncated[0]))
    return pb.InferenceResult(embed=embed)


def _classify(task: pb.ClassifyTask, model: str) -> pb.ClassifyRequest:
    request = pb.ClassifyRequest(
        model=model, texts=task.texts, pairs=task.pairs, raw_scores=task.raw_scores, precision=task.precision
    )
    return _with(request, task, "truncate", "top_n")


def _classification(request: pb.ClassifyRequest, part: Part, labels: Sequence[str]) -> pb.InferenceResult:
    return pb.InferenceResult(classify=tasks.classified(request, part, labels).classifications[0])


def _rerank(task: pb.RerankTask, one: pb.RerankInput, model: str) -> pb.RerankRequest:
    request = pb.RerankRequest(
        model=model, query=one.query, texts=one.texts, raw_scores=task.raw_scores, precision=task.precision
    )
    return _with(request, task, "truncate", "top_n")


def _ranking(index: int, request: pb.RerankRequest, exact: bool) -> JobInput:
    def result(part: Part, labels: Sequence[str]) -> pb.InferenceResult:
        return pb.InferenceResult(rerank=pb.RerankResult(ranked=tasks.ranked(request, part).ranked))

    return JobInput(index, tasks.rerank_entries(request), "texts[]", result, exact)


def _question(task: pb.AnswerQuestionTask, one: pb.QuestionInput, model: str) -> pb.AnswerQuestionRequest:
    request = pb.AnswerQuestionRequest(
        model=model, question=one.question, context=one.context, precision=task.precision
    )
    return _with(request, task, "top_n", "max_answer_tokens")


def _questioning(index: int, request: pb.AnswerQuestionRequest, exact: bool) -> JobInput:
    def result(part: Part, labels: Sequence[str]) -> pb.InferenceResult:
        answers = tasks.answers(request, part).answers
        return pb.InferenceResult(answer_question=pb.AnswerQuestionResult(answers=answers))

    return JobInput(index, tasks.question_entries(request), "", result, exact)


def _predict(task: pb.PredictTask, one: pb.PredictInput, model: str) -> pb.PredictRequest:
    return pb.PredictRequest(
        model=model, inputs=one.inputs, parameters=task.parameters, outputs=task.outputs, precision=task.precision
    )


def _predicting(index: int, request: pb.PredictRequest, facts: VersionFacts, exact: bool) -> JobInput:
    asked = predict.read(request, facts, sys.maxsize)

    def result(part: Part, labels: Sequence[str]) -> pb.InferenceResult:
        outputs = predict.written(asked, facts, part.rows, labels, request.outputs)
        return pb.InferenceResult(predict=pb.PredictResult(outputs=outputs, labels=labels))

    return JobInput(
        index,
        asked.inputs,
        asked.element,
        result,
        exact,
        asked.truncate,
        asked.normalize,
        asked.dimensions,
        asked.prompt,
    )


def _with(request: T, task: Any, *fields: str) -> T:
    """With those of the task's fields that are set."""
    for field in fields:
        if task.HasField(field):
            setattr(request, field, getattr(task, field))
    return request


def _flag(task: pb.EmbedTask, field: str) -> bool:
    """True unless it is set to false."""
    return bool(getattr(task, field)) if task.HasField(field) else True


def _below(
    kind: str, wrong: Sequence[FieldViolation], index: int = 0, of_input: Sequence[str] = ()
) -> list[FieldViolation]:
    """Violations of the request that an input would be, at the fields of the job."""
    found = []
    for violation in wrong:
        root = violation.field.partition(".")[0].partition("[")[0]
        if root == "model":
            found.append(violation)
        else:
            at = f"{kind}.inputs[{index}]." if root in of_input else f"{kind}."
            found.append(FieldViolation(at + violation.field, violation.description))
    return found


def _once(wrong: Sequence[FieldViolation]) -> list[FieldViolation]:
    """What concerns all inputs was found with each of them."""
    return list({violation.field: violation for violation in wrong}.values())
