"""The artifact store under imports, deletions and sweeps at once, killed in the middle again and again."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from modelmora_registry.artifacts import Artifacts, Progress
from modelmora_registry.domain import LocalSource, ModelSource
from modelmora_registry.sources import Sources

TESTS = str(Path(__file__).resolve().parents[1])
CONTENTS = 12
SHORT, LONG = 4, 40

WORK = """
import asyncio, json, random, sys
from pathlib import Path
from modelmora_registry.artifacts import Artifacts, Progress
from modelmora_registry.domain import LocalSource, ModelSource
from modelmora_registry.sources import Sources

async def main(root, roots, seed):
    chance = random.Random(int(seed))
    store = Artifacts(Path(root), Sources(model_roots=[Path(roots)]), concurrency=4)
    kept, count = {}, 0

    async def bring(worker):
        nonlocal count
        while True:
            folder = chance.choice(sorted(Path(roots).iterdir()))
            count += 1
            uid = f"{seed}-{worker}-{count}"
            plan = await store.plan(ModelSource(local=LocalSource(path=str(folder))))
            fetched = await store.fetch(uid, plan, {}, Progress())
            kept[uid] = [file.sha256 for file in fetched.artifact.files]
            print("kept", uid, folder.name, flush=True)

    async def drop():
        while True:
            await asyncio.sleep(0)
            if len(kept) > 6:
                uid = chance.choice(sorted(kept))
                digests = kept.pop(uid)
                print("dropped", uid, flush=True)
                await store.discard(uid, chance.choice([digests, None]))
            await store.drop_unused_blobs()

    await asyncio.gather(*(bring(worker) for worker in range(3)), drop())

asyncio.run(main(*sys.argv[1:]))
"""


def folders(roots: Path) -> None:
    """Overlapping sets of the same few contents."""
    chance = random.Random(7)
    for number in range(8):
        folder = roots / f"m{number}"
        folder.mkdir(parents=True)
        for content in chance.sample(range(CONTENTS), 5):
            (folder / f"{content}.json").write_bytes(bytes([content]) * (20_000 + content))


@pytest.mark.parametrize("rounds", [SHORT, pytest.param(LONG, marks=pytest.mark.long)])
async def test_no_kill_and_no_sweep_takes_a_byte_from_a_version(tmp_path: Path, rounds: int) -> None:
    root, roots = tmp_path / "artifacts", tmp_path / "roots"
    folders(roots)
    kept: dict[str, str] = {}
    for seed in range(rounds):
        told = work_and_kill(root, roots, seed)
        for word, uid, *folder in (line.split() for line in told if line.endswith("\n")):
            if word == "kept":
                kept[uid] = folder[0]
            else:
                kept.pop(uid)
        store = Artifacts(root, Sources(model_roots=[roots]))
        for uid in await store.present() - kept.keys():
            await store.discard(uid, ())  # What the sweep of a start does with what no row knows.
        await store.drop_unused_blobs()
        for uid, name in kept.items():
            assert content(root / "snapshots" / uid) == content(roots / name), uid
        blobs = [path for path in (root / "blobs").rglob("*") if path.is_file()]
        needed = {digest for name in kept.values() for digest in digests(roots / name)}
        assert {path.name for path in blobs} == needed
        assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in blobs} == {
            digest: digest for digest in needed
        }
        assert await store.used_bytes() == sum(path.stat().st_size for path in blobs)
        again = await store.fetch(
            f"again-{seed}", await store.plan(ModelSource(local=LocalSource(path=str(roots / "m0")))), {}, Progress()
        )
        assert content(Path(again.artifact.path)) == content(roots / "m0")
        await store.discard(f"again-{seed}")
        store.close()
    assert kept


def work_and_kill(root: Path, roots: Path, seed: int) -> list[str]:
    """What the worker said until it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(root), str(roots), str(seed)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(random.Random(seed).randint(10, 60))]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.readlines()
    assert process.wait(30) == -signal.SIGKILL
    return told


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def digests(folder: Path) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
