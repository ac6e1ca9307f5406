"""Finish reasons: one table for the names of all providers."""

import pytest

from connectors.transport.finish_reasons import ending, finish_reason


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("stop STOP Stop eos eos_token end_turn endTurn stop_sequence STOP_SEQUENCE COMPLETE completed", "stop"),
        ("REASON_STOP FinishReason.STOP FINISH_REASON_STOP word normal", "stop"),
        ("tool_calls tool-calls TOOL_CALL tool_use toolUse function_call", "tool_calls"),
        ("length LENGTH MAX_TOKENS max_tokens maxTokens max_output_tokens model_length ERROR_LIMIT limit", "length"),
        ("model_context_window_exceeded token_limit REASON_MAX_LEN FinishReason.MAX_TOKENS max-tokens", "length"),
        ("content_filter content-filter CONTENT_FILTERED SAFETY RECITATION PROHIBITED_CONTENT", "content_filter"),
        ("BLOCKLIST SPII IMAGE_SAFETY refusal ERROR_TOXIC sensitive guardrail_intervened", "content_filter"),
        ("abort error ERROR cancelled USER_CANCEL timeout pause_turn insufficient_system_resource", "unknown"),
        ("OTHER MALFORMED_FUNCTION_CALL load network_error not_finished FINISH_REASON_UNSPECIFIED", "unknown"),
    ],
)
def test_a_reason_has_one_meaning_under_the_names_of_all_providers(names: str, expected: str) -> None:
    assert {name: ending(name) for name in names.split()} == dict.fromkeys(names.split(), expected)


@pytest.mark.parametrize("cause", ["RECITATION", "PROHIBITED_CONTENT", "OTHER"])
def test_the_cause_after_a_colon_does_not_change_the_reason(cause: str) -> None:
    assert ending(f"content_filter: {cause}") == "content_filter"
    assert ending(f"function_call_filter: {cause}") == "unknown"


@pytest.mark.parametrize("value", [None, "", " ", "null", "None", 0, {}])
def test_a_value_that_states_no_reason_counts_as_stop(value: object) -> None:
    assert finish_reason(value) is None
    assert ending(finish_reason(value)) == "stop"


def test_a_reason_is_returned_as_the_provider_wrote_it() -> None:
    assert finish_reason("MAX_TOKENS") == "MAX_TOKENS"
    assert finish_reason({"type": "abort", "message": "aborted"}) == "abort"
    assert ending(finish_reason(2)) == "unknown"
