"""The page that `rowmill report` writes: every figure is that of SQL over the tables, and nothing is fetched."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pytest
from aiohttp import web

DATA = Path(__file__).parents[2] / "jobs" / "data"
CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)

STEPS = """
  - {name: label, endpoint: chat, provider: test, model: gpt-4o-mini, messages: [{user: "{{ text }}"}],
     params: {max_tokens: 60}, output: {sentiment: {type: string, enum: [positive, negative]}, rank: {type: integer}}}
  - {name: after, endpoint: chat, provider: test, model: gpt-4o-mini, messages: [{user: "{{ text }}"}],
     params: {max_tokens: 60}, when: sentiment = 'negative'}
"""


@pytest.fixture
def job(reviews: Any, provider: Any, cli: Any) -> Path:
    """A job whose run has left results, errors and a request that was tried again."""
    told = provider.script

    def script(path: str, body: dict[str, Any], count: int) -> Any:
        text = str(body["messages"][-1]["content"])
        if count == 3:
            return web.json_response({"error": {"message": "try again"}}, status=500)
        if "phone" in text:
            error = {"message": "<b>no phones & no 'quotes'</b>", "type": "invalid_request_error"}
            return web.json_response({"error": error}, status=400)
        return told(path, body, count)

    provider.script = script
    path: Path = reviews.job(source="{csv: rows.csv, key: id}", steps=STEPS, sink="{parquet: out, columns: [text]}")
    assert cli.run(path)["exit_code"] == 1
    return path


def page_of(cli: Any, job: Path) -> str:
    out = job.parent / "page.html"
    assert cli("report", job, "-o", out) == 0, cli.err
    assert cli.out == f"wrote {out}\n"
    return out.read_text()


def facts_of(page: str) -> dict[str, str]:
    return {unescape(name): unescape(value) for name, value in re.findall(r'data-fact="([^"]*)" value="([^"]*)"', page)}


def test_every_figure_is_that_of_sql_over_the_tables(job: Path, cli: Any) -> None:
    facts = facts_of(page_of(cli, job))
    out = job.parent / "out"
    with duckdb.connect() as db:
        for name in ("results", "usage", "errors"):
            db.execute(f"create view {name} as from '{out}/{name}/*.parquet'")
        expected = {
            "rows": "select count(*) from results",
            "rows_failed": "select count(*) from errors",
            "requests": "select count(*) from usage",
            "requests_failed": "select count(*) from usage where error_class is not null",
            "input_tokens": "select sum(input_tokens) from usage",
            "output_tokens": "select sum(output_tokens) from usage",
            "cost_usd": "select sum(cost_usd) from usage",
            "cost_usd_per_1000": "select 1000 * (select sum(cost_usd) from usage) / (select count(*) from results)",
            "p50": "select quantile_cont(latency_ms, 0.5) from usage",
            "p95": "select quantile_cont(latency_ms, 0.95) from usage",
            "errors.bad_request": "select count(*) from errors where error_class = 'bad_request'",
        }
        for step in ("label", "after"):
            expected[f"requests.{step}"] = f"select count(*) from usage where step = '{step}'"
            expected[f"failed.{step}"] = f"select count(error_class) from usage where step = '{step}'"
            expected[f"input_tokens.{step}"] = f"select sum(input_tokens) from usage where step = '{step}'"
        for column in ("id", "text", "sentiment", "rank", "after"):
            expected[f"nulls.{column}"] = f"select count(*) - count({column}) from results"
            expected[f"distinct.{column}"] = f"select count(distinct {column}) from results"
        found = {name: db.execute(sql).fetchall()[0][0] for name, sql in expected.items()}
    assert set(facts) == set(expected)
    assert {name: float(value) for name, value in facts.items()} == {
        name: pytest.approx(value, abs=1e-12) for name, value in found.items()
    }
    assert found["rows_failed"] > 0 < found["errors.bad_request"]


def test_data_is_escaped_wherever_it_stands(job: Path, cli: Any, workspace: Any) -> None:
    page = page_of(cli, job)
    assert "<b>no phones" not in page
    assert "&lt;b&gt;no phones &amp; no &#x27;quotes&#x27;&lt;/b&gt;" in page
    assert "<script" not in page


def test_the_page_names_no_address(job: Path, cli: Any) -> None:
    page = page_of(cli, job)
    outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page)
    assert outside == []
    assert "default-src 'none'" in page


def test_pictures_are_shown_small_and_sounds_can_be_played(workspace: Any, cli: Any) -> None:
    for name in ("images/coffee.png", "audio/jfk.flac"):
        (workspace.folder / Path(name).name).write_bytes((DATA / name).read_bytes())
    workspace.write("rows.csv", "id,text,picture,sound\n1,a,coffee.png,jfk.flac\n2,b,../secret.png,missing.mp3\n")
    job = workspace.job(sink="{parquet: out, columns: [picture, sound]}")
    cli.run(job)
    page = page_of(cli, job)
    assert (
        len(re.findall(r'<img alt="picture: coffee.png" width="\d+" height="\d+"[^>]* src="data:image/webp', page)) == 1
    )
    assert (
        len(re.findall(r'<audio controls[^>]* aria-label="sound of sound: jfk.flac" src="data:audio/flac', page)) == 1
    )
    assert "../secret.png" in page


def test_a_job_that_never_ran_has_no_report(workspace: Any, cli: Any) -> None:
    workspace.csv(3)
    assert cli("report", workspace.job()) == 2
    assert "nothing is in" in cli.err


def test_the_report_goes_into_the_current_folder_under_the_jobs_name(
    workspace: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(3)
    job = workspace.job()
    cli.run(job)
    monkeypatch.chdir(workspace.folder)
    assert cli("report", job) == 0
    assert (workspace.folder / "job-report.html").read_text().startswith("<!doctype html>")


@pytest.mark.browser
def test_a_browser_shows_the_page_without_an_error_or_a_request(job: Path, cli: Any, tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    page_of(cli, job)
    log = tmp_path / "net.json"
    flags = [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom"]
    seen = subprocess.run(
        [*CHROMIUM, *flags, f"file://{job.parent / 'page.html'}"], capture_output=True, text=True, check=True
    )
    assert "CONSOLE" not in seen.stderr
    assert '<dl class="figures">' in seen.stdout
    events = json.loads(log.read_text())["events"]
    hosts = {urlsplit(event["params"]["url"]).hostname or "" for event in events if "url" in event.get("params", {})}
    # What the browser asks its maker for at every start, whatever it shows.
    assert {host for host in hosts if host and not host.endswith((".google.com", ".googleapis.com"))} == set()
