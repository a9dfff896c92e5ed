"""Vectors of sentence-transformers itself, the truth that answers are compared with. Imports nothing of ours.

As a program: reads texts (JSON) from standard input, writes a float32 array [texts, dimensions] to the file named.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def vectors(folder: Path, texts: Sequence[str]) -> Any:
    """Array [texts, dimensions], float32, from a cache outside the clone when the same texts were asked for before."""
    import numpy

    parts = [*texts, str((folder / "model.safetensors").stat().st_size)]
    parts += [f"{name} {version(name)}" for name in ("torch", "transformers", "sentence-transformers")]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = home / "modelmora-tests" / f"{key}.npy"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cached.with_name(f"{key}.{os.getpid()}.npy")
        command = [sys.executable, "-P", __file__, str(folder), str(unfinished)]
        subprocess.run(command, input=json.dumps(list(texts)), text=True, check=True, timeout=600)
        unfinished.rename(cached)
    return numpy.load(cached)


def main(folder: str, output: str) -> None:
    import numpy
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    numpy.save(output, model.encode(json.load(sys.stdin), batch_size=32, normalize_embeddings=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
