"""`fold`: the rows that `each` has made of one row become one again."""

import asyncio
import json
from typing import Any

import pytest

from pipelines.dispatch.local_steps import child_rows, run_steps
from tests.behaviour.local_steps.conftest import DocumentJobs
from tests.conftest import Body, Cli, ReadTable, ScriptedProvider, chat_reply
from tests.support.local_steps import ASK, FOLD, PIECES, refuse

SUMMARY = '{name: summary, endpoint: chat, provider: test, model: m, messages: [{user: "Of {{ facts }}"}]}'


def rows_of(read: ReadTable, documents: DocumentJobs, table: str = "results") -> list[dict[str, Any]]:
    return read(documents.workspace.folder / "out", table)


def test_children_are_folded_in_order_and_later_steps_see_one_row_again(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable
) -> None:
    documents.write({1: ["a", "b"], 2: [], 3: ["c"]})
    job = documents.job(PIECES, ASK, FOLD, SUMMARY)
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["rows_out"], report["requests"]) == (0, 3, 3, 6)
    rows = rows_of(read, documents)
    assert list(rows[0]) == ["id", "facts", "pieces", "summary", "_run_id", "_row_fingerprint"]
    assert [list(row.values())[:4] for row in rows] == [
        [1, ["A", "B"], 2, 'OF ["A","B"]'],
        [2, None, 0, "OF "],
        [3, ["C"], 1, 'OF ["C"]'],
    ]
    assert cli("rebuild", job) == 0
    assert rows_of(read, documents) == rows
    assert cli.run(job)["requests"] == 0


def test_the_first_failing_child_fails_its_source_row(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable
) -> None:
    documents.write({1: ["a", "bad", "b", "worse"], 2: ["c"]})
    provider.script = refuse("bad", "worse")
    job = documents.job(PIECES, ASK, FOLD)
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"]) == (1, 1, 1)
    (error,) = rows_of(read, documents, "errors")
    assert (error["id"], error["step"], error["error_class"], error["message"]) == (
        1, "fact", "bad_request", "no such word",
    )  # fmt: skip
    assert json.loads(error["details"])["piece_index"] == 1
    provider.script = refuse()
    assert cli("retry", job, "--quiet") == 0
    assert [row["facts"] for row in rows_of(read, documents)] == [["A", "BAD", "B", "WORSE"], ["C"]]
    assert len(provider.seen) == 7


def test_another_each_may_follow_a_fold(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable
) -> None:
    documents.write({1: ["a", "b"], 2: [], 3: ["c"]})
    halves = '{name: part, each: {list: "list_reverse(facts)"}}'
    again = '{name: last, endpoint: chat, provider: test, model: m, messages: [{user: "{{ part }}?"}]}'
    report = cli.run(documents.job(PIECES, ASK, FOLD, halves, again))
    assert (report["rows_ok"], report["rows_out"], report["exit_code"]) == (3, 3, 0)
    rows = rows_of(read, documents)
    assert [(row["id"], row["part_index"], row["pieces"], row["last"]) for row in rows] == [
        (1, 0, 2, "B?"),
        (1, 1, 2, "A?"),
        (3, 0, 1, "C?"),
    ]


def test_an_aggregate_that_the_values_of_one_row_break_fails_that_row(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable
) -> None:
    documents.write({1: ["1", "2"], 2: ["x"], 3: []})
    fold = "{name: total, fold: {total: sum(cast(piece as integer))}}"
    report = cli.run(documents.job(PIECES, fold))
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"], report["requests"]) == (1, 2, 1, 0)
    assert [(row["id"], row["total"]) for row in rows_of(read, documents)] == [(1, 3), (3, None)]
    (error,) = rows_of(read, documents, "errors")
    assert (error["id"], error["step"], error["error_class"]) == (2, "total", "input")


@pytest.mark.parametrize("limit", [1, 200], ids=["all in files", "some in files"])
@pytest.mark.parametrize("steps", [(PIECES, ASK), (PIECES, ASK, FOLD)], ids=["each", "fold"])
def test_the_children_of_a_large_source_row_wait_in_a_file(
    cli: Cli,
    documents: DocumentJobs,
    provider: ScriptedProvider,
    read: ReadTable,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    steps: tuple[str, ...],
) -> None:
    monkeypatch.setattr(child_rows, "MAX_GATHERED_BYTES", limit)
    monkeypatch.setattr(child_rows, "MAX_FINISHED_BYTES", limit)
    monkeypatch.setattr(run_steps, "CHUNK_ROWS", 7)
    sizes = {1: 50, 2: 0, 3: 1, 4: 23}
    documents.write({number: [f"w{number}-{index}" for index in range(size)] for number, size in sizes.items()})
    # The answers come in another order than the children.
    provider.script = _slow_for("w1-3", "w4-9")
    report = cli.run(documents.job(*steps))
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 4, 74)
    expected = {number: [f"W{number}-{index}" for index in range(size)] for number, size in sizes.items()}
    rows = rows_of(read, documents)
    if len(steps) == 3:
        assert {row["id"]: row["facts"] or [] for row in rows} == expected
    else:
        assert [(row["id"], row["piece_index"], row["fact"]) for row in rows] == [
            (number, index, fact) for number, facts in expected.items() for index, fact in enumerate(facts)
        ]
    assert list((documents.workspace.folder / ".rowmill").rglob("children-*")) == []


def test_a_long_text_is_not_copied_for_each_of_its_children(cli: Cli, documents: DocumentJobs, read: ReadTable) -> None:
    documents.write({1: ["x"], 2: ["y"], 3: None})
    text = '{name: text, select: {body: "repeat(words[1], 1000000)"}, keep: false}'
    # All copies would be more than a column of Arrow can have.
    children = '{name: piece, each: {list: "range(2200)"}}'
    report = cli.run(documents.job(text, children, '{name: all, fold: {size: "length(any_value(body))", n: count(*)}}'))
    assert report["exit_code"] == 0
    assert [(row["id"], row["size"], row["n"]) for row in rows_of(read, documents)] == [
        (1, 1_000_000, 2200), (2, 1_000_000, 2200), (3, None, 2200)
    ]  # fmt: skip


def test_a_source_row_that_the_results_would_repeat_too_often_is_an_error_before_it_costs_anything(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_rows, "MAX_REPEATED_BYTES", 2000)
    documents.write({1: ["a"] * 50, 2: ["b", "c"], 3: []})
    report = cli.run(documents.job(sink="{parquet: out, columns: [words]}"))
    assert (report["rows_ok"], report["rows_failed"], sorted(provider.prompts())) == (2, 1, ["b", "c"])
    (error,) = rows_of(read, documents, "errors")
    assert (error["id"], error["piece_index"], error["step"], error["error_class"]) == (1, None, "piece", "input")
    assert error["message"].startswith("each of 50 result rows would repeat 0.0 MB of its source row; leave long")


def test_a_constant_in_a_fold_and_arrays_of_a_fixed_size_are_as_in_duckdb(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable
) -> None:
    documents.write({1: ["a", "b"], 2: [], 3: None})
    fold = '{name: all, fold: {version: "7", names: list(piece)}}'
    pairs = '{name: two, each: {list: "cast([version, 8] as integer[2])"}}'
    assert cli.run(documents.job(PIECES, '{name: all, fold: {version: "7"}}', sink="{parquet: one}"))["exit_code"] == 0
    assert [row["version"] for row in read(documents.workspace.folder / "one")] == [7, 7, 7]
    assert cli.run(documents.job(PIECES, fold, pairs))["rows_out"] == 6
    rows = rows_of(read, documents)
    assert [(row["id"], row["two_index"], row["names"], row["two"]) for row in rows] == [
        (number, index, names, (7, 8)[index])
        for number, names in {1: ["a", "b"], 2: None, 3: None}.items()
        for index in range(2)
    ]


def test_a_comparison_and_an_experiment_see_the_outputs_of_folds_and_selects(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider
) -> None:
    documents.workspace.write("docs.jsonl", '{"id": 1, "words": ["a", "b"], "label": "A+B"}\n')
    joined = "{name: joined, select: {text: \"array_to_string(facts, '+')\"}}"
    job = documents.job(PIECES, ASK, FOLD, joined)
    cli.run(job)
    provider.script = lambda path, body, count: chat_reply("x", "n") if body["model"] == "n" else None
    assert cli("run", job, "--compare", "--limit", "1", "--set", "steps.fact.model=n") == 0
    assert [line.split() for line in cli.out.splitlines()[4:]] == [
        ["1", "facts", "yes", '["A","B"]', '["x","x"]'],
        ["1", "pieces", "2", "2"],
        ["1", "text", "yes", "A+B", "x+x"],
        [],
        ["2", "of", "3", "values", "differ"],
    ]
    over = ("--over", "steps.fact.model=m,n", "--expect", "text=label", "--sample", "1", "--json", "--quiet")
    assert cli("try", job, *over) == 0
    assert [json.loads(line)["right"] for line in cli.out.splitlines()] == [1.0, 0.0]


def test_show_names_the_children_behind_a_fold_and_knows_no_others(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider
) -> None:
    documents.write({1: ["a", "bad"], 2: []})
    provider.script = refuse("bad")
    job = documents.job(PIECES, ASK, FOLD)
    cli.run(job)
    shown = {}
    for key in ("1", "2", "[1,0]", "[1,1]"):
        assert cli("show", job, key) == 0
        shown[key] = json.loads(cli.out)
    assert (shown["1"]["children"], "children" in shown["2"]) == (["[1,0]", "[1,1]"], False)
    assert [exchange["http_status"] for key in ("[1,0]", "[1,1]") for exchange in shown[key]["exchanges"]] == [200, 400]
    for key in ("[1,2]", "[1,-1]", "[2,0]", "[3,0]"):
        assert cli("show", job, key) == 2
        assert f"no row has the key {key}" in cli.err


def _slow_for(*texts: str) -> Any:
    async def answer(body: Body) -> Body:
        text = body["messages"][-1]["content"]
        await asyncio.sleep(1.5 if text in texts else 0)
        return chat_reply(text.upper())

    return lambda path, body, count: answer(body)


def test_show_of_a_folded_row_sums_the_requests_of_its_children(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider
) -> None:
    last = '{name: last, endpoint: chat, provider: test, model: m, messages: [{user: "{{ pieces }}"}]}'
    documents.write({1: ["a", "b"], 11: ["c"]})
    job = documents.job(PIECES, ASK, FOLD, last)
    report = cli.run(job)
    costs: list[float] = []
    for key, children in (("1", [["[1,0]"], ["[1,1]"]]), ("11", [["[11,0]"]])):
        assert cli("show", job, key) == 0
        shown = json.loads(cli.out)
        exchanges = shown["exchanges"]
        assert sorted(one["children"] for one in exchanges if one["step"] == "fact") == children
        assert sum(one["step"] == "last" for one in exchanges) == 1
        costs.append(shown["cost_usd"])
    assert sum(costs) == pytest.approx(report["cost_usd"])
