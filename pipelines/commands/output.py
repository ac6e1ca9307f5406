"""What several commands print: a table or JSON lines, one object or JSON."""

from collections.abc import Mapping, Sequence

import click
import orjson

from pipelines.formatting import DataTable, fact_list, print_out, single_line

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of a table.")


def print_rows(rows: Sequence[Mapping[str, object]], as_json: bool, if_empty: str) -> None:
    """Print rows as a table or as JSON lines; without rows, the sentence `if_empty`."""
    if as_json:
        print_json_lines(rows)
    elif rows:
        print_out(DataTable(rows))
    else:
        click.echo(if_empty)


def print_json_lines(rows: Sequence[Mapping[str, object]]) -> None:
    """Print one JSON object a line."""
    for row in rows:
        click.echo(orjson.dumps(row, default=str))


def print_object(item: Mapping[str, object], as_json: bool) -> None:
    """Print an object of a provider's API: a line a key, or JSON."""
    if as_json:
        print_json_lines([item])
        return
    facts = (
        (name, orjson.dumps(value).decode() if isinstance(value, dict | list) else single_line(readable(name, value)))
        for name, value in item.items()
        if value is not None
    )
    print_out(fact_list(facts))


def readable(name: str, value: object) -> object:
    """Return a value of a provider's API; seconds since 1970 as an ISO time."""
    if not isinstance(value, int | float) or not (name == "created" or name.endswith("_at")):
        return value
    from pipelines.reporting.status_queries import iso_time

    return iso_time(int(value * 1e6))
