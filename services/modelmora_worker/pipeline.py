"""The worker's two threads: one tokenises and sorts the next batch while the other computes the present one.

Batches of a higher rank go first, from the next micro-batch on: the compute thread runs them in the middle of the one
it has, and then goes on with that. Nothing is computed twice.

All calls of `load`, `infer`, `stream` and `close` are made on the compute thread (OpenMP pools and some engines belong
to the thread that made them). While it has nothing to do it prepares a batch itself, which saves the hop when there is
no load; the prepare thread works only while something computes, and at most one batch ahead.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from modelmora import errors

from modelmora_worker.engines import base

log = logging.getLogger("worker")

EXIT_OUT_OF_MEMORY: Final = 70
"""Exit status after an engine ran out of memory: nobody knows what state it is in."""


@dataclass(slots=True)
class Failure:
    """A row that failed alone."""

    position: int
    error: errors.ModelMoraError


@dataclass(slots=True)
class Done:
    """Rows that are answered: computed ones in `rows` by the order of `batch`, and failed ones."""

    batch: base.MicroBatch | None
    rows: base.Rows | None
    failed: list[Failure]
    tokenise_seconds: float
    compute_seconds: float
    last: bool


@dataclass(slots=True, eq=False)
class Batch:
    """A batch on its way: what was asked, until when, what was withdrawn meanwhile, and who is answered."""

    texts: Sequence[base.Text]
    deadlines: Sequence[float]
    """By position; empty: none."""
    answer: Callable[[Done], None]
    fail: Callable[[errors.ModelMoraError], None]
    rank: int = 0
    cancelled: bool = False
    dropped: set[int] = field(default_factory=set)
    prepared: base.Prepared | None = None
    tokenise_seconds: float = 0.0
    exact: bool = False
    """To be computed with the exact profile."""
    rows_of: Callable[[Sequence[base.Text]], Sequence[bytes]] | None = None
    """Makes all rows, with nothing left to compute: tokens of texts, texts of tokens. None: the engine prepares."""
    infer: Callable[[base.MicroBatch], base.Rows] | None = None
    """Computes in place of the engine's own `infer`."""
    left_out: list[Failure] = field(default_factory=list)
    """Rows that nobody wanted any more when their turn to be prepared came."""


@dataclass(slots=True, eq=False)
class Streaming:
    """A request that is answered bit by bit."""

    request: Mapping[str, Any]
    emit: Callable[[Mapping[str, Any], bool], None]
    fail: Callable[[errors.ModelMoraError], None]
    rank: int = 0
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class Loading:
    """The one load."""

    work: Callable[[], base.Engine]
    loaded: Callable[[base.Engine], None]
    fail: Callable[[errors.ModelMoraError], None]
    rank: int = 0
    cancelled: bool = False


Job = Batch | Streaming | Loading


class Pipeline:
    """Runs jobs by rank, then in the order of arrival. `submit`, `withdraw` and `stop` from any thread."""

    def __init__(self, idle: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._idle = idle
        self._clock = clock
        self._engine: base.Engine | None = None
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._ahead = threading.Condition(self._lock)
        self._preparing = threading.Lock()
        self._inbox: deque[Job] = deque()
        self._ready: deque[Batch] = deque()
        self._ahead_of: Batch | None = None
        self._busy = False
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._compute_loop, name="compute", daemon=True),
            threading.Thread(target=self._prepare_loop, name="prepare", daemon=True),
        ]
        # Counted by the compute thread alone; read from any.
        self.batches = 0
        self.entries = 0
        self.batch_tokens = 0
        """Of the largest batch so far."""
        self.compute_seconds = 0.0
        self.computing_since: float | None = None
        self.looked_at = 0
        """Inputs whose preparation was begun, where each takes long. By whichever thread prepares."""

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        with self._lock:
            _queue(self._inbox, job)
            if self._busy:
                self._ahead.notify()
            else:
                self._work.notify()

    def withdraw(self, job: Job) -> None:
        """Cancels a job: at once while it waits, at its next micro-batch (or output) once it runs."""
        job.cancelled = True
        with self._lock:
            waits: deque[Any] = self._inbox if job in self._inbox else self._ready
            if job not in waits:
                return
            waits.remove(job)
            self._ahead.notify()
        job.fail(errors.Cancelled())

    @property
    def in_flight(self) -> int:
        """Jobs not finished."""
        with self._lock:
            return len(self._inbox) + len(self._ready) + (self._ahead_of is not None) + self._busy

    def stop(self, timeout_seconds: float) -> None:
        """Ends both threads after the running micro-batch and closes the engine."""
        with self._lock:
            self._stopping = True
            self._work.notify()
            self._ahead.notify()
        for thread in self._threads:
            thread.join(timeout_seconds)

    # The two threads.

    def _compute_loop(self) -> None:
        while True:
            with self._lock:
                self._busy = False
                idle = not (self._inbox or self._ready or self._ahead_of)
            if idle:
                self._idle()
            with self._lock:
                # A batch that is being prepared came before what is in the inbox.
                while not self._stopping and not self._ready and (not self._inbox or self._ahead_of):
                    self._work.wait()
                if self._stopping:
                    break
                job = self._next()
                self._busy = True
                self._ahead.notify()
            self._run(job)
        if self._engine is not None:
            self._engine.close()

    def _prepare_loop(self) -> None:
        while True:
            with self._lock:
                while not self._stopping and not self._worth_preparing():
                    self._ahead.wait()
                if self._stopping:
                    return
                job = self._inbox.popleft()
                assert isinstance(job, Batch)
                self._ahead_of = job
            ready = self._prepare(job)
            with self._lock:
                self._ahead_of = None
                if ready:
                    _queue(self._ready, job)
                self._work.notify()

    def _worth_preparing(self) -> bool:
        """Something computes, nothing as urgent is prepared yet, and a batch comes next. Needs the lock."""
        if not (self._busy and self._inbox and isinstance(self._inbox[0], Batch)):
            return False
        return not self._ready or self._ready[0].rank < self._inbox[0].rank

    def _next(self) -> Job:
        """Takes what is to run now: prepared batches came before what is in the inbox. Needs the lock."""
        if self._ready and not (self._inbox and self._inbox[0].rank > self._ready[0].rank):
            return self._ready.popleft()
        return self._inbox.popleft()

    def _run_overtaking(self, rank: int) -> None:
        """Runs what has a higher rank, before the next micro-batch of a batch of this one."""
        while True:
            with self._lock:
                waiting = [jobs[0].rank for jobs in (self._ready, self._inbox) if jobs]
                if self._stopping or max(waiting, default=rank) <= rank:
                    return
                job = self._next()
                self._ahead.notify()
            self._run(job)

    def _run(self, job: Job) -> None:
        try:
            if isinstance(job, Batch):
                if job.prepared is not None or self._prepare(job):
                    self._compute(job)
            elif isinstance(job, Streaming):
                self._stream(job)
            else:
                self._engine = job.work()
                job.loaded(self._engine)
        except errors.ModelMoraError as error:
            job.fail(error)
        except MemoryError as error:
            if isinstance(job, Loading):
                job.fail(errors.OutOfMemory(f"the engine ran out of memory while it loaded: {error}"))
            else:
                _die_out_of_memory(error)
        except Exception as error:  # The worker's engine call: an engine may raise anything.
            log.exception("the engine failed")
            cause = f"{type(error).__name__}: {error}"
            job.fail(errors.LoadFailed(cause) if isinstance(job, Loading) else errors.InternalError(cause))

    def _prepare(self, batch: Batch) -> bool:
        """Prepares; False: there is nothing left to compute and the batch is answered."""
        if batch.cancelled:
            batch.fail(errors.Cancelled())
            return False
        assert self._engine is not None
        start = self._clock()
        try:
            with self._preparing:
                if batch.rows_of is not None:
                    batch.prepared = _ready(batch.rows_of(batch.texts))
                elif (each := getattr(self._engine, "prepare_each", None)) is not None:
                    batch.prepared = each(batch.texts, batch.exact, partial(self._is_wanted, batch))
                else:
                    batch.prepared = self._engine.prepare(batch.texts, batch.exact)
        except errors.ModelMoraError as error:
            batch.fail(error)
            return False
        except MemoryError as error:
            _die_out_of_memory(error)
        except Exception as error:  # The worker's engine call.
            log.exception("the engine failed")
            batch.fail(errors.InternalError(f"{type(error).__name__}: {error}"))
            return False
        batch.tokenise_seconds = self._clock() - start
        return True

    def _is_wanted(self, batch: Batch, position: int) -> bool:
        """Asked before each input that takes long to prepare. Raises Cancelled when the whole batch is withdrawn."""
        self.looked_at += 1
        if batch.cancelled:
            raise errors.Cancelled()
        error = _why_dead(position, batch.deadlines, batch.dropped, self._clock())
        if error is not None:
            batch.left_out.append(Failure(position, error))
        return error is None

    def _compute(self, batch: Batch) -> None:
        assert batch.prepared is not None
        assert self._engine is not None
        failed = batch.left_out + [Failure(*pair) for pair in batch.prepared.failed]
        tokenise_seconds = batch.tokenise_seconds
        pending = deque(batch.prepared.micro_batches)
        self.batches += 1
        if batch.rows_of is None:
            self.batch_tokens = max(self.batch_tokens, sum(sum(micro.input_tokens) for micro in pending))
        while pending:
            if batch.cancelled:
                batch.fail(errors.Cancelled())
                return
            micro_batch = pending.popleft()
            failed += drop_dead(micro_batch, batch.deadlines, batch.dropped, self._clock())
            if not micro_batch.positions:
                continue
            start = self.computing_since = self._clock()
            try:
                if batch.rows_of is not None:
                    rows = base.Rows(b"".join(micro_batch.items), [len(row) // 4 for row in micro_batch.items])
                else:
                    rows = (batch.infer or self._engine.infer)(micro_batch)
            finally:
                self.computing_since = None
            seconds = self._clock() - start
            self.compute_seconds += seconds
            self.entries += len(micro_batch.positions)
            failed += [Failure(*pair) for pair in rows.failed]
            batch.answer(Done(micro_batch, rows, failed, tokenise_seconds, seconds, last=not pending))
            if not pending:
                return
            failed, tokenise_seconds = [], 0.0
            self._run_overtaking(batch.rank)
        batch.answer(Done(None, None, failed, tokenise_seconds, 0.0, last=True))

    def _stream(self, job: Streaming) -> None:
        assert self._engine is not None
        for output in self._engine.stream(job.request):
            if job.cancelled:
                raise errors.Cancelled()
            job.emit(output, False)
        job.emit({}, True)


def _ready(rows: Sequence[bytes]) -> base.Prepared:
    """Rows, of tokens 16 bytes each, as a batch of which nothing is left to compute."""
    count = len(rows)
    batch = base.MicroBatch(list(range(count)), [len(row) // 16 for row in rows], [False] * count, list(rows))
    return base.Prepared([batch] if rows else [])


def _queue(jobs: deque[Any], job: Job) -> None:
    """Puts a job behind all of its rank. There are few."""
    place = len(jobs)
    while place and jobs[place - 1].rank < job.rank:
        place -= 1
    jobs.insert(place, job)


def drop_dead(batch: base.MicroBatch, deadlines: Sequence[float], dropped: set[int], now: float) -> list[Failure]:
    """Takes withdrawn and expired rows out of a micro-batch, in place; the failures to answer them with."""
    if not deadlines and not dropped:
        return []
    failed: list[Failure] = []
    alive: list[int] = []
    for index, position in enumerate(batch.positions):
        error = _why_dead(position, deadlines, dropped, now)
        if error is None:
            alive.append(index)
        else:
            failed.append(Failure(position, error))
    if failed:
        batch.positions = [batch.positions[i] for i in alive]
        batch.input_tokens = [batch.input_tokens[i] for i in alive]
        batch.truncated = [batch.truncated[i] for i in alive]
        batch.items = [batch.items[i] for i in alive]
    return failed


def _why_dead(position: int, deadlines: Sequence[float], dropped: set[int], now: float) -> errors.ModelMoraError | None:
    """Why nobody waits for a row any more; None: somebody does."""
    if position in dropped:
        return errors.Cancelled()
    if deadlines and deadlines[position] <= now:
        return errors.DeadlineExceeded("the deadline passed before the computation began")
    return None


def _die_out_of_memory(error: MemoryError) -> None:
    """Ends the process: after this an engine may be in any state, and a fresh worker is cheap."""
    traceback.print_exception(error)
    print("the engine ran out of memory; the worker ends", file=sys.stderr, flush=True)
    os._exit(EXIT_OUT_OF_MEMORY)
