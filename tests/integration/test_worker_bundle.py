"""The worker bundle: exactly what a worker imports, and a worker that runs from nothing else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import google.protobuf
import pytest
from modelmora_worker import engines
from modelmora_worker.bundle import write_bundle


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with protobuf and nothing else, as an engine's own interpreter would have it."""
    site = tmp_path / "site"
    (site / "google").mkdir(parents=True)
    packages = Path(google.protobuf.__path__[0]).parents[1]
    (site / "google" / "protobuf").symlink_to(packages / "google" / "protobuf")
    (site / "google" / "_upb").symlink_to(packages / "google" / "_upb")
    return site


def laid_out(folder: Path) -> Path:
    """The `__main__` of a new bundle."""
    assert set(write_bundle(folder)) == {path.relative_to(folder) for path in folder.rglob("*.py")}
    return folder / "modelmora_worker" / "__main__.py"


def run(bare: Path, *words: str, **settings: object) -> subprocess.Popen[bytes]:
    # -S: no site-packages, so that what is installed here cannot help.
    environment = {"PYTHONPATH": str(bare), "PATH": os.environ["PATH"], **settings.pop("env", {})}
    return subprocess.Popen([sys.executable, "-P", "-S", *words], env=environment, **settings)


def test_a_worker_runs_from_the_bundle_alone(bare, data_dir):
    main = laid_out(data_dir.parent / "bundle")
    ours, theirs = socket.socketpair()
    lifeline_read, lifeline_write = os.pipe()
    process = run(
        bare,
        str(main),
        stdin=theirs.fileno(),
        stderr=subprocess.PIPE,
        pass_fds=(lifeline_read,),
        env={"MODELMORA_WORKER_LIFELINE": str(lifeline_read)},
    )
    theirs.close()
    path = data_dir.parent / "w.sock"
    ours.sendall(json.dumps({"socket": str(path), "key": "00" * 32}).encode() + b"\n")
    ours.settimeout(20)
    assert ours.recv(100) == b"ready\n", process.stderr.read()
    assert path.is_socket()
    assert not gone(process.pid)
    os.close(lifeline_write)
    assert process.wait(20) == -9
    os.close(lifeline_read)
    process.stderr.close()
    ours.close()


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_the_bundle_holds_exactly_what_a_worker_imports(bare, data_dir):
    main = laid_out(data_dir.parent / "bundle")
    folder = main.parents[1]
    script = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "import modelmora_worker.__main__, modelmora_worker.engines.echo\n"
        "import json; print(json.dumps([m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)]))"
    )
    process = run(bare, "-c", script, stdout=subprocess.PIPE)
    imported = {Path(name) for name in json.loads(process.communicate(timeout=20)[0])}
    ours = {path for path in imported if folder in path.parents}
    there = set(folder.rglob("*.py"))
    assert ours <= there
    # Not imported by a worker with the echo engine: what lays out bundles, what starts workers, other engines.
    unused = {str(path.relative_to(folder / "modelmora_worker")) for path in there - ours}
    light = {"__init__.py", "base.py", "echo.py", "tokens.py"}
    heavy = {f"engines/{path.name}" for path in Path(engines.__file__).parent.glob("*.py")}
    heavy -= {f"engines/{name}" for name in light}
    assert unused == {"bundle.py", "fork_server.py", *heavy}


def test_a_bundle_is_not_laid_over_something(data_dir):
    (data_dir.parent / "bundle").mkdir()
    with pytest.raises(FileExistsError):
        write_bundle(data_dir.parent / "bundle")
    assert [path.name for path in data_dir.parent.iterdir()] == ["bundle"]
