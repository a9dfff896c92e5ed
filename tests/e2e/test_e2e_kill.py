"""SIGKILL at any time: no process stays, the next start needs no hand, and what was acknowledged is there.

Each drill runs ten times with seeds 0 to 9; the seed chooses how long writes and loads go on before the blow.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

import grpc
import pytest
from e2e.conftest import StartUp
from e2e.rig import eventually, family, no_process_left, postgres_pids, processes_of, send
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.registry.v1 import registry_pb2

from bench.up import Up

SEEDS = range(10)


class Writers:
    """Threads that write, load and embed against one platform, and remember what was acknowledged."""

    def __init__(self, up: Up, seed: int) -> None:
        self.up = up
        self.acknowledged: list[str] = []
        self.embedded = 0
        self.enough = threading.Event()
        self.stopped = threading.Event()
        self._seed = seed
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._register, self._load, self._embed)
        ]

    def _register(self) -> None:
        while not self.stopped.is_set():
            model_id = f"drill/{uuid.uuid4().hex}"
            request = registry_pb2.CreateModelRequest(model_id=model_id, request_id=str(uuid.uuid4()))
            request.model.task_type = 1
            try:
                self.up.registry.CreateModel(request, timeout=10)
            except grpc.RpcError:
                self.stopped.wait(0.02)
                continue
            self.acknowledged.append(f"models/{model_id}")
            if len(self.acknowledged) % 5 == 0:
                self.enough.set()

    def _load(self) -> None:
        while not self.stopped.is_set():
            try:
                self.up.lifecycle.LoadModel(lifecycle_pb2.LoadModelRequest(model="drill/two", wait=True), timeout=10)
                self.up.lifecycle.UnloadModel(
                    lifecycle_pb2.UnloadModelRequest(model="drill/two", force=True), timeout=10
                )
            except grpc.RpcError:
                self.stopped.wait(0.02)
                continue

    def _embed(self) -> None:
        while not self.stopped.is_set():
            try:
                self.up.inference.Embed(inference_pb2.EmbedRequest(model="drill/one", texts=["a b"]), timeout=10)
            except grpc.RpcError:
                self.stopped.wait(0.02)
                continue
            self.embedded += 1

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join(60)  # two calls of 10 s each
            assert not thread.is_alive(), "a call hangs"


def prepare(up: Up) -> None:
    for name in ("one", "two"):
        up.add_model(f"drill/{name}", engine="echo", options={"load_seconds": 0.05})


def told(ask: Callable[[], Any]) -> Any:
    """What it answers; None while it cannot."""
    try:
        return ask()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:  # a database that is slow to come back is waited for
            raise
        return None


def committed_is_there(up: Up, names: list[str]) -> None:
    found: set[str] = set()
    request = registry_pb2.ListModelsRequest(page_size=1000)

    while True:
        answer = eventually(lambda: told(lambda: up.registry.ListModels(request, timeout=10)), 60, "the models")
        found |= {model.name for model in answer.models}
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    assert [name for name in names if name not in found] == []


def still_works(up: Up) -> None:
    embed = inference_pb2.EmbedRequest(model="drill/one", texts=["a b"])
    answer = eventually(lambda: told(lambda: up.inference.Embed(embed, timeout=30)), 60, "an answer")
    assert len(answer.embeddings) == 1


@contextmanager
def blows(up: Up, seed: int) -> Iterator[Writers]:
    """Writers at work; the body runs at a moment that the seed chose, with at least five acknowledged writes."""
    with Writers(up, seed) as writers:
        assert writers.enough.wait(60), up.tail()
        threading.Event().wait(random.Random(seed).uniform(0, 0.4))
        yield writers


@pytest.mark.timeout(400)
def test_the_host_killed_ten_times_leaves_nothing_behind(start_up: StartUp) -> None:
    up = start_up()
    prepare(up)
    for seed in SEEDS:
        with blows(up, seed) as writers:
            up.signal(signal.SIGKILL)
            up.wait(30)
            no_process_left(up.data_dir)
        up.start()
        committed_is_there(up, writers.acknowledged)
        still_works(up)


@pytest.mark.timeout(400)
def test_everything_killed_at_once_ten_times_starts_again(start_up: StartUp) -> None:
    up = start_up()
    prepare(up)
    for seed in SEEDS:
        with blows(up, seed) as writers:
            victims = family(up.data_dir, up.pid)
            assert len(victims) > 3, victims
            random.Random(seed).shuffle(victims)
            send(victims, signal.SIGKILL)
            up.wait(30)
            no_process_left(up.data_dir)
        up.start()
        committed_is_there(up, writers.acknowledged)
        still_works(up)


@pytest.mark.timeout(400)
def test_postgres_killed_ten_times_comes_back_by_itself(start_up: StartUp) -> None:
    up = start_up()
    prepare(up)
    acknowledged: list[str] = []
    for seed in SEEDS:
        with blows(up, seed) as writers:
            before = postgres_pids(up.data_dir)
            assert before, processes_of(up.data_dir)
            send(before[:1] if seed % 2 else before, signal.SIGKILL)
            # A process may live on for a moment after the blow, and answer.
            gone = "those that were killed, and those that lost their server, are gone"
            eventually(lambda: not set(postgres_pids(up.data_dir)) & set(before), 60, gone)  # noqa: B023
            written = len(writers.acknowledged)
            eventually(lambda: len(writers.acknowledged) > written + 3, 60, "writes are acknowledged again")  # noqa: B023
        acknowledged += writers.acknowledged
        committed_is_there(up, writers.acknowledged)
    still_works(up)
    assert up.stop() == 0
    no_process_left(up.data_dir)
    up.start()
    committed_is_there(up, acknowledged)


def test_a_pid_file_that_points_to_an_innocent_process_harms_nobody(start_up: StartUp) -> None:
    up = start_up()
    prepare(up)
    send(family(up.data_dir, up.pid), signal.SIGKILL)
    up.wait(30)
    no_process_left(up.data_dir)
    innocent = Popen([sys.executable, "-c", "input()"], stdin=-1, stdout=DEVNULL)
    try:
        pid_files = list(up.data_dir.rglob("postmaster.pid"))
        assert pid_files, "the server died without its pid file?"
        for file in pid_files:
            lines = file.read_text().splitlines()
            file.write_text("\n".join([str(innocent.pid), *lines[1:]]) + "\n")
        _point_other_pid_files(up.data_dir, innocent.pid)
        up.start()
        still_works(up)
        assert innocent.poll() is None
        assert up.stop() == 0
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait(30)


def _point_other_pid_files(data_dir: Path, pid: int) -> None:
    """Whatever else of ours holds a pid: the lock's text and the endpoint file."""
    for file in (data_dir / "lock", data_dir / "run" / "endpoint.json"):
        if file.exists():
            text = file.read_text()
            digits = "".join(letter if letter.isdigit() else " " for letter in text).split()
            for number in digits:
                if len(number) > 2:
                    text = text.replace(number, str(pid), 1)
                    break
            file.write_text(text)
