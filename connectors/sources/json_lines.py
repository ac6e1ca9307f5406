"""`jsonl:` files of one JSON object per line; column types are guessed from all lines."""

import lzma
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow.parquet as pq
from pydantic import Field

from connectors.contracts import Columns, OpenedSource, SourceColumn, SourceContext
from connectors.errors import DataError
from connectors.sources.guessed_types import JsonGuess, text_column
from connectors.sources.hive_columns import FilesModel, hive_columns, hive_values, value_of_file_number
from connectors.sources.json_numbers import (
    ODD_NUMBER,
    JsonPath,
    NumberLeaves,
    exact_column,
    number_leaves,
    write_exact_lines,
)
from connectors.sources.saved_columns import empty_source, no_bytes_warning, save_columns
from connectors.sql import first_line, identifier, literal, literal_list
from connectors.storage.compressed_files import compressed_suffix, file_kind, open_file
from connectors.storage.input_files import (
    DownloadedObjects,
    downloaded_objects,
    input_files,
    input_objects,
    literal_path,
    other_files_warning,
)

SUFFIXES = (".jsonl", ".ndjson")
MAX_LINE_BYTES = 16 << 20
"""DuckDB reserves twice as much for each of its threads."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FILE_NUMBER = "_rowmill_file"
"""Column of the scratch file with the number of a row's file, from 0."""
NUMBERS = frozenset({"BIGINT", "UBIGINT", "HUGEINT", "UHUGEINT", "DOUBLE"})
INTEGER_TYPES = ("BIGINT", "DECIMAL(38, 0)", "VARCHAR")
"""Types of whole numbers inside lists and objects; the first that holds all of them is used."""


class JsonlSource(FilesModel):
    """Each key of any line is a column; strings stay strings, values of several types become JSON text."""

    jsonl: str | Columns = Field(
        description="Path, folder, glob or list of them, also at s3://, gs://, az:// (extra `rowmill[cloud]`); .gz, "
        ".bz2, .xz and .zst are unpacked."
    )

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        return input_files(self.jsonl, facts.workspace, SUFFIXES)

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        others: list[str] = []
        objects = input_objects(self.jsonl, ("source", "jsonl"), SUFFIXES, others)
        warnings = other_files_warning(self.jsonl, facts.workspace, SUFFIXES, others)
        with downloaded_objects(objects, facts.scratch) as copies:
            files = [*self.paths(facts), *copies.urls]
            return self._open_files(connection, files, copies, facts, warnings)

    def _open_files(
        self,
        connection: duckdb.DuckDBPyConnection,
        files: Sequence[Path],
        copies: DownloadedObjects,
        facts: SourceContext,
        warnings: tuple[str, ...],
    ) -> OpenedSource:
        lines = [_plain_lines(file, facts.scratch / f"lines-{number:06d}") for number, file in enumerate(files)]
        empty = [file for file, path in zip(files, lines, strict=True) if path is None]
        warnings += tuple(no_bytes_warning(copies.replace_paths(str(file))) for file in empty)
        readable = [(file, path) for file, path in zip(files, lines, strict=True) if path is not None]
        if not readable:
            return empty_source(files[0], facts.columns_file, warnings)
        origins, paths = [file for file, _ in readable], [path for _, path in readable]
        structure, has_odd_numbers = _structure(connection, origins, paths)
        if structure is None:
            opened = empty_source(origins[0], facts.columns_file, warnings)
            return OpenedSource(opened.relation, warnings=warnings, has_empty_files=bool(empty))
        leaves = number_leaves(paths) if has_odd_numbers else None
        table = JsonTable(facts.scratch / "jsonl.parquet", structure, leaves)
        if leaves is not None:
            exact = [facts.scratch / f"exact-{number:06d}" for number in range(len(paths))]
            for path, target in zip(paths, exact, strict=True):
                write_exact_lines(path, target, structure, leaves.inexact)
            paths = exact
        try:
            table.write(connection, paths)
        except duckdb.Error as exc:
            raise _unreadable(origins, exc) from exc
        columns = _columns(connection, table, facts.known_types)
        if self.hive:
            values = hive_values([copies.urls.get(file, file) for file in origins], facts.workspace, columns)
            text = {name: value_of_file_number(FILE_NUMBER, found) for name, found in values.items()}
            columns.update(hive_columns(values, text, facts.known_types))
        save_columns(facts.columns_file, columns)
        return OpenedSource(table.relation, columns, warnings=warnings, has_empty_files=bool(empty))


@dataclass(frozen=True, slots=True)
class JsonTable:
    """The lines of all files as a Parquet file of the scratch folder: numbers, lists and objects as their texts."""

    target: Path
    structure: Mapping[str, Any]
    """As json_group_structure returns it: a type, a list of one, or a mapping."""
    leaves: NumberLeaves | None
    """None: no number needs more than a DOUBLE's text; else the lines come from `write_exact_lines`."""

    @property
    def relation(self) -> str:
        return f"read_parquet({literal(literal_path(self.target))})"

    def write(self, connection: duckdb.DuckDBPyConnection, paths: Sequence[Path]) -> None:
        """Write the file."""
        are_exact = self.leaves is not None
        kinds = {name: _read_type(kind, are_exact) for name, kind in self.structure.items()}
        selected = [
            f"({identifier(name)} ->> '$') as {identifier(name)}" if kind == "JSON" else identifier(name)
            for name, kind in kinds.items()
        ]
        if are_exact:
            nested = [name for name, kind in self.structure.items() if not isinstance(kind, str)]
            kinds |= {exact_column(name): "VARCHAR" for name in nested}
            selected += [identifier(exact_column(name)) for name in nested]
        columns = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in kinds.items())
        files = [literal_path(path) for path in paths]
        names = literal_list(paths)
        connection.execute(
            f"copy (select {', '.join(selected)}, list_position({names}, _rowmill_name) - 1 as {FILE_NUMBER} "
            f"from read_json({literal_list(files)}, columns = {{{columns}}}, filename = '_rowmill_name', {_OPTIONS})) "
            f"to {literal(self.target)} (format parquet, compression zstd, compression_level 1, row_group_size 8192)"
        )


_OPTIONS = (
    f"format = 'newline_delimited', maximum_object_size = {MAX_LINE_BYTES}, hive_partitioning = false, "
    "compression = 'auto'"
)


def _structure(
    connection: duckdb.DuckDBPyConnection, origins: Sequence[Path], paths: Sequence[Path]
) -> tuple[Mapping[str, Any] | None, bool]:
    """Return the structure of all lines (None without a line), and whether a number needs more than a DOUBLE's text.

    DataError for a line that is no JSON object, and for keys that cannot be columns.
    """
    files = [literal_path(path) for path in paths]
    try:
        inferred = connection.execute(
            "select json_group_structure(json), count(*) filter (json_type(json) <> 'OBJECT'), count(*), "
            f"coalesce(bool_or(regexp_matches(cast(json as VARCHAR), {literal(ODD_NUMBER)})), false) "
            f"from read_json_objects({literal_list(files)}, {_OPTIONS})"
        ).fetchone()
    except duckdb.Error as exc:
        raise _unreadable(origins, exc) from exc
    assert inferred is not None
    if inferred[1]:
        raise _unreadable(origins, None)
    if not inferred[2]:
        return None, False
    structure = orjson.loads(inferred[0]) if inferred[0] else None
    if not isinstance(structure, dict) or not structure:
        raise DataError(origins[0], "has no object with a key", "check that the source is not empty")
    if _has_empty_key(structure):
        raise DataError(origins[0], 'has an empty key ("")', "give it a name")
    if (pair := _equal_keys(structure)) is not None:
        raise DataError(origins[0], f"has the keys {pair[0]} and {pair[1]}, which are one column in SQL", "rename one")
    return structure, bool(inferred[3])


def _columns(
    connection: duckdb.DuckDBPyConnection, table: JsonTable, known: Mapping[str, str]
) -> dict[str, SourceColumn]:
    """Return how the columns are read from the table."""
    structure = table.structure
    guesses = {name: JsonGuess() for name, kind in structure.items() if isinstance(kind, str) and kind in NUMBERS}
    if guesses:
        with pq.ParquetFile(table.target) as file:
            for batch in file.iter_batches(columns=list(guesses)):
                for name, guess in guesses.items():
                    guess.add(batch.column(name))
    columns: dict[str, SourceColumn] = {}
    for name, kind in structure.items():
        column = identifier(name)
        if name in guesses:
            columns[name] = text_column(column, guesses[name].kind, known.get(name))
        elif kind == "BOOLEAN":
            columns[name] = SourceColumn(column, kind)
        elif isinstance(kind, str):
            columns[name] = text_column(column, "VARCHAR", known.get(name))
        else:
            columns[name] = _nested_column(connection, table, name)
    return columns


def _nested_column(connection: duckdb.DuckDBPyConnection, table: JsonTable, name: str) -> SourceColumn:
    """Return a column of lists or objects, whose whole numbers have the first type that holds them all."""
    source = identifier(name if table.leaves is None else exact_column(name))
    kind, leaves = table.structure[name], table.leaves or NumberLeaves()
    texts = f"json_transform({source}, {literal(_transform(kind, 'VARCHAR', (name,), leaves))})"
    for integer in INTEGER_TYPES:
        value = f"json_transform({source}, {literal(_transform(kind, integer, (name,), leaves))})"
        # json_transform gives null for a number that does not fit.
        values = f"cast({value} as {_type_of(connection, table, texts)})"
        changed = f"select 1 from {table.relation} where {values} is distinct from {texts} limit 1"
        if not connection.execute(changed).fetchall():
            break
    return SourceColumn(value, _type_of(connection, table, value), identifier(name), is_guessed=True)


def _type_of(connection: duckdb.DuckDBPyConnection, table: JsonTable, value: str) -> str:
    return str(connection.sql(f"select {value} from {table.relation}").types[0])


def _transform(kind: Any, integer: str, path: JsonPath, leaves: NumberLeaves) -> str:
    """Return the structure for json_transform, as JSON text. `integer`: the type of whole numbers."""
    return orjson.dumps(_transformed(kind, integer, path, leaves)).decode()


def _transformed(kind: Any, integer: str, path: JsonPath, leaves: NumberLeaves) -> Any:
    if isinstance(kind, dict):
        return {key: _transformed(value, integer, (*path, key), leaves) for key, value in kind.items()} or "JSON"
    if isinstance(kind, list):
        return [_transformed(kind[0], integer, (*path, "[]"), leaves) if kind else "VARCHAR"]
    if path in leaves.inexact:
        return "VARCHAR"
    if path in leaves.whole or (kind in NUMBERS and kind != "DOUBLE"):
        return integer
    return "VARCHAR" if kind == "NULL" else kind


def _read_type(kind: Any, are_exact: bool) -> str:
    """Return the type for read_json of a column: numbers, lists and objects as text."""
    if not isinstance(kind, str):
        return "VARCHAR"
    if kind in NUMBERS or kind == "NULL" or (kind == "JSON" and are_exact):
        return "VARCHAR"
    return kind


def _has_empty_key(structure: Any) -> bool:
    if isinstance(structure, list):
        return any(map(_has_empty_key, structure))
    return isinstance(structure, dict) and ("" in structure or any(map(_has_empty_key, structure.values())))


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


def _plain_lines(file: Path, target: Path) -> Path | None:
    """Return a file that DuckDB can read: the file, or a copy without compression and byte order mark.

    None if the file has no bytes.
    """
    try:
        kind = None if compressed_suffix(file) else file_kind(file)
        if kind is not None:
            raise DataError(file, f"is {kind}", "rename it, or name a file of JSON lines")
        with open_file(file) as source:
            first = source.read(len(BYTE_ORDER_MARK))
            if not first or (first == BYTE_ORDER_MARK and not source.read(1)):
                return None
            if first != BYTE_ORDER_MARK and file.suffix not in (".bz2", ".xz") and file.suffix == file.suffix.lower():
                return file
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_file(file) as source, target.open("wb") as copy:
            copy.write(source.read(len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK))
            while block := source.read(1 << 20):
                copy.write(block)
    except (OSError, EOFError, lzma.LZMAError) as exc:
        raise DataError(file, f"cannot be read ({exc})", "check the file and its permissions") from exc
    return target


def _unreadable(files: Sequence[Path], exc: duckdb.Error | None) -> DataError:
    """Return the error for the first line that is not a JSON object, or DuckDB's error if all lines look valid."""
    for file in files:
        for line, problem in _problems(file):
            return DataError(f"{file}:{line}", problem, "fix the line")
    return DataError(
        files[0], f"cannot be read ({first_line(exc) if exc else 'a line is not an object'})", "fix the file"
    )


def _problems(file: Path) -> Iterator[tuple[int, str]]:
    with open_file(file) as lines:
        for number, line in enumerate(lines, 1):
            content = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if len(line) > MAX_LINE_BYTES:
                yield number, f"has {len(line) / 1e6:.1f} MB, more than the {MAX_LINE_BYTES / 1e6:.1f} MB of a line"
            elif content.strip():
                try:
                    if not isinstance(orjson.loads(content), dict):
                        yield number, "is JSON but not an object"
                except orjson.JSONDecodeError as exc:
                    yield number, f"is not JSON ({exc})"
