"""Loading: first answer and memory of workers forked and spawned, swaps of two models in a place for one, and what a
loaded model feels of another one's loading.

Forked and spawned workers are started in turn by the platform's own launcher, one at a time. Swaps go through the whole
platform: each call is for the model that is not there, and ends with its vector.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.worker.v1 import worker_pb2
from modelmora_lifecycle.launcher import LaunchSpec, LocalLauncher, LocalWorker
from modelmora_runtime.worker_channel import WorkerChannel

from bench import workload
from bench.script import Script
from bench.statistics import percentile
from bench.up import Up

ENGINE = "sentence_transformers"
TEXT = "a first text of ten words or so for the model"
MIB = 1024 * 1024
WORKERS = 4
OPENVINO = common_pb2.EngineProfile(backend="openvino", precision="bf16")
SPINNER = "while True: pass"


@dataclass
class Figures:
    """Seconds, bytes and ratios, one of each round."""

    first_answer: Mapping[str, list[float]] = field(default_factory=lambda: {"forked": [], "spawned": []})
    openvino: Mapping[str, list[float]] = field(default_factory=lambda: {"read": [], "compiled": [], "written": []})
    """First answers of openvino/bf16 by how its load found the model: compiled in its cache, only written out there, or
    not yet."""
    cold_server_seconds: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)
    swap: list[float] = field(default_factory=list)
    p99_alone: list[float] = field(default_factory=list)
    """Of a loaded model, one core busy elsewhere."""
    p99_beside_loads: list[float] = field(default_factory=list)
    loads_beside: int = 0


def lifecycle_bench(folder: Path, rounds: int, seconds: float, say: Callable[[str], None]) -> Figures:
    figures = Figures()
    asyncio.run(_workers(folder, max(rounds, WORKERS), figures))
    say(f"lifecycle: first answers {dict(figures.first_answer)}, memory {figures.memory}")
    asyncio.run(_openvino(folder, max(rounds, WORKERS), figures))
    say(f"lifecycle: first answers of openvino/bf16 {dict(figures.openvino)}")
    _swaps(folder, rounds, figures)
    say(f"lifecycle: swaps {figures.swap}")
    _beside_loads(folder, rounds, seconds, figures)
    say(f"lifecycle: p99 alone {figures.p99_alone}, beside {figures.loads_beside} loads {figures.p99_beside_loads}")
    return figures


async def _workers(folder: Path, rounds: int, figures: Figures) -> None:
    with tempfile.TemporaryDirectory(prefix="modelmora-bench-") as temporary:
        launchers = {
            mode: LocalLauncher(Path(temporary) / mode, Path(temporary) / "logs") for mode in ("forked", "spawned")
        }
        start = time.perf_counter()
        await launchers["forked"].warm("torch")
        figures.cold_server_seconds = time.perf_counter() - start
        kept: list[tuple[LocalWorker, WorkerChannel]] = []
        for number in range(-1, rounds):
            for mode in ("forked", "spawned") if number % 2 else ("spawned", "forked"):
                if mode == "forked":
                    await _spare(launchers[mode])
                start = time.perf_counter()
                worker, control = await _first_answer(launchers[mode], folder, "torch" if mode == "forked" else "")
                assert worker.start_mode == mode
                if number >= 0:
                    figures.first_answer[mode].append(time.perf_counter() - start)
                if mode == "spawned" and number >= 0 and len(kept) < WORKERS:
                    kept.append((worker, control))
                else:
                    worker.kill()
                    await worker.exited
        # Each kind alone: what they have in common would count half.
        await launchers["forked"].close()
        figures.memory["spawned"] = sum(_proportional(worker.pid) for worker, _ in kept)
        await launchers["spawned"].close()
        launcher = LocalLauncher(Path(temporary) / "again", Path(temporary) / "logs")
        kept = [await _first_answer(launcher, folder, "torch") for _ in range(WORKERS)]
        ((_, server),) = launcher.fork_servers()
        await _spare(launcher)
        ((_, spare),) = launcher.spares()
        workers = [worker.pid for worker, _ in kept]
        figures.memory["forked"] = sum(_proportional(pid) for pid in (server, spare, *workers))
        await launcher.close()


async def _openvino(folder: Path, rounds: int, figures: Figures) -> None:
    """Workers forked in turn, with the compiled model in the cache, and with that removed before."""
    if importlib.util.find_spec("openvino") is None:
        return
    with tempfile.TemporaryDirectory(prefix="modelmora-bench-") as temporary:
        cache = Path(temporary) / "cache"
        launcher = LocalLauncher(Path(temporary) / "run", Path(temporary) / "logs")
        await launcher.warm("torch")
        for number in range(rounds):
            for found in ("compiled", "read") if number else ("written", "compiled", "read"):
                if found == "compiled":
                    for path in cache.rglob("*.compiled"):
                        path.unlink()
                await _spare(launcher)
                start = time.perf_counter()
                worker, _ = await _first_answer(launcher, folder, "torch", OPENVINO, str(cache))
                figures.openvino[found].append(time.perf_counter() - start)
                worker.kill()
                await worker.exited
        await launcher.close()


async def _spare(launcher: LocalLauncher) -> None:
    """Returns once there is one, as there is half a second after each load: what is loaded then, takes it."""
    async with asyncio.timeout(180):
        while not launcher.spares(practised=True):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _first_answer(
    launcher: LocalLauncher,
    folder: Path,
    family: str,
    profile: common_pb2.EngineProfile | None = None,
    cache_path: str = "",
) -> tuple[LocalWorker, WorkerChannel]:
    worker = await launcher.launch(LaunchSpec("bench", ENGINE, "bench", family=family), timeout_seconds=120)
    control = await WorkerChannel.connect(worker.endpoint, worker.control_key)
    load = worker_pb2.LoadRequest(
        engine=ENGINE, artifact_path=str(folder), engine_profile=profile, cache_path=cache_path
    )
    await control.load(load, timeout_seconds=120)
    request = worker_pb2.InferRequest(
        task_type=common_pb2.TASK_TYPE_TXT2EMBED, texts=[worker_pb2.TextEntry(text=TEXT, truncate=True)]
    )
    replies = [reply async for reply in control.infer(request)]
    assert len(replies[0].rows) == 4 * 384
    return worker, control


def _swaps(folder: Path, rounds: int, figures: Figures) -> None:
    settings = {
        "REGISTRY_MODEL_ROOTS": json.dumps([str(folder)]),
        # The fork server takes 430 MiB, each model is declared to take 400, the weights of both are one file of 90.
        "LIFECYCLE_MEMORY_BUDGET_BYTES": str(1100 * MIB),
        "LIFECYCLE_MINIMUM_RESIDENCY_SECONDS": "0",
    }
    with (
        tempfile.TemporaryDirectory(prefix="modelmora-bench-") as temporary,
        Up(Path(temporary) / "data", settings=settings) as up,
    ):
        names = ["bench/one", "bench/two"]
        for name in names:
            up.add_model(name, engine=ENGINE, folder=folder, memory_bytes=400 * MIB)
        for number in range(-2, rounds):
            request = inference_pb2.EmbedRequest(model=names[number % 2], texts=[TEXT])
            start = time.perf_counter()
            answer = up.inference.Embed(request, timeout=120)
            took = time.perf_counter() - start
            assert struct.unpack("<384f", answer.vectors.data) if answer.vectors.data else answer.vectors
            loaded = [r.model_version for r in up.lifecycle.ListReplicas(_loaded(), timeout=10).replicas]
            assert len(loaded) == 1, f"two models in a place for one: {loaded}"
            if number >= 0:
                figures.swap.append(took)
            time.sleep(0.7)  # a model may stay as long as its load took


def _beside_loads(folder: Path, rounds: int, seconds: float, figures: Figures) -> None:
    settings = {"REGISTRY_MODEL_ROOTS": json.dumps([str(folder)])}
    texts = workload.passages(200)
    with (
        tempfile.TemporaryDirectory(prefix="modelmora-bench-") as temporary,
        Up(Path(temporary) / "data", settings=settings) as up,
    ):
        for name in ("bench/loaded", "bench/other"):
            up.add_model(name, engine=ENGINE, folder=folder)
            up.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model=name, wait=True), timeout=120)
        load = Script("-m", "bench.load", up.target, "bench/loaded")
        load.ask(texts=texts)
        for number in range(-1, rounds):
            for loading in (False, True) if number % 2 else (True, False):
                latencies, loads = _spell(up, load, seconds, number, loading)
                if number >= 0:
                    (figures.p99_beside_loads if loading else figures.p99_alone).append(percentile(latencies, 99))
                    figures.loads_beside += loads
        load.close()


def _spell(up: Up, load: Script, seconds: float, number: int, loading: bool) -> tuple[list[float], int]:
    """Latencies of one client, with one core busy elsewhere or with another model that loads again and again."""
    spinner = None if loading else subprocess.Popen([sys.executable, "-c", SPINNER])
    loads = 0
    try:
        load.begin(mode="clients", clients=1, seconds=seconds, seed=number + 1)
        end = time.monotonic() + seconds
        while loading and time.monotonic() < end:
            unload = lifecycle_pb2.UnloadModelRequest(model="bench/other", wait=True)
            up.lifecycle.UnloadModel(unload, timeout=60)
            up.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model="bench/other", wait=True), timeout=60)
            loads += 1
        return load.end()["latencies"], loads
    finally:
        if spinner is not None:
            spinner.kill()
            spinner.wait()


def _loaded() -> lifecycle_pb2.ListReplicasRequest:
    return lifecycle_pb2.ListReplicasRequest(filter='state = "loaded"')


def _proportional(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
