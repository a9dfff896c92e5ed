"""What is wrong with a request, field by field: rules that the calls of all tasks share. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.errors import FieldViolation
from modelmora.inference.v1 import inference_pb2

from modelmora_inference.domain import MAX_TEXT_CHARACTERS, MAX_TEXTS, MAX_TIMEOUT_SECONDS, Priority, VersionFacts

MAX_REQUEST_ID_CHARACTERS = 200
MAX_PROMPT_NAME_CHARACTERS = 200
MAX_ANSWERS = 20
MAX_ANSWER_TOKENS = 512
DEFAULT_ANSWER_TOKENS = 30
MAX_VIOLATIONS = 10
"""More than so many wrong fields are not named one by one."""

PRIORITIES = {
    common_pb2.PRIORITY_UNSPECIFIED: Priority.MEDIUM,
    common_pb2.PRIORITY_LOW: Priority.LOW,
    common_pb2.PRIORITY_MEDIUM: Priority.MEDIUM,
    common_pb2.PRIORITY_HIGH: Priority.HIGH,
}
_CALLS: Mapping[int, str] = {
    common_pb2.TASK_TYPE_TXT2EMBED: "Embed",
    common_pb2.TASK_TYPE_RERANKING: "Rerank",
    common_pb2.TASK_TYPE_CLASSIFICATION: "Classify",
    common_pb2.TASK_TYPE_QUESTION_ANSWERING: "AnswerQuestion",
}
_COLD_POLICIES = frozenset(inference_pb2.ColdPolicy.values())


def invalid(violations: Sequence[FieldViolation]) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        "; ".join(f"{violation.field}: {violation.description}" for violation in violations), fields=violations
    )


def wrong_task(facts: VersionFacts, wanted: int) -> errors.TaskNotSupported:
    """For a call of one task to a version that does another."""
    task, call = task_word(facts.task_type), "Predict" if facts.takes_images else _CALLS.get(facts.task_type)
    way = f"; {call} is the call for it" if call else ""
    return errors.TaskNotSupported(f"{facts.name} does {task}, not {task_word(wanted)}{way}", model_version=facts.name)


def task_word(number: int) -> str:
    return common_pb2.TaskType.Name(number).removeprefix("TASK_TYPE_").lower()


def wrong_texts(field: str, texts: Sequence[str], max_call_bytes: int, beside: str = "") -> list[FieldViolation]:
    """Texts of a call, each computed together with `beside`, which weighs anew for each."""
    if not 1 <= len(texts) <= MAX_TEXTS:
        return [FieldViolation(field, f"1 to {MAX_TEXTS} texts, not {len(texts)}")]
    found: list[FieldViolation] = []
    size = len(beside) * len(texts)
    for index, text in enumerate(texts):
        size += len(text)
        if wrong := wrong_text(f"{field}[{index}]", text):
            found += wrong
            if len(found) >= MAX_VIOLATIONS:
                break
    if size > max_call_bytes // 4:
        size = sum(len(text.encode()) for text in texts) + len(texts) * len(beside.encode())
        if size > max_call_bytes:
            found.append(FieldViolation(field, f"{size} bytes in one call, at most {max_call_bytes}"))
    return found


def wrong_text(field: str, text: str) -> list[FieldViolation]:
    if not text or text.isspace():
        return [FieldViolation(field, "is empty or only white space")]
    if len(text) > MAX_TEXT_CHARACTERS:
        return [FieldViolation(field, f"has {len(text)} characters, at most {MAX_TEXT_CHARACTERS}")]
    return []


def wrong_call(request: Any) -> list[FieldViolation]:
    """The fields that every call of a task has, but for `model`."""
    found: list[FieldViolation] = []
    if request.priority not in PRIORITIES:
        found.append(FieldViolation("priority", f"there is no priority {request.priority}"))
    if request.cold_policy not in _COLD_POLICIES:
        found.append(FieldViolation("cold_policy", f"there is no policy {request.cold_policy}"))
    if len(request.request_id) > MAX_REQUEST_ID_CHARACTERS:
        found.append(FieldViolation("request_id", f"at most {MAX_REQUEST_ID_CHARACTERS} characters"))
    if not isinstance(request, inference_pb2.TokenizeRequest) and request.precision not in ("", "exact"):
        found.append(FieldViolation("precision", "exact, or nothing"))
    if request.HasField("timeout"):
        seconds = request.timeout.seconds + request.timeout.nanos / 1e9
        if not 0 <= request.timeout.nanos < 10**9:
            found.append(FieldViolation("timeout", "nanos must be 0 to 999,999,999"))
        elif not 0 < seconds <= MAX_TIMEOUT_SECONDS:
            found.append(FieldViolation("timeout", f"above 0 and at most {MAX_TIMEOUT_SECONDS:g} s"))
    return found
