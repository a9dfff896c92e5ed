"""What the platform says about itself: traces, logs and metrics.

Spans are our own small values, so that a call costs microseconds while nothing is exported and every log line has its
trace id; the OpenTelemetry SDK is imported only when there is a collector to send to. Trace context travels as W3C
`traceparent`. Logging goes through a bounded queue to a thread: a terminal that does not read must not stop the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import logging.handlers
import queue
import random
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

TRACEPARENT = "traceparent"
LOG_FILE = "modelmora.log"
_LOG_BYTES = 10 * 1024 * 1024
_LOG_FILES = 5
_FLUSH_SECONDS = 1.0

log = logging.getLogger(__name__)

# Traces.


@dataclass(slots=True)
class Span:
    """One piece of work in a trace. Ids as in W3C Trace Context; times in ns since the epoch."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    sampled: bool
    kind: str = "internal"
    start_time_ns: int = 0
    attributes: dict[str, str | int | float | bool] = field(default_factory=dict)
    error: str | None = None

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"


_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_current: ContextVar[Span | None] = ContextVar("modelmora_span", default=None)


def current_span() -> Span | None:
    return _current.get()


def traceparent() -> str | None:
    """What to hand to whomever is called next, None outside of a span."""
    here = _current.get()
    return here.traceparent if here is not None else None


def start_span(name: str, *, parent: str | None = None, kind: str = "internal") -> Span:
    """A span below the `traceparent` that came with a call, else below the current one, else a new trace's first."""
    span_id = random.getrandbits(64) or 1
    found = _TRACEPARENT.fullmatch(parent) if parent else None
    if found is not None and (trace_id := int(found[1], 16)) and (parent_id := int(found[2], 16)):
        return Span(name, trace_id, span_id, parent_id, bool(int(found[3], 16) & 1), kind, time.time_ns())
    above = _current.get()
    if above is not None and parent is None and kind != "server":
        return Span(name, above.trace_id, span_id, above.span_id, above.sampled, kind, time.time_ns())
    sampled = _export is not None and random.random() < _sample_ratio
    return Span(name, random.getrandbits(128) or 1, span_id, None, sampled, kind, time.time_ns())


def enter_span(span: Span) -> Token[Span | None]:
    return _current.set(span)


def finish_span(span: Span, error: str | None = None) -> None:
    """Hands a sampled span to the exporter; with `error` (a name) it counts as failed."""
    if span.sampled and _export is not None:
        span.error = error
        _export.send(span)


@contextmanager
def span(name: str, **attributes: str | int | float | bool) -> Iterator[Span]:
    """A span around a block; an exception marks it failed and goes on."""
    made = start_span(name)
    made.attributes.update(attributes)
    token = _current.set(made)
    error: str | None = "abandoned"
    try:
        yield made
        error = None
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        _current.reset(token)
        finish_span(made, error)


class _Export:
    """Sends finished spans to a collector through the OpenTelemetry SDK's batching."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        processor: Any = BatchSpanProcessor(OTLPSpanExporter(endpoint, insecure=not endpoint.startswith("https:")))
        self._processor = processor
        self._readable, self._context, self._flags = ReadableSpan, SpanContext, TraceFlags
        self._kinds = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}
        self._ok, self._failed = Status(StatusCode.UNSET), partial(Status, StatusCode.ERROR)
        self._resource = Resource.create({"service.name": "modelmora"})

    def send(self, span: Span) -> None:
        flags = self._flags(self._flags.SAMPLED)
        parent = None
        if span.parent_id is not None:
            parent = self._context(span.trace_id, span.parent_id, is_remote=span.kind == "server", trace_flags=flags)
        self._processor.on_end(
            self._readable(
                span.name,
                context=self._context(span.trace_id, span.span_id, is_remote=False, trace_flags=flags),
                parent=parent,
                resource=self._resource,
                attributes=span.attributes,
                kind=self._kinds[span.kind],
                status=self._ok if span.error is None else self._failed(span.error),
                start_time=span.start_time_ns,
                end_time=time.time_ns(),
            )
        )

    def close(self) -> None:
        self._processor.shutdown()


_export: _Export | None = None
_sample_ratio = 0.0


@asynccontextmanager
async def tracing(endpoint: str | None, sample_ratio: float) -> AsyncIterator[None]:
    """Exports spans while it is open; does nothing without an endpoint."""
    global _export, _sample_ratio
    if endpoint is None:
        yield
        return
    _export, _sample_ratio = _Export(endpoint), sample_ratio
    try:
        yield
    finally:
        export, _export = _export, None
        await _flush(export)


async def _flush(export: _Export) -> None:
    """Sends what is left, for a second at most: a collector that is away must not hold the platform's stop.

    In a thread of its own, because the loop waits for those of its executor before it closes.
    """
    loop, sent = asyncio.get_running_loop(), asyncio.Event()

    def close() -> None:
        export.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(sent.set)

    threading.Thread(target=close, name="last spans", daemon=True).start()
    try:
        async with asyncio.timeout(_FLUSH_SECONDS):
            await sent.wait()
    except TimeoutError:
        log.warning("the trace collector did not take the last spans")


# Logs.


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        trace = getattr(record, "trace_id", None)
        if trace:
            line |= {"trace_id": trace, "span_id": getattr(record, "span_id", "")}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextLines(logging.Formatter):
    """For a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        text = f"{moment} {record.levelname.lower():7} {record.name.removeprefix('modelmora_')}: {record.getMessage()}"
        trace = getattr(record, "trace_id", None)
        if trace and record.levelno >= logging.WARNING:
            text += f" [trace {trace}]"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def mark_with_trace(record: logging.LogRecord) -> bool:
    """A filter that passes everything and adds the ids of the span that the line was written in."""
    here = _current.get()
    if here is not None:
        record.trace_id, record.span_id = f"{here.trace_id:032x}", f"{here.span_id:016x}"
    return True


def spare_headers(record: logging.LogRecord) -> bool:
    """A filter for gRPC's own logger, which writes a header that is not UTF-8 whole, a token too, with a traceback."""
    if record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError):
        record.msg, record.args = "a call has a header that is not UTF-8; it is read as Latin-1", None
        record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
    return True


class RateLimit(logging.Filter):
    """At most `burst` lines of one message in `per_seconds`; the next window says how many were left out."""

    def __init__(self, burst: int = 20, per_seconds: float = 10.0, most_messages: int = 1000) -> None:
        super().__init__()
        self._burst = burst
        self._per_seconds = per_seconds
        self._most_messages = most_messages
        self._windows: dict[tuple[str, int, str], list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        return self.admit(record, time.monotonic())

    def admit(self, record: logging.LogRecord, now: float) -> bool:
        key = (record.name, record.levelno, str(record.msg))
        window = self._windows.get(key)
        if window is None or now - window[0] >= self._per_seconds:
            left_out = int(window[1]) - self._burst if window is not None else 0
            if window is None and len(self._windows) >= self._most_messages:
                self._windows.clear()
            self._windows[key] = [now, 1]
            if left_out > 0:
                record.msg, record.args = f"{record.getMessage()} ({left_out} more like this left out)", None
            return True
        window[1] += 1
        return window[1] <= self._burst


class BoundedQueue(logging.handlers.QueueHandler):
    """Never waits: what does not fit into the queue is counted and dropped."""

    dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # QueueHandler would format here, on the loop; records stay in this process, so only the message is fixed.
        record.msg, record.args = record.getMessage(), None
        return record


@contextmanager
def logs(level: str, form: str, folder: Path | None, stream: TextIO | None = None) -> Iterator[None]:
    """Sends the root logger from `level` up to `stream` (stderr), and to a rotating file in `folder` at least what is
    info: what a terminal was spared is wanted later. Until it is left."""
    stream = stream or sys.stderr
    text = form == "text" or (form == "auto" and stream.isatty())
    sinks: list[logging.Handler] = [logging.StreamHandler(stream)]
    sinks[0].setFormatter(TextLines() if text else JsonLines())
    sinks[0].setLevel(level.upper())
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sinks.append(
            logging.handlers.RotatingFileHandler(
                folder / LOG_FILE, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES, encoding="utf-8", delay=True
            )
        )
        sinks[1].setFormatter(JsonLines())
    entrance = BoundedQueue(queue.Queue(10_000))
    entrance.addFilter(RateLimit())
    entrance.addFilter(mark_with_trace)
    listener = logging.handlers.QueueListener(entrance.queue, *sinks, respect_handler_level=True)
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    root.handlers[:] = [entrance]
    root.setLevel(level.upper() if folder is None else min(sinks[0].level, logging.INFO))
    # Foreign loggers talk too much below warning.
    for name in ("asyncio", "sqlalchemy", "alembic", "httpx", "httpcore", "huggingface_hub", "urllib3", "filelock"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.getLogger("grpc._cython.cygrpc").addFilter(spare_headers)
    listener.start()
    try:
        yield
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        listener.stop()
        for sink in sinks:
            sink.close()


# Metrics.


class MetricsPage:
    """The smallest HTTP server that Prometheus can read: GET /metrics, one request a connection, on loopback."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self.port: int = server.sockets[0].getsockname()[1]

    @classmethod
    async def open(cls, port: int) -> MetricsPage:
        """Raises OSError when the port is in use."""
        return cls(await asyncio.start_server(_answer, "127.0.0.1", port, limit=16 * 1024))

    async def close(self) -> None:
        self._server.close()

    async def __aenter__(self) -> MetricsPage:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

    try:
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            method, _, rest = head.partition(b" ")
            path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
            if method not in (b"GET", b"HEAD"):
                status, kind, body = "405 Method Not Allowed", "text/plain", b"only GET\n"
            elif path != b"/metrics":
                status, kind, body = "404 Not Found", "text/plain", b"the metrics are at /metrics\n"
            else:
                status, kind, body = "200 OK", CONTENT_TYPE_LATEST, generate_latest(REGISTRY)
            lines = (
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(lines.encode() + (b"" if method == b"HEAD" else body))
            await writer.drain()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # a scraper that went away or talks something else is nobody's problem
    finally:
        writer.close()


def fields(**values: Any) -> Mapping[str, Any]:
    """For `log.info("…", extra=fields(model=…))`: named values of a JSON line."""
    return {"fields": values}
