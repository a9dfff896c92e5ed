"""What the files of a model tell about it, read instead of typed in. Pure: file names and parsed JSON go in.

What is unknown stays unset. Knows the layout of sentence-transformers: `modules.json` names the modules, the folder of
the first one holds the lengths, Pooling and Dense say how long an embedding is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from modelmora.errors import InvalidModelFiles, UnsafeFile
from pydantic import Field

from modelmora_registry.domain import ModelLimits, ModelMetadata, ReadOnly, TaskType, Value

MODULES_FILE = "modules.json"
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
"""How models that see or hear want what goes in."""
SENTENCE_TRANSFORMERS = "sentence_transformers"
TRANSFORMERS = "transformers"
TRANSFORMERS_IMAGES = "transformers_images"
TRUSTED_MODULES = "sentence_transformers."
INDEX_ENDING = ".safetensors.index.json"
_SHARD = re.compile(r"(.*)-[0-9]{5}-of-([0-9]{5})\.safetensors")
_MODULES_WITH_WEIGHTS = frozenset(["Transformer", "StaticEmbedding", "Dense"])
_LENGTH_FILES = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json")
_POOLING_FLAGS = (
    "pooling_mode_cls_token",
    "pooling_mode_max_tokens",
    "pooling_mode_mean_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
)


_HEADS = {
    "ForSequenceClassification": TaskType.CLASSIFICATION,
    "ForQuestionAnswering": TaskType.QUESTION_ANSWERING,
}
"""What a model of transformers does, by the end of its class's name."""
_TRANSFORMERS_TASKS = frozenset({TaskType.RERANKING, *_HEADS.values()})
_IMAGE_HEAD = "ForImageClassification"
MAX_LABELS = 10_000
MAX_LABEL_CHARACTERS = 1000


class Kind(Value):
    """What a set of file names says; None where it says nothing."""

    engine: str | None = None
    task_type: TaskType | None = None


_PICKLES = frozenset(["bin", "pt", "pth", "pkl", "pickle", "ckpt", "joblib", "dill", "h5", "keras", "pdparams"])
"""Endings of weights that run code when they are read."""
_OTHER_WEIGHTS = frozenset(["ot", "msgpack", "onnx", "onnx_data", "gguf", "tflite", "mlmodel", "xml"]) | _PICKLES
_EXPORT_FOLDERS = ("onnx/", "openvino/", "coreml/")


def pickle_problem(path: str) -> str | None:
    """Why a file of this name is taken for code; None when it is not. OpenVINO keeps plain numbers in `.bin`."""
    name = path.rsplit("/", 1)[-1].lower()
    ending = name.rsplit(".", 1)[-1] if "." in name else ""
    if ending not in _PICKLES or name.startswith("openvino_"):
        return None
    return f".{ending} weights can run code when they are read; use safetensors, or set registry.allow_pickle"


def looks_like_pickle(path: str, head: bytes) -> bool:
    """Whether the first bytes are those of a pickle or of torch's zip, whatever the name says.

    A safetensors file begins with a length that can look like one, so it is left to its own reader.
    """
    if path.endswith((".safetensors", ".npz", ".zip")):
        return False
    return head[:4] == b"PK\x03\x04" or (len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5)


def wanted_of(paths: Collection[str]) -> list[str]:
    """Those files of a Hub repository that an import takes: no code, no hidden files, no second copy of the weights.

    Repositories keep the same weights in many formats. Where a folder has safetensors, other formats beside them are
    left out; pickles without safetensors beside them stay, to be refused.
    """
    safe_folders = {path.rpartition("/")[0] for path in paths if path.endswith(".safetensors")}
    wanted = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        ending = name.rsplit(".", 1)[-1].lower()
        spare = (ending in _OTHER_WEIGHTS and folder in safe_folders) or (
            "" in safe_folders and path.startswith(_EXPORT_FOLDERS)
        )
        if not (spare or ending in ("py", "pyc") or any(part.startswith(".") for part in path.split("/"))):
            wanted.append(path)
    return sorted(wanted)


def kind_of(paths: Collection[str], config: Any = None, task_type: TaskType | None = None) -> Kind:
    """The engine and the task of a model with these files: by its `config.json`, where that is at hand, by the task
    that was asked for, by names. (A cross-encoder may have a `modules.json` too.)"""
    sees = CONFIG_FILE in paths and PROCESSOR_FILE in paths and not _TOKENIZER_FILES.intersection(paths)
    if CONFIG_FILE in paths and (_takes_images(config) or (sees and config is None)):
        if task_type is TaskType.CLASSIFICATION or (task_type is None and config is not None):
            return Kind(engine=TRANSFORMERS_IMAGES, task_type=TaskType.CLASSIFICATION)
        return Kind()
    if CONFIG_FILE in paths:
        head = _head_of(config)
        if task_type in (head or _TRANSFORMERS_TASKS):
            return Kind(engine=TRANSFORMERS, task_type=task_type)
        if head and task_type is None:
            return Kind(engine=TRANSFORMERS, task_type=head[0])
    if MODULES_FILE in paths:
        return Kind(engine=SENTENCE_TRANSFORMERS, task_type=TaskType.TXT2EMBED)
    return Kind()


def _head_of(config: Any) -> tuple[TaskType, ...]:
    """The tasks that a model of this configuration can do, the likeliest first; none where it does not tell. One that
    gives pairs a single score is a reranker."""
    name = _class_of(config)
    task = next((_HEADS[end] for end in _HEADS if name.endswith(end)), None)
    if task is None:
        return ()
    labels = config.get("id2label")
    if task is TaskType.CLASSIFICATION and isinstance(labels, Mapping) and len(labels) == 1:
        return (TaskType.RERANKING, task)
    return (task,)


def _takes_images(config: Any) -> bool:
    return _class_of(config).endswith(_IMAGE_HEAD)


def _class_of(config: Any) -> str:
    """The name of the model's class as its configuration tells; empty where it does not."""
    architectures = config.get("architectures") if isinstance(config, Mapping) else None
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    return name if isinstance(name, str) else ""


def labels_of(config: Any) -> tuple[str, ...]:
    """The labels of a classifier in the order of its scores, as its engine tells them; none where they are not one for
    each number from 0 on, or too many or too long to keep."""
    named = config.get("id2label") if isinstance(config, Mapping) else None
    classifies = _takes_images(config) or TaskType.CLASSIFICATION in _head_of(config)
    if not classifies or not isinstance(named, Mapping) or not len(named) <= MAX_LABELS:
        return ()
    labels = [named.get(str(number)) for number in range(len(named))]
    if all(isinstance(label, str) and len(label) <= MAX_LABEL_CHARACTERS and label.isprintable() for label in labels):
        return tuple(map(str, labels))
    return ()


def missing_weights(engine: str, paths: Collection[str]) -> str | None:
    """What an engine needs and cannot find, as far as names tell: weights at all, and every shard of them."""
    if engine not in (SENTENCE_TRANSFORMERS, TRANSFORMERS, TRANSFORMERS_IMAGES):
        return None
    if not any(path.endswith(".safetensors") for path in paths):
        return "model.safetensors"
    for path in sorted(paths):
        if shard := _SHARD.fullmatch(path):
            stem, count = shard[1], shard[2]
            wanted = (f"{stem}-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1))
            if missing := next((name for name in (stem + INDEX_ENDING, *wanted) if name not in paths), None):
                return missing
    return None


def config_paths(paths: Collection[str]) -> list[str]:
    """The JSON files that `limits_of` and `check_weights` want to see."""
    names = {MODULES_FILE, "config.json", "tokenizer_config.json", *_LENGTH_FILES}
    return sorted(path for path in paths if path.rsplit("/", 1)[-1] in names or path.endswith(INDEX_ENDING))


def check_weights(configs: Mapping[str, Any], paths: Collection[str]) -> None:
    """Raises InvalidModelFiles when a module that computes with weights has none, or an index names a file that is not
    there: such a version could never be loaded."""
    for folder, kind in _modules(configs):
        if kind in _MODULES_WITH_WEIGHTS and not any(
            path.endswith(".safetensors") and path.rpartition("/")[0] == folder for path in paths
        ):
            _refuse(f"{MODULES_FILE} names a {kind}", f"{folder}/model.safetensors" if folder else "model.safetensors")
    for index, content in configs.items():
        shards = content.get("weight_map") if index.endswith(INDEX_ENDING) and isinstance(content, Mapping) else None
        for shard in sorted({*map(str, shards.values())}) if isinstance(shards, Mapping) else ():
            folder = index.rpartition("/")[0]
            if (path := f"{folder}/{shard}" if folder else shard) not in paths:
                _refuse(f"{index} names it", path)


def _refuse(why: str, missing: str) -> None:
    raise InvalidModelFiles(f"{missing} is missing: {why}", file=missing)


def check_modules(modules: Any) -> None:
    """Raises UnsafeFile when `modules.json` names classes outside sentence-transformers: they would be code to run."""
    for module in modules if isinstance(modules, list) else ():
        kind = module.get("type") if isinstance(module, Mapping) else None
        if not (isinstance(kind, str) and kind.startswith(TRUSTED_MODULES)):
            raise UnsafeFile(f"{MODULES_FILE} names the class {kind!r}; only those of sentence-transformers are run")


def limits_of(configs: Mapping[str, Any]) -> ModelLimits:
    """Longest input in tokens and length of an embedding, from the parsed files of `config_paths`."""
    if not isinstance(configs.get(MODULES_FILE), list):
        return ModelLimits()
    folders = _modules(configs)
    return ModelLimits(
        max_input_tokens=_max_input_tokens(configs, folders[0][0] if folders else ""),
        embedding_dimensions=_embedding_dimensions(configs, folders),
    )


def _modules(configs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Folder and class of each module, in order."""
    modules = configs.get(MODULES_FILE)
    return [
        (module.get("path", "").strip("/"), str(module.get("type", "")).rsplit(".", 1)[-1])
        for module in (modules if isinstance(modules, list) else ())
        if isinstance(module, Mapping) and isinstance(module.get("path", ""), str)
    ]


def _max_input_tokens(configs: Mapping[str, Any], folder: str) -> int | None:
    for name in _LENGTH_FILES:
        if known := _positive(_config(configs, folder, name), "max_seq_length"):
            return known
    # A tokenizer without a limit says 1e30, which _positive drops.
    bounds = [
        _positive(_config(configs, folder, "config.json"), "max_position_embeddings"),
        _positive(_config(configs, folder, "tokenizer_config.json"), "model_max_length"),
    ]
    return min((bound for bound in bounds if bound), default=None)


def _embedding_dimensions(configs: Mapping[str, Any], folders: list[tuple[str, str]]) -> int | None:
    dimensions = _positive(_config(configs, folders[0][0], "config.json"), "hidden_size") if folders else None
    for folder, kind in folders:
        config = _config(configs, folder, "config.json")
        if kind == "Pooling":
            width = _positive(config, "embedding_dimension") or _positive(config, "word_embedding_dimension")
            dimensions = width * _pooling_modes(config) if width else dimensions
        elif kind == "Dense":
            dimensions = _positive(config, "out_features") or dimensions
    return dimensions


def _pooling_modes(config: Mapping[str, Any]) -> int:
    modes = config.get("pooling_mode")
    if isinstance(modes, list):
        return max(1, len(modes))
    return 1 if isinstance(modes, str) else max(1, sum(config.get(flag) is True for flag in _POOLING_FLAGS))


def _config(configs: Mapping[str, Any], folder: str, name: str) -> Mapping[str, Any]:
    config = configs.get(f"{folder}/{name}" if folder else name)
    return config if isinstance(config, Mapping) else {}


def _positive(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if type(value) is int and 0 < value < 2**31 else None


# Facts of a version.

DTYPE_BYTES: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
        **dict.fromkeys(("F32", "I32", "U32"), 4),
        **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
        **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    }
)
"""Bytes of one number, by its name in safetensors."""
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""What an engine can hold in another precision than it is stored in."""
_SMALL = frozenset({"F8_E4M3", "F8_E5M2", "I8"})
_HELD_AS = ("F32", "BF16", "F16")
_CONFIG_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_TOKENIZER_FILES = frozenset(
    [
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    ]
)
_SIZES = {
    "context_length": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocabulary_size": ("vocab_size",),
}
"""What architectures call them, most common first."""
_NESTED = ("text_config", "llm_config", "language_config")
"""Where models of several kinds keep the sizes of their language part."""


class Weights(Value):
    """Numbers and bytes of tensors by the dtype they are stored in."""

    elements: ReadOnly[int] = Field(default_factory=dict)
    stored_bytes: ReadOnly[int] = Field(default_factory=dict)

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            elements=_summed(self.elements, other.elements), stored_bytes=_summed(self.stored_bytes, other.stored_bytes)
        )


class Card(Value):
    """A README: its text, and what its front matter says of the model."""

    text: str = ""
    license: str = ""
    tags: tuple[str, ...] = ()
    base_model: str = ""


class Facts(Value):
    """All that the files of a version tell."""

    metadata: ModelMetadata = Field(default_factory=ModelMetadata)
    limits: ModelLimits = Field(default_factory=ModelLimits)
    base_model: str = ""
    """As the card says: `models/{org}/{repo}`."""


def weight_paths(paths: Collection[str], configs: Mapping[str, Any]) -> list[str]:
    """The safetensors files that hold the weights once: where a folder has an index, its shards; else its
    `model.safetensors`; else all it has. Exports are second copies."""
    by_folder: dict[str, list[str]] = {}
    for path in sorted(paths):
        if path.endswith(".safetensors") and not path.startswith(_EXPORT_FOLDERS):
            by_folder.setdefault(path.rpartition("/")[0], []).append(path)
    chosen: list[str] = []
    for folder, found in by_folder.items():
        prefix = f"{folder}/" if folder else ""
        index = configs.get(f"{prefix}model{INDEX_ENDING}")
        shards = index.get("weight_map") if isinstance(index, Mapping) else None
        if isinstance(shards, Mapping):
            named = {prefix + str(shard) for shard in shards.values()}
            chosen += [path for path in found if path in named]
        else:
            whole = f"{prefix}model.safetensors"
            chosen += [whole] if whole in found else found
    return chosen


def metadata_of(configs: Mapping[str, Any], digests: Mapping[str, str], weights: Weights, card: Card) -> ModelMetadata:
    """What all of it says together. `digests` is sha256 by path."""
    folders = _modules(configs)
    folder = folders[0][0] if folders else ""
    config = _config(configs, folder, "config.json")
    quantization = _quantization(config, digests, weights)
    count = _parameter_count(weights, quantization)
    architectures = config.get("architectures")
    return ModelMetadata(
        architecture=word_of(architectures[0]) if isinstance(architectures, list) and architectures else None,
        family=word_of(config.get("model_type")),
        parameter_count=count,
        dtype=_dtype(weights, config),
        quantization=quantization,
        license=card.license or None,
        model_card=card.text or None,
        tokenizer_digest=_tokenizer_digest(digests, folder),
        chat_template_digest=_chat_template_digest(configs, digests, folder),
        weight_bytes=_weight_bytes(weights),
        tags=card.tags,
        modality="image" if _takes_images(config) else None,
        labels=labels_of(config),
        **{field: _size(config, keys) for field, keys in _SIZES.items()},
    )


def word_of(value: Any) -> str | None:
    """A short printable text, as it may go into the database; None for anything else."""
    text = value.strip() if isinstance(value, str) else ""
    return text if 0 < len(text) <= 100 and text.isprintable() else None


def _size(config: Mapping[str, Any], keys: Collection[str]) -> int | None:
    nested = [part for name in _NESTED if isinstance(part := config.get(name), Mapping)]
    for key in keys:
        for part in (config, *nested):
            if found := _positive(part, key):
                return found
    return None


def _quantization(config: Mapping[str, Any], digests: Mapping[str, str], weights: Weights) -> str | None:
    given = config.get("quantization_config")
    if isinstance(given, Mapping):
        if given.get("load_in_8bit") is True:
            return "int8"
        if given.get("load_in_4bit") is True:
            return "int4"
        method = word_of(given.get("quant_method"))
        return method.lower() if method else None
    if any(path.endswith(".gguf") for path in digests):
        return "gguf"
    return "none" if weights.elements else None


def _parameter_count(weights: Weights, quantization: str | None) -> int | None:
    """None where it cannot be told: several parameters packed into one number, or a dtype that nobody here knows."""
    packed = quantization != "none" and {"I32", "U32", "U8"} & weights.elements.keys()
    if not weights.elements or packed or weights.elements.keys() - DTYPE_BYTES.keys():
        return None
    return sum(count for dtype, count in weights.elements.items() if dtype in _FLOATS | _SMALL) or None


def _dtype(weights: Weights, config: Mapping[str, Any]) -> str | None:
    if weights.elements:
        return max(sorted(weights.stored_bytes), key=lambda dtype: weights.elements[dtype])
    given = config.get("dtype") or config.get("torch_dtype")
    return _CONFIG_DTYPES.get(given) if isinstance(given, str) else None


def _weight_bytes(weights: Weights) -> dict[str, int]:
    """All of it in memory, were its floating point numbers held in each precision; the rest stays as it is stored."""
    floats = sum(count for dtype, count in weights.elements.items() if dtype in _FLOATS)
    rest = sum(held for dtype, held in weights.stored_bytes.items() if dtype not in _FLOATS)
    found = {dtype: floats * DTYPE_BYTES[dtype] + rest for dtype in _HELD_AS} if floats else {}
    if weights.elements and (stored := _dtype(weights, {})) not in found:
        found[str(stored)] = sum(weights.stored_bytes.values())
    return found


def _tokenizer_digest(digests: Mapping[str, str], folder: str) -> str | None:
    """Over the files that a tokenizer is made of; those in the folder of the weights or, where it has none, above."""
    for place in dict.fromkeys((folder, "")):
        prefix = f"{place}/" if place else ""
        found = [(name, digests[prefix + name]) for name in sorted(_TOKENIZER_FILES) if prefix + name in digests]
        if found:
            return _sha256("".join(f"{digest} {name}\n" for name, digest in found))
    return None


def _chat_template_digest(configs: Mapping[str, Any], digests: Mapping[str, str], folder: str) -> str | None:
    prefix = f"{folder}/" if folder else ""
    for name in ("chat_template.jinja", "chat_template.json"):
        if prefix + name in digests:
            return digests[prefix + name]
    template = _config(configs, folder, "tokenizer_config.json").get("chat_template")
    if isinstance(template, str):
        return _sha256(template)
    return _sha256(json.dumps(template, sort_keys=True)) if isinstance(template, list) else None


def _sha256(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


def _summed(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {key: left.get(key, 0) + right.get(key, 0) for key in sorted({*left, *right})}
