"""What the node tells one holder, tunings that begin while others end, and a registry that says nothing."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from modelmora.errors import NodeCordoned, VersionNotFound
from modelmora_lifecycle import main
from modelmora_lifecycle.actor import LeaseEnd, Loading, Yielding
from modelmora_lifecycle.domain import VersionFacts
from modelmora_lifecycle.tuner import Tuner, TunerRules
from modelmora_lifecycle.tuning import Offer, Tuning


async def test_of_how_long_a_load_takes_only_the_last_word_waits_to_be_read() -> None:
    """A holder may wait for hours and read nothing."""
    end = LeaseEnd("u", "models/a/b/versions/1", 20, 0.0)
    for seconds in range(1000):
        end.tell(Loading(float(seconds), "loading"))
    end.tell(Yielding(1.0, "makes room"))
    end.tell(Loading(7.0, "loading"))
    end.tell(NodeCordoned())
    assert [await end.next() for _ in range(3)] == [
        Loading(999.0, "loading"),
        Yielding(1.0, "makes room"),
        Loading(7.0, "loading"),
    ]
    with pytest.raises(NodeCordoned):
        await end.next()


async def test_who_waits_for_a_word_hears_it() -> None:
    end = LeaseEnd("u", "models/a/b/versions/1", 20, 0.0)
    for seconds in (1.0, 2.0):
        hearing = asyncio.create_task(end.next())
        await asyncio.sleep(0)
        end.tell(Loading(seconds, "loading"))
        async with asyncio.timeout(10):
            assert await hearing == Loading(seconds, "loading")


class Slow:
    """A store that takes what it is given when it is told to."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[Tuning] = asyncio.Queue()
        self.may: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(0))

    async def save(self, tuning: Tuning) -> None:
        self.begun.put_nowait(tuning)
        await self.may[tuning.uid].acquire()


async def test_a_tuning_that_begins_while_the_last_one_is_written_down_ends_with_lifecycle() -> None:
    store = Slow()
    missing = {"echo/fp32": "not here", "echo/bf16": "not here"}
    tuner = Tuner(None, None, store, {"echo": Offer(tuple(missing), missing)}, TunerRules())  # type: ignore[arg-type]
    facts = VersionFacts("models/a/b/versions/1", "echo")
    async with asyncio.timeout(30):
        first = tuner.start(facts, (), apply=False)
        store.may[first.uid].release()
        while not (await store.begun.get()).end_time:
            pass
        (ending,) = (task for task in asyncio.all_tasks() if task.get_name().startswith("tuning of "))
        second = tuner.start(facts, (), apply=False)
        assert second.uid != first.uid
        store.may[first.uid].release()
        await asyncio.wait((ending,))
        assert (await store.begun.get()).uid == second.uid
        await tuner.close()
    assert (await tuner.get(second.uid)).end_time


class Silent:
    """A registry that takes a hold and does not answer; until it says that there is no such version."""

    def __init__(self) -> None:
        self.says = asyncio.Event()
        self.deleted = asyncio.get_running_loop().create_future()
        self.on_deleted = self.deleted.set_result

    async def keep_hold(self, *_: object) -> None:
        await self.says.wait()
        raise VersionNotFound

    def forget(self, name: str) -> None: ...

    def release_hold(self, hold_id: str) -> None: ...


async def test_a_load_does_not_wait_for_ever_for_a_registry_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_RPC_SECONDS", 0.01)
    registry = Silent()
    hold = main.RegistryHold(registry, "models/a/b/versions/1")  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        await hold.acquired()
        registry.says.set()  # a late no takes it out of memory
        assert await registry.deleted == "models/a/b/versions/1"
    hold.release()
