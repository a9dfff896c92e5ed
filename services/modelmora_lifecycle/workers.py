"""The life of one worker process, from launch to reap: what effects `start` and `stop` mean for real.

It reports and decides nothing. Whatever happens, `exited` is reported exactly once, when the process is gone:

    launch ─ hello ─ load ─ loaded ─ watch …… stop asked ─ drain ─ SIGTERM ─ SIGKILL ─ exited
       └────────┴───────┴─ error, exit or stop: load_failed (unless stopped) ─ SIGKILL ─ exited
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import os
import signal
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import Protocol

from modelmora.common.v1 import common_pb2
from modelmora.errors import LoadFailed, ModelMoraError, NonsenseFootprint, OutOfMemory, WorkerUnavailable
from modelmora.registry.v1 import registry_pb2
from modelmora.worker.v1 import worker_pb2
from modelmora_runtime import machine
from modelmora_runtime.worker_channel import WorkerChannel
from prometheus_client import Counter

from modelmora_lifecycle import memory
from modelmora_lifecycle.domain import HOST, MIB, Health, HealthState, StartMode, VersionFacts
from modelmora_lifecycle.launcher import Launcher, LaunchSpec, WorkerExit, WorkerProcess
from modelmora_lifecycle.prediction import nonsense

log = logging.getLogger(__name__)

BATCHES = Counter("modelmora_worker_batches", "Batches of users that workers computed, by their own count.")
ENTRIES = Counter("modelmora_worker_entries", "Entries of users that workers computed, by their own count.")

_TAIL_LINES = 20
_TAIL_CHARS = 4000
_AFTER_DRAIN_SECONDS = 2.0
_AFTER_TERM_SECONDS = 2.0
_KEY_SECONDS = 5.0
_FINGERPRINT_SECONDS = 120.0
_FINGERPRINT_AFTER_SECONDS = 0.5
_PROBE_TEXT = "a real question"
_PROBE_IMAGE = (
    b"BM"
    + struct.pack("<IHHI", 54 + 16, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 24, *[0] * 6)
    + bytes(range(16))
)
"""Four pixels as a bitmap, the one format that is written without a library."""
_PAIRED = frozenset({common_pb2.TASK_TYPE_RERANKING, common_pb2.TASK_TYPE_QUESTION_ANSWERING})
"""Tasks that take two texts."""
_SCORED = _PAIRED | {common_pb2.TASK_TYPE_CLASSIFICATION}
"""Tasks that answer texts with scores, as many as the model has."""
_EXIT_OUT_OF_MEMORY = 70
"""What a worker says with its status; see modelmora_worker.pipeline."""


@dataclass(frozen=True)
class WorkerRules:
    """How long things may take."""

    launch_timeout_seconds: float = 60.0
    load_timeout_seconds: float = 120.0
    """Beside what the size of the files allows for."""
    load_bytes_per_second: float = 20e6
    """The slowest disk that is waited for."""
    watch_interval_seconds: float = 1.0
    unresponsive_seconds: float = 5.0
    """Silence after which a worker counts as unhealthy."""
    probe_interval_seconds: float = 10.0
    """So often a worker is asked a real question; 0: never."""
    probe_timeout_seconds: float = 15.0
    """Without an answer for so long, and without any progress, it is unhealthy whatever it says of itself."""
    growth_factor: float = 1.25
    """A worker may grow to so many times what its owner declared, or what it was granted, and `slack`; then it is
    stopped."""
    engine_slack_bytes: int = 350 * MIB
    """What an engine that reads files may take beside."""
    bare_slack_bytes: int = 32 * MIB
    families: Mapping[str, str] = field(default_factory=dict)
    """Engine → family of its fork server."""
    cache_path: Callable[[VersionFacts], str] = lambda facts: ""
    """Where a worker may keep what its engine makes of the version's files; empty: nowhere."""

    def load_seconds(self, artifact_bytes: int) -> float:
        return self.load_timeout_seconds + artifact_bytes / self.load_bytes_per_second

    def allowed_bytes(self, facts: VersionFacts, granted: int, free: int) -> int:
        """The most private main memory that a worker may have. What its owner declared binds it. Nobody has promised
        anything where nothing was declared: then it may also take what is free, for a guess may be wrong."""
        slack = self.engine_slack_bytes if facts.artifact_bytes > 0 else self.bare_slack_bytes
        declared = facts.declared.get(HOST, 0)
        if declared > 0:
            return int(declared * self.growth_factor) + slack
        return int(granted * self.growth_factor) + slack + max(0, free)


class Hold(Protocol):
    """Keeps a version from being deleted while it is loading or loaded."""

    async def acquired(self) -> None:
        """Returns once it is in force. Raises VersionNotFound, or Unavailable while the registry is away."""

    async def golden(self) -> registry_pb2.GoldenInputs | None:
        """What the registry wants answered for a fingerprint, once the hold is in force; None: nothing."""

    async def record(self, fingerprint: registry_pb2.Fingerprint) -> registry_pb2.RecordFingerprintResponse:
        """Raises what the registry raises."""

    def release(self) -> None: ...


class Reports(Protocol):
    """Where a worker's life is reported."""

    def launched(self, uid: str, pid: int, start_mode: StartMode, refused: bool) -> None: ...

    def loaded(self, uid: str, reply: worker_pb2.LoadReply, seconds: float) -> None:
        """`seconds`: of the load alone, without the start of a fork server."""

    def load_failed(self, uid: str, error: ModelMoraError) -> None: ...

    def watched(self, uid: str, health: Health) -> None: ...

    def recognised(self, uid: str, difference: str) -> None:
        """What it answers to golden inputs was compared. `difference`: how it is not as it was; empty when it is."""

    def exited(self, uid: str, reason: str, out_of_memory: bool) -> None: ...


class Worker:
    """One replica's process. `begin` once; `stop` any time and as often as wanted."""

    def __init__(
        self,
        uid: str,
        facts: VersionFacts,
        need: Mapping[str, int],
        launcher: Launcher,
        hold: Hold,
        rules: WorkerRules,
        reports: Reports,
    ) -> None:
        self.uid = uid
        self.endpoint = ""
        self.batch_tokens = 0
        """Of the largest batch that it has computed; 0: unknown."""
        self._facts = facts
        self._need = need
        self._launcher = launcher
        self._hold = hold
        self._rules = rules
        self._reports = reports
        self._process: WorkerProcess | None = None
        self._control: WorkerChannel | None = None
        self._stop_asked = asyncio.Event()
        self._grace_seconds = 0.0
        self._last_sign = 0.0
        self._own = (0, 0)
        """Those of them that we have asked for ourselves."""
        self._told = (0, 0)
        self._progress = (0, 0, 0)
        """Batches and entries computed, and inputs that it has begun to prepare, by the worker's own count."""
        self._dimensions = 0
        self._profile: common_pb2.EngineProfile | None = None
        self._doubt = asyncio.Event()
        """It has failed what the registry asked: it is probed at once."""
        self._problem = ""
        """What real requests have shown; empty: nothing is wrong."""
        self._private_bytes = 0
        self._free_bytes = 0
        self._allowed_bytes = 0
        self._verdict = ""
        """Why it was ended by force."""
        self._out_of_memory = False
        """What it ended for, as far as anybody knows."""
        self._kernel_kills = 0
        self._asked_in = contextvars.Context()
        """That of the call which has it loaded: the load is part of its trace, the worker's life is not."""

    def begin(self, free_bytes: int = 0) -> asyncio.Task[None]:
        """`free_bytes`: of main memory, beside what it was granted."""
        self._free_bytes = free_bytes
        self._asked_in = contextvars.copy_context()
        return asyncio.create_task(self._live(), name=f"worker of {self.uid}", context=contextvars.Context())

    def stop(self, grace_seconds: float) -> None:
        """Drain within the grace, then end by force. A load is cancelled without grace."""
        self._grace_seconds = grace_seconds
        self._stop_asked.set()

    @property
    def process(self) -> WorkerProcess | None:
        """Its process, while there is one."""
        return self._process if self._process is not None and not self._process.exited.done() else None

    def described(self) -> memory.Process | None:
        """What is to be measured of it; None when there is no process."""
        process, facts = self.process, self._facts
        if process is None:
            return None
        cache = self._rules.cache_path(facts)
        return memory.Process(
            self.uid, process.pid, process.lender_pid, facts.artifact_digest, facts.artifact_path, cache
        )

    def took(self, private_bytes: int, charged_bytes: int, free_bytes: int) -> bool:
        """Its private main memory as measured from outside; what is charged to it, and free, in the ledger. False when
        it is more than it may take: then it is ended, at once, for memory is what there is none of."""
        process = self.process
        if process is None or self._stop_asked.is_set():
            return True
        self._private_bytes = private_bytes
        self._confine(process, charged_bytes, free_bytes)
        if private_bytes <= self._allowed_bytes:
            return True
        self._verdict = f"stopped, for it took more memory than it may: {self._arithmetic()}"
        process.kill()
        return False

    def _confine(self, process: WorkerProcess, charged_bytes: int, free_bytes: int) -> None:
        """What is faster than the measuring, the kernel refuses: an allocation beyond the limit fails in the worker.
        Some room is left above, for not all that is mapped is ever touched: stacks of threads, for one. But never more
        than there is: what the ledger calls free may be more than that for a moment, and the kernel then kills."""
        granted = max(self._need.get(HOST, 0), charged_bytes)  # what it took of what was free is granted by now
        allowed = self._rules.allowed_bytes(self._facts, granted, free_bytes)
        self._allowed_bytes = allowed
        if any(size > 0 for device, size in self._need.items() if device != HOST):
            return  # drivers of accelerators map far more than they use
        untouched = 64 * MIB + allowed // 10 + 20 * MIB * (os.cpu_count() or 1)
        growth = max(0, allowed - self._private_bytes) + untouched
        process.confine(min(growth, max(untouched, machine.available_bytes() * 9 // 10)))

    def _arithmetic(self) -> str:
        declared = self._facts.declared.get(HOST, 0)
        return (
            f"declared {declared or 'nothing'}, granted {self._need.get(HOST, 0)}, "
            f"last measured {self._private_bytes}, limit {self._allowed_bytes} bytes"
        )

    async def ask(self, request: worker_pb2.InferRequest, *, timeout_seconds: float) -> list[worker_pb2.InferReply]:
        """One batch of our own, through the control channel. Raises what the engine raises, TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            return await self._infer(request)

    async def _infer(self, request: worker_pb2.InferRequest) -> list[worker_pb2.InferReply]:
        # Counted when it is sent: what users have asked for is told a moment late rather than too high.
        self._own = (self._own[0] + 1, self._own[1] + len(request.texts))
        return [reply async for reply in self._open_control().infer(request)]

    async def allow(self, key: bytes) -> None:
        """Lets a holder in. Raises WorkerUnavailable, TimeoutError."""
        async with asyncio.timeout(_KEY_SECONDS):
            await self._open_control().allow(key)

    async def withdraw(self, key: bytes) -> None:
        """Shuts a holder out and closes its connections; nothing happens when the worker is gone."""
        try:
            async with asyncio.timeout(_KEY_SECONDS):
                await self._open_control().withdraw(key)
        except (ModelMoraError, TimeoutError) as error:
            if self._process is not None and not self._process.exited.done():
                log.warning("a key could not be withdrawn from the worker of %s: %s", self._facts.name, error)

    def _open_control(self) -> WorkerChannel:
        if self._control is None:
            raise WorkerUnavailable("the worker is not there")
        return self._control

    async def _live(self) -> None:
        try:
            if await self._load_unless_stopped():
                await self._serve()
        finally:
            # Whatever went wrong, the process is gone before its memory is given to another.
            reason = await self._end()
            self._hold.release()
            if self._control is not None:
                await self._control.close()
            self._reports.exited(self.uid, reason, self._out_of_memory)

    async def _load_unless_stopped(self) -> bool:
        """Whether there is a loaded model now."""
        load = asyncio.create_task(self._load(), context=self._asked_in)
        stop = asyncio.create_task(self._stop_asked.wait())
        try:
            await asyncio.wait((load, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            load.cancel()
            await asyncio.wait((load, stop))
        if load.cancelled():
            self._grace_seconds = 0.0
            return False
        error = load.exception()
        if error is None:
            return True
        self._grace_seconds = 0.0
        if not isinstance(error, ModelMoraError):
            raise error
        if isinstance(error, WorkerUnavailable) and self._process is not None:
            # The connection broke; how the process ended says more.
            exit_ = await self._wait_for_exit(_AFTER_TERM_SECONDS)
            words = self._ended(exit_) if exit_ else error.message
            error = OutOfMemory(words) if self._verdict else LoadFailed(f"the worker ended while loading: {words}")
        elif isinstance(error, OutOfMemory):
            remedy = "" if self._facts.declared else "; declare what it takes, and room is made for it"
            error = OutOfMemory(f"{error.message}; {self._arithmetic()}{remedy}")
        # Launcher, engine and registry each raise their own; of which model it was every caller is told.
        error.metadata = {**error.metadata, "model_version": self._facts.name}
        self._asked_in.run(self._reports.load_failed, self.uid, error)
        return False

    async def _load(self) -> None:
        start = time.monotonic()
        engine = self._facts.engine
        spec = LaunchSpec(self.uid, engine, self._facts.name, family=self._rules.families.get(engine, ""))
        holding = asyncio.ensure_future(self._hold.acquired())
        self._kernel_kills = machine.out_of_memory_kills()
        try:
            process = await self._launcher.launch(spec, timeout_seconds=self._rules.launch_timeout_seconds)
            self._process = process
            self._reports.launched(self.uid, process.pid, StartMode(process.start_mode), process.refused)
            self._confine(process, 0, self._free_bytes)
            self._control = await WorkerChannel.connect(process.endpoint, process.control_key)
            self.endpoint = process.endpoint
            reply = await self._loaded_and_held(holding)
        finally:
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)
        taken = sum(item.memory_bytes for item in reply.footprint if item.device == HOST)
        # More than there is was not taken, whatever was declared.
        wrong = nonsense_limits(reply) or nonsense({HOST: taken}, {HOST: machine.total_bytes()})
        if wrong:
            raise NonsenseFootprint(f"the engine tells of {wrong}; mend the engine: it is not tried again by itself")
        if self._facts.declared.get(HOST, 0) > 0 and taken > self._allowed_bytes:
            self._private_bytes = taken
            raise OutOfMemory("it took more memory than it may")
        self._dimensions = reply.embedding_dimensions
        self._profile = reply.engine_profile
        self._reports.loaded(self.uid, reply, time.monotonic() - start - process.server_seconds)

    async def _loaded_and_held(self, holding: asyncio.Future[None]) -> worker_pb2.LoadReply:
        """The load goes on while the registry is asked: what it deletes in between is refused by the hold, and nothing
        is loaded before both are there. Why there is no hold says more than why the files cannot be loaded."""
        loading = asyncio.ensure_future(
            self._open_control().load(
                load_request(self._facts, self._need, self._rules.cache_path(self._facts)),
                timeout_seconds=self._rules.load_seconds(self._facts.artifact_bytes),
                progress_seconds=self._rules.load_timeout_seconds,
            )
        )
        try:
            await asyncio.wait((holding, loading), return_when=asyncio.FIRST_EXCEPTION)
            await holding
            return await loading
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)

    async def _serve(self) -> None:
        """Until it is to stop or is gone."""
        assert self._process is not None
        stop = asyncio.create_task(self._stop_asked.wait())
        watch = asyncio.create_task(self._watch())
        pulse = asyncio.create_task(self._take_pulse())
        probe = asyncio.create_task(self._probe())
        fingerprint = asyncio.create_task(self._take_fingerprint())
        try:
            await asyncio.wait((stop, self._process.exited), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stop, watch, pulse, probe, fingerprint):
                task.cancel()
            await asyncio.wait((stop, watch, pulse, probe, fingerprint))

    async def _take_fingerprint(self) -> None:
        """Tells the registry what it answers to the golden inputs. That this fails harms nobody."""
        try:
            golden = await self._hold.golden()
            if golden is None:
                return
            # Whoever had it loaded is served first, also while this is computed.
            await asyncio.sleep(_FINGERPRINT_AFTER_SECONDS)
            request = worker_pb2.InferRequest(
                task_type=self._facts.task_type,  # type: ignore[arg-type]
                rank=-1,
                texts=[
                    worker_pb2.TextEntry(text=text, pair=pair, truncate=True, normalize=True, raw_scores=True)
                    for text, pair in zip(golden.texts, golden.pairs or repeat(""), strict=False)
                ],
            )
            replies = await self.ask(request, timeout_seconds=_FINGERPRINT_SECONDS)
            made = registry_pb2.Fingerprint(
                golden=golden.golden, outputs=tensor_of(replies, len(golden.texts)), engine_profile=self._profile
            )
            answer = await self._hold.record(made)
        except (ModelMoraError, TimeoutError) as error:
            log.warning("no fingerprint of %s: %s", self._facts.name, str(error) or "timeout")
            self._doubt.set()
        else:
            difference = f"answers otherwise than it did: similarity {answer.similarity:.6f}"
            self._reports.recognised(self.uid, "" if answer.matches else difference)

    async def _watch(self) -> None:
        assert self._process is not None
        interval = self._rules.watch_interval_seconds
        while True:
            try:
                if self._control is None or self._control.closed.is_set():
                    self._control = await WorkerChannel.connect(self._process.endpoint, self._process.control_key)
                async for reply in self._control.watch(interval):
                    self._last_sign = time.monotonic()
                    self._count(reply)
                    state = _HEALTH.get(reply.state, HealthState.UNKNOWN)
                    if self._problem and state is not HealthState.UNHEALTHY:
                        self._tell_problem()
                    else:
                        self._reports.watched(self.uid, Health(state, reply.reason, self._last_sign))
            except ModelMoraError as error:
                log.warning("the worker of %s is not to be reached: %s", self._facts.name, error)
            await asyncio.sleep(interval)

    def _count(self, reply: worker_pb2.WatchReply) -> None:
        self._progress = (reply.batches, reply.entries, reply.looked_at)
        self.batch_tokens = reply.batch_tokens
        told = self._told
        self._told = (max(told[0], reply.batches - self._own[0]), max(told[1], reply.entries - self._own[1]))
        BATCHES.inc(self._told[0] - told[0])
        ENTRIES.inc(self._told[1] - told[1])

    async def _take_pulse(self) -> None:
        pause = self._rules.unresponsive_seconds / 4
        self._last_sign = looked = time.monotonic()
        while True:
            await asyncio.sleep(pause)
            now = time.monotonic()
            # While this process stood still, with its machine maybe, it heard nobody.
            self._last_sign += max(0.0, now - looked - pause)
            looked = now
            silence = now - self._last_sign
            if silence > self._rules.unresponsive_seconds + self._rules.watch_interval_seconds:
                reason = f"the worker has not answered for {silence:.0f} s"
                self._reports.watched(self.uid, Health(HealthState.UNHEALTHY, reason, now))

    async def _probe(self) -> None:
        """Asks real questions: a worker that calls itself well and does not answer them is not."""
        interval = self._rules.probe_interval_seconds
        if interval <= 0 or not (self._dimensions or self._facts.task_type in _SCORED):
            return
        pause = interval
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._doubt.wait()
            self._doubt.clear()
            start = time.monotonic()
            failure = await self._probe_once() and await self._probe_once()
            if failure != self._problem:
                self._problem = failure
                log.warning("the worker of %s %s", self._facts.name, failure or "answers again")
                if failure:
                    self._tell_problem()
            # One that is sick is asked again soon; one that is slow is not kept busy with questions.
            pause = min(1.0, interval) if failure else max(interval, 20 * (time.monotonic() - start))

    async def _probe_once(self) -> str:
        """What was wrong with the answer; empty: nothing."""
        call = asyncio.create_task(self._ask_probe())
        try:
            while True:
                before = self._progress
                await asyncio.wait((call,), timeout=self._rules.probe_timeout_seconds)
                if call.done():
                    return call.result()
                if before == self._progress and not self._problem:
                    # Others are not served either. It may still come: then all is well again.
                    seconds = self._rules.probe_timeout_seconds
                    self._problem = f"has not answered a real request within {seconds:g} s, nor any other"
                    self._tell_problem()
        finally:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    async def _ask_probe(self) -> str:
        request = worker_pb2.InferRequest(
            task_type=self._facts.task_type,  # type: ignore[arg-type]
            texts=[probe_of(self._facts)],
        )
        try:
            replies = await self._infer(request)
        except WorkerUnavailable:
            return ""  # that it cannot be reached is told by others
        except ModelMoraError as error:
            return f"fails real requests: {error.message}"
        for failed in (failed for reply in replies for failed in reply.errors):
            return f"fails real requests: {failed.reason}: {failed.message}"
        row = b"".join(reply.rows for reply in replies)
        values = [value for (value,) in struct.iter_unpack("<f", row)] if len(row) % 4 == 0 else []
        wanted = self._dimensions or len(values) or 1
        if len(values) != wanted or not all(map(math.isfinite, values)):
            return f"answers real requests with nonsense: {len(values)} values, of which not all are finite"
        return ""

    def _tell_problem(self) -> None:
        now = time.monotonic()
        self._reports.watched(self.uid, Health(HealthState.UNHEALTHY, f"the worker {self._problem}", now))

    async def _end(self) -> str:
        """Ends the process, politely while there is grace; answers how it ended."""
        process = self._process
        if process is None:
            return "it was never started"
        if self._grace_seconds > 0 and self._control is not None and not process.exited.done():
            try:
                await self._control.drain(timeout_seconds=self._grace_seconds)
                await self._wait_for_exit(_AFTER_DRAIN_SECONDS)
            except (ModelMoraError, TimeoutError) as error:
                log.info("the worker of %s did not drain: %s", self._facts.name, str(error) or "timeout")
            if not process.exited.done():
                process.terminate()
                await self._wait_for_exit(_AFTER_TERM_SECONDS)
        if not process.exited.done():
            process.kill()
        while (exit_ := await self._wait_for_exit(10.0)) is None:
            # In the kernel's hands; its memory is not back before it is gone, so nothing else is right than to wait.
            log.error("the worker of %s (pid %d) does not die", self._facts.name, process.pid)
        return self._ended(exit_)

    def _ended(self, exit_: WorkerExit) -> str:
        """How it ended, as far as anybody knows."""
        self._out_of_memory = True
        if self._verdict:
            return self._verdict
        words = _words(exit_)
        if exit_.code == _EXIT_OUT_OF_MEMORY:
            return f"it ran out of memory: {self._arithmetic()}; {words}"
        if exit_.signal == signal.SIGKILL and machine.out_of_memory_kills() > self._kernel_kills:
            return f"killed by the kernel for lack of memory: {self._arithmetic()}; {words}"
        self._out_of_memory = False
        return words

    async def _wait_for_exit(self, seconds: float) -> WorkerExit | None:
        assert self._process is not None
        await asyncio.wait((self._process.exited,), timeout=seconds)
        return self._process.exited.result() if self._process.exited.done() else None


_HEALTH = {
    common_pb2.HEALTH_STATE_HEALTHY: HealthState.HEALTHY,
    common_pb2.HEALTH_STATE_DEGRADED: HealthState.DEGRADED,
    common_pb2.HEALTH_STATE_UNHEALTHY: HealthState.UNHEALTHY,
}


def probe_of(facts: VersionFacts) -> worker_pb2.TextEntry:
    """Something that every version of this task can answer."""
    if facts.takes_images:
        return worker_pb2.TextEntry(data=_PROBE_IMAGE)
    return worker_pb2.TextEntry(text=_PROBE_TEXT, truncate=True, pair=_PROBE_TEXT if facts.task_type in _PAIRED else "")


def nonsense_limits(reply: worker_pb2.LoadReply) -> str:
    """Which of the limits that an engine has told cannot be; empty: they can."""
    for name in ("max_input_tokens", "embedding_dimensions", "max_batch_tokens", "max_batch_entries"):
        if (value := getattr(reply, name)) < 0:
            return f"{name} {value}"
    return ""


def tensor_of(replies: Iterable[worker_pb2.InferReply], count: int) -> common_pb2.Tensor:
    """The rows of one batch in the order of its entries, float32. LoadFailed when one is missing or is longer."""
    rows: dict[int, bytes] = {}
    for reply in replies:
        at = 0
        for position, length in zip(reply.positions, reply.row_dimensions, strict=True):
            rows[position] = reply.rows[at : at + 4 * length]
            at += 4 * length
    lengths = {len(row) for row in rows.values()}
    if sorted(rows) != list(range(count)) or len(lengths) != 1 or not (length := lengths.pop()):
        raise LoadFailed(f"of {count} golden inputs {len(rows)} were answered, with rows of {sorted(lengths)} bytes")
    data = b"".join(rows[position] for position in range(count))
    return common_pb2.Tensor(data_type=common_pb2.DATA_TYPE_FP32, shape=[count, length // 4], data=data)


def load_request(facts: VersionFacts, need: Mapping[str, int], cache_path: str = "") -> worker_pb2.LoadRequest:
    """What the worker is told to load, with the bytes granted on each device."""
    request = worker_pb2.LoadRequest(
        engine=facts.engine,
        artifact_path=facts.artifact_path,
        model_version=facts.name,
        devices=[common_pb2.DeviceMemory(device=name, memory_bytes=size) for name, size in sorted(need.items())],
        task_type=facts.task_type,  # type: ignore[arg-type]
        cpu_threads=facts.cpu_threads,
        cache_path=cache_path,
        engine_profile=common_pb2.EngineProfile(
            backend=facts.profile.backend,
            precision=facts.profile.precision,
            library_versions=facts.profile.library_versions,
            batch_rule=facts.profile.batch_rule,
        ),
    )
    request.options.ParseFromString(facts.options)
    return request


def _words(exit_: WorkerExit) -> str:
    tail = "\n".join(exit_.log_tail[-_TAIL_LINES:])[-_TAIL_CHARS:]
    return f"{exit_}; its last lines:\n{tail}" if tail else str(exit_)
