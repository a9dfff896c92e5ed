"""Small sentence-transformers models made from a seed: real architecture and tokenizer, random weights, no download.

As a program: `small_models.py FOLDER COUNT SEED` makes `FOLDER/0` … `FOLDER/COUNT-1`, each larger than the one before.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import string
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HIDDEN = 192
LIBRARIES = ("torch", "transformers", "sentence-transformers")
BUILD_SECONDS = 300


def small_models(count: int, seed: int) -> list[Path]:
    """Their folders, from a cache outside the clone if the same libraries made the same models before."""
    facts = [Path(__file__).read_text(), str(count), str(seed), *(f"{name} {version(name)}" for name in LIBRARIES)]
    key = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelmora-tests"
    folder = home / f"small-models-{key}"
    if not folder.exists():
        home.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=home))
        command = [sys.executable, "-P", __file__, str(unfinished), str(count), str(seed)]
        subprocess.run(command, check=True, timeout=BUILD_SECONDS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(unfinished)
    return [folder / str(number) for number in range(count)]


def words(seed: int, count: int = 800) -> list[str]:
    """Made-up words: what the tokenizers know whole."""
    chance = random.Random(seed)
    return ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 8))) for _ in range(count)]


def build(folder: Path, seed: int, layers: int) -> None:
    """One model of `layers` BERT layers."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = [*string.ascii_lowercase, *string.digits]
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    known = list(dict.fromkeys([*known, *words(seed)]))
    with tempfile.TemporaryDirectory() as raw:
        vocabulary = Path(raw) / "vocab.txt"
        vocabulary.write_text("\n".join(known) + "\n")
        tokenizer = BertTokenizerFast(vocab_file=str(vocabulary), model_max_length=128)
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(known),
            hidden_size=HIDDEN,
            num_hidden_layers=layers,
            num_attention_heads=HIDDEN // 32,
            intermediate_size=4 * HIDDEN,
            max_position_embeddings=128,
        )
        BertModel(config).save_pretrained(raw)
        tokenizer.save_pretrained(raw)
        transformer = Transformer(raw, max_seq_length=128)
        modules = [transformer, Pooling(HIDDEN, pooling_mode="mean"), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save(str(folder))


def main(folder: str, count: str, seed: str) -> None:
    for number in range(int(count)):
        build(Path(folder) / str(number), int(seed) + number, layers=2 + 4 * number)


if __name__ == "__main__":
    main(*sys.argv[1:])
