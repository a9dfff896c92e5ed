"""A tokenizer's file, read once where transformers reads it twice in a row, for its few added tokens and for all its
words: 8 ms of a load, and 4 MB that the allocator gives back or keeps as it happens."""

from __future__ import annotations

import copy
import json
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_READERS: Final = ("transformers.tokenization_utils_base", "transformers.tokenization_utils_tokenizers")
"""Both parts of the library that read it, by a `json` of their own; a release without them reads as often as it
likes."""
_FILE: Final = "tokenizer.json"


@contextmanager
def tokenizer_files() -> Iterator[None]:
    """Within, a second reading of the same file in a row gets what the first one got, before anybody changed it."""
    readers = [module for name in _READERS if getattr(module := sys.modules.get(name), "json", None) is json]
    once = types.ModuleType("json")
    once.__dict__.update(json.__dict__, load=_Once().load)
    for module in readers:
        module.json = once  # type: ignore[union-attr]
    try:
        yield
    finally:
        for module in readers:
            module.json = json  # type: ignore[union-attr]


class _Once:
    def __init__(self) -> None:
        self._file: tuple[int, ...] = ()
        self._content: Any = None

    def load(self, file: Any, **named: Any) -> Any:
        """As json.load."""
        if named or os.path.basename(str(getattr(file, "name", ""))) != _FILE:
            return json.load(file, **named)
        found = os.fstat(file.fileno())
        this = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        content, self._content = self._content, None
        if content is not None and this == self._file:
            return content
        content = json.load(file)
        self._file, self._content = this, _copied(content)
        return content


def _copied(content: Any) -> Any:
    """Deep, but for the model's words, which are many and which nobody changes."""
    if not isinstance(content, dict):
        return copy.deepcopy(content)
    return {
        name: {key: copy.copy(value) for key, value in part.items()}
        if name == "model" and isinstance(part, dict)
        else copy.deepcopy(part)
        for name, part in content.items()
    }
