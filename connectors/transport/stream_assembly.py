"""Streamed answers, joined into what the same request gives without a stream."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from connectors.contracts import MalformedReply
from connectors.transport.bounded_json import loads
from connectors.transport.sse import Event

_TOLD_ONCE = ("id", "created", "model", "system_fingerprint", "service_tier")


def assemble_completion(events: Iterable[Event]) -> dict[str, Any]:
    """A chat completion of its chunks, or `{error: ...}` where the stream tells one; MalformedReply where it ends
    too early."""
    stream = _Stream("chat.completion")
    turns: dict[int, _Turn] = {}
    for chunk in stream.chunks(events):
        for choice in _dicts(chunk.get("choices")):
            index = choice.get("index")
            turns.setdefault(index if isinstance(index, int) else 0, _Turn()).add(choice)
    if stream.error is not None:
        return stream.error
    stream.check_end(bool(turns) and all(turn.finish_reason is not None for turn in turns.values()))
    choices = [
        {"index": index, "message": turn.message(), "logprobs": turn.logprobs, "finish_reason": turn.finish_reason}
        for index, turn in sorted(turns.items())
    ]
    return {**stream.told, "choices": choices, "usage": stream.usage}


def assemble_reference(events: Iterable[Event]) -> dict[str, Any]:
    """A response as section 2.5 of the reference has it, of the chunks of section 2.6; else as `joined_completion`."""
    stream = _Stream("response")
    turn = _Turn()
    for chunk in stream.chunks(events):
        turn.add(chunk)
    if stream.error is not None:
        return stream.error
    stream.check_end(turn.finish_reason is not None)
    message = turn.message()
    if turn.metadata:
        message["metadata"] = turn.metadata
    return {**stream.told, "response": message, "usage": stream.usage, "finish_reason": turn.finish_reason}


def assemble_response(events: Iterable[Event]) -> dict[str, Any]:
    """The response that the last event of an OpenAI stream holds; else as `joined_completion`."""
    items: dict[int, Any] = {}
    for event in events:
        if event.data.strip() == "[DONE]":
            continue
        told = _parsed(event.data)
        kind = told.get("type", event.name)
        if kind == "error" or (kind is None and "error" in told):
            return {"error": told.get("error") or {key: told[key] for key in told if key != "sequence_number"}}
        if kind == "response.output_item.done" and isinstance(told.get("output_index"), int):
            items[told["output_index"]] = told.get("item")
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            response = told.get("response")
            if not isinstance(response, dict):
                raise MalformedReply(f"the event {kind} has no response")
            # Some servers leave the output out of it, since its items have been told one by one.
            output = response.get("output") or [item for _, item in sorted(items.items())]
            return {**response, "output": output}
    raise MalformedReply("the stream broke off before the response was completed")


class _Stream:
    """What the chunks of one stream say besides their deltas."""

    def __init__(self, object_name: str) -> None:
        self.told: dict[str, Any] = {"object": object_name}
        self.usage: Any = None
        self.error: dict[str, Any] | None = None
        self._count = 0
        self._ended = False

    def chunks(self, events: Iterable[Event]) -> Iterable[dict[str, Any]]:
        """Up to `[DONE]` or an error."""
        for event in events:
            if event.data.strip() == "[DONE]":
                self._ended = True
                return
            chunk = _parsed(event.data)
            if event.name == "error" or chunk.get("error"):
                self.error = {"error": chunk.get("error") or chunk}
                return
            self._count += 1
            for key in _TOLD_ONCE:
                if self.told.get(key) is None and chunk.get(key) is not None:
                    self.told[key] = chunk[key]
            if isinstance(chunk.get("usage"), dict):
                self.usage = chunk["usage"]
            yield chunk

    def check_end(self, finished: bool) -> None:
        """Either sign of the end will do: some servers never send `[DONE]`, some no finish_reason."""
        if not (self._ended or finished):
            raise MalformedReply(f"the stream broke off after {self._count} chunks, without a finish_reason")


class _Turn:
    """One answer, growing by deltas."""

    def __init__(self) -> None:
        self._role = "assistant"
        self._texts: dict[str, list[str]] = {}
        self._content: Any = None
        """A content that is no text, such as an object of a structured format."""
        self._calls: list[dict[str, Any]] = []
        self._places: list[Any] = []
        self._logprobs: dict[str, list[Any]] | None = None
        self.metadata: dict[str, Any] = {}
        self.finish_reason: str | None = None

    def add(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta")
        if isinstance(delta, Mapping):
            self._grow(delta)
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self.finish_reason = reason
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, Mapping):
            self._logprobs = self._logprobs or {}
            for key in ("content", "refusal"):
                if isinstance(logprobs.get(key), list):
                    self._logprobs.setdefault(key, []).extend(logprobs[key])

    def _grow(self, delta: Mapping[str, Any]) -> None:
        if isinstance(delta.get("role"), str):
            self._role = delta["role"]
        for key in ("content", "refusal"):
            said = delta.get(key)
            if isinstance(said, list):
                said = "".join(part["text"] for part in _dicts(said) if isinstance(part.get("text"), str))
            if isinstance(said, str):
                self._texts.setdefault(key, []).append(said)
            elif isinstance(said, dict) and key == "content":
                self._content = {**(self._content or {}), **said}
        for call in _dicts(delta.get("tool_calls")):
            self._add_call(call)
        if isinstance(delta.get("function_call"), dict):
            self._add_call({"index": "function_call", "function": delta["function_call"]})
        if isinstance(delta.get("metadata"), dict):
            self.metadata |= delta["metadata"]

    def _add_call(self, call: Mapping[str, Any]) -> None:
        place, id = call.get("index"), call.get("id") or None
        known = self._places.index(place) if place in self._places else None
        if place is None and id is None and self._calls:
            known = len(self._calls) - 1
        # Some servers give every call the index 0, or none; its id tells it then.
        if known is not None and id is not None and self._calls[known].get("id") not in (None, id):
            known = next((at for at, made in enumerate(self._calls) if made.get("id") == id), None)
        if known is None:
            known = len(self._calls)
            self._calls.append({"id": None, "type": "custom" if "custom" in call else "function"})
            self._places.append(place)
        made = self._calls[known]
        made["id"] = made["id"] or id
        for kind, text in (("function", "arguments"), ("custom", "input")):
            told = call.get(kind)
            if isinstance(told, Mapping):
                inner = made.setdefault(kind, {"name": None, text: ""})
                inner["name"] = inner["name"] or told.get("name")
                piece = told.get(text)
                if piece is not None:
                    inner[text] += piece if isinstance(piece, str) else orjson.dumps(piece).decode()

    @property
    def logprobs(self) -> dict[str, Any] | None:
        return None if self._logprobs is None else {"content": None, "refusal": None, **self._logprobs}

    def message(self) -> dict[str, Any]:
        joined = {key: "".join(pieces) for key, pieces in self._texts.items()}
        content = self._content if self._content is not None else joined.get("content")
        message: dict[str, Any] = {"role": self._role, "content": content, "refusal": joined.get("refusal")}
        if self._calls:
            message["tool_calls"] = self._calls
        return message


def _parsed(data: str) -> dict[str, Any]:
    try:
        told = loads(data)
    except orjson.JSONDecodeError as exc:
        raise MalformedReply(f"the stream holds what is no JSON ({exc}): {data[:100]}") from exc
    if not isinstance(told, dict):
        raise MalformedReply(f"the stream holds what is no JSON object: {data[:100]}")
    return told


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
