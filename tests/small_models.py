"""Small models of real architectures for tests: weights by chance with a fixed seed, trained tokenizers, some 100 KB.

`python tests/small_models.py KIND FOLDER` writes one. Needs torch and transformers.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

_TEXT = (
    "model memory queue vector river cat daß 東京 don't 3.14 e-mail lease worker batch token answer rank score label "
    "city Berlin Paris capital of the a is in and what where who flows through mountain old bridge evening light"
)
WORDS = _TEXT.split()
LABELS = {0: "sports", 1: "politics", 2: "science", 3: "weather"}


def sentences(count: int, seed: int, longest: int = 40) -> list[str]:
    pick = random.Random(seed)
    return [" ".join(pick.choices(WORDS, k=pick.randint(1, longest))) for _ in range(count)]


def picture(seed: int, width: int = 64, height: int = 48) -> Any:
    """A Pillow image in RGB: shapes of chance on a ground of chance."""
    from PIL import Image, ImageDraw

    pick = random.Random(seed)

    def colour() -> tuple[int, ...]:
        return tuple(pick.randrange(256) for _ in range(3))

    made = Image.new("RGB", (width, height), colour())
    draw = ImageDraw.Draw(made)
    for _ in range(12):
        left, right = sorted(pick.choices(range(width), k=2))
        top, bottom = sorted(pick.choices(range(height), k=2))
        pick.choice([draw.rectangle, draw.ellipse, draw.line])((left, top, right, bottom), fill=colour())
    return made


def build(kind: str, folder: Path) -> Path:
    """Writes the model of a kind, one of KINDS, into a folder, as its users would find it."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    model = KINDS[kind](folder)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            # As they are made, scores hardly differ from text to text.
            if not any(word in name.lower() for word in ("norm", "convolution")) and weights.dim() > 1:
                weights.mul_(20.0)
    model.save_pretrained(folder)
    return folder


def _wordpiece(folder: Path, longest: int = 64) -> int:
    """A trained BERT tokenizer; the number of its tokens."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    made = BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(sentences(400, seed=1), vocab_size=300, min_frequency=1, show_progress=False)
    made.save_model(str(folder))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=longest)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def _byte_pairs(folder: Path, longest: int = 64) -> int:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    made = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made.train_from_iterator(
        sentences(400, seed=2), vocab_size=400, min_frequency=1, special_tokens=special, show_progress=False
    )
    made.save_model(str(folder))
    tokenizer = RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=longest)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def _reranker(folder: Path) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    vocabulary = _wordpiece(folder)
    return BertForSequenceClassification(
        BertConfig(vocab_size=vocabulary, max_position_embeddings=64, num_labels=1, **_SMALL)
    )


def _classifier(folder: Path, **settings: Any) -> Any:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    vocabulary = _byte_pairs(folder)
    config = RobertaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=66,
        type_vocab_size=1,
        pad_token_id=1,
        id2label=LABELS,
        label2id={label: n for n, label in LABELS.items()},
        **settings,
        **_SMALL,
    )
    return RobertaForSequenceClassification(config)


def _tagger(folder: Path) -> Any:
    return _classifier(folder, problem_type="multi_label_classification")


def _reader(folder: Path) -> Any:
    from transformers import BertConfig, BertForQuestionAnswering

    vocabulary = _wordpiece(folder)
    return BertForQuestionAnswering(BertConfig(vocab_size=vocabulary, max_position_embeddings=64, **_SMALL))


_SHAPES = {0: "square", 1: "circle", 2: "line", 3: "noise", 4: "blank"}


def _seer(folder: Path) -> Any:
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    labels = {"id2label": _SHAPES, "label2id": {label: n for n, label in _SHAPES.items()}}
    return ViTForImageClassification(ViTConfig(image_size=48, patch_size=16, **labels, **_SMALL))


def _watcher(folder: Path) -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875).save_pretrained(folder)
    labels = {"id2label": _SHAPES, "label2id": {label: n for n, label in _SHAPES.items()}}
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", **labels)
    )


KINDS = {
    "seer": _seer,
    "watcher": _watcher,
    "reranker": _reranker,
    "classifier": _classifier,
    "tagger": _tagger,
    "reader": _reader,
}

if __name__ == "__main__":
    print(build(sys.argv[1], Path(sys.argv[2])))
