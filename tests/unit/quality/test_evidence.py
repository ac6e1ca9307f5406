"""Evidence: the columns that quotations add, and which outputs and columns can have them."""

from typing import Any

import pyarrow as pa
import pytest

from connectors.errors import JobError
from pipelines.quality.evidence import EvidenceColumns

WHERE = ("steps", "find", "evidence")
OUTPUTS = (
    pa.field("quote", pa.string()),
    pa.field("quotes", pa.list_(pa.string())),
    pa.field("score", pa.int64()),
)
COLUMNS: dict[str, pa.DataType] = {"body": pa.string(), "number": pa.int64(), "tags": pa.list_(pa.string())}


def columns_of(evidence: dict[str, str], **values: list[Any]) -> dict[str, list[Any]]:
    found = EvidenceColumns(evidence, OUTPUTS, COLUMNS, WHERE)
    kinds = {**COLUMNS, **{field.name: field.type for field in OUTPUTS}, "_row_text_number": pa.string()}
    table = pa.table({name: pa.array(column, kinds[name]) for name, column in values.items()})
    return {field.name: array.to_pylist() for field, array in zip(found.fields, found.arrays(table), strict=True)}


def test_a_quotation_has_its_place_in_code_points_and_how_it_matches() -> None:
    body = "\U0001f600 Café “open”"
    quotes = ["Café", '"OPEN"', "closed", "", None]
    assert columns_of({"quote": "body"}, body=[body] * 5, quote=quotes) == {
        "quote_start": [2, 7, None, None, None],
        "quote_end": [6, 13, None, None, None],
        "quote_match": ["exact", "normalized", "none", "none", None],
    }


def test_a_list_of_quotations_has_three_lists() -> None:
    found = columns_of({"quotes": "body"}, body=["one two", "x", None], quotes=[["two", "three", None], [], ["x"]])
    assert found == {
        "quotes_start": [[4, None, None], [], [None]],
        "quotes_end": [[7, None, None], [], [None]],
        "quotes_match": [["exact", "none", None], [], ["none"]],
    }


def test_a_number_is_quoted_as_the_file_has_it() -> None:
    found = columns_of({"quote": "number"}, number=[1200], _row_text_number=["01200"], quote=["01200"])
    assert found["quote_match"] == ["exact"]


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        ({"quot": "body"}, "steps.find.evidence.quot: no output quot of this step; did you mean quote?"),
        ({"score": "body"}, "steps.find.evidence.score: score has the type int64; name an output of texts"),
        ({"quote": "bodi"}, "steps.find.evidence.quote: no column bodi before this step; did you mean body?"),
        (
            {"quote": "tags"},
            "steps.find.evidence.quote: tags has the type list<element: string>; name a column of text",
        ),
    ],
)
def test_evidence_is_of_texts_in_texts(evidence: dict[str, str], message: str) -> None:
    with pytest.raises(JobError) as found:
        EvidenceColumns(evidence, OUTPUTS, COLUMNS, WHERE)
    assert str(found.value).replace("item:", "element:") == message
