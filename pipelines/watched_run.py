"""A run from a notebook: in a process of its own, shown as it goes, stopped by the cell's interrupt."""

import asyncio
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import orjson

from connectors.errors import JobError, Locked
from pipelines.overrides import Overrides

# A process of its own: it takes Ctrl-C as on the command line, leaves the notebook's loop and signals alone, and gives
# its memory back. -P: a folder called pipelines in the current one is not ours.
_COMMAND = (
    sys.executable,
    "-P",
    "-c",
    "from pipelines import progress; progress.SECONDS_BETWEEN_LINES = 0.5; from pipelines.cli import main; main()",
)
_LINE_LIMIT = 1 << 24


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run ended: the object of `rowmill run --json`, counts and money of this invocation."""

    job: str
    run_id: str
    rows: int
    rows_ok: int
    rows_reused: int
    rows_failed: int
    rows_left: int
    requests: int
    retries: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    """None where the price of an exchange is not known."""
    seconds: float
    stopped: str | None
    """None where the run came to its end."""
    exit_code: int
    tables: Mapping[str, str] = field(repr=False)
    """results, usage, errors -> a glob or the name of a table."""
    audits: Sequence[Mapping[str, Any]] = ()

    def _repr_html_(self) -> str:
        done = f"{self.rows_ok:,} of {self.rows:,}"
        done += f" ({self.rows_reused:,} without a request)" if self.rows_reused else ""
        told = {
            "rows done": done,
            "rows failed": f"{self.rows_failed:,}",
            "rows left": f"{self.rows_left:,}",
            "requests": f"{self.requests:,} ({self.retries:,} retries)",
            "tokens": f"{self.input_tokens:,} in, {self.output_tokens:,} out",
            "cost": "not known" if self.cost_usd is None else f"${self.cost_usd:.6f}",
            "time": f"{self.seconds:.1f} s",
            "stopped": self.stopped or "no: it came to its end",
        }
        told |= {f"audit {audit['name']}": "passed" if audit["passed"] else "failed" for audit in self.audits}
        cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in told.items())
        return f"<table><caption>{escape(self.job)}</caption>{cells}</table>"


async def run(
    job: str | PathLike[str],
    *,
    limit: int | None = None,
    provider: str | None = None,
    sink: str | PathLike[str] | None = None,
    budget_usd: float | None = None,
    delivery: str | None = None,
    changes: Mapping[str, Any] | None = None,
    new_run: bool = False,
) -> RunReport:
    """`rowmill run JOB` with its flags, `await`ed in a cell; `changes` are those of `--set`, key path -> value.

    The cell's interrupt stops it as Ctrl-C does: what is in flight lands and is kept; a second one leaves at once.
    JobError where nothing could be sent, Locked where the job runs already; a run that stops or whose rows fail says so
    in its report.
    """
    assignments = tuple(f"{key}={json.dumps(value)}" for key, value in (changes or {}).items())
    overrides = Overrides(assignments, limit, provider, None if sink is None else str(sink), budget_usd, delivery)
    flags = [*overrides.flags(), *(["--new-run"] if new_run else []), "--json", "--log", "json"]
    process = await asyncio.create_subprocess_exec(
        *_COMMAND,
        "run",
        str(Path(job)),
        *flags,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=_LINE_LIMIT,
    )
    assert process.stdout is not None and process.stderr is not None
    shown = _Shown(Path(job).name)
    told = asyncio.create_task(process.stdout.read())
    said = asyncio.create_task(_follow(process.stderr, shown))
    try:
        await asyncio.wait((told, said))
        await process.wait()
    except asyncio.CancelledError:
        await _stop(process)
        shown.end("interrupted: run it again and it goes on where it stopped")
        raise
    lines = told.result().splitlines()
    if not lines:
        shown.end("ended without a word")
        raise RuntimeError(f"{job}: the run ended with exit code {process.returncode}: {said.result()}")
    report: dict[str, Any] = orjson.loads(lines[-1])
    if report["rows"] is None:
        shown.end(str(report["stopped"]))
        raise (Locked if report["exit_code"] == 4 else JobError)(report["stopped"])
    shown.end(f"{report['rows_ok']:,} of {report['rows']:,} rows done in {report['seconds']:.1f} s")
    report["audits"] = report.get("audits") or ()
    return RunReport(**{name: report[name] for name in RunReport.__dataclass_fields__})


async def _follow(stderr: asyncio.StreamReader, shown: "_Shown") -> str:
    """Show the progress; what else was said."""
    rest: list[str] = []
    async for line in stderr:
        try:
            told = orjson.loads(line)
        except orjson.JSONDecodeError:
            rest.append(line.decode(errors="replace").rstrip())
            continue
        if isinstance(told, dict) and told.get("event") == "progress":
            shown.progress(told)
    return "\n".join(rest)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Wait until it has ended; whoever interrupts again does not want to wait."""
    for _ in range(2):
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        try:
            await process.wait()
            return
        except asyncio.CancelledError:
            continue


class _Shown:
    """One line of a notebook that is written over as the run goes on; nothing where there is no notebook."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: Any = None
        ipython = sys.modules.get("IPython")
        if ipython is not None and ipython.get_ipython() is not None:
            shown = import_module("IPython.display")
            self._html = shown.HTML
            self._handle = shown.display(self._html(self._page("starting")), display_id=True)

    def progress(self, told: Mapping[str, Any]) -> None:
        rows, done = int(told["rows"]), int(told["rows_done"])
        parts = [f"{done:,} of {rows:,} rows", f"{told['requests_per_second']} requests/s"]
        parts.append("cost not known" if told["cost_usd"] is None else f"${told['cost_usd']:.4f}")
        if told["rows_failed"]:
            parts.append(f"{told['rows_failed']:,} failed")
        if told["held"]:
            parts.append(str(told["held"]))
        elif told["seconds_left"] is not None and done < rows:
            parts.append(f"{told['seconds_left']:,} s left")
        self._show(f'<progress max="{max(rows, 1)}" value="{done}"></progress> {escape(" · ".join(parts))}')

    def end(self, words: str) -> None:
        self._show(escape(words))

    def _show(self, inner: str) -> None:
        if self._handle is not None:
            self._handle.update(self._html(self._page(inner)))

    def _page(self, inner: str) -> str:
        return f"<div>{escape(self._name)}: {inner}</div>"
