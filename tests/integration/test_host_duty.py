"""A context of which several processes run and one serves: its peers call that one, and the next when it takes over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from integration.tiny_platform import Settings, Tiny, platform_settings
from modelmora import errors
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora.lifecycle.v1 import lifecycle_pb2_grpc
from modelmora_runtime.health import duty_of
from modelmora_runtime.host import Context, Host
from modelmora_runtime.peers import Peers

DUTY = duty_of("lifecycle")


def named(data_dir: Path, name: str) -> Host:
    """A host that says who it is."""
    tiny = Tiny()

    async def who(request: Any, context: Any) -> str:
        return name

    tiny.behaviours["who"] = who
    settings = platform_settings(data_dir / name)
    return Host(settings, [Context("tiny", Settings(), tiny.open)], announce=lambda line: None)


@asynccontextmanager
async def peers(**targets: str) -> AsyncIterator[Peers]:
    made = Peers(mounted=[], local_target="", peer_key="", targets=targets)
    try:
        yield made
    finally:
        await made.close()


async def who(made: Peers, context: str = "lifecycle") -> str:
    stub: Any = lifecycle_pb2_grpc.LifecycleServiceStub(made.channel(context))
    return str((await stub.GetReplica(pb.GetReplicaRequest(name="who"), timeout=30)).replica.reason)


async def whoever_answers(made: Peers, context: str = "lifecycle") -> str:
    """A connection that is not there yet, or a change that was not heard yet, fails a call; nobody announces the end
    of that."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await who(made, context)
            except errors.Unavailable:
                await asyncio.sleep(0)


async def nobody_answers(made: Peers) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await who(made)
            except errors.Unavailable:
                return


async def test_calls_go_to_who_is_on_duty_wherever_it_is_named_and_to_who_takes_over(data_dir: Path) -> None:
    async with named(data_dir, "one") as one, named(data_dir, "two") as two:
        two.board.set(DUTY, "healthy")  # the other does not know yet: it serves nobody
        async with peers(lifecycle=f"ipv4:{one.target},{two.target}") as made:
            assert {await whoever_answers(made) for _ in range(5)} == {"two"}
            one.board.set(DUTY, "unhealthy", "standby")
            assert {await whoever_answers(made) for _ in range(5)} == {"two"}
            two.board.set(DUTY, "unhealthy", "another has taken it")
            await nobody_answers(made)
            one.board.set(DUTY, "healthy")
            assert {await whoever_answers(made) for _ in range(5)} == {"one"}


async def test_whatever_else_is_said_of_who_is_on_duty_it_is_called(data_dir: Path) -> None:
    async with named(data_dir, "one") as one, named(data_dir, "two") as two:
        one.board.set(DUTY, "unhealthy", "standby")
        two.board.set(DUTY, "healthy")
        two.board.set("tiny", "unhealthy", "a model keeps crashing")
        async with peers(lifecycle=f"ipv4:{one.target},{two.target}") as made:
            assert {await whoever_answers(made) for _ in range(5)} == {"two"}


async def test_one_address_and_other_contexts_are_called_without_a_look_at_duty(data_dir: Path) -> None:
    async with named(data_dir, "one") as one, named(data_dir, "two") as two:
        one.board.set(DUTY, "unhealthy", "standby")
        both = f"ipv4:{one.target},{two.target}"
        async with peers(lifecycle=f"ipv4:{one.target}", registry=both) as made:
            assert await whoever_answers(made) == "one"
            assert await whoever_answers(made, "registry") in ("one", "two")
        # Who follows duty and who does not have a channel each, although the target is the same.
        async with peers(lifecycle=both, registry=both) as made:
            assert await whoever_answers(made, "registry") in ("one", "two")
            await nobody_answers(made)
