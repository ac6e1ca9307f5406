"""What a job must be like to go by the Batch API, and when its deadline is."""

from datetime import datetime, time, timedelta, tzinfo

from connectors.errors import JobError
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace import Workspace

BATCHED = frozenset({"chat", "responses", "embeddings"})
"""The endpoints that the Batch API takes."""


def check_batched(loaded: LoadedJob, workspace: Workspace) -> None:
    """JobError where a step of a job with `delivery: batch` cannot go by batches."""
    if loaded.job.delivery != "batch":
        return
    for step in loaded.job.steps:
        where = ("steps", step.name)
        if step.endpoint not in BATCHED:
            raise JobError(
                loaded.at(*where, "endpoint"),
                f"the Batch API takes {', '.join(sorted(BATCHED))} only",
                "write delivery: online, or move this step to a job of its own",
            )
        if step.provider in workspace.pools:
            raise JobError(
                loaded.at(*where, "provider"),
                f"{step.provider} is a pool, and a batch goes to one provider",
                f"name one of its members: {', '.join(workspace.pools[step.provider])}",
            )
        if getattr(step, "stream", False):
            raise JobError(
                loaded.at(*where, "stream"),
                "a batch's answers do not stream",
                "leave stream out, or write delivery: online",
            )


def next_deadline(said: str, zone: tzinfo, now: datetime) -> datetime:
    """The next time that it is HH:MM in the zone, after `now`."""
    local = now.astimezone(zone)
    moment = datetime.combine(local.date(), time.fromisoformat(said), zone)
    if moment <= local:
        moment = datetime.combine(local.date() + timedelta(days=1), time.fromisoformat(said), zone)
    return moment
