"""Weights of tenants that are set while the platform runs: in every process, over a restart, and without a database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from integration.inference_rig import Rig, rig
from modelmora import errors
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora_inference.weight_store import TenantWeights, WeightStore

SETTINGS = {"tenant_weights": {"fixed": 2.0}}


async def weigh(made: Rig, tenant: str, weight: float | None = None) -> None:
    """Once the tables are there."""
    async with asyncio.timeout(60):
        while True:
            try:
                await made.stub.SetTenantWeight(pb.SetTenantWeightRequest(tenant=tenant, weight=weight), timeout=30)
                return
            except errors.DatabaseUnavailable:
                await asyncio.sleep(0.05)


async def listed(made: Rig) -> dict[str, tuple[float, bool]]:
    answer = await made.stub.ListTenantWeights(pb.ListTenantWeightsRequest(), timeout=30)
    return {one.tenant: (one.weight, one.changed) for one in answer.weights}


async def becomes(made: Rig, expected: dict[str, tuple[float, bool]]) -> None:
    found: Any = None
    try:
        async with asyncio.timeout(20):
            while (found := await listed(made)) != expected:
                pass  # each look is a round trip to the server
    except TimeoutError:
        raise AssertionError(f"{found}, not {expected}") from None


async def test_a_weight_holds_in_every_process_and_after_a_restart(data_dir: Path, database_url: str) -> None:
    async with (
        rig(data_dir / "1", database_url=database_url, **SETTINGS) as one,
        rig(data_dir / "2", database_url=database_url, **SETTINGS) as two,
    ):
        await weigh(one, "acme", 3.0)
        await weigh(one, "fixed", 5.0)
        assert await listed(one) == {"acme": (3.0, True), "fixed": (5.0, True)}
        await becomes(two, {"acme": (3.0, True), "fixed": (5.0, True)})
        await weigh(two, "acme")
        await weigh(two, "other", 0.5)
        await becomes(one, {"fixed": (5.0, True), "other": (0.5, True)})
    async with rig(data_dir / "3", database_url=database_url, **SETTINGS) as again:
        await becomes(again, {"fixed": (5.0, True), "other": (0.5, True)})
        await weigh(again, "fixed", 2.0)
        assert await listed(again) == {"fixed": (2.0, False), "other": (0.5, True)}


async def test_without_a_database_a_weight_lasts_as_long_as_the_process(data_dir: Path) -> None:
    async with rig(data_dir, **SETTINGS) as made:
        assert await listed(made) == {"fixed": (2.0, False)}
        await weigh(made, "acme", 3.0)
        assert await listed(made) == {"acme": (3.0, True), "fixed": (2.0, False)}
        await weigh(made, "acme")
        assert await listed(made) == {"fixed": (2.0, False)}


async def test_while_the_database_is_away_nothing_changes() -> None:
    class Away(WeightStore):
        def __init__(self) -> None:
            pass

        async def save(self, tenant: str, weight: float | None) -> None:
            raise errors.DatabaseUnavailable

    in_force = {"fixed": 2.0}
    weights = TenantWeights({"fixed": 2.0}, in_force, Away())
    with pytest.raises(errors.DatabaseUnavailable):
        await weights.set("acme", 3.0)
    assert in_force == {"fixed": 2.0}
