"""POST /embeddings and /models of the emulator, through the official SDK."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest

from connectors.emulator.embeddings import vectors as vectors_module
from connectors.emulator.models import EMULATED_MODELS
from connectors.emulator.real_models.catalogue import REAL_MODELS
from connectors.tokens import count_tokens

MODEL = "text-embedding-3-small"


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    """The SDK without strict validation: its types reject the base64 that it requests itself."""
    with openai.OpenAI(base_url=base_url, api_key="any", max_retries=0) as sdk:
        yield sdk


def embedded(client: openai.OpenAI, given: Any, model: str = MODEL, **more: Any) -> np.ndarray[Any, Any]:
    got = client.embeddings.create(model=model, input=given, **more)
    assert [one.index for one in got.data] == list(range(len(got.data)))
    return np.array([one.embedding for one in got.data])


@pytest.mark.parametrize(
    ("model", "size"),
    [(MODEL, 1536), ("text-embedding-3-large", 3072), ("text-embedding-ada-002", 1536), ("rowmill-embeddings", 256)],
)
def test_every_model_has_unit_vectors_of_its_size(client: openai.OpenAI, model: str, size: int) -> None:
    found = embedded(client, ["A cat sat.", "Prices rose."], model)
    assert found.shape == (2, size)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_floats_and_base64_are_the_same_numbers(client: openai.OpenAI, base_url: str, http: httpx.Client) -> None:
    floats = embedded(client, "hello", encoding_format="float")
    assert (floats.astype("<f4") == embedded(client, "hello").astype("<f4")).all()
    body = {"model": MODEL, "input": "hello", "encoding_format": "base64"}
    encoded = http.post(f"{base_url}/embeddings", json=body).json()["data"][0]["embedding"]
    assert (np.frombuffer(base64.b64decode(encoded), "<f4") == floats[0].astype("<f4")).all()


def test_similar_texts_have_similar_vectors(client: openai.OpenAI) -> None:
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose again in March."]
    cat, kitten, rates = embedded(client, texts)
    assert cat @ kitten > 0.4 > cat @ rates


@pytest.mark.parametrize("size", [1, 64, 256, 300, 1024])
def test_a_shorter_vector_is_the_beginning_of_the_longer_one(client: openai.OpenAI, size: int) -> None:
    whole = embedded(client, "The cat sleeps.")[0][:size]
    assert embedded(client, "The cat sleeps.", dimensions=size)[0] == pytest.approx(
        whole / np.linalg.norm(whole), abs=1e-5
    )


def test_angles_between_vectors_do_not_depend_on_dimensions(client: openai.OpenAI) -> None:
    one, other = embedded(client, ["a b c", "c d e"])
    large, larger = embedded(client, ["a b c", "c d e"], "text-embedding-3-large")
    assert one @ other == pytest.approx(large @ larger, abs=1e-5)


def test_a_text_has_the_same_vector_alone_and_in_a_list(client: openai.OpenAI) -> None:
    texts = [f"text number {number} " + "word " * number for number in range(100)]
    many = embedded(client, texts)
    assert many[7] == pytest.approx(embedded(client, texts[7])[0], abs=1e-6)


def test_token_ids_are_decoded_to_text(client: openai.OpenAI) -> None:
    # "hello world" in cl100k_base
    ids = [15339, 1917]
    text = embedded(client, "hello world")
    assert (embedded(client, ids) == text).all()
    assert (embedded(client, [ids, ids]) == text).all()


def test_tokens_are_counted(client: openai.OpenAI) -> None:
    texts = ["A cat sat.", "Prices rose."]
    got = client.embeddings.create(model=MODEL, input=texts)
    expected = sum(count_tokens(text, MODEL) for text in texts)
    assert (got.usage.prompt_tokens, got.usage.total_tokens) == (expected, expected)
    assert (got.object, got.model) == ("list", MODEL)


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": ""}, "input[0]", "empty_string"),
        ({"input": ["a", ""]}, "input[1]", "empty_string"),
        ({"input": []}, "input", "empty_array"),
        ({"input": [[]]}, "input[0]", "empty_array"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": ["a", 5]}, "input[1]", "invalid_type"),
        ({"input": [True]}, "input[0]", "invalid_type"),
        ({"input": [10**9]}, "input[0]", "invalid_tokens"),
        ({"input": [-1]}, "input[0]", "invalid_tokens"),
        ({"input": ["a"] * 2049}, "input", "array_above_max_length"),
        ({"input": "word " * 8200}, "input", "context_length_exceeded"),
        ({"input": ["word " * 8000] * 40}, "input", "max_tokens_per_request"),
        ({"dimensions": 0}, "dimensions", "integer_below_min_value"),
        ({"dimensions": 1537}, "dimensions", "integer_above_max_value"),
        ({"dimensions": 2.0}, "dimensions", "invalid_type"),
        ({"model": "text-embedding-ada-002", "dimensions": 5}, "dimensions", None),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"user": 1}, "user", "invalid_type"),
        ({"temperature": 1}, "temperature", "unknown_parameter"),
    ],
)
def test_an_invalid_parameter_is_named_in_the_error(
    base_url: str, http: httpx.Client, more: dict[str, Any], param: str, code: str | None
) -> None:
    reply = http.post(f"{base_url}/embeddings", json={"model": MODEL, "input": "x", **more})
    assert reply.status_code == 400
    assert (reply.json()["error"]["param"], reply.json()["error"]["code"]) == (param, code)


@pytest.mark.parametrize("wordllama", [True, False])
def test_no_text_has_a_zero_vector(monkeypatch: pytest.MonkeyPatch, wordllama: bool) -> None:
    if not wordllama:
        monkeypatch.setattr(vectors_module, "_model", lambda: None)
    texts = ["cats sleep", "cats purr", "stocks fell", " ", "🦕", "…"]
    for size in (1, 100, 3072):
        found = np.array(vectors_module.embed_texts(texts, size))
        assert found.shape == (len(texts), size) and found.dtype == np.dtype("<f4")
        assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-5)
    cats, purr, stocks = np.array(vectors_module.embed_texts(texts[:3], 256))
    assert cats @ purr > cats @ stocks


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    listed = list(client.models.list())
    assert [model.id for model in listed if model.owned_by == "rowmill-local"] == list(EMULATED_MODELS)
    assert {model.id for model in listed} - set(EMULATED_MODELS) <= set(REAL_MODELS)
    for name in ("gpt-4o-mini", "ft:gpt-4o:me::x", "org/model", "anything"):
        model = client.models.retrieve(name)
        assert (model.id, model.object, model.created > 0) == (name, "model", True)


def test_only_fine_tuned_models_are_deleted(client: openai.OpenAI) -> None:
    gone = client.models.delete("ft:gpt-4o:me::x")
    assert gone.model_dump() == {"id": "ft:gpt-4o:me::x", "object": "model", "deleted": True}
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("gpt-4o")
    for ask in (client.models.retrieve, client.models.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask("no-such-model")
        assert caught.value.code == "model_not_found"
