"""One call against the cache: which of its inputs were computed before, and what is kept of those that are computed.

A row is found under the profile that computed it. Before anything is computed only the profile of the last time is
known; it counts as the present one as long as the registry says the same of the version and every replica here has the
profile of that time. Where the rest of a call turns out to be computed by another one, what was found is not used: a
call's rows all come from one maker.

A call that asks what another one of its tenant is being computed for waits for that one, then looks again. What ended
the other (its caller, its clock, an error) is no reason for this one to end. When the other only left, the first of
those who waited for it is computed in its place and the others wait for that one; after an error each is computed by
itself: they would hear the same one after another. It waits only for what is at least as urgent as itself, and for a
load only if it would wait for one.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from modelmora.common.v1 import common_pb2
from modelmora.worker.v1 import worker_pb2

from modelmora_inference.cache import ResponseCache, Row
from modelmora_inference.dispatcher import Call
from modelmora_inference.domain import VersionFacts


@dataclass(frozen=True, slots=True)
class Maker:
    """What computed rows."""

    facts: VersionFacts
    profile: common_pb2.EngineProfile
    replica_profile: common_pb2.EngineProfile
    """Of the replica as a whole; `profile` is another one where a call demanded exactness."""
    description: worker_pb2.EngineDescription | None


class Reuse:
    """The rows of one call that are known."""

    def __init__(
        self,
        cache: ResponseCache,
        facts: VersionFacts,
        call: Call,
        inputs: Sequence[str] | Sequence[worker_pb2.TextEntry],
        replica_profiles: Iterable[common_pb2.EngineProfile],
    ) -> None:
        self._cache = cache
        self._facts = facts
        self._inputs = inputs
        self._found: dict[int, Row] = {}
        maker = cache.maker(facts.name, call.exact)
        self._maker = maker if isinstance(maker, Maker) and maker.facts == facts else None
        if self._maker is not None and all(self._maker.replica_profile == one for one in replica_profiles):
            for index, key in enumerate(keys(facts, self._maker.profile, call, inputs)):
                row = cache.get(key)
                if row is not None:
                    self._found[index] = row
        self.missing = [index for index in range(len(inputs)) if index not in self._found]

    @property
    def found(self) -> int:
        return len(self._found)

    def is_of_the_same_maker(self, computed: Call) -> bool:
        """Whether what was found goes together with what was computed now."""
        maker = self._maker
        return maker is not None and not computed.mixed and computed.profile == maker.profile

    def keep(self, computed: Call, indexes: Sequence[int]) -> None:
        """Remembers the rows of a call, which are those of these inputs."""
        profile, replica_profile = computed.profile, computed.replica_profile
        if profile is None or replica_profile is None or computed.mixed:
            return
        maker = Maker(self._facts, profile, replica_profile, computed.description)
        self._cache.made_by(self._facts.name, computed.exact, maker)
        inputs: Any = [self._inputs[index] for index in indexes]
        for at, key in enumerate(keys(self._facts, profile, computed, inputs)):
            row = Row(computed.rows[at], computed.input_tokens[at], bool(computed.truncated[at]))
            self._cache.put(key, row)

    def fill(self, call: Call, computed: Call | None) -> None:
        """Answers a call from what was found and what was computed for the rest."""
        maker = self._maker
        assert maker is not None
        places = {index: at for at, index in enumerate(self.missing)}
        rows, tokens, truncated = [], array("i"), bytearray()
        for index in range(len(self._inputs)):
            row = self._found.get(index)
            if row is None:
                assert computed is not None
                at = places[index]
                row = Row(computed.rows[at], computed.input_tokens[at], bool(computed.truncated[at]))
            rows.append(row.data)
            tokens.append(row.input_tokens)
            truncated.append(row.truncated)
        call.rows, call.input_tokens, call.truncated = rows, tokens, truncated
        call.cached = len(self._found)
        call.profile, call.description = maker.profile, maker.description
        if computed is None:
            call.started = call.started or call.arrival
            return
        call.started, call.description = computed.started, computed.description
        call.compute_seconds, call.tokenise_seconds = computed.compute_seconds, computed.tokenise_seconds
        call.ready_in_seconds = computed.ready_in_seconds


@dataclass(slots=True, eq=False)
class Flight:
    """What is computed now."""

    call: Call
    """As it was queued."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has ended and what came of it is kept."""
    left: bool = False
    """Its caller hung up, or its time ran out: that tells nothing of what was asked."""

    def serves(self, call: Call) -> bool:
        """Whether another call may wait for it."""
        return self.call.priority >= call.priority and (self.call.if_loaded or not call.if_loaded)

    async def wait(self, call: Call) -> bool:
        """Until it is over, or the other call's time is; whether it has left."""
        try:
            async with asyncio.timeout(call.deadline - time.monotonic()):
                await self.over.wait()
        except TimeoutError:
            pass  # the queue will say so
        call.started = time.monotonic()
        return self.left


def part_of(call: Call, positions: Sequence[int], done: Any) -> Call:
    """A call like this one for some of its inputs."""
    return replace(
        call, done=done, positions=positions, entries=[], rows=[], input_tokens=array("i"), truncated=bytearray()
    )


def identity(facts: VersionFacts, call: Call, inputs: Iterable[str] | Iterable[worker_pb2.TextEntry]) -> bytes:
    """Equal for calls that ask the same, by whatever profile they will be computed."""
    whole = hashlib.sha256()
    for key in keys(facts, common_pb2.EngineProfile(), call, inputs):
        whole.update(key)
    return whole.digest()


def keys(
    facts: VersionFacts,
    profile: common_pb2.EngineProfile,
    call: Call,
    inputs: Iterable[str] | Iterable[worker_pb2.TextEntry],
) -> Iterable[bytes]:
    """One for each input: everything that decides its row, and whose it is."""
    decides = (
        call.tenant,
        facts.name,
        facts.digest,
        facts.fingerprint,
        profile.SerializeToString(deterministic=True),
        call.exact,
        call.task_type,
        call.operation,
        call.normalize,
        call.truncate,
        call.dimensions,
        call.prompt,
    )
    common = hashlib.sha256(repr(decides).encode())
    for one in inputs:
        made = common.copy()
        made.update(one.encode() if isinstance(one, str) else one.SerializeToString(deterministic=True))
        yield made.digest()
