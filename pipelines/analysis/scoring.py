"""Scores of answers against labels: accuracy, precision, recall and F1 of each class, and the confusion matrix."""

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import polars as pl

from connectors.errors import JobError, did_you_mean

if TYPE_CHECKING:
    import altair as alt


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """Agreement of answers with labels."""

    label: str
    """The column of labels."""
    output: str
    """The column of answers."""
    rows: int
    """Rows with a label and an answer."""
    without: int
    """Rows without a label or an answer; they count nowhere else."""
    accuracy: float | None
    """None if no row has both."""
    classes: pl.DataFrame = field(repr=False)
    """class, rows (with this label), answered (with this answer), precision, recall, f1 (null if undefined)."""
    confusion: pl.DataFrame = field(repr=False)
    """label, output, rows: every pair of classes, with 0 for pairs that do not occur."""

    def chart(self) -> "alt.LayerChart":
        """The confusion matrix as a chart."""
        from pipelines.analysis.charts import confusion

        return confusion(self.confusion, self.label, self.output, f"{self._right} of {self.rows:,} rows")

    @property
    def _right(self) -> str:
        return "none is known to be right" if self.accuracy is None else f"{self.accuracy:.1%} right"

    def _repr_html_(self) -> str:
        left = f", {self.without:,} left out" if self.without else ""
        caption = f"{escape(self.output)} against {escape(self.label)}: {self._right} of {self.rows:,} rows{left}"
        return f"<p>{caption}</p>{self.classes._repr_html_()}"


def score(frame: pl.LazyFrame | pl.DataFrame, label: str, output: str) -> Score:
    """Compare the answers in `output` with `label`, as text."""
    frame = frame.lazy()
    known = frame.collect_schema().names()
    for name in (label, output):
        if name not in known:
            hint = did_you_mean(name, known)
            raise JobError(
                "score", f"no column {name}", f"{hint} Labels get into the results by `columns:` of the sink"
            )
    result = pl.col(label).cast(pl.String).alias("label"), pl.col(output).cast(pl.String).alias("output")
    counted = (
        frame.select(result)
        .group_by("label", "output")
        .len("rows")
        .with_columns(pl.col("rows").cast(pl.Int64))
        .collect()
    )
    both = counted.drop_nulls()
    rows = int(both["rows"].sum())
    right = int(both.filter(pl.col("label") == pl.col("output"))["rows"].sum())
    names = pl.concat([both["label"].alias("class"), both["output"].alias("class")]).unique().sort().to_frame()
    pairs = names.rename({"class": "label"}).join(names.rename({"class": "output"}), how="cross")
    return Score(
        label=label,
        output=output,
        rows=rows,
        without=int(counted["rows"].sum()) - rows,
        accuracy=right / rows if rows else None,
        classes=_classes(names, both),
        confusion=pairs.join(both, on=["label", "output"], how="left").fill_null(0).sort("label", "output"),
    )


def _classes(names: pl.DataFrame, both: pl.DataFrame) -> pl.DataFrame:
    hits = both.filter(pl.col("label") == pl.col("output")).select(pl.col("label").alias("class"), hits="rows")
    labelled = both.group_by(pl.col("label").alias("class")).agg(pl.col("rows").sum())
    answered = both.group_by(pl.col("output").alias("class")).agg(answered=pl.col("rows").sum())
    joined = names
    for part in (hits, labelled, answered):
        joined = joined.join(part, on="class", how="left")
    joined = joined.with_columns(pl.col("hits", "rows", "answered").fill_null(0)).with_columns(
        precision=_share(pl.col("hits"), pl.col("answered")),
        recall=_share(pl.col("hits"), pl.col("rows")),
        f1=_share(2 * pl.col("hits"), pl.col("rows") + pl.col("answered")),
    )
    return joined.select("class", "rows", "answered", "precision", "recall", "f1").sort("class")


def _share(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """part / whole; null if whole is 0."""
    return pl.when(whole > 0).then(part / whole)
