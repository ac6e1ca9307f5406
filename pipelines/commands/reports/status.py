"""`rowmill status`, `errors` and `usage`: what runs did, which rows failed, what was used; nothing is sent."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.commands.options import job_files
from pipelines.commands.output import as_json_option, print_json_lines, print_rows

if TYPE_CHECKING:
    from pipelines.config.workspace import Workspace

job_or_folder_argument = click.argument("job", metavar="[JOB]", required=False)


@click.command("status")
@job_or_folder_argument
@as_json_option
def status_command(job: str | None, as_json: bool) -> None:
    """Show the state of each job's last run.

    JOB is a job file, or a folder: then all jobs of its workspace. Default: the current folder.

    \b
    Examples:
      rowmill status
      rowmill status jobs/
      rowmill status jobs/quickstart.yaml --json
    """
    from pipelines.formatting import print_out
    from pipelines.reporting.status_format import format_status
    from pipelines.reporting.status_queries import job_statuses

    workspace, name = workspace_and_name(job)
    rows = job_statuses(workspace, name)
    if as_json or not rows:
        print_rows(rows, as_json, f"no run yet in the workspace {workspace.folder}")
    else:
        print_out(format_status(rows, datetime.now(UTC)))


@click.command("errors")
@job_or_folder_argument
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", default=20, show_default=True, help="Maximum number of rows."
)
@as_json_option
def errors_command(job: str | None, limit: int, as_json: bool) -> None:
    """Show the rows that failed, and why.

    JOB is a job file, or a folder of them. Default: the current folder, or its folder jobs/.

    \b
    Examples:
      rowmill errors jobs/quickstart.yaml
      rowmill errors jobs/ --limit 5
    """
    from pipelines.config.loaded_job import load_job
    from pipelines.formatting import print_out
    from pipelines.reporting.status_format import format_errors
    from pipelines.reporting.status_queries import failed_rows

    paths = job_files((job or ".",), subfolder="jobs")
    is_first = True
    for path in paths:
        loaded = load_job(path)
        failed, name = failed_rows(loaded, limit), loaded.job.name
        if as_json:
            print_json_lines(failed.rows if len(paths) == 1 else [{"job": name, **row} for row in failed.rows])
        elif failed.total:
            if not is_first:
                click.echo()
            is_first = False
            print_out(format_errors(failed, name, str(path)))
    if is_first and not as_json:
        click.echo("no row has failed")


@click.command("usage")
@job_or_folder_argument
@click.option(
    "--by", type=click.Choice(["job", "step", "model", "day"]), default="job", show_default=True, help="Group by."
)
@as_json_option
def usage_command(job: str | None, by: str, as_json: bool) -> None:
    """Show requests, tokens and cost by job, step, model or day.

    JOB is a job file, or a folder: then all jobs of its workspace. Default: the current folder.

    \b
    Examples:
      rowmill usage --by day
      rowmill usage jobs/ --by step
      rowmill usage jobs/quickstart.yaml --by model
    """
    from pipelines.formatting import print_out
    from pipelines.reporting.status_format import format_usage
    from pipelines.reporting.status_queries import usage_totals

    workspace, name = workspace_and_name(job)
    rows = usage_totals(workspace, name, by)
    if as_json or not rows:
        print_rows(rows, as_json, f"nothing was sent yet in the workspace {workspace.folder}")
    else:
        print_out(format_usage(rows))


def workspace_and_name(job: str | None) -> "tuple[Workspace, str | None]":
    """Return the workspace of a job file, of a folder or of the current folder; of a file, the job's name as well."""
    from pipelines.config.loaded_job import load_job
    from pipelines.config.workspace import find_workspace

    if job is None or Path(job).is_dir():
        return find_workspace(job or Path.cwd()), None
    loaded = load_job(job)
    return loaded.workspace, loaded.job.name
