"""The process that starts workers and reaps them: one thread, no grpc, exec'd with `-P`. It comes in two kinds.

The root is started by the launcher with the standard library alone (`-S`). It starts new programs: workers that import
everything themselves, and the fork servers of engine families. A family's (`--family NAME`) has imported what the
engine table declares for it, has run no tensor operation, and is forked instead: a worker is then there at once and
shares the libraries' memory.

Launchers talk to either over the socket on its standard input (SOCK_SEQPACKET, one JSON object a message, descriptors
beside it). It says {"ready"} or {"refused": why} once; then it gets {"id", "argv", "env", "cwd"} with three descriptors
(the worker's standard input, its output, its lifeline, whose number the worker finds in MODELMORA_WORKER_LIFELINE) and
answers {"id", "pid", "start_ticks"} with a pidfd, or {"id", "error"}; `argv` null means a fork, which practises before
it waits for its orders when there is a "practice", the folder to do it in. When a child ends it
reports {"exited": pid, "start_ticks", "code", "signal"}. The pidfd is opened before anybody can reap the worker, so it
never names another process.

Neither holds anything a worker needs: killed with SIGKILL it leaves its workers running, and the launcher watches them
by pidfd and starts another one. The root is the subreaper of all: workers of a dead family server become its children,
so that they are still reaped and their status is still told. When the launcher goes away both end; the workers'
lifelines end those.
"""

from __future__ import annotations

import array
import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

MAX_MESSAGE_BYTES = 1 << 20
ORDER_DESCRIPTORS = 3
_PR_SET_CHILD_SUBREAPER = 36
_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_ALL_OURS = (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)
_ACCELERATORS = ("/dev/nvidia", "/dev/kfd", "/dev/dri/", "/dev/accel")


def main(arguments: list[str]) -> int:
    """Serves until the other end of standard input is gone. In a fork it returns when the worker does."""
    launcher = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    refused: str = ""
    work: Callable[[str], int] = _no_work
    if arguments[:1] == ["--family"]:
        refused, work = _preload(arguments[1])
    else:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    fork = _Server(launcher, refused).serve()
    if fork is None:
        return 0
    _become(fork)
    return work(fork.order.get("practice", ""))


@dataclass(frozen=True)
class _Fork:
    """What a new process is to be."""

    order: dict[str, Any]
    standard_input: int
    output: int
    lifeline: int


class _Server:
    """The loop: orders from the launcher, ends of children."""

    def __init__(self, launcher: socket.socket, refused: str) -> None:
        self._launcher = launcher
        self._refused = refused
        self._children: dict[int, int] = {}
        """Start ticks of those started here, by pid."""
        self._news, self._wake = socket.socketpair()
        self._news.setblocking(False)
        self._wake.setblocking(False)

    def serve(self) -> _Fork | None:
        """None once the launcher is gone. In a fork: what it has to become; everything of the server is closed."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._tell({"refused": self._refused} if self._refused else {"ready": True})
        with self._launcher, self._news, self._wake, selectors.DefaultSelector() as selector:
            selector.register(self._launcher, selectors.EVENT_READ, self._hear)
            selector.register(self._news, selectors.EVENT_READ, self._reap)
            while True:
                for key, _ in selector.select():
                    try:
                        fork: _Fork | None = key.data()
                    except ConnectionError:
                        self._end_all()
                        return None
                    if fork is not None:
                        signal.set_wakeup_fd(-1)
                        return fork

    def _hear(self) -> _Fork | None:
        """One order; something in the fork that it has led to. ConnectionError when the launcher is gone."""
        message, ancillary, _, _ = self._launcher.recvmsg(MAX_MESSAGE_BYTES, socket.CMSG_SPACE(4 * ORDER_DESCRIPTORS))
        if not message:
            raise ConnectionError
        descriptors = [fd for item in ancillary for fd in _descriptors(*item)]
        order: dict[str, Any] = {}
        try:
            order = json.loads(message)
            fork = _Fork(order, *descriptors)
            if order["argv"] is None and (self._refused or _accelerator_is_open()):
                raise OSError(f"no forks: {self._refused or 'this process has an accelerator open'}")
            pid = os.fork()
            if pid == 0:
                return fork
        except (OSError, ValueError, TypeError, KeyError) as error:
            self._tell({"id": order.get("id"), "error": f"{type(error).__name__}: {error}"})
        else:
            self._children[pid] = ticks = start_ticks(pid)
            pidfd = os.pidfd_open(pid)
            self._tell({"id": order["id"], "pid": pid, "start_ticks": ticks}, [pidfd])
            os.close(pidfd)
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _reap(self) -> None:
        """Everyone who has ended, those included who were orphaned to us."""
        self._news.recv(4096)
        while True:
            try:
                # Not reaped yet: until then its number can name neither another process nor another group.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            ticks = self._children.pop(pid, None) or start_ticks(pid)
            _end_group(pid)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            status = {"code": code, "signal": None} if code >= 0 else {"code": None, "signal": -code}
            self._tell({"exited": pid, "start_ticks": ticks, **status})

    def _end_all(self) -> None:
        """The launcher is gone: so are the workers, by their lifelines, but not what those have started."""
        for pid in self._children:
            _end_group(pid)
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                return
            assert ended is not None
            _end_group(ended.si_pid)
            os.waitpid(ended.si_pid, 0)

    def _tell(self, answer: dict[str, Any], descriptors: list[int] | None = None) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._launcher.sendmsg([json.dumps(answer).encode()], rights)
        except ConnectionError:
            pass  # the loop hears of it too


def _become(fork: _Fork) -> None:
    """Makes this fork a process of its own: its session, its descriptors and no others; then the new program, where one
    is ordered."""
    os.setsid()
    for number, descriptor in enumerate((fork.standard_input, fork.output, fork.output)):
        os.dup2(descriptor, number)
    kept = {0, 1, 2, fork.lifeline}
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number not in kept:
            try:
                os.close(number)
            except OSError:
                pass  # the listing's own
    os.chdir(fork.order["cwd"])
    environment = {**fork.order["env"], "MODELMORA_WORKER_LIFELINE": str(fork.lifeline)}
    argv = fork.order["argv"]
    # As a new interpreter finds them, or, for a new program, as the system gives them.
    signal.signal(signal.SIGINT, signal.default_int_handler if argv is None else signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGCHLD) if argv is None else _ALL_OURS:
        signal.signal(number, signal.SIG_DFL)
    if argv is None:
        os.environ.update(environment)
        gc.enable()
    else:
        os.set_inheritable(fork.lifeline, True)
        os.execve(argv[0], argv, environment)  # noqa: S606


def _preload(family: str) -> tuple[str, Callable[[str], int]]:
    """Imports what the family's engines need. Why there can be no forks (empty: there can), and a worker's main, which
    takes the folder to practise in (empty: it does not)."""
    from modelmora_worker import lifeline

    # The root, our parent, may be gone long before the launcher: what we follow is the launcher.
    lifeline.die_with(int(os.environ["MODELMORA_WORKER_LIFELINE"]))
    # Nothing is collected here, and what was made now is never looked at again: so the forks share its pages.
    gc.disable()
    from modelmora_worker import __main__ as worker
    from modelmora_worker import service
    from modelmora_worker.engines import base

    try:
        base.preload(family)
    except ImportError as error:
        return f"{type(error).__name__}: {error}", _no_work
    gc.collect()
    gc.freeze()
    if any(row.needs_files for row in base.all_rows().values() if row.family == family):
        service.give_back()  # or each fork would do it, and have its own copy of what lies between
    return "", partial(worker.main, family)


def _no_work(_practice: str) -> int:
    raise AssertionError("nothing is forked here but to start another program")


def _accelerator_is_open() -> bool:
    """Whether this process holds an accelerator: its libraries do not work in a fork then."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(_ACCELERATORS):
                return True
        except OSError:
            continue
    return False


def _end_group(pid: int) -> None:
    """What a worker itself has started is in its session."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot: with the pid it names one process for ever."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name may hold spaces and brackets; field 22 counts from after its last bracket.
        return int(file.read().rpartition(b")")[2].split()[19])


def _descriptors(level: int, kind: int, data: bytes) -> list[int]:
    if level != socket.SOL_SOCKET or kind != socket.SCM_RIGHTS:
        return []
    numbers = array.array("i")
    numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return list(numbers)


if __name__ == "__main__":
    if os.path.isfile(os.path.join(_ROOT, "WORKER_BUNDLE")):
        sys.path.insert(0, _ROOT)
    sys.exit(main(sys.argv[1:]))
