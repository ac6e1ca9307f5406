"""The ledger and the embedded provider of a command."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipelines.config.loaded_job import load_job
from pipelines.config.workspace import find_workspace
from pipelines.runtime.services import local_provider, open_workspace_ledger

JOB = """\
name: small
source: {csv: rows.csv}
steps: [{name: label, endpoint: chat, provider: PROVIDER, model: m, messages: [{user: "{{ text }}"}]}]
sink: {parquet: out}
"""


def test_the_ledger_is_in_the_state_of_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "rowmill.yaml").write_text("state: s")
    with open_workspace_ledger(find_workspace(tmp_path)) as ledger:
        assert ledger.path == tmp_path / "s" / "ledger.sqlite"
        assert ledger.query("select count(*) from runs") == [(0,)]


@pytest.mark.parametrize("provider", ["local", "pool"])
def test_the_embedded_provider_runs_for_a_job_that_uses_it(tmp_path: Path, provider: str) -> None:
    (tmp_path / "rowmill.yaml").write_text("providers: {pool: {members: [local, openai]}}")
    (tmp_path / "job.yaml").write_text(JOB.replace("PROVIDER", provider))
    with local_provider(load_job(tmp_path / "job.yaml")) as url:
        assert url is not None
        with urllib.request.urlopen(f"{url}/models") as reply:
            assert reply.status == 200
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/models")


def test_no_provider_runs_for_any_other_job(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.replace("PROVIDER", "openai"))
    with local_provider(load_job(tmp_path / "job.yaml")) as url:
        assert url is None
