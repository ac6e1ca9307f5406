"""Fixtures: a folder to load job files and workspaces in, and complete examples of both."""

from collections.abc import Callable
from pathlib import Path

import pytest

from connectors.errors import JobError
from pipelines.config.loaded_job import LoadedJob, load_job
from pipelines.config.overrides import NONE, Overrides
from pipelines.config.workspace import Workspace, find_workspace

HERE = Path(__file__).parent


@pytest.fixture
def contract_job() -> str:
    return (HERE / "contract_job.yaml").read_text()


@pytest.fixture
def contract_workspace() -> str:
    return (HERE / "contract_workspace.yaml").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: empty, with a folder `jobs` in it; no API key and no base URL in the environment."""
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir(tmp_path)
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Callable[..., LoadedJob]:
    """Write the text as jobs/x.yaml and load it."""

    def loaded(text: str, overrides: Overrides = NONE) -> LoadedJob:
        Path("jobs/x.yaml").write_text(text)
        return load_job("jobs/x.yaml", overrides)

    return loaded


@pytest.fixture
def load_error(load: Callable[..., LoadedJob]) -> Callable[..., str]:
    """Load the text as jobs/x.yaml and return the error message."""

    def message(text: str, overrides: Overrides = NONE) -> str:
        with pytest.raises(JobError) as caught:
            load(text, overrides)
        return str(caught.value)

    return message


@pytest.fixture
def workspace(folder: Path) -> Callable[..., Workspace]:
    """Write the text as rowmill.yaml and find the workspace of jobs/x.yaml."""

    def found(text: str) -> Workspace:
        Path("rowmill.yaml").write_text(text)
        return find_workspace("jobs/x.yaml")

    return found
