"""Trace context, log lines and their limits."""

from __future__ import annotations

import io
import json
import logging
import queue
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelmora_runtime import telemetry
from modelmora_runtime.telemetry import BoundedQueue, JsonLines, RateLimit, TextLines, start_span

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(("flags", "sampled"), [("01", True), ("00", False), ("03", True)])
def test_a_trace_goes_on_below_the_callers_span(flags: str, sampled: bool) -> None:
    span = start_span("x", parent=f"00-{TRACE}-{PARENT}-{flags}", kind="server")
    assert f"{span.trace_id:032x}" == TRACE
    assert span.parent_id is not None
    assert f"{span.parent_id:016x}" == PARENT
    assert span.sampled is sampled
    assert span.traceparent == f"00-{TRACE}-{span.span_id:016x}-{int(sampled):02x}"
    assert f"{span.span_id:016x}" != PARENT


@pytest.mark.parametrize(
    "parent",
    [
        None,
        "",
        "nonsense",
        f"00-{TRACE}-{PARENT}",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
    ],
)
def test_a_call_without_a_valid_trace_starts_one(parent: str | None) -> None:
    span = start_span("x", parent=parent, kind="server")
    assert span.parent_id is None
    assert f"{span.trace_id:032x}" != TRACE
    assert span.trace_id
    assert not span.sampled, "nothing is exported"


def test_spans_nest_and_end_with_their_block() -> None:
    assert telemetry.traceparent() is None
    with telemetry.span("outer") as outer:
        with telemetry.span("inner") as inner:
            assert (inner.trace_id, inner.parent_id) == (outer.trace_id, outer.span_id)
        assert telemetry.current_span() is outer
        with pytest.raises(KeyError), telemetry.span("failing"):
            raise KeyError
        assert telemetry.current_span() is outer
    assert telemetry.current_span() is None


def record(message: str, *arguments: object, name: str = "modelmora_x.y") -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, __file__, 1, message, arguments, None)


def test_a_line_carries_its_trace() -> None:
    line = record("hello %s", "you")
    with telemetry.span("x") as span:
        assert telemetry.mark_with_trace(line)
    parsed = json.loads(JsonLines().format(line))
    assert parsed["message"] == "hello you"
    assert parsed["level"] == "warning"
    assert parsed["trace_id"] == f"{span.trace_id:032x}"
    assert parsed["time"].endswith("+00:00")
    assert f"{span.trace_id:032x}" in TextLines().format(line)


def test_a_line_is_one_line_whatever_is_in_it() -> None:
    assert "\n" not in JsonLines().format(record('a\nb"c\u2028'))


def test_a_message_that_repeats_is_left_out_and_counted() -> None:
    limit = RateLimit(burst=3, per_seconds=10)
    passed = [limit.admit(record("again %d", number), float(number) / 100) for number in range(100)]
    assert passed == [True] * 3 + [False] * 97
    assert limit.admit(record("something else"), 1.0)
    late = record("again %d", 100)
    assert limit.admit(late, 11.0)
    assert late.getMessage() == "again 100 (97 more like this left out)"
    again = record("again %d", 101)
    assert limit.admit(again, 22.0)
    assert again.getMessage() == "again 101"


def test_the_rate_limit_forgets_rather_than_grows() -> None:
    limit = RateLimit(most_messages=10)
    for number in range(1000):
        limit.admit(record(f"message {number}"), 1.0)
    assert len(limit._windows) <= 10


def test_a_full_queue_drops_and_does_not_wait() -> None:
    entrance = BoundedQueue(queue.Queue(2))
    for _ in range(5):
        entrance.handle(record("x"))
    assert entrance.dropped == 3


@pytest.fixture
def root_untouched() -> Iterator[None]:
    before = (logging.getLogger().level, logging.getLogger().handlers[:])
    yield
    assert (logging.getLogger().level, logging.getLogger().handlers[:]) == before


@pytest.mark.usefixtures("root_untouched")
def test_lines_go_to_the_stream_and_to_the_file_until_it_is_left(tmp_path: Path) -> None:
    stream = io.StringIO()
    with telemetry.logs("info", "auto", tmp_path / "logs", stream):
        logging.getLogger("modelmora_x").info("seen %d", 7)
        logging.getLogger("modelmora_x").debug("too quiet")
        logging.getLogger("asyncio").info("foreign")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["seen 7"]
    file = tmp_path / "logs" / telemetry.LOG_FILE
    assert json.loads(file.read_text())["message"] == "seen 7"
    assert (tmp_path / "logs").stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("root_untouched")
def test_the_file_has_what_a_quiet_terminal_does_not_show(tmp_path: Path) -> None:
    stream = io.StringIO()
    with telemetry.logs("warning", "auto", tmp_path / "logs", stream):
        logging.getLogger("modelmora_x").info("seen")
        logging.getLogger("asyncio").info("foreign")
    assert stream.getvalue() == ""
    assert json.loads((tmp_path / "logs" / telemetry.LOG_FILE).read_text())["message"] == "seen"
