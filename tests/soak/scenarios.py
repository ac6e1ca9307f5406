"""An ordeal: a run that is killed at each named point and at random moments, while its rows change."""

import json
import random
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from tests.soak.accounts import Accounts
from tests.soak.counting_server import CountingServer
from tests.soak.launcher import POINTS, RANDOM

LAUNCHER = Path(__file__).with_name("launcher.py")
CONCURRENCY = 8
ROWS = 72
SIGNALS = ("KILL", "TERM", "INT", "TWICE")
"""TWICE: Ctrl-C, and once more before what is in flight has landed."""
ONE_STEP = '[{name: loud, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], \
params: {max_tokens: 20}}]'
TWO_STEPS = """
  - {name: loud, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], params: {max_tokens: 20}}
  - {name: vector, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ loud }}"}
"""
OF_PARQUET = frozenset({"part written", "part noted", "renamed", "merged", "swapped"})
OF_DUCKDB = frozenset({"within a transaction"})
OFTEN = frozenset({"noted", "sent", "arrived", "ledgered", "index merged"})
"""Points that a run passes many times."""
AT_THE_END = frozenset({"merged", "swapped"})
"""Points that only a run with nothing left to ask comes to: its compaction."""
EARLY_KILLS = 3
"""Of one generation of rows: more would leave the last of them nothing to ask."""
TRIES = 6

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of job."""

    name: str
    steps: str
    duckdb: bool
    write: str
    """The settings of the sink besides its location."""

    @property
    def sink(self) -> str:
        place = "duckdb: out.duckdb, table: answers" if self.duckdb else "parquet: out"
        return f"{{{place}, columns: [text], {self.write}}}"

    def job_in(self, workspace: Any) -> Path:
        """The job's file, in a workspace with budgets: the ledger keeps their books."""
        with (workspace.folder / "rowmill.yaml").open("a") as file:
            file.write("budget: {usd_per_day: 10}\n")
        job: Path = workspace.job(
            steps=self.steps, sink=self.sink, limits=f"{{concurrency: {CONCURRENCY}}}", budget="{usd: 5}"
        )
        return job

    @property
    def points(self) -> tuple[str, ...]:
        left_out = OF_PARQUET if self.duckdb else OF_DUCKDB
        return (*(point for point in POINTS if point not in left_out), RANDOM)

    def table(self, folder: Path, name: str) -> list[Row]:
        """The rows of one of its tables."""
        if self.duckdb:
            with closing(duckdb.connect(folder / "out.duckdb", read_only=True)) as db:
                table = "answers" if name == "results" else f"answers_{name}"
                return list(db.sql(f"from {table}").to_arrow_table().to_pylist())
        with closing(duckdb.connect()) as db:
            return list(db.sql(f"from read_parquet('{folder}/out/{name}/*.parquet')").to_arrow_table().to_pylist())

    def plan(self, at_random: int) -> list[tuple[str, str]]:
        """Every point with every signal."""
        return [
            (point, by) for point in self.points for by in SIGNALS for _ in range(at_random if point == RANDOM else 1)
        ]


def rows_of(generation: int) -> dict[int, str]:
    """Key -> text: from one generation to the next most change, some become again what they were, some are new, some
    have left."""
    return {
        n: f"text {n} of {generation if (n + generation) % 3 else 0}"
        for n in range(1 + generation, ROWS + 1 + 2 * generation)
    }


def csv_of(generation: int) -> str:
    """The rows as a file."""
    return "id,text\n" + "".join(f"{key},{text}\n" for key, text in rows_of(generation).items())


@dataclass(slots=True)
class Ordeal:
    """One job on its way through its kills."""

    scenario: Scenario
    workspace: Any
    server: CountingServer
    seed: int
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(point, signal) -> signals that came at that point."""
    cut_short: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Those of them that ended the run before its work was done."""
    generation: int = 0
    dice: random.Random = field(init=False)
    job: Path = field(init=False)
    accounts: Accounts = field(init=False)
    _launcher: "subprocess.Popen[str]" = field(init=False)
    _launched: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.job = self.scenario.job_in(self.workspace)
        (self.workspace.folder / "logs").mkdir()
        self.accounts = Accounts(self.workspace.folder / ".rowmill" / "ledger.sqlite", self.server)
        self._launcher = subprocess.Popen(
            [sys.executable, str(LAUNCHER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        self._launcher.communicate()

    def survive(self, plan: list[tuple[str, str]]) -> None:
        """Be killed at each (point, signal); after each few, the run is let come to its end, looked at, and given new
        rows."""
        self.dice.shuffle(plan)
        early = [one for one in plan if one[0] not in AT_THE_END]
        late = [one for one in plan if one[0] in AT_THE_END]
        missed: Counter[tuple[str, str]] = Counter()
        self.workspace.write("rows.csv", csv_of(self.generation))
        self.finish()
        while early or late:
            self.generation += 1
            self.workspace.write("rows.csv", csv_of(self.generation))
            for cell in (*early[:EARLY_KILLS], *late[:1]):
                place = late if cell[0] in AT_THE_END else early
                place.remove(cell)
                if self.killed(*cell, missed[cell]):
                    self.kills[cell] += 1
                    continue
                # It came to its end before: once more, among those that have most to do.
                missed[cell] += 1
                assert missed[cell] < TRIES, f"{self.scenario.name}: {cell} is never reached"
                place.insert(0, cell)
                break
            self.finish()
        self.accounts.balance(self.table("usage"), CONCURRENCY)

    def expected(self) -> dict[int, str]:
        """Key -> text in the table at the end of this generation: with what has left, unless it is removed."""
        if "replace" in self.scenario.write or "remove" in self.scenario.write:
            return rows_of(self.generation)
        return {key: text for generation in range(self.generation + 1) for key, text in rows_of(generation).items()}

    def launched(self, point: str = "", by: str = "", count: int = 0, delay: float = 0.0) -> tuple[int, str, str, Path]:
        """(exit code, stdout, stderr, log) of a run with this mine."""
        self._launched += 1
        out, err, log = (self.workspace.folder / "logs" / f"{self._launched}.{name}" for name in ("out", "err", "log"))
        order = {
            "point": point, "by": by, "count": count, "delay": delay, "out": str(out), "err": str(err),
            "log": str(log), "arguments": ["run", str(self.job), "--json", "--quiet"],
        }  # fmt: skip
        assert self._launcher.stdin is not None and self._launcher.stdout is not None
        self._launcher.stdin.write(json.dumps(order) + "\n")
        self._launcher.stdin.flush()
        code = int(self._launcher.stdout.readline())
        result = err.read_text()
        assert "Traceback" not in result, result
        return code, out.read_text(), result, log

    def killed(self, point: str, by: str, missed: int) -> bool:
        """Whether the run came to the point, and so the signal to the run."""
        most = 12 if point in OFTEN else 1 if point == "recovered" else 3
        count = 1 if point == RANDOM else self.dice.randint(1, max(1, most - 2 * missed))
        # The second Ctrl-C is to find something in flight.
        self.server.latency = 0.03 if by == "TWICE" else 0.01
        code, out, err, log = self.launched(point, by, count, self.dice.uniform(0.02, 0.4) / (1 + missed))
        self.server.latency = 0.01
        assert code in (0, 130, -9), (code, point, by, err, out)
        reached = self.accounts.ended(log, point, by, code)
        self.look()
        self.cut_short[point, by] += reached and code != 0
        return reached

    def finish(self) -> None:
        """The last resumption: every row is there once, as it should be, and nothing is left unfinished."""
        code, out, err, log = self.launched()
        assert code == 0, (err, out)
        self.accounts.ended(log, "", "", code)
        report = json.loads(out)
        assert (report["rows_ok"], report["rows_failed"], report["rows_left"]) == (len(rows_of(self.generation)), 0, 0)
        found = sorted(self.table("results"), key=lambda row: row["id"])
        assert [(row["id"], row["text"], row["loud"]) for row in found] == [
            (key, text, text.upper()) for key, text in sorted(self.expected().items())
        ]
        if self.scenario.steps is TWO_STEPS:
            assert all(list(row["vector"]) == [float(len(row["loud"]))] * 3 for row in found)
        assert self.table("errors") == []
        assert self.unfinished() == []

    def unfinished(self) -> list[str]:
        """What lies in the workspace and is no table, no ledger and nothing of the user's."""
        folder = self.workspace.folder
        mine = {
            "rows.csv",
            "rowmill.yaml",
            "job.yaml",
            "out.duckdb",
            ".rowmill/ledger.sqlite",
            ".rowmill/leases.sqlite",
            ".rowmill/columns/job.json",
        }
        found = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir() or path.suffix]
        return sorted(
            str(path)
            for path in found
            if str(path) not in mine
            and path.parts[0] not in ("logs", "calm")
            and not (path.parts[:2] == (".rowmill", "locks") and path.suffix == ".lock")
            and not (path.parts[0] == "out" and len(path.parts) == 3 and path.suffix == ".parquet")
        )

    def look(self) -> None:
        """What a reader finds after a kill: no key twice, every row whole; in `replace` one generation, not two."""
        try:
            found = self.table("results")
        except duckdb.Error:
            # Killed before the first table, or in the moment of a swap: the next run makes it whole.
            return
        assert max(Counter(row["id"] for row in found).values(), default=1) == 1
        assert all(row["loud"] == row["text"].upper() for row in found)
        if "replace" in self.scenario.write:
            keys = {row["id"] for row in found}
            assert not keys or keys == set(range(min(keys), max(keys) + 1))

    def table(self, name: str) -> list[Row]:
        return self.scenario.table(self.workspace.folder, name)


SCENARIOS = (
    Scenario("one step, Parquet, merge", ONE_STEP, False, "write: merge"),
    Scenario("two steps, DuckDB, merge", TWO_STEPS, True, "write: merge"),
    Scenario("two steps, Parquet, replace", TWO_STEPS, False, "write: replace"),
    Scenario("one step, DuckDB, replace", ONE_STEP, True, "write: replace"),
    Scenario("two steps, Parquet, merge and remove", TWO_STEPS, False, "write: merge, deleted: remove"),
    Scenario("one step, DuckDB, merge and remove", ONE_STEP, True, "write: merge, deleted: remove"),
)
