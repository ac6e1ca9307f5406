"""How often a command parses each YAML file: once."""

from collections import Counter
from pathlib import Path

import pytest

from pipelines.config import yaml_reader
from tests.conftest import Cli, Workspace

EMBEDDING = '[{name: v, endpoint: embeddings, provider: test, model: e, input: "{{ text }}"}]'


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was parsed in this process: file name -> count."""
    counts: Counter[str] = Counter()
    parse = yaml_reader.parse_yaml

    def counting(text: str, shown: str) -> yaml_reader.YamlFile:
        counts[Path(shown).name] += 1
        return parse(text, shown)

    monkeypatch.setattr(yaml_reader, "parse_yaml", counting)
    return counts


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--limit", "1"),
        ("--set", "steps.answer.model=n", "--set", "sink.parquet=elsewhere"),
        ("--limit", "1", "--compare", "--set", "steps.answer.model=n"),
        ("--delivery", "online", "--budget-usd", "1", "--new-run"),
    ],
)
def test_a_run_parses_its_job_file_once(
    workspace: Workspace, cli: Cli, parsed: Counter[str], flags: tuple[str, ...]
) -> None:
    workspace.csv(2)
    report = cli.run(workspace.job(), *flags)
    assert report["exit_code"] == 0
    assert parsed == {"job.yaml": 1, "rowmill.yaml": 1}


def test_a_run_that_probes_dimensions_and_calls_a_hook_parses_its_job_file_once(
    workspace: Workspace, cli: Cli, parsed: Counter[str]
) -> None:
    workspace.csv(2)
    job = workspace.job(steps=EMBEDDING, on_finish='{command: "true"}', audits='[{name: a, sql: "from results"}]')
    assert cli.run(job)["exit_code"] == 5
    assert parsed == {"job.yaml": 1, "rowmill.yaml": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan",),
        ("validate",),
        ("retry",),
        ("rebuild",),
        ("errors",),
        ("show", "1"),
        ("status",),
        ("usage",),
        ("report", "-o", "report.html"),
    ],
)
def test_every_command_parses_its_job_file_once(
    workspace: Workspace,
    cli: Cli,
    parsed: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(workspace.folder)
    workspace.csv(2)
    job = workspace.job()
    assert cli.run(job)["exit_code"] == 0
    parsed.clear()
    command, *rest = arguments
    assert cli(command, job, *rest) == 0
    assert parsed == {"job.yaml": 1, "rowmill.yaml": 1}


@pytest.mark.parametrize("command", ["run", "plan", "validate"])
def test_a_job_that_reads_another_job_parses_both_files_once(
    workspace: Workspace, cli: Cli, parsed: Counter[str], command: str
) -> None:
    workspace.csv(2)
    workspace.job("other", sink="{parquet: other}")
    assert cli.run(workspace.job("first"))["exit_code"] == 0
    steps = '[{name: again, endpoint: chat, provider: test, model: m, messages: [{user: "{{ answer }}"}]}]'
    second = workspace.job("second", source="{job: first, key: id}", steps=steps, sink="{parquet: second}")
    parsed.clear()
    assert cli(command, second) == 0
    assert parsed == {"first.yaml": 1, "second.yaml": 1, "other.yaml": 1, "rowmill.yaml": 1}


def test_a_run_of_a_folder_parses_each_job_file_once_before_it_starts_them(
    workspace: Workspace, cli: Cli, parsed: Counter[str]
) -> None:
    workspace.csv(2)
    (workspace.folder / "jobs").mkdir()
    for name in ("a", "b"):
        workspace.job(name, sink=f"{{parquet: {name}}}").rename(workspace.folder / "jobs" / f"{name}.yaml")
    assert cli("run", workspace.folder / "jobs", "--json", "--quiet") == 0
    assert (parsed["a.yaml"], parsed["b.yaml"]) == (1, 1)
