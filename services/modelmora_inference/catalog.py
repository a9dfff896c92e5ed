"""From a model reference to the facts of one version, without asking the registry each time.

An answer is used for as long as the registry allows, and refreshed in the background in the last part of that time, so
that a busy model never waits for it. While the registry is away the last answer goes on being used: a model that is
loaded keeps serving. A refusal (no such model, not READY) is remembered for a second.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from modelmora import errors

from modelmora_inference.domain import VersionFacts, in_words

MAX_REFERENCES = 20_000
MAX_REFERENCE_CHARACTERS = 400
REFUSED_SECONDS = 1.0
STALE_SECONDS = 1.0
"""While the registry is away it is asked again so often, and nobody waits for it."""
PATIENCE_SECONDS = 0.25
"""A registry that takes longer counts as away for whoever has an old answer."""
REFRESH_PART = 0.8
"""Part of its time after which an answer in use is refreshed."""

Lookup = Callable[[str], Awaitable[tuple[VersionFacts, float]]]
"""Asks the registry: the facts, and for how many seconds they may be used. Raises the registry's errors."""


@dataclass(slots=True)
class _Answer:
    facts: VersionFacts
    refresh_time: float
    end_time: float
    """Both on the monotonic clock."""
    stale: bool = False
    """Its time is over and the registry did not give a newer one."""


class Catalog:
    """Answers by reference, the least recently used forgotten beyond `max_references`."""

    def __init__(
        self, lookup: Lookup, *, max_references: int = MAX_REFERENCES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lookup = lookup
        self._clock = clock
        self._max_references = max_references
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._refused: OrderedDict[str, tuple[errors.ModelMoraError, float]] = OrderedDict()
        """Each until when it counts, in that order. Who asks for names that do not exist must not fill the memory."""
        self._asking: dict[str, asyncio.Task[VersionFacts]] = {}

    def known(self, reference: str) -> VersionFacts | None:
        """The facts if they are at hand; None: ask with `find`. Raises a remembered refusal."""
        answer = self._answers.get(reference)
        if answer is None:
            refusal = self._refused.get(reference)
            if refusal is not None and self._clock() < refusal[1]:
                raise refusal[0].copy()
            return None
        now = self._clock()
        if now >= answer.end_time and not answer.stale:
            return None
        self._answers.move_to_end(reference)
        if now >= answer.refresh_time and reference not in self._asking:
            self._ask(reference)
        return answer.facts

    async def find(self, reference: str, timeout_seconds: float) -> VersionFacts:
        """The facts, from the registry if need be; callers that ask for the same wait for one lookup.

        Raises what the registry raised, InvalidArgument for a reference too long to be one, DeadlineExceeded after
        `timeout_seconds`.
        """
        if len(reference) > MAX_REFERENCE_CHARACTERS:
            raise errors.InvalidArgument.at("reference", f"at most {MAX_REFERENCE_CHARACTERS} characters")
        facts = self.known(reference)
        if facts is not None:
            return facts
        asking = self._asking.get(reference) or self._ask(reference)
        last = self._answers.get(reference)
        if last is not None:
            timeout_seconds = min(timeout_seconds, PATIENCE_SECONDS)
        # One caller that leaves must not take the lookup of the others with it.
        await asyncio.wait([asking], timeout=timeout_seconds)
        if not asking.done():
            if last is not None:
                last.stale = True
                return last.facts
            had = in_words(timeout_seconds)
            raise errors.DeadlineExceeded(f"the registry had {had} to say which version this is, and did not")
        return asking.result()

    def forget(self, reference: str) -> None:
        """The answer turned out to be wrong."""
        self._answers.pop(reference, None)
        self._refused.pop(reference, None)

    async def close(self) -> None:
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _ask(self, reference: str) -> asyncio.Task[VersionFacts]:
        asking = asyncio.get_running_loop().create_task(self._looked_up(reference))
        self._asking[reference] = asking

        def asked(task: asyncio.Task[VersionFacts]) -> None:
            self._asking.pop(reference, None)
            if not task.cancelled():
                task.exception()  # whoever waits reads it; a refresh in the background has nobody

        asking.add_done_callback(asked)
        return asking

    async def _looked_up(self, reference: str) -> VersionFacts:
        try:
            facts, seconds = await self._lookup(reference)
        except (errors.Unavailable, errors.DeadlineExceeded, errors.ResourceExhausted):
            last = self._answers.get(reference)
            if last is None:
                raise
            last.refresh_time = self._clock() + STALE_SECONDS
            last.stale = True
            return last.facts
        except (errors.NotFound, errors.FailedPrecondition, errors.InvalidArgument) as error:
            # A copy: the frames of the lookup, some 30 KB, hang on the error itself for as long as it is kept.
            self._refuse(reference, error.copy())
            raise
        self.forget(reference)
        now = self._clock()
        self._answers[reference] = _Answer(facts, now + REFRESH_PART * seconds, now + seconds)
        while len(self._answers) > self._max_references:
            self._answers.popitem(last=False)
        return facts

    def _refuse(self, reference: str, error: errors.ModelMoraError) -> None:
        self.forget(reference)
        now = self._clock()
        self._refused[reference] = error, now + REFUSED_SECONDS
        while len(self._refused) > self._max_references or next(iter(self._refused.values()))[1] <= now:
            self._refused.popitem(last=False)
