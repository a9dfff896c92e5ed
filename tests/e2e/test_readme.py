"""README keeps its word: what `make run` shows, every command and every line of Python, on a platform of its own."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import modelmora
import pytest
from e2e.rig import eventually, no_process_left

pytestmark = pytest.mark.timeout(900)  # a slow machine is no reason to be told of a hang

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
NEEDS_MORE = ("modelmora import hub:", "modelmora import /models/mine", "grpcurl", "buf curl", "make ")
"""Commands that need the network, files of the reader's own, a tool of the reader's own (`buf curl` is run in
test_e2e_buf_curl.py), or are what runs this test."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("console")).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").split("   #")[0].strip() for line in lines if line.startswith("$ ")]


@dataclass
class Run:
    """`scripts/run` as a process of its own, its output read as it comes."""

    data_dir: Path
    process: subprocess.Popen[str] = field(init=False)
    lines: list[str] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def start(self) -> Run:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("MODELMORA_")}
        self.process = subprocess.Popen(
            [ROOT / "scripts/run", "--data-dir", self.data_dir, "--port", "0", "--metrics-port", "0"],
            env={**environ, "HF_ENDPOINT": "http://127.0.0.1:1"},  # no Hub: the wheel
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self.lines.append("(end of output)")
            self._news.notify_all()

    def until(self, text: str, seconds: float = 300) -> list[str]:
        def said() -> bool:
            return any(text in line or line == "(end of output)" for line in self.lines)

        with self._news:
            assert self._news.wait_for(said, seconds), "\n".join(self.lines)
        assert any(text in line for line in self.lines), "\n".join(self.lines)
        return list(self.lines)

    @property
    def target(self) -> str:
        (found,) = {match[1] for line in self.lines if (match := re.search(r"--target (\S+) embed", line))}
        return found

    def stop(self, number: int = signal.SIGINT) -> int:
        """As a terminal does: to the whole foreground group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        return self.process.wait(40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    run = Run(tmp_path_factory.mktemp("run") / "data").start()
    try:
        run.until("Ctrl-C stops the platform.")
        yield run
    finally:
        run.stop()
        no_process_left(run.data_dir)


def table(lines: list[str]) -> list[list[float]]:
    """The similarities of an answer: the last four columns of the rows below the heading."""
    start = next(number for number, line in enumerate(lines) if "~1" in line and "~4" in line)
    return [[float(cell) for cell in line.split()[-4:]] for line in lines[start + 1 : start + 5]]


def test_the_first_screen_shows_the_answer_that_make_run_gives(run: Run) -> None:
    ours = table(run.lines)
    assert ours == table(blocks("text")[0].splitlines()), "paste the real answer into README.md"
    for row in range(4):
        assert ours[row][row] == 1.0
    assert min(ours[0][1], ours[2][3]) > max(ours[0][2], ours[0][3], ours[1][2], ours[1][3])
    shown = "\n".join(run.lines)
    assert "tokens" in shown
    assert "compute" in shown


def test_what_make_run_tells_to_type_works(run: Run, tmp_path: Path) -> None:
    (python,) = re.findall(r"Python +(\S+) -c '(.*?)'\n", "\n".join(run.lines), re.DOTALL)
    program = re.sub(r"\n {12}", "\n", python[1])
    told = subprocess.run([python[0], "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert told.stdout.strip() == "(2, 384)", told.stderr
    lines = [line.removeprefix("  CLI ").strip() for line in run.lines if "modelmora --target" in line]
    assert len(lines) == 2
    for line in lines:
        subprocess.run(shlex.split(line), check=True, cwd=tmp_path, timeout=120, stdout=subprocess.DEVNULL)


def test_the_python_of_the_readme_runs(run: Run, tmp_path: Path) -> None:
    (program,) = blocks("python")
    environ = {**os.environ, "MODELMORA_TARGET": run.target}
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 0, told.stderr
    first, second = told.stdout.splitlines()
    assert first == "(2, 384) float32"
    assert second.startswith("(384,) ")
    assert f"models/{MODEL}/versions/" in second


def is_idle(run: Run, model: str) -> bool:
    with modelmora.Client(run.target) as client:
        return not any(one.busy_leases for one in client.list_replicas() if f"/{model}/" in one.model_version)


def test_every_command_of_the_readme_runs(run: Run, tmp_path: Path) -> None:
    ran = 0
    environ = {
        **os.environ,
        "MODELMORA_TARGET": run.target,
        "MODELMORA_DATA_DIR": str(run.data_dir),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for command in commands():
        if command.startswith(NEEDS_MORE):
            continue
        if command.startswith("modelmora unload "):
            # A platform that stood still since the last call still calls its model busy, and nobody types so fast.
            eventually(lambda: is_idle(run, shlex.split(command)[2]), 60, f"idle before {command}")  # noqa: B023
        told = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120
        )
        assert told.returncode == 0, f"$ {command}\n{told.stdout}{told.stderr}"
        ran += 1
    assert ran >= 9


def test_the_commands_that_need_more_are_understood(run: Run, tmp_path: Path) -> None:
    environ = {**os.environ, "MODELMORA_TARGET": run.target}
    for command in commands():
        if command.startswith("modelmora import") and command.startswith(NEEDS_MORE):
            words = [*shlex.split(command)[1:], "--validate-only"]
            told = subprocess.run(
                [Path(sys.executable).parent / "modelmora", *words],
                cwd=tmp_path,
                env=environ,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert told.returncode in (2, 3, 6), f"$ {command}\n{told.stdout}{told.stderr}"
            assert "Usage" not in told.stderr
            assert "Traceback" not in told.stderr


def test_two_commands_stand_in_the_makefile() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = {command.split()[1] for command in commands() if command.startswith("make ")}
    assert asked == {"run", "test"}
    assert asked <= set(targets)


def test_a_second_start_imports_nothing_and_every_end_is_clean(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    first = Run(data_dir).start()
    assert any("importing" in line for line in first.until("Ctrl-C stops the platform."))
    assert first.stop() == 0, "\n".join(first.lines)
    no_process_left(data_dir)
    second = Run(data_dir).start()
    lines = second.until("Ctrl-C stops the platform.")
    assert not any("importing" in line for line in lines)
    with modelmora.Client(second.target) as client:
        assert len(list(client.list_versions(MODEL))) == 1
    os.kill(second.process.pid, signal.SIGTERM)  # to the script alone, as make and service managers do
    assert second.process.wait(40) == 0, "\n".join(second.lines)
    no_process_left(data_dir)
    third = Run(data_dir).start()
    third.until("ModelMora serves")
    third.process.kill()  # nobody can clean up after that, but the kernel tells the platform
    no_process_left(data_dir, 40)
