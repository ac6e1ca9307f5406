"""The settings of a run in progress."""

import pytest

from connectors.errors import JobError
from pipelines.config.job import Budget, JobLimits
from pipelines.control.run_settings import RunSettings

BEGUN = RunSettings(limits=JobLimits(requests_per_minute=100, concurrency=8, failed_share=0.2))


def test_what_is_not_set_stays() -> None:
    changed = BEGUN.changed({"limits.concurrency": 9, "budget.usd": 2})
    assert changed == RunSettings(
        limits=JobLimits(requests_per_minute=100, concurrency=9, failed_share=0.2), budget=Budget(usd=2.0)
    )
    assert changed.changed({"limits.requests_per_minute": None}).limits.requests_per_minute is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1}, "set steps: cannot be set while the job runs; settable are limits.requests_per_minute, "),
        ({"concurrency": 1}, "set concurrency: cannot be set while the job runs; did you mean limits.concurrency? "),
        ({"limits": {"concurrency": 1}}, "set limits: cannot be set while the job runs; "),
        ({"budget.usd": None}, "set budget.usd: found nothing, expected a number; write e.g. usd: 5.00"),
        ({"budget.usd": float("inf")}, "set budget.usd: found Infinity, expected "),
        ({"limits.tokens_per_minute": 1.5}, "set limits.tokens_per_minute: found 1.5, expected a whole number; "),
        ({"limits.concurrency": [1]}, "set limits.concurrency: found a list, expected a whole number; "),
        (
            {"budget.usd": 5, "limits.concurrency": 10_001},
            "set limits.concurrency: found 10001, expected at most ",
        ),
    ],
)
def test_the_first_value_that_cannot_be_set_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(JobError) as refused:
        BEGUN.changed(values)
    assert str(refused.value).startswith(message)
