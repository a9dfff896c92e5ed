"""What a load is predicted to take against what it takes, with real workers and very different work in between."""

from __future__ import annotations

from pathlib import Path

from integration.lifecycle_rig import MIB, WAIT_SECONDS, Rig, eventually, minilm_folder, rig
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb

WORK = (("a word", 1), ("many words of a long text " * 60, 3), ("a word", 2))
"""A text and how often it is in a batch; after each load another."""


def host(memory: object) -> int:
    return sum(item.memory_bytes for item in memory if item.device == "host")  # type: ignore[attr-defined]


async def loads(node: Rig, version: str) -> list[pb.Replica]:
    """The replica of each load, as it was right after it."""
    # The first one starts the fork server, which imports for seconds, or for long on a machine that is busy.
    await node.lifecycle.LoadModel(pb.LoadModelRequest(model=version, wait=True), timeout=6 * WAIT_SECONDS)
    found = await node.replicas(f'model_version = "{version}"')
    await node.unload(version)
    for text, count in WORK:
        holder = await (await node.acquire(version)).ready()
        found.append((await node.replicas(f'model_version = "{version}"'))[0])
        await holder.in_use(1)
        for _ in range(2):
            await holder.embed(text, count)
        await holder.finish()
        await node.unload(version, force=True)
    return found


async def test_from_the_second_load_on_what_is_predicted_is_what_is_taken(database_url: str, data_dir: Path) -> None:
    folder = minilm_folder()
    patient = {"memory_budget_bytes": 3000 * MIB, "launch_timeout_seconds": 6 * WAIT_SECONDS}
    async with rig(database_url, data_dir, model_roots=[folder], **patient) as node:
        for version in (await node.minilm(), await node.echo("acme/echo", takes_bytes=96 * MIB)):
            replicas = await loads(node, version)
            told = [(host(replica.predicted), host(replica.footprint)) for replica in replicas]
            for predicted, taken in told[1:]:
                assert taken > 16 * MIB
                assert abs(predicted - taken) <= 0.05 * taken, (version, told)


async def test_what_requests_add_is_learned_by_the_token_and_reserved_at_the_next_load(
    database_url: str, data_dir: Path
) -> None:
    async with rig(database_url, data_dir) as node:
        # Of 1,000 tokens that a batch may have 250 are seen, and so double of what they took is allowed for.
        version = await node.echo("acme/leak", leak_bytes_per_batch=48 * MIB, max_batch_tokens=1000)
        holder = await (await node.acquire(version)).ready()
        (first,) = await node.replicas()
        await holder.in_use(1)
        await holder.embed("word " * 250)

        async def charge() -> int:
            return host((await node.replicas())[0].charged)

        grown = host(first.footprint) + 2 * 47 * MIB
        await eventually(charge, lambda charged: charged >= grown)
        await holder.finish()
        await node.unload(version)
        second = await node.load(version)
        assert host(second.predicted) <= 1.05 * host(first.footprint)
        assert host(second.charged) >= host(first.footprint) + 2 * 0.85 * 48 * MIB
