"""Suggestions of job files for a path without one: a misspelt name, a job's name, a folder above the jobs."""

import difflib
from pathlib import Path

from pipelines.config.workspace_file import FILE_NAME

SUFFIXES = frozenset({".yaml", ".yml"})
"""Of job files."""
JOBS_FOLDER = "jobs"
"""Where a workspace usually has them."""
NO_JOBS = "`rowmill init DIR` writes a job to start from"


def list_job_files(folder: Path) -> list[Path]:
    """Return the job files of a folder, sorted: every .yaml and .yml but the workspace's own."""
    try:
        return sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES and f.name != FILE_NAME and f.is_file())
    except OSError:
        return []


def nearby_jobs(folder: Path) -> list[Path]:
    """Return the job files of a folder and of the folder jobs/ in it."""
    return [*list_job_files(folder), *list_job_files(folder / JOBS_FOLDER)]


def suggest_job_file(path: Path) -> str:
    """Return a remedy for a path that leads to no file: a job file with a similar name, or how to begin."""
    folders = dict.fromkeys((path.parent, Path(), path.parent.parent, Path("..")))
    candidates = list(dict.fromkeys(job for folder in folders for job in nearby_jobs(folder)))
    by_stem = {job.stem: job for job in reversed(candidates)}
    if close := difflib.get_close_matches(path.stem, by_stem, n=1, cutoff=0.6):
        return f"did you mean {by_stem[close[0]]}?"
    return "check the path" if candidates else f"check the path ({NO_JOBS})"


def suggest_in_folder(folder: Path) -> str:
    """Return a remedy for a folder without job files."""
    if list_job_files(folder / JOBS_FOLDER):
        return f"did you mean {folder / JOBS_FOLDER}?"
    return f"name a folder with .yaml files, or begin with one: {NO_JOBS}"


def missing_argument_remedy(argument: str | None) -> str | None:
    """Return what to write for an argument that was left out; None if its command's help must answer that."""
    if argument == "folder":
        return "write e.g. my-jobs"
    if argument not in ("job", "jobs"):
        return None
    jobs = nearby_jobs(Path())
    return f"write e.g. {jobs[0]}" if jobs else NO_JOBS
