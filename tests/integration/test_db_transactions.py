"""`Database` against a real server: transactions, migrations, locks, notifications, and the server's absences."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from integration.migration_line import FIRST, SECOND, write_line
from modelmora.errors import DatabaseUnavailable, FailedPrecondition, InvalidArgument
from modelmora_runtime import db
from modelmora_runtime.db import Database
from modelmora_runtime.postgres import EmbeddedPostgres, PostgresState
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

PATIENT: dict[str, Any] = {"connect_seconds": 60.0, "statement_seconds": 60.0}
"""What stands still with the whole machine is not away."""


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, "things", **PATIENT)
    yield database
    await database.close()


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package whose migrations make a table `thing`, then give it a column."""
    write_line(tmp_path / "mm_line")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "mm_line"
    sys.modules.pop("mm_line", None)


async def test_migrations_go_up_and_down_and_stay_in_their_schema(database: Database, line: str) -> None:
    assert await database.migrate(line) == "0002"
    async with database.begin() as connection:
        await connection.execute(text("INSERT INTO thing (id, word, note) VALUES (1, 'a', 'b')"))
    async with database.read() as connection:
        assert await connection.scalar(text("SELECT schemaname FROM pg_tables WHERE tablename = 'thing'")) == "things"
        found = await connection.execute(text("SELECT schemaname FROM pg_tables WHERE tablename = 'alembic_version'"))
        assert found.scalars().all() == ["things"]
    assert await database.migrate(line, "0001") == "0001"
    async with database.read() as connection:
        row = (await connection.execute(text("SELECT * FROM thing"))).one()
        assert row._asdict() == {"id": 1, "word": "a"}
    assert await database.migrate(line, "base") == "base"
    async with database.read() as connection:
        assert await connection.scalar(text("SELECT to_regclass('things.thing')")) is None
    assert await database.migrate(line) == "0002"
    with pytest.raises(InvalidArgument):
        await database.migrate(line, "0007")


async def test_a_start_with_nothing_to_migrate_does_without_alembic(
    database: Database, database_url: str, line: str, tmp_path: Path
) -> None:
    await database.migrate(line)
    code = (
        "import asyncio, sys; from modelmora_runtime.db import Database;"
        "print(asyncio.run(Database(sys.argv[1], 'things').migrate('mm_line')), 'alembic' in sys.modules)"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        database_url,
        stdout=subprocess.PIPE,
        env=environ,
    )
    assert (await process.communicate())[0].split() == [b"0002", b"False"]


async def _migrated_at_once(databases: list[Database], line: str, tmp_path: Path) -> list[str]:
    """What each migration answers. None of them changes a table before all have come as far as others let them."""
    (tmp_path / line / "migrations" / "0001_thing.py").write_text(
        FIRST.replace("upgrade():\n", "upgrade():\n    op.execute('SELECT pg_advisory_xact_lock_shared(7)')\n")
    )
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND (wait_event_type = 'Lock' OR state = 'idle in transaction')"
    )
    gate = Database(databases[0].url, "gate", **PATIENT)
    try:
        async with gate.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(7)"))
            migrating = asyncio.gather(*(database.migrate(line) for database in databases))
            async with asyncio.timeout(60):
                while not migrating.done() and await connection.scalar(waiting) < len(databases):
                    await connection.execute(text("SELECT pg_stat_clear_snapshot()"))
            for _ in range(20):  # who is not held up goes on between any two of these
                await connection.scalar(waiting)
        return await migrating
    finally:
        await gate.close()


async def test_schemas_of_one_process_that_migrate_at_once_get_their_own_tables(
    database_url: str, line: str, tmp_path: Path
) -> None:
    databases = [Database(database_url, f"things{number}", **PATIENT) for number in range(8)]
    try:
        assert await _migrated_at_once(databases, line, tmp_path) == ["0002"] * 8
        for database in databases:
            async with database.begin() as connection:
                await connection.execute(text("INSERT INTO thing (id, word, note) VALUES (1, 'a', 'b')"))
    finally:
        for database in databases:
            await database.close()


async def test_many_that_migrate_at_once_migrate_once(database_url: str, line: str, tmp_path: Path) -> None:
    databases = [Database(database_url, "things", **PATIENT) for _ in range(6)]
    try:
        assert await _migrated_at_once(databases, line, tmp_path) == ["0002"] * 6
    finally:
        await asyncio.gather(*(database.close() for database in databases))


async def test_a_schema_later_than_the_program_is_left_alone(database: Database, line: str) -> None:
    await database.migrate(line)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '0009'"))
    assert await database.migrate(line) == "0009"


async def test_a_failed_migration_leaves_nothing(database: Database, line: str, tmp_path: Path) -> None:
    await database.migrate(line, "0001")
    (tmp_path / "mm_line" / "migrations" / "0003_bad.py").write_text(
        SECOND.replace("0002", "0003").replace("0001", "0002").replace('sa.Column("note"', 'sa.Column("word"')
    )
    with pytest.raises(DBAPIError):
        await database.migrate(line)
    async with database.read() as connection:
        assert await connection.scalar(text("SELECT version_num FROM alembic_version")) == "0001"
        assert set((await connection.execute(text("SELECT * FROM thing"))).keys()) == {"id", "word"}


async def test_a_transaction_commits_whole_or_not_at_all(database: Database, line: str) -> None:
    await database.migrate(line)
    with pytest.raises(RuntimeError, match="no"):  # noqa: PT012
        async with database.begin() as connection:
            await connection.execute(text("INSERT INTO thing (id, word) VALUES (1, 'a')"))
            raise RuntimeError("no")
    async with database.begin() as connection:
        await connection.execute(text("INSERT INTO thing (id, word) VALUES (2, 'a')"))
    with pytest.raises(IntegrityError):
        async with database.begin() as connection:
            await connection.execute(text("INSERT INTO thing (id, word) VALUES (2, 'b')"))
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT id FROM thing"))).scalars().all() == [2]
    with pytest.raises(DBAPIError, match="read-only"):
        async with database.read() as connection:
            await connection.execute(text("DELETE FROM thing"))
    assert database.available


async def test_a_deadlock_is_a_conflict_to_retry(database: Database, line: str) -> None:
    await database.migrate(line)
    async with database.begin() as connection:
        await connection.execute(text("INSERT INTO thing (id, word) VALUES (1, 'a'), (2, 'b')"))
    barrier = asyncio.Barrier(2)

    async def lock(first: int, second: int) -> None:
        async with database.begin() as connection:
            await connection.execute(text("SELECT 1 FROM thing WHERE id = :id FOR UPDATE"), {"id": first})
            await barrier.wait()
            await connection.execute(text("SELECT 1 FROM thing WHERE id = :id FOR UPDATE"), {"id": second})

    results = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "NoneType"]


async def test_a_text_with_nul_is_the_callers_fault(database: Database, line: str) -> None:
    await database.migrate(line)
    for statement, value in (
        ("INSERT INTO thing (id, word, note) VALUES (1, :value, '')", "a\0b"),
        ("SELECT CAST(:value AS jsonb) ->> 'a'", '{"a": "\\u0000"}'),
    ):
        with pytest.raises(InvalidArgument, match="NUL"):
            async with database.begin() as connection:
                await connection.execute(text(statement), {"value": value})


async def test_a_statement_that_takes_too_long_is_unavailable_and_the_rest_goes_on(database_url: str) -> None:
    database = Database(database_url, "things", statement_seconds=0.3)
    try:
        with pytest.raises(DatabaseUnavailable):
            async with database.begin() as connection:
                await connection.execute(text("SELECT pg_sleep(30)"))
        await _until_answers(database)
    finally:
        await database.close()


async def test_a_cancelled_call_gives_its_connection_back(database_url: str) -> None:
    database = Database(database_url, "things", pool_size=1, pool_overflow=0, **PATIENT)

    async def sleep() -> None:
        async with database.begin() as connection:
            await connection.execute(text("SELECT pg_sleep(30)"))

    try:
        for _ in range(3):
            task = asyncio.create_task(sleep())
            await asyncio.wait([task], timeout=0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with database.begin() as connection:
            await connection.execute(text("SELECT 1"))
        assert database.available
    finally:
        await database.close()


async def test_a_busy_pool_is_said_and_is_not_an_outage(database_url: str) -> None:
    database = Database(database_url, "things", pool_size=1, pool_overflow=0, **PATIENT)
    try:
        async with database.begin():
            database._engine.pool._timeout = 0.1  # type: ignore[attr-defined]  # of waiting, and not of connecting
            with pytest.raises(DatabaseUnavailable, match="busy"):
                async with database.read():
                    pass
        assert database.available
    finally:
        await database.close()


async def test_the_lock_is_one_holders_and_its_loss_is_seen(database: Database, database_url: str) -> None:
    other = Database(database_url, "things", **PATIENT)
    try:
        lock = await database.try_lock("node")
        assert lock is not None
        assert await other.try_lock("node") is None
        second = await other.try_lock("another node")
        assert second is not None
        await second.release()
        async with other.begin() as connection:
            await connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")
            )
        async with asyncio.timeout(30):
            await lock.lost.wait()
        async with asyncio.timeout(30):
            while (again := await other.try_lock("node")) is None:
                pass
        async with again:
            assert not again.lost.is_set()
    finally:
        await other.close()


async def test_listeners_hear_and_hear_again_after_a_break(database: Database) -> None:
    words = database.listen("news")
    async with asyncio.timeout(30):
        assert await anext(words) == ""
        await _notify(database, "one")
        assert await anext(words) == "one"
        async with database.begin() as connection:
            await connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE 'listen%'")
            )
        assert await anext(words) == ""
        await _notify(database, "two")
        assert await anext(words) == "two"
    await words.aclose()  # type: ignore[attr-defined]


async def test_nothing_there_is_unavailable_at_once(data_dir: Path) -> None:
    database = Database(f"postgresql://me:secret@/none?host={data_dir}", "things", connect_seconds=600)
    for attempt in (database.ping, lambda: database.migrate("modelmora_runtime_none"), lambda: database.try_lock("x")):
        with pytest.raises((DatabaseUnavailable, FailedPrecondition)) as caught:
            await attempt()
        assert "secret" not in str(caught.value)
        assert "no answer" not in str(caught.value), "somebody waited for one"
    await database.close()


async def test_a_stopped_server_is_noticed_within_two_seconds_and_forgiven(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[bool] = []
    async with EmbeddedPostgres(data_dir, data_dir.parent / "run") as postgres:
        database = Database(postgres.url, "things", on_change=lambda available, reason: changes.append(available))
        await _until_answers(database)
        for _ in range(4):  # The best of a few tries: the machine may stand still too.
            changes.clear()
            with _stopped(postgres):
                began = time.monotonic()
                with pytest.raises(DatabaseUnavailable):
                    await database.ping()
                noticed_seconds = time.monotonic() - began
                began = time.monotonic()
                for _ in range(200):
                    with pytest.raises(DatabaseUnavailable):
                        async with database.begin():
                            pass
                tried_seconds = time.monotonic() - began
                assert not await postgres.ping(0.3)
            await _until_available(database)
            await _until_answers(database)
            if noticed_seconds < 4 and tried_seconds < noticed_seconds and changes == [False, True]:
                break
        assert noticed_seconds < 4
        assert tried_seconds < noticed_seconds, "nobody tries a server that is known to stand still"
        assert changes == [False, True]
        with _stopped(postgres):
            with pytest.raises(DatabaseUnavailable):
                await database.ping()
            monkeypatch.setattr(db, "_CLOSE_SECONDS", 600.0)
            async with asyncio.timeout(30):
                await database.close()


async def test_who_hears_from_one_schema_that_the_server_is_back_can_use_the_others(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    async with EmbeddedPostgres(data_dir, data_dir.parent / "run") as postgres:
        slow = Database(postgres.url, "slow")
        quick = Database(postgres.url, "quick", on_change=lambda *_: seen.append(slow.available))
        with _stopped(postgres):
            with monkeypatch.context() as patched:
                patched.setattr(db, "_PROBE_SECONDS", (60.0, 60.0))  # It asks once, in vain, and not soon again.
                with pytest.raises(DatabaseUnavailable):
                    await slow.ping()
                await asyncio.sleep(0)
            with pytest.raises(DatabaseUnavailable):
                await quick.ping()
        await _until_available(quick)
        assert seen == [False, True]
        await slow.ping()
        await asyncio.gather(slow.close(), quick.close())


async def test_statements_in_flight_when_the_server_stops_are_told_in_time(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir, data_dir.parent / "run") as postgres:
        # Who does not get a connection at once never comes to the barrier, and all others wait there.
        database = Database(postgres.url, "things", connect_seconds=60, statement_seconds=3)
        ready = asyncio.Barrier(9)

        async def write() -> float:
            async with database.begin() as connection:
                await connection.execute(text("SELECT 1"))
                await ready.wait()
                await ready.wait()
                began = time.monotonic()
                with pytest.raises(DatabaseUnavailable):
                    await connection.execute(text("SELECT 2"))
                raise _Waited(time.monotonic() - began)

        longest: list[float] = []
        while not longest or (longest[-1] >= 6.5 and len(longest) < 4):  # the machine may stand still too
            writers = [asyncio.create_task(write()) for _ in range(8)]
            await ready.wait()
            with _stopped(postgres):
                await ready.wait()
                waits = await asyncio.gather(*writers, return_exceptions=True)
            assert all(isinstance(wait, _Waited) for wait in waits), waits
            longest.append(max(wait.args[0] for wait in waits if isinstance(wait, _Waited)))
            await _until_available(database)
        assert min(longest) < 6.5
        await database.ping()
        await database.close()


async def test_a_killed_server_comes_back_and_so_do_the_connections(data_dir: Path) -> None:
    states: asyncio.Queue[PostgresState] = asyncio.Queue()
    async with EmbeddedPostgres(data_dir, data_dir.parent / "run", on_state=states.put_nowait) as postgres:
        database = Database(postgres.url, "things")
        async with database.begin() as connection:
            await connection.execute(text("CREATE TABLE public.thing (id integer)"))
        first = postgres.state.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(30):
            while (state := await states.get()).restarts == 0 or state.status != "ready":
                pass
            while True:
                try:
                    async with database.begin() as connection:
                        await connection.execute(text("INSERT INTO public.thing VALUES (1)"))
                    break
                except DatabaseUnavailable:
                    await asyncio.sleep(0.01)
        assert postgres.state.restarts == 1
        assert postgres.state.pid != first
        await database.close()


class _Waited(Exception):
    """Carries how long a statement waited out of its transaction."""


@contextmanager
def _stopped(postgres: EmbeddedPostgres) -> Iterator[None]:
    assert postgres.state.pid is not None
    os.kill(postgres.state.pid, signal.SIGSTOP)  # From here on it has no more children than these.
    pids = _family(postgres.state.pid)
    _send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(pids, signal.SIGCONT)


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # It was ending.
            os.kill(pid, number)


async def _notify(database: Database, word: str) -> None:
    async with database.begin() as connection:
        await connection.execute(text("SELECT pg_notify('news', :word)"), {"word": word})


async def _until_available(database: Database) -> None:
    async with asyncio.timeout(30):
        while not database.available:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _until_answers(database: Database) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                return await database.ping()
            except DatabaseUnavailable:
                await asyncio.sleep(0.01)


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        file = open(f"/proc/{pid}/task/{pid}/children")  # noqa: SIM115
    except FileNotFoundError:
        return []  # It has ended meanwhile.
    with file:
        return [pid, *(member for child in file.read().split() for member in _family(int(child)))]
