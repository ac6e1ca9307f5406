"""The packed form of a step's requests: groups, body, bounds, and the answers of a reply."""

import json
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from connectors.endpoints.chat import ChatCompletionsFormat
from connectors.endpoints.conversation.openai_responses import OpenAIResponsesFormat
from connectors.endpoints.conversation.output_columns import ReplyChoice
from connectors.endpoints.conversation.packing.pack_format import packed_output_tokens, packed_schema, row_ids
from connectors.endpoints.conversation.packing.packed_conversation import PackedConversation, PackOptions, PackTokens
from connectors.endpoints.conversation.reference_responses import ReferenceResponsesFormat
from connectors.endpoints.conversation.structured.structured_modes import StructuredMode
from connectors.records import Request, RowError
from connectors.tokens import count_tokens

SYSTEM = {"role": "system", "content": "You label support tickets."}
TOPIC = {"topic": {"type": "string", "enum": ["billing", "bug"]}}


def packed(mode: str = "schema", model_output_tokens: int | None = None, **options: Any) -> PackedConversation:
    return PackedConversation(
        PackOptions(**options),
        ChatCompletionsFormat(),
        [SYSTEM],
        {"model": "m", "temperature": 0, "max_tokens": 60},
        "label",
        TOPIC,
        StructuredMode(mode),
        "Fit this: {schema}",
        PackTokens(None, "gpt-4o", 10, model_output_tokens, model_output_tokens),
    )


def single(text: str, repair_of: bytes | None = None) -> Request:
    body = {"model": "m", "messages": [SYSTEM, {"role": "user", "content": text}]}
    raw = orjson.dumps(body)
    tokens = 10 + count_tokens(text, None)
    return Request(text.encode().ljust(16, b".")[:16], raw, tokens, 60, (text,), repair_of)


def sizes(groups: Any) -> list[int]:
    return [len(group) for group in groups]


def test_rows_fill_packs_in_their_order() -> None:
    requests = [single(f"row {number}") for number in range(7)]
    assert sizes(packed().groups(requests, 3)) == [3, 3, 1]


@pytest.mark.parametrize("word", [" word", "\U0001fae0"], ids=["few tokens a byte", "many tokens a byte"])
def test_a_pack_has_as_many_row_tokens_as_allowed(word: str) -> None:
    row = word * 100
    requests = [single(f"{row}{number}") for number in range(5)]
    tokens = sum(count_tokens(f"{row}{number}", "gpt-4o") for number in range(2))
    assert sizes(packed(tokens=tokens).groups(requests, 20)) == [2, 2, 1]
    assert sizes(packed(tokens=tokens - 1).groups(requests, 20)) == [1, 1, 1, 1, 1]


def test_a_row_above_the_limit_goes_alone() -> None:
    requests = [single("a"), single(" word" * 5000), single("c")]
    assert sizes(packed(tokens=1000).groups(requests, 20)) == [1, 1, 1]


def test_a_pack_is_smaller_if_the_model_could_not_answer_it() -> None:
    requests = [single(f"row {number}") for number in range(6)]
    limit = packed_output_tokens(60, 2)
    assert sizes(packed(model_output_tokens=limit).groups(requests, 20)) == [2, 2, 2]


def test_a_repair_goes_alone() -> None:
    requests = [single("a"), single("b", repair_of=b"1" * 16), single("c")]
    assert sorted(sizes(packed().groups(requests, 20))) == [1, 2]


def test_the_packed_request_has_constant_messages_once_and_a_line_for_each_row() -> None:
    group = (single("first\ntext"), single("second"))
    request = packed().request(group)
    body = json.loads(request.body)
    lines = body["messages"][-1]["content"].splitlines()[-2:]
    first, second = row_ids([one.fingerprint for one in group])
    assert body["messages"][:-1] == [SYSTEM]
    assert [json.loads(line) for line in lines] == [
        {"id": first, "content": "first\ntext"},
        {"id": second, "content": "second"},
    ]
    assert body["response_format"]["json_schema"] == {"name": "label", "strict": True, "schema": packed_schema(TOPIC)}
    assert (body["max_tokens"], request.output_bound) == (packed_output_tokens(60, 2),) * 2
    assert body["temperature"] == 0


def test_the_schema_is_the_same_for_every_pack() -> None:
    bodies = [json.loads(packed().request([single(str(n)) for n in range(rows)]).body) for rows in (2, 5)]
    assert bodies[0]["response_format"] == bodies[1]["response_format"]


def test_without_schemas_the_instruction_shows_the_schema() -> None:
    body = json.loads(packed("prompt").request([single("a"), single("b")]).body)
    assert "response_format" not in body
    assert body["messages"][0]["content"] == f"Fit this: {orjson.dumps(packed_schema(TOPIC)).decode()}"
    assert json.loads(packed("json_object").request([single("a")]).body)["response_format"] == {"type": "json_object"}


def test_answers_are_those_of_single_replies() -> None:
    group = (single("a"), single("b"))
    first, second = row_ids([one.fingerprint for one in group])
    text = json.dumps({"answers": [{"id": second, "topic": "bug"}, {"id": first, "topic": "billing"}]})
    answers = packed().answers(group, text, "m-2026", lambda answer: (answer,))
    contents = ('{"topic":"billing"}', '{"topic":"bug"}')
    assert answers == [
        (orjson.dumps(ChatCompletionsFormat().answer_body(content, "m-2026")), (content,)) for content in contents
    ]


def test_a_row_without_a_valid_answer_has_none() -> None:
    group = (single("a"), single("b"))
    first, second = row_ids([one.fingerprint for one in group])
    text = json.dumps({"answers": [{"id": first, "topic": "???"}, {"id": second, "topic": "bug"}]})
    wrong = RowError("invalid_answer", "no such topic")
    answers = packed().answers(group, text, None, lambda answer: wrong if "???" in answer else (answer,))
    assert [answer is None for answer in answers] == [True, False]
    assert packed().answers(group, None, None, lambda answer: (answer,)) == [None, None]


@pytest.mark.parametrize("form", [ChatCompletionsFormat(), OpenAIResponsesFormat(True), ReferenceResponsesFormat()])
def test_an_answer_is_read_as_its_reply_would_be(form: Any) -> None:
    (choice,) = form.parse_choices(form.answer_body('the "answer"', "m"))
    assert replace(choice, tool_calls=tuple(choice.tool_calls)) == ReplyChoice('the "answer"', "stop")


def test_responses_are_packed_in_their_own_format() -> None:
    form = PackedConversation(
        PackOptions(), OpenAIResponsesFormat(True), [], {"model": "m", "max_output_tokens": 50}, "s", None,
        StructuredMode("schema"), "", PackTokens(None, "gpt-4o", 3, None, None),
    )  # fmt: skip
    requests = [
        Request(bytes([n]) * 16, orjson.dumps({"model": "m", "input": f"text {n}"}), 8, 50, (str(n),)) for n in (1, 2)
    ]
    body = json.loads(form.request(requests).body)
    assert body["text"]["format"]["schema"] == packed_schema(None)
    assert body["max_output_tokens"] == packed_output_tokens(50, 2)
    assert '"content":"text 2"' in body["input"]
    first, _ = row_ids([one.fingerprint for one in requests])
    text = json.dumps({"answers": [{"id": first, "answer": "yes"}]})
    answer, missing = form.answers(requests, text, "m", lambda answer: (answer,))
    assert missing is None
    assert answer == (orjson.dumps(OpenAIResponsesFormat(True).answer_body("yes", "m")), ("yes",))


@pytest.mark.parametrize("options", [{"rows": 0}, {"tokens": 0}, {"verify": 1.5}, {"agreement": -1}, {"row": 5}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        PackOptions(**options)


def test_the_text_of_a_row_is_found_whatever_it_resembles() -> None:
    texts = ['"', "", "max_tokens", "user", '"}],"max_tokens":60}', "row 1", "\\", "größer"]
    for first in texts:
        form = packed()
        assert [form.item(single(text))["content"] for text in (first, *texts)] == [first, *texts]
        content = orjson.loads(form.request([single(text) for text in texts]).body)["messages"][-1]["content"]
        lines = [json.loads(line)["content"] for line in content.splitlines() if line.startswith("{")]
        assert lines == texts
