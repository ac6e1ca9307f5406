"""`rowmill run` and `rowmill retry`: ask for the rows of one job or of many, and tell how it ended."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import click
import orjson

from connectors.errors import RowmillError
from connectors.exchange import OWN_CLASSES
from pipelines.commands.options import job_argument, override_options
from pipelines.overrides import Overrides

WORST_FIRST = (2, 3, 130, 4, 5, 1, 0)
"""Of several jobs the worst exit code counts, in this order."""


@click.command("run")
@job_argument(many=True)
@override_options
@click.option("--new-run", is_flag=True, help="Close an open run of the job and begin another, with a budget of its own.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where to run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a job on stdout, nothing else there.")
@click.option("--log", type=click.Choice(["plain", "json"]), default="plain", show_default=True, help="Progress lines.")
@click.option("--quiet", is_flag=True, help="No progress and no closing words; mistakes are still told.")
def run_command(
    jobs: tuple[str, ...],
    overrides: Overrides,
    new_run: bool,
    engine: str,
    as_json: bool,
    log: str,
    quiet: bool,
) -> int:
    """Ask for every row that has no answer yet, and write results, usage and errors.

    JOB is a job file or a folder of them. What is done is never asked again: run it as often as you like.

    \b
    Examples:
      rowmill run jobs/quickstart.yaml
      rowmill run jobs/quickstart.yaml --limit 20 --sink out/try --set steps.label.model=gpt-4o
      rowmill run jobs/ --json --quiet
    """
    if engine == "ray":
        raise RowmillError("--engine ray: not available in this version; run without it")
    return _run_all(jobs, overrides, new_run, None, as_json, log, quiet)


@click.command("retry")
@job_argument(many=False)
@click.option("--class", "classes", help="Only these error classes, separated by commas. Default: all.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else there.")
@click.option("--log", type=click.Choice(["plain", "json"]), default="plain", show_default=True, help="Progress lines.")
@click.option("--quiet", is_flag=True, help="No progress and no closing words; mistakes are still told.")
def retry_command(job: str, classes: str | None, as_json: bool, log: str, quiet: bool) -> int:
    """Run the job, and ask again for rows that failed for a reason of their own.

    \b
    Examples:
      rowmill retry jobs/quickstart.yaml
      rowmill retry jobs/quickstart.yaml --class invalid_answer,length
    """
    wanted = _classes(classes)
    return _run_all((job,), Overrides(), False, wanted, as_json, log, quiet)
