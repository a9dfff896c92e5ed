"""Reflinks, on a file system that has them: XFS in a file, which only root can mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.registry_rig import safetensors, sentence_model
from modelmora_registry.artifacts import Artifacts, Fetched, Progress
from modelmora_registry.domain import LocalSource, ModelSource
from modelmora_registry.sources import Sources

pytestmark = pytest.mark.long

WEIGHTS = "model.safetensors"
WEIGHTS_BYTES = 64 * 2**20
SMALL_BYTES = 8 * 2**20
"""What an import may take that copies nothing: the other files, folders, the file system's own."""


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A folder on XFS."""
    mkfs = shutil.which("mkfs.xfs", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    if mkfs is None or os.geteuid() != 0:
        pytest.skip("needs mkfs.xfs, and root to mount what it makes")
    image, folder = tmp_path / "image", tmp_path / "xfs"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(512 * 2**20)
    subprocess.run([mkfs, "-q", "-m", "reflink=1", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, folder], check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"it cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def used_bytes(folder: Path) -> int:
    os.sync()
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


async def fetch(store: Artifacts, folder: Path, uid: str) -> Fetched:
    plan = await store.check_room(await store.plan(ModelSource(local=LocalSource(path=str(folder)))))
    return await store.fetch(uid, plan, {}, Progress())


async def test_a_folder_of_the_same_file_system_is_cloned_and_stays_what_it_was(xfs: Path) -> None:
    folder = sentence_model(xfs / "roots" / "mini")
    (folder / WEIGHTS).write_bytes(safetensors(WEIGHTS_BYTES))
    store = Artifacts(xfs / "artifacts", Sources(model_roots=[xfs / "roots"]))
    before = used_bytes(xfs)
    fetched = await fetch(store, folder, "u")
    assert used_bytes(xfs) - before < SMALL_BYTES
    kept = Path(fetched.artifact.path) / WEIGHTS
    assert kept.stat().st_ino != (folder / WEIGHTS).stat().st_ino
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(WEIGHTS_BYTES // 2)
        file.write(b"x" * 100)
    assert kept.read_bytes() == safetensors(WEIGHTS_BYTES)
    store.close()


async def test_without_hard_links_the_next_version_is_a_clone_of_the_first(xfs: Path, tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "roots" / "mini")
    (folder / WEIGHTS).write_bytes(safetensors(WEIGHTS_BYTES))
    with tempfile.TemporaryDirectory(dir=tmp_path) as elsewhere:
        (xfs / "artifacts").mkdir()
        (xfs / "artifacts" / "blobs").symlink_to(elsewhere)  # No hard link leads to another file system.
        store = Artifacts(xfs / "artifacts", Sources(model_roots=[tmp_path / "roots"]))
        first = await fetch(store, folder, "u1")
        before = used_bytes(xfs)
        plan = await store.plan(ModelSource(local=LocalSource(path=str(folder))))
        promised = {file.path: file.sha256 for file in first.artifact.files}
        second = await store.fetch("u2", plan, promised, Progress())
        assert used_bytes(xfs) - before < SMALL_BYTES
        paths = [Path(each.artifact.path) / WEIGHTS for each in (first, second)]
        assert {path.stat().st_nlink for path in paths} == {1}
        assert paths[0].read_bytes() == paths[1].read_bytes()
        store.close()
