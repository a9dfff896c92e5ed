"""`inference.GRPCInferenceService`: the Open Inference Protocol with Triton's extensions, on the native calls.

Every inference is a Predict call of this process, so its queue, batches, quotas, deadlines and counts are those of all
others. What lies with the registry and lifecycle goes through their public RPCs, after the caller's role was looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import modelmora
from modelmora import errors
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.lifecycle.v1 import lifecycle_pb2, lifecycle_pb2_grpc
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc
from modelmora_runtime.auth import OPERATORS, READERS
from modelmora_runtime.interceptors import deadline_seconds, metadata_value
from modelmora_runtime.peers import Peers

from modelmora_inference.domain import MAX_TEXTS
from modelmora_inference.metrics import Counts, VersionCounts
from modelmora_inference.protocols import oip_pb2 as foreign
from modelmora_inference.protocols import oip_pb2_grpc
from modelmora_inference.protocols.common import by_first_part, fields_named, in_order
from modelmora_inference.protocols.oip import (
    FINAL,
    config,
    infer_response,
    metadata,
    path_in,
    predict_request,
    reference,
    version_of,
)
from modelmora_inference.readiness import Readiness
from modelmora_inference.stream_service import StreamRules

FULL_NAME = "inference.GRPCInferenceService"
ACCESS = {
    **dict.fromkeys(
        (method.name for method in foreign.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods), READERS
    ),
    "RepositoryModelLoad": OPERATORS,
    "RepositoryModelUnload": OPERATORS,
}
EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "parameters",
    "statistics",
)
"""As Triton calls them. Not here, hence not in the list: shared memory, settings of traces and logs, and the forms of
them that HTTP has."""
MAX_INDEX = 10_000
"""Versions that RepositoryIndex tells of, the newest."""
PAGE = 1000
UNLOAD_PARAMETERS = frozenset({"unload_dependents"})
_NAME = by_first_part({"model": "name", "reference": "name"})
_REPOSITORY_NAME = by_first_part({"model": "model_name", "reference": "model_name"})


class OipService(oip_pb2_grpc.GRPCInferenceServiceServicer):
    """Translates. What it inherits (shared memory, settings of traces and logs) is not offered."""

    def __init__(
        self,
        native: Any,
        *,
        counts: Counts,
        peers: Peers,
        readiness: Readiness,
        serves: Callable[[], bool],
        stopping: asyncio.Event,
        rules: StreamRules,
    ) -> None:
        """`native` is the servicer of InferenceService; `serves`: whether inference as a whole does."""
        self._native = native
        self._counts = counts
        self._peers = peers
        self._readiness = readiness
        self._serves = serves
        self._stopping = stopping
        self._rules = rules

    async def ServerLive(self, request: foreign.ServerLiveRequest, context: Any) -> foreign.ServerLiveResponse:
        return foreign.ServerLiveResponse(live=True)

    async def ServerReady(self, request: foreign.ServerReadyRequest, context: Any) -> foreign.ServerReadyResponse:
        return foreign.ServerReadyResponse(ready=self._serves())

    async def ServerMetadata(
        self, request: foreign.ServerMetadataRequest, context: Any
    ) -> foreign.ServerMetadataResponse:
        return foreign.ServerMetadataResponse(name="modelmora", version=modelmora.__version__, extensions=EXTENSIONS)

    async def ModelReady(self, request: foreign.ModelReadyRequest, context: Any) -> foreign.ModelReadyResponse:
        """Whether a call would be answered, in memory or not; false for what is not registered."""
        asked = reference(request.name, request.version)
        try:
            with fields_named(_NAME):
                ready = await self._readiness.of(asked)
        except (errors.NotFound, errors.FailedPrecondition, errors.Unavailable, errors.DeadlineExceeded):
            ready = False
        return foreign.ModelReadyResponse(ready=ready)

    async def ModelMetadata(self, request: foreign.ModelMetadataRequest, context: Any) -> foreign.ModelMetadataResponse:
        return metadata(request.name, await self._described(request, context))

    async def ModelConfig(self, request: foreign.ModelConfigRequest, context: Any) -> foreign.ModelConfigResponse:
        return foreign.ModelConfigResponse(config=config(request.name, await self._described(request, context)))

    async def ModelInfer(self, request: foreign.ModelInferRequest, context: Any) -> foreign.ModelInferResponse:
        asked = predict_request(request, context)
        with fields_named(path_in(request)):
            answer = await self._native.Predict(asked, context)
        return infer_response(request, answer)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[foreign.ModelInferRequest], context: Any
    ) -> AsyncIterator[foreign.ModelStreamInferResponse]:
        """Each request as ModelInfer, many at a time, answered in the order of the requests. What is wrong with one is
        answered in its place, or ends the stream where the client asked for that (`triton_grpc_error`)."""
        ends_at_errors = metadata_value(context, "triton_grpc_error").lower() == "true"

        async def answer(request: foreign.ModelInferRequest) -> foreign.ModelStreamInferResponse:
            response = foreign.ModelStreamInferResponse()
            try:
                response.infer_response.CopyFrom(await self.ModelInfer(request, context))
                if (size := response.ByteSize()) > self._rules.max_message_bytes:
                    limit = self._rules.max_message_bytes
                    raise errors.MessageTooLarge(f"the answer has {size} bytes; the limit is {limit}")
            except errors.ModelMoraError as error:
                if ends_at_errors:
                    raise
                response.Clear()
                response.error_message = f"{error.reason}: {error.message}"
                told = response.infer_response
                told.model_name, told.model_version, told.id = request.model_name, request.model_version, request.id
            response.infer_response.parameters[FINAL].bool_param = True
            return response

        async for response in in_order(
            requests, answer, stopping=self._stopping, context=context, rules=self._rules, inputs_of=_inputs_of
        ):
            yield response

    async def ModelStatistics(
        self, request: foreign.ModelStatisticsRequest, context: Any
    ) -> foreign.ModelStatisticsResponse:
        """Since this process started, whatever protocol was spoken. Without a name all versions that were called."""
        if request.name:
            described = await self._described(request, context)
            found = {described.model_version: self._counts.versions.get(described.model_version, VersionCounts())}
        else:
            if request.version:
                raise errors.InvalidArgument.at("version", "of which model?")
            found = dict(self._counts.versions)
        return foreign.ModelStatisticsResponse(
            model_stats=[_statistics(version, counts) for version, counts in found.items()]
        )

    async def RepositoryIndex(
        self, request: foreign.RepositoryIndexRequest, context: Any
    ) -> foreign.RepositoryIndexResponse:
        """READY is what would be answered: in memory, or loaded on demand. There is one repository, the registry."""
        registry = registry_pb2_grpc.RegistryServiceStub(self._peers.channel("registry"))  # type: ignore[no-untyped-call]
        in_memory = await self._in_memory(context)
        response, token = foreign.RepositoryIndexResponse(), ""
        while len(response.models) < MAX_INDEX:
            asked = registry_pb2.ListModelVersionsRequest(parent="models/-", page_size=PAGE, page_token=token)
            page = await registry.ListModelVersions(asked, timeout=deadline_seconds(context))
            for version in page.model_versions:
                state, reason = _state(version, in_memory.get(version.name))
                if state == "READY" or not request.ready:
                    name = version.name.removeprefix("models/").partition("/versions/")[0]
                    response.models.add(name=name, version=version.version, state=state, reason=reason)
            token = page.next_page_token
            if not token:
                break
        return response

    async def RepositoryModelLoad(
        self, request: foreign.RepositoryModelLoadRequest, context: Any
    ) -> foreign.RepositoryModelLoadResponse:
        """Waits until it is in memory. Like all that is there it goes again when nobody uses it and room is needed."""
        for name in request.parameters:
            raise errors.InvalidArgument.at(f"parameters.{name[:100]}", "a version is loaded as it is registered")
        asked = lifecycle_pb2.LoadModelRequest(model=_repository_name(request), wait=True)
        with fields_named(_REPOSITORY_NAME):
            await self._lifecycle().LoadModel(asked, timeout=deadline_seconds(context))
        return foreign.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: foreign.RepositoryModelUnloadRequest, context: Any
    ) -> foreign.RepositoryModelUnloadResponse:
        """Waits until its memory is back; what is not in memory is left so. A later call loads it again."""
        for name in request.parameters:
            if name not in UNLOAD_PARAMETERS:
                raise errors.InvalidArgument.at(f"parameters.{name[:100]}", "there is no such parameter")
        asked = lifecycle_pb2.UnloadModelRequest(model=_repository_name(request), wait=True)
        with fields_named(_REPOSITORY_NAME):
            try:
                await self._lifecycle().UnloadModel(asked, timeout=deadline_seconds(context))
            except errors.ReplicaNotFound:
                pass
        return foreign.RepositoryModelUnloadResponse()

    def _lifecycle(self) -> Any:
        return lifecycle_pb2_grpc.LifecycleServiceStub(self._peers.channel("lifecycle"))  # type: ignore[no-untyped-call]

    async def _described(self, request: Any, context: Any) -> pb.DescribeModelResponse:
        asked = pb.DescribeModelRequest(model=reference(request.name, request.version))
        with fields_named(_NAME):
            found: pb.DescribeModelResponse = await self._native.DescribeModel(asked, context)
        return found

    async def _in_memory(self, context: Any) -> dict[str, lifecycle_pb2.Replica]:
        """One replica of each version that has some, a loaded one if there is one; none while lifecycle is away."""
        found: dict[str, lifecycle_pb2.Replica] = {}
        token = ""
        try:
            while True:
                asked = lifecycle_pb2.ListReplicasRequest(page_size=PAGE, page_token=token)
                page = await self._lifecycle().ListReplicas(asked, timeout=deadline_seconds(context))
                for replica in page.replicas:
                    if replica.state == lifecycle_pb2.REPLICA_STATE_LOADED or replica.model_version not in found:
                        found[replica.model_version] = replica
                token = page.next_page_token
                if not token:
                    return found
        except (errors.Unavailable, errors.FailedPrecondition):
            return found


def _inputs_of(request: foreign.ModelInferRequest) -> int:
    """Texts, as the shape tells; it may tell anything, and is looked at later."""
    told = max((tensor.shape[0] for tensor in request.inputs if tensor.shape), default=1)
    return min(max(1, told), MAX_TEXTS)


def _repository_name(request: Any) -> str:
    # KServe's own messages have the model's name where Triton's have the repository's.
    name: str = request.model_name or request.repository_name
    return reference(name, "", ("model_name", "model_name"))


def _state(version: registry_pb2.ModelVersion, replica: lifecycle_pb2.Replica | None) -> tuple[str, str]:
    if version.state == registry_pb2.MODEL_VERSION_STATE_CREATING:
        return "LOADING", "it is being imported"
    if version.state != registry_pb2.MODEL_VERSION_STATE_READY:
        return "UNAVAILABLE", version.failure.message or "its import failed"
    if replica is None or replica.state == lifecycle_pb2.REPLICA_STATE_UNLOADED:
        return "READY", "not in memory: the first call loads it"
    if replica.state == lifecycle_pb2.REPLICA_STATE_FAILED:
        return "UNAVAILABLE", replica.reason
    return "READY", lifecycle_pb2.ReplicaState.Name(replica.state).removeprefix("REPLICA_STATE_").lower()


def _statistics(version: str, counts: VersionCounts) -> foreign.ModelStatistics:
    told = foreign.ModelStatistics(
        name=version.removeprefix("models/").partition("/versions/")[0],
        version=version_of(version),
        last_inference=int(counts.last_time * 1000),
        inference_count=counts.entries,
        execution_count=int(sum(batches for batches, _ in counts.batches.values())),
    )
    computed = counts.succeeded - counts.cache_hits
    for duration, count, seconds in (
        (told.inference_stats.success, counts.succeeded, counts.succeeded_seconds),
        (told.inference_stats.fail, counts.failed, counts.failed_seconds),
        (told.inference_stats.queue, counts.succeeded, counts.queue_seconds),
        (told.inference_stats.compute_input, computed, counts.tokenise_seconds),
        (told.inference_stats.compute_infer, computed, counts.compute_seconds),
        (told.inference_stats.cache_hit, counts.cache_hits, counts.cache_hit_seconds),
        (told.inference_stats.cache_miss, counts.cache_misses, counts.cache_miss_seconds),
    ):
        duration.count, duration.ns = count, int(seconds * 1e9)
    for size, (batches, seconds) in sorted(counts.batches.items()):
        if not batches:
            continue  # of these some rows were computed, and no batch to its end
        batch = told.batch_stats.add(batch_size=size)
        batch.compute_infer.count, batch.compute_infer.ns = int(batches), int(seconds * 1e9)
    return told
