"""The memory ledger: who is charged how many bytes on which device, and what is free.

A reservation is a vector over devices, granted whole or not at all. It is made with the predicted bytes before a worker
is launched, becomes the measured bytes after its load, and is gone only when the process has been reaped: memory that a
dying process still holds is not free.

What several workers share is charged once, to an owner of its own: library pages to `fork-servers/<family>`, mapped
weight files to `artifacts/<digest>`. Such a charge has users, or it has none and stays until it is taken back; with the
last of its users it goes.

    budget = ceiling - max(0, foreign - spare)      free = budget - charges

`spare` is memory that exists beyond the ceiling and its reserve: what other programs may use before they use ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from modelmora.errors import InvalidArgument, MemoryBusy

A_PETABYTE = 2**50
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
class Device:
    """What exists: bytes, and what limits them (`machine`, `cgroup` or `device`)."""

    total_bytes: int
    limited_by: str = "machine"


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of one device may be ours: bytes, or a share of what exists where `memory_bytes` is 0."""

    memory_bytes: int = 0
    share: float = 0.0

    def of(self, total_bytes: int) -> int:
        """In bytes, of a device with so many; may be more than there are."""
        return self.memory_bytes or int(total_bytes * self.share)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What there is and what of it may be ours, by device."""

    ceiling: Vector
    spare: Vector = field(default_factory=dict)
    total: Vector = field(default_factory=dict)
    limited_by: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """For people: what was taken but looks wrong."""


def bounds(devices: Mapping[str, Device], budgets: Mapping[str, Budget], share: float) -> Bounds:
    """The bounds of `devices` with the `budgets` that were set; the others have `share`, which is also what a budget in
    bytes leaves to the machine before others' memory counts against it. No more is ours than exists, whatever was set.
    InvalidArgument, with the device as field, for a budget of nothing, a share outside (0, 1], both at once, or a
    device that is not there."""
    ceiling, spare, warnings = dict[str, int](), dict[str, int](), list[str]()
    for name, budget in sorted(budgets.items()):
        if name not in devices:
            raise InvalidArgument.at(f"budgets.{name}", "there is no such device")
        if budget.memory_bytes < 0 or (budget.memory_bytes == 0 and not 0 < budget.share <= 1):
            raise InvalidArgument.at(f"budgets.{name}", "bytes above 0, or a share in (0, 1]")
        if budget.memory_bytes and budget.share:
            raise InvalidArgument.at(f"budgets.{name}", "bytes or a share, not both")
    for name, device in devices.items():
        budget = budgets.get(name, Budget(share=share))
        usable = int(device.total_bytes * share)
        ceiling[name] = min(budget.of(device.total_bytes), device.total_bytes)
        spare[name] = max(0, usable - ceiling[name]) if budget.memory_bytes else 0
        if budget.memory_bytes > device.total_bytes:
            warnings.append(
                f"the budget of {name} is {budget.memory_bytes} bytes; there are {device.total_bytes}, "
                f"and only they count"
            )
    total = {name: device.total_bytes for name, device in devices.items()}
    return Bounds(ceiling, spare, total, {n: d.limited_by for n, d in devices.items()}, tuple(warnings))


@dataclass(frozen=True)
class Ledger:
    """An immutable page: every change gives the next one. What follows from it is reckoned once."""

    ceiling: Vector
    """What could be ours at best: the memory that exists, less a reserve."""
    foreign: Vector = field(default_factory=dict)
    """Used by programs that are not ours; beyond what is spare it shrinks the budget."""
    charges: Mapping[str, Vector] = field(default_factory=dict)
    """By owner: the uid of a replica, `fork-servers/<family>`, `artifacts/<digest>`."""
    spare: Vector = field(default_factory=dict)
    total: Vector = field(default_factory=dict)
    """What exists, where it is known."""
    limited_by: Mapping[str, str] = field(default_factory=dict)
    """What limits `total`, by device."""
    users: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By shared owner: who uses it. Owners that are not named here stand for themselves."""

    @cached_property
    def budget(self) -> dict[str, int]:
        return {
            device: max(0, top - max(0, self.foreign.get(device, 0) - self.spare.get(device, 0)))
            for device, top in self.ceiling.items()
        }

    @cached_property
    def charged(self) -> dict[str, int]:
        return plus(*self.charges.values())

    @cached_property
    def free(self) -> dict[str, int]:
        """Budget less charges; negative where workers took more than was predicted or others took our place."""
        return minus(self.budget, self.charged)

    @cached_property
    def overdraft(self) -> dict[str, int]:
        """Bytes charged beyond the budget, by device; empty when all is well."""
        budget = self.budget
        return {device: b - budget.get(device, 0) for device, b in self.charged.items() if b > budget.get(device, 0)}

    @cached_property
    def exists(self) -> Vector:
        """Bytes by device: the most that there can be of it."""
        return {device: self.total.get(device, A_PETABYTE) for device in self.ceiling}

    def charge_of(self, owner: str) -> Vector:
        return self.charges.get(owner, {})

    def shared_by(self, user: str) -> dict[str, Vector]:
        """Charges of the shared owners that `user` uses."""
        return {owner: self.charges[owner] for owner, users in self.users.items() if user in users}

    def freed_by(self, owners: Iterable[str]) -> dict[str, int]:
        """Bytes that come back when these are gone: theirs, and what nobody else uses."""
        gone = frozenset(owners)
        shared = (self.charges[owner] for owner, users in self.users.items() if users <= gone)
        return plus(*(self.charge_of(owner) for owner in gone), *shared)

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
        """Gives back the charge of a process that has been reaped, and what it was the last to use; nothing happens
        when there is none."""
        users = {shared: left for shared, who in self.users.items() if (left := who - {owner})}
        unused = {owner, *(shared for shared in self.users if shared not in users)}
        charges = {other: charge for other, charge in self.charges.items() if other not in unused}
        return replace(self, charges=charges, users=users)

    def share(self, owner: str, memory: Vector, users: Iterable[str] = ()) -> Ledger:
        """Charges `memory` once to a shared owner, in place of what it was charged. Without users it stays until it is
        charged nothing. Users without a charge of their own do not count; where none is left, nothing is charged.
        ValueError when the name is not one of a shared owner."""
        if "/" not in owner:
            raise ValueError(f"{owner} is not a shared owner")
        named = frozenset(users)
        there = frozenset(user for user in named if user in self.charges)
        charges = {other: charge for other, charge in self.charges.items() if other != owner}
        others = {other: who for other, who in self.users.items() if other != owner}
        if positive(memory) and (there or not named):
            charges[owner] = positive(memory)
            if there:
                others[owner] = there
        return replace(self, charges=charges, users=others)

    def bounded(self, by: Bounds) -> Ledger:
        """The same charges within other bounds."""
        return replace(self, ceiling=by.ceiling, spare=by.spare, total=by.total, limited_by=by.limited_by)

    def observe(self, foreign: Vector) -> Ledger:
        """The same page with other programs using `foreign` bytes."""
        return replace(self, foreign={device: max(0, b) for device, b in foreign.items()})
