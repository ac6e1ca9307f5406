"""SQL of a job file: links, lists and globs of files, and statements that are not a single SELECT."""

import json
from pathlib import Path
from typing import Any

import pytest

SECRET = "outside-and-secret"


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a secret outside of the workspace."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "secret.csv").write_text(f"id,text\n1,{SECRET}\n")
    return folder


def run_query(workspace: Any, cli: Any, query: str) -> int:
    code: int = cli("run", workspace.job(source=f"{{sql: {json.dumps(query)}, key: id}}"))
    return code


@pytest.mark.parametrize(
    "query",
    [
        "select id, text from 'rows.csv'",
        "select id, text from 'data/*.csv'",
        "select id, text from read_csv(['rows.csv', 'data/more.csv'])",
        "with r as (select * from read_csv('rows.csv')) select id, text from r",
        "select id, (select text from 'rows.csv' limit 1) as text from read_csv('./data/../rows.csv')",
    ],
)
def test_a_sql_source_reads_files_below_the_workspace(workspace: Any, provider: Any, cli: Any, query: str) -> None:
    workspace.csv(2)
    workspace.write("data/more.csv", "id,text\n7,text 7\n")
    assert run_query(workspace, cli, query) == 0, cli.err
    assert provider.seen


@pytest.mark.parametrize(
    "query",
    [
        "select id, text from 'link.csv'",
        "select id, text from 'folder/secret.csv'",
        "select id, text from read_csv(['rows.csv', 'link.csv'])",
        "select id, text from read_csv('*.csv')",
        "select id, text from read_csv('**/secret.csv')",
        "select 1 as id, content as text from read_text('link.csv')",
        "select 1 as id, content as text from read_text('folder/*')",
        "select 1 as id, file as text from glob('folder/*')",
    ],
)
def test_a_query_cannot_follow_a_link_out_of_the_workspace(
    workspace: Any, provider: Any, cli: Any, outside: Path, query: str
) -> None:
    workspace.csv(1)
    (workspace.folder / "link.csv").symlink_to(outside / "secret.csv")
    (workspace.folder / "folder").symlink_to(outside)
    assert run_query(workspace, cli, query) == 2
    assert cli.err.count("\n") == 1
    assert SECRET not in cli.out + cli.err
    assert provider.seen == []


@pytest.mark.parametrize(
    "query",
    [
        "select 1 as id, 'a' as text; select 2 as id, 'b' as text",
        "copy (select 1) to 'written.csv'",
        "attach 'x.duckdb'",
        "pragma database_list",
        "install httpfs",
        "set enable_external_access = true",
        "selec",
    ],
)
def test_anything_but_a_single_select_is_an_error_before_anything_is_sent(
    workspace: Any, provider: Any, cli: Any, query: str
) -> None:
    before = sorted(path.name for path in workspace.folder.iterdir())
    assert run_query(workspace, cli, query) == 2
    assert cli.err.count("\n") == 1
    assert "source.sql" in cli.err
    assert provider.seen == []
    left = {path.name for path in workspace.folder.iterdir()} - {"job.yaml", ".rowmill"}
    assert sorted(left) == before
