"""Which process, for good: a name that no other process of any machine ever has, and whether its bearer is gone.

A pid alone is used again, so the name also has when the process started; and only who sees the same processes (the same
boot of the same machine, the same pid namespace) can tell anything about it.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


def this_process() -> str:
    """`{boot id}/{pid namespace}/{pid}/{start in clock ticks}`."""
    found = _stat(os.getpid())
    return f"{seen_from_here()}{os.getpid()}/{found[1] if found else 0}"


@cache
def seen_from_here() -> str:
    """What the names of all processes begin with that can be seen from this one."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}/"


def is_gone(process: str) -> bool:
    """Whether it has surely ended. False for one that is stopped, or cannot be seen from here."""
    pid, _, ticks = process.removeprefix(seen_from_here()).partition("/")
    if not (process.startswith(seen_from_here()) and pid.isdecimal() and ticks.isdecimal() and 0 < int(pid) < 2**31):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # Somebody else's, so there is one.
    found = _stat(int(pid))
    return found is not None and (found[0] in "ZX" or found[1] != int(ticks))


def _stat(pid: int) -> tuple[str, int] | None:
    """State and start of a process; None when they are not shown to us."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode("ascii"), int(fields[19])
