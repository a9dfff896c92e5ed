"""What file names and JSON files tell about a model."""

from __future__ import annotations

from typing import Any

import pytest
from modelmora.errors import InvalidModelFiles, UnsafeFile
from modelmora_registry.domain import ModelLimits, TaskType
from modelmora_registry.metadata import (
    check_modules,
    check_weights,
    config_paths,
    kind_of,
    limits_of,
    looks_like_pickle,
    missing_weights,
    pickle_problem,
    wanted_of,
)

TRANSFORMER = {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
DENSE = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
MEAN = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def test_modules_make_a_sentence_transformer() -> None:
    assert kind_of(["modules.json", "x"]).engine == "sentence_transformers"
    assert kind_of(["modules.json"]).task_type is TaskType.TXT2EMBED
    assert kind_of(["sub/modules.json", "config.json"]).engine is None


def test_the_class_in_its_configuration_tells_what_a_model_of_transformers_does():
    def told(config: object, *paths: str, task: TaskType | None = None) -> tuple[str | None, TaskType | None]:
        kind = kind_of(["config.json", "model.safetensors", *paths], config, task)
        return kind.engine, kind.task_type

    one, three = {"0": "LABEL_0"}, {"0": "a", "1": "b", "2": "c"}
    judge = {"architectures": ["BertForSequenceClassification"]}
    classifies = ("transformers", TaskType.CLASSIFICATION)
    ranks = ("transformers", TaskType.RERANKING)
    assert told(judge) == classifies
    assert told({**judge, "id2label": three}) == classifies
    assert told({**judge, "id2label": one}) == ranks
    assert told({**judge, "id2label": one}, "modules.json") == ranks, "a cross-encoder as it is saved today"
    assert told({**judge, "id2label": one}, task=TaskType.CLASSIFICATION) == classifies
    assert told({**judge, "id2label": three}, task=TaskType.RERANKING) == (None, None)
    assert told(None, task=TaskType.RERANKING) == ranks, "of a remote source only names are known"
    sees = {"architectures": ["ViTForImageClassification"]}
    labels_images = ("transformers_images", TaskType.CLASSIFICATION)
    assert told(sees) == told(sees, task=TaskType.CLASSIFICATION) == labels_images
    assert told(sees, task=TaskType.RERANKING) == (None, None)
    assert told(None, "preprocessor_config.json", task=TaskType.CLASSIFICATION) == labels_images
    assert told(None, "preprocessor_config.json") == (None, None), "it may be one of sound"
    assert told(None, "preprocessor_config.json", "vocab.txt", task=TaskType.CLASSIFICATION) == classifies
    for config in (None, [], {"architectures": "x"}, {"architectures": [3]}, {"architectures": ["BertModel"]}):
        assert told(config) == (None, None)
        assert told(config, "modules.json") == ("sentence_transformers", TaskType.TXT2EMBED)


@pytest.mark.parametrize(
    ("configs", "tokens", "dimensions"),
    [
        ({}, None, None),
        ({"modules.json": {}}, None, None),
        ({"modules.json": [3]}, None, None),
        ({"modules.json": [TRANSFORMER, POOLING], "1_Pooling/config.json": MEAN}, None, 384),
        ({"modules.json": [TRANSFORMER], "sentence_bert_config.json": {"max_seq_length": 256}}, 256, None),
        (
            {
                "modules.json": [TRANSFORMER],
                "config.json": {"max_position_embeddings": 512, "hidden_size": 768},
                "tokenizer_config.json": {"model_max_length": 128},
            },
            128,
            768,
        ),
        (
            {"modules.json": [TRANSFORMER], "tokenizer_config.json": {"model_max_length": int(1e30)}},
            None,
            None,
        ),
        (
            {
                "modules.json": [TRANSFORMER, POOLING, DENSE],
                "1_Pooling/config.json": MEAN,
                "2_Dense/config.json": {"out_features": 64},
            },
            None,
            64,
        ),
        (
            {
                "modules.json": [TRANSFORMER, POOLING],
                "1_Pooling/config.json": {**MEAN, "pooling_mode_cls_token": True},
            },
            None,
            768,
        ),
        (
            {
                "modules.json": [TRANSFORMER, POOLING],
                "1_Pooling/config.json": {"embedding_dimension": 10, "pooling_mode": ["mean", "max"]},
            },
            None,
            20,
        ),
        (
            {
                "modules.json": [{**TRANSFORMER, "path": "0_Transformer"}, POOLING],
                "0_Transformer/sentence_bert_config.json": {"max_seq_length": 32},
                "sentence_bert_config.json": {"max_seq_length": 99},
            },
            32,
            None,
        ),
        ({"modules.json": [TRANSFORMER], "sentence_bert_config.json": {"max_seq_length": "256"}}, None, None),
        ({"modules.json": [TRANSFORMER], "sentence_bert_config.json": {"max_seq_length": -1}}, None, None),
        ({"modules.json": [TRANSFORMER], "sentence_bert_config.json": [1]}, None, None),
    ],
)
def test_limits_are_read_from_the_files(configs: dict[str, Any], tokens: int | None, dimensions: int | None) -> None:
    assert limits_of(configs) == ModelLimits(max_input_tokens=tokens, embedding_dimensions=dimensions)


def test_only_configs_are_read() -> None:
    assert config_paths(["a.json", "config.json", "1_Pooling/config.json", "model.safetensors"]) == [
        "1_Pooling/config.json",
        "config.json",
    ]


@pytest.mark.parametrize(
    "modules", [[{"type": "evil.Module"}], [{}], [{"type": 3}], ["x"], [TRANSFORMER, {"type": ""}]]
)
def test_modules_that_bring_code_are_refused(modules: Any) -> None:
    with pytest.raises(UnsafeFile):
        check_modules(modules)


def test_modules_of_the_library_are_taken() -> None:
    check_modules([TRANSFORMER, POOLING])
    check_modules(None)


@pytest.mark.parametrize("path", ["pytorch_model.bin", "a/x.PT", "m.pkl", "m.ckpt", "m.h5", "m.joblib", "x.bin"])
def test_pickle_weights_are_known_by_their_names(path: str) -> None:
    assert pickle_problem(path)


@pytest.mark.parametrize("path", ["model.safetensors", "vocab.txt", "bin", "openvino/openvino_model.bin", "m.onnx"])
def test_other_files_are_not_taken_for_pickles(path: str) -> None:
    assert pickle_problem(path) is None


@pytest.mark.parametrize(
    ("path", "head", "answer"),
    [
        ("x.dat", b"\x80\x04\x95", True),
        ("x.dat", b"\x80\x02\x8a", True),
        ("x.model", b"PK\x03\x04", True),
        ("x.npz", b"PK\x03\x04", False),
        ("x.safetensors", b"\x80\x04\x00\x00\x00\x00\x00\x00", False),
        ("x.txt", b"\x80", False),
        ("x.txt", b"", False),
        ("x.json", b"{}", False),
    ],
)
def test_pickles_are_known_by_their_first_bytes(path: str, head: bytes, answer: bool) -> None:
    assert looks_like_pickle(path, head) is answer


def test_of_a_repository_only_what_is_needed_is_wanted() -> None:
    paths = [
        *("model.safetensors", "pytorch_model.bin", "tf_model.h5", "rust_model.ot", "onnx/model.onnx", "config.json"),
        *("openvino/openvino_model.xml", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "train.py"),
        *(".gitattributes", ".cache/x", "README.md", "sub/.hidden"),
    ]
    assert wanted_of(paths) == ["2_Dense/model.safetensors", "README.md", "config.json", "model.safetensors"]


def test_weights_without_safetensors_beside_them_stay_to_be_refused() -> None:
    assert wanted_of(["model.safetensors", "2_Dense/pytorch_model.bin"]) == [
        "2_Dense/pytorch_model.bin",
        "model.safetensors",
    ]
    assert wanted_of(["onnx/model.onnx"]) == ["onnx/model.onnx"]


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("paths", "missing"),
    [
        (["modules.json", "config.json"], "model.safetensors"),
        (["modules.json", "pytorch_model.bin"], "model.safetensors"),
        (["modules.json", "model.safetensors"], None),
        (["config.json", "0_Transformer/model.safetensors"], None),
        ([*SHARDS, INDEX], None),
        ([SHARDS[0], INDEX], SHARDS[1]),
        (SHARDS, INDEX),
        ([f"sub/{SHARDS[1]}", f"sub/{INDEX}", "model.safetensors"], f"sub/{SHARDS[0]}"),
    ],
)
def test_names_tell_which_weights_are_missing(paths: list[str], missing: str | None) -> None:
    assert missing_weights("sentence_transformers", paths) == missing
    assert missing_weights("echo", paths) is None


@pytest.mark.parametrize(
    ("configs", "paths", "missing"),
    [
        ({}, [], None),
        ({"modules.json": [TRANSFORMER, POOLING]}, ["model.safetensors"], None),
        ({"modules.json": [TRANSFORMER, DENSE]}, ["2_Dense/model.safetensors"], "model.safetensors"),
        ({"modules.json": [TRANSFORMER, DENSE]}, ["model.safetensors"], "2_Dense/model.safetensors"),
        ({"modules.json": [{**TRANSFORMER, "path": "0_Transformer/"}]}, ["0_Transformer/model.safetensors"], None),
        ({"modules.json": [TRANSFORMER], INDEX: {"weight_map": {"a": "one.safetensors"}}}, ["one.safetensors"], None),
        (
            {INDEX: {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}},
            ["two.safetensors"],
            "one.safetensors",
        ),
        ({f"x/{INDEX}": {"weight_map": {"a": "one.safetensors"}}}, ["one.safetensors"], "x/one.safetensors"),
        ({INDEX: [], f"x/{INDEX}": {"weight_map": 3}}, [], None),
    ],
)
def test_a_module_without_weights_is_refused(configs: dict[str, Any], paths: list[str], missing: str | None) -> None:
    if missing is None:
        check_weights(configs, paths)
        return
    with pytest.raises(InvalidModelFiles) as raised:
        check_weights(configs, paths)
    assert raised.value.metadata["file"] == missing
