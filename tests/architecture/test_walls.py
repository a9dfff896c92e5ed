"""The walls hold, and a breach of each is seen: every row of BREACHES is put into a copy of the tree."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from architecture import walls

ROOT = Path(__file__).resolve().parents[2]

BREACHES = [
    # (wall, file, line to append)
    ("1", "services/modelmora_inference/service.py", "import modelmora_registry.domain"),
    ("1", "services/modelmora_inference/service.py", "from modelmora_lifecycle import ledger"),
    ("1", "services/modelmora_inference/service.py", "def f():\n    from modelmora_lifecycle import ledger"),
    ("1", "services/modelmora_inference/service.py", "from ..modelmora_registry import domain"),
    ("1", "services/modelmora_lifecycle/main.py", "import modelmora_app.cli"),
    ("1", "services/modelmora_lifecycle/launcher.py", "import modelmora_worker.service"),
    ("1", "services/modelmora_registry/main.py", "if False:\n    import modelmora_observability"),
    ("1", "libs/modelmora_runtime/host.py", "def f():\n    import modelmora_registry.main"),
    ("1", "libs/modelmora_runtime/host.py", "from modelmora_app import cli"),
    ("1", "libs/modelmora/client.py", "import modelmora_runtime.status"),
    ("1", "libs/modelmora/client.py", "def f():\n    import pydantic"),
    ("2", "services/modelmora_lifecycle/eviction.py", "import asyncio"),
    ("2", "services/modelmora_lifecycle/eviction.py", "async def f(): ..."),
    ("2", "services/modelmora_lifecycle/eviction.py", "import pydantic"),
    ("2", "services/modelmora_lifecycle/scheduler.py", "from . import launcher"),
    ("2", "services/modelmora_lifecycle/ledger.py", "import datetime\nx = datetime.datetime.now()"),
    ("2", "services/modelmora_inference/queue.py", "import time"),
    ("2", "services/modelmora_inference/queue.py", "from random import random"),
    ("2", "services/modelmora_inference/queue.py", "import logging"),
    ("2", "services/modelmora_registry/domain.py", "import uuid\nx = uuid.uuid4()"),
    ("2", "services/modelmora_registry/domain.py", "def f():\n    open('x')"),
    ("2", "services/modelmora_registry/domain.py", "from modelmora_runtime import settings"),
    # Taken as it stands, without the dot, this would be the standard library's.
    ("2", "services/modelmora_registry/domain.py", "from .json import dumps"),
    ("3", "services/modelmora_registry/service.py", "import sqlalchemy as sa"),
    ("3", "services/modelmora_registry/artifacts.py", "def f():\n    from sqlalchemy import text"),
    ("3", "services/modelmora_registry/store.py", "import grpc"),
    ("3", "services/modelmora_registry/artifacts.py", "from modelmora.registry.v1 import registry_pb2_grpc"),
    ("3", "libs/modelmora/errors.py", "import grpc.aio"),
    ("4", "services/modelmora_lifecycle/launcher.py", "def f():\n    import torch"),
    ("4", "services/modelmora_registry/artifacts.py", "from safetensors import safe_open"),
    ("4", "services/modelmora_worker/engines/sentence_transformers.py", "import torch"),
    ("4", "services/modelmora_worker/engines/sentence_transformers.py", "def f():\n    import openvino, torch"),
    ("4", "services/modelmora_inference/service.py", "import pynvml"),
    ("5", "services/modelmora_worker/service.py", "from modelmora_runtime import settings"),
    ("5", "services/modelmora_worker/service.py", "def f():\n    import grpc"),
    ("5", "services/modelmora_worker/service.py", "import psutil"),
    ("5", "services/modelmora_worker/engines/echo.py", "from modelmora.client import Client"),
    ("5", "libs/modelmora_runtime/framing.py", "from modelmora.worker.v1 import worker_pb2"),
    (
        "0",
        "services/modelmora_inference/main.py",
        "import importlib\nimportlib.import_module('modelmora_' + 'registry')",
    ),
    ("0", "services/modelmora_inference/main.py", "__import__('modelmora_registry')"),
    ("0", "services/modelmora_inference/main.py", "import importlib as i\ni.import_module('modelmora_' + 'registry')"),
    ("0", "services/modelmora_inference/main.py", "import importlib.util as u\nu.module_from_spec(u.find_spec('x'))"),
    ("0", "services/modelmora_inference/main.py", "import runpy"),
    ("0", "services/modelmora_inference/main.py", "def f():\n    from importlib import import_module"),
]


def test_no_package_goes_through_a_wall() -> None:
    assert [str(breach) for breach in walls.breaches(ROOT)] == []


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources that a test may spoil (and mends again)."""
    root = tmp_path_factory.mktemp("tree")
    for source_root in ("libs", "services"):
        shutil.copytree(ROOT / source_root, root / source_root, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture(scope="module")
def known(tree: Path) -> frozenset[walls.Breach]:
    """What is wrong without any seeded breach: nothing, once the tree is whole."""
    return frozenset(walls.breaches(tree))


@pytest.mark.parametrize(("wall", "file", "code"), BREACHES)
def test_a_seeded_breach_is_seen(tree: Path, known: frozenset[walls.Breach], wall: str, file: str, code: str) -> None:
    target = tree / file
    assert target.exists(), f"{file} is named by a wall but does not exist"
    before = target.read_text()
    target.write_text(before + "\n" + code + "\n")
    try:
        new = [breach for breach in walls.breaches(tree, [target]) if breach not in known]
    finally:
        target.write_text(before)
    assert [breach for breach in new if breach.rule == wall and breach.file == file], f"not seen: {code!r}; new: {new}"


LOADED = """
import json, pkgutil, sys
package = __import__(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if ".migrations" not in module.name and not module.name.endswith("__main__"):
        __import__(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def loaded_by(package: str, root: Path, code: str = LOADED) -> set[str]:
    """Names of all modules in a fresh interpreter that has imported everything in `package` of the tree at `root`."""
    path = f"import sys; sys.path[:0] = [{str(root / 'libs')!r}, {str(root / 'services')!r}]\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", path + code, package], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    names = set(json.loads(done.stdout.splitlines()[-1]))
    assert package in names
    return names


@pytest.mark.parametrize("context", walls.CONTEXTS)
def test_a_context_alone_holds_no_other_context(context: str) -> None:
    own = f"modelmora_{context}"
    loaded = loaded_by(own, ROOT)
    foreign = {
        name
        for name in loaded
        if name.split(".")[0] in (walls.CONTEXT_PACKAGES | {"modelmora_app", "modelmora_worker"}) - {own}
    }
    assert foreign == set()
    assert not {name for name in loaded if name in walls.HEAVY}, "a heavy library came in"


def test_a_breach_hidden_from_the_syntax_tree_is_seen_at_run_time(tree: Path) -> None:
    target = tree / "services/modelmora_inference/domain.py"
    before = target.read_text()
    target.write_text(before + "\nglobals()['__builtins__']['__imp' + 'ort__']('modelmora_registry')\n")
    try:
        loaded = loaded_by("modelmora_inference", tree)
    finally:
        target.write_text(before)
    assert "modelmora_registry" in loaded


def test_the_worker_needs_nothing_but_protobuf() -> None:
    loaded = loaded_by("modelmora_worker", ROOT)
    tops = {name.split(".")[0] for name in loaded}
    foreign = {top for top in tops if not _is_standard(top)} - {
        "google",
        "modelmora",
        "modelmora_runtime",
        "modelmora_worker",
    }
    assert foreign == set()
    ours = {name for name in loaded if name.startswith("modelmora_runtime.")}
    assert ours == {"modelmora_runtime.framing"}


def test_the_base_install_of_the_sdk_needs_no_server_package() -> None:
    loaded = loaded_by("modelmora", ROOT)
    tops = {name.split(".")[0] for name in loaded}
    assert not {top for top in tops if top.startswith("modelmora_")}
    assert not tops & {"pydantic", "sqlalchemy", "click", "rich", "torch", "uvloop", "psutil", "yaml"}


def _is_standard(top: str) -> bool:
    # Site hooks of an editable install and namespace stubs are the interpreter's affair, not the worker's.
    return top in sys.stdlib_module_names or top.startswith(
        ("_", "sitecustomize", "usercustomize", "distutils-precedence")
    )
