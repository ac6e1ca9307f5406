"""`jsonl:` files of one JSON object a line, typed by all of their lines."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import orjson
from pydantic import Field

from connectors.contracts import Columns, Opened, SourceFacts, SourceModel
from connectors.errors import DataError
from connectors.input_files import fetched, input_files, input_objects
from connectors.sql_text import first_line, literal, literal_list, quoted

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
LARGEST_LINE = 16 << 20
"""Bytes; DuckDB sets aside twice as much for each of its threads."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonlSource(SourceModel):
    """A column for each key of any line; strings stay strings, values of several types become JSON text."""

    jsonl: str | Columns = Field(
        description="Path, folder, glob or list of them, also at s3://, gs://, az:// (extra `rowmill[cloud]`); .gz is "
        "unpacked."
    )

    def paths(self, facts: SourceFacts) -> tuple[Path, ...]:
        return input_files(self.jsonl, facts.workspace, SUFFIXES)

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceFacts) -> Opened:
        with fetched(input_objects(self.jsonl, "source.jsonl", SUFFIXES), facts.scratch) as copies:
            given = [*self.paths(facts), *copies.urls]
            files = [_unmarked(file, number, facts.scratch) for number, file in enumerate(given)]
            return self._opened(connection, files, facts)

    def _opened(self, connection: duckdb.DuckDBPyConnection, files: list[Path], facts: SourceFacts) -> Opened:
        target = facts.scratch / "jsonl.parquet"
        options = f"format = 'newline_delimited', maximum_object_size = {LARGEST_LINE}"
        try:
            found = connection.execute(
                "select json_group_structure(json), count(*) filter (json_type(json) <> 'OBJECT') "
                f"from read_json_objects({literal_list(files)}, {options})"
            ).fetchone()
        except duckdb.Error as exc:
            raise _unreadable(files, exc) from exc
        assert found is not None
        if found[1]:
            raise _unreadable(files, None)
        structure = orjson.loads(found[0]) if found[0] else None
        if not isinstance(structure, dict) or not structure:
            raise DataError(f"{files[0]}: holds no object with a key; check that the source is not empty")
        failure: duckdb.Error | None = None
        # Whole numbers are BIGINT unless one is too large for it.
        for whole in ("BIGINT", "DECIMAL(38, 0)"):
            columns = ", ".join(f"{literal(name)}: {literal(_kind(kind, whole))}" for name, kind in structure.items())
            made = ", ".join(_as_text(name) if kind == "JSON" else quoted(name) for name, kind in structure.items())
            try:
                connection.execute(
                    f"copy (select {made} from read_json({literal_list(files)}, columns = {{{columns}}}, {options})) "
                    f"to {literal(target)} (format parquet, compression zstd, compression_level 1, row_group_size 8192)"
                )
            except duckdb.Error as exc:
                failure = exc
            else:
                relation = f"read_parquet({literal(target)})"
                wide = [n for n, k in structure.items() if facts.known.get(n) == "DOUBLE" and _kind(k, "") == ""]
                return Opened(_as_doubles(connection, relation, wide))
        assert failure is not None
        raise _unreadable(files, failure) from failure


def _as_doubles(connection: duckdb.DuckDBPyConnection, relation: str, names: Sequence[str]) -> str:
    """The relation with columns of whole numbers as DOUBLE, where that holds each of them as it is: JSON writes 2.0 and
    2 for the same number."""
    if not names:
        return relation
    exact = ", ".join(f"coalesce(max(abs({quoted(name)})) <= {1 << 53}, true)" for name in names)
    (found,) = connection.execute(f"select {exact} from {relation}").fetchall()
    made = ", ".join(
        f"cast({quoted(name)} as DOUBLE) as {quoted(name)}" for name, fits in zip(names, found, strict=True) if fits
    )
    return f"(select * replace ({made}) from {relation})" if made else relation


def _as_text(name: str) -> str:
    """A string as it is, anything else as JSON text."""
    return f"({quoted(name)} ->> '$') as {quoted(name)}"


def _kind(structure: Any, whole: str) -> str:
    """The SQL type for what json_group_structure found."""
    if isinstance(structure, dict):
        if not structure:
            return "JSON"
        return "STRUCT(" + ", ".join(f"{quoted(name)} {_kind(kind, whole)}" for name, kind in structure.items()) + ")"
    if isinstance(structure, list):
        return f"{_kind(structure[0], whole) if structure else 'VARCHAR'}[]"
    if structure in ("UBIGINT", "BIGINT", "HUGEINT", "UHUGEINT"):
        return whole
    return "VARCHAR" if structure == "NULL" else str(structure)


def _unmarked(file: Path, number: int, scratch: Path) -> Path:
    """The file, or a copy without the byte order mark that it begins with."""
    try:
        with file.open("rb") as given:
            if given.read(3) != BYTE_ORDER_MARK:
                return file
            scratch.mkdir(parents=True, exist_ok=True)
            with (scratch / f"{number:06d}-{file.name}").open("wb") as copy:
                shutil.copyfileobj(given, copy)
                return Path(copy.name)
    except OSError as exc:
        raise DataError(f"{file}: cannot be read ({exc.strerror}); check the file and its permissions") from exc


def _unreadable(files: list[Path], exc: duckdb.Error | None) -> DataError:
    """The first line that is no JSON object, found by reading again; what DuckDB says where all lines look well."""
    for file in files:
        if file.suffix != ".gz":
            for line, problem in _problems(file):
                return DataError(f"{file}:{line}: {problem}; mend the line")
    return DataError(f"{files[0]}: cannot be read ({first_line(exc) if exc else 'a line is no object'}); mend the file")


def _problems(file: Path) -> Iterator[tuple[int, str]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    if not isinstance(orjson.loads(line), dict):
                        yield number, "holds JSON but no object"
                except orjson.JSONDecodeError as exc:
                    yield number, f"is no JSON ({exc})"
