"""Wakes those who watch a version when it changed, in this process or in another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager


class Watching:
    """Who waits for which version. The news say what to look at again, not what it is now."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @property
    def count(self) -> int:
        return sum(map(len, self._waiting.values()))

    @contextmanager
    def watch(self, uid: str) -> Iterator[asyncio.Event]:
        """An event that is set with each change of the version; the watcher clears it before it looks."""
        changed = asyncio.Event()
        self._waiting.setdefault(uid, set()).add(changed)
        try:
            yield changed
        finally:
            self._waiting[uid].discard(changed)
            if not self._waiting[uid]:
                del self._waiting[uid]

    async def run(self, changes: AsyncIterator[str]) -> None:
        """Passes on the uids of `changes`, without end; the empty string means all."""
        async for uid in changes:
            for waiting in [self._waiting.get(uid, ())] if uid else list(self._waiting.values()):
                for changed in waiting:
                    changed.set()
