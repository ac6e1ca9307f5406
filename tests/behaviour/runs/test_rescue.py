"""`rescue`: rows that fail are requested again by rungs, and no other row is."""

import json
from pathlib import Path

import pytest
from aiohttp import web

from tests.conftest import Body, Cli, ReadTable, ScriptedProvider, Workspace, chat_reply, error_reply

STEP = (
    "[{name: label, endpoint: chat, provider: test, model: m, messages: [{user: '{{ text }}'}], "
    "params: {temperature: 0, max_tokens: 20}, output: {word: string}, structured: prompt, rescue: RESCUE}]"
)
LONGER = "{on: [length], params: {max_tokens: 200}}"
OTHER_MODEL = "{on: [invalid_answer, content_filter], model: big}"


def rescue_job(workspace: Workspace, rescue: str = f"[{LONGER}, {OTHER_MODEL}]", **blocks: str) -> Path:
    steps = STEP.replace("RESCUE", rescue) if rescue else STEP.replace(", rescue: RESCUE", "")
    return workspace.job(steps=steps, **blocks)


def number_of(body: Body) -> int:
    return int(body["messages"][1]["content"].split()[-1])


def answered(body: Body) -> Body:
    return chat_reply(json.dumps({"word": f"{body['model']} {body['max_tokens']}"}), body["model"])


class Hard:
    """Answers that fail for some rows: each fault by the row's number, the model and `max_tokens`."""

    def __init__(self) -> None:
        self.faults: dict[tuple[int, str, int], Body | web.Response | str] = {}

    def __call__(self, path: str, body: Body, count: int) -> Body | web.Response:
        fault = self.faults.get((number_of(body), body["model"], body["max_tokens"]))
        if fault == "length":
            return chat_reply('{"word": "cut', body["model"], finish="length")
        if fault == "content_filter":
            return chat_reply("", body["model"], finish="content_filter")
        if fault == "bad_request":
            return error_reply(400, f"no such thing in row {number_of(body)}", "invalid_value")
        if fault == "same":
            return error_reply(400, "there is no such parameter", "unknown_parameter")
        if fault == "timeout":
            return error_reply(503, "overloaded")
        return answered(body)


@pytest.fixture
def hard(provider: ScriptedProvider) -> Hard:
    provider.script = script = Hard()
    return script


def asked(provider: ScriptedProvider) -> list[tuple[int, str, int]]:
    """(row, model, max_tokens) of each request."""
    return sorted((number_of(body), body["model"], body["max_tokens"]) for _, body in provider.seen)


def rungs(read: ReadTable, workspace: Workspace) -> dict[int, tuple[str | None, int]]:
    return {row["id"]: (row["word"], row["label_rung"]) for row in read(workspace.folder / "out")}


def failures(read: ReadTable, workspace: Workspace) -> dict[int, str]:
    return {row["id"]: row["error_class"] for row in read(workspace.folder / "out", "errors")}


def old_failures(read: ReadTable, workspace: Workspace) -> list[Body]:
    errors = read(workspace.folder / "out", "errors")
    return [{name: value for name, value in row.items() if name != "failed_at"} for row in errors]


def test_each_failed_row_is_requested_again_by_the_first_rung_for_its_class(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    workspace.csv(4)
    hard.faults = {(2, "m", 20): "length", (3, "m", 20): "content_filter", (4, "m", 20): "bad_request"}
    report = cli.run(rescue_job(workspace))
    assert rungs(read, workspace) == {1: ("m 20", 0), 2: ("m 200", 1), 3: ("big 20", 2)}
    assert failures(read, workspace) == {4: "bad_request"}
    assert asked(provider) == [
        (1, "m", 20), (2, "m", 20), (2, "m", 200), (3, "big", 20), (3, "m", 20), (4, "m", 20),
    ]  # fmt: skip
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"], report["requests"]) == (1, 3, 1, 6)
    # Nothing is left to try.
    assert cli.run(rescue_job(workspace))["requests"] == 0


def test_a_row_goes_from_rung_to_rung_and_the_last_outcome_counts(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    workspace.csv(2)
    hard.faults = {
        (1, "m", 20): "length", (1, "m", 200): "content_filter",
        (2, "m", 20): "content_filter", (2, "big", 20): "length", (2, "m", 200): "bad_request",
    }  # fmt: skip
    cli.run(rescue_job(workspace))
    assert rungs(read, workspace) == {1: ("big 20", 2)}
    # The params are merged into the step's, not into those of the rung before.
    assert asked(provider) == [
        (1, "big", 20), (1, "m", 20), (1, "m", 200), (2, "big", 20), (2, "m", 20), (2, "m", 200),
    ]  # fmt: skip
    assert failures(read, workspace) == {2: "bad_request"}


def test_a_rung_that_is_added_requests_only_failed_rows_of_its_classes(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    workspace.csv(5)
    hard.faults = {
        (2, "m", 20): "length", (3, "m", 20): "content_filter", (4, "m", 20): "bad_request", (5, "m", 20): "length",
        (5, "m", 200): "length",
    }  # fmt: skip
    cli.run(rescue_job(workspace, ""))
    before = read(workspace.folder / "out")
    assert "label_rung" not in before[0]
    provider.seen.clear()
    # Only `run`, without --schema-change; rows that are done keep what they have.
    report = cli.run(rescue_job(workspace, f"[{LONGER}]"))
    assert asked(provider) == [(2, "m", 200), (5, "m", 200)]
    assert rungs(read, workspace) == {1: ("m 20", 0), 2: ("m 200", 1)}
    kept = {name: value for name, value in read(workspace.folder / "out")[0].items() if name != "label_rung"}
    assert [kept] == before
    assert failures(read, workspace) == {3: "content_filter", 4: "bad_request", 5: "length"}
    assert (report["rows_ok"], report["rows_failed"], report["requests"]) == (2, 3, 2)
    provider.seen.clear()
    assert cli.run(rescue_job(workspace, f"[{LONGER}]"))["requests"] == 0
    # A further rung, in front of the other: the row that tried that one goes to the new one alone.
    ladder = f"[{{on: [length, bad_request], model: big}}, {LONGER}]"
    cli.run(rescue_job(workspace, ladder))
    assert asked(provider) == [(4, "big", 20), (5, "big", 20)]
    assert rungs(read, workspace) == {1: ("m 20", 0), 2: ("m 200", 1), 4: ("big 20", 1), 5: ("big 20", 1)}


def test_failures_that_no_rung_has_tried_again_are_not_new(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    workspace.csv(3)
    hard.faults = {(2, "m", 20): "length", (2, "m", 200): "length", (3, "m", 20): "content_filter"}
    cli.run(rescue_job(workspace, f"[{LONGER}]"))
    errors = old_failures(read, workspace)
    sent = len(provider.seen)
    # The same rungs for other classes: row 2 has tried its one, and no request follows.
    other = rescue_job(workspace, "[{on: [length, bad_request], params: {max_tokens: 200}}]")
    report = cli.run(other, "--fail-on", "new")
    assert (report["exit_code"], report["requests"], report["rows_failed"]) == (0, 0, 2)
    assert (old_failures(read, workspace), len(provider.seen)) == (errors, sent)


@pytest.mark.parametrize("fault", ["length", "bad_request"])
def test_a_passing_failure_within_a_rung_continues_at_that_rung(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard, fault: str
) -> None:
    workspace.csv(2)
    hard.faults = {(2, "m", 20): fault, (2, "m", 200): "timeout"}
    job = rescue_job(workspace, "[{on: [length, bad_request], params: {max_tokens: 200}}]")
    cli.run(job)
    assert failures(read, workspace) == {2: "server"}
    assert asked(provider)[1:] == [(2, "m", 20)] + 3 * [(2, "m", 200)]
    hard.faults = {(2, "m", 20): fault}
    provider.seen.clear()
    cli.run(job)
    assert asked(provider) == [(2, "m", 200)]
    assert rungs(read, workspace) == {1: ("m 20", 0), 2: ("m 200", 1)}


def test_retry_begins_as_declared_and_may_try_all_rungs(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    workspace.csv(1)
    hard.faults = {(1, "m", 20): "length", (1, "m", 200): "content_filter", (1, "big", 20): "bad_request"}
    job = rescue_job(workspace)
    cli.run(job)
    provider.seen.clear()
    del hard.faults[1, "big", 20]
    cli("retry", job, "--quiet")
    assert asked(provider) == [(1, "big", 20), (1, "m", 20), (1, "m", 200)]
    assert rungs(read, workspace) == {1: ("big 20", 2)}


def test_removing_rescue_keeps_the_column_until_a_schema_change(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    workspace.csv(2)
    hard.faults = {(2, "m", 20): "length"}
    cli.run(rescue_job(workspace))
    before = read(workspace.folder / "out")
    plain = rescue_job(workspace, "")
    assert cli.run(plain)["requests"] == 0
    assert read(workspace.folder / "out") == before
    workspace.csv(3)
    cli.run(plain)
    assert rungs(read, workspace) == {1: ("m 20", 0), 2: ("m 200", 1), 3: ("m 20", 0)}
    assert cli.run(plain, "--schema-change", "cast")["requests"] == 0
    assert [list(row) for row in read(workspace.folder / "out")] == 3 * [["id", "word", "_run_id", "_row_fingerprint"]]


@pytest.mark.parametrize("sink", ["{parquet: out}", "{duckdb: out.duckdb, table: rows}", "{delta: out}"])
def test_every_sink_gains_the_column_and_rebuilds_it(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, hard: Hard, sink: str
) -> None:
    from pipelines.analysis.results import read_results

    def rows(job: Path) -> list[Body]:
        return read_results(job).results.sort("id").collect().to_dicts()

    workspace.csv(3)
    hard.faults = {(2, "m", 20): "length", (3, "m", 20): "length"}
    cli.run(rescue_job(workspace, "", sink=sink))
    first = rows(rescue_job(workspace, "", sink=sink))
    job = rescue_job(workspace, sink=sink)
    cli.run(job)
    made = rows(job)
    assert [(row["id"], row["label_rung"]) for row in made] == [(1, 0), (2, 1), (3, 1)]
    assert {name: made[0][name] for name in first[0]} == first[0]
    sent = len(provider.seen)
    assert cli("rebuild", job) == 0
    assert (rows(job), len(provider.seen)) == (made, sent)


def test_rows_that_when_excludes_have_rung_0(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    workspace.csv(2)
    steps = STEP.replace("RESCUE", f"[{LONGER}]").replace("structured", "when: id > 1, structured")
    cli.run(workspace.job(steps=steps))
    assert rungs(read, workspace) == {1: (None, 0), 2: ("m 20", 0)}


def test_rungs_share_the_repair_turns_of_a_row_and_their_answers_are_checked(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    workspace.csv(2)
    steps = STEP.replace("RESCUE", "[{on: [invalid_answer], model: big}, {on: [invalid_answer], model: huge}]")
    steps = steps.replace("structured", "check: [\"word <> 'm 20' or id = 1\", \"word <> 'big 20'\"], structured")
    provider.script = lambda path, body, count: answered(body)
    cli.run(workspace.job(steps=steps))
    assert rungs(read, workspace) == {1: ("m 20", 0), 2: ("huge 20", 2)}
    models = [body["model"] for _, body in provider.seen if body["messages"][1]["content"] == "text 2"]
    # One repair turn in all, which the step as declared has taken.
    assert models == ["m", "m", "big", "huge"]


def test_rows_of_packs_are_requested_alone_by_a_rung(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    from tests.behaviour.runs.test_packing import PACKED, items_of, packed_reply

    def script(path: str, body: Body, count: int) -> Body | web.Response:
        items = items_of(body)
        if items and any(item["content"] == "text 3" for item in items):
            return error_reply(400, "the text was filtered", "content_filter")
        if items:
            return packed_reply([{"id": item["id"], "answer": item["content"].upper()} for item in items])
        text = body["messages"][-1]["content"]
        is_refused = body["model"] == "m" and text == "text 3"
        return error_reply(400, "filtered", "content_filter") if is_refused else chat_reply(f"{body['model']} {text}")

    provider.script = script
    workspace.csv(5)
    steps = PACKED.replace("PACK", "{rows: 5}, rescue: [{on: [content_filter], model: big}]")
    assert cli.run(workspace.job(steps=steps))["exit_code"] == 0
    rows = {row["id"]: (row["answer"], row["answer_rung"]) for row in read(workspace.folder / "out")}
    assert rows[3] == ("big text 3", 1)
    assert {rung for key, (_, rung) in rows.items() if key != 3} == {0}
    assert [items_of(body) for _, body in provider.seen if body["model"] == "big"] == [[]]
