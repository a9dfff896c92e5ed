"""Orders and page tokens."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora.errors import InvalidArgument
from modelmora_registry.filters import Kind
from modelmora_registry.listing import Page, parse_order, parse_page

FIELDS = {"name": Kind.NAME, "create_time": Kind.TIME}


def page(**fields: Any) -> Page:
    asked = {"page_size": 0, "page_token": "", "filter": "", "order_by": "", **fields}
    return parse_page(**asked, fields=FIELDS, orders=("name", "create_time"), default_order="name", scope="models")


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
    token = first.token_after("a/b", UID)
    assert page(filter="name != x", page_token=token, page_size=7).after == ("a/b", UID)
    for other in (
        {},
        {"filter": "name != y"},
        {"filter": "NOT name != x"},
        {"filter": "name != x", "order_by": "name desc"},
        {"filter": "name != x", "order_by": "name", "query": "words"},
    ):
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
    with pytest.raises(InvalidArgument):
        page(page_token=page().token_after("a\x00", UID))
    forged = ("soon", "2026-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00")
    for keys in (*((time, UID) for time in forged), ("2026-01-01T00:00:00+00:00", "x")):
        with pytest.raises(InvalidArgument):
            page(order_by="create_time", page_token=by_time.token_after(*keys))
    token = by_time.token_after("2026-01-01T00:00:00+00:00", UID)
    assert page(order_by="create_time", page_token=token).after is not None


def test_a_search_comes_best_first_and_its_token_holds_a_rank() -> None:
    found = page(query=" small models ")
    assert (found.query, found.order.field, found.order.descending) == ("small models", "rank", True)
    assert page(query="x", order_by="name").order.field == "name"
    assert page(query="x", page_token=page(query="x").token_after("0.25", UID)).after == ("0.25", UID)
    for rank in ("nan", "inf", "high"):
        with pytest.raises(InvalidArgument):
            page(query="x", page_token=page(query="x").token_after(rank, UID))
    for query in ("x" * 501, "a\x00"):
        with pytest.raises(InvalidArgument) as raised:
            page(query=query)
        assert raised.value.fields[0].field == "query"


def test_a_token_is_good_for_its_own_search_only() -> None:
    with pytest.raises(InvalidArgument) as raised:
        page(query="x", page_token=page(query="y").token_after("0.25", UID))
    assert raised.value.fields[0].field == "page_token"


@given(st.data())
def test_a_token_with_any_letter_changed_is_refused(data: st.DataObject) -> None:
    token = page().token_after("acme/mini", UID)
    at = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("ABab019-_=").filter(lambda letter: letter != token[at]))
    for changed in (token[:at] + letter + token[at + 1 :], token[:at], token + letter):
        if changed:
            with pytest.raises(InvalidArgument) as raised:
                page(page_token=changed)
            assert raised.value.fields[0].field == "page_token"


UID = "0190a5d0-ac96-774b-bcce-b302099a8057"
