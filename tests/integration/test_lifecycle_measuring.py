"""What the meter says of processes whose memory is known: own, shared, mapped, orphaned, and a peak in between."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelmora_lifecycle import memory
from modelmora_lifecycle.memory import Meter, Process
from modelmora_runtime import machine
from modelmora_worker import service

MIB = 1024 * 1024
SIZE = 64 * MIB
SLACK = 12 * MIB
"""An interpreter's own."""

# Takes 64 MiB, forks as often as asked; a child maps a file and takes what it is told to, a line a command.
FAMILY = """
import mmap, os, sys
def touched(size):
    found = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size, 4096): found[at] = 1
    return found
taken = [touched(64 << 20)]
pipes = [os.pipe() for _ in range(int(sys.argv[1]))]
for read, _ in pipes:
    if os.fork() == 0:
        commands = os.fdopen(read)
        with open(sys.argv[2], "rb") as file:
            weights = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
            sum(weights[at] for at in range(0, len(weights), 4096))
        os.write(1, b"%d\\n" % os.getpid())
        for line in commands:
            if line == "peak\\n": touched(48 << 20).close()
            else: taken.append(touched(int(line) << 20))
            os.write(1, b"done\\n")
        os._exit(0)
for line in sys.stdin:
    number, _, command = line.partition(" ")
    os.write(pipes[int(number)][1], command.encode())
"""


class Family:
    """A parent with 64 MiB and its forks, which share them."""

    def __init__(self, count: int, weights: Path) -> None:
        self.parent = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", FAMILY, str(count), str(weights)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.parent.stdout is not None
        self.children = sorted(int(self.parent.stdout.readline()) for _ in range(count))

    def tell(self, number: int, command: str) -> None:
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        self.parent.stdin.write(f"{number} {command}\n")
        self.parent.stdin.flush()
        assert self.parent.stdout.readline() == "done\n"

    def close(self) -> None:
        for pid in self.children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.parent.kill()
        self.parent.communicate()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    file = folder / "model.safetensors"
    file.write_bytes(os.urandom(MIB) * 32)
    return file


@pytest.fixture
def family(weights: Path) -> Iterator[Family]:
    family = Family(2, weights)
    yield family
    family.close()


def processes(family: Family, weights: Path) -> list[Process]:
    lender = family.parent.pid
    return [Process(f"r{n}", pid, lender, "sha256:x", str(weights.parent)) for n, pid in enumerate(family.children)]


def near(value: int, expected: int) -> bool:
    return expected <= value < expected + SLACK


def test_what_forks_share_is_charged_once_and_what_they_take_is_their_own(family: Family, weights: Path) -> None:
    meter, servers = Meter(), [("cheap", family.parent.pid)]
    before = meter.measure(processes(family, weights), servers)
    assert all(near(taken["host"], 0) for taken in before.private.values())
    assert near(before.shared["fork-servers/cheap"].memory["host"], SIZE + SIZE // memory._SPARE_PART)
    mapped = before.shared["artifacts/sha256:x"]
    assert mapped.memory == {"host": 32 * MIB}
    assert mapped.users == {"r0", "r1"}
    family.tell(0, "24")
    after = meter.measure(processes(family, weights), servers)
    growth = {owner: after.private[owner]["host"] - before.private[owner]["host"] for owner in after.private}
    assert sorted(round(size / (4 * MIB)) for size in growth.values()) == [0, 6]
    assert after.foreign["host"] > 0
    assert after.total["host"] > after.foreign["host"]


def test_a_peak_between_two_samples_is_seen_once(family: Family, weights: Path) -> None:
    meter = Meter()
    meter.measure(processes(family, weights), [("cheap", family.parent.pid)])
    family.tell(1, "peak")
    seen = meter.measure(processes(family, weights), [("cheap", family.parent.pid)])
    peaks = {owner: seen.peak[owner]["host"] - seen.private[owner]["host"] for owner in seen.peak}
    assert sorted(round(size / (8 * MIB)) for size in peaks.values()) == [0, 6], peaks
    again = meter.measure(processes(family, weights), [("cheap", family.parent.pid)])
    assert all(again.peak[owner]["host"] - again.private[owner]["host"] < MIB for owner in again.peak)


def test_what_came_from_a_fork_server_that_is_gone_is_charged_once_and_to_nobody(family: Family, weights: Path) -> None:
    meter, lender = Meter(), family.parent.pid
    found = processes(family, weights)
    before = meter.measure(found, [("cheap", lender)])
    os.kill(lender, signal.SIGKILL)
    family.parent.wait()
    after = meter.measure(found, [("cheap", lender)])  # who asks may not have heard of it yet
    for owner, taken in after.private.items():
        assert abs(taken["host"] - before.private[owner]["host"]) < SLACK, "nothing of its own has grown"
    assert after.shared.keys() == {f"fork-servers/{lender}", "artifacts/sha256:x"}
    estate = after.shared[f"fork-servers/{lender}"]
    assert near(estate.memory["host"], SIZE)
    assert estate.users == {"r0", "r1"}
    os.kill(family.children[0], signal.SIGKILL)
    alone = meter.measure(found[1:], [])
    assert abs(alone.private["r1"]["host"] - before.private["r1"]["host"]) < SLACK, "nor when it is the last of them"


def test_a_worker_that_was_never_seen_beside_its_fork_server_does_not_pay_for_it(family: Family, weights: Path) -> None:
    meter, lender = Meter(), family.parent.pid
    meter.measure([], [("cheap", lender)])
    os.kill(lender, signal.SIGKILL)
    family.parent.wait()
    meter.measure([], [])  # its forks do not count as workers yet
    sample = meter.measure(processes(family, weights), [])
    assert all(taken["host"] < SLACK for taken in sample.private.values())
    assert near(sample.shared[f"fork-servers/{lender}"].memory["host"], SIZE)


def test_who_had_lost_its_fork_server_before_is_charged_its_part(family: Family, weights: Path) -> None:
    found = processes(family, weights)
    os.kill(family.parent.pid, signal.SIGKILL)
    family.parent.wait()
    orphans = Meter().measure([*found, Process("never", 2**22 + 1)], [("gone", 2**22 + 1)])
    assert orphans.private.keys() == {"r0", "r1"}
    assert orphans.shared == {}
    total = sum(taken["host"] for taken in orphans.private.values())
    # The pages of the dead server and of the file, half of them each.
    assert total >= SIZE + 32 * MIB - MIB
    assert total < SIZE + 32 * MIB + 3 * SLACK


def test_a_full_reading_is_taken_only_when_something_has_moved(
    family: Family, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter, readings = Meter(), []
    full = memory._full
    monkeypatch.setattr(memory, "_full", lambda *a: readings.append(a[0]) or full(*a))
    for _ in range(5):
        meter.measure(processes(family, weights), [("cheap", family.parent.pid)])
    assert len(readings) == 3
    family.tell(0, "24")
    for _ in range(5):
        meter.measure(processes(family, weights), [("cheap", family.parent.pid)])
    assert len(readings) == 4


def test_only_mapped_files_of_the_folder_count(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(8 * MIB))
    with other.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        sum(mapped[at] for at in range(0, len(mapped), 4096))
        assert memory.mapped_bytes(os.getpid(), str(weights.parent)) == (0, 0)
        assert memory.mapped_bytes(os.getpid(), str(tmp_path))[0] == 8 * MIB


def test_of_mapped_files_what_was_written_to_is_anonymous_and_what_a_fork_has_too_is_shared(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(8 * MIB))
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
        sum(mapped[at] for at in range(0, 8 * MIB, 4096))
        assert memory.mapped_bytes(os.getpid(), str(tmp_path)) == (8 * MIB, 8 * MIB) == own_mapped(tmp_path, 0)
        for at in range(0, 2 * MIB, 4096):
            mapped[at] = 1
        assert memory.mapped_bytes(os.getpid(), str(tmp_path)) == (6 * MIB, 6 * MIB) == own_mapped(tmp_path, 2)
        with (tmp_path / "file").open("rb") as again, mmap.mmap(again.fileno(), 0, prot=mmap.PROT_READ) as twice:
            # The same pages a second time: nobody has them alone any more, but for those that the first has copies of.
            sum(twice[at] for at in range(0, 8 * MIB, 4096))
            resident, private = memory.mapped_bytes(os.getpid(), str(tmp_path))
            assert (resident, private) == ((6 + 8) * MIB, 2 * MIB)


def test_clean_pages_of_files_are_never_a_forks_own() -> None:
    reading = memory._Reading(
        anonymous=0, file=0, shmem=0, swap=0, private=100, proportional=0, own_anonymous=0, clean=30
    )
    assert (reading.own(), reading.own(forked=False)) == (70, 100)
    reading.mapped_private = 20  # of the artifact, so nobody's in either case
    assert (reading.own(), reading.own(forked=False)) == (70, 80)
    reading.mapped_private = 40  # and ten of it are not on the disk yet
    assert (reading.own(), reading.own(forked=False)) == (60, 60)
    reading.mapped_private, reading.cached = 0, 25  # made of the artifact by its engine: nobody else is charged with it
    assert (reading.own(), reading.own(forked=False)) == (95, 100)


def test_a_worker_that_has_practised_does_not_walk_its_memory_again_at_its_load(tmp_path: Path) -> None:
    """In a process of its own: what the tests' children have shared or given back is nobody's here."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply_async(_practised, (tmp_path,)).get(60)


def _practised(tmp_path: Path) -> None:
    whole = service.Memory(forked=True)
    first = whole.read(0.0)
    (tmp_path / "weights").write_bytes(bytes(24 * MIB))
    with (
        (tmp_path / "weights").open("rb") as file,
        mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as weights,
        mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE) as taken,
    ):
        for at in range(0, 24 * MIB, 4096):
            weights[at]  # the artifact's, so not its own
            taken[at % (16 * MIB)] = 1
        # Nothing but counters is looked at: they do not know how long ago it was read in full.
        second = whole.after_load(1e9, str(tmp_path))
        assert 15 * MIB < second - first < 20 * MIB
        assert abs(whole.private_bytes(1e9) - second) < 2 * MIB
        assert abs(service.Memory(forked=True).after_load(0.0, str(tmp_path)) - second) < 4 * MIB
        cached = whole.after_load(2e9, "", str(tmp_path)) - second
        assert abs(cached - 24 * MIB) < 2 * MIB, "what its engine keeps is its own"


def own_mapped(folder: Path, written_mib: int) -> tuple[int, int]:
    """The same by `smaps`, and by the worker's own reading."""
    found = service._mapped_bytes(str(folder))
    with open("/proc/self/smaps", "rb") as file:
        (mapping,) = [one for one in file.read().split(b"VmFlags:") if os.fsencode(folder) in one]
    figures = {line.split(b":")[0]: int(line.split()[1]) * 1024 for line in mapping.splitlines() if b" kB" in line}
    assert figures[b"Anonymous"] == written_mib * MIB
    return figures[b"Rss"] - figures[b"Anonymous"], found


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[str]]:
    """A process with 64 MiB of its own."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "taken = b'x' * (64 << 20); print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_the_memory_of_a_worker_that_dies_is_not_another_programs(
    worker: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes its time to give it back, and nobody can read meanwhile whose it is."""
    monkeypatch.setattr(machine, "available_bytes", lambda: machine.total_bytes() // 2)
    meter, there = Meter(), [Process("r0", worker.pid)]
    before = meter.measure(there, []).foreign["host"]
    worker.kill()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(2):
        dying = meter.measure(there, [])
        assert not dying.private
        assert dying.foreign["host"] == before
    assert near(meter.measure([], []).foreign["host"] - before, SIZE), "what is used when it is gone is another's"


def test_the_memory_of_a_worker_that_is_being_launched_is_not_another_programs(
    worker: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It imports for seconds before it says that it is there, and what it will take is reserved already."""
    monkeypatch.setattr(machine, "available_bytes", lambda: machine.total_bytes() // 2)
    without = Meter().measure([], []).foreign["host"]
    launching = Meter().measure([], [], started=[worker.pid])
    assert not launching.private
    assert near(without - launching.foreign["host"], SIZE)
    measured = Meter().measure([Process("r0", worker.pid)], [], started=[worker.pid])
    assert abs(measured.foreign["host"] - launching.foreign["host"]) < SLACK, "it counts once"


def test_what_a_worker_takes_while_it_is_measured_is_not_another_programs(
    worker: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    available, counters, there = machine.total_bytes() // 2, memory._counters, [Process("r0", worker.pid)]
    monkeypatch.setattr(machine, "available_bytes", lambda: available)
    before = Meter().measure(there, []).foreign["host"]

    def read(pid: int) -> dict[bytes, int]:
        nonlocal available
        available -= SIZE
        return counters(pid)

    monkeypatch.setattr(memory, "_counters", read)
    assert abs(Meter().measure(there, []).foreign["host"] - before) < SLACK
