"""Result files: every form of a line, and lines that are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.batch.files import ResultLine, has_lines, read_results


def answer(place: int, **changes: Any) -> dict[str, Any]:
    response = {"status_code": 200, "request_id": "r", "body": {"n": place}}
    return {"custom_id": f"mark-{place}", "response": response, "error": None, **changes}


def results(path: Path, content: bytes) -> list[tuple[int | None, bytes | None, str | None]]:
    path.write_bytes(content)
    found = read_results(path, "mark")
    return [(line.place, None if line.reply is None else line.reply.body, line.code) for line in found]


@pytest.mark.parametrize(
    "form",
    [
        lambda text: text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.rstrip(b"\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\n\n"),
        lambda text: text.replace(b": 200", b': "200"'),
    ],
    ids=["usual", "CRLF", "no last line feed", "byte order mark", "empty lines", "status as text"],
)
def test_every_form_of_a_file_is_read(tmp_path: Path, form: Any) -> None:
    content = form(b"".join(json.dumps(answer(place)).encode() + b"\n" for place in range(2)))
    assert results(tmp_path / "f", content) == [(0, b'{"n":0}', None), (1, b'{"n":1}', None)]


def test_lines_of_other_batches_are_left_out_and_unreadable_ones_shown(tmp_path: Path) -> None:
    lines = [
        {"custom_id": "request-1", "response": None},
        {"custom_id": "mark-x", "response": None},
        ["no object"],
        answer(0),
        answer(1, response=None, error={"code": "c", "message": "m"}),
        answer(2, response={"status_code": 0}),
        answer(3, response=None),
        answer(4, response={"body": {}}),
        answer(5, response=None, error="words"),
    ]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines) + json.dumps(answer(6)).encode()[:-9]
    assert results(tmp_path / "f", content) == [
        (0, b'{"n":0}', None),
        (1, None, "c"),
        (2, None, "no_response"),
        (3, None, None),
        (4, None, None),
        (5, None, "no_response"),
        (None, None, None),
    ]
    assert [ResultLine(3, None).is_readable, ResultLine(1, None, "c").is_readable] == [False, True]


def test_a_file_is_complete_if_it_has_as_many_whole_lines_as_the_provider_counts(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"".join(json.dumps(answer(place)).encode() + b"\n" for place in range(3))[:-5])
    assert [has_lines(path, "mark", count) for count in range(4)] == [True, True, True, False]
