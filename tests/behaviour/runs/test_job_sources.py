"""Sources over other jobs: order, changed rows only, and what is refused."""

from pathlib import Path

import pytest

from tests.conftest import Cli, ReadTable, ScriptedProvider, Workspace

QUERY = "select answer, count(*) as n, list(id order by id) as ids from tickets group by answer"


@pytest.fixture
def tickets(workspace: Workspace) -> Path:
    """A job with four rows, whose answers are A, B, A and B."""
    workspace.write("rows.csv", "id,text\n1,a\n2,b\n3,a\n4,b\n")
    return workspace.job("tickets", sink="{parquet: out/tickets}")


def group_job(workspace: Workspace, name: str = "group", query: str = QUERY, jobs: str = "{tickets: tickets}") -> Path:
    steps = '[{name: summary, endpoint: chat, provider: test, model: m, messages: [{user: "{{ answer }}: {{ ids }}"}]}]'
    source = f'{{sql: "{query}", jobs: {jobs}, key: answer}}'
    return workspace.job(name, source=source, steps=steps, sink=f"{{parquet: out/{name}, columns: [n]}}")


@pytest.mark.parametrize("sink", ["parquet: ../elsewhere", "duckdb: out/t.duckdb, table: t", "delta: out/delta"])
def test_a_group_is_requested_again_if_its_rows_changed(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable, tickets: Path, sink: str
) -> None:
    tickets = workspace.job("tickets", sink=f"{{{sink}}}")
    group = group_job(workspace)
    # The folder runs in order, whatever the names of the files.
    assert cli("run", group, tickets, "--quiet") == 0, cli.err
    rows = [(row["answer"], row["n"], row["summary"]) for row in read(workspace.folder / "out/group", order="answer")]
    assert rows == [("A", 2, "A: [1,3]"), ("B", 2, "B: [2,4]")]
    assert (cli.run(group)["requests"], len(provider.seen)) == (0, 4)
    workspace.write("rows.csv", "id,text\n1,a\n2,b\n3,a\n4,b\n5,b\n")
    assert cli.run(tickets)["rows_ok"] == 5
    assert (cli.run(group)["requests"], provider.prompts()[-1]) == (1, "B: [2,4,5]")


def test_jobs_are_joined_with_each_other_and_with_files(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, tickets: Path
) -> None:
    assert cli.run(tickets)["requests"] == 2
    query = (
        "select t.id as answer, count(*) as n, list(o.answer || r.text order by all) as ids "
        "from tickets t join others o using (id) join 'rows.csv' r using (id) where id = 1 group by all"
    )
    assert cli.run(group_job(workspace, query=query, jobs="{tickets: tickets, others: tickets}"))["rows_ok"] == 1
    assert provider.prompts()[-1] == '1: ["Aa"]'


@pytest.mark.parametrize("command", ["run", "plan", "validate"])
def test_mistakes_are_found_before_anything_is_sent(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, tickets: Path, command: str
) -> None:
    def error(query: str = QUERY, jobs: str = "{tickets: tickets}") -> str:
        assert cli(command, group_job(workspace, query=query, jobs=jobs)) == 2
        return cli.err.partition("group.yaml:2: ")[2].strip()

    assert error() == "source.jobs.tickets: tickets has no results yet; run that job first"
    assert cli("run", tickets, "--quiet") == 0
    assert error(jobs="{tickets: tiket}") == "source.jobs.tickets: tiket: no such job; did you mean tickets?"
    assert error("select answr as answer from tickets") == (
        'source.sql: Referenced column "answr" not found in FROM clause!; fix the query'
    )
    assert error("select _part as answer from tickets").startswith('source.sql: Referenced column "_part" not found')
    assert error("select * from ticket").startswith("source.sql: Table with name ticket does not exist!")
    assert error("select * from read_csv('/etc/passwd')").startswith("source.sql: Cannot access file ")
    error(jobs="{tickets: group}")
    assert "source.jobs.tickets: jobs read each other in a cycle: group -> group; break it\n" in cli.err
    assert len(provider.seen) == 2


@pytest.mark.parametrize(("command", "shown"), [("plan", "group\n\ntickets: 4 rows"), ("validate", "OK, job tickets")])
def test_a_folder_that_no_run_has_seen_is_in_order(
    workspace: Workspace, cli: Cli, tickets: Path, command: str, shown: str
) -> None:
    group = group_job(workspace)
    assert cli(command, group, tickets) == 0
    assert cli.err == f"{group}:2: source.jobs.tickets: tickets has no results yet; run that job first\n"
    assert shown in cli.out
    assert cli(command, group, workspace.job("other", sink="{parquet: other}")) == 2


def test_a_job_outside_the_workspace_opens_no_other_file_of_its_folder(
    workspace: Workspace, cli: Cli, tickets: Path, tmp_path: Path
) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    tickets = workspace.job("tickets", sink=f"{{parquet: {outside}}}")
    assert cli("run", tickets, "--quiet") == 0
    job = group_job(workspace, query=f"select count(*) as answer from '{outside}/usage/*.parquet', tickets")
    assert cli("run", job) == 2
    assert "source.sql: Cannot access" in cli.err


def test_circles_are_refused_also_if_one_of_the_jobs_runs_alone(workspace: Workspace, cli: Cli) -> None:
    circle = {"a": "b", "b": "c", "c": "a"}
    jobs = [group_job(workspace, name, jobs=f"{{tickets: {other}}}") for name, other in circle.items()]
    assert cli("run", jobs[0]) == 2
    assert "a.yaml:2: source.jobs.tickets: jobs read each other in a cycle: a -> b -> c -> a; break it" in cli.err
    assert cli("run", *jobs) == 2
    assert "a.yaml: source.jobs.tickets: jobs read each other in a cycle: a -> b -> c -> a; break it" in cli.err
