"""Workers forked from the server of their family: what they are, and who is left when a fork server is killed."""
# ruff: noqa: ASYNC110, ASYNC240 - a test may look at /proc in between, and wait until it says so

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from modelmora.worker.v1 import worker_pb2
from modelmora_lifecycle import launcher as launchers
from modelmora_lifecycle.launcher import LaunchSpec, LocalLauncher, LocalWorker
from modelmora_lifecycle.memory import Meter
from modelmora_runtime.worker_channel import WorkerChannel
from modelmora_worker import fork_server
from modelmora_worker.engines import base
from third_party import install

SPEC = LaunchSpec(replica_uid="0123456789", engine="theirs", label="models/acme/theirs/versions/1", family="cheap")
ENGINE = """
from modelmora_worker.engines import base, echo
ROW = base.EngineRow(
    "theirs", "their_engine:Engine", frozenset({"txt2embed"}), needs_files=False,
    family="cheap", preload=("their_library",), environment={"THEIR_LIBRARY": "set"}, practice="their_engine:practise",
)
def practise(folder):
    (folder / "model").write_text("none")
    practice()
def practice(): pass
class Engine(echo.EchoEngine): pass
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module that the family `cheap` preloads, of an engine that a third party has installed."""
    install(tmp_path, "their_engine", ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    file = tmp_path / "their_library.py"
    file.write_text("import os; assert os.environ['THEIR_LIBRARY'] == 'set'")
    return file


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stands still for a moment, with the machine or alone, is waited for here, and not taken for stuck."""
    monkeypatch.setattr(launchers, "_SPARE_IDLE_SECONDS", 60.0)
    monkeypatch.setattr(launchers, "_FORK_IDLE_SECONDS", 60.0)
    monkeypatch.setattr(launchers, "_STATUS_SECONDS", 20.0)
    monkeypatch.setattr(launchers, "_COOL_SECONDS", 60.0)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Whoever reads it waits until it is opened."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


async def opened(gate: Path) -> None:
    """Returns when somebody waits there, and lets them go on."""
    async with asyncio.timeout(60):
        while True:
            try:
                os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:  # nobody reads yet
                await asyncio.sleep(0.01)
            else:
                return


@pytest.fixture
async def launcher(data_dir: Path, library: Path) -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs", spare_after_seconds=0.02)
    yield launcher
    await launcher.close()
    assert list((data_dir / "run").iterdir()) == []


async def launch(launcher: LocalLauncher, spec: LaunchSpec = SPEC) -> LocalWorker:
    return await launcher.launch(spec, timeout_seconds=30)


async def works(worker: LocalWorker) -> None:
    """It loads its engine and answers."""
    control = await WorkerChannel.connect(worker.endpoint, worker.control_key)
    await control.load(worker_pb2.LoadRequest(engine="theirs"), timeout_seconds=30)
    replies = [r async for r in control.infer(worker_pb2.InferRequest(texts=[worker_pb2.TextEntry(text="a")]))]
    assert replies[-1].done
    await control.close()


async def ended(pid: int) -> None:
    """Returns when the process is gone and reaped."""
    async with asyncio.timeout(30):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


def stat(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def parent_of(pid: int) -> int:
    return int(stat(pid)[1])


def family_pid(launcher: LocalLauncher) -> int:
    ((family, pid),) = launcher.fork_servers()
    assert family == "cheap"
    return pid


async def test_a_forked_worker_is_a_process_of_its_own_with_nothing_of_its_parents(launcher, data_dir):
    worker = await launch(launcher)
    assert worker.start_mode == "forked"
    assert parent_of(worker.pid) == family_pid(launcher) == worker.lender_pid
    assert parent_of(worker.lender_pid) == launcher.fork_server_pid
    assert os.getsid(worker.pid) == worker.pid
    assert os.readlink(f"/proc/{worker.pid}/cwd") == str((data_dir / "run").resolve())
    assert fork_server.start_ticks(worker.pid) == worker.start_ticks
    await works(worker)
    lent = {os.readlink(entry) for entry in Path(f"/proc/{worker.lender_pid}/fd").iterdir()} - {"/dev/null"}
    own = {os.readlink(entry) for entry in Path(f"/proc/{worker.pid}/fd").iterdir()}
    # Names of sockets and pipes have their number in them; those of event polls have not.
    assert own & lent <= {"anon_inode:[eventpoll]"}
    status = dict(
        line.split(":\t") for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines() if ":\t" in line
    )
    # What these tests were started with (nohup, a background job) is inherited.
    inherited = {n for n in signal.Signals if signal.getsignal(n) is signal.SIG_IGN}
    ignored = {n for n in signal.Signals if int(status["SigIgn"], 16) >> (n - 1) & 1}
    # Of a Python program the first two; the third by the worker itself, for who stops it is its launcher.
    assert ignored == {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT} | inherited


async def test_launches_wait_for_one_fork_server_that_is_still_importing(launcher, library, gate):
    library.write_text(f"open({str(gate)!r}).read()")
    launches = [asyncio.create_task(launch(launcher)) for _ in range(12)]
    await opened(gate)
    workers = await asyncio.gather(*launches)
    assert {worker.start_mode for worker in workers} == {"forked"}
    assert {parent_of(worker.pid) for worker in workers} == {family_pid(launcher)}


async def test_a_killed_family_server_touches_no_worker_and_comes_back(launcher):
    worker = await launch(launcher)
    first = family_pid(launcher)
    os.kill(first, signal.SIGKILL)
    await ended(first)
    other = await launch(launcher)
    assert family_pid(launcher) != first
    assert other.lender_pid == family_pid(launcher)
    await works(worker)
    assert parent_of(worker.pid) == launcher.fork_server_pid, "nobody would reap it"
    os.kill(worker.pid, signal.SIGSEGV)
    exit_ = await asyncio.wait_for(worker.exited, 30)
    assert exit_.signal == signal.SIGSEGV
    await ended(worker.pid)


async def test_a_killed_root_touches_nobody_and_forks_go_on_without_it(launcher):
    worker = await launch(launcher)
    family = family_pid(launcher)
    os.kill(launcher.fork_server_pid, signal.SIGKILL)
    other = await launch(launcher)
    assert parent_of(other.pid) == family == family_pid(launcher)
    worker.terminate()
    assert (await asyncio.wait_for(worker.exited, 30)).code == 0
    os.kill(family, signal.SIGKILL)
    spawned = await launch(launcher, LaunchSpec("x", "theirs", "x"))
    assert spawned.start_mode == "spawned"
    other.kill()
    assert str(await asyncio.wait_for(other.exited, 30)) == "ended with unknown status"


async def test_a_fork_server_killed_during_launches_leaks_nobody(launcher, data_dir):
    await launcher.warm("cheap")
    tasks = [asyncio.create_task(launch(launcher)) for _ in range(4)]
    while len(launcher._families["cheap"]._asked) < 4:
        await asyncio.sleep(0)
    os.kill(family_pid(launcher), signal.SIGKILL)
    workers = await asyncio.gather(*tasks)
    known = {worker.pid for worker in workers} | {family_pid(launcher)}
    assert len(known) == 5
    async with asyncio.timeout(30):
        while children(launcher.fork_server_pid) | children(family_pid(launcher)) != known | spares(launcher):
            await asyncio.sleep(0.01)


def spares(launcher: LocalLauncher) -> set[int]:
    return {pid for _, pid in launcher.spares()}


def children(pid: int) -> set[int]:
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@pytest.mark.parametrize(
    ("library_code", "refused"),
    [
        ("import no_such_library", True),
        ("import os; os._exit(3)", False),
        ("import __main__; __main__._ACCELERATORS = ('/dev/zero',); DEVICE = open('/dev/zero')", True),
    ],
    ids=["missing", "crashes", "opens-a-device"],
)
async def test_where_nothing_can_be_forked_workers_are_spawned(launcher, library, library_code, refused):
    library.write_text(library_code)
    worker = await launch(launcher)
    assert worker.start_mode == "spawned"
    assert worker.refused == refused, "a server that died may fork the next time"
    assert parent_of(worker.pid) == launcher.fork_server_pid
    await works(worker)


def test_what_a_release_does_not_have_is_passed_over_and_a_library_that_is_missing_is_not(library, monkeypatch):
    monkeypatch.syspath_prepend(library.parent)
    assert base.preload("cheap") == []
    row = base.find_row("theirs")
    monkeypatch.setitem(sys.modules["their_engine"].__dict__, "ROW", replace(row, preload=("json.nothing", "json")))
    assert base.preload("cheap") == ["json.nothing"]
    monkeypatch.setitem(sys.modules["their_engine"].__dict__, "ROW", replace(row, preload=("no_such_library",)))
    with pytest.raises(ImportError):
        base.preload("cheap")


async def test_a_worker_with_an_environment_of_its_own_is_spawned(launcher):
    worker = await launch(launcher, LaunchSpec("x", "theirs", "x", {"EXTRA": "given"}, "cheap"))
    assert worker.start_mode == "spawned"
    assert launcher.fork_servers() == []


async def test_an_idle_fork_server_ends_and_one_with_workers_stays(data_dir, library):
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs", fork_server_idle_seconds=0.1)
    worker = await launch(launcher)
    server = launcher._families["cheap"]
    server.last_used = 0.0
    launcher._look_for_idleness(server)
    assert not server.gone
    worker.kill()
    await worker.exited
    await ended(server.pid)
    assert launcher.fork_servers() == []
    again = await launch(launcher)
    assert again.start_mode == "forked"
    await launcher.close()


async def test_closing_ends_a_fork_server_that_is_still_importing(data_dir, library):
    library.write_text("import signal; signal.pause()")
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs")
    warming = asyncio.create_task(launcher.warm("cheap"))
    async with asyncio.timeout(30):
        while not launcher.fork_servers():
            await asyncio.sleep(0.01)
    pid = family_pid(launcher)
    await asyncio.wait_for(launcher.close(), 30)
    await asyncio.wait_for(warming, 30)
    assert not Path(f"/proc/{pid}").exists()


async def test_an_idle_fork_server_makes_room_for_another_family(launcher):
    worker = await launch(launcher)
    pid = family_pid(launcher)
    await launcher.cool("other")
    cooling = asyncio.create_task(launcher.cool("cheap"))
    await asyncio.sleep(0.2)
    assert launcher.fork_servers() == [("cheap", pid)], "it has a worker"
    worker.kill()
    await worker.exited
    await cooling
    assert launcher.fork_servers() == []
    assert not Path(f"/proc/{pid}").exists()
    assert (await launch(launcher)).start_mode == "forked"
    assert family_pid(launcher) != pid


async def test_a_fork_server_that_stays_in_use_ends_all_the_same_and_its_worker_lives_on(launcher, monkeypatch):
    monkeypatch.setattr(launchers, "_COOL_SECONDS", 0.1)
    worker = await launch(launcher)
    await asyncio.wait_for(launcher.cool("cheap"), 30)
    assert launcher.fork_servers() == []
    assert not worker.exited.done()
    assert Path(f"/proc/{worker.pid}").exists()


async def test_a_fork_server_that_is_stopped_ends_when_its_memory_is_needed(launcher):
    worker = await launch(launcher)
    worker.kill()
    await worker.exited
    pid = family_pid(launcher)
    os.kill(pid, signal.SIGSTOP)
    cooling = asyncio.create_task(launcher.cool("cheap"))
    await asyncio.sleep(0)
    assert launcher.fork_servers() == [("cheap", pid)], "it still has its memory"
    await asyncio.wait_for(cooling, 30)
    assert launcher.fork_servers() == []
    assert not Path(f"/proc/{pid}").exists()


async def spare_of(launcher: LocalLauncher) -> int:
    async with asyncio.timeout(60):
        while not launcher.spares(practised=True):
            await asyncio.sleep(0.01)
    ((family, pid),) = launcher.spares()
    assert family == "cheap"
    return pid


async def test_a_launch_takes_the_spare_and_the_next_one_gets_another(launcher, data_dir):
    first = await launch(launcher)
    spare = await spare_of(launcher)
    assert parent_of(spare) == family_pid(launcher)
    own = await launch(launcher, replace(SPEC, env={"EXTRA": "given"}))
    assert own.start_mode == "spawned"
    assert launcher.spares() == [("cheap", spare)]
    other = replace(SPEC, replica_uid="ffffffffff", label="models/acme/other/versions/1")
    workers = await asyncio.gather(launch(launcher, other), launch(launcher))
    assert [worker.pid == spare for worker in workers] == [True, False]
    assert {worker.lender_pid for worker in workers} == {family_pid(launcher)}
    assert len({worker.control_key for worker in (first, *workers)}) == 3
    await works(workers[0])
    workers[0].terminate()
    assert (await asyncio.wait_for(workers[0].exited, 30)).code == 0
    assert list((data_dir / "logs").glob("worker-acme_other_versions_1-ffffffff-*.log"))
    assert await spare_of(launcher) not in {spare, workers[1].pid}


async def practising(launcher: LocalLauncher, run_dir: Path) -> Path:
    """The folder it is done in, once it has begun."""
    async with asyncio.timeout(60):
        # It may begin before its server has told of it.
        while not (found := list(run_dir.glob("*.practice/theirs/model"))) or not launcher.spares():
            await asyncio.sleep(0.01)
    ((_, pid),) = launcher.spares()
    assert parent_of(pid) == family_pid(launcher)
    return found[0].parent.parent


async def test_a_spare_is_not_taken_before_it_has_practised(launcher, tmp_path, data_dir, gate):
    with (tmp_path / "their_engine.py").open("a") as file:
        file.write(f"def practice(): open({str(gate)!r}).read()\n")
    await launch(launcher)
    await practising(launcher, data_dir / "run")
    ((_, pid),) = launcher.spares()
    assert launcher.spares(practised=True) == []
    other = await launch(launcher)
    assert other.pid != pid
    await works(other)
    await opened(gate)
    assert await spare_of(launcher) == pid
    assert list((data_dir / "run").glob("*.practice")) == []
    worker = await launch(launcher)
    assert worker.pid == pid
    await works(worker)


async def test_a_practice_that_fails_harms_nobody(launcher, tmp_path, data_dir):
    with (tmp_path / "their_engine.py").open("a") as file:
        file.write("def practice(): raise ValueError('no')\n")
    await launch(launcher)
    pid = await spare_of(launcher)
    worker = await launch(launcher)
    assert worker.pid == pid
    await works(worker)
    (log,) = (data_dir / "logs").glob(f"worker-acme_theirs_versions_1-{SPEC.replica_uid[:8]}-3.log")
    assert "ValueError: no" in log.read_text()


@pytest.mark.parametrize("whose", ["its own", "its server's"])
async def test_a_spare_that_ends_while_it_practises_leaves_nothing(launcher, library, tmp_path, data_dir, whose):
    with (tmp_path / "their_engine.py").open("a") as file:
        file.write("def practice():\n import signal\n signal.pause()\n")
    await launch(launcher)
    folder = await practising(launcher, data_dir / "run")
    ((_, pid),) = launcher.spares()
    os.kill(pid if whose == "its own" else family_pid(launcher), signal.SIGKILL)
    await ended(pid)
    async with asyncio.timeout(30):
        while launcher.spares() or folder.exists():
            await asyncio.sleep(0.01)


async def test_what_a_killed_launcher_left_of_a_practice_goes_at_the_next_start(launcher, data_dir):
    gone = data_dir / "run" / "w3fffffff-1.practice"  # no process has such a number
    here = data_dir / "run" / f"w{os.getppid():x}-1.practice"
    for folder in (gone, here):
        (folder / "theirs").mkdir(parents=True)
    await launch(launcher)
    assert not gone.exists()
    assert here.exists()
    (here / "theirs").rmdir()
    here.rmdir()


async def test_a_spare_that_died_harms_no_launch(launcher):
    await launch(launcher)
    spare = await spare_of(launcher)
    os.kill(spare, signal.SIGKILL)
    worker = await launch(launcher)  # nobody has heard of its end yet
    assert worker.pid != spare
    await works(worker)
    spare = await spare_of(launcher)
    os.kill(spare, signal.SIGKILL)
    await ended(spare)
    await works(await launch(launcher))


async def test_a_spare_that_is_frozen_costs_a_launch_a_moment(launcher, monkeypatch):
    first = await launch(launcher)
    spare = await spare_of(launcher)
    os.kill(spare, signal.SIGSTOP)
    monkeypatch.setattr(launchers, "_SPARE_IDLE_SECONDS", 0.5)
    worker = await launcher.launch(SPEC, timeout_seconds=300)  # what would be waited for, if it were
    assert worker.pid != spare
    assert worker.lender_pid == first.lender_pid
    await works(worker)
    await ended(spare)


async def test_a_fork_server_that_is_frozen_is_replaced(launcher, monkeypatch):
    first = await launch(launcher)
    os.kill(await spare_of(launcher), signal.SIGKILL)
    server = family_pid(launcher)
    os.kill(server, signal.SIGSTOP)
    real = launchers._signs_of_work
    # So little time is only for this one: who starts another in its place stands still at times as well.
    monkeypatch.setattr(launchers, "_signs_of_work", lambda pid: real(pid) if pid == server else (time.monotonic(),))
    monkeypatch.setattr(launchers, "_FORK_IDLE_SECONDS", 0.3)
    monkeypatch.setattr(launchers, "_STATUS_SECONDS", 0.3)  # it does not tell of the spare's end
    worker = await launcher.launch(SPEC, timeout_seconds=300)
    assert worker.lender_pid == family_pid(launcher) != server
    await ended(server)
    for each in (first, worker):
        await works(each)


async def test_a_spare_goes_with_its_fork_server(launcher):
    worker = await launch(launcher)
    spare = await spare_of(launcher)
    os.kill(family_pid(launcher), signal.SIGKILL)
    await ended(spare)
    assert launcher.spares() == []
    worker.kill()
    await worker.exited
    await launch(launcher)
    spare = await spare_of(launcher)
    assert parent_of(spare) == family_pid(launcher)


async def test_a_fork_server_with_nothing_but_a_spare_is_idle(launcher):
    worker = await launch(launcher)
    spare, server = await spare_of(launcher), family_pid(launcher)
    worker.kill()
    await worker.exited
    assert launcher.spares() == [("cheap", spare)]
    await asyncio.wait_for(launcher.cool("cheap"), 30)
    assert launcher.fork_servers() == launcher.spares() == []
    await ended(spare)
    await ended(server)


async def test_a_spare_is_charged_with_its_server_before_it_is_there(launcher):
    await launch(launcher)
    servers = launcher.fork_servers()
    before = Meter().measure([], servers).shared["fork-servers/cheap"].memory["host"]
    spare = await spare_of(launcher)
    resident = sum(
        int(line.split()[1]) * 1024
        for line in Path(f"/proc/{family_pid(launcher)}/status").read_text().splitlines()
        if line.startswith(("RssAnon", "RssFile", "RssShmem", "VmSwap"))
    )
    private = sum(
        int(line.split()[1]) * 1024
        for line in Path(f"/proc/{spare}/smaps_rollup").read_text().splitlines()
        if line.startswith("Private_Dirty")
    )
    # Read last: what has just begun still grows.
    after = Meter().measure([], servers, launcher.spares()).shared["fork-servers/cheap"].memory["host"]
    assert before > resident * 1.02
    assert after >= resident + private
