"""Lifecycle's settings and wiring: the node, what it asks the registry, what it keeps, and who is on duty."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from modelmora.errors import (
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    ModelMoraError,
    NotFound,
    Unavailable,
    VersionNotReady,
)
from modelmora.lifecycle.v1 import lifecycle_pb2_grpc
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc
from modelmora_runtime import machine, pids
from modelmora_runtime.audit import Audit, to_registry
from modelmora_runtime.auth import OPERATORS, READERS, SERVICES
from modelmora_runtime.db import Database
from modelmora_runtime.health import duty_of, tell_if_broken
from modelmora_runtime.host import Mounted, Platform, Service
from modelmora_runtime.ids import uuid7
from modelmora_runtime.settings import Section
from pydantic import ByteSize, Field

from modelmora_lifecycle.actor import Node
from modelmora_lifecycle.conversions import Conversions
from modelmora_lifecycle.domain import HOST, MIB, EngineProfile, VersionFacts
from modelmora_lifecycle.duty import Duty
from modelmora_lifecycle.eviction import PolicyName
from modelmora_lifecycle.launcher import LocalLauncher
from modelmora_lifecycle.ledger import Budget
from modelmora_lifecycle.messages import profile_message
from modelmora_lifecycle.orders import Orders, Terms
from modelmora_lifecycle.orders_store import OrdersStore
from modelmora_lifecycle.prediction import Prediction
from modelmora_lifecycle.scaling import Scaling
from modelmora_lifecycle.scheduler import Rules
from modelmora_lifecycle.service import LifecycleLeaseServicer, LifecycleServicer
from modelmora_lifecycle.store import Kept, LifecycleStore, StoreJournal
from modelmora_lifecycle.tuner import Tuner, TunerRules
from modelmora_lifecycle.tuning import Offer
from modelmora_lifecycle.tuning_store import TuningStore
from modelmora_lifecycle.workers import WorkerRules

NAME = "lifecycle"
MODELS = "models"
"""The component of health that tells how the models in memory are."""
log = logging.getLogger(__name__)

_RETRY_SECONDS = (0.1, 2.0)
_RPC_SECONDS = 10.0
_KNOWN_SECONDS = 2.0
"""So long is waited for an answer that is known from before."""
_STOP_GRACE_SECONDS = 1.0
_RELEASE_SECONDS = 1.0
"""So long is the registry told at a stop what is no longer held."""
_FACTS_KEPT = 10_000
_ACCELERATOR = "cuda:0"


class Settings(Section):
    """Section `lifecycle`."""

    node: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=255,
        description="Name of this machine; one process at a time serves it.",
    )
    memory_budget_bytes: ByteSize = Field(
        ByteSize(0), ge=0, description="Main memory that models may take; 0: memory_share, less what others use."
    )
    memory_share: float = Field(
        0.8, gt=0, le=1, description="Share of the machine's or container's memory that models may take."
    )
    minimum_residency_seconds: float = Field(
        2.0, ge=0, le=3600, description="A model stays at least so long once loaded, and as long as its load took."
    )
    holder_grace_seconds: float = Field(
        20.0, gt=0, le=600, description="How long work in flight may go on when its model has to make room."
    )
    drain_grace_seconds: float = Field(
        5.0, gt=0, le=600, description="How long work in flight may go on when its model is unloaded by force."
    )
    launch_timeout_seconds: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Until a new worker process listens. A fork server that imports its libraries is waited for longer "
        "while it works, to ten times this.",
    )
    load_timeout_seconds: float = Field(
        120.0, gt=0, le=86400, description="Until a model is loaded, beside what its size allows."
    )
    load_bytes_per_second: ByteSize = Field(
        ByteSize(20_000_000), gt=0, description="Slowest reading of model files that is waited for."
    )
    idle_ttl_seconds: float = Field(
        0.0, ge=0, le=31_536_000, description="Unload what was not used for so long; 0: only when room is needed."
    )
    eviction_policy: PolicyName = Field(
        "lru",
        description="Who goes first when room is needed: least recently used, cheapest to have again (gdsf), or "
        "next to reach the end of its keep-alive (ttl).",
    )
    scale_down_idle_seconds: float = Field(
        60.0, gt=0, le=31_536_000, description="A replica beyond the first goes after so long without use."
    )
    crash_window_seconds: float = Field(
        10.0, gt=0, le=3600, description="A crash so soon after the load counts as one of a loop."
    )
    load_concurrency: int = Field(4, gt=0, le=64, description="Loads at a time on one device.")
    engine_overhead_bytes: ByteSize = Field(
        ByteSize(350 * MIB), ge=0, description="Guess of what an engine takes beside the model's files."
    )
    worker_overhead_bytes: ByteSize = Field(
        ByteSize(32 * MIB), ge=0, description="Guess of what a worker takes whose engine needs no files."
    )
    watch_interval_seconds: float = Field(1.0, ge=0.05, le=60, description="How often a worker tells how it is.")
    unresponsive_seconds: float = Field(
        5.0, ge=0.5, le=600, description="Silence after which a worker counts as unhealthy."
    )
    unhealthy_grace_seconds: float = Field(
        10.0, ge=0, le=3600, description="How long a worker may stay unhealthy before it is replaced."
    )
    probe_interval_seconds: float = Field(
        10.0, ge=0, le=3600, description="How often a worker is asked a real question; 0: never."
    )
    probe_timeout_seconds: float = Field(
        15.0, gt=0, le=3600, description="A worker that answers neither it nor anything else in time is unhealthy."
    )
    growth_factor: float = Field(
        1.25, ge=1, le=100, description="A worker is stopped above so many times its declared or granted memory."
    )
    fork_servers: bool = Field(
        True, description="Workers are forked where their engine allows; false: each imports its libraries itself."
    )
    fork_server_idle_seconds: float = Field(
        600.0, gt=0, le=31_536_000, description="A fork server that has had no worker for so long ends."
    )
    decisions_kept: int = Field(10_000, ge=100, description="Rows kept of eviction decisions.")
    trace_events_kept: int = Field(100_000, ge=100, description="Rows kept of acquire events, for simulations.")
    trace_days: float = Field(7.0, gt=0, le=3660, description="Acquire events are kept for so many days at most.")
    auto_tune: bool = Field(
        False, description="After its first load, once the node is idle, make the fastest accurate profile current."
    )
    tuning_candidate_seconds: float = Field(
        300.0, gt=0, le=86400, description="How long a tuning may take for one engine profile."
    )


@asynccontextmanager
async def open(settings: Settings, platform: Platform) -> AsyncIterator[Mounted]:
    """Returns at once; who is on duty is settled in the background. On exit no worker is left."""
    registry = Registry(platform, f"{NAME}@{settings.node}")
    launcher = LocalLauncher(
        platform.run_dir,
        platform.settings.data_dir / "logs",
        fork_server_idle_seconds=settings.fork_server_idle_seconds,
    )
    database = Database(platform.database_url, NAME, pool_size=2, pool_overflow=2) if platform.database_url else None
    kept = Kept(settings.decisions_kept, settings.trace_events_kept, timedelta(days=settings.trace_days))
    store = LifecycleStore(database, settings.node, kept) if database else None
    journal = StoreJournal(store) if store else None
    duty = Duty(asyncio.Event())
    state = {"duty": ("unknown", duty.reason), "chores": ("healthy", ""), "models": ("healthy", "")}

    def report(part: str) -> Callable[[str, str], None]:
        def set_health(level: str, reason: str) -> None:
            state[part] = (level, reason)
            level, reason = next((told for told in state.values() if told[0] != "healthy"), ("healthy", ""))
            platform.health.set(NAME, level, reason)  # type: ignore[arg-type]

        return set_health

    def report_duty(level: str, reason: str) -> None:
        # By this alone peers choose whom to call: what else is wrong here the other one could not make good.
        platform.health.set(duty_of(NAME), "healthy" if duty.on_duty else "unhealthy", reason)
        report("duty")(level, reason)

    def report_models(level: str, reason: str) -> None:
        # One model that keeps crashing is red, and takes no traffic from those that answer.
        platform.health.set(MODELS, level, reason)  # type: ignore[arg-type]
        report("models")("degraded" if level == "unhealthy" else level, reason)

    families = {name: card.family for name, card in platform.engines.items() if settings.fork_servers}
    conversions = Conversions(platform.settings.data_dir / "conversions")
    node = Node(
        rules=rules(settings, families),
        worker_rules=WorkerRules(
            launch_timeout_seconds=settings.launch_timeout_seconds,
            load_timeout_seconds=settings.load_timeout_seconds,
            load_bytes_per_second=settings.load_bytes_per_second,
            watch_interval_seconds=settings.watch_interval_seconds,
            unresponsive_seconds=settings.unresponsive_seconds,
            families=families,
            cache_path=conversions.path_of,
            probe_interval_seconds=settings.probe_interval_seconds,
            probe_timeout_seconds=settings.probe_timeout_seconds,
            growth_factor=settings.growth_factor,
            engine_slack_bytes=settings.engine_overhead_bytes,
            bare_slack_bytes=settings.worker_overhead_bytes,
        ),
        launcher=launcher,
        hold=registry.hold,
        journal=journal,
        on_health=report_models,
    )
    orders = Orders(
        node,
        registry,
        OrdersStore(database, settings.node) if database else None,
        Terms(
            budgets={HOST: Budget(settings.memory_budget_bytes)} if settings.memory_budget_bytes else {},
            share=settings.memory_share,
            policy=settings.eviction_policy,
            idle_ttl_seconds=settings.idle_ttl_seconds,
            load_concurrency=settings.load_concurrency,
        ),
        rules(settings, families),
    )

    def deleted(version: str) -> None:
        node.deleted(version)
        orders.deleted(version)

    registry.on_deleted = deleted
    registry.on_told = node.renew
    tuner = Tuner(
        node,
        registry,
        TuningStore(database, settings.node) if database else None,
        {name: Offer(card.profiles, card.missing) for name, card in platform.engines.items()},
        TunerRules(settings.tuning_candidate_seconds, auto=settings.auto_tune),
    )
    report_duty("unknown", duty.reason)
    report_models("healthy", "")
    audit = Audit(to_registry(platform.peers))
    await node.begin()
    chores = {
        "node lock": serve_node(duty, node, orders, database, store, settings.node, report_duty),
        "orders": orders.fulfil(),
        "audit": audit.run(),
        "tuner": tuner.run(duty),
        "conversions": conversions.run(),
    }
    if journal is not None:
        chores["journal"] = journal.run()
    tasks = [asyncio.create_task(chore, name=name) for name, chore in chores.items()]
    for task in tasks:
        tell_if_broken(task, partial(report("chores"), "degraded"))
    servicer = LifecycleServicer(node, registry, duty, orders, tuner, store, settings.node, platform.stopping)
    try:
        yield Mounted(services(servicer, LifecycleLeaseServicer(node, registry, duty), audit))
    finally:
        await servicer.close()
        await audit.close()
        await tuner.close()
        await node.close(_STOP_GRACE_SECONDS)
        await launcher.close()
        await registry.close(_RELEASE_SECONDS)
        if journal is not None and database is not None and database.available:
            await journal.flush(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if database is not None:
            await database.close()


def services(servicer: LifecycleServicer, leases: LifecycleLeaseServicer, audit: Audit) -> list[Service]:
    """Both services with the roles that each RPC needs."""
    return [
        Service(
            "modelmora.lifecycle.v1.LifecycleService",
            lifecycle_pb2_grpc.add_LifecycleServiceServicer_to_server,
            servicer,
            {
                "LoadModel": OPERATORS,
                "UnloadModel": OPERATORS,
                "GetReplica": READERS,
                "ListReplicas": READERS,
                "WatchReplicas": READERS,
                "GetMemory": READERS,
                "ExplainPlacement": READERS,
                "ListEvictionDecisions": READERS,
                "ExportTrace": READERS,
                "SimulatePlacement": READERS,
                "GetResidency": READERS,
                "UpdateResidency": OPERATORS,
                "ListResidencies": READERS,
                "GetNode": READERS,
                "UpdateNode": OPERATORS,
                "DrainNode": OPERATORS,
                "UncordonNode": OPERATORS,
                "TuneModelVersion": OPERATORS,
                "GetTuning": READERS,
                "WatchTuning": READERS,
                "ListTunings": READERS,
            },
            audit,
        ),
        Service(
            "modelmora.lifecycle.v1.LifecycleLeaseService",
            lifecycle_pb2_grpc.add_LifecycleLeaseServiceServicer_to_server,
            leases,
            {"Acquire": SERVICES},
        ),
    ]


def rules(settings: Settings, families: Mapping[str, str]) -> Rules:
    """`families`: engine to the family of its fork server."""
    cores = machine.cpu_cores()
    return Rules(
        minimum_residency_seconds=settings.minimum_residency_seconds,
        holder_grace_seconds=settings.holder_grace_seconds,
        drain_grace_seconds=settings.drain_grace_seconds,
        unhealthy_grace_seconds=settings.unhealthy_grace_seconds,
        idle_ttl_seconds=settings.idle_ttl_seconds,
        crash_window_seconds=settings.crash_window_seconds,
        cpu_cores=cores,
        cpu_limited=cores < (os.cpu_count() or cores),
        families={engine: family for engine, family in families.items() if family},
        scaling=Scaling(idle_seconds=settings.scale_down_idle_seconds),
        prediction=Prediction(
            engine_overhead_bytes=settings.engine_overhead_bytes,
            bare_overhead_bytes=settings.worker_overhead_bytes,
        ),
    )


async def serve_node(
    duty: Duty,
    node: Node,
    orders: Orders,
    database: Database | None,
    store: LifecycleStore | None,
    name: str,
    report: Callable[[str, str], None],
) -> None:
    """Settles who serves this node, by an advisory lock, for ever. Who has served goes on while the database is away:
    nobody else can take the lock then either, and models in memory need no database.

    What operators said, and what was measured, is read anew each time the lock is taken: whoever had it meanwhile may
    have changed it. Nothing is loaded before."""

    def set_duty(on_duty: bool, level: str, reason: str) -> None:
        if (on_duty, not on_duty) != (duty.on_duty, duty.standby):
            log.info("this process serves node %s" if on_duty else "%s", name if on_duty else reason)
        duty.on_duty, duty.standby, duty.reason = on_duty, not on_duty, reason
        duty.decided.set()
        report(level, reason)

    if database is None or store is None:
        await orders.restore()
        set_duty(True, "healthy", "")
        return
    pause, longest = _RETRY_SECONDS
    migrated = False
    while True:
        lock = None
        try:
            if not migrated:
                await database.migrate("modelmora_lifecycle")
                migrated = True
            lock = await database.try_lock(f"node {name}")
            if lock is not None:
                for measured in reversed(await store.measurements()):  # the newest wins
                    node.scheduler.remember(measured)
                await orders.restore()
        except ModelMoraError as error:
            if lock is not None:
                await lock.release()
            if not duty.on_duty:
                duty.reason = f"lifecycle cannot ask the database who serves this node: {error.message}"
                report("unhealthy", error.message)
        else:
            if lock is not None:
                set_duty(True, "healthy", "")
                try:
                    await lock.lost.wait()
                finally:
                    await lock.release()
                pause = _RETRY_SECONDS[0]
                log.warning("the lock of node %s is lost; serving goes on", name)
                continue
            taken = duty.on_duty
            set_duty(False, "unhealthy", f"standby: another process serves node {name}")
            if taken:  # after that: who still wants something is sent to the other, and nothing new is loaded here
                log.error("another process has taken node %s; everything is unloaded", name)
                await node.give_up()
        await asyncio.sleep(pause)
        pause = min(pause * 2, longest)


class Registry:
    """What lifecycle asks the registry: facts of versions, and holds. Files never change; profile and needs may, so the
    last answer counts only while there is none."""

    def __init__(self, platform: Platform, holder: str) -> None:
        self._platform = platform
        self._holder = holder
        self._process = pids.this_process()
        self._releasing: set[asyncio.Task[None]] = set()
        self._facts: OrderedDict[str, VersionFacts] = OrderedDict()
        self.on_deleted: Callable[[str], None] = lambda name: None
        self.on_told: Callable[[VersionFacts], None] = lambda facts: None
        """A version that is held, as it is now."""

    async def resolve(self, reference: str) -> VersionFacts:
        request = registry_pb2.ResolveModelRequest(reference=reference)
        response = await self._service().ResolveModel(request, timeout=_RPC_SECONDS)
        return self._remember(facts_of(response.model_version))

    async def facts(self, name: str) -> VersionFacts:
        known = self._facts.get(name)
        request = registry_pb2.GetModelVersionRequest(name=name)
        try:
            timeout = _KNOWN_SECONDS if known else _RPC_SECONDS
            response = await self._service().GetModelVersion(request, timeout=timeout)
        except (Unavailable, DeadlineExceeded):
            if known is None:
                raise
            return known
        return self._remember(facts_of(response.model_version))

    async def set_profile(self, name: str, profile: EngineProfile, expected: EngineProfile) -> None:
        """Makes a profile current if `expected` still is. Raises Conflict, VersionNotFound, Unavailable."""
        request = registry_pb2.GetModelVersionRequest(name=name)
        version = (await self._service().GetModelVersion(request, timeout=_RPC_SECONDS)).model_version
        if facts_of(version).profile != expected:
            raise Conflict
        change = registry_pb2.SetEngineProfileRequest(
            name=name, engine_profile=profile_message(profile), etag=version.etag
        )
        changed = await self._service().SetEngineProfile(change, timeout=_RPC_SECONDS)
        self.on_told(self._remember(facts_of(changed.model_version)))

    def hold(self, name: str) -> RegistryHold:
        return RegistryHold(self, name)

    def _service(self) -> Any:
        channel = self._platform.peers.channel("registry")
        return registry_pb2_grpc.RegistryServiceStub(channel)  # type: ignore[no-untyped-call]

    def _remember(self, facts: VersionFacts) -> VersionFacts:
        self._facts[facts.name] = facts
        self._facts.move_to_end(facts.name)
        if len(self._facts) > _FACTS_KEPT:
            self._facts.popitem(last=False)
        return facts

    def forget(self, name: str) -> None:
        self._facts.pop(name, None)

    def hold_service(self) -> Any:
        channel = self._platform.peers.channel("registry")
        return registry_pb2_grpc.RegistryHoldServiceStub(channel)  # type: ignore[no-untyped-call]

    async def keep_hold(
        self, name: str, hold_id: str, in_memory: bool, in_force: Callable[[registry_pb2.AcquireHoldResponse], None]
    ) -> None:
        """Holds until cancelled. Raises NotFound when the version is gone, FailedPrecondition when it is not to be
        loaded, Unavailable when the stream breaks."""
        request = registry_pb2.AcquireHoldRequest(
            name=name, holder=self._holder, hold_id=hold_id, process=self._process, in_memory=in_memory
        )
        call = self.hold_service().AcquireHold(request)
        try:
            async for response in call:
                in_force(response)
                if response.HasField("model_version"):
                    self.on_told(self._remember(facts_of(response.model_version)))
        finally:
            call.cancel()
        raise Unavailable("the registry ended the hold")

    def release_hold(self, hold_id: str) -> None:
        """Soon. A registry that is away meanwhile keeps the hold until it is told, or this process has ended."""
        releasing = asyncio.create_task(self._release(hold_id), name="release of a hold")
        self._releasing.add(releasing)
        releasing.add_done_callback(self._releasing.discard)

    async def _release(self, hold_id: str) -> None:
        pause, longest = _RETRY_SECONDS
        while True:
            try:
                request = registry_pb2.ReleaseHoldRequest(hold_id=hold_id)
                await self.hold_service().ReleaseHold(request, timeout=_RPC_SECONDS)
                return
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)
            except ModelMoraError as error:  # an older registry, which lets go when the stream ends
                log.info("a hold was not released: %s", error.message)
                return

    async def close(self, timeout_seconds: float) -> None:
        """Waits at most this long for holds that are being released."""
        if self._releasing:
            _, late = await asyncio.wait(self._releasing, timeout=timeout_seconds)
            for task in late:
                task.cancel()


class RegistryHold:
    """A hold that comes back by itself when the registry does."""

    def __init__(self, registry: Registry, name: str) -> None:
        self._registry = registry
        self._name = name
        self._uid = str(uuid7())
        loop = asyncio.get_running_loop()
        self._first: asyncio.Future[None] = loop.create_future()
        self._first.add_done_callback(lambda first: first.cancelled() or first.exception())  # heard or not
        self._golden: asyncio.Future[registry_pb2.GoldenInputs | None] = loop.create_future()
        self._task = asyncio.create_task(self._keep(), name=f"hold of {name}")

    async def acquired(self) -> None:
        """In force, or the registry is away or says nothing: what it cannot delete now, it will not delete behind our
        back, for the hold is asked for as long as we have it. Raises VersionNotFound, ModelNotFound, VersionDrifted."""
        await asyncio.wait((self._first,), timeout=_RPC_SECONDS)
        self._settle()
        await self._first

    async def golden(self) -> registry_pb2.GoldenInputs | None:
        return await asyncio.shield(self._golden)

    async def record(self, fingerprint: registry_pb2.Fingerprint) -> registry_pb2.RecordFingerprintResponse:
        request = registry_pb2.RecordFingerprintRequest(name=self._name, fingerprint=fingerprint)
        answer: registry_pb2.RecordFingerprintResponse = await self._registry.hold_service().RecordFingerprint(
            request, timeout=_RPC_SECONDS
        )
        return answer

    def release(self) -> None:
        self._task.cancel()
        self._registry.release_hold(self._uid)
        self._first.cancel()
        self._golden.cancel()

    async def _keep(self) -> None:
        pause, longest = _RETRY_SECONDS
        while True:
            try:
                await self._registry.keep_hold(self._name, self._uid, self._first.done(), self._in_force)
            except FailedPrecondition as error:
                # What may not be loaded is not loaded; what is in memory already goes on.
                log.error("%s is not to be loaded: %s", self._name, error.message)
                if not self._first.done():
                    self._settle(error)
                    return
            except NotFound as error:
                self._registry.forget(self._name)
                if self._first.done():
                    log.error("%s was deleted while it was in memory", self._name)
                    self._registry.on_deleted(self._name)
                else:
                    self._settle(error)
                return
            except ModelMoraError as error:
                log.warning("the hold of %s is not in force: %s", self._name, error)
                self._settle()
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    def _in_force(self, response: registry_pb2.AcquireHoldResponse) -> None:
        self._settle()
        if not self._golden.done():
            self._golden.set_result(response.golden if response.HasField("golden") else None)

    def _settle(self, error: ModelMoraError | None = None) -> None:
        if self._first.done():
            return
        if error is None:
            self._first.set_result(None)
        else:
            self._first.set_exception(error)


def facts_of(version: registry_pb2.ModelVersion) -> VersionFacts:
    """What lifecycle needs of a version. Raises VersionNotReady."""
    if version.state != registry_pb2.MODEL_VERSION_STATE_READY:
        raise VersionNotReady(f"{version.name} is not READY", model_version=version.name)
    required = version.resource_requirements
    declared = {HOST: required.memory_bytes, _ACCELERATOR: required.accelerator_memory_bytes}
    profile = version.engine_profile
    return VersionFacts(
        name=version.name,
        engine=version.engine,
        artifact_path=version.artifact.path,
        artifact_bytes=version.artifact.size_bytes,
        artifact_digest=version.artifact.digest,
        weight_bytes=sum(version.metadata.weight_bytes.values()),
        task_type=version.task_type,
        takes_images=version.metadata.modality == "image",
        cpu_threads=required.cpu_threads,
        declared={device: memory_bytes for device, memory_bytes in declared.items() if memory_bytes > 0},
        profile=EngineProfile(profile.backend, profile.precision, dict(profile.library_versions), profile.batch_rule),
        options=version.engine_options.SerializeToString(deterministic=True),
    )
