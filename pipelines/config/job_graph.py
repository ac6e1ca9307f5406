"""Jobs that read other jobs' results: where those are, and the order in which all of them can run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from connectors.contracts import Sink, TableShape
from connectors.errors import JobError
from connectors.tables.schemas import errors_schema, results_schema
from pipelines.config.loaded_job import LoadedJob, load_job, read_job_file
from pipelines.config.overrides import NONE, Overrides
from pipelines.config.workspace import FILE_NAME

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class GraphJob:
    """One of several job files, and the jobs whose results it reads."""

    path: Path
    name: str
    """The path if the job is invalid."""
    needs: tuple[str, ...] = ()
    loaded: LoadedJob | None = field(default=None, repr=False)
    error: JobError | None = None
    """Why the job could not be loaded."""

    def require(self) -> LoadedJob:
        """Return the loaded job; raise the error if it is invalid."""
        if self.loaded is None:
            assert self.error is not None
            raise self.error
        return self.loaded


def job_files_in(folder: Path) -> list[Path]:
    """The job files of a folder, sorted: every .yaml and .yml but the workspace's own."""
    try:
        return sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES and f.name != FILE_NAME and f.is_file())
    except OSError:
        return []


def load_jobs(paths: Iterable[Path], overrides: Overrides = NONE) -> list[GraphJob]:
    """Load each job file; an invalid one carries its error."""
    jobs: list[GraphJob] = []
    for path in paths:
        try:
            loaded = load_job(path, overrides)
        except JobError as exc:
            jobs.append(GraphJob(path, str(path), error=exc))
        else:
            needs = () if loaded.job.reads_job is None else (loaded.job.reads_job,)
            jobs.append(GraphJob(path, loaded.job.name, needs, loaded))
    return jobs


def graph_of(jobs: Iterable[GraphJob]) -> list[GraphJob]:
    """Sort the jobs so that each follows those that it reads; JobError for a cycle, a shared name or a shared sink.

    An invalid job has no edges: its error is reported when it is run.
    """
    by_name: dict[str, GraphJob] = {}
    sinks: dict[str, Path] = {}
    for job in jobs:
        if job.loaded is not None:
            if job.name in by_name:
                raise JobError(
                    job.path, f"name: {job.name} is the name of {by_name[job.name].path} too", "give each its own name"
                )
            # Two jobs that write to one table would each take the other's rows for their own.
            sink = job.loaded.job.sink
            location = sink.location(job.loaded.workspace.folder)
            if location in sinks:
                raise JobError(
                    job.path,
                    f"sink: {sink.identity} is the sink of {sinks[location]} too",
                    "give each job a sink of its own",
                )
            sinks[location] = job.path
        by_name[job.name] = job
    return _sorted(
        {job.name: replace(job, needs=tuple(name for name in job.needs if name in by_name)) for job in by_name.values()}
    )


def sinks_of_jobs(loaded: LoadedJob) -> Mapping[str, Sink | None]:
    """Return the other jobs next to this one, in the workspace folder and in its folder `jobs`: name -> the sink of
    the job that this one reads, None for the others."""
    found: dict[str, Sink | None] = {}
    workspace, own = loaded.workspace, loaded.path.resolve()
    folders = (loaded.path.absolute().parent, workspace.folder, workspace.folder / "jobs")
    for folder in {folder.resolve(): folder for folder in folders}.values():
        for path in job_files_in(folder):
            if path.resolve() == own:
                continue
            try:
                file = read_job_file(path)
            except JobError:
                continue
            name = file.name
            if name is None or name in found or name == loaded.job.name:
                continue
            # A message needs only the names of the other jobs, so the rest of their files is not validated.
            found[name] = empty_sink(file.load(workspace)) if name == loaded.job.reads_job else None
    return found


def empty_sink(loaded: LoadedJob) -> Sink:
    """Return the job's sink without the columns of its tables, for reading what is there."""
    job = loaded.job
    shape = TableShape((), results_schema((), (), ()), errors_schema(()), job.sink.write)
    return job.sink.open(shape, loaded.workspace.folder, job.retry.longest_hold)


def drawn(jobs: Sequence[GraphJob]) -> str:
    """The graph for people: each job below the one that it reads."""
    below: dict[str | None, list[str]] = {}
    for job in jobs:
        below.setdefault(job.needs[0] if job.needs else None, []).append(job.name)
    lines: list[str] = []

    def draw(name: str, indent: str, last: bool, top: bool) -> None:
        lines.append(name if top else f"{indent}{'└─ ' if last else '├─ '}{name}")
        inner = below.get(name, [])
        for place, other in enumerate(inner):
            draw(other, indent if top else indent + ("   " if last else "│  "), place == len(inner) - 1, False)

    for name in below.get(None, []):
        draw(name, "", True, True)
    return "\n".join(lines)


def _sorted(jobs: Mapping[str, GraphJob]) -> list[GraphJob]:
    found: list[GraphJob] = []
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circle = " -> ".join((*trail[trail.index(name) :], name))
            raise JobError(jobs[name].path, f"source.job: jobs read each other in a circle: {circle}", "break it")
        if name not in done:
            for needed in jobs[name].needs:
                visit(needed, (*trail, name))
            done.add(name)
            found.append(jobs[name])

    for name in jobs:
        visit(name, ())
    return found
