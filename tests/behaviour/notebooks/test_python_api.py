"""Runs from Python in Jupyter and marimo, and the types of the API as pyright sees them."""

import json
import os
import subprocess
import sys
from html import unescape
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[3]
SETUP = """
import duckdb
import polars as pl
from pipelines import run, run_sync

frame = pl.DataFrame({"id": [1, 2, 3], "text": ["good", "bad", "great"]})
step = {"name": "label", "endpoint": "chat", "provider": "local", "model": "rowmill-sentiment",
        "messages": [{"user": "{{ text }}"}]}
job = {"name": "frame", "key": "id", "steps": [step]}
"""


@pytest.fixture(autouse=True)
def _python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of notebooks import this tree."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


async def test_both_calls_work_in_a_cell_of_jupyter_and_show_one_line_each(tmp_path: Path) -> None:
    cells = [SETUP, "await run(job, rows=frame)", "run_sync(job, rows=duckdb.sql('from frame order by id'))"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    await client.async_execute()
    for cell, reused in zip(notebook.cells[1:], ("3 of 3", "3 of 3 (3 without a request)"), strict=True):
        line, report = cell.outputs
        assert line.data["text/html"].startswith("<div>frame: 3 of 3 rows done in ")
        # Viewers without HTML show the line.
        assert line.data["text/plain"] == unescape(line.data["text/html"].removeprefix("<div>").removesuffix("</div>"))
        assert f"<th>rows done</th><td>{reused}</td>" in report.data["text/html"]


def test_both_calls_work_in_a_cell_of_marimo(tmp_path: Path) -> None:
    lines = "\n    ".join(SETUP.strip().splitlines())
    (tmp_path / "page.py").write_text(
        "import marimo\n\napp = marimo.App()\n\n\n@app.cell\nasync def _():\n    "
        f"{lines}\n    first = await run(job, rows=frame)\n    second = run_sync(job, rows=frame)\n"
        "    written = open('seen', 'w').write(f'{first.rows_ok} {second.rows_reused}')\n    return\n"
    )
    command = [sys.executable, "-m", "marimo", "export", "html", "page.py", "-o", "page.html", "--no-include-code"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=200)
    assert (tmp_path / "seen").read_text() == "3 3"
    assert "3 of 3 rows done in" in (tmp_path / "page.html").read_text()


EXAMPLE = """
from pydantic import BaseModel
import polars as pl
from pipelines import Job, JobError, Locked, Results, RunReport, read_results, retry, retry_sync, run, run_sync


class Label(BaseModel):
    topic: str


job = Job.model_validate({"name": "x", "key": "id", "steps": []})
reveal_type(job)
frame = pl.DataFrame({"id": [1]})
report = run_sync(job, rows=frame)
reveal_type(report)
reveal_type(report.results)
run_sync("jobs/x.yaml", rows=frame.lazy(), workspace=".", engine="ray", schema_change="cast")
run_sync("jobs/x.yaml", budget="1")  # error: budget_usd
retry_sync(job, rows=frame, classes=["length"])
reveal_type(retry_sync(job, classes="length"))
run_sync({"name": "x"}, rows=frame.to_arrow())
reveal_type(read_results(job).errors)
reveal_type(job.to_yaml())


async def main() -> None:
    reveal_type(await run(job, rows=frame))
    reveal_type(await retry(job, rows=frame))
"""
REVEALED = ["Job", "RunReport", "LazyFrame", "RunReport", "LazyFrame", "str", "RunReport", "RunReport"]


@pytest.mark.pyright
def test_pyright_knows_the_types_of_the_api(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(EXAMPLE)
    settings = {"extraPaths": [str(ROOT)], "include": ["example.py"], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    wrong = ['No parameter named "budget"']
    assert [one["message"] for one in found if one["severity"] == "error"] == wrong
    shown = [one["message"].split(" is ")[-1].strip('"') for one in found if one["severity"] == "information"]
    assert shown == REVEALED
