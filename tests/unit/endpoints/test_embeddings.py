"""Embeddings: the vectors of a reply, and what the words of a refusal mean for the size of a group and its encoding."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from connectors.contracts import EmbeddingFacts, MalformedReply, StepContext
from connectors.endpoints.embeddings import EmbeddingsEndpoint, EmbeddingsStep
from connectors.records import Reply, Request, RowError, Usage

UNKNOWN = EmbeddingFacts()


def endpoint(facts: EmbeddingFacts = UNKNOWN, **keys: object) -> EmbeddingsEndpoint:
    step = EmbeddingsStep.model_validate(
        {"name": "v", "endpoint": "embeddings", "model": "e", "input": "{{ t }}", "dimensions": 2, **keys}
    )
    return step.build(StepContext("p@there", {"t": pa.string()}, Path("/"), (), (), embedding=facts))


def requests_of(it: EmbeddingsEndpoint, count: int) -> list[Request]:
    made = [it.request({"t": f"text {n}"}, str(n)) for n in range(count)]
    return [request for request in made if isinstance(request, Request)]


def refusal(message: str, status: int = 400, **more: str) -> RowError:
    return RowError("bad_request", message, status, **more)


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        ("batch size is invalid, it should not be larger than 10.: input.contents", 10),
        ("invalid request: total number of texts must be at most 96 - received 200", 96),
        ("batch size 200 > maximum allowed batch size 32", 32),
        ("Too many inputs. The max number of inputs is 16. Contact us to raise it.", 16),
        ("input: array too long. Expected an array with maximum length 150, but got length 200 instead.", 150),
        ("List should have at most 64 items after validation, not 200", 64),
        ("BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch", 100),
        ("The batch size limit is 128. The batch size of your request is 200.", 128),
        ("input数组最大不得超过64条", 64),
        ("too many inputs", 100),
        ("Too many items: 200", 100),
        ("input[17]: the text has 9000 tokens, at most 8192 are allowed", None),
        ("max 300000 tokens per request", None),
        ("input[3] is not allowed", None),
        ("no such model", None),
    ],
)
def test_the_limit_of_texts_is_read_from_the_words_of_a_refusal(message: str, limit: int | None) -> None:
    assert endpoint().group_limit(refusal(message), 200) == limit


def test_a_single_text_is_never_too_many() -> None:
    assert endpoint().group_limit(refusal("too many inputs"), 1) is None


@pytest.mark.parametrize(
    ("message", "is_certain"),
    [
        ("encoding_format: only 'float' is supported", True),
        ("base64 is not available", True),
        ("Extra inputs are not permitted", False),
        ("Unsupported parameter", False),
        ("status 400 with an empty body", False),
        ("this model does not support that parameter", None),
        ("the input is too long", None),
        ("batch size is invalid", None),
        ("no", None),
    ],
)
def test_a_refusal_of_base64_is_certain_if_it_is_named_and_possible_if_nothing_else_is(
    message: str, is_certain: bool | None
) -> None:
    plain = endpoint().plain_encoding(refusal(message))
    assert (None if plain is None else plain[1]) == is_certain


def test_the_name_of_the_parameter_may_be_anywhere_in_the_error() -> None:
    plain = endpoint().plain_encoding(refusal("Invalid value", param="encoding_format"))
    assert plain is not None and plain[1]
    assert endpoint().group_limit(refusal("Bad value", details='{"msg": "at most 8 items"}'), 200) == 8


def test_floats_are_requested_without_the_parameter_under_the_same_fingerprint() -> None:
    usual = endpoint()
    plain = usual.plain_encoding(refusal("encoding_format"))
    assert plain is not None
    assert plain[0].plain_encoding(refusal("encoding_format")) is None
    (request,), (again,) = requests_of(usual, 1), requests_of(plain[0], 1)
    assert request.fingerprint == again.fingerprint
    sent = [orjson.loads(one.call([request]).body or b"") for one in (usual, plain[0])]
    expected = {"model": "e", "encoding_format": "base64", "dimensions": 2, "input": ["text 0"]}
    assert sent == [expected, {name: value for name, value in expected.items() if name != "encoding_format"}]


def test_what_the_ledger_knows_sets_the_groups_and_the_encoding() -> None:
    it = endpoint(EmbeddingFacts(max_texts=3, encoding="float"))
    assert [len(group) for group in it.group_requests(requests_of(it, 8))] == [3, 3, 2]
    assert b"encoding_format" not in (it.call(requests_of(it, 1)).body or b"")
    stated = endpoint(EmbeddingFacts(encoding="float"), params={"encoding_format": "float"})
    assert b'"encoding_format":"float"' in (stated.call(requests_of(stated, 1)).body or b"")


def vector(number: float) -> bytes:
    return np.array([number, 0], dtype="<f4").tobytes()


def reply_of(*vectors: object, indexes: Sequence[object] | None = None) -> Reply:
    data = [{"embedding": each} for each in vectors]
    for entry, index in zip(data, indexes or (), strict=False):
        entry["index"] = index
    return Reply(200, {}, orjson.dumps({"data": data, "usage": {"prompt_tokens": 9}}), 1.0)


@pytest.mark.parametrize(
    ("indexes", "expected"),
    [
        ((), [1, 2, 3]),
        ((None, 1, 2), [1, 2, 3]),
        ((2, 0, 1), [2, 3, 1]),
        ((2.0, "0", 1), [2, 3, 1]),
        ((0, 0, 0), [1, 2, 3]),
        ((1, 2, 3), [1, 2, 3]),
        ((3, 1, 2), [2, 3, 1]),
    ],
)
def test_each_vector_goes_to_its_text(indexes: Sequence[object], expected: list[int]) -> None:
    it = endpoint()
    answers = it.answers(requests_of(it, 3), reply_of([1, 0], [2, 0], [3, 0], indexes=indexes))
    assert answers == [vector(number) for number in expected]


@pytest.mark.parametrize("indexes", [(0, 0, 1), (0, 1, 3), (2, 3, 4), (-1, 0, 1), (0, 1, "x"), (1, 1, 1)])
def test_indexes_that_leave_a_text_without_a_vector_are_malformed(indexes: Sequence[object]) -> None:
    it = endpoint()
    with pytest.raises(MalformedReply, match="repeated or out of range"):
        it.answers(requests_of(it, 3), reply_of([1, 0], [2, 0], [3, 0], indexes=indexes))


def test_a_vector_with_null_or_nan_fails_its_own_text_only() -> None:
    it = endpoint()
    null = RowError("invalid_answer", "the vector holds null")
    infinite = RowError("invalid_answer", "the vector holds NaN or infinity")
    reply = reply_of([1, 0], [2, None], b64encode(vector(np.inf)).decode(), [[4, 0]])
    assert it.answers(requests_of(it, 4), reply) == [vector(1), null, infinite, vector(4)]


@pytest.mark.parametrize("nothing", [None, [], ""], ids=["null", "list", "text"])
def test_an_empty_vector_fails_its_own_text_only_unless_all_are_empty(nothing: Any) -> None:
    it = endpoint()
    empty = RowError("invalid_answer", "the vector is empty")
    assert it.answers(requests_of(it, 3), reply_of([1, 0], nothing, [3, 0])) == [vector(1), empty, vector(3)]
    assert it.answers(requests_of(it, 1), reply_of(nothing)) == [empty]
    with pytest.raises(MalformedReply, match="the vectors of all texts are empty"):
        it.answers(requests_of(it, 2), reply_of(nothing, nothing))


def test_one_vector_for_several_texts_means_that_the_server_takes_one_at_a_time() -> None:
    it = endpoint()
    with pytest.raises(MalformedReply) as caught:
        it.answers(requests_of(it, 3), reply_of([1, 0]))
    error = caught.value.error
    assert error == refusal("the reply has 1 of 3 vectors: the server takes at most 1 texts a request", status=200)
    assert it.group_limit(error, 3) == 1
    assert caught.value.usage == Usage(9, output_tokens=0)


def test_a_text_that_the_server_has_dropped_is_found_by_halving() -> None:
    it = endpoint()
    with pytest.raises(MalformedReply) as caught:
        it.answers(requests_of(it, 3), reply_of([1, 0], [2, 0]))
    error = caught.value.error
    assert error == refusal("the reply has 2 of 3 vectors", status=200)
    assert it.group_limit(error, 3) is None


@pytest.mark.parametrize(("count", "words"), [(0, "no vectors for 1 texts"), (2, "2 vectors for 1 texts")])
def test_no_vector_for_a_text_or_too_many_is_malformed(count: int, words: str) -> None:
    it = endpoint()
    with pytest.raises(MalformedReply, match=words) as caught:
        it.answers(requests_of(it, 1), reply_of(*([1, 0] for _ in range(count))))
    assert caught.value.error is None


@pytest.mark.parametrize("vector", [[[]], "AAAAAAA="])
def test_a_vector_without_whole_numbers_never_gives_a_model_its_length(vector: object) -> None:
    it = endpoint(dimensions=None)
    assert it.dimensions_unknown
    with pytest.raises(MalformedReply, match=r"a vector has [01]\.?2?5? numbers"):
        it.answers(requests_of(it, 1), reply_of(vector))
