"""The table of bad input: each a named error with the path of its field, and nothing left behind."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from integration.registry_rig import Rig, registry
from modelmora.errors import EngineNotFound, InvalidArgument, ModelMoraError, ModelNotFound, VersionExists
from modelmora.registry.v1 import registry_pb2 as pb


@pytest.fixture
async def rig(database_url: str, data_dir: Path) -> AsyncIterator[Rig]:
    async with registry(database_url, data_dir) as rig:
        await rig.echo()
        yield rig


def echo_version(**fields: Any) -> dict[str, Any]:
    return {"parent": "acme/echo", "modelVersion": {"version": "2", "engine": "echo", **fields}}


BAD = [
    ("CreateModel", {"modelId": ""}, InvalidArgument, "model_id"),
    ("CreateModel", {"modelId": "norepo"}, InvalidArgument, "model_id"),
    ("CreateModel", {"modelId": "a/b/c"}, InvalidArgument, "model_id"),
    ("CreateModel", {"modelId": "-a/b"}, InvalidArgument, "model_id"),
    ("CreateModel", {"modelId": "a/" + "b" * 97}, InvalidArgument, "model_id"),
    ("CreateModel", {"modelId": "a/b c"}, InvalidArgument, "model_id"),
    ("CreateModel", {"modelId": "../b"}, InvalidArgument, "model_id"),
    ("CreateModel", {"modelId": "a/b", "requestId": "7"}, InvalidArgument, "request_id"),
    ("CreateModel", {"modelId": "a/b", "requestId": "7", "validateOnly": True}, InvalidArgument, "request_id"),
    ("CreateModelVersion", {**echo_version(), "requestId": "7", "validateOnly": True}, InvalidArgument, "request_id"),
    ("CreateModel", {"modelId": "a/b", "model": {"displayName": "x" * 201}}, InvalidArgument, "model.display_name"),
    ("CreateModel", {"modelId": "a/b", "model": {"displayName": " \t"}}, InvalidArgument, "model.display_name"),
    ("CreateModel", {"modelId": "a/b", "model": {"description": "x" * 100_001}}, InvalidArgument, "model.description"),
    ("CreateModel", {"modelId": "a/b", "model": {"description": "\x00"}}, InvalidArgument, "model.description"),
    ("CreateModel", {"modelId": "a/b", "model": {"labels": {"UP": "x"}}}, InvalidArgument, "model.labels"),
    ("CreateModel", {"modelId": "a/b", "model": {"labels": {"a": "x" * 256}}}, InvalidArgument, "model.labels"),
    (
        "CreateModel",
        {"modelId": "a/b", "model": {"labels": {f"l{n}": "x" for n in range(65)}}},
        InvalidArgument,
        "model.labels",
    ),
    ("CreateModel", {"modelId": "a/b", "model": {"taskType": 99}}, InvalidArgument, "model.task_type"),
    ("GetModel", {"name": "models/acme"}, ModelNotFound, None),
    ("GetModel", {"name": "acme"}, InvalidArgument, "name"),
    ("GetModel", {"name": "acme/none"}, ModelNotFound, None),
    ("UpdateModel", {"model": {"name": "acme/echo"}}, InvalidArgument, "update_mask"),
    ("UpdateModel", {"model": {"name": "acme/echo"}, "updateMask": "uid"}, InvalidArgument, "update_mask"),
    (
        "UpdateModel",
        {"model": {"name": "acme/echo"}, "updateMask": "displayName"},
        InvalidArgument,
        "model.display_name",
    ),
    (
        "UpdateModel",
        {"model": {"name": "acme/echo", "taskType": "TASK_TYPE_TXT2TXT"}, "updateMask": "taskType"},
        InvalidArgument,
        "model.task_type",
    ),
    ("ListModels", {"pageSize": -1}, InvalidArgument, "page_size"),
    ("ListModels", {"pageSize": 1001}, InvalidArgument, "page_size"),
    ("ListModels", {"pageToken": "nonsense"}, InvalidArgument, "page_token"),
    ("ListModels", {"pageToken": "é"}, InvalidArgument, "page_token"),
    ("ListModels", {"filter": "owner = x"}, InvalidArgument, "filter"),
    ("ListModels", {"filter": "task_type > txt2embed"}, InvalidArgument, "filter"),
    ("ListModels", {"filter": "task_type = nonsense"}, InvalidArgument, "filter"),
    ("ListModels", {"filter": "task_type = txt2embed OR name = x AND name = y"}, InvalidArgument, "filter"),
    ("ListModels", {"filter": "stage = gone"}, InvalidArgument, "filter"),
    ("ListModels", {"filter": "trainable = perhaps"}, InvalidArgument, "filter"),
    ("ListModels", {"query": "x" * 501}, InvalidArgument, "query"),
    ("ListModels", {"orderBy": "rank"}, InvalidArgument, "order_by"),
    ("ListModelVersions", {"parent": "-", "filter": "metrics.f1 > high"}, InvalidArgument, "filter"),
    ("ListModelVersions", {"parent": "-", "filter": "metrics > 1"}, InvalidArgument, "filter"),
    ("ListModels", {"filter": "create_time > yesterday"}, InvalidArgument, "filter"),
    ("ListModels", {"filter": "create_time > 0001-01-01T00:00:00+14:00"}, InvalidArgument, "filter"),
    (
        "ListModelVersions",
        {"parent": "acme/echo", "filter": "update_time < 9999-12-31T23:59:59-14:00"},
        InvalidArgument,
        "filter",
    ),
    ("ListModels", {"filter": "labels = x"}, InvalidArgument, "filter"),
    ("ListModels", {"filter": 'name = "x'}, InvalidArgument, "filter"),
    ("ListModels", {"orderBy": "uid"}, InvalidArgument, "order_by"),
    ("ListModels", {"orderBy": "name; DROP"}, InvalidArgument, "order_by"),
    ("ListModelVersions", {"parent": "acme/echo", "filter": "state = gone"}, InvalidArgument, "filter"),
    ("ListModelVersions", {"parent": "acme/none"}, ModelNotFound, None),
    (
        "CreateModelVersion",
        {"parent": "acme/none", **{"modelVersion": echo_version()["modelVersion"]}},
        ModelNotFound,
        None,
    ),
    ("CreateModelVersion", echo_version(version=""), InvalidArgument, "model_version.version"),
    ("CreateModelVersion", echo_version(version="a b"), InvalidArgument, "model_version.version"),
    ("CreateModelVersion", echo_version(version="a..b"), InvalidArgument, "model_version.version"),
    ("CreateModelVersion", echo_version(version="latest"), InvalidArgument, "model_version.version"),
    ("CreateModelVersion", echo_version(version="x.lock"), InvalidArgument, "model_version.version"),
    ("CreateModelVersion", echo_version(version="1.0.0"), VersionExists, None),
    ("CreateModelVersion", echo_version(engine="none"), InvalidArgument, "model_version.source"),
    ("CreateModelVersion", echo_version(engine="none", source={"empty": {}}), EngineNotFound, "model_version.engine"),
    ("CreateModelVersion", echo_version(engine="", source={"empty": {}}), InvalidArgument, "model_version.engine"),
    ("CreateModelVersion", echo_version(taskType="TASK_TYPE_TXT2TXT"), InvalidArgument, "model_version.task_type"),
    (
        "CreateModelVersion",
        echo_version(engineOptions={"nope": 1}),
        InvalidArgument,
        "model_version.engine_options.nope",
    ),
    (
        "CreateModelVersion",
        echo_version(engineOptions={"dimensions": -1}),
        InvalidArgument,
        "model_version.engine_options.dimensions",
    ),
    (
        "CreateModelVersion",
        echo_version(resourceRequirements={"memoryBytes": 0}),
        InvalidArgument,
        "model_version.resource_requirements.memory_bytes",
    ),
    (
        "CreateModelVersion",
        echo_version(resourceRequirements={"memoryBytes": 1, "acceleratorMemoryBytes": -1}),
        InvalidArgument,
        "model_version.resource_requirements.accelerator_memory_bytes",
    ),
    (
        "CreateModelVersion",
        echo_version(resourceRequirements={"memoryBytes": 1, "cpuThreads": 0}),
        InvalidArgument,
        "model_version.resource_requirements.cpu_threads",
    ),
    (
        "CreateModelVersion",
        echo_version(limits={"maxInputTokens": 0}),
        InvalidArgument,
        "model_version.limits.max_input_tokens",
    ),
    (
        "CreateModelVersion",
        echo_version(source={"local": {"path": "relative"}}),
        InvalidArgument,
        "model_version.source.local.path",
    ),
    (
        "CreateModelVersion",
        echo_version(source={"local": {"path": "/etc"}}),
        InvalidArgument,
        "model_version.source.local.path",
    ),
    (
        "CreateModelVersion",
        echo_version(source={"hub": {"repoId": "x"}}),
        InvalidArgument,
        "model_version.source.hub.repo_id",
    ),
    (
        "CreateModelVersion",
        echo_version(source={"hub": {"repoId": "a/b", "revision": ".."}}),
        InvalidArgument,
        "model_version.source.hub.revision",
    ),
    (
        "CreateModelVersion",
        {**echo_version(), "expectedChecksums": {"../x": "sha256:" + "0" * 64}},
        InvalidArgument,
        "expected_checksums.'../x'",
    ),
    (
        "CreateModelVersion",
        {**echo_version(), "expectedChecksums": {"x": "md5:0"}},
        InvalidArgument,
        "expected_checksums.x",
    ),
    ("ImportModel", {"version": "1", "source": {"empty": {}}, "engine": "echo"}, InvalidArgument, "model_id"),
    ("ImportModel", {"modelId": "a/b", "version": "1"}, InvalidArgument, "source"),
    ("ImportModel", {"modelId": "a/b", "source": {"empty": {}}, "engine": "echo"}, InvalidArgument, "version"),
    (
        "ImportModel",
        {"modelId": "a/b", "version": "1", "source": {"empty": {}}, "engine": "echo", "engineOptions": {"x": 1}},
        InvalidArgument,
        "engine_options.x",
    ),
    ("GetModelVersion", {"name": "acme/echo"}, InvalidArgument, "name"),
    ("SetAlias", {"name": "acme/echo", "alias": "latest", "version": "1.0.0"}, InvalidArgument, "alias"),
    ("SetAlias", {"name": "acme/echo", "alias": "a.b", "version": "1.0.0"}, InvalidArgument, "alias"),
    ("SetAlias", {"name": "acme/echo", "alias": "", "version": "1.0.0"}, InvalidArgument, "alias"),
    ("SetAlias", {"name": "acme/echo", "alias": "x", "version": ".."}, InvalidArgument, "version"),
    ("ResolveModel", {"reference": ""}, InvalidArgument, "reference"),
    ("ResolveModel", {"reference": "acme/echo@"}, InvalidArgument, "reference"),
]


async def test_bad_input_is_named_and_leaves_nothing(rig: Rig) -> None:
    """One registry for the whole table: each row proves for itself that nothing changed."""
    faults = []
    for method, body, cls, field in BAD:
        request = json_format.ParseDict(body, getattr(pb, f"{method}Request")(), ignore_unknown_fields=False)
        try:
            await rig.refused(lambda m=method, r=request: rig.call(getattr(rig.registry, m), r), cls, field)  # type: ignore[misc]
        except (AssertionError, pytest.fail.Exception) as fault:
            faults.append(f"{method} {body}: {fault}")
    assert faults == []


async def test_numbers_that_are_none_are_refused_in_options(rig: Rig) -> None:
    request = pb.CreateModelVersionRequest(parent="acme/echo")
    request.model_version.version, request.model_version.engine = "2", "echo"
    for number in (math.nan, math.inf):
        request.model_version.engine_options["delay_seconds"] = number
        await rig.refused(
            lambda: rig.call(rig.registry.CreateModelVersion, request),
            InvalidArgument,
            "model_version.engine_options",
        )


async def test_a_page_token_is_good_for_its_own_list_only(rig: Rig) -> None:
    await rig.call(rig.registry.CreateModel, pb.CreateModelRequest(model_id="acme/b"))
    first = await rig.call(rig.registry.ListModels, pb.ListModelsRequest(page_size=1))
    token = first.next_page_token
    for other in ({"order_by": "create_time"}, {"filter": "name != x"}):
        request = pb.ListModelsRequest(page_size=1, page_token=token, **other)
        await rig.refused(lambda r=request: rig.call(rig.registry.ListModels, r), InvalidArgument, "page_token")  # type: ignore[misc]
    with pytest.raises(ModelMoraError):
        await rig.call(
            rig.registry.ListModelVersions, pb.ListModelVersionsRequest(parent="acme/echo", page_token=token)
        )
