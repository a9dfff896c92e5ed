"""The registry while its database is stopped, and afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from integration.registry_rig import Rig, local, registry, safetensors, sentence_model
from modelmora.errors import DatabaseUnavailable, ModelMoraError
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora.status import error_from_rpc
from modelmora_runtime.postgres import EmbeddedPostgres

SECONDS = {"connect_seconds": 2.0, "statement_seconds": 5.0}
"""So long the registry waits for a connection and for an answer, as it does where it serves."""


@pytest.fixture
async def postgres(data_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A server of this test's own, to be stopped."""
    async with EmbeddedPostgres(data_dir.parent / "pg", data_dir.parent / "run") as server:
        yield server


@contextmanager
def stopped(postgres: EmbeddedPostgres) -> Iterator[None]:
    """Its whole family: each backend is in a session of its own."""
    assert postgres.state.pid is not None
    server = psutil.Process(postgres.state.pid)
    server.suspend()  # From here on it has no more children than these, but one may be ending.
    family = server.children(recursive=True)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in (*family, server):
            with suppress(psutil.NoSuchProcess):
                process.resume()


async def get(rig: Rig) -> pb.Model:
    answer = await rig.call(rig.registry.GetModel, pb.GetModelRequest(name="acme/echo"), timeout=60)
    model: pb.Model = answer.model
    return model


async def made(rig: Rig) -> pb.ModelVersion:
    """A version, as soon as the registry has its database."""
    request_id = str(uuid.uuid4())
    async with asyncio.timeout(60):
        while True:
            try:
                return await rig.echo(request_id=request_id)
            except DatabaseUnavailable:
                continue


async def held(rig: Rig, name: str) -> Any:
    """The stream of a hold, as soon as the registry has its database."""
    async with asyncio.timeout(60):
        while True:
            stream = rig.holds.AcquireHold(pb.AcquireHoldRequest(name=name, holder="lifecycle@test"))
            try:
                await stream.read()
                return stream
            except grpc.aio.AioRpcError as error:
                if not isinstance(error_from_rpc(error), DatabaseUnavailable):
                    raise


async def back(rig: Rig) -> pb.Model:
    async with asyncio.timeout(60):
        while True:
            try:
                return await get(rig)
            except DatabaseUnavailable:
                continue


async def test_calls_fail_fast_while_it_is_stopped_and_work_when_it_is_back(
    postgres: EmbeddedPostgres, data_dir: Path
) -> None:
    async with registry(postgres.url, data_dir, **SECONDS) as rig:
        version = await made(rig)
        before = await back(rig)
        stream = await held(rig, version.name)
        with stopped(postgres):
            async with asyncio.timeout(20):
                with pytest.raises(DatabaseUnavailable):
                    await get(rig)
        assert await back(rig) == before
        delete = pb.DeleteModelVersionRequest(name=version.name, force=True)
        while True:
            with pytest.raises(ModelMoraError) as refused:
                await rig.call(rig.registry.DeleteModelVersion, delete)
            if not isinstance(refused.value, DatabaseUnavailable):  # it may stand still once more
                break
        assert "held by lifecycle@test" in refused.value.message
        stream.cancel()


async def test_a_kill_of_the_server_costs_no_import(postgres: EmbeddedPostgres, data_dir: Path) -> None:
    folder = sentence_model(data_dir.parent / "roots" / "mini")
    (folder / "model.safetensors").write_bytes(safetensors(48 * 2**20))
    async with registry(postgres.url, data_dir, model_roots=(folder.parent,)) as rig:
        await rig.echo()
        request = pb.ImportModelRequest(source=local(folder), version="1")
        made = await rig.call(rig.registry.ImportModel, request)
        pid = postgres.state.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await back(rig)
        async with asyncio.timeout(100):
            while True:
                try:
                    version = await rig.final(made.model_version.name)
                    break
                except DatabaseUnavailable:
                    continue
        assert version.state == pb.MODEL_VERSION_STATE_READY, version.failure
        assert [path.name for path in (rig.artifacts / "snapshots").iterdir()] == [version.uid]


async def test_it_starts_without_its_database_and_serves_when_it_comes(
    postgres: EmbeddedPostgres, data_dir: Path
) -> None:
    starting = registry(postgres.url, data_dir, **SECONDS)
    with stopped(postgres):
        rig = await asyncio.wait_for(starting.__aenter__(), 60)
    try:
        assert (await made(rig)).state == pb.MODEL_VERSION_STATE_READY
    finally:
        await starting.__aexit__(None, None, None)
