"""Exit code 1: any failed row, or with `--fail-on new` only a row that failed in this run."""

import json
from pathlib import Path

import pytest

from tests.conftest import Cli, ScriptedProvider, Workspace, error_reply

ONE_REFUSED = "text 2"


@pytest.fixture
def refusing(provider: ScriptedProvider) -> ScriptedProvider:
    """A provider that refuses one row for a reason of its own."""
    provider.script = lambda path, body, count: (
        error_reply(400, "too odd") if body["messages"][-1]["content"] == ONE_REFUSED else None
    )
    return provider


def nights(cli: Cli, job: Path, *flags: str) -> list[int]:
    """The exit codes of three runs of the same job."""
    return [cli("run", job, "--quiet", *flags) for _ in range(3)]


def test_a_failed_row_ends_every_run_with_1(workspace: Workspace, refusing: ScriptedProvider, cli: Cli) -> None:
    workspace.csv(4)
    assert nights(cli, workspace.job()) == [1, 1, 1]


@pytest.mark.parametrize("write", ["merge", "append", "replace"])
def test_with_fail_on_new_a_failed_row_ends_only_the_run_in_which_it_failed(
    workspace: Workspace, refusing: ScriptedProvider, cli: Cli, write: str
) -> None:
    workspace.csv(4)
    job = workspace.job(sink=f"{{parquet: out, write: {write}}}")
    assert nights(cli, job, "--fail-on", "new") == [1, 0, 0]
    assert cli("run", job, "--quiet") == 1


def test_with_fail_on_new_the_report_still_counts_old_failures(
    workspace: Workspace, refusing: ScriptedProvider, cli: Cli
) -> None:
    workspace.csv(4)
    job = workspace.job()
    cli("run", job, "--quiet")
    report = cli.run(job, "--fail-on", "new")
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"], report["requests"]) == (0, 3, 1, 0)


def test_with_fail_on_new_another_failed_row_is_new(workspace: Workspace, refusing: ScriptedProvider, cli: Cli) -> None:
    workspace.csv(4)
    job = workspace.job()
    assert cli("run", job, "--quiet") == 1
    workspace.write("rows.csv", "id,text\n1,text 1\n2,text 2\n3,text 3\n4,text 4\n5,text 2\n")
    assert nights(cli, job, "--fail-on", "new") == [1, 0, 0]


def test_a_retry_in_which_the_row_fails_again_is_a_new_failure(
    workspace: Workspace, refusing: ScriptedProvider, cli: Cli
) -> None:
    workspace.csv(4)
    job = workspace.job()
    assert cli("run", job, "--quiet") == 1
    assert cli("retry", job, "--quiet", "--fail-on", "new") == 1
    assert cli("retry", job, "--quiet", "--fail-on", "new", "--class", "length") == 0


@pytest.mark.parametrize("write", ["merge", "replace"])
def test_a_rejected_line_is_old_if_an_earlier_run_rejected_it_at_whatever_line(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, write: str
) -> None:
    workspace.write("rows.csv", "id,text\n1,one\n2,two,more\n")
    job = workspace.job(source="{csv: rows.csv, key: id, rejects: keep}", sink=f"{{parquet: out, write: {write}}}")
    assert nights(cli, job, "--fail-on", "new") == [1, 0, 0]
    workspace.write("rows.csv", "id,text\n1,one\n3,three\n2,two,more\n")
    assert cli("run", job, "--quiet", "--fail-on", "new") == 0
    workspace.write("rows.csv", "id,text\n1,one\n3,three\n2,two,more\n2,two,more\n")
    assert cli("run", job, "--quiet", "--fail-on", "new") == 1


def test_several_jobs_get_the_flag(workspace: Workspace, refusing: ScriptedProvider, cli: Cli) -> None:
    workspace.csv(4)
    first, second = workspace.job("first", sink="{parquet: out1}"), workspace.job("second", sink="{parquet: out2}")
    for job in (first, second):
        assert cli("run", job, "--quiet") == 1
    assert cli("run", first, second, "--quiet", "--json", "--fail-on", "new") == 0
    reports = [json.loads(line) for line in cli.out.splitlines()]
    assert [(report["exit_code"], report["rows_failed"]) for report in reports] == [(0, 1), (0, 1)]
