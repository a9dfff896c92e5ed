"""The memory ledger: who is charged how many bytes on which device, and what is free.

A reservation is a vector over devices, granted whole or not at all. It is made with the predicted bytes before a worker
is launched, becomes the measured bytes after its load, and is gone only when the process has been reaped: memory that a
dying process still holds is not free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from modelmora.errors import MemoryBusy

Vector = Mapping[str, int]
"""Bytes by device name. A device that is not named has 0."""


def plus(*vectors: Vector) -> dict[str, int]:
    """The sum, device by device."""
    total: dict[str, int] = {}
    for vector in vectors:
        for device, memory_bytes in vector.items():
            total[device] = total.get(device, 0) + memory_bytes
    return total


def minus(left: Vector, right: Vector) -> dict[str, int]:
    """The difference, device by device; may be negative."""
    return {device: left.get(device, 0) - right.get(device, 0) for device in {**left, **right}}


def largest(*vectors: Vector) -> dict[str, int]:
    """The largest of each device."""
    return {device: max(v.get(device, 0) for v in vectors) for device in plus(*vectors)}


def least(*vectors: Vector) -> dict[str, int]:
    """The smallest of each device."""
    return {device: min(v.get(device, 0) for v in vectors) for device in plus(*vectors)}


def covers(room: Vector, need: Vector) -> bool:
    """Whether `need` goes into `room` on every device it names. A device it names with 0 bytes does not count."""
    return all(memory_bytes <= room.get(device, 0) for device, memory_bytes in need.items() if memory_bytes > 0)


def positive(vector: Vector) -> dict[str, int]:
    """Only what is above 0."""
    return {device: memory_bytes for device, memory_bytes in vector.items() if memory_bytes > 0}


@dataclass(frozen=True, slots=True)
class Ledger:
    """An immutable page: every change gives the next one."""

    ceiling: Vector
    """What could be ours at best: the memory that exists, less a reserve."""
    foreign: Vector = field(default_factory=dict)
    """Used by programs that are not ours; it shrinks the budget."""
    charges: Mapping[str, Vector] = field(default_factory=dict)
    """By owner: the uid of a replica."""

    @property
    def budget(self) -> dict[str, int]:
        return {device: max(0, top - self.foreign.get(device, 0)) for device, top in self.ceiling.items()}

    @property
    def charged(self) -> dict[str, int]:
        return plus(*self.charges.values())

    @property
    def free(self) -> dict[str, int]:
        """Budget less charges; negative where workers took more than was predicted or others took our place."""
        return minus(self.budget, self.charged)

    @property
    def overdraft(self) -> dict[str, int]:
        """Bytes charged beyond the budget, by device; empty when all is well."""
        return positive(minus(self.charged, self.budget))

    def charge_of(self, owner: str) -> Vector:
        return self.charges.get(owner, {})

    def sum_of(self, owners: Iterable[str]) -> dict[str, int]:
        return plus(*(self.charge_of(owner) for owner in owners))

    def reserve(self, owner: str, need: Vector) -> Ledger:
        """Charges `need` to `owner`, on all devices or none. MemoryBusy when it does not fit; ValueError when the owner
        is charged already or a figure is negative."""
        if owner in self.charges:
            raise ValueError(f"{owner} has a reservation already")
        if any(memory_bytes < 0 for memory_bytes in need.values()):
            raise ValueError(f"{owner} asks for a negative number of bytes")
        if not covers(self.free, need):
            raise MemoryBusy(f"{dict(need)} bytes do not fit into {self.free}")
        return replace(self, charges={**self.charges, owner: dict(need)})

    def settle(self, owner: str, measured: Vector) -> Ledger:
        """Replaces the prediction by what was measured. More than was predicted is charged all the same."""
        if owner not in self.charges:
            raise ValueError(f"{owner} has no reservation")
        return replace(self, charges={**self.charges, owner: {device: max(0, b) for device, b in measured.items()}})

    def release(self, owner: str) -> Ledger:
        """Gives back the charge of a process that has been reaped; nothing happens when there is none."""
        return replace(self, charges={other: charge for other, charge in self.charges.items() if other != owner})

    def observe(self, foreign: Vector) -> Ledger:
        """The same page with other programs using `foreign` bytes."""
        return replace(self, foreign={device: max(0, b) for device, b in foreign.items()})
