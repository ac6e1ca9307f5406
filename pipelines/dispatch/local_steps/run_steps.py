"""The steps of a run in order: those that send requests by their routes, and local ones between them."""

from collections.abc import Sequence
from pathlib import Path

from connectors.contracts import TableShape
from pipelines.dispatch.local_steps.child_rows import EachRun
from pipelines.dispatch.local_steps.document_run import DocumentAccess, read_run
from pipelines.dispatch.local_steps.local_run import in_thread
from pipelines.dispatch.step_runner import (
    CHUNK_ROWS,
    FILE_CHUNK_ROWS,
    FILE_ENDPOINTS,
    MAX_OPEN_BYTES,
    MAX_OPEN_ROWS,
    AnyRunStep,
    FoldRun,
    RunStep,
)
from pipelines.preparation.local_steps import PreparedLocalStep
from pipelines.preparation.prepared_job import AnyPreparedStep, PreparedStep, result_steps
from pipelines.transforms.each import Each
from pipelines.transforms.fold import Fold
from pipelines.transforms.read import Read
from pipelines.transforms.select import Select


def all_run_steps(
    steps: Sequence[AnyPreparedStep],
    requesting: Sequence[RunStep],
    shape: TableShape,
    scratch: Path,
    documents: DocumentAccess,
    max_open_rows: int = MAX_OPEN_ROWS,
) -> Sequence[AnyRunStep]:
    """Return all steps, ready to run.

    `requesting`: those that send requests, in order. `scratch`: a folder for the children of source rows that have
    many. `documents`: what reads the files of rows. `max_open_rows`: children under way at a time.
    """
    stored = {step.model.name for step in result_steps(steps)}
    routes = iter(requesting)
    ready: list[AnyRunStep] = []
    has_children = False
    for place, step in enumerate(steps):
        if isinstance(step, PreparedStep):
            run_step = next(routes)
            for one in (run_step, *run_step.rungs):
                one.is_stored = step.model.name in stored
                one.route.settles_rows = not has_children
            ready.append(run_step)
            continue
        match step.transform:
            case Select():
                ready.append(in_thread(step.model.name, step.transform.apply))
            case Read():
                ready.append(read_run(step.model.name, step.transform, documents))
            case Each():
                has_children = True
                ready.append(_each_run(steps, place, step.transform, shape, scratch, max_open_rows))
            case Fold():
                has_children = False
                ready.append(FoldRun(step.model.name))
    return ready


def has_large_rows(step: AnyPreparedStep) -> bool:
    """Return whether a step adds whole files to rows, or texts as large: few rows make a chunk."""
    if isinstance(step, PreparedStep):
        return step.model.endpoint in FILE_ENDPOINTS
    return isinstance(step.transform, Read)


def _each_run(
    steps: Sequence[AnyPreparedStep], place: int, each: Each, shape: TableShape, scratch: Path, max_open_rows: int
) -> EachRun:
    """Return the step at this place with the fold that ends it."""
    kinds = [step.transform if isinstance(step, PreparedLocalStep) else None for step in steps]
    fold_place = next((at for at in range(place, len(steps)) if isinstance(kinds[at], Fold)), len(steps))
    found = kinds[fold_place] if fold_place < len(steps) else None
    fold = found if isinstance(found, Fold) else None
    scope, later = steps[place + 1 : fold_place], steps[fold_place + 1 :]
    made = {field.name for step in steps[place:fold_place] for field in step.fields}
    if fold is None:
        wanted = frozenset(shape.results.names)
    else:
        wanted = fold.columns.union(shape.results.names, *(step.input_columns for step in later))
    # After a fold, a column of another step may have the name of a child's.
    of_children = wanted if fold is None else fold.columns
    has_files = any(has_large_rows(step) for step in scope)
    return EachRun(
        name=steps[place].model.name,
        each=each,
        fold=fold,
        fold_name="" if fold is None else steps[fold_place].model.name,
        fold_place=fold_place,
        source_key=shape.source_key,
        child_columns=frozenset().union(*(step.input_columns for step in scope)) - made,
        gathered=(*sorted(made.intersection(of_children) | {each.index}),),
        later_columns=wanted,
        chunk_rows=FILE_CHUNK_ROWS if has_files else CHUNK_ROWS,
        max_open_rows=max_open_rows,
        max_open_bytes=MAX_OPEN_BYTES,
        scratch=scratch,
    )
