"""Compressed input files: opened by their suffix; recognized by their first bytes."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")

FILE_SIGNATURES: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip, which is read if the name ends in .gz",
    b"BZh": "bzip2, which is read if the name ends in .bz2",
    b"\xfd7zXZ\x00": "xz, which is read if the name ends in .xz",
    b"\x28\xb5\x2f\xfd": "zstd, which is read if the name ends in .zst",
    b"PK\x03\x04": "a zip file (or a workbook)",
    b"PAR1": "a Parquet file",
    b"SQLite format 3\x00": "an SQLite database",
    b"%PDF-": "a PDF file",
}
"""First bytes -> the kind of file."""


def compressed_suffix(path: Path) -> str:
    """Return the suffix that shows how the file is compressed, in lower case; "" if it is not."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSED_SUFFIXES else ""


def has_suffix(name: str, suffixes: Iterable[str]) -> bool:
    """Whether a name ends in one of the suffixes, in upper or lower case, perhaps with that of a compressed file."""
    lower = name.lower()
    compressed = next((suffix for suffix in COMPRESSED_SUFFIXES if lower.endswith(suffix)), "")
    return lower.endswith(tuple(suffixes)) or lower.removesuffix(compressed).endswith(tuple(suffixes))


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading and decompress it by its suffix; OSError, EOFError or lzma.LZMAError if it is damaged."""
    opener = _OPENERS.get(compressed_suffix(path))
    return path.open("rb") if opener is None else cast(IO[bytes], opener(path))


def file_kind(path: Path) -> str | None:
    """Return what the content is if it is no text; None if it may be text. `path`: a file that is not compressed."""
    with path.open("rb") as file:
        first = file.read(16)
    return next((kind for signature, kind in FILE_SIGNATURES.items() if first.startswith(signature)), None)


def _open_zstd(path: Path) -> IO[bytes]:
    return io.BufferedReader(cast(Any, pa.input_stream(str(path), compression="zstd")))


_OPENERS: Mapping[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
