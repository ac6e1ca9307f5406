"""Embeddings of providers that refuse base64 or large groups: learned from the refusal, once."""

from typing import Any

import pytest
from aiohttp import web

from tests.conftest import error_reply
from tests.support.exhaustive import every_nth

STEPS = '[{name: v, endpoint: embeddings, provider: test, model: e, input: "{{ text }}", dimensions: 4}]'
UNSIZED = STEPS.replace(", dimensions: 4", "")


def floats(body: Any, index: Any = lambda place: {"index": place}) -> Any:
    """The vectors of all texts, as lists of floats; `index`: the keys besides the vector."""
    vectors = [[float(len(text))] * 4 for text in body["input"]]
    data = [{"object": "embedding", "embedding": vector, **index(place)} for place, vector in enumerate(vectors)]
    return {"object": "list", "model": "e", "data": data, "usage": {"total_tokens": len(vectors)}}


def sizes(provider: Any) -> list[int]:
    """The number of texts in each request."""
    return [len(body["input"]) for _, body in provider.seen]


REFUSALS: dict[str, tuple[int, Any]] = {
    "named": (400, {"error": {"message": "encoding_format must be 'float'", "param": "encoding_format"}}),
    "in other words": (400, {"error": {"message": "base64 output is not available for this model"}}),
    "pydantic": (422, {"detail": [{"loc": ["body", "encoding_format"], "msg": "Input should be 'float'"}]}),
    "forbidden key": (422, {"detail": [{"loc": ["body"], "msg": "Extra fields not permitted"}]}),
    "unnamed": (400, {"message": "Unsupported parameter"}),
    "no words": (400, {}),
}


@pytest.mark.parametrize("steps", [STEPS, UNSIZED], ids=["dimensions", "probed"])
@pytest.mark.parametrize(("status", "refusal"), every_nth(2, REFUSALS))
def test_refused_base64_is_requested_as_floats_and_this_is_remembered(
    workspace: Any, provider: Any, cli: Any, read: Any, steps: str, status: int, refusal: Any
) -> None:
    def script(path: str, body: Any, count: int) -> Any:
        if "encoding_format" in body:
            return web.json_response(refusal or None, status=status) if refusal else web.Response(status=status)
        return floats(body)

    provider.script = script
    workspace.csv(20)
    job = workspace.job(steps=steps)
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"]) == (0, 20, 0)
    assert sum("encoding_format" in body for _, body in provider.seen) == 1
    assert [row["v"] for row in read(workspace.folder / "out", order="id")][:2] == [[6.0] * 4, [6.0] * 4]
    provider.seen.clear()
    workspace.csv(30)
    assert cli.run(job)["requests"] == 1
    assert "encoding_format" not in provider.seen[0][1]


LIMITS: dict[str, tuple[int, Any, int]] = {
    "DashScope": (
        400,
        {
            "error": {
                "message": "<400> InternalError.Algo.InvalidParameter: Value error, batch size is invalid, it should "
                "not be larger than 25.: input.contents",
                "code": "InvalidParameter",
            }
        },
        25,
    ),
    "Cohere": (400, {"message": "invalid request: total number of texts must be at most 96 - received 200"}, 96),
    "TEI": (413, {"error": "batch size 200 > maximum allowed batch size 32", "error_type": "Validation"}, 32),
    "Azure": (400, {"error": {"message": "Too many inputs. The max number of inputs is 16.", "code": None}}, 16),
    "OpenAI": (
        400,
        {"error": {"message": "'$.input' is invalid: array too long. Expected an array with maximum length 50."}},
        50,
    ),
    "pydantic": (
        422,
        {"detail": [{"loc": ["body", "input"], "msg": "List should have at most 64 items", "type": "too_long"}]},
        64,
    ),
}


@pytest.mark.parametrize(("status", "refusal", "limit"), every_nth(2, LIMITS))
def test_a_stated_limit_of_texts_is_learned_from_one_refusal_and_stored(
    workspace: Any, provider: Any, cli: Any, status: int, refusal: Any, limit: int
) -> None:
    provider.script = lambda path, body, count: (
        web.json_response(refusal, status=status) if len(body["input"]) > limit else None
    )
    workspace.csv(600)
    job = workspace.job(steps=STEPS)
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"]) == (0, 600)
    assert sum(size > limit for size in sizes(provider)) == 1
    assert max(sizes(provider)[1:]) == limit
    provider.seen.clear()
    workspace.csv(1200)
    assert cli.run(job)["rows_ok"] == 1200
    assert max(sizes(provider)) == limit


@pytest.mark.parametrize(
    ("status", "message"),
    every_nth(
        3,
        {
            "413": (413, "Payload Too Large"),
            "inputs": (400, "too many inputs"),
            "tokens": (400, "max 300000 tokens per request"),
            "no words": (400, "no"),
        },
    ),
)
def test_a_limit_that_nobody_states_is_found_by_a_handful_of_refusals(
    workspace: Any, provider: Any, cli: Any, status: int, message: str
) -> None:
    provider.script = lambda path, body, count: error_reply(status, message) if len(body["input"]) > 10 else None
    workspace.csv(600)
    job = workspace.job(steps=STEPS)
    assert cli.run(job)["rows_ok"] == 600
    assert sum(size > 10 for size in sizes(provider)) <= 5
    provider.seen.clear()
    workspace.csv(1200)
    assert cli.run(job)["rows_ok"] == 1200
    assert max(sizes(provider)) == 8


@pytest.mark.parametrize("bad", every_nth(2, {"first": 1, "middle": 130, "second request": 300, "last but one": 255}))
def test_a_bad_text_is_still_found_by_halving_and_lowers_no_limit(
    workspace: Any, provider: Any, cli: Any, bad: int
) -> None:
    provider.script = lambda path, body, count: (
        error_reply(400, "this input is not allowed") if f"text {bad}" in body["input"] else None
    )
    workspace.csv(600)
    job = workspace.job(steps=STEPS)
    report = cli.run(job)
    assert (report["rows_ok"], report["rows_failed"]) == (599, 1)
    assert report["requests"] <= 30
    provider.seen.clear()
    workspace.csv(1200)
    assert cli.run(job)["rows_ok"] == 1199
    assert max(sizes(provider)) == 256


@pytest.mark.parametrize(
    "index",
    [
        lambda place: {} if place == 0 else {"index": place},
        lambda place: {},
        lambda place: {"index": None},
        lambda place: {"index": float(place)},
        lambda place: {"index": str(place)},
    ],
    ids=["zero left out", "none", "null", "float", "text"],
)
def test_a_missing_index_is_the_place_of_the_vector(
    workspace: Any, provider: Any, cli: Any, read: Any, index: Any
) -> None:
    provider.script = lambda path, body, count: floats(body, index)
    workspace.csv(12)
    report = cli.run(workspace.job(steps=STEPS))
    assert (report["exit_code"], report["requests"], report["cost_usd"]) == (0, 1, 12e-6)
    lengths = {row["id"]: row["v"][0] for row in read(workspace.folder / "out")}
    assert lengths == {n: float(len(f"text {n}")) for n in range(1, 13)}


def _spoilt(change: Any) -> Any:
    def script(path: str, body: Any, count: int) -> Any:
        answer = floats(body)
        change(answer["data"])
        return answer

    return script


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop(),
        lambda data: data.append(data[0]),
        lambda data: data[1].update(index=0),
        lambda data: (data[1].update(index=0), data[0].pop("index")),
        lambda data: data[0].update(embedding="[1, 2, 3, 4]"),
        lambda data: data[0].update(embedding=["1", "2", "3", "4"]),
        lambda data: data[0].update(embedding=[True, True, True, True]),
        lambda data: data.__setitem__(0, [1, 2, 3, 4]),
        lambda data: data[0].update(index=True),
    ],
)
def test_vectors_that_cannot_be_matched_or_read_are_malformed(
    workspace: Any, provider: Any, cli: Any, read: Any, change: Any
) -> None:
    provider.script = _spoilt(change)
    workspace.csv(3)
    assert cli.run(workspace.job(steps=STEPS))["rows_failed"] == 3
    assert {row["error_class"] for row in read(workspace.folder / "out", "errors")} == {"malformed_reply"}
