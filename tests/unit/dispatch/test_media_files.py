"""Files of rows: read before a request, written after an answer."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from connectors.contracts import MediaColumn
from connectors.records import RowError
from pipelines.dispatch.media_files import MAX_ROWS_AT_ONCE, read_media, write_files

IMAGE = MediaColumn("image", 1000)


class ScriptedReader:
    """Reads a value as its upper case; "bad" is an error."""

    def __init__(self) -> None:
        self.most_open = 0
        self._open = 0

    async def read(self, value: Any, use: MediaColumn, name: str | None = None) -> Any:
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        await asyncio.sleep(0)
        self._open -= 1
        return RowError("input", f"{name}: not a file") if value == "bad" else value.upper()


async def test_selected_rows_get_their_media_and_a_bad_file_is_an_error_of_its_row() -> None:
    rows = [{"id": 1, "picture": "a"}, {"id": 2, "picture": "bad"}, {"id": 3, "picture": "c"}]
    media = await read_media(ScriptedReader(), rows, {"picture": IMAGE, "absent": IMAGE}, [0, 1])
    assert media == {0: {"id": 1, "picture": "A"}, 1: RowError("input", "picture: not a file")}
    assert rows[0]["picture"] == "a"


async def test_the_files_of_only_a_few_rows_are_read_at_once() -> None:
    reader = ScriptedReader()
    rows = [{"picture": "a"}] * 50
    assert len(await read_media(reader, rows, {"picture": IMAGE}, range(50))) == 50
    assert reader.most_open == MAX_ROWS_AT_ONCE


def test_files_are_written_once_and_leave_no_partial_file(tmp_path: Path) -> None:
    def files() -> Iterator[tuple[str, bytes]]:
        yield "a.png", b"first"
        yield "b.png", b"second"

    write_files(tmp_path / "files", files)
    (tmp_path / "files" / "a.png").write_bytes(b"there already")
    write_files(tmp_path / "files", files)
    found = {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()}
    assert found == {"a.png": b"there already", "b.png": b"second"}
