"""Which processes still belong to a folder: what a test asks after it has killed something."""

from __future__ import annotations

import os
import time
from pathlib import Path


def processes_naming(folder: Path) -> dict[int, str]:
    """pid → command of every process but us whose executable, working directory or environment names the folder."""
    found = {}
    needle = os.fsencode(folder)
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            process = Path("/proc") / name
            facts = [_link(process / "exe"), _link(process / "cwd"), _bytes(process / "environ")]
            if any(needle in fact for fact in facts):
                command = _bytes(process / "cmdline").replace(b"\0", b" ").decode(errors="replace")
                # A zombie has no command and holds nothing; whoever is its parent reaps it.
                if command:
                    found[int(name)] = command.strip()
    return found


def wait_for_none(folder: Path, seconds: float = 20.0) -> None:
    """Returns when no process names the folder any more; fails after `seconds` with those that do."""
    until = time.monotonic() + seconds
    while left := processes_naming(folder):
        assert time.monotonic() < until, left
        time.sleep(0.005)


def _link(path: Path) -> bytes:
    try:
        return os.fsencode(os.readlink(path))
    except OSError:
        return b""


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
