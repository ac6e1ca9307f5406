"""A simulated week: seven nightly runs over a source that grows and changes, with what each sent, reused and paid.

    python -m tests.behaviour.scheduling.week

prints the week as a table. The embedded provider runs as a server; this module counts and prices its answers
independently. Every run is a real `rowmill run` in a separate process, whose clock is the right number of days ahead.
"""

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import psutil  # type: ignore[import-untyped, unused-ignore]

from pipelines.cli import exit_code_of
from tests.behaviour.scheduling.provider_with_batches import Bill, BillingApi, Body
from tests.support.forked import COMMAND, Forked
from tests.support.shared_database import shared_cursor

REVIEWS = Path(__file__).parents[3] / "jobs" / "data" / "reviews.csv"
FIRST_RUN_AT = datetime(2027, 3, 22, 1, 30, tzinfo=UTC)
"""Half past two in Berlin; the clock changes before the last of the seven runs."""
CONCURRENCY = 16
KILLED_AFTER = 30
"""Answers that reach the run before it is killed."""
PER_DAY = 0.008
"""Daily budget in US dollars: enough for each day, not for the week."""

LABEL_MODELS = ("rowmill-sentiment", "text-embedding-3-small")
"""Models of the first job."""
WORKSPACE = """
providers:
  billing-api: {{base_url: "{base_url}"}}
prices:
  rowmill-sentiment: {{input_per_million: 0.15, output_per_million: 0.6}}
  gpt-4o-mini: {{input_per_million: 0.15, output_per_million: 0.6}}
  text-embedding-3-small: {{input_per_million: 0.02}}
budget: {{usd_per_day: {per_day}}}
time_zone: Europe/Berlin
"""
LABELS = """
name: labels
source: {{duckdb: reviews.duckdb, table: reviews, key: id}}
steps:
  - name: label
    endpoint: chat
    provider: billing-api
    model: rowmill-sentiment
    messages: [{{system: "{prompt}"}}, {{user: "{{{{ text }}}}"}}]
    params: {{max_tokens: 20}}
    output:
      sentiment: {{type: string, enum: [{labels}]}}
  - name: vector
    endpoint: embeddings
    provider: billing-api
    model: text-embedding-3-small
    input: "{{{{ text }}}}"
    dimensions: 32
    when: sentiment = 'negative'
sink: {{parquet: out/labels, columns: [text], write: merge, deleted: remove}}
limits: {{concurrency: {concurrency}}}
retry: {{attempts: 3, longest_wait: 0.1, longest_hold: 1}}
delivery: {delivery}
on_finish: {{command: sh keep-report.sh}}
audits:
  - {{name: a vector for each complaint and for no other, sql: select * from results
      where (sentiment = 'negative') <> (vector is not null)}}
  - {{name: drift, drift: {{enum_share: 0.2, null_share: 0.2, cost_per_row: 0.7}}}}
"""
REPLIES = """
name: replies
source: {job: labels, key: id, where: sentiment = 'negative'}
steps:
  - name: reply
    endpoint: chat
    provider: billing-api
    model: gpt-4o-mini
    messages: [{system: Answer the complaint in a sentence.}, {user: "{{ text }}"}]
    params: {max_tokens: 30}
sink: {duckdb: out/replies.duckdb, table: replies, columns: [text], write: merge, deleted: remove}
limits: {concurrency: 16}
retry: {attempts: 3, longest_wait: 0.1, longest_hold: 1}
"""
CLOCK_HOOK = """
import os, sys
if any(word.endswith(".yaml") for word in sys.orig_argv):
    import datetime, time
    import pipelines.execution.invocation
    REAL, AHEAD = datetime.datetime, datetime.timedelta(microseconds=int(os.environ["WEEK_AHEAD_US"]))
    class AnyTime(type):
        def __instancecheck__(cls, value):
            return isinstance(value, REAL)
    class Later(REAL, metaclass=AnyTime):
        @classmethod
        def now(cls, tz=None):
            return REAL.now(tz) + AHEAD
    pauses = {"FIRST_POLL": 0.05, "LONGEST_POLL": 0.1, "QUIET": 0.2}
    for module in [module for name, module in sys.modules.items() if name.startswith("pipelines.")]:
        if getattr(module, "datetime", None) is REAL:
            module.datetime = Later
        for name in pauses.keys() & vars(module).keys():
            setattr(module, name, pauses[name])
    clock = time.time_ns
    time.time_ns = lambda: clock() + AHEAD // datetime.timedelta(microseconds=1) * 1000
"""
"""Begins a run: its clock is ahead, and it polls batches often."""


@dataclass(frozen=True, slots=True)
class Line:
    """Result of one invocation over the folder."""

    day: int
    event: str
    rows: int
    plan: Body
    """Output of `rowmill plan` for the first job."""
    deleted: int
    sent: int
    """Rows that needed a request, by the server's count; a line of a batch is one as well."""
    bills: Mapping[str, Bill]
    """Answers of the server to both jobs, by request id."""
    killed: bool
    labels: Body
    """Report of the first job; empty if it was killed."""
    replies: Body
    """Report of the job that reads its results; empty if it was not selected."""
    exit_code: int
    """Of the whole folder."""

    @property
    def pico(self) -> int:
        """Pico-dollars, by the server's own bills."""
        return sum(bill.pico for bill in self.bills.values())

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        counts = (self.rows, self.plan["new"], self.plan["changed"], self.deleted, self.sent)
        cells = [f"{count:,}" for count in counts]
        cells += [f"{self.labels[name]:,}" if self.labels else "" for name in ("rows_reused", "rows_failed")]
        code = "killed" if self.killed else str(self.labels["exit_code"])
        reader = "" if not self.replies else self.replies["requests"]
        return (
            str(self.day), self.event, *cells, f"{self.pico / 1e12:.6f}", code,
            "not run" if reader is None else str(reader),
        )  # fmt: skip


HEADS = (
    "night",
    "what",
    "rows",
    "new",
    "changed",
    "deleted",
    "sent",
    "reused",
    "failed",
    "paid, $",
    "exit",
    "sent by its reader",
)


class Week:
    """A folder of two jobs, their source and their provider, from day to day."""

    def __init__(self, folder: Path, api: BillingApi) -> None:
        self.folder = folder
        self.api = api
        self.lines: list[Line] = []
        self.rows: dict[int, str] = {}
        self.prompt, self.labels, self.delivery = "Is this review positive or negative?", "positive, negative", "online"
        self._started = datetime.now(UTC)
        self._deleted = 0
        with REVIEWS.open(encoding="utf-8", newline="") as file:
            texts = {row["text"]: row["label"] for row in csv.DictReader(file)}
        self._good = iter([text for text, label in texts.items() if label == "positive"])
        self._bad = iter([text for text, label in texts.items() if label == "negative"])
        self.write("rowmill.yaml", WORKSPACE.format(base_url=f"http://127.0.0.1:{api.port}/v1", per_day=PER_DAY))
        self.write("jobs/replies.yaml", REPLIES)
        self.write("keep-report.sh", "cat >> reports.jsonl; echo >> reports.jsonl\n")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    # The source.

    def texts(self, good: int, bad: int) -> list[str]:
        """Return unused reviews."""
        return [next(self._good) for _ in range(good)] + [next(self._bad) for _ in range(bad)]

    def edit(self, added: Sequence[str] = (), changed: Sequence[int] = (), deleted: Sequence[int] = ()) -> None:
        """Add rows at the end, replace the reviews of changed ones, delete others."""
        first = max(self.rows, default=0) + 1
        self.rows |= dict(enumerate(added, first))
        self.rows |= dict(zip(changed, self.texts(len(changed) // 2, len(changed) - len(changed) // 2), strict=True))
        for key in deleted:
            del self.rows[key]
        self._deleted = len(deleted)
        with duckdb.connect(self.folder / "reviews.duckdb") as db:
            db.execute("create or replace table reviews (id integer, text varchar)")
            db.executemany("insert into reviews values (?, ?)", sorted(self.rows.items()))

    # The runs.

    def run(self, day: int, event: str, *arguments: str, killed: bool = False) -> Line:
        """Run the jobs of the folder."""
        self.write(
            "jobs/labels.yaml",
            LABELS.format(prompt=self.prompt, labels=self.labels, concurrency=CONCURRENCY, delivery=self.delivery),
        )
        arguments = arguments or ("jobs",)
        plan = self.plan("jobs/labels.yaml", *(word for word in arguments[1:] if word != "--compare"))
        bills, refused = set(self.api.bills), len(self.api.refused)
        ahead = FIRST_RUN_AT - self._started + timedelta(days=day - 1)
        microseconds = str(ahead // timedelta(microseconds=1))
        words = ("run", *arguments, "--json", "--quiet")
        process = Forked(f"{CLOCK_HOOK}\n{COMMAND}", *words, cwd=self.folder, WEEK_AHEAD_US=microseconds)
        if killed:
            self._kill(process)
        exit_code, out, err = process.ended()
        assert "Traceback" not in err, err
        reports = {report["job"].removesuffix("-compare"): report for report in map(json.loads, out.splitlines())}
        fresh = {name: bill for name, bill in self.api.bills.items() if name not in bills}
        texts = {text for bill in fresh.values() if bill.model in LABEL_MODELS for text in bill.texts}
        line = Line(
            day, event, len(self.rows), plan, self._deleted, len(texts) + len(self.api.refused) - refused,
            fresh, killed, reports.get("labels", {}), reports.get("replies", {}),
            exit_code,
        )  # fmt: skip
        self.lines.append(line)
        self._deleted = 0
        return line

    def _kill(self, process: Forked) -> None:
        """Kill all processes when the maximum number of requests is in flight."""
        assert self.api.hold(KILLED_AFTER, CONCURRENCY).wait(60)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            one.kill()
        psutil.wait_procs(family[1:], 10)
        self.api.release()

    def plan(self, job: str, *arguments: str) -> Body:
        """Return the output of `rowmill plan --json`."""
        with redirect_stdout(io.TextIOWrapper(io.BytesIO())) as out:
            assert exit_code_of(["plan", str(self.folder / job), "--json", *arguments]) == 0
        out.seek(0)
        plan: Body = json.load(out)
        return plan

    def table(self, name: str) -> list[Body]:
        """Return a table of the first job."""
        with shared_cursor() as db:
            return list(db.sql(f"from '{self.folder}/out/labels/{name}/*.parquet'").to_arrow_table().to_pylist())

    def replies(self) -> list[Body]:
        """Return the results of the second job."""
        with duckdb.connect(self.folder / "out" / "replies.duckdb", read_only=True) as db:
            return list(db.sql("from replies").to_arrow_table().to_pylist())


def run_week(week: Week) -> Iterator[Line]:
    """Run the week, one invocation after the other."""
    api = week.api
    week.edit(added=week.texts(120, 120))
    api.refuse = week.rows[77]
    yield week.run(1, "first load; one text is refused")
    week.edit(added=[week.rows[1], week.rows[2], *week.texts(0, 58)])
    yield week.run(2, "grew, by complaints only: the audit finds drift")
    week.edit(added=week.texts(30, 30), changed=[77, *range(10, 260, 10)], deleted=range(3, 150, 10))
    yield week.run(3, "rows came, changed, left; killed", killed=True)
    yield week.run(3, "the killed run goes on")
    week.edit(added=week.texts(15, 15))
    api.down()
    yield week.run(4, "rows came; the provider is down")
    api.up()
    yield week.run(5, "catches up")
    week.prompt, week.labels = "Is this review positive, neutral or negative?", "positive, neutral, negative"
    yield week.run(5, "a new prompt, on a sample", "jobs/labels.yaml", "--limit", "20", "--compare")
    yield week.run(5, "the new prompt")
    week.edit(added=week.texts(25, 25), changed=range(12, 132, 12), deleted=range(9, 59, 10))
    week.delivery = "batch"
    yield week.run(6, "rows came, changed, left; by batches")
    yield week.run(7, "nothing changed")


@contextmanager
def week_of(folder: Path) -> Iterator[Week]:
    """Provide a week before its first run."""
    api = BillingApi()
    try:
        yield Week(folder, api)
    finally:
        api.close()


def format_week(lines: Sequence[Line]) -> str:
    """Return a Markdown table."""
    rows = [HEADS, *(line.cells() for line in lines)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADS))]
    table = [
        [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    table.insert(1, ["-" * width if place < 2 else "-" * (width - 1) + ":" for place, width in enumerate(widths)])
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, week_of(Path(name)) as the_week:
        print(format_week(list(run_week(the_week))))
