"""Errors to a status: what travels, and that it always fits into a header."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import status_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st
from modelmora.errors import (
    BASES,
    Cancelled,
    DeadlineExceeded,
    FieldViolation,
    InternalError,
    InvalidArgument,
    MessageTooLarge,
    ModelMoraError,
    ModelNotFound,
    NeverFits,
    QueueFull,
    Unavailable,
)
from modelmora.retry import is_retryable
from modelmora.status import error_from_status
from modelmora_runtime import status
from pydantic import BaseModel, ConfigDict, ValidationError


def there_and_back(error: ModelMoraError) -> ModelMoraError:
    return error_from_status(status.code(error).name, status.message(error), status.details(error))


@pytest.mark.parametrize(
    "error",
    [
        ModelNotFound(model="models/a/b"),
        InvalidArgument.at("texts[3]", "is empty"),
        QueueFull(retry_after_seconds=1.5, model="m"),
        NeverFits(need_bytes=5, budget_bytes=3),
        InternalError(incident="abc"),
    ],
)
def test_an_error_arrives_as_it_left(error: ModelMoraError) -> None:
    back = there_and_back(error)
    assert type(back) is type(error)
    assert back.message == error.message
    assert back.fields == error.fields
    assert back.metadata == error.metadata
    assert back.retry_after_seconds == error.retry_after_seconds


@pytest.mark.parametrize("base", BASES.values())
def test_every_base_has_its_status(base: type[ModelMoraError]) -> None:
    assert status.code(base()) is grpc.StatusCode[base.status]
    assert type(there_and_back(base())) is base


def test_an_incident_is_also_the_request_of_google_rpc() -> None:
    detail = status_pb2.Status.FromString(status.details(InternalError(incident="abc")))
    assert any(part.type_url.endswith("RequestInfo") and b"abc" in part.value for part in detail.details)


def test_code_and_message_stand_in_the_details_too() -> None:
    """grpc-status refuses details that disagree with the call."""
    error = ModelNotFound("ö" * 5000)
    detail = status_pb2.Status.FromString(status.details(error))
    assert detail.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert detail.message == status.message(error)


@settings(max_examples=25)
@example(message="ö" * 9000, metadata={"a" * 40: "ö" * 3000}, fields=[FieldViolation("f" * 2000, "d" * 2000)] * 60)
@example(message="x", metadata={chr(97 + n): "v" * 3000 for n in range(26)}, fields=[FieldViolation("f", "d")])
@given(
    message=st.text(max_size=9000),
    metadata=st.dictionaries(st.from_regex(r"[a-z]{1,40}", fullmatch=True), st.text(max_size=3000), max_size=60),
    fields=st.lists(st.builds(FieldViolation, st.text(max_size=2000), st.text(max_size=2000)), max_size=60),
)
def test_whatever_is_in_it_fits_into_a_header(
    message: str, metadata: dict[str, str], fields: list[FieldViolation]
) -> None:
    error = InvalidArgument(message or "x", fields=fields)
    error.metadata = metadata
    assert len(status.message(error).encode()) <= 1000
    # Base64 adds a third; the message is percent-encoded, at most threefold: below 8 KiB with the rest of the headers.
    assert len(status.details(error)) <= 4500
    back = there_and_back(error)
    assert isinstance(back, InvalidArgument)
    assert bool(back.fields) == bool(fields), "the first violation always arrives"


def test_a_call_that_the_server_let_go_of_is_worth_another_try_and_one_that_was_withdrawn_is_none() -> None:
    """As gRPC's core says it, without a word of ours; seen when a server broke, and when it was starved."""
    let_go = error_from_status("CANCELLED", "CANCELLED", None)
    assert type(let_go) is Unavailable
    assert is_retryable(let_go)
    for withdrawn in (
        error_from_status("CANCELLED", "Locally cancelled by application!", None),
        there_and_back(Cancelled()),
    ):
        assert type(withdrawn) is Cancelled
        assert not is_retryable(withdrawn)


@pytest.mark.parametrize("wrapped", ["{}", "Stream removed ({})"])
def test_what_grpc_says_for_itself_is_said_in_our_words(wrapped: str) -> None:
    """Each as seen of its core, which wraps them now and then."""
    late = error_from_status("DEADLINE_EXCEEDED", wrapped.format("Deadline Exceeded"), None)
    assert (type(late), late.message) == (DeadlineExceeded, "the time given was over before the server answered")
    large = "CLIENT: Received message larger than max (67108410 vs. 4194304)"
    too_large = error_from_status("RESOURCE_EXHAUSTED", wrapped.format(large), None)
    assert (type(too_large), too_large.message) == (MessageTooLarge, large)
    ours = DeadlineExceeded(wrapped.format("Deadline Exceeded"))
    assert there_and_back(ours).message == ours.message, "what a server of ours says stays as it is"


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int


class Whole(BaseModel):
    parts: list[Part]
    by_name: dict[str, Part] = {}


def test_what_pydantic_finds_has_paths_of_the_request_and_no_values() -> None:
    with pytest.raises(ValidationError) as raised:
        Whole.model_validate({"parts": [{"size": 1}, {"size": "secret"}], "by_name": {"a": {"size": 1, "zise": 2}}})
    error = status.invalid_argument(raised.value, "model_version")
    assert [violation.field for violation in error.fields] == [
        "model_version.parts[1].size",
        "model_version.by_name.a.zise",
    ]
    assert "secret" not in error.message
    assert status.invalid_argument(raised.value).fields[0].field == "parts[1].size"
