"""What lifecycle keeps, on the real database: rows come back as they went, and only the newest stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from integration.lifecycle_rig import WAIT_SECONDS, patience
from modelmora_lifecycle import store as stores
from modelmora_lifecycle.domain import EngineLimits, StartMode
from modelmora_lifecycle.eviction import Candidate, Decision, Need, Plan, Policy
from modelmora_lifecycle.placement_service import decision_message
from modelmora_lifecycle.prediction import Measured, Setup
from modelmora_lifecycle.store import Acquired, Kept, LifecycleStore, StoreJournal
from modelmora_runtime.db import Database


@pytest.fixture(autouse=True)
async def _patience() -> AsyncIterator[None]:
    async with patience():
        yield


def measured(version: str, memory_bytes: int, profile: str = "") -> Measured:
    return Measured(
        version,
        Setup("echo", profile),
        EngineLimits(max_batch_tokens=512),
        loading={"host": 2 * memory_bytes},
        base={"host": memory_bytes},
        growth={"host": 5},
        batch_tokens=70,
        start_mode=StartMode.FORKED,
        load_seconds=(0.4, 0.5, 9.0),
    )


def decision(version: str) -> Decision:
    idle = Candidate("r1", {"host": 7}, True, False, False, 0.0, 10.0, 11.0, version="old")
    need = Need({"host": 5}, {"host": 1}, {"host": 8}, {"host": 8})
    return Decision(version, need, [idle], Plan(("r1",)), Policy(), 20.0)


async def test_a_decision_is_kept_with_all_it_was_made_from(database_url: str) -> None:
    database = Database(database_url, "lifecycle")
    try:
        await database.migrate("modelmora_lifecycle")
        store = LifecycleStore(database, "here", Kept())
        await store.add([decision("new")])
        message = decision_message((await store.decisions())[0])
    finally:
        await database.close()
    assert (message.outcome, message.policy, message.model_version) == ("plan", "lru", "new")
    (need,) = message.devices
    assert (need.need_bytes, need.free_bytes, need.budget_bytes, need.evictable_bytes) == (5, 1, 8, 7)
    (candidate,) = message.candidates
    assert (candidate.replica, candidate.model_version, candidate.victim) == ("replicas/r1", "old", True)
    assert (candidate.score, candidate.idle.ToSeconds(), candidate.charged[0].memory_bytes) == (10.0, 10, 7)


async def test_pruning_leaves_the_newest_decisions_and_measurements_of_this_node(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "MEASUREMENTS_KEPT", 2)
    database = Database(database_url, "lifecycle")
    try:
        await database.migrate("modelmora_lifecycle")
        ours, theirs = (LifecycleStore(database, node, Kept(decisions=3)) for node in ("one", "two"))
        for store in (ours, theirs):
            for number in range(5):
                await store.add([decision(f"v{number}"), measured(f"v{number}", number)])
        await ours.add([measured("v0", 9)])  # measured again: among the newest
        await ours.prune()
        assert [row["model_version"] for row in await ours.decisions()] == ["v4", "v3", "v2"]
        assert len(await theirs.decisions()) == 5
        monkeypatch.setattr(stores, "MEASUREMENTS_KEPT", 100)
        assert await ours.measurements() == [
            measured("v0", 9),
            measured("v4", 4),
        ]
        assert len(await theirs.measurements()) == 5
    finally:
        await database.close()


async def test_one_row_that_the_database_does_not_take_costs_no_other(database_url: str) -> None:
    database = Database(database_url, "lifecycle")
    try:
        await database.migrate("modelmora_lifecycle")
        store = LifecycleStore(database, "here", Kept())
        journal = StoreJournal(store)
        for version in ("one", "a NUL \0 is no text", "two"):
            journal.measured(measured(version, 1))
        running = asyncio.create_task(journal.run())
        await journal.flush(WAIT_SECONDS)
        running.cancel()
        assert {row.version for row in await store.measurements()} == {"one", "two"}
    finally:
        await database.close()


async def test_acquire_events_come_back_in_the_order_of_time_and_leave_by_number_and_age(database_url: str) -> None:
    database = Database(database_url, "lifecycle")
    now = datetime.now(UTC)

    def event(name: str, seconds: float) -> Acquired:
        return Acquired(name, 20, now - timedelta(seconds=seconds), 1.5, {"host": 7}, 0.25)

    try:
        await database.migrate("modelmora_lifecycle")
        store = LifecycleStore(database, "here", Kept(events=4, event_age=timedelta(hours=1)))
        events = [event(f"v{seconds}", seconds) for seconds in (50, 10, 40, 20, 30, 7200)]
        await store.add(events)  # written when their use has ended, in any order
        pages = [page async for page in store.events(None, page=2)]
        assert [len(page) for page in pages] == [2, 2, 2]
        told = [row for page in pages for row in page]
        assert told == sorted(events, key=lambda row: row.start_time)
        since = [row async for row in store.events(now - timedelta(seconds=25))]
        assert [row.model_version for row in since[0]] == ["v20", "v10"]
        await store.prune()
        left = [row.model_version async for page in store.events(None) for row in page]
        assert left == ["v40", "v30", "v20", "v10"]
    finally:
        await database.close()


async def test_the_tables_of_orders_and_measurements_go_down_and_up_again(database_url: str) -> None:
    database = Database(database_url, "lifecycle")
    try:
        await database.migrate("modelmora_lifecycle")
        store = LifecycleStore(database, "here", Kept())
        for profile in ("torch/fp32", "torch/bf16"):
            await store.add([measured("v", len(profile), profile)])
        assert len(await store.measurements()) == 2
        await database.migrate("modelmora_lifecycle", "0001")
        await database.migrate("modelmora_lifecycle", "0002")
        (left,) = await store.measurements()
        assert (left.version, left.peak, left.setup.devices) == ("v", {"host": 15}, "host")
        assert left.typical_load_seconds == 0.5
    finally:
        await database.close()
