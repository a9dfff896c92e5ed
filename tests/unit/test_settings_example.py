"""deploy/config.example.yaml, and the plain reading of `up` and `serve`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from modelmora.errors import InvalidArgument
from modelmora_app import host_commands
from modelmora_app.host_commands import NAMES

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "config.example.yaml"


def test_the_example_has_every_setting_at_its_default() -> None:
    assert EXAMPLE.read_text() == host_commands.example_config(), "run scripts/config-example"


def test_the_example_changes_nothing_as_it_is_and_is_valid_when_all_of_it_is_taken(tmp_path: Path) -> None:
    environ = {"HOME": "/home/me"}
    plain = host_commands.load_settings(NAMES, {}, None, environ)
    assert host_commands.load_settings(NAMES, {}, EXAMPLE, environ).sections == plain.sections
    taken = re.sub(r"^  #(\w+: )", r"  \1", EXAMPLE.read_text(), flags=re.M)
    (tmp_path / "all.yaml").write_text(taken.replace("~", "/home/me"))
    loaded = host_commands.load_settings(NAMES, {}, tmp_path / "all.yaml", environ)
    same = {name for name in plain.origins if loaded.origins[name] != "default"}
    assert same == set(plain.origins), "every setting is in the file"
    for name, section in loaded.sections.items():
        values, before = section.model_dump(), plain.sections[name].model_dump()
        assert {key for key in values if values[key] != before[key]} <= {"node"}


def test_the_config_file_may_be_named_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("platform:\n  port: 7\nregistry:\n  nonsense: 1\n")
    environ = {"HOME": "/h", "MODELMORA_CONFIG": str(file)}
    assert host_commands.load_settings(["observability"], {}, None, environ).platform.port == 7
    with pytest.raises(InvalidArgument, match="nonsense"):
        host_commands.load_settings(NAMES, {}, None, environ)


def test_a_context_that_does_not_exist_is_named() -> None:
    with pytest.raises(InvalidArgument, match="billing"):
        host_commands.load_settings(["billing"], {}, None, {"HOME": "/h"})


@pytest.mark.parametrize(
    ("command", "arguments", "read"),
    [
        ("up", [], (list(NAMES), {}, None)),
        ("up", ["--port", "0", "--data-dir=/x"], (list(NAMES), {"port": "0", "data_dir": "/x"}, None)),
        ("up", ["--config", "c.yaml", "--insecure"], (list(NAMES), {"insecure": True}, Path("c.yaml"))),
        ("up", ["--set", "lifecycle.node=a=b"], (list(NAMES), {"lifecycle.node": "a=b"}, None)),
        ("serve", ["registry", "inference"], (["registry", "inference"], {}, None)),
        ("serve", ["registry", "--port", "7"], (["registry"], {"port": "7"}, None)),
        # Everything else is click's to answer.
        ("serve", [], None),
        ("serve", ["billing"], None),
        ("up", ["registry"], None),
        ("up", ["--help"], None),
        ("up", ["--port"], None),
        ("up", ["--prot", "7"], None),
        ("up", ["--set", "lifecycle.node"], None),
        ("up", ["--insecure=yes"], None),
    ],
)
def test_plain_arguments_are_read_without_click(
    command: str, arguments: Sequence[str], read: tuple[object, ...] | None
) -> None:
    assert host_commands.read_arguments(command, arguments) == read


def test_every_engine_has_a_card() -> None:
    cards = host_commands.engine_cards()
    assert {"echo", "sentence_transformers"} <= cards.keys()
    assert [violation.field for violation in cards["echo"].check_options({"delay": 1})] == ["delay"]
    assert not cards["echo"].needs_files
