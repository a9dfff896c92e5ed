"""A text encoder in bf16 without padding: the tokens of all texts in one row, and each text attends to itself alone.

What costs in a batch of mixed lengths is padding, and what computes is linear layers. So those take all tokens of a
batch at once, with bf16 weights laid out once for the processor; attention runs text by text; everything between
(residuals, layer norms, pooling, normalising) stays in fp32, which costs little and keeps the cosine to fp32 above
0.9999. Parameters other than the weights of linear layers are those of the exact model.

There are two ways through an encoder. One that is shaped like BERT is written out here, with the three projections of
attention in one product and GELU within the next: the modules of transformers cost a text alone a tenth of its time.
Any other goes through its own modules, by transformers' attention interface. Whether either fits an architecture is
tried, not listed: texts computed together must come out as the exact pipeline gives them alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from modelmora.errors import ProfileNotSupported

ATTENTION: Final = "modelmora_packed"
_ROWWISE = frozenset({"Pooling", "Dense", "Normalize", "Dropout", "LayerNorm"})
"""Modules after the encoder that know packed texts, or never see tokens."""
LEAST_COSINE: Final = 0.99
"""In the trial: what packing breaks is far below, what bf16 costs far above."""
_LAYOUT_ROWS: Final = 512
"""For how many tokens weights are laid out; other numbers work as well."""
FAILURES = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError)

Rows = Sequence[Mapping[str, Any]]
Encoder = Callable[[dict[str, Any], Sequence[int]], Any]
"""Inputs of shape [1, tokens] and where each text ends → one vector for each token, [1, tokens, size]."""


class PackedPipeline:
    """The pipeline of `exact` (a SentenceTransformer in fp32, left as it is) in bf16."""

    def __init__(self, exact: Any, rows: Rows, truth: Any) -> None:
        """Tries itself with the tokenised texts `rows`, whose exact vectors are `truth`. Raises ProfileNotSupported."""
        first, *self._rest = exact
        _check(first, self._rest)
        self._padding_id = position_offset(first.model)
        self._encode: Encoder
        if is_shaped_like_bert(first.model):
            self._encode = BertShaped(first.model)
            try:
                self._try_out(rows, truth)
                return
            except ProfileNotSupported:
                pass  # the attributes of BERT, used in another way
        self._encode = OwnModules(first.model)
        self._try_out(rows, truth)

    def __call__(self, rows: Rows, prompt_tokens: int | None = None) -> Any:
        """Vectors of tokenised texts (`input_ids`, maybe `token_type_ids`), float32 [rows, dimensions]."""
        import torch

        inputs, ends = pack(rows, self._padding_id)
        with torch.inference_mode():
            features = {
                "token_embeddings": self._encode(inputs, ends).float(),
                "cu_seq_lens_q": torch.tensor([0, *ends], dtype=torch.int32),
                "modality": "text",
            }
            if prompt_tokens is not None:
                features["prompt_length"] = prompt_tokens
            for module in self._rest:
                features = module(features)
            return features["sentence_embedding"].float()

    def _try_out(self, rows: Rows, truth: Any) -> None:
        import torch

        try:
            found = self(rows)
        except FAILURES as error:
            raise ProfileNotSupported(f"this architecture cannot be packed: {type(error).__name__}: {error}") from error
        cosine = torch.nn.functional.cosine_similarity(found, truth, dim=-1).min().item()
        if not cosine >= LEAST_COSINE:
            raise ProfileNotSupported(
                f"this architecture cannot be packed: a text among others comes out {cosine:.4f} like alone"
            )


def pack(rows: Rows, padding_id: int | None) -> tuple[dict[str, Any], list[int]]:
    """Texts in one row: the inputs of an encoder, [1, tokens] each, and where each text ends. `padding_id`: see
    `position_offset`."""
    import torch

    ends, at = [], 0
    for row in rows:
        at += len(row["input_ids"])
        ends.append(at)
    inputs = {
        name: torch.tensor([[token for row in rows for token in row[name]]], dtype=torch.long)
        for name in ("input_ids", "token_type_ids")
        if name in rows[0]
    }
    positions = [place for row in rows for place in _positions(row["input_ids"], padding_id)]
    inputs["position_ids"] = torch.tensor([positions], dtype=torch.long)
    return inputs, ends


class BertShaped:
    """BERT, RoBERTa, XLM-R, CamemBERT and others whose layers have the same parts."""

    def __init__(self, encoder: Any) -> None:
        import torch

        self._embeddings = encoder.embeddings
        self._heads = encoder.config.num_attention_heads
        self._layers = []
        for layer in encoder.encoder.layer:
            attention, between, after = layer.attention.self, layer.intermediate, layer.output
            three = (attention.query, attention.key, attention.value)
            weight = torch.cat([part.weight.detach() for part in three])
            bias = torch.cat([part.bias.detach() for part in three])
            gelu = encoder.config.hidden_act == "gelu"
            self._layers.append(
                (
                    _linear(weight, bias),
                    _linear(layer.attention.output.dense.weight, layer.attention.output.dense.bias),
                    layer.attention.output.LayerNorm,
                    _linear(between.dense.weight, between.dense.bias, gelu=gelu),
                    (lambda x: x) if gelu else between.intermediate_act_fn,
                    _linear(after.dense.weight, after.dense.bias),
                    after.LayerNorm,
                )
            )

    def __call__(self, inputs: dict[str, Any], ends: Sequence[int]) -> Any:
        x = self._embeddings(**inputs)[0]
        tokens = x.shape[0]
        for project, out, norm, up, activate, down, last_norm in self._layers:
            query, key, value = project(x).view(tokens, 3, self._heads, -1).permute(1, 2, 0, 3).unsqueeze(1)
            attended = _attend(query, key, value, ends, None)
            x = norm(out(attended.view(tokens, -1)) + x)
            x = last_norm(down(activate(up(x))) + x)
        return x.unsqueeze(0)


class OwnModules:
    """Any encoder that hands attention to transformers' interface."""

    def __init__(self, encoder: Any) -> None:
        import torch

        name = type(encoder).__name__
        if not getattr(encoder, "_supports_attention_backend", False):
            raise ProfileNotSupported(f"{name} computes attention in a way of its own")
        self._encoder = copy.deepcopy(encoder, {id(parameter): parameter for parameter in encoder.parameters()})
        if getattr(self._encoder, "pooler", None) is not None:
            self._encoder.pooler = torch.nn.Identity()  # its output is not used
        _replace_linear_layers(self._encoder)
        _register_attention()
        self._encoder.set_attn_implementation(ATTENTION)

    def __call__(self, inputs: dict[str, Any], ends: Sequence[int]) -> Any:
        return self._encoder(**inputs, text_ends=ends, return_dict=True).last_hidden_state


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
    if getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise ProfileNotSupported(f"{name} is not an encoder")
    if getattr(config, "output_hidden_states", False):
        raise ProfileNotSupported(f"{name} gives the outputs of its inner layers too")


def is_shaped_like_bert(encoder: Any) -> bool:
    """Whether it has BERT's parts and no others."""
    parts = {
        "": {"embeddings", "encoder", "pooler"},
        "encoder": {"layer"},
        "encoder.layer.0": {"attention", "intermediate", "output"},
        "encoder.layer.0.attention": {"self", "output"},
        "encoder.layer.0.attention.self": {"query", "key", "value", "dropout"},
        "encoder.layer.0.attention.output": {"dense", "LayerNorm", "dropout"},
        "encoder.layer.0.intermediate": {"dense", "intermediate_act_fn"},
        "encoder.layer.0.output": {"dense", "LayerNorm", "dropout"},
    }
    try:
        found = {at: {name for name, _ in encoder.get_submodule(at).named_children()} for at in parts}
    except AttributeError:
        return False
    return all(found[at] <= names and names - found[at] <= {"pooler", "dropout"} for at, names in parts.items())


def _positions(tokens: Sequence[int], padding: int | None) -> Sequence[int]:
    """From 0; those that count from their padding token on leave out any such token within the text."""
    if padding is None:
        return range(len(tokens))
    if padding not in tokens:
        return range(padding + 1, padding + 1 + len(tokens))
    places, at = [], padding
    for token in tokens:
        at += token != padding
        places.append(at if token != padding else padding)
    return places


def position_offset(encoder: Any) -> int | None:
    """The padding token where positions count from it on, as RoBERTa and its kin have it; None: from 0."""
    import torch

    for module in encoder.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding):
            return padding
    return None


def _linear(weight: Any, bias: Any, *, gelu: bool = False) -> Callable[[Any], Any]:
    """A linear layer in bf16, laid out for the processor where oneDNN can, with GELU after it if wanted."""
    import torch

    bf16 = torch.bfloat16
    weight = weight.detach().to(bf16)
    bias = None if bias is None else bias.detach().to(bf16)
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, _LAYOUT_ROWS)
        fused, algorithm = ("gelu", "none") if gelu else ("none", "")
        product = torch.ops.mkldnn._linear_pointwise
        return lambda x: product(x.to(bf16), weight, bias, fused, [], algorithm)
    linear = torch.nn.functional.linear
    if gelu:
        return lambda x: torch.nn.functional.gelu(linear(x.to(bf16), weight, bias))
    return lambda x: linear(x.to(bf16), weight, bias)


def _replace_linear_layers(encoder: Any) -> None:
    """Puts bf16 layers in the place of fp32 ones; the old weights stay with the exact model."""
    import torch

    class Linear(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, old: Any) -> None:
            super().__init__()
            self._compute = _linear(old.weight, old.bias)

        def forward(self, x: Any) -> Any:
            return self._compute(x)

    for name, module in list(encoder.named_modules()):
        if type(module) is torch.nn.Linear:
            parent, _, own = name.rpartition(".")
            setattr(encoder.get_submodule(parent), own, Linear(module))


def _attend(query: Any, key: Any, value: Any, ends: Sequence[int], scale: float | None) -> Any:
    """All [1, heads, tokens, size] → [1, tokens, heads, size]; each text by itself."""
    import torch

    attention = torch.nn.functional.scaled_dot_product_attention
    groups = query.shape[1] != key.shape[1]
    out = value.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
    start = 0
    for end in ends:
        text = (part[:, :, start:end] for part in (query, key, value))
        out[:, start:end] = attention(*text, scale=scale, enable_gqa=groups).transpose(1, 2)
        start = end
    return out


def _register_attention() -> None:
    """Names packed attention to transformers. Without a mask function of this name it makes no mask at all."""
    from transformers import AttentionInterface

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *, text_ends: Sequence[int], **rest: Any
    ) -> tuple[Any, None]:
        unknown = {
            name
            for name, given in rest.items()
            if given is not None and name in ("sliding_window", "softcap", "s_aux", "position_bias")
        }
        if attention_mask is not None or unknown or rest.get("is_causal", getattr(module, "is_causal", False)):
            raise ValueError(f"it attends with {', '.join(unknown) or 'a mask'}")
        query, key = query.to(value.dtype), key.to(value.dtype)
        return _attend(query, key, value, text_ends, rest.get("scaling")), None

    AttentionInterface.register(ATTENTION, attend)
