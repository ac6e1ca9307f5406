"""Multipart forms with files: a request's JSON names each file by its digest, the form has the content."""

import errno
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from connectors.errors import JobError, KeyPath, did_you_mean
from connectors.records import Media, Request, Row, RowError

FormField = tuple[str, str | bytes | Path, str | None]


def check_file_column(name: str, columns: Mapping[str, pa.DataType], where: KeyPath) -> str:
    """Return the name of a column that contains files; JobError at `where` for any other."""
    if name not in columns:
        raise JobError(where, f"no column {name}", did_you_mean(name, columns))
    kind = columns[name]
    if not _can_have_files(kind):
        raise JobError(where, f"column {name} contains {kind}", "name a column of paths, URLs or bytes")
    return name


def _can_have_files(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _can_have_files(kind.value_type)
    if pa.types.is_struct(kind):
        return {field.name for field in kind} == {"bytes", "path"}
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    contents = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return bool(texts or contents or pa.types.is_binary_view(kind) or pa.types.is_null(kind))


def row_files(row: Row, columns: Sequence[str], key: str) -> tuple[Media, ...] | RowError:
    """Return the files of a row's columns, with lists flattened; an `input` error at `key` if there is no file."""
    files: list[Media] = []
    for column in columns:
        value = row[column]
        for file in value if isinstance(value, list | tuple) else [value]:
            if isinstance(file, RowError):
                return file
            if file is not None:
                if not isinstance(file, Media):
                    raise TypeError(f"column {column} was not read: found {type(file).__name__}, expected Media")
                files.append(file)
    if not files:
        return RowError("input", f"{key}: column {' and '.join(columns)} is null: there is no file")
    return tuple(files)


def build_form(request: Request, files: Sequence[str]) -> tuple[FormField, ...]:
    """Return the form that a request's body describes. `files`: its fields that name contents.

    Lists become `name[]` and mappings `name[key]`, as in OpenAI's own client. OSError if a file is gone or has changed
    since it was read.
    """
    contents = {media.name: media for media in request.media}
    fields: list[FormField] = []
    for name, value in orjson.loads(request.body).items():
        if name in files:
            is_list = isinstance(value, list)
            for each in value if is_list else [value]:
                media = contents[each]
                fields.append((f"{name}[]" if is_list else name, _content(media), f"{name}.{media.suffix}"))
        else:
            fields.extend((field, text, None) for field, text in _text_fields(name, value))
    return tuple(fields)


def _content(media: Media) -> bytes | Path:
    if media.path is None:
        return media.read()
    # In memory it would stay until the reply arrives.
    with media.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != media.digest:
        raise OSError(errno.ESTALE, "it has changed since the run read it; run again", str(media.path))
    return media.path


def _text_fields(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _text_fields(f"{name}[{key}]", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _text_fields(f"{name}[]", inner)
    elif isinstance(value, bool):
        yield name, "true" if value else "false"
    elif value is not None:
        yield name, str(value)
