"""Models, versions and aliases through the real host, gRPC and PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.registry_rig import Rig, registry
from modelmora.common.v1 import common_pb2
from modelmora.errors import (
    Conflict,
    ModelExists,
    ModelNotFound,
    RequestIdReused,
    VersionExists,
    VersionInUse,
    VersionIsCurrent,
    VersionNotFound,
    VersionNotReady,
)
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora_runtime.db import Database

TXT2EMBED = common_pb2.TASK_TYPE_TXT2EMBED


@pytest.fixture
async def rig(database_url: str, data_dir: Path) -> AsyncIterator[Rig]:
    async with registry(database_url, data_dir) as rig:
        yield rig


async def test_migrations_run_up_down_and_up(database_url: str) -> None:
    database = Database(database_url, "registry")
    try:
        assert await database.migrate("modelmora_registry") != "base"
        assert await database.migrate("modelmora_registry", "base") == "base"
        assert await database.migrate("modelmora_registry") != "base"
    finally:
        await database.close()


async def test_a_created_model_is_what_get_and_list_answer(rig: Rig) -> None:
    draft = pb.Model(display_name="  Mini  ", description="d", task_type=TXT2EMBED, labels={"team": "search"})
    request = pb.CreateModelRequest(model_id="acme/mini", model=draft)
    created = (await rig.call(rig.registry.CreateModel, request)).model
    assert (created.name, created.display_name, created.revision) == ("models/acme/mini", "Mini", 1)
    assert created.etag
    assert created.create_time == created.update_time
    assert uuid.UUID(created.uid).version == 7
    got = (await rig.call(rig.registry.GetModel, pb.GetModelRequest(name="acme/mini"))).model
    assert got == created
    listed = await rig.call(rig.registry.ListModels, pb.ListModelsRequest(include_total_size=True))
    assert list(listed.models) == [created]
    assert listed.total_size == 1


async def test_a_request_id_makes_creating_idempotent(rig: Rig) -> None:
    request_id = str(uuid.uuid4())
    request = pb.CreateModelRequest(model_id="acme/mini", request_id=request_id)
    first = await rig.call(rig.registry.CreateModel, request)
    assert await rig.call(rig.registry.CreateModel, request) == first
    with pytest.raises(RequestIdReused):
        await rig.call(rig.registry.CreateModel, pb.CreateModelRequest(model_id="acme/other", request_id=request_id))
    with pytest.raises(ModelExists):
        await rig.call(rig.registry.CreateModel, pb.CreateModelRequest(model_id="acme/mini"))


async def test_the_same_request_id_at_once_registers_one_version(rig: Rig) -> None:
    request_id = str(uuid.uuid4())
    made = await asyncio.gather(*(rig.echo(request_id=request_id) for _ in range(8)))
    assert len({version.uid for version in made}) == 1
    assert (await rig.rows("model", "model_version")) == {"model": 1, "model_version": 1}


async def test_validate_only_leaves_nothing(rig: Rig) -> None:
    before = await rig.rows()
    answer = await rig.call(rig.registry.CreateModel, pb.CreateModelRequest(model_id="acme/mini", validate_only=True))
    assert answer.model.name == "models/acme/mini"
    version = await rig.echo(validate_only=True)
    assert version.name == "models/acme/echo/versions/1.0.0"
    assert version.uid == ""
    assert await rig.rows() == before


async def test_an_update_needs_the_state_it_was_read_at(rig: Rig) -> None:
    model = (await rig.call(rig.registry.CreateModel, pb.CreateModelRequest(model_id="acme/mini"))).model
    change = pb.UpdateModelRequest(model=pb.Model(name=model.name, description="new"), etag=model.etag)
    change.update_mask.paths.append("description")
    changed = (await rig.call(rig.registry.UpdateModel, change)).model
    assert (changed.description, changed.revision) == ("new", 2)
    assert changed.etag != model.etag
    assert changed.update_time.ToNanoseconds() > model.update_time.ToNanoseconds()
    assert changed.create_time == model.create_time
    with pytest.raises(Conflict):
        await rig.call(rig.registry.UpdateModel, change)


async def test_thirty_two_concurrent_writers_lose_nothing(rig: Rig) -> None:
    await rig.call(rig.registry.CreateModel, pb.CreateModelRequest(model_id="acme/mini"))

    async def write(number: int) -> None:
        while True:
            model = (await rig.call(rig.registry.GetModel, pb.GetModelRequest(name="acme/mini"))).model
            change = pb.UpdateModelRequest(model=model, etag=model.etag)
            change.model.labels[f"writer-{number}"] = "was here"
            change.update_mask.paths.append("labels")
            try:
                await rig.call(rig.registry.UpdateModel, change)
                return
            except Conflict:
                continue

    await asyncio.gather(*(write(number) for number in range(32)))
    model = (await rig.call(rig.registry.GetModel, pb.GetModelRequest(name="acme/mini"))).model
    assert len(model.labels) == 32
    assert model.revision == 33


async def test_pages_neither_lose_nor_repeat_under_inserts(rig: Rig) -> None:
    for number in range(25):
        await rig.call(rig.registry.CreateModel, pb.CreateModelRequest(model_id=f"acme/m{number:03}"))
    seen: list[str] = []
    request = pb.ListModelsRequest(page_size=4, order_by="name desc")
    inserted = 0
    while True:
        page = await rig.call(rig.registry.ListModels, request)
        seen += [model.name for model in page.models]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        await rig.call(rig.registry.CreateModel, pb.CreateModelRequest(model_id=f"acme/m{inserted:03}x"))
        inserted += 1
    old = [name for name in seen if not name.endswith("x")]
    assert old == [f"models/acme/m{number:03}" for number in reversed(range(25))]
    assert len(seen) == len(set(seen))


async def test_filters_choose_by_task_label_and_state(rig: Rig) -> None:
    for name, label in (("a", "x"), ("b", 'quo"te')):
        model = pb.Model(labels={"team": label}, task_type=TXT2EMBED if name == "a" else common_pb2.TASK_TYPE_TXT2TXT)
        await rig.call(rig.registry.CreateModel, pb.CreateModelRequest(model_id=f"acme/{name}", model=model))

    async def names(text: str) -> list[str]:
        page = await rig.call(rig.registry.ListModels, pb.ListModelsRequest(filter=text))
        return [model.name.rpartition("/")[2] for model in page.models]

    assert await names('task_type = "txt2embed"') == ["a"]
    assert await names('task_type = "feature-extraction"') == ["a"]
    assert await names("task_type != txt2embed") == ["b"]
    assert await names(r'labels.team = "quo\"te"') == ["b"]
    assert await names('labels.team != "x" AND task_type = txt2txt') == ["b"]
    assert await names('labels.team = "\'; DROP TABLE model; --"') == []
    assert await names('create_time > "2020-01-01T00:00:00Z"') == ["a", "b"]
    await rig.echo()
    page = await rig.call(
        rig.registry.ListModelVersions,
        pb.ListModelVersionsRequest(parent="acme/echo", filter='state = "READY" AND engine = "echo"'),
    )
    assert [version.version for version in page.model_versions] == ["1.0.0"]


async def test_a_version_without_files_is_ready_and_latest(rig: Rig) -> None:
    version = await rig.echo()
    assert version.state == pb.MODEL_VERSION_STATE_READY
    assert version.task_type == TXT2EMBED
    assert (version.engine_profile.backend, version.engine_profile.precision) == ("echo", "fp32")
    assert version.artifact.digest.startswith("sha256:")
    resolved = await rig.call(rig.registry.ResolveModel, pb.ResolveModelRequest(reference="acme/echo"))
    assert resolved.model_version == version
    assert resolved.model.current_version == version.name
    assert dict(resolved.model.aliases) == {"latest": "1.0.0"}
    assert resolved.cache_ttl.seconds == 5


async def test_aliases_move_and_production_is_current(rig: Rig) -> None:
    for version in ("1.0.0", "2.0.0"):
        await rig.echo(version=version)

    async def resolve(reference: str) -> str:
        answer = await rig.call(rig.registry.ResolveModel, pb.ResolveModelRequest(reference=reference))
        return str(answer.model_version.version)

    assert await resolve("acme/echo") == "2.0.0"
    model = (await rig.call(rig.registry.GetModel, pb.GetModelRequest(name="acme/echo"))).model
    request = pb.SetAliasRequest(name="acme/echo", alias="production", version="1.0.0", etag=model.etag)
    moved = (await rig.call(rig.registry.SetAlias, request)).model
    assert moved.current_version.endswith("/1.0.0")
    assert moved.revision == model.revision + 1
    assert await resolve("acme/echo") == "1.0.0"
    assert await resolve("acme/echo@production") == "1.0.0"
    assert await resolve("models/acme/echo/versions/2.0.0") == "2.0.0"
    with pytest.raises(VersionNotFound):
        await resolve("models/acme/echo/versions/production")
    with pytest.raises(Conflict):
        await rig.call(
            rig.registry.SetAlias, pb.SetAliasRequest(name="acme/echo", alias="x", version="1.0.0", etag="0")
        )
    await rig.call(rig.registry.SetAlias, pb.SetAliasRequest(name="acme/echo", alias="production"))
    assert await resolve("acme/echo") == "2.0.0"
    history = await rig.sql("SELECT alias, from_version, to_version FROM registry.alias_history ORDER BY uid")
    assert [tuple(row) for row in history] == [
        ("latest", None, "1.0.0"),
        ("latest", "1.0.0", "2.0.0"),
        ("production", None, "1.0.0"),
        ("production", "1.0.0", None),
    ]


async def test_the_current_version_cannot_be_deleted(rig: Rig) -> None:
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        await rig.echo(version=version)
    await rig.call(rig.registry.SetAlias, pb.SetAliasRequest(name="acme/echo", alias="blue", version="1.0.0"))

    def delete(version: str, **fields: object) -> object:
        request = pb.DeleteModelVersionRequest(name=f"acme/echo@{version}", **fields)  # type: ignore[arg-type]
        return rig.call(rig.registry.DeleteModelVersion, request)

    await rig.refused(lambda: delete("3.0.0"), VersionIsCurrent)
    await rig.refused(lambda: delete("1.0.0"), VersionIsCurrent)
    await rig.refused(lambda: delete("2.0.0", etag="stale"), Conflict)
    await rig.refused(lambda: delete("latest"), VersionNotFound)
    await delete("2.0.0")
    await delete("3.0.0", force=True)
    model = (await rig.call(rig.registry.GetModel, pb.GetModelRequest(name="acme/echo"))).model
    assert dict(model.aliases) == {"blue": "1.0.0", "latest": "1.0.0"}
    with pytest.raises(VersionExists):
        await rig.echo(version="2.0.0")


async def test_a_version_string_is_never_used_twice_even_after_its_model_is_gone(rig: Rig) -> None:
    await rig.echo()
    delete = pb.DeleteModelRequest(name="acme/echo")
    await rig.refused(lambda: rig.call(rig.registry.DeleteModel, delete), VersionInUse)
    delete.force = True
    await rig.call(rig.registry.DeleteModel, delete)
    with pytest.raises(ModelNotFound):
        await rig.call(rig.registry.GetModel, pb.GetModelRequest(name="acme/echo"))
    await rig.refused(rig.echo, VersionExists)
    assert (await rig.echo(version="1.0.1")).state == pb.MODEL_VERSION_STATE_READY


async def test_resolving_answers_what_the_model_and_the_version_say_of_themselves(rig: Rig) -> None:
    for version in ("1.0.0", "2.0.0"):
        await rig.echo(version=version)
    for alias, version in (("production", "1.0.0"), ("blue", "2.0.0")):
        await rig.call(rig.registry.SetAlias, pb.SetAliasRequest(name="acme/echo", alias=alias, version=version))
    model = (await rig.call(rig.registry.GetModel, pb.GetModelRequest(name="acme/echo"))).model
    for reference, version in (
        ("acme/echo", "1.0.0"),
        ("acme/echo@latest", "2.0.0"),
        ("acme/echo@blue", "2.0.0"),
        ("acme/echo@1.0.0", "1.0.0"),
        ("models/acme/echo/versions/2.0.0", "2.0.0"),
    ):
        answer = await rig.call(rig.registry.ResolveModel, pb.ResolveModelRequest(reference=reference))
        name = f"models/acme/echo/versions/{version}"
        found = await rig.call(rig.registry.GetModelVersion, pb.GetModelVersionRequest(name=name))
        assert (answer.model, answer.model_version) == (model, found.model_version)
    by_name = pb.ResolveModelRequest(reference="models/acme/echo/versions/blue")  # an alias is not meant
    await rig.refused(lambda: rig.call(rig.registry.ResolveModel, by_name), VersionNotFound)


async def test_resolving_says_what_is_missing(rig: Rig) -> None:
    async def resolve(reference: str) -> None:
        await rig.call(rig.registry.ResolveModel, pb.ResolveModelRequest(reference=reference))

    await rig.call(rig.registry.CreateModel, pb.CreateModelRequest(model_id="acme/empty"))
    await rig.refused(lambda: resolve("acme/none"), ModelNotFound)
    await rig.refused(lambda: resolve("acme/empty"), VersionNotReady)
    await rig.refused(lambda: resolve("acme/empty@1.0.0"), VersionNotFound)
