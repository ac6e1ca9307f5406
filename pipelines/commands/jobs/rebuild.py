"""`rowmill rebuild`: write the sink's tables again from the ledger."""

import click

from pipelines.commands.options import job_argument
from pipelines.formatting import format_count


@click.command("rebuild")
@job_argument(many=False)
@click.option("--leave-out", is_flag=True, help="Rebuild even if rows or errors would be lost.")
def rebuild_command(job: str, leave_out: bool) -> int:
    """Write results and errors again from the ledger.

    Nothing is sent. Rows whose answers were pruned (`ledger prune`, or `keep_answers: committed`) cannot be written
    again, nor errors whose record was pruned: then nothing is changed, unless --leave-out allows losing them. The next
    run sends these rows again.

    \b
    Example:
      rowmill rebuild jobs/quickstart.yaml
    """
    from pipelines.config.loaded_job import load_job
    from pipelines.execution.invocation import rebuild_tables

    rows, fewer, tables = rebuild_tables(load_job(job), leave_out)
    click.echo(f"wrote {format_count(rows.results, 'row')} again; nothing was sent")
    if fewer.results:
        click.echo(
            f"left out {fewer.results:,} rows whose answers were pruned from the ledger: rowmill run {job} sends "
            "them again"
        )
    if fewer.errors:
        click.echo(
            f"left out {format_count(fewer.errors, 'error')} whose record was pruned: rowmill run {job} sends these "
            "rows again"
        )
    if not any((rows.results, rows.errors, fewer.results, fewer.errors)):
        click.echo("the ledger has no record of the job's rows: none was done yet, or `ledger prune` has deleted it")
    for name, place in tables.items():
        click.echo(f"  {name:<8} {place}")
    return 0
