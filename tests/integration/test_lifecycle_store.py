"""What lifecycle keeps, on the real database: rows come back as they went, and only the newest stay."""

from __future__ import annotations

import pytest
from modelmora_lifecycle import store as stores
from modelmora_lifecycle.store import LifecycleStore, Measurement
from modelmora_runtime.db import Database


async def test_pruning_leaves_the_newest_decisions_and_measurements_of_this_node(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "MEASUREMENTS_KEPT", 2)
    database = Database(database_url, "lifecycle")
    try:
        await database.migrate("modelmora_lifecycle")
        ours, theirs = (LifecycleStore(database, node, decisions_kept=3) for node in ("one", "two"))
        for store in (ours, theirs):
            for number in range(5):
                row = {"model_version": f"v{number}", "outcome": "plan", "victims": [], "inputs": {}}
                await store.add_decision(row)
                await store.save_measurement(Measurement(f"v{number}", "echo", {"host": number}, 0.5))
        await ours.save_measurement(Measurement("v0", "echo", {"host": 9}, 0.7))  # measured again: among the newest
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
