"""A server that records what a run sends, and the run of every parameter of the table."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.behaviour.api.parameters import GROUPS
from tests.behaviour.api.recorder import Recorded, Recorder
from tests.behaviour.api.row import write_row

KEY = "sk-of-the-contract-suite"
Sent = Callable[[str, int], Recorded]


@pytest.fixture(scope="session")
def recorder() -> Iterator[Recorder]:
    """The server."""
    server = Recorder()
    yield server
    server.close()


@pytest.fixture(scope="session")
def runs() -> set[str]:
    """The groups whose job has been run."""
    return set()


@pytest.fixture
def sent(recorder: Recorder, runs: set[str], tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """(group, place in its table) -> the one request that its step sent; a group's steps are one job, run once."""

    def ask(group: str, place: int) -> Recorded:
        if group not in runs:
            monkeypatch.setenv("CONTRACT_KEY", KEY)
            told = cli.run(_job(group, recorder.address, tmp_path))
            assert (told["rows_ok"], told["exit_code"], told["retries"]) == (1, 0, 0), cli.err
            runs.add(group)
        (request,) = recorder.seen[f"{group}-{place}"]
        return request

    return ask


def step_of(group: str, place: int) -> dict[str, Any]:
    """A step as the job file writes it: the group's own with the keys of a row of its table."""
    said = YAML(typ="safe").load(GROUPS[group].rows[place].says)
    return {"name": f"step-{place}", "provider": f"{group}-{place}", **GROUPS[group].step, **said}


def _job(group: str, address: str, folder: Path) -> Path:
    """A job with a step for every row of the table, each with a provider whose address names the row."""
    write_row(folder)
    steps = [step_of(group, place) for place in range(len(GROUPS[group].rows))]
    providers = {
        step["provider"]: {"base_url": f"{address}/{step['provider']}/v1", "api_key_env": "CONTRACT_KEY"}
        for step in steps
    }
    YAML(typ="safe").dump({"providers": providers}, folder / "rowmill.yaml")
    job = folder / f"{group.replace('_', '-')}.yaml"
    written = {
        "name": job.stem,
        "source": {"parquet": "row.parquet", "key": "id"},
        "steps": steps,
        "sink": {"parquet": "out"},
    }
    YAML(typ="safe").dump(written, job)
    return job
