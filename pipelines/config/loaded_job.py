"""A job file loaded once: its `Job`, its workspace, and the file and line of every key."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from connectors.contracts import SinkModel, SourceModel
from connectors.errors import JobError, KeyPath, did_you_mean
from connectors.registry import ENDPOINTS, SINKS, SOURCES
from pipelines.config.job import Job, job_rules
from pipelines.config.key_locations import KeyLocations
from pipelines.config.overrides import NONE, Overrides, answer_flags, applied
from pipelines.config.validation_messages import Mistake, coerced, mistakes_of, shown
from pipelines.config.workspace import Workspace, find_workspace
from pipelines.config.yaml_reader import YamlFile, read_yaml


@dataclass(frozen=True, slots=True)
class JobFile:
    """A job file that was read but not validated."""

    path: Path
    shown_path: str
    """As the user gave it; messages begin with it."""
    content: YamlFile = field(repr=False)

    @property
    def name(self) -> str | None:
        """The name that the file gives the job; None if there is none."""
        name = self.content.values.get("name")
        return name if isinstance(name, str) else None

    def load(self, workspace: Workspace, overrides: Overrides = NONE) -> "LoadedJob":
        """Validate the values with the flags applied; JobError names the first error."""
        if not self.content.values:
            raise JobError(self.shown_path, "is empty", "`rowmill init DIR` writes a job to start from")
        flagged = applied(self.content.values, overrides, SINKS)
        locations = KeyLocations(self.shown_path, self.content.lines, flagged.raw, flagged.flags)
        job, mistakes = _checked(flagged.raw)
        if job is None:
            # A misspelt key is also a missing one: report the misspelling first.
            first = min(mistakes, key=lambda mistake: (mistake.missing, locations.line(mistake.path)))
            raise JobError(locations.locate(first.path), f"{first.what}")
        written = job if overrides == NONE else _checked(self.content.values)[0]
        flags = answer_flags(overrides)
        changed = flags if flags and (written is None or _asked(written) != _asked(job)) else ()
        return LoadedJob(job, workspace, self, locations, overrides, written, changed)


@dataclass(frozen=True, slots=True)
class LoadedJob:
    """A job as its file and the command line describe it, with its workspace and the location of every key."""

    job: Job
    workspace: Workspace
    file: JobFile = field(repr=False)
    locations: KeyLocations = field(repr=False)
    overrides: Overrides = NONE
    written: Job | None = None
    """The job without the flags; None if the file alone is not valid."""
    changed_by: tuple[str, ...] = ()
    """The flags that change answers: the sink of the job as written must not get those answers."""

    @property
    def path(self) -> Path:
        """As the user gave it."""
        return self.file.path

    def at(self, *path: str | int) -> str:
        """Return the WHERE of a message: ("steps", "label", "model") -> `jobs/x.yaml:14: steps.label.model`.

        Steps go by name or by index from 0.
        """
        names = [step.name for step in self.job.steps]
        named = len(path) > 1 and path[0] == "steps" and path[1] in names
        return self.locations.locate(("steps", names.index(str(path[1])), *path[2:]) if named else path)

    def with_overrides(self, overrides: Overrides) -> "LoadedJob":
        """Return the job of the same file with other flags; JobError if they do not fit. The file is not read again."""
        return self.file.load(self.workspace, overrides)


def read_job_file(path: Path | str) -> JobFile:
    """Read a job file without validating it; JobError if it is not YAML."""
    return JobFile(Path(path), str(path), read_yaml(Path(path), str(path)))


def load_job(path: Path | str, overrides: Overrides = NONE) -> LoadedJob:
    """Load the job that the file and the flags describe, and its workspace; JobError names the first error."""
    workspace = find_workspace(path)
    return read_job_file(path).load(workspace, overrides)


def job_name(path: Path) -> str | None:
    """Return the `name` in a job file that may be invalid; None if it cannot be read."""
    try:
        return read_job_file(path).name
    except JobError:
        return None


def _checked(raw: dict[str, Any]) -> tuple[Job | None, list[Mistake]]:
    """The job, or what is wrong."""
    kinds = list(_kind_mistakes(raw))
    try:
        job = Job.model_validate(raw)
    except ValidationError as exc:
        found = list(mistakes_of(exc, raw, job_rules, _untagged))
        # A source of no known kind is told better by what was written than by what pydantic looked for.
        told = {mistake.path[: 2 if mistake.path[0] == "steps" else 1] for mistake in kinds}
        return None, kinds + [mistake for mistake in found if told.isdisjoint((mistake.path[:1], mistake.path[:2]))]
    mistakes = [*kinds, *coerced(raw, job)]
    return (None if mistakes else job), mistakes


def _asked(job: Job) -> dict[str, Any]:
    """What makes the answers and whose they are; how many rows are asked does not."""
    return job.model_dump(include={"name", "source", "steps"}, exclude={"source": {"limit"}})


def _untagged(loc: Sequence[str | int]) -> KeyPath:
    """A pydantic location without the kind of source, sink or step that it was checked as."""
    cut = 2 if loc[:1] == ("steps",) else 1 if loc[:1] in (("source",), ("sink",)) else len(loc)
    return (*loc[:cut], *loc[cut + 1 :])


def _kind_mistakes(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    """Sources, sinks and steps of which it is not clear what they are."""
    for part, kinds in (("source", tuple(SOURCES)), ("sink", tuple(SINKS))):
        value = raw.get(part)
        if isinstance(value, Mapping):
            named = [kind for kind in value if kind in kinds]
            if len(named) > 1:
                yield Mistake((part, named[1]), f"a second kind of {part} beside {named[0]}; keep one of them")
            elif not named:
                yield _nameless(part, value, kinds)
        elif part in raw:
            example = f"{part}: {{{kinds[0]}: PATH}}"
            yield Mistake((part,), f"found {shown(value)}, expected keys and values; write e.g. {example}")
    steps = raw.get("steps")
    if "steps" in raw and (not isinstance(steps, list) or not steps):
        what = f"found {shown(steps)}, expected a list of steps; write a dash before the first key of each"
        yield Mistake(("steps",), what)
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        if not isinstance(step, Mapping):
            what = f"found {shown(step)}, expected keys and values; write name:, endpoint: and the others below a dash"
            yield Mistake(("steps", index), what)
        elif "endpoint" not in step:
            yield Mistake(("steps", index, "endpoint"), f"missing; write one of {', '.join(ENDPOINTS)}")
        elif not isinstance(step["endpoint"], str) or step["endpoint"] not in ENDPOINTS:
            found = f"found {shown(step['endpoint'])}, no endpoint"
            yield Mistake(("steps", index, "endpoint"), f"{found}; {did_you_mean(str(step['endpoint']), ENDPOINTS)}")


def _nameless(part: str, value: Mapping[str, Any], kinds: tuple[str, ...]) -> Mistake:
    """A source or sink without any of the keys that name a kind: perhaps one is misspelt."""
    shared = (SourceModel if part == "source" else SinkModel).model_fields
    for key in value:
        if key not in shared and (near := did_you_mean(key, kinds)).startswith("did"):
            return Mistake((part, key), f"no such key; {near}")
    return Mistake((part,), f"says no kind; write exactly one of {', '.join(kinds)}")
