"""Memory of the machine and of a container, and the settings that share it out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from modelmora.errors import InvalidArgument
from modelmora_lifecycle.main import Settings
from modelmora_runtime import machine
from modelmora_runtime.settings import load

GIB = 1024**3


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup of version 2 below one that has no limit."""
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    monkeypatch.setattr(machine, "_folders", lambda: [inner, tmp_path])
    return inner


def test_the_machine_has_memory_and_some_of_it_is_available() -> None:
    assert 0 < machine.available_bytes() <= machine.total_bytes()


def test_looks_at_memory_intern_nothing_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interned strings that come and go double Python's table of them."""
    (tmp_path / "cgroup").write_text("0::/an-own-folder/and-another\n")
    monkeypatch.setattr(machine, "_OWN", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    machine.available_bytes()
    for words in (("an-own", "folder"), ("and", "another")):
        part = "-".join(words)
        assert sys.intern(part) is not part, "it was forgotten, and the next look interns it again"


def test_a_container_has_what_its_cgroup_allows(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text(f"{GIB // 4}\n")
    (cgroup / "memory.current").write_text(f"{GIB // 8}\n")
    (cgroup / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 16}\n")
    assert machine.total_bytes() == GIB // 4
    assert machine.available_bytes() == GIB // 4 - GIB // 8 + GIB // 16
    assert machine.limit() == machine.Limit(GIB // 4, "cgroup")


def test_without_a_limit_the_machine_is_what_there_is(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text("max\n")
    assert machine.limit() == machine.Limit(machine._machine()[0], "machine")


def test_version_1_has_other_names_and_figures_of_the_whole_tree(cgroup: Path) -> None:
    (cgroup / "memory.limit_in_bytes").write_text(f"{GIB // 4}\n")
    (cgroup / "memory.usage_in_bytes").write_text(f"{GIB // 8}\n")
    stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {GIB // 64}\ntotal_active_file {GIB // 32}\n"
    (cgroup / "memory.stat").write_text(stat)
    assert machine.limit() == machine.Limit(GIB // 4, "cgroup")
    assert machine.available_bytes() == GIB // 8 + GIB // 64 + GIB // 32


def test_an_unlimited_cgroup_of_version_1_is_the_machine(cgroup: Path) -> None:
    (cgroup / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.limit().limited_by == "machine"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "3200000 100000\n"}, 8),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu.cfs_quota_us": "300000\n", "cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_processors_are_those_of_the_affinity_and_of_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_folders", lambda controller: [tmp_path])
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert machine.cpu_cores() == cores


@pytest.mark.parametrize("name", ["memory.events", "memory.oom_control"])
def test_kills_of_the_kernel_are_counted_where_our_cgroup_counts_them(cgroup: Path, name: str) -> None:
    before = machine.out_of_memory_kills()
    (cgroup / name).write_text(f"under_oom 0\noom_kill {before + 3}\n")
    assert machine.out_of_memory_kills() == before + 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_budget_bytes", "-1"),
        ("memory_share", "0"),
        ("memory_share", "1.5"),
        ("memory_share", "nan"),
        ("minimum_residency_seconds", "nan"),
        ("minimum_residency_seconds", "-0.1"),
        ("holder_grace_seconds", "inf"),
        ("holder_grace_seconds", "0"),
        ("load_timeout_seconds", "soon"),
        ("load_bytes_per_second", "0"),
        ("idle_ttl_seconds", "-1"),
        ("watch_interval_seconds", "0"),
        ("decisions_kept", "1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load({"lifecycle": Settings}, environ={f"MODELMORA_LIFECYCLE_{field.upper()}": value})
    assert [violation.field for violation in caught.value.fields] == [f"lifecycle.{field}"]


def test_settings_have_defaults_that_work() -> None:
    settings = load({"lifecycle": Settings}, environ={})["lifecycle"]
    assert isinstance(settings, Settings)
    assert settings.memory_budget_bytes == 0
    assert settings.minimum_residency_seconds == 2.0
