"""The causes of failed rows and requests in plain words, and what to do about each."""

from collections.abc import Mapping

from msgspec import Struct

from connectors.error_classes import CHECK_FAILED


class ErrorCause(Struct, frozen=True):
    """What happened, and what the reader can do."""

    title: str
    remedy: str


_RUN_AGAIN = "run the job again"
CAUSES: Mapping[str, ErrorCause] = {
    "input": ErrorCause("the row's values give no request", "correct the row: it is sent when it has changed"),
    "bad_request": ErrorCause(
        "the provider refuses the request of this row", "see the message; correct the row or the step, then retry"
    ),
    "content_filter": ErrorCause(
        "the provider refuses the content", "change the row, or name another provider in rescue"
    ),
    "length": ErrorCause(
        "the answer was cut off at max_tokens", "raise max_tokens, or name more in rescue; then retry"
    ),
    "invalid_answer": ErrorCause(
        "the answer does not fit its type", "make the output simpler or take another model, then retry"
    ),
    CHECK_FAILED: ErrorCause(
        "the answer fails a check",
        "correct the prompt or the check; stored answers take no new request",
    ),
    "rate_limit": ErrorCause("the provider's rate limit", f"{_RUN_AGAIN}; lower requests_per_minute"),
    "timeout": ErrorCause("no answer in time", f"{_RUN_AGAIN}; raise timeouts.total if it happens often"),
    "connection": ErrorCause("the connection failed", f"{_RUN_AGAIN} when the provider can be reached"),
    "server": ErrorCause("the provider failed", f"{_RUN_AGAIN} later; raise retry.attempts if it happens often"),
    "malformed_reply": ErrorCause("a reply that is no answer", f"{_RUN_AGAIN}; check base_url if it happens often"),
    "unknown": ErrorCause("sent when the run was killed, so the outcome is not known", _RUN_AGAIN),
    "quota": ErrorCause("no credit or quota is left", "add credit or raise the limit at the provider, then run again"),
    "access_denied": ErrorCause("the provider refuses the key", "correct the key or its permissions, then run again"),
    "setup": ErrorCause(
        "the model, the address or an option fits no row", "correct the job file or rowmill.yaml, then run again"
    ),
    "budget": ErrorCause("the budget is used up", "raise budget.usd, then run again"),
}
"""By error class; a failed check is an invalid answer with a code of its own."""


def error_cause(name: str) -> ErrorCause:
    """Return the cause of an error class; an unknown class is its own title."""
    return CAUSES.get(name, ErrorCause(name.replace("_", " "), "see the message"))
