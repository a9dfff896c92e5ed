"""The tests have teeth: each row of tests/mutants/*.toml puts one real bug into a copy of the tree, and the test it
names must then fail. A failure counts only when the mutated file was imported and the test itself failed, in its call:
neither a collection error nor a broken fixture kills a mutant.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import pytest
from mutants.bounds import NOTICED

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
RUN_SECONDS = 150
TEST_SECONDS = 90
"""Most of it is for importing large libraries, two at a time; who hangs in a loop is cancelled before (bounds.py)."""


@dataclass(frozen=True)
class Mutant:
    """One bug: `find` (exactly once in `file`) becomes `replace`, and `test` must notice."""

    name: str
    why: str
    file: str
    find: str
    replace: str
    test: str


def mutants() -> list[Mutant]:
    """Every row of every file; unknown or missing keys are a TypeError."""
    found: list[Mutant] = []
    for path in sorted(Path(__file__).parent.glob("*.toml")):
        found += [Mutant(**row) for row in tomllib.loads(path.read_text()).get("mutant", [])]
    return found


ALL = mutants()


@dataclass(frozen=True)
class Outcome:
    """What one pytest run over the named test did."""

    failures: int
    errors: int
    passed: int
    skipped: int
    imported: bool
    output: str


class Tree:
    """A copy of the tree, and the process whose forks run pytest in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        places = [root, root / "libs", root / "services", root / "tests"]
        environ = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, places)), PYTHONDONTWRITEBYTECODE="1")
        self._zygote = subprocess.Popen(
            [sys.executable, "-P", str(root / "tests" / "mutants" / "zygote.py")],
            cwd=root, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def pytest(self, arguments: list[str], seconds: float) -> str:
        """Runs pytest with these arguments; its output."""
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        output = self.root / "output"
        self._zygote.stdin.write(json.dumps([str(output), seconds, *arguments]) + "\n")
        self._zygote.stdin.flush()
        code = json.loads(self._zygote.stdout.readline())
        text = output.read_text(errors="replace")[-6000:]
        return f"{text}\nstill running after {seconds} s" if code is None else text

    def close(self) -> None:
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait(60)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleQueue[Tree]]:
    """One copy of the tree for each worker."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = [name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    copies: SimpleQueue[Tree] = SimpleQueue()
    for _ in range(WORKERS):
        root = tmp_path_factory.mktemp("tree")
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
        copies.put(Tree(root))
    yield copies
    for _ in range(WORKERS):
        copies.get().close()


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, trees: SimpleQueue[Tree]) -> Iterator[dict[str, Future[Outcome]]]:
    """Runs the mutants that this session selected, two at a time, from the moment the first result is wanted."""
    wanted = {
        item.callspec.params["mutant"].name
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "mutant" in item.callspec.params
    }
    with ThreadPoolExecutor(WORKERS) as pool:
        yield {mutant.name: pool.submit(_run_mutant, mutant, trees) for mutant in ALL if mutant.name in wanted}
        pool.shutdown(cancel_futures=True)


def test_mutants_have_names_of_their_own() -> None:
    names = [mutant.name for mutant in ALL]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("code", "counts"),
    [
        ("def test_it(): assert False", True),
        ("async def test_it(): raise TimeoutError", True),
        ("def test_it(): pass", False),
        ("import pytest\ndef test_it(): pytest.skip()", False),
        ("import pytest\n@pytest.fixture\ndef broken(): assert False\ndef test_it(broken): pass", False),
        ("import no_such_module\ndef test_it(): assert False", False),
        ("import os\ndef test_it(): os._exit(1)", False),
        ("import os, signal\ndef test_it(): os.kill(os.getpid(), signal.SIGSEGV)", False),
        ("import os, pytest\n@pytest.fixture\ndef end():\n yield\n os._exit(1)\ndef test_it(end): assert False", True),
        ("def test_another(): assert False", False),
    ],
    ids=[
        "fails",
        "fails in a loop",
        "passes",
        "skips",
        "has no fixture",
        "no import",
        "exits",
        "crashes",
        "fails before it exits",
        "is not there",
    ],
)
def test_only_a_test_that_fails_counts(trees: SimpleQueue[Tree], code: str, counts: bool) -> None:
    tree = trees.get()
    file = tree.root / "tests" / "test_seen.py"
    try:
        file.write_text(code)
        outcome = _run_tests(tree, ["tests/test_seen.py::test_it"], tree.root / "imported")
    finally:
        file.unlink()
        trees.put(tree)
    assert bool(outcome.failures) is counts, outcome


@pytest.mark.timeout(600)
def test_the_named_tests_pass_without_a_mutant(trees: SimpleQueue[Tree]) -> None:
    # The others start processes: they are run by the suite itself, and cost too much to be run here too.
    named = sorted({mutant.test for mutant in ALL if mutant.test.startswith("tests/unit/")})
    files = sorted({test.partition("::")[0] for test in named})
    shares = [set(files[number::WORKERS]) for number in range(WORKERS)]

    def run(share: set[str]) -> Outcome:
        tree = trees.get()
        try:
            return _run_tests(tree, [test for test in named if test.partition("::")[0] in share], None)
        finally:
            trees.put(tree)

    with ThreadPoolExecutor(WORKERS) as pool:
        for outcome in pool.map(run, shares):
            assert (outcome.failures, outcome.errors, outcome.skipped) == (0, 0, 0), outcome.output
            assert outcome.passed > 0


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mutant", ALL, ids=[mutant.name for mutant in ALL])
def test_the_named_test_fails_with(mutant: Mutant, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[mutant.name].result()
    assert outcome.imported, f"{mutant.file} was never imported from the copy:\n{outcome.output}"
    assert outcome.failures, f"{mutant.test} does not notice: {mutant.why}\n{outcome.output}"


def _run_mutant(mutant: Mutant, trees: SimpleQueue[Tree]) -> Outcome:
    tree = trees.get()
    target = tree.root / mutant.file
    try:
        before = target.read_text()
        count = before.count(mutant.find)
        if count != 1:
            raise AssertionError(f"{mutant.file} holds the text to find {count} times, not once: {mutant.find!r}")
        marker = tree.root / "imported"
        marker.unlink(missing_ok=True)
        # The last line tells that this very file was executed, in whichever process. A mutant that breaks the import
        # itself never gets there.
        witness = f'\n__import__("pathlib").Path({str(marker)!r}).touch()\n'
        target.write_text(before.replace(mutant.find, mutant.replace) + witness)
        try:
            return _run_tests(tree, [mutant.test], marker)
        finally:
            target.write_text(before)
    finally:
        trees.put(tree)


def _run_tests(tree: Tree, tests: list[str], marker: Path | None) -> Outcome:
    report, noticed = tree.root / "report.xml", tree.root / NOTICED
    for file in (report, noticed):
        file.unlink(missing_ok=True)
    arguments = ["-q", "--no-header", f"--timeout={TEST_SECONDS}", f"--junitxml={report}", *tests]
    if any("hypothesis" in (tree.root / test.partition("::")[0]).read_text() for test in tests):
        arguments[:0] = ["-p", "mutants.settle"]
    if marker:
        arguments[:0] = ["-x", "-p", "mutants.bounds"]
    output = tree.pytest(arguments, RUN_SECONDS if marker else 600)
    imported = marker is not None and marker.exists()
    if not report.exists():
        return Outcome(int(noticed.exists()), 1, 0, 0, imported, output)
    suite = ElementTree.parse(report).getroot().find("testsuite")  # noqa: S314 - pytest wrote it a moment ago
    assert suite is not None
    failures, errors, skipped = (int(suite.get(key, "0")) for key in ("failures", "errors", "skipped"))
    passed = int(suite.get("tests", "0")) - failures - errors - skipped
    return Outcome(failures, errors, passed, skipped, imported, output)
