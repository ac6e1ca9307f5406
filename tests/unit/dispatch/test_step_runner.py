"""The step runner with scripted outcomes: finished rows, failures, repairs, fallbacks and stragglers."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from msgspec.structs import replace

from connectors.records import Request, Row, RowError, Values
from pipelines.dispatch.chunks import Chunk
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.dispatch.dispatch_state import DispatchState
from pipelines.dispatch.pending_requests import PendingRequests
from pipelines.dispatch.request_types import RequestGroup, Route
from pipelines.dispatch.step_runner import RunStep, StepRunner
from pipelines.ledger.ledger import Ledger
from tests.unit.dispatch.conftest import make_route, wait_for


class UpperEndpoint:
    """Asks for a column in upper case; an answer in lower case is repaired once."""

    def __init__(self, source: str, output: str, mode: str = "schema") -> None:
        self.media: dict[str, Any] = {}
        self.input_columns = frozenset({source})
        self.fields = (pa.field(output, pa.string()),)
        self._source = source
        self.mode = mode

    def requests(self, rows: Sequence[Row], keys: Sequence[str]) -> list[Request | RowError]:
        return [self.request(row, key) for row, key in zip(rows, keys, strict=True)]

    def request(self, row: Row, key: str) -> Request | RowError:
        text = row[self._source]
        if text == "invalid":
            return RowError("input", "invalid")
        body = f"{self.mode} {text}".encode()
        return Request(body.ljust(16)[:16], body, 0, None, (key,))

    def group_requests(self, requests: Sequence[Request]) -> Iterator[tuple[Request, ...]]:
        return ((request,) for request in requests)

    def values(self, answer: bytes) -> Values | RowError:
        return (answer.decode(),) if answer.isupper() else RowError("invalid_answer", "lower case")

    def repair(self, request: Request, answer: bytes, problem: RowError) -> Request | None:
        if request.repair_of is not None:
            return None
        former = Request(b"former".ljust(16), b"former", 0, None, request.keys, repair_of=request.fingerprint)
        return replace(former, fingerprint=b"repair".ljust(16), body=b"repair", former=former)

    def fallback_mode(self, problem: RowError) -> str | None:
        modes = {"schema": "json_object", "json_object": "prompt"}
        return modes.get(self.mode) if problem.message == "no schema" else None

    def arrays(self, values: Sequence[Values | None]) -> list[pa.Array]:
        return [pa.array([None if one is None else one[0] for one in values], pa.string())]

    def expiring_urls(self, answer: bytes) -> Sequence[str]:
        return ()

    def files(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        return ()


class ScriptedDispatcher:
    """A dispatcher that resolves each request with `reply(body)`; None leaves it pending."""

    def __init__(self, pending: PendingRequests, reply: Callable[[bytes], bytes | RowError | None]) -> None:
        self.pending = pending
        self.state = pending.state
        self.has_capacity = True
        self.sent: list[bytes] = []
        self.open: list[RequestGroup] = []
        self._reply = reply
        pending.enqueue = self._send

    def _send(self, group: RequestGroup) -> None:
        self.sent.append(group.requests[0].body)
        result = self._reply(group.requests[0].body)
        if result is None:
            self.open.append(group)
        else:
            # As from an exchange: after the submission has returned.
            asyncio.get_running_loop().call_soon(self.pending.resolve, group, [result])

    def register_route(self, route: Route) -> None:
        """Nothing to do."""

    def stop(self, reason: str) -> None:
        self.state.stop(reason)


def upper(body: bytes) -> bytes:
    return body.split()[-1].upper()


class Runner:
    """A step runner with its finished chunks."""

    def __init__(self, ledger: Ledger, reply: Callable[[bytes], Any], folder: Path, mode_is_known: bool = True) -> None:
        counters = RunCounters(steps={"first": StepCounters(), "second": StepCounters()})
        self.dispatcher = ScriptedDispatcher(PendingRequests(ledger, counters, DispatchState(), "run"), reply)
        self.finished: list[Chunk] = []
        self.learned: list[str] = []
        self.steps = [
            self._step("first", UpperEndpoint("text", "loud"), mode_is_known),
            self._step("second", UpperEndpoint("loud", "louder"), True),
        ]
        dispatcher: Any = self.dispatcher
        media: Any = None

        async def store_answer(route: Route, request: Request, answer: bytes) -> None:
            raise AssertionError("no answer has links")

        self.runner = StepRunner(
            self.steps, dispatcher, "run", self.finished.append, False, media, store_answer, folder
        )

    def _step(self, name: str, endpoint: Any, mode_is_known: bool) -> RunStep:
        route = make_route()
        route.step, route.endpoint, route.is_last_step = name, endpoint, name == "second"

        def fall_back(route: Route, mode: str) -> Route:
            changed: Any = UpperEndpoint("text", "loud", mode)
            return Route(**{name: getattr(route, name) for name in Route.__slots__} | {"endpoint": changed})

        async def learn_mode(mode: str) -> None:
            self.learned.append(mode)

        return RunStep(route, None, fall_back, learn_mode, "m", is_mode_known=mode_is_known)

    def submit(self, *texts: str) -> None:
        keys = [str(index) for index in range(len(texts))]
        table = pa.table({"text": list(texts), "_key": keys})
        self.runner.submit(Chunk(table, keys, [[] for _ in keys], [False] * len(keys)))

    async def run(self, *texts: str) -> None:
        self.submit(*texts)
        await self.runner.join()

    def results(self) -> dict[str, str]:
        """Return the last column of the finished rows by key."""
        return {
            key: text
            for chunk in self.finished
            if "louder" in chunk.table.column_names
            for key, text in zip(chunk.keys, chunk.table.column("louder").to_pylist(), strict=True)
        }

    def failures(self) -> dict[str, tuple[str, str]]:
        """Return (step, error class) of the failed rows by key."""
        failures: dict[str, tuple[str, str]] = {}
        for chunk in self.finished:
            keys = [key for table in chunk.failed for key in table.column("_key").to_pylist()]
            failures |= {keys[one.row]: (one.step, one.error.error_class) for one in chunk.failures}
        return failures


async def test_rows_go_through_all_steps_and_equal_rows_share_a_request(ledger: Ledger, tmp_path: Path) -> None:
    runner = Runner(ledger, upper, tmp_path)
    await runner.run("a", "b", "a")
    assert runner.results() == {"0": "A", "1": "B", "2": "A"}
    assert sorted(runner.dispatcher.sent) == [b"schema A", b"schema B", b"schema a", b"schema b"]
    assert (runner.runner.open_rows, runner.runner.open_bytes, runner.runner.rendering) == (0, 0, 0)
    (chunk,) = runner.finished
    assert (chunk.asked, [len(answers) for answers in chunk.answers]) == ([True] * 3, [2] * 3)


async def test_rows_that_fail_do_not_reach_the_next_step(ledger: Ledger, tmp_path: Path) -> None:
    def reply(body: bytes) -> bytes | RowError:
        return RowError("bad_request", "no") if body in (b"schema b", b"schema C") else upper(body)

    runner = Runner(ledger, reply, tmp_path)
    await runner.run("a", "b", "c", "invalid")
    assert runner.results() == {"0": "A"}
    assert runner.failures() == {
        "1": ("first", "bad_request"),
        "2": ("second", "bad_request"),
        "3": ("first", "input"),
    }


@pytest.mark.parametrize(("repaired", "results"), [(b"FINE", {"0": "FINE"}), (b"still lower", {})])
async def test_an_invalid_answer_gets_one_repair(
    ledger: Ledger, tmp_path: Path, repaired: bytes, results: dict[str, str]
) -> None:
    runner = Runner(ledger, lambda body: {b"schema a": b"lower", b"repair": repaired}.get(body, upper(body)), tmp_path)
    await runner.run("a")
    assert runner.results() == results
    assert runner.dispatcher.sent[:2] == [b"schema a", b"repair"]
    assert runner.failures() == ({} if results else {"0": ("first", "invalid_answer")})


async def test_a_repair_that_an_earlier_release_has_paid_for_is_not_sent_again(ledger: Ledger, tmp_path: Path) -> None:
    route_id = ledger.register_route("run-1", "job", "first", "local", "chat", "m")
    await ledger.store_answer(b"former".ljust(16), route_id, b"{}", b"FINE")
    runner = Runner(ledger, lambda body: b"lower" if body == b"schema a" else upper(body), tmp_path)
    await runner.run("a")
    assert runner.results() == {"0": "FINE"}
    assert runner.dispatcher.sent == [b"schema a", b"schema FINE"]
    (chunk,) = runner.finished
    assert chunk.answers[0][0] == b"former".ljust(16)


def refusing(*modes: str, rows: str = "abc") -> Callable[[bytes], bytes | RowError]:
    """Return the replies of a server that refuses these modes, for some of the rows."""

    def reply(body: bytes) -> bytes | RowError:
        mode, _, text = body.decode().partition(" ")
        return RowError("bad_request", "no schema") if mode in modes and text in rows else upper(body)

    return reply


async def test_a_refused_structured_mode_is_replaced_after_the_first_row_has_probed_it(
    ledger: Ledger, tmp_path: Path
) -> None:
    runner = Runner(ledger, refusing("schema", "json_object"), tmp_path, mode_is_known=False)
    await runner.run("a", "b", "c")
    assert runner.results() == {"0": "A", "1": "B", "2": "C"}
    assert [body for body in runner.dispatcher.sent if body.islower()] == [
        b"schema a", b"json_object a", b"prompt a", b"prompt b", b"prompt c",
    ]  # fmt: skip
    assert runner.steps[0].is_mode_known
    assert runner.learned == ["prompt"]
    assert runner.dispatcher.pending.counters.notes == ["first: test refuses the schema for m; the prompt shows it"]


async def test_a_mode_that_is_refused_for_one_row_alone_stays(ledger: Ledger, tmp_path: Path) -> None:
    runner = Runner(ledger, refusing("schema", rows="b"), tmp_path)
    await runner.run("a", "b")
    await runner.run("c")
    assert runner.results() == {"0": "C", "1": "B"}
    sent = [body for body in runner.dispatcher.sent if body.islower()]
    assert sent == [b"schema a", b"schema b", b"json_object b", b"schema c"]
    assert (runner.learned, runner.dispatcher.pending.counters.notes) == ([], [])


async def test_no_mode_is_learned_from_a_row_that_every_mode_refuses(ledger: Ledger, tmp_path: Path) -> None:
    runner = Runner(ledger, refusing("schema", "json_object", "prompt", rows="a"), tmp_path, mode_is_known=False)
    await runner.run("a", "b")
    assert (runner.results(), runner.failures()) == ({"1": "B"}, {"0": ("first", "bad_request")})
    assert [body for body in runner.dispatcher.sent if body.islower()][-1] == b"schema b"
    assert (runner.learned, runner.dispatcher.pending.counters.notes) == ([], [])


async def test_finished_rows_do_not_wait_for_a_straggler(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.dispatch.step_runner.STRAGGLER_SECONDS", 0.01)
    runner = Runner(ledger, lambda body: None if body == b"schema b" else upper(body), tmp_path)
    runner.submit("a", "b")
    await wait_for(lambda: runner.results() == {"0": "A"})
    assert runner.runner.open_rows == 1
    runner.dispatcher.pending.resolve(runner.dispatcher.open[0], [b"B"])
    await runner.runner.join()
    assert runner.results() == {"0": "A", "1": "B"}
    assert runner.runner.open_rows == 0


async def test_after_a_stop_rows_that_were_never_sent_are_left_out(ledger: Ledger, tmp_path: Path) -> None:
    runner = Runner(ledger, lambda body: None if body == b"schema b" else upper(body), tmp_path)
    runner.submit("a", "b")
    await wait_for(lambda: runner.dispatcher.open)
    runner.dispatcher.stop("interrupted")
    await runner.runner.join()
    assert (runner.results(), runner.failures(), runner.runner.open_rows) == ({}, {}, 0)


async def test_a_defect_in_a_step_stops_the_run(ledger: Ledger, tmp_path: Path) -> None:
    def broken(body: bytes) -> bytes:
        raise ValueError("a defect")

    runner = Runner(ledger, broken, tmp_path)
    await runner.run("a")
    await asyncio.sleep(0)
    assert str(runner.runner.failure) == "a defect"
    assert runner.dispatcher.state.stop_reason == "ValueError: a defect"


@pytest.mark.parametrize(("is_own", "expected"), [(True, "READ EARLY"), (False, "HELLO")], ids=["own", "another"])
async def test_values_that_were_read_early_are_used_by_the_step_that_read_them(
    ledger: Ledger, tmp_path: Path, is_own: bool, expected: str
) -> None:
    runner = Runner(ledger, upper, tmp_path)
    other: Any = UpperEndpoint("text", "other")

    def send(group: RequestGroup) -> None:
        route = group.route if is_own else replace(group.route, endpoint=other)
        answered = RequestGroup(route, group.requests)
        asyncio.get_running_loop().call_soon(
            runner.dispatcher.pending.resolve, answered, [upper(group.requests[0].body)], [("READ EARLY",)]
        )

    runner.dispatcher.pending.enqueue = send
    await runner.run("hello")
    (chunk,) = runner.finished
    assert chunk.table.column("loud").to_pylist() == [expected]
