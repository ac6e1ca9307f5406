"""Arguments and options that several commands share."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipelines.config.overrides import Overrides

Decorated = Callable[..., Any]


def job_argument(many: bool) -> Callable[[Decorated], Decorated]:
    """JOB, a job file; with `many`, one or more files or folders."""
    if many:
        return click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
    return click.argument("job", metavar="JOB")


def override_options(command: Decorated) -> Decorated:
    """The flags that replace values of the job file for one run; the command gets them as `overrides`."""

    @functools.wraps(command)  # Its dictionary holds the options that were given before.
    def with_overrides(
        assignments: tuple[str, ...],
        limit: int | None,
        provider: str | None,
        sink: str | None,
        budget_usd: float | None,
        delivery: str | None,
        **others: Any,
    ) -> Any:
        return command(overrides=Overrides(assignments, limit, provider, sink, budget_usd, delivery), **others)

    for option in (
        click.option("--limit", type=click.IntRange(min=0), help="Only the first N rows, after `where`."),
        click.option("--provider", help="Ask this provider in all steps."),
        click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any key of the job."),
        click.option("--sink", metavar="PATH", callback=_named, help="Write here instead."),
        click.option("--budget-usd", type=click.FloatRange(min=0), help="What the run may cost."),
        click.option("--delivery", type=click.Choice(["online", "batch"]), help="One by one, or by the Batch API."),
    ):
        with_overrides = option(with_overrides)
    return with_overrides


def _named(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A variable of the shell that is not set must not send rows to the sink of the job file."""
    if value == "":
        raise click.BadParameter("is empty; name a folder or a file", context, option)
    return value


def job_files(paths: tuple[str, ...]) -> list[Path]:
    """The job files that the arguments name: files as they are, of a folder every .yaml and .yml but rowmill.yaml."""
    from pipelines.config.job_graph import job_files_in

    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            inside = job_files_in(path)
            if not inside:
                raise click.UsageError(f"{name}: holds no job file; name a folder with .yaml files")
            found += inside
        else:
            found.append(path)
    return found


provider_option = click.option(
    "--provider", default="openai", show_default=True, metavar="NAME", help="A provider of this folder's workspace."
)
