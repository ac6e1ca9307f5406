"""`csv:` one or more delimited text files in any encoding; column types are inferred from all rows."""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from connectors.contracts import Columns, OpenedSource, SourceContext, SourceModel
from connectors.errors import DataError, FieldError, JobError, did_you_mean
from connectors.sources.csv_records import CsvFormat, CsvRecord, RejectedLine, read_records
from connectors.sources.csv_types import infer_types
from connectors.sql import identifier, identifier_list, literal_list
from connectors.storage.input_files import DownloadedObjects, downloaded_objects, input_files, input_objects

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".csv.bz2", ".csv.xz")
POSITION = "_rowmill_place"
"""Column of the scratch files with a row's position: file number * 2**40 + line."""
MAX_BATCH_ROWS = 8192
MAX_BATCH_CHARACTERS = 16 << 20
MAX_LINE_CHARACTERS = 200
"""Of a line in a message."""


class CsvSource(SourceModel):
    """Every record is a row or rejected; a column gets a type only if all of its values have it."""

    csv: str | Columns = Field(
        description="Path, folder, glob or list of them, also at s3://, gs://, az:// (extra `rowmill[cloud]`); .gz, "
        ".bz2 and .xz are unpacked."
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
            raise ValueError("must be one character")
        return character

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        return input_files(self.csv, facts.workspace, SUFFIXES)

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        with downloaded_objects(input_objects(self.csv, ("source", "csv"), SUFFIXES), facts.scratch) as copies:
            return self._open_files(connection, [*self.paths(facts), *copies.urls], copies, facts)

    def _open_files(
        self,
        connection: duckdb.DuckDBPyConnection,
        files: Sequence[Path],
        copies: DownloadedObjects,
        facts: SourceContext,
    ) -> OpenedSource:
        rejected: list[RejectedLine] = []
        names, parts = self._write_parts(files, facts.scratch, rejected)
        texts = f"read_parquet({literal_list(parts)})"
        self._check_types(connection, names)
        mismatch = " or ".join(
            f"({identifier(name)} is not null and try_cast({identifier(name)} as {kind}) is null)"
            for name, kind in self.types.items()
        )
        if mismatch:
            rejected += self._mismatches(
                connection, f"select {identifier_list([*names, POSITION])} from {texts} where {mismatch}", files
            )
            texts = f"(select * from {texts} where not ({mismatch}))"
        rejected.sort()
        if rejected and self.rejects == "fail":
            raise _rejected_lines(rejected)
        types = infer_types(connection, texts, [name for name in names if name not in self.types], facts.known_types)
        typed = ", ".join(
            f"cast({identifier(name)} as {self.types.get(name) or types[name]}) as {identifier(name)}" for name in names
        )
        has_several = len(files) > 1
        return OpenedSource(
            f"(select {typed} from {texts})",
            tuple(
                (one.line, f"{copies.replace_paths(one.file)}: {one.message}" if has_several else one.message, one.raw)
                for one in rejected
            ),
        )

    def _write_parts(
        self, files: Sequence[Path], scratch: Path, rejected: list[RejectedLine]
    ) -> tuple[tuple[str, ...], list[Path]]:
        """Write each file's records as text to a Parquet file of the scratch folder; return (columns, those files)."""
        scratch.mkdir(parents=True, exist_ok=True)
        dialect = CsvFormat(self.delimiter, self.quote, self.encoding)
        names: tuple[str, ...] | None = None
        parts: list[Path] = []
        for number, file in enumerate(files):
            records = read_records(file, dialect, rejected)
            try:
                first = next(records, None)
                if first is None:
                    raise DataError(file, "has no readable line", "leave it out or fix it")
                header = _header(file, first) if self.header else tuple(f"column{n}" for n in range(len(first.values)))
                if names is not None and header != names:
                    raise DataError(
                        file,
                        f"its columns are {', '.join(header)}, those of {files[0]} {', '.join(names)}",
                        "make them the same, in the same order",
                    )
                names = header
                parts.append(scratch / f"csv-{number:06d}.parquet")
                rows = records if self.header else itertools.chain((first,), records)
                self._write(parts[-1], names, number << 40, _valid_records(file, rows, len(names), rejected))
            except UnicodeError as exc:
                raise DataError(file, f"is not {self.encoding} ({exc})", "set its actual encoding") from exc
            except (OSError, EOFError) as exc:
                raise DataError(file, f"cannot be read ({exc})", "check the file and its permissions") from exc
        assert names is not None
        return names, parts

    def _write(self, part: Path, names: Sequence[str], start: int, rows: Iterator[CsvRecord]) -> None:
        nulls = frozenset(self.null_values)
        schema = pa.schema([*((name, pa.string()) for name in names), (POSITION, pa.int64())])
        with pq.ParquetWriter(part, schema, compression="zstd", compression_level=1) as writer:
            while batch := _batch(rows):
                arrays = [
                    pa.array([None if value in nulls else value for value in column], pa.string())
                    for column in zip(*(record.values for record in batch), strict=True)
                ]
                positions = pa.array([start + record.line for record in batch], pa.int64())
                writer.write_table(pa.table([*arrays, positions], schema=schema))

    def _check_types(self, connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> None:
        for name, kind in self.types.items():
            if name not in names:
                raise JobError(("source", "types", name), "no such column", did_you_mean(name, names))
            try:
                if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_ ]*(\([0-9]+(, ?[0-9]+)?\))?(\[[0-9]*\])*", kind) is None:
                    raise duckdb.ParserException(kind)
                connection.execute(f"select cast(null as {kind})")
            except duckdb.Error as exc:
                raise JobError(
                    ("source", "types", name),
                    f"{kind} is not a type",
                    "write one of DuckDB's, such as VARCHAR or DECIMAL(10, 2)",
                ) from exc

    def _mismatches(
        self, connection: duckdb.DuckDBPyConnection, query: str, files: Sequence[Path]
    ) -> Iterator[RejectedLine]:
        """Yield the rows with a value that does not have the type declared for its column."""
        cursor = connection.execute(query)
        names = [column[0] for column in cursor.description or ()][:-1]
        for *values, position in cursor.fetchall():
            row = dict(zip(names, values, strict=True))
            mismatching = [
                name
                for name in self.types
                if row[name] is not None and not _has_type(connection, row[name], self.types[name])
            ]
            line = io.StringIO()
            csv.writer(line, delimiter=self.delimiter, lineterminator="", escapechar="\\").writerow(values)
            message = ", ".join(
                f"{name}: {row[name][:MAX_LINE_CHARACTERS]!r} is not {self.types[name]}" for name in mismatching
            )
            yield RejectedLine(str(files[position >> 40]), position & ((1 << 40) - 1), message, line.getvalue())


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


def _has_type(connection: duckdb.DuckDBPyConnection, value: str, kind: str) -> bool:
    return connection.execute(f"select try_cast(? as {kind}) is not null", [value]).fetchone() == (True,)


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
    first = rejected[0]
    more = f" (and {len(rejected) - 1} more lines)" if len(rejected) > 1 else ""
    line = first.raw[:MAX_LINE_CHARACTERS].replace("\n", "\\n").replace("\r", "\\r")
    return DataError(
        f"{first.file}:{first.line}",
        f"{first.message}{more}: {line}",
        "fix the line, check delimiter, quote, encoding and types, or write rejects: keep",
    )
