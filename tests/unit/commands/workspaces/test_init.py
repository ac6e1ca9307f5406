"""`rowmill init`: the files that it writes work unchanged, and no file of the user is overwritten."""

import csv
import json
import re
from pathlib import Path

import pytest

from connectors.errors import JobError
from pipelines.commands.workspaces.init import init
from pipelines.config.json_schema import job_schema
from pipelines.config.loaded_job import load_job
from pipelines.config.workspace import find_workspace

NAMES = [".gitignore", "README.md", "data/reviews.csv", "job.schema.json", "jobs/quickstart.yaml", "rowmill.yaml"]


def test_a_new_folder_gets_a_workspace_whose_job_loads(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "shop"
    assert init(folder) == tuple(folder / name for name in NAMES)
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(folder / name for name in NAMES)
    workspace = find_workspace(folder / "jobs" / "quickstart.yaml")
    assert (workspace.folder, workspace.has_file, workspace.warnings(())) == (folder, True, ())
    job = load_job(folder / "jobs" / "quickstart.yaml").job
    assert (job.name, job.key, {step.provider for step in job.steps}) == ("quickstart", ("id",), {"local"})


def test_the_job_names_its_schema_for_editors(tmp_path: Path) -> None:
    init(tmp_path)
    first = (tmp_path / "jobs/quickstart.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../job.schema.json"
    assert json.loads((tmp_path / "job.schema.json").read_text()) == job_schema()


def test_the_data_are_200_complete_rows_with_their_licence(tmp_path: Path) -> None:
    init(tmp_path)
    with (tmp_path / "data/reviews.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (len(rows), len({row["id"] for row in rows})) == (200, 200)
    assert {row["label"] for row in rows} == {"positive", "negative"}
    assert "licence CC BY 4.0" in (tmp_path / "README.md").read_text()


def test_the_files_of_a_run_are_ignored_by_git(tmp_path: Path) -> None:
    init(tmp_path)
    assert (tmp_path / ".gitignore").read_text() == ".rowmill/\nout/\n"


def test_the_commented_settings_of_the_workspace_are_valid(tmp_path: Path) -> None:
    init(tmp_path)
    text = (tmp_path / "rowmill.yaml").read_text()
    uncommented = re.sub(r"^(\s*)# (\s*[a-z][\w-]*:)", r"\1\2", text, flags=re.MULTILINE)
    (tmp_path / "rowmill.yaml").write_text(uncommented)
    workspace = find_workspace(tmp_path)
    assert workspace.provider_names == ("gpu-box", "local", "openai")
    assert workspace.budget is not None
    assert (workspace.roots, list(workspace.prices)) == ((Path("/mnt/media"),), ["my-model"])


def test_no_file_is_overwritten_and_nothing_is_written_before_an_error(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/quickstart.yaml").symlink_to("nowhere")
    with pytest.raises(JobError) as caught:
        init(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: README.md, jobs/quickstart.yaml would be overwritten; choose another folder"
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["README.md", "jobs", "quickstart.yaml"]
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_path_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for folder, message in [
        (tmp_path / "a", f"{tmp_path}/a: is a file; name a folder"),
        (
            tmp_path / "a" / "b",
            f"{tmp_path}/a/b/.gitignore: cannot be written (Not a directory); choose another folder",
        ),
    ]:
        with pytest.raises(JobError) as caught:
            init(folder)
        assert str(caught.value) == message
