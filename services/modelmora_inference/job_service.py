"""The RPCs of inference jobs: a mixin for the servicer of inference."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sys
import time
from array import array
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.errors import FieldViolation, InvalidArgument
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora_runtime import ids
from modelmora_runtime.auth import OPERATORS, current_caller
from modelmora_runtime.interceptors import deadline_seconds

from modelmora_inference import job_tasks
from modelmora_inference.checks import invalid
from modelmora_inference.dispatcher import Dispatchers
from modelmora_inference.domain import Priority, VersionFacts
from modelmora_inference.jobs import (
    DEFAULT_RESULT_TTL,
    DEFAULT_TIMEOUT,
    MAX_RESULT_TTL,
    MAX_TIMEOUT,
    Job,
    JobState,
    chunks,
)
from modelmora_inference.store import Chunk, JobStore

MAX_PAGE = 1000
DEFAULT_PAGE = 20
MAX_RESULTS = 2048
PAGE_BYTES = 3 * 1024 * 1024
"""Of results as they are kept: a page fits into the 4 MiB that clients of gRPC take without being asked."""
MAX_FILTER_CHARACTERS = 400
MAX_REQUEST_ID_CHARACTERS = 200
PREFIX = "jobs/"
STATES: Mapping[int, JobState] = {
    number: JobState(name.removeprefix("JOB_STATE_").lower()) for name, number in common_pb2.JobState.items() if number
}
NUMBERS = {state: number for number, state in STATES.items()}
_PRIORITIES = frozenset(common_pb2.Priority.values())
_EMBED_FIELDS = ("normalize", "truncate", "dimensions")


class JobNews:
    """Who waits for a change of which job. The news say what to look at again, not what it is now."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watch(self, uid: str) -> Iterator[asyncio.Event]:
        """An event that is set with each change; the watcher clears it before it looks."""
        changed = asyncio.Event()
        self._waiting.setdefault(uid, set()).add(changed)
        try:
            yield changed
        finally:
            self._waiting[uid].discard(changed)
            if not self._waiting[uid]:
                del self._waiting[uid]

    def hear(self, news: str) -> None:
        """`uid state`; the empty string: look at all of them."""
        uid = news.partition(" ")[0]
        for waiting in [self._waiting.get(uid, ())] if uid else list(self._waiting.values()):
            for changed in waiting:
                changed.set()


class JobRpcs:
    """RPCs of InferenceService on jobs."""

    _jobs: JobStore | None
    """None: this process has no database."""
    _job_news: JobNews
    _dispatchers: Dispatchers
    _stopping: asyncio.Event
    _max_call_bytes: int

    async def _find(self, reference: str, deadline: float, field: str = "model") -> VersionFacts:
        raise NotImplementedError

    def _wrong_embed(self, request: pb.EmbedRequest) -> list[FieldViolation]:
        """What is wrong with a call, and would be with a job of the same content."""
        raise NotImplementedError

    async def CreateInferenceJob(
        self, request: pb.CreateInferenceJobRequest, context: Any
    ) -> pb.CreateInferenceJobResponse:
        if violations := self._wrong_job(request):
            raise invalid(violations)
        store = self._store()
        facts = await self._find(request.model, time.monotonic() + min(deadline_seconds(context), 10.0))
        kind = job_tasks.kind_of(request)
        task = getattr(request, kind)
        job_tasks.check_task(kind, facts)
        dispatcher = self._dispatchers.get(facts.name)
        widest = facts.embedding_dimensions or (dispatcher.embedding_dimensions if dispatcher is not None else 0)
        if kind == "predict" and (violations := job_tasks.wrong_tensors(task, facts, self._max_call_bytes, widest)):
            raise invalid(violations)
        if 0 < widest < request.embed.dimensions:
            raise InvalidArgument.at("embed.dimensions", f"at most {widest}, the model's own number")
        job_tasks.check_prompt(kind, task, facts, self._dispatchers.learned(facts.name).description)
        inputs = [
            (end - start, job_tasks.chunk_of(kind, task, start, end).SerializeToString())
            for start, end in chunks(*job_tasks.weights_of(kind, task))
        ]
        options = job_tasks.options_of(kind, task)
        caller = current_caller()

        def make(now: datetime) -> Job:
            return Job(
                uid=str(ids.uuid7()),
                tenant=caller.tenant,
                subject=caller.subject,
                model=request.model,
                model_version=facts.name,
                digest=facts.digest,
                task=kind,
                task_type=facts.task_type,
                options=options.SerializeToString(),
                priority=Priority(request.priority or common_pb2.PRIORITY_LOW),
                inputs=len(job_tasks.inputs_of(kind, task)),
                stored_bytes=sum(len(payload) for _, payload in inputs),
                create_time=now,
                update_time=now,
                deadline=now + _span(request, "timeout", DEFAULT_TIMEOUT),
                result_ttl=_span(request, "result_ttl", DEFAULT_RESULT_TTL),
                not_before=now,
                request_id=request.request_id,
            )

        return pb.CreateInferenceJobResponse(job=message(await store.create(make, _digest(request), inputs)))

    async def GetInferenceJob(self, request: pb.GetInferenceJobRequest, context: Any) -> pb.GetInferenceJobResponse:
        job, _ = await self._store().get(parse_name(request.name), _tenant())
        return pb.GetInferenceJobResponse(job=message(job))

    async def ListInferenceJobs(
        self, request: pb.ListInferenceJobsRequest, context: Any
    ) -> pb.ListInferenceJobsResponse:
        if not 0 <= request.page_size <= MAX_PAGE:
            raise InvalidArgument.at("page_size", f"must be 1 to {MAX_PAGE}; 0 means {DEFAULT_PAGE}")
        for field in ("model", "tenant"):
            value = getattr(request, field)
            if len(value) > MAX_FILTER_CHARACTERS or "\0" in value:
                raise InvalidArgument.at(field, f"at most {MAX_FILTER_CHARACTERS} characters, none of them NUL")
        for index, number in enumerate(request.states):
            if number not in STATES:
                raise InvalidArgument.at(f"states[{index}]", f"there is no state {number}")
        states = sorted({STATES[number] for number in request.states})
        mine = _tenant()
        if mine is not None and request.tenant not in ("", mine):
            return pb.ListInferenceJobsResponse()
        scope = repr((mine, states, request.model, request.tenant))
        before = _read_uid(request.page_token, scope) if request.page_token else None
        size = request.page_size or DEFAULT_PAGE
        found = await self._store().list(
            tenant=mine or request.tenant or None, states=states, model=request.model, before=before, size=size
        )
        token = _token(found[size - 1].uid, scope) if len(found) > size else ""
        return pb.ListInferenceJobsResponse(jobs=[message(job) for job in found[:size]], next_page_token=token)

    async def CancelInferenceJob(
        self, request: pb.CancelInferenceJobRequest, context: Any
    ) -> pb.CancelInferenceJobResponse:
        return pb.CancelInferenceJobResponse(
            job=message(await self._store().cancel(parse_name(request.name), _tenant()))
        )

    async def WatchInferenceJob(
        self, request: pb.WatchInferenceJobRequest, context: Any
    ) -> AsyncIterator[pb.WatchInferenceJobResponse]:
        uid, tenant, store = parse_name(request.name), _tenant(), self._store()
        seen = _read_cursor(request.cursor, uid) if request.cursor else 0
        with self._job_news.watch(uid) as changed:
            while True:
                changed.clear()
                job, _ = await store.get(uid, tenant)
                if job.revision > seen:
                    seen = job.revision
                    yield pb.WatchInferenceJobResponse(job=message(job), cursor=f"{uid}.{seen}")
                if job.is_final:
                    return
                await _first_of(changed, self._stopping)
                if self._stopping.is_set():
                    raise errors.ShuttingDown(cursor=f"{uid}.{seen}", retry_after_seconds=1.0)

    async def GetInferenceResult(
        self, request: pb.GetInferenceResultRequest, context: Any
    ) -> pb.GetInferenceResultResponse:
        uid = parse_name(request.name)
        if not 0 <= request.page_size <= MAX_RESULTS:
            raise InvalidArgument.at("page_size", f"must be 1 to {MAX_RESULTS}; 0 means {MAX_RESULTS}")
        if request.encoding not in pb.VectorEncoding.values():
            raise InvalidArgument.at("encoding", f"there is no encoding {request.encoding}")
        start = _read_position(request.page_token, uid) if request.page_token else 0
        size = request.page_size or MAX_RESULTS
        as_bytes = request.encoding == pb.VECTOR_ENCODING_BYTES
        job, now, found = await self._store().results(
            uid, _tenant(), start=start, max_inputs=size, max_bytes=PAGE_BYTES
        )
        if job.is_expired(now):
            raise errors.ResultExpired(f"the results of {request.name} were kept until {job.result_expire_time}")
        if job.state is not JobState.SUCCEEDED and not (request.partial and job.answered):
            raise errors.ResultNotReady(
                f"the job has ended: {job.state}" if job.is_final else f"the job is {job.state}", state=job.state.value
            )
        return _page(job, found, start, size, as_bytes)

    def _store(self) -> JobStore:
        if self._jobs is None:
            raise errors.DatabaseUnavailable("this process has no database, and jobs need one")
        return self._jobs

    def _wrong_job(self, request: pb.CreateInferenceJobRequest) -> list[FieldViolation]:
        kind = job_tasks.kind_of(request)
        if not kind:
            return [FieldViolation("embed", f"is required: a job needs a task, one of {', '.join(job_tasks.KINDS)}")]
        if kind == "embed":
            found = self._wrong_embed_task(request)
        else:
            found = job_tasks.wrong_inputs(kind, getattr(request, kind), request.model, self._max_call_bytes)
        if request.priority not in _PRIORITIES:
            found.append(FieldViolation("priority", f"there is no priority {request.priority}"))
        for name, most in (("timeout", MAX_TIMEOUT), ("result_ttl", MAX_RESULT_TTL)):
            if request.HasField(name):
                span = getattr(request, name)
                if not 0 <= span.nanos < 10**9 or not 0 < span.seconds + span.nanos / 1e9 <= most.total_seconds():
                    found.append(FieldViolation(name, f"above 0 and at most {most.days} days"))
        if len(request.request_id) > MAX_REQUEST_ID_CHARACTERS or "\0" in request.request_id:
            found.append(
                FieldViolation("request_id", f"at most {MAX_REQUEST_ID_CHARACTERS} characters, none of them NUL")
            )
        return found

    def _wrong_embed_task(self, request: pb.CreateInferenceJobRequest) -> list[FieldViolation]:
        task = request.embed
        call = pb.EmbedRequest(
            model=request.model, texts=task.texts, precision=task.precision, prompt_name=task.prompt_name
        )
        for name in _EMBED_FIELDS:
            if task.HasField(name):
                setattr(call, name, getattr(task, name))
        return [
            violation
            if violation.field == "model"
            else FieldViolation(f"embed.{violation.field}", violation.description)
            for violation in self._wrong_embed(call)
        ]


def parse_name(name: str) -> str:
    """The uid of `jobs/{uid}`. Raises InvalidArgument at `name`."""
    if not name.startswith(PREFIX):
        raise InvalidArgument.at("name", "is a job's name, jobs/{uid}")
    return str(ids.parse(name.removeprefix(PREFIX), "name"))


def message(job: Job) -> pb.InferenceJob:
    """A job as callers see it."""
    found = pb.InferenceJob(
        name=PREFIX + job.uid,
        uid=job.uid,
        model=job.model,
        model_version=job.model_version,
        digest=job.digest,
        task_type=common_pb2.TaskType.Name(job.task_type),
        state=common_pb2.JobState.Name(NUMBERS[job.state]),
        attempt=job.attempt,
        progress=pb.JobProgress(
            inputs=job.inputs, succeeded=job.succeeded, failed=job.failed, input_tokens=job.input_tokens
        ),
        priority=common_pb2.Priority.Name(job.priority),
        tenant=job.tenant,
        subject=job.subject,
        request_id=job.request_id,
        reason=job.reason,
    )
    if job.error is not None:
        found.error.reason, found.error.message = job.error.reason, job.error.message
    found.progress.compute.FromNanoseconds(job.compute_nanos)
    for name in ("create_time", "update_time", "start_time", "end_time", "deadline", "result_expire_time"):
        value = getattr(job, name)
        if value is not None:
            getattr(found, name).FromDatetime(value)
    return found


def _page(job: Job, found: Sequence[Chunk], start: int, size: int, as_bytes: bool) -> pb.GetInferenceResultResponse:
    response = pb.GetInferenceResultResponse(job=message(job))
    end = start
    for chunk in found:
        for result in pb.GetInferenceResultResponse.FromString(chunk.payload).results:
            if result.index < start:
                continue
            if len(response.results) == size:
                break
            if not as_bytes and result.HasField("embed"):
                values = array("f", result.embed.vector)
                if sys.byteorder == "big":
                    values.byteswap()
                result.embed.values.extend(values.tolist())
                result.embed.ClearField("vector")
            response.results.append(result)
            end = result.index + 1
    # Of a job that succeeded every input has a result; else this may name a page with nothing more on it.
    if response.results and end < job.inputs:
        response.next_page_token = _token(str(end), job.uid)
    return response


def _tenant() -> str | None:
    """Whose jobs the caller may see; None: all."""
    caller = current_caller()
    return caller.tenant if caller.roles.isdisjoint(OPERATORS) else None


def _span(request: pb.CreateInferenceJobRequest, field: str, default: timedelta) -> timedelta:
    if not request.HasField(field):
        return default
    span = getattr(request, field)
    return timedelta(seconds=span.seconds, microseconds=max(1, span.nanos // 1000) if span.nanos else 0)


def _digest(request: pb.CreateInferenceJobRequest) -> str:
    """Of what was asked for."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()


def _token(position: str, scope: str) -> str:
    body = f"{position}.{hashlib.sha256(f'{position} {scope}'.encode()).hexdigest()[:16]}"
    return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def _read_token(token: str, scope: str) -> str:
    """The position that a token of this scope names. Raises InvalidArgument at `page_token`."""
    try:
        position = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
        position = position.partition(".")[0]
    except ValueError:
        position = ""
    if _token(position, scope) != token:
        raise InvalidArgument.at("page_token", "is not a token that this list gave")
    return position


def _read_uid(token: str, scope: str) -> str:
    return str(ids.parse(_read_token(token, scope), "page_token"))


def _read_position(token: str, uid: str) -> int:
    position = _read_token(token, uid)
    if not position.isascii() or not position.isdigit() or len(position) > 6:
        raise InvalidArgument.at("page_token", "is not a token that this list gave")
    return int(position)


def _read_cursor(cursor: str, uid: str) -> int:
    """The revision that was seen. Raises InvalidArgument at `cursor`."""
    of, _, revision = cursor.partition(".")
    if of != uid or not revision.isascii() or not revision.isdigit() or len(revision) > 18:
        raise InvalidArgument.at("cursor", "is not a cursor of this job")
    return int(revision)


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
