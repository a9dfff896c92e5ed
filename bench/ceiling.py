"""The ceiling: sentence-transformers in process, behind a greedy micro-batcher. Imports nothing of ours.

It is the same engine set the same way as ours: what waits is sorted by length and cut where padding and the fixed cost
of one more pass balance, rows are returned pass by pass, and OpenMP and oneDNN have the same environment.

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

MOST_IN_A_BATCH = 256
PASS_TOKENS = 28


class MicroBatcher:
    """Whatever waits when the model is free is the next batch."""

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
            tokens = await loop.run_in_executor(self._thread, tokenise, self._model, [text for text, _ in batch])
            for places in passes([len(one["input_ids"]) for one in tokens]):
                group = [tokens[place] for place in places]
                rows = await loop.run_in_executor(self._thread, forward, self._model, group)
                self.batches += 1
                self.entries += len(places)
                for place, row in zip(places, rows, strict=True):
                    if not batch[place][1].done():
                        batch[place][1].set_result(row)


def tokenise(model: Any, texts: list[str]) -> list[dict[str, Any]]:
    found = model.tokenizer(texts, truncation=True, max_length=model.max_seq_length, return_attention_mask=False)
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def passes(lengths: list[int]) -> list[list[int]]:
    """Places sorted by length, cut where padding plus a fixed cost of PASS_TOKENS for each pass is least."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    cost, begin = [0.0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        price, start = min((cost[start] + (end - start) * longest + PASS_TOKENS, start) for start in range(end))
        cost.append(price)
        begin.append(start)
    groups, end = [], len(order)
    while end:
        groups.append(order[begin[end] : end])
        end = begin[end]
    return groups[::-1]


def forward(model: Any, tokens: list[dict[str, Any]]) -> Any:
    features = dict(model.tokenizer.pad(tokens, padding=True, return_tensors="pt"), modality="text")
    with torch.inference_mode():
        vectors = model(features)["sentence_embedding"].float()
        return torch.nn.functional.normalize(vectors, dim=-1).numpy()


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
        tokens = tokenise(model, share)
        for places in passes([len(one["input_ids"]) for one in tokens]):
            forward(model, [tokens[place] for place in places])
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
