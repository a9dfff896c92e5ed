"""Fuzz of the whole platform: every RPC that it lists gets messages nobody would send, mixed with good ones.

What must hold: no INTERNAL and no UNKNOWN, every error of ours has its name, every call and every stream that the
client has closed ends within its deadline, every process lives on, a good call after every 100 messages is answered
rightly, and afterwards each process has the memory back that it had, within 5 %. fuzz_messages.py makes the messages.

    python -m bench.fuzz --per-rpc 1000        writes docs/evidence/fuzz-….md
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc
from modelmora.lifecycle.v1 import lifecycle_pb2, lifecycle_pb2_grpc
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc
from modelmora.status import DETAILS_KEY, WRITE_FAILED
from modelmora_worker.engines.echo import vector

from bench.fuzz_messages import Messages, Rpc, rpcs_of
from bench.soak_watch import anonymous_bytes, name_of, platform_pids
from bench.soak_watch import words as command_of
from bench.up import Up

ROOT = Path(__file__).resolve().parents[1]
MIB = 1024 * 1024
BLOCK = 100
"""Messages between two good calls."""
LANES = 2
"""Blocks at a time."""
OPEN_CALLS, OPEN_STREAMS = 24, 6
"""Calls, or streams, that one block has open at once."""
DEADLINE_SECONDS = 60.0
QUIET_SECONDS = 0.1
"""A stream of answers that says nothing for so long is left by the client."""
SLACK, SMALL_BYTES = 0.05, 4 * MIB
"""Memory is back when it is within this share, or so much for small processes: a connection of the database keeps what
it prepared of up to a hundred statements, and meets them one by one."""
SETTLE_SECONDS = 60.0
REST_SECONDS = 35.0
"""So long memory is looked at, for the least that there is: the host gives back what is free every 30 s."""
GUARD = "guard/echo"
"""The model of the good calls. No message names it."""
NODE_WIDE = ("DrainNode", "UncordonNode", "UpdateNode", "UpdateResidency")
"""RPCs whose effects reach the good calls: they have their turn alone, and are undone after each block."""
WRONG = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
INFERENCE = ("/modelmora.inference.", "/inference.", "/tei.")
OURS = ("/modelmora.", "/inference.", "/tei.")
"""Services whose errors all have a name."""
TOO_LATE = "ended before we had written all"
"""What such a stream is counted as: with which status the server ended it, grpc.aio does not say any more."""
SHORT = {"SimulatePlacement": 3.0}
"""Seconds for RPCs that may compute as long as they are given time."""
MODEL_OF = {"Predict": "fuzz/classify", "Rerank": "fuzz/rerank"}
"""For services whose messages name no model."""


@dataclass
class Report:
    """What a fuzz was and what came of it."""

    seed: int
    slack: float = SLACK
    warm_up: int = 0
    rpcs: int = 0
    messages: Counter[str] = field(default_factory=Counter)
    """By RPC."""
    accepted: Counter[str] = field(default_factory=Counter)
    """Those that a parser takes."""
    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    good_calls: int = 0
    streams: int = 0
    half_closed: int = 0
    findings: list[str] = field(default_factory=list)
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Process → bytes of its own before and after."""
    readings: list[tuple[int, int]] = field(default_factory=list)
    """Messages until then, and bytes of the host."""
    seconds: float = 0.0
    answered: Counter[str] = field(default_factory=Counter)
    """Calls by status, as the platform itself has counted them in its metrics; those of good calls too."""

    def wrong(self) -> list[str]:
        """What must not be; empty when all is well."""
        found = self.findings[:20]
        total, taken = self.messages.total(), self.accepted.total()
        if taken * 2 < total:
            found.append(f"only {taken} of {total} messages were such that a parser takes them")
        if self.good_calls < total // BLOCK:
            found.append(f"only {self.good_calls} good calls among {total} messages")
        for code in WRONG:
            if self.answered[code.name]:
                found.append(f"the platform says that it answered {code.name} {self.answered[code.name]} times")
        return found + self.grown()

    def grown(self) -> list[str]:
        """Processes whose memory is not back."""
        return [
            f"{process} had {before / MIB:.1f} MiB before and has {after / MIB:.1f}"
            for process, (before, after) in self.memory.items()
            if after - before > max(self.slack * before, SMALL_BYTES)
        ]


async def discover(channel: grpc.aio.Channel) -> list[Rpc]:
    """Every RPC that the server lists, from reflection alone."""
    ask: Any = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()

    async def answer(**request: str) -> Any:
        await ask.write(reflection_pb2.ServerReflectionRequest(**request))
        return await ask.read()

    services = [found.name for found in (await answer(list_services="")).list_services_response.service]
    files: list[bytes] = []
    for service in services:
        files += (await answer(file_containing_symbol=service)).file_descriptor_response.file_descriptor_proto
    await ask.done_writing()
    return rpcs_of(services, files)


class Fuzz:
    """One platform under fire."""

    def __init__(self, up: Up, seed: int, others: float = 1.0, slack: float = SLACK) -> None:
        """`others`: of the messages that RPCs of inference get, the share that those of other contexts get."""
        self._up = up
        self._others = others
        self._chance = random.Random(seed)
        size = 128 * MIB
        options = (("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size))
        self._channel = grpc.aio.insecure_channel(up.target, options)
        self._registry: Any = registry_pb2_grpc.RegistryServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._lifecycle: Any = lifecycle_pb2_grpc.LifecycleServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._inference: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._rpcs: list[Rpc] = []
        self._messages = Messages(seed, {})
        self._guard_pid = 0
        self.report = Report(seed, slack)

    async def run(self, per_rpc: int, warm_up: int, only: str = "", readings: int = 0) -> None:
        """`warm_up` messages for each RPC, then memory is looked at, then the rest up to `per_rpc`; `readings`: how
        often memory is looked at while it rests, from the warm-up to the end."""
        began = time.monotonic()
        self.report.warm_up = warm_up
        world = await self._make_world()
        self._messages = Messages(self.report.seed, world)
        self._rpcs = [rpc for rpc in await discover(self._channel) if only in rpc.path]
        self.report.rpcs = len(self._rpcs)
        await self._round(warm_up)
        before = await self._look(readings > 0)
        parts, rest = max(1, readings), per_rpc - warm_up
        for part in range(parts):
            await self._round(rest * (part + 1) // parts - rest * part // parts)
            if part + 1 < parts:
                await self._look(True)
        await self._compare(before, readings > 0)
        self.report.seconds = time.monotonic() - began
        self.report.answered = answered(self._up)
        await self._channel.close()

    # What there is.

    async def _make_world(self) -> dict[str, str]:
        """Models of every task that the echo engine does, a lock, a job, a tuning, a link, a replica."""
        tasks = {
            GUARD: common_pb2.TASK_TYPE_TXT2EMBED,
            "fuzz/echo": common_pb2.TASK_TYPE_TXT2EMBED,
            "fuzz/idle": common_pb2.TASK_TYPE_TXT2EMBED,
            "fuzz/rerank": common_pb2.TASK_TYPE_RERANKING,
            "fuzz/classify": common_pb2.TASK_TYPE_CLASSIFICATION,
            "fuzz/answer": common_pb2.TASK_TYPE_QUESTION_ANSWERING,
        }
        names = {}
        for model_id, task in tasks.items():
            request = registry_pb2.ImportModelRequest(
                model_id=model_id, version="v1.0.0", engine="echo", task_type=task
            )
            request.source.empty.SetInParent()
            request.resource_requirements.memory_bytes = 16 * MIB
            answer = await self._registry.ImportModel(request, timeout=30)
            names[model_id] = answer.model_version.name
        for name in names.values():
            async for event in self._registry.WatchModelVersion(registry_pb2.WatchModelVersionRequest(name=name)):
                if event.model_version.state == registry_pb2.MODEL_VERSION_STATE_READY:
                    break
        residency = lifecycle_pb2.Residency(model_version=GUARD, pinned=True)
        pin = lifecycle_pb2.UpdateResidencyRequest(residency=residency, update_mask={"paths": ["pinned"]})
        await self._lifecycle.UpdateResidency(pin, timeout=30)
        await self._good_call()
        loaded = await self._lifecycle.LoadModel(
            lifecycle_pb2.LoadModelRequest(model="fuzz/echo", wait=True), timeout=60
        )
        lock = await self._registry.CreateModelLock(
            registry_pb2.CreateModelLockRequest(lock_id="fuzz", models=["fuzz/idle"]), timeout=30
        )
        link = registry_pb2.CreateExternalLinkRequest(parent="models/fuzz/idle")
        link.external_link.registry_type, link.external_link.external_id = "huggingface", "fuzz/idle"
        linked = await self._registry.CreateExternalLink(link, timeout=30)
        job = await self._inference.CreateInferenceJob(
            inference_pb2.CreateInferenceJobRequest(model="fuzz/echo", embed={"texts": ["one text", "another"]}),
            timeout=30,
        )
        tuning = await self._lifecycle.TuneModelVersion(
            lifecycle_pb2.TuneModelVersionRequest(model="fuzz/idle"), timeout=30
        )
        async for _ in self._lifecycle.WatchTuning(lifecycle_pb2.WatchTuningRequest(name=tuning.tuning.name)):
            pass
        return {
            "version": names["fuzz/echo"],
            "idle": names["fuzz/idle"],
            "replica": loaded.replica.name,
            "yaml": lock.yaml,
            "link": linked.external_link.name,
            "job": job.job.name,
            "tuning": tuning.tuning.name,
            "folder": str(self._up.data_dir.parent / "folder"),
        }

    # Messages.

    async def _round(self, per_rpc: int) -> None:
        """So many messages for each RPC, in blocks in random order; those of NODE_WIDE after the others, alone."""

        def wanted(rpc: Rpc) -> int:
            return per_rpc if rpc.path.startswith(INFERENCE) else round(per_rpc * self._others)

        def blocks(node_wide: bool) -> list[tuple[Rpc, int]]:
            made = [
                (rpc, min(BLOCK, wanted(rpc) - start))
                for rpc in self._rpcs
                if rpc.path.endswith(NODE_WIDE) == node_wide
                for start in range(0, wanted(rpc), BLOCK)
            ]
            self._chance.shuffle(made)
            return made

        shared = iter(blocks(False))
        await asyncio.gather(*(self._lane(shared) for _ in range(LANES)))
        await self._lane(iter(blocks(True)))

    async def _lane(self, blocks: Iterator[tuple[Rpc, int]]) -> None:
        for rpc, count in blocks:
            messages = iter([self._message(rpc) for _ in range(count)])
            send, width = (self._streams, OPEN_STREAMS) if rpc.method.client_streaming else (self._calls, OPEN_CALLS)
            await asyncio.gather(*(send(rpc, messages) for _ in range(width)))
            if rpc.path.endswith(NODE_WIDE):
                await self._undo_node()
            await self._good_call()

    def _message(self, rpc: Rpc) -> tuple[bytes, bool]:
        """A message, and whether a parser takes it."""
        raw = self._messages.make(rpc)
        accepted = rpc.accepts(raw)
        self.report.messages[rpc.path] += 1
        self.report.accepted[rpc.path] += accepted
        return raw, accepted

    async def _calls(self, rpc: Rpc, messages: Iterator[tuple[bytes, bool]]) -> None:
        """One call for each message."""
        method = getattr(self._channel, rpc.kind)(rpc.path)
        metadata = _metadata(rpc)
        for raw, accepted in messages:
            call = method(raw, timeout=SHORT.get(rpc.method.name, DEADLINE_SECONDS), metadata=metadata)
            if rpc.method.server_streaming:
                await self._judge(rpc, raw, accepted, self._listened(call))
            else:
                await self._judge(rpc, raw, accepted, call)

    async def _listened(self, call: Any) -> None:
        """Hears a stream of answers until it ends or has nothing to say."""
        try:
            for _ in range(20):
                if await asyncio.wait_for(call.read(), QUIET_SECONDS) is grpc.aio.EOF:
                    return
        except TimeoutError:
            pass
        finally:
            call.cancel()

    async def _streams(self, rpc: Rpc, messages: Iterator[tuple[bytes, bool]]) -> None:
        """Streams of a few messages each: closed by us and heard to the end, or left in the middle."""
        chance = self._chance
        while batch := [message for message, _ in zip(messages, range(chance.randint(1, 8)), strict=False)]:
            # One that no parser takes ends the stream: it comes last.
            batch.sort(key=lambda message: not message[1])
            call = getattr(self._channel, rpc.kind)(rpc.path)(timeout=DEADLINE_SECONDS, metadata=_metadata(rpc))
            self.report.streams += 1
            cancel = chance.random() < 0.3
            raw = b"".join(raw for raw, _ in batch)
            await self._judge(rpc, raw, all(accepted for _, accepted in batch), self._talked(rpc, call, batch, cancel))

    async def _talked(self, rpc: Rpc, call: Any, batch: Sequence[tuple[bytes, bool]], cancel: bool) -> None:
        reads = rpc.method.server_streaming and self._chance.random() < 0.7
        try:
            for raw, _ in batch:
                await call.write(raw)
                if reads:
                    try:
                        await asyncio.wait_for(asyncio.shield(reading := asyncio.ensure_future(call.read())), 0.001)
                    except TimeoutError:
                        reads = False  # it is still being read: two reads at a time are not allowed
                        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
                        if cancel:
                            return
                        await call.done_writing()
                        self.report.half_closed += 1
                        await reading
                        return await self._to_the_end(rpc, call)
            if cancel:
                return
            await call.done_writing()
            self.report.half_closed += 1
            await self._to_the_end(rpc, call)
        except asyncio.InvalidStateError:  # it was ended by the other side while we wrote
            await call.code()
            if call.done() and not call.cancelled():
                await self._to_the_end(rpc, call)
        finally:
            call.cancel()

    async def _to_the_end(self, rpc: Rpc, call: Any) -> None:
        """What a stream still has to say after we have said all: it must end by itself."""
        if not rpc.method.server_streaming:
            await call
            return
        while await call.read() is not grpc.aio.EOF:
            pass

    async def _judge(self, rpc: Rpc, raw: bytes, accepted: bool, answer: Awaitable[Any]) -> None:
        began = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            await answer
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if error.details() == WRITE_FAILED:
                self.report.statuses.setdefault(rpc.path, Counter())[TOO_LATE] += 1
                return
            self._judge_error(rpc, raw, accepted, error, time.monotonic() - began)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            code = grpc.StatusCode.CANCELLED
        self.report.statuses.setdefault(rpc.path, Counter())[code.name] += 1

    def _judge_error(self, rpc: Rpc, raw: bytes, accepted: bool, error: grpc.aio.AioRpcError, seconds: float) -> None:
        code, said = error.code(), error.details()
        what = f"{rpc.path} {code.name} {said!r} after {seconds:.2f} s for {_shown(rpc, raw)}"
        if code in WRONG:
            self.report.findings.append(what)
        elif any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ()) or code is grpc.StatusCode.CANCELLED:
            pass
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED and seconds > 0.9 * DEADLINE_SECONDS:
            self.report.findings.append(f"hangs: {what}")
        elif rpc.path.startswith(OURS) and code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            self.report.findings.append(f"has no name: {what}")
        if code is grpc.StatusCode.UNAVAILABLE and self._up.process is not None and self._up.process.poll() is not None:
            raise RuntimeError(f"the platform ended: {what}\n{self._up.tail()}")

    async def _good_call(self) -> None:
        """A call as anybody makes it, with the answer it must have."""
        texts = [f"good {self._chance.random()}" for _ in range(self._chance.randint(1, 3))]
        request = inference_pb2.EmbedRequest(model=GUARD, texts=texts)
        try:
            answer = await self._inference.Embed(request, timeout=DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            self.report.findings.append(f"a good call ended with {error.code().name} {error.details()}")
            return
        self.report.good_calls += 1
        for text, row in zip(texts, answer.embeddings, strict=True):
            wanted = vector(0, text, len(row.values))
            if max(abs(a - b) for a, b in zip(row.values, wanted, strict=True)) > 1e-6:
                self.report.findings.append(f"a good call was answered with another vector for {text!r}")

    # Afterwards.

    async def _undo_node(self) -> None:
        """The node as it was: not cordoned, its settings its own, nothing pinned but what we pinned."""
        await self._lifecycle.UncordonNode(lifecycle_pb2.UncordonNodeRequest(), timeout=30)
        mask = {"paths": ["budgets", "policy", "idle_ttl", "load_concurrency"]}
        await self._lifecycle.UpdateNode(lifecycle_pb2.UpdateNodeRequest(update_mask=mask), timeout=30)
        page = await self._lifecycle.ListResidencies(lifecycle_pb2.ListResidenciesRequest(page_size=1000), timeout=30)
        for residency in page.residencies:
            if f"models/{GUARD}/" in residency.model_version:
                continue
            plain = lifecycle_pb2.Residency(model_version=residency.model_version, max_replicas=1)
            mask = {"paths": ["pinned", "keep_alive", "min_replicas", "max_replicas", "preload"]}
            request = lifecycle_pb2.UpdateResidencyRequest(residency=plain, update_mask=mask)
            await _if_there(self._lifecycle.UpdateResidency(request, timeout=30))

    async def _settled(self) -> dict[str, int]:
        """Bytes of each process once all that messages set going has ended."""
        await self._undo_node()
        await self._end_jobs()
        async with asyncio.timeout(SETTLE_SECONDS):
            while True:
                page = await self._lifecycle.ListReplicas(lifecycle_pb2.ListReplicasRequest(page_size=1000), timeout=30)
                others = {one.model_version for one in page.replicas if f"models/{GUARD}/" not in one.model_version}
                if not others:
                    break
                for version in others:
                    request = lifecycle_pb2.UnloadModelRequest(model=version, force=True, wait=True)
                    await _if_there(self._lifecycle.UnloadModel(request, timeout=30))
        await self._good_call()
        (guard,) = (await self._lifecycle.ListReplicas(lifecycle_pb2.ListReplicasRequest(), timeout=30)).replicas
        self._guard_pid = guard.pid
        return self._bytes()

    def _bytes(self) -> dict[str, int]:
        # The worker is another process after each drain, with the same in it.
        roles = {self._up.pid: "host", self._guard_pid: f"worker of {GUARD}"}
        pids = platform_pids(os.fsencode(self._up.data_dir)) | {self._guard_pid}
        return {roles.get(pid) or _name(pid): anonymous_bytes(pid) for pid in pids}

    async def _end_jobs(self) -> None:
        states = ("PENDING", "QUEUED", "RUNNING", "CANCELLING")
        request = inference_pb2.ListInferenceJobsRequest(page_size=1000, states=[f"JOB_STATE_{one}" for one in states])
        async with asyncio.timeout(SETTLE_SECONDS):
            while jobs := (await self._inference.ListInferenceJobs(request, timeout=30)).jobs:
                for job in jobs:
                    cancel = inference_pb2.CancelInferenceJobRequest(name=job.name)
                    await _if_there(self._inference.CancelInferenceJob(cancel, timeout=30))

    async def _look(self, rests: bool) -> dict[str, int]:
        """Bytes of each process that has settled, the least of a while when it `rests`."""
        least = await self._settled()
        until = time.monotonic() + REST_SECONDS * rests
        while time.monotonic() < until:
            await asyncio.sleep(1.0)
            now = self._bytes()
            least = {name: min(count, now[name]) for name, count in least.items() if name in now}
        self.report.readings.append((self.report.messages.total(), least["host"]))
        return least

    async def _compare(self, before: Mapping[str, int], rests: bool) -> None:
        """Memory now against before, of each process that was there and is; asked again until it is back."""
        until = time.monotonic() + SETTLE_SECONDS
        after = await self._look(rests)
        while True:
            self.report.memory = {name: (before[name], after[name]) for name in sorted(before.keys() & after.keys())}
            if not self.report.grown() or time.monotonic() > until:
                return
            await asyncio.sleep(1.0)
            after = await self._settled()


def answered(up: Up) -> Counter[str]:
    """Calls by status, from the platform's metrics."""
    found: Counter[str] = Counter()
    for sample, count in up.scrape().items():
        if sample.startswith("modelmora_requests_total{"):
            found[sample.partition('code="')[2].partition('"')[0]] += int(count)
    return found


def _metadata(rpc: Rpc) -> tuple[tuple[str, str], ...]:
    if not rpc.path.startswith("/tei."):
        return ()
    return (("x-model-id", MODEL_OF.get(rpc.path.split("/")[1].rpartition(".")[2], "fuzz/echo")),)


def _shown(rpc: Rpc, raw: bytes) -> str:
    try:
        return " ".join(str(rpc.request.FromString(raw)).split())[:400]
    except DecodeError:
        return raw[:100].hex()


def _name(pid: int) -> str:
    """Its name and command, without the folders of this machine."""
    return re.sub(r"/\S*/", "", f"{name_of(pid)} {command_of(pid)}")


async def _if_there(call: Awaitable[Any]) -> None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() in WRONG:
            raise


def fuzz(
    folder: Path,
    per_rpc: int,
    *,
    warm_up: int,
    seed: int,
    only: str = "",
    others: float = 1.0,
    slack: float = SLACK,
    readings: int = 0,
) -> Report:
    """A platform of its own in `folder`, fuzzed. `slack`: by which share memory may have grown. `readings`: how often
    memory is looked at while it rests, after the warm-up."""
    (folder / "folder").mkdir(parents=True)
    settings = {
        "REGISTRY_OFFLINE": "true",
        "REGISTRY_MODEL_ROOTS": f'["{folder / "folder"}"]',
        "REGISTRY_EXPORT_ROOTS": f'["{folder / "folder"}"]',
        "LIFECYCLE_MEMORY_BUDGET_BYTES": str(300 * MIB),
        "LIFECYCLE_MINIMUM_RESIDENCY_SECONDS": "0",
    }
    with Up(folder / "data", settings=settings) as up:

        async def run() -> Report:
            made = Fuzz(up, seed, others, slack)
            await made.run(per_rpc, warm_up, only, readings)
            return made.report

        return asyncio.run(run())


def evidence(report: Report) -> str:
    """The page for docs/evidence."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    total, accepted = report.messages.total(), report.accepted.total()
    lines = [
        "# Fuzz of every RPC",
        "",
        f"Commit {commit.stdout.strip()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, seed {report.seed}, "
        f"{report.seconds:.0f} s on {os.cpu_count()} cores. `python -m bench.fuzz` made it.",
        "",
        f"{total} messages to {report.rpcs} RPCs, at least {min(report.messages.values())} to each; {accepted} of them "
        f"({accepted / total:.0%}) were such that the parser takes them. {report.streams} streams, "
        f"{report.half_closed} closed by the client and heard to their end. {report.good_calls} good calls in between, "
        "each answered with the right vectors.",
        "",
        "Wrong: " + ("; ".join(report.wrong()) or "nothing") + ".",
        "",
        f"Memory was looked at after {report.warm_up} messages to each RPC, and at the end.",
        "",
        "| process | MiB before | after |",
        "|---|---|---|",
        *(f"| {name[:70].strip()} | {a / MIB:.1f} | {b / MIB:.1f} |" for name, (a, b) in report.memory.items()),
        "",
        "The host after so many messages, in MiB: "
        + ", ".join(f"{messages} {count / MIB:.1f}" for messages, count in report.readings)
        + ".",
        "",
        "By the platform's own count (`modelmora_requests_total`, good calls and questions included) it answered "
        + ", ".join(f"{code} {n}" for code, n in report.answered.most_common())
        + ".",
        "",
        f"*{TOO_LATE}*: the server had ended a stream, for a message before, while the client still wrote. grpc.aio "
        f"then says INTERNAL, `{WRITE_FAILED}`, of itself; no server has sent that.",
        "",
        "| RPC | messages | taken by the parser | answers |",
        "|---|---|---|---|",
        *(
            f"| {path[1:]} | {count} | {report.accepted[path]} | "
            + ", ".join(f"{code} {n}" for code, n in report.statuses.get(path, Counter()).most_common())
            + " |"
            for path, count in sorted(report.messages.items())
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-rpc", type=int, default=1000, help="messages for each RPC")
    parser.add_argument("--warm-up", type=int, default=200, help="of these, before memory is looked at")
    parser.add_argument("--readings", type=int, default=0, help="looks at memory at rest, 35 s each, after the warm-up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="RPCs whose path has this")
    parser.add_argument("--evidence", type=Path, help="folder for the page")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mm-fuzz-") as folder:
        report = fuzz(
            Path(folder),
            given.per_rpc,
            warm_up=given.warm_up,
            seed=given.seed,
            only=given.only,
            readings=given.readings,
        )
    page = evidence(report)
    print(page)
    if given.evidence is not None:
        given.evidence.mkdir(parents=True, exist_ok=True)
        (given.evidence / f"fuzz-{datetime.now(UTC):%Y%m%d-%H%M}.md").write_text(page)
    for one in report.wrong():
        print("WRONG", one, file=sys.stderr)
    return 1 if report.wrong() else 0


if __name__ == "__main__":
    sys.exit(main())
