"""OpenTelemetry: metrics and traces of a run, by the semantic conventions for generative AI (extra `rowmill[otel]`).

Active if OpenTelemetry is installed and either an OTEL_ variable names an exporter or an endpoint, or this process has
set up an SDK. It is not imported otherwise.
https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

import asyncio
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.dispatch.request_types import BatchStage, RouteInfo
from pipelines.ledger.entries import SettledExchange
from pipelines.ledger.ledger import now_us
from pipelines.monitoring.run_view import FollowRun, RunView
from pipelines.preparation.prepared_job import PreparedJob
from pipelines.pricing.prices import usd
from pipelines.runtime.run_report import RunReport

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Span, Tracer

SIGNALS = ("TRACES", "METRICS")
ENABLING_VARIABLES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    *(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT" for signal in SIGNALS),
    *(f"OTEL_{signal}_EXPORTER" for signal in SIGNALS),
)
"""Any one of these turns telemetry on."""

SECONDS_BOUNDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
BATCH_SECONDS_BOUNDS = (1, 10, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 43_200, 86_400)
TOKEN_BOUNDS = tuple(4**power for power in range(14))
"""Bucket bounds of the histograms, as the conventions advise; those of batches are for their stages."""

POLL_SECONDS = 1.0
"""Interval at which rows are counted."""

CONVENTIONAL_NAMES = {"api.openai.com": "openai"}
"""Host -> the conventions' name of its provider; others have their name in the workspace."""


def start_telemetry(ready: PreparedJob, run_id: str) -> "Telemetry | None":
    """Start to observe a run; None if telemetry is not turned on."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or find_spec("opentelemetry") is None:
        return None
    if "opentelemetry.sdk.trace" in sys.modules or "opentelemetry.sdk.metrics" in sys.modules:
        from opentelemetry import metrics, trace

        return Telemetry(ready, run_id, trace.get_tracer("rowmill"), metrics.get_meter("rowmill"), lambda: None)
    if not any(os.environ.get(name) for name in ENABLING_VARIABLES):
        return None
    return _with_own_sdk(ready, run_id)


class Telemetry:
    """The metrics and traces of one run."""

    def __init__(
        self, ready: PreparedJob, run_id: str, tracer: "Tracer", meter: "Meter", close: Callable[[], None]
    ) -> None:
        """`close`: flush, and shut the SDK down if this process started it for the run."""
        from opentelemetry.trace import set_span_in_context

        self._close = close
        self._tracer = tracer
        self._models = {step.model.name: (step.model.endpoint, step.model.model) for step in ready.steps}
        self._job = {"rowmill.job": ready.job.name}
        self._span = tracer.start_span(f"run {ready.job.name}", attributes={**self._job, "rowmill.run_id": run_id})
        self._context = set_span_in_context(self._span)
        self._view: RunView | None = None
        self._counted = dict.fromkeys(("answered", "reused", "failed"), 0)
        histogram = meter.create_histogram
        self._duration = histogram(
            "gen_ai.client.operation.duration",
            "s",
            "Latency of an exchange",
            explicit_bucket_boundaries_advisory=SECONDS_BOUNDS,
        )
        self._first = histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            "s",
            "Time to the first event of a stream",
            explicit_bucket_boundaries_advisory=SECONDS_BOUNDS,
        )
        self._tokens = histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Tokens of an exchange",
            explicit_bucket_boundaries_advisory=[float(bound) for bound in TOKEN_BOUNDS],
        )
        self._wait = histogram(
            "rowmill.limiter.wait",
            "s",
            "Time that a request waited for its rate limits",
            explicit_bucket_boundaries_advisory=SECONDS_BOUNDS,
        )
        self._rows = meter.create_counter("rowmill.rows", "{row}", "Rows completed")
        self._requests = meter.create_counter("rowmill.requests", "{request}", "HTTP exchanges")
        self._cost = meter.create_counter("rowmill.cost", "USD", "Cost of exchanges with a known price")
        self._stage = histogram(
            "rowmill.batch.stage.duration",
            "s",
            "Duration of a stage of a batch",
            explicit_bucket_boundaries_advisory=[float(bound) for bound in BATCH_SECONDS_BOUNDS],
        )
        self._batches: dict[str, Span] = {}

    def wrap(self, follow: FollowRun) -> FollowRun:
        """Return a follower that observes the run as well."""

        async def both(view: RunView) -> None:
            self._view = view
            view.dispatcher.state.observer = self
            await asyncio.gather(self._keep_counting(), follow(view))

        return both

    def record_wait(self, route: RouteInfo, seconds: float) -> None:
        """Record how long a request waited for its rate limits."""
        self._wait.record(seconds, self._attributes(route))

    def record_exchange(self, route: RouteInfo, exchange: SettledExchange) -> None:
        """Record an exchange that is in the ledger."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        attributes = self._attributes(route)
        usage = exchange.usage
        if usage.model_version is not None:
            attributes["gen_ai.response.model"] = usage.model_version
        if exchange.error_class is not None:
            attributes["error.type"] = exchange.error_class
        self._requests.add(1, attributes)
        if exchange.latency_ms is not None:
            self._duration.record(exchange.latency_ms / 1000, attributes)
        if exchange.first_token_ms is not None:
            self._first.record(exchange.first_token_ms / 1000, attributes)
        for kind, count in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            if count is not None:
                self._tokens.record(count, {**attributes, "gen_ai.token.type": kind})
        if exchange.cost:
            self._cost.add(usd(exchange.cost), attributes)
        facts = {
            **attributes,
            "http.response.status_code": exchange.http_status,
            "gen_ai.usage.input_tokens": usage.input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.response.finish_reasons": None if usage.finish_reason is None else [usage.finish_reason],
            "http.request.resend_count": exchange.attempt - 1 or None,
            "rowmill.request_id": exchange.request_id,
            "rowmill.requests_in_exchange": len(exchange.fingerprints) // 16,
        }
        span = self._tracer.start_span(
            f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}",
            self._context,
            SpanKind.CLIENT,
            {name: value for name, value in facts.items() if value is not None},
            start_time=exchange.started_at * 1000,
        )
        if exchange.error_class is not None:
            # Only the class: the provider's message may repeat content of a row.
            span.set_status(Status(StatusCode.ERROR, exchange.error_class))
        # A line of a batch has no latency: it ends when it is fetched.
        latency_ms = exchange.latency_ms
        span.end(now_us() * 1000 if latency_ms is None else exchange.started_at * 1000 + round(latency_ms * 1e6))

    def record_batch_stage(self, route: RouteInfo, stage: BatchStage) -> None:
        """Record a stage of a batch, as a child of the span of the whole batch, which begins when it was recorded."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        attributes = self._attributes(route)
        failed = {} if stage.error is None else {"error.type": stage.error}
        now = now_us()
        self._stage.record((now - stage.began_at) / 1e6, {**attributes, "rowmill.batch.stage": stage.name, **failed})
        whole = self._batches.get(stage.mark)
        if whole is None:
            facts = {**attributes, "rowmill.batch": stage.mark, "rowmill.batch.lines": stage.lines}
            whole = self._tracer.start_span("batch", self._context, attributes=facts, start_time=stage.noted_at * 1000)
            self._batches[stage.mark] = whole
        span = self._tracer.start_span(
            f"batch {stage.name}",
            set_span_in_context(whole),
            SpanKind.CLIENT,
            {**attributes, "rowmill.batch": stage.mark, **failed},
            start_time=stage.began_at * 1000,
        )
        if stage.error is not None:
            span.set_status(Status(StatusCode.ERROR, stage.error))
        span.end(now * 1000)
        for name, value in (("id", stage.batch_id), ("status", stage.status)):
            if value is not None:
                whole.set_attribute(f"rowmill.batch.{name}", value)
        if stage.name == "clean":
            self._batches.pop(stage.mark).end(now * 1000)

    def end_run(self, report: RunReport | None) -> None:
        """End the spans; `report` is None if an error of the user ended the run."""
        from opentelemetry.trace import Status, StatusCode

        self._count_rows()
        for left in self._batches.values():
            # It continues at the provider, or was cancelled here.
            left.end()
        facts = ("exit_code", "rows", "rows_ok", "rows_failed", "rows_left", "requests", "cost_usd")
        for name in facts if report is not None else ():
            if (value := getattr(report, name)) is not None:
                self._span.set_attribute(f"rowmill.{name}", value)
        if report is None or report.exit_code != 0:
            self._span.set_status(Status(StatusCode.ERROR, "" if report is None else f"exit code {report.exit_code}"))
        self._span.end()
        self._close()

    def _attributes(self, route: RouteInfo) -> dict[str, Any]:
        endpoint, model = self._models[route.step]
        url = urlsplit(route.provider.base_url)
        host = url.hostname or ""
        return {
            **self._job,
            "rowmill.step": route.step,
            "rowmill.provider": route.provider.name,
            # Chat and Responses are both a turn of a conversation.
            "gen_ai.operation.name": "chat" if endpoint == "responses" else endpoint,
            "gen_ai.provider.name": CONVENTIONAL_NAMES.get(host, route.provider.name),
            "gen_ai.request.model": model,
            "server.address": host,
            "server.port": url.port or (443 if url.scheme == "https" else 80),
        }

    async def _keep_counting(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self._count_rows()

    def _count_rows(self) -> None:
        if self._view is None:
            return
        counters = self._view.counters
        now = {
            "answered": counters.rows_ok - counters.rows_reused,
            "reused": counters.rows_reused,
            "failed": counters.rows_failed,
        }
        for outcome, rows in now.items():
            if rows > self._counted[outcome]:
                self._rows.add(rows - self._counted[outcome], {**self._job, "rowmill.outcome": outcome})
        self._counted = now


def _with_own_sdk(ready: PreparedJob, run_id: str) -> Telemetry | None:
    """Observe with a separate SDK, set up by the OTEL_ variables; None if only OpenTelemetry's API is installed."""
    if find_spec("opentelemetry.sdk") is None:
        return None
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    service = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "rowmill"}
    resource = Resource.create(service)
    traces = TracerProvider(resource=resource, shutdown_on_exit=False)
    readers = []
    for kind in _exporters("TRACES"):
        if kind == "console":
            traces.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
        elif kind == "otlp" and (exporter := _otlp("trace_exporter", "OTLPSpanExporter")) is not None:
            traces.add_span_processor(BatchSpanProcessor(exporter))
    for kind in _exporters("METRICS"):
        if kind == "console":
            readers.append(PeriodicExportingMetricReader(ConsoleMetricExporter(out=sys.stderr)))
        elif kind == "otlp" and (exporter := _otlp("metric_exporter", "OTLPMetricExporter")) is not None:
            readers.append(PeriodicExportingMetricReader(exporter))
    meters = MeterProvider(readers, resource, shutdown_on_exit=False)

    def close() -> None:
        traces.shutdown()
        meters.shutdown()

    return Telemetry(ready, run_id, traces.get_tracer("rowmill"), meters.get_meter("rowmill"), close)


def _exporters(signal: str) -> list[str]:
    """The exporters that the variable names; otlp if it is not set."""
    return [name.strip() for name in (os.environ.get(f"OTEL_{signal}_EXPORTER") or "otlp").split(",")]


def _otlp(module: str, name: str) -> Any:
    """Return an exporter of OTLP over HTTP; if its package is not installed, print that and return None."""
    try:
        exporters = __import__(f"opentelemetry.exporter.otlp.proto.http.{module}", fromlist=[name])
    except ImportError:
        print("OpenTelemetry: the OTLP exporter is not installed; run: pip install 'rowmill[otel]'", file=sys.stderr)  # noqa: T201
        return None
    return getattr(exporters, name)()
