"""One invocation from job file to closing report: lock, ledger, recovery, sink, run."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from connectors.errors import DataError, JobError, RowmillError, Stopped
from connectors.registry import SINKS
from connectors.sql import query_connection
from connectors.tables.schema_checks import OtherColumns
from pipelines.config.job import LoadedJob, load_job
from pipelines.config.overrides import Overrides, gives_sink
from pipelines.config.workspace import Workspace, find_workspace
from pipelines.dispatch.provider_routes import member_price, step_price
from pipelines.execution.audits import check_audits, run_audits
from pipelines.execution.run_report import StoppedEarly, summary
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.projection import add_usage, rebuild
from pipelines.maintenance.retention import drop_committed
from pipelines.preparation.prepared_job import ReadyJob, placed, prepared
from pipelines.preparation.schema_evolution import (
    SchemaChange,
    cast_tables,
    check_backfill,
    is_empty,
    refusal,
    types_there,
)
from pipelines.runtime.locks import await_crew, job_lock, sink_lock
from pipelines.runtime.run_records import CLOSING, OpenRun, end_invocation, open_run
from pipelines.runtime.services import local_provider, opened_ledger

if TYPE_CHECKING:
    from pipelines.dispatch.counters import Tally
    from pipelines.execution.job_run import Ended


def invoke(
    path: Path,
    overrides: Overrides,
    new_run: bool,
    retry: frozenset[str] | None,
    log: Literal["plain", "json"],
    quiet: bool,
    on_ray: bool = False,
    change: SchemaChange | None = None,
) -> dict[str, Any]:
    """Run the job as far as it comes; the object of `--json`. `on_ray`: by the workers of a Ray cluster. `change`: what
    to do where the sink's tables have other columns; None: refuse."""
    from pipelines.execution.job_run import RunOptions, run_job
    from pipelines.monitoring.json_events import ProgressLog
    from pipelines.monitoring.json_log import tell_defect
    from pipelines.monitoring.progress import progress
    from pipelines.monitoring.run_heartbeat import noted
    from pipelines.monitoring.telemetry import telemetry
    from pipelines.runtime.event_loop import run_loop

    loaded = load_job(path, overrides)
    workspace = find_workspace(path)
    engine = None
    if on_ray:
        from pipelines.engines.ray.driver import check_ray, ray_engine

        check_ray(loaded)
        engine = ray_engine
    with (
        _locked(loaded, workspace),
        opened_ledger(workspace) as ledger,
        local_provider(loaded, workspace) as local_url,
        _sized(loaded, workspace, ledger, local_url, overrides, new_run, change) as (ready, tally),
    ):
        with _early(ready, tally):
            anew = prepare_sink(ready, ledger, change)
            ready.selection.see(None if anew else ready.sink)
        run = open_run(ledger, ready.job.name, new_run and tally is None)
        told: dict[str, Any] | None = None
        lines = ProgressLog(ready.job.name, run.run_id, run.continued) if log == "json" and not quiet else None
        follow = progress(ready.job.name, quiet) if lines is None else lines.follow
        observer = telemetry(ready, run.run_id)
        if observer is not None:
            follow = observer.following(follow)
        follow = noted(workspace.state, ready.job.name, run.run_id, follow)
        try:
            # Ray tells of its workers on stdout, which is for results.
            with contextlib.redirect_stdout(sys.stderr) if on_ray else contextlib.nullcontext():
                ended = run_loop(run_job(ready, ledger, run, RunOptions(retry, engine=engine, tally=tally), follow))
            if lines is not None:
                lines.look()
            if ended.defect is not None:
                tell_defect(ended.defect, log == "json", ready.job.name, run.run_id)
            told = _closed(ready, ledger, run, ended)
        finally:
            if observer is not None:
                observer.ended(told)
        return told


@contextlib.contextmanager
def _locked(loaded: LoadedJob, workspace: Workspace) -> Iterator[None]:
    """The job and the place where it writes, for this process alone."""
    job = loaded.job
    with (
        job_lock(workspace.state, job.name),
        sink_lock(workspace.state, job.sink.place(workspace.folder), job.name),
    ):
        yield


@contextlib.contextmanager
def _sized(
    loaded: LoadedJob,
    workspace: Workspace,
    ledger: Ledger,
    local_url: str | None,
    overrides: Overrides,
    new_run: bool,
    change: SchemaChange | None,
) -> "Iterator[tuple[ReadyJob, Tally | None]]":
    """The job, checked; and what was counted where its vectors' length had to be asked for first."""
    from pipelines.dispatch.counters import Tally
    from pipelines.execution.embedding_dimensions import ask_sizes, seen_in_sink, unsized
    from pipelines.runtime.event_loop import run_loop

    tally: Tally | None = None
    for look in (seen_in_sink, None):
        with prepared(
            loaded, workspace, ledger, local_url, types_of=_types_there, guessed_anew=change is not None
        ) as ready:
            with _early(ready):
                _check(ready, overrides)
            await_crew(workspace.state, ready.job.name)
            ledger.recover(ready.job.name)
            if not unsized(ready):
                yield ready, tally
                return
            if look is not None:
                with _early(ready):
                    look(ready, ledger)
                continue
            refused = refusal(ready)
            if refused is not None and change is None:
                raise refused
            tally, run = Tally(), open_run(ledger, ready.job.name, new_run)
            with _early(ready, tally, run.run_id):
                run_loop(ask_sizes(ready, ledger, run, tally))
    with prepared(
        loaded, workspace, ledger, local_url, types_of=_types_there, guessed_anew=change is not None
    ) as ready:
        yield ready, tally


def _types_there(ready: ReadyJob) -> Mapping[str, str]:
    with _early(ready):
        return types_there(ready)


@contextlib.contextmanager
def _early(ready: ReadyJob, tally: "Tally | None" = None, run_id: str | None = None) -> Iterator[None]:
    """Gives a Stopped what is known of the job: how many rows there are, how they stand where there is no sink yet,
    and what has been spent on learning how long vectors are."""
    from pipelines.dispatch.counters import Tally
    from pipelines.execution.job_run import Ended

    try:
        yield
    except Stopped as exc:
        tally, rejects = tally or Tally(), len(ready.reader.rejects)
        tally.rows, tally.rows_failed = ready.selection.counts().rows + rejects, rejects
        told = summary(ready.job.name, "", Ended(exc.exit_code, str(exc), tally, 0), ready.sink.tables())
        told["run_id"] = run_id
        if run_id is None or ready.sink.present():
            told |= dict.fromkeys(("rows_ok", "rows_reused", "rows_failed", "rows_left"))
        raise StoppedEarly(str(exc), told) from exc


def _check(ready: ReadyJob, overrides: Overrides) -> None:
    """All that can be wrong is told before anything is sent."""
    _check_sink(ready, overrides)
    _check_budget(ready)
    check_audits(ready)
    with placed(ready.loaded):
        ready.selection.check_keys()


def _closed(ready: ReadyJob, ledger: Ledger, run: OpenRun, ended: "Ended") -> dict[str, Any]:
    """The report, the run audited and noted in the ledger."""
    audits = run_audits(ready, run.run_id) if ended.exit_code in (0, 1) else []
    if not all(audit.passed for audit in audits):
        ended = replace(ended, exit_code=5)
    told = summary(ready.job.name, run.run_id, ended, ready.sink.tables())
    if audits:
        told["audits"] = [audit.as_json() for audit in audits]
    try:
        end_invocation(ledger, run.run_id, ended.exit_code, ended.stopped, told)
    except RowmillError:
        # A run that was stopped since the ledger cannot be written has told so, and stays open.
        if ended.stopped is None:
            raise
    if ready.workspace.keep_answers == "committed" and ended.exit_code in CLOSING:
        drop_committed(ledger, ready.job.name, ready.sink_name)
    return told


def _check_sink(ready: ReadyJob, overrides: Overrides) -> None:
    loaded = ready.loaded
    if loaded.changed_by and ready.sink.present() and _in_own_sink(ready, overrides):
        raise JobError(
            f"{loaded.changed_by[0]}: changes answers, and {ready.sink_name} holds rows of the job as written; "
            "add --sink PATH to write them elsewhere"
        )
    if ready.limited and ready.job.sink.write == "replace" and ready.sink.present():
        raise JobError(
            f"{loaded.at('sink', 'write')}: replace would leave only the first rows in {ready.sink_name}; "
            "run without a limit, or add --sink PATH"
        )


def _in_own_sink(ready: ReadyJob, overrides: Overrides) -> bool:
    """Whether the run writes where the job as written does, also where a flag names that very place."""
    if not gives_sink(overrides, SINKS):
        return True
    try:
        written = load_job(ready.loaded.path).job.sink
    except JobError:
        return False
    folder = ready.workspace.folder
    return written.place(folder) == ready.job.sink.place(folder)


def _check_budget(ready: ReadyJob) -> None:
    """With a budget, a step that could cost anything is refused."""
    if ready.job.budget is None and ready.workspace.budget is None:
        return
    for step in ready.steps:
        where = ready.loaded.at("steps", step.model.name, "model")
        price = step_price(ready, step)
        if price is None:
            unpriced = [member.name for member in step.members if member_price(ready, step, member) is None]
            at = f" at {', '.join(unpriced)}" if step.pooled else ""
            raise JobError(
                f"{where}: no price is known for {step.model.model}{at}, so no budget can hold; "
                "add it to `prices:` in rowmill.yaml"
            )
        if step.endpoint.output_bound is None and price.output_per_million:
            raise JobError(
                f"{where}: nothing bounds what an answer of {step.model.model} may cost, so no budget can hold; "
                "add params: {max_tokens: N}"
            )


def prepare_sink(ready: ReadyJob, ledger: Ledger, change: SchemaChange | None = None) -> bool:
    """The sink's tables, there and up to date; where they are gone, what the ledger knows of them is written again.
    Whether all rows are to be asked, and the tables written anew."""
    fresh = ready.job.sink.write == "replace"
    known = ledger.query(
        "select count(*) from commits where job = ? and sink = ?", (ready.job.name, ready.sink_name)
    ) != [(0,)]
    if known and not fresh and not ready.sink.present():
        _write_again(ready, ledger)
    try:
        ready.sink.prepare(fresh=fresh)
    except OtherColumns:
        if is_empty(ready):
            # Of a source that had no row yet the types are not what they will be.
            _write_again(ready, ledger)
        elif change == "cast":
            cast_tables(ready, ledger)
        elif change == "backfill":
            check_backfill(ready)
            fresh = True
        else:
            raise
        ready.sink.prepare(fresh=fresh)
    add_usage(ledger, ready.sink, ready.job.name)
    return fresh


def rebuilt(path: Path, leave_out: bool = False) -> tuple[int, int, Mapping[str, str]]:
    """(rows that results hold, rows fewer than before, tables) after writing results and errors again from the ledger.

    DataError, the tables left as they are, where rows would be lost since their answers were pruned; `leave_out`: they
    may be.
    """
    loaded = load_job(path)
    workspace = find_workspace(path)
    with (
        _locked(loaded, workspace),
        opened_ledger(workspace) as ledger,
        prepared(loaded, workspace, ledger, types_of=types_there) as ready,
    ):
        before = _rows_there(ready)
        rows = _write_again(ready, ledger, 0 if leave_out else before)
        add_usage(ledger, ready.sink, ready.job.name)
        return rows, max(0, before - rows), ready.sink.tables()


def _rows_there(ready: ReadyJob) -> int:
    if not ready.sink.present():
        return 0
    with query_connection(ready.scratch) as db:
        ready.sink.attach(db)
        ((rows,),) = db.execute(f"select count(*) from {ready.sink.results_sql()}").fetchall()
        ready.sink.detach(db)
    return int(rows)


def _write_again(ready: ReadyJob, ledger: Ledger, fewest: int = 0) -> int:
    ready.sink.prepare(fresh=True)
    endpoints = [step.endpoint for step in ready.steps]
    rows = rebuild(ledger, ready.sink, ready.job.name, ready.sink_name, ready.shape, endpoints)
    if rows < fewest:
        refused = refusal(ready)
        if refused is not None:
            raise refused
        raise DataError(
            f"{ready.sink_name}: {fewest - rows:,} of {fewest:,} rows cannot be written again, since their answers are "
            "no longer in the ledger, or were given when the job was declared otherwise; nothing was changed: leave "
            "the table as it is, or add --leave-out"
        )
    ready.sink.finish()
    return rows
