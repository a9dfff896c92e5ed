"""What `make run` sees to besides the demonstration."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from modelmora_app import starter
from modelmora_runtime import auth


def test_a_terminal_that_closes_is_noticed() -> None:
    ours, theirs = os.openpty()
    gone = threading.Event()
    watching = threading.Thread(target=starter._watch_terminal, args=(theirs, gone.set), daemon=True)
    watching.start()
    try:
        os.write(ours, b"typing is no end\n")
        assert not gone.is_set()
    finally:
        os.close(ours)
    watching.join(60)
    assert gone.is_set()
    os.close(theirs)


def test_where_tokens_are_the_starter_has_one_of_its_own_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODELMORA_TOKEN", raising=False)
    monkeypatch.delenv("MODELMORA_TOKEN_FILE", raising=False)
    path = tmp_path / "tokens.json"
    with starter._own_token(tmp_path) as token:
        assert token is None
    assert not path.exists()
    auth.create_token(path, role="client")
    with starter._own_token(tmp_path) as token:
        assert token is not None
        assert {each.role.value for each in auth.list_tokens(path)} == {"client", "operator"}
        assert auth.id_of(token) in {each.id for each in auth.list_tokens(path)}
    assert [each.role.value for each in auth.list_tokens(path)] == ["client"]
    monkeypatch.setenv("MODELMORA_TOKEN", "given")
    with starter._own_token(tmp_path) as token:
        assert token is None
