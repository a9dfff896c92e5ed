"""Filters, orders and page tokens."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora.errors import InvalidArgument
from modelmora_registry.listing import LABEL, NAME, STATE, TASK, TEXT, TIME, Page, parse_filter, parse_order, parse_page

FIELDS = {"name": NAME, "display_name": TEXT, "task_type": TASK, "state": STATE, "create_time": TIME, "labels": LABEL}


def page(**fields: Any) -> Page:
    asked = {"page_size": 0, "page_token": "", "filter": "", "order_by": "", **fields}
    return parse_page(**asked, fields=FIELDS, orders=("name", "create_time"), default_order="name", scope="models")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("  ", []),
        ("name=a", [("name", "", "=", "a")]),
        ('name = "a b"', [("name", "", "=", "a b")]),
        (r'name != "say \"x\" \\"', [("name", "", "!=", 'say "x" \\')]),
        ('name = ""', [("name", "", "=", "")]),
        ("task_type = TXT2EMBED", [("task_type", "", "=", "txt2embed")]),
        ("task_type = feature-extraction", [("task_type", "", "=", "txt2embed")]),
        ("state != Ready", [("state", "", "!=", "ready")]),
        ("labels.team = x AND name = y", [("labels", "team", "=", "x"), ("name", "", "=", "y")]),
        ('name = " AND " AND name = AND', [("name", "", "=", " AND "), ("name", "", "=", "AND")]),
        ("create_time >= 2026-01-01T00:00:00Z", [("create_time", "", ">=", datetime(2026, 1, 1, tzinfo=UTC))]),
        ("name = models/org/repo", [("name", "", "=", "org/repo")]),
        ('name != "models/repo"', [("name", "", "!=", "models/repo")]),
        ("display_name = models/org/repo", [("display_name", "", "=", "models/org/repo")]),
        (
            "create_time = 9999-12-31T23:59:59Z",
            [("create_time", "", "=", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))],
        ),
        ("create_time < 2026-01-01", [("create_time", "", "<", datetime(2026, 1, 1, tzinfo=UTC))]),
    ],
)
def test_a_filter_is_comparisons_joined_by_and(text: str, found: list[Any]) -> None:
    assert [(each.field, each.key, each.operator, each.value) for each in parse_filter(text, FIELDS)] == found


@pytest.mark.parametrize(
    "text",
    [
        *("name", "name =", "= x", "name = x OR name = y", "name = x name = y", "name = x AND", "AND", "(name = x)"),
        *(
            "owner = x",
            "labels = x",
            "name.x = y",
            "name < x",
            "name : x",
            "name = x,y z",
            'name = "x',
            "task_type = x",
        ),
        *(
            "state = gone",
            "create_time = soon",
            "create_time > 99999-01-01",
            "create_time > 0001-01-01T00:00:00+14:00",
            "create_time > 9999-12-31T23:59:59-14:00",
            "NOT name = x",
            "name = x AND AND name = y",
        ),
        *("x" * 2001, 'name = "a\x00"'),
    ],
)
def test_anything_else_is_refused_at_filter(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_filter(text, FIELDS)
    assert raised.value.fields[0].field == "filter"


@given(st.text(max_size=80))
def test_no_text_breaks_the_filter(text: str) -> None:
    try:
        parse_filter(text, FIELDS)
    except InvalidArgument:
        pass


@given(st.text(max_size=30).filter(lambda text: "\x00" not in text))
def test_a_quoted_value_comes_back_as_it_is(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    try:
        (comparison,) = parse_filter(f'name = "{quoted}"', FIELDS)
    except InvalidArgument:
        assert "\n" in value  # A value is one line.
        return
    assert comparison.value == value


def test_orders_are_those_that_are_offered() -> None:
    assert parse_order("name", ("name",)).descending is False
    assert parse_order(" name  DESC ", ("name",)).descending is True
    for text in ("", "uid", "name down", "name desc, uid", "name; drop"):
        with pytest.raises(InvalidArgument):
            parse_order(text, ("name",))


@pytest.mark.parametrize("size", [-1, 1001, 2**31 - 1])
def test_a_page_has_1_to_1000_rows(size: int) -> None:
    with pytest.raises(InvalidArgument) as raised:
        page(page_size=size)
    assert raised.value.fields[0].field == "page_size"
    assert page().size == 20


def test_a_token_leads_on_in_its_own_list_only() -> None:
    first = page(filter="name != x")
    token = first.token_after(["a/b", UID])
    assert page(filter="name != x", page_token=token, page_size=7).after == ("a/b", UID)
    for other in ({}, {"filter": "name != y"}, {"filter": "name != x", "order_by": "name desc"}):
        with pytest.raises(InvalidArgument) as raised:
            page(page_token=token, **other)
        assert raised.value.fields[0].field == "page_token"


@given(st.text(max_size=40))
def test_no_token_of_others_is_believed(token: str) -> None:
    if token:
        with pytest.raises(InvalidArgument):
            page(page_token=token)


@pytest.mark.parametrize("body", [b"[" * 2000, b'{"a":' * 500, b"[" * 2_000_000, b"9" * 3000, b"\xff", b"[NaN]"])
def test_a_token_of_any_body_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgument) as raised:
        page(page_token=base64.urlsafe_b64encode(body).decode().rstrip("="))
    assert raised.value.fields[0].field == "page_token"


def test_a_token_with_a_forged_time_or_uid_is_refused() -> None:
    by_time = page(order_by="create_time")
    for name in ("a\x00", "\ud800"):
        with pytest.raises(InvalidArgument):
            page(page_token=page().token_after([name, UID]))
    forged = ("soon", "2026-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00")
    for keys in (*([time, UID] for time in forged), ["2026-01-01T00:00:00+00:00", "x"]):
        with pytest.raises(InvalidArgument):
            page(order_by="create_time", page_token=by_time.token_after(keys))
    token = by_time.token_after(["2026-01-01T00:00:00+00:00", UID])
    assert page(order_by="create_time", page_token=token).after is not None


UID = "0190a5d0-ac96-774b-bcce-b302099a8057"
