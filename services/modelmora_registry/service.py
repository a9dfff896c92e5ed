"""The registry's RPCs: proto in, rules of the domain, one transaction of the store, proto out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from google.protobuf.message import Message
from modelmora.errors import (
    DatabaseUnavailable,
    EngineNotFound,
    FieldViolation,
    InvalidArgument,
    ShuttingDown,
    SourceNotFound,
    Unavailable,
    VersionDrifted,
)
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora.registry.v1 import registry_pb2_grpc
from modelmora_runtime import ids, protomap
from modelmora_runtime.auth import ADMINS, OPERATORS, READERS, SERVICES, Role, current_caller
from modelmora_runtime.host import EngineCard

from modelmora_registry import domain, listing, metadata, selection
from modelmora_registry.artifacts import Artifacts
from modelmora_registry.audit_service import AuditRecordRpcs, AuditRpcs
from modelmora_registry.audit_store import AuditStore
from modelmora_registry.domain import (
    EmptySource,
    EngineProfile,
    Failure,
    ImportProgress,
    ModelDraft,
    ModelId,
    ModelSource,
    ModelVersion,
    TaskType,
    VersionDraft,
    check_alias,
    check_checksums,
    check_new_version,
    check_version,
    exact_profile,
    parse_model_name,
    parse_reference,
    parse_version_name,
)
from modelmora_registry.exports import Exports
from modelmora_registry.filters import Kind
from modelmora_registry.holds import Hold, Holds
from modelmora_registry.imports import Imports
from modelmora_registry.link_service import LinkRpcs
from modelmora_registry.link_store import LinkStore
from modelmora_registry.lock_service import FingerprintRpcs, LockRpcs, golden_for
from modelmora_registry.lock_store import LockStore
from modelmora_registry.sources import Plan, local_config
from modelmora_registry.store import Created, Gone, RequestKey, Store
from modelmora_registry.verify import Verifier
from modelmora_registry.watching import Watching

log = logging.getLogger(__name__)

CACHE_TTL = timedelta(seconds=5)
"""How long a caller may go on with an answer of ResolveModel: so long does a moved alias take to be noticed."""

ACCESS: Mapping[str, frozenset[Role]] = {
    "CreateModel": OPERATORS,
    "GetModel": READERS,
    "ListModels": READERS,
    "UpdateModel": OPERATORS,
    "DeleteModel": OPERATORS,
    "CreateModelVersion": OPERATORS,
    "GetModelVersion": READERS,
    "ListModelVersions": READERS,
    "WatchModelVersion": READERS,
    "DeleteModelVersion": OPERATORS,
    "SetAlias": OPERATORS,
    "ImportModel": OPERATORS,
    "ResolveModel": READERS,
    "ListAliasChanges": READERS,
    "CancelImport": OPERATORS,
    "UpdateModelVersion": OPERATORS,
    "SetEngineProfile": OPERATORS,
    "VerifyModelVersion": OPERATORS,
    "SelectModelVersion": READERS,
    "CreateModelLock": OPERATORS,
    "GetModelLock": READERS,
    "ListModelLocks": READERS,
    "DeleteModelLock": OPERATORS,
    "RenderModelLock": READERS,
    "VerifyModelLock": OPERATORS,
    "DiffModelLocks": READERS,
    "ApplyModelLock": OPERATORS,
    "CreateExternalLink": OPERATORS,
    "GetExternalLink": READERS,
    "ListExternalLinks": READERS,
    "DeleteExternalLink": OPERATORS,
    "CheckExternalLink": OPERATORS,
    "ExportModelVersion": OPERATORS,
    "GetStorageUse": OPERATORS,
    "ListAuditEntries": ADMINS,
}
HOLD_ACCESS: Mapping[str, frozenset[Role]] = {
    "AcquireHold": SERVICES,
    "ReleaseHold": SERVICES,
    "RecordFingerprint": SERVICES,
    "RecordAuditEntries": SERVICES,
}

_MODEL_FIELDS: Mapping[str, Kind] = {
    "name": Kind.NAME,
    "display_name": Kind.TEXT,
    "task_type": Kind.TASK,
    "family": Kind.TEXT,
    "modality": Kind.MODALITY,
    "base_model": Kind.NAME,
    "trainable": Kind.BOOLEAN,
    "servable": Kind.BOOLEAN,
    "stage": Kind.STAGE,
    "labels": Kind.LABELS,
    "create_time": Kind.TIME,
    "update_time": Kind.TIME,
}
_VERSION_FIELDS: Mapping[str, Kind] = {
    "version": Kind.TEXT,
    "state": Kind.STATE,
    "engine": Kind.TEXT,
    "task_type": Kind.TASK,
    "archived": Kind.BOOLEAN,
    "size_bytes": Kind.NUMBER,
    "parameter_count": Kind.NUMBER,
    "dtype": Kind.TEXT,
    "training_job": Kind.TEXT,
    "labels": Kind.LABELS,
    "metrics": Kind.METRICS,
    "create_time": Kind.TIME,
    "update_time": Kind.TIME,
}
MAX_LEFT_OUT = 1000
ALL_MODELS = ("models/-", "-")
"""As a parent: the versions of every model."""


class RegistryServicer(AuditRpcs, LinkRpcs, LockRpcs, registry_pb2_grpc.RegistryServiceServicer):
    def __init__(
        self,
        store: Store,
        artifacts: Artifacts,
        imports: Imports,
        holds: Holds,
        watching: Watching,
        engines: Mapping[str, EngineCard],
        stopping: asyncio.Event,
        links: LinkStore,
        exports: Exports,
        locks: LockStore,
        verifier: Verifier,
        entries: AuditStore,
    ) -> None:
        self._store = store
        self._audit = entries
        self._links = links
        self._exports = exports
        self._locks = locks
        self._verifier = verifier
        self._artifacts = artifacts
        self._imports = imports
        self._holds = holds
        self._watching = watching
        self._engines = engines
        self._stopping = stopping
        self._removing: set[asyncio.Task[None]] = set()

    # Models.

    async def CreateModel(self, request: pb.CreateModelRequest, context: Any) -> pb.CreateModelResponse:
        model_id = ModelId.parse(request.model_id)
        draft = protomap.read(request.model, ModelDraft, at="model")
        key = _request_key(request)
        created = await self._store.create_model(model_id, draft, key, validate_only=request.validate_only)
        return pb.CreateModelResponse(model=_model(created))

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=_model(await self._store.get_model(parse_model_name(request.name))))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        page = listing.parse_page(
            page_size=request.page_size,
            page_token=request.page_token,
            filter=request.filter,
            order_by=request.order_by,
            query=request.query,
            fields=_MODEL_FIELDS,
            orders=("name", "create_time", "update_time"),
            default_order="name",
            scope="models",
        )
        found = await self._store.list_models(page, with_total=request.include_total_size)
        return pb.ListModelsResponse(
            models=[_model(item) for item in found.items],
            next_page_token=found.next_page_token,
            total_size=found.total_size,
        )

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Any) -> pb.UpdateModelResponse:
        model_id = parse_model_name(request.model.name, at="model.name")
        draft = protomap.read(request.model, ModelDraft, at="model")
        mask = tuple(request.update_mask.paths)
        changed = await self._store.update_model(model_id, draft, mask, request.etag)
        return pb.UpdateModelResponse(model=_model(changed))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Any) -> pb.DeleteModelResponse:
        model_id = parse_model_name(request.name)
        await self._holds.settle()
        gone = await self._store.delete_model(
            model_id,
            request.etag,
            force=request.force,
            subject=current_caller().subject,
            held=self._holds.held(),
        )
        await self._remove_files(gone)
        return pb.DeleteModelResponse()

    # Versions.

    async def CreateModelVersion(
        self, request: pb.CreateModelVersionRequest, context: Any
    ) -> pb.CreateModelVersionResponse:
        created, _ = await self._create(
            parse_model_name(request.parent, at="parent"),
            protomap.read(request.model_version, VersionDraft, at="model_version"),
            request,
            at="model_version.",
            new_model=False,
        )
        return pb.CreateModelVersionResponse(model_version=_version(created.version))

    async def ImportModel(self, request: pb.ImportModelRequest, context: Any) -> pb.ImportModelResponse:
        draft = protomap.read(request, VersionDraft)
        created, left_out = await self._create(_import_id(request, draft), draft, request, at="", new_model=True)
        return pb.ImportModelResponse(
            model=_model(created.model), model_version=_version(created.version), left_out_files=left_out[:MAX_LEFT_OUT]
        )

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Any) -> pb.GetModelVersionResponse:
        version = await self._store.get_version(parse_version_name(request.name))
        return pb.GetModelVersionResponse(model_version=_version(version))

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Any
    ) -> pb.ListModelVersionsResponse:
        model_id = None if request.parent in ALL_MODELS else parse_model_name(request.parent, at="parent")
        page = listing.parse_page(
            page_size=request.page_size,
            page_token=request.page_token,
            filter=request.filter,
            order_by=request.order_by,
            fields=_VERSION_FIELDS,
            orders=("create_time", "version"),
            default_order="create_time desc",
            scope=f"versions of {model_id or 'all'}",
        )
        found = await self._store.list_versions(model_id, page, with_total=request.include_total_size)
        return pb.ListModelVersionsResponse(
            model_versions=[_version(item) for item in found.items],
            next_page_token=found.next_page_token,
            total_size=found.total_size,
        )

    async def WatchModelVersion(
        self, request: pb.WatchModelVersionRequest, context: Any
    ) -> AsyncIterator[pb.WatchModelVersionResponse]:
        seen_uid, seen_revision = _read_cursor(request.cursor)
        version = await self._store.get_version(parse_version_name(request.name))
        uid = version.uid
        if seen_uid != uid:
            seen_revision = 0  # Another version of this name: the one seen failed and was replaced.
        with self._watching.watch(uid) as changed:
            while True:
                changed.clear()
                now = await self._store.get_version_by_uid(uid)
                if now is None:
                    yield pb.WatchModelVersionResponse(cursor=_cursor(uid, seen_revision), deleted=True)
                    return
                if now.revision > seen_revision:
                    seen_revision = now.revision
                    yield pb.WatchModelVersionResponse(model_version=_version(now), cursor=_cursor(uid, seen_revision))
                if now.is_final:
                    return
                await _first_of(changed, self._stopping)
                if self._stopping.is_set():
                    raise ShuttingDown(cursor=_cursor(uid, seen_revision))

    async def DeleteModelVersion(
        self, request: pb.DeleteModelVersionRequest, context: Any
    ) -> pb.DeleteModelVersionResponse:
        # An alias is no name to delete by: it may have moved since the caller looked.
        reference = parse_version_name(request.name).model_copy(update={"version_only": True})
        await self._holds.settle()
        gone = await self._store.delete_version(
            reference,
            request.etag,
            force=request.force,
            subject=current_caller().subject,
            held=self._holds.held(),
        )
        await self._remove_files([gone])
        return pb.DeleteModelVersionResponse()

    async def CancelImport(self, request: pb.CancelImportRequest, context: Any) -> pb.CancelImportResponse:
        version = await self._store.get_version(parse_version_name(request.name))
        # Written down first: from here on nobody begins it anew, and whoever works on it elsewhere is told to stop.
        ended = await self._store.record_failure(version.uid, Failure(reason="Cancelled", message="it was cancelled"))
        await self._remove_files([Gone(version.uid, None)])
        return pb.CancelImportResponse(model_version=_version(ended))

    async def UpdateModelVersion(
        self, request: pb.UpdateModelVersionRequest, context: Any
    ) -> pb.UpdateModelVersionResponse:
        reference = parse_version_name(request.model_version.name, at="model_version.name")
        draft = protomap.read(request.model_version, VersionDraft, at="model_version")
        changed = await self._store.update_version(
            reference.model_copy(update={"version_only": True}),
            draft,
            tuple(request.update_mask.paths),
            archived=request.archived,
            etag=request.etag,
        )
        return pb.UpdateModelVersionResponse(model_version=_version(changed))

    async def SetEngineProfile(self, request: pb.SetEngineProfileRequest, context: Any) -> pb.SetEngineProfileResponse:
        _, version = await self._store.resolve(parse_reference(request.name))
        wanted = None
        if request.HasField("engine_profile"):
            wanted = protomap.read(request.engine_profile, EngineProfile, at="engine_profile")

        def change(version: ModelVersion, now: datetime) -> ModelVersion:
            card = self._engines.get(version.engine)
            return version.served_with(wanted, card.profiles if card else (), now=now)

        named = parse_version_name(version.name).model_copy(update={"version_only": True})
        changed = await self._store.change_version(named, change, etag=request.etag)
        if changed.engine_profile == version.engine_profile:
            await self._locks.forget_fingerprints(changed.uid)
            await self._verifier.forgotten()
        return pb.SetEngineProfileResponse(model_version=_version(changed))

    async def SelectModelVersion(
        self, request: pb.SelectModelVersionRequest, context: Any
    ) -> pb.SelectModelVersionResponse:
        model_id = parse_model_name(request.name)
        plain = {name: value for name, value in protomap.to_plain(request).items() if value is not None}
        criteria = protomap.parse({name: plain[name] for name in plain.keys() - {"name"}}, selection.Criteria)
        criteria.check()
        found, candidates = await self._store.candidates(model_id, selection.MAX_CANDIDATES)
        chosen = selection.select(candidates, criteria)
        answer = pb.SelectModelVersionResponse(reason=chosen.reason)
        for each in chosen.rejected:
            answer.rejected.add(version=each.version, reason=each.reason)
        if chosen.version is not None:
            name = found.model_id.version_name(chosen.version)
            answer.model_version.CopyFrom(_version(await self._store.get_version(parse_version_name(name))))
        return answer

    async def ListAliasChanges(self, request: pb.ListAliasChangesRequest, context: Any) -> pb.ListAliasChangesResponse:
        model_id = parse_model_name(request.parent, at="parent")
        page = listing.parse_page(
            page_size=request.page_size,
            page_token=request.page_token,
            orders=(listing.POSITION,),
            default_order=f"{listing.POSITION} desc",
            scope=f"alias changes of {model_id} {request.alias}",
        )
        found = await self._store.alias_changes(model_id, request.alias, page)
        return pb.ListAliasChangesResponse(
            changes=[protomap.write(item, pb.AliasChange) for item in found.items],
            next_page_token=found.next_page_token,
        )

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:
        model_id = parse_model_name(request.name)
        alias = check_alias(request.alias)
        version = check_version(request.version) if request.version else ""
        if request.require_verified and version:
            target = domain.Reference(model_id=model_id, selector=version, version_only=True)
            await self.check_verified((await self._store.resolve(target))[1])
        changed = await self._store.set_alias(model_id, alias, version, request.etag, subject=current_caller().subject)
        return pb.SetAliasResponse(model=_model(changed))

    async def ResolveModel(self, request: pb.ResolveModelRequest, context: Any) -> pb.ResolveModelResponse:
        model, version = await self._store.resolve(parse_reference(request.reference))
        return pb.ResolveModelResponse(model=_model(model), model_version=_version(version), cache_ttl=CACHE_TTL)

    async def GetStorageUse(self, request: pb.GetStorageUseRequest, context: Any) -> pb.GetStorageUseResponse:
        return protomap.write(await self._store.storage_use(), pb.GetStorageUseResponse)

    # Creating a version.

    async def _create(
        self,
        model_id: ModelId,
        draft: VersionDraft,
        request: pb.CreateModelVersionRequest | pb.ImportModelRequest,
        *,
        at: str,
        new_model: bool,
    ) -> tuple[Created, Sequence[str]]:
        """What was made, and which files of the source are left out. `at` begins the fields' paths.

        1. What was asked for itself 2. an earlier call with this id 3. the source 4. engine, task, options 5. the
        checksums and the room 6. one transaction 7. the import in the background.
        """
        checksums = check_checksums(request.expected_checksums)
        if draft.version:
            check_new_version(draft.version, at=f"{at}version")
        elif draft.source is None or draft.source.hub is None:
            raise InvalidArgument.at(f"{at}version", "must be set; only a Hub source has a default, its commit")
        key = _request_key(request)
        if key is not None and (earlier := await self._store.earlier(key)):
            return earlier, ()
        plan = await self._artifacts.plan(self._source(draft, at), at=f"{at}source")
        config = await asyncio.to_thread(local_config, plan)
        engine, task_type = self._check_engine(draft, plan, config, at)
        if missing := metadata.missing_weights(engine, plan.paths):
            raise SourceNotFound(
                f"the source has no file {missing}, which {engine} needs",
                fields=[FieldViolation(f"{at}source", f"has no file {missing}")],
                file=missing,
            )
        for path in checksums:
            if path not in plan.paths:
                field = f"expected_checksums.{path}"
                raise SourceNotFound(
                    f"the source has no file {path}", fields=[FieldViolation(field, "the source has no such file")]
                )
        plan = await self._artifacts.check_room(plan, checksums)
        version = draft.version or (plan.source.hub.commit if plan.source.hub else "")
        created = await self._store.create_version(
            model_id,
            ModelVersion(
                name=model_id.version_name(version),
                version=version,
                task_type=task_type,
                engine=engine,
                engine_options=draft.engine_options,
                source=plan.source,
                resource_requirements=draft.resource_requirements,
                engine_profile=exact_profile(engine, self._engines[engine].profiles),
                limits=draft.limits,
                labels=draft.labels,
                metrics=draft.metrics,
                training_job=draft.training_job,
                progress=ImportProgress(total_bytes=plan.total_bytes),
            ),
            checksums=checksums,
            request=key,
            new_model=ModelDraft(task_type=task_type) if new_model else None,
            reuse=new_model,
            validate_only=request.validate_only,
            at=at,
        )
        if created.is_new and not created.version.is_final and not request.validate_only:
            self._imports.start(created.version.uid, plan)
        return created, plan.left_out if created.is_new else ()

    def _source(self, draft: VersionDraft, at: str) -> ModelSource:
        """The source asked for, without what only the registry may fill in."""
        if draft.source is None:
            card = self._engines.get(draft.engine)
            if card is None or card.needs_files:
                raise InvalidArgument.at(f"{at}source", "must be one of local, hub, url, empty")
            return ModelSource(empty=EmptySource())
        if draft.source.hub is not None:
            return ModelSource(hub=draft.source.hub.model_copy(update={"commit": ""}))
        if draft.source.url is not None:
            return ModelSource(url=draft.source.url.model_copy(update={"object_versions": {}}))
        return draft.source

    def _check_engine(self, draft: VersionDraft, plan: Plan, config: Any, at: str) -> tuple[str, TaskType]:
        """The engine and task asked for, or else those that the files tell; with options that the engine takes."""
        kind = metadata.kind_of(plan.paths, config, draft.task_type)
        engine = draft.engine or kind.engine
        known = ", ".join(sorted(self._engines))
        if engine is None:
            raise InvalidArgument.at(f"{at}engine", f"cannot be told from the files; must be one of {known}")
        card = self._engines.get(engine)
        if card is None:
            problem = f"there is no engine {engine!r}; there are {known}"
            raise EngineNotFound(problem, fields=[FieldViolation(f"{at}engine", problem)], engine=engine)
        if card.needs_files and not plan.files:
            raise InvalidArgument.at(f"{at}source", f"{engine} needs files")
        task_type = draft.task_type or (kind.task_type if engine == kind.engine else None)
        if task_type is None and len(card.tasks) == 1:
            task_type = domain.parse_task(next(iter(card.tasks)))
        if task_type is None and TaskType.TXT2EMBED.value in card.tasks:
            task_type = TaskType.TXT2EMBED  # an engine that embeds among others embeds by default
        if task_type is None:
            raise InvalidArgument.at(f"{at}task_type", f"must be set; {engine} does {', '.join(sorted(card.tasks))}")
        if task_type.value not in card.tasks:
            raise InvalidArgument.at(
                f"{at}task_type", f"{engine} does not do {task_type}; it does {', '.join(sorted(card.tasks))}"
            )
        violations = [
            FieldViolation(f"{at}engine_options.{found.field}", found.description)
            for found in card.check_options(draft.engine_options or {})
        ]
        if violations:
            raise InvalidArgument(
                "; ".join(f"{found.field}: {found.description}" for found in violations), fields=violations
            )
        return engine, task_type

    async def _remove_files(self, gone: Sequence[Gone]) -> None:
        """Also when the caller goes away meanwhile: the rows are gone, and no later call would find these files."""

        async def remove() -> None:
            for version in gone:
                await self._imports.cancel(version.uid)
                await self._artifacts.discard(version.uid, version.digests)
            await self._verifier.forgotten()

        removing = asyncio.create_task(remove(), name="removing files")
        self._removing.add(removing)
        removing.add_done_callback(self._removing.discard)
        await asyncio.shield(removing)


class RegistryHoldServicer(FingerprintRpcs, AuditRecordRpcs, registry_pb2_grpc.RegistryHoldServiceServicer):
    def __init__(
        self, holds: Holds, store: Store, locks: LockStore, verifier: Verifier, watching: Watching, audit: AuditStore
    ) -> None:
        self._holds = holds
        self._audit = audit
        self._watching = watching
        self._store = store
        self._locks = locks
        self._verifier = verifier

    async def AcquireHold(self, request: pb.AcquireHoldRequest, context: Any) -> AsyncIterator[pb.AcquireHoldResponse]:
        reference = parse_version_name(request.name)
        if not request.holder.strip() or len(request.holder) > 255 or "\x00" in request.holder:
            raise InvalidArgument.at("holder", "must say who holds, in 1 to 255 characters")
        if len(request.process) > 255 or "\x00" in request.process:
            raise InvalidArgument.at("process", "is longer than 255 characters, or no text")
        uid = str(ids.parse(request.hold_id, "hold_id")) if request.hold_id else ""
        async with self._holds.hold(reference, request.holder, uid=uid, process=request.process) as hold:
            if not request.in_memory:
                await self._verifier.check_load(hold.version)
            golden = golden_for(hold.version)
            yield pb.AcquireHoldResponse(
                model_version=_version(hold.version),
                golden=protomap.write(golden, pb.GoldenInputs) if golden is not None else None,
            )
            if request.in_memory:
                await self._look_at(hold.version)
            async for changed in self._profiles(hold):
                yield pb.AcquireHoldResponse(model_version=_version(changed))
            if not hold.released:
                raise Unavailable("the hold is gone; acquire it again", version=hold.version.name)

    async def ReleaseHold(self, request: pb.ReleaseHoldRequest, context: Any) -> pb.ReleaseHoldResponse:
        await self._holds.release(str(ids.parse(request.hold_id, "hold_id")))
        return pb.ReleaseHoldResponse()

    async def _look_at(self, version: ModelVersion) -> None:
        """At the files of what is in memory: that they drifted is told by health, and ends nothing."""
        try:
            await self._verifier.check_load(version)
        except VersionDrifted as error:
            log.error("%s, but it is in memory, and stays held", error.message)

    async def _profiles(self, hold: Hold) -> AsyncIterator[ModelVersion]:
        """The version each time its engine profile changes, until the hold is gone."""
        known = hold.version
        with self._watching.watch(known.uid) as news:
            while not hold.over.is_set():
                await _first_of(hold.over, news)
                news.clear()
                try:
                    now = await self._store.get_version_by_uid(known.uid)
                except DatabaseUnavailable:
                    continue  # when it is back all watchers are told to look again
                if now is not None and now.engine_profile != known.engine_profile:
                    known = now
                    yield now


def _model(value: domain.Model) -> pb.Model:
    return protomap.write(value, pb.Model)


def _version(value: ModelVersion) -> pb.ModelVersion:
    return protomap.write(value, pb.ModelVersion)


def _import_id(request: pb.ImportModelRequest, draft: VersionDraft) -> ModelId:
    """The model to import into: as asked for, else the Hub's repository, else `local/<name of the folder>`."""
    source = draft.source
    if not request.model_id and source is not None and source.hub is not None:
        return ModelId.parse(source.hub.repo_id)
    if not request.model_id and source is not None and source.local is not None:
        return ModelId.parse(f"local/{domain.slug(PurePosixPath(source.local.path).name)}")
    return ModelId.parse(request.model_id)


def _request_key(request: Message) -> RequestKey | None:
    """The request's id with the digest of all the rest."""
    request_id = getattr(request, "request_id")  # noqa: B009 (not on every Message)
    if not request_id:
        return None
    uid = str(ids.parse(request_id, "request_id"))
    if getattr(request, "validate_only"):  # noqa: B009
        return None  # Checked, and not claimed: nothing is made.
    rest = type(request)()
    rest.CopyFrom(request)
    rest.ClearField("request_id")
    content = rest.DESCRIPTOR.full_name.encode() + b"\0" + rest.SerializeToString(deterministic=True)
    return RequestKey(uid, hashlib.sha256(content).hexdigest())


def _cursor(uid: str, revision: int) -> str:
    return base64.urlsafe_b64encode(f"{uid}:{revision}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[str, int]:
    if not cursor:
        return "", 0
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        uid, _, revision = text.partition(":")
        return str(ids.parse(uid)), int(revision)
    except (ValueError, binascii.Error, InvalidArgument):
        raise InvalidArgument.at("cursor", "is not a cursor that this stream gave") from None


async def _first_of(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
