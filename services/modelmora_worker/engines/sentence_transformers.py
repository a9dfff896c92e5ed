"""Text embeddings by sentence-transformers: on torch in fp32, the exact profile, and by its faster profiles.

The model's own pipeline (modules.json: transformer, pooling, dense, normalise …) computes; this file only decides what
it computes together. In fp32 padding is what costs: throughput in tokens hardly depends on how many rows are in a
forward pass, so texts are sorted by length and cut where padding and the fixed cost of one more pass balance (`cut`).
In torch/bf16 (packed.py) there is none, and texts go in their own order until a pass is full (`fill`). With OpenVINO
and ONNX Runtime (padded.py) they are sorted and cut like in fp32. Rows return pass by pass. The exact model is there
with any profile, for requests that demand it: its weights are mapped from their file, so each profile adds but its own
form of them. A faster profile is tried at each load: texts computed together must come out as the exact pipeline gives
them alone. Only local files, only safetensors, no code from the model's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from modelmora import errors

from modelmora_worker.engines import base, conversions, onnx, openvino
from modelmora_worker.engines.lean_import import import_library
from modelmora_worker.engines.packed import PackedPipeline
from modelmora_worker.engines.padded import PaddedPipeline, rounded
from modelmora_worker.engines.read_once import tokenizer_files
from modelmora_worker.engines.tokens import encode, rows_of, texts_of

PASS_TOKENS: Final = 28
"""Fixed cost of a forward pass in tokens: 5 ms against 6,200 tokens a second, MiniLM on two cores."""
PADDED_TOKENS: Final = 512
PACKED_TOKENS: Final = 1024
"""Tokens in a pass by default: about 90 ms of either profile. Larger ones are hardly faster and keep others waiting."""
MOST_TRACKS: Final = 4
"""More would wait for each other in the interpreter. With more cores each track has several."""
TWICE_BYTES: Final = 256 << 20
"""Weights up to this are laid out twice where a library wants that for tracks."""
MAX_BATCH_TOKENS: Final = 8192
MAX_BATCH_ENTRIES: Final = 256
NO_LIMIT_TOKENS: Final = 1 << 20
TRIAL_TOKENS: Final = 16
_FAILURES = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError)
"""What libraries raise of an encoder that they cannot compute. Those of ONNX Runtime are RuntimeErrors."""
TRIAL_TEXT: Final = "the queue of a model holds what nobody has computed yet, and every text in it waits alone; " * 8
_LEAST_COSINE: Final = 0.9995
"""In the trial of a profile that is not packed."""
_BACKENDS: Final[Mapping[str, tuple[Any, str]]] = {
    "openvino": (openvino.Encoder, "openvino"),
    "onnx": (onnx.Encoder, "onnxruntime"),
}
"""Encoders that are written out, and the library that computes each."""
_LIBRARIES = ("torch", "sentence-transformers", "transformers", "tokenizers")
_WEIGHTS: Final = (
    *("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"),
    *(f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")),
    *("embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"),
    *(
        f"encoder.layer.{number}.{part}.{kind}"
        for number in range(24)
        for part in (
            *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
            *("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
        )
        for kind in ("weight", "bias")
    ),
)
"""Their names in BERT and its kin, which most embedding models are."""


class SentenceTransformersEngine:
    """See the table row for its options."""

    batching = base.Batching.STATIC

    def __init__(self) -> None:
        self._torch: Any = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._static = False
        self._prompts: Mapping[str, str] = {}
        self._default_prompt = ""
        self._prompt_tokens: Mapping[str, int] = {}
        """Of each prompt, where pooling leaves it out; else empty."""
        self._max_input_tokens = 0
        self._dimensions = 0
        self._padded_tokens = PADDED_TOKENS
        self._packed_tokens = PACKED_TOKENS
        self._fast: PackedPipeline | PaddedPipeline | None = None
        """What computes unless the exact profile is demanded; None: that is what was loaded."""
        self._exact_profile = base.Profile("torch", "fp32")
        self._threads = self._exact_tracks = self.tracks = 1
        self.token_dimensions = 0

    def load(self, spec: base.EngineSpec, progress: Callable[[str, int, int], None]) -> base.Footprint:
        row = base.TABLE["sentence_transformers"]
        options = base.read_options(row, spec.options)
        backend, precision = _check_spec(row, spec)
        folder = Path(spec.artifact_path)
        weights_bytes = check_folder(folder)
        progress("libraries", 0, weights_bytes)
        base.set_environment(row)
        library = import_library()
        import torch
        import transformers
        from safetensors import SafetensorError

        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        threads = spec.cpu_threads or usable_cores()
        # A load is hardly faster with more, and takes them from those who answer.
        torch.set_num_threads(1)
        progress("weights", 0, weights_bytes)
        opening: Future[Any] | None = None
        if backend != "torch" and (there := conversions.found(backend, folder, spec.cache_path)) is not None:
            # Beside the load of the exact model: neither has much for two cores to do.
            thread = ThreadPoolExecutor(1, "encoder")
            opening = thread.submit(_BACKENDS[backend][0], there, precision, threads)
            thread.shutdown(wait=False)
        try:
            with tokenizer_files():
                self._model = library.SentenceTransformer(
                    str(folder),
                    device="cpu",
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": True, "dtype": torch.float32},
                )
            self._model.float().eval()
            self._read_model(options["max_input_tokens"])
            self._padded_tokens = options["micro_batch_tokens"] or PADDED_TOKENS
            self._packed_tokens = options["micro_batch_tokens"] or PACKED_TOKENS
            self._dimensions = self._warm_up()
            torch.set_num_threads(threads)
            self._threads = threads
            if backend != "torch":
                told = lambda: progress("converting", 0, weights_bytes)  # noqa: E731
                conversion, passing = conversions.converted(backend, folder, spec.cache_path, told)
                try:
                    encoder = opening.result() if opening else _BACKENDS[backend][0](conversion, precision, threads)
                    self._fast = PaddedPipeline(self._model, encoder, conversions.inputs_of(conversion))
                    self._try_out(self._fast, conversion)
                finally:
                    if passing:
                        shutil.rmtree(conversion, ignore_errors=True)
            elif precision == "bf16":
                rows = self._trial()
                self._fast = PackedPipeline(self._model, rows, self._alone(rows))
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError
        ) as error:  # fmt: skip
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise errors.InvalidModelFiles(f"{type(error).__name__}: {error}") from error
        self._exact_tracks = 1 if self._static else min(threads, MOST_TRACKS)
        if backend == "torch" or (backend == "openvino" and weights_bytes <= TWICE_BYTES):
            self.tracks = self._exact_tracks
        progress("ready", weights_bytes, weights_bytes)
        libraries = library_versions()
        self._exact_profile = base.Profile("torch", "fp32", libraries, "padded")
        return base.Footprint(
            memory_bytes={},
            profile=self._profile(backend, precision, libraries),
            max_input_tokens=self._max_input_tokens,
            embedding_dimensions=self._dimensions,
            max_batch_tokens=options["max_batch_tokens"] or MAX_BATCH_TOKENS,
            max_batch_entries=options["max_batch_entries"] or MAX_BATCH_ENTRIES,
            prompts=self._prompts,
            default_prompt=self._default_prompt,
        )

    def prepare(self, texts: Sequence[base.Text], exact: bool = False) -> base.Prepared:
        prepared = base.Prepared()
        limit = self._max_input_tokens
        rows: list[tuple[int, bool, Any, base.Text]] = []
        for position, (entry, (tokens, count)) in enumerate(zip(texts, self._encode(texts), strict=True)):
            if entry.prompt and entry.prompt not in self._prompts:
                prepared.failed.append((position, base.unknown_prompt(entry.prompt, self._prompts)))
            elif count > limit and not entry.truncate:
                error = errors.TextTooLong(f"the text has {count} tokens, the model takes {limit}")
                prepared.failed.append((position, error))
            elif entry.dimensions > self._dimensions:
                prepared.failed.append((position, base.too_many_dimensions(entry.dimensions, self._dimensions)))
            else:
                rows.append((position, count > limit, tokens, entry))
        for group in self._groups(rows):
            self._cut(group, exact, prepared)
        return prepared

    def _groups(self, rows: list[tuple[int, bool, Any, base.Text]]) -> Sequence[list[tuple[int, bool, Any, base.Text]]]:
        """Rows that may be computed together: pooling knows one length of a prompt to leave out."""
        if not self._prompt_tokens:
            return [rows]
        groups: dict[str, list[tuple[int, bool, Any, base.Text]]] = {}
        for row in rows:
            groups.setdefault(row[3].prompt or self._default_prompt, []).append(row)
        return list(groups.values())

    def _cut(self, rows: list[tuple[int, bool, Any, base.Text]], exact: bool, prepared: base.Prepared) -> None:
        """Adds the passes of these rows."""
        packed = not exact and isinstance(self._fast, PackedPipeline)
        budget = self._packed_tokens if packed else self._padded_tokens
        # Exact rows are computed together as any worker of the model would, with whatever profile.
        tracks = self._exact_tracks if exact else self.tracks
        if not packed:
            rows.sort(key=lambda row: len(row[2]["input_ids"]))
        lengths = [len(tokens["input_ids"]) for _, _, tokens, _ in rows]
        if packed:
            ends = fill(lengths, share(lengths, budget, tracks))
        else:
            padded = lengths if exact or self._fast is None else [rounded(length) for length in lengths]
            ends = cut(padded, share(padded, budget, tracks), PASS_TOKENS)
        start = 0
        for end in ends:
            batch = base.MicroBatch(
                positions=[position for position, _, _, _ in rows[start:end]],
                input_tokens=lengths[start:end],
                truncated=[truncated for _, truncated, _, _ in rows[start:end]],
                items=[(tokens, entry) for _, _, tokens, entry in rows[start:end]],
                exact=exact,
            )
            prepared.micro_batches.append(batch)
            start = end

    def open_tracks(self) -> None:
        if isinstance(self._fast, PaddedPipeline):
            self._fast.open_tracks(self.tracks)

    def infer(self, batch: base.MicroBatch, track: int | None = None) -> base.Rows:
        if self.tracks > 1:
            # What torch reads when it computes is the thread's own, or that of whoever has set it last.
            self._torch.set_num_threads(self._threads if track is None else self._threads // self.tracks)
        tokens = [tokens for tokens, _ in batch.items]
        prompt_tokens = self._prompt_tokens.get(batch.items[0][1].prompt or self._default_prompt)
        unit = False
        if self._fast is None or batch.exact:
            vectors, profile = self._forward(tokens, prompt_tokens), self._exact_profile if self._fast else None
        else:
            profile = None
            if isinstance(self._fast, PaddedPipeline):
                vectors, unit = self._fast(tokens, prompt_tokens, track), self._fast.unit
            else:
                vectors = self._fast(tokens, prompt_tokens)
        normalise = self._torch.nn.functional.normalize
        first = batch.items[0][1]
        if all(e.dimensions == first.dimensions and e.normalize == first.normalize for _, e in batch.items):
            if first.dimensions and first.dimensions < self._dimensions:
                vectors, unit = vectors[:, : first.dimensions], False
            if first.normalize and not unit:
                vectors = normalise(vectors, dim=-1)
            return base.Rows(_bytes(vectors), [vectors.shape[1]] * len(batch.items), profile=profile)
        parts, dimensions = [], []
        for vector, (_, entry) in zip(vectors, batch.items, strict=True):
            vector = vector[: entry.dimensions or self._dimensions]
            parts.append(_bytes(normalise(vector, dim=-1) if entry.normalize else vector))
            dimensions.append(vector.shape[0])
        return base.Rows(b"".join(parts), dimensions, profile=profile)

    def tokens(self, texts: Sequence[base.Text]) -> Sequence[bytes]:
        return rows_of(self._tokenizer, texts)

    def texts(self, entries: Sequence[base.Text]) -> Sequence[bytes]:
        return texts_of(self._tokenizer, entries)

    def token_vectors(self, batch: base.MicroBatch) -> base.Rows:
        found = {} if self._static else self._outputs([tokens for tokens, _ in batch.items])
        if "token_embeddings" not in found:
            raise errors.TaskNotSupported("the model has no vectors of single tokens")
        rows = [
            vectors[mask.bool()].float()
            for vectors, mask in zip(found["token_embeddings"], found["attention_mask"], strict=True)
        ]
        return base.Rows(
            b"".join(map(_bytes, rows)),
            [row.numel() for row in rows],
            profile=self._exact_profile if self._fast else None,
        )

    def stream(self, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        raise errors.TaskNotSupported("engine sentence_transformers does not generate")

    def close(self) -> None:
        self._model = self._tokenizer = self._fast = None

    # Helpers.

    def _read_model(self, max_input_tokens: int | None) -> None:
        """Takes from the model what `prepare` needs. Raises InvalidModelFiles for a pipeline that takes no text."""
        first = self._model[0]
        kind = type(first).__name__
        self._static = kind == "StaticEmbedding"
        if not self._static and (kind != "Transformer" or set(first.modality_config) != {"text"}):
            raise errors.InvalidModelFiles(f"the pipeline begins with {kind}, which this engine cannot give text to")
        self._tokenizer = first.tokenizer
        if self._tokenizer is None:
            raise errors.InvalidModelFiles("the model has no tokenizer")
        own = (
            NO_LIMIT_TOKENS
            if self._static
            else min(int(self._model.max_seq_length or NO_LIMIT_TOKENS), NO_LIMIT_TOKENS)
        )
        self._max_input_tokens = min(own, max_input_tokens or own)
        self._prompts = dict(self._model.prompts)
        self._default_prompt = self._model.default_prompt_name or ""
        if self._static:
            return
        # We pad what is tokenised already, which transformers advises against for lack of knowing why.
        self._tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        if not all(getattr(module, "include_prompt", True) for module in self._model):
            self._prompt_tokens = {
                name: first._get_prompt_length(prompt) for name, prompt in self._prompts.items() if prompt
            }

    def _prompted(self, entry: base.Text) -> str:
        return self._prompts.get(entry.prompt or self._default_prompt, "") + entry.text

    def _encode(self, texts: Sequence[base.Text]) -> list[tuple[dict[str, Any], int]]:
        """Tokens of each text with its prompt, without padding, and how many there are of the whole."""
        if not texts:
            return []
        prompted = [self._prompted(entry) for entry in texts]
        limits = [self._max_input_tokens if entry.truncate else 0 for entry in texts]
        if self._static:
            ids = [encoding.ids for encoding in self._tokenizer.encode_batch(prompted, add_special_tokens=False)]
            return [({"input_ids": row[: limit or None]}, len(row)) for row, limit in zip(ids, limits, strict=True)]
        return encode(self._tokenizer, prompted, None, limits)

    def _truncated(self, text: str) -> Any:
        if self._static:
            (found,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
            return {"input_ids": found.ids[: self._max_input_tokens]}
        return dict(
            self._tokenizer(
                text,
                truncation="longest_first",
                max_length=self._max_input_tokens,
                padding=False,
                return_attention_mask=False,
                verbose=False,
            )
        )

    def _forward(self, rows: Sequence[Any], prompt_tokens: int | None = None) -> Any:
        """Vectors of these rows through the model's pipeline, float32 [rows, dimensions]."""
        return self._outputs(rows, prompt_tokens)["sentence_embedding"].float()

    def _outputs(self, rows: Sequence[Any], prompt_tokens: int | None = None) -> Any:
        """Everything that the pipeline says of these rows, by name."""
        torch = self._torch
        if self._static:
            ids = [row["input_ids"] for row in rows]
            starts = [0]
            for row in ids[:-1]:
                starts.append(starts[-1] + len(row))
            features = {
                "input_ids": torch.tensor([token for row in ids for token in row], dtype=torch.long),
                "offsets": torch.tensor(starts, dtype=torch.long),
            }
        else:
            features = dict(self._tokenizer.pad(list(rows), padding=True, return_tensors="pt"))
            features["modality"] = "text"
            if prompt_tokens is not None:
                features["prompt_length"] = prompt_tokens
        with torch.inference_mode():
            return self._model(features)

    def _warm_up(self) -> int:
        """One pass of one word, so that the first request does not pay for what is set up lazily. The dimensions."""
        found = self._outputs([self._truncated("warm")])
        if not self._static and "token_embeddings" in found:
            self.token_dimensions = int(found["token_embeddings"].shape[-1])
        return int(found["sentence_embedding"].shape[1])

    def _trial(self) -> list[Any]:
        """Tokenised texts of several lengths."""
        longest = min(TRIAL_TOKENS, self._max_input_tokens // 2)
        words = TRIAL_TEXT.split()
        return [self._truncated(" ".join(words[:count])) for count in (longest, 1, longest // 2, 3)]

    def _alone(self, rows: Sequence[Any]) -> Any:
        """Exact vectors of rows, each computed alone."""
        return self._torch.cat([self._forward([row]) for row in rows])

    def _exact_of(self, rows: Sequence[Any], conversion: Path) -> Any:
        """`_alone`, computed once: what lies in a conversion is of these very files and libraries."""
        asked = json.dumps([[list(row["input_ids"]) for row in rows], self._dimensions]).encode()
        path = conversion / f"exact-{hashlib.sha256(asked).hexdigest()[:24]}.vectors"
        shape = (len(rows), self._dimensions)
        content = conversions.kept(path)
        if content is not None and len(content) == 4 * shape[0] * shape[1]:
            return self._torch.frombuffer(bytearray(content), dtype=self._torch.float32).reshape(shape)
        vectors = self._alone(rows)
        conversions.keep(path, _bytes(vectors))
        return vectors

    def _try_out(self, pipeline: Callable[[Sequence[Any]], Any], conversion: Path) -> None:
        """Raises ProfileNotSupported where texts together come out otherwise than by the exact pipeline alone."""
        rows = self._trial()
        try:
            found = pipeline(rows)
        except _FAILURES as error:
            raise errors.ProfileNotSupported(f"its encoder cannot be computed: {error}"[:1000]) from error
        exact = self._exact_of(rows, conversion)
        cosine = self._torch.nn.functional.cosine_similarity(found, exact, dim=-1).min().item()
        if not cosine >= _LEAST_COSINE:
            raise errors.ProfileNotSupported(
                f"a text comes out otherwise than by the exact profile: cosine {cosine:.4f}"
            )

    def _profile(self, backend: str, precision: str, libraries: Mapping[str, str]) -> base.Profile:
        """What computes by default."""
        if self._fast is None:
            return self._exact_profile
        if backend == "torch":
            return base.Profile(backend, precision, libraries, "packed")
        library = _BACKENDS[backend][1]
        return base.Profile(backend, precision, {**libraries, library: version(library)}, "padded")


def share(lengths: Sequence[int], budget_tokens: int, tracks: int) -> int:
    """Tokens in a pass where several tracks compute: there is one for each track where there are texts for it, and none
    takes much longer than one of `budget_tokens` on two cores would."""
    if tracks < 2 or len(lengths) < 2:
        return budget_tokens
    return min(-(-3 * budget_tokens // 4), -(-sum(lengths) // tracks))


def cut(lengths: Sequence[int], budget_tokens: int, pass_tokens: int) -> list[int]:
    """Where to cut rows of ascending lengths into passes: the end index of each.

    Minimises the padded tokens plus `pass_tokens` for each pass, exactly, by dynamic programming; no pass has more than
    `budget_tokens` padded tokens unless it is one row.
    """
    count = len(lengths)
    best = [0.0] + [float("inf")] * count
    begin = [0] * (count + 1)
    for end in range(1, count + 1):
        longest = lengths[end - 1]
        for start in range(end - 1, -1, -1):
            padded = (end - start) * longest
            if padded > budget_tokens and end - start > 1:
                break
            cost = best[start] + padded + pass_tokens
            if cost < best[end]:
                best[end], begin[end] = cost, start
    ends = []
    while count:
        ends.append(count)
        count = begin[count]
    return ends[::-1]


def fill(lengths: Sequence[int], budget_tokens: int) -> list[int]:
    """Where to cut rows into passes of at most `budget_tokens`, or one row, without changing their order: the end index
    of each."""
    ends, tokens = [], 0
    for index, length in enumerate(lengths):
        if tokens and tokens + length > budget_tokens:
            ends.append(index)
            tokens = 0
        tokens += length
    return [*ends, len(lengths)] if lengths else []


@cache
def library_versions() -> Mapping[str, str]:
    """Of what computes. Each is read from a file."""
    return {name: version(name) for name in _LIBRARIES}


def fill_caches() -> None:
    """What transformers makes once per process, 0.4 s of compiling patterns at the first load, made in the fork server.
    It compiles one more for each weight at each load, unless the cache of `re` holds it: 0.03 s. A release that does it
    another way loads as well, later."""
    re._MAXCACHE = 8192  # type: ignore[attr-defined]
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:
        return
    get_checkpoint_conversion_mapping("bert")
    for name in _WEIGHTS:
        WeightRenaming(name, name)
    library_versions()


def check_folder(folder: Path) -> int:
    """Bytes of the weights of a model folder we may load. Raises InvalidModelFiles, naming the file."""
    if not folder.is_dir():
        raise errors.InvalidModelFiles(f"no model folder: {folder.name or 'the artifact path is empty'}")
    modules = folder / "modules.json"
    if modules.is_file():
        try:
            kinds = [module["type"] for module in json.loads(modules.read_text())]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise errors.InvalidModelFiles(f"modules.json: {error}") from error
        for kind in kinds:
            # Anything else would be code from the folder.
            if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
                raise errors.InvalidModelFiles(f"modules.json: module {kind!r} is not part of sentence-transformers")
    elif not (folder / "config.json").is_file():
        raise errors.InvalidModelFiles("neither modules.json nor config.json is there")
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if not weights:
        raise errors.InvalidModelFiles("no *.safetensors file is there; pickled weights are not loaded")
    return weights


def usable_cores() -> int:
    """Cores this process may use: affinity, and the cgroup's quota where there is one."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, _, period = Path("/sys/fs/cgroup/cpu.max").read_text().partition(" ")
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cores


def _check_spec(row: base.EngineRow, spec: base.EngineSpec) -> tuple[str, str]:
    """The backend and the precision to compute with. Raises InvalidArgument, EngineUnavailable."""
    if spec.dtype not in ("", "fp32", "float32"):
        raise errors.InvalidArgument.at("dtype", f"this engine computes in fp32, not {spec.dtype}")
    for device, _ in spec.devices:
        if device not in ("host", "cpu"):
            raise errors.InvalidArgument.at("devices", f"this engine computes on the host, not on {device}")
    profile = spec.profile or base.Profile("", "")
    backend, precision = profile.backend or "torch", profile.precision or "fp32"
    if f"{backend}/{precision}" not in row.profiles:
        raise errors.InvalidArgument.at("engine_profile", f"this engine has the profiles {', '.join(row.profiles)}")
    if (missing := base.missing_profiles(row).get(f"{backend}/{precision}")) is not None:
        raise errors.EngineUnavailable(missing, engine=row.name, extra=backend)
    return backend, precision


def _bytes(vectors: Any) -> bytes:
    data: bytes = vectors.contiguous().numpy().astype("<f4", copy=False).tobytes()
    return data
