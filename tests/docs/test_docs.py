"""What is written for people holds: commands parse, links lead somewhere, examples are right, keys are all told."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import duckdb
import pytest

from pipelines.cli import rowmill
from pipelines.config.loaded_job import load_job
from tests.docs.key_tables import with_keys

ROOT = Path(__file__).parents[2]
README, JOBS = ROOT / "README.md", ROOT / "jobs" / "README.md"
PAGES = (README, JOBS)


def fences(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command with its path, subcommands included."""

    def below(
        group: click.Group, context: click.Context, path: str
    ) -> Iterator[tuple[str, click.Command, click.Context]]:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            own = click.Context(command, info_name=name, parent=context)
            yield f"{path} {name}", command, own
            if isinstance(command, click.Group):
                yield from below(command, own, f"{path} {name}")

    yield from below(rowmill, click.Context(rowmill, info_name="rowmill"), "rowmill")


COMMANDS = list(commands())


def parses(words: list[str]) -> None:
    """Finds the command of `rowmill …` and reads its arguments, without running it."""
    context = click.Context(rowmill, info_name="rowmill")
    command: click.Command = rowmill
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, f"{words[0]}: no such command"
        command, words = found, words[1:]
    command.make_context(command.name, list(words), parent=context)


def told_commands() -> list[str]:
    """Every `rowmill …` in the shell parts of the pages and in the examples of --help."""
    lines = [line for page in PAGES for fence in fences(page, "sh") for line in fence.splitlines()]
    lines += [line for _, command, _ in COMMANDS for line in (command.help or "").splitlines() if " rowmill " in line]
    found: list[str] = []
    for line in lines:
        for part in line.split("&&"):
            words = part.split("|")[0].split(" > ")[0].strip()
            if re.match(r"(\.venv/bin/)?rowmill ", words):
                found.append(words.partition("rowmill ")[2])
    return sorted(set(found))


@pytest.mark.parametrize("words", told_commands())
def test_every_command_that_is_told_can_be_given(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file to upload must be there.
    (tmp_path / "requests.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    parses(shlex.split(words))


@pytest.mark.parametrize(("path", "command", "context"), COMMANDS, ids=[path for path, *_ in COMMANDS])
def test_every_command_says_what_it_does_with_an_example(
    path: str, command: click.Command, context: click.Context
) -> None:
    told = command.get_help(context)
    assert re.search(r"^  Examples?:\n +rowmill ", told, re.MULTILINE), f"{path} --help has no example"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts[0]} says nothing of itself"


def test_the_readme_tells_every_command() -> None:
    text = README.read_text()
    missing = [path for path, command, _ in COMMANDS if path.count(" ") == 1 and f"`{path.split()[1]}" not in text
               and f"`{path}" not in text]  # fmt: skip
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=["README.md", "jobs/README.md"])
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file) if file else page
        assert found.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}, target


def test_the_list_of_keys_is_that_of_the_schema() -> None:
    text = JOBS.read_text()
    if os.environ.get("ROWMILL_SCREENS") == "write":
        JOBS.write_text(with_keys(text))
    assert JOBS.read_text() == with_keys(text)


def test_every_job_here_is_told_of() -> None:
    text = JOBS.read_text()
    jobs = [path.name for path in (ROOT / "jobs").glob("*.yaml")]
    assert [name for name in jobs if f"({name})" not in text] == []


def test_the_job_file_of_the_readme_is_right(tmp_path: Path) -> None:
    (text,) = (fence for fence in fences(README, "yaml") if fence.startswith("name:"))
    (tmp_path / "job.yaml").write_text(text)
    job = load_job(tmp_path / "job.yaml").job
    assert [step.name for step in job.steps] == ["label", "vector"]


@pytest.mark.parametrize("sql", [sql for page in PAGES for fence in fences(page, "sql") for sql in fence.split(";\n")])
def test_the_sql_that_is_told_is_sql(sql: str) -> None:
    if sql.strip():
        with duckdb.connect() as db:
            ((parsed,),) = db.execute("select json_serialize_sql(?)", [sql]).fetchall()
        assert '"error":false' in parsed


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("rum", "job.yaml"), "rowmill rum: no such command; did you mean run?\n"),
        (("run", "job.yaml", "--limt", "3"), "did you mean one of: '--limit'"),
        (("schedule", "shwo"), "did you mean 'show'?"),
        (("plan",), "rowmill plan: Missing argument 'JOB...'; see rowmill plan --help\n"),
    ],
)
def test_a_wrong_command_is_told_in_one_line_with_what_was_meant(cli: Any, given: tuple[str, ...], told: str) -> None:
    assert cli(*given) == 2
    assert cli.out == ""
    assert cli.err.count("\n") == 1
    assert told.lower() in cli.err.lower()


def test_init_writes_a_job_that_editors_can_check(cli: Any, tmp_path: Path) -> None:
    assert cli("init", tmp_path / "mine") == 0
    first = (tmp_path / "mine/jobs/quickstart.yaml").read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    schema = tmp_path / "mine/jobs" / first.partition("=")[2]
    assert '"$schema"' in schema.read_text()
