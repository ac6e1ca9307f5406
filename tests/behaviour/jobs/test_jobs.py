"""Every shipped job file finishes with the embedded provider; a second run sends nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli import exit_code_of
from pipelines.config.loaded_job import load_job
from tests.conftest import Body, Cli

JOBS = Path(__file__).parents[3] / "jobs"
QUICKSTART = "quickstart.yaml"
LARGE = ("from-csv.yaml",)
"""Jobs with thousands of rows, of which the first are enough."""
FILES = sorted(path.name for path in JOBS.glob("*.yaml") if path.name != "rowmill.yaml")


def copy_of(folder: Path, target: Path) -> Path:
    """Copy the job files and their data, without the output of runs."""
    return shutil.copytree(folder, target / "jobs", ignore=shutil.ignore_patterns("out", ".rowmill"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder, without the output of runs."""
    return copy_of(JOBS, tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder with some results of the quickstart."""
    folder = copy_of(JOBS, tmp_path_factory.mktemp("labelled"))
    assert exit_code_of(["run", str(folder / QUICKSTART), "--quiet", "--limit", "200"]) == 0
    return folder


def check(cli: Cli, job: Path, *arguments: str) -> None:
    """Run a job to its end, and once more without a request."""
    report = cli.run(job, *arguments)
    assert (report["exit_code"], report["rows_failed"], report["rows_left"], report["stopped"]) == (0, 0, 0, None)
    assert report["rows"] == report["rows_ok"] > 0
    assert report["requests"] > 0
    again = cli.run(job, *arguments)
    assert (again["exit_code"], again["requests"], again["rows_ok"]) == (0, 0, report["rows_ok"])


@pytest.mark.parametrize("name", [name for name in FILES if name != QUICKSTART])
def test_a_shipped_job_finishes_and_then_sends_nothing(request: pytest.FixtureRequest, cli: Cli, name: str) -> None:
    needs_quickstart = name in ("from-job.yaml", "group.yaml")
    folder: Path = request.getfixturevalue("labelled" if needs_quickstart else "shipped")
    check(cli, folder / name, *(("--limit", "300") if name in LARGE else ()))


def test_there_is_a_job_for_each_endpoint_and_each_kind_of_source() -> None:
    jobs = [load_job(JOBS / name).job for name in FILES]
    endpoints = {step.endpoint for job in jobs for step in job.endpoint_steps}
    assert endpoints == {
        "chat", "responses", "embeddings", "speech", "transcription", "translation", "image_generation", "image_edit",
        "image_variation",
    }  # fmt: skip
    kinds = {type(job.source).__name__ for job in jobs}
    assert kinds == {"ParquetSource", "CsvSource", "JsonlSource", "DuckdbSource", "SqlSource", "JobSource"}


def test_the_quickstart_labels_all_3000_reviews_and_is_mostly_right(
    shipped: Path, cli: Cli, read: Callable[..., list[Body]]
) -> None:
    check(cli, shipped / QUICKSTART)
    rows = read(shipped / "out" / "quickstart")
    assert len(rows) == 3000
    assert sum(row["sentiment"] == row["label"] for row in rows) > 0.7 * len(rows)
