"""`rowmill rebuild`: the sink's tables again from the ledger."""

import click

from pipelines.commands.options import job_argument


@click.command("rebuild")
@job_argument(many=False)
@click.option("--leave-out", is_flag=True, help="Also where rows would be lost: their answers were dropped.")
def rebuild_command(job: str, leave_out: bool) -> int:
    """Write results and errors again from the answers in the ledger; nothing is sent.

    Where answers were dropped (`ledger prune`, or `keep_answers: committed`), their rows cannot be written again: then
    nothing is changed, unless --leave-out says that these rows may be lost. The next run asks for them.

    \b
    Example:
      rowmill rebuild jobs/quickstart.yaml
    """
    from pipelines.config.loaded_job import load_job
    from pipelines.execution.invocation import rebuild_tables

    rows, fewer, tables = rebuild_tables(load_job(job), leave_out)
    click.echo(f"wrote {rows:,} rows again; nothing was sent")
    if fewer:
        click.echo(f"left out {fewer:,} rows whose answers are gone from the ledger: rowmill run {job} asks for them")
    for name, place in tables.items():
        click.echo(f"  {name:<8} {place}")
    return 0
