"""`jsonl:` files of one JSON object a line, typed by all of their lines."""

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
from connectors.sql import first_line, literal, literal_list, quoted
from connectors.storage.input_files import downloaded_objects, input_files, input_objects

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

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        return input_files(self.jsonl, facts.workspace, SUFFIXES)

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        with downloaded_objects(input_objects(self.jsonl, ("source", "jsonl"), SUFFIXES), facts.scratch) as copies:
            given = [*self.paths(facts), *copies.urls]
            files = [_unmarked(file, number, facts.scratch) for number, file in enumerate(given)]
            return self._opened(connection, files, facts)

    def _opened(self, connection: duckdb.DuckDBPyConnection, files: list[Path], facts: SourceContext) -> OpenedSource:
        target = facts.scratch / "jsonl.parquet"
        relation = f"read_parquet({literal(target)})"
        options = f"format = 'newline_delimited', maximum_object_size = {LARGEST_LINE}"
        try:
            found = connection.execute(
                "select json_group_structure(json), count(*) filter (json_type(json) <> 'OBJECT'), count(*) "
                f"from read_json_objects({literal_list(files)}, {options})"
            ).fetchone()
        except duckdb.Error as exc:
            raise _unreadable(files, exc) from exc
        assert found is not None
        if found[1]:
            raise _unreadable(files, None)
        if not found[2] and (noted := _noted(facts.columns_file)):
            empty = ", ".join(f"cast(null as {kind}) as {quoted(name)}" for name, kind in noted.items())
            return OpenedSource(f"(select {empty} where false)")
        structure = orjson.loads(found[0]) if found[0] else None
        if not isinstance(structure, dict) or not structure:
            raise DataError(files[0], "holds no object with a key", "check that the source is not empty")
        if (twice := _twice(structure)) is not None:
            raise DataError(
                files[0], f"has the keys {twice[0]} and {twice[1]}, which no table tells apart", "rename one"
            )

        def copied(whole: str) -> None:
            columns = ", ".join(f"{literal(name)}: {literal(_kind(kind, whole))}" for name, kind in structure.items())
            made = ", ".join(_as_text(name) if kind == "JSON" else quoted(name) for name, kind in structure.items())
            connection.execute(
                f"copy (select {made} from read_json({literal_list(files)}, columns = {{{columns}}}, {options})) "
                f"to {literal(target)} (format parquet, compression zstd, compression_level 1, row_group_size 8192)"
            )

        failure: duckdb.Error | None = None
        # Whole numbers are BIGINT unless one is too large for it.
        for whole in ("BIGINT", "DECIMAL(38, 0)"):
            try:
                copied(whole)
                rounded = _rounded(connection, relation, structure, files, options)
                if rounded:
                    structure.update(rounded)
                    copied(whole)
            except duckdb.Error as exc:
                failure = exc
            else:
                guessed = [name for name, kind in structure.items() if _kind(kind, "") == ""]
                relation = _as_known(
                    connection, relation, {n: facts.known_types[n] for n in guessed if n in facts.known_types}
                )
                _note(facts.columns_file, connection, relation)
                return OpenedSource(relation)
        assert failure is not None
        raise _unreadable(files, failure) from failure


def _rounded(
    connection: duckdb.DuckDBPyConnection, relation: str, structure: Mapping[str, Any], files: list[Path], options: str
) -> dict[str, str]:
    """The types of columns of whole numbers that DuckDB took for DOUBLE, since one of them is 2^64 or more: as such
    they would not be told apart."""
    doubles = [name for name, kind in structure.items() if kind == "DOUBLE"]
    if not doubles:
        return {}
    large = ", ".join(f"coalesce(bool_or(abs({quoted(name)}) >= {1 << 64}), false)" for name in doubles)
    (found,) = connection.execute(f"select {large} from {relation}").fetchall()
    kinds: dict[str, str] = {}
    for name in (name for name, is_large in zip(doubles, found, strict=True) if is_large):
        texts = f"read_json({literal_list(files)}, columns = {{{literal(name)}: 'VARCHAR'}}, {options})"
        ((whole, fits),) = connection.execute(
            f"select bool_and(regexp_full_match({quoted(name)}, '-?[0-9]+')), "
            f"bool_and(try_cast({quoted(name)} as DECIMAL(38, 0)) is not null) "
            f"from {texts} where {quoted(name)} is not null"
        ).fetchall()
        if whole:
            kinds[name] = "DECIMAL(38, 0)" if fits else "VARCHAR"
    return kinds


def _twice(structure: Mapping[str, Any]) -> tuple[str, str] | None:
    """Two keys of one object, at any depth, that differ in upper and lower case only."""
    seen: dict[str, str] = {}
    for name, kind in structure.items():
        if name.lower() in seen:
            return seen[name.lower()], name
        seen[name.lower()] = name
        while isinstance(kind, list) and kind:
            kind = kind[0]
        if isinstance(kind, dict) and (inner := _twice(kind)) is not None:
            return inner
    return None


def _note(file: Path | None, connection: duckdb.DuckDBPyConnection, relation: str) -> None:
    """Keep the columns for a night without a line."""
    if file is None:
        return
    described = connection.execute(f"select * from {relation} limit 0").description or ()
    columns = {str(column[0]): str(column[1]) for column in described}
    if columns != _noted(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Several commands may do so at once.
        beside = file.with_suffix(f".{os.getpid()}")
        beside.write_bytes(orjson.dumps(columns))
        beside.replace(file)


def _noted(file: Path | None) -> dict[str, str]:
    """The columns as they were when the source last had a row; none where that is not known."""
    try:
        found = orjson.loads(file.read_bytes()) if file is not None else {}
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _as_known(connection: duckdb.DuckDBPyConnection, relation: str, known: Mapping[str, str]) -> str:
    """The relation with columns of whole numbers as DOUBLE or DECIMAL, where the table has them so and each fits as it
    is: JSON writes 2.0 and 2 for the same number."""
    exact = {
        name: f"max(abs({quoted(name)})) <= {1 << 53}" if kind == "DOUBLE" else "bool_and(true)"
        for name, kind in known.items()
        if kind in ("DOUBLE", "DECIMAL(38,0)")
    }
    if not exact:
        return relation
    (found,) = connection.execute(
        f"select {', '.join(f'coalesce({test}, true)' for test in exact.values())} from {relation}"
    ).fetchall()
    made = ", ".join(
        f"cast({quoted(name)} as {known[name]}) as {quoted(name)}"
        for name, fits in zip(exact, found, strict=True)
        if fits
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
        raise DataError(file, f"cannot be read ({exc.strerror})", "check the file and its permissions") from exc


def _unreadable(files: list[Path], exc: duckdb.Error | None) -> DataError:
    """The first line that is no JSON object, found by reading again; what DuckDB says where all lines look well."""
    for file in files:
        if file.suffix != ".gz":
            for line, problem in _problems(file):
                return DataError(f"{file}:{line}", f"{problem}", "mend the line")
    return DataError(files[0], f"cannot be read ({first_line(exc) if exc else 'a line is no object'})", "mend the file")


def _problems(file: Path) -> Iterator[tuple[int, str]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    if not isinstance(orjson.loads(line), dict):
                        yield number, "holds JSON but no object"
                except orjson.JSONDecodeError as exc:
                    yield number, f"is no JSON ({exc})"
