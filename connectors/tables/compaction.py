"""Compaction of a Parquet table: many small parts become few, and usage parts keep their marks."""

import io
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from connectors.contracts import UsageMark
from connectors.errors import DataError
from connectors.storage.part_store import EMPTY_PART
from connectors.tables.parquet_parts import PartWriter, read_batches, read_footer

MARKS = "rowmill.marks"
"""Key in the footer of a merged usage part: a JSON list of the marks that it covers."""

_USAGE_NAME = re.compile(r"([0-9a-f]{8})-(\d+)-(\d+)-(\d+)\.parquet")


def usage_part_name(mark: UsageMark) -> str:
    """Return the name of a part of the usage table."""
    return f"{mark.ledger}-{mark.writer:06d}-{mark.first:012d}-{mark.last:012d}.parquet"


def marks_of(name: str, part: Path | io.RawIOBase) -> list[UsageMark]:
    """Return the marks that a usage part covers: the one in its name, or those in a merged part's footer."""
    if named := _USAGE_NAME.fullmatch(name):
        return [UsageMark(named[1], int(named[2]), int(named[3]), int(named[4]))]
    if name == EMPTY_PART:
        return []
    return [UsageMark(*mark) for mark in json.loads(read_footer(part)[2].get(MARKS.encode(), b"[]"))]


def is_recorded(mark: UsageMark, recorded: Iterable[UsageMark]) -> bool:
    """Whether the usage table has a mark's exchanges already."""
    return any((one.ledger, one.writer) == (mark.ledger, mark.writer) and one.last >= mark.last for one in recorded)


def merge_groups(parts: Iterable[Path], max_rows: int, max_bytes: int) -> list[list[tuple[Path, int]]]:
    """Return parts with their row counts, in groups each of which becomes one part; empty parts are left out."""
    groups: list[list[tuple[Path, int]]] = []
    rows = nbytes = 0
    for part in parts:
        part_rows = read_footer(part)[0]
        if not part_rows:
            continue
        if not groups or rows >= max_rows or nbytes >= max_bytes:
            groups.append([])
            rows = nbytes = 0
        groups[-1].append((part, part_rows))
        rows += part_rows
        nbytes += part.stat().st_size
    return groups


def write_merged_part(group: Sequence[tuple[Path, int]], folder: Path, schema: pa.Schema, with_marks: bool) -> Path:
    """Write one part of several into the folder. `with_marks`: the footer lists the usage marks that they cover."""
    name = f"merged-{secrets.token_hex(8)}"
    with PartWriter(folder / name, schema) as out:
        spans: dict[tuple[str, int], tuple[int, int]] = {}
        for part, _ in group:
            for table in read_batches(part):
                out.write(table)
            for mark in marks_of(part.name, part) if with_marks else ():
                first, last = spans.get((mark.ledger, mark.writer), (mark.first, mark.last))
                spans[mark.ledger, mark.writer] = (min(first, mark.first), max(last, mark.last))
        if with_marks:
            out.add_metadata(MARKS, json.dumps([[*writer, *span] for writer, span in spans.items()]))
    if read_footer(folder / name)[0] != sum(rows for _, rows in group):
        raise DataError(folder, "parts changed while they were being merged", "run again when nothing else writes")
    target = folder / f"{name}.parquet"
    (folder / name).replace(target)
    return target
