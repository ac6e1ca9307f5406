"""`rowmill run` and `rowmill retry`: run one job or many, and print how each ended."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from connectors.error_classes import FATAL_ERROR_CLASSES, ROW_ERROR_CLASSES, TRANSIENT_ERROR_CLASSES
from connectors.errors import JobError, RowmillError, did_you_mean, from_duckdb_error, from_os_error
from pipelines.commands.options import job_argument, job_files, override_options
from pipelines.config.overrides import NONE, Overrides
from pipelines.monitoring.json_log import DEFECT_MESSAGE, LogLevel, log_event, print_defect, print_problem
from pipelines.runtime.interrupts import was_interrupted
from pipelines.runtime.run_options import FailOn, RunOptions, SchemaChange
from pipelines.runtime.run_report import RunReport, StoppedBeforeStart

if TYPE_CHECKING:
    from pipelines.config.job_graph import GraphJob
    from pipelines.config.loaded_job import LoadedJob

WORST_FIRST = (2, 3, 130, 4, 5, 1, 0)
"""Exit codes, worst first: the worst of several jobs is the exit code of the command."""

as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per job, one per line, on stdout."
)
log_option = click.option(
    "--log", type=click.Choice(["plain", "json"]), default="plain", show_default=True, help="Progress output format."
)
fail_on_option = click.option(
    "--fail-on",
    type=click.Choice(["any", "new"]),
    default="any",
    show_default=True,
    help="End with exit code 1 if any row is in errors, or only if a row failed in this run.",
)
passed_option = click.option(
    "--passed", "is_passed", is_flag=True, hidden=True, help="JOB is a job that Python passes."
)
quiet_option = click.option("--quiet", is_flag=True, help="Suppress progress and summary; still print errors.")


@click.command("run")
@job_argument(many=True)
@override_options
@click.option("--new-run", is_flag=True, help="Close the job's open run and start another, with its own budget.")
@click.option(
    "--schema-change",
    "change",
    type=click.Choice(["cast", "backfill"]),
    help="If the sink's tables have other columns: cast their rows, or request all rows again.",
)
@click.option(
    "--compare", is_flag=True, help="With --limit: show old and new answers side by side; nothing is written."
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Run in this process or on Ray workers.",
)
@passed_option
@fail_on_option
@as_json_option
@log_option
@quiet_option
def run_command(
    jobs: tuple[str, ...],
    overrides: Overrides,
    new_run: bool,
    change: SchemaChange | None,
    compare: bool,
    engine: str,
    is_passed: bool,
    fail_on: FailOn,
    as_json: bool,
    log: str,
    quiet: bool,
) -> int:
    """Run jobs: request all rows that have no answer yet.

    Writes the tables results, usage and errors. JOB is a job file or a folder of them. Rows that are done are never
    requested again: run it as often as you like.

    \b
    Examples:
      rowmill run jobs/quickstart.yaml
      rowmill run jobs/quickstart.yaml --limit 20 --sink out/try --set steps.label.model=gpt-4o
      rowmill run jobs/quickstart.yaml --limit 20 --compare --set steps.label.model=gpt-4o
      rowmill run jobs/quickstart.yaml --schema-change cast
      rowmill run jobs/ --json --quiet
    """
    on_ray = engine == "ray"
    if compare:
        with _reporting_errors(job_files(jobs) if as_json else ()):
            if on_ray:
                raise JobError("--compare", "sends only a few rows", "leave --engine ray out")
            if change is not None:
                raise JobError("--compare", "writes nothing", "leave --schema-change out")
        options = RunOptions(is_new_run=True, log="json" if log == "json" else "plain", is_quiet=quiet)
        return _compare(jobs, overrides, options, as_json)
    options = RunOptions(
        new_run, None, change, on_ray, "json" if log == "json" else "plain", is_quiet=quiet, fail_on=fail_on
    )
    return _run_all(jobs, overrides, options, as_json, is_passed)


@click.command("retry")
@job_argument(many=False)
@click.option("--class", "classes", metavar="CLASS,...", help="Only these error classes. Default: all.")
@passed_option
@fail_on_option
@as_json_option
@log_option
@quiet_option
def retry_command(
    job: str, classes: str | None, is_passed: bool, fail_on: FailOn, as_json: bool, log: str, quiet: bool
) -> int:
    """Run a job, and request its failed rows again.

    \b
    Examples:
      rowmill retry jobs/quickstart.yaml
      rowmill retry jobs/quickstart.yaml --class invalid_answer,length
    """
    known = ROW_ERROR_CLASSES | TRANSIENT_ERROR_CLASSES | FATAL_ERROR_CLASSES | {"unknown", "budget"}
    wanted = frozenset(known if classes is None else (name.strip() for name in classes.split(",")))
    with _reporting_errors(job_files((job,)) if as_json else ()):
        for name in sorted(wanted - known):
            raise JobError(f"--class {name}", "no such error class", did_you_mean(name, known))
    options = RunOptions(
        retried_classes=wanted, log="json" if log == "json" else "plain", is_quiet=quiet, fail_on=fail_on
    )
    return _run_all((job,), NONE, options, as_json, is_passed)


@contextlib.contextmanager
def _reporting_errors(files: Iterable[Path]) -> Iterator[None]:
    """Print a report for each of these files if an error ends the command before any job begins."""
    from pipelines.config.loaded_job import read_job_name

    try:
        yield
    except RowmillError as exc:
        if was_interrupted():
            raise
        for file in files:
            report = RunReport(read_job_name(file), exit_code=exc.exit_code, stopped=str(exc))
            click.echo(orjson.dumps(report.to_json()))
        raise


def _compare(jobs: tuple[str, ...], overrides: Overrides, options: RunOptions, as_json: bool) -> int:
    from pipelines.config.loaded_job import load_job
    from pipelines.execution.compare_run import compare_run, format_comparison
    from pipelines.formatting import print_out

    codes: list[int] = []
    for path in job_files(jobs):
        with _reporting_errors((path,) if as_json else ()):
            report = compare_run(load_job(path, overrides), options)
        codes.append(report.exit_code)
        if as_json:
            click.echo(orjson.dumps(report.to_json(), default=str))
        else:
            print_out(format_comparison(report))
    return min(codes, key=WORST_FIRST.index, default=0)


def _run_all(
    jobs: tuple[str, ...], overrides: Overrides, options: RunOptions, as_json: bool, is_passed: bool = False
) -> int:
    """Run the jobs; `is_passed`: each file holds a job that Python passes."""
    from pipelines.runtime.deferred_imports import defer_imports, import_phase

    with import_phase():
        defer_imports()
        from pipelines.config.job_graph import GraphJob, load_jobs, sort_jobs
        from pipelines.config.loaded_job import load_job
        from pipelines.execution.multi_job import run_jobs
        from pipelines.formatting import print_out
        from pipelines.reporting.run_summary import format_report

        load: Callable[[Path, Overrides], LoadedJob] = load_job
        if is_passed:
            from pipelines.config.from_python.passed_job import load_passed_job

            load = load_passed_job

    codes: list[int] = []
    as_lines = options.log == "json"

    def on_end(job: GraphJob, report: RunReport) -> None:
        codes.append(report.exit_code)
        if as_json:
            click.echo(orjson.dumps(report.to_json()))
        elif not report.has_begun:
            if report.is_skipped:
                print_problem(f"{job.name}: {report.stopped}; fix that and run again", as_lines, job.name)
        elif not options.is_quiet:
            print_out(format_report(report, str(job.path), getattr(job.require().job.sink, "duckdb", None)))
        elif report.stopped is not None:
            print_problem(f"{report.job}: stopped: {report.stopped}", as_lines, report.job, report.run_id)

    files = job_files(jobs)
    with _reporting_errors(files if as_json else ()):
        graph = sort_jobs(load_jobs(files, overrides, load))
    if len(graph) == 1:
        on_end(graph[0], _run_one(graph[0], options))
    else:
        flags = [*overrides.flags(), "--json", "--log", options.log, "--fail-on", options.fail_on]
        flags += ["--new-run"] if options.is_new_run else []
        flags += ["--engine", "ray"] if options.is_on_ray else []
        flags += ["--quiet"] if options.is_quiet else []
        flags += [f"--schema-change={options.schema_change}"] if options.schema_change is not None else []
        run_jobs(graph, flags, on_end)
    return min(codes, key=WORST_FIRST.index, default=0)


def _run_one(job: "GraphJob", options: RunOptions) -> RunReport:
    """Run one job in this process; print errors to stderr and hand the report to `on_finish`."""
    from pipelines.runtime.deferred_imports import import_phase

    with import_phase():
        from pipelines.config.loaded_job import read_job_name
        from pipelines.execution.invocation import run_invocation
        from pipelines.execution.notifications import notify

    as_lines = options.log == "json"
    report = RunReport(job.name if job.loaded is not None else read_job_name(job.path))

    def print_here(message: str, level: LogLevel = "error") -> None:
        if as_lines:
            log_event("problem", report.job, report.run_id, level, message=message)
        else:
            click.echo(message, err=True)

    try:
        loaded = job.require()
        if not options.is_quiet:
            # Before the key is sent.
            for warning in loaded.workspace.warnings(loaded.job.providers):
                print_here(warning, "warning")
        warn = (lambda line: None) if options.is_quiet else functools.partial(print_here, level="warning")
        report = run_invocation(loaded, options, warn)
    except StoppedBeforeStart as exc:
        report = exc.report
        print_here(str(exc))
    except (RowmillError, OSError) as exc:
        if was_interrupted():
            raise
        problem = from_os_error(exc) if isinstance(exc, OSError) else exc
        report = RunReport(report.job, exit_code=problem.exit_code, stopped=str(problem))
        print_here(str(problem))
    except Exception as exc:
        if was_interrupted():
            raise
        if (broken := from_duckdb_error(exc)) is not None:
            report = RunReport(report.job, exit_code=broken.exit_code, stopped=str(broken))
            print_here(str(broken))
        else:
            report = RunReport(report.job, exit_code=3, stopped=DEFECT_MESSAGE)
            print_defect(exc, as_lines, report.job, None)
    for audit in report.audits:
        if not audit.passed:
            print_here(f"{report.job}: {audit.problem}")
    if job.loaded is not None and (failure := notify(job.loaded, report)) is not None:
        print_here(failure)
    if as_lines and not options.is_quiet:
        level: LogLevel = "info" if report.exit_code == 0 else "warning" if report.exit_code == 1 else "error"
        log_event("finish", report.job, report.run_id, level, report=report.to_record())
    return report
