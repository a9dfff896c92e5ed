"""The RPCs of the audit record: it is read by people, and written for other contexts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmora.errors import InvalidArgument
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora_runtime import ids, protomap
from modelmora_runtime.audit import BATCH, Entry

from modelmora_registry import listing
from modelmora_registry.audit_store import AuditStore
from modelmora_registry.domain import AuditEntry
from modelmora_registry.filters import Kind

FIELDS: Mapping[str, Kind] = {
    **dict.fromkeys(("subject", "tenant", "method", "status", "reason", "peer"), Kind.TEXT),
    "resource": Kind.TEXT,
    "create_time": Kind.TIME,
}


class AuditRpcs:
    """For the registry's servicer, which sets `_audit`."""

    _audit: AuditStore

    async def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, context: Any) -> pb.ListAuditEntriesResponse:
        page = listing.parse_page(
            page_size=request.page_size,
            page_token=request.page_token,
            filter=request.filter,
            fields=FIELDS,
            orders=(listing.POSITION,),
            default_order=f"{listing.POSITION} desc",
            scope="audit entries",
        )
        found = await self._audit.list(page)
        return pb.ListAuditEntriesResponse(
            entries=[protomap.write(entry, pb.AuditEntry) for entry in found.items],
            next_page_token=found.next_page_token,
        )


class AuditRecordRpcs:
    """RPCs of RegistryHoldService on the audit record."""

    _audit: AuditStore

    async def RecordAuditEntries(
        self, request: pb.RecordAuditEntriesRequest, context: Any
    ) -> pb.RecordAuditEntriesResponse:
        if len(request.entries) > BATCH:
            raise InvalidArgument.at("entries", f"has {len(request.entries)} entries; {BATCH} are taken at a time")
        found = []
        for number, message in enumerate(request.entries):
            path = f"entries[{number}]"
            told = protomap.read(message, AuditEntry, at=path).model_dump()
            uid = str(ids.parse(told.pop("uid"), f"{path}.uid"))
            found.append(Entry(uid=uid, time=told.pop("create_time"), **told))
        if found:
            await self._audit.write(found)
        return pb.RecordAuditEntriesResponse()
