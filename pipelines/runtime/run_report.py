"""The report of one invocation: counts, money, tables, and how it ended."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Protocol, Self

from msgspec import Struct, field, to_builtins

from connectors.errors import JobError, Stopped
from pipelines.formatting import format_count

if TYPE_CHECKING:
    import polars as pl


class AuditResult(Struct, frozen=True):
    """What one audit found."""

    name: str
    rows: int | None
    """None if its SQL failed on a value of the data."""
    max: int
    found: tuple[str, ...] = ()
    """What has drifted, or why the SQL failed."""

    @property
    def passed(self) -> bool:
        return self.rows is not None and self.rows <= self.max

    @property
    def problem(self) -> str:
        """One line for an audit that failed."""
        reason = "; ".join(self.found)
        if not reason:
            reason = f"{format_count(self.rows or 0, 'row')}, at most {self.max:,} allowed"
        return f"audit failed: {self.name}: {reason}"

    def to_json(self) -> dict[str, Any]:
        """The audit in the object of `--json`."""
        facts = {"name": self.name, "rows": self.rows, "max": self.max, "passed": self.passed}
        return {**facts, "found": list(self.found)} if self.found else facts


class ControlEvent(Struct, frozen=True):
    """What `rowmill control` has done to a run."""

    at: str
    """ISO 8601, UTC, to the second."""
    command: str
    """pause, resume, drain or set."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Of `set`: dotted key of the job file -> value."""

    def __str__(self) -> str:
        values = "".join(f" {key}={'null' if value is None else value}" for key, value in self.values.items())
        return f"{self.command}{values} at {self.at} by `rowmill control`"

    def to_json(self) -> dict[str, Any]:
        """The event in the object of `--json`."""
        return {"at": self.at, "command": self.command, **({"values": dict(self.values)} if self.values else {})}

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> Self:
        """The event of a report in JSON."""
        return cls(event["at"], event["command"], event.get("values", {}))


class StepReport(Struct, frozen=True):
    """What one step sent."""

    step: str
    requests: int
    cost_usd: float | None
    """None if the price of an exchange is not known."""


class ComparedRow(Struct, frozen=True):
    """The outputs of one row before and after a change; `old` is None for a row without a stored result."""

    key: str
    old: Mapping[str, Any] | None
    new: Mapping[str, Any]


class ReportTables(Protocol):
    """The tables that a run has written."""

    @property
    def results(self) -> "pl.LazyFrame": ...
    @property
    def usage(self) -> "pl.LazyFrame": ...
    @property
    def errors(self) -> "pl.LazyFrame": ...


class RunReport(Struct, frozen=True):
    """How a run ended: the object of `rowmill run --json`. Counts and money are of this invocation."""

    job: str | None
    """None if the job file could not be read so far."""
    run_id: str | None = None
    rows: int | None = None
    """None, as all counts, if the run did not begin."""
    rows_ok: int | None = None
    rows_reused: int | None = None
    rows_failed: int | None = None
    rows_left: int | None = None
    rows_out: int | None = None
    """Result rows; more or fewer than `rows_ok` if an `each` step makes several of one."""
    requests: int | None = None
    retries: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    """None if the price of an exchange is not known."""
    seconds: float | None = None
    stopped: str | None = None
    """The reason; None if the run finished."""
    exit_code: int = 0
    tables: Mapping[str, str] | None = None
    """results, usage, errors -> a glob or the name of a table."""
    audits: Sequence[AuditResult] = ()
    compared: Sequence[ComparedRow] | None = None
    """Only of `run --compare`."""
    steps: Sequence[StepReport] = ()
    """If the job has several."""
    times: Mapping[str, Any] | None = None
    """Where the time went (`TimeBreakdown`), for the closing summary and the HTML report."""
    notes: Sequence[str] = ()
    """What the closing summary names, such as a schema that a provider refuses."""
    pack_agreement: float | None = None
    """Share of the verified rows of packs with the same answer alone, from 0 to 1; None if no row was verified."""
    pack_verified: int = 0
    """Rows of packs that were also requested alone; 0 in a report that was read back."""
    has_packs: bool = False
    """Whether a step of the job has `pack`."""
    control: Sequence[ControlEvent] = ()
    """What `rowmill control` has done to the run."""
    is_skipped: bool = False
    """Whether the job was not started, since a job whose results it reads has failed."""
    open_tables: Callable[[], ReportTables] | None = None
    """Opens the tables; None in the process of the run."""

    def __repr__(self) -> str:
        """Show the counts and how it ended."""
        shown = (*_COUNTED[:-1], "audits", "pack_agreement")
        return f"RunReport({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`, without what only the closing summary and the HTML report show."""
        shown = {name: getattr(self, name) for name in _COUNTED}
        if self.tables is not None:
            shown["tables"] = dict(self.tables)
        if self.audits:
            shown["audits"] = [audit.to_json() for audit in self.audits]
        if self.has_packs:
            shown["pack_agreement"] = self.pack_agreement
        if self.control:
            shown["control"] = [event.to_json() for event in self.control]
        if self.compared is not None:
            shown["compare"] = [{"key": row.key, "old": row.old, "new": row.new} for row in self.compared]
        return shown

    def to_record(self) -> dict[str, Any]:
        """The same with steps and times, as the ledger keeps it."""
        steps = {"steps": [to_builtins(step) for step in self.steps]} if self.steps else {}
        return {**self.to_json(), **steps, **({} if self.times is None else {"times": dict(self.times)})}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The report of a run in another process."""
        counted: dict[str, Any] = {name: record.get(name) for name in _COUNTED if name != "exit_code"}
        audits = tuple(
            AuditResult(audit["name"], audit["rows"], audit["max"], tuple(audit.get("found", ())))
            for audit in record.get("audits") or ()
        )
        packs = {"has_packs": True, "pack_agreement": record["pack_agreement"]} if "pack_agreement" in record else {}
        control = tuple(ControlEvent.from_json(event) for event in record.get("control", ()))
        return cls(**counted, exit_code=record["exit_code"], audits=audits, control=control, **packs)

    @property
    def results(self) -> "pl.LazyFrame":
        """The results table as it is now; JobError if the run has made none."""
        return self._tables.results

    @property
    def usage(self) -> "pl.LazyFrame":
        """The usage table: one row for each HTTP exchange of all runs."""
        return self._tables.usage

    @property
    def errors(self) -> "pl.LazyFrame":
        """The errors table: one row for each failed row."""
        return self._tables.errors

    @property
    def _tables(self) -> ReportTables:
        if self.open_tables is None:
            raise JobError("report", "has no tables", "read_results(job) reads those of a job")
        return self.open_tables()

    @property
    def has_begun(self) -> bool:
        """Whether rows were counted: a run that was refused before has no counts."""
        return self.rows_ok is not None

    def _repr_html_(self) -> str:
        done = f"{self.rows_ok or 0:,} of {self.rows or 0:,}"
        done += f" ({self.rows_reused:,} without a request)" if self.rows_reused else ""
        facts = {
            "rows done": done,
            "rows failed": f"{self.rows_failed or 0:,}",
            "rows left": f"{self.rows_left or 0:,}",
            "requests": f"{self.requests or 0:,} ({self.retries or 0:,} retries)",
            "tokens": f"{self.input_tokens or 0:,} in, {self.output_tokens or 0:,} out",
            "cost": "not known" if self.cost_usd is None else f"${self.cost_usd:.6f}",
            "time": f"{self.seconds or 0:.1f} s",
            "stopped": self.stopped or "no: every row was processed",
        }
        facts |= {f"audit {audit.name}": "passed" if audit.passed else "failed" for audit in self.audits}
        cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
        return f"<table><caption>{escape(self.job or '')}</caption>{cells}</table>"


_COUNTED = RunReport.__struct_fields__[: RunReport.__struct_fields__.index("tables") + 1]
"""The first fields of a report are in every object of `--json`, null or not."""


class StoppedBeforeStart(Stopped):
    """A run that was stopped before its rows were read, with what its report knows."""

    def __init__(self, report: RunReport) -> None:
        super().__init__(report.stopped or "")
        self.report = report
