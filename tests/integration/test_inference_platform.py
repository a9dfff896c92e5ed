"""Embed on the real registry and lifecycle: loads on demand, makes room, outlives its workers."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from integration.inference_rig import assert_right, held
from modelmora import errors
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc
from modelmora.lifecycle.v1 import lifecycle_pb2, lifecycle_pb2_grpc
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc
from modelmora.retry import is_retryable
from modelmora_app.host_commands import engine_cards
from modelmora_inference import main as inference
from modelmora_lifecycle import main as lifecycle
from modelmora_registry import main as registry
from modelmora_runtime.host import Context, Host
from modelmora_runtime.peers import PeerChannel
from modelmora_runtime.settings import PlatformSettings

MIB = 1024 * 1024


@dataclass
class Running:
    inference: Any
    lifecycle: Any
    registry: Any

    async def echo(self, model_id: str, *, memory_bytes: int = 64 * MIB, **options: object) -> str:
        """A READY version of the echo engine; the answer is its name."""
        request = registry_pb2.ImportModelRequest(model_id=model_id, version="1.0.0", engine="echo")
        request.source.empty.SetInParent()
        ParseDict(options, request.engine_options)
        request.resource_requirements.memory_bytes = memory_bytes
        name = (await self.registry.ImportModel(request, timeout=30)).model_version.name
        async for event in self.registry.WatchModelVersion(registry_pb2.WatchModelVersionRequest(name=name)):
            if event.model_version.state == registry_pb2.MODEL_VERSION_STATE_READY:
                break
        return str(name)

    async def has_tables(self) -> bool:
        """Those of the registry are made beside the start."""
        try:
            await self.registry.ListModels(registry_pb2.ListModelsRequest(), timeout=30)
        except errors.DatabaseUnavailable:
            return False
        return True

    async def right(self, model: str, *texts: str, timeout: float = 60.0, **fields: Any) -> inference_pb2.EmbedResponse:
        request = inference_pb2.EmbedRequest(model=model, texts=texts, **fields)
        answer = await self.inference.Embed(request, timeout=timeout)
        assert_right(answer, texts)
        return answer  # type: ignore[no-any-return]

    async def replicas(self) -> list[lifecycle_pb2.Replica]:
        return list((await self.lifecycle.ListReplicas(lifecycle_pb2.ListReplicasRequest())).replicas)


@asynccontextmanager
async def running(
    database_url: str, data_dir: Path, *, idle_keep_seconds: float = 30.0, **lifecycle_settings: Any
) -> AsyncIterator[Running]:
    host = Host(
        PlatformSettings(data_dir=data_dir, database_url=database_url, port=0, metrics_port=0, grace_seconds=5),
        [
            Context("registry", registry.Settings(), registry.open, "required"),
            Context("lifecycle", lifecycle.Settings.model_validate(lifecycle_settings), lifecycle.open, "used"),
            Context("inference", inference.Settings(idle_keep_seconds=idle_keep_seconds), inference.open),
        ],
        engines=engine_cards(),
        announce=lambda line: None,
    )
    async with host:
        channel = PeerChannel(grpc.aio.insecure_channel(host.target), (), 60.0)
        found = Running(
            inference_pb2_grpc.InferenceServiceStub(channel),
            lifecycle_pb2_grpc.LifecycleServiceStub(channel),
            registry_pb2_grpc.RegistryServiceStub(channel),
        )
        try:
            async with asyncio.timeout(60):
                while not await found.has_tables():
                    pass
            yield found
        finally:
            await channel.close()


@pytest.fixture
async def platform(database_url: str, data_dir: Path) -> AsyncIterator[Running]:
    async with running(database_url, data_dir) as made:
        yield made


async def test_the_first_call_loads_the_model(platform: Running) -> None:
    name = await platform.echo("acme/echo")
    assert await platform.replicas() == []
    answer = await platform.right("acme/echo", "hello there", "you")
    assert answer.model_version == name
    assert answer.digest.startswith("sha256:")
    assert answer.engine_profile.backend == "echo"
    (replica,) = await platform.replicas()
    assert replica.model_version == name
    assert replica.leases == 1


async def test_a_load_goes_on_as_long_as_somebody_waits_for_it(database_url: str, data_dir: Path) -> None:
    async with running(database_url, data_dir, idle_keep_seconds=1.0) as platform:
        await platform.echo("acme/echo", load_seconds=6.0)
        for _ in range(60):
            try:
                await platform.right("acme/echo", "x", timeout=1.0)
                break
            except errors.DeadlineExceeded:
                pass
        (replica,) = await platform.replicas()
        assert replica.state == lifecycle_pb2.REPLICA_STATE_LOADED


async def test_an_answer_names_the_profile_that_computed_it(platform: Running) -> None:
    name = await platform.echo("acme/echo")
    request = registry_pb2.SetEngineProfileRequest(name=name)
    request.engine_profile.backend, request.engine_profile.precision = "echo", "bf16"
    await platform.registry.SetEngineProfile(request)

    def ask(precision: str) -> Awaitable[inference_pb2.EmbedResponse]:
        return platform.inference.Embed(
            inference_pb2.EmbedRequest(model="acme/echo", texts=["a b c"], precision=precision)
        )

    fast, exact, again = await asyncio.gather(ask(""), ask("exact"), ask(""))
    assert [answer.engine_profile.precision for answer in (fast, exact, again)] == ["bf16", "fp32", "bf16"]
    assert fast.embeddings == again.embeddings != exact.embeddings
    assert len(await platform.replicas()) == 1


async def test_calls_outlive_kills_of_their_worker(platform: Running) -> None:
    await platform.echo("acme/echo", delay_seconds=0.02, max_batch_entries=4)
    await platform.right("acme/echo", "warm up")
    answered = asyncio.Semaphore(0)

    killed: set[int] = set()

    async def client(number: int) -> None:
        calls = 0
        while calls < 10 or len(killed) < 2:
            await platform.right("acme/echo", f"client {number} call {calls}")
            answered.release()
            calls += 1

    async with asyncio.TaskGroup() as clients:
        for number in range(16):
            clients.create_task(client(number))
        while len(killed) < 2:
            for _ in range(60):
                await answered.acquire()
            pids = {replica.pid for replica in await platform.replicas() if replica.pid} - killed
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)


async def test_a_poisonous_text_is_condemned_alone(platform: Running) -> None:
    await platform.echo("acme/echo", crash_on_text="poison")
    good = [asyncio.create_task(platform.right("acme/echo", f"good {i}")) for i in range(8)]
    with pytest.raises(errors.RequestCrashedWorker):
        await platform.right("acme/echo", "poison")
    await asyncio.gather(*good)


async def test_two_models_share_a_place_for_one(database_url: str, data_dir: Path) -> None:
    settings = {"memory_budget_bytes": 200 * MIB, "minimum_residency_seconds": 0.5}
    async with running(database_url, data_dir, **settings) as made:
        for model in ("acme/one", "acme/two"):
            await made.echo(model, memory_bytes=150 * MIB, delay_seconds=0.01)
        counts = {"acme/one": 0, "acme/two": 0}
        turns: list[tuple[str, float]] = []
        longest = 0.0
        start = time.monotonic()
        end = start + 120

        async def client(model: str, number: int) -> None:
            nonlocal longest
            while len(turns) < 7 and (began := time.monotonic()) < end:
                await made.right(model, f"{model} {number} {counts[model]}")
                counts[model] += 1
                answered = time.monotonic()
                longest = max(longest, answered - began)
                if not turns or turns[-1][0] != model:
                    turns.append((model, answered))

        await asyncio.gather(*(client(model, number) for model in counts for number in range(4)))
        assert len(turns) >= 7
        assert min(counts.values()) / sum(counts.values()) > 0.2, counts
        # Who comes as its model goes waits for the swap there, the turn of the other and the swap back.
        times = [start, *(answered for _, answered in turns)]
        assert longest < 3 * max(after - before for before, after in itertools.pairwise(times)), turns


async def test_an_idle_model_that_was_evicted_comes_back(database_url: str, data_dir: Path) -> None:
    settings = {"memory_budget_bytes": 200 * MIB, "minimum_residency_seconds": 0.0}
    async with running(database_url, data_dir, **settings) as made:
        for model in ("acme/one", "acme/two"):
            await made.echo(model, memory_bytes=150 * MIB)
        for number in range(6):
            await made.right(("acme/one", "acme/two")[number % 2], f"text {number}")


async def test_a_model_that_never_fits_is_refused_at_once(database_url: str, data_dir: Path) -> None:
    async with running(database_url, data_dir, memory_budget_bytes=100 * MIB) as made:
        await made.echo("acme/huge", memory_bytes=500 * MIB)
        with pytest.raises(errors.NeverFits):
            await made.right("acme/huge", "a text")


async def test_a_model_unloaded_by_force_answers_the_next_call_again(platform: Running) -> None:
    name = await platform.echo("acme/echo", delay_seconds=0.2)
    await platform.right("acme/echo", "warm up")
    (replica,) = await platform.replicas()
    with held(replica.pid):
        call = asyncio.create_task(platform.right("acme/echo", "in flight"))
        async with asyncio.timeout(20):
            while not [replica for replica in await platform.replicas() if replica.busy_leases]:
                pass
    await platform.lifecycle.UnloadModel(
        lifecycle_pb2.UnloadModelRequest(model=name, force=True, wait=True), timeout=30
    )
    await call
    await platform.right("acme/echo", "again")


async def test_a_load_that_fails_is_told_to_the_caller(platform: Running) -> None:
    await platform.echo("acme/broken", fail_load="no such luck")
    with pytest.raises(errors.LoadFailed) as caught:
        await platform.right("acme/broken", "a text", timeout=30)
    assert caught.value.retry_after_seconds is not None


async def test_an_unknown_model_and_a_bad_reference(platform: Running) -> None:
    with pytest.raises(errors.ModelNotFound):
        await platform.right("acme/nothing", "a text")
    with pytest.raises(errors.InvalidArgument) as caught:
        await platform.right("not a reference", "a text")
    assert [violation.field for violation in caught.value.fields] == ["model"]


async def test_a_call_that_would_not_wait_learns_how_long_the_load_takes(platform: Running) -> None:
    await platform.echo("acme/echo", load_seconds=0.3)
    await platform.echo("acme/small")
    fail_fast = inference_pb2.COLD_POLICY_FAIL_FAST
    with pytest.raises(errors.ModelLoading) as caught:
        await platform.right("acme/echo", "hasty", cold_policy=fail_fast)
    assert caught.value.retry_after_seconds
    small = await platform.right("acme/small", "warm")
    answer = await platform.right("acme/echo", "in its place, or itself by now", fallback_model="acme/small")
    assert answer.model_version.split("/")[2] in ("echo", "small")
    assert small.model_version != (await platform.right("acme/echo", "patient")).model_version
    await platform.right("acme/echo", "hasty", cold_policy=fail_fast)


async def test_two_replicas_of_a_version_share_the_work(platform: Running) -> None:
    name = await platform.echo("acme/echo", delay_seconds=0.05, max_batch_entries=1)
    await platform.right("acme/echo", "warm up")
    residency = lifecycle_pb2.Residency(model_version=name, min_replicas=2, max_replicas=2)
    request = lifecycle_pb2.UpdateResidencyRequest(
        residency=residency, update_mask={"paths": ["min_replicas", "max_replicas"]}
    )
    await platform.lifecycle.UpdateResidency(request, timeout=30)
    async with asyncio.timeout(30):
        while len(leased := [replica for replica in await platform.replicas() if replica.leases]) < 2:
            await platform.right("acme/echo", "meanwhile")
        # A worker that is held is not connected to.
        while (await platform.inference.GetQueue(inference_pb2.GetQueueRequest())).queues[0].replicas < 2:
            await platform.right("acme/echo", "meanwhile")
    with held(*(replica.pid for replica in leased)):
        calls = [asyncio.create_task(platform.right("acme/echo", f"text {number}")) for number in range(20)]
        async with asyncio.timeout(30):
            while not all(replica.busy_leases for replica in await platform.replicas()):
                pass
        os.kill(leased[0].pid, signal.SIGKILL)
    await asyncio.gather(*calls)


async def test_replicas_come_for_batches_that_wait_for_each_other(platform: Running) -> None:
    # Each batch takes all that waits, so that nothing is ever old in the queue: the wait is on the worker.
    name = await platform.echo("acme/echo", delay_seconds=1.0)
    request = lifecycle_pb2.UpdateResidencyRequest(
        residency=lifecycle_pb2.Residency(model_version=name, max_replicas=3)
    )
    request.update_mask.paths.append("max_replicas")
    await platform.lifecycle.UpdateResidency(request)
    events = platform.lifecycle.WatchReplicas(lifecycle_pb2.WatchReplicasRequest())
    calls = list[asyncio.Task[inference_pb2.EmbedResponse]]()

    async def arrive() -> None:
        # Whether others are answered or not: callers who wait for their answers would share batch after batch, and
        # none of these would wait for another.
        while True:
            calls.append(asyncio.create_task(platform.right("acme/echo", f"text {len(calls)}")))
            await asyncio.sleep(0.1)

    arrivals = asyncio.create_task(arrive())
    try:
        loaded = set[str]()
        async with asyncio.timeout(60):
            while len(loaded) < 2:
                event = await events.read()
                if event.replica.state == lifecycle_pb2.REPLICA_STATE_LOADED:
                    loaded.add(event.replica.uid)
    finally:
        events.cancel()
        for task in (arrivals, *calls):
            task.cancel()
        ends = await asyncio.gather(arrivals, *calls, return_exceptions=True)
    assert [e for e in ends if isinstance(e, BaseException) and not isinstance(e, asyncio.CancelledError)] == []


async def test_a_node_drained_at_work_loses_no_call_and_serves_again_when_it_is_taken_back(platform: Running) -> None:
    await platform.echo("acme/echo", delay_seconds=0.05, max_batch_entries=2)
    await platform.right("acme/echo", "warm up")
    answered, refused = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def client(number: int) -> None:
        while True:
            try:
                await platform.right("acme/echo", f"client {number}")
                answered.release()
            except errors.NodeCordoned:
                refused.release()
                await asyncio.sleep(0.1)

    clients = [asyncio.create_task(client(number)) for number in range(6)]

    async def count(what: asyncio.Semaphore, number: int) -> None:
        async with asyncio.timeout(60):
            for _ in range(number):
                await what.acquire()

    try:
        await count(answered, 12)
        drain = lifecycle_pb2.DrainNodeRequest(wait=True, reason="a new disk")
        drained = await platform.lifecycle.DrainNode(drain, timeout=60)
        assert list(drained.replicas) == []
        await count(refused, 6)
        assert await platform.replicas() == []
        with pytest.raises(errors.NodeCordoned, match="a new disk") as refusal:
            await platform.right("acme/echo", "while it is cordoned")
        # It may last for hours: a client that asked again would learn late, and maybe only that its time is up.
        assert not is_retryable(refusal.value)
        await platform.lifecycle.UncordonNode(lifecycle_pb2.UncordonNodeRequest())
        while not answered.locked():
            await answered.acquire()
        await count(answered, 12)
        assert not any(task.done() for task in clients), "every other error ends its client"
    finally:
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
