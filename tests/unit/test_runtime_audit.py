"""What is for the record, what it says, and what becomes of an entry that cannot be written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from modelmora.errors import DatabaseUnavailable, VersionExists
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora_registry.service import ACCESS, HOLD_ACCESS
from modelmora_runtime import audit
from modelmora_runtime.audit import Audit, Entry, entry_of, is_audited, parsed_request, resource_of
from modelmora_runtime.auth import ADMINS, ANYONE, NOBODY, OPERATORS, READERS, SERVICES, Caller, Role

SOMEBODY = Caller("ann", "acme", frozenset({Role.OPERATOR}))


def test_what_clients_may_not_call_and_changes_something_is_recorded() -> None:
    assert is_audited(OPERATORS, "DeleteModel")
    assert is_audited(ADMINS, "Cordon")
    for access, name in (
        (READERS, "Embed"),
        (ANYONE, "Check"),
        (SERVICES, "AcquireHold"),
        (ADMINS, "ListAuditEntries"),
        (OPERATORS, "GetSystemInfo"),
    ):
        assert not is_audited(access, name), name
    recorded = {name for name, access in {**ACCESS, **HOLD_ACCESS}.items() if is_audited(access, name)}
    assert {"ImportModel", "SetAlias", "DeleteModelLock", "SetEngineProfile", "ExportModelVersion"} <= recorded
    assert not {"ResolveModel", "SelectModelVersion", "RenderModelLock", "RecordFingerprint"} & recorded


NAME = "models/acme/mini/versions/1"


@pytest.mark.parametrize(
    ("request_", "answer", "resource"),
    [
        (pb.DeleteModelRequest(name="acme/mini"), pb.DeleteModelResponse(), "acme/mini"),
        (pb.CreateModelRequest(model_id="acme/mini"), None, "acme/mini"),
        (pb.UpdateModelRequest(model=pb.Model(name="acme/mini")), None, "acme/mini"),
        (
            pb.CreateModelVersionRequest(parent="acme/mini", model_version=pb.ModelVersion(version="1")),
            None,
            "acme/mini",
        ),
        (
            pb.ImportModelRequest(model_id="acme/mini"),
            pb.ImportModelResponse(model=pb.Model(name="models/acme/mini"), model_version=pb.ModelVersion(name=NAME)),
            NAME,
        ),
        (
            pb.CreateModelLockRequest(),
            pb.CreateModelLockResponse(model_lock=pb.ModelLock(name="modelLocks/a"), yaml="x"),
            "modelLocks/a",
        ),
        (pb.VerifyModelLockRequest(yaml="…"), None, ""),
        (lifecycle_pb2.UnloadModelRequest(model=NAME), lifecycle_pb2.UnloadModelResponse(), NAME),
        (
            lifecycle_pb2.LoadModelRequest(model="acme/mini"),
            lifecycle_pb2.LoadModelResponse(
                replica=lifecycle_pb2.Replica(name="replicas/01890a5d", model_version=NAME)
            ),
            NAME,
        ),
        (b"too long to be read", None, ""),
    ],
)
def test_an_entry_names_what_the_call_was_about(request_: Any, answer: Any, resource: str) -> None:
    assert resource_of(request_, answer) == resource


def test_callers_that_nobody_knows_and_contexts_of_this_process_are_left_out() -> None:
    request = pb.DeleteModelRequest(name="acme/mini")
    entry = entry_of("s/DeleteModel", SOMEBODY, request, None, "ALREADY_EXISTS", VersionExists(), "ipv4:1")
    assert entry is not None
    assert (entry.subject, entry.tenant, entry.status, entry.reason) == (
        "ann", "acme", "ALREADY_EXISTS", "VersionExists",
    )  # fmt: skip
    inside = Caller("lifecycle", "default", frozenset({Role.SERVICE}), internal=True)
    for caller in (NOBODY, inside):
        assert entry_of("s/DeleteModel", caller, request, None, "OK", None, "") is None


def test_a_request_that_was_refused_unread_is_read_where_that_is_cheap() -> None:
    parse = pb.DeleteModelRequest.FromString
    raw = pb.DeleteModelRequest(name="acme/mini").SerializeToString()
    assert resource_of(parsed_request(raw, parse)) == "acme/mini"
    assert resource_of(parsed_request(b"\xff", parse)) == ""
    assert resource_of(parsed_request(raw + bytes(2**17), parse)) == ""


class Shelf:
    """Takes entries, or is away, or silent."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.away = False
        self.answers = asyncio.Event()
        self.answers.set()
        self.written = asyncio.Event()

    async def write(self, entries: Sequence[Entry]) -> None:
        await self.answers.wait()
        if self.away:
            raise DatabaseUnavailable
        self.entries += entries
        self.written.set()


def entry(number: int) -> Entry:
    found = entry_of("s/M", SOMEBODY, pb.DeleteModelRequest(name=f"a/{number}"), None, "OK", None, "")
    assert found is not None
    return found


async def test_an_entry_is_there_before_the_caller_goes_on() -> None:
    shelf = Shelf()
    record = Audit(shelf.write)
    await record.record(entry(0))
    assert [each.resource for each in shelf.entries] == ["a/0"]
    await asyncio.gather(*(record.record(entry(number)) for number in range(1, 250)))
    assert [each.resource for each in shelf.entries] == [f"a/{number}" for number in range(250)]


async def test_what_cannot_be_written_waits_in_order_and_fails_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "RETRY_SECONDS", 0)
    shelf = Shelf()
    shelf.away = True
    record = Audit(shelf.write)
    running = asyncio.create_task(record.run())
    await record.record(entry(1))
    await record.record(entry(2))
    shelf.away = False
    await asyncio.wait_for(shelf.written.wait(), 30)
    running.cancel()
    assert [each.resource for each in shelf.entries] == ["a/1", "a/2"]


async def test_a_silent_database_delays_a_call_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "WAIT_SECONDS", 0.01)
    shelf = Shelf()
    shelf.answers.clear()
    record = Audit(shelf.write)
    await asyncio.wait_for(record.record(entry(1)), 30)
    await asyncio.wait_for(record.record(entry(2)), 30)
    assert shelf.entries == []
    shelf.answers.set()
    await record.close()
    assert [each.resource for each in shelf.entries] == ["a/1", "a/2"]


async def test_there_is_an_end_to_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_PENDING", 3)
    shelf = Shelf()
    shelf.away = True
    record = Audit(shelf.write)
    lost = audit.ENTRIES.labels("lost")
    before = lost._value.get()
    for number in range(5):
        await record.record(entry(number))
    assert lost._value.get() - before == 2
    shelf.away = False
    await record.close()
    assert [each.resource for each in shelf.entries] == ["a/0", "a/1", "a/2"]
