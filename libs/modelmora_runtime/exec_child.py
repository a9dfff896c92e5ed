"""The first code of every child process: tie its life to its parent's, take an identity, become the program.

    python -I -S exec_child.py PARENT_PID DEATH_SIGNAL IDENTITY PROGRAM ARGUMENT...

IDENTITY is `same`, `namespace:UID:GID` (a user namespace in which our own user is called UID) or `user:UID:GID`.
It is a program of its own because code between fork and exec is not safe in a parent that has threads. It costs 11 ms
(measured; `setpriv` and `unshare` would cost 4, but they are not everywhere and leave the window between fork and prctl
open in which a parent can die unnoticed: here `getppid` is asked after the signal is armed).

With `--reach PATH...` in place of the program it prints the first folder this identity cannot enter, and its mode.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import sys

PARENT_GONE, NAMESPACE_REFUSED, USER_REFUSED, EXEC_FAILED, UNREACHABLE = 120, 121, 122, 123, 124

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    parent, death_signal, identity, *program = argv
    libc = ctypes.CDLL(None, use_errno=True)
    kind, _, ids = identity.partition(":")
    # The identity comes first: a change of credentials disarms the death signal.
    if kind == "namespace":
        _enter_namespace(libc, *map(int, ids.split(":")))
    elif kind == "user":
        _become_user(*map(int, ids.split(":")))
    if libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
        _leave(EXEC_FAILED, f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        os._exit(PARENT_GONE)
    if program[0] == "--reach":
        _reach(program[1:])
    # The interpreter ignores two signals, and what is ignored or blocked would stay so through exec.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(ignored, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execv(program[0], program)  # noqa: S606
    except OSError as error:
        _leave(EXEC_FAILED, f"{program[0]}: {error.strerror}")


def _enter_namespace(libc: ctypes.CDLL, uid: int, gid: int) -> None:
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER) != 0:
        _leave(NAMESPACE_REFUSED, f"unshare: {os.strerror(ctypes.get_errno())}")
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {outer_uid} 1"),
            ("gid_map", f"{gid} {outer_gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        _leave(NAMESPACE_REFUSED, f"{error.filename}: {error.strerror}")


def _become_user(uid: int, gid: int) -> None:
    try:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:
        _leave(USER_REFUSED, f"user {uid}: {error.strerror}")


def _reach(paths: list[str]) -> None:
    for path in paths:
        steps = path.split("/")
        for count in range(1, len(steps) + 1):
            folder = "/".join(steps[:count]) or "/"
            if not os.access(folder, os.X_OK):
                try:
                    mode = oct(stat.S_IMODE(os.stat(folder).st_mode))
                except OSError as error:
                    mode = str(error.strerror)
                print(f"{folder} ({mode})", flush=True)
                os._exit(UNREACHABLE)
    os._exit(0)


def _leave(code: int, message: str) -> None:
    os.write(2, f"exec_child: {message}\n".encode())
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
