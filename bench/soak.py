"""`make soak`: twelve models of mixed size in a budget for three, under load, cancellation and kill -9.

Nothing may be lost: every request that its caller did not withdraw is answered, with the vector of its own text by its
own model. Nothing may be left: when all is unloaded, the platform has the memory that it had before, within 2 %. What
must never be in between is looked for by another process (soak_watch.py). A long run writes docs/evidence/soak-….md.

It is over when its goals are reached, however fast the machine is: answers set the pace, and what lags behind them
(kills, cancellations, swaps, answers of real engines) is asked for more. Requests go to three models at a time, and a
few to any other: when all eight clients wanted what they liked, a slow machine did nothing but swap, for minutes. Where
nothing moves any more it ends as well, and says what it was waiting for.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora_worker.engines.echo import vector

from bench.evidence import arguments, conclude, page, provenance
from bench.script import ROOT
from bench.small_models import small_models, words
from bench.soak_watch import fork_servers, practising, spares
from bench.up import Up

MIB = 1024 * 1024
DIMENSIONS = 16
ECHO_MIB = (40, 50, 60, 70, 80, 90, 100, 110)
REAL_MODELS = 4
REAL_MIB = 100
ROOM_MIB = 310
"""For three of them."""
CLIENTS = 8
WANTED = 3
"""Models that clients turn to at a time."""
BURST = 33
"""Requests to each of them; then there is another."""
STRAY_SHARE, CANCELLED_SHARE = 0.02, 0.05
"""Requests to any model at all, and those that are withdrawn."""
LAGGING_SHARE = 0.25
"""The same, while swaps or cancellations lag behind."""
REAL_SHARE = 0.4
SLACK = 0.02
PATIENCE_SECONDS = 240.0
STALLED_SECONDS = 270.0
"""Without any progress for so long, longer than any call is waited for, it is given up."""
LOOKS_AT_REST = 20
"""In a row, a twentieth of a second apart, before memory is read."""
MODEL_SEED = 11


@dataclass(frozen=True)
class Goals:
    """When it has been enough."""

    swaps: int = 60
    kills: int = 15
    cancelled: int = 100
    answered: int = 2000


@dataclass
class Report:
    """What a soak was and what came of it."""

    seed: int
    goals: Goals
    counts: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    """What became of requests that were not answered as they should have been."""
    unexplained: list[str] = field(default_factory=list)
    """Workers that ended and were killed by nobody here."""
    gave_up: str = ""
    """What it was waiting for when it was given up."""
    before_bytes: int = 0
    after_bytes: int = 0
    watched: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    load_seconds: float = 0.0
    """Of it under load."""

    @property
    def growth(self) -> float:
        return self.after_bytes / self.before_bytes - 1

    def wrong(self) -> list[str]:
        """Everything that must not be; empty when the soak was passed."""
        found = [f"lost: {len(self.lost)}, the first: {self.lost[0]}"] if self.lost else []
        found += [self.gave_up] if self.gave_up else []
        found += [f"unexplained end of a worker: {words}" for words in self.unexplained]
        found += [f"{kind}: {what}" for kind, what in self.watched.get("violations", {}).items()]
        if abs(self.growth) > SLACK:
            found.append(f"memory after is {self.growth:+.1%} of before: {self.before_bytes} and {self.after_bytes}")
        for name, goal in asdict(self.goals).items():
            if self.counts[name] < goal:
                found.append(f"only {self.counts[name]} {name}, not {goal}")
        if not self.counts["kills of fork servers"]:
            found.append("no fork server was killed")
        if 3 * self.counts["answered by real engines"] < self.counts["answered"]:
            found.append(f"only {self.counts['answered by real engines']} answers came from real engines")
        return found


class Soak:
    """One soak of one platform."""

    def __init__(self, up: Up, goals: Goals, seed: int, limit_seconds: float, soak_in: int) -> None:
        self._up = up
        self._goals = goals
        self._soak_in = soak_in
        self._end = time.monotonic() + limit_seconds
        self._seed = seed
        self.report = Report(seed, goals)
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._versions: list[str] = []
        self._real: set[str] = set()
        self._known: dict[tuple[str, str], list[float]] = {}
        """Vectors of real engines, asked for in peace."""
        self._flying: dict[str, set[int]] = {}
        """Numbers of the calls that run now, by version."""
        self._hit: dict[str, set[int]] = {}
        """Those of them that ran when its worker was last killed."""
        self._killed: set[int] = set()
        self._numbers = 0
        self._wanted: list[tuple[str, int]] = []
        """Each with the number of requests that are left to it."""
        self._doing: dict[str, tuple[str, float]] = {}
        """By thread: what it does, and since when."""
        self._texts = [" ".join(words(MODEL_SEED, 40)[n : n + 6]) for n in range(30)]

    def run(self) -> Report:
        """Raises whatever breaks in one of its threads."""
        began = time.monotonic()
        self._register()
        with self._watching() as ask:
            self._warm_up()
            watched = self._up.lifecycle.WatchReplicas(lifecycle_pb2.WatchReplicasRequest())
            with ThreadPoolExecutor(CLIENTS + 2) as pool:
                follower = pool.submit(self._follow, watched)
                try:
                    if self._soak_in:
                        self._under_load(pool, follower, Goals(self._soak_in, 0, 0, 0))
                        self.report.counts.clear()
                    self.report.before_bytes = self._settled(ask)
                    self._under_load(pool, follower, self._goals)
                    self.report.after_bytes = self._settled(ask)
                finally:
                    self._over.set()
                    watched.cancel()
                follower.result()
            self.report.watched = ask()
        self.report.seconds = time.monotonic() - began
        return self.report

    def _under_load(self, pool: ThreadPoolExecutor, follower: Future[None], goals: Goals) -> None:
        """Clients and the killer at work until these goals are reached."""
        began = time.monotonic()
        self._over.clear()
        self._wanted = [(version, BURST) for version in random.Random(self._seed).sample(self._versions, WANTED)]
        workers = [pool.submit(self._client, number) for number in range(CLIENTS)]
        workers.append(pool.submit(self._kill))
        self._until_enough([*workers, follower], goals)
        self._over.set()
        for worker in workers:
            worker.result()
        self.report.load_seconds = time.monotonic() - began

    def _until_enough(self, threads: Sequence[Future[None]], goals: Goals) -> None:
        """Returns when the goals are reached, when one of the threads has ended before, or when it is hopeless."""
        reached, since = -1, time.monotonic()
        while not self._over.is_set() and not wait(threads, timeout=0.2, return_when=FIRST_COMPLETED).done:
            now = time.monotonic()
            with self._turn:
                left = {name: goal - self.report.counts[name] for name, goal in asdict(goals).items()}
                if all(count <= 0 for count in left.values()):
                    return
                total = sum(self.report.counts.values())
            if total > reached:
                reached, since = total, now
            if now - since > STALLED_SECONDS or now > self._end:
                still = ", ".join(f"{count} {name}" for name, count in left.items() if count > 0)
                why = "nothing has moved" if now - since > STALLED_SECONDS else "it took too long"
                self.report.gave_up = f"given up, for {why}; to come: {still}\n{self._scene()}"
                return

    def _scene(self) -> str:
        """What everybody is doing, for people."""
        now = time.monotonic()
        with self._turn:
            lines = [f"{who}: {what} for {now - since:.1f} s" for who, (what, since) in sorted(self._doing.items())]
        try:
            replicas = self._up.lifecycle.ListReplicas(lifecycle_pb2.ListReplicasRequest(), timeout=10).replicas
        except grpc.RpcError as error:
            lines.append(f"the platform does not answer: {error.code().name}")  # type: ignore[attr-defined]
        else:
            states = lifecycle_pb2.ReplicaState
            lines += [f"{r.model_version}: {states.Name(r.state)}, pid {r.pid}: {r.reason}" for r in replicas]
        return "\n".join([*lines, "its log:", self._up.tail()])

    # Before and after.

    def _register(self) -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            echo = list(pool.map(self._add_echo, ECHO_MIB))
            real = list(pool.map(self._add_real, range(REAL_MODELS)))
        self._versions = [*echo, *real]
        self._real = set(real)

    def _add_echo(self, size: int) -> str:
        options = {
            "seed": size,
            "dimensions": DIMENSIONS,
            "memory_bytes": int(0.7 * size) * MIB,
            "delay_seconds": 0.002,
            "max_batch_entries": 8,
        }
        return self._up.add_model(f"soak/echo-{size}", engine="echo", options=options, memory_bytes=size * MIB)

    def _add_real(self, number: int) -> str:
        folder = small_models(REAL_MODELS, MODEL_SEED)[number]
        engine, memory_bytes = "sentence_transformers", REAL_MIB * MIB
        return self._up.add_model(f"soak/real-{number}", engine=engine, folder=folder, memory_bytes=memory_bytes)

    def _warm_up(self) -> None:
        """Loads each model once, so that everything is there that stays; then asks for what is known afterwards."""
        self._set_budget(8192)
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(self._load, self._versions))
            asked = [(version, text) for version in sorted(self._real) for text in self._texts]
            asked += [(version, self._texts[0]) for version in self._versions]
            answers = list(pool.map(lambda ask: self._embed(ask[0], ask[1], PATIENCE_SECONDS), asked))
        self._known = {ask: answer for ask, answer in zip(asked, answers, strict=True) if ask[0] in self._real}
        memory = self._up.lifecycle.GetMemory(lifecycle_pb2.GetMemoryRequest(), timeout=10).devices[0]
        # What fork servers share stays in memory whoever goes.
        shared = sum(charge.memory_bytes for charge in memory.charges if not charge.owner.startswith("replicas/"))
        self._set_budget(ROOM_MIB + shared // MIB)

    def _set_budget(self, budget_mib: int) -> None:
        request = lifecycle_pb2.UpdateNodeRequest(update_mask={"paths": ["budgets"]})  # type: ignore[arg-type]
        request.node.budgets.add(device="host", memory_bytes=budget_mib * MIB)
        self._up.lifecycle.UpdateNode(request, timeout=10)

    def _settled(self, ask: Any) -> int:
        """Bytes of the platform with every family's fork server and its spare worker there, which has practised, and
        nothing loaded."""
        self._unload_all()
        # A load needs the server of its family; a worker that is there may have outlived its own.
        self._load(min(self._real))
        self._unload_all()
        until = time.monotonic() + PATIENCE_SECONDS
        folder = os.fsencode(self._up.data_dir)
        looks_at_rest = 0
        while looks_at_rest < LOOKS_AT_REST:
            if time.monotonic() > until:
                raise TimeoutError(f"all was unloaded, and not all is as it was without it:\n{self._scene()}")
            time.sleep(0.05)
            there = spares(folder) == set(fork_servers(folder).values()) - {""}
            rests = there and not self._replicas() and not practising(folder, self._up.data_dir)
            looks_at_rest = looks_at_rest + 1 if rests else 0
        return int(ask()["own_bytes"])

    def _unload_all(self) -> None:
        for version in self._versions:
            request = lifecycle_pb2.UnloadModelRequest(model=version, force=True, wait=True)
            try:
                self._up.lifecycle.UnloadModel(request, timeout=PATIENCE_SECONDS)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:  # type: ignore[attr-defined]
                    raise

    def _replicas(self) -> Sequence[lifecycle_pb2.Replica]:
        request = lifecycle_pb2.ListReplicasRequest()
        return self._up.lifecycle.ListReplicas(request, timeout=PATIENCE_SECONDS).replicas

    def _load(self, version: str) -> None:
        self._up.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model=version, wait=True), timeout=PATIENCE_SECONDS)

    @contextmanager
    def _watching(self) -> Iterator[Any]:
        command = [sys.executable, "-P", str(ROOT / "bench" / "soak_watch.py"), self._up.target, str(self._up.data_dir)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None

            def ask() -> Any:
                process.stdin.write("?\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                return json.loads(process.stdout.readline())  # type: ignore[union-attr]

            try:
                yield ask
            finally:
                process.stdin.close()
                process.wait(10)

    # While it runs.

    def _lags(self, name: str, goal: int) -> bool:
        """Whether there are fewer of them than answers promise. Under the lock."""
        return self.report.counts[name] * self._goals.answered < goal * self.report.counts["answered"]

    def _client(self, number: int) -> None:
        chance = random.Random(self._seed * 1000 + number)
        while not self._over.is_set():
            with self._turn:
                version = self._next_version(chance)
                self._doing[f"client {number}"] = version, time.monotonic()
            self._call(version, chance.choice(self._texts), chance)

    def _next_version(self, chance: random.Random) -> str:
        """Under the lock."""
        if chance.random() < (LAGGING_SHARE if self._lags("swaps", self._goals.swaps) else STRAY_SHARE):
            return chance.choice(self._versions)
        place = chance.randrange(WANTED)
        version, left = self._wanted[place]
        self._wanted[place] = (version, left - 1) if left > 1 else (self._next_wanted(chance), BURST)
        return version

    def _next_wanted(self, chance: random.Random) -> str:
        """Under the lock."""
        wanted = {version for version, _ in self._wanted}
        lags = self._lags("answered by real engines", self._goals.answered * 7 // 20)
        real = lags or chance.random() < REAL_SHARE
        return chance.choice([v for v in self._versions if v not in wanted and (v in self._real) == real])

    def _call(self, version: str, text: str, chance: random.Random) -> None:
        with self._turn:
            self._numbers += 1
            number = self._numbers
            self._flying.setdefault(version, set()).add(number)
            share = LAGGING_SHARE if self._lags("cancelled", self._goals.cancelled) else CANCELLED_SHARE
        try:
            if chance.random() < share:
                self._withdraw(version, text, chance.uniform(0, 0.05))
                return
            answer = self._embed(version, text, PATIENCE_SECONDS)
            known = self._known.get((version, text))
            if known is None:
                known = vector(int(version.rpartition("/versions/")[0].rpartition("-")[2]), text, DIMENSIONS)
            likeness = sum(a * b for a, b in zip(answer, known, strict=True))
            if not likeness > 0.999:
                self._lose(f"{version} answered {text!r} with another vector: {likeness:.4f}")
        except grpc.RpcError as error:
            self._lose(f"{version}: {error.code().name}: {error.details()}")  # type: ignore[attr-defined]
        else:
            with self._turn:
                self.report.counts["answered"] += 1
                self.report.counts["answered by real engines"] += version in self._real
        finally:
            with self._turn:
                self._flying[version].discard(number)

    def _embed(self, version: str, text: str, seconds: float) -> list[float]:
        request = inference_pb2.EmbedRequest(model=version, texts=[text])
        return list(self._up.inference.Embed(request, timeout=seconds).embeddings[0].values)

    def _withdraw(self, version: str, text: str, seconds: float) -> None:
        request = inference_pb2.EmbedRequest(model=version, texts=[text])
        call = self._up.inference.Embed.future(request, timeout=PATIENCE_SECONDS)
        self._over.wait(seconds)
        if call.cancel():
            with self._turn:
                self.report.counts["cancelled"] += 1

    def _lose(self, words: str) -> None:
        with self._turn:
            self.report.lost.append(words)
        if len(self.report.lost) > 20:
            self._over.set()

    def _kill(self) -> None:
        """kill -9 of a worker with work, or of a fork server, all along the way."""
        chance = random.Random(self._seed)
        while not self._over.is_set():
            self._doing["killer"] = "kills", time.monotonic()
            with self._turn:
                due = self._lags("kills", self._goals.kills) or not self.report.counts["kills"]
            if not due:
                self._over.wait(0.05)
                continue
            if self.report.counts["kills"] % 8 != 7 or not self._kill_fork_server(chance):
                self._kill_worker(chance)
            self._over.wait(chance.uniform(0.05, 0.3))

    def _kill_worker(self, chance: random.Random) -> None:
        replicas = self._replicas()
        with self._turn:
            # A request must not meet our second kill: then it would be to blame.
            able = [
                replica
                for replica in replicas
                if replica.state == lifecycle_pb2.REPLICA_STATE_LOADED
                and replica.pid
                and not self._hit.get(replica.model_version, set()) & self._flying.get(replica.model_version, set())
            ]
            if not able:
                return
            replica = chance.choice(able)
            self._hit[replica.model_version] = set(self._flying.get(replica.model_version, ()))
            self._killed.add(replica.pid)
            if _send(replica.pid):
                self.report.counts["kills"] += 1

    def _kill_fork_server(self, chance: random.Random) -> bool:
        """Whether there was one."""
        able = sorted(fork_servers(os.fsencode(self._up.data_dir)).keys() - {r.pid for r in self._replicas()})
        if not able:
            return False
        pid = chance.choice(able)
        with self._turn:
            self._killed.add(pid)
            if _send(pid):
                self.report.counts["kills"] += 1
                self.report.counts["kills of fork servers"] += 1
        return True

    def _follow(self, watched: Any) -> None:
        """Counts swaps, and workers that end and were killed by nobody, until the stream is cancelled."""
        try:
            for event in watched:
                replica = event.replica
                if event.previous_state == lifecycle_pb2.REPLICA_STATE_UNSPECIFIED:
                    continue
                with self._turn:
                    if replica.state == lifecycle_pb2.REPLICA_STATE_DRAINING and "makes room" in replica.reason:
                        self.report.counts["swaps"] += 1
                    if replica.state == lifecycle_pb2.REPLICA_STATE_LOADED and replica.reason == "loaded":
                        self.report.counts["loads"] += 1
                    ended = replica.state == lifecycle_pb2.REPLICA_STATE_FAILED
                    if ended and replica.pid not in self._killed and not replica.reason.startswith("cancelled"):
                        self.report.unexplained.append(f"{replica.model_version}: {replica.reason[:300]}")
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:  # type: ignore[attr-defined]
                raise


def _send(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def soak(data_dir: Path, goals: Goals, seed: int, limit_seconds: float, soak_in: int = 0) -> Report:
    """One platform of its own in `data_dir`, soaked until the goals are reached, or given up at the limit. The first
    `soak_in` swaps do not count: they fill what the platform remembers of its past, a thousand transitions for one."""
    settings = {
        "REGISTRY_MODEL_ROOTS": json.dumps([str(small_models(1, MODEL_SEED)[0].parent.parent)]),
        "LIFECYCLE_MINIMUM_RESIDENCY_SECONDS": "0.2",
        "LIFECYCLE_NODE": "soak",
        # Nothing here is about how fast a machine is.
        "LIFECYCLE_LAUNCH_TIMEOUT_SECONDS": str(PATIENCE_SECONDS),
        "LIFECYCLE_UNRESPONSIVE_SECONDS": "60",
        "LIFECYCLE_PROBE_TIMEOUT_SECONDS": "120",
    }
    up = Up(data_dir, settings=settings)
    up.launch()
    try:
        up.wait_ready(PATIENCE_SECONDS)
        return Soak(up, goals, seed, limit_seconds, soak_in).run()
    finally:
        up.stop()


def evidence(report: Report) -> str:
    """The page of a run."""
    rows = {
        **provenance(),
        "seed": report.seed,
        "duration": f"{report.seconds:.0f} s, of which {report.load_seconds:.0f} s under load",
        "models": f"{len(ECHO_MIB)} echo, {min(ECHO_MIB)} to {max(ECHO_MIB)} MiB; {REAL_MODELS} sentence-transformers",
        "room": f"{ROOM_MIB} MiB, beside what fork servers share",
        **dict(sorted(report.counts.items())),
        "lost requests": len(report.lost),
        "workers that ended unexplained": len(report.unexplained),
        "samples of the watcher": report.watched.get("samples"),
        "violations seen by it": json.dumps(report.watched.get("violations")),
        "most charged": f"{report.watched.get('most_charged_bytes', 0) / MIB:.0f} MiB",
        "most private memory of workers": f"{report.watched.get('most_private_bytes', 0) / MIB:.0f} MiB",
        "memory before and after": f"{report.before_bytes / MIB:.1f} and {report.after_bytes / MIB:.1f} MiB "
        f"({report.growth:+.2%})",
        "verdict": "; ".join(report.wrong()) or "passed",
    }
    return page("Soak", "By `make soak`; bench/soak.py says what it does and what must never be.", rows)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--cancelled", type=int, default=1000)
    parser.add_argument("--answered", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--soak-in", type=int, default=300, help="swaps before memory is measured; they do not count")
    parser.add_argument("--hours", type=float, default=2.0, help="the most that it may take")
    given = parser.parse_args()
    goals = Goals(given.swaps, given.kills, given.cancelled, given.answered)
    with tempfile.TemporaryDirectory(prefix="mm-soak-") as folder:
        report = soak(Path(folder) / "data", goals, given.seed, 3600 * given.hours, given.soak_in)
    return conclude("soak", evidence(report), given.evidence, report.wrong())


if __name__ == "__main__":
    sys.exit(main())
