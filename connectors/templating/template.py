"""Templates of a job file: Jinja by minijinja, which reaches no attribute of Python and bounds loops by its fuel."""

import base64
import datetime
import decimal
import json
import re
from collections.abc import Mapping
from typing import Any

import minijinja
import orjson

from connectors.errors import JobError, KeyPath

MAX_INSTRUCTIONS = 1_000_000
"""Of one rendering: some 100,000 iterations of a loop."""
MAX_RENDERED_CHARACTERS = 20 << 20
"""Of one rendering."""

RESERVED_NAMES = frozenset({"true", "false", "none", "True", "False", "None", "row"})
_BUILT_INS = frozenset({"range", "dict", "namespace", "debug", "loop"})

_STRING = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_PART = re.compile(
    rf"""(?sx) \{{\#.*?\#\}} | \{{%[-+]?\s*raw\s*[-+]?%\}} .*? \{{%[-+]?\s*endraw\s*[-+]?%\}}
    | (?P<code> (?: \{{\{{|\{{% ) (?: {_STRING} | . )*? (?: \}}\}} | %\}} ) )"""
)
"""A comment, a raw part, or code."""
_QUOTED = re.compile(rf"(?s){_STRING}")
_ROW = re.compile(r"(?<![.\w])row\b")
_ROW_COLUMN = re.compile(rf"""row(?:\.([A-Za-z_]\w*)|\s*\[\s*({_STRING})\s*\])""")
"""`row.name` or `row["any name"]`."""
_BOUND = r"(?:[^\[\]{}]|\[[^\[\]{}:]*\])*"
_SLICE = re.compile(rf"\[({_BOUND}:{_BOUND})\]")
_FILTER_NAME = re.compile(r"(?<!\|)\|\s*([A-Za-z_]\w*)")
_TIMES = re.compile(r"(?<![*(,])(?<![(,]\s)\*(?!\*)")
_TOKEN = re.compile(r"\w+|\S")
_FACTOR_FILTER = "_factor"
"""Applied to each operand of `*`."""


class RenderError(Exception):
    """A row's values cannot be rendered."""


class Template:
    """A text with `{{ column }}` in it; `{{ row["any name"] }}` for columns whose names are not identifiers.

    Null renders as empty text; booleans as true and false, decimals with all their digits, dates and timestamps in
    ISO 8601, binary in base64, lists and structs as JSON. An undefined name is an error.
    """

    def __init__(self, source: str, where: KeyPath) -> None:
        """`where`: the key path of the template, for messages; JobError for a syntax error."""
        self.source = source
        self.columns: frozenset[str] = frozenset()
        self._environment: minijinja.Environment | None = None
        self._pieces: tuple[str, ...] = (source,)
        if not re.search(r"\{\{|\{%|\{#", source):
            return
        pieces = re.split(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}", source)
        if not any(re.search(r"\{\{|\{%|\{#", text) for text in pieces[::2]) and not RESERVED_NAMES & set(pieces[1::2]):
            # Nothing but names in braces: joining them here is several times faster.
            self._pieces = tuple(pieces)
            self.columns = frozenset(pieces[1::2])
            return
        environment = minijinja.Environment(
            undefined_behavior="strict", fuel=MAX_INSTRUCTIONS, finalizer=_format_value, keep_trailing_newline=True
        )
        environment.auto_escape_callback = lambda name: False
        environment.add_filter("truncate", _truncate)
        environment.add_filter("wordcount", _count_words)
        environment.add_filter(_FACTOR_FILTER, _refuse_list)
        code = _code_only(source)
        try:
            environment.add_template("template", _with_checked_factors(source, code))
        except minijinja.TemplateError as exc:
            raise JobError(where, f"the template cannot be read: {_first_line(exc)}", "see minijinja's syntax") from exc
        _check_filters(environment, code, where)
        names = _variables(environment, code)
        self._uses_row = "row" in names
        names -= {*_BUILT_INS, "row"}
        for found in _ROW.finditer(code) if self._uses_row else ():
            column = _ROW_COLUMN.match(source, found.start())
            if column is None:
                raise JobError(
                    where, "row is used alone", 'name the columns, as in {{ body }} or {{ row["any name"] }}'
                )
            names.add(column[1] or environment.eval_expr(column[2]))
        self.columns = frozenset(names)
        self._environment = environment

    def render(self, row: Mapping[str, Any]) -> str:
        """Return the text for one row; RenderError if its values make none."""
        text: str
        if self._environment is None:
            parts = list(self._pieces)
            for index in range(1, len(parts), 2):
                value = row[parts[index]]
                parts[index] = value if isinstance(value, str) else _format_alone(template_value(value))
            text = "".join(parts)
        else:
            values = {name: template_value(row[name]) for name in self.columns}
            if self._uses_row:
                values["row"] = dict(values)
            try:
                text = self._environment.render_template("template", **values)
            except (minijinja.TemplateError, TypeError, ValueError, OverflowError) as exc:
                # TypeError: from a filter below that got a wrong argument.
                raise RenderError(f"the template cannot be rendered: {_first_line(exc)}") from exc
        if len(text) > MAX_RENDERED_CHARACTERS:
            raise RenderError(f"the rendered text has {len(text):,} characters, more than {MAX_RENDERED_CHARACTERS:,}")
        return text


def _code_only(source: str) -> str:
    """Return the code of a template at its place: all else as spaces, strings as digits."""
    parts: list[str] = []
    end = 0
    for part in _PART.finditer(source):
        code = _QUOTED.sub(lambda string: "0" * len(string[0]), part["code"] or " " * len(part[0]))
        parts += (" " * (part.start() - end), code)
        end = part.end()
    return "".join(parts)


def _variables(environment: minijinja.Environment, code: str) -> set[str]:
    """Return the variables of a template; minijinja itself misses those in a slice: `{{ body[:n] }}`."""
    names = set(environment.undeclared_variables_in_template("template"))
    count = 1
    while count:
        code, count = _SLICE.subn(_inline_bounds, code)
    try:
        return names.union(environment.undeclared_variables_in_str(code))
    except minijinja.TemplateError:
        return names


def _inline_bounds(found: re.Match[str]) -> str:
    """Return `[a:b]` as `~ (0 ~ a ~ b)`, which has the same variables."""
    bounds = ["0", *(bound for bound in found[1].split(":") if bound.strip())]
    return f" ~ ({' ~ '.join(bounds)})"


def _with_checked_factors(source: str, code: str) -> str:
    """Return the template with a filter on each operand of `*` that refuses lists.

    minijinja counts no fuel for repeating a list, and a row's number may say how often.
    """
    insertions: list[int] = []
    for star in _TIMES.finditer(code):
        insertions += (len(code[: star.start()].rstrip()), _operand_end(code, star.end()))
    for index in sorted(insertions, reverse=True):
        source = f"{source[:index]}|{_FACTOR_FILTER}{source[index:]}"
    return source


def _operand_end(code: str, start: int) -> int:
    """Return the end of the operand that begins at `start`, with its subscripts, calls and filters."""
    end, depth, is_complete = start, 0, False
    for found in _TOKEN.finditer(code, start):
        token = found[0]
        if token in "([{":
            depth += 1
        elif depth:
            depth -= token in ")]}"
            if not depth:
                end, is_complete = found.end(), True
        elif token in ".|":
            is_complete = False
        elif not is_complete and re.fullmatch(r"\w+", token):
            end, is_complete = found.end(), True
        elif is_complete or token != "-":
            break
    return end


def _check_filters(environment: minijinja.Environment, code: str, where: KeyPath) -> None:
    """Raise JobError for an unknown filter, which minijinja would report row by row."""
    for name in sorted(set(_FILTER_NAME.findall(code))):
        try:
            environment.eval_expr(f"''|{name}")
        except minijinja.TemplateError as exc:
            if f"filter {name} is unknown" in str(exc):
                remedy = "write one of Jinja's, such as upper, trim or length"
                raise JobError(where, f"no filter {name}", remedy) from exc


def _refuse_list(value: Any) -> Any:
    if isinstance(value, list | tuple | dict):
        raise TypeError("* repeats no list; write a loop")
    return value


def _truncate(text: str, length: int = 255, killwords: bool = False, end: str = "...", leeway: int = 5) -> str:
    """Truncate as Jinja's own filter, whose arguments need no names."""
    text = str(text)
    if len(text) <= length + leeway:
        return text
    start = text[: max(0, length - len(end))]
    return (start if killwords else start.rsplit(" ", 1)[0]) + end


def _count_words(text: str) -> int:
    return len(re.findall(r"\w+", str(text)))


def template_value(value: Any) -> Any:
    """Return a value as templates see it: minijinja's types stay, all else becomes documented text."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, decimal.Decimal):
        return f"{value:f}"
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, Mapping):
        return {str(name): template_value(inner) for name, inner in value.items()}
    if isinstance(value, list) and value and all(isinstance(entry, tuple) for entry in value):
        # A map of Arrow: a list of pairs.
        return {str(template_value(name)): template_value(inner) for name, inner in value}
    if isinstance(value, list | tuple):
        return [template_value(inner) for inner in value]
    return str(value)


def _format_value(value: Any) -> Any:
    """Return the text that minijinja writes for a value; NotImplemented: its own."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        # minijinja may pass its 2.0 as an integer; it writes either as it is.
        return NotImplemented
    if isinstance(value, dict | list | tuple):
        try:
            return orjson.dumps(value).decode()
        except TypeError:
            return json.dumps(value, ensure_ascii=False)
    return value


def _format_alone(value: Any) -> str:
    """Return the text of a value that is joined without minijinja."""
    text = _format_value(value)
    return str(value if text is NotImplemented else text)


def _first_line(exc: Exception) -> str:
    line = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
    return line.replace("(in template:1)", "").strip()
