"""Imports from the Hub: the real client against a server that speaks its routes, and what may go wrong on the way."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from integration.hub_server import COMMIT, FakeHub, hub
from integration.registry_rig import Rig, modes_below, registry, sentence_model, until
from modelmora.errors import FailedPrecondition, IllegalTransition, SourceNotFound, SourceUnavailable, UnsafeFile
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora_registry import imports

Start = Callable[..., AbstractAsyncContextManager[Rig]]
WEIGHTS = "model.safetensors"
SECRET = "hf_" + "x" * 8


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    folder = sentence_model(tmp_path / "m")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fake(files: dict[str, bytes]) -> Iterator[FakeHub]:
    with hub(files) as fake:
        yield fake


@pytest.fixture
async def rig(database_url: str, data_dir: Path, fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(imports.Imports.__init__, "__kwdefaults__", {"retry_delays_seconds": (0.01, 0.02)})
    async with registry(database_url, data_dir, hub_endpoint=fake.url) as rig:
        yield rig


def source(**fields: Any) -> pb.ModelSource:
    return pb.ModelSource(hub=pb.HubSource(repo_id="org/repo", **fields))


def test_the_servers_routes_satisfy_the_unpatched_client(fake: FakeHub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download("org/repo", endpoint=fake.url, cache_dir=tmp_path / "cache", token=False, max_workers=2)
    )
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == fake.files


async def test_an_import_is_pinned_verified_and_described(rig: Rig, fake: FakeHub) -> None:
    version = await rig.import_model(source=source(revision="main"))
    assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
    assert version.name == f"models/org/repo/versions/{COMMIT}"
    assert version.source.hub.commit == COMMIT
    assert version.source.hub.revision == "main"
    assert version.engine == "sentence_transformers"
    assert (version.engine_profile.backend, version.engine_profile.precision) == ("torch", "fp32")
    assert (version.limits.max_input_tokens, version.limits.embedding_dimensions) == (128, 16)
    assert {file.path: file.sha256 for file in version.artifact.files} == {
        path: f"sha256:{hashlib.sha256(content).hexdigest()}" for path, content in fake.files.items()
    }
    assert modes_below(version.artifact.path) == dict.fromkeys(fake.files, 0o444)
    before = len(fake.requests)
    again = await rig.call(rig.registry.ImportModel, pb.ImportModelRequest(source=source(revision="main")))
    assert again.model_version == version
    assert len(fake.requests) == before + 1  # The branch is resolved, nothing is downloaded.


async def test_files_that_are_here_already_are_not_downloaded_again(rig: Rig, fake: FakeHub) -> None:
    await rig.import_model(source=source())
    version = await rig.import_model(model_id="other/copy", source=source())
    assert version.state == pb.MODEL_VERSION_STATE_READY
    assert fake.sent_bytes[WEIGHTS] == len(fake.files[WEIGHTS])
    inodes = {path.stat().st_ino for path in rig.artifacts.rglob(WEIGHTS)}
    assert len(inodes) == 1


async def test_other_formats_beside_safetensors_and_code_are_left_out(rig: Rig, fake: FakeHub) -> None:
    wanted = set(fake.files)
    for path in ("pytorch_model.bin", "onnx/model.onnx", "train.py", ".gitattributes", "openvino/openvino_model.bin"):
        fake.files[path] = b"x"
    version = await rig.import_model(source=source())
    assert {file.path for file in version.artifact.files} == wanted


@pytest.mark.parametrize("lie", [{"sha256": "0" * 64}, {"size": 7}, {"size": 10**6}])
async def test_a_hub_that_lies_about_large_files_is_found_out(rig: Rig, fake: FakeHub, lie: dict[str, Any]) -> None:
    fake.lie[WEIGHTS] = lie
    await _fails(rig, "SourceUnavailable" if lie.get("size", 0) > 10**5 * 5 else "ChecksumMismatch")


@pytest.mark.parametrize("lie", [{"blobId": "0" * 40}, {"size": 1}])
async def test_a_hub_that_lies_about_plain_files_is_found_out(rig: Rig, fake: FakeHub, lie: dict[str, Any]) -> None:
    fake.lie["config.json"] = lie
    await _fails(rig, "ChecksumMismatch")


async def _fails(rig: Rig, reason: str) -> None:
    version = await rig.import_model(source=source())
    assert version.state == pb.MODEL_VERSION_STATE_FAILED
    assert version.failure.reason == reason, version.failure
    assert not version.HasField("artifact")
    assert rig.files() == []


async def test_a_failed_import_can_be_asked_for_again(rig: Rig, fake: FakeHub) -> None:
    fake.lie[WEIGHTS] = {"sha256": "0" * 64}
    failed = await rig.import_model(source=source())
    fake.lie.clear()
    version = await rig.import_model(source=source())
    assert version.state == pb.MODEL_VERSION_STATE_READY
    assert version.uid != failed.uid


async def test_a_truncated_download_goes_on_where_it_broke_off(rig: Rig, fake: FakeHub) -> None:
    fake.truncate[WEIGHTS] = 40_000
    version = await rig.import_model(source=source())
    assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
    assert "bytes=40000-" in [request[2] for request in fake.requests]
    assert fake.sent_bytes[WEIGHTS] == len(fake.files[WEIGHTS])


async def test_a_restart_in_the_middle_goes_on_where_it_stopped(
    database_url: str, data_dir: Path, fake: FakeHub
) -> None:
    fake.hold[WEIGHTS] = threading.Event()
    async with registry(database_url, data_dir, hub_endpoint=fake.url) as first:
        made = await first.call(first.registry.ImportModel, pb.ImportModelRequest(source=source()))
        assert made.model_version.state == pb.MODEL_VERSION_STATE_CREATING
        await asyncio.to_thread(fake.half_sent.wait, 20)
        half = len(fake.files[WEIGHTS]) // 2
        part = data_dir / "artifacts" / "staging" / made.model_version.uid / "part"
        await asyncio.to_thread(until, lambda: part.exists() and part.stat().st_size == half)
    fake.hold.pop(WEIGHTS).set()
    async with registry(database_url, data_dir, hub_endpoint=fake.url) as second:
        version = await second.final(made.model_version.name)
        assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
        assert f"bytes={half}-" in [request[2] for request in fake.requests]


TESTS = str(Path(__file__).resolve().parents[1])
KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from integration.registry_rig import registry, until
from modelmora.registry.v1 import registry_pb2 as pb

async def main(url, data_dir, endpoint, half):
    async with registry(url, Path(data_dir), hub_endpoint=endpoint) as rig:
        source = pb.ModelSource(hub=pb.HubSource(repo_id="org/repo"))
        made = await rig.call(rig.registry.ImportModel, pb.ImportModelRequest(source=source))
        part = Path(data_dir) / "artifacts" / "staging" / made.model_version.uid / "part"
        await asyncio.to_thread(until, lambda: part.exists() and part.stat().st_size == int(half))
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_kill_in_the_middle_costs_no_byte_that_had_arrived(
    database_url: str, data_dir: Path, fake: FakeHub
) -> None:
    fake.hold[WEIGHTS] = threading.Event()
    half = len(fake.files[WEIGHTS]) // 2
    script = KILLED.format(tests=TESTS)
    arguments = [sys.executable, "-c", script, database_url, str(data_dir), fake.url, str(half)]
    killed = await asyncio.to_thread(subprocess.run, arguments, timeout=150, check=False)
    assert killed.returncode == -signal.SIGKILL
    fake.hold.pop(WEIGHTS).set()
    asked = len(fake.requests)
    async with registry(database_url, data_dir, hub_endpoint=fake.url) as rig:
        version = await rig.final(f"org/repo@{COMMIT}")
        assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
    again = [request for request in fake.requests[asked:] if "/api/" not in request[1]]
    assert {request[2] for request in again if request[1].endswith(WEIGHTS)} == {f"bytes={half}-"}
    assert [request for request in fake.requests[asked:] if request[1].startswith("/api/")] == []  # By its own plan.
    after = {path for path in fake.files if path > WEIGHTS}
    assert {request[1].rpartition("/")[2] for request in again} == {Path(path).name for path in after | {WEIGHTS}}


async def test_deleting_while_it_downloads_leaves_nothing(rig: Rig, fake: FakeHub) -> None:
    fake.hold[WEIGHTS] = threading.Event()
    made = await rig.call(rig.registry.ImportModel, pb.ImportModelRequest(source=source()))
    await asyncio.to_thread(fake.half_sent.wait, 20)
    await rig.call(rig.registry.DeleteModelVersion, pb.DeleteModelVersionRequest(name=made.model_version.name))
    assert rig.files() == []
    assert not list((rig.artifacts / "staging").iterdir())
    assert (await rig.rows("model_version", "used_version")) == {"model_version": 0, "used_version": 0}


async def test_cancelling_leaves_nothing_but_the_word_that_it_was_cancelled(rig: Rig, fake: FakeHub) -> None:
    fake.hold[WEIGHTS] = threading.Event()
    made = await rig.call(rig.registry.ImportModel, pb.ImportModelRequest(source=source()))
    cancel = pb.CancelImportRequest(name=made.model_version.name)
    await asyncio.to_thread(fake.half_sent.wait, 20)
    ended = (await rig.call(rig.registry.CancelImport, cancel)).model_version
    assert (ended.state, ended.failure.reason) == (pb.MODEL_VERSION_STATE_FAILED, "Cancelled")
    assert (await rig.final(made.model_version.name)).failure == ended.failure
    assert rig.files() == []
    assert not list((rig.artifacts / "staging").iterdir())
    assert (await rig.sql("SELECT DISTINCT state FROM registry.model_version")) == [("failed",)]
    await rig.refused(lambda: rig.call(rig.registry.CancelImport, cancel), IllegalTransition)
    fake.hold.pop(WEIGHTS).set()
    version = await rig.import_model(source=source())  # It never was anything, so there is room for another try.
    assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
    await rig.refused(lambda: rig.call(rig.registry.CancelImport, cancel), IllegalTransition)


async def test_a_watch_tells_bytes_file_rate_and_what_is_left(rig: Rig, fake: FakeHub) -> None:
    fake.hold[WEIGHTS] = threading.Event()
    made = await rig.call(rig.registry.ImportModel, pb.ImportModelRequest(source=source()))
    total = sum(map(len, fake.files.values()))
    seen: list[pb.ImportProgress] = []
    request = pb.WatchModelVersionRequest(name=made.model_version.name)
    async for answer in rig.registry.WatchModelVersion(request, timeout=60):
        seen.append(answer.model_version.progress)
        if seen[-1].done_bytes >= 50_000:  # Before, it may be told of the small files.
            fake.hold.pop(WEIGHTS, threading.Event()).set()
    assert {progress.total_bytes for progress in seen[:-1]} == {total}
    told = next(progress for progress in seen if progress.done_bytes >= 50_000)
    assert told.current_file == WEIGHTS
    assert told.done_bytes < total
    done = [progress.done_bytes for progress in seen if progress.done_bytes]
    assert done == sorted(done)
    assert not answer.model_version.HasField("progress")
    assert answer.model_version.state == pb.MODEL_VERSION_STATE_READY


async def test_the_delay_that_a_hub_asks_for_is_waited_for(rig: Rig, fake: FakeHub) -> None:
    go_on = await _planned(rig, fake)
    fake.refuse.append((429, {"Retry-After": "0.6"}))
    refused = len(fake.times)
    version = await go_on()
    assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
    assert fake.times[refused + 1] - fake.times[refused] >= 0.6
    go_on = await _planned(rig, fake, model_id="org/again")
    fake.refuse.append((429, {"Retry-After": "3000"}))
    version = await go_on()
    assert version.failure.reason == "SourceUnavailable"
    assert "asks to wait 3000 s" in version.failure.message


async def _planned(rig: Rig, fake: FakeHub, **fields: Any) -> Callable[[], Any]:
    """An import that has been planned and waits with its first file; the call lets it go on and waits for its end."""
    first = min(path for path in fake.files if path != WEIGHTS)
    fake.hold[first] = threading.Event()
    fake.half_sent.clear()
    fake.truncate[first] = 0
    made = await rig.call(rig.registry.ImportModel, pb.ImportModelRequest(source=source(), **fields))
    await asyncio.to_thread(fake.half_sent.wait, 20)

    async def go_on() -> pb.ModelVersion:
        fake.hold.pop(first).set()
        return await rig.final(made.model_version.name)

    return go_on


async def test_too_many_requests_are_waited_for(rig: Rig, fake: FakeHub) -> None:
    made = partial(rig.call, rig.registry.ImportModel, pb.ImportModelRequest(source=source()))
    fake.refuse.append((429, {"Retry-After": "7"}))
    error = await rig.refused(made, SourceUnavailable)
    assert error.retry_after_seconds == 7


@pytest.mark.parametrize(
    ("asked", "cls"),
    [
        (pb.HubSource(repo_id="org/none"), SourceNotFound),
        (pb.HubSource(repo_id="org/repo", revision="none"), SourceNotFound),
        (pb.HubSource(repo_id="org/repo", revision="f" * 40), SourceNotFound),
    ],
)
async def test_what_the_hub_does_not_have_is_not_found(
    rig: Rig, asked: pb.HubSource, cls: type[SourceNotFound]
) -> None:
    request = pb.ImportModelRequest(source=pb.ModelSource(hub=asked))
    await rig.refused(lambda: rig.call(rig.registry.ImportModel, request), cls)


@pytest.mark.parametrize(
    ("path", "cls"),
    [
        ("../evil.json", UnsafeFile),
        ("/etc/passwd", UnsafeFile),
        ("a/../../b.json", UnsafeFile),
        ("con.json", UnsafeFile),
        ("sub/pytorch_model.bin", UnsafeFile),
    ],
)
async def test_poisoned_names_are_refused(rig: Rig, fake: FakeHub, path: str, cls: type[UnsafeFile]) -> None:
    fake.files[path] = b"x"
    request = pb.ImportModelRequest(source=source())
    await rig.refused(lambda: rig.call(rig.registry.ImportModel, request), cls, "source.hub")


async def test_redirect_loops_nonsense_and_silence_are_unavailable(rig: Rig, fake: FakeHub) -> None:
    made = partial(rig.call, rig.registry.ImportModel, pb.ImportModelRequest(source=source()))
    fake.redirect_loop = True
    await rig.refused(made, SourceUnavailable)
    fake.redirect_loop = False
    fake.refuse.append((503, {}))
    await rig.refused(made, SourceUnavailable)
    fake.lie["config.json"] = {"size": "many"}
    await rig.refused(made, SourceUnavailable)


@pytest.mark.parametrize(
    ("path", "lie"),
    [
        ("config.json", {"rfilename": None}),
        ("config.json", {"rfilename": 5}),
        ("config.json", {"size": -(10**15)}),
        ("config.json", {"size": None}),
        (WEIGHTS, {"sha256": "A" * 64}),
        (WEIGHTS, {"sha256": None}),
        (WEIGHTS, {"sha256": "../../../outside"}),
    ],
)
async def test_a_listing_that_cannot_be_is_refused_before_the_first_byte(
    rig: Rig, fake: FakeHub, path: str, lie: dict[str, Any]
) -> None:
    """A digest is the name of a file here: that of a stranger must never be linked to."""
    (rig.data_dir / "outside").write_bytes(fake.files[WEIGHTS])
    fake.lie[path] = lie
    made = partial(rig.call, rig.registry.ImportModel, pb.ImportModelRequest(source=source()))
    await rig.refused(made, SourceUnavailable)


async def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(
    database_url: str, data_dir: Path, fake: FakeHub, tmp_path: Path
) -> None:
    fake.token = SECRET
    secret = tmp_path / "token"
    secret.write_text(f"{SECRET}\n")
    async with registry(database_url, data_dir, hub_endpoint=fake.url, hub_token_file=secret) as rig:
        version = await rig.import_model(source=source())
        assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
    assert {request[3] for request in fake.requests if request[1].startswith("/cdn/")} == {None}
    assert {request[3] for request in fake.requests if not request[1].startswith("/cdn/")} == {f"Bearer {SECRET}"}


async def test_without_its_token_a_gated_repository_is_not_shown(rig: Rig, fake: FakeHub) -> None:
    fake.token = SECRET
    request = pb.ImportModelRequest(source=source())
    error = await rig.refused(lambda: rig.call(rig.registry.ImportModel, request), SourceNotFound)
    assert "hub_token_file" in error.message


async def test_offline_asks_nobody(database_url: str, data_dir: Path, fake: FakeHub) -> None:
    async with registry(database_url, data_dir, hub_endpoint=fake.url, offline=True) as rig:
        request = pb.ImportModelRequest(source=source())
        await rig.refused(lambda: rig.call(rig.registry.ImportModel, request), FailedPrecondition)
    assert fake.requests == []


async def test_a_line_that_breaks_again_and_again_still_brings_a_large_file(
    rig: Rig, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More often than it is asked again after failures that brought nothing."""
    monkeypatch.setattr(imports, "GAIN_BYTES", 9_000)
    fake.breaks[WEIGHTS] = 10_000
    version = await rig.import_model(source=source())
    assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
    assert fake.sent_bytes[WEIGHTS] == len(fake.files[WEIGHTS])
    assert len([request for request in fake.requests if request[1].endswith(f"/cdn/{WEIGHTS}")]) == 10
