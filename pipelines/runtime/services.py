"""What a command opens while it runs: the workspace's ledger and the embedded provider."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from connectors.errors import JobError
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace import Workspace
from pipelines.config.workspace_file import LOCAL
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.ledger_reader import AnswerReads, LedgerReader
from pipelines.runtime.scratch_dir import can_write


@contextlib.contextmanager
def open_workspace_ledger(workspace: Workspace) -> Iterator[Ledger]:
    """Open the workspace's ledger and close it afterwards."""
    ledger = Ledger(workspace.state / "ledger.sqlite", workspace.durability)
    try:
        yield ledger
    finally:
        ledger.close()


@contextlib.contextmanager
def workspace_answers(workspace: Workspace) -> Iterator[AnswerReads]:
    """Open the workspace's ledger for a command that sends nothing, also if the state folder cannot be written.

    A ledger that does not exist, or was written by an older Rowmill, is created or migrated if possible.
    """
    path = workspace.state / "ledger.sqlite"
    if can_write(workspace.state):
        with open_workspace_ledger(workspace) as ledger:
            yield ledger
    elif path.exists():
        with LedgerReader(path) as reader:
            if not reader.is_current:
                found = "this ledger was written by an older Rowmill, and its folder cannot be written"
                raise JobError(path, found, "run a command where it can be written: it migrates the ledger")
            yield reader
    else:
        with tempfile.TemporaryDirectory() as name, contextlib.closing(Ledger(Path(name, path.name))) as ledger:
            yield ledger


@contextlib.contextmanager
def local_provider(loaded: LoadedJob) -> Iterator[str | None]:
    """Run the embedded provider if a step of the job uses it, and yield its URL; None if no step does."""
    pools = loaded.workspace.pools
    names = {name for provider in loaded.job.providers for name in pools.get(provider, (provider,))}
    if LOCAL not in names:
        yield None
        return
    with embedded_provider(loaded.workspace) as url:
        yield url


@contextlib.contextmanager
def embedded_provider(workspace: Workspace) -> Iterator[str]:
    """Run the embedded provider and yield its URL; its files and batches survive in the workspace's state."""
    from connectors.emulator.server import EmulatorOptions, EmulatorServer

    with EmulatorServer(EmulatorOptions(folder=workspace.state / LOCAL)) as server:
        yield server.base_url
