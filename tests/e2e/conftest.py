"""Platforms as processes of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from e2e.rig import MINILM, minilm_folder, no_process_left
from modelmora.lifecycle.v1 import lifecycle_pb2

from bench.up import Up

StartUp = Callable[..., Up]


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder from which the platform for all tests imports models."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory, model_root: Path) -> Iterator[Up]:
    """One platform for all tests that do it no harm, with the real MiniLM loaded."""
    roots = {"REGISTRY_MODEL_ROOTS": json.dumps([str(minilm_folder()), str(model_root)])}
    up = Up(tmp_path_factory.mktemp("platform") / "data", settings=roots)
    up.start()
    try:
        up.add_model(MINILM, engine="sentence_transformers", folder=minilm_folder())
        up.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model=MINILM, wait=True), timeout=300)
        yield up
    finally:
        up.stop()
    no_process_left(up.data_dir)


@pytest.fixture
def start_up(tmp_path: Path) -> Iterator[StartUp]:
    """Starts platforms of a test's own, by default on the data folder `tmp_path/data`. All are ended afterwards."""
    started: list[Up] = []

    def start(
        settings: Mapping[str, str] | None = None,
        *,
        name: str = "data",
        ready: bool = True,
        command: Sequence[str] = ("-m", "modelmora_app", "up"),
    ) -> Up:
        up = Up(tmp_path / name, settings=settings, command=command)
        started.append(up)
        if ready:
            up.start()
        return up

    yield start
    for up in started:
        try:
            up.stop()
        finally:
            no_process_left(up.data_dir)
