"""Objects of a store: URLs, globs and folders, reading and writing."""

from pathlib import Path

import pytest

from connectors.errors import JobError
from connectors.storage import object_store
from connectors.storage.object_store import objects_at

NAMES = ["a/1.parquet", "a/2.parquet", "a/b/3.parquet", "a/_old/4.parquet", "a/.x/5.parquet", "a/odd [1] 100%.parquet"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a/1.parquet", [0]),
        ("a", [0, 1, 2, 5]),
        ("a/", [0, 1, 2, 5]),
        ("a/*.parquet", [0, 1, 5]),
        ("a/?.parquet", [0, 1]),
        ("a/[!1].parquet", [1]),
        ("*/[12].parquet", [0, 1]),
        ("a/**/*.parquet", [0, 1, 2, 3, 4, 5]),
        ("a/odd [1] 100%.parquet", [5]),
        ("a/*.csv", []),
        ("b", []),
    ],
)
def test_urls_globs_and_folders_name_objects(bucket: str, pattern: str, found: list[int]) -> None:
    for name in NAMES:
        object_store.put(f"{bucket}/{name}", b"x")
    expected = sorted(f"{bucket}/{NAMES[n]}" for n in found)
    assert [one.url for one in objects_at(f"{bucket}/{pattern}", (".parquet",))] == expected


def test_urls_are_normalized() -> None:
    assert object_store.normalize_url("s3://bucket//a/./b/") == "s3://bucket/a/b"
    for url in ("s3://", "s3://bucket/../other"):
        with pytest.raises(JobError, match=r"names no bucket, or has \.\. in it; write e\.g\. s3://bucket/folder"):
            object_store.normalize_url(url)


def test_paths_are_urls_only_with_a_known_scheme() -> None:
    assert object_store.is_url("gs://bucket/a")
    assert not object_store.is_url("folder/a")
    with pytest.raises(JobError, match="ftp:// is not known"):
        object_store.is_url("ftp://host/a")


def test_objects_are_written_read_copied_and_deleted(bucket: str, tmp_path: Path) -> None:
    one, other = f"{bucket}/one", f"{bucket}/other"
    assert object_store.head(one) is None
    assert object_store.read(one) is None
    object_store.put(one, b"content")
    object_store.copy(one, other)
    assert object_store.read(other) == b"content"
    assert object_store.read_range(other, 2, 3) == b"nte"
    object_store.download(other, tmp_path / "deep" / "file")
    assert (tmp_path / "deep" / "file").read_bytes() == b"content"
    assert [found.name for found in object_store.list_objects(bucket)] == ["one", "other"]
    object_store.delete([one, f"{bucket}/missing"])
    assert [found.name for found in object_store.list_objects(bucket)] == ["other"]
