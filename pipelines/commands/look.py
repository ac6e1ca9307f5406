"""`rowmill status`, `errors` and `usage`: what runs did, which rows failed, what was used; nothing is sent."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import click
import orjson

from pipelines.commands.options import job_argument
from pipelines.looks import moment

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
    from pipelines.looks import status

    rows = status(None if job is None else Path(job))
    if as_json or not rows:
        print_rows(rows, as_json, "no run yet")
    else:
        from pipelines.look_words import status_words

        click.echo(status_words(rows, datetime.now(UTC)))


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
    from pipelines.looks import errors

    failed = errors(Path(job), limit)
    if as_json or not failed.total:
        print_rows(failed.rows, as_json, "no row has failed")
    else:
        from pipelines.look_words import errors_words

        click.echo(errors_words(failed, job, shutil.get_terminal_size().columns))


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
    from pipelines.looks import usage

    print_rows(usage(None if job is None else Path(job), by), as_json, "nothing was sent yet")


def print_rows(rows: list[dict[str, object]], as_json: bool, nothing: str) -> None:
    """A table for people, or JSON lines; `nothing` where there are no rows."""
    if as_json:
        for row in rows:
            click.echo(orjson.dumps(row, default=str))
    elif not rows:
        click.echo(nothing)
    else:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD)
        for name in rows[0]:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*("" if value is None else _shown(value) for value in row.values()))
        Console().print(table)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.6f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_facts(item: dict[str, object], as_json: bool) -> None:
    """One object: a line for each of its keys, or JSON."""
    if as_json:
        click.echo(orjson.dumps(item, default=str))
        return
    facts = ((name, orjson.dumps(value) if isinstance(value, dict | list) else value) for name, value in item.items())
    rows: list[dict[str, object]] = [
        {"key": name, "value": value.decode() if isinstance(value, bytes) else since_1970(name, value)}
        for name, value in facts
        if value is not None
    ]
    print_rows(rows, False, "nothing is known")


def since_1970(name: str, value: object) -> object:
    """A moment where the API tells seconds since 1970; any other value as it is."""
    timed = name == "created" or name.endswith("_at")
    return moment(int(value * 1e6)) if timed and isinstance(value, int | float) else value
