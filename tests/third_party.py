"""An engine of somebody else, installed: found by its entry point wherever its folder is on the path."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, module: str, code: str) -> None:
    """The engine `theirs`, whose row is `ROW` of this module."""
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[modelmora.engines]\ntheirs = {module}:ROW\n")
