"""Every parameter of a job file is in the bytes sent, and the bytes fit the official description."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.behaviour.api.conftest import KEY, Sent
from tests.behaviour.api.parameters import GROUPS, LEFT_OUT, LISTED, names_of
from tests.behaviour.api.recorder import Recorded
from tests.behaviour.api.row import P, files
from tests.behaviour.api.wire import Upload, at, check, check_form, fields_of, properties

ROWS = [
    pytest.param(group, place, id=f"{group}-{row.section}-{row.name}")
    for group, table in GROUPS.items()
    for place, row in enumerate(table.rows)
]


@pytest.mark.parametrize(("group", "place"), ROWS)
def test_a_parameter_is_at_its_documented_path_in_a_body_that_fits_its_schema(
    sent: Sent, group: str, place: int
) -> None:
    table = GROUPS[group]
    row = table.rows[place]
    request = sent(group, place)
    assert (request.method, request.path) == ("POST", table.path)
    assert request.headers["authorization"] == f"Bearer {KEY}"  # Section 13.1.
    (in_a_form if table.files else in_json)(request, table.schema, row, table.files)


def in_json(request: Recorded, schema: str, row: P, files: frozenset[str]) -> None:
    assert request.headers["content-type"] == "application/json"
    body = json.loads(request.body)
    found = at(body, row.place)
    assert (found, type(found)) == (row.sent, type(row.sent))
    check(schema, body)


def in_a_form(request: Recorded, schema: str, row: P, files: frozenset[str]) -> None:
    form = fields_of(request.headers["content-type"], request.body)
    for name in files & form.keys():
        some = form[name] if isinstance(form[name], list) else [form[name]]
        assert all(isinstance(file, Upload) for file in some), f"{name} is no file"
    found = form[row.place]
    assert is_files(found, row.sent) if row.place in files else found == row.sent, found
    check_form(schema, form)


TYPES = {
    "png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "mask": "image/png", "mp3": "audio/mpeg",
    "mpga": "audio/mpeg", "mpeg": "video/mpeg", "mp4": "audio/mp4", "m4a": "audio/mp4", "wav": "audio/wav",
    "webm": "audio/webm", "flac": "audio/flac", "ogg": "audio/ogg",
}  # fmt: skip


def is_files(found: Any, columns: Any) -> bool:
    """Whether an Upload, or a list of them, has the content of the columns, with name and type to match."""
    several = isinstance(columns, list)
    assert several == isinstance(found, list)
    names, uploads = (columns, found) if several else ([columns], [found])
    ends = [name if name != "mask" else "png" for name in names]
    return [(upload.content, upload.name.rpartition(".")[2], upload.kind) for upload in uploads] == [
        (files()[name], end, TYPES[name]) for name, end in zip(names, ends, strict=True)
    ]


@pytest.mark.parametrize("group", LISTED)
def test_the_table_has_every_parameter_that_the_reference_lists(group: str) -> None:
    shown: dict[str, frozenset[str]] = {}
    for row in GROUPS[group].rows:
        shown[row.section] = shown.get(row.section, frozenset()) | names_of(row)
    for section in LISTED[group]:
        missing = set(section.names.split(", ")) - shown.get(section.number, frozenset())
        assert not missing, f"section {section.number}: no row for {missing}"


@pytest.mark.parametrize("schema", sorted({table.schema for table in GROUPS.values()}))
def test_the_table_has_every_key_of_the_request_schemas_or_says_why_not(schema: str) -> None:
    shown = {row.place.partition(".")[0] for table in GROUPS.values() if table.schema == schema for row in table.rows}
    assert shown | LEFT_OUT.get(schema, frozenset()) == properties(schema).keys()


@pytest.mark.parametrize(
    ("check_it", "schema", "spoilt"),
    [
        (check, "CreateChatCompletionRequest", {"model": "m"}),
        (check, "CreateChatCompletionRequest", {"model": "m", "messages": [{"role": "user"}]}),
        (check, "CreateChatCompletionRequest", {"model": "m", "messages": [{"role": "user", "content": 1}]}),
        (check, "CreateEmbeddingRequest", {"model": "m", "input": "x", "unknown": 1}),
        (check, "reference", {"model": "m", "messages": [{"role": "user", "content": "x", "extra": 1}]}),
        (check_form, "CreateImageVariationRequest", {"image": Upload("a.png", "image/png", b"x"), "n": "eleven"}),
    ],
)
def test_the_schemas_reject_invalid_bodies(check_it: Callable[..., None], schema: str, spoilt: Any) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_it(schema, spoilt)
