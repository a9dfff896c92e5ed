"""What this machine, or this container, has: main memory and who uses it, and processors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

_CGROUP = Path("/sys/fs/cgroup")
_MEMORY, _OWN = Path("/proc/meminfo"), Path("/proc/self/cgroup")
"""Kept: pathlib interns each part of a path. Parts that come and go with each look make Python's table of interned
strings twice as large as it need be, for good, which is two megabytes."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How much memory exists for us, and what says so."""

    total_bytes: int
    limited_by: Literal["machine", "cgroup"]


def limit() -> Limit:
    """The machine's memory, or less where a cgroup says so."""
    machine, _ = _machine()
    smallest = min((found for folder in _folders() if (found := _limit(folder)) is not None), default=machine)
    return Limit(smallest, "cgroup") if smallest < machine else Limit(machine, "machine")


def total_bytes() -> int:
    """Memory that exists for us."""
    return limit().total_bytes


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed for lack of memory since it started, in our cgroup where it counts."""
    for folder in _folders():
        for name in ("memory.events", "memory.oom_control"):
            count = _figures(folder / name).get("oom_kill")
            if count is not None:
                return count
    return _figures(Path("/proc/vmstat")).get("oom_kill", 0)


def available_bytes() -> int:
    """What could be taken now without swapping: caches that can be dropped count as free."""
    _, available = _machine()
    room = [available]
    for folder in _folders():
        most = _limit(folder)
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if most is not None and used is not None:
            room.append(max(0, most - used + _dropable(folder)))
    return min(room)


def cpu_cores() -> int:
    """Processors that this process may use: those it may run on, or less where the quota of a cgroup says so; at least
    1. A part of a processor does not count: a thread on it would hold up the others."""
    quotas = [found for folder in _folders("cpu") if (found := _quota(folder)) is not None]
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def _quota(folder: Path) -> float | None:
    """Processors by the quota of one cgroup; None where it has none."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        quota, period = (str(_number(folder / f"cpu.cfs_{name}_us") or "") for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _machine() -> tuple[int, int]:
    figures: dict[str, int] = {}
    for line in _MEMORY.read_text().splitlines():
        name, _, rest = line.partition(":")
        figures[name] = int(rest.split()[0]) * 1024
    return figures["MemTotal"], figures["MemAvailable"]


def _folders(controller: str = "memory") -> list[Path]:
    """Our cgroup, as this controller has it, and those above it. A namespaced container sees its own as the root, a
    host process the whole path."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            return [folder for folder in _up(_CGROUP, path) if folder.is_dir()]
        if controller in controllers.split(","):
            return [folder for folder in _up(_CGROUP / controller, path) if folder.is_dir()]
    return []


@lru_cache(maxsize=4)
def _up(root: Path, path: str) -> tuple[Path, ...]:
    """The folder of a cgroup and those above it."""
    own = root / path.lstrip("/")
    return tuple(folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _limit(folder: Path) -> int | None:
    return _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _dropable(folder: Path) -> int:
    """Cached files: the kernel drops them before it kills. Version 1 tells the figures of the whole tree apart."""
    figures = _figures(folder / "memory.stat")
    return sum(figures.get(f"total_{name}", figures.get(name, 0)) for name in ("inactive_file", "active_file"))


def _figures(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(" ") for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
