"""Rows that become several on a Ray cluster: the children of a source row stay with one worker."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from tests.conftest import ReadTable, ScriptedProvider, Workspace
from tests.support.local_steps import ASK, FOLD, PIECES, refuse

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("steps", [(PIECES, ASK), (PIECES, ASK, FOLD)], ids=["each", "fold"])
def test_workers_finish_whole_source_rows_and_the_next_run_sends_what_failed(
    workspace: Workspace, provider: ScriptedProvider, ray_run: Callable[..., Any], read: ReadTable, steps: Any
) -> None:
    sizes = {number: number % 6 for number in range(1, 701)}
    words = {number: [f"w{number}-{index}" for index in range(size)] for number, size in sizes.items()}
    lines = [orjson.dumps({"id": number, "words": some}).decode() for number, some in words.items()]
    workspace.write("docs.jsonl", "\n".join(lines))
    job = workspace.job(source="{jsonl: docs.jsonl, key: id}", steps=f"[{', '.join(steps)}]")
    provider.script = refuse("w5-1", "w5-3")
    total = sum(sizes.values())
    report = ray_run(job).ended()
    assert (report["rows"], report["rows_ok"], report["rows_failed"]) == (700, 699, 1)
    assert report["requests"] == total
    errors = read(workspace.folder / "out", "errors")
    assert len(errors) == (1 if FOLD in steps else 2)
    provider.script = refuse()
    workspace.write("docs.jsonl", "\n".join(lines).replace("w5-3", "other").replace("w5-1", "more"))
    again = ray_run(job).ended()
    assert (again["rows_ok"], again["requests"]) == (700, 2)
    words[5][1], words[5][3] = "more", "other"
    rows = read(workspace.folder / "out")
    if FOLD in steps:
        assert {row["id"]: row["facts"] or [] for row in rows} == {
            number: [word.upper() for word in some] for number, some in words.items()
        }
    else:
        assert [(row["id"], row["piece_index"], row["fact"]) for row in rows] == [
            (number, index, word.upper()) for number, some in words.items() for index, word in enumerate(some)
        ]
