"""The Python API: `run`, `retry`, `Job`, `read_results`, `compare`, `score` and `charts`, imported on demand."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from connectors.errors import JobError, Locked
    from pipelines.analysis import charts
    from pipelines.analysis.comparison import compare
    from pipelines.analysis.results import Results, read_results
    from pipelines.analysis.scoring import score
    from pipelines.config.from_python.passed_job import Job
    from pipelines.python_api.live_run import retry, retry_sync, run, run_sync
    from pipelines.runtime.run_report import RunReport

__all__ = [
    "Job",
    "JobError",
    "Locked",
    "Results",
    "RunReport",
    "charts",
    "compare",
    "read_results",
    "retry",
    "retry_sync",
    "run",
    "run_sync",
    "score",
]

_HOMES = {
    "Job": "pipelines.config.from_python.passed_job",
    "JobError": "connectors.errors",
    "Locked": "connectors.errors",
    "Results": "pipelines.analysis.results",
    "RunReport": "pipelines.runtime.run_report",
    "compare": "pipelines.analysis.comparison",
    "read_results": "pipelines.analysis.results",
    "retry": "pipelines.python_api.live_run",
    "retry_sync": "pipelines.python_api.live_run",
    "run": "pipelines.python_api.live_run",
    "run_sync": "pipelines.python_api.live_run",
    "score": "pipelines.analysis.scoring",
}


def __getattr__(name: str) -> Any:
    # The command line must not import polars and the other libraries of notebooks.
    if name == "charts":
        return importlib.import_module("pipelines.analysis.charts")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
