"""The store of documents that were read before."""

import os
import time
from pathlib import Path

import pytest

from connectors.documents import document_store
from connectors.documents.document import Document
from connectors.documents.document_store import DocumentStore, prune_documents, stored_documents


@pytest.fixture
def store(tmp_path: Path) -> DocumentStore:
    return DocumentStore(tmp_path / "documents", tmp_path)


@pytest.mark.parametrize("pictures", [None, (), ("a.png", "b.png")], ids=["not drawn", "no page", "drawn"])
def test_a_document_is_loaded_as_it_was_stored(store: DocumentStore, pictures: tuple[str, ...] | None) -> None:
    place = store.place_of_content("0f", pictures is not None)
    document = Document("text/plain", ("Grüße 👩‍👧", ""), pictures)
    assert store.load(place) is None
    store.save(place, document)
    assert store.load(place) == document
    assert store.load(store.place_of_content("0f", pictures is None)) is None


def test_a_file_that_has_just_changed_is_not_stored_by_its_time(store: DocumentStore, tmp_path: Path) -> None:
    path, now = tmp_path / "a.txt", time.time_ns()
    path.write_bytes(b"a")

    def has_place(changed_at: int) -> bool:
        os.utime(path, ns=(now, changed_at))
        return store.place_of_file("a.txt", path.stat(), False) is not None

    whole_second = now // 1_000_000_000 * 1_000_000_000
    assert [has_place(at) for at in (now, now + 10**15, whole_second - 10**9)] == [False] * 3
    assert [has_place(at) for at in (whole_second - 10**9 + 1, whole_second - 10**10)] == [True] * 2


def test_the_documents_that_were_not_used_for_longest_make_room(
    store: DocumentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [store.place_of_content(str(number), False) for number in range(10)]
    for age, place in enumerate(places):
        store.save(place, Document("text/plain", (os.urandom(500).hex(),)))
        used_at = time.time() - 7200 * (1 + age)
        os.utime(place, (used_at, used_at))
    # Its use is remembered.
    assert store.load(places[9]) is not None
    documents, nbytes = stored_documents(tmp_path / "documents")
    monkeypatch.setattr(document_store, "MAX_STORE_BYTES", nbytes * 6 // 10)
    store.limit_size()
    assert [place.exists() for place in places] == [True] * 3 + [False] * 6 + [True]
    assert documents == 10
    (tmp_path / "documents" / "00").mkdir(exist_ok=True)
    (tmp_path / "documents" / "00" / "x.1.part").write_bytes(b"unfinished")
    assert prune_documents(tmp_path / "documents", time.time() - 3600, dry_run=False)[0] == 3
    assert stored_documents(tmp_path / "documents")[0] == 2


def test_a_store_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "documents").write_bytes(b"a file")
    store = DocumentStore(tmp_path / "documents", tmp_path)
    place = store.place_of_content("0f", False)
    store.save(place, Document("text/plain", ("a",)))
    assert store.load(place) is None
