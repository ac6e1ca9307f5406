"""`rowmill validate` and `rowmill schema`: is a job file right, and what may stand in one."""

import click
import orjson

from connectors.errors import RowmillError
from pipelines.commands.options import job_argument, job_files


@click.command("validate")
@job_argument(many=True)
def validate_command(jobs: tuple[str, ...]) -> int:
    """Check job files against their workspace and their source's columns; nothing is sent or written.

    \b
    Example:
      rowmill validate jobs/
    """
    from pipelines.audits import check_audits
    from pipelines.jobfile import load_job
    from pipelines.prepare import prepared
    from pipelines.workspace import find_workspace

    worst = 0
    for path in job_files(jobs):
        try:
            workspace = find_workspace(path)
            with prepared(load_job(path), workspace) as ready:
                check_audits(ready)
                for warning in workspace.warnings:
                    click.echo(warning, err=True)
                click.echo(f"{path}: {ready.job.name} is right; {len(ready.reader.schema)} columns in, "
                           f"{len(ready.shape.results)} out")  # fmt: skip
        except RowmillError as exc:
            click.echo(str(exc), err=True)
            worst = 2
    return worst


@click.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of the job file, for editors and programs.

    \b
    Example:
      rowmill schema > job.schema.json
    """
    from pipelines.job_schema import job_schema

    click.echo(orjson.dumps(job_schema(), option=orjson.OPT_INDENT_2))
