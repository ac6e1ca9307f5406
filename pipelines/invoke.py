"""One invocation from job file to closing report: lock, ledger, recovery, sink, run."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from connectors.errors import JobError
from connectors.ledger import Ledger
from connectors.registry import SINKS
from pipelines.jobfile import LoadedJob, load_job
from pipelines.lanes import step_price
from pipelines.overrides import Overrides, gives_sink
from pipelines.prepare import ReadyJob, placed, prepared
from pipelines.projection import add_usage, rebuild
from pipelines.runs import end_invocation, job_lock, open_run
from pipelines.summary import summary
from pipelines.workspace import Workspace, find_workspace


def invoke(
    path: Path,
    overrides: Overrides,
    new_run: bool,
    retry: frozenset[str] | None,
    log: Literal["plain", "json"],
    quiet: bool,
) -> dict[str, Any]:
    """Run the job as far as it comes; the object of `--json`."""
    from pipelines.loop import run_loop
    from pipelines.progress import progress
    from pipelines.run import RunOptions, run_job

    loaded = load_job(path, overrides)
    workspace = find_workspace(path)
    _check_offered(loaded)
    with (
        job_lock(workspace.state, loaded.job.name),
        opened_ledger(workspace) as ledger,
        local_provider(loaded) as local_url,
        prepared(loaded, workspace, ledger, local_url) as ready,
    ):
        _check_sink(ready, overrides)
        _check_budget(ready)
        with placed(loaded):
            ready.selection.check_keys()
        ledger.recover(ready.job.name)
        prepare_sink(ready, ledger)
        ready.selection.see(None if ready.job.sink.write == "replace" else ready.sink)
        run = open_run(ledger, ready.job.name, new_run)
        ended = run_loop(run_job(ready, ledger, run, RunOptions(retry), progress(ready.job.name, log, quiet)))
        told = summary(ready.job.name, run.run_id, ended, ready.sink.tables())
        end_invocation(ledger, run.run_id, ended.exit_code, ended.stopped, told)
        return told


def _check_offered(loaded: LoadedJob) -> None:
    """Keys of the contract that this version does not carry out yet are refused, never passed over."""
    job = loaded.job
    if job.delivery == "batch":
        raise JobError(f"{loaded.at('delivery')}: batch is not available in this version; write online")
    if job.on_finish is not None:
        raise JobError(f"{loaded.at('on_finish')}: is not available in this version; leave it out")
    if job.audits:
        raise JobError(f"{loaded.at('audits')}: are not available in this version; leave them out")


def _check_sink(ready: ReadyJob, overrides: Overrides) -> None:
    loaded = ready.loaded
    if loaded.changed_by and not gives_sink(overrides, SINKS) and ready.sink.present():
        raise JobError(
            f"{loaded.changed_by[0]}: changes answers, and {ready.sink_name} holds rows of the job as written; "
            "add --sink PATH to write them elsewhere"
        )
    if ready.limited and ready.job.sink.write == "replace" and ready.sink.present():
        raise JobError(
            f"{loaded.at('sink', 'write')}: replace would leave only the first rows in {ready.sink_name}; "
            "run without a limit, or add --sink PATH"
        )


def _check_budget(ready: ReadyJob) -> None:
    """With a budget, a step that could cost anything is refused."""
    if ready.job.budget is None and ready.workspace.budget is None:
        return
    for step in ready.steps:
        where = ready.loaded.at("steps", step.model.name, "model")
        price = step_price(ready, step)
        if price is None:
            raise JobError(
                f"{where}: no price is known for {step.model.model}, so no budget can hold; "
                "add it to `prices:` in rowmill.yaml"
            )
        if step.endpoint.output_bound is None and price.output_per_million:
            raise JobError(
                f"{where}: nothing bounds what an answer of {step.model.model} may cost, so no budget can hold; "
                "add params: {max_tokens: N}"
            )


@contextlib.contextmanager
def opened_ledger(workspace: Workspace) -> Iterator[Ledger]:
    """The workspace's ledger, closed afterwards."""
    ledger = Ledger(workspace.state / "ledger.sqlite")
    try:
        yield ledger
    finally:
        ledger.close()


@contextlib.contextmanager
def local_provider(loaded: LoadedJob) -> Iterator[str | None]:
    """The embedded provider's address while it is needed; None for jobs that do not ask it."""
    if all(step.provider != "local" for step in loaded.job.steps):
        yield None
        return
    from connectors.local.server import LocalOptions, LocalServer

    with LocalServer(LocalOptions()) as server:
        yield server.base_url


def prepare_sink(ready: ReadyJob, ledger: Ledger) -> None:
    """The sink's tables, there and up to date; where they are gone, what the ledger knows of them is written again."""
    fresh = ready.job.sink.write == "replace"
    known = ledger.query(
        "select count(*) from commits where job = ? and sink = ?", (ready.job.name, ready.sink_name)
    ) != [(0,)]
    if known and not fresh and not ready.sink.present():
        _write_again(ready, ledger)
    ready.sink.prepare(fresh=fresh)
    add_usage(ledger, ready.sink, ready.job.name)


def rebuilt(path: Path) -> tuple[int, Mapping[str, str]]:
    """(rows that results hold, tables) after writing results and errors again from the ledger."""
    loaded = load_job(path)
    workspace = find_workspace(path)
    with (
        job_lock(workspace.state, loaded.job.name),
        opened_ledger(workspace) as ledger,
        prepared(loaded, workspace, ledger) as ready,
    ):
        rows = _write_again(ready, ledger)
        add_usage(ledger, ready.sink, ready.job.name)
        return rows, ready.sink.tables()


def _write_again(ready: ReadyJob, ledger: Ledger) -> int:
    ready.sink.prepare(fresh=True)
    endpoints = [step.endpoint for step in ready.steps]
    rows = rebuild(ledger, ready.sink, ready.job.name, ready.sink_name, ready.shape, endpoints)
    ready.sink.finish()
    return rows
