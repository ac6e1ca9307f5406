"""Problems that users reported: name clashes, large numbers, empty sources, damaged files."""

import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Cli, ReadTable, ScriptedProvider, Workspace

NOTHING_SENT = 0


def step(name: str, text: str, more: str = "") -> str:
    return f'{{name: {name}, endpoint: chat, provider: test, model: m, messages: [{{user: "{text}"}}]{more}}}'


def write_lines(workspace: Workspace, *rows: dict[str, Any]) -> None:
    workspace.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def refused(cli: Cli, job: Path, *flags: str) -> str:
    """Run a job that is refused and return its error message, which the report has too."""
    report = cli.run(job, *flags)
    (line,) = cli.err.splitlines()
    assert (report["exit_code"], report["stopped"], report["rows"]) == (2, line, None)
    return line


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(step("label", "{{ label }}"), id="read by the step itself"),
        pytest.param(step("label", "{{ text }}") + ", " + step("b", "{{ label }}"), id="read by a later one"),
        pytest.param(step("label", "{{ text }}", ", when: label > 'a'"), id="read by its when"),
    ],
)
def test_an_output_with_the_name_of_a_column_that_a_step_reads_is_an_error_before_anything_is_sent(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, steps: str
) -> None:
    workspace.write("rows.csv", "id,label,text\n1,a,x\n")
    line = refused(cli, workspace.job(steps=f"[{steps}]"))
    assert line.endswith("steps.label.output: the source has a column label as well; give this output another name")
    assert len(provider.seen) == NOTHING_SENT


@pytest.mark.parametrize("name", ["_part", "_key", "_in_errors", "_row_x", '""'])
def test_an_output_of_a_reserved_name_is_an_error_before_anything_is_sent(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, name: str
) -> None:
    workspace.write("rows.csv", "id,text\n1,x\n")
    line = refused(cli, workspace.job(steps=f"[{step('label', '{{ text }}', f', output: {name}')}]"))
    found = "no text" if name == '""' else name
    assert line.endswith(f"steps.label.output: {found} is a reserved name; give this output another name")
    assert len(provider.seen) == NOTHING_SENT


def test_an_output_may_have_the_name_of_a_column_that_no_step_reads(
    cli: Cli, workspace: Workspace, read: ReadTable
) -> None:
    workspace.write("rows.csv", "id,label,text\n1,a,x\n")
    assert cli.run(workspace.job(steps=f"[{step('label', '{{ text }}')}]"))["exit_code"] == 0
    assert [(row["id"], row["label"]) for row in read(workspace.folder / "out")] == [(1, "X")]


def test_a_step_with_the_name_of_a_step_of_the_job_that_is_read_is_an_error(cli: Cli, workspace: Workspace) -> None:
    workspace.csv(2)
    assert cli.run(workspace.job("up", sink="{parquet: up}"))["rows_ok"] == 2
    down = workspace.job("down", source="{job: up, key: id}", steps=f"[{step('answer', '{{ answer }}!')}]")
    assert "steps.answer.output: the source has a column answer as well" in refused(cli, down)


@pytest.mark.parametrize("text", ["{{ row }}", "{{ row | tojson }}", "{% for name in row %}x{% endfor %}"])
def test_a_template_of_a_whole_row_is_an_error(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, text: str
) -> None:
    workspace.csv(2)
    line = refused(cli, workspace.job(steps=f"[{step('answer', text)}]"))
    assert 'row is used alone; name the columns, as in {{ body }} or {{ row["any name"] }}' in line
    assert len(provider.seen) == NOTHING_SENT


def test_row_returns_a_column_of_any_name(cli: Cli, workspace: Workspace, provider: ScriptedProvider) -> None:
    workspace.write("rows.csv", "id,any name,row\n1,x,y\n")
    text = "{{ row['any name'] }} {{ row.id }} {{ row['row'] }} {{ 'row' }}"
    assert cli.run(workspace.job(steps=f"[{step('answer', text)}]"))["exit_code"] == 0
    assert provider.prompts() == ["x 1 y row"]


class TestJsonLines:
    """Sources of JSON lines."""

    def test_whole_numbers_of_2_to_the_64_and_more_keep_all_their_digits(
        self, cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
    ) -> None:
        large = 1 << 64
        write_lines(workspace, {"id": large, "text": "a"}, {"id": large + 1, "text": "b"}, {"id": 5, "text": "c"})
        job = workspace.job(source="{jsonl: rows.jsonl, key: id}", steps=f"[{step('answer', '{{ id }}')}]")
        assert cli.run(job)["rows_ok"] == 3
        assert sorted(provider.prompts()) == ["18446744073709551616", "18446744073709551617", "5"]
        assert [row["id"] for row in read(workspace.folder / "out")] == [5, large, large + 1]
        # A source without a large number keeps the type of the table.
        write_lines(workspace, {"id": 5, "text": "c"}, {"id": 6, "text": "d"})
        report = cli.run(job)
        assert (report["rows_ok"], report["rows_reused"]) == (2, 1)

    def test_whole_numbers_too_large_for_a_decimal_are_text(
        self, cli: Cli, workspace: Workspace, read: ReadTable
    ) -> None:
        write_lines(workspace, {"id": 10**50, "text": "a"}, {"id": 10**50 + 1, "text": "b"})
        assert cli.run(workspace.job(source="{jsonl: rows.jsonl, key: id}"))["rows_ok"] == 2
        assert [row["id"] for row in read(workspace.folder / "out")] == [str(10**50), str(10**50 + 1)]

    def test_large_numbers_in_a_column_of_fractions_stay_numbers(
        self, cli: Cli, workspace: Workspace, read: ReadTable
    ) -> None:
        write_lines(workspace, {"id": 1, "text": "a", "x": 1e300}, {"id": 2, "text": "b", "x": 0.5})
        job = workspace.job(source="{jsonl: rows.jsonl, key: id}", sink="{parquet: out, columns: [x]}")
        assert cli.run(job)["rows_ok"] == 2
        assert [row["x"] for row in read(workspace.folder / "out")] == [1e300, 0.5]

    @pytest.mark.parametrize(
        ("deleted", "empty", "left"),
        # A file of no bytes is an export that failed: it removes nothing.
        [("keep", "", 2), ("keep", "\n\n", 2), ("remove", "", 2), ("remove", "\n\n", 0)],
    )
    def test_an_empty_file_counts_as_zero_rows_after_a_run_with_rows(
        self,
        cli: Cli,
        workspace: Workspace,
        provider: ScriptedProvider,
        read: ReadTable,
        deleted: str,
        empty: str,
        left: int,
    ) -> None:
        write_lines(workspace, {"id": 1, "text": "a"}, {"id": 2, "text": "b"})
        sink = f"{{parquet: out, columns: all, deleted: {deleted}}}"
        job = workspace.job(source='{jsonl: rows.jsonl, key: id, where: "id % 2 < 5"}', sink=sink)
        assert cli.run(job)["rows_ok"] == 2
        workspace.write("rows.jsonl", empty)
        assert cli("validate", job) == cli("plan", job) == 0
        report = cli.run(job)
        assert (report["rows"], report["requests"], report["exit_code"]) == (0, 0, 0)
        assert len(read(workspace.folder / "out")) == left
        write_lines(workspace, {"id": 2, "text": "b"}, {"id": 3, "text": "c"})
        report = cli.run(job)
        assert (report["rows_ok"], report["rows_reused"]) == (2, 1)
        assert len(provider.seen) == 3

    def test_an_empty_file_is_an_error_in_the_first_run(self, cli: Cli, workspace: Workspace) -> None:
        write_lines(workspace)
        line = refused(cli, workspace.job(source="{jsonl: rows.jsonl, key: id}"))
        assert line.endswith("rows.jsonl: has no rows, so its columns are unknown; run again when it has some")

    def test_a_misspelt_column_is_an_error_with_an_empty_file_too(self, cli: Cli, workspace: Workspace) -> None:
        write_lines(workspace, {"id": 1, "text": "a"})
        assert cli.run(workspace.job(source="{jsonl: rows.jsonl, key: id}"))["exit_code"] == 0
        write_lines(workspace)
        job = workspace.job(source="{jsonl: rows.jsonl, key: id}", steps=f"[{step('answer', '{{ txt }}')}]")
        assert "no column txt here; did you mean text?" in refused(cli, job)

    @pytest.mark.parametrize("row", [{"id": 1, "text": "a", "Text": "b"}, {"id": 1, "text": [{"x": 1, "X": 2}]}])
    def test_keys_that_differ_only_in_case_are_an_error(
        self, cli: Cli, workspace: Workspace, row: dict[str, Any]
    ) -> None:
        write_lines(workspace, row)
        line = refused(cli, workspace.job(source="{jsonl: rows.jsonl, key: id}"))
        assert line.endswith(", which are one column in SQL; rename one")


def test_a_key_of_decimals_that_would_be_rounded_is_an_error(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    keys = pa.array([decimal.Decimal(1), decimal.Decimal(2)], pa.decimal256(60, 0))
    pq.write_table(pa.table({"id": keys, "text": ["a", "b"]}), workspace.folder / "rows.parquet")
    line = refused(cli, workspace.job(source="{parquet: rows.parquet, key: id}"))
    assert "source: id has decimals of 60 digits in " in line
    assert line.endswith("rows.parquet', of which 17 would be read; write the column as text")
    assert len(provider.seen) == NOTHING_SENT


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        pytest.param(pa.array([2**53 + 1]), "BIGINT", id="whole number"),
        pytest.param(pa.array([decimal.Decimal("0.12345678901234567890")]), "DECIMAL(20,20)", id="decimal"),
    ],
)
def test_numbers_that_the_doubles_of_another_file_would_round_are_an_error(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, value: pa.Array, kind: str
) -> None:
    for name, text in (("a", value), ("b", pa.array([0.5]))):
        pq.write_table(pa.table({"id": [name], "text": text}), workspace.folder / f"{name}.parquet")
    job = workspace.job(source="{parquet: '*.parquet', key: id}")
    line = refused(cli, job)
    assert line.endswith(
        f"source: text is {kind} in {workspace.folder}/a.parquet and DOUBLE in others, which has not all of its "
        "digits; write the column with one type, or as text"
    )
    assert len(provider.seen) == NOTHING_SENT
    pq.write_table(pa.table({"id": ["a"], "text": [7]}), workspace.folder / "a.parquet")
    assert cli.run(job)["rows_ok"] == 2


def test_a_key_can_be_a_column_of_doubles(cli: Cli, workspace: Workspace) -> None:
    pq.write_table(pa.table({"id": [1.5, 2.5], "text": ["a", "b"]}), workspace.folder / "rows.parquet")
    job = workspace.job(source="{parquet: rows.parquet, key: id}")
    assert [cli.run(job)["rows_reused"] for _ in range(2)] == [0, 2]


class TestDamagedFiles:
    """A damaged Parquet file of the sink."""

    COMMANDS = (("run",), ("plan",), ("report",), ("run", "--compare", "--limit", "1"), ("show", "1"))

    @pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
    @pytest.mark.parametrize("how", ["cut", "holes"])
    def test_the_error_names_the_file_and_the_remedy(
        self, cli: Cli, workspace: Workspace, provider: ScriptedProvider, command: tuple[str, ...], how: str
    ) -> None:
        workspace.csv(50)
        job = workspace.job()
        assert cli.run(job)["exit_code"] == 0
        part = max((workspace.folder / "out/results").glob("*.parquet"), key=lambda file: file.stat().st_size)
        whole = part.read_bytes()
        half = len(whole) // 2
        # With holes the footer is intact: only a reader of the values notices.
        part.write_bytes(whole[:half] if how == "cut" else whole[:200] + bytes(half - 200) + whole[half:])
        name, *rest = command
        assert cli(name, job, *rest) == 2
        (line,) = cli.err.splitlines()
        # DuckDB does not name the file of broken page headers.
        assert line.startswith((f"{part}: cannot be read (", "the sink: one of its Parquet files cannot be read ("))
        assert line.endswith(" move it away and run again: answers in the ledger are not requested again")
        part.unlink()
        report = cli.run(job)
        assert (report["rows_ok"], report["requests"], len(provider.seen)) == (50, 0, 50)


class TestFlags:
    """Flags of the command line."""

    def test_an_empty_sink_flag_does_not_write_to_the_sink_of_the_job_file(
        self, cli: Cli, workspace: Workspace
    ) -> None:
        workspace.csv(1)
        job = workspace.job()
        line = "rowmill run: Invalid value for '--sink': is empty; name a folder or a file; see rowmill run --help"
        assert refused(cli, job, "--sink", "") == line
        assert not (workspace.folder / "out").exists()

    def test_a_missing_flag_is_told_in_one_line(self, cli: Cli) -> None:
        assert cli("schedule", "install") == 2
        found, remedy = "Missing option '--as'. Choose from: crontab, systemd", "see rowmill schedule install --help"
        assert cli.err == f"rowmill schedule install: {found}; {remedy}\n"

    @pytest.mark.parametrize(
        "command",
        [("run", "--compare"), ("run", "--compare", "--engine", "ray"), ("retry", "--class", "tiemout")],
        ids=" ".join,
    )
    def test_an_error_in_flags_is_reported_as_json_too(
        self, cli: Cli, workspace: Workspace, command: tuple[str, ...]
    ) -> None:
        workspace.csv(1)
        name, *flags = command
        assert cli(name, workspace.job(), "--json", *flags) == 2
        report = json.loads(cli.out)
        assert (report["job"], report["exit_code"], f"{report['stopped']}\n") == ("job", 2, cli.err)


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ("chat, messages: [{user: hi}], params: {seed: %s}", "steps.s.params.seed: found %s"),
        ("chat, messages: [{user: hi}], extra_body: {a: %s}", "cannot be written as JSON"),
        ("embeddings, input: hi, extra_body: {a: %s}", "steps.s.extra_body: cannot be written as JSON"),
    ],
)
def test_a_number_beyond_64_bits_is_an_error_before_anything_is_sent(
    cli: Cli, workspace: Workspace, given: str, where: str
) -> None:
    workspace.csv(1)
    number = str(10**25)
    job = workspace.job(steps="[{name: s, provider: test, model: m, endpoint: %s}]" % (given % number))
    assert where.replace("%s", number) in refused(cli, job)


@pytest.mark.parametrize(("command", "found"), [("status", "no run yet"), ("usage", "nothing was sent yet")])
def test_a_workspace_without_runs_is_named(workspace: Workspace, cli: Cli, command: str, found: str) -> None:
    assert cli(command, str(workspace.folder)) == 0
    assert cli.out == f"{found} in the workspace {workspace.folder}\n"
