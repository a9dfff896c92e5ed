"""One worker process: `python -P …/modelmora_worker/__main__.py`, with its orders as one JSON line on standard input.

Standard input is a socket to whoever launches: {"socket": path to listen on, "key": control key in hex}.
MODELMORA_WORKER_LIFELINE is the number of the inherited descriptor that ends with the host. The answer is the line
"ready" once the worker listens. Everything else (the model, lease keys) comes over the wire.

A fork that is made before anybody needs it practises first, says so in the line "practised", and waits for its orders.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Final

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "WORKER_BUNDLE").is_file():
    # Laid out by `modelmora worker-bundle`: the only entry this adds to the path of an engine's own interpreter.
    sys.path.insert(0, str(_ROOT))

from modelmora_runtime.framing import FrameServer  # noqa: E402

from modelmora_worker.engines import base  # noqa: E402
from modelmora_worker.lifeline import die_with  # noqa: E402
from modelmora_worker.service import Memory, WorkerService, give_back  # noqa: E402

PRACTICE_NICENESS: Final = 10
"""A tenth of a processor that others want too."""


def main(family: str = "", practice: str = "") -> int:
    """Listens, serves until drained or told to end, exits with status 0. `practice`: a folder to practise in before,
    what the engines of the family do at each load."""
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    die_with(int(os.environ["MODELMORA_WORKER_LIFELINE"]))
    try:
        # Should the kernel have to kill for lack of memory, then a worker, not the host or its database.
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError:
        pass
    boot = socket.socket(fileno=os.dup(0))
    memory = Memory(forked=bool(family))
    if practice:
        if _practise(family, Path(practice)):
            give_back()
            memory.read(time.monotonic())
        boot.sendall(b"practised\n")
    orders = json.loads(_read_line(boot))
    service = WorkerService(bytes.fromhex(orders["key"]), memory)
    server = FrameServer(_listen(orders["socket"]), service)
    service.attach(server)

    def on_terminate(_signal: int, _frame: FrameType | None) -> None:
        service.drain()

    signal.signal(signal.SIGTERM, on_terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    boot.sendall(b"ready\n")
    boot.close()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    try:
        server.run()
    finally:
        Path(orders["socket"]).unlink(missing_ok=True)
    service.close()
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: finalisers of engine libraries and a thread that hangs in one must not keep the process.
    os._exit(0)


def _practise(family: str, folder: Path) -> bool:
    """In a thread of its own: what others wait for goes before it. Whether it was done; else the log has why."""
    done: list[bool] = []

    def work() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PRACTICE_NICENESS)
        done.append(base.practise(family, folder))

    thread = threading.Thread(target=work, name="practice")
    thread.start()
    thread.join()
    return any(done)


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(64)
    return listener


def _read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = sock.recv(65536)
        if not part:
            raise SystemExit("no orders on standard input")
        line += part
    return line


if __name__ == "__main__":
    sys.exit(main())
