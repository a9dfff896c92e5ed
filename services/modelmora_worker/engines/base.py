"""The engine seam: what the worker knows of an engine, on one screen, and the table of engines.

A new engine is one file with a class that has these members, one row in TABLE, and the engine conformance test. Third
parties publish an `EngineRow` in the entry-point group `modelmora.engines` instead of the row.
"""

from __future__ import annotations

import enum
import gc
import importlib
import importlib.metadata
import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from modelmora import errors
from modelmora.errors import FieldViolation

ENTRY_POINT_GROUP: Final = "modelmora.engines"


class Batching(enum.Enum):
    """STATIC: our queue builds the batches. CONTINUOUS: the engine schedules itself; we admit, order and limit."""

    STATIC = "static"
    CONTINUOUS = "continuous"


class Text(Protocol):
    """One text of a batch; worker.v1 TextEntry is one. `dimensions` 0: all; `pair`: the second text of tasks that take
    two; `raw_scores`: not made into probabilities; `plain`: without the tokens a tokenizer adds by itself;
    `data`: an image file, instead of a text; `prompt`: name of the prompt before it, empty: the model's default."""

    text: str
    truncate: bool
    normalize: bool
    dimensions: int
    pair: str
    raw_scores: bool
    max_answers: int
    max_answer_tokens: int
    plain: bool
    data: bytes
    prompt: str

    @property
    def token_ids(self) -> Sequence[int]:
        """Tokens to make a text of."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What decides how an engine computes."""

    backend: str
    precision: str
    library_versions: Mapping[str, str] = field(default_factory=dict)
    batch_rule: str = ""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to run, where. `devices` has the bytes granted on each; `options` only the engine understands."""

    engine: str
    artifact_path: str = ""
    model_version: str = ""
    devices: Sequence[tuple[str, int]] = ()
    dtype: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    cpu_threads: int = 0
    profile: Profile | None = None
    cache_path: str = ""
    """Where the engine may keep what it makes of these very files; empty: nowhere."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a load has led to: bytes by device beyond the worker's own (empty: measure the process), and limits."""

    memory_bytes: Mapping[str, int]
    profile: Profile
    max_input_tokens: int
    embedding_dimensions: int
    max_batch_tokens: int
    max_batch_entries: int
    labels: Sequence[str] = ()
    """Of a classifier, in the order of its scores."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Name → text, of a model that names some."""
    default_prompt: str = ""
    """Name of the one that is used when a text names none; empty: none is."""
    max_image_bytes: int = 0
    max_image_pixels: int = 0
    max_resized_pixels: int = 0
    """Of one image that the model's processor has resized; 0, like the two before: the model takes no images."""


@dataclass(slots=True)
class MicroBatch:
    """Rows to compute together, in parallel lists; `items` is the engine's own form of each. Rows may be dropped."""

    positions: list[int]
    input_tokens: list[int]
    truncated: list[bool]
    items: list[Any]
    exact: bool = False
    """To be computed with the exact profile whatever was loaded."""


@dataclass(slots=True)
class Prepared:
    """A batch made ready: micro-batches in the order to compute them, and the rows that failed alone already."""

    micro_batches: list[MicroBatch] = field(default_factory=list)
    failed: list[tuple[int, errors.ModelMoraError]] = field(default_factory=list)


@dataclass(slots=True)
class Rows:
    """Results of a micro-batch: row i has `dimensions[i]` little-endian float32 in `data`; a failed row has none. What
    they are is the task's: see worker.v1 InferRequest."""

    data: bytes
    dimensions: list[int]
    failed: list[tuple[int, errors.ModelMoraError]] = field(default_factory=list)
    """(position, error) of the rows that failed alone."""
    profile: Profile | None = None
    """What computed them; None: the profile of the load."""


class Engine(Protocol):
    """One model version. `load`, `infer`, `stream` and `close` are called on one thread, `prepare` on another while
    `infer` runs, never twice at once."""

    batching: Batching

    def load(self, spec: EngineSpec, progress: Callable[[str, int, int], None]) -> Footprint:
        """Loads, telling `progress(stage, done_bytes, total_bytes)`. Raises InvalidModelFiles, InvalidArgument, …"""

    def prepare(self, texts: Sequence[Text], exact: bool = False) -> Prepared:
        """Tokenises, sorts and cuts a batch; computes nothing. Every row is in one micro-batch or failed. `exact`: for
        the exact profile; an engine with one profile need not care."""

    def infer(self, batch: MicroBatch) -> Rows:
        """Computes one micro-batch."""

    def tokens(self, texts: Sequence[Text]) -> Sequence[bytes]:
        """The tokens of each text, whole: little-endian int32, four for each token (see worker.v1 InferRequest). Called
        like `prepare`."""

    # An engine may have tracks: when `tracks` is above 1 after its load, as many threads call `infer(batch, track)` at
    # a time, each with a track of its own, from 0 on, to compute on its part of the cores; never beside `infer` without
    # a track. `open_tracks()` is called once before that, on a thread of its own beside `infer`, when there is work for
    # them for the first time: it makes ready what they want beyond the load.
    #
    # An engine may also have `texts(entries) -> Sequence[bytes]`, which is called like `tokens` and makes a text of the
    # `token_ids` of each entry, in little-endian int32 code points; and `token_vectors(batch) -> Rows`, which is called
    # like `infer`, with a batch prepared for the exact profile, and gives a vector for each token, of
    # `token_dimensions` numbers (no such attribute, or 0: nobody knows before). And, where one input takes long to
    # prepare, `prepare_each(texts, exact, wanted) -> Prepared`, which is called in place of `prepare`: it asks
    # `wanted(position)` right before each input and leaves out what nobody wants any more, of `failed` too.

    def stream(self, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Answers bit by bit. Raises TaskNotSupported where the engine does not generate."""

    def close(self) -> None:
        """Lets go of memory and devices; may be called twice."""


@dataclass(frozen=True, slots=True)
class Option:
    """One engine option: its type (bool, int, float or str), bounds, choices, default, and what it does."""

    type: type
    about: str
    default: bool | int | float | str | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One row of the engine table. `module` is `package.module:Class`, imported only in the worker."""

    name: str
    module: str
    tasks: frozenset[str]
    needs_files: bool
    extra: str = ""
    """The extra of our distribution that brings its libraries; empty: none needed."""
    options: Mapping[str, Option] = field(default_factory=dict)
    profiles: Sequence[str] = ()
    """`backend/precision` of the profiles it may load with, the exact one first; empty: one, which it tells itself."""
    backends: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of backends that want more than the row's extra: an extra of their own (of the backend's name) and the modules in
    it."""
    family: str = ""
    """Engines of one family share a fork server; empty: its workers import everything themselves."""
    preload: Sequence[str] = ()
    """What the fork server does that each load would do else: modules to import, `module:function` to call. None may
    compute or touch a device."""
    practice: str = ""
    """`module:function` that a worker calls which waits for its first orders, with an empty folder that is its own: so
    that its load finds warm what every load needs. What it computes afterwards must not depend on it."""
    copied_bytes: int = 3 << 20
    """What counters do not tell of a load in a worker that has practised: the pages it copies of those that are shared
    still, less those that the practice has copied and this load would not. So as much is told as after a load without
    practice, which reads it all; of 30 MiB with torch that is 1 to 3 less than there is."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the libraries read from the environment, most of it when they are imported. What is set already stays."""


_LIMITS: Final = {
    "max_batch_entries": Option(int, "texts in one batch at most", minimum=1, maximum=100_000),
    "max_batch_tokens": Option(int, "tokens in one batch at most", minimum=1, maximum=100_000_000),
    "max_input_tokens": Option(int, "tokens of one text at most", minimum=1, maximum=10_000_000),
}
_TORCH_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # The pipeline has a thread for tokenising; more would take the cores from the computation.
    "TOKENIZERS_PARALLELISM": "false",
    # oneDNN keeps compiled code for each shape it has seen, 1024 of them: 100 MB that come slowly and break every
    # prediction. Lengths hardly repeat, so few are as good (within 3 %).
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    # So does the layer of torch above it, for each thread: 900 MB of MiniLM in bf16 on two tracks.
    "LRU_CACHE_CAPACITY": "32",
    # OpenMP threads that wait for each other spin 300,000 rounds by default, 5 ms. With anything else on the cores (our
    # own host, for one) throughput fell from 30 to 6 texts/s. This keeps it at 14 and above, for a few percent on a
    # quiet machine, and takes a quarter less processor time everywhere.
    "GOMP_SPINCOUNT": "2000",
}
_DAY = 86_400.0
_TERABYTE = 1 << 40

TABLE: Final[Mapping[str, EngineRow]] = {
    row.name: row
    for row in (
        EngineRow(
            name="echo",
            module="modelmora_worker.engines.echo:EchoEngine",
            tasks=frozenset({"txt2embed", "reranking", "classification", "question_answering"}),
            needs_files=False,
            options={
                **_LIMITS,
                "dimensions": Option(int, "length of a vector", default=8, minimum=1, maximum=16_384),
                "delay_seconds": Option(float, "time of a batch", default=0.0, minimum=0, maximum=_DAY),
                "delay_per_token_seconds": Option(float, "time of a token", default=0.0, minimum=0, maximum=_DAY),
                "load_seconds": Option(float, "time of the load", default=0.0, minimum=0, maximum=_DAY),
                "memory_bytes": Option(int, "memory taken at load", default=0, minimum=0, maximum=_TERABYTE),
                "memory_step_bytes": Option(int, "of it, taken at a time", minimum=1, maximum=_TERABYTE),
                "memory_step_seconds": Option(float, "pause after each time", default=0.0, minimum=0, maximum=_DAY),
                "claimed_bytes": Option(int, "memory it tells of", minimum=-_TERABYTE, maximum=2**53),
                "leak_bytes_per_batch": Option(int, "memory lost by a batch", default=0, minimum=0, maximum=_TERABYTE),
                "hang_after_batches": Option(int, "batches before it hangs", minimum=0),
                "hold_gil_seconds": Option(float, "holds the interpreter", default=0.0, minimum=0, maximum=3600),
                "crash_after_batches": Option(int, "batches before it kills itself", minimum=0),
                "crash_on_text": Option(str, "kills itself on a text with this in it"),
                "fail_on_text": Option(str, "fails a text with this in it"),
                "fail_after_batches": Option(int, "batches before it fails all of them", minimum=0),
                "oom_after_batches": Option(int, "batches before it runs out of memory", minimum=0),
                "fail_load": Option(str, "fails the load with this message"),
                "fast_error": Option(float, "how wrong the profile echo/bf16 is", default=0.0, minimum=0, maximum=100),
                "fast_crash": Option(bool, "kills itself when it computes with echo/bf16", default=False),
                "micro_batch_entries": Option(int, "texts computed together", minimum=1, maximum=100_000),
                "seed": Option(int, "of the vectors", default=0, minimum=0, maximum=2**53),
                "labels": Option(int, "labels of a classifier", default=3, minimum=1, maximum=10_000),
            },
            profiles=("echo/fp32", "echo/bf16"),
        ),
        EngineRow(
            name="sentence_transformers",
            module="modelmora_worker.engines.sentence_transformers:SentenceTransformersEngine",
            tasks=frozenset({"txt2embed"}),
            needs_files=True,
            extra="torch",
            options={
                **_LIMITS,
                "micro_batch_tokens": Option(
                    int, "tokens computed together; by default as the profile has it", minimum=16, maximum=1_000_000
                ),
            },
            profiles=("torch/fp32", "torch/bf16", "openvino/bf16", "openvino/fp32", "onnx/fp32"),
            backends={"openvino": ("openvino",), "onnx": ("onnxruntime", "onnx")},
            family="torch",
            preload=(
                "torch",
                "safetensors.torch",
                "modelmora_worker.engines.lean_import:import_library",
                "sentence_transformers.models.Transformer",
                "sentence_transformers.models.Pooling",
                "sentence_transformers.models.Normalize",
                "sentence_transformers.models.Dense",
                # The architectures that most embedding models have; another one is imported by its own load.
                *(
                    f"transformers.models.{name}.{part}_{name}"
                    for name in ("bert", "roberta", "xlm_roberta", "mpnet", "distilbert", "modernbert", "qwen3")
                    for part in ("configuration", "modeling")
                ),
                "transformers.models.bert.tokenization_bert",
                "transformers.models.roberta.tokenization_roberta",
                "transformers.models.xlm_roberta.tokenization_xlm_roberta",
                "modelmora_worker.engines.sentence_transformers:fill_caches",
                "modelmora_worker.engines.practice:prepare",
                "modelmora_worker.engines.openvino:preload",
            ),
            practice="modelmora_worker.engines.practice:sentence_transformers",
            environment=_TORCH_ENVIRONMENT,
        ),
        EngineRow(
            name="transformers",
            module="modelmora_worker.engines.transformers:TransformersEngine",
            tasks=frozenset({"reranking", "classification", "question_answering"}),
            needs_files=True,
            extra="torch",
            options={
                **_LIMITS,
                "micro_batch_tokens": Option(
                    int, "tokens computed together; by default as the profile has it", minimum=16, maximum=10**6
                ),
            },
            profiles=("torch/fp32", "torch/bf16"),
            family="torch",
            environment=_TORCH_ENVIRONMENT,
        ),
        EngineRow(
            name="transformers_images",
            module="modelmora_worker.engines.images:ImagesEngine",
            tasks=frozenset({"classification"}),
            needs_files=True,
            extra="images",
            options={
                "max_batch_entries": _LIMITS["max_batch_entries"],
                "max_batch_tokens": _LIMITS["max_batch_tokens"],
                "micro_batch_entries": Option(int, "images computed together", default=8, minimum=1, maximum=10_000),
                "max_image_bytes": Option(int, "bytes of one file", default=16 << 20, minimum=64, maximum=_TERABYTE),
                "max_image_pixels": Option(
                    int, "pixels of one image, as its head tells", default=32_000_000, minimum=1, maximum=10**9
                ),
                "max_resized_pixels": Option(
                    int,
                    "pixels that the model's processor may make of one image, before it crops; by default 4,000,000, "
                    "or 16 times what it makes of a square where that is more",
                    minimum=1,
                    maximum=10**9,
                ),
            },
            profiles=("torch/fp32",),
            family="torch",
            copied_bytes=10 << 20,  # it imports what reads images
            environment=_TORCH_ENVIRONMENT,
        ),
    )
}


def find_row(name: str) -> EngineRow:
    """The row of this name, ours or a third party's. Raises EngineNotFound."""
    row = TABLE.get(name)
    if row is not None:
        return row
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
        found = entry.load()
        if isinstance(found, EngineRow) and found.name == name:
            return found
    known = ", ".join(sorted(TABLE))
    raise errors.EngineNotFound(
        f"no engine has the name {name!r}; there are {known}", fields=[FieldViolation("engine", f"one of {known}")]
    )


def all_rows() -> Mapping[str, EngineRow]:
    """Our rows and those of third parties whose entry points load; ours win."""
    rows: dict[str, EngineRow] = {}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            found = entry.load()
        except (ImportError, AttributeError):
            continue
        if isinstance(found, EngineRow):
            rows[found.name] = found
    return {**rows, **TABLE}


def missing_profiles(row: EngineRow) -> Mapping[str, str]:
    """Of its profiles those whose libraries are not installed here, and what to do about that."""
    missing = {
        backend: modules
        for backend, modules in row.backends.items()
        if any(importlib.util.find_spec(module) is None for module in modules)
    }
    return {
        profile: f"{', '.join(missing[backend])} not installed; install modelmora[{backend}]"
        for profile in row.profiles
        if (backend := profile.partition("/")[0]) in missing
    }


def check_options(row: EngineRow, options: Mapping[str, object]) -> list[FieldViolation]:
    """What is wrong with these options; paths are relative to them (`delay_seconds`). Pure."""
    found = []
    for key in sorted(options):
        option = row.options.get(key)
        if option is None:
            found.append(FieldViolation(key, f"engine {row.name} has no such option"))
        else:
            wrong = _check_value(option, options[key])
            if wrong:
                found.append(FieldViolation(key, wrong))
    return found


def read_options(row: EngineRow, options: Mapping[str, object]) -> dict[str, Any]:
    """The options with defaults, in their types. Raises InvalidArgument with `engine_options.<key>`."""
    wrong = [FieldViolation(f"engine_options.{v.field}", v.description) for v in check_options(row, options)]
    if wrong:
        raise errors.InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in wrong), fields=wrong)
    values = {key: option.default for key, option in row.options.items()}
    for key, value in options.items():
        values[key] = row.options[key].type(value)
    return values


def _check_value(option: Option, value: object) -> str:
    """What is wrong with the value; empty: nothing. Numbers come as float from JSON, so 8.0 is a whole number."""
    if option.type in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must be a number, not {value!r}"
        if not math.isfinite(value):
            return "must be finite"
        if option.type is int and value != int(value):
            return f"must be a whole number, not {value!r}"
        if option.minimum is not None and value < option.minimum:
            return f"must be at least {option.minimum:g}"
        if option.maximum is not None and value > option.maximum:
            return f"must be at most {option.maximum:g}"
        return ""
    if not isinstance(value, option.type):
        return f"must be a {'yes or no' if option.type is bool else 'text'}, not {value!r}"
    if option.choices and value not in option.choices:
        return f"must be one of {', '.join(option.choices)}"
    return ""


def task_of(row: EngineRow, spec: EngineSpec) -> str:
    """The task to load a model for; an engine that embeds among others embeds by default. Raises TaskNotSupported."""
    task = spec.task or ("txt2embed" if "txt2embed" in row.tasks else "")
    if task not in row.tasks:
        known = ", ".join(sorted(row.tasks))
        raise errors.TaskNotSupported(f"engine {row.name} does {known}, not {task or 'a model without a task'}")
    return task


def too_many_dimensions(asked: int, there: int) -> errors.InvalidArgument:
    """The error for a row that asks for more dimensions than the model has."""
    return errors.InvalidArgument.at("dimensions", f"{asked} asked for, the model has {there}")


def unknown_prompt(asked: str, there: Iterable[str]) -> errors.InvalidArgument:
    """The error for a row that asks for a prompt that the model does not have."""
    known = ", ".join(sorted(there)) or "none"
    return errors.InvalidArgument.at("prompt_name", f"there is no prompt {asked!r}; there are {known}"[:500])


def open_engine(row: EngineRow) -> Engine:
    """An engine, not loaded yet. Raises EngineUnavailable where its libraries are missing."""
    module, _, name = row.module.partition(":")
    try:
        engine: Engine = getattr(importlib.import_module(module), name)()
    except ImportError as error:
        raise engine_unavailable(row, error) from error
    return engine


def preload(family: str) -> list[str]:
    """Imports what the engines of a family declare, in their environment. For a fork server. The answer is what this
    release of a library does not have; raises ImportError where the library itself is missing."""
    missing = []
    for row in all_rows().values():
        if row.family == family:
            set_environment(row)
            for name in row.preload:
                module, _, function = name.partition(":")
                try:
                    found = importlib.import_module(module)
                    if function:
                        getattr(found, function)()
                except ModuleNotFoundError as error:
                    if not (error.name or "").startswith(name.partition(".")[0] + "."):
                        raise
                    missing.append(name)
    return missing


def practise(family: str, folder: Path) -> bool:
    """Does what the engines of a family declare as practice, each in a folder below this one, which is removed. Whether
    there was any."""
    done = False
    try:
        for row in all_rows().values():
            if row.family == family and row.practice:
                module, _, function = row.practice.partition(":")
                own = folder / row.name
                own.mkdir(mode=0o700, parents=True)
                getattr(importlib.import_module(module), function)(own)
                done = True
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()  # a model lies in circles: else it stays until something else is collected
    return done


def set_environment(row: EngineRow) -> None:
    """Before its libraries are imported; what is set already stays."""
    for name, value in row.environment.items():
        os.environ.setdefault(name, value)


def engine_unavailable(row: EngineRow, error: ImportError) -> errors.EngineUnavailable:
    """The error that says what to install."""
    remedy = f"; install modelmora[{row.extra}]" if row.extra else ""
    return errors.EngineUnavailable(
        f"engine {row.name} cannot be imported ({error}){remedy}", engine=row.name, extra=row.extra
    )
