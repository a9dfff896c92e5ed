"""`modelmora lock` and `modelmora models verify` as people see them."""

from __future__ import annotations

import os
from pathlib import Path

from click.testing import CliRunner, Result
from e2e.rig import MINILM, eventually
from modelmora_app.cli import cli

from bench.up import Up


def modelmora(up: Up, *arguments: str, text: str | None = None) -> Result:
    unset: dict[str, str | None] = {key: None for key in os.environ if key.startswith("MODELMORA_")}
    environ = {**unset, "MODELMORA_TARGET": up.target}
    return CliRunner().invoke(cli, arguments, input=text, env=environ, prog_name="modelmora")


def test_a_lock_is_made_checked_compared_and_taken_away(platform: Up, tmp_path: Path) -> None:
    file, edited = tmp_path / "models.lock.yaml", tmp_path / "edited.yaml"
    whole = "the worker has answered the golden inputs"
    eventually(lambda: "fingerprint:" in modelmora(platform, "lock", "create", MINILM).stdout, 60, whole)
    made = modelmora(platform, "lock", "create", MINILM, "--output", str(file), "--name", "cli-test")
    assert made.exit_code == 0, made.stderr
    assert f"{file}: 1 model, cli-test" in made.stdout
    assert file.read_text().startswith("# A model lock of ModelMora")
    assert modelmora(platform, "lock", "create", MINILM).stdout == file.read_text()
    assert "cli-test" in modelmora(platform, "lock", "list").stdout
    assert modelmora(platform, "lock", "show", "cli-test").stdout == file.read_text()

    for lock in (str(file), "cli-test", "modelLocks/cli-test"):
        checked = modelmora(platform, "lock", "verify", lock)
        assert (checked.exit_code, checked.stdout) == (0, "1 of 1 as locked\n")
    edited.write_text(file.read_text().replace("precision: fp32", "precision: bf16", 1))
    drifted = modelmora(platform, "lock", "verify", "--full", "-", text=edited.read_text())
    assert drifted.exit_code == 1
    assert f"{MINILM}@v1.0.0 drifted:" in drifted.stdout
    assert "models[0].engine_profile.precision" in drifted.stdout
    assert "0 of 1 as locked" in drifted.stdout

    assert modelmora(platform, "lock", "diff", str(file), "cli-test").stdout == "no difference\n"
    compared = modelmora(platform, "lock", "diff", "cli-test", str(edited))
    assert compared.exit_code == 1
    assert "bf16" in compared.stdout
    applied = modelmora(platform, "lock", "apply", str(file))
    assert (applied.exit_code, applied.stdout) == (0, f"{MINILM}@v1.0.0: present\n")

    assert modelmora(platform, "lock", "delete", "cli-test").stdout == "deleted cli-test\n"
    gone = modelmora(platform, "lock", "verify", "cli-test")
    assert gone.exit_code == 3
    assert "modelmora lock list" in gone.stderr
    torn = modelmora(platform, "lock", "verify", "-", text="format: modelmora.lock/1\nmodels:\n  - engine: x\n")
    assert torn.exit_code == 2
    assert "line 3" in torn.stderr
    assert modelmora(platform, "lock", "verify", str(tmp_path / "none.yaml")).exit_code == 2


def test_the_files_of_a_version_are_verified(platform: Up) -> None:
    told = modelmora(platform, "models", "verify", MINILM, "--full")
    assert told.exit_code == 0
    assert told.stdout.endswith("files as registered\n")
    assert modelmora(platform, "models", "alias", "set", MINILM, "checked", "v1.0.0", "--verified").exit_code == 0
    assert modelmora(platform, "models", "alias", "remove", MINILM, "checked").exit_code == 0
