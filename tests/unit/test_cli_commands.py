"""The command tree: complete, lazy, clear about wrong use. What needs a platform is tested end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from modelmora.common.v1 import common_pb2
from modelmora.errors import InvalidArgument
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora_app.cli import COMMANDS, cli, memory, show
from modelmora_app.cli.inputs import texts_of
from modelmora_app.cli.models import _source
from modelmora_app.cli.placement import read_trace
from modelmora_app.cli.platform import COMMANDS as HOST_COMMANDS
from modelmora_app.cli.platform import flags_of
from modelmora_app.cli.session import local_target, memory_size, seconds_of
from modelmora_app.cli.tuning import show_candidates
from modelmora_runtime.settings import FLAGS


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(cli, arguments, env=environ, prog_name="modelmora")


def _tree(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths = [path]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            paths += _tree(found, (*path, name))
    return paths


@pytest.mark.parametrize("command", HOST_COMMANDS.values(), ids=list(HOST_COMMANDS))
def test_a_flag_that_an_error_names_is_in_the_help(command: click.Command) -> None:
    offered = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert offered == {"--config", "--set", *(f"--{name.replace('_', '-')}" for name in FLAGS)}


@pytest.mark.parametrize("path", _tree(cli), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    shown = run(*path, "--help")
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith("Usage: modelmora")


def test_the_overview_imports_nothing_that_is_slow() -> None:
    program = (
        "import sys; from modelmora_app.cli import cli\n"
        "try: cli(['--help'], prog_name='modelmora')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('grpc', 'rich', 'pydantic', 'google.protobuf', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert shown.stdout.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert f"  {name} " in shown.stdout


def test_an_unknown_command_is_wrong_use() -> None:
    assert run("modles").exit_code == 2


def test_nobody_listening_is_said_in_one_clear_line_with_exit_code_6() -> None:
    shown = run("--target", "127.0.0.1:1", "ps")
    assert shown.exit_code == 6
    assert "Is the platform running?" in shown.output
    assert "Traceback" not in shown.output


def test_watching_ends_well_with_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(session: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "_watch", interrupted)
    ended = run("--target", "127.0.0.1:9", "ps", "--watch")
    assert (ended.exit_code, ended.output) == (0, "")


def test_errors_are_json_where_json_is_asked_for() -> None:
    for arguments in (["--json", "ps"], ["ps", "--json"]):
        shown = run("--target", "127.0.0.1:1", *arguments)
        assert json.loads(shown.stderr)["error"]["status"] == "UNAVAILABLE"
        assert shown.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("import",),
        ("import", "a/b", "--option", "no-equals-sign"),
        ("import", "a/b", "--memory", "many"),
        ("import", "hub:a/b@main", "--revision", "dev"),
        ("embed", "a/b"),
        ("embed", "a/b", "text", "--priority", "urgent"),
        ("embed", "a/b", "text", "--timeout", "0"),
        ("jobs", "create", "a/b", "text", "--query", "q"),
        ("jobs", "create", "a/b", "text", "--task", "rerank", "--query", "q", "--question", "q"),
        ("jobs", "create", "a/b", "text", "--task", "classify", "--question", ""),
        ("models", "alias", "set", "a/b", "production"),
        ("models", "alias", "remove", "a/b", "production", "1"),
        ("models", "search"),
        ("models", "select", "a/b", "--require", "f1=good", "--target", "127.0.0.1:1"),
        ("models", "update", "a/b@1", "--description", "x", "--target", "127.0.0.1:1"),
        ("models", "update", "a/b", "--metric", "f1=1", "--target", "127.0.0.1:1"),
        ("audit", "--limit", "0"),
        ("serve",),
        ("serve", "gateway"),
        ("token", "create"),
        ("token", "create", "--role", "king"),
        ("token", "create", "--role", "admin", "--expires", "soon"),
        ("up", "--set", "nothing"),
        ("node", "set"),
        ("node", "set", "--budget", "8GiB"),
        ("node", "set", "--budget", "host=0%"),
        ("node", "set", "--budget", "host=101%"),
        ("node", "set", "--budget", "host=much"),
        ("node", "set", "--budget", "host=8GiB", "--default-budgets"),
        ("residency", "set", "a/b"),
        ("residency", "set", "a/b", "--keep-alive", "soon"),
        ("residency", "set", "a/b", "--max-replicas", "0"),
        ("simulate",),
        ("simulate", "--trace", "/no/such/file"),
    ],
    ids=" ".join,
)
def test_wrong_use_is_refused_before_anything_is_called(arguments: tuple[str, ...]) -> None:
    shown = run("--target", "127.0.0.1:1", *arguments)
    assert shown.exit_code == 2, shown.output
    assert "Usage:" in shown.output or "Error:" in shown.output


@pytest.mark.parametrize(
    "arguments", [("embed", "a/b"), ("embed", "a/b", "x", "--dimensions", "0"), ("jobs", "list", "--limit", "0")]
)
def test_wrong_use_is_json_where_json_is_asked_for(arguments: tuple[str, ...]) -> None:
    for given in (("--json", *arguments), (*arguments, "--json")):
        shown = run("--target", "127.0.0.1:1", *given)
        assert (shown.exit_code, shown.stdout) == (2, "")
        assert json.loads(shown.stderr)["error"]["status"] == "INVALID_ARGUMENT"
    assert run("--json", "jobs").stderr.startswith("Usage: "), "a group alone shows its help"


@pytest.mark.parametrize("target", ["http://127.0.0.1:23000", "https://node:50051", "grpc://node:50051"])
def test_a_url_is_no_target(target: str) -> None:
    shown = run("ps", MODELMORA_TARGET=target)
    assert shown.exit_code == 2, shown.output
    assert f"it is HOST:PORT, '{target.partition('//')[2]}'" in shown.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hub:org/repo", (None, "org/repo", None)),
        ("hub:org/repo@main", (None, "org/repo", "main")),
        ("hf://org/repo", (None, "org/repo", None)),
        ("org/repo", (None, "org/repo", None)),
        ("org/repo@abc", (None, "org/repo", "abc")),
        ("/models/x", ("/models/x", None, None)),
        ("/models/x/../y", ("/models/y", None, None)),
    ],
)
def test_a_source_is_a_folder_or_a_repository(source: str, expected: tuple[Any, ...]) -> None:
    assert _source(source, None, False) == expected


def test_a_folder_that_is_here_wins_over_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "repo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert _source("org/repo", None, False) == (str(tmp_path / "org" / "repo"), None, None)
    assert _source("./x", None, False) == (str(tmp_path / "x"), None, None)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2GiB", 2**31),
        ("500MB", 500_000_000),
        ("1.5 kib", 1536),
        ("42", 42),
        ("7B", 7),
        ("1TiB", 2**40),
        ("2 tb", 2 * 10**12),
    ],
)
def test_memory_sizes(text: str, size_bytes: int) -> None:
    assert memory_size(None, None, text) == size_bytes  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "1 parsec", "nan", "1e400", "1GiB2"])
def test_what_is_no_memory_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        memory_size(None, None, text)  # type: ignore[arg-type]


def test_flags_that_were_not_given_do_not_hide_the_environment() -> None:
    given = {"port": None, "insecure": False, "data_dir": "/d", "settings": {"lifecycle.memory_budget_bytes": "1GiB"}}
    assert flags_of(given) == {"data_dir": "/d", "lifecycle.memory_budget_bytes": "1GiB"}


def test_the_target_of_this_machine_is_found_in_its_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELMORA_DATA_DIR", str(tmp_path))
    assert local_target() == "127.0.0.1:50051"
    (tmp_path / "run").mkdir()
    endpoint = tmp_path / "run" / "endpoint.json"
    for damaged in ("", "[]", "{}", '{"target": 5}', "\x00"):
        endpoint.write_text(damaged)
        assert local_target() == "127.0.0.1:50051"
    endpoint.write_text('{"target": "127.0.0.1:1234", "pid": 1}')
    assert local_target() == "127.0.0.1:1234"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_the_program(shell: str) -> None:
    shown = run("completion", shell)
    assert shown.exit_code == 0, shown.output
    assert "_MODELMORA_COMPLETE" in shown.output


def test_completion_knows_commands_and_options() -> None:
    for words, expected in (
        ("modelmora mo", "models"),
        ("modelmora models im", "import"),
        ("modelmora models --fi", "--filter"),
    ):
        environ = {
            "_MODELMORA_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        assert expected in run(**environ).output


def test_tokens_are_made_listed_and_revoked(tmp_path: Path) -> None:
    at = ("--data-dir", str(tmp_path))
    assert "everyone is admin" in run("token", "list", *at).output
    made = run("token", "create", "--role", "client", "--tenant", "acme", "--expires", "30d", "--json", *at)
    token = json.loads(made.stdout)["token"]
    assert token.startswith("mm_")
    (listed,) = json.loads(run("token", "list", "--json", *at).stdout)
    assert (listed["role"], listed["tenant"]) == ("client", "acme")
    assert token not in (tmp_path / "tokens.json").read_text(), "only the hash is kept"
    assert "acme" in run("token", "list", *at).output
    assert run("token", "revoke", listed["id"], *at).exit_code == 0
    assert json.loads(run("token", "list", "--json", *at).stdout) == []
    again = run("token", "revoke", listed["id"], *at)
    assert again.exit_code == 3
    assert "TokenNotFound" in again.output


def test_a_new_token_goes_to_stdout_alone(tmp_path: Path) -> None:
    made = run("token", "create", "--role", "admin", "--data-dir", str(tmp_path))
    assert len(made.stdout.split()) == 1, "a script can take it as it is"
    assert "every call needs a token" in made.stderr


def test_a_worker_bundle_is_laid_out_once(tmp_path: Path) -> None:
    made = run("worker-bundle", str(tmp_path / "bundle"))
    assert made.exit_code == 0, made.output
    assert (tmp_path / "bundle" / "modelmora_worker").is_dir()
    again = run("worker-bundle", str(tmp_path / "bundle"))
    assert again.exit_code == 2
    assert "there is something at" in again.output


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown = run("token", "create", "--role", "admin", "--data-dir", str(tmp_path / "file" / "below"))
    assert shown.exit_code == 1
    assert shown.stderr.startswith(f"Error: {tmp_path / 'file' / 'below'}: ")
    assert "Traceback" not in shown.output


def test_a_trace_is_read_as_it_was_written_and_a_wrong_line_is_named() -> None:
    event = lifecycle_pb2.AcquireEvent(
        at_seconds=0.1,
        model_version="models/a/b/versions/1",
        priority="PRIORITY_HIGH",
        use_seconds=2.5,
        load_seconds=0.3,
    )
    event.memory.add(device="host", memory_bytes=2**40)
    line = json.dumps(show.as_json(event))
    assert read_trace([line, "", line]) == [event, event]
    for wrong in ("{", "[]", '{"colour": 1}', '{"priority": "urgent"}', '{"at_seconds": "soon"}'):
        with pytest.raises(InvalidArgument, match="line 2"):
            read_trace([line, wrong])
    with pytest.raises(InvalidArgument, match="line 1 is no acquire event: it is no object"):
        read_trace(["[]"])


def test_what_is_not_measured_yet_is_neither_within_the_gate_nor_outside(capsys: pytest.CaptureFixture[str]) -> None:
    profile = common_pb2.EngineProfile(backend="torch", precision="bf16")
    running = lifecycle_pb2.TuningCandidate(engine_profile=profile)
    broken = lifecycle_pb2.TuningCandidate(engine_profile=profile, error="it crashed")
    show_candidates([running, broken])
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["torch/bf16"]
    assert second.split() == ["torch/bf16", "no", "it", "crashed"]


TAKES_LINES = (
    ("embed", "a/b"),
    ("embed", "a/b", "--lines"),
    ("classify", "a/b"),
    ("rerank", "a/b", "query"),
    ("tokenize", "a/b"),
    ("jobs", "create", "a/b"),
    ("jobs", "create", "a/b", "--task", "rerank"),
)


@pytest.mark.parametrize("command", [*TAKES_LINES, ("answer", "a/b", "question")], ids=" ".join)
def test_a_file_that_is_not_utf_8_is_wrong_use_and_its_line_is_named(command: tuple[str, ...], tmp_path: Path) -> None:
    (bad := tmp_path / "bad.txt").write_bytes(b"no\xff\n" if command[-1] == "--lines" else b"caf\xc3\xa9\r\nno\xff\n")
    at = f"{bad}:{1 if command[-1] == '--lines' else 2}"
    shown = run(*command, "--file", str(bad), "--target", "127.0.0.1:1", "--json")
    assert shown.exit_code == 2, shown.output
    (field,) = json.loads(shown.stderr)["error"]["fields"]
    assert field == {"field": at, "description": "is not UTF-8: invalid start byte at byte 2"}


@pytest.mark.parametrize("command", TAKES_LINES, ids=" ".join)
def test_a_blank_line_is_named_and_not_left_out(command: tuple[str, ...], tmp_path: Path) -> None:
    (file := tmp_path / "texts.txt").write_text(" \nx\n" if command[-1] == "--lines" else "x\n\ny\n")
    at = f"{file}:{1 if command[-1] == '--lines' else 2}"
    shown = run(*command, "--file", str(file), "--target", "127.0.0.1:1")
    assert shown.exit_code == 2, shown.output
    assert f"{at}: is empty or only white space" in shown.stderr


@pytest.mark.parametrize("command", TAKES_LINES, ids=" ".join)
def test_a_file_without_lines_is_wrong_use(command: tuple[str, ...]) -> None:
    shown = run(*command, "--file", "/dev/null", "--target", "127.0.0.1:1")
    assert shown.exit_code == 2, shown.output
    assert "/dev/null has no lines" in shown.stderr


def test_lines_are_read_as_they_are_wanted(tmp_path: Path) -> None:
    (file := tmp_path / "texts.txt").write_bytes(b"one\r\n two \nthree\nno\xff\n")
    with file.open(encoding="utf-8", errors="surrogateescape") as opened:
        texts = texts_of(["zero"], opened)
        assert list(islice(texts, 4)) == ["zero", "one", " two ", "three"], "the last newline makes no text"
        with pytest.raises(InvalidArgument, match=r"texts\.txt:4: is not UTF-8"):
            next(texts)


def test_a_trace_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    for wrong in (b"\x8f\xff\n", b'{"model_version": "\xff"}\n'):
        (tmp_path / "trace").write_bytes(wrong)
        shown = run("simulate", "--trace", str(tmp_path / "trace"))
        assert shown.exit_code == 2, shown.output
        assert "line 1 is no acquire event" in shown.stderr
        assert "Traceback" not in shown.output


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("90s", 90), ("5m", 300), ("5 min", 300), ("1.5h", 5400), ("2d", 172800)],
)
def test_time_spans_are_read(text: str, seconds: float) -> None:
    assert seconds_of(click.Context(cli), click.Option(["--x"]), text) == seconds


@pytest.mark.parametrize(
    ("budgets", "words"),
    [
        (("host=50%", "host=1GiB"), "host is named twice"),
        (("host=0",), "nothing could ever be loaded; to empty the node, drain it"),
        (("host=0GiB",), "nothing could ever be loaded; to empty the node, drain it"),
        (("host=0%",), "nothing could ever be loaded; to empty the node, drain it"),
    ],
)
def test_a_budget_that_the_server_would_refuse_is_refused_in_its_words(budgets: tuple[str, ...], words: str) -> None:
    told = run("node", "set", *(part for budget in budgets for part in ("--budget", budget)))
    assert told.exit_code == 2
    assert words in " ".join(told.output.replace("│", " ").split())
