"""The pages of `rowmill watch`: the figures of the commands, live changes, steering, and workspaces that are broken."""

import http.client
import json
import re
import shutil
import signal
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from connectors.errors import JobError
from pipelines.config.loaded_job import load_job
from pipelines.config.workspace import find_workspace
from pipelines.dashboard.rendering import assets
from pipelines.ledger.ledger_file import VERSION
from pipelines.ledger.ledger_reader import LedgerReader
from pipelines.reporting.row_history import row_history
from pipelines.reporting.status_queries import failed_rows, job_statuses, usage_totals
from tests.behaviour.dashboard.conftest import OpenWatch, Watch
from tests.behaviour.runs.test_control import Terminal, steering
from tests.behaviour.screens.test_report import contrast
from tests.conftest import ScriptedProvider, Workspace, chat_reply
from tests.support.forked import COMMAND, Forked


@pytest.fixture
def job(workspace: Workspace, provider: ScriptedProvider, cli: Any) -> Path:
    """A job of two steps whose run had a retry and two failed rows."""

    def script(path: str, body: dict[str, Any], count: int) -> Any:
        text = str(body["messages"][-1]["content"])
        if count == 3:
            return web.json_response({"error": {"message": "try again"}}, status=500)
        if text in ("text 4", "text 9"):
            return web.json_response({"error": {"message": f"refused: {text}"}}, status=400)
        return None

    provider.script = script
    workspace.csv(30)
    step = '{name: %s, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]%s}'
    steps = f"[{step % ('first', '')}, {step % ('second', ', params: {max_tokens: 9}')}]"
    path = workspace.job(steps=steps)
    assert cli.run(path)["exit_code"] == 1
    return path


def text_of(value: object) -> str:
    """A value as the page's facts have it."""
    return "" if value is None else str(value)


def test_the_pages_show_the_figures_of_status_usage_and_errors(
    job: Path, workspace: Workspace, watch: OpenWatch
) -> None:
    page, home = watch(workspace.folder), find_workspace(workspace.folder)
    (status,) = job_statuses(home)
    overview, facts = page.get("/").facts, page.get("/jobs/job").facts
    names = ("rows_ok", "rows_failed", "requests", "cost_usd")
    assert {name: facts[name] for name in names} == {name: text_of(status[name]) for name in names}
    assert {name: overview[f"{name}.job"] for name in names[1:4:2]} == {n: text_of(status[n]) for n in names[1:4:2]}
    for step in usage_totals(home, "job", "step"):
        name = f"{str(step['step']).partition('/')[2]}.test.m"
        for column in ("requests", "failed", "input_tokens", "output_tokens", "cost_usd"):
            assert facts[f"{column}.{name}"] == text_of(step[column]), (column, name)
    (day,) = usage_totals(home, None, "day")
    of_day = page.get("/runs").facts
    for column in ("requests", "failed", "input_tokens", "output_tokens", "cost_usd"):
        assert of_day[f"{column}.{day['day']}"] == text_of(day[column]), column
    failed = failed_rows(load_job(job), 20)
    assert {name: value for name, value in facts.items() if name.startswith("errors.")} == {
        f"errors.{group['error_class']}.{group['step']}": text_of(group["rows"]) for group in failed.groups
    }
    assert re.search(r"refused: text [49] see the message; correct the row", page.get("/jobs/job").words())


def test_the_page_of_a_row_tells_what_show_prints(job: Path, workspace: Workspace, watch: OpenWatch) -> None:
    page = watch(workspace.folder)
    for key in ("4", "7"):
        history = row_history(load_job(job), key)
        reply = page.get(f"/jobs/job/row?key={key}")
        assert reply.status == 200
        costs = [reply.facts[f"row_cost_usd.{place}"] for place in range(len(history["exchanges"]))]
        assert costs == [text_of(one["row_cost_usd"]) for one in history["exchanges"]]
        words = reply.words()
        assert all(str(value) in words for value in (history["result"] or history["errors"][0]).values() if value)
        assert all(one["request"]["messages"][0]["content"] in words for one in history["steps"] if one["request"])
    assert page.get("/jobs/job/row?key=99").status == 404


def test_rows_that_are_made_of_one_are_linked_by_their_keys(workspace: Workspace, watch: OpenWatch, cli: Any) -> None:
    workspace.write("rows.jsonl", '{"id": "x", "tags": ["red", "blue"]}\n')
    step = '{name: answer, endpoint: chat, provider: test, model: m, messages: [{user: "{{ tag }}"}]}'
    steps = f"[{{name: tag, each: {{list: tags}}}}, {step}]"
    assert cli.run(workspace.job(source="{jsonl: rows.jsonl, key: id}", steps=steps))["exit_code"] == 0
    page = watch(workspace.folder)
    child = "/jobs/job/row?key=%5B%22x%22%2C1%5D"
    assert child in page.get("/jobs/job").addresses
    assert child in page.get("/jobs/job/row?key=x").addresses
    words = page.get(child).words()
    assert "BLUE" in words and "RED" not in words


def test_a_row_is_shown_without_its_source_and_the_keys_of_providers(
    job: Path, workspace: Workspace, watch: OpenWatch
) -> None:
    (workspace.folder / "rows.csv").unlink()
    reply = watch(workspace.folder).get("/jobs/job/row?key=7")
    assert reply.status == 200
    assert "Not everything can be shown" in reply.words() and "TEXT 7" in reply.words()


def test_tables_are_shown_page_by_page_the_newest_rows_first(job: Path, workspace: Workspace, watch: OpenWatch) -> None:
    page = watch(workspace.folder)
    first, second = page.get("/jobs/job/rows").words(), page.get("/jobs/job/rows?start=20").words()
    assert "1 to 20 of 28, the newest first" in first and "21 to 28 of 28" in second
    assert "TEXT 30" in first and "TEXT 1 " in second
    assert "refused: text 9" in page.get("/jobs/job/rows?table=errors").words()


def test_a_job_whose_rows_failed_says_why_and_what_to_do(
    workspace: Workspace, provider: ScriptedProvider, watch: OpenWatch, cli: Any
) -> None:
    workspace.csv(1)
    step = '{name: a, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], '
    step += "output: {x: {type: string}}, check: [{that: \"x = 'no'\"}], repairs: 0}"
    provider.script = lambda path, body, count: chat_reply('{"x": "yes"}')
    assert cli.run(workspace.job(steps=f"[{step}]"))["exit_code"] == 1
    words = watch(workspace.folder).get("/jobs/job").words()
    assert "1 of 1 (100 %), 1 failed" in words
    assert "Why rows failed, most often: the answer fails a check. What to do: correct the prompt" in words


def test_changes_are_sent_as_they_happen(workspace: Workspace, watch: OpenWatch, cli: Any) -> None:
    workspace.csv(3)
    job = workspace.job()
    page = watch(workspace.folder)
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=20)
    connection.request("GET", "/events?page=/", headers={"Cookie": page.cookie})
    stream = connection.getresponse()
    assert stream.headers["Content-Type"] == "text/event-stream"

    def next_event(name: str) -> Any:
        while stream.readline() != b"event: %s\n" % name.encode():
            pass
        return json.loads(stream.readline().removeprefix(b"data: "))

    assert "never ran" in next_event("parts")["jobs"]
    cli.run(job)
    news = [next_event("announce")]
    while news[-1] != "job: done":
        news.append(next_event("announce"))
    assert news in (["job: done"], ["job: running", "job: done"])
    connection.close()


def test_a_run_is_steered_from_its_page(
    workspace: Workspace, provider: ScriptedProvider, watch: OpenWatch, cli: Any
) -> None:
    workspace.csv(60)
    provider.latency = 0.02
    job = workspace.job(limits="{concurrency: 4}", budget="{usd: 1}")
    page = watch(workspace.folder)
    seen: dict[str, Any] = {}
    values = {"limits.concurrency": "2", "budget.usd": "1"}
    before = {"before.limits.concurrency": "4", "before.budget.usd": "1"}

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: len(provider.seen) >= 8)
        paused = page.post("/jobs/job/control", command="pause")
        seen["pause"] = (paused.status, paused.headers["Location"])
        seen["shown"] = page.get("/jobs/job?done=pause").words()
        seen["set"] = page.post("/jobs/job/control", command="set", **values, **before).headers["Location"]
        seen["state"] = terminal.send("state")
        seen["refused"] = page.post("/jobs/job/control", command="set", **{"limits.concurrency": "many"}).words()
        page.post("/jobs/job/control", command="resume")

    def resume(terminal: Terminal) -> None:
        try:
            script(terminal)
        finally:
            terminal.send("resume")

    with steering(workspace.folder / ".rowmill", resume):
        assert cli("run", job, "--json", "--quiet") == 0
    assert seen["pause"] == (303, "/jobs/job?done=pause")
    assert "paused" in seen["shown"] and "Resume" in seen["shown"] and "nothing new is sent" in seen["shown"]
    assert seen["set"] == "/jobs/job?done=set"
    assert (seen["state"]["limits"]["concurrency"], seen["state"]["set"]) == (2, {"limits.concurrency": 2})
    assert "set limits.concurrency" in seen["refused"] and "many" in seen["refused"]
    assert [event["command"] for event in json.loads(cli.out)["control"]] == ["pause", "set", "resume"]


def test_a_workspace_without_jobs_a_broken_job_file_and_a_removed_state_break_no_page(
    workspace: Workspace, watch: OpenWatch, cli: Any
) -> None:
    page = watch(workspace.folder)
    assert "No jobs here yet" in page.get("/").words()
    workspace.csv(2)
    cli.run(workspace.job())
    workspace.write("broken.yaml", "name: broken\nsource: {csv: rows.csv, kye: id}\n")
    assert overview_when(page, "broken").count("broken.yaml:2: source.kye: no such key; did you mean key?") == 1
    assert "The job file cannot be read." in page.get("/jobs/broken").words()
    assert "1 of 1" not in page.get("/jobs/job").words()
    (workspace.folder / "job.yaml").write_text("name: job\nsource: 1\n")
    shutil.rmtree(workspace.folder / ".rowmill")
    assert "never ran" not in overview_when(page, "/job.yaml:2: source")
    paths = {"/runs": 200, "/schedule": 200, "/jobs/job": 200, "/jobs/job/rows": 404}
    assert {path: page.get(path).status for path in paths} == paths


def overview_when(page: Watch, words: str) -> str:
    """The text of the overview as soon as it contains these words: it may be a second old."""
    while words not in (text := page.get("/").words()):
        pass
    return text


def test_a_ledger_is_read_without_being_written_or_created(job: Path, workspace: Workspace, watch: OpenWatch) -> None:
    path = workspace.folder / ".rowmill" / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        before = list(db.iterdump())
    db.close()
    page = watch(workspace.folder)
    for address in ("/", "/runs", "/schedule", "/jobs/job", "/jobs/job/rows", "/jobs/job/row?key=7"):
        assert page.get(address).status == 200
    with sqlite3.connect(path) as db:
        assert list(db.iterdump()) == before
        db.execute(f"pragma user_version = {VERSION - 1}")
    assert "The ledger is of an earlier version" in page.get("/jobs/job/row?key=7").words()
    assert page.get("/jobs/job").facts["rows_ok"] == "28"
    with db:
        db.execute(f"pragma user_version = {VERSION + 1}")
    db.close()
    with pytest.raises(JobError, match="written by a newer Rowmill"):
        LedgerReader(path)
    with pytest.raises(JobError, match="cannot be opened"):
        LedgerReader(path.with_name("none.sqlite"))
    assert not path.with_name("none.sqlite").exists()
    assert "written by a newer Rowmill" in overview_when(page, "newer")


def test_the_command_prints_its_address_ends_with_ctrl_c_and_names_a_taken_port(workspace: Workspace, cli: Any) -> None:
    workspace.csv(1)
    workspace.job()
    started = Forked(COMMAND, "watch", "--port", "0", cwd=workspace.folder)
    line = started.first_line()
    address = re.search(r"at http://127.0.0.1:(\d+)/\?token=(\S+)$", line)
    assert address is not None, line
    connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=20)
    connection.request("GET", "/events", headers={"Cookie": f"rowmill_{address[1]}={address[2]}"})
    stream = connection.getresponse()
    assert stream.readline() == b"event: parts\n"
    # The key of a row may be a long text, which the address of its page has, and then `Referer`.
    long = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=20)
    cookie, key = f"rowmill_{address[1]}={address[2]}", f"/jobs/job/row?key={'x' * 60_000}"
    long.request("GET", key, headers={"Cookie": cookie, "Referer": f"http://127.0.0.1{key}"})
    assert long.getresponse().status == 404
    long.close()
    started.send_signal(signal.SIGINT)
    code, _, err = started.ended()
    assert (code, "Traceback" in err) == (0, False)
    # The stream was ended, not cut.
    assert stream.read().endswith(b"\n\n")
    connection.close()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli("watch", workspace.folder, "--port", str(port)) == 2
    assert cli.err == f"rowmill watch: port {port}: is taken; choose another: rowmill watch --port {port + 1}\n"


def test_text_has_contrast_on_every_ground_in_light_and_dark() -> None:
    _, style = assets()["/watch.css"]
    themes: list[dict[str, str]] = [{}, {}]
    for block in re.findall(r"(@media \(prefers-color-scheme:dark\){)?:root{([^}]*)}", style.decode()):
        themes[bool(block[0])] |= re.findall(r"--([\w-]+):(#\w+)", block[1])
    grounds = {
        "back": ("ink", "soft", "bar", "good", "warn", "bad"),
        "panel": ("ink", "soft", "bar", "good", "warn", "bad"),
        "wash": ("ink", "bar"),
        "washed-bad": ("ink", "bad"),
        "washed-good": ("ink", "good"),
        "washed-warn": ("ink", "warn"),
    }
    for colours in themes:
        for ground, texts in grounds.items():
            for text in texts:
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground, colours)
