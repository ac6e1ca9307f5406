"""What a worker tells the ledger at once, as one piece of bytes, which Ray hands on as it is."""

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from connectors.records import Usage
from pipelines.ledger.entries import Noted, Settled

Asked = tuple[str, tuple[Any, ...]]
"""(method of Ledger, its arguments): see Ledger.write_group."""


def packed(asked: Sequence[Asked], released: Sequence[bytes]) -> bytes:
    """A group to be written, and the fingerprints of requests that have ended."""
    whole = io.BytesIO()
    pickler = pickle.Pickler(whole, pickle.HIGHEST_PROTOCOL)
    # By itself a dataclass with slots goes with the names of its fields, and is put together field by field: two to
    # three times the work.
    pickler.dispatch_table = _TAKEN_APART
    pickler.dump((asked, released))
    return whole.getvalue()


def unpacked(group: bytes) -> tuple[Sequence[Asked], Sequence[bytes]]:
    """What `packed` was given."""
    told: tuple[Sequence[Asked], Sequence[bytes]] = pickle.loads(group)
    return told


def _taken_apart(kind: type[Any]) -> Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]:
    values = attrgetter(*(field.name for field in fields(kind)))
    return lambda one: (kind, values(one))


_KINDS: tuple[type, ...] = (Noted, Settled, Usage)
_TAKEN_APART = {kind: _taken_apart(kind) for kind in _KINDS}
