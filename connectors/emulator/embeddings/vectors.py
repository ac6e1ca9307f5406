"""Embedding vectors: from wordllama if it is installed, else hashed words and groups of three letters."""

import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from typing import Any

MODEL_DIMENSIONS = 256
"""Dimensions of the model's vectors."""

SHORT_WORD_CHARACTERS = 3
"""Words that are no longer say less of a text's subject and count half."""

_WORD = re.compile(r"\w+")


def embed_texts(texts: Sequence[str], size: int) -> list["array[float]"]:
    """One unit vector of `size` float32 numbers per text; sizes of n x 256 give equal angles.

    Longer vectors repeat the model's vector, shorter ones are its beginning (the model is trained for that). So the
    normalised beginning of a long vector equals the short vector, as with OpenAI's third generation.
    """
    model = _model()
    vectors = map(_hashed_vector, texts) if model is None else _pooled(model, texts)
    return [_sized(vector, size) for vector in vectors]


def _sized(vector: Sequence[float], size: int) -> "array[float]":
    repeats, rest = divmod(size, len(vector))
    head = vector[:rest]
    length = sqrt(repeats * sum(number * number for number in vector) + sum(number * number for number in head))
    if not length:
        # A text without known tokens has no direction: it gets the first axis.
        return array("f", [1.0, *[0.0] * (size - 1)])
    whole = array("f", [number / length for number in vector])
    return whole * repeats + whole[:rest]


@cache
def _model() -> "tuple[Any, Any] | None":
    """(tokenizer, float32 array of one row per token) from the package's weights; None if it is not installed.

    wordllama.WordLlama is not used: it looks for its tokenizer in a folder that the package lacks, then downloads it,
    and its import configures logging.
    """
    package = find_spec("wordllama")
    if package is None or not package.submodule_search_locations:
        return None
    import numpy as np
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path(package.submodule_search_locations[0])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    weights = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    return tokenizer, weights.astype(np.float32)


def _pooled(model: tuple[Any, Any], texts: Sequence[str]) -> Iterator[list[float]]:
    """The mean of each text's token vectors."""
    tokenizer, weights = model
    for encoded in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        yield weights[encoded.ids].mean(axis=0).tolist() if encoded.ids else [0.0] * MODEL_DIMENSIONS


def _hashed_vector(text: str) -> list[float]:
    """Each word and each three letters in a row add 1 or -1 at the position of their hash."""
    vector = [0.0] * MODEL_DIMENSIONS
    for word in _WORD.findall(text.lower()):
        weight = 0.5 if len(word) <= SHORT_WORD_CHARACTERS else 1.0
        # With its borders, so that the beginning of a word differs from its middle.
        bounded = f"<{word}>"
        for part in (word, *(bounded[at : at + 3] for at in range(len(bounded) - 2))):
            part_hash = zlib.crc32(part.encode("utf-8", "replace"))
            vector[part_hash % MODEL_DIMENSIONS] += weight if part_hash & 0x10000 else -weight
    return vector
