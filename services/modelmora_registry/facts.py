"""Reads what the files of a version tell, within bounds: safetensors headers, the model card, digests of tokenizers.

Files come from strangers. Weights and configurations that cannot be read could never be loaded, so the version fails
with InvalidModelFiles. A card is for people: what cannot be read of it stays unknown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from modelmora.errors import InvalidArgument

from modelmora_registry import contents, metadata
from modelmora_registry.domain import ArtifactFile, ModelId
from modelmora_registry.metadata import Card, Facts, Weights, word_of

MAX_CARD_BYTES = 2**20
MAX_CARD_CHARACTERS = 100_000
MAX_FRONT_MATTER = 64 * 2**10
MAX_TAGS = 100
CARD_FILE = "README.md"
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.S | re.M)


def read_facts(folder: Path, files: Sequence[ArtifactFile], configs: Mapping[str, Any]) -> Facts:
    """Facts of the version whose files lie in `folder`. `configs` is the parsed JSON of `metadata.config_paths`. Raises
    InvalidModelFiles."""
    paths = [file.path for file in files]
    weights = Weights()
    for path in metadata.weight_paths(paths, configs):
        weights = weights + read_weights(folder / path, path)
    card = parse_card(_head(folder / CARD_FILE, MAX_CARD_BYTES)) if CARD_FILE in paths else Card()
    digests = {file.path: file.sha256 for file in files}
    return Facts(
        metadata=metadata.metadata_of(configs, digests, weights, card),
        limits=metadata.limits_of(configs),
        base_model=card.base_model,
    )


def read_weights(file: Path, path: str) -> Weights:
    """The numbers and bytes that the header of a safetensors file announces."""
    with open(file, "rb") as opened:
        header = contents.safetensors_header(opened, file.stat().st_size, path)
    elements: dict[str, int] = {}
    stored: dict[str, int] = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            dtype = word_of(tensor["dtype"]) or "unknown"
            begin, end = tensor["data_offsets"]
            elements[dtype] = elements.get(dtype, 0) + math.prod(tensor["shape"])
            stored[dtype] = stored.get(dtype, 0) + end - begin
    return Weights(elements=elements, stored_bytes=stored)


class _PlainYaml(yaml.SafeLoader):
    """Without aliases: a few hundred bytes of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def parse_card(raw: bytes) -> Card:
    """A README with its front matter, as far as it can be read."""
    text = raw.decode(errors="replace").replace("\r\n", "\n").replace("\x00", "").removeprefix("\ufeff")
    found = _FRONT_MATTER.match(text)
    facts: Any = {}
    if found is not None and len(found[1]) <= MAX_FRONT_MATTER:
        try:
            facts = yaml.load(found[1], _PlainYaml)
        except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError, AttributeError):
            facts = {}
    facts = facts if isinstance(facts, dict) else {}
    names = [word for item in _list(facts.get("license")) if (word := word_of(item))]
    if names == ["other"] and (given := word_of(facts.get("license_name"))):
        names = [given]
    return Card(
        text=text[found.end() if found else 0 :].strip()[:MAX_CARD_CHARACTERS],
        license=", ".join(names)[:200],
        tags=tuple(word for tag in _list(facts.get("tags"))[:MAX_TAGS] if (word := word_of(tag))),
        base_model=_model_name(facts.get("base_model")),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _model_name(value: Any) -> str:
    first = _list(value)[0] if _list(value) else None
    try:
        return ModelId.parse(first).name if isinstance(first, str) else ""
    except InvalidArgument:
        return ""


def _head(file: Path, limit_bytes: int) -> bytes:
    with open(file, "rb") as opened:
        return opened.read(limit_bytes)
