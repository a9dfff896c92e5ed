"""Fault drill of inference: processes are killed in random order while calls and jobs come in all the time.

The platform runs in parts, as several machines would run it: one process with registry and lifecycle, one with
inference, one database. What is killed (-9), in a random order:

    worker       a loaded one, with what it computes
    fork server  the process that workers are forked from
    inference    the process with the queues, the job runner and every client's connection
    lifecycle    the process with registry and lifecycle, and with it its workers
    database     the server of PostgreSQL
    platform     all of them at once

Nothing may be lost: every accepted job ends exactly once, SUCCEEDED, with the right vector for each text; every
synchronous call (native, streamed, Triton's protocol, TEI's) gets its right answer, or an error that says by its name
that it may be tried again, before its deadline. Nothing may be left: no entry in a queue, no lease, no worker, no
process, no memory. A long run writes docs/evidence/drill-….md.

A blow waits until everything has ended that was open at the last one: an entry that meets two dead workers is to blame.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import uuid
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.inference.v1 import inference_pb2_grpc
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.retry import is_retryable
from modelmora.status import error_from_call, error_from_rpc
from modelmora_inference.protocols import oip_pb2, oip_pb2_grpc, tei_pb2, tei_pb2_grpc
from modelmora_runtime.postgres import EmbeddedPostgres
from modelmora_worker.engines.echo import vector

from bench.evidence import arguments, conclude, page, provenance
from bench.soak_watch import anonymous_bytes, fork_servers, name_of, parent_of, platform_pids
from bench.up import Up

MODEL = "drill/echo"
DIMENSIONS = 8
ENGINE = {"delay_seconds": 0.02, "max_batch_entries": 16, "load_seconds": 0.05}
KINDS = ("worker", "fork server", "inference", "lifecycle", "database", "platform")
CALL_SECONDS = 100.0
PATIENCE_SECONDS = 120.0
"""For what may take its time where much else wants the processors."""
LATE_SECONDS = 20.0
"""A call may end so long after its deadline: this program is one of those that want a processor."""
RECONNECT_SECONDS = 2.0
"""So long a channel may take to notice that somebody listens again."""
SETTINGS = {"INFERENCE_JOB_CLAIM_SECONDS": "1"}
FINAL = (common_pb2.JOB_STATE_SUCCEEDED, common_pb2.JOB_STATE_FAILED, common_pb2.JOB_STATE_CANCELLED)
PASSING = ("WorkerUnavailable", "Unavailable", "DatabaseUnavailable", "ShuttingDown", "QueueFull", "LoadFailed")
"""Names of errors that may be tried again, as Triton's streams have them in a text."""
GROWTH = 0.25
"""Of the memory of processes that have all been started anew meanwhile, so little of it means a leak."""
MIB = 1024 * 1024


class Wrong(AssertionError):
    """Something that must never be."""


class Database:
    """An embedded PostgreSQL of its own, kept by a thread of this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready = threading.Event()
        self._over: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._keep()), name="database", daemon=True)
        self.url = ""

    async def _keep(self) -> None:
        self._over, self._loop = asyncio.Event(), asyncio.get_running_loop()
        run_dir = self._folder / "run"
        run_dir.mkdir(parents=True, mode=0o700)
        async with EmbeddedPostgres(self._folder, run_dir) as server:
            self.url = server.url
            self._ready.set()
            await self._over.wait()

    def __enter__(self) -> Database:
        self._thread.start()
        if not self._ready.wait(PATIENCE_SECONDS):
            raise Wrong("the database did not start")
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None and self._over is not None:
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)

    @property
    def pids(self) -> list[int]:
        """The server's first process, and the backends."""
        return sorted(pid for pid in platform_pids(os.fsencode(self._folder)) if name_of(pid) == "postgres")

    @property
    def server_pid(self) -> int:
        """0 while there is none."""
        pids = self.pids
        return next((pid for pid in pids if parent_of(pid) not in pids), 0)


class Site:
    """A platform in parts in one folder, and how it is hit. Used by one thread."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._database = Database(folder / "db")
        self._stack = ExitStack()
        self._down: list[list[float]] = []
        """When nobody listened for inference: from, until."""

    def __enter__(self) -> Site:
        self._stack.enter_context(self._database)
        control, inference = _free_ports(2)
        url = {"DATABASE_URL": self._database.url, **SETTINGS}
        self.lifecycle = self._part(
            "control", control, "registry", "lifecycle", "observability", **url, PEERS=_peers(inference=inference)
        )
        self.inference = self._part(
            "inference", inference, "inference", **url, PEERS=_peers(registry=control, lifecycle=control)
        )
        for part in (self.lifecycle, self.inference):
            part.start()
            self._stack.callback(_end, part)
        self.target = f"127.0.0.1:{inference}"
        return self

    def _part(self, name: str, port: int, *contexts: str, **settings: str) -> Up:
        where = self.folder / name
        return Up(where, command=("-m", "modelmora_app", "serve", *contexts), settings={"PORT": str(port), **settings})

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def stop(self) -> list[str]:
        """Stops the parts as people do; what was wrong with that."""
        found = []
        for name, part in (("inference", self.inference), ("lifecycle", self.lifecycle)):
            if status := part.stop():
                found.append(f"{name} ended with {status}")
        self._stack.close()
        until = time.monotonic() + 15
        while (left := platform_pids(os.fsencode(self.folder))) and time.monotonic() < until:
            time.sleep(0.05)
        return found + [f"a process is left: {pid} {name_of(pid)}" for pid in sorted(left)]

    def replicas(self) -> Sequence[lifecycle_pb2.Replica]:
        return self.lifecycle.lifecycle.ListReplicas(lifecycle_pb2.ListReplicasRequest(), timeout=10).replicas

    def kill(self, kind: str) -> bool:
        """Whether there was anything to kill. Returns when what does not come back by itself was started again."""
        if kind == "worker":
            loaded = [one.pid for one in self.replicas() if one.state == lifecycle_pb2.REPLICA_STATE_LOADED and one.pid]
            return sum(_send(pid) for pid in loaded) > 0
        if kind == "fork server":
            servers = fork_servers(os.fsencode(self.lifecycle.data_dir)).keys() - {one.pid for one in self.replicas()}
            return sum(_send(pid) for pid in sorted(servers)[:1]) > 0
        if kind == "database":
            return _send(self._database.server_pid)
        parts = {"inference": [self.inference], "lifecycle": [self.lifecycle]}.get(
            kind, [self.inference, self.lifecycle]
        )
        family = platform_pids(os.fsencode(self.folder)) if kind == "platform" else {part.pid for part in parts}
        before = {pid for part in parts for pid in platform_pids(os.fsencode(part.data_dir))}
        blow = time.monotonic()
        if self.inference in parts:
            self._down.append([blow, math.inf])
        for pid in sorted(family):
            _send(pid)
        for part in parts:
            part.wait(PATIENCE_SECONDS)
            part.close_channel()
        until = blow + PATIENCE_SECONDS
        while left := {pid for pid in before if pid in platform_pids(os.fsencode(self.folder))}:
            if time.monotonic() > until:
                raise Wrong(f"{left} outlived their host")
            time.sleep(0.02)
        for part in parts:
            part.launch()
        for part in parts:
            part.wait_ready(PATIENCE_SECONDS)
        if self.inference in parts:
            self._down[-1][1] = time.monotonic()
        return True

    def was_down(self, since: float, until: float) -> bool:
        """Whether nobody listened for inference at any moment of this, or a moment before: channels connect again."""
        return any(a <= until and since <= b + RECONNECT_SECONDS for a, b in list(self._down))

    def memory_bytes(self) -> int:
        """Anonymous memory of the platform's own processes, the database's aside."""
        pids = platform_pids(os.fsencode(self.lifecycle.data_dir)) | platform_pids(os.fsencode(self.inference.data_dir))
        return sum(anonymous_bytes(pid) for pid in pids)


@dataclass
class Report:
    """What a drill was and what came of it."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    accepted: set[str] = field(default_factory=set)
    """Jobs that the platform has promised to do."""
    ended: Counter[str] = field(default_factory=Counter)
    """Of them those that were seen to end, with all their results looked at: each once."""
    texts: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    """By kind of call."""
    refused: Counter[str] = field(default_factory=Counter)
    """By kind of call and name of the error."""
    slowest_seconds: dict[str, float] = field(default_factory=dict)
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from a blow until all that was open then has ended and something new was answered."""
    wrong_things: list[str] = field(default_factory=list)
    before_bytes: int = 0
    after_bytes: int = 0
    seconds: float = 0.0

    def wrong(self) -> list[str]:
        """Everything that must not be; empty when the drill was passed."""
        found = self.wrong_things[:10]
        if lost := self.accepted - self.ended.keys():
            found.append(f"{len(lost)} accepted jobs did not end, such as {min(lost)}")
        found += [f"{name} ended {count} times" for name, count in self.ended.items() if count > 1]
        found += [f"no {kind} was answered" for kind in CALLS if not self.answered[kind]]
        found += [f"no {kind} was killed" for kind in KINDS if not self.kills[kind]]
        if self.after_bytes > self.before_bytes * (1 + GROWTH):
            found.append(f"memory grew from {self.before_bytes} to {self.after_bytes} bytes")
        return found


class Drill:
    """One drill at one site."""

    def __init__(self, site: Site, seed: int, callers: int = 1, owners: int = 3) -> None:
        self._site = site
        self.report = Report(seed)
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._open: dict[int, tuple[str, float]] = {}
        """Calls and jobs that are under way, by number: what, since when."""
        self._numbers = 0
        self._finished = threading.Condition(self._lock)
        works: list[tuple[str, Callable[[grpc.Channel], None]]] = [
            (kind, lambda channel, kind=kind: self._call(kind, channel)) for kind in CALLS for _ in range(callers)
        ]
        works += [("job", self._job)] * owners
        self._works = [(f"{kind} {number}", work) for number, (kind, work) in enumerate(works)]
        self._load: dict[Future[None], str] = {}
        """Who makes it, by name."""

    def run(self, plan: Iterator[str]) -> Report:
        """Kills as planned, each when the last blow is got over; then looks for what is left."""
        report, began = self.report, time.monotonic()
        site = self._site
        version = site.lifecycle.add_model(MODEL, engine="echo", options=ENGINE, memory_bytes=64 * MIB)
        with grpc.insecure_channel(site.target, options=_OPTIONS) as channel:
            _patiently(lambda: CALLS["embed"](channel, ["warm", "up"], PATIENCE_SECONDS), PATIENCE_SECONDS)
        self._settle(version)
        report.before_bytes = site.memory_bytes()
        pool = ThreadPoolExecutor(len(self._works))
        for name, work in self._works:
            future = pool.submit(self._go_on, work)
            self._load[future] = name
            future.add_done_callback(self._ended)
        try:
            self._until(
                lambda: all(report.answered[kind] for kind in CALLS) and bool(report.ended), "the first answers"
            )
            for kind in plan:
                self._blow(kind)
        finally:
            self._over.set()
            _, hanging = wait(self._load, timeout=2 * PATIENCE_SECONDS)
            pool.shutdown(wait=not hanging)  # then all of them have said how they ended
            report.wrong_things += [f"{self._load[future]} hangs: {self._scene()}" for future in hanging]
        if not report.wrong_things:
            self._look_for_leftovers()
            self._settle(version)
            report.after_bytes = site.memory_bytes()
        report.seconds = time.monotonic() - began
        return report

    def _blow(self, kind: str) -> None:
        with self._lock:
            meant = set(self._open)
        began = time.monotonic()
        if not _patiently(lambda: self._site.kill(kind), PATIENCE_SECONDS):
            return
        report = self.report
        report.kills[kind] += 1
        with self._lock:
            meant |= {number for number, (_, since) in self._open.items() if since <= time.monotonic()}
            answered, ended = report.answered.total(), report.ended.total()
        self._until(
            lambda: (
                not meant & self._open.keys() and report.answered.total() > answered and report.ended.total() > ended
            ),
            f"the end of what was open when the {kind} was killed",
        )
        report.recoveries.setdefault(kind, []).append(time.monotonic() - began)

    def _until(self, fact: Callable[[], bool], what: str) -> None:
        with self._finished:
            done = self._finished.wait_for(lambda: self.report.wrong_things or fact(), 2 * PATIENCE_SECONDS)
        if not done:
            self.report.wrong_things.append(f"not within {2 * PATIENCE_SECONDS:g} s: {what}; {self._scene()}")
        if self.report.wrong_things:
            raise Wrong(self.report.wrong_things[0])

    def _scene(self) -> str:
        now = time.monotonic()
        return ", ".join(f"{what} for {now - since:.1f} s" for what, since in list(self._open.values()))

    # Load.

    def _go_on(self, work: Callable[[grpc.Channel], None]) -> None:
        with grpc.insecure_channel(self._site.target, options=_OPTIONS) as channel:
            while not self._over.is_set() and not self.report.wrong_things:
                work(channel)

    def _ended(self, future: Future[None]) -> None:
        """Whatever ended one that makes load, the drill has failed."""
        if (error := future.exception()) is not None:
            with self._finished:
                self.report.wrong_things.append(f"{self._load[future]}: {error!r}")
                self._finished.notify_all()

    @contextmanager
    def _under_way(self, what: str) -> Iterator[None]:
        with self._lock:
            self._numbers += 1
            number = self._numbers
            self._open[number] = what, time.monotonic()
        try:
            yield
        finally:
            with self._finished:
                del self._open[number]
                self._finished.notify_all()

    def _call(self, kind: str, channel: grpc.Channel) -> None:
        """One synchronous call, or one stream of some."""
        texts = [uuid.uuid4().hex for _ in range(4)]
        with self._under_way(kind):
            began = time.monotonic()
            refused = ""
            try:
                for error in CALLS[kind](channel, texts, CALL_SECONDS):
                    refused = self._refused(kind, error)
            except grpc.RpcError as error:
                refused = self._refused_by_status(kind, error, began)
            seconds = time.monotonic() - began
            if seconds > CALL_SECONDS + LATE_SECONDS:
                raise Wrong(f"{kind} took {seconds:.1f} s, its deadline was {CALL_SECONDS:g} s")
        report = self.report
        with self._finished:
            if refused:
                report.refused[f"{kind}: {refused}"] += 1
            else:
                report.answered[kind] += 1
            report.slowest_seconds[kind] = max(report.slowest_seconds.get(kind, 0.0), seconds)
            self._finished.notify_all()
        self._over.wait(0.05 if refused else 0.005)

    def _refused_by_status(self, kind: str, error: Any, began: float) -> str:
        """The name of an error; raises Wrong unless it says that the call may be tried again."""
        if any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ()):
            return self._refused(kind, error_from_rpc(error))
        # No word of ours: the connection itself broke, which it may when its other end was killed.
        if error.code() is not grpc.StatusCode.UNAVAILABLE or not self._site.was_down(began, time.monotonic()):
            raise Wrong(f"{kind} got {error.code().name} without a name: {error.details()}")
        return "connection lost"

    def _refused(self, kind: str, error: errors.ModelMoraError) -> str:
        if not is_retryable(error):
            raise Wrong(f"{kind} got {error.status} {error.reason}: {error.message}")
        return error.reason

    def _job(self, channel: grpc.Channel) -> None:
        """One job from its acceptance to its results."""
        with self._lock:
            count = self._chance.randrange(20, 150)
        texts = [uuid.uuid4().hex for _ in range(count)]
        stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        create = pb.CreateInferenceJobRequest(
            model=MODEL, embed=pb.EmbedTask(texts=texts), request_id=str(uuid.uuid4())
        )
        with self._under_way("job"):
            job = self._asked("CreateInferenceJob", stub.CreateInferenceJob, create).job
            with self._lock:
                self.report.accepted.add(job.name)
            get = pb.GetInferenceJobRequest(name=job.name)
            until = time.monotonic() + 2 * PATIENCE_SECONDS
            while job.state not in FINAL:
                if time.monotonic() > until:
                    raise Wrong(f"{job.name} does not end: {job}")
                time.sleep(0.03)
                job = self._asked("GetInferenceJob", stub.GetInferenceJob, get).job
            if (job.state, job.progress.succeeded, job.progress.failed) != (FINAL[0], count, 0):
                raise Wrong(f"{job.name} ended wrong: {job}")
            fetch = pb.GetInferenceResultRequest(name=job.name, encoding=pb.VECTOR_ENCODING_BYTES)
            results = self._asked("GetInferenceResult", stub.GetInferenceResult, fetch).results
            if [one.index for one in results] != list(range(count)):
                raise Wrong(f"{job.name} has results of {[one.index for one in results]}")
            check([array("f", one.embed.vector) for one in results], texts)
            with self._finished:
                self.report.ended[job.name] += 1
                self.report.texts += count
                self._finished.notify_all()

    def _asked(self, name: str, rpc: Any, request: Any) -> Any:
        """The answer of a call that is made until it is answered."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            began = time.monotonic()
            try:
                return rpc(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                refused = self._refused_by_status(name, error, began)
                with self._lock:
                    self.report.refused[f"{name}: {refused}"] += 1
                if time.monotonic() > until:
                    raise Wrong(f"{name} was refused for {PATIENCE_SECONDS:g} s") from error
            time.sleep(0.05)

    # Afterwards.

    def _look_for_leftovers(self) -> None:
        """Everything has been answered: nothing waits, nothing runs, nothing is held."""
        site, wrong = self._site, self.report.wrong_things
        listed: Counter[str] = Counter()
        states: set[int] = set()
        token = ""
        while True:
            page = site.inference.inference.ListInferenceJobs(
                pb.ListInferenceJobsRequest(page_size=1000, page_token=token), timeout=CALL_SECONDS
            )
            listed.update(job.name for job in page.jobs)
            states |= {job.state for job in page.jobs}
            token = page.next_page_token
            if not token:
                break
        if set(listed) != self.report.accepted or set(listed.values()) - {1}:
            wrong.append(f"{len(listed)} jobs are listed, {len(self.report.accepted)} were accepted")
        if states - {common_pb2.JOB_STATE_SUCCEEDED}:
            wrong.append(f"jobs are in the states {states}")
        for queue in site.inference.inference.GetQueue(pb.GetQueueRequest(), timeout=CALL_SECONDS).queues:
            if queue.in_flight or any(level.entries for level in queue.levels):
                wrong.append(f"a queue holds what nobody asked for: {queue}")
        # A call is answered a moment before it is over, and health is asked all the time.
        until = time.monotonic() + PATIENCE_SECONDS
        while (held := _held(site.inference.scrape())) and time.monotonic() < until:
            time.sleep(0.05)
        wrong += [f"{name} is still {value:g}" for name, value in held.items()]

    def _settle(self, version: str) -> None:
        """Unloads all, and waits until its memory is back."""
        stub = self._site.lifecycle.lifecycle
        request = lifecycle_pb2.UnloadModelRequest(model=version, force=True, wait=True)
        try:
            stub.UnloadModel(request, timeout=PATIENCE_SECONDS)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:  # type: ignore[attr-defined]
                raise
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            devices = stub.GetMemory(lifecycle_pb2.GetMemoryRequest(), timeout=CALL_SECONDS).devices
            charged = [one.owner for device in devices for one in device.charges if one.owner.startswith("replicas/")]
            if not charged and not self._site.replicas():
                return
            if time.monotonic() > until:
                raise Wrong(f"all was unloaded, and still there is: {charged} {list(self._site.replicas())}")
            time.sleep(0.05)


# The calls, each with the vectors of its texts looked at. They give the named errors that came in place of answers.


def _embed(channel: grpc.Channel, texts: Sequence[str], seconds: float) -> Sequence[errors.ModelMoraError]:
    stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
    answer = stub.Embed(pb.EmbedRequest(model=MODEL, texts=texts), timeout=seconds)
    check([one.values for one in answer.embeddings], texts)
    return ()


def _stream(channel: grpc.Channel, texts: Sequence[str], seconds: float) -> Sequence[errors.ModelMoraError]:
    stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
    requests = [pb.StreamEmbedRequest(id=text, request=pb.EmbedRequest(model=MODEL, texts=[text])) for text in texts]
    found, missing = [], set(texts)
    for answer in stub.StreamEmbed(iter(requests), timeout=seconds):
        if answer.id not in missing:
            raise Wrong(f"an answer to {answer.id!r}, which is not open")
        missing.discard(answer.id)
        if answer.WhichOneof("outcome") == "error":
            found.append(error_from_call(answer.error))
        else:
            check([one.values for one in answer.response.embeddings], [answer.id])
    if missing:
        raise Wrong(f"the stream ended well and left {len(missing)} calls without an answer")
    return found


def _infer_request(texts: Sequence[str]) -> oip_pb2.ModelInferRequest:
    raw = b"".join(struct.pack("<I", len(text)) + text.encode() for text in texts)
    tensor: Any = {"name": "texts", "datatype": "BYTES", "shape": [len(texts)]}
    return oip_pb2.ModelInferRequest(model_name=MODEL, inputs=[tensor], raw_input_contents=[raw])


def _check_infer(answer: oip_pb2.ModelInferResponse, texts: Sequence[str]) -> None:
    (data,) = answer.raw_output_contents
    values = array("f", data)
    check([values[at : at + DIMENSIONS] for at in range(0, len(values), DIMENSIONS)], texts)


def _triton(channel: grpc.Channel, texts: Sequence[str], seconds: float) -> Sequence[errors.ModelMoraError]:
    stub = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
    _check_infer(stub.ModelInfer(_infer_request(texts), timeout=seconds), texts)
    return ()


def _triton_stream(channel: grpc.Channel, texts: Sequence[str], seconds: float) -> Sequence[errors.ModelMoraError]:
    stub = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
    found: list[errors.ModelMoraError] = []
    answers = stub.ModelStreamInfer(iter([_infer_request([text]) for text in texts]), timeout=seconds)
    for text, answer in zip(texts, answers, strict=True):
        if answer.error_message:
            name = answer.error_message.partition(":")[0]
            if name not in PASSING:
                raise Wrong(f"an answer in a stream: {answer.error_message}")
            found.append(errors.class_for("UNAVAILABLE", name)(answer.error_message, retry_after_seconds=1.0))
        else:
            _check_infer(answer.infer_response, [text])
    return found


_TEI = (("x-model-id", MODEL),)


def _tei(channel: grpc.Channel, texts: Sequence[str], seconds: float) -> Sequence[errors.ModelMoraError]:
    stub = tei_pb2_grpc.EmbedStub(channel)  # type: ignore[no-untyped-call]
    request = tei_pb2.EmbedRequest(inputs=texts[0], normalize=True)
    check([stub.Embed(request, timeout=seconds, metadata=_TEI).embeddings], texts[:1])
    return ()


def _tei_stream(channel: grpc.Channel, texts: Sequence[str], seconds: float) -> Sequence[errors.ModelMoraError]:
    stub = tei_pb2_grpc.EmbedStub(channel)  # type: ignore[no-untyped-call]
    requests = iter([tei_pb2.EmbedRequest(inputs=text, normalize=True) for text in texts])
    check([answer.embeddings for answer in stub.EmbedStream(requests, timeout=seconds, metadata=_TEI)], texts)
    return ()


CALLS: dict[str, Callable[[grpc.Channel, Sequence[str], float], Sequence[errors.ModelMoraError]]] = {
    "embed": _embed,
    "stream embed": _stream,
    "triton infer": _triton,
    "triton stream": _triton_stream,
    "tei embed": _tei,
    "tei stream": _tei_stream,
}
_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
]


def check(vectors: Sequence[Sequence[float]], texts: Sequence[str]) -> None:
    """Raises Wrong unless each vector is that of its own text."""
    if len(vectors) != len(texts):
        raise Wrong(f"{len(vectors)} vectors for {len(texts)} texts")
    for found, text in zip(vectors, texts, strict=True):
        if (
            len(found) != DIMENSIONS
            or max(abs(a - b) for a, b in zip(found, vector(0, text, DIMENSIONS), strict=True)) > 1e-6
        ):
            raise Wrong(f"the vector of another text: {text}")


def _held(scraped: Mapping[str, float]) -> dict[str, float]:
    """What a server holds for calls of inference: bytes, and calls that run."""
    calls = ("modelmora.inference.", "inference.", "tei.")
    return {
        name: value
        for name, value in scraped.items()
        if value
        and (
            name == "modelmora_bytes_in_flight"
            or name.startswith(tuple(f'modelmora_requests_in_flight{{method="{call}' for call in calls))
        )
    }


def _patiently(work: Callable[[], Any], seconds: float) -> Any:
    """What it gives, once it is not refused."""
    until = time.monotonic() + seconds
    while True:
        try:
            return work()
        except grpc.RpcError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _send(pid: int) -> bool:
    try:
        if pid:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return bool(pid)


def _end(part: Up) -> None:
    if part.process is not None and part.process.poll() is None:
        part.process.kill()
        part.process.wait(10)
    part.close_channel()


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _peers(**ports: int) -> str:
    return json.dumps({name: f"127.0.0.1:{port}" for name, port in ports.items()})


def each_twice(seed: int) -> Iterator[str]:
    """The short plan."""
    kinds = list(KINDS) * 2
    random.Random(seed).shuffle(kinds)
    return iter(kinds)


def for_minutes(seed: int, seconds: float) -> Iterator[str]:
    """The long plan: any kind at any moment, until the time is over."""
    chance, until = random.Random(seed), time.monotonic() + seconds
    yield from each_twice(seed)
    while time.monotonic() < until:
        time.sleep(chance.uniform(0, 0.5))
        yield chance.choice(KINDS)


def drill(folder: Path, seed: int, plan: Iterator[str]) -> Report:
    """One drill in a folder of its own."""
    with Site(folder) as site:
        one = Drill(site, seed)
        try:
            report = one.run(plan)
        except Wrong as error:
            report = one.report
            if str(error) not in report.wrong_things:
                report.wrong_things.append(str(error))
            report.wrong_things += [
                f"the log of {part.data_dir.name}:\n{part.tail()}" for part in (site.inference, site.lifecycle)
            ]
            return report
        report.wrong_things += site.stop()
        return report


def evidence(report: Report) -> str:
    """The page of a run."""
    rows: dict[str, object] = {
        **provenance(),
        "seed": report.seed,
        "duration": f"{report.seconds:.0f} s",
        **{f"kills: {kind}": report.kills[kind] for kind in KINDS},
        "jobs accepted": len(report.accepted),
        "jobs that ended once, all results right": len(report.ended),
        "texts in them": report.texts,
        **{f"{kind}: answered": report.answered[kind] for kind in CALLS},
        **{f"refused, may be tried again: {name}": count for name, count in sorted(report.refused.items())},
        **{f"{kind}: slowest": f"{seconds:.1f} s" for kind, seconds in report.slowest_seconds.items()},
        **{
            f"until all is well after a blow to {kind}": f"median {sorted(seconds)[len(seconds) // 2]:.1f} s, "
            f"most {max(seconds):.1f} s"
            for kind, seconds in report.recoveries.items()
        },
        "memory before and after": f"{report.before_bytes / MIB:.1f} and {report.after_bytes / MIB:.1f} MiB",
        "verdict": "; ".join(report.wrong()) or "passed",
    }
    about = "By `python -m bench.drill`; bench/drill.py says what it does and what must never be."
    return page("Fault drill of inference", about, rows)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mm-drill-") as folder:
        report = drill(Path(folder) / "site", given.seed, for_minutes(given.seed, 60 * given.minutes))
    return conclude("drill", evidence(report), given.evidence, report.wrong())


if __name__ == "__main__":
    sys.exit(main())
