"""A worker killed under load: every unexpired request still gets its own answer."""

from __future__ import annotations

import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2e.conftest import StartUp
from e2e.rig import eventually, send
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2

from bench.up import Up

CLIENTS = 12
CALLS = 60
KILLS = 5


def worker_pids(up: Up) -> list[int]:
    answer = up.lifecycle.ListReplicas(lifecycle_pb2.ListReplicasRequest(), timeout=10)
    return [
        replica.pid
        for replica in answer.replicas
        if replica.state == lifecycle_pb2.REPLICA_STATE_LOADED and replica.pid
    ]


@pytest.mark.timeout(240)
def test_a_worker_killed_under_load_costs_no_answer(start_up: StartUp) -> None:
    up = start_up()
    up.add_model(
        "drill/slow", engine="echo", options={"delay_seconds": 0.03, "load_seconds": 0.1, "max_batch_entries": 4}
    )
    texts = [f"text {number} of client {client}" for client in range(CLIENTS) for number in range(CALLS)]

    def embed(text: str) -> tuple[float, ...]:
        answer = up.inference.Embed(inference_pb2.EmbedRequest(model="drill/slow", texts=[text]), timeout=60)
        return tuple(answer.embeddings[0].values)

    answers: dict[str, tuple[float, ...]] = {}
    answered = [0] * CLIENTS
    counted = threading.Lock()

    def client(number: int) -> None:
        for text in texts[number::CLIENTS]:
            vector = embed(text)
            with counted:
                answers[text] = vector
                answered[number] += 1

    def all_had_one_since(before: list[int]) -> bool:
        return all(now > then or now == CALLS for now, then in zip(answered, before, strict=True))

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(client, number) for number in range(CLIENTS)]
        chance = random.Random(5)
        before = answered.copy()
        for kill in range(1, KILLS + 1):
            goal = len(texts) * kill // (KILLS + 2) + chance.randrange(20)
            eventually(lambda: len(answers) >= goal, 60, f"{goal} answers")  # noqa: B023
            # Of a text that is alone on a worker that dies twice the platform says that it kills workers. Whoever
            # stood still until the goals were passed would kill the next worker under the texts of the last.
            eventually(lambda: all_had_one_since(before), 60, "an answer to what the last kill has hit")  # noqa: B023
            before = answered.copy()
            pids = eventually(lambda: worker_pids(up), 30, "a loaded worker")
            send(pids, signal.SIGKILL)
        for future in running:
            future.result(120)

    assert len(answers) == len(texts)
    # The engine's vector is a function of the text alone, so what comes now, in peace, is the truth.
    sample = random.Random(6).sample(texts, 100)
    assert [text for text in sample if answers[text] != pytest.approx(embed(text), abs=1e-6)] == []
    assert len(set(answers.values())) == len(texts)
