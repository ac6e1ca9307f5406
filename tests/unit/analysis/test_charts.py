"""Every number of a chart is the one that SQL counts over the same table."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import altair as alt
import duckdb
import numpy as np
import polars as pl
import pytest
from PIL import Image

from connectors.errors import JobError
from connectors.tables.schemas import errors_schema, usage_schema
from pipelines.analysis import charts

BEGAN = datetime(2026, 3, 1, 23, 59, 58, tzinfo=UTC)


def exchange(place: int) -> dict[str, Any]:
    """One of many: two steps and models, two runs, some failed, some without a price, over midnight."""
    failed, vector = place % 7 == 3, place % 3 == 0
    return {
        "run_id": "first" if place < 40 else "second",
        "job": "job",
        "step": "vector" if vector else "label",
        "provider": "test",
        "endpoint": "embeddings" if vector else "chat",
        "model": "e" if vector else "m",
        "http_status": 500 if failed else 200,
        "error_class": "server" if failed else None,
        "input_tokens": None if failed else 100 + place,
        "cached_tokens": None if failed or vector else 10,
        "output_tokens": None if failed else 0 if vector else 20 + place,
        "reasoning_tokens": None if failed or vector else 5,
        "cost_usd": None if place % 10 == 9 else 0.0 if failed else 0.001 * place,
        "started_at": BEGAN + timedelta(milliseconds=90 * place),
        "latency_ms": 40.0 + place * place % 97,
    }


USAGE = [exchange(place) for place in range(80)]


@pytest.fixture
def usage() -> pl.LazyFrame:
    """A usage table."""
    import pyarrow as pa

    whole = [{name: row.get(name) for name in usage_schema().names} for row in USAGE]
    frame = pl.from_arrow(pa.Table.from_pylist(whole, usage_schema()))
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()


def shown(chart: Any, layer: int | None = None) -> list[dict[str, Any]]:
    """The rows that a chart draws, or one of its layers."""
    spec = chart.to_dict()
    data = spec["data"] if layer is None or "data" in spec else spec["layer"][layer]["data"]
    rows: list[dict[str, Any]] = spec["datasets"][data["name"]]
    return rows


def counted(frame: pl.LazyFrame, sql: str) -> list[tuple[Any, ...]]:
    """What SQL says of the table, which is called `t`."""
    with duckdb.connect() as db:
        db.execute("set TimeZone = 'UTC'")
        db.register("t", frame.collect().to_arrow())
        return db.execute(sql).fetchall()


def subtitle(chart: Any) -> str:
    text: str = chart.to_dict()["title"]["subtitle"]
    return text


DAY = "strftime(started_at, '%Y-%m-%d')"


@pytest.mark.parametrize(("by", "column"), [("step", "step"), ("model", "model"), ("run_id", "run_id"), ("day", DAY)])
def test_cost_is_added_up_and_what_has_no_price_is_counted(usage: pl.LazyFrame, by: charts.By, column: str) -> None:
    chart = charts.cost(usage, by)
    result = [(row[by], row["cost_usd"], row["unpriced"]) for row in shown(chart, 0)]
    wanted = counted(
        usage, f"select {column}, sum(cost_usd), count(*) filter (cost_usd is null) from t group by 1 order by 1"
    )
    assert [(name, pytest.approx(usd), unpriced) for name, usd, unpriced in wanted] == result
    assert [row["cost_usd"] for row in shown(chart, 1)] == [usd for _, usd, _ in result]
    ((whole,),) = counted(usage, "select sum(cost_usd) from t")
    assert subtitle(chart) == f"${whole:.6f} in all; 8 exchanges have no known price and are not in it"


@pytest.mark.parametrize("by", ["step", "model"])
def test_each_token_is_in_one_part_and_the_parts_add_up(usage: pl.LazyFrame, by: charts.By) -> None:
    chart = charts.tokens(usage, by)
    wanted = counted(
        usage,
        f"""select {by}, sum(input_tokens) - sum(coalesce(cached_tokens, 0)) filter (input_tokens is not null),
        coalesce(sum(cached_tokens), 0), sum(output_tokens) - coalesce(sum(reasoning_tokens), 0),
        coalesce(sum(reasoning_tokens), 0), sum(input_tokens) + sum(output_tokens) from t group by 1 order by 1""",
    )
    result = {(row[by], row["kind"]): row["tokens"] for row in shown(chart, 0)}
    kinds = ("input", "cached input", "output", "reasoning")
    assert result == {(name, kind): n for name, *parts, _ in wanted for kind, n in zip(kinds, parts, strict=True) if n}
    assert [(row[by], row["tokens"]) for row in shown(chart, 1)] == [(name, whole) for name, *_, whole in wanted]
    assert subtitle(chart) == f"{sum(whole for *_, whole in wanted):,} tokens in all"


def test_latency_shows_percentiles_of_what_was_answered(usage: pl.LazyFrame) -> None:
    result = {(row["step"], row["percentile"]): row["milliseconds"] for row in shown(charts.latency(usage))}
    wanted = counted(
        usage,
        "select step, quantile_cont(latency_ms, [0.5, 0.9, 0.99]) from t where error_class is null group by 1",
    )
    names = ("median", "90 %", "99 %")
    assert result == {
        (step, name): pytest.approx(n) for step, three in wanted for name, n in zip(names, three, strict=True)
    }


def test_throughput_counts_the_replies_of_the_last_run_by_time(usage: pl.LazyFrame) -> None:
    chart = charts.throughput(usage)
    assert subtitle(chart) == "40 exchanges; a column is 0.1 s"
    wanted = counted(
        usage,
        """select epoch_ms(started_at + latency_ms * interval 1 millisecond) // 100 * 100,
        case when error_class is null then 'answered' else 'failed' end, count(*), count(*) / 0.1
        from t where run_id = 'second' group by all order by all""",
    )
    result = [
        (datetime.fromisoformat(row["at"]).timestamp() * 1000, row["outcome"], row["exchanges"], row["per_second"])
        for row in shown(chart)
    ]
    assert result == [(at, what, n, pytest.approx(rate)) for at, what, n, rate in wanted]
    assert all(row["top"] - row["foot"] == pytest.approx(row["per_second"]) for row in shown(chart))
    assert subtitle(charts.throughput(usage, "first")).startswith("40 exchanges")
    with pytest.raises(JobError, match="no exchange of third"):
        charts.throughput(usage, "third")


def test_a_long_run_is_drawn_in_wider_columns(usage: pl.LazyFrame) -> None:
    stretched = usage.with_columns(started_at=BEGAN + pl.duration(minutes=pl.int_range(pl.len())), run_id=pl.lit("one"))
    chart = charts.throughput(stretched)
    assert subtitle(chart) == "80 exchanges; a column is 60 s"
    assert len({row["at"] for row in shown(chart)}) <= charts.MAX_TIME_BARS


def test_errors_are_counted_by_class_and_step_and_a_key_of_that_name_is_none_of_them() -> None:
    import pyarrow as pa

    for key, kind, step in (("id", "error_class", "step"), ("step", "error_class", "error_step")):
        schema = errors_schema([pa.field(key, pa.string())])
        rows = [
            {key: str(n), kind: "length" if n % 4 else "input", step: "label" if n % 3 else "vector"} for n in range(20)
        ]
        frame = pl.from_arrow(pa.Table.from_pylist(rows, schema))
        assert isinstance(frame, pl.DataFrame)
        chart = charts.errors(frame.lazy())
        result = [(row["error_class"], row["step"], row["rows"]) for row in shown(chart, 0)]
        assert result == counted(frame.lazy(), f"select {kind}, {step}, count(*) from t group by all order by all")
        assert subtitle(chart) == "20 rows in errors"
        assert subtitle(charts.errors(frame.lazy().limit(0))) == "0 rows in errors"


RESULTS = pl.LazyFrame(
    {
        "id": range(12),
        "topic": ["a", "b", "a", None] * 3,
        "source": ["x"] * 8 + ["y"] * 4,
        "tags": [["p"], ["p", "q"], []] * 4,
        "vector": pl.Series([[n, n % 3, 1.0] for n in range(12)], dtype=pl.Array(pl.Float32, 3)),
    }
)


def test_label_shares_are_of_all_rows_or_of_each_group() -> None:
    chart = charts.label_shares(RESULTS, "topic")
    assert [(row["topic"], row["rows"], row["share"]) for row in shown(chart, 0)] == counted(
        RESULTS,
        "select coalesce(topic, '(null)'), count(*), count(*) / sum(count(*)) over () from t group by 1 order by 1",
    )
    grouped = shown(charts.label_shares(RESULTS, "topic", by="source"), 0)
    assert [(row["source"], row["topic"], row["share"]) for row in grouped] == counted(
        RESULTS,
        "select source, coalesce(topic, '(null)') as named, count(*) / sum(count(*)) over (partition by source) "
        "from t group by source, coalesce(topic, '(null)') order by all",
    )
    with pytest.raises(JobError, match="label_shares: no column topik; did you mean topic"):
        charts.label_shares(RESULTS, "topik")


def test_elements_of_a_list_are_counted_one_by_one() -> None:
    chart = charts.label_shares(RESULTS.filter(pl.col("tags").list.len() > 0), "tags")
    wanted = counted(RESULTS, "select tag, count(*) from (select unnest(tags) as tag from t) group by 1 order by 1")
    assert [(row["tags"], row["rows"]) for row in shown(chart, 0)] == wanted
    assert subtitle(chart) == "of 12 elements"


def test_the_components_are_those_of_numpys_covariance() -> None:
    vectors = np.random.default_rng(5).normal(size=(40, 6)).astype(np.float32) * [5, 3, 1, 1, 1, 1]
    places, parts = charts.principal(vectors.astype(np.float32))
    strengths = np.sort(np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64))))[::-1]
    assert parts == pytest.approx(list(strengths[:2] / strengths.sum()), rel=1e-4)
    assert np.var(places, axis=0, ddof=1) == pytest.approx(strengths[:2], rel=1e-4)


def test_an_embedding_draws_each_vector_once_with_its_label() -> None:
    chart = charts.embedding(RESULTS, "topic", tooltip=("id",))
    assert sorted(row["id"] for row in shown(chart)) == list(range(12))
    assert {row["topic"] for row in shown(chart)} == {"a", "b", None}
    assert subtitle(chart) == "12 of 12 vectors of 3 numbers, by their principal components"
    with pytest.raises(JobError, match="2 vectors in vector; run the job over at least 3 rows"):
        charts.embedding(RESULTS.limit(2))


def test_many_vectors_are_thinned_out_and_it_is_said() -> None:
    many = pl.LazyFrame(
        {"v": pl.Series(np.random.default_rng(1).normal(size=(4100, 2)), dtype=pl.Array(pl.Float32, 2))}
    )
    chart = charts.embedding(many)
    assert len(shown(chart)) == 1367
    assert subtitle(chart).startswith("1,367 of 4,100 vectors")


def test_colour_and_shape_together_tell_56_labels_apart() -> None:
    labels = [f"label {n:02d}" for n in range(56)]
    vectors = pl.Series([[n % 8, n // 8] for n in range(56)], dtype=pl.Array(pl.Float32, 2))
    coded = charts.embedding(pl.LazyFrame({"v": vectors, "label": labels}), "label").to_dict()["encoding"]
    assert coded["color"]["scale"]["domain"] == labels
    assert len(set(zip(coded["color"]["scale"]["range"], coded["shape"]["scale"]["range"], strict=True))) == 56


def colour_scale(chart: Any) -> dict[str, str]:
    """The colour of each value in the first layer of a chart."""
    spec = chart.to_dict()
    scale = (spec["layer"][0] if "layer" in spec else spec)["encoding"]["color"]["scale"]
    return dict(zip(scale["domain"], scale["range"], strict=True))


def test_a_value_has_the_same_colour_in_every_chart(usage: pl.LazyFrame) -> None:
    frame = pl.LazyFrame({"sentiment": ["positive", "negative", "neutral", "mixed"], "label": ["a", "b", "a", "b"]})
    four = colour_scale(charts.label_shares(frame, "sentiment", by="label"))
    two = colour_scale(charts.label_shares(frame.limit(2), "sentiment", by="label"))
    assert two == {name: four[name] for name in ("negative", "positive")}
    assert len(set(four.values())) == 4
    outcomes = colour_scale(charts.throughput(usage))
    kinds = colour_scale(charts.tokens(usage))
    assert outcomes == {name: charts.MEANINGS[name] for name in ("answered", "failed")}
    assert kinds == {name: charts.MEANINGS[name] for name in ("input", "cached input", "output", "reasoning")}
    # What failed has a colour of its own.
    assert outcomes["failed"] not in {*kinds.values(), *four.values(), outcomes["answered"]}


def test_charts_are_kept_as_pictures_and_can_be_set_side_by_side(usage: pl.LazyFrame) -> None:
    before, theme = alt.renderers.active, alt.theme.active
    try:
        charts.pictures(scale=2)
        both = charts.cost(usage) | charts.throughput(usage)
        result, size = alt.renderers.get()(both.to_dict())
    finally:
        alt.renderers.enable(before)
        alt.theme.enable(theme)
    picture = Image.open(io.BytesIO(result["image/png"]))
    assert picture.width == 2 * size["image/png"]["width"] > 1600
    colours = picture.convert("RGB").getcolors(1 << 16)
    assert colours is not None and len(colours) > 8
    # White behind it: readable on dark pages too.
    assert max(colours)[1] == (255, 255, 255)
