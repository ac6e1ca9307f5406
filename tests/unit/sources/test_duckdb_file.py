"""A table or a query of a DuckDB file: errors name the key of the job file."""

import duckdb
import pytest

from tests.conftest import Cli, Workspace


@pytest.mark.parametrize(
    ("read", "where"),
    [("table: numbers", "source.table"), ("query: select cast(text as integer) as id from texts", "source.query")],
)
def test_values_that_cannot_be_cast_are_reported_at_their_key(
    workspace: Workspace, cli: Cli, read: str, where: str
) -> None:
    with duckdb.connect(workspace.folder / "in.duckdb") as db:
        db.execute("create table texts as select 'one' as text")
        db.execute("create view numbers as select cast(text as integer) as id from texts")
    job = workspace.job(source=f"{{duckdb: in.duckdb, {read}}}")
    for command in (("validate", job), ("run", job, "--quiet")):
        assert cli(*command) == 2
        (line,) = cli.err.splitlines()
        assert line.startswith(f"{job}:2: {where}: ")
        assert "Could not convert string 'one' to INT32" in line
