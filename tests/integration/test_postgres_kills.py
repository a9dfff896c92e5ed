"""SIGKILL of the host alone, of postgres, of everything at once, under writes: nothing stays, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest
from leftovers import processes_naming, wait_for_none
from modelmora_runtime.postgres import EmbeddedPostgres

ROUNDS = 10
SEED = 20_260
HOST = Path(__file__).with_name("embedded_host.py")


class Host:
    """The host program as its own process, and what it said was committed."""

    def __init__(self, data_dir: Path, first: int) -> None:
        environ = {**os.environ, "MODELMORA_DATA_DIR": str(data_dir)}
        self.process = subprocess.Popen(
            [sys.executable, str(HOST), str(data_dir), str(data_dir.parent / "run"), str(first)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            text=True,
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        word = self.output.readline().split()
        assert word[:1] == ["ready"], self.process.communicate()
        self.postgres_pid = int(word[1])
        self.committed: set[int] = set()

    def read(self, count: int) -> None:
        """Wait for so many more commits."""
        for _ in range(count):
            self.committed.add(int(self.output.readline()))

    def read_rest(self) -> None:
        self.committed.update(int(line) for line in self.output.read().splitlines() if line.strip().isdigit())
        self.process.wait(30)
        self.output.close()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.mark.parametrize("victim", ["host", "everything"])
def test_a_kill_leaves_no_process_and_loses_no_row(data_dir: Path, victim: str) -> None:
    chance = random.Random(f"{SEED} {victim}")
    committed: set[int] = set()
    for number in range(ROUNDS):
        host = Host(data_dir, number * 1_000_000)
        host.read(chance.randrange(1, 200))
        time.sleep(chance.uniform(0, 0.01))
        victims = [host.process.pid]
        if victim == "everything":
            victims = list(processes_naming(data_dir))
            assert host.process.pid in victims
            assert host.postgres_pid in victims
            chance.shuffle(victims)
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                assert pid != host.process.pid
        host.read_rest()
        committed |= host.committed
        # Every second round the next host comes while the old server may still be there.
        if number % 2:
            wait_for_none(data_dir)
    found = asyncio.run(_numbers(data_dir))
    assert committed <= found
    assert len(committed) >= ROUNDS
    # At most the one write per round that was on its way is there without having been confirmed.
    assert len(found - committed) <= ROUNDS
    wait_for_none(data_dir)


def test_a_killed_server_is_started_again_under_the_same_host(data_dir: Path) -> None:
    chance = random.Random(f"{SEED} postgres")
    host = Host(data_dir, 0)
    for _ in range(ROUNDS):
        host.read(chance.randrange(1, 100))
        [pid] = [
            pid
            for pid, command in processes_naming(data_dir / "postgres").items()
            if os.path.basename(command.split()[0]) == "postgres" and _parent(pid) == host.process.pid
        ] or [0]
        if pid:
            os.kill(pid, signal.SIGKILL)
    host.read(100)
    os.kill(host.process.pid, signal.SIGKILL)
    host.read_rest()
    wait_for_none(data_dir)
    assert host.committed <= asyncio.run(_numbers(data_dir))
    wait_for_none(data_dir)


def test_a_server_that_was_stopped_when_its_host_was_killed_is_no_obstacle(data_dir: Path) -> None:
    host = Host(data_dir, 0)
    host.read(10)
    family = [pid for pid in processes_naming(data_dir) if pid != host.process.pid]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    os.kill(host.process.pid, signal.SIGKILL)
    host.read_rest()
    try:
        assert processes_naming(data_dir)
        assert host.committed <= asyncio.run(_numbers(data_dir))
        wait_for_none(data_dir)
    finally:
        for pid in processes_naming(data_dir):
            os.kill(pid, signal.SIGKILL)


async def _numbers(data_dir: Path) -> set[int]:
    async with EmbeddedPostgres(data_dir, data_dir.parent / "run") as postgres:
        connection = await asyncpg.connect(postgres.url.replace("+asyncpg", ""))
        try:
            return {row["value"] for row in await connection.fetch("SELECT value FROM number")}
        finally:
            await connection.close()


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
