"""Child processes: started so that they die with us, drained, stopped in steps, reaped, restarted with backoff.

A child is the leader of a session of its own, so a Ctrl-C in the terminal reaches only the host, which then stops its
children in order. The kernel tells it of our death (PDEATHSIG, armed by `exec_child.py`); a Python thread could be held
up. The kernel means the *thread* that started the child: start children from a thread that lives as long as they may
(the event loop's).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TAIL_LINES = 200
_STUB = str(Path(__file__).with_name("exec_child.py"))
_DRAIN_SECONDS = 0.5
_LINE_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a child runs as: `same`, `namespace` (root seen as `uid` by the child alone) or `user`."""

    kind: str = "same"
    uid: int = 0
    gid: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "same" else f"{self.kind}:{self.uid}:{self.gid}"


@dataclass(frozen=True, slots=True)
class ChildExit:
    """How a child ended: its exit code or the signal that ended it, and its last lines."""

    code: int | None
    signal: int | None
    log_tail: tuple[str, ...]

    def __str__(self) -> str:
        if self.signal is not None:
            known = self.signal in signal.Signals.__members__.values()
            return f"ended by {signal.Signals(self.signal).name if known else f'signal {self.signal}'}"
        return f"ended with status {self.code}"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a child that ended is started again."""

    first_delay_seconds: float = 0.1
    growth: float = 2.0
    max_delay_seconds: float = 30.0
    forgive_seconds: float = 20.0
    """Running for so long forgives one failure."""
    red_after: int = 3
    """So many failures in a row, and health turns red."""


@dataclass(frozen=True, slots=True)
class Restart:
    """The decision: after `delay_seconds`, as failure number `failures` in a row."""

    failures: int
    delay_seconds: float
    healthy: bool


def after_exit(policy: RestartPolicy, failures: int, ran_seconds: float) -> Restart:
    """What to do after a child ended that had failed `failures` times in a row before and ran for `ran_seconds`."""
    failures = max(0, failures - int(ran_seconds / policy.forgive_seconds)) + 1
    # The exponent is bounded: a child may fail for weeks, and 2.0 ** 1100 is an OverflowError.
    delay = min(policy.max_delay_seconds, policy.first_delay_seconds * policy.growth ** min(failures - 1, 60))
    return Restart(failures, delay, healthy=failures < policy.red_after)


def child_command(
    argv: Sequence[str], *, death_signal: int = signal.SIGKILL, identity: Identity | None = None
) -> list[str]:
    """The command that starts `argv` (absolute program path) as a child of this process that dies with it."""
    return [
        sys.executable,
        "-I",
        "-S",
        _STUB,
        str(os.getpid()),
        str(int(death_signal)),
        str(identity or Identity()),
        *argv,
    ]


class Child:
    """A running child process. Make one with `await Child.start(...)`."""

    def __init__(self, process: subprocess.Popen[bytes], pidfd: int, name: str, drain: _Drain) -> None:
        self.name = name
        self.pid = process.pid
        self.start_ticks = start_ticks(process.pid) or 0
        self._process = process
        self._pidfd = pidfd
        self._drain = drain
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[ChildExit] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._on_exit)

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        name: str | None = None,
        log_file: Path | None = None,
        cwd: Path | str | None = None,
        death_signal: int = signal.SIGKILL,
        identity: Identity | None = None,
        pass_fds: Sequence[int] = (),
        on_line: Callable[[str], None] | None = None,
    ) -> Child:
        """Start `argv` (absolute program path) with exactly `env`; output goes to `log_file` (rotated) and the ring.

        `death_signal` is what the kernel sends it when we die. `on_line` is called in the event loop for each line.
        Raises OSError when the interpreter cannot be started; a program that cannot is a child that exits at once.
        """
        name = name or os.path.basename(argv[0])
        output, child_output = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 (returns after vfork and exec, about a millisecond)
                child_command(argv, death_signal=death_signal, identity=identity),
                stdin=subprocess.DEVNULL,
                stdout=child_output,
                stderr=child_output,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                umask=0o077,
                pass_fds=pass_fds,
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(child_output)
        drain = _Drain(output, name, RotatingLog(log_file) if log_file else None, on_line)
        return cls(process, os.pidfd_open(process.pid), name, drain)

    @property
    def exited(self) -> asyncio.Future[ChildExit]:
        """Done when the process is reaped; cancelling the wait leaves the child alone."""
        return asyncio.shield(self._exited)

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    def log_tail(self) -> tuple[str, ...]:
        """Its last 200 lines."""
        return self._drain.tail()

    def send(self, signal_number: int) -> None:
        """Send a signal; nothing happens if it is gone already."""
        if self.is_running:
            signal.pidfd_send_signal(self._pidfd, signal_number)

    def kill(self) -> None:
        """SIGKILL to it and everything in its process group."""
        if self.is_running:
            # Not reaped yet, so the number still belongs to it.
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.send(signal.SIGKILL)

    async def stop(self, grace_seconds: float, signal_number: int = signal.SIGTERM) -> ChildExit:
        """Signal, wait for `grace_seconds`, SIGKILL, reap. Cancelling skips to the kill."""
        self.send(signal_number)
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.exited
        except TimeoutError:
            self.kill()
            return await self.exited
        except asyncio.CancelledError:
            self.kill()
            await self.exited
            raise

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._process.wait()
        os.close(self._pidfd)
        # The last lines are still in the pipe. A grandchild may hold it open, so the wait has an end.
        self._drain.when_done(self._loop, self._settle)
        self._loop.call_later(_DRAIN_SECONDS, self._settle)

    def _settle(self) -> None:
        if self._exited.done():
            return
        code = self._process.returncode
        self._exited.set_result(
            ChildExit(
                code=code if code >= 0 else None,
                signal=-code if code < 0 else None,
                log_tail=self.log_tail(),
            )
        )


class RotatingLog:
    """A log file that is moved to `.1`, `.2` … when it is full. A full disk drops lines and is no error."""

    def __init__(self, path: Path, max_bytes: int = 8 * 1024 * 1024, keep: int = 3) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._file: int | None = None
        self._written_bytes = 0
        self.dropped_bytes = 0

    def write(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._open()
            if self._written_bytes and self._written_bytes + len(data) > self._max_bytes:
                self.close()
                for number in range(self._keep - 1, 0, -1):
                    older = self._path.with_name(f"{self._path.name}.{number}")
                    if older.exists():
                        older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                self._open()
            assert self._file is not None
            self._written_bytes += os.write(self._file, data)
        except OSError:
            self.dropped_bytes += len(data)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._written_bytes = os.fstat(self._file).st_size


class _Drain:
    """A thread that reads a child's output to its end: a child must never wait for us to read.

    The descriptor is the thread's own. A grandchild may keep the pipe open after the child is reaped; then the thread
    stays with it until the last writer is gone.
    """

    def __init__(self, fd: int, name: str, log: RotatingLog | None, on_line: Callable[[str], None] | None) -> None:
        self._fd = fd
        self._log = log
        self._lines: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._loop = asyncio.get_running_loop()
        self._on_line = on_line
        self._lock = threading.Lock()
        self._done = False
        self._callback: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name=f"drain-{name}", daemon=True)
        self._thread.start()

    def tail(self) -> tuple[str, ...]:
        return tuple(line.decode("utf-8", "replace") for line in tuple(self._lines))

    def when_done(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        with self._lock:
            if not self._done:
                self._callback = callback
                return
        loop.call_soon(callback)

    def _run(self) -> None:
        rest = b""
        while data := os.read(self._fd, 65536):
            if self._log is not None:
                self._log.write(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._keep(line)
            if len(rest) > _LINE_BYTES:
                self._keep(rest)
                rest = b""
        if rest:
            self._keep(rest)
        os.close(self._fd)
        if self._log is not None:
            self._log.close()
        with self._lock:
            self._done = True
            callback = self._callback
        if callback is not None:
            self._call(callback)

    def _keep(self, line: bytes) -> None:
        self._lines.append(line[:_LINE_BYTES])
        if self._on_line is not None:
            self._call(self._on_line, line.decode("utf-8", "replace"))

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            pass  # The loop is closed; nobody is left to be told.


def start_ticks(pid: int) -> int | None:
    """When the kernel started this process, in clock ticks since boot; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_time(pid: int) -> float | None:
    """When a process started, in Unix seconds (good to about a second); None if there is no such process."""
    ticks = start_ticks(pid)
    if ticks is None:
        return None
    with open("/proc/stat", encoding="ascii") as file:
        boot = next(int(line.split()[1]) for line in file if line.startswith("btime "))
    return boot + ticks / os.sysconf("SC_CLK_TCK")


async def wait_process(pidfd: int, timeout_seconds: float) -> bool:
    """True when the process behind a pidfd has ended within the time."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(timeout_seconds):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
    return True
