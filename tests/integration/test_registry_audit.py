"""The audit record: who did which admin RPC on what, with what result, written before the caller hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from integration.registry_rig import Rig, registry
from modelmora.errors import (
    Conflict,
    InvalidArgument,
    ModelMoraError,
    ModelNotFound,
    PermissionDenied,
    Unauthenticated,
    VersionIsCurrent,
)
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora.status import error_from_rpc
from modelmora_registry import lock_yaml, locks
from modelmora_registry.audit_store import AuditStore
from modelmora_runtime import audit, auth
from modelmora_runtime.db import Database
from modelmora_runtime.host import make_private
from modelmora_runtime.postgres import EmbeddedPostgres

SERVICE = "modelmora.registry.v1.RegistryService/"


@pytest.fixture
async def rig(database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(audit, "WAIT_SECONDS", 60.0)  # here every entry is there before the caller goes on
    async with registry(database_url, data_dir) as rig:
        yield rig


async def entries(rig: Rig, filter: str = "", **more: Any) -> list[pb.AuditEntry]:
    request = pb.ListAuditEntriesRequest(filter=filter, page_size=1000)
    return list((await rig.registry.ListAuditEntries(request, timeout=60, **more)).entries)


async def test_what_changes_something_is_written_down_with_its_result(rig: Rig) -> None:
    version = await rig.echo()
    await rig.call(rig.registry.SetAlias, pb.SetAliasRequest(name="acme/echo", alias="staging", version="1.0.0"))
    for method, request, error in (
        (rig.registry.DeleteModelVersion, pb.DeleteModelVersionRequest(name="acme/echo@1.0.0"), VersionIsCurrent),
        (rig.registry.UpdateModel, pb.UpdateModelRequest(model=pb.Model(name="acme/echo"), etag="x"), Conflict),
        (rig.registry.CreateModel, pb.CreateModelRequest(model_id="no good"), InvalidArgument),
        (rig.registry.GetModel, pb.GetModelRequest(name="acme/none"), ModelNotFound),
    ):
        with pytest.raises(error):
            await rig.call(method, request)
    await rig.call(rig.registry.ResolveModel, pb.ResolveModelRequest(reference="acme/echo"))
    told = await entries(rig)
    assert [(each.method.removeprefix(SERVICE), each.resource, each.status, each.reason) for each in told] == [
        ("CreateModel", "no good", "INVALID_ARGUMENT", "InvalidArgument"),
        ("UpdateModel", "models/acme/echo", "ABORTED", "Conflict"),
        ("DeleteModelVersion", version.name, "FAILED_PRECONDITION", "VersionIsCurrent"),
        ("SetAlias", "models/acme/echo", "OK", ""),
        ("ImportModel", version.name, "OK", ""),
    ]
    assert {each.subject for each in told} == {"everyone"}
    assert all(each.peer.startswith("ipv4:127.0.0.1") for each in told)
    moments = [each.create_time.ToDatetime(UTC) for each in told]
    assert moments == sorted(moments, reverse=True)
    assert abs(moments[0] - datetime.now(UTC)) < timedelta(minutes=1)
    assert len({each.uid for each in told}) == 5
    # Filters and pages.
    assert [each.status for each in await entries(rig, f'resource = "{version.name}" AND NOT status = OK')] == [
        "FAILED_PRECONDITION"
    ]
    assert len(await entries(rig, "method : setalias OR reason = Conflict")) == 2
    assert await entries(rig, f'create_time > "{(moments[0] + timedelta(days=1)).isoformat()}"') == []
    first = await rig.call(rig.registry.ListAuditEntries, pb.ListAuditEntriesRequest(page_size=3))
    rest = pb.ListAuditEntriesRequest(page_size=3, page_token=first.next_page_token)
    second = await rig.call(rig.registry.ListAuditEntries, rest)
    assert [*first.entries, *second.entries] == told
    for wrong in ({"filter": "who = x"}, {"page_token": "x"}, {"filter": "status < OK"}):
        with pytest.raises(InvalidArgument):
            await rig.call(rig.registry.ListAuditEntries, pb.ListAuditEntriesRequest(**wrong))


async def test_a_lock_that_does_not_converge_is_no_success(rig: Rig) -> None:
    await rig.echo()
    yaml = (await rig.call(rig.registry.CreateModelLock, pb.CreateModelLockRequest(models=["acme/echo"]))).yaml
    (here,) = lock_yaml.read(yaml).models
    other = locks.LockDocument.of([here.model_copy(update={"engine_options": {"seed": 8}})])
    for text, converges in ((yaml, True), (locks.render(other), False)):
        told = [each async for each in rig.registry.ApplyModelLock(pb.ApplyModelLockRequest(yaml=text), timeout=60)]
        assert told[-1].converged is converges, told
        # The caller has heard of it in the answer, and the call itself went well.
        entry, *_ = await entries(rig, "method : applymodellock")
        reason = "" if converges else told[0].reason.partition(":")[0]
        assert (entry.status == "OK", entry.reason) == (converges, reason), entry


async def test_the_refused_are_written_down_too_and_only_admins_read_it(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "WAIT_SECONDS", 60.0)
    make_private(data_dir)
    path = data_dir / "tokens.json"
    tokens = {
        role: auth.create_token(path, role=role, subject=f"the {role}", tenant="acme")
        for role in ("admin", "operator", "client")
    }

    async def as_(role: str | None, method: Callable[..., Any], request: Any) -> Any:
        metadata = (("authorization", f"Bearer {tokens[role]}"),) if role else ()
        try:
            return await method(request, timeout=60, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None

    async with registry(database_url, data_dir) as rig:
        create = pb.CreateModelRequest(model_id="acme/mini")
        await as_("operator", rig.registry.CreateModel, create)
        with pytest.raises(PermissionDenied):
            await as_("client", rig.registry.DeleteModel, pb.DeleteModelRequest(name="acme/mini"))
        with pytest.raises(Unauthenticated):
            await as_(None, rig.registry.DeleteModel, pb.DeleteModelRequest(name="acme/mini"))
        for role in ("operator", "client"):
            with pytest.raises(PermissionDenied):
                await as_(role, rig.registry.ListAuditEntries, pb.ListAuditEntriesRequest())
        listed = await as_("admin", rig.registry.ListAuditEntries, pb.ListAuditEntriesRequest())
        assert [(each.subject, each.tenant, each.method, each.resource, each.status) for each in listed.entries] == [
            ("the client", "acme", f"{SERVICE}DeleteModel", "models/acme/mini", "PERMISSION_DENIED"),
            ("the operator", "acme", f"{SERVICE}CreateModel", "models/acme/mini", "OK"),
        ]


@asynccontextmanager
async def stopped(postgres: EmbeddedPostgres) -> AsyncIterator[None]:
    import psutil

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


@pytest.mark.long  # a server of its own
async def test_an_entry_waits_for_a_database_that_is_away(data_dir: Path) -> None:
    async with (
        EmbeddedPostgres(data_dir.parent / "pg", data_dir.parent / "run") as postgres,
        registry(postgres.url, data_dir, connect_seconds=2.0, statement_seconds=5.0) as rig,
    ):
        await rig.echo()
        async with stopped(postgres):
            with pytest.raises(ModelMoraError) as raised:
                await rig.call(rig.registry.DeleteModel, pb.DeleteModelRequest(name="acme/echo"))
            assert raised.value.status == "UNAVAILABLE"
        async with asyncio.timeout(20):
            while True:
                try:
                    told = await entries(rig)
                except grpc.aio.AioRpcError:
                    continue
                if len(told) == 2:
                    break
        assert [(each.method.removeprefix(SERVICE), each.reason) for each in told] == [
            ("DeleteModel", "DatabaseUnavailable"),
            ("ImportModel", ""),
        ]


async def test_entries_are_let_go_when_they_are_old_and_never_before(rig: Rig) -> None:
    await rig.echo()
    await rig.sql(
        "INSERT INTO registry.audit_entry (uid, create_time, subject, tenant, method, resource, status, reason, peer) "
        "SELECT gen_random_uuid(), now() - n * interval '1 day', 's', 't', 'm', 'r', 'OK', '', '' "
        "FROM generate_series(1, 9) AS n"
    )
    database = Database(rig.database_url, "registry")
    try:
        store = AuditStore(database, lambda: True)
        assert await store.drop_older(timedelta(days=4, hours=12)) == 5
        assert await store.drop_older(timedelta(days=4, hours=12)) == 0
    finally:
        await database.close()
    assert len(await entries(rig)) == 5
