"""`rowmill validate` and `rowmill schema`: check job files, and print their JSON Schema."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from connectors.errors import LocatedError, NoResultsYet, RowmillError
from pipelines.commands.options import job_argument, job_files

if TYPE_CHECKING:
    from pipelines.config.loaded_job import LoadedJob


@click.command("validate")
@job_argument(many=True)
def validate_command(jobs: tuple[str, ...]) -> int:
    """Check job files without sending or writing anything.

    Checks them against their workspace, the columns of their source and the tables of their sink. If a job reads the
    results of another of these jobs that has not run yet, a message says that its columns were not checked.

    \b
    Example:
      rowmill validate jobs/
    """
    from pipelines.config.job_graph import awaits_results, load_jobs, sort_jobs

    worst = 0
    found: set[str] = set()
    env_files: set[Path] = set()
    candidates = load_jobs(job_files(jobs))
    for candidate in candidates:
        try:
            loaded = candidate.require()
            from_file = loaded.workspace.env_file_names()
            if from_file is not None and from_file[0] not in env_files:
                env_files.add(from_file[0])
                click.echo(f"{from_file[0]}: read for {', '.join(from_file[1]) or 'no variable'}")
            _validate(loaded)
        except NoResultsYet as exc:
            click.echo(str(exc), err=True)
            # A run of them all makes the results first; all else about this job is checked.
            worst = worst if awaits_results(candidate, candidates) else 2
        except RowmillError as exc:
            # Of several jobs, an error in a data file or in rowmill.yaml names the one that uses it.
            is_named = len(candidates) == 1 or str(exc).startswith(str(candidate.path))
            click.echo(str(exc) if is_named else f"{candidate.path}: {exc}", err=True)
            found.add(exc.found if isinstance(exc, LocatedError) else "")
            worst = 2
    try:
        sort_jobs(candidates)
    except LocatedError as exc:
        # A job in a cycle was refused by itself above.
        if exc.found not in found:
            click.echo(str(exc), err=True)
        worst = 2
    return worst


def _validate(loaded: "LoadedJob") -> None:
    """Check one job, and print its warnings; raise the first error."""
    import contextlib

    from pipelines.execution.invocation import check_before_run
    from pipelines.formatting import format_count
    from pipelines.preparation.job_warnings import job_warnings, missing_file_warnings
    from pipelines.preparation.prepared_job import prepare_job
    from pipelines.preparation.schema_evolution import schema_refusal, sink_types
    from pipelines.reporting.status_queries import ledger_reader

    workspace = loaded.workspace
    with contextlib.ExitStack() as closing:
        ledger = ledger_reader(workspace)
        if ledger is not None:
            closing.enter_context(ledger)
            if not ledger.is_current:
                ledger = None
        ready = closing.enter_context(prepare_job(loaded, ledger, sink_types=sink_types))
        check_before_run(ready)
        # Every row goes through `where` once.
        ready.selection.counts()
        refused = schema_refusal(ready)
        if refused is not None:
            raise refused
        warnings = workspace.warnings(ready.job.providers)
        for warning in (*ready.reader.warnings, *warnings, *job_warnings(ready), *missing_file_warnings(ready)):
            click.echo(warning, err=True)
        columns_in = format_count(len(ready.reader.schema), "input column")
        columns_out = format_count(len(ready.shape.results), "output column")
        click.echo(f"{loaded.path}: OK, job {ready.job.name} ({columns_in}, {columns_out})")


@click.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of job files, for editors.

    \b
    Example:
      rowmill schema > job.schema.json
    """
    from pipelines.config.json_schema import job_schema

    click.echo(orjson.dumps(job_schema(), option=orjson.OPT_INDENT_2))
