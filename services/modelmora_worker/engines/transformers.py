"""Text classification, reranking and extractive question answering by transformers on torch, in fp32 or bf16.

A reranker is a classifier of pairs with one label. A context longer than the model reads is read in windows that
overlap; each answers for itself, and the best answers of all stand.

Like in the exact profile of sentence_transformers texts are sorted by length and cut where padding and the fixed cost
of one more pass balance, and rows return pass by pass. In torch/bf16 (packed_heads.py) there is no padding, and they go
in their own order until a pass is full; the exact model is there too, for who demands it. Only local files, only
safetensors, no code from the model's folder; a folder whose weights lack a part that the task needs is refused, because
transformers would make that part up.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from modelmora import errors

from modelmora_worker.engines import base
from modelmora_worker.engines.packed_heads import PackedModel
from modelmora_worker.engines.sentence_transformers import (
    MAX_BATCH_ENTRIES,
    MAX_BATCH_TOKENS,
    MOST_TRACKS,
    NO_LIMIT_TOKENS,
    PACKED_TOKENS,
    PADDED_TOKENS,
    PASS_TOKENS,
    TRIAL_TEXT,
    TRIAL_TOKENS,
    check_folder,
    cut,
    fill,
    share,
    usable_cores,
)
from modelmora_worker.engines.tokens import encode, rows_of, texts_of

MIN_INPUT_TOKENS: Final = 16
OVERLAP_TOKENS: Final = 128
"""Windows of a long context have so many tokens in common, or a quarter of what they take."""
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
        self._threads = self.tracks = 1
        self._independent = False
        """Several labels may be right at once, or there is one only: each score is a probability of its own."""
        self._max_input_tokens = 0
        self._padded_tokens = PADDED_TOKENS
        self._packed_tokens = PACKED_TOKENS
        self._fast: PackedModel | None = None
        """What computes unless the exact profile is demanded; None: that is what was loaded."""
        self._exact_profile = base.Profile("torch", "fp32")

    def load(self, spec: base.EngineSpec, progress: Callable[[str, int, int], None]) -> base.Footprint:
        row = base.TABLE["transformers"]
        options = base.read_options(row, spec.options)
        self._task = base.task_of(row, spec)
        precision = check_spec(spec, row.profiles)
        folder = Path(spec.artifact_path)
        weights_bytes = check_folder(folder)
        progress("libraries", 0, weights_bytes)
        base.set_environment(row)
        import torch
        import transformers
        from safetensors import SafetensorError

        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        self._threads = spec.cpu_threads or usable_cores()
        self.tracks = min(self._threads, MOST_TRACKS)
        torch.set_num_threads(self._threads)
        progress("weights", 0, weights_bytes)
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = transformers.AutoConfig.from_pretrained(str(folder), **local)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), use_fast=True, **local)
            labels = self._read_config(config, options["max_input_tokens"])
            kind = "QuestionAnswering" if self._task == "question_answering" else "SequenceClassification"
            self._model, told = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
                str(folder),
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **local,
            )
            check_weights(told)
            self._model.float().eval()
            self._padded_tokens = options["micro_batch_tokens"] or PADDED_TOKENS
            self._packed_tokens = options["micro_batch_tokens"] or PACKED_TOKENS
            self._warm_up()
            if precision == "bf16":
                every_token = self._task == "question_answering"
                self._fast = PackedModel(self._model, self._trial(), every_token=every_token)
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError
        ) as error:  # fmt: skip
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise errors.InvalidModelFiles(f"{type(error).__name__}: {error}") from error
        progress("ready", weights_bytes, weights_bytes)
        libraries = {name: version(name) for name in _LIBRARIES}
        self._exact_profile = base.Profile("torch", "fp32", libraries, "padded")
        return base.Footprint(
            memory_bytes={},
            profile=base.Profile("torch", "bf16", libraries, "packed") if self._fast else self._exact_profile,
            max_input_tokens=self._max_input_tokens,
            embedding_dimensions=0,
            max_batch_tokens=max(options["max_batch_tokens"] or MAX_BATCH_TOKENS, self._max_input_tokens),
            max_batch_entries=options["max_batch_entries"] or MAX_BATCH_ENTRIES,
            labels=labels,
        )

    def prepare(self, texts: Sequence[base.Text], exact: bool = False) -> base.Prepared:
        if self._task == "question_answering":
            return self._prepare_questions(texts, exact)
        prepared = base.Prepared()
        limit = self._max_input_tokens
        rows: list[tuple[int, bool, Any, base.Text]] = []
        for position, (entry, (tokens, count)) in enumerate(zip(texts, self._encode(texts), strict=True)):
            if self._task == "reranking" and not entry.pair:
                prepared.failed.append((position, errors.InvalidArgument("there is no text to rank")))
            elif count <= limit or entry.truncate:
                rows.append((position, count > limit, tokens, entry))
            else:
                what = "query and text have" if self._task == "reranking" else "the text has"
                error = errors.TextTooLong(f"{what} {count} tokens, the model takes {limit}")
                prepared.failed.append((position, error))
        if exact or self._fast is None:
            rows.sort(key=lambda row: len(row[2]["input_ids"]))
        lengths = [len(tokens["input_ids"]) for _, _, tokens, _ in rows]
        start = 0
        for end in self._ends(lengths, exact, self.tracks):
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

    def _prepare_questions(self, texts: Sequence[base.Text], exact: bool) -> base.Prepared:
        prepared = base.Prepared()
        rows: list[tuple[int, int, list[Any], base.Text]] = []
        for position, entry in enumerate(texts):
            asked = len(self._tokenizer(entry.text, add_special_tokens=False, verbose=False)["input_ids"])
            if not entry.pair:
                prepared.failed.append((position, errors.InvalidArgument("there is no context to find an answer in")))
            elif asked > self._max_input_tokens // 2:
                most = self._max_input_tokens // 2
                error = errors.TextTooLong(f"the question has {asked} tokens, of {most} that it may have")
                prepared.failed.append((position, error))
            else:
                windows = self._windows(entry, asked)
                rows.append((position, sum(len(window["input_ids"]) for window in windows), windows, entry))
        if exact or self._fast is None:
            rows.sort(key=lambda row: row[1])
        start = 0
        for end in self._ends([tokens for _, tokens, _, _ in rows], exact, self.tracks):
            batch = base.MicroBatch(
                positions=[position for position, _, _, _ in rows[start:end]],
                input_tokens=[tokens for _, tokens, _, _ in rows[start:end]],
                truncated=[False] * (end - start),
                items=[(windows, entry) for _, _, windows, entry in rows[start:end]],
                exact=exact,
            )
            prepared.micro_batches.append(batch)
            start = end
        return prepared

    def tokens(self, texts: Sequence[base.Text]) -> Sequence[bytes]:
        return rows_of(self._tokenizer, texts)

    def texts(self, entries: Sequence[base.Text]) -> Sequence[bytes]:
        return texts_of(self._tokenizer, entries)

    def open_tracks(self) -> None:
        """There is nothing to make ready: torch has its weights once."""

    def infer(self, batch: base.MicroBatch, track: int | None = None) -> base.Rows:
        if self.tracks > 1:
            self._torch.set_num_threads(self._threads if track is None else self._threads // self.tracks)
        if self._task == "question_answering":
            return self._answer(batch)
        rows = [tokens for tokens, _ in batch.items]
        fast = None if batch.exact else self._fast
        scores = fast(rows)[0].logits.float() if fast is not None else self._forward(rows)
        raw = self._torch.tensor([entry.raw_scores for _, entry in batch.items]).unsqueeze(1)
        likely = scores.sigmoid() if self._independent else scores.softmax(dim=-1)
        scores = self._torch.where(raw, scores, likely)
        data = scores.contiguous().numpy().astype("<f4", copy=False).tobytes()
        return base.Rows(data, [scores.shape[1]] * len(batch.items), profile=self._profile_of(batch))

    def stream(self, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        raise errors.TaskNotSupported("engine transformers does not generate")

    def close(self) -> None:
        self._model = self._tokenizer = self._fast = None

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
        self._max_input_tokens = min(own, max_input_tokens or own)
        if self._max_input_tokens < MIN_INPUT_TOKENS:
            raise errors.InvalidModelFiles(
                f"the model takes {self._max_input_tokens} tokens; two texts need {MIN_INPUT_TOKENS}"
            )
        if self._task == "reranking" and config.num_labels != 1:
            raise errors.InvalidModelFiles(f"a reranker has one label, this model has {config.num_labels}")
        self._independent = config.num_labels == 1 or config.problem_type == "multi_label_classification"
        return [str(config.id2label[n]) for n in range(config.num_labels)] if self._task == "classification" else []

    def _encode(self, texts: Sequence[base.Text]) -> list[tuple[dict[str, Any], int]]:
        """Tokens of each text, or pair of texts, without padding, and how many there are of the whole."""
        found: list[Any] = [None] * len(texts)
        for paired in (False, True):
            chosen = [n for n, entry in enumerate(texts) if bool(entry.pair) is paired]
            if chosen:
                rows = encode(
                    self._tokenizer,
                    [texts[n].text for n in chosen],
                    [texts[n].pair for n in chosen] if paired else None,
                    [self._max_input_tokens if texts[n].truncate else 0 for n in chosen],
                )
                for n, row in zip(chosen, rows, strict=True):
                    found[n] = row
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

    def _windows(self, entry: base.Text, asked: int) -> list[Any]:
        """Question and context in as many pieces as the context needs, each with what its tokens are in the context:
        (start, end) in characters, None for what is none of it."""
        taken = self._max_input_tokens - asked - self._tokenizer.num_special_tokens_to_add(pair=True)
        found = self._tokenizer(
            entry.text,
            entry.pair,
            truncation="only_second",
            max_length=self._max_input_tokens,
            stride=min(OVERLAP_TOKENS, taken // 4),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            padding=False,
            verbose=False,
        )
        windows = []
        for n, encoding in enumerate(found.encodings):
            window = {name: found[name][n] for name in self._tokenizer.model_input_names if name in found}
            window["places"] = [
                place if part == 1 and place[0] < place[1] else None
                for place, part in zip(encoding.offsets, encoding.sequence_ids, strict=True)
            ]
            windows.append(window)
        return windows

    def _answer(self, batch: base.MicroBatch) -> base.Rows:
        """Rows of (score, start, end) for each question."""
        answers: list[dict[tuple[int, int], float]] = [{} for _ in batch.items]
        windows = [(n, window) for n, (found, _) in enumerate(batch.items) for window in found]
        if batch.exact or self._fast is None:
            windows.sort(key=lambda one: len(one[1]["input_ids"]))
        begin = 0
        # A long context has more windows than one pass should take.
        for stop in self._ends([len(window["input_ids"]) for _, window in windows], batch.exact):
            chosen = windows[begin:stop]
            told = self._edges([window for _, window in chosen], batch.exact)
            for (n, window), (starts, ends) in zip(chosen, told, strict=True):
                entry = batch.items[n][1]
                for score, start, end in self._spans(window["places"], starts.float(), ends.float(), entry):
                    answers[n][start, end] = max(score, answers[n].get((start, end), 0.0))
            begin = stop
        parts, dimensions = [], []
        for found, (_, entry) in zip(answers, batch.items, strict=True):
            best = sorted(found.items(), key=lambda one: (-one[1], one[0]))[: entry.max_answers or 1]
            parts += [struct.pack("<3f", score, start, end) for (start, end), score in best]
            dimensions.append(3 * len(best))
        return base.Rows(b"".join(parts), dimensions, profile=self._profile_of(batch))

    def _edges(self, windows: Sequence[Any], exact: bool) -> list[tuple[Any, Any]]:
        """Of each window two numbers for each of its tokens: how likely an answer starts and ends there."""
        rows = [{k: v for k, v in window.items() if k != "places"} for window in windows]
        if exact or self._fast is None:
            with self._torch.inference_mode():
                told = self._model(**self._tokenizer.pad(rows, return_tensors="pt"))
            return list(zip(told.start_logits, told.end_logits, strict=True))
        told, ends = self._fast(rows)
        return [
            (told.start_logits[0, start:end], told.end_logits[0, start:end])
            for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]

    def _spans(self, places: Sequence[Any], starts: Any, ends: Any, entry: base.Text) -> list[tuple[float, int, int]]:
        """The likeliest spans of one window: score, where it starts and ends in the context. Of all tokens of the
        context one begins the answer and one ends it; the score is the product of both likelihoods."""
        torch = self._torch
        own = torch.tensor([n for n, place in enumerate(places) if place is not None], dtype=torch.long)
        if not len(own):
            return []
        likely = torch.outer(starts[own].softmax(0), ends[own].softmax(0))
        most = entry.max_answer_tokens or len(own)
        likely = likely.triu().tril(most - 1)
        count = min(entry.max_answers or 1, likely.numel())
        scores, found = likely.flatten().topk(count)
        spans = []
        for score, at in zip(scores.tolist(), found.tolist(), strict=True):
            if score > 0.0:
                start, end = places[own[at // len(own)]], places[own[at % len(own)]]
                spans.append((score, start[0], end[1]))
        return spans

    def _forward(self, rows: Sequence[Any]) -> Any:
        """Scores of these rows as the model gives them, float32 [rows, labels]."""
        features = self._tokenizer.pad(list(rows), padding=True, return_tensors="pt")
        with self._torch.inference_mode():
            return self._model(**features).logits.float()

    def _ends(self, lengths: Sequence[int], exact: bool, tracks: int = 1) -> list[int]:
        """Where to cut rows of these lengths into passes, for so many tracks."""
        if exact or self._fast is None:
            return cut(lengths, share(lengths, self._padded_tokens, tracks), PASS_TOKENS)
        return fill(lengths, share(lengths, self._packed_tokens, tracks))

    def _profile_of(self, batch: base.MicroBatch) -> base.Profile | None:
        return self._exact_profile if batch.exact and self._fast else None

    def _trial(self) -> list[Any]:
        """Tokenised texts of several lengths, alone or with another as the task has it."""
        words = TRIAL_TEXT.split()
        longest = min(TRIAL_TOKENS, self._max_input_tokens // 2)
        pair = "" if self._task == "classification" else words[0]
        return [self._truncated(" ".join(words[:count]), pair) for count in (longest, 1, longest // 2, 3)]

    def _warm_up(self) -> None:
        """One short pass, so that the first request does not pay for what is set up lazily."""
        features = self._tokenizer.pad([self._truncated("warm", "up")], return_tensors="pt")
        with self._torch.inference_mode():
            self._model(**features)


def check_spec(spec: base.EngineSpec, profiles: Sequence[str] = ("torch/fp32",)) -> str:
    """The precision to compute in. Raises InvalidArgument for what this engine cannot compute with."""
    if spec.dtype not in ("", "fp32", "float32"):
        raise errors.InvalidArgument.at("dtype", f"this engine computes in fp32, not {spec.dtype}")
    for device, _ in spec.devices:
        if device not in ("host", "cpu"):
            raise errors.InvalidArgument.at("devices", f"this engine computes on the host, not on {device}")
    profile = spec.profile or base.Profile("", "")
    precision = profile.precision or "fp32"
    if f"{profile.backend or 'torch'}/{precision}" not in profiles:
        raise errors.InvalidArgument.at("engine_profile", f"this engine has the profiles {', '.join(profiles)}")
    return precision


def check_weights(told: Mapping[str, Any]) -> None:
    """Raises InvalidModelFiles where transformers made up weights that the files do not have."""
    for what in ("missing_keys", "mismatched_keys"):
        if wrong := sorted(str(key[0] if isinstance(key, tuple) else key) for key in told.get(what) or ()):
            rest = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            problem = "no weights for" if what == "missing_keys" else "weights of another shape for"
            raise errors.InvalidModelFiles(f"the files have {problem} {wrong[0]}{rest}, which the task needs")
