"""Several job files: their order, and the errors of cycles, shared names and shared sinks."""

from pathlib import Path

import pytest

from connectors.errors import JobError
from pipelines.config.job_graph import load_jobs, render_graph, sinks_by_job, sort_jobs
from pipelines.config.job_suggestions import list_job_files
from pipelines.config.loaded_job import load_job


def write_job(name: str, reads: str | None = None, sink: str | None = None, file: str | None = None) -> Path:
    """Write a job that reads a CSV file, or another job's results."""
    source = "{csv: rows.csv}" if reads is None else f"{{job: {reads}}}"
    path = Path("jobs") / f"{file or name}.yaml"
    path.write_text(
        f"name: {name}\nsource: {source}\n"
        'steps: [{name: label, endpoint: chat, model: m, messages: [{user: "{{ text }}"}]}]\n'
        f"sink: {{parquet: {sink or name}}}\n"
    )
    return path


@pytest.mark.usefixtures("folder")
def test_a_job_follows_the_jobs_that_it_reads() -> None:
    paths = [write_job("c", "b"), write_job("b", "a"), write_job("a"), write_job("d", "elsewhere")]
    jobs = sort_jobs(load_jobs(paths))
    assert [(job.name, job.needs) for job in jobs] == [("a", ()), ("b", ("a",)), ("c", ("b",)), ("d", ())]
    assert [job.require().job.name for job in jobs] == ["a", "b", "c", "d"]


@pytest.mark.usefixtures("folder")
def test_an_invalid_file_has_its_path_as_name_and_raises_its_error_when_it_is_needed() -> None:
    path = write_job("a")
    path.write_text("name: a\n")
    (job,) = sort_jobs(load_jobs([path]))
    assert (job.name, job.loaded) == (str(path), None)
    with pytest.raises(JobError, match=r"jobs/a\.yaml:1: source: missing"):
        job.require()


def sort_error(*paths: Path) -> str:
    with pytest.raises(JobError) as caught:
        sort_jobs(load_jobs(paths))
    return str(caught.value)


@pytest.mark.usefixtures("folder")
def test_jobs_that_read_each_other_are_an_error() -> None:
    assert sort_error(write_job("a", "b"), write_job("b", "a")) == (
        "jobs/a.yaml: source.job: jobs read each other in a cycle: a -> b -> a; break it"
    )


@pytest.mark.usefixtures("folder")
def test_two_jobs_with_one_name_are_an_error() -> None:
    assert sort_error(write_job("a"), write_job("a", sink="other", file="copy")) == (
        "jobs/copy.yaml: name: a is the name of jobs/a.yaml too; give each its own name"
    )


@pytest.mark.usefixtures("folder")
def test_two_jobs_with_one_sink_are_an_error_however_it_is_written() -> None:
    assert sort_error(write_job("a"), write_job("b", sink="../jobs/a")) == (
        "jobs/b.yaml: sink: ../jobs/a is the sink of jobs/a.yaml too; give each job a separate sink"
    )


@pytest.mark.usefixtures("folder")
def test_the_graph_is_rendered_as_a_tree() -> None:
    paths = [write_job("a"), write_job("b", "a"), write_job("c", "b"), write_job("d", "a"), write_job("e")]
    assert render_graph(sort_jobs(load_jobs(paths))) == "a\n├─ b\n│  └─ c\n└─ d\ne"


@pytest.mark.usefixtures("folder")
def test_the_other_jobs_of_the_workspace_are_known_and_the_one_that_is_read_has_a_sink() -> None:
    write_job("a")
    Path("jobs/broken.yaml").write_text("name: [\n")
    Path("jobs/invalid.yaml").write_text("name: invalid\n")
    Path("rowmill.yaml").write_text("")
    sinks = sinks_by_job(load_job(write_job("b", "a")))
    assert {name: sink is not None for name, sink in sinks.items()} == {"a": True, "invalid": False}


def test_job_files_are_listed_without_the_workspace_file(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", "rowmill.yaml", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.yaml").mkdir()
    assert list_job_files(tmp_path) == [tmp_path / "a.yaml", tmp_path / "b.yml"]
    assert list_job_files(tmp_path / "none") == []
