"""Would a model be answered now? For probes: loads nothing, computes nothing."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from modelmora import errors

from modelmora_inference.catalog import Catalog
from modelmora_inference.dispatcher import Dispatchers

ASK_SECONDS = 2.0
"""So long the registry and lifecycle may take to say."""
KNOWN_SECONDS = 1.0
"""A probe does not ask lifecycle more often than this about one version."""
MAX_VERSIONS = 1000


class Readiness:
    """A version is ready when one of its replicas serves here, or when lifecycle would load it if it were wanted: it
    fits, and has not failed lately."""

    def __init__(
        self, catalog: Catalog, dispatchers: Dispatchers, would_serve: Callable[[str], Awaitable[bool]]
    ) -> None:
        """`would_serve` asks lifecycle what it would do for a version."""
        self._catalog = catalog
        self._dispatchers = dispatchers
        self._would_serve = would_serve
        self._known: dict[str, tuple[bool, float]] = {}

    async def of(self, reference: str) -> bool:
        """Raises the registry's refusal, NotFound among others, for what means no version that is ready to be used."""
        version = (await self._catalog.find(reference, ASK_SECONDS)).name
        dispatcher = self._dispatchers.get(version)
        if dispatcher is not None and dispatcher.replicas:
            return True
        ready, until = self._known.get(version, (False, 0.0))
        now = time.monotonic()
        if now >= until:
            try:
                ready = await self._would_serve(version)
            except errors.ModelMoraError:
                ready = False
            if len(self._known) >= MAX_VERSIONS:
                self._known.clear()
            self._known[version] = ready, now + KNOWN_SECONDS
        return ready

    async def by_name(self, name: str) -> bool | None:
        """The same for a name of the health protocol; None when it means no model."""
        if "/" not in name:
            return None
        try:
            return await self.of(name)
        except (errors.NotFound, errors.InvalidArgument):
            return None
        except errors.ModelMoraError:
            return False
