"""The library sentence_transformers, imported without scikit-learn and SciPy.

It imports both for one function each, of which no pipeline calls either, and transformers imports SciPy for the losses
of detectors. Together they are 860 modules and 75 MB in a fork server, which each fork and each end of a worker walks
through. So while the library is imported, stand-ins have their place; who calls one of those functions gets the real
one, and who imports SciPy later gets it.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def import_library() -> Any:
    """The module sentence_transformers. A release that needs more of the two than what stands in is imported with
    them."""
    if "sentence_transformers" not in sys.modules and not {"sklearn", "scipy"} & sys.modules.keys():
        try:
            with _stand_ins():
                import sentence_transformers
        except ImportError:
            pass
    import sentence_transformers

    return sentence_transformers


@contextmanager
def _stand_ins() -> Iterator[None]:
    there: dict[str, types.ModuleType | None] = {
        "sklearn": _module("sklearn"),
        "sklearn.metrics": _module("sklearn.metrics", pairwise_distances=_pairwise_distances),
        "scipy": None,  # transformers asks whether it is installed
        "scipy.sparse": _module("scipy.sparse", coo_matrix=_coo_matrix),
    }
    _forget_what_is_there()
    sys.modules.update(there)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in there.items():
            if sys.modules.get(name) is module:
                sys.modules.pop(name, None)
        _forget_what_is_there()


def _module(name: str, **functions: Callable[..., Any]) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(functions)
    return module


def _pairwise_distances(*arguments: Any, **named: Any) -> Any:
    from sklearn.metrics import pairwise_distances

    return pairwise_distances(*arguments, **named)


def _coo_matrix(*arguments: Any, **named: Any) -> Any:
    from scipy.sparse import coo_matrix

    return coo_matrix(*arguments, **named)


def _forget_what_is_there() -> None:
    """Whether the two are installed, which transformers remembers."""
    found = sys.modules.get("transformers.utils.import_utils")
    for name in ("is_scipy_available", "is_sklearn_available"):
        forget = getattr(getattr(found, name, None), "cache_clear", None)
        if forget is not None:
            forget()
