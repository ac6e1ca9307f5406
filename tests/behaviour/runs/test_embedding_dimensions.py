"""Embeddings of a model whose vectors have a length that nobody has named."""

import shutil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

STEPS = '[{name: v, endpoint: embeddings, provider: test, model: e, input: "{{ text }}"}]'


def vector_type(folder: Any) -> pa.DataType:
    part = next(path for path in sorted(folder.glob("*.parquet")) if pq.read_metadata(path).num_rows)
    return pq.read_schema(part).field("v").type


def test_the_length_is_learned_from_the_first_row_and_no_text_is_paid_twice(
    workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(20)
    report = cli.run(workspace.job(steps=STEPS))
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 20, 2)
    assert "dimensions" not in provider.seen[0][1]
    asked = [text for _, body in provider.seen for text in body["input"]]
    assert sorted(asked) == sorted(f"text {n}" for n in range(1, 21))
    assert vector_type(workspace.folder / "out" / "results") == pa.list_(pa.float32(), 4)


def test_it_is_known_from_then_on_and_without_the_ledger_by_the_sink(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(5)
    job = workspace.job(steps=STEPS)
    cli.run(job)
    provider.seen.clear()
    workspace.csv(6)
    assert cli.run(job)["requests"] == 1
    shutil.rmtree(workspace.folder / ".rowmill")
    report = cli.run(job)
    assert (report["exit_code"], report["requests"], report["rows_ok"]) == (0, 0, 6)
    assert len(provider.seen) == 1


def test_plan_and_validate_ask_nothing(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(5)
    job = workspace.job(steps=STEPS)
    assert cli("validate", job) == 0
    assert cli("plan", job) == 0
    assert provider.seen == []


def test_a_provider_that_gives_no_vector_stops_the_run_and_says_what_to_do(
    workspace: Any, provider: Any, cli: Any
) -> None:
    from aiohttp import web

    workspace.csv(5)
    provider.script = lambda path, body, count: web.json_response({"error": {"message": "no vectors"}}, status=400)
    assert cli("run", workspace.job(steps=STEPS)) == 3
    assert "no vectors" in cli.err
    assert "add dimensions: N" in cli.err
