"""`rowmill ledger`: show the workspace's ledger, delete old answers, export it as Parquet."""

import contextlib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from connectors.errors import JobError
from pipelines.commands.output import as_json_option, print_rows
from pipelines.formatting import format_bytes, format_count, shorten_times

if TYPE_CHECKING:
    from pipelines.config.workspace import Workspace
    from pipelines.ledger.ledger import Ledger
    from pipelines.ledger.ledger_reader import LedgerReader

workspace_option = click.option(
    "--workspace",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Workspace. Default: that of the current folder.",
)


@click.group("ledger")
def ledger_command() -> None:
    """Show, prune and export the ledger.

    The ledger is the SQLite file with every request and every answer of a workspace.

    \b
    Examples:
      rowmill ledger show
      rowmill ledger prune --older-than 90d --dry-run
      rowmill ledger export -o ledger-copy
    """


@ledger_command.command("show")
@workspace_option
@as_json_option
def show_command(folder: Path, as_json: bool) -> None:
    """Show the size of the ledger and its content by job.

    \b
    Example:
      rowmill ledger show
    """
    from pipelines.config.workspace import find_workspace
    from pipelines.maintenance.retention import ledger_summary
    from pipelines.reporting.status_queries import ledger_reader

    workspace = find_workspace(folder)
    ledger = ledger_reader(workspace)
    if ledger is None:
        raise _no_ledger(workspace)
    with ledger:
        summary = ledger_summary(workspace, ledger)
    if as_json:
        click.echo(orjson.dumps(summary))
        return
    click.echo(_format_summary(summary))
    columns = {
        "job": "job", "runs": "runs", "open_runs": "open", "exchanges": "exchanges", "cost_usd": "cost_usd",
        "answers": "answers", "answer_bytes": "size", "oldest_answer": "oldest_answer",
    }  # fmt: skip
    rows = [{head: job[name] for name, head in columns.items()} for job in summary["jobs"]]
    print_rows([{**row, "size": format_bytes(row["size"])} for row in rows], False, "no run yet")


@ledger_command.command("prune")
@workspace_option
@click.option("--older-than", "age", metavar="AGE", help="Only answers older than this: 12h, 90d, 6w.")
@click.option("--job", "jobs", multiple=True, metavar="NAME", help="Only answers of this job. Repeatable.")
@click.option("--gone", is_flag=True, help="Only answers of jobs that no longer have a job file in the workspace.")
@click.option("--answers-only", is_flag=True, help="Keep commit records, so that `rebuild` reports missing rows.")
@click.option("--dry-run", is_flag=True, help="Only print what would be deleted.")
def prune_command(
    folder: Path, age: str | None, jobs: tuple[str, ...], gone: bool, answers_only: bool, dry_run: bool
) -> None:
    """Delete answers that are no longer needed.

    Exchanges and their cost are kept, and so are the rows in a sink. Afterwards, `rebuild` cannot write these rows, and
    equal requests are sent again. Answers of a job with an open run are never deleted.

    \b
    Examples:
      rowmill ledger prune --older-than 90d --dry-run
      rowmill ledger prune --gone
      rowmill ledger prune --job ticket-enrichment --older-than 2w
    """
    from pipelines.maintenance.retention import age_seconds, orphaned_jobs, prune

    if age is None and not jobs and not gone:
        raise JobError("ledger prune", "nothing to delete is selected", "add --older-than 90d, --job NAME or --gone")
    older_than = None if age is None else timedelta(seconds=age_seconds(age))
    workspace, ledger = _open_ledger(folder)
    try:
        chosen: list[str] | None = list(dict.fromkeys(jobs)) or None
        if gone:
            orphans = orphaned_jobs(workspace, ledger)
            chosen = orphans if chosen is None else [job for job in chosen if job in orphans]
        result = prune(workspace, ledger, older_than, chosen, answers_only, dry_run)
    finally:
        ledger.close()
    for job in result.protected_jobs:
        click.echo(f"{job}: has an open run, so its answers stay; finish it with: rowmill run", err=True)
    would, freed = ("would delete", "they take") if dry_run else ("deleted", "freed")
    size = format_bytes(result.freed_bytes)
    deleted = f"{result.answers:,} answers and {result.commits:,} commit records"
    if result.documents:
        texts = format_count(result.documents, "text")
        deleted = f"{result.answers:,} answers, {result.commits:,} commit records and {texts} of documents"
    needed = f"; needs {format_bytes(result.needed_bytes)} of free disk meanwhile" if dry_run else ""
    click.echo(f"{would} {deleted}; {freed} {size}{needed}")


@ledger_command.command("export")
@workspace_option
@click.option("-o", "target", required=True, type=click.Path(path_type=Path), help="A folder, or one .parquet file.")
def export_command(folder: Path, target: Path) -> None:
    """Export exchanges, runs and the index of answers as Parquet.

    The answers themselves are not exported. A folder gets exchanges.parquet, runs.parquet and answers.parquet; a file
    gets the exchanges.

    \b
    Example:
      rowmill ledger export -o ledger-copy
    """
    from pipelines.maintenance.export import export

    with contextlib.closing(_open_to_read(folder)) as ledger:
        written = export(ledger, target)
    for path, rows in written.items():
        click.echo(f"{path}: {format_count(rows, 'row')}")


def _open_ledger(folder: Path) -> "tuple[Workspace, Ledger]":
    from pipelines.config.workspace import find_workspace
    from pipelines.reporting.status_queries import existing_ledger

    workspace = find_workspace(folder)
    ledger = existing_ledger(workspace)
    if ledger is None:
        raise _no_ledger(workspace)
    return workspace, ledger


def _open_to_read(folder: Path) -> "Ledger | LedgerReader":
    """Open the ledger, in a folder that cannot be written too; one of an earlier version is migrated first."""
    from pipelines.config.workspace import find_workspace
    from pipelines.reporting.status_queries import ledger_reader

    workspace = find_workspace(folder)
    reader = ledger_reader(workspace)
    if reader is None:
        raise _no_ledger(workspace)
    if reader.is_current:
        return reader
    reader.close()
    return _open_ledger(folder)[1]


def _no_ledger(workspace: "Workspace") -> JobError:
    return JobError(workspace.state, "there is no ledger yet", "run a job first")


def _format_summary(summary: dict[str, Any]) -> str:
    each = "" if summary["bytes_per_answer"] is None else f", {format_bytes(summary['bytes_per_answer'])} an answer"
    since = "" if summary["oldest_answer"] is None else f" since {shorten_times(summary['oldest_answer'])}"
    sizes = [format_bytes(summary[name]) for name in ("ledger_bytes", "files_bytes")]
    texts = ""
    if summary["documents"]:
        nbytes = format_bytes(summary["documents_bytes"])
        texts = f"\n{format_count(summary['documents'], 'text')} of documents, {nbytes}"
    return (
        f"{summary['path']}: {sizes[0]}, and {sizes[1]} in files next to it\n"
        f"{summary['answers']:,} answers{since}{each}; {summary['exchanges']:,} exchanges{texts}"
    )
