"""A platform of tiny contexts that speak real protos, in this process or (as a script) in one of its own.

`tiny` serves lifecycle's public service with behaviours named by the replica's name; `front` serves inference's and
calls `tiny` over peers, as inference calls lifecycle.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelmora import errors
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora.lifecycle.v1 import lifecycle_pb2_grpc
from modelmora_runtime import auth, telemetry
from modelmora_runtime.auth import ADMINS, OPERATORS, READERS, SERVICES
from modelmora_runtime.host import Context, Host, Mounted, Platform, Service
from modelmora_runtime.interceptors import deadline_seconds
from modelmora_runtime.process import run
from modelmora_runtime.settings import PlatformSettings, Section, load

LIFECYCLE = "modelmora.lifecycle.v1.LifecycleService"
LEASES = "modelmora.lifecycle.v1.LifecycleLeaseService"
INFERENCE = "modelmora.inference.v1.InferenceService"

ACCESS = {
    "LoadModel": OPERATORS,
    "UnloadModel": ADMINS,
    "GetReplica": READERS,
    "ListReplicas": READERS,
    "WatchReplicas": READERS,
    "GetMemory": READERS,
}


class Settings(Section):
    """None."""


def only(add: Any, methods: Iterable[str]) -> Any:
    """A generated add function, cut down to the methods that the test's servicer has."""

    class Chosen:
        def __init__(self, server: Any) -> None:
            self._server = server

        def add_generic_rpc_handlers(self, handlers: object) -> None: ...

        def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
            self._server.add_registered_method_handlers(service, {name: handlers[name] for name in methods})

    return lambda servicer, server: add(servicer, Chosen(server))


@dataclass
class Tiny(lifecycle_pb2_grpc.LifecycleServiceServicer):
    """What the servicers do and saw. `story` has the steps in order."""

    story: list[str] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    platform: Platform | None = None
    fail_open: bool = False
    behaviours: dict[str, Callable[[Any, Any], Any]] = field(default_factory=dict)

    async def GetReplica(self, request: pb.GetReplicaRequest, context: Any) -> pb.GetReplicaResponse:
        what, _, argument = request.name.partition(":")
        replica = pb.Replica(name=request.name)
        if what in self.behaviours:
            replica.reason = str(await self.behaviours[what](request, context))
        elif what == "raise":
            raise errors.ReplicaNotFound(f"no {argument}", retry_after_seconds=2, name=argument)
        elif what == "crash":
            raise ZeroDivisionError(f"secret {argument}")
        elif what == "stray":
            raise asyncio.CancelledError
        elif what == "caller":
            caller = auth.current_caller()
            roles = ",".join(sorted(role.value for role in caller.roles))
            replica.reason = f"{caller.subject} {caller.tenant} {roles} {caller.internal}"
        elif what == "deadline":
            replica.reason = str(deadline_seconds(context))
        elif what == "trace":
            replica.reason = telemetry.traceparent() or ""
        elif what == "large":
            replica.reason = "x" * int(argument)
        elif what == "work":
            self.entered.set()
            await asyncio.sleep(float(argument))
        elif what == "entered":  # answers once a call that works is inside
            await self.entered.wait()
        elif what == "wait":
            self.entered.set()
            await self.go_on.wait()
            self.story.append("call answered")
        return pb.GetReplicaResponse(replica=replica)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> pb.LoadModelResponse:
        return pb.LoadModelResponse()

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Any) -> pb.UnloadModelResponse:
        return pb.UnloadModelResponse()

    async def ListReplicas(self, request: pb.ListReplicasRequest, context: Any) -> pb.ListReplicasResponse:
        return pb.ListReplicasResponse()

    async def GetMemory(self, request: pb.GetMemoryRequest, context: Any) -> pb.GetMemoryResponse:
        return pb.GetMemoryResponse()

    async def WatchReplicas(
        self, request: pb.WatchReplicasRequest, context: Any
    ) -> AsyncIterator[pb.WatchReplicasResponse]:
        """Ends with ShuttingDown when told; with a cursor `deaf` it does not listen."""
        assert self.platform is not None
        yield pb.WatchReplicasResponse()
        if request.cursor == "deaf":
            await asyncio.Event().wait()
        if request.cursor == "fail":
            raise errors.OutOfRange("the cursor is forgotten")
        await self.platform.stopping.wait()
        self.story.append("watch told")
        raise errors.ShuttingDown(cursor="7")

    async def Acquire(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield pb.AcquireResponse()
        if context is None:
            raise errors.NeverFits

    @asynccontextmanager
    async def open(self, settings: Settings, platform: Platform) -> AsyncIterator[Mounted]:
        self.platform = platform
        self.story.append("tiny opened")
        if self.fail_open:
            raise errors.DatabaseUnavailable("it is away")
        services = [
            Service(LIFECYCLE, only(lifecycle_pb2_grpc.add_LifecycleServiceServicer_to_server, ACCESS), self, ACCESS),
            Service(
                LEASES, lifecycle_pb2_grpc.add_LifecycleLeaseServiceServicer_to_server, self, {"Acquire": SERVICES}
            ),
        ]
        try:
            yield Mounted(services)
        finally:
            self.story.append("tiny left")


@dataclass
class Front(inference_pb2_grpc.InferenceServiceServicer):
    """Calls tiny for each of its own calls; when it leaves it still may."""

    tiny: Tiny
    platform: Platform | None = None

    @property
    def lifecycle(self) -> Any:
        assert self.platform is not None
        return lifecycle_pb2_grpc.LifecycleServiceStub(self.platform.peers.channel("tiny"))

    async def Embed(self, request: inference_pb2.EmbedRequest, context: Any) -> inference_pb2.EmbedResponse:
        answer = await self.lifecycle.GetReplica(pb.GetReplicaRequest(name=request.model))
        return inference_pb2.EmbedResponse(model_version=answer.replica.reason)

    async def GetQueue(self, request: inference_pb2.GetQueueRequest, context: Any) -> inference_pb2.GetQueueResponse:
        return inference_pb2.GetQueueResponse()

    @asynccontextmanager
    async def open(self, settings: Settings, platform: Platform) -> AsyncIterator[Mounted]:
        self.platform = platform
        self.tiny.story.append("front opened")
        try:
            yield Mounted(
                [
                    Service(
                        INFERENCE,
                        only(inference_pb2_grpc.add_InferenceServiceServicer_to_server, ("Embed", "GetQueue")),
                        self,
                        {"Embed": READERS, "GetQueue": READERS},
                    )
                ]
            )
        finally:
            answer = await self.lifecycle.GetReplica(pb.GetReplicaRequest(name="caller"))
            self.tiny.story.append(f"front left, still {answer.replica.reason}")


def platform_settings(data_dir: Path, **given: Any) -> PlatformSettings:
    flags = {"data_dir": str(data_dir), "port": 0, "metrics_port": 0, "grace_seconds": 10, **given}
    return load({}, environ={"HOME": str(data_dir)}, flags=flags).platform


def contexts(tiny: Tiny, **given: Any) -> list[Context]:
    return [
        Context("tiny", Settings(), tiny.open, **given),
        Context("front", Settings(), Front(tiny).open),
    ]


def tiny_host(data_dir: Path, tiny: Tiny, **given: Any) -> Host:
    return Host(platform_settings(data_dir, **given), contexts(tiny), announce=lambda line: None)


if __name__ == "__main__":
    folder, port, *database = sys.argv[1:]
    settings = platform_settings(Path(folder), port=int(port))
    sys.exit(
        run(
            settings,
            contexts(Tiny(), **({"database": database[0]} if database else {})),
            announce=lambda line: print(line, flush=True),
            complain=lambda line: print(line, file=sys.stderr, flush=True),
        )
    )
