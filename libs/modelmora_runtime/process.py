"""A host in a process of its own: data folder, logs, signals, exit status."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from modelmora.errors import ModelMoraError

from modelmora_runtime import telemetry
from modelmora_runtime.host import Context, EngineCard, Host, make_private
from modelmora_runtime.settings import PlatformSettings

TRIM_SECONDS = 30.0
MALLOC = {"M_ARENA_MAX": (-8, 2), "M_MMAP_THRESHOLD": (-3, 256 * 1024), "M_TRIM_THRESHOLD": (-1, 2 * 1024 * 1024)}
"""What glibc's malloc is told, by the numbers of malloc.h. Of what is free at the end of an arena, `malloc_trim` gives
back that of the first only; that of the second, where gRPC's threads read, goes when it is more than the threshold."""


def run(
    settings: PlatformSettings,
    contexts: Sequence[Context],
    *,
    engines: Mapping[str, EngineCard] | None = None,
    announce: Callable[[str], None] = print,
    complain: Callable[[str], None] = print,
    endpoint_name: str = "endpoint.json",
    alone: bool = False,
) -> int:
    """Serves until SIGTERM, SIGINT or SIGHUP; returns the exit status, having said in one line what went wrong.

    `alone`: nobody else may use the data folder meanwhile. (Parts of a platform may share one when the database is
    elsewhere; the embedded one is always alone.) A second signal kills our descendants and ends this process at once.
    """
    import uvloop

    _bound_malloc()
    host = Host(settings, contexts, engines=engines, announce=announce, endpoint_name=endpoint_name)
    try:
        with ExitStack() as stack:
            if alone:
                from modelmora_runtime.data_directory import DataDirectory

                stack.enter_context(DataDirectory.lock(settings.data_dir, holder="modelmora up"))
            else:
                make_private(settings.data_dir)
            stack.enter_context(telemetry.logs(settings.log_level, settings.log_format, settings.data_dir / "logs"))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_serve_until_told(host, announce))
    except ModelMoraError as error:
        complain(f"{error.reason}: {error.message}")
    except OSError as error:
        complain(str(error))
    return 1


async def _serve_until_told(host: Host, announce: Callable[[str], None]) -> int:
    told: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
    serving = False
    task = asyncio.current_task()
    assert task is not None

    def on_signal(number: signal.Signals) -> None:
        if told.done():
            kill_everything()
        told.set_result(number)
        if not serving:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    try:
        async with host:
            serving = True
            _settle_memory()
            trimming = asyncio.create_task(_give_memory_back(), name="memory that is free")
            try:
                number = await told
            finally:
                trimming.cancel()
            announce(f"{number.name}: stopping; once more kills")
    except asyncio.CancelledError:
        if not told.done():
            raise
        task.uncancel()
    announce("stopped")
    return 0


def _bound_malloc() -> None:
    """Before there are threads: by default each of gRPC's gets an arena of its own, and once a large message was freed
    the next ones are cut from the heap, among small things that stay. Both keep growing for hours under mixed calls."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in MALLOC.values():
            mallopt(parameter, value)


def _settle_memory() -> None:
    """What the start has made stays: the collector need not look at it again and again.

    A full collection of the modules of a platform takes tens of milliseconds, in which no call is answered. Calls leave
    few circles behind, so it looks at young objects less often too; not so seldom that what waits for it makes peaks,
    after which the allocator keeps more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 10)


async def _give_memory_back() -> None:
    """What only the collector finds and has missed twice it looks for hardly ever again: a closed connection to the
    database, with all it had prepared, stayed for an hour. And the allocator keeps pages that are free between others
    in use until it is told. Some ten milliseconds each time, as `_settle_memory` has set aside what the start made."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while True:
        gc.collect()
        if trim is not None:
            trim(0)
        await asyncio.sleep(TRIM_SECONDS)


def kill_everything() -> NoReturn:
    """The end without goodbyes: every descendant and we ourselves, now. What was committed is safe."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    os._exit(1)


def descendants(pid: int) -> Iterator[int]:
    """Children, their children and so on, as the kernel says now."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold anything, also spaces and parentheses.
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(process.name))
    waiting = list(children.get(pid, ()))
    while waiting:
        child = waiting.pop()
        yield child
        waiting += children.get(child, ())
