"""Compaction of a Parquet table: many small parts become few, and usage parts keep their marks.

A large part that a run rewrites again and again is divided into pieces, until the next compaction.
"""

import contextlib
import io
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from connectors.contracts import UsageMark
from connectors.errors import DataError
from connectors.storage.part_store import EMPTY_PART, Part
from connectors.tables.parquet_parts import PartWriter, matching_rows, read_batches, read_footer

MARKS = "rowmill.marks"
"""Key in the footer of a merged usage part: a JSON list of the marks that it covers."""

_PIECE_NAME = re.compile(r".*-piece\d+\.parquet")
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


def is_piece(name: str) -> bool:
    """Whether a part is a piece of one that was divided."""
    return _PIECE_NAME.fullmatch(name) is not None


def parts_of_like_size(sizes: Mapping[str, int]) -> list[str]:
    """Return the names of parts to merge: the smallest ones, and each that is no larger than all smaller ones together.

    So a row is in a part at least twice as large after each merge in which its part is the largest: it is written a
    logarithmic number of times. Those that are left double in size from one to the next, so they are few.
    """
    names = sorted(sizes, key=lambda name: (sizes[name], name))
    count = total = 0
    for place, name in enumerate(names):
        if sizes[name] <= total:
            count = place + 1
        total += sizes[name]
    return names[:count]


def merge_groups(parts: Iterable[tuple[Part, int]], min_bytes: int, max_bytes: int) -> list[list[Part]]:
    """Return parts, given with their sizes, in groups each of which becomes one part; empty parts are left out.

    Groups have at most `max_bytes`, or a part less than that if the rest of less than `min_bytes` joins the last one.
    """
    groups: list[list[Part]] = []
    nbytes = 0
    for part, size in parts:
        if not read_footer(part.source)[0]:
            continue
        if not groups or (nbytes >= min_bytes and nbytes + size > max_bytes):
            groups.append([])
            nbytes = 0
        groups[-1].append(part)
        nbytes += size
    if len(groups) > 1 and nbytes < min_bytes:
        rest = groups.pop()
        groups[-1] += rest
    return groups


def write_pieces(part: Path, folder: Path, schema: pa.Schema, key: Sequence[str], nbytes: int) -> list[str]:
    """Write the rows of a part into pieces of about so many bytes, in their order; return the names of the pieces.

    Rows in sequence with the same source key stay together.
    """
    names: list[str] = []
    out: PartWriter | None = None
    last = schema.empty_table().select(key)
    with contextlib.ExitStack() as stack:
        for table in read_batches(part):
            keys = table.select(key)
            if out is None or (out.size >= nbytes and not matching_rows(keys.slice(0, 1), last).true_count):
                stack.close()
                names.append(f"{part.stem}-piece{len(names):03d}.parquet")
                out = stack.enter_context(PartWriter(folder / Path(names[-1]).stem, schema))
            out.write(table)
            last = keys.slice(table.num_rows - 1)
    for name in names:
        (folder / Path(name).stem).replace(folder / name)
    return names


def write_merged_part(group: Iterable[Path], folder: Path, schema: pa.Schema, with_marks: bool) -> None:
    """Write one part of several into the folder. `with_marks`: the footer lists the usage marks that they cover."""
    name, rows = f"merged-{secrets.token_hex(8)}", 0
    with PartWriter(folder / name, schema) as out:
        spans: dict[tuple[str, int], tuple[int, int]] = {}
        for part in group:
            rows += read_footer(part)[0]
            for table in read_batches(part):
                out.write(table)
            for mark in marks_of(part.name, part) if with_marks else ():
                first, last = spans.get((mark.ledger, mark.writer), (mark.first, mark.last))
                spans[mark.ledger, mark.writer] = (min(first, mark.first), max(last, mark.last))
        if with_marks:
            out.add_metadata(MARKS, json.dumps([[*writer, *span] for writer, span in spans.items()]))
    if read_footer(folder / name)[0] != rows:
        raise DataError(folder, "parts changed while they were being merged", "run again when nothing else writes")
    (folder / name).replace(folder / f"{name}.parquet")
