"""The soak in its short form; `make soak` is the long one. See bench/soak.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from e2e.rig import no_process_left

from bench.soak import Goals, soak


@pytest.mark.timeout(900)
def test_twelve_models_in_a_place_for_three_lose_nothing_and_leave_nothing() -> None:
    goals = Goals(swaps=60, kills=15, cancelled=100, answered=2000)
    # A short path: the run folder is in the data folder then, and whoever is left behind names it.
    with tempfile.TemporaryDirectory(prefix="mm-soak-") as folder:
        report = soak(Path(folder) / "data", goals, seed=3, limit_seconds=600)
        no_process_left(Path(folder) / "data")
    assert not report.wrong(), "\n".join([*report.wrong(), str(report.counts)])
