"""Row selection: rows of a large source are compared with the sink's in parts, by numbers in place of texts."""

import json
import random
from collections.abc import Mapping

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.preparation import row_selection
from pipelines.preparation.row_fingerprints import digest_number, fingerprint_number, swapped_bytes
from tests.conftest import Cli, ReadTable, ScriptedProvider, Workspace


def test_a_digest_is_the_same_number_as_its_hexadecimal_text() -> None:
    text = "cast(range as VARCHAR)"
    numbers = f"{swapped_bytes(digest_number(text))}, {fingerprint_number(f'md5({text})')}"
    with duckdb.connect() as db:
        pairs = db.sql(f"select {numbers} from range(10000)").fetchall()
    assert all(number == of_text for number, of_text in pairs)


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.float64()], ids=str)
def test_rows_in_parts_have_the_same_states(
    workspace: Workspace,
    provider: ScriptedProvider,
    cli: Cli,
    read: ReadTable,
    monkeypatch: pytest.MonkeyPatch,
    kind: pa.DataType,
) -> None:
    monkeypatch.setattr(row_selection, "ROWS_PER_JOIN", 100)
    numbers = [number * (10**12 if number % 3 else -1) for number in range(1000)]

    def write(texts: Mapping[int, str]) -> None:
        rows = random.Random(1).sample(list(texts.items()), len(texts))
        keys = pa.array([number for number, _ in rows], pa.int64()).cast(kind)
        pq.write_table(pa.table({"id": keys, "text": [text for _, text in rows]}), workspace.folder / "rows.parquet")

    def states() -> list[int]:
        assert cli("plan", job, "--json") == 0, cli.err
        plan = json.loads(cli.out)
        return [plan[name] for name in ("rows", "new", "changed", "done")]

    job = workspace.job(source="{parquet: rows.parquet, key: id}", sink="{parquet: out, deleted: remove}")
    write({number: f"text {number % 7}" for number in numbers[:990]})
    assert states() == [990, 990, 0, 0]
    assert cli.run(job)["rows_ok"] == 990
    assert (states(), cli.run(job)["requests"]) == ([990, 0, 0, 990], 0)
    # Ten rows are new, twenty have changed, five have left.
    texts = {number: f"text {number % 7}" for number in numbers[5:]} | dict.fromkeys(numbers[100:120], "changed")
    write(texts)
    assert states() == [995, 10, 20, 965]
    assert cli.run(job)["rows_ok"] == 995
    assert states() == [995, 0, 0, 995]
    rows = {int(float(row["id"])): row["answer"] for row in read(workspace.folder / "out")}
    assert rows == {number: text.upper() for number, text in texts.items()}
    write({**texts, numbers[1]: "again"})
    monkeypatch.setattr(row_selection, "ROWS_PER_JOIN", 10**6)
    assert states() == [996, 1, 0, 995]


def test_a_key_that_occurs_twice_is_found_in_parts(
    workspace: Workspace, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_selection, "ROWS_PER_JOIN", 100)
    keys = [*range(1000), 500]
    pq.write_table(pa.table({"id": keys, "text": list(map(str, keys))}), workspace.folder / "rows.parquet")
    assert cli("run", workspace.job(source="{parquet: rows.parquet, key: id}")) == 2
    assert "id is not unique: 500 occurs 2 times (1 row too many)" in cli.err
