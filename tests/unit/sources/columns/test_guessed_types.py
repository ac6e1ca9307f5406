"""Guessed types: a column gets a number, a date or a boolean only if no value changes."""

from pathlib import Path

import pyarrow as pa
import pytest

from connectors.sources.columns.guessed_types import ColumnGuess, JsonGuess, guess_kind
from tests.unit.sources.conftest import ReadSourceFixture

COLUMNS = {
    "BIGINT": [["1", "-5", "0"], ["9223372036854775807", "-9223372036854775808"], ["1234567890123456789"]],
    "DOUBLE": [
        ["1.5", "2.25", "3"],
        ["1.50", "2.00"],
        ["0.1", "-0.5", "12345678.9"],
        ["3.0", "2.5"],
        ["0.30000000000000004", "1.5"],
        ["0.00001", "1"],
        ["1.5", "9007199254740992"],
        ["1.50000000000000000", "2.25000000000000000"],
    ],
    "BOOLEAN": [["true", "False", "TRUE"]],
    "DATE": [["2024-02-29", "1999-12-31"]],
    "TIMESTAMP": [["2024-01-01 10:00", "2024-01-01T10:00:00.123456"]],
    "TIMESTAMPTZ": [["2024-01-01 10:00Z", "2024-01-01T10:00:00+02:00"]],
    "VARCHAR": [
        ["007", "8"],
        ["1E5", "100000"],
        ["1.9", "1.10"],
        ["1.50", "3"],
        ["1234567890123456.78", "0.10"],
        ["0.1234567890123456789"],
        ["0.10000000000000001", "0.20000000000000001"],
        ["9223372036854775808"],
        ["10000000000000000000", "1.5"],
        ["9007199254740993", "1.5"],
        ["-0"],
        ["+1"],
        ["1_000"],
        ["nan", "1.5"],
        ["inf"],
        ["1e400"],
        [".5"],
        ["5."],
        ["2024-02-30"],
        ["2024-01-01 10:00:00.1234567"],
        ["2024-01-01 24:00"],
        ["12023-01-01"],
        ["true", "1"],
        ["soon", "2024-01-01"],
        ["٣"],
        ["1\n"],
    ],
}


@pytest.mark.parametrize(("kind", "texts"), [(kind, texts) for kind, columns in COLUMNS.items() for texts in columns])
def test_a_column_has_a_type_only_if_every_text_is_that_of_its_value(kind: str, texts: list[str]) -> None:
    assert guess_kind([*texts, None]) == kind
    one_by_one = ColumnGuess()
    for text in texts:
        one_by_one.add(pa.array([text, None], pa.string()))
    assert one_by_one.kind == kind


def test_a_column_without_values_is_text() -> None:
    assert guess_kind([None, None]) == guess_kind([]) == "VARCHAR"


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("BIGINT", ["1", "-9223372036854775808"]),
        ("DECIMAL(38,0)", ["9223372036854775808", "1"]),
        ("VARCHAR", ["1" * 39]),
        ("DOUBLE", ["1.50", "2", "1e5"]),
        ("VARCHAR", ["1.5", "9007199254740993"]),
        ("VARCHAR", ["0.1234567890123456789"]),
        ("VARCHAR", ["1e400"]),
        ("VARCHAR", ["{}", "1"]),
    ],
)
def test_a_column_of_json_numbers_has_the_narrowest_type_that_holds_them(kind: str, texts: list[str]) -> None:
    guess = JsonGuess()
    guess.add(pa.array(texts, pa.string()))
    assert guess.kind == kind


@pytest.mark.parametrize(
    ("known", "texts", "values", "misfits"),
    [
        ("BIGINT", ["1", "2.0", "2.5", "x"], [1, 2, None, None], ["2.5", "x"]),
        ("DOUBLE", ["1", "1.50", "1E5", "9007199254740993"], [1.0, 1.5, 100000.0, None], ["9007199254740993"]),
        ("DECIMAL(10,2)", ["1", "1.5", "1.555"], [1, 1.5, None], ["1.555"]),
        ("BOOLEAN", ["true", "False", "1"], [True, False, None], ["1"]),
        ("VARCHAR", ["1", "2"], ["1", "2"], []),
    ],
)
def test_a_column_keeps_the_type_of_the_sink_and_values_that_do_not_fit_are_named(
    tmp_path: Path,
    read_source: ReadSourceFixture,
    known: str,
    texts: list[str],
    values: list[object],
    misfits: list[str],
) -> None:

    (tmp_path / "rows.csv").write_text("n\n" + "\n".join(texts) + "\n")
    found = read_source("csv", "rows.csv", {"n": known})
    assert [row[0] for row in found.rows] == values
    assert found.texts["n"] == texts
    reason = f"does not fit {known}, the type of the column in the sink"
    assert [text for text in found.misfits if text] == [f"n: {text} {reason}" for text in misfits]
