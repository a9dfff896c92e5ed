"""Holds: in force while their streams live, seen by every registry on the same database."""

from __future__ import annotations

import asyncio
import signal
import sys
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
from integration.registry_rig import ENGINES, Rig, registry, until
from modelmora.errors import DatabaseUnavailable, InvalidArgument, ModelMoraError, VersionInUse, VersionNotFound
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora.registry.v1 import registry_pb2_grpc
from modelmora.status import error_from_rpc
from modelmora_registry.holds import HOLDS, Holds
from modelmora_registry.service import RegistryServicer
from modelmora_runtime import pids, supervisor
from modelmora_runtime.host import HealthBoard, Platform
from modelmora_runtime.settings import PlatformSettings

HOLD_ID = "0190a5d0-ac96-774b-bcce-b302099a8057"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a release is always written before whoever asked for it goes on, however slow the database is."""
    monkeypatch.setattr(Holds._settle, "__defaults__", (60.0,))


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
        async with asyncio.timeout(20):
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
        stays = stub.AcquireHold(pb.AcquireHoldRequest(name=version.name, holder="elsewhere"))
        ended = hold(rig, "acme/echo@2.0.0")
        await stays.read()
        await ended.read()
        ended.cancel()
        async with asyncio.timeout(20):
            while (await rig.rows("hold"))["hold"] > 1:
                pass
    async with registry(database_url, data_dir) as rig:
        assert (await rig.rows("hold"))["hold"] == 1
        delete = pb.DeleteModelVersionRequest(name=version.name, force=True)
        await rig.refused(lambda: rig.call(rig.registry.DeleteModelVersion, delete), VersionInUse)
    await channel.close()


def kept(rig: Rig, name: str, hold_id: str, process: str = "", *, in_memory: bool = False) -> Any:
    """A hold that outlasts its stream."""
    return rig.holds.AcquireHold(
        pb.AcquireHoldRequest(name=name, holder="lifecycle@test", hold_id=hold_id, process=process, in_memory=in_memory)
    )


async def broken(stream: Any) -> None:
    """The stream ends as one does whose holder is frozen, cut off or dead."""
    stream.cancel()
    await asyncio.to_thread(until, lambda: not HOLDS._value.get())


@asynccontextmanager
async def somebody() -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that lives until it is killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys; sys.stdin.read()", stdin=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def name_of(process: asyncio.subprocess.Process) -> str:
    return f"{pids.seen_from_here()}{process.pid}/{supervisor.start_ticks(process.pid)}"


async def test_a_holder_that_is_frozen_keeps_its_hold_and_one_that_is_dead_does_not(
    database_url: str, data_dir: Path
) -> None:
    async with registry(database_url, data_dir) as rig, second_registry(rig) as second, somebody() as holder:
        version = await rig.echo()
        delete = pb.DeleteModelVersionRequest(name=version.name, force=True)
        stream = kept(rig, version.name, HOLD_ID, name_of(holder))
        await stream.read()
        holder.send_signal(signal.SIGSTOP)
        await broken(stream)
        error = await rig.refused(lambda: rig.call(rig.registry.DeleteModelVersion, delete), VersionInUse)
        assert "lifecycle@test (until " in error.message
        await rig.refused(lambda: second.DeleteModelVersion(delete, None), VersionInUse)
        holder.kill()
        await holder.wait()
        await second.DeleteModelVersion(delete, None)
        assert (await rig.rows("hold", "model_version")) == {"hold": 0, "model_version": 0}


async def test_a_hold_that_is_released_ends_at_once_and_its_stream_too(database_url: str, data_dir: Path) -> None:
    async with registry(database_url, data_dir) as rig, somebody() as holder:
        version = await rig.echo()
        delete = pb.DeleteModelVersionRequest(name=version.name, force=True)
        stream = kept(rig, version.name, HOLD_ID, name_of(holder))
        await stream.read()
        await rig.call(rig.holds.ReleaseHold, pb.ReleaseHoldRequest(hold_id=HOLD_ID))
        assert await stream.read() is grpc.aio.EOF
        assert (await rig.rows("hold")) == {"hold": 0}
        await rig.call(rig.holds.ReleaseHold, pb.ReleaseHoldRequest(hold_id=HOLD_ID))
        await rig.call(rig.registry.DeleteModelVersion, delete)


async def test_a_release_that_overtakes_its_acquisition_ends_it(database_url: str, data_dir: Path) -> None:
    async with registry(database_url, data_dir) as rig, somebody() as holder:
        version = await rig.echo()
        await rig.call(rig.holds.ReleaseHold, pb.ReleaseHoldRequest(hold_id=HOLD_ID))
        stream = kept(rig, version.name, HOLD_ID, name_of(holder))
        await stream.read()
        await broken(stream)
        async with asyncio.timeout(20):
            while (await rig.rows("hold"))["hold"]:
                pass


async def test_who_comes_back_goes_on_with_the_hold_that_it_had(database_url: str, data_dir: Path) -> None:
    """Also to another registry, and while the stream that broke is not noticed yet."""
    async with somebody() as holder:
        async with registry(database_url, data_dir) as rig:
            version = await rig.echo()
            first = kept(rig, version.name, HOLD_ID, name_of(holder))
            await first.read()
            second = kept(rig, version.name, HOLD_ID, name_of(holder))
            await second.read()
            assert (await rig.rows("hold")) == {"hold": 1}
            first.cancel()
        async with registry(database_url, data_dir) as rig:
            delete = pb.DeleteModelVersionRequest(name=version.name, force=True)
            await rig.refused(lambda: rig.call(rig.registry.DeleteModelVersion, delete), VersionInUse)
            third = kept(rig, version.name, HOLD_ID, name_of(holder))
            await third.read()
            assert (await rig.rows("hold")) == {"hold": 1}
            other = await rig.echo(version="2.0.0")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await kept(rig, other.name, HOLD_ID).read()
            error = error_from_rpc(raised.value)
            assert type(error) is InvalidArgument
            assert [found.field for found in error.fields] == ["hold_id"]
            await rig.call(rig.holds.ReleaseHold, pb.ReleaseHoldRequest(hold_id=HOLD_ID))
            await rig.call(rig.registry.DeleteModelVersion, delete)


async def test_what_this_process_holds_ends_with_the_registry_in_it(database_url: str, data_dir: Path) -> None:
    """As in `modelmora up`: nobody is left who could release it, and in a container nobody could see that."""
    async with registry(database_url, data_dir) as rig:
        version = await rig.echo()
        await kept(rig, version.name, HOLD_ID, pids.this_process()).read()
    async with registry(database_url, data_dir) as rig:
        assert (await rig.rows("hold")) == {"hold": 0}


async def test_who_could_not_hold_is_waited_for(database_url: str, data_dir: Path) -> None:
    """The database did not answer in time: lifecycle loads all the same, and asks again a moment later."""
    async with registry(database_url, data_dir, statement_seconds=5.0) as rig:
        version = await rig.echo()
        one = pb.DeleteModelVersionRequest(name=version.name, force=True)
        whole = pb.DeleteModelRequest(name="acme/echo", force=True)
        blocker = await asyncpg.connect(database_url.replace("+asyncpg", ""))
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE registry.hold IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(grpc.aio.AioRpcError):
                await hold(rig, version.name).read()
        await blocker.close()
        async with asyncio.timeout(20):
            while await _is_away(rig):
                pass
        await rig.refused(lambda: rig.call(rig.registry.DeleteModel, whole), VersionInUse)
        await rig.refused(lambda: rig.call(rig.registry.DeleteModelVersion, one), VersionInUse)
        stream = hold(rig, version.name)
        await stream.read()
        stream.cancel()
        async with asyncio.timeout(20):
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
