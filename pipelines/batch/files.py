"""The files of batches: written line by line as requests arrive, kept until all are answered; and result files."""

import codecs
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct

from connectors.records import Reply
from connectors.transport.bounded_json import parse_json
from connectors.transport.token_usage import parse_count

UPLOAD_SUFFIX, BODIES_SUFFIX, RESULTS_SUFFIX = ".jsonl", ".requests", ".answers"
"""Of one batch: the file that is uploaded; the requests' own bodies, one line each, for the ledger; the results."""


class BatchFolder:
    """The folder with the files of a job's unfinished batches."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def upload_path(self, mark: str) -> Path:
        """Return the path of the file that is uploaded."""
        return self._folder / f"{mark}{UPLOAD_SUFFIX}"

    def results_path(self, mark: str) -> Path:
        """Return the path to which a result file is downloaded."""
        return self._folder / f"{mark}{RESULTS_SUFFIX}"

    def keep_only(self, marks: frozenset[str]) -> None:
        """Remove the files of all other batches: a run that died left them half written."""
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            if path.name.partition(".")[0] not in marks:
                path.unlink(missing_ok=True)

    def remove(self, mark: str) -> None:
        """Remove all files of one batch."""
        for suffix in (UPLOAD_SUFFIX, BODIES_SUFFIX, RESULTS_SUFFIX):
            (self._folder / f"{mark}{suffix}").unlink(missing_ok=True)

    def open_writer(self, mark: str, url: str) -> "BatchWriter":
        """Create the files of a new batch."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return BatchWriter(self.upload_path(mark), self._folder / f"{mark}{BODIES_SUFFIX}", mark, url)

    def request_bodies(self, mark: str) -> "RequestBodies":
        """Open the bodies of a batch's requests, as the ledger stores them."""
        return RequestBodies(self._folder / f"{mark}{BODIES_SUFFIX}")


class BatchWriter:
    """Writes the lines of one batch."""

    def __init__(self, upload: Path, bodies: Path, mark: str, url: str) -> None:
        self._upload = upload.open("wb")
        self._bodies = bodies.open("wb")
        self._mark = mark
        self._url = orjson.dumps(url)
        self.size = 0
        """Bytes of the file that is uploaded."""

    def add(self, place: int, body: bytes, bodies: Sequence[bytes]) -> None:
        """Write the line at a place, and the bodies of its requests."""
        name = orjson.dumps(f"{self._mark}-{place}")
        line = b'{"custom_id":%b,"method":"POST","url":%b,"body":%b}\n' % (name, self._url, body)
        self._upload.write(line)
        self.size += len(line)
        # One line of the second file for one of the first; JSON written by orjson has no line feed.
        self._bodies.write(b"[" + b",".join(bodies) + b"]\n")

    def close(self) -> None:
        """Close the files once everything is on the disk."""
        for file in (self._upload, self._bodies):
            if file.closed:
                continue
            file.flush()
            os.fsync(file.fileno())
            file.close()


class RequestBodies:
    """Random access to the bodies of a batch's requests; those of a file that is gone are empty."""

    def __init__(self, path: Path) -> None:
        self._starts = [0]
        self._file = path.open("rb") if path.exists() else None
        if self._file is not None:
            for line in self._file:
                self._starts.append(self._starts[-1] + len(line))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def of(self, place: int, count: int) -> Sequence[bytes]:
        """Return the bodies of one line's `count` requests."""
        if self._file is None or place + 1 >= len(self._starts):
            return [b""] * count
        self._file.seek(self._starts[place])
        line = self._file.read(self._starts[place + 1] - self._starts[place])
        if count == 1:
            return [line[1:-2]]
        return [orjson.dumps(body) for body in orjson.loads(line)]


class ResultLine(Struct, frozen=True):
    """One line of an output or error file: the reply to the request at `place`, or the reason why there is none."""

    place: int | None
    """None if the line cannot be attributed."""
    reply: Reply | None
    code: str | None = None
    message: str | None = None

    @property
    def is_readable(self) -> bool:
        """Whether it has a reply, or says why there is none."""
        return self.reply is not None or self.code is not None


def has_lines(path: Path, mark: str, count: int) -> bool:
    """Return whether a file has at least so many whole lines of the batch."""
    if not count:
        return True
    name = mark.encode()
    with path.open("rb") as file:
        return sum(name in line and line.rstrip().endswith(b"}") for line in file) >= count


def read_results(path: Path, mark: str) -> Iterator[ResultLine]:
    """Yield the lines of an output or error file, except those of other batches."""
    with path.open("rb") as file:
        for number, text in enumerate(file):
            if not (content := text.removeprefix(codecs.BOM_UTF8 if number == 0 else b"").strip()):
                continue
            try:
                line: Any = parse_json(content)
            except orjson.JSONDecodeError:
                yield ResultLine(None, None)
                continue
            name = line.get("custom_id") if isinstance(line, dict) else None
            if not isinstance(name, str) or not name.startswith(f"{mark}-") or not name[len(mark) + 1 :].isdigit():
                continue
            yield _parse_result(int(name[len(mark) + 1 :]), line)


def _parse_result(place: int, line: dict[str, Any]) -> ResultLine:
    response, error = line.get("response"), line.get("error")
    if isinstance(response, dict):
        # OpenAI has been seen to report a status of 0 if its own request got no answer.
        status = parse_count(response.get("status_code", response.get("status")))
        if status is not None and status >= 100:
            body = response.get("body")
            headers = {"x-request-id": str(response["request_id"])} if response.get("request_id") else {}
            content = body.encode() if isinstance(body, str) else orjson.dumps(body)
            return ResultLine(place, Reply(status, headers, content, 0.0))
        if status is not None:
            return ResultLine(place, None, "no_response", "no response came")
    if isinstance(error, dict) and error:
        code, message = error.get("code") or "no_response", error.get("message") or "no response came"
        return ResultLine(place, None, str(code), str(message))
    if isinstance(error, str) and error:
        return ResultLine(place, None, "no_response", error)
    return ResultLine(place, None)
