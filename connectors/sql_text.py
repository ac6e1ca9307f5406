"""Names and values written into SQL text, always quoted."""

from collections.abc import Iterable
from pathlib import Path


def quoted(name: str) -> str:
    """An identifier, whatever characters are in it."""
    return '"' + name.replace('"', '""') + '"'


def quoted_list(names: Iterable[str]) -> str:
    """Identifiers with commas between them."""
    return ", ".join(quoted(name) for name in names)


def literal(value: str | Path) -> str:
    """A string constant."""
    return "'" + str(value).replace("'", "''") + "'"


def literal_list(values: Iterable[str | Path]) -> str:
    """A list of string constants."""
    return "[" + ", ".join(literal(value) for value in values) + "]"


def first_line(error: Exception) -> str:
    """What DuckDB says is wrong, without the SQL around it."""
    line = str(error).strip().split("\n", 1)[0]
    head, colon, rest = line.partition(" Error: ")
    return (rest if colon and " " not in head.removeprefix("Invalid ").removeprefix("Out of ") else line).rstrip(". ")
