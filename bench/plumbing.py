"""Plumbing: what the platform itself costs a call, with the echo engine and no delay.

Beside the plain figures: what does a call cost with 10,000 registered models instead of one, and while 10,000 requests
wait in the queue? Both states are measured in turn, in short slices, and what counts is the ratio within each pair of
slices: in processor time (`cost_ratio`), which hardly depends on what else the machine does, and in wall time
(`wall_ratio`), which does.

Machines differ and change from hour to hour by as much as two: the plain figures stand beside those of `floor.py`, the
least that these libraries can do, in turn with ours.
"""

from __future__ import annotations

import asyncio
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora_runtime.postgres import EmbeddedPostgres
from modelmora_runtime.process import descendants
from modelmora_worker.engines.echo import vector

from bench import workload
from bench.registry import fill, make_database
from bench.script import ROOT, Script
from bench.statistics import bootstrap, percentile
from bench.up import Up

MANY_MODELS = 10_000
DEEP = 10_000
"""Requests that wait."""
BULK = 2_000
"""Of them in one call."""
SLOW_SECONDS = 600.0
SLICES = 5
"""Of a round, where two states are compared: more neighbours in time instead of longer ones."""
DIMENSIONS = 384
TEXTS = 200
MODEL = "bench/echo"
EMBED = "/modelmora.inference.v1.InferenceService/Embed"

TARGETS = {
    "overhead_p50_ms": "≤ 0.9",
    "overhead_p99_ms": "≤ 3",
    "calls_per_second": "≥ 2800",
    "floor_p50_ms": "",
    "floor_calls_per_second": "",
    "overhead_p50_to_floor": "≤ 1.29",
    "calls_per_second_to_floor": "≥ 0.78",
    "host_cpu_seconds_per_10000_calls": "",
    "worker_cpu_seconds_per_10000_calls": "",
    "entries_per_batch": "",
    "calls_per_second_with_1_model": "",
    "calls_per_second_with_10000_models": "",
    "p50_ms_with_1_model": "",
    "p50_ms_with_10000_models": "",
    "cost_ratio_10000_models_to_1": "≤ 1.10",
    "wall_ratio_10000_models_to_1": "≤ 1.10",
    "calls_per_second_with_empty_queue": "",
    "calls_per_second_with_10000_deep_queue": "",
    "p50_ms_with_empty_queue": "",
    "p50_ms_with_10000_deep_queue": "",
    "cost_ratio_10000_deep_queue_to_empty": "≤ 1.10",
    "wall_ratio_10000_deep_queue_to_empty": "≤ 1.10",
}
"""The figures in the order of the page, and what is asked of them. To the floor: what was asked where it took 0.70 ms
and answered 3600 calls a second."""


def plumbing_bench(rounds: int, seconds: float, say: Callable[[str], None]) -> dict[str, list[float]]:
    """One value a round for each of TARGETS, SLICES of those that compare. A cost is the CPU time of host and workers
    for a call."""
    return asyncio.run(_bench(rounds, seconds, say))


async def _bench(rounds: int, seconds: float, say: Callable[[str], None]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in TARGETS}
    with tempfile.TemporaryDirectory(prefix="mm-bench-") as temporary:
        folder = Path(temporary)
        async with (
            EmbeddedPostgres(folder / "pg", folder / "run") as postgres,
            _served(postgres.url, folder / "few", 0) as few,
            _served(postgres.url, folder / "many", MANY_MODELS) as many,
        ):
            floor = await asyncio.to_thread(_Floor, few)
            try:
                await asyncio.to_thread(_measure, few, many, floor, rounds, seconds, found)
            finally:
                floor.close()
    for name, values in found.items():
        say(f"plumbing {name}: {bootstrap(values)}")
    return found


def _measure(
    few: _Served, many: _Served, floor: _Floor, rounds: int, seconds: float, found: dict[str, list[float]]
) -> None:
    for number in range(-1, rounds):  # the one before the first warms up
        sides = {}
        for clients in (1, 32):
            for side in (few, floor) if number % 2 else (floor, few):
                sides[side, clients] = side.calls(clients, seconds)
        one, crowd = sides[few, 1], sides[few, 32]
        if number >= 0:
            least, most = sides[floor, 1]["p50_ms"], sides[floor, 32]["calls_per_second"]
            found["floor_p50_ms"].append(least)
            found["floor_calls_per_second"].append(most)
            found["overhead_p50_to_floor"].append(one["overhead_p50_ms"] / least)
            found["calls_per_second_to_floor"].append(crowd["calls_per_second"] / most)
            for name in ("overhead_p50_ms", "overhead_p99_ms"):
                found[name].append(one[name])
            for name in ("calls_per_second", "entries_per_batch"):
                found[name].append(crowd[name])
            for name in ("host", "worker"):
                found[f"{name}_cpu_seconds_per_10000_calls"].append(crowd[name])
    nothing: Callable[[], AbstractContextManager[None]] = nullcontext
    _pairs(found, rounds, seconds, ("1_model", few, nothing), ("10000_models", many, nothing))
    _pairs(found, rounds, seconds, ("empty_queue", few, nothing), ("10000_deep_queue", few, few.deep_queue))


def _pairs(
    found: dict[str, list[float]],
    rounds: int,
    seconds: float,
    *sides: tuple[str, _Served, Callable[[], AbstractContextManager[None]]],
) -> None:
    """Both sides in turn; who goes first changes from pair to pair."""
    first, second = (name for name, _, _ in sides)
    pair = f"{second}_to_{first.removesuffix('_model').removesuffix('_queue')}"
    for number in range(-SLICES, rounds * SLICES):  # those before the first warm up
        cost, speed = {}, {}
        for name, served, state in sides if number % 2 else sides[::-1]:
            with state():
                figures = served.calls(32, seconds / SLICES)
            cost[name], speed[name] = figures["host"] + figures["worker"], figures["calls_per_second"]
            if number >= 0:
                found[f"calls_per_second_with_{name}"].append(figures["calls_per_second"])
                found[f"p50_ms_with_{name}"].append(figures["p50_ms"])
        if number >= 0:
            found[f"cost_ratio_{pair}"].append(cost[second] / cost[first])
            found[f"wall_ratio_{pair}"].append(speed[first] / speed[second])


@asynccontextmanager
async def _served(server_url: str, data_dir: Path, models: int) -> AsyncIterator[_Served]:
    """A platform with so many models beside the two that are called."""
    url = await make_database(server_url, data_dir.name)
    up = Up(data_dir, settings={"DATABASE_URL": url})
    await asyncio.to_thread(up.start)
    try:
        if models:
            await fill(url, models)
        served = await asyncio.to_thread(_Served, up)
        yield served
        served.load.close()
    finally:
        await asyncio.to_thread(up.stop)


class _Served:
    """A platform with an echo model in memory, and one so slow that all its calls wait."""

    def __init__(self, up: Up) -> None:
        self.up = up
        up.add_model(MODEL, engine="echo", options={"dimensions": DIMENSIONS})
        up.add_model("bench/slow", engine="echo", options={"dimensions": DIMENSIONS, "delay_seconds": SLOW_SECONDS})
        for model in (MODEL, "bench/slow"):
            up.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model=model, wait=True, pin=True), timeout=60)
        self.load = _load(up.target)

    def calls(self, clients: int, seconds: float) -> Mapping[str, float]:
        """So many clients for a while; `host` and `worker` are CPU seconds for 10,000 calls."""
        counted, cpu = self.up.scrape(), self._cpu()
        answer = self.load.ask(mode="clients", clients=clients, seconds=seconds, seed=clients)
        cpu_after, counted_after = self._cpu(), self.up.scrape()
        if answer["wrong"]:
            raise RuntimeError(f"{answer['wrong']} of {answer['count']} vectors are wrong")
        overhead = [a - b for a, b in zip(answer["latencies"], answer["engine_seconds"], strict=True)]
        entries, batches = (
            counted_after[name] - counted[name]
            for name in ("modelmora_inference_batch_entries_sum", "modelmora_inference_batches_total")
        )
        return {
            "overhead_p50_ms": percentile(overhead, 50) * 1000,
            "overhead_p99_ms": percentile(overhead, 99) * 1000,
            "p50_ms": percentile(answer["latencies"], 50) * 1000,
            "calls_per_second": answer["count"] / answer["seconds"],
            "entries_per_batch": entries / batches,
            **{name: (cpu_after[name] - cpu[name]) / answer["count"] * 10_000 for name in cpu},
        }

    def _cpu(self) -> dict[str, float]:
        """CPU seconds so far of the host, and of its workers together."""
        workers = [pid for pid in descendants(self.up.pid) if b"modelmora_worker" in _command(pid)]
        return {"host": _cpu_seconds(self.up.pid), "worker": sum(map(_cpu_seconds, workers))}

    @contextmanager
    def deep_queue(self) -> Iterator[None]:
        """While it lasts, LOW requests wait behind a model that does not answer."""
        request = inference_pb2.EmbedRequest(
            model="bench/slow", texts=["a text that waits"] * BULK, priority=common_pb2.PRIORITY_LOW
        )
        waiting = [self.up.inference.Embed.future(request, timeout=SLOW_SECONDS) for _ in range(DEEP // BULK + 1)]
        try:
            # All of them: what is still being taken in would be charged to the calls that are measured.
            self._until(len(waiting) * BULK)
            yield
        finally:
            for call in waiting:
                call.cancel()
            self._until(0)

    def _until(self, wanted: int) -> None:
        """Waits until so many requests wait for the slow model, in the queue or on its worker."""
        until = time.monotonic() + 30
        while True:
            answer = self.up.inference.GetQueue(inference_pb2.GetQueueRequest(model="bench/slow"), timeout=10)
            depth = sum(queue.in_flight + sum(level.entries for level in queue.levels) for queue in answer.queues)
            if depth == wanted:
                return
            if time.monotonic() > until:
                raise RuntimeError(f"{depth} requests wait")
            time.sleep(0.02)


class _Floor:
    """`floor.py` with the answers that a platform gave, under the same load."""

    def __init__(self, served: _Served) -> None:
        answers = {}
        for text in workload.passages(TEXTS):
            request = inference_pb2.EmbedRequest(
                model=MODEL, texts=[text], encoding=inference_pb2.VECTOR_ENCODING_BYTES
            )
            answer = served.up.inference.Embed(request, timeout=10)
            answers[request.SerializeToString().hex()] = answer.SerializeToString().hex()
        self._script = Script("-P", str(ROOT / "bench" / "floor.py"))
        self._load = _load(self._script.ask(method=EMBED, answers=answers)["target"])

    def calls(self, clients: int, seconds: float) -> Mapping[str, float]:
        answer = self._load.ask(mode="clients", clients=clients, seconds=seconds, seed=clients)
        if answer["wrong"]:
            raise RuntimeError(f"{answer['wrong']} of {answer['count']} vectors are wrong")
        p50_ms = percentile(answer["latencies"], 50) * 1000
        return {"p50_ms": p50_ms, "calls_per_second": answer["count"] / answer["seconds"]}

    def close(self) -> None:
        self._load.close()
        self._script.close()


def _load(target: str) -> Script:
    load = Script("-m", "bench.load", target, MODEL)
    texts = workload.passages(TEXTS)
    load.ask(texts=texts, exact={index: _row(text).hex() for index, text in enumerate(texts)})
    return load


def _row(text: str) -> bytes:
    """What the echo engine answers."""
    return struct.pack(f"<{DIMENSIONS}f", *vector(0, text, DIMENSIONS))


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _cpu_seconds(pid: int) -> float:
    """Of all threads, to the nanosecond; `/proc` counts in hundredths of a second. The clock is the one that
    clock_getcpuclockid(3) names."""
    return time.clock_gettime((~pid << 3) | 2)
