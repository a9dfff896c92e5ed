"""Watches a platform from outside, every 100 ms: its ledger by RPC, its processes and their memory in /proc.

    python bench/soak_watch.py TARGET DATA_DIR

A line on standard input asks for what was seen so far, as one line of JSON; its end ends the watch. What must never be,
each with how often it was seen and the first words about it:

    overcharged   more is charged than the budget, for longer than it takes to evict
    overused      the workers' private memory is more than the budget, for as long
    leaked        the process of a replica that is gone lives on
    doubled       an engine family has more than one fork server
    silent        the platform did not answer
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import grpc
from modelmora.lifecycle.v1 import lifecycle_pb2, lifecycle_pb2_grpc

INTERVAL_SECONDS = 0.1
PATIENCE_SECONDS = {"overcharged": 30.0, "overused": 15.0, "leaked": 15.0, "doubled": 15.0, "silent": 20.0}
"""What may pass by itself does so even where much else wants the processors."""
MIB = 1024 * 1024
FAMILY_EVERY = 10
"""The processes of the platform are looked for in every tenth sample: that reads all of /proc."""


class Watch:
    """What was seen."""

    def __init__(self, target: str, data_dir: str) -> None:
        self._folder = os.fsencode(data_dir)
        self._channel = grpc.insecure_channel(target)
        self._lifecycle = lifecycle_pb2_grpc.LifecycleServiceStub(self._channel)
        self._since: dict[tuple[str, str], float] = {}
        self._pids: set[int] = set()
        self._workers: set[int] = set()
        """Every pid that was a replica's."""
        self._read: dict[int, tuple[int, int]] = {}
        """By pid: resident and private bytes when both were read."""
        self.samples = 0
        self.violations: dict[str, list[str]] = {}
        self.most: dict[str, int] = {"charged_bytes": 0, "private_bytes": 0, "replicas": 0}

    def look(self) -> None:
        """One sample."""
        self.samples += 1
        try:
            memory = self._lifecycle.GetMemory(lifecycle_pb2.GetMemoryRequest(), timeout=2)
            replicas = list(self._lifecycle.ListReplicas(lifecycle_pb2.ListReplicasRequest(), timeout=2).replicas)
        except grpc.RpcError as error:
            self._judge("silent", {"platform": str(error.code())})  # type: ignore[attr-defined]
            return
        self._judge("silent", {})
        host = next(device for device in memory.devices if device.device == "host")
        over = {"host": f"{host.charged_bytes} of {host.budget_bytes}"}
        self._judge("overcharged", over if host.charged_bytes > host.budget_bytes else {})
        now_there = {replica.pid for replica in replicas if replica.pid}
        self._read = {pid: self._read[pid] for pid in self._read.keys() & now_there}
        private = sum(self._private(pid) for pid in now_there)
        self._judge("overused", {"host": f"{private} of {host.budget_bytes}"} if private > host.budget_bytes else {})
        self._pids = {pid for pid in self._pids | now_there if alive(pid)}
        self._judge("leaked", {str(pid): f"pid {pid}" for pid in self._pids - now_there})
        self._workers |= now_there
        if self.samples % FAMILY_EVERY == 0:
            self._judge("doubled", self._doubled())
        for name, value in (
            ("charged_bytes", host.charged_bytes),
            ("private_bytes", private),
            ("replicas", len(replicas)),
        ):
            self.most[name] = max(self.most[name], value)

    def _private(self, pid: int) -> int:
        """Read again when its resident memory has moved: the kernel walks all that a worker has, for 10 ms."""
        resident = resident_bytes(pid)
        before = self._read.get(pid)
        if before is None or abs(resident - before[0]) > MIB:
            before = self._read[pid] = resident, private_bytes(pid)
        return before[1]

    def own_bytes(self) -> int:
        """Anonymous memory of the platform's own processes, the database's aside. Pages of files do not count: whether
        those are private depends on who else on this machine has mapped the same library."""
        pids = [pid for pid in platform_pids(self._folder) if name_of(pid) != "postgres"]
        return sum(anonymous_bytes(pid) for pid in pids)

    def _doubled(self) -> dict[str, str]:
        """Families with several fork servers."""
        servers: dict[str, list[int]] = {}
        for pid, family in fork_servers(self._folder).items():
            if family and pid not in self._workers:
                servers.setdefault(family, []).append(pid)
        return {family: f"{family}: {pids}" for family, pids in servers.items() if len(pids) > 1}

    def _judge(self, kind: str, now_wrong: dict[str, str]) -> None:
        """What is wrong for longer than it may be is a violation, once."""
        now = time.monotonic()
        for key in [key for key in self._since if key[0] == kind and key[1] not in now_wrong]:
            del self._since[key]
        for what, reason in now_wrong.items():
            since = self._since.setdefault((kind, what), now)
            if since <= now - PATIENCE_SECONDS[kind]:
                self.violations.setdefault(kind, []).append(reason)
                self._since[kind, what] = float("inf")

    def report(self) -> dict[str, object]:
        return {
            "samples": self.samples,
            "violations": {kind: [len(found), found[0]] for kind, found in self.violations.items()},
            "own_bytes": self.own_bytes(),
            **{f"most_{name}": value for name, value in self.most.items()},
        }


def private_bytes(pid: int) -> int:
    """What only this process has, swapped out or not (USS)."""
    return _rolled_up(pid, ("Private_Clean", "Private_Dirty", "Swap:"))


def anonymous_bytes(pid: int) -> int:
    """Its share (PSS) of anonymous memory, swapped out or not: a fork and its server have theirs in common."""
    return _rolled_up(pid, ("Pss_Anon", "SwapPss"))


def _rolled_up(pid: int, kinds: tuple[str, ...]) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    figures = (line.split() for line in lines if line.startswith(kinds))
    return sum(int(figure[1]) for figure in figures) * 1024


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def words(pid: int) -> str:
    try:
        return (
            f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')[:120]}"
        )
    except OSError:
        return str(pid)


def platform_pids(folder: bytes) -> set[int]:
    """Living processes whose working folder, command or environment names the data folder, and all that descend from
    them: where its path is long, their sockets and working folder are elsewhere. (The soak has looked in vain for fork
    servers to kill, and never ended.)"""
    found = set()
    parents = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        process = Path("/proc") / name
        parents[int(name)] = parent_of(int(name))
        try:
            facts = [os.fsencode(os.readlink(process / "cwd"))]
            facts += [(process / part).read_bytes() for part in ("cmdline", "environ")]
        except OSError:
            continue
        if any(folder in fact for fact in facts) and alive(int(name)):
            found.add(int(name))
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found and alive(pid)}:
        found |= more
    return found


def fork_servers(folder: bytes) -> dict[int, str]:
    """The platform's, each with its family; the root has none. A worker is a fork of one and looks like it, until its
    own server is gone: then only lifecycle knows."""
    looks = {pid: words(pid) for pid in platform_pids(folder)}
    found = {pid: look.partition("--family ")[2].strip() for pid, look in looks.items() if "fork_server.py" in look}
    return {pid: family for pid, family in found.items() if not found.get(parent_of(pid), "")}


def spares(folder: bytes) -> set[str]:
    """Families whose fork server has a spare worker, where no other worker lives."""
    servers = fork_servers(folder)
    return {servers[parent] for pid in platform_pids(folder) if (parent := parent_of(pid)) in servers} - {""}


def practising(folder: bytes, data_dir: Path) -> bool:
    """Whether a child of a family's fork server does anything: a spare takes its memory while it practises, long after
    it is there. Asked where no other worker lives."""
    servers = fork_servers(folder)
    forks = [pid for pid in platform_pids(folder) if servers.get(parent_of(pid))]
    return any((data_dir / "run").glob("*.practice")) or any(_computes(pid) for pid in forks)


def _computes(pid: int) -> bool:
    """Whether any of its threads runs, could run, or waits for a disk."""
    try:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return True  # it, or a thread of it, has just ended
    return any(stat.rpartition(")")[2].split()[0] in "RD" for stat in stats)


def parent_of(pid: int) -> int:
    """0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def main(target: str, data_dir: str) -> None:
    watch = Watch(target, data_dir)
    turn, over = threading.Lock(), threading.Event()

    def go_on() -> None:
        while not over.wait(INTERVAL_SECONDS):
            with turn:
                watch.look()

    thread = threading.Thread(target=go_on, name="watch")
    thread.start()
    for _ in sys.stdin:
        with turn:
            print(json.dumps(watch.report()), flush=True)
    over.set()
    thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
