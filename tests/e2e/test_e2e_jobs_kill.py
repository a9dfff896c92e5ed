"""Fault drill of inference jobs: workers, the host and the database are killed in random order under load.

Every accepted job ends exactly once, SUCCEEDED, with one right vector for each text; every synchronous call gets its
answer or an error that may be retried, in its time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from array import array
from collections import Counter
from pathlib import Path

import grpc
import pytest
from e2e.conftest import StartUp
from e2e.rig import eventually, family, postgres_pids, send
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora_worker.engines.echo import vector

from bench.up import Up

MODEL = "drill/jobs"
RETRYABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
CALL_SECONDS = 30.0
FINAL = (common_pb2.JOB_STATE_SUCCEEDED, common_pb2.JOB_STATE_FAILED, common_pb2.JOB_STATE_CANCELLED)


class Load:
    """Threads that make jobs, wait for each and look at every vector; and one that calls and waits."""

    def __init__(self, up: Up, seed: int, owners: int) -> None:
        self.up = up
        self.accepted: list[str] = []
        self.ended = 0
        self.texts = 0
        self.calls: Counter[str] = Counter()
        self.slowest_call_seconds = 0.0
        self.wrong: list[str] = []
        self.stopped = threading.Event()
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        works = [self._own] * owners + [self._call]
        self._threads = [threading.Thread(target=self._guarded, args=(work,), daemon=True) for work in works]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a job or a call hangs"

    def _guarded(self, work: object) -> None:
        try:
            while not self.stopped.is_set() and not self.wrong:
                work()  # type: ignore[operator]
        except Exception as error:
            self.wrong.append(repr(error))
            raise

    def _own(self) -> None:
        """One job from its acceptance to its results."""
        with self._lock:
            count = self._chance.randrange(20, 150)
        texts = [uuid.uuid4().hex for _ in range(count)]
        create = pb.CreateInferenceJobRequest(
            model=MODEL, embed=pb.EmbedTask(texts=texts), request_id=str(uuid.uuid4())
        )
        job = self._patiently("CreateInferenceJob", create).job
        self.accepted.append(job.name)
        while job.state not in FINAL:
            self.stopped.wait(0.05)
            job = self._patiently("GetInferenceJob", pb.GetInferenceJobRequest(name=job.name)).job
        if (job.state, job.progress.succeeded, job.progress.failed) != (FINAL[0], count, 0):
            self.wrong.append(f"{job}")
            return
        fetch = pb.GetInferenceResultRequest(name=job.name, encoding=pb.VECTOR_ENCODING_BYTES)
        results = self._patiently("GetInferenceResult", fetch).results
        if [one.index for one in results] != list(range(count)):
            self.wrong.append(f"{job.name}: {[one.index for one in results]}")
        for text, one in zip(texts, results, strict=True):
            found = array("f", one.embed.vector)
            if max(abs(a - b) for a, b in zip(found, vector(0, text, 8), strict=True)) > 1e-6:
                self.wrong.append(f"{job.name}: {one.index}")
        with self._lock:
            self.ended += 1
            self.texts += count

    def _call(self) -> None:
        began = time.monotonic()
        try:
            self.up.inference.Embed(pb.EmbedRequest(model=MODEL, texts=["a b"]), timeout=CALL_SECONDS)
            self.calls["answered"] += 1
        except (grpc.RpcError, ValueError) as error:
            self._check(error)
        self.slowest_call_seconds = max(self.slowest_call_seconds, time.monotonic() - began)
        self.stopped.wait(0.02)

    def _patiently(self, rpc: str, request: object) -> pb.GetInferenceResultResponse:
        until = time.monotonic() + 60
        while True:
            try:
                return getattr(self.up.inference, rpc)(request, timeout=CALL_SECONDS)  # type: ignore[no-any-return]
            except (grpc.RpcError, ValueError) as error:
                self._check(error)
                if time.monotonic() > until:
                    raise AssertionError(f"{rpc} was refused for 60 s") from error
                self.stopped.wait(0.05)

    def _check(self, error: Exception) -> None:
        """An error that may be retried; a ValueError is a channel that the drill closed."""
        if isinstance(error, grpc.RpcError):
            code = error.code()
            self.calls[code.name] += 1
            # Of a killed host the channel itself says so.
            assert code in RETRYABLE or code is grpc.StatusCode.CANCELLED, error


def workers(up: Up) -> list[int]:
    try:
        found = up.lifecycle.ListReplicas(lifecycle_pb2.ListReplicasRequest(), timeout=5).replicas
    except grpc.RpcError:
        return []
    return [one.pid for one in found if one.state == lifecycle_pb2.REPLICA_STATE_LOADED and one.pid]


def kill(up: Up, what: str) -> None:
    if what == "worker":
        send(eventually(lambda: workers(up), 30, "a loaded worker")[:1], signal.SIGKILL)
    elif what == "database":
        send(eventually(lambda: postgres_pids(up.data_dir), 30, "a database")[:1], signal.SIGKILL)
    else:
        left = family(up.data_dir, up.pid)
        up.signal(signal.SIGKILL)
        up.wait(10)
        up.start()
        assert up.pid not in left


def drill(up: Up, *, kills: list[str], seed: int, owners: int) -> Load:
    up.add_model(MODEL, engine="echo", options={"delay_seconds": 0.02, "max_batch_entries": 16, "load_seconds": 0.05})
    with Load(up, seed, owners) as load:
        eventually(lambda: load.ended or load.wrong, 30, "a job that has ended")
        for what in kills:
            before = load.ended
            kill(up, what)
            eventually(lambda: load.ended > before or load.wrong, 60, f"a job that ends after the {what}")  # noqa: B023
            assert not load.wrong, load.wrong
    assert not load.wrong, load.wrong
    # Nothing was accepted twice, nothing was lost, nothing is unfinished.
    listed: dict[str, pb.InferenceJob] = {}
    request = pb.ListInferenceJobsRequest(page_size=1000)
    while True:
        page = up.inference.ListInferenceJobs(request, timeout=10)
        listed |= {job.name: job for job in page.jobs}
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert sorted(listed) == sorted(load.accepted)
    assert {job.state for job in listed.values()} == {common_pb2.JOB_STATE_SUCCEEDED}
    assert load.ended == len(load.accepted)
    assert load.slowest_call_seconds < CALL_SECONDS
    return load


SETTINGS = {"INFERENCE_JOB_CLAIM_SECONDS": "1"}


@pytest.mark.timeout(120)
def test_jobs_survive_the_death_of_workers_the_host_and_the_database(start_up: StartUp) -> None:
    kills = ["worker", "host", "database"] * 3
    random.Random(4).shuffle(kills)
    load = drill(start_up(SETTINGS), kills=kills, seed=4, owners=3)
    assert load.ended >= len(kills)
    assert load.calls["answered"] > 20


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_jobs_survive_minutes_of_deaths(start_up: StartUp) -> None:
    """60 deaths in random order; writes down what was seen."""
    seed = int(os.environ.get("MODELMORA_DRILL_SEED", "7"))
    kills = random.Random(seed).choices(["worker", "host", "database"], k=60)
    began = time.monotonic()
    load = drill(start_up(SETTINGS), kills=kills, seed=seed, owners=4)
    root = Path(__file__).parents[2]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False).stdout
    seen = {
        "commit": commit.strip(),
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "kills": dict(Counter(kills)),
        "jobs_accepted": len(load.accepted),
        "jobs_ended_once": load.ended,
        "texts": load.texts,
        "calls": dict(load.calls),
        "slowest_call_seconds": round(load.slowest_call_seconds, 2),
    }
    folder = root / "docs" / "evidence"
    folder.mkdir(exist_ok=True)
    (folder / "inference-jobs-kill-drill.json").write_text(json.dumps(seen, indent=2) + "\n")
