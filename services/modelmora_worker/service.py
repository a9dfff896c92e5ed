"""The worker's conversation (worker/v1): who may say what, and what becomes of it. One engine, one model version.

The wire has the main thread; engine calls have the two threads of the pipeline. State that both need is in the pipeline
(under its lock) or is written by one of them only.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hmac import compare_digest
from itertools import islice
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.worker.v1 import worker_pb2
from modelmora_runtime.framing import Connection, FrameServer, Limits

from modelmora_worker import answers
from modelmora_worker import pipeline as pipelines
from modelmora_worker.engines import base

log = logging.getLogger("worker")

WIRE_VERSION: Final = 1
HELLO_TIMEOUT_SECONDS = 5.0
STUCK_SECONDS = 60.0
"""A micro-batch that takes longer makes the worker call itself UNHEALTHY."""
FIRST_CONTROL_SECONDS = 60.0
CONTROL_LOSS_SECONDS = 30.0
"""Without a control connection for so long the worker is nobody's and ends."""
MIN_WATCH_SECONDS = 0.01
FULL_READING_SECONDS = 30.0
"""So often a worker reads its private memory in full."""
_NEVER: Final = float("inf")
MAX_ANSWER_BYTES = Limits().max_message_bytes
_OPERATIONS: Final = {
    worker_pb2.OPERATION_TOKENIZE: ("tokens", "tokenise"),
    worker_pb2.OPERATION_DETOKENIZE: ("texts", "make texts of tokens"),
    worker_pb2.OPERATION_TOKEN_VECTORS: ("token_vectors", "have vectors of single tokens"),
}
"""The engine's method for each, and what one cannot do that lacks it."""


@dataclass(eq=False)
class _Session:
    """What a connection may do and has running."""

    key: bytes = b""
    control: bool = False
    jobs: dict[int, pipelines.Job] = field(default_factory=dict)
    watches: set[int] = field(default_factory=set)


class WorkerService:
    """Receiver of a FrameServer. `attach` it before the server runs."""

    def __init__(self, control_key: bytes, memory: Memory | None = None) -> None:
        """`memory`: as it was read before, in a worker that has practised."""
        self._control_key = control_key
        self._lease_keys: set[bytes] = set()
        self._pipeline = pipelines.Pipeline(self._idle)
        self._server: FrameServer | None = None
        self._controls = 0
        self._control_changes = 0
        """How often a control connection came, or the last one went."""
        self._had_control = False
        self._load_asked = False
        self._loaded = False
        self._engine: base.Engine | None = None
        self._task_type = common_pb2.TASK_TYPE_UNSPECIFIED
        self._description = worker_pb2.EngineDescription()
        self._memory = memory or Memory()
        self._draining = False
        self._drains: list[tuple[Connection, int]] = []

    def attach(self, server: FrameServer) -> None:
        self._server = server
        self._pipeline.start()
        server.call_later(FIRST_CONTROL_SECONDS, partial(self._end_if_abandoned, self._control_changes))

    def drain(self) -> None:
        """Takes no more work and ends the server when nothing runs. From any thread and signal handlers."""
        self._serving.call_soon(self._start_drain)

    def close(self) -> None:
        """After the server has ended."""
        self._pipeline.stop(timeout_seconds=5.0)

    # Receiver.

    def on_accepted(self, connection: Connection) -> None:
        connection.data = None

        def check() -> None:
            if connection.data is None:
                connection.close("no-hello")

        self._serving.call_later(HELLO_TIMEOUT_SECONDS, check)

    def on_message(self, connection: Connection, request_id: int, message: bytes) -> None:
        session = connection.data
        request = self._parse(connection, message)
        if request is None:
            return
        assert isinstance(session, _Session)  # Without hello a peer has no credit for a message.
        kind = request.WhichOneof("message")
        if request_id in session.jobs:
            connection.close("request-id-in-use")
        elif kind == "infer":
            self._infer(connection, session, request_id, request.infer, len(message))
        elif kind == "stream":
            self._stream(connection, session, request_id, request.stream, len(message))
        elif kind == "load":
            self._load(connection, session, request_id, request.load, len(message))
        else:
            connection.close(f"not-a-data-message: {kind}")

    def on_control(self, connection: Connection, request_id: int, message: bytes) -> None:
        request = self._parse(connection, message)
        if request is None:
            return
        kind = request.WhichOneof("message")
        session = connection.data
        if kind == "hello" and session is None:
            self._hello(connection, request_id, request.hello)
        elif not isinstance(session, _Session):
            connection.close("no-hello")
        elif kind == "cancel":
            self._cancel(connection, session, request_id, request.cancel)
        elif not session.control:
            self._refuse(connection, request_id, errors.PermissionDenied(f"a lease key does not allow {kind}"))
        elif kind == "drain":
            self._drains.append((connection, request_id))
            self._start_drain()
        elif kind == "watch":
            interval = max(MIN_WATCH_SECONDS, request.watch.interval.ToNanoseconds() / 1e9 or 1.0)
            session.watches.add(request_id)
            self._report(connection, session, request_id, interval)
        elif kind == "key":
            self._key(connection, request_id, request.key)
        else:
            connection.close(f"not-a-control-message: {kind}")

    def on_closed(self, connection: Connection, reason: str) -> None:
        session = connection.data
        if not isinstance(session, _Session):
            return
        for job in list(session.jobs.values()):
            job.cancelled = True
        session.watches.clear()
        if session.control:
            self._controls -= 1
            if not self._controls:
                self._control_changes += 1
                since = partial(self._end_if_abandoned, self._control_changes)
                self._serving.call_later(CONTROL_LOSS_SECONDS, since)

    # Requests.

    def _hello(self, connection: Connection, request_id: int, hello: worker_pb2.Hello) -> None:
        control = compare_digest(hello.key, self._control_key)
        leased = sum(compare_digest(hello.key, key) for key in self._lease_keys) > 0
        if not control and not leased:
            self._refuse(connection, request_id, errors.Unauthenticated("no such key"))
            connection.close("wrong-key")
            return
        if hello.wire_version != WIRE_VERSION:
            error = errors.FailedPrecondition(
                f"this worker speaks wire version {WIRE_VERSION}, not {hello.wire_version}"
            )
            self._refuse(connection, request_id, error)
            connection.close("wrong-version")
            return
        connection.data = _Session(key=hello.key, control=control)
        if control:
            self._controls += 1
            self._control_changes += 1
            self._had_control = True
        reply = worker_pb2.HelloReply(wire_version=WIRE_VERSION, pid=os.getpid())
        connection.admit()
        self._reply(connection, request_id, worker_pb2.WorkerReply(hello=reply))

    def _load(
        self, connection: Connection, session: _Session, request_id: int, load: worker_pb2.LoadRequest, size: int
    ) -> None:
        connection.grant(size)
        if not session.control:
            self._refuse(connection, request_id, errors.PermissionDenied("a lease key does not allow load"))
            return
        if self._load_asked or self._draining:
            self._refuse(connection, request_id, errors.FailedPrecondition("this worker has had its one load"))
            return
        self._load_asked = True
        footprints: list[base.Footprint] = []
        rows: list[base.EngineRow] = []
        modules_before = len(sys.modules)

        def progress(stage: str, done_bytes: int, total_bytes: int) -> None:
            message = worker_pb2.LoadProgress(done_bytes=done_bytes, total_bytes=total_bytes, stage=stage)
            connection.send(request_id, worker_pb2.WorkerReply(load_progress=message).SerializeToString())

        def work() -> base.Engine:
            row = base.find_row(load.engine)
            rows.append(row)
            spec = _spec(load)
            base.read_options(row, spec.options)
            log.info("loading %s with engine %s", load.model_version or "a model", row.name)
            try:
                engine = base.open_engine(row)
                embeds = load.task_type == common_pb2.TASK_TYPE_TXT2EMBED
                footprints.append(answers.check_load(engine, engine.load(spec, progress), embeds=embeds))
                if row.needs_files:
                    give_back()
            except ImportError as error:
                raise base.engine_unavailable(row, error) from error
            return engine

        def loaded(engine: base.Engine) -> None:
            self._engine = engine
            self._task_type = load.task_type
            self._pipeline.row_length = _row_length(load.task_type, footprints[0])
            self._description.labels.extend(footprints[0].labels)
            self._description.prompts.update(footprints[0].prompts)
            self._description.default_prompt = footprints[0].default_prompt
            for name in ("max_image_bytes", "max_image_pixels", "max_resized_pixels"):
                setattr(self._description, name, getattr(footprints[0], name))
            reply = _load_reply(rows[0], footprints[0], load, self._memory)
            # The last of them, and no look at the others: it would copy each page that a name of a module is in, 8 MB.
            imported = list(islice(reversed(sys.modules), max(0, len(sys.modules) - modules_before)))
            self._loaded = True  # before anybody can read that it is
            log.info(
                "loaded: %d bytes on the host; %d modules imported%s",
                sum(d.memory_bytes for d in reply.footprint),
                len(imported),
                f": {', '.join(imported)}" if len(imported) <= 20 else "",
            )
            connection.send(request_id, worker_pb2.WorkerReply(load=reply).SerializeToString())
            session.jobs.pop(request_id, None)

        job = pipelines.Loading(work, loaded, self._failer(connection, session, request_id, None))
        session.jobs[request_id] = job
        self._pipeline.submit(job)

    def _infer(
        self, connection: Connection, session: _Session, request_id: int, infer: worker_pb2.InferRequest, size: int
    ) -> None:
        fail = self._failer(connection, session, request_id, size)
        if not self._ready(fail):
            return
        if infer.task_type and self._task_type and infer.task_type != self._task_type:
            does, wanted = (
                common_pb2.TaskType.Name(task).removeprefix("TASK_TYPE_").lower()
                for task in (self._task_type, infer.task_type)
            )
            fail(errors.TaskNotSupported(f"the model was loaded for {does}, not {wanted}"))
            return
        operation = None
        if infer.operation:
            # An engine of a third party may be older than what we know; what we do not know none of them does.
            name, what = _OPERATIONS.get(infer.operation, ("", "do that"))
            operation = getattr(self._engine, name, None)
            if operation is None:
                fail(errors.TaskNotSupported(f"the engine does not {what}"))
                return
        computes = infer.operation == worker_pb2.OPERATION_TOKEN_VECTORS
        what = "tokens" if infer.operation == worker_pb2.OPERATION_TOKENIZE else "rows"
        describe = infer.describe
        deadlines: list[float] = []
        if any(text.HasField("timeout") for text in infer.texts):
            now = time.monotonic()
            for text in infer.texts:
                left = text.timeout
                deadlines.append(now + left.seconds + left.nanos / 1e9 if text.HasField("timeout") else _NEVER)

        def answer(done: pipelines.Done) -> None:
            nonlocal describe
            if done.last:
                session.jobs.pop(request_id, None)
            reply = worker_pb2.WorkerReply()
            _write(reply.infer, done)
            if describe:
                reply.infer.description.CopyFrom(self._description)
                describe = False
            message = reply.SerializeToString()
            if len(message) > MAX_ANSWER_BYTES:  # the wire would end the connection, and with it what others asked
                raise errors.MessageTooLarge(
                    f"the {what} of {len(reply.infer.positions)} texts have {len(message)} bytes, at most "
                    f"{MAX_ANSWER_BYTES} are sent at a time",
                    limit_bytes=MAX_ANSWER_BYTES,
                )
            connection.send(request_id, message, granted_bytes=size if done.last else None)

        job = pipelines.Batch(
            infer.texts,
            deadlines,
            answer,
            fail,
            exact=infer.exact or computes,
            rank=infer.rank,
            rows_of=None if computes else operation,
            infer=operation if computes else None,
            token_bytes=4 * getattr(self._engine, "token_dimensions", 0) if computes else 0,
            max_row_bytes=[min(text.max_row_bytes or MAX_ANSWER_BYTES, MAX_ANSWER_BYTES) for text in infer.texts]
            if computes
            else (),
        )
        session.jobs[request_id] = job
        self._pipeline.submit(job)

    def _stream(
        self, connection: Connection, session: _Session, request_id: int, stream: worker_pb2.StreamRequest, size: int
    ) -> None:
        fail = self._failer(connection, session, request_id, size)
        if not self._ready(fail):
            return

        def emit(output: Mapping[str, Any], last: bool) -> None:
            reply = worker_pb2.StreamReply(done=last)
            reply.output.update(dict(output))
            if last:
                session.jobs.pop(request_id, None)
            message = worker_pb2.WorkerReply(stream=reply).SerializeToString()
            connection.send(request_id, message, granted_bytes=size if last else None)

        job = pipelines.Streaming(_plain(stream.input), emit, fail)
        session.jobs[request_id] = job
        self._pipeline.submit(job)

    def _cancel(
        self, connection: Connection, session: _Session, request_id: int, cancel: worker_pb2.CancelRequest
    ) -> None:
        if request_id in session.watches:
            session.watches.discard(request_id)
            self._refuse(connection, request_id, errors.Cancelled())
        job = session.jobs.get(request_id)
        if job is None:
            return
        if cancel.positions and isinstance(job, pipelines.Batch):
            job.dropped.update(cancel.positions)
        else:
            self._pipeline.withdraw(job)

    def _key(self, connection: Connection, request_id: int, key: worker_pb2.KeyRequest) -> None:
        if key.withdraw:
            self._lease_keys.discard(key.key)
            for other in self._serving.connections:
                session = other.data
                if isinstance(session, _Session) and not session.control and session.key == key.key:
                    other.close("lease-withdrawn")
        elif len(key.key) < 16:
            self._refuse(connection, request_id, errors.InvalidArgument.at("key", "at least 16 bytes"))
            return
        else:
            self._lease_keys.add(key.key)
        self._reply(connection, request_id, worker_pb2.WorkerReply(key=worker_pb2.KeyReply()))

    def _report(self, connection: Connection, session: _Session, request_id: int, interval_seconds: float) -> None:
        if connection.closed or request_id not in session.watches:
            return
        self._reply(connection, request_id, worker_pb2.WorkerReply(watch=self._watch_reply()))
        again: Callable[[], None] = lambda: self._report(connection, session, request_id, interval_seconds)  # noqa: E731
        self._serving.call_later(interval_seconds, again)

    def _watch_reply(self) -> worker_pb2.WatchReply:
        work = self._pipeline
        reply = worker_pb2.WatchReply(
            state=common_pb2.HEALTH_STATE_HEALTHY,
            private_bytes=self._memory.private_bytes(time.monotonic()),
            in_flight=work.in_flight,
            batches=work.batches,
            entries=work.entries,
            batch_tokens=work.batch_tokens,
            looked_at=work.looked_at,
        )
        reply.compute.FromNanoseconds(round(work.compute_seconds * 1e9))
        since = work.computing_since
        if since is not None and time.monotonic() - since > STUCK_SECONDS:
            reply.state = common_pb2.HEALTH_STATE_UNHEALTHY
            reply.reason = f"one micro-batch has been running for {time.monotonic() - since:.0f} s"
        return reply

    # Draining and ending.

    def _start_drain(self) -> None:
        self._draining = True
        self._end_if_drained()

    def _idle(self) -> None:
        """Called by the compute thread when it has nothing left."""
        if self._draining:
            self._serving.call_soon(self._end_if_drained)

    def _end_if_drained(self) -> None:
        if not self._pipeline.in_flight:
            for connection, request_id in self._drains:
                self._reply(connection, request_id, worker_pb2.WorkerReply(drain=worker_pb2.DrainReply()))
            self._drains.clear()
            self._serving.stop()

    def _end_if_abandoned(self, since: int) -> None:
        """Unless there was a control connection since that change."""
        if since == self._control_changes:
            log.error("no control connection; the worker ends")
            self._serving.stop()

    # Helpers.

    @property
    def _serving(self) -> FrameServer:
        assert self._server is not None
        return self._server

    def _ready(self, fail: Callable[[errors.ModelMoraError], None]) -> bool:
        if self._draining:
            fail(errors.ShuttingDown("the worker is draining"))
        elif not self._loaded:
            fail(errors.FailedPrecondition("the worker has no model loaded"))
        else:
            return True
        return False

    def _failer(
        self, connection: Connection, session: _Session, request_id: int, size: int | None
    ) -> Callable[[errors.ModelMoraError], None]:
        def fail(error: errors.ModelMoraError) -> None:
            session.jobs.pop(request_id, None)
            reply = worker_pb2.WorkerReply(error=_error_reply(error)).SerializeToString()
            connection.send(request_id, reply, granted_bytes=size)

        return fail

    def _parse(self, connection: Connection, message: bytes) -> worker_pb2.WorkerRequest | None:
        try:
            request = worker_pb2.WorkerRequest.FromString(message)
        except DecodeError:
            connection.close("not-a-message")
            return None
        if request.WhichOneof("message") is None:
            connection.close("unknown-message")
            return None
        return request

    def _reply(self, connection: Connection, request_id: int, reply: worker_pb2.WorkerReply) -> None:
        connection.send_control(request_id, reply.SerializeToString())

    def _refuse(self, connection: Connection, request_id: int, error: errors.ModelMoraError) -> None:
        self._reply(connection, request_id, worker_pb2.WorkerReply(error=_error_reply(error)))


class Memory:
    """The private bytes of this process. A full reading walks all page tables, 9 ms with torch, while the wire waits;
    so it is taken before or at the load and now and then, and in between the bytes follow the counters of anonymous
    memory.

    Of a fork the pages of files do not count: they are those of its server's libraries, and whether it has one of them
    alone depends on who else on this machine computes."""

    def __init__(self, *, forked: bool = False) -> None:
        self._forked = forked
        self._read_time = float("-inf")
        self._full = self._clean = self._counters = 0

    def private_bytes(self, now: float) -> int:
        if now - self._read_time >= FULL_READING_SECONDS:
            return self.read(now)
        return self._followed()

    def after_load(self, now: float, folder: str, cache: str = "", copied_bytes: int = 0) -> int:
        """Without the mapped files of the model's folder: they are the artifact's, whoever else maps them. Who has
        practised has copied by then nearly all that a load copies of what it shares, so the counters will do, which do
        not see the rest: `copied_bytes`. What the engine has in the folder `cache` is its own."""
        cached = _mapped_bytes(cache) if cache and self._forked else 0
        if self._read_time > float("-inf"):
            self._read_time = now  # the next full one when there is time for it
            return self._followed() + copied_bytes + cached
        mapped = _mapped_bytes(folder) if folder else 0
        if not self._forked:
            return self.read(now) - mapped
        # Pages of a file that was written a moment ago are not clean yet.
        return self.read(now) + self._clean - max(mapped, self._clean - cached)

    def _followed(self) -> int:
        return max(0, self._full + anonymous_bytes() - self._counters)

    def read(self, now: float) -> int:
        """In full."""
        private, self._clean = private_bytes()
        self._full = private - self._clean if self._forked else private
        self._counters, self._read_time = anonymous_bytes(), now
        return self._full


def give_back() -> None:
    """Returns to the kernel what was freed and malloc keeps: 1 ms. How much that is depends on what ran at a time and
    before, so a load left up to 8 MiB more or less without it, of 37. Nothing happens with another C library."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def anonymous_bytes() -> int:
    """Anonymous memory, swapped out or not, whoever else has it."""
    with open("/proc/self/status", "rb") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith((b"RssAnon:", b"VmSwap:")))


def private_bytes() -> tuple[int, int]:
    """Bytes only this process has in memory (USS) or swap, and those of them that are clean pages of files."""
    total = clean = 0
    with open("/proc/self/smaps_rollup", "rb") as file:
        for line in file:
            name, _, rest = line.partition(b":")
            if name in (b"Private_Clean", b"Private_Dirty", b"Private_Hugetlb", b"SwapPss"):
                size = int(rest.split()[0]) * 1024
                total += size
                clean += size if name == b"Private_Clean" else 0
    return total, clean


def _mapped_bytes(folder: str) -> int:
    """What only this process has of the mapped files in a folder, by its page map: `smaps` would walk all the rest too,
    for longer than a forward pass takes."""
    needle = os.fsencode(os.path.realpath(folder)) + b"/"
    with open("/proc/self/maps", "rb") as file:
        ranges = [line.split(b" ", 1)[0] for line in file if needle in line]
    page_bytes, pages = os.sysconf("SC_PAGE_SIZE"), 0
    with open("/proc/self/pagemap", "rb") as file:
        for start, end in ([int(limit, 16) // page_bytes for limit in limits.split(b"-")] for limits in ranges):
            file.seek(8 * start)
            # The top byte of each entry: present, of a file, nobody else's.
            flags = file.read(8 * (end - start))[7::8]
            pages += sum(flags.count(value) for value in set(flags) if value & 0xA1 == 0xA1)
    return pages * page_bytes


def _spec(load: worker_pb2.LoadRequest) -> base.EngineSpec:
    profile = None
    if load.HasField("engine_profile"):
        asked = load.engine_profile
        profile = base.Profile(asked.backend, asked.precision, dict(asked.library_versions), asked.batch_rule)
    return base.EngineSpec(
        engine=load.engine,
        artifact_path=load.artifact_path,
        model_version=load.model_version,
        devices=[(device.device, device.memory_bytes) for device in load.devices],
        dtype=load.dtype,
        options=_plain(load.options),
        task=common_pb2.TaskType.Name(load.task_type).removeprefix("TASK_TYPE_").lower() if load.task_type else "",
        cpu_threads=load.cpu_threads,
        profile=profile,
        cache_path=load.cache_path,
    )


def _plain(struct: Struct) -> dict[str, Any]:
    plain: dict[str, Any] = json_format.MessageToDict(struct)
    return plain


def _load_reply(
    row: base.EngineRow, footprint: base.Footprint, load: worker_pb2.LoadRequest, whole: Memory
) -> worker_pb2.LoadReply:
    memory = dict(footprint.memory_bytes)
    if "host" not in memory:
        memory["host"] = whole.after_load(time.monotonic(), load.artifact_path, load.cache_path, row.copied_bytes)
    return worker_pb2.LoadReply(
        footprint=[common_pb2.DeviceMemory(device=device, memory_bytes=size) for device, size in memory.items()],
        engine_profile=_profile(footprint.profile),
        max_input_tokens=footprint.max_input_tokens,
        embedding_dimensions=footprint.embedding_dimensions,
        max_batch_tokens=footprint.max_batch_tokens,
        max_batch_entries=footprint.max_batch_entries,
        tasks=["TASK_TYPE_" + task.upper() for task in sorted(row.tasks)],
    )


def _row_length(task_type: common_pb2.TaskType, footprint: base.Footprint) -> int:
    """Of the task's rows, in numbers; 0: any."""
    if task_type == common_pb2.TASK_TYPE_TXT2EMBED:
        return footprint.embedding_dimensions
    if task_type == common_pb2.TASK_TYPE_CLASSIFICATION:
        return len(footprint.labels)
    return 1 if task_type == common_pb2.TASK_TYPE_RERANKING else 0


def _profile(profile: base.Profile) -> common_pb2.EngineProfile:
    return common_pb2.EngineProfile(
        backend=profile.backend,
        precision=profile.precision,
        library_versions=profile.library_versions,
        batch_rule=profile.batch_rule,
    )


def _write(reply: worker_pb2.InferReply, done: pipelines.Done) -> None:
    reply.done = done.last
    if done.batch is not None and done.rows is not None:
        reply.positions.extend(done.batch.positions)
        reply.rows = done.rows.data
        reply.row_dimensions.extend(done.rows.dimensions)
        reply.input_tokens.extend(done.batch.input_tokens)
        reply.truncated.extend(done.batch.truncated)
        if done.rows.profile is not None:
            reply.engine_profile.CopyFrom(_profile(done.rows.profile))
    present = set(reply.positions) if done.failed else ()
    for failure in done.failed:
        if failure.position not in present:
            reply.positions.append(failure.position)
            reply.row_dimensions.append(0)
            reply.input_tokens.append(0)
            reply.truncated.append(False)
        message = answers.text_of(failure.error.message)
        reply.errors.add(position=failure.position, reason=failure.error.reason, message=message)
    for duration, seconds in ((reply.tokenise, done.tokenise_seconds), (reply.compute, done.compute_seconds)):
        duration.seconds, duration.nanos = divmod(round(seconds * 1e9), 10**9)


def _error_reply(error: errors.ModelMoraError) -> worker_pb2.ErrorReply:
    text = answers.text_of  # an engine may have made them
    return worker_pb2.ErrorReply(
        reason=error.reason,
        message=text(error.message)[:4096],
        metadata={text(key): text(value) for key, value in error.metadata.items()},
        status=error.status,
        fields={text(violation.field): text(violation.description) for violation in error.fields},
    )
