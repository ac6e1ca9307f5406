"""`read`: the texts and pages of documents that rows name."""

import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from PIL import Image

from connectors import optional_packages
from connectors.documents import document_store
from connectors.documents.document_reader import DocumentReader
from tests.conftest import Cli, ReadTable, Workspace
from tests.support.documents import docx, pdf

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
READ = "{name: doc, read: file, pages: text}"


@pytest.fixture
def library(workspace: Workspace) -> Workspace:
    """Documents of several types, one of them broken, one missing, and a row without one."""
    files = {
        "a.txt": pdf(["First page.", "Second page."]),
        "b.pdf": docx("<w:p><w:r><w:t>Words.</w:t></w:r></w:p>"),
        "c.html": b"<html><p>One<p>Two",
        "d.docx": docx("<w:p>"),
    }
    for name, content in files.items():
        (workspace.folder / name).write_bytes(content)
    workspace.write("rows.csv", "id,file\n1,a.txt\n2,b.pdf\n3,c.html\n4,d.docx\n5,e.pdf\n6,\n")
    return workspace


def job_of(workspace: Workspace, *steps: str, **blocks: str) -> Path:
    return workspace.job(steps=f"[{', '.join(steps)}]", **blocks)


def test_documents_become_texts_pages_and_types_and_broken_ones_errors_of_their_rows(
    cli: Cli, library: Workspace, read: ReadTable
) -> None:
    report = cli.run(job_of(library, READ))
    assert (report["exit_code"], report["requests"], report["rows_ok"], report["rows_failed"]) == (1, 0, 4, 2)
    assert [list(row.values())[:4] for row in read(library.folder / "out")] == [
        [1, "First page.\n\nSecond page.", ["First page.", "Second page."], "application/pdf"],
        [2, "Words.", ["Words."], DOCX],
        [3, "One\n\nTwo", ["One\n\nTwo"], "text/html"],
        [6, None, None, None],
    ]
    assert [(row["id"], row["error_class"], row["message"]) for row in read(library.folder / "out", "errors")] == [
        (
            4,
            "input",
            "file: d.docx is broken: its part word/document.xml is not valid XML "
            "(Opening and ending tag mismatch: p line 1 and body, line 1, column 106); save it again",
        ),
        (5, "input", "file: e.pdf cannot be read (No such file or directory)"),
    ]


@pytest.fixture
def sizes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each file that was read."""
    seen: list[int] = []
    original = DocumentReader.read

    async def counted(self: DocumentReader, file: Any, pictures: Path | None = None) -> Any:
        seen.append(os.fstat(file.fileno()).st_size)
        return await original(self, file, pictures)

    monkeypatch.setattr(DocumentReader, "read", counted)
    return seen


def test_only_a_changed_document_is_read_again(
    cli: Cli, library: Workspace, read: ReadTable, sizes_read: list[int]
) -> None:
    job = job_of(library, READ)
    cli.run(job)
    sizes_read.clear()
    assert (cli.run(job)["rows_reused"], sizes_read) == (4, [])
    (library.folder / "c.html").write_bytes(b"<html><p>Three")
    assert cli.run(job)["rows_ok"] == 4
    assert sizes_read == [len(b"<html><p>Three")]
    assert read(library.folder / "out")[2]["doc"] == "Three"
    assert cli("rebuild", job) == 0
    assert (read(library.folder / "out")[2]["doc"], len(sizes_read)) == ("Three", 1)


def test_a_changed_later_step_reads_no_document_again(
    cli: Cli, library: Workspace, read: ReadTable, sizes_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(made: str) -> list[Any]:
        step = f'{{name: made, select: {{made: "{made}"}}}}'
        cli.run(job_of(library, "{name: doc, read: file, pages: images, keep: false}", step, source=source))
        return [row["made"] for row in read(library.folder / "out")]

    source = "{csv: rows.csv, key: id, where: id = 1}"
    path, text = library.folder / "a.txt", "First page.\n\nSecond page."
    for each in library.folder.glob("?.*"):
        os.utime(each, ns=(1_000_000_001, 1_000_000_001))
    assert run("doc") == [text]
    sizes_read.clear()
    assert run("upper(doc)") == [text.upper()]
    assert sizes_read == []
    # A picture that is gone is drawn again.
    pictures = sorted((library.folder / "out" / "files").iterdir())
    pictures[0].unlink()
    assert (run("left(doc, 5)"), len(sizes_read), pictures[0].exists()) == (["First"], 1, True)
    # A damaged copy counts as none, a file with another time as another one.
    (stored,) = (library.folder / ".rowmill" / "documents").glob("??/*")
    stored.write_bytes(stored.read_bytes()[:-3])
    assert (run("left(doc, 6)"), len(sizes_read)) == (["First "], 2)
    os.utime(path, ns=(1_000_000_001, 2_000_000_001))
    assert (run("left(doc, 6)"), len(sizes_read)) == (["First "], 3)
    # Another version of the readers may find another text.
    monkeypatch.setattr(document_store, "readers_version", lambda: "next")
    assert (run("left(doc, 7)"), len(sizes_read)) == (["First p"], 4)
    assert cli("ledger", "show", "--json", "--workspace", library.folder) == 0
    assert orjson.loads(cli.out)["documents"] == 3
    assert cli("ledger", "prune", "--older-than", "1h", "--workspace", library.folder) == 0
    assert "documents" not in cli.out
    assert cli("ledger", "prune", "--older-than", "0h", "--workspace", library.folder) == 0
    assert " commit records and 3 texts of documents; freed " in cli.out


def test_a_document_that_changes_while_it_is_read_is_an_error_until_the_next_run(
    cli: Cli, library: Workspace, read: ReadTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DocumentReader.read
    path = library.folder / "c.html"

    async def changing(self: DocumentReader, file: Any, pictures: Path | None = None) -> Any:
        found = await original(self, file, pictures)
        if not path.read_bytes().endswith(b"Three"):
            path.write_bytes(b"<html><p>One<p>Two<p>Three")
        return found

    monkeypatch.setattr(DocumentReader, "read", changing)
    job = job_of(library, READ, source="{csv: rows.csv, key: id, where: id = 3}")
    assert cli.run(job)["rows_failed"] == 1
    (error,) = read(library.folder / "out", "errors")
    assert (error["error_class"], error["message"]) == ("input", "file: c.html changed while it was read; run again")
    assert cli.run(job)["rows_ok"] == 1
    assert [row["doc"] for row in read(library.folder / "out")] == ["One\n\nTwo\n\nThree"]


def test_pages_of_a_pdf_become_pictures_that_a_later_step_sends(cli: Cli, library: Workspace, read: ReadTable) -> None:
    look = (
        "{name: seen, endpoint: chat, provider: local, model: gpt-4o-mini, messages: "
        "[{user: [{text: What is it?}, {image: doc_pages}]}]}"
    )
    job = job_of(
        library, "{name: doc, read: file, pages: images}", look, source="{csv: rows.csv, key: id, where: id < 3}"
    )
    assert cli("plan", job) == 0
    assert not (library.folder / "out" / "files").exists()
    report = cli.run(job)
    assert (report["rows_ok"], report["rows_failed"], report["requests"]) == (1, 1, 1)
    (row,) = read(library.folder / "out")
    assert row["doc"] == "First page.\n\nSecond page."
    assert row["seen"].count("a PNG image of 1275 x 1650 pixels") == 2
    names = sorted(path.name for path in (library.folder / "out" / "files").iterdir())
    assert sorted(row["doc_pages"]) == [f"files/{name}" for name in names]
    with Image.open(library.folder / "out" / row["doc_pages"][0]) as picture:
        assert picture.format == "PNG"
    (error,) = read(library.folder / "out", "errors")
    assert error["message"] == f"file: b.pdf is {DOCX}; only a PDF has pages as images, leave `pages` out"


def test_pieces_of_documents_are_planned_and_embedded(cli: Cli, library: Workspace, read: ReadTable) -> None:
    job = job_of(
        library,
        "{name: doc, read: file, keep: false}",
        "{name: piece, each: {split: doc, tokens: 4, model: text-embedding-3-small}}",
        '{name: vector, endpoint: embeddings, provider: local, model: text-embedding-3-small, input: "{{ piece }}"}',
        source="{csv: rows.csv, key: id, where: id < 4}",
    )
    assert cli("plan", job) == 0
    assert "piece makes about 4 rows of them" in cli.out
    assert cli.run(job)["rows_out"] == 4
    rows = read(library.folder / "out")
    assert [(row["id"], row["piece"], row["piece_start"]) for row in rows] == [
        (1, "First page.\n\n", 0),
        (1, "Second page.", 13),
        (2, "Words.", 0),
        (3, "One\n\nTwo", 0),
    ]


def test_a_limit_of_size_and_a_condition_hold(cli: Cli, library: Workspace, read: ReadTable) -> None:
    step = "{name: doc, read: file, largest: 200B, when: id <> 2}"
    report = cli.run(job_of(library, step, source="{csv: rows.csv, key: id, where: id < 4}"))
    assert report["rows_ok"] == 2
    assert [(row["id"], row["doc"]) for row in read(library.folder / "out")] == [(2, None), (3, "One\n\nTwo")]
    (error,) = read(library.folder / "out", "errors")
    size = (library.folder / "a.txt").stat().st_size
    assert error["message"] == f"file: a.txt: {size} bytes, the limit is 0.0002 MB"


def test_a_step_that_cannot_read_is_refused(cli: Cli, library: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("validate", job_of(library, "{name: doc, read: fil}")) == 2
    assert "steps.doc.read: no column fil; did you mean file?" in cli.err
    assert cli("validate", job_of(library, "{name: doc, read: id}")) == 2
    assert "steps.doc.read: column id contains int64; name a column of paths, URLs or bytes" in cli.err
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: None)
    assert cli("validate", job_of(library, READ)) == 2
    assert "steps.doc.read: needs the packages that read documents; pip install 'rowmill[documents]'" in cli.err


def test_changed_files_are_noticed_in_lists_and_under_other_names(
    cli: Cli, workspace: Workspace, read: ReadTable
) -> None:
    for name in ("a.txt", "b.txt"):
        (workspace.folder / name).write_text(f"text of {name}")
    workspace.write("rows.jsonl", '{"id": 1, "Files": ["a.txt", "b.txt"], "last": "c.txt"}\n')
    steps = ("{name: one, each: {list: ' files '}}", "{name: same, select: {path: '\"one\"'}}")
    job = job_of(workspace, *steps, "{name: doc, read: path}", source="{jsonl: rows.jsonl, key: id}")
    cli.run(job)
    (workspace.folder / "b.txt").write_text("another text")
    report = cli.run(job)
    assert (report["rows_ok"], [row["doc"] for row in read(workspace.folder / "out")]) == (
        1,
        ["text of a.txt", "another text"],
    )
    steps = (
        "{name: same, select: {path: last}}",
        "{name: named, select: {file: \"path || '.txt'\"}}",
        "{name: doc, read: path, pages: images}",
        # The pictures of pages never change under the same name.
        "{name: first, select: {page: 'doc_pages[1]'}}",
        "{name: again, read: page}",
        "{name: made, read: file}",
    )
    job = job_of(workspace, *steps, source="{jsonl: rows.jsonl, key: id}", sink="{parquet: other}")
    assert cli("validate", job) == 0
    assert [line.partition(": steps.")[2] for line in cli.err.splitlines()] == [
        "made: file is computed, so a file that changes under the same name is not read again; "
        "name the files in a column of the source",
        "doc: last names files that do not exist in 1 row, e.g. c.txt; add the files",
    ]
