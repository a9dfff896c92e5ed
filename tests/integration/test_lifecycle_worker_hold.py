"""A worker's load and the hold of its version go on side by side; nothing is loaded before both are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.struct_pb2 import Struct
from modelmora.errors import ModelMoraError, VersionNotFound
from modelmora.registry.v1 import registry_pb2
from modelmora.worker.v1 import worker_pb2
from modelmora_lifecycle.domain import Health, StartMode, VersionFacts
from modelmora_lifecycle.launcher import LocalLauncher
from modelmora_lifecycle.workers import Worker, WorkerRules

DEADLINE_SECONDS = 100.0


class Registry:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def acquired(self) -> None:
        await asyncio.shield(self.answer)

    async def golden(self) -> registry_pb2.GoldenInputs | None:
        return None

    async def record(self, fingerprint: registry_pb2.Fingerprint) -> registry_pb2.RecordFingerprintResponse:
        raise AssertionError(fingerprint)

    def release(self) -> None:
        self.answer.cancel()


class Told:
    """What became of a worker."""

    def __init__(self) -> None:
        self.words: asyncio.Queue[tuple[str, object]] = asyncio.Queue()

    def launched(self, uid: str, pid: int, start_mode: StartMode, refused: bool) -> None:
        self.words.put_nowait(("launched", pid))

    def loaded(self, uid: str, reply: worker_pb2.LoadReply, seconds: float) -> None:
        self.words.put_nowait(("loaded", seconds))

    def load_failed(self, uid: str, error: ModelMoraError) -> None:
        self.words.put_nowait(("load_failed", error))

    def watched(self, uid: str, health: Health) -> None: ...

    def recognised(self, uid: str, difference: str) -> None: ...

    def exited(self, uid: str, reason: str, out_of_memory: bool) -> None:
        self.words.put_nowait(("exited", reason))

    async def next(self, word: str) -> object:
        async with asyncio.timeout(DEADLINE_SECONDS):
            said, detail = await self.words.get()
        assert said == word, detail
        return detail


@pytest.fixture
async def launcher(data_dir: Path) -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs")
    yield launcher
    await launcher.close()


def worker_of(launcher: LocalLauncher, registry: Registry, told: Told, **options: object) -> Worker:
    struct = Struct()
    struct.update(options)
    facts = VersionFacts("models/acme/held/versions/1", "echo", options=struct.SerializeToString())
    return Worker("0123456789", facts, {"host": 1 << 28}, launcher, registry, WorkerRules(), told)


async def said(folder: Path, text: str) -> None:
    """Returns once a worker has logged this."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not any(text in path.read_text() for path in folder.glob("worker-*.log")):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)


async def test_a_load_does_not_wait_for_the_hold_and_is_told_with_it(launcher: LocalLauncher, data_dir: Path) -> None:
    registry, told = Registry(), Told()
    worker = worker_of(launcher, registry, told)
    life = worker.begin()
    await told.next("launched")
    await said(data_dir / "logs", "loaded: ")
    for _ in range(2):  # answers come behind that of the load
        await worker.ask(worker_pb2.InferRequest(texts=[worker_pb2.TextEntry(text="a")]), timeout_seconds=30)
    assert told.words.empty(), "it is not held yet"
    registry.answer.set_result(None)
    await told.next("loaded")
    worker.stop(0.0)
    await told.next("exited")
    await life


async def test_a_version_that_is_gone_is_not_loaded_whatever_its_load_does(
    launcher: LocalLauncher, data_dir: Path
) -> None:
    registry, told = Registry(), Told()
    life = worker_of(launcher, registry, told, load_seconds=3600.0).begin()
    await told.next("launched")
    await said(data_dir / "logs", "loading ")
    registry.answer.set_exception(VersionNotFound("it was deleted"))
    assert isinstance(await told.next("load_failed"), VersionNotFound)
    await told.next("exited")
    await life


async def test_why_there_is_no_hold_says_more_than_why_files_cannot_be_loaded(
    launcher: LocalLauncher, data_dir: Path
) -> None:
    registry, told = Registry(), Told()
    life = worker_of(launcher, registry, told, fail_load="no such file").begin()
    await told.next("launched")
    await said(data_dir / "logs", "loading ")
    registry.answer.set_exception(VersionNotFound("it was deleted"))
    assert isinstance(await told.next("load_failed"), VersionNotFound)
    await told.next("exited")
    await life
