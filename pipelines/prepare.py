"""A job made ready: source read, templates and predicates checked, endpoints and sink built; nothing is sent here."""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from connectors.contracts import Endpoint, Provider, Sink, SourceFacts, StepFacts, StepModel, TableShape
from connectors.errors import JobError, did_you_mean
from connectors.ledger import Ledger
from connectors.tables import errors_schema, results_schema
from pipelines.jobfile import Job, LoadedJob
from pipelines.predicates import Predicate
from pipelines.reader import Reader, Selection
from pipelines.workspace import Workspace


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """One step with what it needs, checked against the columns before it."""

    model: StepModel
    provider: Provider
    endpoint: Endpoint
    facts: StepFacts
    when: Predicate | None

    def rebuilt(self, structured: str) -> Endpoint:
        """The endpoint, asking for typed output in another way."""
        return self.model.build(replace(self.facts, structured=structured))


@dataclass(frozen=True, slots=True)
class ReadyJob:
    """Everything that a run, a plan or a look at the job needs."""

    loaded: LoadedJob
    workspace: Workspace
    reader: Reader
    selection: Selection
    steps: Sequence[ReadyStep]
    shape: TableShape
    sink: Sink
    sink_name: str
    """The sink as the job file writes it: under this name the ledger keeps its commits."""
    limited: bool
    """Whether only some of the source's rows are looked at."""

    @property
    def job(self) -> Job:
        return self.loaded.job

    @property
    def removing(self) -> bool:
        """Whether rows that have left the source leave the sink."""
        return self.job.sink.deleted == "remove" and not self.limited
