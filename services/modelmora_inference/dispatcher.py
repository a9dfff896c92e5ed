"""Brings what is queued for one model version to its workers, and their rows to those who wait for them.

A dispatcher exists while its version is in use. Its life, numbered as in the code:

  1. The first call starts it: it asks lifecycle for a lease, entries gather meanwhile. What cannot be granted answers
     everybody who waits; what may pass is asked for again, with growing pauses, until its patience ends. While only
     calls wait that would not wait for a load, it asks for a lease of what is in memory only.
  2. With the worker's address and key it connects and sends batches (`_pump`) whenever something arrives or is done;
     queue.py decides what and when.
  3. Lifecycle hears when the first batch starts and, a moment after the last has ended, that the lease is idle; and
     once a second what waits beyond that, in the queue or on the worker behind another batch, from which it judges
     whether another replica pays.
  4. Invited to a further replica it opens one more lease, and keeps it for as long as there is work for it. A batch
     goes to the replica with the fewest batches in flight. What happens to one lease does not disturb the others.
  5. Asked to yield, it starts no batch after the time named, lets those on the worker end, closes, and asks anew if
     entries remain and no other lease is left. Where the node is cordoned nobody waits for that: it asks while those on
     the worker go on, and again for what comes meanwhile, since a cordon may be taken back.
  6. When a worker is gone or its lease revoked, rows that had arrived are delivered, everything else goes back to its
     place in the queue, and a new lease is asked for if there is no other. Only a crash makes the running batch
     suspect; one for lack of memory does so where the worker had answered nothing before.
  7. After a time without entries a lease is closed; with the last one the dispatcher is forgotten.

Whose time runs out or who hangs up leaves the queue at once, and the worker at its next micro-batch.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
import uuid
from array import array
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import grpc
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.worker.v1 import worker_pb2
from modelmora_runtime.worker_channel import InferCall, WorkerChannel, error_from_entry

from modelmora_inference.deadlines import Deadlines, Lateness
from modelmora_inference.domain import (
    Aging,
    Batch,
    BatchLimits,
    Bounds,
    ByteBudget,
    Entry,
    Place,
    Priority,
    Worker,
    in_words,
    retry_after,
    seconds_left,
)
from modelmora_inference.metrics import MAX_VERSIONS, Counts
from modelmora_inference.queue import EntryQueue

log = logging.getLogger(__name__)

IDLE_AFTER_SECONDS = 0.1
"""So long after the last batch the lease is called idle: two messages for each lone call would cost more than it."""
TELL_WAITING_SECONDS = 1.0
"""So often lifecycle hears what waits."""
ASK_PAUSE_SECONDS = 1.0
"""A version is asked for, for who comes later, so often at most."""
ANSWER_SECONDS = 10.0
"""So long lifecycle may take to answer what nobody waits for."""
LAST_WORD_SECONDS = 1.0
"""When the worker's connection is gone, so long lifecycle may take to say why."""
GATHER_SECONDS = 0.002
"""So long at most a call waits for those that arrive with it, while this process is busy taking them in."""
QUIET_TURN_SECONDS = 10e-6
"""A turn of the event loop that takes less had nothing to take in."""
UNKNOWN_IMAGE_TOKENS = 256
"""An image counts so many tokens before its model was loaded once; all of them count the same, whatever their size."""
_COST_TOKENS = 50_000.0
"""The usual time of a token is that of about so many last ones."""
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
_tokens = attrgetter("tokens")
_PASSING = (errors.Unavailable, errors.Aborted)


@dataclass(frozen=True, slots=True)
class Rules:
    """The figures of dispatching; settings become these."""

    bounds: Bounds = field(default_factory=Bounds)
    max_total_bytes: int = 1024 * 1024 * 1024
    """Of all queues together."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of tenants; 1 for those it does not name."""
    aging: Aging = field(default_factory=Aging)
    batches: BatchLimits = field(default_factory=BatchLimits)
    idle_keep_seconds: float = 30.0
    """A lease without entries is kept so long; it may be taken from us at any moment of it."""
    load_attempts: int = 3
    """Loads that may fail in a row before those who wait hear of it."""
    asks_again_seconds: float = 3.0
    """Who ran out of time before the load he waited for had begun keeps his turn for so long, in case he asks again."""
    patience_seconds: float = 10.0
    """So long the lifecycle service may be away before those who wait hear of it."""


@dataclass(slots=True, eq=False)
class Call:
    """One caller's texts and the place where their rows gather."""

    priority: Priority
    tenant: str
    arrival: float
    deadline: float
    """Both on the monotonic clock, in seconds."""
    normalize: bool
    truncate: bool
    dimensions: int
    exact: bool
    done: asyncio.Future[None]
    """Ends when every row is there, or with the first error."""
    task_type: common_pb2.TaskType = common_pb2.TASK_TYPE_TXT2EMBED
    """What its entries ask for; other tasks than embedding bring them as messages of the worker's wire."""
    operation: worker_pb2.Operation = worker_pb2.OPERATION_UNSPECIFIED
    input_field: str = "texts[]"
    """Of the request: where its entries come from, for errors of a single one; `[]`: one of several."""
    options_at: str = ""
    """Where in the request its options are: `parameters.`, or nothing."""
    prompt: str = ""
    """Name of the prompt that goes before the texts it embeds; empty: the model's default."""
    if_loaded: bool = False
    """Not worth a wait for a load: ModelLoading then."""
    loads_nothing: bool = False
    """It is asked in the place of another model, or has another in its place: nothing is loaded for it. With
    `if_loaded`."""
    ready_in_seconds: float | None = None
    """It met a model that was not in memory: the estimate then, where there was one."""
    entries: list[Entry] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    """One for each entry: little-endian float32, what they mean is the task's."""
    input_tokens: array[int] = field(default_factory=lambda: array("i"))
    truncated: bytearray = field(default_factory=bytearray)
    missing: int = 0
    started: float = 0.0
    """When the last of its entries was handed to a worker."""
    tokenise_seconds: float = 0.0
    compute_seconds: float = 0.0
    spent_seconds: float = 0.0
    """Of that its own share, by tokens."""
    profile: common_pb2.EngineProfile | None = None
    """Of the replica that answered last."""
    failed_index: int | None = None
    """Whose error ended it, if it was that of one text."""
    description: worker_pb2.EngineDescription | None = None
    """What the engine says of the model."""
    seen: object = None
    """The worker's reply whose times were counted last."""
    held: list[Call] | None = None
    """Among the deadlines of its dispatcher."""
    owner: Dispatcher | None = None
    """Whose queue its entries are in."""
    positions: Sequence[int] = ()
    """Of its inputs in the request, where not all of that are asked for."""
    replica_profile: common_pb2.EngineProfile | None = None
    """Of the replica that answered last, as a whole."""
    mixed: bool = False
    """Replicas of different profiles have answered it."""
    cached: int = 0
    """Inputs that were answered from the cache."""

    def path_of(self, index: int) -> str:
        """The field of the request that an entry comes from."""
        index = self.positions[index] if self.positions else index
        return self.input_field.replace("[]", f"[{index}]")

    @property
    def labels(self) -> Sequence[str]:
        """Of a classifier, in the order of its scores, once it is answered."""
        return tuple(self.description.labels) if self.description is not None else ()

    def is_answered(self, entries: slice) -> bool:
        """Whether the rows of these entries are there, also when the call has ended without the others."""
        if not self.missing:
            return bool(self.rows)
        return all(row or tokens for row, tokens in zip(self.rows[entries], self.input_tokens[entries], strict=True))

    @property
    def embeds(self) -> bool:
        """Its entries are plain texts."""
        return self.task_type == common_pb2.TASK_TYPE_TXT2EMBED and not self.operation

    def end(self, error: errors.ModelMoraError | None = None) -> None:
        if self.held is not None:
            self.held.clear()
            self.held = None
        self.seen = None
        if self.done.done():
            return
        if error is None:
            self.entries = []  # they point back here, and the collector should have no circles to find
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


@dataclass(slots=True, eq=False)
class _Lease:
    """A replica that we may use now."""

    worker: Worker
    channel: WorkerChannel
    profile: common_pb2.EngineProfile
    replica: str
    idle_since: float
    last_start: float = float("inf")
    """No batch starts at or after this; finite once we were asked to yield."""
    yield_reason: str = ""
    """Why we were."""
    left: bool = False
    """We close the connection ourselves, because the worker takes no more work."""
    crashed: bool = False
    end_reason: str = ""
    """Why it was revoked, as lifecycle said."""
    answered: bool = False
    """Something of ours."""
    told_busy: bool = False
    unheard: Priority | None = None
    """Of what it was given since lifecycle heard that it is idle, which may be done by the time it hears again."""
    told_priority: Priority | None = None
    """Of the most urgent that is in flight, as lifecycle heard it."""
    as_urgent_time: float = 0.0
    """When something as urgent was in flight last."""
    told_waiting_time: float = 0.0
    """When lifecycle last heard what waits; 0: that nothing does."""
    following: dict[Batch, InferCall] = field(default_factory=dict)
    """What is on the worker."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Dispatcher:
    """The queue of one version and the leases that serve it."""

    def __init__(
        self,
        version: str,
        *,
        acquire: Callable[[], Any],
        rules: Rules,
        counts: Counts,
        budget: ByteBudget,
        weights: Mapping[str, float],
        lateness: Lateness,
        forget: Callable[[Dispatcher], None],
    ) -> None:
        """`acquire` opens the lease stream (a stream-stream call); `forget` is told when nothing is left to do."""
        self.version = version
        self.queue = EntryQueue(rules.bounds, rules.aging, budget=budget, weights=weights)
        self.max_input_tokens = 0
        self.embedding_dimensions = 0
        """Both as the engine told after its load; 0 while unknown."""
        self.description: worker_pb2.EngineDescription | None = None
        """What the engine says of the model; None until a task has needed it."""
        self._holder = uuid.uuid4().hex
        self._acquire = acquire
        self._rules = rules
        self._counts = counts
        self._version_counts = counts.of(version)
        self._forget = forget
        self._deadlines: Deadlines[Call] = Deadlines(self._expire, lateness)
        self._loop = asyncio.get_running_loop()
        # Its tasks outlive the call that happens to start them, so they get neither its caller nor its trace.
        self._context = contextvars.Context()
        self._leases: list[_Lease] = []
        self._further: dict[str, asyncio.Task[None]] = {}
        """Leases beyond the first, by the replica that we were invited to."""
        self._life: asyncio.Task[None] | None = None
        self._careful = False
        """The lease was asked for with `load_nothing`."""
        self._loading = False
        """Lifecycle said that the version is not in memory."""
        self._ready_time: float | None = None
        """When it should be, as lifecycle said last."""
        self._trouble = ""
        """Why there was no worker the last time."""
        self._told = ""
        """Why the load has to wait, as lifecycle said last."""
        self._cordoned = False
        """Lifecycle said so when it asked us to yield, and has not said otherwise since."""
        self._asking: asyncio.Task[None] | None = None
        """Whether the node is cordoned still."""
        self._closing = False
        self._pumping = False
        self._kept_since: dict[int, float] = {}
        """By priority: when somebody last ran out of time, or would not wait for what is to be loaded for later."""
        self._reading: asyncio.Task[Any] | None = None
        """The word of lifecycle that the first lease waits for."""
        self._behind = (0, 0.0)
        """Entries that waited, the most at a time, and the longest wait, since lifecycle heard of it."""
        self._behind_time = 0.0
        self._gathering: asyncio.TimerHandle | None = None
        self._turn_began = self._pump_until = 0.0
        self._progress = False
        self._bytes_per_token = 4.0
        self._cost_seconds = self._cost_tokens = 0.0

    # What the service calls.

    def submit(self, call: Call, inputs: Sequence[str | worker_pb2.TextEntry]) -> None:
        """Queues one entry for each text to embed, or for each message of another task, which must not change any more.
        Raises QueueFull, ModelLoading, ShuttingDown; the call is untouched then."""
        if self._closing:
            raise errors.ShuttingDown(retry_after_seconds=1.0)
        if not self._leases:
            call.ready_in_seconds = self.ready_in(call.arrival)
            if call.if_loaded and self._loading:
                seconds = retry_after(call.ready_in_seconds)
                raise errors.ModelLoading(retry_after_seconds=seconds, model_version=self.version)
        lane: Hashable = call.exact if call.embeds else (call.task_type, call.operation, call.exact)
        longest = self.max_input_tokens if call.truncate else 0
        entries = []
        for index, text in enumerate(inputs):
            if isinstance(text, str):
                size_bytes = len(text) if text.isascii() else len(text.encode())
            else:
                size_bytes = text.ByteSize()
            if not isinstance(text, str) and text.data:
                tokens = self.max_input_tokens or UNKNOWN_IMAGE_TOKENS
            else:
                tokens = 2 + int(size_bytes / self._bytes_per_token)
                if longest and tokens > longest:
                    tokens = longest
            entries.append(
                Entry(
                    text, call, index, call.priority, call.tenant, call.arrival, call.deadline, tokens, size_bytes, lane
                )
            )
        # A call is answered as a whole, so its texts may go in any order: a batch of like lengths is padded least.
        entries.sort(key=_tokens)
        now = time.monotonic()
        try:
            leaving = self.queue.push(entries, now)
        except errors.QueueFull:
            self._counts.refused += 1
            self._version_counts.refused(now - call.arrival)
            raise
        count = len(entries)
        call.entries = entries
        call.rows = [b""] * count
        call.input_tokens = array("i", bytes(4 * count))
        call.truncated = bytearray(count)
        call.missing = count
        call.held = self._deadlines.add(call.deadline, call)
        call.owner = self
        for entry in leaving:
            entry.call.owner.give_way(entry.call)  # type: ignore[attr-defined]
        if self._life is None:
            self._begin()
        elif self._leases:
            self._pump_soon(now, urgent=call.priority is Priority.HIGH)
            if self._cordoned:
                self._ask_soon()

    def give_way(self, call: Call) -> None:
        """Some of a call had to leave for a tenant that is within its share: all of it does."""
        if not call.done.done():
            self._counts.displaced += 1
            self._version_counts.refused(time.monotonic() - call.arrival)
            call.end(self.queue.refusal(len(call.entries), 0, 0))
        self.withdraw(call)

    def withdraw(self, call: Call) -> None:
        """Nobody waits for this call any more: its entries leave the queue, and the workers that compute for it."""
        left = call.done.cancelled() or not call.done.done()
        if left:
            self._version_counts.refused(time.monotonic() - call.arrival)
        call.end(errors.Cancelled())
        rows: dict[Batch, list[int]] = {}
        for entry in call.entries:
            if entry.place is Place.RUNNING and entry.batch is not None:
                rows.setdefault(entry.batch, []).append(entry.position)
        self.queue.withdraw(call.entries)
        if not left and not call.loads_nothing:
            self._kept_since[call.priority] = time.monotonic()
        if self._reading is not None and self._is_deserted():
            self._reading.cancel()
        call.entries = []
        for batch, positions in rows.items():
            for lease in self._leases:
                if batch in lease.following:
                    lease.following[batch].cancel(positions if batch.wanted else ())

    def fail_waiting(self, error: errors.ModelMoraError) -> None:
        """Answers everything that waits; what is on a worker is left to it."""
        for entry in self.queue.clear():
            self._fail(entry, error.copy())

    async def close(self) -> None:
        """Ends: those who wait hear ShuttingDown, the lease is closed."""
        self._closing = True
        tasks = [*self._further.values(), *(task for task in (self._life, self._asking) if task is not None)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._return_all()
        self.fail_waiting(errors.ShuttingDown(retry_after_seconds=1.0))
        self._deadlines.close()

    @property
    def replicas(self) -> int:
        """Replicas that serve it now."""
        return len(self._leases)

    @property
    def precision(self) -> str:
        """That of the profile it is served with; empty while nothing serves it."""
        return self._leases[0].profile.precision if self._leases else ""

    @property
    def profiles(self) -> list[common_pb2.EngineProfile]:
        """Those of its replicas."""
        return [lease.profile for lease in self._leases]

    def ready_in(self, now: float) -> float | None:
        """Seconds until a replica should serve it, while none does; None while unknown."""
        if self._leases or self._ready_time is None:
            return None
        return seconds_left(self._ready_time, now)

    # The life.

    def _begin(self) -> None:
        self._loading, self._ready_time, self._trouble, self._told = False, None, "", ""
        self._life = self._loop.create_task(self._live(), name=f"dispatch {self.version}", context=self._context)
        self._life.add_done_callback(self._ended)

    async def _live(self) -> None:
        failures = 0
        since = 0.0
        while not self._closing:
            if self._leases:  # the further ones go on
                await asyncio.wait(list(self._further.values()), return_when=asyncio.FIRST_COMPLETED)
                continue
            if not len(self.queue):
                return
            self._progress = False
            try:
                await self._lease()  # 1
            except errors.ModelLoading as loading:
                # Who came meanwhile and would have it loaded for later is asked for once more.
                self._answer_cold(loading, only_careful=self._careful)
                continue
            except errors.ModelMoraError as raised:
                error = raised
                log.info("no lease of %s: %s", self.version, error.message)
                if not isinstance(error, errors.DeadlineExceeded):
                    self._trouble = error.message
            else:
                failures = 0
                self._trouble = ""
                if not self._progress:  # a worker that dies at once, again and again
                    await asyncio.sleep(_FIRST_PAUSE_SECONDS)
                continue
            if not failures:
                since = time.monotonic()
            failures += 1
            if self._is_final(error, failures, time.monotonic() - since):
                # When a cordon is taken back nobody knows: who asks again each second only learns late why.
                passing = isinstance(error, errors.Unavailable | errors.ResourceExhausted)
                if passing and not error.retry_after_seconds and not isinstance(error, errors.NodeCordoned):
                    error.retry_after_seconds = 1.0
                log.info("no worker for %s: %s", self.version, error.message)
                self.fail_waiting(error)
                failures = 0
            else:
                pause = min(_FIRST_PAUSE_SECONDS * 2 ** (failures - 1), _LONGEST_PAUSE_SECONDS)
                pause = min(max(pause, error.retry_after_seconds or 0.0), _LONGEST_PAUSE_SECONDS)
                if isinstance(error, errors.LoadFailed):  # who would not wait for a load waits for no other try
                    words = f"{error.message}; it is tried again"
                    wait = max(pause, error.retry_after_seconds or 0.0)
                    self._answer_cold(errors.ModelLoading(words, retry_after_seconds=wait, model_version=self.version))
                await asyncio.sleep(pause)

    def _answer_cold(self, error: errors.ModelLoading, *, only_careful: bool = False) -> None:
        """The version is not in memory: those who would not wait for it hear so, or `only_careful` those for whom
        nothing is to be loaded."""
        if self._leases:
            return
        self._loading = self._loading or not only_careful  # who has nothing loaded does not know of any load
        now = time.monotonic()
        if error.retry_after_seconds is not None:
            self._ready_time = now + error.retry_after_seconds
        error.retry_after_seconds = retry_after(error.retry_after_seconds)
        for call in {entry.call for entry in self.queue.waiting()}:
            assert isinstance(call, Call)
            if call.ready_in_seconds is None:
                call.ready_in_seconds = self.ready_in(now)
            if call.if_loaded and (call.loads_nothing or not only_careful):
                call.end(error.copy())
                self.withdraw(call)

    def _is_final(self, error: errors.ModelMoraError, failures: int, seconds: float) -> bool:
        """Whether those who wait should hear it, or it may pass while they wait."""
        if isinstance(error, errors.LoadFailed):
            return failures >= self._rules.load_attempts
        if isinstance(error, errors.DeadlineExceeded):
            return False  # the lease's own deadline; each call has its own
        passing = isinstance(error, _PASSING) and not isinstance(error, errors.NodeCordoned)
        return not passing or seconds >= self._rules.patience_seconds

    def _ended(self, life: asyncio.Task[None]) -> None:
        self._life = None
        for task in (*self._further.values(), *((self._asking,) if self._asking is not None else ())):
            task.cancel()
        if not life.cancelled() and (error := life.exception()) is not None:
            log.error("the dispatcher of %s failed", self.version, exc_info=error)
            self._return_all()
            self.fail_waiting(errors.InternalError())
        if not self._closing and len(self.queue):
            self._begin()
        else:
            self._deadlines.close()
            self._forget(self)  # 7

    def _return_all(self) -> None:
        for worker in list(self.queue.workers):
            self.queue.worker_gone(worker, crashed=False)

    async def _lease(self, *, further: bool = False) -> None:
        """One lease from asking for it to its end; returns if it was granted. Raises why there was none."""
        stream = self._acquire()
        reading: asyncio.Task[Any] | None = None
        try:
            want = self._want(further)
            if not further:
                self._careful = want.load_nothing
            await stream.write(lifecycle_pb2.AcquireRequest(want=want))
            reading = self._read(stream)
            loaded = await self._loaded(stream, reading, want, further)
            if loaded is None:
                return
            reading = self._read(stream)
            try:
                channel = await WorkerChannel.connect(loaded.endpoint, loaded.key)
            except errors.Unauthenticated as error:
                raise errors.WorkerUnavailable("the lease was taken before it was used") from error
            lease = self._granted(loaded, channel)
            try:
                await self._use(lease, stream, reading)
            finally:
                # All at once: who cancels us while the channel closes finds nothing left on the worker.
                self._leases.remove(lease)
                lease.following.clear()
                self._give_back(lease)
                if self._leases:
                    self._pump()  # what it left goes to the others
                await channel.close()
        finally:
            stream.cancel()
            if reading is not None:
                reading.cancel()

    async def _lease_further(self, replica: str) -> None:
        try:
            await self._lease(further=True)
        except errors.ModelMoraError as error:
            log.debug("no further lease of %s: %s", self.version, error.message)
        finally:
            del self._further[replica]

    def _want(self, further: bool) -> lifecycle_pb2.Want:
        waiting = self.queue.waiting()
        now = time.monotonic()
        # A load that outlasts the last of them is still of use to whoever asks again.
        until = max([entry.deadline for entry in waiting], default=now)
        seconds = max(until - now, 0.0) + self._rules.idle_keep_seconds
        priority = max([entry.priority for entry in waiting], default=Priority.MEDIUM)
        calls: list[Call] = [entry.call for entry in waiting]  # type: ignore[misc]
        want = lifecycle_pb2.Want(
            model_version=self.version,
            priority=common_pb2.Priority.Name(priority),
            holder=self._holder,
            if_loaded=further or all(call.if_loaded for call in calls),
            load_nothing=further or all(call.loads_nothing for call in calls),
        )
        want.deadline.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
        return want

    def _read(self, stream: Any) -> asyncio.Task[Any]:
        reading = self._loop.create_task(_next(stream))
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())  # read or not, it is no secret
        return reading

    async def _loaded(
        self, stream: Any, reading: asyncio.Task[Any], told: lifecycle_pb2.Want, further: bool
    ) -> lifecycle_pb2.Loaded | None:
        """Waits for the grant; None when nobody waits for it any more."""
        began = time.monotonic() if further else float("-inf")
        while not self._is_deserted(began):
            if not further:
                self._reading = reading
            await asyncio.wait([reading], timeout=0.25)
            if reading.cancelled():
                break
            if reading.done():
                message = reading.result()
                kind = message.WhichOneof("message") if message is not None else None
                if kind == "loaded":
                    return message.loaded  # type: ignore[no-any-return]
                if kind != "loading":
                    reason = message.revoked.reason if kind == "revoked" else "the lease ended"
                    raise errors.WorkerUnavailable(reason)
                loading = message.loading
                self._told = loading.reason if loading.reason != "loading" else ""
                seconds = loading.estimate.ToNanoseconds() / 1e9 if loading.HasField("estimate") else None
                self._answer_cold(
                    errors.ModelLoading(loading.reason or None, retry_after_seconds=seconds, model_version=self.version)
                )
                reading = self._read(stream)
            if len(self.queue):
                want = self._want(further=False)
                later_seconds = (want.deadline.ToNanoseconds() - told.deadline.ToNanoseconds()) / 1e9
                kept_seconds = time.monotonic() - self._kept_since.get(told.priority, float("-inf"))
                if kept_seconds < self._rules.asks_again_seconds:  # the turn of somebody as urgent is kept
                    want.priority = max(want.priority, told.priority)
                if want.priority != told.priority or later_seconds >= min(1.0, self._rules.idle_keep_seconds / 4):
                    told = want
                    await self._say(stream, lifecycle_pb2.AcquireRequest(want=want))
        reading.cancel()
        return None

    def _is_deserted(self, since: float = float("-inf")) -> bool:
        """Whether nobody waits. Who ran out of time, or would not wait, asks again soon; who went away does not."""
        keep_seconds = self._rules.asks_again_seconds if self._told else self._rules.idle_keep_seconds
        return not len(self.queue) and time.monotonic() - max([since, *self._kept_since.values()]) >= keep_seconds

    def _granted(self, loaded: lifecycle_pb2.Loaded, channel: WorkerChannel) -> _Lease:
        told, ours = loaded.limits, self._rules.batches
        self.max_input_tokens = told.max_input_tokens
        self.embedding_dimensions = told.embedding_dimensions
        limits = BatchLimits(
            max_entries=min(ours.max_entries, told.max_batch_entries or ours.max_entries),
            max_tokens=min(ours.max_tokens, told.max_batch_tokens or ours.max_tokens),
            max_batches=min(ours.max_batches, loaded.max_in_flight_batches or ours.max_batches),
            split_tokens=ours.split_tokens,
        )
        profile = common_pb2.EngineProfile()
        profile.CopyFrom(loaded.engine_profile)
        self._loading, self._ready_time, self._cordoned, self._told = False, None, False, ""
        self._reading = None
        lease = _Lease(Worker(limits), channel, profile, loaded.replica, time.monotonic())
        self.queue.workers.append(lease.worker)
        self._leases.append(lease)
        return lease

    async def _use(self, lease: _Lease, stream: Any, reading: asyncio.Task[Any]) -> None:
        """Until the lease ends, whoever ends it."""
        running = lease.worker.running
        lost = self._loop.create_task(lease.channel.closed.wait())
        waking = self._loop.create_task(lease.wake.wait())
        try:
            self._pump()
            while True:
                seconds = self._seconds_to_wait(lease)
                await asyncio.wait([reading, lost, waking], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    if not await self._hear(lease, reading):
                        return
                    reading = self._read(stream)
                if lease.left:
                    return
                if lost.done():
                    await self._hear_why(lease, stream, reading)  # 6
                    return
                if waking.done():
                    lease.wake.clear()
                    waking = self._loop.create_task(lease.wake.wait())
                now = time.monotonic()
                await self._tell(lease, stream, now)
                if running:
                    continue
                if lease.last_start <= now or (lease.last_start < float("inf") and not len(self.queue)):  # 5
                    return
                idle = not len(self.queue) or lease is not self._leases[0]
                if idle and now - lease.idle_since >= self._rules.idle_keep_seconds:  # 7
                    return
        finally:
            for task in (reading, lost, waking):
                task.cancel()

    def _seconds_to_wait(self, lease: _Lease) -> float:
        """Until time itself changes something. Work that ends wakes nobody: a look now and then is cheaper."""
        now = time.monotonic()
        if lease.told_busy:
            seconds = IDLE_AFTER_SECONDS
        else:
            seconds = max(0.0, lease.idle_since + self._rules.idle_keep_seconds - now)
        return min(seconds, max(0.0, lease.last_start - now)) if lease.last_start > now else seconds

    async def _tell(self, lease: _Lease, stream: Any, now: float) -> None:  # 3
        """Tells lifecycle what it should hear now, if anything. What waits is told on one lease only."""
        in_flight = len(lease.worker.running)
        if in_flight or not lease.told_busy:
            busy = in_flight > 0 or lease.unheard is not None
        else:
            busy = now - lease.idle_since < IDLE_AFTER_SECONDS
        priority = self._urgency(lease, now)
        due = lease is self._leases[0] and now - lease.told_waiting_time >= TELL_WAITING_SECONDS
        changed = busy != lease.told_busy or priority is not lease.told_priority
        if not changed and not due:
            return
        waiting, wait_seconds = self._note_waits(now) if lease is self._leases[0] else (0, 0.0)
        if not changed and not waiting:
            return
        lease.told_busy, lease.told_priority, lease.unheard = busy, priority, None
        # Between two batches the lease is in use all the same.
        told = lifecycle_pb2.InUse(
            in_flight=max(in_flight, int(busy)),
            waiting_entries=waiting,
            priority=common_pb2.Priority.Name(priority or 0),
        )
        if waiting:
            lease.told_waiting_time = now
            told.oldest_wait.FromNanoseconds(int(wait_seconds * 1e9))
            self._behind = (0, 0.0)
        await self._say(stream, lifecycle_pb2.AcquireRequest(in_use=told))

    async def _say(self, stream: Any, message: lifecycle_pb2.AcquireRequest) -> None:
        try:
            await stream.write(message)
        except (errors.ModelMoraError, asyncio.InvalidStateError) as error:
            log.debug("the lease of %s is over: %s", self.version, error)  # reading it will tell why

    def _urgency(self, lease: _Lease, now: float) -> Priority | None:
        """The priority of the most urgent that is in flight, or was within the last second."""
        running = max((batch.priority for batch in lease.worker.running), default=lease.unheard)
        told = lease.told_priority
        if running is not None and (told is None or running >= told):
            lease.as_urgent_time = now
            return running
        return told if running is None or now - lease.as_urgent_time < TELL_WAITING_SECONDS else running

    def _note_waits(self, now: float) -> tuple[int, float]:
        """How many entries wait, or have waited since lifecycle heard of it, and the longest such wait. Looked at now
        and then what waits is always young: each batch takes all there is, and waits on the worker for the one before.
        """
        self._behind_time = now
        waiting, seconds = self.queue.behind(now)
        self._behind = max(self._behind[0], waiting), max(self._behind[1], seconds)
        return waiting or self._behind[0], self._behind[1]

    async def _hear(self, lease: _Lease, reading: asyncio.Task[Any]) -> bool:
        """What lifecycle said; False when the lease is over."""
        try:
            message = reading.result()
        except errors.ModelMoraError as error:
            log.warning("the lease of %s ended: %s", self.version, error.message)
            lease.crashed = False  # lifecycle itself is gone, and its workers went with it: no text is to blame
            message = None
        kind = message.WhichOneof("message") if message is not None else None
        if kind == "yield":
            asked = getattr(message, "yield")
            lease.last_start = time.monotonic() + max(0.0, (asked.by.ToNanoseconds() - time.time_ns()) / 1e9)
            lease.yield_reason = asked.reason
            if asked.cordoned:
                self._cordoned = True
                self._ask_soon()
            return True
        if kind == "invite":
            self._invited(message.invite.replica)  # 4
            return True
        if kind in ("loaded", "loading"):
            return True
        if kind == "revoked":
            # For memory it died of all that it had computed, unless that was nothing: then this is too large for it.
            outgrown = message.revoked.out_of_memory and lease.answered
            lease.crashed = message.revoked.crashed and not outgrown
            lease.end_reason = message.revoked.reason
            log.info("the lease of %s was revoked: %s", self.version, message.revoked.reason)
        return False

    def _ask_soon(self) -> None:  # 5
        if self._asking is None and not self._closing and len(self.queue):
            name = f"cordon of {self.version}"
            self._asking = self._loop.create_task(self._ask_whether_cordoned(), name=name, context=self._context)

    async def _ask_whether_cordoned(self) -> None:
        """Refuses what waits as long as lifecycle says that the node is cordoned. What came after it was asked is asked
        for once more: the cordon may have been taken back before that."""
        try:
            while self._cordoned and (waiting := self.queue.waiting()):
                refusal = await self._refusal()
                if refusal is None:
                    self._cordoned = False
                    return
                for entry in waiting:
                    if entry.place is Place.WAITING:
                        self._fail(entry, refusal.copy())
        finally:
            self._asking = None

    async def _refusal(self) -> errors.NodeCordoned | None:
        """Lifecycle's first answer to one more want, if it is this."""
        stream = self._acquire()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await stream.write(lifecycle_pb2.AcquireRequest(want=self._want(further=True)))
                await stream.read()
        except errors.NodeCordoned as error:
            return error
        except (errors.ModelMoraError, TimeoutError) as error:
            log.debug("whether the node is cordoned is not known: %s", error)
        finally:
            stream.cancel()
        return None

    def _invited(self, replica: str) -> None:
        if self._closing or replica in self._further or any(lease.replica == replica for lease in self._leases):
            return
        name = f"dispatch {self.version} on {replica}"
        self._further[replica] = self._loop.create_task(self._lease_further(replica), name=name, context=self._context)

    async def _hear_why(self, lease: _Lease, stream: Any, reading: asyncio.Task[Any]) -> None:
        """The worker's connection is gone. Without a word from lifecycle it counts as a crash."""
        lease.crashed = "lease-withdrawn" not in lease.channel.close_reason
        until = time.monotonic() + LAST_WORD_SECONDS
        while True:
            await asyncio.wait([reading], timeout=max(0.0, until - time.monotonic()))
            if not reading.done():
                reading.cancel()
                return
            if not await self._hear(lease, reading):
                return
            reading = self._read(stream)

    def _give_back(self, lease: _Lease) -> None:  # 6
        in_flight = sum(batch.wanted for batch in lease.worker.running)
        self._counts.retried += in_flight
        if lease.crashed and in_flight:
            log.warning("the worker of %s died with %d entries on it", self.version, in_flight)
        for entry in self.queue.worker_gone(lease.worker, crashed=lease.crashed):
            words = (
                "computed alone it ended its worker twice, the last time so: "
                f"{lease.end_reason or 'the connection was lost'}; it is not tried again: change it, or leave it out"
            )
            self._fail_alone(entry, errors.RequestCrashedWorker(words))

    # Batches.

    def _pump_soon(self, now: float, *, urgent: bool = False) -> None:
        """Sends what should go, together with what arrives with it. One by one, calls that come at once would cost this
        process and the worker several times as much, and the last of them would be answered later, not sooner.

        To a worker that has nothing to do it goes at the end of a turn of the loop in which little else was done: all
        that has arrived is taken in then. While the workers compute, which is longer than a moment or soon over, a
        moment is lost to nobody.
        """
        at_once = urgent or any(not lease.worker.running for lease in self._leases)
        if self._gathering is not None and at_once:
            self._gathering.cancel()
            self._gathering = None
        elif self._pumping:
            return
        self._pumping = True
        if at_once:
            self._turn_began, self._pump_until = now, now + GATHER_SECONDS
            self._loop.call_soon(self._turn)
        else:
            self._gathering = self._loop.call_later(GATHER_SECONDS, self._pump)

    def _turn(self) -> None:
        now = time.monotonic()
        if now - self._turn_began < QUIET_TURN_SECONDS or now >= self._pump_until:
            self._pump()
        else:
            self._turn_began = now
            self._loop.call_soon(self._turn)

    def _pump(self) -> None:  # 2
        """Sends what should go now."""
        if self._gathering is not None:
            self._gathering.cancel()
        self._pumping, self._gathering = False, None
        now = time.monotonic()
        leases = self._leases
        while self._send_one(leases if len(leases) < 2 else sorted(leases, key=_in_flight), now):
            pass
        for lease in leases:
            if lease.worker.running and not lease.told_busy:
                lease.unheard = max(batch.priority for batch in lease.worker.running)
                lease.wake.set()

    def _send_one(self, leases: Sequence[_Lease], now: float) -> bool:
        """One batch to the first lease that may have one."""
        for lease in leases:
            if now >= lease.last_start or lease.channel.closed.is_set():
                continue
            popped = self.queue.pop_batch(lease.worker, now)
            for entry in popped.expired:
                self._expire(entry.call)  # type: ignore[arg-type]
            if popped.batch is not None:
                self._send(lease, popped.batch, now)
                return True
        return False

    def _send(self, lease: _Lease, batch: Batch, now: float) -> None:
        first: Call = batch.entries[0].call  # type: ignore[assignment]
        message = worker_pb2.WorkerRequest()
        request = message.infer
        request.task_type, request.exact, request.rank = first.task_type, first.exact, batch.rank
        embeds = first.embeds
        request.describe = self.description is None
        if not embeds:
            request.operation = first.operation
        texts = request.texts
        for entry in batch.entries:
            call: Call = entry.call  # type: ignore[assignment]
            call.started = now
            left = entry.deadline - now
            seconds = int(left)
            if embeds:
                text = texts.add(
                    text=entry.payload,
                    truncate=call.truncate,
                    normalize=call.normalize,
                    dimensions=call.dimensions,
                    prompt=call.prompt,
                )
            else:
                text = texts.add()
                text.CopyFrom(entry.payload)  # type: ignore[arg-type]
            text.timeout.seconds = seconds
            text.timeout.nanos = int((left - seconds) * 1e9)
        lease.following[batch] = lease.channel.infer(message, partial(self._heard, lease, batch))

    def _heard(
        self,
        lease: _Lease,
        batch: Batch,
        reply: worker_pb2.InferReply | None,
        error: errors.ModelMoraError | None,
    ) -> None:
        """Delivers the rows of one batch until the worker has let go of it."""
        infer = lease.following.get(batch)
        if infer is None:
            return  # it has failed already, or its lease has ended
        if reply is not None:
            try:
                self._deliver(lease, batch, reply)
            except errors.ModelMoraError as raised:
                error = raised
            else:
                if not reply.done:
                    self._pump_soon(time.monotonic())
                    return
                if batch.answered < len(batch.entries):
                    error = errors.InternalError("the worker left rows of a batch unanswered")
        del lease.following[batch]
        if isinstance(error, errors.WorkerUnavailable | errors.ShuttingDown):
            # The worker is gone or takes no more: what is on it goes back when the lease has ended.
            if not lease.channel.closed.is_set():
                lease.left, lease.last_start = True, 0.0
                lease.wake.set()
            return
        if error is None:
            self._counts.batch_entries.observe(len(batch.entries))
            self._counts.batch_tokens.observe(batch.tokens)
            self._version_counts.batch(len(batch.entries), 1, 0.0)
            # The wait of the next one ends. Short ones are not looked at each time: what is too long is seen anyway.
            if len(lease.worker.running) > 1 and (now := time.monotonic()) - self._behind_time >= IDLE_AFTER_SECONDS:
                self._note_waits(now)
            self.queue.finish(batch)
        elif isinstance(error, errors.Cancelled) and not batch.wanted:
            self.queue.finish(batch)
        else:
            log.warning("a batch of %s failed: %s", self.version, error.message)
            infer.cancel()
            wanted = batch.wanted
            failed = self.queue.fail(batch)
            self._counts.retried += wanted - len(failed)
            for entry in failed:
                self._fail_alone(entry, error)
        self._progress = True
        self._pump_soon(time.monotonic())
        if not lease.worker.running:
            lease.idle_since = time.monotonic()
            if lease.last_start < float("inf"):
                lease.wake.set()

    def _deliver(self, lease: _Lease, batch: Batch, reply: worker_pb2.InferReply) -> None:
        """Hands each row to its call. Raises InternalError for a reply that makes no sense."""
        now = time.monotonic()
        rows, dimensions = reply.rows, reply.row_dimensions
        positions, input_tokens, truncated = reply.positions, reply.input_tokens, reply.truncated
        size = len(positions)
        if not size == len(dimensions) == len(input_tokens) == len(truncated) or 4 * sum(dimensions) != len(rows):
            raise errors.InternalError("the worker's reply does not fit together")
        errors_at = {error.position: error for error in reply.errors}
        if reply.HasField("description"):
            self.description = reply.description
        lease.answered = True
        compute = reply.compute.seconds + reply.compute.nanos / 1e9
        tokenise = reply.tokenise.seconds + reply.tokenise.nanos / 1e9
        self._version_counts.batch(len(batch.entries), 0, compute)
        token_seconds = compute / (sum(input_tokens) or 1)
        token_cost = self._token_cost(compute, sum(input_tokens))
        at = total_tokens = total_bytes = 0
        for i, position in enumerate(positions):
            start, at = at, at + 4 * dimensions[i]
            if not 0 <= position < len(batch.entries):
                raise errors.InternalError("the worker answered a row that it was not asked for")
            entry = self.queue.answer(batch, position, now, input_tokens[i] * token_cost)
            if entry is None:
                self._counts.wasted_compute_seconds += input_tokens[i] * token_seconds
                continue
            if position in errors_at:
                self._fail_alone(entry, error_from_entry(errors_at[position]))
                continue
            index = entry.index
            call: Call = entry.call  # type: ignore[assignment]
            call.rows[index] = rows[start:at]
            call.input_tokens[index] = tokens = input_tokens[i]
            call.truncated[index] = cut = truncated[i]
            call.spent_seconds += tokens * token_seconds
            total_tokens += tokens
            if not cut:
                total_bytes += entry.size_bytes
            if call.seen is not reply:
                call.seen = reply
                call.compute_seconds += compute
                call.tokenise_seconds += tokenise
                profile = reply.engine_profile if reply.HasField("engine_profile") else lease.profile
                if call.profile is not None and call.profile is not profile and call.profile != profile:
                    call.mixed = True
                call.profile, call.replica_profile = profile, lease.profile
            call.missing -= 1
            if not call.missing:
                call.description = self.description
                queued = call.started - call.arrival
                self._counts.queue_seconds[call.priority].observe(queued)
                self._version_counts.answered(
                    len(call.rows), now - call.arrival, queued, call.tokenise_seconds, call.compute_seconds, time.time()
                )
                call.end()
        self._counts.input_tokens += total_tokens
        if total_bytes and total_tokens and not any(truncated):
            weight = min(0.5, total_tokens / 10_000)
            self._bytes_per_token += weight * (max(0.5, total_bytes / total_tokens) - self._bytes_per_token)

    def _token_cost(self, compute_seconds: float, tokens: int) -> float:
        """What a token of this micro-batch has cost, in tokens of the usual kind."""
        if not tokens:
            return 0.0
        keep = 1.0 - min(0.5, tokens / _COST_TOKENS)
        self._cost_seconds = self._cost_seconds * keep + compute_seconds
        self._cost_tokens = self._cost_tokens * keep + tokens
        return compute_seconds / tokens * self._cost_tokens / self._cost_seconds if self._cost_seconds else 1.0

    # Ends.

    def _fail(self, entry: Entry, error: errors.ModelMoraError) -> None:
        """One entry's error is its call's; the others of the call are not computed any more."""
        call: Call = entry.call  # type: ignore[assignment]
        if call.done.done():
            return
        call.failed_index = entry.index
        if isinstance(error, errors.DeadlineExceeded):
            self._expire(call)
            return
        self._version_counts.refused(time.monotonic() - call.arrival)
        call.end(error)
        self.withdraw(call)

    def _fail_alone(self, entry: Entry, error: errors.ModelMoraError) -> None:
        """With an error of its own, which the worker tells without a field: of a call's fields only these can be wrong
        in the engine's eyes."""
        call: Call = entry.call  # type: ignore[assignment]
        if isinstance(error, errors.InvalidArgument | errors.InternalError | errors.RequestCrashedWorker):
            path = call.path_of(entry.index)
            if isinstance(error, errors.InvalidArgument):
                if 0 < self.embedding_dimensions < call.dimensions:
                    path = f"{call.options_at}dimensions"
                elif call.prompt and error.message.startswith("prompt_name: "):
                    path = f"{call.options_at}prompt_name"
            description = error.message.removeprefix(f"{path}: ").removeprefix("prompt_name: ")
            named = type(error)(f"{path}: {description}", fields=[errors.FieldViolation(path, description)])
            named.metadata = error.metadata
            error = named
        self._fail(entry, error)

    def _expire(self, call: Call) -> None:
        """A few milliseconds before the caller's own clock runs out."""
        if call.done.done():
            return
        now = time.monotonic()
        waiting = sum(entry.place is Place.WAITING for entry in call.entries)
        if waiting:
            where = f"{waiting} of {len(call.entries)} texts still waited"
        elif call.started or any(entry.place is Place.RUNNING for entry in call.entries):
            where = "it was on the worker"
        else:
            where = "that was over before it began"
        if waiting and not self._leases:
            why = f", which failed: {self._trouble}" if self._trouble else f" ({self._told})" if self._told else ""
            name = self.version.removeprefix("models/").replace("/versions/", "@")
            known = self._loading or self._trouble
            where += f" for the model to be loaded{why}" if known else " to hear whether the model is in memory"
            where += f"; `modelmora explain {name}` says more"
        elif waiting and all(lease.yield_reason for lease in self._leases):
            where += f" while the model leaves memory: {self._leases[0].yield_reason}"
        self._counts.expired += 1
        self._version_counts.refused(now - call.arrival)
        call.end(
            errors.DeadlineExceeded(
                f"no answer within {in_words(call.deadline - call.arrival)}; {where}",
                queue_seconds=f"{(call.started if call.started and not waiting else now) - call.arrival:.3f}",
            )
        )
        self.withdraw(call)


def _in_flight(lease: _Lease) -> int:
    return len(lease.worker.running)


async def _next(stream: Any) -> Any:
    """The next message of a lease stream; None at its end."""
    message = await stream.read()
    return None if message is grpc.aio.EOF else message


class Learned(NamedTuple):
    """What an engine says of a model once it has loaded it; 0 and None before, and where it says nothing."""

    description: worker_pb2.EngineDescription | None = None
    max_input_tokens: int = 0
    embedding_dimensions: int = 0


class Dispatchers:
    """Those in use, by version name; and the calls that can be asked about, by tenant and request id."""

    def __init__(self, acquire: Callable[[], Any], rules: Rules) -> None:
        self.rules = rules
        self.counts = Counts()
        self.weights: dict[str, float] = dict(rules.weights)
        """Of tenants; 1 for those that are not named. May be changed at any time."""
        self.lateness = Lateness()
        self.asked: dict[tuple[str, str], tuple[Dispatcher, Call]] = {}
        self._budget = ByteBudget(rules.max_total_bytes)
        self._acquire = acquire
        self._by_version: dict[str, Dispatcher] = {}
        self._learned: dict[str, Learned] = {}
        """Of versions that are not in use any more, the last that were."""
        self._asking: dict[str, asyncio.Task[None]] = {}
        """For versions that are to be loaded for who comes later."""
        self._closing = False

    def __iter__(self) -> Iterator[Dispatcher]:
        return iter(list(self._by_version.values()))

    def get(self, version: str) -> Dispatcher | None:
        return self._by_version.get(version)

    def learned(self, version: str) -> Learned:
        """What an engine has said of the model, once it has answered a call here."""
        before, now = self._learned.get(version, Learned()), self._by_version.get(version)
        if now is None:
            return before
        return Learned(
            now.description or before.description,
            now.max_input_tokens or before.max_input_tokens,
            now.embedding_dimensions or before.embedding_dimensions,
        )

    def submit(self, version: str, call: Call, inputs: Sequence[str | worker_pb2.TextEntry]) -> Dispatcher:
        """Queues a call for a version; the dispatcher that has it. Raises QueueFull, ModelLoading, ShuttingDown."""
        dispatcher = self._by_version.get(version)
        if dispatcher is None:
            if self._closing:
                raise errors.ShuttingDown(retry_after_seconds=1.0)
            dispatcher = Dispatcher(
                version,
                acquire=self._acquire,
                rules=self.rules,
                counts=self.counts,
                budget=self._budget,
                weights=self.weights,
                lateness=self.lateness,
                forget=self._forget,
            )
        dispatcher.submit(call, inputs)
        self._by_version[version] = dispatcher  # not before: who is refused leaves nothing that nobody would forget
        return dispatcher

    def load_later(self, version: str) -> None:
        """Asks that a version be loaded for who comes later, after all for whom somebody waits; nobody hears what
        becomes of it."""
        if self._closing or version in self._asking:
            return
        task = asyncio.create_task(self._ask_for(version), name=f"ask for {version}", context=contextvars.Context())
        self._asking[version] = task
        task.add_done_callback(lambda _: self._asking.pop(version, None))

    async def _ask_for(self, version: str) -> None:
        want = lifecycle_pb2.Want(model_version=version, priority=common_pb2.PRIORITY_LOW, if_loaded=True)
        stream = self._acquire()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await stream.write(lifecycle_pb2.AcquireRequest(want=want))
                await stream.read()
        except errors.ModelLoading:
            pass
        except (errors.ModelMoraError, TimeoutError) as error:
            log.info("%s is not loaded for later: %s", version, str(error) or "lifecycle did not answer")
        finally:
            stream.cancel()
        await asyncio.sleep(ASK_PAUSE_SECONDS)

    async def close(self) -> None:
        self._closing = True
        for task in (asking := list(self._asking.values())):
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        # All at once: each may wait for a worker that does not answer.
        await asyncio.gather(*(dispatcher.close() for dispatcher in self))
        self._by_version.clear()

    def _forget(self, dispatcher: Dispatcher) -> None:
        if self._by_version.get(dispatcher.version) is not dispatcher:
            return
        learned = self.learned(dispatcher.version)
        del self._by_version[dispatcher.version]
        if any(learned):
            self._learned.pop(dispatcher.version, None)
            self._learned[dispatcher.version] = learned
            if len(self._learned) > MAX_VERSIONS:
                del self._learned[next(iter(self._learned))]
