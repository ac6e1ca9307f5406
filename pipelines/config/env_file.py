"""The `.env` file of a workspace: values of variables that the environment does not set."""

from collections.abc import Mapping
from pathlib import Path

from dotenv.parser import parse_stream
from msgspec import Struct

from connectors.errors import JobError

DEFAULT_NAME = ".env"


class EnvFile(Struct, frozen=True):
    """The contents of a `.env` file."""

    values: Mapping[str, str]
    """By variable; the last one of a name counts."""
    unreadable_lines: tuple[int, ...]
    """Lines that are no assignment, such as one whose quote is never closed."""


def read_env_file(file: Path, where: str) -> EnvFile:
    """Return the variables of a file as they are written: `$NAME` in a value stays; JobError if it cannot be read.

    `export`, comments, single quotes (verbatim), double quotes (with escapes) and values of several lines are
    understood; a name without a value is left out.
    """
    try:
        with file.open(encoding="utf-8-sig") as stream:
            lines = list(parse_stream(stream))
    except UnicodeDecodeError as exc:
        raise JobError(where, f"{file.name} is not UTF-8", "save it as UTF-8") from exc
    except OSError as exc:
        raise JobError(where, f"{file.name} cannot be read ({exc.strerror})", "correct the path or its rights") from exc
    values = {line.key: line.value for line in lines if line.key is not None and line.value is not None}
    return EnvFile(values, tuple(line.original.line for line in lines if line.error))
