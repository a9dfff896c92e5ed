"""Fault drill of inference under load: workers, fork servers, parts of the platform and the database are killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.drill import KINDS, drill, each_twice, evidence, for_minutes
from bench.evidence import write


@pytest.mark.long  # more than a minute, and deaths of single processes are in the suite
@pytest.mark.timeout(600)
def test_whatever_is_killed_each_job_ends_once_and_each_call_is_answered_or_may_be_repeated(tmp_path: Path) -> None:
    """Twelve deaths, two of each kind."""
    report = drill(tmp_path / "site", 4, each_twice(4))
    assert not report.wrong(), "\n".join(report.wrong())
    assert all(report.kills[kind] >= 2 for kind in KINDS), report.kills


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_five_minutes_of_deaths(tmp_path: Path) -> None:
    """Writes down what was seen."""
    seed = int(os.environ.get("MODELMORA_DRILL_SEED", "7"))
    report = drill(tmp_path / "site", seed, for_minutes(seed, 300.0))
    write("drill", evidence(report))
    assert not report.wrong(), "\n".join(report.wrong())
