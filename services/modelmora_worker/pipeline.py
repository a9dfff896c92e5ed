"""The worker's threads: one tokenises and sorts the next batch while others compute.

A micro-batch that comes alone has all cores. Where there are several, an engine with tracks computes as many of them at
a time, each on its part of the cores: cores that do not wait for each other at every layer compute a tenth (OpenVINO)
to a third (torch) more, and one that is taken for something else holds up none of the others. A track goes on with the
next batch while another still computes the last of this one.

Batches of a higher rank go first, from the next micro-batch on; then the other goes on. Nothing is computed twice.
Long texts are prepared slice by slice: between two slices more urgent batches go first too, and what nobody waits for
any more is left out. One text is never cut, so a slice takes what its longest text does: 0.3 s for 100,000 letters
without a space and a byte-level BPE, the worst that we know.

`load`, `stream`, `close`, and what has no track of `infer`, are called on the compute thread with nothing beside them
(OpenMP pools and some engines belong to the thread that made them); it is the first track too. While it has nothing to
do it prepares a batch itself, which saves the hop when there is no load; the prepare thread works only while something
computes, and at most one batch ahead.
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
from typing import Any, Final, NamedTuple, TypeVar

from modelmora import errors

from modelmora_worker import answers
from modelmora_worker.engines import base

log = logging.getLogger("worker")

_T = TypeVar("_T")

SLICE_CHARACTERS: Final = 65_536
"""So much of a batch is prepared at a time, or one text. Ordinary batches have less: 8192 tokens are 40,000 or so."""
ENTRY_CHARACTERS: Final = 64
"""What a text costs beside its characters, in characters."""
EXIT_OUT_OF_MEMORY: Final = 70
"""Exit status after an engine ran out of memory: nobody knows what state it is in."""

EXIT_THREAD_ENDED: Final = 71
"""Exit status after a thread of the pipeline has ended by something that no engine should raise."""


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
    """Of the whole worker: a second on one of n tracks counts for an nth."""
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
    prepared: base.Prepared = field(default_factory=base.Prepared)
    looked_at: int = 0
    """So many of its texts are prepared, or nobody waits for them any more."""
    tokenise_seconds: float = 0.0
    exact: bool = False
    """To be computed with the exact profile."""
    rows_of: Callable[[Sequence[base.Text]], Sequence[bytes]] | None = None
    """Makes all rows, with nothing left to compute: tokens of texts, texts of tokens. None: the engine prepares."""
    infer: Callable[[base.MicroBatch], base.Rows] | None = None
    """Computes in place of the engine's own `infer`."""
    token_bytes: int = 0
    """Bytes of a row for each of its tokens, where rows grow with them and the engine knows by how much."""
    max_row_bytes: Sequence[int] = ()
    """By position; with `token_bytes`."""
    failed: list[Failure] = field(default_factory=list)
    """Rows that failed and have not been answered yet."""
    pending: deque[base.MicroBatch] = field(default_factory=deque)
    running: int = 0
    """Micro-batches that are being computed."""
    error: errors.ModelMoraError | None = None
    """Why the rest of its rows is not computed."""
    answering: threading.Lock = field(default_factory=threading.Lock)
    """The last answer comes last."""


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


class _Pass(NamedTuple):
    batch: Batch
    micro_batch: base.MicroBatch


class Pipeline:
    """Runs jobs by rank, then in the order of arrival. `submit`, `withdraw` and `stop` from any thread."""

    def __init__(self, idle: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._idle = idle
        self._clock = clock
        self._engine: base.Engine | None = None
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._ahead = threading.Condition(self._lock)
        self._help = threading.Condition(self._lock)
        self._preparing = threading.Lock()
        self._inbox: deque[Job] = deque()
        self._ready: deque[Batch] = deque()
        self._ahead_of: Batch | None = None
        """What the prepare thread prepares."""
        self._readying = False
        """The compute thread prepares a batch, or waits for the end of a slice to do so."""
        self._open: deque[Batch] = deque()
        """Batches of which a micro-batch waits for a track."""
        self._begun: set[Job] = set()
        """Jobs that have left the queues and are not answered."""
        self._busy = False
        """The compute thread is."""
        self._alone = False
        """What the compute thread does, or waits for, wants nothing beside it: the other tracks begin nothing."""
        self._running = 0
        """Micro-batches that are being computed."""
        self._tracks = 1
        self._tracks_open = self._tracks_wanted = False
        self._since: list[float | None] = [None]
        """By track: when its micro-batch was begun."""
        self._stopping = False
        self.row_length = 0
        """So many numbers the engine's rows have where nobody asks for less; 0: any."""
        self._threads = [
            threading.Thread(target=self._go_on, args=(self._compute_loop,), name="compute", daemon=True),
            threading.Thread(target=self._go_on, args=(self._prepare_loop,), name="prepare", daemon=True),
        ]
        # Counted under the lock; read from any thread.
        self.batches = 0
        self.entries = 0
        self.batch_tokens = 0
        """Of the largest batch so far."""
        self.compute_seconds = 0.0
        """Of the whole worker, see `Done`."""
        self.looked_at = 0
        """Inputs whose preparation was begun, where it takes long. By whichever thread prepares."""

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        with self._lock:
            _queue(self._inbox, job)
            if self._busy:
                self._call_to_prepare()
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
            return self._unfinished()

    @property
    def computing_since(self) -> float | None:
        """When the micro-batch was begun that has been computed for the longest; None: nothing computes."""
        return min((since for since in self._since if since is not None), default=None)

    def stop(self, timeout_seconds: float) -> None:
        """Ends all threads after the running micro-batches and closes the engine."""
        with self._lock:
            self._stopping = True
            for waiting in (self._work, self._ahead, self._help):
                waiting.notify_all()
        for thread in self._threads:
            thread.join(timeout_seconds)

    # The threads.

    def _go_on(self, loop: Callable[[], None]) -> None:
        """A thread that ends before all do, as an engine that calls sys.exit has it, leaves jobs that nobody answers:
        then the process ends, which everybody hears of."""
        try:
            loop()
        finally:
            if not self._stopping:
                traceback.print_exc()
                print("a thread of the worker has ended; so does the worker", file=sys.stderr, flush=True)
                os._exit(EXIT_THREAD_ENDED)

    def _compute_loop(self) -> None:
        while True:
            with self._lock:
                self._busy = False
                idle = not self._unfinished()
            if idle:
                self._idle()
            with self._lock:
                while not self._stopping and (work := self._next()) is None:
                    self._work.wait()
                if self._stopping:
                    break
                self._busy = True
                self._call_to_prepare()
                self._call_for_help()
            if isinstance(work, _Pass):
                self._compute(work, None if self._alone or self._tracks == 1 else 0)
            elif work is not None:
                self._run(work)
        for thread in self._threads[2:]:
            thread.join()
        if self._engine is not None:
            self._engine.close()

    def _track_loop(self, track: int) -> None:
        if track == 1:
            with self._lock:
                while not self._stopping and not self._tracks_wanted:
                    self._help.wait()
            if not self._stopping:
                self._open_tracks()
        while True:
            with self._lock:
                while not self._stopping and (taken := self._take_beside()) is None:
                    self._help.wait()
                if self._stopping:
                    return
                self._call_to_prepare()
            if taken is not None:
                self._compute(taken, track)
            with self._lock:
                idle = not self._unfinished()
            if idle:
                self._idle()

    def _open_tracks(self) -> None:
        """Beside whatever is computed meanwhile: nobody waits for it. Without tracks it goes on as before."""
        assert self._engine is not None
        try:
            _called(self._engine.open_tracks)  # type: ignore[attr-defined]
        except (errors.ModelMoraError, MemoryError) as error:
            log.warning("the engine computes one micro-batch at a time, for its tracks could not be opened: %s", error)
            return
        with self._lock:
            self._tracks_open = True

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
                if ready and not self._goes_on(job):
                    _queue(self._ready, job)
                self._work.notify()
                self._call_for_help()

    def _worth_preparing(self) -> bool:
        """Something computes, nothing as urgent is prepared yet, and a batch comes next. Needs the lock."""
        if not (self._busy and self._inbox and isinstance(self._inbox[0], Batch)):
            return False
        return not self._readying and (not self._ready or self._ready[0].rank < self._inbox[0].rank)

    def _call_to_prepare(self) -> None:
        """Wakes the prepare thread where there is something for it. Woken for nothing it wants the interpreter while a
        lone batch is computed, and its answer waits for two more switches of threads. Needs the lock."""
        if self._worth_preparing():
            self._ahead.notify()

    def _unfinished(self) -> int:
        """Needs the lock."""
        return len(self._inbox) + len(self._ready) + (self._ahead_of is not None) + len(self._begun)

    def _call_for_help(self) -> None:
        """Wakes the other tracks where there is something for them. Needs the lock."""
        if self._tracks > 1 and (self._open or self._ready):
            self._help.notify_all()

    def _next(self) -> _Pass | Job | None:
        """What the compute thread does now: a micro-batch, or what is to be begun. None: it waits. Needs the lock."""
        self._alone = False
        queues: list[deque[Any]] = [self._open, self._ready]
        if self._inbox and (self._ahead_of is None or self._inbox[0].rank > self._ahead_of.rank):
            queues.append(self._inbox)  # else a batch that is being prepared came before
        first = max((jobs for jobs in queues if jobs), key=lambda jobs: jobs[0].rank, default=None)
        if first is None:
            return None
        job: Job = first[0]
        if first is not self._inbox and job.infer is not None if isinstance(job, Batch) else True:
            self._alone = True
            if self._running:
                return None
        if first is self._inbox:
            self._begun.add(job)
            self._readying = isinstance(job, Batch)
            return self._inbox.popleft()
        taken = self._take()
        if self._tracks > 1 and not self._alone:
            several = self._running > 1 or bool(self._open or self._ready)
            self._tracks_wanted = self._tracks_wanted or several
            self._alone = not (several and self._tracks_open)
        return taken

    def _take_beside(self) -> _Pass | None:
        """What another track than the first may compute now. Needs the lock."""
        return self._take() if self._tracks_open and not self._alone else None

    def _take(self) -> _Pass | None:
        """The next micro-batch. Needs the lock."""
        if self._ready and not (self._open and self._open[0].rank >= self._ready[0].rank):
            self._open_up(self._ready.popleft())
        if not self._open or (self._open[0].infer is not None and self._running):
            return None
        batch = self._open[0]
        micro_batch = batch.pending.popleft()
        if not batch.pending:
            self._open.popleft()
        batch.running += 1
        self._running += 1
        return _Pass(batch, micro_batch)

    def _open_up(self, batch: Batch) -> None:
        """Needs the lock."""
        self._begun.add(batch)
        batch.failed += [Failure(*pair) for pair in batch.prepared.failed]
        # Where all have failed, a micro-batch of none is what answers.
        batch.pending.extend(batch.prepared.micro_batches or [base.MicroBatch([], [], [], [])])
        self.batches += 1
        if batch.rows_of is None:
            self.batch_tokens = max(self.batch_tokens, sum(sum(micro.input_tokens) for micro in batch.pending))
        _queue(self._open, batch)

    def _run(self, job: Job) -> None:
        """On the compute thread: readies a batch; does another job."""
        try:
            if isinstance(job, Batch):
                ready = self._prepare(job)
                with self._lock:
                    self._readying = False
                    self._begun.discard(job)
                    if ready and not self._goes_on(job):
                        self._open_up(job)
                return
            elif isinstance(job, Streaming):
                _called(partial(self._stream, job))
            else:
                _called(partial(self._load, job))
        except errors.ModelMoraError as error:
            broken = isinstance(job, Loading) and isinstance(error, errors.InternalError)
            job.fail(errors.LoadFailed(error.message) if broken else error)
        except MemoryError as error:
            if isinstance(job, Loading):
                job.fail(errors.OutOfMemory(f"the engine ran out of memory while it loaded: {error}"))
            else:
                _die_out_of_memory(error)
        with self._lock:
            self._begun.discard(job)

    def _load(self, job: Loading) -> None:
        self._engine = job.work()
        self._make_tracks(getattr(self._engine, "tracks", 1))
        job.loaded(self._engine)

    def _make_tracks(self, count: int) -> None:
        self._tracks, self._since = count, [None] * count
        for track in range(1, count):
            loop = partial(self._track_loop, track)
            thread = threading.Thread(target=self._go_on, args=(loop,), name=f"track {track}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _prepare(self, batch: Batch) -> bool:
        """Prepares its next slice; False: there is nothing left to compute and the batch is answered."""
        try:
            with self._preparing:
                start = self._clock()
                if batch.cancelled:
                    raise errors.Cancelled()
                if batch.rows_of is None and hasattr(self._engine, "prepare_each"):
                    self._prepare_each(batch)
                else:
                    self._prepare_slice(batch, start)
                batch.tokenise_seconds += self._clock() - start
        except errors.ModelMoraError as error:
            batch.fail(error)
            return False
        except MemoryError as error:
            _die_out_of_memory(error)
        return True

    def _prepare_each(self, batch: Batch) -> None:
        def prepared() -> base.Prepared:
            wanted = partial(self._is_wanted, batch)
            made = self._engine.prepare_each(batch.texts, batch.exact, wanted)  # type: ignore[union-attr]
            return answers.check_prepared(made, len(batch.texts), [failure.position for failure in batch.failed])

        batch.looked_at = len(batch.texts)
        batch.prepared = _called(prepared)

    def _prepare_slice(self, batch: Batch, now: float) -> None:
        begun = batch.looked_at
        positions, failed, batch.looked_at = next_slice(batch.texts, begun, batch.deadlines, batch.dropped, now)
        batch.failed += [Failure(*pair) for pair in failed]
        if begun:  # one that is prepared at once is no sign that anything is done
            self.looked_at += batch.looked_at - begun
        whole = len(positions) == len(batch.texts)
        texts = batch.texts if whole else [batch.texts[position] for position in positions]
        if not texts:
            return
        prepared = _called(partial(self._prepared, batch, texts))
        if not whole:
            for micro_batch in prepared.micro_batches:
                micro_batch.positions = [positions[at] for at in micro_batch.positions]
            prepared.failed = [(positions[at], error) for at, error in prepared.failed]
        if batch.token_bytes:
            drop_oversized(prepared, batch.token_bytes, batch.max_row_bytes)
        batch.prepared.micro_batches += prepared.micro_batches
        batch.prepared.failed += prepared.failed

    def _prepared(self, batch: Batch, texts: Sequence[base.Text]) -> base.Prepared:
        if batch.rows_of is not None:
            return _ready(batch.rows_of(texts), len(texts))
        assert self._engine is not None
        return answers.check_prepared(self._engine.prepare(texts, batch.exact), len(texts))

    def _goes_on(self, batch: Batch) -> bool:
        """Whether there is more of it to prepare: then it is queued again, before all of its rank. Needs the lock."""
        if batch.looked_at >= len(batch.texts):
            return False
        _queue(self._inbox, batch, first=True)
        return True

    def _is_wanted(self, batch: Batch, position: int) -> bool:
        """Asked before each input that takes long to prepare. Raises Cancelled when the whole batch is withdrawn."""
        self.looked_at += 1
        if batch.cancelled:
            raise errors.Cancelled()
        error = _why_dead(position, batch.deadlines, batch.dropped, self._clock())
        if error is not None:
            batch.failed.append(Failure(position, error))
        return error is None

    def _compute(self, taken: _Pass, track: int | None) -> None:
        """One micro-batch, on all cores or on a track."""
        batch, micro_batch = taken
        rows: base.Rows | None = None
        error: errors.ModelMoraError | None = None
        failed: list[Failure] = []
        seconds = 0.0
        if batch.cancelled:
            error = errors.Cancelled()
        else:
            start = self._clock()
            failed = drop_dead(micro_batch, batch.deadlines, batch.dropped, start)
            if micro_batch.positions:
                self._since[track or 0] = start
                try:
                    rows = _called(partial(self._rows, batch, micro_batch, track))
                except errors.ModelMoraError as raised:
                    error = raised
                except MemoryError as raised:
                    _die_out_of_memory(raised)
                finally:
                    self._since[track or 0] = None
                seconds = (self._clock() - start) / (1 if track is None else self._tracks)
        if rows is not None:
            failed += [Failure(*pair) for pair in rows.failed]
        self._answer(taken, rows, failed, error, seconds)

    def _rows(self, batch: Batch, micro_batch: base.MicroBatch, track: int | None) -> base.Rows:
        assert self._engine is not None
        if batch.rows_of is not None:
            return base.Rows(b"".join(micro_batch.items), [len(row) // 4 for row in micro_batch.items])
        if batch.infer is not None:
            return answers.check_rows(batch.infer(micro_batch), micro_batch.positions)
        on_track = () if track is None else (track,)
        rows = self._engine.infer(micro_batch, *on_track)
        own, texts = self.row_length, batch.texts
        lengths = [texts[position].dimensions or own for position in micro_batch.positions] if own else ()
        return answers.check_rows(rows, micro_batch.positions, lengths)

    def _answer(
        self,
        taken: _Pass,
        rows: base.Rows | None,
        failed: Sequence[Failure],
        error: errors.ModelMoraError | None,
        seconds: float,
    ) -> None:
        """Answers what was computed of a batch, and ends it when this was the last."""
        batch, micro_batch = taken
        with batch.answering:
            with self._lock:
                self._running -= 1
                self.compute_seconds += seconds
                self.entries += len(micro_batch.positions) if rows is not None else 0
                batch.running -= 1
                batch.failed += failed
                batch.error = batch.error or error
                ended = self._has_ended(batch)
                if not self._busy:
                    self._work.notify()
            if rows is not None or (ended and batch.error is None):
                answered, batch.failed = batch.failed, []
                tokenise_seconds, batch.tokenise_seconds = batch.tokenise_seconds, 0.0
                computed = micro_batch if rows is not None else None
                last = ended and batch.error is None
                done = Done(computed, rows, answered, tokenise_seconds, seconds, last)
                try:
                    _called(partial(batch.answer, done))  # rows may be other than they must be
                except errors.ModelMoraError as raised:
                    ended = self._break_off(batch, raised)
            if ended and batch.error is not None:
                batch.fail(batch.error)
        if ended:
            with self._lock:
                self._begun.discard(batch)

    def _break_off(self, batch: Batch, error: errors.ModelMoraError) -> bool:
        with self._lock:
            batch.error = batch.error or error
            return self._has_ended(batch)

    def _has_ended(self, batch: Batch) -> bool:
        """Whether nothing of it is left; with an error what nobody has begun is dropped. Needs the lock."""
        if batch.pending and batch.error is not None:
            batch.pending.clear()
            self._open.remove(batch)
        return not batch.pending and not batch.running

    def _stream(self, job: Streaming) -> None:
        assert self._engine is not None
        for output in self._engine.stream(job.request):
            if job.cancelled:
                raise errors.Cancelled()
            job.emit(output, False)
        job.emit({}, True)


def _called(engine_call: Callable[[], _T]) -> _T:
    """What it answers. Raises ModelMoraError and MemoryError alone, whatever the engine raises."""
    try:
        return engine_call()
    except (errors.ModelMoraError, MemoryError):
        raise
    except Exception as error:  # The worker's engine call: an engine may raise anything.
        log.exception("the engine failed")
        raise errors.InternalError(f"{type(error).__name__}: {error}") from error


def _ready(rows: Sequence[bytes], count: int) -> base.Prepared:
    """Rows, of tokens 16 bytes each, as a batch of which nothing is left to compute."""
    if len(rows) != count or not all(isinstance(row, bytes) and len(row) % 4 == 0 for row in rows):
        raise errors.InternalError(f"the engine answered {count} texts with other than a row of 4-byte numbers each")
    batch = base.MicroBatch(list(range(count)), [len(row) // 16 for row in rows], [False] * count, list(rows))
    return base.Prepared([batch] if rows else [])


def _queue(jobs: deque[Any], job: Job, first: bool = False) -> None:
    """Puts a job behind all of its rank, or before them. There are few."""
    place = len(jobs)
    while place and (jobs[place - 1].rank < job.rank or (first and jobs[place - 1].rank == job.rank)):
        place -= 1
    jobs.insert(place, job)


def next_slice(
    texts: Sequence[base.Text], begin: int, deadlines: Sequence[float], dropped: set[int], now: float
) -> tuple[list[int], list[tuple[int, errors.ModelMoraError]], int]:
    """What of a batch to prepare next, from `begin` on: positions; those for which nobody waits any more, with why; and
    where the slice after this begins."""
    positions: list[int] = []
    failed: list[tuple[int, errors.ModelMoraError]] = []
    characters = 0
    for position in range(begin, len(texts)):
        error = _why_dead(position, deadlines, dropped, now)
        if error is not None:
            failed.append((position, error))
            continue
        text = texts[position]
        characters += ENTRY_CHARACTERS + len(text.text) + len(text.pair) + len(text.token_ids)
        if positions and characters > SLICE_CHARACTERS:
            return positions, failed, position
        positions.append(position)
    return positions, failed, len(texts)


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
        _keep(batch, alive)
    return failed


def drop_oversized(prepared: base.Prepared, token_bytes: int, max_row_bytes: Sequence[int]) -> None:
    """Fails the rows that no answer could hold, in place: computing them would be minutes for nobody."""
    for batch in prepared.micro_batches:
        fitting: list[int] = []
        for index, (position, tokens) in enumerate(zip(batch.positions, batch.input_tokens, strict=True)):
            if tokens * token_bytes <= max_row_bytes[position]:
                fitting.append(index)
                continue
            size, limit = tokens * token_bytes, max_row_bytes[position]
            error = errors.MessageTooLarge(
                f"the vectors of {tokens} tokens have {size} bytes, at most {limit} are answered"
            )
            prepared.failed.append((position, error))
        _keep(batch, fitting)
    prepared.micro_batches = [batch for batch in prepared.micro_batches if batch.positions]


def _keep(batch: base.MicroBatch, indices: Sequence[int]) -> None:
    batch.positions = [batch.positions[i] for i in indices]
    batch.input_tokens = [batch.input_tokens[i] for i in indices]
    batch.truncated = [batch.truncated[i] for i in indices]
    batch.items = [batch.items[i] for i in indices]


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
