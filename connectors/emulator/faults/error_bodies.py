"""Error replies in the words of real providers: the named faults of the emulator, one entry each."""

from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web
from msgspec import Struct, field

JsonBody = Mapping[str, Any] | list[Any]


class ErrorReply(Struct, frozen=True):
    """A status with the body that a provider sends with it."""

    status: int
    body: JsonBody | str
    """JSON, or the text of a page."""
    error_class: str
    """What Rowmill makes of it."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> web.Response:
        """Return the reply."""
        is_text = isinstance(self.body, str)
        body = self.body.encode() if isinstance(self.body, str) else orjson.dumps(self.body)
        kind = "text/html" if is_text else "application/json"
        return web.Response(body=body, status=self.status, content_type=kind, headers=self.headers)


def _error(message: str, type: str | None = "invalid_request_error", code: Any = None, **more: Any) -> JsonBody:
    """OpenAI's shape."""
    return {"error": {"message": message, "type": type, "param": more.pop("param", None), "code": code, **more}}


def _anthropic(type: str, message: str) -> JsonBody:
    return {"type": "error", "error": {"type": type, "message": message}}


def _quoted(message: str, code: int, raw: JsonBody) -> JsonBody:
    """OpenRouter's shape: the reply of the provider behind it is a string."""
    return {"error": {"message": message, "code": code, "metadata": {"raw": orjson.dumps(raw).decode()}}}


ERROR_REPLIES: Mapping[str, ErrorReply] = {
    # The content of one row.
    "content-filter": ErrorReply(
        400,
        _error(
            "The response was filtered due to the prompt triggering the content management policy.",
            None,
            "content_filter",
            param="prompt",
            innererror={"code": "ResponsibleAIPolicyViolation"},
        ),
        "content_filter",
    ),
    "content-flagged": ErrorReply(
        403,
        _error('model requires moderation. Your input was flagged for "violence".', None, 403),
        "content_filter",
    ),
    "content-guidelines": ErrorReply(
        403,
        {"code": "The caller does not have permission", "error": "Content violates usage guidelines. Team: t"},
        "content_filter",
    ),
    # Credit and quota.
    "billing-limit": ErrorReply(
        400, _error("Billing hard limit has been reached", code="billing_hard_limit_reached"), "quota"
    ),
    "credit-balance": ErrorReply(
        400, _anthropic("invalid_request_error", "Your credit balance is too low to access the API."), "quota"
    ),
    "payment-required": ErrorReply(402, _error("Insufficient credits", None, 402), "quota"),
    "current-quota": ErrorReply(
        429,
        _error("Your account has insufficient balance, please recharge", "exceeded_current_quota_error"),
        "quota",
    ),
    # Limits that pass.
    "quota-wait": ErrorReply(
        429,
        _error("The token rate limit of your tier is exceeded.", "insufficient_quota", "insufficient_quota"),
        "rate_limit",
        {"retry-after-ms": "100"},
    ),
    "retry-info": ErrorReply(
        429,
        [
            {
                "error": {
                    "code": 429,
                    "message": "You exceeded your current quota.",
                    "status": "RESOURCE_EXHAUSTED",
                    "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.1s"}],
                }
            }
        ],
        "rate_limit",
    ),
    "wait-in-words": ErrorReply(
        429, _error("Rate limit reached for requests. Please try again in 100ms.", "requests"), "rate_limit"
    ),
    "wait-of-a-day": ErrorReply(
        429, _error("Rate limit reached on requests per day. Please try again in 23h59m0s."), "rate_limit"
    ),
    # A request that can never pass.
    "too-large": ErrorReply(
        429,
        _error(
            "Request too large on tokens per min (TPM): Limit 10000, Requested 25000.", "tokens", "rate_limit_exceeded"
        ),
        "bad_request",
    ),
    "unsupported-param": ErrorReply(
        400,
        _error("Unsupported parameter: not supported with this model.", code="unsupported_parameter", param="seed"),
        "bad_request",
    ),
    "upstream-refusal": ErrorReply(
        400,
        _quoted("Provider returned error", 400, {"error": {"message": "At most 1 image is supported."}}),
        "bad_request",
    ),
    # What passes.
    "json-slip": ErrorReply(
        400, _error("Failed to generate JSON.", code="json_validate_failed", failed_generation="{"), "server"
    ),
    "tool-slip": ErrorReply(400, _error("Failed to call a function.", code="tool_use_failed"), "server"),
    "capacity": ErrorReply(498, _error("Flex tier capacity exceeded, try again later", "capacity"), "server"),
    "dependency": ErrorReply(424, _error("A dependency of the model failed.", None), "server"),
    "too-early": ErrorReply(425, _error("Too early.", None), "server"),
    # The set-up.
    "no-model": ErrorReply(
        404, _error("The model does not exist or you do not have access to it.", code="model_not_found"), "setup"
    ),
    "no-deployment": ErrorReply(
        404,
        {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}},
        "setup",
    ),
    "no-path": ErrorReply(404, {"detail": "Not Found"}, "setup"),
    "no-page": ErrorReply(404, "<html><body><h1>404 Not Found</h1></body></html>", "setup"),
    "web-page": ErrorReply(200, "<!DOCTYPE html><html><body><h1>Sign in</h1></body></html>", "setup"),
    "no-channel": ErrorReply(503, _error("No available channel for this model", code="model_not_found"), "setup"),
    # The key.
    "no-region": ErrorReply(
        403,
        _error(
            "Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory"
        ),
        "access_denied",
    ),
    "account-policy": ErrorReply(
        403, _error("Your organization's policy does not allow this model.", "permission_error"), "access_denied"
    ),
}
"""Name of a fault in `rowmill serve --fault NAME=RATE` -> its reply."""
