"""The limits and the budget of a run in progress, and how `set` changes them."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ValidationError

from connectors.errors import JobError, closest
from pipelines.config.job import Budget, Job, JobLimits
from pipelines.config.strict_model import StrictModel
from pipelines.config.validation_messages import SYNONYMS, silent_coercions, validation_errors

SETTABLE = ("limits.requests_per_minute", "limits.tokens_per_minute", "limits.concurrency", "budget.usd")
"""Keys of the job file that may be set while the job runs."""


class RunSettings(StrictModel):
    """What is in force: of the job file, its flags, or `set`. The models are those of the job file."""

    limits: JobLimits = Field(default=JobLimits())
    budget: Budget | None = None

    @classmethod
    def of_job(cls, job: Job) -> Self:
        """Return the settings with which the job begins."""
        return cls(limits=job.limits, budget=job.budget)

    def changed(self, values: Mapping[str, Any]) -> Self:
        """Return the settings with all of these values; JobError names the first that cannot be set."""
        if not values:
            raise JobError("set", "nothing to set", f"write e.g. set {SETTABLE[2]}=50")
        sections: dict[str, Any] = self.model_dump(exclude_none=True)
        for key, value in values.items():
            if key not in SETTABLE:
                raise JobError(f"set {key}", "cannot be set while the job runs", _remedy(key))
            section, _, name = key.partition(".")
            sections.setdefault(section, {})[name] = value
        try:
            settings = type(self).model_validate(sections)
        except ValidationError as exc:
            errors = list(validation_errors(exc, sections, self.model_json_schema))
        else:
            errors = list(silent_coercions(sections, settings))
            if not errors:
                return settings
        first = errors[0]
        raise JobError(f"set {'.'.join(map(str, first.path))}", first.found, first.remedy)


def _remedy(key: str) -> str:
    section, _, name = key.rpartition(".")
    name = SYNONYMS.get(name, name)
    same_name = [one for one in SETTABLE if one.endswith(f".{name}") and section in ("", one.partition(".")[0])]
    near = same_name[0] if same_name else closest(key, SETTABLE)
    suggestion = f"did you mean {near}? " if near else ""
    return f"{suggestion}settable are {', '.join(SETTABLE)}"
