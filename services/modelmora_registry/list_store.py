"""Pages of lists: filters, words and orders as SQL. Values go in as parameters, never as text."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from modelmora.errors import FieldViolation, QueryTooSlow
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util import LRUCache

from modelmora_registry.domain import MANAGED_ALIAS, PRODUCTION_ALIAS, tasks_of
from modelmora_registry.filters import Comparison, Expression, Group
from modelmora_registry.listing import RANK, TOTAL_SIZE_CAP, Page
from modelmora_registry.tables_store import UID, alias, model, model_version

RANKED = 500
"""So many of what a search finds are compared, the newest."""

FEW = 1_000
"""So many of what a search finds beside a filter are put in order by themselves."""

LONGEST_SECONDS = 3
"""So long each look at what a filter or words find may take. A condition that hardly any row meets and that no index
knows walks the whole table; the caller hears so before everybody else waits for the database."""
_NARROWER = "add a condition that is met by few, such as labels.key = value, name, state or create_time, or rarer words"

COMPILED: LRUCache[Any, Any] = LRUCache(32)
"""The statements of lists that callers narrow, as SQLAlchemy keeps them to compile each only once. One with as many
conditions as a filter may have takes 200 KB: among the hundreds that an engine keeps, callers could fill 150 MB."""

Narrowed = tuple[sa.Select[Any], sa.ColumnElement[Any], sa.ColumnElement[Any]]
"""Rows, their uid and their sort key."""

Condition = Callable[[Comparison], sa.ColumnElement[bool]]
"""What a comparison asks of a row, as SQL. Values go in as parameters, never as text."""


def asked_of(key: sa.ColumnElement[Any]) -> Condition:
    """Of one column."""

    def condition(comparison: Comparison) -> sa.ColumnElement[bool]:
        value = comparison.value
        if comparison.operator == "has":
            return key.icontains(str(value), autoescape=True)
        # A bound as the caller gave it: as a whole number for the column it would be cut.
        bound = sa.literal(value, sa.Double) if isinstance(value, float) else value
        asked: sa.ColumnElement[bool] = _COMPARE[comparison.operator](key, bound)
        return asked

    return condition


_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _asked_of_labels(column: sa.Column[Any]) -> Condition:
    def condition(comparison: Comparison) -> sa.ColumnElement[bool]:
        if comparison.operator == "present":
            present: sa.ColumnElement[bool] = column.has_key(comparison.key)
            return present
        if comparison.operator == "=":
            return column.contains({comparison.key: comparison.value})  # the index knows this one
        return asked_of(column[comparison.key].astext)(comparison)

    return condition


def _asked_of_metrics(column: sa.Column[Any]) -> Condition:
    def condition(comparison: Comparison) -> sa.ColumnElement[bool]:
        if comparison.operator == "present":
            present: sa.ColumnElement[bool] = column.has_key(comparison.key)
            return present
        return asked_of(sa.cast(column[comparison.key].astext, sa.Double))(comparison)

    return condition


def _asked_of_modality(comparison: Comparison) -> sa.ColumnElement[bool]:
    return model.c.task_type.in_([task.value for task in tasks_of(str(comparison.value))])


def _asked_of_stage(comparison: Comparison) -> sa.ColumnElement[bool]:
    """Staging and production are aliases; a model is archived when versions of it are and none is left to serve."""
    if comparison.value != "archived":
        return _has_alias(str(comparison.value))
    archived = sa.exists().where(model_version.c.model_id == model.c.uid, model_version.c.archive_time.is_not(None))
    return sa.and_(archived, sa.not_(_has_alias(MANAGED_ALIAS, PRODUCTION_ALIAS)))


def _asked_if(condition: sa.ColumnElement[bool]) -> Condition:
    return lambda comparison: condition if comparison.value else sa.not_(condition)


def _has_alias(*names: str) -> sa.ColumnElement[bool]:
    return sa.exists().where(alias.c.model_id == model.c.uid, alias.c.alias.in_(names))


MODEL_FIELDS: Mapping[str, Condition] = {
    "stage": _asked_of_stage,
    "modality": _asked_of_modality,
    "servable": _asked_if(_has_alias(MANAGED_ALIAS, PRODUCTION_ALIAS)),
    "labels": _asked_of_labels(model.c.labels),
    **{
        name: asked_of(model.c[name])
        for name in (
            *("name", "display_name", "task_type", "family", "base_model", "trainable", "create_time", "update_time"),
        )
    },
}
VERSION_FIELDS: Mapping[str, Condition] = {
    "archived": _asked_if(model_version.c.archive_time.is_not(None)),
    "parameter_count": asked_of(sa.cast(model_version.c.metadata["parameter_count"].astext, sa.Double)),
    "dtype": asked_of(model_version.c.metadata["dtype"].astext),
    "labels": _asked_of_labels(model_version.c.labels),
    "metrics": _asked_of_metrics(model_version.c.metrics),
    **{
        name: asked_of(model_version.c[name])
        for name in (
            *("version", "state", "engine", "task_type", "size_bytes", "training_job", "create_time", "update_time"),
        )
    },
}


def condition_of(expression: Expression, fields: Mapping[str, Condition]) -> sa.ColumnElement[bool]:
    """An expression as SQL over these fields."""
    if isinstance(expression, Group):
        parts = [condition_of(part, fields) for part in expression.parts]
        return sa.and_(*parts) if expression.operator == "AND" else sa.or_(*parts)
    asked = fields[expression.field](expression)
    return asked.is_not(True) if expression.negated else asked


def words_of(query: str) -> sa.ColumnElement[Any]:
    """What people typed, as PostgreSQL searches for it: as English and as it stands. Any text is a query."""
    english: sa.ColumnElement[Any] = sa.literal_column("'english'::regconfig")
    simple: sa.ColumnElement[Any] = sa.literal_column("'simple'::regconfig")
    words: sa.ColumnElement[Any] = sa.func.websearch_to_tsquery(english, query).op("||")(
        sa.func.websearch_to_tsquery(simple, query)
    )
    return words


def best_of(query: sa.Select[Any], words: sa.ColumnElement[Any], found_in: sa.ColumnElement[Any]) -> Narrowed:
    """The newest models that match, each with its rank, however many there are: to rank all that have a common word
    takes longer with every model."""
    newest = query.add_columns(found_in.label("search"))
    found = newest.order_by(model.c.create_time.desc(), model.c.uid.desc()).limit(RANKED).subquery("newest")
    rank = rank_of(found.c.search, words)
    columns = [column for column in found.c if column.name != "search"]
    return sa.select(*columns, rank.label(RANK)), found.c.uid, rank


def rank_of(found_in: sa.ColumnElement[Any], words: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.cast(sa.func.ts_rank_cd(found_in, words), sa.Double)


def keys_of(table: sa.Table) -> dict[str, sa.ColumnElement[Any]]:
    """What rows may be ordered by: their columns, by name."""
    return dict(table.c)


async def page_of(
    connection: AsyncConnection,
    query: sa.Select[Any],
    tie: sa.ColumnElement[Any],
    keys: Mapping[str, sa.ColumnElement[Any]],
    fields: Mapping[str, Condition],
    page: Page,
    *,
    with_total: bool = False,
    narrow: Callable[[sa.Select[Any]], Narrowed] | None = None,
) -> tuple[Sequence[Any], str, int | None]:
    """Rows of one page, the token of the next and, if wanted, the capped count. `query` selects the sort key too, under
    its name; `tie` is the uid that tells rows of one sort key apart. `narrow` says among which of all that is found the
    page is, with their sort key. Raises QueryTooSlow at `filter` or `query`."""
    narrows = bool(page.query) or page.filter is not None
    if narrows:
        connection = await connection.execution_options(compiled_cache=COMPILED)
        # The plan is for these words: one for any words takes them all for rare.
        await connection.execute(_set(plan_cache_mode="force_custom_plan", statement_timeout=f"{LONGEST_SECONDS}s"))
    try:
        return await _page_of(connection, query, tie, keys, fields, page, with_total, narrow)
    except QueryTooSlow:
        if not narrows:
            raise
        field = "filter" if page.filter is not None else "query"
        wrong = f"finds too little among too much to look at ({LONGEST_SECONDS} s are over): {_NARROWER}"
        raise QueryTooSlow(f"{field}: {wrong}", fields=[FieldViolation(field, wrong)]) from None


async def _page_of(
    connection: AsyncConnection,
    query: sa.Select[Any],
    tie: sa.ColumnElement[Any],
    keys: Mapping[str, sa.ColumnElement[Any]],
    fields: Mapping[str, Condition],
    page: Page,
    with_total: bool,
    narrow: Callable[[sa.Select[Any]], Narrowed] | None,
) -> tuple[Sequence[Any], str, int | None]:
    if page.filter is not None:
        query = query.where(condition_of(page.filter, fields))
    total = None
    few = await _few(connection, query, tie) if page.query and page.filter is not None else None
    if few is not None:
        query = query.where(tie.in_(few))
        total = len(few) if with_total else None
    elif with_total:
        capped = query.with_only_columns(sa.literal(1), maintain_column_froms=True).limit(TOTAL_SIZE_CAP).subquery()
        total = await connection.scalar(sa.select(sa.func.count()).select_from(capped))
    if narrow is None:
        key = keys[page.order.field]
    else:
        query, tie, key = narrow(query)
    if page.after is not None:
        last = sa.tuple_(sa.literal(_read_key(key, page.after[0]), key.type), sa.literal(page.after[1], UID))
        query = query.where(sa.tuple_(key, tie) < last if page.order.descending else sa.tuple_(key, tie) > last)
    ordered = (key.desc(), tie.desc()) if page.order.descending else (key, tie)
    rows = (await connection.execute(query.order_by(*ordered).limit(page.size + 1))).all()
    token = ""
    if len(rows) > page.size:
        rows = rows[: page.size]
        value = getattr(rows[-1], page.order.field)
        token = page.token_after(value.isoformat() if isinstance(value, datetime) else str(value), rows[-1].uid)
    return rows, token, total


async def _few(connection: AsyncConnection, query: sa.Select[Any], tie: sa.ColumnElement[Any]) -> Sequence[Any] | None:
    """The uids of all that is found, if they are few; None if they are many.

    Words and a filter that are both common may leave nothing together. The planner expects some of each, and walks the
    index of the order until it has a page: to the end of the table. So it is first asked to look the conditions up.
    """
    await connection.execute(_lookups("off"))
    found = (await connection.scalars(query.with_only_columns(tie, maintain_column_froms=True).limit(FEW + 1))).all()
    await connection.execute(_lookups("on"))
    return found if len(found) <= FEW else None


def _lookups(walks: str) -> sa.Select[Any]:
    """Whether the planner may walk an index or the table, in this transaction."""
    return _set(enable_indexscan=walks, enable_indexonlyscan=walks, enable_seqscan=walks)


def _set(**settings: str) -> sa.Select[Any]:
    """Settings of the server for this transaction."""
    return sa.select(*(sa.func.set_config(name, value, True) for name, value in settings.items()))


def _read_key(key: sa.ColumnElement[Any], text: str) -> Any:
    if isinstance(key.type, sa.TIMESTAMP):
        return datetime.fromisoformat(text)
    if isinstance(key.type, sa.BigInteger):
        return int(text)
    return float(text) if isinstance(key.type, sa.Double) else text
