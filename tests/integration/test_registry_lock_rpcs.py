"""Model locks through the real host, gRPC and PostgreSQL: made, verified, compared, brought to another machine."""

from __future__ import annotations

import shutil
import struct
import threading
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from integration.registry_rig import Rig, local, registry, safetensors, sentence_model
from modelmora.common.v1 import common_pb2
from modelmora.errors import (
    FailedPrecondition,
    InvalidArgument,
    LockExists,
    LockNotFound,
    ModelMoraError,
    ModelNotFound,
    RequestIdReused,
    VersionExists,
)
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora.status import error_from_rpc
from modelmora_registry import domain, lock_yaml, locks
from modelmora_registry.store import Store

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
async def empty(database_url: str, data_dir: Path, roots: Path) -> AsyncIterator[Rig]:
    """Another machine: another data folder, another database, nothing in it."""
    name = f"test_{uuid.uuid4().hex}"
    head, tail = database_url.split("@/", 1)
    admin = await asyncpg.connect(database_url.replace("+asyncpg", ""), timeout=60)
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        other = f"{head}@/{name}?{tail.partition('?')[2]}"
        async with registry(other, data_dir.with_name("other"), model_roots=(roots,), offline=False) as rig:
            yield rig
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@pytest.fixture
async def version(rig: Rig, roots: Path) -> pb.ModelVersion:
    found = await rig.import_model(model_id="acme/mini", source=local(sentence_model(roots / "mini")), version="1")
    assert found.state == pb.MODEL_VERSION_STATE_READY, found.failure
    return found


async def create(rig: Rig, *models: str, **fields: Any) -> pb.CreateModelLockResponse:
    request = pb.CreateModelLockRequest(models=models, **fields)
    return await rig.call(rig.registry.CreateModelLock, request)


async def stream(method: Any, request: Any) -> list[Any]:
    try:
        answers = [answer async for answer in method(request, timeout=WAIT_SECONDS)]
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from None
    assert [answer.done for answer in answers] == [False] * (len(answers) - 1) + [True]
    return answers


async def drifts(rig: Rig, text: str, **fields: Any) -> dict[str, tuple[str, str]]:
    """(locked, found) by field."""
    *answers, last = await stream(rig.registry.VerifyModelLock, pb.VerifyModelLockRequest(yaml=text, **fields))
    found = {drift.field: (drift.locked, drift.found) for answer in answers for drift in answer.drifts}
    assert last.intact == (not found)
    return found


async def apply(rig: Rig, text: str, mirror: str | Path = "", **fields: Any) -> tuple[dict[str, tuple[str, str]], bool]:
    """(outcome, reason) by version, and whether it converged."""
    request = pb.ApplyModelLockRequest(yaml=text, mirror=str(mirror), **fields)
    *answers, last = await stream(rig.registry.ApplyModelLock, request)
    if last.converged:
        assert last.done_bytes == last.total_bytes
    return {each.model_version: (each.outcome, each.reason) for each in answers if each.outcome}, last.converged


def fingerprint(*rows: tuple[float, ...], torch: str = "2.13.0", precision: str = "fp32") -> pb.Fingerprint:
    rows = rows or tuple((1.0, float(index)) for index in range(4))
    return pb.Fingerprint(
        golden="txt2embed/1",
        outputs=common_pb2.Tensor(
            data_type=common_pb2.DATA_TYPE_FP32,
            shape=(len(rows), len(rows[0])),
            data=b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows),
        ),
        engine_profile=common_pb2.EngineProfile(
            backend="torch", precision=precision, library_versions={"torch": torch}, batch_rule="padded"
        ),
    )


async def record(rig: Rig, name: str, made: pb.Fingerprint) -> pb.RecordFingerprintResponse:
    return await rig.call(rig.holds.RecordFingerprint, pb.RecordFingerprintRequest(name=name, fingerprint=made))


# Made and kept.


async def test_a_lock_says_everything_that_decides_the_answers(rig: Rig, version: pb.ModelVersion) -> None:
    await record(rig, version.name, fingerprint())
    made = await create(rig, "acme/mini", lock_id="prod")
    assert made.model_lock.name == "modelLocks/prod"
    assert made.model_lock.digest == locks.digest_of(made.yaml)
    (locked,) = made.model_lock.models
    assert locked.model_version == version.name
    assert locked.digest == version.artifact.digest
    assert list(locked.files) == list(version.artifact.files)
    assert (locked.engine, locked.task_type) == (version.engine, version.task_type)
    assert locked.engine_profile.library_versions == {"torch": "2.13.0"}
    assert locked.dtype == version.metadata.dtype
    assert locked.fingerprint.outputs == fingerprint().outputs
    assert locked.fingerprint.tolerance == 0.9999
    got = await rig.call(rig.registry.GetModelLock, pb.GetModelLockRequest(name="modelLocks/prod"))
    assert got.model_lock == made.model_lock
    rendered = await rig.call(rig.registry.RenderModelLock, pb.RenderModelLockRequest(name="prod"))
    assert rendered.yaml == made.yaml
    assert locks.render(lock_yaml.read(made.yaml)) == made.yaml


async def test_the_same_models_are_the_same_lock(rig: Rig, version: pb.ModelVersion) -> None:
    await rig.echo()
    first = await create(rig, "acme/mini", "acme/echo@1.0.0")
    again = await create(rig, "acme/echo", "acme/mini@latest", "acme/mini@1")
    everything = await create(rig)
    assert first == again == everything
    assert len(first.model_lock.models) == 2
    from_text = await create(rig, yaml=first.yaml)
    assert from_text == first
    await create(rig, "acme/mini", lock_id="prod")
    with pytest.raises(LockExists):
        await create(rig, "acme/echo", lock_id="prod")


async def test_a_model_that_is_named_many_times_is_asked_for_once(
    rig: Rig, version: pb.ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    resolve = Store.resolve

    async def counted(store: Store, reference: domain.Reference) -> Any:
        asked.append(str(reference))
        return await resolve(store, reference)

    monkeypatch.setattr(Store, "resolve", counted)
    once = await create(rig, "acme/mini")
    assert await create(rig, *["acme/mini", "acme/mini@1"] * 50) == once
    assert asked == ["acme/mini", "acme/mini", "acme/mini@1"]
    with pytest.raises(InvalidArgument) as refused:
        await create(rig, "acme/mini", "acme/mini", "acme", "acme")
    assert refused.value.fields[0].field == "models[2]"


async def test_locks_are_listed_page_by_page_and_deleted(rig: Rig) -> None:
    await rig.echo()
    for name in ("a", "b", "c"):
        await create(rig, "acme/echo", lock_id=name)
    seen, token = [], ""
    while True:
        request = pb.ListModelLocksRequest(page_size=2, page_token=token)
        page = await rig.call(rig.registry.ListModelLocks, request)
        seen += [lock.name for lock in page.model_locks]
        assert all(not lock.models and lock.digest for lock in page.model_locks)
        token = page.next_page_token
        if not token:
            break
    assert seen == ["modelLocks/a", "modelLocks/b", "modelLocks/c"]
    await rig.call(rig.registry.DeleteModelLock, pb.DeleteModelLockRequest(name="modelLocks/b"))
    for method, request in (
        (rig.registry.GetModelLock, pb.GetModelLockRequest(name="b")),
        (rig.registry.RenderModelLock, pb.RenderModelLockRequest(name="b")),
        (rig.registry.DeleteModelLock, pb.DeleteModelLockRequest(name="b")),
        (rig.registry.DiffModelLocks, pb.DiffModelLocksRequest(left_name="a", right_name="b")),
    ):
        with pytest.raises(LockNotFound):
            await rig.call(method, request)


async def test_a_request_id_makes_the_same_lock_even_when_the_models_moved_on(rig: Rig) -> None:
    await rig.echo()
    request_id = str(uuid.uuid4())
    first = await create(rig, "acme/echo", lock_id="prod", request_id=request_id)
    await rig.echo(version="2.0.0")
    assert await create(rig, "acme/echo", lock_id="prod", request_id=request_id) == first
    with pytest.raises(RequestIdReused):
        await create(rig, "acme/echo", lock_id="other", request_id=request_id)


async def test_a_lock_that_cannot_be_made_is_refused(rig: Rig) -> None:
    table: list[tuple[dict[str, Any], type[ModelMoraError], str | None]] = [
        ({"lock_id": "Prod"}, InvalidArgument, "lock_id"),
        ({"models": ["acme"]}, InvalidArgument, "models[0]"),
        ({"models": ["acme/none"]}, ModelNotFound, None),
        ({"yaml": "format: x", "models": ["acme/mini"]}, InvalidArgument, "models"),
        ({"yaml": "format: modelmora.lock/1\nmodels: 1\n"}, InvalidArgument, "yaml.models"),
        ({"yaml": "a: [\n"}, InvalidArgument, "yaml"),
        ({"request_id": "7"}, InvalidArgument, "request_id"),
        ({}, FailedPrecondition, None),
    ]
    for fields, cls, field in table:
        request = pb.CreateModelLockRequest(**fields)
        await rig.refused(partial(rig.call, rig.registry.CreateModelLock, request), cls, field)
    for method, request in (
        (rig.registry.VerifyModelLock, pb.VerifyModelLockRequest()),
        (rig.registry.VerifyModelLock, pb.VerifyModelLockRequest(yaml="x: 1")),
        (rig.registry.ApplyModelLock, pb.ApplyModelLockRequest(name="A/b")),
    ):
        with pytest.raises(InvalidArgument) as raised:
            await stream(method, request)
        assert raised.value.fields


async def test_two_locks_are_compared(rig: Rig) -> None:
    await rig.echo()
    old = await create(rig, "acme/echo", lock_id="old")
    await rig.echo(version="2.0.0", engine_options={"seed": 7})
    new = await create(rig, "acme/echo", lock_id="new")
    request = pb.DiffModelLocksRequest(left_name="old", right_yaml=new.yaml)
    answer = await rig.call(rig.registry.DiffModelLocks, request)
    assert {drift.field: (drift.locked, drift.found) for drift in answer.drifts} == {
        "models[0].model_version": ("models/acme/echo/versions/1.0.0", "models/acme/echo/versions/2.0.0"),
        "models[0].engine_options": ("", '{"seed": 7}'),
    }
    request = pb.DiffModelLocksRequest(left_name="old", right_yaml=old.yaml)
    assert not (await rig.call(rig.registry.DiffModelLocks, request)).drifts


# Verified.


async def test_a_changed_byte_is_told_by_its_place_in_the_lock(rig: Rig, version: pb.ModelVersion) -> None:
    text = (await create(rig)).yaml
    assert await drifts(rig, text) == {}
    assert await drifts(rig, text, full=True) == {}
    file = Path(version.artifact.path) / WEIGHTS
    file.chmod(0o644)
    file.write_bytes(safetensors(100_000, b"x"))
    found = await drifts(rig, text)
    assert list(found) == [f'models[0].files["{WEIGHTS}"].sha256']
    locked, seen = found[f'models[0].files["{WEIGHTS}"].sha256']
    assert locked == next(each.sha256 for each in version.artifact.files if each.path == WEIGHTS)
    assert seen.startswith("sha256:")
    assert seen != locked


async def test_libraries_and_answers_that_changed_are_told_and_refuse_no_load(
    rig: Rig, version: pb.ModelVersion
) -> None:
    assert (await record(rig, version.name, fingerprint())).matches
    text = (await create(rig)).yaml
    near = fingerprint((1.0, 0.0001), (1.0, 1.0), (1.0, 2.0), (1.0, 3.0), torch="2.14.0")
    answer = await record(rig, version.name, near)
    assert answer.matches
    assert 0.9999 < answer.similarity < 1
    library = 'models[0].engine_profile.library_versions["torch"]'
    assert await drifts(rig, text) == {library: ("2.13.0", "2.14.0")}
    assert health(rig) == ""
    far = fingerprint((1.0, 1.0), (1.0, 1.0), (1.0, 2.0), (1.0, 3.0), torch="2.14.0")
    answer = await record(rig, version.name, far)
    assert not answer.matches
    assert answer.similarity == pytest.approx(0.7071, abs=1e-4)
    assert "acme/mini@1: its answers have changed" in health(rig)
    found = await drifts(rig, text)
    assert set(found) == {library, "models[0].fingerprint.outputs"}
    assert "0.707" in found["models[0].fingerprint.outputs"][1]
    await rig.call(rig.registry.SetEngineProfile, pb.SetEngineProfileRequest(name=version.name))
    assert health(rig) == "", "what it answers now was accepted"
    assert (await record(rig, version.name, far)).matches
    assert set(await drifts(rig, text)) == {library, "models[0].fingerprint.outputs"}, "the lock accepts nothing"
    assert not (await record(rig, version.name, fingerprint())).matches
    await rig.call(rig.registry.SetEngineProfile, pb.SetEngineProfileRequest(name=version.name))
    golden = await load(rig, version.name)
    assert golden.golden == "txt2embed/1"
    assert (await record(rig, version.name, fingerprint())).similarity == 1
    assert health(rig) == ""
    assert await drifts(rig, text) == {}
    other = fingerprint((1.0, 9.0), (1.0, 9.0), (1.0, 9.0), (1.0, 9.0), precision="bf16")
    assert (await record(rig, version.name, other)).matches, "another precision is another first"
    (locked,) = (await create(rig)).model_lock.models
    assert locked.fingerprint.engine_profile.precision == "fp32", "as it is served"


async def test_what_is_no_answer_is_refused(rig: Rig, version: pb.ModelVersion) -> None:
    outputs = fingerprint().outputs
    for made, field in (
        (pb.Fingerprint(golden="txt2embed/1"), "fingerprint.outputs"),
        (fingerprint((1.0, 2.0)), "fingerprint.golden"),
        (pb.Fingerprint(golden="x/1", outputs=outputs, engine_profile={}), "fingerprint.golden"),
        (
            pb.Fingerprint(golden="txt2embed/1", outputs={"data_type": 8, "shape": [4, 2]}, engine_profile={}),
            "fingerprint.outputs",
        ),
    ):
        with pytest.raises(InvalidArgument) as raised:
            await record(rig, version.name, made)
        assert field in [violation.field for violation in raised.value.fields]


async def load(rig: Rig, name: str) -> pb.GoldenInputs:
    call = rig.holds.AcquireHold(pb.AcquireHoldRequest(name=name, holder="test"), timeout=WAIT_SECONDS)
    try:
        async for answer in call:
            return answer.golden
        raise AssertionError("no answer")
    finally:
        call.cancel()


def health(rig: Rig) -> str:
    found = rig.host.board.get("registry")
    assert found is not None
    return found.reason if found.state == "degraded" else ""


# Applied.


def as_digest_folders(rig: Rig, version: pb.ModelVersion, mirror: Path) -> None:
    shutil.copytree(version.artifact.path, mirror / version.artifact.digest.removeprefix("sha256:"))


def as_artifact_store(rig: Rig, version: pb.ModelVersion, mirror: Path) -> None:
    shutil.copytree(rig.artifacts / "blobs", mirror / "blobs")


def as_hub_cache(rig: Rig, version: pb.ModelVersion, mirror: Path) -> None:
    folder = mirror / "models--up--stream"
    shutil.copytree(version.artifact.path, folder / "blobs")
    for file in version.artifact.files:
        link = folder / "snapshots" / ("0" * 40) / file.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder / "blobs" / file.path)


def with_hub_source(text: str) -> str:
    """The lock as if the version had come from the Hub."""
    hub = domain.ModelSource(hub=domain.HubSource(repo_id="up/stream", commit="0" * 40))
    found = lock_yaml.read(text).models
    return locks.render(locks.LockDocument.of(model.model_copy(update={"source": hub}) for model in found))


async def test_a_lock_brings_an_empty_machine_to_it_from_a_mirror(
    rig: Rig, version: pb.ModelVersion, empty: Rig, roots: Path
) -> None:
    await record(rig, version.name, fingerprint())
    text = with_hub_source((await create(rig)).yaml)
    as_hub_cache(rig, version, roots / "mirror")
    assert await drifts(empty, text) == {"models[0]": (version.name, "")}
    outcome, converged = await apply(empty, text, roots / "mirror", promote=True)
    assert (outcome, converged) == ({version.name: ("imported", "")}, True)
    assert await drifts(empty, text, full=True) == {}
    there = await empty.final(version.name)
    assert there.artifact.digest == version.artifact.digest
    assert there.source.hub.commit == "0" * 40
    model = (await empty.call(empty.registry.GetModel, pb.GetModelRequest(name="acme/mini"))).model
    assert model.aliases["production"] == "1"
    assert (await create(empty)).yaml == text, "the same lock"
    assert await apply(empty, text, roots / "mirror") == ({version.name: ("present", "")}, True)
    assert (await load(empty, version.name)).texts
    far = fingerprint((1.0, 1.0), (1.0, 1.0), (1.0, 2.0), (1.0, 3.0))
    assert not (await record(empty, version.name, far)).matches, "it must answer as the lock says"
    assert (await record(empty, version.name, fingerprint())).similarity == 1


async def test_blobs_that_are_here_need_no_source(rig: Rig, version: pb.ModelVersion, roots: Path) -> None:
    text = (await create(rig)).yaml.replace("models/acme/mini/", "models/acme/second/")
    shutil.rmtree(roots / "mini")
    name = "models/acme/second/versions/1"
    assert await apply(rig, text) == ({name: ("imported", "")}, True)
    second = await rig.final(name)
    inodes = {(Path(each.artifact.path) / WEIGHTS).stat().st_ino for each in (version, second)}
    assert len(inodes) == 1


async def test_a_mirror_that_has_another_file_names_it_and_leaves_nothing(
    rig: Rig, version: pb.ModelVersion, empty: Rig, roots: Path
) -> None:
    text = (await create(rig)).yaml
    as_digest_folders(rig, version, roots / "mirror")
    (file,) = (roots / "mirror").glob(f"*/{WEIGHTS}")
    file.chmod(0o644)
    file.write_bytes(safetensors(100_000, b"x"))
    outcome, converged = await apply(empty, text, roots / "mirror")
    assert not converged
    ((state, reason),) = outcome.values()
    assert state == "failed"
    assert WEIGHTS in reason
    assert "ChecksumMismatch" in reason
    assert empty.files() == []
    file.write_bytes((Path(version.artifact.path) / WEIGHTS).read_bytes())
    assert (await apply(empty, text, roots / "mirror"))[1], "and another try is not hindered by the first"


async def test_a_mirror_without_a_file_or_outside_the_roots_is_told(
    rig: Rig, version: pb.ModelVersion, empty: Rig, roots: Path, tmp_path: Path
) -> None:
    text = (await create(rig)).yaml
    (roots / "mirror").mkdir()
    for mirror, word in (
        (roots / "mirror", "the mirror has no"),
        (tmp_path, "model roots"),
        ("http://127.0.0.1:9/", ""),
    ):
        ((state, reason),) = (await apply(empty, text, mirror))[0].values()
        assert state == "failed"
        assert word in reason
    for wrong in ("relative/path", "http://me:secret@127.0.0.1/", "ftp://127.0.0.1/x"):
        with pytest.raises(InvalidArgument) as raised:
            await apply(empty, text, wrong)
        assert "mirror" in raised.value.fields[0].field
        assert "secret" not in raised.value.message
    assert (await empty.rows("model"))["model"] == 0


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *arguments: None  # type: ignore[attr-defined]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, name="mirror")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_a_mirror_may_be_a_url_or_an_artifact_store(
    rig: Rig, version: pb.ModelVersion, empty: Rig, roots: Path, tmp_path: Path
) -> None:
    text = with_hub_source((await create(rig)).yaml)
    delete = pb.DeleteModelRequest(name="acme/mini", force=True)
    for below in (version.artifact.digest.removeprefix("sha256:"), f"up/stream/resolve/{'0' * 40}"):
        shutil.copytree(version.artifact.path, tmp_path / "www" / below)
        with serving(tmp_path / "www") as url:
            assert await apply(empty, text, url) == ({version.name: ("imported", "")}, True)
        assert await drifts(empty, text, full=True) == {}
        await empty.call(empty.registry.DeleteModel, delete)
        shutil.rmtree(tmp_path / "www")
    as_artifact_store(rig, version, roots / "mirror")
    assert await apply(empty, text, roots / "mirror") == ({version.name: ("imported", "")}, True)


async def test_a_lock_may_name_what_was_deleted_and_brings_it_back(
    rig: Rig, version: pb.ModelVersion, roots: Path
) -> None:
    text = (await create(rig)).yaml
    file = Path(version.artifact.path) / WEIGHTS
    file.chmod(0o644)
    file.write_bytes(safetensors(100_000, b"x"))  # So a version is mended.
    assert await drifts(rig, text)
    await rig.call(rig.registry.DeleteModel, pb.DeleteModelRequest(name="acme/mini", force=True))
    assert await drifts(rig, text) == {"models[0]": (version.name, "")}
    with pytest.raises(VersionExists):
        await rig.import_model(model_id="acme/mini", source=local(roots / "mini"), version="1")
    assert await apply(rig, text) == ({version.name: ("imported", "")}, True)
    back = await rig.final(version.name)
    assert back.artifact.digest == version.artifact.digest
    assert back.uid != version.uid
    assert await drifts(rig, text, full=True) == {}
    assert health(rig) == ""


async def test_a_string_that_was_spent_on_other_files_is_not_spent_again(
    rig: Rig, version: pb.ModelVersion, empty: Rig, roots: Path
) -> None:
    as_digest_folders(rig, version, roots / "mirror")
    text = (await create(rig)).yaml
    other = sentence_model(roots / "other", seed=b"o")
    await empty.import_model(model_id="acme/mini", source=local(other), version="1")
    ((state, reason),) = (await apply(empty, text, roots / "mirror"))[0].values()
    assert state == "failed"
    assert f'files["{WEIGHTS}"]' in reason
    await empty.call(empty.registry.DeleteModel, pb.DeleteModelRequest(name="acme/mini", force=True))
    ((state, reason),) = (await apply(empty, text, roots / "mirror"))[0].values()
    assert (state, reason.partition(":")[0]) == ("failed", "VersionExists")


async def test_an_engine_that_is_not_here_and_a_version_that_is_another_fail_alone(rig: Rig) -> None:
    await rig.echo(model_id="acme/a")
    await rig.echo(model_id="acme/b", engine_options={"seed": 7})
    document = lock_yaml.read((await create(rig)).yaml)
    a, b = document.models
    changed: Mapping[str, Any] = {"model_version": "models/acme/c/versions/1", "engine": "none"}
    text = locks.render(
        locks.LockDocument.of([a, b.model_copy(update={"engine_options": {"seed": 8}}), b.model_copy(update=changed)])
    )
    outcome, converged = await apply(rig, text)
    assert not converged
    assert [state for state, _ in outcome.values()] == ["present", "failed", "failed"]
    reasons = [reason for _, reason in outcome.values()]
    assert 'engine_options["seed"] is 7, locked 8' in reasons[1]
    assert "EngineNotFound" in reasons[2]


async def test_models_without_files_are_applied_too_with_the_profile_they_are_served_with(rig: Rig, empty: Rig) -> None:
    version = await rig.echo(engine_options={"seed": 7, "dimensions": 4})
    profile = common_pb2.EngineProfile(backend="echo", precision="bf16")
    plain = (await create(rig)).yaml
    await rig.call(rig.registry.SetEngineProfile, pb.SetEngineProfileRequest(name=version.name, engine_profile=profile))
    text = (await create(rig)).yaml
    assert await apply(empty, plain) == ({version.name: ("imported", "")}, True)
    assert list(await drifts(empty, text)) == ["models[0].engine_profile.precision"]
    assert await apply(empty, text) == ({version.name: ("present", "")}, True)
    assert await drifts(empty, text) == {}
    await empty.call(empty.registry.DeleteModel, pb.DeleteModelRequest(name="acme/echo", force=True))
    assert await apply(empty, text) == ({version.name: ("imported", "")}, True)
    assert await drifts(empty, text) == {}
    assert (await create(empty)).yaml == text
