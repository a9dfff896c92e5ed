"""Classifying, ranking and answering in bf16 without padding: the encoder of packed.py under the model's own head.

The head stays the model's own, in fp32. It is computed by the model itself with vectors in place of texts and an
encoder that hands them on: of a classifier the vector of each text's first token, of a reader those of all tokens.
Whether a head wants no more than that (some take the mean of all tokens) is tried, not listed, and so is the encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final

from modelmora.errors import ProfileNotSupported

from modelmora_worker.engines.packed import (
    FAILURES,
    LEAST_COSINE,
    BertShaped,
    Encoder,
    OwnModules,
    Rows,
    is_shaped_like_bert,
    pack,
    position_offset,
)

_MOST_DIFFERENCE: Final = 1e-3
"""Of what a head says in fp32 of the exact vectors, in parts of its largest number: it is the same head."""


class PackedModel:
    """The model `exact` (of transformers, with a head, in fp32, left as it is) in bf16."""

    def __init__(self, exact: Any, rows: Rows, *, every_token: bool) -> None:
        """Tries itself with the tokenised texts `rows`. `every_token`: the head takes each token for itself. Raises
        ProfileNotSupported."""
        encoder, config = exact.base_model, exact.config
        name = type(exact).__name__
        if encoder is exact:
            raise ProfileNotSupported(f"{name} has no encoder apart from its head")
        if getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
            raise ProfileNotSupported(f"{name} is not an encoder")
        self._every_token = every_token
        self._padding_id = position_offset(encoder)
        self._head = _head(exact)
        self._encode: Encoder
        try:
            truth = _try_head(exact, self._head, rows, every_token)
        except FAILURES as error:
            raise ProfileNotSupported(f"the head of {name} cannot be packed: {error}"[:1000]) from error
        if is_shaped_like_bert(encoder):
            self._encode = BertShaped(encoder)
            try:
                self._try_encoder(rows, truth)
                return
            except ProfileNotSupported:
                pass  # the attributes of BERT, used in another way
        self._encode = OwnModules(encoder)
        self._try_encoder(rows, truth)

    def __call__(self, rows: Rows) -> tuple[Any, Sequence[int]]:
        """What the model says of tokenised texts, and where each text ends in it: of a classifier logits
        [rows, labels] in float32; of a reader numbers for the tokens of all texts, [1, tokens]."""
        import torch

        with torch.inference_mode():
            vectors, ends = self._vectors(rows)
            return self._head(inputs_embeds=vectors), ends

    def _vectors(self, rows: Rows) -> tuple[Any, list[int]]:
        """What the head takes: [rows, 1, size], or of a reader [1, tokens, size]; and where each text ends in it."""
        inputs, ends = pack(rows, self._padding_id)
        vectors = self._encode(inputs, ends).float()
        if self._every_token:
            return vectors, ends
        return vectors[0, [0, *ends[:-1]]].unsqueeze(1), list(range(1, len(rows) + 1))

    def _try_encoder(self, rows: Rows, truth: Any) -> None:
        """Raises ProfileNotSupported where the vectors of `rows` together are not like `truth`, [vectors, size]."""
        import torch

        try:
            with torch.inference_mode():
                found, _ = self._vectors(rows)
        except FAILURES as error:
            raise ProfileNotSupported(f"this architecture cannot be packed: {type(error).__name__}: {error}") from error
        cosine = torch.nn.functional.cosine_similarity(found.flatten(0, 1), truth, dim=-1).min().item()
        if not cosine >= LEAST_COSINE:
            raise ProfileNotSupported(
                f"this architecture cannot be packed: a text among others comes out {cosine:.4f} like alone"
            )


def _head(exact: Any) -> Any:
    """The model with its own parts, but an encoder that hands on `inputs_embeds`."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    pooler = getattr(exact.base_model, "pooler", None)

    class Given(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.pooler = pooler

        def forward(self, input_ids: Any = None, *, inputs_embeds: Any, **rest: Any) -> Any:
            pooled = self.pooler(inputs_embeds) if self.pooler is not None else None
            return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)

    head = copy.copy(exact)
    head._modules = {**exact._modules, exact.base_model_prefix: Given()}
    return head


def _try_head(exact: Any, head: Any, rows: Rows, every_token: bool) -> Any:
    """The exact encoder's vectors of `rows`, each computed alone: those that the head takes, [vectors, size]. Raises
    ProfileNotSupported where the head makes of them what the model does not say."""
    import torch

    taken = []
    with torch.inference_mode():
        for row in rows:
            inputs = {name: torch.tensor([list(numbers)]) for name, numbers in row.items()}
            vectors = exact.base_model(**inputs)[0]
            vectors = vectors if every_token else vectors[:, :1]
            for name, numbers in exact(**inputs).items():
                found = head(inputs_embeds=vectors)[name]
                most = _MOST_DIFFERENCE * max(1.0, numbers.abs().max().item())
                if found.shape != numbers.shape or not (found - numbers).abs().max().item() <= most:
                    raise ProfileNotSupported(f"the head of {type(exact).__name__} wants more than it is given packed")
            taken.append(vectors[0])
    return torch.cat(taken)
