"""Templates of a job file: Jinja by minijinja, which reaches no attribute of Python and bounds loops by its fuel."""

import base64
import datetime
import decimal
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import minijinja
import orjson

from connectors.errors import JobError, KeyPath, did_you_mean
from connectors.records import TEXT_PREFIX

MAX_INSTRUCTIONS = 1_000_000
"""Of one rendering: some 100,000 iterations of a loop."""
MAX_RENDERED_CHARACTERS = 20 << 20
"""Of one rendering."""

GRAMMAR_NAMES = frozenset({"true", "false", "none", "True", "False", "None", "not"})
"""Names that an expression cannot read as variables."""
FUNCTIONS = frozenset({"range", "dict", "namespace", "debug", "cycler", "joiner", "caller", "super"})
"""Functions of minijinja: a call such as `range(3)`; without brackets the name is a column's."""

_STRING = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_PART = re.compile(
    rf"""(?sx) \{{\#.*?\#\}} | \{{%[-+]?\s*raw\s*[-+]?%\}} .*? \{{%[-+]?\s*endraw\s*[-+]?%\}}
    | (?P<code> (?: \{{\{{|\{{% ) (?: {_STRING} | . )*? (?: \}}\}} | %\}} ) )"""
)
"""A comment, a raw part, or code."""
_QUOTED = re.compile(rf"(?s){_STRING}")
_ROW = re.compile(r"(?<![.\w])row\b")
_ROW_COLUMN = re.compile(rf"""row(?:\.([^\W\d]\w*)|\s*\[\s*({_STRING})\s*\])""")
"""`row.name` or `row["any name"]`."""
_SELF = re.compile(r"(?<![.\w])self\b(?!\s*[.(\[])")
"""A variable that minijinja does not report; `self.name()` is a block."""
_GRAMMAR_COLUMN = re.compile(
    rf"(?<=\{{\{{)([-+]?\s*)({'|'.join(sorted(GRAMMAR_NAMES))})(?=\s*(?:[-+]?\}}\}}|~|\|(?!\|)))"
)
"""A name of the grammar that is printed, alone or before a filter."""
_BOUND = r"(?:[^\[\]{}]|\[[^\[\]{}:]*\])*"
_SLICE = re.compile(rf"\[({_BOUND}:{_BOUND})\]")
_FILTER_NAME = re.compile(r"(?<!\|)\|\s*([A-Za-z_]\w*)")
_TIMES = re.compile(r"(?<![*(,])(?<![(,]\s)\*(?!\*)")
_TOKEN = re.compile(r"\w+|\S")
_PRINTING = re.compile(r"(?s)(?<=\{\{)[-+]?(.*?)(?=[-+]?\}\})")
"""The expression of `{{ … }}`."""
_LINE_SUFFIX = re.compile(r" \(in template:\d+\)$")
_PRINTED = "_row_printed"
"""Variable with the columns that are printed: their texts in the source file, if they have such."""
_TEXT_FILTERS = frozenset(
    {"capitalize", "d", "default", "e", "escape", "indent", "lines", "lower", "replace", "safe", "split", "string"}
    | {"title", "trim", "truncate", "upper", "urlencode", "wordcount"}
)
"""Filters whose result is made of the text of a value."""
_FACTOR_FILTER = "_factor"
"""Applied to each operand of `*`."""


class RenderError(Exception):
    """A row's values cannot be rendered."""


class Template:
    """A text with `{{ column }}` in it; `{{ row["any name"] }}` for columns whose names are not identifiers.

    A column goes before a function or constant of the same name, unless that is called: `range(3)`.

    A printed column is its text in the source file, if there is one (TEXT_PREFIX); in expressions it has its type.
    Null renders as empty text; booleans as true and false, decimals with all their digits, dates and timestamps in
    ISO 8601, binary in base64, lists and structs as JSON. An undefined name is an error.
    """

    def __init__(self, source: str, where: KeyPath, known: Collection[str] | None = None) -> None:
        """JobError for a syntax error, and for a column that is not among the known ones.

        `where`: the key path of the template, for messages. `known`: the columns; None: any.
        """
        self._compile(source, where, known or ())
        for name in sorted(self.columns.difference(known)) if known is not None else ():
            line = _line_of_name(name, source)
            raise JobError(where, f"no column {name} here", did_you_mean(name, known or ()), text_line=line)

    def _compile(self, source: str, where: KeyPath, known: Collection[str]) -> None:
        self.source = source
        self.columns: frozenset[str] = frozenset()
        self._environment: minijinja.Environment | None = None
        self._first_text = source
        self._names: Sequence[tuple[str, str]] = ()
        """Without an environment: columns in braces, each with the text behind it."""
        if not re.search(r"\{\{|\{%|\{#", source):
            return
        source = _with_grammar_columns(source, known)
        pieces = re.split(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}", source)
        is_simple = not any(re.search(r"\{\{|\{%|\{#", text) for text in pieces[::2])
        if is_simple and not {"row", *GRAMMAR_NAMES}.intersection(pieces[1::2]):
            # Nothing but names in braces: joining them here is several times faster.
            self._first_text, self._names = pieces[0], tuple(zip(pieces[1::2], pieces[2::2], strict=True))
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
            found = f"the template cannot be read: {_LINE_SUFFIX.sub('', _first_line(exc))}"
            raise JobError(where, found, "see Jinja's syntax, e.g. {{ column }}", text_line=exc.line) from exc
        _check_filters(environment, source, code, where)
        names = _variables(environment, code)
        if _SELF.search(code):
            names.add("self")
        for name in FUNCTIONS & names:
            if not _is_value(name, code):
                names.remove(name)
            elif _is_called(name, code):
                remedy = f'write {{{{ row["{name}"] }}}} for the column'
                found = f"{name} is used as a column and as a function"
                raise JobError(where, found, remedy, text_line=_line_of_name(name, source))
        self._variables = frozenset(names)
        self._row_columns = frozenset[str]()
        if "row" in names:
            self._row_columns = _columns_of_row(environment, source, code, where, "row" in known)
            if self._row_columns:
                self._variables -= {"row"}
        self.columns = self._variables | self._row_columns
        printed, self._printed_columns = _with_printed_columns(source, code, self._variables, bool(self._row_columns))
        environment.add_template("template", _with_checked_factors(printed, _code_only(printed)))
        self._environment = environment

    def render(self, row: Mapping[str, Any]) -> str:
        """Return the text for one row; RenderError if its values make none."""
        text: str
        if self._environment is None:
            parts = [self._first_text]
            for name, following in self._names:
                value = row[name]
                if not isinstance(value, str):
                    text_in_file = row.get(TEXT_PREFIX + name)
                    value = _format_alone(template_value(value)) if text_in_file is None else text_in_file
                parts += value, following
            text = "".join(parts)
        else:
            values = {name: _expression_value(row[name]) for name in self._variables}
            if self._row_columns:
                values["row"] = {name: _expression_value(row[name]) for name in self._row_columns}
            if self._printed_columns:
                values[_PRINTED] = {name: printed_value(row, name) for name in self._printed_columns}
            try:
                text = self._environment.render_template("template", **values)
            except (minijinja.TemplateError, TypeError, ValueError, OverflowError) as exc:
                # TypeError: from a filter below that got a wrong argument.
                raise RenderError(f"the template cannot be rendered: {_first_line(exc)}") from exc
        if len(text) > MAX_RENDERED_CHARACTERS:
            raise RenderError(f"the rendered text has {len(text):,} characters, more than {MAX_RENDERED_CHARACTERS:,}")
        return text


def printed_value(row: Mapping[str, Any], name: str) -> Any:
    """Return a column's text in the source file, or its value as templates see it."""
    text = row.get(TEXT_PREFIX + name)
    return template_value(row[name]) if text is None else text


def _with_printed_columns(
    source: str, code: str, variables: Collection[str], has_row: bool
) -> tuple[str, frozenset[str]]:
    """Return the template with `_row_printed[…]` in place of columns that are printed, and these columns.

    A column is printed alone, before a filter of text, beside `~`, or as an alternative of `if`, `else` and `or`.
    """
    changes: list[tuple[int, int, str, bool]] = []
    for block in _PRINTING.finditer(code):
        before, start = "", block.start(1)
        while (token := _TOKEN.search(code, start, block.end(1))) is not None:
            name, start = None, token.end()
            if has_row and token[0] == "row" and (column := _ROW_COLUMN.match(source, token.start())) is not None:
                name, start = column[1] or _unquoted(column[2]), column.end()
            elif token[0] in variables:
                name = token[0]
            if name is not None and before in ("", "~", "else", "or"):
                after = _TOKEN.search(code, start, block.end(1))
                following = after[0] if after is not None else ""
                is_filtered = following == "|" and (found := _FILTER_NAME.match(code, after.start() if after else 0))
                if following in ("", "~", "if", "else") or (is_filtered and found and found[1] in _TEXT_FILTERS):
                    changes.append((token.start(), start, name, False))
                elif following == "or" and before != "~":
                    changes.append((token.start(), start, name, True))
            before = code[token.start() : start]
    for begin, end, name, is_tested in reversed(changes):
        text = f"{_PRINTED}[{json.dumps(name, ensure_ascii=False)}]"
        source = f"{source[:begin]}{f'({source[begin:end]} and {text})' if is_tested else text}{source[end:]}"
    return source, frozenset(name for _, _, name, _ in changes)


def _unquoted(text: str) -> str:
    return str(minijinja.Environment().eval_expr(text))


def _code_only(source: str) -> str:
    """Return the code of a template at its place: all else as spaces, strings as digits."""
    parts: list[str] = []
    end = 0
    for part in _PART.finditer(source):
        code = _QUOTED.sub(lambda string: "0" * len(string[0]), part["code"] or " " * len(part[0]))
        parts += (" " * (part.start() - end), code)
        end = part.end()
    return "".join(parts)


def _with_grammar_columns(source: str, known: Collection[str]) -> str:
    """Return the template with `row["true"]` for `{{ true }}` if there is such a column."""
    if not GRAMMAR_NAMES.intersection(known):
        return source
    for found in reversed(list(_GRAMMAR_COLUMN.finditer(_code_only(source)))):
        if found[2] in known:
            source = f'{source[: found.start(2)]}row["{found[2]}"]{source[found.end(2) :]}'
    return source


def _line_of_name(name: str, source: str) -> int | None:
    """Return the line, from 1, of the first use of a name in the code of a template."""
    use = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
    for part in _PART.finditer(source):
        if part["code"] and (found := use.search(part["code"])):
            return source.count("\n", 0, part.start() + found.start()) + 1
    return None


def _is_called(name: str, code: str) -> bool:
    return re.search(rf"(?<![.\w]){name}\s*\(", code) is not None


def _is_value(name: str, code: str) -> bool:
    """Whether the name is used without brackets, and not as the name of an argument or a filter."""
    return re.search(rf"(?<![.\w|])(?<!\|\s){name}\b(?!\s*(?:\(|=(?!=)))", code) is not None


def _columns_of_row(
    environment: minijinja.Environment, source: str, code: str, where: KeyPath, is_column: bool
) -> frozenset[str]:
    """Return the columns that `row.name` and `row["any name"]` name; none if `row` itself is the column.

    `is_column`: whether there is a column with the name row.
    """
    found = [_ROW_COLUMN.match(source, use.start()) for use in _ROW.finditer(code)]
    columns = frozenset(use[1] or str(environment.eval_expr(use[2])) for use in found if use is not None)
    if None in found and (columns or not is_column):
        remedy = (
            'write {{ row["row"] }}' if is_column else 'name the columns, as in {{ body }} or {{ row["any name"] }}'
        )
        raise JobError(where, "row is used alone", remedy, text_line=_line_of_name("row", source))
    return columns


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


def _check_filters(environment: minijinja.Environment, source: str, code: str, where: KeyPath) -> None:
    """Raise JobError for an unknown filter, which minijinja would report row by row."""
    for name in sorted(set(_FILTER_NAME.findall(code))):
        try:
            environment.eval_expr(f"''|{name}")
        except minijinja.TemplateError as exc:
            if f"filter {name} is unknown" in str(exc):
                remedy = "write one of Jinja's, such as upper, trim or length"
                raise JobError(where, f"no filter {name}", remedy, text_line=_line_of_name(name, source)) from exc


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


def _expression_value(value: Any) -> Any:
    """Return a column's value as expressions see it: a decimal is a number, which has all its digits when printed."""
    if isinstance(value, decimal.Decimal):
        return int(value) if value.as_tuple().exponent == 0 else float(value)
    return template_value(value)


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


def constant_texts(source: str) -> list[str]:
    """Return the texts of a template outside its code and comments, in order."""
    ends = [0, *(place for part in _PART.finditer(source) for place in part.span()), len(source)]
    return [source[start:end] for start, end in zip(ends[::2], ends[1::2], strict=True) if start < end]
