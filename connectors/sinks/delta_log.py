"""Delta tables opened, made and told about; deltalake is imported only when one is touched."""

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
"""Of a slot's first number; the ledger's identity stands above them."""
SHOWN = 300
"""Characters of an error of Delta's in a message."""


def opened(uri: str) -> "DeltaTable | None":
    """The table there as it is now; None where there is none."""
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(uri, storage_options=_options(uri)):
        return None
    return DeltaTable(uri, storage_options=_options(uri))


def create(uri: str, schema: pa.Schema) -> None:
    """A table without rows."""
    from deltalake import DeltaTable

    DeltaTable.create(uri, schema, storage_options=_options(uri))


def schema_of(table: "DeltaTable") -> pa.Schema:
    """The table's columns."""
    return pa.schema(table.schema().to_arrow())


def properties(schema: pa.Schema) -> "WriterProperties":
    """How data files are written."""
    from deltalake import ColumnProperties, WriterProperties

    texts = delta_types.text_columns(schema)
    return WriterProperties(
        compression="ZSTD",
        compression_level=3,
        # A dictionary on vectors costs a factor of three in time.
        default_column_properties=ColumnProperties(dictionary_enabled=False),
        column_properties={name: ColumnProperties(dictionary_enabled=True) for name in texts},
    )


def marks(usage: "DeltaTable") -> list[UsageMark]:
    """Up to where the usage table is written, one mark a writer, from the transactions in its log.

    Delta tells a transaction's number by its name alone, so the names are counted: slot 0, 1 ... each with three
    numbers. They are kept for good, in checkpoints as well.
    """
    found: list[UsageMark] = []
    while (whose := usage.transaction_version(_app(len(found), "whose"))) is not None:
        first, last = (usage.transaction_version(_app(len(found), what)) for what in ("first", "last"))
        assert first is not None
        assert last is not None
        found.append(UsageMark(f"{whose >> WRITER_BITS:08x}", whose & ((1 << WRITER_BITS) - 1), first, last))
    return found


def transactions(usage: "DeltaTable", mark: UsageMark) -> "Sequence[Transaction]":
    """What a commit of these exchanges notes in the log; none where the table has them already."""
    from deltalake import Transaction

    there = marks(usage)
    whose = [(one.ledger, one.writer) for one in there]
    slot, first = len(there), mark.first
    if (mark.ledger, mark.writer) in whose:
        slot = whose.index((mark.ledger, mark.writer))
        if there[slot].last >= mark.last:
            return ()
        first = min(first, there[slot].first)
    told = {"whose": (int(mark.ledger, 16) << WRITER_BITS) | mark.writer, "first": first, "last": mark.last}
    return [Transaction(_app(slot, what), number) for what, number in told.items()]


@contextlib.contextmanager
def told(name: str, root: str) -> Iterator[None]:
    """Delta's errors as ours."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, OSError) as exc:
        said = str(exc)
        if "No space left" in said or "os error 28" in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), root) from exc
        # A chain of causes, a coloured line each.
        plain = " ".join(re.sub("\x1b\\[[0-9;]*m|↳", "", said).split())[:SHOWN].rstrip(". ")
        raise DataError(name, f"{plain}", "mend what is there, or write to another sink (--sink PATH)") from exc


def _app(slot: int, what: str) -> str:
    return f"rowmill-usage-{slot}-{what}"


def _options(uri: str) -> dict[str, str]:
    """What the environment does not say; credentials are its alone."""
    return {"AWS_ALLOW_HTTP": "true"} if object_store.is_url(uri) and object_store.plain_http() else {}
