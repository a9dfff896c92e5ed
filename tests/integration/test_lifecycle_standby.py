"""Lifecycle before and while it does not serve its node: what it tells of memory, and whom its peers call."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from integration.lifecycle_rig import MIB, Rig, rig
from modelmora.errors import Unavailable
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora_lifecycle import duty as lifecycle_duty
from modelmora_lifecycle.duty import Duty
from modelmora_runtime.db import Database
from modelmora_runtime.health import duty_of

DUTY = duty_of("lifecycle")


async def memory(node: Rig) -> list[pb.DeviceLedger]:
    return list((await node.lifecycle.GetMemory(pb.GetMemoryRequest(), timeout=120)).devices)


async def test_memory_asked_for_right_after_the_start_has_its_devices_and_budgets(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, asked = asyncio.Event(), asyncio.Event()
    try_lock, settle = Database.try_lock, Duty.settle

    async def try_lock_later(self: Database, name: str) -> Any:
        await go_on.wait()
        return await try_lock(self, name)

    async def settle_heard(self: Duty) -> None:
        asked.set()
        await settle(self)

    monkeypatch.setattr(Database, "try_lock", try_lock_later)
    monkeypatch.setattr(Duty, "settle", settle_heard)
    monkeypatch.setattr(lifecycle_duty, "DECIDING_SECONDS", 3600.0)
    async with rig(database_url, data_dir, memory_budget_bytes=400 * MIB) as node:
        assert node.host.board.serves("lifecycle") is True
        assert node.host.board.serves(DUTY) is False, "nobody knows yet who serves the node"
        answer, waits = asyncio.create_task(memory(node)), asyncio.create_task(asked.wait())
        await asyncio.wait((answer, waits), return_when=asyncio.FIRST_COMPLETED)
        go_on.set()
        waits.cancel()
        devices = {device.device: device for device in await answer}
        assert devices["host"].budget_bytes == devices["host"].configured_bytes == 400 * MIB
        assert devices["host"].total_bytes > 0
        assert node.host.board.serves(DUTY) is True


async def test_a_standby_tells_nothing_of_memory_and_is_not_called_until_it_takes_over(
    database_url: str, data_dir: Path
) -> None:
    database = Database(database_url, "lifecycle", connect_seconds=30.0, statement_seconds=60.0)
    other = await database.try_lock("node here")
    assert other is not None
    try:
        async with rig(database_url, data_dir, node="here", memory_budget_bytes=400 * MIB) as node:
            for asked in (
                memory(node),
                node.replicas(),
                node.lifecycle.GetReplica(pb.GetReplicaRequest(name="replicas/1"), timeout=120),
                node.lifecycle.WatchReplicas(pb.WatchReplicasRequest(), timeout=120).read(),
            ):
                with pytest.raises(Unavailable, match="another process serves node here; call that one"):
                    await asked
            assert node.host.board.serves(DUTY) is False
            await other.release()
            async with asyncio.timeout(60):
                while not node.host.board.serves(DUTY):
                    await node.host.board.change.wait()
            assert {device.device: device.budget_bytes for device in await memory(node)}["host"] == 400 * MIB
    finally:
        await database.close()
