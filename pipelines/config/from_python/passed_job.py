"""A job that Python passes: a path, keys or a `Job`, perhaps with rows in place of its source."""

import os
from collections.abc import Mapping
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import Any, Self

import duckdb
import msgspec
from msgspec import Struct
from pydantic import model_validator

from connectors.contracts import OpenedSource, SourceContext, SourceModel
from connectors.errors import FieldError, JobError
from connectors.sinks.parquet_table import ParquetSink
from pipelines.config.from_python.yaml_writer import write_yaml
from pipelines.config.job import AnySink, AnySource
from pipelines.config.job import Job as FileJob
from pipelines.config.loaded_job import STATE_TABLES, JobFile, LoadedJob, checked_job, read_job_file
from pipelines.config.overrides import NONE, Overrides
from pipelines.config.workspace import find_workspace
from pipelines.config.yaml_reader import YamlFile


class PassedRows(SourceModel):
    """The source of a job without one: rows that the caller of `run` passes."""

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        """Raise JobError: a run has a file in place of this source."""
        raise JobError(("source",), "missing", "pass rows: run(job, rows=...)")

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        raise JobError(("source",), "missing", "pass rows: run(job, rows=...)")


class Job(FileJob):
    """A job in Python: the keys of a job file; without `source` it takes rows, and may lack a sink."""

    source: AnySource = PassedRows()
    sink: AnySink = ParquetSink(parquet=f".rowmill/{STATE_TABLES}")

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Validate the keys of a job; JobError names the first error in one line."""
        if isinstance(obj, FileJob):
            return super().model_validate(obj.to_values() if type(obj) is FileJob else obj, **options)
        if not isinstance(obj, Mapping):
            raise JobError("job", f"found {type(obj).__name__}, expected the keys of a job", "pass a dict")
        return checked_job(cls, _plain(obj))

    def to_yaml(self) -> str:
        """Return the text of a job file; `run` takes it, and `Job.model_validate` its values."""
        out = StringIO()
        write_yaml(self.to_values(), out)
        return out.getvalue()

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a row; empty if its content does."""
        key = self.rows_key if self.rows_key is not None else self.source.key
        return (key,) if isinstance(key, str) else key or ()

    @model_validator(mode="after")
    def _check_sink(self) -> Self:
        if "source" in self.model_fields_set and "sink" not in self.model_fields_set:
            raise FieldError("missing", "write e.g. sink: {parquet: out/labels}", ("sink",))
        return self


JobLike = str | PathLike[str] | Mapping[str, Any] | FileJob
"""The path of a job file, its keys, or a validated job."""


class PassedJob(Struct, frozen=True):
    """What a caller passes to `run`, with rows as a file; another process can load it."""

    job: str | dict[str, Any]
    """The path of a job file, or the keys of a job."""
    workspace: str | None = None
    """A folder; None: the workspace of the job file."""
    rows: str | None = None
    """A Parquet file in place of the source."""

    @classmethod
    def of(cls, job: JobLike, workspace: str | PathLike[str] | None, rows: str | None = None) -> Self:
        """Return the job of a call; keys without a workspace belong to the current folder."""
        if isinstance(job, str | PathLike):
            return cls(str(job), None if workspace is None else str(workspace), rows)
        values = (job if isinstance(job, FileJob) else Job.model_validate(job)).to_values()
        return cls(values, "." if workspace is None else str(workspace), rows)

    @property
    def has_source(self) -> bool:
        """Whether the job names a source; JobError if its file cannot be read."""
        values = self.job if isinstance(self.job, dict) else read_job_file(self.job).content.values
        return "source" in values

    def load(self, overrides: Overrides = NONE) -> LoadedJob:
        """Validate the job with the flags applied; JobError names the first error."""
        if self.workspace is not None and not os.path.isdir(self.workspace):  # noqa: PTH112 - never raises
            raise JobError(f"workspace={self.workspace}", "no such folder", "name the folder of the workspace")
        rows = None if self.rows is None else Path(self.rows)
        if isinstance(self.job, dict):
            if rows is None and "source" not in self.job:
                raise JobError("source", "missing", "pass rows, run(job, rows=frame), or name a source")
            workspace = find_workspace(self.workspace or ".")
            file = JobFile(workspace.folder / self.job["name"], "", YamlFile(self.job, {}), rows)
        else:
            workspace = find_workspace(self.workspace or self.job)
            read = read_job_file(self.job)
            file = JobFile(read.path, read.shown_path, read.content, rows)
        return file.load(workspace, overrides)

    def to_json(self) -> bytes:
        """Return the job for another process."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Return the job that another process passes."""
        return msgspec.json.decode(text, type=cls)


def load_passed_job(file: Path, overrides: Overrides = NONE) -> LoadedJob:
    """Load the job that another process has passed by a file."""
    return PassedJob.from_json(file.read_bytes()).load(overrides)


def _plain(value: Any) -> Any:
    """Return values as YAML has them: dicts, lists, texts and numbers."""
    if isinstance(value, Mapping):
        # PyYAML reads the key `on` as true.
        return {"on" if key is True else key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if type(value).__module__ == "numpy":
        # Whoever has a number of numpy has imported it; others may not have it.
        return value.tolist()
    return str(value) if isinstance(value, PathLike) else value
