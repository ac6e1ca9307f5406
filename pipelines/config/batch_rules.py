"""Rules for jobs that use the Batch API, and the next deadline of a batch."""

from datetime import datetime, time, timedelta, tzinfo

from connectors.errors import JobError
from pipelines.config.loaded_job import LoadedJob

BATCH_ENDPOINTS = frozenset({"chat", "responses", "embeddings"})
"""The endpoints that the Batch API takes."""


def check_batch_delivery(loaded: LoadedJob) -> None:
    """Raise JobError if a step of a job with `delivery: batch` cannot use the Batch API."""
    if loaded.job.delivery != "batch":
        return
    pools = loaded.workspace.pools
    for step in loaded.job.endpoint_steps:
        if step.endpoint not in BATCH_ENDPOINTS:
            raise JobError(
                loaded.locate("steps", step.name, "endpoint"),
                f"the Batch API takes {', '.join(sorted(BATCH_ENDPOINTS))} only",
                "write delivery: online, or move this step to a separate job",
            )
        keys = [("provider",), *(("rescue", place, "provider") for place in range(len(step.rescue)))]
        for one, key in zip(step.with_rungs, keys, strict=True):
            if one.provider in pools:
                raise JobError(
                    loaded.locate("steps", step.name, *key),
                    f"{one.provider} is a pool, and a batch goes to one provider",
                    f"name one of its members: {', '.join(pools[one.provider])}",
                )
        if getattr(step, "stream", False):
            raise JobError(
                loaded.locate("steps", step.name, "stream"),
                "a batch's answers do not stream",
                "leave stream out, or write delivery: online",
            )


def next_deadline(time_of_day: str, zone: tzinfo, now: datetime) -> datetime:
    """Return the first moment after `now` at which it is HH:MM in the zone."""
    local = now.astimezone(zone)
    deadline = datetime.combine(local.date(), time.fromisoformat(time_of_day), zone)
    if deadline <= local:
        deadline = datetime.combine(local.date() + timedelta(days=1), time.fromisoformat(time_of_day), zone)
    return deadline
