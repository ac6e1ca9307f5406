"""What the columns of a results table hold, and how answers are distributed, for each type of column."""

from collections.abc import Iterator
from datetime import UTC, datetime

import duckdb
import pytest

from pipelines.reporting import column_summaries
from pipelines.reporting.column_summaries import ColumnSummary, Histogram, ValueCounts, summarize_columns

TABLE = """
create table results as select
    i as id,
    case when i % 10 = 0 then null when i % 3 = 0 then 'billing' else 'bug' end as topic,
    'text number ' || i || repeat('!', i) as body,
    i % 5 + 1 as stars,
    i / 200 as share,
    case when i = 7 then 1e9 else i end as cost,
    i % 4 = 0 as urgent,
    case when i % 2 = 0 then ['new', 'old'] else ['new'] end as tags,
    {'name': 'x', 'age': case when i < 25 then i end} as person,
    case when i <> 9 then list_transform(range(8), lambda x: case when i = 3 then 0 else 0.5::float end) end as vector,
    'out/' || i || case when i < 60 then '.png' else '.JPG' end as picture,
    make_timestamp(1_700_000_000_000_000 + i * 3_600_000_000) as at,
    null::int as nothing
from range(100) t(i)
"""


@pytest.fixture
def db() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute(TABLE)
        yield connection


def summary_of(db: duckdb.DuckDBPyConnection, column: str, *declared: object) -> ColumnSummary:
    """The summary of one column whose distribution is wanted."""
    found = {one.name: one for one in summarize_columns(db, {column: declared})}
    assert len(found) == 13
    assert all(not one.distributions for name, one in found.items() if name != column)
    return found[column]


def test_values_are_counted_with_those_that_the_job_file_declares_but_no_row_has(db: duckdb.DuckDBPyConnection) -> None:
    topic = summary_of(db, "topic", "billing", "bug", "other")
    assert (topic.family, topic.rows, topic.nulls, topic.distinct) == ("text", 100, 10, 2)
    assert topic.distributions == (ValueCounts([("billing", 30), ("bug", 60), ("other", 0)], 0, 0, "rows"),)
    assert summary_of(db, "topic").distributions == (ValueCounts([("bug", 60), ("billing", 30)], 0, 0, "rows"),)


def test_a_boolean_has_both_values(db: duckdb.DuckDBPyConnection) -> None:
    assert summary_of(db, "urgent").distributions == (ValueCounts([("true", 25), ("false", 75)], 0, 0, "rows"),)


def test_texts_have_lengths(db: duckdb.DuckDBPyConnection) -> None:
    body = summary_of(db, "body")
    (lengths,) = body.distributions
    assert isinstance(lengths, Histogram)
    assert (lengths.quantity, lengths.low, lengths.width, sum(lengths.counts)) == ("characters", 10.0, 5.0, 100)
    assert (body.least, body.most, lengths.median, body.unit) == (13, 113, 63.5, "characters")


def test_a_range_of_few_whole_numbers_has_a_bar_for_each(db: duckdb.DuckDBPyConnection) -> None:
    assert summary_of(db, "stars").distributions == (Histogram("value", 1.0, 1.0, [20] * 5, 0, 0, True, 3.0),)


def test_numbers_are_counted_in_round_ranges_that_hold_each_value_once(db: duckdb.DuckDBPyConnection) -> None:
    (shares,) = summary_of(db, "share").distributions
    assert shares == Histogram("value", 0.0, 0.05, [10] * 10, 0, 0, False, pytest.approx(0.2475))


def test_a_few_extreme_values_are_counted_apart(db: duckdb.DuckDBPyConnection) -> None:
    (costs,) = summary_of(db, "cost").distributions
    assert isinstance(costs, Histogram)
    assert (costs.below, costs.above, sum(costs.counts)) == (0, 1, 99)
    assert costs.low + costs.width * len(costs.counts) <= 200


def test_lists_have_sizes_and_elements(db: duckdb.DuckDBPyConnection) -> None:
    sizes = Histogram("items", 1.0, 1.0, [50, 50], 0, 0, True, 1.5)
    elements = ValueCounts([("new", 100), ("old", 50)], 0, 0, "elements")
    assert summary_of(db, "tags").distributions == (sizes, elements)


def test_records_have_a_count_for_each_field(db: duckdb.DuckDBPyConnection) -> None:
    assert summary_of(db, "person").distributions == (ValueCounts([("name", 100), ("age", 25)], 0, 0, "fields"),)


def test_vectors_have_a_dimension_and_norms(db: duckdb.DuckDBPyConnection) -> None:
    vector = summary_of(db, "vector")
    (norms,) = vector.distributions
    assert (vector.family, vector.numbers, vector.zero_vectors) == ("vector", 8, 1)
    assert isinstance(norms, Histogram)
    assert (norms.quantity, norms.median, sum(norms.counts) + norms.below) == ("norm", 1.4142, 99)


def test_names_of_files_are_counted_by_kind(db: duckdb.DuckDBPyConnection) -> None:
    assert summary_of(db, "picture").distributions == (ValueCounts([("png", 60), ("jpg", 40)], 0, 0, "files"),)


def test_moments_are_counted_over_time(db: duckdb.DuckDBPyConnection) -> None:
    at = summary_of(db, "at")
    (moments,) = at.distributions
    assert isinstance(moments, Histogram)
    assert (moments.quantity, sum(moments.counts)) == ("seconds since 1970", 100)
    assert str(at.least) == str(datetime.fromtimestamp(1_700_000_000, UTC).replace(tzinfo=None))


def test_a_column_without_a_value_has_no_distribution(db: duckdb.DuckDBPyConnection) -> None:
    nothing = summary_of(db, "nothing")
    assert (nothing.nulls, nothing.distributions) == (100, ())


def test_of_a_large_table_the_first_rows_are_counted_and_it_is_known_how_many(
    db: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(column_summaries, "MAX_ROWS", 40)
    monkeypatch.setattr(column_summaries, "MAX_EXACT_ROWS", 10)
    stars = summary_of(db, "stars")
    assert (stars.rows, stars.table_rows, stars.is_distinct_estimated) == (40, 100, True)
    assert stars.distributions == (Histogram("value", 1.0, 1.0, [8] * 5, 0, 0, True, 3.0),)


def test_an_empty_table_has_columns_without_values(db: duckdb.DuckDBPyConnection) -> None:
    db.execute("delete from results")
    found = summarize_columns(db, {"topic": (), "stars": (), "vector": ()})
    assert {(one.rows, one.nulls, one.distributions) for one in found} == {(0, 0, ())}
