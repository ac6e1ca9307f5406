"""Output that nobody reads, or that cannot be written, ends no command."""

import errno
import io
import os
import threading
from pathlib import Path

import pytest

from pipelines.runtime.standard_streams import OutputFile


def stream(descriptor: int) -> tuple[io.TextIOWrapper, OutputFile]:
    file = OutputFile(descriptor)
    return io.TextIOWrapper(io.BufferedWriter(file), line_buffering=True), file


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    out, file = stream(writing)
    print("first", file=out)
    assert os.read(reading, 100) == b"first\n"
    os.close(reading)
    for _ in range(3):
        print("unread", file=out)
    assert file.error is None
    os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_recorded_once_and_later_output_is_discarded() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    out, file = stream(full)
    for _ in range(3):
        print("lost", file=out)
    assert file.error is not None
    assert file.error.errno == errno.ENOSPC
    os.close(full)


def test_a_pipe_that_another_process_made_non_blocking_gets_every_byte() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    out, file = stream(writing)
    received: list[bytes] = []

    def read() -> None:
        while block := os.read(reading, 1 << 16):
            received.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    out.write("x" * 1_000_000)
    out.flush()
    os.close(writing)
    reader.join()
    os.close(reading)
    assert (len(b"".join(received)), file.error) == (1_000_000, None)
