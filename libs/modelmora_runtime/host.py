"""The host: opens the database, enters the contexts asked for, mounts them on one gRPC server, leaves them in reverse.

Start: token file → ports free? → database → contexts in the order given → server → `endpoint.json`. Stop: health says
NOT_SERVING → users' new calls get ShuttingDown → long streams end → calls in flight finish within the grace → contexts
in reverse (their own calls to each other still work) → server → database → data folder. A context that fails to start
takes the same way back from where it stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from grpc_health.v1 import health_pb2_grpc
from modelmora.errors import FailedPrecondition, FieldViolation, ModelMoraError

from modelmora_runtime import auth, health, listen, telemetry
from modelmora_runtime.audit import Audit
from modelmora_runtime.auth import READERS, Role, TokenFile
from modelmora_runtime.calls import ByteBudget, Gate
from modelmora_runtime.grpc_batches import free_batches
from modelmora_runtime.grpc_server import Server as GrpcServer
from modelmora_runtime.grpc_server import wake_once
from modelmora_runtime.health import ComponentHealth, HealthBoard, HealthService, tell_if_broken
from modelmora_runtime.interceptors import Interceptors
from modelmora_runtime.peers import Peers
from modelmora_runtime.settings import PlatformSettings, Section

if TYPE_CHECKING:
    from modelmora_runtime.postgres import PostgresState

__all__ = [
    "ComponentHealth",
    "Context",
    "EngineCard",
    "HealthBoard",
    "Host",
    "Mounted",
    "Platform",
    "Service",
    "StartFailed",
]

log = logging.getLogger(__name__)

DATABASE = "database"
_PING_SECONDS = 1.0
_LEAVE_SECONDS = 20.0
"""Beyond the grace, for one context to leave; then the others go on without it."""
MAX_STREAMS = 32_768
"""Calls that one connection may have open."""
_LONGEST_RUN_DIR = 50
"""Of the 107 bytes of a Unix socket's path the rest is for the sockets' names."""


@dataclass(frozen=True)
class EngineCard:
    """What the registry may know of an engine; modelmora_app makes it from the worker's table."""

    name: str
    tasks: frozenset[str]
    """Task words: `txt2embed`."""
    needs_files: bool
    check_options: Callable[[Mapping[str, object]], Sequence[FieldViolation]]
    """Pure; paths relative to the options: `delay_seconds`."""
    family: str = ""
    """Engines of one family share a fork server; empty: their workers are spawned."""
    profiles: Sequence[str] = ()
    """`backend/precision` of the engine profiles it offers, the exact one first; empty: one of its own choice."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Of `profiles` those whose libraries are not installed here, and what to do about that."""


@dataclass(frozen=True)
class Service:
    """One gRPC service with the roles that each of its methods needs; a method without roles fails the start."""

    full_name: str
    add: Callable[[Any, Any], None]
    """The generated add_…Servicer_to_server."""
    servicer: object
    access: Mapping[str, frozenset[Role]]
    audit: Audit | None = None
    """Where calls of its admin methods are written down; None: nowhere."""


@dataclass
class Mounted:
    """What a context yields when it is open."""

    services: Sequence[Service]


@dataclass
class Platform:
    """What a context gets from the host."""

    settings: PlatformSettings
    peers: Peers
    database_url: str | None
    """`postgresql+asyncpg://…`; None when no context here needs a database."""
    run_dir: Path
    """0700, a short path, for Unix sockets."""
    engines: Mapping[str, EngineCard]
    health: HealthBoard
    stopping: asyncio.Event
    """Set first when the platform stops: long public streams end with ShuttingDown."""


@dataclass(frozen=True)
class Context:
    """One context as the host enters it."""

    name: str
    settings: Section
    open: Callable[[Any, Platform], AbstractAsyncContextManager[Mounted]]
    database: Literal["required", "used", "unused"] = "unused"
    """required: without the database its services do not serve; used: they do."""


class StartFailed(FailedPrecondition):
    """A part of the platform did not start."""


class Host:
    """A running platform, as an async context manager: serving when entered, stopped in order when left."""

    def __init__(
        self,
        settings: PlatformSettings,
        contexts: Sequence[Context],
        *,
        engines: Mapping[str, EngineCard] | None = None,
        announce: Callable[[str], None] = print,
        endpoint_name: str = "endpoint.json",
    ) -> None:
        self.settings = settings
        self.contexts = contexts
        self.board = HealthBoard()
        self.stopping = asyncio.Event()
        self.port = 0
        self.metrics_port = 0
        self._engines = engines or {}
        self._announce = announce
        self._endpoint_name = endpoint_name
        self._stack = AsyncExitStack()
        self._gate = Gate()
        self._methods: dict[str, Any] = {}
        """With the stack around them, by path."""
        self._server: GrpcServer | None = None

    @property
    def target(self) -> str:
        """Where clients on this machine reach the platform."""
        return listen.reachable(self.settings.host, self.port)

    async def __aenter__(self) -> Host:
        try:
            await self._open()
        except BaseException:
            self._begin_to_stop()
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # Start.

    async def _open(self) -> None:
        settings, stack = self.settings, self._stack
        began = time.monotonic()
        wake_once()
        free_batches()
        peer_key = auth.new_peer_key()
        authenticator = self._authenticator(peer_key)
        listen.check_free(settings.host, settings.port, "platform.port")
        listen.check_free("127.0.0.1", settings.metrics_port, "platform.metrics_port")
        make_private(settings.data_dir)
        run_dir = run_folder(settings.data_dir)
        listen.drop_dead_sockets(run_dir)
        await stack.enter_async_context(telemetry.tracing(settings.otlp_endpoint, settings.trace_sample_ratio))
        database_url = await self._open_database(run_dir)

        interceptors = Interceptors(
            authenticator=authenticator,
            budget=ByteBudget(settings.in_flight_bytes),
            gate=self._gate,
            default_deadline_seconds=settings.default_deadline_seconds,
            max_deadline_seconds=settings.max_deadline_seconds,
            max_message_bytes=int(settings.max_message_bytes),
        )
        metrics = await self._open_metrics(interceptors)
        # Contexts call each other until the last has left, so the server stops after them although it starts last.
        stack.push_async_callback(self._stop_server)
        socket = run_dir / f"host-{os.getpid()}-{secrets.token_hex(3)}.sock"
        stack.callback(socket.unlink, missing_ok=True)
        peers = Peers(
            mounted=[context.name for context in self.contexts],
            local_target=f"unix:{socket}",
            peer_key=peer_key,
            targets=settings.peers,
            service_token=auth.read_service_token(settings.service_token_file) if settings.service_token_file else None,
            default_deadline_seconds=settings.default_deadline_seconds,
            max_message_bytes=int(settings.max_message_bytes),
        )
        stack.push_async_callback(peers.close)
        platform = Platform(settings, peers, database_url, run_dir, self._engines, self.board, self.stopping)
        names: list[str] = []
        for context in self.contexts:
            names += await self._enter(context, platform, interceptors)
        self._mount_standard_services(names, interceptors, authenticator)
        await self._start_server(socket)
        # Leaving runs backwards: this is the first step of the stop.
        stack.push_async_callback(self._drain)
        self._write_endpoint(metrics)
        self._announce(
            f"ModelMora serves {', '.join(context.name for context in self.contexts)} on {self.target} "
            f"after {time.monotonic() - began:.1f} s; metrics on http://127.0.0.1:{metrics.port}/metrics"
        )

    def _authenticator(self, peer_key: str) -> TokenFile:
        settings = self.settings
        path = settings.token_file or settings.data_dir / "tokens.json"
        authenticator = TokenFile(path, required=settings.token_file is not None, peer_key=peer_key)
        if authenticator.is_open:
            if not listen.is_loopback(settings.host) and not settings.insecure:
                raise listen.ListensBeyondLoopback(
                    f"{settings.host} is reachable from other machines and there are no tokens; make one with "
                    "`modelmora token create`, listen on 127.0.0.1, or set platform.insecure"
                )
            where = "this machine" if listen.is_loopback(settings.host) else "EVERY MACHINE that reaches this one"
            self._announce(f"no tokens: everyone on {where} is admin (`modelmora token create` makes a token)")
        return authenticator

    async def _open_database(self, run_dir: Path) -> str | None:
        if all(context.database == "unused" for context in self.contexts):
            return None
        began = time.monotonic()
        url = self.settings.database_url
        takes_connections: Callable[[], Awaitable[bool]] | None = None
        if url is None:
            from modelmora_runtime.postgres import EmbeddedPostgres

            # A killed server is often back between two pings: only its end itself is sure to be noticed.
            server = EmbeddedPostgres(
                self.settings.data_dir, run_dir, on_state=self._hear_of_database, on_progress=self._announce
            )
            await self._stack.enter_async_context(server)
            url, takes_connections = server.url, server.ping
            self._announce(f"database ready (embedded PostgreSQL, {time.monotonic() - began:.1f} s)")
        await self._stack.enter_async_context(self._watched_database(url, takes_connections))
        return url

    def _hear_of_database(self, state: PostgresState) -> None:
        if state.status == "restarting":
            self.board.set(DATABASE, "unhealthy", state.reason)

    @asynccontextmanager
    async def _watched_database(
        self, url: str, takes_connections: Callable[[], Awaitable[bool]] | None
    ) -> AsyncIterator[None]:
        """Pings the database, so that health turns when it is away and back when it answers.

        A server whose first process alone is stopped still answers on the connections that are there, but takes no
        new ones, so both are asked.
        """
        from modelmora_runtime.db import Database

        def say(available: bool, reason: str) -> None:
            self.board.set(DATABASE, "healthy" if available else "unhealthy", reason)

        database = Database(url, "public", pool_size=1, pool_overflow=0, on_change=say)

        async def ping() -> None:
            while True:
                try:
                    await database.ping()
                    if takes_connections is None or await takes_connections():
                        self.board.set(DATABASE, "healthy")
                    else:
                        self.board.set(DATABASE, "unhealthy", "it takes no connections")
                except ModelMoraError as error:
                    self.board.set(DATABASE, "unhealthy", error.message.removeprefix("the database is away: "))
                await asyncio.sleep(_PING_SECONDS)

        self.board.set(DATABASE, "unknown", "not asked yet")
        pinging = asyncio.create_task(ping(), name="database ping")
        tell_if_broken(pinging, partial(self.board.set, DATABASE, "unknown"))
        try:
            yield
        finally:
            pinging.cancel()
            await asyncio.wait([pinging])
            await database.close()

    async def _open_metrics(self, interceptors: Interceptors) -> telemetry.MetricsPage:
        from prometheus_client import REGISTRY

        port = self.settings.metrics_port
        try:
            metrics = await self._stack.enter_async_context(await telemetry.MetricsPage.open(port))
        except OSError as error:
            raise listen.in_use("127.0.0.1", port, "platform.metrics_port") from error
        REGISTRY.register(interceptors)
        self._stack.callback(REGISTRY.unregister, interceptors)
        self.metrics_port = metrics.port
        return metrics

    async def _start_server(self, socket: Path) -> None:
        settings = self.settings
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", int(settings.max_message_bytes)),
            ("grpc.max_send_message_length", int(settings.max_message_bytes)),
            ("grpc.so_reuseport", 0),
            # A holder that is stopped (SIGSTOP) still has a kernel that answers; only a ping finds out.
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # What counts in fact: gRPC (1.85) does not arm the timeout above on a quiet connection, and this one is by
            # default 60 s.
            ("grpc.http2.ping_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.http2.max_ping_strikes", 0),
            # Calls that have arrived and were not looked at yet. By default gRPC cancels some from 1,000 on, at random
            # and without a word, and each that has waited for 30 s; a burst is for our own bounds to judge, which say
            # when to come again.
            ("grpc.server.max_pending_requests", 50_000),
            ("grpc.server.max_pending_requests_hard_limit", 50_000),
            ("grpc.server_max_unrequested_time_in_server", 3600),
            # Of one connection; more wait at the client. Streams that it has reset count until we have looked at them:
            # one that did nothing but open and reset took 1.4 GiB of ours, and others waited for 18 s. It is twice what
            # a queue holds by default, so that a burst is still told when to come again.
            ("grpc.max_concurrent_streams", MAX_STREAMS),
        ]
        server = GrpcServer(self._methods, options)
        try:
            self.port = server.add_insecure_port(listen.address(settings.host, settings.port))
        except RuntimeError as error:
            raise listen.in_use(settings.host, settings.port, "platform.port") from error
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        self._server = server

    async def _stop_server(self) -> None:
        if self._server is not None:
            await self._server.stop(0.5)

    async def _enter(self, context: Context, platform: Platform, interceptors: Interceptors) -> list[str]:
        began = time.monotonic()
        opened = context.open(context.settings, platform)
        try:
            mounted = await opened.__aenter__()
        except ModelMoraError as error:
            raise StartFailed(f"{context.name} did not start: {error.message}") from error
        self._stack.push_async_exit(_bounded(context.name, opened, self.settings.grace_seconds + _LEAVE_SECONDS))
        for service in mounted.services:
            self._methods.update(interceptors.mount(service))
        names = [service.full_name for service in mounted.services]
        self.board.mount(context.name, names, [DATABASE] if context.database == "required" else [])
        self._announce(f"{context.name} ready ({time.monotonic() - began:.1f} s)")
        return names

    def _mount_standard_services(
        self, names: Sequence[str], interceptors: Interceptors, authenticator: TokenFile
    ) -> None:
        from modelmora_runtime import reflection

        checks = HealthService(self.board, authenticator, self.stopping)
        describes = reflection.servicer([*names, "grpc.health.v1.Health"])
        access = {"ServerReflectionInfo": READERS}
        for service in (
            Service("grpc.health.v1.Health", health_pb2_grpc.add_HealthServicer_to_server, checks, health.ACCESS),
            Service(reflection.V1, reflection.add_v1, describes, access),
            Service(reflection.V1ALPHA, reflection.add_v1alpha, describes, access),
        ):
            self._methods.update(interceptors.mount(service))

    def _write_endpoint(self, metrics: telemetry.MetricsPage) -> None:
        """Says where we are; only the file of this very start is taken away again."""
        folder = self.settings.data_dir / "run"
        make_private(folder)
        path = folder / self._endpoint_name
        content = {
            "target": self.target,
            "metrics": f"http://127.0.0.1:{metrics.port}/metrics",
            "pid": os.getpid(),
            "contexts": [context.name for context in self.contexts],
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content))
        os.replace(temporary, path)

        def remove() -> None:
            with contextlib.suppress(OSError, ValueError):
                if json.loads(path.read_text())["pid"] == os.getpid():
                    path.unlink()

        self._stack.callback(remove)

    # Stop.

    def _begin_to_stop(self) -> None:
        self.board.stop()
        self._gate.close()
        self.stopping.set()

    async def _drain(self) -> None:
        self._begin_to_stop()
        await self._gate.drain(self.settings.grace_seconds)


def _bounded(name: str, opened: AbstractAsyncContextManager[Mounted], seconds: float) -> Any:
    async def leave(
        kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            async with asyncio.timeout(seconds):
                return await opened.__aexit__(kind, error, trace)
        except TimeoutError:
            log.error("%s did not leave within %g s; the stop goes on without it", name, seconds)
            return None

    return leave


def make_private(folder: Path) -> None:
    """Makes a folder that only we may enter; one that is there keeps its mode."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def run_folder(data_dir: Path) -> Path:
    """A 0700 folder with a short path for Unix sockets: `<data_dir>/run`, or one below the temporary folder.

    Raises StartFailed when what lies at that place is not ours alone.
    """
    folder = data_dir / "run"
    if len(os.fsencode(folder)) > _LONGEST_RUN_DIR:
        # The same one at each start, so that a kill leaves nothing behind that adds up.
        digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:10]
        folder = Path(tempfile.gettempdir()) / f"modelmora-{os.getuid()}-{digest}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise StartFailed(f"{folder} must be a folder of ours with mode 0700; remove it or set TMPDIR")
        return folder
    make_private(folder)
    if folder.stat().st_uid == os.getuid() and folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    return folder
