"""The process that starts workers and reaps them: exec'd with `-P`, standard library only, no thread, no grpc.

Launchers talk to it over the socket on its standard input (SOCK_SEQPACKET, one JSON object a message, descriptors
beside it). It gets {"id", "argv", "env", "cwd"} with three descriptors (the worker's standard input, its output, its
lifeline, whose number the worker finds in MODELMORA_WORKER_LIFELINE) and answers {"id", "pid", "start_ticks"} with a
pidfd, or {"id", "error"}; when a worker ends it reports {"exited": pid, "start_ticks", "code", "signal"}. The pidfd is
opened before anybody can reap the worker, so it never names another process.

It holds nothing a worker needs: killed with SIGKILL it leaves its workers running, and the launcher watches them by
pidfd and starts another one. When the launcher goes away it ends; the workers' lifelines end those.
"""

from __future__ import annotations

import array
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

MAX_MESSAGE_BYTES = 1 << 20
SPAWN_DESCRIPTORS = 3


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]
    pidfd: int
    start_ticks: int


def main() -> int:
    """Serves until the other end of standard input is gone."""
    launcher = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    selector.register(launcher, selectors.EVENT_READ, None)
    while True:
        for key, _ in selector.select():
            if key.data is not None:
                _reap(selector, launcher, key.data)
            elif not _obey(selector, launcher):
                _end_all(selector)
                return 0


def _obey(selector: selectors.BaseSelector, launcher: socket.socket) -> bool:
    """One order; False when the launcher is gone."""
    try:
        message, ancillary, _, _ = launcher.recvmsg(MAX_MESSAGE_BYTES, socket.CMSG_SPACE(4 * SPAWN_DESCRIPTORS))
    except ConnectionError:
        return False
    if not message:
        return False
    order: dict[str, Any] = {}
    descriptors = [fd for level, kind, data in ancillary for fd in _descriptors(level, kind, data)]
    try:
        order = json.loads(message)
        worker = _spawn(order, *descriptors)
    except (OSError, ValueError, TypeError) as error:
        return _tell(launcher, {"id": order.get("id"), "error": f"{type(error).__name__}: {error}"})
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    selector.register(worker.pidfd, selectors.EVENT_READ, worker)
    answer = {"id": order["id"], "pid": worker.process.pid, "start_ticks": worker.start_ticks}
    return _tell(launcher, answer, [worker.pidfd])


def _spawn(order: dict[str, Any], standard_input: int, output: int, lifeline: int) -> _Worker:
    process = subprocess.Popen(
        order["argv"],
        stdin=standard_input,
        stdout=output,
        stderr=output,
        pass_fds=(lifeline,),
        env={**order["env"], "MODELMORA_WORKER_LIFELINE": str(lifeline)},
        cwd=order["cwd"],
        start_new_session=True,
    )
    return _Worker(process, os.pidfd_open(process.pid), start_ticks(process.pid))


def _reap(selector: selectors.BaseSelector, launcher: socket.socket, worker: _Worker) -> None:
    selector.unregister(worker.pidfd)
    os.close(worker.pidfd)
    status = _wait(worker)
    code, number = (status, None) if status >= 0 else (None, -status)
    pid, ticks = worker.process.pid, worker.start_ticks
    _tell(launcher, {"exited": pid, "start_ticks": ticks, "code": code, "signal": number})


def _wait(worker: _Worker) -> int:
    # What the worker itself has started is in its session. Until it is reaped its number can name no other group.
    try:
        os.killpg(worker.process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return worker.process.wait()


def _end_all(selector: selectors.BaseSelector) -> None:
    """The launcher is gone: so are the workers, by their lifelines, but not what those have started."""
    for key in list(selector.get_map().values()):
        if key.data is not None:
            _wait(key.data)


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


def _tell(launcher: socket.socket, answer: dict[str, Any], descriptors: list[int] | None = None) -> bool:
    try:
        if descriptors:
            rights = array.array("i", descriptors)
            launcher.sendmsg([json.dumps(answer).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        else:
            launcher.send(json.dumps(answer).encode())
    except ConnectionError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
