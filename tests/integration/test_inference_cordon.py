"""A node that is cordoned while it works: who waits behind that work is not kept until it ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from integration import lifecycle_rig
from integration.inference_rig import Granted, rig
from modelmora import errors
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb


def cordon(lease: Granted) -> None:
    """As lifecycle tells its holder."""
    message = pb.AcquireResponse()
    asked = getattr(message, "yield")
    asked.by.FromNanoseconds(time.time_ns())
    asked.reason, asked.cordoned = "the node is cordoned: a new disk", True
    lease.inbox.put_nowait(message)


@pytest.mark.parametrize("patience_seconds", [10, 0])
async def test_who_waits_behind_work_on_a_cordoned_node_is_refused_while_that_goes_on(
    data_dir: Path, patience_seconds: float
) -> None:
    models: dict[str, dict[str, object]] = {"acme/echo": {"max_batch_entries": 1}}
    async with rig(data_dir, models, patience_seconds=patience_seconds) as echo:
        await echo.right("warm up")
        lease, lessor = await echo.lessor.lease(0), echo.lessor
        with echo.held():
            at_work = [asyncio.create_task(echo.right(f"at work {number}")) for number in range(2)]
            await echo.until(lambda queue: queue.in_flight == 2)
            waiting = asyncio.create_task(echo.embed("waits", within=15))
            await echo.waiting(1)
            lessor.refuse_with.append(errors.NodeCordoned("the node is cordoned: a new disk"))
            cordon(lease)
            with pytest.raises(errors.NodeCordoned, match="a new disk"):
                await waiting
            lessor.refuse_with.append(errors.NodeCordoned("the node is cordoned: and a new fan"))
            with pytest.raises(errors.NodeCordoned, match="a new fan"):
                await echo.embed("comes later", within=15)
            assert not any(task.done() for task in at_work)
            assert [want.if_loaded for want in lessor.wants] == [False, True, True]
        # The cordon was taken back, and nobody tells: who comes now is served, when the work has ended or before.
        await echo.right("comes last")
        await asyncio.gather(*at_work)


async def test_a_cordon_that_was_taken_back_keeps_nobody_away_while_the_work_goes_on(data_dir: Path) -> None:
    async with rig(data_dir) as echo:
        await echo.right("warm up")
        lease, lessor = await echo.lessor.lease(0), echo.lessor
        with echo.held():
            at_work = asyncio.create_task(echo.right("at work"))
            await echo.running()
            cordon(lease)
            await echo.heard(lease)
            comes = asyncio.create_task(echo.right("comes now"))
            async with lessor.changed, asyncio.timeout(60):  # it asks, and hears that the version would load
                await lessor.changed.wait_for(lambda: lessor.wants[-1].if_loaded and len(lessor.wants) > 2)
        await asyncio.gather(at_work, comes)


async def test_a_holder_at_work_hears_of_a_cordon_also_when_it_yields_already(
    database_url: str, data_dir: Path
) -> None:
    graces = {"holder_grace_seconds": 600, "drain_grace_seconds": 600}
    async with lifecycle_rig.rig(database_url, data_dir, **graces) as node:

        async def at_work(model: str) -> lifecycle_rig.Holder:
            holder = await (await node.acquire(await node.echo(model))).ready()
            await holder.in_use(1)
            await lifecycle_rig.eventually(node.replicas, lambda found: all(one.busy_leases for one in found))
            return holder

        first, second = await at_work("acme/first"), await at_work("acme/second")
        await node.unload("models/acme/first/versions/1.0.0", force=True, wait=False)
        asked: Any = await first.hear("yield")
        assert (asked.reason, asked.cordoned) == ("unloaded by name", False)
        await node.lifecycle.DrainNode(pb.DrainNodeRequest(reason="a new disk"), timeout=60)
        for holder in (first, second):
            asked = await holder.hear("yield")
            assert (asked.reason, asked.cordoned) == ("the node is cordoned: a new disk", True)
            await holder.close()
