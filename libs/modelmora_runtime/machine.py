"""How much main memory this machine, or this container, has and who uses it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def total_bytes() -> int:
    """Memory that exists for us: the machine's, or less where a cgroup says so."""
    machine, _ = _machine()
    limits = [limit for limit in (_limit(folder) for folder in _folders()) if limit is not None]
    return min([machine, *limits])


def available_bytes() -> int:
    """What could be taken now without swapping: caches that can be dropped count as free."""
    _, available = _machine()
    room = [available]
    for folder in _folders():
        limit = _limit(folder)
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            room.append(max(0, limit - used + _dropable(folder)))
    return min(room)


def private_bytes(pids: Iterable[int]) -> int:
    """Private memory of processes, near enough: resident pages less those backed by files or shared."""
    total = 0
    for pid in pids:
        try:
            resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
        except (OSError, ValueError):
            continue
        total += (int(resident) - int(shared)) * _PAGE_BYTES
    return total


def _machine() -> tuple[int, int]:
    figures: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        figures[name] = int(rest.split()[0]) * 1024
    return figures["MemTotal"], figures["MemAvailable"]


def _folders() -> list[Path]:
    """Our cgroup and those above it. A namespaced container sees its own as the root, a host process the whole path."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            own = _CGROUP / path.lstrip("/")
            return [folder for folder in (own, *own.parents) if folder.is_relative_to(_CGROUP) and folder.is_dir()]
        if "memory" in controllers.split(","):
            root = _CGROUP / "memory"
            own = root / path.lstrip("/")
            return [folder for folder in (own, *own.parents) if folder.is_relative_to(root) and folder.is_dir()]
    return []


def _limit(folder: Path) -> int | None:
    return _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _dropable(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    figures = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(figures.get("inactive_file", figures.get("total_inactive_file", "0")))
