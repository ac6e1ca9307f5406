"""SQL predicates: the columns that they use, their errors, and the rows that pass."""

from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest

from connectors.errors import JobError
from connectors.records import RowError
from pipelines.config.sql_predicate import Predicate, RowQueries, evaluation_connection, predicate_columns

WHERE = ("steps", "label", "when")
TABLE = pa.table({"id": [1, 2, None, 4], "Body": ["a", "bb", "ccc", "x"]})


@pytest.fixture
def predicate() -> Iterator[Predicate]:
    found = Predicate("id > 1", TABLE.schema, WHERE)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("id > 3", {"id"}),
        ("length(body) > 20 and id is not null", {"id", "Body"}),
        ("list_contains(list_transform([1], x -> x + id), 2)", {"id"}),
        ("id > 1 -- the rest", {"id"}),
        ("true", set()),
    ],
)
def test_the_columns_of_a_predicate_are_found_whatever_their_case(sql: str, columns: set[str]) -> None:
    assert predicate_columns(sql, dict.fromkeys(TABLE.schema.names), WHERE) == columns


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("idd > 3", "no column idd here; did you mean id?"),
        ("id > 1); select (1", "is more than one expression; write one, e.g. length(body) > 20"),
        ("id in (select 1)", "contains a query; an expression is about one row; use `sql:` as the source"),
        ("columns(*) > 1", "contains *; name the columns"),
    ],
)
def test_anything_but_one_expression_over_the_columns_is_an_error(sql: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        predicate_columns(sql, {"id": None}, WHERE)
    assert (caught.value.key_path, str(caught.value)) == (WHERE, f"steps.label.when: {message}")


@pytest.mark.parametrize(
    ("sql", "is_clock"),
    [
        ("random() < 0.5", False),
        ("list_contains(list_transform([1], x -> x + random()), 2)", False),
        ("id > epoch(now())", True),
        ("md5(Body) > cast(uuid() as varchar)", False),
        ("current_date > date '2026-01-01'", True),
        ("age(timestamp '2026-01-01') > interval 1 day", True),
        ("current_setting('TimeZone') = Body", True),
        ("ago(interval 1 day) > timestamptz '2026-01-01'", True),
        ("current_database() = Body", True),
        ("pg_sleep(0) is null", False),
    ],
)
def test_chance_is_refused_in_every_predicate_and_the_clock_in_those_that_judge_answers(
    sql: str, is_clock: bool
) -> None:
    columns = dict.fromkeys(TABLE.schema.names)
    with pytest.raises(
        JobError, match=r"^steps\.label\.when: \w+ gives another value each time; take it from a column"
    ):
        predicate_columns(sql, columns, WHERE)
    if is_clock:
        predicate_columns(sql, columns, WHERE, allows_clock=True)
    else:
        with pytest.raises(JobError, match="gives another value each time"):
            predicate_columns(sql, columns, WHERE, allows_clock=True)


def test_a_predicate_that_duckdb_cannot_bind_is_an_error() -> None:
    with pytest.raises(JobError) as caught:
        Predicate("no_such_function(id)", TABLE.schema, WHERE)
    assert str(caught.value).startswith("steps.label.when: ")
    assert caught.value.remedy == "fix the expression"


def test_null_counts_as_false(predicate: Predicate) -> None:
    assert predicate.mask(TABLE) == [False, True, False, True]
    assert predicate.mask(TABLE.slice(0, 0)) == []


def test_a_row_whose_values_make_the_expression_fail_is_an_error_of_that_row() -> None:
    predicate = Predicate("cast(Body as integer) > 1", TABLE.schema, WHERE)
    mask, errors = predicate.evaluate(pa.table({"id": [1, 2, 3], "Body": ["1", "x", "2"]}))
    predicate.close()
    assert (mask, list(errors)) == ([False, False, True], [1])
    assert isinstance(errors[1], RowError)
    assert errors[1].error_class == "input"
    assert errors[1].message.startswith("steps.label.when: Could not convert string 'x'")


def test_queries_read_one_table_after_another_whatever_their_types_and_their_errors() -> None:
    queries = RowQueries(evaluation_connection())
    large = "select _row_index, cast(a as integer) from chunk_rows where cast(a as integer) > 1"
    assert queries.fetch(large, pa.table({"a": ["1", "2", "3"]})) == [(1, 2), (2, 3)]
    with pytest.raises(duckdb.ConversionException):
        queries.fetch(large, pa.table({"a": ["x"]}))
    assert queries.fetch(large, pa.table({"a": pa.array([5], pa.int16())})) == [(0, 5)]
    assert queries.fetch(large, pa.table({"b": [0], "a": ["7"]})) == [(0, 7)]
    assert queries.fetch("select count(*) from chunk_rows", pa.table({"a": range(3000)})) == [(3000,)]
    assert queries.fetch(large, pa.table({"a": pa.array([], pa.string())})) == []
