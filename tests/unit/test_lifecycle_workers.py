"""How much memory a worker may take, and which limits of an engine cannot be."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from modelmora.worker.v1 import worker_pb2
from modelmora_lifecycle.domain import MIB, Health, HealthState, VersionFacts
from modelmora_lifecycle.workers import ENTRIES, Worker, WorkerRules, nonsense_limits, probe_of

RULES = WorkerRules(growth_factor=1.5, engine_slack_bytes=300 * MIB, bare_slack_bytes=30 * MIB)


@pytest.mark.parametrize(
    ("declared", "artifact", "granted", "free", "allowed"),
    [
        (100, 0, 100, 5000, 180),
        (100, 0, 400, 5000, 180),
        (100, 80, 100, 5000, 450),
        (0, 0, 100, 0, 180),
        (0, 0, 100, 1000, 1180),
        (0, 0, 100, -1000, 180),
        (0, 80, 100, 1000, 1450),
    ],
    ids=[
        "declared-binds-whatever-is-free",
        "and-whatever-was-granted",
        "an-engine-with-files-needs-more-beside",
        "undeclared-the-grant-binds",
        "and-what-is-free-may-be-taken",
        "an-overdraft-takes-nothing-away",
        "with-files",
    ],
)
def test_a_worker_may_take_what_was_declared_or_else_granted_and_free(
    declared: int, artifact: int, granted: int, free: int, allowed: int
) -> None:
    facts = VersionFacts(
        "models/a/b/versions/1", "echo", artifact_bytes=artifact, declared={"host": declared * MIB} if declared else {}
    )
    assert RULES.allowed_bytes(facts, granted * MIB, free * MIB) == allowed * MIB


def test_negative_limits_of_an_engine_are_nonsense() -> None:
    assert nonsense_limits(worker_pb2.LoadReply(max_batch_tokens=1, embedding_dimensions=8)) == ""
    assert nonsense_limits(worker_pb2.LoadReply(max_batch_tokens=-1)) == "max_batch_tokens -1"
    assert nonsense_limits(worker_pb2.LoadReply(embedding_dimensions=-8)) == "embedding_dimensions -8"


def test_what_lifecycle_asks_itself_is_not_counted_as_use() -> None:
    worker = Worker("r", VersionFacts("models/a/b/versions/1", "echo"), {}, None, None, RULES, None)  # type: ignore[arg-type]
    before = ENTRIES._value.get()
    worker._count(worker_pb2.WatchReply(batches=2, entries=5))
    worker._own = (1, 1)  # a probe is on its way
    worker._count(worker_pb2.WatchReply(batches=2, entries=5))
    worker._count(worker_pb2.WatchReply(batches=3, entries=6))
    assert ENTRIES._value.get() - before == 5
    worker._count(worker_pb2.WatchReply(batches=4, entries=9))
    assert ENTRIES._value.get() - before == 8


@pytest.mark.parametrize("grows", ["batches", "entries", "looked_at"])
def test_whatever_a_worker_counts_on_is_progress(grows: str) -> None:
    """A worker that decodes images computes nothing for a while, and is not sick."""
    worker = Worker("r", VersionFacts("models/a/b/versions/1", "echo"), {}, None, None, RULES, None)  # type: ignore[arg-type]
    worker._count(worker_pb2.WatchReply(batches=1, entries=1, looked_at=1))
    before = worker._progress
    worker._count(worker_pb2.WatchReply(**{"batches": 1, "entries": 1, "looked_at": 1, grows: 2}))
    assert worker._progress != before


def test_a_worker_of_images_is_asked_for_an_image() -> None:
    facts = VersionFacts("models/a/b/versions/1", "transformers_images", task_type=3)
    assert (probe_of(facts).text, probe_of(facts).data) == ("a real question", b"")
    asked = probe_of(replace(facts, takes_images=True))
    assert asked.text == ""
    assert asked.data.startswith(b"BM")


class Heard:
    """Reports of health."""

    def __init__(self) -> None:
        self.first: asyncio.Future[Health] = asyncio.get_running_loop().create_future()

    def watched(self, uid: str, health: Health) -> None:
        if not self.first.done():
            self.first.set_result(health)


async def test_a_worker_is_not_sick_because_we_have_stood_still() -> None:
    """A laptop that slept, a container that was frozen: for a moment every model was UNHEALTHY."""
    heard = Heard()
    rules = WorkerRules(unresponsive_seconds=0.4, watch_interval_seconds=0.2)
    worker = Worker("r", VersionFacts("models/a/b/versions/1", "echo"), {}, None, None, rules, heard)  # type: ignore[arg-type]
    pulse = asyncio.create_task(worker._take_pulse())
    await asyncio.sleep(0)
    time.sleep(1.5)  # noqa: ASYNC251 - the whole process stands still
    for _ in range(10):  # what was due by now happens
        await asyncio.sleep(0)
    assert not heard.first.done()
    # But its own silence counts.
    async with asyncio.timeout(30):
        assert (await heard.first).state is HealthState.UNHEALTHY
    pulse.cancel()


async def test_a_probe_that_is_called_for_and_cancelled_at_once_ends() -> None:
    """The worker was killed while the registry's questions were asked: both happen in one turn of the loop."""
    rules = WorkerRules(probe_interval_seconds=60.0, probe_timeout_seconds=1.0)
    worker = Worker("r", VersionFacts("models/a/b/versions/1", "echo"), {}, None, None, rules, Heard())  # type: ignore[arg-type]
    worker._dimensions = 4
    probe = asyncio.create_task(worker._probe())
    for _ in range(10):
        await asyncio.sleep(0)
    worker._doubt.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    probe.cancel()
    done, _ = await asyncio.wait((probe,), timeout=5)
    probe.cancel()
    assert done
    assert probe.cancelled()
