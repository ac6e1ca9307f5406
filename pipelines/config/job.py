"""The models of a job file: one frozen, validated `Job`."""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from connectors.contracts import FrozenModel, StepModel
from connectors.registry import ENDPOINTS, SINKS, SOURCES, SinkConfig, SourceConfig, StepConfig
from pipelines.config.validation_messages import Misfit, shown

_NEVER_SENT = frozenset({"endpoint", "dialect", "structured", "split", "output"})
"""Keys of endpoints that are no parameters of the API."""


def check_step(step: StepModel) -> None:
    """Misfit, its path relative to the step, for what would be passed over or would spoil the request."""
    typed = isinstance(getattr(step, "output", None), dict)
    if getattr(step, "structured", "auto") != "auto" and not typed:
        raise Misfit(
            ("structured",),
            "says how a typed output is asked for, and there is none; write output: {name: {type: ...}}",
        )
    fields = type(step).model_fields.keys()
    own = (fields - StepModel.model_fields.keys() - _NEVER_SENT) | {"model", "stream"}
    for name in step.extra_body:
        if name in own:
            where = "at the step" if name in fields else "below params where the endpoint takes it"
            raise Misfit(("extra_body", name), f"Rowmill itself goes by it; write {name}: {where}")
        if name in step.params:
            raise Misfit(("extra_body", name), "stands in params as well; leave out one of both")
        if typed and name in ("response_format", "text"):
            raise Misfit(("extra_body", name), "a typed output brings its own; leave it out")
        if name == "n":
            raise Misfit(("extra_body", name), "the columns depend on it; write it below params")


GRACE_SECONDS = 30
"""After the first Ctrl-C or SIGTERM; a second leaves at once."""

_WEEK = 7 * 24 * 3600
_TIME = "^([01][0-9]|2[0-3]):[0-5][0-9]$"


class Section(FrozenModel):
    """A part of the job file that is no source, step or sink; a number in quotes is no number in it."""

    model_config = ConfigDict(strict=True)


class Limits(Section):
    """Limits of this job; the provider's own hold as well, whichever is lower."""

    requests_per_minute: int | None = Field(
        default=None, ge=1, le=10**9, description="Requests a minute.", examples=[3000]
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=10**12, description="Tokens a minute, both ways.", examples=[2_000_000]
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


class Budget(Section):
    """What a run may cost, over all its invocations; never exceeded by our count of tokens and prices."""

    usd: float = Field(ge=0, le=10**6, allow_inf_nan=False, description="US dollars.", examples=[5.0])


class Retry(Section):
    """How long a request is tried again."""

    attempts: int = Field(
        default=6, ge=1, le=100, description="Tries of one request, the first included; 429s use up none.", examples=[6]
    )
    longest_wait: float = Field(
        default=60,
        ge=0,
        le=_WEEK,
        allow_inf_nan=False,
        description="Seconds: the longest of one back-off.",
        examples=[60],
    )
    longest_hold: float = Field(
        default=900,
        ge=0,
        le=_WEEK,
        allow_inf_nan=False,
        description="Seconds: the longest Retry-After or open circuit that is waited for; beyond it the run stops.",
        examples=[900],
    )


class Timeouts(Section):
    """Deadlines of one request, in seconds."""

    connect: float = Field(
        default=10, gt=0, le=_WEEK, allow_inf_nan=False, description="Seconds until connected.", examples=[10]
    )
    idle: float = Field(
        default=60, gt=0, le=_WEEK, allow_inf_nan=False, description="Seconds without a byte.", examples=[60]
    )
    total: float = Field(
        default=600, gt=0, le=_WEEK, allow_inf_nan=False, description="Seconds for the whole reply.", examples=[600]
    )


class OnFinish(Section):
    """What is told the report when the run has ended; exactly one of both."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    command: str | None = Field(
        default=None, min_length=1, description="A command; gets the report as JSON on stdin.", examples=["notify.sh"]
    )
    webhook: str | None = Field(
        default=None,
        pattern=r"^https?://.+$",
        description="A URL; gets the report as JSON by POST.",
        examples=["https://example.org/hook"],
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.command is None) == (self.webhook is None):
            raise ValueError("takes exactly one of command and webhook; write e.g. on_finish: {command: notify.sh}")
        return self


class Drift(Section):
    """Bounds for what may differ between the rows of this run and those of the runs before; null: not looked at."""

    null_share: float | None = Field(
        default=0.1, ge=0, le=1, allow_inf_nan=False, description="Share of nulls, by so much.", examples=[0.1]
    )
    enum_share: float | None = Field(
        default=0.1, ge=0, le=1, allow_inf_nan=False, description="Share of a value of an enum.", examples=[0.1]
    )
    length: float | None = Field(
        default=0.3, ge=0, le=10**6, allow_inf_nan=False, description="Mean length, by this part.", examples=[0.3]
    )
    cost_per_row: float | None = Field(
        default=0.5, ge=0, le=10**6, allow_inf_nan=False, description="Cost a row, by this part.", examples=[0.5]
    )


class Audit(Section):
    """SQL over `results` after the run, or `drift`; more rows than `max`: exit 5."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["sql"]}, {"required": ["drift"]}]})

    name: str = Field(min_length=1, description="What the report calls it.", examples=["no empty topic"])
    sql: str | None = Field(
        default=None,
        min_length=1,
        description="A query over `results` (and `usage`, `errors`) that finds what should not be.",
        examples=["select * from results where topic is null"],
    )
    drift: Drift | None = Field(
        default=None,
        description="Instead of sql: the columns and measures that differ from the runs before.",
        examples=[{"null_share": 0.1}],
    )
    max: int = Field(default=0, ge=0, le=10**18, description="So many rows are still fine.", examples=[0])

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if self.sql is None and self.drift is None:
            raise Misfit(("sql",), "missing; write e.g. sql: select * from results where topic is null")
        if self.sql is not None and self.drift is not None:
            raise Misfit(("drift",), "goes not with sql; write two audits")
        return self


def _one_kind(kinds: Mapping[str, type[Any]]) -> Any:
    """The annotation of a source or sink: the key that names the kind decides."""

    def kind_of(value: Any) -> str | None:
        if isinstance(value, Mapping):
            return next((kind for kind in kinds if kind in value), None)
        return next((kind for kind, model in kinds.items() if isinstance(value, model)), None)

    models = tuple(Annotated[model, Tag(kind)] for kind, model in kinds.items())
    return Annotated[Union[models], Discriminator(kind_of)]  # noqa: UP007 - made of a tuple


if TYPE_CHECKING:
    AnySource = SourceConfig
    AnyStep = StepConfig
    AnySink = SinkConfig
else:
    AnySource = _one_kind(SOURCES)
    AnyStep = Annotated[Union[tuple(ENDPOINTS.values())], Field(discriminator="endpoint")]  # noqa: UP007
    AnySink = _one_kind(SINKS)


class Job(FrozenModel):
    """What a job file says."""

    name: str = Field(
        pattern=r"^[a-z0-9-]+$", description="Unique in the workspace: a-z, 0-9 and -.", examples=["ticket-enrichment"]
    )
    description: str = Field(default="", description="For people.")
    source: AnySource = Field(description=f"Where the rows come from: exactly one of {', '.join(SOURCES)}.")
    steps: tuple[AnyStep, ...] = Field(
        min_length=1, description="Each row goes through the steps in order; a later step sees earlier outputs."
    )
    sink: AnySink = Field(description=f"Where the tables go: exactly one of {', '.join(SINKS)}.")
    limits: Limits = Field(default=Limits(), description="Limits of this job.")
    budget: Budget | None = Field(default=None, description="What a run may cost.", examples=[{"usd": 5.0}])
    retry: Retry = Field(default=Retry(), description="How long a request is tried again.")
    timeouts: Timeouts = Field(default=Timeouts(), description="Deadlines of one request, in seconds.")
    delivery: Literal["online", "batch"] = Field(
        default="online", description="One by one, or by the provider's Batch API.", examples=["online"]
    )
    deadline: str | None = Field(
        default=None,
        description="With delivery: batch. HH:MM in the workspace's time zone.",
        examples=["06:00"],
        json_schema_extra={"pattern": _TIME},
    )
    schedule: str | None = Field(
        default=None, description="Cron: five fields, in the workspace's time zone.", examples=["0 2 * * *"]
    )
    on_finish: OnFinish | None = Field(
        default=None, description="Who gets the report.", examples=[{"command": "notify.sh"}]
    )
    audits: tuple[Audit, ...] = Field(default=(), description="SQL over `results`, after the run.")

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a row; empty where its content does."""
        key = self.source.key
        return (key,) if isinstance(key, str) else key or ()

    @property
    def reads_job(self) -> str | None:
        """The job whose results are the source; None for other sources."""
        name = getattr(self.source, "job", None)
        return name if isinstance(name, str) else None

    @property
    def limit(self) -> int | None:
        """Only the first so many rows are looked at; None: all."""
        return self.source.limit

    @field_validator("deadline")
    @classmethod
    def _is_time(cls, deadline: str | None) -> str | None:
        if deadline is not None and not re.fullmatch(_TIME[1:-1], deadline):
            raise ValueError(f'found {shown(deadline)}, no time of day; write e.g. deadline: "06:00"')
        return deadline

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, schedule: str | None) -> str | None:
        from cronsim import CronSim, CronSimError

        try:
            # CronSim takes six fields as well, the first for seconds; crontab does not.
            if schedule is not None and CronSim(schedule, datetime(2000, 1, 1)) and len(schedule.split()) != 5:
                raise CronSimError("Wrong number of fields")
        except CronSimError as exc:
            said = str(exc).lower()
            raise ValueError(f'found {shown(schedule)}, no cron: {said}; write e.g. schedule: "0 2 * * *"') from exc
        return schedule

    @model_validator(mode="after")
    def _keys_fit_each_other(self) -> Self:
        for path, twice in (("steps", self.steps), ("audits", self.audits)):
            names = [named.name for named in twice]
            for index, name in enumerate(names):
                if name in names[:index]:
                    raise Misfit((path, index, "name"), f"{shown(name)} is taken by one before; give each its own name")
        for index, step in enumerate(self.steps):
            assert isinstance(step, StepModel)
            try:
                check_step(step)
            except Misfit as exc:
                raise Misfit(("steps", index, *exc.path), str(exc)) from exc
        if len(set(self.sink.columns)) < len(self.sink.columns) and self.sink.columns != "all":
            raise Misfit(("sink", "columns"), "names a column twice; name each once")
        if len(set(self.key)) < len(self.key):
            raise Misfit(("source", "key"), "names a column twice; name each once")
        if self.sink.write == "append" and not self.key:
            raise Misfit(("sink", "write"), "append knows the rows that are there by their key; add key: to the source")
        if self.sink.deleted == "remove" and self.sink.write != "merge":
            raise Misfit(("sink", "deleted"), "remove goes with write: merge only; leave deleted out or write merge")
        if self.deadline is not None and self.delivery != "batch":
            raise Misfit(("deadline",), "goes with delivery: batch only; leave it out or add delivery: batch")
        return self


@cache
def job_rules() -> dict[str, Any]:
    """The JSON Schema as pydantic makes it."""
    return Job.model_json_schema()
