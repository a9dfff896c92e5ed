"""Thousands of busy streams: none of their calls is lost, and a good call beside them is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.evidence import write
from bench.streams import evidence, streams


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_high_call_beside_five_thousand_busy_streams_is_answered_in_time(tmp_path: Path) -> None:
    """Writes down what was seen."""
    report = streams(tmp_path / "site", 5000, 60.0)
    write("streams", evidence(report))
    assert not report.wrong(), "\n".join(report.wrong())
