"""`each`: one row becomes several, and all of them are written, replaced and removed together."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.local_steps.conftest import DocumentJobs, Facts
from tests.conftest import Cli, ReadTable, ScriptedProvider, Workspace, chat_reply
from tests.support.local_steps import ASK, FOLD, PIECES, refuse

THREE = {1: ["a", "b"], 2: [], 3: ["c"], 4: None}


def errors_of(read: ReadTable, workspace: Workspace) -> list[tuple[Any, ...]]:
    return [
        (row["id"], row["piece_index"], row["step"], row["error_class"])
        for row in read(workspace.folder / "out", "errors")
    ]


def test_each_element_of_a_list_is_a_row_with_the_key_of_its_source_row_and_its_index(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable
) -> None:
    documents.write(THREE)
    job = documents.job(sink="{parquet: out, columns: [words]}")
    report = cli.run(job)
    assert (report["exit_code"], report["requests"]) == (0, 3)
    assert (report["rows"], report["rows_ok"], report["rows_reused"], report["rows_out"]) == (4, 4, 2, 3)
    rows = read(documents.workspace.folder / "out")
    assert [list(row.values())[:5] for row in rows] == [
        [1, 0, ["a", "b"], "a", "A"],
        [1, 1, ["a", "b"], "b", "B"],
        [3, 0, ["c"], "c", "C"],
    ]
    assert list(rows[0]) == ["id", "piece_index", "words", "piece", "fact", "_run_id", "_row_fingerprint"]
    usage = read(documents.workspace.folder / "out", "usage")
    assert sorted(key for row in usage for key in row["keys"]) == ["[1,0]", "[1,1]", "[3,0]"]
    again = cli.run(job)
    assert (again["requests"], again["rows_reused"], again["rows_out"]) == (0, 4, 3)


def test_pieces_of_a_text_have_their_places_in_it(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    text = "First paragraph here.\n\nSecond one, a little longer.\n\nThird 👩‍👩‍👧 one."
    workspace.write("rows.jsonl", json.dumps({"id": "x", "body": text}) + "\n")
    steps = (
        "[{name: piece, each: {split: body, tokens: 8, overlap: 2}}, "
        '{name: vector, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ piece }}"}]'
    )
    job = workspace.job(source="{jsonl: rows.jsonl, key: id}", steps=steps)
    assert cli.run(job)["requests"] == 1
    rows = read(workspace.folder / "out")
    assert [row["piece"] for row in rows] == [text[row["piece_start"] : row["piece_end"]] for row in rows]
    assert [row["piece_index"] for row in rows] == list(range(len(rows)))
    assert (rows[0]["piece_start"], rows[-1]["piece_end"]) == (0, len(text))
    assert len(rows) > 2


def test_a_changed_source_row_replaces_its_children_and_a_removed_one_removes_them(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, facts: Facts
) -> None:
    job = documents.job(sink="{parquet: out, deleted: remove}")
    documents.write({1: ["a", "b", "c"], 2: ["d"], 3: ["e", "f"], 4: []})
    cli.run(job)
    documents.write({1: ["a", "x"], 2: [], 4: ["g"], 5: ["e"]})
    report = cli.run(job)
    assert facts() == [(1, 0, "A"), (1, 1, "X"), (4, 0, "G"), (5, 0, "E")]
    # The answers to a and e are in the ledger.
    assert sorted(provider.prompts()[6:]) == ["g", "x"]
    assert (report["rows"], report["rows_ok"], report["rows_out"]) == (4, 4, 4)
    assert cli.run(job)["requests"] == 0


def test_a_failed_child_keeps_its_source_row_in_errors_with_its_old_children_and_new_answers(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable, facts: Facts
) -> None:
    workspace, job = documents.workspace, documents.job()
    documents.write({1: ["a", "b"], 2: ["c"]})
    cli.run(job)
    documents.write({1: ["x", "bad", "y", "worse"], 2: ["c"], 3: ["bad", "z"]})
    provider.script = refuse("bad", "worse")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"], report["rows_out"]) == (1, 1, 2, 3)
    assert facts() == [(1, 0, "A"), (1, 1, "B"), (2, 0, "C")]
    failed = [(1, 1), (1, 3), (3, 0)]
    assert errors_of(read, workspace) == [(*key, "fact", "bad_request") for key in failed]
    # The next run leaves them; retry asks again for the failed children alone.
    assert cli.run(job)["requests"] == 0
    provider.script = refuse("worse")
    before = len(provider.seen)
    assert cli("retry", job, "--quiet") == 1
    assert sorted(provider.prompts()[before:]) == ["bad", "worse"]
    assert errors_of(read, workspace) == [(1, 3, "fact", "bad_request")]
    assert facts() == [(1, 0, "A"), (1, 1, "B"), (2, 0, "C"), (3, 0, "BAD"), (3, 1, "Z")]
    documents.write({1: ["x"], 2: ["c"], 3: ["bad", "z"]})
    assert cli.run(job)["requests"] == 0
    assert errors_of(read, workspace) == []
    assert facts() == [(1, 0, "X"), (2, 0, "C"), (3, 0, "BAD"), (3, 1, "Z")]


def test_a_source_row_that_fails_itself_is_in_errors_without_an_index(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable
) -> None:
    documents.write({1: ["1", "2"], 2: ["one"]})
    numbers = '{name: piece, each: {list: "[cast(w as integer) for w in words]"}}'
    report = cli.run(documents.job(numbers, ASK))
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"]) == (1, 1, 1)
    assert errors_of(read, documents.workspace) == [(2, None, "piece", "input")]
    assert [row["piece"] for row in read(documents.workspace.folder / "out")] == [1, 2]


def test_children_are_rebuilt_from_the_ledger_without_the_source(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable
) -> None:
    documents.write({1: ["a", "b"], 2: ["c"], 3: []})
    job = documents.job(PIECES, "{name: mark, select: {loud: \"piece || '!'\"}}", ASK)
    cli.run(job)
    documents.write({1: ["a"], 2: ["c"], 3: []})
    cli.run(job)
    folder = documents.workspace.folder
    rows = read(folder / "out")
    assert [(row["id"], row["loud"], row["fact"]) for row in rows] == [(1, "a!", "A"), (2, "c!", "C")]
    (folder / "docs.jsonl").rename(folder / "elsewhere")
    assert cli("rebuild", job) == 0
    assert read(folder / "out") == rows
    shutil.rmtree(folder / "out")
    assert cli("rebuild", job) == 0
    assert read(folder / "out") == rows
    (folder / "elsewhere").rename(folder / "docs.jsonl")
    assert cli.run(job)["requests"] == 0


@pytest.mark.parametrize("sink", ["{duckdb: out.duckdb, table: docs}", "{delta: out}"], ids=["duckdb", "delta"])
def test_other_sinks_replace_children_together_too(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, sink: str, tmp_path: Path
) -> None:
    from pipelines.analysis.results import read_results

    job = documents.job(sink=sink)
    documents.write({1: ["a", "b"], 2: ["c"]})
    cli.run(job)
    documents.write({1: ["x"], 2: []})
    assert cli.run(job)["rows_out"] == 1
    results = read_results(job).results.collect().to_dicts()
    assert [(row["id"], row["piece_index"], row["fact"]) for row in results] == [(1, 0, "X")]


def test_a_batch_holds_the_children_of_several_source_rows(
    cli: Cli, documents: DocumentJobs, tmp_path: Path, read: ReadTable, facts: Facts
) -> None:
    documents.write({number: [f"w{number}a", f"w{number}b"] for number in range(5)})
    job = documents.job(PIECES, ASK.replace("provider: test", "provider: local"), delivery="batch")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["rows_out"]) == (0, 5, 10)
    assert [row[:2] for row in facts()] == [(number, index) for number in range(5) for index in range(2)]


def test_the_children_of_many_source_rows_share_embedding_requests(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable
) -> None:
    documents.write({number: [f"{number}-{index}" for index in range(number % 7)] for number in range(300)})
    vector = '{name: vector, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ piece }}"}'
    report = cli.run(documents.job(PIECES, vector))
    children = sum(number % 7 for number in range(300))
    assert (report["rows_ok"], report["rows_out"]) == (300, children)
    written = [(row["id"], row["piece_index"], row["piece"]) for row in read(documents.workspace.folder / "out")]
    assert sorted(written) == [
        (number, index, f"{number}-{index}") for number in range(300) for index in range(number % 7)
    ]
    documents.workspace.csv(children)
    rows = documents.workspace.job("rows", steps=f"[{vector.replace('piece', 'text')}]", sink="{parquet: rows}")
    assert report["requests"] == cli.run(rows)["requests"] < 6


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((PIECES, "{name: more, each: {list: words}}"), "piece has made several rows of one already"),
        (("{name: all, fold: {n: count(*)}}",), "there is no each: step to fold"),
        (("{name: piece, each: {list: words}, when: id > 1}",), "such a step applies to all rows"),
        (("{name: piece, each: {split: words, tokens: 9}}",), "only text is split"),
        (("{name: piece, each: {list: id}}",), "its type is int64"),
        (("{name: piece, each: {list: nothing}}",), "steps.piece.each.list: no column nothing here"),
    ],
    ids=["nested", "no each", "when", "split of a list", "no list", "no column"],
)
def test_steps_that_cannot_be_are_refused(
    cli: Cli, documents: DocumentJobs, steps: tuple[str, ...], words: str
) -> None:
    documents.write({1: ["a"]})
    assert cli("validate", documents.job(*steps)) == 2
    assert words in cli.err


def test_show_knows_the_children_of_a_source_row_and_each_child(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider
) -> None:
    documents.write({1: ["a", "b"]})
    job = documents.job(
        PIECES, "{name: mark, select: {loud: \"piece || '!'\"}, keep: false}", ASK.replace("piece", "loud")
    )
    cli.run(job)
    assert cli("show", job, "1") == 0
    assert json.loads(cli.out)["children"] == ["[1,0]", "[1,1]"]
    assert cli("show", job, "[1, 1]") == 0
    shown = json.loads(cli.out)
    assert (shown["key"], shown["result"]["fact"], len(shown["exchanges"])) == ("[1,1]", "B!", 1)
    assert [step["request"]["messages"] for step in shown["steps"]] == [[{"role": "user", "content": "b!"}]]


def test_a_plan_counts_the_children_and_what_they_cost(cli: Cli, documents: DocumentJobs) -> None:
    documents.write({number: [f"{number}-{index}" for index in range(number % 4)] for number in range(40)})
    fold = '{name: all, fold: {facts: "string_agg(fact, chr(10))"}}'
    last = '{name: last, endpoint: chat, provider: test, model: m, messages: [{user: "Sum: {{ facts }}"}]}'
    assert cli("plan", documents.job(PIECES, ASK, fold, last), "--json") == 0
    plan = json.loads(cli.out)
    assert plan["children"] == {"piece": 60}
    # The ten rows without pieces share a request.
    assert [(step["step"], step["requests"]) for step in plan["steps"]] == [("fact", 60), ("last", 31)]
    assert cli("plan", documents.job(PIECES, ASK, fold, last)) == 0
    assert "piece makes about 60 rows of them" in " ".join(cli.out.split())


def test_append_adds_the_children_of_new_source_rows_and_replace_writes_all_again(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, facts: Facts
) -> None:
    documents.write({1: ["a", "b"], 2: []})
    append = documents.job(sink="{parquet: out, write: append}")
    cli.run(append)
    documents.write({1: ["x"], 2: ["y"], 3: ["c"]})
    assert cli.run(append)["requests"] == 1
    assert facts() == [(1, 0, "A"), (1, 1, "B"), (3, 0, "C")]
    replace = documents.job(sink="{parquet: out, write: replace}")
    assert cli.run(replace)["requests"] == 2
    assert facts() == [(1, 0, "X"), (2, 0, "Y"), (3, 0, "C")]
    assert cli.run(documents.job(sink="{parquet: out}"), "--limit", "1")["requests"] == 0
    assert len(facts()) == 3


def test_checks_and_rungs_apply_to_each_child(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable, facts: Facts
) -> None:
    documents.write({1: ["a", "b"], 2: ["c"]})
    more = "check: [\"fact <> 'B'\"], repairs: 0, rescue: [{on: [invalid_answer], model: other}]"
    provider.script = lambda path, body, count: chat_reply("saved", "other") if body["model"] == "other" else None
    job = documents.job(PIECES, ASK.replace("messages", f"{more}, messages"))
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"]) == (0, 2)
    assert facts() == [(1, 0, "A"), (1, 1, "saved"), (2, 0, "C")]
    assert [row["fact_rung"] for row in read(documents.workspace.folder / "out")] == [0, 1, 0]
    assert cli.run(job)["requests"] == 0


def test_failed_share_counts_source_rows(cli: Cli, documents: DocumentJobs, provider: ScriptedProvider) -> None:
    # A tenth of the pieces fail, and with them every source row.
    documents.write({number: [*(f"{number}-{index}" for index in range(9)), "bad"] for number in range(300)})
    provider.script = refuse("bad")
    report = cli.run(documents.job(limits="{failed_share: 0.5, concurrency: 4}"))
    assert (report["exit_code"], report["stopped"][:12]) == (3, "failed_share")


def test_status_counts_result_rows_and_an_experiment_needs_one_result_a_row(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider
) -> None:
    documents.write({1: ["a", "b"], 2: ["c"]})
    job = documents.job()
    cli.run(job)
    assert cli("status", job, "--json") == 0
    status = json.loads(cli.out)
    assert (status["rows_ok"], status["rows_out"]) == (2, 3)
    assert cli("try", job, "--over", "steps.fact.model=m,n", "--sample", "2") == 2
    assert "rows become several" in cli.err


def test_a_changed_check_reads_pruned_answers_of_children_in_the_results(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, facts: Facts
) -> None:
    topic = '{name: topic, endpoint: chat, provider: test, model: m, messages: [{user: "{{ words }}"}]}'

    def job(check: str) -> Path:
        return documents.job(topic, PIECES, ASK.replace("messages", f"check: [{check}], messages"))

    documents.write({1: ["a", "b", "long"], 2: [], 3: ["c"]})
    assert cli.run(job("fact <> ''"))["requests"] == 7
    assert cli("ledger", "prune", "--job", "job", "--workspace", documents.workspace.folder) == 0
    assert cli("plan", job("length(fact) < 4"), "--json") == 0
    assert [step["requests"] for step in json.loads(cli.out)["steps"]] == [1, 1]
    provider.script = lambda path, body, count: chat_reply("new")
    # The empty list has no results that could hold its topic.
    assert cli.run(job("length(fact) < 4"))["requests"] == 2
    assert provider.prompts()[7:] == ["[]", "long"]
    assert facts() == [(1, 0, "A"), (1, 1, "B"), (1, 2, "new"), (3, 0, "C")]


@pytest.mark.parametrize(
    "steps",
    [
        (PIECES, ASK),
        (PIECES, ASK, FOLD),
        (ASK.replace("piece", "words[0]"), ASK.replace("fact", "other").replace("piece", "words[1]")),
    ],
    ids=["children", "folded", "rows"],
)
def test_answers_that_failed_source_rows_share_with_committed_ones_are_kept(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, steps: tuple[str, ...]
) -> None:
    file = documents.workspace.folder / "rowmill.yaml"
    file.write_text(f"keep_answers: committed\n{file.read_text()}")
    documents.write({1: ["a", "b"], 2: ["a", "bad"]})
    provider.script = refuse("bad")
    job = documents.job(*steps)
    assert cli.run(job)["requests"] == 3
    provider.script = refuse()
    assert cli("retry", job, "--json", "--quiet") == 0
    assert provider.prompts()[3:] == ["bad"]


def test_a_filled_table_gets_children_by_a_backfill(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, facts: Facts
) -> None:
    documents.write({1: ["a", "b"], 2: ["c"]})
    cli.run(documents.job(ASK.replace("piece", "words")))
    job = documents.job()
    assert cli("run", job) == 2
    assert cli.err.endswith(
        "; ask all rows again (run --schema-change backfill), or write to another sink (run --sink PATH)\n"
    )
    assert (cli("plan", job), cli.out.splitlines()[-1].split()[-1]) == (0, "backfill")
    assert cli.run(job, "--schema-change", "backfill")["rows_out"] == 3
    assert facts() == [(1, 0, "A"), (1, 1, "B"), (2, 0, "C")]
    # Without the index again, children would have the same key, and a row has left the source.
    job = documents.job(ASK.replace("piece", "words"))
    assert (cli("validate", job), "--schema-change cast" in cli.err) == (2, False)
    documents.write({1: ["a", "b"]})
    assert cli("run", job, "--schema-change", "backfill") == 2


def test_causes_of_errors_count_source_rows_everywhere(
    cli: Cli, documents: DocumentJobs, provider: ScriptedProvider, tmp_path: Path
) -> None:
    from pipelines.config.loaded_job import load_job
    from pipelines.reporting.report_queries import report_facts

    documents.write({1: ["bad", "worse", "a"], 2: ["bad"], 3: ["b"]})
    provider.script = refuse("bad", "worse")
    job = documents.job()
    report = cli.run(job)
    facts = report_facts(load_job(job))
    assert report["rows_failed"] == facts.totals["rows_failed"] == facts.errors[0]["rows"] == 2
    assert facts.totals["errors"] == 3
    assert cli("errors", job) == 0
    assert "2 rows failed" in cli.out
