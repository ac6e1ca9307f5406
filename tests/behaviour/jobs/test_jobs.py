"""Every shipped job file finishes with the embedded provider; a second run sends nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config.loaded_job import load_job
from tests.conftest import Body, Cli

JOBS = Path(__file__).parents[3] / "jobs"
FILES = sorted(path.name for path in JOBS.glob("*.yaml") if path.name != "rowmill.yaml")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder, without the output of runs."""
    folder = tmp_path_factory.mktemp("shipped") / "jobs"
    shutil.copytree(JOBS, folder, ignore=shutil.ignore_patterns("out", ".rowmill"))
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_job_finishes_and_then_sends_nothing(shipped: Path, tmp_path: Path, cli: Cli, name: str) -> None:
    if name in ("from-job.yaml", "group.yaml"):
        # A separate folder: the job needs the results of the quickstart, which has its own test in the shared one.
        shipped = shutil.copytree(JOBS, tmp_path / "jobs", ignore=shutil.ignore_patterns("out", ".rowmill"))
        cli.run(shipped / "quickstart.yaml")
    report = cli.run(shipped / name)
    assert (report["exit_code"], report["rows_failed"], report["rows_left"], report["stopped"]) == (0, 0, 0, None)
    assert report["rows"] == report["rows_ok"] > 0
    assert report["requests"] > 0
    again = cli.run(shipped / name)
    assert (again["exit_code"], again["requests"], again["rows_ok"]) == (0, 0, report["rows_ok"])


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
    tmp_path: Path, cli: Cli, read: Callable[..., list[Body]]
) -> None:
    folder = shutil.copytree(JOBS, tmp_path / "jobs", ignore=shutil.ignore_patterns("out", ".rowmill"))
    cli.run(folder / "quickstart.yaml")
    rows = read(folder / "out" / "quickstart")
    assert len(rows) == 3000
    assert sum(row["sentiment"] == row["label"] for row in rows) > 0.7 * len(rows)
