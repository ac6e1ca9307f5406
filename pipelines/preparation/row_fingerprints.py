"""Row fingerprints: digests of the steps and of the values that they use, which show whether a row has changed.

They are SQL, so that values of finished rows never reach Python. A fingerprint has 32 hex digits; with checks or
evidence a hyphen and 16 more follow, and a version at the end if it covers texts of a file.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct, field

from connectors.sql import identifier, literal
from pipelines.preparation.source_reader import SourceReader

LARGE_VALUE_CHARACTERS = 65_536
"""A longer value enters the row's fingerprint as its digest."""

QUALITY_DIGITS = 16
"""Of a row fingerprint, after its first 32 and a hyphen, if the job has checks or evidence."""

FINGERPRINT_VERSION = "-2"
"""The end of a row fingerprint that covers texts of a file; those of earlier versions covered typed values."""

MARK_BATCH_PATHS = 10_000
"""Paths whose files are checked in one batch."""


class RowFingerprints(Struct):
    """The fingerprints of one job's rows."""

    reader: SourceReader
    used: Sequence[str]
    """Columns that steps read."""
    carried: Sequence[str]
    """Columns carried over to the results."""
    digest: bytes
    """Of the settings of the steps."""
    files: Sequence[str]
    """Used columns that name files: size and modification time of these are part of the fingerprint."""
    quality: bytes | None = None
    """Digest of the checks and the evidence; None without any: fingerprints have no part for them."""
    checked: Sequence[str] = ()
    """Columns that only checks and evidence read."""
    _marked: list[str] = field(default_factory=list)
    """Columns whose files were looked up."""

    @property
    def is_versioned(self) -> bool:
        """Whether fingerprints of earlier versions covered other texts."""
        return any(map(self.reader.is_guessed, {*self.used, *self.carried}))

    def sql(self) -> str:
        """SQL of a row's fingerprint."""
        text = self.reader.text
        version = f" || {literal(FINGERPRINT_VERSION)}" if self.is_versioned else ""
        quality = "" if self.quality is None else f" || '-' || {self.quality_sql(text)}"
        return f"{self.request_sql(text)}{quality}{version}"

    def request_sql(self, text: Callable[[str], str]) -> str:
        """SQL of the part of a row's fingerprint for its requests. `text`: SQL of a column's text."""
        return f"md5({self.content_sql(text)})"

    def content_sql(self, text: Callable[[str], str]) -> str:
        """SQL of the text whose digest is that part."""
        parts = ", ".join(self._part(name, text(name)) for name in sorted({*self.used, *self.carried}))
        constant = literal(self.digest.hex() + json.dumps([sorted(self.used), list(self.carried)]))
        return f"concat({', '.join(filter(None, (constant, parts)))})"

    def quality_sql(self, text: Callable[[str], str]) -> str:
        """SQL of the part of a row's fingerprint for its checks and evidence: 16 hex digits."""
        assert self.quality is not None
        parts = ", ".join(_length_prefixed(text(name)) for name in self.checked)
        constant = literal(self.quality.hex() + json.dumps(list(self.checked)))
        return f"left(md5(concat({', '.join(filter(None, (constant, parts)))})), {QUALITY_DIGITS})"

    def _part(self, name: str, text: str) -> str:
        part = _length_prefixed(text)
        if name not in self.files:
            return part
        self._mark_files(name)
        return f"{part}, coalesce({identifier('_marks_' + name)}._mark, '')"

    def mark_joins(self) -> str:
        """SQL of the joins that give each row the size and time of the files that it names."""
        return "".join(
            f" left join read_parquet({literal(self._marks_path(name))}) as {identifier('_marks_' + name)} "
            f"on {identifier('_marks_' + name)}._path = {self.reader.text(name)}"
            for name in self.files
        )

    def missing_files(self) -> Iterator[tuple[str, int, str]]:
        """Yield (column, rows, example) for columns that name local files which do not exist."""
        for name in self.files:
            self._mark_files(name)
            text = self.reader.text(name)
            missing = f"{text} != '' and not contains({text}, ':') and not starts_with({text}, '[')"
            query = (
                f"select count(*), min({text}) from {self.reader.chosen([name])} join "
                f"read_parquet({literal(self._marks_path(name))}) marks on marks._path = {text} "
                f"where marks._mark = '' and {missing}"
            )
            ((rows, example),) = self.reader.cursor().execute(query).fetchall()
            if rows:
                yield name, int(rows), str(example)

    def _marks_path(self, name: str) -> Path:
        return self.reader.scratch / f"marks-{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()}.parquet"

    def _mark_files(self, name: str) -> None:
        if name in self._marked:
            return
        self._marked.append(name)
        schema = pa.schema([("_path", pa.string()), ("_mark", pa.string())])
        path, chosen = self.reader.text(name), self.reader.chosen([name])
        query = f"select distinct {path} as p from {chosen} where {identifier(name)} is not null"
        with pq.ParquetWriter(self._marks_path(name), schema) as writer:
            for batch in self.reader.stream(query, MARK_BATCH_PATHS):
                paths = batch.column(0).to_pylist()
                marks = [file_mark(path, self.reader.workspace) for path in paths]
                writer.write_table(pa.table([paths, marks], schema=schema))


def file_mark(text: str, workspace: Path) -> str:
    """Return size and time of the file that a value names, or of each file in a JSON list; "" if there is none."""
    if text.startswith("["):
        try:
            named = json.loads(text)
        except ValueError:
            named = [text]
        return " ".join(file_mark(path, workspace) for path in named if isinstance(path, str))
    try:
        found = os.stat(workspace / text)  # noqa: PTH116 - never raises for the text alone
    except (OSError, ValueError):
        return ""
    return f"{found.st_size}@{found.st_mtime_ns}"


def fingerprint_number(fingerprint: str) -> str:
    """SQL of the first 8 bytes of a hex fingerprint as a number: enough to compare two fingerprints of one row."""
    return f"cast('0x' || left({fingerprint}, 16) as UBIGINT)"


def digest_number(content: str) -> str:
    """SQL of the first 8 bytes of the MD5 digest of a text as a number, with the last byte first."""
    return f"cast(md5_number({content}) & {2**64 - 1} as UBIGINT)"


def swapped_bytes(number: str) -> str:
    """SQL of a number of 8 bytes with these in reverse order."""
    moved = (f"(({number} >> {8 * place}) & 255) << {56 - 8 * place}" for place in range(8))
    return f"({' | '.join(f'({part})' for part in moved)})"


def quality_number(fingerprint: str) -> str:
    """SQL of the part of a fingerprint for checks and evidence as a number; 0 without one."""
    digits = f"substr({fingerprint}, 34, {QUALITY_DIGITS})"
    return f"if(length({fingerprint}) > 40, coalesce(try_cast('0x' || {digits} as UBIGINT), 0), 0)"


def stored_fingerprint(fingerprint: str, is_versioned: bool) -> str:
    """SQL of a stored fingerprint as a number, and whether an earlier version wrote it; see `is_versioned`."""
    is_earlier = f"not ends_with({fingerprint}, {literal(FINGERPRINT_VERSION)})" if is_versioned else "false"
    quality = f"{quality_number(fingerprint)} as _quality"
    return f"{fingerprint_number(fingerprint)} as _fp, {quality}, {is_earlier} as _is_earlier"


def content_digest(texts: Iterable[str]) -> str:
    """SQL of a digest over all values of a row."""
    return f"md5(concat({', '.join(map(_length_prefixed, texts))}))"


def _length_prefixed(text: str) -> str:
    """SQL of a value prefixed by its length: different lists give different texts, null differs from empty."""
    # Two arguments for `concat`, which skips nulls; concatenating here would copy a large text.
    content = f"case when length({text}) > {LARGE_VALUE_CHARACTERS} then md5({text}) else {text} end"
    return f"coalesce(cast(length({text}) as VARCHAR) || ':', 'n'), {content}"
