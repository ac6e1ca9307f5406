"""What every endpoint of the registry promises: recorded replies into exactly the declared columns, purely."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest

from connectors.contracts import MalformedReply
from connectors.records import Reply, RowError
from connectors.registry import ENDPOINTS
from tests.behaviour.api.cases import CASES, Case, answer_of, asked, built, fingerprints, reply_of
from tests.behaviour.api.conftest import step_of
from tests.behaviour.api.parameters import GROUPS
from tests.behaviour.api.recorder import REPLIES, ROOT

each = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def test_every_endpoint_has_recorded_replies_and_every_recorded_reply_a_case() -> None:
    assert {case.step["endpoint"] for case in CASES} == ENDPOINTS.keys()
    assert {group.step["endpoint"] for group in GROUPS.values()} == ENDPOINTS.keys()
    kept = {path.name for path in REPLIES.iterdir()} - {"sources.txt"}
    # Errors are read by another test of this folder.
    assert {case.reply for case in CASES if "/" not in case.reply} == {
        name for name in kept if not name.startswith("reference-error-")
    }


def test_the_source_of_every_recorded_reply_is_told() -> None:
    told = (REPLIES / "sources.txt").read_text()
    for case in CASES:
        assert case.reply in told, case.reply


@each
def test_a_recorded_reply_becomes_exactly_the_declared_columns(case: Case) -> None:
    endpoint, _, answer = answer_of(case)
    assert {field.name: str(field.type) for field in endpoint.fields} == dict(case.columns)
    assert all(field.nullable for field in endpoint.fields)
    values = endpoint.values(answer)
    assert isinstance(values, tuple), values
    assert len(values) == len(endpoint.fields)
    for rows in ([values], [None, values, None], [None], []):
        arrays = endpoint.arrays(rows)
        assert [array.type for array in arrays] == [field.type for field in endpoint.fields]
        for array in arrays:
            array.validate(full=True)
            assert len(array) == len(rows)
            assert all(array[place].as_py() is None for place, row in enumerate(rows) if row is None)
    first = endpoint.arrays([values])[0][0].as_py()
    assert json.dumps(first, ensure_ascii=False).startswith(case.begins)


@each
def test_values_are_pure_an_endpoint_built_anew_reads_the_kept_answer_alike(case: Case) -> None:
    endpoint, _, answer = answer_of(case)
    again = built(case.step)
    kept = bytes(bytearray(answer))
    first = [array.to_pylist() for array in endpoint.arrays([endpoint.values(answer)])]  # type: ignore[list-item]
    assert [array.to_pylist() for array in again.arrays([again.values(kept)])] == first  # type: ignore[list-item]
    assert kept == answer
    assert again.config_bytes() == endpoint.config_bytes()


@each
def test_usage_is_what_the_reply_tells_in_whole_numbers(case: Case) -> None:
    endpoint, request, _ = answer_of(case)
    used = endpoint.usage([request], reply_of(case))
    told = {name: value for name in used.__dataclass_fields__ if (value := getattr(used, name)) is not None}
    assert told == case.usage
    kinds = {"audio_seconds": float, "model_version": str, "finish_reason": str}
    assert all(type(value) is kinds.get(name, int) for name, value in told.items())


@each
def test_files_are_those_that_values_names_and_links_are_gone_once_followed(case: Case) -> None:
    endpoint, _, answer = answer_of(case)
    values = endpoint.values(answer)
    assert isinstance(values, tuple)
    assert endpoint.expiring_urls(answer) == type(endpoint.expiring_urls(answer))()
    files = endpoint.files(answer)
    named = values[0] if isinstance(values[0], list) else [values[0]]
    if files:
        assert [f"files/{name}" for name, _ in files] == named
        assert all(PurePosixPath(name).name == name and content for name, content in files)
    else:
        assert not case.begins.startswith(('"files/', '["files/'))


RUBBISH = (b"", b"null", b"[]", b"{", b"{}", b'{"error": null}', b"data: {", b"data: {}\n\n", b"\xff\xfe", b"<html>")


@each
def test_rubbish_is_a_malformed_reply_and_nothing_else(case: Case) -> None:
    endpoint, request, _ = answer_of(case)
    for rubbish in RUBBISH:
        with pytest.raises(MalformedReply):
            endpoint.answers([request], Reply(200, reply_of(case).headers, rubbish, 1.0))


@each
def test_a_reply_that_is_cut_off_or_spoilt_anywhere_never_breaks_the_reading(case: Case) -> None:
    endpoint, request, _ = answer_of(case)
    whole = reply_of(case)
    for spoilt in spoilt_bodies(whole.body):
        reply = Reply(200, whole.headers, spoilt, 1.0)
        try:
            answers = endpoint.answers([request], reply)
            endpoint.usage([request], reply)
        except MalformedReply:
            continue
        assert len(answers) == 1
        if isinstance(answers[0], bytes):
            values = endpoint.values(answers[0])
            if not isinstance(values, RowError):
                arrays = endpoint.arrays([values])
                assert [array.type for array in arrays] == [field.type for field in endpoint.fields]


def spoilt_bodies(body: bytes) -> Iterator[bytes]:
    """The body cut at a few places, and with each of its values in turn replaced by one of another kind."""
    for part in range(1, 8):
        yield body[: len(body) * part // 8]
    pieces = body.split(b"data: ") if b"data: " in body else [body]
    for place, piece in enumerate(pieces):
        # Of a stream the rest is the name of the next event.
        event, gap, rest = piece.partition(b"\n\n") if len(pieces) > 1 else (piece, b"", b"")
        try:
            told = json.loads(event)
        except ValueError:
            continue
        for path in paths(told):
            for other in (None, True, -1.5, "text", [], {}, [None], [[1]], {"a": 1}):
                spoilt = json.dumps(replaced(told, path, other)).encode() + gap + rest
                yield b"data: ".join([*pieces[:place], spoilt, *pieces[place + 1 :]])


def paths(told: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values stand in parsed JSON; of a list, the first two."""
    keys = told if isinstance(told, dict) else range(min(len(told), 2)) if isinstance(told, list) else ()
    for key in keys:
        yield (*before, key)
        yield from paths(told[key], (*before, key))


def replaced(told: Any, path: tuple[Any, ...], other: Any) -> Any:
    """A copy with another value at a place."""
    if not path:
        return other
    copy = dict(told) if isinstance(told, dict) else list(told)
    copy[path[0]] = replaced(told[path[0]], path[1:], other)
    return copy


@each
def test_an_error_in_a_200_is_told_in_the_providers_words(case: Case) -> None:
    endpoint, request, _ = answer_of(case)
    body = b'{"error": {"message": "This is not allowed.", "type": "invalid_request_error", "param": "p", "code": "c"}}'
    reply = Reply(200, {"content-type": "application/json", "x-request-id": "r-1"}, body, 1.0)
    try:
        (problem,) = endpoint.answers([request], reply)
    except MalformedReply as exc:
        assert exc.error is not None
        problem = exc.error
    assert problem == RowError(
        "bad_request", "This is not allowed.", 200, "invalid_request_error", "p", "c", None, "r-1"
    )


def test_fingerprints_and_declarations_are_the_same_in_another_process() -> None:
    command = [sys.executable, "-m", "tests.behaviour.api.cases"]
    made = subprocess.run(
        command, cwd=ROOT, env={"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}, capture_output=True, check=True
    )
    assert json.loads(made.stdout) == fingerprints()


@pytest.mark.parametrize("group", GROUPS)
def test_a_fingerprint_is_its_requests_and_a_changed_request_changes_the_declaration(group: str) -> None:
    bodies: dict[bytes, bytes] = {}
    plain = built({**GROUPS[group].step, "provider": "p"})
    for place, row in enumerate(GROUPS[group].rows):
        endpoint = built({**step_of(group, place), "provider": "p", "name": "it"})
        request = asked(endpoint)
        assert bodies.setdefault(request.fingerprint, request.body) == request.body
        assert request.fingerprint == asked(endpoint).fingerprint
        if request.body != asked(plain).body and not row.says.startswith("stream: true"):
            assert endpoint.config_bytes() != plain.config_bytes(), row
    assert len(set(bodies.values())) == len(bodies)


@pytest.mark.parametrize("group", GROUPS)
def test_a_fingerprint_is_of_its_provider_and_with_reuse_false_of_its_row(group: str) -> None:
    step = GROUPS[group].step
    shared, own = built(step), built({**step, "reuse": False})
    assert asked(shared, "1").fingerprint == asked(shared, "2").fingerprint
    assert asked(own, "1").fingerprint != asked(own, "2").fingerprint
    assert asked(own, "1").body == asked(own, "2").body
