"""OpenTelemetry: metrics and traces of a run, by the semantic conventions for generative AI (extra `rowmill[otel]`).

Active where OpenTelemetry is installed and asked for: by an OTEL_ variable that names an exporter or an endpoint, or by
an SDK that this process has set up already. Nothing of it is imported otherwise.
https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.dispatch.request_types import BatchStage, RouteInfo
from pipelines.ledger.entries import SettledExchange
from pipelines.ledger.ledger import now_us
from pipelines.monitoring.run_view import RunView
from pipelines.preparation.prepared_job import PreparedJob
from pipelines.pricing.prices import usd
from pipelines.runtime.run_report import RunReport

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Span, Tracer

Follow = Callable[[RunView], Awaitable[None]]

SIGNALS = ("TRACES", "METRICS")
ASKED_BY = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    *(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT" for signal in SIGNALS),
    *(f"OTEL_{signal}_EXPORTER" for signal in SIGNALS),
)
"""Variables of which one is enough."""

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
HOURS = (1, 10, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 43_200, 86_400)
TOKENS = tuple(4**power for power in range(14))
"""Bounds of the histograms, as the conventions advise; HOURS in seconds, for a batch's stages."""

EVERY = 1.0
"""Seconds between two looks at the rows."""

WELL_KNOWN = {"api.openai.com": "openai"}
"""Host -> the name that the conventions have for its provider; others go by their name in the workspace."""


def start_telemetry(ready: PreparedJob, run_id: str) -> "Telemetry | None":
    """What observes the run; None where nobody has asked for it."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or find_spec("opentelemetry") is None:
        return None
    if "opentelemetry.sdk.trace" in sys.modules or "opentelemetry.sdk.metrics" in sys.modules:
        from opentelemetry import metrics, trace

        return Telemetry(ready, run_id, trace.get_tracer("rowmill"), metrics.get_meter("rowmill"), lambda: None)
    if not any(os.environ.get(name) for name in ASKED_BY):
        return None
    return _own(ready, run_id)


class Telemetry:
    """One observed run."""

    def __init__(
        self, ready: PreparedJob, run_id: str, tracer: "Tracer", meter: "Meter", close: Callable[[], None]
    ) -> None:
        """`close`: hands on what is left, and ends the SDK where it is ours."""
        from opentelemetry.trace import set_span_in_context

        self._close = close
        self._tracer = tracer
        self._models = {step.model.name: (step.model.endpoint, step.model.model) for step in ready.steps}
        self._job = {"rowmill.job": ready.job.name}
        self._span = tracer.start_span(f"run {ready.job.name}", attributes={**self._job, "rowmill.run_id": run_id})
        self._context = set_span_in_context(self._span)
        self._watch: RunView | None = None
        self._counted = dict.fromkeys(("answered", "reused", "failed"), 0)
        histogram = meter.create_histogram
        self._duration = histogram(
            "gen_ai.client.operation.duration",
            "s",
            "Latency of an exchange",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._first = histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            "s",
            "Time to the first event of a stream",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._tokens = histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Tokens of an exchange",
            explicit_bucket_boundaries_advisory=[float(bound) for bound in TOKENS],
        )
        self._wait = histogram(
            "rowmill.limiter.wait",
            "s",
            "Time that a request waited for its allowance",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._rows = meter.create_counter("rowmill.rows", "{row}", "Rows that were finished")
        self._requests = meter.create_counter("rowmill.requests", "{request}", "HTTP exchanges")
        self._cost = meter.create_counter("rowmill.cost", "USD", "What exchanges cost, where the price is known")
        self._stage = histogram(
            "rowmill.batch.stage.duration",
            "s",
            "Time that a stage of a batch took",
            explicit_bucket_boundaries_advisory=[float(bound) for bound in HOURS],
        )
        self._batches: dict[str, Span] = {}

    def wrap(self, onward: Follow) -> Follow:
        """Observe the run that `onward` follows as well."""

        async def follow(watch: RunView) -> None:
            self._watch = watch
            watch.dispatcher.observer = self
            await asyncio.gather(self._keep_counting(), onward(watch))

        return follow

    def record_wait(self, lane: RouteInfo, seconds: float) -> None:
        """A request has waited so long for its allowance."""
        self._wait.record(seconds, self._attributes(lane))

    def record_exchange(self, lane: RouteInfo, ended: SettledExchange) -> None:
        """An exchange is in the ledger."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        attributes = self._attributes(lane)
        use = ended.usage
        if use.model_version is not None:
            attributes["gen_ai.response.model"] = use.model_version
        if ended.error_class is not None:
            attributes["error.type"] = ended.error_class
        self._requests.add(1, attributes)
        if ended.latency_ms is not None:
            self._duration.record(ended.latency_ms / 1000, attributes)
        if ended.first_token_ms is not None:
            self._first.record(ended.first_token_ms / 1000, attributes)
        for kind, count in (("input", use.input_tokens), ("output", use.output_tokens)):
            if count is not None:
                self._tokens.record(count, {**attributes, "gen_ai.token.type": kind})
        if ended.cost:
            self._cost.add(usd(ended.cost), attributes)
        facts = {
            **attributes,
            "http.response.status_code": ended.http_status,
            "gen_ai.usage.input_tokens": use.input_tokens,
            "gen_ai.usage.output_tokens": use.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": use.cached_tokens,
            "gen_ai.response.finish_reasons": None if use.finish_reason is None else [use.finish_reason],
            "http.request.resend_count": ended.attempt - 1 or None,
            "rowmill.request_id": ended.request_id,
            "rowmill.requests_in_exchange": len(ended.fingerprints) // 16,
        }
        span = self._tracer.start_span(
            f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}",
            self._context,
            SpanKind.CLIENT,
            {name: value for name, value in facts.items() if value is not None},
            start_time=ended.started_at * 1000,
        )
        if ended.error_class is not None:
            # The class only: a provider's words may repeat what a row held.
            span.set_status(Status(StatusCode.ERROR, ended.error_class))
        # A line of a batch tells no latency: it is over when it is fetched.
        took = ended.latency_ms
        span.end(now_us() * 1000 if took is None else ended.started_at * 1000 + round(took * 1e6))

    def record_batch_stage(self, lane: RouteInfo, stage: BatchStage) -> None:
        """A batch has gone through a stage: a span below that of the batch, which begins where it was noted."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        attributes = self._attributes(lane)
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
            # It goes on at the provider, or was broken off here.
            left.end()
        facts = ("exit_code", "rows", "rows_ok", "rows_failed", "rows_left", "requests", "cost_usd")
        for name in facts if report is not None else ():
            if (value := getattr(report, name)) is not None:
                self._span.set_attribute(f"rowmill.{name}", value)
        if report is None or report.exit_code != 0:
            self._span.set_status(Status(StatusCode.ERROR, "" if report is None else f"exit code {report.exit_code}"))
        self._span.end()
        self._close()

    def _attributes(self, lane: RouteInfo) -> dict[str, Any]:
        endpoint, model = self._models[lane.step]
        url = urlsplit(lane.provider.base_url)
        host = url.hostname or ""
        return {
            **self._job,
            "rowmill.step": lane.step,
            "rowmill.provider": lane.provider.name,
            # A response of either dialect is a turn of a dialogue.
            "gen_ai.operation.name": "chat" if endpoint == "responses" else endpoint,
            "gen_ai.provider.name": WELL_KNOWN.get(host, lane.provider.name),
            "gen_ai.request.model": model,
            "server.address": host,
            "server.port": url.port or (443 if url.scheme == "https" else 80),
        }

    async def _keep_counting(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            self._count_rows()

    def _count_rows(self) -> None:
        if self._watch is None:
            return
        tally = self._watch.counters
        now = {
            "answered": tally.rows_ok - tally.rows_reused,
            "reused": tally.rows_reused,
            "failed": tally.rows_failed,
        }
        for outcome, rows in now.items():
            if rows > self._counted[outcome]:
                self._rows.add(rows - self._counted[outcome], {**self._job, "rowmill.outcome": outcome})
        self._counted = now


def _own(ready: PreparedJob, run_id: str) -> Telemetry | None:
    """With an SDK of our own, as the OTEL_ variables say; None where only OpenTelemetry's API is installed."""
    if find_spec("opentelemetry.sdk") is None:
        return None
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    said = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "rowmill"}
    resource = Resource.create(said)
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
    """The exporters that a variable names; otlp where it names none."""
    return [name.strip() for name in (os.environ.get(f"OTEL_{signal}_EXPORTER") or "otlp").split(",")]


def _otlp(module: str, name: str) -> Any:
    """An exporter of OTLP over HTTP; None, and told once on stderr, where its package is not installed."""
    try:
        found = __import__(f"opentelemetry.exporter.otlp.proto.http.{module}", fromlist=[name])
    except ImportError:
        print("OpenTelemetry: no OTLP exporter here; install it with: pip install 'rowmill[otel]'", file=sys.stderr)  # noqa: T201
        return None
    return getattr(found, name)()
