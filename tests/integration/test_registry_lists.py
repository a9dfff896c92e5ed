"""Lists, searches, stages, the archive, selection and the history of aliases, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from integration.registry_rig import Rig, local, registry, sentence_model
from modelmora.common.v1 import common_pb2
from modelmora.errors import (
    Conflict,
    IllegalTransition,
    InvalidArgument,
    ModelNotFound,
    QueryTooSlow,
    VersionArchived,
    VersionIsCurrent,
    VersionNotReady,
)
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora_registry import list_store
from modelmora_runtime.db import Database

TXT2EMBED, TXT2TXT = common_pb2.TASK_TYPE_TXT2EMBED, common_pb2.TASK_TYPE_TXT2TXT


@pytest.fixture
async def rig(database_url: str, data_dir: Path) -> AsyncIterator[Rig]:
    async with registry(database_url, data_dir, model_roots=(data_dir.parent / "roots",)) as rig:
        yield rig


async def create(rig: Rig, model_id: str, **fields: Any) -> pb.Model:
    request = pb.CreateModelRequest(model_id=model_id, model=pb.Model(**fields))
    return (await rig.call(rig.registry.CreateModel, request)).model  # type: ignore[no-any-return]


async def get(rig: Rig, model_id: str) -> pb.Model:
    return (await rig.call(rig.registry.GetModel, pb.GetModelRequest(name=model_id))).model  # type: ignore[no-any-return]


async def get_version(rig: Rig, name: str) -> pb.ModelVersion:
    answer = await rig.call(rig.registry.GetModelVersion, pb.GetModelVersionRequest(name=name))
    return answer.model_version  # type: ignore[no-any-return]


async def update(rig: Rig, name: str, mask: Iterable[str], *, etag: str = "", **fields: Any) -> pb.ModelVersion:
    archived = fields.pop("archived", False)
    request = pb.UpdateModelVersionRequest(
        model_version=pb.ModelVersion(name=name, **fields), etag=etag, archived=archived
    )
    request.update_mask.paths.extend(mask)
    return (await rig.call(rig.registry.UpdateModelVersion, request)).model_version  # type: ignore[no-any-return]


async def alias(rig: Rig, name: str, word: str, version: str) -> pb.Model:
    request = pb.SetAliasRequest(name=name, alias=word, version=version)
    return (await rig.call(rig.registry.SetAlias, request)).model  # type: ignore[no-any-return]


async def delete(rig: Rig, name: str, **fields: Any) -> None:
    await rig.call(rig.registry.DeleteModelVersion, pb.DeleteModelVersionRequest(name=name, **fields))


async def models(rig: Rig, filter: str = "", **fields: Any) -> list[str]:
    page = await rig.call(rig.registry.ListModels, pb.ListModelsRequest(filter=filter, **fields))
    return [model.name.removeprefix("models/") for model in page.models]


async def versions(rig: Rig, filter: str = "", parent: str = "models/-", **fields: Any) -> list[str]:
    request = pb.ListModelVersionsRequest(parent=parent, filter=filter, **fields)
    page = await rig.call(rig.registry.ListModelVersions, request)
    return [version.version for version in page.model_versions]


async def test_what_is_written_before_is_there_after_migrating_down_and_up(rig: Rig) -> None:
    await create(rig, "acme/echo", description="d", family="bert")
    await rig.echo()
    await alias(rig, "acme/echo", "production", "1.0.0")
    before = await get(rig, "acme/echo")
    database = Database(rig.database_url, "registry")
    try:
        await database.migrate("modelmora_registry", "0001")
        assert (await rig.sql("SELECT count(*) FROM registry.alias_history"))[0]["count"] == 2
        await database.migrate("modelmora_registry")
    finally:
        await database.close()
    after = await get(rig, "acme/echo")
    assert (after.family, before.family) == ("", "bert")
    assert (after.uid, dict(after.aliases)) == (before.uid, {"latest": "1.0.0", "production": "1.0.0"})
    history = await rig.call(rig.registry.ListAliasChanges, pb.ListAliasChangesRequest(parent="acme/echo"))
    assert [change.alias for change in history.changes] == ["production", "latest"]
    assert await models(rig, query="echo") == ["acme/echo"]


@pytest.mark.parametrize("table", ["alias_history", "audit_entry"])
async def test_the_records_take_no_change(rig: Rig, table: str) -> None:
    await rig.echo()
    changes = [f"UPDATE registry.{table} SET subject = 'x'", f"DELETE FROM registry.{table}"]  # noqa: S608
    for statement in (*changes, f"TRUNCATE registry.{table}"):
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="append-only"):
            await rig.sql(statement)


async def test_models_are_found_by_every_field(rig: Rig) -> None:
    await create(rig, "acme/a", display_name="One", task_type=TXT2EMBED, family="bert", labels={"team": "x"})
    await create(rig, "acme/b", task_type=TXT2TXT, base_model="models/acme/a", trainable=True)
    await create(rig, "zeta/c", labels={"team": "y_z", "tier": "1"})
    await rig.echo("acme/e", "1")
    await rig.echo("acme/e", "2")
    await alias(rig, "acme/e", "staging", "1")
    for filter, found in {
        "family = bert": ["a"],
        "family != bert": ["b", "e", "c"],
        "family : ER": ["a"],
        "modality = text": ["a", "b", "e"],
        "modality != text": ["c"],
        "base_model = acme/a": ["b"],
        "trainable = true": ["b"],
        "servable = true": ["e"],
        "servable = false AND NOT trainable = true": ["a", "c"],
        "stage = staging": ["e"],
        "NOT stage = staging": ["a", "b", "c"],
        "stage = production OR stage = archived": [],
        "labels:team": ["a", "c"],
        "labels.team : _Z": ["c"],
        'labels.team : "%"': [],
        "labels.team != x": ["b", "e", "c"],
        "NOT (labels.team = x OR labels.tier = 1)": ["b", "e"],
        "name : ZETA": ["c"],
        "name = models/acme/a OR display_name = One": ["a"],
        "update_time > 2020-01-01 AND create_time <= 2020-01-01": [],
    }.items():
        assert [name.rpartition("/")[2] for name in await models(rig, filter)] == found, filter


async def test_versions_of_all_models_are_found_by_every_field(rig: Rig) -> None:
    made = {name: await rig.echo(f"acme/{name}", name) for name in ("a", "b", "c")}
    await update(rig, made["a"].name, ["metrics", "labels"], metrics={"f1": 0.5, "ndcg@10": 1}, labels={"run": "7"})
    await update(rig, made["b"].name, ["metrics"], metrics={"f1": -2})
    await update(rig, made["c"].name, ["archive_time"], archived=True)
    for filter, found in {
        "": ["c", "b", "a"],
        "metrics.f1 >= 0.5": ["a"],
        "metrics.f1 < 1e3": ["b", "a"],
        "NOT metrics.f1 >= 0.5": ["c", "b"],
        'metrics."ndcg@10" = 1': ["a"],
        "metrics:f1": ["b", "a"],
        "labels.run = 7": ["a"],
        "archived = true": ["c"],
        "archived = false AND state = ready": ["b", "a"],
        "size_bytes = 0 AND engine = echo": ["c", "b", "a"],
        "size_bytes > 0.5": [],
        "parameter_count > 1": [],
        "NOT parameter_count > 1 AND NOT dtype = F32": ["c", "b", "a"],
        "version = a OR version : B": ["b", "a"],
        'training_job = ""': [],
    }.items():
        assert await versions(rig, filter) == found, filter
    assert await versions(rig, order_by="version") == ["a", "b", "c"]
    assert await versions(rig, parent="acme/b") == ["b"]
    pages = [await rig.call(rig.registry.ListModelVersions, pb.ListModelVersionsRequest(parent="-", page_size=2))]
    token = pages[0].next_page_token
    last = pb.ListModelVersionsRequest(parent="models/-", page_token=token)
    assert [each.name for each in (await rig.call(rig.registry.ListModelVersions, last)).model_versions] == [
        "models/acme/a/versions/a"
    ]
    with pytest.raises(InvalidArgument):
        await rig.call(rig.registry.ListModelVersions, pb.ListModelVersionsRequest(parent="acme/a", page_token=token))


async def test_a_search_finds_words_and_the_best_comes_first(rig: Rig) -> None:
    await create(rig, "acme/all-MiniLM-L6-v2", description="Sentence embeddings, small and quick")
    await create(rig, "acme/big", description="An embedding model; it is slow")
    await create(rig, "acme/embedding-gemma", display_name="Gemma", family="gemma")
    assert await models(rig, query="minilm") == ["acme/all-MiniLM-L6-v2"]
    assert (await models(rig, query="embedding"))[0] == "acme/embedding-gemma"
    assert sorted(await models(rig, query="embeddings")) == [
        "acme/all-MiniLM-L6-v2",
        "acme/big",
        "acme/embedding-gemma",
    ]
    assert await models(rig, query="embedding -gemma", order_by="name desc") == ["acme/big", "acme/all-MiniLM-L6-v2"]
    assert await models(rig, query='"small and quick" or slow', filter="name : big") == ["acme/big"]
    assert await models(rig, query="all") == ["acme/all-MiniLM-L6-v2"]
    for odd in ("!!!", "' OR 1=1 --", "(((", "a:*b & | !", '"', "\\", "it"):
        assert await models(rig, query=odd) in ([], ["acme/big"]), odd
    request = pb.ListModelsRequest(query="embedding", page_size=1, include_total_size=True)
    seen, ranks = [], []
    while True:
        page = await rig.call(rig.registry.ListModels, request)
        assert page.total_size == 3
        seen += [model.name for model in page.models]
        ranks += [model.rank for model in page.models]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert len(set(seen)) == 3
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] > 0


async def test_of_many_that_match_the_newest_are_ranked(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_store, "RANKED", 3)
    for number in range(6):
        await create(rig, f"acme/m{number}", description="word " * (6 - number), labels={"odd": str(number % 2)})
    assert await models(rig, query="word") == ["acme/m3", "acme/m4", "acme/m5"]
    assert await models(rig, query="word", filter="labels.odd = 0") == ["acme/m0", "acme/m2", "acme/m4"]
    request = pb.ListModelsRequest(query="word", page_size=2, include_total_size=True)
    first = await rig.call(rig.registry.ListModels, request)
    request.page_token = first.next_page_token
    second = await rig.call(rig.registry.ListModels, request)
    assert [found.name[-2:] for found in (*first.models, *second.models)] == ["m3", "m4", "m5"]
    assert (first.total_size, second.next_page_token) == (6, "")
    assert len(await models(rig, query="word", order_by="name")) == 6


@pytest.mark.parametrize("few", [0, 2, 3, 1000])
async def test_a_search_beside_a_filter_finds_the_same_however_many_it_finds(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """What is few is looked up first and then put in order, what is many is walked in order."""
    monkeypatch.setattr(list_store, "FEW", few)
    for number in range(6):
        await create(rig, f"acme/m{number}", description="word " * (6 - number), labels={"odd": str(number % 2)})
    odd = "labels.odd = 1"
    assert await models(rig, query="word", filter=odd) == ["acme/m1", "acme/m3", "acme/m5"]
    assert await models(rig, query="word", filter="labels.odd = 2") == []
    assert await models(rig, query="word", filter=odd, order_by="name desc") == ["acme/m5", "acme/m3", "acme/m1"]
    request = pb.ListModelsRequest(query="word", filter=odd, page_size=1, include_total_size=True)
    seen = []
    for _ in range(3):
        page = await rig.call(rig.registry.ListModels, request)
        seen += [found.name for found in page.models]
        assert page.total_size == 3
        request.page_token = page.next_page_token
    assert seen == ["models/acme/m1", "models/acme/m3", "models/acme/m5"]
    assert page.next_page_token == ""


async def test_statements_of_ever_other_filters_are_not_kept(rig: Rig) -> None:
    await create(rig, "acme/one", family="bert")
    bare = ("trainable = false", "servable = false")
    met = ('family = "bert"', 'name = "acme/one"', 'NOT family = "x"', 'name:"one"', *bare)
    filters = [" AND ".join(each) for count in range(1, 5) for each in combinations(met, count)]
    assert len(filters) > 1.5 * list_store.COMPILED.capacity
    for each in filters:
        assert await models(rig, each) == ["acme/one"], each
    assert 0 < len(list_store.COMPILED) <= 1.5 * list_store.COMPILED.capacity


async def test_a_filter_that_takes_too_long_says_so_and_harms_nobody(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await create(rig, "acme/one", family="bert")
    connection = await asyncpg.connect(rig.database_url.replace("+asyncpg", ""))
    try:
        await connection.execute("BEGIN; LOCK TABLE registry.model IN ACCESS EXCLUSIVE MODE")
        for fields, field in (({"filter": 'family = "bert"'}, "filter"), ({"query": "bert"}, "query")):
            with monkeypatch.context() as patch:
                patch.setattr(list_store, "LONGEST_SECONDS", 0.3)
                with pytest.raises(QueryTooSlow, match="add a condition") as caught:
                    await rig.call(rig.registry.ListModels, pb.ListModelsRequest(**fields))
            assert [violation.field for violation in caught.value.fields] == [field]
            # The database is not taken for gone: what asks for less is answered.
            await rig.call(rig.registry.ListModelLocks, pb.ListModelLocksRequest())
    finally:
        await connection.close()
    found = await rig.call(rig.registry.ListModels, pb.ListModelsRequest(filter='family = "bert"'))
    assert [model.name for model in found.models] == ["models/acme/one"]


@pytest.mark.parametrize("order", ["name", "create_time desc", "rank"])
async def test_paging_neither_loses_nor_repeats_while_others_write(rig: Rig, order: str) -> None:
    """Thirty rows are there from the beginning; six writers add and change others at the same time."""
    rng = random.Random(order)
    old = {f"models/acme/m{number:03}" for number in range(30)}
    await asyncio.gather(*(create(rig, name.removeprefix("models/"), description="word") for name in old))
    done = asyncio.Event()

    async def write(writer: int) -> None:
        number = 0
        while not done.is_set():
            name = f"acme/{rng.choice('amz')}{writer}-{number}"
            await create(rig, name, description="word " * rng.randint(0, 3))
            if number:
                await update_description(rig, name, "word word")
            number += 1

    writers = [asyncio.create_task(write(writer)) for writer in range(6)]
    try:
        for size in (1, 3, 7):
            seen: list[str] = []
            request = pb.ListModelsRequest(page_size=size)
            if order == "rank":
                request.query = "word"
            else:
                request.order_by = order
            while True:
                page = await rig.call(rig.registry.ListModels, request)
                seen += [model.name for model in page.models if model.name in old]
                # What is written meanwhile may go on for ever; all that was there has been seen long before.
                if not page.next_page_token or old <= set(seen):
                    break
                request.page_token = page.next_page_token
            assert sorted(seen) == sorted(old)
    finally:
        done.set()
        await asyncio.gather(*writers)


async def update_description(rig: Rig, name: str, description: str) -> None:
    request = pb.UpdateModelRequest(model=pb.Model(name=name, description=description))
    request.update_mask.paths.append("description")
    await rig.call(rig.registry.UpdateModel, request)


async def test_a_total_is_counted_to_ten_thousand_and_one(rig: Rig) -> None:
    await rig.sql(
        "INSERT INTO registry.model (uid, name, display_name, description, labels, revision, create_time, update_time) "
        "SELECT gen_random_uuid(), 'acme/m' || n, 'm', '', '{}', 1, now(), now() FROM generate_series(1, 10005) AS n"
    )
    request = pb.ListModelsRequest(page_size=1, include_total_size=True)
    assert (await rig.call(rig.registry.ListModels, request)).total_size == 10_001
    request.filter = "name : m1000 OR name = acme/m7"
    assert (await rig.call(rig.registry.ListModels, request)).total_size == 8


async def test_an_archived_version_is_neither_latest_nor_current_and_comes_back(rig: Rig) -> None:
    one, two = await rig.echo(version="1"), await rig.echo(version="2")
    put_away = await update(rig, two.name, ["archive_time"], archived=True, etag=two.etag)
    assert put_away.HasField("archive_time")
    assert put_away.revision == two.revision + 1
    model = await get(rig, "acme/echo")
    assert (dict(model.aliases), model.current_version) == ({"latest": "1"}, one.name)
    named = await rig.call(rig.registry.ResolveModel, pb.ResolveModelRequest(reference="acme/echo@2"))
    assert named.model_version == put_away
    with pytest.raises(VersionArchived):
        await alias(rig, "acme/echo", "production", "2")
    with pytest.raises(Conflict):
        await update(rig, two.name, ["archive_time"], etag=two.etag)
    three = await rig.echo(version="3")
    await update(rig, three.name, ["archive_time"], archived=True)
    await update(rig, one.name, ["archive_time"], archived=True)
    assert not (await get(rig, "acme/echo")).aliases
    assert await models(rig, "stage = archived AND servable = false") == ["acme/echo"]
    with pytest.raises(VersionNotReady):
        await rig.call(rig.registry.ResolveModel, pb.ResolveModelRequest(reference="acme/echo"))
    back = await update(rig, two.name, ["archive_time"])
    assert not back.HasField("archive_time")
    assert dict((await get(rig, "acme/echo")).aliases) == {"latest": "2"}
    await alias(rig, "acme/echo", "staging", "2")
    with pytest.raises(VersionIsCurrent):
        await update(rig, two.name, ["archive_time"], archived=True)
    await update(rig, one.name, ["archive_time"])
    assert dict((await get(rig, "acme/echo")).aliases) == {"latest": "2", "staging": "2"}


async def test_a_version_that_latest_alone_points_at_is_kept_too(rig: Rig) -> None:
    for version in ("1", "2"):
        await rig.echo(version=version)
    await alias(rig, "acme/echo", "production", "1")
    with pytest.raises(VersionIsCurrent):
        await delete(rig, "acme/echo@2")
    with pytest.raises(VersionIsCurrent):
        await delete(rig, "acme/echo@1")
    await delete(rig, "acme/echo@2", force=True)
    assert dict((await get(rig, "acme/echo")).aliases) == {"latest": "1", "production": "1"}
    await delete(rig, "acme/echo@1", force=True)
    assert not (await get(rig, "acme/echo")).aliases


async def test_the_history_of_aliases_tells_every_move_and_outlives_the_model(rig: Rig) -> None:
    for version in ("1", "2"):
        await rig.echo(version=version)
    await alias(rig, "acme/echo", "production", "1")
    await alias(rig, "acme/echo", "production", "2")
    await update(rig, "acme/echo@1", ["archive_time"], archived=True)
    await alias(rig, "acme/echo", "production", "")
    await rig.call(rig.registry.DeleteModel, pb.DeleteModelRequest(name="acme/echo", force=True))
    request = pb.ListAliasChangesRequest(parent="models/acme/echo", page_size=2)
    told: list[tuple[str, ...]] = []
    while True:
        page = await rig.call(rig.registry.ListAliasChanges, request)
        told += [(each.alias, each.from_version, each.to_version, each.subject) for each in page.changes]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert told == [
        ("latest", "2", "", "everyone"),
        ("production", "2", "", "everyone"),
        ("production", "1", "2", "everyone"),
        ("production", "", "1", "everyone"),
        ("latest", "1", "2", "system"),
        ("latest", "", "1", "system"),
    ]
    only = pb.ListAliasChangesRequest(parent="acme/echo", alias="latest")
    assert len((await rig.call(rig.registry.ListAliasChanges, only)).changes) == 3
    with pytest.raises(ModelNotFound):
        await rig.call(rig.registry.ListAliasChanges, pb.ListAliasChangesRequest(parent="acme/none"))


async def test_an_update_changes_what_the_mask_names_and_nothing_else(rig: Rig) -> None:
    version = await rig.echo()
    requirements = pb.ResourceRequirements(memory_bytes=5)
    changed = await update(
        rig,
        version.name,
        ["labels", "resource_requirements"],
        labels={"a": "b"},
        resource_requirements=requirements,
        metrics={"f1": 1},
    )
    assert (dict(changed.labels), changed.resource_requirements, dict(changed.metrics)) == (
        {"a": "b"}, requirements, {},
    )  # fmt: skip
    assert changed.artifact == version.artifact
    cleared = await update(rig, version.name, ["resource_requirements", "labels"])
    assert not cleared.HasField("resource_requirements")
    assert not cleared.labels
    for mask, fields in (
        ([], {}),
        (["engine"], {}),
        (["metrics"], {"metrics": {"training_kg": -0.1}}),
        (["metrics"], {"metrics": {"f1": float("nan")}}),
        (["metrics"], {"metrics": {"a b": 1}}),
        (["labels"], {"labels": {"A": "b"}}),
    ):
        with pytest.raises(InvalidArgument):
            await update(rig, version.name, mask, **fields)
    request = pb.CreateModelVersionRequest(parent="acme/echo", model_version=pb.ModelVersion(version="x"))
    request.model_version.engine = "echo"
    request.model_version.source.empty.SetInParent()
    request.model_version.metrics["f1"] = 0.25
    request.model_version.training_job = "trainingJobs/7"
    made = (await rig.call(rig.registry.CreateModelVersion, request)).model_version
    assert (dict(made.metrics), made.training_job) == ({"f1": 0.25}, "trainingJobs/7")
    assert await versions(rig, 'training_job = "trainingJobs/7"') == ["x"]


async def test_writers_of_one_version_lose_nothing(rig: Rig) -> None:
    version = await rig.echo()

    async def write(number: int) -> None:
        while True:
            seen = await get_version(rig, version.name)
            try:
                await update(rig, version.name, ["metrics"], metrics={**seen.metrics, f"m{number}": 1}, etag=seen.etag)
                return
            except Conflict:
                continue

    await asyncio.gather(*(write(number) for number in range(12)))
    last = await get_version(rig, version.name)
    assert len(last.metrics) == 12
    assert last.revision == version.revision + 12


async def test_the_version_that_meets_the_criteria_best_is_selected(rig: Rig) -> None:
    for version, accuracy in (("1", 0.9), ("2", 0.95), ("3", 0.7)):
        await rig.echo(version=version)
        await update(rig, f"acme/echo@{version}", ["metrics"], metrics={"accuracy": accuracy})
    request = pb.SelectModelVersionRequest(name="acme/echo", primary_metric="accuracy", metric_threshold=0.8)
    answer = await rig.call(rig.registry.SelectModelVersion, request)
    assert answer.model_version.version == "2"
    assert {each.version: each.reason for each in answer.rejected} == {
        "1": "accuracy 0.9 is worse than 0.95 of 2",
        "3": "accuracy 0.7 is less than 0.8",
    }
    request.metric_threshold = 0.99
    none = await rig.call(rig.registry.SelectModelVersion, request)
    assert not none.HasField("model_version")
    assert len(none.rejected) == 3
    newest = await rig.call(rig.registry.SelectModelVersion, pb.SelectModelVersionRequest(name="acme/echo"))
    assert newest.model_version.version == "3"
    for wrong in ({"max_size_bytes": -1}, {"secondary_metrics": {"x": float("inf")}}, {"lower_is_better": True}):
        with pytest.raises(InvalidArgument):
            await rig.call(rig.registry.SelectModelVersion, pb.SelectModelVersionRequest(name="acme/echo", **wrong))
    with pytest.raises(ModelNotFound):
        await rig.call(rig.registry.SelectModelVersion, pb.SelectModelVersionRequest(name="acme/none"))


async def test_one_model_serves_as_base_model_fine_tuned_model_and_version(rig: Rig) -> None:
    """The three views that the products before this one had: what each shows is there."""
    folder = sentence_model(Path(rig.data_dir.parent / "roots" / "mini"))
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2}')
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [small]\nbase_model: acme/base\n---\n# Mini\n")
    version = await rig.import_model(model_id="acme/mini", version="1", source=local(folder))
    assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
    model = await get(rig, "acme/mini")
    assert (model.family, model.modality, model.base_model, model.servable) == (
        "bert",
        "text",
        "models/acme/base",
        True,
    )
    assert await models(rig, "family = bert AND base_model = acme/base") == ["acme/mini"]
    told = version.metadata
    assert (told.license, list(told.tags), told.hidden_size, told.num_layers) == ("mit", ["small"], 16, 2)
    assert not told.HasField("parameter_count")
    assert version.HasField("verify_time")
    # The card may be long: only who asks for this one version gets it.
    assert (await get_version(rig, version.name)).metadata.model_card == "# Mini"
    resolved = await rig.call(rig.registry.ResolveModel, pb.ResolveModelRequest(reference="acme/mini"))
    assert not resolved.model_version.metadata.HasField("model_card")
    changed = await update(rig, version.name, ["labels"], labels={"a": "b"})
    assert changed.metadata == resolved.model_version.metadata
    assert (await get_version(rig, version.name)).metadata.model_card == "# Mini"
    checksums = {"config.json": "sha256:" + "0" * 64}
    source = local(folder)
    failed = await rig.import_model(model_id="acme/mini", version="2", source=source, expected_checksums=checksums)
    assert failed.state == pb.MODEL_VERSION_STATE_FAILED
    with pytest.raises(IllegalTransition):
        await update(rig, failed.name, ["archive_time"], archived=True)
    # What somebody says wins over the files, until it is taken back.
    for given, shown in (("my-bert", "my-bert"), ("", "bert")):
        request = pb.UpdateModelRequest(model=pb.Model(name=model.name, family=given))
        request.update_mask.paths.append("family")
        assert (await rig.call(rig.registry.UpdateModel, request)).model.family == shown
    used = await rig.call(rig.registry.GetStorageUse, pb.GetStorageUseRequest())
    assert (used.model_count, used.version_count, used.artifact_bytes) == (1, 2, version.artifact.size_bytes)
