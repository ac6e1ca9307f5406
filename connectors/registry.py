"""Which sources, sinks and endpoints there are, one line each; mypy checks that the class fits."""

from collections.abc import Mapping
from typing import Literal, Protocol

from connectors.contracts import Endpoint, Source, StepFacts
from connectors.endpoints.chat import ChatStep
from connectors.endpoints.embeddings import EmbeddingsStep
from connectors.sinks.duckdb_table import DuckdbSink
from connectors.sinks.parquet_folder import ParquetSink
from connectors.sources.csv_files import CsvSource
from connectors.sources.duckdb_file import DuckdbSource
from connectors.sources.job_results import JobSource
from connectors.sources.json_lines import JsonlSource
from connectors.sources.parquet_files import ParquetSource
from connectors.sources.sql_query import SqlSource


class SourceKind(Source, Protocol):
    """A kind of source as the job file writes it: the keys that all share, and the reading itself."""

    @property
    def key(self) -> str | tuple[str, ...] | None: ...
    @property
    def where(self) -> str | None: ...
    @property
    def limit(self) -> int | None: ...


class StepKind(Protocol):
    """An endpoint's step as the job file writes it."""

    @property
    def endpoint(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def when(self) -> str | None: ...
    def build(self, facts: StepFacts) -> Endpoint: ...


class SinkKind(Protocol):
    """A kind of sink as the job file writes it."""

    @property
    def columns(self) -> tuple[str, ...] | Literal["all"]: ...
    @property
    def write(self) -> Literal["merge", "append", "replace"]: ...
    @property
    def deleted(self) -> Literal["keep", "remove"]: ...


SOURCES: Mapping[str, type[SourceKind]] = {
    "parquet": ParquetSource,
    "csv": CsvSource,
    "jsonl": JsonlSource,
    "duckdb": DuckdbSource,
    "sql": SqlSource,
    "job": JobSource,
}
"""By the key that names the kind."""

SINKS: Mapping[str, type[SinkKind]] = {
    "parquet": ParquetSink,
    "duckdb": DuckdbSink,
}
"""By the key that names the kind."""

ENDPOINTS: Mapping[str, type[StepKind]] = {
    "chat": ChatStep,
    "embeddings": EmbeddingsStep,
}
"""By the value of a step's key `endpoint`."""
