"""`jsonl:` files of one JSON object per line; column types are inferred from all lines."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import orjson
from pydantic import Field

from connectors.contracts import Columns, OpenedSource, SourceContext, SourceModel
from connectors.errors import DataError
from connectors.sql import first_line, identifier, literal, literal_list
from connectors.storage.input_files import downloaded_objects, input_files, input_objects

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
MAX_LINE_BYTES = 16 << 20
"""DuckDB reserves twice as much for each of its threads."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonlSource(SourceModel):
    """Each key of any line is a column; strings stay strings, values of several types become JSON text."""

    jsonl: str | Columns = Field(
        description="Path, folder, glob or list of them, also at s3://, gs://, az:// (extra `rowmill[cloud]`); .gz is "
        "unpacked."
    )

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        return input_files(self.jsonl, facts.workspace, SUFFIXES)

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        with downloaded_objects(input_objects(self.jsonl, ("source", "jsonl"), SUFFIXES), facts.scratch) as copies:
            paths = [*self.paths(facts), *copies.urls]
            files = [_without_byte_order_mark(file, number, facts.scratch) for number, file in enumerate(paths)]
            return self._open_files(connection, files, facts)

    def _open_files(
        self, connection: duckdb.DuckDBPyConnection, files: list[Path], facts: SourceContext
    ) -> OpenedSource:
        target = facts.scratch / "jsonl.parquet"
        relation = f"read_parquet({literal(target)})"
        options = f"format = 'newline_delimited', maximum_object_size = {MAX_LINE_BYTES}"
        try:
            inferred = connection.execute(
                "select json_group_structure(json), count(*) filter (json_type(json) <> 'OBJECT'), count(*) "
                f"from read_json_objects({literal_list(files)}, {options})"
            ).fetchone()
        except duckdb.Error as exc:
            raise _unreadable(files, exc) from exc
        assert inferred is not None
        if inferred[1]:
            raise _unreadable(files, None)
        if not inferred[2] and (columns := _saved_columns(facts.columns_file)):
            empty = ", ".join(f"cast(null as {kind}) as {identifier(name)}" for name, kind in columns.items())
            return OpenedSource(f"(select {empty} where false)")
        structure = orjson.loads(inferred[0]) if inferred[0] else None
        if not isinstance(structure, dict) or not structure:
            raise DataError(files[0], "has no object with a key", "check that the source is not empty")
        if (pair := _equal_keys(structure)) is not None:
            raise DataError(
                files[0], f"has the keys {pair[0]} and {pair[1]}, which are one column in SQL", "rename one"
            )

        def write_target(integer: str) -> None:
            columns = ", ".join(
                f"{literal(name)}: {literal(_sql_type(kind, integer))}" for name, kind in structure.items()
            )
            selected = ", ".join(
                _as_text(name) if kind == "JSON" else identifier(name) for name, kind in structure.items()
            )
            connection.execute(
                f"copy (select {selected} from read_json({literal_list(files)}, columns = {{{columns}}}, {options})) "
                f"to {literal(target)} (format parquet, compression zstd, compression_level 1, row_group_size 8192)"
            )

        failure: duckdb.Error | None = None
        # Integers are BIGINT unless one is too large.
        for integer in ("BIGINT", "DECIMAL(38, 0)"):
            try:
                write_target(integer)
                exact = _exact_types(connection, relation, structure, files, options)
                if exact:
                    structure.update(exact)
                    write_target(integer)
            except duckdb.Error as exc:
                failure = exc
            else:
                integers = [name for name, kind in structure.items() if _sql_type(kind, "") == ""]
                known_types = {name: facts.known_types[name] for name in integers if name in facts.known_types}
                relation = _cast_to_known(connection, relation, known_types)
                _save_columns(facts.columns_file, connection, relation)
                return OpenedSource(relation)
        assert failure is not None
        raise _unreadable(files, failure) from failure


def _exact_types(
    connection: duckdb.DuckDBPyConnection, relation: str, structure: Mapping[str, Any], files: list[Path], options: str
) -> dict[str, str]:
    """Return exact types for columns of integers that DuckDB reads as DOUBLE, since one of them is 2^64 or more: as
    DOUBLE, different numbers would become equal."""
    doubles = [name for name, kind in structure.items() if kind == "DOUBLE"]
    if not doubles:
        return {}
    large = ", ".join(f"coalesce(bool_or(abs({identifier(name)}) >= {1 << 64}), false)" for name in doubles)
    (have_large,) = connection.execute(f"select {large} from {relation}").fetchall()
    kinds: dict[str, str] = {}
    for name in (name for name, is_large in zip(doubles, have_large, strict=True) if is_large):
        texts = f"read_json({literal_list(files)}, columns = {{{literal(name)}: 'VARCHAR'}}, {options})"
        ((is_integer, is_decimal),) = connection.execute(
            f"select bool_and(regexp_full_match({identifier(name)}, '-?[0-9]+')), "
            f"bool_and(try_cast({identifier(name)} as DECIMAL(38, 0)) is not null) "
            f"from {texts} where {identifier(name)} is not null"
        ).fetchall()
        if is_integer:
            kinds[name] = "DECIMAL(38, 0)" if is_decimal else "VARCHAR"
    return kinds


def _equal_keys(structure: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return two keys of one object, at any depth, that differ in upper and lower case only."""
    seen: dict[str, str] = {}
    for name, kind in structure.items():
        if name.lower() in seen:
            return seen[name.lower()], name
        seen[name.lower()] = name
        while isinstance(kind, list) and kind:
            kind = kind[0]
        if isinstance(kind, dict) and (inner := _equal_keys(kind)) is not None:
            return inner
    return None


def _save_columns(file: Path | None, connection: duckdb.DuckDBPyConnection, relation: str) -> None:
    """Save the columns for a run whose source has no lines."""
    if file is None:
        return
    described = connection.execute(f"select * from {relation} limit 0").description or ()
    columns = {str(column[0]): str(column[1]) for column in described}
    if columns != _saved_columns(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Several commands may do so at once.
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_bytes(orjson.dumps(columns))
        draft.replace(file)


def _saved_columns(file: Path | None) -> dict[str, str]:
    """Return the columns when the source last had a row; none if unknown."""
    try:
        columns = orjson.loads(file.read_bytes()) if file is not None else {}
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return columns if isinstance(columns, dict) else {}


def _cast_to_known(connection: duckdb.DuckDBPyConnection, relation: str, known: Mapping[str, str]) -> str:
    """Return the relation with integer columns cast to the table's DOUBLE or DECIMAL, if each value fits exactly: JSON
    writes 2.0 and 2 for the same number."""
    exact = {
        name: f"max(abs({identifier(name)})) <= {1 << 53}" if kind == "DOUBLE" else "bool_and(true)"
        for name, kind in known.items()
        if kind in ("DOUBLE", "DECIMAL(38,0)")
    }
    if not exact:
        return relation
    (are_exact,) = connection.execute(
        f"select {', '.join(f'coalesce({test}, true)' for test in exact.values())} from {relation}"
    ).fetchall()
    casts = ", ".join(
        f"cast({identifier(name)} as {known[name]}) as {identifier(name)}"
        for name, fits in zip(exact, are_exact, strict=True)
        if fits
    )
    return f"(select * replace ({casts}) from {relation})" if casts else relation


def _as_text(name: str) -> str:
    """Select a string as it is, anything else as JSON text."""
    return f"({identifier(name)} ->> '$') as {identifier(name)}"


def _sql_type(structure: Any, integer: str) -> str:
    """Return the SQL type for a structure of json_group_structure. `integer`: the type of integers."""
    if isinstance(structure, dict):
        if not structure:
            return "JSON"
        return (
            "STRUCT("
            + ", ".join(f"{identifier(name)} {_sql_type(kind, integer)}" for name, kind in structure.items())
            + ")"
        )
    if isinstance(structure, list):
        return f"{_sql_type(structure[0], integer) if structure else 'VARCHAR'}[]"
    if structure in ("UBIGINT", "BIGINT", "HUGEINT", "UHUGEINT"):
        return integer
    return "VARCHAR" if structure == "NULL" else str(structure)


def _without_byte_order_mark(file: Path, number: int, scratch: Path) -> Path:
    """Return the file, or a copy without its byte order mark."""
    try:
        with file.open("rb") as source:
            if source.read(3) != BYTE_ORDER_MARK:
                return file
            scratch.mkdir(parents=True, exist_ok=True)
            with (scratch / f"{number:06d}-{file.name}").open("wb") as copy:
                shutil.copyfileobj(source, copy)
                return Path(copy.name)
    except OSError as exc:
        raise DataError(file, f"cannot be read ({exc.strerror})", "check the file and its permissions") from exc


def _unreadable(files: list[Path], exc: duckdb.Error | None) -> DataError:
    """Return the error for the first line that is not a JSON object, or DuckDB's error if all lines look valid."""
    for file in files:
        if file.suffix != ".gz":
            for line, problem in _problems(file):
                return DataError(f"{file}:{line}", problem, "fix the line")
    return DataError(
        files[0], f"cannot be read ({first_line(exc) if exc else 'a line is not an object'})", "fix the file"
    )


def _problems(file: Path) -> Iterator[tuple[int, str]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    if not isinstance(orjson.loads(line), dict):
                        yield number, "is JSON but not an object"
                except orjson.JSONDecodeError as exc:
                    yield number, f"is not JSON ({exc})"
