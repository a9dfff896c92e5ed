"""Filters: what they mean, what is refused and where, and that no text reaches SQL as text."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from modelmora.errors import InvalidArgument
from modelmora_registry.filters import MAX_COMPARISONS, MAX_DEPTH, Comparison, Group, Kind, parse_filter
from modelmora_registry.list_store import MODEL_FIELDS as MODEL_SQL
from modelmora_registry.list_store import VERSION_FIELDS as VERSION_SQL
from modelmora_registry.list_store import condition_of
from modelmora_registry.service import _MODEL_FIELDS, _VERSION_FIELDS
from sqlalchemy.dialects import postgresql

FIELDS = {**_VERSION_FIELDS, **_MODEL_FIELDS}


def plain(expression: Any) -> Any:
    """An expression as a tuple that can be read."""
    if expression is None:
        return None
    if isinstance(expression, Group):
        return (expression.operator, *(plain(part) for part in expression.parts))
    field = f"{expression.field}.{expression.key}" if expression.key else expression.field
    asked = (field, expression.operator, expression.value)
    return ("NOT", *asked) if expression.negated else asked


A, B, C = ("name", "=", "a"), ("name", "=", "b"), ("name", "=", "c")
NOT_A, NOT_B = ("NOT", *A), ("NOT", *B)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", None),
        ("  ", None),
        ("name=a", A),
        ("name != a", NOT_A),
        ("NOT name = a", NOT_A),
        ("-name = a", NOT_A),
        ("NOT NOT name = a", A),
        ("NOT name != a", A),
        ("name = a AND name = b", ("AND", A, B)),
        ("name = a OR name = b OR name = c", ("OR", A, B, C)),
        ("(name = a OR name = b) AND name = c", ("AND", ("OR", A, B), C)),
        ("NOT (name = a AND name = b)", ("OR", NOT_A, NOT_B)),
        ("NOT (name = a OR NOT name = b)", ("AND", NOT_A, B)),
        ("((name=a))", A),
        ('name = "a b"', ("name", "=", "a b")),
        (r'name != "say \"x\" \\"', ("NOT", "name", "=", 'say "x" \\')),
        ('name = ""', ("name", "=", "")),
        ("name = 'a b'", ("name", "=", "a b")),
        (r"""name = 'it\'s "a"'""", ("name", "=", """it's "a\"""")),
        ("name = it's", ("name", "=", "it's")),
        ("metrics.'ndcg@10' >= '0.5'", ("metrics.ndcg@10", ">=", 0.5)),
        ('name = "a\nb"', ("name", "=", "a\nb")),
        ("task_type = TXT2EMBED", ("task_type", "=", "txt2embed")),
        ("task_type : feature-extraction", ("task_type", "=", "txt2embed")),
        ("state != Ready", ("NOT", "state", "=", "ready")),
        ("stage = Production", ("stage", "=", "production")),
        ("modality = text", ("modality", "=", "text")),
        ("servable = TRUE", ("servable", "=", True)),
        ("archived != false", ("NOT", "archived", "=", False)),
        ("labels.team = x AND name = a", ("AND", ("labels.team", "=", "x"), A)),
        ("labels:team", ("labels.team", "present", None)),
        ("labels.team : eam", ("labels.team", "has", "eam")),
        ('metrics."ndcg@10" >= 0.5', ("metrics.ndcg@10", ">=", 0.5)),
        ("metrics.loss < 1e-3", ("metrics.loss", "<", 0.001)),
        ("metrics:loss", ("metrics.loss", "present", None)),
        ("size_bytes > 1000", ("size_bytes", ">", 1000.0)),
        ("family : ber", ("family", "has", "ber")),
        ('name = " AND " AND name = AND', ("AND", ("name", "=", " AND "), ("name", "=", "AND"))),
        ("name = models/org/repo", ("name", "=", "org/repo")),
        ("base_model = models/org/repo", ("base_model", "=", "org/repo")),
        ("display_name = models/org/repo", ("display_name", "=", "models/org/repo")),
        ("create_time >= 2026-01-01T00:00:00Z", ("create_time", ">=", datetime(2026, 1, 1, tzinfo=UTC))),
        ("create_time < 2026-01-01", ("create_time", "<", datetime(2026, 1, 1, tzinfo=UTC))),
    ],
)
def test_a_filter_means_what_it_says(text: str, meant: Any) -> None:
    assert plain(parse_filter(text, FIELDS)) == meant


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("name", 5, "operator"),
        ("name =", 7, "no value"),
        ("= x", 1, "field"),
        ("AND", 1, "field"),
        ("name = x AND", 13, "field"),
        ("name = x name = y", 10, "AND or OR"),
        ("name = x AND name = y OR name = z", 23, "parentheses"),
        ("(name = x", 10, "closing"),
        ("name = x)", 9, "AND or OR"),
        ("owner = x", 1, "there is no field 'owner'; there are"),
        ("labels = x", 8, "by key"),
        ("labels. = x", 8, "key"),
        ('labels."" = x', 8, "key"),
        ("name.x = y", 5, "no parts"),
        ("name < x", 6, "no operator '<'"),
        ("metrics.f1 : x", 12, "no operator ':'"),
        ("size_bytes > many", 14, "number"),
        ("size_bytes > nan", 14, "number"),
        ("size_bytes > 1e999", 14, "number"),
        ("trainable = perhaps", 13, "true, false"),
        ("state = gone", 9, "creating, ready, failed"),
        ("stage = gone", 9, "staging, production, archived"),
        ("modality = smell", 12, "text, image"),
        ("create_time = soon", 15, "2026-01-31"),
        ("create_time > 99999-01-01", 15, "time"),
        ("create_time > 0001-01-01T00:00:00+14:00", 15, "time"),
        ('name = "x', 8, "no value"),
        ("name = 'x", 8, "no value"),
        ("labels.'' = x", 8, "key"),
        ("name = x,y z", 12, "AND or OR"),
        ("name == x", 7, "no value"),
        ("(" * (MAX_DEPTH + 2) + "name = x", MAX_DEPTH + 2, "parentheses"),
        (" AND ".join(["name = x"] * (MAX_COMPARISONS + 1)), 13 * MAX_COMPARISONS + 1, "comparisons"),
    ],
)
def test_what_is_refused_says_where(text: str, place: int, words: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_filter(text, FIELDS)
    (violation,) = raised.value.fields
    assert violation.field == "filter"
    assert words in violation.description
    assert violation.description.startswith(f"at character {place}: ")


@pytest.mark.parametrize("text", ["x" * 4001, 'name = "a\x00"', "task_type = nonsense"])
def test_anything_else_is_refused_at_filter(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_filter(text, FIELDS)
    assert raised.value.fields[0].field == "filter"


def test_a_list_can_be_asked_for_every_field_it_declares() -> None:
    assert _MODEL_FIELDS.keys() == MODEL_SQL.keys()
    assert _VERSION_FIELDS.keys() == VERSION_SQL.keys()


MARK = "Zq9"
words = st.sampled_from(
    [
        *("AND", "OR", "NOT", "-", "(", ")", ".", "=", "!=", "<", "<=", ">", ">=", ":", '"', "\\", " ", "'", ";", "--"),
        *FIELDS,
        *("labels.team", "metrics.f1", 'labels."x y"', "true", "1.5", "ready", "production", "2026-01-01"),
        *(MARK, f'"{MARK}\' OR 1=1 --"', "%s", ":name", "$1", "{}", "%"),
    ]
)
texts = st.text(max_size=60) | st.lists(words, max_size=25).map(" ".join) | st.lists(words, max_size=25).map("".join)
comparisons = st.builds(
    lambda field, operator, value, negated: f'{negated}{field} {operator} "{MARK}{value}"',
    st.sampled_from(["name", "display_name", "family", "base_model", "labels.team", f'labels."{MARK}"']),
    st.sampled_from(["=", "!=", ":"]),
    st.text(st.characters(exclude_characters='"\\\x00', exclude_categories=["Cs"]), max_size=10),
    st.sampled_from(["", "NOT "]),
)


@given(texts | st.lists(comparisons, min_size=1, max_size=4).map(" OR ".join))
@example(f'name = "{MARK}" OR labels:"{MARK}"')
def test_any_text_is_an_expression_or_refused_and_never_becomes_sql(text: str) -> None:
    for fields, conditions in ((_MODEL_FIELDS, MODEL_SQL), (_VERSION_FIELDS, VERSION_SQL)):
        try:
            expression = parse_filter(text, fields)
        except InvalidArgument:
            continue
        if expression is not None:
            compiled = condition_of(expression, conditions).compile(dialect=postgresql.asyncpg.dialect())
            assert MARK not in str(compiled)


def test_sql_too_says_not_of_what_is_unset() -> None:
    expression = parse_filter("NOT labels.team = x", FIELDS)
    assert expression is not None
    compiled = condition_of(expression, MODEL_SQL).compile(dialect=postgresql.asyncpg.dialect())
    assert str(compiled).endswith("IS NOT true")


@given(st.text(max_size=30).filter(lambda text: "\x00" not in text))
def test_a_quoted_value_comes_back_as_it_is(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    expression = parse_filter(f'display_name = "{quoted}"', FIELDS)
    assert isinstance(expression, Comparison)
    assert expression.value == value


# Three-valued logic would make NOT lie about what is unset, so an expression is asked for the opposite of each answer.

Row = dict[str, str | None]
rows = st.fixed_dictionaries({name: st.none() | st.sampled_from("xy") for name in ("a", "b")})


def leaf(field: str, operator: str, value: str) -> tuple[str, Callable[[Row], bool]]:
    return f"{field} {operator} {value}", lambda row: (row[field] == value) == (operator == "=")


def negation(inner: tuple[str, Callable[[Row], bool]]) -> tuple[str, Callable[[Row], bool]]:
    return f"NOT ({inner[0]})", lambda row: not inner[1](row)


def group(word: str, parts: list[tuple[str, Callable[[Row], bool]]]) -> tuple[str, Callable[[Row], bool]]:
    any_or_all = all if word == "AND" else any
    return f"({f' {word} '.join(text for text, _ in parts)})", lambda row: any_or_all(asked(row) for _, asked in parts)


trees = st.recursive(
    st.builds(leaf, st.sampled_from("ab"), st.sampled_from(["=", "!="]), st.sampled_from("xy")),
    lambda inner: (
        st.builds(negation, inner)
        | st.builds(group, st.sampled_from(["AND", "OR"]), st.lists(inner, min_size=2, max_size=3))
    ),
    max_leaves=8,
)


def meaning(expression: Any, row: Row) -> bool:
    if isinstance(expression, Group):
        return {"AND": all, "OR": any}[expression.operator](meaning(part, row) for part in expression.parts)
    return bool((row[expression.field] == expression.value) != expression.negated)


@given(trees, rows)
def test_not_is_the_opposite_also_of_what_is_unset(tree: tuple[str, Callable[[Row], bool]], row: Row) -> None:
    text, asked = tree
    assert meaning(parse_filter(text, {"a": Kind.TEXT, "b": Kind.TEXT}), row) == asked(row)
