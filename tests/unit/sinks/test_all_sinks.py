"""The contract of every kind of sink."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.contracts import SourceContext, UsageMark
from connectors.errors import DataError, JobError
from connectors.sources.results_snapshot import MAX_READS, ResultsSnapshot, read_snapshot
from connectors.sources.sql_query import SqlSource
from connectors.sql import lock_down
from connectors.tables import schemas
from connectors.tables.schema_checks import SchemaMismatch
from connectors.tables.schemas import errors_schema, usage_schema
from tests.unit.sinks.conftest import Tables

COMPOSITE = [pa.field("a.b", pa.string()), pa.field('n "q" x', pa.int32())]


def test_empty_tables_have_their_complete_schema(tables: Tables) -> None:
    sink = tables.open()
    assert not sink.exists()
    sink.prepare(False)
    assert sink.exists()
    assert tables.read("results").schema.names == tables.shape.results.names
    assert tables.read("usage").schema.names == usage_schema().names
    assert tables.read("errors").schema.names == errors_schema(tables.key).names
    assert [tables.read(name).num_rows for name in ("results", "usage", "errors")] == [0, 0, 0]
    assert tables.parts(sink) == []


def test_values_are_read_as_they_were_written(tables: Tables) -> None:
    sink = tables.ready()
    tables.commit(sink, [(1, "a"), (2, "bb")])
    written, read = tables.results([(1, "a"), (2, "bb")]), tables.read("results")
    assert read.sort_by("id").to_pylist() == written.to_pylist()
    types = {field.name: field.type for field in read.schema}
    assert types["id"] == pa.int64()
    assert pa.types.is_timestamp(types["at"])
    assert types["at"].tz is not None
    assert types["vector"].value_type == pa.float32()


def test_new_rows_are_added_and_changed_rows_replace_old_ones(tables: Tables) -> None:
    sink = tables.ready()
    tables.commit(sink, [(n, "old") for n in range(5)])
    tables.commit(sink, [(n, "old") for n in range(5, 9)])
    tables.commit(sink, [(2, "new"), (7, "new"), (8, "new"), (9, "new")])
    assert tables.answers() == {n: "new" if n in (2, 7, 8, 9) else "old" for n in range(10)}


def test_errors_are_replaced_by_later_ones_and_deleted_when_resolved(tables: Tables) -> None:
    sink = tables.ready()
    tables.commit(sink, [], [(1, "one"), (2, "two"), (3, "three")])
    tables.commit(sink, [(2, "fine")], [(3, "three again"), (4, "four")], cleared=[2])
    assert tables.failures() == [(1, "one"), (3, "three again"), (4, "four")]
    assert tables.answers() == {2: "fine"}
    tables.commit(sink, [], [], cleared=[1, 3, 4])
    assert tables.failures() == []
    assert tables.read("errors").schema.names == errors_schema(tables.key).names


def test_lines_without_a_key_are_identified_by_their_details(tables: Tables) -> None:
    sink = tables.ready()
    tables.commit(sink, [], [(None, "line 3"), (None, "line 7"), (1, "line 3")])
    tables.commit(sink, [], [(None, "line 7"), (None, "line 9")])
    lines = [(None, "line 3"), (None, "line 7"), (None, "line 9")]
    assert tables.failures() == [(1, "line 3"), *lines]
    tables.commit(sink, [], [(2, "line 9")], cleared=[1])
    assert tables.failures() == [(2, "line 9"), *lines]
    tables.commit(sink, [], [(None, "line 4")], cleared=[None])
    assert tables.failures() == [(2, "line 9"), (None, "line 4")]


def test_all_columns_of_a_composite_key_are_compared(tables: Tables) -> None:
    tables.key = COMPOSITE
    sink = tables.ready()
    tables.commit(sink, [(("x", 1), "a"), (("x", 2), "b"), (("y", 1), "c"), (("y", 2), "d")])
    tables.commit(sink, [(("x", 1), "A"), (("y", 2), "D")], [(("x", 2), "bad"), (("y", 1), "bad")])
    assert tables.answers() == {("x", 1): "A", ("x", 2): "b", ("y", 1): "c", ("y", 2): "D"}
    tables.commit(sink, [], [(("x", 1), "bad")], cleared=[("x", 2), ("y", 3)])
    assert tables.failures() == [(("x", 1), "bad"), (("y", 1), "bad")]
    assert sink.remove(tables.keys([("x", 2), ("y", 1), ("x", 9)]), errors_too=False) == 2
    assert tables.answers() == {("x", 1): "A", ("y", 2): "D"}


def test_rows_are_deleted_by_key_and_counted(tables: Tables) -> None:
    sink = tables.ready()
    tables.commit(sink, [(1, "a"), (2, "b")], [(3, "bad"), (4, "bad")])
    tables.commit(sink, [(5, "c")])
    assert sink.remove(tables.keys([1, 3, 99]), errors_too=True) == 1
    assert sink.remove(tables.keys([5, 4]), errors_too=False) == 1
    assert sink.remove(tables.keys([5]), errors_too=True) == 0
    assert tables.answers() == {2: "b"}
    assert tables.failures() == [(4, "bad")]
    tables.commit(sink, [(1, "again")])
    assert tables.answers() == {1: "again", 2: "b"}


def test_a_rebuilt_table_replaces_the_old_one_when_it_is_complete(tables: Tables) -> None:
    sink = tables.ready()
    tables.commit(sink, [(1, "old"), (2, "old")], [(3, "old")])
    tables.usage(sink, 1, 3)
    sink = tables.ready(fresh=True)
    sink.commit(commit_of(tables, [(2, "new")], [(4, "new")]), "0123abcd-000002-000001")
    tables.usage(sink, 4, 5)
    assert (tables.answers(), tables.failures()) == ({1: "old", 2: "old"}, [(3, "old")])
    sink.finish()
    assert (tables.answers(), tables.failures()) == ({2: "new"}, [(4, "new")])
    assert tables.used() == [1, 2, 3, 4, 5]
    tables.commit(sink, [(2, "newer"), (6, "six")])
    assert tables.answers() == {2: "newer", 6: "six"}


def test_an_unfinished_rebuild_is_discarded(tables: Tables) -> None:
    tables.commit(tables.ready(), [(1, "old")])
    tables.ready(fresh=True).commit(commit_of(tables, [(1, "lost")]), "0123abcd-000002-000001")
    sink = tables.ready(fresh=True)
    sink.commit(commit_of(tables, [(2, "new")]), "0123abcd-000003-000001")
    assert tables.answers() == {1: "old"}
    sink.finish()
    assert tables.answers() == {2: "new"}


def test_an_interrupted_first_build_leaves_empty_tables_that_do_not_count(tables: Tables) -> None:
    sink = tables.ready(fresh=True)
    sink.commit(commit_of(tables, [(1, "lost")], [(2, "lost")]), "0123abcd-000001-000001")
    assert tables.read("results").num_rows == tables.read("errors").num_rows == 0
    assert not tables.open().exists()
    sink = tables.ready(fresh=True)
    sink.finish()
    assert tables.open().exists()


def test_a_rebuilt_table_may_have_other_columns(tables: Tables) -> None:
    tables.commit(tables.ready(), [(1, "old")])
    tables.outputs = [*tables.outputs, pa.field("more", pa.bool_())]
    sink = tables.ready(fresh=True)
    sink.commit(commit_of(tables, [(1, "new")]), "0123abcd-000002-000001")
    sink.finish()
    assert tables.read("results").schema.names == tables.shape.results.names
    assert tables.ready().exists()


def test_usage_is_appended_once_per_mark(tables: Tables) -> None:
    sink = tables.ready()
    tables.usage(sink, 1, 4)
    tables.usage(sink, 5, 6)
    tables.usage(sink, 5, 6)
    tables.usage(sink, 1, 2, writer=2)
    assert tables.used() == [1, 1, 2, 2, 3, 4, 5, 6]
    sink = tables.ready()
    tables.usage(sink, 1, 2, writer=2)
    assert len(tables.used()) == 8
    assert last_exchanges(sink) == {("0123abcd", 1): 6, ("0123abcd", 2): 2}
    tables.usage(sink, 7, 7)
    assert last_exchanges(sink) == {("0123abcd", 1): 7, ("0123abcd", 2): 2}


@pytest.mark.parametrize(
    ("outputs", "column"),
    [
        ([pa.field("answer", pa.int64())], "answer ("),
        ([pa.field("other", pa.string())], "other ("),
        ([pa.field("b", pa.string()), pa.field("a", pa.string())], "b ("),
    ],
    ids=["type", "name", "order"],
)
def test_tables_with_other_columns_are_refused_and_not_changed(tables: Tables, outputs: Any, column: str) -> None:
    tables.outputs = [pa.field("a", pa.string()), pa.field("b", pa.string())] if len(outputs) == 2 else ONE_OUTPUT
    tables.ready()
    before = tables.read("results").schema
    tables.outputs = outputs
    with pytest.raises(SchemaMismatch) as refused:
        tables.open().check(False)
    assert column in str(refused.value)
    for choice in ("--schema-change cast", "--schema-change backfill", "--sink PATH"):
        assert choice in str(refused.value)
    with pytest.raises(SchemaMismatch) as again:
        tables.open().prepare(False)
    assert str(again.value) == str(refused.value)
    tables.open().check(True)
    assert tables.read("results").schema == before


def test_a_check_creates_nothing_and_accepts_what_a_run_accepts(tables: Tables, tmp_path: Path) -> None:
    def listing() -> list[str]:
        return tables.objects() if tables.server else sorted(str(path) for path in tmp_path.rglob("*"))

    tables.open().check(False)
    assert listing() == []
    tables.commit(tables.ready(), [(1, "a")], [(2, "bad")])
    before = listing()
    for fresh in (False, True):
        tables.open().check(fresh)
    assert listing() == before


def test_an_errors_table_with_other_columns_is_refused(tables: Tables) -> None:
    tables.outputs = ONE_OUTPUT
    tables.ready()
    tables.key = [pa.field("id", pa.string())]
    with pytest.raises(SchemaMismatch, match="id "):
        tables.open().check(False)


def test_a_usage_table_of_version_0_1_0_gains_its_later_columns_as_nulls(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    present, later = usage_schema(), schemas.LATER_USAGE_COLUMNS
    with monkeypatch.context() as old:
        old.setattr(schemas, "_USAGE", pa.schema(list(present)[: -len(later)]))
        old.setattr(schemas, "LATER_USAGE_COLUMNS", ())
        sink = tables.ready()
        tables.usage(sink, 1, 4)
        tables.usage(sink, 5, 6)
        sink.finish()
        assert not set(later) & set(tables.read("usage").schema.names)
    sink = tables.ready()
    tables.usage(sink, 5, 6)
    tables.usage(sink, 7, 7)
    assert tables.used() == [1, 2, 3, 4, 5, 6, 7]
    assert tables.read("usage").schema.names == present.names
    assert tables.read("usage").column("service_tier").null_count == 7
    with duckdb.connect() as db:
        sink.attach(db)
        assert db.sql(f"select count(*), count(tool_calls) from {sink.usage_sql()}").fetchall() == [(7, 0)]
        sink.detach(db)


def test_a_usage_table_of_another_version_suggests_no_schema_change(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.ready()
    other = pa.schema([*usage_schema(), pa.field("later", pa.string())])
    for module in ("parquet_table", "duckdb_table", "delta_table"):
        monkeypatch.setattr(f"connectors.sinks.{module}.usage_schema", lambda: other)
    for fresh in (False, True):
        with pytest.raises(DataError, match="this version of Rowmill makes later") as refused:
            tables.open().check(fresh)
        assert not isinstance(refused.value, SchemaMismatch)
        assert "--schema-change" not in str(refused.value)


ONE_OUTPUT = [pa.field("answer", pa.string())]


def test_names_that_differ_in_case_only_are_refused(tables: Tables) -> None:
    tables.outputs = [pa.field("Topic", pa.string()), pa.field("topic", pa.string())]
    with pytest.raises(JobError, match="Topic and topic"):
        tables.open()
    tables.outputs = ONE_OUTPUT
    tables.key = [pa.field("details", pa.string()), pa.field("error_details", pa.string())]
    with pytest.raises(JobError, match="errors table"):
        tables.open()


def test_a_key_may_have_the_name_of_a_column_of_the_errors_table(tables: Tables) -> None:
    tables.key = [pa.field("details", pa.string())]
    sink = tables.ready()
    tables.commit(sink, [("a", "fine")], [("b", "bad"), (None, "line 1")])
    tables.commit(sink, [], [(None, "line 1"), (None, "line 2")], cleared=["b"])
    assert tables.failures() == [(None, "line 1"), (None, "line 2")]


def test_an_occupied_path_is_refused(tables: Tables, tmp_path: Path) -> None:
    if tables.server:
        # An object never conflicts with those below it.
        tables.store.put(f"{tmp_path}/out"[1:], b"an object")
        tables.commit(tables.ready(), [(1, "a")])
        assert tables.answers() == {1: "a"}
        return
    if tables.kind != "duckdb":
        (tmp_path / "out").write_text("a file")
    else:
        (tmp_path / "out/answers.duckdb").mkdir(parents=True)
    for method in (tables.open().check, tables.open().prepare):
        with pytest.raises(DataError, match="choose another path"):
            method(False)


def test_a_file_instead_of_a_parent_folder_is_refused(tables: Tables, tmp_path: Path) -> None:
    tables.sink_keys = {**tables.sink_keys, tables.kind: "deep/er/out"}
    if tables.server:
        tables.store.put(f"{tmp_path}/deep"[1:], b"an object")
        tables.ready()
        return
    (tmp_path / "deep").write_text("a file")
    with pytest.raises(DataError, match="is a file; choose another path"):
        tables.open().prepare(False)


@pytest.mark.parametrize("name", ["o'clock", "a [1] *", 'q"uote', "späť"])
def test_paths_with_special_characters_are_read_and_written(tables: Tables, name: str) -> None:
    tables.sink_keys = {**tables.sink_keys, tables.kind: f"{name}/deep/sink"}
    if tables.kind == "delta" and "[" in name:
        with pytest.raises(DataError, match=r"at a path with \["):
            tables.open()
        return
    sink = tables.ready()
    tables.commit(sink, [(1, "a")], [(2, "bad")])
    tables.commit(sink, [(1, "b")])
    assert tables.answers() == {1: "b"}
    assert tables.failures() == [(2, "bad")]


@pytest.mark.parametrize("name", ["a[1]", "a*"])
def test_a_sink_never_reads_the_parts_of_its_neighbour(tables: Tables, name: str) -> None:
    for folder, answer in (("a1", "neighbour"), (name, "own")):
        if tables.kind == "delta" and "[" in folder:
            return
        tables.sink_keys = {**tables.sink_keys, tables.kind: f"{folder}/sink"}
        tables.count = 0
        sink = tables.ready()
        tables.commit(sink, [(1, answer)], [(2, answer)])
    with duckdb.connect() as connection:
        sink.attach(connection)
        assert connection.execute(f"select answer from {sink.results_sql()}").fetchall() == [("own",)]
        assert connection.execute(f"select message from {sink.errors_sql()}").fetchall() == [("own",)]
        sink.detach(connection)


def test_a_connection_restricted_to_the_sinks_paths_reads_the_tables(tables: Tables) -> None:
    tables.sink_keys = {**tables.sink_keys, tables.kind: "a b/sink" if tables.kind == "delta" else "a [1]/sink"}
    sink = tables.ready()
    tables.commit(sink, [(1, "a")], [(2, "bad")])
    with duckdb.connect() as db:
        sink.attach(db)
        folders = [path for path in sink.paths() if isinstance(path, Path) and path.is_dir()]
        lock_down(db, folders, [path for path in sink.paths() if isinstance(path, str) or path.is_file()])
        assert db.sql(f"select id, answer from {sink.results_sql()}").fetchall() == [(1, "a")]
        assert db.sql(f"select id, message from {sink.errors_sql()}").fetchall() == [(2, "bad")]


def test_a_query_reads_the_results_of_one_moment_while_they_are_rewritten(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = tables.ready()
    tables.commit(sink, [(1, "old")])
    tables.commit(sink, [(2, "old")])
    attach = ResultsSnapshot.attach
    commits = [[(3, "third")], [(1, "new"), (2, "new")]]

    def attach_and_commit(snapshot: ResultsSnapshot, connection: duckdb.DuckDBPyConnection) -> Mapping[str, str]:
        queries = attach(snapshot, connection)
        # DuckDB allows no writes to a file that is attached.
        if commits and tables.kind != "duckdb":
            tables.commit(sink, commits.pop())
        return queries

    monkeypatch.setattr(ResultsSnapshot, "attach", attach_and_commit)
    source = SqlSource(sql="select answer, list(id order by id) as ids from t group by all", jobs={"t": "job"})
    context = SourceContext(tmp_path / "workspace", (), tmp_path / "scratch", {"job": sink})
    with duckdb.connect() as db:
        rows = db.sql(f"select * from {source.connect(db, context).relation}").fetchall()
    if tables.kind == "parquet":
        # The files that were rewritten are read again; one that was added is not read.
        assert rows == [("new", [1, 2])]
    else:
        assert rows == [("old", [1, 2])]


def test_results_that_change_whenever_they_are_read_are_an_error(tmp_path: Path) -> None:
    tables = Tables("parquet", tmp_path)
    sink = tables.ready()
    tables.commit(sink, [(1, "0")])
    count = itertools.count(1)

    def read(snapshot: ResultsSnapshot) -> None:
        with duckdb.connect() as db:
            snapshot.attach(db)
        tables.commit(sink, [(1, str(next(count)))])

    with pytest.raises(DataError, match="the results of t change while they are read; run again when that job has"):
        read_snapshot({"t": sink}, ("source", "jobs"), read)
    assert next(count) == MAX_READS + 1


def test_media_files_have_a_folder_next_to_the_tables(tables: Tables, tmp_path: Path) -> None:
    sink = tables.ready()
    assert sink.files_prefix == tables.model.files_prefix
    assert sink.files_prefix == {"duckdb": "answers_answers_files/"}.get(tables.kind, "files/")
    if not tables.server:
        assert sink.files_folder == tmp_path / "out" / sink.files_prefix
        return
    # They are written on this machine, and uploaded before the row that names them.
    (sink.files_folder / "a.wav").write_bytes(b"sound")
    tables.commit(sink, [(1, "files/a.wav")])
    assert bytes(tables.store.get(f"{tmp_path}/out/files/a.wav"[1:]).bytes()) == b"sound"


def test_all_notations_of_one_path_have_one_identity(tables: Tables) -> None:
    identity = tables.model.identity
    tables.sink_keys = {**tables.sink_keys, tables.kind: f"./{tables.sink_keys[tables.kind]}/."}
    assert tables.model.identity == identity


def test_all_ways_to_one_path_have_one_location(tables: Tables, tmp_path: Path) -> None:
    path, location = tables.sink_keys[tables.kind], tables.model.location(tmp_path)
    if not tables.server:
        (tmp_path / "link").symlink_to(tmp_path)
        tables.sink_keys = {**tables.sink_keys, tables.kind: f"link/{path}"}
        assert tables.model.location(tmp_path) == location
        tables.sink_keys = {**tables.sink_keys, tables.kind: f"{tmp_path}/{path}"}
        assert tables.model.location(tmp_path / "elsewhere") == location
    tables.sink_keys = {**tables.sink_keys, tables.kind: f"{path}2"}
    assert tables.model.location(tmp_path) != location


key = st.integers(0, 8)
words = st.text("ab", max_size=3)
step = st.one_of(
    st.tuples(st.just("commit"), st.dictionaries(key, words, max_size=6), st.dictionaries(key, words, max_size=3)),
    st.tuples(st.just("remove"), st.sets(key, max_size=4), st.booleans()),
    st.tuples(st.just("finish"), st.none(), st.none()),
    st.tuples(st.just("reopen"), st.none(), st.none()),
    st.tuples(st.just("usage"), st.integers(1, 3), st.none()),
)


EXAMPLES = {"parquet": 10, "duckdb": 6, "delta": 4, "parquet at s3": 3}


@pytest.mark.parametrize("factor", [1, pytest.param(10, marks=pytest.mark.exhaustive)], ids=["few", "many"])
def test_any_sequence_of_operations_equals_a_dictionary(
    tables: Tables, tmp_path_factory: pytest.TempPathFactory, factor: int
) -> None:
    examples = factor * EXAMPLES[f"{tables.kind} at s3" if tables.server else tables.kind]

    @settings(max_examples=examples, deadline=None)
    @given(steps=st.lists(step, max_size=12))
    def equals_a_dictionary(steps: list[tuple[str, Any, Any]]) -> None:
        tables.workspace = tmp_path_factory.mktemp("steps")
        sink = tables.ready()
        results: dict[int, str] = {}
        errors: dict[int, str] = {}
        used = 0
        for operation, first, second in steps:
            if operation == "commit":
                failed = {one: text for one, text in second.items() if one not in first}
                cleared = [one for one in first if one in errors]
                tables.commit(sink, list(first.items()), list(failed.items()), cleared)
                results.update(first)
                errors = {one: text for one, text in {**errors, **failed}.items() if one not in cleared}
            elif operation == "remove":
                deleted = results.keys() & first
                assert sink.remove(tables.keys(sorted(first)), errors_too=second) == len(deleted)
                results = {one: text for one, text in results.items() if one not in first}
                if second:
                    errors = {one: text for one, text in errors.items() if one not in first}
            elif operation == "usage":
                tables.usage(sink, used + 1, used + first)
                used += first
            elif operation == "finish":
                sink.finish()
            else:
                sink = tables.ready()
            assert tables.answers() == results
            assert dict(tables.failures()) == errors
        assert len(tables.failures()) == len(errors)
        assert tables.used() == list(range(1, used + 1))

    equals_a_dictionary()


def with_children(tables: Tables) -> None:
    tables.key = [pa.field("id", pa.int64()), pa.field("piece_index", pa.int64())]
    tables.child_index = "piece_index"


def pieces(row: int, count: int, text: str) -> list[tuple[Any, str]]:
    return [((row, index), text) for index in range(count)]


def test_a_source_rows_new_children_replace_all_its_old_ones(tables: Tables) -> None:
    with_children(tables)
    sink = tables.ready()
    tables.commit(sink, [*pieces(1, 3, "old"), *pieces(2, 2, "old")])
    tables.commit(sink, [*pieces(3, 2, "old"), *pieces(4, 1, "old")])
    tables.commit(sink, [*pieces(1, 1, "new"), *pieces(3, 4, "new"), *pieces(5, 2, "new")])
    expected = [*pieces(1, 1, "new"), *pieces(2, 2, "old"), *pieces(3, 4, "new"), *pieces(4, 1, "old")]
    assert tables.answers() == dict([*expected, *pieces(5, 2, "new")])


def test_children_of_one_source_row_are_in_one_part(
    tables: Tables, low_compaction_limits: None, low_division_limits: None
) -> None:
    with_children(tables)
    sink = tables.ready()
    for row in range(6):
        tables.commit(sink, pieces(row, 3, "old"))
    tables.commit(sink, [*pieces(30, 2, "old"), *pieces(31, 8, "old"), *pieces(32, 2, "old")])
    for answer in ("new", "newer"):
        tables.commit(sink, [*pieces(3, 5, answer), *pieces(30, 4, answer)])
    for _ in range(2):
        parts = tables.parts(sink)
        assert len({row for (row, _), _ in parts}) == len({(row, part) for (row, _), part in parts}) == 9
        sink.finish()
    expected = [*(one for row in (0, 1, 2, 4, 5) for one in pieces(row, 3, "old")), *pieces(3, 5, "newer")]
    others = [*pieces(30, 4, "newer"), *pieces(31, 8, "old"), *pieces(32, 2, "old")]
    assert tables.answers() == dict([*expected, *others])


def test_a_source_row_without_children_loses_its_old_ones(tables: Tables) -> None:
    with_children(tables)
    sink = tables.ready()
    tables.commit(sink, [*pieces(1, 3, "old"), *pieces(2, 2, "old"), *pieces(3, 1, "old")])
    tables.commit(sink, pieces(2, 1, "new"), emptied=[(1,)])
    assert tables.answers() == dict([*pieces(2, 1, "new"), *pieces(3, 1, "old")])
    tables.commit(sink, emptied=[(2,), (3,)])
    assert tables.answers() == {}


def test_errors_of_children_are_replaced_and_resolved_by_source_row(tables: Tables) -> None:
    with_children(tables)
    sink = tables.ready()
    failed: list[tuple[Any, str]] = [((1, 0), "a"), ((1, 2), "b"), ((2, None), "c"), ((None, None), "line 3")]
    tables.commit(sink, [], [*failed, ((3, 1), "d"), ((4, 0), "e")])
    tables.commit(sink, pieces(3, 2, "fine"), [((1, 2), "b again"), ((2, 5), "f")], cleared=[(3,), (3,)])
    assert tables.failures() == [((1, 2), "b again"), ((2, 5), "f"), ((4, 0), "e"), ((None, None), "line 3")]
    assert tables.answers() == dict(pieces(3, 2, "fine"))


def test_removed_source_rows_leave_no_child_and_no_error(tables: Tables) -> None:
    with_children(tables)
    sink = tables.ready()
    tables.commit(sink, [*pieces(1, 3, "old"), *pieces(2, 2, "old")], [((1, 1), "a"), ((3, None), "b")])
    assert sink.remove(tables.keys([(1,), (3,)]), errors_too=True) == 3
    assert (tables.answers(), tables.failures()) == (dict(pieces(2, 2, "old")), [])


def commit_of(tables: Tables, results: Any, errors: Any = ()) -> Any:
    from connectors.contracts import Commit

    return Commit(tables.results(results), {}, tables.errors(errors), tables.keys([]))


def last_exchanges(sink: Any) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    marks: list[UsageMark] = list(sink.usage_marks())
    for mark in marks:
        writer = (mark.ledger, mark.writer)
        found[writer] = max(found.get(writer, 0), mark.last)
    return found
