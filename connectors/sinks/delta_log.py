"""Delta tables and the usage marks in their logs; deltalake is imported only when a table is used."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from connectors.contracts import UsageMark
from connectors.errors import DataError
from connectors.sinks import delta_types
from connectors.storage import object_store

if TYPE_CHECKING:
    from deltalake import DeltaTable, Transaction, WriterProperties

WRITER_BITS = 31
"""Bits of a slot's first number for the writer; the ledger's identity is in the bits above."""
UNREADABLE_FEATURES = frozenset({"deletionVectors", "columnMapping"})
MAX_ERROR_CHARACTERS = 300
"""Length of Delta's error text in a message."""


def open_table(uri: str) -> "DeltaTable | None":
    """Return the table's latest version; None if there is no table."""
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(uri, storage_options=_storage_options(uri)):
        return None
    return DeltaTable(uri, storage_options=_storage_options(uri))


def unreadable_features(table: "DeltaTable") -> list[str]:
    """Return the features with which the rows of the data files are not the rows of the table."""
    features = set(UNREADABLE_FEATURES.intersection(table.protocol().reader_features or ()))
    metadata = table.metadata()
    if metadata.configuration.get("delta.columnMapping.mode", "none") != "none":
        features.add("columnMapping")
    if metadata.partition_columns:
        features.add("partitions")
    return sorted(features)


def create(uri: str, schema: pa.Schema) -> None:
    """Create a table without rows."""
    from deltalake import DeltaTable

    DeltaTable.create(uri, schema, storage_options=_storage_options(uri))


def add_columns(table: "DeltaTable", columns: Sequence[pa.Field]) -> None:
    """Add columns, which are null in the existing rows."""
    from deltalake import Schema

    if columns:
        table.alter.add_columns(list(Schema.from_arrow(pa.schema(columns)).fields))


def schema_of(table: "DeltaTable") -> pa.Schema:
    """Return the table's columns."""
    return pa.schema(table.schema().to_arrow())


def writer_properties(schema: pa.Schema) -> "WriterProperties":
    """Return how data files are written."""
    from deltalake import ColumnProperties, WriterProperties

    exact = {name: schema.field(name).type for name in delta_types.columns_with_statistics(schema)}
    return WriterProperties(
        compression="ZSTD",
        compression_level=3,
        # A dictionary on vectors costs a factor of three in time.
        default_column_properties=ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE"),
        column_properties={
            name: ColumnProperties(dictionary_enabled=pa.types.is_string(kind), statistics_enabled="PAGE")
            for name, kind in exact.items()
        },
    )


def marks(usage: "DeltaTable") -> list[UsageMark]:
    """Return how far the usage table is written, one mark a writer, from the transactions in its log.

    Delta returns a transaction's number by its name alone, so the names are counted: slot 0, 1 ... each with three
    numbers. They are kept forever, in checkpoints too.
    """
    recorded: list[UsageMark] = []
    while (writer := usage.transaction_version(_application_id(len(recorded), "whose"))) is not None:
        first, last = (usage.transaction_version(_application_id(len(recorded), part)) for part in ("first", "last"))
        assert first is not None
        assert last is not None
        recorded.append(UsageMark(f"{writer >> WRITER_BITS:08x}", writer & ((1 << WRITER_BITS) - 1), first, last))
    return recorded


def transactions(usage: "DeltaTable", mark: UsageMark) -> "Sequence[Transaction]":
    """Return what a commit of these exchanges records in the log; nothing if the table has them already."""
    from deltalake import Transaction

    recorded = marks(usage)
    writers = [(one.ledger, one.writer) for one in recorded]
    slot, first = len(recorded), mark.first
    if (mark.ledger, mark.writer) in writers:
        slot = writers.index((mark.ledger, mark.writer))
        if recorded[slot].last >= mark.last:
            return ()
        first = min(first, recorded[slot].first)
    numbers = {"whose": (int(mark.ledger, 16) << WRITER_BITS) | mark.writer, "first": first, "last": mark.last}
    return [Transaction(_application_id(slot, part), number) for part, number in numbers.items()]


@contextlib.contextmanager
def translated_errors(name: str, root: str) -> Iterator[None]:
    """Raise Delta's errors as OSError or DataError."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, OSError) as exc:
        text = str(exc)
        if "No space left" in text or "os error 28" in text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), root) from exc
        # A chain of causes, one coloured line each, and the frames of the stack.
        causes = re.sub("\x1b\\[[0-9;]*m|↳", "", re.split(r"\s+0: <unknown>", text)[0])
        plain = " ".join(causes.split())[:MAX_ERROR_CHARACTERS].rstrip(". ")
        raise DataError(name, plain, "fix the table, or write to another sink (--sink PATH)") from exc


def _application_id(slot: int, part: str) -> str:
    return f"rowmill-usage-{slot}-{part}"


def _storage_options(uri: str) -> dict[str, str]:
    """What the environment does not set; credentials come from the environment alone."""
    return {"AWS_ALLOW_HTTP": "true"} if object_store.is_url(uri) and object_store.uses_plain_http() else {}
