"""Arguments and options that several commands share."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipelines.config.overrides import Overrides

Decorated = Callable[..., Any]


def job_argument(many: bool) -> Callable[[Decorated], Decorated]:
    """Add the argument JOB, a job file; with `many`, one or more files or folders."""
    if many:
        return click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
    return click.argument("job", metavar="JOB")


def override_options(command: Decorated) -> Decorated:
    """Add the flags that replace values of the job file for one run; the command gets them as `overrides`."""

    @functools.wraps(command)  # Its __dict__ holds the options added so far.
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
        click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Only the first N rows, after `where`."),
        click.option("--provider", metavar="NAME", help="Use this provider in all steps."),
        click.option(
            "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Replace any key of the job. Repeatable."
        ),
        click.option("--sink", metavar="PATH", callback=_non_empty, help="Write to this folder or file."),
        click.option("--budget-usd", type=click.FloatRange(min=0), metavar="USD", help="Maximum cost of the run."),
        click.option(
            "--delivery",
            type=click.Choice(["online", "batch"]),
            help="Send requests online or through the Batch API.",
        ),
    ):
        with_overrides = option(with_overrides)
    return with_overrides


def _non_empty(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse an empty value: an unset shell variable must not send rows to the sink of the job file."""
    if value == "":
        raise click.BadParameter("is empty; name a folder or a file", context, option)
    return value


class NoJobFiles(click.UsageError):
    """A folder without job files."""

    found = "holds no job file"

    def __init__(self, folder: str) -> None:
        from pipelines.config.job_suggestions import suggest_in_folder

        self.remedy = suggest_in_folder(Path(folder))
        super().__init__(f"{folder}: {self.found}; {self.remedy}")
        self.folder = folder


def job_files(paths: tuple[str, ...], subfolder: str | None = None) -> list[Path]:
    """Return the job files that the arguments name; of a folder, every .yaml and .yml except rowmill.yaml.

    `subfolder`: searched if a folder itself holds no job file.
    """
    from pipelines.config.job_suggestions import list_job_files

    files: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            inside = list_job_files(path)
            if not inside and subfolder is not None:
                inside = list_job_files(path / subfolder)
            if not inside:
                raise NoJobFiles(name)
            files += inside
        else:
            files.append(path)
    return files


provider_option = click.option(
    "--provider", default="openai", show_default=True, metavar="NAME", help="A provider of this folder's workspace."
)
