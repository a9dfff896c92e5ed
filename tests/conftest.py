"""What tests of several builders share: a database server for the session, a fresh database, a short data folder."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import uuid
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

if settings.get_current_profile_name() in ("ci", "mutants"):
    # There the examples of a property are the same every time, but for this: some are made from the constants of
    # whatever modules of ours were imported by then, and which those are depends on how xdist shared the files out.
    providers._get_local_constants = lambda: providers._local_constants

Answer = TypeVar("Answer")


class _LoopThread:
    """An event loop in a thread: session fixtures outlive the loop of any one test."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="session fixtures", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(scope="session")
def _fixture_loop() -> Iterator[_LoopThread]:
    thread = _LoopThread()
    yield thread
    thread.close()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A path for a data folder, not made yet, short enough for Unix sockets below it (pytest's tmp_path is not)."""
    parent = Path(tempfile.mkdtemp(prefix="mm-"))
    yield parent / "data"
    shutil.rmtree(parent, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(_fixture_loop: _LoopThread) -> Iterator[str]:
    """SQLAlchemy URL of an embedded server that lives as long as the session."""
    from modelmora_runtime.postgres import EmbeddedPostgres

    parent = Path(tempfile.mkdtemp(prefix="mm-"))
    server = EmbeddedPostgres(parent / "data", parent / "run")
    _fixture_loop.run(server.__aenter__())
    try:
        yield server.url
    finally:
        _fixture_loop.run(server.__aexit__(None, None, None))
        shutil.rmtree(parent, ignore_errors=True)


@pytest.fixture
def database_url(postgres_url: str, _fixture_loop: _LoopThread) -> Iterator[str]:
    """URL of an empty database of this test's own."""
    name = f"test_{uuid.uuid4().hex}"
    _fixture_loop.run(_execute(postgres_url, f"CREATE DATABASE {name}"))
    head, tail = postgres_url.split("@/", 1)
    yield f"{head}@/{name}?{tail.partition('?')[2]}"
    _fixture_loop.run(_execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(url: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close(timeout=5)
