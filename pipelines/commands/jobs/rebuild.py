"""`rowmill rebuild`: write the sink's tables again from the ledger."""

import click

from pipelines.commands.options import job_argument
from pipelines.formatting import format_count


@click.command("rebuild")
@job_argument(many=False)
@click.option("--leave-out", is_flag=True, help="Rebuild even if rows whose answers were pruned would be lost.")
def rebuild_command(job: str, leave_out: bool) -> int:
    """Write results and errors again from the ledger.

    Nothing is sent. Rows whose answers were pruned (`ledger prune`, or `keep_answers: committed`) cannot be written
    again: then nothing is changed, unless --leave-out allows losing these rows. The next run asks for them again.

    \b
    Example:
      rowmill rebuild jobs/quickstart.yaml
    """
    from pipelines.config.loaded_job import load_job
    from pipelines.execution.invocation import rebuild_tables

    rows, fewer, tables = rebuild_tables(load_job(job), leave_out)
    click.echo(f"wrote {format_count(rows, 'row')} again; nothing was sent")
    if fewer:
        click.echo(
            f"left out {fewer:,} rows whose answers were pruned from the ledger: rowmill run {job} asks for them again"
        )
    for name, place in tables.items():
        click.echo(f"  {name:<8} {place}")
    return 0
