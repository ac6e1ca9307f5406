"""Answer files next to the ledger: one for a large answer, one for all answers of a large exchange."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from pipelines.ledger.ledger_file import Durability, write_atomically

LARGE_ANSWER_BYTES = 128 << 10
"""A larger answer is stored in a file; so are the answers of one exchange that are larger together."""

FINGERPRINT_BYTES = 16
"""Size of a fingerprint."""

SHARED_FILE_BYTES_SQL = "case when instr(file, '+') then cast(substr(file, instr(file, '+') + 1) as integer) end"
"""SQL for the bytes of a reply in a shared file; null for one in a separate file."""

_SEPARATE_FILE = re.compile(f"../([0-9a-f]{{{2 * FINGERPRINT_BYTES}}})")


class AnswerFiles:
    """The files of one ledger.

    A *place* is what the ledger records of an answer: the file name, with `:START+SIZE` in a shared file.
    SQLite would write large answers twice, to its log and to its file; here they are written once.
    A shared file begins with the number of its answers and their fingerprints, so that one can find out whether the
    ledger still needs any of them.
    """

    def __init__(self, folder: Path, durability: Durability = "process") -> None:
        self.folder = folder
        self._durability = durability

    def write(self, replies: Mapping[bytes, bytes], number: int | None = None) -> dict[bytes, str]:
        """Write the replies that are too large for the ledger; return fingerprint -> place. `number`: the id of the
        exchange in which they came together."""
        if number is not None and len(replies) > 1 and sum(map(len, replies.values())) > LARGE_ANSWER_BYTES:
            return self._write_shared(replies, f"{number & 255:02x}/{number:x}")
        return {
            fingerprint: self._write_separate(fingerprint, reply)
            for fingerprint, reply in replies.items()
            if len(reply) > LARGE_ANSWER_BYTES
        }

    def _write_separate(self, fingerprint: bytes, reply: bytes) -> str:
        name = f"{fingerprint.hex()[:2]}/{fingerprint.hex()}"
        write_atomically(self.folder / name, reply, self._durability)
        return name

    def _write_shared(self, replies: Mapping[bytes, bytes], name: str) -> dict[bytes, str]:
        places: dict[bytes, str] = {}
        start = 4 + FINGERPRINT_BYTES * len(replies)
        for fingerprint, reply in replies.items():
            places[fingerprint] = f"{name}:{start}+{len(reply)}"
            start += len(reply)
        write_atomically(
            self.folder / name,
            b"".join((len(replies).to_bytes(4, "little"), *replies, *replies.values())),
            self._durability,
        )
        return places

    def read(self, places: Mapping[bytes, str]) -> dict[bytes, bytes]:
        """Return fingerprint -> reply for the places that exist completely."""
        replies: dict[bytes, bytes] = {}
        by_name: dict[str, list[tuple[bytes, str]]] = {}
        for fingerprint, place in places.items():
            name, _, span = place.partition(":")
            by_name.setdefault(name, []).append((fingerprint, span))
        for name, wanted in by_name.items():
            try:
                with (self.folder / name).open("rb") as file:
                    replies.update(_read(file, wanted))
            except FileNotFoundError:
                continue
        return replies

    def fingerprints(self, name: str) -> Sequence[bytes]:
        """Return the fingerprints of the answers in a file; none if it is missing or not an answer file."""
        if separate := _SEPARATE_FILE.fullmatch(name):
            return (bytes.fromhex(separate[1]),)
        try:
            with (self.folder / name).open("rb") as file:
                count = int.from_bytes(file.read(4), "little")
                # An unfinished file may begin with anything.
                is_complete = 4 + FINGERPRINT_BYTES * count <= os.fstat(file.fileno()).st_size
                head = file.read(FINGERPRINT_BYTES * count) if is_complete else b""
        except FileNotFoundError:
            return ()
        return [head[start : start + FINGERPRINT_BYTES] for start in range(0, len(head), FINGERPRINT_BYTES)]

    def names(self) -> Iterator[tuple[str, int]]:
        """Yield (name, bytes) of each file."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                name = path.relative_to(self.folder).as_posix()
                yield name, self.size(name)

    def size(self, place: str) -> int:
        """Return the bytes of the reply at this place; 0 if its file is missing."""
        name, _, span = place.partition(":")
        if span:
            return int(span.partition("+")[2])
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return 0

    def remove(self, name: str) -> None:
        """Delete a file if it exists."""
        (self.folder / name).unlink(missing_ok=True)


def file_name(place: str) -> str:
    """Return the file name of a place."""
    return place.partition(":")[0]


def _read(file: BinaryIO, wanted: Sequence[tuple[bytes, str]]) -> Iterator[tuple[bytes, bytes]]:
    for fingerprint, span in wanted:
        if not span:
            yield fingerprint, file.read()
            continue
        start, size = map(int, span.split("+"))
        file.seek(start)
        reply = file.read(size)
        # After a power loss it may be shorter than it was.
        if len(reply) == size:
            yield fingerprint, reply
