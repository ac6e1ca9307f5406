"""The reference's format of responses (its section 2): `response_format`, `response`, and metadata in a struct."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from connectors.contracts import MalformedReply
from connectors.endpoints.conversation.openai_responses import status_reason
from connectors.endpoints.conversation.output_columns import ReplyChoice
from connectors.endpoints.conversation.tool_calls import parse_tool_calls
from connectors.errors import JobError, KeyPath, did_you_mean
from connectors.templating.template_tree import TemplateTree, compile_template, literal, mapping_template, plain_json
from connectors.transport.finish_reasons import finish_reason
from connectors.transport.reply_body import excerpt
from connectors.transport.reply_texts import reasoning_text
from connectors.transport.sse import Event
from connectors.transport.stream_assembly import assemble_reference
from connectors.transport.token_usage import parse_count


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> list[str] | None:
    return value if isinstance(value, list) and all(isinstance(each, str) for each in value) else None


_METADATA: Mapping[str, tuple[pa.DataType, Callable[[Any], Any]]] = {
    # 2.9.1
    "confidence_score": (pa.float64(), _number),
    "content_type": (pa.string(), _text),
    "word_count": (pa.int64(), parse_count),
    "reading_time": (pa.string(), _text),
    "language": (pa.string(), _text),
    # 2.9.2
    "structure_compliance": (pa.bool_(), _flag),
    "validation_passed": (pa.bool_(), _flag),
    "schema_version": (pa.string(), _text),
    "field_completeness": (pa.float64(), _number),
    # 2.9.3
    "data_sources": (pa.list_(pa.string()), _texts),
    "accuracy_level": (pa.string(), _text),
    "last_updated": (pa.string(), _text),
    "tool_execution_time": (pa.string(), _text),
    # 2.9.4
    "template_version": (pa.string(), _text),
    "auto_generated": (pa.bool_(), _flag),
    "customization_level": (pa.string(), _text),
    "template_compliance": (pa.float64(), _number),
}
"""Name -> its type, and a function that returns a value of it or None."""

METADATA = pa.struct([*((name, kind) for name, (kind, _) in _METADATA.items()), ("other", pa.string())])
"""Section 2.9 of the reference; `other`: JSON text of unknown keys and of values with another type."""

_FORMATS: Mapping[str, Mapping[str, type]] = {
    "standard": {},
    "structured": {"schema": dict, "strict": bool},
    "enhanced": {
        "include_metadata": bool,
        "include_confidence": bool,
        "include_sources": bool,
        "include_reasoning": bool,
    },
    "template": {"template_id": str, "variables": dict, "customization_level": str},
    "json_schema": {"json_schema": dict},
}
"""Section 2.7 of the reference: type -> its keys."""
_REQUIRED_KEY = {"structured": "schema", "template": "template_id", "json_schema": "json_schema"}
_TYPE_NAMES = {dict: "keys and values", bool: "true or false", str: "text"}


class ReferenceResponsesFormat:
    """The wire format of responses in the reference."""

    path = "/responses"
    messages_key = "messages"
    modes = ("schema", "prompt")
    max_token_params = ("max_tokens",)

    def render_messages(self, messages: Sequence[Mapping[str, Any]]) -> Any:
        """Return the messages unchanged."""
        return messages

    def with_schema(self, body: Mapping[str, Any], way: str, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Use `response_format`."""
        if way == "prompt":
            return dict(body)
        form = {"name": name, "strict": True, "schema": schema}
        return {**body, "response_format": {"type": "json_schema", "json_schema": form}}

    def answer_body(self, text: str, model: str | None) -> dict[str, Any]:
        """Return the reply whose answer is this text."""
        return {"model": model, "response": {"role": "assistant", "content": text}, "finish_reason": "stop"}

    def assemble(self, events: Iterable[Event]) -> dict[str, Any]:
        """Assemble the chunks of section 2.6."""
        return assemble_reference(events)

    def parse_choices(self, reply: Mapping[str, Any]) -> Sequence[ReplyChoice]:
        """Return the one response; content that is an object becomes JSON text."""
        response = reply.get("response")
        if not isinstance(response, dict):
            raise MalformedReply(f"the reply has no response: {excerpt(reply)}")
        content, calls = response.get("content"), parse_tool_calls(response)
        reasons = (finish_reason(part.get("finish_reason")) for part in (reply, response))
        reason = status_reason(reply) or status_reason(response) or next(filter(None, reasons), None)
        refusal = response.get("refusal")
        text = content if content is None or isinstance(content, str) else orjson.dumps(content).decode()
        return [
            ReplyChoice(
                text,
                reason or ("tool_calls" if calls and not content else "stop"),
                refusal if isinstance(refusal, str) else None,
                calls,
                metadata=_metadata(response.get("metadata")),
                reasoning=None if text else reasoning_text(response),
                error=response.get("error") or reply.get("error"),
            )
        ]


def response_format(config: Any, known: Iterable[str], where: KeyPath) -> TemplateTree:
    """Compile the step's `response_format`; a template's id and variables are templates. JobError if it is invalid."""
    kind = config.get("type") if isinstance(config, Mapping) else None
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise JobError((*where, "type"), f"found {kind!r}", did_you_mean(str(kind), _FORMATS))
    keys = _FORMATS[kind]
    parts: dict[str, TemplateTree] = {"type": literal(kind)}
    for key, value in config.items():
        if key == "type":
            continue
        if key not in keys:
            raise JobError((*where, key), f"no such key of the format {kind}", did_you_mean(str(key), keys))
        if not isinstance(value, keys[key]):
            raise JobError((*where, key), f"found {value!r}, expected {_TYPE_NAMES[keys[key]]}", "correct it")
        has_templates = key in ("template_id", "variables")
        parts[key] = (
            compile_template(value, known, (*where, key)) if has_templates else literal(plain_json(value, where))
        )
    if _REQUIRED_KEY.get(kind, "type") not in config:
        raise JobError((*where, _REQUIRED_KEY[kind]), "missing", f"the format {kind} needs it")
    return mapping_template(parts)


def _metadata(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    known: dict[str, Any] = dict.fromkeys(_METADATA)
    other: dict[str, Any] = {}
    for name, each in value.items():
        converted = _METADATA[name][1](each) if name in _METADATA else None
        if converted is not None:
            known[name] = converted
        elif each is not None:
            other[name] = each
    return {**known, "other": orjson.dumps(other).decode() if other else None}
