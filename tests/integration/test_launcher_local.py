"""Workers through the fork server: exit status, logs, and who is left when somebody is killed."""
# ruff: noqa: ASYNC110, ASYNC230, ASYNC240 - a test may read /proc in between, and yield until a coroutine got so far

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvloop
from modelmora import errors
from modelmora.worker.v1 import worker_pb2
from modelmora_lifecycle import launcher as launchers
from modelmora_lifecycle.launcher import LaunchSpec, LocalLauncher
from modelmora_runtime.worker_channel import WorkerChannel

SPEC = LaunchSpec(replica_uid="0123456789", engine="echo", label="models/acme/echo/versions/1")


@pytest.fixture
async def launcher(data_dir: Path) -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs")
    yield launcher
    await launcher.close()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork server that stands still for a moment tells later how a worker has ended, and is not taken for stuck."""
    monkeypatch.setattr(launchers, "_STATUS_SECONDS", 20.0)
    monkeypatch.setattr(launchers, "_FORK_IDLE_SECONDS", 60.0)


async def within(awaitable, seconds: float = 30):
    async with asyncio.timeout(seconds):
        return await awaitable


def gone(pidfd: int, seconds: float = 20) -> bool:
    """Whether the process of this pidfd ends within the time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


async def load(channel: WorkerChannel, **options: object) -> None:
    request = worker_pb2.LoadRequest(engine="echo", model_version=SPEC.label)
    request.options.update(options)
    await channel.load(request, timeout_seconds=30)


def infer(channel: WorkerChannel, text: str):
    return channel.infer(worker_pb2.InferRequest(texts=[worker_pb2.TextEntry(text=text)]))


async def test_a_worker_is_a_child_of_the_fork_server_and_not_of_us(launcher):
    worker = await launcher.launch(SPEC, timeout_seconds=30)
    assert parent_of(worker.pid) == launcher.fork_server_pid != os.getpid()
    assert os.getsid(worker.pid) == worker.pid
    assert Path(f"/proc/{worker.pid}/stat").read_bytes().rpartition(b")")[2].split()[19] == b"%d" % worker.start_ticks


async def test_the_command_line_and_the_environment_hold_no_key(launcher):
    worker = await launcher.launch(SPEC, timeout_seconds=30)
    for name in ("cmdline", "environ"):
        content = Path(f"/proc/{worker.pid}/{name}").read_bytes()
        assert worker.control_key.hex().encode() not in content
        assert worker.control_key not in content
    assert b"\0-P\0/" in Path(f"/proc/{worker.pid}/cmdline").read_bytes()


async def test_our_secrets_do_not_reach_the_worker(launcher, monkeypatch):
    monkeypatch.setenv("MODELMORA_DATABASE_URL", "postgresql://u:secret@h/d")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec = LaunchSpec(replica_uid="x", engine="echo", label="x", env={"EXTRA": "given"})
    worker = await launcher.launch(spec, timeout_seconds=30)
    environment = Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
    assert not [entry for entry in environment if b"secret" in entry]
    assert {b"OMP_NUM_THREADS=1", b"EXTRA=given", b"MALLOC_ARENA_MAX=1"} <= set(environment)


def test_relative_import_paths_do_not_reach_the_worker(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "libs", "/somewhere"]))
    assert launchers._environment({})["PYTHONPATH"] == "/somewhere"
    monkeypatch.setenv("PYTHONPATH", ".")
    assert "PYTHONPATH" not in launchers._environment({})


def test_everything_works_on_uvloop_too(data_dir):
    async def life() -> None:
        launcher = LocalLauncher(data_dir / "run", data_dir / "logs")
        worker = await launcher.launch(SPEC, timeout_seconds=30)
        control = await WorkerChannel.connect(worker.endpoint, worker.control_key)
        await load(control)
        assert (await anext(infer(control, "word " * 500_000))).done
        os.kill(launcher.fork_server_pid, signal.SIGKILL)
        other = await launcher.launch(SPEC, timeout_seconds=30)
        worker.kill()
        await within(worker.exited)
        await within(control.closed.wait())
        other.terminate()
        assert (await within(other.exited)).code == 0
        await launcher.close()

    uvloop.run(life())


async def test_no_descriptor_of_ours_reaches_the_worker(launcher, tmp_path):
    with open(tmp_path / "ours", "w") as file:
        os.set_inheritable(file.fileno(), True)
        worker = await launcher.launch(SPEC, timeout_seconds=30)
        targets = [os.readlink(entry) for entry in Path(f"/proc/{worker.pid}/fd").iterdir()]
    assert str(tmp_path / "ours") not in targets


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_killed_worker_is_reported_with_its_signal(launcher, number):
    worker = await launcher.launch(SPEC, timeout_seconds=30)
    os.kill(worker.pid, number)
    exit_ = await within(worker.exited)
    assert (exit_.code, exit_.signal) == (None, number)
    assert not Path(f"/proc/{worker.pid}").exists(), "not reaped"
    worker.kill()
    worker.terminate()


async def test_the_last_lines_of_a_crash_are_part_of_its_reason(launcher, data_dir):
    worker = await launcher.launch(SPEC, timeout_seconds=30)
    os.kill(worker.pid, signal.SIGSEGV)
    exit_ = await within(worker.exited)
    assert any("Segmentation fault" in line for line in exit_.log_tail)
    (log,) = (data_dir / "logs").glob("worker-acme_echo_versions_1-01234567-*.log")
    assert "Segmentation fault" in log.read_text()


async def test_a_worker_that_does_not_come_up_is_told_with_its_log(launcher, monkeypatch, tmp_path):
    package = tmp_path / "modelmora_worker"
    package.mkdir()
    package.joinpath("fork_server.py").symlink_to(launchers._worker_package() / "fork_server.py")
    package.joinpath("__main__.py").write_text("raise SystemExit('no engine today')")
    monkeypatch.setattr(launchers, "_worker_package", lambda: package)
    with pytest.raises(errors.LoadFailed, match=r"exited with status 1 before it listened(.|\n)*no engine today"):
        await launcher.launch(SPEC, timeout_seconds=30)


async def test_a_worker_that_does_not_listen_in_time_is_ended(launcher, monkeypatch, tmp_path):
    package = tmp_path / "modelmora_worker"
    package.mkdir()
    package.joinpath("fork_server.py").symlink_to(launchers._worker_package() / "fork_server.py")
    package.joinpath("__main__.py").write_text(f"open({str(tmp_path / 'pid')!r}, 'w').write('x'); input(); input()")
    monkeypatch.setattr(launchers, "_worker_package", lambda: package)
    with pytest.raises(errors.LoadFailed, match="did not listen within"):
        await launcher.launch(SPEC, timeout_seconds=1)
    assert not launcher._workers


async def test_a_cancelled_launch_leaves_no_process(launcher):
    first = await launcher.launch(SPEC, timeout_seconds=30)
    for _ in range(5):
        task = asyncio.create_task(launcher.launch(SPEC, timeout_seconds=30))
        while not launcher._root._asked:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    # The fork server answers in order: when this one is there, the others have been started and ended.
    last = await launcher.launch(SPEC, timeout_seconds=30)
    control = await WorkerChannel.connect(last.endpoint, last.control_key)
    async with asyncio.timeout(20):
        while children(launcher.fork_server_pid) != {first.pid, last.pid}:
            await control.ping(timeout_seconds=20)


def children(pid: int) -> set[int]:
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


async def test_output_is_drained_however_much_it_is(launcher, monkeypatch, tmp_path, data_dir):
    monkeypatch.setattr(launchers, "LOG_FILE_BYTES", 1 << 20)
    package = tmp_path / "modelmora_worker"
    package.mkdir()
    package.joinpath("fork_server.py").symlink_to(launchers._worker_package() / "fork_server.py")
    package.joinpath("__main__.py").write_text(
        "import os, sys\n"
        "for n in range(100_000): print('line', n, 'x' * 30)\n"
        "sys.stdout.flush()\n"
        "os.write(0, b'ready\\n'); os.read(0, 100); os._exit(3)\n"
    )
    monkeypatch.setattr(launchers, "_worker_package", lambda: package)
    worker = await launcher.launch(SPEC, timeout_seconds=30)
    exit_ = await within(worker.exited)
    assert exit_.code == 3
    assert len(exit_.log_tail) == launchers.LOG_TAIL_LINES
    assert exit_.log_tail[-1].startswith("line 99999 ")
    sizes = [path.stat().st_size for path in (data_dir / "logs").glob("worker-*")]
    assert len(sizes) == 2
    assert max(sizes) < (1 << 20) + 65536


async def test_workers_survive_the_fork_server_and_are_watched_on(launcher):
    worker = await launcher.launch(SPEC, timeout_seconds=30)
    control = await WorkerChannel.connect(worker.endpoint, worker.control_key)
    await load(control)
    first = launcher.fork_server_pid
    os.kill(first, signal.SIGKILL)
    other = await launcher.launch(SPEC, timeout_seconds=30)
    assert launcher.fork_server_pid not in (None, first)
    assert (await within(anext(infer(control, "still here")))).done
    assert not worker.exited.done()
    worker.kill()
    exit_ = await within(worker.exited)
    assert (exit_.code, exit_.signal) == (None, None)
    assert str(exit_) == "ended with unknown status"
    other.kill()
    assert (await within(other.exited)).signal == signal.SIGKILL


async def test_a_drained_worker_of_a_dead_fork_server_still_ends(launcher):
    worker = await launcher.launch(SPEC, timeout_seconds=30)
    os.kill(launcher.fork_server_pid, signal.SIGKILL)
    worker.terminate()
    await within(worker.exited)
    async with asyncio.timeout(20):
        while launcher.fork_server_pid is not None:  # of the two ends either may be heard of first
            await asyncio.sleep(0.01)


async def test_a_fork_server_killed_during_launches_leaks_nobody(launcher):
    await launcher.launch(SPEC, timeout_seconds=30)
    tasks = [asyncio.create_task(launcher.launch(SPEC, timeout_seconds=30)) for _ in range(4)]
    while len(launcher._root._asked) < 4:
        await asyncio.sleep(0)
    os.kill(launcher.fork_server_pid, signal.SIGKILL)
    workers = await asyncio.gather(*tasks)
    assert len({worker.pid for worker in workers}) == 4
    known = {worker.pid for worker in launcher._workers.values()}
    marker = str(launcher._run_dir).encode()
    async with asyncio.timeout(20):
        while workers_in(marker) - known:
            await asyncio.gather(*(WorkerChannel.connect(w.endpoint, w.control_key) for w in workers))


def workers_in(folder: bytes) -> set[int]:
    """Worker processes whose working directory is this folder."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.fsencode(os.readlink(entry / "cwd")) == folder:
                found.add(int(entry.name))
        except OSError:
            continue
    return found


async def test_close_ends_and_reaps_everyone(data_dir):
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs")
    workers = [await launcher.launch(SPEC, timeout_seconds=30) for _ in range(3)]
    fork_server = launcher.fork_server_pid
    await launcher.close()
    for pid in [fork_server, *(worker.pid for worker in workers)]:
        assert not Path(f"/proc/{pid}").exists()
    assert list((data_dir / "run").iterdir()) == []
    with pytest.raises(errors.ShuttingDown):
        await launcher.launch(SPEC, timeout_seconds=30)


async def test_what_a_worker_has_started_ends_with_it(launcher, monkeypatch, tmp_path):
    package = tmp_path / "modelmora_worker"
    package.mkdir()
    package.joinpath("fork_server.py").symlink_to(launchers._worker_package() / "fork_server.py")
    package.joinpath("__main__.py").write_text(
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "os.write(0, b'ready\\n'); os.read(0, 100000); os.read(0, 1)\n"
    )
    monkeypatch.setattr(launchers, "_worker_package", lambda: package)
    worker = await launcher.launch(SPEC, timeout_seconds=30)
    pidfd = os.pidfd_open(int((tmp_path / "pid").read_text()))
    worker.kill()
    await within(worker.exited)
    assert gone(pidfd)
    os.close(pidfd)


HOST = """
import asyncio, json, sys
from pathlib import Path
from modelmora.worker.v1 import worker_pb2
from modelmora_lifecycle.launcher import LaunchSpec, LocalLauncher
from modelmora_runtime.worker_channel import WorkerChannel

async def main():
    folder = Path(sys.argv[1])
    launcher = LocalLauncher(folder / "run", folder / "logs")
    workers = []
    for options in ({}, {"hold_gil_seconds": 600}, {"hang_after_batches": 0}):
        worker = await launcher.launch(LaunchSpec("uid", "echo", "label"), timeout_seconds=30)
        control = await WorkerChannel.connect(worker.endpoint, worker.control_key)
        request = worker_pb2.LoadRequest(engine="echo")
        request.options.update(options)
        await control.load(request, timeout_seconds=30)
        control.infer(worker_pb2.InferRequest(texts=[worker_pb2.TextEntry(text="a")]))
        workers.append((worker, control))
    print(json.dumps([launcher.fork_server_pid] + [worker.pid for worker, _ in workers]), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def host(data_dir: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a launcher and three workers: idle, holding the interpreter lock, hanging."""
    (tmp_path / "host.py").write_text(textwrap.dedent(HOST))
    # A decoy of every package a child could import, where Python would look for it without -P.
    for name in ("json", "socket", "modelmora", "modelmora_worker", "modelmora_runtime", "selectors", "google"):
        for folder in (tmp_path / "decoys", data_dir / "run"):
            (folder / name).mkdir(parents=True)
            (folder / name / "__init__.py").write_text("raise SystemExit('decoy')")
    process = subprocess.Popen(
        [sys.executable, "-P", str(tmp_path / "host.py"), str(data_dir)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path / "decoys",
        env=dict(os.environ),
    )
    yield process
    process.kill()
    process.wait(20)
    process.stdout.close()


def test_when_the_host_is_killed_all_its_processes_end_even_with_the_lock_held(host):
    pids = json.loads(host.stdout.readline())
    pidfds = [os.pidfd_open(pid) for pid in pids]
    assert not any(gone(pidfd, 0) for pidfd in pidfds)
    host.kill()
    assert all(gone(pidfd) for pidfd in pidfds)
    for pidfd in pidfds:
        os.close(pidfd)


def test_when_host_and_fork_server_are_killed_the_workers_end_too(host):
    pids = json.loads(host.stdout.readline())
    pidfds = [os.pidfd_open(pid) for pid in pids]
    os.kill(pids[0], signal.SIGKILL)
    assert gone(pidfds[0])
    assert not any(gone(pidfd, 0) for pidfd in pidfds[1:])
    host.kill()
    assert all(gone(pidfd) for pidfd in pidfds)
    for pidfd in pidfds:
        os.close(pidfd)
