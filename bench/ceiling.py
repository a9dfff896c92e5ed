"""The ceiling: sentence-transformers in process, behind a greedy micro-batcher. Imports nothing of ours.

Reads one command a line from standard input and answers each with one line of JSON: `{"texts": […]}` sets the workload,
`{"mode": "clients", "clients": 32, "seconds": 5}` runs that many asyncio clients, each with one text at a time,
`{"mode": "bulk", "seconds": 5}` encodes in large calls. A sample of answers is checked against the text's own vector.
"""

from __future__ import annotations

import asyncio
import json
import platform
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import numpy
import torch
from sentence_transformers import SentenceTransformer

MOST_IN_A_BATCH = 32


class MicroBatcher:
    """Whatever waits when the model is free is the next batch, in order of arrival."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._waiting: list[tuple[str, asyncio.Future[Any]]] = []
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1)
        self.batches = 0
        self.entries = 0

    async def embed(self, text: str) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, answer))
        self._news.set()
        return await answer

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            batch, self._waiting = self._waiting[:MOST_IN_A_BATCH], self._waiting[MOST_IN_A_BATCH:]
            if not self._waiting:
                self._news.clear()
            texts = [text for text, _ in batch]
            rows = await loop.run_in_executor(self._thread, self._encode, texts)
            self.batches += 1
            self.entries += len(batch)
            for (_, answer), row in zip(batch, rows, strict=True):
                if not answer.done():
                    answer.set_result(row)

    def _encode(self, texts: list[str]) -> Any:
        return self._model.encode(texts, batch_size=MOST_IN_A_BATCH, normalize_embeddings=True, show_progress_bar=False)


async def clients(model: Any, texts: list[str], truth: dict[int, Any], count: int, seconds: float) -> dict[str, Any]:
    batcher = MicroBatcher(model)
    running = asyncio.create_task(batcher.run())
    chance = random.Random(count)
    latencies: list[float] = []
    wrong = 0
    start = time.perf_counter()

    async def client() -> None:
        nonlocal wrong
        while time.perf_counter() - start < seconds:
            index = chance.randrange(len(texts))
            asked = time.perf_counter()
            row = await batcher.embed(texts[index])
            latencies.append(time.perf_counter() - asked)
            if index in truth and float(row @ truth[index]) < 0.9999:
                wrong += 1

    await asyncio.gather(*(client() for _ in range(count)))
    elapsed = time.perf_counter() - start
    running.cancel()
    return {
        "count": len(latencies),
        "seconds": elapsed,
        "latencies": latencies,
        "wrong": wrong,
        "mean_batch": batcher.entries / max(1, batcher.batches),
    }


def bulk(model: Any, texts: list[str], seconds: float) -> dict[str, Any]:
    count, at, start = 0, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        share = [texts[(at + i) % len(texts)] for i in range(256)]
        at += len(share)
        model.encode(share, batch_size=MOST_IN_A_BATCH, normalize_embeddings=True, show_progress_bar=False)
        count += len(share)
    return {"count": count, "seconds": time.perf_counter() - start, "latencies": [], "wrong": 0}


def main(folder: str) -> None:
    model = SentenceTransformer(folder, device="cpu")
    texts: list[str] = []
    truth: dict[int, Any] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if "texts" in command:
            texts = command["texts"]
            sample = range(0, len(texts), max(1, len(texts) // 64))
            rows = model.encode([texts[i] for i in sample], batch_size=1, normalize_embeddings=True)
            truth = {i: numpy.asarray(row) for i, row in zip(sample, rows, strict=True)}
            answer: dict[str, Any] = {
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
                "versions": {name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
                "truth": {str(index): row.tolist() for index, row in truth.items()},
            }
        elif command["mode"] == "bulk":
            answer = bulk(model, texts, command["seconds"])
        else:
            answer = asyncio.run(clients(model, texts, truth, command["clients"], command["seconds"]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
