"""`rowmill status`, `errors` and `usage`: what runs did, which rows failed, what was used; nothing is sent."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from pipelines.commands.options import job_argument

if TYPE_CHECKING:
    from pipelines.config.workspace import Workspace

as_json_option = click.option("--json", "as_json", is_flag=True, help="JSON lines instead of a table.")


@click.command("status")
@click.argument("job", metavar="[JOB]", required=False)
@as_json_option
def status_command(job: str | None, as_json: bool) -> None:
    """Tell how the last run of each job, or of JOB, stands.

    \b
    Examples:
      rowmill status
      rowmill status jobs/quickstart.yaml --json
    """
    from pipelines.reporting.status_queries import job_statuses

    rows = job_statuses(*workspace_and_name(job))
    if as_json or not rows:
        print_rows(rows, as_json, "no run yet")
    else:
        from pipelines.reporting.status_format import format_status

        click.echo(format_status(rows, datetime.now(UTC)))


@click.command("errors")
@job_argument(many=False)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many rows.")
@as_json_option
def errors_command(job: str, limit: int, as_json: bool) -> None:
    """Show the rows of JOB that failed, and why.

    \b
    Example:
      rowmill errors jobs/quickstart.yaml
    """
    from pipelines.config.loaded_job import load_job
    from pipelines.reporting.status_queries import failed_rows

    failed = failed_rows(load_job(job), limit)
    if as_json or not failed.total:
        print_rows(failed.rows, as_json, "no row has failed")
    else:
        from pipelines.reporting.status_format import format_errors

        click.echo(format_errors(failed, job, shutil.get_terminal_size().columns))


@click.command("usage")
@click.argument("job", metavar="[JOB]", required=False)
@click.option("--by", type=click.Choice(["job", "step", "model", "day"]), default="job", show_default=True, help="Per.")
@as_json_option
def usage_command(job: str | None, by: str, as_json: bool) -> None:
    """Add up requests, tokens and cost, of all jobs of this workspace or of JOB.

    \b
    Examples:
      rowmill usage --by day
      rowmill usage jobs/quickstart.yaml --by model
    """
    from pipelines.reporting.status_queries import usage_totals

    rows = usage_totals(*workspace_and_name(job), by)
    if not as_json:
        # Short heads; whether a price is missing is told only where one is.
        heads = {"input_tokens": "tokens_in", "output_tokens": "tokens_out"}
        rows = [{heads.get(name, name): value for name, value in row.items()} for row in rows]
        rows = [{**row, "unpriced": row["unpriced"] or None} for row in rows]
    print_rows(rows, as_json, "nothing was sent yet")


def workspace_and_name(job: str | None) -> "tuple[Workspace, str | None]":
    """Return the workspace of a job file, of a folder or of the current folder, and the job's name if a file is given."""
    from pipelines.config.loaded_job import load_job
    from pipelines.config.workspace import find_workspace

    if job is None or Path(job).is_dir():
        return find_workspace(job or Path.cwd()), None
    loaded = load_job(job)
    return loaded.workspace, loaded.job.name


def print_rows(rows: list[dict[str, object]], as_json: bool, nothing: str) -> None:
    """A table for people, or JSON lines; `nothing` where there are no rows."""
    if as_json:
        for row in rows:
            click.echo(orjson.dumps(row, default=str))
    elif not rows:
        click.echo(nothing)
    else:
        from pipelines.formatting import format_table

        click.echo(format_table(rows, shutil.get_terminal_size().columns))


def print_facts(item: dict[str, object], as_json: bool) -> None:
    """One object: a line for each of its keys, or JSON."""
    if as_json:
        click.echo(orjson.dumps(item, default=str))
        return
    width = max((len(name) for name in item), default=0)
    for name, value in item.items():
        if value is not None:
            told = orjson.dumps(value).decode() if isinstance(value, dict | list) else since_1970(name, value)
            click.echo(f"{name:<{width}}  {told}")


def since_1970(name: str, value: object) -> object:
    """A moment where the API tells seconds since 1970; any other value as it is."""
    if not isinstance(value, int | float) or not (name == "created" or name.endswith("_at")):
        return value
    from pipelines.reporting.status_queries import iso_time

    return iso_time(int(value * 1e6))
