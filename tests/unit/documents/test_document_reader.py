"""The reader of documents: hostile files fail alone, and its processes end with their parent."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image

from connectors.documents.document import Document
from connectors.documents.document_reader import DocumentReader, ReaderUnavailable, ReadLimits
from connectors.documents.office_package import MAX_UNPACKED_BYTES
from connectors.media.document_types import DocumentError
from tests.support.documents import DOCX_PARTS, docx, pdf, zipped

LIMITS = ReadLimits(seconds=20, memory_bytes=400 << 20, workers=1)


async def read(reader: DocumentReader, content: bytes, pictures: Path | None = None) -> Document:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return await reader.read(file, pictures)


def entities() -> bytes:
    lines = (f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    return docx("<w:p><w:r><w:t>&e9;</w:t></w:r></w:p>", f'<!DOCTYPE x [<!ENTITY e0 "lol">{"".join(lines)}]>')


def outside_entity() -> bytes:
    prolog = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    return docx("<w:p><w:r><w:t>&e;</w:t></w:r></w:p>", prolog)


def unpacks_to_a_gigabyte() -> bytes:
    content = bytearray(zipped({**DOCX_PARTS, "word/document.xml": "<d/>"}))
    size = content.rindex(b"PK\x01\x02") + 24
    content[size : size + 4] = (MAX_UNPACKED_BYTES + 1).to_bytes(4, "little")
    return bytes(content)


def memory_bomb() -> bytes:
    return docx("<w:p/>" * 4_000_000)


def far_cell() -> bytes:
    from openpyxl import Workbook

    book = Workbook()
    book.active["A1"] = book.active["XFD1048576"] = 1
    with io.BytesIO() as file:
        book.save(file)
        return file.getvalue()


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "entities that expand a thousand million times": (entities, "is not valid XML"),
    "100,000 nested elements": (lambda: b"<html>" + b"<div>" * 100_000, "elements in more than 2,048 others"),
    "an archive that unpacks to a gigabyte": (unpacks_to_a_gigabyte, "unpacks to 1.0 GB"),
    "more elements than the memory takes": (memory_bomb, "needs too much memory"),
    "a cell in the last row and column": (far_cell, "breaks its reader \\(SIGABRT\\)"),
    "a PDF that claims to have itself as its page": (
        lambda: pdf(["x"]).replace(b"/Kids[4 0 R]", b"/Kids[2 0 R]"),
        "is broken: page 1 cannot be opened",
    ),
}


async def test_hostile_files_fail_alone_and_the_next_document_is_read(tmp_path: Path) -> None:
    found: dict[str, str] = {}
    async with DocumentReader(LIMITS) as reader:
        for name, (content, _) in HOSTILE.items():
            with pytest.raises(DocumentError) as failure:
                await read(reader, content())
            found[name] = str(failure.value)
            assert (await read(reader, b"plain")).text == "plain", name
    wrong = {name: text for name, text in found.items() if not re.search(HOSTILE[name][1], text)}
    assert wrong == {}


async def test_no_entity_reads_another_file(tmp_path: Path) -> None:
    async with DocumentReader(LIMITS) as reader:
        assert (await read(reader, outside_entity())).text == ""


async def test_a_document_of_10_000_pages_is_read(tmp_path: Path) -> None:
    pages = [f"Page {number}" for number in range(10_000)]
    async with DocumentReader(LIMITS) as reader:
        assert list((await read(reader, pdf(pages))).pages) == pages


async def test_reading_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    async with DocumentReader(ReadLimits(seconds=2, workers=1)) as reader:
        with pytest.raises(DocumentError, match="is not read after 2 seconds; split it"):
            await read(reader, pdf(["x"] * 5000), tmp_path)
        assert (await read(reader, pdf(["next"]))).pages == ("next",)


async def test_a_document_has_longer_on_a_busy_machine_but_not_for_ever() -> None:
    async with DocumentReader(ReadLimits(seconds=20, wait_seconds=1, workers=1)) as reader:
        await read(reader, b"the process has started")
        (process,) = psutil.Process().children()
        process.suspend()
        with pytest.raises(DocumentError, match="is not read after 1 seconds; split it"):
            await read(reader, b"text")
        assert (await read(reader, b"next")).pages == ("next",)


async def test_pages_become_pictures_of_150_dots_per_inch_and_huge_ones_fewer(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    async with DocumentReader() as reader:
        small = await read(reader, pdf(["a", "b", "a"]), folder)
        huge = await read(reader, pdf(["a"], 14_400, 14_400), folder)
        with pytest.raises(DocumentError, match="is text/plain; only a PDF has pages as images"):
            await read(reader, b"text", folder)

    def size(name: str) -> tuple[int, int]:
        with Image.open(folder / name) as picture:
            return picture.size

    assert (small.text, small.media_type, len(set(small.pictures or ()))) == ("a\n\nb\n\na", "application/pdf", 2)
    assert [size(name) for name in ((small.pictures or ())[0], *(huge.pictures or ()))] == [(1275, 1650), (5000, 5000)]


async def test_several_documents_are_read_at_the_same_time_by_as_many_processes(tmp_path: Path) -> None:
    async with DocumentReader(ReadLimits(workers=2)) as reader:
        documents = await asyncio.gather(*(read(reader, pdf([f"file {number}"])) for number in range(20)))
        processes = psutil.Process().children()
        assert 1 <= len(processes) <= 2
    assert [document.text for document in documents] == [f"file {number}" for number in range(20)]
    assert psutil.wait_procs(processes, timeout=10)[1] == []


async def test_closing_ends_what_is_read_without_an_error_of_the_document(tmp_path: Path) -> None:
    reader = DocumentReader(ReadLimits(workers=1))
    await read(reader, b"the process has started")
    reading = asyncio.ensure_future(read(reader, pdf(["x"] * 5000), tmp_path))
    await asyncio.sleep(0)
    await reader.close()
    with pytest.raises(ReaderUnavailable, match="was not read: the run has ended"):
        await reading


PARENT = """
import asyncio, io, sys
from connectors.documents.document_reader import DocumentReader
async def main():
    async with DocumentReader() as reader:
        await reader.read(open(sys.argv[1], "rb"))
        busy = asyncio.ensure_future(reader.read(open(sys.argv[2], "rb"), sys.argv[3]))
        await asyncio.sleep(0)
        print("reading", flush=True)
        await busy
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a busy process ends by its time limit")
def test_the_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "first.txt").write_text("text")
    (tmp_path / "second.pdf").write_bytes(pdf(["x"] * 5000))
    arguments = [str(tmp_path / "first.txt"), str(tmp_path / "second.pdf"), str(tmp_path)]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"reading\n"
    workers = psutil.Process(parent.pid).children()
    assert workers
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert psutil.wait_procs(workers, timeout=10)[1] == []
