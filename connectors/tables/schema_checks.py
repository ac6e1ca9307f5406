"""Schema checks for a sink's tables, and the errors for a mismatch."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from connectors.contracts import TableShape
from connectors.errors import DataError, JobError, KeyPath

MAX_LISTED_COLUMNS = 12
"""In a message."""


def check_column_names(shape: TableShape) -> None:
    """JobError if two columns of a table have the same name for DuckDB, which ignores case."""
    for table, names in (("results", shape.results.names), ("errors", shape.errors.names)):
        seen: dict[str, str] = {}
        for name in names:
            other = seen.setdefault(name.lower(), name)
            if other is not name:
                raise JobError(
                    ("sink",),
                    f"the {table} table would have the columns {other} and {name}",
                    "give one of them another name (an output in its step, a key column by a `sql:` source)",
                )


class SchemaMismatch(DataError):
    """Existing tables have other columns than the job makes."""

    retyped: tuple[str, ...] = ()
    """The columns of another type, if the tables have the same columns in the same order."""


OWN_COLUMNS = {"results": ("_run_id", "_row_fingerprint"), "errors": ("attempts", "failed_at")}
"""Columns of every table of Rowmill, whatever the job; those of errors may be called `error_<name>`."""


def is_foreign(table: str, names: Iterable[str]) -> bool:
    """Whether a table with these columns was made by another program. `table`: results, errors or usage."""
    there = {name.removeprefix("error_") if table == "errors" else name for name in names}
    return not there.issuperset(OWN_COLUMNS.get(table, ()))


def foreign_table(sink: str, found: str, existing: Mapping[str, str]) -> DataError:
    """Return the error for a table of another program. `found`: the start of the message: `its results have`."""
    return DataError(
        sink,
        f"{found} {_column_list(list(existing.items()))}: a table of another program",
        "move it away, or write to another sink (--sink PATH)",
    )


def schema_mismatch(
    sink: str, table: str, existing: Mapping[str, str], expected: Mapping[str, str], is_usage: bool
) -> DataError:
    """Return the error for a table whose columns (name -> type) are not those that the job makes.

    `table`: the start of the message, such as `its results have`. `is_usage`: no job declares the usage table, and it
    is never rebuilt.
    """
    has = [(name, kind) for name, kind in existing.items() if expected.get(name) != kind]
    needs = [(name, kind) for name, kind in expected.items() if existing.get(name) != kind]
    if not has and not needs:
        has, needs = list(existing.items()), list(expected.items())
    found = f"{table} {_column_list(has)}, but"
    if is_usage:
        found = f"{found} this version of Rowmill makes {_column_list(needs)}"
        return DataError(sink, found, "write to another sink (--sink PATH)")
    mismatch = SchemaMismatch(
        sink,
        f"{found} the job makes {_column_list(needs)}",
        "cast the existing rows (run --schema-change cast), ask all rows again (run --schema-change backfill), or "
        "write to another sink (run --sink PATH)",
    )
    if list(existing) == list(expected):
        mismatch.retyped = tuple(name for name, _ in has)
    return mismatch


def column_types(schema: pa.Schema) -> dict[str, str]:
    """Return name -> type; the names of list elements do not matter."""
    return {field.name: str(field.type).replace("list<element: ", "list<item: ") for field in schema}


def check_folder(where: KeyPath, folder: Path) -> None:
    """DataError if the folder, or one above it, is a file. `where`: the sink's key in the job file."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if existing is not None and not existing.is_dir():
        raise path_occupied(where, existing, "a file")


def path_occupied(where: KeyPath, path: Path, kind: str) -> DataError:
    """Return the error for a sink's path that is something else. `kind`: what it is, such as `a file`."""
    return DataError(where, f"{path} is {kind}", "choose another path")


def _column_list(columns: Sequence[tuple[str, str]]) -> str:
    if not columns:
        return "no such column"
    texts = [f"{name} ({kind})" for name, kind in columns]
    if len(texts) > MAX_LISTED_COLUMNS:
        texts[MAX_LISTED_COLUMNS:] = [f"{len(texts) - MAX_LISTED_COLUMNS:,} more"]
    return ", ".join(texts)
