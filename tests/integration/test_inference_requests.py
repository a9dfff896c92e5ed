"""Bad Embed requests: the status, the reason, the path of the field, and no trace afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from integration.inference_rig import Rig, rig
from modelmora import errors
from modelmora.inference.v1 import inference_pb2
from modelmora_inference import catalog


@pytest.fixture
async def echo(data_dir: Path) -> AsyncIterator[Rig]:
    async with rig(data_dir) as made:
        yield made


BAD: list[tuple[str, dict[str, Any], list[str]]] = [
    ("no model", {"model": ""}, ["model"]),
    ("model of the wrong form", {"model": "x" * 401}, ["model"]),
    ("no texts", {"texts": []}, ["texts"]),
    ("too many texts", {"texts": ["x"] * 2049}, ["texts"]),
    ("empty text", {"texts": ["a", "b", "c", ""]}, ["texts[3]"]),
    ("white space", {"texts": [" \t\n"]}, ["texts[0]"]),
    ("white space beyond ASCII", {"texts": ["\u2003\u00a0"]}, ["texts[0]"]),
    ("too long", {"texts": ["a", "x" * 100_001]}, ["texts[1]"]),
    ("too much in all", {"texts": ["ж" * 100_000] * 200}, ["texts"]),
    ("several", {"texts": ["", "a", ""], "dimensions": 0}, ["texts[0]", "texts[2]", "dimensions"]),
    ("many", {"texts": [""] * 2000}, [f"texts[{i}]" for i in range(10)]),
    ("no dimensions", {"dimensions": 0}, ["dimensions"]),
    ("negative dimensions", {"dimensions": -1}, ["dimensions"]),
    ("absurd dimensions", {"dimensions": 2**31 - 1}, ["dimensions"]),
    ("unknown priority", {"priority": 15}, ["priority"]),
    ("negative priority", {"priority": -1}, ["priority"]),
    ("unknown encoding", {"encoding": 9}, ["encoding"]),
    ("unknown precision", {"precision": "int8"}, ["precision"]),
    ("no timeout", {"timeout": Duration()}, ["timeout"]),
    ("negative timeout", {"timeout": Duration(seconds=-1)}, ["timeout"]),
    ("timeout with negative nanos", {"timeout": Duration(seconds=1, nanos=-5)}, ["timeout"]),
    ("timeout with too many nanos", {"timeout": Duration(seconds=1, nanos=2**31 - 1)}, ["timeout"]),
    ("long timeout", {"timeout": Duration(seconds=600, nanos=1)}, ["timeout"]),
    ("endless timeout", {"timeout": Duration(seconds=2**62)}, ["timeout"]),
]


async def test_bad_requests_are_refused_at_the_field(echo: Rig) -> None:
    for name, fields, paths in BAD:
        request = inference_pb2.EmbedRequest(**{"model": "acme/echo", "texts": ["a text"], **fields})
        with pytest.raises(errors.InvalidArgument) as caught:
            await echo.stub.Embed(request, timeout=30)
        assert [violation.field for violation in caught.value.fields] == paths, name
    queues = (await echo.stub.GetQueue(inference_pb2.GetQueueRequest())).queues
    assert all(not level.entries for queue in queues for level in queue.levels)


async def test_requests_at_the_limits_are_taken(echo: Rig) -> None:
    await echo.right(*(f"t{i}" for i in range(2048)))
    await echo.embed("x" * 100_000, timeout=30)
    await echo.right("a text", priority=0, timeout=30)
    request = inference_pb2.EmbedRequest(model="acme/echo", texts=["a"], timeout=Duration(seconds=600))
    await echo.stub.Embed(request, timeout=30)


async def test_a_model_that_is_not_there_is_not_found_once_and_again(
    echo: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "REFUSED_SECONDS", 3600.0)
    for _ in range(3):
        with pytest.raises(errors.ModelNotFound):
            await echo.embed("a text", model="acme/nothing")
    assert echo.resolver.lookups == 1, "the refusal is remembered"
    assert (await echo.stub.GetQueue(inference_pb2.GetQueueRequest())).queues == []


async def test_calls_for_one_model_share_one_lookup(echo: Rig) -> None:
    echo.resolver.cache_ttl_seconds = 3600.0
    await asyncio.gather(*(echo.right(f"text {i}") for i in range(20)))
    assert echo.resolver.lookups == 1


async def test_a_queue_that_never_was_is_empty(echo: Rig) -> None:
    queue = await echo.queue()
    assert (queue.in_flight, len(queue.levels)) == (0, 0)
    with pytest.raises(errors.ModelNotFound):
        await echo.stub.GetQueue(inference_pb2.GetQueueRequest(model="acme/nothing"))
