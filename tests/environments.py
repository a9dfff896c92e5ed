"""Environments for foreign clients and for the SDK alone: an interpreter with exactly these pins and nothing else.

They are kept outside the clone, by a hash of interpreter and pins (`$MODELMORA_TEST_CACHE`, else
`$XDG_CACHE_HOME/modelmora-tests`); an empty cache only takes longer.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from fcntl import LOCK_EX, flock
from pathlib import Path


def environment(name: str, pins: Sequence[str]) -> Path:
    """Its interpreter; the environment is made where it is missing."""
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(os.environ.get("MODELMORA_TEST_CACHE") or Path(shared) / "modelmora-tests")
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256("\n".join([sys.version, sys.executable, *sorted(pins)]).encode()).hexdigest()[:16]
    folder = cache / f"{name}-{key}"
    with open(cache / f"{name}-{key}.lock", "w") as lock:
        flock(lock, LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, symlinks=True, with_pip=False)
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin/python")]
            subprocess.run([*pip, "install", "-q", "--no-input", *pins], check=True, timeout=600)
            (folder / "complete").touch()
    return folder / "bin" / "python"
