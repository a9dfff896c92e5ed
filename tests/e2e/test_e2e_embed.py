"""2,000 texts from 16 processes, each answer compared with sentence-transformers' vector for its own text."""

from __future__ import annotations

import base64
import json
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
from e2e import reference
from e2e.rig import MINILM, eventually, minilm_folder

from bench.up import Up
from bench.workload import skewed

TEXTS = 2000
CLIENTS = 16
REPEATED = "This one text is asked for again and again, beside ever different neighbours."


def wrong_rows(answers: numpy.ndarray, truth: numpy.ndarray) -> list[int]:
    """Indices of rows whose cosine to the truth is below 0.99999, or that are not of length 1."""
    lengths = numpy.linalg.norm(answers, axis=1)
    cosines = (answers * truth).sum(axis=1) / (lengths * numpy.linalg.norm(truth, axis=1))
    good = (cosines >= 0.99999) & (abs(lengths - 1) < 1e-4)
    return [int(index) for index in numpy.flatnonzero(~good)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = [*skewed(TEXTS, most_words=400, seed=20), REPEATED]
    assert len(set(found)) == TEXTS + 1
    words = [len(text.split()) for text in found]
    assert (min(words), max(words)) == (1, 400)
    return found


@pytest.fixture(scope="module")
def truth(texts: list[str]) -> numpy.ndarray:
    return reference.vectors(minilm_folder(), texts)


def run_clients(target: str, texts: list[str]) -> tuple[dict[int, list[bytes]], list[list[object]]]:
    """Answers by index of the text (several for the repeated one), and what failed."""
    chance = random.Random(7)
    repeated = texts.index(REPEATED)
    order = [(index, text) for index, text in enumerate(texts) if index != repeated]
    chance.shuffle(order)
    jobs = []
    for client in range(CLIENTS):
        share = order[client::CLIENTS]
        # Each client asks for the repeated text at two places of its own, so in batches with other neighbours.
        for _ in range(2):
            share.insert(chance.randrange(len(share)), (repeated, REPEATED))
        jobs.append({"target": target, "model": MINILM, "texts": share, "seed": client})

    def run(job: dict[str, object]) -> dict[str, list[list[object]]]:
        command = [sys.executable, "-P", str(Path(__file__).with_name("client_process.py"))]
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        answer: dict[str, list[list[object]]] = json.loads(done.stdout)
        return answer

    answers: dict[int, list[bytes]] = {}
    failures: list[list[object]] = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        for result in pool.map(run, jobs):
            failures += result["errors"]
            for index, row in result["answers"]:
                answers.setdefault(int(str(index)), []).append(base64.b64decode(str(row)))
    return answers, failures


def total(samples: dict[str, float], name: str, **labels: str) -> float:
    """Sum of a metric over its label sets, restricted to those that carry `labels`."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        value
        for sample, value in samples.items()
        if re.split(r"[{ ]", sample)[0] == name and all(label in sample for label in wanted)
    )


@pytest.mark.timeout(1000)
def test_every_answer_is_the_vector_of_its_own_text(platform: Up, texts: list[str], truth: numpy.ndarray) -> None:
    before = platform.scrape()
    answers, failures = run_clients(platform.target, texts)
    assert failures == []
    repeated = texts.index(REPEATED)
    assert sorted(answers) == list(range(len(texts)))
    assert {len(rows) for index, rows in answers.items() if index != repeated} == {1}
    rows = numpy.stack([numpy.frombuffer(answers[index][0], "<f4") for index in range(len(texts))])
    assert wrong_rows(rows, truth) == []

    # The comparison has teeth: two rows swapped are both seen, even of the most similar pair. (More similar than this
    # are texts that the tokenizer takes for equal, such as "The" and "the".)
    similar = rows @ rows.T
    similar[similar > 0.9999] = -1
    one, other = divmod(int(similar.argmax()), len(rows))
    swapped = rows.copy()
    swapped[[one, other]] = swapped[[other, one]]
    assert wrong_rows(swapped, truth) == sorted((one, other))

    # One text beside ever different neighbours: always the same vector.
    again = numpy.stack([numpy.frombuffer(row, "<f4") for row in answers[repeated]])
    assert len(again) == 2 * CLIENTS
    assert wrong_rows(again, numpy.repeat(truth[repeated : repeated + 1], len(again), axis=0)) == []

    # Batching is real: the worker's own counts say so, and the metrics of the caller's side agree.
    def grown(name: str) -> float:
        return total(platform.scrape(), name) - total(before, name)

    # The worker tells its counts once a second.
    eventually(lambda: grown("modelmora_worker_entries_total") == TEXTS + 2 * CLIENTS, 60, "every entry is counted")
    batches, entries = grown("modelmora_worker_batches_total"), grown("modelmora_worker_entries_total")
    assert entries / batches >= 4, f"{entries} entries in {batches} batches"
    assert grown("modelmora_inference_batch_entries_sum") == entries
    assert grown("modelmora_inference_batch_entries_count") == batches
