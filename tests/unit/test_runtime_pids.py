"""The name of a process, and who can tell that it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from modelmora_runtime import pids


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits until its input ends, and a pipe that tells that it runs."""
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def name_of(pid: int, *, later: int = 0) -> str:
    found = pids._stat(pid)
    assert found is not None
    return f"{pids.seen_from_here()}{pid}/{found[1] + later}"


def test_a_process_that_runs_or_is_stopped_is_not_gone(child: subprocess.Popen[bytes]) -> None:
    assert not pids.is_gone(pids.this_process())
    assert pids.this_process() == name_of(os.getpid())
    name = name_of(child.pid)
    assert not pids.is_gone(name)
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert not pids.is_gone(name)


def test_a_process_that_ended_is_gone_also_before_it_was_reaped(child: subprocess.Popen[bytes]) -> None:
    name = name_of(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert pids.is_gone(name)
    child.wait()
    assert pids.is_gone(name)


def test_a_pid_that_is_used_again_is_another_process() -> None:
    assert pids.is_gone(name_of(os.getpid(), later=-1))


@pytest.mark.parametrize(
    "name", ["", "x", "/1/1", "0/0/1/1", "{here}", "{here}0/1", "{here}-1/1", "{here}x/1", "{here}1"]
)
def test_nothing_is_known_of_a_process_elsewhere_or_of_no_process(name: str) -> None:
    assert not pids.is_gone(name.format(here=pids.seen_from_here()))
