"""Assembly of streamed answers into the reply that the same request gives without a stream."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from connectors.contracts import MalformedReply
from connectors.transport.bounded_json import parse_json
from connectors.transport.error_replies import is_error_body
from connectors.transport.finish_reasons import finish_reason
from connectors.transport.reply_texts import REASONING_KEYS, content_text, transcript
from connectors.transport.sse import Event
from connectors.transport.token_usage import StreamedUsage

_HEADER_KEYS = ("id", "created", "model", "system_fingerprint")
_LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


def assemble_completion(events: Iterable[Event]) -> dict[str, Any]:
    """Return a chat completion, or `{error: ...}` if the stream has an error; MalformedReply if it ends too early."""
    stream = _Stream("chat.completion")
    answers: dict[int, _Answer] = {}
    for chunk in stream.chunks(events):
        for choice in _dicts(chunk.get("choices")):
            index = choice.get("index")
            answers.setdefault(index if isinstance(index, int) else 0, _Answer()).add(choice)
    if stream.error is not None:
        return stream.error
    stream.check_end(bool(answers) and all(answer.has_ended for answer in answers.values()))
    choices = [
        {
            "index": index,
            "message": answer.message(),
            "logprobs": answer.logprobs,
            "finish_reason": answer.finish_reason,
            **answer.further_keys,
        }
        for index, answer in sorted(answers.items())
    ]
    return {**stream.header, "choices": choices, "usage": stream.usage}


def assemble_reference(events: Iterable[Event]) -> dict[str, Any]:
    """Return a response (section 2.5 of the reference) from chunks (section 2.6); else as `assemble_completion`."""
    stream = _Stream("response")
    answer = _Answer()
    for chunk in stream.chunks(events):
        answer.add(chunk)
    if stream.error is not None:
        return stream.error
    stream.check_end(answer.has_ended)
    message = answer.message()
    if answer.metadata:
        message["metadata"] = answer.metadata
    response = {"response": message, "usage": stream.usage, "finish_reason": answer.finish_reason}
    return {**stream.header, **response, **answer.further_keys}


def assemble_response(events: Iterable[Event]) -> dict[str, Any]:
    """Return the response in the last event of an OpenAI stream; else as `assemble_completion`.

    A stream that ends with `[DONE]` instead is whole, too: its response has what was sent of the output.
    """
    items: dict[int, Any] = {}
    texts: dict[int, str] = {}
    header: dict[str, Any] = {}
    has_end_marker = False
    for event in events:
        if event.data.strip() == "[DONE]":
            has_end_marker = True
            continue
        body = _parse_object(event.data)
        kind = body.get("type", event.name)
        if kind == "error" or (kind is None and "error" in body):
            return {"error": body.get("error") or {key: body[key] for key in body if key != "sequence_number"}}
        if is_error_body(body):
            return body
        if kind is None and body.get("object") == "response":
            # A whole response as the only event.
            return body
        if kind == "response.output_item.done" and isinstance(body.get("output_index"), int):
            items[body["output_index"]] = body.get("item")
        if kind == "response.created" and isinstance(body.get("response"), dict):
            header = {key: body["response"][key] for key in ("object", *_HEADER_KEYS) if key in body["response"]}
        if kind == "response.output_text.delta" and isinstance(body.get("delta"), str):
            place = body.get("output_index")
            place = place if isinstance(place, int) else 0
            texts[place] = texts.get(place, "") + body["delta"]
        if kind in _LAST_EVENTS:
            response = body.get("response")
            if not isinstance(response, dict):
                raise MalformedReply(f"the event {kind} has no response")
            # Some servers omit the output here because they have sent its items one by one.
            output = response.get("output") or [item for _, item in sorted(items.items())]
            return {**response, "output": output}
    if not has_end_marker or not (items or texts):
        raise MalformedReply("the stream ended before the response was completed")
    written = {place: _message(text) for place, text in texts.items()}
    return {**header, "output": [item for _, item in sorted({**written, **items}.items())]}


def _message(text: str) -> dict[str, Any]:
    """Return the item of a response that has a text."""
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


class _Stream:
    """The parts of one stream's chunks besides their deltas."""

    def __init__(self, object_name: str) -> None:
        self.header: dict[str, Any] = {"object": object_name}
        self._usage = StreamedUsage()
        self.error: dict[str, Any] | None = None
        self._chunk_count = 0
        self._has_end_marker = False

    def chunks(self, events: Iterable[Event]) -> Iterable[dict[str, Any]]:
        """Yield the chunks up to `[DONE]` or an error; after that only the usage counts."""
        for event in events:
            if event.data.strip() == "[DONE]":
                self._has_end_marker = True
                continue
            if self._has_end_marker:
                self._add_late_usage(event)
                continue
            chunk = _parse_object(event.data)
            if event.name == "error" or chunk.get("error"):
                self.error = {"error": chunk.get("error") or chunk}
                return
            if is_error_body(chunk):
                self.error = chunk
                return
            self._chunk_count += 1
            for key in _HEADER_KEYS:
                if self.header.get(key) is None and chunk.get(key) is not None:
                    self.header[key] = chunk[key]
            if chunk.get("service_tier") is not None:
                # The first chunks may repeat the tier that the request names.
                self.header["service_tier"] = chunk["service_tier"]
            self._usage.add(chunk)
            yield chunk

    def _add_late_usage(self, event: Event) -> None:
        try:
            self._usage.add(_parse_object(event.data))
        except MalformedReply:
            return  # The answer is whole.

    @property
    def usage(self) -> dict[str, Any] | None:
        """The usage of the whole stream; None without any."""
        return self._usage.total()

    def check_end(self, has_finish_reason: bool) -> None:
        """Accept either sign of the end: some servers never send `[DONE]`, some no finish_reason."""
        if not (self._has_end_marker or has_finish_reason):
            raise MalformedReply(f"the stream ended after {self._chunk_count} chunks, without a finish_reason")


class _Answer:
    """One answer, assembled from deltas."""

    def __init__(self) -> None:
        self._role = "assistant"
        self._texts: dict[str, list[str]] = {}
        self._structured_content: dict[str, Any] | None = None
        """Content that is an object, of a structured format."""
        self._calls: list[dict[str, Any]] = []
        self._call_indexes: list[Any] = []
        """The stream's own index of each call."""
        self._logprobs: dict[str, list[Any]] | None = None
        self.metadata: dict[str, Any] = {}
        self.finish_reason: str | None = None
        self.further_keys: dict[str, Any] = {}
        """The choice's own error, and the reason of the provider behind a router."""

    def add(self, choice: Mapping[str, Any]) -> None:
        """Append the delta of a choice."""
        delta = choice.get("delta")
        if "delta" not in choice and not self._texts:
            # A whole completion as the only event.
            delta = choice.get("message")
        if isinstance(delta, Mapping):
            self._add_delta(delta)
        # Some servers send an empty reason with every chunk.
        self.finish_reason = finish_reason(choice.get("finish_reason")) or self.finish_reason
        for key in ("error", "native_finish_reason"):
            if choice.get(key):
                self.further_keys[key] = choice[key]
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, Mapping):
            self._logprobs = self._logprobs or {}
            for key in ("content", "refusal"):
                if isinstance(logprobs.get(key), list):
                    self._logprobs.setdefault(key, []).extend(logprobs[key])

    def _add_delta(self, delta: Mapping[str, Any]) -> None:
        if isinstance(delta.get("role"), str):
            self._role = delta["role"]
        for key in ("content", "refusal", *REASONING_KEYS):
            value = delta.get(key)
            if isinstance(value, list):
                value = content_text(value)
            if isinstance(value, str):
                self._texts.setdefault(key, []).append(value)
            elif isinstance(value, dict) and key == "content":
                self._structured_content = {**(self._structured_content or {}), **value}
        for call in _dicts(delta.get("tool_calls")):
            self._add_call(call)
        if isinstance(delta.get("function_call"), dict):
            self._add_call({"index": "function_call", "function": delta["function_call"]})
        if (spoken := transcript(delta)) is not None:
            self._texts.setdefault("transcript", []).append(spoken)
        if isinstance(delta.get("metadata"), dict):
            self.metadata |= delta["metadata"]

    def _add_call(self, delta: Mapping[str, Any]) -> None:
        index, call_id = delta.get("index"), delta.get("id") or None
        position = self._call_indexes.index(index) if index in self._call_indexes else None
        if index is None and call_id is None and self._calls:
            position = len(self._calls) - 1
        # Some servers give every call the index 0, or no index; then its id identifies it.
        if position is not None and call_id is not None and self._calls[position].get("id") not in (None, call_id):
            position = next((at for at, call in enumerate(self._calls) if call.get("id") == call_id), None)
        if position is None:
            position = len(self._calls)
            self._calls.append({"id": None, "type": "custom" if "custom" in delta else "function"})
            self._call_indexes.append(index)
        call = self._calls[position]
        call["id"] = call["id"] or call_id
        for kind, text_key in (("function", "arguments"), ("custom", "input")):
            source = delta.get(kind)
            if isinstance(source, Mapping):
                target = call.setdefault(kind, {"name": None, text_key: ""})
                target["name"] = target["name"] or source.get("name")
                piece = source.get(text_key)
                if piece is not None:
                    target[text_key] += piece if isinstance(piece, str) else orjson.dumps(piece).decode()

    @property
    def has_ended(self) -> bool:
        """Whether the provider has stated how the answer ended."""
        return self.finish_reason is not None or "error" in self.further_keys

    @property
    def logprobs(self) -> dict[str, Any] | None:
        """The log probabilities of content and refusal."""
        return None if self._logprobs is None else {"content": None, "refusal": None, **self._logprobs}

    def message(self) -> dict[str, Any]:
        """Return the message in the shape of chat completions."""
        texts = {key: "".join(pieces) for key, pieces in self._texts.items()}
        content = self._structured_content if self._structured_content is not None else texts.get("content")
        message: dict[str, Any] = {"role": self._role, "content": content, "refusal": texts.get("refusal")}
        if not content and not self._calls:
            # Some servers put the whole answer there; otherwise it would only make the ledger larger.
            message |= {key: texts[key] for key in REASONING_KEYS if texts.get(key)}
        if "transcript" in texts:
            message["audio"] = {"transcript": texts["transcript"]}
        if self._calls:
            message["tool_calls"] = self._calls
        return message


def _parse_object(data: str) -> dict[str, Any]:
    try:
        # Some servers split a character among two events.
        value = parse_json(data, keeps_halves=True)
    except orjson.JSONDecodeError as exc:
        raise MalformedReply(f"an event of the stream is not JSON ({exc}): {data[:100]}") from exc
    if not isinstance(value, dict):
        raise MalformedReply(f"an event of the stream is not a JSON object: {data[:100]}")
    return value


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
