"""The decisions about children that end, and the small print of reading /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora_runtime import supervisor
from modelmora_runtime.supervisor import ChildExit, Identity, RestartPolicy, RotatingLog, after_exit

POLICY = RestartPolicy(first_delay_seconds=0.1, growth=2.0, max_delay_seconds=5.0, forgive_seconds=10.0, red_after=3)


@pytest.mark.parametrize(
    ("failures", "ran_seconds", "expected"),
    [
        (0, 0.0, (1, 0.1, True)),
        (1, 0.0, (2, 0.2, True)),
        (2, 0.0, (3, 0.4, False)),
        (5, 0.0, (6, 3.2, False)),
        (9, 0.0, (10, 5.0, False)),
        (9, 9.9, (10, 5.0, False)),
        (9, 10.0, (9, 5.0, False)),
        (3, 25.0, (2, 0.2, True)),
        (3, 1000.0, (1, 0.1, True)),
        (5000, 0.0, (5001, 5.0, False)),
    ],
)
def test_a_child_that_keeps_dying_waits_longer_turns_red_and_is_forgiven_by_running(
    failures: int, ran_seconds: float, expected: tuple[int, float, bool]
) -> None:
    restart = after_exit(POLICY, failures, ran_seconds)
    assert (restart.failures, round(restart.delay_seconds, 6), restart.healthy) == expected


@given(st.lists(st.floats(0, 100), max_size=100))
def test_the_delay_is_bounded_and_never_shrinks_while_nothing_runs(runs: list[float]) -> None:
    failures, before = 0, 0.0
    for ran in runs:
        restart = after_exit(POLICY, failures, ran)
        assert POLICY.first_delay_seconds <= restart.delay_seconds <= POLICY.max_delay_seconds
        assert restart.failures >= 1
        if ran < POLICY.forgive_seconds:
            assert restart.delay_seconds >= before
        failures, before = restart.failures, restart.delay_seconds


def test_an_exit_says_how() -> None:
    assert str(ChildExit(3, None, ())) == "ended with status 3"
    assert str(ChildExit(None, signal.SIGKILL, ())) == "ended by SIGKILL"
    assert str(ChildExit(None, 40, ())) == "ended by signal 40"


def test_a_process_is_known_by_its_number_and_its_start() -> None:
    ticks = supervisor.start_ticks(os.getpid())
    assert ticks is not None
    assert supervisor.start_ticks(2**22 + 1) is None
    assert supervisor.start_time(2**22 + 1) is None
    before = time.time()
    with subprocess.Popen(["sleep", "600"]) as child:
        started = supervisor.start_time(child.pid)
        child.kill()
    assert started is not None
    assert before - 5 < started < time.time() + 5


def test_identities_are_words_for_the_first_code_of_a_child() -> None:
    assert str(Identity()) == "same"
    assert str(Identity("namespace", 1, 2)) == "namespace:1:2"
    assert str(Identity("user", 101, 104)) == "user:101:104"


def test_a_log_turns_over_and_keeps_three(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "child.log"
    log = RotatingLog(path, max_bytes=100, keep=3)
    for number in range(10):
        log.write(f"{number}".encode() * 60 + b"\n")
    log.close()
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "child.log",
        "child.log.1",
        "child.log.2",
        "child.log.3",
    ]
    assert path.read_text().startswith("9")
    assert path.with_name("child.log.3").read_text().startswith("6")
    assert path.stat().st_mode & 0o777 == 0o600
    again = RotatingLog(path, max_bytes=100)
    again.write(b"x" * 60)
    again.close()
    assert path.read_bytes() == b"x" * 60
    assert path.with_name("child.log.1").read_text().startswith("9")


def test_a_log_that_cannot_be_written_drops_and_counts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = RotatingLog(tmp_path / "file" / "child.log")
    log.write(b"12345")
    assert log.dropped_bytes == 5
