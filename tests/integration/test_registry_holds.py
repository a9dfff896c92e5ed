"""Holds: in force while their streams live, seen by every registry on the same database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import modelmora_registry.main as registry_main
import pytest
from integration.hub_server import hub
from integration.registry_rig import ENGINES, Rig, registry
from modelmora.errors import DatabaseUnavailable, InvalidArgument, ModelMoraError, VersionInUse, VersionNotFound
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora.registry.v1 import registry_pb2_grpc
from modelmora.status import error_from_rpc
from modelmora_registry.service import RegistryServicer
from modelmora_runtime.host import HealthBoard, Platform
from modelmora_runtime.settings import PlatformSettings


def hold(rig: Rig, name: str, holder: str = "lifecycle@test") -> Any:
    return rig.holds.AcquireHold(pb.AcquireHoldRequest(name=name, holder=holder))


@asynccontextmanager
async def second_registry(rig: Rig) -> AsyncIterator[RegistryServicer]:
    """Another instance on the same database; one process has room for one host, so its servicer is called directly."""
    settings = PlatformSettings(data_dir=rig.data_dir.parent / "other", database_url=rig.database_url)
    url, folder = rig.database_url, rig.data_dir.parent
    platform = Platform(settings, None, url, folder, ENGINES, HealthBoard(), asyncio.Event())  # type: ignore[arg-type]
    async with registry_main.open(registry_main.Settings(), platform) as mounted:
        servicer = mounted.services[0].servicer
        assert isinstance(servicer, RegistryServicer)
        yield servicer


async def test_a_held_version_is_deleted_by_nobody_until_it_is_released(database_url: str, data_dir: Path) -> None:
    async with registry(database_url, data_dir) as rig, second_registry(rig) as second:
        version = await rig.echo()
        await rig.echo(version="2.0.0")
        stream = hold(rig, version.name)
        assert (await stream.read()).model_version == version
        one = pb.DeleteModelVersionRequest(name=version.name, force=True)
        whole = pb.DeleteModelRequest(name="acme/echo", force=True)
        for refused in (
            lambda: rig.call(rig.registry.DeleteModelVersion, one),
            lambda: rig.call(rig.registry.DeleteModel, whole),
            lambda: second.DeleteModelVersion(one, None),
            lambda: second.DeleteModel(whole, None),
        ):
            error = await rig.refused(refused, VersionInUse)
            assert "lifecycle@test" in error.message
        stream.cancel()
        async with asyncio.timeout(10):
            while (await rig.rows("hold"))["hold"]:
                pass
        await second.DeleteModelVersion(one, None)


async def test_a_hold_that_ran_out_frees_its_version(database_url: str, data_dir: Path) -> None:
    """What a process that was killed leaves behind."""
    async with registry(database_url, data_dir) as rig:
        version = await rig.echo()
        insert = (
            "INSERT INTO registry.hold VALUES ('0190a5d0-ac96-774b-bcce-b302099a8057', $1, 'dead', now(), "
            "now() + make_interval(secs => $2))"
        )
        await rig.sql(insert, version.uid, 60.0)
        delete = pb.DeleteModelVersionRequest(name=version.name, force=True)
        await rig.refused(lambda: rig.call(rig.registry.DeleteModelVersion, delete), VersionInUse)
        await rig.sql("UPDATE registry.hold SET expire_time = now() - interval '1 second'")
        await rig.call(rig.registry.DeleteModelVersion, delete)
        assert (await rig.rows("hold", "model_version")) == {"hold": 0, "model_version": 0}


async def test_a_hold_outlives_the_registry_and_what_was_released_does_not(database_url: str, data_dir: Path) -> None:
    """A registry that is restarted knows what is in memory before its holders are back."""
    async with registry(database_url, data_dir) as rig:
        version = await rig.echo()
        await rig.echo(version="2.0.0")
        channel = grpc.aio.insecure_channel(rig.host.target)
        stub = registry_pb2_grpc.RegistryHoldServiceStub(channel)  # type: ignore[no-untyped-call]
        kept = stub.AcquireHold(pb.AcquireHoldRequest(name=version.name, holder="elsewhere"))
        ended = hold(rig, "acme/echo@2.0.0")
        await kept.read()
        await ended.read()
        ended.cancel()
        await asyncio.sleep(0.05)
    async with registry(database_url, data_dir) as rig:
        assert (await rig.rows("hold"))["hold"] == 1
        delete = pb.DeleteModelVersionRequest(name=version.name, force=True)
        await rig.refused(lambda: rig.call(rig.registry.DeleteModelVersion, delete), VersionInUse)
    await channel.close()


async def test_who_could_not_hold_is_waited_for(database_url: str, data_dir: Path) -> None:
    """The database did not answer in time: lifecycle loads all the same, and asks again a moment later."""
    async with registry(database_url, data_dir) as rig:
        version = await rig.echo()
        one = pb.DeleteModelVersionRequest(name=version.name, force=True)
        whole = pb.DeleteModelRequest(name="acme/echo", force=True)
        blocker = await asyncpg.connect(database_url.replace("+asyncpg", ""))
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE registry.hold IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(grpc.aio.AioRpcError):
                await hold(rig, version.name).read()
        await blocker.close()
        async with asyncio.timeout(10):
            while await _is_away(rig):
                pass
        await rig.refused(lambda: rig.call(rig.registry.DeleteModel, whole), VersionInUse)
        await rig.refused(lambda: rig.call(rig.registry.DeleteModelVersion, one), VersionInUse)
        stream = hold(rig, version.name)
        await stream.read()
        stream.cancel()
        async with asyncio.timeout(10):
            while (await rig.rows("hold"))["hold"]:
                pass
        await rig.call(rig.registry.DeleteModelVersion, one)


async def _is_away(rig: Rig) -> bool:
    try:
        await rig.call(rig.registry.ListModels, pb.ListModelsRequest())
    except DatabaseUnavailable:
        return True
    return False


async def test_a_hold_of_nothing_is_refused(database_url: str, data_dir: Path) -> None:
    async with registry(database_url, data_dir) as rig:
        await rig.echo()

        async def read(name: str, holder: str = "x") -> None:
            try:
                await hold(rig, name, holder).read()
            except grpc.aio.AioRpcError as error:
                raise error_from_rpc(error) from None

        await rig.refused(lambda: read("acme/echo@9"), VersionNotFound)
        await rig.refused(lambda: read("acme/echo"), InvalidArgument, "name")
        await rig.refused(lambda: read("acme/echo@1.0.0", " "), InvalidArgument, "holder")


async def test_a_stopping_platform_ends_watches_with_their_cursor(database_url: str, data_dir: Path) -> None:
    with hub({"config.json": b"{}", "modules.json": b"[]", "model.safetensors": b"weights"}) as fake:
        fake.hold["config.json"] = threading.Event()
        async with registry(database_url, data_dir, hub_endpoint=fake.url) as rig:
            source = pb.ModelSource(hub=pb.HubSource(repo_id="org/repo"))
            made = await rig.call(rig.registry.ImportModel, pb.ImportModelRequest(source=source))
            stream = rig.registry.WatchModelVersion(pb.WatchModelVersionRequest(name=made.model_version.name))
            assert (await stream.read()).model_version.state == pb.MODEL_VERSION_STATE_CREATING
            rig.host.stopping.set()
            error = await _end_of(stream)
            assert error.reason == "ShuttingDown"
            assert error.metadata["cursor"]


async def _end_of(stream: Any) -> ModelMoraError:
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)
    raise AssertionError("it ended without an error")
