"""Hive columns: values in the folders of files, such as `year=2024/`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from pydantic import Field

from connectors.contracts import SourceColumn, SourceModel
from connectors.sources.columns.guessed_types import guess_kind
from connectors.sql import literal

DEFAULT_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""The value of a folder for null."""


class FilesModel(SourceModel):
    """The keys of every source of files."""

    hive: bool = Field(
        default=True,
        description="Whether folders such as `year=2024/` make columns, if every file is in one.",
    )


def hive_values(files: Iterable[Path | str], workspace: Path, taken: Iterable[str]) -> dict[str, list[str | None]]:
    """Return column -> its value for each file, for names that every file's folders have.

    `taken`: the columns of the files, which folders do not replace. Folders above the workspace do not count.
    """
    by_file = [_folder_values(file, workspace) for file in files]
    if not by_file:
        return {}
    seen = {name.lower() for name in taken}
    names: list[str] = []
    for name in by_file[0]:
        if name.lower() not in seen and all(name in values for values in by_file):
            seen.add(name.lower())
            names.append(name)
    return {name: [values[name] for values in by_file] for name in names}


def hive_columns(
    values: Mapping[str, Sequence[str | None]], text: Mapping[str, str], known: Mapping[str, str]
) -> dict[str, SourceColumn]:
    """Return how the columns are read. `text`: SQL of a row's value as text; `known`: types in the sink."""
    columns: dict[str, SourceColumn] = {}
    for name, found in values.items():
        value, kind = text[name], guess_kind(set(found))
        misfit = None
        if (there := known.get(name, kind)) != kind:
            # Tables of earlier versions have numbers for 01 and 02.
            kind = there
            misfit = f"({value} is not null and try_cast({value} as {kind}) is null)"
        typed = f"try_cast({value} as {kind})"
        columns[name] = SourceColumn(typed, kind, value, misfit, is_guessed=True, is_from_path=True)
    return columns


def value_of_file_number(number: str, values: Sequence[str | None]) -> str:
    """SQL of the value of the file with this number (SQL, from 0)."""
    texts = ", ".join("null" if value is None else literal(value) for value in values)
    return f"cast([{texts}] as VARCHAR[])[{number} + 1]"


def value_of_file_name(path: str, name: str) -> str:
    """SQL of the value of a column in a path (SQL)."""
    written = literal(f"^.*/{_regex_of_name(name)}=([^/]*)/")
    value = f"url_decode(regexp_extract({path}, {written}, 1))"
    return f"nullif(nullif({value}, {literal(DEFAULT_PARTITION)}), '')"


def _folder_values(file: Path | str, workspace: Path) -> dict[str, str | None]:
    path = str(file).partition("://")[2] if "://" in str(file) else str(file)
    if isinstance(file, Path) and file.is_relative_to(workspace):
        path = str(file.relative_to(workspace))
    values: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        name, separator, value = folder.partition("=")
        if separator and name:
            text = unquote(value)
            values[unquote(name)] = None if text in ("", DEFAULT_PARTITION) else text
    return values


def _regex_of_name(name: str) -> str:
    """Match a name as folders write it: some characters may be written as %20."""
    return "".join(
        f"(?:{re.escape(character)}|{''.join(f'%{byte:02X}' for byte in character.encode())})" for character in name
    )
