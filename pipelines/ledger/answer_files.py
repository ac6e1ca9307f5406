"""Answers that lie in files beside the ledger: a large one in its own, those of one exchange together in one."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from pipelines.ledger.ledger_file import write_atomically

LARGE_ANSWER_BYTES = 128 << 10
"""Bytes: a larger answer lies in a file; so do the answers of one exchange that take more together."""

FINGERPRINT_BYTES = 16
"""Of a fingerprint."""

SHARED_FILE_BYTES_SQL = "case when instr(file, '+') then cast(substr(file, instr(file, '+') + 1) as integer) end"
"""SQL: bytes of a reply that lies with others in a file; null for one in its own."""


_ALONE = re.compile(f"../([0-9a-f]{{{2 * FINGERPRINT_BYTES}}})")


class AnswerFiles:
    """The files of one ledger.

    A *place* is what the ledger notes of an answer: the file's name, with `:START+SIZE` where others lie there too.
    SQLite would write them twice, into its log and from there into its file; here they are written once.
    Such a file begins with the number of its answers and their fingerprints: so the ledger can tell whether one of
    them is still kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, replies: Mapping[bytes, bytes], number: int | None = None) -> dict[bytes, str]:
        """The places of those replies, by fingerprint, that are too large for the ledger itself. `number`: they came
        together in the exchange of this number."""
        if number is not None and len(replies) > 1 and sum(map(len, replies.values())) > LARGE_ANSWER_BYTES:
            return self._together(replies, f"{number & 255:02x}/{number:x}")
        return {mark: self._alone(mark, reply) for mark, reply in replies.items() if len(reply) > LARGE_ANSWER_BYTES}

    def _alone(self, mark: bytes, reply: bytes) -> str:
        name = f"{mark.hex()[:2]}/{mark.hex()}"
        write_atomically(self.folder / name, reply)
        return name

    def _together(self, replies: Mapping[bytes, bytes], name: str) -> dict[bytes, str]:
        places: dict[bytes, str] = {}
        start = 4 + FINGERPRINT_BYTES * len(replies)
        for mark, reply in replies.items():
            places[mark] = f"{name}:{start}+{len(reply)}"
            start += len(reply)
        write_atomically(self.folder / name, b"".join((len(replies).to_bytes(4, "little"), *replies, *replies.values())))
        return places

    def read(self, places: Mapping[bytes, str]) -> dict[bytes, bytes]:
        """The replies at these places, by fingerprint; those that are not there whole are left out."""
        found: dict[bytes, bytes] = {}
        by_name: dict[str, list[tuple[bytes, str]]] = {}
        for mark, place in places.items():
            name, _, span = place.partition(":")
            by_name.setdefault(name, []).append((mark, span))
        for name, wanted in by_name.items():
            try:
                with (self.folder / name).open("rb") as file:
                    found.update(_read(file, wanted))
            except FileNotFoundError:
                continue
        return found

    def fingerprints(self, name: str) -> Sequence[bytes]:
        """The fingerprints of the answers with which a file was written; none where it is gone, or no such file."""
        if alone := _ALONE.fullmatch(name):
            return (bytes.fromhex(alone[1]),)
        try:
            with (self.folder / name).open("rb") as file:
                count = int.from_bytes(file.read(4), "little")
                # Unfinished, it may begin with anything.
                whole = 4 + FINGERPRINT_BYTES * count <= os.fstat(file.fileno()).st_size
                head = file.read(FINGERPRINT_BYTES * count) if whole else b""
        except FileNotFoundError:
            return ()
        return [head[start : start + FINGERPRINT_BYTES] for start in range(0, len(head), FINGERPRINT_BYTES)]

    def names(self) -> Iterator[tuple[str, int]]:
        """(name, bytes) of each file."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                name = path.relative_to(self.folder).as_posix()
                yield name, self.size(name)

    def size(self, place: str) -> int:
        """Bytes of the reply at this place; 0 where its file is gone."""
        name, _, span = place.partition(":")
        if span:
            return int(span.partition("+")[2])
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return 0

    def remove(self, name: str) -> None:
        """Let go of a file."""
        (self.folder / name).unlink(missing_ok=True)


def file_name(place: str) -> str:
    """The name of the file of a place."""
    return place.partition(":")[0]


def _read(file: BinaryIO, wanted: Sequence[tuple[bytes, str]]) -> Iterator[tuple[bytes, bytes]]:
    for mark, span in wanted:
        if not span:
            yield mark, file.read()
            continue
        start, size = map(int, span.split("+"))
        file.seek(start)
        reply = file.read(size)
        # After a loss of power it may be shorter than it was.
        if len(reply) == size:
            yield mark, reply
