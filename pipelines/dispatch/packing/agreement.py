"""Agreement of packed answers with single ones, and the pack size that follows from it."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from connectors.records import RowError, Values

MIN_VERIFIED_ROWS = 50
"""Verified rows before the pack size may change."""


class PackAgreement(Struct):
    """The rows of a pack, and how many verified rows have had the same answer alone."""

    rows: int
    """Rows of a pack, at most."""
    min_share: float
    """With a smaller share of agreement the pack size is halved."""
    can_halve: bool = True
    verified: int = 0
    agreed: int = 0
    """Both since the pack size has last changed."""
    all_verified: int = 0
    all_agreed: int = 0

    @property
    def share(self) -> float | None:
        """The share of all verified rows that agree; None without one."""
        return self.all_agreed / self.all_verified if self.all_verified else None

    def record(self, is_equal: bool) -> bool:
        """Count a verified row; return whether the pack size was halved, after which the count begins again."""
        self.verified += 1
        self.agreed += is_equal
        self.all_verified += 1
        self.all_agreed += is_equal
        is_poor = self.verified >= MIN_VERIFIED_ROWS and self.agreed < self.min_share * self.verified
        if not (is_poor and self.can_halve and self.rows > 1):
            return False
        self.rows //= 2
        self.verified = self.agreed = 0
        return True


def is_verified(fingerprint: bytes, share: float) -> bool:
    """Return whether a row is requested alone too; `share` of all request fingerprints are."""
    return int.from_bytes(fingerprint[8:16], "big") < share * 2**64


def compared_columns(properties: Mapping[str, Mapping[str, Any]] | None) -> Sequence[int]:
    """Return the places of the outputs that decide on agreement: enums, booleans and integers; if none, all.

    `properties`: the JSON Schema of each typed output, in order; None: one text.
    """
    if properties is None:
        return (0,)
    places = [place for place, schema in enumerate(properties.values()) if _is_discrete(schema)]
    return places or range(len(properties))


def answers_agree(packed: Values | RowError, single: Values | RowError, columns: Sequence[int]) -> bool:
    """Return whether the compared outputs of both answers are equal; a failed answer agrees with none."""
    if isinstance(packed, RowError) or isinstance(single, RowError):
        return False
    return all(packed[place] == single[place] for place in columns)


def _is_discrete(schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("type")
    names = {kinds} if isinstance(kinds, str) else set(kinds or ())
    return "enum" in schema or bool(names & {"boolean", "integer"})
