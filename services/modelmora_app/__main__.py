"""The program `modelmora`: server commands start at once, everything else is a client in `modelmora_app.cli`."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn

# gRPC must not hook itself into fork: our children are started by exec, and its hooks cost time and may hang.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
# What gRPC's core writes to stderr about broken connections is in our statuses already.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# The thread that waits for the events of our calls also reads their connections, instead of three of a pool that hand
# each other what has come: an eighth of the host's processor time (ADR 16).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")


def main() -> None:
    """The entry point of the script `modelmora`."""
    if len(sys.argv) > 1 and sys.argv[1] in ("up", "serve"):
        try:
            from modelmora_app import host_commands

            quick = host_commands.read_arguments(sys.argv[1], sys.argv[2:])
            if quick is not None:
                _leave(host_commands.run(*quick))
        except KeyboardInterrupt:  # before the host listens to signals: nothing is there yet to be stopped
            sys.exit(130)
    from modelmora_app.cli import cli

    cli(prog_name="modelmora")


def _leave(code: int) -> NoReturn:
    """Everything is closed by now. Not sys.exit: the interpreter would join a thread that still waits for a silent
    Hub, for up to its read timeout, and take apart what the kernel frees at once."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read our lines may be gone
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
