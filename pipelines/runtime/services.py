"""What a command opens for as long as it runs: the workspace's ledger and the embedded provider."""

import contextlib
from collections.abc import Iterator

from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace import Workspace
from pipelines.config.workspace_file import LOCAL
from pipelines.ledger.ledger import Ledger


@contextlib.contextmanager
def open_workspace_ledger(workspace: Workspace) -> Iterator[Ledger]:
    """The workspace's ledger, closed afterwards."""
    ledger = Ledger(workspace.state / "ledger.sqlite")
    try:
        yield ledger
    finally:
        ledger.close()


@contextlib.contextmanager
def local_provider(loaded: LoadedJob, workspace: Workspace) -> Iterator[str | None]:
    """The embedded provider's address while it is needed; None for jobs that do not ask it.

    It keeps files and batches in the workspace's state, so that a run that was killed finds them again.
    """
    asked = {name for step in loaded.job.steps for name in workspace.pools.get(step.provider, (step.provider,))}
    if LOCAL not in asked:
        yield None
        return
    from connectors.emulator.server import EmulatorOptions, EmulatorServer

    with EmulatorServer(EmulatorOptions(folder=workspace.state / "local")) as server:
        yield server.base_url
