"""An ordeal: a run that is killed again and again, at named points and at random moments, while its rows change."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from tests.soak.launcher import POINTS

LAUNCHER = Path(__file__).with_name("launcher.py")
CONCURRENCY = 16
ROWS = 120
ONE_STEP = '[{name: loud, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]}]'
TWO_STEPS = """
  - {name: loud, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]}
  - {name: vector, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ loud }}"}
"""
RANDOM = "at random"
EASY = "arrived"
"""A point that every run with a request passes."""
OF_PARQUET = frozenset({"part written", "part noted", "renamed", "merged", "swapped"})
OF_DUCKDB = frozenset({"within a transaction"})
OFTEN = frozenset({"noted", "sent", "arrived", "ledgered"})
"""Points that a run passes many times."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of job."""

    name: str
    steps: str
    duckdb: bool
    write: str
    """What stands in the sink besides its place."""

    @property
    def sink(self) -> str:
        place = "duckdb: out.duckdb, table: answers" if self.duckdb else "parquet: out"
        return f"{{{place}, columns: [text], {self.write}}}"

    @property
    def points(self) -> tuple[str, ...]:
        left_out = OF_PARQUET if self.duckdb else OF_DUCKDB
        return (*(point for point in POINTS if point not in left_out), RANDOM)


@dataclass(slots=True)
class Ordeal:
    """One job on its way through its kills."""

    scenario: Scenario
    workspace: Any
    provider: Any
    seed: int
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(point, signal) -> kills that hit a run under way."""
    generation: int = 0
    dice: random.Random = field(init=False)
    job: Path = field(init=False)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.provider.latency = 0.01
        self.job = self.workspace.job(
            steps=self.scenario.steps,
            sink=self.scenario.sink,
            limits=f"{{concurrency: {CONCURRENCY}}}",
        )

    def survive(self, kills: int) -> None:
        """Be killed so many times; after each few, the run is let come to its end, looked at, and given new rows."""
        plan = [(point, by) for point in self.scenario.points for by in ("KILL", "KILL", "TERM", "INT", "TWICE")]
        self.dice.shuffle(plan)
        plan = (plan * (kills // len(plan) + 1))[:kills]
        self.finish()
        while plan:
            self.generation += 1
            self.rows()
            for _ in range(4):
                if not plan:
                    break
                point, by = plan.pop()
                if self.killed(point, by):
                    self.kills[point, by] += 1
                else:
                    # It came to its end before: once more, where it cannot be missed for long.
                    plan.insert(0, (RANDOM if point == RANDOM else EASY, by))
                    break
            self.finish()
        self.balance()

    def rows(self) -> None:
        """Some rows change, some are new, some have left."""
        self.workspace.write(
            "rows.csv", "id,text\n" + "".join(f"{key},{text}\n" for key, text in self.wanted().items())
        )

    def wanted(self) -> dict[int, str]:
        """Key -> text, of this generation."""
        g = self.generation
        return {n: f"text {n} of {g if (n + g) % 3 == 0 else 0}" for n in range(1 + g, ROWS + 1 + 2 * g)}

    def expected(self) -> dict[int, str]:
        """Key -> text in the table at the end of this generation: with what has left, unless it is removed."""
        if "replace" in self.scenario.write or "remove" in self.scenario.write:
            return self.wanted()
        found: dict[int, str] = {}
        last = self.generation
        for self.generation in range(last + 1):
            found |= self.wanted()
        return found

    def started(self, point: str | None = None, by: str = "") -> "subprocess.Popen[str]":
        mined = {} if point is None else {"CRASH_AT": f"{point}:{self.count(point)}", "CRASH_BY": by}
        return subprocess.Popen(
            [sys.executable, str(LAUNCHER), "run", str(self.job), "--json", "--quiet"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **mined},
        )  # fmt: skip

    def count(self, point: str) -> int:
        if point in OFTEN:
            return self.dice.randint(1, 20)
        return 1 if point == "recovered" else self.dice.randint(1, 2)

    def killed(self, point: str, by: str) -> bool:
        """Whether the kill came before the run had come to its end."""
        if point == RANDOM:
            before = len(self.provider.seen)
            process = self.started()
            wanted = before + self.dice.randint(1, 40)
            while len(self.provider.seen) < wanted and process.poll() is None:
                time.sleep(0.002)
            time.sleep(self.dice.uniform(0, 0.05))
            for _ in range(2 if by == "TWICE" else 1):
                process.send_signal(signal.Signals[f"SIG{'INT' if by == 'TWICE' else by}"])
                time.sleep(0.005)
        else:
            process = self.started(point, by)
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in err, err
        assert process.returncode in (0, 130, -9), (process.returncode, point, by, err, out)
        self.look()
        return process.returncode != 0

    def finish(self) -> None:
        """The last resumption: every row is there once, as it should be."""
        process = self.started()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, (err, out)
        told = json.loads(out)
        assert (told["rows_ok"], told["rows_failed"], told["rows_left"]) == (len(self.wanted()), 0, 0)
        found = sorted(self.table("results"), key=lambda row: row["id"])
        assert [(row["id"], row["text"], row["loud"]) for row in found] == [
            (key, text, text.upper()) for key, text in sorted(self.expected().items())
        ]
        if self.scenario.steps is TWO_STEPS:
            assert all(list(row["vector"]) == [float(len(row["loud"]))] * 3 for row in found)
        assert self.table("errors") == []

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

    def balance(self) -> None:
        """Usage against the server's own count."""
        usage = self.table("usage")
        answered = [row for row in usage if row["http_status"] == 200]
        unknown = [row for row in usage if row["error_class"] == "unknown"]
        assert len(answered) + len(unknown) == len(usage)
        # No answer that reached the ledger was asked for again.
        marks = Counter(mark for row in answered for mark in set(row["fingerprints"]))
        assert set(marks.values()) == {1}
        names = [row["request_id"] for row in answered]
        assert len(set(names)) == len(names)
        seen, hits = len(self.provider.seen), self.kills.total()
        assert len(answered) <= seen <= len(usage)
        assert len(unknown) <= hits * CONCURRENCY
        assert seen <= len(answered) + hits * CONCURRENCY
        assert sum(row["input_tokens"] for row in answered) == 10 * sum(len(row["keys"]) for row in answered)

    def table(self, name: str) -> list[Row]:
        folder = self.workspace.folder
        if not self.scenario.duckdb:
            with duckdb.connect() as db:
                found: list[Row] = (
                    db.sql(f"from read_parquet('{folder}/out/{name}/*.parquet')").to_arrow_table().to_pylist()
                )
                return found
        with duckdb.connect(folder / "out.duckdb", read_only=True) as db:
            table = "answers" if name == "results" else f"answers_{name}"
            return list(db.sql(f"from {table}").to_arrow_table().to_pylist())


SCENARIOS = (
    Scenario("one step, Parquet, merge", ONE_STEP, False, "write: merge"),
    Scenario("two steps, DuckDB, merge", TWO_STEPS, True, "write: merge"),
    Scenario("two steps, Parquet, replace", TWO_STEPS, False, "write: replace"),
    Scenario("one step, DuckDB, replace", ONE_STEP, True, "write: replace"),
    Scenario("two steps, Parquet, merge and remove", TWO_STEPS, False, "write: merge, deleted: remove"),
    Scenario("one step, DuckDB, merge and remove", ONE_STEP, True, "write: merge, deleted: remove"),
)
