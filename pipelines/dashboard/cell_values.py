"""Values of rows as the live page shows them: text is escaped, pictures and sounds are served from this machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import orjson
from msgspec import Struct

from connectors.errors import JobError
from connectors.media import file_types
from pipelines.analysis.results import Results
from pipelines.analysis.results_key import results_key
from pipelines.dashboard.job_tables import TablePage
from pipelines.dashboard.rendering import Link
from pipelines.dashboard.workspace_pages import job_address
from pipelines.reporting.page.page_values import Table
from pipelines.reporting.result_values import MAX_TEXT_CHARACTERS, EmbeddedFile, EmbeddedFiles, Text, result_value

SERVED_TYPES = frozenset(
    {
        *(file_types.PNG, file_types.JPEG, file_types.WEBP, file_types.GIF, file_types.BMP, file_types.AVIF),
        *(file_types.WAV, file_types.MP3, file_types.MPGA, file_types.AAC, file_types.FLAC, file_types.OGG),
        *(file_types.WEBM, file_types.MP4, file_types.M4A),
    }
)
"""Pictures and sounds that browsers show, and that can contain no script."""
MAX_NAME_CHARACTERS = 400


class ServedFile(Struct, frozen=True):
    """A picture or a sound of the workspace."""

    kind: ClassVar[str] = "file"
    is_long: ClassVar[bool] = True
    path: str
    url: str
    label: str
    is_sound: bool


class ServedFiles(Struct, frozen=True):
    """Several of them."""

    kind: ClassVar[str] = "files"
    is_long: ClassVar[bool] = True
    items: Sequence[ServedFile | Text]


CellValue = Text | EmbeddedFile | EmbeddedFiles | ServedFile | ServedFiles


def sample_table(results: Results, page: TablePage, caption: str) -> Table:
    """Return rows of a table with links to their pages; columns without a value are left out."""
    key = results_key(results.job).columns
    # The link of a key of one column stands in its place.
    hidden = key if len(key) == 1 else ()
    columns = page.rows[0] if page.rows else ()
    names = [name for name in columns if name not in hidden and any(row[name] is not None for row in page.rows)]
    rows = [
        (
            Link(text, row_address(results.job.name, text)) if text else None,
            *(None if row[name] is None else cell_value(results, name, row[name]) for name in names),
        )
        for text, row in zip(page.keys, page.rows, strict=True)
    ]
    return Table(caption, (hidden[0] if hidden else "key", *names), rows, frozenset(), has_samples=True)


def row_address(job: str, key: str) -> str:
    """Return the address of a row's page."""
    return f"{job_address(job)}/row?key={quote(key, safe='')}"


def cell_values(results: Results, row: Mapping[str, Any]) -> Sequence[tuple[str, CellValue]]:
    """Return what the page shows of each value of a row."""
    return [(name, cell_value(results, name, value)) for name, value in row.items()]


def cell_value(results: Results, column: str, value: Any) -> CellValue:
    """Return what the page shows of one value."""
    if isinstance(value, str):
        return _served_file(results, column, value) or _plain(results, column, value)
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        items = [_served_file(results, column, one) for one in value]
        if any(items):
            return ServedFiles([file or _text(one) for file, one in zip(items, value, strict=True)])
        # A path that is not served must not be embedded either.
        return _text(orjson.dumps(value).decode())
    return _plain(results, column, value)


def served_file(results: Results, name: str) -> tuple[Path, file_types.FileType]:
    """Return a file that a row may name, and its type by its bytes; JobError or OSError if it is not served."""
    path = results.media(name)
    whole, state = path.resolve(), results.workspace.state.resolve()
    if whole.is_relative_to(state) and not whole.is_relative_to(results.sink.files_folder.resolve()):
        raise JobError(name, "is in the state folder", "only files of rows are served")
    with path.open("rb") as file:
        kind = file_types.detect_type(file.read(file_types.HEAD_BYTES))
    if kind is None or kind not in SERVED_TYPES:
        raise JobError(name, "is not a picture or sound", "only those are served")
    return path, kind


def _served_file(results: Results, column: str, value: str) -> ServedFile | None:
    if not value or len(value) > MAX_NAME_CHARACTERS or not value.isprintable() or "://" in value:
        return None
    try:
        _, kind = served_file(results, value)
    except (JobError, OSError, ValueError):
        return None
    url = f"{job_address(results.job.name)}/media?file={quote(value, safe='')}"
    return ServedFile(value, url, f"{column}: {Path(value).name}", kind.group == "audio")


def _plain(results: Results, column: str, value: Any) -> Text | EmbeddedFile | EmbeddedFiles:
    return _text(value) if isinstance(value, str) else result_value(results, column, value)


def _text(value: str) -> Text:
    if len(value) <= MAX_TEXT_CHARACTERS:
        return Text(value)
    return Text(f"{value[:MAX_TEXT_CHARACTERS]}…", len(value))
