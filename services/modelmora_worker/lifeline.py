"""Dying with the host: a pipe whose write end only the host holds, watched by the kernel.

Python code cannot notice a parent's death while something holds the interpreter lock, and PDEATHSIG speaks of the
parent alone, which is the fork server, whose death a worker shall survive. So the kernel is told to send SIGKILL when
the pipe's last writer is gone (O_ASYNC with F_SETSIG): whatever this process does, it ends with the host.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal


def die_with(read_end: int) -> None:
    """Has the kernel kill this process once the pipe has no writer. Nothing may ever be written to the pipe."""
    fcntl.fcntl(read_end, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(read_end, _F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(read_end, fcntl.F_GETFL)
    fcntl.fcntl(read_end, fcntl.F_SETFL, flags | os.O_ASYNC)
    # It may have happened before the kernel was told.
    poll = select.poll()
    poll.register(read_end, select.POLLHUP)
    if poll.poll(0):
        os.kill(os.getpid(), signal.SIGKILL)


_F_SETSIG = 10  # Linux; the fcntl module has it too, but its stubs do not.
