"""`rowmill try`: combinations on the same sample, paid once, compared, and written into the job file."""

import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Body, Cli, ReadTable, ScriptedProvider, Workspace, chat_reply, error_reply
from tests.support.forked import COMMAND, Forked

OVER_MODELS = "steps.answer.model=m,dear"
ROWS = 40


@pytest.fixture
def job(workspace: Workspace, provider: ScriptedProvider) -> Path:
    """A job whose model `m` knows every second label, and `dear`, at ten times the price, all of them."""

    def script(path: str, body: Body, count: int) -> Body:
        text = body["messages"][-1]["content"]
        number = int(text.split()[-1])
        is_known = body["model"] == "dear" or number % 2 == 0
        return chat_reply(f"label {number % 4}" if is_known else "no idea", body["model"])

    provider.script = script
    with (workspace.folder / "rowmill.yaml").open("a") as settings:
        settings.write("  dear: {input_per_million: 10, output_per_million: 20}\n")
    lines = [f"{n},text {n},label {n % 4},{'even' if n % 2 == 0 else 'odd'}" for n in range(1, ROWS + 1)]
    workspace.write("rows.csv", "\n".join(["id,text,label,kind", *lines]) + "\n")
    return workspace.job()


def combinations(cli: Cli, job: Path, *flags: str) -> list[dict[str, Any]]:
    """The objects that `rowmill try --json` prints."""
    assert cli("try", job, "--json", "--quiet", *flags) in (0, 1), cli.err
    return [json.loads(line) for line in cli.out.splitlines()]


def test_each_combination_is_judged_on_the_same_rows(cli: Cli, job: Path, provider: ScriptedProvider) -> None:
    small, large = combinations(cli, job, "--over", OVER_MODELS, "--expect", "answer=label", "--sample", "100")
    assert small.keys() == {
        *("number", "settings", "rows", "right", "low", "high", "usd_per_1000", "latency_ms", "errors", "unbeaten")
    }
    latencies = small.pop("latency_ms"), large.pop("latency_ms")
    assert all(latency > 0 for latency in latencies)
    assert small == {
        "number": 1,
        "settings": {"steps.answer.model": "m"},
        "rows": ROWS,
        "right": 0.5,
        "low": pytest.approx(0.3520, abs=1e-4),
        "high": pytest.approx(0.6480, abs=1e-4),
        "usd_per_1000": pytest.approx(0.02),
        "errors": 0,
        "unbeaten": True,
    }
    assert (large["right"], large["usd_per_1000"], large["unbeaten"]) == (1.0, pytest.approx(0.2), True)
    assert len(provider.seen) == 2 * ROWS


@pytest.mark.parametrize("kept", ["pruned", "committed"])
def test_answers_are_paid_once_and_cost_the_same_when_they_are_reused(
    cli: Cli, job: Path, workspace: Workspace, provider: ScriptedProvider, kept: str
) -> None:
    if kept == "committed":
        with (workspace.folder / "rowmill.yaml").open("a") as settings:
            settings.write("keep_answers: committed\n")
    first = combinations(cli, job, "--over", OVER_MODELS, "--expect", "answer=label", "--sample", "20")
    assert len(provider.seen) == 2 * 20
    assert combinations(cli, job, "--over", OVER_MODELS, "--expect", "answer=label", "--sample", "20") == first
    assert len(provider.seen) == 2 * 20
    assert cli.run(job)["requests"] == ROWS - 20


def test_each_combination_has_separate_repair_turns_whose_cost_counts_again_when_they_are_reused(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    provider.script = lambda path, body, count: chat_reply("right" if len(body["messages"]) > 1 else "wrong")
    workspace.csv(10)
    job = workspace.job()
    checks = """steps.answer.check=[["answer = 'right'"], []]"""
    flags = ("--over", checks, "--over", "steps.answer.repairs=1")
    first = combinations(cli, job, *flags)
    assert [one["usd_per_1000"] for one in first] == [0.04, 0.02]
    assert combinations(cli, job, *flags) == first
    assert len(provider.seen) == 20


def test_the_job_s_tables_do_not_change(cli: Cli, job: Path, workspace: Workspace, read: ReadTable) -> None:
    cli.run(job, "--limit", "3")
    before = read(workspace.folder / "out")
    combinations(cli, job, "--over", OVER_MODELS)
    assert read(workspace.folder / "out") == before


def test_strata_have_their_share_of_the_sample(cli: Cli, job: Path, provider: ScriptedProvider) -> None:
    combinations(cli, job, "--over", "steps.answer.model=m", "--sample", "10", "--by", "kind")
    numbers = [int(prompt.split()[-1]) for prompt in provider.prompts()]
    assert sum(number % 2 for number in numbers) == 5


def test_another_seed_draws_other_rows(cli: Cli, job: Path, provider: ScriptedProvider) -> None:
    combinations(cli, job, "--over", "steps.answer.model=m", "--sample", "10")
    first = set(provider.prompts())
    combinations(cli, job, "--over", "steps.answer.model=m", "--sample", "10", "--seed", "1")
    assert len(first) == 10
    assert set(provider.prompts()) != first


def test_a_failed_row_is_wrong_and_the_exit_code_is_1(cli: Cli, job: Path, provider: ScriptedProvider) -> None:
    usual = provider.script
    provider.script = lambda path, body, count: (
        error_reply(400, "bad") if body["messages"][-1]["content"] == "text 2" else usual(path, body, count)  # type: ignore[return-value]
    )
    code = cli("try", job, "--over", "steps.answer.model=m", "--expect", "answer=label", "--json", "--quiet")
    (result,) = [json.loads(line) for line in cli.out.splitlines()]
    assert (code, result["errors"], result["right"]) == (1, 1, (ROWS / 2 - 1) / ROWS)


def test_all_combinations_share_the_budget(cli: Cli, job: Path, provider: ScriptedProvider) -> None:
    code = cli("try", job, "--over", OVER_MODELS, "--budget-usd", "0.001", "--sample", "40", "--json")
    assert code == 3
    assert "stopped: budget" in cli.err
    (result,) = [json.loads(line) for line in cli.out.splitlines()]
    assert result["number"] == 1
    paid = sum(20e-6 if body["model"] == "m" else 200e-6 for _, body in provider.answered)
    assert paid <= 0.001


def test_a_row_without_a_label_is_not_in_the_sample(cli: Cli, job: Path, workspace: Workspace) -> None:
    workspace.write("rows.csv", "id,text,label,kind\n1,text 1,label 1,odd\n2,text 2,,even\n")
    (result,) = combinations(cli, job, "--over", "steps.answer.model=dear", "--expect", "answer=label")
    assert (result["rows"], result["right"]) == (1, 1.0)


def test_a_label_that_looks_like_a_number_is_compared_as_the_file_has_it(
    cli: Cli, job: Path, workspace: Workspace, provider: ScriptedProvider
) -> None:
    provider.script = lambda path, body, count: chat_reply("1.50", body["model"])
    workspace.write("rows.csv", "id,text,label\n1,text 1,1.50\n2,text 2,2.00\n")
    (result,) = combinations(cli, job, "--over", "steps.answer.model=dear", "--expect", "answer=label")
    assert (result["rows"], result["right"]) == (2, 0.5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--over", "steps.answer.modell=m"), "modell"),
        (("--over", OVER_MODELS, "--expect", "topic=label"), "--expect: no output topic of the job"),
        (
            ("--over", OVER_MODELS, "--expect", "answer=lable"),
            "--expect: no column lable in the source; did you mean label?",
        ),
        (("--over", OVER_MODELS, "--by", "kin"), "--by: no column kin in the source; did you mean kind?"),
        (("--over", OVER_MODELS, "--expect", "answer"), "--expect answer: no output with a column"),
        (("--expect", "answer=label"), "--over: missing"),
        (("--over", OVER_MODELS, "--promote", "3"), "--promote 3: there are 2 combinations; write a lower number"),
        (("--over", "steps.answer.model=m,unpriced", "--budget-usd", "1"), "no price is known for unpriced"),
    ],
)
def test_a_mistake_is_named_before_anything_is_sent(
    cli: Cli, job: Path, provider: ScriptedProvider, flags: tuple[str, ...], message: str
) -> None:
    assert cli("try", job, *flags) == 2
    assert message in cli.err
    assert len(cli.err.splitlines()) == 1
    assert not provider.seen


def test_prompts_from_files_are_compared(cli: Cli, job: Path, workspace: Workspace, provider: ScriptedProvider) -> None:
    for name in ("short", "long"):
        workspace.write(f"prompts/{name}.md", f"{name}: {{{{ text }}}}")
    over = f"steps.answer.messages.0.user=@{workspace.folder}/prompts/*.md"
    found = combinations(cli, job, "--over", over, "--sample", "1")
    assert [one["settings"]["steps.answer.messages.0.user"].rpartition("/")[2] for one in found] == [
        "long.md",
        "short.md",
    ]
    assert sorted(prompt.partition(":")[0] for prompt in provider.prompts()) == ["long", "short"]


def test_promote_writes_the_settings_and_prints_the_change(cli: Cli, job: Path, provider: ScriptedProvider) -> None:
    before = job.read_text()
    assert cli("try", job, "--over", OVER_MODELS, "--promote", "2") == 0
    assert job.read_text() == before.replace("model: m,", "model: dear,")
    assert any(line.startswith("+steps:") and "model: dear" in line for line in cli.out.splitlines())
    assert not provider.seen


def test_the_table_names_unbeaten_combinations_and_the_next_command(cli: Cli, job: Path) -> None:
    cli("try", job, "--over", OVER_MODELS, "--expect", "answer=label", "--sample", "40")
    lines = cli.out.splitlines()
    assert lines[0] == "job: 2 combinations on 40 rows; 80 requests sent, $0.0088 paid"
    assert [line.split()[:3] for line in lines if line.startswith(("1", "2"))] == [
        ["1*", "m", "50.0"],
        ["2*", "dear", "100.0"],
    ]
    assert "--promote 1" in lines[-1]


def test_the_page_has_every_combination(cli: Cli, job: Path, workspace: Workspace) -> None:
    page = workspace.folder / "try.html"
    cli("try", job, "--over", OVER_MODELS, "--expect", "answer=label", "--html", page)
    text = page.read_text()
    for expected in ('data-fact="right.1" value="0.5"', 'data-fact="right.2" value="1.0"', "<circle", "unbeaten"):
        assert expected in text


def test_after_a_kill_the_next_invocation_pays_only_what_is_missing(
    cli: Cli, job: Path, workspace: Workspace, provider: ScriptedProvider
) -> None:
    flags = ("--over", OVER_MODELS, "--expect", "answer=label", "--json", "--quiet")
    job = workspace.job(limits="{concurrency: 2}")
    process = Forked(COMMAND, "try", job, *flags)
    provider.latency = 0.005
    # In the middle of the second combination.
    while len(provider.answered) < ROWS + 10 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.ended()[0] == -signal.SIGKILL
    assert cli("try", job, *flags) == 0
    asked = Counter((body["model"], body["messages"][-1]["content"]) for _, body in provider.seen)
    # Those in flight at the kill are asked again, and nothing else.
    assert len(asked) == 2 * ROWS
    assert asked.total() <= 2 * ROWS + 2
    assert [json.loads(line)["right"] for line in cli.out.splitlines()] == [0.5, 1.0]
    assert cli.run(job)["requests"] == 0


def test_combinations_with_packs_checks_and_rungs_are_judged_by_the_rows_last_answers(
    cli: Cli, job: Path, workspace: Workspace, provider: ScriptedProvider
) -> None:
    usual = provider.script

    def script(path: str, body: Body, count: int) -> Any:
        items = [json.loads(line) for line in body["messages"][-1]["content"].splitlines() if line.startswith('{"id"')]
        if not items:
            return usual(path, body, count)
        texts = [(item["id"], int(item["content"].split()[-1])) for item in items]
        answers = [{"id": identity, "answer": f"label {n % 4}" if n % 2 == 0 else "no idea"} for identity, n in texts]
        return chat_reply(json.dumps({"answers": answers}))

    provider.script = script
    steps = (
        '[{name: answer, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], '
        "check: [\"answer <> 'no idea'\"], repairs: 0, pack: {rows: 10}, "
        "rescue: [{on: [invalid_answer], model: dear}]}]"
    )
    path = workspace.job("full", steps=steps)
    over = ("--over", "steps.answer.pack.rows=1,10", "--expect", "answer=label", "--sample", "20")
    alone, packed = combinations(cli, path, *over)
    assert (alone["right"], alone["errors"]) == (packed["right"], packed["errors"]) == (1.0, 0)
    assert packed["usd_per_1000"] < alone["usd_per_1000"]
    # The rung's requests are the same for both.
    assert Counter(body["model"] for _, body in provider.seen) == {"m": 20 + 2, "dear": 10}


def test_pack_sizes_are_compared_by_separate_answers(
    cli: Cli, job: Path, workspace: Workspace, provider: ScriptedProvider
) -> None:
    def script(path: str, body: Body, count: int) -> Body:
        items = packed_items(body)
        # In packs of more than four, the model mistakes every third row.
        answers = [
            {"id": item["id"], "answer": "mistaken" if len(items) > 4 and place % 3 == 0 else label_of(item["content"])}
            for place, item in enumerate(items)
        ]
        return chat_reply(json.dumps({"answers": answers}) if items else label_of(body["messages"][-1]["content"]))

    provider.script = script
    over = ("--over", "steps.answer.pack.rows=4,20", "--expect", "answer=label", "--sample", str(ROWS))
    small, large = combinations(cli, job, *over)
    assert (small["requests"], large["requests"]) == (10, 2)
    assert (small["right"], large["right"]) == (1.0, pytest.approx(26 / 40))
    assert small["usd_per_1000"] == pytest.approx(5 * large["usd_per_1000"])
    assert len(provider.seen) == 12
    assert combinations(cli, job, *over) == [small, large]
    assert len(provider.seen) == 12
    # Alone means alone, although the ledger has answers to the same requests from a packed run.
    cli.run(job, "--set", "steps.answer.pack.rows=4")
    alone, _ = combinations(cli, job, "--over", "steps.answer.pack=[null, {rows: 4}]", *over[2:])
    assert (alone["requests"], len(provider.seen)) == (ROWS, 12 + 10 + ROWS)
    assert cli("try", job, *over, "--html", str(workspace.folder / "try.html")) == 0
    assert "requests" in cli.out
    assert 'data-fact="requests.2" value="2"' in (workspace.folder / "try.html").read_text()


def label_of(text: str) -> str:
    return f"label {int(text.split()[-1]) % 4}"


def packed_items(body: Body) -> list[Body]:
    """The rows of a packed request; none of a single one."""
    lines = body["messages"][-1]["content"].splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"id"')]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("steps.answer.modell=m", "--over steps.answer.modell: no such key; did you mean model?"),
        ("steps.anser.model=m", "--over steps.anser.model: no such step; did you mean answer?"),
        (
            "steps.answer.output={id: integer}",
            "--over steps.answer.output: the source has a column id as well; give this output another name",
        ),
    ],
    ids=["key", "step", "columns"],
)
def test_a_mistake_is_named_by_its_flag(cli: Cli, job: Path, over: str, message: str) -> None:
    assert cli("try", job, "--over", over) == 2
    assert cli.err == f"{message}\n"
    assert cli("try", job, "--over", over, "--promote", "1") == 2
    assert cli.err.startswith(message.partition(";")[0])
