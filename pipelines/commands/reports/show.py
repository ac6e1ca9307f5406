"""`rowmill show`: the history of one row."""

import click
import orjson

from pipelines.commands.options import job_argument


# A key may begin with a dash, such as -5: an unknown option is the key.
@click.command("show", context_settings={"ignore_unknown_options": True})
@job_argument(many=False)
@click.argument("key", metavar="KEY")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on one line.")
def show_command(job: str, key: str, as_json: bool) -> None:
    """Show a row's requests, replies, cost and history.

    KEY is the value of the key column; for a key of several columns a JSON array, e.g. '["eng", 1]'. The output is
    JSON, with shortened vectors.

    \b
    Example:
      rowmill show jobs/quickstart.yaml 17
    """
    from pipelines.config.loaded_job import load_job
    from pipelines.reporting.row_history import row_history

    history = row_history(load_job(job), key)
    option = None if as_json else orjson.OPT_INDENT_2
    click.echo(orjson.dumps(history, default=str, option=option))
