"""Schemas of the three tables that every sink has: section 4 of the contract."""

from collections.abc import Iterable, Mapping

import pyarrow as pa

RUN_ID = pa.field("_run_id", pa.string())
ROW_FINGERPRINT = pa.field("_row_fingerprint", pa.string())

_FAILURE = (
    pa.field("step", pa.string()),
    pa.field("error_class", pa.string()),
    pa.field("http_status", pa.int32()),
    pa.field("type", pa.string()),
    pa.field("param", pa.string()),
    pa.field("code", pa.string()),
    pa.field("message", pa.string()),
    pa.field("details", pa.string()),
    pa.field("request_id", pa.string()),
    pa.field("attempts", pa.int32()),
    pa.field("run_id", pa.string()),
    pa.field("failed_at", pa.timestamp("us", "UTC")),
    pa.field("fingerprint", pa.string()),
)
FAILURE_COLUMNS = len(_FAILURE)
"""Columns of the errors table after those of the key."""

_USAGE = pa.schema(
    [
        pa.field("run_id", pa.string()),
        pa.field("job", pa.string()),
        pa.field("step", pa.string()),
        pa.field("keys", pa.list_(pa.string())),
        pa.field("fingerprints", pa.list_(pa.string())),
        pa.field("provider", pa.string()),
        pa.field("endpoint", pa.string()),
        pa.field("model", pa.string()),
        pa.field("model_version", pa.string()),
        pa.field("attempt", pa.int32()),
        pa.field("http_status", pa.int32()),
        pa.field("error_class", pa.string()),
        pa.field("input_tokens", pa.int64()),
        pa.field("cached_tokens", pa.int64()),
        pa.field("output_tokens", pa.int64()),
        pa.field("reasoning_tokens", pa.int64()),
        pa.field("audio_seconds", pa.float64()),
        pa.field("characters", pa.int64()),
        pa.field("images", pa.int64()),
        pa.field("cost_usd", pa.float64()),
        pa.field("started_at", pa.timestamp("us", "UTC")),
        pa.field("latency_ms", pa.float64()),
        pa.field("first_token_ms", pa.float64()),
        pa.field("request_id", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("service_tier", pa.string()),
        pa.field("tool_calls", pa.int64()),
    ]
)
LATER_USAGE_COLUMNS = ("service_tier", "tool_calls")
"""The last columns, which usage tables of version 0.1.0 lack: `Sink.prepare` adds them as nulls."""


def results_schema(key: Iterable[pa.Field], carried: Iterable[pa.Field], outputs: Iterable[pa.Field]) -> pa.Schema:
    """Return key columns, carried columns, outputs, `_run_id`, `_row_fingerprint`."""
    return pa.schema([*key, *carried, *outputs, RUN_ID, ROW_FINGERPRINT])


def errors_schema(key: Iterable[pa.Field]) -> pa.Schema:
    """Return key columns (null for an unreadable line), then what failed, why and when."""
    keys = [field.with_nullable(True) for field in key]
    names = failure_names(field.name for field in keys)
    return pa.schema([*keys, *(field.with_name(names[field.name]) for field in _FAILURE)])


def failure_names(key: Iterable[str]) -> Mapping[str, str]:
    """Return the columns of the errors table besides the key; one with the name of a key column is `error_<name>`."""
    taken = {name.lower() for name in key}
    return {field.name: f"error_{field.name}" if field.name in taken else field.name for field in _FAILURE}


def missing_usage_columns(existing: Iterable[str]) -> tuple[pa.Field, ...]:
    """Return the columns that an older usage table lacks; nothing if other columns differ as well."""
    names = list(existing)
    missing = tuple(_USAGE.field(name) for name in LATER_USAGE_COLUMNS if name not in names)
    return missing if [*names, *(field.name for field in missing)] == _USAGE.names else ()


def usage_schema() -> pa.Schema:
    """Return one row per HTTP exchange; `keys` and `fingerprints` have one element per row that it answered."""
    return _USAGE
