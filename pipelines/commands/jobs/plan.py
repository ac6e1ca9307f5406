"""`rowmill plan`: what a run would send and cost."""

import click
import orjson

from pipelines.commands.options import job_argument, job_files, override_options
from pipelines.config.overrides import Overrides


@click.command("plan")
@job_argument(many=True)
@override_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per job, one per line.")
def plan_command(jobs: tuple[str, ...], overrides: Overrides, as_json: bool) -> None:
    """Show what a run would send and what it would cost.

    Nothing is sent. JOB is a job file or a folder of them. If a job reads the results of another of these jobs
    that has not run yet, a message names it instead.

    \b
    Examples:
      rowmill plan jobs/quickstart.yaml
      rowmill plan jobs/quickstart.yaml --set steps.label.model=gpt-4o
    """
    from connectors.errors import NoResultsYet
    from connectors.registry import SINKS
    from pipelines.config.job_graph import awaits_results, load_jobs, render_graph, sort_jobs
    from pipelines.config.overrides import trial_sink
    from pipelines.formatting import print_out
    from pipelines.planning.plan import build_plan
    from pipelines.planning.plan_text import format_plan

    graph = sort_jobs(load_jobs(job_files(jobs), overrides))
    if len(graph) > 1 and not as_json:
        click.echo(render_graph(graph) + "\n")
    for place, job in enumerate(graph):
        try:
            plan = build_plan(job.require())
        except NoResultsYet as exc:
            if not awaits_results(job, graph):
                raise
            click.echo(str(exc), err=True)
            continue
        if place and not as_json:
            click.echo()
        if as_json:
            click.echo(orjson.dumps(plan.as_json()))
        else:
            loaded = job.require()
            target = next(str(getattr(loaded.job.sink, kind)) for kind in SINKS if hasattr(loaded.job.sink, kind))
            print_out(format_plan(plan, str(job.path), trial_sink(target, loaded.workspace.folder)))
