"""The contract of part stores, local and on an object store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.storage.local_part_store import LocalPartStore
from connectors.storage.object_part_store import ObjectPartStore
from connectors.storage.part_store import BUILD, EMPTY_PART, PartStore


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> PartStore:
    """An empty part store of each kind."""
    if request.param == "local":
        return LocalPartStore(tmp_path / "out")
    return ObjectPartStore(f"{request.getfixturevalue('bucket')}/out")


def write(path: Path, *numbers: int) -> None:
    pq.write_table(pa.table({"n": pa.array(numbers, pa.int64())}), path)


def contents(store: PartStore, folder: str = "results") -> dict[str, list[int]]:
    """Return part name -> numbers in it."""
    return {part.name: pq.ParquetFile(part.source).read()["n"].to_pylist() for part in store.parts(folder)}


@contextmanager
def interrupted(message: str = "interrupted") -> Iterator[None]:
    with pytest.raises(RuntimeError, match=message):
        yield


def test_an_unused_store_has_no_parts(store: PartStore) -> None:
    store.recover()
    assert store.parts("results") == []
    assert not store.has_part(f"results/{EMPTY_PART}")
    assert not store.is_replacing


def test_a_transaction_adds_and_replaces_several_parts(store: PartStore) -> None:
    with store.transaction() as transaction:
        write(transaction.add("results/a.parquet"), 1)
    with store.transaction() as transaction:
        write(transaction.add("results/a.parquet"), 2)
        write(transaction.add("results/b.parquet"), 3)
        write(transaction.add("errors/a.parquet"), 4)
    assert contents(store) == {"a.parquet": [2], "b.parquet": [3]}
    assert contents(store, "errors") == {"a.parquet": [4]}
    assert store.has_part("results/b.parquet")


def test_parts_in_deeper_folders_and_other_files_are_not_listed(store: PartStore) -> None:
    with store.transaction() as transaction:
        write(transaction.add("results/a.parquet"), 1)
        write(transaction.add("results/deeper/b.parquet"), 2)
        write(transaction.add("results/c.other"), 3)
    assert [part.name for part in store.parts("results")] == ["a.parquet"]


def test_a_failed_transaction_changes_nothing(store: PartStore) -> None:
    with store.transaction() as transaction:
        write(transaction.add("results/a.parquet"), 1)
    with interrupted(), store.transaction() as transaction:
        write(transaction.add("results/a.parquet"), 2)
        write(transaction.add("results/b.parquet"), 3)
        raise RuntimeError("interrupted")
    assert contents(store) == {"a.parquet": [1]}
    with store.transaction() as transaction:
        write(transaction.add("results/b.parquet"), 4)
    assert contents(store) == {"a.parquet": [1], "b.parquet": [4]}


def test_the_size_and_a_local_copy_of_a_part_are_available(store: PartStore) -> None:
    with store.transaction() as transaction:
        write(transaction.add("results/a.parquet"), 1, 2)
    (part,) = store.parts("results")
    with store.local_copy("results/a.parquet") as path:
        assert path.name == "a.parquet"
        assert store.size(part) == path.stat().st_size
        assert pq.read_table(path)["n"].to_pylist() == [1, 2]


def test_merged_parts_are_replaced_and_the_others_stay(store: PartStore) -> None:
    with store.transaction() as transaction:
        for name, number in ((EMPTY_PART, 0), ("a.parquet", 1), ("b.parquet", 2), ("large.parquet", 3)):
            write(transaction.add(f"results/{name}"), number)
    small = [part for part in store.parts("results") if part.name in ("a.parquet", "b.parquet")]
    with store.transaction() as transaction:
        folder = transaction.merge("results", small)
        write(folder / EMPTY_PART)
        write(folder / "merged.parquet", 1, 2)
    assert contents(store) == {EMPTY_PART: [], "large.parquet": [3], "merged.parquet": [1, 2]}


def test_rebuilt_tables_replace_the_old_ones(store: PartStore) -> None:
    with store.transaction() as transaction:
        write(transaction.add(f"results/{EMPTY_PART}"))
        write(transaction.add("results/a.parquet"), 1)
    with store.transaction() as transaction:
        write(transaction.add(f"{BUILD}results/{EMPTY_PART}"))
        write(transaction.add(f"{BUILD}results/b.parquet"), 2)
    assert contents(store) == {EMPTY_PART: [], "a.parquet": [1]}
    with store.transaction() as transaction:
        transaction.rebuilt.append("results")
    assert contents(store) == {EMPTY_PART: [], "b.parquet": [2]}
    store.recover()
    assert store.parts(f"{BUILD}results") == []


def test_recovery_deletes_unfinished_rebuilds(store: PartStore) -> None:
    with store.transaction() as transaction:
        write(transaction.add(f"{BUILD}results/a.parquet"), 1)
    assert contents(store, f"{BUILD}results") == {"a.parquet": [1]}
    store.recover()
    assert store.parts(f"{BUILD}results") == []
