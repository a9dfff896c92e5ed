"""The load generator: asyncio clients against a platform, in a process of its own, one text or one bulk a call.

It shares the cores with what it measures, so it does little beside the calls: a fast event loop, requests made before.

Arguments: target, model. Speaks like `ceiling.py`: a command a line, a line of JSON for each. `{"mode": "groups"}` runs
several groups of clients at once, which differ in texts, priority and tenant, and tells of every call of theirs.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
import sys
import time
from collections.abc import Coroutine
from typing import Any

import grpc
import uvloop
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc

BULK = 256
SIZE = 128 * 1024 * 1024
OPTIONS = [("grpc.max_receive_message_length", SIZE), ("grpc.max_send_message_length", SIZE)]


class Load:
    """Workload, channel and what was measured."""

    def __init__(self, target: str, model: str) -> None:
        self._model = model
        self._target = target
        self._texts: list[str] = []
        self._truth: dict[int, list[float]] = {}
        self._exact: dict[int, bytes] = {}
        self._singles: list[inference_pb2.EmbedRequest] = []
        """The request of each text, made once."""

    def set(self, texts: list[str], truth: dict[str, list[float]], exact: dict[str, str]) -> None:
        """`truth` are rows that an answer must come close to, `exact` (hexadecimal) those that it must be."""
        self._texts = texts
        self._truth = _rows(truth)
        self._exact = {int(index): bytes.fromhex(row) for index, row in exact.items()}
        self._singles = [self._request([index]) for index in range(len(texts))]

    def _request(self, chosen: list[int]) -> inference_pb2.EmbedRequest:
        return inference_pb2.EmbedRequest(
            model=self._model,
            texts=[self._texts[i] for i in chosen],
            encoding=inference_pb2.VECTOR_ENCODING_BYTES,
        )

    async def run(self, clients: int, seconds: float, seed: int, texts_per_call: int = 1) -> dict[str, Any]:
        latencies: list[float] = []
        engine_seconds: list[float] = []
        wrong = 0
        done = 0
        async with grpc.aio.insecure_channel(self._target, options=OPTIONS) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            await channel.channel_ready()
            start = time.perf_counter()

            async def client(number: int) -> None:
                nonlocal wrong, done
                chance = random.Random(seed * 1000 + number)
                while time.perf_counter() - start < seconds:
                    first = chance.randrange(len(self._texts))
                    chosen = [(first + i) % len(self._texts) for i in range(texts_per_call)]
                    request = self._singles[first] if texts_per_call == 1 else self._request(chosen)
                    asked = time.perf_counter()
                    answer = await stub.Embed(request, timeout=120)
                    latencies.append(time.perf_counter() - asked)
                    compute = answer.timings.compute
                    engine_seconds.append(compute.seconds + compute.nanos / 1e9)
                    done += len(chosen)
                    wrong += _wrong(answer, chosen, self._truth, self._exact)

            await asyncio.gather(*(client(number) for number in range(clients)))
            elapsed = time.perf_counter() - start
        return {
            "count": done,
            "seconds": elapsed,
            "latencies": latencies,
            "engine_seconds": engine_seconds,
            "wrong": wrong,
        }

    async def run_groups(self, groups: list[dict[str, Any]], seconds: float, seed: int) -> dict[str, Any]:
        """Groups of `clients`, each with `texts_per_call` of `texts` with their `truth` (default: the workload),
        `priority` and `tenant`.

        Of each group: its calls as [seconds since the start when asked, latency, compute seconds, tokens]. Compute
        seconds are the worker's, of the whole micro-batches that a call was in.
        """
        calls: list[list[list[float]]] = [[] for _ in groups]
        wrong = 0
        async with grpc.aio.insecure_channel(self._target, options=OPTIONS) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            await channel.channel_ready()
            start = time.perf_counter()

            async def client(group: dict[str, Any], found: list[list[float]], number: int) -> None:
                nonlocal wrong
                chance = random.Random(seed * 1000 + number)
                texts, truth = self._texts, self._truth
                if "texts" in group:
                    texts, truth = group["texts"], _rows(group.get("truth"))
                metadata = (("x-modelmora-subtenant", group["tenant"]),) if group.get("tenant") else ()
                priority = common_pb2.Priority.Value("PRIORITY_" + group.get("priority", "MEDIUM"))
                while (asked := time.perf_counter() - start) < seconds:
                    first = chance.randrange(len(texts))
                    chosen = [(first + i) % len(texts) for i in range(group.get("texts_per_call", 1))]
                    request = inference_pb2.EmbedRequest(
                        model=self._model,
                        texts=[texts[i] for i in chosen],
                        priority=priority,
                        encoding=inference_pb2.VECTOR_ENCODING_BYTES,
                    )
                    answer = await stub.Embed(request, timeout=600, metadata=metadata)
                    compute = answer.timings.compute
                    latency = time.perf_counter() - start - asked
                    tokens = answer.usage.input_tokens
                    found.append([asked, latency, compute.seconds + compute.nanos / 1e9, tokens])
                    wrong += _wrong(answer, chosen, truth, {})

            tasks = [
                asyncio.ensure_future(client(group, calls[place], 10_000 * place + number))
                for place, group in enumerate(groups)
                for number in range(group["clients"])
            ]
            # What is still on its way when the time is over is of no interest: a bulk may take long.
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.result()
        return {"calls": calls, "wrong": wrong}


def _rows(truth: dict[str, list[float]] | None) -> dict[int, list[float]]:
    return {int(index): row for index, row in (truth or {}).items()}


def _wrong(
    answer: inference_pb2.EmbedResponse,
    chosen: list[int],
    truth: dict[int, list[float]],
    exact: dict[int, bytes],
) -> int:
    """How many of the rows whose truth is known are not the vector of their own text."""
    width = len(answer.vectors.data) // max(1, len(chosen))
    wrong = 0
    for place, index in enumerate(chosen):
        if index in exact:
            wrong += answer.vectors.data[place * width : (place + 1) * width] != exact[index]
        known = truth.get(index)
        if known is not None:
            row = struct.unpack(f"<{width // 4}f", answer.vectors.data[place * width : (place + 1) * width])
            wrong += sum(a * b for a, b in zip(row, known, strict=True)) < 0.9999
    return wrong


def run(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def main(target: str, model: str) -> None:
    load = Load(target, model)
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        if "texts" in command:
            load.set(command["texts"], command.get("truth", {}), command.get("exact", {}))
        elif command["mode"] == "groups":
            answer = run(load.run_groups(command["groups"], command["seconds"], command["seed"]))
        else:
            per_call = BULK if command["mode"] == "bulk" else 1
            answer = run(load.run(command["clients"], command["seconds"], command["seed"], per_call))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
