"""What a command opens while it runs: the workspace's ledger and the embedded provider."""

import contextlib
from collections.abc import Iterator

from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace import Workspace
from pipelines.config.workspace_file import LOCAL
from pipelines.ledger.ledger import Ledger


@contextlib.contextmanager
def open_workspace_ledger(workspace: Workspace) -> Iterator[Ledger]:
    """Open the workspace's ledger and close it afterwards."""
    ledger = Ledger(workspace.state / "ledger.sqlite", workspace.durability)
    try:
        yield ledger
    finally:
        ledger.close()


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
