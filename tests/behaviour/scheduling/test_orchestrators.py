"""The Airflow task and the Dagster asset of jobs/docs/scheduling.md run as documented."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

PAGE = Path(__file__).parents[3] / "jobs" / "docs" / "scheduling.md"


def code_block(word: str) -> str:
    """Return the code block that contains the word."""
    (found,) = [text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if word in text]
    return str(found)


def stub(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    """Replace a module by one with these attributes."""
    for length in range(1, len(name.split(".")) + 1):
        part = ".".join(name.split(".")[:length])
        if part not in sys.modules:
            monkeypatch.setitem(sys.modules, part, ModuleType(part))
    for key, value in attributes.items():
        setattr(sys.modules[name], key, value)


def test_the_command_of_the_airflow_task_runs(
    workspace: Any, provider: Any, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    class Dag:
        def __init__(self, name: str, **facts: Any) -> None:
            assert (facts["schedule"], facts["catchup"], facts["max_active_runs"]) == ("0 2 * * *", False, 1)

        def __enter__(self) -> "Dag":
            return self

        def __exit__(self, *error: object) -> None:
            """Leave the context."""

    tasks: list[dict[str, Any]] = []
    stub(monkeypatch, "airflow.sdk", DAG=Dag)
    stub(monkeypatch, "airflow.providers.standard.operators.bash", BashOperator=lambda **facts: tasks.append(facts))
    exec(compile(code_block("airflow"), "scheduling.md", "exec"), {})
    ((program, *arguments),) = [task["bash_command"].split() for task in tasks]
    assert program == "rowmill"
    workspace.csv(2)
    job = workspace.job("ticket-enrichment")
    assert cli(*[str(job) if word.endswith(".yaml") else word for word in arguments]) == 0
    assert json.loads(cli.out)["rows_ok"] == 2


def test_the_dagster_asset_reports_its_rows_and_fails_if_the_run_stops(
    workspace: Any, provider: Any, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    from tests.conftest import error_reply

    workspace.csv(2)
    job = workspace.job("ticket-enrichment")

    def run(command: list[str], **facts: Any) -> SimpleNamespace:
        code = cli(*[str(job) if word.endswith(".yaml") else word for word in command[1:]])
        return SimpleNamespace(stdout=cli.out.encode(), returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    stub(
        monkeypatch,
        "dagster",
        asset=lambda function: function,
        Failure=type("Failure", (Exception,), {}),
        MaterializeResult=lambda metadata: metadata,
    )
    names: dict[str, Any] = {}
    exec(compile(code_block("dagster"), "scheduling.md", "exec"), names)
    provider.script = lambda path, body, count: error_reply(401, "no such key")
    with pytest.raises(names["dg"].Failure, match="access_denied"):
        names["tickets"]()
    provider.script = lambda path, body, count: None
    assert names["tickets"]() == {"rows_ok": 2, "rows_failed": 0, "cost_usd": pytest.approx(4e-5)}
    workspace.csv(3)
    provider.script = lambda path, body, count: error_reply(400, "too odd")
    with pytest.raises(names["dg"].Failure, match="exit code 1, 1 rows failed"):
        names["tickets"]()
    assert names["tickets"]() == {"rows_ok": 2, "rows_failed": 1, "cost_usd": 0.0}
