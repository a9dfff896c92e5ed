"""The RPC of the audit record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmora.registry.v1 import registry_pb2 as pb
from modelmora_runtime import protomap

from modelmora_registry import listing
from modelmora_registry.audit_store import AuditStore
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
