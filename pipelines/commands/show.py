"""`rowmill show`: the whole story of one row."""

import click
import orjson

from pipelines.commands.options import job_argument


# A key may begin with a dash, as -5 does: what is no option is the key.
@click.command("show", context_settings={"ignore_unknown_options": True})
@job_argument(many=False)
@click.argument("key", metavar="KEY")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on one line.")
def show_command(job: str, key: str, as_json: bool) -> None:
    """Tell a row's whole story: requests as sent, replies with vectors shortened, cost, history.

    KEY is the key's value; of a composite key its JSON array, e.g. '["eng", 1]'.

    \b
    Example:
      rowmill show jobs/quickstart.yaml 17
    """
    from pipelines.config.loaded_job import load_job
    from pipelines.reporting.row_history import row_history

    told = row_history(load_job(job), key)
    option = None if as_json else orjson.OPT_INDENT_2
    click.echo(orjson.dumps(told, default=str, option=option))
