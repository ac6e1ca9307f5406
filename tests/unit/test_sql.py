"""SQL for DuckDB: quoting, error messages, paths in queries, restricted connections and materialized rows."""

from pathlib import Path

import duckdb
import pytest

from connectors.errors import JobError
from connectors.sources.columns.column_types import materialize
from connectors.sql import (
    first_line,
    identifier,
    identifier_list,
    literal,
    literal_list,
    lock_down,
    parse_sql,
    query_connection,
    resolve_paths,
    reused_connection,
)


def test_names_and_strings_are_quoted() -> None:
    assert identifier('a "b"') == '"a ""b"""'
    assert identifier_list(["a", "b"]) == '"a", "b"'
    assert literal("it's") == "'it''s'"
    assert literal_list([Path("/x"), "y"]) == "['/x', 'y']"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ('Parser Error: syntax error at or near "x"\n\nLINE 1: x', 'syntax error at or near "x"'),
        ("Invalid Input Error: no such thing. ", "no such thing"),
        ("Out of Memory Error: too much", "too much"),
        ("A value with Error: in it", "A value with Error: in it"),
    ],
)
def test_the_first_line_of_an_error_has_no_kind_and_no_sql(message: str, line: str) -> None:
    assert first_line(duckdb.Error(message)) == line


def test_only_selects_are_parsed() -> None:
    with duckdb.connect() as db:
        assert len(parse_sql(db, "select 1; select 2", "here", "fix it")["statements"]) == 2
        for sql in ("drop table t", "select from", "copy t to 'x'"):
            with pytest.raises(JobError, match=r"^here: .*; fix it$"):
                parse_sql(db, sql, "here", "fix it")


def test_relative_paths_in_a_query_start_at_the_folder() -> None:
    folder = Path("/data/folder")
    with duckdb.connect() as db:
        query = resolve_paths(
            db,
            "with t as (select * from read_csv(['a.csv', '/b.csv'], delim = 'x.csv')) "
            "select *, 'c.csv' from t join 'sub/d.parquet' using (id) cross join read_parquet('s3://bucket/e.parquet')",
            folder,
            ("source", "sql"),
        )
    for text in ("/data/folder/a.csv", "'/b.csv'", "'x.csv'", "'c.csv'", "/data/folder/sub/d.parquet", "s3://bucket/e"):
        assert text in query


def test_several_statements_are_refused() -> None:
    with duckdb.connect() as db, pytest.raises(JobError, match=r"^source\.sql: has 2 statements; write one SELECT$"):
        resolve_paths(db, "select 1; select 2", Path("/x"), ("source", "sql"))


def test_values_of_table_functions_that_open_no_file_are_no_paths() -> None:
    sql = "select u, value from unnest(string_split('a,b', ',')) t(u), unnest(['c']), json_each('{\"d\":\"e\"}')"
    with duckdb.connect() as db:
        query = resolve_paths(db, sql, Path("/data/folder"), ("source", "sql"))
        assert db.execute(query).fetchall() == [("a", '"e"'), ("b", '"e"')]


def test_a_locked_connection_reads_only_allowed_files(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in" / "a.csv", tmp_path / "b.csv"
    inside.parent.mkdir()
    inside.write_text("n\n1\n")
    outside.write_text("n\n2\n")
    with query_connection(tmp_path / "scratch") as db:
        lock_down(db, [inside.parent])
        assert db.sql(f"select n from read_csv({literal(inside)})").fetchall() == [(1,)]
        with pytest.raises(duckdb.PermissionException):
            db.sql(f"select n from read_csv({literal(outside)})").fetchall()
        with pytest.raises(duckdb.InvalidInputException):
            db.execute("set enable_external_access = true")


def test_materialized_rows_keep_order_limit_and_large_integers(tmp_path: Path) -> None:
    with query_connection(tmp_path) as db:
        relation = materialize(db, "select (100000000000000000001 + n)::hugeint as big from range(5) t(n)", 2, tmp_path)
    with duckdb.connect() as db:
        rows = db.sql(f"select big, typeof(big) from {relation}").fetchall()
    assert [(int(big), kind) for big, kind in rows] == [
        (100000000000000000001, "DECIMAL(38,0)"),
        (100000000000000000002, "DECIMAL(38,0)"),
    ]


def test_rows_that_are_written_again_as_text_have_a_separate_file(tmp_path: Path) -> None:
    with query_connection(tmp_path) as db:
        relation = materialize(db, f"select {10**38}::hugeint as big", None, tmp_path)
        # DuckDB removes the file of the first attempt, which failed, when it likes.
        (tmp_path / "rows-0.parquet").unlink(missing_ok=True)
        assert db.sql(f"from {relation}").fetchall() == [(f"{10**38}",)]


def database_of(db: duckdb.DuckDBPyConnection) -> int:
    """Return the number of the connection's database, which the first call gives it."""
    db.execute("create table if not exists memory.main.mark as select (random() * 1e9)::bigint as number")
    ((number,),) = db.execute("from memory.main.mark").fetchall()
    return int(number)


def test_a_database_is_used_again_and_by_one_user_at_a_time(tmp_path: Path) -> None:
    with reused_connection(tmp_path / "one") as db:
        first = database_of(db)
    with reused_connection(tmp_path / "two") as db, reused_connection(tmp_path / "three") as other:
        assert database_of(db) == first
        assert database_of(other) != first
        folder, zone = "select current_setting('temp_directory'), current_setting('TimeZone')", "UTC"
        assert db.execute(folder).fetchall() == [(f"{tmp_path / 'two'}", zone)]


@pytest.mark.parametrize(
    "sql",
    [
        "attach '{folder}/kept.duckdb'",
        "set memory_limit = '24MB'; select sum(n) from (from range(2_000_000) t(n) order by hash(n))",
    ],
    ids=["a file is attached", "it has spilled"],
)
def test_a_database_is_closed_if_it_cannot_be_used_again(tmp_path: Path, sql: str) -> None:
    with reused_connection(tmp_path / "spill") as db:
        first = database_of(db)
        db.execute(sql.format(folder=tmp_path)).fetchall()
    with reused_connection(tmp_path / "other") as db:
        assert database_of(db) != first
        db.execute(f"attach '{tmp_path}/kept.duckdb'")


def test_a_database_is_closed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(duckdb.Error), reused_connection(tmp_path) as db:
        first = database_of(db)
        db.execute("nonsense")
    with reused_connection(tmp_path) as db:
        assert database_of(db) != first
