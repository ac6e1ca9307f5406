"""`csv:` files with another delimiter than the job names, and lines that cannot be read."""

from pathlib import Path

import pytest

from connectors.errors import DataError
from tests.unit.sources.conftest import ReadSourceFixture


@pytest.mark.parametrize(
    ("delimiter", "written"), [(";", ";"), ("\t", "\\t"), ("|", "|")], ids=["semicolon", "tab", "bar"]
)
def test_a_header_with_another_delimiter_names_it(
    tmp_path: Path, read_source: ReadSourceFixture, delimiter: str, written: str
) -> None:
    file = tmp_path / "mails.csv"
    file.write_text(f"id{delimiter}text\n1{delimiter}Hello, all\n")
    with pytest.raises(DataError) as caught:
        read_source("csv", "mails.csv")
    assert (caught.value.where, caught.value.remedy) == (
        f"{file}:1",
        f'add delimiter: "{written}" to the source (or delimiter: "," if it is one column)',
    )
    assert read_source("csv", "mails.csv", delimiter=delimiter).rows == [(1, "Hello, all")]
    file.write_text(f"id{delimiter}text\n1\n")
    assert read_source("csv", "mails.csv", delimiter=",").rows == [(1,)]


@pytest.mark.parametrize(("others", "counted"), [(0, ""), (1, " (and 1 more line)"), (1200, " (and 1,200 more lines)")])
def test_the_first_line_that_cannot_be_read_is_shown_with_the_number_of_others(
    tmp_path: Path, read_source: ReadSourceFixture, others: int, counted: str
) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1\n" + "2\n" * others)
    with pytest.raises(DataError) as caught:
        read_source("csv", "rows.csv")
    assert caught.value.found == f"1 values, but the first line has 2{counted}: 1"


CHANGED_BY_A_CAST = {
    "INTEGER": ("1.0", "1.9"),
    "UBIGINT": ("18446744073709551615", "1e-3"),
    "DECIMAL(10,2)": ("1.230", "1.239"),
    "DECIMAL(38,1)": ("1.5", "soon"),
    "DOUBLE": ("-inf", "1e400"),
    "DATE": ("1969-12-31 00:00", "1969-12-31 10:00"),
    "TIMESTAMP": ("2020-01-01T10:00:00Z", "2020-01-01T10:00:00+02:00"),
    "TIMESTAMP_S": ("2020-01-01 10:00:00", "2020-01-01 10:00:00.5"),
}


@pytest.mark.parametrize("kind", CHANGED_BY_A_CAST)
def test_a_value_that_its_declared_type_would_change_is_rejected(
    tmp_path: Path, read_source: ReadSourceFixture, kind: str
) -> None:
    fitting, changed = CHANGED_BY_A_CAST[kind]
    (tmp_path / "rows.csv").write_text(f"value,other\n{fitting},1\n,2\n")
    assert [row[1] for row in read_source("csv", "rows.csv", types={"value": kind}).rows] == [1, 2]
    (tmp_path / "rows.csv").write_text(f"value,other\n{fitting},1\n{changed},2\n")
    with pytest.raises(DataError) as caught:
        read_source("csv", "rows.csv", types={"value": kind, "other": "INTEGER"})
    assert caught.value.found == f"value: '{changed}' is not {kind}: {changed},2"
