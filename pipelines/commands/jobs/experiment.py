"""`rowmill try`: compare prompts, models and parameters on a sample."""

from pathlib import Path

import click
import orjson

from connectors.errors import JobError
from pipelines.commands.jobs.run import quiet_option
from pipelines.commands.options import job_argument
from pipelines.config.overrides import Overrides
from pipelines.runtime.run_options import RunOptions


@click.command("try")
@job_argument(many=False)
@click.option(
    "--over", multiple=True, metavar="KEY=VALUES", help="Values of a key, or KEY=@GLOB for files. Repeatable."
)
@click.option(
    "--expect",
    multiple=True,
    metavar="OUTPUT=COLUMN",
    help="Column with the right value of an output. Repeatable.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Number of rows in the sample.",
)
@click.option("--by", metavar="COLUMN", help="Stratify the sample by this column.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the random sample.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Replace any key of the job. Repeatable."
)
@click.option("--provider", metavar="NAME", help="Use this provider in all steps.")
@click.option("--budget-usd", type=click.FloatRange(min=0), metavar="USD", help="Maximum cost of all combinations.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write an HTML page to this file.")
@click.option("--promote", type=click.IntRange(min=1), metavar="N", help="Write combination N into the job file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per combination, one per line.")
@quiet_option
def try_command(
    job: str,
    over: tuple[str, ...],
    expect: tuple[str, ...],
    sample: int,
    by: str | None,
    seed: int,
    assignments: tuple[str, ...],
    provider: str | None,
    budget_usd: float | None,
    html: Path | None,
    promote: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compare variants of a job on a labelled sample of its rows.

    Every combination of the --over values answers the same rows. Answers are paid for once; the job's tables do not
    change. Without --expect only cost, latency and failures are compared.

    \b
    Examples:
      rowmill try jobs/quickstart.yaml --over steps.label.model=gpt-4o-mini,gpt-4o --expect topic=label --sample 300
      rowmill try jobs/quickstart.yaml --over "steps.label.messages.0.system=@prompts/*.md" --html try.html
      rowmill try jobs/quickstart.yaml --over steps.label.model=gpt-4o-mini,gpt-4o --promote 2
    """
    from pipelines.config.loaded_job import load_job
    from pipelines.experiments.combinations import parse_combinations
    from pipelines.experiments.experiment import ExperimentOptions, check_combination, run_experiment
    from pipelines.experiments.experiment_text import format_experiment, short_value
    from pipelines.experiments.promotion import promote as promotion_of
    from pipelines.experiments.promotion import write_promotion
    from pipelines.formatting import print_out

    combinations = parse_combinations(over, Path.cwd())
    loaded = load_job(job, Overrides(assignments, None, provider, None, budget_usd))
    if promote is not None:
        if promote > len(combinations):
            raise JobError(
                f"--promote {promote}", f"there are {len(combinations):,} combinations", "write a lower number"
            )
        check_combination(loaded, combinations[promote - 1])
        promotion = promotion_of(loaded, combinations[promote - 1])
        click.echo(promotion.diff or f"{job} has these settings already\n", nl=False)
        write_promotion(loaded, promotion)
        return 0
    options = ExperimentOptions(combinations, _parse_expectations(expect), sample, by, seed)

    def announce(number: int, text: str) -> None:
        if not quiet:
            click.echo(f"{number} of {len(combinations)}: {text}", err=True)

    report = run_experiment(
        loaded,
        options,
        RunOptions(is_quiet=True),
        lambda one: announce(one.number, ", ".join(f"{key}={short_value(label)}" for key, label in one.labels.items())),
    )
    if html is not None:
        from pipelines.experiments.experiment_page import write_page

        write_page(report, loaded, html)
    if as_json:
        for result in report.results:
            click.echo(orjson.dumps(result.to_json()))
    elif not quiet:
        print_out(format_experiment(report, job))
    if report.stopped is not None and (as_json or quiet):
        click.echo(f"{report.job}: stopped: {report.stopped}", err=True)
    return report.exit_code


def _parse_expectations(expect: tuple[str, ...]) -> dict[str, str]:
    expectations: dict[str, str] = {}
    for flag in expect:
        output, equals, column = (part.strip() for part in flag.partition("="))
        if not (output and equals and column):
            raise JobError(f"--expect {flag}", "no output with a column", "write e.g. --expect topic=label")
        expectations[output] = column
    return expectations
