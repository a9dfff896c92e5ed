"""A tokenizer's file that is read twice in a row is parsed once, and nobody sees what another has changed."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import pytest
from modelmora_worker.engines import read_once

CONTENT = {"added_tokens": [{"id": 0, "content": "[PAD]"}], "model": {"type": "WordPiece", "vocab": {"[PAD]": 0}}}


def test_two_readers_get_the_same_and_what_one_changes_the_other_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = [types.ModuleType(name) for name in read_once._READERS]
    for reader in readers:
        reader.json = json  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, reader.__name__, reader)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(CONTENT))

    def read(number: int, path: Path = path) -> dict[str, object]:
        with path.open() as file:
            found: dict[str, object] = readers[number].json.load(file)
        return found

    with read_once.tokenizer_files():
        first = read(0)
        assert first == CONTENT
        for token in first.pop("added_tokens"):  # type: ignore[attr-defined]
            token.pop("id")
        first["model"]["vocab"].clear()  # type: ignore[index]
        # Nobody can tell from the file any more: it has the same name, place, size and time.
        found = path.stat()
        path.write_text("x" * found.st_size)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        assert read(1) == CONTENT
        with pytest.raises(json.JSONDecodeError):
            read(1)  # only in a row
        path.write_text(json.dumps(CONTENT))
        other = tmp_path / "other" / "tokenizer.json"
        other.parent.mkdir()
        other.write_text("[1]")
        assert read(0) == CONTENT
        assert read(1, other) == [1]
    assert all(reader.json is json for reader in readers)
