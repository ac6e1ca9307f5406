"""Whether a job's tables can be written, and what to say where the tables that are there are others."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from connectors.contracts import TableShape
from connectors.errors import DataError, JobError

SHOWN = 12
"""Columns that a message lists, at most."""


def check_names(shape: TableShape) -> None:
    """JobError where two columns of a table would have one name for DuckDB, which does not tell cases apart."""
    for table, names in (("results", shape.results.names), ("errors", shape.errors.names)):
        seen: dict[str, str] = {}
        for name in names:
            other = seen.setdefault(name.lower(), name)
            if other is not name:
                raise JobError(
                    f"sink: the {table} table would have the columns {other} and {name}; give one of them another name "
                    "(an output in its step, a key column by a `sql:` source)"
                )


class OtherColumns(DataError):
    """The tables that are there are not those that the job makes."""


def mismatch(sink: str, told: str, there: Mapping[str, str], made: Mapping[str, str], usage: bool) -> DataError:
    """The error for a table whose columns (name -> type) are not those that the job makes. `told`: how the message
    begins, e.g. `its results have`. `usage`: it is the table of usage, which no job declares and which is never written
    anew."""
    has = [(name, kind) for name, kind in there.items() if made.get(name) != kind]
    wants = [(name, kind) for name, kind in made.items() if there.get(name) != kind]
    if not has and not wants:
        has, wants = list(there.items()), list(made.items())
    found = f"{sink}: {told} {_listed(has)} where"
    if usage:
        return DataError(f"{found} this version of Rowmill makes {_listed(wants)}; write to another sink (--sink PATH)")
    return OtherColumns(
        f"{found} the job makes {_listed(wants)}; cast what is there (run --schema-change cast), ask all rows again "
        "(run --schema-change backfill), or write to another sink (run --sink PATH)"
    )


def kinds(schema: pa.Schema) -> dict[str, str]:
    """Name -> type; what a list's elements are called is of no matter."""
    return {field.name: str(field.type).replace("list<element: ", "list<item: ") for field in schema}


def in_the_way(sink: str, path: Path, what: str) -> DataError:
    """The error for a path that is something else."""
    return DataError(f"{sink}: {path} is {what}; choose another path")


def _listed(columns: Sequence[tuple[str, str]]) -> str:
    if not columns:
        return "no such column"
    return ", ".join(_shown(f"{name} ({kind})" for name, kind in columns))


def _shown(texts: Iterable[str]) -> list[str]:
    every = list(texts)
    return every if len(every) <= SHOWN else [*every[:SHOWN], f"{len(every) - SHOWN:,} more"]
