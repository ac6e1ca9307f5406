"""Every number of a report is that of SQL over the tables, after several runs; none is shown that is no fact."""

import math
import re
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


class Told:
    """A page and the tables that it tells of."""

    def __init__(self, page: str, folder: Path, rows_after: dict[str, tuple[int, int]]) -> None:
        self.page = page
        self.folder = folder
        self.rows_after = rows_after
        """By run, the rows of results and of errors when it had ended."""

    @property
    def last(self) -> str:
        """The last run."""
        return list(self.rows_after)[-1]

    def facts(self) -> dict[str, tuple[str, str]]:
        """By name, the exact value and what is shown."""
        found = re.findall(r'<data data-fact="([^"]*)" value="([^"]*)">(.*?)</data>', self.page)
        facts = {unescape(name): (unescape(value), unescape(shown)) for name, value, shown in found}
        assert len(facts) == len(found)
        return facts

    def bars(self, what: str) -> list[float]:
        """The heights of the columns of the chart with this unit, as far as four digits tell them."""
        told = re.findall(rf"<title>[^<]*: ([0-9.,e+]+) {what}</title>", self.page)
        return [float(text.replace(",", "")) for text in told]

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        with duckdb.connect() as db:
            for table in TABLES:
                db.execute(f"create view {table} as from '{self.folder}/out/{table}/*.parquet'")
            return db.execute(query).fetchall()

    def one(self, query: str) -> Any:
        ((value,),) = self.sql(query)
        return value


@pytest.fixture
def told(reviews: Any, provider: Any, cli: Any) -> Told:
    """A job after three runs: some rows, one of them changed, more rows; some fail for good and some at first."""
    usual = provider.script

    def script(path: str, body: dict[str, Any], count: int) -> Any:
        if count in (50, 61):
            return web.json_response({"error": {"message": "try again"}}, status=500 + 3 * (count == 61))
        if "phone" in str(body["messages"][-1]["content"]):
            return web.json_response({"error": {"message": "no phones", "type": "invalid"}}, status=400)
        return usual(path, body, count)

    provider.script = script
    sink = "{parquet: out, columns: [weight, day]}"
    job: Path = reviews.job(source="{csv: rows.csv, key: id}", steps=STEPS, sink=sink, retry="{longest_wait: 0.1}")
    rows_after: dict[str, tuple[int, int]] = {}
    for text in (rows_of(20), rows_of(20).replace("number 5 ", "number five "), rows_of(60)):
        reviews.write("rows.csv", text)
        run = cli.run(job)
        assert run["exit_code"] == 1
        held = [f"(select count(*) from '{reviews.folder}/out/{table}/*.parquet')" for table in ("results", "errors")]
        rows_after[run["run_id"]] = duckdb.sql(f"select {', '.join(held)}").fetchall()[0]
    assert cli("report", job, "-o", job.parent / "page.html") == 0, cli.err
    return Told((job.parent / "page.html").read_text(), job.parent, rows_after)


TOTALS = {
    "rows": "count(*) from results",
    "rows_failed": "count(*) from errors",
    "requests": "count(*) from usage",
    "requests_failed": "count(*) from usage where error_class is not null",
    "input_tokens": "sum(input_tokens) from usage",
    "output_tokens": "sum(output_tokens) from usage",
    "cost_usd": "sum(cost_usd) from usage",
    "cost_usd_per_1000": "1000 * sum(cost_usd) / (select count(*) from results) from usage",
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


def expected(told: Told) -> dict[str, Any]:
    """Every fact, by SQL of its own."""
    found = {name: told.one(f"select {sql}") for name, sql in TOTALS.items()}
    for step, provider, model in told.sql("select distinct step, provider, model from usage"):
        for name, sql in OF_STEPS.items():
            found[f"{name}.{step}.{provider}.{model}"] = told.one(f"select {sql} from usage where step = '{step}'")
    for kind, step, count in told.sql("select error_class, step, count(*) from errors group by all"):
        found[f"errors.{kind}.{step}"] = count
    for kind, status, count in told.sql(
        "select error_class, http_status, count(*) from usage where error_class is not null group by all"
    ):
        found[f"exchange_errors.{kind}.{status}"] = count
    for run, count, usd in told.sql("select run_id, count(*), sum(cost_usd) from usage group by 1"):
        ok, failed = told.rows_after[run]
        found |= {f"runs.{run}.requests": count, f"runs.{run}.cost_usd": usd}
        found |= {f"runs.{run}.rows_ok": ok, f"runs.{run}.rows_failed": failed}
    return found | of_columns(told) | of_last_run(told)


def of_columns(told: Told) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in COLUMNS:
        found[f"nulls.{name}"] = told.one(f"select count(*) from results where {name} is null")
        if name == "tags":
            found["least.tags"], found["most.tags"] = told.sql("select min(len(tags)), max(len(tags)) from results")[0]
            found["distinct.tags"] = None
            continue
        found[f"distinct.{name}"] = len(told.sql(f"select distinct {name} from results where {name} is not null"))
        measured = f"length({name})" if name in ("sentiment", "after") else name
        ends = told.sql(f"select {measured} from results where {name} is not null order by 1")
        found[f"least.{name}"] = ends[0][0]
        if ends[-1] != ends[0]:
            found[f"most.{name}"] = ends[-1][0]
        if name in ("id", "weight", "rank"):
            found[f"mean.{name}"] = sum(value for (value,) in ends) / len(ends)
        frequent = told.sql(
            f"select {name}::varchar, count(*) from results where {name} is not null group by 1 having count(*) > 1 "
            "order by 2 desc, 1 limit 4"
        )
        found |= {f"top.{name}.{value}": count for value, count in frequent}
    return found


def of_last_run(told: Told) -> dict[str, Any]:
    last = told.last
    begin, end, count, waited = told.sql(
        "select min(epoch_ms(started_at)), max(epoch_ms(started_at) + latency_ms), count(*), sum(latency_ms) "
        f"from usage where run_id = '{last}'"
    )[0]
    return {
        "run.requests": count,
        "run.seconds": pytest.approx((end - begin) / 1000, abs=0.002),
        "run.requests_per_second": pytest.approx(1000 * count / (end - begin), rel=0.2),
        "run.in_flight": pytest.approx(waited / (end - begin), rel=0.2),
    }


def test_every_number_is_that_of_sql_over_the_tables_after_several_runs(told: Told) -> None:
    facts = {name: value for name, (value, _) in told.facts().items() if not name.startswith("times.")}
    wanted = expected(told)
    assert set(facts) == set(wanted)
    other = {name: (facts[name], value) for name, value in wanted.items() if not _same(facts[name], value)}
    assert other == {}
    assert len(told.rows_after) == 3
    assert wanted["rows_failed"] > 0 < wanted["requests_failed"]
    check_charts(told)
    check_times(told)


def check_charts(told: Told) -> None:
    """The columns of both charts."""
    last = told.last
    ended = "epoch_us(started_at) / 1e6 + latency_ms / 1e3"
    moments = [moment for (moment,) in told.sql(f"select {ended} from usage where run_id = '{last}' order by 1")]
    begin = told.one(f"select min(epoch_us(started_at)) / 1e6 from usage where run_id = '{last}'")
    seconds = max(moments[-1] - begin, 0.001)
    bucket = max(seconds / 60, min(0.5, seconds / 12))
    counts = [0] * (int(seconds / bucket) + 1)
    for moment in moments:
        counts[min(int((moment - begin) / bucket), len(counts) - 1)] += 1
    rates = told.bars("requests a second")
    assert rates == [pytest.approx(count / bucket, rel=0.001) for count in counts]
    assert sum(rates) * bucket == pytest.approx(len(moments), rel=0.01)
    powers = [int(math.log2(max(latency, 1))) for (latency,) in told.sql("select latency_ms from usage")]
    assert told.bars("requests") == [powers.count(power) for power in range(min(powers), max(powers) + 1)]


def check_times(told: Told) -> None:
    """Where the time went adds up, and its network is the last run's latency."""
    facts = {name[6:]: float(value) for name, (value, _) in told.facts().items() if name.startswith("times.")}
    waited = told.one(f"select sum(latency_ms) / 1000 from usage where run_id = '{told.last}'")
    assert facts["network"] == pytest.approx(waited, abs=0.0002)
    shares = [
        int(text) for text in re.findall(r'data-fact="times\.\w+" value="[^"]*">(\d+) %</data></span></td>', told.page)
    ]
    assert len(shares) == len(SENDER_STATES)
    assert sum(shares) == pytest.approx(100, abs=4)


def test_what_is_shown_is_the_exact_value_rounded_and_nothing_else_is_a_number(told: Told) -> None:
    compared = 0
    for name, (value, shown) in told.facts().items():
        match = re.fullmatch(r"\$?(-?[0-9.,]+)( s| ms)?", shown)
        if match is None or not value:
            continue
        of_ms = 1000 if match[2] == " s" and name[:3] in ("p50", "p95", "p99") else 1
        read = float(match[1].replace(",", "")) * of_ms
        assert read == pytest.approx(float(value), rel=0.06, abs=0.6 if match[2] else 1e-6), (name, value, shown)
        compared += 1
    assert compared > 60
    cells = re.findall(r"<td class=n>(.*?)</td>", told.page) + re.findall(r'<dl class="figures">.*?</dl>', told.page)
    assert len(cells) > 50
    for cell in cells:
        rest = re.sub(r"<data .*?</data>|<dt>.*?</dt>|<[^>]*>", "", cell)
        # Durations of what is told in full elsewhere, and a status.
        assert re.fullmatch(r"[^0-9]*|500|503|400|[\d.]+ s", rest), cell


def _same(told: str, wanted: Any) -> bool:
    """Whether the page's exact value is SQL's; nothing for None."""
    if wanted is None or isinstance(wanted, date):
        return told == ("" if wanted is None else str(wanted))
    return bool(float(told) == (pytest.approx(wanted, abs=1e-12) if isinstance(wanted, float) else wanted))
