"""The fault table: error replies as real providers write them, and whose fault each of them is."""

from typing import Any

import orjson
import pytest

from connectors.records import Reply, RowError
from connectors.transport.error_replies import row_error
from connectors.transport.fault_table import masked_words


def error_of(status: int, body: Any, headers: dict[str, str] | None = None) -> RowError:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return row_error(Reply(status, headers or {}, raw, 1.0))


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


def anthropic(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def google(status: str, code: int, message: str, *details: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"error": {"code": code, "message": message, "status": status, "details": list(details)}}]


def openrouter(message: str, code: int, raw: Any = None) -> dict[str, Any]:
    quoted = raw if isinstance(raw, str) else orjson.dumps(raw).decode()
    return {"error": {"message": message, "code": code, "metadata": {"raw": quoted, "provider_name": "P"}}}


CONTENT = [
    (400, error("Your prompt was flagged as potentially violating our usage policy.", code="invalid_prompt")),
    (400, error("Your request was rejected by our safety system.", code="moderation_blocked", type="image")),
    (400, error("The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
                code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"})),
    (400, error("filtered", innererror={"content_filter_result": {}, "code": "ResponsibleAIPolicyViolation"})),
    (403, error('model/y requires moderation on Z. Your input was flagged for "hate".', code=403,
                metadata={"reasons": ["hate"], "flagged_input": "…"})),
    (403, error("Input flagged", code=403, metadata={"reasons": ["violence"], "flagged_input": "…"})),
    (403, {"code": "permission-denied", "error": "Content violates usage guidelines. Team: a, API key ID: b. "
           "Failed check: SAFETY_CHECK_TYPE_X"}),
    (400, {"code": "DataInspectionFailed", "message": "Input data may contain inappropriate content."}),
    (400, error("Output data may contain inappropriate content.", type="data_inspection_failed", code="x")),
    (400, error("The request was rejected because it was considered high risk", type="content_filter")),
    (400, anthropic("invalid_request_error", "Output blocked by content filtering policy")),
    (400, error("系统检测到输入或生成内容可能包含不安全或敏感内容", code="1301")),
    (400, {"message": "The guardrail blocked this prompt."}),
    (400, error("litellm.BadRequestError: litellm.ContentPolicyViolationError: AzureException - refused", code="400")),
    (422, {"detail": "The text contains harmful content"}),
    (451, {"detail": "This prompt was flagged by our classifier"}),
    (200, error("The image was blocked by our safety filter")),
    (403, openrouter("Provider returned error", 403, {"error": {"message": "Your input was flagged for violence."}})),
    (400, error("What you sent, or what the model wrote, is blocked.", type="censorship_blocked")),
    (400, {"detail": "The content of this request was rejected"}),
    (446, error("The guardrail checks of the configuration failed.", type="hooks_failed")),
    (200, {"choices": None, "base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}),
]  # fmt: skip

QUOTA = [
    (400, error("Billing hard limit has been hit", code="billing_hard_limit_reached")),
    (400, anthropic("invalid_request_error", "Your credit balance is too low to use the API.")),
    (402, error("Insufficient Balance", type="unknown_error", code="invalid_request_error")),
    (402, error("This request requires more credits, or fewer max_tokens.", code=402)),
    (402, {"detail": "x"}),
    (403, {"error": {"code": "AccountOverdueError", "message": "An overdue balance", "type": "Forbidden"}}),
    (403, {"code": "AllocationQuota.FreeTierOnly", "message": "The free tier of the model has been exhausted."}),
    (403, error("token quota is not enough", code="insufficient_user_quota", type="new_api_error")),
    (400, {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing."}),
    (429, error("You exceeded your current quota", code="insufficient_quota")),
    (429, error("Account suspended: insufficient balance, please recharge", type="exceeded_current_quota_error")),
    (429, error("余额不足或无可用资源包,请充值。", code="1113")),
    (429, error("Your team has either used all available credits or reached its monthly spending limit.", code="x")),
    (429, google("RESOURCE_EXHAUSTED", 429, "You exceeded your current quota, please check your plan.")),
    (400, error("Budget has been exceeded! Current cost: 1.2, Max budget: 1.0", type="budget_exceeded", code="400")),
    (400, anthropic("invalid_request_error", "You have reached your specified API usage limits.")),
    (403, anthropic("billing_error", "There is a problem with how you pay.")),
    (429, error("litellm.RateLimitError: OpenAIException - You exceeded your current quota", code="429")),
    (403, {"code": "permission-denied", "error": "Your new team doesn't have any credits or licenses yet."}),
    (403, error("Key limit exceeded (total limit). Manage it on the website", code=403)),
    (403, {"statusCode": 403, "message": "Out of call volume quota. It is replenished in 2.22:54:02."}),
    (412, error("Account a is suspended, possibly due to reaching the spending limit", code="ACCOUNT_SUSPENDED")),
    (429, {"message": "You are using a Trial key, which is limited to 1000 API calls / month, see the rate limits."}),
    (429, {"errors": [{"message": "you have used up your daily free allocation of 10,000 neurons", "code": 4006}]}),
    (429, error("Your account has reached the set inference limit of the model", code="SetLimitExceeded")),
    (400, {"__type": "ServiceQuotaExceededException", "message": "Your request exceeds it"}),
    (500, error("upstream says no", code="insufficient_quota")),
    (403, error("该令牌额度已用尽", type="new_api_error")),
    (200, {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}),
    (400, error('litellm.BadRequestError: X - {"type": "error", "error": {"type": "invalid_request_error"'
                ', "message": "Your credit balance is too low."}}. Received Model Group=m\nNone', code="400")),
]  # fmt: skip

RATE_LIMIT = [
    (429, error("Rate limit reached for m in organization o on requests per min (RPM): Limit 3, Used 3, Requested 1. "
                "Please add a payment method to your account.", type="requests", code="rate_limit_exceeded")),
    (429, error("Rate limit reached on tokens per min: Limit 30000, Used 29500, Requested 1200.", type="tokens")),
    (429, google("RESOURCE_EXHAUSTED", 429, "Quota exceeded for quota metric 'R' and limit 'R per minute'")),
    (429, google("RESOURCE_EXHAUSTED", 429, "Resource has been exhausted (e.g. check quota).")),
    (429, {"code": "Throttling.AllocationQuota", "message": "Allocated quota exceeded, please increase it."}),
    (429, anthropic("rate_limit_error", "This request would exceed your limit of 20,000 tokens per minute.")),
    (429, error("The engine is currently overloaded, please try again later", type="engine_overloaded_error")),
    (429, {"message": "Requests rate limit exceeded", "type": "rate_limited", "code": "1300"}),
    (429, {"message": "You are using a Trial key, which is limited to 20 API calls / minute."}),
    (429, b"<html>too many billing requests</html>"),
    (400, {"__type": "ThrottlingException", "message": "Slow down"}),
    (400, error("Too many tokens, please wait before trying again.")),
    (403, google("PERMISSION_DENIED", 403, "Limited", {"reason": "rateLimitExceeded"})),
    (403, google("PERMISSION_DENIED", 403, "Quota exceeded for quota metric 'R' and limit 'R' of 60 per minute")),
    (200, {"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}),
    (429, {}),
]  # fmt: skip

TOO_LARGE = [
    (429, error("Request too large for m in organization o on tokens per min (TPM): Limit 10000, Requested 20481.",
                type="tokens", code="rate_limit_exceeded")),
    (429, error("tokens per min: Limit 6,000, Used 0, Requested 12,000, please reduce", code="rate_limit_exceeded")),
    (413, error("Request too large for model m on tokens per minute (TPM): Limit 6000, Requested 9000", type="tokens")),
    (429, error("The prompt is too long", code="context_length_exceeded")),
    (500, error("input is too large to process", type="server_error", code=500)),
    (400, error("This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
                code="context_length_exceeded")),
    (413, error("Maximum content size limit (26214400) exceeded (27000000 bytes read)", type="server_error")),
    (429, anthropic("rate_limit_error", "Extra usage is required for long context requests.")),
]  # fmt: skip

CANNOT_SERVE = [
    (500, error("image input is not supported - hint: start the server with a projector", type="server_error")),
    (500, error("failed to parse grammar", type="server_error", code=500)),
    (500, error("response_format json_schema is not implemented")),
    (501, error("structured outputs are not implemented")),
    (500, error("Unsupported param: tools", type="server_error")),
]

NOT_FINITE = [
    (500, {"error": "failed to encode response: json: unsupported value: NaN"}),
    (500, error("Out of range float values are not JSON compliant: nan", type="InternalServerError", code=500)),
]

LENGTH = [
    (400, error("Could not finish the message because max_tokens or model output limit was reached.")),
]

SERVER = [
    (400, error("Failed to generate JSON.", type="invalid_request_error", code="json_validate_failed")),
    (400, error("Failed to call a function.", type="invalid_request_error", code="tool_use_failed")),
    (400, error("Model produced invalid content.", code="x")),
    (400, {"detail": "The server is busy"}),
    (404, error("The model is overloaded, try again later", code=404)),
    (409, error("conflict")),
    (424, error("dependency")),
    (425, b""),
    (498, error("Flex tier is full", type="capacity")),
    (503, error("Model m is still loading")),
    (529, anthropic("overloaded_error", "Overloaded")),
    (200, error("upstream broke", type="server_error")),
    (502, b"<h1>Insufficient balance</h1>"),
    (400, {"error": "The model has crashed without additional information. (Exit code: 1)"}),
    (400, {"error": "Model unloaded."}),
    (400, {"object": "error", "message": "The request is aborted by the scheduler", "type": "BadRequest"}),
    (501, error("not now")),
    (200, {"base_resp": {"status_code": 1013, "status_msg": "internal"}}),
]  # fmt: skip

SETUP = [
    (404, error("The model `m` does not exist or you do not have access to it.", code="model_not_found")),
    (404, error('model "m" not found, try pulling it first', type="api_error")),
    (404, anthropic("not_found_error", "model: claude-0")),
    (404, google("NOT_FOUND", 404, "models/m is not found for API version v1main.")),
    (404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."}}),
    (404, {"error": {"code": "404", "message": "Resource not found"}}),
    (404, {"detail": "Not Found"}),
    (404, b"<h1>File not found</h1>"),
    (404, b"404 page not found"),
    (404, error("Invalid URL (POST /v1/chat)", code="unknown_url")),
    (404, error("No endpoints found for a/b.", code=404)),
    (405, {"detail": "Method Not Allowed"}),
    (400, error("a/b is not a valid model ID", code=400)),
    (400, error("The model `m` has been decommissioned and is no longer supported.", code="model_decommissioned")),
    (400, {"message": "Invalid model: m", "type": "invalid_model", "code": "1500"}),
    (400, {"message": "The provided model identifier is invalid."}),
    (400, error("Invalid model name passed in model=m. Call `/v1/models`", type="None", param="None", code="400")),
    (410, {"message": "model m was retired"}),
    (404, error("File Not Found", type="not_found_error", code=404)),
    (200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}),
    (400, {"error": {"code": "BadRequest", "message": "API version not supported"}}),
    (404, {"message": "Missing required query parameter: api-version"}),
    (400, error("No models loaded. Please load a model in the developer page.", param="model")),
    (404, error("This model is only supported in v1/responses and not in v1/chat/completions.", param="model")),
    (400, error("this model does not support embeddings", type="api_error")),
    (501, error("This server does not support embeddings. Start it with `--embeddings`", code=501)),
    (400, {"message": "Invocation of model ID m with on-demand throughput isn’t supported."}),
    (400, error("The model `m` requires terms acceptance.", code="model_terms_required")),
    (400, error("{'error': '/chat/completions: Invalid model name passed in model=m. Call `/v1/models`'}", code="400")),
    (503, error("No available channel for model m under group default", code="model_not_found")),
    (400, {"error": {"code": "1211", "message": "模型不存在，请检查模型代码。"}},),
]  # fmt: skip

ACCESS_DENIED = [
    (401, error("Incorrect API key provided", code="invalid_api_key")),
    (403, error("Your organization's policy does not allow this model")),
    (403, error("Your account was flagged for violating our usage policies")),
    (403, error("Your access was terminated due to violation of our policies, please check your email")),
    (403, error("Country, region, or territory not supported", code="unsupported_country_region_territory")),
    (403, error("Request blocked by the network access policy")),
    (403, error("Project `p` does not have access to model `m`", code="model_not_found")),
    (403, b"<h1>Blocked by moderation</h1>"),
    (403, {"message": "Access to this resource is forbidden"}),
    (400, google("INVALID_ARGUMENT", 400, "API key not valid. Please pass a valid API key.",
                 {"@type": "ErrorInfo", "reason": "API_KEY_INVALID"})),
    (400, google("FAILED_PRECONDITION", 400, "User location is not supported for the API use.")),
    (400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: k."}),
    (401, error("The model does not exist", code="model_not_found")),
    (400, error("Organization has been restricted. Please reach out to support.", code="organization_restricted")),
    (400, anthropic("invalid_request_error", "This organization has been disabled.")),
    (429, {"error": {"code": "1112", "message": "Your account has been locked"}}),
    (200, {"base_resp": {"status_code": 2049, "status_msg": "invalid api key"}}),
]  # fmt: skip

BAD_REQUEST = [
    (400, error("Unsupported parameter: 'max_tokens' is not supported with this model.", param="max_tokens",
                code="unsupported_parameter")),
    (400, error("Invalid value: 'Your input was flagged, billing hard limit, model not found'. Expected a number.")),
    (400, error('Could not read "insufficient balance, overloaded, try again later" as a date')),
    (400, error("This model does not support image inputs")),
    (400, error("The image file is not valid", code="invalid_image")),
    (404, error("No such File object: file-1", param="id")),
    (404, error("Previous response with id 'resp_1' not found.", param="previous_response_id",
                code="previous_response_not_found")),
    (422, {"detail": [{"loc": ["body", "n"], "msg": "Input should be less than 5", "input": "flagged for hate"}]}),
    (413, b""),
    (400, error("Invalid schema for response_format")),
    (400, {"message": "Guardrail was enabled but input is in incorrect format."}),
    (400, error('Could not read the row: {"message": "my credit balance is too low"} is no number')),
    (400, error("This server does not support embeddings formats other than float")),
    (404, error("The file 'a.png' was not found")),
    (200, {"base_resp": {"status_code": 2013, "status_msg": "invalid params"}}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "status", "body"),
    [
        (name, status, body)
        for name, replies in [
            ("content_filter", CONTENT),
            ("quota", QUOTA),
            ("rate_limit", RATE_LIMIT),
            ("bad_request", TOO_LARGE),
            ("bad_request", CANNOT_SERVE),
            ("bad_request", NOT_FINITE),
            ("length", LENGTH),
            ("server", SERVER),
            ("setup", SETUP),
            ("access_denied", ACCESS_DENIED),
            ("bad_request", BAD_REQUEST),
        ]
        for status, body in replies
    ],
)
def test_codes_types_and_words_decide_whose_fault_it_is(expected: str, status: int, body: Any) -> None:
    found = error_of(status, body)
    assert (found.error_class, found.message) == (expected, found.message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (openrouter("Provider returned error", 400, {"error": {"message": "At most 2 images are allowed."}}),
         "At most 2 images are allowed."),
        (openrouter("Provider returned error", 400, "plain words"), "plain words"),
        (openrouter("Provider returned error", 400, [{"error": {"message": "In a list.", "code": 400}}]), "In a list."),
        (error('{"error": {"message": "JSON in a message", "code": 400}}'), "JSON in a message"),
        (error('litellm.BadRequestError: V - {"error": {"message": "Behind a proxy"}}'), "Behind a proxy"),
        ({"object": "error", "message": {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}},
         "seed: Extra inputs"),
        ({"errors": ["first", "second"]}, "first"),
        ({"detail": {"error": {"message": "below detail"}}}, "below detail"),
        ({"error": "invalid_request", "error_description": "x", "message": "The sentence."}, "The sentence."),
        (error('litellm.E: V - {"error": {"message": "Behind it", "code": 1}}. Received Model Group=m'), "Behind it"),
        (error("{'error': 'As Python writes it'}"), "As Python writes it"),
        (error("litellm.E: V - b'{\\n  \"error\": {\"message\": \"In bytes\", \"code\": 1}\\n}'"), "In bytes"),
        (error('No number: {"message": "the row"}'), 'No number: {"message": "the row"}'),
        ({"base_resp": {"status_code": 1000, "status_msg": "In another place"}}, "In another place"),
        (error("Something precise", innererror={"message": "less", "code": "C"}), "Something precise"),
    ],
)  # fmt: skip
def test_the_message_is_the_one_that_names_the_fault(body: Any, message: str) -> None:
    assert error_of(400, body).message == message


def test_a_validation_error_names_its_key_as_the_param() -> None:
    body = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}
    found = error_of(422, body)
    assert (found.error_class, found.param, found.message) == (
        "bad_request", "seed", "seed: Extra inputs are not permitted",
    )  # fmt: skip


def test_messages_that_differ_in_numbers_and_quotations_have_the_same_words() -> None:
    first = masked_words("Row 'text 1' asks for 1,234 tokens, at most 512 are allowed (\"x\")")
    assert first == masked_words("Row 'another one' asks for 99 tokens, at most 512.5 are allowed (\"y z\")")
    assert first != masked_words("Row 'text 1' asks for 1,234 tokens, at least 512 are needed (\"x\")")


def test_messages_that_differ_in_the_id_of_their_request_have_the_same_words() -> None:
    first = masked_words("unsupported option top_k (request id: 20250612a8f3Kq2z)")
    assert first == masked_words("unsupported option top_k (request id: 20250613b1c9Zz7y)")
    assert first != masked_words("unsupported option top_p (request id: 20250612a8f3Kq2z)")
