"""The registry of sources, sinks and endpoints, one line each; mypy checks that each class fits its protocol."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from connectors.contracts import Check, Endpoint, RescueRung, Sink, Source, StepContext, TableShape
from connectors.endpoints.chat import ChatStep
from connectors.endpoints.embeddings import EmbeddingsStep
from connectors.endpoints.image_edit import ImageEditStep
from connectors.endpoints.image_generation import ImageGenerationStep
from connectors.endpoints.image_variation import ImageVariationStep
from connectors.endpoints.responses import ResponsesStep
from connectors.endpoints.speech import SpeechStep
from connectors.endpoints.transcription import TranscriptionStep
from connectors.endpoints.translation import TranslationStep
from connectors.errors import KeyPath
from connectors.sinks.delta_table import DeltaSink
from connectors.sinks.duckdb_table import DuckdbSink
from connectors.sinks.parquet_table import ParquetSink
from connectors.sources.csv_files import CsvSource
from connectors.sources.duckdb_file import DuckdbSource
from connectors.sources.job_results import JobSource
from connectors.sources.json_lines import JsonlSource
from connectors.sources.parquet_files import ParquetSource
from connectors.sources.sql_query import SqlSource


class SourceConfig(Source, Protocol):
    """A source's keys in the job file, and the source itself."""

    @property
    def key(self) -> str | tuple[str, ...] | None: ...
    @property
    def where(self) -> str | None: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def needed_jobs(self) -> Mapping[str, KeyPath]: ...


class StepConfig(Protocol):
    """A step's keys in the job file, which build its endpoint."""

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
    @property
    def reuse(self) -> bool: ...
    @property
    def keep(self) -> bool: ...
    @property
    def schema_digest(self) -> bytes | None: ...
    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def rescue(self) -> Sequence[RescueRung]: ...
    @property
    def rungs(self) -> "Sequence[StepConfig]": ...
    @property
    def with_rungs(self) -> "Sequence[StepConfig]": ...
    @property
    def check(self) -> Sequence[Check]: ...
    @property
    def evidence(self) -> Mapping[str, str]: ...
    def build(self, context: StepContext, /) -> Endpoint: ...


class SinkConfig(Protocol):
    """A sink's keys in the job file, which open the sink."""

    @property
    def columns(self) -> tuple[str, ...] | Literal["all"]: ...
    @property
    def write(self) -> Literal["merge", "append", "replace"]: ...
    @property
    def deleted(self) -> Literal["keep", "remove"]: ...
    @property
    def identity(self) -> str:
        """The location as the job file writes it: one name for one sink."""

    def location(self, workspace: Path, /) -> str:
        """Return where the tables are, links followed; sinks with the same location are one."""

    @property
    def files_prefix(self) -> str:
        """Prefix of the name of a row's media file in a results column."""

    def open(self, shape: TableShape, workspace: Path, longest_hold: float, /) -> Sink:
        """Open the tables; a relative path starts at `workspace`. `longest_hold`: seconds to wait for a reader."""


SOURCES: Mapping[str, type[SourceConfig]] = {
    "parquet": ParquetSource,
    "csv": CsvSource,
    "jsonl": JsonlSource,
    "duckdb": DuckdbSource,
    "sql": SqlSource,
    "job": JobSource,
}
"""By the key that names the kind."""

SINKS: Mapping[str, type[SinkConfig]] = {
    "parquet": ParquetSink,
    "duckdb": DuckdbSink,
    "delta": DeltaSink,
}
"""By the key that names the kind."""

ENDPOINTS: Mapping[str, type[StepConfig]] = {
    "chat": ChatStep,
    "embeddings": EmbeddingsStep,
    "responses": ResponsesStep,
    "speech": SpeechStep,
    "transcription": TranscriptionStep,
    "translation": TranslationStep,
    "image_generation": ImageGenerationStep,
    "image_edit": ImageEditStep,
    "image_variation": ImageVariationStep,
}
"""By the value of a step's key `endpoint`."""
