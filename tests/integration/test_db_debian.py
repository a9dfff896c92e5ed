"""`Database` against another server than ours: Debian's PostgreSQL over TCP, as MODELMORA_DATABASE_URL names it."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from integration.migration_line import write_line
from modelmora.errors import DatabaseUnavailable
from modelmora_runtime.db import Database
from modelmora_runtime.supervisor import Child, Identity
from sqlalchemy import text

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
pytestmark = pytest.mark.skipif(not SERVERS, reason="no PostgreSQL of Debian's here")


@pytest.fixture
async def server() -> AsyncIterator[tuple[Child, str]]:
    """A server of Debian's, its data in a folder of ours, and its URL."""
    folder = Path(tempfile.mkdtemp(prefix="mm-"))
    identity = Identity()
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        identity = Identity("user", user.pw_uid, user.pw_gid)
        shutil.chown(folder, user.pw_uid, user.pw_gid)
    programs = SERVERS[-1].parent
    environ = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    made = await Child.start(
        [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "me", "--auth=trust", "--encoding=UTF8", "-N"],
        environ,
        identity=identity,
    )
    exit = await made.exited
    assert exit.code == 0, exit.log_tail
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    child = await Child.start(
        [str(programs / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-k", str(folder)],
        environ,
        death_signal=signal.SIGQUIT,
        identity=identity,
    )
    url = f"postgres://me@127.0.0.1:{port}/postgres?sslmode=disable"
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    connection = await asyncpg.connect(url)
                    break
                except (OSError, asyncpg.PostgresError):
                    assert child.is_running, child.log_tail()
                    await asyncio.sleep(0.02)
            await connection.close()
        yield child, url
    finally:
        await child.stop(10, signal.SIGINT)
        shutil.rmtree(folder)


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    write_line(tmp_path / "mm_debian_line")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "mm_debian_line"
    sys.modules.pop("mm_debian_line", None)


async def test_everything_works_on_a_server_named_by_its_url(server: tuple[Child, str], line: str) -> None:
    child, url = server
    database, other = Database(url, "things"), Database(url, "other")
    try:
        assert await database.migrate(line) == "0002"
        assert await other.migrate(line, "0001") == "0001"
        async with database.begin() as connection:
            await connection.execute(text("INSERT INTO thing (id, word, note) VALUES (1, 'a', 'b')"))
        async with other.read() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM thing")) == 0
        lock = await database.try_lock("node")
        assert lock is not None
        assert await database.try_lock("node") is None
        words = database.listen("news")
        async with asyncio.timeout(20):
            assert await anext(words) == ""
            async with database.begin() as connection:
                await connection.execute(text("SELECT pg_notify('news', 'x')"))
            assert await anext(words) == "x"
        await words.aclose()  # type: ignore[attr-defined]
        await child.stop(10, signal.SIGINT)
        async with asyncio.timeout(20):
            await lock.lost.wait()
        await lock.release()
        with pytest.raises(DatabaseUnavailable):
            await database.ping()
    finally:
        await database.close()
        await other.close()


async def test_the_version_is_one_that_is_supported(server: tuple[Child, str]) -> None:
    told = subprocess.run([str(SERVERS[-1]), "--version"], capture_output=True, text=True).stdout  # noqa: ASYNC221
    assert int(told.split()[2].split(".")[0]) >= 15
