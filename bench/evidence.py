"""The page of a long run in docs/evidence: of what, when and where it was, its table, and whether all was well."""

from __future__ import annotations

import argparse
import os
import platform as machine
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.script import ROOT

FOLDER = ROOT / "docs" / "evidence"


def arguments(about: str | None) -> argparse.ArgumentParser:
    """What every long run takes on its command line: `--evidence`, a folder."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evidence", type=Path, default=FOLDER, help="folder for the page")
    return parser


def provenance() -> dict[str, str]:
    """Of what, when and where a run was."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    dirty = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "commit": commit.strip() + (" (with changes)" if dirty else ""),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} x {model.partition(':')[2].strip()}, {memory / 2**30:.0f} GiB, "
        f"{machine.system()} {machine.release()}, Python {machine.python_version()}",
    }


def page(title: str, about: str, rows: Mapping[str, object]) -> str:
    """Markdown: what was run, and what came of it as a table."""
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([f"# {title}", "", about, "", "| | |", "|---|---|", *lines, ""])


def write(run: str, text: str, folder: Path = FOLDER) -> Path:
    """Its file, named by the run and the minute."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run}-{datetime.now(UTC):%Y%m%d-%H%M}.md"
    path.write_text(text)
    return path


def conclude(run: str, text: str, folder: Path, wrong: Sequence[str] = ()) -> int:
    """Writes and prints the page; the exit status of the run."""
    path = write(run, text, folder)
    print(text)
    print(path)
    return 1 if wrong else 0
