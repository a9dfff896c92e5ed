"""Text classification and reranking by transformers on torch, fp32.

A reranker is a classifier of pairs with one label. Like the exact profile of sentence_transformers: texts are sorted by
length and cut where padding and the fixed cost of one more pass balance, rows return pass by pass. Only local files,
only safetensors, no code from the model's folder; a folder whose weights lack a part that the task needs is refused,
because transformers would make that part up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from modelmora import errors

from modelmora_worker.engines import base
from modelmora_worker.engines.sentence_transformers import (
    MAX_BATCH_ENTRIES,
    MAX_BATCH_TOKENS,
    NO_LIMIT_TOKENS,
    PASS_TOKENS,
    check_folder,
    cut,
    usable_cores,
)

_LIBRARIES = ("torch", "transformers", "tokenizers")
_PADDED_POSITIONS: Final = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer"})
"""Model types whose positions begin after that of padding."""


class TransformersEngine:
    """See the table row for its options."""

    batching = base.Batching.STATIC

    def __init__(self) -> None:
        self._torch: Any = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._task = ""
        self._independent = False
        """Several labels may be right at once, or there is one only: each score is a probability of its own."""
        self._max_input_tokens = 0
        self._pass_tokens = 0

    def load(self, spec: base.EngineSpec, progress: Callable[[str, int, int], None]) -> base.Footprint:
        row = base.TABLE["transformers"]
        options = base.read_options(row, spec.options)
        self._task = base.task_of(row, spec)
        _check_spec(spec)
        folder = Path(spec.artifact_path)
        weights_bytes = check_folder(folder)
        progress("libraries", 0, weights_bytes)
        base.set_environment(row)
        import torch
        import transformers
        from safetensors import SafetensorError

        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        torch.set_num_threads(spec.cpu_threads or usable_cores())
        progress("weights", 0, weights_bytes)
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = transformers.AutoConfig.from_pretrained(str(folder), **local)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), use_fast=True, **local)
            labels = self._read_config(config, options["max_input_tokens"])
            self._model, told = transformers.AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **local,
            )
            _check_weights(told)
            self._model.float().eval()
            self._pass_tokens = options["micro_batch_tokens"]
            self._warm_up()
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError
        ) as error:  # fmt: skip
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise errors.InvalidModelFiles(f"{type(error).__name__}: {error}") from error
        progress("ready", weights_bytes, weights_bytes)
        return base.Footprint(
            memory_bytes={},
            profile=base.Profile("torch", "fp32", {name: version(name) for name in _LIBRARIES}, "padded"),
            max_input_tokens=self._max_input_tokens,
            embedding_dimensions=0,
            max_batch_tokens=max(options["max_batch_tokens"] or MAX_BATCH_TOKENS, self._max_input_tokens),
            max_batch_entries=options["max_batch_entries"] or MAX_BATCH_ENTRIES,
            labels=labels,
        )

    def prepare(self, texts: Sequence[base.Text], exact: bool = False) -> base.Prepared:
        prepared = base.Prepared()
        limit = self._max_input_tokens
        rows: list[tuple[int, bool, Any, base.Text]] = []
        for position, (entry, tokens) in enumerate(zip(texts, self._encode(texts), strict=True)):
            count = len(tokens["input_ids"])
            if self._task == "reranking" and not entry.pair:
                prepared.failed.append((position, errors.InvalidArgument("there is no text to rank")))
            elif count <= limit:
                rows.append((position, False, tokens, entry))
            elif entry.truncate:
                rows.append((position, True, self._truncated(entry.text, entry.pair), entry))
            else:
                what = "query and text have" if self._task == "reranking" else "the text has"
                error = errors.TextTooLong(f"{what} {count} tokens, the model takes {limit}")
                prepared.failed.append((position, error))
        rows.sort(key=lambda row: len(row[2]["input_ids"]))
        lengths = [len(tokens["input_ids"]) for _, _, tokens, _ in rows]
        start = 0
        for end in cut(lengths, self._pass_tokens, PASS_TOKENS):
            batch = base.MicroBatch(
                positions=[position for position, _, _, _ in rows[start:end]],
                input_tokens=lengths[start:end],
                truncated=[truncated for _, truncated, _, _ in rows[start:end]],
                items=[(tokens, entry) for _, _, tokens, entry in rows[start:end]],
                exact=exact,
            )
            prepared.micro_batches.append(batch)
            start = end
        return prepared

    def infer(self, batch: base.MicroBatch) -> base.Rows:
        scores = self._forward([tokens for tokens, _ in batch.items])
        raw = self._torch.tensor([entry.raw_scores for _, entry in batch.items]).unsqueeze(1)
        likely = scores.sigmoid() if self._independent else scores.softmax(dim=-1)
        scores = self._torch.where(raw, scores, likely)
        data = scores.contiguous().numpy().astype("<f4", copy=False).tobytes()
        return base.Rows(data, [scores.shape[1]] * len(batch.items))

    def stream(self, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        raise errors.TaskNotSupported("engine transformers does not generate")

    def close(self) -> None:
        self._model = self._tokenizer = None

    # Helpers.

    def _read_config(self, config: Any, max_input_tokens: int | None) -> list[str]:
        """Takes from the configuration what the task needs; the labels of a classifier. Raises InvalidModelFiles."""
        if not getattr(self._tokenizer, "is_fast", False):
            raise errors.InvalidModelFiles("the model has no tokenizer.json, and none can be made of its other files")
        if self._tokenizer.pad_token is None:
            raise errors.InvalidModelFiles("the tokenizer has no token for padding")
        # We pad what is tokenised already, which transformers advises against for lack of knowing why.
        self._tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        positions = getattr(config, "max_position_embeddings", None) or NO_LIMIT_TOKENS
        if config.model_type in _PADDED_POSITIONS:
            positions -= (config.pad_token_id or 0) + 1
        own = min(positions, self._tokenizer.model_max_length, NO_LIMIT_TOKENS)
        if own < 1:
            raise errors.InvalidModelFiles(f"the model takes {own} tokens")
        self._max_input_tokens = min(own, max_input_tokens or own)
        if self._task == "reranking" and config.num_labels != 1:
            raise errors.InvalidModelFiles(f"a reranker has one label, this model has {config.num_labels}")
        self._independent = config.num_labels == 1 or config.problem_type == "multi_label_classification"
        return [str(config.id2label[n]) for n in range(config.num_labels)] if self._task == "classification" else []

    def _encode(self, texts: Sequence[base.Text]) -> list[Any]:
        """Tokens of each text, or pair of texts, whole, without padding."""
        found: list[Any] = [None] * len(texts)
        for paired in (False, True):
            chosen = [n for n, entry in enumerate(texts) if bool(entry.pair) is paired]
            if chosen:
                tokens = self._tokenizer(
                    [texts[n].text for n in chosen],
                    [texts[n].pair for n in chosen] if paired else None,
                    truncation=False,
                    padding=False,
                    return_attention_mask=False,
                    verbose=False,
                )
                for n, values in zip(chosen, zip(*tokens.values(), strict=True), strict=True):
                    found[n] = dict(zip(tokens, values, strict=True))
        return found

    def _truncated(self, text: str, pair: str) -> Any:
        tokens = self._tokenizer(
            text,
            pair or None,
            truncation="longest_first",
            max_length=self._max_input_tokens,
            padding=False,
            return_attention_mask=False,
            verbose=False,
        )
        return dict(tokens)

    def _forward(self, rows: Sequence[Any]) -> Any:
        """Scores of these rows as the model gives them, float32 [rows, labels]."""
        features = self._tokenizer.pad(list(rows), padding=True, return_tensors="pt")
        with self._torch.inference_mode():
            return self._model(**features).logits.float()

    def _warm_up(self) -> None:
        """One short pass, so that the first request does not pay for what is set up lazily."""
        self._forward([self._truncated("warm", "up" if self._task == "reranking" else "")])


def _check_spec(spec: base.EngineSpec) -> None:
    """Raises InvalidArgument for what this engine cannot compute with."""
    if spec.dtype not in ("", "fp32", "float32"):
        raise errors.InvalidArgument.at("dtype", f"this engine computes in fp32, not {spec.dtype}")
    for device, _ in spec.devices:
        if device not in ("host", "cpu"):
            raise errors.InvalidArgument.at("devices", f"this engine computes on the host, not on {device}")
    profile = spec.profile or base.Profile("", "")
    if (profile.backend or "torch", profile.precision or "fp32") != ("torch", "fp32"):
        raise errors.InvalidArgument.at("engine_profile", "this engine has the profile torch/fp32")


def _check_weights(told: Mapping[str, Any]) -> None:
    """Raises InvalidModelFiles where transformers made up weights that the files do not have."""
    for what in ("missing_keys", "mismatched_keys"):
        if wrong := sorted(str(key[0] if isinstance(key, tuple) else key) for key in told.get(what) or ()):
            rest = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            problem = "no weights for" if what == "missing_keys" else "weights of another shape for"
            raise errors.InvalidModelFiles(f"the files have {problem} {wrong[0]}{rest}, which the task needs")
