"""A fork server that imports for long: waited for while it works, ended when it does nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from modelmora.errors import LoadFailed
from modelmora_lifecycle import launcher as launchers
from modelmora_lifecycle.launcher import LaunchSpec, LocalLauncher, _ForkServer
from third_party import install

SPEC = LaunchSpec(replica_uid="0123456789", engine="theirs", label="models/acme/theirs/versions/1", family="slow")
ENGINE = """
from modelmora_worker.engines import base, echo
ROW = base.EngineRow(
    "theirs", "slow_engine:Engine", frozenset({"txt2embed"}), needs_files=False, family="slow",
    preload=("slow_library",),
)
class Engine(echo.EchoEngine): pass
"""
DEADLINE_SECONDS = 30.0


@pytest.fixture
def busy() -> int:
    """The process id of one that is at work whenever it is looked at: our own, for it is us who look. Another one might
    be kept from running while we are not, and would have done nothing."""
    return os.getpid()


async def test_a_fork_server_that_computes_is_waited_for_longer_than_a_launch_may_take(busy: int) -> None:
    server = _ForkServer("slow", {})
    server.pid = busy
    waiting = asyncio.create_task(server.opened_at_work(2.0))
    await asyncio.wait((waiting,), timeout=2.5)  # it would be ended after 20
    assert not waiting.done()
    server._heard({"ready": True}, [])
    await waiting
    server.hang_up("over")


async def test_a_fork_server_that_computes_without_end_is_not_waited_for_without_end(busy: int) -> None:
    server = _ForkServer("slow", {})
    server.pid = busy
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(LoadFailed, match="not come to an end"):
            await server.opened_at_work(0.05)
    server.hang_up("over")


def test_signs_of_work_are_those_of_a_process_that_computes_and_none_of_one_that_waits() -> None:
    program = "print('begun', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            seen = {launchers._signs_of_work(process.pid)}
            while len(seen) < 5:  # until it has had the processor so often
                seen.add(launchers._signs_of_work(process.pid))
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            assert len({launchers._signs_of_work(process.pid) for _ in range(5)}) == 1
        finally:
            process.kill()
    assert launchers._signs_of_work(process.pid) == ()


async def test_a_fork_server_that_hangs_is_ended_and_the_next_launch_has_another(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "slow_engine", ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    library = tmp_path / "slow_library.py"
    begun = tmp_path / "begun"
    library.write_text(f"open({str(begun)!r}, 'w'); open({str(pipe)!r}).read()")  # until somebody writes
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs", spare_after_seconds=None)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            warming = asyncio.create_task(launcher.warm("slow"))
            while not (launcher.fork_servers() and begun.exists()):  # noqa: ASYNC110 - it is no idler before that
                await asyncio.sleep(0.01)
            with pytest.raises(LoadFailed, match=r"has done nothing for 0\.5 s"):
                await launcher.launch(SPEC, timeout_seconds=0.5)
            await warming
            library.write_text("")
            worker = await launcher.launch(SPEC, timeout_seconds=DEADLINE_SECONDS)
        assert worker.start_mode == "forked"
    finally:
        await launcher.close()
