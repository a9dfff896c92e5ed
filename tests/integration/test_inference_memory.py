"""Workers that end for lack of memory: whose fault that is, and that everybody else is answered."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from integration.inference_rig import Granted, rig, version_of
from modelmora import errors
from modelmora.lifecycle.v1 import lifecycle_pb2

VERSION = version_of("acme/echo")


def outgrown(lease: Granted) -> Granted:
    """Its worker's end is told as lifecycle tells it when it was for lack of memory."""

    def revoke(*, crashed: bool = False) -> None:
        revoked = lifecycle_pb2.Revoked(reason="it ran out of memory", crashed=crashed, out_of_memory=True)
        lease.inbox.put_nowait(lifecycle_pb2.AcquireResponse(revoked=revoked))
        lease.inbox.put_nowait(None)

    lease.revoke = revoke  # type: ignore[method-assign]
    return lease


async def test_a_text_on_a_worker_that_has_grown_too_large_is_not_to_blame_and_is_retried(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"oom_after_batches": 1}}) as made:
        await made.right("the first makes it grow")
        lease = outgrown(await made.lessor.lease(0))
        # Twice the patient one is alone on a worker, after another text, when that outgrows its memory.
        async with made.lessor.loads_wait(VERSION):
            patient = asyncio.create_task(made.right("patient", priority="PRIORITY_LOW"))
            await lease.closed.wait()
            urgent = asyncio.create_task(made.right("before it", priority="PRIORITY_HIGH"))
            await made.waiting(2)
        lease = outgrown(await made.lessor.lease(1))
        await urgent
        await lease.closed.wait()
        await patient
        assert made.lessor.launches == 3


async def test_a_text_that_is_too_large_for_a_fresh_worker_is_condemned(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"oom_after_batches": 0}}) as made:
        call = asyncio.create_task(made.embed("too large"))
        for number in range(2):
            lease = outgrown(await made.lessor.lease(number))
            await lease.closed.wait()
        with pytest.raises(errors.RequestCrashedWorker):
            await call
        assert made.lessor.launches == 2
