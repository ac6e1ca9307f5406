"""What a run, its step runner and its displays need of a dispatcher: requests in, outcomes out."""

from typing import Protocol

from pipelines.dispatch.dispatch_state import DispatchState
from pipelines.dispatch.pending_requests import PendingRequests
from pipelines.dispatch.request_types import Route


class DispatchControl(Protocol):
    """Start, stop and state of a dispatcher in this process, or of the workers on Ray."""

    @property
    def state(self) -> DispatchState: ...

    def start(self) -> None:
        """Begin to send."""

    async def close(self, grace: float) -> None:
        """Wait at most `grace` seconds for what is in flight; then cancel it."""

    def cancel(self) -> None:
        """Cancel what is in flight: it is recorded as unknown."""

    def stop(self, reason: str) -> None:
        """Send nothing more; what is in flight may finish."""

    async def wait_for_capacity(self) -> None:
        """Wait until more requests are needed."""


class Dispatcher(DispatchControl, Protocol):
    """Sends submitted requests, and resolves each in the table of pending requests."""

    @property
    def pending(self) -> PendingRequests: ...

    @property
    def has_capacity(self) -> bool:
        """Whether fewer requests are queued than could be sent now."""

    def register_route(self, route: Route) -> None:
        """Announce a route that requests will take."""
