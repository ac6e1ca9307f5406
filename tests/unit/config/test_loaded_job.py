"""Loaded jobs: workspace, flags, the job as written, and the names of files that may be invalid."""

from collections.abc import Callable
from pathlib import Path

import pytest

from connectors.errors import JobError
from pipelines.config import loaded_job
from pipelines.config.loaded_job import LoadedJob, load_job, read_job_file, read_job_name
from pipelines.config.overrides import NONE, Overrides

JOB = """\
name: small
source: {csv: rows.csv}
steps:
  - {name: label, endpoint: chat, model: m, messages: [{user: "{{ text }}"}]}
sink: {parquet: out}
"""


def test_a_job_is_loaded_with_its_workspace(load: Callable[..., LoadedJob], folder: Path) -> None:
    (folder / "rowmill.yaml").write_text("state: s")
    loaded = load(JOB)
    assert (loaded.job.name, loaded.path, loaded.workspace.state) == ("small", Path("jobs/x.yaml"), folder / "s")
    assert (loaded.written, loaded.overrides, loaded.changed_by) == (loaded.job, NONE, ())


def test_the_job_as_written_is_kept_next_to_the_flags(load: Callable[..., LoadedJob]) -> None:
    flags = Overrides(assignments=("steps.label.model=n",), limit=3)
    loaded = load(JOB, flags)
    assert loaded.written is not None
    assert (loaded.job.steps[0].model, loaded.job.limit) == ("n", 3)
    assert (loaded.written.steps[0].model, loaded.written.limit) == ("m", None)
    assert (loaded.overrides, loaded.changed_by) == (flags, ("--set steps.label.model",))


def test_a_file_that_only_its_flags_complete_has_no_job_as_written(load: Callable[..., LoadedJob]) -> None:
    loaded = load(JOB.replace("model: m, ", ""), Overrides(assignments=("steps.label.model=m",)))
    assert loaded.written is None


def test_other_flags_are_applied_without_reading_the_file_again(
    load: Callable[..., LoadedJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(JOB, Overrides(limit=3))
    Path("jobs/x.yaml").unlink()
    monkeypatch.setattr(loaded_job, "find_workspace", None)
    assert loaded.with_overrides(NONE).job.limit is None
    assert loaded.with_overrides(Overrides(limit=4)).job.limit == 4
    assert loaded.job.limit == 3
    with pytest.raises(JobError) as caught:
        loaded.with_overrides(Overrides(limit=-1))
    assert str(caught.value) == "--limit: found -1, expected at least 0; write e.g. limit: 1000"


def test_an_error_has_its_fields(load: Callable[..., LoadedJob]) -> None:
    with pytest.raises(JobError) as caught:
        load(JOB.replace("model: m", "modle: m"))
    error = caught.value
    assert (error.where, error.found) == ("jobs/x.yaml:4: steps.label.modle", "no such key")
    assert (error.remedy, error.key_path) == ("did you mean model?", None)


def test_an_empty_file_is_an_error(folder: Path) -> None:
    Path("jobs/x.yaml").write_text("# nothing\n")
    with pytest.raises(JobError) as caught:
        load_job("jobs/x.yaml")
    assert str(caught.value) == "jobs/x.yaml: is empty; `rowmill init DIR` writes a job to start from"


@pytest.mark.parametrize(
    ("text", "name"), [(JOB, "small"), ("name: a\nsource: 5\n", "a"), ("name: [a]\n", None), ("a: [\n", None)]
)
def test_the_name_of_an_invalid_file_is_read_as_far_as_possible(folder: Path, text: str, name: str | None) -> None:
    Path("jobs/x.yaml").write_text(text)
    assert read_job_name(Path("jobs/x.yaml")) == name


def test_a_file_is_read_without_validation(folder: Path) -> None:
    Path("jobs/x.yaml").write_text("name: a\nsource: 5\n")
    file = read_job_file("jobs/x.yaml")
    assert (file.name, file.content.values) == ("a", {"name": "a", "source": 5})
