"""Parts of a Parquet sink: what their names tell, and how many small ones become few."""

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from connectors.contracts import UsageMark
from connectors.errors import DataError
from connectors.tables.parquet_parts import PartWriter, facts_of, tables_of

EMPTY = "0-empty.parquet"
"""A part without rows that each table has: its schema, whatever becomes of the others."""
MARKS = "rowmill.marks"
"""The note in a merged usage part's footer: a JSON list of the marks that it covers."""

_USAGE_NAME = re.compile(r"([0-9a-f]{8})-(\d+)-(\d+)-(\d+)\.parquet")


def usage_part(mark: UsageMark) -> str:
    """The name of a part of the usage table."""
    return f"{mark.ledger}-{mark.writer:06d}-{mark.first:012d}-{mark.last:012d}.parquet"


def named_mark(name: str) -> UsageMark | None:
    """The mark in a usage part's name; None for a merged part."""
    named = _USAGE_NAME.fullmatch(name)
    return None if named is None else UsageMark(named[1], int(named[2]), int(named[3]), int(named[4]))


def noted_marks(notes: dict[bytes, bytes]) -> list[UsageMark]:
    """The marks in a merged part's footer."""
    return [UsageMark(*mark) for mark in json.loads(notes.get(MARKS.encode(), b"[]"))]


def marks_of(part: Path) -> list[UsageMark]:
    """The marks that a usage part covers."""
    named = named_mark(part.name)
    if named is not None:
        return [named]
    return [] if part.name == EMPTY else noted_marks(facts_of(part)[2])


def covered(mark: UsageMark, there: Iterable[UsageMark]) -> bool:
    """Whether exchanges are in the usage table already."""
    return any((one.ledger, one.writer) == (mark.ledger, mark.writer) and one.last >= mark.last for one in there)


def groups(parts: Iterable[Path], most_rows: int, most_bytes: int) -> list[list[tuple[Path, int]]]:
    """Parts with their rows, in groups each of which makes one part; empty ones are left out."""
    found: list[list[tuple[Path, int]]] = []
    rows = nbytes = 0
    for part in parts:
        held = facts_of(part)[0]
        if not held:
            continue
        if not found or rows >= most_rows or nbytes >= most_bytes:
            found.append([])
            rows = nbytes = 0
        found[-1].append((part, held))
        rows += held
        nbytes += part.stat().st_size
    return found


def write_merged(group: Sequence[tuple[Path, int]], folder: Path, schema: pa.Schema, note: bool) -> Path:
    """One part of several, in the folder; `note`: with the marks of usage that they cover."""
    name = f"merged-{secrets.token_hex(8)}"
    count = 0
    with PartWriter(folder / name, schema) as out:
        spans: dict[tuple[str, int], tuple[int, int]] = {}
        for part, rows in group:
            count += rows
            for table in tables_of(part):
                out.write(table)
            for mark in marks_of(part) if note else ():
                first, last = spans.get((mark.ledger, mark.writer), (mark.first, mark.last))
                spans[mark.ledger, mark.writer] = (min(first, mark.first), max(last, mark.last))
        if note:
            out.note(MARKS, json.dumps([[*whose, *span] for whose, span in spans.items()]))
    if facts_of(folder / name)[0] != count:
        raise DataError(f"{folder}: parts changed while they were being merged; run again when nothing else writes")
    target = folder / f"{name}.parquet"
    (folder / name).replace(target)
    return target
