"""Who gives way when a bound is reached: what is held is shared by weight, like what is computed.

A tenant's share of a bound is its weight over the weights of all that hold something under it, itself included. Who
would hold no more than its share is taken in: entries that wait leave for it, of the tenant that is furthest above its
own share by weight, its LOW ones first and of these the newest. Who would hold more is refused, unless its own tenant
makes room for it (queue.py).

What that gives. A tenant that stays within its share loses nothing to others: victims hold more than theirs. And it is
always taken in, unless too much of what others hold above their shares is on workers, where it cannot be taken back:
all shares add up to the bound, so when it is reached and this tenant is within its own, others are above theirs by at
least what is missing. Pure; O(log n) for each entry that leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from heapq import heapify, heappop, heapreplace
from typing import TypeVar

T = TypeVar("T")


def who_leaves(
    newcomer: str,
    size: int,
    need: int,
    limit: int,
    held: Mapping[str, int],
    weight: Callable[[str], float],
    waiting: Callable[[str], Iterator[tuple[T, int]]],
) -> list[T] | None:
    """Who makes room for `size` more of `newcomer`'s: frees `need` of a bound `limit`, of which tenants hold `held`.

    `waiting` gives what of a tenant's could leave, in that order, each with its size. None: the newcomer is refused.
    """
    unit = limit / sum(weight(tenant) for tenant in {*held, newcomer})
    if held.get(newcomer, 0) + size > weight(newcomer) * unit:
        return None
    above = [
        (-amount / weight(tenant), tenant)
        for tenant, amount in held.items()
        if tenant != newcomer and amount > weight(tenant) * unit
    ]
    heapify(above)
    sources: dict[str, Iterator[tuple[T, int]]] = {}
    leaving: list[T] = []
    while need > 0:
        if not above:
            return None
        load, tenant = above[0]
        if tenant not in sources:
            sources[tenant] = waiting(tenant)
        found = next(sources[tenant], None)
        if found is None:
            heappop(above)
            continue
        leaving.append(found[0])
        need -= found[1]
        load += found[1] / weight(tenant)
        if -load > unit:
            heapreplace(above, (load, tenant))
        else:
            heappop(above)
    return leaving


def enough(need: int, leaving: Iterator[tuple[T, int]]) -> list[T] | None:
    """The first of these that together free `need`; None: all of them do not."""
    found: list[T] = []
    while need > 0:
        one = next(leaving, None)
        if one is None:
            return None
        found.append(one[0])
        need -= one[1]
    return found
