"""`make bench`: ours beside its ceiling in interleaved pairs, plumbing with the echo engine, start-up, loading.

The quick default takes a few minutes and shows the order of things; `--full` takes what a claim needs (15 pairs of 5 s
at each concurrency) and writes docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from modelmora.inference.v1 import inference_pb2

from bench import workload
from bench.lifecycle import lifecycle_bench
from bench.minilm import MODEL, minilm_folder, served
from bench.plumbing import plumbing_bench
from bench.registry import registry_bench
from bench.report import Series, merged, page
from bench.script import Script
from bench.sharing import sharing_bench
from bench.statistics import bootstrap
from bench.up import Up

ROOT = Path(__file__).resolve().parents[1]
CONCURRENCY = (1, 8, 32, 64)
PARTS = ("startup", "lifecycle", "registry", "plumbing", "embed", "sharing")
PROFILES = ("torch/fp32", "torch/bf16", "openvino/fp32", "openvino/bf16", "onnx/fp32")


def embed_bench(
    folder: Path, pairs: int, seconds: float, profile: str, against: str
) -> tuple[dict[str, Series], dict[str, Any]]:
    """Ours and the ceiling in turn, each with its engine profile, for each concurrency and in bulk."""
    texts = workload.passages()
    say("embed: the ceiling computes its truth")
    ceiling = Script("-P", str(ROOT / "bench" / "ceiling.py"), str(folder), against)
    facts = {**ceiling.ask(texts=texts), "profile": profile, "ceiling": against}
    found: dict[str, Series] = {}
    with served(folder, profile) as up:
        load = Script("-m", "bench.load", up.target, MODEL)
        load.ask(texts=texts, truth=facts["truth"])
        scenarios = [(str(clients), {"mode": "clients", "clients": clients}) for clients in CONCURRENCY]
        scenarios.append(("bulk", {"mode": "bulk", "clients": 1}))
        for name, command in scenarios:
            series = found[name] = Series()
            for number in range(-1, pairs):
                # The pair before the first warms both sides; who goes first changes from pair to pair.
                spell = min(2.0, seconds) if number < 0 else seconds
                sides = [("ours", load), ("ceiling", ceiling)]
                for side, script in sides if number % 2 else sides[::-1]:
                    answer = script.ask(**command, seconds=spell, seed=number + 1)
                    if answer["wrong"]:
                        raise RuntimeError(f"{side} gave {answer['wrong']} wrong vectors")
                    if number >= 0:
                        series.rates[side].append(answer["count"] / answer["seconds"])
                        series.latencies[side].append(answer["latencies"])
            say(f"embed {name}: {series}")
        load.close()
    ceiling.close()
    return found, facts


def startup_bench(folder: Path, rounds: int) -> dict[str, list[float]]:
    """The second start of a platform that has the starter model: ready, and first answer."""
    found: dict[str, list[float]] = {"ready_seconds": [], "first_answer_seconds": [], "stop_seconds": []}
    with tempfile.TemporaryDirectory(prefix="modelmora-bench-") as temporary:
        up = Up(Path(temporary) / "data", settings={"REGISTRY_MODEL_ROOTS": json.dumps([str(folder)])})
        with up:
            up.add_model(MODEL, engine="sentence_transformers", folder=folder)
        for _ in range(rounds):
            start = time.perf_counter()
            up.start()
            found["ready_seconds"].append(time.perf_counter() - start)
            up.inference.Embed(inference_pb2.EmbedRequest(model=MODEL, texts=["a first text"]), timeout=60)
            found["first_answer_seconds"].append(time.perf_counter() - start)
            stop = time.perf_counter()
            up.stop()
            found["stop_seconds"].append(time.perf_counter() - stop)
    for name, values in found.items():
        say(f"start-up {name}: {bootstrap(values)}")
    return found


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--full", action="store_true", help="15 pairs of 5 s, and write docs/benchmarks.md")
    parser.add_argument("--pairs", type=int, default=0, help="pairs at each concurrency (3, with --full 15)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--output", type=Path, help="write the page here (--full: docs/benchmarks.md)")
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        default="torch/fp32",
        help="engine profile of the parts embed and sharing, and of the ceiling",
    )
    parser.add_argument(
        "--ceiling", choices=PROFILES, help="another engine profile for the ceiling: the best of this machine, for one"
    )
    arguments = parser.parse_args()
    arguments.pairs = arguments.pairs or (15 if arguments.full else 3)
    folder = minilm_folder()
    parts = (arguments.only,) if arguments.only else PARTS
    startup = startup_bench(folder, max(3, arguments.pairs // 2)) if "startup" in parts else None
    plumbing = plumbing_bench(arguments.pairs, arguments.seconds, say) if "plumbing" in parts else None
    lifecycle = (
        lifecycle_bench(folder, max(4, arguments.pairs), arguments.seconds, say) if "lifecycle" in parts else None
    )
    registry = registry_bench(say) if "registry" in parts else None
    embed = None
    if "embed" in parts:
        ceiling = arguments.ceiling or arguments.profile
        embed = embed_bench(folder, arguments.pairs, arguments.seconds, arguments.profile, ceiling)
    sharing = None
    if "sharing" in parts:
        sharing = sharing_bench(folder, arguments.pairs, arguments.seconds, arguments.profile, say)
    text = page(
        embed, plumbing, startup, registry, lifecycle, sharing, pairs=arguments.pairs, seconds=arguments.seconds
    )
    output = arguments.output or (ROOT / "docs" / "benchmarks.md" if arguments.full else None)
    if output:
        # One part alone replaces that part of the page.
        output.write_text(merged(output.read_text(), text) if arguments.only and output.exists() else text)
        say(f"written: {output}")
    else:
        say("\n" + text)


if __name__ == "__main__":
    main()
