"""Passages to embed: real English prose that every Python ships, the language reference behind `help()`, cut by a seed.

Standard library only, so that scripts that import nothing of ours can be given its output. The text differs a little
from one Python release to another; `digest` says which it was.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from pydoc_data.topics import topics


def words() -> list[str]:
    """The words of the language reference, in order: paragraphs of prose, no code and no grammar."""
    found: list[str] = []
    for _, text in sorted(topics.items()):
        for paragraph in re.split(r"\n\s*\n", text):
            plain = re.sub(r'[*`"_|]+', "", paragraph)
            tokens = plain.split()
            prose = [token for token in tokens if re.fullmatch(r"[A-Za-z][A-Za-z'’-]*[.,;:]?", token)]
            if len(tokens) >= 12 and len(prose) >= 0.8 * len(tokens) and not plain.startswith("   "):
                found += tokens
    return found


def passages(count: int = 2000, *, fewest_words: int = 20, most_words: int = 220, seed: int = 1) -> list[str]:
    """`count` distinct passages, most of middling length (mean 149 tokens of MiniLM with the defaults)."""
    chance = random.Random(seed)
    return _cut(count, lambda: round(chance.triangular(fewest_words, most_words, 95)), chance)


def skewed(count: int, *, most_words: int, seed: int) -> list[str]:
    """`count` distinct texts of 1 to `most_words` words, most of them as short as what people search for."""
    chance = random.Random(seed)
    return _cut(count, lambda: min(most_words, int(most_words ** (chance.random() ** 3) * 1.05) or 1), chance)


def digest(texts: Sequence[str]) -> str:
    """Sixteen hexadecimal digits that name these texts in this order."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _cut(count: int, length: Callable[[], int], chance: random.Random) -> list[str]:
    source = words()
    found: dict[str, None] = {}
    while len(found) < count:
        size = length()
        start = chance.randrange(len(source) - size)
        found[" ".join(source[start : start + size])] = None
    return list(found)
