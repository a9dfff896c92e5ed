"""The registry's words and rules: models, versions, artifacts, aliases, references.

Values are frozen; a change is a new value with `revision` one higher. Fields carry the names of the proto messages, so
that protomap can carry them over. Rules that a caller can break raise InvalidArgument with the path of the field.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from modelmora.errors import Conflict, IllegalTransition, InvalidArgument
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, field_validator, model_validator

T = TypeVar("T")

ReadOnly = Annotated[
    Mapping[str, T], AfterValidator(lambda value: MappingProxyType(dict(value))), PlainSerializer(dict)
]
"""A mapping nobody can change."""

MAX_INT64 = 2**63 - 1
DEFAULT_HUB_REVISION = "main"
MANAGED_ALIAS = "latest"
"""Moves by itself to the newest READY version."""
PRODUCTION_ALIAS = "production"
"""What a plain reference means where it is set."""
ARCHIVED = "archived"
"""A stage that is no alias."""
RESERVED_ALIASES = frozenset({MANAGED_ALIAS, PRODUCTION_ALIAS, "staging"})


class Value(BaseModel):
    """Equal when its parts are equal."""

    # Built with the first use: a start needs few of them.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Entity(Value):
    """Equal when it is the same thing, whatever state it is in."""

    uid: str = ""
    revision: int = 0
    create_time: datetime | None = None
    update_time: datetime | None = None

    @property
    def etag(self) -> str:
        """Opaque name of exactly this state; empty for what is not registered yet."""
        return etag_of(self.uid, self.revision) if self.uid else ""

    def check_etag(self, etag: str) -> None:
        """Raises Conflict when `etag` is not empty and names another state."""
        if etag and etag != self.etag:
            raise Conflict(uid=self.uid, revision=self.revision, etag=self.etag)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.uid == getattr(other, "uid", None)

    def __hash__(self) -> int:
        return hash((type(self), self.uid))


def etag_of(uid: str, revision: int) -> str:
    return hashlib.sha256(f"{uid}:{revision}".encode()).hexdigest()[:24]


# Tasks.


class TaskType(StrEnum):
    """What a model does."""

    TXT2EMBED = "txt2embed"
    TXT2TXT = "txt2txt"
    CLASSIFICATION = "classification"
    RERANKING = "reranking"
    QUESTION_ANSWERING = "question_answering"
    IMG2TXT = "img2txt"
    IMG2EMBED = "img2embed"
    TXT2IMG = "txt2img"
    IMG2IMG = "img2img"
    AUDIO2TXT = "audio2txt"
    TXT2AUDIO = "txt2audio"
    OBJECT_DETECTION = "object_detection"
    TABULAR_CLASSIFICATION = "tabular_classification"
    TABULAR_REGRESSION = "tabular_regression"


PIPELINE_TAGS: Mapping[str, TaskType] = MappingProxyType(
    {
        "feature-extraction": TaskType.TXT2EMBED,
        "sentence-similarity": TaskType.TXT2EMBED,
        "text-generation": TaskType.TXT2TXT,
        "text2text-generation": TaskType.TXT2TXT,
        "summarization": TaskType.TXT2TXT,
        "translation": TaskType.TXT2TXT,
        "conversational": TaskType.TXT2TXT,
        "text-classification": TaskType.CLASSIFICATION,
        "zero-shot-classification": TaskType.CLASSIFICATION,
        "image-classification": TaskType.CLASSIFICATION,
        "zero-shot-image-classification": TaskType.CLASSIFICATION,
        "text-ranking": TaskType.RERANKING,
        "question-answering": TaskType.QUESTION_ANSWERING,
        "document-question-answering": TaskType.QUESTION_ANSWERING,
        "visual-question-answering": TaskType.QUESTION_ANSWERING,
        "image-to-text": TaskType.IMG2TXT,
        "image-text-to-text": TaskType.IMG2TXT,
        "image-feature-extraction": TaskType.IMG2EMBED,
        "text-to-image": TaskType.TXT2IMG,
        "image-to-image": TaskType.IMG2IMG,
        "automatic-speech-recognition": TaskType.AUDIO2TXT,
        "text-to-speech": TaskType.TXT2AUDIO,
        "text-to-audio": TaskType.TXT2AUDIO,
        "object-detection": TaskType.OBJECT_DETECTION,
        "zero-shot-object-detection": TaskType.OBJECT_DETECTION,
        "tabular-classification": TaskType.TABULAR_CLASSIFICATION,
        "tabular-regression": TaskType.TABULAR_REGRESSION,
    }
)
"""The Hub's words for tasks."""


_MODALITY: Mapping[TaskType, str] = MappingProxyType(
    {
        TaskType.TXT2EMBED: "text",
        TaskType.TXT2TXT: "text",
        TaskType.CLASSIFICATION: "text",
        TaskType.RERANKING: "text",
        TaskType.QUESTION_ANSWERING: "text",
        TaskType.IMG2TXT: "multimodal",
        TaskType.IMG2EMBED: "image",
        TaskType.TXT2IMG: "image",
        TaskType.IMG2IMG: "image",
        TaskType.AUDIO2TXT: "audio",
        TaskType.TXT2AUDIO: "audio",
        TaskType.OBJECT_DETECTION: "image",
        TaskType.TABULAR_CLASSIFICATION: "tabular",
        TaskType.TABULAR_REGRESSION: "tabular",
    }
)
MODALITIES = ("text", "image", "audio", "video", "multimodal", "tabular")


def modality_of(task_type: TaskType | None) -> str:
    """What a model of this task works on; empty while the task is unknown."""
    return _MODALITY[task_type] if task_type is not None else ""


def tasks_of(modality: str) -> list[TaskType]:
    """The tasks of a modality."""
    return [task for task, word in _MODALITY.items() if word == modality]


def parse_task(word: str, *, at: str = "task_type") -> TaskType:
    """A task from our word, in any case, or from a pipeline tag of the Hub."""
    lower = word.strip().lower()
    if lower in PIPELINE_TAGS:
        return PIPELINE_TAGS[lower]
    if lower in TaskType.__members__.values():
        return TaskType(lower)
    raise InvalidArgument.at(at, f"{word!r} is no task; tasks are {', '.join(TaskType)}")


# Names and references.

_NAME_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}")
_LABEL_KEY = re.compile(r"[a-z0-9_-]{1,63}")
_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@/-]{0,126}")
_AMOUNTS = frozenset(
    ("training_kg", "training_duration_hours", "training_energy_kwh", "inference_kg", "inference_requests")
)
"""Metrics of what a model has cost."""
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NOT_IN_A_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


class ModelId(Value):
    """`organization/repository`."""

    organization: str
    repository: str

    @classmethod
    def parse(cls, text: str, *, at: str = "model_id") -> ModelId:
        parts = text.split("/")
        if len(parts) != 2 or not all(_NAME_PART.fullmatch(part) for part in parts):
            raise InvalidArgument.at(
                at,
                f"{_shown(text)} is no model id; it is org/repo, each of letters, digits, '.', '_' and '-', at most 96",
            )
        return cls(organization=parts[0], repository=parts[1])

    def __str__(self) -> str:
        return f"{self.organization}/{self.repository}"

    @property
    def name(self) -> str:
        return f"models/{self}"

    def version_name(self, version: str) -> str:
        return f"models/{self}/versions/{version}"


class Reference(Value):
    """What a caller means: a model and, if named, a version or an alias of it."""

    model_id: ModelId
    selector: str | None = None
    version_only: bool = False
    """From a resource name: an alias is not meant."""

    def __str__(self) -> str:
        return str(self.model_id) if self.selector is None else f"{self.model_id}@{self.selector}"


def parse_model_name(text: str, *, at: str = "name") -> ModelId:
    """From `models/{org}/{repo}` or `org/repo`."""
    return ModelId.parse(bare_name(text), at=at)


def bare_name(text: str) -> str:
    """`org/repo` where `text` is `models/{org}/{repo}`; anything else as it is."""
    return text.removeprefix("models/") if text.count("/") == 2 else text


def parse_reference(text: str, *, at: str = "reference") -> Reference:
    """From `org/repo`, `org/repo@version`, `org/repo@alias`, `models/{org}/{repo}[/versions/{version}]`."""
    parts = text.split("/", 4)
    if len(parts) == 5 and parts[0] == "models" and parts[3] == "versions":
        model_id = ModelId.parse(f"{parts[1]}/{parts[2]}", at=at)
        return Reference(model_id=model_id, selector=check_version(parts[4], at=at), version_only=True)
    name, mark, selector = text.partition("@")
    model_id = parse_model_name(name, at=at)
    return Reference(model_id=model_id, selector=check_version(selector, at=at) if mark else None)


def parse_version_name(text: str, *, at: str = "name") -> Reference:
    """A reference that names a version or an alias. Raises InvalidArgument when it names a model only."""
    reference = parse_reference(text, at=at)
    if reference.selector is None:
        raise InvalidArgument.at(at, f"{_shown(text)} names no version; write org/repo@version")
    return reference


def check_version(text: str, *, at: str = "version") -> str:
    """A version string as it is: `v?semver` or any git reference."""
    if (
        not 0 < len(text) <= 255
        or _NOT_IN_A_REF.search(text)
        or text == "@"
        or text[0] in "-/"
        or text[-1] in "/."
        or any(part.startswith(".") or part.endswith(".lock") for part in text.split("/"))
    ):
        raise InvalidArgument.at(at, f"{_shown(text)} is no version; it is v?semver or a git reference, at most 255")
    return text


def check_new_version(text: str, *, at: str = "version") -> str:
    """A version string for a new version; the reserved aliases are none."""
    if text.lower() in RESERVED_ALIASES:
        raise InvalidArgument.at(at, f"{text.lower()!r} is a reserved alias")
    return check_version(text, at=at)


def check_alias(text: str, *, at: str = "alias") -> str:
    """An alias that a caller may set or remove."""
    if not _SLUG.fullmatch(text):
        raise InvalidArgument.at(at, f"{_shown(text)} is no alias; it is letters, digits, '_' and '-', at most 255")
    if text == MANAGED_ALIAS:
        raise InvalidArgument.at(at, "'latest' moves by itself to the newest READY version")
    if text.lower() == ARCHIVED:
        raise InvalidArgument.at(at, f"{text!r} is a state of a version; archive it with UpdateModelVersion")
    if text.lower() in RESERVED_ALIASES and text not in RESERVED_ALIASES:
        raise InvalidArgument.at(at, f"{text!r} would be taken for {text.lower()!r}; write that")
    return text


def slug(text: str) -> str:
    """`text` as a name part: `My model!` becomes `My-model`. Empty when nothing is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:96]


def check_checksums(checksums: Mapping[str, str], *, at: str = "expected_checksums") -> Mapping[str, str]:
    """Relative path to `sha256:…`, as a read-only mapping."""
    for path, digest in checksums.items():
        if problem := file_path_problem(path):
            raise InvalidArgument.at(f"{at}.{_shown(path)}", problem)
        if not _SHA256.fullmatch(digest):
            raise InvalidArgument.at(f"{at}.{path}", "must be sha256: and 64 lower-case hexadecimal digits")
    return MappingProxyType(dict(checksums))


_DEVICE_NAMES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])", re.I)


def file_path_problem(path: str) -> str | None:
    """Why a file of an artifact may not be called `path`; None when it may."""
    parts = path.split("/")
    if not path or path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "must be relative"
    if any(part in ("", ".", "..") for part in parts):
        return "must not contain empty parts, '.' or '..'"
    if re.search(r"[\x00-\x1f\x7f\\]", path) or any("\ud800" <= letter <= "\udfff" for letter in path):
        return "must not contain control characters, backslashes or undecodable bytes"
    if any(_DEVICE_NAMES.fullmatch(part.split(".")[0].rstrip()) for part in parts):
        return "must not be the name of a device"
    if len(path) > 1000 or any(len(part.encode()) > 255 for part in parts):
        return "is too long"
    return None


def file_paths_problem(paths: Sequence[str]) -> str | None:
    """Why these files cannot lie in one folder; None when they can."""
    seen: set[str] = set()
    for path in paths:
        if problem := file_path_problem(path):
            return f"{_shown(path)} {problem}"
        if path in seen:
            return f"{_shown(path)} stands there twice"
        seen.add(path)
    for path in paths:
        parts = path.split("/")
        for count in range(1, len(parts)):
            if (folder := "/".join(parts[:count])) in seen:
                return f"{_shown(folder)} is a file and a folder"
    return None


# Models.


def _trimmed_name(text: str) -> str:
    trimmed = text.strip()
    if text and not trimmed:
        raise ValueError("must not be blank")
    if len(trimmed) > 200:
        raise ValueError("must have 1 to 200 characters after trimming")
    return trimmed


def _checked_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    if len(labels) > 64:
        raise ValueError("at most 64 labels")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise ValueError(f"{_shown(key)} is no label key; it is 1 to 63 of a-z, 0-9, '_' and '-'")
        if len(value) > 255:
            raise ValueError(f"the value of {key!r} has more than 255 characters")
        if "\x00" in value:
            raise ValueError(f"the value of {key!r} contains a NUL character")
    return labels


def _checked_metrics(metrics: Mapping[str, float]) -> Mapping[str, float]:
    if len(metrics) > 200:
        raise ValueError("at most 200 metrics")
    for name, value in metrics.items():
        if not _METRIC.fullmatch(name):
            raise ValueError(f"{_shown(name)} is no metric; it is letters, digits and '_.@/-', at most 127")
        if not math.isfinite(value):
            raise ValueError(f"{name!r} must be a finite number")
        if name in _AMOUNTS and value < 0:
            raise ValueError(f"{name!r} must not be less than 0")
    return metrics


def _checked_base_model(text: str) -> str:
    try:
        return parse_model_name(text).name if text else ""
    except InvalidArgument:
        raise ValueError("must be models/{org}/{repo} or org/repo") from None


def _without_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain a NUL character")
    return text


Text = Annotated[str, AfterValidator(_without_nul)]
"""What a text column of PostgreSQL can hold."""
DisplayName = Annotated[Text, AfterValidator(_trimmed_name)]
Labels = Annotated[ReadOnly[str], AfterValidator(_checked_labels)]
Metrics = Annotated[ReadOnly[float], AfterValidator(_checked_metrics)]
Family = Annotated[str, Field(max_length=100), AfterValidator(_without_nul), AfterValidator(str.strip)]


class ModelDraft(Value):
    """The fields of a model that a caller may set."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    display_name: DisplayName = ""
    description: Annotated[str, Field(max_length=100_000), AfterValidator(_without_nul)] = ""
    task_type: TaskType | None = None
    labels: Labels = Field(default_factory=dict)
    family: Family = ""
    base_model: Annotated[str, AfterValidator(_checked_base_model)] = ""
    trainable: bool = False

    @field_validator("task_type", mode="before")
    @classmethod
    def _known_task(cls, value: Any) -> Any:
        return _task_or_problem(value)


def _task_or_problem(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError(f"this server knows no task number {value}")
    return value


UPDATABLE = ("display_name", "description", "task_type", "labels", "family", "base_model", "trainable")


class Model(Entity):
    """A name under which versions are published."""

    name: str
    display_name: str
    description: str = ""
    task_type: TaskType | None = None
    labels: ReadOnly[str] = Field(default_factory=dict)
    current_version: str = ""
    aliases: ReadOnly[str] = Field(default_factory=dict)
    family: str = ""
    base_model: str = ""
    trainable: bool = False
    rank: float = 0

    @classmethod
    def register(cls, model_id: ModelId, draft: ModelDraft, *, uid: str = "", now: datetime | None = None) -> Model:
        return cls(
            name=model_id.name,
            uid=uid,
            display_name=draft.display_name or model_id.repository,
            description=draft.description,
            task_type=draft.task_type,
            labels=draft.labels,
            family=draft.family,
            base_model=draft.base_model,
            trainable=draft.trainable,
            revision=1,
            create_time=now,
            update_time=now,
        )

    @property
    def model_id(self) -> ModelId:
        return parse_model_name(self.name)

    @property
    def modality(self) -> str:
        return modality_of(self.task_type)

    @property
    def servable(self) -> bool:
        """Whether there is a version for an engine to take; each one that is READY has an engine of ours."""
        return bool(self.current_version)

    def updated(self, draft: ModelDraft, mask: Sequence[str], *, now: datetime) -> Model:
        """With the fields of `draft` that `mask` names. Raises InvalidArgument at `update_mask`."""
        if not mask:
            raise InvalidArgument.at("update_mask", f"must name at least one of {', '.join(UPDATABLE)}")
        for path in mask:
            if path not in UPDATABLE:
                raise InvalidArgument.at("update_mask", f"{path!r} cannot be updated; {', '.join(UPDATABLE)} can")
        if "display_name" in mask and not draft.display_name:
            raise InvalidArgument.at("model.display_name", "must have 1 to 200 characters after trimming")
        return self.changed(now=now, **{path: getattr(draft, path) for path in mask})

    def changed(self, *, now: datetime, **fields: object) -> Model:
        """The next revision."""
        return self.model_copy(update={**fields, "revision": self.revision + 1, "update_time": now})


def current_version_of(aliases: Mapping[str, str]) -> str | None:
    """The version string that a bare `org/repo` means: `production` if set, else `latest`."""
    return aliases.get(PRODUCTION_ALIAS) or aliases.get(MANAGED_ALIAS)


class AliasChange(Value):
    """One move of an alias. Empty versions: there was none, or it was removed."""

    alias: str
    from_version: str = ""
    to_version: str = ""
    subject: str
    create_time: datetime


class AuditEntry(Value):
    """Who did which admin RPC on what, with what result."""

    uid: str
    create_time: datetime
    subject: str
    tenant: str
    method: str
    resource: str
    status: str
    reason: str
    peer: str


class StorageUse(Value):
    """What is registered, and bytes of all READY artifacts; the same files in two versions count once."""

    model_count: int
    version_count: int
    artifact_bytes: int


# Versions.


class ModelVersionState(StrEnum):
    CREATING = "creating"
    READY = "ready"
    FAILED = "failed"


_FOLLOWING: Mapping[ModelVersionState, frozenset[ModelVersionState]] = MappingProxyType(
    {
        ModelVersionState.CREATING: frozenset({ModelVersionState.READY, ModelVersionState.FAILED}),
        ModelVersionState.READY: frozenset(),
        ModelVersionState.FAILED: frozenset(),
    }
)


class LocalSource(Value):
    path: Text

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        if not path.startswith("/") or "\x00" in path or len(path) > 4096:
            raise ValueError("must be an absolute path")
        return path


class HubSource(Value):
    repo_id: str
    revision: str | None = None
    commit: str = ""

    @field_validator("repo_id")
    @classmethod
    def _is_a_repository(cls, repo_id: str) -> str:
        parts = repo_id.split("/")
        if len(parts) != 2 or not all(_NAME_PART.fullmatch(part) for part in parts):
            raise ValueError("must be org/repo")
        return repo_id

    @field_validator("revision")
    @classmethod
    def _is_a_reference(cls, revision: str | None) -> str | None:
        if revision is not None:
            try:
                check_version(revision)
            except InvalidArgument:
                raise ValueError("must be a branch, a tag or a commit") from None
        return revision

    @field_validator("commit")
    @classmethod
    def _is_a_commit(cls, commit: str) -> str:
        if commit and not _COMMIT.fullmatch(commit):
            raise ValueError("must be 40 hexadecimal digits")
        return commit


class EmptySource(Value):
    pass


MAX_SOURCE_FILES = 10_000
_URL = re.compile(r"(s3|https?)://([^/?#@\s]+)(/[^?#\s]*)?")


class UrlSource(Value):
    """A folder of an S3-compatible store or an HTTP(S) server. Credentials, queries and fragments are refused in it."""

    url: Text
    files: tuple[str, ...] = ()
    object_versions: ReadOnly[str] = Field(default_factory=lambda: MappingProxyType({}))
    """VersionId by path, where a bucket keeps versions."""

    @field_validator("url")
    @classmethod
    def _is_a_folder(cls, url: str) -> str:
        if len(url) > 2048 or not url.isprintable() or not _URL.fullmatch(url):
            raise ValueError("must be s3://bucket/prefix or https://host/path, without credentials, query or fragment")
        if any(part in (".", "..") for part in url.split("/")):
            raise ValueError("must not contain '.' or '..'")
        return url

    @field_validator("files")
    @classmethod
    def _safe(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if len(files) > MAX_SOURCE_FILES:
            raise ValueError(f"at most {MAX_SOURCE_FILES} files")
        if problem := file_paths_problem(files):
            raise ValueError(problem)
        return files

    @property
    def is_s3(self) -> bool:
        return self.url.startswith("s3://")

    @property
    def host(self) -> str:
        """Of a bucket: its name."""
        return self.url.split("/")[2]

    @property
    def path(self) -> str:
        """Below the host, without slashes around it."""
        return self.url.split("/", 3)[-1].strip("/") if self.url.count("/") > 2 else ""


class ModelSource(Value):
    """Where the files came from: exactly one of the four."""

    local: LocalSource | None = None
    hub: HubSource | None = None
    empty: EmptySource | None = None
    url: UrlSource | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> ModelSource:
        if [self.local, self.hub, self.empty, self.url].count(None) != 3:
            raise ValueError("must be one of local, hub, url, empty")
        return self

    @property
    def has_files(self) -> bool:
        return self.empty is None


class ArtifactFile(Value):
    path: str
    size_bytes: int = Field(ge=0, le=MAX_INT64)
    sha256: str = Field(pattern=_SHA256.pattern)

    @field_validator("path")
    @classmethod
    def _safe(cls, path: str) -> str:
        if problem := file_path_problem(path):
            raise ValueError(problem)
        return path


class Artifact(Value):
    """The files of a version, sorted by path."""

    path: str
    digest: str = Field(pattern=_SHA256.pattern)
    size_bytes: int = Field(ge=0)
    files: tuple[ArtifactFile, ...] = ()

    @classmethod
    def of(cls, path: str, files: Iterable[ArtifactFile]) -> Artifact:
        """The artifact of these files; the digest does not depend on their order nor on where they lie."""
        ordered = tuple(sorted(files, key=lambda file: file.path))
        total = hashlib.sha256()
        for file in ordered:
            total.update(f"{file.sha256} {file.size_bytes} {file.path}\n".encode())
        return cls(
            path=path,
            digest=f"sha256:{total.hexdigest()}",
            size_bytes=sum(file.size_bytes for file in ordered),
            files=ordered,
        )


class ResourceRequirements(Value):
    """What the owner says it needs. Main memory and threads are above 0, accelerator memory may be 0."""

    memory_bytes: int = Field(gt=0, le=MAX_INT64)
    accelerator_memory_bytes: int = Field(default=0, ge=0, le=MAX_INT64)
    cpu_threads: int | None = Field(default=None, gt=0, le=2**31 - 1)


class EngineProfile(Value):
    backend: str = ""
    precision: str = ""
    library_versions: ReadOnly[str] = Field(default_factory=dict)
    batch_rule: str = ""


EXACT_PROFILES: Mapping[str, EngineProfile] = MappingProxyType(
    {
        "sentence_transformers": EngineProfile(backend="torch", precision="fp32"),
        "echo": EngineProfile(backend="echo", precision="fp32"),
    }
)
"""The profile a version is first served with, by engine."""


def exact_profile(engine: str, offered: Sequence[str] = ()) -> EngineProfile:
    """What it is first served with. `offered`: `backend/precision` of what the engine has, the exact one first."""
    if offered:
        backend, _, precision = offered[0].partition("/")
        return EngineProfile(backend=backend, precision=precision)
    return EXACT_PROFILES.get(engine) or EngineProfile(backend=engine, precision="exact")


class ModelLimits(Value):
    max_input_tokens: int | None = Field(default=None, gt=0, le=2**31 - 1)
    embedding_dimensions: int | None = Field(default=None, gt=0, le=2**31 - 1)

    def or_else(self, other: ModelLimits) -> ModelLimits:
        """This, with what is unset taken from `other`."""
        return ModelLimits(
            max_input_tokens=self.max_input_tokens or other.max_input_tokens,
            embedding_dimensions=self.embedding_dimensions or other.embedding_dimensions,
        )


class ModelMetadata(Value):
    """What the files of a version tell; None is unknown. Sizes of the whole, whatever is served of it."""

    architecture: str | None = None
    family: str | None = None
    parameter_count: int | None = Field(default=None, ge=0, le=MAX_INT64)
    dtype: str | None = None
    context_length: int | None = Field(default=None, gt=0, le=2**31 - 1)
    hidden_size: int | None = Field(default=None, gt=0, le=2**31 - 1)
    num_layers: int | None = Field(default=None, gt=0, le=2**31 - 1)
    num_heads: int | None = Field(default=None, gt=0, le=2**31 - 1)
    vocabulary_size: int | None = Field(default=None, gt=0, le=2**31 - 1)
    quantization: str | None = None
    license: str | None = None
    model_card: str | None = None
    tokenizer_digest: str | None = None
    chat_template_digest: str | None = None
    weight_bytes: ReadOnly[int] = Field(default_factory=dict)
    """All weights in memory, by the dtype their floating point numbers would have: `F32`, `BF16`."""
    tags: tuple[str, ...] = ()
    modality: str | None = None
    """What goes in, where the task does not say it: `image`."""
    labels: tuple[str, ...] = ()
    """Of a classifier, in the order of its scores."""


class ImportProgress(Value):
    done_bytes: int = 0
    total_bytes: int = 0
    current_file: str = ""
    bytes_per_second: float = 0
    """Over the last seconds."""
    remaining: timedelta | None = None

    def paced(self, earlier: Sequence[tuple[float, int]], now: float) -> ImportProgress:
        """With the rate since the first of `earlier`, (second, bytes done) each, and what is left at that rate."""
        if not earlier or now <= earlier[0][0]:
            return self
        began, had = earlier[0]
        rate = max(0, self.done_bytes - had) / (now - began)
        left = timedelta(seconds=round((self.total_bytes - self.done_bytes) / rate, 1)) if rate >= 1 else None
        return self.model_copy(update={"bytes_per_second": round(rate, 1), "remaining": left})


class Failure(Value):
    reason: str
    message: str = ""


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    if isinstance(value, str) and "\x00" in value:
        raise ValueError("must not contain a NUL character")
    if isinstance(value, Mapping):
        return MappingProxyType({key: _finite(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_finite(item) for item in value)
    return value


EngineOptions = Annotated[Mapping[str, Any], AfterValidator(_finite)]
"""Options for an engine: JSON's values without NaN and infinities, read-only to the bottom."""


class VersionDraft(Value):
    """The fields of a version that a caller may set."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str = ""
    task_type: TaskType | None = None
    engine: Text = ""
    engine_options: EngineOptions | None = None
    source: ModelSource | None = None
    resource_requirements: ResourceRequirements | None = None
    limits: ModelLimits | None = None
    labels: Labels = Field(default_factory=dict)
    metrics: Metrics = Field(default_factory=dict)
    training_job: Annotated[str, Field(max_length=255), AfterValidator(_without_nul)] = ""

    @field_validator("task_type", mode="before")
    @classmethod
    def _known_task(cls, value: Any) -> Any:
        return _task_or_problem(value)


UPDATABLE_OF_VERSION = ("labels", "metrics", "resource_requirements", "archive_time")


class ModelVersion(Entity):
    """One immutable set of files with what is needed to run them."""

    name: str
    version: str
    state: ModelVersionState = ModelVersionState.CREATING
    task_type: TaskType | None = None
    engine: str = ""
    engine_options: EngineOptions | None = None
    source: ModelSource | None = None
    artifact: Artifact | None = None
    resource_requirements: ResourceRequirements | None = None
    engine_profile: EngineProfile | None = None
    limits: ModelLimits | None = None
    progress: ImportProgress | None = None
    failure: Failure | None = None
    metadata: ModelMetadata | None = None
    metrics: ReadOnly[float] = Field(default_factory=dict)
    archive_time: datetime | None = None
    labels: ReadOnly[str] = Field(default_factory=dict)
    training_job: str = ""
    verify_time: datetime | None = None

    @property
    def model_id(self) -> ModelId:
        return parse_reference(self.name).model_id

    @property
    def is_final(self) -> bool:
        return not _FOLLOWING[self.state]

    def progressed(self, progress: ImportProgress, *, now: datetime) -> ModelVersion:
        if self.is_final:
            raise self._illegal("progress")
        return self._changed(now, progress=progress)

    def ready(
        self, artifact: Artifact, *, limits: ModelLimits, metadata: ModelMetadata | None = None, now: datetime
    ) -> ModelVersion:
        """Complete and verified, from now on immutable. What the caller said about limits wins over the files."""
        self._step(ModelVersionState.READY)
        known = (self.limits or ModelLimits()).or_else(limits)
        return self._changed(
            now,
            state=ModelVersionState.READY,
            artifact=artifact,
            limits=known if known != ModelLimits() else None,
            metadata=metadata if metadata != ModelMetadata() else None,
            verify_time=now if artifact.files else None,
            progress=None,
        )

    def failed(self, failure: Failure, *, now: datetime) -> ModelVersion:
        self._step(ModelVersionState.FAILED)
        short = failure.model_copy(update={"message": failure.message.replace("\x00", "")[:2000]})
        return self._changed(now, state=ModelVersionState.FAILED, failure=short, progress=None)

    def updated(self, draft: VersionDraft, mask: Sequence[str], *, archived: bool, now: datetime) -> ModelVersion:
        """With the fields of `draft` that `mask` names, and put away or brought back when it names `archive_time`.

        Raises InvalidArgument at `update_mask`, IllegalTransition for archiving what is not READY.
        """
        if not mask:
            raise InvalidArgument.at("update_mask", f"must name at least one of {', '.join(UPDATABLE_OF_VERSION)}")
        for path in mask:
            if path not in UPDATABLE_OF_VERSION:
                problem = f"{path!r} cannot be updated; {', '.join(UPDATABLE_OF_VERSION)} can"
                raise InvalidArgument.at("update_mask", problem)
        fields: dict[str, object] = {path: getattr(draft, path) for path in mask if path != "archive_time"}
        if "archive_time" in mask:
            if archived and self.state is not ModelVersionState.READY:
                raise self._illegal("archiving")
            fields["archive_time"] = (self.archive_time or now) if archived else None
        return self._changed(now, **fields)

    def served_with(self, profile: EngineProfile | None, offered: Sequence[str], *, now: datetime) -> ModelVersion:
        """With this engine profile, None: the exact one. `offered`: as for `exact_profile`; empty: the engine has one.
        Raises InvalidArgument at `engine_profile`."""
        exact = exact_profile(self.engine, offered)
        names = list(offered) or [f"{exact.backend}/{exact.precision}"]
        profile = profile or exact
        if (name := f"{profile.backend}/{profile.precision}") not in names:
            raise InvalidArgument.at("engine_profile", f"{self.engine} has {', '.join(names)}, and no {name}")
        return self._changed(now, engine_profile=profile)

    def _step(self, state: ModelVersionState) -> None:
        if state not in _FOLLOWING[self.state]:
            raise self._illegal(state)

    def _illegal(self, step: str) -> IllegalTransition:
        return IllegalTransition(f"a version that is {self.state} takes no {step}", name=self.name, state=self.state)

    def _changed(self, now: datetime, **fields: object) -> ModelVersion:
        return self.model_copy(update={**fields, "revision": self.revision + 1, "update_time": now})


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")
