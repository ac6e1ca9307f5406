"""Answers against labels, compared with numbers counted by hand and by SQL."""

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import JobError
from pipelines.analysis.scoring import score

ROWS = [("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", "c"), (None, "a"), ("a", None)]


def frame(rows: list[tuple[str | None, str | None]]) -> pl.LazyFrame:
    return pl.LazyFrame(rows, schema={"label": pl.String, "said": pl.String}, orient="row")


def test_accuracy_precision_recall_and_f1_are_those_counted_by_hand() -> None:
    result = score(frame(ROWS), "label", "said")
    assert (result.rows, result.without, result.accuracy) == (5, 2, 0.6)
    assert result.classes.rows() == [
        ("a", 3, 2, 1.0, pytest.approx(2 / 3), pytest.approx(0.8)),
        ("b", 2, 2, 0.5, 0.5, 0.5),
        ("c", 0, 1, 0.0, None, 0.0),
    ]
    assert result.confusion.rows() == [
        ("a", "a", 2), ("a", "b", 1), ("a", "c", 0),
        ("b", "a", 0), ("b", "b", 1), ("b", "c", 1),
        ("c", "a", 0), ("c", "b", 0), ("c", "c", 0),
    ]  # fmt: skip


def test_nothing_to_score_is_no_accuracy_of_zero() -> None:
    result = score(frame([(None, "a")]), "label", "said")
    assert (result.rows, result.without, result.accuracy) == (0, 1, None)
    assert result.classes.height == result.confusion.height == 0
    assert "none is known to be right of 0 rows, 1 left out" in result._repr_html_()


def test_a_column_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(JobError, match="no column lable; did you mean label"):
        score(frame(ROWS), "lable", "said")


def test_labels_that_are_numbers_meet_answers_that_are_text() -> None:
    numbers = pl.DataFrame({"label": [1, 2, 2], "said": ["1", "2", "1"]})
    assert score(numbers, "label", "said").accuracy == pytest.approx(2 / 3)


def test_the_chart_shows_every_cell_of_the_matrix() -> None:
    result = score(frame(ROWS), "label", "said")
    spec = result.chart().to_dict()
    (shown,) = spec["datasets"].values()
    assert [(cell["label"], cell["output"], cell["rows"]) for cell in shown] == result.confusion.rows()
    assert spec["title"]["subtitle"] == "60.0% right of 5 rows"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.sampled_from(["a", "b", "d", None])), max_size=30))
def test_the_numbers_are_those_of_sql(rows: list[tuple[str | None, str | None]]) -> None:
    result = score(frame(rows), "label", "said")
    with duckdb.connect() as db:
        db.register("answers", frame(rows).collect().to_arrow())
        both = "from answers where label is not null and said is not null"
        ((accuracy, count),) = db.execute(f"select avg((label = said)::int), count(*) {both}").fetchall()
        pairs = db.execute(f"select label, said, count(*) {both} group by all order by all").fetchall()
    assert result.rows == count
    assert result.accuracy == (None if accuracy is None else pytest.approx(accuracy))
    assert result.confusion.filter(pl.col("rows") > 0).rows() == pairs
