"""The library sentence_transformers, imported without scikit-learn and SciPy.

It imports both for one function each, of which no pipeline calls either, and transformers imports SciPy for the losses
of detectors. Together they are 860 modules and 75 MB in a fork server, which each fork and each end of a worker walks
through. So while the library is imported, stand-ins have their place; who imports SciPy later gets it.
"""

from __future__ import annotations

import sys
from typing import Any

from modelmora_worker.engines.stand_ins import stand_ins


def import_library() -> Any:
    """The module sentence_transformers. A release that needs more of the two than what stands in is imported with
    them."""
    if "sentence_transformers" not in sys.modules and not {"sklearn", "scipy"} & sys.modules.keys():
        try:
            _forget_what_is_there()
            with stand_ins():
                import sentence_transformers
        except ImportError:
            pass
        finally:
            _forget_what_is_there()
    import sentence_transformers

    return sentence_transformers


def _forget_what_is_there() -> None:
    """Whether the two are installed, which transformers remembers."""
    found = sys.modules.get("transformers.utils.import_utils")
    for name in ("is_scipy_available", "is_sklearn_available"):
        forget = getattr(getattr(found, name, None), "cache_clear", None)
        if forget is not None:
            forget()
