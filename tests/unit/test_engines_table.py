"""The engine table and its options: what is refused, and where it says so."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora import errors
from modelmora_worker.engines import base
from modelmora_worker.engines.base import TABLE, EngineRow, Option, check_options, read_options

ROW = EngineRow(
    name="x",
    module="nowhere:Nothing",
    tasks=frozenset(),
    needs_files=False,
    extra="torch",
    options={
        "count": Option(int, "", default=3, minimum=1, maximum=10),
        "rate": Option(float, "", minimum=0),
        "word": Option(str, "", choices=("one", "two")),
        "flag": Option(bool, ""),
    },
)


@pytest.mark.parametrize(
    ("options", "field", "word"),
    [
        ({"colour": 1}, "colour", "no such option"),
        ({"count": 0}, "count", "at least 1"),
        ({"count": 11}, "count", "at most 10"),
        ({"count": 1.5}, "count", "whole"),
        ({"count": True}, "count", "number"),
        ({"count": "3"}, "count", "number"),
        ({"count": None}, "count", "number"),
        ({"rate": float("nan")}, "rate", "finite"),
        ({"rate": float("inf")}, "rate", "finite"),
        ({"rate": -0.1}, "rate", "at least 0"),
        ({"word": "three"}, "word", "one of one, two"),
        ({"word": 1}, "word", "text"),
        ({"flag": 1}, "flag", "yes or no"),
    ],
)
def test_a_bad_option_is_named(options, field, word):
    (violation,) = check_options(ROW, options)
    assert violation.field == field
    assert word in violation.description


def test_good_options_come_in_their_types_with_defaults():
    assert check_options(ROW, {"count": 4.0, "rate": 1, "word": "two", "flag": True}) == []
    values = read_options(ROW, {"count": 4.0, "rate": 1, "flag": False})
    assert values == {"count": 4, "rate": 1.0, "word": None, "flag": False}
    assert [type(values[name]) for name in ("count", "rate")] == [int, float]
    assert read_options(ROW, {})["count"] == 3


def test_every_bad_option_is_named_under_engine_options():
    with pytest.raises(errors.InvalidArgument) as caught:
        read_options(ROW, {"count": 0, "colour": 1})
    assert [violation.field for violation in caught.value.fields] == ["engine_options.colour", "engine_options.count"]


@given(
    st.dictionaries(
        st.sampled_from([*TABLE["echo"].options, "other"]),
        st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=3)),
    )
)
def test_options_are_either_refused_or_readable(options):
    for row in TABLE.values():
        if check_options(row, options):
            with pytest.raises(errors.InvalidArgument):
                read_options(row, options)
        else:
            assert set(read_options(row, options)) == set(row.options)


def test_defaults_keep_to_their_own_rules():
    for row in TABLE.values():
        defaults = {key: option.default for key, option in row.options.items() if option.default is not None}
        assert check_options(row, defaults) == []


def test_an_unknown_engine_is_named():
    with pytest.raises(errors.EngineNotFound, match="echo"):
        base.find_row("nonsense")


def test_missing_libraries_name_the_extra():
    with pytest.raises(errors.EngineUnavailable, match=r"install modelmora\[torch\]"):
        base.open_engine(ROW)


def test_the_table_needs_no_heavy_library():
    heavy = "torch", "numpy", "transformers", "sentence_transformers", "grpc", "asyncio"
    script = f"import modelmora_worker.engines.base, sys; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-P", "-c", script], text=True).strip() == "[]"


def test_the_worker_needs_neither_grpc_nor_asyncio():
    heavy = "torch", "numpy", "transformers", "sentence_transformers", "grpc", "asyncio", "pydantic", "sqlalchemy"
    script = (
        "import modelmora_worker.service, modelmora_worker.lifeline, modelmora_worker.fork_server, sys;"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-P", "-c", script], text=True).strip() == "[]"
