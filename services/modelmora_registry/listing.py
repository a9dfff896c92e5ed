"""How callers ask for lists: a filter, an order, words to find, and opaque keyset page tokens. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime

from modelmora.errors import InvalidArgument

from modelmora_registry.domain import Value
from modelmora_registry.filters import Expression, Kind, parse_filter, utc_time

DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 1000
TOTAL_SIZE_CAP = 10_001
MAX_TOKEN_LENGTH = 4096
MAX_QUERY_LENGTH = 500
RANK = "rank"
"""The order of what was searched for: best first."""
POSITION = "position"
"""The order of records that are only ever added to."""


class Order(Value):
    field: str
    descending: bool = False


class Page(Value):
    """One request for a page, checked. `after` are the sort key of the last row seen and its uid."""

    size: int
    filter: Expression | None
    query: str
    order: Order
    after: tuple[str, str] | None
    digest: str

    def token_after(self, key: str, uid: str) -> str:
        """The token of the page that follows the row with this sort key."""
        return _encoded([self.digest, key, uid])


def parse_page(
    *,
    page_size: int,
    page_token: str,
    filter: str = "",
    order_by: str = "",
    query: str = "",
    fields: Mapping[str, Kind] | None = None,
    orders: Sequence[str],
    default_order: str,
    scope: str,
) -> Page:
    """Raises InvalidArgument at `page_size`, `page_token`, `filter`, `query` or `order_by`.

    `scope` names what is listed; a token is good only for the scope, filter, words and order it was made for.
    """
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidArgument.at("page_size", f"must be 1 to {MAX_PAGE_SIZE}; 0 means {DEFAULT_PAGE_SIZE}")
    if len(query) > MAX_QUERY_LENGTH or "\x00" in query:
        raise InvalidArgument.at("query", f"must be at most {MAX_QUERY_LENGTH} characters, none of them NUL")
    query = query.strip()
    order = Order(field=RANK, descending=True) if query and not order_by else None
    order = order or parse_order(order_by or default_order, orders)
    expression = parse_filter(filter, fields or {})
    digest = hashlib.sha256(repr((scope, expression, query, order)).encode()).hexdigest()[:16]
    return Page(
        size=page_size or DEFAULT_PAGE_SIZE,
        filter=expression,
        query=query,
        order=order,
        after=_parse_token(page_token, digest, order.field) if page_token else None,
        digest=digest,
    )


def parse_order(text: str, orders: Sequence[str]) -> Order:
    """From `field`, `field asc` or `field desc`. Raises InvalidArgument at `order_by`."""
    field, _, direction = text.strip().partition(" ")
    direction = direction.strip().lower()
    if field not in orders or direction not in ("", "asc", "desc"):
        raise InvalidArgument.at(
            "order_by", f"must be one of {', '.join(orders)}, with ' desc' for the other way round"
        )
    return Order(field=field, descending=direction == "desc")


def _encoded(parts: Sequence[str]) -> str:
    """With a sum over the rest: a token that was cut or mistyped must not lead to some other page."""
    body = json.dumps([*parts, _sum(parts)], separators=(",", ":"))
    return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def _sum(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _parse_token(token: str, digest: str, field: str) -> tuple[str, str]:
    try:
        if len(token) > MAX_TOKEN_LENGTH:
            raise ValueError("too long for one of ours")
        body = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
        if not (isinstance(body, list) and len(body) == 4 and all(isinstance(part, str) for part in body)):
            raise ValueError("not a token of ours")
        # A few letters of base64 have bits that do not count; ours have them in one way.
        if body[3] != _sum(body[:3]) or _encoded(body[:3]) != token:
            raise ValueError("not as we made it")
        if b"\x00" in body[1].encode() or str(uuid.UUID(body[2])) != body[2]:
            raise ValueError("not a row of ours")
        _check_key(field, body[1])
    except (ValueError, RecursionError):
        raise InvalidArgument.at("page_token", "is not a token that this list gave") from None
    if body[0] != digest:
        raise InvalidArgument.at("page_token", "belongs to another parent, filter, query or order")
    return body[1], body[2]


def _check_key(field: str, key: str) -> None:
    """Raises ValueError for what cannot be the sort key of a row."""
    if field.endswith("_time"):
        if datetime.fromisoformat(key).tzinfo is None:
            raise ValueError("a time without a zone")
        utc_time(key)
    elif field == RANK and not math.isfinite(float(key)):
        raise ValueError("not a rank")
    elif field == POSITION and not 0 <= int(key) < 2**63:
        raise ValueError("not a position")
