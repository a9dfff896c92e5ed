"""The command line against a platform of its own: what programs read, what people read, how errors end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from e2e.rig import eventually
from modelmora_app.cli import cli

from bench.up import Up

EMPTY = ("import", "--empty")
ECHO = (*EMPTY, "--engine", "echo")
PROGRAM = Path(sys.executable).parent / "modelmora"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("cli") / "data") as up:
        up.add_model("demo/echo", engine="echo", options={"dimensions": 4})
        up.add_model("demo/still", engine="echo")
        yield up


def modelmora(up: Up, *arguments: str, text: str = "", **environ: str | None) -> Result:
    """One invocation; in this process, because starting fifty would take most of the time."""
    unset: dict[str, str | None] = {key: None for key in os.environ if key.startswith("MODELMORA_")}
    settings = {"MODELMORA_TARGET": up.target, "MODELMORA_DATA_DIR": str(up.data_dir)}
    return CliRunner().invoke(cli, arguments, input=text, env={**unset, **settings, **environ}, prog_name="modelmora")


def answer(up: Up, *arguments: str, text: str = "") -> Any:
    """What a program reads."""
    told = modelmora(up, *arguments, "--json", text=text)
    assert told.exit_code == 0, told.stderr
    return json.loads(told.stdout)


def test_embed_prints_vectors_for_programs_and_likeness_for_people(up: Up) -> None:
    told = answer(up, "embed", "demo/echo", "one text", "another", "one text")
    assert [len(row) for row in told["embeddings"]] == [4, 4, 4]
    assert told["embeddings"][0] == told["embeddings"][2] != told["embeddings"][1]
    assert told["usage"]["input_tokens"] == 5
    assert told["model_version"] == "models/demo/echo/versions/v1.0.0"
    assert told["timings"]["total"].startswith("PT")
    shown = modelmora(up, "embed", "demo/echo", "one text", "another").stdout
    assert "demo/echo@v1.0.0 (echo" in shown
    assert "2 × 4 float32, 3 tokens" in shown


def test_embed_reads_lines_from_standard_input(up: Up) -> None:
    told = answer(up, "embed", "demo/echo", "--file", "-", text="first\nsecond\n")
    assert len(told["embeddings"]) == 2
    streamed = modelmora(up, "embed", "demo/echo", "--lines", "--file", "-", text="first\nsecond\n").stdout
    assert [json.loads(line)["embedding"] for line in streamed.splitlines()] == told["embeddings"]


def test_a_blank_line_ends_a_stream_after_the_answers_to_those_before_it(up: Up) -> None:
    shown = modelmora(up, "embed", "demo/echo", "--lines", "--file", "-", text="first\nsecond\n\nthird\n")
    assert (shown.exit_code, len(shown.stdout.splitlines())) == (2, 2), shown.output
    assert ":3: is empty or only white space" in shown.stderr


def test_a_model_is_imported_loaded_listed_and_taken_away(up: Up) -> None:
    made = answer(up, "import", "--empty", "--engine", "echo", "--name", "cli/one", "--version", "1.0.0")
    assert (made["state"], made["task_type"]) == ("ready", "txt2embed")
    assert "cli/one" in modelmora(up, "models").stdout
    assert answer(up, "models", "show", "cli/one")["versions"][0]["version"] == "1.0.0"
    assert answer(up, "models", "alias", "set", "cli/one", "production", "1.0.0")["aliases"]["production"] == "1.0.0"
    (found,) = answer(up, "models", "search", "cli", "one")
    assert found["name"] == "models/cli/one"
    assert answer(up, "models", "update", "cli/one@1.0.0", "--metric", "f1=0.5")["metrics"] == {"f1": 0.5}
    chosen = answer(up, "models", "select", "cli/one", "--metric", "f1")
    assert chosen["model_version"]["version"] == "1.0.0"
    history = modelmora(up, "models", "alias", "history", "cli/one").stdout
    assert "production" in history
    assert "system" in history

    def audited() -> list[str]:
        did = answer(up, "audit", "--filter", 'resource = "models/cli/one/versions/1.0.0"')
        return [entry["method"].rpartition("/")[2] for entry in did]

    # A call waits a second for its entry, not longer.
    eventually(lambda: audited() == ["UpdateModelVersion", "ImportModel"], 30, "both calls are on record")
    loaded = answer(up, "load", "cli/one@production", "--pin")
    assert (loaded["state"], loaded["pinned"]) == ("loaded", True)
    assert "cli/one@1.0.0 (pinned)" in modelmora(up, "ps").stdout
    held = modelmora(up, "models", "delete", "cli/one", "--force")
    assert held.exit_code == 4
    assert "VersionInUse" in held.stderr
    (unloaded,) = answer(up, "unload", "cli/one", "--force")
    assert unloaded["state"] == "unloaded"

    def deleted() -> Any:
        told = modelmora(up, "models", "delete", "cli/one", "--force", "--json")
        assert told.exit_code == 0 or "VersionInUse" in told.stderr, told.stderr
        return told.exit_code == 0 and json.loads(told.stdout)

    # The registry hears a moment after the worker has ended that nobody holds its version.
    assert eventually(deleted, 30, "nobody holds it") == {"deleted": "cli/one"}
    assert modelmora(up, "models", "show", "cli/one").exit_code == 3


def test_health_and_info_are_told(up: Up) -> None:
    assert answer(up, "health", "--wait", "10")["overall"]["state"] in ("healthy", "degraded")
    assert "database" in modelmora(up, "health").stdout
    assert answer(up, "info")["devices"][0]["id"] == "host"
    assert "up for" in modelmora(up, "info").stdout


def test_ps_shows_memory(up: Up) -> None:
    answer(up, "load", "demo/echo")
    told = answer(up, "ps")
    assert "models/demo/echo/versions/v1.0.0" in {replica["model_version"] for replica in told["replicas"]}
    (host,) = [device for device in told["memory"] if device["device"] == "host"]
    assert 0 < host["charged_bytes"] <= host["budget_bytes"]


def test_watching_tells_what_is_there_and_what_changes(up: Up) -> None:
    answer(up, "load", "demo/echo")
    seen: list[str] = []
    with subprocess.Popen(
        [PROGRAM, "--target", up.target, "ps", "--watch", "--timeout", "120"], stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        for line in watch.stdout:
            seen.append(line.strip())
            if line.startswith("demo/echo@v1.0.0 ") and ": loaded" in line and "→" not in line:
                answer(up, "unload", "demo/echo", "--force")
            if "→ unloaded" in line:
                break
        watch.terminate()
    assert any("loaded → draining" in line for line in seen), seen


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("embed", "demo/nothing", "a"), 3, "ModelNotFound"),
        (("embed", "demo/echo@nothing", "a"), 3, "VersionNotFound"),
        (("embed", "not a name", "a"), 2, "InvalidArgument"),
        (("embed", "demo/echo", "   "), 2, "InvalidArgument"),
        (("embed", "demo/echo", "a", "--dimensions", "5000"), 2, "InvalidArgument"),
        ((*EMPTY, "--engine", "echoo", "--name", "a/b", "--version", "1.0.0"), 2, "EngineNotFound"),
        ((*ECHO, "--name", "ab", "--version", "1.0.0"), 2, "InvalidArgument"),
        ((*ECHO, "--name", "a/b", "--version", "a..b"), 2, "InvalidArgument"),
        ((*ECHO, "--name", "a/b", "--version", "1.0.0", "--option", "x=1"), 2, "InvalidArgument"),
        ((*ECHO, "--name", "demo/still", "--version", "v1.0.0", "--option", "seed=9"), 4, "VersionExists"),
        (("import", "/etc", "--name", "a/b", "--version", "1.0.0"), 2, "InvalidArgument"),
        (("unload", "demo/nothing"), 3, "ModelNotFound"),
        (("models", "delete", "demo/still@v1.0.0"), 4, "VersionIsCurrent"),
        (("models", "list", "--filter", "nonsense ~ 1"), 2, "InvalidArgument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_errors_end_with_their_reason_and_code(up: Up, arguments: tuple[str, ...], code: int, reason: str) -> None:
    told = modelmora(up, *arguments, "--json")
    assert told.exit_code == code, told.stderr
    assert told.stdout == ""
    error = json.loads(told.stderr)["error"]
    assert error["reason"] == reason
    if error["status"] == "INVALID_ARGUMENT" and reason == "InvalidArgument":
        assert error["fields"], error
    for_people = modelmora(up, *arguments).stderr
    assert for_people.startswith("modelmora: ")
    assert "Traceback" not in for_people


def test_the_target_is_found_without_being_told(up: Up) -> None:
    told = modelmora(up, "models", MODELMORA_TARGET="")
    assert "demo/echo" in told.stdout


def test_settings_are_shown_with_their_origin(up: Up) -> None:
    told = modelmora(up, "config", "show", "platform", "--origin", "--json", "--set", "platform.grace_seconds=7")
    lines = {line["name"]: line for line in json.loads(told.stdout)}
    assert lines["platform.data_dir"]["origin"] == "env MODELMORA_DATA_DIR"
    assert lines["platform.grace_seconds"]["value"] == "7.0"
    assert lines["platform.grace_seconds"]["origin"] == "--set platform.grace_seconds"
    assert lines["platform.host"]["origin"] == "default"
    wrong = modelmora(up, "config", "show", "--set", "platform.port=70000")
    assert wrong.exit_code == 2
    assert "platform.port" in wrong.stderr
    everything = modelmora(up, "config", "show")
    assert "lifecycle." in everything.stdout
    assert "registry.model_roots" in everything.stdout


def test_a_token_closes_the_door_of_a_running_platform(tmp_path: Path) -> None:
    with Up(tmp_path / "data") as up:
        assert modelmora(up, "models").exit_code == 0
        made = modelmora(up, "token", "create", "--role", "client", "--expires", "1h")
        token = made.stdout.strip()
        refused = modelmora(up, "models")
        assert refused.exit_code == 5
        assert "MODELMORA_TOKEN" in refused.stderr
        assert modelmora(up, "models", MODELMORA_TOKEN=token).exit_code == 0
        assert modelmora(up, "models", "--token", token).exit_code == 0
        wrong = modelmora(up, "models", MODELMORA_TOKEN=token[:-1] + "!")
        assert wrong.exit_code == 5
        forbidden = modelmora(
            up, "import", "--empty", "--engine", "echo", "--name", "a/b", "--version", "1.0.0", MODELMORA_TOKEN=token
        )
        assert forbidden.exit_code == 5
        (known,) = json.loads(modelmora(up, "token", "list", "--json").stdout)
        assert modelmora(up, "token", "revoke", known["id"]).exit_code == 0
        assert modelmora(up, "models", MODELMORA_TOKEN=token).exit_code == 5


def test_placement_is_explained_and_use_is_replayed(up: Up, tmp_path: Path) -> None:
    assert "demo/still@v1.0.0: fits" in modelmora(up, "explain", "demo/still").stdout
    answer(up, "embed", "demo/echo", "a text")
    assert answer(up, "explain", "demo/echo")["outcome"] == "loaded"
    shown = modelmora(up, "ps").stdout
    assert {"PROFILE", "START", "CHARGED", "PREDICTED", "IDLE"} <= set(shown.splitlines()[0].split())
    answer(up, "unload", "demo/echo", "--force")  # its use ends, and is written down
    file = tmp_path / "trace.jsonl"

    def exported() -> str:
        told = modelmora(up, "trace", "export", "--output", str(file))
        assert told.exit_code == 0, told.stderr
        return file.read_text()

    events = [json.loads(line) for line in eventually(exported, 60, "the use is written down").splitlines()]
    assert "models/demo/echo/versions/v1.0.0" in {event["model_version"] for event in events}
    results = answer(up, "simulate", "--trace", str(file), "--policy", "lru,ttl", "--budget", "1GiB")
    assert [result["policy"] for result in results] == ["lru", "ttl"]
    assert all(result["acquires"] == len(events) for result in results)
    assert "MISSES" in modelmora(up, "simulate", "--trace", str(file)).stdout
    file.write_text("")
    assert modelmora(up, "simulate", "--trace", str(file)).stdout.startswith("nothing was replayed")
    assert modelmora(up, "decisions").exit_code == 0
    assert answer(up, "decisions", "--model", "demo/echo", "--outcome", "plan") == []


def test_residency_and_node_are_shown_and_set(up: Up) -> None:
    assert "defaults" in modelmora(up, "residency", "show").stdout
    told = answer(up, "residency", "set", "demo/still", "--keep-alive", "5m", "--min-replicas", "1")
    assert (told["keep_alive"], told["min_replicas"], told["revision"]) == ("PT300S", 1, 1)
    shown = modelmora(up, "residency", "show").stdout
    assert "demo/still@v1.0.0" in shown
    assert "5 min" in shown
    wrong = modelmora(up, "residency", "set", "demo/still", "--max-replicas", "1", "--min-replicas", "2")
    assert wrong.exit_code == 2
    assert "residency.min_replicas" in wrong.stderr
    answer(up, "residency", "set", "demo/still", "--min-replicas", "0", "--keep-alive", "default")
    set_ = modelmora(up, "node", "set", "--budget", "host=60%", "--policy", "gdsf", "--idle-ttl", "10m")
    assert set_.exit_code == 0, set_.stderr
    assert "60% of what exists" in set_.stdout
    found = answer(up, "node", "show")
    assert (found["policy"], found["idle_ttl"], found["state"]) == ("gdsf", "PT600S", "active")
    warned = modelmora(up, "node", "set", "--budget", "host=100000GiB")
    assert "warning: " in warned.stderr
    unknown = modelmora(up, "node", "set", "--budget", "cuda:99=8GiB")
    assert unknown.exit_code == 2
    assert "node.budgets[0].device" in unknown.stderr
    back = answer(up, "node", "set", "--default-budgets", "--policy", "default", "--idle-ttl", "default")
    assert back["node"]["policy"] == "lru"


def test_a_drained_node_says_what_to_do_and_comes_back(up: Up) -> None:
    answer(up, "load", "demo/echo")
    drained = modelmora(up, "drain", "--wait", "--reason", "a new disk")
    assert "nothing is in memory" in drained.stdout
    refused = modelmora(up, "load", "demo/echo")
    assert refused.exit_code == 6
    assert "a new disk" in refused.stderr
    assert "modelmora uncordon" in refused.stderr
    assert "a new disk" in modelmora(up, "health").stdout
    assert answer(up, "uncordon")["state"] == "active"
    assert answer(up, "load", "demo/echo")["state"] == "loaded"


def test_the_shell_completes_the_new_commands() -> None:
    environ = {"_MODELMORA_COMPLETE": "bash_complete", "COMP_WORDS": "modelmora node ", "COMP_CWORD": "2"}
    told = subprocess.run([PROGRAM], env={**os.environ, **environ}, capture_output=True, text=True, timeout=30)
    assert {line.partition(",")[2] for line in told.stdout.splitlines()} == {"show", "set"}
