"""A text encoder in bf16 without padding: the tokens of all texts in one row, and each text attends to itself alone.

What costs in a batch of mixed lengths is padding, and what computes is linear layers. So those take all tokens of a
batch at once, with bf16 weights laid out once for the processor; attention runs text by text; everything between
(residuals, layer norms, pooling, normalising) stays in fp32, which costs little and keeps the cosine to fp32 above
0.9999.

The modules are those of the model itself, through transformers' attention interface: a copy of the encoder that shares
every parameter but the weights of linear layers with the exact one. Whether an architecture can be computed so is
tried, not listed: texts computed together must come out as the exact pipeline gives them alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

from modelmora.errors import ProfileNotSupported

ATTENTION: Final = "modelmora_packed"
_ROWWISE = frozenset({"Pooling", "Dense", "Normalize", "Dropout", "LayerNorm"})
"""Modules after the encoder that know packed texts, or never see tokens."""
_LEAST_COSINE: Final = 0.99
"""In the trial: what packing breaks is far below, what bf16 costs far above."""
_LAYOUT_ROWS: Final = 512
"""For how many tokens weights are laid out; other numbers work as well."""


class PackedEncoder:
    """The pipeline of `exact` (a SentenceTransformer in fp32, left as it is) in bf16. Raises ProfileNotSupported."""

    def __init__(self, exact: Any) -> None:
        first, *rest = exact
        _check(first, rest)
        self._rest = rest
        self._encoder = copy.deepcopy(first.model, {id(parameter): parameter for parameter in first.model.parameters()})
        if getattr(self._encoder, "pooler", None) is not None:
            import torch

            self._encoder.pooler = torch.nn.Identity()  # its output is not used
        _replace_linear_layers(self._encoder)
        _register_attention()
        self._encoder.set_attn_implementation(ATTENTION)
        self._padding_id = _position_offset(first.model)

    def __call__(self, rows: Sequence[Mapping[str, Any]], prompt_tokens: int | None) -> Any:
        """Vectors of tokenised texts (`input_ids`, maybe `token_type_ids`), float32 [rows, dimensions]."""
        import torch

        ends = [0]
        for row in rows:
            ends.append(ends[-1] + len(row["input_ids"]))
        inputs = {
            name: torch.tensor([[token for row in rows for token in row[name]]], dtype=torch.long)
            for name in ("input_ids", "token_type_ids")
            if name in rows[0]
        }
        positions = [place for row in rows for place in self._positions(row["input_ids"])]
        with torch.inference_mode():
            output = self._encoder(
                **inputs, position_ids=torch.tensor([positions], dtype=torch.long), text_ends=ends[1:], return_dict=True
            )
            features = {
                "token_embeddings": output.last_hidden_state.float(),
                "cu_seq_lens_q": torch.tensor(ends, dtype=torch.int32),
                "modality": "text",
            }
            if prompt_tokens is not None:
                features["prompt_length"] = prompt_tokens
            for module in self._rest:
                features = module(features)
            return features["sentence_embedding"].float()

    def try_out(self, rows: Sequence[Mapping[str, Any]], truth: Any, prompt_tokens: int | None) -> None:
        """Computes `rows` together and compares with their exact vectors. Raises ProfileNotSupported."""
        import torch

        try:
            found = self(rows, prompt_tokens)
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ProfileNotSupported(f"this architecture cannot be packed: {type(error).__name__}: {error}") from error
        cosine = torch.nn.functional.cosine_similarity(found, truth, dim=-1).min().item()
        if not cosine >= _LEAST_COSINE:
            raise ProfileNotSupported(
                f"this architecture cannot be packed: texts computed together come out {cosine:.4f} like alone"
            )

    def _positions(self, tokens: Sequence[int]) -> Sequence[int]:
        """From 0; those that count from their padding token on leave out any such token within the text."""
        padding = self._padding_id
        if padding is None:
            return range(len(tokens))
        if padding not in tokens:
            return range(padding + 1, padding + 1 + len(tokens))
        places, at = [], padding
        for token in tokens:
            at += token != padding
            places.append(at if token != padding else padding)
        return places


def _check(first: Any, rest: Sequence[Any]) -> None:
    """Raises ProfileNotSupported where the pipeline shows that packing would not give what it gives."""
    if type(first).__name__ != "Transformer":
        raise ProfileNotSupported(f"a pipeline that begins with {type(first).__name__} has nothing to pack")
    for module in rest:
        if type(module).__name__ not in _ROWWISE:
            raise ProfileNotSupported(f"{type(module).__name__} after the encoder takes padded texts only")
    name, config = type(first.model).__name__, first.model.config
    how = first.modality_config["text"]
    output = how["method_output_name"]
    if how["method"] != "forward" or output not in ("last_hidden_state", ("last_hidden_state",), ["last_hidden_state"]):
        raise ProfileNotSupported(f"{name} does not give one vector for each token")
    if not getattr(first.model, "_supports_attention_backend", False):
        raise ProfileNotSupported(f"{name} computes attention in a way of its own")
    if getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise ProfileNotSupported(f"{name} is not an encoder")
    if getattr(config, "output_hidden_states", False):
        raise ProfileNotSupported(f"{name} gives the outputs of its inner layers too")


def _position_offset(encoder: Any) -> int | None:
    """The padding token where positions count from it on, as RoBERTa and its kin have it; None: from 0."""
    import torch

    for module in encoder.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding):
            return padding
    return None


def _replace_linear_layers(encoder: Any) -> None:
    """Puts bf16 layers in the place of fp32 ones; the old weights stay with the exact model."""
    import torch

    bf16 = torch.bfloat16
    laid_out = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()

    class Linear(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, old: Any) -> None:
            super().__init__()
            self.bias = None if old.bias is None else old.bias.detach().to(bf16)
            self.weight = old.weight.detach().to(bf16)
            if laid_out:
                self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, _LAYOUT_ROWS)

        def forward(self, x: Any) -> Any:
            if laid_out:
                return torch.ops.mkldnn._linear_pointwise(x.to(bf16), self.weight, self.bias, "none", [], "")
            return torch.nn.functional.linear(x.to(bf16), self.weight, self.bias)

    for name, module in list(encoder.named_modules()):
        if type(module) is torch.nn.Linear:
            parent, _, own = name.rpartition(".")
            setattr(encoder.get_submodule(parent), own, Linear(module))


def _register_attention() -> None:
    """Names the attention below to transformers. Without a mask function of this name it makes no mask at all."""
    import torch
    from transformers import AttentionInterface

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *, text_ends: Sequence[int], **rest: Any
    ) -> tuple[Any, None]:
        """All [1, heads, tokens, size] → [1, tokens, heads, size]; each text by itself."""
        unknown = {
            name
            for name, given in rest.items()
            if given is not None and name in ("sliding_window", "softcap", "s_aux", "position_bias")
        }
        if attention_mask is not None or unknown or rest.get("is_causal", getattr(module, "is_causal", False)):
            raise ValueError(f"it attends with {', '.join(unknown) or 'a mask'}")
        query, key = query.to(value.dtype), key.to(value.dtype)
        groups = query.shape[1] != key.shape[1]
        out = value.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
        start = 0
        for end in text_ends:
            text = torch.nn.functional.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                scale=rest.get("scaling"),
                enable_gqa=groups,
            )
            out[:, start:end] = text.transpose(1, 2)
            start = end
        return out, None

    AttentionInterface.register(ATTENTION, attend)
