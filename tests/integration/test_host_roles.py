"""Every RPC of the whole platform, as reflection lists them, with no token, a wrong one, an expired one and each role.

ALLOWED is the specification and stands apart from the declarations in the contexts: an RPC that is new has no row here
and fails the test until somebody decided who may call it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest_asyncio
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2
from integration.lifecycle_rig import eventually
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc
from modelmora.lifecycle.v1 import lifecycle_pb2, lifecycle_pb2_grpc
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc
from modelmora.status import error_from_rpc
from modelmora_app import host_commands
from modelmora_runtime import auth
from modelmora_runtime.auth import Role
from modelmora_runtime.host import Context, Host

EVERY = {"admin", "operator", "client", "service"}
RUNS_IT = {"admin", "operator", "service"}
INSIDE = {"admin", "service"}

ALLOWED: dict[str, set[str]] = {
    "modelmora.registry.v1.RegistryService/CreateModel": RUNS_IT,
    "modelmora.registry.v1.RegistryService/GetModel": EVERY,
    "modelmora.registry.v1.RegistryService/ListModels": EVERY,
    "modelmora.registry.v1.RegistryService/UpdateModel": RUNS_IT,
    "modelmora.registry.v1.RegistryService/DeleteModel": RUNS_IT,
    "modelmora.registry.v1.RegistryService/CreateModelVersion": RUNS_IT,
    "modelmora.registry.v1.RegistryService/GetModelVersion": EVERY,
    "modelmora.registry.v1.RegistryService/ListModelVersions": EVERY,
    "modelmora.registry.v1.RegistryService/WatchModelVersion": EVERY,
    "modelmora.registry.v1.RegistryService/DeleteModelVersion": RUNS_IT,
    "modelmora.registry.v1.RegistryService/SetAlias": RUNS_IT,
    "modelmora.registry.v1.RegistryService/ImportModel": RUNS_IT,
    "modelmora.registry.v1.RegistryService/ResolveModel": EVERY,
    "modelmora.registry.v1.RegistryService/UpdateModelVersion": RUNS_IT,
    "modelmora.registry.v1.RegistryService/ListAliasChanges": EVERY,
    "modelmora.registry.v1.RegistryService/SelectModelVersion": EVERY,
    "modelmora.registry.v1.RegistryService/GetStorageUse": RUNS_IT,
    "modelmora.registry.v1.RegistryService/ListAuditEntries": {"admin"},
    "modelmora.registry.v1.RegistryService/CancelImport": RUNS_IT,
    "modelmora.registry.v1.RegistryService/SetEngineProfile": RUNS_IT,
    "modelmora.registry.v1.RegistryService/VerifyModelVersion": RUNS_IT,
    "modelmora.registry.v1.RegistryService/CreateModelLock": RUNS_IT,
    "modelmora.registry.v1.RegistryService/GetModelLock": EVERY,
    "modelmora.registry.v1.RegistryService/ListModelLocks": EVERY,
    "modelmora.registry.v1.RegistryService/DeleteModelLock": RUNS_IT,
    "modelmora.registry.v1.RegistryService/RenderModelLock": EVERY,
    "modelmora.registry.v1.RegistryService/VerifyModelLock": RUNS_IT,
    "modelmora.registry.v1.RegistryService/DiffModelLocks": EVERY,
    "modelmora.registry.v1.RegistryService/ApplyModelLock": RUNS_IT,
    "modelmora.registry.v1.RegistryService/CreateExternalLink": RUNS_IT,
    "modelmora.registry.v1.RegistryService/GetExternalLink": EVERY,
    "modelmora.registry.v1.RegistryService/ListExternalLinks": EVERY,
    "modelmora.registry.v1.RegistryService/DeleteExternalLink": RUNS_IT,
    "modelmora.registry.v1.RegistryService/CheckExternalLink": RUNS_IT,
    "modelmora.registry.v1.RegistryService/ExportModelVersion": RUNS_IT,
    "modelmora.registry.v1.RegistryHoldService/AcquireHold": INSIDE,
    "modelmora.registry.v1.RegistryHoldService/ReleaseHold": INSIDE,
    "modelmora.registry.v1.RegistryHoldService/RecordFingerprint": INSIDE,
    "modelmora.registry.v1.RegistryHoldService/RecordAuditEntries": INSIDE,
    "modelmora.lifecycle.v1.LifecycleService/LoadModel": RUNS_IT,
    "modelmora.lifecycle.v1.LifecycleService/UnloadModel": RUNS_IT,
    "modelmora.lifecycle.v1.LifecycleService/GetReplica": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/ListReplicas": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/WatchReplicas": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/GetMemory": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/ExplainPlacement": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/ListEvictionDecisions": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/ExportTrace": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/SimulatePlacement": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/GetResidency": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/UpdateResidency": RUNS_IT,
    "modelmora.lifecycle.v1.LifecycleService/ListResidencies": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/GetNode": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/UpdateNode": RUNS_IT,
    "modelmora.lifecycle.v1.LifecycleService/DrainNode": RUNS_IT,
    "modelmora.lifecycle.v1.LifecycleService/UncordonNode": RUNS_IT,
    "modelmora.lifecycle.v1.LifecycleService/TuneModelVersion": RUNS_IT,
    "modelmora.lifecycle.v1.LifecycleService/GetTuning": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/ListTunings": EVERY,
    "modelmora.lifecycle.v1.LifecycleService/WatchTuning": EVERY,
    "modelmora.lifecycle.v1.LifecycleLeaseService/Acquire": INSIDE,
    "modelmora.inference.v1.InferenceService/Embed": EVERY,
    "modelmora.inference.v1.InferenceService/Rerank": EVERY,
    "modelmora.inference.v1.InferenceService/Classify": EVERY,
    "modelmora.inference.v1.InferenceService/Predict": EVERY,
    "modelmora.inference.v1.InferenceService/StreamEmbed": EVERY,
    "modelmora.inference.v1.InferenceService/AnswerQuestion": EVERY,
    "modelmora.inference.v1.InferenceService/Tokenize": EVERY,
    "modelmora.inference.v1.InferenceService/DescribeModel": EVERY,
    "modelmora.inference.v1.InferenceService/CreateInferenceJob": EVERY,
    "modelmora.inference.v1.InferenceService/GetInferenceJob": EVERY,
    "modelmora.inference.v1.InferenceService/ListInferenceJobs": EVERY,
    "modelmora.inference.v1.InferenceService/CancelInferenceJob": EVERY,
    "modelmora.inference.v1.InferenceService/WatchInferenceJob": EVERY,
    "modelmora.inference.v1.InferenceService/GetInferenceResult": EVERY,
    "modelmora.inference.v1.InferenceService/GetQueue": EVERY,
    "modelmora.inference.v1.InferenceService/ExplainRequest": EVERY,
    "modelmora.inference.v1.InferenceService/SetTenantWeight": RUNS_IT,
    "modelmora.inference.v1.InferenceService/ListTenantWeights": RUNS_IT,
    "modelmora.observability.v1.ObservabilityService/GetHealth": EVERY,
    "modelmora.observability.v1.ObservabilityService/ListDevices": EVERY,
    "modelmora.observability.v1.ObservabilityService/GetSystemInfo": RUNS_IT,
    "modelmora.observability.v1.ObservabilityService/GetStorageInfo": RUNS_IT,
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": EVERY,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": EVERY,
}
OIP = "inference.GRPCInferenceService/"
OIP_OFFERED = {
    **dict.fromkeys(
        ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig"), EVERY
    ),
    **dict.fromkeys(("ModelInfer", "ModelStreamInfer", "ModelStatistics", "RepositoryIndex"), EVERY),
    **dict.fromkeys(("RepositoryModelLoad", "RepositoryModelUnload"), RUNS_IT),
}
ALLOWED |= {OIP + name: roles for name, roles in OIP_OFFERED.items()}
TEI_OFFERED = {
    "Info": ("Info",),
    "Embed": ("Embed", "EmbedStream", "EmbedSparse", "EmbedSparseStream", "EmbedAll", "EmbedAllStream"),
    "Predict": ("Predict", "PredictPair", "PredictStream", "PredictPairStream"),
    "Rerank": ("Rerank", "RerankStream"),
    "Tokenize": ("Tokenize", "TokenizeStream", "Decode", "DecodeStream"),
}
ALLOWED |= {f"tei.v1.{service}/{name}": EVERY for service, names in TEI_OFFERED.items() for name in names}
NOT_OFFERED = {
    OIP + name
    for name in (
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
        "TraceSetting",
        "LogSettings",
    )
}
"""RPCs of foreign protocols that are declared and answered with UNIMPLEMENTED, whoever calls."""
ALLOWED |= dict.fromkeys(NOT_OFFERED, EVERY)
OPEN_TO_ALL = {"grpc.health.v1.Health/Check", "grpc.health.v1.Health/List", "grpc.health.v1.Health/Watch"}
"""For probes of orchestrators, which have no token."""

REFUSED = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


@pytest_asyncio.fixture
async def target(data_dir: Path, database_url: str) -> AsyncIterator[str]:
    """The whole platform with real contexts, closed by tokens."""
    auth.create_token(data_dir / "tokens.json", role="admin", subject="first")
    flags = {"data_dir": str(data_dir), "port": 0, "metrics_port": 0, "database_url": database_url}
    loaded = host_commands.load_settings(host_commands.NAMES, flags, None, environ={"HOME": str(data_dir)})
    contexts = []
    for name in host_commands.NAMES:
        entry = host_commands.ENTRIES[name]()
        contexts.append(Context(name, loaded[name], entry.open, entry.database))
    engines = host_commands.engine_cards()
    async with Host(loaded.platform, contexts, engines=engines, announce=lambda line: None) as host:
        yield host.target


async def reflected(channel: grpc.aio.Channel, token: str) -> dict[str, Any]:
    """Every method of the server by `service/method`, from reflection alone."""
    ask: Any = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(metadata=bearer(token))

    async def answer(**request: str) -> Any:
        await ask.write(reflection_pb2.ServerReflectionRequest(**request))
        return await ask.read()

    services = [found.name for found in (await answer(list_services="")).list_services_response.service]
    pool = descriptor_pool.DescriptorPool()
    for service in services:
        described = (await answer(file_containing_symbol=service)).file_descriptor_response.file_descriptor_proto
        files = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in described]
        waiting = {file.name: file for file in files}
        while waiting:  # a file may come before what it imports
            for name in [name for name, file in waiting.items() if not waiting.keys() & set(file.dependency)]:
                pool.AddSerializedFile(waiting.pop(name).SerializeToString())
    await ask.done_writing()
    return {
        f"{service}/{method.name}": method for service in services for method in pool.FindServiceByName(service).methods
    }


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token is not None else ()


async def status(
    channel: grpc.aio.Channel, path: str, method: Any, token: str | None, *, let_in: bool
) -> tuple[grpc.StatusCode, str]:
    """How a call with an empty request is answered. OK for a stream that is open and says nothing for a while.

    `let_in`: what is expected. A refusal comes for certain, and before anything is said: gRPC calls a message that
    meets the end of its call an internal error (its issue 36066). From who is let in, silence tells enough."""
    quiet_seconds = 0.5 if let_in else 60.0
    kind = ("stream" if method.client_streaming else "unary") + ("_stream" if method.server_streaming else "_unary")
    call = getattr(channel, kind)(f"/{path}")
    metadata = bearer(token)
    try:
        if kind == "unary_unary":
            await call(b"", metadata=metadata, timeout=60)
            return grpc.StatusCode.OK, ""
        if kind == "stream_unary":
            stream = call(metadata=metadata, timeout=60)
            await stream.done_writing()
            await stream
            return grpc.StatusCode.OK, ""
        stream = call(b"", metadata=metadata) if kind == "unary_stream" else call(metadata=metadata)
        if kind == "stream_stream" and let_in:
            await stream.write(b"")
        try:
            await asyncio.wait_for(stream.read(), quiet_seconds)
            return grpc.StatusCode.OK, ""
        except TimeoutError:
            return grpc.StatusCode.OK, ""
        finally:
            stream.cancel()
    except grpc.aio.AioRpcError as error:
        return error.code(), error_from_rpc(error).reason


async def test_every_rpc_lets_in_whom_it_should_and_nobody_else(target: str, data_dir: Path) -> None:
    path = data_dir / "tokens.json"
    tokens = {role.value: auth.create_token(path, role=role) for role in Role}
    ago = datetime.now(UTC) - timedelta(hours=2)
    expired = auth.create_token(path, role="admin", expires=timedelta(hours=1), now=ago)
    wrong = tokens["admin"][:-1] + ("A" if tokens["admin"][-1] != "A" else "B")
    async with grpc.aio.insecure_channel(target) as channel:
        methods = await reflected(channel, tokens["client"])
        assert methods.keys() == ALLOWED.keys() | OPEN_TO_ALL
        asked = 0
        for name, method in methods.items():
            for token, reason in ((None, "TokenMissing"), (wrong, "TokenInvalid"), (expired, "TokenExpired")):
                code, seen = await status(channel, name, method, token, let_in=name in OPEN_TO_ALL)
                asked += 1
                if name in OPEN_TO_ALL:
                    assert code not in REFUSED, (name, reason, seen)
                else:
                    assert (code, seen) == (grpc.StatusCode.UNAUTHENTICATED, reason), name
            for role, token in tokens.items():
                allowed = name in OPEN_TO_ALL or role in ALLOWED[name]
                code, seen = await status(channel, name, method, token, let_in=allowed)
                asked += 1
                if name in NOT_OFFERED:
                    assert code is grpc.StatusCode.UNIMPLEMENTED, (name, role, code, seen)
                elif allowed:
                    assert code not in REFUSED, (name, role, code, seen)
                else:
                    assert (code, seen) == (grpc.StatusCode.PERMISSION_DENIED, "PermissionDenied"), (name, role)
        assert asked == len(methods) * 7 >= 200


async def test_admin_rpcs_of_all_contexts_are_in_one_record(target: str, data_dir: Path) -> None:
    path = data_dir / "tokens.json"
    admin = bearer(auth.create_token(path, role="admin", subject="root"))
    ann = bearer(auth.create_token(path, role="operator", subject="ann"))
    bob = bearer(auth.create_token(path, role="client", subject="bob"))
    version = "models/acme/none/versions/1"
    async with grpc.aio.insecure_channel(target) as channel:
        lifecycle: Any = lifecycle_pb2_grpc.LifecycleServiceStub(channel)  # type: ignore[no-untyped-call]
        inference: Any = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        registry: Any = registry_pb2_grpc.RegistryServiceStub(channel)  # type: ignore[no-untyped-call]
        unload = lifecycle_pb2.UnloadModelRequest(model=version)
        told = []
        for method, call, request, who in (
            ("lifecycle.v1.LifecycleService/UncordonNode", lifecycle.UncordonNode, {}, ann),
            ("lifecycle.v1.LifecycleService/UnloadModel", lifecycle.UnloadModel, unload, ann),
            ("lifecycle.v1.LifecycleService/UnloadModel", lifecycle.UnloadModel, unload, bob),
            ("", lifecycle.ListReplicas, lifecycle_pb2.ListReplicasRequest(), ann),
            (
                "inference.v1.InferenceService/SetTenantWeight",
                inference.SetTenantWeight,
                inference_pb2.SetTenantWeightRequest(tenant="acme", weight=2),
                ann,
            ),
        ):
            try:
                await call(request or lifecycle_pb2.UncordonNodeRequest(), metadata=who, timeout=30)
                code = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as error:
                code = error.code()
            if method:
                told.append((method, "ann" if who == ann else "bob", code.name))
        # An answer waits for the record, but not for long.
        ask = registry_pb2.ListAuditEntriesRequest(filter='subject = "ann" OR subject = "bob"')
        listed = await eventually(
            lambda: registry.ListAuditEntries(ask, metadata=admin, timeout=30),
            lambda answer: len(answer.entries) >= len(told),
        )
        found = listed.entries
        assert sorted((e.method.removeprefix("modelmora."), e.subject, e.status) for e in found) == sorted(told)
        assert [code for _, who, code in told if who == "bob"] == ["PERMISSION_DENIED"]
        assert {e.resource for e in found} >= {version, "acme"}
