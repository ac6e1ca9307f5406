"""`rowmill rebuild`: the sink's tables again from the ledger."""

import click

from pipelines.commands.options import job_argument


@click.command("rebuild")
@job_argument(many=False)
def rebuild_command(job: str) -> int:
    """Write results and errors again from the answers in the ledger; nothing is sent.

    \b
    Example:
      rowmill rebuild jobs/quickstart.yaml
    """
    from pathlib import Path

    from pipelines.invoke import rebuilt

    rows, tables = rebuilt(Path(job))
    click.echo(f"wrote {rows:,} rows again; nothing was sent")
    for name, place in tables.items():
        click.echo(f"  {name:<8} {place}")
    return 0
