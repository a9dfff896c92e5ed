"""A model's own pipeline with its encoder computed by another library: tokens padded to a common length, then pooled
and normalised by the pipeline's own modules, on torch in fp32.

Mean and length one, which is all that most pipelines do after the encoder, are taken here: the mean of a text's own
tokens, where the module would multiply all padded ones by a mask, and both without torch, whose code and threads take
the cores and their caches from the library: 0.4 ms a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from modelmora.errors import ProfileNotSupported

ROUND_TOKENS: Final = 8
"""Texts are padded to a multiple of this: the libraries set themselves up anew for each shape, which costs more than
the padding."""
_LEAST_LENGTH: Final = 1e-12
"""A vector shorter than this stays short: that of torch's own `normalize`."""
_ROWWISE = frozenset({"Pooling", "Dense", "Normalize", "Dropout", "LayerNorm"})
"""Modules after the encoder that need of it the vectors of tokens, or less."""

Encoder = Any
"""A callable: arrays of int64 [rows, tokens], and a track where it has some → float32 [rows, tokens, size], valid until
the next call, or the next on that track."""


class PaddedPipeline:
    """The pipeline of `exact` (a SentenceTransformer in fp32, left as it is) with this encoder of `inputs`."""

    def __init__(self, exact: Any, encoder: Encoder, inputs: Sequence[str]) -> None:
        """Raises ProfileNotSupported."""
        first, *self._rest = exact
        for module in self._rest:
            if type(module).__name__ not in _ROWWISE:
                raise ProfileNotSupported(f"{type(module).__name__} after the encoder may want more than token vectors")
        pooling = next(iter(self._rest), None)
        self._means = type(pooling).__name__ == "Pooling" and getattr(pooling, "pooling_mode", None) == "mean"
        after = [_is_normalize(module) for module in self._rest[1:]]
        self.unit = bool(after) and after[-1]
        """Vectors have length one."""
        self._plain = self._means and all(after)
        self._encoder = encoder
        self._inputs = inputs
        self._fill = {"input_ids": first.tokenizer.pad_token_id or 0}

    def open_tracks(self, count: int) -> None:
        """Raises AttributeError where the encoder has none."""
        self._encoder.open_tracks(count)

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], prompt_tokens: int | None = None, track: int | None = None
    ) -> Any:
        """Vectors of tokenised texts (`input_ids`, maybe `token_type_ids`), float32 [rows, dimensions]."""
        import numpy
        import torch

        longest = rounded(max(len(row["input_ids"]) for row in rows))
        arrays = {
            name: numpy.full((len(rows), longest), self._fill.get(name, 0), dtype=numpy.int64) for name in self._inputs
        }
        for number, row in enumerate(rows):
            count = len(row["input_ids"])
            for name, array in arrays.items():
                array[number, :count] = 1 if name == "attention_mask" else row[name]
        arguments = list(arrays.values())
        vectors = self._encoder(arguments) if track is None else self._encoder(arguments, track)
        means = None
        if self._means and prompt_tokens is None:
            means = numpy.stack(
                [tokens[: len(row["input_ids"])].mean(0) for tokens, row in zip(vectors, rows, strict=True)]
            )
            if self._plain:
                if self.unit:
                    means /= numpy.maximum(numpy.sqrt((means * means).sum(1, keepdims=True)), _LEAST_LENGTH)
                return torch.from_numpy(means)
        modules = self._rest
        with torch.inference_mode():
            features = {
                "token_embeddings": torch.from_numpy(vectors),
                "attention_mask": torch.from_numpy(arrays["attention_mask"]),
                "modality": "text",
            }
            if prompt_tokens is not None:
                features["prompt_length"] = prompt_tokens
            elif means is not None:
                features["sentence_embedding"] = torch.from_numpy(means)
                modules = modules[1:]
            for module in modules:
                features = module(features)
            return features["sentence_embedding"].float()


def _is_normalize(module: Any) -> bool:
    return type(module).__name__ == "Normalize" and {
        getattr(module, f"module_{side}_name", "sentence_embedding") for side in ("input", "output")
    } == {"sentence_embedding"}


def rounded(tokens: int) -> int:
    return -(-tokens // ROUND_TOKENS) * ROUND_TOKENS
