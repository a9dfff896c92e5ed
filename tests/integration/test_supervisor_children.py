"""Real children: drained, stopped in steps, told of our death by the kernel, reaped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from modelmora_runtime import exec_child, supervisor
from modelmora_runtime.supervisor import Child, Identity

ENV = {"PATH": "/usr/bin:/bin"}


@pytest.fixture(autouse=True)
def _drained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last lines of a child are waited for, however late the thread that reads them gets its turn."""
    monkeypatch.setattr(supervisor, "_DRAIN_SECONDS", 30.0)


async def shell(script: str, *arguments: str, **options: object) -> Child:
    return await Child.start(["/bin/sh", "-c", script, "sh", *arguments], ENV, **options)  # type: ignore[arg-type]


async def test_a_childs_output_is_drained_kept_and_written(tmp_path: Path) -> None:
    heard: list[str] = []
    log_file = tmp_path / "logs" / "child.log"
    child = await shell('seq 1 50000; printf "no newline"; exit 3', log_file=log_file, on_line=heard.append)
    exit = await child.exited
    assert (exit.code, exit.signal) == (3, None)
    assert exit.log_tail[-2:] == ("50000", "no newline")
    assert len(exit.log_tail) == supervisor.TAIL_LINES
    assert log_file.read_text().startswith("1\n2\n3\n")
    assert log_file.read_text().endswith("50000\nno newline")
    assert len(heard) == 50_001


async def test_a_line_without_end_does_not_fill_the_memory() -> None:
    child = await shell("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end")
    exit = await child.exited
    assert exit.log_tail[-1] == "end"
    assert max(len(line) for line in exit.log_tail) <= 8192


async def test_a_child_has_a_session_a_clean_signal_state_and_only_the_given_environment() -> None:
    child = await shell("ps -o pid=,pgid=,sid= -p $$; grep -E 'Sig(Blk|Ign)' /proc/self/status; env; umask")
    lines = (await child.exited).log_tail
    assert [int(word) for word in lines[0].split()] == [child.pid] * 3
    assert lines[1].split() == ["SigBlk:", "0" * 16]
    # 32 and 33 are the C library's own: nobody can set them, so they stay as this process inherited them; and what
    # these tests were started with (nohup, a background job) is inherited too, but for what every child is given anew.
    anew = {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT}
    ours = {n for n in signal.Signals if signal.getsignal(n) is signal.SIG_IGN} - anew
    assert lines[2].startswith("SigIgn:")
    assert int(lines[2].split()[1], 16) & ~(0b11 << 31) == sum(1 << (n - 1) for n in ours)
    assert lines[-1] == "0077"
    assert {line.partition("=")[0] for line in lines[3:-1]} <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"}


async def test_stop_asks_then_kills_and_reaps() -> None:
    polite = await shell("trap 'exit 7' TERM; echo ready; for i in $(seq 9999); do sleep 0.01; done")
    stubborn = await shell("trap '' TERM; echo ready; sleep 600 & for i in $(seq 9999); do sleep 0.01; done")
    for child in (polite, stubborn):
        await _says_something(child)
    assert (await polite.stop(60)).code == 7
    began = time.monotonic()
    exit = await stubborn.stop(0.2)
    assert time.monotonic() - began >= 0.2
    assert exit.signal == signal.SIGKILL
    for child in (polite, stubborn):
        assert not child.is_running
        assert supervisor.start_ticks(child.pid) is None
        child.send(signal.SIGTERM)
        child.kill()
        assert await child.stop(1) == await child.exited
    # The whole group went with it; the orphaned sleep is reaped by init.
    async with asyncio.timeout(20):
        while _group(stubborn.pid):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_cancelling_a_stop_skips_to_the_kill() -> None:
    child = await shell("trap '' TERM; echo ready; for i in $(seq 9999); do sleep 0.01; done")
    await _says_something(child)
    stop = asyncio.create_task(child.stop(600))
    await asyncio.wait([stop], timeout=0.2)
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    assert (await child.exited).signal == signal.SIGKILL


async def test_cancelling_the_wait_for_a_child_leaves_it_alone() -> None:
    child = await shell("sleep 600")
    waiting = asyncio.ensure_future(child.exited)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not child.exited.done()
    assert (await child.stop(0)).signal in (signal.SIGTERM, signal.SIGKILL)


async def test_a_grandchild_that_keeps_the_output_open_does_not_hold_up_the_exit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "_DRAIN_SECONDS", 0.5)
    child = await shell("echo before; setsid sleep 600 & echo $!; exit 0")
    async with asyncio.timeout(60):
        exit = await child.exited
    assert exit.log_tail[0] == "before"
    os.kill(int(exit.log_tail[1]), signal.SIGKILL)


async def test_what_cannot_be_started_is_a_child_that_says_so() -> None:
    child = await Child.start(["/nowhere/program"], ENV)
    exit = await child.exited
    assert exit.code == exec_child.EXEC_FAILED
    assert exit.log_tail == ("exec_child: /nowhere/program: No such file or directory",)


PARENT = """
import asyncio, os, sys
from modelmora_runtime.supervisor import Child
async def main():
    # A child that ignores what it can and whose grandchild is on its own: the kernel's signal still ends it.
    child = await Child.start(
        ["/bin/sh", "-c", "trap '' TERM INT HUP; echo ready; for i in $(seq 2000); do sleep 0.05; done"],
        {"PATH": "/usr/bin:/bin"},
    )
    while sys.argv[1] == "later" and not child.log_tail():
        await asyncio.sleep(0.005)
    print(child.pid, child.start_ticks, flush=True)
    await child.exited
asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["later", "while it starts"])
async def test_when_the_parent_is_killed_the_kernel_ends_the_child(moment: str) -> None:
    for _ in range(3):
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PARENT, moment, stdout=asyncio.subprocess.PIPE, cwd="/"
        )
        assert parent.stdout is not None
        pid, ticks = map(int, (await parent.stdout.readline()).split())
        pidfd = os.pidfd_open(pid)
        assert supervisor.start_ticks(pid) == ticks
        parent.kill()
        assert await supervisor.wait_process(pidfd, 20)
        os.close(pidfd)
        await parent.wait()


def test_a_parent_that_died_before_the_signal_was_armed_is_noticed() -> None:
    command = supervisor.child_command(["/bin/echo", "alive"])
    command[command.index(str(os.getpid()))] = "1"
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (exec_child.PARENT_GONE, "")


async def test_a_stub_in_the_working_folder_is_not_taken_for_ours(tmp_path: Path) -> None:
    for name in ("ctypes.py", "os.py", "signal.py", "stat.py"):
        (tmp_path / name).write_text("raise SystemExit('decoy')")
    child = await Child.start(["/bin/echo", "ours"], {**ENV, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert (await child.exited).log_tail == ("ours",)


async def test_a_namespace_shows_the_child_another_user() -> None:
    child = await Child.start(["/usr/bin/id", "-u"], ENV, identity=Identity("namespace", 1, 1))
    exit = await child.exited
    if exit.code == exec_child.NAMESPACE_REFUSED:
        pytest.skip(exit.log_tail[-1])
    assert exit.log_tail == ("1",)


@pytest.mark.skipif(os.geteuid() != 0, reason="is about being root")
async def test_a_user_is_taken_for_good_and_still_dies_with_us() -> None:
    script = "id -u; id -G; grep -E 'CapEff' /proc/self/status; cat /proc/self/stat > /dev/null"
    child = await shell(script, identity=Identity("user", 65534, 65534))
    assert (await child.exited).log_tail == ("65534", "65534", "CapEff:\t0000000000000000")


async def _says_something(child: Child) -> None:
    async with asyncio.timeout(20):
        while not child.log_tail():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def _group(leader: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getpgid(int(name)) == leader:
                found.append(int(name))
        except ProcessLookupError:
            pass
    return found


def test_starting_a_child_costs_little() -> None:
    async def start() -> float:
        took: list[float] = []
        while not took or (took[-1] >= 0.2 and len(took) < 50):
            began = time.monotonic()
            child = await Child.start(["/bin/true"], ENV)
            await child.exited
            took.append(time.monotonic() - began)
        return min(took)

    # 0.015 s on an idle machine; beside others' load the best of a few tells.
    assert asyncio.run(start()) < 0.2
