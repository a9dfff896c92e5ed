"""Model locks: the document, its one text, what differs between two of them, what drifted from one. Pure.

A lock names everything that decides the answers of its versions, and nothing else: neither when it was made nor by
whom, so that the same models give the same bytes. The text is written here and not by a YAML library, whose next
release may break lines elsewhere: its digest is the lock's name for ever. It is ASCII, two spaces deep, keys in the
order of the proto, what is unset left out; every YAML reader reads it. Reading it back is `lock_yaml`'s affair.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, Literal

from modelmora.errors import InvalidArgument
from pydantic import Field, field_validator, model_validator

from modelmora_registry.domain import (
    Artifact,
    ArtifactFile,
    EngineOptions,
    EngineProfile,
    ModelSource,
    ModelVersion,
    ResourceRequirements,
    TaskType,
    Text,
    Value,
    parse_reference,
)

FORMAT: Literal["modelmora.lock/1"] = "modelmora.lock/1"
HEAD = (
    "# A model lock of ModelMora: everything that decides the answers of these models.\n"
    "# `modelmora lock verify FILE` says what drifted, `modelmora lock apply FILE` brings a machine to it.\n"
)
MAX_MODELS = 10_000
MAX_TENSOR_BYTES = 4 * 2**20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LOCK_ID = re.compile(r"[a-z][a-z0-9-]{0,62}")
LOCK_PREFIX = "modelLocks/"


# Golden inputs: what a version is asked for its fingerprint.


class GoldenInputs(Value):
    """Inputs whose answers make a fingerprint. A set never changes; another one gets another number."""

    golden: str
    texts: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    """The second text of each, for tasks that take two."""


_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Größe 北京 Привет عالم naïve façade — “quotes”, 3.14 €, 🙂",
    "def area(radius: float) -> float: return 3.14159 * radius ** 2  # m²",
    "Every answer of a model is decided by its weights, its tokenizer, the precision in which it computes "
    "and the libraries that do the computing. Whoever keeps vectors for years needs to know that the same "
    "text still gives the same vector, on another machine, after an update, behind another version number.",
)
"""English, other scripts, code, and a paragraph. Few, because every load answers them."""
_EMBEDDINGS = "txt2embed/1"

GOLDEN: Mapping[TaskType, GoldenInputs] = MappingProxyType(
    {
        TaskType.TXT2EMBED: GoldenInputs(golden=_EMBEDDINGS, texts=_TEXTS),
        TaskType.CLASSIFICATION: GoldenInputs(golden="classification/1", texts=_TEXTS),
        TaskType.RERANKING: GoldenInputs(
            golden="reranking/1", texts=("What decides the answers of a model?",) * len(_TEXTS), pairs=_TEXTS
        ),
        TaskType.QUESTION_ANSWERING: GoldenInputs(
            golden="question_answering/1",
            texts=(
                "What does the fox jump over?",
                "What does the function return?",
                "What does whoever keeps vectors for years need to know?",
            ),
            pairs=(_TEXTS[0], _TEXTS[2], _TEXTS[3]),
        ),
    }
)
"""By task. Scores are asked for as the model gives them: probabilities near 0 and 1 would hide what changed."""

_TOLERANCE_FP32 = 0.9999
_TOLERANCE = 0.999
_TOLERANCE_OF_SCORES = 0.98


def tolerance_of(profile: EngineProfile, golden: str) -> float:
    """Least similarity that counts as the same. In fp32 processors and batch shapes move a number by about 1e-6;
    formats of 8 bits of mantissa a score by about 1e-2, and the cosine of a vector by about 1e-4."""
    if profile.precision == "fp32":
        return _TOLERANCE_FP32
    return _TOLERANCE if golden == _EMBEDDINGS else _TOLERANCE_OF_SCORES


def similarity_of(golden: str, left: Tensor, right: Tensor) -> float:
    """How much two answers to the same golden inputs agree, at most 1: of embeddings the least cosine, of scores and
    places how close the two values are that differ most."""
    return least_cosine(left, right) if golden == _EMBEDDINGS else least_closeness(left, right)


def closeness(one: float, other: float) -> float:
    """1 less the difference, relative where the values are larger than 1; -1 at least, and for what is no number."""
    if one == other:
        return 1.0
    off = abs(one - other) / max(1.0, abs(one), abs(other))
    return max(-1.0, 1.0 - off) if math.isfinite(off) else -1.0


def least_closeness(left: Tensor, right: Tensor) -> float:
    """Of the values at the same place; -1 when the shapes differ."""
    if left.shape != right.shape:
        return -1.0
    pairs = zip(left.rows(), right.rows(), strict=True)
    return min(closeness(one, other) for ours, theirs in pairs for one, other in zip(ours, theirs, strict=True))


# The document.


class Tensor(Value):
    """Rows of little-endian float32."""

    data_type: Literal["fp32"] = "fp32"
    shape: tuple[Annotated[int, Field(gt=0, le=2**20)], ...] = Field(min_length=2, max_length=2)
    data: bytes = Field(max_length=MAX_TENSOR_BYTES)

    @field_validator("data", mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        """Bytes, or base64 as it stands in YAML."""
        if isinstance(data, str):
            try:
                return base64.b64decode(data, validate=True)
            except (binascii.Error, ValueError):
                raise ValueError("must be base64") from None
        return data

    @model_validator(mode="after")
    def _is_whole(self) -> Tensor:
        if len(self.data) != 4 * self.shape[0] * self.shape[1]:
            raise ValueError(f"{len(self.data)} bytes are not {self.shape[0]} rows of {self.shape[1]} float32")
        return self

    def rows(self) -> Iterator[tuple[float, ...]]:
        width = 4 * self.shape[1]
        for start in range(0, len(self.data), width):
            yield struct.unpack(f"<{self.shape[1]}f", self.data[start : start + width])


class Fingerprint(Value):
    """What a version answers to golden inputs, under the profile it answered with."""

    golden: str = Field(min_length=1, max_length=100)
    outputs: Tensor
    tolerance: float = Field(gt=-1, le=1)
    engine_profile: EngineProfile
    create_time: datetime | None = None


class LockedModel(Value):
    """Everything that decides the answers of one version. Files are sorted by path; `digest` is theirs."""

    model_version: str
    source: ModelSource | None = None
    digest: str = Field(pattern=_DIGEST.pattern)
    files: tuple[ArtifactFile, ...] = ()
    tokenizer_digest: Text = ""
    chat_template_digest: Text = ""
    engine: Text = Field(min_length=1)
    engine_options: EngineOptions | None = None
    task_type: TaskType | None = None
    dtype: Text = ""
    engine_profile: EngineProfile | None = None
    resource_requirements: ResourceRequirements | None = None
    fingerprint: Fingerprint | None = None

    @field_validator("model_version")
    @classmethod
    def _names_a_version(cls, text: str) -> str:
        try:
            reference = parse_reference(text)
        except InvalidArgument as error:
            raise ValueError(error.fields[0].description) from None
        if not reference.version_only or reference.selector is None:
            raise ValueError("must be models/{org}/{repo}/versions/{version}")
        return reference.model_id.version_name(reference.selector)

    @field_validator("task_type", mode="before")
    @classmethod
    def _known_task(cls, value: Any) -> Any:
        if isinstance(value, int):
            raise ValueError(f"this server knows no task number {value}")
        return value

    @field_validator("files")
    @classmethod
    def _sorted(cls, files: tuple[ArtifactFile, ...]) -> tuple[ArtifactFile, ...]:
        ordered = tuple(sorted(files, key=lambda file: file.path))
        for one, other in pairwise(ordered):
            if one.path == other.path:
                raise ValueError(f"{one.path!r} is there twice")
        return ordered

    @model_validator(mode="after")
    def _digest_is_of_the_files(self) -> LockedModel:
        if (found := Artifact.of("", self.files).digest) != self.digest:
            raise ValueError(f"the files make the digest {found}, not {self.digest}")
        return self

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class LockDocument(Value):
    """What a lock's text holds. Models are sorted by name."""

    format: Literal["modelmora.lock/1"]
    models: tuple[LockedModel, ...]

    @field_validator("models")
    @classmethod
    def _sorted(cls, models: tuple[LockedModel, ...]) -> tuple[LockedModel, ...]:
        if not 0 < len(models) <= MAX_MODELS:
            raise ValueError(f"must be 1 to {MAX_MODELS} models")
        ordered = tuple(sorted(models, key=lambda model: model.model_version))
        for one, other in pairwise(ordered):
            if one.model_version == other.model_version:
                raise ValueError(f"{one.model_version} is there twice")
        return ordered

    @classmethod
    def of(cls, models: Iterable[LockedModel]) -> LockDocument:
        return cls(format=FORMAT, models=tuple(models))


Verdict = Literal["intact", "missing", "changed", "extra"]


class FileVerdict(Value):
    """What was found of one file. The digests are empty where it was not hashed."""

    path: str
    verdict: Verdict
    expected_sha256: str = ""
    found_sha256: str = ""


class ModelLock(Value):
    """A lock as the registry keeps it."""

    name: str
    uid: str
    models: tuple[LockedModel, ...] = ()
    digest: str
    create_time: datetime | None = None


def locked_model(version: ModelVersion, profile: EngineProfile | None, fingerprint: Fingerprint | None) -> LockedModel:
    """What a lock says of a READY version. `profile` is the version's with the libraries it was last loaded with."""
    assert version.artifact is not None
    told = version.metadata
    return LockedModel(
        model_version=version.name,
        source=version.source,
        digest=version.artifact.digest,
        files=version.artifact.files,
        tokenizer_digest=(told.tokenizer_digest if told else None) or "",
        chat_template_digest=(told.chat_template_digest if told else None) or "",
        engine=version.engine,
        engine_options=version.engine_options,
        task_type=version.task_type,
        dtype=(told.dtype if told else None) or "",
        engine_profile=profile,
        resource_requirements=version.resource_requirements,
        fingerprint=fingerprint,
    )


class Drift(Value):
    """One difference between what is locked and what is found; the empty text: it is not there."""

    field: str
    locked: str = ""
    found: str = ""


def check_lock_id(text: str, *, at: str = "lock_id") -> str:
    if not _LOCK_ID.fullmatch(text):
        raise InvalidArgument.at(at, f"{text[:100]!r} is no lock id; it is a letter, then a-z, 0-9 and '-', at most 63")
    return text


def parse_lock_name(text: str, *, at: str = "name") -> str:
    """The id in `modelLocks/{id}`, or the id alone."""
    return check_lock_id(text.removeprefix(LOCK_PREFIX), at=at)


# Its one text.


def render(document: LockDocument) -> str:
    """The lock as YAML: the same lock gives the same bytes."""
    return HEAD + "".join(f"{line}\n" for line in _lines(plain(document), 0))


def digest_of(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def plain(value: Any) -> Any:
    """A value of this file as mappings, lists and scalars, without what is unset and without times."""
    if isinstance(value, Value):
        fields = {name: plain(getattr(value, name)) for name in type(value).model_fields if name != "create_time"}
        return {name: item for name, item in fields.items() if not _is_unset(name, item)}
    if isinstance(value, Mapping):
        return {key: plain(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, TaskType):
        return value.value
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _is_unset(name: str, item: Any) -> bool:
    # A profile or a source without words is one all the same, and so are empty options.
    return item is None or item in ("", []) or (item == {} and name in ("library_versions", "object_versions"))


def _lines(value: Any, depth: int) -> Iterator[str]:
    pad = " " * depth
    for key, item in value.items() if isinstance(value, dict) else ((None, item) for item in value):
        lead = f"{pad}- " if key is None else f"{pad}{_scalar(key)}:"
        if not isinstance(item, dict | list) or not item:
            yield f"{lead}{'' if key is None else ' '}{_scalar(item)}"
        elif key is None:
            first, *rest = _lines(item, depth + 2)
            yield f"{lead}{first.lstrip(' ')}"
            yield from rest
        else:
            yield lead
            yield from _lines(item, depth + 2)


_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./@:+-]*(?<!:)")
_OTHER_MEANING = frozenset(["true", "false", "yes", "no", "on", "off", "null", "y", "n"])


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool) or value in ({}, []):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        mantissa, mark, exponent = repr(value).partition("e")
        # YAML 1.1 takes 1e+22 for a word.
        return mantissa + ("" if "." in mantissa else ".0") + mark + exponent
    if _PLAIN.fullmatch(value) and value.lower() not in _OTHER_MEANING:
        return str(value)
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(letter: str) -> str:
    if " " <= letter <= "~":
        return f"\\{letter}" if letter in '"\\' else letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


# Differences.


def diff(left: LockDocument, right: LockDocument) -> list[Drift]:
    """What differs, `locked` on the left and `found` on the right. A model of which each side has one version is
    compared across versions; indexes are those of the side that has it, the left if both have."""
    rights = {model.model_version: (index, model) for index, model in enumerate(right.models)}
    pairs: list[tuple[int, LockedModel, LockedModel | None]] = []
    for index, model in enumerate(left.models):
        _, other = rights.pop(model.model_version, (0, None))
        pairs.append((index, model, other))
    alone = [_model_of(model) for _, model, other in pairs if other is None]
    spare = [_model_of(model) for _, model in rights.values()]
    found: list[Drift] = []
    for index, model, other in pairs:
        if other is None and (name := _model_of(model)) and alone.count(name) == spare.count(name) == 1:
            match = next(key for key, (_, candidate) in rights.items() if _model_of(candidate) == name)
            other = rights.pop(match)[1]
        if other is None:
            found.append(Drift(field=f"models[{index}]", locked=model.model_version))
        else:
            found += _differences(_comparable(model), _comparable(other), f"models[{index}]")
    found += [Drift(field=f"models[{index}]", found=model.model_version) for index, model in rights.values()]
    return found


def drifts(index: int, locked: LockedModel, found: LockedModel | None) -> list[Drift]:
    """What drifted of the `index`th model of a lock. `found` is what is here, its files as they were found; None: there
    is no such version.

    Not drift: where the same files came from, unless both sides name a Hub; what is unknown here, as the libraries of a
    version that was never loaded here; answers within the fingerprint's tolerance.
    """
    at = f"models[{index}]"
    if found is None:
        return [Drift(field=at, locked=locked.model_version)]
    left, right = _comparable(locked), _comparable(found)
    both_hub = "hub" in left.get("source", {}) and "hub" in right.get("source", {})
    sides = (left, right)
    for side in sides:
        side.pop("fingerprint", None)
        if not both_hub:
            side.pop("source", None)
        else:
            side["source"]["hub"].pop("revision", None)  # A branch may have been asked for by another name.
    for name in ("tokenizer_digest", "chat_template_digest", "dtype"):
        if not all(name in side for side in sides):
            _without(name, *sides)
    profiles = [side.get("engine_profile", {}) for side in sides]
    for name in ("library_versions", "batch_rule"):
        if not all(name in profile for profile in profiles):
            _without(name, *profiles)
    result = _differences(left, right, at)
    if locked.fingerprint is not None and found.fingerprint is not None:
        result += _behaviour(locked.fingerprint, found.fingerprint, f"{at}.fingerprint")
    return result


def file_drifts(at: str, verdicts: Iterable[FileVerdict]) -> list[Drift]:
    """What verification found of files, as drift of the model at `at`."""
    return [
        Drift(
            field=f"{at}.files[{json.dumps(verdict.path, ensure_ascii=False)}]"
            + (".sha256" if verdict.verdict == "changed" else ""),
            locked=verdict.expected_sha256,
            found=(verdict.found_sha256 or "another size")
            if verdict.verdict == "changed"
            else "a file that does not belong here"
            if verdict.verdict == "extra"
            else "",
        )
        for verdict in verdicts
        if verdict.verdict != "intact"
    ]


def _without(name: str, *sides: dict[str, Any]) -> None:
    for side in sides:
        side.pop(name, None)


def _behaviour(locked: Fingerprint, found: Fingerprint, at: str) -> list[Drift]:
    if locked.golden != found.golden:
        return []  # Other questions: nothing can be told.
    similarity = similarity_of(locked.golden, locked.outputs, found.outputs)
    if similarity >= locked.tolerance:
        return []
    said = f"similarity {similarity:.6f}, below the tolerance {locked.tolerance:g}"
    return [Drift(field=f"{at}.outputs", locked=_short(locked.outputs), found=f"{_short(found.outputs)}, {said}")]


def least_cosine(left: Tensor, right: Tensor) -> float:
    """The least cosine between rows of the same place; -1 when the shapes differ or a value is no number."""
    if left.shape != right.shape:
        return -1.0
    if left.data == right.data:
        return 1.0
    return min(_cosine(one, other) for one, other in zip(left.rows(), right.rows(), strict=True))


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    if left == right:
        return 1.0
    length = math.sqrt(math.fsum(x * x for x in left)) * math.sqrt(math.fsum(x * x for x in right))
    if not math.isfinite(length) or not length:
        return -1.0
    return max(-1.0, min(1.0, math.fsum(x * y for x, y in zip(left, right, strict=True)) / length))


def _model_of(model: LockedModel) -> str:
    return str(parse_reference(model.model_version).model_id)


def _short(outputs: Tensor) -> str:
    return f"sha256:{hashlib.sha256(outputs.data).hexdigest()[:16]}…"


class _Named(dict[str, Any]):
    """A mapping whose keys are data, written in brackets in a path."""


def _comparable(model: LockedModel) -> dict[str, Any]:
    made: dict[str, Any] = plain(model)
    made["files"] = _Named({file["path"]: file for file in made.get("files", ())})
    if "engine_options" in made:
        made["engine_options"] = _named(made["engine_options"])
    profiles = [made, *([made["fingerprint"]] if "fingerprint" in made else [])]
    for holder in profiles:
        if "library_versions" in holder.get("engine_profile", {}):
            holder["engine_profile"]["library_versions"] = _Named(holder["engine_profile"]["library_versions"])
    if model.fingerprint is not None:
        made["fingerprint"]["outputs"] = _short(model.fingerprint.outputs)
    return made


def _named(value: Any) -> Any:
    return _Named({key: _named(item) for key, item in value.items()}) if isinstance(value, dict) else value


def _differences(left: Any, right: Any, at: str) -> list[Drift]:
    if isinstance(left, dict) and isinstance(right, dict):
        found = []
        for key in [*left, *(key for key in right if key not in left)]:
            path = f"{at}[{json.dumps(key, ensure_ascii=False)}]" if isinstance(left, _Named) else f"{at}.{key}"
            found += _differences(left.get(key), right.get(key), path)
        return found
    if left == right and isinstance(left, bool) == isinstance(right, bool):
        return []
    return [Drift(field=at, locked=_said(left), found=_said(right))]


def _said(value: Any) -> str:
    """A value in a Drift. Of a file that is only on one side: its digest."""
    if isinstance(value, dict) and "sha256" in value:
        return str(value["sha256"])
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
