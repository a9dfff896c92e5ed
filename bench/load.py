"""The load generator: asyncio clients against a platform, in a process of its own, one text or one bulk a call.

Arguments: target, model. Speaks like `ceiling.py`: a command a line, a line of JSON for each.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
import sys
import time
from typing import Any

import grpc
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc

BULK = 256


class Load:
    """Workload, channel and what was measured."""

    def __init__(self, target: str, model: str) -> None:
        self._model = model
        self._target = target
        self._texts: list[str] = []
        self._truth: dict[int, list[float]] = {}

    def set(self, texts: list[str], truth: dict[str, list[float]]) -> None:
        self._texts = texts
        self._truth = {int(index): row for index, row in truth.items()}

    async def run(self, clients: int, seconds: float, seed: int, texts_per_call: int = 1) -> dict[str, Any]:
        size = 128 * 1024 * 1024
        options = [("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size)]
        latencies: list[float] = []
        engine_seconds: list[float] = []
        wrong = 0
        done = 0
        async with grpc.aio.insecure_channel(self._target, options=options) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            await channel.channel_ready()
            start = time.perf_counter()

            async def client(number: int) -> None:
                nonlocal wrong, done
                chance = random.Random(seed * 1000 + number)
                while time.perf_counter() - start < seconds:
                    first = chance.randrange(len(self._texts))
                    chosen = [(first + i) % len(self._texts) for i in range(texts_per_call)]
                    request = inference_pb2.EmbedRequest(
                        model=self._model,
                        texts=[self._texts[i] for i in chosen],
                        encoding=inference_pb2.VECTOR_ENCODING_BYTES,
                    )
                    asked = time.perf_counter()
                    answer = await stub.Embed(request, timeout=120)
                    latencies.append(time.perf_counter() - asked)
                    compute = answer.timings.compute
                    engine_seconds.append(compute.seconds + compute.nanos / 1e9)
                    done += len(chosen)
                    wrong += self._wrong(answer, chosen)

            await asyncio.gather(*(client(number) for number in range(clients)))
            elapsed = time.perf_counter() - start
        return {
            "count": done,
            "seconds": elapsed,
            "latencies": latencies,
            "engine_seconds": engine_seconds,
            "wrong": wrong,
        }

    def _wrong(self, answer: inference_pb2.EmbedResponse, chosen: list[int]) -> int:
        """How many of the rows whose truth is known are not the vector of their own text."""
        width = len(answer.vectors.data) // max(1, len(chosen))
        wrong = 0
        for place, index in enumerate(chosen):
            truth = self._truth.get(index)
            if truth is not None:
                row = struct.unpack(f"<{width // 4}f", answer.vectors.data[place * width : (place + 1) * width])
                wrong += sum(a * b for a, b in zip(row, truth, strict=True)) < 0.9999
        return wrong


def main(target: str, model: str) -> None:
    load = Load(target, model)
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        if "texts" in command:
            load.set(command["texts"], command.get("truth", {}))
        else:
            per_call = BULK if command["mode"] == "bulk" else 1
            answer = asyncio.run(load.run(command["clients"], command["seconds"], command["seed"], per_call))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
