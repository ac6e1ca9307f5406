"""Every number of the HTML report equals SQL over the tables after several runs, and no other number is shown."""

import math
import re
import sqlite3
from contextlib import closing
from datetime import date
from html import unescape
from pathlib import Path
from typing import Any

import duckdb
import pytest
from aiohttp import web

from pipelines.monitoring.bottleneck import SENDER_STATES

HEAD = "id,text,weight,day\n"
STEPS = """
  - {name: label, endpoint: chat, provider: test, model: gpt-4o-mini, messages: [{user: "{{ text }}"}],
     params: {max_tokens: 60}, output: {sentiment: {type: string, enum: [positive, negative]}, rank: {type: integer},
     tags: {type: array, items: {type: string}}}}
  - {name: after, endpoint: chat, provider: test, model: gpt-3.5-turbo, messages: [{user: "{{ text }}!"}],
     params: {max_tokens: 60}, when: sentiment = 'negative'}
"""
TABLES = ("results", "usage", "errors")


def rows_of(count: int) -> str:
    return HEAD + "".join(
        f"{n},text number {n} {'phone' if n % 11 == 3 else ''},{'' if n % 7 == 0 else n / 2},2026-01-{n % 28 + 1:02d}\n"
        for n in range(1, count + 1)
    )


class ReportPage:
    """A report page and the tables that it describes."""

    def __init__(self, html: str, folder: Path, rows_after: dict[str, tuple[int, int]]) -> None:
        self.html = html
        self.folder = folder
        self.rows_after = rows_after
        """By run, the rows of results and of errors at its end."""

    @property
    def last(self) -> str:
        """The last run."""
        return list(self.rows_after)[-1]

    def facts(self) -> dict[str, tuple[str, str]]:
        """By name, the exact value and the text on the page."""
        found = re.findall(r'<data data-fact="([^"]*)" value="([^"]*)">(.*?)</data>', self.html)
        facts = {unescape(name): (unescape(value), unescape(shown)) for name, value, shown in found}
        assert len(facts) == len(found)
        return facts

    def bars(self, what: str) -> list[float]:
        """The heights of the columns of the chart with this unit, to four digits."""
        unit = what.replace("requests", "requests?", 1)
        heights = re.findall(rf"<title>[^<]*: ([0-9.,e+-]+) {unit}</title>", self.html)
        return [float(text.replace(",", "")) for text in heights]

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        with duckdb.connect() as db:
            for table in TABLES:
                db.execute(f"create view {table} as from '{self.folder}/out/{table}/*.parquet'")
            return db.execute(query).fetchall()

    def one(self, query: str) -> Any:
        ((value,),) = self.sql(query)
        return value


@pytest.fixture
def page(reviews: Any, provider: Any, cli: Any) -> ReportPage:
    """The report of a job after three runs: 20 rows, one of them changed, 60 rows; some fail, some at first only."""
    answer = provider.script

    def script(path: str, body: dict[str, Any], count: int) -> Any:
        if count in (50, 61):
            return web.json_response({"error": {"message": "try again"}}, status=500 + 3 * (count == 61))
        if "phone" in str(body["messages"][-1]["content"]):
            return web.json_response({"error": {"message": "no phones", "type": "invalid"}}, status=400)
        return answer(path, body, count)

    provider.script = script
    sink = "{parquet: out, columns: [weight, day]}"
    job: Path = reviews.job(source="{csv: rows.csv, key: id}", steps=STEPS, sink=sink, retry="{longest_wait: 0.1}")
    rows_after: dict[str, tuple[int, int]] = {}
    for text in (rows_of(20), rows_of(20).replace("number 5 ", "number five "), rows_of(60)):
        reviews.write("rows.csv", text)
        run = cli.run(job)
        assert run["exit_code"] == 1
        counts = [f"(select count(*) from '{reviews.folder}/out/{table}/*.parquet')" for table in ("results", "errors")]
        rows_after[run["run_id"]] = duckdb.sql(f"select {', '.join(counts)}").fetchall()[0]
    assert cli("report", job, "-o", job.parent / "page.html") == 0, cli.err
    return ReportPage((job.parent / "page.html").read_text(), job.parent, rows_after)


TOTALS = {
    "rows": "count(*) from results",
    "rows_share": "(select count(*) from results) / ((select count(*) from results) + (select count(*) from errors))",
    "rows_failed": "count(*) from errors",
    "requests": "count(*) from usage",
    "requests_failed": "count(*) from usage where error_class is not null",
    "input_tokens": "sum(input_tokens) from usage",
    "output_tokens": "sum(output_tokens) from usage",
    "cost_usd": "sum(cost_usd) from usage",
    "cost_usd_per_row": "sum(cost_usd) / (select count(*) from results) from usage",
    "cost_usd_per_1000": "1000 * sum(cost_usd) / (select count(*) from results) from usage",
    "cost_usd_per_day": "sum(cost_usd) / count(distinct date_trunc('day', started_at)) from usage",
    "p50": "quantile_cont(latency_ms, 0.5) from usage",
    "p95": "quantile_cont(latency_ms, 0.95) from usage",
}
OF_STEPS = {
    "requests": "count(*)",
    "failed": "count(error_class)",
    "input_tokens": "coalesce(sum(input_tokens), 0)",
    "output_tokens": "coalesce(sum(output_tokens), 0)",
    "cost_usd": "sum(cost_usd)",
    "p50": "quantile_cont(latency_ms, 0.5)",
    "p95": "quantile_cont(latency_ms, 0.95)",
    "p99": "quantile_cont(latency_ms, 0.99)",
}
COLUMNS = ("id", "weight", "day", "sentiment", "rank", "tags", "after")


def expected(page: ReportPage) -> dict[str, Any]:
    """Every fact, each by a separate SQL query."""
    found = {name: page.one(f"select {sql}") for name, sql in TOTALS.items()}
    for step, provider, model in page.sql("select distinct step, provider, model from usage"):
        for name, sql in OF_STEPS.items():
            found[f"{name}.{step}.{provider}.{model}"] = page.one(f"select {sql} from usage where step = '{step}'")
    for value, count in page.sql("select sentiment, count(*) from results group by 1"):
        found[f"values.sentiment.{value}"] = count
    for value, count in page.sql("select unnest(tags), count(*) from results group by 1"):
        found[f"values.tags.elements.{value}"] = count
    for kind, step, count in page.sql("select error_class, step, count(*) from errors group by all"):
        found[f"errors.{kind}.{step}"] = count
    for kind, status, count in page.sql(
        "select error_class, http_status, count(*) from usage where error_class is not null group by all"
    ):
        found[f"exchange_errors.{kind}.{status}"] = count
    for run, count, usd in page.sql("select run_id, count(*), sum(cost_usd) from usage group by 1"):
        ok, failed = page.rows_after[run]
        found |= {f"runs.{run}.requests": count, f"runs.{run}.cost_usd": usd}
        found |= {f"runs.{run}.rows_ok": ok, f"runs.{run}.rows_failed": failed}
    return found | of_columns(page) | of_last_run(page)


def of_columns(page: ReportPage) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in COLUMNS:
        found[f"nulls.{name}"] = page.one(f"select count(*) from results where {name} is null")
        if name == "tags":
            found["least.tags"], found["most.tags"] = page.sql("select min(len(tags)), max(len(tags)) from results")[0]
            found["distinct.tags"] = None
            continue
        found[f"distinct.{name}"] = len(page.sql(f"select distinct {name} from results where {name} is not null"))
        measured = f"length({name})" if name in ("sentiment", "after") else name
        ends = page.sql(f"select {measured} from results where {name} is not null order by 1")
        found[f"least.{name}"] = ends[0][0]
        if ends[-1] != ends[0]:
            found[f"most.{name}"] = ends[-1][0]
        if name in ("id", "weight", "rank"):
            found[f"mean.{name}"] = sum(value for (value,) in ends) / len(ends)
        frequent = page.sql(
            f"select {name}::varchar, count(*) from results where {name} is not null group by 1 having count(*) > 1 "
            "order by 2 desc, 1 limit 4"
        )
        found |= {f"top.{name}.{value}": count for value, count in frequent}
    return found


def of_last_run(page: ReportPage) -> dict[str, Any]:
    last = page.last
    begin, end, count, waited = page.sql(
        "select min(epoch_ms(started_at)), max(epoch_ms(started_at) + latency_ms), count(*), sum(latency_ms) "
        f"from usage where run_id = '{last}'"
    )[0]
    ledger = page.folder / ".rowmill" / "ledger.sqlite"
    with closing(sqlite3.connect(ledger)) as db:
        ((took,),) = db.execute("select (ended_at - started_at) / 1e6 from runs where run_id = ?", (last,)).fetchall()
    rows = page.one(
        f"select (select count(*) from results where _run_id = '{last}') + "
        f"(select count(*) from errors where run_id = '{last}')"
    )
    return {
        "run.time": took,
        "run.rows_per_second": rows / took,
        "run.requests": count,
        "run.seconds": pytest.approx((end - begin) / 1000, abs=0.002),
        "run.requests_per_second": pytest.approx(1000 * count / (end - begin), rel=0.2),
        "run.in_flight": pytest.approx(waited / (end - begin), rel=0.2),
    }


def test_every_number_equals_sql_over_the_tables_after_several_runs(page: ReportPage) -> None:
    facts = {name: value for name, (value, _) in page.facts().items() if not name.startswith("times.")}
    wanted = expected(page)
    assert set(facts) == set(wanted)
    other = {name: (facts[name], value) for name, value in wanted.items() if not _is_same(facts[name], value)}
    assert other == {}
    assert len(page.rows_after) == 3
    assert wanted["rows_failed"] > 0 < wanted["requests_failed"]
    check_charts(page)
    check_times(page)


def check_charts(page: ReportPage) -> None:
    """Compare the columns of both charts."""
    last = page.last
    ended = "epoch_us(started_at) / 1e6 + latency_ms / 1e3"
    moments = page.sql(f"select {ended}, error_class is not null from usage where run_id = '{last}' order by 1")
    begin = page.one(f"select min(epoch_us(started_at)) / 1e6 from usage where run_id = '{last}'")
    seconds = max(moments[-1][0] - begin, 0.001)
    bucket = max(seconds / 60, min(0.5, seconds / 12))
    for is_failed, outcome in ((False, "answered"), (True, "failed")):
        counts = [0] * (int(seconds / bucket) + 1)
        for moment, has_error in moments:
            counts[min(int((moment - begin) / bucket), len(counts) - 1)] += has_error == is_failed
        # An empty bar is left out.
        rates = page.bars(f"requests a second, {outcome}")
        assert rates == [pytest.approx(count / bucket, rel=0.001) for count in counts if count]
        assert sum(rates) * bucket == pytest.approx(sum(has_error == is_failed for _, has_error in moments), rel=0.01)
        powers = [
            int(math.log2(max(latency, 1)))
            for latency, has_error in page.sql("select latency_ms, error_class is not null from usage")
            if has_error == is_failed
        ]
        drawn = [powers.count(power) for power in range(min(powers), max(powers) + 1)]
        assert page.bars(f"requests, {outcome}") == [count for count in drawn if count]


def check_times(page: ReportPage) -> None:
    """The time breakdown adds up, and its network time is the latency of the last run."""
    facts = {name[6:]: float(value) for name, (value, _) in page.facts().items() if name.startswith("times.")}
    waited = page.one(f"select sum(latency_ms) / 1000 from usage where run_id = '{page.last}'")
    assert facts["network"] == pytest.approx(waited, abs=0.0002)
    shares = [
        int(text) for text in re.findall(r'data-fact="times\.\w+" value="[^"]*">(\d+) %</data></span></td>', page.html)
    ]
    assert len(shares) == len(SENDER_STATES)
    assert sum(shares) == pytest.approx(100, abs=4)


def test_numbers_are_exact_values_rounded_and_nothing_else_is_a_number(page: ReportPage) -> None:
    compared = 0
    for name, (value, shown) in page.facts().items():
        match = re.fullmatch(r"\$?(-?[0-9.,]+)( s| ms)?", shown)
        if match is None or not value:
            continue
        of_ms = 1000 if match[2] == " s" and name[:3] in ("p50", "p95", "p99") else 1
        read = float(match[1].replace(",", "")) * of_ms
        assert read == pytest.approx(float(value), rel=0.06, abs=0.6 if match[2] else 1e-6), (name, value, shown)
        compared += 1
    assert compared > 60
    cells = re.findall(r"<td class=n>(.*?)</td>", page.html) + re.findall(r'<dl class="figures">.*?</dl>', page.html)
    assert len(cells) > 50
    for cell in cells:
        rest = re.sub(r"<data .*?</data>|<dt>.*?</dt>|<[^>]*>", "", cell)
        # Durations of facts given exactly elsewhere, and an HTTP status.
        assert re.fullmatch(r"[^0-9]*|500|503|400|[\d.]+ s", rest), cell


def _is_same(shown: str, wanted: Any) -> bool:
    """Whether the exact value on the page is that of SQL; empty for None."""
    if wanted is None or isinstance(wanted, date):
        return shown == ("" if wanted is None else str(wanted))
    return bool(float(shown) == (pytest.approx(wanted, abs=1e-12) if isinstance(wanted, float) else wanted))
