"""The table of parameters: keys in the job file, and their paths in the bytes sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.behaviour.api.parameters_media import MEDIA_GROUPS
from tests.behaviour.api.row import DATA_URL, TEXT, Group, P

LOOK_UP = {"name": "look_up", "parameters": {"type": "object", "properties": {"of": {"type": "string"}}}}
TOOL = (
    "tools: [{type: function, function: {name: look_up, parameters: {type: object, properties: {of: {type: string}}}}}]"
)
NAMED = "tool_choice: {type: function, function: {name: look_up}}"
SAID = [{"role": "user", "content": TEXT}]
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"of": 1}'}}
DIALOGUE = """messages:
  - system: Be brief.
  - {role: user, content: "{{ text }}", name: ann}
  - {role: assistant, content: null, tool_calls: [{id: c1, name: look_up, arguments: '{"of": 1}'}]}
  - {role: tool, tool_call_id: c1, content: "3"}
"""
SCHEMA = "{type: object, properties: {a: {type: integer}}, required: [a], additionalProperties: false}"
A = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
NAMED_FORM = f"{{type: json_schema, json_schema: {{name: it, strict: true, schema: {SCHEMA}}}}}"

SAMPLING = (
    P("2", "max_tokens", "params: {max_tokens: 7}", "max_tokens", 7),
    P("2", "temperature", "params: {temperature: 0.25}", "temperature", 0.25),
    P("2", "top_p", "params: {top_p: 0.5}", "top_p", 0.5),
    P("2", "stream", "stream: true", "stream", True),
    P("2", "stop", "params: {stop: END}", "stop", "END"),
    P("2", "stop: a list", "params: {stop: [a, b]}", "stop", ["a", "b"]),
    P("2", "presence_penalty", "params: {presence_penalty: -2}", "presence_penalty", -2),
    P("2", "frequency_penalty", "params: {frequency_penalty: 1.5}", "frequency_penalty", 1.5),
    P("2", "tools", TOOL, "tools", [{"type": "function", "function": LOOK_UP}]),
    P("2", "parallel_tool_calls", f"{TOOL}\nparams: {{parallel_tool_calls: false}}", "parallel_tool_calls", False),
    P("2", "seed", "params: {seed: -3}", "seed", -3),
    P("2", "user", "params: {user: u-1}", "user", "u-1"),
)
"""Common to chat (section 1.3.2) and the reference's responses (2.3.2); the section is filled in below."""

CHOICES = (
    P("1.8", "none", f"{TOOL}\ntool_choice: none", "tool_choice", "none"),
    P("1.8", "auto", f"{TOOL}\ntool_choice: auto", "tool_choice", "auto"),
    P("1.8", "required", f"{TOOL}\ntool_choice: required", "tool_choice", "required"),
    P("1.8", "a function", f"{TOOL}\n{NAMED}", "tool_choice", {"type": "function", "function": {"name": "look_up"}}),
)

TURNS = (
    P("1.7", "system", DIALOGUE, "messages.0", {"role": "system", "content": "Be brief."}),
    P("1.7", "user, name", DIALOGUE, "messages.1", {"role": "user", "content": TEXT, "name": "ann"}),
    P("1.7", "tool_calls", DIALOGUE, "messages.2", {"role": "assistant", "content": None, "tool_calls": [CALL]}),
    P("1.7", "tool_call_id", DIALOGUE, "messages.3", {"role": "tool", "tool_call_id": "c1", "content": "3"}),
    P("2.10", "a dialogue of a column", "messages: {column: history}", "messages.1.tool_calls", [CALL]),
    P("2.10", "its JSON text", "messages: {column: past}", "messages.2.tool_call_id", "c1"),
)


def of(section: str, rows: tuple[P, ...]) -> tuple[P, ...]:
    """The same rows in another section."""
    return tuple(P(section, row.name, row.says, row.place, row.sent) for row in rows)


CHAT = Group(
    {"endpoint": "chat", "model": "gpt-4o-mini", "messages": [{"user": "{{ text }}"}]},
    "/chat/completions",
    "CreateChatCompletionRequest",
    (
        P("1.3.1", "model", "model: gpt-4", "model", "gpt-4"),
        P("1.3.1", "messages", 'messages: [{user: "{{ text }}"}]', "messages", SAID),
        *of("1.3.2", SAMPLING),
        P("1.3.2", "n", "params: {n: 3}", "n", 3),
        P("1.3.2", "tool_choice", f"{TOOL}\ntool_choice: auto", "tool_choice", "auto"),
        P("1.3.2", "response_format", "params: {response_format: {type: text}}", "response_format.type", "text"),
        P("1.3.2", "logit_bias", "params: {logit_bias: {50256: -100}}", "logit_bias", {"50256": -100}),
        P("1.3.2", "logprobs", "params: {logprobs: true}", "logprobs", True),
        P("1.3.2", "top_logprobs", "params: {logprobs: true, top_logprobs: 2}", "top_logprobs", 2),
        *TURNS,
        *CHOICES,
        P("1.9", "json_object", "params: {response_format: {type: json_object}}", "response_format",
          {"type": "json_object"}),
        P("1.9", "json_schema", f"params: {{response_format: {NAMED_FORM}}}", "response_format.json_schema",
          {"name": "it", "strict": True, "schema": A}),
        P("1.9", "json_schema: a typed output", "output: {a: {type: integer}}\nstructured: schema",
          "response_format.json_schema.schema", A),
        # From the current description.
        P("OpenAPI", "max_completion_tokens", "params: {max_completion_tokens: 9}", "max_completion_tokens", 9),
        P("OpenAPI", "metadata", "params: {metadata: {job: night}}", "metadata", {"job": "night"}),
        P("OpenAPI", "moderation", "params: {moderation: {model: m}}", "moderation", {"model": "m"}),
        P("OpenAPI", "prediction", "params: {prediction: {type: content, content: x}}", "prediction.content", "x"),
        P("OpenAPI", "prompt_cache_key", "params: {prompt_cache_key: k}", "prompt_cache_key", "k"),
        P("OpenAPI", "prompt_cache_options", "params: {prompt_cache_options: {ttl: 30m}}", "prompt_cache_options",
          {"ttl": "30m"}),
        P("OpenAPI", "prompt_cache_retention", "params: {prompt_cache_retention: 24h}", "prompt_cache_retention",
          "24h"),
        P("OpenAPI", "reasoning_effort", "params: {reasoning_effort: low}", "reasoning_effort", "low"),
        P("OpenAPI", "safety_identifier", "params: {safety_identifier: s}", "safety_identifier", "s"),
        P("OpenAPI", "service_tier", "params: {service_tier: flex}", "service_tier", "flex"),
        P("OpenAPI", "store", "params: {store: true}", "store", True),
        P("OpenAPI", "stream_options", "stream: true", "stream_options", {"include_usage": True}),
        P("OpenAPI", "verbosity", "params: {verbosity: high}", "verbosity", "high"),
        P("OpenAPI", "web_search_options", "params: {web_search_options: {search_context_size: low}}",
          "web_search_options.search_context_size", "low"),
        P("extra_body", "anything", "extra_body: {user: of-extra-body}", "user", "of-extra-body"),
    ),
)  # fmt: skip

REFERENCE = Group(
    {"endpoint": "responses", "dialect": "reference", "model": "gpt-4", "messages": [{"user": "{{ text }}"}]},
    "/responses",
    "reference",
    (
        P("2.3.1", "model", "model: gpt-4o", "model", "gpt-4o"),
        P("2.3.1", "messages", 'messages: [{user: "{{ text }}"}]', "messages", SAID),
        *of("2.3.2", SAMPLING),
        P("2.3.2", "response_format", "response_format: {type: standard}", "response_format.type", "standard"),
        P("2.3.2", "tool_choice", f"{TOOL}\ntool_choice: required", "tool_choice", "required"),
        *of("2.10", TURNS),
        *of("2.8", CHOICES),
        P("2.7.1", "standard", "response_format: {type: standard}", "response_format", {"type": "standard"}),
        P("2.7.2", "structured", f"response_format: {{type: structured, schema: {SCHEMA}, strict: true}}",
          "response_format", {"type": "structured", "schema": A, "strict": True}),
        P("2.7.3", "enhanced", "response_format: {type: enhanced, include_metadata: true, include_confidence: true, "
          "include_sources: true, include_reasoning: false}", "response_format",
          {"type": "enhanced", "include_metadata": True, "include_confidence": True, "include_sources": True,
           "include_reasoning": False}),
        P("2.7.4", "template", "response_format: {type: template, template_id: analysis_report, "
          'variables: {title: "{{ text }}", pages: 3}, customization_level: high}', "response_format",
          {"type": "template", "template_id": "analysis_report", "variables": {"title": TEXT, "pages": 3},
           "customization_level": "high"}),
        P("2.7.5", "json_schema", f"response_format: {NAMED_FORM}", "response_format",
          {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": A}}),
        P("2.7.5", "json_schema: a typed output", "output: {a: {type: integer}}", "response_format.json_schema.schema",
          A),
    ),
)  # fmt: skip

FLAT = "tools: [{type: function, name: look_up, parameters: {type: object}, strict: true}]"
RESPONSES = Group(
    {"endpoint": "responses", "model": "gpt-4o-mini", "input": "{{ text }}"},
    "/responses",
    "CreateResponse",
    (
        P("OpenAPI", "model", "model: gpt-5", "model", "gpt-5"),
        P("OpenAPI", "input: text", 'input: "{{ text }}"', "input", TEXT),
        P("OpenAPI", "input: turns", 'input: [{developer: "{{ text }}"}]', "input.0",
          {"role": "developer", "content": TEXT}),
        P("OpenAPI", "input: a picture", 'input: [{user: [{text: "{{ text }}"}, {image: url, detail: high}]}]',
          "input.0.content", [{"type": "input_text", "text": TEXT},
                              {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "high"}]),
        P("OpenAPI", "input: a call", "input: {column: history}", "input.1",
          {"type": "function_call", "name": "look_up", "arguments": '{"of": 1}', "call_id": "c1"}),
        P("OpenAPI", "input: its result", "input: {column: history}", "input.2",
          {"type": "function_call_output", "call_id": "c1", "output": "3"}),
        P("OpenAPI", "instructions", 'instructions: "Of {{ id }}"', "instructions", "Of 1"),
        P("OpenAPI", "text", "text: {verbosity: low, format: {type: json_object}}", "text",
          {"verbosity": "low", "format": {"type": "json_object"}}),
        P("OpenAPI", "text: a typed output", "output: {a: {type: integer}}", "text.format.schema", A),
        P("OpenAPI", "tools", FLAT, "tools", [{"type": "function", "name": "look_up", "strict": True,
                                               "parameters": {"type": "object"}}]),
        P("OpenAPI", "tools as chat writes them", TOOL, "tools.0.name", "look_up"),
        P("OpenAPI", "tool_choice", f"{FLAT}\n{NAMED}", "tool_choice", {"type": "function", "name": "look_up"}),
        P("OpenAPI", "stream", "stream: true", "stream", True),
        P("OpenAPI", "stream_options", "stream: true\nparams: {stream_options: {include_obfuscation: false}}",
          "stream_options", {"include_obfuscation": False}),
        P("OpenAPI", "context_management",
          "params: {context_management: [{type: compaction, compact_threshold: 1000}]}",
          "context_management.0.compact_threshold", 1000),
        P("OpenAPI", "conversation", "params: {conversation: conv_1}", "conversation", "conv_1"),
        P("OpenAPI", "include", "params: {include: [message.output_text.logprobs]}", "include",
          ["message.output_text.logprobs"]),
        P("OpenAPI", "max_output_tokens", "params: {max_output_tokens: 16}", "max_output_tokens", 16),
        P("OpenAPI", "max_tool_calls", "params: {max_tool_calls: 2}", "max_tool_calls", 2),
        P("OpenAPI", "metadata", "params: {metadata: {job: night}}", "metadata", {"job": "night"}),
        P("OpenAPI", "moderation", "params: {moderation: {model: m}}", "moderation.model", "m"),
        P("OpenAPI", "parallel_tool_calls", f"{FLAT}\nparams: {{parallel_tool_calls: true}}", "parallel_tool_calls",
          True),
        P("OpenAPI", "previous_response_id", "params: {previous_response_id: r1}", "previous_response_id", "r1"),
        P("OpenAPI", "prompt", "params: {prompt: {id: p1}}", "prompt", {"id": "p1"}),
        P("OpenAPI", "prompt_cache_key", "params: {prompt_cache_key: k}", "prompt_cache_key", "k"),
        P("OpenAPI", "prompt_cache_options", "params: {prompt_cache_options: {mode: explicit}}",
          "prompt_cache_options.mode", "explicit"),
        P("OpenAPI", "prompt_cache_retention", "params: {prompt_cache_retention: 24h}", "prompt_cache_retention",
          "24h"),
        P("OpenAPI", "reasoning", "params: {reasoning: {effort: low}}", "reasoning.effort", "low"),
        P("OpenAPI", "safety_identifier", "params: {safety_identifier: s}", "safety_identifier", "s"),
        P("OpenAPI", "service_tier", "params: {service_tier: flex}", "service_tier", "flex"),
        P("OpenAPI", "store", "params: {store: false}", "store", False),
        P("OpenAPI", "temperature", "params: {temperature: 2}", "temperature", 2),
        P("OpenAPI", "top_logprobs", "params: {top_logprobs: 3}", "top_logprobs", 3),
        P("OpenAPI", "top_p", "params: {top_p: 0.5}", "top_p", 0.5),
        P("OpenAPI", "truncation", "params: {truncation: auto}", "truncation", "auto"),
        P("OpenAPI", "user", "params: {user: u-1}", "user", "u-1"),
    ),
)  # fmt: skip


def shown(section: str, name: str, image: str, url: str, **more: str) -> P:
    """A table row for an image in a message."""
    keys = "".join(f", {key}: {value}" for key, value in more.items())
    return P(section, name, f"messages: [{{user: [{{text: Look.}}, {{image: {image}{keys}}}]}}]",
             "messages.0.content.1", {"type": "image_url", "image_url": {"url": url, **more}})  # fmt: skip


URL = "https://example.com/a.png"
TWO = "messages: [{user: [{text: Compare.}, {image: url}, {image: photo}]}]"
VISION = Group(
    CHAT.step,
    "/chat/completions",
    "CreateChatCompletionRequest",
    (
        shown("3.3.1", "a URL of a column", "url", URL),
        shown("3.3.1", "a URL of the job file", URL, URL),
        shown("3.3.2", "a data URL", "data_url", DATA_URL["png"]),
        shown("3.3.2", "bytes of a column", "photo", DATA_URL["png"]),
        P("3.3.3", "several pictures: the first", TWO, "messages.0.content.1.image_url.url", URL),
        P("3.3.3", "several pictures: the second", TWO, "messages.0.content.2.image_url.url", DATA_URL["png"]),
        shown("3.4", "low", "png", DATA_URL["png"], detail="low"),
        shown("3.4", "high", "png", DATA_URL["png"], detail="high"),
        shown("3.4", "auto", "png", DATA_URL["png"], detail="auto"),
        shown("13.4.2", "png", "png", DATA_URL["png"]),
        shown("13.4.2", "jpeg", "jpg", DATA_URL["jpg"]),
        shown("13.4.2", "webp", "webp", DATA_URL["webp"]),
        shown("13.4.2", "gif", "gif", DATA_URL["gif"]),
    ),
)

GROUPS: Mapping[str, Group] = {
    "chat": CHAT,
    "vision": VISION,
    "responses": RESPONSES,
    "reference": REFERENCE,
    **MEDIA_GROUPS,
}


@dataclass(frozen=True, slots=True)
class Section:
    """The parameters that a section of the reference lists, transcribed by hand."""

    number: str
    names: str


LISTED: Mapping[str, tuple[Section, ...]] = {
    "chat": (
        Section("1.3.1", "model, messages"),
        Section(
            "1.3.2",
            "max_tokens, temperature, top_p, n, stream, stop, presence_penalty, frequency_penalty, tools, tool_choice, "
            "parallel_tool_calls, response_format, seed, logit_bias, logprobs, top_logprobs, user",
        ),
        Section("1.7", "system, user, name, tool_calls, tool_call_id"),
        Section("1.8", "none, auto, required, a function"),
        Section("1.9", "json_object, json_schema"),
    ),
    "reference": (
        Section("2.3.1", "model, messages"),
        Section(
            "2.3.2",
            "max_tokens, temperature, top_p, stream, stop, presence_penalty, frequency_penalty, response_format, "
            "tools, tool_choice, parallel_tool_calls, seed, user",
        ),
        Section("2.7.1", "standard"),
        Section("2.7.2", "structured"),
        Section("2.7.3", "enhanced"),
        Section("2.7.4", "template"),
        Section("2.7.5", "json_schema"),
        Section("2.8", "none, auto, required, a function"),
        Section("2.10", "user, tool_calls, tool_call_id"),
    ),
    "vision": (
        Section("3.3.1", "a URL of a column"),
        Section("3.3.2", "a data URL"),
        Section("3.3.3", "several pictures"),
        Section("3.4", "low, high, auto"),
        Section("13.4.2", "png, jpeg, webp, gif"),
    ),
    "speech": (
        Section("4.3", "model, input, voice, response_format, speed"),
        Section("4.4", "alloy, echo, fable, onyx, nova, shimmer"),
        Section("4.5", "mp3, opus, aac, flac, wav, pcm"),
    ),
    "transcription": (
        Section("5.3", "file, model, language, prompt, response_format, temperature"),
        Section("5.4", "mp3, mp4, mpeg, mpga, m4a, wav, webm"),
        Section("5.5", "json, text, srt, verbose_json, vtt"),
    ),
    "translation": (Section("6.3", "file, model, prompt, response_format, temperature"),),
    "embeddings": (
        Section("7.3", "input, model, encoding_format, dimensions"),
        Section("7.4", "text-embedding-3-small, text-embedding-3-large, text-embedding-ada-002"),
    ),
    "image_generation": (
        Section("8.3", "prompt, model, n, quality, size, style"),
        Section("8.4.1", "256x256, 512x512, 1024x1024"),
        Section("8.4.2", "1024x1024, 1792x1024, 1024x1792"),
    ),
    "image_edit": (Section("9.3", "image, mask, prompt, model"),),
    "image_variation": (Section("10.3", "image, model, n"),),
}
"""Every section that lists request parameters."""

LEFT_OUT: Mapping[str, frozenset[str]] = {
    # No column takes audio answers; tools replaced functions. extra_body can send them.
    "CreateChatCompletionRequest": frozenset({"audio", "modalities", "function_call", "functions"}),
    # The answer would arrive later, by another request.
    "CreateResponse": frozenset({"background"}),
}
"""Keys of the OpenAPI description without a key in job files."""


def names_of(row: P) -> Any:
    """The parameter that a row covers: `stop: a list` covers stop."""
    return frozenset(row.name.partition(":")[0].split(", "))
