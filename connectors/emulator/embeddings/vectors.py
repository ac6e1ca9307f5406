"""Vectors of texts: wordllama's own where it is installed, hashed bags of words otherwise."""

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
"""Length of the model's own vectors."""

_WORD = re.compile(r"\w+")


def embed_texts(texts: Sequence[str], size: int) -> "Vectors":
    """One unit vector of `size` float32 a text, a row each; the angle between two does not depend on a size of n x 256.

    Longer vectors repeat the model's own, shorter ones are its beginning (it is trained so that this serves), hence
    the beginning of a longer vector, made a unit again, is the shorter one, as with OpenAI's third generation.
    """
    import numpy as np

    model = _model()
    own = _bags(texts) if model is None else _pooled(model, texts)
    sized = own[:, :size] if size <= MODEL_DIMENSIONS else np.tile(own, (1, -(-size // MODEL_DIMENSIONS)))[:, :size]
    lengths = np.linalg.norm(sized, axis=1, keepdims=True)
    # A text of which nothing is known has no direction of its own: it gets the first one.
    sized[:, 0] += lengths[:, 0] == 0
    lengths[lengths == 0] = 1
    return np.ascontiguousarray(sized / lengths, dtype="<f4")


@cache
def _model() -> "tuple[Any, Vectors] | None":
    """(tokenizer, a row a token) of the weights in the package; None where it is not installed.

    Not through wordllama.WordLlama: it looks for its tokenizer in a folder that the package does not have and then asks
    the network, and its import sets up logging. The files are read here as they lie.
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
    found = np.zeros((len(texts), MODEL_DIMENSIONS), dtype=np.float32)
    for place, encoded in enumerate(tokenizer.encode_batch(list(texts), add_special_tokens=False)):
        if encoded.ids:
            found[place] = weights[encoded.ids].mean(axis=0)
    return found


def _bags(texts: Sequence[str]) -> "Vectors":
    """Each word adds 1 or -1 at a place that its hash tells."""
    import numpy as np

    found = np.zeros((len(texts), MODEL_DIMENSIONS), dtype=np.float32)
    for place, text in enumerate(texts):
        for word in _WORD.findall(text.lower()):
            hashed = zlib.crc32(word.encode("utf-8", "replace"))
            found[place, hashed % MODEL_DIMENSIONS] += 1 if hashed & 0x10000 else -1
    return found
