"""Parquet on an object store: atomic parts, one manifest for several, replacements that readers cannot misread."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import duckdb
import pytest

from connectors.contracts import Commit
from connectors.errors import DataError, JobError
from connectors.sinks import parquet_table
from connectors.storage import object_store
from tests.unit.sinks.conftest import Tables

Act = Callable[[Any], None]
EveryKill = Callable[..., Iterator[None]]


class Killed(BaseException):
    """Represents the end of the process."""


def record_writes(patch: pytest.MonkeyPatch, allowed: int | None = None) -> list[tuple[str, Any]]:
    """Record the objects put, copied and deleted from now on; after `allowed` of them the process dies."""
    seen: list[tuple[str, Any]] = []

    def recorded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *args: Any) -> Any:
            if allowed is not None and len(seen) >= allowed:
                raise Killed
            seen.append((name, args[0] if name == "copy" else target))
            return real(target, *args)

        return call

    for name in ("put", "copy", "delete"):
        patch.setattr(object_store, name, recorded(name, getattr(object_store, name)))
    return seen


def test_a_single_new_part_is_put_once(at_s3: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = at_s3.ready()
    with monkeypatch.context() as patch:
        seen = record_writes(patch)
        at_s3.commit(sink, [(1, "a"), (2, "a")])
    assert seen == [("put", f"{at_s3.home}/out/results/0123abcd-000001-000001.parquet")]
    at_s3.commit(sink, [(3, "b")])
    with monkeypatch.context() as patch:
        seen = record_writes(patch)
        at_s3.commit(sink, [(2, "A")])
    assert seen == [("put", f"{at_s3.home}/out/results/0123abcd-000001-000001.parquet")]
    assert at_s3.answers() == {1: "a", 2: "A", 3: "b"}


def test_only_the_tables_remain(at_s3: Tables) -> None:
    sink = at_s3.ready()
    at_s3.commit(sink, [(1, "a")], [(2, "b")])
    at_s3.commit(sink, [(1, "b"), (2, "fine")], cleared=[2])
    at_s3.usage(sink, 1, 1)
    sink.finish()
    assert at_s3.objects("out") == [
        "errors/0-empty.parquet",
        "errors/0123abcd-000001-000001.parquet",
        "results/0-empty.parquet",
        "results/0123abcd-000001-000001.parquet",
        "results/0123abcd-000001-000002.parquet",
        "usage/0-empty.parquet",
        "usage/0123abcd-000001-000000000001-000000000001.parquet",
    ]


def killed_and_restarted(step: int, tables: Tables, begin: Callable[[Any], Any], act: Act) -> Iterator[None]:
    """Repeat from the start, killed `step` requests later each time, until the action completes."""
    home = tables.workspace
    for allowed in range(0, 60, step):
        tables.workspace = home / f"kill-{allowed}"
        tables.count = 0
        sink = begin(tables)
        with pytest.MonkeyPatch.context() as patch:
            record_writes(patch, allowed)
            try:
                act(sink)
                died = False
            except Killed:
                died = True
        yield
        if not died:
            assert allowed > 3
            return
    raise AssertionError("the action never completed")


@pytest.fixture(params=[5, pytest.param(1, marks=pytest.mark.exhaustive)], ids=["every fifth request", "every one"])
def every_kill(request: pytest.FixtureRequest) -> EveryKill:
    """(tables, begin, act) -> one iteration for each request at which the process is killed."""
    return partial(killed_and_restarted, request.param)


def with_rows(tables: Tables) -> Any:
    sink = tables.ready()
    # Each of these commits is one object, put once.
    tables.commit_blind(sink, [(1, "old"), (2, "old")])
    tables.commit_blind(sink, [(3, "old")])
    for name, errors in (("one", [(10, "old"), (11, "old")]), ("two", [(12, "old")])):
        sink.commit(Commit(tables.results([]), {}, tables.errors(errors), tables.keys([])), name)
    tables.usage(sink, 1, 2)
    return sink


OLD = ({1: "old", 2: "old", 3: "old"}, [(10, "old"), (11, "old"), (12, "old")])
NEW = ({1: "new", 2: "old", 3: "new", 4: "new"}, [(10, "new"), (12, "old"), (13, "new")])


def test_a_commit_killed_anywhere_is_complete_or_absent(at_s3: Tables, every_kill: EveryKill) -> None:
    def act(sink: Any) -> None:
        at_s3.commit(sink, [(1, "new"), (3, "new"), (4, "new")], [(10, "new"), (13, "new")], cleared=[11])

    seen = []
    for _ in every_kill(at_s3, with_rows, act):
        at_s3.answers()  # no key twice before the recovery either
        assert at_s3.open().exists()
        at_s3.ready()
        seen.append((at_s3.answers(), at_s3.failures()))
        assert seen[-1] in (OLD, NEW)
        assert at_s3.objects("out/.staging") == []
    assert (seen[0], seen[-1]) == (OLD, NEW)
    assert [state == NEW for state in seen] == sorted(state == NEW for state in seen)


def test_a_replacement_killed_anywhere_leaves_one_table_and_readers_see_no_mixture(
    at_s3: Tables, every_kill: EveryKill
) -> None:
    def begin(tables: Tables) -> Any:
        with_rows(tables)
        sink = tables.ready(fresh=True)
        sink.commit(Commit(tables.results([(9, "new")]), {}, tables.errors([]), tables.keys([])), "fresh")
        return sink

    seen, unreadable = [], 0
    for _ in every_kill(at_s3, begin, lambda sink: sink.finish()):
        try:
            assert at_s3.answers() in (OLD[0], {9: "new"})
        except ValueError:
            unreadable += 1
        assert at_s3.open().exists()
        at_s3.ready()
        seen.append((at_s3.answers(), at_s3.failures()))
        assert seen[-1] in (OLD, ({9: "new"}, []))
        assert at_s3.used() == [1, 2]
    assert unreadable > 0
    assert seen[-1] != OLD


def test_a_first_build_killed_anywhere_does_not_count_until_it_is_complete(
    at_s3: Tables, every_kill: EveryKill
) -> None:
    def build(_: Any) -> None:
        sink = at_s3.ready(fresh=True)
        sink.commit(Commit(at_s3.results([(9, "new")]), {}, at_s3.errors([]), at_s3.keys([])), "fresh")
        sink.finish()

    for _ in every_kill(at_s3, lambda tables: None, build):
        if at_s3.open().exists():
            at_s3.ready()
        else:
            build(None)
        assert at_s3.answers() == {9: "new"}


def test_small_parts_are_merged_with_their_marks(
    at_s3: Tables, monkeypatch: pytest.MonkeyPatch, low_compaction_limits: None
) -> None:
    # Each group in a separate transaction.
    monkeypatch.setattr(parquet_table, "MAX_MERGED_BYTES", 1)
    sink = at_s3.ready()
    for n in range(6):
        at_s3.commit(sink, [(n, "a"), (50 + n, "a")])
        at_s3.usage(sink, n + 1, n + 1, writer=n // 4 + 1)
    before = (at_s3.answers(), at_s3.used())
    sink.finish()
    found = at_s3.objects("out/results")
    assert [name[:7] for name in found] == ["0-empty", *["merged-"] * 2]
    assert (at_s3.answers(), at_s3.used()) == before
    sink = at_s3.ready()
    assert {(mark.writer, mark.last) for mark in sink.usage_marks()} >= {(1, 4), (2, 6)}
    at_s3.commit(sink, [(3, "changed")])
    assert at_s3.answers() == {**before[0], 3: "changed"}


def test_media_files_are_uploaded_before_the_rows_that_name_them(
    at_s3: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = at_s3.ready()
    for name in ("a.png", "b.png", ".c.png.1.part"):
        (sink.files_folder / name).write_bytes(name.encode())
    with monkeypatch.context() as patch:
        seen = record_writes(patch)
        at_s3.commit(sink, [(1, "files/a.png")])
        at_s3.commit(sink, [(2, "files/b.png")])
    names = [url.removeprefix(f"{at_s3.home}/out/") for _, url in seen]
    assert sorted(names[:2]) == ["files/a.png", "files/b.png"]
    assert [name[:8] for name in names[2:]] == ["results/", "results/"]


def test_errors_about_urls_and_credentials_show_no_secret(at_s3: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    at_s3.sink_keys = {"parquet": "../../../../../rowmill-nowhere/out"}
    with pytest.raises(JobError, match=r"has \.\. in it"):
        at_s3.open()
    with pytest.raises(DataError, match=r"NoSuchBucket.*check the URL, and AWS_ACCESS_KEY_ID") as error:
        object_store.list_objects("s3://rowmill-nowhere/out")
    assert "secret-of-the-test" not in str(error.value)


def test_without_the_packages_the_extra_is_named(at_s3: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(JobError, match=r"^sink\.parquet: object stores need .* pip install 'rowmill\[cloud\]'$"):
        at_s3.open()


def test_a_locked_connection_opens_only_the_sinks_objects(at_s3: Tables) -> None:
    sink = at_s3.ready()
    at_s3.commit(sink, [(1, "a")])
    other = f"{at_s3.home}/other.parquet"
    object_store.put(other, object_store.read(object_store.list_objects(f"{at_s3.home}/out/results")[0].url) or b"")
    with duckdb.connect() as db:
        sink.attach(db)
        assert db.sql(f"select count(*) from read_parquet('{other}')").fetchall() == [(0,)]
        db.execute(f"set allowed_paths = {list(sink.paths())}")
        db.execute("set enable_external_access = false")
        assert db.sql(f"select id from {sink.results_sql()}").fetchall() == [(1,)]
        with pytest.raises(duckdb.PermissionException):
            db.sql(f"select * from read_parquet('{other}')").fetchall()
        sink.detach(db)
        assert db.list_filesystems() == []
