"""What every kind of sink promises."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.contracts import UsageMark
from connectors.errors import DataError, JobError
from connectors.tables.schema_checks import SchemaMismatch
from connectors.tables.schemas import errors_schema, usage_schema

COMPOSITE = [pa.field("a.b", pa.string()), pa.field('n "q" x', pa.int32())]


def test_the_empty_tables_have_their_whole_schema(tables: Any) -> None:
    sink = tables.open()
    assert not sink.exists()
    sink.prepare(False)
    assert sink.exists()
    assert tables.read("results").schema.names == tables.shape.results.names
    assert tables.read("usage").schema.names == usage_schema().names
    assert tables.read("errors").schema.names == errors_schema(tables.key).names
    assert [tables.read(name).num_rows for name in ("results", "usage", "errors")] == [0, 0, 0]
    assert tables.parts(sink) == []


def test_values_come_back_as_they_went_in(tables: Any) -> None:
    sink = tables.ready()
    tables.commit(sink, [(1, "a"), (2, "bb")])
    written, read = tables.results([(1, "a"), (2, "bb")]), tables.read("results")
    assert read.sort_by("id").to_pylist() == written.to_pylist()
    kinds = {field.name: field.type for field in read.schema}
    assert kinds["id"] == pa.int64()
    assert pa.types.is_timestamp(kinds["at"])
    assert kinds["at"].tz is not None
    assert kinds["vector"].value_type == pa.float32()


def test_new_rows_are_added_and_changed_ones_take_the_place_of_the_old(tables: Any) -> None:
    sink = tables.ready()
    tables.commit(sink, [(n, "old") for n in range(5)])
    tables.commit(sink, [(n, "old") for n in range(5, 9)])
    tables.commit(sink, [(2, "new"), (7, "new"), (8, "new"), (9, "new")])
    assert tables.answers() == {n: "new" if n in (2, 7, 8, 9) else "old" for n in range(10)}


def test_errors_are_replaced_by_later_ones_and_leave_when_they_are_cleared(tables: Any) -> None:
    sink = tables.ready()
    tables.commit(sink, [], [(1, "one"), (2, "two"), (3, "three")])
    tables.commit(sink, [(2, "fine")], [(3, "three again"), (4, "four")], cleared=[2])
    assert tables.failures() == [(1, "one"), (3, "three again"), (4, "four")]
    assert tables.answers() == {2: "fine"}
    tables.commit(sink, [], [], cleared=[1, 3, 4])
    assert tables.failures() == []
    assert tables.read("errors").schema.names == errors_schema(tables.key).names


def test_lines_without_a_key_are_told_once_each_by_their_details(tables: Any) -> None:
    sink = tables.ready()
    tables.commit(sink, [], [(None, "line 3"), (None, "line 7"), (1, "line 3")])
    tables.commit(sink, [], [(None, "line 7"), (None, "line 9")])
    lines = [(None, "line 3"), (None, "line 7"), (None, "line 9")]
    assert tables.failures() == [(1, "line 3"), *lines]
    tables.commit(sink, [], [(2, "line 9")], cleared=[1])
    assert tables.failures() == [(2, "line 9"), *lines]
    tables.commit(sink, [], [(None, "line 4")], cleared=[None])
    assert tables.failures() == [(2, "line 9"), (None, "line 4")]


def test_composite_keys_are_compared_as_a_whole(tables: Any) -> None:
    tables.key = COMPOSITE
    sink = tables.ready()
    tables.commit(sink, [(("x", 1), "a"), (("x", 2), "b"), (("y", 1), "c"), (("y", 2), "d")])
    tables.commit(sink, [(("x", 1), "A"), (("y", 2), "D")], [(("x", 2), "bad"), (("y", 1), "bad")])
    assert tables.answers() == {("x", 1): "A", ("x", 2): "b", ("y", 1): "c", ("y", 2): "D"}
    tables.commit(sink, [], [(("x", 1), "bad")], cleared=[("x", 2), ("y", 3)])
    assert tables.failures() == [(("x", 1), "bad"), (("y", 1), "bad")]
    assert sink.remove(tables.keys([("x", 2), ("y", 1), ("x", 9)]), errors_too=False) == 2
    assert tables.answers() == {("x", 1): "A", ("y", 2): "D"}


def test_rows_are_removed_by_key_and_counted(tables: Any) -> None:
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


def test_a_fresh_table_takes_the_place_of_the_old_one_when_it_is_whole(tables: Any) -> None:
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


def test_a_fresh_table_that_was_not_finished_is_forgotten(tables: Any) -> None:
    tables.commit(tables.ready(), [(1, "old")])
    tables.ready(fresh=True).commit(commit_of(tables, [(1, "lost")]), "0123abcd-000002-000001")
    sink = tables.ready(fresh=True)
    sink.commit(commit_of(tables, [(2, "new")]), "0123abcd-000003-000001")
    assert tables.answers() == {1: "old"}
    sink.finish()
    assert tables.answers() == {2: "new"}


def test_a_first_fresh_build_that_was_cut_off_leaves_empty_tables_that_do_not_count(tables: Any) -> None:
    sink = tables.ready(fresh=True)
    sink.commit(commit_of(tables, [(1, "lost")], [(2, "lost")]), "0123abcd-000001-000001")
    assert tables.read("results").num_rows == tables.read("errors").num_rows == 0
    assert not tables.open().exists()
    sink = tables.ready(fresh=True)
    sink.finish()
    assert tables.open().exists()


def test_a_fresh_table_may_have_other_columns_than_the_one_it_replaces(tables: Any) -> None:
    tables.commit(tables.ready(), [(1, "old")])
    tables.made = [*tables.made, pa.field("more", pa.bool_())]
    sink = tables.ready(fresh=True)
    sink.commit(commit_of(tables, [(1, "new")]), "0123abcd-000002-000001")
    sink.finish()
    assert tables.read("results").schema.names == tables.shape.results.names
    assert tables.ready().exists()


def test_usage_is_appended_once_a_mark(tables: Any) -> None:
    sink = tables.ready()
    tables.usage(sink, 1, 4)
    tables.usage(sink, 5, 6)
    tables.usage(sink, 5, 6)
    tables.usage(sink, 1, 2, writer=2)
    assert tables.used() == [1, 1, 2, 2, 3, 4, 5, 6]
    sink = tables.ready()
    tables.usage(sink, 1, 2, writer=2)
    assert len(tables.used()) == 8
    assert reach(sink) == {("0123abcd", 1): 6, ("0123abcd", 2): 2}
    tables.usage(sink, 7, 7)
    assert reach(sink) == {("0123abcd", 1): 7, ("0123abcd", 2): 2}


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ([pa.field("answer", pa.int64())], "answer ("),
        ([pa.field("other", pa.string())], "other ("),
        ([pa.field("b", pa.string()), pa.field("a", pa.string())], "b ("),
    ],
    ids=["type", "name", "order"],
)
def test_tables_with_other_columns_are_refused_and_left_alone(tables: Any, made: Any, told: str) -> None:
    tables.made = [pa.field("a", pa.string()), pa.field("b", pa.string())] if len(made) == 2 else MADE_ONE
    tables.ready()
    before = tables.read("results").schema
    tables.made = made
    with pytest.raises(SchemaMismatch) as refused:
        tables.open().check(False)
    assert told in str(refused.value)
    for choice in ("--schema-change cast", "--schema-change backfill", "--sink PATH"):
        assert choice in str(refused.value)
    with pytest.raises(SchemaMismatch) as again:
        tables.open().prepare(False)
    assert str(again.value) == str(refused.value)
    tables.open().check(True)
    assert tables.read("results").schema == before


def test_a_check_creates_nothing_and_passes_what_a_run_takes(tables: Any, tmp_path: Path) -> None:
    def there() -> list[str]:
        return tables.objects() if tables.server else sorted(str(path) for path in tmp_path.rglob("*"))

    tables.open().check(False)
    assert there() == []
    tables.commit(tables.ready(), [(1, "a")], [(2, "bad")])
    before = there()
    for fresh in (False, True):
        tables.open().check(fresh)
    assert there() == before


def test_other_columns_of_the_errors_are_refused_as_those_of_the_results_are(tables: Any) -> None:
    tables.made = MADE_ONE
    tables.ready()
    tables.key = [pa.field("id", pa.string())]
    with pytest.raises(SchemaMismatch, match="id "):
        tables.open().check(False)


def test_a_usage_table_of_another_version_is_no_matter_of_the_jobs_declaration(
    tables: Any, monkeypatch: pytest.MonkeyPatch
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


MADE_ONE = [pa.field("answer", pa.string())]


def test_names_that_duckdb_does_not_tell_apart_are_refused(tables: Any) -> None:
    tables.made = [pa.field("Topic", pa.string()), pa.field("topic", pa.string())]
    with pytest.raises(JobError, match="Topic and topic"):
        tables.open()
    tables.made = MADE_ONE
    tables.key = [pa.field("details", pa.string()), pa.field("error_details", pa.string())]
    with pytest.raises(JobError, match="errors table"):
        tables.open()


def test_a_key_may_be_called_as_a_column_of_the_errors_is(tables: Any) -> None:
    tables.key = [pa.field("details", pa.string())]
    sink = tables.ready()
    tables.commit(sink, [("a", "fine")], [("b", "bad"), (None, "line 1")])
    tables.commit(sink, [], [(None, "line 1"), (None, "line 2")], cleared=["b"])
    assert tables.failures() == [(None, "line 1"), (None, "line 2")]


def test_a_path_that_is_something_else_is_refused(tables: Any, tmp_path: Path) -> None:
    if tables.server:
        # There is no such thing: an object is in the way of none below it.
        tables.store.put(f"{tmp_path}/out"[1:], b"an object")
        tables.commit(tables.ready(), [(1, "a")])
        assert tables.answers() == {1: "a"}
        return
    if tables.kind != "duckdb":
        (tmp_path / "out").write_text("a file")
    else:
        (tmp_path / "out/answers.duckdb").mkdir(parents=True)
    for sink in (tables.open().check, tables.open().prepare):
        with pytest.raises(DataError, match="choose another path"):
            sink(False)


def test_a_file_in_place_of_a_parent_folder_is_refused(tables: Any, tmp_path: Path) -> None:
    tables.written = {**tables.written, tables.kind: "deep/er/out"}
    if tables.server:
        tables.store.put(f"{tmp_path}/deep"[1:], b"an object")
        tables.ready()
        return
    (tmp_path / "deep").write_text("a file")
    with pytest.raises(DataError, match="is a file; choose another path"):
        tables.open().prepare(False)


@pytest.mark.parametrize("name", ["o'clock", "a [1] *", 'q"uote', "späť"])
def test_odd_paths_are_read_and_written(tables: Any, name: str) -> None:
    tables.written = {**tables.written, tables.kind: f"{name}/deep/sink"}
    if tables.kind == "delta" and "[" in name:
        with pytest.raises(DataError, match=r"at a path with \["):
            tables.open()
        return
    sink = tables.ready()
    tables.commit(sink, [(1, "a")], [(2, "bad")])
    tables.commit(sink, [(1, "b")])
    assert tables.answers() == {1: "b"}
    assert tables.failures() == [(2, "bad")]


def test_a_connection_locked_to_its_paths_reads_the_tables(tables: Any) -> None:
    tables.written = {**tables.written, tables.kind: "a b/sink" if tables.kind == "delta" else "a [1]/sink"}
    sink = tables.ready()
    tables.commit(sink, [(1, "a")], [(2, "bad")])
    with duckdb.connect() as db:
        sink.attach(db)
        folders = [f"{path}/" for path in sink.paths() if isinstance(path, Path) and path.is_dir()]
        files = [str(path) for path in sink.paths() if isinstance(path, str) or path.is_file()]
        db.execute(f"set allowed_directories = {folders}")
        db.execute(f"set allowed_paths = {files}")
        db.execute("set enable_external_access = false")
        db.execute("set lock_configuration = true")
        assert db.sql(f"select id, answer from {sink.results_sql()}").fetchall() == [(1, "a")]
        assert db.sql(f"select id, message from {sink.errors_sql()}").fetchall() == [(2, "bad")]


def test_media_files_have_a_folder_beside_the_tables(tables: Any, tmp_path: Path) -> None:
    sink = tables.ready()
    assert sink.files_prefix == tables.model.files_prefix
    assert sink.files_prefix == {"duckdb": "answers_answers_files/"}.get(tables.kind, "files/")
    if not tables.server:
        assert sink.files_folder == tmp_path / "out" / sink.files_prefix
        return
    # Written on this machine, they are there as soon as a row that names them is.
    (sink.files_folder / "a.wav").write_bytes(b"sound")
    tables.commit(sink, [(1, "files/a.wav")])
    assert bytes(tables.store.get(f"{tmp_path}/out/files/a.wav"[1:]).bytes()) == b"sound"


def test_one_place_has_one_name_however_it_is_written(tables: Any) -> None:
    tidy = tables.model.identity
    tables.written = {**tables.written, tables.kind: f"./{tables.written[tables.kind]}/."}
    assert tables.model.identity == tidy


def test_one_place_is_known_however_it_is_reached(tables: Any, tmp_path: Path) -> None:
    written, place = tables.written[tables.kind], tables.model.location(tmp_path)
    if not tables.server:
        (tmp_path / "link").symlink_to(tmp_path)
        tables.written = {**tables.written, tables.kind: f"link/{written}"}
        assert tables.model.location(tmp_path) == place
        tables.written = {**tables.written, tables.kind: f"{tmp_path}/{written}"}
        assert tables.model.location(tmp_path / "elsewhere") == place
    tables.written = {**tables.written, tables.kind: f"{written}2"}
    assert tables.model.location(tmp_path) != place


key = st.integers(0, 8)
words = st.text("ab", max_size=3)
step = st.one_of(
    st.tuples(st.just("commit"), st.dictionaries(key, words, max_size=6), st.dictionaries(key, words, max_size=3)),
    st.tuples(st.just("remove"), st.sets(key, max_size=4), st.booleans()),
    st.tuples(st.just("finish"), st.none(), st.none()),
    st.tuples(st.just("reopen"), st.none(), st.none()),
    st.tuples(st.just("usage"), st.integers(1, 3), st.none()),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(step, max_size=12))
def test_any_sequence_of_commits_leaves_what_a_dictionary_would(
    tables: Any, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any, Any]]
) -> None:
    tables.workspace = tmp_path_factory.mktemp("steps")
    sink = tables.ready()
    results: dict[int, str] = {}
    errors: dict[int, str] = {}
    used = 0
    for what, first, second in steps:
        if what == "commit":
            failed = {one: text for one, text in second.items() if one not in first}
            cleared = [one for one in first if one in errors]
            tables.commit(sink, list(first.items()), list(failed.items()), cleared)
            results.update(first)
            errors = {one: text for one, text in {**errors, **failed}.items() if one not in cleared}
        elif what == "remove":
            gone = results.keys() & first
            assert sink.remove(tables.keys(sorted(first)), errors_too=second) == len(gone)
            results = {one: text for one, text in results.items() if one not in first}
            if second:
                errors = {one: text for one, text in errors.items() if one not in first}
        elif what == "usage":
            tables.usage(sink, used + 1, used + first)
            used += first
        elif what == "finish":
            sink.finish()
        else:
            sink = tables.ready()
        assert tables.answers() == results
        assert dict(tables.failures()) == errors
    assert len(tables.failures()) == len(errors)
    assert tables.used() == list(range(1, used + 1))


def commit_of(tables: Any, results: Any, errors: Any = ()) -> Any:
    from connectors.contracts import Commit

    return Commit(tables.results(results), {}, tables.errors(errors), tables.keys([]))


def reach(sink: Any) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    marks: list[UsageMark] = list(sink.usage_marks())
    for mark in marks:
        whose = (mark.ledger, mark.writer)
        found[whose] = max(found.get(whose, 0), mark.last)
    return found
