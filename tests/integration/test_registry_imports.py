"""Imports of local folders: what becomes of the files, and what is left when it goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from integration.registry_rig import Rig, local, modes_below, registry, safetensors, sentence_model
from modelmora.errors import (
    InvalidArgument,
    SourceNotFound,
    StorageFull,
    UnsafeFile,
    VersionExists,
)
from modelmora.registry.v1 import registry_pb2 as pb

WEIGHTS = "model.safetensors"


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    folder = tmp_path / "roots"
    folder.mkdir()
    return folder


@pytest.fixture
async def rig(database_url: str, data_dir: Path, roots: Path) -> AsyncIterator[Rig]:
    async with registry(database_url, data_dir, model_roots=(roots,)) as rig:
        yield rig


async def test_a_folder_becomes_a_ready_version_with_what_its_files_tell(rig: Rig, roots: Path) -> None:
    folder = sentence_model(roots / "mini", tokens=200, width=24)
    version = await rig.import_model(source=local(folder), version="v1.0.0")
    assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
    assert version.name == "models/local/mini/versions/v1.0.0"
    assert version.engine == "sentence_transformers"
    assert (version.limits.max_input_tokens, version.limits.embedding_dimensions) == (200, 24)
    assert not version.HasField("progress")
    assert set(modes_below(version.artifact.path).values()) == {0o444}
    assert version.artifact.size_bytes == sum(file.size_bytes for file in version.artifact.files)
    originals = {path.stat().st_ino for path in folder.rglob("*")}
    stored = {path.stat().st_ino for path in rig.artifacts.rglob("*")}
    assert not originals & stored, "a user's file was linked"


async def test_two_versions_share_the_files_they_have_in_common(rig: Rig, roots: Path) -> None:
    folder = sentence_model(roots / "mini")
    first = await rig.import_model(source=local(folder), version="1.0.0")
    (folder / "README.md").write_text("new")
    second = await rig.import_model(source=local(folder), version="2.0.0")
    assert first.artifact.digest != second.artifact.digest
    paths = [Path(version.artifact.path) / WEIGHTS for version in (first, second)]
    assert len({path.stat().st_ino for path in paths}) == 1
    await rig.call(rig.registry.DeleteModelVersion, pb.DeleteModelVersionRequest(name=first.name))
    assert paths[1].stat().st_size == 100_000
    delete = pb.DeleteModelVersionRequest(name=second.name, force=True)
    await rig.call(rig.registry.DeleteModelVersion, delete)
    assert rig.files() == []


async def test_the_digest_is_that_of_the_files_wherever_they_come_from(rig: Rig, roots: Path) -> None:
    shutil.copytree(sentence_model(roots / "a"), roots / "b")
    first = await rig.import_model(model_id="x/a", source=local(roots / "a"), version="1")
    second = await rig.import_model(model_id="x/b", source=local(roots / "b"), version="1")
    assert first.artifact.digest == second.artifact.digest


async def test_a_wrong_checksum_fails_the_version_and_leaves_no_file(rig: Rig, roots: Path) -> None:
    folder = sentence_model(roots / "mini")
    checksums = {WEIGHTS: "sha256:" + "0" * 64}
    version = await rig.import_model(source=local(folder), version="1.0.0", expected_checksums=checksums)
    assert version.state == pb.MODEL_VERSION_STATE_FAILED
    assert version.failure.reason == "ChecksumMismatch"
    assert WEIGHTS in version.failure.message
    assert rig.files() == []
    assert (await rig.rows("artifact_file", "alias", "used_version")) == dict.fromkeys(
        ("artifact_file", "alias", "used_version"), 0
    )
    again = await rig.import_model(source=local(folder), version="1.0.0")
    assert again.state == pb.MODEL_VERSION_STATE_READY
    with pytest.raises(VersionExists):
        await rig.import_model(source=local(folder), version="1.0.0")


async def test_a_new_model_whose_import_failed_can_be_asked_why_and_deleted_whole(rig: Rig, roots: Path) -> None:
    folder = sentence_model(roots / "mini")
    checksums = {WEIGHTS: "sha256:" + "0" * 64}
    failed = await rig.import_model(model_id="a/b", source=local(folder), version="1", expected_checksums=checksums)
    assert failed.state == pb.MODEL_VERSION_STATE_FAILED
    assert (await rig.watch(failed.name))[-1].model_version.failure == failed.failure
    model = (await rig.call(rig.registry.GetModel, pb.GetModelRequest(name="a/b"))).model
    assert (model.current_version, dict(model.aliases)) == ("", {})
    await rig.call(rig.registry.DeleteModel, pb.DeleteModelRequest(name="a/b", force=True))
    assert set((await rig.rows("model", "model_version", "used_version", "artifact_file")).values()) == {0}


async def test_a_checksum_of_a_file_that_is_not_there_is_refused(rig: Rig, roots: Path) -> None:
    folder = sentence_model(roots / "mini")
    checksums = {"none.json": "sha256:" + "0" * 64}
    await rig.refused(
        lambda: rig.import_model(source=local(folder), version="1", expected_checksums=checksums),
        SourceNotFound,
        "expected_checksums.none.json",
    )


def _outside(folder: Path) -> Path:
    return sentence_model(folder.parent.parent / "outside")


def _link_outside(folder: Path) -> Path:
    _outside(folder)
    folder.parent.joinpath("link").symlink_to(folder.parent.parent / "outside")
    return folder.parent / "link"


def _dots(folder: Path) -> Path:
    _outside(folder)
    return Path(f"{folder.parent}/../outside")


def _file_link_outside(folder: Path) -> Path:
    secret = folder.parent.parent / "secret.json"
    secret.write_text("{}")
    (sentence_model(folder) / "secret.json").symlink_to(secret)
    return folder


def _folder_link(folder: Path) -> Path:
    (sentence_model(folder) / "loop").symlink_to(folder)
    return folder


def _fifo(folder: Path) -> Path:
    os.mkfifo(sentence_model(folder) / "pipe.json")
    return folder


def _unix_socket(folder: Path) -> Path:
    here = os.getcwd()
    os.chdir(sentence_model(folder))
    try:
        socket.socket(socket.AF_UNIX).bind("s.json")
    finally:
        os.chdir(here)
    return folder


def _with(name: str | bytes, content: bytes = b"x") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = os.path.join(os.fsencode(sentence_model(folder)), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
        return folder

    return make


def _huge(folder: Path) -> Path:
    with open(sentence_model(folder) / WEIGHTS, "r+b") as file:
        file.truncate(15 * 2**40)  # Sparse: takes no room, and more than any disk here has.
    return folder


@pytest.mark.parametrize(
    ("make", "cls"),
    [
        (_outside, InvalidArgument),
        (_link_outside, InvalidArgument),
        (_dots, InvalidArgument),
        (lambda folder: folder, SourceNotFound),
        (lambda folder: folder.mkdir() or folder, SourceNotFound),
        (_file_link_outside, UnsafeFile),
        (_folder_link, UnsafeFile),
        (_fifo, UnsafeFile),
        (_unix_socket, UnsafeFile),
        (_with("sub/pytorch_model.bin"), UnsafeFile),
        (_with("sub/model.pkl"), UnsafeFile),
        (_with("sub/weights.pt"), UnsafeFile),
        (_with("nul.json"), UnsafeFile),
        (_with("a\\b.json"), UnsafeFile),
        (_with("a\nb.json"), UnsafeFile),
        (_with(b"\xff.json"), UnsafeFile),
    ],
)
async def test_unsafe_and_missing_sources_are_refused_at_once(
    rig: Rig, roots: Path, make: Callable[[Path], Path], cls: type[Any]
) -> None:
    folder = make(roots / "mini")
    await rig.refused(lambda: rig.import_model(source=local(folder), version="1"), cls, "source.local.path")


async def test_a_folder_is_taken_as_the_hub_s_would_be_and_says_what_is_left_out(rig: Rig, roots: Path) -> None:
    plain = await rig.import_model(source=local(sentence_model(roots / "plain")), version="1")
    folder = sentence_model(roots / "clone")
    spare = ["pytorch_model.bin", "train.py", ".gitattributes", "onnx/model.onnx", "1_Pooling/.hidden"]
    for path in spare:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(b"\x80\x04\x95")
    request = pb.ImportModelRequest(source=local(folder), version="1")
    made = await rig.call(rig.registry.ImportModel, request)
    assert list(made.left_out_files) == sorted(spare)
    final = await rig.final(made.model_version.name)
    assert final.state == pb.MODEL_VERSION_STATE_READY, final.failure
    assert final.artifact.digest == plain.artifact.digest


async def test_an_import_that_cannot_fit_is_refused_before_the_first_byte(rig: Rig, roots: Path) -> None:
    folder = _huge(roots / "mini")
    error = await rig.refused(lambda: rig.import_model(source=local(folder), version="1"), StorageFull)
    assert int(error.metadata["need_bytes"]) > int(error.metadata["free_bytes"])


@contextmanager
def _file_size_limit(size_bytes: int) -> Iterator[None]:
    """Every write beyond fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


async def test_a_disk_that_fills_up_during_an_import_leaves_nothing(rig: Rig, roots: Path) -> None:
    folder = sentence_model(roots / "mini")
    with _file_size_limit(50_000):
        version = await rig.import_model(source=local(folder), version="1.0.0")
    assert version.state == pb.MODEL_VERSION_STATE_FAILED
    assert version.failure.reason == "StorageFull"
    assert rig.files() == []
    assert (await rig.rows("artifact_file"))["artifact_file"] == 0
    again = await rig.import_model(source=local(folder), version="1.0.0")
    assert again.state == pb.MODEL_VERSION_STATE_READY


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("weights.dat", b"\x80\x04\x95" + b"x" * 100, "UnsafeFile"),
        ("weights.dat", b"PK\x03\x04" + b"x" * 100, "UnsafeFile"),
        ("modules.json", json.dumps([{"idx": 0, "path": "", "type": "evil.Module"}]).encode(), "UnsafeFile"),
        ("modules.json", b"{", "InvalidModelFiles"),
    ],
)
async def test_what_only_the_content_tells_fails_the_version(
    rig: Rig, roots: Path, name: str, content: bytes, reason: str
) -> None:
    folder = _with(name, content)(roots / "mini")
    version = await rig.import_model(source=local(folder), version="1")
    assert version.state == pb.MODEL_VERSION_STATE_FAILED
    assert version.failure.reason == reason, version.failure
    assert rig.files() == []


async def test_a_model_without_weights_is_refused(rig: Rig, roots: Path) -> None:
    """A READY version cannot change, so one without weights could never be loaded."""
    folder = sentence_model(roots / "mini")
    (folder / WEIGHTS).rename(folder / "1_Pooling" / WEIGHTS)
    version = await rig.import_model(source=local(folder), version="1")
    assert (version.state, version.failure.reason) == (pb.MODEL_VERSION_STATE_FAILED, "InvalidModelFiles")
    assert WEIGHTS in version.failure.message
    assert rig.files() == []
    (folder / "1_Pooling" / WEIGHTS).unlink()
    request = pb.ImportModelRequest(source=local(folder), version="2")
    error = await rig.refused(lambda: rig.call(rig.registry.ImportModel, request), SourceNotFound, "source")
    assert error.metadata["file"] == WEIGHTS


async def test_pickles_are_taken_when_a_setting_says_so(database_url: str, data_dir: Path, roots: Path) -> None:
    folder = _with("sub/pytorch_model.bin", b"\x80\x04\x95")(roots / "mini")
    async with registry(database_url, data_dir, model_roots=(roots,), allow_pickle=True) as rig:
        version = await rig.import_model(source=local(folder), version="1")
        assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
        assert "sub/pytorch_model.bin" in {file.path for file in version.artifact.files}


async def test_links_within_the_roots_are_resolved(rig: Rig, roots: Path) -> None:
    """The Hub's own cache is made of such links."""
    blobs = sentence_model(roots / "blobs")
    folder = roots / "snapshot"
    (folder / "1_Pooling").mkdir(parents=True)
    for path in blobs.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(blobs)).symlink_to(path)
    version = await rig.import_model(source=local(folder), version="1")
    assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
    assert not (Path(version.artifact.path) / WEIGHTS).is_symlink()


async def test_a_watch_ends_with_the_last_state_and_resumes_by_its_cursor(rig: Rig, roots: Path) -> None:
    folder = sentence_model(roots / "mini")
    made = await rig.call(rig.registry.ImportModel, pb.ImportModelRequest(source=local(folder), version="1"))
    assert made.model_version.state == pb.MODEL_VERSION_STATE_CREATING
    assert made.model_version.progress.total_bytes > 100_000
    answers = await rig.watch(made.model_version.name)
    revisions = [answer.model_version.revision for answer in answers]
    assert revisions == sorted(set(revisions))
    assert answers[-1].model_version.state == pb.MODEL_VERSION_STATE_READY
    assert await rig.watch(made.model_version.name, answers[-1].cursor) == []
    await rig.refused(lambda: rig.watch(made.model_version.name, "nonsense"), InvalidArgument, "cursor")


TESTS = str(Path(__file__).resolve().parents[1])
CRASH = """
import asyncio, sys, os, signal
from pathlib import Path
sys.path[:0] = [{tests!r}]
from integration.registry_rig import registry, local, until
from modelmora.registry.v1 import registry_pb2 as pb

async def main(url, data_dir, roots, folder):
    async with registry(url, Path(data_dir), model_roots=(Path(roots),)) as rig:
        request = pb.ImportModelRequest(source=local(Path(folder)), version="1")
        made = await rig.call(rig.registry.ImportModel, request)
        part = Path(data_dir) / "artifacts" / "staging" / made.model_version.uid / "part"
        await asyncio.to_thread(until, lambda: part.exists() and part.stat().st_size > 0)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_an_import_cut_short_by_a_kill_is_continued_by_the_next_start(
    database_url: str, data_dir: Path, roots: Path
) -> None:
    folder = sentence_model(roots / "mini")
    (folder / WEIGHTS).write_bytes(safetensors(96 * 2**20))
    script = CRASH.format(tests=TESTS)
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, database_url, str(data_dir), str(roots), str(folder)],
        timeout=150,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    (data_dir / "artifacts" / "staging" / "0190-leftover").mkdir()
    (data_dir / "artifacts" / "snapshots" / "0190-leftover").mkdir()
    async with registry(database_url, data_dir, model_roots=(roots,)) as rig:
        version = await rig.final("local/mini@1")
        assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
        assert sorted(path.name for path in (rig.artifacts / "snapshots").iterdir()) == [version.uid]
        assert list((rig.artifacts / "staging").iterdir()) == []


async def test_an_import_whose_source_is_gone_after_a_kill_fails_with_a_reason(
    database_url: str, data_dir: Path, roots: Path
) -> None:
    folder = sentence_model(roots / "mini")
    async with registry(database_url, data_dir, model_roots=(roots,)) as rig:
        await rig.import_model(source=local(folder), version="1")
        await rig.sql(
            "UPDATE registry.model_version SET state = 'creating', digest = NULL, size_bytes = NULL, version = '2'"
        )
        await rig.sql("DELETE FROM registry.alias")
    shutil.rmtree(folder)
    async with registry(database_url, data_dir, model_roots=(roots,)) as rig:
        version = await rig.final("local/mini@2")
        assert version.failure.reason == "SourceNotFound"
        assert rig.files() == []
