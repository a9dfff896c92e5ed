"""The worker laid out in a folder of its own, for interpreters that have an engine installed and not ModelMora.

Such a folder is the only entry that is added to the path of an engine's own interpreter (which also needs protobuf). It
holds exactly what a worker imports; the marker file tells `__main__` that it runs from one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from modelmora import errors
from modelmora_runtime import framing

MARKER = "WORKER_BUNDLE"
_FILES = {
    "modelmora": (
        "__init__.py",
        "errors.py",
        "common/__init__.py",
        "common/v1/__init__.py",
        "common/v1/common_pb2.py",
        "worker/__init__.py",
        "worker/v1/__init__.py",
        "worker/v1/worker_pb2.py",
    ),
    "modelmora_runtime": ("__init__.py", "framing.py"),
}


def files() -> Iterator[tuple[Path, Path]]:
    """(source, path in the bundle) of every file of the bundle."""
    for package, module in (("modelmora", errors), ("modelmora_runtime", framing)):
        folder = Path(str(module.__file__)).parent
        for name in _FILES[package]:
            yield folder / name, Path(package, name)
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        yield path, Path(folder.name, path.relative_to(folder))


def write_bundle(folder: Path) -> list[Path]:
    """Makes `folder`, which must not exist, with the bundle in it, whole or not at all. The files, relative to it."""
    written = []
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for source, path in files():
            target = temporary / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            written.append(path)
        (temporary / MARKER).touch()
        # Not onto an existing folder: rename replaces only an empty one.
        if folder.exists():
            raise FileExistsError(f"there is something at {folder}")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written
