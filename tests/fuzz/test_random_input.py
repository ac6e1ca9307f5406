"""Random templates, rows, CSV files and command lines: a result or an error message, never a traceback."""

import datetime
import decimal
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.contracts import SourceContext
from connectors.errors import DataError, JobError
from connectors.sources.csv_files import CsvSource
from connectors.sources.csv_records import CsvFormat, RejectedLine, read_records
from connectors.templating.template import RenderError, Template
from pipelines.cli import rowmill
from tests.conftest import Cli, Workspace

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SLOWER = settings(QUICK, max_examples=20)

FRAGMENTS = (
    "{{ }} {{ }} {% %} {# #} {%- -%} x y row loop if else endif for in endfor set macro endmacro call raw endraw "
    "filter not and or is defined none true . | , : = ( ) [ ] ~ + - * / // % ** == < 'a' \"b\" 0 1 -1 2.5 7 range "
    "dict namespace upper lower trim length join list first last sort truncate wordcount replace default tojson "
    "round int float batch slice indent map select items split format x.a x['a'] x[0] x[1:2] row.x row['y'] \\ é 😀 \n"
)
CODE = FRAGMENTS.split(" ")
TEMPLATES = st.lists(st.one_of(st.sampled_from(CODE), st.text(max_size=3)), max_size=15).map(" ".join)
EXPRESSIONS = st.lists(st.sampled_from(CODE[9:]), min_size=1, max_size=6).map(
    lambda words: f"{{{{ {' '.join(words)} }}}}"
)
FILTERED = st.tuples(
    st.sampled_from(
        ("truncate", "wordcount", "replace", "indent", "round", "batch", "join", "default", "length", "int")
    ),
    st.lists(st.sampled_from(("x", "y", "1", "-1", "'a'", "none", "[1]", "{}", "2.5", "9" * 30)), max_size=3),
).map(lambda drawn: f"{{{{ x|{drawn[0]}({', '.join(drawn[1])}) }}}}")
ANY_TEXT = st.characters(exclude_categories=["Cs"])
"""Rows come from Arrow, whose text is UTF-8 and holds no lone surrogates."""
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(ANY_TEXT, max_size=8),
    st.binary(max_size=8),
    st.decimals(allow_nan=True),
    st.datetimes(timezones=st.just(datetime.UTC)),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(ANY_TEXT, max_size=3), inner, max_size=3)
        | st.lists(st.tuples(st.text(ANY_TEXT, max_size=3), inner), max_size=3)
    ),
    max_leaves=6,
)


@QUICK
@given(source=st.one_of(TEMPLATES, EXPRESSIONS, FILTERED), values=st.lists(VALUES, min_size=3, max_size=3))
def test_a_template_renders_or_is_rejected_in_one_line(source: str, values: list[Any]) -> None:
    try:
        template = Template(source, ("steps", "a", "input"))
        row = {name: values[place % 3] for place, name in enumerate(sorted(template.columns))}
        assert isinstance(template.render(row), str)
    except (JobError, RenderError) as exc:
        assert "\n" not in str(exc)


@QUICK
@given(value=VALUES)
def test_a_bare_name_renders_a_value_as_an_expression_does(value: Any) -> None:
    rendered = []
    for source in ("{{ x }}", "{{ x if true else x }}"):
        try:
            rendered.append(Template(source, ("steps", "a", "input")).render({"x": value}))
        except RenderError:
            # A lone surrogate, or a number that templates do not support.
            return
    if not isinstance(value, float | decimal.Decimal | uuid.UUID):
        assert rendered[0] == rendered[1]


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [b",", b",", b'"', b'"', b"\n", b"\n", b"\n", b"\r\n", b"\r", b"a", b"1", b" ", b"\xff", b"\0"]
        ),
        st.binary(max_size=3),
    ),
    max_size=60,
).map(b"".join)


def lines_of(data: bytes) -> list[str]:
    """Return the lines that are not empty, as text in an encoding of all bytes."""
    return [line for line in re.split("\r\n|\r|\n", data.decode("latin-1")) if line]


@QUICK
@given(data=LINES)
def test_every_line_of_a_csv_file_is_in_a_record_or_rejected(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(data)
    rejected: list[RejectedLine] = []
    lines = [(record.line, record.raw) for record in read_records(file, CsvFormat(",", '"', "latin-1"), rejected)]
    lines += [(reject.line, reject.raw) for reject in rejected]
    assert [line for _, raw in sorted(lines) for line in lines_of(raw.encode("latin-1"))] == lines_of(data)


@SLOWER
@given(
    data=LINES.map(lambda data: data.replace(b'"', b"'")),
    encoding=st.sampled_from(["utf-8", "latin-1", "cp1252", "ascii"]),
)
def test_rows_and_rejects_account_for_every_line(tmp_path: Path, data: bytes, encoding: str) -> None:
    (tmp_path / "x.csv").write_bytes(data)
    context = SourceContext(tmp_path, (), tmp_path / "scratch")
    source = CsvSource(csv="x.csv", encoding=encoding, rejects="keep")
    with duckdb.connect() as db:
        try:
            opened = source.connect(db, context)
        except DataError as exc:
            assert "\n" not in str(exc)
            return
        rows = db.execute(f"select * from {opened.relation}").fetchall()
        assert len(rows) + len(opened.rejects) == len(lines_of(data)) - 1
        strict = source.model_copy(update={"rejects": "fail"})
        if opened.rejects:
            with pytest.raises(DataError):
                strict.connect(db, context)
        else:
            strict.connect(db, context)


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield (words, options) of each command, except those that do not end or change the machine."""
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            path = (*words, name)
            if isinstance(command, click.Group):
                yield from commands(command, path)
            elif path not in (("serve",), ("watch",), ("schedule", "run")):
                options = (option for given in command.params for option in given.opts if option.startswith("-"))
                yield path, tuple(option for option in options if option != "--write")


COMMANDS = tuple(commands(rowmill))
ARGUMENTS = (
    "job.yaml job.yaml broken.yaml missing.yaml rows.csv 1 2 0 -1 1e9 nan x= =x a.b=c steps.answer.model=e "
    "source.limit=1 limits.concurrency=0 sink= name=other when=1 out other test local openai answer results timeout "
    "timeout,server batch online json plain csv crontab systemd day step 90d 2026-01-01 --json --limit --set --help "
    "-h -- - --sink --nonsense batch_1 file-1 m gpt-4o é 😀 %s {{x}} ' \" * ~ [1] {a:1} null"
)
WORDS = ARGUMENTS.split(" ")
RANDOM_ARGUMENT = st.one_of(
    st.sampled_from(WORDS), st.text(st.characters(exclude_characters="/.\0", exclude_categories=["Cs"]), max_size=4)
)


@st.composite
def command_lines(draw: st.DrawFn) -> Sequence[str]:
    """A command or a wrong word, with its options and any other arguments."""
    words, options = draw(st.sampled_from(COMMANDS))
    first = draw(st.sampled_from([words, words, words, words[:1], ("--version",), ("",), ("rum",)]))
    more = draw(st.lists(st.one_of(RANDOM_ARGUMENT, st.sampled_from(options or ("--help",))), max_size=6))
    return (*first, *(["job.yaml"] if draw(st.booleans()) else []), *more)


@settings(QUICK, max_examples=50)
@given(data=st.data())
def test_any_command_line_ends_with_a_known_code_and_no_traceback(
    workspace: Workspace, cli: Cli, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.chdir(workspace.folder)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    workspace.csv(3)
    workspace.job(retry="{attempts: 1, longest_wait: 0.01, longest_hold: 0.05}")
    workspace.write("broken.yaml", "name: broken\nsteps: [\n")
    arguments = data.draw(command_lines())
    # Several jobs run as child processes, and so does Ray.
    monkeypatch.setattr("pipelines.execution.multi_job.run_jobs", lambda jobs, arguments, ended: None)
    if "ray" in arguments:
        return
    code = cli(*arguments)
    assert code in (0, 1, 2, 3, 4, 5, 130), (arguments, cli.err)
    assert "Traceback" not in cli.out + cli.err, arguments
    if code == 2:
        # The help of a command that lacks its subcommand is what was asked for.
        assert cli.err.strip() or cli.out.startswith("Usage: "), arguments
