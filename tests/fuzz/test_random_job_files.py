"""Random text tables and random SQL in a job file: each works, or is rejected in one line."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.cli import exit_code_of

QUICK = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
SQL_WORDS = (
    "id text = <> ( ) 'a' \"id\" and or not null is like length lower select from where case when then end , ; -- /* "
    "*/ 1 0.5 -1 in between :: int cast as date interval '1 day' [1] {'a':1} * $1 ? @ # \\ % unnest lambda x: exists "
    "union"
)

JOB = """
name: job
source: {csv: rows.csv, key: id}
steps: [{name: a, endpoint: chat, provider: local, model: m, messages: [{user: "{{ text }}"}]}]
sink: {parquet: out}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace in the current folder."""
    (tmp_path / "rows.csv").write_text("id,text\n1,a\n")
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "rowmill.yaml").write_text("state: .rowmill\n")
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path


def run_command(arguments: list[str]) -> tuple[int, str, str]:
    """Run the command line and return exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = exit_code_of(arguments)
    return code, out.getvalue(), err.getvalue()


CELLS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ['"', '""', "'", ",", ";", "\t", "\n", "\r\n", "\r", "\0", "\ufeff", "1", "-", "1e5", "2026-01-01", "é", "NULL"]
    ),
)
CSV_TEXT = st.lists(CELLS, max_size=40).map("".join)
CSV_BYTES = st.one_of(
    st.binary(max_size=60),
    CSV_TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")),
    CSV_TEXT.map(lambda text: b"id,text\n" + text.encode("utf-8", "surrogatepass")),
    CSV_TEXT.map(lambda text: text.encode("utf-16", "surrogatepass")),
)


@pytest.mark.parametrize("more", ["", ", rejects: keep", ", encoding: utf-16", ", header: false", ', delimiter: ";"'])
@QUICK
@given(content=CSV_BYTES)
def test_any_bytes_are_a_table_or_rejected(folder: Path, more: str, content: bytes) -> None:
    (folder / "rows.csv").write_bytes(content)
    (folder / "job.yaml").write_text(JOB.replace("key: id", f"where: 1 = 1{more}").replace("{{ text }}", "same"))
    code, _, err = run_command(["plan", "job.yaml"])
    assert code in (0, 2)
    if code == 2:
        (line,) = err.splitlines()
        assert ": " in line
        assert "; " in line


@QUICK
@given(content=CSV_BYTES.filter(lambda content: content.strip() != b""))
def test_any_json_line_is_a_row_or_rejected(folder: Path, content: bytes) -> None:
    (folder / "rows.jsonl").write_bytes(b'{"id": 1, "text": "x"}\n' + content)
    (folder / "job.yaml").write_text(JOB.replace("csv: rows.csv", "jsonl: rows.jsonl"))
    code, _, err = run_command(["plan", "job.yaml"])
    assert code in (0, 2)
    if code == 2:
        (line,) = err.splitlines()
        assert ": " in line


SQL = st.lists(
    st.sampled_from(SQL_WORDS.split(" ")) | st.text(max_size=3),
    max_size=9,
).map(" ".join)


@pytest.mark.parametrize("key", ["where", "when", "audit"])
@QUICK
@given(sql=SQL)
def test_any_sql_is_accepted_or_rejected(folder: Path, key: str, sql: str) -> None:
    if "\0" in sql:
        return
    quoted = '"' + "".join(f"\\U{ord(char):08x}" for char in sql) + '"'
    changes: dict[str, Callable[[str], str]] = {
        "where": lambda job: job.replace("key: id", f"key: id, where: {quoted}"),
        "when": lambda job: job.replace("name: a,", f"name: a, when: {quoted},"),
        "audit": lambda job: job + f"audits: [{{name: x, sql: {quoted}}}]\n",
    }
    (folder / "job.yaml").write_text(changes[key](JOB))
    code, _, err = run_command(["validate", "job.yaml"])
    assert code in (0, 2)
    if code == 2:
        (line,) = err.splitlines()
        assert "; " in line
        assert os.fspath(folder) not in line or "job.yaml" in line
