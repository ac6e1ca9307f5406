"""A job file loaded once: its `Job`, its workspace, and the file and line of every key."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace
from pydantic import BaseModel, ValidationError

from connectors.contracts import SinkModel, SourceModel
from connectors.errors import JobError, KeyPath, closest, did_you_mean
from connectors.registry import ENDPOINTS, SINKS, SOURCES
from pipelines.config.included_files.inclusion import include_files
from pipelines.config.included_files.workspace_files import WorkspaceFiles
from pipelines.config.job import Job, pydantic_schema
from pipelines.config.job_suggestions import suggest_job_file
from pipelines.config.key_locations import KeyLocations
from pipelines.config.overrides import NONE, SENDING_KEYS, Overrides, answer_flags, apply_overrides
from pipelines.config.steps.local_steps import LOCAL_STEPS
from pipelines.config.validation_messages import (
    ConfigError,
    first_error,
    format_value,
    silent_coercions,
    validation_errors,
)
from pipelines.config.workspace import Workspace, find_workspace
from pipelines.config.workspace_file import FILE_NAME
from pipelines.config.yaml_reader import YamlFile, read_yaml

STATE_TABLES = "tables"
"""Folder in the state folder for the tables of jobs without a sink."""

_ORIGINS: Mapping[KeyPath, KeyPath] = {("source", "key"): ("key",), ("source",): ("rows",)}
"""Where the source of rows passed from Python comes from."""


AnyJob = TypeVar("AnyJob", bound=Job)


class JobFile(Struct, frozen=True):
    """A job file that was read but not validated."""

    path: Path
    shown_path: str
    """As the user gave it; messages begin with it."""
    content: YamlFile
    rows: Path | None = None
    """A Parquet file of rows passed from Python, in place of `source`."""
    files: WorkspaceFiles = field(default_factory=WorkspaceFiles)
    """The files that it includes, as far as they were read."""

    @property
    def name(self) -> str | None:
        """The name that the file gives the job; None if there is none."""
        name = self.content.values.get("name")
        return name if isinstance(name, str) else None

    def load(self, workspace: Workspace, overrides: Overrides = NONE) -> "LoadedJob":
        """Validate the values with the flags applied; JobError names the first error."""
        if not self.content.values:
            raise JobError(self.shown_path, "is empty", "`rowmill init DIR` writes a job to start from")
        values = self.content.values if self.rows is None else self._values_with_rows(self.rows, workspace)
        job, locations = self._validated(values, workspace, overrides)
        written = job if overrides == NONE else self._job_as_written(values, workspace)
        flags = answer_flags(overrides)
        changed = flags if flags and (written is None or _answer_facts(written) != _answer_facts(job)) else ()
        return LoadedJob(job, workspace, self, locations, overrides, written, changed)

    def _validated(
        self, values: Mapping[str, Any], workspace: Workspace, overrides: Overrides
    ) -> tuple[Job, KeyLocations]:
        """Return the job of the values, flags applied and files included, and the location of every key."""
        overridden = apply_overrides(values, overrides, SINKS)
        origins = {} if self.rows is None else _ORIGINS
        keys = KeyLocations(self.shown_path, self.content.lines, overridden.values, overridden.flags, origins)
        complete, included = include_files(keys, workspace.folder, self.files)
        locations = replace(keys, values=complete, included=included)
        job, errors = _validated(complete, Job)
        if job is None:
            raise first_error(errors, locations)
        return job, locations

    def _job_as_written(self, values: Mapping[str, Any], workspace: Workspace) -> Job | None:
        try:
            return self._validated(values, workspace, NONE)[0]
        except JobError:
            return None

    def _values_with_rows(self, rows: Path, workspace: Workspace) -> dict[str, Any]:
        """Return the values with the rows as their source; without a sink, the tables are in the state folder."""
        values = dict(self.content.values)
        if "source" in values:
            where = KeyLocations(self.shown_path, self.content.lines, values).locate(("source",))
            raise JobError(where, "rows take its place", "leave it out (with `key:` at the top level), or pass no rows")
        key = {"key": values.pop("key")} if "key" in values else {}
        values["source"] = {"parquet": str(rows), "hive": False, **key}
        values.setdefault("sink", {"parquet": f"{workspace.settings.state}/{STATE_TABLES}/{self.name}"})
        return values


class LoadedJob(Struct, frozen=True):
    """A job as its file and the command line describe it, with its workspace and the location of every key."""

    job: Job
    workspace: Workspace
    file: JobFile
    locations: KeyLocations
    overrides: Overrides = NONE
    written: Job | None = None
    """The job without the flags; None if the file alone is not valid."""
    changed_by: tuple[str, ...] = ()
    """The flags that change answers: the sink of the job as written must not get those answers."""
    compared_packs: frozenset[str] = frozenset()
    """The steps whose answers are kept apart by their `pack`, because an experiment compares its values."""

    @property
    def path(self) -> Path:
        """As the user gave it."""
        return self.file.path

    def locate(self, *path: str | int, text_line: int | None = None) -> str:
        """Return the WHERE of a message: ("steps", "label", "model") -> `jobs/x.yaml:14: steps.label.model`.

        Steps go by name or by index from 0. `text_line`: the line within the text at the path.
        """
        names = [step.name for step in self.job.steps]
        named = len(path) > 1 and path[0] == "steps" and path[1] in names
        indexed = ("steps", names.index(str(path[1])), *path[2:]) if named else path
        return self.locations.locate(indexed, text_line)

    def with_overrides(self, overrides: Overrides) -> "LoadedJob":
        """Return the job of the same file with other flags; JobError if they do not fit. The file is not read again."""
        return replace(self.file.load(self.workspace, overrides), compared_packs=self.compared_packs)


def read_job_file(path: Path | str) -> JobFile:
    """Read a job file without validating it; JobError if it is not YAML."""
    file = Path(path)
    if file.name == FILE_NAME and file.is_file():
        raise JobError(
            str(path),
            "is the workspace's file, not a job",
            "name a job file: the workspace's file is checked with each job",
        )
    try:
        return JobFile(file, str(path), read_yaml(file, str(path)))
    except JobError as exc:
        if not isinstance(exc.__cause__, FileNotFoundError):
            raise
        raise JobError(str(path), exc.found, suggest_job_file(file)) from exc


def load_job(path: Path | str, overrides: Overrides = NONE) -> LoadedJob:
    """Load the job that the file and the flags describe, and its workspace; JobError names the first error."""
    workspace = find_workspace(path)
    return read_job_file(path).load(workspace, overrides)


def read_job_name(path: Path) -> str | None:
    """Return the `name` in a job file that may be invalid; None if it cannot be read."""
    try:
        return read_job_file(path).name
    except JobError:
        return None


def checked_job(model: type[AnyJob], values: dict[str, Any]) -> AnyJob:
    """Validate the keys of a job that is in no file; JobError names the first error."""
    job, errors = _validated(values, model)
    if job is None:
        raise first_error(errors, KeyLocations("", {}, values))
    return job


def _validated(values: dict[str, Any], model: type[AnyJob]) -> tuple[AnyJob | None, list[ConfigError]]:
    """Return the job, or None and its errors."""
    kind_errors = list(_kind_errors(values))
    try:
        # Not `model_validate`, which may raise JobError.
        job: AnyJob = model.__pydantic_validator__.validate_python(values)
    except ValidationError as exc:
        errors = validation_errors(exc, values, pydantic_schema, _without_kind)
        # For a source of no known kind, what was written helps more than what pydantic looked for.
        reported = {error.path[: 2 if error.path[0] == "steps" else 1] for error in kind_errors}
        return None, kind_errors + [error for error in errors if reported.isdisjoint((error.path[:1], error.path[:2]))]
    all_errors = [*kind_errors, *silent_coercions(values, job)]
    return (None if all_errors else job), all_errors


def _answer_facts(job: Job) -> dict[str, Any]:
    """Return what determines the answers and whose they are; how many rows are requested does not."""
    excluded: dict[str, Any] = {"source": {"limit"}, "steps": {"__all__": SENDING_KEYS}}
    return job.model_dump(include={"name", "source", "steps"}, exclude=excluded)


def _without_kind(location: Sequence[str | int]) -> KeyPath:
    """Return a pydantic location without the kind of source, sink or step that it was validated as."""
    cut = 2 if location[:1] == ("steps",) else 1 if location[:1] in (("source",), ("sink",)) else len(location)
    return (*location[:cut], *location[cut + 1 :])


def _kind_errors(values: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield the sources, sinks and steps whose kind is unclear."""
    for part, kinds in (("source", tuple(SOURCES)), ("sink", tuple(SINKS))):
        value = values.get(part)
        if isinstance(value, Mapping):
            given = [kind for kind in value if kind in kinds]
            if len(given) > 1:
                found = f"a second kind of {part} next to {given[0]}"
                yield ConfigError((part, given[1]), found, "keep one of them")
            elif not given:
                yield _error_without_kind(part, value, kinds)
        elif part in values:
            found = f"found {format_value(value)}, expected keys and values"
            yield ConfigError((part,), found, f"write e.g. {part}: {{{kinds[0]}: PATH}}")
    steps = values.get("steps")
    if "steps" in values and (not isinstance(steps, list) or not steps):
        found = f"found {format_value(steps)}, expected a list of steps"
        yield ConfigError(("steps",), found, "write a dash before the first key of each")
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        if not isinstance(step, Mapping):
            found = f"found {format_value(step)}, expected keys and values"
            yield ConfigError(("steps", index), found, "write name:, endpoint: and the others below a dash")
            continue
        path, endpoint = ("steps", index, "endpoint"), step.get("endpoint")
        given = [kind for kind in step if kind in ("endpoint", *LOCAL_STEPS)]
        if len(given) > 1:
            found = f"a second kind of step next to {given[0]}"
            yield ConfigError(("steps", index, given[1]), found, "keep one of them, or write two steps")
        elif not given and (misspelt := _misspelt_kind(step)) is not None:
            yield ConfigError(("steps", index, misspelt[0]), "no such key", f"did you mean {misspelt[1]}?")
        elif not given:
            local = " or ".join(f"{kind}:" for kind in LOCAL_STEPS)
            remedy = f"write one of {', '.join(ENDPOINTS)}; a step without a request has {local} in its place"
            yield ConfigError(path, "missing", remedy)
        elif given[0] in LOCAL_STEPS:
            continue
        elif not isinstance(endpoint, str) or endpoint not in ENDPOINTS:
            found = f"found {format_value(endpoint)}, which is not an endpoint"
            yield ConfigError(path, found, did_you_mean(str(endpoint), ENDPOINTS))


def _misspelt_kind(step: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the key of a step that is meant to name its kind, and the name that it should have."""
    kinds = (*ENDPOINTS.values(), *LOCAL_STEPS.values())
    known = {name for kind in kinds if issubclass(kind, BaseModel) for name in kind.model_fields}
    pairs = ((key, closest(key, ("endpoint", *LOCAL_STEPS))) for key in map(str, step) if key not in known)
    return next(((key, kind) for key, kind in pairs if kind is not None), None)


def _error_without_kind(part: str, value: Mapping[str, Any], kinds: tuple[str, ...]) -> ConfigError:
    """Return the error of a source or sink without a key that names a kind; perhaps one is misspelt."""
    shared = (SourceModel if part == "source" else SinkModel).model_fields
    for key in value:
        if key not in shared and (kind := closest(key, kinds)):
            return ConfigError((part, key), "no such key", f"did you mean {kind}?")
    return ConfigError((part,), "has no kind", f"write exactly one of {', '.join(kinds)}")
