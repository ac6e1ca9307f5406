"""`rowmill report`: a self-contained HTML page about a job."""

from pathlib import Path

import click

from pipelines.commands.options import job_argument


@click.command("report")
@job_argument(many=False)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Output file. Default: JOBNAME-report.html in the current folder.",
)
def report_command(job: str, out: Path | None) -> None:
    """Write a self-contained HTML report of a job.

    It shows figures, errors, results with images and audio, and the runs. It loads nothing from the network.

    \b
    Examples:
      rowmill report jobs/quickstart.yaml
      rowmill report jobs/quickstart.yaml -o quickstart.html
    """
    from connectors.errors import JobError
    from pipelines.config.loaded_job import load_job
    from pipelines.reporting.report_page import write_report

    loaded = load_job(job)
    target = out if out is not None else Path(f"{loaded.job.name}-report.html")
    try:
        write_report(loaded, target)
    except OSError as exc:
        raise JobError(target, f"cannot be written ({exc.strerror})", "choose another file with -o") from exc
    click.echo(f"wrote {target}")
