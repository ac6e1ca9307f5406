"""Assembly of streamed answers: the reply is the same as without a stream."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.contracts import MalformedReply
from connectors.transport.sse import Event
from connectors.transport.stream_assembly import assemble_completion, assemble_reference, assemble_response


def stream(*chunks: object, end: str | None = "[DONE]") -> list[Event]:
    events = [Event(orjson.dumps(chunk).decode()) for chunk in chunks]
    return events if end is None else [*events, Event(end)]


def delta(finish: str | None = None, index: int = 0, **fields: object) -> dict[str, object]:
    return {"id": "c", "model": "m", "choices": [{"index": index, "delta": fields, "finish_reason": finish}]}


def test_deltas_are_assembled_into_a_completion() -> None:
    chunks = stream(
        delta(role="assistant", content=""),
        delta(content="Hel"),
        delta(content="lo"),
        delta("stop"),
        {"id": "c", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    )
    assert assemble_completion(chunks) == {
        "object": "chat.completion",
        "id": "c",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }


def test_interleaved_answers_are_separated_by_their_index() -> None:
    chunks = stream(delta(index=1, content="b"), delta(index=0, content="a"), delta("stop", 1), delta("length", 0))
    choices = assemble_completion(chunks)["choices"]
    assert [(each["index"], each["message"]["content"], each["finish_reason"]) for each in choices] == [
        (0, "a", "length"),
        (1, "b", "stop"),
    ]


def call(index: int | None, id: str | None, name: str | None, arguments: str | None) -> dict[str, object]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"index": index, "id": id, "function": function}


@pytest.mark.parametrize(
    "pieces",
    [
        [call(0, "x", "f", ""), call(0, None, None, '{"a":'), call(1, "y", "g", "{}"), call(0, None, None, "1}")],
        [call(0, "x", "f", '{"a":1}'), call(0, "y", "g", "{}")],
        [call(None, "x", "f", '{"a":'), call(None, None, None, "1}"), call(None, "y", "g", "{}")],
        [call(0, "x", "f", '{"a":'), call(0, "x", "f", "1}"), call(1, "y", "g", "{}")],
    ],
    ids=["as OpenAI", "always index 0", "no index", "id and name repeated"],
)
def test_tool_calls_are_assembled_piece_by_piece(pieces: list[dict[str, object]]) -> None:
    chunks = stream(*(delta(tool_calls=[piece]) for piece in pieces), delta("tool_calls"))
    assert assemble_completion(chunks)["choices"][0]["message"]["tool_calls"] == [
        {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "y", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_logprobs_and_refusals_are_concatenated() -> None:
    one, two = {"token": "a", "logprob": -1}, {"token": "b", "logprob": -2}
    chunks = [delta(refusal="I can"), delta("stop", refusal="not")]
    for chunk, token in zip(chunks, (one, two), strict=True):
        chunk["choices"][0]["logprobs"] = {"content": [token], "refusal": None}  # type: ignore[index]
    (choice,) = assemble_completion(stream(*chunks))["choices"]
    assert choice["message"]["refusal"] == "I cannot"
    assert choice["logprobs"] == {"content": [one, two], "refusal": None}


def test_a_spoken_answer_has_its_transcript_and_not_its_sound() -> None:
    pieces = ({"id": "a", "transcript": "Good "}, {"data": "AA=="}, {"transcript": "day"}, {"expires_at": 1})
    (choice,) = assemble_completion(stream(*(delta(audio=piece) for piece in pieces), delta("stop")))["choices"]
    assert (choice["message"]["content"], choice["message"]["audio"]) == (None, {"transcript": "Good day"})


def test_a_stream_without_either_sign_of_its_end_is_malformed() -> None:
    with pytest.raises(MalformedReply, match="ended after 1 chunks"):
        assemble_completion(stream(delta(content="Hel"), end=None))
    with pytest.raises(MalformedReply, match="the stream ended"):
        assemble_completion(stream(delta("stop", 0, content="a"), delta(index=1, content="b"), end=None))
    with pytest.raises(MalformedReply, match="the stream ended"):
        assemble_reference(stream({"delta": {"content": "a"}}, end=None))
    with pytest.raises(MalformedReply, match="the stream ended"):
        assemble_response(stream({"type": "response.output_text.delta", "delta": "a"}, end=None))
    with pytest.raises(MalformedReply, match="the stream ended"):
        assemble_response(stream({"type": "response.created", "response": {}}))
    assert assemble_completion(stream(delta("stop", content="a"), end=None))["choices"][0]["message"]["content"] == "a"


def test_an_empty_reason_with_every_chunk_is_no_end() -> None:
    chunks = [delta("", content="Hel"), delta("", content="lo")]
    with pytest.raises(MalformedReply, match="ended after 2 chunks"):
        assemble_completion(stream(*chunks, end=None))
    (choice,) = assemble_completion(stream(*chunks))["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", None)


@pytest.mark.parametrize("late", ["no JSON", "[]"])
def test_the_usage_after_the_end_counts_and_nothing_else(late: str) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    events = [*stream(delta("stop", content="Hello")), Event(late), *stream(delta(content=" you"), {"usage": usage})]
    reply = assemble_completion(events)
    assert (reply["choices"][0]["message"]["content"], reply["usage"]) == ("Hello", usage)


def test_the_error_of_an_answer_stays_with_it() -> None:
    last = delta("error")
    last["choices"][0] |= {"error": {"code": 502}, "native_finish_reason": "LOST"}  # type: ignore[index]
    for end in ("[DONE]", None):
        (choice,) = assemble_completion(stream(delta(content="Hel"), last, end=end))["choices"]
        assert {key: choice[key] for key in ("finish_reason", "error", "native_finish_reason")} == {
            "finish_reason": "error",
            "error": {"code": 502},
            "native_finish_reason": "LOST",
        }


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_stays_in_an_answer_without_a_text_only(key: str) -> None:
    pieces = [delta(**{key: "Let me "}), delta(**{key: "see"})]
    (choice,) = assemble_completion(stream(*pieces, delta("stop")))["choices"]
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None, key: "Let me see"}
    (choice,) = assemble_completion(stream(*pieces, delta("stop", content="yes")))["choices"]
    assert choice["message"] == {"role": "assistant", "content": "yes", "refusal": None}


def test_an_event_that_is_not_json_is_malformed() -> None:
    for text in ('{"choices": [', "[]"):
        with pytest.raises(MalformedReply, match=r"not (a )?JSON"):
            assemble_completion([Event(text)])


@pytest.mark.parametrize("assemble", [assemble_completion, assemble_reference, assemble_response])
def test_an_error_in_a_stream_is_the_reply(assemble: object) -> None:
    error = {"message": "overloaded", "type": "server_error", "param": None, "code": None}
    assert callable(assemble)
    assert assemble(stream(delta(content="a"), {"error": error})) == {"error": error}


@pytest.mark.parametrize("assemble", [assemble_completion, assemble_reference, assemble_response])
@pytest.mark.parametrize(
    "error",
    [
        {"object": "error", "message": "too long", "type": "BadRequestError", "param": None, "code": 400},
        {"choices": None, "base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}},
    ],
    ids=["vllm", "minimax"],
)
def test_an_error_without_the_key_error_is_the_reply_too(assemble: object, error: dict[str, Any]) -> None:
    assert callable(assemble)
    assert assemble(stream(delta(content="a"), error)) == error


def test_an_error_event_of_responses_drops_its_sequence_number() -> None:
    event = {"type": "error", "code": "server_error", "message": "m", "param": None, "sequence_number": 3}
    error = {"type": "error", "code": "server_error", "message": "m", "param": None}
    assert assemble_response(stream(event)) == {"error": error}


def test_a_response_that_ends_with_done_alone_has_the_items_and_texts_that_were_sent() -> None:
    item = {"type": "reasoning", "summary": []}
    chunks = stream(
        {"type": "response.created", "response": {"model": "m-1", "status": "in_progress", "output": []}},
        {"type": "response.output_text.delta", "output_index": 1, "delta": "Hel"},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.output_text.delta", "output_index": 1, "delta": "lo"},
    )
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]}
    assert assemble_response(chunks) == {"model": "m-1", "output": [item, message]}


def test_items_sent_one_by_one_replace_an_omitted_output() -> None:
    item = {"type": "message", "content": [{"type": "output_text", "text": "a"}]}
    chunks = stream(
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": {"status": "completed", "output": []}},
    )
    assert assemble_response(chunks) == {"status": "completed", "output": [item]}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("content", "refusal", "role", "tool_calls", "function_call", "metadata", "reasoning_content"), json_values
        ),
    ),
    json_values,
    json_values,
)
def test_any_delta_can_be_assembled(fields: dict[str, object], logprobs: object, index: object) -> None:
    choice = {"index": index, "delta": fields, "logprobs": logprobs, "finish_reason": "stop"}
    assert "choices" in assemble_completion(stream({"choices": [choice]}))
    assert "response" in assemble_reference(stream(choice))
