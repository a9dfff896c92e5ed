"""Rules of the house that a machine can check: names, broad excepts, what may not be committed."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
from architecture.walls import source_files

ROOT = Path(__file__).resolve().parents[2]

FORBIDDEN_WORDS = ("Manager", "Helper", "Util", "Handler", "Impl", "DTO", "Orchestrator")
"""Words that say nothing. `logging.Handler` and the like are foreign names and may be subclassed, not echoed."""

BROAD_EXCEPT_FILES = {
    # file: how often, because
    "libs/modelmora_runtime/interceptors.py": 1,  # an unknown error becomes INTERNAL with an incident id
    "services/modelmora_worker/pipeline.py": 1,  # an engine may raise anything
    "libs/modelmora_runtime/supervisor.py": 1,  # the exit report of a child
    "libs/modelmora/bulk.py": 1,  # what the caller's own iterator raises in our thread is raised where he waits
}

# Written in pieces, or this file would break its own rule.
REGISTRY_HOSTS = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "npmjs" + ".org",
    "npmjs" + ".com",
    "deb.debian" + ".org",
    "yarnpkg" + ".com",
]
MACHINE_PATHS = [
    "/" + "work/main",
    "/" + "work/shared",
    "/" + "work/.library",
    "/" + "opt/wheels",
    "/" + "opt/pypi",
    "/" + "root/",
    "/" + "tmp/mm",
]


def committed_files() -> list[Path]:
    """Tracked files, and new ones that git does not ignore."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = [name for name in listing.stdout.decode().split("\0") if name]
    return [path for name in names if (path := ROOT / name).is_file()]


def python_files() -> list[Path]:
    return [path for path in committed_files() if path.suffix == ".py" and "_pb2" not in path.name]


def test_no_class_or_file_has_a_name_that_says_nothing() -> None:
    found = []
    for path in python_files():
        for word in FORBIDDEN_WORDS:
            if re.search(rf"(^|_){word.lower()}s?(_|$)", path.stem):
                found.append(f"{path.relative_to(ROOT)}: file name")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", node.name)
                found += [
                    f"{path.relative_to(ROOT)}: class {node.name}" for w in words if w.rstrip("s") in FORBIDDEN_WORDS
                ]
    assert found == []


def test_nothing_waits_in_a_way_that_swallows_its_cancellation() -> None:
    """`asyncio.wait_for` of Python 3.11 returns what it waited for when both come at once, and who cancelled waits for
    ever; `asyncio.timeout` does not."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in source_files(ROOT)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "asyncio.wait_for(" in line
    ]
    assert found == []


def broad_excepts(path: Path) -> list[int]:
    """Lines that catch everything. BaseException that is raised again (to clean up) catches nothing."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
        names = {item.id for item in caught if isinstance(item, ast.Name)} | (
            {"BaseException"} if node.type is None else set()
        )
        last = node.body[-1]
        raised_again = isinstance(last, ast.Raise) and last.exc is None
        if names & {"Exception", "BaseException"} and not raised_again:
            lines.append(node.lineno)
    return lines


def test_except_exception_stands_in_three_places() -> None:
    found = {str(path.relative_to(ROOT)): lines for path in source_files(ROOT) if (lines := broad_excepts(path))}
    unexpected = {file: lines for file, lines in found.items() if len(lines) > BROAD_EXCEPT_FILES.get(file, 0)}
    assert unexpected == {}


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    pass",
        "try:\n    f()\nexcept (OSError, Exception) as e:\n    print(e)",
    ],
)
def test_a_broad_except_is_seen(tmp_path: Path, code: str) -> None:
    (tmp_path / "x.py").write_text(code)
    assert broad_excepts(tmp_path / "x.py") == [3]


@pytest.mark.parametrize("needles", [REGISTRY_HOSTS, MACHINE_PATHS], ids=["registry hosts", "paths of this machine"])
def test_no_committed_file_names(needles: list[str]) -> None:
    found = []
    for path in committed_files():
        content = path.read_bytes()
        found += [f"{path.relative_to(ROOT)}: {needle}" for needle in needles if needle.encode() in content]
    assert found == []


def test_scripts_are_executable_and_stop_at_an_error() -> None:
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci/run"]:
        text = path.read_text()
        if text.startswith("#!/usr/bin/env bash"):
            assert path.stat().st_mode & 0o111, f"{path.name} is not executable"
            assert re.search(r"^set -[eu]*uo? pipefail", text, re.M), f"{path.name} does not set -u and pipefail"


def test_file_lock_of_npm_names_no_place() -> None:
    assert '"resolved"' not in (ROOT / "package-lock.json").read_text()


def test_mutants_meet_their_lines_and_name_tests_that_are_there() -> None:
    """What tests/mutants would find after an hour."""
    wrong = []
    for path in sorted((ROOT / "tests" / "mutants").glob("*.toml")):
        for row in tomllib.loads(path.read_text())["mutant"]:
            count = (ROOT / row["file"]).read_text().count(row["find"])
            if count != 1:
                wrong.append(f"{path.name}: {row['name']}: {row['file']} holds its text {count} times")
            file, _, name = row["test"].partition("::")
            if name and name.partition("[")[0] not in functions(ROOT / file):
                wrong.append(f"{path.name}: {row['name']}: there is no {row['test']}")
    assert wrong == []


@cache
def functions(path: Path) -> set[str]:
    """Of a file's top level, and `Class::method`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return found
