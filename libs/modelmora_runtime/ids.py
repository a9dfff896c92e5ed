"""Identifiers of rows: UUID version 7 (RFC 9562), time-ordered, and strictly increasing within a process."""

from __future__ import annotations

import os
import threading
import time
import uuid

from modelmora.errors import InvalidArgument

_COUNTER_BITS = 42
_COUNTER_END = 1 << _COUNTER_BITS
_lock = threading.Lock()
_last = (0, 0)


def uuid7() -> uuid.UUID:
    """A new id, greater than every id this process made before, also when the clock was set back."""
    global _last
    entropy = int.from_bytes(os.urandom(10), "big")
    with _lock:
        _last = successor(_last, time.time_ns() // 1_000_000, entropy >> 32)
        milliseconds, counter = _last
    return compose(milliseconds, counter, entropy & 0xFFFF_FFFF)


def successor(last: tuple[int, int], now_milliseconds: int, seed: int) -> tuple[int, int]:
    """The (milliseconds, counter) after `last`: each millisecond starts at a random place of the counter's lower half.

    A clock that stands still or goes back counts on in the last millisecond; a full counter borrows the next one.
    """
    milliseconds, counter = last
    if now_milliseconds > milliseconds:
        return now_milliseconds, seed % (_COUNTER_END >> 1)
    if counter + 1 < _COUNTER_END:
        return milliseconds, counter + 1
    return milliseconds + 1, seed % (_COUNTER_END >> 1)


def compose(milliseconds: int, counter: int, tail: int) -> uuid.UUID:
    """48 bits of Unix milliseconds, version, 42 bits of counter (12 and 30 around the variant), 32 random bits."""
    high, low = counter >> 30, counter & 0x3FFF_FFFF
    return uuid.UUID(int=milliseconds << 80 | 7 << 76 | high << 64 | 2 << 62 | low << 32 | tail)


def parse(text: str, field: str = "uid") -> uuid.UUID:
    """The id a string stands for, in the canonical 36 character form. Raises InvalidArgument at `field`."""
    try:
        value = uuid.UUID(text)
    except ValueError:
        value = None
    if value is None or str(value) != text.lower():
        raise InvalidArgument.at(field, "is not a UUID like 01890a5d-ac96-774b-bcce-b302099a8057")
    return value
