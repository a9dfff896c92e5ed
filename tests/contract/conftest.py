"""Engines set up the process they load in, which is a worker's; here it is everyone's, so it is put back."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _environment() -> Iterator[None]:
    import huggingface_hub.constants  # noqa: F401  # it reads whether it is offline once, at import

    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
