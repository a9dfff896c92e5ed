"""What stands in for scikit-learn and SciPy while sentence_transformers is imported. The libraries are small fakes,
each case is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUNCTIONS = """
from sklearn.metrics import pairwise_distances
from scipy.sparse import coo_matrix
import importlib.util
scipy_is_there = importlib.util.find_spec("scipy") is not None
"""
MORE = "from sklearn.metrics import pairwise_distances, f1_score\nfrom scipy.sparse import coo_matrix\n"
ASK = """
import json, sys
from modelmora_worker.engines.lean_import import import_library
library = import_library()
found = sorted({"sklearn", "scipy"} & sys.modules.keys())
print(json.dumps({
    "imported": found,
    "told": getattr(library, "scipy_is_there", None),
    "answers": [library.pairwise_distances(1, 2), library.coo_matrix(3)],
    "then": sorted({"sklearn", "scipy"} & sys.modules.keys()),
    "same": import_library() is library,
}))
"""


def imported(folder: Path, library: str, before: str = "") -> dict[str, object]:
    for name, text in (
        ("sentence_transformers", library),
        ("sklearn", ""),
        ("scipy", ""),
    ):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    (folder / "sklearn/metrics.py").write_text("pairwise_distances = lambda *a: ['real', *a]\nf1_score = None\n")
    (folder / "scipy/sparse.py").write_text("coo_matrix = lambda *a: ['real', *a]\n")
    path = os.pathsep.join([str(folder), *sys.path])
    found = subprocess.run(
        [sys.executable, "-S", "-P", "-c", before + ASK],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    answer: dict[str, object] = json.loads(found.stdout)
    return answer


def test_neither_is_imported_before_somebody_calls_them(tmp_path: Path) -> None:
    found = imported(tmp_path, FUNCTIONS)
    assert found["imported"] == []
    assert found["told"] is False
    assert found["answers"] == [["real", 1, 2], ["real", 3]]
    assert found["then"] == ["scipy", "sklearn"]
    assert found["same"] is True


@pytest.mark.parametrize(("library", "before"), [(MORE, ""), (FUNCTIONS, "import sklearn\n")])
def test_a_release_that_needs_more_of_them_gets_them(tmp_path: Path, library: str, before: str) -> None:
    found = imported(tmp_path, library, before)
    assert found["imported"] == ["scipy", "sklearn"]
    assert found["answers"] == [["real", 1, 2], ["real", 3]]
