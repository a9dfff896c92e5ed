"""The folder for what engines make of model files: the same weights in the form of another library.

    <data_dir>/conversions/<digest of the artifact>/<key>/manifest.json      see modelmora_worker.engines.conversions

Workers write there, each conversion whole or not at all; here it is only said where, and swept: what belongs to a
version that is gone, what nobody has used for long (of libraries of yesterday), and what a killed worker left half
done.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from modelmora_lifecycle.domain import VersionFacts

log = logging.getLogger(__name__)

SWEEP_SECONDS = 3600.0
UNUSED_SECONDS = 30 * 86_400.0
HALF_DONE_SECONDS = 3600.0


class Conversions:
    """The folder `root`, which need not exist."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path_of(self, facts: VersionFacts) -> str:
        """Where the worker of a version may keep conversions; empty: nowhere."""
        digest = re.sub(r"[^0-9A-Za-z]+", "-", facts.artifact_digest).strip("-")
        return str(self._root / digest) if digest and facts.artifact_path else ""

    async def run(self) -> None:
        """Sweeps now and then, for ever."""
        while True:
            for path in await asyncio.to_thread(self.sweep, time.time()):
                log.info("the conversion %s is removed: nobody wants it any more", path)
            await asyncio.sleep(SWEEP_SECONDS)

    def sweep(self, now: float) -> list[Path]:
        """Removes what nobody wants; `now` is the time of the file system. What was removed."""
        removed = []
        for path in self._conversions():
            try:
                if self._wanted(path, now):
                    continue
                shutil.rmtree(path)
                removed.append(path)
                path.parent.rmdir()
            except OSError:
                continue  # somebody is faster, or there is another one beside it
        return removed

    def _conversions(self) -> Iterator[Path]:
        for folder in sorted(self._root.iterdir()) if self._root.is_dir() else ():
            yield from sorted(folder.iterdir()) if folder.is_dir() else ()

    def _wanted(self, path: Path, now: float) -> bool:
        if path.name.startswith("."):
            return now - path.stat().st_mtime < HALF_DONE_SECONDS
        try:
            manifest = path / "manifest.json"
            source = Path(json.loads(manifest.read_text())["source"])
            return source.exists() and now - manifest.stat().st_mtime < UNUSED_SECONDS
        except (OSError, ValueError, KeyError, TypeError):
            return False
