"""Inference in a real host with real echo workers, and a lifecycle small enough that a test can say when it takes a
lease back. The same calls against the real lifecycle are in test_inference_platform.py.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from integration.tiny_platform import only
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc
from modelmora.lifecycle.v1 import lifecycle_pb2, lifecycle_pb2_grpc
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc
from modelmora.worker.v1 import worker_pb2
from modelmora_inference import dispatcher as dispatching
from modelmora_inference import main as inference
from modelmora_lifecycle.launcher import LaunchSpec, LocalLauncher, WorkerProcess
from modelmora_runtime.auth import SERVICES
from modelmora_runtime.host import Context, Host, Mounted, Platform, Service
from modelmora_runtime.peers import PeerChannel
from modelmora_runtime.settings import PlatformSettings, Section
from modelmora_runtime.worker_channel import WorkerChannel
from modelmora_worker.engines.echo import vector

DIGEST = "sha256:" + "ab" * 32


@dataclass
class Heard:
    """What a holder has said on one lease, and what it is to be told."""

    inbox: asyncio.Queue[lifecycle_pb2.AcquireResponse | errors.ModelMoraError | None] = field(
        default_factory=asyncio.Queue
    )
    in_use: list[int] = field(default_factory=list)
    waiting: list[tuple[int, float]] = field(default_factory=list)
    priorities: list[int] = field(default_factory=list)

    def note(self, told: lifecycle_pb2.InUse) -> None:
        if told.waiting_entries:
            self.waiting.append((told.waiting_entries, told.oldest_wait.ToNanoseconds() / 1e9))
        if not self.in_use or bool(self.in_use[-1]) != bool(told.in_flight):
            self.in_use.append(told.in_flight)
        if self.priorities[-1:] != [told.priority]:
            self.priorities.append(told.priority)


@dataclass
class Granted:
    """One lease that inference holds."""

    version: str
    holder: str
    worker: Loaded
    inbox: asyncio.Queue[lifecycle_pb2.AcquireResponse | errors.ModelMoraError | None]
    in_use: list[int] = field(default_factory=list)
    """What the holder said of itself that was not about waiting."""
    waiting: list[tuple[int, float]] = field(default_factory=list)
    """Entries that wait, and how long the first has."""
    priorities: list[int] = field(default_factory=list)
    """Of what is in flight."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    dies_too: bool = False
    """The worker's end is that of lifecycle, which says nothing any more."""

    def ask_to_yield(self, in_seconds: float = 0.0) -> None:
        message = lifecycle_pb2.AcquireResponse()
        asked = getattr(message, "yield")
        asked.by.FromNanoseconds(time.time_ns() + int(in_seconds * 1e9))
        asked.reason = "the test wants it"
        self.inbox.put_nowait(message)

    def invite(self, replica: str) -> None:
        self.inbox.put_nowait(lifecycle_pb2.AcquireResponse(invite=lifecycle_pb2.Invite(replica=replica)))

    def revoke(self, *, crashed: bool = False) -> None:
        if self.dies_too:
            self.inbox.put_nowait(errors.Unavailable("lifecycle is gone"))
            return
        revoked = lifecycle_pb2.Revoked(reason="the test wants it", crashed=crashed)
        self.inbox.put_nowait(lifecycle_pb2.AcquireResponse(revoked=revoked))
        self.inbox.put_nowait(None)


@dataclass
class Loaded:
    """One worker process with its control connection."""

    replica: str
    process: WorkerProcess
    control: WorkerChannel
    reply: worker_pb2.LoadReply

    @property
    def alive(self) -> bool:
        return not self.process.exited.done() and not self.control.closed.is_set()

    async def seen(self) -> worker_pb2.WatchReply:
        """What the worker counted."""
        async for reply in self.control.watch(60):
            return reply
        raise AssertionError("the worker is gone")

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)


class Lessor(lifecycle_pb2_grpc.LifecycleLeaseServiceServicer, lifecycle_pb2_grpc.LifecycleServiceServicer):
    """Loads on demand, one worker for each version until a test wants more; says what became of a worker that dies."""

    def __init__(self, launcher: LocalLauncher, models: Mapping[str, Mapping[str, object]]) -> None:
        self._launcher = launcher
        self._models = models
        self._locks: dict[str, asyncio.Lock] = {}
        self.loaded: dict[str, Loaded] = {}
        self.further: dict[str, list[Loaded]] = {}
        """Replicas beyond the first."""
        self.task_types: Mapping[str, common_pb2.TaskType] = {}
        """Of the versions that are not loaded to embed."""
        self.estimate_seconds: float | None = None
        """What it says of the time until a cold version is loaded."""
        self.reason = "loading"
        """What it says of a load."""
        self._loads: set[asyncio.Task[Loaded]] = set()
        self._grants = asyncio.Event()
        self._grants.set()
        self.engine = "echo"
        self.launches = 0
        self.wants: list[lifecycle_pb2.Want] = []
        self.urged: list[lifecycle_pb2.Want] = []
        """What was said again by who waits."""
        self.ends: list[asyncio.Event] = []
        """Of each want: it is over, whoever ended it."""
        self.leases: list[Granted] = []
        self.refuse_with: list[errors.ModelMoraError] = []
        """The next wants get these, one each."""
        self.changed = asyncio.Condition()

    async def lease(self, number: int) -> Granted:
        """The lease of this number, counted from 0, once it is granted."""
        async with self.changed, asyncio.timeout(60):
            await self.changed.wait_for(lambda: len(self.leases) > number)
        return self.leases[number]

    async def end_of(self, number: int) -> asyncio.Event:
        """Of the want of this number, counted from 0, once it has come."""
        async with self.changed, asyncio.timeout(60):
            await self.changed.wait_for(lambda: len(self.ends) > number)
        return self.ends[number]

    @asynccontextmanager
    async def loads_wait(self, version: str) -> AsyncIterator[None]:
        """Inside, nothing of this version comes into memory."""
        async with self._locks.setdefault(version, asyncio.Lock()):
            yield

    @asynccontextmanager
    async def grants_wait(self) -> AsyncIterator[None]:
        """Inside, nobody is granted a lease."""
        self._grants.clear()
        yield
        self._grants.set()

    async def scale_up(self, version: str) -> Loaded:
        """One more replica; every holder is invited."""
        one = await self._launch(version)
        self.further.setdefault(version, []).append(one)
        for lease in self.leases:
            if lease.version == version and not lease.closed.is_set():
                lease.invite(one.replica)
        return one

    async def close(self) -> None:
        for load in self._loads:
            load.cancel()
        for loaded in (*self.loaded.values(), *(one for some in self.further.values() for one in some)):
            await loaded.control.close()

    def _free(self, version: str, holder: str) -> Loaded | None:
        """A replica that the holder does not have yet."""
        held = [lease.worker for lease in self.leases if lease.holder == holder and not lease.closed.is_set()]
        there = [self.loaded[version]] if version in self.loaded else []
        free = [one for one in there + self.further.get(version, []) if one.alive and one not in held]
        return free[0] if free else None

    async def ListReplicas(self, request: Any, context: Any) -> lifecycle_pb2.ListReplicasResponse:
        version = request.filter.split('"')[3]
        alive = version in self.loaded and self.loaded[version].alive
        return lifecycle_pb2.ListReplicasResponse(replicas=[lifecycle_pb2.Replica()] * alive)

    async def Acquire(self, requests: AsyncIterator[Any], context: Any) -> None:
        first = await anext(requests)
        self.wants.append(first.want)
        ended = asyncio.Event()
        context.add_done_callback(lambda _: ended.set())
        async with self.changed:
            self.ends.append(ended)
            self.changed.notify_all()
        if self.refuse_with:
            raise self.refuse_with.pop(0)
        await self._grants.wait()
        heard = Heard()
        listening = asyncio.create_task(self._listen(requests, heard))
        try:
            await self._lease(context, first.want, heard)
        finally:
            listening.cancel()

    async def _listen(self, requests: AsyncIterator[Any], heard: Heard) -> None:
        async for request in requests:
            if request.HasField("want"):
                self.urged.append(request.want)
            else:
                heard.note(request.in_use)
            async with self.changed:
                self.changed.notify_all()
        heard.inbox.put_nowait(None)

    async def _lease(self, context: Any, want: lifecycle_pb2.Want, heard: Heard) -> None:
        version, holder = want.model_version, want.holder
        worker = self._free(version, holder)
        if worker is None and want.load_nothing:
            raise errors.ModelLoading(retry_after_seconds=self.estimate_seconds)
        if worker is None:
            load = asyncio.create_task(self._load(version))
            self._loads.add(load)
            load.add_done_callback(self._loads.discard)
            if want.if_loaded:
                raise errors.ModelLoading(retry_after_seconds=self.estimate_seconds)
            loading = lifecycle_pb2.Loading(reason=self.reason)
            if self.estimate_seconds is not None:
                loading.estimate.FromNanoseconds(int(self.estimate_seconds * 1e9))
            await context.write(lifecycle_pb2.AcquireResponse(loading=loading))
            worker = await asyncio.shield(load)
        key = secrets.token_bytes(32)
        await worker.control.allow(key)
        granted = Granted(version, holder, worker, heard.inbox, heard.in_use, heard.waiting, heard.priorities)
        reply = worker.reply
        message = lifecycle_pb2.Loaded(
            endpoint=worker.process.endpoint,
            key=key,
            replica=worker.replica,
            engine_profile=reply.engine_profile,
            max_in_flight_batches=2,
            limits=lifecycle_pb2.EngineLimits(
                max_input_tokens=reply.max_input_tokens,
                embedding_dimensions=reply.embedding_dimensions,
                max_batch_tokens=reply.max_batch_tokens,
                max_batch_entries=reply.max_batch_entries,
            ),
        )
        await context.write(lifecycle_pb2.AcquireResponse(loaded=message))
        async with self.changed:
            self.leases.append(granted)
            self.changed.notify_all()
        worker.process.exited.add_done_callback(lambda _: granted.revoke(crashed=True))

        try:
            while (answer := await granted.inbox.get()) is not None:
                if isinstance(answer, errors.ModelMoraError):
                    raise answer
                await context.write(answer)
        finally:
            granted.closed.set()
            if not worker.control.closed.is_set():
                try:
                    await worker.control.withdraw(key)
                except errors.WorkerUnavailable:
                    pass

    async def _load(self, version: str) -> Loaded:
        async with self._locks.setdefault(version, asyncio.Lock()):
            there = self.loaded.get(version)
            if there is None or not there.alive:
                there = self.loaded[version] = await self._launch(version)
            return there

    async def _launch(self, version: str) -> Loaded:
        self.launches += 1
        replica = f"{self.launches:010}"
        process = await self._launcher.launch(
            LaunchSpec(replica_uid=replica, engine=self.engine, label=version), timeout_seconds=30
        )
        control = await WorkerChannel.connect(process.endpoint, process.control_key)
        task_type = self.task_types.get(version)
        request = worker_pb2.LoadRequest(engine=self.engine, model_version=version, task_type=task_type)
        request.options.update(dict(self._models[version]))
        return Loaded(f"replicas/{replica}", process, control, await control.load(request, timeout_seconds=30))


class Resolver(registry_pb2_grpc.RegistryServiceServicer):
    """Every model there is has one version, `1`."""

    def __init__(self, models: Mapping[str, Mapping[str, object]]) -> None:
        self._models = models
        self.lookups = 0
        self.task_type = common_pb2.TASK_TYPE_TXT2EMBED
        self.task_types: dict[str, common_pb2.TaskType] = {}
        """Of the versions that do something else."""
        self.metadata: dict[str, registry_pb2.ModelMetadata] = {}
        self.fail_with: errors.ModelMoraError | None = None
        self.cache_ttl_seconds = 5.0

    async def ResolveModel(self, request: Any, context: Any) -> registry_pb2.ResolveModelResponse:
        self.lookups += 1
        if self.fail_with is not None:
            raise self.fail_with
        name = version_of(request.reference)
        if name not in self._models:
            raise errors.ModelNotFound(name=request.reference)
        version = registry_pb2.ModelVersion(name=name, task_type=self.task_types.get(name, self.task_type))
        version.artifact.digest = DIGEST
        if name in self.metadata:
            version.metadata.CopyFrom(self.metadata[name])
        response = registry_pb2.ResolveModelResponse(model_version=version)
        response.cache_ttl.FromNanoseconds(int(self.cache_ttl_seconds * 1e9))
        return response


@dataclass
class Rig:
    """What a test has in its hands."""

    host: Host
    lessor: Lessor
    resolver: Resolver
    stub: Any
    channel: PeerChannel

    async def embed(
        self, *texts: str, model: str = "acme/echo", timeout: float = 60.0, within: float = 0.0, **fields: Any
    ) -> Any:
        """The answer; raises the named error. `within` is the request's own timeout: the client's clock never ends it
        before the service says why."""
        request = inference_pb2.EmbedRequest(model=model, texts=texts, **fields)
        if within:
            request.timeout.FromNanoseconds(int(within * 1e9))
        return await self.stub.Embed(request, timeout=timeout)

    async def right(self, *texts: str, **fields: Any) -> Any:
        """The answer, checked: each vector is that of its own text."""
        answer = await self.embed(*texts, **fields)
        assert_right(answer, texts)
        return answer

    async def queue(self) -> inference_pb2.Queue:
        answer = await self.stub.GetQueue(inference_pb2.GetQueueRequest(model="acme/echo"), timeout=30)
        (queue,) = answer.queues
        return queue  # type: ignore[no-any-return]

    async def knows(self, request_id: str) -> bool:
        """Whether the call of this id is not over yet."""
        try:
            await self.stub.ExplainRequest(inference_pb2.ExplainRequestRequest(request_id=request_id), timeout=30)
        except errors.RequestNotFound:
            return False
        return True

    async def until(self, condition: Callable[[inference_pb2.Queue], bool]) -> None:
        """Asks again and again until the queue is like this."""
        async with asyncio.timeout(60):
            while True:
                if condition(await self.queue()):
                    return

    async def waiting(self, count: int) -> None:
        """Returns once so many entries wait."""
        await self.until(lambda queue: sum(level.entries for level in queue.levels) == count)

    async def running(self) -> None:
        """Returns once something is on a worker, which must not be done before somebody has looked: it hangs, is held,
        or has long enough to do."""
        await self.until(lambda queue: queue.in_flight > 0)

    async def unanswered(self, count: int) -> None:
        """Returns once so many entries wait or are on a worker."""
        await self.until(lambda queue: queue.in_flight + sum(level.entries for level in queue.levels) == count)

    async def heard(self, lease: Granted) -> None:
        """Returns once inference has heard what was said to it on this lease: an invitation that comes after it makes
        inference ask, which is refused."""
        asked = len(self.lessor.wants)
        self.lessor.refuse_with.append(errors.ModelLoading())
        lease.invite("replicas/of-nobody")
        await self.until(lambda _: len(self.lessor.wants) > asked)

    async def computed(self, count: int) -> None:
        """Returns once the worker has computed so many entries."""
        async with asyncio.timeout(60):
            while (await self.worker.seen()).entries < count:
                pass

    @property
    def worker(self) -> Loaded:
        return self.lessor.loaded[version_of("acme/echo")]

    def held(self) -> AbstractContextManager[None]:
        """Inside, the worker stands still: what is sent to it stays there, however slow the machine is."""
        return held(self.worker.process.pid)


@contextmanager
def held(*pids: int) -> Iterator[None]:
    """Inside, these processes stand still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # it was killed meanwhile
                os.kill(pid, signal.SIGCONT)


def version_of(reference: str) -> str:
    return f"models/{reference}/versions/1"


def assert_right(answer: inference_pb2.EmbedResponse, texts: tuple[str, ...]) -> None:
    assert len(answer.embeddings) == len(texts)
    for text, embedding in zip(texts, answer.embeddings, strict=True):
        assert max(abs(a - b) for a, b in zip(embedding.values, vector(0, text, 8), strict=True)) < 1e-6, text


@asynccontextmanager
async def rig(
    data_dir: Path,
    models: Mapping[str, Mapping[str, object]] | None = None,
    *,
    database_url: str | None = None,
    **settings: Any,
) -> AsyncIterator[Rig]:
    """`models`: `org/repo` → options of the echo engine; by default `acme/echo`. Jobs need a `database_url`."""
    settings.setdefault("patience_seconds", 60.0)  # a machine that stands still is not a lifecycle that is away
    versions = {version_of(name): options for name, options in (models or {"acme/echo": {}}).items()}
    launcher = LocalLauncher(data_dir / "w", data_dir / "logs")
    lessor, resolver = Lessor(launcher, versions), Resolver(versions)
    lessor.task_types = resolver.task_types

    def service(full_name: str, add: Any, servicer: object, *methods: str) -> Service:
        return Service(full_name, only(add, methods), servicer, dict.fromkeys(methods, SERVICES))

    def context(name: str, *services: Service) -> Context:
        @asynccontextmanager
        async def open_context(_: Section, platform: Platform) -> AsyncIterator[Mounted]:
            yield Mounted(services)

        return Context(name, Section(), open_context)

    host = Host(
        PlatformSettings(data_dir=data_dir, port=0, metrics_port=0, grace_seconds=5, database_url=database_url),
        [
            context(
                "registry",
                service(
                    "modelmora.registry.v1.RegistryService",
                    registry_pb2_grpc.add_RegistryServiceServicer_to_server,
                    resolver,
                    "ResolveModel",
                ),
            ),
            context(
                "lifecycle",
                service(
                    "modelmora.lifecycle.v1.LifecycleLeaseService",
                    lifecycle_pb2_grpc.add_LifecycleLeaseServiceServicer_to_server,
                    lessor,
                    "Acquire",
                ),
                service(
                    "modelmora.lifecycle.v1.LifecycleService",
                    lifecycle_pb2_grpc.add_LifecycleServiceServicer_to_server,
                    lessor,
                    "ListReplicas",
                ),
            ),
            Context(
                "inference",
                inference.Settings(**settings),
                inference.open,
                "used" if database_url is not None else "unused",
            ),
        ],
        announce=lambda line: None,
    )
    channel: PeerChannel | None = None
    patched = pytest.MonkeyPatch()
    patched.setattr(dispatching, "LAST_WORD_SECONDS", 60.0)  # the lessor always says why a worker is gone
    try:
        async with host:
            channel = PeerChannel(grpc.aio.insecure_channel(host.target), (), 60.0)
            yield Rig(host, lessor, resolver, inference_pb2_grpc.InferenceServiceStub(channel), channel)
    finally:
        if channel is not None:  # after the host: what it says last should still be heard
            await channel.close()
        await lessor.close()
        await launcher.close()
        patched.undo()
