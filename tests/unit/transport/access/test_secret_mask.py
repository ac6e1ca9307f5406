"""Masks of secrets: every form of a secret, in errors and in answers, whole or in pieces."""

import base64
import html
import json
from urllib.parse import quote

import pytest

from connectors.transport.access.secret_mask import SecretMask, mask_traceback

SECRET = 'pa/ss "word"+1é&'
KEY = "sk-0123456789abcdef0123"


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET)[1:-1].replace("/", "\\/"),
        quote(SECRET, safe=""),
        quote(SECRET),
        html.escape(SECRET),
        html.escape(SECRET).replace("&quot;", "&#34;"),
        json.dumps(SECRET)[1:-1].replace("&", "\\u0026"),
        base64.b64encode(SECRET.encode()).decode(),
        json.dumps(json.dumps({"key": SECRET})),
        SECRET.encode().hex(),
    ],
)
def test_a_secret_is_replaced_in_every_form(form: str) -> None:
    mask = SecretMask((), [SECRET])
    content = f"<{form}>".encode()
    assert b"[the key]" in mask.error(content)
    assert form.rstrip("=").encode() not in mask.error(content)
    assert mask.answer(content) == mask.error(content)
    assert form.rstrip("=") not in mask_traceback(f"ValueError: {form}")


def test_in_answers_only_what_no_answer_contains_by_chance_is_replaced() -> None:
    mask = SecretMask(["lm-studio"], ["team-one", "blue-1"])
    content = b"lm-studio team-one blue-1"
    assert mask.answer(content) == b"lm-studio [the key] blue-1"
    assert mask.error(content) == b"[the key] [the key] [the key]"
    assert SecretMask(["EMPTY"]).error(b"EMPTY") == b"EMPTY"


def test_a_short_secret_is_replaced_as_a_whole_word_of_an_error() -> None:
    mask = SecretMask(["none"], ["blue", "code", "429", "xy"])
    assert mask.error(b"none of team blue, bluest, xy: Ymx1ZQ==") == b"none of team [the key], bluest, xy: [the key]=="
    error = {"error": {"code": 429, "message": "team blue: limit 429"}}
    assert json.loads(mask.error(json.dumps(error).encode())) == {
        "error": {"code": 429, "message": "team [the key]: limit [the key]"}
    }
    assert mask.error(b'{"code": 429}') == b'{"code": 429}'
    assert mask.answer(b"the sky is blue") == b"the sky is blue"


def test_a_secret_that_begins_like_another_one_leaves_no_rest() -> None:
    mask = SecretMask((), ["secret-value", "secret-value-longer"])
    assert mask.answer(b"secret-value-longer secret-value") == b"[the key] [the key]"


@pytest.mark.parametrize("size", [1, 2, 7, 22, 1000])
def test_a_content_in_pieces_loses_its_secrets_and_nothing_else(size: int) -> None:
    content = b"a" + KEY.encode() + b"b\n" + KEY[:10].encode() + b" sk-" + KEY.encode() + KEY[:3].encode()
    pieces: list[bytes] = []
    writer = SecretMask([KEY]).writer(pieces.append)
    for start in range(0, len(content), size):
        writer.write(content[start : start + size])
    writer.finish()
    assert b"".join(pieces) == content.replace(KEY.encode(), b"[the key]")


def test_a_piece_without_the_beginning_of_a_secret_is_passed_on_at_once() -> None:
    pieces: list[bytes] = []
    writer = SecretMask([KEY]).writer(pieces.append)
    writer.write(b"line 1\n")
    assert pieces == [b"line 1\n"]
