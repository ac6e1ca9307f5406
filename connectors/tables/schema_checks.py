"""Whether a job's tables can be written, and what to say where the tables that are there are others."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from connectors.contracts import TableShape
from connectors.errors import DataError, JobError

SHOWN = 12
"""Columns that a message lists, at most."""


def check_column_names(shape: TableShape) -> None:
    """JobError where two columns of a table would have one name for DuckDB, which does not tell cases apart."""
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
    """The tables that are there are not those that the job makes."""


def schema_mismatch(sink: str, told: str, there: Mapping[str, str], made: Mapping[str, str], usage: bool) -> DataError:
    """The error for a table whose columns (name -> type) are not those that the job makes. `told`: how the message
    begins, e.g. `its results have`. `usage`: it is the table of usage, which no job declares and which is never written
    anew."""
    has = [(name, kind) for name, kind in there.items() if made.get(name) != kind]
    wants = [(name, kind) for name, kind in made.items() if there.get(name) != kind]
    if not has and not wants:
        has, wants = list(there.items()), list(made.items())
    found = f"{told} {_listed(has)} where"
    if usage:
        return DataError(
            sink, f"{found} this version of Rowmill makes {_listed(wants)}", "write to another sink (--sink PATH)"
        )
    return SchemaMismatch(
        sink,
        f"{found} the job makes {_listed(wants)}",
        "cast what is there (run --schema-change cast), ask all rows again (run --schema-change backfill), or write "
        "to another sink (run --sink PATH)",
    )


def column_types(schema: pa.Schema) -> dict[str, str]:
    """Name -> type; what a list's elements are called is of no matter."""
    return {field.name: str(field.type).replace("list<element: ", "list<item: ") for field in schema}


def path_occupied(sink: str, path: Path, what: str) -> DataError:
    """The error for a path that is something else."""
    return DataError(sink, f"{path} is {what}", "choose another path")


def _listed(columns: Sequence[tuple[str, str]]) -> str:
    if not columns:
        return "no such column"
    return ", ".join(_shown(f"{name} ({kind})" for name, kind in columns))


def _shown(texts: Iterable[str]) -> list[str]:
    every = list(texts)
    return every if len(every) <= SHOWN else [*every[:SHOWN], f"{len(every) - SHOWN:,} more"]
