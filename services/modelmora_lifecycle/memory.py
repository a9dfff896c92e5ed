"""Who has how much memory, measured from outside: it works while a worker holds its interpreter lock, and one that lies
about itself is found out.

What a process alone has (USS, and what of it was swapped out) is its own. Of a fork the clean pages of files are not:
they are those of its server's libraries, and whether it has one alone depends on who else on this machine computes.
What it shares is charged once: pages of a fork server to that server, whole, and mapped files of a model to the
artifact. What workers have from a fork server
that is gone is charged once too, to `fork-servers/<its pid>`, while one of them lives: the death of a neighbour must
not look like growth and be held against them. Everything else in use belongs to other programs.

`smaps_rollup` walks all page tables of a process, milliseconds for a large one. So it is read again only when the
counters in `status`, which cost nothing, have moved; between two such readings the private bytes follow the counters.
A peak between two samples is seen too: the kernel keeps the highest resident size, which is reset after each look.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from modelmora_runtime import machine

from modelmora_lifecycle.devices import Accelerators
from modelmora_lifecycle.domain import HOST
from modelmora_lifecycle.ledger import Vector, plus

_MOVED_BYTES = 1024 * 1024
"""Counters that moved by less leave the last full reading as it is."""
_LENDERS_REMEMBERED = 64
_SPARE_PART = 12
"""Of what a fork server has, the part that a spare worker of it may have for its own once it has practised (a
fifteenth, with torch). It is charged with the server whether the spare is there now or not: so none comes at a bad
moment."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_COUNTERS = {b"RssAnon", b"RssFile", b"RssShmem", b"VmHWM", b"VmSwap"}


@dataclass(frozen=True, slots=True)
class Process:
    """A worker to measure. `lender`: pid of the fork server it was forked from, 0 when it was spawned; `folder`: the
    files of the artifact `digest`; `cache`: what its engine has made of them, which is the worker's own."""

    owner: str
    pid: int
    lender: int = 0
    digest: str = ""
    folder: str = ""
    cache: str = ""


@dataclass(frozen=True, slots=True)
class Shared:
    """What several processes share, charged once."""

    memory: Vector
    users: frozenset[str] = frozenset()
    """Owners of the processes that use it; empty: it is there without them."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured at one moment; bytes by device."""

    private: Mapping[str, Vector] = field(default_factory=dict)
    """By owner. Who is not named was gone."""
    peak: Mapping[str, Vector] = field(default_factory=dict)
    """By owner: the highest since the sample before."""
    shared: Mapping[str, Shared] = field(default_factory=dict)
    """By owner: `fork-servers/<family>`, `artifacts/<digest>`."""
    foreign: Vector = field(default_factory=dict)
    """In use by programs that are not ours."""
    total: Vector = field(default_factory=dict)
    limited_by: Mapping[str, str] = field(default_factory=dict)
    """What limits `total`: `machine`, `cgroup` or `device`."""


@dataclass(slots=True)
class _Reading:
    """The last full reading of a process, and its counters at that moment."""

    anonymous: int
    file: int
    shmem: int
    swap: int
    private: int
    proportional: int
    own_anonymous: int
    """Anonymous pages, each divided by the number of processes that have it."""
    resident: int = 0
    mapped: int = 0
    """Resident pages of the artifact's files, and those of them that nobody else maps."""
    mapped_private: int = 0
    clean: int = 0
    """Private, of files, and as they are on the disk."""
    cached: int = 0
    """Private, of the files in its cache."""

    def own(self, *, forked: bool = True) -> int:
        """What of the private bytes belongs to nobody else."""
        return self.private - max(self.mapped_private, self.clean - self.cached if forked else 0)


class Meter:
    """Measures; keeps what it read before. Blocks for milliseconds: call it in a thread, one at a time."""

    def __init__(self) -> None:
        self._accelerators = Accelerators()
        self._readings: dict[int, _Reading] = {}
        self._lent: dict[int, int] = {}
        """By worker: bytes that it shared with its fork server, and whoever else, when that was seen last."""
        self._lenders: dict[int, int] = {}
        """By fork server, the last seen last: its anonymous memory, which every fork of it begins with."""
        self._foreign: Vector = {}
        """As it was told last."""

    def measure(
        self,
        workers: Sequence[Process],
        fork_servers: Iterable[tuple[str, int]],
        spares: Iterable[tuple[str, int]] = (),
        started: Iterable[int] = (),
    ) -> Sample:
        """A sample of these workers, of fork servers and their spare workers (family, pid), and of the machine.
        `started`: all that are ours; what one of them has before it is measured is not another program's."""
        private: dict[str, Vector] = {}
        peak: dict[str, Vector] = {}
        shared: dict[str, Shared] = {}
        mapped: dict[str, tuple[int, set[str]]] = {}
        estates: dict[int, tuple[int, set[str]]] = {}
        lents = dict(self._lent)
        ours = 0
        # Before anybody is read: what a worker takes meanwhile is its own, and must not seem to be another program's.
        limit, available_bytes = machine.limit(), machine.available_bytes()
        servers = {family: pid for family, pid in fork_servers if not gone(pid)}
        waiting = dict(spares)
        seen = {*servers.values(), *waiting.values()}
        launching = set(started) - seen - {worker.pid for worker in workers}
        seen |= launching
        if {worker.pid for worker in workers} | seen != self._readings.keys():
            self._readings.clear()  # who comes or goes changes what the others have alone
        for family, pid in servers.items():
            found = self._read(pid, "")
            if found is not None:
                reading, counters = found
                ours += reading.own_anonymous
                self._lenders.pop(pid, None)
                self._lenders[pid] = reading.anonymous
                taken = sum(counters[name] for name in (b"RssAnon", b"RssFile", b"RssShmem", b"VmSwap"))
                spare = self._read(waiting[family], "") if family in waiting else None
                if spare is not None:
                    ours += spare[0].own_anonymous
                apart = max(taken // _SPARE_PART, spare[0].own() if spare is not None else 0)
                shared[f"fork-servers/{family}"] = Shared({HOST: taken + apart})
        for pid in launching:
            found = self._read(pid, "")
            ours += found[0].own_anonymous if found is not None else 0
        on_devices = self._accelerators.read()
        for worker in workers:
            found = self._read(worker.pid, worker.folder, worker.cache)
            if found is None:
                continue
            seen.add(worker.pid)
            reading, counters = found
            moved = counters[b"RssAnon"] + counters[b"VmSwap"] - reading.anonymous - reading.swap
            orphan = worker.lender > 0 and worker.lender not in seen
            if not orphan:
                own = reading.own(forked=worker.lender > 0)
                host = max(0, own + moved)
                lents[worker.pid] = max(0, reading.resident - reading.mapped - own)
            elif worker.pid in self._lent or self._lenders:
                # One that was never seen beside its server began with all that the server had; what a server had that
                # was never seen itself, the others like it tell.
                lender = self._lenders.get(worker.lender, max(self._lenders.values(), default=0))
                inherited = min(lender, reading.anonymous)
                lent = lents.setdefault(worker.pid, inherited + max(0, reading.file - reading.mapped))
                host = max(0, reading.resident + reading.swap - reading.mapped - lent + moved)
                largest_lent, borrowers = estates.setdefault(worker.lender, (0, set()))
                estates[worker.lender] = max(largest_lent, lent), borrowers | {worker.owner}
            else:
                host = max(0, reading.proportional + moved)
            ours += max(0, reading.own_anonymous + moved)
            devices = {name: device.used_by.get(worker.pid, 0) for name, device in on_devices.items()}
            private[worker.owner] = {HOST: host, **{name: used for name, used in devices.items() if used}}
            # What came and went since the last look was anonymous, unless files did: of those the larger count.
            resident = counters[b"RssAnon"] + max(counters[b"RssFile"], reading.file)
            resident += max(counters[b"RssShmem"], reading.shmem)
            peak[worker.owner] = {**private[worker.owner], HOST: host + max(0, counters[b"VmHWM"] - resident)}
            if worker.digest and reading.mapped and not (orphan and worker.pid not in lents):
                largest, users = mapped.setdefault(worker.digest, (0, set()))
                mapped[worker.digest] = max(largest, reading.mapped), users | {worker.owner}
        if any(gone(pid) for pid in servers.values()):
            # It died in between: some were read beside it and some without it, and all it had seemed theirs.
            self._readings.clear()
            return self.measure(workers, servers.items(), waiting.items(), launching)
        shared |= {
            f"fork-servers/{lender}": Shared({HOST: size}, frozenset(users))
            for lender, (size, users) in estates.items()
        }
        self._lent = {pid: lent for pid, lent in lents.items() if pid in seen}
        # A server may die while a fork of it is not among the workers yet, so the dead are remembered for a while.
        while len(self._lenders) > _LENDERS_REMEMBERED:
            del self._lenders[next(iter(self._lenders))]
        shared |= {
            f"artifacts/{digest}": Shared({HOST: size}, frozenset(users)) for digest, (size, users) in mapped.items()
        }
        self._readings = {pid: reading for pid, reading in self._readings.items() if pid in seen}
        foreign = {HOST: max(0, limit.total_bytes - available_bytes - ours)}
        if any(worker.owner not in private for worker in workers):
            # The memory of one that dies comes back in its time, and cannot be read meanwhile: it is charged to it
            # until then, and is nobody else's.
            foreign[HOST] = min(foreign[HOST], self._foreign.get(HOST, foreign[HOST]))
        on_them = plus(*private.values())
        for name, device in on_devices.items():
            foreign[name] = max(0, device.used_bytes - on_them.get(name, 0))
        self._foreign = foreign
        return Sample(
            private=private,
            peak=peak,
            shared=shared,
            foreign=foreign,
            total={HOST: limit.total_bytes, **{name: device.total_bytes for name, device in on_devices.items()}},
            limited_by={HOST: limit.limited_by, **dict.fromkeys(on_devices, "device")},
        )

    def _read(self, pid: int, folder: str, cache: str = "") -> tuple[_Reading, dict[bytes, int]] | None:
        """The full reading as it was last taken, and the counters now; None when the process is gone."""
        try:
            counters = _counters(pid)
            before = self._readings.get(pid)
            file_moved = before is None or abs(counters[b"RssFile"] - before.file) > _MOVED_BYTES
            if before is None or file_moved or abs(counters[b"RssAnon"] - before.anonymous) > _MOVED_BYTES:
                reading = self._readings[pid] = _full(pid, counters)
                if before is not None and not file_moved:
                    reading.mapped, reading.mapped_private = before.mapped, before.mapped_private
                    reading.cached = before.cached
                else:
                    reading.mapped, reading.mapped_private = mapped_bytes(pid, folder) if folder else (0, 0)
                    reading.cached = mapped_bytes(pid, cache)[1] if cache else 0
            _reset_peak(pid)
        except (OSError, KeyError):
            # Gone, or a zombie, which has no memory.
            self._readings.pop(pid, None)
            return None
        return self._readings[pid], counters


def gone(pid: int) -> bool:
    """Whether a process has no memory any more."""
    try:
        _counters(pid)
    except (OSError, KeyError):
        return True
    return False


def _counters(pid: int) -> dict[bytes, int]:
    found = {}
    with open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            name, _, rest = line.partition(b":")
            if name in _COUNTERS:
                found[name] = int(rest.split()[0]) * 1024
    found[b"RssAnon"]  # a zombie has none: KeyError
    return found


def _full(pid: int, counters: Mapping[bytes, int]) -> _Reading:
    figures = dict.fromkeys(
        (b"Rss", b"Pss", b"Pss_Anon", b"Private_Clean", b"Private_Dirty", b"Private_Hugetlb", b"SwapPss", b"Anonymous"),
        0,
    )
    with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for line in file:
            name, _, rest = line.partition(b":")
            if name in figures:
                figures[name] = int(rest.split()[0]) * 1024
    own = figures[b"Private_Clean"] + figures[b"Private_Dirty"] + figures[b"Private_Hugetlb"]
    return _Reading(
        # Of the same moment as the rest, where the counters are a moment older.
        anonymous=figures[b"Anonymous"],
        file=counters[b"RssFile"],
        shmem=counters[b"RssShmem"],
        swap=counters[b"VmSwap"],
        private=own + figures[b"SwapPss"],
        proportional=figures[b"Pss"] + figures[b"SwapPss"],
        own_anonymous=figures[b"Pss_Anon"],
        resident=figures[b"Rss"],
        clean=figures[b"Private_Clean"],
    )


def mapped_bytes(pid: int, folder: str) -> tuple[int, int]:
    """(resident, nobody else's) bytes of the files in a folder that a process has mapped, and not written to, by its
    page map: `smaps` would walk all the rest too. Raises OSError when it is gone."""
    needle = os.fsencode(os.path.realpath(folder)) + b"/"
    with open(f"/proc/{pid}/maps", "rb") as file:
        ranges = [line.split(b" ", 1)[0] for line in file if needle in line]
    resident = private = 0
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        for start, end in ([int(limit, 16) // _PAGE_BYTES for limit in limits.split(b"-")] for limits in ranges):
            file.seek(8 * start)
            # The top byte of each entry has 0x80: present, 0x20: of a file, 0x01: mapped by nobody else.
            flags = file.read(8 * (end - start))[7::8]
            for value in set(flags):
                if value & 0xA0 == 0xA0:
                    resident += flags.count(value) * _PAGE_BYTES
                    private += flags.count(value) * _PAGE_BYTES * (value & 1)
    return resident, private


def _reset_peak(pid: int) -> None:
    try:
        with open(f"/proc/{pid}/clear_refs", "wb") as file:
            file.write(b"5")
    except PermissionError:
        pass  # the peak is then that of the whole life, and more is charged than need be
