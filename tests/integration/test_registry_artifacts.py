"""The artifact store by itself, on a real disk and without a database."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.registry_rig import sentence_model, until
from modelmora.errors import ChecksumMismatch, StorageFull, UnsafeFile
from modelmora_registry import artifacts as store_file
from modelmora_registry.artifacts import Artifacts, Fetched, Progress
from modelmora_registry.domain import LocalSource, ModelSource
from modelmora_registry.sources import Plan, PlannedFile, Sources

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sentence_model(tmp_path / "roots" / "mini")


@pytest.fixture
def store(tmp_path: Path, folder: Path) -> Iterator[Artifacts]:
    made = Artifacts(tmp_path / "artifacts", Sources(model_roots=[tmp_path / "roots"]))
    yield made
    made.close()


def source(folder: Path) -> ModelSource:
    return ModelSource(local=LocalSource(path=str(folder)))


async def fetch(store: Artifacts, folder: Path, uid: str = "u", **checksums: str) -> Fetched:
    return await store.fetch(uid, await store.plan(source(folder)), checksums, Progress())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_a_snapshot_has_the_bytes_and_their_digests(store: Artifacts, folder: Path) -> None:
    fetched = await fetch(store, folder)
    assert content(Path(fetched.artifact.path)) == content(folder)
    for file in fetched.artifact.files:
        expected = (folder / file.path).read_bytes()
        assert file.sha256 == f"sha256:{hashlib.sha256(expected).hexdigest()}"
        assert file.size_bytes == len(expected)


async def test_a_file_that_differs_from_its_checksum_is_not_stored(store: Artifacts, folder: Path) -> None:
    plan = await store.plan(source(folder))
    with pytest.raises(ChecksumMismatch) as raised:
        await store.fetch("u", plan, {WEIGHTS: "sha256:" + "0" * 64}, Progress())
    assert raised.value.metadata["file"] == WEIGHTS
    assert not store.snapshot_path("u").exists()


async def test_a_file_that_grows_or_shrinks_meanwhile_is_not_stored(store: Artifacts, folder: Path) -> None:
    for size in (50_000, 150_000):
        plan = await store.plan(source(folder))
        os.truncate(folder / WEIGHTS, size)
        with pytest.raises(ChecksumMismatch):
            await store.fetch("u", plan, {}, Progress())
        await store.discard("u")


async def test_a_file_swapped_for_a_link_after_the_plan_is_refused(
    store: Artifacts, folder: Path, tmp_path: Path
) -> None:
    plan = await store.plan(source(folder))
    _swap_for_link(folder, tmp_path)
    lead = [file for file in plan.files if file.path == WEIGHTS]
    with pytest.raises(UnsafeFile):
        await store.fetch("u", Plan(plan.source, tuple(lead)), {}, Progress())


def _swap_for_link(folder: Path, outside: Path) -> None:
    """A folder on the way becomes a link that leads out; the last part alone is guarded by O_NOFOLLOW."""
    (outside / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    folder.rename(folder.with_name("moved"))
    folder.symlink_to(outside)


async def test_an_attempt_that_was_cut_short_is_completed(store: Artifacts, folder: Path) -> None:
    plan = await store.plan(source(folder))
    done = store.snapshot_path("u").parent.parent / "staging" / "u"
    (done / "files").mkdir(parents=True)
    (done / "files" / "config.json").write_bytes((folder / "config.json").read_bytes())
    (done / "files" / "modules.json").write_bytes(b"torn")
    (done / "part").write_bytes(b"half a fi")
    fetched = await store.fetch("u", plan, {}, Progress())
    assert content(Path(fetched.artifact.path)) == content(folder)
    assert not done.exists()


async def test_a_snapshot_that_was_never_recorded_is_verified_again(store: Artifacts, folder: Path) -> None:
    first = await fetch(store, folder)
    tampered = Path(first.artifact.path) / "config.json"
    tampered.unlink()
    tampered.write_bytes(b"{}")
    again = await fetch(store, folder)
    assert again.artifact == first.artifact
    assert content(Path(again.artifact.path)) == content(folder)


async def test_a_blob_is_kept_while_a_version_needs_it(store: Artifacts, folder: Path) -> None:
    first, second = await fetch(store, folder, "u1"), await fetch(store, folder, "u2")
    digests = {file.sha256 for file in first.artifact.files}
    await store.discard("u1", digests)
    assert await store.drop_unused_blobs() == 0
    assert content(Path(second.artifact.path)) == content(folder)
    third = await fetch(store, folder, "u3")
    inodes = {(Path(each.artifact.path) / WEIGHTS).stat().st_ino for each in (second, third)}
    assert len(inodes) == 1
    assert await store.present() == {"u2", "u3"}
    await store.discard("u3", digests)
    await store.discard("u2", digests)
    assert [path for path in folder.parent.parent.joinpath("artifacts").rglob("*") if path.is_file()] == []


async def test_a_blob_that_rotted_is_replaced_by_the_next_import_of_its_content(store: Artifacts, folder: Path) -> None:
    first = await fetch(store, folder, "u1")
    rotten = Path(first.artifact.path) / WEIGHTS
    rotten.chmod(0o644)
    rotten.write_bytes(b"v" * 100_000)
    second = await fetch(store, folder, "u2")
    assert content(Path(second.artifact.path)) == content(folder)
    third = await fetch(store, folder, "u3")
    inodes = {(Path(each.artifact.path) / WEIGHTS).stat().st_ino for each in (second, third)}
    assert len(inodes) == 1


async def test_dropping_blobs_never_races_an_import(store: Artifacts, folder: Path) -> None:
    async def sweep(until_done: asyncio.Event) -> None:
        while not until_done.is_set():
            await store.drop_unused_blobs()

    done = asyncio.Event()
    sweeping = asyncio.create_task(sweep(done))
    fetched = await asyncio.gather(*(fetch(store, folder, f"u{number}") for number in range(12)))
    done.set()
    await sweeping
    for each in fetched:
        assert content(Path(each.artifact.path)) == content(folder)


async def test_cancelling_waits_until_the_thread_has_let_go(store: Artifacts, folder: Path) -> None:
    pipe = folder.parent / "slow"
    os.mkfifo(pipe)
    plan = await store.plan(source(folder))
    progress = Progress()

    def blocked(*arguments: Any) -> Any:
        progress.check()
        progress.current_file = "here"
        progress.cancelled.wait(10)
        progress.check()

    store._fetch = blocked  # type: ignore[method-assign]
    task = asyncio.create_task(store.fetch("u", plan, {}, progress))
    await asyncio.to_thread(until, lambda: progress.current_file == "here")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert progress.cancelled.is_set()


async def test_space_promised_to_one_import_is_not_promised_to_another(
    store: Artifacts, folder: Path, tmp_path: Path
) -> None:
    found = os.statvfs(tmp_path)
    free_bytes = found.f_bavail * found.f_frsize - store_file.HEADROOM_BYTES
    share = int(free_bytes * 0.6)
    half = Plan(source(folder), (PlannedFile(WEIGHTS, share),))
    await store.check_room(half)
    other = Progress()
    store._reserved["other"] = (share, other)
    with pytest.raises(StorageFull):
        await store.check_room(half)
    other.written_bytes = share  # What it has written is no longer free anyway.
    await store.check_room(half)


async def test_a_planned_file_outside_the_roots_is_not_read(store: Artifacts, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    plan = Plan(source(folder), (PlannedFile("secret.json", 2, origin=str(tmp_path / "secret.json")),))
    with pytest.raises(UnsafeFile):
        await store.fetch("u", plan, {}, Progress())
