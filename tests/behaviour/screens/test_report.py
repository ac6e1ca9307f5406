"""The page that `rowmill report` writes: data escaped, media embedded, nothing loaded from the network."""

import json
import re
import shutil
import sqlite3
import subprocess
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from tests.conftest import chat_reply

DATA = Path(__file__).parents[3] / "jobs" / "data"
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
    """A job whose run has results, errors and a retry."""
    answer = provider.script

    def script(path: str, body: dict[str, Any], count: int) -> Any:
        text = str(body["messages"][-1]["content"])
        if count == 3:
            return web.json_response({"error": {"message": "try again"}}, status=500)
        if "phone" in text:
            error = {"message": "<b>no phones & no 'quotes'</b>", "type": "invalid_request_error"}
            return web.json_response({"error": error}, status=400)
        return answer(path, body, count)

    provider.script = script
    path: Path = reviews.job(source="{csv: rows.csv, key: id}", steps=STEPS, sink="{parquet: out, columns: [text]}")
    assert cli.run(path)["exit_code"] == 1
    return path


def page_of(cli: Any, job: Path) -> str:
    out = job.parent / "page.html"
    assert cli("report", job, "-o", out) == 0, cli.err
    assert cli.out == f"wrote {out}\n"
    return out.read_text()


def test_data_is_escaped_everywhere(job: Path, cli: Any, workspace: Any) -> None:
    page = page_of(cli, job)
    assert "<b>no phones" not in page
    assert "&lt;b&gt;no phones &amp; no &#x27;quotes&#x27;&lt;&#x2f;b&gt;" in page
    assert "<script" not in page


def test_the_page_links_to_no_address(job: Path, cli: Any) -> None:
    page = page_of(cli, job)
    outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page)
    assert outside == []
    assert "default-src 'none'" in page


def test_images_are_shown_as_thumbnails_and_audio_can_be_played(workspace: Any, cli: Any) -> None:
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
    assert "../secret.png" in unescape(page)


@pytest.mark.parametrize(("tier", "saved"), [(None, "0.0036"), ("flex", "0.0018")], ids=["standard", "flex"])
def test_the_share_of_cached_input_and_its_savings_are_shown(
    workspace: Any, cli: Any, provider: Any, tier: str | None, saved: str
) -> None:
    workspace.write(
        "rowmill.yaml",
        f'providers: {{test: {{base_url: "{provider.base_url}"}}}}\n'
        "prices: {m: {input_per_million: 4, cached_input_per_million: 1, output_per_million: 8, tiers: {flex: 0.5}}}\n",
    )

    def script(path: str, body: dict[str, Any], count: int) -> Any:
        reply = chat_reply("yes", "m", 1000, 5)
        reply["usage"]["prompt_tokens_details"] = {"cached_tokens": 600}
        reply["service_tier"] = tier
        return reply

    provider.script = script
    workspace.csv(2)
    job = workspace.job()
    cli.run(job)
    page = page_of(cli, job)
    assert 'data-fact="cached_share" value="0.6">60.0 %' in page
    assert f'data-fact="cache_savings_usd" value="{saved}">${saved}' in page


def test_a_job_without_cached_input_shows_no_cache(workspace: Any, cli: Any) -> None:
    workspace.csv(2)
    job = workspace.job()
    cli.run(job)
    assert "cache" not in page_of(cli, job)


def test_the_first_screen_counts_rows_of_the_source_of_which_each_made_several(
    workspace: Any, cli: Any, provider: Any
) -> None:
    rows = {"done": ["a", "b", "c"], "childless": [], "failed": ["d", "bad", "worse"]}
    workspace.write("rows.jsonl", "".join(json.dumps({"id": key, "tags": rows[key]}) + "\n" for key in rows))

    def script(path: str, body: dict[str, Any], count: int) -> Any:
        if body["messages"][-1]["content"] in ("bad", "worse"):
            return web.json_response({"error": {"message": "refused"}}, status=400)
        return None

    provider.script = script
    step = '{name: answer, endpoint: chat, provider: test, model: m, messages: [{user: "{{ tag }}"}]}'
    steps = f"[{{name: tag, each: {{list: tags}}}}, {step}]"
    job = workspace.job(source="{jsonl: rows.jsonl, key: id}", steps=steps)
    assert cli.run(job)["rows_failed"] == 1
    page = page_of(cli, job)
    assert facts_of(page, "rows", "rows_failed", "rows_share", "results") == ["2", "1", str(2 / 3), "3"]
    assert "of 3 rows are done" in page and "refuses the request of this row, 1 row." in page


def test_a_killed_run_is_not_shown_as_complete(workspace: Any, cli: Any) -> None:
    workspace.csv(1)
    job = workspace.job()
    cli.run(job)
    assert "of 1 row has a result" in page_of(cli, job)
    with sqlite3.connect(workspace.folder / ".rowmill" / "ledger.sqlite") as db:
        db.execute("update runs set ended_at = null, exit_code = null, report = null")
    db.close()
    page = page_of(cli, job)
    assert "of 1 row so far has a result" in page and "The last run was killed: rows may be left." in page
    assert '<strong class="good">' not in page


def facts_of(page: str, *names: str) -> list[str]:
    """The exact values of these figures."""
    return [re.findall(rf'data-fact="{re.escape(name)}" value="([^"]*)"', page)[0] for name in names]


def test_a_job_that_never_ran_has_no_report(workspace: Any, cli: Any) -> None:
    workspace.csv(3)
    assert cli("report", workspace.job()) == 2
    assert "nothing is in" in cli.err


def test_the_report_is_written_to_the_current_folder_under_the_name_of_the_job(
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
    assert '<div class="panels">' in seen.stdout
    events = json.loads(log.read_text())["events"]
    hosts = {urlsplit(event["params"]["url"]).hostname or "" for event in events if "url" in event.get("params", {})}
    # Chromium contacts these at every start, whatever it shows.
    assert {host for host in hosts if host and not host.endswith((".google.com", ".googleapis.com"))} == set()


def test_the_page_works_with_a_screen_reader_and_a_keyboard(job: Path, cli: Any) -> None:
    page = page_of(cli, job)
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert levels.count(2) == len(re.findall("<section", page))
    # No level is left out.
    assert all(level <= before + 1 for before, level in pairwise(levels))
    assert len(re.findall(r"<(?:header|nav|main)[ >]", page)) == 3
    for anchor in re.findall(r'<a href="#([^"]+)"', page):
        assert f'<section id="{anchor}" aria-labelledby="h-{anchor}">' in page
    for table in re.findall(r"<table[ >].*?</table>", page, re.DOTALL):
        heads = re.findall(r"<th [^>]*>", table)
        assert re.match(r"<table[^>]*><caption>", table) and heads
        assert all("scope=" in head for head in heads)
        assert '<th scope="col"></th>' not in table
    # Regions that scroll can be reached by keyboard, and have a label.
    scrolling = re.findall(r'<div class="wide"([^>]*)>', page)
    assert scrolling and all('role="region" tabindex="0" aria-label="' in attributes for attributes in scrolling)
    charts = re.findall(r"<svg[^>]*>", page)
    assert all('role="img" aria-label="' in chart or 'aria-hidden="true"' in chart for chart in charts)
    assert sum('role="img"' in chart for chart in charts) == page.count('<figure class="chart">') > 2


def test_text_has_contrast_in_light_and_dark_mode_and_in_print(job: Path, cli: Any) -> None:
    themes = [dict(re.findall(r"--(\w+):(#\w+)", block)) for block in re.findall(r":root{([^}]*)}", page_of(cli, job))]
    assert len(themes) == 3
    for colours in themes:
        for behind in ("back", "panel"):
            for text in ("ink", "soft", "bar", "good", "warn", "bad"):
                assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind, colours)
            for graphic in ("bar", "failed", "absent"):
                assert contrast(colours[graphic], colours[behind]) >= 3, (graphic, behind, colours)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
