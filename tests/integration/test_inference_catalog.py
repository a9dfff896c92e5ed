"""The catalog: one lookup for many, fresh enough, stale when it must be, bounded."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from modelmora import errors
from modelmora_inference.catalog import Catalog
from modelmora_inference.domain import VersionFacts


class Registry:
    """Answers with the versions it has, counts, and can be away or slow. With the clock that the catalog goes by."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lookups = 0
        self.away = False
        self.version = 1
        self.gate = asyncio.Event()
        self.gate.set()

    def catalog(self, **settings: int) -> Catalog:
        return Catalog(self.look_up, clock=lambda: self.now, **settings)

    async def look_up(self, reference: str) -> tuple[VersionFacts, float]:
        self.lookups += 1
        await self.gate.wait()
        if self.away:
            raise errors.DatabaseUnavailable
        if reference == "missing":
            raise errors.ModelNotFound
        return VersionFacts(f"{reference}/{self.version}", "sha256:00", 1), 10.0


async def test_an_answer_is_kept_for_its_time() -> None:
    registry = Registry()
    catalog = registry.catalog()
    assert catalog.known("a/b") is None
    facts = await catalog.find("a/b", 60)
    registry.now += 7.9
    assert catalog.known("a/b") is facts
    assert await catalog.find("a/b", 60) is facts
    assert registry.lookups == 1


async def test_an_answer_whose_time_is_over_is_asked_for_again() -> None:
    registry = Registry()
    catalog = registry.catalog()
    await catalog.find("a/b", 60)
    registry.version = 2
    registry.now += 10
    assert catalog.known("a/b") is None
    assert (await catalog.find("a/b", 60)).name == "a/b/2"


async def test_an_answer_in_use_is_refreshed_before_its_time_is_over() -> None:
    registry = Registry()
    catalog = registry.catalog()
    await catalog.find("a/b", 60)
    registry.version = 2
    registry.now += 8.1
    for _ in range(3):
        facts = catalog.known("a/b")
        assert facts is not None
        assert facts.name == "a/b/1", "nobody waits for the refresh"
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
    facts = catalog.known("a/b")
    assert facts is not None
    assert facts.name == "a/b/2"
    assert registry.lookups == 2


async def test_many_callers_share_a_lookup_and_one_that_leaves_does_not_end_it() -> None:
    registry = Registry()
    registry.gate.clear()
    catalog = registry.catalog()
    callers = [asyncio.create_task(catalog.find("a/b", 60)) for _ in range(5)]
    impatient = asyncio.create_task(catalog.find("a/b", 0.01))
    with pytest.raises(errors.DeadlineExceeded, match=r"had 0\.010 s to say"):
        await impatient
    with pytest.raises(errors.DeadlineExceeded, match="had less than a millisecond to say"):
        await catalog.find("a/b", 0.0)
    callers[0].cancel()
    registry.gate.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert {answer.name for answer in answers[1:] if isinstance(answer, VersionFacts)} == {"a/b/1"}
    assert registry.lookups == 1


async def test_the_last_answer_serves_while_the_registry_is_away() -> None:
    registry = Registry()
    catalog = registry.catalog()
    await catalog.find("a/b", 60)
    registry.away = True
    registry.now += 100
    for _ in range(10):
        assert (await catalog.find("a/b", 60)).name == "a/b/1"
    assert registry.lookups == 2, "it is not asked at every call while it is away"
    with pytest.raises(errors.DatabaseUnavailable):
        await catalog.find("c/d", 60)
    registry.away = False
    registry.version = 2
    registry.now += 1.1
    assert (await catalog.find("a/b", 60)).name == "a/b/1", "nobody waits to hear whether it is back"
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
    assert (await catalog.find("a/b", 60)).name == "a/b/2"


async def test_a_registry_that_hangs_holds_up_nobody_who_has_an_old_answer() -> None:
    registry = Registry()
    catalog = registry.catalog()
    await catalog.find("a/b", 60)
    registry.gate.clear()
    registry.now += 100
    async with asyncio.timeout(30):
        assert (await catalog.find("a/b", 60)).name == "a/b/1"
    for _ in range(100):
        assert catalog.known("a/b") is not None
    assert registry.lookups == 2
    await catalog.close()


async def test_a_refusal_is_remembered_but_not_for_long() -> None:
    registry = Registry()
    catalog = registry.catalog()
    for _ in range(3):
        with pytest.raises(errors.ModelNotFound):
            await catalog.find("missing", 60)
    assert registry.lookups == 1
    registry.now += 1.1
    with pytest.raises(errors.ModelNotFound):
        await catalog.find("missing", 60)
    assert registry.lookups == 2


async def test_refusals_of_a_second_ago_are_forgotten() -> None:
    registry = Registry()
    kept: weakref.WeakSet[errors.ModelMoraError] = weakref.WeakSet()

    class Refusal(errors.ModelNotFound):
        def copy(self, **_: object) -> Refusal:
            kept.add(made := Refusal())
            return made

    async def look_up(reference: str) -> tuple[VersionFacts, float]:
        raise Refusal

    catalog = Catalog(look_up, clock=lambda: registry.now)
    for number in range(100):
        registry.now += 0.1
        with pytest.raises(errors.ModelNotFound):
            await catalog.find(f"missing/{number}", 60)
    gc.collect()
    assert 1 <= len(kept) <= 11


async def test_what_is_too_long_for_a_reference_is_refused_without_a_lookup() -> None:
    registry = Registry()
    with pytest.raises(errors.InvalidArgument):
        await registry.catalog().find("a/" + "b" * 1000, 60)
    assert registry.lookups == 0


async def test_the_least_recently_used_is_forgotten() -> None:
    catalog = Registry().catalog(max_references=2)
    for reference in ("a", "b", "a", "c"):
        await catalog.find(reference, 60)
    assert catalog.known("a") is not None
    assert catalog.known("b") is None
    assert catalog.known("c") is not None


async def test_what_was_wrong_is_forgotten() -> None:
    registry = Registry()
    catalog = registry.catalog()
    await catalog.find("a/b", 60)
    catalog.forget("a/b")
    registry.version = 2
    assert (await catalog.find("a/b", 60)).name == "a/b/2"


async def test_a_refusal_is_kept_without_what_the_lookup_held() -> None:
    class Stub:
        """What a lookup has in its hands."""

    held: list[weakref.ref[Stub]] = []

    async def look_up(reference: str) -> tuple[VersionFacts, float]:
        stub = Stub()
        held.append(weakref.ref(stub))
        raise errors.ModelNotFound(name=reference)

    catalog = Catalog(look_up)
    for reference in ("a/b", "a/b"):
        with pytest.raises(errors.ModelNotFound):
            await catalog.find(reference, 60)
    await asyncio.sleep(0)  # the lookup's task lets go of its result
    gc.collect()
    assert [one() for one in held] == [None]
