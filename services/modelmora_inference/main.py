"""Inference, wired: settings, and what `open` puts together."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from functools import cache, partial
from typing import Any

from modelmora.common.v1 import common_pb2
from modelmora.errors import DatabaseUnavailable, ModelMoraError, VersionNotFound
from modelmora.inference.v1 import inference_pb2_grpc
from modelmora.lifecycle.v1 import lifecycle_pb2, lifecycle_pb2_grpc
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc
from modelmora_runtime.audit import Audit, to_registry
from modelmora_runtime.auth import OPERATORS, READERS
from modelmora_runtime.db import Database
from modelmora_runtime.health import tell_if_broken
from modelmora_runtime.host import Mounted, Platform, Service
from modelmora_runtime.settings import Section
from pydantic import ByteSize, Field, model_validator

from modelmora_inference.cache import ResponseCache
from modelmora_inference.catalog import Catalog
from modelmora_inference.dispatcher import Dispatchers, Rules
from modelmora_inference.domain import MAX_TEXTS, Aging, BatchLimits, Bounds, Priority, VersionFacts
from modelmora_inference.job_runner import JobRunner, RunnerRules
from modelmora_inference.job_service import JobNews
from modelmora_inference.metrics import Collector
from modelmora_inference.protocols import oip_pb2_grpc, oip_service, tei_service
from modelmora_inference.readiness import ASK_SECONDS, Readiness
from modelmora_inference.service import MAX_WEIGHT, MIN_WEIGHT, InferenceService
from modelmora_inference.store import JobStore, Limits
from modelmora_inference.stream_service import StreamRules
from modelmora_inference.weight_store import TenantWeights, WeightStore

NAME = "inference"
LOOKUP_SECONDS = 5.0
"""So long the registry may take to say which version a reference means."""
MIGRATE_RETRY_SECONDS = 1.0
MIB = 1024 * 1024


class Settings(Section):
    """Section `inference`."""

    max_queue_entries: int = Field(
        16_384, ge=MAX_TEXTS, description="Texts that one model version's queue holds, waiting and running."
    )
    max_queue_tokens: int = Field(16_000_000, ge=1, description="The same in tokens, as estimated.")
    max_queue_bytes: ByteSize = Field(ByteSize(256 * MIB), ge=1, description="The same in bytes of text.")
    max_total_bytes: ByteSize = Field(
        ByteSize(1024 * MIB), ge=1, description="Bytes of text that all queues of the process hold together."
    )
    max_call_bytes: ByteSize = Field(ByteSize(32 * MIB), ge=1024, description="Bytes of text in one call.")
    aging_medium_seconds: float = Field(
        30, ge=0, le=600, description="A MEDIUM request is overtaken only by those that arrive so long after it."
    )
    aging_low_seconds: float = Field(90, ge=0, le=600, description="The same for LOW.")
    fairness_seconds: float = Field(
        60,
        ge=0,
        le=600,
        description="A request lets other tenants' later ones pass for so long, to keep shares.",
    )
    tenant_weights: dict[str, float] = Field(
        {}, description="Shares of tenants that wait at the same time, by tenant; 1 for those not named."
    )
    max_batch_entries: int = Field(256, ge=1, le=65_536, description="Texts in a batch, at most what the engine takes.")
    max_batch_tokens: int = Field(8192, ge=1, description="Tokens in a batch, at most what the engine takes.")
    max_batches: int = Field(2, ge=1, le=16, description="Batches on a worker at a time, at most what the lease says.")
    split_tokens: int = Field(256, ge=1, description="Less work than this is not split into two batches.")
    idle_keep_seconds: float = Field(30, gt=0, le=3600, description="How long a lease without requests is kept.")
    asks_again_seconds: float = Field(
        3,
        gt=0,
        le=3600,
        description="How long a call that ran out of time before the load of its model began keeps its turn.",
    )
    load_attempts: int = Field(3, ge=1, le=100, description="Failed loads in a row until those who wait hear of it.")
    patience_seconds: float = Field(
        10, ge=0, le=600, description="How long lifecycle may be away until those who wait hear of it."
    )
    cache_bytes: ByteSize = Field(
        ByteSize(0), ge=0, description="Answers kept and given again to the same input of the same tenant; 0: none."
    )
    stream_calls: int = Field(64, ge=1, le=4096, description="Calls that one stream has open at once.")
    stream_idle_seconds: float = Field(
        300, gt=0, le=86_400, description="A stream whose client neither sends nor reads for so long is ended."
    )
    max_jobs: int = Field(4, ge=1, le=1000, description="Inference jobs that this process works on at a time.")
    jobs_per_tenant: int = Field(1000, ge=1, description="Inference jobs of one tenant that have not ended.")
    job_bytes: ByteSize = Field(
        ByteSize(4096 * MIB), ge=MIB, description="Inputs and results that all inference jobs together keep."
    )
    job_claim_seconds: float = Field(
        15, ge=1, le=3600, description="So long after its process was killed a job is taken up again."
    )
    tei_model: str = Field(
        "", description="Model of `tei.v1` calls whose metadata names none; empty: they are refused."
    )
    job_keep_days: float = Field(7, ge=0, le=3660, description="A job is kept so long after its results have expired.")

    @model_validator(mode="after")
    def _one_call_fits(self) -> Settings:
        if min(self.max_queue_bytes, self.max_total_bytes) < self.max_call_bytes:
            raise ValueError(
                "max_queue_bytes and max_total_bytes must be at least max_call_bytes: empty, they take a call"
            )
        if self.max_queue_tokens < self.max_call_bytes // 4 + 2 * MAX_TEXTS:
            raise ValueError("max_queue_tokens must be at least max_call_bytes / 4 + 4096")
        if self.aging_low_seconds < self.aging_medium_seconds:
            raise ValueError("aging_low_seconds must be at least aging_medium_seconds")
        for tenant, weight in self.tenant_weights.items():
            if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
                raise ValueError(f"tenant_weights: {tenant} must have {MIN_WEIGHT:g} to {MAX_WEIGHT:g}")
        return self

    def rules(self) -> Rules:
        return Rules(
            bounds=Bounds(self.max_queue_entries, self.max_queue_tokens, int(self.max_queue_bytes)),
            max_total_bytes=int(self.max_total_bytes),
            weights=self.tenant_weights,
            aging=Aging(self.aging_medium_seconds, self.aging_low_seconds, self.fairness_seconds),
            batches=BatchLimits(self.max_batch_entries, self.max_batch_tokens, self.max_batches, self.split_tokens),
            idle_keep_seconds=self.idle_keep_seconds,
            asks_again_seconds=self.asks_again_seconds,
            load_attempts=self.load_attempts,
            patience_seconds=self.patience_seconds,
        )


@asynccontextmanager
async def open(settings: Settings, platform: Platform) -> AsyncIterator[Mounted]:
    """The inference context; only jobs need the database. It waits for nobody to come up."""
    peers = platform.peers

    # A stub makes a callable for each RPC of its service: made once, and not before its context is asked for.
    @cache
    def registry() -> Any:
        return registry_pb2_grpc.RegistryServiceStub(peers.channel("registry"))  # type: ignore[no-untyped-call]

    @cache
    def lifecycle() -> Any:
        return lifecycle_pb2_grpc.LifecycleServiceStub(peers.channel("lifecycle"))  # type: ignore[no-untyped-call]

    @cache
    def leases() -> Any:
        return lifecycle_pb2_grpc.LifecycleLeaseServiceStub(peers.channel("lifecycle"))  # type: ignore[no-untyped-call]

    def acquire() -> Any:
        return leases().Acquire()

    async def look_up(reference: str) -> tuple[VersionFacts, float]:
        request = registry_pb2.ResolveModelRequest(reference=reference)
        answer = await registry().ResolveModel(request, timeout=LOOKUP_SECONDS)
        return facts_of(answer), answer.cache_ttl.ToNanoseconds() / 1e9

    catalog = Catalog(look_up)

    async def is_loaded(version: str) -> bool:
        request = lifecycle_pb2.ListReplicasRequest(
            page_size=1, filter=f'state = "loaded" AND model_version = "{version}"'
        )
        try:
            return bool((await lifecycle().ListReplicas(request, timeout=LOOKUP_SECONDS)).replicas)
        except ModelMoraError:
            return False

    async def would_serve(version: str) -> bool:
        request = lifecycle_pb2.ExplainPlacementRequest(model=version)
        placement = (await lifecycle().ExplainPlacement(request, timeout=ASK_SECONDS)).placement
        refused = (lifecycle_pb2.PLACEMENT_OUTCOME_NEVER_FITS, lifecycle_pb2.PLACEMENT_OUTCOME_REFUSED)
        return placement.outcome not in refused

    dispatchers = Dispatchers(acquire, settings.rules())
    readiness = Readiness(catalog, dispatchers, would_serve)
    news = JobNews()
    database = Database(platform.database_url, NAME) if platform.database_url else None
    limits = Limits(settings.jobs_per_tenant, int(settings.job_bytes), timedelta(days=settings.job_keep_days))
    store = JobStore(database, limits, settings.rules().aging) if database else None
    kept = WeightStore(database, store) if database is not None and store is not None else None
    weights = TenantWeights(settings.tenant_weights, dispatchers.weights, kept)
    stream_rules = StreamRules(
        calls=settings.stream_calls,
        idle_seconds=settings.stream_idle_seconds,
        call_seconds=platform.settings.default_deadline_seconds,
        max_message_bytes=int(platform.settings.max_message_bytes),
    )
    servicer = InferenceService(
        catalog,
        dispatchers,
        is_loaded=is_loaded,
        max_call_bytes=int(settings.max_call_bytes),
        stopping=platform.stopping,
        jobs=store,
        job_news=news,
        stream_rules=stream_rules,
        cache=ResponseCache(int(settings.cache_bytes)) if settings.cache_bytes else None,
        weights=weights,
    )
    async with AsyncExitStack() as stack:
        stack.enter_context(_metrics(dispatchers))
        stack.push_async_callback(catalog.close)
        stack.push_async_callback(dispatchers.close)
        if database is not None and store is not None:
            stack.push_async_callback(database.close)
            rules = RunnerRules(jobs=settings.max_jobs, claim_seconds=settings.job_claim_seconds)
            await stack.enter_async_context(_jobs(JobRunner(store, dispatchers, rules), store, news, weights, platform))
        audit = await stack.enter_async_context(_audit(platform))
        platform.health.set(NAME, "healthy")
        platform.health.beyond = readiness.by_name
        yield Mounted(
            [
                Service(
                    full_name="modelmora.inference.v1.InferenceService",
                    add=inference_pb2_grpc.add_InferenceServiceServicer_to_server,
                    servicer=servicer,
                    access={
                        "Embed": READERS,
                        "Predict": READERS,
                        "StreamEmbed": READERS,
                        "Rerank": READERS,
                        "Classify": READERS,
                        "AnswerQuestion": READERS,
                        "Tokenize": READERS,
                        "DescribeModel": READERS,
                        "GetQueue": READERS,
                        "ExplainRequest": READERS,
                        "SetTenantWeight": OPERATORS,
                        "ListTenantWeights": OPERATORS,
                        "CreateInferenceJob": READERS,
                        "GetInferenceJob": READERS,
                        "ListInferenceJobs": READERS,
                        "CancelInferenceJob": READERS,
                        "WatchInferenceJob": READERS,
                        "GetInferenceResult": READERS,
                    },
                    audit=audit,
                ),
                Service(
                    full_name=oip_service.FULL_NAME,
                    add=oip_pb2_grpc.add_GRPCInferenceServiceServicer_to_server,
                    servicer=oip_service.OipService(
                        servicer,
                        counts=dispatchers.counts,
                        peers=peers,
                        readiness=readiness,
                        serves=lambda: platform.health.serves(NAME) is True,
                        stopping=platform.stopping,
                        rules=stream_rules,
                    ),
                    access=oip_service.ACCESS,
                ),
                *_tei(servicer, settings, dispatchers, stream_rules, platform),
            ]
        )


@asynccontextmanager
async def _audit(platform: Platform) -> AsyncIterator[Audit]:
    audit = Audit(to_registry(platform.peers))
    trying = asyncio.create_task(audit.run(), name="audit")
    try:
        yield audit
    finally:
        trying.cancel()
        await asyncio.wait((trying,))
        await audit.close()


def _tei(
    servicer: InferenceService,
    settings: Settings,
    dispatchers: Dispatchers,
    rules: StreamRules,
    platform: Platform,
) -> Iterator[Service]:
    def precision_of(version: str) -> str:
        dispatcher = dispatchers.get(version)
        return dispatcher.precision if dispatcher is not None else ""

    limits = tei_service.Limits(settings.max_queue_entries, settings.max_batch_tokens, settings.max_batch_entries)
    speaks = tei_service.TeiService(
        servicer,
        default_model=settings.tei_model,
        limits=limits,
        precision_of=precision_of,
        rules=rules,
        stopping=platform.stopping,
    )
    for name, add in tei_service.SERVICES.items():
        yield Service(full_name=name, add=add, servicer=speaks, access=tei_service.access(name))


@asynccontextmanager
async def _jobs(
    runner: JobRunner, store: JobStore, news: JobNews, weights: TenantWeights, platform: Platform
) -> AsyncIterator[None]:
    """Works on jobs as soon as the database is there, and gives them back at the end; follows the weights in it."""

    async def listen() -> None:
        while not store.migrated:
            try:
                await store.migrate()
            except DatabaseUnavailable:
                await asyncio.sleep(MIGRATE_RETRY_SECONDS)
        async for word in store.changes():
            news.hear(word)
            runner.hear(word)
            weights.hear(word)

    tasks = [
        asyncio.create_task(work, name=f"inference {name}")
        for name, work in (
            ("job news", listen()),
            ("jobs", runner.run()),
            ("job claims", runner.keep()),
            ("job sweep", runner.sweep()),
            ("tenant weights", weights.follow()),
        )
    ]
    for task in tasks:
        tell_if_broken(task, partial(platform.health.set, NAME, "degraded"))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await runner.close()


def facts_of(answer: registry_pb2.ResolveModelResponse) -> VersionFacts:
    """The few facts that inference needs of a version."""
    version = answer.model_version
    if not version.name:
        raise VersionNotFound
    return VersionFacts(
        name=version.name,
        digest=version.artifact.digest,
        task_type=version.task_type or answer.model.task_type or common_pb2.TASK_TYPE_UNSPECIFIED,
        max_input_tokens=version.limits.max_input_tokens,
        embedding_dimensions=version.limits.embedding_dimensions,
        takes_images=version.metadata.modality == "image",
        labels=tuple(version.metadata.labels),
        fingerprint=_fingerprint(version),
    )


def _fingerprint(version: registry_pb2.ModelVersion) -> str:
    decides = registry_pb2.ModelVersion(uid=version.uid, engine=version.engine, engine_options=version.engine_options)
    decides.engine_profile.CopyFrom(version.engine_profile)
    return hashlib.sha256(decides.SerializeToString(deterministic=True)).hexdigest()


@contextmanager
def _metrics(dispatchers: Dispatchers) -> Iterator[None]:
    from prometheus_client import REGISTRY

    def depths() -> Iterator[tuple[str, int, Mapping[Priority, int]]]:
        for dispatcher in dispatchers:
            yield dispatcher.version, dispatcher.queue.in_flight, dispatcher.queue.depths

    collector = Collector(dispatchers.counts, depths)
    REGISTRY.register(collector)
    try:
        yield
    finally:
        REGISTRY.unregister(collector)
