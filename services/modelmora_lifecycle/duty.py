"""What every servicer of lifecycle stands on: who is on duty, the node, and the registry's facts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from modelmora.errors import InvalidArgument, Unavailable

from modelmora_lifecycle.actor import Node
from modelmora_lifecycle.domain import VersionFacts

DECIDING_SECONDS = 5.0


class Versions(Protocol):
    """What lifecycle asks the registry."""

    async def resolve(self, reference: str) -> VersionFacts:
        """Raises ModelNotFound, VersionNotFound, VersionNotReady, VersionDrifted, InvalidArgument, Unavailable."""

    async def facts(self, name: str) -> VersionFacts:
        """Of a version named in full. The same errors."""


@dataclass
class Duty:
    """Whether this process is the one that serves the node."""

    decided: asyncio.Event
    on_duty: bool = False
    standby: bool = False
    """Another process serves the node."""
    reason: str = "the database has not yet said whether another process serves this node"

    async def settle(self) -> None:
        """Returns when it is known who serves this node, or does not want to become known."""
        if not self.decided.is_set():
            try:
                async with asyncio.timeout(DECIDING_SECONDS):
                    await self.decided.wait()
            except TimeoutError:
                pass

    async def check(self) -> None:
        """Unavailable when another process serves this node, or while that is not known."""
        await self.settle()
        if not self.on_duty:
            other = "; call that one: this one takes over when it ends" if self.standby else ""
            raise Unavailable(self.reason + other, retry_after_seconds=1.0)


class Servicer:
    """What servicers and their mixins have."""

    def __init__(self, node: Node, versions: Versions, duty: Duty) -> None:
        self._node = node
        self._versions = versions
        self._duty = duty

    async def _facts(self, name: str) -> VersionFacts:
        """Of a version named in full: what is in memory, or loads, is known, and no other service has to answer."""
        known = self._node.scheduler.facts(name)
        if known is not None and self._node.serves(name):
            return known
        return await self._versions.facts(name)

    async def _resolve(self, reference: str, field: str = "model") -> VersionFacts:
        """Raises InvalidArgument at `field`, and what the registry raises."""
        if not reference.strip():
            raise InvalidArgument.at(field, "is empty")
        try:
            return await self._versions.resolve(reference)
        except InvalidArgument as error:  # the registry names the field of its own request
            raise InvalidArgument.at(field, error.fields[0].description if error.fields else error.message) from error
