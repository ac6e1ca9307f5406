"""OpenTelemetry on a Ray cluster: the driver exports every exchange of its workers once."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.behaviour.ray.conftest import OWN

pytestmark = pytest.mark.ray

DRIVER = """
import json, sys
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans, reader, traces = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
traces.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(traces)
metrics.set_meter_provider(MeterProvider([reader]))

from pipelines.cli import exit_code_of
code = exit_code_of(sys.argv[1:])
points = {}
for resource in reader.get_metrics_data().resource_metrics:
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            values = [getattr(point, "sum", getattr(point, "value", 0)) for point in metric.data.data_points]
            counts = [getattr(point, "count", 1) for point in metric.data.data_points]
            points[metric.name] = (sum(values), sum(counts))
finished = spans.get_finished_spans()
print(json.dumps({
    "points": points,
    "names": sorted({span.name for span in finished}),
    "spans": len(finished),
    "parents": len({span.parent.span_id for span in finished if span.parent}),
    "models": sorted({span.attributes["gen_ai.request.model"] for span in finished if span.parent}),
    "errors": sum("error.type" in span.attributes for span in finished),
}))
sys.exit(code)
"""


@pytest.fixture
def observed_run(cluster: str) -> Any:
    """Runs a job on the cluster with an SDK in its process; returns (report, collected spans)."""

    def run(job: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, "run", str(job), "--engine", "ray", "--json", "--quiet"],
            capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, **OWN, "RAY_ADDRESS": cluster},
        )  # fmt: skip
        report, collected = map(json.loads, done.stdout.splitlines())
        assert report["exit_code"] == done.returncode, done.stderr
        return report, collected

    return run


def test_every_exchange_of_every_worker_is_exported_once(workspace: Any, provider: Any, observed_run: Any) -> None:
    from tests.conftest import error_reply

    workspace.csv(1500)
    provider.latency = 0.01
    provider.script = lambda path, body, count: error_reply(500, "text 1 fails") if count % 100 == 7 else None
    report, collected = observed_run(workspace.job())
    assert (report["exit_code"], report["rows_ok"]) == (0, 1500)
    assert report["retries"] >= 10
    exchanges = report["requests"]
    assert (collected["names"], collected["spans"], collected["parents"]) == (["chat m", "run job"], exchanges + 1, 1)
    assert (collected["models"], collected["errors"]) == (["m"], report["retries"])
    points = collected["points"]
    assert points["rowmill.requests"][0] == exchanges
    assert points["gen_ai.client.operation.duration"][1] == exchanges
    assert points["rowmill.limiter.wait"][1] == exchanges
    assert points["rowmill.rows"][0] == 1500
    assert points["rowmill.cost"][0] == pytest.approx(report["cost_usd"])
    assert points["gen_ai.client.token.usage"][0] == report["input_tokens"] + report["output_tokens"]


def test_spans_name_the_provider_in_a_run_of_several_providers(
    workspace: Any, provider: Any, observed_run: Any
) -> None:
    file = workspace.folder / "rowmill.yaml"
    address = f'"{provider.base_url}"'
    other = f"providers:\n  pool: {{members: [test, other]}}\n  other: {{base_url: {address}}}\n"
    file.write_text(file.read_text().replace("providers:\n", other))
    workspace.csv(300)
    steps = '[{name: answer, endpoint: chat, provider: pool, model: m, messages: [{user: "{{ text }}"}]}]'
    report, collected = observed_run(workspace.job(steps=steps))
    assert (report["exit_code"], report["requests"]) == (0, 300)
    assert collected["points"]["rowmill.requests"][0] == 300
