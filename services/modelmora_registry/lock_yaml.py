"""Reading a lock's YAML: what a person may have edited is refused with the line and the path of what is wrong.

Only the plain part of YAML is read, whatever a library would make of the rest: no anchors and aliases (a few lines of
them can be gigabytes), no tags, no second document, no key twice; and no more than so many bytes, nodes and levels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

import yaml
from modelmora.errors import FieldViolation, InvalidArgument
from modelmora_runtime import protomap

from modelmora_registry.locks import LockDocument

MAX_LOCK_BYTES = 8 * 2**20
MAX_NODES = 500_000
MAX_DEPTH = 32

# With libyaml where the wheel has it: ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PREFIX = "tag:yaml.org,2002:"
_TEXT = frozenset({"str", "timestamp", "value"})
_INDEX = re.compile(r"\[\d+\]$")


def read(text: str, *, at: str = "yaml") -> LockDocument:
    """The document in `text`. Raises InvalidArgument; the fields are paths in the lock, below `at`. Blocks for as long
    as it is large."""
    if len(text) > MAX_LOCK_BYTES or len(text.encode(errors="replace")) > MAX_LOCK_BYTES:
        raise InvalidArgument.at(at, f"a lock has at most {MAX_LOCK_BYTES} bytes")
    lines: dict[str, int] = {}
    try:
        content = _read(text, lines, at)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        _refuse(at, f"is no YAML: {getattr(error, 'problem', None) or 'it cannot be read'}", mark)
    if not isinstance(content, Mapping):
        raise InvalidArgument.at(at, "line 1: is no lock; a lock is a mapping with format and models")
    try:
        return protomap.parse(content, LockDocument)
    except InvalidArgument as error:
        found = [FieldViolation(f"{at}.{v.field}", f"{_place(v.field, lines)}{v.description}") for v in error.fields]
        raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in found[:10]), fields=found) from None


def _read(text: str, lines: dict[str, int], at: str) -> Any:
    """Plain values; `lines` is filled with the line of each path."""
    _check_events(text, at)
    node = yaml.compose(text, Loader=_Loader)
    return None if node is None else _plain(node, "", lines, at)


def _check_events(text: str, at: str) -> None:
    depth = documents = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            _refuse(at, "anchors and aliases are not read", event.start_mark)
        if getattr(event, "tag", None) is not None:
            _refuse(at, "tags are not read", event.start_mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > MAX_DEPTH:
            _refuse(at, f"more than {MAX_DEPTH} levels", event.start_mark)
        if documents > 1:
            _refuse(at, "a lock is one document", event.start_mark)
        if count > MAX_NODES:
            _refuse(at, f"more than {MAX_NODES} parts", event.start_mark)


def _plain(node: Any, path: str, lines: dict[str, int], at: str) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        made: dict[str, Any] = {}
        for key_node, item in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or key_node.tag.removeprefix(_PREFIX) not in _TEXT:
                _refuse(at, "a key must be text", key_node.start_mark)
            inner = f"{path}.{key}" if path else key
            if key in made:
                _refuse(f"{at}.{inner}", "is there twice", key_node.start_mark)
            made[key] = _plain(item, inner, lines, at)
        return made
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, f"{path}[{index}]", lines, at) for index, item in enumerate(node.value)]
    return _scalar(node, f"{at}.{path}" if path else at)


def _scalar(node: Any, at: str) -> Any:
    kind, text = node.tag.removeprefix(_PREFIX), node.value
    if kind in _TEXT:
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        _refuse(at, f"{text[:100]!r} is no decimal number; put text in quotes", node.start_mark)


def _place(path: str, lines: Mapping[str, int]) -> str:
    """`line 7: ` of a path, or of what it stands in when it is not there."""
    while path and path not in lines:
        path = _INDEX.sub("", path) if _INDEX.search(path) else path.rpartition(".")[0]
    return f"line {lines.get(path, 1)}: "


def _refuse(at: str, problem: str, mark: Any) -> NoReturn:
    raise InvalidArgument.at(at, f"line {mark.line + 1 if mark is not None else 1}: {problem}")
