"""Embedding vectors: from wordllama if it is installed, else hashed bags of words."""

import re
import zlib
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

MODEL_DIMENSIONS = 256
"""Dimensions of the model's vectors."""

_WORD = re.compile(r"\w+")


def embed_texts(texts: Sequence[str], size: int) -> "Vectors":
    """One float32 unit vector of `size` dimensions per text, as rows; sizes of n x 256 give equal angles.

    Longer vectors repeat the model's vector, shorter ones are its beginning (the model is trained for that). So the
    normalised beginning of a long vector equals the short vector, as with OpenAI's third generation.
    """
    import numpy as np

    model = _model()
    full = _hashed_bags(texts) if model is None else _pooled(model, texts)
    sized = full[:, :size] if size <= MODEL_DIMENSIONS else np.tile(full, (1, -(-size // MODEL_DIMENSIONS)))[:, :size]
    lengths = np.linalg.norm(sized, axis=1, keepdims=True)
    # A text without known tokens has no direction: it gets the first axis.
    sized[:, 0] += lengths[:, 0] == 0
    lengths[lengths == 0] = 1
    return np.ascontiguousarray(sized / lengths, dtype="<f4")


@cache
def _model() -> "tuple[Any, Vectors] | None":
    """(tokenizer, one row per token) from the package's weights; None if it is not installed.

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


def _pooled(model: "tuple[Any, Vectors]", texts: Sequence[str]) -> "Vectors":
    """The mean of each text's token vectors."""
    import numpy as np

    tokenizer, weights = model
    matrix = np.zeros((len(texts), MODEL_DIMENSIONS), dtype=np.float32)
    for row, encoded in enumerate(tokenizer.encode_batch(list(texts), add_special_tokens=False)):
        if encoded.ids:
            matrix[row] = weights[encoded.ids].mean(axis=0)
    return matrix


def _hashed_bags(texts: Sequence[str]) -> "Vectors":
    """Each word adds 1 or -1 at the position of its hash."""
    import numpy as np

    matrix = np.zeros((len(texts), MODEL_DIMENSIONS), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in _WORD.findall(text.lower()):
            word_hash = zlib.crc32(word.encode("utf-8", "replace"))
            matrix[row, word_hash % MODEL_DIMENSIONS] += 1 if word_hash & 0x10000 else -1
    return matrix
