"""A context's database: its schema, its transactions, its Alembic line, its locks and notifications.

    database = Database(url, "registry")
    await database.migrate("modelmora_registry")
    async with database.begin() as connection:
        await connection.execute(model.insert().values(...))

When the server is away, stopped or does not answer in time, every call raises `DatabaseUnavailable`, and does so fast:
the first call that notices waits at most for its timeout (2 s to connect, 5 s for a statement); from then on calls are
refused at once, while one task asks every half second whether the server is back. Without this each caller would wait
its own 5 s for a server under SIGSTOP, ten at a time, and the queue of callers would outlive the outage.

Callers hear of it in our words. The driver's name hosts, ports and users, and go into the log only.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import re
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import asyncpg
from modelmora.errors import (
    Conflict,
    DatabaseFailed,
    DatabaseUnavailable,
    FailedPrecondition,
    InvalidArgument,
    ModelMoraError,
    QueryTooSlow,
    StorageFull,
)
from sqlalchemy import Connection, event, exc, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.url import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

OLDEST_MAJOR = 15
_CLOSE_SECONDS = 0.5
_PROBE_SECONDS = (0.05, 0.5)
_PING_SECONDS = 2.0
_MIGRATE_SECONDS = 300.0
_HEARTBEAT_SECONDS = 5.0
_STATEMENTS = 16
"""Prepared statements that a connection keeps (SQLAlchemy drops some at half as many again), some 10 KB each here and
more in the server. With many, a dozen connections that meet them one by one grow for a hundred thousand calls."""
_VERSION_TABLE = "alembic_version"
_log = logging.getLogger(__name__)
_migrating: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()

_here: weakref.WeakSet[Database] = weakref.WeakSet()
"""The databases of this process."""


class Database:
    """One schema of one PostgreSQL. `on_change(available, reason)` hears when it goes away and when it is back."""

    def __init__(
        self,
        url: str,
        schema: str,
        *,
        pool_size: int = 5,
        pool_overflow: int = 5,
        connect_seconds: float = 2.0,
        statement_seconds: float = 5.0,
        on_change: Callable[[bool, str], None] = lambda available, reason: None,
    ) -> None:
        """Connects nowhere yet. Raises InvalidArgument when `url` does not name a PostgreSQL."""
        self.schema = schema
        self.url = database_url(url)
        self._connect_seconds = connect_seconds
        self._on_change = on_change
        self._down: str | None = None
        self._prober: asyncio.Task[None] | None = None
        self._open: weakref.WeakSet[asyncpg.Connection] = weakref.WeakSet()
        self._engine = create_async_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=pool_overflow,
            pool_timeout=connect_seconds,
            pool_use_lifo=True,  # those that are warm go first
            connect_args={
                **self._connect_arguments(command_timeout=statement_seconds),
                "prepared_statement_cache_size": _STATEMENTS,
            },
        )
        self._reading = self._engine.execution_options(postgresql_readonly=True)
        self._looking = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        event.listen(self._engine.sync_engine, "handle_error", self._on_error)
        event.listen(self._engine.sync_engine, "checkout", _refuse_closed)
        event.listen(self._engine.sync_engine, "connect", lambda _, record: self._open.add(record.driver_connection))
        _here.add(self)

    @property
    def available(self) -> bool:
        """False while the server is known to be away."""
        return self._down is None

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that is committed at the end, rolled back on an exception.

        Raises DatabaseUnavailable, StorageFull (the server's disk is full) or Conflict (deadlock, serialization), from
        statements inside the block as well as from the block's end.
        """
        async with self._transaction(self._engine) as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """The same in a read only transaction."""
        async with self._transaction(self._reading) as connection:
            yield connection

    @asynccontextmanager
    async def look(self) -> AsyncIterator[AsyncConnection]:
        """For one statement that only reads: without BEGIN and COMMIT around it, one round trip instead of three."""
        async with self._transaction(self._looking) as connection:
            yield connection

    async def ping(self) -> None:
        """One round trip. Raises DatabaseUnavailable within 2 s."""
        try:
            async with asyncio.timeout(_PING_SECONDS), self.look() as connection:
                await connection.execute(text("SELECT 1"))
        except TimeoutError:
            raise self._went_away(f"no answer within {_PING_SECONDS:g} s") from None

    async def migrate(self, package: str, revision: str = "head") -> str:
        """Bring the schema to a revision of the line in `<package>/migrations`, up or down; returns what it is at then.

        The files are named `0001_words.py`; their revision is the number, `base` is before the first. One transaction
        under an advisory lock: of many processes that start at once one migrates and the others find it done. A schema
        later than our files is left alone: during an upgrade old programs run beside new ones.

        Raises DatabaseUnavailable, or FailedPrecondition when the server is older than PostgreSQL 15.
        """
        revisions = migration_files(package)
        target = (revisions[-1] if revisions else "base") if revision == "head" else revision
        if target not in ("base", *revisions):
            raise InvalidArgument.at("revision", f"{package} has no migration {revision}")
        try:
            current = await self._revision()
            if current == target:
                return current
            if revision == "head" and current != "base" and current not in revisions:
                _log.warning("schema %s is at %s, later than this program's %s", self.schema, current, target)
                return current
            async with asyncio.timeout(_MIGRATE_SECONDS):
                await self._migrate(package, target)
        except TimeoutError:
            raise DatabaseUnavailable(f"the migration of {self.schema} took too long or never got its lock") from None
        return target

    async def try_lock(self, name: str) -> AdvisoryLock | None:
        """The advisory lock of this name in this schema, on a connection of its own; None when another has it."""
        connection = await self._connect(command_timeout=self._connect_seconds)
        try:
            if await connection.fetchval("SELECT pg_try_advisory_lock($1)", lock_key(self.schema, name)):
                return AdvisoryLock(connection, over_network=not _is_local(self.url))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            connection.terminate()
            raise translate(error) or DatabaseUnavailable("the database did not give a lock") from error
        except asyncio.CancelledError:
            connection.terminate()  # it may have the lock, and nobody would give it back
            raise
        await connection.close(timeout=_CLOSE_SECONDS)
        return None

    async def listen(self, channel: str) -> AsyncIterator[str]:
        """The payloads of NOTIFY on a channel, without end. Reconnects by itself.

        The empty string comes first and after every reconnection: something may have been missed, look again.
        """
        pause = _PROBE_SECONDS[0]
        while True:
            # Bounded by the reader: one that lags behind loses the words, not the fact that there is news.
            news: asyncio.Queue[str] = asyncio.Queue(maxsize=1000)
            try:
                connection = await self._connect(command_timeout=self._connect_seconds)
            except ModelMoraError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)
                continue
            gone = asyncio.Event()
            connection.add_termination_listener(lambda _, gone=gone: gone.set())
            try:
                await connection.add_listener(channel, lambda *facts, news=news: _put(news, facts[3]))
                pause = _PROBE_SECONDS[0]
                yield ""
                while True:
                    word = await _first(news, gone)
                    if word is None:
                        break
                    yield word
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(pause)
            finally:
                connection.terminate()

    async def close(self) -> None:
        """Close the pool. Nothing waits for a server that does not answer."""
        _here.discard(self)
        if self._down is not None:
            self._terminate_all()
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.wait([self._prober])
            self._prober = None
        await self._engine.dispose()

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        if self._down is not None:
            raise DatabaseUnavailable(f"the database is away: {self._down}", retry_after_seconds=1.0)
        try:
            connection = await engine.connect()
        except exc.TimeoutError as error:
            raise DatabaseUnavailable("all connections to the database are busy", retry_after_seconds=0.5) from error
        except (OSError, asyncpg.InterfaceError, asyncpg.PostgresError, exc.DBAPIError) as error:
            raise self._went_away(why_away(error), translate(error), error) from error
        try:
            async with connection.begin():
                yield connection
        except exc.PendingRollbackError as error:
            # The block went on after a statement had failed with the connection.
            raise DatabaseUnavailable("the connection broke in this transaction", retry_after_seconds=1.0) from error
        finally:
            # Shielded, because the connection must come back to the pool also when the call is cancelled.
            await asyncio.shield(connection.close())

    def _on_error(self, context: ExceptionContext) -> None:
        """Called by SQLAlchemy for everything that goes wrong in a statement, a begin or a commit."""
        error = context.original_exception
        if isinstance(error, asyncio.CancelledError):
            # The connection is in the middle of an answer. SQLAlchemy drops it, but politely, up to 2 s.
            _abort(context)
            return
        found = translate(error)
        if isinstance(found, DatabaseUnavailable):
            context.is_disconnect = True
            _abort(context)
            raise self._went_away(why_away(error), found, error) from error
        if found is not None:
            raise found from error

    def _went_away(
        self, reason: str, error: ModelMoraError | None = None, cause: BaseException | None = None
    ) -> ModelMoraError:
        if error is not None and not isinstance(error, DatabaseUnavailable):
            return error
        if self._down is None:
            self._down = reason
            self._prober = asyncio.get_running_loop().create_task(self._probe(), name=f"database {self.schema} probe")
            told = "database of %s is away: %s; who needs it is refused until it answers, and it is asked until then"
            _log.warning(told, self.schema, why_away_in_log(reason, cause))
            self._on_change(False, reason)
        return DatabaseUnavailable(f"the database is away: {reason}", retry_after_seconds=1.0)

    async def _probe(self) -> None:
        """Ask until the server answers. At once first: maybe it was only one slow statement or one cut connection."""
        pause, longest = _PROBE_SECONDS
        while not await self._answers():
            # Those who still wait for an answer that will not come are told now.
            self._terminate_all()
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)
        # The server is back for all schemas at once: whoever hears it from one may call another the next moment.
        back = [database for database in _here if database.url == self.url and database._is_asking()]
        for database in back:
            database._is_back()
        for database in back:
            database._on_change(True, "")

    def _is_asking(self) -> bool:
        """Whether it asks, in this event loop, if its server is back."""
        return self._prober is not None and self._prober.get_loop() is asyncio.get_running_loop()

    def _is_back(self) -> None:
        self._down = None
        if self._prober is not None and self._prober is not asyncio.current_task():
            self._prober.cancel()
        self._prober = None
        _log.warning("database of %s is back", self.schema)

    async def _answers(self) -> bool:
        try:
            connection = await self._connect(command_timeout=1.0, timeout=1.0)
        except ModelMoraError:
            return False
        try:
            await connection.execute("SELECT 1")
            return True
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        finally:
            connection.terminate()

    def _terminate_all(self) -> None:
        for connection in list(self._open):
            connection.terminate()

    async def _connect(self, *, command_timeout: float | None, timeout: float | None = None) -> asyncpg.Connection:
        """A connection outside the pool. Raises DatabaseUnavailable and its kin."""
        _, given = self._engine.dialect.create_connect_args(self.url)
        options = {**given, **self._connect_arguments(command_timeout=command_timeout)}
        if timeout is not None:
            options["timeout"] = timeout
        try:
            return await asyncpg.connect(**options)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise translate(error) or DatabaseUnavailable(f"the database is away: {why_away(error)}") from error

    def _connect_arguments(self, *, command_timeout: float | None) -> dict[str, Any]:
        return {
            "timeout": self._connect_seconds,
            "command_timeout": command_timeout,
            "connection_class": _PooledConnection,
            "server_settings": {"search_path": self.schema, "application_name": f"modelmora {self.schema}"},
        }

    async def _revision(self) -> str:
        async with self.read() as connection:
            major = int((connection.dialect.server_version_info or (0,))[0])
            if major < OLDEST_MAJOR:
                raise FailedPrecondition(f"the database is PostgreSQL {major}; modelmora needs {OLDEST_MAJOR} or newer")
            table = f'"{self.schema}".{_VERSION_TABLE}'
            if await connection.scalar(text("SELECT to_regclass(:table)"), {"table": table}) is None:
                return "base"
            return (
                await connection.scalar(
                    text(f"SELECT version_num FROM {table}")  # noqa: S608 (our own schema)
                )
                or "base"
            )

    async def _migrate(self, package: str, target: str) -> None:
        # Not from the pool: a migration may take longer than any statement of a request.
        engine = create_async_engine(
            self.url, poolclass=NullPool, connect_args=self._connect_arguments(command_timeout=None)
        )
        event.listen(engine.sync_engine, "handle_error", self._on_error)
        try:
            async with self._transaction(engine) as connection:
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock_key(self.schema, "migrations")}
                )
                await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{self.schema}"'))
                # Alembic's `op` is one for the process: of two migrations at a time each would write into the other's
                # connection.
                async with _migrating.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
                    await connection.run_sync(_run_migrations, migrations_folder(package), self.schema, target)
        finally:
            await engine.dispose()


class AdvisoryLock:
    """An advisory lock that is ours as long as its connection lives; `lost` is set when that ends."""

    def __init__(self, connection: asyncpg.Connection, *, over_network: bool) -> None:
        self.lost = asyncio.Event()
        self._connection = connection
        self._heart: asyncio.Task[None] | None = None
        connection.add_termination_listener(lambda _: self.lost.set())
        if over_network:
            # A cut cable tells nobody, and the server gives the lock to another after its own keepalive. A server on
            # this machine that does not answer keeps the lock for us, so there silence proves nothing.
            self._heart = asyncio.create_task(self._beat(), name="advisory lock heartbeat")

    async def release(self) -> None:
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.wait([self._heart])
        await self._connection.close(timeout=_CLOSE_SECONDS)
        self.lost.set()

    async def __aenter__(self) -> AdvisoryLock:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()

    async def _beat(self) -> None:
        try:
            while True:
                await asyncio.sleep(_HEARTBEAT_SECONDS)
                await self._connection.execute("SELECT 1", timeout=_HEARTBEAT_SECONDS)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._connection.terminate()
            self.lost.set()


def database_url(value: str) -> URL:
    """The URL as SQLAlchemy and asyncpg want it, from what people write: `postgres://`, `?sslmode=require`.

    Raises InvalidArgument at `database_url`, without repeating a password.
    """
    try:
        url = make_url(value)
    except (exc.ArgumentError, ValueError):
        raise InvalidArgument.at("database_url", "is not a URL like postgresql://user:password@host/name") from None
    if url.drivername not in ("postgres", "postgresql", "postgresql+asyncpg"):
        raise InvalidArgument.at("database_url", f"names {url.drivername}; the database is a PostgreSQL")
    query = dict(url.query)
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    return url.set(drivername="postgresql+asyncpg", query=query)


def migrations_folder(package: str) -> Path:
    """Where a context's migrations lie, found without importing it."""
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / "migrations").is_dir():
            return Path(folder) / "migrations"
    raise DatabaseFailed(f"{package} has no folder `migrations`")


def migration_files(package: str) -> list[str]:
    """The revisions of a context's line in order: the numbers its files begin with.

    Known from the names alone, so that a start with nothing to migrate does not import Alembic (0.1 s).
    """
    matches = (re.match(r"(\d{4})_\w+\.py$", path.name) for path in migrations_folder(package).iterdir())
    return sorted(match[1] for match in matches if match)


def lock_key(schema: str, name: str) -> int:
    """The 64 bits PostgreSQL knows an advisory lock by."""
    return int.from_bytes(hashlib.sha256(f"modelmora\0{schema}\0{name}".encode()).digest()[:8], "big", signed=True)


def translate(error: BaseException | None) -> ModelMoraError | None:
    """The named error for what the driver raised; None when it is the caller's own (a constraint, bad SQL)."""
    if isinstance(error, exc.DBAPIError):
        return translate(error.orig)
    cause = error.__cause__ if isinstance(error, Exception) else None
    state = getattr(error, "sqlstate", None) or getattr(cause, "sqlstate", None)
    if state is None:
        # The driver's word for a connection it lost or closed itself is an InterfaceError without a state; for one
        # that was broken off in the middle of the server's last words, an InternalClientError.
        source = cause or error
        lost = (
            isinstance(error, OSError)
            or (isinstance(source, asyncpg.InterfaceError) and "connection" in str(source))
            or isinstance(source, asyncpg.InternalClientError)
        )
        return DatabaseUnavailable(f"the database is away: {why_away(error)}") if lost else None
    if state.startswith("08") or state in _AWAY_STATES:
        return DatabaseUnavailable(f"the database is away: {why_away(error)}")
    if state == "53100":
        return StorageFull("the database's disk is full; free some space")
    if state == "57014":
        return QueryTooSlow()  # the server is well: it stopped a statement, as it was told to
    if state in ("22021", "22P05"):
        return InvalidArgument("a text has the character NUL, which the database cannot keep")
    if state in ("40001", "40P01"):
        return Conflict("another transaction was in the way; retry")
    return None


_AWAY_STATES = {
    "57P01": "it is stopping",
    "57P02": "it has crashed",
    "57P03": "it is starting or stopping",
    "57P04": "there is no such database any more",
    "57P05": "it has closed the connection",
    "25P03": "it has closed the connection",
    "53300": "it takes no more connections",
    "53200": "it has no memory left",
    "58030": "it cannot read or write its disk",
    # Someone may be changing it, and a restart must not be needed.
    "28P01": "it does not let us in",
    "28000": "it does not let us in",
    "3D000": "there is no such database",
}
"""What states mean in which a server cannot be used, for callers."""


def why_away(error: BaseException | None) -> str:
    """Why a server cannot be used, in words that name neither hosts nor users."""
    original = error.orig if isinstance(error, exc.DBAPIError) else error
    cause = original.__cause__ if isinstance(original, Exception) else None
    state = getattr(original, "sqlstate", None) or getattr(cause, "sqlstate", None)
    if state in _AWAY_STATES:
        return _AWAY_STATES[state]
    if isinstance(original, TimeoutError):
        return "no answer in time"
    if isinstance(original, ConnectionRefusedError | FileNotFoundError):
        return "it takes no connections"
    if isinstance(original, socket.gaierror):
        return "its host is not known"
    if isinstance(original, PermissionError):
        return "its socket may not be opened"
    return "the connection broke"


def why_away_in_log(reason: str, cause: BaseException | None) -> str:
    """`reason`, and beside it what the system or the server says, hosts and users included. What the driver says of
    its own states helps nobody."""
    original = cause.orig if isinstance(cause, exc.DBAPIError) else cause
    source = original.__cause__ if original is not None else None
    of_server = getattr(original, "sqlstate", None) or getattr(source, "sqlstate", None)
    if not of_server and not isinstance(original, OSError):
        return reason
    words = _words(original)
    return reason if words == reason else f"{reason} ({words})"


class _PooledConnection(asyncpg.Connection):  # type: ignore[misc]
    """A connection whose polite good-bye has an end also when the server does not listen."""

    async def close(self, *, timeout: float | None = None) -> None:
        try:
            await super().close(timeout=min(timeout or _CLOSE_SECONDS, _CLOSE_SECONDS))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.terminate()


def _refuse_closed(connection: object, record: Any, proxy: object) -> None:
    """Checkout: a connection that broke while it lay in the pool is replaced before anyone trips over it."""
    if record.driver_connection is not None and record.driver_connection.is_closed():
        raise exc.DisconnectionError


def _abort(context: ExceptionContext) -> None:
    if context.connection is not None and not context.connection.invalidated:
        driver_connection = context.connection.connection.driver_connection
        if driver_connection is not None:
            driver_connection.terminate()


def _run_migrations(connection: Connection, folder: Path, schema: str, target: str) -> None:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(folder), version_locations=[str(folder)])

    def steps(heads: Any, context: MigrationContext) -> Any:
        current = heads[0] if heads else "base"
        if current == target:
            return []
        # Numbers of four digits sort as text, and "base" is meant to be below them.
        upwards = target != "base" and (current == "base" or current < target)
        return script._upgrade_revs(target, current) if upwards else script._downgrade_revs(target, current)

    context = MigrationContext.configure(
        connection,
        opts={"fn": steps, "script": script, "version_table": _VERSION_TABLE, "version_table_schema": schema},
    )
    with Operations.context(context):
        context.run_migrations()


def _is_local(url: URL) -> bool:
    host = url.query.get("host") or url.host or ""
    return isinstance(host, str) and host.startswith("/")


def _words(error: BaseException | None) -> str:
    """What went wrong, in one line without the statement and its values."""
    original = error.orig if isinstance(error, exc.DBAPIError) else error
    if isinstance(original, TimeoutError) and not str(original):
        return "no answer in time"
    return str(original).splitlines()[0][:200] if str(original) else type(original).__name__


def _put(news: asyncio.Queue[str], word: str) -> None:
    if news.full():
        while not news.empty():
            news.get_nowait()
        word = ""
    news.put_nowait(word)


async def _first(news: asyncio.Queue[str], gone: asyncio.Event) -> str | None:
    """The next word, or None when the connection is gone."""
    word = asyncio.ensure_future(news.get())
    end = asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait((word, end), return_when=asyncio.FIRST_COMPLETED)
        return word.result() if word.done() else None
    finally:
        word.cancel()
        end.cancel()
