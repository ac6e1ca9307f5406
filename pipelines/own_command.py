"""How `rowmill` starts itself once more."""

import sys


def rowmill_command() -> list[str]:
    """How to start `rowmill` by this interpreter; -P: never the modules of the folder that it is started in."""
    return [sys.executable, "-P", "-m", "pipelines.cli"]
