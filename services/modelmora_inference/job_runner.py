"""Works on inference jobs: takes them up, feeds their inputs to the queues, writes down what comes back.

One `JobRunner` in each inference process; any number of them share a database. Life of a job here, numbered as in the
code:

  1. A free slot claims the job that is next. One that is to end (cancelled, too late, tried too often) is ended. A
     claim that was cut off may hold or not: before the next it is given back.
  2. Its chunks are read, a few at a time, and each becomes a call in the queue of the job's version: it shares batches
     with everybody. An input whose own error ends the call is left out and the others are asked again; after a few
     such inputs each is asked alone. A full queue is waited for.
  3. A chunk whose inputs are all answered is written down; at the job's deadline so is what is answered of each, and
     the job ends. While the database is away that waits; nothing is lost.
  4. An error that is no input's own ends the job, or gives it back for later if it may pass.
  5. Every third of a claim's time all claims are made to hold on. Who hears then, or from a notification, that a job is
     CANCELLING or no longer his lets go of it: its calls leave the queue and the worker.
  6. On a stop every job is given back at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from modelmora.common.v1 import common_pb2
from modelmora.errors import (
    Cancelled,
    ClaimLost,
    Conflict,
    DatabaseUnavailable,
    DeadlineExceeded,
    InternalError,
    JobNotFound,
    ModelMoraError,
    QueueFull,
    StorageFull,
)
from modelmora.inference.v1 import inference_pb2
from prometheus_client import Counter

from modelmora_inference import job_tasks, jobs
from modelmora_inference.dispatcher import Call, Dispatcher, Dispatchers
from modelmora_inference.domain import Place, Priority, VersionFacts
from modelmora_inference.job_tasks import JobInput
from modelmora_inference.jobs import Job, JobFailure, JobState
from modelmora_inference.store import SWEEP_JOBS, Chunk, JobStore

T = TypeVar("T")
log = logging.getLogger(__name__)

CALL_SECONDS = 300.0
"""A call of a job waits so long in a queue, then it is made anew: a queue knows no longer deadlines."""
LOOK_SECONDS = 30.0
"""Jobs are looked for at least so often, also when nothing was heard of any."""
AWAY_SECONDS = 0.5
"""So often a database that is away is asked again."""
START_SECONDS = 0.2
"""So soon it is noticed that a job's first input is on a worker."""
GIVE_BACK_SECONDS = 3.0
"""So long a stop waits for jobs to be given back; the claims of others expire."""
LONGEST_FULL_SECONDS = 5.0
BAD_INPUTS = 3
"""So many inputs of a chunk may be left out before the others are asked one by one."""

ENDED = Counter("modelmora_inference_jobs_total", "Jobs that ended here, by state", ["state"])
LOST = Counter("modelmora_inference_claims_lost_total", "Jobs that somebody else had taken up before they were done")
RESULTS = Counter("modelmora_inference_job_inputs_total", "Inputs of jobs that were answered here", ["outcome"])


@dataclass(frozen=True)
class RunnerRules:
    jobs: int = 4
    """At work at a time."""
    chunks: int = 4
    """Of one job, at work at a time."""
    claim_seconds: float = 15.0
    sweep_seconds: float = 60.0


@dataclass(slots=True, eq=False)
class _Held:
    """A job that is ours."""

    job: Job
    token: str
    deadline: float
    """On the monotonic clock."""
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    """Cancelled, lost, or the process stops."""
    calls: set[Call] = field(default_factory=set)
    started: bool = False
    """Some input of it was on a worker."""
    told: bool = False
    """The job says so too."""
    ended: bool = False
    """Its last input was answered."""

    @property
    def is_late(self) -> bool:
        return time.monotonic() >= self.deadline


@dataclass(slots=True)
class Computed:
    """What the calls of a chunk cost."""

    nanos: int = 0


class JobRunner:
    def __init__(self, store: JobStore, dispatchers: Dispatchers, rules: RunnerRules) -> None:
        self._store = store
        self._dispatchers = dispatchers
        self._rules = rules
        self._lasts = timedelta(seconds=rules.claim_seconds)
        self._held: dict[str, _Held] = {}
        self._tasks: dict[_Held, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._unsure = ""
        """Token of a claim of which nobody knows whether it holds: the answer to it was cut off."""

    def hear(self, news: str) -> None:
        """`uid state` of a job that changed somewhere; the empty string: of any."""
        uid, _, state = news.partition(" ")
        if not uid or state == JobState.PENDING:
            self._wake.set()
        elif state in (JobState.CANCELLING, JobState.CANCELLED) and uid in self._held:
            self._held[uid].let_go.set()

    async def run(self) -> None:
        """Takes up jobs, without end."""
        while True:
            self._wake.clear()
            try:
                if not await self._take_up():
                    soonest = await self._store.seconds_to_next(with_work=self._has_room)
                    await self._woken(LOOK_SECONDS if soonest is None else min(max(soonest, 0.05), LOOK_SECONDS))
            except ModelMoraError as error:
                if not isinstance(error, DatabaseUnavailable):
                    log.warning("jobs could not be looked for: %s", error.message)
                await asyncio.sleep(AWAY_SECONDS)

    async def keep(self) -> None:
        """Makes our claims hold on, without end."""
        while True:
            await asyncio.sleep(self._rules.claim_seconds / 3)
            held = list(self._held.values())
            if not held:
                continue
            try:
                states = await self._store.extend([one.token for one in held], self._lasts)
            except ModelMoraError as error:
                log.info("claims could not be renewed: %s", error.message)
                continue
            for one in held:
                state = states.get(one.token)
                if state is None or state is JobState.CANCELLING:
                    one.let_go.set()

    async def sweep(self) -> None:
        """Clears what was kept long enough, without end."""
        while True:
            if not self._store.migrated:
                await asyncio.sleep(AWAY_SECONDS)
                continue
            try:
                while await self._store.sweep() >= SWEEP_JOBS:
                    pass
            except ModelMoraError as error:
                log.info("old jobs could not be cleared: %s", error.message)
            await asyncio.sleep(self._rules.sweep_seconds)

    async def close(self) -> None:
        """Gives every job back. 6"""
        self._stopping = True
        for held in self._held.values():
            held.let_go.set()
        tasks = [*self._tasks.values(), asyncio.create_task(self._leave_unsure())]
        _, left = await asyncio.wait(tasks, timeout=GIVE_BACK_SECONDS)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    async def _take_up(self) -> bool:
        """One job, if there is one for us. 1"""
        if self._unsure:
            await self._store.forget(self._unsure)
        token = self._unsure = str(uuid.uuid4())
        claimed = await self._store.claim(token, self._lasts, with_work=self._has_room)
        self._unsure = ""
        if claimed is None:
            return False
        job, now = claimed
        held = _Held(job, token, time.monotonic() + (job.deadline - now).total_seconds())
        self._held[job.uid] = held
        task = asyncio.create_task(self._attend(held, now), name=f"job {job.uid}")
        self._tasks[held] = task
        task.add_done_callback(lambda _: self._let_go(held))
        return True

    async def _leave_unsure(self) -> None:
        """At a stop, which may have cut a claim off."""
        if self._unsure:
            with suppress(ModelMoraError):
                await self._store.forget(self._unsure)

    @property
    def _has_room(self) -> bool:
        return len(self._held) < self._rules.jobs

    def _let_go(self, held: _Held) -> None:
        del self._tasks[held]
        if self._held.get(held.job.uid) is held:
            del self._held[held.job.uid]
        self._wake.set()

    async def _woken(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # not wait_for, which may swallow a cancellation
                await self._wake.wait()

    async def _attend(self, held: _Held, now: datetime) -> None:
        """Sees a job through to its end here, whatever it is."""
        uid, token = held.job.uid, held.token
        try:
            error = held.job.verdict(now)
            if error is None:
                error = await self._work(held)
            if error is None:
                return
            if isinstance(error, Cancelled | ClaimLost):
                # By its owner, by somebody who has taken it up, or by our own stop: the job itself knows.
                job = await self._persist(lambda: self._store.give_back(uid, token, None))
            elif jobs.may_pass(error) and time.monotonic() < held.deadline:  # 4
                log.info("job %s waits: %s", uid, error.message)
                job = await self._persist(lambda: self._store.give_back(uid, token, error))
            else:
                job = await self._persist(lambda: self._store.end(uid, token, error))
            if job.is_final:
                ENDED.labels(job.state.value).inc()
        except (ClaimLost, JobNotFound):
            LOST.inc()
            log.info("job %s is somebody else's by now", uid)
        except ModelMoraError as error:  # the stop does not wait for the database
            log.info("job %s could not be given back: %s", uid, error.message)

    async def _work(self, held: _Held) -> ModelMoraError | None:
        """Computes what is missing; None: all of it is answered and the job has ended."""
        computing = asyncio.create_task(self._compute(held))
        letting_go = asyncio.create_task(held.let_go.wait())
        try:
            while not computing.done() and not letting_go.done():
                await asyncio.wait(
                    (computing, letting_go),
                    timeout=None if held.told else START_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                await self._notice_start(held)
        finally:
            letting_go.cancel()
            if not computing.done():
                computing.cancel()
                await asyncio.wait([computing])
        if computing.cancelled():
            return Cancelled()
        error = computing.exception()
        if error is None:
            return None
        error = _first(error)
        if isinstance(error, ModelMoraError):
            return error
        log.error("job %s failed", held.job.uid, exc_info=error)
        return InternalError()

    async def _notice_start(self, held: _Held) -> None:
        if held.told or not (held.started or any(_is_begun(call) for call in held.calls)):
            return
        held.told = True
        try:
            await self._store.start(held.job.uid, held.token)
        except ModelMoraError:
            pass  # its first chunk says it too

    async def _compute(self, held: _Held) -> None:
        firsts = await self._persist(lambda: self._store.waiting_chunks(held.job.uid))
        slots = asyncio.Semaphore(self._rules.chunks)

        async def one(first: int) -> None:
            async with slots:
                await self._compute_chunk(held, first)

        await _all(one(first) for first in firsts)
        if not held.ended:
            raise DeadlineExceeded("not all inputs were answered before the job's deadline")

    async def _compute_chunk(self, held: _Held, first: int) -> None:
        """2 and 3."""
        uid, token = held.job.uid, held.token
        if held.is_late:
            return
        payload = await self._persist(lambda: self._store.inputs(uid, first))
        if payload is None:
            return
        job = held.job
        facts = VersionFacts(
            job.model_version, job.digest, job.task_type, takes_images=job_tasks.sees(job.task, payload)
        )
        computed = Computed()
        inputs = job_tasks.read(job.task, job.options, payload, first, facts)
        count = len(inputs)
        results = await self._answer(held, inputs, computed)
        if not results:
            return
        failures = [
            JobFailure(one.error.reason, one.error.message) for one in results if one.WhichOneof("outcome") == "error"
        ]
        chunk = Chunk(first, count, inference_pb2.GetInferenceResultResponse(results=results).SerializeToString())
        job = await self._persist(
            lambda: self._store.publish(
                uid,
                token,
                chunk,
                succeeded=len(results) - len(failures),
                failures=failures,
                input_tokens=sum(one.usage.input_tokens for one in results),
                compute_nanos=computed.nanos,
            )
        )
        RESULTS.labels("succeeded").inc(len(results) - len(failures))
        RESULTS.labels("failed").inc(len(failures))
        held.told = True
        if job.is_final:
            held.ended = True
            ENDED.labels(job.state.value).inc()

    async def _answer(
        self, held: _Held, inputs: list[JobInput], computed: Computed, bad: int = 0
    ) -> list[inference_pb2.InferenceResult]:
        """The result or the own error of each input, by index; of those that there are at the job's deadline. Raises
        what concerns the whole job."""
        found: list[inference_pb2.InferenceResult] = []
        while inputs:
            if bad > BAD_INPUTS and len(inputs) > 1:
                alone = await _all(self._answer(held, [one], computed, bad) for one in inputs)
                found += [result for some in alone for result in some]
                break
            call = _call_of(held, inputs[0])
            try:
                await self._ask(held, call, [entry for one in inputs for entry in one.entries])
            except (QueueFull, DeadlineExceeded) as error:
                some = self._results(held, inputs, call, computed)
                found += some
                inputs = [one for one in inputs if all(one.index != result.index for result in some)]
                if isinstance(error, QueueFull):
                    seconds = min(max(error.retry_after_seconds or 0.0, 0.05), LONGEST_FULL_SECONDS)
                    await asyncio.sleep(max(0.0, min(seconds, held.deadline - time.monotonic())))
            except ModelMoraError as error:
                if not jobs.is_of_input(error):
                    raise
                bad += 1
                if call.failed_index is None:
                    bad = BAD_INPUTS + 1
                    if len(inputs) > 1:
                        continue
                entry = call.failed_index or 0
                at, place = _place(inputs, entry)
                one = inputs.pop(at)
                where = f"{one.element.replace('[]', f'[{place}]')}: " if one.element else ""
                message = where + error.message.removeprefix(f"{call.path_of(entry)}: ")
                told = inference_pb2.JobError(reason=error.reason, message=message)
                found.append(inference_pb2.InferenceResult(index=one.index, error=told))
            else:
                found += self._results(held, inputs, call, computed)
                break
            if held.is_late:
                break
        return sorted(found, key=lambda one: one.index)

    def _results(
        self, held: _Held, inputs: Sequence[JobInput], call: Call, computed: Computed
    ) -> list[inference_pb2.InferenceResult]:
        """Of the inputs that a call has answered, all of them or not."""
        computed.nanos += int(call.compute_seconds * 1e9)
        call.description = call.description or self._dispatchers.learned(held.job.model_version).description
        return list(_results(inputs, call))

    async def _ask(self, held: _Held, call: Call, entries: Sequence[Any]) -> None:
        """One call through the queue; its rows are there when this returns."""
        dispatcher: Dispatcher = self._dispatchers.submit(held.job.model_version, call, entries)
        held.calls.add(call)
        try:
            await call.done
        except asyncio.CancelledError:
            dispatcher.withdraw(call)
            raise
        finally:
            held.calls.discard(call)
        held.started = True

    async def _persist(self, step: Callable[[], Awaitable[T]]) -> T:
        """Until the database has taken it; a stop waits for no database."""
        while True:
            try:
                return await step()
            except (DatabaseUnavailable, Conflict, StorageFull):
                if self._stopping:
                    raise
                await asyncio.sleep(AWAY_SECONDS)


def _is_begun(call: Call) -> bool:
    return any(entry.place is not Place.WAITING for entry in call.entries)


def _call_of(held: _Held, first: JobInput) -> Call:
    """What inputs of one chunk are asked with; all of them have the same options."""
    job, now = held.job, time.monotonic()
    return Call(
        priority=Priority(job.priority),
        tenant=job.tenant,
        arrival=now,
        deadline=min(held.deadline, now + CALL_SECONDS),
        normalize=first.normalize,
        truncate=first.truncate,
        dimensions=first.dimensions,
        prompt=first.prompt,
        exact=first.exact,
        done=asyncio.get_running_loop().create_future(),
        task_type=job.task_type,  # type: ignore[arg-type]
        input_field="entries[]",
    )


def _place(inputs: Sequence[JobInput], entry: int) -> tuple[int, int]:
    """Which of the inputs an entry of their call is of, and which of its entries."""
    for at, one in enumerate(inputs):
        if entry < len(one.entries):
            return at, entry
        entry -= len(one.entries)
    raise InternalError("an entry that no input has failed")


def _results(inputs: Sequence[JobInput], call: Call) -> Iterator[inference_pb2.InferenceResult]:
    """What came back for a call, input by input; of one that has ended too early, of those that were answered."""
    timings = common_pb2.Timings()
    for duration, seconds in (
        (timings.queue, call.started - call.arrival),
        (timings.tokenise, call.tokenise_seconds),
        (timings.compute, call.compute_seconds),
        (timings.total, time.monotonic() - call.arrival),
    ):
        duration.FromNanoseconds(int(seconds * 1e9))
    start = 0
    for one in inputs:
        own = slice(start, start + len(one.entries))
        start = own.stop
        part = job_tasks.Part(call.rows[own], call.input_tokens[own], call.truncated[own])
        if not call.is_answered(own):
            continue
        result = one.result(part, call.labels)
        result.index = one.index
        result.usage.input_tokens = sum(part.input_tokens)
        result.timings.CopyFrom(timings)
        yield result


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """What all of them answer, in order; with the first that fails the others are cancelled."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_awaited(one)) for one in work]
    return [task.result() for task in tasks]


async def _awaited(one: Awaitable[T]) -> T:
    return await one


def _first(error: BaseException) -> BaseException:
    """Of those that failed together."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
