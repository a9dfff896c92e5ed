"""Thousands of busy streams, and a good call beside them.

One process opens so many StreamEmbed streams against a platform with the echo engine and keeps some calls of priority
LOW open in each, all the time; another makes one unary HIGH call after the other, each with a deadline. Every call of a
stream must be answered once, under its own id, with the vector of its own text, or with an error that says that it may
be sent again; every HIGH call must be answered rightly within its deadline. Then the streams close their side: what is
open is answered first, and nothing may be left of them.

    python -m bench.streams --streams 5000 --seconds 60        writes docs/evidence/streams-….md
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import threading
import time
import uuid
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.inference.v1 import inference_pb2_grpc
from modelmora_worker.engines.echo import vector

from bench.evidence import arguments, conclude, page, provenance
from bench.script import Script
from bench.statistics import percentile
from bench.up import Up
from bench.waits import eventually

MODEL = "streams/echo"
DIMENSIONS = 8
OPEN_CALLS = 2
"""In each stream, all the time."""
STREAMS_PER_CONNECTION = 100
TEXTS = 256
DEADLINE_SECONDS = 60.0
"""Of a HIGH call: what a call has that names none."""
PAUSE_SECONDS = 0.05
"""Between two of them."""
PATIENCE_SECONDS = 600.0
"""For streams to open, and for what is open to be answered at the end."""
AGAIN = ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
BYTES = "modelmora_bytes_in_flight"
OPEN_STREAMS = 'modelmora_requests_in_flight{method="modelmora.inference.v1.InferenceService/StreamEmbed"}'


@dataclass
class Report:
    streams: int
    seconds: float
    answered: int = 0
    """Calls of streams, rightly."""
    refused: Counter[str] = field(default_factory=Counter)
    """The same with an error that says that they may be sent again."""
    open_seconds: float = 0.0
    """From the first stream until all are open and have been answered once; then all are busy. (gRPC takes in one
    stream a turn of the event loop, so beside thousands that are busy it would take long to open more.)"""
    wrong_things: list[str] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    """Seconds of HIGH calls, with nothing else and beside the streams."""

    def wrong(self) -> list[str]:
        """Everything that must not be; empty when all was well."""
        found = self.wrong_things[:10]
        if not self.beside:
            found.append("no HIGH call was made beside the streams")
        if self.answered < self.streams:
            found.append(f"{self.answered} calls of {self.streams} streams were answered: they were not busy")
        return found


class Streams:
    """The side of the streams, in a process of its own."""

    def __init__(self, target: str, model: str) -> None:
        self._target = target
        self._model = model
        self._texts = [f"text {number} of {uuid.uuid4().hex}" for number in range(TEXTS)]
        self._truth = [array("f", vector(0, text, DIMENSIONS)) for text in self._texts]
        self._all_open, self._over = asyncio.Event(), asyncio.Event()
        self._answered = 0
        self._refused: Counter[str] = Counter()
        self._wrong: list[str] = []

    async def run(self, count: int, seconds: float) -> None:
        """Says when all streams are busy, and at the end what became of their calls."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        channels = [
            grpc.aio.insecure_channel(self._target, options=options) for _ in range(-(-count // STREAMS_PER_CONNECTION))
        ]
        stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]  # type: ignore[no-untyped-call]
        began = time.perf_counter()
        opened = [asyncio.Event() for _ in range(count)]
        tasks = [
            asyncio.create_task(self._stream(number, stubs[number % len(stubs)], opened[number]))
            for number in range(count)
        ]
        async with asyncio.timeout(PATIENCE_SECONDS):
            for one in opened:
                await one.wait()
        self._all_open.set()
        print(json.dumps({"open_seconds": time.perf_counter() - began}), flush=True)
        await asyncio.sleep(seconds)
        self._over.set()
        _, hanging = await asyncio.wait(tasks, timeout=PATIENCE_SECONDS)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if hanging:
            self._wrong.append(f"{len(hanging)} streams did not end")
        self._wrong += [repr(error) for task in tasks if not task.cancelled() and (error := task.exception())]
        for channel in channels:
            await channel.close()
        told = {"answered": self._answered, "refused": self._refused, "wrong": self._wrong[:100]}
        print(json.dumps(told), flush=True)

    async def _stream(self, number: int, stub: Any, opened: asyncio.Event) -> None:
        chance = random.Random(number)
        names = itertools.count()
        waits: dict[str, int] = {}
        call = stub.StreamEmbed()
        try:
            while waits or not self._over.is_set():
                while len(waits) < OPEN_CALLS and not self._over.is_set() and (opened.is_set() or not waits):
                    name, which = f"{number}.{next(names)}", chance.randrange(TEXTS)
                    request = pb.EmbedRequest(
                        model=self._model,
                        texts=[self._texts[which]],
                        encoding=pb.VECTOR_ENCODING_BYTES,
                        priority=common_pb2.PRIORITY_LOW,
                    )
                    waits[name] = which
                    await call.write(pb.StreamEmbedRequest(id=name, request=request))
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    self._wrong.append(f"stream {number} ended with {len(waits)} calls open")
                    return
                self._check(number, answer, waits)
                if not waits and not opened.is_set():
                    opened.set()
                    await self._all_open.wait()
            await call.done_writing()
            if (left := await call.read()) is not grpc.aio.EOF:
                self._wrong.append(f"stream {number} was answered {left.id} twice")
        except grpc.aio.AioRpcError as error:
            opened.set()
            words = f"{error.code().name}: {error.details()}"
            self._wrong.append(f"stream {number} ended with {len(waits)} calls open, {words}")
        finally:
            call.cancel()

    def _check(self, number: int, answer: pb.StreamEmbedResponse, waits: dict[str, int]) -> None:
        which = waits.pop(answer.id, None)
        if which is None:
            self._wrong.append(f"stream {number} was answered {answer.id}, which it did not ask")
        elif answer.WhichOneof("outcome") == "error":
            if answer.error.status in AGAIN:
                self._refused[answer.error.reason] += 1
            else:
                self._wrong.append(f"stream {number}: {answer.error.reason}: {answer.error.message}")
        elif not _is(answer.response, self._truth[which]):
            self._wrong.append(f"stream {number} got the vector of another text")
        else:
            self._answered += 1


def streams(data_dir: Path, count: int, seconds: float) -> Report:
    """One platform of its own, so many streams for so long once all are busy."""
    report = Report(count, seconds)
    with Up(data_dir) as up:
        model = up.add_model(MODEL, engine="echo", options={"dimensions": DIMENSIONS}, memory_bytes=64 * 2**20)
        up.inference.Embed(pb.EmbedRequest(model=model, texts=["warm up"]), timeout=PATIENCE_SECONDS)
        _call_for(up, model, min(5.0, seconds), report.alone, report.wrong_things)
        before_bytes = up.scrape()[BYTES]  # the platform's own streams are there all the time
        load = Script("-m", "bench.streams", "--load", up.target, model)
        try:
            load.begin(streams=count, seconds=seconds)
            report.open_seconds = load.end()["open_seconds"]
            _call_for(up, model, seconds, report.beside, report.wrong_things)
            told = load.end()
        finally:
            load.close()
        report.answered, report.refused = told["answered"], Counter(told["refused"])
        report.wrong_things += told["wrong"]
        try:
            eventually(lambda: not _left(up, model, before_bytes), 30.0, "nothing is left")
        except AssertionError:
            report.wrong_things.append(f"left behind: {_left(up, model, before_bytes)}")
    return report


def _call_for(up: Up, model: str, seconds: float, took: list[float], wrong: list[str]) -> None:
    """One HIGH call after the other, a pause between two."""
    over = threading.Event()
    clock = threading.Timer(seconds, over.set)
    clock.start()
    while not over.wait(PAUSE_SECONDS):
        text = uuid.uuid4().hex
        request = pb.EmbedRequest(
            model=model, texts=[text], encoding=pb.VECTOR_ENCODING_BYTES, priority=common_pb2.PRIORITY_HIGH
        )
        began = time.perf_counter()
        try:
            answer = up.inference.Embed(request, timeout=DEADLINE_SECONDS)
        except grpc.RpcError as error:
            wrong.append(f"HIGH: {error.code().name}: {error.details()}")
        else:
            if not _is(answer, array("f", vector(0, text, DIMENSIONS))):
                wrong.append("HIGH: the vector of another text")
        took.append(time.perf_counter() - began)
    clock.join()


def _left(up: Up, model: str, before_bytes: float) -> dict[str, float]:
    """What is there of the streams when all have ended."""
    (queue,) = up.inference.GetQueue(pb.GetQueueRequest(model=model), timeout=10).queues
    found = up.scrape()
    left = {
        "waiting": sum(level.entries for level in queue.levels),
        "on workers": queue.in_flight + queue.abandoned,
        "bytes": max(0.0, found[BYTES] - before_bytes),
        "streams": found[OPEN_STREAMS],
    }
    return {name: figure for name, figure in left.items() if figure}


def _is(answer: pb.EmbedResponse, truth: array[float]) -> bool:
    row = array("f", answer.vectors.data)
    return len(row) == len(truth) and max(abs(a - b) for a, b in zip(row, truth, strict=True)) < 1e-6


def evidence(report: Report) -> str:
    """The page of a run."""
    wrong = report.wrong()
    rows: dict[str, object] = {
        **provenance(),
        "streams": f"{report.streams}, {OPEN_CALLS} calls open in each, {STREAMS_PER_CONNECTION} on a connection",
        "all open after": f"{report.open_seconds:.1f} s",
        "duration": f"{report.seconds:.0f} s",
        "calls of streams answered": report.answered,
        "of these refused and sent again": sum(report.refused.values()),
    }
    for name, took in (("alone", report.alone), ("beside the streams", report.beside)):
        figures = ", ".join(f"p{percent} {percentile(took, percent) * 1000:.1f} ms" for percent in (50, 99))
        rows[f"HIGH calls {name}"] = f"{len(took)}: {figures}, longest {max(took, default=0.0) * 1000:.1f} ms"
    rows["deadline of a HIGH call"] = f"{DEADLINE_SECONDS:g} s"
    rows["wrong"] = len(wrong)
    about = "\n".join((__doc__ or "").splitlines()[2:7])
    table = page("Busy streams and a good call beside them", about, rows)
    return "\n".join([table, *(f"- {words}\n" for words in wrong)])


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--streams", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--load", nargs=2, metavar=("TARGET", "MODEL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        command = json.loads(sys.stdin.readline())
        asyncio.run(Streams(*given.load).run(command["streams"], command["seconds"]))
        return 0
    with tempfile.TemporaryDirectory(prefix="mm-streams-") as folder:
        report = streams(Path(folder) / "site", given.streams, given.seconds)
    return conclude("streams", evidence(report), given.evidence, report.wrong())


if __name__ == "__main__":
    sys.exit(main())
