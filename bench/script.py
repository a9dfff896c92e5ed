"""A child process that answers one line of JSON for each command: the load generator, the ceiling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Script:
    """A child that answers one line of JSON for each command."""

    def __init__(self, *command: str) -> None:
        # What our engine sets for itself, for the ceiling too.
        engine = {"GOMP_SPINCOUNT": "2000", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "TOKENIZERS_PARALLELISM": "false"}
        # Unbuffered, print loses the rest of a line of which the pipe took only a part.
        environ = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="", **engine)
        self._process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environ, cwd=ROOT,
        )  # fmt: skip

    def ask(self, **command: object) -> dict[str, Any]:
        self.begin(**command)
        return self.end()

    def begin(self, **command: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """The answer to what was begun."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait(10)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
