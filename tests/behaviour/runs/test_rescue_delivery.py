"""`rescue` with `delivery: batch`, under a budget, and after a kill."""

import json
import signal
from typing import Any

import pytest

from tests.behaviour.runs.conftest import BatchProvider
from tests.behaviour.runs.test_rescue import LONGER, Hard, answered, asked, failures, hard, rescue_job, rungs
from tests.conftest import Body, Cli, ReadTable, ScriptedProvider, Workspace, chat_reply

__all__ = ["hard"]


def batched(batches: BatchProvider) -> list[list[tuple[str, int]]]:
    """(model, max_tokens) of each line, batch by batch."""
    return [
        [(line["body"]["model"], line["body"]["max_tokens"]) for line in batch["lines"]]
        for batch in batches.batches.values()
    ]


def short_for(*models: str) -> Any:
    """A script of lines: row 2 is cut off by these models, at 20 tokens."""

    def script(text: str, body: Body) -> Body:
        is_cut = text.endswith(" 2") and body["model"] in models and body["max_tokens"] == 20
        reply = chat_reply('{"word": "cut', body["model"], finish="length") if is_cut else answered(body)
        return {"status_code": 200, "body": reply}

    return script


def test_a_rung_goes_into_the_next_batch(
    cli: Cli, workspace: Workspace, batches: BatchProvider, read: ReadTable
) -> None:
    batches.script = short_for("m")
    workspace.csv(3)
    report = cli.run(rescue_job(workspace, f"[{LONGER}]", delivery="batch"))
    assert rungs(read, workspace) == {1: ("m 20", 0), 2: ("m 200", 1), 3: ("m 20", 0)}
    assert batched(batches) == [[("m", 20)] * 3, [("m", 200)]]
    assert (report["exit_code"], report["requests"], report["rows_ok"]) == (0, 4, 3)


def test_a_rung_with_another_model_is_a_batch_of_that_model_at_its_price(
    cli: Cli, workspace: Workspace, batches: BatchProvider, read: ReadTable
) -> None:
    batches.script = short_for("m")
    settings = workspace.folder / "rowmill.yaml"
    settings.write_text(settings.read_text() + "  big: {input_per_million: 100, output_per_million: 200}\n")
    workspace.csv(2)
    report = cli.run(rescue_job(workspace, "[{on: [length], model: big}]", delivery="batch", budget="{usd: 1}"))
    assert rungs(read, workspace) == {1: ("m 20", 0), 2: ("big 20", 1)}
    assert batched(batches) == [[("m", 20)] * 2, [("big", 20)]]
    # 10 tokens in and 5 out, at half price: two of m, one of big.
    assert report["cost_usd"] == pytest.approx((2 * 20e-6 + 2000e-6) / 2)


@pytest.mark.parametrize(
    ("rescue", "problem"),
    [
        ("[{on: [length]}]", "rescue.0: changes nothing of the step"),
        ("[{on: [length], params: {max_tokens: 20}}]", "rescue.0: changes nothing of the step"),
        ("[{on: [timeout], params: {max_tokens: 30}}]", "rescue.0.on.0"),
        ("[{on: [], params: {max_tokens: 30}}]", "rescue.0.on"),
        ("[{on: [length], params: {max_tokens: many}}]", "rescue.0.params.max_tokens"),
        ("[{on: [length], provider: other}]", "rescue.0.provider: no provider other"),
        ("[{on: [length], params: {n: 3}}]", "rescue.0"),
        ("[{on: [length], params: {}, model: big}, {on: [length]}]", "rescue.1: changes nothing"),
    ],
)
def test_validate_refuses_a_rung_in_one_line(cli: Cli, workspace: Workspace, rescue: str, problem: str) -> None:
    workspace.csv(1)
    assert cli("validate", rescue_job(workspace, rescue)) == 2
    (line,) = cli.err.splitlines()
    assert problem in line


def test_the_flag_for_the_provider_replaces_those_of_the_rungs(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    settings = workspace.folder / "rowmill.yaml"
    other = '  other: {base_url: "http://127.0.0.1:9/v1"}\n'
    settings.write_text(settings.read_text().replace("prices:", f"{other}prices:"))
    workspace.csv(2)
    hard.faults = {(2, "m", 20): "length"}
    ladder = "[{on: [length], provider: other}, {on: [length], provider: other, model: big}]"
    job = rescue_job(workspace, ladder).read_text().replace("provider: test", "provider: other", 1)
    # The first rung has the provider of the step by now, and changes nothing.
    report = cli.run(workspace.write("job.yaml", job), "--provider", "test", "--sink", str(workspace.folder / "out"))
    assert asked(provider) == [(1, "m", 20), (2, "big", 20), (2, "m", 20)]
    assert (report["exit_code"], rungs(read, workspace)[2]) == (0, ("big 20", 2))


@pytest.mark.parametrize(
    ("rescue", "problem"),
    [
        ("[{on: [length], model: big}]", "rescue.0.model: no price is known for big"),
        ("[{on: [length], params: {max_tokens: null}}]", "rescue.0"),
    ],
)
def test_a_budget_needs_the_price_and_the_bound_of_each_rung(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, rescue: str, problem: str
) -> None:
    workspace.csv(1)
    assert cli("run", rescue_job(workspace, rescue, budget="{usd: 1}"), "--quiet") == 2
    assert problem in cli.err
    assert provider.seen == []


def test_the_budget_holds_with_rungs(cli: Cli, workspace: Workspace, provider: ScriptedProvider, hard: Hard) -> None:
    workspace.csv(60)
    hard.faults = {(number, "m", 20): "length" for number in range(1, 61)}
    report = cli.run(rescue_job(workspace, f"[{LONGER}]", budget="{usd: 0.002}"))
    assert report["exit_code"] == 3
    # Each exchange costs 10 tokens in and 5 out.
    assert report["cost_usd"] == pytest.approx(20e-6 * len(provider.answered))
    assert report["cost_usd"] <= 0.002
    assert cli.run(rescue_job(workspace, f"[{LONGER}]", budget="{usd: 1}"))["rows_ok"] == 60
    assert len(asked(provider)) == len(set(asked(provider))) == 120


def test_after_a_kill_between_step_and_rung_nothing_is_paid_twice(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    from tests.support.forked import ended, run

    workspace.csv(5)
    hard.faults = {(number, "m", 20): "length" for number in (2, 4)}
    job = rescue_job(workspace)
    scripted = hard.__call__
    process: Any = None

    def kill_at_rung(path: str, body: Body, count: int) -> Any:
        if body["max_tokens"] == 200:
            process.send_signal(signal.SIGKILL)
        return scripted(path, body, count)

    provider.script = kill_at_rung
    process = run(job)
    assert ended(process)[0] != 0
    provider.script = scripted
    before = asked(provider)
    provider.seen.clear()
    assert cli.run(job)["exit_code"] == 0
    assert rungs(read, workspace) == {
        1: ("m 20", 0), 2: ("m 200", 1), 3: ("m 20", 0), 4: ("m 200", 1), 5: ("m 20", 0),
    }  # fmt: skip
    # What was in flight at the kill is unknown; no row is requested as declared again.
    assert {one for one in before if one[2] == 20}.isdisjoint(asked(provider))


def test_rungs_of_embeddings_keep_the_dimension(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    from tests.conftest import error_reply

    def script(path: str, body: Body, count: int) -> Any:
        return error_reply(400, "no such text") if body["model"] == "e" and "text 2" in body["input"] else None

    provider.script = script
    workspace.csv(3)
    step = (
        "[{name: vector, endpoint: embeddings, provider: test, model: e, input: '{{ text }}', dimensions: 3, "
        "rescue: [{on: [bad_request], model: MODEL}]}]"
    )
    cli.run(workspace.job(steps=step.replace("MODEL", "other")))
    rows = read(workspace.folder / "out", order="id")
    assert [(row["id"], row["vector_rung"], row["vector"]) for row in rows] == [
        (1, 0, [6.0] * 3), (2, 1, [6.0] * 3), (3, 0, [6.0] * 3),
    ]  # fmt: skip
    free = step.replace("dimensions: 3, ", "").replace("model: e", "model: text-embedding-3-small")
    assert cli("validate", workspace.job(steps=free.replace("MODEL", "text-embedding-3-large"))) == 2
    assert "rescue.0: its vectors have 3,072 numbers, those of the step 1,536" in cli.err


def test_show_prints_the_exchange_of_each_rung(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, hard: Hard
) -> None:
    workspace.csv(1)
    hard.faults = {(1, "m", 20): "length", (1, "m", 200): "content_filter"}
    job = rescue_job(workspace)
    cli.run(job)
    assert cli("show", job, "1", "--json") == 0
    shown = json.loads(cli.out)
    assert [(one.get("rung"), one["request"]["model"], one["request"]["max_tokens"]) for one in shown["steps"]] == [
        (None, "m", 20), (1, "m", 200), (2, "big", 20),
    ]  # fmt: skip
    assert shown["result"]["label_rung"] == 2


def planned(cli: Cli, job: Any) -> Body:
    assert cli("plan", job, "--json") == 0
    plan: Body = json.loads(cli.out)
    return plan


def test_plan_states_the_worst_case_of_the_rungs_apart(cli: Cli, workspace: Workspace) -> None:
    workspace.csv(10)
    plain, rescued = (planned(cli, rescue_job(workspace, rescue)) for rescue in ("", f"[{LONGER}]"))
    assert plain["rescue_usd"] == 0
    names = ("requests", "low_usd", "expected_usd", "high_usd")
    assert [rescued[name] for name in names] == [plain[name] for name in names]
    # 180 more tokens of each answer at two dollars a million, and of its repair turn also as input.
    assert rescued["rescue_usd"] - plain["high_usd"] == pytest.approx(10 * 180 * (2 + 2 + 1) * 1e-6)
    assert cli("plan", rescue_job(workspace, f"[{LONGER}]")) == 0
    assert "more at most, if every row fails and takes all rungs of `rescue`" in cli.out


def test_plan_counts_the_failed_rows_that_a_new_rung_requests(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, hard: Hard
) -> None:
    workspace.csv(4)
    hard.faults = {(number, "m", 20): "length" for number in (2, 3)} | {(4, "m", 20): "content_filter"}
    cli.run(rescue_job(workspace, ""))
    job = rescue_job(workspace, f"[{LONGER}]")
    plan = planned(cli, job)
    assert {name: plan[name] for name in ("new", "changed", "done", "failed_before", "rescued", "requests")} == {
        "new": 0, "changed": 0, "done": 1, "failed_before": 1, "rescued": 2, "requests": 2,
    }  # fmt: skip
    assert plan["refused"] is None
    assert 0 < plan["low_usd"] <= plan["expected_usd"] <= plan["high_usd"]
    assert cli.run(job)["requests"] == 2
    assert planned(cli, job)["rescued"] == 0


def test_a_fault_that_every_row_meets_is_not_the_set_ups_if_a_rung_is_answered(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, hard: Hard
) -> None:
    workspace.csv(30)
    hard.faults = {(number, "m", 20): "same" for number in range(1, 31)}
    job = rescue_job(workspace, "[{on: [bad_request], model: big}]")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 30, 60)


def test_a_fault_that_every_row_meets_at_every_rung_is_the_set_ups(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    workspace.csv(30)
    hard.faults = {(number, model, 20): "same" for number in range(1, 31) for model in ("m", "big")}
    report = cli.run(rescue_job(workspace, "[{on: [bad_request], model: big}]"))
    assert report["exit_code"] == 3
    assert report["stopped"].startswith("setup: ")
    assert set(failures(read, workspace).values()) == {"setup"}


def test_rescued_rows_do_not_count_for_the_failed_share(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, hard: Hard
) -> None:
    workspace.csv(150)
    hard.faults = {(number, "m", 20): "length" for number in range(1, 151)}
    report = cli.run(rescue_job(workspace, f"[{LONGER}]", limits="{failed_share: 0.1}"))
    assert (report["exit_code"], report["rows_ok"]) == (0, 150)


def test_a_rung_may_go_to_a_pool_and_has_a_structured_mode_of_its_own(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    from tests.conftest import error_reply

    def without_schemas(path: str, body: Body, count: int) -> Any:
        if body["model"] == "big" and "response_format" in body:
            return error_reply(400, "response_format is not supported")
        if "response_format" in body:
            is_cut = body["messages"][-1]["content"].split()[-1] in ("2", "3")
            return chat_reply('{"word": "cut', finish="length") if is_cut else answered(body)
        return answered(body)

    provider.script = without_schemas
    settings = workspace.folder / "rowmill.yaml"
    pool = f'  other: {{base_url: "{provider.base_url}"}}\n  both: {{members: [test, other]}}\n'
    settings.write_text(settings.read_text().replace("prices:", f"{pool}prices:"))
    workspace.csv(3)
    job = rescue_job(workspace, "[{on: [length], provider: both, model: big}]")
    job.write_text(job.read_text().replace("structured: prompt", "structured: auto"))
    assert cli.run(job)["exit_code"] == 0
    assert rungs(read, workspace) == {1: ("m 20", 0), 2: ("big 20", 1), 3: ("big 20", 1)}


def test_a_new_rung_of_a_later_step_requests_that_step_alone(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, hard: Hard
) -> None:
    workspace.csv(3)
    first = "{name: loud, endpoint: chat, provider: test, model: first, messages: [{user: '{{ text }}'}]}"

    def script(path: str, body: Body, count: int) -> Any:
        return None if body["model"] == "first" else hard(path, body, count)

    provider.script = script
    hard.faults = {(2, "m", 20): "length"}

    def job(rescue: str) -> Any:
        second = rescue_job(workspace, rescue).read_text().split("steps: [")[1].split("}]\n")[0]
        return workspace.job(steps=f"[{first}, {second.replace('{{ text }}', '{{ loud }}')}}}]")

    cli.run(job(""))
    assert failures(read, workspace) == {2: "length"}
    provider.seen.clear()
    assert cli.run(job(f"[{LONGER}]"))["exit_code"] == 0
    assert [(body["model"], body["max_tokens"]) for _, body in provider.seen] == [("m", 200)]
    assert rungs(read, workspace) == {1: ("m 20", 0), 2: ("m 200", 1), 3: ("m 20", 0)}
