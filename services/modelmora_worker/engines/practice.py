"""What a spare worker does while it waits: it loads a model that is none and computes a text with it.

A first load in a process costs half as much again as a second one. Pages that are shared with the fork server are
copied when they are first written to, allocators fetch memory page by page, kernels take their buffers, and modules set
themselves up when they are first called. The model has the size of a small one in what counts for that, the width of
its layers, and one layer of zeros, which its file does not even hold. It has few words: those of 30,000 made
loads faster by 1 ms at most, and left a small reranker of 29 MB with 2 MB more that it had no use for.
"""

from __future__ import annotations

import functools
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

_WORDS: Final = 100
_WIDTH: Final = 384
_INNER: Final = 4 * _WIDTH
_LONGEST: Final = 512
_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WEIGHTS: Final[Mapping[str, tuple[int, ...]]] = {
    "embeddings.word_embeddings.weight": (_WORDS, _WIDTH),
    "embeddings.position_embeddings.weight": (_LONGEST, _WIDTH),
    "embeddings.token_type_embeddings.weight": (2, _WIDTH),
    "embeddings.LayerNorm.weight": (_WIDTH,),
    "embeddings.LayerNorm.bias": (_WIDTH,),
    **{
        f"encoder.layer.0.{part}.{kind}": shape if kind == "weight" else shape[:1]
        for part, shape in {
            "attention.self.query": (_WIDTH, _WIDTH),
            "attention.self.key": (_WIDTH, _WIDTH),
            "attention.self.value": (_WIDTH, _WIDTH),
            "attention.output.dense": (_WIDTH, _WIDTH),
            "attention.output.LayerNorm": (_WIDTH,),
            "intermediate.dense": (_INNER, _WIDTH),
            "output.dense": (_WIDTH, _INNER),
            "output.LayerNorm": (_WIDTH,),
        }.items()
        for kind in ("weight", "bias")
    },
    "pooler.dense.weight": (_WIDTH, _WIDTH),
    "pooler.dense.bias": (_WIDTH,),
}
_WEIGHTS_FILE: Final = "model.safetensors"
_TEXT: Final = SimpleNamespace(text="w1 w2 w3 w4 w5", truncate=True, normalize=True, dimensions=0, prompt="")


def sentence_transformers(folder: Path) -> None:
    """A load and a text by the engine of that name, in its exact profile; `folder` is its own to write to. What the
    process computes later does not depend on it."""
    import torch

    from modelmora_worker.engines import base
    from modelmora_worker.engines.sentence_transformers import SentenceTransformersEngine

    chance, threads = torch.get_rng_state(), torch.get_num_threads()
    engine = SentenceTransformersEngine()
    try:
        write_model(folder)
        engine.load(base.EngineSpec("sentence_transformers", str(folder)), lambda *_: None)
        for batch in engine.prepare([_TEXT]).micro_batches:
            engine.infer(batch)
    finally:
        engine.close()
        torch.set_rng_state(chance)
        torch.set_num_threads(threads)


def write_model(folder: Path) -> None:
    """A model for sentence-transformers of 100 words and one layer, all zeros, of which the disk holds none."""
    for name, content in _files().items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    os.truncate(folder / _WEIGHTS_FILE, len(_files()[_WEIGHTS_FILE]) + _weights_bytes())


def prepare() -> None:
    """For a fork server: what every practice needs alike."""
    _files()


@functools.cache
def _files() -> Mapping[str, bytes]:
    """Name → content, of the weights the head alone."""
    vocabulary = {word: number for number, word in enumerate([*_SPECIAL, *(f"w{n}" for n in range(_WORDS - 5))])}
    marks = [
        {"id": number, "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, word in enumerate(_SPECIAL)
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": marks,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": _WORDS,
        "hidden_size": _WIDTH,
        "intermediate_size": _INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": _WIDTH // 32,
        "max_position_embeddings": _LONGEST,
    }
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (kind, path) in enumerate(
            (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
        )
    ]
    files: dict[str, Any] = {
        "config.json": config,
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "model_max_length": _LONGEST},
        "1_Pooling/config.json": {"word_embedding_dimension": _WIDTH, "pooling_mode_mean_tokens": True},
    }
    return {name: json.dumps(content).encode() for name, content in files.items()} | {_WEIGHTS_FILE: _head()}


def _head() -> bytes:
    """Of a safetensors file: its length, then what lies where."""
    told, at = {}, 0
    for name, shape in _WEIGHTS.items():
        size = _bytes_of(shape)
        told[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _weights_bytes() -> int:
    return sum(map(_bytes_of, _WEIGHTS.values()))


def _bytes_of(shape: tuple[int, ...]) -> int:
    size = 4
    for length in shape:
        size *= length
    return size
