"""The RPCs of model locks, verification and fingerprints: two mixins for the registry's servicers.

How the registry, which calls nobody, knows what libraries a version runs on: at every load it asks for the answers to
golden inputs, and who loaded it reports them with the profile they were made with, library versions included. What was
reported last is what is here. A version that was never loaded here has libraries that nobody knows; that is no drift.

What refuses a load is a changed file. Other libraries and other answers are reported, by `lock verify` and in the
registry's health, and refuse nothing: an upgrade of torch must not be the end of every model at once.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message
from modelmora.errors import (
    ChecksumMismatch,
    DatabaseUnavailable,
    EngineNotFound,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    ModelMoraError,
    ModelNotFound,
    ShuttingDown,
    VersionNotFound,
    VersionNotReady,
)
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora_runtime import ids, protomap
from modelmora_runtime.auth import current_caller
from modelmora_runtime.host import EngineCard
from modelmora_runtime.interceptors import left_undone

from modelmora_registry import lock_yaml, locks, mirrors
from modelmora_registry.artifacts import Artifacts
from modelmora_registry.domain import (
    PRODUCTION_ALIAS,
    EmptySource,
    EngineProfile,
    ImportProgress,
    ModelDraft,
    ModelSource,
    ModelVersion,
    ModelVersionState,
    parse_reference,
    parse_version_name,
)
from modelmora_registry.imports import Imports
from modelmora_registry.lock_store import Behaviour, LockRow, LockStore
from modelmora_registry.locks import (
    LOCK_PREFIX,
    Drift,
    Fingerprint,
    LockDocument,
    LockedModel,
    ModelLock,
)
from modelmora_registry.store import RequestKey, Store
from modelmora_registry.verify import Verifier
from modelmora_registry.watching import Watching

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_PAGE = 1000


@dataclass(frozen=True)
class Step:
    """How far a version of a lock is. `outcome` is set with the last one."""

    done_bytes: int = 0
    outcome: str = ""
    error: ModelMoraError | None = None
    """Why the outcome is `failed`."""


class LockRpcs:
    """RPCs of RegistryService on locks and verification."""

    _store: Store
    _locks: LockStore
    _verifier: Verifier
    _artifacts: Artifacts
    _imports: Imports
    _watching: Watching
    _engines: Mapping[str, EngineCard]
    _stopping: asyncio.Event

    # Verification.

    async def VerifyModelVersion(
        self, request: pb.VerifyModelVersionRequest, context: Any
    ) -> AsyncIterator[pb.VerifyModelVersionResponse]:
        reference = parse_reference(request.name, at="name")
        _, version = await self._store.resolve(reference)
        intact, done, total = True, 0, 0
        async for looked in self._verifier.verify(version, full=request.full):
            self._check_running()
            done, total = looked.done_bytes, looked.total_bytes
            answer = pb.VerifyModelVersionResponse(done_bytes=done, total_bytes=total)
            if looked.verdict is not None:
                intact = intact and looked.verdict.verdict == "intact"
                answer.file.CopyFrom(protomap.write(looked.verdict, pb.FileVerdict))
            yield answer
        yield pb.VerifyModelVersionResponse(done_bytes=done, total_bytes=total, done=True, intact=intact)

    async def check_verified(self, version: ModelVersion) -> None:
        """Hashes every file of it. Raises ChecksumMismatch, naming the first file that differs."""
        for verdict in await self._verifier.differing(version, full=True):
            raise ChecksumMismatch(
                f"{version.name}: {verdict.path} is {verdict.verdict}",
                file=verdict.path,
                expected_sha256=verdict.expected_sha256,
                found_sha256=verdict.found_sha256,
            )

    # Locks.

    async def CreateModelLock(self, request: pb.CreateModelLockRequest, context: Any) -> pb.CreateModelLockResponse:
        if request.lock_id:
            locks.check_lock_id(request.lock_id)
        if request.yaml and request.models:
            raise InvalidArgument.at("models", "must be empty when the YAML of a lock is given")
        key = _request_key(request)
        row = await self._locks.earlier_lock(key) if key else None
        if row is None:
            document = (
                await self._read_lock(request.yaml) if request.yaml else await self._make_document(request.models)
            )
            text = await asyncio.to_thread(locks.render, document)
            digest = locks.digest_of(text)
            # By its content: making the same lock again is making nothing.
            lock_id = request.lock_id or f"lock-{digest.removeprefix('sha256:')[:16]}"
            row = await self._locks.create_lock(lock_id, digest, text, key)
        return pb.CreateModelLockResponse(model_lock=await self._lock_message(row), yaml=row.yaml)

    async def GetModelLock(self, request: pb.GetModelLockRequest, context: Any) -> pb.GetModelLockResponse:
        row = await self._locks.get_lock(locks.parse_lock_name(request.name))
        return pb.GetModelLockResponse(model_lock=await self._lock_message(row))

    async def ListModelLocks(self, request: pb.ListModelLocksRequest, context: Any) -> pb.ListModelLocksResponse:
        if not 0 <= request.page_size <= MAX_PAGE:
            raise InvalidArgument.at("page_size", f"must be 1 to {MAX_PAGE}")
        size = request.page_size or 20
        rows = await self._locks.list_locks(_read_token(request.page_token), size + 1)
        return pb.ListModelLocksResponse(
            model_locks=[protomap.write(_lock_of(row), pb.ModelLock) for row in rows[:size]],
            next_page_token=_token(rows[size - 1].lock_id) if len(rows) > size else "",
        )

    async def DeleteModelLock(self, request: pb.DeleteModelLockRequest, context: Any) -> pb.DeleteModelLockResponse:
        await self._locks.delete_lock(locks.parse_lock_name(request.name))
        return pb.DeleteModelLockResponse()

    async def RenderModelLock(self, request: pb.RenderModelLockRequest, context: Any) -> pb.RenderModelLockResponse:
        row = await self._locks.get_lock(locks.parse_lock_name(request.name))
        return pb.RenderModelLockResponse(yaml=row.yaml)

    async def DiffModelLocks(self, request: pb.DiffModelLocksRequest, context: Any) -> pb.DiffModelLocksResponse:
        left = await self._lock_document(request, "left_name", "left_yaml")
        right = await self._lock_document(request, "right_name", "right_yaml")
        found = await asyncio.to_thread(locks.diff, left, right)
        return pb.DiffModelLocksResponse(drifts=[protomap.write(drift, pb.Drift) for drift in found])

    async def VerifyModelLock(
        self, request: pb.VerifyModelLockRequest, context: Any
    ) -> AsyncIterator[pb.VerifyModelLockResponse]:
        document = await self._lock_document(request, "name", "yaml")
        intact = True
        for index, locked in enumerate(document.models):
            self._check_running()
            found = await self._drifts(index, locked, full=request.full)
            intact = intact and not found
            yield pb.VerifyModelLockResponse(
                model_version=locked.model_version, drifts=[protomap.write(drift, pb.Drift) for drift in found]
            )
        yield pb.VerifyModelLockResponse(done=True, intact=intact)

    async def ApplyModelLock(
        self, request: pb.ApplyModelLockRequest, context: Any
    ) -> AsyncIterator[pb.ApplyModelLockResponse]:
        document = await self._lock_document(request, "name", "yaml")
        mirrors.check(request.mirror)
        total = sum(locked.size_bytes for locked in document.models)
        before, failure = 0, None
        for locked in document.models:
            async for step in self._converge(locked, request.mirror, promote=request.promote):
                failure = failure or step.error
                yield pb.ApplyModelLockResponse(
                    model_version=locked.model_version,
                    outcome=step.outcome,
                    reason=f"{step.error.reason}: {step.error.message}" if step.error is not None else "",
                    done_bytes=before + min(step.done_bytes, locked.size_bytes),
                    total_bytes=total,
                )
            before += locked.size_bytes
        if failure is not None:
            left_undone(context, failure)
        yield pb.ApplyModelLockResponse(done_bytes=before, total_bytes=total, done=True, converged=failure is None)

    # Making and reading.

    async def _make_document(self, references: Sequence[str]) -> LockDocument:
        places: dict[str, int] = {}
        for index, text in enumerate(references):
            places.setdefault(text, index)  # one named a thousand times is one: a kilobyte and a query each
        parsed = [parse_reference(text, at=f"models[{index}]") for text, index in places.items()]
        if not parsed:
            parsed = [parse_reference(name) for name in await self._locks.current_models(locks.MAX_MODELS + 1)]
            if not parsed:
                raise FailedPrecondition("there is nothing to lock: no model has a READY version")
        if len(parsed) > locks.MAX_MODELS:
            raise InvalidArgument.at("models", f"a lock has at most {locks.MAX_MODELS} models")
        found: dict[str, LockedModel] = {}
        for reference in parsed:
            _, version = await self._store.resolve(reference)
            if version.name not in found:
                found[version.name] = await self._locked(version)
        return LockDocument.of(found.values())

    async def _locked(self, version: ModelVersion, golden: str = "", *, last: bool = False) -> LockedModel:
        """A version as a lock has it. Its fingerprint is the one that is kept, while its answers match it; with `last`
        what it answered last."""
        profile, fingerprint = version.engine_profile, None
        behaviour = _behaviour_of(version, await self._locks.behaviours(version.uid), golden)
        if behaviour is not None:
            reported = behaviour.last if last else behaviour.last or behaviour.kept
            fingerprint = behaviour.last if last or not behaviour.matches else behaviour.kept
            if reported is not None:
                profile = (profile or EngineProfile()).model_copy(
                    update={"library_versions": reported.engine_profile.library_versions}
                )
        return locks.locked_model(version, profile, fingerprint)

    async def _drifts(self, index: int, locked: LockedModel, *, full: bool) -> list[Drift]:
        version = await self._here(locked)
        if version is None:
            return locks.drifts(index, locked, None)
        if version.state is not ModelVersionState.READY:
            return [Drift(field=f"models[{index}]", locked=locked.model_version, found=version.state.value)]
        found = await self._locked(version, locked.fingerprint.golden if locked.fingerprint else "", last=True)
        differing = await self._verifier.differing(version, full=full)
        at = f"models[{index}]"
        return [*locks.drifts(index, locked, found), *locks.file_drifts(at, differing)]

    async def _here(self, locked: LockedModel) -> ModelVersion | None:
        try:
            return await self._store.get_version(parse_version_name(locked.model_version))
        except (ModelNotFound, VersionNotFound):
            return None

    async def _lock_document(self, request: Any, name: str, yaml: str) -> LockDocument:
        if getattr(request, yaml):
            return await self._read_lock(getattr(request, yaml), at=yaml)
        if not getattr(request, name):
            raise InvalidArgument.at(name, f"must be set, or {yaml}")
        row = await self._locks.get_lock(locks.parse_lock_name(getattr(request, name), at=name))
        return await self._read_lock(row.yaml)

    async def _read_lock(self, text: str, at: str = "yaml") -> LockDocument:
        return await asyncio.to_thread(lock_yaml.read, text, at=at)

    async def _lock_message(self, row: LockRow) -> pb.ModelLock:
        document = await self._read_lock(row.yaml)
        return protomap.write(_lock_of(row).model_copy(update={"models": document.models}), pb.ModelLock)

    def _check_running(self) -> None:
        if self._stopping.is_set():
            raise ShuttingDown

    # Converging.

    async def _converge(self, locked: LockedModel, mirror: str, *, promote: bool) -> AsyncIterator[Step]:
        """What is here and right is kept, what is missing is imported, what is here and wrong is told: a version never
        changes, and a lock deletes nothing."""
        outcome = "present"
        try:
            version = await self._here(locked)
            if version is None or version.state is ModelVersionState.FAILED:
                outcome = "imported"
                version = await self._import_locked(locked, mirror)
            if version.state is ModelVersionState.CREATING:
                async for now in self._follow(version):
                    version = now
                    if now.progress is not None:
                        yield Step(done_bytes=now.progress.done_bytes)
            await self._check_converged(locked, version)
            await self._serve_as_locked(locked, version)
            if locked.fingerprint is not None:
                # Kept unless there is one already: the first load is compared with it.
                await self._locks.keep_fingerprint(version.uid, locked.fingerprint)
            if promote:
                reference = parse_version_name(locked.model_version)
                await self._store.set_alias(
                    reference.model_id, PRODUCTION_ALIAS, version.version, "", subject=current_caller().subject
                )
        except (ShuttingDown, DatabaseUnavailable):
            raise
        except ModelMoraError as error:
            yield Step(outcome="failed", error=error)
            return
        yield Step(done_bytes=locked.size_bytes, outcome=outcome)

    async def _check_converged(self, locked: LockedModel, version: ModelVersion) -> None:
        """Raises when the version that is here is not the one that is locked, or its files are not what they were."""
        if version.state is not ModelVersionState.READY:
            failure = version.failure
            raise VersionNotReady(f"{failure.reason}: {failure.message}" if failure else f"it is {version.state}")
        found = await self._locked(version)
        fields = {"fingerprint", "resource_requirements", "engine_profile", "source"}
        wrong = [drift for drift in locks.drifts(0, locked, found) if drift.field.split(".")[1] not in fields]
        if wrong:
            first = wrong[-1]  # Files come after the digest, and say more.
            where = first.field.partition(".")[2]
            raise FailedPrecondition(f"it is here and another: {where} is {first.found}, locked {first.locked}")
        for verdict in await self._verifier.differing(version):
            raise ChecksumMismatch(f"{verdict.path} is {verdict.verdict}", file=verdict.path)

    async def _serve_as_locked(self, locked: LockedModel, version: ModelVersion) -> None:
        """The engine profile is the one thing of a version that changes, and decides answers."""
        wanted, now = _without_libraries(locked.engine_profile), _without_libraries(version.engine_profile)
        if wanted is None or wanted == now:
            return
        offered = self._engines[version.engine].profiles
        await self._store.change_version(
            parse_version_name(version.name), lambda old, time: old.served_with(wanted, offered, now=time), etag=""
        )

    async def _import_locked(self, locked: LockedModel, mirror: str) -> ModelVersion:
        """Begins the import of a version as it is locked."""
        reference = parse_version_name(locked.model_version)
        card = self._check_locked_engine(locked)
        draft = ModelVersion(
            name=locked.model_version,
            version=reference.selector or "",
            task_type=locked.task_type,
            engine=locked.engine,
            engine_options=locked.engine_options,
            source=locked.source or ModelSource(empty=EmptySource()),
            resource_requirements=locked.resource_requirements,
        ).served_with(_without_libraries(locked.engine_profile), card.profiles, now=datetime.now(UTC))
        plan = await self._artifacts.plan_locked(locked, mirror)
        checksums = {file.path: file.sha256 for file in locked.files}
        await self._artifacts.check_room(plan, checksums)
        created = await self._store.create_version(
            reference.model_id,
            draft.model_copy(update={"progress": ImportProgress(total_bytes=plan.total_bytes)}),
            checksums=checksums,
            request=None,
            new_model=ModelDraft(task_type=locked.task_type),
            reuse=False,
            validate_only=False,
            at="",
            restores=locked.digest,
        )
        if not created.version.is_final:
            self._imports.start(created.version.uid, plan)
        return created.version

    def _check_locked_engine(self, locked: LockedModel) -> EngineCard:
        card = self._engines.get(locked.engine)
        if card is None:
            raise EngineNotFound(f"there is no engine {locked.engine!r}", engine=locked.engine)
        problems = card.check_options(locked.engine_options or {})
        if problems:
            fields = [FieldViolation(f"engine_options.{each.field}", each.description) for each in problems]
            raise InvalidArgument("; ".join(f"{each.field}: {each.description}" for each in fields), fields=fields)
        if card.needs_files and not locked.files:
            raise InvalidArgument.at("files", f"{locked.engine} needs files")
        return card

    async def _follow(self, version: ModelVersion) -> AsyncIterator[ModelVersion]:
        """The version each time it changes, until it is final."""
        with self._watching.watch(version.uid) as changed:
            while True:
                changed.clear()
                now = await self._store.get_version_by_uid(version.uid)
                if now is None:
                    raise VersionNotFound(f"{version.name} was deleted while it was imported")
                yield now
                if now.is_final:
                    return
                await _first_of(changed, self._stopping)
                self._check_running()


class FingerprintRpcs:
    """RPCs of RegistryHoldService on fingerprints."""

    _store: Store
    _locks: LockStore
    _verifier: Verifier

    async def RecordFingerprint(
        self, request: pb.RecordFingerprintRequest, context: Any
    ) -> pb.RecordFingerprintResponse:
        reference = parse_version_name(request.name)
        made = protomap.read(request.fingerprint, Fingerprint, at="fingerprint")
        version = await self._store.get_version(reference)
        asked = golden_for(version)
        if asked is None or made.golden != asked.golden or made.outputs.shape[0] != len(asked.texts):
            raise InvalidArgument.at("fingerprint.golden", "these are not answers to what this version is asked")
        tolerance = locks.tolerance_of(made.engine_profile, made.golden)
        fingerprint = made.model_copy(update={"tolerance": tolerance, "create_time": None})
        seen = await self._locks.record_fingerprint(version.uid, fingerprint)
        if not seen.matches:
            log.error(
                "%s answers otherwise than it did (%s): similarity %.6f, then with %s, now with %s",
                version.name,
                fingerprint.golden,
                seen.similarity,
                dict(seen.kept.engine_profile.library_versions),
                dict(fingerprint.engine_profile.library_versions),
            )
        if seen.news:
            await self._verifier.report()
        return pb.RecordFingerprintResponse(matches=seen.matches, similarity=seen.similarity)


def golden_for(version: ModelVersion) -> locks.GoldenInputs | None:
    """What a version is asked at each load; None: nothing is known to ask, or it has no files that could change."""
    if version.source is None or not version.source.has_files or version.task_type is None:
        return None
    if version.metadata is not None and (version.metadata.architecture or "").endswith("ForImageClassification"):
        return None  # It takes no texts.
    return locks.GOLDEN.get(version.task_type)


def _behaviour_of(version: ModelVersion, known: Sequence[Behaviour], golden: str) -> Behaviour | None:
    """Of the profile the version is served with: the one with these golden inputs if there is one, else the latest."""
    profile = version.engine_profile or EngineProfile()
    fitting = [
        each
        for each in known
        if (made := each.kept.engine_profile)
        and (made.backend, made.precision) == (profile.backend, profile.precision)
        and profile.batch_rule in ("", made.batch_rule)
    ]
    return next((each for each in fitting if each.kept.golden == golden), fitting[0] if fitting else None)


def _without_libraries(profile: EngineProfile | None) -> EngineProfile | None:
    """What a version is to be served with: which libraries do it is a fact of the machine, reported at load."""
    return None if profile is None else profile.model_copy(update={"library_versions": {}})


def _lock_of(row: LockRow) -> ModelLock:
    return ModelLock(name=f"{LOCK_PREFIX}{row.lock_id}", uid=row.uid, digest=row.digest, create_time=row.create_time)


def _request_key(request: pb.CreateModelLockRequest) -> RequestKey | None:
    if not request.request_id:
        return None
    rest = pb.CreateModelLockRequest()
    rest.CopyFrom(request)
    rest.ClearField("request_id")
    content: Message = rest
    digest = hashlib.sha256(content.SerializeToString(deterministic=True)).hexdigest()
    return RequestKey(str(ids.parse(request.request_id, "request_id")), digest)


def _token(lock_id: str) -> str:
    return base64.urlsafe_b64encode(lock_id.encode()).decode().rstrip("=")


def _read_token(token: str) -> str:
    try:
        padded = token + "=" * (-len(token) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
        return locks.check_lock_id(text) if token else ""
    except (ValueError, binascii.Error, InvalidArgument):
        raise InvalidArgument.at("page_token", "is not a token that this list gave") from None


async def _first_of(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
