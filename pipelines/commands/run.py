"""`rowmill run` and `rowmill retry`: ask for the rows of one job or of many, and tell how it ended."""

from typing import Any

import click
import orjson

from connectors.errors import JobError, RowmillError
from connectors.exchange import OWN_CLASSES, RETRIED_CLASSES, STOPPING_CLASSES
from pipelines.commands.options import job_argument, job_files, override_options
from pipelines.overrides import NONE, Overrides

WORST_FIRST = (2, 3, 130, 4, 5, 1, 0)
"""Of several jobs the worst exit code counts, in this order."""

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a job, one a line, on stdout.")
log_option = click.option(
    "--log", type=click.Choice(["plain", "json"]), default="plain", show_default=True, help="How progress is told."
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress and no closing words; mistakes are still told.")


@click.command("run")
@job_argument(many=True)
@override_options
@click.option("--new-run", is_flag=True, help="Close the job's open run and begin another, with a budget of its own.")
@click.option("--engine", type=click.Choice(["local"]), default="local", show_default=True, help="Where to run.")
@as_json_option
@log_option
@quiet_option
def run_command(
    jobs: tuple[str, ...], overrides: Overrides, new_run: bool, engine: str, as_json: bool, log: str, quiet: bool
) -> int:
    """Ask for every row that has no answer yet, and write results, usage and errors.

    JOB is a job file or a folder of them. What is done is never asked again: run it as often as you like.

    \b
    Examples:
      rowmill run jobs/quickstart.yaml
      rowmill run jobs/quickstart.yaml --limit 20 --sink out/try --set steps.label.model=gpt-4o
      rowmill run jobs/ --json --quiet
    """
    return _run_all(jobs, overrides, new_run, None, as_json, log, quiet)


@click.command("retry")
@job_argument(many=False)
@click.option("--class", "classes", metavar="CLASS,...", help="Only these error classes. Default: all.")
@as_json_option
@log_option
@quiet_option
def retry_command(job: str, classes: str | None, as_json: bool, log: str, quiet: bool) -> int:
    """Run the job, and ask again for rows that failed for a reason of their own.

    \b
    Examples:
      rowmill retry jobs/quickstart.yaml
      rowmill retry jobs/quickstart.yaml --class invalid_answer,length
    """
    known = OWN_CLASSES | RETRIED_CLASSES | STOPPING_CLASSES | {"unknown", "budget"}
    wanted = frozenset(known if classes is None else (name.strip() for name in classes.split(",")))
    for name in sorted(wanted - known):
        raise JobError(f"--class {name}: no such error class; known here: {', '.join(sorted(known))}")
    return _run_all((job,), NONE, False, wanted, as_json, log, quiet)


def _run_all(
    jobs: tuple[str, ...],
    overrides: Overrides,
    new_run: bool,
    retry: frozenset[str] | None,
    as_json: bool,
    log: str,
    quiet: bool,
) -> int:
    from pipelines.invoke import invoke
    from pipelines.summary import in_words, job_name, nothing_done

    codes: list[int] = []
    for path in job_files(jobs):
        told: dict[str, Any]
        try:
            told = invoke(path, overrides, new_run, retry, "json" if log == "json" else "plain", quiet)
        except RowmillError as exc:
            click.echo(str(exc), err=True)
            codes.append(exc.exit_code)
            if as_json:
                click.echo(orjson.dumps(nothing_done(job_name(path), exc.exit_code, str(exc))))
            continue
        codes.append(told["exit_code"])
        if as_json:
            click.echo(orjson.dumps(told))
        elif not quiet:
            click.echo(in_words(told, str(path)))
        elif told["stopped"] is not None:
            click.echo(f"{told['job']}: stopped: {told['stopped']}", err=True)
    return min(codes, key=WORST_FIRST.index, default=0)
