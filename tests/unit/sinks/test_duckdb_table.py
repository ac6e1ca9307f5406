"""DuckDB files: shared with other programs, one transaction per commit."""

import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from connectors.errors import DataError, Stopped
from connectors.tables.schema_checks import SchemaMismatch
from tests.unit.sinks.conftest import Tables

HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "reader")
print("open", flush=True)
sys.stdin.read()
"""


class Holder:
    """Another program that has the file open."""

    def __init__(self, path: Path, how: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"open\n"

    def close(self) -> None:
        self._process.communicate()


@pytest.mark.parametrize("how", ["reader", "writer"])
def test_a_commit_waits_for_other_programs_and_then_stops(in_duckdb: Tables, tmp_path: Path, how: str) -> None:
    sink = in_duckdb.ready()
    holder = Holder(tmp_path / "out/answers.duckdb", how)
    with pytest.raises(Stopped, match=r"out/answers\.duckdb: held open by another program for 0\.3 s; close it"):
        in_duckdb.commit_blind(sink, [(1, "a")])
    waiting = in_duckdb.model.open(in_duckdb.shape, tmp_path, 60)
    closing = threading.Timer(0.2, holder.close)
    closing.start()
    in_duckdb.commit_blind(waiting, [(2, "b")])
    closing.join()
    assert in_duckdb.answers() == {2: "b"}


def test_the_file_can_be_read_while_other_programs_read_it(in_duckdb: Tables, tmp_path: Path) -> None:
    in_duckdb.commit(in_duckdb.ready(), [(1, "a")])
    holder = Holder(tmp_path / "out/answers.duckdb", "reader")
    sink = in_duckdb.open()
    assert sink.exists()
    assert in_duckdb.parts(sink) == [(1, "answers")]
    holder.close()


def test_the_file_is_closed_between_commits(in_duckdb: Tables, tmp_path: Path) -> None:
    sink = in_duckdb.ready()
    in_duckdb.commit(sink, [(1, "a")])
    Holder(tmp_path / "out/answers.duckdb", "writer").close()
    with duckdb.connect(tmp_path / "out/answers.duckdb") as mine:
        # A connection of this program shares the file.
        in_duckdb.commit_blind(sink, [(2, "b")])
        assert mine.sql("select id from answers order by id").fetchall() == [(1,), (2,)]
    in_duckdb.commit_blind(sink, [(3, "c")])
    assert in_duckdb.answers() == {1: "a", 2: "b", 3: "c"}


def test_a_file_that_is_not_a_database_is_refused(in_duckdb: Tables, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/answers.duckdb").write_bytes(b"no database at all " * 1000)
    with pytest.raises(DataError, match="not a valid DuckDB database"):
        in_duckdb.open().exists()
    with pytest.raises(DataError, match="not a valid DuckDB database"):
        in_duckdb.open().prepare(False)


def test_a_file_of_another_layout_is_refused(in_duckdb: Tables, tmp_path: Path) -> None:
    in_duckdb.ready()
    with duckdb.connect(tmp_path / "out/answers.duckdb") as db:
        db.execute("update rowmill.layout set version = 99")
    with pytest.raises(DataError, match="layout 99"):
        in_duckdb.open().prepare(False)


def test_a_question_mark_in_the_path_is_refused(in_duckdb: Tables) -> None:
    in_duckdb.sink_keys = {"duckdb": "what?.duckdb", "table": "answers"}
    with pytest.raises(DataError, match="question mark"):
        in_duckdb.open()


@pytest.mark.parametrize("table", ["a-b", "a.b", "1a", 'a"', "", "a b"])
def test_table_names_must_be_plain(in_duckdb: Tables, table: str) -> None:
    in_duckdb.sink_keys = {"duckdb": "out.duckdb", "table": table}
    with pytest.raises(ValueError, match="String should match pattern"):
        _ = in_duckdb.model


def test_a_failed_commit_changes_nothing(in_duckdb: Tables, tmp_path: Path) -> None:
    sink = in_duckdb.ready()
    in_duckdb.commit(sink, [(1, "a")], [(2, "bad")])
    with duckdb.connect(tmp_path / "out/answers.duckdb") as db:
        db.execute("drop table answers_errors")
    with pytest.raises(DataError, match="answers_errors"):
        in_duckdb.commit(sink, [(1, "b"), (3, "c")], [(4, "bad")])
    assert in_duckdb.answers() == {1: "a"}
    in_duckdb.commit(in_duckdb.ready(), [(1, "b")], [(4, "bad")])
    assert (in_duckdb.answers(), in_duckdb.failures()) == ({1: "b"}, [(4, "bad")])


def test_two_jobs_have_tables_in_one_file(in_duckdb: Tables, tmp_path: Path) -> None:
    first = in_duckdb.ready()
    in_duckdb.commit(first, [(1, "a")])
    in_duckdb.usage(first, 1, 3)
    in_duckdb.sink_keys = {**in_duckdb.sink_keys, "table": "others"}
    in_duckdb.outputs = [pa.field("answer", pa.int64())]
    second = in_duckdb.ready(fresh=True)
    assert second.usage_marks() == []
    second.finish()
    assert [mark.last for mark in first.usage_marks()] == [3]
    with duckdb.connect(tmp_path / "out/answers.duckdb") as db:
        names = [
            row[0] for row in db.sql("select table_name from duckdb_tables() where schema_name = 'main'").fetchall()
        ]
    assert sorted(names) == [
        "answers", "answers_errors", "answers_usage", "others", "others_errors", "others_usage",
    ]  # fmt: skip


def test_table_names_ignore_case(in_duckdb: Tables) -> None:
    in_duckdb.commit(in_duckdb.ready(), [(1, "a")])
    in_duckdb.usage(in_duckdb.open(), 1, 2)
    in_duckdb.sink_keys = {**in_duckdb.sink_keys, "table": "ANSWERS"}
    sink = in_duckdb.ready()
    assert sink.exists()
    assert [mark.last for mark in sink.usage_marks()] == [2]
    assert in_duckdb.answers() == {1: "a"}


def test_usage_is_written_again_if_its_table_was_dropped(in_duckdb: Tables, tmp_path: Path) -> None:
    in_duckdb.usage(in_duckdb.ready(), 1, 2)
    with duckdb.connect(tmp_path / "out/answers.duckdb") as db:
        db.execute("drop table answers_usage")
    sink = in_duckdb.ready()
    assert sink.usage_marks() == []
    in_duckdb.usage(sink, 1, 2)
    assert in_duckdb.used() == [1, 2]


def test_a_killed_commit_is_complete_or_absent(in_duckdb: Tables, tmp_path: Path) -> None:
    sink = in_duckdb.ready()
    in_duckdb.commit(sink, [(1, "a")])
    code = (
        "import duckdb, os, sys; db = duckdb.connect(sys.argv[1]); "
        "db.execute('begin'); db.execute('delete from answers'); "
        "(db.execute('commit') if sys.argv[2] == 'after' else None); os._exit(9)"
    )
    path = tmp_path / "out/answers.duckdb"
    subprocess.run([sys.executable, "-c", code, str(path), "before"], check=False)
    assert in_duckdb.open().exists()
    assert in_duckdb.answers() == {1: "a"}
    subprocess.run([sys.executable, "-c", code, str(path), "after"], check=False)
    assert in_duckdb.parts(in_duckdb.open()) == []
    in_duckdb.commit(in_duckdb.ready(), [(2, "b")])
    assert in_duckdb.answers() == {2: "b"}


def test_the_message_about_other_columns_names_the_table(in_duckdb: Tables) -> None:
    in_duckdb.outputs = [pa.field("answer", pa.string())]
    in_duckdb.ready()
    in_duckdb.outputs = [pa.field("answer", pa.int64())]
    with pytest.raises(SchemaMismatch) as refused:
        in_duckdb.open().check(False)
    assert str(refused.value) == (
        "out/answers.duckdb: its table answers has answer (VARCHAR), but the job makes answer (BIGINT); cast the "
        "existing rows (run --schema-change cast), ask all rows again (run --schema-change backfill), or write to "
        "another sink (run --sink PATH)"
    )


def test_tables_whose_names_differ_in_case_only_have_one_location(in_duckdb: Tables, tmp_path: Path) -> None:
    location = in_duckdb.model.location(tmp_path)
    in_duckdb.sink_keys = {**in_duckdb.sink_keys, "table": "Answers"}
    assert in_duckdb.model.location(tmp_path) == location
