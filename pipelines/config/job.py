"""The models of a job file: one frozen, validated `Job`."""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from connectors.contracts import Columns, FrozenModel, StepModel
from connectors.errors import FieldError, KeyPath
from connectors.registry import ENDPOINTS, SINKS, SOURCES, SinkConfig, SourceConfig, StepConfig
from pipelines.config.steps.local_steps import LOCAL_STEPS, LocalStep, check_order
from pipelines.config.strict_model import StrictModel
from pipelines.config.validation_messages import format_value

_WEEK_SECONDS = 7 * 24 * 3600
_TIME_OF_DAY = "^([01][0-9]|2[0-3]):[0-5][0-9]$"


class JobLimits(StrictModel):
    """Limits of this job; the provider's own limits apply too, and the lower one counts."""

    requests_per_minute: int | None = Field(
        default=None, ge=1, le=10**9, description="Requests a minute.", examples=[3000]
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=10**12, description="Tokens a minute, input and output.", examples=[2_000_000]
    )
    concurrency: int = Field(default=64, ge=1, le=10_000, description="Requests in flight.", examples=[200])
    failed_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Stop when more than this share of at least 100 rows settled in this invocation has failed.",
        examples=[0.2],
    )


class Budget(StrictModel):
    """What a run may cost over all its invocations, by Rowmill's count of tokens and prices."""

    usd: float = Field(ge=0, le=10**6, allow_inf_nan=False, description="US dollars.", examples=[5.0])


class Retry(StrictModel):
    """How often and how long a request is retried."""

    attempts: int = Field(
        default=6,
        ge=1,
        le=100,
        description="Attempts of one request, the first included; a 429 does not count.",
        examples=[6],
    )
    longest_wait: float = Field(
        default=60,
        ge=0,
        le=_WEEK_SECONDS,
        allow_inf_nan=False,
        description="Seconds: the longest single back-off.",
        examples=[60],
    )
    longest_hold: float = Field(
        default=900,
        ge=0,
        le=_WEEK_SECONDS,
        allow_inf_nan=False,
        description="Seconds: the longest Retry-After or open circuit to wait for; beyond it the run stops.",
        examples=[900],
    )


class Timeouts(StrictModel):
    """Timeouts of one request, in seconds."""

    connect: float = Field(
        default=10, gt=0, le=_WEEK_SECONDS, allow_inf_nan=False, description="Seconds until connected.", examples=[10]
    )
    idle: float = Field(
        default=60,
        gt=0,
        le=_WEEK_SECONDS,
        allow_inf_nan=False,
        description="Seconds of silence within a reply: after its first byte, or the first token of a stream.",
        examples=[60],
    )
    total: float = Field(
        default=600,
        gt=0,
        le=_WEEK_SECONDS,
        allow_inf_nan=False,
        description="Seconds from the request to the end of its reply.",
        examples=[600],
    )


class OnFinish(StrictModel):
    """Where to send the run report: exactly one of a command and a webhook."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    command: str | None = Field(
        default=None,
        min_length=1,
        description="A command that reads the report as JSON from stdin.",
        examples=["notify.sh"],
    )
    webhook: str | None = Field(
        default=None,
        pattern=r"^https?://.+$",
        description="A URL that receives the report as JSON by POST.",
        examples=["https://example.org/hook"],
    )

    @model_validator(mode="after")
    def _check_one_target(self) -> Self:
        if (self.command is None) == (self.webhook is None):
            raise FieldError("takes exactly one of command and webhook", "write e.g. on_finish: {command: notify.sh}")
        return self


class Drift(StrictModel):
    """Bounds for the differences between the rows of this run and those of earlier runs; null: not checked."""

    null_share: float | None = Field(
        default=0.1,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Largest change of the share of nulls.",
        examples=[0.1],
    )
    enum_share: float | None = Field(
        default=0.1,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Largest change of the share of one value of an enum.",
        examples=[0.1],
    )
    length: float | None = Field(
        default=0.3,
        ge=0,
        le=10**6,
        allow_inf_nan=False,
        description="Largest relative change of the mean length.",
        examples=[0.3],
    )
    cost_per_row: float | None = Field(
        default=0.5,
        ge=0,
        le=10**6,
        allow_inf_nan=False,
        description="Largest relative change of the cost per row.",
        examples=[0.5],
    )


class Audit(StrictModel):
    """SQL over `results` after the run, or `drift`; more than `max` rows: exit code 5."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["sql"]}, {"required": ["drift"]}]})

    name: str = Field(min_length=1, description="Its name in the report.", examples=["no empty topic"])
    sql: str | None = Field(
        default=None,
        min_length=1,
        description="A query over `results`, `usage` and `errors` that returns the wrong rows.",
        examples=["select * from results where topic is null"],
    )
    drift: Drift | None = Field(
        default=None,
        description="Instead of sql: the columns and measures that differ from earlier runs.",
        examples=[{"null_share": 0.1}],
    )
    max: int = Field(default=0, ge=0, le=10**18, description="Rows that are allowed.", examples=[0])

    @model_validator(mode="after")
    def _check_sql_or_drift(self) -> Self:
        if self.sql is None and self.drift is None:
            raise FieldError("missing", "write e.g. sql: select * from results where topic is null", ("sql",))
        if self.sql is not None and self.drift is not None:
            raise FieldError("cannot be combined with sql", "write two audits", ("drift",))
        return self


def _union_by_key(kinds: Mapping[str, type[Any]]) -> Any:
    """Return the annotation of a source, step or sink: the key that names the kind decides.

    The value of a step's key `endpoint` decides too.
    """

    def kind_of(value: Any) -> str | None:
        if isinstance(value, Mapping):
            endpoint = value.get("endpoint")
            if isinstance(endpoint, str) and endpoint in kinds:
                return endpoint
            return next((kind for kind in kinds if kind in value), None)
        return next((kind for kind, model in kinds.items() if isinstance(value, model)), None)

    models = tuple(Annotated[model, Tag(kind)] for kind, model in kinds.items())
    return Annotated[Union[models], Discriminator(kind_of)]  # noqa: UP007 - from a tuple


if TYPE_CHECKING:
    AnySource = SourceConfig
    AnyStep = StepConfig | LocalStep
    AnySink = SinkConfig
else:
    AnySource = _union_by_key(SOURCES)
    AnyStep = _union_by_key({**ENDPOINTS, **LOCAL_STEPS})
    AnySink = _union_by_key(SINKS)


class Job(FrozenModel):
    """The contents of a job file, validated."""

    name: str = Field(
        pattern=r"^[a-z0-9-]+$", description="Unique in the workspace: a-z, 0-9 and -.", examples=["ticket-enrichment"]
    )
    description: str = Field(default="", description="A description for people.")
    rows_key: str | Columns | None = Field(
        default=None,
        alias="key",
        description="Only for rows passed from Python in place of `source`: column or list of columns, their identity.",
        examples=["id"],
    )
    source: AnySource = Field(description=f"Where the rows come from: exactly one of {', '.join(SOURCES)}.")
    steps: tuple[AnyStep, ...] = Field(
        min_length=1, description="Each row goes through the steps in order; a later step sees earlier outputs."
    )
    sink: AnySink = Field(description=f"Where the tables go: exactly one of {', '.join(SINKS)}.")
    limits: JobLimits = Field(default=JobLimits(), description="Limits of this job.")
    budget: Budget | None = Field(default=None, description="What a run may cost.", examples=[{"usd": 5.0}])
    retry: Retry = Field(default=Retry(), description="How often and how long a request is retried.")
    timeouts: Timeouts = Field(default=Timeouts(), description="Timeouts of one request, in seconds.")
    delivery: Literal["online", "batch"] = Field(
        default="online",
        description="Send requests one by one, or through the provider's Batch API.",
        examples=["online"],
    )
    deadline: str | None = Field(
        default=None,
        description="With delivery: batch. HH:MM in the workspace's time zone.",
        examples=["06:00"],
        json_schema_extra={"pattern": _TIME_OF_DAY},
    )
    schedule: str | None = Field(
        default=None, description="Cron: five fields, in the workspace's time zone.", examples=["0 2 * * *"]
    )
    on_finish: OnFinish | None = Field(
        default=None, description="Where to send the run report.", examples=[{"command": "notify.sh"}]
    )
    audits: tuple[Audit, ...] = Field(default=(), description="SQL over `results`, after the run.")

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a row; empty if its content does."""
        key = self.source.key
        return (key,) if isinstance(key, str) else key or ()

    def to_values(self) -> dict[str, Any]:
        """Return the keys that were given, as a job file has them."""
        values = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        first = ("name", "endpoint")
        values["steps"] = [{key: step[key] for key in first if key in step} | step for step in values["steps"]]
        return values

    @property
    def endpoint_steps(self) -> tuple[StepConfig, ...]:
        """The steps that send requests."""
        return tuple(step for step in self.steps if not isinstance(step, LocalStep))

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers that its steps name, rungs included."""
        return tuple(dict.fromkeys(one.provider for step in self.endpoint_steps for one in step.with_rungs))

    @property
    def needed_jobs(self) -> Mapping[str, KeyPath]:
        """The jobs whose results the source reads -> the key that names each."""
        return {name: ("source", *path) for name, path in self.source.needed_jobs.items()}

    @property
    def limit(self) -> int | None:
        """The number of rows to read, from the first; None: all."""
        return self.source.limit

    @field_validator("deadline")
    @classmethod
    def _check_time_of_day(cls, deadline: str | None) -> str | None:
        if deadline is not None and not re.fullmatch(_TIME_OF_DAY[1:-1], deadline):
            raise FieldError(f"found {format_value(deadline)}, not a time of day", 'write e.g. deadline: "06:00"')
        return deadline

    @field_validator("schedule")
    @classmethod
    def _check_cron(cls, schedule: str | None) -> str | None:
        from cronsim import CronSim, CronSimError

        try:
            # CronSim accepts a sixth field for seconds; crontab does not.
            if schedule is not None and CronSim(schedule, datetime(2000, 1, 1)) and len(schedule.split()) != 5:
                raise CronSimError("Wrong number of fields")
        except CronSimError as exc:
            found = f"found {format_value(schedule)}, not a cron expression: {str(exc).lower()}"
            raise FieldError(found, 'write e.g. schedule: "0 2 * * *"') from exc
        return schedule

    @model_validator(mode="after")
    def _check_keys_together(self) -> Self:
        for section, entries in (("steps", self.steps), ("audits", self.audits)):
            names = [entry.name for entry in entries]
            for index, name in enumerate(names):
                if name in names[:index]:
                    found = f"{format_value(name)} is the name of an earlier one too"
                    raise FieldError(found, "give each its own name", (section, index, "name"))
        for index, step in enumerate(self.steps):
            if isinstance(step, StepModel):
                _check_step(step, ("steps", index))
        check_order({place: step for place, step in enumerate(self.steps) if isinstance(step, LocalStep)})
        if self.sink.columns != "all" and len(set(self.sink.columns)) < len(self.sink.columns):
            raise FieldError("names a column twice", "name each once", ("sink", "columns"))
        if self.rows_key is not None and "source" in self.model_fields_set:
            raise FieldError("is for rows passed from Python", "write it below source", ("key",))
        if len(set(self.key)) < len(self.key):
            raise FieldError("names a column twice", "name each once", ("source", "key"))
        if self.sink.write == "append" and not self.key:
            found = "append recognises existing rows by their key, and there is none"
            raise FieldError(found, "add key: to the source", ("sink", "write"))
        if self.sink.deleted == "remove" and self.sink.write != "merge":
            remedy = "leave deleted out or write merge"
            raise FieldError("remove requires write: merge", remedy, ("sink", "deleted"))
        if self.deadline is not None and self.delivery != "batch":
            raise FieldError("requires delivery: batch", "leave it out or add delivery: batch", ("deadline",))
        return self


@cache
def pydantic_schema() -> dict[str, Any]:
    """Return the JSON Schema as pydantic makes it."""
    return Job.model_json_schema()


_CLIENT_KEYS = frozenset(
    {"endpoint", "dialect", "structured", "split", "output", "output_schema", "allow_empty", "repairs"}
)
"""Keys of endpoints that are not parameters of the API."""


def _check_step(step: StepModel, path: KeyPath) -> None:
    """Raise FieldError for a key that would be ignored or would spoil the request."""
    is_typed = isinstance(getattr(step, "output", None), dict) or getattr(step, "output_schema", None) is not None
    if getattr(step, "structured", "auto") != "auto" and not is_typed:
        found, remedy = "applies to a typed output, and there is none", "write output: {name: {type: ...}}"
        raise FieldError(found, remedy, (*path, "structured"))
    fields = type(step).model_fields.keys()
    set_by_rowmill = (fields - StepModel.model_fields.keys() - _CLIENT_KEYS) | {"model", "stream"}
    for name in step.extra_body:
        here = (*path, "extra_body", name)
        if name in set_by_rowmill:
            place = "at the step" if name in fields else "below params where the endpoint takes it"
            raise FieldError("Rowmill sets this key itself", f"write {name}: {place}", here)
        if name in step.params:
            raise FieldError("is in params as well", "leave out one of them", here)
        if is_typed and name in ("response_format", "text"):
            raise FieldError("a typed output sets it", "leave it out", here)
        if name == "n":
            raise FieldError("it determines the columns", "write it below params", here)
