"""Masks for secrets: keys, secret header values and proxy passwords are replaced wherever a server repeats them."""

import base64
import html
import json
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote, quote_plus

import orjson
from yarl import URL

from connectors.transport.bounded_json import parse_json

KEY_PLACEHOLDER = "[the key]"
MIN_SECRET_LENGTH = 6
"""Characters: a shorter key in a variable is no secret (`EMPTY`, `none`) and may be a word of an error message."""
MIN_WORD_LENGTH = 3
"""Characters of a declared secret; below MIN_SECRET_LENGTH it is replaced only if it is a whole word of an error."""
MIN_UNIQUE_KEY_LENGTH = 20
"""Characters of a key in a variable that no answer contains by chance; in answers only such a key is replaced."""
MIN_DECLARED_LENGTH = 8
"""The same for values that the workspace declares secret: of `{env: NAME}` and of commands."""

_printed_secrets: dict[str, None] = {}
"""Every form of every secret that this process has used, for tracebacks."""


class SecretMask:
    """Replaces secrets, as they are and as JSON, URLs and base64 write them."""

    def __init__(self, keys: Iterable[str] = (), declared: Iterable[str] = ()) -> None:
        """`keys`: keys in variables, which may be placeholders of local servers. `declared`: secrets for certain."""
        values = dict.fromkeys(keys, MIN_UNIQUE_KEY_LENGTH) | dict.fromkeys(declared, MIN_DECLARED_LENGTH)
        secrets = [(value, shortest) for value, shortest in values.items() if len(value) >= MIN_SECRET_LENGTH]
        self._words = _words(value for value in declared if MIN_WORD_LENGTH <= len(value) < MIN_SECRET_LENGTH)
        self._in_errors = _byte_forms(value for value, _ in secrets)
        self._in_answers = _byte_forms(value for value, shortest in secrets if len(value) >= shortest)
        _printed_secrets.update((form, None) for value, _ in secrets for form in secret_forms(value))

    def error(self, content: bytes) -> bytes:
        """Return the content of an error without secrets. In JSON, short ones are replaced in texts only."""
        content = _replaced(content, self._in_errors)
        return content if self._words is None else self._without_words(content, self._words)

    def answer(self, content: bytes) -> bytes:
        """Return the content of an answer without secrets that no answer contains by chance."""
        return _replaced(content, self._in_answers)

    def _without_words(self, content: bytes, words: re.Pattern[str]) -> bytes:
        text = content.decode(errors="surrogateescape")
        if words.search(text) is None:
            return content
        try:
            parsed = parse_json(content)
        except orjson.JSONDecodeError:
            return words.sub(KEY_PLACEHOLDER, text).encode(errors="surrogateescape")
        # Names and numbers say what the error is.
        masked = _with_texts(parsed, lambda value: words.sub(KEY_PLACEHOLDER, value))
        return content if masked == parsed else orjson.dumps(masked)

    def open_end(self, content: bytes) -> int:
        """Return how many bytes at the end of an answer may be the beginning of a secret."""
        longest = max(map(len, self._in_answers), default=1) - 1
        ends = (content[-size:] for size in range(min(longest, len(content)), 0, -1))
        return next((len(end) for end in ends if any(form.startswith(end) for form in self._in_answers)), 0)

    def text(self, message: str) -> str:
        """Return a message without secrets; bytes that are no text appear as escapes."""
        return self.error(message.encode(errors="backslashreplace")).decode()

    def writer(self, write: Callable[[bytes], object]) -> "MaskedWriter":
        """Return a writer that masks a content which arrives in pieces."""
        return MaskedWriter(write, self)


class MaskedWriter:
    """Passes a content on without secrets; the beginning of one at the end of a piece waits for the next piece."""

    def __init__(self, write: Callable[[bytes], object], mask: SecretMask) -> None:
        self._write = write
        self._mask = mask
        self._rest = b""

    def write(self, piece: bytes) -> None:
        """Take the next piece."""
        content = self._mask.answer(self._rest + piece)
        cut = len(content) - self._mask.open_end(content)
        self._rest = content[cut:]
        if cut:
            self._write(content[:cut])

    def finish(self) -> None:
        """Pass on what is left."""
        if self._rest:
            self._write(self._rest)
        self._rest = b""


def mask_traceback(text: str) -> str:
    """Return a text without any secret that this process has used."""
    for form in _longest_first(_printed_secrets):
        text = text.replace(form, KEY_PLACEHOLDER)
    return text


def secret_forms(secret: str) -> frozenset[str]:
    """Return how JSON, URLs, HTML, base64 and hexadecimal digits write a secret."""
    escaped = json.dumps(secret)[1:-1]
    in_html = html.escape(secret)
    in_url = quote(secret, safe="")
    return frozenset(
        {
            secret,
            escaped,
            escaped.replace("/", "\\/"),
            # In JSON within a text of JSON.
            json.dumps(escaped)[1:-1],
            # As Go's encoder writes it.
            escaped.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"),
            in_html,
            json.dumps(in_html)[1:-1],
            in_html.replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),
            html.escape(secret, quote=False),
            in_url,
            in_url.lower() if in_url != secret else secret,
            quote_plus(secret),
            quote(secret),
            URL.build(query={"_": secret}).raw_query_string[2:],
            base64.b64encode(secret.encode()).decode().rstrip("="),
            base64.urlsafe_b64encode(secret.encode()).decode().rstrip("="),
            secret.encode().hex(),
        }
    )


def _byte_forms(secrets: Iterable[str]) -> tuple[bytes, ...]:
    forms = {form for secret in secrets for form in secret_forms(secret)}
    return tuple(form.encode() for form in _longest_first(forms))


def _words(secrets: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds any of these secrets as a whole word; None without one."""
    forms = _longest_first({form for secret in secrets for form in secret_forms(secret)})
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?!\w)") if forms else None


def _with_texts(value: Any, replace: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return replace(value)
    if isinstance(value, dict):
        return {name: _with_texts(inner, replace) for name, inner in value.items()}
    return [_with_texts(inner, replace) for inner in value] if isinstance(value, list) else value


def _longest_first(forms: Iterable[str]) -> list[str]:
    """A secret may be the beginning of another one."""
    return sorted(forms, key=lambda form: (-len(form), form))


def _replaced(content: bytes, forms: tuple[bytes, ...]) -> bytes:
    for form in forms:
        if form in content:
            content = content.replace(form, KEY_PLACEHOLDER.encode())
    return content
