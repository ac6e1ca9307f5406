"""Control of one run: carries out what its control socket is asked, and reports the state of the run."""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from connectors.errors import JobError
from pipelines.control.protocol import Command, ControlReply, ControlRequest
from pipelines.control.run_settings import SETTABLE, RunSettings
from pipelines.control.server import serve
from pipelines.control.socket_file import listen, socket_path
from pipelines.dispatch.dispatch_state import DRAINED
from pipelines.monitoring.progress import ThroughputMeter, progress_figures
from pipelines.monitoring.run_view import RunView
from pipelines.pricing.prices import usd
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.run_report import ControlEvent

SAMPLE_SECONDS = 1.0
MAX_EVENTS = 100
"""Of the report: the newest ones."""


class RunControl:
    """Pauses, resumes and drains a run, and changes its settings; created on the run's event loop."""

    def __init__(
        self,
        job: str,
        run_id: str,
        view: RunView,
        budget: RunBudget,
        settings: RunSettings,
        check: Callable[[RunSettings], None],
        apply: Callable[[RunSettings], str | None],
        on_event: Callable[[ControlEvent], None],
    ) -> None:
        """`check` raises JobError if the run cannot take these settings; `apply` puts them in force and returns a
        notice for the user. `on_event` is called with everything that was done."""
        self._job = job
        self._run_id = run_id
        self._view = view
        self._budget = budget
        self.settings = settings
        self._check = check
        self._apply = apply
        self._on_event = on_event
        self._set: dict[str, Any] = {}
        self._meter = ThroughputMeter()
        self._throughput = self._meter.measure(view)
        self.events: deque[ControlEvent] = deque(maxlen=MAX_EVENTS)

    async def serve(self, state: Path) -> None:
        """Answer requests at the job's socket in this state folder until cancelled; OSError if there can be none."""
        path = socket_path(state, self._job)
        listener = listen(path)
        sampling = asyncio.create_task(self._sample())
        try:
            await serve(listener, self.answer)
        finally:
            sampling.cancel()
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def answer(self, request: ControlRequest) -> ControlReply:
        """Carry out a request; JobError if it is refused."""
        state = self._view.dispatcher.state
        notice: str | None = None
        if request.command != "state" and state.stop_reason is not None:
            raise JobError(self._job, f"the run is ending ({state.stop_reason})", "run it again when it has ended")
        match request.command:
            case "pause" if not state.is_paused:
                state.pause()
                self._record("pause")
            case "resume" if state.is_paused:
                state.resume()
                self._record("resume")
            case "drain":
                self._view.dispatcher.stop(DRAINED)
                self._record("drain")
            case "set":
                notice = self._change(request.values)
        return ControlReply(self.state(), notice=notice)

    def state(self) -> Mapping[str, Any]:
        """Return the figures of the run, its limits in force, and what was set."""
        view, counters, settings = self._view, self._view.counters, self.settings
        breakdown = view.time_breakdown
        limits = [key.partition(".")[2] for key in SETTABLE if key.startswith("limits.")]
        budget = None
        if settings.budget is not None:
            budget = {"usd": settings.budget.usd, "spent_usd": usd(self._budget.spent)}
        return {
            "job": self._job,
            "run_id": self._run_id,
            "pid": os.getpid(),
            "seconds": round(counters.seconds, 1),
            **progress_figures(view, self._throughput),
            "errors": dict(counters.failed_by_class),
            "bound_by": None if breakdown is None else breakdown.to_json()["bound_by"],
            "limits": {name: getattr(settings.limits, name) for name in limits},
            "budget": budget,
            "providers": {
                name: {
                    "requests_per_minute": limiter.effective_requests_per_minute,
                    "tokens_per_minute": limiter.tokens_per_minute,
                    "concurrency": limiter.concurrency,
                }
                for name, limiter in view.limiters.items()
            },
            "set": dict(self._set),
            "stopping": view.dispatcher.state.stop_reason,
        }

    def _change(self, values: Mapping[str, Any]) -> str | None:
        settings = self.settings.changed(values)
        self._check(settings)
        notice = self._apply(settings)
        self.settings = settings
        self._set.update(values)
        self._record("set", values)
        return notice

    def _record(self, command: Command, values: Mapping[str, Any] | None = None) -> None:
        event = ControlEvent(datetime.now(UTC).isoformat(timespec="seconds"), command, dict(values or {}))
        self.events.append(event)
        self._on_event(event)

    async def _sample(self) -> None:
        while True:
            self._throughput = self._meter.measure(self._view)
            await asyncio.sleep(SAMPLE_SECONDS)
