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
