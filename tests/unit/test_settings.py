"""Settings: who wins, what is refused and by which name, what is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from modelmora.errors import InvalidArgument
from modelmora_runtime import machine, settings
from modelmora_runtime.settings import Loaded, Section, load, masked
from pydantic import Field, SecretStr


class Lifecycle(Section):
    memory_budget_bytes: int = Field(1000, ge=0, description="Bytes for models.")
    drain_seconds: float = Field(30.0, gt=0)
    label: str = "plain"
    pins: tuple[str, ...] = ()
    weights: Mapping[str, float] = {}
    hub_token: SecretStr | None = None


def read(
    tmp_path: Path,
    yaml: str | None = None,
    environ: dict[str, str] | None = None,
    flags: dict[str, object] | None = None,
    elsewhere: tuple[str, ...] = (),
) -> Loaded:
    config_file = None
    if yaml is not None:
        config_file = tmp_path / "config.yaml"
        config_file.write_text(yaml)
    return load(
        {"lifecycle": Lifecycle},
        config_file=config_file,
        environ={"HOME": "/home/me", **(environ or {})},
        flags=flags,
        elsewhere=elsewhere,
    )


FLAG = {"lifecycle.memory_budget_bytes": 4}
ENV = {"MODELMORA_LIFECYCLE_MEMORY_BUDGET_BYTES": "3"}
YAML = "lifecycle:\n  memory_budget_bytes: 2\n"


@pytest.mark.parametrize(
    ("yaml", "environ", "flags", "value", "origin"),
    [
        (YAML, ENV, FLAG, 4, "--set lifecycle.memory_budget_bytes"),
        (YAML, ENV, {"lifecycle.memory_budget_bytes": None}, 3, "env MODELMORA_LIFECYCLE_MEMORY_BUDGET_BYTES"),
        (YAML, {"MODELMORA_LIFECYCLE_MEMORY_BUDGET_BYTES": ""}, {}, 2, "file {file}"),
        (None, {}, {}, 1000, "default"),
        (None, {}, {"lifecycle.memory_budget_bytes": "7"}, 7, "--set lifecycle.memory_budget_bytes"),
    ],
)
def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(
    tmp_path: Path, yaml: str | None, environ: dict[str, str], flags: dict[str, object], value: int, origin: str
) -> None:
    loaded = read(tmp_path, yaml, environ, flags)
    assert loaded["lifecycle"].memory_budget_bytes == value
    assert loaded.origins["lifecycle.memory_budget_bytes"] == origin.format(file=tmp_path / "config.yaml")


def test_platform_settings_go_without_their_section_in_the_environment(tmp_path: Path) -> None:
    loaded = read(tmp_path, environ={"MODELMORA_PORT": "0", "MODELMORA_PEERS": "{registry: 'other:1'}"})
    assert loaded.platform.port == 0
    assert loaded.platform.peers == {"registry": "other:1"}
    assert read(tmp_path, flags={"port": 7}).platform.port == 7
    assert read(tmp_path, flags={"platform.port": 7}).platform.port == 7


def test_compound_values_are_yaml_in_the_environment(tmp_path: Path) -> None:
    environ = {
        "MODELMORA_LIFECYCLE_PINS": "[a, b]",
        "MODELMORA_LIFECYCLE_WEIGHTS": '{"x": 1.5}',
        "MODELMORA_LIFECYCLE_LABEL": "[a, b]",
    }
    lifecycle = read(tmp_path, environ=environ)["lifecycle"]
    assert lifecycle.pins == ("a", "b")
    assert lifecycle.weights == {"x": 1.5}
    assert lifecycle.label == "[a, b]", "a string stays as it is written"


@pytest.mark.parametrize(
    ("yaml", "environ", "flags", "field", "part"),
    [
        ("lifecycle:\n  memory_budget_bytes: -1\n", {}, {}, "lifecycle.memory_budget_bytes", "file "),
        ("lifecycle:\n  drain_seconds: .nan\n", {}, {}, "lifecycle.drain_seconds", "finite"),
        ("lifecycle:\n  drain_seconds: .inf\n", {}, {}, "lifecycle.drain_seconds", "finite"),
        ("lifecycle:\n  drian_seconds: 1\n", {}, {}, "lifecycle.drian_seconds", "no such setting"),
        ("livecycle:\n  drain_seconds: 1\n", {}, {}, "livecycle", "no such section"),
        ("lifecycle: 7\n", {}, {}, "lifecycle", "mapping"),
        ("- 7\n", {}, {}, "config_file", "mapping"),
        ("lifecycle: {\n", {}, {}, "config_file", "YAML"),
        ("lifecycle:\n  label: a\n  label: b\n", {}, {}, "config_file", "twice"),
        ("platform:\n  port: 65536\n", {}, {}, "platform.port", "65535"),
        ("platform:\n  log_level: loud\n", {}, {}, "platform.log_level", "debug"),
        ("platform:\n  host: ''\n", {}, {}, "platform.host", "at least 1"),
        (None, {"MODELMORA_LIFECYCLE_DRAIN_SECONDS": "nan"}, {}, "lifecycle.drain_seconds", "env MODELMORA_LIFE"),
        (None, {"MODELMORA_PORT": "tcp://10.0.0.1:5"}, {}, "platform.port", "env MODELMORA_PORT"),
        (None, {"MODELMORA_LIFECYCLE_PINS": "[a"}, {}, "lifecycle.pins", "env MODELMORA_LIFECYCLE_PINS"),
        (None, {}, {"lifecycle.drain_seconds": math.nan}, "lifecycle.drain_seconds", "--set lifecycle.drain_seconds"),
        (None, {}, {"lifecycle.nothing": 1}, "lifecycle.nothing", "no such setting"),
        (None, {}, {"nothing": 1}, "platform.nothing", "no such setting"),
        (None, {}, {"max_message_bytes": 1000}, "platform.max_message_bytes", "65536"),
        (None, {}, {"max_message_bytes": 1000}, "platform.max_message_bytes", "--set platform.max_message_bytes"),
        (None, {}, {"port": 65536}, "platform.port", "flag --port"),
    ],
)
def test_a_wrong_value_is_named_with_field_and_origin(
    tmp_path: Path, yaml: str | None, environ: dict[str, str], flags: dict[str, object], field: str, part: str
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        read(tmp_path, yaml, environ, flags)
    assert [violation.field for violation in raised.value.fields] == [field]
    assert part in raised.value.fields[0].description
    assert field in raised.value.message


def test_all_wrong_values_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as raised:
        read(tmp_path, "lifecycle:\n  drain_seconds: 0\n", {"MODELMORA_PORT": "x"}, {"lifecycle.pins": 3})
    assert {violation.field for violation in raised.value.fields} == {
        "lifecycle.drain_seconds",
        "platform.port",
        "lifecycle.pins",
    }


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"absent\.yaml"):
        load({}, config_file=tmp_path / "absent.yaml", environ={})


def test_all_that_is_wrong_in_a_file_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as raised:
        read(tmp_path, "livecycle:\n  drain_seconds: 1\nplatform:\n  prot: 7\nlifecycle: 7\n")
    assert {violation.field for violation in raised.value.fields} == {"livecycle", "platform.prot", "lifecycle"}


def test_sections_of_contexts_elsewhere_are_not_looked_at(tmp_path: Path) -> None:
    read(tmp_path, "registry:\n  anything: true\n", elsewhere=("registry", "lifecycle"))
    with pytest.raises(InvalidArgument):
        read(tmp_path, "registry:\n  anything: true\n")
    with pytest.raises(InvalidArgument):  # named as elsewhere, but opened here
        read(tmp_path, "lifecycle:\n  anything: true\n", elsewhere=("lifecycle",))


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"XDG_DATA_HOME": "/x"}, "/x/modelmora"),
        ({"HOME": "/h"}, "/h/.local/share/modelmora"),
        ({"HOME": "/h", "MODELMORA_DATA_DIR": "/m/../n"}, "/n"),
        ({"HOME": "/h", "XDG_DATA_HOME": ""}, "/h/.local/share/modelmora"),
    ],
)
def test_the_data_folder_follows_the_desktop_standard(environ: dict[str, str], folder: str) -> None:
    assert load({}, environ=environ).platform.data_dir == Path(folder)


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read(tmp_path, flags={"data_dir": "here"}).platform.data_dir == tmp_path / "here"


def test_sizes_may_have_units(tmp_path: Path) -> None:
    assert int(read(tmp_path, "platform:\n  max_message_bytes: 8MiB\n").platform.max_message_bytes) == 8 * 1024 * 1024


def test_sections_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read(tmp_path)["lifecycle"].label = "other"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:********@host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me&password=********"),
        ("http://127.0.0.1:4317", "http://127.0.0.1:4317"),
        (SecretStr("secret"), "********"),
        ({"api_key": "secret", "url": "a://b:secret@c"}, "{api_key: ********, url: a://b:********@c}"),
        (["a://b:secret@c"], "[a://b:********@c]"),
        (None, ""),
        (Path("/token"), "/token"),
    ],
)
def test_secrets_are_masked(value: object, shown: str) -> None:
    assert masked(value) == shown
    assert "secret" not in masked(value)


def test_what_is_shown_has_every_setting_with_its_origin(tmp_path: Path) -> None:
    environ = {"MODELMORA_DATABASE_URL": "postgresql://me:secret@h/d", "MODELMORA_LIFECYCLE_HUB_TOKEN": "secret"}
    shown = {line.name: line for line in read(tmp_path, environ=environ).shown()}
    assert shown["platform.database_url"].value == "postgresql://me:********@h/d"
    assert shown["platform.database_url"].origin == "env MODELMORA_DATABASE_URL"
    assert shown["lifecycle.hub_token"].value == "********"
    assert shown["platform.port"].origin == "default"
    fields = {f"platform.{name}" for name in settings.PlatformSettings.model_fields}
    assert shown.keys() == fields | {f"lifecycle.{name}" for name in Lifecycle.model_fields}


def test_memory_is_what_the_machine_or_the_group_has() -> None:
    total = machine.total_bytes()
    assert 64 * 1024 * 1024 < total < 1 << 50
    assert load({}, environ={"HOME": "/h"}).platform.in_flight_bytes == total // 8
