"""`csv:` one or more delimited text files in any encoding; column types are guessed from all rows."""

import codecs
import csv
import io
import itertools
import lzma
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct, field
from pydantic import Field, field_validator

from connectors.contracts import Columns, OpenedSource, SourceColumn, SourceContext
from connectors.errors import DataError, FieldError, JobError, did_you_mean
from connectors.sources.columns.guessed_types import ColumnGuess, text_column
from connectors.sources.columns.hive_columns import FilesModel, hive_columns, hive_values, value_of_file_number
from connectors.sources.columns.saved_columns import empty_source, no_bytes_warning
from connectors.sources.csv_records import CsvFormat, CsvRecord, RejectedLine, read_records
from connectors.sql import identifier, identifier_list, literal_list, literal_path
from connectors.storage.compressed_files import compressed_suffix, file_kind, open_file
from connectors.storage.input_files import (
    DownloadedObjects,
    downloaded_objects,
    input_files,
    input_objects,
    other_files_warning,
)

SUFFIXES = (".csv", ".tsv")
POSITION = "_rowmill_place"
"""Column of the scratch files with a row's position: file number * 2**40 + line."""
OTHER_DELIMITERS = {";": ";", "\t": "\\t", "|": "|"}
"""Those that a header without a comma may have been written with -> as a job file writes them."""
WIDER_TYPES = {
    **dict.fromkeys(("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"), "DECIMAL(38,18)"),
    **dict.fromkeys(("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"), "DECIMAL(38,18)"),
    "DATE": "TIMESTAMP",
    **dict.fromkeys(("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS"), "TIMESTAMP WITH TIME ZONE"),
}
"""Declared type -> a type that has what a cast to it would round or drop."""
MAX_BATCH_ROWS = 8192
MAX_BATCH_CHARACTERS = 16 << 20
MAX_LINE_CHARACTERS = 200
"""Of a line in a message."""
MAX_NAMED_COLUMNS = 50
"""In a message."""


class CsvSource(FilesModel):
    """Every record is a row or rejected; a column gets a type only if all of its values keep their text or number."""

    csv: str | Columns = Field(
        description="Path, folder, glob or list of them, also at s3://, gs://, az:// (extra `rowmill[cloud]`); .gz, "
        ".bz2, .xz and .zst are unpacked."
    )
    delimiter: str = Field(default=",", description="One character between values; \\t is a tab.")
    quote: str | None = Field(
        default='"', description="Around values, doubled inside them; null: no character is special."
    )
    encoding: str = Field(default="utf-8", description="Any encoding that Python knows.")
    header: bool = Field(default=True, description="false: the columns are column0, column1 ...")
    null_values: tuple[str, ...] = Field(default=("",), description="Texts that mean null.")
    types: Mapping[str, str] = Field(default_factory=dict, description="Column: SQL type, instead of the inferred one.")
    rejects: Literal["fail", "keep"] = Field(default="fail", description="What to do with lines that cannot be read.")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            # Unlike codecs.lookup, this also refuses codecs that do not decode to text.
            io.TextIOWrapper(io.BytesIO(), encoding=name)
        except (LookupError, UnicodeError, ValueError):
            raise FieldError(
                f"{name}: no such encoding", "write one that Python knows, such as utf-8 or cp1252"
            ) from None
        return name

    @field_validator("delimiter", "quote")
    @classmethod
    def _single_character(cls, text: str | None) -> str | None:
        character = "\t" if text == "\\t" else text
        if character is not None and (len(character) != 1 or character in "\r\n"):
            raise FieldError("must be one character", 'write one, such as a semicolon in quotes: ";"')
        return character

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        return input_files(self.csv, facts.workspace, SUFFIXES, ("source", "csv"))

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        others: list[str] = []
        objects = input_objects(self.csv, ("source", "csv"), SUFFIXES, others)
        warnings = other_files_warning(self.csv, facts.workspace, SUFFIXES, others)
        with downloaded_objects(objects, facts.scratch) as copies:
            return self._open_files(connection, [*self.paths(facts), *copies.urls], copies, facts, warnings)

    def _open_files(
        self,
        connection: duckdb.DuckDBPyConnection,
        files: Sequence[Path],
        copies: DownloadedObjects,
        facts: SourceContext,
        warnings: tuple[str, ...],
    ) -> OpenedSource:
        texts = self._write_parts(files, facts.scratch)
        warnings += tuple(no_bytes_warning(copies.replace_paths(str(file))) for file in texts.empty)
        if not texts.parts:
            return empty_source(files[0], facts.columns_file, warnings)
        relation, rejected = f"read_parquet({literal_list(map(literal_path, texts.parts))})", texts.rejected
        kinds = self._checked_types(connection, texts.names)
        mismatches = {name: _mismatch(identifier(name), kind) for name, kind in kinds.items()}
        if mismatches:
            selected = f"{identifier_list([*texts.names, POSITION])}, [{', '.join(mismatches.values())}]"
            mismatch = " or ".join(mismatches.values())
            found = list(self._mismatches(connection, f"select {selected} from {relation} where {mismatch}", files))
            rejected += found
            relation = f"(select * from {relation} where not ({mismatch}))" if found else relation
        rejected.sort()
        if rejected and self.rejects == "fail":
            raise _rejected_lines(rejected)
        columns = self._columns(kinds, texts, [copies.urls.get(file, file) for file in files], facts)
        has_several = len(files) > 1
        return OpenedSource(
            relation,
            columns,
            tuple(
                (one.line, f"{copies.replace_paths(one.file)}: {one.message}" if has_several else one.message, one.raw)
                for one in rejected
            ),
            warnings=warnings,
            has_empty_files=bool(texts.empty),
        )

    def _columns(
        self,
        declared: Mapping[str, str],
        texts: "CsvTexts",
        files: Sequence[Path | str],
        facts: SourceContext,
    ) -> dict[str, SourceColumn]:
        columns: dict[str, SourceColumn] = {}
        for name, guess in zip(texts.names, texts.guesses, strict=True):
            if name in declared:
                kind = declared[name]
                columns[name] = SourceColumn(f"cast({identifier(name)} as {kind})", kind)
            else:
                columns[name] = text_column(identifier(name), guess.kind, facts.known_types.get(name))
        if self.hive:
            values = hive_values(files, facts.workspace, texts.names)
            number = f"({POSITION} >> 40)"
            text = {name: value_of_file_number(number, found) for name, found in values.items()}
            columns.update(hive_columns(values, text, facts.known_types))
        return columns

    def _write_parts(self, files: Sequence[Path], scratch: Path) -> "CsvTexts":
        """Write each file's records as text to a Parquet file of the scratch folder."""
        scratch.mkdir(parents=True, exist_ok=True)
        texts, dialect = CsvTexts(), CsvFormat(self.delimiter, self.quote, self.encoding)
        first_file: Path | None = None
        for number, file in enumerate(files):
            try:
                _check_content(file)
                records = read_records(file, dialect, texts.rejected)
                rejected = len(texts.rejected)
                first = next(records, None)
                if first is None:
                    if len(texts.rejected) == rejected and _has_no_bytes(file):
                        texts.empty.append(file)
                        continue
                    raise DataError(file, "has no readable line", "leave it out or fix it")
                if self.header and "delimiter" not in self.model_fields_set:
                    _check_delimiter(file, first)
                header = _header(file, first) if self.header else tuple(f"column{n}" for n in range(len(first.values)))
                if first_file is not None and header != texts.names:
                    raise DataError(
                        file,
                        f"its columns are {_shortened(header)}, those of {first_file} {_shortened(texts.names)}",
                        "make them the same, in the same order",
                    )
                if first_file is None:
                    first_file, texts.names = file, header
                    texts.guesses = [ColumnGuess() for _ in header]
                texts.parts.append(scratch / f"csv-{number:06d}.parquet")
                rows = records if self.header else itertools.chain((first,), records)
                self._write(texts, number << 40, _valid_records(file, rows, len(header), texts.rejected))
            except UnicodeError as exc:
                raise DataError(file, f"is not {self.encoding} ({exc})", "set its actual encoding") from exc
            except (OSError, EOFError, lzma.LZMAError) as exc:
                raise DataError(file, f"cannot be read ({exc})", "check the file and its permissions") from exc
        return texts

    def _write(self, texts: "CsvTexts", start: int, rows: Iterator[CsvRecord]) -> None:
        nulls = frozenset(self.null_values)
        schema = pa.schema([*((name, pa.string()) for name in texts.names), (POSITION, pa.int64())])
        with pq.ParquetWriter(texts.parts[-1], schema, compression="zstd", compression_level=1) as writer:
            while batch := _batch(rows):
                arrays = [
                    pa.array([None if value in nulls else value for value in column], pa.string())
                    for column in zip(*(record.values for record in batch), strict=True)
                ]
                for name, guess, array in zip(texts.names, texts.guesses, arrays, strict=True):
                    if name not in self.types:
                        guess.add(array)
                positions = pa.array([start + record.line for record in batch], pa.int64())
                writer.write_table(pa.table([*arrays, positions], schema=schema))

    def _checked_types(self, connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> dict[str, str]:
        """Return the declared types as DuckDB calls them."""
        kinds: dict[str, str] = {}
        for name, kind in self.types.items():
            if name not in names:
                raise JobError(("source", "types", name), "no such column", did_you_mean(name, names))
            try:
                if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_ ]*(\([0-9]+(, ?[0-9]+)?\))?(\[[0-9]*\])*", kind) is None:
                    raise duckdb.ParserException(kind)
                kinds[name] = str(connection.sql(f"select cast(null as {kind})").types[0])
            except duckdb.Error as exc:
                raise JobError(
                    ("source", "types", name),
                    f"{kind} is not a type",
                    "write one of DuckDB's, such as VARCHAR or DECIMAL(10, 2)",
                ) from exc
        return kinds

    def _mismatches(
        self, connection: duckdb.DuckDBPyConnection, query: str, files: Sequence[Path]
    ) -> Iterator[RejectedLine]:
        """Yield the rows with a value that does not fit the type declared for its column."""
        cursor = connection.execute(query)
        names = [column[0] for column in cursor.description or ()][:-2]
        for *values, position, are_wrong in cursor.fetchall():
            row = dict(zip(names, values, strict=True))
            mismatching = [name for name, is_wrong in zip(self.types, are_wrong, strict=True) if is_wrong]
            line = io.StringIO()
            csv.writer(line, delimiter=self.delimiter, lineterminator="", escapechar="\\").writerow(values)
            message = ", ".join(
                f"{name}: {row[name][:MAX_LINE_CHARACTERS]!r} is not {self.types[name]}" for name in mismatching
            )
            yield RejectedLine(str(files[position >> 40]), position & ((1 << 40) - 1), message, line.getvalue())


class CsvTexts(Struct):
    """The records of all files as texts in Parquet files of the scratch folder."""

    names: tuple[str, ...] = ()
    parts: list[Path] = field(default_factory=list)
    guesses: list[ColumnGuess] = field(default_factory=list)
    rejected: list[RejectedLine] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    """Files of no bytes."""


def _check_content(file: Path) -> None:
    """Raise DataError for a file that is no text, or compressed without showing it by its name."""
    kind = None if compressed_suffix(file) else file_kind(file)
    if kind is not None:
        raise DataError(file, f"is {kind}", "rename it, or name a CSV file")


def _has_no_bytes(file: Path) -> bool:
    with open_file(file) as content:
        return not content.read(4).removeprefix(codecs.BOM_UTF8)


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED_COLUMNS} more" if len(names) > MAX_NAMED_COLUMNS else ""
    return ", ".join(names[:MAX_NAMED_COLUMNS]) + more


def _batch(rows: Iterator[CsvRecord]) -> list[CsvRecord]:
    """Return the next records, up to the size of a batch."""
    batch: list[CsvRecord] = []
    characters = 0
    for record in itertools.islice(rows, MAX_BATCH_ROWS):
        batch.append(record)
        characters += len(record.raw)
        if characters > MAX_BATCH_CHARACTERS:
            break
    return batch


def _mismatch(text: str, kind: str) -> str:
    """SQL condition: a text (SQL) has no value of the type, or one with fewer digits, a lost time or a lost zone."""
    value = f"try_cast({text} as {kind})"
    decimal = re.fullmatch(r"DECIMAL\(([0-9]+),([0-9]+)\)", kind)
    wider = WIDER_TYPES.get(kind)
    if decimal is not None:
        wider = f"DECIMAL(38,{38 - int(decimal[1]) + int(decimal[2])})"
    changed = "false"
    if wider is not None:
        changed = f"coalesce(try_cast({text} as {wider}) <> try_cast({value} as {wider}), false)"
    elif kind in ("FLOAT", "DOUBLE"):
        changed = f"(coalesce(isinf({value}), false) and not contains(lower({text}), 'inf'))"
    return f"({text} is not null and ({value} is null or {changed}))"


def _header(file: Path, record: CsvRecord) -> tuple[str, ...]:
    names = tuple(name if name.strip() else f"column{index}" for index, name in enumerate(record.values))
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise DataError(f"{file}:{record.line}", f"two columns are called {name}", "rename one of them")
        if not _is_text(name):
            raise DataError(f"{file}:{record.line}", "the header is not in the given encoding", "check source.encoding")
        seen.add(name.lower())
    return names


def _check_delimiter(file: Path, header: CsvRecord) -> None:
    """DataError for a header of one column that another delimiter would part."""
    name = header.values[0]
    delimiter = max(OTHER_DELIMITERS, key=name.count)
    if len(header.values) == 1 and delimiter in name:
        raise DataError(
            f"{file}:{header.line}",
            f"the header is a single column, {name[:MAX_LINE_CHARACTERS]}",
            f'add delimiter: "{OTHER_DELIMITERS[delimiter]}" to the source (or delimiter: "," if it is one column)',
        )


def _valid_records(
    file: Path, rows: Iterable[CsvRecord], width: int, rejected: list[RejectedLine]
) -> Iterator[CsvRecord]:
    """Yield the records that have a value for each column and are text; add the others to `rejected`."""
    for record in rows:
        if len(record.values) != width:
            message = f"{len(record.values)} values, but the first line has {width}"
        elif not _is_text(record.raw):
            message = "bytes that are not text in the given encoding"
        else:
            yield record
            continue
        rejected.append(RejectedLine(str(file), record.line, message, record.raw.encode(errors="replace").decode()))


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rejected_lines(rejected: Sequence[RejectedLine]) -> DataError:
    first, others = rejected[0], len(rejected) - 1
    more = f" (and {others:,} more {'line' if others == 1 else 'lines'})" if others else ""
    line = first.raw[:MAX_LINE_CHARACTERS].replace("\n", "\\n").replace("\r", "\\r")
    return DataError(
        f"{first.file}:{first.line}",
        f"{first.message}{more}: {line}",
        "fix the line, check delimiter, quote, encoding and types, or write rejects: keep",
    )
