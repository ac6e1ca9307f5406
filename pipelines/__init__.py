"""The Python API: `run`, `read_results`, `compare`, `score` and `charts`, imported on demand."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.analysis import charts
    from pipelines.analysis.comparison import compare
    from pipelines.analysis.results import Results, read_results
    from pipelines.analysis.scoring import score
    from pipelines.python_api.live_run import run

__all__ = ["Results", "charts", "compare", "read_results", "run", "score"]

_HOMES = {
    "Results": "pipelines.analysis.results",
    "compare": "pipelines.analysis.comparison",
    "read_results": "pipelines.analysis.results",
    "run": "pipelines.python_api.live_run",
    "score": "pipelines.analysis.scoring",
}


def __getattr__(name: str) -> Any:
    # The command line must not import polars and the other libraries of notebooks.
    if name == "charts":
        return importlib.import_module("pipelines.analysis.charts")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
