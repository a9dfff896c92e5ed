"""Starting worker processes: the Launcher seam, and workers on this machine through fork servers.

A worker is forked by the fork server of its engine family, or, where that cannot be, spawned by the root, which is also
the parent of the families' servers (modelmora_worker.fork_server). They are the workers' parents and reapers; this side
watches and signals by pidfd, so a number that has passed to another process is never killed. Three descriptors go to
each: a socket with its orders, a pipe for its output, and its lifeline, a pipe whose write end only this process holds:
when that closes, by will or by our death, the kernel ends the worker (modelmora_worker.lifeline). So nothing leaks:

1. this process dies: all lifelines close, all workers and fork servers end;
2. a family's server dies: its workers go on, reaped by the root; the next launch starts a new one;
3. the root dies: workers and servers go on; the exit status of those it would have reaped is unknown; the next launch
   that needs it starts a new one;
4. a fork server dies between starting a worker and telling of it: that worker's lifeline is closed here.

A family's server has one *spare*: a fork that waits for its orders, made a moment after the last launch. The next
launch takes it, and so does not wait for a fork, which copies the page tables of all the libraries (20 ms), nor for
what every load of the family does first: that it has practised. It has seen nobody's model, and ends with its server.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
import resource
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from modelmora import errors

log = logging.getLogger(__name__)

LOG_TAIL_LINES: Final = 200
LOG_FILE_BYTES: Final = 8 * 1024 * 1024
LOG_FILES: Final = 200
"""Log files of workers kept, rotated ones included; the oldest go first."""
_MAX_LINE_CHARS = 4096
_MAX_SOCKET_PATH_BYTES = 107
_STATUS_SECONDS = 2.0
_COOL_SECONDS = 10.0
_PRACTICE_SECONDS = 600.0
_PRACTICE = ".practice"
_SPARE_IDLE_SECONDS = 0.5
"""A spare that was told its orders and has done nothing for so long is stopped or stuck; a fork takes a fifth of it."""
_FORK_IDLE_SECONDS = 2.0
"""The same of a fork server that was told to start a process."""
_MAX_MESSAGE_BYTES = 1 << 16

# What of our environment a worker gets: models run code of strangers, and we hold passwords and tokens.
_ENVIRONMENT = re.compile(
    r"(PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|XDG_CACHE_HOME|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV"
    r"|PYTHON(PATH|HASHSEED|DONTWRITEBYTECODE|PYCACHEPREFIX|FAULTHANDLER|UNBUFFERED|UTF8)|MALLOC_.*"
    r"|(OMP|MKL|KMP|GOMP|OPENBLAS|ONEDNN|DNNL|ATEN|TORCH|CUDA|NVIDIA|NCCL|HIP|HSA|ROCR)_.*)"
)
_OURS = {"MALLOC_ARENA_MAX": "1"}
"""What it gets unless our own says otherwise. Only of its first arena gives glibc back what is free at the end: with
more, it depends on the order of threads whether a load leaves 37 or 43 MiB."""


@dataclass(frozen=True)
class LaunchSpec:
    """What to launch. `label` is the version's name, for logs; `env` comes on top of the worker's environment.

    `family` names the fork server; empty: spawned. So is a worker with an `env` of its own, for libraries read the
    environment when they are imported.
    """

    replica_uid: str
    engine: str
    label: str
    env: Mapping[str, str] = field(default_factory=dict)
    family: str = ""


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended; neither code nor signal: unknown. With its last 200 log lines."""

    code: int | None
    signal: int | None
    log_tail: tuple[str, ...]

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                return f"killed by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"killed by signal {self.signal}"
        return "ended with unknown status" if self.code is None else f"exited with status {self.code}"


class WorkerProcess(Protocol):
    """One worker. `exited` is done once the process is gone (reaped where that is known)."""

    pid: int
    start_ticks: int
    endpoint: str
    control_key: bytes
    start_mode: Literal["forked", "spawned"]
    lender_pid: int
    """Of the fork server whose memory it shares; 0 when it was spawned."""
    server_seconds: float
    """So long its launch waited for a fork server to start."""
    refused: bool
    """It was spawned because the fork server of its family forks nothing."""
    exited: asyncio.Future[WorkerExit]

    def terminate(self) -> None:
        """Asks it to finish what runs and exit. No error if it is gone."""

    def kill(self) -> None:
        """Ends it now. No error if it is gone."""

    def confine(self, growth_bytes: int) -> None:
        """Lets it map no more than so many bytes of private main memory beyond what it has: what it asks for above
        fails. May be called again with another figure. Does nothing where that cannot be had."""


class Launcher(Protocol):
    """Starts workers somewhere."""

    async def launch(self, spec: LaunchSpec, *, timeout_seconds: float) -> WorkerProcess:
        """Returns when the worker listens. Raises LoadFailed with the tail of its log; then no process is left."""

    async def warm(self, family: str) -> None:
        """Has the family's fork server ready ahead of need. No error where there can be none."""

    async def cool(self, family: str) -> None:
        """Ends the family's fork server, which has no worker: its memory is needed. Returns once the process is gone.
        One that is still in use after some seconds ends all the same: its workers live on."""

    def fork_servers(self) -> Sequence[tuple[str, int]]:
        """(family, process id) of those that run."""

    def spares(self) -> Sequence[tuple[str, int]]:
        """(family, process id) of workers that wait for a launch, or practise for it."""

    def started(self) -> Sequence[int]:
        """Process ids of all workers, those too that have not told that they are ready."""

    def server_starts(self) -> Mapping[str, float]:
        """Of the fork servers that take orders, by family: the seconds that their start took."""

    async def close(self) -> None:
        """Ends every worker and whatever starts them, reaped."""


class LocalWorker:
    """A process on this machine, watched and signalled by pidfd: a worker, or the fork server of a family."""

    def __init__(self, pid: int, start_ticks: int, pidfd: int, order: _Order, reaper: _ForkServer) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self.endpoint = f"unix:{order.socket_path}"
        self.control_key = order.control_key
        self.start_mode: Literal["forked", "spawned"] = "forked" if reaper.family else "spawned"
        self.lender_pid = reaper.pid if reaper.family else 0
        self.server_seconds = order.server_seconds
        self.refused = order.refused
        self.reaper = reaper
        """Who reports how it ended."""
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[WorkerExit] = self._loop.create_future()
        self._pidfd = pidfd
        self._order = order
        self._status: asyncio.Future[tuple[int | None, int | None]] = self._loop.create_future()
        self._ending: asyncio.Task[None] | None = None
        self._loop.add_reader(pidfd, self._process_ended)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def confine(self, growth_bytes: int) -> None:
        if self._pidfd < 0:
            return
        try:
            with open(f"/proc/{self.pid}/status", "rb") as file:
                mapped = next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"VmData:"))
            _, most = resource.prlimit(self.pid, resource.RLIMIT_DATA)
            limit = mapped + growth_bytes
            limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
            resource.prlimit(self.pid, resource.RLIMIT_DATA, (limit, most))
        except (OSError, StopIteration):
            pass  # it is gone, or not ours to confine: then only the measuring stops it

    def status_known(self, code: int | None, number: int | None) -> None:
        """What the reaper reports; (None, None) when nobody will."""
        if not self._status.done():
            self._status.set_result((code, number))

    def orphaned(self, heir: _ForkServer | None) -> None:
        """Its reaper is gone; `heir` is where the kernel has sent it."""
        if heir is not None:
            self.reaper = heir
        if self.reaper.gone and self._ending is not None:
            self.status_known(None, None)

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass

    def _process_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._ending = self._loop.create_task(self._end())

    async def _end(self) -> None:
        if self.reaper.gone:
            # Where this process has become its parent (as pid 1 does) the status is still to be had.
            try:
                found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - it does not wait
            except ChildProcessError:
                found = None
            if found is not None:
                by_signal = found.si_code != os.CLD_EXITED
                self.status_known(None if by_signal else found.si_status, found.si_status if by_signal else None)
        try:
            async with asyncio.timeout(0 if self.reaper.gone else _STATUS_SECONDS):
                code, number = await self._status
        except TimeoutError:
            code, number = None, None
        os.close(self._pidfd)
        self._pidfd = -1
        tail = self._order.close()
        if not self.exited.done():
            self.exited.set_result(WorkerExit(code, number, tail))


class LocalLauncher:
    """Workers on this machine. `run_dir`: a short 0700 folder for sockets; `log_dir`: one log file per worker.

    The fork server of a family ends once it has had no worker for `fork_server_idle_seconds`. It makes a spare when
    nothing was launched from it for `spare_after_seconds`; None: never.
    """

    def __init__(
        self,
        run_dir: Path,
        log_dir: Path,
        *,
        python: str = sys.executable,
        fork_server_idle_seconds: float = 600.0,
        spare_after_seconds: float | None = 0.5,
    ) -> None:
        self._run_dir = run_dir.absolute()
        self._log_dir = log_dir.absolute()
        self._python = python
        self._idle_seconds = fork_server_idle_seconds
        self._spare_after_seconds = spare_after_seconds
        self._numbers = itertools.count(1)
        self._root: _ForkServer | None = None
        self._families: dict[str, _ForkServer] = {}
        self._cooling: dict[str, _ForkServer] = {}
        """Those that were told to end for their memory, while they have it."""
        self._workers: dict[tuple[int, int], LocalWorker] = {}
        """Every process, the families' servers included, by pid and start."""
        self._closed = False

    @property
    def fork_server_pid(self) -> int | None:
        """Process id of the root fork server, if one runs."""
        return self._root.pid if self._root is not None and not self._root.gone else None

    def fork_servers(self) -> list[tuple[str, int]]:
        return [
            *((family, server.pid) for family, server in self._cooling.items()),
            *((family, server.pid) for family, server in self._families.items() if not server.gone and server.pid),
        ]

    def spares(self, *, practised: bool = False) -> list[tuple[str, int]]:
        """`practised`: only those that the next launch would take."""
        return [
            (family, server.spare.worker.pid)
            for family, server in self._families.items()
            if server.spare is not None
            and server.spare.worker is not None
            and (server.spare.practised or not practised)
        ]

    def started(self) -> list[int]:
        return [pid for pid, _ in self._workers]

    def server_starts(self) -> dict[str, float]:
        return {
            family: server.start_seconds
            for family, server in self._families.items()
            if not server.gone and server.start_seconds is not None
        }

    async def cool(self, family: str) -> None:
        server = self._families.get(family)
        if server is None or server.gone or family in self._cooling:
            return
        for _ in range(round(_COOL_SECONDS / 0.02)):
            if server.idle:
                break
            await asyncio.sleep(0.02)
        log.info("the fork server of the family %s ends: its memory is needed", family)
        process = next((p for p in self._workers.values() if p.pid == server.pid), None)
        if process is not None:
            process.kill()  # one that reads that it is to end would take its workers along
        server.hang_up("its memory is needed")
        if process is not None:
            # Until it is gone it has what it has.
            self._cooling[family] = server
            await process.exited
            del self._cooling[family]

    async def warm(self, family: str) -> None:
        if family and not self._closed:
            server = self._family(family)
            with contextlib.suppress(_NoForks, _ForkServerGone), server.used():
                await server.opened()
                self._renew_spare(server)

    async def launch(self, spec: LaunchSpec, *, timeout_seconds: float) -> LocalWorker:
        spare = self._take_spare(spec)
        try:
            order = spare or self._order(spec)
        except OSError as error:
            raise errors.LoadFailed(f"no worker can be started: {error}") from error
        try:
            async with asyncio.timeout(timeout_seconds) as limit:
                worker = order.worker or await self._start(order, limit, timeout_seconds)
                await (self._ready(order, worker) if spare is None else self._ready_at_work(order, worker))
                if worker.reaper.family:
                    self._renew_spare(worker.reaper)
                return worker
        except TimeoutError:
            tail = order.abandon()
            if order.worker is not None:
                await asyncio.wait((order.worker.exited,), timeout=_STATUS_SECONDS)
            message = f"the worker did not listen within {timeout_seconds:g} s"
            raise errors.LoadFailed(_with_tail(message, tail)) from None
        except OSError as error:
            raise errors.LoadFailed(_with_tail(f"no worker can be started: {error}", order.abandon())) from error
        except errors.LoadFailed as error:
            order.abandon()
            if spare is None:
                raise
            # It had died, or was stopped, before anybody needed it.
            log.warning("a spare worker could not be used: %s", error.message)
            return await self.launch(spec, timeout_seconds=timeout_seconds)
        except BaseException:
            order.abandon()
            raise

    def _take_spare(self, spec: LaunchSpec) -> _Order | None:
        """The order of a worker that waits in this family, as one of this launch; None when there is none."""
        server = self._families.get(spec.family) if spec.family and not spec.env and not self._closed else None
        if server is None or server.gone or server.spare is None or not server.spare.practised:
            return None
        order, server.spare = server.spare, None
        order.spec = spec
        order.log.rename(self._log_dir / _log_name(spec, order.number))
        return order

    def _renew_spare(self, server: _ForkServer) -> None:
        """Another spare once nothing was launched for a while: nobody is to wait for it, nor for the processor."""
        server.last_used = time.monotonic()
        if self._spare_after_seconds is not None and server.spare is None:
            if server.spare_timer is not None:
                server.spare_timer.cancel()
            loop = asyncio.get_running_loop()
            server.spare_timer = loop.call_later(self._spare_after_seconds, self._begin_spare, server)

    def _begin_spare(self, server: _ForkServer) -> None:
        server.spare_timer = None
        if not (self._closed or server.gone or server.spare or server.users):
            server.sparing = asyncio.create_task(self._make_spare(server), name=f"spare worker of {server.family}")

    async def _make_spare(self, server: _ForkServer) -> None:
        try:
            order = self._order(LaunchSpec(f"spare-{server.family}", server.family, f"spare-{server.family}"))
        except (OSError, errors.ModelMoraError):
            return
        server.spare = order
        try:
            worker = await server.start(order, None, practise=True)
            worker.exited.add_done_callback(lambda _: server.forget_spare(order))
            async with asyncio.timeout(_PRACTICE_SECONDS):
                order.practised = await _answer(order, worker) == b"practised\n"
        except (_ForkServerGone, _NoForks, errors.ModelMoraError, TimeoutError):
            pass
        if not order.practised or self._closed or server.gone:
            server.forget_spare(order)
            order.abandon()

    async def close(self) -> None:
        self._closed = True
        # The workers first, while those who report their ends are there.
        servers = {pid for _, pid in self.fork_servers()}
        await _end_all([process for process in self._workers.values() if process.pid not in servers])
        for server in self._families.values():
            server.hang_up("closed")
        await _end_all(list(self._workers.values()))
        starting = [task for server in self._families.values() for task in (server.starting, server.sparing) if task]
        if starting:
            await asyncio.wait(starting, timeout=10)
        if self._root is not None:
            await self._root.close()

    def _order(self, spec: LaunchSpec) -> _Order:
        if self._closed:
            raise errors.ShuttingDown("the launcher is closed")
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune_logs(self._log_dir)
        number = next(self._numbers)
        if number == 1:
            _drop_practices(self._run_dir)
        socket_path = self._run_dir / f"w{os.getpid():x}-{number:x}.sock"
        if len(os.fsencode(socket_path)) > _MAX_SOCKET_PATH_BYTES:
            raise errors.LoadFailed(f"the run folder's path is too long for a Unix socket: {self._run_dir}")
        socket_path.unlink(missing_ok=True)
        return _Order(spec, socket_path, _LogPipe(self._log_dir / _log_name(spec, number)), number)

    async def _start(self, order: _Order, limit: asyncio.Timeout, timeout_seconds: float) -> LocalWorker:
        """Forked if it can be, else spawned. `limit` ends the launch; a fork server that still imports has its own."""
        family = order.spec.family
        if family and not order.spec.env:
            for _ in range(2):
                server = self._family(family)
                try:
                    with server.used():
                        begin = time.monotonic()
                        limit.reschedule(None)
                        try:
                            await server.opened_at_work(timeout_seconds)
                        finally:
                            order.server_seconds += time.monotonic() - begin
                            limit.reschedule(asyncio.get_running_loop().time() + timeout_seconds)
                        return await server.start(order, None)
                except _NoForks as error:
                    log.warning("workers of the family %s are spawned: %s", family, error)
                    order.refused = True
                    order.renew()
                    break
                except _ForkServerGone as error:
                    # It may have started the worker and not have lived to tell: the lifeline ends that one.
                    log.warning("the fork server of the family %s ended: %s", family, error)
                    order.renew()
        return await self._spawn(order, [self._python, "-P", str(_worker_package() / "__main__.py")])

    async def _spawn(self, order: _Order, argv: Sequence[str]) -> LocalWorker:
        """A new program, as a child of the root."""
        for attempt in (1, 2):
            if self._closed:
                raise errors.ShuttingDown("the launcher is closed")
            if self._root is None or self._root.gone:
                self._root = _ForkServer("", self._workers)
                # No site-packages: it needs the standard library only, and starts in half the time.
                self._root.run(
                    [self._python, "-P", "-S", str(_worker_package() / "fork_server.py")],
                    self._log_dir / "fork-server.log",
                )
            try:
                await self._root.opened()
                return await self._root.start(order, argv)
            except _ForkServerGone as error:
                if attempt == 2:
                    raise errors.LoadFailed(f"the fork server ended: {error}") from error
                order.renew()
        raise AssertionError

    def _family(self, name: str) -> _ForkServer:
        """The family's server; a new one is on its way."""
        server = self._families.get(name)
        if server is None or server.gone:
            server = self._families[name] = _ForkServer(name, self._workers)
            server.starting = asyncio.create_task(self._start_family(server), name=f"fork server of {name}")
            self._look_for_idleness(server)
        return server

    async def _start_family(self, server: _ForkServer) -> None:
        name = server.family
        argv = [self._python, "-P", str(_worker_package() / "fork_server.py"), "--family", name]
        try:
            order = self._order(LaunchSpec(f"family-{name}", name, f"fork-server-{name}"))
        except (OSError, errors.ModelMoraError) as error:
            server.hang_up(str(error))
            return
        server.hand_over(order)
        try:
            process = await self._spawn(order, argv)
        except (OSError, errors.ModelMoraError) as error:
            order.abandon()
            server.hang_up(str(error))
            return
        server.pid, server.parent = process.pid, process.reaper
        exit_ = await process.exited
        server.hang_up(_with_tail(str(exit_), exit_.log_tail))

    def _look_for_idleness(self, server: _ForkServer) -> None:
        """A server with workers stays: it is their reaper, and what they share with it is charged to it."""
        if server.gone or self._closed:
            return
        if not server.idle:
            server.last_used = time.monotonic()
        left = server.last_used + self._idle_seconds - time.monotonic()
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._look_for_idleness, server)
        else:
            log.info("the fork server of the family %s ends: nobody has needed it for a while", server.family)
            server.hang_up("it was idle")

    async def _ready(self, order: _Order, worker: LocalWorker) -> None:
        loop = asyncio.get_running_loop()
        orders = {"socket": str(order.socket_path), "key": order.control_key.hex()}
        if order.boot is not None:
            with contextlib.suppress(ConnectionError):  # it is gone already; its exit says why
                await loop.sock_sendall(order.boot, json.dumps(orders).encode() + b"\n")
            if await _answer(order, worker) == b"ready\n":
                return
        exit_ = await worker.exited
        raise errors.LoadFailed(_with_tail(f"the worker {exit_} before it listened", exit_.log_tail))

    async def _ready_at_work(self, order: _Order, worker: LocalWorker) -> None:
        """The same of a worker that has nothing left to do but to listen: stopped, or stuck, it is not waited for."""
        ready = asyncio.ensure_future(self._ready(order, worker))
        try:
            if what := await _idle_before(ready, lambda: worker.pid, _SPARE_IDLE_SECONDS):
                raise errors.LoadFailed(f"it has {what} since it was told to listen")
            await ready
        finally:
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)


async def _answer(order: _Order, worker: LocalWorker) -> bytes:
    """The next word of a worker before it listens; empty: there will be none, for it has ended or is about to."""
    assert order.boot is not None
    answer = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(order.boot, 64))
    try:
        await asyncio.wait((answer, worker.exited), return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() and not answer.exception() else b""
    finally:
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)


class _ForkServerGone(Exception):
    pass


class _NoForks(Exception):
    """The family's server runs and cannot fork: a library is missing, or an accelerator is open in it."""


class _Order:
    """One launch: what the process is given, and our ends of it."""

    def __init__(self, spec: LaunchSpec, socket_path: Path, log: _LogPipe, number: int) -> None:
        self.spec = spec
        self.socket_path = socket_path
        self.control_key = secrets.token_bytes(32)
        self.number = number
        self.worker: LocalWorker | None = None
        self.log = log
        self.server_seconds = 0.0
        """So long it waited for a fork server to start."""
        self.refused = False
        """By a fork server that forks nothing."""
        self.practised = False
        """Of a spare: it waits for nothing but its orders."""
        self.boot: socket.socket | None = None
        self._lifeline = -1
        self.theirs: list[int] = []
        self.renew()

    def renew(self) -> None:
        """Fresh descriptors; whoever holds the old ones ends."""
        self._release()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.boot = ours
        lifeline_read, self._lifeline = os.pipe2(os.O_CLOEXEC)
        self.theirs = [theirs.detach(), self.log.open(), lifeline_read]

    def handed_over(self) -> None:
        """The worker has its descriptors, or never will: ours of the same are closed."""
        while self.theirs:
            os.close(self.theirs.pop())

    def abandon(self) -> tuple[str, ...]:
        """Ends the worker, if there is one, now or as soon as it looks. The tail of its log."""
        if self.worker is not None:
            self.worker.kill()
            # The rest follows from its end.
            self._release()
            return self.log.tail()
        return self.close()

    def close(self) -> tuple[str, ...]:
        """After the worker's end. The tail of its log."""
        self._release()
        self.socket_path.unlink(missing_ok=True)
        shutil.rmtree(self.practice, ignore_errors=True)
        return self.log.close()

    @property
    def practice(self) -> Path:
        """The folder for it."""
        return self.socket_path.with_suffix(_PRACTICE)

    def _release(self) -> None:
        self.handed_over()
        if self.boot is not None:
            self.boot.close()
            self.boot = None
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


class _ForkServer:
    """Our end of one fork server: the root (family "") or a family's."""

    def __init__(self, family: str, processes: dict[tuple[int, int], LocalWorker]) -> None:
        self.family = family
        self.pid = 0
        self.gone = False
        self.create_time = self.last_used = time.monotonic()
        self.start_seconds: float | None = None
        """Until it took orders; None while it does not."""
        self.users = 0
        self.parent: _ForkServer | None = None
        """Who reaps the workers when this one is gone."""
        self.starting: asyncio.Task[None] | None = None
        self.spare: _Order | None = None
        """Of a worker that waits for what it is to be."""
        self.spare_timer: asyncio.TimerHandle | None = None
        self.sparing: asyncio.Task[None] | None = None
        self._processes = processes
        self._loop = asyncio.get_running_loop()
        self._socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._open: asyncio.Future[None] = self._loop.create_future()
        self._open.add_done_callback(lambda opened: opened.cancelled() or opened.exception())  # heard or not
        self._sending = asyncio.Lock()
        self._writable: asyncio.Future[None] | None = None
        self._asked: dict[int, tuple[_Order, asyncio.Future[LocalWorker]]] = {}
        self._ended = asyncio.Event()
        self._loop.add_reader(self._socket.fileno(), self._hear)

    def run(self, argv: Sequence[str], log_path: Path) -> None:
        """Starts the root as our own child."""
        output = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            process = subprocess.Popen(
                argv,
                stdin=self._theirs.fileno(),
                stdout=output,
                stderr=output,
                env=_environment({}),
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            self.hang_up("it could not be started")
            raise
        finally:
            self._theirs.close()
            os.close(output)
        self.pid = process.pid
        pidfd = os.pidfd_open(self.pid)

        def ended() -> None:
            # What it reported before its end still counts.
            while not self.gone and select.select([self._socket], [], [], 0)[0]:
                self._hear()
            self.hang_up("it ended")
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
            process.wait()
            self._ended.set()

        self._loop.add_reader(pidfd, ended)

    def hand_over(self, order: _Order) -> None:
        """The order is this server itself: its standard input is the other end of our conversation."""
        os.close(order.theirs[0])
        order.theirs[0] = self._theirs.detach()

    async def opened(self) -> None:
        """Returns once it takes orders. Raises _NoForks, _ForkServerGone."""
        await asyncio.shield(self._open)

    async def opened_at_work(self, seconds: float) -> None:
        """The same, as long as it works on that: on a slow disk the first import of a large library takes minutes. One
        that has done nothing for `seconds` is ended, so that the next launch starts another; LoadFailed then, and after
        ten times `seconds` whatever it does."""
        if what := await _idle_before(self._open, lambda: self.pid, seconds):
            if what.startswith(_NOTHING):
                self._kill()
            raise errors.LoadFailed(f"the fork server of {self.family} imports its libraries and has {what}")
        await self.opened()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """It does not count as idle within."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            self.last_used = time.monotonic()

    @property
    def idle(self) -> bool:
        spare = self.spare.worker if self.spare is not None else None
        return not self.users and not any(p.reaper is self and p is not spare for p in self._processes.values())

    def forget_spare(self, order: _Order) -> None:
        """It has ended."""
        if self.spare is order:
            self.spare = None

    async def start(self, order: _Order, argv: Sequence[str] | None, *, practise: bool = False) -> LocalWorker:
        """Starts a program, or a fork, which may practise before it waits for orders. Raises _ForkServerGone; _NoForks
        or LoadFailed when it cannot."""
        request = {
            "id": order.number,
            "argv": argv,
            "env": _environment(order.spec.env),
            "cwd": str(order.socket_path.parent),
            "practice": str(order.practice) if practise else "",
        }
        answer: asyncio.Future[LocalWorker] = self._loop.create_future()
        self._asked[order.number] = (order, answer)
        try:
            async with self._sending:
                await self._send(json.dumps(request).encode(), order.theirs)
            order.handed_over()
            if what := await _idle_before(answer, lambda: self.pid, _FORK_IDLE_SECONDS):
                self._kill()
                self.hang_up(f"it has {what} since it was told to start a process")
            return await answer
        except OSError as error:
            self.hang_up(str(error))  # dead before the loop heard of it: the next attempt must not meet it again
            raise _ForkServerGone(str(error)) from error
        finally:
            order.handed_over()
            self._asked.pop(order.number, None)

    async def _send(self, message: bytes, descriptors: Sequence[int]) -> None:
        rights = array.array("i", descriptors)
        while True:
            if self.gone:
                raise _ForkServerGone("it ended before it was asked")
            try:
                self._socket.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                return
            except BlockingIOError:
                self._writable = writable = self._loop.create_future()
                self._loop.add_writer(self._socket.fileno(), _settle, writable)
                try:
                    await writable
                finally:
                    if not self.gone:
                        self._loop.remove_writer(self._socket.fileno())

    def _kill(self) -> None:
        """It is stopped or stuck: it does not read that it is to end."""
        for process in self._processes.values():
            if process.pid == self.pid:
                process.kill()
                return
        if not self.family and not self._ended.is_set():
            os.kill(self.pid, signal.SIGKILL)  # our own child, not reaped yet

    async def close(self) -> None:
        """Ends the root, reaped."""
        self.hang_up("closed")
        try:
            async with asyncio.timeout(5):
                await self._ended.wait()
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            await self._ended.wait()

    def _hear(self) -> None:
        try:
            message, ancillary, _, _ = self._socket.recvmsg(_MAX_MESSAGE_BYTES, socket.CMSG_SPACE(16))
        except BlockingIOError:
            return
        except OSError:
            message, ancillary = b"", []
        if not message:
            self.hang_up("it ended")
            return
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        self._heard(json.loads(message), list(descriptors))

    def _heard(self, message: dict[str, Any], descriptors: list[int]) -> None:
        if "id" in message:
            self._answered(message, descriptors)
        elif "exited" in message:
            process = self._processes.get((message["exited"], message["start_ticks"]))
            if process is not None:
                process.status_known(message["code"], message["signal"])
        elif not self._open.done():
            if "refused" in message:
                self._open.set_exception(_NoForks(message["refused"]))
            else:
                self.start_seconds = time.monotonic() - self.create_time
                self._open.set_result(None)

    def _answered(self, message: dict[str, Any], descriptors: list[int]) -> None:
        order, answer = self._asked.pop(message["id"], (None, None))
        if "error" in message:
            if answer is not None and not answer.done():
                answer.set_exception(
                    _NoForks(message["error"])
                    if self.family
                    else errors.LoadFailed(f"the worker could not be started: {message['error']}")
                )
            return
        (pidfd,) = descriptors
        if order is None or answer is None or answer.done():
            # Given up meanwhile.
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            return
        worker = LocalWorker(message["pid"], message["start_ticks"], pidfd, order, self)
        order.worker = worker
        key = worker.pid, worker.start_ticks
        self._processes[key] = worker
        worker.exited.add_done_callback(lambda _: self._processes.pop(key, None))
        answer.set_result(worker)

    def hang_up(self, reason: str) -> None:
        """Ends it: it reads the end of the conversation. Whoever waits for it is told."""
        if self.gone:
            return
        self.gone = True
        if self.spare_timer is not None:
            self.spare_timer.cancel()
        if self.spare is not None:
            if self.spare.worker is not None:
                self.spare.worker.status_known(None, None)  # by whom it is reaped nobody knows, nor asks
                self.spare.worker.kill()
            if self.spare.practised:
                self.spare.abandon()
            self.spare = None
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        if self._theirs.fileno() >= 0:
            self._theirs.close()
        if self._writable is not None:
            _settle(self._writable)
        if not self._open.done():
            self._open.set_exception(_ForkServerGone(reason))
        for _, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(_ForkServerGone(reason))
        for process in self._processes.values():
            if process.reaper is self:
                process.orphaned(self.parent)


async def _end_all(processes: Sequence[LocalWorker]) -> None:
    for process in processes:
        process.kill()
    if processes:
        await asyncio.wait([process.exited for process in processes], timeout=10)


_NOTHING = "done nothing"


async def _idle_before(done: asyncio.Future[Any], pid: Callable[[], int], seconds: float) -> str:
    """Waits until `done` is, or the process has done nothing for `seconds`, or ten times `seconds` have passed whatever
    it does; the answer is which of the last two it was, for people, and empty when it is done."""
    begin = sign_time = time.monotonic()
    signs: tuple[object, ...] = ()
    while not done.done():
        await asyncio.wait((done,), timeout=seconds / 10)
        # Looked at first, judged then: this process may have been kept from running as well.
        now, before, signs = time.monotonic(), signs, _signs_of_work(pid())
        if signs != before:
            sign_time = now
        if not done.done() and now - sign_time >= seconds:
            return f"{_NOTHING} for {seconds:g} s"
        if not done.done() and now - begin >= 10 * seconds:
            return f"not come to an end in {10 * seconds:g} s"
    return ""


def _signs_of_work(pid: int) -> tuple[object, ...]:
    """Other ones at each look while a process computes, waits for a processor, or gets pages from a disk."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *counts = file.read().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return ()
    # Fields 12, 14 and 15: major faults, ticks of the program, ticks of the system for it.
    return (time.monotonic(),) if state == b"R" else (counts[8], counts[10], counts[11])


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _LogPipe:
    """Drains a worker's output into a rotating file and keeps its last lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._lines: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        self._partial = b""
        self._read_end = -1
        self._file = -1
        self._written_bytes = 0

    def rename(self, path: Path) -> None:
        """Goes on in a file of this name."""
        if self._file >= 0:
            self._path.replace(path)
        self._path = path

    def open(self) -> int:
        """The write end, for the worker; drains from now on."""
        self._stop_draining()
        self._read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_end, False)
        self._loop.add_reader(self._read_end, self._drain)
        return write_end

    def tail(self) -> tuple[str, ...]:
        """The last lines."""
        while self._read_end >= 0 and self._drain():
            pass
        return (*self._lines, self._partial.decode(errors="replace")) if self._partial else tuple(self._lines)

    def close(self) -> tuple[str, ...]:
        """Stops draining, after what is there. The last lines."""
        lines = self.tail()
        self._stop_draining()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        return lines

    def _drain(self) -> bool:
        try:
            data = os.read(self._read_end, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._stop_draining()
            return False
        self._write(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _MAX_LINE_CHARS:
            lines, self._partial = [*lines, self._partial], b""
        self._lines.extend(line[:_MAX_LINE_CHARS].decode(errors="replace") for line in lines[-LOG_TAIL_LINES:])
        return True

    def _write(self, data: bytes) -> None:
        try:
            if self._file >= 0 and self._written_bytes > LOG_FILE_BYTES:
                os.close(self._file)
                self._file = -1
                self._path.replace(self._path.with_suffix(".log.1"))
            if self._file < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                self._file = os.open(self._path, flags, 0o600)
                self._written_bytes = 0
            self._written_bytes += os.write(self._file, data)
        except OSError:
            # A full disk: the lines in memory remain, and the worker must not stop for its log.
            pass

    def _stop_draining(self) -> None:
        if self._read_end >= 0:
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)
            self._read_end = -1


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The worker's environment: what it needs of ours, then `extra`. Relative import paths are left out."""
    chosen = {name: value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name)}
    if "PYTHONPATH" in chosen:
        paths = [path for path in chosen["PYTHONPATH"].split(os.pathsep) if os.path.isabs(path)]
        chosen["PYTHONPATH"] = os.pathsep.join(paths)
        if not paths:
            del chosen["PYTHONPATH"]
    return {**_OURS, **chosen, **extra}


def _worker_package() -> Path:
    """Folder of the worker's code. Lifecycle starts it and does not import it."""
    return Path(__file__).resolve().parent.parent / "modelmora_worker"


def _log_name(spec: LaunchSpec, number: int) -> str:
    label = re.sub(r"[^A-Za-z0-9._-]+", "_", spec.label.removeprefix("models/")).strip("._")[:80]
    return f"worker-{label or spec.engine}-{spec.replica_uid[:8]}-{number}.log"


def _prune_logs(folder: Path) -> None:
    """Leaves the newest log files."""
    found = [(entry.stat().st_mtime, entry.path) for entry in os.scandir(folder) if entry.name.startswith("worker-")]
    for _, path in sorted(found)[: max(0, len(found) - LOG_FILES)]:
        Path(path).unlink(missing_ok=True)


def _drop_practices(folder: Path) -> None:
    """Removes what spares of launchers left that were killed, and they with them."""
    for path in folder.glob(f"w*{_PRACTICE}"):
        if not Path("/proc", str(int(path.name[1:].partition("-")[0], 16))).exists():
            shutil.rmtree(path, ignore_errors=True)


def _with_tail(message: str, tail: tuple[str, ...]) -> str:
    lines = "\n".join(tail[-20:])
    return f"{message}; its last lines:\n{lines}" if lines else message
