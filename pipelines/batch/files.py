"""Files of batches: written line by line as requests come, kept until all is answered; and output files read."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from connectors.records import Reply

SENT, ASKED, CAME = ".jsonl", ".requests", ".answers"
"""Of one batch: what is uploaded; each request's own body, one a line, for the ledger; what is downloaded."""


class BatchFolder:
    """The folder in which a job's batches lie while they are under way."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sent(self, mark: str) -> Path:
        """What is uploaded."""
        return self._folder / f"{mark}{SENT}"

    def came(self, mark: str) -> Path:
        """Where an output file is put to be read."""
        return self._folder / f"{mark}{CAME}"

    def keep_only(self, marks: frozenset[str]) -> None:
        """Remove what was never noted in the ledger: a run that died left it half written."""
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            if path.name.partition(".")[0] not in marks:
                path.unlink(missing_ok=True)

    def remove(self, mark: str) -> None:
        """All files of one batch."""
        for suffix in (SENT, ASKED, CAME):
            (self._folder / f"{mark}{suffix}").unlink(missing_ok=True)

    def writing(self, mark: str, url: str) -> "BatchWriter":
        """A new batch's files."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return BatchWriter(self.sent(mark), self._folder / f"{mark}{ASKED}", mark, url)

    def bodies(self, mark: str) -> "Bodies":
        """Each request's own body, as it is kept in the ledger."""
        return Bodies(self._folder / f"{mark}{ASKED}")


class BatchWriter:
    """Writes the lines of one batch."""

    def __init__(self, sent: Path, asked: Path, mark: str, url: str) -> None:
        self._sent = sent.open("wb")
        self._asked = asked.open("wb")
        self._mark = mark
        self._url = orjson.dumps(url)
        self.size = 0
        """Bytes of what is uploaded."""

    def add(self, place: int, body: bytes, bodies: Sequence[bytes]) -> None:
        """Write the line for a place, and the bodies of the requests that it asks."""
        name = orjson.dumps(f"{self._mark}-{place}")
        line = b'{"custom_id":%b,"method":"POST","url":%b,"body":%b}\n' % (name, self._url, body)
        self._sent.write(line)
        self.size += len(line)
        # One line of the second file for one of the first; JSON written by orjson has no line feed.
        self._asked.write(b"[" + b",".join(bodies) + b"]\n")

    def close(self) -> None:
        """All is on the disk when this returns."""
        for file in (self._sent, self._asked):
            if file.closed:
                continue
            file.flush()
            os.fsync(file.fileno())
            file.close()


class Bodies:
    """Random access to the bodies of a batch's requests; what is gone is empty."""

    def __init__(self, path: Path) -> None:
        self._starts = [0]
        self._file = path.open("rb") if path.exists() else None
        if self._file is not None:
            for line in self._file:
                self._starts.append(self._starts[-1] + len(line))

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def of(self, place: int, count: int) -> Sequence[bytes]:
        """The bodies of one line's `count` requests."""
        if self._file is None or place + 1 >= len(self._starts):
            return [b""] * count
        self._file.seek(self._starts[place])
        line = self._file.read(self._starts[place + 1] - self._starts[place])
        if count == 1:
            return [line[1:-2]]
        return [orjson.dumps(body) for body in orjson.loads(line)]


@dataclass(frozen=True, slots=True)
class Came:
    """One line of an output or error file: a reply to the request at `place`, or the code why there is none."""

    place: int
    reply: Reply | None
    code: str | None = None
    message: str | None = None


def read_answers(path: Path, mark: str) -> Iterator[Came]:
    """The lines of an output or error file that belong to the batch; what is no such line is passed over."""
    with path.open("rb") as file:
        for text in file:
            try:
                line: Any = orjson.loads(text)
            except orjson.JSONDecodeError:
                continue
            name = line.get("custom_id") if isinstance(line, dict) else None
            if not isinstance(name, str) or not name.startswith(f"{mark}-") or not name[len(mark) + 1 :].isdigit():
                continue
            yield _came(int(name[len(mark) + 1 :]), line)


def _came(place: int, line: dict[str, Any]) -> Came:
    response = line.get("response")
    # OpenAI has been seen to tell a status of 0 where its own request got no answer.
    if isinstance(response, dict) and isinstance(status := response.get("status_code"), int) and status >= 100:
        body = response.get("body")
        headers = {"x-request-id": str(response["request_id"])} if response.get("request_id") else {}
        content = body.encode() if isinstance(body, str) else orjson.dumps(body)
        return Came(place, Reply(status, headers, content, 0.0))
    error = line.get("error")
    error = error if isinstance(error, dict) else {}
    return Came(place, None, str(error.get("code") or "no_response"), str(error.get("message") or "no response came"))
