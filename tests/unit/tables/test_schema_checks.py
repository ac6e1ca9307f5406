"""Schema checks: duplicate names, mismatches and occupied paths."""

from pathlib import Path

import pyarrow as pa
import pytest

from connectors.contracts import TableShape
from connectors.errors import DataError, JobError
from connectors.tables.schema_checks import (
    MAX_LISTED_COLUMNS,
    SchemaMismatch,
    check_column_names,
    check_folder,
    column_types,
    schema_mismatch,
)


def shape_of(*names: str) -> TableShape:
    schema = pa.schema([(name, pa.string()) for name in names])
    return TableShape((names[0],), schema, pa.schema([(names[0], pa.string())]), "merge")


def test_names_that_differ_in_case_only_are_refused() -> None:
    check_column_names(shape_of("id", "Topic", "topics"))
    with pytest.raises(JobError, match=r"the results table would have the columns Topic and topic"):
        check_column_names(shape_of("id", "Topic", "topic"))


def test_the_names_of_list_elements_do_not_matter() -> None:
    one = pa.schema([("tags", pa.list_(pa.field("element", pa.string())))])
    other = pa.schema([("tags", pa.list_(pa.field("item", pa.string())))])
    assert column_types(one) == column_types(other)


def test_a_mismatch_names_only_the_different_columns_and_the_remedies() -> None:
    error = schema_mismatch(
        "out", "its results have", {"id": "int64", "a": "string"}, {"id": "int64", "a": "int64", "b": "bool"}, False
    )
    assert isinstance(error, SchemaMismatch)
    assert str(error) == (
        "out: its results have a (string), but the job makes a (int64), b (bool); cast the existing rows (run "
        "--schema-change cast), ask all rows again (run --schema-change backfill), or write to another sink (run "
        "--sink PATH)"
    )


def test_a_mismatch_of_order_lists_all_columns() -> None:
    error = schema_mismatch(
        "out", "its results have", {"a": "int64", "b": "int64"}, {"b": "int64", "a": "int64"}, False
    )
    assert "its results have a (int64), b (int64), but the job makes b (int64), a (int64);" in str(error)


def test_a_missing_column_is_described() -> None:
    error = schema_mismatch("out", "its results have", {}, {"a": "int64"}, False)
    assert "its results have no such column, but the job makes a (int64);" in str(error)


def test_long_column_lists_are_shortened() -> None:
    columns = {f"c{n}": "int64" for n in range(MAX_LISTED_COLUMNS + 30)}
    assert "c11 (int64), 30 more;" in str(schema_mismatch("out", "its results have", {}, columns, False))


def test_a_usage_mismatch_suggests_another_sink_only() -> None:
    error = schema_mismatch("out", "its usage have", {"a": "int64"}, {"b": "int64"}, True)
    assert not isinstance(error, SchemaMismatch)
    assert str(error) == (
        "out: its usage have a (int64), but this version of Rowmill makes b (int64); "
        "write to another sink (--sink PATH)"
    )


def test_a_file_at_or_above_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check_folder(("sink", "parquet"), tmp_path / "new" / "deep")
    for folder in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(DataError, match=r"^sink\.parquet: .*file is a file; choose another path$"):
            check_folder(("sink", "parquet"), folder)
