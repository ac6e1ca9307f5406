"""Jobs that read other jobs' results: where those are, and the order in which all of them can run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from connectors.contracts import Sink, TableShape
from connectors.errors import JobError
from connectors.tables.schemas import errors_schema, results_schema
from pipelines.config.job import LoadedJob, load_job
from pipelines.config.overrides import NONE, Overrides
from pipelines.config.workspace import FILE_NAME, Workspace, find_workspace
from pipelines.config.yaml_reader import read_yaml

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class GraphJob:
    """One of several jobs to be run, and those among them whose results it reads."""

    path: Path
    name: str
    needs: tuple[str, ...]


def job_files_in(folder: Path) -> list[Path]:
    """The job files of a folder, sorted: every .yaml and .yml but the workspace's own."""
    try:
        return sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES and f.name != FILE_NAME and f.is_file())
    except OSError:
        return []


def graph_of(paths: Iterable[Path], overrides: Overrides = NONE) -> list[GraphJob]:
    """The jobs, each behind those that it needs; JobError for a circle, and for a name or a sink that two share.

    A file that is no job file stands for itself: what is wrong with it is told when it is run.
    """
    jobs: dict[str, GraphJob] = {}
    sinks: dict[str, Path] = {}
    for path in paths:
        try:
            job = load_job(path, overrides).job
        except JobError:
            jobs[str(path)] = GraphJob(path, str(path), ())
            continue
        if job.name in jobs:
            raise JobError(f"{path}: name: {job.name} is the name of {jobs[job.name].path} too; give each its own name")
        # Two that wrote into one table would each take the other's rows for its own.
        sink = job.sink.place(_workspace_folder(path))
        if sink in sinks:
            raise JobError(
                f"{path}: sink: {job.sink.identity} is the sink of {sinks[sink]} too; give each job a sink of its own"
            )
        sinks[sink] = path
        jobs[job.name] = GraphJob(path, job.name, () if job.reads_job is None else (job.reads_job,))
    return _sorted({name: _among(job, jobs) for name, job in jobs.items()})


def sinks_of_jobs(loaded: LoadedJob, workspace: Workspace) -> Mapping[str, Sink | None]:
    """The jobs beside this one, in the workspace's folder and in its folder `jobs`: name -> sink of the one that this
    one reads, None for the others."""
    found: dict[str, Sink | None] = {}
    for folder in dict.fromkeys((loaded.path.absolute().parent, workspace.folder, workspace.folder / "jobs")):
        for path in job_files_in(folder):
            name = _named(path)
            if name is None or name in found or name == loaded.job.name:
                continue
            if name != loaded.job.reads_job:
                # Its name is all that a message can need, and the rest of its file may be wrong.
                found[name] = None
                continue
            job = load_job(path).job
            nothing = TableShape((), results_schema((), (), ()), errors_schema(()), job.sink.write)
            found[name] = job.sink.open(nothing, workspace.folder, job.retry.longest_hold)
    return found


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


def _workspace_folder(path: Path) -> Path:
    try:
        return find_workspace(path).folder
    except JobError:
        return path.absolute().parent


def _named(path: Path) -> str | None:
    try:
        name = read_yaml(path, str(path)).values.get("name")
    except JobError:
        return None
    return name if isinstance(name, str) else None


def _among(job: GraphJob, jobs: Mapping[str, GraphJob]) -> GraphJob:
    return GraphJob(job.path, job.name, tuple(name for name in job.needs if name in jobs))


def _sorted(jobs: Mapping[str, GraphJob]) -> list[GraphJob]:
    found: list[GraphJob] = []
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circle = " -> ".join((*trail[trail.index(name) :], name))
            raise JobError(f"{jobs[name].path}: source.job: jobs read each other in a circle: {circle}; break it")
        if name not in done:
            for needed in jobs[name].needs:
                visit(needed, (*trail, name))
            done.add(name)
            found.append(jobs[name])

    for name in jobs:
        visit(name, ())
    return found
