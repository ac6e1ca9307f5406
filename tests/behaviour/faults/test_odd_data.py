"""Unusual data: many columns, long texts, all kinds of characters and column names, every type of Arrow and DuckDB."""

import datetime
import decimal
import json
import uuid
from collections.abc import Callable
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.behaviour.faults.hostile_server import HostileServer, ReceivedRequest
from tests.conftest import Cli, ScriptedProvider, Workspace

Read = Callable[..., list[dict[str, Any]]]


def chat_steps(template: str) -> str:
    """Return the steps of a job with one template."""
    turns = f"[{{user: {json.dumps(template)}}}]"
    return f"[{{name: answer, endpoint: chat, provider: test, model: m, messages: {turns}}}]"


def test_a_source_may_have_ten_thousand_columns(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read
) -> None:
    names = ["id", *(f"c{n}" for n in range(10_000))]
    pq.write_table(pa.table([pa.array([1, 2, 3])] * len(names), names=names), workspace.folder / "wide.parquet")
    job = workspace.job(
        source="{parquet: wide.parquet, key: id, where: c5 > 1}",
        steps=chat_steps("{{ c9999 }} of {{ c0 }}"),
        sink="{parquet: out, columns: [c7]}",
    )
    assert cli.run(job)["rows_ok"] == 2, cli.err
    assert sorted(provider.prompts()) == ["2 of 2", "3 of 3"]
    assert cli.run(job)["requests"] == 0
    assert [row["c7"] for row in read(workspace.folder / "out", order="id")] == [2, 3]


def test_prompts_may_have_a_megabyte(workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read) -> None:
    texts = [f"{n}" + "é x" * 350_000 for n in range(4)]
    pq.write_table(pa.table({"id": range(4), "text": texts}), workspace.folder / "long.parquet")
    report = cli.run(workspace.job(source="{parquet: long.parquet, key: id}"))
    assert (report["rows_ok"], report["exit_code"], report["stopped"]) == (4, 0, None)
    assert sorted(provider.prompts()) == texts
    assert [row["answer"] for row in read(workspace.folder / "out", order="id")] == [text.upper() for text in texts]


ODD = {
    "nul": "a\x00b",
    "controls": "\x01\x1b[31m\x7f\u0085\u2028",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 𝒳",
    "right to left": "שלום \u202eabc\u202c مرحبا",
    "combining": "Z͑ͫ̓a",
    "not a character": "\uffff\ufffe",
    "byte order": "\ufefftext",
    "braces": "{{ id }} {% raw %} {# x #}",
    "quotes": "'\"`$\\;--",
    "empty": "",
    "blank": " \t\n ",
}


def test_all_kinds_of_characters_are_sent_and_stored_unchanged(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read
) -> None:
    pq.write_table(pa.table({"id": list(ODD), "text": list(ODD.values())}), workspace.folder / "odd.parquet")
    provider.script = lambda path, body, count: echo(body)
    steps = chat_steps("<{{ text }}>")
    for sink in ("{parquet: out, columns: [text]}", "{duckdb: out.duckdb, table: t, columns: [text]}"):
        report = cli.run(workspace.job(source="{parquet: odd.parquet, key: id}", steps=steps, sink=sink))
        assert (report["rows_ok"], report["exit_code"]) == (len(ODD), 0), cli.err
    found = {row["id"]: (row["text"], row["answer"]) for row in read(workspace.folder / "out")}
    assert found == {key: (text, f"<{text}>") for key, text in ODD.items()}
    with duckdb.connect(workspace.folder / "out.duckdb") as db:
        assert dict(db.sql("select id, answer from t").fetchall()) == {key: f"<{text}>" for key, text in ODD.items()}
    assert sorted(provider.prompts()) == sorted(f"<{text}>" for text in ODD.values())


def echo(body: Any) -> Any:
    message = {"role": "assistant", "content": body["messages"][-1]["content"]}
    return {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip


def test_a_lone_surrogate_in_the_input_is_reported_with_its_line(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    lines = [r'{"id": 1, "text": "fine"}', r'{"id": 2, "text": "\ud800 broken"}', r'{"id": 3, "text": "😀"}']
    workspace.write("rows.jsonl", "\n".join(lines) + "\n")
    assert cli("run", workspace.job(source="{jsonl: rows.jsonl, key: id}"), "--quiet") == 2
    (line,) = cli.err.strip().splitlines()
    assert line.startswith(f"{workspace.folder / 'rows.jsonl'}:2: is not JSON (no low surrogate in string")
    assert line.endswith("; fix the line")
    assert provider.seen == []


@pytest.mark.parametrize("content", [r"\ud800", "\\ud83d"])
def test_a_lone_surrogate_in_an_answer_is_replaced_and_paid_once(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read, content: str
) -> None:
    from aiohttp import web

    whole = json.dumps(echo({"messages": [{"content": "@"}]})).replace("@", content)
    workspace.csv(2)
    provider.script = lambda path, body, count: (
        web.Response(text=whole, content_type="application/json")
        if body["messages"][-1]["content"] == "text 1"
        else None
    )
    report = cli.run(workspace.job())
    assert (report["exit_code"], report["requests"]) == (0, 2)
    assert [(row["id"], row["answer"]) for row in read(workspace.folder / "out")] == [(1, "\ufffd"), (2, "TEXT 2")]


def test_reply_headers_that_are_not_text_are_harmless(workspace: Workspace, cli: Cli, read: Read) -> None:
    async def odd(request: ReceivedRequest) -> None:
        content = json.dumps(request.usual_reply()).encode()
        await request.send(
            b"HTTP/1.1 200 OK\r\nX-Request-Id: r\xff\r\nContent-Length: %d\r\n\r\n" % len(content) + content
        )

    server = HostileServer()
    server.fault, server.hits = odd, lambda request, count: True
    workspace.write("rowmill.yaml", f'providers: {{test: {{base_url: "http://127.0.0.1:{server.port}/v1"}}}}\n')
    workspace.csv(2)
    assert cli.run(workspace.job())["exit_code"] == 0
    server.close()
    assert {row["request_id"] for row in read(workspace.folder / "out", "usage")} == {"r\ufffd"}


NAMES = [
    "a name",
    'say "hi"',
    "it's",
    "dotted.name",
    "ключ",
    "select",
    "Ünï",
    "a-b",
    "1st",
    "{{x}}",
    "back\\slash",
    "😀",
]


def test_column_names_may_contain_any_characters(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read
) -> None:
    table = pa.table([pa.array([f"{name}!"]) for name in NAMES], names=NAMES)
    pq.write_table(table, workspace.folder / "names.parquet")
    template = " ".join("{{ row[" + json.dumps(name, ensure_ascii=False) + "] }}" for name in NAMES if "{" not in name)
    job = workspace.job(
        source='{parquet: names.parquet, key: ["a name", "say \\"hi\\"", "it\'s"]}',
        steps=chat_steps(template),
        sink=f"{{parquet: out, columns: {json.dumps(NAMES[3:], ensure_ascii=False)}}}",
    )
    assert cli.run(job)["exit_code"] == 0, cli.err
    assert provider.prompts() == [" ".join(f"{name}!" for name in NAMES if "{" not in name)]
    (row,) = read(workspace.folder / "out")
    assert {name: row[name] for name in NAMES} == {name: f"{name}!" for name in NAMES}
    assert cli.run(job)["requests"] == 0


def typed_values() -> dict[str, tuple[pa.Array, str]]:
    """Name -> (a column with one value, its text in a template)."""
    zone = datetime.UTC
    moment = datetime.datetime(2026, 2, 28, 23, 59, 59, 123456)
    struct = {"a": 1, "b": [None, "x"], "c": {"d": decimal.Decimal("1.50")}}
    return {
        "bool": (pa.array([True]), "true"),
        "int8": (pa.array([-128], pa.int8()), "-128"),
        "uint64": (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        "half": (pa.array([1.5], pa.float32()), "1.5"),
        "double": (pa.array([0.1]), "0.1"),
        "money": (
            pa.array([decimal.Decimal("12345678901234567890.10")], pa.decimal128(38, 2)),
            "12345678901234567890.10",
        ),
        "small_money": (pa.array([decimal.Decimal("0.00000001")], pa.decimal128(20, 8)), "0.00000001"),
        "date": (pa.array([datetime.date(2026, 2, 28)]), "2026-02-28"),
        "time": (pa.array([datetime.time(1, 2, 3, 4)]), "01:02:03.000004"),
        "moment": (pa.array([moment]), "2026-02-28T23:59:59.123456"),
        "zoned": (
            pa.array([moment.replace(tzinfo=zone)], pa.timestamp("us", "Asia/Tokyo")),
            "2026-02-28T23:59:59.123456+00:00",
        ),
        "nano": (pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")), "2023-11-14T22:13:20.123456789"),
        "binary": (pa.array([b"\x00\xff"]), "AP8="),
        "fixed_binary": (pa.array([b"\x00\xff"], pa.binary(2)), "AP8="),
        "large_text": (pa.array(["x"], pa.large_string()), "x"),
        "text_view": (pa.array(["x"], pa.string_view()), "x"),
        "enum": (pa.array(["red"]).dictionary_encode(), "red"),
        "list": (pa.array([[1, None, 3]]), "[1,null,3]"),
        "fixed_list": (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), "[1.0,2.0]"),
        "struct": (pa.array([struct]), '{"a":1,"b":[null,"x"],"c":{"d":"1.50"}}'),
        "null_text": (pa.array([None], pa.string()), ""),
        "nothing": (pa.nulls(1), ""),
    }


def test_templates_can_use_every_arrow_type(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read
) -> None:
    columns = typed_values()
    table = pa.table({"id": pa.array([1]), **{name: array for name, (array, _) in columns.items()}})
    pq.write_table(table, workspace.folder / "typed.parquet")
    template = "\n".join(f"{name}={{{{ {name} }}}}" for name in columns)
    for more in ("", "{{ row['id'] }}"):
        provider.seen.clear()
        job = workspace.job(
            source="{parquet: typed.parquet, key: id}",
            steps=chat_steps(template + more),
            sink=f"{{parquet: out{len(more)}, columns: all}}",
        )
        assert cli.run(job)["exit_code"] == 0, cli.err
        (prompt,) = provider.prompts()
        shown = dict(line.split("=", 1) for line in prompt.removesuffix("1" if more else "").split("\n"))
        assert shown == {name: text for name, (_, text) in columns.items()}
        assert cli.run(job)["requests"] == 0


TYPES_OF_DUCKDB = {
    "uuid": ("'6b9a1c2e-0000-4000-8000-00000000000a'::uuid", str(uuid.UUID("6b9a1c2e-0000-4000-8000-00000000000a"))),
    "hugeint": ("99999999999999999999999999999999999999::hugeint", "99999999999999999999999999999999999999"),
    "interval": ("interval '1 month 2 days'", "1 month 2 days"),
    "map": ("map {'k': 1}", '{"k":1}'),
    "enum": ("'happy'::mood", "happy"),
    "bit": ("'0101'::bit", "0101"),
    "json": ("'{\"a\": 1}'::json", '{"a": 1}'),
    "timetz": ("'01:02:03+02'::timetz", "23:02:03+00"),
    "union": ("union_value(num := 2)", '{"element1":0,"num":2}'),
    "timestamptz": ("'2026-01-01 00:00:00+02'::timestamptz", "2025-12-31T22:00:00+00:00"),
}


def test_templates_can_use_every_duckdb_type(workspace: Workspace, provider: ScriptedProvider, cli: Cli) -> None:
    with duckdb.connect(workspace.folder / "in.duckdb") as db:
        db.execute("create type mood as enum ('sad', 'happy')")
        columns = ", ".join(f'{sql} as "c_{name}"' for name, (sql, _) in TYPES_OF_DUCKDB.items())
        db.execute(f"create table t as select 1 as id, {columns}")
    template = "\n".join(f"{name}={{{{ c_{name} }}}}" for name in TYPES_OF_DUCKDB)
    job = workspace.job(
        source="{duckdb: in.duckdb, table: t, key: id}", steps=chat_steps(template), sink="{parquet: out, columns: all}"
    )
    assert cli.run(job)["exit_code"] == 0, cli.err
    (prompt,) = provider.prompts()
    shown = dict(line.split("=", 1) for line in prompt.split("\n"))
    assert shown == {name: text for name, (_, text) in TYPES_OF_DUCKDB.items()}
    assert cli.run(job)["requests"] == 0


def test_rows_that_are_too_large_for_the_reader_are_reported_with_a_remedy(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that rows of 1.5 MB cannot be read at all.
    monkeypatch.setattr("pipelines.preparation.source_reader.MAX_MEMORY_BYTES", 64_000_000)
    texts = [f"{n} " + "text " * 300_000 for n in range(100)]
    rows = pa.table({"id": range(100), "text": texts})
    pq.write_table(rows, workspace.folder / "rows.parquet", compression="zstd", use_dictionary=False)
    assert cli("run", workspace.job(source="{parquet: rows.parquet, key: id}"), "--quiet") == 2
    (line,) = cli.err.splitlines()
    assert "source: failed to allocate data of size " in line
    assert "its rows take 1.5 MB each: write the file again with fewer rows in a row group" in line
    assert provider.seen == []
