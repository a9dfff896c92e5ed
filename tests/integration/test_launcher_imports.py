"""A fork server that imports for long: waited for while it works, ended when it does nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelmora.errors import LoadFailed
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
def busy() -> Iterator[int]:
    """The process id of one that computes for far longer than it is waited for."""
    program = "import time; end = time.monotonic() + 3; print('begun', flush=True)\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


async def test_a_fork_server_that_computes_is_waited_for_longer_than_a_launch_may_take(busy: int) -> None:
    server = _ForkServer("slow", {})
    server.pid = busy
    waiting = asyncio.create_task(server.opened_at_work(0.2))
    await asyncio.wait((waiting,), timeout=0.8)
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


async def test_a_fork_server_that_hangs_is_ended_and_the_next_launch_has_another(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "slow_engine", ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    library = tmp_path / "slow_library.py"
    library.write_text(f"open({str(pipe)!r}).read()")  # until somebody writes
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs", spare_after_seconds=None)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            with pytest.raises(LoadFailed, match=r"has done nothing for 0\.5 s"):
                await launcher.launch(SPEC, timeout_seconds=0.5)
            library.write_text("")
            worker = await launcher.launch(SPEC, timeout_seconds=DEADLINE_SECONDS)
        assert worker.start_mode == "forked"
    finally:
        await launcher.close()
