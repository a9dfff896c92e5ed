"""Through which threads of the host a call goes."""

from __future__ import annotations

from pathlib import Path

from e2e.conftest import StartUp
from modelmora.inference.v1 import inference_pb2

CALLS = 300
AS_INSTALLED = ("-c", "from modelmora_app.__main__ import main; main()", "up")
"""As the script `modelmora` does it."""


def switches(pid: int, name: str) -> int:
    """How often the threads of that name have been switched to so far."""
    count = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:  # it has just ended
            continue
        if fields["Name"] == name:
            count += int(fields["voluntary_ctxt_switches"]) + int(fields["nonvoluntary_ctxt_switches"])
    return count


def test_a_call_is_read_without_the_threads_of_grpcs_pool(start_up: StartUp) -> None:
    """They would be switched to three times a call. What it takes to turn them off a release of gRPC may forget."""
    up = start_up(command=AS_INSTALLED)
    up.inference.GetQueue(inference_pb2.GetQueueRequest(), timeout=60)
    seen: list[int] = []
    while not seen or (seen[-1] >= CALLS and len(seen) < 4):  # they have work of their own, the longer the calls take
        before = switches(up.pid, "event_engine")
        for _ in range(CALLS):
            up.inference.GetQueue(inference_pb2.GetQueueRequest(), timeout=60)
        seen.append(switches(up.pid, "event_engine") - before)
    assert seen[-1] < CALLS, seen
