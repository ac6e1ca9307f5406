"""Templates of job files: Jinja by minijinja, which reaches no attribute of Python and stops endless loops by fuel."""

import base64
import datetime
import decimal
import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

import minijinja
import orjson

from connectors.errors import JobError, KeyPath

MAX_INSTRUCTIONS = 1_000_000
"""Instructions of one rendering: some 100,000 turns of a loop."""

RESERVED_NAMES = frozenset({"true", "false", "none", "True", "False", "None", "row"})

_IN_BRACKETS = re.compile(r"""\brow\s*\[\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*\]""")
"""Of `row["any name"]` the string, as it is written."""

_CODE = re.compile(r"(?s)\{\{.*?\}\}|\{%.*?%\}")
_SLICE = re.compile(r"\[([^\[\]{}]*:[^\[\]{}]*)\]")
_COMMENT = re.compile(r"(?s)\{#.*?#\}")
_STRING = re.compile(r"""(?s)"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""")

_PIECE = re.compile(
    r"""(?sx) \{\#.*?\#\} | \{%[-+]?\s*raw\s*[-+]?%\} .*? \{%[-+]?\s*endraw\s*[-+]?%\}
    | (?P<code> (?P<open>\{\{|\{%) (?: "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | . )*? (?: \}\} | %\} ) )"""
)
"""A comment, a raw part, or code."""
_TIMES = re.compile(r"(?<![*(,])(?<![(,]\s)\*(?!\*)")
_WORD = re.compile(r"\w+|\S")
_FACTOR = "_factor"
"""The filter that each operand of `*` goes through."""

MAX_RENDERED_CHARACTERS = 20 << 20
"""Characters of one rendering."""


class RenderError(Exception):
    """A row's values cannot be rendered."""


class Template:
    """A text with `{{ column }}` in it; `{{ row["any name"] }}` for columns whose names are no identifiers.

    Null renders as empty text; booleans as true and false, decimals with all their digits, dates and timestamps in
    ISO 8601, binary in base64, lists and structs as JSON. An undefined name is an error.
    """

    def __init__(self, source: str, where: KeyPath) -> None:
        """`where`: the key path of the template, for messages; JobError where its syntax is wrong."""
        self.source = source
        self.columns: frozenset[str] = frozenset()
        self._environment: minijinja.Environment | None = None
        self._pieces: tuple[str, ...] = (source,)
        if not re.search(r"\{\{|\{%|\{#", source):
            return
        pieces = re.split(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}", source)
        if not any(re.search(r"\{\{|\{%|\{#", text) for text in pieces[::2]) and not RESERVED_NAMES & set(pieces[1::2]):
            # Nothing but names in braces: joined here, several times faster.
            self._pieces = tuple(pieces)
            self.columns = frozenset(pieces[1::2])
            return
        environment = minijinja.Environment(
            undefined_behavior="strict", fuel=MAX_INSTRUCTIONS, finalizer=_shown, keep_trailing_newline=True
        )
        environment.auto_escape_callback = _no_escapes
        environment.add_filter("truncate", _truncated)
        environment.add_filter("wordcount", _word_count)
        environment.add_filter(_FACTOR, _no_list)
        try:
            environment.add_template("template", _guarded(source))
        except minijinja.TemplateError as exc:
            raise JobError(where, f"the template cannot be read: {_said(exc)}", "see minijinja's syntax") from exc
        _check_filters(environment, source, where)
        names = _names(environment, source)
        if "row" in names:
            names.discard("row")
            code = " ".join(re.findall(r"(?s)\{\{.*?\}\}|\{%.*?%\}", source))
            names.update(environment.eval_expr(name) for name in _IN_BRACKETS.findall(code))
            names.update(re.findall(r"\brow\.([A-Za-z_]\w*)", code))
            if re.search(r"(?<![.\w])row\b(?!\.[A-Za-z_])", _STRING.sub("''", _IN_BRACKETS.sub("''", code))):
                raise JobError(where, "row stands alone", 'name the columns, as in {{ body }} or {{ row["any name"] }}')
        self.columns = frozenset(names) - {"range", "dict", "namespace", "debug", "loop"}
        self._environment = environment
        self._by_row = bool(re.search(r"\brow\b", source))

    def render(self, row: Mapping[str, Any]) -> str:
        """The text for one row; TemplateProblem where there is none."""
        text: str
        if self._environment is None:
            parts = list(self._pieces)
            for place in range(1, len(parts), 2):
                value = row[parts[place]]
                parts[place] = value if isinstance(value, str) else _alone(template_value(value))
            text = "".join(parts)
        else:
            values = {name: template_value(row[name]) for name in self.columns}
            if self._by_row:
                values["row"] = dict(values)
            try:
                text = self._environment.render_template("template", **values)
            except (minijinja.TemplateError, TypeError, ValueError, OverflowError) as exc:
                # TypeError: of our own filters, given what they do not take.
                raise RenderError(f"the template cannot be rendered: {_said(exc)}") from exc
        if len(text) > MAX_RENDERED_CHARACTERS:
            raise RenderError(f"the rendered text has {len(text):,} characters, more than {MAX_RENDERED_CHARACTERS:,}")
        return text


def _names(environment: minijinja.Environment, source: str) -> set[str]:
    """The variables of a template; minijinja itself passes over those that stand in a slice: `{{ body[:2000] }}`."""
    names = set(environment.undeclared_variables_in_template("template"))
    flat = _CODE.sub(lambda code: _without_slices(_STRING.sub("''", code[0])), source)
    try:
        return names.union(environment.undeclared_variables_in_str(flat))
    except minijinja.TemplateError:
        return names


def _without_slices(code: str) -> str:
    """The code with `[a:b]` as `~ ('' ~ a ~ b)`: the same variables, in a form in which they are seen."""
    while (found := _SLICE.search(code)) is not None:
        parts = ["''", *(part for part in found[1].split(":") if part.strip())]
        code = f"{code[: found.start()]} ~ ({' ~ '.join(parts)}){code[found.end() :]}"
    return code


def _guarded(source: str) -> str:
    """The template with each operand of `*` seen to be no list: minijinja counts no fuel for repeating one, and a
    row's number may say how often."""
    places: list[int] = []
    for piece in _PIECE.finditer(source):
        code = _STRING.sub(lambda text: "0" * len(text[0]), piece["code"] or "")
        for star in _TIMES.finditer(code):
            before = len(code[: star.start()].rstrip())
            places += (piece.start() + before, piece.start() + _operand_end(code, star.end()))
    for place in sorted(places, reverse=True):
        source = f"{source[:place]}|{_FACTOR}{source[place:]}"
    return source


def _operand_end(code: str, start: int) -> int:
    """Where the operand that begins there ends, with its subscripts, calls and filters."""
    end, depth, whole = start, 0, False
    for found in _WORD.finditer(code, start, len(code) - 2):
        word = found[0]
        if word in "([{":
            depth += 1
        elif depth:
            depth -= word in ")]}"
            if not depth:
                end, whole = found.end(), True
        elif word in ".|":
            whole = False
        elif not whole and re.fullmatch(r"\w+", word):
            end, whole = found.end(), True
        elif whole or word != "-":
            break
    return end


def _no_list(value: Any) -> Any:
    if isinstance(value, list | tuple | dict):
        raise TypeError("* repeats no list; write a loop")
    return value


def _truncated(text: str, length: int = 255, killwords: bool = False, end: str = "...", leeway: int = 5) -> str:
    """Jinja's own, whose arguments need no names."""
    text = str(text)
    if len(text) <= length + leeway:
        return text
    kept = text[: max(0, length - len(end))]
    return (kept if killwords else kept.rsplit(" ", 1)[0]) + end


def _word_count(text: str) -> int:
    return len(re.findall(r"\w+", str(text)))


def _check_filters(environment: minijinja.Environment, source: str, where: KeyPath) -> None:
    """JobError for a filter that there is not: minijinja itself would tell row by row."""
    if "raw" in source:
        return  # Between {% raw %} and {% endraw %} braces are no code.
    code = _STRING.sub("''", " ".join(_CODE.findall(_COMMENT.sub("", source))))
    for name in sorted(set(re.findall(r"(?<!\|)\|\s*([A-Za-z_]\w*)", code))):
        try:
            environment.eval_expr(f"''|{name}")
        except minijinja.TemplateError as exc:
            if f"filter {name} is unknown" in str(exc):
                raise JobError(
                    where, f"no filter {name}", "write one of Jinja's, such as upper, trim or length"
                ) from exc


def template_value(value: Any) -> Any:
    """A value as templates see it: what minijinja knows stays, all else becomes documented text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value
    if isinstance(value, decimal.Decimal):
        return f"{value:f}"
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, Mapping):
        return {str(name): template_value(inner) for name, inner in value.items()}
    if isinstance(value, list) and value and all(isinstance(entry, tuple) for entry in value):
        # As Arrow gives maps: a list of pairs.
        return {str(template_value(name)): template_value(inner) for name, inner in value}
    if isinstance(value, list | tuple):
        return [template_value(inner) for inner in value]
    if isinstance(value, uuid.UUID):
        return str(value)
    return str(value)


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        # What comes here from a template as an integer may be 2.0 to minijinja, which shows either as it is.
        return NotImplemented
    if isinstance(value, dict | list | tuple):
        try:
            return orjson.dumps(value).decode()
        except TypeError:
            return json.dumps(value, ensure_ascii=False)
    return value


def _alone(value: Any) -> str:
    """A value as it is shown where no template engine is needed for it."""
    shown = _shown(value)
    return str(value if shown is NotImplemented else shown)


def _no_escapes(name: str) -> bool:
    return False


def _said(exc: Exception) -> str:
    first = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
    return first.replace("(in template:1)", "").strip()
