"""What to do if a path leads to no job file: wherever one is, and however it is misspelt."""

from pathlib import Path

import pytest

from connectors.errors import JobError
from pipelines.config.job_suggestions import suggest_in_folder
from pipelines.config.loaded_job import load_job
from tests.conftest import Cli

CHECK = "check the path"
INIT = "`rowmill init DIR` writes a job to start from"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with two jobs."""
    (tmp_path / "jobs").mkdir()
    for name in ("rowmill.yaml", "jobs/tickets.yaml", "jobs/replies.yml"):
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "given", "remedy"),
    [
        (".", "jobs/ticket.yaml", "did you mean jobs/tickets.yaml?"),
        (".", "jobs/tickets.yml", "did you mean jobs/tickets.yaml?"),
        (".", "tickets", "did you mean jobs/tickets.yaml?"),
        (".", "tickets.yaml", "did you mean jobs/tickets.yaml?"),
        (".", "jobs/other.yaml", CHECK),
        ("jobs", "replys.yml", "did you mean replies.yml?"),
        ("jobs", "jobs/tickets.yaml", "did you mean tickets.yaml?"),
        ("data", "tickets.yaml", "did you mean ../jobs/tickets.yaml?"),
    ],
)
def test_a_missing_file_gets_the_job_with_the_most_similar_name(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, folder: str, given: str, remedy: str
) -> None:
    (workspace / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(workspace / folder)
    with pytest.raises(JobError) as caught:
        load_job(given)
    assert str(caught.value) == f"{given}: no such file; {remedy}"


def test_a_missing_file_in_an_empty_folder_gets_the_command_that_writes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match=f"job.yaml: no such file; check the path .{INIT}"):
        load_job("job.yaml")


def test_a_folder_without_jobs_gets_its_folder_jobs_or_the_command_that_writes_one(workspace: Path) -> None:
    assert suggest_in_folder(workspace) == f"did you mean {workspace}/jobs?"
    assert suggest_in_folder(workspace / "none") == f"name a folder with .yaml files, or begin with one: {INIT}"


def test_a_command_without_a_job_gets_an_example_of_this_folder(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(workspace)
    assert cli("run") == 2
    assert cli.err == "rowmill run: Missing argument 'JOB...'; write e.g. jobs/replies.yml\n"
    monkeypatch.chdir(workspace / "jobs")
    assert cli("report") == 2
    assert cli.err == "rowmill report: Missing argument 'JOB'; write e.g. replies.yml\n"
    (workspace / "empty").mkdir()
    monkeypatch.chdir(workspace / "empty")
    assert cli("plan") == 2
    assert cli.err == f"rowmill plan: Missing argument 'JOB...'; {INIT}\n"
