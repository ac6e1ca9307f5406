"""A simulated week of nights: seven runs over a source that grows and changes, and what each sent, reused and paid.

    python -m tests.behaviour.scheduling.week

prints the week as a table. The provider is the embedded one as a server; what it answers is counted and priced here, by
sums of our own. Every run is a real `rowmill run` in a process of its own, whose clock is as many days ahead.
"""

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import psutil  # type: ignore[import-untyped, unused-ignore]

from pipelines.cli import exit_code_of
from tests.behaviour.scheduling.provider_with_batches import Bill, Body, NightApi
from tests.support.forked import COMMAND, Forked

REVIEWS = Path(__file__).parents[3] / "jobs" / "data" / "reviews.csv"
FIRST_NIGHT = datetime(2027, 3, 22, 1, 30, tzinfo=UTC)
"""Half past two in Berlin; the clock changes in the last of the seven nights."""
CONCURRENCY = 16
KILLED_AFTER = 30
"""Answers that get back to the run that is killed."""
PER_DAY = 0.008
"""US dollars that a day may cost: enough for every night, not for the week."""

LABEL_MODELS = ("rowmill-sentiment", "text-embedding-3-small")
"""Those that the first job asks."""
WORKSPACE = """
providers:
  night-api: {{base_url: "{base_url}"}}
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
    provider: night-api
    model: rowmill-sentiment
    messages: [{{system: "{prompt}"}}, {{user: "{{{{ text }}}}"}}]
    params: {{max_tokens: 20}}
    output:
      sentiment: {{type: string, enum: [{labels}]}}
  - name: vector
    endpoint: embeddings
    provider: night-api
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
    provider: night-api
    model: gpt-4o-mini
    messages: [{system: Answer the complaint in a sentence.}, {user: "{{ text }}"}]
    params: {max_tokens: 30}
sink: {duckdb: out/replies.duckdb, table: replies, columns: [text], write: merge, deleted: remove}
limits: {concurrency: 16}
retry: {attempts: 3, longest_wait: 0.1, longest_hold: 1}
"""
AHEAD = """
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
"""Python's own hook at the start of a process: there the clock is ahead, and batches are looked at often."""


@dataclass(frozen=True, slots=True)
class Line:
    """What one invocation over the folder came to."""

    night: int
    what: str
    rows: int
    plan: Body
    """What `rowmill plan` had said of the first job."""
    deleted: int
    sent: int
    """Rows that needed a request, as the server saw it; a line of a batch is one as well."""
    bills: Mapping[str, Bill]
    """What the server has answered to both jobs, by request id."""
    killed: bool
    labels: Body
    """The report of the first job; empty where it could not say a word."""
    replies: Body
    """The report of the job that reads its results; empty where it was not called for."""
    exit_code: int
    """Of the whole folder."""

    @property
    def pico(self) -> int:
        """Pico-dollars, by the server's own bills."""
        return sum(bill.pico for bill in self.bills.values())

    def cells(self) -> tuple[str, ...]:
        """As the table has them."""
        counts = (self.rows, self.plan["new"], self.plan["changed"], self.deleted, self.sent)
        told = [f"{count:,}" for count in counts]
        told += [f"{self.labels[name]:,}" if self.labels else "" for name in ("rows_reused", "rows_failed")]
        code = "killed" if self.killed else str(self.labels["exit_code"])
        reader = "" if not self.replies else self.replies["requests"]
        return (
            str(self.night), self.what, *told, f"{self.pico / 1e12:.6f}", code,
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
    """A folder of two jobs, their source and their provider, from night to night."""

    def __init__(self, folder: Path, api: NightApi) -> None:
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
        self.write("clock/sitecustomize.py", AHEAD)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    # The source.

    def texts(self, good: int, bad: int) -> list[str]:
        """Reviews that were never used before."""
        return [next(self._good) for _ in range(good)] + [next(self._bad) for _ in range(bad)]

    def edit(self, added: Sequence[str] = (), changed: Sequence[int] = (), deleted: Sequence[int] = ()) -> None:
        """New rows at the end, another review in those that change."""
        first = max(self.rows, default=0) + 1
        self.rows |= dict(enumerate(added, first))
        self.rows |= dict(zip(changed, self.texts(len(changed) // 2, len(changed) - len(changed) // 2), strict=True))
        for key in deleted:
            del self.rows[key]
        self._deleted = len(deleted)
        with duckdb.connect(self.folder / "reviews.duckdb") as db:
            db.execute("create or replace table reviews (id integer, text varchar)")
            db.executemany("insert into reviews values (?, ?)", sorted(self.rows.items()))

    # The nights.

    def turn(self, night: int, what: str, *arguments: str, killed: bool = False) -> Line:
        """Run the folder as it is now."""
        self.write(
            "jobs/labels.yaml",
            LABELS.format(prompt=self.prompt, labels=self.labels, concurrency=CONCURRENCY, delivery=self.delivery),
        )
        arguments = arguments or ("jobs",)
        plan = self.plan("jobs/labels.yaml", *(word for word in arguments[1:] if word != "--compare"))
        bills, refused = set(self.api.bills), len(self.api.refused)
        ahead = FIRST_NIGHT - self._started + timedelta(days=night - 1)
        paths = os.pathsep.join([str(self.folder / "clock"), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {"PYTHONPATH": paths, "WEEK_AHEAD_US": str(ahead // timedelta(microseconds=1))}
        words = ("run", *arguments, "--json", "--quiet")
        process = Forked(f"{AHEAD}\n{COMMAND}", *words, cwd=self.folder, **environment)
        if killed:
            self._kill(process)
        exit_code, out, err = process.ended()
        assert "Traceback" not in err, err
        told = {report["job"].removesuffix("-compare"): report for report in map(json.loads, out.splitlines())}
        fresh = {name: bill for name, bill in self.api.bills.items() if name not in bills}
        texts = {text for bill in fresh.values() if bill.model in LABEL_MODELS for text in bill.texts}
        line = Line(
            night, what, len(self.rows), plan, self._deleted, len(texts) + len(self.api.refused) - refused,
            fresh, killed, told.get("labels", {}), told.get("replies", {}),
            exit_code,
        )  # fmt: skip
        self.lines.append(line)
        self._deleted = 0
        return line

    def _kill(self, process: Forked) -> None:
        """As if the machine lost its power, when everything that may be in flight is."""
        assert self.api.hold(KILLED_AFTER, CONCURRENCY).wait(60)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            one.kill()
        psutil.wait_procs(family[1:], 10)
        self.api.release()

    def plan(self, job: str, *arguments: str) -> Body:
        """What `rowmill plan --json` says."""
        with redirect_stdout(io.TextIOWrapper(io.BytesIO())) as out:
            assert exit_code_of(["plan", str(self.folder / job), "--json", *arguments]) == 0
        out.seek(0)
        told: Body = json.load(out)
        return told

    def table(self, name: str) -> list[Body]:
        """One of the tables of the first job."""
        with duckdb.connect() as db:
            return list(db.sql(f"from '{self.folder}/out/labels/{name}/*.parquet'").to_arrow_table().to_pylist())

    def replies(self) -> list[Body]:
        """The results of the second job."""
        with duckdb.connect(self.folder / "out" / "replies.duckdb", read_only=True) as db:
            return list(db.sql("from replies").to_arrow_table().to_pylist())


def nights(week: Week) -> Iterator[Line]:
    """The week, one invocation after the other."""
    api = week.api
    week.edit(added=week.texts(120, 120))
    api.refuse = week.rows[77]
    yield week.turn(1, "first load; one text is refused")
    week.edit(added=[week.rows[1], week.rows[2], *week.texts(0, 58)])
    yield week.turn(2, "grew, by complaints only: the audit finds drift")
    week.edit(added=week.texts(30, 30), changed=[77, *range(10, 260, 10)], deleted=range(3, 150, 10))
    yield week.turn(3, "rows came, changed, left; killed", killed=True)
    yield week.turn(3, "the killed run goes on")
    week.edit(added=week.texts(15, 15))
    api.down()
    yield week.turn(4, "rows came; the provider is down")
    api.up()
    yield week.turn(5, "catches up")
    week.prompt, week.labels = "Is this review positive, neutral or negative?", "positive, neutral, negative"
    yield week.turn(5, "a new prompt, on a sample", "jobs/labels.yaml", "--limit", "20", "--compare")
    yield week.turn(5, "the new prompt")
    week.edit(added=week.texts(25, 25), changed=range(12, 132, 12), deleted=range(9, 59, 10))
    week.delivery = "batch"
    yield week.turn(6, "rows came, changed, left; by batches")
    yield week.turn(7, "nothing changed")


@contextmanager
def week_of(folder: Path) -> Iterator[Week]:
    """A week that has not begun."""
    api = NightApi()
    try:
        yield Week(folder, api)
    finally:
        api.close()


def printed(lines: Sequence[Line]) -> str:
    """As Markdown."""
    rows = [HEADS, *(line.cells() for line in lines)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADS))]
    told = [
        [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    told.insert(1, ["-" * width if place < 2 else "-" * (width - 1) + ":" for place, width in enumerate(widths)])
    return "\n".join(f"| {' | '.join(row)} |" for row in told)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, week_of(Path(name)) as the_week:
        print(printed(list(nights(the_week))))
