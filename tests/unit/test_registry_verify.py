"""Looking at files and hashing them, without a database."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from modelmora.errors import Cancelled
from modelmora_registry.verify import Reading, Verifier, _look, _state_of

EMPTY: Any = None


@pytest.fixture
def verifier() -> Iterator[Verifier]:
    made = Verifier(EMPTY, EMPTY, Path, lambda words, count: None)
    yield made
    made.close()


def test_a_change_whose_time_was_put_back_still_shows(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    os.utime(file, ns=(1, 1))
    before = _state_of(file)
    deadline = time.monotonic() + 20
    while True:  # The clock of a file system has ticks.
        file.write_bytes(b"weightz")
        os.utime(file, ns=(1, 1))
        if _state_of(file) != before:
            break
        assert time.monotonic() < deadline, "the change does not show"


def test_looking_tells_what_is_missing_and_what_is_too_many(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for path in ("config.json", "a/x.json", "a/b/new.json"):
        (tmp_path / path).write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "config.json")
    (tmp_path / "folder").symlink_to(tmp_path / "a")
    states, extra = _look(tmp_path, ["config.json", "a/x.json", "link.json", "gone.json", "a"])
    assert [state is not None for state in states] == [True, True, False, False, False]
    assert extra == ["a/b/new.json", "folder"]
    assert _look(tmp_path / "none", ["x"]) == ([None], [])


def test_hashing_tells_what_was_read_and_ends_when_it_is_told_to(tmp_path: Path, verifier: Verifier) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 3_000_000)
    reading = Reading()
    hashed = verifier._hash_now(file, "sha256:expected", "test", reading)
    assert hashed is not None
    assert hashed.found_sha256 == f"sha256:{hashlib.sha256(b'x' * 3_000_000).hexdigest()}"
    assert hashed.state == _state_of(file)
    assert reading.done_bytes == 3_000_000
    assert verifier._hash_now(tmp_path / "none", "sha256:x", "test", reading) is None
    (tmp_path / "link").symlink_to(file)
    assert verifier._hash_now(tmp_path / "link", "sha256:x", "test", reading) is None
    reading.ended.set()
    with pytest.raises(Cancelled):
        verifier._hash_now(file, "sha256:x", "test", reading)
