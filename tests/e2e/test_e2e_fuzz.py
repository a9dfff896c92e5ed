"""Every RPC of the whole platform under messages nobody would send, and its ports under connections nobody would make.
See bench/fuzz.py and bench/fuzz_connections.py."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from e2e.conftest import StartUp
from e2e.rig import eventually, no_process_left

from bench.fuzz import INFERENCE, Report, fuzz
from bench.fuzz_connections import Connections

PER_RPC = 500
OTHERS = 0.1
"""RPCs of the other contexts get so much less in the suite: what they do in the database takes the time."""
SHORT_SLACK = 0.3
"""In the short form memory has hardly settled; half a KiB that each message leaves would show."""


def judged(report: Report, folder: Path, per_rpc: int, others: int) -> None:
    no_process_left(folder / "data")
    assert report.wrong() == []
    assert report.rpcs >= 100
    for path, count in report.messages.items():
        assert count >= (per_rpc if path.startswith(INFERENCE) else others), path
    assert report.half_closed > 100


@pytest.mark.timeout(900)
def test_no_message_to_any_rpc_breaks_anything(tmp_path: Path) -> None:
    report = fuzz(tmp_path, PER_RPC, warm_up=200, seed=1, others=OTHERS, slack=SHORT_SLACK)
    judged(report, tmp_path, PER_RPC, round(PER_RPC * OTHERS))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_messages_break_nothing(tmp_path: Path) -> None:
    report = fuzz(tmp_path, 1000, warm_up=300, seed=2, readings=2)
    judged(report, tmp_path, 1000, 1000)
    assert report.messages.total() >= 100_000


FILES_OF_ITS_OWN = 10
"""What the host may have opened meanwhile by itself: connections to its database."""


@pytest.mark.timeout(300)
def test_no_connection_breaks_anything(start_up: StartUp) -> None:
    """Garbage, half of HTTP/2, frames cut short, floods, a byte now and then, and thousands that come and go."""
    up = start_up()
    up.add_model("guard/echo", engine="echo")
    connections = Connections(up.target, up.metrics, up.pid, "guard/echo", seed=1)
    asyncio.run(connections.run(each=20, dropped=1000, held=50))
    report = connections.report
    assert report.findings == []
    assert report.answered == 40
    assert report.connections.total() > 2500
    assert report.good_calls == report.good_reads > 1
    limit = report.files_before + FILES_OF_ITS_OWN
    eventually(lambda: connections.files() <= limit, 60, f"at most {limit} files are open, as before")
    assert up.process is not None
    assert up.process.poll() is None
    assert "Traceback" not in up.log.read_text(errors="replace")
