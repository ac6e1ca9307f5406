"""Guessed types: the type of a column of texts, from all of its values, such that no value changes."""

import datetime
import math
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from connectors.contracts import SourceColumn

EXACT_DIGITS = 15
"""A decimal number of so many digits is the shortest text of one DOUBLE."""

_WHOLE = r"-?(0|[1-9][0-9]*)"
_SHORT_WHOLE = r"(0|-?[1-9][0-9]{0,14})"
_SHORT_DECIMAL = r"-?(0|[1-9][0-9]*)[.]([0-9]*[1-9]|0)"
_FIXED_DECIMAL = r"-?(0|[1-9][0-9]*)[.][0-9]+"
_NUMBER = r"-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]+)?"
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK = r"[ T][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?"
_ZONE = r"(Z|[+-](0[0-9]|1[0-4])(:?[0-9]{2})?)"
_TEMPORAL = {"DATE": _DATE, "TIMESTAMP": _DATE + _CLOCK, "TIMESTAMPTZ": _DATE + _CLOCK + _ZONE}

_EXACT_DOUBLE = (
    f"regexp_full_match(VALUE, '{_NUMBER}') and isfinite(try_cast(VALUE as DOUBLE)) and "
    f"(length(regexp_replace(VALUE, '[^0-9]', '', 'g')) <= {EXACT_DIGITS} "
    "or cast(try_cast(VALUE as DOUBLE) as VARCHAR) in (VALUE, VALUE || '.0'))"
)
_EXACT_INTEGER = f"regexp_full_match(VALUE, '{_WHOLE}([.]0+)?') and try_cast(VALUE as TYPE) is not null"
_EXACT_DECIMAL = (
    f"regexp_full_match(VALUE, '{_WHOLE}([.][0-9]+)?') and "
    "try_cast(VALUE as TYPE) is not null and "
    "rtrim(rtrim(cast(try_cast(VALUE as TYPE) as VARCHAR), '0'), '.') "
    "= rtrim(case when contains(VALUE, '.') then rtrim(VALUE, '0') else VALUE || '.' end, '.')"
)


class ColumnGuess:
    """The types that all values of one column allow; batches of values are added one after the other."""

    def __init__(self) -> None:
        self._may_be_number = self._may_be_whole = self._may_be_shortest = True
        self._may_be_fixed = True
        self._decimals: int | None = None
        """Digits after the point of all values, while `_may_be_fixed`."""
        self._others = ["BOOLEAN", *_TEMPORAL]
        self._has_values = False

    def add(self, values: pa.Array) -> None:
        """Add a batch of texts; nulls have every type."""
        if not (self._may_be_number or self._others):
            return
        values = values.drop_null()
        if not len(values):
            return
        self._has_values = True
        if self._may_be_number:
            self._add_numbers(values)
        if self._others:
            self._others = [kind for kind in self._others if _are_all(kind, values)]

    @property
    def kind(self) -> str:
        """The SQL type; VARCHAR if there is no narrower one, or no value."""
        if not self._has_values:
            return "VARCHAR"
        if self._may_be_number and self._may_be_whole:
            return "BIGINT"
        if self._may_be_number and (self._may_be_shortest or self._may_be_fixed):
            return "DOUBLE"
        return self._others[0] if self._others else "VARCHAR"

    def _add_numbers(self, values: pa.Array) -> None:
        if not _match(values, _NUMBER):
            self._may_be_number = False
            return
        if self._may_be_whole and not (_match(values, _SHORT_WHOLE) or all(map(_is_bigint, values.to_pylist()))):
            self._may_be_whole = False
        if self._may_be_shortest or self._may_be_fixed:
            short = pc.and_(
                pc.match_substring_regex(values, f"^({_SHORT_WHOLE}|{_SHORT_DECIMAL})$"),
                pc.less_equal(pc.binary_length(values), EXACT_DIGITS),
            )
            odd = values.filter(pc.invert(short)).to_pylist()
            self._may_be_shortest = self._may_be_shortest and all(map(_is_shortest, odd))
            self._may_be_fixed = self._may_be_fixed and self._have_fixed_decimals(values)
        self._may_be_number = self._may_be_whole or self._may_be_shortest or self._may_be_fixed

    def _have_fixed_decimals(self, values: pa.Array) -> bool:
        """Whether all values so far have equally many decimals, which a DOUBLE holds."""
        if not _match(values, _FIXED_DECIMAL):
            return False
        decimals = pc.subtract(pc.subtract(pc.binary_length(values), pc.find_substring(values, ".")), 1)
        found = pc.min_max(decimals).as_py()
        if found["min"] != found["max"] or self._decimals not in (None, found["min"]):
            return False
        self._decimals = found["min"]
        return all(map(_is_exact, values.filter(pc.greater(pc.binary_length(values), EXACT_DIGITS)).to_pylist()))


class JsonGuess:
    """The narrowest type that holds all numbers of one column of JSON lines."""

    def __init__(self) -> None:
        self._are_whole = self._are_bigint = self._are_decimal = self._are_double = True

    def add(self, values: pa.Array) -> None:
        """Add a batch of numbers as JSON writes them."""
        values = values.drop_null()
        if not len(values):
            return
        if not _match(values, _NUMBER):
            self._are_whole = self._are_double = False
            return
        self._are_whole = self._are_whole and _match(values, "-?[0-9]+")
        short = pc.less_equal(pc.binary_length(values), EXACT_DIGITS)
        long = values.filter(pc.invert(short)).to_pylist()
        if self._are_whole:
            self._are_bigint = self._are_bigint and all(-(2**63) <= int(text) < 2**63 for text in long)
            self._are_decimal = self._are_decimal and all(len(text.removeprefix("-")) <= 38 for text in long)
        exponents = values.filter(pc.match_substring_regex(values, "[eE]")).to_pylist()
        self._are_double = self._are_double and all(map(_is_exact, {*long, *exponents}))

    @property
    def kind(self) -> str:
        """The SQL type; VARCHAR if no number type holds all of them."""
        if self._are_whole and self._are_decimal:
            return "BIGINT" if self._are_bigint else "DECIMAL(38,0)"
        return "DOUBLE" if self._are_double and not self._are_whole else "VARCHAR"


def text_column(column: str, guess: str, known: str | None) -> SourceColumn:
    """Return how a column of texts (SQL) is read. `guess`: the type that all values have; `known`: that in the sink.

    A text without a value of the sink's type is a misfit.
    """
    if known is None or known == guess or known == "VARCHAR":
        kind = known or guess
        value = column if kind == "VARCHAR" else f"cast({column} as {kind})"
        text = None if kind in ("VARCHAR", "BIGINT", "DATE") else column
        return SourceColumn(value, kind, text, is_guessed=True)
    fits = fits_type(column, known)
    if fits is None:
        return text_column(column, guess, None)
    value = f"case when {fits} then try_cast({column} as {known}) end"
    return SourceColumn(value, known, column, f"({column} is not null and ({fits}) is not true)", is_guessed=True)


def fits_type(value: str, kind: str) -> str | None:
    """Return the SQL condition that a text has an equal value of a type; None for a type that no text is read as."""
    if kind in _TEMPORAL:
        regex, condition = _TEMPORAL[kind], "regexp_full_match(VALUE, 'REGEX') and try_cast(VALUE as TYPE) is not null"
        condition = condition.replace("REGEX", regex)
    elif kind == "TIMESTAMP WITH TIME ZONE":
        return fits_type(value, "TIMESTAMPTZ")
    elif kind == "BOOLEAN":
        condition = "lower(VALUE) in ('true', 'false')"
    elif kind == "DOUBLE":
        condition = _EXACT_DOUBLE
    elif re.fullmatch(r"U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER", kind):
        condition = _EXACT_INTEGER
    elif kind.startswith("DECIMAL"):
        condition = _EXACT_DECIMAL
    else:
        return None
    return condition.replace("VALUE", value).replace("TYPE", kind)


def guess_kind(texts: Iterable[str | None]) -> str:
    """Return the type of a few texts."""
    guess = ColumnGuess()
    guess.add(pa.array(list(texts), pa.string()))
    return guess.kind


def _match(values: pa.Array, regex: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, f"^({regex})$")).as_py())


def _is_bigint(text: str) -> bool:
    return re.fullmatch(_WHOLE, text) is not None and text != "-0" and -(2**63) <= int(text) < 2**63


def _is_exact(text: str) -> bool:
    """Whether a DOUBLE holds a number."""
    value = float(text)
    return math.isfinite(value) and Decimal(text) == Decimal(repr(value))


def _is_shortest(text: str) -> bool:
    """Whether a number is written as the shortest text of its DOUBLE, or is a BIGINT that a DOUBLE holds."""
    value = float(text)
    if not math.isfinite(value):
        return False
    if text == repr(value):
        return True
    # Python writes 0.00001 as 1e-05, and 3 as 3.0.
    is_short = re.fullmatch(_SHORT_DECIMAL, text) is not None or _is_bigint(text)
    return is_short and Decimal(text) == Decimal(repr(value))


def _are_all(kind: str, values: pa.Array) -> bool:
    if kind == "BOOLEAN":
        return _match(values, "(?i)true|false")
    return _match(values, _TEMPORAL[kind]) and all(map(_IS_VALID[kind], values.to_pylist()))


def _is_date(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_moment(text: str) -> bool:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


_IS_VALID: Mapping[str, Callable[[str], bool]] = {"DATE": _is_date, "TIMESTAMP": _is_moment, "TIMESTAMPTZ": _is_moment}
