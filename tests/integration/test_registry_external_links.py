"""Links to other registries: a folder, and a Hub that speaks the routes of the real client; both ways."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from integration.hub_server import COMMIT, FakeHub, hub
from integration.registry_rig import Rig, local, registry, safetensors, sentence_model
from modelmora.errors import (
    ChecksumMismatch,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    LinkExists,
    LinkNotFound,
    ModelNotFound,
    SourceUnavailable,
)
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora_registry import exports

WEIGHTS = "model.safetensors"
SECRET = "hf_" + "x" * 8
NEVER, SYNCED, OUT = pb.SYNC_STATE_NEVER_SYNCED, pb.SYNC_STATE_SYNCED, pb.SYNC_STATE_OUT_OF_SYNC


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return content(sentence_model(tmp_path / "roots" / "mini"))


@pytest.fixture
def fake(files: dict[str, bytes]) -> Iterator[FakeHub]:
    with hub(files, token=SECRET) as fake:
        yield fake


@pytest.fixture
async def rig(database_url: str, data_dir: Path, fake: FakeHub, tmp_path: Path) -> AsyncIterator[Rig]:
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / "out").mkdir()
    async with registry(
        database_url,
        data_dir,
        model_roots=(tmp_path / "roots",),
        export_roots=(tmp_path / "out",),
        hub_endpoint=fake.url,
        hub_token_file=tmp_path / "token",
    ) as rig:
        yield rig


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def link(rig: Rig, registry_type: str, external_id: str, parent: str = "org/repo") -> pb.ExternalLink:
    wanted = pb.ExternalLink(registry_type=registry_type, external_id=external_id)
    request = pb.CreateExternalLinkRequest(parent=parent, external_link=wanted)
    return (await rig.call(rig.registry.CreateExternalLink, request)).external_link


async def check(rig: Rig, name: str) -> pb.ExternalLink:
    return (await rig.call(rig.registry.CheckExternalLink, pb.CheckExternalLinkRequest(name=name))).external_link


async def export(rig: Rig, reference: str, name: str, *, overwrite: bool = False) -> pb.ExternalLink:
    request = pb.ExportModelVersionRequest(name=reference, external_link=name, overwrite=overwrite)
    return (await rig.call(rig.registry.ExportModelVersion, request)).external_link


async def import_from_hub(rig: Rig) -> pb.ModelVersion:
    version = await rig.import_model(source=pb.ModelSource(hub=pb.HubSource(repo_id="org/repo")))
    assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
    return version


async def test_a_model_that_came_from_the_hub_is_in_sync_until_the_hub_moves_on(rig: Rig, fake: FakeHub) -> None:
    version = await import_from_hub(rig)
    made = await link(rig, "huggingface", "org/repo")
    assert (made.imported, made.version, made.sync_state) == (True, version.version, SYNCED)
    assert made.url == f"{fake.url}/org/repo"
    fake.files["README.md"] = b"new"
    checked = await check(rig, made.name)
    assert (checked.sync_state, checked.sync_reason) == (OUT, "README.md is there only")
    fake.files.pop("README.md")
    fake.files["onnx/model.onnx"] = b"another format: none of our business"
    assert (await check(rig, made.name)).sync_state == SYNCED
    fake.files[WEIGHTS] = safetensors(100_000, b"v")
    fake.files["config.json"] += b" "
    checked = await check(rig, made.name)
    assert (checked.sync_state, checked.sync_reason) == (OUT, f"config.json, {WEIGHTS} differs there")
    assert checked.metadata["commit"]
    fake.refuse += [(503, {}), (503, {})]
    with pytest.raises(SourceUnavailable):
        await check(rig, made.name)
    kept = (await rig.call(rig.registry.GetExternalLink, pb.GetExternalLinkRequest(name=made.name))).external_link
    assert kept == checked


async def test_an_import_after_the_link_was_made_is_noted_in_it(rig: Rig) -> None:
    await rig.call(rig.registry.CreateModel, pb.CreateModelRequest(model_id="org/repo"))
    made = await link(rig, "huggingface", "org/repo")
    assert (made.sync_state, made.imported) == (NEVER, False)
    with pytest.raises(FailedPrecondition):
        await check(rig, made.name)  # There is nothing here yet to compare with.
    version = await import_from_hub(rig)
    now = (await rig.call(rig.registry.GetExternalLink, pb.GetExternalLinkRequest(name=made.name))).external_link
    assert (now.sync_state, now.imported, now.version) == (SYNCED, True, version.version)
    assert now.HasField("import_time")


async def test_a_version_goes_to_the_hub_in_one_commit_and_is_read_back(
    rig: Rig, fake: FakeHub, tmp_path: Path
) -> None:
    folder = tmp_path / "roots" / "mini"
    (folder / WEIGHTS).write_bytes(safetensors(100_000, b"u"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mini\n")
    version = await rig.import_model(model_id="org/repo", source=local(folder), version="2")
    made = await link(rig, "huggingface", "org/repo")
    assert (await check(rig, made.name)).sync_state == NEVER
    before = dict(fake.files)
    with pytest.raises(FailedPrecondition, match=f"org/repo: {WEIGHTS} came from no export; nothing was written"):
        await export(rig, "org/repo@2", made.name)
    assert (fake.files, fake.commits) == (before, 0)
    exported = await export(rig, "org/repo@2", made.name, overwrite=True)
    assert (exported.sync_state, exported.version) == (SYNCED, "2")
    assert exported.HasField("export_time")
    assert set(exported.exported_digests) == set(exported.exported_files) == set(fake.files)
    assert fake.commits == 1
    assert fake.files == content(Path(version.artifact.path))
    fake.refuse.append((429, {}))
    with pytest.raises(SourceUnavailable):
        await export(rig, "org/repo", made.name)
    assert fake.commits == 1


async def test_an_export_takes_away_what_an_earlier_one_put_there_and_nothing_else(
    rig: Rig, fake: FakeHub, tmp_path: Path
) -> None:
    folder = tmp_path / "roots" / "mini"
    (folder / "notes.txt").write_text("notes")
    await rig.import_model(model_id="org/repo", source=local(folder), version="1")
    (folder / "notes.txt").unlink()
    smaller = await rig.import_model(model_id="org/repo", source=local(folder), version="2")
    made = await link(rig, "huggingface", "org/repo")
    fake.files["stranger.txt"] = b"somebody's own"
    before = dict(fake.files)
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match=r"stranger\.txt; nothing was written"):
            await export(rig, "org/repo@1", made.name)
    assert (fake.files, fake.commits) == (before, 0)
    del fake.files["stranger.txt"]
    assert (await export(rig, "org/repo@1", made.name)).sync_state == SYNCED
    assert "notes.txt" in fake.files
    fake.files[".gitattributes"] = b"none of our business"
    fake.branches["main"] = "f" * 40  # Somebody has pushed since the repository was looked at.
    with pytest.raises(ChecksumMismatch, match="changed at the Hub"):
        await export(rig, "org/repo@2", made.name)
    assert ("notes.txt" in fake.files, fake.commits) == (True, 1)
    fake.branches["main"] = COMMIT
    assert (await export(rig, "org/repo@2", made.name)).sync_state == SYNCED
    assert fake.files.pop(".gitattributes") == b"none of our business"
    assert (fake.files, fake.commits) == (content(Path(smaller.artifact.path)), 2)


async def test_what_somebody_has_changed_there_is_named_and_stays(rig: Rig, fake: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "roots" / "mini"
    (folder / "notes.txt").write_text("notes")
    first = await rig.import_model(model_id="org/repo", source=local(folder), version="1")
    (folder / "notes.txt").unlink()
    second = await rig.import_model(model_id="org/repo", source=local(folder), version="2")
    made = await link(rig, "huggingface", "org/repo")
    await export(rig, "org/repo@1", made.name)
    # One would be deleted, the other replaced; a third that is changed to what comes anyway is nobody's loss.
    fake.files["notes.txt"] = b"somebody's own notes"
    fake.files["config.json"] += b" "
    before = dict(fake.files)
    for _ in range(2):
        wrong = r"org/repo: config\.json, notes\.txt was changed there since its export; nothing was written"
        with pytest.raises(FailedPrecondition, match=wrong):
            await export(rig, "org/repo@2", made.name)
    assert (fake.files, fake.commits) == (before, 1)
    fake.files["config.json"] = content(Path(first.artifact.path))["config.json"]
    with pytest.raises(FailedPrecondition, match=r"org/repo: notes\.txt was changed"):
        await export(rig, "org/repo@2", made.name)
    assert (await export(rig, "org/repo@2", made.name, overwrite=True)).sync_state == SYNCED
    assert fake.files == content(Path(second.artifact.path))


async def test_what_an_export_left_that_never_ended_is_its_own(
    rig: Rig, fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "roots" / "mini"
    smaller = await rig.import_model(model_id="org/repo", source=local(folder), version="1")
    (folder / "notes.txt").write_text("notes")
    await rig.import_model(model_id="org/repo", source=local(folder), version="2")
    made = await link(rig, "huggingface", "org/repo")

    def unanswered(*arguments: object) -> None:
        raise SourceUnavailable("the Hub broke off")

    with monkeypatch.context() as patch:
        patch.setattr(exports.Exports, "_look", unanswered)
        with pytest.raises(SourceUnavailable):
            await export(rig, "org/repo@2", made.name)
    assert "notes.txt" in fake.files
    assert (await export(rig, "org/repo@1", made.name)).sync_state == SYNCED
    assert fake.files == content(Path(smaller.artifact.path))


async def test_a_folder_gets_a_version_whole_and_its_sums(rig: Rig, tmp_path: Path, files: dict[str, bytes]) -> None:
    source = tmp_path / "roots" / "mini"
    first = await rig.import_model(model_id="org/repo", source=local(source), version="1")
    target = tmp_path / "out" / "sub" / "mini"
    made = await link(rig, "folder", str(target))
    assert made.sync_state == NEVER
    assert (await check(rig, made.name)).sync_reason.startswith("there is no folder")
    exported = await export(rig, "org/repo@1", made.name)
    assert (exported.sync_state, exported.version) == (SYNCED, "1")
    sums = "".join(f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files))
    assert content(target) == {**files, "SHA256SUMS": sums.encode()}
    assert {path.stat().st_ino for path in target.rglob("*")}.isdisjoint(
        path.stat().st_ino for path in rig.artifacts.rglob("*")
    )
    (target / "config.json").write_text("{}")
    assert (await check(rig, made.name)).sync_state == OUT
    (source / WEIGHTS).write_bytes(safetensors(100_000, b"v"))
    await rig.import_model(model_id="org/repo", source=local(source), version="2")
    with pytest.raises(FailedPrecondition, match=r"config\.json was changed there since its export"):
        await export(rig, "org/repo@2", made.name)
    assert (target / "config.json").read_text() == "{}"
    assert (await export(rig, "org/repo@2", made.name, overwrite=True)).sync_state == SYNCED
    assert (target / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    assert (await check(rig, made.name)).sync_state == SYNCED
    assert (await export(rig, "org/repo@2", made.name)).sync_state == SYNCED  # What an export put there makes way.
    (target / "mine.txt").write_text("mine")
    assert (await check(rig, made.name)).sync_reason == "mine.txt is there only"
    with pytest.raises(FailedPrecondition, match=r"mine\.txt"):
        await export(rig, "org/repo@1", made.name, overwrite=True)
    assert (target / "mine.txt").read_text() == "mine"
    again = await rig.import_model(
        model_id="org/copy", source=pb.ModelSource(local=pb.LocalSource(path=str(source))), version="1"
    )
    assert again.artifact.digest != first.artifact.digest
    assert [path.name for path in target.parent.iterdir()] == ["mini"]


async def test_an_export_that_fails_leaves_what_was_there(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "roots" / "mini", tmp_path / "out" / "mini"
    first = await rig.import_model(model_id="org/repo", source=local(source), version="1")
    made = await link(rig, "folder", str(target))
    await export(rig, "org/repo", made.name)
    before = content(target)
    rotten = Path(first.artifact.path) / WEIGHTS
    rotten.chmod(0o644)
    rotten.write_bytes(safetensors(100_000, b"v"))
    with pytest.raises(ChecksumMismatch, match=WEIGHTS):
        await export(rig, "org/repo", made.name)
    assert content(target) == before
    assert [path.name for path in target.parent.iterdir()] == ["mini"]
    monkeypatch.setattr(exports, "_RENAME_EXCHANGE", 1 << 20)  # A file system that cannot exchange two names.
    rotten.write_bytes(before[WEIGHTS])
    await export(rig, "org/repo", made.name)
    assert content(target) == before


async def test_a_folder_outside_the_roots_is_no_other_registry(rig: Rig, tmp_path: Path) -> None:
    await rig.echo("acme/mini")
    (tmp_path / "roots" / "out").symlink_to("/etc")
    for path in (
        "/etc",
        "/",
        f"{tmp_path}/roots/../secret",
        f"{tmp_path}/roots/out",
        f"{tmp_path}/rootsx",
        f"{tmp_path}/out",
    ):
        link = pb.ExternalLink(registry_type="folder", external_id=path)
        request = pb.CreateExternalLinkRequest(parent="acme/mini", external_link=link)
        await rig.refused(
            lambda request=request: rig.call(rig.registry.CreateExternalLink, request),
            InvalidArgument,
            "external_link.external_id",
        )


async def test_links_are_listed_deleted_and_refused_with_names(rig: Rig, tmp_path: Path) -> None:
    await rig.call(rig.registry.CreateModel, pb.CreateModelRequest(model_id="org/repo"))
    made = [await link(rig, "folder", str(tmp_path / "out" / str(number))) for number in range(3)]
    request = pb.ListExternalLinksRequest(parent="org/repo", page_size=2)
    first = await rig.call(rig.registry.ListExternalLinks, request)
    request.page_token = first.next_page_token
    second = await rig.call(rig.registry.ListExternalLinks, request)
    assert [each.name for each in (*first.external_links, *second.external_links)] == [each.name for each in made]
    assert second.next_page_token == ""

    refused = [
        (lambda: link(rig, "folder", made[0].external_id), LinkExists, None),
        (lambda: link(rig, "huggingface", "a/b", "org/none"), ModelNotFound, None),
        (lambda: link(rig, "modelscope", "a/b"), InvalidArgument, "external_link.registry_type"),
        (lambda: link(rig, "huggingface", "ab"), InvalidArgument, "external_link"),
        (lambda: check(rig, "models/org/repo"), InvalidArgument, "name"),
        (lambda: check(rig, f"models/org/other/links/{made[0].uid}"), LinkNotFound, None),
        (lambda: export(rig, "org/other", made[0].name), InvalidArgument, "external_link"),
    ]
    for call, cls, field in refused:
        await rig.refused(call, cls, field)
    delete = pb.DeleteExternalLinkRequest(name=made[0].name, etag="stale")
    await rig.refused(lambda: rig.call(rig.registry.DeleteExternalLink, delete), Conflict)
    delete.etag = made[0].etag
    await rig.call(rig.registry.DeleteExternalLink, delete)
    await rig.refused(lambda: rig.call(rig.registry.DeleteExternalLink, delete), LinkNotFound)
    await rig.call(rig.registry.DeleteModel, pb.DeleteModelRequest(name="org/repo"))
    assert await rig.rows("external_link") == {"external_link": 0}


async def test_nothing_is_written_outside_the_export_roots(
    rig: Rig, tmp_path: Path, database_url: str, data_dir: Path
) -> None:
    await rig.import_model(model_id="org/repo", source=local(tmp_path / "roots" / "mini"), version="1")
    (tmp_path / "out" / "door").symlink_to(tmp_path)
    (tmp_path / "out" / "file").write_text("x")
    for path in ("roots/new", "out/file", "out/later"):
        made = await link(rig, "folder", f"{tmp_path}/{path}")
        if path == "out/later":
            (tmp_path / path).symlink_to(tmp_path)  # The way there has changed since.
        before = await asyncio.to_thread(content, tmp_path)
        with pytest.raises(FailedPrecondition):
            await export(rig, "org/repo", made.name)
        assert await asyncio.to_thread(content, tmp_path) == before
    echo = await rig.echo("org/echo")
    made = await link(rig, "folder", f"{tmp_path}/out/echo", "org/echo")
    with pytest.raises(FailedPrecondition, match="no files"):
        await export(rig, echo.name, made.name)
