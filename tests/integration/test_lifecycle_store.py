"""What lifecycle keeps, on the real database: rows come back as they went, and only the newest stay."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from modelmora_lifecycle import store as stores
from modelmora_lifecycle.store import Acquired, Kept, LifecycleStore, Measurement, StoreJournal
from modelmora_runtime.db import Database


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
                row = {"model_version": f"v{number}", "outcome": "plan", "victims": [], "inputs": {}}
                await store.add([row, Measurement(f"v{number}", "echo", {"host": number}, 0.5)])
        await ours.add([Measurement("v0", "echo", {"host": 9}, 0.7)])  # measured again: among the newest
        await ours.prune()
        assert [row["model_version"] for row in await ours.decisions()] == ["v4", "v3", "v2"]
        assert len(await theirs.decisions()) == 5
        monkeypatch.setattr(stores, "MEASUREMENTS_KEPT", 100)
        assert await ours.measurements() == [
            Measurement("v0", "echo", {"host": 9}, 0.7),
            Measurement("v4", "echo", {"host": 4}, 0.5),
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
            journal.measured(Measurement(version, "echo", {"host": 1}, 0.5))
        running = asyncio.create_task(journal.run())
        await journal.flush(10)
        running.cancel()
        assert {row.model_version for row in await store.measurements()} == {"one", "two"}
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
            await store.add([Measurement("v", "torch", {"host": len(profile)}, 0.5, profile=profile)])
        assert len(await store.measurements()) == 2
        await database.migrate("modelmora_lifecycle", "0001")
        await database.migrate("modelmora_lifecycle", "0002")
        assert [(row.model_version, row.memory, row.device) for row in await store.measurements()] == [
            ("v", {"host": 10}, "host")
        ]
    finally:
        await database.close()
