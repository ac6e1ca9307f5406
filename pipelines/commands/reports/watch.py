"""`rowmill watch`: a live page for the workspace in the browser."""

from pathlib import Path

import click

from connectors.errors import JobError


@click.command("watch")
@click.argument("folder", metavar="[FOLDER]", required=False)
@click.option(
    "--port", type=click.IntRange(0, 65535), metavar="PORT", default=8585, show_default=True, help="Port of 127.0.0.1."
)
@click.option("--read-only", is_flag=True, help="Show everything, but do not steer runs.")
def watch_command(folder: str | None, port: int, read_only: bool) -> None:
    """Show all jobs of a workspace on a live page.

    It shows progress, rate, cost, errors, results and schedules, and can pause, resume, drain and limit runs. FOLDER
    is a folder of the workspace, by default the current one. Open the printed address in a browser; stop with Ctrl-C.

    \b
    Examples:
      rowmill watch
      rowmill watch jobs/ --port 8586 --read-only
    """
    from pipelines.config.job_suggestions import JOBS_FOLDER, list_job_files
    from pipelines.config.workspace import find_workspace
    from pipelines.dashboard.server import serve_forever

    path = Path(folder or ".")
    if not path.is_dir():
        raise JobError(path, "is not a folder", "name a folder of the workspace")
    workspace = find_workspace(path)
    if not workspace.has_file and not list_job_files(path) and (path / JOBS_FOLDER).is_dir():
        # The workspace may be the folder of the jobs.
        workspace = find_workspace(path / JOBS_FOLDER)

    def print_address(address: str) -> None:
        click.echo(f"Watching {workspace.folder} at {address}\nCtrl-C ends this page; the runs go on.", err=True)

    try:
        serve_forever(workspace, port, read_only, print_address)
    except OSError as exc:
        taken = "is taken" if exc.errno in (48, 98) else f"cannot be used ({exc.strerror})"
        remedy = f"choose another: rowmill watch --port {port + 1 if 0 < port < 65535 else 8586}"
        raise JobError(f"rowmill watch: port {port}", taken, remedy) from exc
