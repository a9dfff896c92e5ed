"""Waiting for what nobody announces."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(fact: Callable[[], T], seconds: float, what: str) -> T:
    """The first true answer of `fact`; AssertionError after `seconds`."""
    pause = threading.Event()
    until = time.monotonic() + seconds
    while True:
        answer = fact()
        if answer:
            return answer
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {what}; last answer: {answer!r}")
        pause.wait(0.02)
