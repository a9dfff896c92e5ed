"""Filters of lists: a subset of AIP-160, from text to an expression. Pure; docs/filters.md is for callers.

    filter     = [expression]
    expression = term { "AND" term } | term { "OR" term }       (a mix needs parentheses)
    term       = ["NOT" | "-"] ( "(" expression ")" | comparison )
    comparison = field operator value | map ":" key

An expression has no NOT: it is carried down to the comparisons, which then say `negated`. What a comparison asks of
something unset is false, and its negation true, so `NOT x = 1` and `x != 1` are the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import NoReturn

from modelmora.errors import InvalidArgument

from modelmora_registry.domain import MODALITIES, ModelVersionState, Value, bare_name, parse_task

MAX_FILTER_LENGTH = 4000
MAX_DEPTH = 16
MAX_COMPARISONS = 64
MAX_NUMBER = 1e300


class Kind(StrEnum):
    """What a field holds, and so what may be asked of it."""

    NAME = "name"
    """Of a model, in either form."""
    TEXT = "text"
    TASK = "task"
    STATE = "state"
    MODALITY = "modality"
    STAGE = "stage"
    BOOLEAN = "boolean"
    NUMBER = "number"
    TIME = "time"
    LABELS = "labels"
    """Key to text."""
    METRICS = "metrics"
    """Key to number."""


STAGES = ("staging", "production", "archived")
_EQUAL = ("=", "!=", ":")
_ORDERED = ("=", "!=", "<", "<=", ">", ">=")
_MAPS = {Kind.LABELS: Kind.TEXT, Kind.METRICS: Kind.NUMBER}


class Comparison(Value):
    """One question about one row. `operator` is `=`, `<`, `<=`, `>`, `>=`, `has` (a text contains the value, whatever
    the case) or `present` (a map has the key)."""

    field: str
    key: str = ""
    """Of a map."""
    operator: str
    value: str | bool | float | datetime | None = None
    negated: bool = False


class Group(Value):
    """All (`AND`) or any (`OR`) of its parts."""

    operator: str
    parts: tuple[Expression, ...]


Expression = Comparison | Group
Group.model_rebuild()

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = r"""(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_KEY = re.compile(rf"(?P<bare>[A-Za-z0-9_-]+)|{_QUOTED}", re.S)
_VALUE = re.compile(rf"""\s*(?:{_QUOTED}|(?P<bare>[^\s"'()<>=!:][^\s"()]*))""", re.S)
_KEYWORDS = ("AND", "OR", "NOT")


def parse_filter(text: str, fields: Mapping[str, Kind]) -> Expression | None:
    """What a row must be; None: anything. Raises InvalidArgument at `filter`, with the place in the text."""
    if len(text) > MAX_FILTER_LENGTH:
        raise InvalidArgument.at("filter", f"is longer than {MAX_FILTER_LENGTH} characters")
    if "\x00" in text:
        raise InvalidArgument.at("filter", "must not contain a NUL character")
    return _Parser(text, fields).parse() if text.strip() else None


class _Parser:
    def __init__(self, text: str, fields: Mapping[str, Kind]) -> None:
        self._text = text
        self._fields = fields
        self._at = 0
        self._count = 0

    def parse(self) -> Expression:
        expression = self._expression(0, negated=False)
        self._skip()
        if self._at < len(self._text):
            self._fail(f"AND or OR is expected before {self._rest()}")
        return expression

    def _expression(self, depth: int, *, negated: bool) -> Expression:
        if depth > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} parentheses inside each other")
        parts = [self._term(depth, negated=negated)]
        joined = ""
        while (word := self._keyword("AND", "OR")) is not None:
            if joined and word != joined:
                self._fail("AND and OR side by side need parentheses", at=self._at - len(word))
            joined = word
            parts.append(self._term(depth, negated=negated))
        if not joined:
            return parts[0]
        # Not (a and b) is (not a) or (not b).
        return Group(operator=joined if not negated else {"AND": "OR", "OR": "AND"}[joined], parts=tuple(parts))

    def _term(self, depth: int, *, negated: bool) -> Expression:
        while self._keyword("NOT") is not None or self._take("-"):
            negated = not negated
        if not self._take("("):
            return self._comparison(negated=negated)
        expression = self._expression(depth + 1, negated=negated)
        if not self._take(")"):
            self._fail(f"a closing parenthesis is expected before {self._rest()}")
        return expression

    def _comparison(self, *, negated: bool) -> Comparison:
        self._skip()
        began = self._at
        field = _FIELD.match(self._text, began)
        if field is None or field[0] in _KEYWORDS:
            self._fail(f"a field is expected before {self._rest()}")
        name = field[0]
        kind = self._fields.get(name)
        if kind is None:
            self._fail(f"there is no field {name!r}; there are {self._known()}")
        self._count += 1
        if self._count > MAX_COMPARISONS:
            self._fail(f"more than {MAX_COMPARISONS} comparisons")
        self._at = field.end()
        key = self._key(name, kind)
        operator_at = self._skip()
        operator = self._operator(name, kind, key)
        if kind in _MAPS and not key:
            return Comparison(field=name, key=self._raw(name, operator), operator="present", negated=negated)
        kind = _MAPS.get(kind, kind)
        allowed = _ORDERED if kind in (Kind.NUMBER, Kind.TIME) else _EQUAL
        if operator not in allowed:
            self._fail(f"{name} has no operator {operator!r}; it has {' '.join(allowed)}", at=operator_at)
        value_at = self._skip()
        raw = self._raw(name, operator)
        if operator == ":":
            operator = "has" if kind in (Kind.TEXT, Kind.NAME) else "="
        value = raw if operator == "has" else self._value(name, kind, raw, value_at)
        return Comparison(
            field=name,
            key=key,
            operator="=" if operator == "!=" else operator,
            value=value,
            negated=negated != (operator == "!="),
        )

    def _key(self, name: str, kind: Kind) -> str:
        """What stands behind the dot, in quotes where it is no plain word."""
        if not self._text.startswith(".", self._at):
            return ""
        if kind not in _MAPS:
            self._fail(f"{name} has no parts")
        self._at += 1
        found = _KEY.match(self._text, self._at)
        if found is None or found[0] in ('""', "''"):
            self._fail(f"a key of {name} is expected")
        self._at = found.end()
        return found["bare"] or _unquoted(found["quoted"])

    def _operator(self, name: str, kind: Kind, key: str) -> str:
        began = self._at
        for operator in ("<=", ">=", "!=", "=", "<", ">", ":"):
            if self._take(operator):
                if kind in _MAPS and not key and operator != ":":
                    self._fail(f"{name} is asked by key: {name}.key, or {name}:key", at=began)
                return operator
        self._fail(f"an operator is expected before {self._rest()}")

    def _raw(self, name: str, operator: str) -> str:
        found = _VALUE.match(self._text, self._at)
        if found is None:
            self._fail(f"{name} {operator} is followed by no value")
        self._at = found.end()
        return found["bare"] if found["quoted"] is None else _unquoted(found["quoted"])

    def _value(self, name: str, kind: Kind, raw: str, at: int) -> str | bool | float | datetime:
        words: tuple[str, ...]
        match kind:
            case Kind.NAME:
                return bare_name(raw)
            case Kind.TASK:
                return parse_task(raw, at="filter").value
            case Kind.NUMBER:
                return self._number(name, raw, at)
            case Kind.TIME:
                return self._time(name, raw, at)
            case Kind.BOOLEAN:
                words = ("true", "false")
            case Kind.STATE:
                words = tuple(ModelVersionState)
            case Kind.MODALITY:
                words = MODALITIES
            case Kind.STAGE:
                words = STAGES
            case _:
                return raw
        if raw.lower() not in words:
            self._fail(f"{name} is one of {', '.join(words)}, not {_shown(raw)}", at=at)
        return raw.lower() == "true" if kind is Kind.BOOLEAN else raw.lower()

    def _number(self, name: str, raw: str, at: int) -> float:
        try:
            number = float(raw)
        except ValueError:
            number = math.nan
        if not abs(number) <= MAX_NUMBER:
            self._fail(f"{name} takes a number, not {_shown(raw)}", at=at)
        return number

    def _time(self, name: str, raw: str, at: int) -> datetime:
        try:
            return utc_time(raw)
        except ValueError:
            self._fail(f"{name} takes a time such as 2026-01-31T12:00:00Z, not {_shown(raw)}", at=at)

    def _keyword(self, *words: str) -> str | None:
        self._skip()
        found = _FIELD.match(self._text, self._at)
        if found is None or found[0] not in words:
            return None
        self._at = found.end()
        return found[0]

    def _take(self, mark: str) -> bool:
        self._skip()
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _skip(self) -> int:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
        return self._at

    def _rest(self) -> str:
        return _shown(self._text[self._at :]) if self._text[self._at :].strip() else "the end"

    def _known(self) -> str:
        return ", ".join(f"{name}.<key>" if kind in _MAPS else name for name, kind in self._fields.items())

    def _fail(self, problem: str, at: int | None = None) -> NoReturn:
        raise InvalidArgument.at("filter", f"at character {(self._at if at is None else at) + 1}: {problem}")


def _unquoted(text: str) -> str:
    """A backslash makes the next character an ordinary one."""
    return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.S)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def utc_time(text: str) -> datetime:
    """A moment of ISO 8601, in UTC where it says nothing. Raises ValueError, also outside the years 1 to 9999."""
    moment = datetime.fromisoformat(text)
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("outside the years 1 to 9999") from error
