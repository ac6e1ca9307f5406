"""One invocation from job file to closing report: lock, ledger, recovery, sink, run."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from connectors.errors import DataError, JobError, RowmillError, Stopped
from connectors.registry import SINKS
from connectors.sql import identifier, scratch_connection
from connectors.tables.schema_checks import SchemaMismatch
from connectors.tables.schemas import failure_names
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.overrides import has_other_sink
from pipelines.dispatch.rescue.rescued_rows import forget_other_ladders, rescued_classes
from pipelines.execution.audits import check_audits, run_audits
from pipelines.execution.budget_checks import check_budget
from pipelines.execution.run_report import run_report
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.projection import append_usage, childless_rows
from pipelines.ledger.rebuilt_tables import RowCounts, count_committed, rebuild
from pipelines.maintenance.retention import drop_committed
from pipelines.monitoring.json_log import print_problem
from pipelines.preparation.job_warnings import job_warnings
from pipelines.preparation.prepared_job import PreparedJob, pack_of, prepare_job, with_learned_facts
from pipelines.preparation.schema_evolution import (
    cast_tables,
    check_backfill,
    gains_rungs_only,
    gains_types_only,
    has_keys,
    is_empty,
    refusal_with_remedies,
    schema_refusal,
    sink_types,
)
from pipelines.runtime.deferred_imports import import_phase
from pipelines.runtime.locks import job_lock, sink_lock, wait_for_ray_writers
from pipelines.runtime.run_options import RunOptions, SchemaChange
from pipelines.runtime.run_records import CLOSING, OpenRun, end_invocation, open_run
from pipelines.runtime.run_report import RunReport, StoppedBeforeStart
from pipelines.runtime.services import local_provider, open_workspace_ledger

if TYPE_CHECKING:
    from pipelines.dispatch.counters import RunCounters
    from pipelines.execution.job_run import RunOutcome


def run_invocation(
    loaded: LoadedJob, options: RunOptions, on_warning: Callable[[str], None] = lambda line: None
) -> RunReport:
    """Run the job until its rows are done or something stops it; `on_warning` is called with each warning."""
    with import_phase():
        from pipelines.execution.job_run import run_job
        from pipelines.monitoring.json_events import ProgressLog
        from pipelines.monitoring.json_log import print_defect
        from pipelines.monitoring.progress import progress_display
        from pipelines.monitoring.run_heartbeat import with_heartbeat
        from pipelines.monitoring.telemetry import start_telemetry
        from pipelines.runtime.event_loop import run_loop

    workspace = loaded.workspace
    make_engine = None
    if options.is_on_ray:
        from pipelines.engines.ray.driver import check_ray, ray_engine

        check_ray(loaded)
        make_engine = ray_engine
    with (
        _locked(loaded),
        open_workspace_ledger(workspace) as ledger,
        local_provider(loaded) as local_url,
        _prepare(loaded, ledger, local_url, options) as (ready, probed),
    ):
        for line in job_warnings(ready):
            on_warning(line)
        with _with_partial_report(ready, probed):
            _load_sink(ready, ledger, options)
        if _has_key_command(ready) and _has_open_rows(ready, options):
            _obtain_keys(ready)
        run = open_run(ledger, ready.job.name, options.is_new_run and probed is None)
        report: RunReport | None = None
        lines = (
            ProgressLog(ready.job.name, run.run_id, run.is_continued)
            if options.log == "json" and not options.is_quiet
            else None
        )
        follow = progress_display(ready.job.name, options.is_quiet) if lines is None else lines.follow
        observer = start_telemetry(ready, run.run_id)
        if observer is not None:
            follow = observer.wrap(follow)
        follow = with_heartbeat(workspace.state, ready.job.name, run.run_id, follow)
        try:
            # Ray prints to stdout, which belongs to results.
            with contextlib.redirect_stdout(sys.stderr) if options.is_on_ray else contextlib.nullcontext():
                ended = run_loop(run_job(ready, ledger, run, options, follow, make_engine, probed))
            if lines is not None:
                lines.log_changes()
            if ended.defect is not None:
                print_defect(ended.defect, options.log == "json", ready.job.name, run.run_id)
            report = _finish_run(ready, ledger, run, ended, options)
        finally:
            if observer is not None:
                observer.end_run(report)
        return report


@contextlib.contextmanager
def _locked(loaded: LoadedJob) -> Iterator[None]:
    """Lock the job and its sink for this process."""
    job, workspace = loaded.job, loaded.workspace
    with (
        job_lock(workspace.state, job.name),
        sink_lock(workspace.state, job.sink.location(workspace.folder), job.name),
    ):
        yield


@contextlib.contextmanager
def _prepare(
    loaded: LoadedJob, ledger: Ledger, local_url: str | None, options: RunOptions
) -> "Iterator[tuple[PreparedJob, RunCounters | None]]":
    """Prepare and check the job; probe embedding dimensions that neither the ledger nor the sink knows.

    Yields the job and the counters of the probe, None if nothing was sent.
    """
    from pipelines.dispatch.counters import RunCounters
    from pipelines.execution.embedding_dimensions import dimensions_from_sink, missing_dimensions, probe_dimensions
    from pipelines.runtime.event_loop import run_loop

    is_changing = options.schema_change is not None
    with prepare_job(
        loaded, ledger, local_url, sink_types=_sink_types, reinfer_types=is_changing, keeps_rungs=not is_changing
    ) as ready:
        for warning in ready.reader.warnings:
            print_problem(warning, options.log == "json", loaded.job.name, level="warning")
        with _with_partial_report(ready):
            check_before_run(ready)
        wait_for_ray_writers(ready.workspace.state, ready.job.name)
        ledger.recover(ready.job.name, [step.name for step in ready.job.steps if pack_of(step) is not None])
        if missing_dimensions(ready):
            with _with_partial_report(ready):
                dimensions_from_sink(ready, ledger)
            ready = with_learned_facts(ready, ledger)
        counters: RunCounters | None = None
        if missing_dimensions(ready):
            refused = schema_refusal(ready)
            if refused is not None and options.schema_change is None:
                raise refused
            _obtain_keys(ready)
            counters, run = RunCounters(), open_run(ledger, ready.job.name, options.is_new_run)
            with _with_partial_report(ready, counters, run.run_id):
                run_loop(probe_dimensions(ready, ledger, run, counters))
            ready = with_learned_facts(ready, ledger)
        yield ready, counters


def _sink_types(ready: PreparedJob) -> Mapping[str, str]:
    with _with_partial_report(ready):
        return sink_types(ready)


@contextlib.contextmanager
def _with_partial_report(
    ready: PreparedJob, counters: "RunCounters | None" = None, run_id: str | None = None
) -> Iterator[None]:
    """Attach a report to a Stopped: the row count, row states if there is no sink yet, and the cost of a probe."""
    from pipelines.dispatch.counters import RunCounters
    from pipelines.execution.job_run import RunOutcome

    try:
        yield
    except Stopped as exc:
        counters, rejects = counters or RunCounters(), len(ready.reader.rejects)
        counters.rows, counters.rows_failed = ready.selection.counts().rows + rejects, rejects
        report = run_report(ready.job.name, run_id, RunOutcome(exc.exit_code, str(exc), counters), ready.sink.tables())
        if run_id is None or ready.sink.exists():
            report = replace(report, rows_ok=None, rows_reused=None, rows_failed=None, rows_left=None, rows_out=None)
        raise StoppedBeforeStart(report) from exc


def _load_sink(ready: PreparedJob, ledger: Ledger, options: RunOptions) -> None:
    """Bring the sink's tables up to date, and find the rows that they have."""
    selection = ready.selection
    if options.fail_on == "new" and has_keys(ready):
        selection.load_old_errors(ready.sink, ready.job.sink.write == "replace")
    is_rewritten = prepare_sink(ready, ledger, options.schema_change)
    if options.row_keys is not None:
        selection.restrict(options.row_keys)
    if options.retried_classes is None:
        selection.rescued = rescued_classes(ready, ledger)
    forget_other_ladders(ready, ledger)
    selection.load_sink_state(
        None if is_rewritten else ready.sink,
        childless_rows(ledger, ready.job.name, ready.sink_name),
        keeps_outputs=is_rewritten,
    )


def check_before_run(ready: PreparedJob) -> None:
    """Raise the first error that can be found without a request."""
    _check_sink(ready)
    if ready.job.budget is not None or ready.workspace.budget is not None:
        check_budget(ready)
    check_audits(ready)
    ready.selection.check_keys()


def _has_key_command(ready: PreparedJob) -> bool:
    return any(member.key_source is not None for step in ready.requested_steps for member in step.members)


def _has_open_rows(ready: PreparedJob, options: RunOptions) -> bool:
    counts = ready.selection.counts(options.retried_classes or frozenset())
    return counts.rows > counts.done + counts.failed_before


def _obtain_keys(ready: PreparedJob) -> None:
    """Run the commands that print keys, before anything is recorded; JobError if one of them fails."""
    for step in ready.requested_steps:
        for member in step.members:
            if member.key_source is not None:
                member.key_source.prepare()


def _finish_run(
    ready: PreparedJob, ledger: Ledger, run: OpenRun, ended: "RunOutcome", options: RunOptions
) -> RunReport:
    """Audit the run and record its end in the ledger."""
    audits = run_audits(ready, run.run_id) if ended.exit_code in (0, 1) else []
    if not all(audit.passed for audit in audits):
        ended = replace(ended, exit_code=5)
    has_packs = any(getattr(step.model, "pack", None) is not None for step in ready.steps)
    report = run_report(ready.job.name, run.run_id, ended, ready.sink.tables())
    report = replace(report, audits=audits, has_packs=has_packs, control=ended.control)
    if ready.shape.child_index is not None:
        report = replace(report, rows_out=_count_rows(ready).results if ready.sink.exists() else None)
    try:
        end_invocation(ledger, run.run_id, report)
    except RowmillError:
        # A ledger that cannot be written has stopped the run already; the run stays open.
        if report.stopped is None:
            raise
    # Tables that do not stay are written from the answers again.
    is_table_kept = not options.is_trial and ready.job.sink.write != "replace"
    if ready.workspace.keep_answers == "committed" and is_table_kept and report.exit_code in CLOSING:
        if ready.workspace.durability == "power":
            # The tables replace the answers from now on: wait until their last files are on the disk.
            os.sync()
        drop_committed(ledger, ready.job.name, ready.sink_name, ready.shape, ready.scratch)
    return report


def _check_sink(ready: PreparedJob) -> None:
    loaded = ready.loaded
    if loaded.changed_by and ready.sink.exists() and _in_own_sink(ready):
        raise JobError(
            loaded.changed_by[0],
            f"changes answers, and {ready.sink_name} holds rows of the job as written",
            "add --sink PATH to write them elsewhere",
        )
    if ready.is_limited and ready.job.sink.write == "replace" and ready.sink.exists():
        raise JobError(
            loaded.locate("sink", "write"),
            f"replace would leave only the first rows in {ready.sink_name}",
            "run without a limit, or add --sink PATH",
        )


def _in_own_sink(ready: PreparedJob) -> bool:
    """Whether the run writes to the sink of the job as written, even if a flag names that same sink."""
    if not has_other_sink(ready.loaded.overrides, SINKS):
        return True
    written, folder = ready.loaded.written, ready.workspace.folder
    return written is not None and written.sink.location(folder) == ready.job.sink.location(folder)


def prepare_sink(ready: PreparedJob, ledger: Ledger, change: SchemaChange | None = None) -> bool:
    """Create the sink's tables or bring them up to date; missing ones are written again from the ledger.

    Returns whether the tables are rewritten: then every row is requested.
    """
    fresh = ready.job.sink.write == "replace"
    known = ledger.query(
        "select count(*) from commits where job = ? and sink = ?", (ready.job.name, ready.sink_name)
    ) != [(0,)]
    if known and not fresh and not ready.sink.exists():
        _rebuild_from_ledger(ready, ledger)
    try:
        ready.sink.prepare(fresh=fresh)
    except SchemaMismatch as exc:
        if is_empty(ready):
            # The types of a source that had no row so far are provisional.
            _rebuild_from_ledger(ready, ledger)
        elif change == "cast" or gains_types_only(ready, exc) or (change is None and gains_rungs_only(ready)):
            cast_tables(ready, ledger)
        elif change == "backfill":
            check_backfill(ready)
            fresh = True
        else:
            raise refusal_with_remedies(ready, exc) from exc
        ready.sink.prepare(fresh=fresh)
    append_usage(ledger, ready.sink, ready.job.name)
    return fresh


def rebuild_tables(loaded: LoadedJob, leave_out: bool = False) -> tuple[RowCounts, RowCounts, Mapping[str, str]]:
    """Write results and errors again from the ledger; return (rows written, rows fewer than before, tables).

    Raises DataError and changes nothing if rows would be lost because their answers, or the record of their failure,
    were pruned, unless `leave_out`.
    """
    workspace = loaded.workspace
    with (
        _locked(loaded),
        open_workspace_ledger(workspace) as ledger,
        _prepare_rebuild(loaded, ledger) as ready,
    ):
        has_sink = ready.sink.exists()
        before = (
            _count_rows(ready)
            if has_sink
            else count_committed(ledger, ready.job.name, ready.sink_name, ready.shape, ready.scratch)
        )
        # Without tables there is nothing to lose.
        rows = _rebuild_from_ledger(ready, ledger, None if leave_out or not has_sink else before)
        append_usage(ledger, ready.sink, ready.job.name)
        fewer = RowCounts(max(0, before.results - rows.results), max(0, before.errors - rows.errors))
        return rows, fewer, ready.sink.tables()


@contextlib.contextmanager
def _prepare_rebuild(loaded: LoadedJob, ledger: Ledger) -> Iterator[PreparedJob]:
    """Prepare a job without its source; with it if its columns were not saved, or do not fit the job any more."""
    with contextlib.ExitStack() as closing:
        try:
            ready = closing.enter_context(prepare_job(loaded, ledger, sink_types=sink_types, reads_source=False))
        except (JobError, DataError):
            ready = closing.enter_context(prepare_job(loaded, ledger, sink_types=sink_types))
        yield ready


def _count_rows(ready: PreparedJob) -> RowCounts:
    """Count the rows of the tables, without the errors of rejected lines, which only the source has."""
    with scratch_connection(ready.scratch) as db:
        ready.sink.attach(db)
        ((results,),) = db.execute(f"select count(*) from {ready.sink.results_sql()}").fetchall()
        step = identifier(failure_names(ready.shape.key)["step"])
        ((errors,),) = db.execute(f"select count({step}) from {ready.sink.errors_sql()}").fetchall()
        ready.sink.detach(db)
    return RowCounts(int(results), int(errors))


def _rebuild_from_ledger(ready: PreparedJob, ledger: Ledger, at_least: RowCounts | None = None) -> RowCounts:
    ready.sink.prepare(fresh=True)
    endpoints = [step.endpoint for step in ready.stored_steps]
    rows = rebuild(ledger, ready.sink, ready.job.name, ready.sink_name, ready.shape, endpoints, ready.scratch)
    remedy = "nothing was changed: leave the table as it is, or add --leave-out"
    at_least = at_least or RowCounts()
    if rows.results < at_least.results:
        refused = schema_refusal(ready)
        if refused is not None:
            raise refused
        raise DataError(
            ready.sink_name,
            f"{at_least.results - rows.results:,} of {at_least.results:,} rows cannot be written again, since their "
            "answers are no longer in the ledger, or were given when the job was declared otherwise",
            remedy,
        )
    if rows.errors < at_least.errors:
        raise DataError(
            ready.sink_name,
            f"{at_least.errors - rows.errors:,} of {at_least.errors:,} errors cannot be written again, since their "
            "record was pruned from the ledger; without it the next run sends these rows again",
            remedy,
        )
    ready.sink.finish()
    return rows
