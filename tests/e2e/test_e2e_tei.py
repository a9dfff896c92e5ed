"""tei.v1 against stubs that others made of the published messages, in a process of its own: the answers of our SDK."""

from __future__ import annotations

import json
import math
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import modelmora
import pytest
from e2e.rig import MINILM
from e2e.test_e2e_buf_curl import buf_curl
from environments import environment
from small_models import build, sentences

from bench.up import Up

PINS = [
    "tei-client==0.2.4",
    "grpcio==1.85.1",
    "protobuf==6.33.5",
    "httpx==0.28.1",
    "pydantic==2.14.3",
]
CLOSE = 1e-5
QUERY = "what is a queue"


@pytest.fixture(scope="module")
def models(platform: Up, model_root: Path) -> dict[str, str]:
    names = {"embed": MINILM}
    for task, kind in (("classify", "classifier"), ("rerank", "reranker")):
        names[task] = f"tei/{task}"
        platform.add_model(names[task], engine="transformers", folder=build(kind, model_root / f"tei-{task}"))
    return names


def near(found: list[float], wanted: Any) -> bool:
    return len(found) == len(wanted) and max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= CLOSE


@pytest.mark.timeout(900)  # an empty cache fetches the environment
def test_stubs_of_others_get_the_answers_of_our_sdk(platform: Up, models: dict[str, str]) -> None:
    python = environment("tei", PINS)
    texts = ["one text", "The queue holds what nobody has computed yet.", "a " * 600, *sentences(20, 3)]
    job = {"target": platform.target, "models": models, "texts": texts, "query": QUERY}
    environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    with modelmora.Client(platform.target) as client:
        over = threading.Event()

        def meanwhile() -> None:
            while not over.is_set():
                client.embed(MINILM, texts[:2])

        company = threading.Thread(target=meanwhile)
        company.start()
        try:
            done = subprocess.run(
                [str(python), "-P", str(Path(__file__).with_name("tei_program.py"))],
                input=json.dumps(job), env=environ, capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
        finally:
            over.set()
            company.join(30)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["modules"] == []

        vectors = client.embed(MINILM, texts, precision="exact")
        for n in range(3):
            assert near(told[f"embed {n}"]["embeddings"], vectors[n])
        for found, wanted in zip(told["embed stream"], vectors, strict=True):
            assert near(found["embeddings"], wanted)
        plain = client.embed(MINILM, texts[:1], precision="exact", normalize=False)[0]
        assert near(told["embed plain"]["embeddings"], plain)
        tokens = client.tokenize(MINILM, texts[:1]).texts[0].tokens
        assert [one["id"] for one in told["tokenize"]["tokens"]] == [one.id for one in tokens]
        assert [one["text"] for one in told["tokenize"]["tokens"]] == ["[CLS]", "one", "text", "[SEP]"]
        assert (told["decode"]["text"], told["decode all"]["text"]) == ("one text", "[CLS] one text [SEP]")
        ranked = client.rerank(models["rerank"], QUERY, texts, precision="exact").ranked
        for name in ("rerank", "rerank stream"):
            found = told[name]["ranks"]
            assert [one.get("index", 0) for one in found] == [one.index for one in ranked]
            assert near([one["score"] for one in found], [one.score for one in ranked])
        assert [one["text"] for one in told["rerank"]["ranks"]] == [texts[one.index] for one in ranked]
        labels = client.classify(models["classify"], texts, precision="exact").classifications
        for found, wanted in zip([told["predict"], *told["predict stream"]], [labels[0], *labels], strict=True):
            assert [one["label"] for one in found["predictions"]] == [one.label for one in wanted.labels]
            assert near([one["score"] for one in found["predictions"]], [one.score for one in wanted.labels])

    # The model's vector is the mean of its tokens', made 1 long.
    rows = [one["embeddings"] for one in told["embed all"]["token_embeddings"]]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    length = math.hypot(*mean)
    assert near([value / length for value in mean], vectors[0])
    assert told["sparse"] == "FAILED_PRECONDITION"
    assert told["no model"] == "INVALID_ARGUMENT"
    info = told["info embed"]
    assert (info["model_id"], info["max_input_length"]) == (MINILM, 256)
    assert [told[f"info {task}"].get("model_type") for task in models] == [
        None, "MODEL_TYPE_CLASSIFIER", "MODEL_TYPE_RERANKER",
    ]  # fmt: skip
    metadata = told["embed 1"]["metadata"]
    assert (metadata["compute_chars"], metadata["compute_tokens"]) == (len(texts[1]), len(texts[1].split()) + 3)
    assert 0 < int(metadata["inference_time_ns"]) < int(metadata["total_time_ns"])


def test_buf_curl_calls_it_without_proto_files(platform: Up, tmp_path: Path) -> None:
    answer = json.loads(
        buf_curl(
            tmp_path, "-H", f"x-model-id: {MINILM}", "-d", json.dumps({"inputs": "one text"}),
            f"http://{platform.target}/tei.v1.Embed/Embed",
        )
    )  # fmt: skip
    assert len(answer["embeddings"]) == 384
