"""An experiment: every combination of settings on the same sample, paid once, compared by quality, cost and time."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from connectors.endpoints.conversation.packing.packed_conversation import PackOptions
from connectors.errors import JobError, did_you_mean
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.overrides import Overrides
from pipelines.execution.invocation import check_before_run
from pipelines.execution.trial_run import TrialRun, run_trial, trial_job
from pipelines.experiments.answer_costs import AnswerCosts, answer_costs
from pipelines.experiments.combinations import Combination
from pipelines.experiments.sample import Sample, draw_sample, is_right
from pipelines.experiments.statistics import unbeaten, wilson_interval
from pipelines.preparation.prepared_job import pack_of, prepare_job
from pipelines.pricing.prices import PICO
from pipelines.runtime.run_options import RunOptions
from pipelines.runtime.services import open_workspace_ledger

SUFFIX = "try"
"""The exchanges of an experiment are those of the job `<name>-try`."""


class ExperimentOptions(Struct, frozen=True):
    """What an experiment varies, and on which rows it is judged."""

    combinations: Sequence[Combination]
    expectations: Mapping[str, str]
    """Output -> the column of the source with its right value; empty: quality is not judged."""
    sample_rows: int
    by: str | None = None
    """A column whose values have the same share of the sample as of the source."""
    seed: int = 0


class CombinationResult(Struct, frozen=True):
    """How one combination did on the sample."""

    combination: Combination
    rows: int
    right: float | None
    """Share of rows with every expected value, from 0 to 1; a failed row is wrong. None without expectations."""
    low: float | None
    """The 95 % interval of the share."""
    high: float | None
    usd_per_1000: float | None
    """Cost for 1,000 rows by what the answers cost when they were paid; None if a price is not known."""
    latency_ms: float | None
    """Median of the requests that brought an answer."""
    errors: int
    """Rows that failed."""
    requests: int | None = None
    """The exchanges that brought the answers, whenever they were sent; None unless packs are compared."""
    is_unbeaten: bool = False
    """Whether no other combination is at least as good and as cheap, and better in one of the two."""

    def to_json(self) -> dict[str, Any]:
        """Return the object of `--json`."""
        return {
            "number": self.combination.number,
            "settings": self.combination.labels,
            "rows": self.rows,
            "right": self.right,
            "low": self.low,
            "high": self.high,
            "usd_per_1000": self.usd_per_1000,
            "latency_ms": self.latency_ms,
            "errors": self.errors,
            "unbeaten": self.is_unbeaten,
            **({} if self.requests is None else {"requests": self.requests}),
        }


class ExperimentReport(Struct, frozen=True):
    """The results of an experiment, and how it ended."""

    job: str
    results: Sequence[CombinationResult]
    """Of the combinations that were finished."""
    requests: int
    """Sent by this invocation."""
    cost_usd: float | None
    """Paid in this invocation; None if a price is not known."""
    exit_code: int
    stopped: str | None
    """The reason why combinations are missing; None if all are there."""


def run_experiment(
    loaded: LoadedJob,
    options: ExperimentOptions,
    run_options: RunOptions,
    on_begin: Callable[[Combination], None] = lambda combination: None,
) -> ExperimentReport:
    """Run every combination on the sample; `on_begin` is called before each.

    Nothing is sent before every combination is valid. All of them share the job's budget.

    Raises:
        JobError: a combination or an option does not fit the job.
        DataError: the source cannot be read, or has no row with a label.
    """
    variants = _with_compared_packs([_variant(loaded, combination) for combination in options.combinations])
    sample = _checked_sample(variants, options)
    results: list[CombinationResult] = []
    requests, cost, exit_code = 0, 0.0, 0
    is_priced, stopped = True, None
    budget = loaded.job.budget
    for combination, variant in zip(options.combinations, variants, strict=True):
        on_begin(combination)
        if budget is not None:
            left = max(0.0, budget.usd - cost)
            variant = variant.with_overrides(replace(variant.overrides, budget_usd=left))
        fingerprints: set[bytes] = set()
        trial = run_trial(
            variant,
            SUFFIX,
            replace(run_options, is_new_run=True, row_keys=sample.keys, on_request=fingerprints.add),
        )
        requests += trial.report.requests or 0
        is_priced = is_priced and trial.report.cost_usd is not None
        cost += trial.report.cost_usd or 0.0
        if trial.report.stopped is not None:
            exit_code, stopped = trial.report.exit_code, trial.report.stopped
            break
        assert trial.report.job is not None
        with open_workspace_ledger(loaded.workspace) as ledger:
            costs = answer_costs(ledger, fingerprints, trial.report.job)
        are_packs_compared = bool(variant.compared_packs)
        results.append(_result(combination, sample, trial, costs, bool(options.expectations), are_packs_compared))
    if stopped is None and any(result.errors for result in results):
        exit_code = 1
    marks = unbeaten([result.right for result in results], [result.usd_per_1000 for result in results])
    marked = [replace(result, is_unbeaten=mark) for result, mark in zip(results, marks, strict=True)]
    return ExperimentReport(loaded.job.name, marked, requests, cost if is_priced else None, exit_code, stopped)


def check_combination(loaded: LoadedJob, combination: Combination) -> None:
    """Raise the first error of a job with the settings of a combination; nothing is sent."""
    variant = loaded.with_overrides(replace(loaded.overrides, over=_assignments(combination)))
    with TemporaryDirectory() as name, prepare_job(trial_job(variant, SUFFIX, Path(name))) as ready:
        check_before_run(ready)


def _variant(loaded: LoadedJob, combination: Combination) -> LoadedJob:
    """Return the job with the settings of a combination; requests go online, whatever the job's delivery."""
    overrides: Overrides = loaded.overrides
    return loaded.with_overrides(replace(overrides, over=_assignments(combination), delivery="online"))


def _assignments(combination: Combination) -> tuple[str, ...]:
    return tuple(setting.assignment for setting in combination.settings)


def _with_compared_packs(variants: Sequence[LoadedJob]) -> Sequence[LoadedJob]:
    """Keep the answers of steps apart whose `pack` differs: without it their requests are the same for the ledger."""
    packs: dict[str, list[PackOptions | None]] = {}
    for variant in variants:
        for step in variant.job.steps:
            packs.setdefault(step.name, []).append(pack_of(step))
    compared = frozenset(name for name, values in packs.items() if any(value != values[0] for value in values))
    return [replace(variant, compared_packs=compared) for variant in variants]


def _checked_sample(variants: Sequence[LoadedJob], options: ExperimentOptions) -> Sample:
    """Check every combination without a request, and draw the sample."""
    sample: Sample | None = None
    with TemporaryDirectory() as name:
        for variant in variants:
            with prepare_job(trial_job(variant, SUFFIX, Path(name))) as ready:
                check_before_run(ready)
                if ready.shape.child_index is not None:
                    where = ready.loaded.locate("steps")
                    raise JobError(
                        where, "rows become several, and a combination is judged by one result a row", "fold them"
                    )
                for output in options.expectations:
                    if output not in ready.computed_columns:
                        raise JobError(
                            "--expect", f"no output {output} of the job", did_you_mean(output, ready.computed_columns)
                        )
                if sample is None:
                    sample = draw_sample(
                        ready, options.sample_rows, options.by, dict(options.expectations), options.seed
                    )
    assert sample is not None
    return sample


def _result(
    combination: Combination,
    sample: Sample,
    trial: TrialRun,
    costs: AnswerCosts,
    is_judged: bool,
    are_packs_compared: bool,
) -> CombinationResult:
    rows = len(sample.expected)
    right = sum(
        key in trial.outputs
        and all(any(is_right(trial.outputs[key][name], each) for each in label) for name, label in expected.items())
        for key, expected in sample.expected.items()
    )
    low, high = wilson_interval(right, rows)
    return CombinationResult(
        combination,
        rows,
        right / rows if is_judged else None,
        low if is_judged else None,
        high if is_judged else None,
        None if costs.cost is None else costs.cost * 1000 / rows / PICO,
        costs.median_latency_ms,
        rows - len(trial.outputs),
        costs.exchanges if are_packs_compared else None,
    )
