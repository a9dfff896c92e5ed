"""The tasks other than embedding: what is wrong with a request, what it asks of a worker, and the answer that rows are.
Pure; the calls of task_service.py and the jobs of job_tasks.py are made of the same parts."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Protocol

from modelmora import errors
from modelmora.errors import FieldViolation
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.worker.v1 import worker_pb2

from modelmora_inference.checks import (
    DEFAULT_ANSWER_TOKENS,
    MAX_ANSWER_TOKENS,
    MAX_ANSWERS,
    wrong_call,
    wrong_text,
    wrong_texts,
)


class Answered(Protocol):
    """What came back for the entries of one call, in their order."""

    @property
    def rows(self) -> Sequence[bytes]: ...
    @property
    def input_tokens(self) -> Sequence[int]: ...
    @property
    def truncated(self) -> Sequence[int]: ...


def wrong_rerank(request: pb.RerankRequest, max_call_bytes: int) -> list[FieldViolation]:
    found = [] if request.model else [FieldViolation("model", "is required")]
    found += wrong_text("query", request.query)
    found += wrong_texts("texts", request.texts, max_call_bytes, beside=request.query)
    found += _wrong_top(request)
    return found + wrong_call(request)


def rerank_entries(request: pb.RerankRequest) -> list[worker_pb2.TextEntry]:
    query, raw_scores, truncate = request.query, request.raw_scores, _truncates(request)
    return [
        worker_pb2.TextEntry(text=query, pair=text, truncate=truncate, raw_scores=raw_scores) for text in request.texts
    ]


def ranked(request: pb.RerankRequest, answered: Answered) -> pb.RerankResponse:
    scores = [floats(row) for row in answered.rows]
    if any(len(row) != 1 for row in scores):
        raise errors.InternalError("the worker answered with more or less than one score for a text")
    order = sorted(range(len(scores)), key=lambda index: (-scores[index][0], index))
    response = pb.RerankResponse()
    for index in order[: request.top_n or None]:
        rank = response.ranked.add(
            index=index,
            score=scores[index][0],
            input_tokens=answered.input_tokens[index],
            truncated=bool(answered.truncated[index]),
        )
        if request.return_texts:
            rank.text = request.texts[index]
    return response


def wrong_classify(request: pb.ClassifyRequest, max_call_bytes: int) -> list[FieldViolation]:
    found = [] if request.model else [FieldViolation("model", "is required")]
    found += wrong_texts("texts", request.texts, max_call_bytes)
    if request.pairs:
        if len(request.pairs) != len(request.texts):
            description = f"as many as texts, {len(request.texts)}, or none; not {len(request.pairs)}"
            found.append(FieldViolation("pairs", description))
        else:
            found += wrong_texts("pairs", request.pairs, max_call_bytes)
    found += _wrong_top(request)
    return found + wrong_call(request)


def classify_entries(request: pb.ClassifyRequest) -> list[worker_pb2.TextEntry]:
    raw_scores, truncate = request.raw_scores, _truncates(request)
    return [
        worker_pb2.TextEntry(text=text, pair=pair, truncate=truncate, raw_scores=raw_scores)
        for text, pair in zip(request.texts, request.pairs or [""] * len(request.texts), strict=True)
    ]


def classified(request: pb.ClassifyRequest, answered: Answered, labels: Sequence[str]) -> pb.ClassifyResponse:
    response = pb.ClassifyResponse()
    for row, tokens, truncated in zip(answered.rows, answered.input_tokens, answered.truncated, strict=True):
        scores = floats(row)
        if len(scores) != len(labels):
            raise errors.InternalError(f"the worker answered with {len(scores)} scores for {len(labels)} labels")
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        answer = response.classifications.add(input_tokens=tokens, truncated=bool(truncated))
        for index in order[: request.top_n or None]:
            answer.labels.add(label=labels[index], score=scores[index], index=index)
    return response


def wrong_question(request: pb.AnswerQuestionRequest, max_call_bytes: int) -> list[FieldViolation]:
    found = [] if request.model else [FieldViolation("model", "is required")]
    found += wrong_text("question", request.question)
    found += wrong_text("context", request.context)
    if request.HasField("top_n") and not 1 <= request.top_n <= MAX_ANSWERS:
        found.append(FieldViolation("top_n", f"1 to {MAX_ANSWERS}"))
    if request.HasField("max_answer_tokens") and not 1 <= request.max_answer_tokens <= MAX_ANSWER_TOKENS:
        found.append(FieldViolation("max_answer_tokens", f"1 to {MAX_ANSWER_TOKENS}"))
    return found + wrong_call(request)


def question_entries(request: pb.AnswerQuestionRequest) -> list[worker_pb2.TextEntry]:
    most = request.max_answer_tokens if request.HasField("max_answer_tokens") else DEFAULT_ANSWER_TOKENS
    return [
        worker_pb2.TextEntry(
            text=request.question,
            pair=request.context,
            truncate=True,
            max_answers=request.top_n if request.HasField("top_n") else 1,
            max_answer_tokens=most,
        )
    ]


def answers(request: pb.AnswerQuestionRequest, answered: Answered) -> pb.AnswerQuestionResponse:
    found = floats(answered.rows[0])
    if len(found) % 3:
        raise errors.InternalError("the worker answered with half an answer")
    response = pb.AnswerQuestionResponse()
    for score, start, end in zip(found[0::3], found[1::3], found[2::3], strict=True):
        begins, ends = int(start), int(end)
        response.answers.add(text=request.context[begins:ends], score=score, start=begins, end=ends)
    return response


def floats(row: bytes) -> array[float]:
    values = array("f", row)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _wrong_top(request: pb.RerankRequest | pb.ClassifyRequest) -> list[FieldViolation]:
    return [FieldViolation("top_n", "at least 1")] if request.HasField("top_n") and request.top_n < 1 else []


def _truncates(request: pb.RerankRequest | pb.ClassifyRequest) -> bool:
    return request.truncate if request.HasField("truncate") else True
