"""Comparison of two results, for example after a change of the prompt: differing rows, agreement by column."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from connectors.errors import JobError
from pipelines.analysis.output_columns import HIDDEN_COLUMNS, carried_columns
from pipelines.analysis.results import Results


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Two results compared key by key."""

    agreement: pl.DataFrame = field(repr=False)
    """column, rows (in both), same, share."""
    differing: pl.DataFrame = field(repr=False)
    """Rows that differ in a column: key, columns that both carry, each output as `<column>_a` and `<column>_b`."""
    only_a: int
    """Rows whose key is only in the first result."""
    only_b: int

    def _repr_html_(self) -> str:
        alone = (
            f"<p>{self.only_a:,} rows only in a, {self.only_b:,} only in b</p>" if self.only_a or self.only_b else ""
        )
        return f"{self.agreement._repr_html_()}{alone}{self.differing._repr_html_()}"


def compare(a: Results, b: Results, columns: Sequence[str] | None = None) -> Comparison:
    """The rows of both, joined by key; `columns`: the outputs to be compared, None: all that both have.

    Null equals null. Vectors are no answers that one reads side by side: they are left out.
    """
    key = list(a.job.key)
    if not key or key != list(b.job.key):
        raise JobError(
            "compare", "rows are joined by their key", f"{a.job.name} and {b.job.name} must have the same key:"
        )
    ours, theirs = a.results.collect(), b.results.collect()
    others = carried_columns(b.job, theirs.columns)
    carried = [name for name in carried_columns(a.job, ours.columns) if name in others]
    outputs = [
        name
        for name, kind in ours.schema.items()
        if name in theirs.columns and name not in {*key, *carried, *HIDDEN_COLUMNS}
        if not isinstance(kind, pl.Array)
    ]
    for name in columns or ():
        if name not in outputs:
            raise JobError("compare", f"{name} is not an output of both", f"both have {', '.join(outputs) or 'none'}")
    chosen = list(columns or outputs)
    if not chosen:
        raise JobError(
            "compare", f"{a.job.name} and {b.job.name} have no output of one name", "give them the same names"
        )
    for name in chosen:
        if ours.schema[name] != theirs.schema[name]:
            raise JobError("compare", f"{name} is {ours.schema[name]} in one and {theirs.schema[name]} in the other")
    left = ours.select(*key, *carried, pl.col(chosen).name.suffix("_a"))
    right = theirs.select(*key, pl.col(chosen).name.suffix("_b"))
    joined = left.join(right, on=key, how="inner", maintain_order="left")
    same = [pl.col(f"{name}_a").eq_missing(pl.col(f"{name}_b")) for name in chosen]
    counts = joined.select(one.sum().alias(name) for name, one in zip(chosen, same, strict=True)).row(0)
    rows = len(joined)
    sides = [f"{name}_{side}" for name in chosen for side in "ab"]
    return Comparison(
        agreement=pl.DataFrame(
            {
                "column": chosen,
                "rows": [rows] * len(chosen),
                "same": counts,
                "share": [n / rows if rows else None for n in counts],
            },
            schema={"column": pl.String, "rows": pl.Int64, "same": pl.Int64, "share": pl.Float64},
        ),
        differing=joined.filter(~pl.all_horizontal(same)).select(*key, *carried, *sides),
        only_a=len(ours) - rows,
        only_b=len(theirs) - rows,
    )
