"""Charts of a job's tables (altair): tokens, cost, latency, throughput, errors, answers.

polars aggregates every number before it is drawn. Each function takes a table of `read_results` and returns a chart.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from connectors.errors import JobError, did_you_mean
from pipelines.analysis.similarity import vector_column
from pipelines.formatting import format_count

try:
    import altair as alt
except ImportError as exc:
    raise ImportError("charts: altair is not there; pip install 'rowmill[notebook]'") from exc

By = Literal["day", "hour", "job", "step", "model", "provider", "endpoint", "run_id"]
Numbers = npt.NDArray[np.float64]
Drawn = TypeVar("Drawn", alt.Chart, alt.LayerChart)

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#222222")
"""Okabe and Ito's palette without yellow, distinguishable with every kind of colour blindness."""
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, BLACK = PALETTE
SHAPES = (*("circle", "square", "triangle-up", "cross", "diamond", "triangle-down", "triangle-right", "triangle-left"),)
"""One more than the colours, so that 56 values differ in colour or shape."""
INK = "#222222"
GREY = "#767676"
WIDTH = 480
STEP = alt.Step(32)
"""Height of a bar in pixels."""
MIN_LABELLED_SHARE = 0.12
"""Smaller parts of a bar have no room for their name."""
MAX_TIME_BARS = 120
"""Bars over time."""
MAX_POINTS = 2000
"""Vectors in one chart."""

MEANINGS = {
    "answered": BLUE,
    "failed": VERMILION,
    "input": BLUE,
    "cached input": SKY,
    "output": ORANGE,
    "reasoning": BLACK,
    "positive": GREEN,
    "negative": PURPLE,
    "neutral": "#999999",
    "true": GREEN,
    "false": PURPLE,
    "(null)": "#999999",
}
"""Values that have the same colour in every chart."""

_TOKENS = {
    "input": pl.col("input_tokens") - pl.col("cached_tokens").fill_null(0),
    "cached input": pl.col("cached_tokens"),
    "output": pl.col("output_tokens") - pl.col("reasoning_tokens").fill_null(0),
    "reasoning": pl.col("reasoning_tokens"),
}
"""The parts of a bill; each token is in exactly one."""
_PERCENTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99}


def pictures(scale: float = 1.5) -> None:
    """Store charts as PNG in the notebook from now on: visible offline, and small enough to commit.

    Charts of your own get the look of those of this module, too.
    `scale`: pixels of the picture for each pixel of the chart.
    """
    import io

    import vl_convert
    from PIL import Image

    def drawn(spec: dict[str, Any], **_: Any) -> tuple[dict[str, bytes], dict[str, dict[str, float]]]:
        picture = Image.open(io.BytesIO(vl_convert.vegalite_to_png(spec, scale=scale))).convert("RGB")
        written = io.BytesIO()
        # Charts have few colours: a palette reduces the size to a fifth.
        picture.quantize(128, dither=Image.Dither.NONE).save(written, "png", optimize=True)
        size = {"width": picture.width / scale, "height": picture.height / scale}
        return {"image/png": written.getvalue()}, {"image/png": size}

    alt.renderers.register("rowmill", drawn)
    alt.renderers.enable("rowmill")
    alt.theme.register("rowmill", enable=True)(_look)


def _look() -> alt.theme.ThemeConfig:
    return {
        "config": {
            "title": {"anchor": "start", "fontSize": 15, "subtitleColor": GREY, "offset": 12},
            "axis": {
                "titleFontWeight": "normal",
                "titleFontSize": 12,
                "labelFontSize": 11,
                "gridColor": "#e4e4e4",
            },
            "axisX": {"tickCount": 5, "labelOverlap": "greedy", "labelSeparation": 10},
            "legend": {"titleFontWeight": "normal", "symbolStrokeWidth": 0},
            "range": {"category": list(PALETTE)},
            "bar": {"color": BLUE},
            "line": {"color": BLUE},
            "area": {"color": BLUE},
            "point": {"color": BLUE},
            "view": {"stroke": None},
        }
    }


def tokens(usage: pl.LazyFrame, by: By = "step") -> alt.LayerChart:
    """Tokens by day, step, model …, split into the parts that are billed differently."""
    added = usage.group_by(_group(by)).agg(part.sum().alias(kind) for kind, part in _TOKENS.items())
    result = added.unpivot(index=by, variable_name="kind", value_name="tokens").filter(pl.col("tokens") > 0)
    frame = result.sort(by, pl.col("kind").cast(pl.Enum(list(_TOKENS)))).collect()
    subtitle = f"{frame['tokens'].sum():,} tokens in all"
    kinds = [kind for kind in _TOKENS if kind in frame["kind"]]
    bars = _bars(frame, by, "tokens", "tokens").encode(color=_colour("kind", kinds))
    return _with_title(
        _layer(bars, _totals(frame, by, "tokens")), f"Tokens by {_axis_title(by)}", subtitle, height=STEP
    )


def cost(usage: pl.LazyFrame, by: By = "step") -> alt.LayerChart:
    """US dollars by day, step, model …; the subtitle counts exchanges without a known price."""
    added = usage.group_by(_group(by)).agg(pl.col("cost_usd").sum(), unpriced=pl.col("cost_usd").is_null().sum())
    frame = added.sort(by).collect()
    unpriced = int(frame["unpriced"].sum())
    subtitle = f"${frame['cost_usd'].sum():,.6f} in all"
    subtitle += f"; {unpriced:,} exchanges have no known price and are not in it" if unpriced else ""
    bars = _bars(frame, by, "cost_usd", "US dollars")
    return _with_title(
        _layer(bars, _totals(frame, by, "cost_usd", "$,.6~f")), f"Cost by {_axis_title(by)}", subtitle, height=STEP
    )


def latency(usage: pl.LazyFrame, by: By = "step") -> alt.LayerChart:
    """Latency of answered requests, to the end of the reply: median, 90th and 99th percentile."""
    answered = usage.filter(pl.col("latency_ms").is_not_null() & pl.col("error_class").is_null())
    result = [pl.col("latency_ms").quantile(share, "linear").alias(name) for name, share in _PERCENTILES.items()]
    wide = answered.group_by(_group(by)).agg(pl.len().alias("requests"), *result).sort(by).collect()
    frame = wide.unpivot(index=[by, "requests"], variable_name="percentile", value_name="milliseconds")
    base = alt.Chart(frame).encode(
        x=alt.X("milliseconds:Q", title="latency (milliseconds)", scale=alt.Scale(zero=True), axis=_x_axis()),
        y=alt.Y(f"{by}:N", title=_axis_title(by)),
    )
    line = base.mark_line(color=GREY, strokeWidth=2).encode(detail=f"{by}:N")
    points = base.mark_point(size=110, filled=True, opacity=1).encode(
        color=_colour("percentile", list(_PERCENTILES), (BLUE, SKY, ORANGE)),
        shape=_shape("percentile", list(_PERCENTILES)),
        tooltip=[f"{by}:N", "percentile:N", alt.Tooltip("milliseconds:Q", format=",.1f"), "requests:Q"],
    )
    subtitle = f"{wide['requests'].sum():,} answered requests, to the end of the reply"
    return _with_title(_layer(line, points), f"Latency by {_axis_title(by)}", subtitle, height=STEP)


def throughput(usage: pl.LazyFrame, run_id: str | None = None) -> alt.Chart:
    """Exchanges a second during one run (None: the last), answered and failed."""
    started = usage.select("run_id", "started_at", "latency_ms", "error_class").sort("started_at").collect()
    if run_id is None and len(started):
        run_id = started["run_id"][-1]
    of_run = started.filter(pl.col("run_id") == run_id)
    if not len(of_run):
        raise JobError(
            "throughput", f"no exchange of {run_id or 'any run'} in usage", "the table .usage lists the runs"
        )
    took = pl.duration(microseconds=(pl.col("latency_ms").fill_null(0) * 1000).cast(pl.Int64))
    outcome = pl.when(pl.col("error_class").is_null()).then(pl.lit("answered")).otherwise(pl.lit("failed"))
    ended = of_run.select(at=pl.col("started_at") + took, outcome=outcome)
    width = _bar_width(ended["at"])
    counted = ended.group_by(pl.col("at").dt.truncate(width), "outcome").len("exchanges")
    seconds = width.total_seconds()
    stacked = pl.col("per_second").cum_sum().over("at")
    frame = counted.with_columns(until=pl.col("at") + width, per_second=pl.col("exchanges") / seconds).sort(
        "at", "outcome"
    )
    frame = frame.with_columns(top=stacked).with_columns(foot=pl.col("top") - pl.col("per_second"))
    # In print, what failed is known by its outline.
    columns = alt.Chart(frame).mark_rect(strokeWidth=0.8)
    chart: alt.Chart = columns.encode(
        x=alt.X("at:T", title="time of the reply (UTC)", scale=alt.Scale(type="utc"), axis=_time_axis(seconds)),
        x2="until:T",
        y=alt.Y("top:Q", title="exchanges a second", scale=alt.Scale(zero=True)),
        y2="foot:Q",
        color=_colour("outcome", ["answered", "failed"]),
        stroke=alt.condition(alt.datum.outcome == "failed", alt.value(INK), alt.value(None)),
        tooltip=["at:T", "outcome:N", "exchanges:Q", alt.Tooltip("per_second:Q", format=",.1f")],
    )
    return _with_title(chart, "Throughput", f"{len(ended):,} exchanges; a column is {seconds:g} s", height=200)


def errors(failed: pl.LazyFrame) -> alt.LayerChart:
    """Rows of the errors table by class and step."""
    known = failed.collect_schema().names()
    # If a key column has the same name, ours is `error_<name>`.
    kind, step = (f"error_{name}" if f"error_{name}" in known else name for name in ("error_class", "step"))
    named = failed.select(error_class=pl.col(kind), step=pl.col(step).fill_null("source"))
    frame = named.group_by("error_class", "step").len("rows").sort("error_class", "step").collect()
    steps = frame["step"].unique().sort().to_list()
    bars = _bars(frame, "error_class", "rows", "rows").encode(color=_colour("step", steps))
    subtitle = f"{format_count(int(frame['rows'].sum()), 'row')} in errors"
    return _with_title(_layer(bars, _totals(frame, "error_class", "rows")), "Errors by class", subtitle, height=STEP)


def label_shares(results: pl.LazyFrame, column: str, by: str | None = None) -> alt.LayerChart:
    """The share of rows for each value of a column; `by`: within each value of another column. Lists count elements."""
    schema = results.collect_schema()
    groups = [column] if by is None else [by, column]
    _check_columns("label_shares", groups, schema.names())
    several = isinstance(schema[column], pl.List)
    rows = results.explode(column) if several else results
    result = rows.select(pl.col(name).cast(pl.String).fill_null("(null)") for name in groups)
    whole = pl.col("rows").sum() if by is None else pl.col("rows").sum().over(by)
    counted = result.group_by(groups).len("rows")
    frame = counted.with_columns(share=pl.col("rows") / whole).sort(groups).collect()
    subtitle = f"of {frame['rows'].sum():,} {'elements' if several else 'rows'}"
    axis = _x_axis("%")
    counted_name = "elements" if several else "rows"
    if by is None:
        bars = _bars(frame, column, "share", f"share of {counted_name}", axis)
        return _with_title(
            _layer(bars, _totals(frame, column, "share", ".1%")), f"Shares of {column}", subtitle, height=STEP
        )
    labels = frame[column].unique().sort().to_list()
    # In print, the names in the bars replace the colours.
    inks = {label: "white" if colour in (BLUE, BLACK) else INK for label, colour in _colours(labels).items()}
    wide = pl.when(pl.col("share") >= MIN_LABELLED_SHARE)
    percent = (100 * pl.col("share")).round(0).cast(pl.Int64).cast(pl.String)
    frame = frame.with_columns(
        ink=pl.col(column).replace_strict(inks),
        words=wide.then(pl.concat_str(pl.col(column), percent + "%", separator=" ")).otherwise(pl.lit("")),
    )
    title = f"share of {counted_name} with this {_without_underscores(by)}"
    colour = _colour(column, labels).legend(symbolType="square")
    bars = _bars(frame, by, "share", title, axis, room=1).encode(color=colour, order=f"{column}:N")
    words = (
        alt.Chart(frame)
        .mark_text(fontSize=11)
        .encode(
            x=alt.X("share:Q", stack="zero", bandPosition=0.5),
            y=f"{by}:N",
            detail=f"{column}:N",
            order=f"{column}:N",
            text="words:N",
            color=alt.Color("ink:N", scale=None),
        )
    )
    return _with_title(_layer(bars, words), f"Shares of {column} by {by}", subtitle, height=STEP)


def embedding(
    results: pl.LazyFrame, label: str | None = None, column: str | None = None, tooltip: Sequence[str] = ()
) -> alt.Chart:
    """Vectors in two dimensions (principal components), coloured by a label; `column` None: the only vector column."""
    name = vector_column(results, column)
    others = list(dict.fromkeys([*([] if label is None else [label]), *tooltip]))
    _check_columns("embedding", others, results.collect_schema().names())
    rows = results.select(name, *others).drop_nulls(name).collect()
    shown = rows.gather_every(max(1, -(-len(rows) // MAX_POINTS)))
    if len(shown) < 3:
        raise JobError("embedding", f"{len(shown)} vectors in {name}", "run the job over at least 3 rows")
    vectors = shown[name].to_numpy()
    places, parts = principal(vectors)
    frame = shown.drop(name).with_columns(x=pl.Series(places[:, 0]), y=pl.Series(places[:, 1]))
    bare = alt.Axis(labels=False, ticks=False, grid=False)
    chart: alt.Chart = alt.Chart(frame).mark_point(size=34, filled=True, opacity=0.8)
    chart = chart.encode(
        x=alt.X("x:Q", title=f"first component ({parts[0]:.0%} of the variance)", axis=bare),
        y=alt.Y("y:Q", title=f"second component ({parts[1]:.0%})", axis=bare),
        tooltip=[f"{one}:N" for one in others],
    )
    if label is None:
        chart = chart.encode(color=alt.value(BLUE))
    else:
        labels = frame[label].cast(pl.String).drop_nulls().unique().sort().to_list()
        chart = chart.encode(color=_colour(label, labels), shape=_shape(label, labels))
    subtitle = f"{len(shown):,} of {len(rows):,} vectors of {vectors.shape[1]:,} numbers, by their principal components"
    return _with_title(chart, f"{name} in two dimensions", subtitle, height=360)


def confusion(matrix: pl.DataFrame, label: str, output: str, subtitle: str) -> alt.LayerChart:
    """A confusion matrix (label, output, rows), shaded by the share of each label's rows.

    `label` and `output` name the columns that it was made of.
    """
    whole = pl.col("rows").sum().over("label")
    frame = matrix.with_columns(share=pl.when(whole > 0).then(pl.col("rows") / whole).otherwise(0.0))
    side = max(160, 80 * frame["label"].n_unique())
    base = alt.Chart(frame).encode(
        x=alt.X("output:N", title=f"answered ({output})", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("label:N", title=f"labelled ({label})"),
    )
    shade = alt.Scale(range=["#eef4f9", BLUE], domain=[0, 1])
    cells = base.mark_rect(stroke="white").encode(
        color=alt.Color(
            "share:Q",
            scale=shade,
            title="share of the label",
            legend=alt.Legend(format="%", values=[0, 0.25, 0.5, 0.75, 1]),
        ),
        tooltip=["label:N", "output:N", "rows:Q", alt.Tooltip("share:Q", format=".1%")],
    )
    figures = base.mark_text(fontSize=15).encode(
        text=alt.Text("rows:Q", format=","),
        color=alt.condition(alt.datum.share > 0.5, alt.value("white"), alt.value(INK)),
    )
    return _with_title(_layer(cells, figures), f"{output} against {label}", subtitle, side, side)


def principal(vectors: npt.NDArray[np.float32]) -> tuple[Numbers, list[float]]:
    """(each vector's place on the first two principal components, their parts of the variance)."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, strengths, axes = np.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary: with the largest weight positive, a picture stays as it is.
    largest = axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)]
    places: Numbers = centred @ (axes[:2] * np.where(largest < 0, -1.0, 1.0)[:, None]).T
    whole = float((strengths**2).sum()) or 1.0
    return places, [float(one) for one in strengths[:2] ** 2 / whole]


def _group(by: By) -> pl.Expr:
    if by in ("day", "hour"):
        return pl.col("started_at").dt.strftime("%Y-%m-%d" if by == "day" else "%Y-%m-%d %H:00").alias(by)
    return pl.col(by)


def _axis_title(by: By) -> str:
    return f"{by} (UTC)" if by in ("day", "hour") else "run" if by == "run_id" else by


def _bar_width(moments: pl.Series) -> timedelta:
    """The width of bars: a round number of seconds that gives at most MAX_TIME_BARS."""
    first, last = moments.min(), moments.max()
    spread = (last - first).total_seconds()  # type: ignore[operator, union-attr]
    widths = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 600, 1800, 3600, 6 * 3600, 24 * 3600)
    return timedelta(seconds=next((width for width in widths if spread / width <= MAX_TIME_BARS), 7 * 24 * 3600))


def _time_axis(seconds: float) -> alt.Axis:
    form = "%H:%M:%S" if seconds < 60 else "%m-%d %H:%M"
    return alt.Axis(labelAngle=0, tickCount=5, format=form, labelOverlap="greedy", labelSeparation=10)


def _x_axis(form: str = ",~f") -> alt.Axis:
    """A horizontal axis whose labels do not touch."""
    return alt.Axis(format=form, tickCount=5, labelOverlap="greedy", labelSeparation=10)


def _bars(
    frame: pl.DataFrame, over: str, value: str, title: str, axis: alt.Axis | None = None, room: float = 1.15
) -> alt.Chart:
    """Horizontal bars, so that names are readable."""
    longest = frame.group_by(over).agg(pl.col(value).sum())[value].max()
    # Leave space for the number at the end of a bar; a scale from 0 to 0 would draw its 0 in the middle.
    scale = alt.Scale(
        domain=[0, float(longest) * room if isinstance(longest, int | float) and longest else 1], nice=False
    )
    bars: alt.Chart = (
        alt.Chart(frame)
        .mark_bar(color=BLUE, stroke="white", strokeWidth=0.8)
        .encode(
            x=alt.X(f"{value}:Q", title=title, stack="zero", scale=scale, axis=axis or _x_axis()),
            y=alt.Y(f"{over}:N", title=_without_underscores(over)),
            tooltip=[alt.Tooltip(f"{name}:{'Q' if kind.is_numeric() else 'N'}") for name, kind in frame.schema.items()],
        )
    )
    return bars


def _totals(frame: pl.DataFrame, over: str, value: str, figures: str = ",") -> alt.Chart:
    """The number at the end of each bar."""
    added = frame.group_by(over).agg(pl.col(value).sum()).sort(over)
    text = alt.Text(f"{value}:Q", format=figures)
    base = alt.Chart(added).mark_text(align="left", dx=4, color=INK)
    figures_of: alt.Chart = base.encode(x=f"{value}:Q", y=f"{over}:N", text=text)
    return figures_of


def _colours(values: Sequence[str]) -> dict[str, str]:
    """Return the colour of each value: that of its meaning, or the next one of the palette; colours may repeat."""
    known = {value: MEANINGS[value] for value in values if value in MEANINGS}
    others = [colour for colour in PALETTE if colour not in known.values()] or list(PALETTE)
    unknown = [value for value in values if value not in known]
    return {**known, **{value: others[place % len(others)] for place, value in enumerate(unknown)}}


def _colour(name: str, values: Sequence[str], colours: Sequence[str] | None = None) -> alt.Color:
    """One colour for each value, the same in every chart."""
    of_value = _colours(values)
    taken = [of_value[value] for value in values] if colours is None else list(colours)
    scale = alt.Scale(domain=list(values), range=taken)
    return alt.Color(f"{name}:N", scale=scale, title=_without_underscores(name))


def _shape(name: str, values: Sequence[str]) -> alt.Shape:
    """One shape for each value, for readers who see no colours and for more values than colours."""
    taken = [SHAPES[place % len(SHAPES)] for place in range(len(values))]
    return alt.Shape(f"{name}:N", scale=alt.Scale(domain=list(values), range=taken), title=_without_underscores(name))


def _without_underscores(name: str) -> str:
    return name.replace("_", " ")


def _layer(*charts: alt.Chart) -> alt.LayerChart:
    made = alt.layer(*charts)
    assert isinstance(made, alt.LayerChart)
    return made


def _check_columns(where: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise JobError(where, f"no column {name}", did_you_mean(name, known))


def _with_title(
    chart: Drawn, title: str, subtitle: str, width: int = WIDTH, height: int | alt.Step | None = None
) -> Drawn:
    """Add a title. Charts set no background, so that they can be combined; altair's white is readable on dark pages."""
    head = alt.TitleParams(title, subtitle=subtitle, anchor="start", fontSize=15, subtitleColor=GREY, offset=12)
    sized: Drawn = chart.properties(width=width, title=head)
    return sized if height is None else sized.properties(height=height)
