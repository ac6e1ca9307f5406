"""The contract of every endpoint: recorded replies become exactly the declared columns, by pure functions."""

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
from tests.behaviour.api.cases import CASES, Case, answer_of, built, fingerprints, reply_of, request_of
from tests.behaviour.api.conftest import step_of
from tests.behaviour.api.parameters import GROUPS
from tests.behaviour.api.recorder import REPLIES, ROOT

each = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def test_every_endpoint_has_recorded_replies_and_every_recorded_reply_a_case() -> None:
    assert {case.step["endpoint"] for case in CASES} == ENDPOINTS.keys()
    assert {group.step["endpoint"] for group in GROUPS.values()} == ENDPOINTS.keys()
    recorded = {path.name for path in REPLIES.iterdir()} - {"sources.txt"}
    # test_errors.py covers errors.
    assert {case.reply for case in CASES if "/" not in case.reply} == {
        name for name in recorded if not name.startswith("reference-error-")
    }


def test_the_source_of_every_recorded_reply_is_documented() -> None:
    sources = (REPLIES / "sources.txt").read_text()
    for case in CASES:
        assert case.reply in sources, case.reply


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
def test_values_are_pure_a_new_endpoint_reads_the_stored_answer_equally(case: Case) -> None:
    endpoint, _, answer = answer_of(case)
    again = built(case.step)
    stored = bytes(bytearray(answer))
    first = [array.to_pylist() for array in endpoint.arrays([endpoint.values(answer)])]  # type: ignore[list-item]
    assert [array.to_pylist() for array in again.arrays([again.values(stored)])] == first  # type: ignore[list-item]
    assert stored == answer
    assert again.config_bytes() == endpoint.config_bytes()


@each
def test_usage_is_that_of_the_reply_in_integers(case: Case) -> None:
    endpoint, request, _ = answer_of(case)
    used = endpoint.usage([request], reply_of(case))
    usage = {name: value for name in used.__struct_fields__ if (value := getattr(used, name)) is not None}
    # What served the exchange has tests of its own.
    for name in ("service_tier", "hosted_calls", "cache_write_tokens"):
        usage.pop(name, None)
    assert usage == case.usage
    kinds = {"audio_seconds": float, "model_version": str, "finish_reason": str}
    assert all(type(value) is kinds.get(name, int) for name, value in usage.items())


@each
def test_files_are_those_in_values_and_followed_links_are_removed(case: Case) -> None:
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
def test_an_arbitrary_body_is_a_malformed_reply(case: Case) -> None:
    endpoint, request, _ = answer_of(case)
    for rubbish in RUBBISH:
        with pytest.raises(MalformedReply):
            endpoint.answers([request], Reply(200, reply_of(case).headers, rubbish, 1.0))


@each
def test_a_truncated_or_changed_reply_never_breaks_the_parser(case: Case) -> None:
    endpoint, request, _ = answer_of(case)
    whole = reply_of(case)
    for changed in changed_bodies(whole.body):
        reply = Reply(200, whole.headers, changed, 1.0)
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


def changed_bodies(body: bytes) -> Iterator[bytes]:
    """The body truncated at a few positions, and with each value in turn replaced by one of another type."""
    for part in range(1, 8):
        yield body[: len(body) * part // 8]
    pieces = body.split(b"data: ") if b"data: " in body else [body]
    for place, piece in enumerate(pieces):
        # In a stream the rest is the name of the next event.
        event, gap, rest = piece.partition(b"\n\n") if len(pieces) > 1 else (piece, b"", b"")
        try:
            value = json.loads(event)
        except ValueError:
            continue
        for path in paths(value):
            for other in (None, True, -1.5, "text", [], {}, [None], [[1]], {"a": 1}):
                changed = json.dumps(replaced(value, path, other)).encode() + gap + rest
                yield b"data: ".join([*pieces[:place], changed, *pieces[place + 1 :]])


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of values in parsed JSON; only the first two of a list."""
    keys = value if isinstance(value, dict) else range(min(len(value), 2)) if isinstance(value, list) else ()
    for key in keys:
        yield (*before, key)
        yield from paths(value[key], (*before, key))


def replaced(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], other)
    return copy


@each
def test_an_error_with_status_200_keeps_the_providers_message(case: Case) -> None:
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
def test_a_fingerprint_depends_on_the_request_and_so_do_the_declared_bytes(group: str) -> None:
    bodies: dict[bytes, bytes] = {}
    plain = built({**GROUPS[group].step, "provider": "p"})
    for place, row in enumerate(GROUPS[group].rows):
        endpoint = built({**step_of(group, place), "provider": "p", "name": "it"})
        request = request_of(endpoint)
        assert bodies.setdefault(request.fingerprint, request.body) == request.body
        assert request.fingerprint == request_of(endpoint).fingerprint
        if request.body != request_of(plain).body and not row.says.startswith("stream: true"):
            assert endpoint.config_bytes() != plain.config_bytes(), row
    assert len(set(bodies.values())) == len(bodies)


@pytest.mark.parametrize("group", GROUPS)
def test_a_fingerprint_depends_on_the_provider_and_with_reuse_false_on_the_row(group: str) -> None:
    step = GROUPS[group].step
    shared, own = built(step), built({**step, "reuse": False})
    assert request_of(shared, "1").fingerprint == request_of(shared, "2").fingerprint
    assert request_of(own, "1").fingerprint != request_of(own, "2").fingerprint
    assert request_of(own, "1").body == request_of(own, "2").body
