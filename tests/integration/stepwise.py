"""A worker that computes one text at a time, each once it may: who comes before whom is no matter of time."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from integration.inference_rig import Rig
from third_party import install

ENGINE = """
import os, time
from modelmora_worker.engines import base, echo

FOLDER = os.path.dirname(__file__)
ROW = base.EngineRow('theirs', 'step_engine:Engine', frozenset({'txt2embed'}), needs_files=False,
                     options=base.TABLE['echo'].options)

class Engine(echo.EchoEngine):
    def infer(self, batch):
        with open(os.path.join(FOLDER, 'begun'), 'a+') as begun:
            begun.write(batch.items[0][0] + '\\n')
            begun.flush()
            begun.seek(0)
            count = len(begun.readlines())
        while os.path.getsize(os.path.join(FOLDER, 'allowed')) < count:
            time.sleep(0.005)
        return super().infer(batch)
"""
OPTIONS = {"micro_batch_entries": 1, "delay_seconds": 0.05}


class Steps:
    """What the worker of a rig may compute, and what it has begun with."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        install(folder, "step_engine", ENGINE)
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        self._begun, self._allowed = folder / "begun", folder / "allowed"
        for file in (self._begun, self._allowed):
            file.touch()

    def allow(self, count: int) -> None:
        """So many texts more."""
        os.truncate(self._allowed, self._allowed.stat().st_size + count)

    def texts(self) -> list[str]:
        """Those that it has begun with, in this order."""
        return self._begun.read_text().splitlines()

    async def begun(self, count: int) -> None:
        """Returns once it has begun with so many."""
        async with asyncio.timeout(60):
            while len(self.texts()) < count:  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)

    async def heard(self, made: Rig) -> None:
        """Returns once the worker knows what was sent to it: it reads its connections in turn."""
        await made.queue()  # what was to be sent is
        for _ in range(2):
            await made.worker.seen()
