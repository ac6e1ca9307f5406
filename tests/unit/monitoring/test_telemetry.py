"""OpenTelemetry: the metrics and traces of a run, and that nothing is imported unless it is turned on."""

import gzip
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from connectors.emulator.server import EmulatorServer
from connectors.records import RowError
from pipelines.runtime.provider_api import ProviderApi, RequestRefused
from tests.conftest import error_reply
from tests.support.forked import Forked


class Collected:
    """The spans and metrics that an SDK in this process has collected."""

    def __init__(self) -> None:
        self.spans = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.traces = TracerProvider()
        self.traces.add_span_processor(SimpleSpanProcessor(self.spans))
        self.meters = MeterProvider([self.reader])

    def points(self, name: str) -> list[Any]:
        """The data points of a metric."""
        data = self.reader.get_metrics_data()
        assert data is not None
        matching = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics if m.name == name]
        return [point for metric in matching for point in metric.data.data_points]


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collected]:
    """An SDK that the process set up before the run."""
    sdk = Collected()
    monkeypatch.setattr(trace, "get_tracer", lambda name: sdk.traces.get_tracer(name))
    monkeypatch.setattr(metrics, "get_meter", lambda name: sdk.meters.get_meter(name))
    yield sdk
    sdk.traces.shutdown()
    sdk.meters.shutdown()


def test_each_exchange_is_a_span_below_that_of_the_run(
    workspace: Any, provider: Any, cli: Any, collected: Collected
) -> None:
    workspace.csv(2)
    provider.script = lambda path, body, count: error_reply(500, "text 1 fails") if count == 0 else None
    report = cli.run(workspace.job(limits="{concurrency: 1}"))
    *exchanges, run = collected.spans.get_finished_spans()
    assert (run.name, run.attributes["rowmill.run_id"], run.attributes["rowmill.rows_ok"]) == (
        "run job", report["run_id"], 2,
    )  # fmt: skip
    assert run.attributes["rowmill.cost_usd"] == pytest.approx(report["cost_usd"])
    assert [span.name for span in exchanges] == ["chat m"] * 3
    assert {span.parent.span_id for span in exchanges} == {run.context.span_id}
    failed, answered = exchanges[0], exchanges[1]
    assert (failed.attributes["error.type"], failed.attributes["http.response.status_code"]) == ("server", 500)
    assert "text 1" not in failed.to_json()
    assert answered.end_time > answered.start_time
    facts = dict(answered.attributes)
    assert facts.pop("server.port") > 0
    assert facts.pop("rowmill.request_id").startswith("req-")
    assert facts == {
        "rowmill.job": "job", "rowmill.step": "answer", "rowmill.provider": "test", "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "test", "gen_ai.request.model": "m", "gen_ai.response.model": "m",
        "server.address": "127.0.0.1", "http.response.status_code": 200, "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5, "gen_ai.response.finish_reasons": ("stop",), "rowmill.requests_in_exchange": 1,
    }  # fmt: skip


def test_the_metrics_add_up_to_the_report(workspace: Any, provider: Any, cli: Any, collected: Collected) -> None:
    workspace.csv(10)
    provider.script = lambda path, body, count: error_reply(400, "no") if "text 1'" in str(body) else None
    report = cli.run(workspace.job())
    assert report["exit_code"] == 1
    assert sum(point.value for point in collected.points("rowmill.requests")) == report["requests"] == 10
    assert sum(point.value for point in collected.points("rowmill.cost")) == pytest.approx(report["cost_usd"])
    rows = {point.attributes["rowmill.outcome"]: point.value for point in collected.points("rowmill.rows")}
    assert rows == {"answered": 9, "failed": 1}
    tokens = {p.attributes["gen_ai.token.type"]: p.sum for p in collected.points("gen_ai.client.token.usage")}
    assert tokens == {"input": report["input_tokens"], "output": report["output_tokens"]}
    duration = collected.points("gen_ai.client.operation.duration")
    assert sum(point.count for point in duration) == 10
    assert {point.attributes.get("error.type") for point in duration} == {None, "bad_request"}
    assert duration[0].explicit_bounds[0] == 0.01
    assert sum(point.count for point in collected.points("rowmill.limiter.wait")) == 10


def test_rows_that_need_no_request_are_counted_apart(
    workspace: Any, provider: Any, cli: Any, collected: Collected
) -> None:
    workspace.csv(3)
    job = workspace.job()
    cli.run(job)
    cli.run(job)
    rows = {point.attributes["rowmill.outcome"]: point.value for point in collected.points("rowmill.rows")}
    assert rows == {"answered": 3, "reused": 3}


@pytest.fixture
def by_batch(workspace: Any, provider: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The workspace's provider `test` takes batches: it is an embedded one."""
    monkeypatch.setattr("pipelines.batch.lifecycle.FIRST_POLL_SECONDS", 0.02)
    monkeypatch.setattr("pipelines.batch.dispatcher.QUIET_SECONDS", 0.1)
    monkeypatch.setattr("pipelines.batch.builder.MAX_FILE_LINES", 10)
    with EmulatorServer() as server:
        file = workspace.folder / "rowmill.yaml"
        file.write_text(file.read_text().replace(provider.base_url, server.base_url).replace("  m:", "  gpt-4o-mini:"))
        yield


STEPS = '[{name: answer, endpoint: chat, provider: test, model: gpt-4o-mini, messages: [{user: "{{ text }}"}]}]'


def test_a_batch_is_a_span_with_its_stages_and_each_line_an_exchange(
    workspace: Any, by_batch: None, cli: Any, collected: Collected
) -> None:
    workspace.csv(20)
    report = cli.run(workspace.job(delivery="batch", steps=STEPS))
    assert (report["exit_code"], report["requests"]) == (0, 20)
    spans = collected.spans.get_finished_spans()
    run = spans[-1]
    wholes = [span for span in spans if span.name == "batch"]
    assert {span.parent.span_id for span in wholes} == {run.context.span_id}
    for whole in wholes:
        stages = [span for span in spans if span.parent and span.parent.span_id == whole.context.span_id]
        assert [span.name for span in stages] == [
            "batch upload",
            "batch create",
            "batch wait",
            "batch fetch",
            "batch clean",
        ]
        times = [time for span in stages for time in (span.start_time, span.end_time)]
        assert [whole.start_time, *times] == sorted([whole.start_time, *times])
        assert whole.end_time == stages[-1].end_time
        facts = whole.attributes
        assert (facts["rowmill.batch.lines"], facts["rowmill.batch.status"]) == (10, "completed")
        assert facts["rowmill.batch.id"].startswith("batch_")
    lines = [span for span in spans if span.name == "chat gpt-4o-mini"]
    assert (len(lines), {span.parent.span_id for span in lines}) == (20, {run.context.span_id})
    assert all(
        span.end_time > span.start_time and span.attributes["http.response.status_code"] == 200 for span in lines
    )
    assert sum(point.value for point in collected.points("rowmill.requests")) == 20
    assert sum(point.value for point in collected.points("rowmill.cost")) == pytest.approx(report["cost_usd"])
    tokens = {p.attributes["gen_ai.token.type"]: p.sum for p in collected.points("gen_ai.client.token.usage")}
    assert tokens == {"input": report["input_tokens"], "output": report["output_tokens"]}
    rows = {point.attributes["rowmill.outcome"]: point.value for point in collected.points("rowmill.rows")}
    assert rows == {"answered": 20}
    counts = {p.attributes["rowmill.batch.stage"]: p.count for p in collected.points("rowmill.batch.stage.duration")}
    assert counts == dict.fromkeys(("upload", "create", "wait", "fetch", "clean"), 2)


def test_a_stage_of_a_batch_that_fails_says_so(
    workspace: Any, by_batch: None, cli: Any, collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*given: Any) -> None:
        raise RequestRefused(RowError("access_denied", "text 1 is secret", 401))

    monkeypatch.setattr(ProviderApi, "create_batch", refused)
    workspace.csv(5)
    assert cli.run(workspace.job(delivery="batch", steps=STEPS))["exit_code"] == 3
    spans = {span.name: span for span in collected.spans.get_finished_spans()}
    assert spans["batch create"].attributes["error.type"] == "access_denied"
    assert spans["batch create"].status.description == "access_denied"
    assert "rowmill.batch.status" not in spans["batch"].attributes
    assert not any("secret" in span.to_json() for span in spans.values() if span.name != "run job")


def ran(workspace: Any, **variables: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a job in a separate process, which prints what it imported of OpenTelemetry."""
    code = (
        "import sys; from pipelines.cli import exit_code_of; code = exit_code_of(sys.argv[1:]); "
        "print(sorted(n for n in sys.modules if n.startswith('opentelemetry'))[:1]); sys.exit(code)"
    )
    return Forked(code, "run", "job.yaml", "--json", "--quiet", cwd=workspace.folder, **variables).ended()


def test_nothing_is_imported_unless_telemetry_is_turned_on(workspace: Any, provider: Any) -> None:
    workspace.csv(1)
    workspace.job()
    for variables in ({}, {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "console"}):
        code, out, err = ran(workspace, **variables)
        assert (code, out.splitlines()[-1]) == (0, "[]"), err


def test_a_variable_is_enough_to_export(workspace: Any, provider: Any) -> None:
    workspace.csv(2)
    workspace.job()
    variables = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "console", "OTEL_SERVICE_NAME": "nightly"}
    code, out, err = ran(workspace, **variables)
    assert code == 0
    assert json.loads(out.splitlines()[0])["rows_ok"] == 2
    assert err.count('"name": "chat m"') == 2
    assert '"name": "gen_ai.client.token.usage"' in err
    assert '"service.name": "nightly"' in err


def test_spans_and_metrics_reach_a_collector(workspace: Any, provider: Any) -> None:
    seen: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            seen.append((self.path, gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is logged."""

    workspace.csv(1)
    workspace.job()
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        code, _, err = ran(workspace, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert (code, err) == (0, "")
    assert sorted({path for path, _ in seen}) == ["/v1/metrics", "/v1/traces"]
    assert any(b"chat m" in body for path, body in seen if path == "/v1/traces")
    assert any(b"gen_ai.client.token.usage" in body for path, body in seen if path == "/v1/metrics")
