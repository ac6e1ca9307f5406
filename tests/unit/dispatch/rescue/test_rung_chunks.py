"""Rungs in the step runner: their rows wait for nobody, and nobody waits for them."""

from pathlib import Path

import pytest

from connectors.records import RowError
from pipelines.dispatch.rescue.ladder import Ladder
from pipelines.ledger.ledger import Ledger
from tests.unit.dispatch.conftest import wait_for
from tests.unit.dispatch.test_step_runner import Runner, UpperEndpoint, upper

CUT = RowError("length", "cut")


def with_rung(runner: Runner) -> Runner:
    """Give the first step a rung for answers that are cut off."""
    first = runner.steps[0]
    rung = runner._step("first", UpperEndpoint("text", "loud", "rung"), True)
    for one in (first, rung):
        one.ladder, one.rungs, one.rung_column = Ladder((frozenset({"length"}),), (1,)), [rung], "first_rung"
    return runner


def rungs(runner: Runner) -> dict[str, int]:
    return {
        key: rung
        for chunk in runner.finished
        if chunk.keys
        for key, rung in zip(chunk.keys, chunk.table.column("first_rung").to_pylist(), strict=True)
    }


async def test_rows_that_a_rung_answers_go_on_with_its_place(ledger: Ledger, tmp_path: Path) -> None:
    runner = with_rung(
        Runner(ledger, lambda body: CUT if body in (b"schema b", b"schema c", b"rung c") else upper(body), tmp_path)
    )
    await runner.run("a", "b", "c", "b")
    assert runner.results() == {"0": "A", "1": "B", "3": "B"}
    assert rungs(runner) == {"0": 0, "1": 1, "3": 1}
    assert runner.failures() == {"2": ("first", "length")}
    assert (runner.runner.open_rows, runner.runner.open_bytes, runner.runner.rendering) == (0, 0, 0)
    counters = runner.dispatcher.pending.counters
    # Each row counts once in the step, and only the last outcome of the rung that failed as a failure.
    assert (counters.steps["first"].asked, counters.steps["first"].answered, counters.steps["first"].failed) == (
        4,
        4,
        1,
    )
    assert (counters.settled, counters.settled_failed) == (4, 1)


@pytest.mark.parametrize("is_retrying", [False, True])
async def test_a_straggler_of_a_rung_stays_at_the_rung(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_retrying: bool
) -> None:
    monkeypatch.setattr("pipelines.dispatch.step_runner.STRAGGLER_SECONDS", 0.01)
    runner = with_rung(
        Runner(
            ledger,
            lambda body: CUT if body.startswith(b"schema b") else None if body == b"rung bb" else upper(body),
            tmp_path,
        )
    )
    runner.runner._is_retrying = is_retrying
    runner.submit("a", "b", "bb")
    await wait_for(lambda: len(runner.results()) == 2)
    (group,) = runner.dispatcher.open
    runner.dispatcher.pending.resolve(group, [b"BB"])
    await runner.runner.join()
    assert runner.results() == {"0": "A", "1": "B", "2": "BB"}
    assert rungs(runner) == {"0": 0, "1": 1, "2": 1}
    sent = runner.dispatcher.sent
    assert [sent.count(body) for body in (b"schema bb", b"rung bb", b"schema b", b"rung b")] == [1, 1, 1, 1]


async def test_no_rung_is_sent_after_the_run_has_stopped(ledger: Ledger, tmp_path: Path) -> None:
    def reply(body: bytes) -> RowError:
        runner.dispatcher.stop("budget")
        return CUT

    runner = with_rung(Runner(ledger, reply, tmp_path))
    await runner.run("a")
    assert runner.dispatcher.sent == [b"schema a"]
    assert (runner.failures(), runner.results()) == ({}, {})
    assert runner.runner.open_rows == 0
