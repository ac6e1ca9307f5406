"""`rowmill init`: a folder to start from."""

from pathlib import Path

import click


@click.command("init")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def init_command(folder: Path) -> None:
    """Write a workspace, a first job file and a little data into DIR; nothing that is there is touched.

    \b
    Example:
      rowmill init my-jobs
    """
    from pipelines.init import init

    for path in init(folder):
        click.echo(f"wrote {path}")
    click.echo(f"next: rowmill run {folder / 'jobs' / 'quickstart.yaml'}")
