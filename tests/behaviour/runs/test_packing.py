"""`pack`: rows share requests, and each keeps an answer of its own, whatever the server does with the items."""

import asyncio
import json
import random
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from connectors.tokens import count_tokens
from tests.behaviour.runs.test_pools import write_pool
from tests.conftest import Body, Cli, ReadTable, ScriptedProvider, Workspace, chat_reply, error_reply
from tests.support.forked import ended, run

PACKED = (
    "[{name: answer, endpoint: chat, provider: test, model: m, messages: [{system: Say it aloud.}, "
    '{user: "{{ text }}"}], params: {max_tokens: 20}, pack: PACK}]'
)


def packed_job(workspace: Workspace, pack: str = "{rows: 5}", **blocks: str) -> Path:
    return workspace.job(steps=PACKED.replace("PACK", pack), **blocks)


def items_of(body: Body) -> list[dict[str, str]]:
    """The items of a packed request; a single row has none."""
    if "response_format" not in body:
        return []
    lines = body["messages"][-1]["content"].splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"id"')]


def packed_reply(items: list[dict[str, Any]], **usage: int) -> Body:
    return chat_reply(json.dumps({"answers": items}), "m", usage.get("given", 100), usage.get("made", 50))


def honest(path: str, body: Body, count: int) -> Body | None:
    """Answers each item in upper case, as the scripted provider does with single rows."""
    items = items_of(body)
    return packed_reply([{"id": one["id"], "answer": one["content"].upper()} for one in items]) if items else None


def answers(read: ReadTable, workspace: Workspace) -> dict[int, str]:
    return {row["id"]: row["answer"] for row in read(workspace.folder / "out")}


def expected(rows: int) -> dict[int, str]:
    return {number: f"TEXT {number}" for number in range(1, rows + 1)}


def test_rows_share_requests_and_have_their_own_answers(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = honest
    workspace.csv(23)
    report = cli.run(packed_job(workspace))
    assert answers(read, workspace) == expected(23)
    assert report["requests"] == len(provider.seen) == 5
    assert (report["exit_code"], report["rows_ok"]) == (0, 23)
    assert sorted(len(items_of(body)) for _, body in provider.seen) == [3, 5, 5, 5, 5]


def test_usage_has_one_row_for_an_exchange_with_all_its_keys(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = honest
    workspace.csv(10)
    cli.run(packed_job(workspace))
    usage = read(workspace.folder / "out", "usage")
    assert sorted(key for row in usage for key in row["keys"]) == sorted(str(number) for number in range(1, 11))
    assert [row["cost_usd"] for row in usage] == [pytest.approx(200e-6)] * 2


def test_packed_answers_are_stored_as_if_requested_alone(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    provider.script = honest
    workspace.csv(10)
    cli.run(packed_job(workspace))
    sent = len(provider.seen)
    # Neither another pack size nor none at all requests anything again.
    for pack in ("{rows: 3}", "{rows: 2, tokens: 10, verify: 0.5}"):
        assert cli.run(packed_job(workspace, pack))["requests"] == 0
    elsewhere = str(workspace.folder / "elsewhere")
    assert cli.run(workspace.job(steps=PACKED.replace(", pack: PACK", "")), "--sink", elsewhere)["requests"] == 0
    assert len(provider.seen) == sent


class HostileServer:
    """Drops, repeats, reorders and renames items, cuts replies and refuses packs; a single row is answered."""

    def __init__(self, seed: int, share: float) -> None:
        self.random = random.Random(seed)
        self.share = share
        self.unanswered = 0
        """Rows that a reply with status 200 has left without an answer of theirs."""

    def __call__(self, path: str, body: Body, count: int) -> Body | web.Response | None:
        items = items_of(body)
        if not items:
            return None
        fate = self.random.random()
        if fate < self.share:
            return error_reply(400, "one of the items is not acceptable")
        made: list[dict[str, Any]] = []
        for item in items:
            answer = {"id": item["id"], "answer": item["content"].upper()}
            damage = self.random.random()
            if damage < self.share:
                continue
            if damage < 2 * self.share:
                made.append(dict(answer))
            if damage < 3 * self.share and damage >= 2 * self.share:
                answer["id"] = f"x{self.random.randrange(10**6)}"
            made.append(answer)
        self.random.shuffle(made)
        reply = packed_reply(made)
        if fate > 1 - self.share:
            text = reply["choices"][0]["message"]["content"]
            cut = text[: self.random.randrange(len(text))]
            reply["choices"][0]["message"]["content"] = cut
            reply["choices"][0]["finish_reason"] = "length"
            made = [answer for answer in made if json.dumps(answer) in cut]
        usable = Counter(answer["id"] for answer in made)
        self.unanswered += sum(usable[item["id"]] != 1 for item in items)
        return reply


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_every_row_has_its_own_answer_from_a_hostile_server(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, share: float
) -> None:
    provider.script = HostileServer(7, share)
    workspace.csv(600)
    report = cli.run(packed_job(workspace, "{rows: 20}"))
    assert answers(read, workspace) == expected(600)
    assert (report["exit_code"], report["rows_failed"]) == (0, 0)


def test_exchanged_places_do_not_exchange_answers(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    def backwards(path: str, body: Body, count: int) -> Body | None:
        items = items_of(body)[::-1]
        return packed_reply([{"id": one["id"], "answer": one["content"].upper()} for one in items]) if items else None

    provider.script = backwards
    workspace.csv(20)
    assert cli.run(packed_job(workspace))["requests"] == 4
    assert answers(read, workspace) == expected(20)


def test_a_row_that_no_pack_answers_is_requested_alone_at_last(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    def script(path: str, body: Body, count: int) -> Body | None:
        items = [one for one in items_of(body) if one["content"] != "text 3"]
        return packed_reply([{"id": one["id"], "answer": one["content"].upper()} for one in items]) if items else None

    provider.script = script
    workspace.csv(8)
    report = cli.run(packed_job(workspace, "{rows: 8}"))
    assert answers(read, workspace) == expected(8)
    assert report["requests"] == 2
    assert provider.prompts()[-1] == "text 3"


def test_a_pack_that_is_refused_is_halved_until_the_bad_row_is_found(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    def script(path: str, body: Body, count: int) -> Body | web.Response | None:
        if "text 6" in body["messages"][-1]["content"]:
            return error_reply(400, "this text is not acceptable")
        return honest(path, body, count)

    provider.script = script
    workspace.csv(8)
    report = cli.run(packed_job(workspace, "{rows: 8}"))
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"]) == (1, 7, 1)
    (failed,) = read(workspace.folder / "out", "errors")
    assert (failed["id"], failed["error_class"]) == (6, "bad_request")
    sizes = [len(items_of(body)) or 1 for _, body in provider.seen]
    assert sorted(sizes, reverse=True) == [8, 4, 4, 2, 2, 1, 1]


def test_rows_of_a_pack_whose_replies_cannot_be_read_are_requested_again_in_smaller_packs(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    def script(path: str, body: Body, count: int) -> Body | web.Response | None:
        if any(item["content"] == "text 6" for item in items_of(body)):
            return web.Response(text='{"choices": [{"message": {"content": "{', content_type="application/json")
        return honest(path, body, count)

    provider.script = script
    workspace.csv(8)
    report = cli.run(packed_job(workspace, "{rows: 8}", retry="{attempts: 2, longest_wait: 0.01}"))
    assert answers(read, workspace) == expected(8)
    sizes = [len(items_of(body)) or 1 for _, body in provider.seen]
    assert (report["exit_code"], sorted(sizes, reverse=True)) == (0, [8, 8, 4, 4, 4, 2, 2, 2, 1, 1])


@pytest.mark.parametrize("rows", [4, 50], ids=["small packs", "large packs"])
def test_a_server_that_refuses_every_pack_answers_each_row_alone(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, rows: int
) -> None:
    provider.script = lambda path, body, count: (
        error_reply(400, "too much at once") if items_of(body) else honest(path, body, count)
    )
    workspace.csv(50)
    cli.run(packed_job(workspace, f"{{rows: {rows}}}"))
    assert answers(read, workspace) == expected(50)


def test_a_fault_that_meets_every_row_of_packs_is_found_after_twenty_rows(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    provider.script = lambda path, body, count: error_reply(400, "no such deployment option")
    workspace.csv(200)
    report = cli.run(packed_job(workspace, "{rows: 50}"))
    assert (report["exit_code"], report["rows_left"]) == (3, 180)
    assert "each of the first 20 rows" in report["stopped"]
    assert report["requests"] <= 50


def test_a_server_without_schemas_gets_the_schema_in_words(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    def script(path: str, body: Body, count: int) -> Body | web.Response | None:
        if "response_format" in body:
            return error_reply(400, "response_format is not supported by this model")
        lines = [line for line in body["messages"][-1]["content"].splitlines() if line.startswith('{"id"')]
        items = [json.loads(line) for line in lines]
        return packed_reply([{"id": one["id"], "answer": one["content"].upper()} for one in items]) if items else None

    provider.script = script
    workspace.csv(10)
    report = cli.run(packed_job(workspace, limits="{concurrency: 1}"))
    assert answers(read, workspace) == expected(10)
    assert (report["exit_code"], report["rows_ok"]) == (0, 10)
    # Two requests are refused: one in each mode with a schema.
    assert report["requests"] == 4
    workspace.csv(20)
    assert cli.run(workspace.folder / "job.yaml")["requests"] == 2


def test_typed_rows_are_packed_with_their_outputs(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    steps = (
        '[{name: label, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], '
        "params: {max_tokens: 20}, pack: {rows: 10}, "
        "output: {size: {type: integer}, kind: {type: string, enum: [odd, even]}}}]"
    )

    def fields(text: str) -> dict[str, Any]:
        number = int(text.split()[-1])
        return {"size": number, "kind": "odd" if number % 2 else "even"}

    def script(path: str, body: Body, count: int) -> Body:
        items = [json.loads(line) for line in body["messages"][-1]["content"].splitlines() if line.startswith('{"id"')]
        if not items:
            return chat_reply(json.dumps(fields(body["messages"][-1]["content"])))
        made = [{"id": one["id"], **fields(one["content"])} for one in items]
        made[0]["kind"] = "neither"
        return packed_reply(made)

    provider.script = script
    workspace.csv(21)
    assert cli.run(workspace.job(steps=steps))["rows_ok"] == 21
    rows = read(workspace.folder / "out")
    assert [(row["size"], row["kind"]) for row in rows] == [(n, "odd" if n % 2 else "even") for n in range(1, 22)]


def test_the_plan_counts_shared_requests_and_compares_them_with_single_ones(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    provider.script = honest
    workspace.csv(600)
    job = packed_job(workspace, "{rows: 20, verify: 0.1}")
    plain = workspace.job("plain", steps=PACKED.replace(", pack: PACK", ""), sink="{parquet: plain}")
    plans = []
    for each in (job, plain):
        assert cli("plan", each, "--json") == 0
        plans.append(json.loads(cli.out))
    packed, single = (plan["steps"][0] for plan in plans)
    assert (single["requests"], single["unpacked"]) == (600, None)
    assert packed["unpacked"] == {
        name: single[name] for name in ("requests", "input_tokens", "output_tokens", "expected_usd")
    }
    assert plans[0]["examples"][0]["request"]["messages"][-1]["content"].count('{"id"') == 20
    assert cli("plan", job) == 0
    assert f"packed: {packed['requests']} requests, " in " ".join(cli.out.split())
    assert "; without `pack`: 600 requests, " in " ".join(cli.out.split())
    assert cli.run(job)["requests"] == packed["requests"]
    # Of a pack, each row has its share of the output tokens.
    workspace.csv(601)
    assert cli("plan", job, "--json") == 0
    (later,) = json.loads(cli.out)["steps"]
    assert (later["requests"], later["output_tokens"]) == (1, 3)


def test_packs_that_tokens_bound_are_those_of_the_plan(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    provider.script = honest
    lines = [f"{number},{number} {'word ' * (number % 50)}" for number in range(1, 61)]
    workspace.write("rows.csv", "\n".join(["id,text", *lines]) + "\n")
    job = packed_job(workspace, "{rows: 20, tokens: 150}")
    assert cli("plan", job, "--json") == 0
    planned = json.loads(cli.out)["requests"]
    assert (cli.run(job)["requests"], planned) == (planned, len(provider.seen))
    counts = [sum(count_tokens(one["content"], "gpt-4o") for one in items_of(body)) for _, body in provider.seen]
    assert 140 < max(counts) <= 150


def test_the_history_of_a_row_shows_its_part_of_the_exchange(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    provider.script = honest
    workspace.csv(10)
    job = packed_job(workspace)
    cli.run(job)
    assert cli("show", job, "7", "--json") == 0
    history = json.loads(cli.out)
    (step,), (exchange,) = history["steps"], history["exchanges"]
    (sent,) = [item for _, body in provider.seen for item in items_of(body) if item["content"] == "text 7"]
    assert step["item"] == sent
    assert step["request"]["messages"][-1]["content"] == "text 7"
    assert step["reply"]["choices"][0]["message"]["content"] == "TEXT 7"
    assert "text 6" not in cli.out
    assert (exchange["rows"], exchange["cost_usd"]) == (5, pytest.approx(200e-6))
    assert history["cost_usd"] == exchange["row_cost_usd"] == pytest.approx(40e-6)


def test_the_budget_holds_with_packs(cli: Cli, workspace: Workspace, provider: ScriptedProvider) -> None:
    provider.script = honest
    workspace.csv(400)
    report = cli.run(packed_job(workspace, "{rows: 10}", budget="{usd: 0.004}"))
    paid = sum(200e-6 if items_of(body) else 20e-6 for _, body in provider.seen)
    assert report["exit_code"] == 3
    assert paid <= 0.004
    assert report["cost_usd"] == pytest.approx(paid)
    # The worst case of a pack is reserved, not that of its rows one by one.
    assert len(provider.answered) >= 10


def test_a_budget_that_no_whole_pack_fits_is_used_by_smaller_ones_down_to_single_rows(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    paid = 0

    def script(path: str, body: Body, count: int) -> Body:
        nonlocal paid
        given, made = sum(len(message["content"].encode()) for message in body["messages"]), body["max_tokens"]
        reply = honest(path, body, count) or chat_reply("ALONE")
        reply["usage"] = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
        paid += given + 2 * made
        return reply

    provider.script = script
    workspace.csv(100)
    # A pack of 20 may cost more than 2,000 millionths, a row alone less than 200.
    report = cli.run(packed_job(workspace, "{rows: 20}", budget="{usd: 0.001}", limits="{concurrency: 3}"))
    assert (report["exit_code"], report["stopped"].split(":")[0]) == (3, "budget")
    assert report["cost_usd"] == pytest.approx(paid / 1e6)
    assert 800 <= paid <= 1000
    assert report["rows_ok"] == sum(len(items_of(body)) or 1 for _, body in provider.seen) >= 5
    # The rest, once there is money.
    later = cli.run(workspace.folder / "job.yaml", "--budget-usd", "1")
    assert (later["exit_code"], later["rows_ok"]) == (0, 100)


@pytest.mark.parametrize("daily", [False, True], ids=["job", "day"])
def test_a_pool_uses_what_is_left_of_a_budget_by_smaller_packs(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, daily: bool
) -> None:
    spare = ScriptedProvider()
    try:
        write_pool(workspace, provider, spare)
        provider.script = spare.script = honest
        workspace.csv(400)
        # A pack of 20 may cost 20,000 millionths at the more expensive member, a row alone less than 2,000.
        job = packed_job(workspace, "{rows: 20}", **({} if daily else {"budget": "{usd: 0.01}"}))
        job.write_text(job.read_text().replace("provider: test", "provider: both"))
        if daily:
            file = workspace.folder / "rowmill.yaml"
            file.write_text(file.read_text() + "budget: {usd_per_day: 0.01}\n")
        report = cli.run(job)
        assert (report["exit_code"], 0.008 < report["cost_usd"] <= 0.01) == (3, True)
        sizes = {len(items_of(body)) for one in (provider, spare) for _, body in one.seen}
        # The day reserves the price of the member that was picked.
        assert (0 in sizes, daily or 20 not in sizes) == (True, True)
    finally:
        spare.close()


def test_the_summary_names_a_server_that_bills_more_than_the_worst_case_and_later_requests_reserve_more(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    def script(path: str, body: Body, count: int) -> Body:
        reply = honest(path, body, count) or chat_reply("ALONE")
        made = 4 * body["max_tokens"]
        reply["usage"] = {"prompt_tokens": 0, "completion_tokens": made, "total_tokens": made}
        return reply

    provider.script = script
    workspace.csv(100)
    job = packed_job(workspace, "{rows: 4}", budget="{usd: 0.02}", limits="{concurrency: 1}")
    assert cli("run", job) == 3
    assert "test bills more for answers of m than their worst case" in " ".join(cli.out.split())
    assert cli("status", job, "--json") == 0
    assert 0.018 <= json.loads(cli.out)["cost_usd"] <= 0.02


@pytest.mark.parametrize("budget", ["0.0125", "0.02", "0.05"])
def test_no_hostile_reply_pushes_the_bill_above_the_budget(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, budget: str
) -> None:
    hostile, billed = HostileServer(11, 0.2), 0

    def script(path: str, body: Body, count: int) -> Body | web.Response:
        nonlocal billed
        given, made = sum(len(message["content"].encode()) for message in body["messages"]), body["max_tokens"]
        reply = hostile(path, body, count) or chat_reply(body["messages"][-1]["content"].upper())
        if not isinstance(reply, web.Response):
            # The longest answer that was allowed, whatever has come of it.
            reply["usage"] = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
            billed += given + 2 * made
        return reply

    provider.script = script
    workspace.csv(400)
    report = cli.run(packed_job(workspace, "{rows: 20, verify: 0.2}", budget=f"{{usd: {budget}}}"))
    millionths = round(float(budget) * 1e6)
    assert (report["exit_code"], report["stopped"].split(":")[0]) == (3, "budget")
    assert billed <= millionths
    assert report["cost_usd"] == pytest.approx(billed / 1e6, abs=1e-12)
    assert report["rows_ok"] > 0


def test_the_most_that_a_plan_counts_is_every_pack_down_to_single_rows(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    # As long as allowed, and without an answer to any row of a pack.
    provider.script = lambda path, body, count: chat_reply("no", given=0, made=body["max_tokens"])
    workspace.csv(40)
    job = packed_job(workspace, "{rows: 20, verify: 0.3}")
    assert cli("plan", job, "--json") == 0
    high = json.loads(cli.out)["high_usd"]
    assert cli("plan", job) == 0
    assert "counts every pack as sent again in halves, down to single rows" in " ".join(cli.out.split())
    report = cli.run(job)
    packs = {20: 2, 10: 4, 5: 8, 2: 16}
    assert (report["rows_ok"], report["requests"]) == (40, sum(packs.values()) + 40)
    made = sum(((20 + 24) * rows + 32) * number for rows, number in packs.items()) + 20 * 40
    assert report["cost_usd"] == pytest.approx(2e-6 * made)
    assert report["cost_usd"] < high


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("params: {n: 2}", "steps.answer.pack: cannot be combined with n; leave one of the two out"),
        ("params: {logprobs: true}", "steps.answer.pack: cannot be combined with logprobs; leave one of the two out"),
        ("stream: true", "steps.answer.pack: cannot be combined with stream; leave one of the two out"),
        (
            "params: {response_format: {type: json_object}}",
            "steps.answer.pack: cannot be combined with response_format; leave one of the two out",
        ),
        (
            "output: {id: {type: string}}",
            "steps.answer.pack: cannot be combined with an output named id; leave one of the two out",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(cli: Cli, workspace: Workspace, keys: str, message: str) -> None:
    workspace.csv(1)
    steps = (
        '[{name: answer, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], '
        f"pack: {{rows: 2}}, {keys}}}]"
    )
    assert cli("validate", workspace.job(steps=steps)) == 2
    assert message in cli.err


@pytest.mark.parametrize(
    "messages",
    ['[{system: "{{ text }}"}, {user: "{{ id }}"}]', '[{user: "{{ text }}"}, {user: constant}]', "[{user: constant}]"],
)
def test_only_the_last_message_may_depend_on_the_row(cli: Cli, workspace: Workspace, messages: str) -> None:
    workspace.csv(1)
    steps = f"[{{name: answer, endpoint: chat, provider: test, model: m, messages: {messages}, pack: {{rows: 2}}}}]"
    assert cli("validate", workspace.job(steps=steps)) == 2
    assert "steps.answer.pack: only the last message may depend on the row, as one text of the user" in cli.err


def shouting(provider: ScriptedProvider, wrong: float) -> HostileServer:
    """A server whose packed answers are wrong for a share of the items; single ones are right."""
    server = HostileServer(3, 0)

    def script(path: str, body: Body, count: int) -> Body | None:
        items = items_of(body)
        made = [
            {"id": one["id"], "answer": "WRONG" if server.random.random() < wrong else one["content"].upper()}
            for one in items
        ]
        return packed_reply(made) if items else None

    provider.script = script
    return server


def test_verified_rows_keep_their_single_answer_and_measure_agreement(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    shouting(provider, wrong=1.0)
    workspace.csv(40)
    report = cli.run(packed_job(workspace, "{rows: 10, verify: 0.5}"))
    found = read(workspace.folder / "out")
    single = [row for row in found if row["answer"] != "WRONG"]
    assert report["pack_agreement"] == 0.0
    assert 10 <= len(single) <= 30
    assert all(row["answer"] == f"TEXT {row['id']}" for row in single)
    assert (report["requests"], report["retries"]) == (4 + len(single), 0)


def test_agreement_is_in_the_summary_and_the_report(cli: Cli, workspace: Workspace, provider: ScriptedProvider) -> None:
    provider.script = honest
    workspace.csv(40)
    job = packed_job(workspace, "{rows: 10, verify: 1}")
    assert cli("run", job) == 0
    assert "pack agreement" in cli.out
    assert "100.0 % of 40 verified rows had the same answer alone" in cli.out
    cli("report", job, "-o", workspace.folder / "page.html")
    assert 'data-fact="pack_agreement" value="1.0">100.0 %' in (workspace.folder / "page.html").read_text()


def test_a_job_without_a_verified_row_has_no_agreement(cli: Cli, workspace: Workspace) -> None:
    workspace.csv(2)
    assert cli.run(packed_job(workspace))["pack_agreement"] is None
    assert "pack_agreement" not in cli.run(workspace.job("plain", sink="{parquet: plain}"))


def test_too_little_agreement_halves_the_packs(cli: Cli, workspace: Workspace, provider: ScriptedProvider) -> None:
    shouting(provider, wrong=0.5)
    workspace.csv(4000)
    cli.run(packed_job(workspace, "{rows: 16, verify: 0.1, agreement: 0.9}"))
    sizes = [len(items_of(body)) for _, body in provider.seen]
    assert sizes[0] == 16
    assert max(sizes[len(sizes) // 2 :]) <= 8


def test_verified_rows_are_requested_before_further_packs(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    provider.script = honest
    workspace.csv(200)
    cli.run(packed_job(workspace, "{rows: 20, verify: 1}", limits="{concurrency: 1}"))
    sizes = [len(items_of(body)) for _, body in provider.seen]
    # The next pack is recorded together with the reply to the first, before its rows are queued again.
    assert sizes[:2] == [20, 20]
    assert sizes[2:42] == [0] * 40


def test_after_kills_no_answered_row_is_paid_twice(
    workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    rows, kills, concurrency = 800, 3, 3
    provider.script = hostile = HostileServer(5, 0.1)
    provider.latency = 0.01
    workspace.csv(rows)
    job = packed_job(workspace, "{rows: 20}", limits=f"{{concurrency: {concurrency}}}")
    hits = 0
    for kill in range(1, kills + 1):
        process = run(job)
        while len(provider.answered) < kill * 15 and process.poll() is None:
            time.sleep(0.002)
        hits += process.poll() is None
        process.send_signal(signal.SIGKILL)
        ended(process)
    code, out = ended(run(job))
    assert (code, json.loads(out)["rows_ok"]) == (0, rows)
    assert answers(read, workspace) == expected(rows)
    usage = read(workspace.folder / "out", "usage")
    unknown = [row for row in usage if row["error_class"] == "unknown"]
    assert len(unknown) <= hits * concurrency
    # Every row was in one pack, unless that left it without an answer or was killed.
    exchanged = Counter(key for row in usage if row["http_status"] == 200 for key in row["keys"])
    assert set(exchanged) == {str(row) for row in range(1, rows + 1)}
    assert sum(exchanged.values()) <= rows + hostile.unanswered


@pytest.mark.parametrize("later", ["{rows: 10, verify: 1}", "{rows: 10}", None], ids=["verify", "no verify", "no pack"])
def test_after_a_kill_between_packs_and_their_verification_no_pack_is_paid_twice(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, later: str | None
) -> None:
    rows, held = 40, list[asyncio.Future[None]]()

    def script(path: str, body: Body, count: int) -> Any:
        if items_of(body) or len(held) == rows:
            return honest(path, body, count)
        held.append(asyncio.get_running_loop().create_future())
        return held[-1]

    provider.script = script
    workspace.csv(rows)
    process = run(packed_job(workspace, "{rows: 10, verify: 1}", limits=f"{{concurrency: {rows}}}"))
    # A row is requested alone once its pack is in the ledger.
    while provider.in_flight < rows and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    ended(process)
    for future in held:
        future.get_loop().call_soon_threadsafe(future.set_result, None)
    job = packed_job(workspace, later) if later else workspace.job(steps=PACKED.replace(", pack: PACK", ""))
    if later:
        assert cli("plan", job, "--json") == 0
        assert json.loads(cli.out)["requests"] == rows
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, rows, rows)
    assert answers(read, workspace) == expected(rows)
    assert Counter(len(items_of(body)) for _, body in provider.seen) == {10: 4, 0: 2 * rows}
    assert report.get("pack_agreement") == (1.0 if later else None)
    with closing(sqlite3.connect(workspace.folder / ".rowmill" / "ledger.sqlite")) as ledger:
        counts = [
            ledger.execute(f"select count(*) from {name}").fetchone()[0] for name in ("answers", "packed_answers")
        ]
    assert counts == [rows, 0]


def test_the_members_of_a_pool_share_the_packs_and_replace_one_another(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    spare = ScriptedProvider()
    try:
        write_pool(workspace, provider, spare)
        provider.script = honest
        # The second member refuses everything for good after its first packs.
        spare.script = lambda path, body, count: honest(path, body, count) if count < 3 else error_reply(401, "no")
        provider.latency = spare.latency = 0.005
        workspace.csv(400)
        job = packed_job(workspace, "{rows: 10}", limits="{concurrency: 4}")
        job.write_text(job.read_text().replace("provider: test", "provider: both"))
        report = cli.run(job)
        assert answers(read, workspace) == expected(400)
        assert (report["exit_code"], report["rows_ok"]) == (0, 400)
        usage = read(workspace.folder / "out", "usage")
        assert {row["provider"] for row in usage if row["http_status"] == 200} == {"test", "spare"}
        assert {len(row["keys"]) for row in usage} <= {10, 2}
    finally:
        spare.close()
