"""Mapped tables."""

from pathlib import Path

import pyarrow as pa

from connectors.tables.mapped_table import map_table, release_pages


def test_a_mapped_table_stays_readable_without_its_name_and_after_its_pages_were_released(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(1000)), "text": [f"row {row}" for row in range(1000)]})
    path = tmp_path / "rows.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, 100)
    mapped = map_table(path)
    path.unlink()
    release_pages()
    assert mapped == table
