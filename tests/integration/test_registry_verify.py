"""Files on disk against what was registered: at load, when asked, in the background."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from integration.registry_rig import Rig, local, registry, sentence_model
from modelmora.errors import ChecksumMismatch, VersionDrifted, VersionInUse
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora.status import error_from_rpc
from modelmora_registry.verify import HASHED

WEIGHTS = "model.safetensors"
WAIT_SECONDS = 60.0


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    (tmp_path / "roots").mkdir()
    return tmp_path / "roots"


@pytest.fixture
async def rig(database_url: str, data_dir: Path, roots: Path) -> AsyncIterator[Rig]:
    async with registry(database_url, data_dir, model_roots=(roots,)) as rig:
        yield rig


@pytest.fixture
async def version(rig: Rig, roots: Path) -> pb.ModelVersion:
    found = await rig.import_model(model_id="acme/mini", source=local(sentence_model(roots / "mini")), version="1")
    assert found.state == pb.MODEL_VERSION_STATE_READY, found.failure
    return found


def change(version: pb.ModelVersion, path: str = WEIGHTS, *, at: int = 5000) -> Path:
    """One byte becomes another; size and name stay."""
    file = Path(version.artifact.path) / path
    file.chmod(0o644)
    with file.open("r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))
    return file


async def verify(rig: Rig, name: str, *, full: bool = False) -> tuple[dict[str, pb.FileVerdict], bool]:
    """Verdicts by path, and whether all is intact."""
    request = pb.VerifyModelVersionRequest(name=name, full=full)
    try:
        answers = [answer async for answer in rig.registry.VerifyModelVersion(request, timeout=WAIT_SECONDS)]
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from None
    assert [answer.done for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert answers[-1].done_bytes == answers[-1].total_bytes
    return {answer.file.path: answer.file for answer in answers[:-1] if answer.HasField("file")}, answers[-1].intact


async def load(rig: Rig, name: str) -> pb.AcquireHoldResponse:
    """What a loader hears first; raises the error that refuses it."""
    call = rig.holds.AcquireHold(pb.AcquireHoldRequest(name=name, holder="test"), timeout=WAIT_SECONDS)
    try:
        async for answer in call:
            return answer
        raise AssertionError("no answer")
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from None
    finally:
        call.cancel()


def hashed_bytes(why: str) -> float:
    return float(HASHED.labels(why)._value.get())


def drift_of(rig: Rig) -> str:
    health = rig.host.board.get("registry")
    assert health is not None
    return health.reason if health.state == "degraded" else ""


async def until_drifted(rig: Rig) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            change = rig.host.board.change
            if drift_of(rig):
                return
            await change.wait()


async def test_what_drifted_in_memory_is_held_again_and_told(rig: Rig, version: pb.ModelVersion) -> None:
    """After a restart of the registry: refused, it would be in memory and could be deleted."""
    change(version)
    with pytest.raises(VersionDrifted):
        await load(rig, version.name)
    request = pb.AcquireHoldRequest(
        name=version.name, holder="test", hold_id="0190a5d0-ac96-774b-bcce-b302099a8057", in_memory=True
    )
    call = rig.holds.AcquireHold(request)
    assert (await call.read()).model_version.name == version.name
    await until_drifted(rig)
    delete = pb.DeleteModelVersionRequest(name=version.name, force=True)
    await rig.refused(lambda: rig.call(rig.registry.DeleteModelVersion, delete), VersionInUse)
    await rig.call(rig.holds.ReleaseHold, pb.ReleaseHoldRequest(hold_id=request.hold_id))
    await rig.call(rig.registry.DeleteModelVersion, delete)


async def test_an_untouched_version_is_intact_and_nothing_is_hashed_at_load(rig: Rig, version: pb.ModelVersion) -> None:
    before = hashed_bytes("load"), hashed_bytes("asked")
    assert (await load(rig, version.name)).golden.golden == "txt2embed/1"
    quick, intact = await verify(rig, "acme/mini")
    assert intact
    assert {verdict.verdict for verdict in quick.values()} == {"intact"}
    assert (hashed_bytes("load"), hashed_bytes("asked")) == before
    full, intact = await verify(rig, version.name, full=True)
    assert intact
    assert hashed_bytes("asked") - before[1] == version.artifact.size_bytes
    assert {path: verdict.found_sha256 for path, verdict in full.items()} == {
        file.path: file.sha256 for file in version.artifact.files
    }
    now = (await rig.call(rig.registry.GetModelVersion, pb.GetModelVersionRequest(name=version.name))).model_version
    assert now.verify_time.ToNanoseconds() > version.verify_time.ToNanoseconds()
    assert now.etag == version.etag
    bare = await rig.echo()
    assert await verify(rig, bare.name) == ({}, True)
    assert not (await load(rig, bare.name)).HasField("golden"), "there is nothing that could change"


async def test_one_changed_byte_is_named_and_the_load_refused(rig: Rig, version: pb.ModelVersion) -> None:
    change(version)
    with pytest.raises(VersionDrifted) as raised:
        await load(rig, version.name)
    assert raised.value.metadata["file"] == WEIGHTS
    assert WEIGHTS in raised.value.message
    files, intact = await verify(rig, version.name)
    assert not intact
    assert {path: verdict.verdict for path, verdict in files.items() if verdict.verdict != "intact"} == {
        WEIGHTS: "changed"
    }
    assert files[WEIGHTS].found_sha256 not in ("", files[WEIGHTS].expected_sha256)
    assert f"acme/mini@1: {WEIGHTS} is changed" in drift_of(rig)
    before = hashed_bytes("load")
    with pytest.raises(VersionDrifted):
        await load(rig, version.name)
    assert hashed_bytes("load") == before, "what is known to be wrong is not read again"


async def test_a_blob_that_changed_has_changed_for_every_version_that_shares_it(
    rig: Rig, version: pb.ModelVersion, roots: Path
) -> None:
    (roots / "mini" / "README.md").write_text("more")
    other = await rig.import_model(model_id="acme/other", source=local(roots / "mini"), version="1")
    change(version)
    await verify(rig, version.name)
    drifted = await rig.sql("SELECT model_version_id::text, path FROM registry.file_drift")
    assert {tuple(row) for row in drifted} == {(version.uid, WEIGHTS), (other.uid, WEIGHTS)}
    assert "acme/other@1" in drift_of(rig)
    assert "2 versions" in drift_of(rig)
    change(version)  # Back to what it was.
    assert (await verify(rig, other.name))[1]
    assert drift_of(rig) == ""
    await load(rig, version.name)


async def test_what_is_missing_of_another_size_too_many_or_a_link_is_told(
    rig: Rig, version: pb.ModelVersion, tmp_path: Path
) -> None:
    folder = Path(version.artifact.path)
    (folder / "added_tokens.json").write_text("{}")
    with pytest.raises(VersionDrifted, match=r"added_tokens\.json is extra"):
        await load(rig, version.name)
    (folder / "added_tokens.json").unlink()
    await load(rig, version.name)
    assert drift_of(rig) == ""
    for path in ("config.json", "1_Pooling/config.json"):
        (folder / path).unlink()
        assert (await verify(rig, version.name))[0][path].verdict == "missing"
        with pytest.raises(VersionDrifted, match="missing"):
            await load(rig, version.name)
        (folder / path).write_text("{}" + " " * 1000)
        files, _ = await verify(rig, version.name)
        assert (files[path].verdict, files[path].found_sha256) == ("changed", ""), "no need to read it"
    (tmp_path / "copy").write_bytes((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(tmp_path / "copy")
    assert (await verify(rig, version.name, full=True))[0][WEIGHTS].verdict == "missing"


async def test_a_file_that_was_only_touched_is_hashed_once_and_loaded(rig: Rig, version: pb.ModelVersion) -> None:
    os.utime(Path(version.artifact.path) / WEIGHTS, ns=(1, 1))
    before = hashed_bytes("load")
    for _ in range(2):
        await load(rig, version.name)
        assert hashed_bytes("load") - before == 100_000


async def rot(rig: Rig, version: pb.ModelVersion) -> None:
    """A byte changes and the file system knows nothing of it, as when a disk forgets."""
    file = change(version)
    found = file.stat()
    await rig.sql(
        "UPDATE registry.file_state SET mtime_ns = $2, ctime_ns = $3, hash_time = to_timestamp(0) WHERE inode = $1",
        found.st_ino,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )


async def test_only_hashing_finds_what_the_file_system_does_not_know(rig: Rig, version: pb.ModelVersion) -> None:
    await rot(rig, version)
    assert (await verify(rig, version.name))[1]
    promote = pb.SetAliasRequest(name="acme/mini", alias="production", version="1", require_verified=True)
    with pytest.raises(ChecksumMismatch) as raised:
        await rig.call(rig.registry.SetAlias, promote)
    assert raised.value.metadata["file"] == WEIGHTS
    assert not (await verify(rig, version.name, full=True))[1]
    with pytest.raises(VersionDrifted):
        await load(rig, version.name)
    change(version)  # Back to what it was.
    assert (await rig.call(rig.registry.SetAlias, promote)).model.aliases["production"] == "1"


async def test_the_scrub_finds_rot_and_goes_on_where_another_process_stopped(
    database_url: str, data_dir: Path, roots: Path
) -> None:
    settings: dict[str, Any] = {"model_roots": (roots,), "scrub_bytes_per_second": 10**9}
    async with registry(database_url, data_dir, **settings, scrub_interval_seconds=0) as rig:
        version = await rig.import_model(model_id="acme/mini", source=local(sentence_model(roots / "m")), version="1")
        await rot(rig, version)
        assert await rig.sql("SELECT 1 FROM registry.file_drift") == []
    async with registry(database_url, data_dir, **settings, scrub_interval_seconds=3600) as rig:
        await until_drifted(rig)
        assert WEIGHTS in drift_of(rig)
        left = await rig.sql("SELECT count(*) AS n FROM registry.file_state WHERE hash_time < now() - interval '1 h'")
        assert left[0]["n"] == 0
        with pytest.raises(VersionDrifted):
            await load(rig, version.name)
    async with registry(database_url, data_dir, **settings) as rig:
        await until_drifted(rig)  # Told again after a start.


async def test_the_scrub_keeps_to_its_pace_and_forgets_what_is_gone(rig: Rig, version: pb.ModelVersion) -> None:
    from modelmora_registry.lock_store import LockStore
    from modelmora_registry.verify import ScrubRules, Verifier
    from modelmora_runtime.db import Database

    database = Database(rig.database_url, "registry")
    said: list[Any] = []
    store = LockStore(database, lambda: True)
    scrub = Verifier(
        store,
        database,
        lambda uid: rig.artifacts / "snapshots" / uid,
        lambda words, count: said.append(words),
        ScrubRules(bytes_per_second=400_000),
    )
    try:
        weights = next(file for file in version.artifact.files if file.path == WEIGHTS)
        took: list[float] = []
        while not took or (took[-1] >= 5 and len(took) < 4):  # the machine may stand still
            began = time.monotonic()
            await scrub.scrub(weights.sha256)
            took.append(time.monotonic() - began)
        assert 0.2 < took[-1] < 5
        assert said == []
        await rig.call(rig.registry.DeleteModel, pb.DeleteModelRequest(name="acme/mini", force=True))
        await scrub.scrub(weights.sha256)
        assert await rig.sql("SELECT 1 FROM registry.file_state WHERE sha256 = $1", weights.sha256) == []
    finally:
        scrub.close()
        await database.close()
