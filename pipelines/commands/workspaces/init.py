"""`rowmill init`: a new workspace with an example job."""

import json
from importlib.resources import files
from pathlib import Path

import click

from connectors.errors import JobError

_STARTER = {
    "rowmill.yaml": "rowmill.yaml",
    "jobs/quickstart.yaml": "jobs/quickstart.yaml",
    "data/reviews.csv": "data/reviews.csv",
    "README.md": "README.md",
    # Under its own name it would hold for the package's folder.
    ".gitignore": "gitignore",
}
"""What is written -> the file of the package that it is a copy of."""

SCHEMA_NAME = "job.schema.json"


def init(folder: Path) -> tuple[Path, ...]:
    """Write the starter files; the paths written. JobError, before anything is written, if one is there already."""
    from pipelines.config.json_schema import job_schema

    names = sorted((*_STARTER, SCHEMA_NAME))
    if folder.exists() and not folder.is_dir():
        raise JobError(folder, "is a file", "name a folder")
    existing = [name for name in names if (folder / name).exists() or (folder / name).is_symlink()]
    if existing:
        raise JobError(folder, f"{', '.join(existing)} would be overwritten", "choose another folder")
    starter = files("pipelines") / "starter"
    for name in names:
        schema = (json.dumps(job_schema(), indent=2) + "\n").encode() if name == SCHEMA_NAME else None
        content = schema if schema is not None else (starter / _STARTER[name]).read_bytes()
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("xb") as file:
                file.write(content)
        except OSError as exc:
            raise JobError(folder / name, f"cannot be written ({exc.strerror})", "choose another folder") from exc
    return tuple(folder / name for name in names)


@click.command("init")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def init_command(folder: Path) -> None:
    """Create a workspace with an example job in DIR.

    Existing files are never overwritten.

    \b
    Example:
      rowmill init my-jobs
    """

    for path in init(folder):
        click.echo(f"wrote {path}")
    click.echo(f"next: rowmill run {folder / 'jobs' / 'quickstart.yaml'}")
