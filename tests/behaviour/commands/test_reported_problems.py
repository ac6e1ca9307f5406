"""What a newcomer met: names that clash, numbers that are too large, nights without a row, broken parts."""

import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Cli, ScriptedProvider, Workspace

Read = Callable[..., list[dict[str, Any]]]
NOTHING_SENT = 0


def step(name: str, text: str, more: str = "") -> str:
    return f'{{name: {name}, endpoint: chat, provider: test, model: m, messages: [{{user: "{text}"}}]{more}}}'


def lines(workspace: Workspace, *rows: dict[str, Any]) -> None:
    workspace.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def refused(cli: Cli, job: Path, *flags: str) -> str:
    """The one line that a mistake is told in; the object of `--json` has it as well."""
    told = cli.run(job, *flags)
    (line,) = cli.err.splitlines()
    assert (told["exit_code"], told["stopped"], told["rows"]) == (2, line, None)
    return line


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(step("label", "{{ label }}"), id="read by the step itself"),
        pytest.param(step("label", "{{ text }}") + ", " + step("b", "{{ label }}"), id="read by a later one"),
        pytest.param(step("label", "{{ text }}", ", when: label > 'a'"), id="read by its when"),
    ],
)
def test_an_output_that_is_called_as_a_column_that_a_step_reads_is_told_before_anything_is_paid(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, steps: str
) -> None:
    workspace.write("rows.csv", "id,label,text\n1,a,x\n")
    line = refused(cli, workspace.job(steps=f"[{steps}]"))
    assert line.endswith("steps.label.output: the source has a column label as well; give this output another name")
    assert len(provider.seen) == NOTHING_SENT


def test_an_output_may_be_called_as_a_column_that_no_step_reads(cli: Cli, workspace: Workspace, read: Read) -> None:
    workspace.write("rows.csv", "id,label,text\n1,a,x\n")
    assert cli.run(workspace.job(steps=f"[{step('label', '{{ text }}')}]"))["exit_code"] == 0
    assert [(row["id"], row["label"]) for row in read(workspace.folder / "out")] == [(1, "X")]


def test_a_job_of_a_job_with_the_same_step_name_is_told_to_choose_another(cli: Cli, workspace: Workspace) -> None:
    workspace.csv(2)
    assert cli.run(workspace.job("up", sink="{parquet: up}"))["rows_ok"] == 2
    down = workspace.job("down", source="{job: up, key: id}", steps=f"[{step('answer', '{{ answer }}!')}]")
    assert "steps.answer.output: the source has a column answer as well" in refused(cli, down)


@pytest.mark.parametrize("text", ["{{ row }}", "{{ row | tojson }}", "{% for name in row %}x{% endfor %}"])
def test_a_template_of_a_whole_row_is_refused_since_it_would_be_empty(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, text: str
) -> None:
    workspace.csv(2)
    line = refused(cli, workspace.job(steps=f"[{step('answer', text)}]"))
    assert 'row is used alone; name the columns, as in {{ body }} or {{ row["any name"] }}' in line
    assert len(provider.seen) == NOTHING_SENT


def test_a_row_is_still_asked_for_a_column_of_any_name(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    workspace.write("rows.csv", "id,any name,row\n1,x,y\n")
    text = "{{ row['any name'] }} {{ row.id }} {{ row['row'] }} {{ 'row' }}"
    assert cli.run(workspace.job(steps=f"[{step('answer', text)}]"))["exit_code"] == 0
    assert provider.prompts() == ["x 1 y row"]


class TestJsonLines:
    """Sources of JSON lines."""

    def test_whole_numbers_of_2_to_the_64_and_more_keep_all_their_digits(
        self, cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: Read
    ) -> None:
        large = 1 << 64
        lines(workspace, {"id": large, "text": "a"}, {"id": large + 1, "text": "b"}, {"id": 5, "text": "c"})
        job = workspace.job(source="{jsonl: rows.jsonl, key: id}", steps=f"[{step('answer', '{{ id }}')}]")
        assert cli.run(job)["rows_ok"] == 3
        assert sorted(provider.prompts()) == ["18446744073709551616", "18446744073709551617", "5"]
        assert [row["id"] for row in read(workspace.folder / "out")] == [5, large, large + 1]
        # A night without a large one keeps the table's type.
        lines(workspace, {"id": 5, "text": "c"}, {"id": 6, "text": "d"})
        told = cli.run(job)
        assert (told["rows_ok"], told["rows_reused"]) == (2, 1)

    def test_whole_numbers_that_no_decimal_holds_are_texts(self, cli: Cli, workspace: Workspace, read: Read) -> None:
        lines(workspace, {"id": 10**50, "text": "a"}, {"id": 10**50 + 1, "text": "b"})
        assert cli.run(workspace.job(source="{jsonl: rows.jsonl, key: id}"))["rows_ok"] == 2
        assert [row["id"] for row in read(workspace.folder / "out")] == [str(10**50), str(10**50 + 1)]

    def test_large_numbers_beside_fractions_stay_numbers(self, cli: Cli, workspace: Workspace, read: Read) -> None:
        lines(workspace, {"id": 1, "text": "a", "x": 1e300}, {"id": 2, "text": "b", "x": 0.5})
        job = workspace.job(source="{jsonl: rows.jsonl, key: id}", sink="{parquet: out, columns: [x]}")
        assert cli.run(job)["rows_ok"] == 2
        assert [row["x"] for row in read(workspace.folder / "out")] == [1e300, 0.5]

    @pytest.mark.parametrize(("deleted", "left"), [("keep", 2), ("remove", 0)])
    @pytest.mark.parametrize("empty", ["", "\n\n"])
    def test_a_night_without_a_line_is_a_night_with_nothing_to_do(
        self,
        cli: Cli,
        workspace: Workspace,
        provider: ScriptedProvider,
        read: Read,
        deleted: str,
        left: int,
        empty: str,
    ) -> None:
        lines(workspace, {"id": 1, "text": "a"}, {"id": 2, "text": "b"})
        sink = f"{{parquet: out, columns: all, deleted: {deleted}}}"
        job = workspace.job(source='{jsonl: rows.jsonl, key: id, where: "id % 2 < 5"}', sink=sink)
        assert cli.run(job)["rows_ok"] == 2
        workspace.write("rows.jsonl", empty)
        assert cli("validate", job) == cli("plan", job) == 0
        told = cli.run(job)
        assert (told["rows"], told["requests"], told["exit_code"]) == (0, 0, 0)
        assert len(read(workspace.folder / "out")) == left
        lines(workspace, {"id": 2, "text": "b"}, {"id": 3, "text": "c"})
        told = cli.run(job)
        assert (told["rows_ok"], told["rows_reused"]) == (2, 1)
        assert len(provider.seen) == 3

    def test_a_first_night_without_a_line_is_a_mistake(self, cli: Cli, workspace: Workspace) -> None:
        lines(workspace)
        line = refused(cli, workspace.job(source="{jsonl: rows.jsonl, key: id}"))
        assert line.endswith("rows.jsonl: has no object with a key; check that the source is not empty")

    def test_a_wrong_column_is_told_on_an_empty_night_as_well(self, cli: Cli, workspace: Workspace) -> None:
        lines(workspace, {"id": 1, "text": "a"})
        assert cli.run(workspace.job(source="{jsonl: rows.jsonl, key: id}"))["exit_code"] == 0
        lines(workspace)
        job = workspace.job(source="{jsonl: rows.jsonl, key: id}", steps=f"[{step('answer', '{{ txt }}')}]")
        assert "no column txt here; did you mean text?" in refused(cli, job)

    @pytest.mark.parametrize("row", [{"id": 1, "text": "a", "Text": "b"}, {"id": 1, "text": [{"x": 1, "X": 2}]}])
    def test_keys_that_differ_in_case_only_are_told(self, cli: Cli, workspace: Workspace, row: dict[str, Any]) -> None:
        lines(workspace, row)
        line = refused(cli, workspace.job(source="{jsonl: rows.jsonl, key: id}"))
        assert line.endswith(", which are one column in SQL; rename one")


def test_a_key_of_decimals_that_would_be_rounded_is_refused(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    keys = pa.array([decimal.Decimal(1), decimal.Decimal(2)], pa.decimal256(60, 0))
    pq.write_table(pa.table({"id": keys, "text": ["a", "b"]}), workspace.folder / "rows.parquet")
    line = refused(cli, workspace.job(source="{parquet: rows.parquet, key: id}"))
    assert "source.key: id has decimals of 60 digits in " in line
    assert line.endswith("rows.parquet, of which 17 would be read; write the column as text")
    assert len(provider.seen) == NOTHING_SENT


def test_a_key_of_doubles_is_as_good_as_any(cli: Cli, workspace: Workspace) -> None:
    pq.write_table(pa.table({"id": [1.5, 2.5], "text": ["a", "b"]}), workspace.folder / "rows.parquet")
    job = workspace.job(source="{parquet: rows.parquet, key: id}")
    assert [cli.run(job)["rows_reused"] for _ in range(2)] == [0, 2]


class TestBrokenParts:
    """A part of the sink whose bytes are not those that were written."""

    COMMANDS = (("run",), ("plan",), ("report",), ("run", "--compare", "--limit", "1"), ("show", "1"))

    @pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
    @pytest.mark.parametrize("how", ["cut", "holes"])
    def test_it_is_named_and_what_to_do_is_told(
        self, cli: Cli, workspace: Workspace, provider: ScriptedProvider, command: tuple[str, ...], how: str
    ) -> None:
        workspace.csv(50)
        job = workspace.job()
        assert cli.run(job)["exit_code"] == 0
        part = max((workspace.folder / "out/results").glob("*.parquet"), key=lambda file: file.stat().st_size)
        whole = part.read_bytes()
        half = len(whole) // 2
        # With holes the footer stays: only who reads the values can see it.
        part.write_bytes(whole[:half] if how == "cut" else whole[:200] + bytes(half - 200) + whole[half:])
        name, *rest = command
        assert cli(name, job, *rest) == 2
        (line,) = cli.err.splitlines()
        # Of broken headers of pages, DuckDB does not say in which file they are.
        assert line.startswith((f"{part}: cannot be read (", "the sink: one of its Parquet files cannot be read ("))
        assert line.endswith(" move it away and run again: answers in the ledger are not requested again")
        part.unlink()
        told = cli.run(job)
        assert (told["rows_ok"], told["requests"], len(provider.seen)) == (50, 0, 50)


class TestFlags:
    """Flags of the command line."""

    def test_an_empty_sink_does_not_write_into_the_sink_of_the_job_file(self, cli: Cli, workspace: Workspace) -> None:
        workspace.csv(1)
        job = workspace.job()
        line = "rowmill run: Invalid value for '--sink': is empty; name a folder or a file; see rowmill run --help"
        assert refused(cli, job, "--sink", "") == line
        assert not (workspace.folder / "out").exists()

    @pytest.mark.parametrize(
        "command",
        [("run", "--compare"), ("run", "--compare", "--engine", "ray"), ("retry", "--class", "tiemout")],
        ids=" ".join,
    )
    def test_a_mistake_in_flags_has_its_line_of_json_as_well(
        self, cli: Cli, workspace: Workspace, command: tuple[str, ...]
    ) -> None:
        workspace.csv(1)
        name, *flags = command
        assert cli(name, workspace.job(), "--json", *flags) == 2
        told = json.loads(cli.out)
        assert (told["job"], told["exit_code"], f"{told['stopped']}\n") == ("job", 2, cli.err)


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ("chat, messages: [{user: hi}], params: {seed: %s}", "steps.s.params.seed: found %s"),
        ("chat, messages: [{user: hi}], extra_body: {a: %s}", "cannot be written as JSON"),
        ("embeddings, input: hi, extra_body: {a: %s}", "steps.s.extra_body: cannot be written as JSON"),
    ],
)
def test_a_number_beyond_64_bits_is_told_before_anything_is_sent(
    cli: Cli, workspace: Workspace, given: str, where: str
) -> None:
    workspace.csv(1)
    number = str(10**25)
    job = workspace.job(steps="[{name: s, provider: test, model: m, endpoint: %s}]" % (given % number))
    assert where.replace("%s", number) in refused(cli, job)
