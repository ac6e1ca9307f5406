"""`csv:` one or more delimited text files in any encoding, typed by all of their rows."""

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
from connectors.sources.csv_records import Dialect, Record, Reject, records
from connectors.sources.csv_types import inferred_types
from connectors.sql import literal_list, quoted, quoted_list
from connectors.storage.input_files import DownloadedObjects, downloaded_objects, input_files, input_objects

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".csv.bz2", ".csv.xz")
PLACE = "_rowmill_place"
"""The column of the scratch files that says where a row stood: file number * 2**40 + line."""
BATCH_ROWS = 8192
BATCH_CHARACTERS = 16 << 20
SHOWN = 200
"""Characters of a line in a message."""


class CsvSource(SourceModel):
    """Every record is a row or a reject; the text of a column becomes a type only where each of its values has it."""

    csv: str | Columns = Field(
        description="Path, folder, glob or list of them, also at s3://, gs://, az:// (extra `rowmill[cloud]`); .gz, "
        ".bz2 and .xz are unpacked."
    )
    delimiter: str = Field(default=",", description="One character between values; \\t is a tab.")
    quote: str | None = Field(default='"', description="Around values, doubled inside; null: none is special.")
    encoding: str = Field(default="utf-8", description="Any encoding that Python knows.")
    header: bool = Field(default=True, description="false: the columns are column0, column1 ...")
    null_values: tuple[str, ...] = Field(default=("",), description="Texts that mean null.")
    types: Mapping[str, str] = Field(default_factory=dict, description="Column: SQL type, instead of the inferred one.")
    rejects: Literal["fail", "keep"] = Field(default="fail", description="What becomes of lines that cannot be read.")

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            # Decoding nothing looks nothing up; this refuses codecs that make no text as well.
            io.TextIOWrapper(io.BytesIO(), encoding=name)
        except (LookupError, UnicodeError, ValueError):
            raise FieldError(
                f"{name}: no such encoding", "write one that Python knows, such as utf-8 or cp1252"
            ) from None
        return name

    @field_validator("delimiter", "quote")
    @classmethod
    def _one_character(cls, text: str | None) -> str | None:
        character = "\t" if text == "\\t" else text
        if character is not None and (len(character) != 1 or character in "\r\n"):
            raise ValueError("must be one character")
        return character

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        return input_files(self.csv, facts.workspace, SUFFIXES)

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        with downloaded_objects(input_objects(self.csv, ("source", "csv"), SUFFIXES), facts.scratch) as copies:
            return self._opened(connection, [*self.paths(facts), *copies.urls], copies, facts)

    def _opened(
        self, connection: duckdb.DuckDBPyConnection, files: Sequence[Path], copies: DownloadedObjects, facts: SourceContext
    ) -> OpenedSource:
        rejected: list[Reject] = []
        names, parts = self._written(files, facts.scratch, rejected)
        texts = f"read_parquet({literal_list(parts)})"
        self._check_types(connection, names)
        unfit = " or ".join(
            f"({quoted(name)} is not null and try_cast({quoted(name)} as {kind}) is null)"
            for name, kind in self.types.items()
        )
        if unfit:
            rejected += self._unfit(
                connection, f"select {quoted_list([*names, PLACE])} from {texts} where {unfit}", files
            )
            texts = f"(select * from {texts} where not ({unfit}))"
        rejected.sort()
        if rejected and self.rejects == "fail":
            raise _refused(rejected)
        types = inferred_types(connection, texts, [name for name in names if name not in self.types], facts.known_types)
        typed = ", ".join(
            f"cast({quoted(name)} as {self.types.get(name) or types[name]}) as {quoted(name)}" for name in names
        )
        several = len(files) > 1
        return OpenedSource(
            f"(select {typed} from {texts})",
            tuple(
                (one.line, f"{copies.replace_paths(one.file)}: {one.message}" if several else one.message, one.raw)
                for one in rejected
            ),
        )

    def _written(
        self, files: Sequence[Path], scratch: Path, rejected: list[Reject]
    ) -> tuple[tuple[str, ...], list[Path]]:
        """The columns' names, and each file's records as text in a Parquet file of the scratch folder."""
        scratch.mkdir(parents=True, exist_ok=True)
        dialect = Dialect(self.delimiter, self.quote, self.encoding)
        names: tuple[str, ...] | None = None
        parts: list[Path] = []
        for number, file in enumerate(files):
            found = records(file, dialect, rejected)
            try:
                first = next(found, None)
                if first is None:
                    raise DataError(file, "holds no line that can be read", "leave it out or mend it")
                here = _header(file, first) if self.header else tuple(f"column{n}" for n in range(len(first.values)))
                if names is not None and here != names:
                    raise DataError(
                        file,
                        f"its columns are {', '.join(here)}, those of {files[0]} {', '.join(names)}",
                        "make them the same, in the same order",
                    )
                names = here
                parts.append(scratch / f"csv-{number:06d}.parquet")
                rows = found if self.header else itertools.chain((first,), found)
                self._write(parts[-1], names, number << 40, _whole(file, rows, len(names), rejected))
            except UnicodeError as exc:
                raise DataError(file, f"is no {self.encoding} ({exc})", "name the encoding that it has") from exc
            except (OSError, EOFError) as exc:
                raise DataError(file, f"cannot be read ({exc})", "check the file and its permissions") from exc
        assert names is not None
        return names, parts

    def _write(self, part: Path, names: Sequence[str], start: int, rows: Iterator[Record]) -> None:
        nulls = frozenset(self.null_values)
        schema = pa.schema([*((name, pa.string()) for name in names), (PLACE, pa.int64())])
        with pq.ParquetWriter(part, schema, compression="zstd", compression_level=1) as writer:
            while batch := _batch(rows):
                arrays = [
                    pa.array([None if value in nulls else value for value in column], pa.string())
                    for column in zip(*(record.values for record in batch), strict=True)
                ]
                places = pa.array([start + record.line for record in batch], pa.int64())
                writer.write_table(pa.table([*arrays, places], schema=schema))

    def _check_types(self, connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> None:
        for name, kind in self.types.items():
            if name not in names:
                raise JobError(("source", "types", name), "no such column", f"{did_you_mean(name, names)}")
            try:
                if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_ ]*(\([0-9]+(, ?[0-9]+)?\))?(\[[0-9]*\])*", kind) is None:
                    raise duckdb.ParserException(kind)
                connection.execute(f"select cast(null as {kind})")
            except duckdb.Error as exc:
                raise JobError(
                    ("source", "types", name),
                    f"{kind} is no type",
                    "write one of DuckDB's, such as VARCHAR or DECIMAL(10, 2)",
                ) from exc

    def _unfit(self, connection: duckdb.DuckDBPyConnection, query: str, files: Sequence[Path]) -> Iterator[Reject]:
        """The rows with a value that has not the type declared for its column."""
        cursor = connection.execute(query)
        names = [column[0] for column in cursor.description or ()][:-1]
        for *values, place in cursor.fetchall():
            row = dict(zip(names, values, strict=True))
            wrong = [
                name
                for name in self.types
                if row[name] is not None and not _fits(connection, row[name], self.types[name])
            ]
            line = io.StringIO()
            csv.writer(line, delimiter=self.delimiter, lineterminator="", escapechar="\\").writerow(values)
            message = ", ".join(f"{name}: {row[name][:SHOWN]!r} is no {self.types[name]}" for name in wrong)
            yield Reject(str(files[place >> 40]), place & ((1 << 40) - 1), message, line.getvalue())


def _batch(rows: Iterator[Record]) -> list[Record]:
    """The next records, as many as are small enough together."""
    found: list[Record] = []
    size = 0
    for record in itertools.islice(rows, BATCH_ROWS):
        found.append(record)
        size += len(record.raw)
        if size > BATCH_CHARACTERS:
            break
    return found


def _fits(connection: duckdb.DuckDBPyConnection, value: str, kind: str) -> bool:
    return connection.execute(f"select try_cast(? as {kind}) is not null", [value]).fetchone() == (True,)


def _header(file: Path, record: Record) -> tuple[str, ...]:
    names = tuple(name if name.strip() else f"column{place}" for place, name in enumerate(record.values))
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise DataError(f"{file}:{record.line}", f"two columns are called {name}", "rename one of them")
        if not _is_text(name):
            raise DataError(f"{file}:{record.line}", "the header is not in the encoding given", "check source.encoding")
        seen.add(name.lower())
    return names


def _whole(file: Path, rows: Iterable[Record], width: int, rejected: list[Reject]) -> Iterator[Record]:
    """The records that have a value for each column and are text; the others go to `rejected`."""
    for record in rows:
        if len(record.values) != width:
            message = f"{len(record.values)} values where the first line has {width}"
        elif not _is_text(record.raw):
            message = "bytes that are no text in the encoding given"
        else:
            yield record
            continue
        rejected.append(Reject(str(file), record.line, message, record.raw.encode(errors="replace").decode()))


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(rejected: Sequence[Reject]) -> DataError:
    first = rejected[0]
    more = f" (and {len(rejected) - 1} more lines)" if len(rejected) > 1 else ""
    shown = first.raw[:SHOWN].replace("\n", "\\n").replace("\r", "\\r")
    return DataError(
        f"{first.file}:{first.line}",
        f"{first.message}{more}: {shown}",
        "mend the line, check delimiter, quote, encoding and types, or write rejects: keep",
    )
