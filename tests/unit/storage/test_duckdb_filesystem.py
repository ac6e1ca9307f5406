"""Objects read by DuckDB: special characters in URLs, several threads, missing objects."""

import io
import threading

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.storage import object_store
from connectors.storage.duckdb_filesystem import ObjectFile, register, unregister


def parquet(rows: int, group_rows: int) -> bytes:
    content = io.BytesIO()
    table = pa.table({"n": range(rows), "text": [str(n) * 20 for n in range(rows)]})
    pq.write_table(table, content, row_group_size=group_rows)
    return content.getvalue()


@pytest.mark.parametrize("name", ["plain", "odd [1] 100%", "a#b", "a?b", "a*b", "späť"])
def test_urls_with_special_characters_name_one_object(bucket: str, name: str) -> None:
    url = f"{bucket}/{name}.parquet"
    object_store.put(url, parquet(3, 3))
    object_store.put(f"{bucket}/a-other-b.parquet", parquet(5, 5))
    with duckdb.connect() as db:
        register(db)
        assert db.execute("select count(*) from read_parquet(?)", [[url]]).fetchall() == [(3,)]


def test_duckdb_reads_one_object_from_several_threads(bucket: str) -> None:
    url = f"{bucket}/large.parquet"
    object_store.put(url, parquet(40_000, 2000))
    for threads in (1, 8):
        with duckdb.connect(config={"threads": threads}) as db:
            register(db)
            total = db.execute("select sum(n), sum(length(text)) from read_parquet(?)", [[url]]).fetchall()
            assert total == [(40_000 * 39_999 // 2, sum(20 * len(str(n)) for n in range(40_000)))]


def test_a_missing_object_is_a_missing_file(bucket: str) -> None:
    with duckdb.connect() as db:
        register(db)
        with pytest.raises(duckdb.IOException, match="No files found"):
            db.execute("select * from read_parquet(?)", [[f"{bucket}/none.parquet"]])


def test_a_connection_is_registered_once_and_can_be_unregistered(bucket: str) -> None:
    with duckdb.connect() as db:
        register(db)
        register(db)
        assert len(db.list_filesystems()) == 1
        unregister(db)
        assert db.list_filesystems() == []


def test_threads_that_share_an_open_object_have_separate_positions(bucket: str) -> None:
    url = f"{bucket}/numbers"
    object_store.put(url, b"".join(n.to_bytes(4, "big") for n in range(1000)))
    file, wrong = ObjectFile(url, 4000), []

    def reading(start: int) -> None:
        for n in range(start, 1000, 40):
            file.seek(4 * n)
            if file.read(4) != n.to_bytes(4, "big"):
                wrong.append(n)

    threads = [threading.Thread(target=reading, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
