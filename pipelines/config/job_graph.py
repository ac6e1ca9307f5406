"""Jobs that read other jobs' results: their sinks, and the order in which they can run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from connectors.contracts import Sink, TableShape
from connectors.errors import JobError, KeyPath, dotted
from connectors.tables.schemas import errors_schema, results_schema
from pipelines.config.job_suggestions import list_job_files
from pipelines.config.loaded_job import JobFile, LoadedJob, load_job, read_job_file
from pipelines.config.overrides import NONE, Overrides
from pipelines.config.workspace import Workspace


class GraphJob(Struct, frozen=True):
    """One of several job files, and the jobs whose results it reads."""

    path: Path
    name: str
    """The path if the job is invalid."""
    needs: tuple[str, ...] = ()
    loaded: LoadedJob | None = None
    error: JobError | None = None
    """Why the job could not be loaded."""

    def require(self) -> LoadedJob:
        """Return the loaded job; raise the error if it is invalid."""
        if self.loaded is None:
            assert self.error is not None
            raise self.error
        return self.loaded


def load_jobs(
    paths: Iterable[Path],
    overrides: Overrides = NONE,
    load: Callable[[Path, Overrides], LoadedJob] = load_job,
) -> list[GraphJob]:
    """Load each job file; an invalid one carries its error."""
    jobs: list[GraphJob] = []
    for path in paths:
        try:
            loaded = load(path, overrides)
        except JobError as exc:
            jobs.append(GraphJob(path, str(path), error=exc))
        else:
            jobs.append(GraphJob(path, loaded.job.name, tuple(loaded.job.needed_jobs), loaded))
    return jobs


def awaits_results(job: GraphJob, others: Iterable[GraphJob]) -> bool:
    """Return whether a job reads one of the others, which the same command would run before it."""
    return not {other.name for other in others}.isdisjoint(job.needs)


def sort_jobs(jobs: Iterable[GraphJob]) -> list[GraphJob]:
    """Sort the jobs so that each follows those that it reads; JobError for a cycle, a shared name or a shared sink.

    An invalid job has no edges: its error is reported when it is run.
    """
    by_name: dict[str, GraphJob] = {}
    sinks: dict[str, Path] = {}
    for job in jobs:
        if job.loaded is not None:
            if job.name in by_name:
                found = f"{job.name} is the name of {by_name[job.name].path} too"
                raise JobError(f"{job.path}: name", found, "give each its own name")
            # Two jobs that write to one table would each take the other's rows for their own.
            sink = job.loaded.job.sink
            location = sink.location(job.loaded.workspace.folder)
            if location in sinks:
                found = f"{sink.identity} is the sink of {sinks[location]} too"
                raise JobError(f"{job.path}: sink", found, "give each job a separate sink")
            sinks[location] = job.path
        by_name[job.name] = job
    return _in_order(
        {job.name: replace(job, needs=tuple(name for name in job.needs if name in by_name)) for job in by_name.values()}
    )


def sinks_by_job(loaded: LoadedJob) -> Mapping[str, Sink | None]:
    """Return the other jobs next to this one, in the workspace folder and in its folder `jobs`: name -> the sink of a
    job that this one reads, None for the others. JobError if one of those reads this one, perhaps by further jobs."""
    files: dict[str, JobFile] = {}
    workspace, own = loaded.workspace, loaded.path.resolve()
    folders: dict[Path, Path] = {}
    for folder in (loaded.path.absolute().parent, workspace.folder, workspace.folder / "jobs"):
        folders.setdefault(folder.resolve(), folder)
    for path in (path for folder in folders.values() for path in list_job_files(folder)):
        if path.resolve() == own:
            continue
        try:
            file = read_job_file(path)
        except JobError:
            continue
        if file.name is not None and file.name != loaded.job.name:
            files.setdefault(file.name, file)
    # A message needs only the names of the other jobs, so the rest of their files is not validated.
    sinks: dict[str, Sink | None] = dict.fromkeys(files)
    for name, where in loaded.job.needed_jobs.items():
        if name in files:
            sinks[name] = empty_sink(files[name].load(workspace))
        _check_circle(loaded.job.name, name, where, files, workspace)
    return sinks


def _check_circle(own: str, first: str, where: KeyPath, files: Mapping[str, JobFile], workspace: Workspace) -> None:
    """Raise JobError if the job `first`, or one that it needs, reads the results of `own`."""
    trails: list[tuple[str, ...]] = [(own, first)]
    seen = {first}
    while trails:
        trail = trails.pop()
        if trail[-1] == own:
            raise _circle(where, trail)
        file = files.get(trail[-1])
        try:
            needed = () if file is None else tuple(file.load(workspace).job.needed_jobs)
        except JobError:
            # It is reported when that job, or the one that reads it, is run.
            continue
        trails += [(*trail, name) for name in needed if name not in seen]
        seen.update(set(needed) - {own})


def _circle(where: str | KeyPath, trail: Sequence[str]) -> JobError:
    return JobError(where, f"jobs read each other in a cycle: {' -> '.join(trail)}", "break it")


def empty_sink(loaded: LoadedJob, longest_hold: float | None = None) -> Sink:
    """Return the job's sink without the columns of its tables, for reading what is there.

    `longest_hold`: seconds to wait for another process that holds its file; None: as the job's runs do.
    """
    job = loaded.job
    shape = TableShape((), results_schema((), (), ()), errors_schema(()), job.sink.write)
    hold = job.retry.longest_hold if longest_hold is None else longest_hold
    return job.sink.open(shape, loaded.workspace.folder, hold)


def render_graph(jobs: Sequence[GraphJob]) -> str:
    """Return the graph as text: each job below the first that it reads; further ones are named."""
    readers: dict[str | None, list[str]] = {}
    for job in jobs:
        readers.setdefault(job.needs[0] if job.needs else None, []).append(job.name)
    others = {job.name: job.needs[1:] for job in jobs}
    lines: list[str] = []

    def render(names: Sequence[str], indent: str) -> None:
        for index, name in enumerate(names):
            is_last = index == len(names) - 1
            further = f" (reads {', '.join(others[name])} too)" if others[name] else ""
            lines.append(f"{indent}{'└─ ' if is_last else '├─ '}{name}{further}")
            render(readers.get(name, ()), indent + ("   " if is_last else "│  "))

    for root in readers.get(None, ()):
        lines.append(root)
        render(readers.get(root, ()), "")
    return "\n".join(lines)


def _in_order(jobs: Mapping[str, GraphJob]) -> list[GraphJob]:
    ordered: dict[str, GraphJob] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            cycle = (*trail[trail.index(name) :], name)
            key = jobs[name].require().job.needed_jobs[cycle[1]]
            raise _circle(f"{jobs[name].path}: {dotted(key)}", cycle)
        if name not in ordered:
            for needed in jobs[name].needs:
                visit(needed, (*trail, name))
            ordered[name] = jobs[name]

    for name in jobs:
        visit(name, ())
    return list(ordered.values())
