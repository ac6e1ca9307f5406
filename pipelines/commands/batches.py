"""`rowmill batches`: what goes on in a provider's Batch API."""

from typing import TYPE_CHECKING

import click
import orjson

from pipelines.commands.options import provider_option
from pipelines.commands.output import as_json_option, print_object, print_rows, readable

if TYPE_CHECKING:
    from pipelines.runtime.provider_api import Item, ProviderApi


@click.group("batches")
def batches_command() -> None:
    """Look at a provider's batches, of this workspace and of everybody else who uses the key.

    \b
    Examples:
      rowmill batches list
      rowmill batches show batch_abc123
      rowmill batches cancel batch_abc123
    """


@batches_command.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@provider_option
@as_json_option
def list_command(limit: int, provider: str, as_json: bool) -> None:
    """List the batches, the newest first.

    \b
    Example:
      rowmill batches list --limit 5 --provider local
    """
    from pipelines.runtime.provider_api import ask_provider

    batches = ask_provider(provider, lambda api: _first(api, limit))
    rows = [dict(batch) if as_json else _row(batch) for batch in batches]
    print_rows(rows, as_json, f"{provider} has no batches")


@batches_command.command("show")
@click.argument("batch")
@provider_option
@as_json_option
def show_command(batch: str, provider: str, as_json: bool) -> None:
    """Show one batch: how far it is, its files, why it failed.

    \b
    Example:
      rowmill batches show batch_abc123
    """
    from pipelines.runtime.provider_api import ask_provider

    print_object(ask_provider(provider, lambda api: api.batch(batch)), as_json)


@batches_command.command("cancel")
@click.argument("batch")
@provider_option
@as_json_option
def cancel_command(batch: str, provider: str, as_json: bool) -> None:
    """Cancel a batch. What it has answered by then is kept and billed; a job that waits for it asks the rest again.

    \b
    Example:
      rowmill batches cancel batch_abc123
    """
    from pipelines.runtime.provider_api import ask_provider

    item = ask_provider(provider, lambda api: api.cancel_batch(batch))
    if as_json:
        click.echo(orjson.dumps(item))
    else:
        click.echo(f"{item.get('id')}: {item.get('status')}; {_counts(item)} answered")


async def _first(api: "ProviderApi", limit: int) -> "list[Item]":
    found: list[Item] = []
    async for batch in api.batches():
        found.append(batch)
        if len(found) == limit:
            break
    return found


def _row(batch: "Item") -> dict[str, object]:
    told = {
        "endpoint": "endpoint", "created_at": "created", "input_file_id": "input", "output_file_id": "output",
        "error_file_id": "errors",
    }  # fmt: skip
    return {
        "id": batch.get("id"),
        "status": batch.get("status"),
        "answered": _counts(batch),
        **{head: readable(name, batch.get(name)) for name, head in told.items()},
    }


def _counts(batch: "Item") -> str:
    told = batch.get("request_counts")
    counts = told if isinstance(told, dict) else {}
    failed = counts.get("failed") or 0
    return f"{counts.get('completed') or 0} of {counts.get('total') or 0}" + (f", {failed} failed" if failed else "")
