"""Values of sources on their way into prompts and tables: one odd value changes no other row, and no digit is lost."""

import datetime
import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from tests.conftest import Cli, ScriptedProvider, Workspace, error_reply

ReadTable = Callable[..., list[dict[str, Any]]]
STEPS = "[{name: answer, endpoint: chat, provider: test, model: m, messages: [{user: '{{ value }}'}]}]"

ODD_VALUES = {
    "a fraction among whole numbers": (["0", "3", "6"], "2.5"),
    "other decimals": (["1.50", "2.00", "3.25"], "1.5"),
    "a text among moments": (["2024-01-01 10:00", "2024-01-02 10:00"], "soon"),
    "a text among booleans": (["true", "False"], "maybe"),
    "a code among numbers": (["100000", "7"], "1E5"),
    "a long number": (["1.5", "2.5"], "0.1234567890123456789"),
}


def csv_of(values: list[str]) -> str:
    return "id,value\n" + "".join(f"{number},{value}\n" for number, value in enumerate(values))


@pytest.mark.parametrize("case", ODD_VALUES)
@pytest.mark.parametrize("source", ["{csv: rows.csv, key: id}", "{csv: rows.csv}"])
def test_one_odd_value_changes_no_other_row(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, case: str, source: str
) -> None:
    usual, odd = ODD_VALUES[case]
    job = workspace.job(source=source, steps=STEPS)
    workspace.write("rows.csv", csv_of(usual))
    assert cli.run(job)["requests"] == len(usual)
    workspace.write("rows.csv", csv_of([*usual, odd]))
    assert cli.run(job)["requests"] == 1
    assert sorted(provider.prompts()) == sorted([*usual, odd])


@pytest.mark.parametrize(
    ("usual", "odd"), [("1", "2.5"), ("[1,2]", "[2.5]"), ('{"a":1}', '{"a":1.5,"b":2}'), ("2.50", '"soon"')]
)
def test_one_odd_value_of_json_lines_changes_no_other_row(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, usual: str, odd: str
) -> None:
    job = workspace.job(source="{jsonl: rows.jsonl, key: id}", steps=STEPS)
    first = "".join(f'{{"id":{n},"value":{usual}}}\n' for n in range(2))
    workspace.write("rows.jsonl", first)
    assert cli.run(job)["requests"] == 1  # equal requests are sent once
    workspace.write("rows.jsonl", f'{first}{{"id":9,"value":{odd}}}\n')
    assert cli.run(job)["requests"] == 1
    assert provider.prompts() == [usual, odd.strip('"')]


def test_texts_beside_other_types_have_no_quotes(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable
) -> None:
    values = [{"v": "a", "l": ["x"]}, {"v": 1, "l": [[2, "y"]]}, {"v": {"k": "b"}, "l": [None, True]}]
    lines = [json.dumps({"id": number, "value": value}) for number, value in enumerate(values)]
    workspace.write("rows.jsonl", "\n".join(lines))
    job = workspace.job(
        source="{jsonl: rows.jsonl, key: id, where: \"value.v <> 'other'\"}",
        steps=STEPS.replace("{{ value }}", "{{ value.v }} {{ value.l[0] }} {{ value }}"),
        sink="{parquet: out, columns: [value]}",
    )
    assert cli.run(job)["rows_ok"] == 3
    assert sorted(provider.prompts()) == [
        '1 [2,"y"] {"v":1,"l":[[2,"y"]]}',
        'a x {"v":"a","l":["x"]}',
        '{"k":"b"}  {"v":{"k":"b"},"l":[null,true]}',
    ]
    assert [row["value"] for row in read(workspace.folder / "out")] == [
        {"v": "a", "l": ["x"]},
        {"v": "1", "l": ['[2,"y"]']},
        {"v": '{"k":"b"}', "l": [None, "true"]},
    ]


def test_messages_and_calls_of_json_lines_keep_the_form_that_their_row_has(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    """In the typed column, `content` of several types would be JSON text, and arguments would have all keys."""
    parts = [{"type": "text", "text": "b"}]
    rows = [
        {"id": 1, "past": [{"role": "user", "content": "a"}],
         "calls": [{"id": "c", "name": "f", "arguments": {"x": 1}}]},
        {"id": 2, "past": [{"role": "user", "content": parts}],
         "calls": [{"id": "c", "name": "f", "arguments": {"y": 2}}]},
    ]  # fmt: skip
    workspace.write("rows.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    calls = "{role: assistant, tool_calls: {column: calls}}, {role: tool, tool_call_id: c, content: r}"
    step = "{name: %s, endpoint: chat, provider: test, model: m, messages: %s}"
    job = workspace.job(
        source="{jsonl: rows.jsonl, key: id}",
        steps=f"[{step % ('first', '{column: past}')}, {step % ('second', f'[{{user: u}}, {calls}]')}]",
    )
    assert cli.run(job)["rows_ok"] == 2
    sent = [body["messages"] for _, body in provider.seen]
    assert sorted((each[0]["content"] for each in sent if len(each) == 1), key=str) == [parts, "a"]
    arguments = [each[1]["tool_calls"][0]["function"]["arguments"] for each in sent if len(each) > 1]
    assert sorted(arguments) == ['{"x":1}', '{"y":2}']


def test_rows_done_by_an_earlier_version_stay_done(
    workspace: Workspace, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["1.50", "2.00", "30.25", "4.00"]
    steps = STEPS.replace("{{ value }}", "{{ value }} {{ seen }} {{ flag }}")
    lines = [f"{n},{value},2024-01-0{n + 1} 10:00,True" for n, value in enumerate(rows)]
    workspace.write("rows.csv", "\n".join(["id,value,seen,flag", *lines]) + "\n")
    job = workspace.job(steps=steps, sink="{parquet: out, columns: [value]}")
    with monkeypatch.context() as earlier:
        # Fingerprints covered typed values.
        reader = "pipelines.preparation.source_reader.SourceReader"
        earlier.setattr(f"{reader}.text", lambda self, name: self._text_of_value(name))
        earlier.setattr("pipelines.preparation.row_fingerprints.FINGERPRINT_VERSION", "")
        assert cli.run(job)["requests"] == 4
    before = duckdb.sql(f"select id, _row_fingerprint from '{workspace.folder}/out/results/*.parquet'").fetchall()
    assert {len(fingerprint) for _, fingerprint in before} == {32}
    assert cli.run(job)["requests"] == 0
    # One changed value, and one of another kind.
    changed = [lines[0].replace("1.50", "1.75"), *lines[1:], "9,5.5,soon,maybe"]
    workspace.write("rows.csv", "\n".join(["id,value,seen,flag", *changed]) + "\n")
    assert cli.run(job)["requests"] == 2
    assert cli.run(job)["requests"] == 0


def test_an_empty_file_removes_nothing_and_is_named(workspace: Workspace, cli: Cli, read: ReadTable) -> None:
    workspace.csv(3)
    job = workspace.job(sink="{parquet: out, deleted: remove}")
    assert cli.run(job)["rows_ok"] == 3
    workspace.write("rows.csv", "")
    assert cli("validate", job) == 0
    report = cli.run(job)
    assert (report["exit_code"], report["rows"], report["requests"]) == (0, 0, 0)
    warning = f"{workspace.folder}/rows.csv: has no bytes: it has no rows, and no row is removed"
    assert cli.err.splitlines() == [warning]
    assert len(read(workspace.folder / "out")) == 3
    workspace.csv(2)
    assert cli.run(job)["rows"] == 2
    assert len(read(workspace.folder / "out")) == 2


def test_a_value_that_only_prompts_use_may_be_of_another_kind(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    job = workspace.job(steps=STEPS)
    workspace.write("rows.csv", csv_of(["1", "2"]))
    cli.run(job)
    workspace.write("rows.csv", csv_of(["1", "2", "unknown"]))
    assert cli.run(job)["exit_code"] == 0
    assert provider.prompts()[-1] == "unknown"


EXTREME_VALUES: dict[str, tuple[pa.Array, str]] = {
    "int8": (pa.array([-128], pa.int8()), "-128"),
    "uint64": (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
    "int64": (pa.array([-(2**63)]), "-9223372036854775808"),
    "double": (pa.array([5e-324]), "5e-324"),
    "negative_zero": (pa.array([-0.0]), "-0.0"),
    "nan": (pa.array([float("nan")]), "nan"),
    "infinite": (pa.array([float("-inf")]), "-inf"),
    "decimal": (pa.array([decimal.Decimal("9" * 28 + ".1234567891")], pa.decimal128(38, 10)), "9" * 28 + ".1234567891"),
    "far_day": (pa.array([3_672_000], pa.int32()).cast(pa.date32()), "12023-08-06"),
    "early_day": (pa.array([-2_180_000], pa.int32()).cast(pa.date32()), "-3999-05-13"),
    "far_moment": (pa.array([317_000_000_000_000_000], pa.timestamp("us")), "12015-05-01T11:33:20"),
    "far_zoned": (pa.array([317_000_000_000_000_001], pa.timestamp("us", "UTC")), "12015-05-01T11:33:20.000001+00:00"),
    "nano": (pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")), "2023-11-14T22:13:20.123456789"),
    "greatest_nano": (pa.array([2**63 - 1], pa.timestamp("ns")), "2262-04-11T23:47:16.854775807"),
    "zoned_nano": (
        pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "UTC")),
        "2023-11-14T22:13:20.123456789+00:00",
    ),
    "time_nano": (pa.array([3_723_000_000_005], pa.time64("ns")), "01:02:03.000000005"),
    "end_of_day": (pa.array([86_400_000_000], pa.time64("us")), "24:00:00"),
    "times": (
        pa.array([{"a": [1, None, 86_400_000_000_000]}], pa.struct([("a", pa.list_(pa.time64("ns")))])),
        '{"a":["00:00:00.000000001",null,"24:00:00"]}',
    ),
    "duration": (pa.array([2**62], pa.duration("ns")), str(2**62)),
    "far_days": (
        pa.array([[3_672_000, 0]], pa.list_(pa.int32())).cast(pa.list_(pa.date32())),
        '["12023-08-06","1970-01-01"]',
    ),
}


def test_extreme_values_are_printed_and_stored_with_all_their_digits(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    columns = {name: array for name, (array, _) in EXTREME_VALUES.items()}
    pq.write_table(pa.table({"id": [1], **columns}), workspace.folder / "in.parquet")
    template = "|".join(f"{{{{ {name} }}}}" for name in columns)
    job = workspace.job(
        source="{parquet: in.parquet, key: id}",
        steps=STEPS.replace("{{ value }}", template),
        sink="{parquet: out, columns: all}",
    )
    assert cli.run(job)["exit_code"] == 0, cli.err
    (prompt,) = provider.prompts()
    assert dict(zip(columns, prompt.split("|"), strict=True)) == {
        name: text for name, (_, text) in EXTREME_VALUES.items()
    }
    (part,) = (path for path in (workspace.folder / "out/results").glob("*.parquet") if pq.read_metadata(path).num_rows)
    stored = pq.ParquetFile(part).read()
    changed = [
        name for name, array in columns.items() if not stored[name].combine_chunks().cast(array.type).equals(array)
    ]
    # NaN equals no NaN.
    assert changed == ["nan"]
    assert cli.run(job)["requests"] == 0


HUGE = "170141183460469231731687303715884105727"
DUCKDB_VALUES = {
    "hugeint": (f"{HUGE}::hugeint", HUGE),
    "uhugeint": ("340282366920938463463374607431768211455::uhugeint", "340282366920938463463374607431768211455"),
    "in_struct": ("{'h': 12345678901234567890123::hugeint}", '{"h":"12345678901234567890123"}'),
    "in_list": ("[12345678901234567890123::hugeint]", '["12345678901234567890123"]'),
    "in_map": ("map {'k': 12345678901234567890123::hugeint}", '{"k":"12345678901234567890123"}'),
    "interval_in_struct": ("{'i': interval '1 month 2 days'}", '{"i":"1 month 2 days"}'),
    "bit_in_list": ("['0101'::bit]", '["0101"]'),
    "blob_in_list": (r"['a\xFF'::blob]", '["Yf8="]'),
    "timetz_in_list": ("['01:02:03+02'::timetz]", '["23:02:03+00"]'),
    "bignum": (
        "'123456789012345678901234567890123456789012345'::bignum",
        "123456789012345678901234567890123456789012345",
    ),
    "far": ("timestamp '12023-01-01 00:00:00'", "12023-01-01T00:00:00"),
    "early": ("date '4001-01-01 (BC)'", "-4000-01-01"),
    "seconds": ("'2024-01-01 00:00:00'::timestamp_s", "2024-01-01T00:00:00"),
    "nanos": ("'2024-01-01 00:00:00.123456789'::timestamp_ns", "2024-01-01T00:00:00.123456789"),
}


def test_extreme_values_of_duckdb_are_printed_with_all_their_digits(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    with duckdb.connect(workspace.folder / "in.duckdb") as db:
        values = ", ".join(f"{sql} as c_{name}" for name, (sql, _) in DUCKDB_VALUES.items())
        db.execute(f"create table t as select 1 as id, {values}")
    template = "|".join(f"{{{{ c_{name} }}}}" for name in DUCKDB_VALUES)
    job = workspace.job(
        source="{duckdb: in.duckdb, table: t, key: id}",
        steps=STEPS.replace("{{ value }}", template),
        sink="{parquet: out, columns: all}",
    )
    assert cli.run(job)["exit_code"] == 0, cli.err
    (prompt,) = provider.prompts()
    assert dict(zip(DUCKDB_VALUES, prompt.split("|"), strict=True)) == {
        name: text for name, (_, text) in DUCKDB_VALUES.items()
    }
    assert cli.run(job)["requests"] == 0


@pytest.mark.parametrize("sink", ["{parquet: out", "{duckdb: out.duckdb, table: t", "{delta: out"])
def test_infinite_dates_are_stored_as_values_and_as_keys(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, sink: str
) -> None:
    dates = ["infinity", "-infinity", "99999-01-02", "0001-01-02 (BC)"]
    with duckdb.connect(workspace.folder / "in.duckdb") as db:
        rows = ", ".join(f"({n}, 'a{n}', '{day}', '{day}', 'nan', ['{day}'])" for n, day in enumerate(dates))
        db.execute("create table t (id int, value text, day date, moment timestamptz, n double, days timestamp[])")
        db.execute(f"insert into t values {rows}")
    job = workspace.job(
        source="{duckdb: in.duckdb, table: t, key: [day, moment, n]}", steps=STEPS, sink=f"{sink}, columns: all}}"
    )
    provider.script = lambda path, body, count: error_reply(400, "no") if count == 0 else None
    assert (cli.run(job)["rows_failed"], cli("errors", job, "--json")) == (1, 0)
    assert (cli("retry", job, "--quiet"), cli.run(job)["requests"]) == (0, 0)
    with duckdb.connect(workspace.folder / "in.duckdb") as db:
        db.execute("update t set value = id")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 4, 4)
    assert cli("rebuild", job) == 0, cli.err
    assert cli("report", job, "--out", workspace.folder / "page.html") == 0, cli.err
    with duckdb.connect(workspace.folder / "in.duckdb") as db:
        db.register("results", results_of(workspace.folder, sink))
        columns = "cast((id, value, day, moment, n, days) as varchar)"
        stored, given = (db.sql(f"select {columns} from {name} order by id").fetchall() for name in ("results", "t"))
    assert stored == given


def results_of(folder: Path, sink: str) -> pa.Table:
    if "delta" in sink:
        return DeltaTable(folder / "out/results").to_pyarrow_table()
    with duckdb.connect(folder / "out.duckdb" if "duckdb" in sink else ":memory:") as db:
        return db.sql("from t" if "duckdb" in sink else f"from '{folder}/out/results/*.parquet'").to_arrow_table()


@pytest.mark.parametrize("kind", ["decimal", "int96"])
def test_a_column_that_would_lose_digits_is_refused_if_it_is_used(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, kind: str
) -> None:
    path = workspace.folder / "in.parquet"
    value = decimal.Decimal("1234567890123456789012345678901234567890.5")
    pq.write_table(pa.table({"id": [1], "n": pa.array([value], pa.decimal256(50, 1)), "value": ["a"]}), path)
    if kind == "int96":
        write_far_int96(path)
    job = workspace.job(source="{parquet: in.parquet, key: id}", steps=STEPS, sink="{parquet: out, columns: all}")
    assert cli("run", job, "--quiet") == 2
    (line,) = cli.err.splitlines()
    assert "source: n has " in line
    job = workspace.job(source="{parquet: in.parquet, key: id}", steps=STEPS)
    assert cli.run(job)["exit_code"] == 0


def write_far_int96(path: Path) -> None:
    """Write a moment as Spark does, and replace its day by one far away."""
    moment = datetime.datetime(2024, 1, 1, 0, 0, 1)
    table = pa.table({"id": [1], "n": pa.array([moment], pa.timestamp("ns")), "value": ["a"]})
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, use_dictionary=False, compression="none")
    content, day = path.read_bytes(), (2_440_588 + 19_723).to_bytes(4, "little")
    nanoseconds = (1_000_000_000).to_bytes(8, "little")
    assert nanoseconds + day in content
    path.write_bytes(content.replace(nanoseconds + day, nanoseconds + (2**31 - 1).to_bytes(4, "little"), 1))


def test_a_moment_beyond_all_timestamps_in_an_unused_column_is_harmless(workspace: Workspace, cli: Cli) -> None:
    far = pa.array([2**62], pa.timestamp("ms"))
    pq.write_table(pa.table({"id": [1], "n": far, "value": ["a"]}), workspace.folder / "in.parquet")
    source = "{parquet: in.parquet, key: id}"
    assert cli.run(workspace.job(source=source, steps=STEPS))["exit_code"] == 0
    job = workspace.job(source=source, steps=STEPS, sink="{parquet: other, columns: all}")
    assert cli("run", job, "--quiet") == 2
    (line,) = cli.err.splitlines()
    assert "Could not convert Timestamp(MS) to Timestamp(US)" in line
