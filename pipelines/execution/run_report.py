"""How an invocation ended, for programs (`--json`) and for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from connectors.errors import JobError, Stopped
from pipelines.config.yaml_reader import read_yaml
from pipelines.execution.job_run import Ended
from pipelines.formatting import hanging, harmless
from pipelines.pricing.prices import usd

WIDTH = 80
"""Columns of the closing words, where a line can be broken."""

FIELDS = (
    "job",
    "run_id",
    "rows",
    "rows_ok",
    "rows_reused",
    "rows_failed",
    "rows_left",
    "requests",
    "retries",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "seconds",
    "stopped",
    "exit_code",
    "tables",
)


def summary(job: str, run_id: str, ended: Ended, tables: Mapping[str, str]) -> dict[str, Any]:
    """What became of an invocation; cost_usd is null where an exchange's price is not known, `steps` is there for
    several."""
    tally = ended.tally
    steps = [
        {"step": name, "requests": step.exchanges, "cost_usd": None if tally.unpriced else usd(step.cost)}
        for name, step in tally.steps.items()
    ]
    return {
        "job": job,
        "run_id": run_id,
        "rows": tally.rows,
        "rows_ok": tally.rows_ok,
        "rows_reused": tally.rows_reused,
        "rows_failed": tally.rows_failed,
        "rows_left": tally.rows_left,
        "requests": tally.requests,
        "retries": tally.retries,
        "input_tokens": tally.input_tokens,
        "output_tokens": tally.output_tokens,
        "cost_usd": None if tally.unpriced else usd(tally.cost),
        "seconds": round(tally.seconds, 3),
        "stopped": ended.stopped,
        "exit_code": ended.exit_code,
        "tables": dict(tables),
        **({"steps": steps} if len(steps) > 1 else {}),
        **({} if ended.times is None else {"times": dict(ended.times)}),
    }


class StoppedEarly(Stopped):
    """Stopped before the rows set out."""

    def __init__(self, message: str, told: dict[str, Any]) -> None:
        """`told`: what of the `--json` object is known all the same."""
        super().__init__(message)
        self.told = told


def for_programs(told: Mapping[str, Any]) -> dict[str, Any]:
    """The object of `--json`: without the steps and times, which are for the closing words and the report."""
    return {name: value for name, value in told.items() if name not in ("steps", "times")}


def nothing_done(job: str | None, exit_code: int, stopped: str | None) -> dict[str, Any]:
    """The object of `--json` where no run took place."""
    return {**dict.fromkeys(FIELDS), "job": job, "exit_code": exit_code, "stopped": stopped}


def job_name(path: Path) -> str | None:
    """The name that a job file gives itself, as far as it can be told from a file that may be wrong."""
    try:
        name = read_yaml(path, str(path)).values.get("name")
    except JobError:
        return None
    return name if isinstance(name, str) else None


def in_words(told: Mapping[str, Any], path: str) -> str:
    """The closing words of a run: what came of the rows, what it took, where the tables are, what to do next."""
    lines: list[str] = []
    rows, ok, reused = told["rows"], told["rows_ok"], told["rows_reused"]
    if told["requests"] == 0 and told["stopped"] is None:
        failed = f", {told['rows_failed']:,} failed" if told["rows_failed"] else ""
        lines.append(f"{told['job']}: nothing to send; {_count(ok, 'row')} of {rows:,} done already{failed}.")
    else:
        lines.append(
            f"{told['job']}: {ok:,} of {_count(rows, 'row')} done"
            + (f" ({reused:,} without a request)" if reused else "")
            + (f", {told['rows_failed']:,} failed" if told["rows_failed"] else "")
            + (f", {told['rows_left']:,} left" if told["rows_left"] else "")
            + f" in {told['seconds']:.1f} s."
        )
        cost = "cost not known (no price for the model)" if told["cost_usd"] is None else f"${told['cost_usd']:.6f}"
        lines.append(
            f"  {_count(told['requests'], 'request')} ({told['retries']:,} retries), "
            f"{told['input_tokens']:,} tokens in, {told['output_tokens']:,} out, {cost}"
        )
        for step in told.get("steps") or ():
            paid = "" if step["cost_usd"] is None else f", ${step['cost_usd']:.6f}"
            lines.append(f"    {step['step']}: {_count(step['requests'], 'request')}{paid}")
    if bound := (told.get("times") or {}).get("bound_by"):
        lines += hanging(f"bound by: {bound}", 2, WIDTH)
    for audit in told.get("audits") or ():
        lines.append(f"  audit {'passed' if audit['passed'] else 'FAILED'}: {audit['name']}")
    if told["stopped"] is not None:
        lines.append(f"  stopped: {harmless(told['stopped'])}")
    for table, place in told["tables"].items():
        lines.append(f"  {table:<8} {place}")
    lines.append(f"  next: {_next(told, path)}")
    return "\n".join(lines)


def _next(told: Mapping[str, Any], path: str) -> str:
    if told["stopped"] is not None:
        return f"rowmill run {path}   (continues this run)"
    if told["rows_failed"]:
        return f"rowmill errors {path}"
    return f"rowmill report {path}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
