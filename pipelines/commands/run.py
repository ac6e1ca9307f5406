"""`rowmill run` and `rowmill retry`: ask for the rows of one job or of many, and tell how it ended."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import orjson

from connectors.errors import INTERRUPTED_QUERY, JobError, RowmillError, from_database, from_system
from connectors.records import OWN_CLASSES, RETRIED_CLASSES, STOPPING_CLASSES
from pipelines.commands.options import job_argument, job_files, override_options
from pipelines.config.overrides import NONE, Overrides
from pipelines.monitoring.json_log import DEFECT, Level, log_line, tell_defect, tell_problem

if TYPE_CHECKING:
    from pipelines.preparation.schema_evolution import SchemaChange

WORST_FIRST = (2, 3, 130, 4, 5, 1, 0)
"""Of several jobs the worst exit code counts, in this order."""

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a job, one a line, on stdout.")
log_option = click.option(
    "--log", type=click.Choice(["plain", "json"]), default="plain", show_default=True, help="How progress is told."
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress and no closing words; mistakes are still told.")


@click.command("run")
@job_argument(many=True)
@override_options
@click.option("--new-run", is_flag=True, help="Close the job's open run and begin another, with a budget of its own.")
@click.option(
    "--schema-change",
    "change",
    type=click.Choice(["cast", "backfill"]),
    help="Where the sink's tables have other columns: cast their rows, or ask all rows again beside them.",
)
@click.option("--compare", is_flag=True, help="With --limit: old and new answers side by side; nothing is written.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where to run.")
@as_json_option
@log_option
@quiet_option
def run_command(
    jobs: tuple[str, ...],
    overrides: Overrides,
    new_run: bool,
    change: "SchemaChange | None",
    compare: bool,
    engine: str,
    as_json: bool,
    log: str,
    quiet: bool,
) -> int:
    """Ask for every row that has no answer yet, and write results, usage and errors.

    JOB is a job file or a folder of them. What is done is never asked again: run it as often as you like.

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
        with _telling(job_files(jobs) if as_json else ()):
            if on_ray:
                raise JobError("--compare: asks for a few rows only; leave --engine ray out")
            if change is not None:
                raise JobError("--compare: writes nothing; leave --schema-change out")
        return _compare(jobs, overrides, as_json, "json" if log == "json" else "plain", quiet)
    return _run_all(jobs, overrides, new_run, None, as_json, log, quiet, on_ray, change)


@click.command("retry")
@job_argument(many=False)
@click.option("--class", "classes", metavar="CLASS,...", help="Only these error classes. Default: all.")
@as_json_option
@log_option
@quiet_option
def retry_command(job: str, classes: str | None, as_json: bool, log: str, quiet: bool) -> int:
    """Run the job, and ask again for rows that failed for a reason of their own.

    \b
    Examples:
      rowmill retry jobs/quickstart.yaml
      rowmill retry jobs/quickstart.yaml --class invalid_answer,length
    """
    known = OWN_CLASSES | RETRIED_CLASSES | STOPPING_CLASSES | {"unknown", "budget"}
    wanted = frozenset(known if classes is None else (name.strip() for name in classes.split(",")))
    with _telling(job_files((job,)) if as_json else ()):
        for name in sorted(wanted - known):
            raise JobError(f"--class {name}: no such error class; known here: {', '.join(sorted(known))}")
    return _run_all((job,), NONE, False, wanted, as_json, log, quiet)


@contextlib.contextmanager
def _telling(files: Iterable[Path]) -> Iterator[None]:
    """A mistake that ends the command before any job begins is told for each of these files on stdout."""
    from pipelines.execution.run_report import job_name, nothing_done

    try:
        yield
    except RowmillError as exc:
        for file in files:
            click.echo(orjson.dumps(nothing_done(job_name(file), exc.exit_code, str(exc))))
        raise


def _compare(
    jobs: tuple[str, ...], overrides: Overrides, as_json: bool, log: Literal["plain", "json"], quiet: bool
) -> int:
    from pipelines.execution.compare_run import compare_run, in_words
    from pipelines.execution.run_report import for_programs

    codes: list[int] = []
    for path in job_files(jobs):
        with _telling((path,) if as_json else ()):
            report = compare_run(path, overrides, log, quiet)
        codes.append(report["exit_code"])
        click.echo(orjson.dumps(for_programs(report), default=str) if as_json else in_words(report))
    return min(codes, key=WORST_FIRST.index, default=0)


def _run_all(
    jobs: tuple[str, ...],
    overrides: Overrides,
    new_run: bool,
    retry: frozenset[str] | None,
    as_json: bool,
    log: str,
    quiet: bool,
    on_ray: bool = False,
    change: "SchemaChange | None" = None,
) -> int:
    from pipelines.config.job_graph import GraphJob, graph_of
    from pipelines.execution.multi_job import run_many
    from pipelines.execution.run_report import for_programs, in_words

    codes: list[int] = []
    as_lines = log == "json"

    def ended(job: GraphJob, told: dict[str, Any]) -> None:
        codes.append(told["exit_code"])
        if as_json:
            click.echo(orjson.dumps(for_programs(told)))
        elif told["rows_ok"] is None:
            if str(told["stopped"]).startswith("not run"):
                tell_problem(f"{job.name}: {told['stopped']}; mend that and run again", as_lines, job.name)
        elif not quiet:
            click.echo(in_words(told, str(job.path)))
        elif told["stopped"] is not None:
            tell_problem(f"{told['job']}: stopped: {told['stopped']}", as_lines, told["job"], told["run_id"])

    files = job_files(jobs)
    with _telling(files if as_json else ()):
        graph = graph_of(files, overrides)
    if len(graph) == 1:
        one = graph[0]
        told = _one(one.path, overrides, new_run, retry, "json" if log == "json" else "plain", quiet, on_ray, change)
        ended(one, told)
    else:
        flags = [*overrides.flags(), "--json", "--log", log]
        flags += ["--new-run"] if new_run else []
        flags += ["--engine", "ray"] if on_ray else []
        flags += ["--quiet"] if quiet else []
        flags += [f"--schema-change={change}"] if change is not None else []
        run_many(graph, flags, ended)
    return min(codes, key=WORST_FIRST.index, default=0)


def _one(
    path: Path,
    overrides: Overrides,
    new_run: bool,
    retry: frozenset[str] | None,
    log: Literal["plain", "json"],
    quiet: bool,
    on_ray: bool,
    change: "SchemaChange | None",
) -> dict[str, Any]:
    """The `--json` object of one job, run in this process; a mistake is told on stderr, on_finish is told all."""
    from pipelines.config.job import load_job
    from pipelines.config.workspace import find_workspace
    from pipelines.execution.audits import failed_words
    from pipelines.execution.invocation import invoke
    from pipelines.execution.notifications import notify_of
    from pipelines.execution.run_report import StoppedEarly, job_name, nothing_done

    def say(words: str, level: Level = "error") -> None:
        if log == "json":
            log_line("problem", told["job"], told["run_id"], level, message=words)
        else:
            click.echo(words, err=True)

    told = nothing_done(job_name(path), 0, None)
    try:
        workspace, job = find_workspace(path), load_job(path, overrides).job
        for warning in workspace.warnings(step.provider for step in job.steps) if not quiet else ():
            # Before the key has gone over the wire.
            say(warning, "warning")
        told = invoke(path, overrides, new_run, retry, log, quiet, on_ray, change)
    except (RowmillError, OSError) as exc:
        problem = from_system(exc) if isinstance(exc, OSError) else exc
        known = problem.told if isinstance(problem, StoppedEarly) else {}
        told = nothing_done(told["job"], problem.exit_code, str(problem)) | known
        say(str(problem))
    except Exception as exc:
        if str(exc) == INTERRUPTED_QUERY:
            raise
        if (broken := from_database(exc)) is not None:
            told = nothing_done(told["job"], broken.exit_code, str(broken))
            say(str(broken))
        else:
            told = nothing_done(told["job"], 3, DEFECT)
            tell_defect(exc, log == "json", told["job"], None)
    for failed in failed_words(told.get("audits", ())):
        say(f"{told['job']}: {failed}")
    if (warned := notify_of(path, overrides, told)) is not None:
        say(warned)
    if log == "json" and not quiet:
        level: Level = "info" if told["exit_code"] == 0 else "warning" if told["exit_code"] == 1 else "error"
        log_line("finish", told["job"], told["run_id"], level, report=told)
    return told
