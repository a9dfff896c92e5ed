"""A long trace replayed by `modelmora simulate` on a platform of its own: its time, and what each policy costs.

    python -m bench.simulate --events 20000        writes docs/evidence/simulate-….md

The trace is made up from a seed: a dozen models of mixed size, most calls to a few of them, in a place for three or
four. The command is the one that people use, so its time has reading the trace, the call and the replay in it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.evidence import arguments, conclude, page, provenance
from bench.up import Up

GIB = 2**30
MODELS = 12
SIZES_GIB = (1, 2, 4)
BUDGET_GIB = 10
SECONDS_BETWEEN = 2.0


def made_up(count: int, seed: int) -> list[dict[str, Any]]:
    """So many acquire events as `modelmora trace export` writes them."""
    chance = random.Random(seed)
    models = [(chance.choice(SIZES_GIB), chance.uniform(0.5, 8.0)) for _ in range(MODELS)]
    events, at = [], 0.0
    for _ in range(count):
        at += chance.expovariate(1 / SECONDS_BETWEEN)
        number = min(int(chance.paretovariate(0.9)) - 1, MODELS - 1)
        size_gib, load_seconds = models[number]
        events.append(
            {
                "at_seconds": at,
                "model_version": f"models/acme/m{number}/versions/1",
                "priority": "medium",
                "use_seconds": chance.uniform(0.05, 1.0),
                "memory": [{"device": "host", "memory_bytes": size_gib * GIB}],
                "load_seconds": load_seconds,
            }
        )
    return events


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mm-simulate-") as folder:
        trace = Path(folder) / "trace.jsonl"
        trace.write_text("".join(json.dumps(event) + "\n" for event in made_up(given.events, given.seed)))
        up = Up(Path(folder) / "data").start()
        try:
            command = [sys.executable, "-P", "-m", "modelmora_app", "--target", up.target]
            command += [
                "simulate",
                "--trace",
                str(trace),
                "--budget",
                f"{BUDGET_GIB}GiB",
                "--json",
                "--timeout",
                "3600",
            ]
            began = time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds = time.monotonic() - began
        finally:
            up.stop()
    used = os.times()
    rows: dict[str, object] = {
        **provenance(),
        "seed": given.seed,
        "events": given.events,
        "models": f"{MODELS} of {', '.join(map(str, SIZES_GIB))} GiB, budget {BUDGET_GIB} GiB",
        "time of the command, all policies": f"{seconds:.1f} s",
        "processor time of it and of the platform, start to stop": f"{used.children_user + used.children_system:.1f} s",
        **{
            result["policy"]: f"{result['misses']} misses, {result['evictions']} evictions, "
            f"{result['waited_seconds']:.0f} s waited (p99 {result['waited_p99_seconds']:.2f} s), "
            f"{int(result['loaded_bytes']) / GIB:.0f} GiB loaded"
            for result in json.loads(done.stdout)
        },
    }
    text = page("Simulation of a long trace", "By `python -m bench.simulate`.", rows)
    return conclude("simulate", text, given.evidence)


if __name__ == "__main__":
    sys.exit(main())
