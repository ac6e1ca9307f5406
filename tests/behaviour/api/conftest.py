"""Fixtures: a recording server, and the runs of all parameters of the table."""

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
    """The groups whose job has run."""
    return set()


@pytest.fixture
def sent(recorder: Recorder, runs: set[str], tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """(group, position in its table) -> the only request of that step; each group is one job, run once."""

    def ask(group: str, index: int) -> Recorded:
        if group not in runs:
            monkeypatch.setenv("CONTRACT_KEY", KEY)
            report = cli.run(_job(group, recorder.address, tmp_path))
            assert (report["rows_ok"], report["exit_code"], report["retries"]) == (1, 0, 0), cli.err
            runs.add(group)
        (request,) = recorder.seen[f"{group}-{index}"]
        return request

    return ask


def step_of(group: str, index: int) -> dict[str, Any]:
    """A step in the job file: the group's step merged with the keys of a table row."""
    keys = YAML(typ="safe").load(GROUPS[group].rows[index].says)
    return {"name": f"step-{index}", "provider": f"{group}-{index}", **GROUPS[group].step, **keys}


def _job(group: str, address: str, folder: Path) -> Path:
    """A job with one step per table row, each with a provider whose URL identifies the row."""
    write_row(folder)
    steps = [step_of(group, index) for index in range(len(GROUPS[group].rows))]
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
