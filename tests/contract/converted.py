"""Where tests keep converted models: outside the clone, by what converts them; a session converts once or never."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from modelmora_worker.engines import conversions, openvino


def cache_path() -> str:
    """A folder for EngineSpec.cache_path; what the libraries and the model change is in its own keys."""
    source = "".join(Path(str(module.__file__)).read_text() for module in (conversions, openvino))
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelmora-tests"
    return str(home / f"conversions-{hashlib.sha256(source.encode()).hexdigest()[:16]}")
