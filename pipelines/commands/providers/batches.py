"""`rowmill batches`: list, show and cancel the batches of a provider."""

from typing import TYPE_CHECKING

import click
import orjson

from pipelines.commands.options import provider_option
from pipelines.commands.output import as_json_option, print_object, print_rows, readable

if TYPE_CHECKING:
    from pipelines.runtime.provider_api import Item, ProviderApi


@click.group("batches")
def batches_command() -> None:
    """List, show and cancel a provider's batches.

    The list has all batches of the API key, including those of other workspaces and programs.

    \b
    Examples:
      rowmill batches list
      rowmill batches show batch_abc123
      rowmill batches cancel batch_abc123
    """


@batches_command.command("list")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", default=20, show_default=True, help="Maximum number of batches."
)
@provider_option
@as_json_option
def list_command(limit: int, provider: str, as_json: bool) -> None:
    """List the batches, newest first.

    \b
    Example:
      rowmill batches list --limit 5 --provider local
    """
    from pipelines.runtime.provider_api import call_provider

    batches, has_more = call_provider(provider, lambda api: _newest(api, limit))
    rows = [dict(batch) if as_json else _row(batch) for batch in batches]
    print_rows(rows, as_json, f"{provider} has no batches")
    if has_more:
        click.echo(f"There are older batches: --limit {2 * limit} lists more.", err=True)


@batches_command.command("show")
@click.argument("batch")
@provider_option
@as_json_option
def show_command(batch: str, provider: str, as_json: bool) -> None:
    """Show one batch: its progress, its files, its errors.

    \b
    Example:
      rowmill batches show batch_abc123
    """
    from pipelines.runtime.provider_api import call_provider

    print_object(call_provider(provider, lambda api: api.get_batch(batch)), as_json)


@batches_command.command("cancel")
@click.argument("batch")
@provider_option
@as_json_option
def cancel_command(batch: str, provider: str, as_json: bool) -> None:
    """Cancel a batch.

    Answers so far are stored and billed. A job that waits for the batch keeps them and stops; its next run requests
    the rest.

    \b
    Example:
      rowmill batches cancel batch_abc123
    """
    from pipelines.runtime.provider_api import call_provider

    item = call_provider(provider, lambda api: api.cancel_batch(batch))
    if as_json:
        click.echo(orjson.dumps(item))
    else:
        click.echo(f"{item.get('id')}: {item.get('status')}; answered {_counts(item)}")


async def _newest(api: "ProviderApi", limit: int) -> "tuple[list[Item], bool]":
    """Return the newest batches, and whether there are more."""
    newest: list[Item] = []
    async for batch in api.list_batches():
        if len(newest) == limit:
            return newest, True
        newest.append(batch)
    return newest, False


def _row(batch: "Item") -> dict[str, object]:
    headings = {
        "endpoint": "endpoint", "created_at": "created", "input_file_id": "input", "output_file_id": "output",
        "error_file_id": "errors",
    }  # fmt: skip
    return {
        "id": batch.get("id"),
        "status": batch.get("status"),
        "answered": _counts(batch),
        **{head: readable(name, batch.get(name)) for name, head in headings.items()},
    }


def _counts(batch: "Item") -> str:
    raw = batch.get("request_counts")
    counts = raw if isinstance(raw, dict) else {}
    failed = counts.get("failed") or 0
    return f"{counts.get('completed') or 0} of {counts.get('total') or 0}" + (f", {failed} failed" if failed else "")
