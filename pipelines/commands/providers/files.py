"""`rowmill files`: upload, list, show, download and delete the files of a provider."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from connectors.errors import JobError
from pipelines.commands.options import provider_option
from pipelines.commands.output import as_json_option, print_object, print_rows, readable

if TYPE_CHECKING:
    from pipelines.runtime.provider_api import Item, ProviderApi

PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")


@click.group("files")
def files_command() -> None:
    """Upload, list, download and delete a provider's files.

    \b
    Examples:
      rowmill files upload requests.jsonl
      rowmill files list --purpose batch
      rowmill files download file-abc123 -o answers.jsonl
      rowmill files delete file-abc123
    """


@files_command.command("upload")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--purpose", type=click.Choice(PURPOSES), default="batch", show_default=True, help="Purpose of the file.")
@provider_option
@as_json_option
def upload_command(file: Path, purpose: str, provider: str, as_json: bool) -> None:
    """Upload a file of any size; it is streamed from disk.

    \b
    Example:
      rowmill files upload requests.jsonl --purpose batch --provider local
    """
    from pipelines.runtime.provider_api import call_provider

    with _upload_bar(f"uploading {file.name}", file.stat().st_size) as on_progress:
        item = call_provider(provider, lambda api: api.upload_file(file, file.name, purpose, on_progress))
    if as_json:
        click.echo(orjson.dumps(item))
    else:
        click.echo(f"uploaded {file}: {item.get('id')}")


@files_command.command("list")
@click.option("--purpose", metavar="NAME", help="Only files with this purpose.")
@provider_option
@as_json_option
def list_command(purpose: str | None, provider: str, as_json: bool) -> None:
    """List the files, newest first.

    \b
    Example:
      rowmill files list --purpose batch_output
    """
    from pipelines.runtime.provider_api import call_provider

    files = call_provider(provider, lambda api: api.list_files(purpose))
    columns = ("id", "filename", "purpose", "bytes", "created_at", "expires_at")
    rows: list[dict[str, object]] = [
        dict(file) if as_json else {name: readable(name, file.get(name)) for name in columns} for file in files
    ]
    print_rows(rows, as_json, f"{provider} has no files")


@files_command.command("show")
@click.argument("file")
@provider_option
@as_json_option
def show_command(file: str, provider: str, as_json: bool) -> None:
    """Show the details of one file.

    \b
    Example:
      rowmill files show file-abc123
    """
    from pipelines.runtime.provider_api import call_provider

    print_object(call_provider(provider, lambda api: api.get_file(file)), as_json)


@files_command.command("download")
@click.argument("file")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PATH", help="Output file. Default: stdout.")
@click.option("--overwrite", is_flag=True, help="Replace PATH if it exists.")
@provider_option
def download_command(file: str, output: Path | None, overwrite: bool, provider: str) -> None:
    """Download a file's content.

    \b
    Examples:
      rowmill files download file-abc123 -o answers.jsonl
      rowmill files download file-abc123 | head
    """
    from pipelines.runtime.provider_api import call_provider

    if output is None:
        stdout = sys.stdout.buffer
        call_provider(provider, lambda api: api.download_file(file, stdout.write))
        stdout.flush()
        return
    if output.exists() and not overwrite:
        raise JobError(output, "is there already", "name another file, or add --overwrite")
    unfinished = output.with_name(f"{output.name}.part")
    try:
        with unfinished.open("wb") as part:
            call_provider(provider, lambda api: api.download_file(file, part.write))
        unfinished.replace(output)
    except OSError as exc:
        raise JobError(output, f"cannot be written ({exc.strerror})", "name another file") from exc
    finally:
        unfinished.unlink(missing_ok=True)
    click.echo(f"downloaded {file}: {output}, {output.stat().st_size:,} bytes", err=True)


@files_command.command("delete")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@provider_option
@as_json_option
def delete_command(files: tuple[str, ...], provider: str, as_json: bool) -> None:
    """Delete files at the provider, without confirmation.

    \b
    Example:
      rowmill files delete file-abc123 file-abc124
    """
    from pipelines.runtime.provider_api import call_provider

    def report(item: "Item") -> None:
        click.echo(orjson.dumps(item) if as_json else f"deleted {item.get('id')}")

    async def delete_all(api: "ProviderApi") -> None:
        for file in files:
            report(await api.delete_file(file))

    call_provider(provider, delete_all)


@contextlib.contextmanager
def _upload_bar(description: str, size: int) -> Iterator[Callable[[int], None]]:
    """Show the bytes sent so far on a terminal."""
    if not sys.stderr.isatty():
        yield lambda sent: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=size)
        yield lambda sent: bar.update(task, completed=sent)
