"""`jsonl:` files of one JSON object per line; column types are guessed from all lines."""

import lzma
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow.parquet as pq
from msgspec import Struct
from pydantic import Field

from connectors.contracts import Columns, OpenedSource, SourceColumn, SourceContext
from connectors.errors import DataError
from connectors.sources.columns.guessed_types import JsonGuess, text_column
from connectors.sources.columns.hive_columns import FilesModel, hive_columns, hive_values, value_of_file_number
from connectors.sources.columns.json_numbers import (
    JsonPath,
    NumberLeaves,
    exact_column,
    number_leaves,
    odd_numbers,
    write_exact_lines,
)
from connectors.sources.columns.saved_columns import empty_source, no_bytes_warning
from connectors.sql import first_line, identifier, literal, literal_list, literal_path
from connectors.storage.compressed_files import compressed_suffix, file_kind, open_file
from connectors.storage.input_files import (
    DownloadedObjects,
    downloaded_objects,
    input_files,
    input_objects,
    other_files_warning,
)

SUFFIXES = (".jsonl", ".ndjson")
MAX_LINE_BYTES = 16 << 20
MIN_BUFFER_BYTES = 1 << 20
"""DuckDB reserves several buffers of twice the longest line."""
EMPTY_OBJECT = r"\{\s*\}"
EMPTY_MARK = "[[[[[[[[[null]]]]]]]]]"
"""In place of an empty object, whose structure would be that of mixed values; without quotes: texts have {} too."""
EMPTY_STRUCTURE: Any = [[[[[[[[["NULL"]]]]]]]]]
MAX_NESTING = 60
"""Levels of lists and objects in a line. Arrow passes schemas of at most 64 levels between libraries."""
FETCHED_STRUCTURES = 1000
"""Structures of lines that are merged at once."""
MEMORY_BYTES = 128_000_000
MEMORY_BYTES_PER_COLUMN = 160_000
MEMORY_PER_LINE_BYTE = 24
"""DuckDB's memory limit while lines are read."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FILE_NUMBER = "_rowmill_file"
"""Column of the scratch file with the number of a row's file, from 0."""
NUMBERS = frozenset({"BIGINT", "UBIGINT", "HUGEINT", "UHUGEINT", "DOUBLE"})
INTEGER_TYPES = ("BIGINT", "DECIMAL(38, 0)", "VARCHAR")
"""Types of whole numbers inside lists and objects; the first that holds all of them is used."""


class JsonlSource(FilesModel):
    """Each key of any line is a column; values of several types become text, strings as they are and others as JSON."""

    jsonl: str | Columns = Field(
        description="Path, folder, glob or list of them, also at s3://, gs://, az:// (extra `rowmill[cloud]`); .gz, "
        ".bz2, .xz and .zst are unpacked."
    )

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        return input_files(self.jsonl, facts.workspace, SUFFIXES, ("source", "jsonl"))

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
        longest = max(_longest_line(file) for file in origins)
        memory = MEMORY_BYTES + MEMORY_PER_LINE_BYTE * longest
        connection.execute(f"set memory_limit = '{memory}B'")
        structure, has_odd_numbers = _structure(connection, origins, paths, longest)
        if structure is None:
            opened = empty_source(origins[0], facts.columns_file, warnings)
            return OpenedSource(opened.relation, warnings=warnings, has_empty_files=bool(empty))
        leaves = number_leaves(paths) if has_odd_numbers else None
        if leaves is not None:
            # Lists and objects occur twice in such lines, as texts with escaped quotes.
            longest = 4 * longest + MIN_BUFFER_BYTES
        table = JsonTable(facts.scratch / "jsonl.parquet", structure, leaves, longest)
        if leaves is not None:
            exact = [facts.scratch / f"exact-{number:06d}" for number in range(len(paths))]
            for path, target in zip(paths, exact, strict=True):
                write_exact_lines(path, target, structure, leaves.inexact)
            paths = exact
        connection.execute(f"set memory_limit = '{memory + MEMORY_BYTES_PER_COLUMN * len(structure)}B'")
        try:
            table.write(connection, paths)
        except duckdb.Error as exc:
            raise _unreadable(origins, exc) from exc
        columns = _columns(connection, table, facts.known_types)
        if self.hive:
            values = hive_values([copies.urls.get(file, file) for file in origins], facts.workspace, columns)
            text = {name: value_of_file_number(FILE_NUMBER, found) for name, found in values.items()}
            columns.update(hive_columns(values, text, facts.known_types))
        return OpenedSource(table.relation, columns, warnings=warnings, has_empty_files=bool(empty))


class JsonTable(Struct, frozen=True):
    """The lines of all files as a Parquet file of the scratch folder: numbers, lists and objects as their texts."""

    target: Path
    structure: Mapping[str, Any]
    """As json_group_structure returns it: a type, a list of one, or a mapping."""
    leaves: NumberLeaves | None
    """None: no number needs more than a DOUBLE's text; else the lines come from `write_exact_lines`."""
    longest: int
    """Bytes of the longest line."""

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
        options = f"columns = {{{columns}}}, filename = '_rowmill_name', {_options(self.longest)}"
        connection.execute(
            f"copy (select {', '.join(selected)}, list_position({names}, _rowmill_name) - 1 as {FILE_NUMBER} "
            f"from read_json({literal_list(files)}, {options})) "
            f"to {literal(self.target)} (format parquet, compression zstd, compression_level 1, row_group_size 8192)"
        )


def _options(longest: int) -> str:
    """Return options of read_json. `longest`: bytes of the longest line."""
    return (
        f"format = 'newline_delimited', maximum_object_size = {max(longest + 2, MIN_BUFFER_BYTES)}, "
        "hive_partitioning = false, compression = 'auto'"
    )


def _structure(
    connection: duckdb.DuckDBPyConnection, origins: Sequence[Path], paths: Sequence[Path], longest: int
) -> tuple[Mapping[str, Any] | None, bool]:
    """Return the structure of all lines (None without a line), and whether a number needs more than a DOUBLE's text.

    DataError for a line that is no JSON object, and for keys that cannot be columns.
    """
    files = [literal_path(path) for path in paths]
    has_fraction, has_whole = odd_numbers("cast(json as VARCHAR)")
    structure: Any = "NULL"
    rows, is_object, is_fraction, is_whole = 0, True, False, False
    try:
        # json_group_structure over all lines would need memory for each of them.
        kinds = connection.execute(
            f"select json_structure(regexp_replace(json, {literal(EMPTY_OBJECT)}, {literal(EMPTY_MARK)}, 'g')) as s, "
            f"count(*), bool_and(json_type(json) = 'OBJECT'), bool_or({has_fraction}), bool_or({has_whole}) "
            "from (select *, row_number() over () as n "
            f"from read_json_objects({literal_list(files)}, {_options(longest)})) group by s order by min(n)"
        )
        while found := kinds.fetchmany(FETCHED_STRUCTURES):
            for text, count, are_objects, has_fractions, has_wholes in found:
                kind = orjson.loads(text)
                if _is_too_deep(kind, MAX_NESTING + len(EMPTY_MARK)):
                    raise _unreadable(origins, None)
                if _is_too_deep(kind := _with_empty_objects(kind)):
                    raise _unreadable(origins, None)
                structure = _merged(structure, kind)
                rows += count
                is_object, is_fraction = is_object and are_objects, is_fraction or has_fractions
                is_whole = is_whole or has_wholes
    except duckdb.Error as exc:
        raise _unreadable(origins, exc) from exc
    if not is_object:
        raise _unreadable(origins, None)
    if not rows:
        return None, False
    if not isinstance(structure, dict) or not structure:
        raise DataError(origins[0], "has no object with a key", "check that the source is not empty")
    if _has_empty_key(structure):
        raise DataError(origins[0], 'has an empty key ("")', "give it a name")
    if (pair := _equal_keys(structure)) is not None:
        raise DataError(origins[0], f"has the keys {pair[0]} and {pair[1]}, which are one column in SQL", "rename one")
    structure = {name: kind or "JSON" for name, kind in structure.items()}
    has_nested = any(not isinstance(kind, str) for kind in structure.values())
    return structure, is_fraction or (is_whole and has_nested)


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
    # In values of several types, texts stay as they are; as JSON they would have quotes.
    return "VARCHAR" if kind in ("NULL", "JSON") else kind


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


def _with_empty_objects(structure: Any) -> Any:
    if structure == EMPTY_STRUCTURE:
        return {}
    if isinstance(structure, dict):
        return {key: _with_empty_objects(kind) for key, kind in structure.items()}
    return [_with_empty_objects(kind) for kind in structure] if isinstance(structure, list) else structure


def _is_too_deep(value: Any, levels: int = MAX_NESTING) -> bool:
    """Whether lists and objects are nested in more levels."""
    level = [value]
    for _ in range(levels + 1):
        inner = [list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [child for children in inner for child in children]
    return bool(level)


def _merged(first: Any, second: Any) -> Any:
    """Return the structure of values that have one of two structures; JSON if no type holds both."""
    if first == second or second == "NULL":
        return first
    if first == "NULL":
        return second
    if isinstance(first, dict) and isinstance(second, dict):
        return first | {key: _merged(first.get(key, "NULL"), kind) for key, kind in second.items()}
    if isinstance(first, list) and isinstance(second, list):
        return [_merged(first[0], second[0])] if first and second else first or second
    if isinstance(first, str) and isinstance(second, str) and {first, second} <= NUMBERS:
        return "DOUBLE" if "DOUBLE" in (first, second) else "BIGINT"
    return "JSON"


def _longest_line(file: Path) -> int:
    """Return the bytes of the longest line; DataError for one that is too long."""
    try:
        with open_file(file) as lines:
            longest = max(map(len, lines), default=0)
        if longest <= MAX_LINE_BYTES:
            return longest
        with open_file(file) as lines:
            number, line = next((number, line) for number, line in enumerate(lines, 1) if len(line) > MAX_LINE_BYTES)
    except (OSError, EOFError, lzma.LZMAError) as exc:
        raise DataError(file, f"cannot be read ({exc})", "check the file and its permissions") from exc
    size = f"{len(line) / 1e6:.1f} MB, more than {MAX_LINE_BYTES / 1e6:.1f} MB"
    raise DataError(f"{file}:{number}", f"the line has {size}", "write large texts as files or as Parquet")


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
            if content.strip():
                try:
                    value = orjson.loads(content)
                    if not isinstance(value, dict):
                        yield number, "is JSON but not an object"
                    elif _is_too_deep(value):
                        yield number, f"has more than {MAX_NESTING} levels of lists and objects"
                except orjson.JSONDecodeError as exc:
                    yield number, f"is not JSON ({exc})"
