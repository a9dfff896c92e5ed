"""The record of who did which admin RPC on what, with what result.

An entry is written before the caller hears the answer, so that a crash between the two loses at most what nobody was
told of. A record that cannot be written delays a call by WAIT_SECONDS at most and never fails it: the entry stays here,
up to MAX_PENDING of them, and is written as soon as that works again. What finds no place is lost, counted and logged.

Recorded are the methods that clients may not call and that change something, by their declaration: their roles, and a
name that does not begin with Get or List. Calls between contexts of one process are not anybody's doing, and callers
that nobody knows could fill a disk with their attempts.

There is one record, the registry's: one list, one bound. The other contexts write to it by RPC (`to_registry`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from google.protobuf.message import DecodeError, Message
from modelmora.errors import ModelMoraError
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc
from prometheus_client import Counter

from modelmora_runtime.auth import ANYONE, NOBODY, SERVICES, Caller, Role
from modelmora_runtime.ids import uuid7
from modelmora_runtime.peers import Peers

log = logging.getLogger(__name__)

WAIT_SECONDS = 1.0
RETRY_SECONDS = 1.0
WRITE_SECONDS = 5.0
MAX_PENDING = 10_000
BATCH = 100
MAX_PARSED_BYTES = 2**16
"""Of a request that was refused before it was read: larger ones are not read for the record's sake."""

ENTRIES = Counter("modelmora_audit_entries_total", "Entries of the audit record, by what became of them", ["outcome"])


@dataclass(frozen=True)
class Entry:
    """One call. `method` is `package.Service/Method`, `resource` the name the request was about, as it was given."""

    uid: str
    time: datetime
    subject: str
    tenant: str
    method: str
    resource: str
    status: str
    reason: str
    peer: str


class Audit:
    """Where a context's entries go. `write` stores entries, each uid once, or raises a ModelMoraError."""

    def __init__(self, write: Callable[[Sequence[Entry]], Awaitable[None]]) -> None:
        self._write = write
        self._pending: deque[Entry] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._stuck = asyncio.Event()

    async def record(self, entry: Entry) -> None:
        """Returns when the entry is written, or after WAIT_SECONDS."""
        await asyncio.wait([self.record_soon(entry)], timeout=WAIT_SECONDS)

    def record_soon(self, entry: Entry) -> asyncio.Task[None]:
        """For a caller that has gone: nobody waits."""
        if len(self._pending) < MAX_PENDING:
            self._pending.append(entry)
        else:
            ENTRIES.labels("lost").inc()
            log.error("an audit entry is lost: %s", entry)
        return self._drain()

    async def run(self) -> None:
        """Tries again what could not be written, without end."""
        while True:
            await self._stuck.wait()
            await asyncio.sleep(RETRY_SECONDS)
            self._stuck.clear()
            await asyncio.wait([self._drain()])

    async def close(self) -> None:
        """A last try."""
        if self._pending:
            await asyncio.wait([self._drain()], timeout=WAIT_SECONDS)
        if self._pending:
            log.error("%d audit entries are lost: %s", len(self._pending), list(islice(self._pending, BATCH)))

    def _drain(self) -> asyncio.Task[None]:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all(), name="audit")
        return self._writing

    async def _write_all(self) -> None:
        while batch := list(islice(self._pending, BATCH)):
            try:
                await self._write(batch)
            except ModelMoraError as error:
                ENTRIES.labels("late").inc()
                log.warning("%d audit entries wait: %s", len(self._pending), error.message)
                self._stuck.set()
                return
            for _ in batch:
                self._pending.popleft()
            ENTRIES.labels("written").inc(len(batch))


def to_registry(peers: Peers) -> Callable[[Sequence[Entry]], Awaitable[None]]:
    """What an Audit of another context writes with. It raises what the registry raises."""

    async def write(entries: Sequence[Entry]) -> None:
        request = registry_pb2.RecordAuditEntriesRequest()
        for entry in entries:
            made = request.entries.add(
                uid=entry.uid,
                subject=entry.subject,
                tenant=entry.tenant,
                method=entry.method,
                resource=entry.resource,
                status=entry.status,
                reason=entry.reason,
                peer=entry.peer,
            )
            made.create_time.FromDatetime(entry.time)
        stub = registry_pb2_grpc.RegistryHoldServiceStub(peers.channel("registry"))  # type: ignore[no-untyped-call]
        await stub.RecordAuditEntries(request, timeout=WRITE_SECONDS)

    return write


def is_audited(access: frozenset[Role], name: str) -> bool:
    """Whether calls of a method with these roles are recorded."""
    for_clients = access is ANYONE or Role.CLIENT in access
    return not for_clients and access != SERVICES and not name.startswith(("Get", "List"))


def entry_of(
    method: str, caller: Caller, request: Any, answer: Any, status: str, failure: ModelMoraError | None, peer: str
) -> Entry | None:
    """The entry of a call; None when it is not for the record."""
    if caller.internal or caller is NOBODY:
        return None
    return Entry(
        uid=str(uuid7()),
        # Of this machine: an entry may be written long after.
        time=datetime.now(UTC),
        subject=caller.subject,
        tenant=caller.tenant,
        method=method,
        resource=resource_of(request, answer),
        status=status,
        reason=failure.reason if failure is not None else "",
        peer=peer,
    )


def resource_of(request: Any, answer: Any = None) -> str:
    """What a call was about: the name of what it answered with (only then is it known what was made), else the first
    name, parent or id in the request."""
    for message in (answer, request):
        if isinstance(message, Message):
            fields = [field for field in message.DESCRIPTOR.fields if not field.is_repeated]
            inner = [
                getattr(message, field.name)
                for field in fields
                if field.message_type is not None and message.HasField(field.name)
            ]
            # An import answers with the model and the version: the last is the most precise.
            told = (getattr(part, name, "") for part in reversed(inner) for name in ("model_version", "name"))
            own = () if message is answer else (getattr(message, field, "") for field in _NAMES)
            if found := next((name for name in (*own, *told) if isinstance(name, str) and name), ""):
                return found
    return ""


_NAMES = ("name", "parent", "model_id", "lock_id", "model", "tenant", "device")


def parsed_request(raw: Any, deserializer: Callable[[bytes], Any]) -> Any:
    """The request of a call that was refused before it was read, where that is cheap."""
    if not isinstance(raw, bytes) or len(raw) > MAX_PARSED_BYTES:
        return raw
    try:
        return deserializer(raw)
    except DecodeError:
        return None
