"""The sample of an experiment: the same labelled rows for every combination."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct

from connectors.errors import DataError, JobError, did_you_mean
from connectors.records import TEXT_PREFIX
from connectors.sql import identifier, literal
from pipelines.experiments.statistics import proportional_sizes
from pipelines.preparation.prepared_job import PreparedJob


class Sample(Struct, frozen=True):
    """Rows of the source by key (as text), each with the label of each output."""

    expected: dict[str, dict[str, Sequence[Any]]]
    """A label is one value, or a value and its text in the file."""

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(self.expected)


def draw_sample(ready: PreparedJob, size: int, by: str | None, expectations: dict[str, str], seed: int) -> Sample:
    """Draw rows that have a label in every expected column; without such a column, of all rows.

    Args:
        by: a column of the source; each of its values has the same share of the sample as of the source.
        expectations: output -> the column of the source with its right value.
        seed: the same seed draws the same rows of the same source.

    Raises:
        JobError: a column that the source has not.
        DataError: no row has a label.
    """
    known = ready.reader.schema.names
    for flag, name in [("--by", by), *(("--expect", column) for column in expectations.values())]:
        if name is not None and name not in known:
            raise JobError(flag, f"no column {name} in the source", did_you_mean(name, known))
    labels = list(dict.fromkeys(expectations.values()))
    stratum = literal("") if by is None else f"cast({identifier(by)} as VARCHAR)"
    condition = " and ".join(f"{identifier(name)} is not null" for name in labels) or "true"
    columns = list(dict.fromkeys([*labels, *([] if by is None else [by])]))
    counted = ready.selection.query(
        f"select {stratum} as stratum, count(*) as count from rows where {condition} group by 1 order by 1 nulls last",
        columns,
    ).to_pylist()
    counts = {row["stratum"]: row["count"] for row in counted}
    if not sum(counts.values()):
        named = f" with a value in {', '.join(labels)}" if labels else ""
        raise DataError(("source",), f"has no row{named}", "an experiment needs some")
    sizes = proportional_sizes(counts, size)
    limits = " ".join(
        f"when {stratum} is not distinct from {'null' if name is None else literal(name)} then {limit}"
        for name, limit in sizes.items()
    )
    order = f"md5({literal(str(seed))} || ':' || _key), _key"
    chosen = ready.selection.query(
        f"select * from (select *, row_number() over (partition by {stratum} order by {order}) as _place, "
        f"case {limits} end as _size from rows where {condition}) where _place <= _size order by {order}",
        columns,
    ).to_pylist()
    return Sample(
        {row["_key"]: {output: _label(row, column) for output, column in expectations.items()} for row in chosen}
    )


def _label(row: Mapping[str, Any], column: str) -> Sequence[Any]:
    text = row.get(TEXT_PREFIX + column)
    return (row[column],) if text is None else (row[column], text)


def is_right(answer: Any, label: Any) -> bool:
    """Return whether an answer equals its label: numbers as numbers, lists and objects also as JSON, all else as text.

    Of booleans, true is 1.
    """
    if isinstance(answer, list | dict) and isinstance(label, str):
        with contextlib.suppress(orjson.JSONDecodeError):
            return bool(answer == orjson.loads(label))
    if isinstance(answer, int | float) and isinstance(label, int | float):
        return answer == label
    if isinstance(answer, bool) or isinstance(label, bool):
        return str(answer).lower() == str(label).lower()
    if isinstance(answer, int | float) and not isinstance(label, int | float):
        try:
            return float(answer) == float(label)
        except (TypeError, ValueError):
            return False
    return bool(answer == label) or (answer is not None and str(answer) == str(label))
