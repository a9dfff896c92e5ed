"""The soak in its short form; `make soak` is the long one. See bench/soak.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.rig import no_process_left

from bench.soak import Goals, soak


@pytest.mark.timeout(900)
def test_twelve_models_in_a_place_for_three_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    report = soak(tmp_path / "data", Goals(swaps=60, kills=15, cancelled=100, answered=2000), seed=3, limit_seconds=480)
    no_process_left(tmp_path / "data")
    assert not report.wrong(), "\n".join([*report.wrong(), str(report.counts)])
