"""The RPCs of external links: a mixin for the registry's servicer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from modelmora.errors import FailedPrecondition, InvalidArgument, VersionNotReady
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora_runtime import protomap

from modelmora_registry import listing
from modelmora_registry.domain import ModelId, ModelVersion, parse_model_name, parse_reference
from modelmora_registry.exports import Exports
from modelmora_registry.link_store import LinkStore
from modelmora_registry.links import ExternalLink, LinkDraft, parse_link_name
from modelmora_registry.store import Store

T = TypeVar("T")


class LinkRpcs:
    """RPCs of RegistryService on links to other registries."""

    _store: Store
    _links: LinkStore
    _exports: Exports

    async def CreateExternalLink(
        self, request: pb.CreateExternalLinkRequest, context: Any
    ) -> pb.CreateExternalLinkResponse:
        model_id = parse_model_name(request.parent, at="parent")
        draft = protomap.read(request.external_link, LinkDraft, at="external_link")
        await self._exports.check_place(draft, "external_link.external_id")
        return pb.CreateExternalLinkResponse(
            external_link=await self._message(await self._links.create(model_id, draft))
        )

    async def GetExternalLink(self, request: pb.GetExternalLinkRequest, context: Any) -> pb.GetExternalLinkResponse:
        link = await self._links.get(*parse_link_name(request.name))
        return pb.GetExternalLinkResponse(external_link=await self._message(link))

    async def ListExternalLinks(
        self, request: pb.ListExternalLinksRequest, context: Any
    ) -> pb.ListExternalLinksResponse:
        model_id = parse_model_name(request.parent, at="parent")
        page = listing.parse_page(
            page_size=request.page_size,
            page_token=request.page_token,
            orders=("create_time",),
            default_order="create_time",
            scope=f"{model_id.name}/links",
        )
        links, token = await self._links.list(model_id, page)
        return pb.ListExternalLinksResponse(
            external_links=[await self._message(link) for link in links], next_page_token=token
        )

    async def DeleteExternalLink(
        self, request: pb.DeleteExternalLinkRequest, context: Any
    ) -> pb.DeleteExternalLinkResponse:
        await self._links.delete(*parse_link_name(request.name), request.etag)
        return pb.DeleteExternalLinkResponse()

    async def CheckExternalLink(
        self, request: pb.CheckExternalLinkRequest, context: Any
    ) -> pb.CheckExternalLinkResponse:
        model_id, uid = parse_link_name(request.name)
        link = await self._links.get(model_id, uid)
        found = await self._exports.look(link, await self._version_of(model_id, link))
        checked = await self._links.change(
            model_id, uid, lambda now_there, now: now_there.checked(found.differences, found.metadata, now=now)
        )
        return pb.CheckExternalLinkResponse(external_link=await self._message(checked))

    async def ExportModelVersion(
        self, request: pb.ExportModelVersionRequest, context: Any
    ) -> pb.ExportModelVersionResponse:
        reference = parse_reference(request.name, at="name")
        model_id, uid = parse_link_name(request.external_link, at="external_link")
        if reference.model_id != model_id:
            raise InvalidArgument.at("external_link", f"is a link of {model_id}, not of {reference.model_id}")
        link = await self._links.get(model_id, uid)
        _, version = await self._store.resolve(reference)

        async def export() -> ExternalLink:
            plan = await self._exports.plan(link, version, overwrite=request.overwrite)
            if plan.digests:
                await self._links.change(model_id, uid, lambda now_there, now: now_there.exporting(plan.digests))
            await self._exports.export(link, version, plan)
            return await self._links.change(
                model_id,
                uid,
                lambda now_there, now: now_there.with_export(version.version, plan.files, plan.digests, now=now),
            )

        return pb.ExportModelVersionResponse(external_link=await self._message(await _to_its_end(export())))

    async def _version_of(self, model_id: ModelId, link: ExternalLink) -> ModelVersion:
        """What the link is about: the version that was exchanged last, else the current one."""
        reference = f"{model_id}@{link.version}" if link.version else str(model_id)
        try:
            _, version = await self._store.resolve(parse_reference(reference))
        except VersionNotReady as error:
            raise FailedPrecondition(f"there is nothing to compare: {error.message}") from None
        return version

    async def _message(self, link: ExternalLink) -> pb.ExternalLink:
        return protomap.write(link.model_copy(update={"url": await self._exports.url(link)}), pb.ExternalLink)


_running: set[asyncio.Task[Any]] = set()


async def _to_its_end(work: Awaitable[T]) -> T:
    """Also when the caller goes away meanwhile: what is there by then must be written down here."""
    task = asyncio.ensure_future(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return await asyncio.shield(task)
