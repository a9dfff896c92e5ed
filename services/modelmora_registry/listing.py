"""How callers ask for lists: a subset of AIP-160 filters, `order_by`, opaque keyset page tokens. Pure.

A filter is `field operator value` joined by AND. Fields and their kinds are given by the list; texts, names of models
(in either form) and labels know
`=` and `!=`, times also `<`, `<=`, `>`, `>=`. A value is a bare word, or stands in double quotes, where a backslash
makes the next character an ordinary one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from modelmora.errors import InvalidArgument

from modelmora_registry.domain import ModelVersionState, Value, bare_name, parse_task

DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 1000
TOTAL_SIZE_CAP = 10_001
MAX_FILTER_LENGTH = 2000
MAX_TOKEN_LENGTH = 4096

NAME, TEXT, TASK, STATE, TIME, LABEL = "name", "text", "task", "state", "time", "label"

_TERM = re.compile(
    r"\s*(?P<field>[A-Za-z_][A-Za-z0-9_]*)(?:\.(?P<key>[A-Za-z0-9_-]+))?\s*(?P<operator>!=|<=|>=|=|<|>|:)?\s*"
    r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s"]+))?\s*'
)
_OPERATORS = {NAME: ("=", "!="), TEXT: ("=", "!="), TASK: ("=", "!="), STATE: ("=", "!="), LABEL: ("=", "!=")}
_TIME_OPERATORS = ("=", "!=", "<", "<=", ">", ">=")


class Comparison(Value):
    field: str
    key: str = ""
    """Of a label."""
    operator: str
    value: str | datetime


class Order(Value):
    field: str
    descending: bool = False


class Page(Value):
    """One request for a page, checked. `after` are the sort keys of the last row seen, the tie-breaker last."""

    size: int
    comparisons: tuple[Comparison, ...]
    order: Order
    after: tuple[str, ...] | None
    digest: str

    def token_after(self, keys: Sequence[str]) -> str:
        """The token of the page that follows the row with these sort keys."""
        body = json.dumps([self.digest, *keys], separators=(",", ":"))
        return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def parse_page(
    *,
    page_size: int,
    page_token: str,
    filter: str,
    order_by: str,
    fields: Mapping[str, str],
    orders: Sequence[str],
    default_order: str,
    scope: str,
) -> Page:
    """Raises InvalidArgument at `page_size`, `page_token`, `filter` or `order_by`.

    `scope` names what is listed; a token is good only for the scope, filter and order it was made for.
    """
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidArgument.at("page_size", f"must be 1 to {MAX_PAGE_SIZE}; 0 means {DEFAULT_PAGE_SIZE}")
    comparisons = parse_filter(filter, fields)
    order = parse_order(order_by or default_order, orders)
    digest = hashlib.sha256(repr((scope, comparisons, order)).encode()).hexdigest()[:16]
    return Page(
        size=page_size or DEFAULT_PAGE_SIZE,
        comparisons=comparisons,
        order=order,
        after=_parse_token(page_token, digest, is_time=order.field.endswith("_time")) if page_token else None,
        digest=digest,
    )


def parse_filter(text: str, fields: Mapping[str, str]) -> tuple[Comparison, ...]:
    """The comparisons that must all hold. Raises InvalidArgument at `filter`."""
    if len(text) > MAX_FILTER_LENGTH:
        raise InvalidArgument.at("filter", f"is longer than {MAX_FILTER_LENGTH} characters")
    found: list[Comparison] = []
    rest = text.strip()
    while rest:
        if found:
            joined = re.match(r"AND\s+", rest)
            if joined is None:
                raise InvalidArgument.at("filter", f"AND expected before {rest[:40]!r}")
            rest = rest[joined.end() :]
        term = _TERM.match(rest)
        if term is None:
            raise InvalidArgument.at("filter", f"a field is expected before {rest[:40]!r}")
        found.append(_comparison(term, fields))
        rest = rest[term.end() :]
    return tuple(found)


def _comparison(term: re.Match[str], fields: Mapping[str, str]) -> Comparison:
    field, key, operator = term["field"], term["key"] or "", term["operator"]
    kind = fields.get(field)
    if kind is None or (kind == LABEL) != bool(key):
        known = ", ".join(f"{name}.<key>" if kind == LABEL else name for name, kind in fields.items())
        raise InvalidArgument.at("filter", f"{field}{'.' + key if key else ''} is no field here; {known} are")
    if operator not in (_TIME_OPERATORS if kind == TIME else _OPERATORS[kind]):
        raise InvalidArgument.at("filter", f"{field} has no operator {operator or 'here'}")
    if term["quoted"] is None and term["bare"] is None:
        raise InvalidArgument.at("filter", f"{field} {operator} is followed by no value")
    raw = term["bare"] if term["quoted"] is None else re.sub(r"\\(.)", r"\1", term["quoted"])
    if "\x00" in raw:
        raise InvalidArgument.at("filter", "must not contain a NUL character")
    return Comparison(field=field, key=key, operator=operator, value=_value(kind, field, raw))


def _value(kind: str, field: str, raw: str) -> str | datetime:
    if kind == NAME:
        return bare_name(raw)
    if kind == TASK:
        return parse_task(raw, at="filter").value
    if kind == STATE:
        if raw.lower() not in ModelVersionState.__members__.values():
            raise InvalidArgument.at("filter", f"{raw!r} is no state; {', '.join(ModelVersionState)} are")
        return raw.lower()
    return _time(raw, field) if kind == TIME else raw


def _time(raw: str, field: str) -> datetime:
    try:
        moment = datetime.fromisoformat(raw)
        return _utc(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except ValueError:
        raise InvalidArgument.at("filter", f"{field} takes a time such as 2026-01-31T12:00:00Z, not {raw!r}") from None


def _utc(moment: datetime) -> datetime:
    """The same moment in UTC, which is what the database keeps. Raises ValueError for one outside years 1 to 9999."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("outside the years 1 to 9999") from error


def parse_order(text: str, orders: Sequence[str]) -> Order:
    """From `field`, `field asc` or `field desc`. Raises InvalidArgument at `order_by`."""
    field, _, direction = text.strip().partition(" ")
    direction = direction.strip().lower()
    if field not in orders or direction not in ("", "asc", "desc"):
        raise InvalidArgument.at(
            "order_by", f"must be one of {', '.join(orders)}, with ' desc' for the other way round"
        )
    return Order(field=field, descending=direction == "desc")


def _parse_token(token: str, digest: str, *, is_time: bool) -> tuple[str, ...]:
    try:
        if len(token) > MAX_TOKEN_LENGTH:
            raise ValueError("too long for one of ours")
        body = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
        if not (isinstance(body, list) and len(body) == 3 and all(isinstance(part, str) for part in body)):
            raise ValueError("not a token of ours")
        if b"\x00" in body[1].encode() or str(uuid.UUID(body[2])) != body[2]:
            raise ValueError("not a row of ours")
        if is_time:
            _utc(datetime.fromisoformat(body[1]))
    except (ValueError, RecursionError):
        raise InvalidArgument.at("page_token", "is not a token that this list gave") from None
    if body[0] != digest:
        raise InvalidArgument.at("page_token", "belongs to another parent, filter or order")
    return tuple(body[1:])
