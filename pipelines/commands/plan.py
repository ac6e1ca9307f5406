"""`rowmill plan`: what a run would do and cost."""

from typing import TYPE_CHECKING

import click
import orjson

from pipelines.commands.options import job_argument, job_files, override_options
from pipelines.overrides import Overrides

if TYPE_CHECKING:
    from pipelines.plan import Plan


@click.command("plan")
@job_argument(many=True)
@override_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a job, one a line.")
def plan_command(jobs: tuple[str, ...], overrides: Overrides, as_json: bool) -> None:
    """Tell which rows a run would ask, and what that would cost and take; nothing is sent.

    \b
    Examples:
      rowmill plan jobs/quickstart.yaml
      rowmill plan jobs/quickstart.yaml --set steps.label.model=gpt-4o
    """
    from pipelines.plan import plan_of

    for path in job_files(jobs):
        plan = plan_of(path, overrides)
        click.echo(orjson.dumps(plan.as_json()) if as_json else in_words(plan))


def in_words(plan: "Plan") -> str:
    """The plan for people."""
    asked = plan.new + plan.changed
    lines = [
        f"{plan.job}: {plan.rows:,} rows: {plan.new:,} new, {plan.changed:,} changed, {plan.done:,} done, "
        f"{plan.failed_before:,} failed before (`rowmill retry` asks them again)"
    ]
    for step in plan.steps:
        counted = "counted" if step.exact_tokens else "estimated"
        lines.append(
            f"  {step.step}: {step.requests:,} requests to {step.provider} ({step.model}), "
            f"{step.input_tokens:,} tokens in ({counted}), about {step.output_tokens:,} out"
            + (f"; {step.in_ledger:,} answers are in the ledger already" if step.in_ledger else "")
        )
        if step.expected_usd is None:
            lines.append(f"    cost not known: no price for {step.model} (`prices:` in rowmill.yaml)")
        else:
            high = "not bounded" if step.high_usd is None else f"${step.high_usd:,.4f}"
            lines.append(
                f"    cost ${step.low_usd or 0:,.4f} – ${step.expected_usd:,.4f} expected – {high} at most; "
                f"by the Batch API about ${step.batch_usd or 0:,.4f}"
            )
        if step.seconds is not None:
            lines.append(f"    at least {step.seconds:,.0f} s at the limits")
    lines.append(f"  disk: about {plan.disk_bytes / 1e6:,.1f} MB")
    for example in plan.examples:
        text = orjson.dumps(example["request"]).decode()
        lines.append(f"  first request of {example['step']}: {text if len(text) < 600 else text[:600] + '…'}")
    if not asked:
        lines.append("  nothing to send")
    return "\n".join(lines)
