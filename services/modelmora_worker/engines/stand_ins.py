"""What stands in for scikit-learn and SciPy while another library is imported that asks them for one function each. Who
calls one of those functions gets the real one."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stand_ins() -> Iterator[None]:
    """Within, both are not installed, but for these functions."""
    there: dict[str, types.ModuleType | None] = {
        "sklearn": _module("sklearn"),
        "sklearn.metrics": _module("sklearn.metrics", pairwise_distances=_pairwise_distances),
        "scipy": None,  # transformers asks whether it is installed
        "scipy.sparse": _module("scipy.sparse", coo_matrix=_coo_matrix),
    }
    sys.modules.update(there)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in there.items():
            if sys.modules.get(name) is module:
                sys.modules.pop(name, None)


def _module(name: str, **functions: Callable[..., Any]) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = type(types.__spec__)(name, None)
    module.__dict__.update(functions)
    return module


def _pairwise_distances(*arguments: Any, **named: Any) -> Any:
    from sklearn.metrics import pairwise_distances

    return pairwise_distances(*arguments, **named)


def _coo_matrix(*arguments: Any, **named: Any) -> Any:
    from scipy.sparse import coo_matrix

    return coo_matrix(*arguments, **named)
